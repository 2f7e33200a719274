//! The fixed part of a GGUF file: magic, version, metadata, tensor list; everything checked against the file's length.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::cursor::Cursor;
use super::metadata::GgufMetadata;
use super::types::format_of;
use crate::weight::TensorInfo;

const MAGIC: &[u8] = b"GGUF";
const MAX_TENSORS: usize = 1 << 17;
const MAX_RANK: u32 = 4;
const MAX_NAME_BYTES: usize = 512;
const DEFAULT_ALIGNMENT: usize = 32;

pub(super) struct Header {
    pub(super) metadata: GgufMetadata,
    /// Name as stored, shape outermost first, and place in the file.
    pub(super) tensors: Vec<(String, TensorInfo, Range<usize>)>,
}

pub(super) fn parse(path: &Path, file: &Arc<Mmap>) -> Result<Header, String> {
    let mut cursor = Cursor::new(file, 0);
    if cursor.take(4).map_err(|_| "the file is too short for a GGUF header")? != MAGIC {
        return Err("the file does not begin with GGUF".to_string());
    }
    match cursor.u32()? {
        2 | 3 => {}
        1 => return Err("GGUF version 1 is not supported; convert the model again".to_string()),
        version if version.swap_bytes() <= 3 => {
            return Err("big-endian GGUF files are not supported".to_string());
        }
        version => return Err(format!("GGUF version {version} is not supported; supported: 2, 3")),
    }
    // A tensor takes name, rank, type and offset; a key takes a length, a type and a byte.
    let tensors = cursor.count("tensors", 24)?;
    let keys = cursor.count("metadata keys", 13)?;
    if tensors > MAX_TENSORS {
        return Err(format!("{tensors} tensors, at most {MAX_TENSORS} are allowed"));
    }
    let metadata = GgufMetadata::read(path, file, &mut cursor, keys)?;
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => {
            let alignment = value.as_u64().filter(|a| a.is_power_of_two() && (8..=1 << 20).contains(a));
            alignment.ok_or("general.alignment is not a power of two from 8 to 1048576")? as usize
        }
    };
    let mut list = Vec::new();
    let mut seen = HashSet::new();
    for _ in 0..tensors {
        let tensor = read_tensor(&mut cursor, alignment)?;
        if !seen.insert(tensor.0.clone()) {
            return Err(format!("tensor {} occurs twice", tensor.0));
        }
        list.push(tensor);
    }
    let start = cursor.position().next_multiple_of(alignment);
    let data = file.len().saturating_sub(start);
    for (name, _, range) in &mut list {
        if range.end > data {
            let Range { start, end } = range;
            return Err(format!(
                "tensor {name}: bytes {start} to {end} lie outside of the {data} bytes of data"
            ));
        }
        *range = start + range.start..start + range.end;
    }
    check_overlap(&mut list)?;
    Ok(Header { metadata, tensors: list })
}

/// One entry, with its place relative to the start of the data.
fn read_tensor(
    cursor: &mut Cursor<'_>,
    alignment: usize,
) -> Result<(String, TensorInfo, Range<usize>), String> {
    let at = cursor.position();
    let name =
        std::str::from_utf8(cursor.string()?).ok().filter(|n| !n.is_empty() && n.len() <= MAX_NAME_BYTES);
    let name = name.ok_or_else(|| format!("a malformed tensor name at byte {at}"))?.to_string();
    let rank = cursor.u32()?;
    if rank > MAX_RANK {
        return Err(format!("tensor {name} has {rank} dimensions, at most {MAX_RANK} are allowed"));
    }
    let mut shape = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        let size = cursor.u64()?;
        shape.push(usize::try_from(size).map_err(|_| format!("tensor {name} has a dimension of {size}"))?);
    }
    let format = format_of(cursor.u32()?).map_err(|e| format!("tensor {name} {e}"))?;
    let offset = cursor.u64()?;
    if shape.contains(&0) {
        return Err(format!("tensor {name} has an empty dimension: {shape:?}"));
    }
    let row = shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(format.block_elements()) {
        let block = format.block_elements();
        return Err(format!(
            "tensor {name}: rows of {row} values are no multiple of {format:?}'s block of {block}"
        ));
    }
    let row_bytes = (row / format.block_elements()).checked_mul(format.block_bytes());
    let bytes = shape.iter().skip(1).try_fold(row_bytes.unwrap_or(usize::MAX), |n, &d| n.checked_mul(d));
    let start = usize::try_from(offset).ok();
    let end = row_bytes.and(bytes).and_then(|bytes| start?.checked_add(bytes));
    // Stored innermost first, as ggml counts.
    shape.reverse();
    match (start, end) {
        (Some(start), _) if !start.is_multiple_of(alignment) => {
            Err(format!("tensor {name}: offset {start} is no multiple of the alignment {alignment}"))
        }
        (Some(start), Some(end)) => Ok((name, TensorInfo { format, shape }, start..end)),
        _ => Err(format!("tensor {name}: shape {shape:?} at offset {offset} is too large")),
    }
}

fn check_overlap(tensors: &mut [(String, TensorInfo, Range<usize>)]) -> Result<(), String> {
    tensors.sort_by_key(|(_, _, range)| (range.start, range.end));
    let mut last = 0;
    for (name, _, range) in tensors {
        if range.start < last {
            return Err(format!("tensor {name} at byte {} overlaps the tensor before it", range.start));
        }
        last = range.end;
    }
    Ok(())
}
