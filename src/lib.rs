//! candlewick runs and adapts small language models on your own machine.

pub mod error;

pub use error::{Error, Result};
