//! GGUF files made by the `gguf` package, compared with the checkpoints they were made from.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use candlewick::checkpoint::gguf::{
    GgufEntry, GgufMetadata, GgufSource, GgufTokenizer, GgufVocabulary, to_pairs, write_gguf,
};
use candlewick::checkpoint::{SafetensorsSource, read_json};
use candlewick::weight::{Format, TensorInfo, TensorSource};
use candlewick::{Error, Result};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::allocations::peak;

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

pub(crate) fn open(name: &str) -> GgufSource {
    GgufSource::open(golden(&format!("gguf/{name}.gguf"))).unwrap()
}

fn floats(info: &TensorInfo, bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match info.format {
        Format::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Format::F16 => pairs.map(|b| f16::from_bits(b).to_f32()).collect(),
        Format::BF16 => pairs.map(|b| bf16::from_bits(b).to_f32()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_are_those_of_the_checkpoint() {
    let cases = [
        ("plain", "llama/plain", 1),
        ("bias", "llama/bias", 1),
        ("linear", "llama/linear", 1),
        ("llama3", "llama/llama3", 1),
        ("yarn", "qwen2/yarn", 1),
        ("bf16", "qwen2/bf16", 1),
        ("split-00001-of-00003", "qwen3/untied", 3),
        ("split-00003-of-00003", "qwen3/untied", 3),
    ];
    for (name, checkpoint, parts) in cases {
        let (ours, theirs) = (open(name), SafetensorsSource::open(golden(checkpoint)).unwrap());
        assert!(format!("{ours:?}").contains(&format!("in {parts} files")), "{ours:?}");
        let (mut found, mut expected) = (ours.names(), theirs.names());
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{name}");
        for tensor in expected {
            let (a, b) = (ours.info(&tensor).unwrap(), theirs.info(&tensor).unwrap());
            assert_eq!(a.shape, b.shape, "{name} {tensor}");
            let got = floats(&a, &ours.bytes(&tensor).unwrap());
            let mut want = floats(&b, &theirs.bytes(&tensor).unwrap());
            if a.format == Format::F16 {
                want.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
            }
            assert_eq!(got, want, "{name} {tensor}");
        }
    }
}

#[test]
fn blocks_are_reordered_as_rows_and_not_touched() {
    for (name, format) in [("q8_0", Format::Q8_0), ("q4_0", Format::Q4_0)] {
        let (ours, blocks) = (open(name), golden(&format!("gguf/{name}.blocks.safetensors")));
        let blocks = SafetensorsSource::open(blocks).unwrap();
        assert!(blocks.names().len() > 8);
        for tensor in blocks.names() {
            let info = ours.info(&tensor).unwrap();
            assert_eq!(info.format, format);
            let (rows, row_bytes) = (info.shape[0], info.shape[1] / 32 * format.block_bytes());
            assert_eq!(blocks.info(&tensor).unwrap().shape, [rows, row_bytes]);
            assert_eq!(ours.bytes(&tensor).unwrap(), blocks.bytes(&tensor).unwrap(), "{name} {tensor}");
        }
    }
}

#[test]
fn the_order_of_pairs_is_undone_and_redone() {
    let source = open("llama3");
    let file = fs::read(golden("gguf/llama3.gguf")).unwrap();
    for (name, heads) in
        [("model.layers.1.self_attn.q_proj.weight", 4), ("model.layers.1.self_attn.k_proj.weight", 2)]
    {
        let (info, bytes) = (source.info(name).unwrap(), source.bytes(name).unwrap());
        let stored = to_pairs(&bytes, info.shape[0], info.shape[0] / heads);
        assert_ne!(stored, bytes.as_ref());
        assert!(file.windows(stored.len()).any(|w| w == stored), "{name} is not in the file in that order");
    }
}

#[test]
fn the_configuration_is_that_of_the_checkpoint() {
    let cases = [
        ("plain", "llama/plain"),
        ("bias", "llama/bias"),
        ("linear", "llama/linear"),
        ("llama3", "llama/llama3"),
        ("yarn", "qwen2/yarn"),
        ("bf16", "qwen2/bf16"),
        ("split-00001-of-00003", "qwen3/untied"),
    ];
    for (name, checkpoint) in cases {
        let ours = open(name).config().unwrap();
        let theirs = read_json(golden(checkpoint).join("config.json")).unwrap();
        for field in [
            "architectures",
            "model_type",
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "hidden_act",
            "tie_word_embeddings",
        ] {
            assert_eq!(ours[field], theirs[field], "{name} {field}");
        }
        for optional in ["head_dim", "attention_bias", "mlp_bias"] {
            if let Some(value) = theirs.get(optional).filter(|v| !v.is_null()) {
                assert_eq!(&ours[optional], value, "{name} {optional}");
            }
        }
        let kv_heads = theirs.get("num_key_value_heads").unwrap_or(&theirs["num_attention_heads"]);
        assert_eq!(&ours["num_key_value_heads"], kv_heads, "{name}");
        let rope = theirs.get("rope_parameters").unwrap_or(&theirs);
        let theta = rope.get("rope_theta").map_or(10_000.0, |v| v.as_f64().unwrap());
        assert_eq!(ours["rope_theta"].as_f64(), Some(theta), "{name}");
    }
    let scaling = |name: &str| open(name).config().unwrap().get("rope_scaling").cloned();
    assert_eq!(scaling("plain"), None);
    let linear = read_json(golden("llama/linear/config.json")).unwrap();
    let linear = linear.get("rope_scaling").or(linear.get("rope_parameters")).unwrap()["factor"].clone();
    assert_eq!(scaling("linear"), Some(json!({"rope_type": "linear", "factor": linear})));
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    assert_eq!(scaling("yarn"), Some(yarn));
    let factors = scaling("llama3").unwrap();
    assert_eq!(factors["rope_type"], "factors");
    let factors: Vec<f64> =
        factors["factors"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!((factors.len(), factors[0], factors[7]), (8, 1.0, 8.0));
    assert!(factors.is_sorted() && factors.iter().any(|f| *f > 1.0 && *f < 8.0), "{factors:?}");
}

/// The metadata and tensors of a file, for writing a changed one.
pub(crate) struct Copy {
    metadata: Vec<(String, GgufEntry)>,
    tensors: Vec<(String, TensorInfo, Vec<u8>)>,
}

impl Copy {
    pub(crate) fn of(source: &GgufSource) -> Self {
        let metadata = source.metadata();
        let mut keys: Vec<&str> = metadata.keys().collect();
        keys.sort_by_key(|k| (*k != "general.architecture", k.to_string()));
        let metadata =
            keys.iter().map(|k| (k.to_string(), GgufEntry::copy_of(metadata, k).unwrap())).collect();
        let mut names = source.names();
        names.sort();
        let tensors = names.into_iter().map(|name| {
            let info = source.info(&name).unwrap();
            let bytes = source.bytes(&name).unwrap().into_owned();
            (GgufSource::gguf_name(&name).unwrap(), info, bytes)
        });
        Self { metadata, tensors: tensors.collect() }
    }

    pub(crate) fn set(mut self, key: &str, value: GgufEntry) -> Self {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.to_string(), value));
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let infos: Vec<_> = self.tensors.iter().map(|(n, i, _)| (n.clone(), i.clone())).collect();
        let bytes = |name: &str| {
            let found = self.tensors.iter().find(|(n, ..)| n == name).unwrap();
            Ok(Cow::Borrowed(found.2.as_slice()))
        };
        write_gguf(path, &self.metadata, &infos, bytes)
    }

    pub(crate) fn reopen(&self) -> Result<GgufSource> {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("copy.gguf");
        self.write(&path)?;
        GgufSource::open(&path)
    }
}

#[test]
fn what_is_written_is_read_back() {
    for name in ["yarn", "q4_0", "bf16", "vocab-llama-bpe"] {
        let source = open(name);
        let copy = Copy::of(&source).reopen().unwrap();
        assert_eq!(copy.names().len(), source.names().len());
        for key in source.metadata().keys() {
            assert_eq!(copy.metadata().get(key), source.metadata().get(key), "{name} {key}");
        }
        for tensor in source.names() {
            assert_eq!(copy.info(&tensor), source.info(&tensor), "{name} {tensor}");
            assert_eq!(copy.bytes(&tensor).unwrap(), source.bytes(&tensor).unwrap(), "{name} {tensor}");
        }
    }
    let entries = [
        ("general.architecture", GgufEntry::String("llama".into())),
        ("a.u32", GgufEntry::U32(7)),
        ("a.i32", GgufEntry::I32(-7)),
        ("a.u64", GgufEntry::U64(1 << 40)),
        ("a.f32", GgufEntry::F32(1e-6)),
        ("a.bool", GgufEntry::Bool(true)),
        ("a.strings", GgufEntry::Strings(vec!["x".into(), String::new(), "ü".into()])),
        ("a.i32s", GgufEntry::I32s(vec![1, -1])),
        ("a.f32s", GgufEntry::F32s(vec![0.5])),
    ];
    let metadata = entries.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    let source = Copy { metadata, tensors: vec![] }.reopen().unwrap();
    let metadata = source.metadata();
    assert_eq!(metadata.unsigned("a.u32").unwrap(), Some(7));
    assert!(
        metadata
            .unsigned("a.i32")
            .unwrap_err()
            .to_string()
            .contains("got -7, expected a non-negative integer")
    );
    assert_eq!(metadata.unsigned("a.u64").unwrap(), Some(1 << 40));
    assert_eq!(metadata.number("a.f32").unwrap(), Some(1e-6));
    assert_eq!(metadata.boolean("a.bool").unwrap(), Some(true));
    let strings = metadata.array("a.strings").unwrap().unwrap();
    assert_eq!(strings.iter().map(|v| v.as_str().unwrap().to_string()).collect::<Vec<_>>(), ["x", "", "ü"]);
    assert_eq!(metadata.array("a.i32s").unwrap().unwrap().len(), 2);
    assert_eq!(metadata.string("absent").unwrap(), None);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("x.gguf");
    let info = |format, shape: &[usize]| TensorInfo { format, shape: shape.to_vec() };
    let cases = [
        vec![("a".to_string(), info(Format::Q8_0, &[2, 33]))],
        vec![("a".to_string(), info(Format::F32, &[1, 1, 1, 1, 1]))],
        vec![("a".to_string(), info(Format::F32, &[0]))],
        vec![("a".to_string(), info(Format::U8, &[2]))],
        vec![("a".to_string(), info(Format::F32, &[2])), ("a".to_string(), info(Format::F32, &[2]))],
        vec![("a".to_string(), info(Format::F32, &[3]))],
    ];
    for tensors in cases {
        let result = write_gguf(&path, &[], &tensors, |_| Ok(Cow::Owned(vec![0; 8])));
        assert!(matches!(result, Err(Error::InvalidArgument { .. })), "{tensors:?}");
    }
    let twice = [("k".to_string(), GgufEntry::U32(1)), ("k".to_string(), GgufEntry::U32(1))];
    assert!(write_gguf(&path, &twice, &[], |_| Ok(Cow::Owned(vec![]))).is_err());
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
}

fn check_tokens(tokenizer: &GgufTokenizer, texts: &Value, rows: &Value, what: &str) {
    let (texts, rows) = (texts.as_array().unwrap(), rows.as_array().unwrap());
    assert_eq!(texts.len(), rows.len());
    for (text, row) in texts.iter().zip(rows) {
        let text = text.as_str().unwrap();
        let ids = tokenizer.tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        assert_eq!(json!(ids), row["ids"], "{what}: {text:?}");
        if let Some(expected) = row["text"].as_str() {
            assert_eq!(tokenizer.tokenizer.decode(&ids, true).unwrap(), expected, "{what}: {text:?}");
        }
    }
}

#[test]
fn byte_level_vocabularies_split_as_their_names_say() {
    let expected = read_json(golden("gguf/vocab-byte-level.json")).unwrap();
    let source = open("vocab-llama-bpe");
    let first = expected["first_special"].as_u64().unwrap() as u32;
    for (pre, rows) in expected["ids"].as_object().unwrap() {
        let copy =
            Copy::of(&source).set("tokenizer.ggml.pre", GgufEntry::String(pre.clone())).reopen().unwrap();
        let tokenizer = copy.tokenizer().unwrap();
        check_tokens(&tokenizer, &expected["texts"], rows, pre);
        let with = tokenizer.tokenizer.encode("the", true).unwrap().get_ids().to_vec();
        assert_eq!(with[0] == first, expected["bos"][pre].as_bool().unwrap(), "{pre}");
        assert_eq!(tokenizer.tokenizer.id_to_token(first + 5), None, "a filler is no token");
        assert_eq!(tokenizer.tokenizer.decode(&[first, first + 3], true).unwrap(), "<think>");
    }
    let tokenizer = source.tokenizer().unwrap();
    assert_eq!(tokenizer.named_tokens["bos_token"], "<|begin|>");
    assert_eq!(tokenizer.named_tokens["eos_token"], "<|im_end|>");
    assert_eq!(tokenizer.end_token_ids, [first + 2]);
    assert_eq!(tokenizer.chat_templates["default"], "{{ messages[0].content }}");
    assert_eq!(source.generation_config().unwrap()["eos_token_id"], json!([first + 2]));
}

#[test]
fn what_the_file_says_about_special_tokens_wins() {
    let source = open("vocab-llama-bpe");
    let first =
        read_json(golden("gguf/vocab-byte-level.json")).unwrap()["first_special"].as_u64().unwrap() as u32;
    let ids = |copy: Copy| {
        let tokenizer = copy.reopen().unwrap().tokenizer().unwrap();
        tokenizer.tokenizer.encode("", true).unwrap().get_ids().to_vec()
    };
    let flag = |key: &str, value| Copy::of(&source).set(key, GgufEntry::Bool(value));
    assert_eq!(ids(Copy::of(&source)), [first]);
    assert_eq!(ids(flag("tokenizer.ggml.add_bos_token", false)), [0; 0]);
    assert_eq!(ids(flag("tokenizer.ggml.add_eos_token", true)), [first, first + 2]);
    let eot = Copy::of(&source).set("tokenizer.ggml.eot_token_id", GgufEntry::U32(5));
    let eot = eot.set("tokenizer.chat_template.tool_use", GgufEntry::String("tools".into()));
    let eot = eot.set("general.sampling.temp", GgufEntry::F32(0.7)).reopen().unwrap();
    let tokenizer = eot.tokenizer().unwrap();
    assert_eq!(tokenizer.end_token_ids, [first + 2, 5]);
    assert_eq!(tokenizer.chat_templates["tool_use"], "tools");
    let generation = eot.generation_config().unwrap();
    assert_eq!((&generation["temperature"], &generation["do_sample"]), (&json!(0.7), &json!(true)));
}

#[test]
fn scored_vocabularies_split_as_sentencepiece_does() {
    let expected = read_json(golden("gguf/vocab-scores.json")).unwrap();
    let tokenizer = open("vocab-scores").tokenizer().unwrap();
    check_tokens(&tokenizer, &expected["texts"], &expected["ids"], "scores");
    let with = tokenizer.tokenizer.encode("the", true).unwrap().get_ids().to_vec();
    assert_eq!(json!(with[0]), expected["bos_id"]);
    assert_eq!(tokenizer.named_tokens["unk_token"], "<unk>");
}

/// The vocabulary of a file as `GgufVocabulary` writes it anew, perhaps after a change of its `tokenizer.json`.
fn rewritten(source: &GgufSource, change: impl Fn(&mut Value)) -> Result<GgufSource> {
    let read = source.tokenizer().unwrap();
    let mut json: Value = serde_json::from_str(&read.tokenizer.to_string(false).unwrap()).unwrap();
    change(&mut json);
    let tokenizer = json.to_string().parse().unwrap();
    let vocabulary = GgufVocabulary {
        tokenizer: &tokenizer,
        named_tokens: &read.named_tokens,
        end_token_ids: &read.end_token_ids,
        chat_templates: &read.chat_templates,
        rows: tokenizer.get_vocab_size(true) + 2,
    };
    let mut metadata = vec![("general.architecture".to_string(), GgufEntry::String("llama".into()))];
    metadata.extend(vocabulary.entries()?);
    Copy { metadata, tensors: vec![] }.reopen()
}

#[test]
fn sentencepiece_vocabularies_are_written_so_that_they_split_the_same() {
    let expected = read_json(golden("gguf/vocab-scores.json")).unwrap();
    let source = open("vocab-scores");
    let again = rewritten(&source, |_| {}).unwrap();
    check_tokens(&again.tokenizer().unwrap(), &expected["texts"], &expected["ids"], "rewritten");
    let (old, new) = (source.metadata(), again.metadata());
    assert_eq!(new.string("tokenizer.ggml.model").unwrap(), Some("llama"));
    assert_eq!(new.boolean("tokenizer.ggml.add_space_prefix").unwrap(), Some(true));
    for id in ["bos", "eos", "unknown"] {
        let key = format!("tokenizer.ggml.{id}_token_id");
        assert_eq!(new.unsigned(&key).unwrap(), old.unsigned(&key).unwrap(), "{id}");
    }
    let numbers = |metadata: &GgufMetadata, key: &str| -> Vec<f64> {
        let array = metadata.array(key).unwrap().unwrap();
        array.iter().map(|v| v.as_f64().or(v.as_u64().map(|v| v as f64)).unwrap()).collect()
    };
    let types = numbers(new, "tokenizer.ggml.token_type");
    let expected_types = numbers(old, "tokenizer.ggml.token_type");
    assert_eq!(types[..expected_types.len()], expected_types);
    // Two rows without a token.
    assert_eq!(types[expected_types.len()..], [5.0, 5.0]);
    let (old, new) = (numbers(old, "tokenizer.ggml.scores"), numbers(new, "tokenizer.ggml.scores"));
    let tokens = source.metadata().array("tokenizer.ggml.tokens").unwrap().unwrap();
    let characters: Vec<usize> = tokens.iter().map(|token| token.as_str().unwrap().chars().count()).collect();
    let merged = |id: &usize| expected_types[*id] == 1.0 && characters[*id] > 1;
    let mut order: Vec<usize> = (0..old.len()).filter(merged).collect();
    order.sort_by(|a, b| old[*b].total_cmp(&old[*a]));
    assert!(
        order.len() > 100 && order.is_sorted_by(|a, b| new[*a] >= new[*b]),
        "the order of scores is kept"
    );

    // The other spelling of the same, and one without a space in front.
    let metaspace = |scheme: &'static str| {
        move |json: &mut Value| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false});
        }
    };
    for scheme in ["first", "always"] {
        let again = rewritten(&source, metaspace(scheme)).unwrap();
        check_tokens(&again.tokenizer().unwrap(), &expected["texts"], &expected["ids"], scheme);
    }
    let never = rewritten(&source, metaspace("never")).unwrap();
    let ids = |source: &GgufSource, text: &str| {
        source.tokenizer().unwrap().tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    };
    assert_eq!(ids(&never, " the"), ids(&source, "the"));
    let refused: [fn(&mut Value); 4] = [
        |json| json["normalizer"] = json!({"type": "Lowercase"}),
        |json| json["normalizer"] = Value::Null,
        |json| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
        },
        |json| json["model"]["ignore_merges"] = json!(true),
    ];
    for change in refused {
        assert!(matches!(rewritten(&source, change), Err(Error::InvalidArgument { .. })));
    }
}

#[test]
fn further_ends_of_a_text_and_normalizers_in_a_list_survive() {
    let source = open("vocab-llama-bpe");
    let read = source.tokenizer().unwrap();
    let mut json: Value = serde_json::from_str(&read.tokenizer.to_string(false).unwrap()).unwrap();
    json["normalizer"] = json!({"type": "Sequence", "normalizers": []});
    let tokenizer = json.to_string().parse().unwrap();
    let vocabulary = GgufVocabulary {
        tokenizer: &tokenizer,
        named_tokens: &read.named_tokens,
        end_token_ids: &[read.end_token_ids[0], 300, 301],
        chat_templates: &read.chat_templates,
        rows: tokenizer.get_vocab_size(true),
    };
    let mut metadata = vec![("general.architecture".to_string(), GgufEntry::String("llama".into()))];
    metadata.extend(vocabulary.entries().unwrap());
    let again = Copy { metadata, tensors: vec![] }.reopen().unwrap();
    assert_eq!(again.tokenizer().unwrap().end_token_ids, [read.end_token_ids[0], 300, 301]);
}

#[test]
fn roles_have_their_usual_ids_where_the_file_says_nothing() {
    let source = open("vocab-scores");
    let copy =
        Copy::of(&source).without("tokenizer.ggml.eos_token_id").without("tokenizer.ggml.bos_token_id");
    let copy = copy.reopen().unwrap();
    assert_eq!(copy.tokenizer().unwrap().end_token_ids, [2]);
    assert_eq!(copy.generation_config().unwrap()["eos_token_id"], json!([2]));
    for role in ["bos", "eos", "eot", "eom", "padding"] {
        let copy = Copy::of(&source).set(&format!("tokenizer.ggml.{role}_token_id"), GgufEntry::U32(1 << 31));
        let message = copy.reopen().unwrap().tokenizer().unwrap_err().to_string();
        assert!(
            message.contains(&format!("{role}_token_id")) && message.contains("the vocabulary has"),
            "{message}"
        );
    }
}

#[test]
fn unusable_tokenizers_name_the_key() {
    let text = |s: &str| GgufEntry::String(s.into());
    let (bpe, scored) = (open("vocab-llama-bpe"), open("vocab-scores"));
    let duplicate = GgufEntry::Strings(vec!["a".into(), "a".into()]);
    let cases = [
        (
            Copy::of(&bpe).set("tokenizer.ggml.pre", text("made-up")),
            "\"made-up\" is not known; known: default",
        ),
        (Copy::of(&bpe).set("tokenizer.ggml.model", text("rwkv")), "got \"rwkv\""),
        (Copy::of(&bpe).without("tokenizer.ggml.model"), "holds no tokenizer"),
        (Copy::of(&bpe).without("tokenizer.ggml.merges"), "tokenizer.ggml.merges"),
        (Copy::of(&bpe).without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens"),
        (Copy::of(&bpe).set("tokenizer.ggml.tokens", duplicate), "entries for 2 tokens"),
        (Copy::of(&bpe).set("tokenizer.ggml.merges", GgufEntry::Strings(vec!["ab".into()])), "not a pair"),
        (Copy::of(&bpe).set("tokenizer.ggml.bos_token_id", GgufEntry::U32(99_999)), "the vocabulary has"),
        (Copy::of(&scored).without("tokenizer.ggml.scores"), "tokenizer.ggml.scores"),
    ];
    for (copy, expected) in cases {
        let message = copy.reopen().unwrap().tokenizer().unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn a_vocabulary_made_to_exhaust_memory_is_refused() {
    let runs: Vec<String> = (1..=400).map(|n| "a".repeat(n)).collect();
    let copy = Copy::of(&open("vocab-scores"))
        .without("tokenizer.ggml.token_type")
        .set("tokenizer.ggml.scores", GgufEntry::F32s(vec![0.0; runs.len()]))
        .set("tokenizer.ggml.tokens", GgufEntry::Strings(runs))
        .reopen()
        .unwrap();
    let (result, bytes) = peak(|| copy.tokenizer());
    assert!(result.unwrap_err().to_string().contains("in too many ways"));
    assert!(bytes < 4 << 20, "{bytes}");
}

#[test]
fn settings_that_would_change_the_numbers_are_refused() {
    let plain = open("plain");
    let cases = [
        ("llama.expert_count", GgufEntry::U32(8), "expert_count"),
        ("llama.attention.clamp_kqv", GgufEntry::F32(8.0), "clamp_kqv"),
        ("llama.logit_scale", GgufEntry::F32(2.0), "logit_scale"),
        ("llama.attention.causal", GgufEntry::Bool(false), "causal"),
        ("llama.attention.value_length", GgufEntry::U32(4), "must be equal"),
        ("llama.rope.dimension_count", GgufEntry::U32(4), "partial rotation"),
        ("llama.rope.scaling.type", GgufEntry::String("longrope".into()), "longrope"),
        ("llama.block_count", GgufEntry::U32(0), "at least 1"),
        ("llama.embedding_length", GgufEntry::String("x".into()), "expected a non-negative integer"),
        ("llama.feed_forward_length", GgufEntry::I32s(vec![56, 57]), "differs between layers"),
    ];
    for (key, value, expected) in cases {
        let copy = Copy::of(&plain).set(key, value).reopen().unwrap();
        let message = copy.config().unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains(key), "{message}");
    }
    let same =
        Copy::of(&plain).set("llama.feed_forward_length", GgufEntry::I32s(vec![56, 56])).reopen().unwrap();
    assert_eq!(same.config().unwrap()["intermediate_size"], 56);
    let windowed =
        Copy::of(&plain).set("llama.attention.sliding_window", GgufEntry::U32(16)).reopen().unwrap();
    assert_eq!(windowed.config().unwrap()["model_type"], "mistral");
    let foreign = Copy::of(&plain).set("general.architecture", GgufEntry::String("mamba".into())).reopen();
    match foreign {
        Err(Error::UnsupportedModel { model_type, supported }) => {
            assert!(model_type == "mamba" && supported.contains("qwen3"))
        }
        other => panic!("{other:?}"),
    }
}
