//! Adapter directories: PEFT's two files, read and written; mlx-lm's, read.
//!
//! Reading checks the files by themselves; whether they fit a model is found out in [`bind`](super::bind). Formats:
//! PEFT, "checkpoint format" in its developer guides. Python pickles (`adapter_model.bin`) are never read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::layout::{self, BASE_WEIGHT};
use super::{LoraConfig, code, mlx};
use crate::checkpoint::{SafetensorsSource, read_json, write_json, write_safetensors};
use crate::weight::{Format, TensorInfo, TensorSource};
use crate::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const MLX_WEIGHTS: &str = "adapters.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// What PEFT puts before the path of every module.
const PREFIX: &str = "base_model.model.";

/// The content of an adapter directory, independent of any model.
#[derive(Debug, Clone)]
pub struct AdapterFile {
    path: PathBuf,
    config: LoraConfig,
    base_model: Option<String>,
    /// By module path and name below it; f32 on the CPU.
    tensors: BTreeMap<String, Tensor>,
    /// Copies of base weights, which are compared and not used.
    copies: Option<Copies>,
}

#[derive(Debug, Clone)]
struct Copies {
    source: Arc<SafetensorsSource>,
    names: Vec<String>,
    /// What stands before each of them in the file.
    prefix: &'static str,
}

impl AdapterFile {
    /// Reads a directory.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`] with one of the codes in [`code`]; [`Error::Io`] where the directory cannot be read.
    pub fn read(directory: &Path) -> Result<Self> {
        fs::read_dir(directory).map_err(|error| Error::io(directory, error))?;
        let config = read_config(directory)?;
        let from_mlx = mlx::is_config(&config);
        let weights = directory.join(if from_mlx { MLX_WEIGHTS } else { WEIGHTS });
        let source = open(directory, &weights)?;
        let (config, base_model) = if from_mlx {
            mlx::config(directory, &config, &source)?
        } else {
            let base = config.get("base_model_name_or_path").and_then(Value::as_str);
            (LoraConfig::from_peft(&directory.join(CONFIG), &config)?, base.map(str::to_owned))
        };
        let mut file = Self {
            path: directory.to_path_buf(),
            config,
            base_model,
            tensors: BTreeMap::new(),
            copies: None,
        };
        file.read_tensors(source, from_mlx)?;
        Ok(file)
    }

    /// An adapter in memory, from tensors by module path and name below it, f32 on the CPU; `path` is for messages.
    pub fn from_tensors(path: &Path, config: LoraConfig, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { path: path.to_path_buf(), config, base_model: None, tensors, copies: None }
    }

    /// The same with the name of the model it is made for.
    pub fn with_base_model(self, name: impl Into<String>) -> Self {
        Self { base_model: Some(name.into()), ..self }
    }

    fn read_tensors(&mut self, source: SafetensorsSource, from_mlx: bool) -> Result<()> {
        let mut names = source.names();
        names.sort();
        // Transformers takes names without the prefix too, and some tools write them; a file has one kind.
        let prefix = if names.iter().any(|name| name.starts_with(PREFIX)) { PREFIX } else { "" };
        let (mut problems, mut unknown, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let known = if from_mlx { mlx::rename(&name) } else { rename(&name, prefix) };
            let Some(known) = known else {
                unknown.push(format!("tensor {name} is none that an adapter has"));
                continue;
            };
            if known.ends_with(BASE_WEIGHT) {
                copies.push(known);
                continue;
            }
            match read_tensor(&source, &name)? {
                Ok(tensor) => {
                    let tensor = if from_mlx { mlx::transpose(tensor)? } else { tensor };
                    if self.tensors.insert(known, tensor).is_some() {
                        problems.push(format!("tensor {name} is there twice"));
                    }
                }
                Err(problem) => problems.push(problem),
            }
        }
        if !unknown.is_empty() {
            return Err(self.invalid(code::UNKNOWN_KEY, unknown));
        }
        if !problems.is_empty() {
            return Err(self.invalid(code::INVALID_WEIGHTS, problems));
        }
        if self.tensors.is_empty() {
            return Err(self.invalid(code::EMPTY, vec!["the file holds no tensors".into()]));
        }
        self.copies =
            (!copies.is_empty()).then(|| Copies { source: Arc::new(source), names: copies, prefix });
        Ok(())
    }

    /// Writes PEFT's two files into `directory`, each of them atomically; weights first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        let named = self.tensors.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone()));
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_tensors(&directory.join(WEIGHTS), &metadata, named.collect())?;
        write_json(directory.join(CONFIG), &self.config.to_peft(self.base_model.as_deref()))
    }

    /// Writes mlx-lm's two files into `directory`, each of them atomically; weights first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what mlx-lm cannot express, [`Error::Io`].
    pub fn write_mlx(&self, directory: &Path) -> Result<()> {
        let (config, tensors) = mlx::express(self)?;
        fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
        write_tensors(&directory.join(MLX_WEIGHTS), &metadata, tensors.into_iter().collect())?;
        write_json(directory.join(CONFIG), &config)
    }

    /// Where it came from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The model that it says it was made for.
    pub fn base_model(&self) -> Option<&str> {
        self.base_model.as_deref()
    }

    /// Its tensors by module path and name below it, in PEFT's shapes, f32 on the CPU.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Number of values in all tensors.
    pub fn num_parameters(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }

    /// The names of base weights of which the file has copies.
    pub(super) fn copies(&self) -> &[String] {
        self.copies.as_ref().map_or(&[], |copies| &copies.names)
    }

    /// A copied base weight in f32.
    pub(super) fn copy(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(copies) = &self.copies else { return Ok(None) };
        Ok(read_tensor(&copies.source, &format!("{}{name}", copies.prefix))?.ok())
    }

    /// An error about this adapter with all problems of one kind.
    pub(super) fn invalid(&self, code: &'static str, problems: Vec<String>) -> Error {
        invalid(&self.path, code, problems)
    }
}

/// Writes tensors as f32.
fn write_tensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
) -> Result<()> {
    let info = |tensor: &Tensor| TensorInfo { format: Format::F32, shape: tensor.dims().to_vec() };
    let infos: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), info(tensor))).collect();
    write_safetensors(path, metadata, &infos, |name| {
        let values = tensors[name].flatten_all()?.to_vec1::<f32>()?;
        Ok(Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()))
    })
}

/// How many problems an error lists.
const PROBLEMS_SHOWN: usize = 8;

pub(super) fn invalid(path: &Path, code: &'static str, mut problems: Vec<String>) -> Error {
    let more = problems.len().saturating_sub(PROBLEMS_SHOWN);
    problems.truncate(PROBLEMS_SHOWN);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Error::InvalidAdapter { path: path.to_path_buf(), problems, code }
}

fn read_config(directory: &Path) -> Result<Value> {
    let path = directory.join(CONFIG);
    if !path.is_file() {
        let problem = format!("there is no {CONFIG}; is this the directory of an adapter?");
        return Err(Error::adapter(directory, code::MISSING_CONFIG, problem));
    }
    read_json(&path).map_err(|error| match error {
        Error::InvalidConfig { reason, .. } => Error::adapter(&path, code::INVALID_CONFIG, reason),
        other => other,
    })
}

fn open(directory: &Path, weights: &Path) -> Result<SafetensorsSource> {
    let name = weights.file_name().unwrap_or_default().to_string_lossy();
    let size = match fs::metadata(weights) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => {
            let pickle = if directory.join(PICKLE).exists() {
                format!(
                    "; {PICKLE} is a Python pickle, which is never read because it can run code: load it with PEFT \
                     once and save it with safe_serialization=True"
                )
            } else {
                String::new()
            };
            let problem = format!("there is no {name}{pickle}");
            return Err(Error::adapter(directory, code::MISSING_WEIGHTS, problem));
        }
    };
    if size == 0 {
        return Err(Error::adapter(directory, code::EMPTY, format!("{name} has no content")));
    }
    SafetensorsSource::open(weights).map_err(|error| match error {
        Error::InvalidCheckpoint { problems, .. } => invalid(weights, code::INVALID_WEIGHTS, problems),
        other => other,
    })
}

/// The name without what PEFT puts before and between; `None` for a name that no adapter has.
fn rename(name: &str, prefix: &str) -> Option<String> {
    let name = name.strip_prefix(prefix)?.replace(".modules_to_save.", ".");
    // Some versions wrote the magnitude as a module of its own.
    let name = name
        .strip_suffix("lora_magnitude_vector.weight")
        .map_or(name.clone(), |path| format!("{path}lora_magnitude_vector"));
    layout::split(&name)?;
    Some(name)
}

/// One tensor in f32, or what is wrong with it.
fn read_tensor(source: &SafetensorsSource, name: &str) -> Result<std::result::Result<Tensor, String>> {
    let Some(info) = source.info(name) else { return Ok(Err(format!("tensor {name} is missing"))) };
    let stored = match info.format {
        Format::F32 => DType::F32,
        Format::F16 => DType::F16,
        Format::BF16 => DType::BF16,
        Format::F64 => DType::F64,
        other => return Ok(Err(format!("tensor {name} holds {other:?}, expected floating-point numbers"))),
    };
    let bytes = source.bytes(name)?;
    let tensor = Tensor::from_raw_buffer(&bytes, stored, &info.shape, &Device::Cpu)?;
    Ok(Ok(tensor.to_dtype(DType::F32)?))
}
