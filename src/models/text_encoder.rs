//! The loaded [`TextEncoder`]: any backbone that turns texts into vectors or scores, with its tokenizer.
//!
//! Decoders serve as well as encoders; their language-model head is not read. It does not pool and does not batch.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::backbone::Backbone;
use super::classifier::Classifier;
use super::load::{Checkpoint, LoadOptions};
use super::model::{check_memory, check_process};
use super::{ARCHITECTURES, ENCODERS, EncoderArchitecture, Fields, supported, token_types};
use crate::nn::{self, Decoder, Encoder, Linear, Pass};
use crate::tokenizer::Tokenizer;
use crate::weight::{Loader, Scope};
use crate::{Error, Result, device};

/// Tensors beside a backbone without a prefix that belong to heads of other tasks.
const HEADS: &[&str] = &[
    "pooler.",
    "cls.",
    "lm_head.",
    "classifier.",
    "pre_classifier.",
    "vocab_",
    "head.",
    "decoder.",
    "score.",
];

/// A backbone with its tokenizer and configuration, perhaps with a head that scores; clones share everything.
#[derive(Clone)]
pub struct TextEncoder {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    root: PathBuf,
    model_type: String,
    config: Value,
    backbone: Box<dyn Backbone>,
    classifier: Option<Classifier>,
    tokenizer: Tokenizer,
    hidden_size: usize,
    vocab_size: usize,
    max_tokens: usize,
    token_types: usize,
    num_parameters: usize,
    device: Device,
    dtype: DType,
    execution: Mutex<()>,
    process: u32,
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextEncoder({:?}, {})", self.inner.name, self.inner.model_type)
    }
}

/// A backbone as built, and what its configuration said.
struct Built {
    backbone: Box<dyn Backbone>,
    classifier: Option<Classifier>,
    hidden_size: usize,
    vocab_size: usize,
    max_tokens: usize,
    token_types: usize,
}

impl TextEncoder {
    /// Loads a backbone; with `classify`, its sequence-classification head too.
    ///
    /// # Errors
    /// As [`Model::load`](super::Model::load); [`Error::ModelNotFound`] where there is no tokenizer.
    pub fn load(name: &str, options: &LoadOptions, classify: bool) -> Result<Self> {
        if let Some(format) = &options.quantize {
            return Err(Error::argument(
                "quantize",
                format!("{format:?}"),
                "nothing, for an encoder of texts",
            ));
        }
        let checkpoint = Checkpoint::open(name, options)?;
        let model_type = checkpoint.model_type()?.to_owned();
        let device = device::open(&options.device)?;
        let dtype = checkpoint.dtype(&options.dtype, &device)?;
        let as_stored = checkpoint.gguf.is_some() && options.dtype == "auto";
        if let Some(limit) = options.memory_limit_bytes {
            let stored = as_stored && device.is_cpu();
            check_memory(checkpoint.tensors.as_ref(), (!stored).then_some(dtype), None, limit)?;
        }
        if !checkpoint.has_tokenizer()? {
            let reason =
                "it has no tokenizer.json, which texts need (nor a vocab.txt of BERT's kind)".to_owned();
            return Err(Error::ModelNotFound { name: name.to_owned(), reason });
        }
        let tokenizer = checkpoint.tokenizer()?;
        let fields = Fields::new("config.json", &checkpoint.config)?;
        let loader = Loader::new(checkpoint.tensors.as_ref(), &device, dtype)
            .with_cancel(options.hub.cancel.clone())
            .with_formats_of_the_file(as_stored);
        let encoder = ENCODERS.iter().find(|encoder| encoder.model_type == model_type);
        let (built, num_parameters) = match encoder {
            Some(architecture) => build_encoder(loader, &fields, architecture, classify)?,
            None if classify => {
                let supported = classifying().join(", ");
                return Err(Error::UnsupportedModel { model_type, supported });
            }
            None => build_decoder(loader, &fields, &model_type, dtype)?,
        };
        let typed = token_types::are_given(tokenizer.config(), &model_type);
        let token_types = if typed { built.token_types } else { 0 };
        Ok(Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                root: checkpoint.root,
                model_type,
                config: checkpoint.config,
                backbone: built.backbone,
                classifier: built.classifier,
                tokenizer,
                hidden_size: built.hidden_size,
                vocab_size: built.vocab_size,
                max_tokens: built.max_tokens,
                token_types,
                num_parameters,
                device,
                dtype,
                execution: Mutex::new(()),
                process: std::process::id(),
            }),
        })
    }

    /// What the model was loaded from.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The directory that was found for it, where `modules.json` would be.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// `model_type` of the configuration.
    pub fn model_type(&self) -> &str {
        &self.inner.model_type
    }

    /// `config.json` as read.
    pub fn config(&self) -> &Value {
        &self.inner.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        self.inner.hidden_size
    }

    /// The longest sequence in tokens that the backbone can number.
    pub fn max_tokens(&self) -> usize {
        self.inner.max_tokens
    }

    /// Whether segments make a difference, and are told.
    pub fn has_token_types(&self) -> bool {
        self.inner.token_types > 1
    }

    /// Number of labels that the head scores; 0 without a head.
    pub fn labels(&self) -> usize {
        self.inner.classifier.as_ref().map_or(0, Classifier::labels)
    }

    /// Number of parameters in use.
    pub fn num_parameters(&self) -> usize {
        self.inner.num_parameters
    }

    /// Bytes that the weights take in memory.
    pub fn size_in_bytes(&self) -> usize {
        let (mut elements, mut bytes) = (0, 0);
        self.linears(&mut |linear: &Linear| {
            let (out, inn) = linear.weight().shape();
            elements += out * inn;
            bytes += linear.weight().size_in_bytes();
        });
        bytes + (self.inner.num_parameters - elements) * self.inner.dtype.size_in_bytes()
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// The dtype of activations.
    pub fn compute_dtype(&self) -> DType {
        device::compute_dtype(&self.inner.device, self.inner.dtype)
    }

    /// The device's name, such as `"cpu"`.
    pub fn device_name(&self) -> String {
        device::name(&self.inner.device)
    }

    /// The dtype's usual name, such as `"float32"`.
    pub fn dtype_name(&self) -> &'static str {
        match self.inner.dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        }
    }

    /// The linear layers of the backbone in order.
    pub fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        self.inner.backbone.linears(visit);
    }

    /// Waits for other passes to end and keeps them out while the guard lives.
    ///
    /// # Errors
    /// [`Error::Internal`] in a child process that inherited the model through `fork`.
    pub fn exclusive(&self) -> Result<MutexGuard<'_, ()>> {
        self.check_process()?;
        Ok(self.inner.execution.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a part of a loop, and gives back at its end what the device's driver hands out until then; it is given up within a fraction of a kernel's time once `cancelled` says so and keeps to it.
    ///
    /// # Errors
    /// Those of `step`, and [`Error::Internal`] where it was given up; what it left behind is unspecified then.
    pub fn interruptible<R>(
        &self,
        cancelled: &(dyn Fn() -> bool + Sync),
        step: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        nn::interruptible(cancelled, || device::in_pool(&self.inner.device, step))
    }

    /// Refuses to work in a forked child, where threads and locks of the parent are frozen copies.
    pub fn check_process(&self) -> Result<()> {
        check_process(self.inner.process)
    }

    /// Refuses token ids that the embedding has no row for.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.inner.vocab_size) {
            None => Ok(()),
            Some(id) => {
                let problem = format!("token id {id} of the tokenizer");
                let allowed = format!("ids below the model's vocabulary size, {}", self.inner.vocab_size);
                Err(Error::argument("texts", problem, allowed))
            }
        }
    }

    /// Final hidden states of a pass: `[tokens, hidden]`, in the dtype of activations.
    pub fn forward(&self, pass: &mut Pass) -> Result<Tensor> {
        self.inner.backbone.hidden_states(pass)
    }

    /// The head's scores for hidden states of a pass: f32 `[sequences, labels]`.
    ///
    /// # Errors
    /// [`Error::Internal`] where the model was loaded without a head.
    pub fn scores(&self, hidden: &Tensor, pass: &Pass) -> Result<Tensor> {
        match &self.inner.classifier {
            Some(classifier) => classifier.forward(hidden, pass),
            None => Err(Error::internal("scores", "the model was loaded without its classification head")),
        }
    }
}

fn classifying() -> Vec<&'static str> {
    ENCODERS.iter().filter(|encoder| encoder.classifier.is_some()).map(|encoder| encoder.model_type).collect()
}

fn build_encoder(
    loader: Loader,
    fields: &Fields,
    architecture: &EncoderArchitecture,
    classify: bool,
) -> Result<(Built, usize)> {
    let config = (architecture.config)(fields)?;
    let head = match (classify, architecture.classifier) {
        (false, _) => None,
        (true, Some(read)) => Some(read(fields)?),
        (true, None) => {
            let supported = classifying().join(", ");
            return Err(Error::UnsupportedModel { model_type: architecture.model_type.into(), supported });
        }
    };
    let root = loader.root();
    let scope = backbone_scope(&root, architecture.prefix, config.names.words);
    let path = scope.path().to_owned();
    let (hidden_size, vocab_size) = (config.hidden_size, config.vocab_size);
    let (max_tokens, token_types) = (config.max_tokens, config.token_types);
    let classifier = match &head {
        Some(head) => Some(Classifier::load(&root, &scope, hidden_size, head)?),
        None => None,
    };
    let backbone = Box::new(Encoder::load(&scope, config)?);
    drop((root, scope));
    let count = loader.parameters_read();
    loader.finish(|name| unused(name, &path))?;
    Ok((Built { backbone, classifier, hidden_size, vocab_size, max_tokens, token_types }, count))
}

fn build_decoder(loader: Loader, fields: &Fields, model_type: &str, dtype: DType) -> Result<(Built, usize)> {
    let Some(architecture) = ARCHITECTURES.iter().find(|known| known.model_type == model_type) else {
        return Err(Error::UnsupportedModel { model_type: model_type.to_owned(), supported: supported() });
    };
    let config = (architecture.config)(fields)?;
    let root = loader.root();
    let scope = backbone_scope(&root, "model", "embed_tokens");
    let path = scope.path().to_owned();
    let decoder = Decoder::load(&scope, &root, &config, dtype, true)?;
    drop((root, scope));
    let count = loader.parameters_read();
    loader.finish(|name| unused(name, &path))?;
    let built = Built {
        backbone: Box::new(decoder),
        classifier: None,
        hidden_size: config.hidden_size,
        vocab_size: config.vocab_size,
        max_tokens: config.rope.context_length(),
        token_types: 0,
    };
    Ok((built, count))
}

/// The scope below `prefix`, unless the checkpoint holds the bare backbone.
fn backbone_scope<'a>(root: &Scope<'a>, prefix: &str, words: &str) -> Scope<'a> {
    let bare = root.contains(&format!("{words}.weight"));
    if bare { root.clone() } else { root.at(prefix) }
}

/// Whether a tensor that was not read is one that real checkpoints carry without need.
fn unused(name: &str, backbone: &str) -> bool {
    let inner = match backbone {
        "" => Some(name),
        prefix => name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')),
    };
    let Some(inner) = inner else { return true };
    let buffer = ["position_ids", "token_type_ids", "rotary_emb.inv_freq"];
    buffer.iter().any(|end| inner.ends_with(end))
        || inner.starts_with("pooler.")
        || (backbone.is_empty() && HEADS.iter().any(|head| inner.starts_with(head)))
}
