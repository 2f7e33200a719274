//! The decoders of `tokenizer.json`, rewritten to work token by token.
//!
//! A chain of decoders has two halves. At first every token is a string of its own
//! ([`TokenStage`]); then a `Fuse`, a `ByteLevel` or the end of the chain joins them ([`Joint`]), and
//! what follows works on one growing text ([`TextStage`]). Each stage keeps back only what later
//! input can still change. A stage that needs the whole text at once (a regular expression after the
//! joint) collects it and speaks at the end.
//!
//! It does not look up ids. Source: the `decoders` module of the `tokenizers` crate, whose results
//! these stages reproduce; where that panics (stripping more than there is) they strip what there is.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper};

use super::text_stage::{Replacer, TextStage};
use crate::error::{Error, Result};

/// The spaces that transformers' `clean_up_tokenization` removes, in its order.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// The clean-up of the `WordPiece` and `CTC` decoders, which knows one rule more.
const DECODER_CLEAN_UP: [(&str, &str); 11] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// A decoder chain together with what it holds back; cloning a fresh one starts a new text.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    tokens: Vec<TokenStage>,
    joint: Joint,
    text: Vec<TextStage>,
}

/// A stage before the joint: whole tokens in, whole tokens out.
#[derive(Clone, Debug)]
enum TokenStage {
    Replace {
        pattern: Arc<str>,
        content: Arc<str>,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Metaspace {
        replacement: char,
        drop_in_first: bool,
        first: bool,
    },
    WordPiece {
        prefix: Arc<str>,
        cleanup: bool,
        first: bool,
    },
    ByteFallback {
        run: Vec<u8>,
        valid: usize,
        broken: bool,
    },
    Ctc {
        pad: Arc<str>,
        delimiter: Arc<str>,
        cleanup: bool,
        last: Option<String>,
    },
    Suffix {
        suffix: Arc<str>,
        held: Option<String>,
    },
    /// Works on each token by itself, but only the crate knows how.
    Foreign(Arc<DecoderWrapper>),
}

/// How tokens become one text.
#[derive(Clone, Debug)]
enum Joint {
    Concatenate,
    Spaces { first: bool },
    Bytes { pending: Vec<u8> },
}

impl Pipeline {
    /// The chain for a tokenizer's decoder; `clean_up` adds transformers' removal of spaces.
    pub(super) fn new(decoder: Option<&DecoderWrapper>, clean_up: bool) -> Result<Self> {
        let mut pipeline = match decoder {
            None => Self { tokens: vec![], joint: Joint::Spaces { first: true }, text: vec![] },
            Some(decoder) => {
                let mut flat = Vec::new();
                flatten(decoder, &mut flat);
                Self::from_chain(&flat)?
            }
        };
        if clean_up {
            pipeline.text.extend(replacements(&CLEAN_UP));
        }
        Ok(pipeline)
    }

    fn from_chain(chain: &[&DecoderWrapper]) -> Result<Self> {
        let mut tokens = Vec::new();
        let mut joint = None;
        let mut text = Vec::new();
        for decoder in chain {
            if joint.is_some() {
                text.extend(text_stages(decoder)?);
            } else {
                match decoder {
                    DecoderWrapper::Fuse(_) => joint = Some(Joint::Concatenate),
                    DecoderWrapper::ByteLevel(_) => joint = Some(Joint::Bytes { pending: Vec::new() }),
                    other => tokens.push(token_stage(other)?),
                }
            }
        }
        Ok(Self { tokens, joint: joint.unwrap_or(Joint::Concatenate), text })
    }

    /// Adds a token; what is final is appended to `out`.
    pub(super) fn push(&mut self, token: String, out: &mut String) -> Result<()> {
        self.push_from(0, token, out)
    }

    /// Ends the text; what was held back is appended to `out`.
    pub(super) fn finish(mut self, out: &mut String) -> Result<()> {
        for index in 0..self.tokens.len() {
            let mut last = Vec::new();
            self.tokens[index].finish(&mut last);
            for token in last {
                self.push_from(index + 1, token, out)?;
            }
        }
        if let Joint::Bytes { pending } = &mut self.joint
            && !pending.is_empty()
        {
            pending.clear();
            self.push_text(0, "\u{FFFD}", out);
        }
        for index in 0..self.text.len() {
            let mut last = String::new();
            self.text[index].finish(&mut last)?;
            self.push_text(index + 1, &last, out);
        }
        Ok(())
    }

    /// Sends a token through the token stages from `index` on.
    fn push_from(&mut self, index: usize, token: String, out: &mut String) -> Result<()> {
        let mut tokens = vec![token];
        for stage in &mut self.tokens[index..] {
            let mut next = Vec::with_capacity(tokens.len());
            for token in tokens {
                stage.push(token, &mut next)?;
            }
            tokens = next;
        }
        for token in tokens {
            let text = self.joint.join(token);
            self.push_text(0, &text, out);
        }
        Ok(())
    }

    /// Sends text through the text stages from `index` on.
    fn push_text(&mut self, index: usize, text: &str, out: &mut String) {
        if text.is_empty() {
            return;
        }
        let Some((stage, _)) = self.text[index..].split_first_mut() else {
            out.push_str(text);
            return;
        };
        let mut next = String::new();
        stage.push(text, &mut next);
        self.push_text(index + 1, &next, out);
    }
}

impl Joint {
    fn join(&mut self, token: String) -> String {
        match self {
            Self::Concatenate => token,
            Self::Spaces { first } => {
                if std::mem::replace(first, false) {
                    token
                } else {
                    format!(" {token}")
                }
            }
            Self::Bytes { pending } => {
                push_bytes(&token, pending);
                drain_utf8(pending)
            }
        }
    }
}

impl TokenStage {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        match self {
            Self::Replace { pattern, content } => out.push(token.replace(&**pattern, content)),
            Self::Strip { content, start, stop } => out.push(strip(&token, *content, *start, *stop)),
            Self::Metaspace { replacement, drop_in_first, first } => {
                let dropped = std::mem::replace(first, false) && *drop_in_first;
                out.push(token.replace(*replacement, if dropped { "" } else { " " }));
            }
            Self::WordPiece { prefix, cleanup, first } => {
                let mut text = match token.strip_prefix(&**prefix) {
                    _ if std::mem::replace(first, false) => token,
                    Some(rest) => rest.to_string(),
                    None => format!(" {token}"),
                };
                if *cleanup {
                    text = clean(text);
                }
                out.push(text);
            }
            Self::ByteFallback { run, valid, broken } => match fallback_byte(&token) {
                Some(byte) => push_fallback_byte(byte, run, valid, broken, out),
                None => {
                    end_fallback_run(run, valid, broken, out);
                    out.push(token);
                }
            },
            Self::Ctc { pad, delimiter, cleanup, last } => {
                if last.as_ref() != Some(&token) {
                    let mut text = token.replace(&**pad, "");
                    if *cleanup {
                        text = clean(text).replace(&**delimiter, " ");
                    }
                    *last = Some(token);
                    if !text.is_empty() {
                        out.push(text);
                    }
                }
            }
            Self::Suffix { suffix, held } => {
                if let Some(earlier) = held.replace(token) {
                    out.push(earlier.replace(&**suffix, " "));
                }
            }
            Self::Foreign(decoder) => {
                out.extend(decoder.decode_chain(vec![token]).map_err(decoder_failed)?);
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<String>) {
        match self {
            Self::ByteFallback { run, valid, broken } => end_fallback_run(run, valid, broken, out),
            Self::Suffix { suffix, held } => {
                out.extend(held.take().map(|token| token.replace(&**suffix, "")));
            }
            _ => {}
        }
    }
}

/// Unrolls nested sequences.
fn flatten<'a>(decoder: &'a DecoderWrapper, out: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for inner in sequence.get_decoders() {
                flatten(inner, out);
            }
        }
        other => out.push(other),
    }
}

fn token_stage(decoder: &DecoderWrapper) -> Result<TokenStage> {
    Ok(match decoder {
        DecoderWrapper::Replace(_) => match literal_replace(decoder)? {
            Some((pattern, content)) => TokenStage::Replace { pattern, content },
            None => TokenStage::Foreign(Arc::new(decoder.clone())),
        },
        DecoderWrapper::Strip(strip) => {
            TokenStage::Strip { content: strip.content, start: strip.start, stop: strip.stop }
        }
        DecoderWrapper::Metaspace(metaspace) => {
            let (replacement, drop_in_first) = metaspace_rule(metaspace);
            TokenStage::Metaspace { replacement, drop_in_first, first: true }
        }
        DecoderWrapper::WordPiece(pieces) => TokenStage::WordPiece {
            prefix: pieces.prefix.as_str().into(),
            cleanup: pieces.cleanup,
            first: true,
        },
        DecoderWrapper::ByteFallback(_) => {
            TokenStage::ByteFallback { run: Vec::new(), valid: 0, broken: false }
        }
        DecoderWrapper::CTC(ctc) => TokenStage::Ctc {
            pad: ctc.pad_token.as_str().into(),
            delimiter: ctc.word_delimiter_token.as_str().into(),
            cleanup: ctc.cleanup,
            last: None,
        },
        DecoderWrapper::BPE(bpe) => TokenStage::Suffix { suffix: bpe.suffix.as_str().into(), held: None },
        DecoderWrapper::Fuse(_) | DecoderWrapper::ByteLevel(_) | DecoderWrapper::Sequence(_) => {
            TokenStage::Foreign(Arc::new(decoder.clone()))
        }
    })
}

/// The stages for a decoder that follows the joint and so sees a single token: the whole text.
fn text_stages(decoder: &DecoderWrapper) -> Result<Vec<TextStage>> {
    let replacer = |pattern: &str, content: &str| TextStage::Replace(Replacer::new(pattern, content));
    Ok(match decoder {
        DecoderWrapper::Fuse(_) => vec![],
        DecoderWrapper::Replace(_) => match literal_replace(decoder)? {
            Some((pattern, content)) => vec![replacer(&pattern, &content)],
            None => vec![TextStage::whole(decoder)],
        },
        DecoderWrapper::Strip(strip) => vec![
            TextStage::StripStart { content: strip.content, left: strip.start },
            TextStage::StripEnd { content: strip.content, limit: strip.stop, held: 0 },
        ],
        DecoderWrapper::Metaspace(metaspace) => {
            let (replacement, dropped) = metaspace_rule(metaspace);
            vec![replacer(replacement.encode_utf8(&mut [0; 4]), if dropped { "" } else { " " })]
        }
        DecoderWrapper::WordPiece(pieces) if pieces.cleanup => replacements(&DECODER_CLEAN_UP).collect(),
        DecoderWrapper::WordPiece(_) => vec![],
        DecoderWrapper::BPE(bpe) if !bpe.suffix.is_empty() => vec![replacer(&bpe.suffix, "")],
        _ => vec![TextStage::whole(decoder)],
    })
}

fn replacements(rules: &[(&'static str, &'static str)]) -> impl Iterator<Item = TextStage> {
    rules.iter().map(|(pattern, content)| TextStage::Replace(Replacer::new(pattern, content)))
}

/// Pattern and content of a `Replace` whose pattern is a plain string, which the crate keeps private.
fn literal_replace(decoder: &DecoderWrapper) -> Result<Option<(Arc<str>, Arc<str>)>> {
    let json = serde_json::to_value(decoder)
        .map_err(|error| Error::internal("reading the tokenizer's decoder failed", error))?;
    let pattern = json.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
    let content = json.get("content").and_then(Value::as_str);
    Ok(match (pattern, content) {
        (Some(pattern), Some(content)) if !pattern.is_empty() => Some((pattern.into(), content.into())),
        _ => None,
    })
}

fn metaspace_rule(metaspace: &tokenizers::decoders::metaspace::Metaspace) -> (char, bool) {
    use tokenizers::decoders::metaspace::PrependScheme;
    (metaspace.get_replacement(), metaspace.get_prepend_scheme() != PrependScheme::Never)
}

fn clean(mut text: String) -> String {
    for (pattern, content) in DECODER_CLEAN_UP {
        if text.contains(pattern) {
            text = text.replace(pattern, content);
        }
    }
    text
}

/// Removes up to `start` leading and up to `stop` trailing `content` characters.
fn strip(token: &str, content: char, start: usize, stop: usize) -> String {
    let mut text = token;
    for _ in 0..start {
        text = text.strip_prefix(content).unwrap_or(text);
    }
    for _ in 0..stop {
        text = text.strip_suffix(content).unwrap_or(text);
    }
    text.to_string()
}

/// The byte that a token like `<0xE5>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// A run of byte tokens is a text if all of it is valid, and one U+FFFD per byte otherwise, so a run
/// is kept until it ends or can no longer become valid. `run[..valid]` is known to be whole characters.
fn push_fallback_byte(
    byte: u8,
    run: &mut Vec<u8>,
    valid: &mut usize,
    broken: &mut bool,
    out: &mut Vec<String>,
) {
    if *broken {
        out.push("\u{FFFD}".into());
        return;
    }
    run.push(byte);
    match std::str::from_utf8(&run[*valid..]) {
        Ok(_) => *valid = run.len(),
        Err(error) if error.error_len().is_none() => {}
        Err(_) => {
            out.extend(run.drain(..).map(|_| "\u{FFFD}".to_string()));
            *valid = 0;
            *broken = true;
        }
    }
}

fn end_fallback_run(run: &mut Vec<u8>, valid: &mut usize, broken: &mut bool, out: &mut Vec<String>) {
    *broken = false;
    *valid = 0;
    if run.is_empty() {
        return;
    }
    match String::from_utf8(std::mem::take(run)) {
        Ok(text) => out.push(text),
        Err(error) => out.extend(error.as_bytes().iter().map(|_| "\u{FFFD}".to_string())),
    }
}

/// Appends the bytes that a token of a byte-level vocabulary stands for; a token with a foreign
/// character (an added token) stands for its own text.
fn push_bytes(token: &str, bytes: &mut Vec<u8>) {
    let length = bytes.len();
    for character in token.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(length);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's mapping of bytes to characters, backwards: printable bytes are themselves, the 68 others
/// are numbered from U+0100.
fn byte_of(character: char) -> Option<u8> {
    match character as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Takes whole characters off the front of `bytes`, U+FFFD for each invalid sequence, and leaves an
/// unfinished character.
fn drain_utf8(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut done = 0;
    loop {
        let rest = &bytes[done..];
        let Err(error) = std::str::from_utf8(rest) else {
            text.push_str(&String::from_utf8_lossy(rest));
            bytes.clear();
            return text;
        };
        let valid = error.valid_up_to();
        text.push_str(&String::from_utf8_lossy(&rest[..valid]));
        done += valid;
        match error.error_len() {
            Some(length) => {
                text.push('\u{FFFD}');
                done += length;
            }
            None => {
                bytes.drain(..done);
                return text;
            }
        }
    }
}

pub(super) fn decoder_failed(error: tokenizers::Error) -> Error {
    Error::internal("the tokenizer's decoder failed", error)
}
