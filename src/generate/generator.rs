//! The text-level entry: prompts in, text out, over the engine of a model.

use std::sync::Arc;

use serde_json::Value;

use super::engine::Engine;
use super::request::{GenerationOptions, Request};
use super::stream::{Generation, TokenStream};
use crate::Result;
use crate::models::Model;
use crate::nn::AdapterSet;
use crate::tokenizer::ChatOptions;

/// How far a stream may run ahead of its reader, in tokens.
const STREAM_CAPACITY: usize = 64;

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text, encoded with the tokenizer's special tokens.
    Text(String),
    /// Token ids as they are.
    Ids(Vec<u32>),
    /// A list of messages for the model's chat template.
    Chat(Value),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

/// Generates text with one model; cheap to make and to clone.
///
/// ```
/// use candlewick::{GenerationOptions, Generator, LoadOptions, Model};
/// let model = Model::load("candlewick/tiny", &LoadOptions::default())?;
/// let generator = Generator::new(&model);
/// let options = GenerationOptions { max_new_tokens: 8, ..Default::default() };
/// let story = generator.generate(&"Once upon a time".into(), &options, None)?;
/// assert_eq!(story.token_ids.len(), 8);
/// # Ok::<(), candlewick::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Generator {
    model: Model,
    engine: Arc<Engine>,
}

impl Generator {
    /// A generator for `model`.
    pub fn new(model: &Model) -> Self {
        Self { model: model.clone(), engine: Engine::of(model) }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The prompt's token ids.
    ///
    /// # Errors
    /// What the tokenizer and the chat template report.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.model.tokenizer()?.encode(text, true),
            Prompt::Ids(ids) => Ok(ids.clone()),
            Prompt::Chat(messages) => {
                let tokenizer = self.model.tokenizer()?;
                let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
                tokenizer.encode(&tokenizer.apply_chat_template(messages, &options)?, false)
            }
        }
    }

    /// Hands a prompt to the engine without waiting; only the whole result can be read.
    ///
    /// # Errors
    /// As [`Request::new`] and [`Generator::encode`].
    pub fn start(
        &self,
        prompt: &Prompt,
        options: &GenerationOptions,
        adapter: Option<Arc<AdapterSet>>,
    ) -> Result<TokenStream> {
        self.submit(prompt, options, adapter, None)
    }

    /// Hands a prompt to the engine and reads its tokens as they come.
    ///
    /// # Errors
    /// As [`Generator::start`].
    pub fn stream(
        &self,
        prompt: &Prompt,
        options: &GenerationOptions,
        adapter: Option<Arc<AdapterSet>>,
    ) -> Result<TokenStream> {
        self.submit(prompt, options, adapter, Some(STREAM_CAPACITY))
    }

    /// Generates to the end.
    ///
    /// # Errors
    /// As [`Generator::start`].
    pub fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationOptions,
        adapter: Option<Arc<AdapterSet>>,
    ) -> Result<Arc<Generation>> {
        self.start(prompt, options, adapter)?.wait()
    }

    fn submit(
        &self,
        prompt: &Prompt,
        options: &GenerationOptions,
        adapter: Option<Arc<AdapterSet>>,
        stream_capacity: Option<usize>,
    ) -> Result<TokenStream> {
        let request = Request::new(&self.model, self.encode(prompt)?, options)?;
        self.engine.submit(&self.model, Request { adapter, stream_capacity, ..request })
    }
}
