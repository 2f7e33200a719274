//! Plain values to the block formats of ggml, byte for byte as llama.cpp's quantiser writes them.
//!
//! It deliberately chooses no formats, and decodes nothing: see `models::quantize` and [`super::blocks`].
//! Layouts: <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.

mod bits;
mod k_affine;
mod k_symmetric;
mod legacy;
mod search;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};

pub(super) use k_affine::{q2_k, q4_k, q5_k};
pub(super) use k_symmetric::{q3_k, q6_k};
pub(super) use legacy::{iq4_nl, mxfp4, q4_0, q4_1, q5_0, q5_1, q8_0};

use super::BlockFormat;
use crate::kernels::cpu::pool;

/// Encodes a row of whole blocks: its values, how much each column matters, and room for the bytes.
pub(super) type Encode = fn(&[f32], Option<&[f32]>, &mut [u8]);

/// Values that one task encodes, at least.
const TASK: usize = 1 << 14;

/// Below this magnitude no format's scale leaves the range of half precision.
const SAFE: f32 = 65504.0;

/// The values of a matrix as they are stored.
#[derive(Clone, Copy)]
pub(super) enum Plain<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Plain<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    fn read(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Self::F32(values) => out.copy_from_slice(&values[range]),
            Self::F16(values) => out.iter_mut().zip(&values[range]).for_each(|(out, x)| *out = x.to_f32()),
            Self::Bf16(values) => out.iter_mut().zip(&values[range]).for_each(|(out, x)| *out = x.to_f32()),
        }
    }
}

/// Where a value is that cannot be encoded: its row, column and the value.
pub(super) struct Unfit(pub(super) usize, pub(super) usize, pub(super) f32);

/// Encodes rows of `inn` values, which are whole blocks of `format`; `importance` has as many entries as a row.
///
/// Only finite values can be encoded, and where scales are in half precision none that these cannot reach.
pub(super) fn encode(
    values: Plain<'_>,
    inn: usize,
    format: &BlockFormat,
    encoder: Encode,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>, Unfit> {
    let (row_bytes, rows) = (format.row_bytes(inn), (TASK / inn.max(1)).max(1));
    let mut bytes = vec![0; values.len() / inn.max(1) * row_bytes];
    let unfit = AtomicUsize::new(usize::MAX);
    pool::parallel_chunks(&mut bytes, rows * row_bytes, |task, out| {
        let (mut row, mut decoded) = (vec![0.0; inn], Vec::new());
        for (index, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            let first = (task * rows + index) * inn;
            values.read(first..first + inn, &mut row);
            let bad = row.iter().position(|x| !x.is_finite()).or_else(|| {
                encoder(&row, importance, out);
                overflow(&row, out, format, &mut decoded)
            });
            if let Some(column) = bad {
                unfit.fetch_min(first + column, Ordering::Relaxed);
            }
        }
    });
    match unfit.into_inner() {
        usize::MAX => Ok(bytes),
        at => {
            let mut value = [0.0];
            values.read(at..at + 1, &mut value);
            Err(Unfit(at / inn, at % inn, value[0]))
        }
    }
}

/// The column of a value too large for the scale of its block.
fn overflow(row: &[f32], bytes: &[u8], format: &BlockFormat, decoded: &mut Vec<f32>) -> Option<usize> {
    if row.iter().all(|x| x.abs() < SAFE) {
        return None;
    }
    decoded.resize(row.len(), 0.0);
    format.decode(bytes, decoded);
    let block = format.format.block_elements();
    let blocks = row.chunks_exact(block).zip(decoded.chunks_exact(block)).enumerate();
    let mut lost = blocks.filter_map(|(index, (x, y))| {
        let (at, largest) = x.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()))?;
        let kept = y.iter().all(|y| y.is_finite()) && y.iter().any(|y| y.abs() > largest.abs() / 2.0);
        (largest.abs() >= SAFE && !kept).then_some(index * block + at)
    });
    lost.next()
}
