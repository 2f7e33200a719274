//! The loaded model: an immutable, cheaply cloned handle.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::load::{Checkpoint, LoadOptions};
use super::quantize::Recipe;
use super::{Fields, architecture};
use crate::batch::Batch;
use crate::checkpoint::gguf::GgufSource;
use crate::nn::{self, AdapterPlan, AdapterSet, Decoder, DecoderConfig, KvCache, KvLayout, Linear, Pass};
use crate::tokenizer::Tokenizer;
use crate::weight::{BlockFormat, Format, Loader, Quantize, TensorSource, Weight};
use crate::{Error, Result, device};

/// Tokens of one pass outside of generation.
const PASS_TOKENS: usize = 512;

/// A decoder with its tokenizer and configuration; clones share everything.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    directory: PathBuf,
    model_type: String,
    config: Value,
    generation_config: Value,
    decoder: Decoder,
    shape: DecoderConfig,
    tokenizer: Option<Tokenizer>,
    /// The file that all of this is from, where it is a GGUF file.
    gguf: Option<Arc<GgufSource>>,
    device: Device,
    dtype: DType,
    memory_limit_bytes: Option<u64>,
    eos_token_ids: Vec<u32>,
    /// Held while a pass runs: one submitter per device, and passes do not fight for cores.
    execution: Mutex<()>,
    /// What other rooms keep for this model, such as its engine, one value of a type.
    extensions: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    process: u32,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { name, model_type, .. } = &*self.inner;
        write!(f, "Model({name:?}, {model_type}, {}, {})", self.device_name(), self.dtype_name())
    }
}

impl Model {
    /// Loads a model from a directory, the hub, or the bundled one.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], [`Error::UnsupportedModel`], [`Error::InvalidConfig`], [`Error::InvalidCheckpoint`] with
    /// all missing and unused tensors, [`Error::DeviceUnavailable`], [`Error::OutOfMemory`] before anything is read.
    ///
    /// ```
    /// use candlewick::{LoadOptions, Model};
    /// let model = Model::load("candlewick/tiny", &LoadOptions::default())?;
    /// assert_eq!(model.model_type(), "qwen2");
    /// # Ok::<(), candlewick::Error>(())
    /// ```
    pub fn load(name: &str, options: &LoadOptions) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(name, options)?, options)
    }

    /// Builds the model from opened files.
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        let model_type = checkpoint.model_type()?.to_owned();
        let mut config = checkpoint.config.clone();
        let file = checkpoint.config_file();
        let mut shape = (architecture(&model_type)?.config)(&Fields::new(&file, &config)?)?;
        if shape.tie_word_embeddings && has_own_head(checkpoint.tensors.as_ref())? {
            log::warn!(
                "{}: the head is said to be the embedding, but another one is stored; it is used",
                checkpoint.name
            );
            shape.tie_word_embeddings = false;
            config["tie_word_embeddings"] = Value::Bool(false);
        }
        let device = device::open(&options.device)?;
        let dtype = checkpoint.dtype(&options.dtype, &device)?;
        // A GGUF file has chosen a format for every matrix; one type for all is only made when it is asked for.
        let as_stored = checkpoint.gguf.is_some() && options.dtype == "auto";
        let recipe = Recipe::of(options, &shape)?;
        if let Some(limit) = options.memory_limit_bytes {
            // Other devices than the CPU hold block formats decoded.
            let stored = as_stored && device.is_cpu();
            let recipe = recipe.as_ref().filter(|_| device.is_cpu());
            check_memory(checkpoint.tensors.as_ref(), (!stored).then_some(dtype), recipe, limit)?;
        }
        let tokenizer = if checkpoint.has_tokenizer()? { Some(checkpoint.tokenizer()?) } else { None };
        let loader = Loader::new(checkpoint.tensors.as_ref(), &device, dtype)
            .with_cancel(options.hub.cancel.clone())
            .with_formats_of_the_file(as_stored)
            .with_quantization(
                recipe
                    .as_ref()
                    .map(|recipe| -> Box<Quantize> { Box::new(|name, inn| recipe.target(name, inn)) }),
            );
        let decoder = build(loader, &shape, dtype)?;
        Ok(Self {
            inner: Arc::new(Inner {
                name: checkpoint.name.clone(),
                directory: checkpoint.directory.clone(),
                model_type,
                config,
                generation_config: checkpoint.generation_config.clone(),
                decoder,
                shape,
                device,
                dtype,
                memory_limit_bytes: options.memory_limit_bytes,
                eos_token_ids: checkpoint.eos_token_ids(tokenizer.as_ref()),
                tokenizer,
                gguf: checkpoint.gguf.clone(),
                execution: Mutex::new(()),
                extensions: Mutex::default(),
                process: std::process::id(),
            }),
        })
    }

    /// The same model with another decoder of the same shape, and nothing that was made for the old one.
    pub(super) fn with_decoder(&self, decoder: Decoder) -> Self {
        let old = &*self.inner;
        let mut shape = old.shape.clone();
        let mut config = old.config.clone();
        if shape.tie_word_embeddings && !decoder.is_tied() {
            shape.tie_word_embeddings = false;
            config["tie_word_embeddings"] = Value::Bool(false);
        }
        Self {
            inner: Arc::new(Inner {
                name: old.name.clone(),
                directory: old.directory.clone(),
                model_type: old.model_type.clone(),
                config,
                generation_config: old.generation_config.clone(),
                decoder,
                shape,
                tokenizer: old.tokenizer.clone(),
                gguf: old.gguf.clone(),
                device: old.device.clone(),
                dtype: old.dtype,
                memory_limit_bytes: old.memory_limit_bytes,
                eos_token_ids: old.eos_token_ids.clone(),
                execution: Mutex::new(()),
                extensions: Mutex::default(),
                process: old.process,
            }),
        }
    }

    /// What the model was loaded from.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The directory of its files.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// `model_type` of the configuration.
    pub fn model_type(&self) -> &str {
        &self.inner.model_type
    }

    /// `config.json` as read.
    pub fn config(&self) -> &Value {
        &self.inner.config
    }

    /// `generation_config.json` as read, or an empty object.
    pub fn generation_config(&self) -> &Value {
        &self.inner.generation_config
    }

    /// The layers.
    pub fn decoder(&self) -> &Decoder {
        &self.inner.decoder
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] where the checkpoint came without `tokenizer.json`.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.inner.tokenizer.as_ref().ok_or_else(|| Error::ModelNotFound {
            name: self.inner.name.clone(),
            reason: "it has no tokenizer.json; pass token ids instead of text".into(),
        })
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// The device's name, such as `"cpu"`.
    pub fn device_name(&self) -> String {
        device::name(&self.inner.device)
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.inner.dtype
    }

    /// What most weights are stored as: a dtype's usual name such as `"bfloat16"`, or a format's such as `"q4_0"`.
    pub fn dtype_name(&self) -> &'static str {
        let mut counts: HashMap<Format, usize> = HashMap::new();
        let mut count = |weight: &Arc<dyn Weight>| {
            let (out, inn) = weight.shape();
            *counts.entry(weight.format()).or_default() += out * inn;
        };
        self.inner.decoder.linears(&mut |linear: &Linear| count(linear.weight()));
        count(self.inner.decoder.embedding().weight());
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(format, _)| format);
        match most.and_then(BlockFormat::of) {
            Some(format) => format.name,
            None => plain_name(self.inner.dtype),
        }
    }

    /// The GGUF file it was loaded from.
    pub(super) fn gguf(&self) -> Option<&GgufSource> {
        self.inner.gguf.as_deref()
    }

    /// The shape of its parts.
    pub(super) fn shape(&self) -> &DecoderConfig {
        &self.inner.shape
    }

    /// The longest sequence in tokens.
    pub fn context_length(&self) -> usize {
        self.inner.shape.rope.context_length()
    }

    /// Number of different tokens the model can give.
    pub fn vocab_size(&self) -> usize {
        self.inner.shape.vocab_size
    }

    /// Width of the activations.
    pub fn hidden_size(&self) -> usize {
        self.inner.shape.hidden_size
    }

    /// Bytes for each token that one layer takes while it is being differentiated: an estimate from its widths.
    pub fn layer_activation_bytes(&self) -> usize {
        let shape = &self.inner.shape;
        let heads = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim;
        let elements = 8 * shape.hidden_size + 3 * heads + 4 * shape.intermediate_size;
        elements * device::compute_dtype(&self.inner.device, self.inner.dtype).size_in_bytes()
    }

    /// The limit on memory that the caller set, in bytes.
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        self.inner.memory_limit_bytes
    }

    /// Number of parameters; tied ones count once.
    pub fn num_parameters(&self) -> usize {
        let count = |(out, inn): (usize, usize)| out * inn;
        let decoder = &self.inner.decoder;
        let mut total = decoder.small_parameters() + count(decoder.embedding().weight().shape());
        decoder.linears(&mut |linear: &Linear| total += count(linear.weight().shape()));
        total
    }

    /// Bytes that the weights take in memory.
    pub fn size_in_bytes(&self) -> usize {
        let decoder = &self.inner.decoder;
        let small = device::compute_dtype(&self.inner.device, self.inner.dtype).size_in_bytes();
        let mut total = decoder.small_parameters() * small + decoder.embedding().weight().size_in_bytes();
        decoder.linears(&mut |linear: &Linear| total += linear.weight().size_in_bytes());
        total
    }

    /// Ids that end a generation, as the model's files name them.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.inner.eos_token_ids
    }

    /// Waits for other passes to end and keeps them out while the guard lives.
    ///
    /// # Errors
    /// [`Error::Internal`] in a child process that inherited the model through `fork`.
    pub fn exclusive(&self) -> Result<MutexGuard<'_, ()>> {
        self.check_process()?;
        Ok(self.inner.execution.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a part of a loop, and gives back at its end what the device's driver hands out until then.
    pub fn in_pool<R>(&self, step: impl FnOnce() -> R) -> R {
        device::in_pool(&self.inner.device, step)
    }

    /// The same, given up within a fraction of a kernel's time once `cancelled` says so and keeps to it.
    ///
    /// # Errors
    /// Those of `step`, and [`Error::Internal`] where it was given up; what it left behind is unspecified then.
    pub fn interruptible<R>(
        &self,
        cancelled: &(dyn Fn() -> bool + Sync),
        step: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        nn::interruptible(cancelled, || self.in_pool(step))
    }

    /// Refuses to work in a forked child, where threads and locks of the parent are frozen copies.
    pub fn check_process(&self) -> Result<()> {
        check_process(self.inner.process)
    }

    /// The one value of type `T` that belongs to this model, made at first use.
    pub fn extension<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut extensions = self.inner.extensions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = extensions.get(&TypeId::of::<T>())
            && let Ok(found) = Arc::clone(found).downcast::<T>()
        {
            return found;
        }
        let made = Arc::new(make());
        extensions.insert(TypeId::of::<T>(), Arc::clone(&made) as Arc<dyn Any + Send + Sync>);
        made
    }

    /// Final hidden states of a prepared pass: `[tokens, hidden]`.
    pub fn forward(&self, pass: &mut Pass) -> Result<Tensor> {
        let decoder = &self.inner.decoder;
        let mut x = decoder.embed(pass)?;
        for layer in 0..decoder.num_layers() {
            x = decoder.layer(layer, &x, pass)?;
        }
        decoder.finish(&x)
    }

    /// Logits `[rows, vocab]` for hidden states `[rows, hidden]`.
    pub fn head(&self, hidden: &Tensor, pass: &Pass) -> Result<Tensor> {
        match self.inner.decoder.head() {
            Some(head) => head.forward(hidden, pass),
            None => Err(self.headless()),
        }
    }

    /// Refuses a model that gives hidden states only.
    ///
    /// # Errors
    /// [`Error::InvalidCheckpoint`].
    pub fn check_head(&self) -> Result<()> {
        if self.inner.decoder.head().is_some() { Ok(()) } else { Err(self.headless()) }
    }

    fn headless(&self) -> Error {
        let problem = "it has no language-model head: it gives hidden states, but no logits and no text";
        Error::checkpoint(&self.inner.directory, problem)
    }

    /// Logits of every position: one f32 tensor `[seq, vocab]` on the CPU for each sequence.
    ///
    /// # Errors
    /// [`Error::ContextOverflow`] and [`Error::InvalidArgument`] for sequences the model cannot take.
    pub fn logits<S: AsRef<[u32]>>(
        &self,
        sequences: &[S],
        adapters: Option<&Arc<AdapterSet>>,
    ) -> Result<Vec<Tensor>> {
        self.per_sequence(sequences, adapters, &|| false, |hidden, pass| self.head(&hidden, pass))
    }

    /// Final hidden states of every position: one f32 tensor `[seq, hidden]` on the CPU for each sequence.
    ///
    /// # Errors
    /// As [`Model::logits`].
    pub fn hidden_states<S: AsRef<[u32]>>(
        &self,
        sequences: &[S],
        adapters: Option<&Arc<AdapterSet>>,
    ) -> Result<Vec<Tensor>> {
        self.per_sequence(sequences, adapters, &|| false, |hidden, _| Ok(hidden))
    }

    /// As [`Model::logits`] where `head`, else as [`Model::hidden_states`], given up once `cancelled` says so.
    ///
    /// # Errors
    /// As [`Model::logits`]; [`Error::Internal`] where the pass was given up.
    pub fn outputs<S: AsRef<[u32]>>(
        &self,
        sequences: &[S],
        adapters: Option<&Arc<AdapterSet>>,
        head: bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Tensor>> {
        self.per_sequence(sequences, adapters, cancelled, |hidden, pass| {
            if head { self.head(&hidden, pass) } else { Ok(hidden) }
        })
    }

    fn per_sequence<S: AsRef<[u32]>>(
        &self,
        sequences: &[S],
        adapters: Option<&Arc<AdapterSet>>,
        cancelled: &dyn Fn() -> bool,
        finish: impl Fn(Tensor, &Pass) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        sequences.iter().try_for_each(|sequence| self.check_ids(sequence.as_ref()))?;
        let _execution = self.exclusive()?;
        let mut results = Vec::with_capacity(sequences.len());
        let mut rest = sequences;
        while let Some(first) = rest.first() {
            let first = first.as_ref();
            // Short sequences share a pass; a long one takes several, so that it can be given up between them.
            let mut tokens = 0;
            let fitting = rest.iter().take_while(|sequence| {
                tokens += sequence.as_ref().len();
                tokens <= PASS_TOKENS
            });
            let together = fitting.count();
            if together > 0 {
                let batch = Batch::from_sequences(&rest[..together]);
                let mut pass = Pass::new(&batch).with_cancellation(cancelled);
                if let Some(set) = adapters {
                    pass = pass.with_adapters(AdapterPlan::all(Arc::clone(set), batch.tokens()));
                }
                let hidden = self.forward(&mut pass)?;
                let rows = finish(hidden, &pass)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
                for index in 0..together {
                    results.push(rows.narrow(0, batch.rows(index).start, batch.rows(index).len())?);
                }
            } else {
                results.push(self.in_parts(first, adapters, cancelled, &finish)?);
            }
            rest = &rest[together.max(1)..];
        }
        Ok(results)
    }

    /// The outputs of one long sequence, computed part by part with a cache of full precision.
    fn in_parts(
        &self,
        ids: &[u32],
        adapters: Option<&Arc<AdapterSet>>,
        cancelled: &dyn Fn() -> bool,
        finish: &impl Fn(Tensor, &Pass) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let dtype = device::compute_dtype(&self.inner.device, self.inner.dtype);
        let layout = KvLayout { dtype, ..(**self.inner.decoder.cache_layout()).clone() };
        let mut cache = KvCache::new(&Arc::new(layout));
        let mut parts = Vec::new();
        for (index, part) in ids.chunks(PASS_TOKENS).enumerate() {
            let mut batch = Batch::new();
            batch.push_part(part, index * PASS_TOKENS, ids.len());
            let mut pass = Pass::with_caches(&batch, vec![&mut cache]).with_cancellation(cancelled);
            if let Some(set) = adapters {
                pass = pass.with_adapters(AdapterPlan::all(Arc::clone(set), batch.tokens()));
            }
            let hidden = self.forward(&mut pass)?;
            parts.push(finish(hidden, &pass)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Refuses sequences that are empty, too long, or have ids outside of the vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::argument("input_ids", "an empty sequence", "at least one token"));
        }
        if ids.len() > self.context_length() {
            return Err(Error::ContextOverflow { tokens: ids.len(), limit: self.context_length() });
        }
        match ids.iter().find(|id| **id as usize >= self.vocab_size()) {
            Some(id) => Err(Error::argument(
                "input_ids",
                format!("token id {id}"),
                format!("ids below {}", self.vocab_size()),
            )),
            None => Ok(()),
        }
    }
}

/// A dtype's usual name.
pub(super) fn plain_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

fn build(loader: Loader, shape: &DecoderConfig, dtype: DType) -> Result<Decoder> {
    let root = loader.root();
    let backbone = if root.contains("model.embed_tokens.weight") || !root.contains("embed_tokens.weight") {
        root.at("model")
    } else {
        root.clone()
    };
    let headless =
        !shape.tie_word_embeddings && backbone.path().is_empty() && !root.contains("lm_head.weight");
    let decoder = Decoder::load(&backbone, &root, shape, dtype, headless)?;
    let tied = shape.tie_word_embeddings;
    drop((backbone, root));
    loader.finish(|name| name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight"))?;
    Ok(decoder)
}

/// Whether a head is stored that is not the embedding once more.
fn has_own_head(tensors: &dyn TensorSource) -> Result<bool> {
    const HEAD: &str = "lm_head.weight";
    let embedding = ["model.embed_tokens.weight", "embed_tokens.weight"];
    let embedding = embedding.into_iter().find_map(|name| Some((name, tensors.info(name)?)));
    let (Some(head), Some((name, embedding))) = (tensors.info(HEAD), embedding) else { return Ok(false) };
    let differs = head == embedding && tensors.bytes(HEAD)? != tensors.bytes(name)?;
    tensors.release(HEAD);
    Ok(differs)
}

/// Refuses to work in another process than the one that loaded.
pub(super) fn check_process(loaded_in: u32) -> Result<()> {
    if std::process::id() == loaded_in {
        return Ok(());
    }
    let reason =
        "the model was loaded before fork(); load it in the child process, or use the \"spawn\" start method";
    Err(Error::internal("this process cannot use the model", reason))
}

/// Refuses a model whose weights alone exceed the limit, before any is read; without a dtype they stay as stored.
pub(super) fn check_memory(
    tensors: &dyn TensorSource,
    dtype: Option<DType>,
    recipe: Option<&Recipe>,
    limit_bytes: u64,
) -> Result<()> {
    let bytes = |name: String| -> Option<u64> {
        let info = tensors.info(&name)?;
        let elements = info.shape.iter().product::<usize>() as u64;
        let chosen = match info.shape.as_slice() {
            [_, inn] => recipe.and_then(|recipe| recipe.choose(&name, *inn)),
            _ => None,
        };
        let format = chosen.map_or(info.format, |chosen| chosen.format);
        Some(match dtype.filter(|_| chosen.is_none()) {
            Some(dtype) => elements * dtype.size_in_bytes() as u64,
            None => elements / format.block_elements() as u64 * format.block_bytes() as u64,
        })
    };
    let needed_bytes = tensors.names().into_iter().filter_map(bytes).sum();
    if needed_bytes > limit_bytes {
        return Err(Error::OutOfMemory { what: "the model's weights".into(), needed_bytes, limit_bytes });
    }
    Ok(())
}
