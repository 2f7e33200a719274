//! Qwen3: norms on the queries and keys of each head, an explicit head dimension, biases only if asked for.

use super::decoder::{common, refuse_unsupported};
use super::fields::Fields;
use super::qwen2;
use crate::Result;
use crate::nn::DecoderConfig;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    refuse_unsupported(fields)?;
    let mut config = common(fields, Some(128))?;
    config.qk_norm = true;
    config.qkv_bias = fields.flag_or("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.windows = qwen2::windows(fields, config.windows.len())?;
    Ok(config)
}
