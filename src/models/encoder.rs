//! What the configurations of encoder families have in common.

use serde_json::json;

use super::classifier::ClassifierConfig;
use super::fields::Fields;
use crate::Result;
use crate::kernels::gated_act::Activation;
use crate::nn::{EncoderConfig, EncoderNames, FeedForwardNames, Positions, Projections};

/// The names of the family that most others were made from.
pub(super) const NAMES: EncoderNames = EncoderNames {
    words: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    token_types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    relative_bias: "encoder.relative_attention_bias",
    layers: "encoder.layer",
    projections: Projections::Separate([
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ]),
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    feed_forward: FeedForwardNames::Plain(["intermediate.dense", "output.dense"]),
    feed_forward_norm: "output.LayerNorm",
    final_norm: "",
};

/// An encoder with norms after the residual, learned positions from 0 and a plain feed-forward block.
pub(super) fn common(fields: &Fields, names: EncoderNames) -> Result<EncoderConfig> {
    refuse_unsupported(fields)?;
    fields.refuse(&[("position_embedding_type", json!("absolute")), ("embedding_size", json!(null))])?;
    let hidden_size = fields.size("hidden_size")?;
    let (heads, _, _) = fields.heads(hidden_size, None)?;
    let positions = Positions::Learned { rows: fields.size_or("max_position_embeddings", 512)? };
    Ok(EncoderConfig {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        heads,
        norm_eps: fields.positive_number_or("layer_norm_eps", 1e-12)?,
        norm_bias: true,
        attention_bias: true,
        mlp_bias: true,
        activation: fields.activation_or("hidden_act", "gelu")?,
        pre_norm: false,
        positions,
        token_types: 0,
        relative_buckets: 0,
        max_tokens: positions.max_tokens().unwrap_or_default(),
        windows: vec![None; fields.layers("num_hidden_layers")?],
        layer_ropes: Vec::new(),
        ropes: Vec::new(),
        names,
    })
}

/// The same encoder with positions that begin after the padding token's.
pub(super) fn count_after_padding(config: &mut EncoderConfig, fields: &Fields, padding: u32) -> Result<()> {
    let Positions::Learned { rows } = config.positions else { return Ok(()) };
    config.positions = Positions::AfterPadding { rows, padding };
    config.max_tokens = config.positions.max_tokens().unwrap_or_default();
    if config.max_tokens == 0 {
        let reason = format!("got {rows}, expected more than the padding token's id ({padding}) and one");
        return Err(fields.error("max_position_embeddings", reason));
    }
    Ok(())
}

/// Refuses what would make attention causal or weights unreadable.
pub(super) fn refuse_unsupported(fields: &Fields) -> Result<()> {
    if let Some(quantization) = fields.nested("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("unknown");
        return Err(fields.error("quantization_config", format!("method {method:?} is not supported")));
    }
    fields.refuse(&[("is_decoder", json!(false)), ("add_cross_attention", json!(false))])
}

/// Number of labels: those that have a name, else `num_labels`, else 2.
pub(super) fn labels(fields: &Fields) -> Result<usize> {
    match fields.entries("id2label")? {
        Some(count) if count > 0 => Ok(count),
        _ => fields.size_or("num_labels", 2),
    }
}

/// A head of two layers beside the backbone, `classifier.dense` and `classifier.out_proj`.
pub(super) fn two_layer_head(fields: &Fields) -> Result<ClassifierConfig> {
    Ok(ClassifierConfig {
        dense: "classifier.dense",
        dense_in_backbone: false,
        dense_bias: true,
        activation: Activation::Tanh,
        norm: None,
        output: "classifier.out_proj",
        mean: false,
        labels: labels(fields)?,
    })
}
