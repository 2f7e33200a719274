//! Llama 2, 3, 3.1 and later text models, and the many checkpoints of the same shape.

use super::decoder::{common, refuse_unsupported};
use super::fields::Fields;
use crate::Result;
use crate::nn::DecoderConfig;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    refuse_unsupported(fields)?;
    let mut config = common(fields, None)?;
    // Not known to this family, but to relatives that call themselves by its name.
    config.windows = fields.windows(config.windows.len(), fields.count("sliding_window")?, |_| false)?;
    config.qkv_bias = fields.flag_or("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.mlp_bias = fields.flag_or("mlp_bias", false)?;
    Ok(config)
}
