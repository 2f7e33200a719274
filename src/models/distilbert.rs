//! DistilBERT: the smaller BERT without segments and pooler, under names of its own.

use super::classifier::ClassifierConfig;
use super::encoder;
use super::fields::Fields;
use crate::Result;
use crate::kernels::gated_act::Activation;
use crate::nn::{EncoderConfig, EncoderNames, FeedForwardNames, Positions, Projections};

const NAMES: EncoderNames = EncoderNames {
    layers: "transformer.layer",
    projections: Projections::Separate(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    feed_forward: FeedForwardNames::Plain(["ffn.lin1", "ffn.lin2"]),
    feed_forward_norm: "output_layer_norm",
    ..encoder::NAMES
};

pub(super) fn config(fields: &Fields) -> Result<EncoderConfig> {
    encoder::refuse_unsupported(fields)?;
    let hidden_size = fields.size("dim")?;
    let heads = fields.size("n_heads")?;
    if hidden_size % heads != 0 {
        return Err(
            fields.error("dim", format!("got {hidden_size}, expected a multiple of n_heads ({heads})"))
        );
    }
    let rows = fields.size_or("max_position_embeddings", 512)?;
    Ok(EncoderConfig {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("hidden_dim")?,
        heads,
        // The family has no field for it.
        norm_eps: 1e-12,
        norm_bias: true,
        attention_bias: true,
        mlp_bias: true,
        activation: fields.activation_or("activation", "gelu")?,
        pre_norm: false,
        positions: Positions::Learned { rows },
        token_types: 0,
        relative_buckets: 0,
        max_tokens: rows,
        windows: vec![None; fields.layers("n_layers")?],
        layer_ropes: Vec::new(),
        ropes: Vec::new(),
        names: NAMES,
    })
}

pub(super) fn classifier(fields: &Fields) -> Result<ClassifierConfig> {
    Ok(ClassifierConfig {
        dense: "pre_classifier",
        dense_in_backbone: false,
        dense_bias: true,
        activation: Activation::Relu,
        norm: None,
        output: "classifier",
        mean: false,
        labels: encoder::labels(fields)?,
    })
}
