//! The extension module `candlewick._native`: the only room that knows pyo3.
//!
//! Each method converts its arguments, enters the core through [`enter`], and converts the result. It computes nothing.

mod convert;
mod embedder;
mod encode;
mod enter;
mod errors;
mod generating;
mod generator;
mod lora;
mod memory;
mod metrics;
mod model;
mod notify;
mod pending;
mod registry;
mod reranker;
mod results;
mod rows;
mod selftest;
mod settings;
mod source;
mod stream;
mod tokenizer;
mod trainer;
mod training;
mod whole;

use pyo3::prelude::*;

/// The compiled part of candlewick; use the names that `candlewick` exports.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::embedder::Embedder;
    #[pymodule_export]
    use super::generator::Generator;
    #[pymodule_export]
    use super::lora::LoraConfig;
    #[pymodule_export]
    use super::metrics::StepMetrics;
    #[pymodule_export]
    use super::model::Model;
    #[pymodule_export]
    use super::registry::{Adapter, AdapterInfo, AdapterRegistry};
    #[pymodule_export]
    use super::reranker::Reranker;
    #[pymodule_export]
    use super::results::{Generation, StreamToken};
    #[pymodule_export]
    use super::selftest::_selftest;
    #[pymodule_export]
    use super::stream::TokenStream;
    #[pymodule_export]
    use super::tokenizer::{DecodeStream, Tokenizer};
    #[pymodule_export]
    use super::trainer::Trainer;

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use super::_connect;
}

/// Sends logs to Python's `logging` and ends the threads that need Python before Python ends.
///
/// The package calls it once. It is no `#[pymodule_init]`, which would make the generated stub an incomplete one, in
/// which a type checker finds every name.
#[pyfunction]
fn _connect(py: Python<'_>) -> PyResult<()> {
    // A second interpreter finds the bridge in place, which is as good.
    let _ = pyo3_log::try_init();
    notify::close_at_exit(py)
}
