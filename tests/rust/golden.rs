//! Decoder checkpoints against what transformers computes for them (tests/golden/README.md).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candlewick::batch::Batch;
use candlewick::nn::Pass;
use candlewick::{LoadOptions, Model};

use crate::fixtures::{device, max_difference, rounding};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Every `<family>/<case>` directory that holds a decoder checkpoint with expectations.
fn cases() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for architecture in candlewick::models::ARCHITECTURES {
        let family = golden().join(architecture.model_type);
        let entries =
            std::fs::read_dir(&family).unwrap_or_else(|error| panic!("{}: {error}", family.display()));
        let before = found.len();
        found.extend(
            entries
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.join("expected.safetensors").exists()),
        );
        assert!(found.len() > before, "{} has no golden fixture", architecture.model_type);
    }
    found.sort();
    found
}

fn load(case: &Path) -> Model {
    let options = LoadOptions { device: device(), ..LoadOptions::default() };
    Model::load(case.to_str().unwrap(), &options)
        .unwrap_or_else(|error| panic!("{}: {error}", case.display()))
}

struct Expected(HashMap<String, Tensor>);

impl Expected {
    fn read(case: &Path) -> Self {
        Self(candle_core::safetensors::load(case.join("expected.safetensors"), &Device::Cpu).unwrap())
    }

    fn ids(&self, kind: &str, index: usize) -> Vec<u32> {
        let ids: Vec<i64> = self.0[&format!("{kind}_{index}")].to_vec1().unwrap();
        ids.into_iter().map(|id| id as u32).collect()
    }

    fn prompts(&self) -> Vec<Vec<u32>> {
        (0..)
            .take_while(|index| self.0.contains_key(&format!("input_ids_{index}")))
            .map(|index| self.ids("input_ids", index))
            .collect()
    }

    fn tensor(&self, kind: &str, index: usize) -> &Tensor {
        &self.0[&format!("{kind}_{index}")]
    }
}

/// Absolute tolerance on logits: f32 agrees to rounding, a 16-bit type at least as well as transformers does in it, or
/// about as well where activations are of that type too.
fn tolerance(model: &Model, expected: &Expected, index: usize) -> f32 {
    match expected.0.get(&format!("native_logits_{index}")) {
        Some(native) => {
            let native = native.to_dtype(DType::F32).unwrap();
            let own = max_difference(&native, expected.tensor("logits", index)).max(1e-3);
            if device() == "cpu" { own } else { 2.0 * own }
        }
        None => {
            assert_eq!(model.dtype(), DType::F32);
            1e-4
        }
    }
}

#[test]
fn logits_and_hidden_states_equal_the_reference() {
    for case in cases() {
        let (model, expected) = (load(&case), Expected::read(&case));
        let prompts = expected.prompts();
        assert!(prompts.len() > 1, "{}", case.display());
        let (logits, hidden) =
            (model.logits(&prompts, None).unwrap(), model.hidden_states(&prompts, None).unwrap());
        for (index, (logits, hidden)) in logits.iter().zip(&hidden).enumerate() {
            let worst = max_difference(logits, expected.tensor("logits", index));
            assert!(
                worst <= tolerance(&model, &expected, index),
                "{} prompt {index}: logits differ by {worst}",
                case.display()
            );
            let worst = max_difference(hidden, expected.tensor("hidden", index));
            assert!(
                worst <= tolerance(&model, &expected, index),
                "{} prompt {index}: hidden states differ by {worst}",
                case.display()
            );
        }
    }
}

#[test]
fn a_batch_equals_its_members_alone() {
    for case in cases() {
        let (model, prompts) = (load(&case), Expected::read(&case).prompts());
        let together = model.logits(&prompts, None).unwrap();
        for (prompt, together) in prompts.iter().zip(&together) {
            let alone = &model.logits(&[prompt], None).unwrap()[0];
            assert!(max_difference(alone, together) <= rounding(model.dtype()), "{}", case.display());
        }
    }
}

#[test]
fn later_tokens_never_change_earlier_results() {
    for case in cases().into_iter().filter(|case| !case.ends_with("dynamic")) {
        let (model, prompts) = (load(&case), Expected::read(&case).prompts());
        let longest = prompts.iter().max_by_key(|prompt| prompt.len()).unwrap();
        let cut = longest.len() / 2;
        let whole = &model.logits(&[longest], None).unwrap()[0];
        let head = &model.logits(&[&longest[..cut]], None).unwrap()[0];
        let worst = max_difference(head, &whole.narrow(0, 0, cut).unwrap());
        assert!(worst <= rounding(model.dtype()), "{}: {worst}", case.display());
    }
}

/// Greedy continuation of several prompts in one batch, with caches; the prompt goes in in chunks.
fn continue_greedily(model: &Model, prompts: &[Vec<u32>], steps: usize, chunk: usize) -> Vec<Vec<u32>> {
    let mut caches: Vec<_> = prompts.iter().map(|_| model.decoder().new_cache()).collect();
    let mut outputs = vec![Vec::new(); prompts.len()];
    let mut fed = vec![0; prompts.len()];
    while outputs.iter().any(|output| output.len() < steps) {
        let mut batch = Batch::new();
        for (index, prompt) in prompts.iter().enumerate() {
            if fed[index] < prompt.len() {
                let end = prompt.len().min(fed[index] + chunk);
                batch.push_part(&prompt[fed[index]..end], fed[index], prompt.len());
                fed[index] = end;
            } else {
                batch.push(&[*outputs[index].last().unwrap()], fed[index]);
                fed[index] += 1;
            }
        }
        let mut pass = Pass::with_caches(&batch, caches.iter_mut().collect());
        let hidden = model.forward(&mut pass).unwrap();
        let logits = model.head(&hidden, &pass).unwrap();
        for (index, prompt) in prompts.iter().enumerate() {
            if fed[index] >= prompt.len() {
                let row = logits.get(batch.rows(index).end - 1).unwrap();
                outputs[index].push(row.argmax(0).unwrap().to_scalar::<u32>().unwrap());
            }
        }
    }
    outputs.iter_mut().for_each(|output| output.truncate(steps));
    outputs
}

#[test]
fn cached_greedy_tokens_equal_the_reference() {
    for case in cases() {
        let (model, expected) = (load(&case), Expected::read(&case));
        if model.dtype() == DType::BF16 {
            continue; // The ids are those of f32 arithmetic; rounding may choose others.
        }
        let prompts = expected.prompts();
        for chunk in [usize::MAX, 5] {
            let outputs = continue_greedily(&model, &prompts, 24, chunk.min(1 << 20));
            for (index, output) in outputs.iter().enumerate() {
                assert_eq!(
                    *output,
                    expected.ids("greedy", index),
                    "{} prompt {index}, chunk {chunk}",
                    case.display()
                );
            }
        }
    }
}

#[test]
fn a_sequence_computed_in_parts_equals_the_whole() {
    // The fixture with a longer context: its weights know nothing of positions.
    let (source, copy) = (golden().join("qwen3/tied"), tempfile::tempdir().unwrap());
    std::fs::copy(source.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = 2048.into();
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    let model = load(copy.path());
    let ids: Vec<u32> = (0..700).map(|i| (i * 37 % 90) as u32).collect();
    let whole = {
        let batch = Batch::from_sequences(&[&ids]);
        model.forward(&mut Pass::new(&batch)).unwrap()
    };
    let parts = &model.hidden_states(&[&ids], None).unwrap()[0];
    assert!(max_difference(parts, &whole) <= rounding(model.dtype()));
}
