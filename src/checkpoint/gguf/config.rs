//! `config.json` and `generation_config.json` from the metadata of a GGUF file.
//!
//! What would change the numbers and cannot be expressed is refused by its key.

use serde_json::{Map, Value, json};

use super::metadata::{GgufMetadata, GgufValue};
use super::names::{Architecture, EMBEDDING, HEAD, WINDOWED, to_hugging_face};
use super::{GgufSource, tokenizer};
use crate::Result;
use crate::weight::{Format, TensorSource};

/// Keys below the architecture's prefix, with the value that changes nothing.
const REFUSED: [(&str, f64); 11] = [
    ("expert_count", 0.0),
    ("use_parallel_residual", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.scale", 0.0),
    ("attention.temperature_scale", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 0.0),
    ("residual_scale", 0.0),
    ("embedding_scale", 0.0),
];

/// Keys below the prefix of one architecture.
struct Keys<'a> {
    metadata: &'a GgufMetadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn count(&self, name: &str) -> Result<Option<u64>> {
        let key = self.key(name);
        // Some converters write one value per layer; only equal ones can be expressed.
        let Some(GgufValue::Array(array)) = self.metadata.get(&key) else {
            return self.metadata.unsigned(&key);
        };
        let mut values = array.iter().map(|v| v.as_u64());
        match values.next().flatten() {
            Some(first) if values.all(|v| v == Some(first)) => Ok(Some(first)),
            _ => Err(self.metadata.invalid(&key, "differs between layers, which is not supported")),
        }
    }

    fn required(&self, name: &str) -> Result<u64> {
        match self.count(name)? {
            Some(count) if count > 0 => Ok(count),
            Some(_) => Err(self.metadata.invalid(&self.key(name), "got 0, expected at least 1")),
            None => Err(self.metadata.invalid(&self.key(name), "missing")),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(name))
    }

    fn refuse(&self) -> Result<()> {
        for (name, neutral) in REFUSED {
            let key = self.key(name);
            let value = match self.metadata.get(&key) {
                None => continue,
                Some(GgufValue::Bool(flag)) => f64::from(u8::from(flag)),
                Some(value) => value.as_f64().unwrap_or(f64::NAN),
            };
            if value != neutral {
                return Err(self.metadata.invalid(&key, format!("got {value}, which is not supported")));
            }
        }
        if self.metadata.boolean(&self.key("attention.causal"))? == Some(false) {
            return Err(self
                .metadata
                .invalid(&self.key("attention.causal"), "got false, which is not supported"));
        }
        Ok(())
    }
}

/// Number of query heads or of key heads.
pub(super) fn heads(metadata: &GgufMetadata, architecture: &Architecture, query: bool) -> Result<usize> {
    let keys = Keys { metadata, prefix: architecture.name };
    let heads = match keys.count("attention.head_count_kv")? {
        Some(heads) if !query => heads,
        _ => keys.required("attention.head_count")?,
    };
    usize::try_from(heads).map_err(|_| metadata.invalid(&keys.key("attention.head_count"), "too large"))
}

pub(super) fn config(source: &GgufSource) -> Result<Value> {
    let keys = Keys { metadata: &source.metadata, prefix: source.architecture.name };
    keys.refuse()?;
    let mut config = Map::new();
    let mut set = |name: &str, value: Value| drop(config.insert(name.to_string(), value));
    let window = keys.count("attention.sliding_window")?.filter(|&w| w > 0);
    match window {
        Some(_) if source.architecture.interleaved => {
            set("architectures", json!([WINDOWED.1]));
            set("model_type", json!(WINDOWED.0));
        }
        _ => {
            set("architectures", json!([source.architecture.class]));
            set("model_type", json!(source.architecture.name));
        }
    }
    let (hidden, query_heads) = (keys.required("embedding_length")?, keys.required("attention.head_count")?);
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(keys.required("feed_forward_length")?));
    set("num_hidden_layers", json!(keys.required("block_count")?));
    set("num_attention_heads", json!(query_heads));
    set("num_key_value_heads", json!(keys.count("attention.head_count_kv")?.unwrap_or(query_heads)));
    set("head_dim", json!(head_dim(&keys, hidden, query_heads)?));
    set("max_position_embeddings", json!(keys.required("context_length")?));
    let eps = keys.number("attention.layer_norm_rms_epsilon")?;
    let eps_key = keys.key("attention.layer_norm_rms_epsilon");
    set("rms_norm_eps", json!(eps.ok_or_else(|| keys.metadata.invalid(&eps_key, "missing"))?));
    set("hidden_act", json!("silu"));
    set("vocab_size", json!(vocabulary_size(source)?));
    set("tie_word_embeddings", json!(!has(source, HEAD)));
    if !source.architecture.implied_bias {
        set("attention_bias", json!(has(source, "blk.0.attn_q.bias")));
        set("mlp_bias", json!(has(source, "blk.0.ffn_gate.bias")));
    }
    if let Some(window) = window {
        set("sliding_window", json!(window));
        set("use_sliding_window", json!(true));
        set("max_window_layers", json!(0));
    }
    set("rope_theta", json!(keys.number("rope.freq_base")?.unwrap_or(10_000.0)));
    if let Some(scaling) = rope_scaling(&keys, source.rope_factors.as_deref())? {
        set("rope_scaling", scaling);
    }
    if let Some(dtype) = dtype(source) {
        set("torch_dtype", json!(dtype));
    }
    for (name, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = keys.metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id"))? {
            set(name, json!(id));
        }
    }
    Ok(Value::Object(config))
}

fn has(source: &GgufSource, stored: &str) -> bool {
    to_hugging_face(stored).is_some_and(|name| source.tensors.contains_key(&name))
}

fn head_dim(keys: &Keys<'_>, hidden: u64, heads: u64) -> Result<u64> {
    let key_length = keys.count("attention.key_length")?.unwrap_or(hidden / heads);
    let value_length = keys.count("attention.value_length")?.unwrap_or(key_length);
    if key_length != value_length {
        let reason =
            format!("got {value_length}, but attention.key_length is {key_length}; they must be equal");
        return Err(keys.metadata.invalid(&keys.key("attention.value_length"), reason));
    }
    let rotated = keys.count("rope.dimension_count")?.unwrap_or(key_length);
    if rotated != key_length {
        let reason = format!(
            "got {rotated}, but a head has {key_length} dimensions; partial rotation is not supported"
        );
        return Err(keys.metadata.invalid(&keys.key("rope.dimension_count"), reason));
    }
    Ok(key_length)
}

fn vocabulary_size(source: &GgufSource) -> Result<usize> {
    let embedding = to_hugging_face(EMBEDDING).and_then(|name| source.info(&name));
    match embedding.as_ref().map(|info| info.shape.as_slice()) {
        Some([vocabulary, _]) => Ok(*vocabulary),
        _ => Err(crate::Error::checkpoint(source.path(), format!("{EMBEDDING} is missing or not a matrix"))),
    }
}

fn dtype(source: &GgufSource) -> Option<&'static str> {
    let embedding = to_hugging_face(EMBEDDING).and_then(|name| source.info(&name))?;
    match embedding.format {
        Format::F32 => Some("float32"),
        Format::F16 => Some("float16"),
        Format::BF16 => Some("bfloat16"),
        _ => None,
    }
}

fn rope_scaling(keys: &Keys<'_>, factors: Option<&[f32]>) -> Result<Option<Value>> {
    if let Some(factors) = factors {
        return Ok(Some(json!({"rope_type": "factors", "factors": factors})));
    }
    let kind = keys.metadata.string(&keys.key("rope.scaling.type"))?;
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // The spelling of older files, always linear.
        None => keys.number("rope.scale_linear")?,
    };
    let factor = factor.filter(|&f| f != 0.0);
    match (kind, factor) {
        (None | Some("linear"), Some(1.0)) | (None | Some("none" | "linear"), None) | (Some("none"), _) => {
            Ok(None)
        }
        (None | Some("linear"), Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        (Some("yarn"), Some(factor)) => yarn(keys, factor).map(Some),
        (Some(kind), _) => {
            let reason =
                format!("got {kind:?} with factor {factor:?}, expected \"none\", \"linear\" or \"yarn\"");
            Err(keys.metadata.invalid(&keys.key("rope.scaling.type"), reason))
        }
    }
}

fn yarn(keys: &Keys<'_>, factor: f64) -> Result<Value> {
    let mut scaling = json!({"rope_type": "yarn", "factor": factor});
    if let Some(original) = keys.count("rope.scaling.original_context_length")? {
        scaling["original_max_position_embeddings"] = json!(original);
    }
    for (name, key) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
        if let Some(value) = keys.number(&format!("rope.scaling.{key}"))? {
            scaling[name] = json!(value);
        }
    }
    // A key `yarn_attn_factor` is in some files, but llama.cpp makes no use of it.
    if let Some(given) = keys.number("rope.scaling.attn_factor")? {
        // GGUF's factor comes on top of the usual one.
        scaling["attention_factor"] = json!(given * (1.0 + 0.1 * factor.ln()));
    }
    for name in ["yarn_ext_factor", "yarn_log_multiplier"] {
        let key = format!("rope.scaling.{name}");
        let neutral = if name == "yarn_ext_factor" { 1.0 } else { 0.1 };
        if let Some(value) = keys.number(&key)?.filter(|&v| (v - neutral).abs() > 1e-6) {
            let reason = format!("got {value}, only {neutral} is supported");
            return Err(keys.metadata.invalid(&keys.key(&key), reason));
        }
    }
    Ok(scaling)
}

pub(super) fn generation_config(source: &GgufSource) -> Result<Value> {
    let metadata = &source.metadata;
    let mut config = Map::new();
    let eos = tokenizer::end_ids(metadata)?;
    if !eos.is_empty() {
        config.insert("eos_token_id".to_string(), json!(eos));
    }
    for (name, key) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
        if let Some(id) = metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id"))? {
            config.insert(name.to_string(), json!(id));
        }
    }
    const SAMPLING: [(&str, &str); 4] = [
        ("temperature", "general.sampling.temp"),
        ("top_p", "general.sampling.top_p"),
        ("min_p", "general.sampling.min_p"),
        ("repetition_penalty", "general.sampling.penalty_repeat"),
    ];
    let mut sampled = false;
    for (name, key) in SAMPLING {
        if let Some(value) = metadata.number(key)? {
            config.insert(name.to_string(), json!(value));
            sampled = true;
        }
    }
    if let Some(top_k) = metadata.unsigned("general.sampling.top_k")? {
        config.insert("top_k".to_string(), json!(top_k));
        sampled = true;
    }
    if sampled {
        config.insert("do_sample".to_string(), json!(true));
    }
    Ok(Value::Object(config))
}
