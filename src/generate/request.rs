//! What a caller asks for, and the model's own defaults for what was left open.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{SamplingParams, StopRules};
use crate::models::Model;
use crate::nn::AdapterSet;
use crate::{Error, Result};

/// Settings of one request; `None` means the model's `generation_config.json`, else the neutral value.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 is greedy.
    pub temperature: Option<f32>,
    /// Keeps the most probable tokens; 0 is off.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of tokens of this probability; 1 is off.
    pub top_p: Option<f32>,
    /// Keeps tokens this probable relative to the best; 0 is off.
    pub min_p: Option<f32>,
    /// Discourages tokens of prompt and output; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Discourages tokens of the output, once.
    pub presence_penalty: f32,
    /// Discourages tokens of the output, for each occurrence.
    pub frequency_penalty: f32,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes sampling repeatable; a fresh one for each request where `None`.
    pub seed: Option<u64>,
    /// Strings that end the text before them.
    pub stop: Vec<String>,
    /// Further ids that end the text.
    pub stop_token_ids: Vec<u32>,
    /// Whether to go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// How many of the most probable tokens to report with each one.
    pub logprobs: usize,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: 0,
        }
    }
}

/// A prompt with everything decided.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When it ends.
    pub stop: StopRules,
    /// The version of an adapter that this request keeps to its end.
    pub adapter: Option<Arc<AdapterSet>>,
    /// How many tokens a stream may be ahead of its reader; `None` where only the whole result is wanted.
    pub stream_capacity: Option<usize>,
}

impl Request {
    /// Checks `options` and fills in the model's defaults.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming each bad value; [`Error::ContextOverflow`] for a prompt that leaves no room.
    pub fn new(model: &Model, prompt: Vec<u32>, options: &GenerationOptions) -> Result<Self> {
        if prompt.is_empty() {
            return Err(Error::argument("prompt", "no tokens", "at least one token"));
        }
        if prompt.len() >= model.context_length() {
            return Err(Error::ContextOverflow { tokens: prompt.len() + 1, limit: model.context_length() });
        }
        model.check_ids(&prompt)?;
        model.check_head()?;
        let (sampling, stop) = check_options(model, options)?;
        Ok(Self { prompt, sampling, stop, adapter: None, stream_capacity: None })
    }

    /// The most tokens that the request can come to, prompt included.
    pub fn max_tokens(&self, context_length: usize) -> usize {
        self.prompt.len().saturating_add(self.stop.max_new_tokens).min(context_length)
    }
}

/// What `options` come to with this model.
///
/// # Errors
/// [`Error::InvalidArgument`] naming each bad value.
pub fn check_options(model: &Model, options: &GenerationOptions) -> Result<(SamplingParams, StopRules)> {
    let sampling = sampling(model.generation_config(), options)?;
    sampling.validate(Some(model.vocab_size()))?;
    let stop = StopRules {
        stop: options.stop.clone(),
        stop_token_ids: options.stop_token_ids.clone(),
        eos: model.eos_token_ids().to_vec(),
        ignore_eos: options.ignore_eos,
        max_new_tokens: options.max_new_tokens,
    };
    stop.validate()?;
    if !stop.stop.is_empty() && model.tokenizer().is_err() {
        let allowed =
            "nothing with a model that has no tokenizer, as there is no text to search; use stop_token_ids";
        return Err(Error::argument("stop", format!("{:?}", stop.stop), allowed));
    }
    Ok((sampling, stop))
}

/// The model's `generation_config.json`; `null` counts as absent.
struct Defaults<'a>(&'a Value);

impl Defaults<'_> {
    fn typed<T>(&self, field: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.0.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let unusable =
            || Error::config("generation_config.json", field, format!("got {value}, expected {kind}"));
        read(value).ok_or_else(unusable).map(Some)
    }

    fn number(&self, field: &str) -> Result<Option<f32>> {
        self.typed(field, "a number", |value| Some(value.as_f64()? as f32))
    }

    /// What was given, else the default of the file, else what changes nothing.
    fn or(&self, given: Option<f32>, field: &str, neutral: f32) -> Result<f32> {
        given.map_or_else(|| Ok(self.number(field)?.unwrap_or(neutral)), Ok)
    }
}

/// The sampling parameters; what the caller left open comes from the model's file.
///
/// # Errors
/// [`Error::InvalidConfig`] for a default that is of another type than it should be.
fn sampling(defaults: &Value, options: &GenerationOptions) -> Result<SamplingParams> {
    let defaults = Defaults(defaults);
    let samples = defaults.typed("do_sample", "true or false", Value::as_bool)?.unwrap_or(false);
    let temperature = match options.temperature {
        None if !samples => 0.0,
        given => defaults.or(given, "temperature", 1.0)?,
    };
    let top_k = match options.top_k {
        Some(given) => given,
        None => defaults.number("top_k")?.map_or(0, |k| k as usize),
    };
    Ok(SamplingParams {
        repetition_penalty: defaults.or(options.repetition_penalty, "repetition_penalty", 1.0)?,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        logit_bias: options.logit_bias.clone(),
        temperature,
        top_k,
        top_p: defaults.or(options.top_p, "top_p", 1.0)?,
        min_p: defaults.or(options.min_p, "min_p", 0.0)?,
        seed: options.seed.unwrap_or_else(fresh_seed),
        logprobs: options.logprobs,
    })
}

/// A seed that differs from request to request.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64);
    RandomState::new().hash_one(nanos)
}
