//! The engine on golden checkpoints: what it generates must be what transformers generates, whatever else runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use candlewick::generate::{Event, FinishReason, StopReason};
use candlewick::{Error, GenerationOptions, Generator, LoadOptions, Model, Prompt};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn load(name: &str) -> Model {
    let options = LoadOptions { device: crate::fixtures::device(), ..LoadOptions::default() };
    Model::load(case(name).to_str().unwrap(), &options).unwrap()
}

/// Prompts with their 24 expected greedy tokens.
fn expected(name: &str) -> Vec<(Vec<u32>, Vec<u32>)> {
    let tensors =
        candle_core::safetensors::load(case(name).join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = |key: String| -> Option<Vec<u32>> {
        Some(tensors.get(&key)?.to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect())
    };
    (0..)
        .map_while(|index| Some((ids(format!("input_ids_{index}"))?, ids(format!("greedy_{index}"))?)))
        .collect()
}

fn options(max_new_tokens: usize) -> GenerationOptions {
    GenerationOptions { max_new_tokens, temperature: Some(0.0), ignore_eos: true, ..Default::default() }
}

#[test]
fn the_engine_gives_the_reference_tokens() {
    for name in ["qwen2/tied", "qwen2/windowed", "qwen3/tied", "llama/llama3", "mistral/window"] {
        let generator = Generator::new(&load(name));
        let cases = expected(name);
        let streams: Vec<_> = cases
            .iter()
            .map(|(prompt, _)| generator.start(&Prompt::Ids(prompt.clone()), &options(24), None).unwrap())
            .collect();
        for (stream, (prompt, greedy)) in streams.into_iter().zip(&cases) {
            let result = stream.wait().unwrap();
            assert_eq!(result.token_ids, *greedy, "{name}, prompt {prompt:?}");
            assert_eq!((result.finish_reason, result.prompt_tokens), (FinishReason::Length, prompt.len()));
        }
        // Again, one by one, now from cached prefixes.
        for (prompt, greedy) in &cases {
            let result = generator.generate(&Prompt::Ids(prompt.clone()), &options(24), None).unwrap();
            assert_eq!(result.token_ids, *greedy, "{name}, again");
            assert_eq!(result.cached_tokens, prompt.len() - 1, "{name}");
        }
    }
}

#[test]
fn streams_and_threads_agree_with_serial_runs() {
    let generator = Arc::new(Generator::new(&load("qwen3/tied")));
    let cases = Arc::new(expected("qwen3/tied"));
    let sampled = |generator: &Generator, prompt: &[u32], seed: u64| -> Vec<u32> {
        let options =
            GenerationOptions { temperature: Some(1.3), top_p: Some(0.9), seed: Some(seed), ..options(20) };
        let stream = generator.stream(&Prompt::Ids(prompt.to_vec()), &options, None).unwrap();
        stream.map(|token| token.unwrap().token_id).collect()
    };
    let serial: Vec<Vec<u32>> =
        (0..32).map(|i| sampled(&generator, &cases[i % cases.len()].0, i as u64)).collect();
    assert!(serial.iter().any(|output| *output != serial[0]));
    let threads: Vec<_> = (0..32)
        .map(|i| {
            let (generator, cases) = (Arc::clone(&generator), Arc::clone(&cases));
            std::thread::spawn(move || sampled(&generator, &cases[i % cases.len()].0, i as u64))
        })
        .collect();
    for (thread, serial) in threads.into_iter().zip(&serial) {
        assert_eq!(thread.join().unwrap(), *serial);
    }
}

#[test]
fn leaving_early_cancels() {
    let generator = Generator::new(&load("qwen2/tied"));
    let (prompt, greedy) = expected("qwen2/tied").swap_remove(0);
    let mut stream = generator.stream(&Prompt::Ids(prompt.clone()), &options(100), None).unwrap();
    let first = stream.next().unwrap().unwrap();
    assert_eq!((first.token_id, first.index, first.finish_reason), (greedy[0], 0, None));
    stream.cancel();
    while let Event::Token(_) = stream.next_timeout(Duration::from_secs(10)).unwrap() {}
    let result = stream.result().expect("a cancelled stream still has a result");
    assert_eq!(result.finish_reason, FinishReason::Cancelled);
    assert!(result.token_ids.len() < 100);
    drop(generator.stream(&Prompt::Ids(prompt.clone()), &options(100), None).unwrap());
    let after = generator.generate(&Prompt::Ids(prompt), &options(4), None).unwrap();
    assert_eq!(after.token_ids, greedy[..4]);
}

#[test]
fn a_slow_reader_holds_up_nobody() {
    let generator = Generator::new(&load("qwen2/tied"));
    let (prompt, greedy) = expected("qwen2/tied").swap_remove(0);
    let slow = generator.stream(&Prompt::Ids(prompt.clone()), &options(110), None).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let other = generator.generate(&Prompt::Ids(prompt), &options(24), None).unwrap();
    assert_eq!(other.token_ids, greedy);
    let tokens: Vec<u32> = slow.map(|token| token.unwrap().token_id).collect();
    assert_eq!((tokens.len(), &tokens[..24]), (110, greedy.as_slice()));
}

#[test]
fn stop_tokens_end_the_text() {
    let generator = Generator::new(&load("qwen2/tied"));
    let (prompt, greedy) = expected("qwen2/tied").swap_remove(0);
    let stop_token_ids = vec![greedy[5]];
    let first = greedy.iter().position(|id| *id == greedy[5]).unwrap();
    let options = GenerationOptions { stop_token_ids, ..options(24) };
    let result = generator.generate(&Prompt::Ids(prompt), &options, None).unwrap();
    assert_eq!(result.token_ids, greedy[..=first]);
    assert_eq!(result.stop_reason, Some(StopReason::Token(greedy[5])));
}

#[test]
fn what_cannot_work_is_refused_before_it_starts() {
    let model = load("qwen2/tied");
    let generator = Generator::new(&model);
    let refused = |ids: Vec<u32>, options: GenerationOptions| {
        generator.generate(&ids.into(), &options, None).unwrap_err()
    };
    assert!(matches!(refused(vec![], options(4)), Error::InvalidArgument { .. }));
    assert!(matches!(refused(vec![1 << 20], options(4)), Error::InvalidArgument { .. }));
    assert!(matches!(refused(vec![1; 1 << 20], options(4)), Error::ContextOverflow { .. }));
    assert!(matches!(refused(vec![1], options(0)), Error::InvalidArgument { .. }));
    let hot = GenerationOptions { temperature: Some(-1.0), ..options(4) };
    assert!(matches!(refused(vec![1], hot), Error::InvalidArgument { .. }));
    let limit = model.size_in_bytes() as u64 + 100;
    let options_ = LoadOptions {
        device: crate::fixtures::device(),
        memory_limit_bytes: Some(limit),
        ..Default::default()
    };
    let small = Model::load(case("qwen2/tied").to_str().unwrap(), &options_).unwrap();
    let error = Generator::new(&small).generate(&vec![1; 8].into(), &options(64), None).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}
