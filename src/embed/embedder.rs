//! The embedder: texts in, vectors out, in the order of the texts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device};

use super::batching::{Passed, Runner, Truncation, Watch};
use super::gather::Gatherer;
use super::modules::{Module, Modules};
use super::pooling::PoolingMode;
use super::prompts::Role;
use super::similarity::{Similarity, normalize};
use crate::adapter::{AdapterChoice, AdapterRegistry, Loaded, Site, SiteKind, Sites};
use crate::models::{LoadOptions, TextEncoder};
use crate::nn::AdapterSet;
use crate::tokenizer::{EncodedText, Tokenizer};
use crate::{Error, Result};

/// Where to find an embedding model, and what to do differently from what its repository says.
#[derive(Clone, Default)]
pub struct EmbedderOptions {
    /// How the backbone is found and held.
    pub load: LoadOptions,
    /// Pooling modes by name, concatenated; empty means the repository's.
    pub pooling: Vec<String>,
    /// Whether vectors have length 1; `None` means as the repository says.
    pub normalize: Option<bool>,
    /// The longest text in tokens; `None` means the repository's.
    pub max_length: Option<usize>,
    /// Prompts by name, in place of the repository's of the same name.
    pub prompts: Vec<(String, String)>,
    /// The prompt of texts without a role, by name.
    pub default_prompt_name: Option<String>,
    /// Dimensions to keep; `None` means as the repository says.
    pub truncate_dim: Option<usize>,
}

/// How one call differs from the embedder's settings.
#[derive(Clone, Default)]
pub struct EncodeOptions {
    /// What goes before every text; see [`Embedder::prompt`].
    pub prompt: String,
    /// Whether vectors have length 1; `None` means as the embedder says.
    pub normalize: Option<bool>,
    /// Dimensions to keep; `None` means as the embedder says.
    pub truncate_dim: Option<usize>,
    /// The most texts of one pass.
    pub batch_size: Option<usize>,
    /// What to do with texts that are too long.
    pub truncation: Truncation,
    /// The adapter to use.
    pub adapter: Option<Arc<AdapterSet>>,
}

impl EncodeOptions {
    /// Whether texts with these options and with others can share a pass.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let same_adapter = match (&self.adapter, &other.adapter) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        same_adapter
            && (&self.prompt, self.normalize, self.truncate_dim, self.batch_size, self.truncation)
                == (&other.prompt, other.normalize, other.truncate_dim, other.batch_size, other.truncation)
    }
}

/// Vectors of texts, `[rows, dim]` row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vectors {
    /// The values.
    pub values: Vec<f32>,
    /// Number of texts.
    pub rows: usize,
    /// Width of a vector.
    pub dim: usize,
}

/// Vectors of the tokens of one text, `[tokens, hidden]` row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenVectors {
    /// The values.
    pub values: Vec<f32>,
    /// Number of tokens, special ones and those of the prompt included.
    pub tokens: usize,
}

/// An embedding model; clones share everything.
#[derive(Clone)]
pub struct Embedder {
    inner: Arc<Inner>,
}

struct Inner {
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    modules: Modules,
    normalize: Option<bool>,
    truncate_dim: Option<usize>,
    max_length: usize,
    dimension: usize,
    /// Tokens that prompts begin a text with, for pooling that leaves them out.
    prompt_tokens: Mutex<HashMap<String, usize>>,
    gatherer: Gatherer,
    /// Where adapters can be plugged in, and those that are loaded.
    sites: Arc<Sites>,
    adapters: Arc<Loaded>,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedder({:?}, dimension {})", self.inner.encoder.name(), self.dimension())
    }
}

impl Embedder {
    /// Loads an embedding model from a directory, the hub, or the bundled one.
    ///
    /// # Errors
    /// As [`Model::load`](crate::Model::load); [`Error::InvalidConfig`] for modules that are not supported,
    /// [`Error::InvalidArgument`] for options out of range.
    ///
    /// ```
    /// use candlewick::embed::{Embedder, EmbedderOptions, EncodeOptions, Watch};
    /// let embedder = Embedder::load("candlewick/tiny", &EmbedderOptions::default())?;
    /// let vectors = embedder.encode(&["A cat.", "A dog."], &EncodeOptions::default(), Watch::NONE)?;
    /// assert_eq!((vectors.rows, vectors.dim), (2, embedder.dimension()));
    /// # Ok::<(), candlewick::Error>(())
    /// ```
    pub fn load(name: &str, options: &EmbedderOptions) -> Result<Self> {
        let encoder = TextEncoder::load(name, &options.load, false)?;
        let mut modules = Modules::read(encoder.root(), encoder.config())?;
        if !options.pooling.is_empty() {
            modules.pooling.modes =
                options.pooling.iter().map(|name| PoolingMode::from_name(name)).collect::<Result<_>>()?;
        }
        modules.prompts.complete(name);
        modules.prompts.extend(options.prompts.clone());
        if let Some(name) = &options.default_prompt_name {
            modules.prompts.default = Some(name.clone());
        }
        // Reports a default that is no prompt, as early as possible.
        modules.prompts.choose(Role::Plain, None, None)?;
        let tokenizer = match modules.lower_case {
            true => encoder.tokenizer().lowercased()?,
            false => encoder.tokenizer().clone(),
        };
        let special = tokenizer.special_tokens(false);
        let max_length = max_length(&encoder, special, options.max_length, modules.max_length)?;
        let truncate_dim = options.truncate_dim.or(modules.truncate_dim);
        let full = modules.dimension(encoder.hidden_size())?;
        let dimension = kept(truncate_dim, full)?;
        let sites = Arc::new(sites(&encoder));
        Ok(Self {
            inner: Arc::new(Inner {
                encoder,
                tokenizer,
                modules,
                normalize: options.normalize,
                truncate_dim,
                max_length,
                dimension,
                prompt_tokens: Mutex::default(),
                gatherer: Gatherer::default(),
                sites,
                adapters: Arc::default(),
            }),
        })
    }

    /// The registry of its adapters; this handle refuses to add beyond `max_adapters`.
    pub fn adapters(&self, max_adapters: usize) -> AdapterRegistry {
        AdapterRegistry::over(&self.inner.sites, &self.inner.adapters, max_adapters)
    }

    /// The adapter that `choice` means at this moment, for [`EncodeOptions::adapter`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not loaded.
    pub fn adapter(&self, choice: &AdapterChoice) -> Result<Option<Arc<AdapterSet>>> {
        self.inner.adapters.resolve(choice)
    }

    /// Vectors of texts, in their order.
    ///
    /// # Errors
    /// [`Error::ContextOverflow`] where a text is too long and truncation is refused, [`Error::InvalidArgument`] for
    /// options out of range, [`Error::Internal`] where the watch gave the work up.
    pub fn encode<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EncodeOptions,
        watch: Watch,
    ) -> Result<Vectors> {
        let inner = &*self.inner;
        let full = inner.modules.dimension(inner.encoder.hidden_size())?;
        let dim = kept(options.truncate_dim.or(inner.truncate_dim), full)?;
        let mut values = vec![0.0; texts.len() * dim];
        let prompt =
            if inner.modules.pooling.include_prompt { 0 } else { self.prompt_tokens(&options.prompt)? };
        self.run(texts, options, watch, |passed| {
            let (states, hidden) = (to_cpu(&passed)?, inner.encoder.hidden_size());
            let mut pooled = Vec::with_capacity(passed.inputs.len() * full);
            for index in 0..passed.inputs.len() {
                let rows = passed.pass.batch().rows(index);
                let states = &states[rows.start * hidden..rows.end * hidden];
                pooled.extend(inner.modules.pooling.pool(states, hidden, prompt));
            }
            let vectors = self.finish(pooled, full, dim, options.normalize)?;
            for (row, input) in passed.inputs.iter().enumerate() {
                values[input * dim..(input + 1) * dim].copy_from_slice(&vectors[row * dim..(row + 1) * dim]);
            }
            Ok(())
        })?;
        Ok(Vectors { values, rows: texts.len(), dim })
    }

    /// Vectors of the tokens of texts, in their order: the backbone's, before pooling.
    ///
    /// # Errors
    /// As [`Embedder::encode`].
    pub fn encode_tokens<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EncodeOptions,
        watch: Watch,
    ) -> Result<Vec<TokenVectors>> {
        let mut all = vec![TokenVectors::default(); texts.len()];
        let hidden = self.inner.encoder.hidden_size();
        self.run(texts, options, watch, |passed| {
            let states = to_cpu(&passed)?;
            for (index, input) in passed.inputs.iter().enumerate() {
                let rows = passed.pass.batch().rows(index);
                let values = states[rows.start * hidden..rows.end * hidden].to_vec();
                all[*input] = TokenVectors { values, tokens: rows.len() };
            }
            Ok(())
        })?;
        Ok(all)
    }

    fn run<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EncodeOptions,
        watch: Watch,
        take: impl FnMut(Passed) -> Result<()>,
    ) -> Result<()> {
        let inner = &*self.inner;
        inner.encoder.check_process()?;
        if options.batch_size == Some(0) {
            return Err(Error::argument("batch_size", 0, "1 or more"));
        }
        let bytes: Vec<usize> = texts.iter().map(|text| text.as_ref().len()).collect();
        let runner = Runner {
            encoder: &inner.encoder,
            max_length: inner.max_length,
            max_inputs: options.batch_size,
            truncation: options.truncation,
            adapter: options.adapter.as_ref(),
            watch,
        };
        let tokenize = |inputs: &[usize]| -> Result<Vec<EncodedText>> {
            let with_prompt = |input: &usize| format!("{}{}", options.prompt, texts[*input].as_ref());
            match inputs {
                [input] => {
                    Ok(vec![inner.tokenizer.encode_text(&with_prompt(input), Some(inner.max_length))?])
                }
                _ => {
                    let texts: Vec<String> = inputs.iter().map(with_prompt).collect();
                    inner.tokenizer.encode_text_batch(&texts, Some(inner.max_length))
                }
            }
        };
        runner.run(&bytes, tokenize, take)
    }

    /// Everything after pooling: `[rows, full]` to `[rows, dim]`.
    fn finish(
        &self,
        mut vectors: Vec<f32>,
        full: usize,
        dim: usize,
        asked: Option<bool>,
    ) -> Result<Vec<f32>> {
        let wish = asked.or(self.inner.normalize);
        let mut width = self.inner.encoder.hidden_size() * self.inner.modules.pooling.modes.len();
        for module in &self.inner.modules.after {
            match module {
                Module::Projection(projection) => {
                    vectors = projection.forward(vectors)?;
                    width = projection.shape().1;
                }
                Module::Normalize if wish == Some(false) => {}
                Module::Normalize => normalize(&mut vectors, width),
            }
        }
        if dim < full {
            vectors = vectors.chunks(full).flat_map(|row| &row[..dim]).copied().collect();
        }
        if wish == Some(true) {
            normalize(&mut vectors, dim);
        }
        Ok(vectors)
    }

    /// The prompt of a call: `prompt` itself, the one called `name`, the role's, or the default.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not among the prompts.
    pub fn prompt(&self, role: Role, name: Option<&str>, prompt: Option<&str>) -> Result<String> {
        self.inner.modules.prompts.choose(role, name, prompt)
    }

    /// How many tokens of a text are the prompt's.
    fn prompt_tokens(&self, prompt: &str) -> Result<usize> {
        if prompt.is_empty() {
            return Ok(0);
        }
        let mut known = self.inner.prompt_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = known.get(prompt) {
            return Ok(*count);
        }
        let tokenizer = &self.inner.tokenizer;
        let ids = tokenizer.encode_text(prompt, Some(self.inner.max_length))?.ids;
        // What ends the text comes after it, not after the prompt.
        let ends = ids.last().is_some_and(|id| tokenizer.is_special(*id));
        let count = ids.len() - usize::from(ends);
        known.insert(prompt.to_owned(), count);
        Ok(count)
    }

    pub(super) fn gatherer(&self) -> &Gatherer {
        &self.inner.gatherer
    }

    /// Width of the vectors.
    pub fn dimension(&self) -> usize {
        self.inner.dimension
    }

    /// The longest text in tokens.
    pub fn max_length(&self) -> usize {
        self.inner.max_length
    }

    /// Prompts by name.
    pub fn prompts(&self) -> &[(String, String)] {
        &self.inner.modules.prompts.named
    }

    /// The name of the prompt of texts without a role.
    pub fn default_prompt_name(&self) -> Option<&str> {
        self.inner.modules.prompts.default.as_deref()
    }

    /// The measure that the model was trained for.
    pub fn similarity(&self) -> Similarity {
        self.inner.modules.similarity
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The backbone.
    pub fn encoder(&self) -> &TextEncoder {
        &self.inner.encoder
    }
}

/// Hidden states as f32 values on the CPU, row by row.
fn to_cpu(passed: &Passed) -> Result<Vec<f32>> {
    Ok(passed.hidden.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

fn kept(truncate_dim: Option<usize>, full: usize) -> Result<usize> {
    match truncate_dim {
        Some(0) => Err(Error::argument("truncate_dim", 0, "1 or more")),
        Some(dim) => Ok(dim.min(full)),
        None => Ok(full),
    }
}

/// The caller's limit, else the repository's, else the tokenizer's; never more than the backbone can number.
///
/// # Errors
/// For a limit that leaves no room for the `special` tokens around a text.
pub(super) fn max_length(
    encoder: &TextEncoder,
    special: usize,
    asked: Option<usize>,
    configured: Option<usize>,
) -> Result<usize> {
    let (least, most) = (special.max(1), encoder.max_tokens());
    if let Some(asked) = asked {
        if asked < least || asked > most {
            let allowed = format!("{least} to {most}, which the model was made for");
            return Err(Error::argument("max_length", asked, allowed));
        }
        return Ok(asked);
    }
    let (field, limit) = match (configured, encoder.tokenizer().model_max_length()) {
        (Some(limit), _) => ("max_seq_length", limit),
        (None, Some(limit)) => ("model_max_length", limit),
        (None, None) => return Ok(most),
    };
    if limit < least {
        let reason = format!("got {limit}, expected {least} or more, which stand around every text");
        return Err(Error::config("the tokenizer's configuration", field, reason));
    }
    Ok(limit.min(most))
}

/// The linear layers of an encoder, as places for adapters.
fn sites(encoder: &TextEncoder) -> Sites {
    let mut list = Vec::new();
    encoder.linears(&mut |linear| list.push(Site::linear(linear, SiteKind::Linear)));
    // Adapters of whole encoders reach their poolers too, which no vector comes from.
    Sites::new(list, encoder.device().clone(), encoder.compute_dtype()).with_unused(&["pooler"])
}
