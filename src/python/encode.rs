//! The parts of encoding that several classes share: keywords, progress, results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert;
use super::embedder::Embedder;
use super::enter::{enter, enter_long};
use super::pending::PendingVectors;
use super::registry::choice;
use super::whole::{Whole, count};
use crate::embed::{
    self, EncodeOptions, Precision, Quantized, Role, TokenVectors, Truncation, Vectors, Watch,
};
use crate::{Error, Result};

/// The keywords of one call.
pub(super) struct Call<'a, 'py> {
    pub(super) prompt_name: Option<&'a str>,
    pub(super) prompt: Option<&'a str>,
    pub(super) batch_size: Option<Whole>,
    pub(super) normalize: Option<bool>,
    pub(super) truncate_dim: Option<Whole>,
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
            truncate_dim: count("truncate_dim", self.truncate_dim.as_ref())?,
            batch_size: count("batch_size", self.batch_size.as_ref())?,
            truncation: Truncation::from_name(self.truncation)?,
            adapter: embedder.adapter(&choice(self.adapter)?)?,
        })
    }
}

impl<'py> Call<'_, 'py> {
    /// The keywords as they were given.
    pub(super) fn keywords(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let keywords = PyDict::new(py);
        keywords.set_item("prompt_name", self.prompt_name)?;
        keywords.set_item("prompt", self.prompt)?;
        keywords.set_item("batch_size", count("batch_size", self.batch_size.as_ref())?)?;
        keywords.set_item("normalize", self.normalize)?;
        keywords.set_item("truncate_dim", count("truncate_dim", self.truncate_dim.as_ref())?)?;
        keywords.set_item("precision", self.precision)?;
        keywords.set_item("truncation", self.truncation)?;
        keywords.set_item("adapter", self.adapter)?;
        Ok(keywords)
    }
}

impl Embedder {
    /// Computes texts and waits for them.
    pub(super) fn run<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        role: Role,
        call: &Call<'_, 'py>,
        output: &str,
        show_progress_bar: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let embedder = self.get()?;
        let options = call.options(&embedder, role)?;
        let precision = Precision::from_name(call.precision)?;
        let tokens = match output {
            "sentence" => false,
            "token" if precision == Precision::Float32 => true,
            "token" => {
                let given = format!("{:?} of token vectors", call.precision);
                return Err(Error::argument("precision", given, "\"float32\"").into());
            }
            _ => {
                let allowed = "\"sentence\" or \"token\"";
                return Err(Error::argument("output", format!("{output:?}"), allowed).into());
            }
        };
        let (texts, many) = convert::texts("texts", texts)?;
        if tokens {
            let found = watched(py, show_progress_bar, texts.len(), "texts", |watch| {
                embedder.encode_tokens(&texts, &options, watch)
            })?;
            return token_arrays(py, found, embedder.encoder().hidden_size(), many);
        }
        let found = watched(py, show_progress_bar, texts.len(), "texts", |watch| {
            embedder.encode(&texts, &options, watch)
        })?;
        deliver(py, found, precision, many)
    }

    /// A coroutine that gives what [`run`](Self::run) gives; mistakes are told where it is awaited.
    pub(super) fn submit<'py>(
        slf: &Bound<'py, Self>,
        texts: &Bound<'py, PyAny>,
        role: Role,
        call: &Call<'_, 'py>,
        output: &str,
        show_progress_bar: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let waiting = py.import("candlewick._async")?;
        if output != "sentence" || show_progress_bar == Some(true) {
            let method = match role {
                Role::Plain => "encode",
                Role::Query => "encode_query",
                Role::Document => "encode_document",
            };
            let keywords = call.keywords(py)?;
            keywords.set_item("output", output)?;
            keywords.set_item("show_progress_bar", show_progress_bar)?;
            return waiting.call_method1("elsewhere", (slf.getattr(method)?, texts, keywords));
        }
        let start = || -> PyResult<PendingVectors> {
            let embedder = this.get()?;
            let options = call.options(&embedder, role)?;
            let precision = Precision::from_name(call.precision)?;
            let (texts, many) = convert::texts("texts", texts)?;
            let pending = enter(py, || embedder.submit(texts, options))?;
            Ok(PendingVectors::new(pending, precision, many))
        };
        match start() {
            Ok(pending) => waiting.call_method1("finish", (Bound::new(py, pending)?,)),
            Err(error) => waiting.call_method1("fail", (error.into_value(py),)),
        }
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
