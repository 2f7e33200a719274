//! Decoder stages that work on tokens: whole strings in, whole strings out.
//!
//! See [`decoder`](super::decoder) for where they stand.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper};

use crate::error::{Error, Result};

/// The clean-up of the `WordPiece` and `CTC` decoders, which knows one rule more.
pub(super) const DECODER_CLEAN_UP: [(&str, &str); 11] = [
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

/// A stage before the joint: whole tokens in, whole tokens out.
#[derive(Clone, Debug)]
pub(super) enum TokenStage {
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

impl TokenStage {
    /// The stage for a decoder that stands before the tokens are joined.
    pub(super) fn new(decoder: &DecoderWrapper) -> Result<Self> {
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

    pub(super) fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
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

    pub(super) fn finish(&mut self, out: &mut Vec<String>) {
        match self {
            Self::ByteFallback { run, valid, broken } => end_fallback_run(run, valid, broken, out),
            Self::Suffix { suffix, held } => {
                out.extend(held.take().map(|token| token.replace(&**suffix, "")));
            }
            _ => {}
        }
    }
}

/// Pattern and content of a `Replace` whose pattern is a plain string, which the crate keeps private.
pub(super) fn literal_replace(decoder: &DecoderWrapper) -> Result<Option<(Arc<str>, Arc<str>)>> {
    let json = serde_json::to_value(decoder)
        .map_err(|error| Error::internal("reading the tokenizer's decoder failed", error))?;
    let pattern = json.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
    let content = json.get("content").and_then(Value::as_str);
    Ok(match (pattern, content) {
        (Some(pattern), Some(content)) if !pattern.is_empty() => Some((pattern.into(), content.into())),
        _ => None,
    })
}

pub(super) fn metaspace_rule(metaspace: &tokenizers::decoders::metaspace::Metaspace) -> (char, bool) {
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

pub(super) fn decoder_failed(error: tokenizers::Error) -> Error {
    Error::internal("the tokenizer's decoder failed", error)
}
