//! The tokenizer of repositories that have no `tokenizer.json` but `vocab.txt`: BERT's words by line.
//!
//! Other old formats are not read. Sources: Devlin et al. 2018; the rules that transformers builds from such a file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::read_json;
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use crate::{Error, Result};

const FILE: &str = "vocab.txt";

/// Classes of transformers that read such a file alike, without `Tokenizer` and `Fast`.
const CLASSES: &[&str] =
    &["Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "MobileBert", "SqueezeBert"];

/// Families whose usual tokenizer is one of those.
const FAMILIES: &[&str] = &["bert", "distilbert", "nomic_bert"];

/// Named tokens and how they are spelled where the files do not say it.
const TOKENS: [(&str, &str); 5] = [
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

/// Whether `directory` has the tokenizer of a model of this type in this form.
pub(super) fn is_there(directory: &Path, model_type: &str) -> Result<bool> {
    if !directory.join(FILE).is_file() {
        return Ok(false);
    }
    let class = TokenizerConfig::from_dir(directory)?.class;
    Ok(match class.as_deref() {
        Some(class) => {
            let class = class.strip_suffix("Fast").unwrap_or(class);
            class.strip_suffix("Tokenizer").is_some_and(|class| CLASSES.contains(&class))
        }
        None => FAMILIES.contains(&model_type),
    })
}

/// Reads the tokenizer.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read, [`Error::InvalidConfig`] for one without the tokens around a text.
pub(super) fn read(directory: &Path) -> Result<Tokenizer> {
    let path = directory.join(FILE);
    let text = std::fs::read_to_string(&path).map_err(|error| Error::io(&path, error))?;
    let words: BTreeMap<&str, usize> =
        text.lines().enumerate().map(|(id, word)| (word.trim_end(), id)).collect();
    let mut config = TokenizerConfig::from_dir(directory)?;
    for (name, usual) in TOKENS {
        if words.contains_key(usual) {
            config.named_tokens.entry(name.to_owned()).or_insert_with(|| usual.to_owned());
        }
    }
    let id = |name: &str| {
        let word = config.named_tokens.get(name);
        let id = word.and_then(|word| words.get(word.as_str()));
        word.zip(id).ok_or_else(|| {
            let reason = format!("has no {}", word.map_or(name, String::as_str));
            Error::config(path.display().to_string(), "", reason)
        })
    };
    let (unknown, before, after) = (id("unk_token")?.0, id("cls_token")?, id("sep_token")?);
    let options_path = directory.join("tokenizer_config.json");
    let options = if options_path.is_file() { read_json(&options_path)? } else { Value::Object(Map::new()) };
    let flag = |name: &str| options.get(name).and_then(Value::as_bool);
    let value = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": flag("tokenize_chinese_chars").unwrap_or(true),
            "strip_accents": flag("strip_accents"),
            "lowercase": flag("do_lower_case").unwrap_or(true),
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": after, "cls": before },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": words,
        },
    });
    let tokenizer = tokenizers::Tokenizer::from_bytes(value.to_string())
        .map_err(|error| Error::config(path.display().to_string(), "", error.to_string()))?;
    Tokenizer::from_parts(tokenizer, config)
}
