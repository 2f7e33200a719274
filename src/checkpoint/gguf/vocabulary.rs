//! A tokenizer as the metadata of a GGUF file: the reverse of reading one.
//!
//! Two kinds can be expressed: byte-level BPE, and SentencePiece's BPE with byte fallback (see [`super::scored`]).

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::tokenizer::ENDS;
use super::{GgufEntry, pre_tokenizer, scored};
use crate::{Error, Result};

pub(super) const NORMAL: i32 = 1;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// A tokenizer and what goes with it into a GGUF file.
#[derive(Debug, Clone, Copy)]
pub struct GgufVocabulary<'a> {
    /// The pipeline.
    pub tokenizer: &'a Tokenizer,
    /// `bos_token`, `eos_token` and so on.
    pub named_tokens: &'a BTreeMap<String, String>,
    /// All ids that end a text.
    pub end_token_ids: &'a [u32],
    /// Chat templates by name.
    pub chat_templates: &'a BTreeMap<String, String>,
    /// Rows of the embedding; the list of tokens is filled up to it.
    pub rows: usize,
}

pub(super) fn refuse(what: impl std::fmt::Display) -> Error {
    Error::argument(
        "tokenizer",
        what,
        "byte-level BPE whose splitting GGUF has a name for, or SentencePiece BPE",
    )
}

impl GgufVocabulary<'_> {
    /// The metadata below `tokenizer`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tokenizer that GGUF cannot express.
    pub fn entries(&self) -> Result<Vec<(String, GgufEntry)>> {
        let text =
            self.tokenizer.to_string(false).map_err(|e| Error::internal("reading the tokenizer", e))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| Error::internal("reading the tokenizer", e))?;
        let (tokens, mut types) = self.tokens()?;
        let mut entries = if scored::is_scored(&json) {
            let (prefix, scores) = (scored::prefix(&json)?, scored::scores(&json, &tokens, &mut types)?);
            vec![
                ("model", GgufEntry::String("llama".into())),
                ("pre", GgufEntry::String("default".into())),
                ("add_space_prefix", GgufEntry::Bool(prefix)),
                ("scores", GgufEntry::F32s(scores)),
            ]
        } else {
            vec![
                ("model", GgufEntry::String("gpt2".into())),
                ("pre", GgufEntry::String(pre_name(&json)?.into())),
                ("merges", GgufEntry::Strings(merges(&json["model"])?)),
            ]
        };
        entries.push(("tokens", GgufEntry::Strings(tokens)));
        entries.push(("token_type", GgufEntry::I32s(types)));
        let id = |name: &str| self.tokenizer.token_to_id(self.named_tokens.get(name)?);
        let end = id("eos_token").or(self.end_token_ids.first().copied());
        let mut further = self.further_ends(end).into_iter();
        let ids = [
            ("bos_token_id", id("bos_token")),
            ("eos_token_id", end),
            ("unknown_token_id", id("unk_token").or_else(|| unknown(self.tokenizer, &json))),
            ("padding_token_id", id("pad_token")),
            ("eot_token_id", further.next()),
            ("eom_token_id", further.next()),
        ];
        let lost: Vec<u32> = further.collect();
        if !lost.is_empty() {
            log::warn!("GGUF has no key for further tokens that end a text: {lost:?}");
        }
        entries.extend(ids.into_iter().filter_map(|(key, id)| Some((key, GgufEntry::U32(id?)))));
        let (bos, eos) = self.added(id("bos_token"), end)?;
        entries.push(("add_bos_token", GgufEntry::Bool(bos)));
        entries.push(("add_eos_token", GgufEntry::Bool(eos)));
        let mut entries: Vec<(String, GgufEntry)> =
            entries.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
        for (name, template) in self.chat_templates {
            let suffix = if name == "default" { String::new() } else { format!(".{name}") };
            entries.push((format!("tokenizer.chat_template{suffix}"), GgufEntry::String(template.clone())));
        }
        Ok(entries)
    }

    /// Text and type of every id; ids that stand for nothing are fillers.
    fn tokens(&self) -> Result<(Vec<String>, Vec<i32>)> {
        let mut tokens: Vec<String> = (0..self.rows).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; self.rows];
        let added = self.tokenizer.get_added_tokens_decoder();
        let reaching =
            added.values().filter(|token| token.lstrip || token.rstrip || token.single_word).count();
        if reaching > 0 {
            log::warn!(
                "GGUF cannot say that {reaching} special tokens take spaces beside them or only stand alone"
            );
        }
        for (text, id) in self.tokenizer.get_vocab(true) {
            let (Some(token), Some(kind)) = (tokens.get_mut(id as usize), types.get_mut(id as usize)) else {
                return Err(refuse(format!("token {id} where the embedding has {} rows", self.rows)));
            };
            *token = text;
            *kind = match added.get(&id) {
                Some(token) if token.special => CONTROL,
                Some(_) => USER_DEFINED,
                None => NORMAL,
            };
        }
        Ok((tokens, types))
    }

    /// Ends of a text beside the usual one that readers do not know by their names.
    fn further_ends(&self, usual: Option<u32>) -> Vec<u32> {
        let unknown = |id: &u32| {
            let text = self.tokenizer.id_to_token(*id);
            Some(*id) != usual && text.is_some_and(|text| !ENDS.contains(&text.as_str()))
        };
        self.end_token_ids.iter().copied().filter(unknown).collect()
    }

    /// Whether texts get the first and the last token.
    fn added(&self, bos: Option<u32>, eos: Option<u32>) -> Result<(bool, bool)> {
        let empty = self.tokenizer.encode("", true).map_err(|e| Error::internal("encoding a text", e))?;
        match *empty.get_ids() {
            [] => Ok((false, false)),
            [first] if Some(first) == bos => Ok((true, false)),
            [last] if Some(last) == eos => Ok((false, true)),
            [first, last] if (Some(first), Some(last)) == (bos, eos) => Ok((true, true)),
            _ => Err(refuse("one that adds other tokens than the first and the last")),
        }
    }
}

/// The token for what nothing else stands for.
fn unknown(tokenizer: &Tokenizer, json: &Value) -> Option<u32> {
    tokenizer.token_to_id(json["model"]["unk_token"].as_str()?)
}

/// Whether a field of the model is not in use.
pub(super) fn plain(model: &Value, field: &str) -> bool {
    model[field].is_null() || model[field] == ""
}

/// The parts of merges.
pub(super) fn pairs(merges: &[String]) -> impl Iterator<Item = (&str, &str)> {
    merges.iter().filter_map(|merge| merge.split_once(' '))
}

/// The merges of a BPE model, their parts with a space between them.
pub(super) fn merges(model: &Value) -> Result<Vec<String>> {
    let list = model["merges"].as_array().ok_or_else(|| refuse("one without merges"))?;
    let one = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(a), Value::String(b)] => Some(format!("{a} {b}")),
            _ => None,
        },
        _ => None,
    };
    list.iter().map(one).collect::<Option<_>>().ok_or_else(|| refuse("one with merges of another kind"))
}

/// The name of the way in which text is split before merging.
fn pre_name(json: &Value) -> Result<&'static str> {
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(refuse("another kind of model"));
    }
    if !plain(model, "continuing_subword_prefix") || !plain(model, "end_of_word_suffix") {
        return Err(refuse("one with marks on parts of words"));
    }
    let composed = composes(&json["normalizer"])?;
    let patterns = patterns(&json["pre_tokenizer"])?;
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let ignore_merges = model["ignore_merges"] == true;
    pre_tokenizer::name_of(&patterns, ignore_merges, composed)
        .ok_or_else(|| refuse("a splitting without a name"))
}

/// Whether text is brought into Unicode's composed form.
fn composes(normalizer: &Value) -> Result<bool> {
    if normalizer.is_null() {
        return Ok(false);
    }
    match (normalizer["type"].as_str(), normalizer["normalizers"].as_array()) {
        (Some("NFC"), _) => Ok(true),
        (Some("Sequence"), Some(stages)) => {
            stages.iter().try_fold(false, |any, stage| Ok(any | composes(stage)?))
        }
        (other, _) => Err(refuse(format!("a normalizer {}", other.unwrap_or("without a type")))),
    }
}

/// The patterns of a pre-tokenizer, applied one after the other.
fn patterns(stage: &Value) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match stage["type"].as_str() {
        Some("Sequence") => {
            let stages = stage["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default();
            Ok(stages.iter().map(patterns).collect::<Result<Vec<_>>>()?.concat())
        }
        Some("Split") if stage["behavior"] == "Isolated" && stage["invert"] != true => {
            let pattern =
                text(&stage["pattern"]["Regex"]).ok_or_else(|| refuse("a split at a fixed text"))?;
            Ok(vec![pattern])
        }
        Some("Digits") if stage["individual_digits"] == true => Ok(vec![r"\p{N}".to_owned()]),
        Some("ByteLevel") if stage["add_prefix_space"] == true => Err(refuse("one that puts a space first")),
        Some("ByteLevel") if stage["use_regex"] == false => Ok(Vec::new()),
        Some("ByteLevel") => Ok(vec![pre_tokenizer::GPT2.to_owned()]),
        other => Err(refuse(format!("a pre-tokenizer {}", other.unwrap_or("without a type")))),
    }
}
