//! The reranker: pairs of texts in, scores out, by models that read both texts at once.

use std::sync::Arc;

use serde_json::Value;

use super::batching::{Runner, Truncation, Watch};
use super::embedder::max_length;
use super::modules::General;
use super::prompts::{Prompts, Role};
use crate::models::{Fields, LoadOptions, TextEncoder, TorchActivation, listed_modules};
use crate::tokenizer::{EncodedText, Tokenizer};
use crate::{Error, Result};

/// Where to find a reranker, and what to do differently from what its repository says.
#[derive(Clone, Default)]
pub struct RerankerOptions {
    /// How the model is found and held.
    pub load: LoadOptions,
    /// The longest pair in tokens; `None` means the tokenizer's limit.
    pub max_length: Option<usize>,
}

/// How one call differs from the usual.
#[derive(Debug, Clone, Default)]
pub struct PredictOptions {
    /// What goes before the first text of every pair; see [`Reranker::prompt`].
    pub prompt: String,
    /// A class of torch such as `"sigmoid"`, `"identity"` or `"softmax"`; `None` means as the repository says, else a
    /// sigmoid for one label.
    pub activation: Option<String>,
    /// Whether the scores of several labels become probabilities.
    pub softmax: bool,
    /// The most pairs of one pass.
    pub batch_size: Option<usize>,
    /// What to do with pairs that are too long.
    pub truncation: Truncation,
}

/// Scores of pairs, `[rows, labels]` row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// The values.
    pub values: Vec<f32>,
    /// Number of pairs.
    pub rows: usize,
    /// Number of labels.
    pub labels: usize,
}

/// A document of a ranking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Its place among the documents given.
    pub index: usize,
    /// Its score.
    pub score: f32,
}

/// A cross-encoder; clones share everything.
#[derive(Clone)]
pub struct Reranker {
    inner: Arc<Inner>,
}

struct Inner {
    encoder: TextEncoder,
    max_length: usize,
    activation: TorchActivation,
    prompts: Prompts,
}

impl std::fmt::Debug for Reranker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reranker({:?}, {} labels)", self.inner.encoder.name(), self.labels())
    }
}

impl Reranker {
    /// Loads a sequence-classification model from a directory or the hub.
    ///
    /// # Errors
    /// As [`Embedder::load`](super::Embedder::load); [`Error::UnsupportedModel`] where candlewick has no head for its
    /// architecture, [`Error::InvalidCheckpoint`] where the checkpoint has none, [`Error::InvalidConfig`] for modules and
    /// activations that are not supported.
    pub fn load(name: &str, options: &RerankerOptions) -> Result<Self> {
        let encoder = TextEncoder::load(name, &options.load, true)?;
        let special = encoder.tokenizer().special_tokens(true);
        let max_length = max_length(&encoder, special, options.max_length, None)?;
        let general = general(&encoder)?;
        let prompts = general.prompts()?;
        prompts.choose(Role::Plain, None, None)?;
        let activation = default_activation(&general, encoder.config(), encoder.labels())?;
        Ok(Self { inner: Arc::new(Inner { encoder, max_length, activation, prompts }) })
    }

    /// Scores of pairs, in their order.
    ///
    /// # Errors
    /// [`Error::ContextOverflow`] where a pair is too long and truncation is refused, [`Error::InvalidArgument`] for
    /// options out of range, [`Error::Internal`] where the watch gave the work up.
    pub fn predict<A: AsRef<str> + Sync, B: AsRef<str> + Sync>(
        &self,
        pairs: &[(A, B)],
        options: &PredictOptions,
        watch: Watch,
    ) -> Result<Scores> {
        let inner = &*self.inner;
        inner.encoder.check_process()?;
        let activation = match options.activation.as_deref() {
            None => inner.activation,
            Some(name) => TorchActivation::from_name(name).ok_or_else(|| {
                let known = TorchActivation::names().collect::<Vec<_>>().join(", ");
                Error::argument("activation", format!("{name:?}"), format!("one of {known}"))
            })?,
        };
        if options.batch_size == Some(0) {
            return Err(Error::argument("batch_size", 0, "1 or more"));
        }
        let labels = self.labels();
        let mut values = vec![0.0; pairs.len() * labels];
        let bytes: Vec<usize> = pairs.iter().map(|(a, b)| a.as_ref().len() + b.as_ref().len()).collect();
        let runner = Runner {
            encoder: &inner.encoder,
            max_length: inner.max_length,
            max_inputs: options.batch_size,
            truncation: options.truncation,
            adapter: None,
            watch,
        };
        let tokenize = |inputs: &[usize]| -> Result<Vec<EncodedText>> {
            let prompted: Vec<String> = inputs
                .iter()
                .map(|input| format!("{}{}", options.prompt, pairs[*input].0.as_ref()))
                .collect();
            let pairs: Vec<(&str, &str)> = inputs
                .iter()
                .zip(&prompted)
                .map(|(input, prompted)| (prompted.as_str(), pairs[*input].1.as_ref()))
                .collect();
            inner.encoder.tokenizer().encode_pair_batch(&pairs, Some(inner.max_length))
        };
        runner.run(&bytes, tokenize, |passed| {
            let scores = inner.encoder.scores(&passed.hidden, passed.pass)?.to_vec2::<f32>()?;
            for (input, mut scores) in passed.inputs.iter().zip(scores) {
                activation.apply(&mut scores, labels);
                if options.softmax && labels > 1 {
                    TorchActivation::SOFTMAX.apply(&mut scores, labels);
                }
                values[input * labels..(input + 1) * labels].copy_from_slice(&scores);
            }
            Ok(())
        })?;
        Ok(Scores { values, rows: pairs.len(), labels })
    }

    /// Documents by their score for a query, best first; of equal ones the earlier.
    ///
    /// # Errors
    /// As [`Reranker::predict`]; [`Error::InvalidArgument`] for a model of several labels.
    pub fn rank<S: AsRef<str> + Sync>(
        &self,
        query: &str,
        documents: &[S],
        options: &PredictOptions,
        watch: Watch,
    ) -> Result<Vec<Ranked>> {
        if self.labels() != 1 {
            let allowed = "a model of one label; use predict";
            return Err(Error::argument("rank", format!("a model of {} labels", self.labels()), allowed));
        }
        let pairs: Vec<(&str, &str)> = documents.iter().map(|text| (query, text.as_ref())).collect();
        let scores = self.predict(&pairs, options, watch)?.values;
        let mut ranked: Vec<Ranked> =
            scores.into_iter().enumerate().map(|(index, score)| Ranked { index, score }).collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(ranked)
    }

    /// What goes before the first text of every pair: `prompt` itself, the one called `name`, or the default.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not among the prompts.
    pub fn prompt(&self, name: Option<&str>, prompt: Option<&str>) -> Result<String> {
        self.inner.prompts.choose(Role::Plain, name, prompt)
    }

    /// Prompts by name.
    pub fn prompts(&self) -> &[(String, String)] {
        &self.inner.prompts.named
    }

    /// The name of the prompt that is used where none is named.
    pub fn default_prompt_name(&self) -> Option<&str> {
        self.inner.prompts.default.as_deref()
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.inner.encoder.labels()
    }

    /// The longest pair in tokens.
    pub fn max_length(&self) -> usize {
        self.inner.max_length
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.inner.encoder.tokenizer()
    }

    /// The backbone with its head.
    pub fn encoder(&self) -> &TextEncoder {
        &self.inner.encoder
    }
}

/// What the repository says beside its model, where it says that it is a cross-encoder.
fn general(encoder: &TextEncoder) -> Result<General> {
    let general = General::read(encoder.root())?;
    match listed_modules(encoder.root())? {
        Some(list) if general.is_for("CrossEncoder", "") => {
            if let Some(module) = list.get(1) {
                let reason = format!("{:?} is not supported; a Transformer with its head is", module.kind);
                return Err(Error::config("modules.json", "type", reason));
            }
            Ok(general)
        }
        _ => Ok(General { config: Value::Object(Default::default()), ..general }),
    }
}

/// What the configurations name, in the words of each version of sentence-transformers; a sigmoid for one label.
fn default_activation(general: &General, config: &Value, labels: usize) -> Result<TorchActivation> {
    const FIELD: &str = "activation_fn";
    let nested = config.get("sentence_transformers").and_then(|section| section.get(FIELD));
    let oldest = config.get("sbert_ce_default_activation_function");
    let within = nested.or(oldest).and_then(Value::as_str);
    let named = Fields::new(&general.file, &general.config)?.text(FIELD)?;
    for (file, path) in [(general.file.as_str(), named), ("config.json", within)] {
        let Some(path) = path else { continue };
        let found = TorchActivation::from_path(path).map_err(|reason| Error::config(file, FIELD, reason))?;
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Ok(if labels == 1 { TorchActivation::SIGMOID } else { TorchActivation::IDENTITY })
}
