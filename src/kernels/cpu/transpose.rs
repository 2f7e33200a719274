//! Turns part of a packed matrix around, into strips of the same layout that run along the output dimension.
//!
//! The gradient of the input sums over outputs, and with transposed strips the same tiles compute it. It keeps
//! nothing: a block is transposed into working memory each time it is needed.

use std::ops::Range;

use super::tile::STRIP;
use super::{Element, PackedMatrix};

/// Inputs times outputs that are turned at once: one strip by as many inputs.
const SQUARE: usize = STRIP * STRIP;

/// Writes steps `block` of strip `strip` of the transposed matrix to `to`.
///
/// A transposed strip has one lane for each of [`STRIP`] inputs; its steps run over the outputs, one or two at a time as
/// the element type has it. Lanes and values beyond the matrix become zero.
///
/// # Safety
/// `to` is writable for the steps of `block`, rounded up to a multiple of [`STRIP`]; `block` starts at such a multiple.
pub(super) unsafe fn transpose_strip(matrix: &PackedMatrix, strip: usize, block: Range<usize>, to: *mut u8) {
    // SAFETY: by contract; the first parameter has the size of what one lane holds in a step.
    unsafe {
        match matrix.element() {
            Element::F32 => squares(matrix, strip, block, to, turn::<u32>),
            Element::Bf16 => squares(matrix, strip, block, to, turn_pairs),
            Element::F16 => squares(matrix, strip, block, to, turn::<u16>),
        }
    }
}

/// Turns one square after the other; `T` is what a lane holds in a step, `N` the number of those in a square.
///
/// # Safety
/// As [`transpose_strip`], for a matrix with these sizes.
unsafe fn squares<T: Copy + Default, const N: usize>(
    matrix: &PackedMatrix,
    strip: usize,
    block: Range<usize>,
    to: *mut u8,
    turn: fn(&[T; N], &mut [T; N]),
) {
    let values = matrix.element().step_values();
    let side = STRIP / values;
    let first = strip * side;
    let whole = first + side <= matrix.steps();
    for (index, from) in (block.start / side..block.end.div_ceil(side)).enumerate() {
        // SAFETY: whole squares fit by contract, and all types here allow every bit pattern.
        let to = unsafe { &mut *to.cast::<[T; N]>().add(index) };
        let source = matrix.step_ptr(from, first);
        if whole {
            // SAFETY: the strip has these steps.
            turn(unsafe { &*source.cast::<[T; N]>() }, to);
        } else {
            let mut edge = [T::default(); N];
            let lanes = (matrix.steps() - first) * STRIP;
            // SAFETY: the strip has the steps that are copied.
            edge[..lanes].copy_from_slice(unsafe { std::slice::from_raw_parts(source.cast::<T>(), lanes) });
            turn(&edge, to);
        }
    }
}

/// `to[lane][step] = from[step][lane]`.
fn turn<T: Copy>(from: &[T; SQUARE], to: &mut [T; SQUARE]) {
    for (lane, line) in to.chunks_exact_mut(STRIP).enumerate() {
        for (step, value) in line.iter_mut().enumerate() {
            *value = from[step * STRIP + lane];
        }
    }
}

/// The same where a lane holds a pair of inputs in `from`, a pair of outputs in `to`.
fn turn_pairs(from: &[u32; SQUARE / 2], to: &mut [u32; SQUARE / 2]) {
    for (pair, line) in to.chunks_exact_mut(STRIP).enumerate() {
        for (step, lanes) in line.chunks_exact_mut(2).enumerate() {
            let (even, odd) = (from[step * STRIP + 2 * pair], from[step * STRIP + 2 * pair + 1]);
            lanes[0] = even & 0xffff | odd << 16;
            lanes[1] = even >> 16 | odd & 0xffff_0000;
        }
    }
}
