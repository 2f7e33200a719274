//! Rows of training data, from memory or from a file that need not fit into it.
//!
//! A file is read once to find where its lines begin. Examples are kept while they are few; those of a large file are
//! read and tokenized again when their turn comes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde_json::Value;

use super::row::{Example, Fault, RowEncoder};
use crate::{Error, Result};

/// Examples of at most this many tokens, all rows together, are kept.
const KEPT_TOKENS: usize = 32 << 20;

/// A file of at most this many bytes is checked as a whole before training begins.
const SMALL_FILE_BYTES: u64 = 64 << 20;

/// A line of more bytes is refused rather than read into memory.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// What messages call rows in memory.
pub(super) const ROWS_NAME: &str = "the data set";

/// Rows that are tokenized together.
const SCAN_ROWS: usize = 256;

/// Where rows come from.
#[derive(Debug, Clone)]
pub enum TrainingData {
    /// A file of one JSON object a line.
    File(PathBuf),
    /// Rows in memory.
    Rows(Vec<Value>),
}

#[derive(Debug)]
enum Source {
    File { path: PathBuf, file: Mutex<BufReader<File>>, lines: Vec<Line> },
    Rows(Vec<Value>),
}

#[derive(Debug, Clone, Copy)]
struct Line {
    offset: u64,
    number: u32,
}

/// What was found in the rows that were looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatasetStats {
    /// Rows looked at.
    pub rows: usize,
    /// Their tokens after cutting.
    pub tokens: usize,
    /// Rows that were cut.
    pub truncated_rows: usize,
    /// Tokens that were cut off.
    pub truncated_tokens: usize,
    /// Rows that have nothing to predict, which are left out.
    pub rows_without_targets: usize,
    /// A hash of all tokens and labels, in order.
    pub content: u64,
}

/// The rows of one data set, in their order.
#[derive(Debug)]
pub struct Dataset {
    source: Source,
    encoder: RowEncoder,
    /// Everything, if it was looked at and found small.
    examples: Option<Vec<Example>>,
    /// Tokens and targets of each row, if all were looked at.
    lengths: Option<Vec<(u32, u32)>>,
    stats: DatasetStats,
}

impl Dataset {
    /// Opens data; what is small is checked row by row at once, a large file only if `whole`.
    ///
    /// # Errors
    /// [`Error::InvalidData`] with the line of the first bad row, or where there is nothing to learn.
    pub fn open(
        data: TrainingData,
        encoder: RowEncoder,
        whole: bool,
        cancelled: &AtomicBool,
    ) -> Result<Self> {
        let (source, is_small) = match data {
            TrainingData::Rows(rows) => (Source::Rows(rows), true),
            TrainingData::File(path) => {
                let (lines, bytes) = index(&path, cancelled)?;
                let file = File::open(&path).map_err(|error| Error::io(&path, error))?;
                let source = Source::File { path, file: Mutex::new(BufReader::new(file)), lines };
                (source, bytes <= SMALL_FILE_BYTES)
            }
        };
        let mut dataset =
            Self { source, encoder, examples: None, lengths: None, stats: DatasetStats::default() };
        if dataset.is_empty() {
            return Err(dataset.invalid(None, "it has no rows"));
        }
        if whole || is_small {
            dataset.scan(cancelled)?;
        }
        Ok(dataset)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.source {
            Source::File { lines, .. } => lines.len(),
            Source::Rows(rows) => rows.len().max(self.examples.as_ref().map_or(0, Vec::len)),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was found; zero where a large file was not looked at beforehand.
    pub fn stats(&self) -> DatasetStats {
        self.stats
    }

    /// Tokens and targets of every row, if all were looked at.
    pub(super) fn lengths(&self) -> Option<&[(u32, u32)]> {
        self.lengths.as_deref()
    }

    /// The example of row `index`.
    ///
    /// # Errors
    /// [`Error::InvalidData`] with the row's line.
    pub(super) fn example(&self, index: usize) -> Result<Example> {
        match &self.examples {
            Some(examples) => Ok(examples[index].clone()),
            None => self.encode(index, self.text(index)?),
        }
    }

    fn invalid(&self, row: Option<usize>, reason: impl Into<String>) -> Error {
        let (origin, line) = match &self.source {
            Source::File { path, lines, .. } => {
                (path.display().to_string(), row.map(|row| lines[row].number as usize))
            }
            Source::Rows(_) => match row {
                Some(row) => (format!("{ROWS_NAME}, row {} (index {row})", row + 1), None),
                None => (ROWS_NAME.to_owned(), None),
            },
        };
        Error::InvalidData { origin, line, reason: reason.into() }
    }

    /// The bytes of row `index` of a file; nothing for rows in memory.
    fn text(&self, index: usize) -> Result<Vec<u8>> {
        let Source::File { path, file, lines } = &self.source else { return Ok(Vec::new()) };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = Vec::new();
        let mut read = || -> std::io::Result<()> {
            // Relative, so that reading in order keeps the buffer.
            let here = file.stream_position()?;
            file.seek_relative(lines[index].offset as i64 - here as i64)?;
            file.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text)?;
            Ok(())
        };
        read().map_err(|error| Error::io(path, error))?;
        Ok(text)
    }

    fn encode(&self, index: usize, text: Vec<u8>) -> Result<Example> {
        let parsed;
        let row = match &self.source {
            Source::Rows(rows) => &rows[index],
            Source::File { .. } => {
                // Some editors begin a file with a mark of its encoding.
                let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
                parsed = parse(text)
                    .map_err(|error| self.invalid(Some(index), format!("not valid JSON: {error}")))?;
                &parsed
            }
        };
        self.encoder.encode(row).map_err(|fault| match fault {
            Fault::Row(reason) => self.invalid(Some(index), reason),
            Fault::Other(error) => error,
        })
    }

    /// Looks at every row, and keeps the examples if they are few.
    fn scan(&mut self, cancelled: &AtomicBool) -> Result<()> {
        let mut stats = DatasetStats::default();
        let mut lengths = Vec::with_capacity(self.len());
        let mut examples = Some(Vec::new());
        for first in (0..self.len()).step_by(SCAN_ROWS) {
            if cancelled.load(Ordering::Relaxed) {
                return Err(super::interrupted());
            }
            let last = (first + SCAN_ROWS).min(self.len());
            let texts = (first..last).map(|index| self.text(index)).collect::<Result<Vec<_>>>()?;
            let encoded: Vec<Result<Example>> =
                texts.into_par_iter().enumerate().map(|(at, text)| self.encode(first + at, text)).collect();
            for example in encoded {
                let example = example?;
                let targets = example.targets();
                stats.rows += 1;
                stats.tokens += example.ids.len();
                stats.truncated_rows += usize::from(example.truncated > 0);
                stats.truncated_tokens += example.truncated;
                stats.rows_without_targets += usize::from(targets == 0);
                stats.content = content_hash(stats.content, &example);
                lengths.push((example.ids.len() as u32, targets as u32));
                examples.as_mut().into_iter().for_each(|examples| examples.push(example.clone()));
            }
            if stats.tokens > KEPT_TOKENS {
                examples = None;
            }
        }
        if stats.rows_without_targets == stats.rows {
            return Err(self.invalid(None, "no row has a token to learn; check labels, masks and max_length"));
        }
        self.stats = stats;
        self.lengths = Some(lengths);
        if examples.is_some()
            && let Source::Rows(rows) = &mut self.source
        {
            *rows = Vec::new();
        }
        self.examples = examples;
        Ok(())
    }
}

/// The hash of one more row (Fowler, Noll, Vo: FNV-1a, by words).
fn content_hash(before: u64, row: &Example) -> u64 {
    let words = row.ids.iter().copied().chain(row.labels.iter().map(|label| *label as u32));
    let words = std::iter::once(row.ids.len() as u32).chain(words);
    words.fold(before, |hash, word| (hash ^ u64::from(word) ^ 0xcbf2_9ce4).wrapping_mul(0x0100_0000_01b3))
}

/// A line of a file. Python writes numbers that JSON does not have, which count as nothing.
fn parse(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(text).or_else(|error| match without_nan(text) {
        Some(plain) => serde_json::from_slice(&plain).map_err(|_| error),
        None => Err(error),
    })
}

/// The text with `null` for every `NaN` and `Infinity` outside of strings, if there is one.
fn without_nan(text: &[u8]) -> Option<Vec<u8>> {
    let (mut plain, mut rest, mut in_string, mut found) =
        (Vec::with_capacity(text.len()), text, false, false);
    while let Some(&byte) = rest.first() {
        let words: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
        let word = words.into_iter().find(|word| !in_string && rest.starts_with(word));
        let taken = match (word, byte) {
            (Some(word), _) => word.len(),
            (None, b'\\') if in_string => rest.len().min(2),
            _ => 1,
        };
        plain.extend_from_slice(if word.is_some() { b"null" } else { &rest[..taken] });
        found |= word.is_some();
        in_string ^= byte == b'"';
        rest = &rest[taken..];
    }
    found.then_some(plain)
}

/// Where the lines of a file begin that are not blank, and its size.
fn index(path: &Path, cancelled: &AtomicBool) -> Result<(Vec<Line>, u64)> {
    let failed = |error| Error::io(path, error);
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
    let (mut lines, mut offset, mut number) = (Vec::new(), 0u64, 0u32);
    let (mut start, mut is_blank) = (0u64, true);
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(super::interrupted());
        }
        let chunk = reader.fill_buf().map_err(failed)?;
        if chunk.is_empty() {
            break;
        }
        let size = chunk.len();
        for byte in chunk {
            offset += 1;
            match byte {
                b'\n' => {
                    number += 1;
                    if !is_blank {
                        lines.push(Line { offset: start, number });
                    }
                    (start, is_blank) = (offset, true);
                }
                b' ' | b'\t' | b'\r' => {}
                _ => is_blank = false,
            }
        }
        reader.consume(size);
    }
    if !is_blank {
        lines.push(Line { offset: start, number: number + 1 });
    }
    Ok((lines, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_count_as_nothing() {
        let line = br#"{"text": "NaN \" NaN", "a": NaN, "b": [-Infinity, 1, Infinity], "c\\": NaN}"#;
        let row = serde_json::json!({"text": "NaN \" NaN", "a": null, "b": [null, 1, null], "c\\": null});
        assert_eq!(parse(line).unwrap(), row);
        assert_eq!(parse(br#"{"text": "NaN"}"#).unwrap(), serde_json::json!({"text": "NaN"}));
        for broken in [&br#"{"text": NaNs}"#[..], br#"{"text": "x"#, br#"{"text": "\"#, b"NaN,"] {
            assert!(parse(broken).is_err(), "{}", String::from_utf8_lossy(broken));
        }
    }
}
