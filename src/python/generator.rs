//! `Generator`: prompts and keywords to generations.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::convert;
use super::enter::{POLL, enter};
use super::generating::{Job, Pending, deliver};
use super::model::Model;
use super::registry::chosen;
use super::results::Generation;
use super::settings::Names;
use super::stream::TokenStream;
use super::whole::{Whole, count, named};
use crate::adapter::{KeptActive, Loaded};
use crate::generate::{self, Event, GenerationOptions, Prompt};
use crate::{Error, Result};

/// Keywords as given; `None` is one that was not given.
#[derive(Default)]
struct Keywords {
    max_new_tokens: Option<Whole>,
    temperature: Option<f32>,
    top_k: Option<Whole>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<Whole, f32>>,
    seed: Option<Whole>,
    stop: Option<Names>,
    stop_token_ids: Option<Vec<Whole>>,
    ignore_eos: Option<bool>,
    logprobs: Option<Whole>,
}

impl Keywords {
    /// `base` with every given keyword in its place.
    fn over(self, base: &GenerationOptions) -> Result<GenerationOptions> {
        let stop = self.stop.map(|stop| match stop {
            Names::One(text) => vec![text],
            Names::Many(texts) => texts,
        });
        let seed = self.seed.map(|seed| seed.number("seed")).transpose()?;
        Ok(GenerationOptions {
            max_new_tokens: count("max_new_tokens", self.max_new_tokens.as_ref())?
                .unwrap_or(base.max_new_tokens),
            temperature: self.temperature.or(base.temperature),
            top_k: count("top_k", self.top_k.as_ref())?.or(base.top_k),
            top_p: self.top_p.or(base.top_p),
            min_p: self.min_p.or(base.min_p),
            repetition_penalty: self.repetition_penalty.or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            logit_bias: match self.logit_bias {
                Some(bias) => bias
                    .iter()
                    .map(|(id, bias)| Ok((id.token_id("logit_bias")?, *bias)))
                    .collect::<Result<_>>()?,
                None => base.logit_bias.clone(),
            },
            // Any whole number names a sequence of random numbers.
            seed: seed.map(|seed| seed as u64).or(base.seed),
            stop: stop.unwrap_or_else(|| base.stop.clone()),
            stop_token_ids: match self.stop_token_ids {
                Some(ids) => ids.iter().map(|id| id.token_id("stop_token_ids")).collect::<Result<_>>()?,
                None => base.stop_token_ids.clone(),
            },
            ignore_eos: self.ignore_eos.unwrap_or(base.ignore_eos),
            logprobs: count("logprobs", self.logprobs.as_ref())?.unwrap_or(base.logprobs),
        })
    }
}

/// Generates text with a model.
///
/// Every keyword can be given here and again with each call, where it wins. None means the model's
/// ``generation_config.json``, else greedy decoding. Penalties, bias, temperature, top_k, top_p and min_p apply in
/// this order, as in transformers.
///
/// Args:
///     model: The model.
///     max_new_tokens: The most tokens to generate.
///     temperature: Divides the logits; 0 is greedy.
///     top_k: Sample from this many most probable tokens; 0 is off.
///     top_p: Sample from the smallest set of tokens that has this probability; 1 is off.
///     min_p: Sample from tokens at least this probable relative to the best; 0 is off.
///     repetition_penalty: Above 1 discourages tokens of prompt and output, once each.
///     presence_penalty: Subtracted from the logits of tokens of the output.
///     frequency_penalty: Subtracted from them once for each occurrence.
///     logit_bias: Added to the logits, by token id.
///     seed: Makes sampling repeatable, whatever else runs at the same time.
///     stop: A string, or several, that end the text before them.
///     stop_token_ids: Further ids that end the text.
///     ignore_eos: Whether to go on after an end-of-sequence token.
///     logprobs: How many of the most probable tokens to report with each one.
///     adapter: Name of a registered adapter; None is the active one, False the bare model.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> generator = cw.Generator(cw.Model.from_pretrained("candlewick/tiny"), max_new_tokens=6)
///     >>> generator.generate("Once upon a time").generated_tokens
///     6
#[pyclass(frozen, module = "candlewick")]
pub(super) struct Generator {
    model: Py<Model>,
    options: GenerationOptions,
    adapter: Option<Py<PyAny>>,
    /// Keeps active what was active, for as long as this generator lives.
    _kept: Option<Arc<KeptActive>>,
}

impl Generator {
    /// All prompts with what is asked for them.
    fn job(
        &self,
        py: Python<'_>,
        prompts: Vec<Prompt>,
        options: GenerationOptions,
        adapter: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Job> {
        let adapters = self.adapters(py, prompts.len(), adapter)?;
        Ok(Job { generator: generate::Generator::new(&self.model.get().get()?), prompts, adapters, options })
    }

    /// The adapter of each prompt.
    fn adapters(
        &self,
        py: Python<'_>,
        prompts: usize,
        given: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Option<Arc<crate::nn::AdapterSet>>>> {
        let model = self.model.get().get()?;
        let own = self.adapter.as_ref().map(|adapter| adapter.bind(py));
        let choice = given.filter(|given| !given.is_none()).or(own);
        let is_list = |choice: &&Bound<'_, PyAny>| {
            choice.is_instance_of::<PyList>() || choice.is_instance_of::<PyTuple>()
        };
        if let Some(names) = choice.filter(is_list) {
            let got = names.len()?;
            if got != prompts {
                let allowed = format!("one for each of {prompts} prompts");
                return Err(Error::argument("adapter", format!("{got} names"), allowed).into());
            }
            return names.try_iter()?.map(|name| chosen(&model, Some(&name?))).collect();
        }
        let set = chosen(&model, choice)?;
        Ok(vec![set; prompts])
    }
}

#[pymethods]
impl Generator {
    #[new]
    #[pyo3(signature = (model, *, max_new_tokens: "SupportsIndex | None" = 256, temperature = None, top_k = None,
                        top_p = None, min_p = None, repetition_penalty = None, presence_penalty = 0.0,
                        frequency_penalty = 0.0, logit_bias = None, seed = None, stop = None, stop_token_ids = None,
                        ignore_eos = false, logprobs: "SupportsIndex | None" = 0, adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn new(
        model: Py<Model>,
        #[pyo3(from_py_with = named::max_new_tokens)] max_new_tokens: Option<i64>,
        temperature: Option<f32>,
        top_k: Option<Whole>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repetition_penalty: Option<f32>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<Whole, f32>>,
        seed: Option<Whole>,
        stop: Option<Names>,
        stop_token_ids: Option<Vec<Whole>>,
        ignore_eos: Option<bool>,
        #[pyo3(from_py_with = named::logprobs)] logprobs: Option<i64>,
        adapter: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let keywords = Keywords {
            max_new_tokens: max_new_tokens.map(Whole::Small),
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
            stop,
            stop_token_ids,
            ignore_eos,
            logprobs: logprobs.map(Whole::Small),
        };
        let options = keywords.over(&GenerationOptions::default())?;
        let core = model.get().get()?;
        generate::check_options(&core, &options)?;
        Ok(Self { model, options, adapter, _kept: Loaded::of(&core).keep() })
    }

    /// The model.
    #[getter]
    fn model(&self, py: Python<'_>) -> Py<Model> {
        self.model.clone_ref(py)
    }

    /// Generates to the end.
    ///
    /// Args:
    ///     prompt: A text, a list of token ids, or a list of messages ``{"role": ..., "content": ...}``; or a list of
    ///         such prompts, which are computed together.
    ///     max_new_tokens: As for the class, like all keywords that follow.
    ///     temperature: As for the class.
    ///     top_k: As for the class.
    ///     top_p: As for the class.
    ///     min_p: As for the class.
    ///     repetition_penalty: As for the class.
    ///     presence_penalty: As for the class.
    ///     frequency_penalty: As for the class.
    ///     logit_bias: As for the class.
    ///     seed: As for the class.
    ///     stop: As for the class.
    ///     stop_token_ids: As for the class.
    ///     ignore_eos: As for the class.
    ///     logprobs: As for the class.
    ///     adapter: As for the class; a list of prompts may come with a list of names.
    ///
    /// Returns:
    ///     A ``Generation``, or a list of them in the order of the prompts.
    ///
    /// Raises:
    ///     InvalidArgumentError: A keyword or the prompt is out of range.
    ///     ContextLengthError: The prompt leaves no room for a token.
    ///     OutOfMemoryError: The request would exceed the model's ``memory_limit_bytes``.
    #[pyo3(signature = (prompt, *, max_new_tokens = None, temperature = None, top_k = None, top_p = None, min_p = None,
                        repetition_penalty = None, presence_penalty = None, frequency_penalty = None, logit_bias = None,
                        seed = None, stop = None, stop_token_ids = None, ignore_eos = None, logprobs = None,
                        adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn generate<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        max_new_tokens: Option<Whole>,
        temperature: Option<f32>,
        top_k: Option<Whole>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repetition_penalty: Option<f32>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<Whole, f32>>,
        seed: Option<Whole>,
        stop: Option<Names>,
        stop_token_ids: Option<Vec<Whole>>,
        ignore_eos: Option<bool>,
        logprobs: Option<Whole>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let keywords = Keywords {
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
            stop,
            stop_token_ids,
            ignore_eos,
            logprobs,
        };
        let options = keywords.over(&self.options)?;
        let (prompts, many) = convert::prompts(prompt)?;
        let job = self.job(py, prompts, options, adapter)?;
        let streams = enter(py, || job.begin())?;
        let mut results = Vec::with_capacity(streams.len());
        // An interrupt drops the streams, which cancels what is still under way.
        for stream in &streams {
            while !matches!(enter(py, || stream.next_timeout(POLL))?, Event::End) {
                py.check_signals()?;
            }
            results.extend(stream.result().map(|result| Generation::from(&*result)));
        }
        deliver(py, results, many)
    }

    /// Generates token by token.
    ///
    /// Args:
    ///     prompt: A text, a list of token ids, or a list of messages.
    ///     max_new_tokens: As for the class, like all keywords that follow.
    ///     temperature: As for the class.
    ///     top_k: As for the class.
    ///     top_p: As for the class.
    ///     min_p: As for the class.
    ///     repetition_penalty: As for the class.
    ///     presence_penalty: As for the class.
    ///     frequency_penalty: As for the class.
    ///     logit_bias: As for the class.
    ///     seed: As for the class.
    ///     stop: As for the class.
    ///     stop_token_ids: As for the class.
    ///     ignore_eos: As for the class.
    ///     logprobs: As for the class.
    ///     adapter: As for the class.
    ///
    /// Returns:
    ///     A ``TokenStream``, for ``for`` as well as ``async for``.
    ///
    /// Raises:
    ///     InvalidArgumentError: A keyword or the prompt is out of range.
    ///     ContextLengthError: The prompt leaves no room for a token.
    #[pyo3(signature = (prompt, *, max_new_tokens = None, temperature = None, top_k = None, top_p = None, min_p = None,
                        repetition_penalty = None, presence_penalty = None, frequency_penalty = None, logit_bias = None,
                        seed = None, stop = None, stop_token_ids = None, ignore_eos = None, logprobs = None,
                        adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        max_new_tokens: Option<Whole>,
        temperature: Option<f32>,
        top_k: Option<Whole>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repetition_penalty: Option<f32>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<Whole, f32>>,
        seed: Option<Whole>,
        stop: Option<Names>,
        stop_token_ids: Option<Vec<Whole>>,
        ignore_eos: Option<bool>,
        logprobs: Option<Whole>,
        adapter: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<TokenStream> {
        let keywords = Keywords {
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
            stop,
            stop_token_ids,
            ignore_eos,
            logprobs,
        };
        let options = keywords.over(&self.options)?;
        let (prompts, many) = convert::prompts(prompt)?;
        let [prompt] = prompts.as_slice() else {
            return Err(Error::argument(
                "prompt",
                format!("{} prompts", prompts.len()),
                "one; make a stream for each",
            )
            .into());
        };
        if many {
            return Err(Error::argument("prompt", "a list of prompts", "one; make a stream for each").into());
        }
        let adapter = self.adapters(py, 1, adapter)?.pop().flatten();
        let generator = generate::Generator::new(&self.model.get().get()?);
        Ok(TokenStream::new(enter(py, || generator.stream(prompt, &options, adapter))?))
    }

    /// As ``generate``, for ``await``; the event loop is never blocked.
    ///
    /// Args:
    ///     prompt: As for ``generate``.
    ///     max_new_tokens: As for the class, like all keywords that follow.
    ///     temperature: As for the class.
    ///     top_k: As for the class.
    ///     top_p: As for the class.
    ///     min_p: As for the class.
    ///     repetition_penalty: As for the class.
    ///     presence_penalty: As for the class.
    ///     frequency_penalty: As for the class.
    ///     logit_bias: As for the class.
    ///     seed: As for the class.
    ///     stop: As for the class.
    ///     stop_token_ids: As for the class.
    ///     ignore_eos: As for the class.
    ///     logprobs: As for the class.
    ///     adapter: As for ``generate``.
    ///
    /// Returns:
    ///     A coroutine that gives a ``Generation``, or a list of them. Cancelling it cancels the generation.
    #[pyo3(signature = (prompt, *, max_new_tokens = None, temperature = None, top_k = None, top_p = None, min_p = None,
                        repetition_penalty = None, presence_penalty = None, frequency_penalty = None, logit_bias = None,
                        seed = None, stop = None, stop_token_ids = None, ignore_eos = None, logprobs = None,
                        adapter = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn agenerate<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        max_new_tokens: Option<Whole>,
        temperature: Option<f32>,
        top_k: Option<Whole>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repetition_penalty: Option<f32>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<Whole, f32>>,
        seed: Option<Whole>,
        stop: Option<Names>,
        stop_token_ids: Option<Vec<Whole>>,
        ignore_eos: Option<bool>,
        logprobs: Option<Whole>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let keywords = Keywords {
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
            stop,
            stop_token_ids,
            ignore_eos,
            logprobs,
        };
        let options = keywords.over(&self.options)?;
        let (prompts, many) = convert::prompts(prompt)?;
        let job = self.job(py, prompts, options, adapter)?;
        let (wait, pending) = match job.is_slow_to_begin() {
            true => ("generate", Pending::later(job, many)),
            false => ("finish", Pending::new(enter(py, || job.begin())?, many)),
        };
        py.import("candlewick._async")?.call_method1(wait, (Bound::new(py, pending)?,))
    }

    fn __repr__(&self) -> String {
        format!("Generator({}, max_new_tokens={})", self.model.get().describe(), self.options.max_new_tokens)
    }
}
