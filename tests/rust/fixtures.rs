//! Reading the committed fixtures of `tests/golden`, for the tests of adapters and training.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candlewick::{LoadOptions, Model};

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The device that whole models are tested on: `CANDLEWICK_TEST_DEVICE`, or the CPU.
pub(crate) fn device() -> String {
    std::env::var("CANDLEWICK_TEST_DEVICE").unwrap_or_else(|_| "cpu".into())
}

/// What the order of a sum may change in results that are equal on the CPU, where each is always the same sum.
pub(crate) fn rounding(dtype: DType) -> f32 {
    match dtype {
        _ if device() == "cpu" => 0.0,
        DType::F32 => 1e-4,
        DType::F16 => 1e-2,
        _ => 1e-1,
    }
}

/// A golden checkpoint in f32, the precision in which expectations were computed.
pub(crate) fn base(name: &str) -> Model {
    let options = LoadOptions { device: device(), dtype: "float32".into(), ..LoadOptions::default() };
    Model::load(golden().join(name).to_str().unwrap(), &options)
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn json(path: impl AsRef<Path>) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) fn tensors(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// The directories below `directory`, sorted.
pub(crate) fn directories(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// `input_ids_0`, `input_ids_1`, …
pub(crate) fn prompts(expected: &HashMap<String, Tensor>) -> Vec<Vec<u32>> {
    let ids = |index: usize| {
        let ids: Vec<i64> = expected.get(&format!("input_ids_{index}"))?.to_vec1().unwrap();
        Some(ids.into_iter().map(|id| id as u32).collect())
    };
    (0..).map_while(ids).collect()
}

pub(crate) fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    let (a, b) = (a.to_device(&Device::Cpu).unwrap(), b.to_device(&Device::Cpu).unwrap());
    assert_eq!(a.dims(), b.dims());
    if a.elem_count() == 0 {
        return 0.0;
    }
    let difference = (a.to_dtype(DType::F32).unwrap() - b.to_dtype(DType::F32).unwrap()).unwrap();
    difference.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}
