//! The header of a safetensors file, parsed and checked against the file's length.
//!
//! Faults are returned as plain sentences: the caller knows the file's name.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::weight::{Format, TensorInfo};

/// The limit of the reference implementation.
pub(super) const MAX_HEADER_BYTES: usize = 100_000_000;
const MAX_RANK: usize = 8;

pub(super) struct Header {
    /// Name, shape, and place in the whole file.
    pub(super) tensors: Vec<(String, TensorInfo, Range<usize>)>,
    pub(super) metadata: BTreeMap<String, String>,
}

pub(super) const DTYPES: [(&str, Format); 8] = [
    ("F64", Format::F64),
    ("F32", Format::F32),
    ("F16", Format::F16),
    ("BF16", Format::BF16),
    ("I64", Format::I64),
    ("I32", Format::I32),
    ("I8", Format::I8),
    ("U8", Format::U8),
];

fn format_of(dtype: &str) -> Option<Format> {
    match dtype {
        // One byte each, 0 or 1.
        "BOOL" => Some(Format::U8),
        _ => DTYPES.iter().find(|(name, _)| *name == dtype).map(|(_, format)| *format),
    }
}

pub(super) fn parse(file: &[u8]) -> Result<Header, String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("the file has {} bytes, a header needs at least 8", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length)
        .ok()
        .filter(|&n| n <= MAX_HEADER_BYTES)
        .and_then(|n| rest.get(..n))
        .ok_or_else(|| format!("the header claims {length} bytes, the file has {}", file.len()))?;
    let raw: RawHeader = serde_json::from_slice(header).map_err(|e| format!("header: {e}"))?;
    let start = 8 + header.len();
    let data = file.len() - start;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        let info = check(&tensor).map_err(|problem| format!("tensor {name}: {problem}"))?;
        let [from, to] = tensor.data_offsets;
        if from > to || to > data {
            return Err(format!(
                "tensor {name}: bytes {from} to {to} lie outside of the {data} bytes of data"
            ));
        }
        tensors.push((name, info, start + from..start + to));
    }
    check_coverage(&mut tensors, start, file.len())?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Dtype known, and length equal to what shape and dtype ask for.
fn check(tensor: &RawTensor) -> Result<TensorInfo, String> {
    let Some(format) = format_of(&tensor.dtype) else {
        let known: Vec<&str> = DTYPES.iter().map(|(name, _)| *name).collect();
        return Err(format!("dtype {} is not supported; supported: {}", tensor.dtype, known.join(", ")));
    };
    let shape = tensor.shape.0.clone();
    let bytes = shape.iter().try_fold(format.block_bytes(), |n, &d| n.checked_mul(d));
    let [from, to] = tensor.data_offsets;
    if bytes.is_none() || bytes != to.checked_sub(from) {
        return Err(format!("bytes {from} to {to} do not hold shape {shape:?} of {}", tensor.dtype));
    }
    Ok(TensorInfo { format, shape })
}

/// The format asks that the data be indexed without gap, overlap or remainder.
fn check_coverage(
    tensors: &mut [(String, TensorInfo, Range<usize>)],
    start: usize,
    end: usize,
) -> Result<(), String> {
    tensors.sort_by_key(|(_, _, range)| (range.start, range.end));
    let mut expected = start;
    for (name, _, range) in tensors {
        if range.start != expected {
            let kind = if range.start < expected {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(format!("tensor {name} {kind}: it starts at byte {}, not {expected}", range.start));
        }
        expected = range.end;
    }
    match end - expected {
        0 => Ok(()),
        rest => Err(format!("{rest} bytes at the end belong to no tensor; is the file damaged?")),
    }
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Shape,
    data_offsets: [usize; 2],
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut raw = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("name {name} occurs twice")));
                    }
                    if name == "__metadata__" {
                        // Some writers (mlx) put null where there is none.
                        raw.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        raw.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "an array of at most {MAX_RANK} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = seq.next_element::<usize>()? {
                    if shape.len() == MAX_RANK {
                        return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_may_be_null() {
        for (metadata, entries) in [("null", 0), ("{}", 0), (r#"{"format": "mlx"}"#, 1)] {
            let header = format!(
                r#"{{"__metadata__": {metadata}, "a": {{"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}}}"#
            );
            let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[1, 2]].concat();
            let parsed = parse(&file).unwrap();
            assert_eq!((parsed.tensors.len(), parsed.metadata.len()), (1, entries));
        }
    }
}
