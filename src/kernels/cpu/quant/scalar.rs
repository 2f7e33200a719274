//! Register tiles for eight-bit products in plain Rust, and the reference for all others.

use super::activation::Group;
use super::format::UNIT;
use super::lines::{Codes, LINES, QUAD};
use crate::kernels::cpu::tile::{STRIP, Tile, Tiles, WIDE};

/// The tiles for formats with `groups` scales in a unit, with or without `minima`.
pub(super) fn tiles(groups: usize, minima: bool) -> &'static Tiles {
    const fn narrow<const G: usize, const M: bool>() -> Tiles {
        Tiles {
            narrow: &[tile::<G, M, 1>, tile::<G, M, 2>],
            wide: &[],
            width: WIDE,
            rounds: false,
            many: None,
        }
    }
    static TILES: [Tiles; 4] =
        [narrow::<1, false>(), narrow::<1, true>(), narrow::<2, false>(), narrow::<2, true>()];
    &TILES[2 * (groups - 1) + usize::from(minima)]
}

/// # Safety
/// As [`super::super::tile::TileFn`]: each step is a unit, of activations as `activation.rs` makes it, of weights as `lines.rs` does.
unsafe fn tile<const G: usize, const M: bool, const R: usize>(t: &Tile) {
    let mut sums = [[0f32; STRIP]; R];
    for (r, row) in sums.iter_mut().enumerate() {
        if !t.first {
            for (lane, sum) in row.iter_mut().enumerate().take(t.cols) {
                // SAFETY: `c` is readable over R rows of `cols`.
                *sum = unsafe { *t.c.add(r * t.c_stride + lane) };
            }
        }
    }
    let (mut a, mut w) = (t.a, t.w);
    for _ in 0..t.steps {
        // SAFETY: the strip has `steps` records.
        let codes = unsafe { &*w.cast::<Codes>() };
        let scales = w.wrapping_add(size_of::<Codes>()).cast::<[f32; STRIP]>();
        for (r, row) in sums.iter_mut().enumerate() {
            let a = a.wrapping_add(r * t.a_stride);
            // SAFETY: each row has `steps` records.
            let quads = unsafe { &*a.cast::<[[i8; QUAD]; LINES]>() };
            for group in 0..G {
                // SAFETY: as above; the groups follow the codes.
                let part = unsafe { *a.wrapping_add(UNIT).cast::<Group>().add(group) };
                let mut exact = [part.start; STRIP];
                for line in group * LINES / G..(group + 1) * LINES / G {
                    for (sum, codes) in exact.iter_mut().zip(codes[line].as_chunks::<QUAD>().0) {
                        *sum +=
                            (0..QUAD).map(|i| i32::from(codes[i]) * i32::from(quads[line][i])).sum::<i32>();
                    }
                }
                // SAFETY: the record ends with the scales of all groups, then the minima if there are any.
                let scale = unsafe { &*scales.add(group) };
                for lane in 0..STRIP {
                    row[lane] += exact[lane] as f32 * (scale[lane] * part.scale);
                }
                if M {
                    // SAFETY: as above.
                    let minimum = unsafe { &*scales.add(G + group) };
                    for lane in 0..STRIP {
                        row[lane] += minimum[lane] * part.sum;
                    }
                }
            }
        }
        a = a.wrapping_add(UNIT + G * size_of::<Group>());
        w = w.wrapping_add(size_of::<Codes>() + G * (1 + usize::from(M)) * size_of::<[f32; STRIP]>());
    }
    for (r, row) in sums.iter().enumerate() {
        for (lane, sum) in row.iter().enumerate().take(t.cols) {
            // SAFETY: `bias` has `cols` values unless null; `c` is writable over R rows of `cols`.
            unsafe {
                let bias = if t.bias.is_null() { 0.0 } else { *t.bias.add(lane) };
                *t.c.add(r * t.c_stride + lane) = sum + bias;
            }
        }
    }
}
