//! MPNet: a relative position bias that all layers share, positions that begin after padding, no segments.

use super::encoder;
use super::fields::Fields;
use crate::Result;
use crate::nn::{EncoderConfig, EncoderNames, Projections};

pub(super) use super::encoder::two_layer_head as classifier;

/// The id of the padding token, which the family fixes.
const PADDING: u32 = 1;

pub(super) fn config(fields: &Fields) -> Result<EncoderConfig> {
    let names = EncoderNames {
        projections: Projections::Separate(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
        output: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        ..encoder::NAMES
    };
    let mut config = encoder::common(fields, names)?;
    let field = "relative_attention_num_buckets";
    config.relative_buckets = fields.size_or(field, 32)?;
    if config.relative_buckets % 4 != 0 {
        let reason = format!("got {}, expected a multiple of 4", config.relative_buckets);
        return Err(fields.error(field, reason));
    }
    encoder::count_after_padding(&mut config, fields, PADDING)?;
    Ok(config)
}
