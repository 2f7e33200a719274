//! Register tiles for eight-bit products with AVX2, and with AVX-VNNI: 3 × 16 outputs, integer sums beside f32 sums.
//!
//! Integer sums are exact in both, and the rest is the arithmetic of `vnni.rs`, so all three give the same bits.

use std::arch::x86_64::*;

use super::activation::Group;
use super::format::UNIT;
use super::lines::{Codes, LINE, LINES, QUAD};
use crate::kernels::cpu::avx2::{load_sums, store_sums};
use crate::kernels::cpu::tile::{STRIP, Tile, TileFn, Tiles};

/// Vectors of a strip.
const HALVES: usize = 2;
/// Lanes of a vector.
const LANES: usize = STRIP / HALVES;

/// Four products of unsigned and signed bytes for each lane, added to `sum`.
///
/// Two products of codes below 128 and of activations fit into sixteen bits; codes that use all bits are given their
/// sign first.
#[inline]
#[target_feature(enable = "avx2")]
fn plain_dot<const SIGNED: bool>(sum: __m256i, codes: __m256i, quad: __m256i) -> __m256i {
    let pairs = if SIGNED {
        let codes = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
        _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(quad, codes))
    } else {
        _mm256_maddubs_epi16(codes, quad)
    };
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// The same in one instruction.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn vnni_dot<const SIGNED: bool>(sum: __m256i, codes: __m256i, quad: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, codes, quad)
}

macro_rules! family {
    ($module:ident, $features:literal, $dot:ident, $signs:literal) => {
        pub(super) mod $module {
            use super::*;

            /// The tiles for formats with `groups` scales in a unit, with or without `minima`; `whole` where codes use
            /// all bits of a byte.
            pub(in super::super) fn tiles(groups: usize, minima: bool, whole: bool) -> &'static Tiles {
                const fn tiles<const G: usize, const M: bool, const W: bool>() -> Tiles {
                    let narrow =
                        &const { [tile::<G, M, W, 1> as TileFn, tile::<G, M, W, 2>, tile::<G, M, W, 3>] };
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

            /// # Safety
            /// As [`TileFn`]: each step is a unit, of activations as `activation.rs` makes it, of weights as `lines.rs`
            /// does.
            #[target_feature(enable = $features)]
            unsafe fn tile<const G: usize, const M: bool, const W: bool, const R: usize>(t: &Tile) {
                // SAFETY: by contract.
                let mut sums: [[__m256; HALVES]; R] = unsafe { load_sums(t) };
                let (mut a, mut w) = (t.a, t.w);
                for _ in 0..t.steps {
                    let scales = w.wrapping_add(size_of::<Codes>()).cast::<f32>();
                    for group in 0..G {
                        let part = |r: usize| {
                            a.wrapping_add(r * t.a_stride + UNIT).cast::<Group>().wrapping_add(group)
                        };
                        let mut exact = [[_mm256_setzero_si256(); HALVES]; R];
                        // Codes with a sign have no offset to make up for.
                        if !M && !(W && $signs) {
                            for (r, row) in exact.iter_mut().enumerate() {
                                // SAFETY: each of R rows has `steps` records, which end with their groups.
                                *row = [_mm256_set1_epi32(unsafe { (*part(r)).start }); HALVES];
                            }
                        }
                        for line in group * LINES / G..(group + 1) * LINES / G {
                            for half in 0..HALVES {
                                let from = w.wrapping_add(line * LINE + half * LANES * QUAD);
                                // SAFETY: the strip has `steps` records, which start with their lines.
                                let codes = unsafe { _mm256_loadu_si256(from.cast()) };
                                for (r, row) in exact.iter_mut().enumerate() {
                                    let quad = a.wrapping_add(r * t.a_stride + line * QUAD).cast::<i32>();
                                    // SAFETY: a record of activations starts with its codes.
                                    let quad = _mm256_set1_epi32(unsafe { quad.read_unaligned() });
                                    row[half] = $dot::<W>(row[half], codes, quad);
                                }
                            }
                        }
                        for half in 0..HALVES {
                            let lanes = |i: usize| {
                                let from = scales.wrapping_add(i * STRIP + half * LANES);
                                // SAFETY: a record ends with the scales of all groups, then the minima if there are any.
                                unsafe { _mm256_loadu_ps(from) }
                            };
                            let scale = lanes(group);
                            for (r, row) in sums.iter_mut().enumerate() {
                                // SAFETY: as for the start of the integer sums.
                                let Group { scale: own, sum, .. } = unsafe { *part(r) };
                                let factor = _mm256_mul_ps(scale, _mm256_set1_ps(own));
                                row[half] =
                                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact[r][half]), factor, row[half]);
                                if M {
                                    row[half] =
                                        _mm256_fmadd_ps(lanes(G + group), _mm256_set1_ps(sum), row[half]);
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
        }
    };
}

family!(plain, "avx2,fma", plain_dot, true);
family!(vnni, "avx2,fma,avxvnni", vnni_dot, false);
