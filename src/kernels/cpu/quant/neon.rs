//! Register tiles for eight-bit products with the dot-product instructions of ARM: 3 × 16 outputs.
//!
//! Integer sums are exact, and the rest is the arithmetic of `vnni.rs`, so the results are the same bits.

use std::arch::aarch64::*;
use std::arch::asm;

use super::activation::Group;
use super::format::UNIT;
use super::lines::{Codes, LINE, LINES, QUAD};
use crate::kernels::cpu::neon::{load_sums, store_sums};
use crate::kernels::cpu::tile::{STRIP, Tile, TileFn, Tiles};

/// Lanes of a vector.
const LANES: usize = 4;
/// Vectors of a strip.
const PARTS: usize = STRIP / LANES;

/// The tiles for formats with `groups` scales in a unit, with or without `minima`; `whole` where codes use all bits of a
/// byte.
pub(super) fn tiles(groups: usize, minima: bool, whole: bool) -> &'static Tiles {
    const fn tiles<const G: usize, const M: bool, const W: bool>() -> Tiles {
        let narrow = &const { [tile::<G, M, W, 1> as TileFn, tile::<G, M, W, 2>, tile::<G, M, W, 3>] };
        Tiles { narrow, wide: &[], width: 1, rounds: false, many: None }
    }
    static TILES: [Tiles; 5] = [
        tiles::<1, false, false>(),
        tiles::<1, true, false>(),
        tiles::<2, false, false>(),
        tiles::<2, true, false>(),
        tiles::<1, false, true>(),
    ];
    if whole { &TILES[4] } else { &TILES[2 * (groups - 1) + usize::from(minima)] }
}

/// Four products of signed bytes for each lane, added to `sum`.
///
/// # Safety
/// The processor has the dot-product instructions.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot(mut sum: int32x4_t, codes: uint8x16_t, quad: int32x4_t) -> int32x4_t {
    // SAFETY: by contract; it touches its operands only. The intrinsic is not stable in Rust.
    unsafe {
        asm!("sdot {sum:v}.4s, {codes:v}.16b, {quad:v}.16b", sum = inlateout(vreg) sum, codes = in(vreg) codes,
            quad = in(vreg) quad, options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// # Safety
/// As [`TileFn`]: each step is a unit, of activations as `activation.rs` makes it, of weights as `lines.rs` does.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const G: usize, const M: bool, const W: bool, const R: usize>(t: &Tile) {
    // SAFETY: by contract.
    let mut sums: [[float32x4_t; PARTS]; R] = unsafe { load_sums(t) };
    let (mut a, mut w) = (t.a, t.w);
    for _ in 0..t.steps {
        let scales = w.wrapping_add(size_of::<Codes>()).cast::<f32>();
        for group in 0..G {
            let part = |r: usize| a.wrapping_add(r * t.a_stride + UNIT).cast::<Group>().wrapping_add(group);
            let mut exact = [[vdupq_n_s32(0); PARTS]; R];
            // Codes that use all bits are given a sign, and then have no offset to make up for.
            if !M && !W {
                for (r, row) in exact.iter_mut().enumerate() {
                    // SAFETY: each of R rows has `steps` records, which end with their groups.
                    *row = [vdupq_n_s32(unsafe { (*part(r)).start }); PARTS];
                }
            }
            for line in group * LINES / G..(group + 1) * LINES / G {
                for lanes in 0..PARTS {
                    let from = w.wrapping_add(line * LINE + lanes * LANES * QUAD);
                    // SAFETY: the strip has `steps` records, which start with their lines.
                    let mut codes = unsafe { vld1q_u8(from) };
                    if W {
                        codes = veorq_u8(codes, vdupq_n_u8(0x80));
                    }
                    for (r, row) in exact.iter_mut().enumerate() {
                        let quad = a.wrapping_add(r * t.a_stride + line * QUAD).cast::<i32>();
                        // SAFETY: a record of activations starts with its codes; the contract names the instructions.
                        row[lanes] = unsafe { dot(row[lanes], codes, vdupq_n_s32(quad.read_unaligned())) };
                    }
                }
            }
            for lanes in 0..PARTS {
                // SAFETY: a record ends with the scales of all groups, then the minima if there are any.
                let at = |i: usize| unsafe { vld1q_f32(scales.wrapping_add(i * STRIP + lanes * LANES)) };
                let scale = at(group);
                for (r, row) in sums.iter_mut().enumerate() {
                    // SAFETY: as for the start of the integer sums.
                    let Group { scale: own, sum, .. } = unsafe { *part(r) };
                    let factor = vmulq_n_f32(scale, own);
                    row[lanes] = vfmaq_f32(row[lanes], vcvtq_f32_s32(exact[r][lanes]), factor);
                    if M {
                        row[lanes] = vfmaq_n_f32(row[lanes], at(G + group), sum);
                    }
                }
            }
        }
        a = a.wrapping_add(UNIT + G * size_of::<Group>());
        w = w.wrapping_add(size_of::<Codes>() + G * (1 + M as usize) * size_of::<[f32; STRIP]>());
    }
    // SAFETY: by contract.
    unsafe { store_sums(t, &sums) };
}
