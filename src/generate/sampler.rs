//! Chooses the next token of one request from its logits.
//!
//! It knows ids only: no text, no model, no other request, so batch-mates cannot change what is drawn. The rules are
//! those of the transformers library's logits processors (version 5), in their order: repetition penalty, presence
//! and frequency penalty (OpenAI's definition), bias, temperature, top-k, top-p, min-p.

mod params;
mod random;
mod select;

use std::collections::HashMap;

use crate::{Error, Result};

pub use params::SamplingParams;
use random::Random;
use select::{BLOCK, Candidate, Softmax, at_least, clean_max, nucleus, rank, top_k};

/// A sampled token and how probable it was.
///
/// The probabilities are those of the distribution that was sampled from. Greedy decoding reports the softmax of the
/// logits after penalties and bias, at temperature 1, because the distribution that it takes its token from would say
/// nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token's id.
    pub token: u32,
    /// The logit as the model gave it.
    pub logit: f32,
    /// The natural logarithm of `probability`.
    pub logprob: f32,
    /// The token's probability.
    pub probability: f32,
    /// The most probable tokens with their log-probabilities, at most as many as asked for; none that was filtered out.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// The sampling state of one request: its parameters, random numbers and the tokens it has seen.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    vocab: usize,
    random: Random,
    /// Tokens of the prompt and the output, with the times that the output holds each; filled if a penalty needs it.
    seen: HashMap<u32, u32>,
    scratch: Scratch,
}

/// Buffers kept from token to token.
#[derive(Clone, Debug, Default)]
struct Scratch {
    /// Ids and logits that a penalty or a bias changed, as they were before.
    raw: Vec<(u32, f32)>,
    /// What the filters left, in order of ids.
    kept: Vec<Candidate>,
    /// Copies for selections to rearrange.
    candidates: Vec<Candidate>,
    logits: Vec<f32>,
    /// Weights summed over each block of the vocabulary.
    masses: Vec<f64>,
}

/// The distribution of one step.
#[derive(Clone, Copy, Debug)]
struct Distribution {
    softmax: Softmax,
    /// The sum of all weights.
    total: f64,
    /// Whether the tokens are those in `Scratch::kept`, or else the whole vocabulary.
    filtered: bool,
}

impl Distribution {
    fn logprob(&self, logit: f32) -> f64 {
        f64::from(self.softmax.log_weight(logit)) - self.total.ln()
    }
}

impl Sampler {
    /// A sampler for a request with the token ids `prompt` and a model that gives `vocab` logits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for parameters out of range.
    pub fn new(params: SamplingParams, prompt: &[u32], vocab: usize) -> Result<Self> {
        params.validate(Some(vocab))?;
        let mut seen = HashMap::new();
        if params.repetition_penalty != 1.0 {
            // A tokenizer may know ids for which the model has no logit.
            seen.extend(prompt.iter().filter(|&&id| (id as usize) < vocab).map(|&id| (id, 0)));
        }
        let random = Random::new(params.seed);
        Ok(Self { params, vocab, random, seen, scratch: Scratch::default() })
    }

    /// The parameters that the sampler was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Samples a token from `logits` `[vocab]` and counts it as output. `logits` are overwritten.
    ///
    /// A NaN counts as negative infinity. Positive infinity takes all the probability, in equal parts if it occurs
    /// more than once.
    ///
    /// # Errors
    /// [`Error::Internal`] if no logit is above negative infinity, or if their number is not `vocab`.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled> {
        let distribution = self.prepare(logits)?;
        let token = if self.params.temperature == 0.0 {
            logits.iter().position(|&logit| logit == distribution.softmax.max).unwrap_or_default()
        } else {
            let target = self.random.uniform() * distribution.total;
            self.draw(logits, &distribution, target)
        };
        let logprob = distribution.logprob(logits[token]);
        let top_logprobs = self.top_logprobs(logits, &distribution);
        let token = token as u32;
        let changed = self.scratch.raw.iter().find(|(id, _)| *id == token);
        let logit = changed.map_or(logits[token as usize], |&(_, raw)| raw);
        self.count(token);
        let (logprob, probability) = (logprob as f32, logprob.exp() as f32);
        Ok(Sampled { token, logit, logprob, probability, top_logprobs })
    }

    /// The probabilities `[vocab]` that [`Self::sample`] would report for these logits, without sampling.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn distribution(&mut self, logits: &mut [f32]) -> Result<Vec<f32>> {
        let distribution = self.prepare(logits)?;
        let probability = |logit: f32| distribution.logprob(logit).exp() as f32;
        if !distribution.filtered {
            return Ok(logits.iter().map(|&logit| probability(logit)).collect());
        }
        let mut probabilities = vec![0.0; logits.len()];
        for candidate in &self.scratch.kept {
            probabilities[candidate.id as usize] = probability(candidate.logit);
        }
        Ok(probabilities)
    }

    /// Applies penalties and bias in place, then the filters, and weighs what is left.
    fn prepare(&mut self, logits: &mut [f32]) -> Result<Distribution> {
        if logits.len() != self.vocab {
            let found = format!("got {} logits, expected {}", logits.len(), self.vocab);
            return Err(Error::internal("sampling failed", found));
        }
        self.penalise(logits);
        let max = clean_max(logits);
        if max == f32::NEG_INFINITY {
            let found = "every logit is NaN or negative infinity; the model's output is not usable";
            return Err(Error::internal("sampling failed", found));
        }
        let greedy = self.params.temperature == 0.0;
        let softmax = Softmax { max, temperature: if greedy { 1.0 } else { self.params.temperature } };
        let total = if greedy { None } else { self.filter(logits, softmax) };
        Ok(Distribution {
            softmax,
            total: total.unwrap_or_else(|| weigh(logits, softmax, &mut self.scratch.masses)),
            filtered: total.is_some(),
        })
    }

    fn penalise(&mut self, logits: &mut [f32]) {
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.params;
        let raw = &mut self.scratch.raw;
        raw.clear();
        for (&id, &count) in &self.seen {
            let logit = &mut logits[id as usize];
            raw.push((id, *logit));
            *logit = if *logit < 0.0 { *logit * repetition_penalty } else { *logit / repetition_penalty };
            if count > 0 {
                *logit -= presence_penalty + frequency_penalty * count as f32;
            }
        }
        for &(id, bias) in &self.params.logit_bias {
            let logit = &mut logits[id as usize];
            raw.push((id, *logit));
            *logit += bias;
        }
    }

    /// Leaves in `kept` what passes top-k, top-p and min-p, and returns its weight; `None` if all of them are off.
    fn filter(&mut self, logits: &[f32], softmax: Softmax) -> Option<f64> {
        let SamplingParams { top_k: k, top_p, min_p, temperature, .. } = self.params;
        let Scratch { kept, candidates, logits: order, masses, .. } = &mut self.scratch;
        let total = |kept: &[Candidate]| kept.iter().map(|c| f64::from(c.weight)).sum::<f64>();
        let mass = if (1..logits.len()).contains(&k) {
            top_k(logits, k, softmax, kept, order);
            total(kept)
        } else if top_p < 1.0 || min_p > 0.0 {
            let mut mass = 0.0;
            let mut bound = f64::from(min_p);
            if top_p < 1.0 {
                // Tokens that even `vocab` times over would not fill what top-p leaves out are out themselves.
                mass = weigh(logits, softmax, masses);
                bound = bound.max((1.0 - f64::from(top_p)) * mass / logits.len() as f64);
            }
            // The margin is wider than the rounding of weights; the exact rules follow.
            let threshold = f64::from(softmax.max) + f64::from(temperature) * ((bound * 0.99).ln());
            let threshold = if softmax.max.is_finite() { threshold as f32 } else { softmax.max };
            at_least(logits, threshold, softmax, kept);
            mass
        } else {
            return None;
        };
        if top_p < 1.0 {
            nucleus(kept, f64::from(top_p) * mass, candidates);
        }
        if min_p > 0.0 {
            // The most probable token has weight 1. Cutting the tail does not change which tokens lie above a token,
            // so it does not matter that `at_least` may have cut it before `nucleus`.
            kept.retain(|candidate| candidate.weight >= min_p);
        }
        Some(total(kept))
    }

    /// The first token at which the weights, summed in order of ids, exceed `target`.
    fn draw(&self, logits: &[f32], distribution: &Distribution, mut target: f64) -> usize {
        let Scratch { kept, masses, .. } = &self.scratch;
        let mut last = None;
        if distribution.filtered {
            for candidate in kept.iter().filter(|candidate| candidate.weight > 0.0) {
                last = Some(candidate.id as usize);
                target -= f64::from(candidate.weight);
                if target < 0.0 {
                    break;
                }
            }
        } else {
            let mut block = masses.len() - 1;
            for (index, &mass) in masses.iter().enumerate() {
                if target < mass {
                    block = index;
                    break;
                }
                target -= mass;
            }
            let start = block * BLOCK;
            for (index, &logit) in logits.iter().enumerate().skip(start).take(BLOCK) {
                let weight = distribution.softmax.weight(logit);
                if weight > 0.0 {
                    last = Some(index);
                    target -= f64::from(weight);
                    if target < 0.0 {
                        break;
                    }
                }
            }
        }
        // Rounding may leave a target beyond the last weight of a block without any: the largest logit has one.
        let largest = || logits.iter().position(|&logit| logit == distribution.softmax.max);
        last.or_else(largest).unwrap_or_default()
    }

    fn top_logprobs(&mut self, logits: &[f32], distribution: &Distribution) -> Vec<(u32, f32)> {
        let wanted = self.params.logprobs;
        if wanted == 0 {
            return Vec::new();
        }
        let Scratch { kept, candidates, logits: order, .. } = &mut self.scratch;
        if distribution.filtered {
            candidates.clone_from(kept);
        } else {
            top_k(logits, wanted, distribution.softmax, candidates, order);
        }
        rank(candidates, wanted);
        candidates.iter().map(|c| (c.id, distribution.logprob(c.logit) as f32)).collect()
    }

    fn count(&mut self, token: u32) {
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.params;
        if repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0 {
            *self.seen.entry(token).or_insert(0) += 1;
        }
    }
}

/// Fills `masses` with the weight of each block of `logits`, and returns their sum.
fn weigh(logits: &[f32], softmax: Softmax, masses: &mut Vec<f64>) -> f64 {
    masses.clear();
    masses.extend(logits.chunks(BLOCK).map(|block| softmax.mass(block)));
    masses.iter().sum()
}
