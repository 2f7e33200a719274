//! Fine-tuning of adapters as an iterator of optimizer steps.
