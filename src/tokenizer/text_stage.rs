//! Decoder stages that work on one growing text.
//!
//! They do not know tokens; see [`decoder`](super::decoder) for where they stand.

use std::sync::Arc;

use tokenizers::{Decoder, DecoderWrapper};

use super::token_stage::decoder_failed;
use crate::error::Result;

/// A stage after the joint: text in pieces in, text in pieces out.
#[derive(Clone, Debug)]
pub(super) enum TextStage {
    Replace(Replacer),
    /// Drops up to `left` more leading `content` characters.
    StripStart {
        content: char,
        left: usize,
    },
    /// Holds back up to `limit` trailing `content` characters, which vanish if nothing follows.
    StripEnd {
        content: char,
        limit: usize,
        held: usize,
    },
    /// Needs all of the text at once.
    Whole {
        decoder: Arc<DecoderWrapper>,
        text: String,
    },
}

/// `str::replace` on a text that comes in pieces.
#[derive(Clone, Debug)]
pub(super) struct Replacer {
    pattern: Arc<str>,
    content: Arc<str>,
    /// The longest end of the text so far that a match could begin with.
    held: String,
}

impl TextStage {
    pub(super) fn whole(decoder: &DecoderWrapper) -> Self {
        Self::Whole { decoder: Arc::new(decoder.clone()), text: String::new() }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut String) {
        match self {
            Self::Replace(replacer) => replacer.push(text, out),
            Self::StripStart { content, left } => {
                let mut rest = text;
                while *left > 0 && !rest.is_empty() {
                    match rest.strip_prefix(*content) {
                        Some(shorter) => {
                            rest = shorter;
                            *left -= 1;
                        }
                        None => *left = 0,
                    }
                }
                out.push_str(rest);
            }
            Self::StripEnd { content, limit, held } => {
                let body = text.trim_end_matches(*content);
                let mut trailing = text[body.len()..].chars().count();
                if body.is_empty() {
                    trailing += *held;
                } else {
                    out.extend(std::iter::repeat_n(*content, *held));
                    out.push_str(body);
                }
                *held = trailing.min(*limit);
                out.extend(std::iter::repeat_n(*content, trailing - *held));
            }
            Self::Whole { text: all, .. } => all.push_str(text),
        }
    }

    pub(super) fn finish(&mut self, out: &mut String) -> Result<()> {
        match self {
            Self::Replace(replacer) => out.push_str(&std::mem::take(&mut replacer.held)),
            Self::StripStart { .. } => {}
            Self::StripEnd { held, .. } => *held = 0,
            Self::Whole { decoder, text } => {
                let text = std::mem::take(text);
                if !text.is_empty() {
                    out.push_str(&decoder.decode(vec![text]).map_err(decoder_failed)?);
                }
            }
        }
        Ok(())
    }
}

impl Replacer {
    /// `pattern` must not be empty.
    pub(super) fn new(pattern: &str, content: &str) -> Self {
        debug_assert!(!pattern.is_empty());
        Self { pattern: pattern.into(), content: content.into(), held: String::new() }
    }

    fn push(&mut self, text: &str, out: &mut String) {
        self.held.push_str(text);
        let mut rest = self.held.as_str();
        while let Some(at) = rest.find(&*self.pattern) {
            out.push_str(&rest[..at]);
            out.push_str(&self.content);
            rest = &rest[at + self.pattern.len()..];
        }
        let keep = self.unfinished(rest);
        out.push_str(&rest[..rest.len() - keep]);
        let start = self.held.len() - keep;
        self.held.drain(..start);
    }

    /// Length in bytes of the longest end of `text` that is a proper beginning of the pattern.
    fn unfinished(&self, text: &str) -> usize {
        let longest = text.len().min(self.pattern.len() - 1);
        (1..=longest)
            .rev()
            .find(|&length| text.as_bytes()[text.len() - length..] == self.pattern.as_bytes()[..length])
            .unwrap_or(0)
    }
}
