//! `Model`: loading a checkpoint, and what it says about itself.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::convert;
use super::enter::enter_long;
use super::registry::{chosen, to_merge};
use super::source;
use super::tokenizer::Tokenizer;
use super::whole::{Whole, unsigned};
use crate::checkpoint::HubOptions;
use crate::models::{self, LoadOptions};
use crate::{Error, Result};

/// A language model with its tokenizer and configuration.
///
/// Models are immutable: any number of threads, tasks and generators may share one.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> model = cw.Model.from_pretrained("candlewick/tiny")
///     >>> model.architecture
///     'qwen2'
///     >>> model.logits([1, 2, 3]).shape == (3, model.vocab_size)
///     True
#[pyclass(frozen, module = "candlewick", weakref)]
pub(super) struct Model {
    inner: Mutex<Option<models::Model>>,
    opened: Opened,
}

/// How the model was opened, for `repr` and for opening it again in another process.
#[derive(Clone)]
struct Opened {
    source: String,
    device: String,
    dtype: String,
    quantize: Option<String>,
    importance: Option<PathBuf>,
    revision: Option<String>,
    cache_dir: Option<PathBuf>,
    local_files_only: bool,
    memory_limit_bytes: Option<u64>,
    /// What has become of it that opening the source again would not give.
    changed: Option<&'static str>,
    /// The source, whatever the working directory is when it is opened again.
    place: String,
}

impl Model {
    /// The core's handle.
    pub(super) fn get(&self) -> Result<models::Model> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clone().ok_or_else(|| {
            Error::argument("model", "a closed model", "one that was not closed; load it again")
        })
    }

    /// One line that says which model this is.
    pub(super) fn describe(&self) -> String {
        match self.get() {
            Ok(model) => format!(
                "Model({:?}, architecture={:?}, parameters={}, dtype={:?}, device={:?})",
                self.opened.source,
                model.model_type(),
                model.num_parameters(),
                model.dtype_name(),
                model.device_name()
            ),
            Err(_) => format!("Model({:?}, closed)", self.opened.source),
        }
    }

    fn outputs<'py>(
        &self,
        py: Python<'py>,
        input_ids: &Bound<'py, PyAny>,
        adapter: Option<&Bound<'py, PyAny>>,
        head: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (sequences, many) = convert::id_lists(input_ids)?;
        let model = self.get()?;
        let adapter = chosen(&model, adapter)?;
        let cancelled =
            |flag: &std::sync::atomic::AtomicBool| flag.load(std::sync::atomic::Ordering::Relaxed);
        let outputs = enter_long(
            py,
            |flag| model.outputs(&sequences, adapter.as_ref(), head, &|| cancelled(flag)),
            |_| Ok(()),
        )?;
        if many {
            let arrays =
                outputs.iter().map(|tensor| convert::matrix(py, tensor)).collect::<PyResult<Vec<_>>>()?;
            return Ok(PyList::new(py, arrays)?.into_any());
        }
        match outputs.first() {
            Some(tensor) => Ok(convert::matrix(py, tensor)?.into_any()),
            None => Err(Error::argument("input_ids", "nothing", "at least one token").into()),
        }
    }
}

#[pymethods]
impl Model {
    /// Loads a model.
    ///
    /// Args:
    ///     source: A directory in Hugging Face layout, a hub id such as ``"Qwen/Qwen2.5-0.5B-Instruct"``, a ``.gguf``
    ///         file, ``"org/name:file.gguf"``, or ``"candlewick/tiny"``, which is bundled and works offline.
    ///     device: ``"auto"``, ``"cpu"``, ``"metal"``, ``"cuda"`` or ``"cuda:N"``.
    ///     dtype: ``"auto"`` (the checkpoint's; quantised weights stay quantised), ``"float32"``, ``"bfloat16"`` or
    ///         ``"float16"``.
    ///     quantize: None, or the name of a weight format to convert to while loading, such as ``"q8_0"``, ``"q4_0"`` or
    ///         ``"q4_k_m"``.
    ///     importance: An importance matrix made by llama.cpp's ``llama-imatrix`` (either file format), to quantise by.
    ///     revision: Branch, tag or commit on the hub.
    ///     cache_dir: Where downloads are kept, instead of the hub's standard cache.
    ///     token: Access token for the hub, instead of ``HF_TOKEN`` or the stored one.
    ///     local_files_only: Never touch the network.
    ///     memory_limit_bytes: Refuse work that would need more than this for weights and caches.
    ///     show_progress_bar: Whether to show downloads; None means if the logger shows INFO.
    ///
    /// Returns:
    ///     The model.
    ///
    /// Raises:
    ///     ModelNotFoundError: Neither disk nor hub has it.
    ///     UnsupportedModelError: Its architecture is not among those that candlewick has.
    ///     ConfigError: A configuration field cannot be honoured.
    ///     CheckpointError: Tensors are missing, malformed or of the wrong shape.
    ///     DeviceError: The device is not there.
    ///     OutOfMemoryError: The weights alone exceed ``memory_limit_bytes``.
    #[staticmethod]
    #[pyo3(signature = (source, *, device = "auto", dtype = "auto", quantize = None, importance = None, revision = None,
                        cache_dir = None, token = None, local_files_only = false, memory_limit_bytes = None, show_progress_bar = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn from_pretrained(
        py: Python<'_>,
        source: PathBuf,
        device: &str,
        dtype: &str,
        quantize: Option<String>,
        importance: Option<PathBuf>,
        revision: Option<String>,
        cache_dir: Option<PathBuf>,
        token: Option<String>,
        local_files_only: bool,
        memory_limit_bytes: Option<Whole>,
        show_progress_bar: Option<bool>,
    ) -> PyResult<Self> {
        let memory_limit_bytes = unsigned("memory_limit_bytes", memory_limit_bytes.as_ref())?;
        let opened = Opened {
            place: source::place(&source),
            source: source.display().to_string(),
            device: device.to_owned(),
            dtype: dtype.to_owned(),
            quantize,
            importance,
            revision: revision.clone(),
            cache_dir: cache_dir.as_deref().map(source::whole),
            local_files_only,
            memory_limit_bytes,
            changed: None,
        };
        let options = LoadOptions {
            device: opened.device.clone(),
            dtype: opened.dtype.clone(),
            quantize: opened.quantize.clone(),
            importance: opened.importance.clone(),
            memory_limit_bytes,
            bundled: Some(source::bundled_directory(py)?),
            hub: HubOptions { revision, cache_dir, token, local_files_only, ..HubOptions::default() },
        };
        let loaded = source::load(py, options, show_progress_bar, |options| {
            models::Model::load(&opened.source, &options)
        })?;
        Ok(Self { inner: Mutex::new(Some(loaded)), opened })
    }

    /// ``config.json`` as read.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        Ok(convert::to_python(py, self.get()?.config())?.cast_into()?)
    }

    /// ``generation_config.json`` as read, or an empty dict.
    #[getter]
    fn generation_defaults<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        Ok(convert::to_python(py, self.get()?.generation_config())?.cast_into()?)
    }

    /// The ``model_type`` of the configuration.
    #[getter]
    fn architecture(&self) -> PyResult<String> {
        Ok(self.get()?.model_type().to_owned())
    }

    /// The device of the weights, such as ``"cpu"``.
    #[getter]
    fn device(&self) -> PyResult<String> {
        Ok(self.get()?.device_name())
    }

    /// What most weights are stored as: a dtype such as ``"bfloat16"``, or a format such as ``"q4_0"``.
    #[getter]
    fn dtype(&self) -> PyResult<&'static str> {
        Ok(self.get()?.dtype_name())
    }

    /// Number of parameters; tied ones count once.
    #[getter]
    fn num_parameters(&self) -> PyResult<usize> {
        Ok(self.get()?.num_parameters())
    }

    /// Bytes that the weights take in memory.
    #[getter]
    fn size_in_bytes(&self) -> PyResult<usize> {
        Ok(self.get()?.size_in_bytes())
    }

    /// The longest sequence in tokens.
    #[getter]
    fn context_length(&self) -> PyResult<usize> {
        Ok(self.get()?.context_length())
    }

    /// Number of different tokens the model can give.
    #[getter]
    fn vocab_size(&self) -> PyResult<usize> {
        Ok(self.get()?.vocab_size())
    }

    /// What the model was loaded from.
    #[getter]
    fn source(&self) -> &str {
        &self.opened.source
    }

    /// The tokenizer.
    ///
    /// Raises:
    ///     ModelNotFoundError: The checkpoint came without one.
    #[getter]
    fn tokenizer(&self) -> PyResult<Tokenizer> {
        Ok(Tokenizer::new(self.get()?.tokenizer()?.clone()))
    }

    /// Logits of every position.
    ///
    /// Args:
    ///     input_ids: One list of token ids, or a list of such lists of any lengths.
    ///     adapter: Name of a registered adapter; None is the active one, False the bare model.
    ///
    /// Returns:
    ///     A float32 array ``[seq, vocab]``, or a list of such arrays.
    ///
    /// Raises:
    ///     InvalidArgumentError: A list is empty, or an id is not in the vocabulary.
    ///     ContextLengthError: A list is longer than ``context_length``.
    #[pyo3(signature = (input_ids, *, adapter = None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        input_ids: &Bound<'py, PyAny>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.outputs(py, input_ids, adapter, true)
    }

    /// Hidden states of every position after the last norm.
    ///
    /// Args:
    ///     input_ids: One list of token ids, or a list of such lists of any lengths.
    ///     adapter: Name of a registered adapter; None is the active one, False the bare model.
    ///
    /// Returns:
    ///     A float32 array ``[seq, hidden]``, or a list of such arrays.
    ///
    /// Raises:
    ///     InvalidArgumentError: A list is empty, or an id is not in the vocabulary.
    ///     ContextLengthError: A list is longer than ``context_length``.
    #[pyo3(signature = (input_ids, *, adapter = None))]
    fn hidden_states<'py>(
        &self,
        py: Python<'py>,
        input_ids: &Bound<'py, PyAny>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.outputs(py, input_ids, adapter, false)
    }

    /// A model whose weights compute what this one computes with an adapter.
    ///
    /// Args:
    ///     adapter: The name of a registered adapter, a directory of PEFT or mlx-lm, or an ``Adapter``.
    ///
    /// Returns:
    ///     A new model; weights that the adapter does not touch are shared.
    ///
    /// Raises:
    ///     AdapterError: The adapter cannot be applied as its files say.
    fn merge(&self, py: Python<'_>, adapter: &Bound<'_, PyAny>) -> PyResult<Self> {
        let model = self.get()?;
        let set = to_merge(py, &model, adapter)?;
        let merged = enter_long(py, |_| model.merged(&set), |_| Ok(()))?;
        let opened = Opened { changed: Some("merged"), ..self.opened.clone() };
        Ok(Self { inner: Mutex::new(Some(merged)), opened })
    }

    /// The same model with its weights in a quantised format.
    ///
    /// As llama.cpp does, the head keeps at least six bits, and matrices whose rows are no multiple of 256 take a format
    /// of shorter blocks instead of a K format.
    ///
    /// Args:
    ///     format: ``"q8_0"``, ``"q4_0"``, ``"q4_k"``, ``"q6_k"``, … or a mixture such as ``"q4_k_m"``.
    ///     importance: An importance matrix made by llama.cpp's ``llama-imatrix`` (either file format): values that meet
    ///         large activations are then kept better.
    ///
    /// Returns:
    ///     A new model; this one stays as it is.
    ///
    /// Raises:
    ///     InvalidArgumentError: There is no such format; the message lists all. Or the importance matrix is of a model with
    ///         other widths.
    ///     CheckpointError: Weights are not finite, or the importance matrix cannot be read.
    ///
    /// Examples:
    ///     >>> import candlewick as cw
    ///     >>> model = cw.Model.from_pretrained("candlewick/tiny")
    ///     >>> model.quantize("q8_0").dtype
    ///     'q8_0'
    #[pyo3(signature = (format, *, importance = None))]
    fn quantize(&self, py: Python<'_>, format: &str, importance: Option<PathBuf>) -> PyResult<Self> {
        let model = self.get()?;
        let quantized = enter_long(py, |_| model.quantize_by(format, importance.as_deref()), |_| Ok(()))?;
        let twice = self.opened.quantize.is_some().then_some("twice quantised");
        let opened = Opened {
            quantize: Some(format.to_owned()),
            importance,
            changed: self.opened.changed.or(twice),
            ..self.opened.clone()
        };
        Ok(Self { inner: Mutex::new(Some(quantized)), opened })
    }

    /// Writes the model as a directory in Hugging Face layout, which `from_pretrained` and transformers read.
    ///
    /// Quantised weights are written as the plain values they stand for.
    ///
    /// Args:
    ///     directory: Created where it is missing.
    ///
    /// Examples:
    ///     >>> import tempfile
    ///     >>> import candlewick as cw
    ///     >>> model = cw.Model.from_pretrained("candlewick/tiny")
    ///     >>> with tempfile.TemporaryDirectory() as directory:
    ///     ...     model.save_pretrained(directory)
    ///     ...     cw.Model.from_pretrained(directory).num_parameters == model.num_parameters
    ///     True
    fn save_pretrained(&self, py: Python<'_>, directory: PathBuf) -> PyResult<()> {
        let model = self.get()?;
        enter_long(py, |_| model.save_pretrained(&directory), |_| Ok(()))
    }

    /// Writes the model and its tokenizer to one GGUF file, which candlewick and llama.cpp read.
    ///
    /// Weights keep the format they are held in.
    ///
    /// Args:
    ///     path: The file; an old one is replaced once the new one is complete.
    ///
    /// Raises:
    ///     InvalidArgumentError: The model or its tokenizer has something that GGUF cannot express.
    ///
    /// Examples:
    ///     >>> import pathlib, tempfile
    ///     >>> import candlewick as cw
    ///     >>> model = cw.Model.from_pretrained("candlewick/tiny", quantize="q4_0")
    ///     >>> with tempfile.TemporaryDirectory() as directory:
    ///     ...     path = pathlib.Path(directory) / "tiny.gguf"
    ///     ...     model.save_gguf(path)
    ///     ...     cw.Model.from_pretrained(path).dtype
    ///     'q4_0'
    fn save_gguf(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let model = self.get()?;
        enter_long(py, |_| model.save_gguf(&path), |_| Ok(()))
    }

    /// Gives the memory back once no generation uses the model any more. Closing twice does nothing.
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
        let (py, opened) = (slf.py(), &slf.get().opened);
        if let Some(what) = opened.changed {
            return Err(PyTypeError::new_err(format!(
                "cannot pickle a {what} model, as its source would give another one; use save_pretrained, and \
                 Model.from_pretrained in the other process"
            )));
        }
        let keywords = PyDict::new(py);
        keywords.set_item("device", &opened.device)?;
        keywords.set_item("dtype", &opened.dtype)?;
        keywords.set_item("quantize", &opened.quantize)?;
        keywords.set_item("importance", &opened.importance)?;
        keywords.set_item("revision", &opened.revision)?;
        keywords.set_item("cache_dir", &opened.cache_dir)?;
        keywords.set_item("local_files_only", opened.local_files_only)?;
        keywords.set_item("memory_limit_bytes", opened.memory_limit_bytes)?;
        let open = py.import("candlewick._reopen")?.getattr("model")?;
        Ok((open, (&opened.place, keywords)).into_pyobject(py)?.into_any())
    }

    fn __repr__(&self) -> String {
        self.describe()
    }

    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let model = self.get()?;
        let rows = [
            ("source", self.opened.source.clone()),
            ("architecture", model.model_type().to_owned()),
            ("parameters", model.num_parameters().to_string()),
            ("memory", format!("{:.1} MB", model.size_in_bytes() as f64 / 1e6)),
            ("dtype", model.dtype_name().to_owned()),
            ("device", model.device_name()),
            ("context", format!("{} tokens", model.context_length())),
        ];
        py.import("candlewick.notebook")?.call_method1("table", ("Model", rows.to_vec()))?.extract()
    }
}
