//! BERT, and with it MiniLM, E5, BGE and GTE: segments, learned positions, a pooler before the classifier.

use super::classifier::ClassifierConfig;
use super::encoder;
use super::fields::Fields;
use crate::Result;
use crate::kernels::gated_act::Activation;
use crate::nn::EncoderConfig;

pub(super) fn config(fields: &Fields) -> Result<EncoderConfig> {
    let mut config = encoder::common(fields, encoder::NAMES)?;
    config.token_types = fields.size_or("type_vocab_size", 2)?;
    Ok(config)
}

pub(super) fn classifier(fields: &Fields) -> Result<ClassifierConfig> {
    Ok(ClassifierConfig {
        dense: "pooler.dense",
        dense_in_backbone: true,
        dense_bias: true,
        activation: Activation::Tanh,
        norm: None,
        output: "classifier",
        mean: false,
        labels: encoder::labels(fields)?,
    })
}
