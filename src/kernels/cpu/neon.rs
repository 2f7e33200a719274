//! Register tiles for NEON: 6 × 16 outputs in 24 registers; f32, and bf16 and f16 by widening.
//!
//! The arithmetic is that of `avx512.rs`, value for value: activations in f32, one fused multiply-add per product, in
//! the order of the input dimension. Every 64-bit ARM processor has these instructions.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Element;
use super::tile::{STRIP, Tile, TileFn, Tiles, WIDE};

/// Values of a vector.
const LANES: usize = 4;
/// Vectors of a strip.
const PARTS: usize = STRIP / LANES;

const fn narrow<const E: usize>() -> [TileFn; 6] {
    [tile::<E, 1>, tile::<E, 2>, tile::<E, 3>, tile::<E, 4>, tile::<E, 5>, tile::<E, 6>]
}

/// Tiles for f32 weights.
pub(super) static F32: Tiles =
    Tiles { narrow: &narrow::<0>(), wide: &[], width: WIDE, rounds: false, many: None };
/// Tiles for bf16 weights.
pub(super) static BF16: Tiles = Tiles {
    narrow: &narrow::<1>(),
    wide: &[],
    width: WIDE,
    rounds: false,
    many: Some((widen_strip::<1>, &F32)),
};
/// Tiles for f16 weights.
pub(super) static F16: Tiles = Tiles {
    narrow: &narrow::<2>(),
    wide: &[],
    width: WIDE,
    rounds: false,
    many: Some((widen_strip::<2>, &F32)),
};

/// # Safety
/// As [`super::tile::WidenFn`]; `E` is the position of the element type in [`Element::ALL`].
unsafe fn widen_strip<const E: usize>(from: *const u8, steps: usize, to: *mut f32) {
    let element = const { Element::ALL[E] };
    let values = element.step_values();
    for i in 0..steps {
        // SAFETY: by contract.
        unsafe {
            let step = load_step(element, from.add(i * element.step_bytes()));
            for value in 0..values {
                for (part, raw) in step.into_iter().enumerate() {
                    let to = to.add((i * values + value) * STRIP + part * LANES);
                    vst1q_f32(to, widen(element, raw, value));
                }
            }
        }
    }
}

/// # Safety
/// As [`TileFn`]; `E` is the position of the element type in [`Element::ALL`].
unsafe fn tile<const E: usize, const R: usize>(t: &Tile) {
    let element = const { Element::ALL[E] };
    let values = const { Element::ALL[E].step_values() };
    // SAFETY: by contract.
    let mut sums: [[float32x4_t; PARTS]; R] = unsafe { load_sums(t) };
    let mut a = t.a.cast::<f32>();
    let a_stride = t.a_stride / size_of::<f32>();
    let mut w = t.w;
    for _ in 0..t.steps {
        // SAFETY: the strip has `steps` steps.
        let raw = unsafe { load_step(element, w) };
        for value in 0..values {
            for part in 0..PARTS {
                // SAFETY: every 64-bit ARM processor has the instructions.
                let weight = unsafe { widen(element, raw[part], value) };
                for (r, row) in sums.iter_mut().enumerate() {
                    // SAFETY: each of R rows has `steps * values` activations.
                    row[part] = unsafe { vfmaq_n_f32(row[part], weight, *a.add(r * a_stride + value)) };
                }
            }
        }
        a = a.wrapping_add(values);
        w = w.wrapping_add(element.step_bytes());
    }
    // SAFETY: by contract.
    unsafe { store_sums(t, &sums) };
}

/// The vectors of a step as they are stored.
///
/// # Safety
/// `step` starts a step of `element`.
#[inline(always)]
unsafe fn load_step(element: Element, step: *const u8) -> [uint32x4_t; PARTS] {
    // SAFETY: a step has 64 bytes, for f16 it has 32.
    std::array::from_fn(|part| unsafe {
        match element {
            Element::F32 | Element::Bf16 => vld1q_u32(step.add(part * 16).cast()),
            Element::F16 => vcombine_u32(vld1_u32(step.add(part * 8).cast()), vdup_n_u32(0)),
        }
    })
}

/// The lanes of `value` of a stored vector as f32.
///
/// # Safety
/// None beyond the target's own instructions.
#[inline(always)]
unsafe fn widen(element: Element, raw: uint32x4_t, value: usize) -> float32x4_t {
    // SAFETY: every 64-bit ARM processor has the instructions; the assembly touches its operands only.
    unsafe {
        match element {
            Element::F32 => vreinterpretq_f32_u32(raw),
            Element::Bf16 if value == 0 => vreinterpretq_f32_u32(vshlq_n_u32::<16>(raw)),
            Element::Bf16 => vreinterpretq_f32_u32(vandq_u32(raw, vdupq_n_u32(0xffff_0000))),
            Element::F16 => {
                let wide: float32x4_t;
                // The intrinsic needs a newer compiler than we ask for.
                asm!("fcvtl {wide:v}.4s, {raw:v}.4h", wide = lateout(vreg) wide, raw = in(vreg) raw,
                    options(pure, nomem, nostack, preserves_flags));
                wide
            }
        }
    }
}

/// The sums to start from.
///
/// # Safety
/// As [`TileFn`], for R rows.
#[inline(always)]
pub(super) unsafe fn load_sums<const R: usize>(t: &Tile) -> [[float32x4_t; PARTS]; R] {
    let mut lanes = [[0f32; STRIP]; R];
    if !t.first {
        for (r, row) in lanes.iter_mut().enumerate() {
            // SAFETY: by contract; lanes outside of the tile are not read.
            unsafe { std::ptr::copy_nonoverlapping(t.c.add(r * t.c_stride), row.as_mut_ptr(), t.cols) };
        }
    }
    // SAFETY: a row has STRIP values.
    lanes.map(|row| std::array::from_fn(|part| unsafe { vld1q_f32(row.as_ptr().add(part * LANES)) }))
}

/// Adds the bias and stores.
///
/// # Safety
/// As [`TileFn`], for R rows.
#[inline(always)]
pub(super) unsafe fn store_sums<const R: usize>(t: &Tile, sums: &[[float32x4_t; PARTS]; R]) {
    let mut bias = [0f32; STRIP];
    if !t.bias.is_null() {
        // SAFETY: by contract; lanes outside of the tile are not read.
        unsafe { std::ptr::copy_nonoverlapping(t.bias, bias.as_mut_ptr(), t.cols) };
    }
    for (r, row) in sums.iter().enumerate() {
        let mut lanes = [0f32; STRIP];
        for (part, sum) in row.iter().enumerate() {
            // SAFETY: both have STRIP values.
            unsafe {
                let bias = vld1q_f32(bias.as_ptr().add(part * LANES));
                vst1q_f32(lanes.as_mut_ptr().add(part * LANES), vaddq_f32(*sum, bias));
            }
        }
        // SAFETY: by contract; lanes outside of the tile are not written.
        unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), t.c.add(r * t.c_stride), t.cols) };
    }
}
