//! What a repository in sentence-transformers layout says: pooling, further modules, prompts, limits.
//!
//! It reads both spellings, that of versions 2 to 5 and that of version 6. A repository without `modules.json`, or one
//! that says it is something else than an embedding model, means pooling and nothing else: the last token's state where
//! the model was made to continue texts, else the mean.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::pooling::{Pooling, PoolingMode};
use super::prompts::Prompts;
use super::similarity::Similarity;
use crate::checkpoint::read_json;
use crate::models::{Fields, ListedModule, Projection, listed_modules};
use crate::{Error, Result};

/// A step after pooling.
#[derive(Debug)]
pub(super) enum Module {
    Projection(Projection),
    Normalize,
}

/// Everything that the files beside a transformer say.
#[derive(Debug)]
pub(super) struct Modules {
    pub(super) pooling: Pooling,
    pub(super) after: Vec<Module>,
    pub(super) prompts: Prompts,
    pub(super) similarity: Similarity,
    pub(super) truncate_dim: Option<usize>,
    pub(super) max_length: Option<usize>,
    pub(super) lower_case: bool,
}

impl Modules {
    /// Reads the modules of the repository at `root`, whose transformer has the configuration `config`.
    pub(super) fn read(root: &Path, config: &Value) -> Result<Self> {
        let mode = if continues_texts(config) { PoolingMode::LastToken } else { PoolingMode::Mean };
        let mut modules = Self {
            pooling: Pooling { modes: vec![mode], include_prompt: true },
            after: Vec::new(),
            prompts: Prompts::default(),
            similarity: Similarity::default(),
            truncate_dim: None,
            max_length: None,
            lower_case: false,
        };
        if let Some(list) = listed_modules(root)?
            && General::read(root)?.is_for("SentenceTransformer", "SentenceTransformer")
        {
            modules.pooling.modes = vec![PoolingMode::Mean];
            for (index, module) in list.iter().enumerate() {
                modules.add(module, index)?;
            }
            modules.read_general(root)?;
        }
        Ok(modules)
    }

    /// Width of sentence vectors over a backbone of width `hidden`, before truncation.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] where one module does not fit the one before it.
    pub(super) fn dimension(&self, hidden: usize) -> Result<usize> {
        let mut width = hidden * self.pooling.modes.len();
        for module in &self.after {
            if let Module::Projection(projection) = module {
                let (inn, out) = projection.shape();
                if inn != width {
                    let reason =
                        format!("a module takes vectors of {inn}, but the one before it gives {width}");
                    return Err(Error::config("modules.json", "", reason));
                }
                width = out;
            }
        }
        Ok(width)
    }

    fn add(&mut self, module: &ListedModule, index: usize) -> Result<()> {
        let folder = &module.folder;
        match (module.kind.as_str(), index) {
            ("Transformer", 0) => self.read_transformer(folder)?,
            ("Pooling", 1) => self.pooling = read_pooling(folder)?,
            ("Dense", 2..) => self.after.push(Module::Projection(Projection::dense(folder)?)),
            ("LayerNorm", 2..) => self.after.push(Module::Projection(Projection::norm(folder)?)),
            ("Normalize", 2..) => self.after.push(Module::Normalize),
            ("Dropout", 2..) => {}
            (kind, _) => {
                let reason = format!(
                    "{kind:?} at place {index} is not supported; a Transformer, Pooling, and then Dense, LayerNorm, \
                     Normalize and Dropout are"
                );
                return Err(Error::config("modules.json", "type", reason));
            }
        }
        Ok(())
    }

    /// `sentence_<family>_config.json`; all but the oldest repositories call it after one family.
    fn read_transformer(&mut self, folder: &Path) -> Result<()> {
        let is_settings = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("sentence_") && name.ends_with("_config.json")
        };
        let entries = std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
        let path = entries.flatten().map(|entry| entry.path()).filter(is_settings).min();
        if let Some(path) = path {
            let (config, file) = (read_json(&path)?, path.display().to_string());
            let fields = Fields::new(&file, &config)?;
            self.max_length = fields.count("max_seq_length")?;
            self.lower_case = fields.flag_or("do_lower_case", false)?;
        }
        Ok(())
    }

    fn read_general(&mut self, root: &Path) -> Result<()> {
        let general = General::read(root)?;
        let fields = Fields::new(&general.file, &general.config)?;
        self.prompts = general.prompts()?;
        self.truncate_dim = fields.count("truncate_dim")?.filter(|dim| *dim > 0);
        if let Some(name) = fields.text("similarity_fn_name")? {
            self.similarity = Similarity::from_name(name)
                .map_err(|error| fields.error("similarity_fn_name", error.to_string()))?;
        }
        Ok(())
    }
}

/// `config_sentence_transformers.json`, or an empty object.
pub(super) struct General {
    pub(super) config: Value,
    pub(super) file: String,
}

impl General {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = root.join("config_sentence_transformers.json");
        let config = if path.is_file() { read_json(&path)? } else { Value::Object(Map::new()) };
        Ok(Self { config, file: path.display().to_string() })
    }

    /// Whether the repository is of this kind; one that does not say is of the `usual`.
    pub(super) fn is_for(&self, kind: &str, usual: &str) -> bool {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or(usual) == kind
    }

    pub(super) fn prompts(&self) -> Result<Prompts> {
        let fields = Fields::new(&self.file, &self.config)?;
        let mut found = Prompts::default();
        let empty = Map::new();
        let prompts = self.config.get("prompts").and_then(Value::as_object).unwrap_or(&empty);
        for (name, prompt) in prompts {
            match prompt {
                Value::String(prompt) => found.named.push((name.clone(), prompt.clone())),
                Value::Null => {}
                other => {
                    return Err(
                        fields.error(&format!("prompts.{name}"), format!("got {other}, expected a string"))
                    );
                }
            }
        }
        found.default = fields.text("default_prompt_name")?.map(str::to_owned);
        Ok(found)
    }
}

/// Whether the model was made to continue texts, each token seeing only those before it.
fn continues_texts(config: &Value) -> bool {
    let first = config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    let causal = config.get("is_causal").is_none_or(|causal| causal == &Value::Bool(true));
    causal && first.is_some_and(|name| name.ends_with("ForCausalLM"))
}

fn read_pooling(folder: &Path) -> Result<Pooling> {
    let path = folder.join("config.json");
    let (config, file) = (read_json(&path)?, path.display().to_string());
    let fields = Fields::new(&file, &config)?;
    let mode = |name: &str| {
        PoolingMode::from_name(name).map_err(|error| fields.error("pooling_mode", error.to_string()))
    };
    let modes = match config.get("pooling_mode") {
        Some(Value::String(name)) => vec![mode(name)?],
        Some(Value::Array(names)) => {
            names.iter().map(|name| mode(name.as_str().unwrap_or_default())).collect::<Result<_>>()?
        }
        _ => old_modes(&fields)?,
    };
    if modes.is_empty() {
        return Err(fields.error("pooling_mode", "is an empty list, expected one mode or more"));
    }
    Ok(Pooling { modes, include_prompt: fields.flag_or("include_prompt", true)? })
}

/// The modes of the older spelling, one flag each.
fn old_modes(fields: &Fields) -> Result<Vec<PoolingMode>> {
    let flags = [
        ("pooling_mode_cls_token", PoolingMode::Cls),
        ("pooling_mode_max_tokens", PoolingMode::Max),
        ("pooling_mode_mean_tokens", PoolingMode::Mean),
        ("pooling_mode_mean_sqrt_len_tokens", PoolingMode::MeanSqrtLen),
        ("pooling_mode_weightedmean_tokens", PoolingMode::WeightedMean),
        ("pooling_mode_lasttoken", PoolingMode::LastToken),
    ];
    let mut modes = Vec::new();
    for (field, mode) in flags {
        if fields.flag_or(field, false)? {
            modes.push(mode);
        }
    }
    Ok(if modes.is_empty() { vec![PoolingMode::Mean] } else { modes })
}
