//! `AdapterRegistry`, `AdapterInfo` and `Adapter`, and what an `adapter=` argument means.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString, PyTuple};

use super::embedder::Embedder;
use super::enter::enter;
use super::model::Model;
use super::whole::named;
use crate::adapter::{self, ActiveGuard, AdapterChoice, AdapterFile, Lease};
use crate::nn::AdapterSet;
use crate::{Error, Result, models};

/// An adapter in memory: its configuration and tensors, without a model.
///
/// A trainer gives one, ``AdapterRegistry.add`` takes one.
#[pyclass(frozen, module = "candlewick")]
pub(super) struct Adapter {
    file: Arc<AdapterFile>,
}

impl Adapter {
    /// Wraps an adapter of the core.
    pub(super) fn new(file: AdapterFile) -> Self {
        Self { file: Arc::new(file) }
    }
}

#[pymethods]
impl Adapter {
    /// Reads an adapter from a directory of PEFT or mlx-lm.
    ///
    /// Args:
    ///     directory: The directory.
    ///
    /// Returns:
    ///     The adapter.
    ///
    /// Raises:
    ///     AdapterError: The files ask for something that cannot be honoured.
    #[staticmethod]
    fn load(py: Python<'_>, directory: PathBuf) -> PyResult<Self> {
        Ok(Self { file: Arc::new(enter(py, || AdapterFile::read(&directory))?) })
    }

    /// Writes the adapter for PEFT or for mlx-lm.
    ///
    /// Args:
    ///     directory: Where to; it is made if it is not there.
    ///     format: ``"peft"`` for ``adapter_config.json`` and ``adapter_model.safetensors``, or ``"mlx"`` for
    ///         ``adapter_config.json`` and ``adapters.safetensors``.
    ///
    /// Raises:
    ///     InvalidArgumentError: The format cannot express the adapter.
    #[pyo3(signature = (directory, *, format = "peft"))]
    fn save(&self, py: Python<'_>, directory: PathBuf, format: &str) -> PyResult<()> {
        match format {
            "peft" => enter(py, || self.file.write(&directory)),
            "mlx" => enter(py, || self.file.write_mlx(&directory)),
            _ => Err(Error::argument("format", format!("{format:?}"), "\"peft\" or \"mlx\"").into()),
        }
    }

    /// Columns of the low-rank factors.
    #[getter]
    fn rank(&self) -> usize {
        self.file.config().rank
    }

    /// Number of values.
    #[getter]
    fn num_parameters(&self) -> usize {
        self.file.num_parameters()
    }

    fn __repr__(&self) -> String {
        format!("Adapter(rank={}, num_parameters={})", self.rank(), self.num_parameters())
    }
}

/// What is known of a registered adapter.
///
/// Attributes:
///     name: The name it is registered under.
///     rank: Columns of its low-rank factors; of a combination their sum.
///     alpha: Its alpha.
///     target_modules: The modules it adapts.
///     num_parameters: Number of its values.
///     size_in_bytes: Bytes it takes beside the model.
///     generation: A hash of its content; adapters of the same generation compute the same.
///     base_model: The model it says it was made for, or None.
#[pyclass(frozen, get_all, eq, module = "candlewick")]
#[derive(PartialEq)]
pub(super) struct AdapterInfo {
    /// The name.
    name: String,
    /// Columns of the factors.
    rank: usize,
    /// The alpha.
    alpha: f64,
    /// The modules it adapts.
    target_modules: Vec<String>,
    /// Number of values.
    num_parameters: usize,
    /// Bytes beside the model.
    size_in_bytes: usize,
    /// A hash of the content.
    generation: String,
    /// The model it was made for.
    base_model: Option<String>,
}

impl From<adapter::AdapterInfo> for AdapterInfo {
    fn from(info: adapter::AdapterInfo) -> Self {
        Self {
            name: info.name,
            rank: info.rank,
            alpha: info.alpha,
            target_modules: info.target_modules,
            num_parameters: info.num_parameters,
            size_in_bytes: info.size_in_bytes,
            generation: format!("{:016x}", info.generation),
            base_model: info.base_model,
        }
    }
}

#[pymethods]
impl AdapterInfo {
    #[new]
    #[allow(clippy::too_many_arguments)] // Unpickling calls it.
    fn new(
        name: String,
        rank: usize,
        alpha: f64,
        target_modules: Vec<String>,
        num_parameters: usize,
        size_in_bytes: usize,
        generation: String,
        base_model: Option<String>,
    ) -> Self {
        Self { name, rank, alpha, target_modules, num_parameters, size_in_bytes, generation, base_model }
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let Self { name, rank, alpha, target_modules, num_parameters, size_in_bytes, generation, base_model } =
            self;
        (name, rank, alpha, target_modules, num_parameters, size_in_bytes, generation, base_model)
            .into_pyobject(py)
    }

    fn __repr__(&self) -> String {
        let Self { name, rank, num_parameters, generation, .. } = self;
        format!(
            "AdapterInfo({name:?}, rank={rank}, num_parameters={num_parameters}, generation={generation:?})"
        )
    }
}

/// What has adapters.
enum Host {
    Model(Py<Model>),
    Embedder(Py<Embedder>),
}

/// The adapters of one model by name, and which of them is active.
///
/// Adapters never change the model: they come with each request, which keeps the version it started with whatever is
/// loaded, replaced or unloaded meanwhile.
///
/// Registries of one model that are alive at the same time see the same adapters. Once the last of them is gone, requests
/// can still name what it held, but nothing is active any more (except for a ``Generator`` made while it was, which keeps
/// that), and the next registry starts empty.
///
/// Args:
///     model: The model, or an embedder.
///     max_adapters: The most adapters to hold.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> model = cw.Model.from_pretrained("candlewick/tiny")
///     >>> registry = cw.AdapterRegistry(model)
///     >>> len(registry), registry.active
///     (0, None)
#[pyclass(frozen, module = "candlewick")]
pub(super) struct AdapterRegistry {
    host: Host,
    max_adapters: usize,
    /// The core's handle would keep a closed model alive; this only keeps its adapters.
    _lease: Arc<Lease>,
}

impl Host {
    fn registry(&self, max_adapters: usize) -> Result<adapter::AdapterRegistry> {
        Ok(match self {
            Self::Model(model) => adapter::AdapterRegistry::new(&model.get().get()?, max_adapters),
            Self::Embedder(embedder) => embedder.get().get()?.adapters(max_adapters),
        })
    }
}

impl AdapterRegistry {
    fn inner(&self) -> Result<adapter::AdapterRegistry> {
        self.host.registry(self.max_adapters)
    }
}

#[pymethods]
impl AdapterRegistry {
    #[new]
    #[pyo3(signature = (model, *, max_adapters: "SupportsIndex" = 16))]
    fn new(
        model: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = named::max_adapters)] max_adapters: i64,
    ) -> PyResult<Self> {
        let max_adapters = match usize::try_from(max_adapters) {
            Ok(most) if most > 0 => most,
            _ => return Err(Error::argument("max_adapters", max_adapters, "at least 1").into()),
        };
        let host = match model.cast::<Embedder>() {
            Ok(embedder) => Host::Embedder(embedder.clone().unbind()),
            Err(_) => Host::Model(model.cast::<Model>()?.clone().unbind()),
        };
        let lease = host.registry(max_adapters)?.lease();
        Ok(Self { host, max_adapters, _lease: lease })
    }

    /// Loads an adapter, replacing what had the name before.
    ///
    /// Args:
    ///     name: The name to register it under.
    ///     path_or_hub_id: A directory of PEFT or of mlx-lm, or a hub id.
    ///
    /// Returns:
    ///     What is known of it.
    ///
    /// Raises:
    ///     AdapterError: It cannot be applied as its files say; nothing has changed.
    ///     ModelNotFoundError: Neither disk nor hub has it.
    fn load(&self, py: Python<'_>, name: &str, path_or_hub_id: PathBuf) -> PyResult<AdapterInfo> {
        let (registry, source) = (self.inner()?, path_or_hub_id.display().to_string());
        Ok(enter(py, || registry.load(name, &source))?.into())
    }

    /// Registers an adapter that is in memory, replacing what had the name before.
    ///
    /// Args:
    ///     name: The name to register it under.
    ///     adapter: The adapter, such as ``trainer.adapter``.
    ///
    /// Returns:
    ///     What is known of it.
    ///
    /// Raises:
    ///     AdapterError: It does not fit the model; nothing has changed.
    fn add(&self, py: Python<'_>, name: &str, adapter: &Adapter) -> PyResult<AdapterInfo> {
        let (registry, file) = (self.inner()?, &adapter.file);
        Ok(enter(py, || registry.add(name, file))?.into())
    }

    /// Registers the exact weighted sum of what other adapters change.
    ///
    /// Args:
    ///     name: The name to register it under.
    ///     weights: The weight of each adapter, by name.
    ///
    /// Returns:
    ///     What is known of it.
    fn combine(
        &self,
        py: Python<'_>,
        name: &str,
        weights: std::collections::BTreeMap<String, f64>,
    ) -> PyResult<AdapterInfo> {
        let (registry, weights) = (self.inner()?, weights.into_iter().collect::<Vec<_>>());
        Ok(enter(py, || registry.combine(name, &weights))?.into())
    }

    /// Makes an adapter the one that requests use which do not name one.
    ///
    /// Args:
    ///     name: The adapter.
    fn activate(&self, name: &str) -> PyResult<()> {
        Ok(self.inner()?.activate(name)?)
    }

    /// Goes back to the bare model.
    fn deactivate(&self) -> PyResult<()> {
        self.inner()?.deactivate();
        Ok(())
    }

    /// The name of the active adapter, or None.
    #[getter]
    fn active(&self) -> PyResult<Option<String>> {
        Ok(self.inner()?.active())
    }

    /// A context in which an adapter is active; the earlier one comes back at its end.
    ///
    /// Args:
    ///     name: The adapter.
    fn using(&self, name: &str) -> PyResult<Using> {
        let registry = self.inner()?;
        registry.info(name)?;
        Ok(Using { registry, name: name.to_owned(), guard: Mutex::new(None) })
    }

    /// Forgets an adapter. Requests under way keep it to their end.
    ///
    /// Args:
    ///     name: The adapter.
    fn unload(&self, name: &str) -> PyResult<()> {
        Ok(self.inner()?.unload(name)?)
    }

    /// The names of all adapters, in the order of their loading.
    fn names(&self) -> PyResult<Vec<String>> {
        Ok(self.inner()?.names())
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.names()?.len())
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(match name.extract::<String>() {
            Ok(name) => self.names()?.contains(&name),
            Err(_) => false,
        })
    }

    fn __getitem__(&self, name: &str) -> PyResult<AdapterInfo> {
        match self.inner()?.info(name) {
            Ok(info) => Ok(info.into()),
            Err(_) => Err(PyKeyError::new_err(name.to_owned())),
        }
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.names()?.into_pyobject(py)?.try_iter()?.into_any())
    }

    fn __repr__(&self) -> PyResult<String> {
        let active = self.active()?.map_or_else(|| "None".to_owned(), |name| format!("{name:?}"));
        Ok(format!("AdapterRegistry({:?}, active={active})", self.names()?))
    }
}

/// Keeps an adapter active inside of a ``with`` block.
#[pyclass(frozen, name = "_Using", module = "candlewick._native")]
pub(super) struct Using {
    registry: adapter::AdapterRegistry,
    name: String,
    guard: Mutex<Option<ActiveGuard>>,
}

#[pymethods]
impl Using {
    fn __enter__(&self) -> PyResult<()> {
        let guard = self.registry.using(&self.name)?;
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
        Ok(())
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, _exc: &Bound<'_, PyTuple>) {
        drop(self.guard.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// What an `adapter=` argument means: a name, None for the active one, False for the bare model.
pub(super) fn choice(given: Option<&Bound<'_, PyAny>>) -> PyResult<AdapterChoice> {
    Ok(match given {
        None => AdapterChoice::Active,
        Some(given) if given.is_none() => AdapterChoice::Active,
        Some(given) if given.cast::<PyBool>().is_ok_and(|flag| !flag.is_true()) => AdapterChoice::Bare,
        Some(given) => match given.cast::<PyString>() {
            Ok(name) => AdapterChoice::Named(name.to_str()?.to_owned()),
            Err(_) => {
                let allowed = "the name of a registered adapter, None or False; AdapterRegistry.add gives an \
                               adapter a name";
                return Err(Error::argument("adapter", given.repr()?.to_string(), allowed).into());
            }
        },
    })
}

/// The adapter that an `adapter=` argument means for a model.
pub(super) fn chosen(
    model: &models::Model,
    given: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<Arc<AdapterSet>>> {
    Ok(adapter::resolve(model, &choice(given)?)?)
}

/// The adapter to go on with: a registered name, a directory, or an adapter in memory.
pub(super) fn to_continue(
    py: Python<'_>,
    model: &models::Model,
    given: &Bound<'_, PyAny>,
) -> PyResult<AdapterFile> {
    if let Ok(adapter) = given.cast::<Adapter>() {
        return Ok(AdapterFile::clone(&adapter.get().file));
    }
    if let Ok(name) = given.extract::<String>()
        && let Some(file) = enter(py, || adapter::Loaded::of(model).file(&name).transpose())?
    {
        return Ok(file);
    }
    read_directory(py, given)
}

/// The adapter in a directory, where it is no name.
fn read_directory(py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<AdapterFile> {
    match given.extract::<PathBuf>() {
        Ok(directory) if directory.is_dir() => enter(py, || AdapterFile::read(&directory)),
        _ => {
            let allowed = "the name of a registered adapter, a directory of PEFT or mlx-lm, or an Adapter such as \
                           trainer.adapter";
            Err(Error::argument("adapter", given.repr()?.to_string(), allowed).into())
        }
    }
}

/// The adapter to merge: a registered name, a directory, or an adapter in memory.
pub(super) fn to_merge(
    py: Python<'_>,
    model: &models::Model,
    given: &Bound<'_, PyAny>,
) -> PyResult<Arc<AdapterSet>> {
    if let Ok(adapter) = given.cast::<Adapter>() {
        let file = &adapter.get().file;
        return enter(py, || adapter::bound(model, file, "merged"));
    }
    if let Ok(name) = given.extract::<String>()
        && let Ok(Some(set)) = adapter::resolve(model, &AdapterChoice::Named(name))
    {
        return Ok(set);
    }
    let file = read_directory(py, given)?;
    enter(py, || adapter::bound(model, &file, "merged"))
}
