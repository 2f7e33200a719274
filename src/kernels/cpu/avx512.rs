//! Register tiles for AVX-512: 6 × 64 outputs in 24 registers; f32, and bf16 and f16 by widening.
//!
//! Activations stay in f32 and every product is a fused multiply-add, so each result is the sum in the order of the
//! input dimension, whatever the tile's size.

use std::arch::x86_64::*;

use super::Element;
use super::tile::{STRIP, Tile, TileFn, Tiles, WIDE};

const fn narrow<const E: usize>() -> [TileFn; 6] {
    [tile::<E, 1, 1>, tile::<E, 2, 1>, tile::<E, 3, 1>, tile::<E, 4, 1>, tile::<E, 5, 1>, tile::<E, 6, 1>]
}

const fn wide<const E: usize>() -> [TileFn; 6] {
    [tile::<E, 1, 4>, tile::<E, 2, 4>, tile::<E, 3, 4>, tile::<E, 4, 4>, tile::<E, 5, 4>, tile::<E, 6, 4>]
}

/// Tiles for f32 weights.
pub(super) static F32: Tiles =
    Tiles { narrow: &narrow::<0>(), wide: &wide::<0>(), width: WIDE, rounds: false, many: None };
/// Tiles for bf16 weights; a sixth row would not leave enough registers for widening.
pub(super) static BF16: Tiles = Tiles {
    narrow: narrow::<1>().first_chunk::<5>().unwrap(),
    wide: &wide::<1>(),
    width: WIDE,
    rounds: false,
    many: Some((widen_strip::<1>, &F32)),
};
/// Tiles for f16 weights.
pub(super) static F16: Tiles = Tiles {
    narrow: &narrow::<2>(),
    wide: &wide::<2>(),
    width: WIDE,
    rounds: false,
    many: Some((widen_strip::<2>, &F32)),
};

/// # Safety
/// As [`super::tile::WidenFn`]; `E` is the position of the element type in [`Element::ALL`].
#[target_feature(enable = "avx512f")]
unsafe fn widen_strip<const E: usize>(from: *const u8, steps: usize, to: *mut f32) {
    let element = const { Element::ALL[E] };
    let values = element.step_values();
    for i in 0..steps {
        // SAFETY: by contract.
        let step = unsafe { load_step(element, from.add(i * element.step_bytes())) };
        for value in 0..values {
            // SAFETY: by contract.
            unsafe { _mm512_storeu_ps(to.add((i * values + value) * STRIP), widen(element, step, value)) };
        }
    }
}

/// # Safety
/// As [`TileFn`]; `E` is the position of the element type in [`Element::ALL`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn tile<const E: usize, const R: usize, const S: usize>(t: &Tile) {
    let element = const { Element::ALL[E] };
    let values = const { Element::ALL[E].step_values() };
    // SAFETY: by contract.
    let mut sums: [[__m512; S]; R] = unsafe { load_sums(t) };
    let mut a = t.a.cast::<f32>();
    let a_stride = t.a_stride / size_of::<f32>();
    let mut w = t.w;
    for _ in 0..t.steps {
        let mut raw = [_mm512_setzero_si512(); S];
        for (s, step) in raw.iter_mut().enumerate() {
            // SAFETY: each of S strips has `steps` steps.
            *step = unsafe { load_step(element, w.add(s * t.w_stride)) };
        }
        for value in 0..values {
            let mut weights = [_mm512_setzero_ps(); S];
            for (weight, step) in weights.iter_mut().zip(raw) {
                *weight = widen(element, step, value);
            }
            for (r, row) in sums.iter_mut().enumerate() {
                // SAFETY: each of R rows has `steps * values` activations.
                let x = _mm512_set1_ps(unsafe { *a.add(r * a_stride + value) });
                for (sum, weight) in row.iter_mut().zip(weights) {
                    *sum = _mm512_fmadd_ps(x, weight, *sum);
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
#[target_feature(enable = "avx512f")]
unsafe fn load_step(element: Element, step: *const u8) -> __m512i {
    // SAFETY: a step has 64 bytes, for f16 it has 32.
    unsafe {
        match element {
            Element::F32 | Element::Bf16 => _mm512_loadu_si512(step.cast()),
            Element::F16 => _mm512_castsi256_si512(_mm256_loadu_si256(step.cast())),
        }
    }
}

/// The lanes of `value` of a step as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(element: Element, step: __m512i, value: usize) -> __m512 {
    match element {
        Element::F32 => _mm512_castsi512_ps(step),
        Element::Bf16 if value == 0 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(step)),
        Element::Bf16 => {
            _mm512_castsi512_ps(_mm512_and_si512(step, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        }
        Element::F16 => _mm512_cvtph_ps(_mm512_castsi512_si256(step)),
    }
}

/// Lanes of strip `s` that hold outputs of the tile.
#[inline]
fn lanes(t: &Tile, s: usize) -> __mmask16 {
    match t.cols - s * STRIP {
        0..STRIP => (1 << (t.cols - s * STRIP)) - 1,
        _ => !0,
    }
}

/// The sums to start from.
///
/// # Safety
/// As [`TileFn`], for R rows and S strips.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load_sums<const R: usize, const S: usize>(t: &Tile) -> [[__m512; S]; R] {
    let mut sums = [[_mm512_setzero_ps(); S]; R];
    if !t.first {
        for (r, row) in sums.iter_mut().enumerate() {
            for (s, sum) in row.iter_mut().enumerate() {
                // SAFETY: by contract; lanes outside of the tile are not read.
                *sum = unsafe { _mm512_maskz_loadu_ps(lanes(t, s), t.c.add(r * t.c_stride + s * STRIP)) };
            }
        }
    }
    sums
}

/// Adds the bias and stores.
///
/// # Safety
/// As [`TileFn`], for R rows and S strips.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store_sums<const R: usize, const S: usize>(t: &Tile, sums: &[[__m512; S]; R]) {
    for s in 0..S {
        let mask = lanes(t, s);
        let bias = match t.bias.is_null() {
            true => _mm512_setzero_ps(),
            // SAFETY: by contract; lanes outside of the tile are not read.
            false => unsafe { _mm512_maskz_loadu_ps(mask, t.bias.add(s * STRIP)) },
        };
        for (r, row) in sums.iter().enumerate() {
            // SAFETY: by contract; lanes outside of the tile are not written.
            unsafe {
                _mm512_mask_storeu_ps(t.c.add(r * t.c_stride + s * STRIP), mask, _mm512_add_ps(row[s], bias));
            }
        }
    }
}
