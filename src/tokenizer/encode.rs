//! Text to ids: single texts, pairs, batches, truncation.
//!
//! It never pads; a batch is a list of ids of different lengths.

use std::ops::Range;

use rayon::prelude::*;
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{Encoding, PostProcessor, TruncationDirection, TruncationParams, TruncationStrategy};

use super::Tokenizer;
use crate::error::{Error, Result};

/// The ids of a text or a pair of texts, with special tokens, as encoders read them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedText {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// Which of two texts a token belongs to, `[tokens]`.
    pub type_ids: Vec<u32>,
    /// Tokens that the length limit cut away.
    pub truncated: usize,
}

/// Ids together with whether each lies in a marked part of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaskedText {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// Whether a token overlaps a marked range, `[tokens]`.
    pub mask: Vec<bool>,
}

impl Tokenizer {
    /// The ids of a text, with those around it that the vocabulary prescribes if
    /// `add_special_tokens`.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner().encode_fast(text, add_special_tokens).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`encode`](Self::encode) for many texts, on all cores.
    pub fn encode_batch<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        add_special_tokens: bool,
    ) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text.as_ref(), add_special_tokens)).collect()
    }

    /// Ids and type ids of a text with its special tokens, at most `max_length` in all.
    ///
    /// # Errors
    /// `InvalidArgument` if `max_length` leaves no room beside the special tokens.
    pub fn encode_text(&self, text: &str, max_length: Option<usize>) -> Result<EncodedText> {
        self.encode_truncated(text, None, max_length)
    }

    /// [`encode_text`](Self::encode_text) for many texts, on all cores.
    pub fn encode_text_batch<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        max_length: Option<usize>,
    ) -> Result<Vec<EncodedText>> {
        texts.par_iter().map(|text| self.encode_text(text.as_ref(), max_length)).collect()
    }

    /// Ids and type ids of two texts as one sequence; the longer text is truncated first.
    ///
    /// # Errors
    /// `InvalidArgument` if `max_length` leaves no room beside the special tokens.
    pub fn encode_pair(&self, first: &str, second: &str, max_length: Option<usize>) -> Result<EncodedText> {
        self.encode_truncated(first, Some(second), max_length)
    }

    /// [`encode_pair`](Self::encode_pair) for many pairs, on all cores.
    pub fn encode_pair_batch<A: AsRef<str> + Sync, B: AsRef<str> + Sync>(
        &self,
        pairs: &[(A, B)],
        max_length: Option<usize>,
    ) -> Result<Vec<EncodedText>> {
        pairs.par_iter().map(|(a, b)| self.encode_pair(a.as_ref(), b.as_ref(), max_length)).collect()
    }

    /// Number of tokens around a text, or around and between two.
    pub fn special_tokens(&self, pair: bool) -> usize {
        self.inner().get_post_processor().map_or(0, |processor| processor.added_tokens(pair))
    }

    /// Ids of a text without special tokens, and which of them lie in `ranges` of its bytes.
    ///
    /// A token that covers part of a range counts as in it.
    pub fn encode_masked(&self, text: &str, ranges: &[Range<usize>]) -> Result<MaskedText> {
        let encoding = self.inner().encode(text, false).map_err(failed)?;
        let inside = |&(start, end): &(usize, usize)| {
            ranges.iter().any(|range| start < range.end && range.start < end)
        };
        Ok(MaskedText {
            ids: encoding.get_ids().to_vec(),
            mask: encoding.get_offsets().iter().map(inside).collect(),
        })
    }

    fn encode_truncated(
        &self,
        first: &str,
        second: Option<&str>,
        max_length: Option<usize>,
    ) -> Result<EncodedText> {
        let mut first = self.inner().encode_fast(first, false).map_err(failed)?;
        let mut second = second.map(|text| self.encode_second(text)).transpose()?;
        let length = |first: &Encoding, second: &Option<Encoding>| {
            first.len() + second.as_ref().map_or(0, Encoding::len)
        };
        let full = length(&first, &second);
        if let Some(limit) = max_length {
            let special = self.special_tokens(second.is_some());
            if limit < special {
                return Err(Error::argument("max_length", limit, format!("{special} or more")));
            }
            let params = TruncationParams {
                direction: self.truncation_direction(),
                max_length: limit - special,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            };
            (first, second) = truncate_encodings(first, second, &params).map_err(failed)?;
            // What was cut away would be joined too, every part of one text with every part of the other.
            drop(first.take_overflowing());
            drop(second.as_mut().map(Encoding::take_overflowing));
        }
        let truncated = full - length(&first, &second);
        let encoding = self.inner().post_process(first, second, true).map_err(failed)?;
        Ok(EncodedText {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            truncated,
        })
    }

    fn encode_second(&self, text: &str) -> Result<Encoding> {
        let mut encoding = self.inner().encode_fast(text, false).map_err(failed)?;
        // Processors that do not number the texts themselves keep what they are given.
        encoding.set_type_ids(vec![1; encoding.len()]);
        Ok(encoding)
    }

    fn truncation_direction(&self) -> TruncationDirection {
        if self.config().truncate_left { TruncationDirection::Left } else { TruncationDirection::Right }
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::internal("tokenizing failed", error)
}
