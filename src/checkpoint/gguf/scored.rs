//! A SentencePiece BPE pipeline of `tokenizer.json` as the tokens, types and scores of a GGUF vocabulary.
//!
//! `tokenizer.json` has ranked merges where SentencePiece has scores: the token that an earlier merge makes gets the
//! better score, which leads to the same merges. Byte-level BPE is [`super::vocabulary`]'s business.

use std::collections::HashMap;

use serde_json::Value;

use super::vocabulary::{CONTROL, NORMAL, USER_DEFINED, merges, pairs, plain, refuse};
use crate::Result;

const UNKNOWN: i32 = 2;
const BYTE: i32 = 6;

/// SentencePiece's stand-in for a space.
const SPACE: &str = "\u{2581}";

/// Whether `tokenizer.json` holds a pipeline of this kind.
pub(super) fn is_scored(json: &Value) -> bool {
    json["model"]["type"] == "BPE" && json["model"]["byte_fallback"] == true
}

/// Whether a text gets a space in front.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] for stages that GGUF has no word for.
pub(super) fn prefix(json: &Value) -> Result<bool> {
    let model = &json["model"];
    if !plain(model, "continuing_subword_prefix") || !plain(model, "end_of_word_suffix") {
        return Err(refuse("one with marks on parts of words"));
    }
    if model["ignore_merges"] == true {
        return Err(refuse("SentencePiece BPE that ignores merges"));
    }
    let mut prefix = false;
    let mut replaced = false;
    for stage in stages(&json["normalizer"], "normalizers") {
        match stage["type"].as_str() {
            Some("Prepend") if stage["prepend"] == SPACE && !prefix => prefix = true,
            Some("Replace") if stage["pattern"]["String"] == " " && stage["content"] == SPACE => {
                replaced = true
            }
            other => return Err(refuse(format!("a normalizer {}", other.unwrap_or("without a type")))),
        }
    }
    for stage in stages(&json["pre_tokenizer"], "pretokenizers") {
        if stage["type"] != "Metaspace" || stage["replacement"] != SPACE || replaced {
            return Err(refuse(format!("a pre-tokenizer {} in SentencePiece BPE", stage["type"])));
        }
        if stage["split"] != false {
            return Err(refuse("SentencePiece BPE that splits text at spaces"));
        }
        replaced = true;
        let scheme = stage["prepend_scheme"].as_str().unwrap_or("always");
        prefix = scheme != "never" && stage["add_prefix_space"] != false;
        if prefix {
            log::warn!(
                "readers of the GGUF file put a space in front of every text, as SentencePiece does, also of one that \
                 begins with a space or follows a special token"
            );
        }
    }
    if replaced { Ok(prefix) } else { Err(refuse("SentencePiece BPE without a mark for spaces")) }
}

/// The stages of a pipeline's part.
fn stages<'a>(part: &'a Value, list: &str) -> Vec<&'a Value> {
    match part {
        Value::Null => Vec::new(),
        part if part["type"] == "Sequence" => {
            let inner = part[list].as_array().map(Vec::as_slice).unwrap_or_default();
            inner.iter().flat_map(|stage| stages(stage, list)).collect()
        }
        part => vec![part],
    }
}

/// The score of every token, and a type instead of [`NORMAL`] where this kind of vocabulary has one of its own.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] for merges of another kind.
pub(super) fn scores(json: &Value, tokens: &[String], types: &mut [i32]) -> Result<Vec<f32>> {
    let model = &json["model"];
    let list = merges(model)?;
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(list.len());
    for (rank, (left, right)) in pairs(&list).enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let unknown = model["unk_token"].as_str();
    let last = -(list.len() as f32);
    let score = |(token, kind): (&String, &mut i32)| {
        if Some(token.as_str()) == unknown && [NORMAL, CONTROL].contains(kind) {
            *kind = UNKNOWN;
        } else if *kind == NORMAL && is_byte(token) {
            *kind = BYTE;
        }
        match *kind {
            UNKNOWN | CONTROL | BYTE => 0.0,
            USER_DEFINED => last - 1.0,
            _ => ranks.get(token).map_or(last, |rank| -(*rank as f32)),
        }
    };
    Ok(tokens.iter().zip(types).map(score).collect())
}

/// `<0x00>` to `<0xFF>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}
