//! Mistral: a sliding window in every layer unless the configuration sets it to null or names the layers that have it.

use super::decoder::{common, refuse_unsupported};
use super::fields::Fields;
use crate::Result;
use crate::nn::DecoderConfig;

/// The window of configurations that do not mention one.
const DEFAULT_WINDOW: usize = 4096;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    refuse_unsupported(fields)?;
    let mut config = common(fields, None)?;
    let window = if fields.mentions("sliding_window") {
        fields.count("sliding_window")?
    } else {
        Some(DEFAULT_WINDOW)
    };
    if window == Some(0) {
        return Err(fields.error("sliding_window", "got 0, expected at least 1 or null"));
    }
    config.windows = fields.windows(config.windows.len(), window, |_| true)?;
    Ok(config)
}
