//! Adapters as mlx-lm writes and reads them, from and to PEFT's terms.
//!
//! mlx-lm computes `W x + scale · (x a) b` with `a: [in, rank]` and `b: [rank, out]`: both factors are transposed, and
//! `alpha` is `scale · rank`. It keeps no list of adapted modules; what is in the file is adapted.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::layout::{self, A, B, EMBEDDING_A, EMBEDDING_B, MAGNITUDE};
use super::{AdapterFile, LoraConfig, Modules, code};
use crate::checkpoint::SafetensorsSource;
use crate::weight::TensorSource;
use crate::{Error, Result};

/// Whether a configuration is mlx-lm's.
pub(super) fn is_config(value: &Value) -> bool {
    value.get("peft_type").is_none()
        && (value.get("fine_tune_type").is_some() || value.get("lora_parameters").is_some())
}

/// The configuration in PEFT's terms, and the base model.
pub(super) fn config(
    directory: &Path,
    value: &Value,
    source: &SafetensorsSource,
) -> Result<(LoraConfig, Option<String>)> {
    let error = |code, problem: String| Err(Error::adapter(directory, code, problem));
    let use_dora = match value.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora") {
        "lora" => false,
        "dora" => true,
        other => return error(code::UNSUPPORTED_KIND, format!("fine_tune_type {other:?} is not an adapter")),
    };
    let parameters = value.get("lora_parameters").unwrap_or(&Value::Null);
    let number = |field: &str| parameters.get(field).and_then(Value::as_f64);
    let (Some(rank), Some(scale)) = (parameters.get("rank").and_then(Value::as_u64), number("scale")) else {
        return error(code::INVALID_CONFIG, "lora_parameters has no rank, or no scale".into());
    };
    let names: BTreeSet<String> =
        source.names().iter().filter_map(|name| Some(name.rsplit_once('.')?.0.to_owned())).collect();
    let config = LoraConfig {
        rank: rank as usize,
        alpha: scale * rank as f64,
        dropout: number("dropout").unwrap_or(0.0),
        target_modules: Modules::Names(names.into_iter().collect()),
        use_dora,
        ..LoraConfig::default()
    };
    if let Err((field, got, expected)) = config.check()
        && field != "target_modules"
    {
        return error(code::INVALID_CONFIG, format!("{field}: got {got}, expected {expected}"));
    }
    Ok((config, value.get("model").and_then(Value::as_str).map(str::to_owned)))
}

/// PEFT's name for a tensor.
pub(super) fn rename(name: &str) -> Option<String> {
    let (path, end) = name.rsplit_once('.')?;
    let is_embedding = path.rsplit('.').next()?.contains("embed");
    let end = match (end, is_embedding) {
        ("lora_a", false) => A,
        ("lora_b", false) => B,
        ("lora_a", true) => EMBEDDING_A,
        ("lora_b", true) => EMBEDDING_B,
        ("m", _) => MAGNITUDE,
        _ => return None,
    };
    Some(format!("{path}.{end}"))
}

/// A tensor in the other one's orientation.
pub(super) fn transpose(tensor: Tensor) -> Result<Tensor> {
    Ok(if tensor.rank() == 2 { tensor.t()?.contiguous()? } else { tensor })
}

/// mlx-lm's configuration for an adapter, and its tensors by mlx-lm's names.
///
/// # Errors
/// [`Error::InvalidArgument`] for what mlx-lm cannot express: several ranks or scales, biases, whole modules.
pub(super) fn express(file: &AdapterFile) -> Result<(Value, Vec<(String, Tensor)>)> {
    let refuse = |what: String| {
        let allowed =
            "an adapter of one rank and one scale, without biases and whole modules; save it as \"peft\"";
        Err(Error::argument("format", format!("\"mlx\" for an adapter with {what}"), allowed))
    };
    let config = file.config();
    if !config.alpha_pattern.is_empty() {
        return refuse("an alpha_pattern".into());
    }
    let (mut keys, mut tensors) = (BTreeSet::new(), Vec::new());
    for (name, tensor) in file.tensors() {
        let Some((path, end)) = layout::split(name) else { return refuse(format!("the tensor {name}")) };
        let (end, rank) = match end {
            A | EMBEDDING_A => ("lora_a", tensor.dims()[0]),
            B | EMBEDDING_B => ("lora_b", tensor.dims()[1]),
            MAGNITUDE => ("m", config.rank),
            _ => return refuse(format!("the tensor {name}")),
        };
        if rank != config.rank {
            return refuse(format!("the ranks {rank} and {}", config.rank));
        }
        keys.insert(below_layer(path).to_owned());
        tensors.push((format!("{path}.{end}"), transpose(tensor.clone())?));
    }
    let rank = config.rank as f64;
    let scale = config.alpha / if config.use_rslora { rank.sqrt() } else { rank };
    let kind = if config.use_dora { "dora" } else { "lora" };
    let parameters = json!({ "rank": config.rank, "scale": scale, "dropout": config.dropout, "keys": keys });
    // All layers: those that the file does not have stay without effect.
    let config = json!({
        "fine_tune_type": kind,
        "num_layers": -1,
        "lora_parameters": parameters,
        "model": file.base_model(),
    });
    Ok((config, tensors))
}

/// The path of a module as mlx-lm's keys spell it: within its layer, or whole.
fn below_layer(path: &str) -> &str {
    let mut rest = path;
    while let Some((_, after)) = rest.split_once("layers.") {
        if let Some((number, inner)) = after.split_once('.')
            && number.parse::<usize>().is_ok()
        {
            return inner;
        }
        rest = after;
    }
    path
}
