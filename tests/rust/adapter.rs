//! Adapters against what PEFT computes with the same files, and the registry's promises.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use candlewick::adapter::{AdapterChoice, AdapterFile, AdapterRegistry, code, resolve};
use candlewick::nn::AdapterSet;
use candlewick::{Error, GenerationOptions, Generator, Model};

use crate::fixtures::{base, directories, golden, json, max_difference, prompts, tensors};

/// PEFT and candlewick add the same numbers in different orders.
const TOLERANCE: f32 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    golden().join("adapters").join(name)
}

/// Every adapter that must load.
fn cases() -> Vec<PathBuf> {
    let all = directories(&golden().join("adapters"));
    let cases: Vec<_> = all.into_iter().filter(|path| path.join("expected.safetensors").exists()).collect();
    assert!(cases.len() > 20, "{cases:?}");
    cases
}

fn base_name(case: &Path) -> String {
    let config = json(case.join("adapter_config.json"));
    let name = config.get("base_model_name_or_path").or(config.get("model")).unwrap();
    name.as_str().unwrap().to_owned()
}

fn registry(model: &Model) -> AdapterRegistry {
    AdapterRegistry::new(model, 16)
}

/// A model with one fixture loaded under its own name.
fn loaded(name: &str) -> (Model, AdapterRegistry, Arc<AdapterSet>) {
    let model = base(&base_name(&fixture(name)));
    let registry = registry(&model);
    registry.load(name, fixture(name).to_str().unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let set = registry.get(name).unwrap();
    (model, registry, set)
}

fn code_of<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result {
        Err(Error::InvalidAdapter { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn logits_equal_those_of_peft_attached_and_merged() {
    for case in cases() {
        let name = case.file_name().unwrap().to_str().unwrap();
        let (model, _, set) = loaded(name);
        let expected = tensors(case.join("expected.safetensors"));
        let prompts = prompts(&expected);
        assert!(prompts.len() > 2);
        let attached = model.logits(&prompts, Some(&set)).unwrap();
        let merged = model.merged(&set).unwrap().logits(&prompts, None).unwrap();
        for (index, (attached, merged)) in attached.iter().zip(&merged).enumerate() {
            let worst = max_difference(attached, &expected[&format!("attached_{index}")]);
            assert!(worst < TOLERANCE, "{name}, prompt {index}, attached: {worst}");
            let reference = expected.get(&format!("merged_{index}")).unwrap_or(attached);
            let worst = max_difference(merged, reference);
            assert!(worst < 2.0 * TOLERANCE, "{name}, prompt {index}, merged: {worst}");
        }
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    for case in cases() {
        let name = case.file_name().unwrap().to_str().unwrap();
        let (model, registry, _) = loaded(name);
        let room = tempfile::tempdir().unwrap();
        AdapterFile::read(&case).unwrap().write(room.path()).unwrap();
        let again = registry.load("again", room.path().to_str().unwrap()).unwrap();
        let first = registry.info(name).unwrap();
        assert_eq!(again.generation, first.generation, "{name}");
        let ids = [vec![1, 2, 3]];
        let logits = |name| model.logits(&ids, Some(&registry.get(name).unwrap())).unwrap().remove(0);
        assert_eq!(max_difference(&logits(name), &logits("again")), 0.0, "{name}");
    }
}

#[test]
fn what_is_written_for_mlx_is_what_mlx_wrote() {
    let room = tempfile::tempdir().unwrap();
    for name in ["mlx-llama", "mlx-qwen2-dora", "mlx-qwen2-last"] {
        AdapterFile::read(&fixture(name)).unwrap().write_mlx(room.path()).unwrap();
        let (wanted, found) =
            (json(fixture(name).join("adapter_config.json")), json(room.path().join("adapter_config.json")));
        assert_eq!(found["fine_tune_type"], wanted["fine_tune_type"]);
        assert_eq!(found["model"], wanted["model"]);
        for field in ["rank", "scale", "dropout"] {
            assert_eq!(found["lora_parameters"][field].as_f64(), wanted["lora_parameters"][field].as_f64());
        }
        let keys = |config: &serde_json::Value| {
            let keys = config["lora_parameters"]["keys"].as_array().unwrap().iter();
            keys.map(|key| key.as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(keys(&found), keys(&wanted));
        let wanted = tensors(fixture(name).join("adapters.safetensors"));
        let found = tensors(room.path().join("adapters.safetensors"));
        assert_eq!(found.len(), wanted.len());
        for (name, tensor) in wanted {
            assert_eq!(max_difference(&found[&name], &tensor), 0.0, "{name}");
        }
    }
    for name in ["qwen2-patterns", "qwen2-bias", "qwen3-head", "llama-lora-bias"] {
        let refused = AdapterFile::read(&fixture(name)).unwrap().write_mlx(&room.path().join(name));
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })), "{name}");
        assert!(!room.path().join(name).exists());
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_code() {
    let model = base("qwen2/tied");
    let registry = registry(&model);
    let reasons = json(fixture("refused/reasons.json"));
    let expected = |name: &str| match name {
        "bad-config" | "rank-zero" => code::INVALID_CONFIG,
        "config-peft_type" => code::UNSUPPORTED_KIND,
        name if name.starts_with("config-") => code::UNSUPPORTED_OPTION,
        name if name.starts_with("init-") => code::BASE_CHANGED,
        "empty-file" | "no-tensors" => code::EMPTY,
        "extra-key" | "unknown-key" | "unknown-layer" => code::UNKNOWN_KEY,
        "missing-module" => code::MISSING_TENSOR,
        "missing-pair" => code::MISSING_PAIR,
        "no-config" => code::MISSING_CONFIG,
        "no-target" => code::UNKNOWN_TARGET,
        "no-weights" => code::MISSING_WEIGHTS,
        "not-finite" => code::NOT_FINITE,
        "rank-differs" | "wrong-shape" => code::SHAPE_MISMATCH,
        "truncated" | "wrong-dtype" => code::INVALID_WEIGHTS,
        other => panic!("{other} is a new kind of refusal"),
    };
    let reasons = reasons.as_object().unwrap();
    assert!(reasons.len() > 25);
    for name in reasons.keys() {
        let path = fixture("refused").join(name);
        let result = registry.load("x", path.to_str().unwrap());
        assert_eq!(code_of(result), expected(name), "{name}");
        assert!(registry.names().is_empty(), "{name} left something behind");
    }
}

#[test]
fn a_refused_replacement_leaves_the_old_version() {
    let (_, registry, set) = loaded("qwen2-qv");
    let refused = fixture("refused/wrong-shape");
    assert_eq!(code_of(registry.load("qwen2-qv", refused.to_str().unwrap())), code::SHAPE_MISMATCH);
    assert!(Arc::ptr_eq(&set, &registry.get("qwen2-qv").unwrap()));
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let model = base("llama/llama3");
    let path = fixture("qwen3-all-linear");
    assert_eq!(code_of(registry(&model).load("x", path.to_str().unwrap())), code::SHAPE_MISMATCH);
}

#[test]
fn a_copied_base_weight_must_be_the_models_own() {
    let case = fixture("llama-embed");
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("adapter_config.json"), other.path().join("adapter_config.json")).unwrap();
    let mut all = tensors(case.join("adapter_model.safetensors"));
    let name = "base_model.model.model.embed_tokens.base_layer.weight";
    let changed = (&all[name] * 1.1).unwrap();
    all.insert(name.to_owned(), changed);
    candle_core::safetensors::save(&all, other.path().join("adapter_model.safetensors")).unwrap();
    let model = base(&base_name(&case));
    assert_eq!(code_of(registry(&model).load("x", other.path().to_str().unwrap())), code::BASE_CHANGED);
}

#[test]
fn a_batch_of_several_adapters_equals_its_members_alone() {
    let (model, registry, first) = loaded("llama-rslora");
    registry.load("embed", fixture("llama-embed").to_str().unwrap()).unwrap();
    registry.load("head", fixture("llama-head-lora").to_str().unwrap()).unwrap();
    let generator = Generator::new(&model);
    let options =
        GenerationOptions { max_new_tokens: 12, ignore_eos: true, logprobs: 1, ..Default::default() };
    let adapters =
        [None, Some(first), Some(registry.get("embed").unwrap()), Some(registry.get("head").unwrap()), None];
    let prompt = |index: u32| vec![3 + index, 7, 11 * index].into();
    let alone: Vec<_> = (0..)
        .zip(&adapters)
        .map(|(index, adapter)| generator.generate(&prompt(index), &options, adapter.clone()).unwrap())
        .collect();
    let streams: Vec<_> = (0..)
        .zip(&adapters)
        .map(|(index, adapter)| generator.start(&prompt(index), &options, adapter.clone()).unwrap())
        .collect();
    for (stream, alone) in streams.into_iter().zip(&alone) {
        assert_eq!(stream.wait().unwrap().token_ids, alone.token_ids);
    }
    let outputs: std::collections::HashSet<_> = alone.iter().map(|alone| alone.token_ids.clone()).collect();
    assert_eq!(outputs.len(), alone.len());
    assert_eq!(alone[1].adapter.as_deref(), Some("llama-rslora"));
}

#[test]
fn a_request_keeps_the_version_it_started_with() {
    let (model, registry, _) = loaded("qwen2-qv");
    registry.activate("qwen2-qv").unwrap();
    let generator = Generator::new(&model);
    let options = GenerationOptions { max_new_tokens: 60, ignore_eos: true, ..Default::default() };
    let choose = |choice| resolve(&model, &choice).unwrap();
    let before = generator.generate(&vec![5].into(), &options, choose(AdapterChoice::Active)).unwrap();
    let stream = generator.start(&vec![5].into(), &options, choose(AdapterChoice::Active)).unwrap();
    registry.load("qwen2-qv", fixture("qwen2-bias").to_str().unwrap()).unwrap();
    let replaced = generator.generate(&vec![5].into(), &options, choose(AdapterChoice::Active)).unwrap();
    registry.unload("qwen2-qv").unwrap();
    assert_eq!(stream.wait().unwrap().token_ids, before.token_ids);
    assert_ne!(replaced.token_ids, before.token_ids);
    assert!(choose(AdapterChoice::Active).is_none());
}

#[test]
fn the_registry_is_shared_and_knows_what_is_active() {
    let (model, registry, set) = loaded("qwen2-qv");
    let other = AdapterRegistry::new(&model.clone(), 2);
    assert_eq!(other.names(), ["qwen2-qv"]);
    assert!(matches!(other.activate("nobody"), Err(Error::InvalidArgument { .. })));
    other.activate("qwen2-qv").unwrap();
    assert_eq!(registry.active().as_deref(), Some("qwen2-qv"));
    let chosen = resolve(&model, &AdapterChoice::Active).unwrap().unwrap();
    assert!(Arc::ptr_eq(&chosen, &set));
    assert!(resolve(&model, &AdapterChoice::Bare).unwrap().is_none());
    other.load("second", fixture("qwen2-bias").to_str().unwrap()).unwrap();
    {
        let _using = registry.using("second").unwrap();
        assert_eq!(other.active().as_deref(), Some("second"));
    }
    assert_eq!(registry.active().as_deref(), Some("qwen2-qv"));
    assert_eq!(code_of(other.load("third", fixture("qwen2-qv").to_str().unwrap())), code::TOO_MANY);
    registry.unload("qwen2-qv").unwrap();
    assert_eq!((registry.active(), registry.names()), (None, vec!["second".to_owned()]));
    assert!(matches!(registry.unload("qwen2-qv"), Err(Error::InvalidArgument { .. })));
    let info = registry.info("second").unwrap();
    assert_eq!((info.rank, info.alpha, info.base_model.as_deref()), (3, 6.0, Some("qwen2/tied")));
    assert_eq!(info.target_modules, ["o_proj", "q_proj"]);
}

#[test]
fn generations_follow_the_content() {
    let (_, registry, _) = loaded("qwen2-qv");
    let first = registry.info("qwen2-qv").unwrap().generation;
    registry.load("same", fixture("qwen2-qv").to_str().unwrap()).unwrap();
    assert_eq!(registry.info("same").unwrap().generation, first);
    assert_eq!(first, 13_472_896_756_337_243_650, "the hash of the same content never changes");
    let room = tempfile::tempdir().unwrap();
    let weights = "adapter_model.safetensors";
    std::fs::copy(fixture("qwen2-qv").join(weights), room.path().join(weights)).unwrap();
    let mut config = json(fixture("qwen2-qv").join("adapter_config.json"));
    config["lora_alpha"] = 7.into();
    std::fs::write(room.path().join("adapter_config.json"), config.to_string()).unwrap();
    let scaled = registry.load("scaled", room.path().to_str().unwrap()).unwrap();
    assert_ne!(scaled.generation, first);
}

/// `logits(bare) + Σ weight · (logits(adapter) − logits(bare))` holds for a change of the head alone.
#[test]
fn a_combination_is_the_weighted_sum_of_the_changes() {
    for names in [
        ["qwen2-qv", "qwen2-bias", "qwen2-dora"].as_slice(),
        &["llama-rslora", "llama-head-lora", "llama-embed"],
        &["llama-bias", "llama-lora-bias"],
        &["qwen2-qv", "mlx-qwen2-dora"],
    ] {
        let (model, registry, _) = loaded(names[0]);
        for name in &names[1..] {
            registry.load(name, fixture(name).to_str().unwrap()).unwrap();
        }
        let weights: Vec<(String, f64)> =
            names.iter().zip([0.7, -0.4, 1.3]).map(|(name, weight)| ((*name).to_owned(), weight)).collect();
        let info = registry.combine("sum", &weights).unwrap();
        let sum = registry.get("sum").unwrap();
        assert_ne!(info.generation, 0);
        check_layers(&model, &sum, &weights, &registry);
    }
}

/// Compares merged weights and biases layer by layer, and the attached sum with the merged one.
fn check_layers(model: &Model, sum: &AdapterSet, weights: &[(String, f64)], registry: &AdapterRegistry) {
    let bare = |path: &str| -> (Tensor, Option<Tensor>) {
        let mut found = None;
        model.decoder().linears(&mut |linear| {
            if linear.path() == path {
                found = Some((
                    linear.weight().dequantize(candle_core::DType::F32).unwrap(),
                    linear.bias().cloned(),
                ));
            }
        });
        let embedding = || model.decoder().embedding().weight().dequantize(candle_core::DType::F32).unwrap();
        found.unwrap_or_else(|| (embedding(), None))
    };
    for (path, layer) in sum.iter() {
        let (weight, bias) = bare(path);
        let base = candlewick::weight::DenseWeight::new(weight.clone()).unwrap();
        let (mut expected, mut shift) = (weight.clone(), bias.clone());
        for (name, factor) in weights {
            let set = registry.get(name).unwrap();
            let Some(part) = set.get(path) else { continue };
            let change = (part.merged(&base).unwrap() - &weight).unwrap();
            expected = (expected + (change * *factor).unwrap()).unwrap();
            if let Some(new) = part.bias(bias.as_ref()).unwrap() {
                let old = bias.clone().unwrap_or_else(|| new.zeros_like().unwrap());
                let change = ((new - &old).unwrap() * *factor).unwrap();
                shift = Some((shift.unwrap_or(old) + change).unwrap());
            }
        }
        assert!(max_difference(&layer.merged(&base).unwrap(), &expected) < 1e-5, "{path}");
        if let Some(shift) = shift.filter(|_| layer.bias(bias.as_ref()).unwrap().is_some()) {
            let own = layer.bias(bias.as_ref()).unwrap().unwrap();
            assert!(max_difference(&own, &shift) < 1e-5, "{path}");
        }
    }
    let ids = [vec![1, 2, 3, 4, 5]];
    let attached = model.logits(&ids, Some(&registry.get("sum").unwrap())).unwrap();
    let merged = model.merged(sum).unwrap().logits(&ids, None).unwrap();
    assert!(max_difference(&attached[0], &merged[0]) < 5e-4);
}

#[test]
fn a_thousand_swaps_leave_nothing_behind() {
    let (model, registry, set) = loaded("qwen2-qv");
    let file = AdapterFile::read(&fixture("qwen2-bias")).unwrap();
    for _ in 0..1000 {
        registry.add("swapped", &file).unwrap();
        registry.activate("swapped").unwrap();
        registry.activate("qwen2-qv").unwrap();
    }
    assert_eq!(registry.names().len(), 2);
    assert_eq!(Arc::strong_count(&registry.get("swapped").unwrap()), 2);
    assert!(Arc::ptr_eq(&resolve(&model, &AdapterChoice::Active).unwrap().unwrap(), &set));
}
