//! Typed, bounded reading of `config.json`; what cannot be honoured is refused by name.

use serde_json::{Map, Value};

use crate::kernels::gated_act::Activation;
use crate::kernels::rope::RopeStyle;
use crate::nn::{RopeConfig, RopeScaling};
use crate::{Error, Result};

/// No dimension of a real model comes near this; larger values are a damaged or hostile file.
const MAX_DIMENSION: u64 = 1 << 31;

/// More layers than any model has.
const MAX_LAYERS: usize = 4096;

/// The fields of one configuration file. `null` counts as absent.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    file: &'a str,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top-level object of `file`.
    pub fn new(file: &'a str, value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Self { file, prefix: String::new(), map }),
            None => Err(Error::config(file, "", "got something else than a JSON object")),
        }
    }

    /// An error about `field` of this file.
    pub fn error(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::config(self.file, format!("{}{field}", self.prefix), reason)
    }

    /// The value of `field` unless it is absent or null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether `field` is written at all, be it as null.
    pub fn mentions(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    fn typed<T>(&self, field: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(field, format!("got {value}, expected {kind}"))),
        }
    }

    fn required<T>(&self, field: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(field, "the field is missing"))
    }

    /// An optional count.
    pub fn count(&self, field: &str) -> Result<Option<usize>> {
        let read = |value: &Value| {
            let number = value
                .as_u64()
                .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64))?;
            usize::try_from(number).ok().filter(|_| number < MAX_DIMENSION)
        };
        self.typed(field, "a whole number below 2147483648", read)
    }

    /// A count that must be there and be at least 1.
    pub fn size(&self, field: &str) -> Result<usize> {
        self.positive(field, self.required(field, self.count(field)?)?)
    }

    /// A count of at least 1, or `default` where it is absent.
    pub fn size_or(&self, field: &str, default: usize) -> Result<usize> {
        self.positive(field, self.count(field)?.unwrap_or(default))
    }

    fn positive(&self, field: &str, value: usize) -> Result<usize> {
        if value == 0 { Err(self.error(field, "got 0, expected at least 1")) } else { Ok(value) }
    }

    /// An optional finite number.
    pub fn number(&self, field: &str) -> Result<Option<f64>> {
        self.typed(field, "a finite number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// A number above 0, or `default`.
    pub fn positive_number_or(&self, field: &str, default: f64) -> Result<f64> {
        let value = self.number(field)?.unwrap_or(default);
        if value > 0.0 {
            Ok(value)
        } else {
            Err(self.error(field, format!("got {value}, expected a number above 0")))
        }
    }

    /// A flag, or `default`.
    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool> {
        Ok(self.typed(field, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// An optional string.
    pub fn text(&self, field: &str) -> Result<Option<&'a str>> {
        self.typed(field, "a string", Value::as_str)
    }

    /// An optional nested object.
    pub fn nested(&self, field: &str) -> Result<Option<Self>> {
        let map = self.typed(field, "an object", Value::as_object)?;
        Ok(map.map(|map| Self { file: self.file, prefix: format!("{}{field}.", self.prefix), map }))
    }

    /// How many entries an optional nested object has.
    pub fn entries(&self, field: &str) -> Result<Option<usize>> {
        Ok(self.nested(field)?.map(|nested| nested.map.len()))
    }

    /// `num_hidden_layers`, bounded.
    pub fn layers(&self, field: &str) -> Result<usize> {
        let layers = self.size(field)?;
        if layers > MAX_LAYERS {
            return Err(self.error(field, format!("got {layers}, expected at most {MAX_LAYERS}")));
        }
        Ok(layers)
    }

    /// An activation by the name that checkpoints use, or `default`.
    pub fn activation_or(&self, field: &str, default: &str) -> Result<Activation> {
        let name = self.text(field)?.unwrap_or(default);
        Activation::from_name(name)
            .ok_or_else(|| self.error(field, format!("activation {name:?} is not supported")))
    }

    /// Refuses fields that would change the numbers unless they hold the given neutral value or are absent.
    pub fn refuse(&self, unsupported: &[(&str, Value)]) -> Result<()> {
        for (field, neutral) in unsupported {
            if let Some(value) = self.get(field)
                && value != neutral
                && value.as_f64().is_none_or(|number| neutral.as_f64() != Some(number))
            {
                return Err(self
                    .error(field, format!("got {value}, which is not supported and would change results")));
            }
        }
        Ok(())
    }

    /// Query heads, key-value heads and the dimension of a head.
    pub fn heads(&self, hidden: usize, default_head_dim: Option<usize>) -> Result<(usize, usize, usize)> {
        let heads = self.size("num_attention_heads")?;
        let kv_heads = self.size_or("num_key_value_heads", heads)?;
        if heads % kv_heads != 0 {
            let reason = format!("got {kv_heads}, expected a divisor of num_attention_heads ({heads})");
            return Err(self.error("num_key_value_heads", reason));
        }
        let head_dim = match (self.count("head_dim")?, default_head_dim) {
            (Some(dim), _) | (None, Some(dim)) => dim,
            (None, None) if hidden.is_multiple_of(heads) => hidden / heads,
            (None, None) => {
                let reason = format!("got {hidden}, expected a multiple of num_attention_heads ({heads})");
                return Err(self.error("hidden_size", reason));
            }
        };
        if head_dim == 0 || head_dim > 1 << 14 {
            return Err(self.error("head_dim", format!("got {head_dim}, expected 1 to 16384")));
        }
        Ok((heads, kv_heads, head_dim))
    }

    /// The rotation in either spelling: `rope_parameters`, or `rope_theta` with `rope_scaling`.
    pub fn rope(
        &self,
        head_dim: usize,
        max_position_embeddings: usize,
        style: RopeStyle,
    ) -> Result<RopeConfig> {
        if !head_dim.is_multiple_of(2) {
            return Err(self.error("head_dim", format!("got {head_dim}, expected an even number")));
        }
        let (parameters, scaling) = (self.nested("rope_parameters")?, self.nested("rope_scaling")?);
        let mut outer_theta = self.positive_number_or("rope_theta", 10_000.0)?;
        let mut outer_partial = self.positive_number_or("partial_rotary_factor", 1.0)?;
        if let Some(parameters) = &parameters {
            outer_theta = parameters.positive_number_or("rope_theta", outer_theta)?;
            outer_partial = parameters.positive_number_or("partial_rotary_factor", outer_partial)?;
        }
        // Where both are there, somebody added the scaling by hand.
        let nested = scaling.or(parameters);
        let (theta, partial) = match &nested {
            Some(nested) => (
                nested.positive_number_or("rope_theta", outer_theta)?,
                nested.positive_number_or("partial_rotary_factor", outer_partial)?,
            ),
            None => (outer_theta, outer_partial),
        };
        let rotary_dim = (head_dim as f64 * partial) as usize;
        if rotary_dim < 2 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(
                self.error("partial_rotary_factor", format!("rotates {rotary_dim} of {head_dim} dimensions"))
            );
        }
        let scaling = match &nested {
            Some(nested) => nested.rope_scaling(self, max_position_embeddings)?,
            None => RopeScaling::Default,
        };
        Ok(RopeConfig { theta, rotary_dim, max_position_embeddings, scaling, style })
    }

    fn rope_scaling(&self, outer: &Self, max_position_embeddings: usize) -> Result<RopeScaling> {
        let kind = match self.text("rope_type")? {
            Some(kind) => kind,
            None => self.text("type")?.unwrap_or("default"),
        };
        let factor = || -> Result<f64> {
            let factor = self.required("factor", self.number("factor")?)?;
            if factor > 0.0 {
                Ok(factor)
            } else {
                Err(self.error("factor", format!("got {factor}, expected above 0")))
            }
        };
        let field = "original_max_position_embeddings";
        let original = || -> Result<f64> {
            let own = self.positive_number_or(field, max_position_embeddings as f64)?;
            outer.positive_number_or(field, own)
        };
        Ok(match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "dynamic" => RopeScaling::Dynamic { factor: factor()? },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: self.required("low_freq_factor", self.number("low_freq_factor")?)?,
                high_freq_factor: self.required("high_freq_factor", self.number("high_freq_factor")?)?,
                original_max_position_embeddings: original()?,
            },
            "yarn" => self.yarn(original()?, max_position_embeddings)?,
            "factors" => self.factors()?,
            other => return Err(self.error("rope_type", format!("{other:?} is not supported"))),
        })
    }

    fn yarn(&self, original: f64, max_position_embeddings: usize) -> Result<RopeScaling> {
        let factor = self.positive_number_or("factor", max_position_embeddings as f64 / original)?;
        let mscale = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
        let attention_factor = match (
            self.number("attention_factor")?,
            self.number("mscale")?,
            self.number("mscale_all_dim")?,
        ) {
            (Some(given), _, _) => given,
            (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(factor, m) / mscale(factor, all),
            _ => mscale(factor, 1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: self.positive_number_or("beta_fast", 32.0)?,
            beta_slow: self.positive_number_or("beta_slow", 1.0)?,
            attention_factor,
            truncate: self.flag_or("truncate", true)?,
        })
    }

    /// A divisor for each frequency; only configurations derived from GGUF files have them.
    fn factors(&self) -> Result<RopeScaling> {
        let read = |value: &Value| -> Option<Vec<f32>> {
            value.as_array()?.iter().map(|x| x.as_f64().filter(|x| *x > 0.0).map(|x| x as f32)).collect()
        };
        let factors = self.typed("factors", "a list of numbers above 0", read)?;
        Ok(RopeScaling::Factors(self.required("factors", factors)?))
    }

    /// For each layer its sliding window, from `layer_types` or, where absent, from `slides(layer)`.
    pub fn windows(
        &self,
        layers: usize,
        window: Option<usize>,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>> {
        let field = "layer_types";
        let Some(types) = self.typed(field, "a list", Value::as_array)? else {
            return Ok((0..layers).map(|layer| window.filter(|_| slides(layer))).collect());
        };
        if types.len() != layers {
            return Err(self.error(field, format!("got {} entries for {layers} layers", types.len())));
        }
        let kind = |value: &Value| match (value.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
            (Some("sliding_attention"), None) => {
                Err(self.error("sliding_window", "layers slide, but no window is given"))
            }
            _ => Err(self.error(field, format!("{value} is not supported"))),
        };
        types.iter().map(kind).collect()
    }
}
