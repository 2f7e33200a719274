//! `LoraConfig`: what an adapter to be trained looks like.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::convert;
use super::settings::Names;
use super::whole::{Whole, named};
use crate::adapter::{BiasMode, Initialisation, Modules};
use crate::{Error, Result, adapter};

/// True for PEFT's start, or the name of another one.
#[derive(FromPyObject)]
enum Start {
    Default(bool),
    Named(String),
}

/// One layer's number, or a list of them.
#[derive(FromPyObject)]
enum Layers {
    One(Whole),
    Many(Vec<Whole>),
}

/// What is adapted, and how: LoRA, rsLoRA or DoRA, in the words of PEFT's ``LoraConfig``.
///
/// Args:
///     rank: Columns of the low-rank factors (PEFT's ``r``).
///     alpha: The change is scaled by ``alpha / rank`` (PEFT's ``lora_alpha``).
///     dropout: Probability that an input of the adapter is zeroed while training, at least 0 and below 1.
///     target_modules: Names of modules (whole paths or their ends), a regular expression that whole paths match, or
///         ``"all-linear"`` for every linear layer but the head.
///     exclude_modules: Names or a regular expression of modules that are left alone all the same.
///     use_rslora: Scale by ``alpha / sqrt(rank)`` instead (Kalajdzievski 2023).
///     use_dora: Learn the length of each output's weights separately (Liu et al. 2024).
///     rank_pattern: Other ranks, by regular expressions for the ends of paths.
///     alpha_pattern: Other alphas, likewise.
///     layers_to_transform: The number of the only layer to adapt, or a list of them.
///     layers_pattern: The name before a layer's number in module paths, or a list of such names.
///     modules_to_save: Names of modules that are trained and saved whole, such as ``"lm_head"``.
///     bias: Which biases of the model are trained too: ``"none"``, ``"lora_only"`` or ``"all"``.
///     lora_bias: Whether the second factor has a bias of its own.
///     init_lora_weights: True for PEFT's start (uniform and zero), or ``"gaussian"``.
///
/// Raises:
///     InvalidArgumentError: A value is out of range.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> cw.LoraConfig(rank=16, alpha=32, target_modules="all-linear")
///     LoraConfig(rank=16, alpha=32.0, target_modules='all-linear')
#[pyclass(frozen, eq, module = "candlewick")]
#[derive(PartialEq)]
pub(super) struct LoraConfig {
    pub(super) inner: adapter::LoraConfig,
}

/// A configuration of ours, or one of PEFT's.
pub(super) struct Lora(pub(super) adapter::LoraConfig);

impl<'a, 'py> FromPyObject<'a, 'py> for Lora {
    type Error = PyErr;
    #[cfg(feature = "stubs")]
    const INPUT_TYPE: pyo3::inspect::PyStaticExpr = <Py<LoraConfig> as FromPyObject<'a, 'py>>::INPUT_TYPE;

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(config) = given.cast::<LoraConfig>() {
            return Ok(Self(config.get().inner.clone()));
        }
        if given.hasattr("peft_type")? && given.hasattr("to_dict")? {
            return Ok(Self(LoraConfig::from_peft(&given)?.inner));
        }
        let kind = given.get_type().name()?;
        Err(PyTypeError::new_err(format!("lora: got {kind}, expected a LoraConfig of candlewick or of PEFT")))
    }
}

/// A word without anything that has a meaning in regular expressions is a name.
fn modules(given: Names) -> Modules {
    match given {
        Names::One(word) if word.eq_ignore_ascii_case("all-linear") => Modules::AllLinear,
        Names::One(word) if word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
            Modules::Names(vec![word])
        }
        Names::One(pattern) => Modules::Pattern(pattern),
        Names::Many(names) => Modules::Names(names),
    }
}

fn names(modules: &Modules) -> Names {
    match modules {
        Modules::Names(names) => Names::Many(names.clone()),
        Modules::Pattern(pattern) => Names::One(pattern.clone()),
        Modules::AllLinear => Names::One("all-linear".into()),
    }
}

/// The modules that are adapted where nothing is said.
fn usual_targets() -> Names {
    names(&adapter::LoraConfig::default().target_modules)
}

fn list(given: Option<Names>) -> Vec<String> {
    match given {
        None => Vec::new(),
        Some(Names::One(name)) => vec![name],
        Some(Names::Many(names)) => names,
    }
}

/// The entries of a dictionary from regular expressions to numbers, in their order.
fn patterns<T>(
    name: &str,
    given: Option<&Bound<'_, PyDict>>,
    read: impl Fn(&Bound<'_, PyAny>) -> PyResult<T>,
) -> PyResult<Vec<(String, T)>> {
    let Some(given) = given else { return Ok(Vec::new()) };
    let entry = |(key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        let Ok(key) = key.extract::<String>() else {
            return Err(PyTypeError::new_err(format!("{name}: a key is {}, expected a str", key.repr()?)));
        };
        Ok((key, read(&value)?))
    };
    given.iter().map(entry).collect()
}

fn rank_of(name: &str, value: i64) -> Result<usize> {
    match usize::try_from(value) {
        Ok(rank) if rank > 0 => Ok(rank),
        _ => Err(Error::argument(name, value, "at least 1")),
    }
}

fn layer_numbers(given: Option<Layers>) -> Result<Option<Vec<usize>>> {
    let numbers = match given {
        None => return Ok(None),
        Some(Layers::One(number)) => vec![number],
        Some(Layers::Many(numbers)) => numbers,
    };
    numbers.iter().map(|number| number.count("layers_to_transform")).collect::<Result<_>>().map(Some)
}

fn bias_mode(name: &str) -> Result<BiasMode> {
    match name {
        "none" => Ok(BiasMode::None),
        "lora_only" => Ok(BiasMode::LoraOnly),
        "all" => Ok(BiasMode::All),
        _ => Err(Error::argument("bias", format!("{name:?}"), "\"none\", \"lora_only\" or \"all\"")),
    }
}

fn start(given: &Start) -> Result<Initialisation> {
    match given {
        Start::Default(true) => Ok(Initialisation::Uniform),
        Start::Named(name) if name == "gaussian" => Ok(Initialisation::Gaussian),
        Start::Default(false) => Err(Error::argument("init_lora_weights", "False", "True or \"gaussian\"")),
        Start::Named(name) => {
            Err(Error::argument("init_lora_weights", format!("{name:?}"), "True or \"gaussian\""))
        }
    }
}

#[pymethods]
impl LoraConfig {
    #[new]
    #[pyo3(signature = (rank: "SupportsIndex" = 8, *, alpha = 16.0, dropout = 0.0, target_modules = usual_targets(),
                        exclude_modules = None, use_rslora = false, use_dora = false, rank_pattern = None,
                        alpha_pattern = None, layers_to_transform = None, layers_pattern = None, modules_to_save = None,
                        bias = "none", lora_bias = false, init_lora_weights = Start::Default(true)),
           text_signature = "(rank=8, *, alpha=16.0, dropout=0.0, target_modules=['q_proj', 'v_proj'], \
                             exclude_modules=None, use_rslora=False, use_dora=False, rank_pattern=None, \
                             alpha_pattern=None, layers_to_transform=None, layers_pattern=None, modules_to_save=None, \
                             bias='none', lora_bias=False, init_lora_weights=True)")]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn new(
        #[pyo3(from_py_with = named::rank)] rank: i64,
        alpha: f64,
        dropout: f64,
        target_modules: Option<Names>,
        exclude_modules: Option<Names>,
        use_rslora: bool,
        use_dora: bool,
        rank_pattern: Option<&Bound<'_, PyDict>>,
        alpha_pattern: Option<&Bound<'_, PyDict>>,
        layers_to_transform: Option<Layers>,
        layers_pattern: Option<Names>,
        modules_to_save: Option<Names>,
        bias: &str,
        lora_bias: bool,
        init_lora_weights: Start,
    ) -> PyResult<Self> {
        let usual = adapter::LoraConfig::default();
        let inner = adapter::LoraConfig {
            rank: rank_of("rank", rank)?,
            alpha,
            dropout,
            target_modules: target_modules.map_or(usual.target_modules, modules),
            exclude_modules: exclude_modules.map(modules),
            use_rslora,
            use_dora,
            rank_pattern: patterns("rank_pattern", rank_pattern, |value| {
                Ok(rank_of("rank_pattern", value.extract::<Whole>()?.number("rank_pattern")?)?)
            })?,
            alpha_pattern: patterns("alpha_pattern", alpha_pattern, |value| value.extract())?,
            layers_to_transform: layer_numbers(layers_to_transform)?,
            layers_pattern: list(layers_pattern),
            modules_to_save: list(modules_to_save),
            bias: bias_mode(bias)?,
            lora_bias,
            initialisation: start(&init_lora_weights)?,
        };
        inner.validate()?;
        Ok(Self { inner })
    }

    /// Reads a configuration of PEFT.
    ///
    /// Args:
    ///     config: A ``peft.LoraConfig``, or the dictionary of an ``adapter_config.json``.
    ///
    /// Returns:
    ///     The same in candlewick's words.
    ///
    /// Raises:
    ///     AdapterError: It asks for something that cannot be honoured.
    #[staticmethod]
    fn from_peft(config: &Bound<'_, PyAny>) -> PyResult<Self> {
        let fields = match config.cast::<PyDict>() {
            Ok(fields) => fields.clone().into_any(),
            Err(_) => config.call_method0("to_dict")?,
        };
        let value = super::rows::value(&fields).map_err(PyTypeError::new_err)?;
        Ok(Self { inner: adapter::LoraConfig::from_peft("the configuration".as_ref(), &value)? })
    }

    /// The dictionary that PEFT keeps as ``adapter_config.json``.
    fn to_peft<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::to_python(py, &self.inner.to_peft(None))
    }

    /// Columns of the low-rank factors.
    #[getter]
    fn rank(&self) -> usize {
        self.inner.rank
    }

    /// The change is scaled by ``alpha / rank``.
    #[getter]
    fn alpha(&self) -> f64 {
        self.inner.alpha
    }

    /// Probability that an input of the adapter is zeroed while training.
    #[getter]
    fn dropout(&self) -> f64 {
        self.inner.dropout
    }

    /// What is adapted.
    #[getter]
    fn target_modules(&self) -> Names {
        names(&self.inner.target_modules)
    }

    /// What is left alone all the same.
    #[getter]
    fn exclude_modules(&self) -> Option<Names> {
        self.inner.exclude_modules.as_ref().map(names)
    }

    /// Whether the scale is ``alpha / sqrt(rank)``.
    #[getter]
    fn use_rslora(&self) -> bool {
        self.inner.use_rslora
    }

    /// Whether the length of each output's weights is learnt separately.
    #[getter]
    fn use_dora(&self) -> bool {
        self.inner.use_dora
    }

    /// Other ranks, by regular expressions for the ends of paths.
    #[getter]
    fn rank_pattern<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        self.inner.rank_pattern.iter().try_for_each(|(key, value)| found.set_item(key, value))?;
        Ok(found)
    }

    /// Other alphas, likewise.
    #[getter]
    fn alpha_pattern<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        self.inner.alpha_pattern.iter().try_for_each(|(key, value)| found.set_item(key, value))?;
        Ok(found)
    }

    /// The numbers of the only layers to adapt, or None for all.
    #[getter]
    fn layers_to_transform(&self) -> Option<Vec<usize>> {
        self.inner.layers_to_transform.clone()
    }

    /// The names before a layer's number in module paths.
    #[getter]
    fn layers_pattern(&self) -> Vec<String> {
        self.inner.layers_pattern.clone()
    }

    /// Modules that are trained and saved whole.
    #[getter]
    fn modules_to_save(&self) -> Vec<String> {
        self.inner.modules_to_save.clone()
    }

    /// Which biases of the model are trained too.
    #[getter]
    fn bias(&self) -> &'static str {
        match self.inner.bias {
            BiasMode::None => "none",
            BiasMode::LoraOnly => "lora_only",
            BiasMode::All => "all",
        }
    }

    /// Whether the second factor has a bias of its own.
    #[getter]
    fn lora_bias(&self) -> bool {
        self.inner.lora_bias
    }

    /// How the factors start: True, or ``"gaussian"``.
    #[getter]
    fn init_lora_weights<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self.inner.initialisation {
            Initialisation::Uniform => pyo3::types::PyBool::new(py, true).to_owned().into_any(),
            Initialisation::Gaussian => PyString::new(py, "gaussian").into_any(),
        })
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        (PyTuple::empty(py), self.changed(py, true)?).into_pyobject(py)
    }

    pub(super) fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let fields = self.changed(py, false)?;
        let shown = fields.iter().map(|(key, value)| Ok(format!("{key}={}", value.repr()?)));
        Ok(format!("LoraConfig({})", shown.collect::<PyResult<Vec<_>>>()?.join(", ")))
    }
}

impl LoraConfig {
    /// All arguments, or those that say what is not usual.
    fn changed<'py>(&self, py: Python<'py>, all: bool) -> PyResult<Bound<'py, PyDict>> {
        let (this, usual) = (&self.inner, adapter::LoraConfig::default());
        let fields = PyDict::new(py);
        fields.set_item("rank", this.rank)?;
        fields.set_item("alpha", this.alpha)?;
        if all || this.dropout != usual.dropout {
            fields.set_item("dropout", this.dropout)?;
        }
        fields.set_item("target_modules", self.target_modules())?;
        if this.exclude_modules.is_some() {
            fields.set_item("exclude_modules", self.exclude_modules())?;
        }
        for (name, flag) in
            [("use_rslora", this.use_rslora), ("use_dora", this.use_dora), ("lora_bias", this.lora_bias)]
        {
            if all || flag {
                fields.set_item(name, flag)?;
            }
        }
        if all || !this.rank_pattern.is_empty() {
            fields.set_item("rank_pattern", self.rank_pattern(py)?)?;
        }
        if all || !this.alpha_pattern.is_empty() {
            fields.set_item("alpha_pattern", self.alpha_pattern(py)?)?;
        }
        if this.layers_to_transform.is_some() {
            fields.set_item("layers_to_transform", self.layers_to_transform())?;
        }
        for (name, list) in
            [("layers_pattern", &this.layers_pattern), ("modules_to_save", &this.modules_to_save)]
        {
            if all || !list.is_empty() {
                fields.set_item(name, list)?;
            }
        }
        if all || this.bias != usual.bias {
            fields.set_item("bias", self.bias())?;
        }
        if all || this.initialisation != usual.initialisation {
            fields.set_item("init_lora_weights", self.init_lora_weights(py)?)?;
        }
        Ok(fields)
    }
}
