//! Single operations and their gradients against torch and transformers (tests/golden/README.md).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use candlewick::kernels::attention::{AttentionArgs, KeyValues, attention, cached_attention};
use candlewick::kernels::cross_entropy::cross_entropy;
use candlewick::kernels::gated_act::{Activation, gated_act};
use candlewick::kernels::layer_norm::layer_norm;
use candlewick::kernels::rms_norm::{add_rms_norm, rms_norm};
use candlewick::kernels::rope::{RopeStyle, rope};
use serde_json::Value;

/// The fixtures.
struct Golden {
    cases: serde_json::Map<String, Value>,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/kernels");
        let text = std::fs::read_to_string(folder.join("cases.json")).unwrap();
        Self {
            cases: serde_json::from_str(&text).unwrap(),
            tensors: candle_core::safetensors::load(folder.join("kernels.safetensors"), &Device::Cpu)
                .unwrap(),
        }
    }

    /// The names of all cases of an operation, of which there must be some.
    fn cases(&self, operation: &str) -> Vec<&str> {
        let found: Vec<&str> =
            self.cases.keys().map(String::as_str).filter(|name| name.starts_with(operation)).collect();
        assert!(!found.is_empty(), "no fixture for {operation}");
        found
    }

    fn tensor(&self, case: &str, name: &str) -> &Tensor {
        &self.tensors[&format!("{case}.{name}")]
    }

    /// Fails unless `compute` of the trained `inputs` gives the fixture's result and gradients.
    fn check(&self, case: &str, inputs: &[&str], compute: impl Fn(&[Var]) -> Tensor) {
        let vars: Vec<Var> =
            inputs.iter().map(|name| Var::from_tensor(self.tensor(case, name)).unwrap()).collect();
        let result = compute(&vars);
        assert_close(&result, self.tensor(case, "result"), case);
        let grads = (&result * self.tensor(case, "grad")).unwrap().sum_all().unwrap().backward().unwrap();
        for (name, var) in inputs.iter().zip(&vars) {
            let got = grads.get(var).unwrap_or_else(|| panic!("{case}: no gradient for {name}"));
            assert_close(got, self.tensor(case, &format!("grad_{name}")), &format!("{case}, {name}"));
        }
    }
}

fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (i, (got, want)) in flat(got).into_iter().zip(flat(want)).enumerate() {
        assert!((got - want).abs() <= 2e-5 * want.abs().max(1.0), "{what}: {i}: got {got}, expected {want}");
    }
}

#[test]
fn attention_equals_torch() {
    let golden = Golden::read();
    for case in golden.cases("attention") {
        let parameters = &golden.cases[case];
        let offsets: Vec<usize> =
            parameters["offsets"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let bias = parameters["bias"].as_bool().unwrap().then(|| golden.tensor("attention", "bias"));
        let args = AttentionArgs {
            offsets: &offsets,
            scale: parameters["scale"].as_f64().unwrap() as f32,
            causal: parameters["causal"].as_bool().unwrap(),
            window: parameters["window"].as_u64().map(|n| n as usize),
            bias,
        };
        golden.check(case, &["q", "k", "v"], |x| attention(&x[0], &x[1], &x[2], &args).unwrap());
        if args.causal {
            check_decoding(&golden, case, &args);
        }
    }
}

/// The last query of every sequence, over a cache of its keys.
fn check_decoding(golden: &Golden, case: &str, args: &AttentionArgs) {
    let [q, k, v, result] = ["q", "k", "v", "result"].map(|name| golden.tensor(case, name));
    let sequences: Vec<(usize, usize)> = args.offsets.windows(2).map(|w| (w[0], w[1])).collect();
    let rows: Vec<u32> = sequences.iter().map(|&(_, end)| end as u32 - 1).collect();
    let rows = Tensor::new(rows, &Device::Cpu).unwrap();
    let stored: Vec<(Tensor, Tensor)> = sequences
        .iter()
        .map(|&(start, end)| {
            (k.narrow(0, start, end - start).unwrap(), v.narrow(0, start, end - start).unwrap())
        })
        .collect();
    let caches: Vec<KeyValues> = stored.iter().map(|(k, v)| KeyValues { k, v, len: k.dims()[0] }).collect();
    let offsets: Vec<usize> = (0..=sequences.len()).collect();
    let args = AttentionArgs { offsets: &offsets, ..*args };
    let got = cached_attention(&q.index_select(&rows, 0).unwrap(), &caches, &args).unwrap();
    assert_close(&got, &result.index_select(&rows, 0).unwrap(), &format!("{case}, decoding"));
}

#[test]
fn norms_equal_torch() {
    let golden = Golden::read();
    for case in golden.cases("rms_norm") {
        let eps = golden.cases[case]["eps"].as_f64().unwrap();
        golden.check(case, &["x", "weight"], |x| rms_norm(&x[0], &x[1], eps).unwrap());
        let weight = golden.tensor(case, "weight");
        golden.check(case, &["x"], |x| rms_norm(&x[0], weight, eps).unwrap());
        let half = (golden.tensor(case, "x") * 0.5).unwrap();
        let (sum, normed) = add_rms_norm(&half, &half, weight, eps).unwrap();
        assert_close(&sum, golden.tensor(case, "x"), case);
        assert_close(&normed, golden.tensor(case, "result"), case);
    }
    for case in golden.cases("layer_norm") {
        let eps = golden.cases[case]["eps"].as_f64().unwrap();
        let trained = |x: &[Var]| layer_norm(&x[0], &x[1], Some(&x[2]), eps).unwrap();
        golden.check(case, &["x", "weight", "bias"], trained);
        let (weight, bias) = (golden.tensor(case, "weight"), golden.tensor(case, "bias"));
        golden.check(case, &["x"], |x| layer_norm(&x[0], weight, Some(bias), eps).unwrap());
    }
}

#[test]
fn rotations_equal_transformers() {
    let golden = Golden::read();
    for case in golden.cases("rope") {
        let interleaved = golden.cases[case]["interleaved"].as_bool().unwrap();
        let style = if interleaved { RopeStyle::Interleaved } else { RopeStyle::HalfSplit };
        let (cos, sin) = (golden.tensor(case, "cos"), golden.tensor(case, "sin"));
        golden.check(case, &["x"], |x| rope(&x[0], cos, sin, style).unwrap());
    }
}

#[test]
fn activations_equal_transformers() {
    let golden = Golden::read();
    for case in golden.cases("gated") {
        let act = Activation::from_name(golden.cases[case]["act"].as_str().unwrap()).unwrap();
        golden.check(case, &["gate", "up"], |x| gated_act(&x[0], &x[1], act).unwrap());
    }
}

#[test]
fn cross_entropy_equals_torch() {
    let golden = Golden::read();
    for case in golden.cases("cross_entropy") {
        let parameters = &golden.cases[case];
        let labels: Vec<i64> =
            parameters["labels"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect();
        let smoothing = parameters["label_smoothing"].as_f64().unwrap() as f32;
        golden.check(case, &["logits"], |x| {
            let (loss, counted) = cross_entropy(&x[0], &labels, smoothing).unwrap();
            assert_eq!(counted, labels.iter().filter(|&&label| label != -100).count());
            loss
        });
    }
}
