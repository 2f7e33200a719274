//! Tokenizers against transformers' results (`tests/golden/make_tokenizer.py`).

use std::path::{Path, PathBuf};

use candlewick::tokenizer::{Tokenizer, TokenizerConfig};
use serde_json::Value;

const NAMES: [&str; 4] = ["byte_level", "byte_fallback", "unigram", "wordpiece"];

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer").join(path)
}

pub(crate) fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(path)).unwrap()).unwrap()
}

pub(crate) fn load(name: &str) -> Tokenizer {
    Tokenizer::from_dir(&golden(name)).unwrap()
}

pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    let list = value[key].as_array().unwrap();
    assert!(!list.is_empty(), "{key} is empty");
    list
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

/// The text of a stream, which may not depend on how far it is held back.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special_tokens: bool) -> String {
    let mut stream = tokenizer.decode_stream(skip_special_tokens);
    let mut out = String::new();
    for &id in ids {
        out.push_str(&stream.step(id).unwrap());
    }
    out + &stream.flush().unwrap()
}

#[test]
fn encodes_as_transformers() {
    for name in NAMES {
        let (tokenizer, expected) = (load(name), json(&format!("{name}/expected.json")));
        for case in list(&expected, "texts") {
            let input = text(case, "input");
            assert_eq!(tokenizer.encode(input, true).unwrap(), ids(&case["ids"]), "{name}: {input:?}");
            assert_eq!(tokenizer.encode(input, false).unwrap(), ids(&case["bare"]), "{name}: {input:?}");
        }
        let inputs: Vec<&str> = list(&expected, "texts").iter().map(|case| text(case, "input")).collect();
        for (batch, case) in
            tokenizer.encode_batch(&inputs, true).unwrap().iter().zip(list(&expected, "texts"))
        {
            assert_eq!(*batch, ids(&case["ids"]), "{name}");
        }
    }
}

#[test]
fn encodes_pairs_as_transformers() {
    for name in NAMES {
        let (tokenizer, expected) = (load(name), json(&format!("{name}/expected.json")));
        for case in list(&expected, "pairs") {
            let limit = case["max_length"].as_u64().map(|limit| limit as usize);
            let (first, second) = (text(case, "first"), text(case, "second"));
            let got = tokenizer.encode_pair(first, second, limit).unwrap();
            assert_eq!(got.ids, ids(&case["ids"]), "{name}: {case}");
            assert_eq!(got.type_ids, ids(&case["type_ids"]), "{name}: {case}");
            let full = tokenizer.encode_pair(first, second, None).unwrap();
            assert_eq!(got.truncated, full.ids.len() - got.ids.len(), "{name}: {case}");
            let alone = tokenizer.encode_text(first, limit).unwrap();
            assert_eq!(alone.ids, ids(&case["alone"]), "{name}: {case}");
        }
    }
}

#[test]
fn decodes_as_transformers() {
    for name in NAMES {
        let (tokenizer, expected) = (load(name), json(&format!("{name}/expected.json")));
        for case in list(&expected, "texts").iter().chain(list(&expected, "sequences")) {
            let ids = ids(&case["ids"]);
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text(case, "text"), "{name}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text(case, "plain"), "{name}: {ids:?}");
            assert_eq!(streamed(&tokenizer, &ids, true), text(case, "plain"), "{name}: {ids:?}");
        }
    }
}

#[test]
fn knows_special_tokens() {
    for name in NAMES {
        let (tokenizer, expected) = (load(name), json(&format!("{name}/expected.json")));
        assert_eq!(tokenizer.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap(), "{name}");
        for (token, id) in expected["named"].as_object().unwrap() {
            assert_eq!(tokenizer.named_token_id(token).map(u64::from), id.as_u64(), "{name}: {token}");
        }
    }
    assert_eq!(load("byte_level").model_max_length(), Some(4096));
    assert_eq!(load("byte_fallback").model_max_length(), None);
    let tokenizer = load("byte_level");
    assert_eq!(tokenizer.eos_token_ids(), [tokenizer.token_to_id("<|im_end|>").unwrap()]);
    assert_eq!(tokenizer.bos_token_id(), None);
    assert_eq!(tokenizer.clone().with_eos_token_ids(vec![3, 4]).eos_token_ids(), [3, 4]);
    let fallback = load("byte_fallback");
    assert_eq!(fallback.bos_token_id(), fallback.token_to_id("<s>"));
    assert!(fallback.bos_token_id().is_some());
}

/// A small generator of pseudo-random numbers (SplitMix64), so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// The crate's own decoder sees the whole sequence at once; ours sees one id at a time.
#[test]
fn streams_what_the_crate_decodes() {
    let mut random = Random(7);
    let mut compared = 0;
    for name in ["byte_level", "byte_fallback", "unigram"] {
        let tokenizer = load(name);
        let vocabulary = tokenizer.vocab_size();
        for round in 0..600 {
            let spread = if round % 2 == 0 { vocabulary } else { 12 };
            let start = random.below(vocabulary);
            let ids: Vec<u32> =
                (0..random.below(24)).map(|_| ((start + random.below(spread)) % vocabulary) as u32).collect();
            for skip in [false, true] {
                let whole = tokenizer.inner().decode(&ids, skip).unwrap();
                assert_eq!(streamed(&tokenizer, &ids, skip), whole, "{name}: {ids:?}");
                assert_eq!(tokenizer.decode(&ids, skip).unwrap(), whole, "{name}: {ids:?}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3600);
}

#[test]
fn stream_speaks_as_soon_as_it_can() {
    let tokenizer = load("byte_level");
    let mut stream = tokenizer.decode_stream(true);
    let emoji = tokenizer.encode("𐍈", false).unwrap();
    assert_eq!(emoji.len(), 4);
    let pieces: Vec<String> = emoji.iter().map(|&id| stream.step(id).unwrap()).collect();
    assert_eq!(pieces, ["", "", "", "𐍈"]);
    // A byte that cannot begin a character is final at once, also after an unfinished one.
    let invalid = tokenizer.token_to_id("ÿ").unwrap();
    assert_eq!(stream.step(invalid).unwrap(), "\u{FFFD}");
    assert_eq!(stream.step(emoji[0]).unwrap(), "");
    assert_eq!(stream.step(invalid).unwrap(), "\u{FFFD}\u{FFFD}");
    assert_eq!(stream.step(emoji[0]).unwrap(), "");
    assert_eq!(stream.flush().unwrap(), "\u{FFFD}");
    assert_eq!(stream.flush().unwrap(), "");

    let tokenizer = load("byte_fallback");
    let byte = |value: u8| tokenizer.token_to_id(&format!("<0x{value:02X}>")).unwrap();
    let mut stream = tokenizer.decode_stream(true);
    assert_eq!(stream.step(byte(0xC3)).unwrap(), "");
    assert_eq!(stream.step(byte(0x41)).unwrap(), "\u{FFFD}\u{FFFD}");
    for _ in 0..1000 {
        assert_eq!(stream.step(byte(0x41)).unwrap(), "\u{FFFD}");
    }
    let word = tokenizer.encode("river", false).unwrap();
    let spoken: String = word.iter().map(|&id| stream.step(id).unwrap()).collect();
    assert_eq!(spoken, " river");
}

#[test]
fn unknown_ids_have_no_text() {
    let tokenizer = load("byte_level");
    let known = tokenizer.decode(&[1, 60, 61], true).unwrap();
    assert_eq!(tokenizer.decode(&[1, 4_000_000, 60, u32::MAX, 61], true).unwrap(), known);
    assert_eq!(tokenizer.decode_stream(true).step(u32::MAX).unwrap(), "");
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    let tokenizer = load("wordpiece");
    for limit in [0, 1] {
        let error = tokenizer.encode_text("river", Some(limit)).unwrap_err();
        assert!(error.to_string().starts_with("max_length"), "{error}");
    }
    for limit in [2, 3] {
        assert_eq!(tokenizer.encode_text("the river", Some(limit)).unwrap().ids.len(), limit);
    }
}

/// A directory with the tiny vocabulary and other files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden("wordpiece/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    dir
}

#[test]
fn reads_special_tokens_in_all_their_forms() {
    let config = r#"{"eos_token": {"content": "[SEP]", "lstrip": false}, "bos_token": null, "image_token": "[CLS]",
        "additional_special_tokens": ["[EXTRA]", {"content": "[MORE]"}], "model_max_length": 1e30,
        "added_tokens_decoder": {"900": {"content": "[ADDED]", "special": false}}}"#;
    let map = r#"{"eos_token": "[CLS]", "pad_token": {"content": "[PAD]"}, "bos_token": "[CLS]"}"#;
    let dir = directory(&[("tokenizer_config.json", config), ("special_tokens_map.json", map)]);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let id = |token: &str| tokenizer.token_to_id(token);
    assert_eq!(tokenizer.eos_token_ids(), [id("[SEP]").unwrap()]);
    assert_eq!(tokenizer.pad_token_id(), id("[PAD]"));
    assert_eq!(tokenizer.named_token_id("image_token"), id("[CLS]"));
    assert_eq!(tokenizer.bos_token_id(), id("[CLS]"));
    assert_eq!(tokenizer.model_max_length(), None);
    for (token, special) in [("[EXTRA]", true), ("[MORE]", true), ("[ADDED]", false)] {
        let ids = tokenizer.encode(token, false).unwrap();
        assert_eq!(ids, [id(token).unwrap()]);
        assert_eq!(tokenizer.decode(&ids, true).unwrap().is_empty(), special, "{token}");
    }
}

#[test]
fn chat_template_files_have_their_order() {
    let read = |files: &[(&str, &str)]| {
        let tokenizer = Tokenizer::from_dir(directory(files).path()).unwrap();
        (tokenizer.chat_template().map(str::to_string), tokenizer.config().chat_templates.len())
    };
    let single = ("tokenizer_config.json", r#"{"chat_template": "single"}"#);
    let named = (
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#,
    );
    let file = ("chat_template.jinja", "file");
    let extra = ("additional_chat_templates/rag.jinja", "extra");
    let processor = ("chat_template.json", r#"{"chat_template": "processor"}"#);
    assert_eq!(read(&[]), (None, 0));
    assert_eq!(read(&[single, processor]), (Some("single".into()), 1));
    assert_eq!(read(&[named]), (Some("d".into()), 2));
    assert_eq!(read(&[named, file, extra]), (Some("file".into()), 2));
    assert_eq!(read(&[processor]), (Some("processor".into()), 1));
}

#[test]
fn malformed_files_are_named() {
    for (file, content, expected) in [
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "[]", "JSON object"),
        ("tokenizer_config.json", r#"{"eos_token": 3}"#, "eos_token"),
        ("tokenizer_config.json", r#"{"eos_token": {"content": []}}"#, "eos_token"),
        ("tokenizer_config.json", r#"{"model_max_length": -1}"#, "model_max_length"),
        ("tokenizer_config.json", r#"{"chat_template": 1}"#, "chat_template"),
        ("tokenizer_config.json", r#"{"chat_template": [{"name": "x"}]}"#, "chat_template"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": "y"}}"#, "added_tokens_decoder.x"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": []}"#, "added_tokens_decoder"),
        ("tokenizer_config.json", r#"{"additional_special_tokens": "x"}"#, "additional_special_tokens"),
        ("special_tokens_map.json", "null", "special_tokens_map.json"),
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("tokenizer.json", "", "tokenizer.json"),
    ] {
        let error = Tokenizer::from_dir(directory(&[(file, content)]).path()).unwrap_err();
        assert!(matches!(error, candlewick::Error::InvalidConfig { .. }), "{content}: {error}");
        assert!(
            error.to_string().contains(file) && error.to_string().contains(expected),
            "{content}: {error}"
        );
    }
    let error = Tokenizer::from_dir(Path::new("/nonexistent")).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

#[test]
fn damaged_files_never_panic() {
    let mut random = Random(11);
    let mut refused = 0;
    for name in NAMES {
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            let original = std::fs::read(golden(&format!("{name}/{file}"))).unwrap();
            for _ in 0..60 {
                let mut bytes = original.clone();
                match random.below(3) {
                    0 => bytes.truncate(random.below(bytes.len())),
                    1 => {
                        let at = random.below(bytes.len());
                        bytes.drain(at..(at + random.below(40)).min(original.len()));
                    }
                    _ => {
                        let at = random.below(bytes.len());
                        let damage = br#"{}[]\",:0-9eaz"#;
                        bytes[at] = damage[random.below(damage.len())];
                    }
                }
                let dir = tempfile::tempdir().unwrap();
                std::fs::copy(golden(&format!("{name}/tokenizer.json")), dir.path().join("tokenizer.json"))
                    .unwrap();
                std::fs::write(dir.path().join(file), &bytes).unwrap();
                match Tokenizer::from_dir(dir.path()) {
                    Ok(tokenizer) => {
                        let ids = tokenizer.encode("The river 😀 [SEP]", true).unwrap_or_default();
                        let _ = tokenizer.decode(&ids, true);
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn parts_can_come_from_elsewhere() {
    let inner = load("byte_level").inner().clone();
    let config = TokenizerConfig {
        named_tokens: [("eos_token".to_string(), "<|endoftext|>".to_string())].into(),
        ..TokenizerConfig::default()
    };
    let tokenizer = Tokenizer::from_parts(inner, config).unwrap();
    assert_eq!(tokenizer.eos_token_ids(), [tokenizer.token_to_id("<|endoftext|>").unwrap()]);
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    shared(&tokenizer);
}
