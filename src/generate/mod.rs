//! Sampling, stop rules, the scheduler and the engine thread that together turn prompts into tokens.
