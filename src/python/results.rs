//! `StreamToken` and `Generation`: plain, picklable values.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::generate;

/// One generated token.
///
/// Attributes:
///     token_id: The token's id.
///     text: Text that became final with it; may be empty, and may hold text of earlier tokens.
///     index: Counts from 0.
///     logit: The logit as the model gave it.
///     probability: Probability in the distribution sampled from.
///     logprob: Natural logarithm of the probability.
///     top_logprobs: The most probable tokens as ``(token_id, logprob)``, best first, where asked for.
///     is_eos: Whether it is one of the model's end-of-sequence tokens.
///     finish_reason: ``"stop"`` or ``"length"`` on the last token, else None.
#[pyclass(frozen, get_all, module = "candlewick")]
pub(super) struct StreamToken {
    /// The token's id.
    token_id: u32,
    /// Text that became final with it.
    text: String,
    /// Counts from 0.
    index: usize,
    /// The logit as the model gave it.
    logit: f32,
    /// Probability in the distribution sampled from.
    probability: f32,
    /// Natural logarithm of the probability.
    logprob: f32,
    /// The most probable tokens, best first.
    top_logprobs: Vec<(u32, f32)>,
    /// Whether it is an end-of-sequence token.
    is_eos: bool,
    /// Set on the last token.
    finish_reason: Option<&'static str>,
}

impl From<generate::StreamToken> for StreamToken {
    fn from(token: generate::StreamToken) -> Self {
        Self {
            token_id: token.token_id,
            text: token.text,
            index: token.index,
            logit: token.logit,
            probability: token.probability,
            logprob: token.logprob,
            top_logprobs: token.top_logprobs,
            is_eos: token.is_eos,
            finish_reason: token.finish_reason.map(generate::FinishReason::as_str),
        }
    }
}

#[pymethods]
impl StreamToken {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let text = self.text.as_str().into_pyobject(py)?.repr()?;
        let end = self.finish_reason.map(|reason| format!(", finish_reason={reason:?}")).unwrap_or_default();
        Ok(format!("StreamToken({}, {text}, probability={:.4}{end})", self.token_id, self.probability))
    }

    fn __str__(&self) -> &str {
        &self.text
    }
}

/// What stopped a generation: a token id or a stop string.
#[derive(Clone, IntoPyObject, FromPyObject)]
pub(super) enum StopReason {
    Token(u32),
    Text(String),
}

type Logprobs = Vec<(f32, Vec<(u32, f32)>)>;

/// A finished generation.
///
/// Attributes:
///     text: The text, without a stop token or stop string.
///     token_ids: The generated ids, with the stop token.
///     finish_reason: ``"stop"``, ``"length"`` or ``"cancelled"``.
///     stop_reason: The token id or the stop string that ended it, or None.
///     prompt_tokens: Tokens of the prompt.
///     generated_tokens: Tokens generated.
///     cached_tokens: Tokens of the prompt whose keys and values were already there.
///     prompt_tokens_per_second: Speed of computing the rest of the prompt.
///     tokens_per_second: Speed of generating, after the first token.
///     time_to_first_token_s: Seconds from the request to its first token.
///     logprobs: For each token ``(logprob, [(token_id, logprob), ...])`` where asked for, else None.
///     adapter: Name of the adapter it used, or None.
#[pyclass(frozen, get_all, module = "candlewick")]
#[derive(Clone)]
pub(super) struct Generation {
    /// The text.
    text: String,
    /// The generated ids.
    token_ids: Vec<u32>,
    /// Why it ended.
    finish_reason: String,
    /// What ended it.
    stop_reason: Option<StopReason>,
    /// Tokens of the prompt.
    prompt_tokens: usize,
    /// Tokens generated.
    generated_tokens: usize,
    /// Tokens of the prompt that were reused.
    cached_tokens: usize,
    /// Speed of computing the prompt.
    prompt_tokens_per_second: f64,
    /// Speed of generating.
    tokens_per_second: f64,
    /// Seconds to the first token.
    time_to_first_token_s: f64,
    /// Log-probabilities where asked for.
    logprobs: Option<Logprobs>,
    /// Name of the adapter.
    adapter: Option<String>,
}

impl From<&generate::Generation> for Generation {
    fn from(result: &generate::Generation) -> Self {
        Self {
            text: result.text.clone(),
            token_ids: result.token_ids.clone(),
            finish_reason: result.finish_reason.as_str().to_owned(),
            stop_reason: result.stop_reason.clone().map(|reason| match reason {
                generate::StopReason::Token(id) => StopReason::Token(id),
                generate::StopReason::Text(text) => StopReason::Text(text),
            }),
            prompt_tokens: result.prompt_tokens,
            generated_tokens: result.token_ids.len(),
            cached_tokens: result.cached_tokens,
            prompt_tokens_per_second: result.prompt_tokens_per_second(),
            tokens_per_second: result.tokens_per_second(),
            time_to_first_token_s: result.time_to_first_token.as_secs_f64(),
            logprobs: result.logprobs.clone(),
            adapter: result.adapter.clone(),
        }
    }
}

#[pymethods]
impl Generation {
    #[new]
    #[pyo3(signature = (text, token_ids, finish_reason, stop_reason, prompt_tokens, cached_tokens, speeds, logprobs, adapter))]
    #[allow(clippy::too_many_arguments)] // Only unpickling calls it.
    fn new(
        text: String,
        token_ids: Vec<u32>,
        finish_reason: String,
        stop_reason: Option<StopReason>,
        prompt_tokens: usize,
        cached_tokens: usize,
        speeds: (f64, f64, f64),
        logprobs: Option<Logprobs>,
        adapter: Option<String>,
    ) -> Self {
        let generated_tokens = token_ids.len();
        let (prompt_tokens_per_second, tokens_per_second, time_to_first_token_s) = speeds;
        Self {
            text,
            token_ids,
            finish_reason,
            stop_reason,
            prompt_tokens,
            generated_tokens,
            cached_tokens,
            prompt_tokens_per_second,
            tokens_per_second,
            time_to_first_token_s,
            logprobs,
            adapter,
        }
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let speeds = (self.prompt_tokens_per_second, self.tokens_per_second, self.time_to_first_token_s);
        (
            self.text.clone(),
            self.token_ids.clone(),
            self.finish_reason.clone(),
            self.stop_reason.clone(),
            self.prompt_tokens,
            self.cached_tokens,
            speeds,
            self.logprobs.clone(),
            self.adapter.clone(),
        )
            .into_pyobject(py)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let text = self.text.as_str().into_pyobject(py)?.repr()?;
        Ok(format!(
            "Generation({text}, generated_tokens={}, finish_reason={:?})",
            self.generated_tokens, self.finish_reason
        ))
    }

    fn __str__(&self) -> &str {
        &self.text
    }
}
