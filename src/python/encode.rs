//! The parts of encoding that several classes share: keywords, progress, results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::prelude::*;

use super::convert;
use super::enter::enter_long;
use super::registry::choice;
use crate::embed::{
    self, EncodeOptions, Precision, Quantized, Role, TokenVectors, Truncation, Vectors, Watch,
};
use crate::{Error, Result};

/// The keywords of one call.
pub(super) struct Call<'a, 'py> {
    pub(super) prompt_name: Option<&'a str>,
    pub(super) prompt: Option<&'a str>,
    pub(super) batch_size: Option<usize>,
    pub(super) normalize: Option<bool>,
    pub(super) truncate_dim: Option<usize>,
    pub(super) precision: &'a str,
    pub(super) truncation: &'a str,
    pub(super) adapter: Option<&'a Bound<'py, PyAny>>,
}

impl Call<'_, '_> {
    /// The core's options, with the prompt chosen.
    pub(super) fn options(&self, embedder: &embed::Embedder, role: Role) -> PyResult<EncodeOptions> {
        Ok(EncodeOptions {
            prompt: embedder.prompt(role, self.prompt_name, self.prompt)?,
            normalize: self.normalize,
            truncate_dim: self.truncate_dim,
            batch_size: self.batch_size,
            truncation: Truncation::from_name(self.truncation)?,
            adapter: embedder.adapter(&choice(self.adapter)?)?,
        })
    }
}

/// Runs long work under a progress bar; Ctrl-C gives it up before the next matrix product.
pub(super) fn watched<T: Send>(
    py: Python<'_>,
    show_progress_bar: Option<bool>,
    total: usize,
    unit: &str,
    work: impl FnOnce(Watch) -> Result<T> + Send,
) -> PyResult<T> {
    let bar = py.import("candlewick._progress")?.getattr("Texts")?.call1((show_progress_bar, total, unit))?;
    let done = AtomicUsize::new(0);
    let progress = |count: usize| {
        done.fetch_add(count, Ordering::Relaxed);
    };
    let guarded = |cancel: &Arc<AtomicBool>| {
        let cancelled = || cancel.load(Ordering::Relaxed);
        work(Watch { cancelled: &cancelled, progress: &progress })
    };
    let update = || bar.call_method1("update", (done.load(Ordering::Relaxed),)).map(|_| ());
    let result = enter_long(py, guarded, |_| update());
    update()?;
    bar.call_method0("close")?;
    result
}

/// Vectors as an array in the precision asked for.
pub(super) fn deliver(
    py: Python<'_>,
    vectors: Vectors,
    precision: Precision,
    many: bool,
) -> PyResult<Bound<'_, PyAny>> {
    let dim = vectors.dim;
    let packed = dim.div_ceil(8);
    let columns = if matches!(precision, Precision::Binary | Precision::Ubinary) { packed } else { dim };
    match embed::quantize(vectors.values, dim, precision)? {
        Quantized::F32(values) => convert::array(py, values, columns, many),
        Quantized::I8(values) => convert::array(py, values, columns, many),
        Quantized::U8(values) => convert::array(py, values, columns, many),
    }
}

/// One matrix, or all of them in a list.
pub(super) fn token_arrays(
    py: Python<'_>,
    found: Vec<TokenVectors>,
    hidden: usize,
    many: bool,
) -> PyResult<Bound<'_, PyAny>> {
    let mut arrays = found.into_iter().map(|vectors| convert::array(py, vectors.values, hidden, true));
    if many {
        return Ok(arrays.collect::<PyResult<Vec<_>>>()?.into_pyobject(py)?.into_any());
    }
    arrays.next().unwrap_or_else(|| Err(Error::internal("encode", "no result for the text").into()))
}
