//! RoBERTa and XLM-RoBERTa: positions count from the padding token's id on, one kind of segment.

use super::encoder;
use super::fields::Fields;
use crate::Result;
use crate::nn::EncoderConfig;

pub(super) use super::encoder::two_layer_head as classifier;

pub(super) fn config(fields: &Fields) -> Result<EncoderConfig> {
    let mut config = encoder::common(fields, encoder::NAMES)?;
    config.token_types = fields.size_or("type_vocab_size", 1)?;
    let padding = fields.count("pad_token_id")?.unwrap_or(1);
    encoder::count_after_padding(&mut config, fields, padding as u32)?;
    Ok(config)
}
