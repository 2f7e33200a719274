//! Each rule sees what it is there for: snippets that break it, and snippets that look alike and do not.

use super::*;

type Rule = fn(&Source) -> Vec<String>;

/// The rule finds `expected` problems in a file with this text.
#[track_caller]
fn finds(rule: Rule, path: &str, text: &str, expected: usize) {
    let problems = rule(&Source::new(path, text));
    assert_eq!(problems.len(), expected, "{text}: {problems:#?}");
}

fn table(file: &Source) -> Vec<String> {
    let lib = Source::new("lib.rs", "pub use error::{Error, Result};\npub use models::Model;");
    imports_follow_the_table(file, &reexports(&lib))
}

#[test]
fn imports() {
    finds(table, "kernels/rope.rs", "use crate::{Error, device::Device, kernels::simd};", 0);
    finds(table, "kernels/rope.rs", "use crate::nn::Linear;", 1);
    finds(table, "kernels/rope.rs", "use crate::{\n    Result,\n    nn::{Linear, Rope},\n};", 2);
    finds(table, "nn/linear.rs", "fn f() { crate::models::load() }", 1);
    finds(table, "nn/linear.rs", "// crate::models\nlet a = \"crate::models\";", 0);
    finds(table, "tokenizer/mod.rs", "use crate::Model;", 1);
    finds(table, "tokenizer/mod.rs", "use crate::Unknown;", 1);
    finds(table, "adapter/lora.rs", "use crate::models::Model;\nuse crate::Model;", 0);
    finds(table, "adapter/lora.rs", "use crate::models::{self, Model};\nuse crate::models::load;", 2);
    finds(table, "generate/engine.rs", "use crate::nn::{KvCache, Linear};", 1);
    finds(table, "attic/mod.rs", "", 1);
    finds(table, "python/model.rs", "use crate::Model;\nuse crate::weight::Weight;", 1);
}

#[test]
fn imports_through_super() {
    finds(
        table,
        "kernels/rope.rs",
        "use super::simd;\nmod tests { use super::*; use super::super::simd; }",
        0,
    );
    finds(table, "kernels/rope.rs", "use super::super::nn::Linear;", 1);
    finds(table, "kernels/mod.rs", "use super::nn::Linear;", 1);
    finds(table, "error.rs", "mod tests { use super::*; }", 0);
    finds(table, "error.rs", "mod tests { use super::super::nn; }", 1);
}

#[test]
fn python() {
    finds(pyo3_stays_in_its_room, "python/model.rs", "use pyo3::prelude::*;", 0);
    finds(pyo3_stays_in_its_room, "lib.rs", "use pyo3::prelude::*;", 1);
    finds(pyo3_stays_in_its_room, "error.rs", "impl From<numpy::Error> for Error {}", 1);
    finds(pyo3_stays_in_its_room, "error.rs", "//! pyo3 is not known here", 0);
}

#[test]
fn device_features() {
    for text in
        ["#[cfg(feature = \"metal\")]", "if cfg!( feature=\"cuda\" ) {}", "#[cfg(not(feature = \"cuda\"))]"]
    {
        finds(device_features_stay_low, "nn/mod.rs", text, 1);
        finds(device_features_stay_low, "device.rs", text, 0);
        finds(device_features_stay_low, "kernels/rope.rs", text, 0);
    }
    finds(device_features_stay_low, "lib.rs", "#[cfg(feature = \"python\")] // feature = \"metal\"", 0);
}

#[test]
fn fused_ops() {
    for text in [
        "use candle_nn::ops::softmax_last_dim;",
        "use candle_nn::{Module, ops::{self, silu}};",
        "let y = candle_nn::ops::rms_norm(x, w, 1e-6)?;",
        "use candle_nn::rotary_emb::rope_slow;",
        "use candle_nn::attention;",
        "use candle_nn::*;",
        "use candle_nn::{VarBuilder, LayerNorm};",
        "use candle_nn as nn;",
        "x.apply_op1_no_bwd(&op)",
    ] {
        finds(fused_ops_stay_in_kernels, "nn/norm.rs", text, 1);
        finds(fused_ops_stay_in_kernels, "kernels/norm.rs", text, 0);
    }
    finds(fused_ops_stay_in_kernels, "nn/norm.rs", "use candle_nn::ops::{softmax, silu};", 0);
}

#[test]
fn family_names() {
    for text in [
        "struct QwenMlp;",
        "if model_type == \"llama\" {}",
        "fn load_mistral() {}",
        "let x = \"XLM-RoBERTa\";",
    ] {
        finds(family_names_stay_in_models, "nn/mlp.rs", text, 1);
        finds(family_names_stay_in_models, "models/mlp.rs", text, 0);
        finds(family_names_stay_in_models, "checkpoint/gguf/names.rs", text, 0);
    }
    finds(
        family_names_stay_in_models,
        "nn/mlp.rs",
        "// as in Qwen\nlet albert = economical(nomenclature);",
        0,
    );
    finds(family_names_stay_in_models, "nn/rope.rs", "Llama3 { .. } => \"llama3\",", 0);
    finds(family_names_stay_in_models, "nn/rope.rs", "Llama2", 1);
    assert!(FAMILY_EXCEPTIONS.iter().all(|(_, _, why)| !why.is_empty()));
}

#[test]
fn printing_and_stubs() {
    for text in
        ["todo!()", "unimplemented!(\"x\")", "dbg!(x)", "println!(\"x\")", "eprintln!()", "print!(\"\")"]
    {
        finds(no_printing_and_no_stubs, "nn/mlp.rs", text, 1);
    }
    finds(no_printing_and_no_stubs, "nn/mlp.rs", "log::info!(\"println!()\"); writeln!(f)?; // todo!()", 0);
}

#[test]
fn unsafe_code() {
    let sound = [
        "// SAFETY: in bounds.\nunsafe { f() }",
        "// SAFETY: in bounds,\n// as said above.\nlet x =\n    unsafe { f() };",
        "/// Doc.\n///\n/// # Safety\n/// In bounds.\n#[inline]\npub unsafe fn f() {}",
        "impl<S: Simd> Load<S> for f32 {\n    #[inline]\n    unsafe fn load(self) {}\n}",
        "type F = unsafe fn(usize);",
        "#![allow(unsafe_code)]",
    ];
    for text in sound {
        finds(unsafe_is_rare_and_explained, "kernels/cpu/dot.rs", text, 0);
    }
    finds(unsafe_is_rare_and_explained, "checkpoint/safetensors/mod.rs", sound[0], 0);
    finds(unsafe_is_rare_and_explained, "nn/mlp.rs", sound[0], 1);
    for text in [
        "unsafe { f() }",
        "// It is fine.\nunsafe impl Sync for X {}",
        "// SAFETY: for another.\nlet a = 1;\nunsafe { f() }",
        "// SAFETY: for another.\n\nunsafe { f() }",
        "unsafe fn f() {}",
        "impl Load for f32 {\n    fn load(self) { unsafe { f() } }\n}",
    ] {
        finds(unsafe_is_rare_and_explained, "kernels/cpu/dot.rs", text, 1);
    }
}

#[test]
fn docs_and_length() {
    finds(module_docs_are_present, "nn/mlp.rs", "//! The feed-forward part.\n", 0);
    finds(module_docs_are_present, "nn/mlp.rs", "//!\n", 1);
    finds(module_docs_are_present, "nn/mlp.rs", "use std::fs;\n//! Late.", 1);
    assert!(lines_are_few("a.rs", &"\n".repeat(MAX_LINES)).is_empty());
    assert_eq!(lines_are_few("a.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
}
