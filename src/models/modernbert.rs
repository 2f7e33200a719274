//! ModernBERT: norms before the blocks, rotary positions, gated feed-forward, windows in two of three layers.

use serde_json::json;

use super::classifier::ClassifierConfig;
use super::encoder;
use super::fields::Fields;
use crate::Result;
use crate::kernels::rope::RopeStyle;
use crate::nn::{
    EncoderConfig, EncoderNames, FeedForwardNames, Positions, Projections, RopeConfig, RopeScaling,
};

const NAMES: EncoderNames = EncoderNames {
    words: "embeddings.tok_embeddings",
    embedding_norm: "embeddings.norm",
    layers: "layers",
    projections: Projections::Fused("attn.Wqkv"),
    output: "attn.Wo",
    attention_norm: "attn_norm",
    feed_forward: FeedForwardNames::FusedGated(["mlp.Wi", "mlp.Wo"]),
    feed_forward_norm: "mlp_norm",
    final_norm: "final_norm",
    ..encoder::NAMES
};

pub(super) fn config(fields: &Fields) -> Result<EncoderConfig> {
    encoder::refuse_unsupported(fields)?;
    let hidden_size = fields.size("hidden_size")?;
    let (heads, _, _) = fields.heads(hidden_size, None)?;
    let max_tokens = fields.size_or("max_position_embeddings", 8192)?;
    let layers = fields.layers("num_hidden_layers")?;
    let every = fields.size_or("global_attn_every_n_layers", 3)?;
    let local = fields.size_or("local_attention", 128)?;
    let windows = fields.windows(layers, Some(local), |layer| layer % every != 0)?;
    let rope = |kind: &str, old: &str, default: f64| -> Result<RopeConfig> {
        Ok(RopeConfig {
            theta: theta(fields, kind, old, default)?,
            rotary_dim: hidden_size / heads,
            max_position_embeddings: max_tokens,
            scaling: RopeScaling::Default,
            style: RopeStyle::HalfSplit,
        })
    };
    let ropes = vec![
        rope("full_attention", "global_rope_theta", 160_000.0)?,
        rope("sliding_attention", "local_rope_theta", 10_000.0)?,
    ];
    Ok(EncoderConfig {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        heads,
        norm_eps: fields.positive_number_or("norm_eps", 1e-5)?,
        norm_bias: fields.flag_or("norm_bias", false)?,
        attention_bias: fields.flag_or("attention_bias", false)?,
        mlp_bias: fields.flag_or("mlp_bias", false)?,
        activation: fields.activation_or("hidden_activation", "gelu")?,
        pre_norm: true,
        positions: Positions::Rotary,
        token_types: 0,
        relative_buckets: 0,
        max_tokens,
        layer_ropes: windows.iter().map(|window| usize::from(window.is_some())).collect(),
        windows,
        ropes,
        names: NAMES,
    })
}

/// The base of one kind of layers, in the new spelling or the old.
fn theta(fields: &Fields, kind: &str, old: &str, default: f64) -> Result<f64> {
    let outer = fields.positive_number_or(old, default)?;
    let parameters = match fields.nested("rope_parameters")? {
        Some(both) => both.nested(kind)?,
        None => None,
    };
    match parameters {
        Some(parameters) => {
            parameters.refuse(&[("rope_type", json!("default"))])?;
            parameters.positive_number_or("rope_theta", outer)
        }
        None => Ok(outer),
    }
}

pub(super) fn classifier(fields: &Fields) -> Result<ClassifierConfig> {
    let eps = fields.positive_number_or("norm_eps", 1e-5)?;
    let mean = match fields.text("classifier_pooling")?.unwrap_or("cls") {
        "cls" => false,
        "mean" => true,
        other => {
            let reason = format!("got {other:?}, expected \"cls\" or \"mean\"");
            return Err(fields.error("classifier_pooling", reason));
        }
    };
    Ok(ClassifierConfig {
        dense: "head.dense",
        dense_in_backbone: false,
        dense_bias: fields.flag_or("classifier_bias", false)?,
        activation: fields.activation_or("classifier_activation", "gelu")?,
        norm: Some(("head.norm", eps, fields.flag_or("norm_bias", false)?)),
        output: "classifier",
        mean,
        labels: encoder::labels(fields)?,
    })
}
