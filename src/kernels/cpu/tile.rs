//! What a register tile is given, and the table of tiles that each instruction set offers.
//!
//! The packed layout: rows of the weight in strips of [`STRIP`]; in a strip, step after step along the input
//! dimension; in a step, [`STRIP`] lanes of one f32, one f16, or a pair of bf16 values. A step of a strip is thus one
//! cache line for f32 and bf16, half a line for f16.

use super::{Element, Isa};

/// Weight rows (output columns) side by side in a strip.
pub(super) const STRIP: usize = 16;

/// Strips in a wide tile of plain values, and those that always go to the same task.
pub(super) const WIDE: usize = 4;

/// One call of a register tile: `rows × cols` outputs, over some steps of the inner dimension.
///
/// The number of rows and of strips is fixed by the function that is called.
pub(super) struct Tile {
    /// The first activation of the first row: f32, or bf16 where [`Tiles::rounds`].
    pub(super) a: *const u8,
    /// Bytes from one row of activations to the next.
    pub(super) a_stride: usize,
    /// The first step of the first strip.
    pub(super) w: *const u8,
    /// Bytes from one strip to the next.
    pub(super) w_stride: usize,
    /// Steps to take.
    pub(super) steps: usize,
    /// The first output of the first row.
    pub(super) c: *mut f32,
    /// Elements from one row of outputs to the next.
    pub(super) c_stride: usize,
    /// Outputs per row, `1..=16 * strips`, more than `16 * (strips - 1)`.
    pub(super) cols: usize,
    /// Whether to start from zero instead of the sums in `c`.
    pub(super) first: bool,
    /// Null, or what to add to each row of sums before it is stored.
    pub(super) bias: *const f32,
}

/// Computes one tile.
///
/// # Safety
/// The processor has the function's instruction set. `a`, `w` and `bias` (unless null) can be read, and `c` read and
/// written, over the extents that the fields and the function's rows and strips give; no other thread touches that
/// part of `c`.
pub(super) type TileFn = unsafe fn(&Tile);

/// Converts the steps of a strip to f32, one step for each value along the input dimension.
///
/// # Safety
/// The processor has the function's instruction set; the steps can be read and the converted ones written.
pub(super) type WidenFn = unsafe fn(from: *const u8, steps: usize, to: *mut f32);

/// The tiles of one element type on one instruction set.
pub(super) struct Tiles {
    /// One strip wide; entry `i` has `i + 1` rows.
    pub(super) narrow: &'static [TileFn],
    /// `width` strips wide; entry `i` has `i + 1` rows. May be shorter.
    pub(super) wide: &'static [TileFn],
    /// Strips of a wide tile, a divisor of [`WIDE`].
    pub(super) width: usize,
    /// Whether activations are bf16, in rows padded to an even length with zeros.
    pub(super) rounds: bool,
    /// For many rows: how to convert weights to f32 once for all of them, and the tiles to use then. Same results.
    pub(super) many: Option<(WidenFn, &'static Tiles)>,
}

/// The tiles for weights of `element` on `isa`.
pub(super) fn tiles(element: Element, isa: Isa) -> &'static Tiles {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if element == Element::Bf16 => &super::bf16_avx512::TILES,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => match element {
            Element::F32 => &super::avx512::F32,
            Element::Bf16 => &super::avx512::BF16,
            Element::F16 => &super::avx512::F16,
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => match element {
            Element::F32 => &super::avx2::F32,
            Element::Bf16 => &super::avx2::BF16,
            Element::F16 => &super::avx2::F16,
        },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => match element {
            Element::F32 => &super::neon::F32,
            Element::Bf16 => &super::neon::BF16,
            Element::F16 => &super::neon::F16,
        },
        _ => match element {
            Element::F32 => &super::scalar::F32,
            Element::Bf16 => &super::scalar::BF16,
            Element::F16 => &super::scalar::F16,
        },
    }
}

/// Asks for the cache line at `address`, which may be anywhere, without waiting for it.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, which never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
