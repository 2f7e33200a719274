//! candlewick runs and adapts small language models on your own machine.
//!
//! ```
//! use candlewick::{GenerationOptions, Generator, LoadOptions, Model};
//!
//! let model = Model::load("candlewick/tiny", &LoadOptions::default())?;
//! let generator = Generator::new(&model);
//! let options = GenerationOptions { max_new_tokens: 16, ..Default::default() };
//! for token in generator.stream(&"Once upon a time".into(), &options, None)? {
//!     assert!(token?.probability > 0.0);
//! }
//! # Ok::<(), candlewick::Error>(())
//! ```
//!
//! The rooms, from the ground up; each imports only what stands above it (`tests/rust/layering.rs` checks that):
//!
//! | room | holds |
//! |---|---|
//! | [`error`], [`device`], [`batch`] | what can go wrong, where tensors live, the ragged batch that carries work |
//! | [`kernels`] | numeric operations with their gradients and device code |
//! | [`weight`] | how one matrix is stored and multiplied |
//! | [`nn`] | parts of a transformer; caches and adapters come with the work, never with the model |
//! | [`checkpoint`], [`tokenizer`] | files as named tensors, text as token ids |
//! | [`models`] | one file per family, and the loaded [`Model`] |
//! | [`adapter`] | LoRA and its relatives, their files, the registry |
//! | [`generate`], [`train`], [`embed`] | prompts to tokens, rows to adapters, texts to vectors |
//! | [`selftest`] | whether a device computes what the CPU computes |

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
pub mod selftest;
pub mod tokenizer;
pub mod train;
pub mod weight;

pub use adapter::{AdapterChoice, AdapterFile, AdapterInfo, AdapterRegistry, LoraConfig};
pub use error::{Error, Result};
pub use generate::{GenerationOptions, Generator, Prompt};
pub use models::{LoadOptions, Model};
