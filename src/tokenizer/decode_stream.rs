//! Ids to text, one id at a time.
//!
//! The text is final once it is returned: whatever ids follow, the returned pieces joined are the
//! decoding of all ids. There is no second decoder: decoding a whole sequence is a stream, flushed.
//! It does not know about stop strings.

use super::Tokenizer;
use super::decoder::Pipeline;
use crate::error::Result;

/// Turns ids into text as they come; made by [`Tokenizer::decode_stream`].
///
/// Text is held back only while later ids can still change it: an unfinished UTF-8 character (at
/// most three bytes), a run of byte-fallback tokens that is valid so far, and the few characters that a
/// clean-up rule of the tokenizer may yet remove.
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    pipeline: Pipeline,
    skip_special_tokens: bool,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        let pipeline = tokenizer.pipeline().clone();
        Self { tokenizer, pipeline, skip_special_tokens }
    }

    /// Adds one id and returns the text that is now final, often a token's worth, sometimes none.
    ///
    /// An id that the vocabulary does not have adds nothing: models pad their vocabulary, and a
    /// generation must not die of a padding id.
    pub fn step(&mut self, id: u32) -> Result<String> {
        let mut out = String::new();
        if let Some(token) = self.tokenizer.id_to_token(id)
            && !(self.skip_special_tokens && self.tokenizer.is_special_token(&token))
        {
            self.pipeline.push(token, &mut out)?;
        }
        Ok(out)
    }

    /// Ends the sequence and returns what was held back; the stream is then as new.
    pub fn flush(&mut self) -> Result<String> {
        let fresh = self.tokenizer.pipeline().clone();
        let mut out = String::new();
        std::mem::replace(&mut self.pipeline, fresh).finish(&mut out)?;
        Ok(out)
    }
}
