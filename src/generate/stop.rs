//! When a request ends: token ids, length, and stop strings found in text that arrives in pieces.
//!
//! It neither decodes nor generates. A stop string never leaks: text that may be the start of one is held back until
//! it is clear.

use crate::{Error, Result};

/// What ends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopRules {
    /// Strings that end the text before them.
    pub stop: Vec<String>,
    /// Token ids that end the request, whatever `ignore_eos` says.
    pub stop_token_ids: Vec<u32>,
    /// The model's own end-of-sequence ids.
    pub eos: Vec<u32>,
    /// Whether generation goes on after an end-of-sequence id.
    pub ignore_eos: bool,
    /// The most tokens to generate.
    pub max_new_tokens: usize,
}

impl StopRules {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty stop string or a `max_new_tokens` of 0.
    pub fn validate(&self) -> Result<()> {
        if let Some(index) = self.stop.iter().position(String::is_empty) {
            return Err(Error::argument(format!("stop[{index}]"), "\"\"", "a string that is not empty"));
        }
        if self.max_new_tokens == 0 {
            return Err(Error::argument("max_new_tokens", 0, "at least 1"));
        }
        Ok(())
    }

    /// Whether `token` ends the request.
    pub fn ends_at(&self, token: u32) -> bool {
        self.stop_token_ids.contains(&token) || (!self.ignore_eos && self.is_eos(token))
    }

    /// Whether `token` is one of the model's end-of-sequence ids, ignored or not.
    pub fn is_eos(&self, token: u32) -> bool {
        self.eos.contains(&token)
    }
}

/// Text that may be shown, and whether it ends here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emit {
    /// Text that is not part of a stop string.
    pub text: String,
    /// The index of the stop string that was found after `text`.
    pub stopped: Option<usize>,
}

/// Finds the stop string that starts first in a text given in pieces; of those that start there, the shortest.
///
/// The result does not depend on how the text is cut. A stop string that is complete waits for one that started
/// before it and may still become complete.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stop: Vec<String>,
    /// Text not yet emitted: the longest end that may belong to a stop string.
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stop`, which may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if one of the strings is empty.
    pub fn new(stop: &[String]) -> Result<Self> {
        if let Some(index) = stop.iter().position(String::is_empty) {
            return Err(Error::argument(format!("stop[{index}]"), "\"\"", "a string that is not empty"));
        }
        Ok(Self { stop: stop.to_vec(), held: String::new(), stopped: None })
    }

    /// Takes the next piece of text and returns what is safe to show. After a stop, everything is dropped.
    pub fn push(&mut self, piece: &str) -> Emit {
        if self.stopped.is_some() {
            return Emit { text: String::new(), stopped: self.stopped };
        }
        if self.stop.is_empty() {
            return Emit { text: piece.to_owned(), stopped: None };
        }
        self.held.push_str(piece);
        let open = self.first_open();
        match self.first_match() {
            Some((start, index)) if start <= open => self.finish(start, index),
            _ => Emit { text: self.held.drain(..open).collect(), stopped: None },
        }
    }

    /// Ends the text and returns what was held back, up to a stop string if one is complete.
    pub fn flush(&mut self) -> Emit {
        match self.first_match() {
            Some((start, index)) => self.finish(start, index),
            None => Emit { text: std::mem::take(&mut self.held), stopped: self.stopped },
        }
    }

    fn finish(&mut self, start: usize, index: usize) -> Emit {
        self.stopped = Some(index);
        self.held.truncate(start);
        Emit { text: std::mem::take(&mut self.held), stopped: self.stopped }
    }

    /// The start and index of the first complete stop string.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = self.stop.iter().enumerate().filter_map(|(index, stop)| {
            self.held.find(stop.as_str()).map(|start| (start, stop.len(), index))
        });
        found.min().map(|(start, _, index)| (start, index))
    }

    /// The first place from which the held text is the start of an incomplete stop string, or its end.
    fn first_open(&self) -> usize {
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest.saturating_sub(1));
        (earliest..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| {
                let end = &self.held[start..];
                self.stop.iter().any(|stop| stop.len() > end.len() && stop.starts_with(end))
            })
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(&stop).unwrap();
        let mut emitted: Vec<Emit> = pieces.iter().map(|piece| matcher.push(piece)).collect();
        emitted.push(matcher.flush());
        let stopped = emitted.last().unwrap().stopped;
        (emitted.into_iter().map(|emit| emit.text).collect(), stopped)
    }

    #[test]
    fn holds_back_what_may_be_a_stop_string() {
        assert_eq!(run(&["END"], &["a E", "N", "x"]).0, ["a ", "", "ENx", ""]);
        assert_eq!(run(&["END"], &["a E", "N", "D tail", "more"]).0, ["a ", "", "", "", ""]);
        assert_eq!(run(&["END"], &["a E", "N"]).0, ["a ", "", "EN"]);
    }

    #[test]
    fn without_stop_strings_text_passes() {
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "b".into(), String::new()], None));
    }

    #[test]
    fn the_first_start_wins() {
        assert_eq!(run(&["bc", "abcd"], &["xabc", "d"]), (vec!["x".into(), "".into(), "".into()], Some(1)));
        assert_eq!(run(&["bc", "abcd"], &["xabc", "e"]), (vec!["x".into(), "a".into(), "".into()], Some(0)));
        // The text ends while the longer one is still open.
        assert_eq!(run(&["bc", "abcd"], &["xabc"]), (vec!["x".into(), "a".into()], Some(0)));
        // Of those that start together, the shortest is complete first.
        assert_eq!(run(&["abc", "ab"], &["abc"]).1, Some(1));
    }

    #[test]
    fn empty_stop_strings_are_refused() {
        let error = StopMatcher::new(&["a".into(), String::new()]).unwrap_err().to_string();
        assert!(error.starts_with("stop[1]"), "{error}");
        let rules = StopRules {
            stop: vec![],
            stop_token_ids: vec![],
            eos: vec![],
            ignore_eos: false,
            max_new_tokens: 0,
        };
        assert!(rules.validate().unwrap_err().to_string().starts_with("max_new_tokens"));
        let rules = StopRules { stop: vec![String::new()], max_new_tokens: 1, ..rules };
        assert!(rules.validate().unwrap_err().to_string().starts_with("stop[0]"));
    }

    #[test]
    fn tokens_end_a_request() {
        let rules = StopRules {
            stop: vec![],
            stop_token_ids: vec![5],
            eos: vec![1, 2],
            ignore_eos: false,
            max_new_tokens: 1,
        };
        assert!(rules.ends_at(1) && rules.ends_at(2) && rules.ends_at(5) && !rules.ends_at(3));
        let rules = StopRules { ignore_eos: true, ..rules };
        assert!(!rules.ends_at(1) && rules.ends_at(5) && rules.is_eos(1));
    }

    /// Every text over a small alphabet, cut in every way that the numbers say, against a search of the whole text.
    #[test]
    fn equals_a_search_of_the_whole_text() {
        let mut state = 42u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as usize) % below
        };
        let alphabet = ['a', 'b', 'é', '中', '🦀'];
        let (mut matches, mut misses) = (0, 0);
        for _ in 0..20_000 {
            let letters = 2 + next(4);
            let mut word = |longest: usize| -> String {
                (0..1 + next(longest)).map(|_| alphabet[next(letters)]).collect()
            };
            let stop: Vec<String> = (0..3).map(|_| word(5)).collect();
            let text = word(30);
            let expected = stop.iter().filter_map(|s| text.find(s.as_str()).map(|i| (i, s.len()))).min();
            let mut matcher = StopMatcher::new(&stop).unwrap();
            let (mut got, mut stopped) = (String::new(), None);
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let characters = next(4);
                let cut = rest.char_indices().nth(characters).map_or(rest.len(), |(i, _)| i);
                let emit = matcher.push(&rest[..cut]);
                got.push_str(&emit.text);
                stopped = emit.stopped;
                rest = &rest[cut..];
                // Nothing is held that could not still become a stop string.
                let longest = stop.iter().map(String::len).max().unwrap();
                assert!(stopped.is_some() || text.len() - rest.len() - got.len() < longest);
            }
            let emit = matcher.flush();
            got.push_str(&emit.text);
            stopped = stopped.or(emit.stopped);
            match expected {
                Some((start, length)) => {
                    matches += 1;
                    assert_eq!((got.as_str(), stop[stopped.unwrap()].len()), (&text[..start], length));
                }
                None => {
                    misses += 1;
                    assert_eq!((got.as_str(), stopped), (text.as_str(), None));
                }
            }
        }
        assert!(matches > 1000 && misses > 1000, "{matches} {misses}");
    }
}
