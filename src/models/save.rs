//! Writing a model as a directory in the layout of Hugging Face.
//!
//! Weights keep every bit that a plain type can hold; quantised ones are written as the values they stand for. The
//! configuration comes last, so that an interrupted call leaves nothing that would load.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::Model;
use super::model::plain_name;
use crate::checkpoint::{AtomicFile, write_json, write_safetensors};
use crate::nn::Part;
use crate::tokenizer::Tokenizer;
use crate::weight::{Format, TensorInfo, to_bytes};
use crate::{Error, Result};

/// The files of a tokenizer, which are copied as they are.
const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// The folder of further chat templates.
const TEMPLATES: &str = "additional_chat_templates";

impl Model {
    /// Writes the model to `directory` in the layout of Hugging Face: `model.safetensors`, `config.json`,
    /// `generation_config.json` and the tokenizer's files.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses; files that were there before stay whole.
    ///
    /// ```
    /// use candlewick::{LoadOptions, Model};
    /// let model = Model::load("candlewick/tiny", &LoadOptions::default())?;
    /// # let room = std::env::temp_dir().join(format!("candlewick-save-{}", std::process::id()));
    /// model.save_pretrained(&room)?;
    /// let again = Model::load(room.to_str().unwrap_or_default(), &LoadOptions::default())?;
    /// assert_eq!(again.num_parameters(), model.num_parameters());
    /// # std::fs::remove_dir_all(&room).ok();
    /// # Ok::<(), candlewick::Error>(())
    /// ```
    pub fn save_pretrained(&self, directory: impl AsRef<Path>) -> Result<()> {
        let directory = directory.as_ref();
        fs::create_dir_all(directory).map_err(|source| Error::io(directory, source))?;
        self.write_tensors(&directory.join("model.safetensors"))?;
        self.write_tokenizer(directory)?;
        if self.generation_config().as_object().is_some_and(|object| !object.is_empty()) {
            write_json(directory.join("generation_config.json"), self.generation_config())?;
        }
        write_json(directory.join("config.json"), &self.saved_config())?;
        remove_stale(directory)
    }

    fn write_tensors(&self, path: &Path) -> Result<()> {
        let parts: HashMap<String, Part> = self.decoder().parts().into_iter().collect();
        let mut infos = Vec::with_capacity(parts.len());
        let mut vectors = HashMap::new();
        for (name, part) in &parts {
            let (format, shape) = match part {
                Part::Matrix(weight) => {
                    let (out, inn) = weight.shape();
                    let format = weight.format();
                    (if format.is_quantized() { format_of(self.dtype()) } else { format }, vec![out, inn])
                }
                Part::Vector(tensor) => {
                    let (format, bytes) = narrowed(tensor, self.dtype())?;
                    vectors.insert(name.as_str(), bytes);
                    (format, tensor.dims().to_vec())
                }
            };
            infos.push((name.clone(), TensorInfo { format, shape }));
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_safetensors(path, &metadata, &infos, |name| match parts.get(name) {
            Some(Part::Matrix(weight)) if weight.format().is_quantized() => {
                Ok(Cow::Owned(to_bytes(&weight.dequantize(self.dtype())?)?.1))
            }
            Some(Part::Matrix(weight)) => weight.stored(),
            _ => Ok(Cow::Owned(vectors.remove(name).unwrap_or_default())),
        })
    }

    /// The configuration, which says what was written.
    fn saved_config(&self) -> Value {
        let mut config = self.config().clone();
        if let Some(object) = config.as_object_mut() {
            object.remove("quantization_config");
            let spelled: Vec<&str> =
                ["dtype", "torch_dtype"].into_iter().filter(|field| object.contains_key(*field)).collect();
            for field in if spelled.is_empty() { vec!["torch_dtype"] } else { spelled } {
                object.insert(field.to_owned(), json!(plain_name(self.dtype())));
            }
        }
        config
    }

    fn write_tokenizer(&self, directory: &Path) -> Result<()> {
        let Ok(tokenizer) = self.tokenizer() else { return Ok(()) };
        if self.gguf().is_some() {
            return write_own(tokenizer, directory);
        }
        let from = self.directory();
        for name in TOKENIZER_FILES {
            let (from, to) = (from.join(name), directory.join(name));
            match from.is_file() {
                true => copy(&from, &to)?,
                // Another model's, which would be taken for a part of this one.
                false if to.is_file() => fs::remove_file(&to).map_err(|source| Error::io(&to, source))?,
                false => {}
            }
        }
        let Ok(entries) = fs::read_dir(from.join(TEMPLATES)) else { return Ok(()) };
        for entry in entries {
            let path = entry.map_err(|source| Error::io(from, source))?.path();
            if let Some(name) = path.file_name() {
                copy(&path, &directory.join(TEMPLATES).join(name))?;
            }
        }
        Ok(())
    }
}

/// The vector in `dtype` if that loses nothing, else in f32.
fn narrowed(tensor: &Tensor, dtype: DType) -> Result<(Format, Vec<u8>)> {
    let (format, full) = to_bytes(&tensor.to_dtype(DType::F32)?)?;
    let narrow = tensor.to_dtype(dtype)?;
    if to_bytes(&narrow.to_dtype(DType::F32)?)?.1 == full { to_bytes(&narrow) } else { Ok((format, full)) }
}

/// Removes the weights of a model that was here before, which nobody would read any more.
fn remove_stale(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).map_err(|source| Error::io(directory, source))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_shard = name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
        if is_shard || name == "model.safetensors.index.json" {
            fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
        }
    }
    Ok(())
}

fn format_of(dtype: DType) -> Format {
    match dtype {
        DType::BF16 => Format::BF16,
        DType::F16 => Format::F16,
        _ => Format::F32,
    }
}

/// Copies a file that need not exist.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let same = || Some(fs::canonicalize(from).ok()? == fs::canonicalize(to).ok()?);
    if !from.is_file() || same() == Some(true) {
        return Ok(());
    }
    let bytes = fs::read(from).map_err(|source| Error::io(from, source))?;
    let mut file = AtomicFile::create(to)?;
    file.write(&bytes)?;
    file.commit()
}

/// A tokenizer that came without files.
fn write_own(tokenizer: &Tokenizer, directory: &Path) -> Result<()> {
    let failed = |source| Error::internal("writing the tokenizer", source);
    let text = tokenizer.inner().to_string(true).map_err(failed)?;
    let mut file = AtomicFile::create(directory.join("tokenizer.json"))?;
    file.write(text.as_bytes())?;
    file.commit()?;
    let config = tokenizer.config();
    let mut object = Map::new();
    object.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    object.insert("clean_up_tokenization_spaces".into(), json!(config.clean_up_spaces));
    for (name, token) in &config.named_tokens {
        object.insert(name.clone(), json!(token));
    }
    let templates: Vec<Value> = config
        .chat_templates
        .iter()
        .map(|(name, template)| json!({"name": name, "template": template}))
        .collect();
    match (config.chat_templates.get("default"), templates.len()) {
        (_, 0) => {}
        (Some(template), 1) => drop(object.insert("chat_template".into(), json!(template))),
        _ => drop(object.insert("chat_template".into(), json!(templates))),
    }
    write_json(directory.join("tokenizer_config.json"), &Value::Object(object))
}
