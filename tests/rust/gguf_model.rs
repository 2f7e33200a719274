//! Models from GGUF files: the numbers of the checkpoints they were made from.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candlewick::checkpoint::gguf::GgufEntry;
use candlewick::{LoadOptions, Model};

use crate::gguf::{Copy, golden};

pub(crate) fn load(path: &str, dtype: &str) -> Model {
    let options =
        LoadOptions { device: crate::fixtures::device(), dtype: dtype.into(), ..LoadOptions::default() };
    Model::load(golden(path).to_str().unwrap(), &options).unwrap()
}

pub(crate) fn expected(checkpoint: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(checkpoint).join("expected.safetensors"), &Device::Cpu).unwrap()
}

pub(crate) fn prompts(expected: &HashMap<String, Tensor>) -> Vec<Vec<u32>> {
    let ids = |tensor: &Tensor| tensor.to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect();
    (0..).map_while(|index| Some(ids(expected.get(&format!("input_ids_{index}"))?))).collect()
}

pub(crate) fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b.to_dtype(DType::F32).unwrap()).unwrap().abs().unwrap();
    difference.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn logits_are_those_of_the_checkpoint() {
    let cases = [
        ("plain", "llama/plain", 1e-4),
        ("bias", "llama/bias", 1e-4),
        ("linear", "llama/linear", 1e-4),
        ("llama3", "llama/llama3", 1e-4),
        ("yarn", "qwen2/yarn", 1e-4),
        ("bf16", "qwen2/bf16", 2e-1),
        ("split-00002-of-00003", "qwen3/untied", 2e-2),
    ];
    for (name, checkpoint, tolerance) in cases {
        let (model, expected) = (load(&format!("gguf/{name}.gguf"), "auto"), expected(checkpoint));
        let prompts = prompts(&expected);
        assert!(prompts.len() > 1);
        for (index, logits) in model.logits(&prompts, None).unwrap().iter().enumerate() {
            let worst = difference(logits, &expected[&format!("logits_{index}")]);
            assert!(worst <= tolerance, "{name} prompt {index}: logits differ by {worst}");
        }
    }
}

#[test]
fn quantised_tensors_stay_quantised_and_compute_what_llama_cpp_does() {
    for (name, checkpoint, bytes_per_value) in [("q8_0", "llama/llama3", 1.4), ("q4_0", "qwen2/tied", 1.0)] {
        let kept = load(&format!("gguf/{name}.gguf"), "auto");
        assert!((kept.size_in_bytes() as f64) < bytes_per_value * kept.num_parameters() as f64, "{name}");
        let decoded = load(&format!("gguf/{name}.gguf"), "float32");
        assert!(decoded.size_in_bytes() >= 4 * decoded.num_parameters());
        let path = golden(&format!("gguf/{name}.logits.safetensors"));
        let theirs = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let prompts = prompts(&expected(checkpoint));
        let (ours, decoded) = (kept.logits(&prompts, None).unwrap(), decoded.logits(&prompts, None).unwrap());
        for (index, (ours, decoded)) in ours.iter().zip(&decoded).enumerate() {
            let theirs = &theirs[&format!("logits_{index}")];
            // Rows without whole blocks are f16 in these files, where llama.cpp rounds activations to f16; that pushes
            // some to the next code in the layers behind.
            let (apart, rounding) = (difference(ours, theirs), difference(decoded, theirs));
            assert!(apart <= 0.6 * rounding, "{name} prompt {index}: {apart}, without codes {rounding}");
        }
    }
}

#[test]
fn a_bad_value_is_blamed_on_the_file_that_has_it() {
    let source = crate::gguf::open("yarn");
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("bad.gguf");
    let copy = Copy::of(&source).set("qwen2.rope.freq_base", GgufEntry::F32(-1.0));
    copy.write(&path).unwrap();
    let error = Model::load(path.to_str().unwrap(), &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("bad.gguf") && error.contains("rope_theta"), "{error}");
}
