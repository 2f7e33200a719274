//! GGUF files (versions 2 and 3, little endian), memory-mapped: one file, or the parts of a split one.
//!
//! Tensors appear under their Hugging Face names and in Hugging Face row order; [`GgufSource::config`] gives what
//! `config.json` would say, [`GgufSource::tokenizer`] the vocabulary. Blocks are not decoded here. Format:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod config;
mod cursor;
mod header;
mod importance;
mod metadata;
mod names;
mod pre_tokenizer;
mod scored;
mod split;
mod tokenizer;
mod types;
mod vocabulary;
mod write;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::safetensors::{map_file, release_pages};
use crate::weight::{TensorInfo, TensorSource};
use crate::{Error, Result};
use header::Header;

pub use importance::ImportanceMatrix;
pub use metadata::{GgufArray, GgufKind, GgufMetadata, GgufValue};
pub use tokenizer::GgufTokenizer;
pub use vocabulary::GgufVocabulary;
pub use write::{GgufEntry, write_gguf};

/// The tensors and metadata of a GGUF model.
pub struct GgufSource {
    path: PathBuf,
    parts: Vec<Arc<Mmap>>,
    metadata: GgufMetadata,
    architecture: &'static names::Architecture,
    tensors: HashMap<String, Stored>,
    /// Divisors of the rotary frequencies, from a tensor of their own.
    rope_factors: Option<Vec<f32>>,
}

struct Stored {
    part: usize,
    range: Range<usize>,
    info: TensorInfo,
    /// Rows per head where they lie as pairs.
    pairs: Option<usize>,
}

impl GgufSource {
    /// Opens a `.gguf` file; of a split one, any part, whose siblings must lie beside it.
    ///
    /// Everything is validated here. A malformed file is [`Error::InvalidCheckpoint`], an architecture that cannot be
    /// translated [`Error::UnsupportedModel`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (mut parts, mut headers) = (Vec::new(), Vec::new());
        for file in split::files(path)? {
            let (map, header) = open_part(&file)?;
            split::check_part(&file, &header.metadata, parts.len())?;
            parts.push(map);
            headers.push(header);
        }
        split::check_whole(path, &headers)?;
        let Some(metadata) = headers.first().map(|h| h.metadata.clone()) else {
            return Err(Error::checkpoint(path, "there is no part of the file"));
        };
        let architecture = architecture_of(&metadata)?;
        let mut source = Self {
            path: path.to_path_buf(),
            parts,
            metadata,
            architecture,
            tensors: HashMap::new(),
            rope_factors: None,
        };
        let mut problems = Vec::new();
        for (part, header) in headers.into_iter().enumerate() {
            for (name, info, range) in header.tensors {
                if let Err(problem) = source.add(part, name, info, range) {
                    problems.push(problem);
                }
            }
        }
        problems.truncate(20);
        if problems.is_empty() {
            Ok(source)
        } else {
            Err(Error::InvalidCheckpoint { path: source.path, problems })
        }
    }

    fn add(
        &mut self,
        part: usize,
        name: String,
        info: TensorInfo,
        range: Range<usize>,
    ) -> Result<(), String> {
        if name == names::ROPE_FACTORS {
            if info.format != crate::weight::Format::F32 {
                return Err(format!("tensor {name} is {:?}, expected F32", info.format));
            }
            let bytes = self.parts[part][range].chunks_exact(4);
            self.rope_factors = Some(bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
            return Ok(());
        }
        let mut pairs = None;
        if let Some(query) = names::rotated(&name).filter(|_| self.architecture.interleaved) {
            let heads = config::heads(&self.metadata, self.architecture, query).map_err(|e| e.to_string())?;
            let rows = info.shape.first().copied().unwrap_or(0);
            let head_rows = rows.checked_div(heads).filter(|&d| d > 0 && d % 2 == 0 && d * heads == rows);
            pairs = Some(
                head_rows.ok_or_else(|| format!("tensor {name}: {rows} rows are not {heads} even heads"))?,
            );
        }
        // A tensor nobody knows keeps its name, so that loading can report it.
        let known = names::to_hugging_face(&name).unwrap_or(name);
        match self.tensors.insert(known.clone(), Stored { part, range, info, pairs }) {
            None => Ok(()),
            Some(_) => Err(format!("tensor {known} is stored twice")),
        }
    }

    /// The metadata of the first part.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    /// What `config.json` of the same model says: `model_type`, sizes, rotary settings, window, special ids.
    pub fn config(&self) -> Result<serde_json::Value> {
        config::config(self)
    }

    /// What `generation_config.json` says: the ids that end a text, and sampling where the file recommends some.
    pub fn generation_config(&self) -> Result<serde_json::Value> {
        config::generation_config(self)
    }

    /// The vocabulary with its special ids and chat templates.
    pub fn tokenizer(&self) -> Result<GgufTokenizer> {
        tokenizer::build(&self.metadata)
    }

    /// The GGUF name of a tensor with a Hugging Face name, for writing; `None` for one that GGUF has no name for.
    pub fn gguf_name(name: &str) -> Option<String> {
        names::from_hugging_face(name)
    }
}

/// The name under which a model type is stored, and whether its query and key rows lie as pairs (see [`to_pairs`]).
pub fn stored_as(model_type: &str) -> Option<(&'static str, bool)> {
    let name = if model_type == names::WINDOWED.0 { names::ARCHITECTURES[0].name } else { model_type };
    let found = names::ARCHITECTURES.iter().find(|architecture| architecture.name == name)?;
    Some((found.name, found.interleaved))
}

impl TensorSource for GgufSource {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|t| t.info.clone())
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let Some(stored) = self.tensors.get(name) else {
            return Err(Error::checkpoint(&self.path, format!("there is no tensor {name}")));
        };
        let bytes = &self.parts[stored.part][stored.range.clone()];
        match stored.pairs {
            Some(head_rows) => Ok(Cow::Owned(from_pairs(bytes, stored.info.shape[0], head_rows))),
            None => Ok(Cow::Borrowed(bytes)),
        }
    }

    fn release(&self, name: &str) {
        if let Some(stored) = self.tensors.get(name) {
            release_pages(&self.parts[stored.part], &stored.range);
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl std::fmt::Debug for GgufSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, name, tensors) = (&self.path, self.architecture.name, self.tensors.len());
        write!(f, "GgufSource({path:?}, {name}, {tensors} tensors in {} files)", self.parts.len())
    }
}

/// Reorders whole rows, which leaves the blocks of a quantised row as they are.
fn from_pairs(bytes: &[u8], rows: usize, head_rows: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let stored = names::pairs_row(row, head_rows) * row_bytes;
        out.extend_from_slice(&bytes[stored..stored + row_bytes]);
    }
    out
}

/// Reorders the rows of a query or key projection from halves to pairs, as this architecture's files have them.
///
/// `rows` is the first dimension of the tensor, `head_rows` the number of rows of one head, which is even.
pub fn to_pairs(bytes: &[u8], rows: usize, head_rows: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows.max(1);
    let mut out = vec![0; bytes.len()];
    for (row, stored) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
        let target = names::pairs_row(row, head_rows) * row_bytes;
        out[target..target + row_bytes].copy_from_slice(stored);
    }
    out
}

fn open_part(path: &Path) -> Result<(Arc<Mmap>, Header)> {
    let map = Arc::new(map_file(path)?);
    let header = header::parse(path, &map);
    let header =
        header.map_err(|problem| Error::checkpoint(path, format!("not a valid GGUF file: {problem}")))?;
    Ok((map, header))
}

fn architecture_of(metadata: &GgufMetadata) -> Result<&'static names::Architecture> {
    const KEY: &str = "general.architecture";
    let name = metadata.string(KEY)?.ok_or_else(|| metadata.invalid(KEY, "missing"))?;
    names::ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| Error::UnsupportedModel {
        model_type: name.to_string(),
        supported: names::ARCHITECTURES.map(|a| a.name).join(", "),
    })
}
