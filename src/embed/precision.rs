//! Vectors in fewer bits, as sentence-transformers' `quantize_embeddings` makes them.

use crate::{Error, Result};

/// How the values of vectors are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As they are.
    #[default]
    Float32,
    /// 256 steps between the extremes of each dimension, from -128.
    Int8,
    /// 256 steps between the extremes of each dimension, from 0.
    Uint8,
    /// One bit for each dimension, eight to a byte, minus 128.
    Binary,
    /// One bit for each dimension, eight to a byte.
    Ubinary,
}

impl Precision {
    /// The precision called `name`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another name.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "float32" => Self::Float32,
            "int8" => Self::Int8,
            "uint8" => Self::Uint8,
            "binary" => Self::Binary,
            "ubinary" => Self::Ubinary,
            _ => {
                let allowed = "\"float32\", \"int8\", \"uint8\", \"binary\" or \"ubinary\"";
                return Err(Error::argument("precision", format!("{name:?}"), allowed));
            }
        })
    }
}

/// Values of one of the precisions, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Quantized {
    /// Of [`Precision::Float32`].
    F32(Vec<f32>),
    /// Of [`Precision::Int8`] and [`Precision::Binary`].
    I8(Vec<i8>),
    /// Of [`Precision::Uint8`] and [`Precision::Ubinary`].
    U8(Vec<u8>),
}

/// Vectors `[rows, dim]` in another precision; the extremes of each dimension are those of the vectors themselves.
///
/// # Errors
/// [`Error::InvalidArgument`] for 8-bit integers of a single vector, which has no extremes.
pub fn quantize(vectors: Vec<f32>, dim: usize, precision: Precision) -> Result<Quantized> {
    if matches!(precision, Precision::Int8 | Precision::Uint8) {
        if vectors.len() == dim {
            let allowed = "several texts in one call, from which the range of each dimension is taken";
            return Err(Error::argument("precision", "8-bit integers for a single vector", allowed));
        }
        let (low, high) = extremes(&vectors, dim);
        return quantize_with(vectors, &low, &high, precision);
    }
    quantize_with(vectors, &vec![0.0; dim], &vec![0.0; dim], precision)
}

/// The same with given lowest and highest values of each dimension.
///
/// # Errors
/// [`Error::InvalidArgument`] where `low` and `high` are of different lengths.
pub fn quantize_with(
    vectors: Vec<f32>,
    low: &[f32],
    high: &[f32],
    precision: Precision,
) -> Result<Quantized> {
    let dim = low.len();
    if high.len() != dim {
        return Err(Error::argument("ranges", format!("{dim} and {} values", high.len()), "as many of both"));
    }
    let steps: Vec<f32> = low.iter().zip(high).map(|(low, high)| (high - low) / 255.0).collect();
    let steps: Vec<f32> = steps.into_iter().map(|step| if step == 0.0 { 1.0 } else { step }).collect();
    let level = |row: &[f32]| -> Vec<u8> {
        let places = row.iter().zip(low).zip(&steps);
        places.map(|((x, low), step)| ((x - low) / step).floor().clamp(0.0, 255.0) as u8).collect()
    };
    let levels = |vectors: &[f32]| vectors.chunks(dim.max(1)).flat_map(level).collect::<Vec<u8>>();
    let bits = |vectors: &[f32]| vectors.chunks(dim.max(1)).flat_map(pack).collect::<Vec<u8>>();
    let signed = |bytes: Vec<u8>| bytes.into_iter().map(|byte| (i16::from(byte) - 128) as i8).collect();
    Ok(match precision {
        Precision::Float32 => Quantized::F32(vectors),
        Precision::Uint8 => Quantized::U8(levels(&vectors)),
        Precision::Int8 => Quantized::I8(signed(levels(&vectors))),
        Precision::Ubinary => Quantized::U8(bits(&vectors)),
        Precision::Binary => Quantized::I8(signed(bits(&vectors))),
    })
}

fn extremes(vectors: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut low, mut high) = (vec![f32::INFINITY; dim], vec![f32::NEG_INFINITY; dim]);
    for row in vectors.chunks(dim.max(1)) {
        for (index, x) in row.iter().enumerate() {
            low[index] = low[index].min(*x);
            high[index] = high[index].max(*x);
        }
    }
    (low, high)
}

/// Signs as bits, the first in the highest bit.
fn pack(row: &[f32]) -> Vec<u8> {
    let byte = |values: &[f32]| {
        values.iter().enumerate().fold(0, |byte, (place, x)| byte | u8::from(*x > 0.0) << (7 - place))
    };
    row.chunks(8).map(byte).collect()
}
