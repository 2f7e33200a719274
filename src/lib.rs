//! candlewick runs and adapts small language models on your own machine.

pub mod adapter;
pub mod batch;
pub mod checkpoint;
pub mod device;
pub mod embed;
pub mod error;
pub mod generate;
pub mod kernels;
pub mod models;
pub mod nn;
#[cfg(feature = "python")]
mod python;
pub mod tokenizer;
pub mod train;
pub mod weight;

pub use adapter::{AdapterChoice, AdapterFile, AdapterInfo, AdapterRegistry, LoraConfig};
pub use error::{Error, Result};
pub use generate::{GenerationOptions, Generator, Prompt};
pub use models::{LoadOptions, Model};
