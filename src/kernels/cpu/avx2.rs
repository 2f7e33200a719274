//! Register tiles for AVX2 with FMA and F16C: 6 × 16 outputs in 12 registers, and one row over 64 outputs.
//!
//! The arithmetic is that of `avx512.rs`, value for value: activations in f32, one fused multiply-add per product, in
//! the order of the input dimension.

use std::arch::x86_64::*;

use super::Element;
use super::tile::{STRIP, Tile, TileFn, Tiles, WIDE};

/// Values of a vector.
const LANES: usize = 8;

const fn narrow<const E: usize>() -> [TileFn; 6] {
    [tile::<E, 1, 2>, tile::<E, 2, 2>, tile::<E, 3, 2>, tile::<E, 4, 2>, tile::<E, 5, 2>, tile::<E, 6, 2>]
}

/// Tiles for f32 weights.
pub(super) static F32: Tiles =
    Tiles { narrow: &narrow::<0>(), wide: &[tile::<0, 1, 8>], width: WIDE, rounds: false, many: None };
/// Tiles for bf16 weights.
pub(super) static BF16: Tiles = Tiles {
    narrow: &narrow::<1>(),
    wide: &[tile::<1, 1, 8>],
    width: WIDE,
    rounds: false,
    many: Some((widen_strip::<1>, &F32)),
};
/// Tiles for f16 weights.
pub(super) static F16: Tiles = Tiles {
    narrow: &narrow::<2>(),
    wide: &[tile::<2, 1, 8>],
    width: WIDE,
    rounds: false,
    many: Some((widen_strip::<2>, &F32)),
};

/// # Safety
/// As [`super::tile::WidenFn`]; `E` is the position of the element type in [`Element::ALL`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_strip<const E: usize>(from: *const u8, steps: usize, to: *mut f32) {
    let element = const { Element::ALL[E] };
    let values = element.step_values();
    for i in 0..steps {
        for half in 0..2 {
            // SAFETY: by contract.
            let step = unsafe { load_half_step(element, from.add(i * element.step_bytes()), half) };
            for value in 0..values {
                let to = to.wrapping_add((i * values + value) * STRIP + half * LANES);
                // SAFETY: by contract.
                unsafe { _mm256_storeu_ps(to, widen(element, step, value)) };
            }
        }
    }
}

/// R rows by V vectors of outputs.
///
/// # Safety
/// As [`TileFn`]; `E` is the position of the element type in [`Element::ALL`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const E: usize, const R: usize, const V: usize>(t: &Tile) {
    let element = const { Element::ALL[E] };
    let values = const { Element::ALL[E].step_values() };
    // SAFETY: by contract.
    let mut sums: [[__m256; V]; R] = unsafe { load_sums(t) };
    let mut a = t.a.cast::<f32>();
    let a_stride = t.a_stride / size_of::<f32>();
    let mut w = t.w;
    for _ in 0..t.steps {
        for value in 0..values {
            let mut weights = [_mm256_setzero_ps(); V];
            for (v, weight) in weights.iter_mut().enumerate() {
                // SAFETY: each of V / 2 strips has `steps` steps.
                *weight = widen(
                    element,
                    unsafe { load_half_step(element, w.add(v / 2 * t.w_stride), v % 2) },
                    value,
                );
            }
            for (r, row) in sums.iter_mut().enumerate() {
                // SAFETY: each of R rows has `steps * values` activations.
                let x = _mm256_set1_ps(unsafe { *a.add(r * a_stride + value) });
                for (sum, weight) in row.iter_mut().zip(weights) {
                    *sum = _mm256_fmadd_ps(x, weight, *sum);
                }
            }
        }
        a = a.wrapping_add(values);
        w = w.wrapping_add(element.step_bytes());
    }
    // SAFETY: by contract.
    unsafe { store_sums(t, &sums) };
}

/// # Safety
/// `step` starts a step of `element`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_half_step(element: Element, step: *const u8, half: usize) -> __m256i {
    // SAFETY: half a step has 32 bytes, for f16 it has 16.
    unsafe {
        match element {
            Element::F32 | Element::Bf16 => _mm256_loadu_si256(step.add(half * 32).cast()),
            Element::F16 => _mm256_castsi128_si256(_mm_loadu_si128(step.add(half * 16).cast())),
        }
    }
}

/// The lanes of `value` of half a step as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen(element: Element, step: __m256i, value: usize) -> __m256 {
    match element {
        Element::F32 => _mm256_castsi256_ps(step),
        Element::Bf16 if value == 0 => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(step)),
        Element::Bf16 => {
            _mm256_castsi256_ps(_mm256_and_si256(step, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
        }
        Element::F16 => _mm256_cvtph_ps(_mm256_castsi256_si128(step)),
    }
}

/// All ones in the lanes of vector `v` that hold outputs of the tile.
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(t: &Tile, v: usize) -> __m256i {
    let first = (v * LANES) as i32;
    let index = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    _mm256_cmpgt_epi32(_mm256_set1_epi32(t.cols as i32), index)
}

/// The sums to start from.
///
/// # Safety
/// As [`TileFn`], for R rows and V vectors.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load_sums<const R: usize, const V: usize>(t: &Tile) -> [[__m256; V]; R] {
    let mut sums = [[_mm256_setzero_ps(); V]; R];
    if !t.first {
        for v in 0..V {
            let mask = lanes(t, v);
            for (r, row) in sums.iter_mut().enumerate() {
                // SAFETY: by contract; lanes outside of the tile are not read.
                row[v] = unsafe { _mm256_maskload_ps(t.c.wrapping_add(r * t.c_stride + v * LANES), mask) };
            }
        }
    }
    sums
}

/// Adds the bias and stores.
///
/// # Safety
/// As [`TileFn`], for R rows and V vectors.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn store_sums<const R: usize, const V: usize>(t: &Tile, sums: &[[__m256; V]; R]) {
    for v in 0..V {
        let mask = lanes(t, v);
        let bias = match t.bias.is_null() {
            true => _mm256_setzero_ps(),
            // SAFETY: by contract; lanes outside of the tile are not read.
            false => unsafe { _mm256_maskload_ps(t.bias.wrapping_add(v * LANES), mask) },
        };
        for (r, row) in sums.iter().enumerate() {
            let to = t.c.wrapping_add(r * t.c_stride + v * LANES);
            // SAFETY: by contract; lanes outside of the tile are not written.
            unsafe { _mm256_maskstore_ps(to, mask, _mm256_add_ps(row[v], bias)) };
        }
    }
}
