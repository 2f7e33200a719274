//! The sampling parameters of one request and what is allowed for each.

use std::fmt::Display;

use crate::{Error, Result};

/// How the next token is chosen; the default is greedy decoding without penalties.
///
/// The rules apply in the order of the fields, which is that of the transformers library.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides logits of tokens that the prompt or the output holds if positive, multiplies if negative; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the output holds; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time the output holds it; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these token ids; negative infinity forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides the logits; 0 always takes the largest one.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits, and all that equal the smallest of them; 0 is off.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach `top_p` together; 1 is off.
    pub top_p: f32,
    /// Keeps tokens at least `min_p` times as probable as the most probable one; 0 is off.
    pub min_p: f32,
    /// Names the sequence of random numbers.
    pub seed: u64,
    /// How many of the most probable tokens to report with each sampled one.
    pub logprobs: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            logprobs: 0,
        }
    }
}

impl SamplingParams {
    /// The largest `logprobs`.
    pub const MAX_LOGPROBS: usize = 100;

    /// Checks every value, and the ids of `logit_bias` against `vocab` where it is known.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names each value out of range.
    pub fn validate(&self, vocab: Option<usize>) -> Result<()> {
        let mut problems = Problems::default();
        let finite = f32::is_finite;
        let temperature = self.temperature;
        problems.check(
            finite(temperature) && temperature >= 0.0,
            "temperature",
            temperature,
            "a finite number >= 0",
        );
        problems.check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p, "a number in (0, 1]");
        problems.check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "a number in [0, 1]");
        let repetition = self.repetition_penalty;
        problems.check(
            finite(repetition) && repetition > 0.0,
            "repetition_penalty",
            repetition,
            "a finite number > 0",
        );
        let additive =
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)];
        for (name, value) in additive {
            problems.check(finite(value), name, value, "a finite number");
        }
        for &(id, bias) in &self.logit_bias {
            let name = format!("logit_bias[{id}]");
            // Negative infinity forbids a token.
            let is_usable = bias < f32::INFINITY;
            problems.check(is_usable, &name, bias, "a number, or negative infinity to forbid the token");
            if let Some(vocab) = vocab {
                let allowed = format!("a token id below the vocabulary size {vocab}");
                problems.check((id as usize) < vocab, &name, id, &allowed);
            }
        }
        let allowed = format!("at most {}", Self::MAX_LOGPROBS);
        problems.check(self.logprobs <= Self::MAX_LOGPROBS, "logprobs", self.logprobs, &allowed);
        problems.finish()
    }
}

/// Collects refused arguments, so that one error can name all of them.
#[derive(Default)]
struct Problems {
    names: Vec<String>,
    values: Vec<String>,
    allowed: Vec<String>,
}

impl Problems {
    fn check(&mut self, ok: bool, name: &str, value: impl Display, allowed: &str) {
        if !ok {
            self.names.push(name.to_owned());
            self.values.push(value.to_string());
            self.allowed.push(allowed.to_owned());
        }
    }

    fn finish(self) -> Result<()> {
        match self.names.len() {
            0 => Ok(()),
            _ => Err(Error::argument(self.names.join(", "), self.values.join(", "), self.allowed.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_greedy_and_valid() {
        let params = SamplingParams::default();
        assert_eq!(params.temperature, 0.0);
        params.validate(Some(1)).unwrap();
    }

    #[test]
    fn each_bad_argument_is_named() {
        let ok = SamplingParams::default;
        let bad = [
            ("temperature", SamplingParams { temperature: -0.1, ..ok() }),
            ("temperature", SamplingParams { temperature: f32::NAN, ..ok() }),
            ("temperature", SamplingParams { temperature: f32::INFINITY, ..ok() }),
            ("top_p", SamplingParams { top_p: 0.0, ..ok() }),
            ("top_p", SamplingParams { top_p: 1.01, ..ok() }),
            ("top_p", SamplingParams { top_p: f32::NAN, ..ok() }),
            ("min_p", SamplingParams { min_p: -0.1, ..ok() }),
            ("min_p", SamplingParams { min_p: f32::NAN, ..ok() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..ok() }),
            ("presence_penalty", SamplingParams { presence_penalty: f32::NAN, ..ok() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: f32::INFINITY, ..ok() }),
            ("logit_bias[3]", SamplingParams { logit_bias: vec![(3, f32::NAN)], ..ok() }),
            ("logit_bias[3]", SamplingParams { logit_bias: vec![(3, f32::INFINITY)], ..ok() }),
            ("logit_bias[50]", SamplingParams { logit_bias: vec![(50, 1.0)], ..ok() }),
            ("logprobs", SamplingParams { logprobs: 101, ..ok() }),
        ];
        for (expected, params) in bad {
            match params.validate(Some(50)) {
                Err(Error::InvalidArgument { name, .. }) => assert_eq!(name, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        SamplingParams { logit_bias: vec![(50, 1.0)], ..ok() }.validate(None).unwrap();
        SamplingParams { logit_bias: vec![(3, f32::NEG_INFINITY)], ..ok() }.validate(Some(50)).unwrap();
    }

    #[test]
    fn several_bad_arguments_are_named_together() {
        let params = SamplingParams { temperature: -1.0, top_p: 2.0, ..SamplingParams::default() };
        let message = params.validate(None).unwrap_err().to_string();
        assert_eq!(
            message,
            "temperature, top_p: got -1, 2, expected a finite number >= 0, a number in (0, 1]"
        );
    }
}
