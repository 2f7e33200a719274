//! Register tiles in plain Rust, for processors without a file of their own, and the reference for all others.
//!
//! The sixteen lanes of a strip are written as arrays, which compilers turn into whatever vectors the target has.

use half::f16;

use super::Element;
use super::tile::{STRIP, Tile, TileFn, Tiles, WIDE};

const TILES: [[TileFn; 4]; 3] = [
    [tile::<0, 1>, tile::<0, 2>, tile::<0, 3>, tile::<0, 4>],
    [tile::<1, 1>, tile::<1, 2>, tile::<1, 3>, tile::<1, 4>],
    [tile::<2, 1>, tile::<2, 2>, tile::<2, 3>, tile::<2, 4>],
];

/// Tiles for f32 weights.
pub(super) static F32: Tiles = Tiles { narrow: &TILES[0], wide: &[], width: WIDE, rounds: false, many: None };
/// Tiles for bf16 weights.
pub(super) static BF16: Tiles =
    Tiles { narrow: &TILES[1], wide: &[], width: WIDE, rounds: false, many: None };
/// Tiles for f16 weights.
pub(super) static F16: Tiles = Tiles { narrow: &TILES[2], wide: &[], width: WIDE, rounds: false, many: None };

/// # Safety
/// As [`TileFn`]; `E` is the position of the element type in [`Element::ALL`].
unsafe fn tile<const E: usize, const R: usize>(t: &Tile) {
    let element = Element::ALL[E];
    let mut sums = [[0f32; STRIP]; R];
    for (r, row) in sums.iter_mut().enumerate() {
        if !t.first {
            for (lane, sum) in row.iter_mut().enumerate().take(t.cols) {
                // SAFETY: `c` is readable over R rows of `cols`.
                *sum = unsafe { *t.c.add(r * t.c_stride + lane) };
            }
        }
    }
    let values = element.step_values();
    for step in 0..t.steps {
        // SAFETY: the strip has `steps` steps.
        let line = unsafe { t.w.add(step * element.step_bytes()) };
        for value in 0..values {
            // SAFETY: `line` is one whole step.
            let weights: [f32; STRIP] =
                std::array::from_fn(|lane| unsafe { weight(element, line, lane, value) });
            for (r, row) in sums.iter_mut().enumerate() {
                // SAFETY: each row has `steps * values` activations.
                let a = unsafe { *t.a.add(r * t.a_stride).cast::<f32>().add(step * values + value) };
                for (sum, w) in row.iter_mut().zip(weights) {
                    *sum += a * w;
                }
            }
        }
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

/// # Safety
/// `line` starts a step of `element`, `lane < STRIP`, `value < element.step_values()`.
#[inline(always)]
unsafe fn weight(element: Element, line: *const u8, lane: usize, value: usize) -> f32 {
    // SAFETY: by contract; steps are aligned to their own elements.
    unsafe {
        match element {
            Element::F32 => *line.cast::<f32>().add(lane),
            Element::Bf16 => f32::from_bits(u32::from(*line.cast::<u16>().add(2 * lane + value)) << 16),
            Element::F16 => (*line.cast::<f16>().add(lane)).to_f32(),
        }
    }
}
