//! The metadata of a GGUF file: typed values by key.
//!
//! Values stay in the mapped file and are decoded when they are asked for, so that a vocabulary of a million tokens
//! costs nothing until somebody reads it.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::cursor::Cursor;
use crate::{Error, Result};

/// Real files have some dozens of keys.
const MAX_KEYS: usize = 1 << 16;
const MAX_KEY_BYTES: usize = 1 << 16;
const MAX_NESTING: usize = 4;

/// The types of the format, with its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum GgufKind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl GgufKind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let number = cursor.u32()?;
        let kind = Self::ALL.get(number as usize).copied();
        kind.ok_or_else(|| format!("unknown value type {number} before byte {}", cursor.position()))
    }

    /// Bytes of one value, where that is fixed.
    fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// One value, borrowed from the file.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum GgufValue<'a> {
    /// Any of the integer types.
    Integer(i128),
    /// Any of the floating-point types; an f32 as the shortest decimal that stands for it.
    Float(f64),
    Bool(bool),
    /// Usually UTF-8, but the format does not enforce it.
    String(&'a [u8]),
    Array(GgufArray<'a>),
}

impl<'a> GgufValue<'a> {
    /// A non-negative integer.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Integer(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A number of any type.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A string that is valid UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            Self::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

/// An array, borrowed from the file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufArray<'a> {
    kind: GgufKind,
    length: usize,
    bytes: &'a [u8],
}

impl<'a> GgufArray<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The type of all elements.
    pub fn kind(&self) -> GgufKind {
        self.kind
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = GgufValue<'a>> + use<'a> {
        let (mut cursor, kind) = (Cursor::new(self.bytes, 0), self.kind);
        // Opening the file walked over every element, so reading does not fail here.
        (0..self.length).map_while(move |_| read_value(&mut cursor, kind).ok())
    }
}

/// The metadata of an open file; clones share the mapping.
#[derive(Debug, Clone)]
pub struct GgufMetadata {
    path: PathBuf,
    file: Arc<Mmap>,
    entries: HashMap<String, (GgufKind, Range<usize>)>,
}

impl GgufMetadata {
    /// Reads `count` keys and walks over their values.
    pub(super) fn read(
        path: &Path,
        file: &Arc<Mmap>,
        cursor: &mut Cursor<'_>,
        count: usize,
    ) -> Result<Self, String> {
        if count > MAX_KEYS {
            return Err(format!("{count} metadata keys, at most {MAX_KEYS} are allowed"));
        }
        let mut entries = HashMap::new();
        for _ in 0..count {
            let at = cursor.position();
            let key = cursor.string()?;
            let key = std::str::from_utf8(key).ok().filter(|k| !k.is_empty() && k.len() < MAX_KEY_BYTES);
            let key = key.ok_or_else(|| format!("a malformed metadata key at byte {at}"))?;
            let kind = GgufKind::read(cursor)?;
            let start = cursor.position();
            skip(cursor, kind, 0).map_err(|e| format!("metadata {key}: {e}"))?;
            if entries.insert(key.to_string(), (kind, start..cursor.position())).is_some() {
                return Err(format!("metadata {key} occurs twice"));
            }
        }
        Ok(Self { path: path.to_path_buf(), file: file.clone(), entries })
    }

    /// All keys, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<GgufValue<'_>> {
        let (kind, range) = self.entries.get(key)?;
        read_value(&mut Cursor::new(&self.file, range.start), *kind).ok()
    }

    /// A value's type and its bytes as stored, for copying it into another file.
    pub fn raw(&self, key: &str) -> Option<(GgufKind, &[u8])> {
        let (kind, range) = self.entries.get(key)?;
        Some((*kind, &self.file[range.clone()]))
    }

    /// A string; one of another type or not in UTF-8 is [`Error::InvalidConfig`].
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string in UTF-8", |value| value.as_str())
    }

    /// A non-negative integer, else [`Error::InvalidConfig`].
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", |value| value.as_u64())
    }

    /// A finite number, else [`Error::InvalidConfig`].
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |value| value.as_f64().filter(|v| v.is_finite()))
    }

    /// A truth value, else [`Error::InvalidConfig`].
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| if let GgufValue::Bool(b) = value { Some(*b) } else { None })
    }

    /// An array, else [`Error::InvalidConfig`].
    pub fn array(&self, key: &str) -> Result<Option<GgufArray<'_>>> {
        self.typed(
            key,
            "an array",
            |value| if let GgufValue::Array(a) = value { Some(a.clone()) } else { None },
        )
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&GgufValue<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(&value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.invalid(key, format!("got {}, expected {expected}", show(&value)))),
        }
    }

    /// An error about a key of this file.
    pub(super) fn invalid(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::config(self.path.display().to_string(), key, reason)
    }
}

fn show(value: &GgufValue<'_>) -> String {
    match value {
        GgufValue::Integer(v) => v.to_string(),
        GgufValue::Float(v) => v.to_string(),
        GgufValue::Bool(v) => v.to_string(),
        GgufValue::String(bytes) => {
            let text: String = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
            format!("the string {text:?}")
        }
        GgufValue::Array(array) => format!("an array of {}", array.len()),
    }
}

/// Walks over a value; linear in its bytes, because every element takes at least one.
fn skip(cursor: &mut Cursor<'_>, kind: GgufKind, depth: usize) -> Result<(), String> {
    if let Some(size) = kind.size() {
        return cursor.take(size as u64).map(drop);
    }
    if kind == GgufKind::String {
        return cursor.string().map(drop);
    }
    if depth == MAX_NESTING {
        return Err(format!("arrays are nested more than {MAX_NESTING} deep"));
    }
    let element = GgufKind::read(cursor)?;
    // An empty string takes 8 bytes, an empty array 12.
    let count = cursor.count("array elements", element.size().unwrap_or(8))?;
    match element.size() {
        Some(size) => cursor.take((count * size) as u64).map(drop),
        None => (0..count).try_for_each(|_| skip(cursor, element, depth + 1)),
    }
}

fn read_value<'a>(cursor: &mut Cursor<'a>, kind: GgufKind) -> Result<GgufValue<'a>, String> {
    use GgufKind as K;
    use GgufValue as V;
    if kind == K::String {
        return Ok(V::String(cursor.string()?));
    }
    if kind == K::Array {
        let element = GgufKind::read(cursor)?;
        let length = cursor.count("array elements", element.size().unwrap_or(8))?;
        let mut end = cursor.clone();
        match element.size() {
            Some(size) => drop(end.take((length * size) as u64)?),
            None => (0..length).try_for_each(|_| skip(&mut end, element, 1))?,
        }
        let bytes = cursor.take((end.position() - cursor.position()) as u64)?;
        return Ok(V::Array(GgufArray { kind: element, length, bytes }));
    }
    let stored = cursor.take(kind.size().unwrap_or(0) as u64)?;
    let mut wide = [0; 8];
    wide[..stored.len()].copy_from_slice(stored);
    let bits = u64::from_le_bytes(wide);
    Ok(match kind {
        K::U8 | K::U16 | K::U32 | K::U64 => V::Integer(i128::from(bits)),
        K::I8 => V::Integer(i128::from(bits as u8 as i8)),
        K::I16 => V::Integer(i128::from(bits as u16 as i16)),
        K::I32 => V::Integer(i128::from(bits as u32 as i32)),
        K::I64 => V::Integer(i128::from(bits as i64)),
        K::F32 => V::Float(shortest(f32::from_bits(bits as u32))),
        K::F64 => V::Float(f64::from_bits(bits)),
        K::Bool => V::Bool(bits != 0),
        K::String | K::Array => return Err("a value without a size".to_string()),
    })
}

/// 1e-6 stored as an f32 is meant as 1e-6, not as 9.99999997e-7.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
