//! `Tokenizer` and `DecodeStream`.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert;
use super::enter::enter;
use super::whole::Whole;
use crate::Error;
use crate::tokenizer::{self, ChatOptions};

/// Text to token ids and back, with the model's chat template.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> tokenizer = cw.Model.from_pretrained("candlewick/tiny").tokenizer
///     >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
///     'Once upon a time'
#[pyclass(frozen, module = "candlewick")]
pub(super) struct Tokenizer {
    inner: tokenizer::Tokenizer,
}

impl Tokenizer {
    pub(super) fn new(inner: tokenizer::Tokenizer) -> Self {
        Self { inner }
    }
}

#[pymethods]
impl Tokenizer {
    /// Token ids of a text.
    ///
    /// Args:
    ///     text: The text; may be empty.
    ///     add_special_tokens: Whether to add what the model expects around a text, such as a first token.
    ///
    /// Returns:
    ///     The ids.
    #[pyo3(signature = (text, *, add_special_tokens = true))]
    fn encode(&self, py: Python<'_>, text: &str, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        enter(py, || self.inner.encode(text, add_special_tokens))
    }

    /// Token ids of several texts, computed in parallel.
    ///
    /// Args:
    ///     texts: The texts.
    ///     add_special_tokens: As for ``encode``.
    ///
    /// Returns:
    ///     One list of ids for each text, not padded.
    #[pyo3(signature = (texts, *, add_special_tokens = true))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: Vec<String>,
        add_special_tokens: bool,
    ) -> PyResult<Vec<Vec<u32>>> {
        enter(py, || self.inner.encode_batch(&texts, add_special_tokens))
    }

    /// The text of token ids.
    ///
    /// Args:
    ///     ids: Token ids. Those without a token, as models with a padded vocabulary can produce, have no text.
    ///     skip_special_tokens: Whether to leave out tokens such as the end of a text.
    ///
    /// Returns:
    ///     The text; bytes that are no UTF-8 become U+FFFD.
    #[pyo3(signature = (ids, *, skip_special_tokens = true))]
    fn decode(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, skip_special_tokens: bool) -> PyResult<String> {
        let ids = convert::ids(ids)?;
        enter(py, || self.inner.decode(&ids, skip_special_tokens))
    }

    /// The id of a token as the vocabulary spells it, or None.
    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The vocabulary's spelling of an id, or None.
    fn id_to_token(&self, id: Whole) -> Option<String> {
        self.inner.id_to_token(id.token_id("id").ok()?)
    }

    /// Number of tokens, added ones included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// The ids that end a generation.
    #[getter]
    fn eos_token_ids(&self) -> Vec<u32> {
        self.inner.eos_token_ids().to_vec()
    }

    /// The id of the token that begins a text, or None.
    #[getter]
    fn bos_token_id(&self) -> Option<u32> {
        self.inner.bos_token_id()
    }

    /// The id of the token that fills batches elsewhere, or None; candlewick does not pad.
    #[getter]
    fn pad_token_id(&self) -> Option<u32> {
        self.inner.pad_token_id()
    }

    /// The source of the chat template, or None.
    #[getter]
    fn chat_template(&self) -> Option<String> {
        self.inner.chat_template().map(str::to_owned)
    }

    /// Renders a conversation as the model was trained to read it.
    ///
    /// Args:
    ///     messages: A list of ``{"role": ..., "content": ...}``.
    ///     add_generation_prompt: Whether to end with the beginning of an assistant turn.
    ///     tools: JSON schemas of functions that the model may call.
    ///     tokenize: Whether to return token ids instead of text.
    ///     **template_kwargs: Further variables of the template, such as ``enable_thinking``.
    ///
    /// Returns:
    ///     The text, or its token ids.
    ///
    /// Raises:
    ///     InvalidArgumentError: There is no template, or it refuses the messages.
    #[pyo3(signature = (messages, *, add_generation_prompt = true, tools = None, tokenize = false, **template_kwargs))]
    fn apply_chat_template<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        add_generation_prompt: bool,
        tools: Option<&Bound<'py, PyAny>>,
        tokenize: bool,
        template_kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut options = ChatOptions { add_generation_prompt, ..ChatOptions::default() };
        options.tools = tools.map(convert::from_python).transpose()?;
        if let Some(variables) = template_kwargs
            && let serde_json::Value::Object(mut variables) = convert::from_python(variables.as_any())?
        {
            let flag = variables.remove("continue_final_message");
            options.continue_final_message = flag.and_then(|value| value.as_bool()).unwrap_or(false);
            if let Some(serde_json::Value::String(template)) = variables.remove("chat_template") {
                options.template = Some(template);
            }
            options.variables = variables;
        }
        let messages = convert::from_python(messages)?;
        let text = enter(py, || self.inner.apply_chat_template(&messages, &options))?;
        if tokenize {
            let ids = enter(py, || self.inner.encode(&text, false))?;
            return Ok(ids.into_pyobject(py)?.into_any());
        }
        Ok(text.into_pyobject(py)?.into_any())
    }

    /// A decoder that takes one id at a time and never breaks a character.
    ///
    /// Args:
    ///     skip_special_tokens: Whether to leave out tokens such as the end of a text.
    ///
    /// Examples:
    ///     >>> import candlewick as cw
    ///     >>> tokenizer = cw.Model.from_pretrained("candlewick/tiny").tokenizer
    ///     >>> stream = tokenizer.decode_stream()
    ///     >>> "".join(stream.step(i) for i in tokenizer.encode("a cat")) + stream.flush()
    ///     'a cat'
    #[pyo3(signature = (*, skip_special_tokens = true))]
    fn decode_stream(&self, skip_special_tokens: bool) -> DecodeStream {
        DecodeStream { inner: Mutex::new(self.inner.decode_stream(skip_special_tokens)) }
    }

    fn __repr__(&self) -> String {
        format!("Tokenizer(vocab_size={}, eos_token_ids={:?})", self.vocab_size(), self.inner.eos_token_ids())
    }

    fn __len__(&self) -> usize {
        self.vocab_size()
    }
}

/// Decodes a stream of token ids; the pieces together are the full decode.
#[pyclass(frozen, module = "candlewick")]
pub(super) struct DecodeStream {
    inner: Mutex<tokenizer::DecodeStream>,
}

impl DecodeStream {
    fn with<T>(&self, f: impl FnOnce(&mut tokenizer::DecodeStream) -> Result<T, Error>) -> PyResult<T> {
        Ok(f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))?)
    }
}

#[pymethods]
impl DecodeStream {
    /// Text that became final with this id; may be empty.
    ///
    /// Args:
    ///     id: The next token id.
    ///
    /// Raises:
    ///     InvalidArgumentError: The id is not in the vocabulary.
    fn step(&self, id: Whole) -> PyResult<String> {
        let id = id.token_id("id")?;
        self.with(|stream| stream.step(id))
    }

    /// What was held back, now that nothing follows.
    fn flush(&self) -> PyResult<String> {
        self.with(tokenizer::DecodeStream::flush)
    }
}
