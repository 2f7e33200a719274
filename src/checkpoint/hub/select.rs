//! Which files of a repository are wanted, and which names are safe.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Error;
use crate::checkpoint::read_json;
use crate::checkpoint::safetensors::stays_inside;

/// What to fetch from a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A model: configuration, tokenizer, safetensors weights, and the folders of sentence-transformers modules.
    Model,
    /// An adapter: `adapter_config.json` and its weights.
    Adapter,
    /// One file, with all its parts when it is a split GGUF.
    File(String),
}

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MODULES: &str = "modules.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapters.safetensors"];
/// Only read where there is no `tokenizer.json`.
const OLD_TOKENIZER_FILES: [&str; 4] = ["vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"];

/// Why files cannot be chosen.
pub(super) enum Fault {
    /// The repository is not what was asked for.
    Repository(String),
    /// A downloaded file cannot be read.
    Other(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Wanted {
    /// Everything that is small; [`large_files`](Self::large_files) may need to read it.
    pub(super) fn small_files(&self, listing: &[String]) -> Result<Vec<String>, String> {
        let has = |name: &str| listing.iter().any(|f| f == name);
        match self {
            Self::File(_) => Ok(Vec::new()),
            Self::Adapter if has(ADAPTER_CONFIG) => Ok(vec![ADAPTER_CONFIG.to_string()]),
            Self::Adapter => Err(format!("the repository has no {ADAPTER_CONFIG}; it is not an adapter")),
            // With a list of modules, the configuration may be in the folder of one.
            Self::Model if has(CONFIG) || has(MODULES) => {
                let old = !has("tokenizer.json");
                let small =
                    |f: &&String| is_small_model_file(f) || old && OLD_TOKENIZER_FILES.contains(&f.as_str());
                Ok(listing.iter().filter(small).cloned().collect())
            }
            Self::Model => Err(not_a_model(listing)),
        }
    }

    /// The weights, once the small files are in `snapshot`.
    pub(super) fn large_files(&self, listing: &[String], snapshot: &Path) -> Result<Vec<String>, Fault> {
        match self {
            Self::File(name) => {
                let parts = parts_of(name);
                let missing: Vec<&String> = parts.iter().filter(|p| !listing.contains(p)).collect();
                if missing.is_empty() {
                    Ok(parts)
                } else {
                    Err(Fault::Repository(no_such_file(missing[0], listing)))
                }
            }
            Self::Adapter => match ADAPTER_WEIGHTS.iter().find(|w| listing.iter().any(|f| f == *w)) {
                Some(weights) => Ok(vec![weights.to_string()]),
                None => Err(Fault::Repository(format!(
                    "the repository has neither {} nor {}; weights in Python pickles (.bin) are never read",
                    ADAPTER_WEIGHTS[0], ADAPTER_WEIGHTS[1]
                ))),
            },
            Self::Model => model_weights(listing, snapshot),
        }
    }

    /// Whether `snapshot` can be loaded; else what is missing. It cannot know of files that a repository may or may
    /// not have.
    pub(super) fn missing_from(&self, snapshot: &Path) -> Result<(), String> {
        let has = |name: &str| snapshot.join(name).is_file();
        match self {
            Self::File(name) => match parts_of(name).into_iter().find(|p| !has(p)) {
                Some(missing) => Err(missing),
                None => Ok(()),
            },
            Self::Adapter if !has(ADAPTER_CONFIG) => Err(ADAPTER_CONFIG.to_string()),
            Self::Adapter if ADAPTER_WEIGHTS.iter().any(|w| has(w)) => Ok(()),
            Self::Adapter => Err(ADAPTER_WEIGHTS[0].to_string()),
            Self::Model if !has(CONFIG) && !has(MODULES) => Err(CONFIG.to_string()),
            Self::Model => weights_missing_from(snapshot),
        }
    }
}

fn is_small_model_file(name: &str) -> bool {
    const NAMES: [&str; 11] = [
        CONFIG,
        INDEX,
        MODULES,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config_sentence_transformers.json",
    ];
    NAMES.contains(&name)
        || name.starts_with("additional_chat_templates/") && name.ends_with(".jinja")
        || !name.contains('/') && name.starts_with("sentence_") && name.ends_with("_config.json")
        || module_folder(name).is_some_and(|rest| rest.ends_with(".json") || rest.ends_with(".txt"))
}

/// The rest of a name below a folder like `1_Pooling/`.
fn module_folder(name: &str) -> Option<&str> {
    let (folder, rest) = name.split_once('/')?;
    let (number, kind) = folder.split_once('_')?;
    let numbered = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (numbered && !kind.is_empty() && !rest.contains('/')).then_some(rest)
}

fn model_weights(listing: &[String], snapshot: &Path) -> Result<Vec<String>, Fault> {
    let has = |name: &str| listing.iter().any(|f| f == name);
    let mut weights = Vec::new();
    // Module folders first: sentence-transformers models of the older layout have no weights at the top.
    for folder in listing.iter().filter_map(|f| Some(f.split_once('/')?.0)).collect::<BTreeSet<_>>() {
        let name = format!("{folder}/{SINGLE}");
        if has(&name) && module_folder(&name).is_some() {
            weights.push(name);
        }
    }
    if has(SINGLE) {
        weights.push(SINGLE.to_string());
    } else if has(INDEX) {
        let shards = shards(snapshot)?;
        if let Some(missing) = shards.iter().find(|s| !has(s)) {
            return Err(Fault::Repository(format!(
                "{INDEX} names {missing}, which the repository does not have"
            )));
        }
        weights.extend(shards);
    } else if weights.is_empty() || !has(MODULES) {
        return Err(Fault::Repository(no_safetensors(listing)));
    }
    Ok(weights)
}

fn weights_missing_from(snapshot: &Path) -> Result<(), String> {
    if snapshot.join(SINGLE).is_file() {
        return Ok(());
    }
    if snapshot.join(INDEX).is_file() {
        let shards = shards(snapshot).map_err(|_| format!("a readable {INDEX}"))?;
        return match shards.into_iter().find(|s| !snapshot.join(s).is_file()) {
            Some(missing) => Err(missing),
            None => Ok(()),
        };
    }
    let in_module = |entry: fs::DirEntry| {
        let name = format!("{}/{SINGLE}", entry.file_name().to_string_lossy());
        module_folder(&name).is_some() && snapshot.join(name).is_file()
    };
    let modules = snapshot.join(MODULES).is_file()
        && fs::read_dir(snapshot).into_iter().flatten().flatten().any(in_module);
    if modules { Ok(()) } else { Err(SINGLE.to_string()) }
}

/// The distinct shard files of the index in `snapshot`.
fn shards(snapshot: &Path) -> Result<BTreeSet<String>, Fault> {
    let path = snapshot.join(INDEX);
    let value = read_json(&path)?;
    let files = value.get("weight_map").and_then(Value::as_object).into_iter().flatten();
    let shards: BTreeSet<String> = files.filter_map(|(_, file)| Some(file.as_str()?.to_string())).collect();
    match shards.iter().find(|s| check_name(s).is_err()) {
        None if !shards.is_empty() => Ok(shards),
        None => Err(Fault::Other(Error::config(path.display().to_string(), "weight_map", "names no files"))),
        Some(bad) => {
            let reason = format!("shard {bad:?} lies outside of the checkpoint's directory");
            Err(Fault::Other(Error::config(path.display().to_string(), "weight_map", reason)))
        }
    }
}

/// All parts of a split GGUF (`…-00001-of-00003.gguf`), or just the name.
fn parts_of(name: &str) -> Vec<String> {
    match crate::checkpoint::split_parts(name) {
        Some((prefix, total)) => {
            (1..=total).map(|part| format!("{prefix}-{part:05}-of-{total:05}.gguf")).collect()
        }
        None => vec![name.to_string()],
    }
}

fn ending<'a>(listing: &'a [String], suffix: &str) -> Vec<&'a str> {
    listing.iter().map(String::as_str).filter(|f| f.ends_with(suffix)).collect()
}

fn no_such_file(name: &str, listing: &[String]) -> String {
    let gguf = ending(listing, ".gguf");
    if gguf.is_empty() {
        format!("the repository has no file {name:?}, and no .gguf file at all")
    } else {
        format!("the repository has no file {name:?}; it has {}", gguf.join(", "))
    }
}

fn not_a_model(listing: &[String]) -> String {
    let gguf = ending(listing, ".gguf");
    if !gguf.is_empty() {
        format!("the repository holds GGUF files; name one of them after a colon: {}", gguf.join(", "))
    } else if listing.iter().any(|f| f == ADAPTER_CONFIG) {
        "the repository holds an adapter; load its base model, then the adapter".to_string()
    } else {
        format!("the repository has no {CONFIG}; it is not a model in Hugging Face layout")
    }
}

fn no_safetensors(listing: &[String]) -> String {
    let other = listing.iter().find(|f| f.ends_with(".bin") || f.ends_with(".pt") || f.ends_with(".pth"));
    match other {
        Some(pickle) => format!(
            "weights are only there as a Python pickle ({pickle}), which is never read because it can run code; look \
             for a revision or copy with safetensors, or convert it with transformers and load the directory"
        ),
        None => format!("the repository has neither {SINGLE} nor {INDEX}"),
    }
}

/// Whether a file name of a repository stays below the directory it is joined to.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let hidden = name.bytes().any(|b| b.is_ascii_control());
    if stays_inside(name) && !hidden && name.len() <= 1024 && !name.ends_with('/') {
        Ok(())
    } else {
        Err(format!("the file name {name:?} is not allowed"))
    }
}

/// `name` or `org/name`, as the hub allows them.
pub(super) fn is_repository_id(id: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !p.starts_with(['-', '.'])
            && !p.ends_with(['-', '.'])
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2
        && parts.into_iter().all(part)
        && id.len() <= 96
        && !id.contains("--")
        && !id.contains("..")
        && !id.ends_with(".git")
}

/// A branch, tag or commit that can also be a file name below `refs`.
pub(super) fn is_revision(revision: &str) -> bool {
    check_name(revision).is_ok() && !revision.contains([' ', '?', '*', '[', '~', '^'])
}

/// A commit or an etag, safe as a single file name.
pub(super) fn is_object_name(name: &str) -> bool {
    (8..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}
