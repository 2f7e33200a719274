//! From tokens to text that may be shown: incremental decoding behind the stop rules.

use super::stop::{StopMatcher, StopRules};
use super::stream::StopReason;
use crate::Result;
use crate::tokenizer::{DecodeStream, Tokenizer};

/// The text side of one request.
#[derive(Debug)]
pub(super) struct Text {
    decoder: Option<DecodeStream>,
    matcher: StopMatcher,
    stop: Vec<String>,
    whole: String,
}

impl Text {
    /// Without a tokenizer, all text is empty.
    pub(super) fn new(tokenizer: Option<&Tokenizer>, rules: &StopRules) -> Result<Self> {
        Ok(Self {
            decoder: tokenizer.map(|tokenizer| tokenizer.decode_stream(true)),
            matcher: StopMatcher::new(&rules.stop)?,
            stop: rules.stop.clone(),
            whole: String::new(),
        })
    }

    /// Text that became final with `token`, and the stop string that ended it.
    pub(super) fn push(&mut self, token: u32) -> (String, Option<StopReason>) {
        // A model may have more ids than its vocabulary; those have no text.
        let piece = self.decoder.as_mut().and_then(|decoder| decoder.step(token).ok()).unwrap_or_default();
        let emit = self.matcher.push(&piece);
        self.whole.push_str(&emit.text);
        (emit.text, self.reason(emit.stopped))
    }

    /// What was held back, now that nothing follows.
    pub(super) fn flush(&mut self) -> (String, Option<StopReason>) {
        let rest = self.decoder.as_mut().and_then(|decoder| decoder.flush().ok()).unwrap_or_default();
        let mut emit = self.matcher.push(&rest);
        if emit.stopped.is_none() {
            let held = self.matcher.flush();
            emit.text.push_str(&held.text);
            emit.stopped = held.stopped;
        }
        self.whole.push_str(&emit.text);
        (emit.text, self.reason(emit.stopped))
    }

    /// All text so far.
    pub(super) fn whole(&self) -> &str {
        &self.whole
    }

    fn reason(&self, stopped: Option<usize>) -> Option<StopReason> {
        stopped.and_then(|index| self.stop.get(index)).map(|text| StopReason::Text(text.clone()))
    }
}
