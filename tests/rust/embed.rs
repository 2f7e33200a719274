//! Embedding models and cross-encoders against what sentence-transformers computes (tests/golden/README.md).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use candlewick::Error;
use candlewick::embed::{
    Embedder, EmbedderOptions, EncodeOptions, Pooling, PoolingMode, Precision, PredictOptions, Quantized,
    Reranker, RerankerOptions, Role, Similarity, Truncation, Vectors, Watch, quantize, quantize_with,
    similarity,
};
use candlewick::models::{ARCHITECTURES, ENCODERS};
use safetensors::{Dtype, SafeTensors};

/// The largest difference from the reference; see [`difference`].
const TOLERANCE: f32 = 1e-5;

fn encoders() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders")
}

fn read(path: PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(&path, &Device::Cpu)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn texts() -> Vec<String> {
    serde_json::from_value(json(encoders().join("texts.json"))).unwrap()
}

fn pairs() -> Vec<(String, String)> {
    serde_json::from_value(json(encoders().join("pairs.json"))).unwrap()
}

/// Every case, and whether it is a cross-encoder; each family has at least one.
fn cases(rerank: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for family in
        std::fs::read_dir(encoders()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        for case in std::fs::read_dir(family).unwrap().map(|entry| entry.unwrap().path()) {
            if case.file_name().unwrap().to_string_lossy().starts_with("rerank") == rerank {
                found.push(case);
            }
        }
    }
    found.sort();
    for architecture in ENCODERS.iter().filter(|known| !rerank || known.classifier.is_some()) {
        let family = encoders().join(architecture.model_type);
        assert!(
            found.iter().any(|case| case.starts_with(&family)),
            "{} has no fixture",
            architecture.model_type
        );
    }
    found
}

fn load(case: &Path) -> Embedder {
    let mut options = EmbedderOptions::default();
    options.load.device = crate::fixtures::device();
    Embedder::load(case.to_str().unwrap(), &options)
        .unwrap_or_else(|error| panic!("{}: {error}", case.display()))
}

fn load_reranker(case: &Path, max_length: Option<usize>) -> Reranker {
    let mut options = RerankerOptions { max_length, ..RerankerOptions::default() };
    options.load.device = crate::fixtures::device();
    Reranker::load(case.to_str().unwrap(), &options)
        .unwrap_or_else(|error| panic!("{}: {error}", case.display()))
}

fn silent() -> EncodeOptions {
    EncodeOptions { truncation: Truncation::Silent, ..EncodeOptions::default() }
}

fn encode<S: AsRef<str> + Sync>(embedder: &Embedder, texts: &[S], options: &EncodeOptions) -> Vectors {
    embedder.encode(texts, options, Watch::NONE).unwrap()
}

/// The largest difference, in units of the largest value where that is above 1.
fn difference(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let scale = wanted.iter().map(|x| x.abs()).fold(1.0, f32::max);
    let differences = found.iter().zip(wanted).map(|(a, b)| (a - b).abs() / scale);
    differences.fold(0.0, |worst, x| if x.is_nan() { f32::INFINITY } else { worst.max(x) })
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap().to_vec1().unwrap()
}

fn prompted(embedder: &Embedder, role: Role, name: Option<&str>, prompt: Option<&str>) -> EncodeOptions {
    EncodeOptions { prompt: embedder.prompt(role, name, prompt).unwrap(), ..silent() }
}

#[test]
fn token_vectors_equal_the_reference() {
    let texts = texts();
    for case in cases(false) {
        let (embedder, expected) = (load(&case), read(case.join("expected.safetensors")));
        let found = embedder.encode_tokens(&texts, &silent(), Watch::NONE).unwrap();
        for (index, vectors) in found.iter().enumerate() {
            let wanted = &expected[&format!("tokens_{index}")];
            assert_eq!(vectors.tokens, wanted.dims()[0], "{} text {index}", case.display());
            let worst = difference(&vectors.values, &values(wanted));
            assert!(worst <= TOLERANCE, "{} text {index}: {worst}", case.display());
        }
    }
}

#[test]
fn sentence_vectors_equal_the_reference() {
    let texts = texts();
    for case in cases(false) {
        let (embedder, expected) = (load(&case), read(case.join("expected.safetensors")));
        let check = |name: &str, options: EncodeOptions| {
            let found = encode(&embedder, &texts, &options);
            let worst = difference(&found.values, &values(&expected[name]));
            assert!(worst <= TOLERANCE, "{} {name}: {worst}", case.display());
            assert_eq!([found.rows, found.dim], expected[name].dims());
        };
        let plain = prompted(&embedder, Role::Plain, None, None);
        check("sentences", plain.clone());
        check("normalized", EncodeOptions { normalize: Some(true), ..plain.clone() });
        let short = EncodeOptions { normalize: Some(true), truncate_dim: Some(8), ..plain };
        check("truncated_normalized", short);
        check("queries", prompted(&embedder, Role::Query, None, None));
        check("documents", prompted(&embedder, Role::Document, None, None));
        check("prompt_text", prompted(&embedder, Role::Plain, None, Some("a map: ")));
        for name in expected.keys().filter_map(|key| key.strip_prefix("prompt.")) {
            check(&format!("prompt.{name}"), prompted(&embedder, Role::Plain, Some(name), None));
        }
        let sentences = values(&expected["sentences"]);
        let alike = similarity(embedder.similarity(), &sentences, &sentences, embedder.dimension()).unwrap();
        let worst = difference(&alike, &values(&expected["similarity"]));
        assert!(worst <= 5e-5, "{} similarity: {worst}", case.display());
    }
}

#[test]
fn settings_equal_the_reference() {
    for case in cases(false) {
        let facts = case.join("expected.json");
        let (embedder, expected) = (load(&case), json(facts));
        assert_eq!(embedder.dimension() as u64, expected["dimension"], "{}", case.display());
        assert_eq!(embedder.max_length() as u64, expected["max_length"], "{}", case.display());
        assert_eq!(embedder.similarity().name(), expected["similarity"], "{}", case.display());
        let prompts: HashMap<&str, &str> =
            embedder.prompts().iter().map(|(name, prompt)| (name.as_str(), prompt.as_str())).collect();
        let wanted: HashMap<&str, &str> = expected["prompts"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(n, p)| (n.as_str(), p.as_str().unwrap()))
            .collect();
        assert_eq!(prompts, wanted, "{}", case.display());
    }
}

#[test]
fn scores_of_pairs_equal_the_reference() {
    let pairs = pairs();
    for case in cases(true) {
        let (reranker, expected) = (load_reranker(&case, None), read(case.join("expected.safetensors")));
        let short = load_reranker(&case, Some(16));
        let check = |reranker: &Reranker, name: &str, activation: Option<&str>, softmax: bool| {
            let activation = activation.map(str::to_owned);
            let options =
                PredictOptions { activation, softmax, truncation: Truncation::Silent, ..Default::default() };
            let found = reranker.predict(&pairs, &options, Watch::NONE).unwrap();
            let worst = difference(&found.values, &values(&expected[name]));
            assert!(worst <= TOLERANCE, "{} {name}: {worst}", case.display());
        };
        check(&reranker, "scores", None, false);
        check(&reranker, "logits", Some("identity"), false);
        check(&short, "scores_16", None, false);
        if expected.contains_key("softmax") {
            check(&reranker, "softmax", None, true);
            let refused = reranker.rank("a", &["b"], &PredictOptions::default(), Watch::NONE);
            assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
            continue;
        }
        let documents: Vec<&str> = pairs.iter().map(|(_, document)| document.as_str()).collect();
        let ranked = reranker.rank(&pairs[0].0, &documents, &PredictOptions::default(), Watch::NONE).unwrap();
        let wanted = json(case.join("ranked.json"));
        let order: Vec<u64> =
            wanted.as_array().unwrap().iter().map(|row| row["corpus_id"].as_u64().unwrap()).collect();
        assert_eq!(
            ranked.iter().map(|row| row.index as u64).collect::<Vec<_>>(),
            order,
            "{}",
            case.display()
        );
    }
}

#[test]
fn pooling_equals_the_reference() {
    let expected = read(encoders().join("pooling.safetensors"));
    let mut seen = 0;
    for (name, mode) in PoolingMode::ALL {
        for skipped in [0, 2] {
            for index in 0..3 {
                let Some(wanted) = expected.get(&format!("{name}.{skipped}.{index}")) else { continue };
                let states = &expected[&format!("tokens_{index}")];
                let pooling = Pooling { modes: vec![*mode], include_prompt: false };
                let found = pooling.pool(&values(states), states.dims()[1], skipped);
                assert!(difference(&found, &values(wanted)) <= 1e-6, "{name} {skipped} {index}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 24, "{seen}");
}

#[test]
fn reduced_precisions_equal_the_reference() {
    let bytes = std::fs::read(encoders().join("quantised.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap();
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => data.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect(),
            Dtype::I8 => data.iter().map(|x| f32::from(*x as i8)).collect(),
            Dtype::U8 => data.iter().map(|x| f32::from(*x)).collect(),
            other => panic!("{other:?}"),
        }
    };
    let vectors = values("vectors");
    let (ranges, calibration) = (values("ranges"), values("calibration"));
    let extreme = |pick: fn(f32, f32) -> f32| -> Vec<f32> {
        (0..20)
            .map(|column| calibration.iter().skip(column).step_by(20).copied().reduce(pick).unwrap())
            .collect()
    };
    let (low, high) = (extreme(f32::min), extreme(f32::max));
    let same = |found: Quantized, name: &str| {
        let found: Vec<f32> = match found {
            Quantized::F32(values) => values,
            Quantized::I8(values) => values.into_iter().map(f32::from).collect(),
            Quantized::U8(values) => values.into_iter().map(f32::from).collect(),
        };
        assert_eq!(found, values(name), "{name}");
    };
    for name in ["int8", "uint8", "binary", "ubinary"] {
        let precision = Precision::from_name(name).unwrap();
        same(quantize(vectors.clone(), 20, precision).unwrap(), name);
        if name.ends_with("int8") {
            let found = quantize_with(vectors.clone(), &ranges[..20], &ranges[20..], precision).unwrap();
            same(found, &format!("{name}_ranges"));
            let found = quantize_with(vectors.clone(), &low, &high, precision).unwrap();
            same(found, &format!("{name}_calibrated"));
        } else {
            same(quantize(vectors[..20].to_vec(), 20, precision).unwrap(), &format!("{name}_one"));
        }
    }
    let single = quantize(vectors[..20].to_vec(), 20, Precision::Int8);
    assert!(matches!(single, Err(Error::InvalidArgument { .. })));
}

#[test]
fn batch_mates_and_order_change_nothing() {
    let mut texts = texts();
    texts.extend((1..40).map(|words| "the cat and the map ".repeat(words)));
    for case in cases(false) {
        let embedder = load(&case);
        let together = encode(&embedder, &texts, &silent());
        let mut backwards: Vec<&String> = texts.iter().collect();
        backwards.reverse();
        let backwards = encode(&embedder, &backwards, &EncodeOptions { batch_size: Some(3), ..silent() });
        let dim = together.dim;
        for (index, text) in texts.iter().enumerate() {
            let row = &together.values[index * dim..(index + 1) * dim];
            let alone = encode(&embedder, &[text], &silent());
            assert!(difference(row, &alone.values) <= 1e-6, "{} text {index} alone", case.display());
            let mirrored = texts.len() - 1 - index;
            let other = &backwards.values[mirrored * dim..(mirrored + 1) * dim];
            assert!(difference(row, other) <= 1e-6, "{} text {index} backwards", case.display());
        }
    }
}

#[test]
fn too_long_texts_are_refused_on_request_and_counted_otherwise() {
    let embedder = load(&encoders().join("bert/mean"));
    let long = "the cat and the map ".repeat(50);
    let refuse = EncodeOptions { truncation: Truncation::Error, ..EncodeOptions::default() };
    let error = embedder.encode(&["short", &long], &refuse, Watch::NONE).unwrap_err();
    assert!(matches!(error, Error::ContextOverflow { limit: 64, tokens } if tokens > 200), "{error}");
    assert_eq!(encode(&embedder, &["short"], &refuse).rows, 1);
    assert_eq!(encode(&embedder, &[&long], &silent()).rows, 1);
}

#[test]
fn odd_texts_have_vectors() {
    let embedder = load(&encoders().join("mpnet/mean"));
    let texts = [
        "",
        " ",
        "\0",
        "🙂🙂",
        "\u{202e}\u{0301}",
        &"x".repeat(100_000),
        &"a b ".repeat(25_000),
        "<pad> <pad>",
    ];
    let vectors = encode(&embedder, &texts, &silent());
    assert!(vectors.values.iter().all(|x| x.is_finite()));
    assert_eq!(encode(&embedder, &[] as &[&str], &silent()), Vectors { values: vec![], rows: 0, dim: 24 });
}

#[test]
fn what_is_asked_of_the_options_happens() {
    let case = encoders().join("bert/mean");
    let path = case.to_str().unwrap();
    let with = |change: &dyn Fn(&mut EmbedderOptions)| {
        let mut options = EmbedderOptions::default();
        change(&mut options);
        Embedder::load(path, &options)
    };
    let several = with(&|options| options.pooling = vec!["cls".into(), "mean".into()]).unwrap();
    assert_eq!(several.dimension(), 48);
    let length = |embedder: &Embedder| -> f32 {
        encode(embedder, &["a cat"], &silent()).values.iter().map(|x| x * x).sum::<f32>().sqrt()
    };
    assert!((length(&with(&|_| ()).unwrap()) - 1.0).abs() < 1e-5);
    assert!((length(&with(&|options| options.normalize = Some(false)).unwrap()) - 1.0).abs() > 1e-3);
    assert_eq!(with(&|options| options.truncate_dim = Some(5)).unwrap().dimension(), 5);
    assert_eq!(with(&|options| options.max_length = Some(7)).unwrap().max_length(), 7);
    for change in [
        (|options| options.pooling = vec!["best".into()]) as fn(&mut EmbedderOptions),
        |options| options.max_length = Some(65),
        |options| options.truncate_dim = Some(0),
        |options| options.default_prompt_name = Some("absent".into()),
    ] {
        assert!(matches!(with(&change), Err(Error::InvalidArgument { .. })));
    }
}

#[test]
fn many_threads_share_one_embedder() {
    let (embedder, texts) = (load(&encoders().join("modernbert/cls-old")), texts());
    let expected = encode(&embedder, &texts, &silent());
    std::thread::scope(|scope| {
        let work: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| (0..4).map(|_| encode(&embedder, &texts, &silent())).collect::<Vec<_>>()))
            .collect();
        for thread in work {
            assert!(thread.join().unwrap().iter().all(|vectors| *vectors == expected));
        }
    });
}

#[test]
fn gathered_requests_get_their_own_results() {
    use std::task::{Context, Poll, Waker};
    let (embedder, texts) = (load(&encoders().join("roberta/max")), texts());
    let refuse = EncodeOptions { truncation: Truncation::Error, ..EncodeOptions::default() };
    let mut pending: Vec<_> =
        texts.iter().map(|text| embedder.submit(vec![text.clone()], silent()).unwrap()).collect();
    pending.push(embedder.submit(vec!["cat ".repeat(200)], refuse.clone()).unwrap());
    pending.push(embedder.submit(vec!["a cat".into()], refuse).unwrap());
    drop(embedder.submit(texts.clone(), silent()).unwrap());
    let mut results = Vec::new();
    for request in &pending {
        loop {
            match request.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => break results.push(result),
                Poll::Pending => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        }
    }
    let fine = results.pop().unwrap();
    assert_eq!(fine.unwrap().rows, 1);
    assert!(matches!(results.pop().unwrap(), Err(Error::ContextOverflow { .. })));
    for (text, result) in texts.iter().zip(results) {
        let alone = encode(&embedder, &[text], &silent());
        assert!(difference(&result.unwrap().values, &alone.values) <= 1e-6);
    }
}

#[test]
fn a_watch_hears_of_progress_and_can_end_the_work() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let embedder = load(&encoders().join("distilbert/dense"));
    let texts = vec!["a cat on the map"; 5000];
    let (done, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let progress = |count: usize| {
        done.fetch_add(count, Ordering::Relaxed);
    };
    let watch = Watch { cancelled: &|| false, progress: &progress };
    embedder.encode(&texts, &silent(), watch).unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 5000);
    let cancelled = || asked.fetch_add(1, Ordering::Relaxed) > 3;
    let watch = Watch { cancelled: &cancelled, progress: &|_| () };
    assert!(embedder.encode(&texts, &silent(), watch).is_err());
}

#[test]
fn unsupported_repositories_say_what_is_wrong() {
    let room = tempfile::tempdir().unwrap();
    let case = encoders().join("bert/mean");
    let copy = |name: &str| std::fs::copy(case.join(name), room.path().join(name)).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        copy(name);
    }
    let load = || Embedder::load(room.path().to_str().unwrap(), &EmbedderOptions::default());
    // Without modules.json it is mean pooling.
    assert_eq!(load().unwrap().dimension(), 24);
    for (modules, word) in [
        (
            r#"[{"type": "a.Transformer", "path": ""}, {"type": "a.WeightedLayerPooling", "path": "1"}]"#,
            "WeightedLayerPooling",
        ),
        (r#"[{"type": "a.Transformer", "path": "../.."}]"#, "outside"),
        ("{}", "list"),
    ] {
        std::fs::write(room.path().join("modules.json"), modules).unwrap();
        let error = load().unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }) && error.to_string().contains(word), "{error}");
    }
    let error = Reranker::load(case.to_str().unwrap(), &RerankerOptions::default()).unwrap_err();
    assert!(error.to_string().contains("classifier.weight is missing"), "{error}");
    let decoder = case.join("../../../qwen3/tied");
    let error = Reranker::load(decoder.to_str().unwrap(), &RerankerOptions::default()).unwrap_err();
    assert!(matches!(error, Error::ModelNotFound { .. } | Error::UnsupportedModel { .. }), "{error}");
}

#[test]
fn the_bundled_decoder_embeds() {
    let embedder = Embedder::load("candlewick/tiny", &EmbedderOptions::default()).unwrap();
    let vectors = encode(&embedder, &["a cat sat on the mat", "the cat sat on a mat", "taxes"], &silent());
    let alike = similarity(Similarity::Cosine, &vectors.values, &vectors.values, vectors.dim).unwrap();
    assert!(alike[1] > alike[2], "{alike:?}");
    assert!(ARCHITECTURES.iter().any(|known| known.model_type == embedder.encoder().model_type()));
}
