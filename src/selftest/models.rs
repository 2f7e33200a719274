//! The bundled model as a whole: what a device computes against what the CPU computes.

use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::tiny;
use crate::adapter::{LoraConfig, Modules};
use crate::embed::{Embedder, EmbedderOptions, EncodeOptions, Watch};
use crate::train::{Trainer, TrainerOptions, TrainingData};
use crate::{GenerationOptions, Generator, LoadOptions, Result};

/// What to compute, for a device.
type Compute = fn(&LoadOptions) -> Result<Vec<Tensor>>;

/// Every check: its name, and which differences are rounding.
pub(super) const CHECKS: &[(&str, f32, Compute)] = &[
    ("model: logits of a mixed batch", 1e-4, logits),
    ("model: 24 greedy tokens of three prompts", 0.0, tokens),
    ("model: embeddings", 1e-4, embeddings),
    // The CPU rounds activations to eight bits as well.
    ("model: logits, weights in q8_0", 3e-2, quantised),
    ("model: two training steps", 1e-3, training),
];

const TEXTS: [&str; 4] =
    ["Once upon a time", "The dog ran home and slept.", "Bread", "What is the capital of France? It is"];

fn prompts(options: &LoadOptions) -> Result<(crate::Model, Vec<Vec<u32>>)> {
    let model = tiny(options)?;
    let ids = TEXTS.iter().map(|text| model.tokenizer()?.encode(text, true)).collect::<Result<_>>()?;
    Ok((model, ids))
}

fn logits(options: &LoadOptions) -> Result<Vec<Tensor>> {
    let (model, ids) = prompts(options)?;
    model.logits(&ids, None)
}

fn quantised(options: &LoadOptions) -> Result<Vec<Tensor>> {
    let (model, ids) = prompts(&LoadOptions { quantize: Some("q8_0".into()), ..options.clone() })?;
    model.logits(&ids, None)
}

fn tokens(options: &LoadOptions) -> Result<Vec<Tensor>> {
    let model = tiny(options)?;
    let generator = Generator::new(&model);
    let options =
        GenerationOptions { max_new_tokens: 24, temperature: Some(0.0), ..GenerationOptions::default() };
    let run = |text: &&str| {
        let ids: Vec<f32> = generator
            .stream(&(*text).into(), &options, None)?
            .map(|token| Ok(token?.token_id as f32))
            .collect::<Result<_>>()?;
        Ok(Tensor::new(ids, &Device::Cpu)?)
    };
    TEXTS[..3].iter().map(run).collect()
}

fn embeddings(options: &LoadOptions) -> Result<Vec<Tensor>> {
    let options = EmbedderOptions { load: options.clone(), ..EmbedderOptions::default() };
    let embedder = Embedder::load(crate::models::BUNDLED, &options)?;
    let vectors = embedder.encode(&TEXTS, &EncodeOptions::default(), Watch::NONE)?;
    Ok(vec![Tensor::from_vec(vectors.values, (vectors.rows, vectors.dim), &Device::Cpu)?])
}

fn training(options: &LoadOptions) -> Result<Vec<Tensor>> {
    let rows = TEXTS.iter().map(|text| json!({ "text": text })).collect();
    let lora = LoraConfig { rank: 4, target_modules: Modules::AllLinear, ..LoraConfig::default() };
    let settings = TrainerOptions {
        lora,
        learning_rate: 1e-2,
        max_steps: Some(2),
        shuffle: false,
        ..Default::default()
    };
    let mut trainer = Trainer::new(&tiny(options)?, TrainingData::Rows(rows), None, settings)?;
    let never = AtomicBool::new(false);
    let mut found = Vec::new();
    while let Some(metrics) = trainer.next_step(&never) {
        let metrics = metrics?;
        found.push(Tensor::new(&[metrics.loss as f32, metrics.grad_norm as f32], &Device::Cpu)?);
    }
    for value in trainer.adapter()?.tensors().values() {
        found.push(value.to_device(&Device::Cpu)?.to_dtype(DType::F32)?);
    }
    Ok(found)
}
