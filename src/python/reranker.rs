//! `Reranker`: pairs of texts to scores.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::convert;
use super::encode::watched;
use super::source::{self, Source};
use super::tokenizer::Tokenizer;
use super::whole::{Whole, count, unsigned};
use crate::embed::{self, PredictOptions, RerankerOptions, Truncation};
use crate::{Error, Result};

/// Scores how well documents answer a query, with cross-encoders that read both texts at once.
///
/// Rerankers are immutable: any number of threads and tasks may share one.
#[pyclass(frozen, module = "candlewick", weakref)]
pub(super) struct Reranker {
    inner: Mutex<Option<embed::Reranker>>,
    source: Source,
    max_length: Option<usize>,
}

impl Reranker {
    fn get(&self) -> Result<embed::Reranker> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clone().ok_or_else(|| {
            Error::argument("reranker", "a closed reranker", "one that was not closed; load it again")
        })
    }
}

/// One pair of texts, or several; the flag says which.
fn pairs(value: &Bound<'_, PyAny>) -> PyResult<(Vec<(String, String)>, bool)> {
    if value.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("pairs: got a str, expected pairs of texts"));
    }
    let items = value.try_iter()?.collect::<PyResult<Vec<_>>>()?;
    if let [first, second] = items.as_slice()
        && first.is_instance_of::<PyString>()
        && second.is_instance_of::<PyString>()
    {
        return Ok((vec![(first.extract()?, second.extract()?)], false));
    }
    let pair = |item: &Bound<'_, PyAny>| -> PyResult<(String, String)> {
        let (mut texts, many) = convert::texts("pairs", item)?;
        match (texts.len(), texts.pop(), texts.pop()) {
            (2, Some(second), Some(first)) if many => Ok((first, second)),
            _ => Err(PyTypeError::new_err("pairs: expected pairs of texts such as (query, document)")),
        }
    };
    Ok((items.iter().map(pair).collect::<PyResult<_>>()?, true))
}

/// The keywords that `predict` and `rank` share.
struct Call<'a> {
    prompt_name: Option<&'a str>,
    prompt: Option<&'a str>,
    activation: Option<String>,
    softmax: bool,
    batch_size: Option<Whole>,
    truncation: &'a str,
}

impl Call<'_> {
    fn options(self, reranker: &embed::Reranker) -> Result<PredictOptions> {
        Ok(PredictOptions {
            prompt: reranker.prompt(self.prompt_name, self.prompt)?,
            activation: self.activation,
            softmax: self.softmax,
            batch_size: count("batch_size", self.batch_size.as_ref())?,
            truncation: Truncation::from_name(self.truncation)?,
        })
    }
}

#[pymethods]
impl Reranker {
    /// Loads a cross-encoder.
    ///
    /// Args:
    ///     source: A directory or hub id of a sequence-classification model, such as
    ///         ``"cross-encoder/ms-marco-MiniLM-L6-v2"``.
    ///     device: ``"auto"``, ``"cpu"``, ``"metal"``, ``"cuda"`` or ``"cuda:N"``.
    ///     dtype: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    ///     max_length: The longest pair in tokens; None means the tokenizer's limit.
    ///     revision: Branch, tag or commit on the hub.
    ///     cache_dir: Where downloads are kept, instead of the hub's standard cache.
    ///     token: Access token for the hub, instead of ``HF_TOKEN`` or the stored one.
    ///     local_files_only: Never touch the network.
    ///     memory_limit_bytes: Refuse weights that need more than this.
    ///     show_progress_bar: Whether to show downloads; None means if the logger shows INFO.
    ///
    /// Returns:
    ///     The reranker.
    ///
    /// Raises:
    ///     ModelNotFoundError: Neither disk nor hub has it.
    ///     UnsupportedModelError: Candlewick has no classification head for its architecture.
    ///     CheckpointError: Tensors are missing, such as those of the head, malformed or of the wrong shape.
    #[staticmethod]
    #[pyo3(signature = (source, *, device = "auto", dtype = "auto", max_length = None, revision = None, cache_dir = None,
                        token = None, local_files_only = false, memory_limit_bytes = None, show_progress_bar = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn from_pretrained(
        py: Python<'_>,
        source: PathBuf,
        device: &str,
        dtype: &str,
        max_length: Option<Whole>,
        revision: Option<String>,
        cache_dir: Option<PathBuf>,
        token: Option<String>,
        local_files_only: bool,
        memory_limit_bytes: Option<Whole>,
        show_progress_bar: Option<bool>,
    ) -> PyResult<Self> {
        let source = Source {
            name: source.display().to_string(),
            place: source::place(&source),
            device: device.to_owned(),
            dtype: dtype.to_owned(),
            revision,
            cache_dir: cache_dir.as_deref().map(source::whole),
            local_files_only,
            memory_limit_bytes: unsigned("memory_limit_bytes", memory_limit_bytes.as_ref())?,
        };
        let max_length = count("max_length", max_length.as_ref())?;
        let reranker = source.open(py, token, show_progress_bar, |name, load| {
            embed::Reranker::load(name, &RerankerOptions { load, max_length })
        })?;
        Ok(Self { inner: Mutex::new(Some(reranker)), source, max_length })
    }

    /// Scores pairs of texts.
    ///
    /// Args:
    ///     pairs: A pair of texts, or any iterable of pairs.
    ///     prompt_name: Name of the prompt to put before the first text of every pair.
    ///     prompt: The prompt itself; wins over the name.
    ///     activation: A class of torch such as ``"sigmoid"``, ``"identity"``, ``"tanh"`` or ``"softmax"``; None means as
    ///         the repository says, else a sigmoid for one label.
    ///     apply_softmax: Whether the scores of several labels become probabilities.
    ///     batch_size: The most pairs of one pass; None lets the number of tokens decide.
    ///     truncation: Pairs that are too long are cut and counted in a log message (``"warn"``), cut (``"silent"``), or
    ///         refused (``"error"``).
    ///     show_progress_bar: Whether to show a bar; None means if the logger shows INFO.
    ///
    /// Returns:
    ///     A float32 array ``[pairs]``, or ``[pairs, labels]`` for a model of several labels; without the first dimension
    ///     for a single pair.
    ///
    /// Raises:
    ///     TypeError: Something is not a pair of texts.
    ///     ContextLengthError: A pair is too long, with ``truncation="error"``.
    #[pyo3(signature = (pairs, *, prompt_name = None, prompt = None, activation = None, apply_softmax = false,
                        batch_size = None, truncation = "warn", show_progress_bar = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn predict<'py>(
        &self,
        py: Python<'py>,
        pairs: &Bound<'py, PyAny>,
        prompt_name: Option<&str>,
        prompt: Option<&str>,
        activation: Option<String>,
        apply_softmax: bool,
        batch_size: Option<Whole>,
        truncation: &str,
        show_progress_bar: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let reranker = self.get()?;
        let call = Call { prompt_name, prompt, activation, softmax: apply_softmax, batch_size, truncation };
        let options = call.options(&reranker)?;
        let (pairs, many) = self::pairs(pairs)?;
        let found = watched(py, show_progress_bar, pairs.len(), "pairs", |watch| {
            reranker.predict(&pairs, &options, watch)
        })?;
        let matrix = many && found.labels > 1;
        let array = convert::array(py, found.values, found.labels, matrix)?;
        if many || found.labels > 1 { Ok(array) } else { array.get_item(0) }
    }

    /// Orders documents by how well they answer a query.
    ///
    /// Args:
    ///     query: The query.
    ///     documents: The documents.
    ///     top_k: How many to return; None means all.
    ///     return_documents: Whether to return the texts too.
    ///     prompt_name: As for ``predict``, like all keywords that follow.
    ///     prompt: As for ``predict``.
    ///     activation: As for ``predict``.
    ///     batch_size: As for ``predict``.
    ///     truncation: As for ``predict``.
    ///     show_progress_bar: As for ``predict``.
    ///
    /// Returns:
    ///     Dicts with ``"corpus_id"`` (the place among the documents), ``"score"`` and perhaps ``"text"``, best first.
    ///
    /// Raises:
    ///     InvalidArgumentError: The model has several labels.
    #[pyo3(signature = (query, documents, *, top_k = None, return_documents = false, prompt_name = None,
                        prompt = None, activation = None, batch_size = None, truncation = "warn",
                        show_progress_bar = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn rank<'py>(
        &self,
        py: Python<'py>,
        query: &str,
        documents: &Bound<'py, PyAny>,
        top_k: Option<Whole>,
        return_documents: bool,
        prompt_name: Option<&str>,
        prompt: Option<&str>,
        activation: Option<String>,
        batch_size: Option<Whole>,
        truncation: &str,
        show_progress_bar: Option<bool>,
    ) -> PyResult<Bound<'py, PyList>> {
        let reranker = self.get()?;
        let call = Call { prompt_name, prompt, activation, softmax: false, batch_size, truncation };
        let options = call.options(&reranker)?;
        let most = count("top_k", top_k.as_ref())?.unwrap_or(usize::MAX);
        let (documents, many) = convert::texts("documents", documents)?;
        if !many {
            return Err(PyTypeError::new_err("documents: got a str, expected a list of str"));
        }
        let ranked = watched(py, show_progress_bar, documents.len(), "documents", |watch| {
            reranker.rank(query, &documents, &options, watch)
        })?;
        let rows = ranked.iter().take(most).map(|ranked| {
            let row = PyDict::new(py);
            row.set_item("corpus_id", ranked.index)?;
            row.set_item("score", ranked.score)?;
            if return_documents {
                row.set_item("text", &documents[ranked.index])?;
            }
            Ok(row)
        });
        PyList::new(py, rows.collect::<PyResult<Vec<_>>>()?)
    }

    /// Number of labels.
    #[getter]
    fn num_labels(&self) -> PyResult<usize> {
        Ok(self.get()?.labels())
    }

    /// The longest pair in tokens.
    #[getter]
    fn max_length(&self) -> PyResult<usize> {
        Ok(self.get()?.max_length())
    }

    /// Prompts by name.
    #[getter]
    fn prompts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let prompts = PyDict::new(py);
        for (name, prompt) in self.get()?.prompts() {
            prompts.set_item(name, prompt)?;
        }
        Ok(prompts)
    }

    /// The name of the prompt that is used where none is named.
    #[getter]
    fn default_prompt_name(&self) -> PyResult<Option<String>> {
        Ok(self.get()?.default_prompt_name().map(str::to_owned))
    }

    /// The tokenizer.
    #[getter]
    fn tokenizer(&self) -> PyResult<Tokenizer> {
        Ok(Tokenizer::new(self.get()?.tokenizer().clone()))
    }

    /// The ``model_type`` of the configuration.
    #[getter]
    fn architecture(&self) -> PyResult<String> {
        Ok(self.get()?.encoder().model_type().to_owned())
    }

    /// The device of the weights, such as ``"cpu"``.
    #[getter]
    fn device(&self) -> PyResult<String> {
        Ok(self.get()?.encoder().device_name())
    }

    /// The dtype of the weights, such as ``"float32"``.
    #[getter]
    fn dtype(&self) -> PyResult<&'static str> {
        Ok(self.get()?.encoder().dtype_name())
    }

    /// What the reranker was loaded from.
    #[getter]
    fn source(&self) -> &str {
        &self.source.name
    }

    /// Gives the memory back once no call uses the reranker any more. Closing twice does nothing.
    fn close(&self, py: Python<'_>) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(inner));
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, py: Python<'_>, _exc: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let keywords = this.source.keywords(py)?;
        keywords.set_item("max_length", this.max_length)?;
        let open = py.import("candlewick._reopen")?.getattr("reranker")?;
        Ok((open, (&this.source.place, keywords)).into_pyobject(py)?.into_any())
    }

    fn __repr__(&self) -> String {
        match self.get() {
            Ok(reranker) => format!(
                "Reranker({:?}, architecture={:?}, labels={}, max_length={}, dtype={:?}, device={:?})",
                self.source.name,
                reranker.encoder().model_type(),
                reranker.labels(),
                reranker.max_length(),
                reranker.encoder().dtype_name(),
                reranker.encoder().device_name()
            ),
            Err(_) => format!("Reranker({:?}, closed)", self.source.name),
        }
    }

    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let reranker = self.get()?;
        let encoder = reranker.encoder();
        let rows = [
            ("source", self.source.name.clone()),
            ("architecture", encoder.model_type().to_owned()),
            ("labels", reranker.labels().to_string()),
            ("max length", format!("{} tokens", reranker.max_length())),
            ("parameters", encoder.num_parameters().to_string()),
            ("memory", format!("{:.1} MB", encoder.size_in_bytes() as f64 / 1e6)),
            ("dtype", encoder.dtype_name().to_owned()),
            ("device", encoder.device_name()),
        ];
        py.import("candlewick.notebook")?.call_method1("table", ("Reranker", rows.to_vec()))?.extract()
    }
}
