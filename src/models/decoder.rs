//! What the configurations of all decoder families have in common.

use serde_json::{Value, json};

use super::fields::Fields;
use crate::Result;
use crate::kernels::rope::RopeStyle;
use crate::nn::DecoderConfig;

/// A plain decoder: full attention, no biases, no norms on heads. Families change what is peculiar to them.
pub(super) fn common(fields: &Fields, default_head_dim: Option<usize>) -> Result<DecoderConfig> {
    let hidden_size = fields.size("hidden_size")?;
    let (num_attention_heads, num_key_value_heads, head_dim) = fields.heads(hidden_size, default_head_dim)?;
    let max_position_embeddings = fields.size_or("max_position_embeddings", 2048)?;
    Ok(DecoderConfig {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps: fields.positive_number_or("rms_norm_eps", 1e-6)?,
        activation: fields.activation_or("hidden_act", "silu")?,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        rope: fields.rope(head_dim, max_position_embeddings, RopeStyle::HalfSplit)?,
        windows: vec![None; fields.layers("num_hidden_layers")?],
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", false)?,
    })
}

/// Refuses what relatives of these families use and these decoders do not compute.
pub(super) fn refuse_unsupported(fields: &Fields) -> Result<()> {
    if let Some(quantization) = fields.nested("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("unknown");
        return Err(fields.error("quantization_config", format!("method {method:?} is not supported")));
    }
    let (none, one) = (Value::Null, json!(1.0));
    let partial = [("partial_rotary_factor", one.clone())];
    fields.refuse(&partial)?;
    for rope in ["rope_parameters", "rope_scaling"] {
        fields.nested(rope)?.map_or(Ok(()), |rope| rope.refuse(&partial))?;
    }
    fields.refuse(&[
        ("attn_logit_softcapping", none.clone()),
        ("final_logit_softcapping", none.clone()),
        ("embedding_multiplier", one.clone()),
        ("residual_multiplier", one.clone()),
        ("logits_scaling", one),
        ("attention_multiplier", none.clone()),
        ("use_mrope", json!(false)),
        ("no_rope_layers", none.clone()),
        ("layer_replication", none.clone()),
        ("num_experts", none.clone()),
        ("num_local_experts", none),
        ("is_causal", json!(true)),
    ])
}
