//! Split GGUF files: `prefix-00001-of-00003.gguf` and its siblings, of which the first holds the metadata.

use std::path::{Path, PathBuf};

use super::header::Header;
use super::metadata::GgufMetadata;
use crate::checkpoint::split_parts;
use crate::{Error, Result};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// All parts of the file that `path` belongs to, in order.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let Some((prefix, total)) = path.file_name().and_then(|n| n.to_str()).and_then(split_parts) else {
        return Ok(vec![path.to_path_buf()]);
    };
    let parts: Vec<PathBuf> = (1..=total)
        .map(|part| path.with_file_name(format!("{prefix}-{part:05}-of-{total:05}.gguf")))
        .collect();
    let missing: Vec<&PathBuf> = parts.iter().filter(|p| !p.is_file()).collect();
    match missing.first() {
        None => Ok(parts),
        Some(first) => {
            let problem =
                format!("{} of {total} parts are missing, the first is {}", missing.len(), first.display());
            Err(Error::checkpoint(path, problem))
        }
    }
}

/// A part must say the same about its place as its name does.
pub(super) fn check_part(file: &Path, metadata: &GgufMetadata, index: usize) -> Result<()> {
    let number = metadata.unsigned(NUMBER)?.unwrap_or(0);
    if number == index as u64 {
        return Ok(());
    }
    Err(Error::checkpoint(file, format!("{NUMBER} is {number}, expected {index}; was the file renamed?")))
}

pub(super) fn check_whole(path: &Path, headers: &[Header]) -> Result<()> {
    let Some(first) = headers.first() else { return Ok(()) };
    let count = first.metadata.unsigned(COUNT)?.unwrap_or(headers.len() as u64);
    // Older splitters wrote 0 for a file in one piece.
    if count.max(1) != headers.len() as u64 {
        let problem =
            format!("{COUNT} is {count}, but {} parts were found; was the file renamed?", headers.len());
        return Err(Error::checkpoint(path, problem));
    }
    let found: usize = headers.iter().map(|h| h.tensors.len()).sum();
    match first.metadata.unsigned(TENSORS)? {
        Some(expected) if expected != found as u64 => {
            Err(Error::checkpoint(path, format!("the parts hold {found} tensors, {TENSORS} is {expected}")))
        }
        _ => Ok(()),
    }
}
