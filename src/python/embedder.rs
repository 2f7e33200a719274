//! `Embedder`: texts to vectors.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::convert;
use super::encode::Call;
use super::enter::enter;
use super::settings::{self, Names, Settings};
use super::source::{self, Source};
use super::tokenizer::Tokenizer;
use super::whole::{Whole, count, unsigned};
use crate::embed::{self, Role};
use crate::{Error, Result};

/// Turns texts into vectors, with models in the layout of sentence-transformers.
///
/// Embedders are immutable: any number of threads and tasks may share one.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> embedder = cw.Embedder.from_pretrained("candlewick/tiny")
///     >>> vectors = embedder.encode(["A cat sat on the mat.", "The cat sat on a mat."])
///     >>> vectors.shape == (2, embedder.dimension)
///     True
///     >>> embedder.similarity(vectors, vectors).shape
///     (2, 2)
#[pyclass(frozen, module = "candlewick", weakref)]
pub(super) struct Embedder {
    inner: Mutex<Option<embed::Embedder>>,
    source: Source,
    settings: Settings,
}

impl Embedder {
    pub(super) fn get(&self) -> Result<embed::Embedder> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clone().ok_or_else(|| {
            Error::argument("embedder", "a closed embedder", "one that was not closed; load it again")
        })
    }
}

#[pymethods]
impl Embedder {
    /// Loads an embedding model.
    ///
    /// Args:
    ///     source: A directory or hub id in the layout of sentence-transformers or transformers, such as
    ///         ``"sentence-transformers/all-MiniLM-L6-v2"``, or ``"candlewick/tiny"``, which is bundled.
    ///     device: ``"auto"``, ``"cpu"``, ``"metal"``, ``"cuda"`` or ``"cuda:N"``.
    ///     dtype: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    ///     pooling: ``"cls"``, ``"mean"``, ``"max"``, ``"mean_sqrt_len_tokens"``, ``"weightedmean"``, ``"lasttoken"``, or
    ///         a list of them, in place of the repository's.
    ///     normalize: Whether vectors have length 1; None means as the repository says.
    ///     max_length: The longest text in tokens; None means as the repository says.
    ///     prompts: Prompts by name, in place of the repository's of the same names.
    ///     default_prompt_name: The prompt that ``encode`` uses where none is named.
    ///     truncate_dim: Keep this many dimensions; None means as the repository says.
    ///     revision: Branch, tag or commit on the hub.
    ///     cache_dir: Where downloads are kept, instead of the hub's standard cache.
    ///     token: Access token for the hub, instead of ``HF_TOKEN`` or the stored one.
    ///     local_files_only: Never touch the network.
    ///     memory_limit_bytes: Refuse weights that need more than this.
    ///     show_progress_bar: Whether to show downloads; None means if the logger shows INFO.
    ///
    /// Returns:
    ///     The embedder.
    ///
    /// Raises:
    ///     ModelNotFoundError: Neither disk nor hub has it.
    ///     UnsupportedModelError: Its architecture is not among those that candlewick has.
    ///     ConfigError: A configuration field or a module cannot be honoured.
    ///     CheckpointError: Tensors are missing, malformed or of the wrong shape.
    ///     InvalidArgumentError: A keyword is out of range.
    #[staticmethod]
    #[pyo3(signature = (source, *, device = "auto", dtype = "auto", pooling = None, normalize = None, max_length = None,
                        prompts = None, default_prompt_name = None, truncate_dim = None, revision = None,
                        cache_dir = None, token = None, local_files_only = false, memory_limit_bytes = None,
                        show_progress_bar = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn from_pretrained(
        py: Python<'_>,
        source: PathBuf,
        device: &str,
        dtype: &str,
        pooling: Option<Names>,
        normalize: Option<bool>,
        max_length: Option<Whole>,
        prompts: Option<&Bound<'_, PyDict>>,
        default_prompt_name: Option<String>,
        truncate_dim: Option<Whole>,
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
        let settings = Settings {
            pooling,
            normalize,
            max_length: count("max_length", max_length.as_ref())?,
            prompts: prompts.map(settings::prompts).transpose()?.unwrap_or_default(),
            default_prompt_name,
            truncate_dim: count("truncate_dim", truncate_dim.as_ref())?,
        };
        let wanted = settings.clone();
        let embedder = source.open(py, token, show_progress_bar, |name, load| {
            embed::Embedder::load(name, &wanted.options(load))
        })?;
        Ok(Self { inner: Mutex::new(Some(embedder)), source, settings })
    }

    /// Turns texts into vectors.
    ///
    /// Longer texts share no batch-mates' padding: nothing is padded, so the batch never changes a result.
    ///
    /// Args:
    ///     texts: A text, or any iterable of texts.
    ///     prompt_name: Name of the prompt to put before every text.
    ///     prompt: The prompt itself; wins over the name.
    ///     batch_size: The most texts of one pass; None lets the number of tokens decide.
    ///     normalize: Whether vectors have length 1; None means as the repository says.
    ///     truncate_dim: Keep this many dimensions; None means as the repository says.
    ///     precision: ``"float32"``, ``"int8"``, ``"uint8"``, ``"binary"`` or ``"ubinary"``.
    ///     truncation: Texts that are too long are cut and counted in a log message (``"warn"``), cut (``"silent"``),
    ///         or refused (``"error"``).
    ///     output: ``"sentence"`` for one vector per text, ``"token"`` for a matrix of token vectors per text.
    ///     show_progress_bar: Whether to show a bar; None means if the logger shows INFO.
    ///     adapter: Name of an adapter of ``AdapterRegistry(embedder)``; None is the active one, False none.
    ///
    /// Returns:
    ///     A text gives an array ``[dimension]``; several give ``[texts, dimension]``, none ``[0, dimension]``. With
    ///     ``output="token"`` one array ``[tokens, hidden]`` for each text.
    ///
    /// Raises:
    ///     TypeError: Something is not a text.
    ///     ContextLengthError: A text is too long, with ``truncation="error"``.
    ///     InvalidArgumentError: A keyword is out of range.
    #[pyo3(signature = (texts, *, prompt_name = None, prompt = None, batch_size = None, normalize = None,
                        truncate_dim = None, precision = "float32", truncation = "warn", output = "sentence",
                        show_progress_bar = None, adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        prompt_name: Option<&str>,
        prompt: Option<&str>,
        batch_size: Option<Whole>,
        normalize: Option<bool>,
        truncate_dim: Option<Whole>,
        precision: &str,
        truncation: &str,
        output: &str,
        show_progress_bar: Option<bool>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let call =
            Call { prompt_name, prompt, batch_size, normalize, truncate_dim, precision, truncation, adapter };
        self.run(py, texts, Role::Plain, &call, output, show_progress_bar)
    }

    /// As ``encode``, with the prompt for queries, if there is one.
    ///
    /// Args:
    ///     texts: A text, or any iterable of texts.
    ///     prompt_name: As for ``encode``, like all keywords that follow.
    ///     prompt: As for ``encode``.
    ///     batch_size: As for ``encode``.
    ///     normalize: As for ``encode``.
    ///     truncate_dim: As for ``encode``.
    ///     precision: As for ``encode``.
    ///     truncation: As for ``encode``.
    ///     output: As for ``encode``.
    ///     show_progress_bar: As for ``encode``.
    ///     adapter: As for ``encode``.
    ///
    /// Returns:
    ///     As ``encode``.
    #[pyo3(signature = (texts, *, prompt_name = None, prompt = None, batch_size = None, normalize = None,
                        truncate_dim = None, precision = "float32", truncation = "warn", output = "sentence",
                        show_progress_bar = None, adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn encode_query<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        prompt_name: Option<&str>,
        prompt: Option<&str>,
        batch_size: Option<Whole>,
        normalize: Option<bool>,
        truncate_dim: Option<Whole>,
        precision: &str,
        truncation: &str,
        output: &str,
        show_progress_bar: Option<bool>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let call =
            Call { prompt_name, prompt, batch_size, normalize, truncate_dim, precision, truncation, adapter };
        self.run(py, texts, Role::Query, &call, output, show_progress_bar)
    }

    /// As ``encode``, with the prompt for documents, if there is one.
    ///
    /// Args:
    ///     texts: A text, or any iterable of texts.
    ///     prompt_name: As for ``encode``, like all keywords that follow.
    ///     prompt: As for ``encode``.
    ///     batch_size: As for ``encode``.
    ///     normalize: As for ``encode``.
    ///     truncate_dim: As for ``encode``.
    ///     precision: As for ``encode``.
    ///     truncation: As for ``encode``.
    ///     output: As for ``encode``.
    ///     show_progress_bar: As for ``encode``.
    ///     adapter: As for ``encode``.
    ///
    /// Returns:
    ///     As ``encode``.
    #[pyo3(signature = (texts, *, prompt_name = None, prompt = None, batch_size = None, normalize = None,
                        truncate_dim = None, precision = "float32", truncation = "warn", output = "sentence",
                        show_progress_bar = None, adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn encode_document<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        prompt_name: Option<&str>,
        prompt: Option<&str>,
        batch_size: Option<Whole>,
        normalize: Option<bool>,
        truncate_dim: Option<Whole>,
        precision: &str,
        truncation: &str,
        output: &str,
        show_progress_bar: Option<bool>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let call =
            Call { prompt_name, prompt, batch_size, normalize, truncate_dim, precision, truncation, adapter };
        self.run(py, texts, Role::Document, &call, output, show_progress_bar)
    }

    /// As ``encode``, from an event loop, which is not blocked; concurrent callers share batches.
    ///
    /// Args:
    ///     texts: A text, or any iterable of texts.
    ///     prompt_name: As for ``encode``, like all keywords that follow.
    ///     prompt: As for ``encode``.
    ///     batch_size: As for ``encode``.
    ///     normalize: As for ``encode``.
    ///     truncate_dim: As for ``encode``.
    ///     precision: As for ``encode``.
    ///     truncation: As for ``encode``.
    ///     output: As for ``encode``.
    ///     show_progress_bar: As for ``encode``; True computes these texts by themselves.
    ///     adapter: As for ``encode``.
    ///
    /// Returns:
    ///     As ``encode``.
    #[pyo3(signature = (texts, *, prompt_name = None, prompt = None, batch_size = None, normalize = None,
                        truncate_dim = None, precision = "float32", truncation = "warn", output = "sentence",
                        show_progress_bar = None, adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn aencode<'py>(
        slf: &Bound<'py, Self>,
        texts: &Bound<'py, PyAny>,
        prompt_name: Option<&str>,
        prompt: Option<&str>,
        batch_size: Option<Whole>,
        normalize: Option<bool>,
        truncate_dim: Option<Whole>,
        precision: &str,
        truncation: &str,
        output: &str,
        show_progress_bar: Option<bool>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let call =
            Call { prompt_name, prompt, batch_size, normalize, truncate_dim, precision, truncation, adapter };
        Self::submit(slf, texts, Role::Plain, &call, output, show_progress_bar)
    }

    /// As ``aencode``, with the prompt for queries, if there is one.
    ///
    /// Args:
    ///     texts: A text, or any iterable of texts.
    ///     prompt_name: As for ``encode``, like all keywords that follow.
    ///     prompt: As for ``encode``.
    ///     batch_size: As for ``encode``.
    ///     normalize: As for ``encode``.
    ///     truncate_dim: As for ``encode``.
    ///     precision: As for ``encode``.
    ///     truncation: As for ``encode``.
    ///     output: As for ``encode``.
    ///     show_progress_bar: As for ``encode``; True computes these texts by themselves.
    ///     adapter: As for ``encode``.
    ///
    /// Returns:
    ///     As ``encode``.
    #[pyo3(signature = (texts, *, prompt_name = None, prompt = None, batch_size = None, normalize = None,
                        truncate_dim = None, precision = "float32", truncation = "warn", output = "sentence",
                        show_progress_bar = None, adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn aencode_query<'py>(
        slf: &Bound<'py, Self>,
        texts: &Bound<'py, PyAny>,
        prompt_name: Option<&str>,
        prompt: Option<&str>,
        batch_size: Option<Whole>,
        normalize: Option<bool>,
        truncate_dim: Option<Whole>,
        precision: &str,
        truncation: &str,
        output: &str,
        show_progress_bar: Option<bool>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let call =
            Call { prompt_name, prompt, batch_size, normalize, truncate_dim, precision, truncation, adapter };
        Self::submit(slf, texts, Role::Query, &call, output, show_progress_bar)
    }

    /// As ``aencode``, with the prompt for documents, if there is one.
    ///
    /// Args:
    ///     texts: A text, or any iterable of texts.
    ///     prompt_name: As for ``encode``, like all keywords that follow.
    ///     prompt: As for ``encode``.
    ///     batch_size: As for ``encode``.
    ///     normalize: As for ``encode``.
    ///     truncate_dim: As for ``encode``.
    ///     precision: As for ``encode``.
    ///     truncation: As for ``encode``.
    ///     output: As for ``encode``.
    ///     show_progress_bar: As for ``encode``; True computes these texts by themselves.
    ///     adapter: As for ``encode``.
    ///
    /// Returns:
    ///     As ``encode``.
    #[pyo3(signature = (texts, *, prompt_name = None, prompt = None, batch_size = None, normalize = None,
                        truncate_dim = None, precision = "float32", truncation = "warn", output = "sentence",
                        show_progress_bar = None, adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn aencode_document<'py>(
        slf: &Bound<'py, Self>,
        texts: &Bound<'py, PyAny>,
        prompt_name: Option<&str>,
        prompt: Option<&str>,
        batch_size: Option<Whole>,
        normalize: Option<bool>,
        truncate_dim: Option<Whole>,
        precision: &str,
        truncation: &str,
        output: &str,
        show_progress_bar: Option<bool>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let call =
            Call { prompt_name, prompt, batch_size, normalize, truncate_dim, precision, truncation, adapter };
        Self::submit(slf, texts, Role::Document, &call, output, show_progress_bar)
    }

    /// How alike vectors are, by the measure that the model was trained for.
    ///
    /// Args:
    ///     a: One vector ``[dimension]`` or several ``[n, dimension]``.
    ///     b: One vector or several, ``[m, dimension]``.
    ///
    /// Returns:
    ///     A float32 array ``[n, m]``; larger is more alike.
    fn similarity<'py>(
        &self,
        py: Python<'py>,
        a: &Bound<'py, PyAny>,
        b: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let measure = self.get()?.similarity();
        let ((a, dim), (b, other)) = (convert::vectors(a)?, convert::vectors(b)?);
        if dim != other {
            return Err(
                Error::argument("b", format!("vectors of {other}"), format!("vectors of {dim}")).into()
            );
        }
        let columns = b.len().checked_div(dim).unwrap_or(0);
        let values = enter(py, || embed::similarity(measure, &a, &b, dim))?;
        convert::array(py, values, columns, true)
    }

    /// Width of the vectors.
    #[getter]
    fn dimension(&self) -> PyResult<usize> {
        Ok(self.get()?.dimension())
    }

    /// The longest text in tokens.
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

    /// The name of the prompt that ``encode`` uses where none is named.
    #[getter]
    fn default_prompt_name(&self) -> PyResult<Option<String>> {
        Ok(self.get()?.default_prompt_name().map(str::to_owned))
    }

    /// The measure of ``similarity``: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
    #[getter]
    fn similarity_fn_name(&self) -> PyResult<&'static str> {
        Ok(self.get()?.similarity().name())
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

    /// Number of parameters in use.
    #[getter]
    fn num_parameters(&self) -> PyResult<usize> {
        Ok(self.get()?.encoder().num_parameters())
    }

    /// Bytes that the weights take in memory.
    #[getter]
    fn size_in_bytes(&self) -> PyResult<usize> {
        Ok(self.get()?.encoder().size_in_bytes())
    }

    /// What the embedder was loaded from.
    #[getter]
    fn source(&self) -> &str {
        &self.source.name
    }

    /// Gives the memory back once no call uses the embedder any more. Closing twice does nothing.
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
        this.settings.add_to(&keywords)?;
        let open = py.import("candlewick._reopen")?.getattr("embedder")?;
        Ok((open, (&this.source.place, keywords)).into_pyobject(py)?.into_any())
    }

    fn __repr__(&self) -> String {
        match self.get() {
            Ok(embedder) => format!(
                "Embedder({:?}, architecture={:?}, dimension={}, max_length={}, dtype={:?}, device={:?})",
                self.source.name,
                embedder.encoder().model_type(),
                embedder.dimension(),
                embedder.max_length(),
                embedder.encoder().dtype_name(),
                embedder.encoder().device_name()
            ),
            Err(_) => format!("Embedder({:?}, closed)", self.source.name),
        }
    }

    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let embedder = self.get()?;
        let encoder = embedder.encoder();
        let rows = [
            ("source", self.source.name.clone()),
            ("architecture", encoder.model_type().to_owned()),
            ("dimension", embedder.dimension().to_string()),
            ("max length", format!("{} tokens", embedder.max_length())),
            ("similarity", embedder.similarity().name().to_owned()),
            ("parameters", encoder.num_parameters().to_string()),
            ("memory", format!("{:.1} MB", encoder.size_in_bytes() as f64 / 1e6)),
            ("dtype", encoder.dtype_name().to_owned()),
            ("device", encoder.device_name()),
        ];
        py.import("candlewick.notebook")?.call_method1("table", ("Embedder", rows.to_vec()))?.extract()
    }
}
