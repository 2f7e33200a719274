//! How one matrix is stored and multiplied.
//!
//! It knows neither files nor models: bytes come in through [`TensorSource`], a weight goes out.

mod source;

pub use source::{Format, TensorInfo, TensorSource};
