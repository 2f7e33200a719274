//! Qwen2, Qwen2.5 and Qwen2.5-Coder: biases on q, k and v; sliding windows in the upper layers if asked for.

use super::decoder::{common, refuse_unsupported};
use super::fields::Fields;
use crate::Result;
use crate::nn::DecoderConfig;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    refuse_unsupported(fields)?;
    let mut config = common(fields, None)?;
    config.qkv_bias = true;
    config.windows = windows(fields, config.windows.len())?;
    Ok(config)
}

/// The rule that this family and its successor share.
pub(super) fn windows(fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = if fields.flag_or("use_sliding_window", false)? {
        Some(fields.size_or("sliding_window", 4096)?)
    } else {
        None
    };
    let first_sliding = fields.count("max_window_layers")?.unwrap_or(28);
    fields.windows(layers, window, |layer| layer >= first_sliding)
}
