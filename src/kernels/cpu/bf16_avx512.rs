//! Register tiles for bf16 weights on AVX-512 BF16: 6 × 64 outputs in 24 registers, two products per lane and step.
//!
//! Activations are rounded to bf16 once per call. The instruction adds the products of a pair in f32 with denormals as
//! zero; each result is the sum over pairs in the order of the input dimension, whatever the tile's size.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512::{load_sums, store_sums};
use super::tile::{STRIP, Tile, TileFn, Tiles, WIDE};

const NARROW: [TileFn; 6] =
    [tile::<1, 1>, tile::<2, 1>, tile::<3, 1>, tile::<4, 1>, tile::<5, 1>, tile::<6, 1>];
const FOUR: [TileFn; 6] =
    [tile::<1, 4>, tile::<2, 4>, tile::<3, 4>, tile::<4, 4>, tile::<5, 4>, tile::<6, 4>];

/// Tiles for bf16 weights and activations.
pub(super) static TILES: Tiles =
    Tiles { narrow: &NARROW, wide: &FOUR, width: WIDE, rounds: true, many: None };

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const R: usize, const S: usize>(t: &Tile) {
    // SAFETY: by contract.
    let mut sums: [[__m512; S]; R] = unsafe { load_sums(t) };
    let mut a = t.a.cast::<i32>();
    let a_stride = t.a_stride / size_of::<i32>();
    let mut w = t.w;
    for _ in 0..t.steps {
        let mut weights = [_mm512_setzero_si512(); S];
        for (s, weight) in weights.iter_mut().enumerate() {
            // SAFETY: each of S strips has `steps` steps.
            *weight = unsafe { _mm512_loadu_si512(w.add(s * t.w_stride).cast()) };
        }
        for (r, row) in sums.iter_mut().enumerate() {
            // SAFETY: each of R rows has `steps` pairs of activations.
            let pair = pairs(_mm512_set1_epi32(unsafe { a.add(r * a_stride).read_unaligned() }));
            for (sum, weight) in row.iter_mut().zip(weights) {
                *sum = _mm512_dpbf16_ps(*sum, pair, pairs(weight));
            }
        }
        a = a.wrapping_add(1);
        w = w.wrapping_add(4 * STRIP);
    }
    // SAFETY: by contract.
    unsafe { store_sums(t, &sums) };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of plain bits.
    unsafe { std::mem::transmute(bits) }
}

/// Rounds `from` to bf16, to nearest even, into `to`, which is longer by at most one value; that becomes zero.
///
/// # Safety
/// The processor has AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round(from: &[f32], to: &mut [bf16]) {
    let (vectors, rest) = from.as_chunks::<16>();
    for (index, vector) in vectors.iter().enumerate() {
        // SAFETY: a chunk has 16 values, and `to` is at least as long as `from`.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(vector.as_ptr()));
            to[index * 16..][..16].as_mut_ptr().cast::<__m256bh>().write_unaligned(rounded);
        }
    }
    let done = vectors.len() * 16;
    for (value, rounded) in rest.iter().chain(&[0.0]).zip(&mut to[done..]) {
        *rounded = bf16::from_f32(*value);
    }
}
