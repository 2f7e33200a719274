//! Register tiles for eight-bit products with AVX-512 VNNI: 6 × 32 outputs, 12 registers of integer and 12 of f32 sums.

use std::arch::x86_64::*;

use super::activation::Group;
use super::format::UNIT;
use super::lines::{Codes, LINE, LINES, QUAD};
use crate::kernels::cpu::avx512::{load_sums, store_sums};
use crate::kernels::cpu::tile::{STRIP, Tile, TileFn, Tiles};

/// The tiles for formats with `groups` scales in a unit, with or without `minima`.
pub(super) fn tiles(groups: usize, minima: bool) -> &'static Tiles {
    const fn tiles<const G: usize, const M: bool>() -> Tiles {
        Tiles {
            narrow: &const { row::<G, M, 1>() },
            wide: &const { row::<G, M, 2>() },
            width: 2,
            rounds: false,
            many: None,
        }
    }
    const fn row<const G: usize, const M: bool, const S: usize>() -> [TileFn; 6] {
        [
            tile::<G, M, 1, S>,
            tile::<G, M, 2, S>,
            tile::<G, M, 3, S>,
            tile::<G, M, 4, S>,
            tile::<G, M, 5, S>,
            tile::<G, M, 6, S>,
        ]
    }
    static TILES: [Tiles; 4] =
        [tiles::<1, false>(), tiles::<1, true>(), tiles::<2, false>(), tiles::<2, true>()];
    &TILES[2 * (groups - 1) + usize::from(minima)]
}

/// # Safety
/// As [`TileFn`]: each step is a unit, of activations as `activation.rs` makes it, of weights as `lines.rs` does.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const G: usize, const M: bool, const R: usize, const S: usize>(t: &Tile) {
    // SAFETY: by contract.
    let mut sums: [[__m512; S]; R] = unsafe { load_sums(t) };
    let (mut a, mut w) = (t.a, t.w);
    for _ in 0..t.steps {
        for group in 0..G {
            let part = |r: usize| a.wrapping_add(r * t.a_stride + UNIT).cast::<Group>().wrapping_add(group);
            let mut exact = [[_mm512_setzero_si512(); S]; R];
            if !M {
                for (r, row) in exact.iter_mut().enumerate() {
                    // SAFETY: each of R rows has `steps` records, which end with their groups.
                    *row = [_mm512_set1_epi32(unsafe { (*part(r)).start }); S];
                }
            }
            for line in group * LINES / G..(group + 1) * LINES / G {
                let mut codes = [_mm512_setzero_si512(); S];
                for (s, codes) in codes.iter_mut().enumerate() {
                    // SAFETY: each of S strips has `steps` records, which start with their lines.
                    *codes = unsafe { _mm512_loadu_si512(w.add(s * t.w_stride + line * LINE).cast()) };
                }
                for (r, row) in exact.iter_mut().enumerate() {
                    // SAFETY: a record of activations starts with its codes.
                    let quad = unsafe { a.add(r * t.a_stride + line * QUAD).cast::<i32>().read_unaligned() };
                    for (sum, codes) in row.iter_mut().zip(codes) {
                        *sum = _mm512_dpbusd_epi32(*sum, codes, _mm512_set1_epi32(quad));
                    }
                }
            }
            for s in 0..S {
                let scales = w.wrapping_add(s * t.w_stride + size_of::<Codes>()).cast::<f32>();
                // SAFETY: a record ends with the scales of all groups, then the minima if there are any.
                let scale = unsafe { _mm512_loadu_ps(scales.add(group * STRIP)) };
                for (r, row) in sums.iter_mut().enumerate() {
                    // SAFETY: as for the start of the integer sums.
                    let factor = _mm512_mul_ps(scale, _mm512_set1_ps(unsafe { (*part(r)).scale }));
                    row[s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact[r][s]), factor, row[s]);
                }
                if M {
                    // SAFETY: as for the scales.
                    let minimum = unsafe { _mm512_loadu_ps(scales.add((G + group) * STRIP)) };
                    for (r, row) in sums.iter_mut().enumerate() {
                        // SAFETY: as for the start of the integer sums.
                        row[s] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(unsafe { (*part(r)).sum }), row[s]);
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
