//! NomicBERT: BERT with rotary positions and a gated feed-forward block, configured in two vocabularies.
//!
//! Its authors' repositories use the words of GPT-2 (`n_embd`, `n_layer`); transformers writes its usual ones.

use serde_json::json;

use super::encoder;
use super::fields::Fields;
use crate::Result;
use crate::kernels::gated_act::Activation;
use crate::kernels::rope::RopeStyle;
use crate::nn::{
    EncoderConfig, EncoderNames, FeedForwardNames, Positions, Projections, RopeConfig, RopeScaling,
};

const NAMES: EncoderNames = EncoderNames {
    embedding_norm: "emb_ln",
    layers: "encoder.layers",
    projections: Projections::Fused("attn.Wqkv"),
    output: "attn.out_proj",
    attention_norm: "norm1",
    feed_forward: FeedForwardNames::Gated(["mlp.fc12", "mlp.fc11", "mlp.fc2"]),
    feed_forward_norm: "norm2",
    ..encoder::NAMES
};

pub(super) fn config(fields: &Fields) -> Result<EncoderConfig> {
    refuse_relatives(fields)?;
    let word = |usual: &'static str, own: &'static str| if fields.mentions(own) { own } else { usual };
    let hidden_size = fields.size(word("hidden_size", "n_embd"))?;
    let heads = fields.size(word("num_attention_heads", "n_head"))?;
    if hidden_size % heads != 0 || (hidden_size / heads) % 2 != 0 {
        let reason = format!("got {hidden_size}, expected an even number for each of {heads} heads");
        return Err(fields.error(word("hidden_size", "n_embd"), reason));
    }
    let max_tokens = fields.size(word("max_position_embeddings", "n_positions"))?;
    let rope = rope(fields, hidden_size / heads, max_tokens)?;
    let layers = fields.layers(word("num_hidden_layers", "n_layer"))?;
    Ok(EncoderConfig {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size(word("intermediate_size", "n_inner"))?,
        heads,
        norm_eps: fields.positive_number_or(word("layer_norm_eps", "layer_norm_epsilon"), 1e-12)?,
        norm_bias: true,
        attention_bias: fields.flag_or("qkv_proj_bias", false)?,
        mlp_bias: fields.flag_or("mlp_fc1_bias", false)?,
        activation: activation(fields)?,
        pre_norm: false,
        positions: Positions::Rotary,
        token_types: fields.count("type_vocab_size")?.unwrap_or(2),
        relative_buckets: 0,
        max_tokens,
        windows: vec![None; layers],
        layer_ropes: vec![0; layers],
        ropes: vec![rope],
        names: NAMES,
    })
}

fn refuse_relatives(fields: &Fields) -> Result<()> {
    encoder::refuse_unsupported(fields)?;
    let no = json!(false);
    fields.refuse(&[
        ("causal", no.clone()),
        ("prenorm", no.clone()),
        ("parallel_block", no.clone()),
        ("use_rms_norm", no),
        ("moe_every_n_layers", json!(0)),
        ("rotary_emb_scale_base", json!(null)),
        ("rotary_scaling_factor", json!(null)),
    ])?;
    if fields.flag_or("mlp_fc1_bias", false)? != fields.flag_or("mlp_fc2_bias", false)? {
        return Err(fields.error("mlp_fc2_bias", "differs from mlp_fc1_bias, which is not supported"));
    }
    Ok(())
}

/// The activation of the gate, under either name.
fn activation(fields: &Fields) -> Result<Activation> {
    match fields.text("activation_function")? {
        None => fields.activation_or("hidden_act", "silu"),
        Some("swiglu") => Ok(Activation::Silu),
        Some("geglu") => Ok(Activation::Gelu),
        Some(other) => {
            let reason = format!("got {other:?}, expected \"swiglu\" or \"geglu\"");
            Err(fields.error("activation_function", reason))
        }
    }
}

fn rope(fields: &Fields, head_dim: usize, max_tokens: usize) -> Result<RopeConfig> {
    if !fields.mentions("rotary_emb_base") && !fields.mentions("rotary_emb_fraction") {
        let mut rope = fields.rope(head_dim, max_tokens, RopeStyle::HalfSplit)?;
        if fields.nested("rope_parameters")?.is_none() && !fields.mentions("rope_theta") {
            rope.theta = 1000.0;
        }
        return Ok(rope);
    }
    let field = "rotary_emb_fraction";
    let rotary_dim = (head_dim as f64 * fields.positive_number_or(field, 1.0)?) as usize;
    if rotary_dim < 2 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        return Err(fields.error(field, format!("rotates {rotary_dim} of {head_dim} dimensions")));
    }
    let interleaved = fields.flag_or("rotary_emb_interleaved", false)?;
    Ok(RopeConfig {
        theta: fields.positive_number_or("rotary_emb_base", 1000.0)?,
        rotary_dim,
        max_position_embeddings: max_tokens,
        scaling: RopeScaling::Default,
        style: if interleaved { RopeStyle::Interleaved } else { RopeStyle::HalfSplit },
    })
}
