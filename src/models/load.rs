//! From a source to opened files: where a checkpoint lies, what its configuration says, what it stores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use serde_json::Value;

use super::fields::Fields;
use super::modules::transformer_folder;
use super::word_list;
use crate::checkpoint::gguf::GgufSource;
use crate::checkpoint::{HubOptions, SafetensorsSource, Wanted, read_json, resolve};
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use crate::weight::{Format, TensorSource};
use crate::{Error, Result};

/// Where to find a model and in which form to hold it.
#[derive(Clone)]
pub struct LoadOptions {
    /// `"auto"`, `"cpu"`, `"metal"`, `"cuda"` or `"cuda:N"`.
    pub device: String,
    /// `"auto"` (the checkpoint's), `"float32"`, `"bfloat16"` or `"float16"`.
    pub dtype: String,
    /// The quantised format to convert matrices to while loading; see [`Model::quantize`](super::Model::quantize).
    pub quantize: Option<String>,
    /// An importance matrix of llama.cpp's to quantise by.
    pub importance: Option<PathBuf>,
    /// A limit on weights, caches and activations in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// The directory of `candlewick/tiny`, where it is not in the source tree.
    pub bundled: Option<PathBuf>,
    /// How hub ids are looked up, and the flag that stops a load from another thread.
    pub hub: HubOptions,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: "auto".into(),
            dtype: "auto".into(),
            quantize: None,
            importance: None,
            memory_limit_bytes: None,
            bundled: None,
            hub: HubOptions::default(),
        }
    }
}

/// The name of the model that comes with candlewick.
pub const BUNDLED: &str = "candlewick/tiny";

/// The tokenizer of a repository.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// What a GGUF file calls its kind of tokenizer.
const TOKENIZER_KEY: &str = "tokenizer.ggml.model";

/// The opened files of one model.
pub struct Checkpoint {
    /// What the caller asked for.
    pub name: String,
    /// The directory that was found for the name.
    pub root: PathBuf,
    /// The directory with `config.json`: the same, or one that `root` keeps its transformer in.
    pub directory: PathBuf,
    /// `config.json`.
    pub config: Value,
    /// `generation_config.json`, or an empty object.
    pub generation_config: Value,
    /// The tensors.
    pub tensors: Arc<dyn TensorSource>,
    /// The GGUF file that all of this is from, where it is one.
    pub gguf: Option<Arc<GgufSource>>,
}

impl Checkpoint {
    /// Finds and opens `name`.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], and whatever the files' own readers report.
    pub fn open(name: &str, options: &LoadOptions) -> Result<Self> {
        let root = locate(name, options)?;
        if root.is_file() {
            return Self::open_gguf(name, &root);
        }
        let directory = transformer_folder(&root)?;
        let config_path = directory.join("config.json");
        if !config_path.is_file() {
            let reason = format!("the directory {} has no config.json", directory.display());
            return Err(Error::ModelNotFound { name: name.to_owned(), reason });
        }
        let config = read_json(&config_path)?;
        let generation_path = directory.join("generation_config.json");
        let generation_config = if generation_path.is_file() {
            read_json(&generation_path)?
        } else {
            Value::Object(Default::default())
        };
        Fields::new("generation_config.json", &generation_config)?;
        let tensors = Arc::new(SafetensorsSource::open(&directory)?);
        Ok(Self { name: name.to_owned(), root, directory, config, generation_config, tensors, gguf: None })
    }

    fn open_gguf(name: &str, path: &Path) -> Result<Self> {
        if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("gguf")) {
            let reason = "it is a file, but not a .gguf file; name the directory that holds config.json";
            return Err(Error::ModelNotFound { name: name.to_owned(), reason: reason.into() });
        }
        let source = Arc::new(GgufSource::open(path)?);
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Self {
            name: name.to_owned(),
            root: directory.clone(),
            directory,
            config: source.config()?,
            generation_config: source.generation_config()?,
            tensors: Arc::clone(&source) as Arc<dyn TensorSource>,
            gguf: Some(source),
        })
    }

    /// What the configuration was read from, for messages.
    pub fn config_file(&self) -> String {
        match &self.gguf {
            Some(source) => source.path().display().to_string(),
            None => "config.json".into(),
        }
    }

    /// `model_type` of the configuration.
    pub fn model_type(&self) -> Result<&str> {
        let file = self.config_file();
        let fields = Fields::new(&file, &self.config)?;
        match fields.text("model_type")? {
            Some(_) => Ok(self.config["model_type"].as_str().unwrap_or_default()),
            None => Err(fields.error("model_type", "the field is missing")),
        }
    }

    /// The dtype to hold weights in: as asked, or the configuration's, or that of the first stored matrix.
    pub fn dtype(&self, asked: &str, device: &Device) -> Result<DType> {
        let parse = |name: &str| match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Some(DType::F32),
            "bfloat16" => Some(DType::BF16),
            "float16" => Some(DType::F16),
            _ => None,
        };
        if asked != "auto" {
            let allowed = "\"auto\", \"float32\", \"bfloat16\" or \"float16\"";
            return parse(asked).ok_or_else(|| Error::argument("dtype", format!("{asked:?}"), allowed));
        }
        let configured = ["dtype", "torch_dtype"].iter().find_map(|field| self.config.get(field)?.as_str());
        if let Some(dtype) = configured.and_then(parse) {
            return Ok(dtype);
        }
        let mut names = self.tensors.names();
        names.sort();
        let stored =
            names.iter().filter_map(|name| self.tensors.info(name)).find(|info| info.shape.len() == 2);
        Ok(match stored.map(|info| info.format) {
            Some(Format::BF16) => DType::BF16,
            Some(Format::F16) => DType::F16,
            // Activations and caches of a quantised model: exact on the CPU, at their usual width elsewhere.
            Some(format) if format.is_quantized() && !device.is_cpu() => DType::BF16,
            _ => DType::F32,
        })
    }

    /// The tokenizer of the directory or the GGUF file, which learns all ids that end a generation.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = match &self.gguf {
            Some(source) => {
                let parts = source.tokenizer()?;
                let config = TokenizerConfig {
                    named_tokens: parts.named_tokens,
                    chat_templates: parts.chat_templates,
                    ..TokenizerConfig::default()
                };
                Tokenizer::from_parts(parts.tokenizer, config)?.with_eos_token_ids(parts.end_token_ids)
            }
            None if self.directory.join(TOKENIZER_FILE).is_file() => Tokenizer::from_dir(&self.directory)?,
            None => word_list::read(&self.directory)?,
        };
        let eos = self.eos_token_ids(Some(&tokenizer));
        Ok(tokenizer.with_eos_token_ids(eos))
    }

    /// All ids that end a generation: the generation configuration's, the configuration's, the tokenizer's.
    pub fn eos_token_ids(&self, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
        let mut ids = token_ids(self.generation_config.get("eos_token_id"));
        ids.extend(token_ids(self.config.get("eos_token_id")));
        ids.extend(tokenizer.map(Tokenizer::eos_token_ids).unwrap_or_default());
        let mut seen = std::collections::HashSet::new();
        ids.retain(|id| seen.insert(*id));
        ids
    }

    /// Whether there is a tokenizer at all; a bare checkpoint still serves token ids.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] where the files beside it are malformed.
    pub fn has_tokenizer(&self) -> Result<bool> {
        const NONE: &str = "none";
        match &self.gguf {
            Some(source) => {
                Ok(source.metadata().string(TOKENIZER_KEY).is_ok_and(|kind| kind.is_some_and(|k| k != NONE)))
            }
            None if self.directory.join(TOKENIZER_FILE).is_file() => Ok(true),
            None => word_list::is_there(&self.directory, self.model_type()?),
        }
    }
}

/// A token id field: absent, one id, or a list of them.
fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn locate(name: &str, options: &LoadOptions) -> Result<PathBuf> {
    if name == BUNDLED && !Path::new(name).exists() {
        let in_tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/candlewick/tiny");
        let directory = options.bundled.clone().unwrap_or(in_tree);
        if directory.is_dir() {
            return Ok(directory);
        }
    }
    resolve(name, &options.hub, &Wanted::Model)
}
