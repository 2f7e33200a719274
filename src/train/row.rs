//! One row of training data to token ids and labels.
//!
//! Four kinds are understood, told apart by their fields: `messages`, `prompt` with `completion`, `input_ids`, `text`.
//! Further fields are read over, as data sets carry all sorts of them.

use std::ops::Range;

use serde_json::{Map, Value, json};

use crate::kernels::cross_entropy::IGNORED_LABEL;
use crate::models::Model;
use crate::tokenizer::{ChatOptions, Tokenizer};
use crate::{Error, Result};

/// What a conversation uses, whichever field it is in.
const CHAT: &[&str] = &["messages", "prompt", "completion", "tools", "chat_template_kwargs"];

/// The fields that tell the kind of a row, in the order in which they decide, each with all fields that its kind uses.
pub const ROW_KINDS: &[(&str, &[&str])] = &[
    ("messages", CHAT),
    ("prompt", CHAT),
    ("completion", CHAT),
    ("input_ids", &["input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks"]),
    ("text", &["text"]),
];

/// Token ids and what is to be predicted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// For each token its id where the tokens before it should predict it, else [`IGNORED_LABEL`].
    pub labels: Vec<i32>,
    /// Tokens that were cut off.
    pub truncated: usize,
}

impl Example {
    /// Number of tokens that are predicted; the first one of a row has nothing before it.
    pub fn targets(&self) -> usize {
        self.labels.iter().skip(1).filter(|label| **label != IGNORED).count()
    }

    fn push(&mut self, id: u32, counts: bool) {
        self.ids.push(id);
        self.labels.push(if counts { id as i32 } else { IGNORED });
    }
}

pub(super) const IGNORED: i32 = IGNORED_LABEL as i32;

/// Why a row cannot be used.
pub(super) enum Fault {
    /// It is the row's fault.
    Row(String),
    /// Every row would fail.
    Other(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidArgument { .. } => Self::Row(error.to_string()),
            other => Self::Other(other),
        }
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Row(reason)
    }
}

/// Turns rows into examples for one model.
#[derive(Debug, Clone)]
pub struct RowEncoder {
    tokenizer: Option<Tokenizer>,
    vocab_size: usize,
    max_length: usize,
    /// What the tokenizer puts around every text.
    around: (Vec<u32>, Vec<u32>),
    eos: Option<u32>,
}

impl RowEncoder {
    /// An encoder for `model` that cuts rows after `max_length` tokens.
    pub fn new(model: &Model, max_length: usize) -> Result<Self> {
        let tokenizer = model.tokenizer().ok().cloned();
        let (mut around, mut eos) = Default::default();
        if let Some(tokenizer) = &tokenizer {
            around = special_tokens_around(tokenizer)?;
            eos =
                tokenizer.named_token_id("eos_token").or_else(|| tokenizer.eos_token_ids().first().copied());
        }
        let max_length = max_length.min(model.context_length());
        Ok(Self { tokenizer, vocab_size: model.vocab_size(), max_length, around, eos })
    }

    /// The example of a row.
    pub(super) fn encode(&self, row: &Value) -> Result<Example, Fault> {
        let Some(map) = row.as_object() else {
            return Err(format!("expected an object of fields, got {}", kind_of(row)).into());
        };
        let has = |field: &str| map.get(field).is_some_and(|value| !value.is_null());
        let mut example = if has("messages") {
            let messages = map.get("messages").and_then(Value::as_array);
            let messages = messages.ok_or_else(|| "\"messages\" is not a list".to_owned())?;
            self.chat(messages, 0, map)?
        } else if has("prompt") || has("completion") {
            self.prompt_and_completion(map)?
        } else if has("input_ids") {
            self.tokens(map)?
        } else if has("text") {
            self.text(map["text"].as_str().ok_or_else(|| "\"text\" is not a string".to_owned())?)?
        } else {
            let fields: Vec<&str> = map.keys().map(String::as_str).collect();
            return Err(format!(
                "found the fields {}; expected \"text\", \"prompt\" and \"completion\", \"messages\", or \"input_ids\"",
                if fields.is_empty() { "(none)".to_owned() } else { fields.join(", ") }
            )
            .into());
        };
        if example.ids.is_empty() {
            return Err("it holds no tokens".to_owned().into());
        }
        example.truncated = example.ids.len().saturating_sub(self.max_length);
        example.ids.truncate(self.max_length);
        example.labels.truncate(self.max_length);
        Ok(example)
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| Error::ModelNotFound {
            name: "tokenizer.json".into(),
            reason: "this model has no tokenizer; train on rows with input_ids".into(),
        })
    }

    /// Everything is predicted, and the end of the text too.
    fn text(&self, text: &str) -> Result<Example, Fault> {
        self.masked(text, std::slice::from_ref(&(0..text.len())))
    }

    /// A text with special tokens around it, of which some ranges of bytes are predicted.
    fn masked(&self, text: &str, ranges: &[Range<usize>]) -> Result<Example, Fault> {
        let encoded = self.tokenizer()?.encode_masked(text, ranges)?;
        let whole = ranges.len() == 1 && ranges[0] == (0..text.len());
        let mut example = Example::default();
        self.around.0.iter().for_each(|id| example.push(*id, whole));
        encoded.ids.iter().zip(&encoded.mask).for_each(|(id, counts)| example.push(*id, whole || *counts));
        self.around.1.iter().for_each(|id| example.push(*id, true));
        if let Some(eos) = self.eos.filter(|eos| example.ids.last() != Some(eos)) {
            example.push(eos, true);
        }
        Ok(example)
    }

    fn prompt_and_completion(&self, map: &Map<String, Value>) -> Result<Example, Fault> {
        let field = |name: &str| {
            map.get(name).filter(|value| !value.is_null()).ok_or_else(|| {
                let other = if name == "prompt" { "completion" } else { "prompt" };
                format!("it has {other:?} but no {name:?}")
            })
        };
        match (field("prompt")?, field("completion")?) {
            (Value::String(prompt), Value::String(completion)) => {
                let text = format!("{prompt}{completion}");
                self.masked(&text, std::slice::from_ref(&(prompt.len()..text.len())))
            }
            (Value::Array(prompt), Value::Array(completion)) => {
                let messages: Vec<Value> = prompt.iter().chain(completion).cloned().collect();
                self.chat(&messages, prompt.len(), map)
            }
            _ => Err("\"prompt\" and \"completion\" must both be strings, or both lists of messages"
                .to_owned()
                .into()),
        }
    }

    /// A conversation; the assistant's turns from message `first` on are predicted.
    fn chat(&self, messages: &[Value], first: usize, map: &Map<String, Value>) -> Result<Example, Fault> {
        let tokenizer = self.tokenizer()?;
        let variables = match map.get("chat_template_kwargs") {
            Some(Value::Object(variables)) => variables.clone(),
            _ => Map::new(),
        };
        let tools = match map.get("tools") {
            Some(Value::String(text)) => Some(
                serde_json::from_str(text)
                    .map_err(|error| format!("\"tools\" is not valid JSON: {error}"))?,
            ),
            other => other.filter(|tools| !tools.is_null()).cloned(),
        };
        let options = ChatOptions { tools, variables, ..ChatOptions::default() };
        let chat = tokenizer.assistant_spans(&json!(messages), &options)?;
        let is_assistant =
            |message: &&Value| message.get("role").and_then(Value::as_str) == Some("assistant");
        let before = messages[..first].iter().filter(is_assistant).count();
        let spans = chat.assistant.get(before..).unwrap_or_default();
        if spans.is_empty() {
            return Err("no message of the assistant to learn from".to_owned().into());
        }
        let encoded = tokenizer.encode_masked(&chat.text, spans)?;
        let mut example = Example::default();
        encoded.ids.iter().zip(&encoded.mask).for_each(|(id, counts)| example.push(*id, *counts));
        Ok(example)
    }

    /// Ids as they are, with labels, or masks in the words of other libraries.
    fn tokens(&self, map: &Map<String, Value>) -> Result<Example, Fault> {
        let numbers = |field: &str| -> Result<Option<Vec<i64>>, String> {
            let Some(value) = map.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
            let list = value.as_array().and_then(|list| list.iter().map(Value::as_i64).collect());
            list.map(Some).ok_or_else(|| format!("{field:?} is not a list of whole numbers"))
        };
        let ids = numbers("input_ids")?.unwrap_or_default();
        let in_vocab = |id: i64| (0..self.vocab_size as i64).contains(&id);
        if let Some(id) = ids.iter().find(|id| !in_vocab(**id)) {
            return Err(format!("token id {id} is outside of the vocabulary of {}", self.vocab_size).into());
        }
        let mut labels = numbers("labels")?.unwrap_or_else(|| ids.clone());
        if let Some(label) = labels.iter().find(|label| **label != IGNORED_LABEL && !in_vocab(**label)) {
            let expected = format!("{IGNORED_LABEL} or an id of a vocabulary of {}", self.vocab_size);
            return Err(format!("label {label}: expected {expected}").into());
        }
        for field in ["completion_mask", "assistant_masks"] {
            if let Some(mask) = numbers(field)? {
                same_length(field, mask.len(), ids.len())?;
                labels
                    .iter_mut()
                    .zip(mask)
                    .filter(|(_, bit)| *bit == 0)
                    .for_each(|(l, _)| *l = IGNORED_LABEL);
            }
        }
        same_length("labels", labels.len(), ids.len())?;
        let present = numbers("attention_mask")?.unwrap_or_else(|| vec![1; ids.len()]);
        same_length("attention_mask", present.len(), ids.len())?;
        let mut example = Example::default();
        // Padding is left out: rows need no common length here.
        for ((id, label), _) in ids.iter().zip(&labels).zip(&present).filter(|(_, present)| **present != 0) {
            example.ids.push(*id as u32);
            example.labels.push(*label as i32);
        }
        Ok(example)
    }
}

fn same_length(field: &str, found: usize, expected: usize) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found} {field} for {expected} input_ids")) }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The special tokens that the tokenizer puts before and after every text.
fn special_tokens_around(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let (plain, whole) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    let place = whole.windows(plain.len().max(1)).position(|window| window == plain);
    Ok(match place {
        Some(start) => (whole[..start].to_vec(), whole[start + plain.len()..].to_vec()),
        None => Default::default(),
    })
}
