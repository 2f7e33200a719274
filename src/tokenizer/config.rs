//! What the files beside `tokenizer.json` say: special tokens, length limit, chat templates.
//!
//! It does not touch the vocabulary: [`Tokenizer`](super::Tokenizer) applies what is read here.
//! Sources: the files that transformers writes (`tokenizer_config.json`, `special_tokens_map.json`,
//! `chat_template.jinja`, `additional_chat_templates/`, `chat_template.json`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{Error, Result};

/// The tokens that have a name of their own, in transformers' order.
const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A length limit above this means "none": transformers writes 1e30 for that.
const LARGEST_LENGTH: f64 = 1e9;

/// The settings of a tokenizer that `tokenizer.json` does not hold.
#[derive(Clone, Debug, Default)]
pub struct TokenizerConfig {
    /// Named special tokens such as `"eos_token"`, and the model's own names ending in `_token`.
    pub named_tokens: BTreeMap<String, String>,
    /// Special tokens without a name.
    pub extra_special_tokens: Vec<String>,
    /// Added tokens by id; they complete or correct those of the vocabulary.
    pub added_tokens: BTreeMap<u32, AddedToken>,
    /// Chat templates by name; the usual one is called `"default"`.
    pub chat_templates: BTreeMap<String, String>,
    /// The longest input in tokens, if there is a limit.
    pub model_max_length: Option<usize>,
    /// Whether decoding removes the spaces before punctuation.
    pub clean_up_spaces: bool,
    /// Whether too long inputs lose their beginning instead of their end.
    pub truncate_left: bool,
    /// The class that transformers reads the files with, such as `"BertTokenizer"`.
    pub class: Option<String>,
    /// The inputs that a model is given, such as `"token_type_ids"`, where the files say so.
    pub input_names: Option<Vec<String>>,
}

impl TokenizerConfig {
    /// Reads the configuration files of `dir`; missing ones are empty, malformed ones an error.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let mut config = match read_object(&dir.join("tokenizer_config.json"))? {
            Some(object) => Self::from_json("tokenizer_config.json", &object)?,
            None => Self::default(),
        };
        if let Some(object) = read_object(&dir.join("special_tokens_map.json"))? {
            let map = Self::from_json("special_tokens_map.json", &object)?;
            for (name, token) in map.named_tokens {
                config.named_tokens.entry(name).or_insert(token);
            }
            if config.extra_special_tokens.is_empty() {
                config.extra_special_tokens = map.extra_special_tokens;
            }
        }
        config.read_template_files(dir)?;
        Ok(config)
    }

    /// Reads the fields of a parsed `tokenizer_config.json`; `file` names it in errors.
    pub fn from_json(file: &str, object: &Map<String, Value>) -> Result<Self> {
        let mut config = Self {
            clean_up_spaces: object.get("clean_up_tokenization_spaces") == Some(&Value::Bool(true)),
            truncate_left: object.get("truncation_side").and_then(Value::as_str) == Some("left"),
            class: object.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned),
            input_names: object
                .get("model_input_names")
                .and_then(Value::as_array)
                .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            ..Self::default()
        };
        for (key, value) in object {
            if NAMED_TOKENS.contains(&key.as_str()) {
                if let Some(token) = token_content(file, key, value)? {
                    config.named_tokens.insert(key.clone(), token);
                }
            } else if key.ends_with("_token")
                && let Value::String(token) = value
            {
                config.named_tokens.insert(key.clone(), token.clone());
            }
        }
        for key in ["additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"] {
            config.read_extra_tokens(file, key, object.get(key))?;
        }
        config.read_added_tokens(file, object.get("added_tokens_decoder"))?;
        config.model_max_length = read_length(file, object.get("model_max_length"))?;
        config.read_templates(file, object.get("chat_template"))?;
        Ok(config)
    }

    /// A list of tokens, or a mapping from names to tokens.
    fn read_extra_tokens(&mut self, file: &str, key: &str, value: Option<&Value>) -> Result<()> {
        match value {
            None | Some(Value::Null) => {}
            Some(Value::Array(tokens)) => {
                for token in tokens {
                    self.extra_special_tokens.extend(token_content(file, key, token)?);
                }
            }
            Some(Value::Object(named)) => {
                for (name, token) in named {
                    if let Some(token) = token_content(file, key, token)? {
                        self.named_tokens.insert(name.clone(), token);
                    }
                }
            }
            Some(other) => return Err(Error::config(file, key, expected("a list of tokens", other))),
        }
        Ok(())
    }

    fn read_added_tokens(&mut self, file: &str, value: Option<&Value>) -> Result<()> {
        const FIELD: &str = "added_tokens_decoder";
        let tokens = match value {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(tokens)) => tokens,
            Some(other) => return Err(Error::config(file, FIELD, expected("an object", other))),
        };
        for (id, token) in tokens {
            let field = format!("{FIELD}.{id}");
            let id: u32 = id
                .parse()
                .map_err(|_| Error::config(file, &field, "expected a token id as key".to_string()))?;
            let Some(content) = token_content(file, &field, token)? else { continue };
            let flag =
                |name: &str, default: bool| token.get(name).and_then(Value::as_bool).unwrap_or(default);
            let special = flag("special", false);
            let token = AddedToken::from(content, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special));
            self.added_tokens.insert(id, token);
        }
        Ok(())
    }

    /// One template, or a list of named ones.
    fn read_templates(&mut self, file: &str, value: Option<&Value>) -> Result<()> {
        const FIELD: &str = "chat_template";
        match value {
            None | Some(Value::Null) => {}
            Some(Value::String(template)) => {
                self.chat_templates.insert("default".into(), template.clone());
            }
            Some(Value::Array(entries)) => {
                for entry in entries {
                    let text = |key: &str| entry.get(key).and_then(Value::as_str);
                    let (Some(name), Some(template)) = (text("name"), text("template")) else {
                        let reason = "expected entries {\"name\": string, \"template\": string}";
                        return Err(Error::config(file, FIELD, reason));
                    };
                    self.chat_templates.insert(name.to_string(), template.to_string());
                }
            }
            Some(other) => {
                return Err(Error::config(
                    file,
                    FIELD,
                    expected("a string or a list of named templates", other),
                ));
            }
        }
        Ok(())
    }

    /// Template files win over `tokenizer_config.json`; `chat_template.json` is the last resort.
    fn read_template_files(&mut self, dir: &Path) -> Result<()> {
        let mut files = BTreeMap::new();
        if let Some(template) = read_text(&dir.join("chat_template.jinja"))? {
            files.insert("default".to_string(), template);
        }
        for (name, path) in additional_templates(dir)? {
            if let Some(template) = read_text(&path)? {
                files.insert(name, template);
            }
        }
        if !files.is_empty() {
            self.chat_templates = files;
        }
        if self.chat_templates.is_empty()
            && let Some(object) = read_object(&dir.join("chat_template.json"))?
        {
            self.read_templates("chat_template.json", object.get("chat_template"))?;
        }
        Ok(())
    }
}

/// The `.jinja` files of `additional_chat_templates`, by name.
fn additional_templates(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    let folder = dir.join("additional_chat_templates");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(|source| Error::io(&folder, source))? {
        let path = entry.map_err(|source| Error::io(&folder, source))?.path();
        let is_template = path.extension().is_some_and(|extension| extension == "jinja");
        if let (true, Some(name)) = (is_template, path.file_stem().and_then(|stem| stem.to_str())) {
            found.push((name.to_string(), path.clone()));
        }
    }
    Ok(found)
}

/// A token given as a string or as an object with `content`; null is none.
fn token_content(file: &str, field: &str, value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(token) => Ok(Some(token.clone())),
        Value::Object(token) => match token.get("content") {
            Some(Value::String(content)) => Ok(Some(content.clone())),
            _ => Err(Error::config(file, field, "expected a string in \"content\"")),
        },
        other => Err(Error::config(file, field, expected("a token", other))),
    }
}

fn read_length(file: &str, value: Option<&Value>) -> Result<Option<usize>> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    match value.as_f64() {
        Some(length) if length >= LARGEST_LENGTH => Ok(None),
        Some(length) if length >= 1.0 => Ok(Some(length as usize)),
        _ => Err(Error::config(file, "model_max_length", expected("a positive number", value))),
    }
}

fn expected(what: &str, got: &Value) -> String {
    format!("got {}, expected {what}", shorten(got))
}

/// A value as it may stand in an error message.
pub(super) fn shorten(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((cut, _)) = text.char_indices().nth(100) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io(path, source)),
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let file = path.display().to_string();
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(other) => Err(Error::config(file, "", expected("a JSON object", &other))),
        Err(error) => Err(Error::config(file, "", format!("is not valid JSON: {error}"))),
    }
}
