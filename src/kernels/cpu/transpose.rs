//! Turns part of a packed matrix around, into strips of the same layout that run along the output dimension.
//!
//! The gradient of the input sums over outputs, and with transposed strips the same tiles compute it. It keeps
//! nothing: a block is transposed into working memory each time it is needed.

use std::ops::Range;

use super::tile::STRIP;
use super::{Element, Isa, PackedMatrix};

/// Writes steps `block` of strip `strip` of the transposed matrix to `to`.
///
/// A transposed strip has one lane for each of [`STRIP`] inputs; its steps run over the outputs, one or two at a time as
/// the element type has it. Lanes and values beyond the matrix become zero.
///
/// # Safety
/// `isa` is available; `to` is writable for the steps of `block`, which starts at a multiple of [`STRIP`].
pub(super) unsafe fn transpose_strip(
    matrix: &PackedMatrix,
    _isa: Isa,
    strip: usize,
    block: Range<usize>,
    to: *mut u8,
) {
    // SAFETY: by contract, and the element type gives the size of a step.
    unsafe {
        match matrix.element() {
            Element::F32 => portable::<u32, 1>(matrix, strip, block, to.cast()),
            Element::Bf16 => portable::<u16, 2>(matrix, strip, block, to.cast()),
            Element::F16 => portable::<u16, 1>(matrix, strip, block, to.cast()),
        }
    }
}

/// # Safety
/// As [`transpose_strip`]; `T` has the size of the elements, `V` values make a step.
unsafe fn portable<T: Copy + Default, const V: usize>(
    matrix: &PackedMatrix,
    strip: usize,
    block: Range<usize>,
    to: *mut T,
) {
    let (out, inn) = matrix.shape();
    for (index, step) in block.enumerate() {
        for lane in 0..STRIP {
            for value in 0..V {
                let (row, column) = (step * V + value, strip * STRIP + lane);
                let mut element = T::default();
                if row < out && column < inn {
                    let line = matrix.step_ptr(row / STRIP, column / V).cast::<T>();
                    // SAFETY: a step has STRIP lanes of V values, and this one is inside of the matrix.
                    element = unsafe { *line.add(row % STRIP * V + column % V) };
                }
                // SAFETY: by contract.
                unsafe { *to.add((index * STRIP + lane) * V + value) = element };
            }
        }
    }
}
