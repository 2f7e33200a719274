//! The reranker: pairs of texts in, scores out, by models that read both texts at once.

use std::sync::Arc;

use serde_json::Value;

use super::batching::{Runner, Truncation, Watch};
use super::embedder::max_length;
use crate::models::{LoadOptions, TextEncoder};
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

/// What is done with the scores of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activation {
    Identity,
    Sigmoid,
}

/// How one call differs from the usual.
#[derive(Debug, Clone, Default)]
pub struct PredictOptions {
    /// `"sigmoid"` or `"identity"`; `None` means as the repository says, else a sigmoid for one label.
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
    activation: Activation,
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
    /// architecture, [`Error::InvalidCheckpoint`] where the checkpoint has none.
    pub fn load(name: &str, options: &RerankerOptions) -> Result<Self> {
        let encoder = TextEncoder::load(name, &options.load, true)?;
        let max_length = max_length(&encoder, encoder.tokenizer(), options.max_length, None)?;
        let activation = default_activation(encoder.config(), encoder.labels());
        Ok(Self { inner: Arc::new(Inner { encoder, max_length, activation }) })
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
            Some("identity") => Activation::Identity,
            Some("sigmoid") => Activation::Sigmoid,
            Some(other) => {
                let allowed = "\"identity\" or \"sigmoid\"";
                return Err(Error::argument("activation", format!("{other:?}"), allowed));
            }
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
            let pairs: Vec<(&str, &str)> =
                inputs.iter().map(|input| (pairs[*input].0.as_ref(), pairs[*input].1.as_ref())).collect();
            inner.encoder.tokenizer().encode_pair_batch(&pairs, Some(inner.max_length))
        };
        runner.run(&bytes, tokenize, |passed| {
            let scores = inner.encoder.scores(&passed.hidden, passed.pass)?.to_vec2::<f32>()?;
            for (input, mut scores) in passed.inputs.iter().zip(scores) {
                activate(&mut scores, activation, options.softmax);
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

/// What the configuration names, in the words of either version of sentence-transformers; a sigmoid for one label.
fn default_activation(config: &Value, labels: usize) -> Activation {
    let named = config
        .get("sentence_transformers")
        .and_then(|section| section.get("activation_fn"))
        .or_else(|| config.get("sbert_ce_default_activation_function"))
        .and_then(Value::as_str);
    match named.and_then(|path| path.rsplit('.').next()) {
        Some("Identity") => Activation::Identity,
        Some("Sigmoid") => Activation::Sigmoid,
        other => {
            if let Some(name) = other {
                log::warn!("the activation {name:?} of the configuration is not known; using the usual one");
            }
            if labels == 1 { Activation::Sigmoid } else { Activation::Identity }
        }
    }
}

fn activate(scores: &mut [f32], activation: Activation, softmax: bool) {
    if activation == Activation::Sigmoid {
        scores.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
    }
    if softmax && scores.len() > 1 {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores.iter_mut().for_each(|x| *x = (*x - largest).exp());
        let total: f32 = scores.iter().sum();
        scores.iter_mut().for_each(|x| *x /= total);
    }
}
