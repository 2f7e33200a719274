//! Importance matrices as llama.cpp's `llama-imatrix` writes them, in GGUF or in the older format of its own.
//!
//! For every matrix they have the mean square of each column's activations. Files with several counts for one matrix
//! (mixtures of experts) are read as far as they have one. Sources:
//! <https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/README.md>,
//! <https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/quantize.cpp>.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::cursor::Cursor;
use super::{header, names};
use crate::checkpoint::safetensors::map_file;
use crate::weight::Format;
use crate::{Error, Result};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const MAX_ENTRIES: usize = 1 << 17;
const MAX_NAME_BYTES: usize = 512;

/// How much each column of each matrix of a model matters.
#[derive(Debug)]
pub struct ImportanceMatrix {
    path: PathBuf,
    columns: HashMap<String, Arc<[f32]>>,
}

impl ImportanceMatrix {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidCheckpoint`] for what is neither format, is damaged, has values that are negative or
    /// not finite, or is of no matrix that has a name here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = Arc::new(map_file(path)?);
        let entries = match map.starts_with(b"GGUF") {
            true => read_gguf(path, &map),
            false => read_old(&map),
        };
        let invalid = |problem: String| Error::checkpoint(path, format!("importance matrix: {problem}"));
        let mut columns = HashMap::new();
        for (name, values) in entries.map_err(invalid)? {
            if let Some(bad) = values.iter().find(|x| !x.is_finite() || **x < 0.0) {
                return Err(invalid(format!("got {bad} for {name}, expected finite values, none negative")));
            }
            if let Some(name) = names::to_hugging_face(&name) {
                columns.insert(name, values.into());
            }
        }
        if columns.is_empty() {
            return Err(invalid("it is of no matrix of a model that can be loaded here".into()));
        }
        Ok(Self { path: path.to_path_buf(), columns })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How much each column of a matrix matters, by the matrix's Hugging Face name.
    pub fn get(&self, name: &str) -> Option<Arc<[f32]>> {
        self.columns.get(name).cloned()
    }
}

fn read_gguf(path: &Path, map: &Arc<Mmap>) -> Result<Vec<(String, Vec<f32>)>, String> {
    let parsed = header::parse(path, map)?;
    let mut floats = HashMap::new();
    for (name, info, range) in parsed.tensors {
        if info.format != Format::F32 {
            return Err(format!("tensor {name} is {:?}, expected F32", info.format));
        }
        let (numbers, _) = map[range].as_chunks::<4>();
        floats.insert(name, numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>());
    }
    let mut entries = Vec::new();
    for (stored, sums) in &floats {
        let Some(name) = stored.strip_suffix(SUMS) else { continue };
        let Some(counts) = floats.get(&format!("{name}{COUNTS}")) else {
            return Err(format!("there is no {name}{COUNTS}"));
        };
        if let [count] = counts[..] {
            let mean = |sum: &f32| if count > 0.0 { sum / count } else { 1.0 };
            entries.push((name.to_owned(), sums.iter().map(mean).collect()));
        }
    }
    if entries.is_empty() {
        return Err("the GGUF file has no sums of squares; is it a model?".into());
    }
    Ok(entries)
}

fn read_old(map: &Arc<Mmap>) -> Result<Vec<(String, Vec<f32>)>, String> {
    let mut cursor = Cursor::new(map, 0);
    let matrices = count(&mut cursor, "matrices", MAX_ENTRIES)?;
    let mut entries = Vec::new();
    for _ in 0..matrices {
        let length = count(&mut cursor, "bytes of a name", MAX_NAME_BYTES)?;
        let name = String::from_utf8_lossy(cursor.take(length as u64)?).into_owned();
        let calls = cursor.u32()? as i32;
        let columns = count(&mut cursor, "columns", usize::MAX)?;
        let (numbers, _) = cursor.take(4 * columns as u64)?.as_chunks::<4>();
        // What is stored is the mean of each call, summed.
        let divisor = if calls > 0 { calls as f32 } else { 1.0 };
        let values = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes) / divisor).collect();
        entries.push((name, values));
    }
    Ok(entries)
}

/// A positive number of things, at most `limit`.
fn count(cursor: &mut Cursor<'_>, what: &str, limit: usize) -> Result<usize, String> {
    let number = cursor.u32()? as i32;
    let count = usize::try_from(number).ok().filter(|count| (1..=limit).contains(count));
    count.ok_or_else(|| format!("got {number} {what}; this is no importance matrix"))
}
