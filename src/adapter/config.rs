//! What an adapter changes and how: the fields of PEFT's `LoraConfig` that candlewick honours.
//!
//! Options that would change the computed function in a way candlewick does not compute are refused, never skipped;
//! options that only matter while PEFT trains are read over. Source: `adapter_config.json` as PEFT 0.21 writes it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::code;
use crate::{Error, Result};

/// Which modules of a model are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Modules {
    /// Names: the whole path of a module, or its end.
    Names(Vec<String>),
    /// A regular expression that the whole path matches.
    Pattern(String),
    /// Every linear layer except the head.
    AllLinear,
}

impl std::fmt::Display for Modules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Names(names) => write!(f, "{names:?}"),
            Self::Pattern(pattern) => write!(f, "{pattern:?}"),
            Self::AllLinear => f.write_str("\"all-linear\""),
        }
    }
}

/// Which biases of the base model an adapter carries its own values for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BiasMode {
    /// None.
    #[default]
    None,
    /// Those of the adapted layers.
    LoraOnly,
    /// Those of all layers.
    All,
}

/// How the factors of a fresh adapter start; in both cases it computes nothing at first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Initialisation {
    /// A uniform within ±1/√in, B zero: PEFT's default.
    #[default]
    Uniform,
    /// A normal with standard deviation 1/rank, B zero.
    Gaussian,
}

/// A low-rank adapter (Hu et al. 2021), perhaps with DoRA's magnitudes (Liu et al. 2024).
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Columns of the factors.
    pub rank: usize,
    /// The change is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Probability that an input of the adapter is zeroed while training.
    pub dropout: f64,
    /// What is adapted.
    pub target_modules: Modules,
    /// What is not, although `target_modules` names it.
    pub exclude_modules: Option<Modules>,
    /// Scales by `alpha / √rank` instead (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Learns the length of each output's weights separately.
    pub use_dora: bool,
    /// Other ranks for modules whose path ends in a match of a regular expression; the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Only these layers.
    pub layers_to_transform: Option<Vec<usize>>,
    /// The names before a layer's number in module paths; any where empty.
    pub layers_pattern: Vec<String>,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Vec<String>,
    /// Which biases of the base are replaced.
    pub bias: BiasMode,
    /// Whether the second factor has a bias of its own.
    pub lora_bias: bool,
    /// How fresh factors start.
    pub initialisation: Initialisation,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: Modules::Names(vec!["q_proj".into(), "v_proj".into()]),
            exclude_modules: None,
            use_rslora: false,
            use_dora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            bias: BiasMode::None,
            lora_bias: false,
            initialisation: Initialisation::Uniform,
        }
    }
}

/// What ranks are below.
const MAX_RANK: usize = 1 << 31;

/// Initialisations after which the base model is no longer the published one.
const BASE_CHANGING: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Initialisations that only choose where training starts.
const HARMLESS: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// Options that would change the computed function.
const UNSUPPORTED: &[&str] = &[
    "fan_in_fan_out",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
    "use_qalora",
    "use_bdlora",
    "ensure_weight_tying",
];

/// Options without influence on a finished adapter.
const IRRELEVANT: &[&str] = &[
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "base_model_class",
    "parent_library",
    "revision",
    "inference_mode",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    // Read by `from_peft`.
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
    "lora_bias",
    "init_lora_weights",
];

impl LoraConfig {
    /// Reads the object of an `adapter_config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`] with `invalid_config`, `unsupported_kind`, `unsupported_option` or `base_changed`.
    pub fn from_peft(path: &Path, value: &Value) -> Result<Self> {
        let Some(map) = value.as_object() else {
            return Err(Error::adapter(path, code::INVALID_CONFIG, "the configuration is not a JSON object"));
        };
        let reader = Reader { path, map };
        match reader.text("peft_type")? {
            Some("LORA") => {}
            Some(other) => {
                let problem = format!("peft_type is {other:?}; only \"LORA\" is supported");
                return Err(Error::adapter(path, code::UNSUPPORTED_KIND, problem));
            }
            None => return Err(reader.invalid("peft_type", "is missing, expected \"LORA\"")),
        }
        reader.refuse_unsupported()?;
        let config = Self {
            rank: reader.count("r")?.unwrap_or(8),
            alpha: reader.number("lora_alpha")?.unwrap_or(8.0),
            dropout: reader.number("lora_dropout")?.unwrap_or(0.0),
            target_modules: reader
                .modules("target_modules")?
                .ok_or_else(|| reader.invalid("target_modules", "is missing"))?,
            exclude_modules: reader.modules("exclude_modules")?,
            use_rslora: reader.flag("use_rslora")?,
            use_dora: reader.flag("use_dora")?,
            rank_pattern: reader.patterns("rank_pattern", "a rank", as_count)?,
            alpha_pattern: reader.patterns("alpha_pattern", "a number", Value::as_f64)?,
            layers_to_transform: reader.layers()?,
            layers_pattern: reader.names("layers_pattern")?,
            modules_to_save: reader.names("modules_to_save")?,
            bias: match reader.text("bias")?.unwrap_or("none") {
                "none" => BiasMode::None,
                "lora_only" => BiasMode::LoraOnly,
                "all" => BiasMode::All,
                other => return Err(reader.invalid("bias", format!("got {other:?}"))),
            },
            lora_bias: reader.flag("lora_bias")?,
            initialisation: reader.initialisation()?,
        };
        let check = config.check();
        check.map_err(|(field, got, expected)| {
            reader.invalid(field, format!("got {got}, expected {expected}"))
        })?;
        Ok(config)
    }

    /// The first field that holds an impossible value: its name, the value, what is expected.
    pub(super) fn check(&self) -> std::result::Result<(), (&'static str, String, &'static str)> {
        if self.rank == 0 || self.rank_pattern.iter().any(|(_, rank)| *rank == 0) {
            return Err(("r", "0".into(), "a rank of at least 1"));
        }
        let too_large = |rank: &usize| *rank >= MAX_RANK;
        let mut ranks = std::iter::once(&self.rank).chain(self.rank_pattern.iter().map(|(_, rank)| rank));
        if let Some(rank) = ranks.find(|rank| too_large(rank)) {
            return Err(("r", rank.to_string(), "a rank below 2147483648"));
        }
        if !self.alpha.is_finite() || self.alpha_pattern.iter().any(|(_, alpha)| !alpha.is_finite()) {
            return Err(("lora_alpha", self.alpha.to_string(), "a finite number"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(("lora_dropout", self.dropout.to_string(), "at least 0 and below 1"));
        }
        if matches!(&self.target_modules, Modules::Names(names) if names.is_empty()) {
            return Err(("target_modules", "nothing".into(), "the names of modules, or \"all-linear\""));
        }
        if self.use_dora && self.lora_bias {
            return Err(("lora_bias", "true".into(), "false with use_dora"));
        }
        if self.lora_bias && self.initialisation != Initialisation::Uniform {
            return Err(("lora_bias", "true".into(), "false with another init_lora_weights than true"));
        }
        let is_pattern = matches!(self.target_modules, Modules::Pattern(_));
        if let (true, Some(layers)) = (is_pattern, &self.layers_to_transform) {
            let expected = "none where target_modules is a regular expression, which can say it itself";
            return Err(("layers_to_transform", format!("{layers:?}"), expected));
        }
        if !self.layers_pattern.is_empty() && self.layers_to_transform.is_none() {
            let expected = "none without layers_to_transform, as it would do nothing";
            return Err(("layers_pattern", format!("{:?}", self.layers_pattern), expected));
        }
        Ok(())
    }

    /// The object that PEFT reads as `adapter_config.json`.
    pub fn to_peft(&self, base_model: Option<&str>) -> Value {
        let modules = |modules: &Modules| match modules {
            Modules::Names(names) => json!(names),
            Modules::Pattern(pattern) => json!(pattern),
            Modules::AllLinear => json!("all-linear"),
        };
        let names = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
        let bias = match self.bias {
            BiasMode::None => "none",
            BiasMode::LoraOnly => "lora_only",
            BiasMode::All => "all",
        };
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": number(self.alpha),
            "lora_dropout": number(self.dropout),
            "target_modules": modules(&self.target_modules),
            "exclude_modules": self.exclude_modules.as_ref().map(modules),
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "rank_pattern": self.rank_pattern.iter().cloned().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>(),
            "alpha_pattern":
                self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect::<Map<_, _>>(),
            "layers_to_transform": self.layers_to_transform,
            "layers_pattern": names(&self.layers_pattern),
            "modules_to_save": names(&self.modules_to_save),
            "bias": bias,
            "lora_bias": self.lora_bias,
            "fan_in_fan_out": false,
            "init_lora_weights": match self.initialisation {
                Initialisation::Uniform => json!(true),
                Initialisation::Gaussian => json!("gaussian"),
            },
        })
    }
}

/// A number, written without a fraction where it has none.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn as_count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count < MAX_RANK)
}

/// Typed reading of a configuration; `null` counts as absent.
struct Reader<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    fn invalid(&self, field: &str, reason: impl std::fmt::Display) -> Error {
        Error::adapter(self.path, code::INVALID_CONFIG, format!("{field}: {reason}"))
    }

    fn typed<T>(&self, field: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.map.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.invalid(field, format!("got {value}, expected {kind}"))),
        }
    }

    fn text(&self, field: &str) -> Result<Option<&'a str>> {
        self.typed(field, "a string", Value::as_str)
    }

    fn flag(&self, field: &str) -> Result<bool> {
        Ok(self.typed(field, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn number(&self, field: &str) -> Result<Option<f64>> {
        self.typed(field, "a number", Value::as_f64)
    }

    fn count(&self, field: &str) -> Result<Option<usize>> {
        self.typed(field, "a whole number", as_count)
    }

    /// A list of names, or a single one.
    fn names(&self, field: &str) -> Result<Vec<String>> {
        let read = |value: &Value| match value {
            Value::String(name) => Some(vec![name.clone()]),
            Value::Array(list) => list.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        Ok(self.typed(field, "a list of names", read)?.unwrap_or_default())
    }

    fn modules(&self, field: &str) -> Result<Option<Modules>> {
        Ok(match self.map.get(field) {
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Some(Modules::AllLinear),
            Some(Value::String(pattern)) => Some(Modules::Pattern(pattern.clone())),
            None | Some(Value::Null) => None,
            Some(_) => Some(Modules::Names(self.names(field)?)),
        })
    }

    fn patterns<T>(
        &self,
        field: &str,
        kind: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(String, T)>> {
        let Some(map) = self.typed(field, "an object", Value::as_object)? else { return Ok(Vec::new()) };
        let entry = |(pattern, value): (&String, &Value)| match read(value) {
            Some(value) => Ok((pattern.clone(), value)),
            None => Err(self.invalid(field, format!("{pattern:?}: got {value}, expected {kind}"))),
        };
        map.iter().map(entry).collect()
    }

    fn layers(&self) -> Result<Option<Vec<usize>>> {
        let read = |value: &Value| match value {
            Value::Array(list) => list.iter().map(as_count).collect(),
            one => as_count(one).map(|layer| vec![layer]),
        };
        let layers: Option<Vec<usize>> =
            self.typed("layers_to_transform", "a list of layer numbers", read)?;
        Ok(layers.filter(|layers| !layers.is_empty()))
    }

    fn initialisation(&self) -> Result<Initialisation> {
        let field = "init_lora_weights";
        match self.map.get(field) {
            None | Some(Value::Null | Value::Bool(_)) => Ok(Initialisation::Uniform),
            Some(Value::String(name)) if BASE_CHANGING.iter().any(|known| name.starts_with(known)) => {
                let problem = format!(
                    "{field} is {name:?}: the adapter belongs to a base model that this initialisation changed; \
                     convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion"
                );
                Err(Error::adapter(self.path, code::BASE_CHANGED, problem))
            }
            Some(Value::String(name)) if name == "gaussian" => Ok(Initialisation::Gaussian),
            Some(Value::String(name)) if HARMLESS.contains(&name.as_str()) => Ok(Initialisation::Uniform),
            Some(other) => Err(self.unsupported(field, other)),
        }
    }

    fn unsupported(&self, field: &str, value: &Value) -> Error {
        let problem = format!("{field} is {value}, which would change results and is not supported");
        Error::adapter(self.path, code::UNSUPPORTED_OPTION, problem)
    }

    fn refuse_unsupported(&self) -> Result<()> {
        for (field, value) in self.map.iter().filter(|(_, value)| asks_for_something(value)) {
            let known = IRRELEVANT.contains(&field.as_str());
            // Variants that later versions of PEFT may bring are named like the present ones.
            let variant = field.starts_with("use_") || (field.ends_with("_config") && value.is_object());
            if UNSUPPORTED.contains(&field.as_str()) || (!known && variant) {
                return Err(self.unsupported(field, value));
            }
            if !known {
                log::warn!("{}: {field} is not known and not used", self.path.display());
            }
        }
        Ok(())
    }
}

/// Whether an option holds anything else than an empty or negative value.
fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Bool(true) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<LoraConfig> {
        LoraConfig::from_peft(Path::new("adapter_config.json"), &value)
    }

    fn code_of(value: Value) -> &'static str {
        match read(value) {
            Err(Error::InvalidAdapter { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_configuration_survives_writing_and_reading() {
        let config = LoraConfig {
            rank: 5,
            alpha: 2.5,
            dropout: 0.1,
            target_modules: Modules::Names(vec!["q_proj".into(), "v_proj".into()]),
            exclude_modules: Some(Modules::Names(vec!["v_proj".into()])),
            use_rslora: true,
            use_dora: true,
            rank_pattern: vec![("z".into(), 3), ("a".into(), 4)],
            alpha_pattern: vec![("b".into(), 0.5)],
            layers_to_transform: Some(vec![0, 2]),
            layers_pattern: vec!["layers".into()],
            modules_to_save: vec!["lm_head".into()],
            bias: BiasMode::All,
            lora_bias: false,
            initialisation: Initialisation::Gaussian,
        };
        assert_eq!(read(config.to_peft(Some("org/base"))).unwrap(), config);
        let all = LoraConfig { target_modules: Modules::AllLinear, lora_bias: true, ..LoraConfig::default() };
        assert_eq!(read(all.to_peft(None)).unwrap(), all);
        let pattern = Modules::Pattern(".*q_proj".into());
        let pattern = LoraConfig { target_modules: pattern, ..LoraConfig::default() };
        assert_eq!(read(pattern.to_peft(None)).unwrap(), pattern);
    }

    #[test]
    fn the_least_configuration_has_the_defaults_of_peft() {
        let config = read(json!({"peft_type": "LORA", "target_modules": "ALL-linear"})).unwrap();
        assert_eq!((config.rank, config.alpha), (8, 8.0));
        assert_eq!(config.target_modules, Modules::AllLinear);
    }

    #[test]
    fn refusals_have_codes() {
        let with = |field: &str, value: Value| json!({"peft_type": "LORA", "target_modules": ["q_proj"], field: value});
        assert_eq!(code_of(with("init_lora_weights", json!("pissa_niter_16"))), code::BASE_CHANGED);
        assert_eq!(code_of(with("init_lora_weights", json!("unheard of"))), code::UNSUPPORTED_OPTION);
        assert_eq!(code_of(with("fan_in_fan_out", json!(true))), code::UNSUPPORTED_OPTION);
        assert_eq!(code_of(with("use_something_new", json!(true))), code::UNSUPPORTED_OPTION);
        assert_eq!(code_of(with("r", json!(-1))), code::INVALID_CONFIG);
        assert_eq!(code_of(with("r", json!(0))), code::INVALID_CONFIG);
        assert_eq!(code_of(with("lora_dropout", json!(1.0))), code::INVALID_CONFIG);
        assert_eq!(code_of(with("bias", json!("some"))), code::INVALID_CONFIG);
        assert_eq!(code_of(with("peft_type", json!("IA3"))), code::UNSUPPORTED_KIND);
        assert_eq!(code_of(json!([])), code::INVALID_CONFIG);
        assert!(read(with("velora_config", json!({"a": 1}))).is_ok());
        assert!(read(with("made_up", json!("note"))).is_ok());
        assert!(read(with("init_lora_weights", json!("eva"))).is_ok());
    }
}
