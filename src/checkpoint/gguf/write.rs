//! Writing GGUF files (version 3, little endian).

use std::borrow::Cow;
use std::path::Path;

use super::metadata::{GgufKind, GgufMetadata};
use super::types::number_of;
use crate::checkpoint::AtomicFile;
use crate::weight::TensorInfo;
use crate::{Error, Result};

const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;
const MAX_RANK: usize = 4;

/// A metadata value to write.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum GgufEntry {
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A value as another file stores it; see [`GgufMetadata::raw`].
    Raw(GgufKind, Vec<u8>),
}

impl GgufEntry {
    /// A copy of a value of another file.
    pub fn copy_of(metadata: &GgufMetadata, key: &str) -> Option<Self> {
        metadata.raw(key).map(|(kind, bytes)| Self::Raw(kind, bytes.to_vec()))
    }

    fn write(&self, out: &mut Vec<u8>) {
        fn array<T>(out: &mut Vec<u8>, kind: GgufKind, items: &[T], mut one: impl FnMut(&mut Vec<u8>, &T)) {
            out.extend((GgufKind::Array as u32).to_le_bytes());
            out.extend((kind as u32).to_le_bytes());
            out.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| one(out, item));
        }
        let mut plain = |kind: GgufKind, bytes: &[u8]| {
            out.extend((kind as u32).to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::U32(value) => plain(GgufKind::U32, &value.to_le_bytes()),
            Self::U64(value) => plain(GgufKind::U64, &value.to_le_bytes()),
            Self::I32(value) => plain(GgufKind::I32, &value.to_le_bytes()),
            Self::F32(value) => plain(GgufKind::F32, &value.to_le_bytes()),
            Self::Bool(value) => plain(GgufKind::Bool, &[u8::from(*value)]),
            Self::Raw(kind, bytes) => plain(*kind, bytes),
            Self::String(text) => {
                plain(GgufKind::String, &[]);
                string(out, text);
            }
            Self::Strings(texts) => array(out, GgufKind::String, texts, |out, text| string(out, text)),
            Self::I32s(values) => array(out, GgufKind::I32, values, |out, v| out.extend(v.to_le_bytes())),
            Self::F32s(values) => array(out, GgufKind::F32, values, |out, v| out.extend(v.to_le_bytes())),
        }
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Writes a GGUF file to `path` atomically; `bytes` is asked for one tensor after the other.
///
/// Keys and tensors keep their order; the reader of such files expects `general.architecture` first. Tensor names are
/// GGUF's, shapes are outermost first, and the rows of query and key projections are in the order that the architecture
/// asks for (see [`to_pairs`](super::to_pairs)). What cannot be stored (a name twice, more than four dimensions, rows
/// that are no multiple of the block, bytes that do not fit the shape) is [`Error::InvalidArgument`].
pub fn write_gguf<'a>(
    path: impl AsRef<Path>,
    metadata: &[(String, GgufEntry)],
    tensors: &[(String, TensorInfo)],
    mut bytes: impl FnMut(&str) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let mut header = b"GGUF".to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    let mut seen = std::collections::HashSet::new();
    for (key, value) in metadata {
        if !seen.insert(key) || key.is_empty() || key == "general.alignment" {
            return Err(Error::argument("metadata", key, "keys that differ, none of them general.alignment"));
        }
        string(&mut header, key);
        value.write(&mut header);
    }
    seen.clear();
    let mut offset = 0usize;
    let mut lengths = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        if !seen.insert(name) || name.is_empty() {
            return Err(Error::argument("tensors", name, "names that differ"));
        }
        let length = tensor(&mut header, name, info, offset)?;
        lengths.push(length);
        let end = offset.checked_add(length).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        offset = end.ok_or_else(|| Error::argument(name, format!("{:?}", info.shape), "a smaller shape"))?;
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    let mut file = AtomicFile::create(path)?;
    file.write(&header)?;
    for ((name, info), length) in tensors.iter().zip(lengths) {
        let data = bytes(name)?;
        if data.len() != length {
            let allowed = format!("{length} bytes for shape {:?}", info.shape);
            return Err(Error::argument(name, format!("{} bytes", data.len()), allowed));
        }
        file.write(&data)?;
        file.write(&[0; ALIGNMENT][..length.next_multiple_of(ALIGNMENT) - length])?;
    }
    file.commit()
}

/// Appends a tensor's entry; returns the bytes it will take.
fn tensor(header: &mut Vec<u8>, name: &str, info: &TensorInfo, offset: usize) -> Result<usize> {
    let refuse =
        |allowed: String| Error::argument(name, format!("{:?} of {:?}", info.shape, info.format), allowed);
    let number = number_of(info.format).ok_or_else(|| refuse("a format that GGUF has".to_string()))?;
    let block = info.format.block_elements();
    let row = info.shape.last().copied().unwrap_or(1);
    if info.shape.len() > MAX_RANK || info.shape.contains(&0) || !row.is_multiple_of(block) {
        return Err(refuse(format!(
            "at most {MAX_RANK} dimensions, none empty, rows of a multiple of {block}"
        )));
    }
    string(header, name);
    header.extend((info.shape.len() as u32).to_le_bytes());
    for size in info.shape.iter().rev() {
        header.extend((*size as u64).to_le_bytes());
    }
    header.extend(number.to_le_bytes());
    header.extend((offset as u64).to_le_bytes());
    let outer = &info.shape[..info.shape.len().saturating_sub(1)];
    let row_bytes = (row / block).checked_mul(info.format.block_bytes());
    let length = outer.iter().try_fold(row_bytes.unwrap_or(usize::MAX), |n, &d| n.checked_mul(d));
    row_bytes.and(length).ok_or_else(|| refuse("a smaller shape".to_string()))
}
