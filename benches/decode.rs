//! Prefill and decode of one model, and, with the feature `baseline`, the same work by candle's own model code.
//!
//! `cargo bench --bench decode` runs on the bundled model; `CANDLEWICK_BENCH_MODEL` names another directory, such as one
//! that `benches/make_models.py` made. Thread counts come from the environment, as in a program.

use std::hint::black_box;

use candlewick::batch::Batch;
use candlewick::models::BUNDLED;
use candlewick::nn::{KvCache, Pass};
use candlewick::{GenerationOptions, Generator, LoadOptions, Model, Prompt};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// Tokens of the prompt that is measured.
const PROMPT: usize = 256;

fn model() -> Model {
    let name = std::env::var("CANDLEWICK_BENCH_MODEL").unwrap_or_else(|_| BUNDLED.into());
    Model::load(&name, &LoadOptions { device: "cpu".into(), ..Default::default() }).expect("the model loads")
}

fn prompt(model: &Model) -> Vec<u32> {
    (0..PROMPT).map(|i| (i * 7919 % model.vocab_size()) as u32).collect()
}

/// Feeds `ids` and returns the cache.
fn feed(model: &Model, mut cache: KvCache, ids: &[u32]) -> KvCache {
    let mut batch = Batch::new();
    batch.push(ids, cache.len());
    let mut pass = Pass::with_caches(&batch, vec![&mut cache]);
    let hidden = model.forward(&mut pass).expect("a pass");
    let last = hidden.narrow(0, ids.len() - 1, 1).expect("the last row");
    black_box(model.head(&last, &pass).expect("logits"));
    cache
}

fn ours(c: &mut Criterion) {
    let model = model();
    let ids = prompt(&model);
    let mut group = c.benchmark_group("candlewick");
    group.sample_size(10).throughput(Throughput::Elements(PROMPT as u64));
    group.bench_function("prefill", |b| {
        b.iter_batched(
            || model.decoder().new_cache(),
            |cache| feed(&model, cache, &ids),
            BatchSize::LargeInput,
        );
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode", |b| {
        let cache = feed(&model, model.decoder().new_cache(), &ids);
        let fork = || cache.fork(PROMPT).expect("a copy").expect("nothing has rolled away");
        b.iter_batched(fork, |cache| feed(&model, cache, &[1]), BatchSize::LargeInput);
    });
    let generator = Generator::new(&model);
    let options = GenerationOptions {
        max_new_tokens: 32,
        temperature: Some(0.0),
        ignore_eos: true,
        ..Default::default()
    };
    group.throughput(Throughput::Elements(32));
    group.bench_function("generate", |b| {
        b.iter(|| generator.generate(&Prompt::Ids(ids[..8].to_vec()), &options, None).expect("a text"));
    });
    group.finish();
}

#[cfg(feature = "baseline")]
fn plain_candle(c: &mut Criterion) {
    use candle_core::{Device, Tensor};
    use candle_nn::VarBuilder;
    use candle_transformers::models::qwen2::{Config, ModelForCausalLM};

    let model = model();
    let ids = prompt(&model);
    let path = model.directory().join("model.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("the same checkpoint");
    let config: Config = serde_json::from_value(model.config().clone()).expect("the same configuration");
    // The type that is fastest there: bf16 would be widened at every call.
    let weights = VarBuilder::from_tensors(tensors, candle_core::DType::F32, &Device::Cpu);
    let mut plain = ModelForCausalLM::new(&config, weights).expect("the model");
    let run = |plain: &mut ModelForCausalLM, ids: &[u32], position: usize| {
        let input = Tensor::new(ids, &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("ids");
        black_box(plain.forward(&input, position).expect("logits"));
    };
    let mut group = c.benchmark_group("plain candle f32");
    group.sample_size(10).throughput(Throughput::Elements(PROMPT as u64));
    group.bench_function("prefill", |b| {
        b.iter(|| {
            plain.clear_kv_cache();
            run(&mut plain, &ids, 0);
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode", |b| {
        plain.clear_kv_cache();
        run(&mut plain, &ids, 0);
        let mut position = PROMPT;
        b.iter(|| {
            run(&mut plain, &[1], position);
            position += 1;
        });
    });
    group.finish();
}

#[cfg(not(feature = "baseline"))]
fn plain_candle(_: &mut Criterion) {}

criterion_group!(benches, ours, plain_candle);
criterion_main!(benches);
