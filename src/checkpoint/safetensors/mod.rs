//! safetensors files, memory-mapped: one file, or many shards with an index.
//!
//! It does not copy or convert. The mapping assumes that nobody rewrites the file while it is open; the writer of this
//! crate never does, it replaces whole files. Format: <https://huggingface.co/docs/safetensors>.

mod header;
mod write;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;

use super::json::read_json;
use crate::weight::{TensorInfo, TensorSource};
use crate::{Error, Result};

pub use write::write_safetensors;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// More problems than this do not help the reader of an error.
const MAX_PROBLEMS: usize = 20;

/// The tensors of a safetensors checkpoint.
pub struct SafetensorsSource {
    path: PathBuf,
    shards: Vec<Mmap>,
    entries: HashMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

struct Entry {
    shard: usize,
    range: Range<usize>,
    info: TensorInfo,
}

impl SafetensorsSource {
    /// Opens a directory (`model.safetensors`, else the shards of `model.safetensors.index.json`), a single
    /// `.safetensors` file, or an index file.
    ///
    /// Everything is validated here: a malformed header, tensors that overlap or leave the file, missing shards and
    /// names that occur twice are [`Error::InvalidCheckpoint`] with all problems found.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if kind.is_dir() {
            if path.join(SINGLE).is_file() {
                Self::open_files(path, vec![path.join(SINGLE)], None)
            } else if path.join(INDEX).is_file() {
                Self::open_index(path, path, &path.join(INDEX))
            } else {
                Err(no_weights(path))
            }
        } else if path.extension().is_some_and(|e| e == "json") {
            let directory = path.parent().unwrap_or(Path::new(""));
            Self::open_index(path, directory, path)
        } else {
            Self::open_files(path, vec![path.to_path_buf()], None)
        }
    }

    /// The free-form `__metadata__` of the first file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn open_index(shown: &Path, directory: &Path, index: &Path) -> Result<Self> {
        let value = read_json(index)?;
        let file = || index.display().to_string();
        let Some(map) = value.get("weight_map").and_then(|m| m.as_object()) else {
            return Err(Error::config(file(), "weight_map", "missing, or not an object of names to files"));
        };
        let mut wanted = HashMap::with_capacity(map.len());
        let mut files = BTreeSet::new();
        for (name, shard) in map {
            let Some(shard) = shard.as_str() else {
                let field = format!("weight_map.{name}");
                return Err(Error::config(file(), field, format!("got {shard}, expected a file name")));
            };
            if !stays_inside(shard) {
                let reason = format!("shard {shard:?} lies outside of the checkpoint's directory");
                return Err(Error::config(file(), format!("weight_map.{name}"), reason));
            }
            files.insert(shard);
            wanted.insert(name.clone(), directory.join(shard));
        }
        let missing: Vec<String> = files
            .iter()
            .filter(|f| !directory.join(f).is_file())
            .map(|f| format!("shard {f} is missing; download the checkpoint again"))
            .collect();
        if !missing.is_empty() {
            return Err(Error::InvalidCheckpoint { path: shown.to_path_buf(), problems: missing });
        }
        let files = files.iter().map(|f| directory.join(f)).collect();
        Self::open_files(shown, files, Some(wanted))
    }

    fn open_files(
        shown: &Path,
        files: Vec<PathBuf>,
        wanted: Option<HashMap<String, PathBuf>>,
    ) -> Result<Self> {
        let mut source = Self {
            path: shown.to_path_buf(),
            shards: Vec::with_capacity(files.len()),
            entries: HashMap::new(),
            metadata: BTreeMap::new(),
        };
        let mut problems = Problems::default();
        for (shard, file) in files.iter().enumerate() {
            let map = map_file(file)?;
            let header = header::parse(&map).map_err(|p| prefixed(file, p))?;
            if shard == 0 {
                source.metadata = header.metadata;
            }
            for (name, info, range) in header.tensors {
                let entry = Entry { shard, range, info };
                if let Some(first) = source.entries.get(&name) {
                    let (a, b) = (files[first.shard].display(), file.display());
                    problems.push(|| format!("tensor {name} is stored twice, in {a} and in {b}"));
                } else {
                    source.entries.insert(name, entry);
                }
            }
            source.shards.push(map);
        }
        for (name, file) in wanted.iter().flatten() {
            match source.entries.get(name) {
                None => problems
                    .push(|| format!("tensor {name} is not in {}, where the index has it", file.display())),
                Some(entry) if files[entry.shard] != *file => {
                    let found = files[entry.shard].display();
                    problems.push(|| {
                        format!("tensor {name} is in {found}, the index has it in {}", file.display())
                    });
                }
                Some(_) => {}
            }
        }
        problems.finish(shown)?;
        Ok(source)
    }
}

impl TensorSource for SafetensorsSource {
    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entries.get(name).map(|e| e.info.clone())
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        match self.entries.get(name) {
            Some(entry) => Ok(Cow::Borrowed(&self.shards[entry.shard][entry.range.clone()])),
            None => Err(Error::checkpoint(&self.path, format!("there is no tensor {name}"))),
        }
    }

    fn release(&self, name: &str) {
        if let Some(entry) = self.entries.get(name) {
            release_pages(&self.shards[entry.shard], &entry.range);
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl std::fmt::Debug for SafetensorsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, tensors, shards) = (&self.path, self.entries.len(), self.shards.len());
        write!(f, "SafetensorsSource({path:?}, {tensors} tensors in {shards} files)")
    }
}

#[derive(Default)]
struct Problems {
    shown: Vec<String>,
    total: usize,
}

impl Problems {
    fn push(&mut self, problem: impl FnOnce() -> String) {
        self.total += 1;
        if self.shown.len() < MAX_PROBLEMS {
            self.shown.push(problem());
        }
    }

    fn finish(mut self, path: &Path) -> Result<()> {
        if self.total == 0 {
            return Ok(());
        }
        self.shown.sort();
        if self.total > self.shown.len() {
            self.shown.push(format!("and {} more", self.total - self.shown.len()));
        }
        Err(Error::InvalidCheckpoint { path: path.to_path_buf(), problems: self.shown })
    }
}

fn prefixed(file: &Path, problem: String) -> Error {
    Error::checkpoint(file, format!("not a valid safetensors file: {problem}"))
}

/// Whether a relative file name from an index stays below the directory it is joined to, on every system.
pub(super) fn stays_inside(name: &str) -> bool {
    let normal = |c| matches!(c, Component::Normal(_));
    !name.is_empty() && !name.contains(['\\', ':', '\0']) && Path::new(name).components().all(normal)
}

pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: the mapping is read-only and private to this process. Like every mapped file it must not be truncated by
    // somebody else while it is in use; checkpoints are replaced by rename, which leaves the mapped file as it is.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))
}

/// Lets the system take back the pages of a part of a file mapped by [`map_file`]; they are read again when touched.
pub(super) fn release_pages(map: &Mmap, range: &Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: the mapping is of a file and is never written to, so its pages can be had again from the file.
        let advised = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // Only a hint: where the system does not take it, the pages stay.
        drop(advised);
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

fn no_weights(directory: &Path) -> Error {
    let mut found: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            ["safetensors", "bin", "pt", "pth", "gguf"].iter().any(|e| name.ends_with(&format!(".{e}")))
        })
        .collect();
    found.sort();
    let pickled = |name: &String| [".bin", ".pt", ".pth"].iter().any(|e| name.ends_with(e));
    let problem = if let Some(pickle) = found.iter().find(|n| pickled(n)) {
        format!(
            "weights are only there as a Python pickle ({pickle}), which is never read because it can run code; \
             convert them once with transformers: model.save_pretrained(directory, safe_serialization=True)"
        )
    } else if found.is_empty() {
        format!("there is neither {SINGLE} nor {INDEX}; is this the directory of a model?")
    } else {
        format!(
            "there is neither {SINGLE} nor {INDEX}, only {}; give the path of the file itself",
            found.join(", ")
        )
    };
    Error::checkpoint(directory, problem)
}
