//! `modules.json`: which folders of a repository hold the steps from texts to vectors.
//!
//! It does not read the folders. Source: the files that sentence-transformers writes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::read_json;
use crate::{Error, Result};

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedModule {
    /// The class without its package: old and new libraries keep their classes in different ones.
    pub kind: String,
    /// Where its files are.
    pub folder: PathBuf,
}

/// The modules of the repository at `root` in their order, or `None` where there is no list.
///
/// # Errors
/// [`Error::InvalidConfig`] for a list that is malformed or leads out of the repository.
pub fn listed_modules(root: &Path) -> Result<Option<Vec<ListedModule>>> {
    let path = root.join("modules.json");
    if !path.is_file() {
        return Ok(None);
    }
    let list = read_json(&path)?;
    let entries = list.as_array().ok_or_else(|| Error::config("modules.json", "", "is not a list"))?;
    let module = |(index, entry): (usize, &Value)| {
        let text = |field: &str| entry.get(field).and_then(Value::as_str);
        let (Some(kind), Some(folder)) = (text("type"), text("path")) else {
            let reason = format!("entry {index} has no type or no path");
            return Err(Error::config("modules.json", "", reason));
        };
        if folder.split(['/', '\\']).any(|part| part == "..") || Path::new(folder).is_absolute() {
            let reason = format!("{folder:?} lies outside of the repository");
            return Err(Error::config("modules.json", "path", reason));
        }
        let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
        let folder = if folder.is_empty() { root.to_path_buf() } else { root.join(folder) };
        Ok(ListedModule { kind, folder })
    };
    entries.iter().enumerate().map(module).collect::<Result<_>>().map(Some)
}

/// The folder of the transformer in the repository at `root`: what its list says, else `root` itself.
///
/// # Errors
/// As [`listed_modules`], and where the list begins with something else and there is no transformer at `root`.
pub(super) fn transformer_folder(root: &Path) -> Result<PathBuf> {
    match listed_modules(root)?.and_then(|list| list.into_iter().next()) {
        Some(first) if first.kind == "Transformer" => Ok(first.folder),
        Some(first) if !root.join("config.json").is_file() => {
            let reason = format!("{:?} at place 0 is not supported; a Transformer is", first.kind);
            Err(Error::config("modules.json", "type", reason))
        }
        _ => Ok(root.to_path_buf()),
    }
}
