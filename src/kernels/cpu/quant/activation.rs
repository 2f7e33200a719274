//! Activations in eight bits, quantised in blocks as ggml does for each weight format.
//!
//! A row becomes one record per unit of 32 values: the codes, then for each group the scale, the start of the integer
//! sum, and the factor of the minima. A value that is not finite makes its block's scale NaN, so that it shows in the
//! outputs of its row instead of vanishing in a code. Source: the reference quantisers Q8_0, Q8_1 and Q8_K of ggml.

use super::format::{BlockFormat, LARGEST, Partner, UNIT};
use crate::kernels::cpu::Isa;

/// What a group of activations is multiplied with.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Group {
    /// The scale of the codes.
    pub(super) scale: f32,
    /// Minus the weights' offset times the sum of the codes: where integer sums start.
    pub(super) start: i32,
    /// The sum of the values, for the weights' minima.
    pub(super) sum: f32,
    /// Keeps records a multiple of 16 bytes.
    pad: u32,
}

impl BlockFormat {
    /// Bytes of a unit of activations.
    pub(super) const fn activation_bytes(self) -> usize {
        UNIT + self.layout().groups * size_of::<Group>()
    }
}

/// Quantises a row into records.
///
/// # Safety
/// The processor has the function's instruction set; `x` is whole blocks; `to` is writable for their records and aligned
/// to 4 bytes.
pub(super) type QuantizeFn = unsafe fn(format: BlockFormat, x: &[f32], to: *mut u8);

/// The function for `isa`.
pub(super) fn quantizer(isa: Isa) -> QuantizeFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => avx512,
        _ => portable,
    }
}

/// # Safety
/// As [`QuantizeFn`].
unsafe fn portable(format: BlockFormat, x: &[f32], to: *mut u8) {
    // SAFETY: by contract.
    unsafe { quantize(format, x, to) }
}

/// # Safety
/// As [`QuantizeFn`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn avx2(format: BlockFormat, x: &[f32], to: *mut u8) {
    // SAFETY: by contract.
    unsafe { quantize(format, x, to) }
}

/// # Safety
/// As [`QuantizeFn`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512(format: BlockFormat, x: &[f32], to: *mut u8) {
    // SAFETY: by contract.
    unsafe { quantize(format, x, to) }
}

/// # Safety
/// As [`QuantizeFn`].
#[inline(always)]
unsafe fn quantize(format: BlockFormat, x: &[f32], to: *mut u8) {
    let layout = format.layout();
    let groups = layout.groups;
    let mut unit = 0;
    let mut put = |codes: &[i8; UNIT], scale: f32, d: f32| {
        let record = to.wrapping_add(unit * format.activation_bytes());
        // SAFETY: by contract; a record starts with its codes.
        unsafe { *record.cast::<[i8; UNIT]>() = *codes };
        for group in 0..groups {
            let part = &codes[group * UNIT / groups..(group + 1) * UNIT / groups];
            let total: i32 = part.iter().map(|code| i32::from(*code)).sum();
            let sum = match layout.partner {
                Partner::Q8_1 => through_half(d * total as f32),
                _ => scale * total as f32,
            };
            let start = -i32::from(layout.offset) * total;
            let at = record.wrapping_add(UNIT).cast::<Group>().wrapping_add(group);
            // SAFETY: the groups follow the codes.
            unsafe { *at = Group { scale, start, sum, pad: 0 } };
        }
        unit += 1;
    };
    match layout.partner {
        Partner::Q8_0 | Partner::Q8_1 => {
            for block in x.as_chunks::<UNIT>().0 {
                let d = largest(block) / 127.0;
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                let mut codes = [0; UNIT];
                for (code, value) in codes.iter_mut().zip(block) {
                    *code = round_away(value * inverse) as i8;
                }
                put(&codes, through_half(d) + poison(block), d);
            }
        }
        Partner::Q8K => {
            for block in x.as_chunks::<LARGEST>().0 {
                let most = largest(block);
                // The sign is that of the first value that is so large.
                let most = block.iter().copied().find(|value| value.abs() == most).unwrap_or(0.0);
                let inverse = if most == 0.0 { 0.0 } else { -127.0 / most };
                let scale = if most == 0.0 { 0.0 } else { 1.0 / inverse } + poison(block);
                for part in block.as_chunks::<UNIT>().0 {
                    let mut codes = [0; UNIT];
                    for (code, value) in codes.iter_mut().zip(part) {
                        *code = round_even(value * inverse).min(127) as i8;
                    }
                    put(&codes, scale, scale);
                }
            }
        }
    }
}

/// The largest magnitude; NaN is passed over.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for part in x.as_chunks::<16>().0 {
        for (most, value) in lanes.iter_mut().zip(part) {
            let magnitude = value.abs();
            *most = if magnitude > *most { magnitude } else { *most };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// 0, or NaN where a value is not finite.
#[inline(always)]
fn poison(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for part in x.as_chunks::<16>().0 {
        for (lane, value) in lanes.iter_mut().zip(part) {
            *lane += value * 0.0;
        }
    }
    lanes.into_iter().sum()
}

/// Adding it to a small number leaves the nearest integer in the low bits, halves rounded to even.
const ROUND: f32 = (3 << 22) as f32;

/// To the nearest integer, halves to even, for magnitudes below 2^22; anything for other numbers.
#[inline(always)]
fn round_even(x: f32) -> i32 {
    (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// To the nearest integer, halves away from zero, for magnitudes below 2^22; anything for other numbers.
#[inline(always)]
fn round_away(x: f32) -> i32 {
    let even = (x + ROUND) - ROUND;
    // A half that went towards zero is half a unit further from zero than its rounded number.
    let short = (x - even) * if x < 0.0 { -1.0 } else { 1.0 } == 0.5;
    let away = if x < 0.0 { -1 } else { 1 };
    round_even(x) + if short { away } else { 0 }
}

/// Rounded to f16, to nearest even, and back.
#[inline(always)]
fn through_half(x: f32) -> f32 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    // Thirteen bits less, with a carry into the exponent where it is due.
    let normal = (magnitude + 0xfff + (magnitude >> 13 & 1)) & !0x1fff;
    // Below the smallest normal f16 a unit is 2^-24: 2^-1 has as many bits above it as an f32 keeps.
    let small = ((f32::from_bits(magnitude) + 0.5) - 0.5).to_bits();
    let rounded = if magnitude < 113 << 23 { small } else { normal };
    let finite = if rounded >= (127 + 16) << 23 { f32::INFINITY.to_bits() } else { rounded };
    let all = if magnitude > f32::INFINITY.to_bits() { magnitude } else { finite };
    f32::from_bits(all | x.to_bits() & 0x8000_0000)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn rounding_is_that_of_the_references() {
        for i in -4000..4000 {
            let x = i as f32 / 16.0;
            assert_eq!(round_away(x) as f32, x.round(), "{x}");
            assert_eq!(round_even(x) as f32, x.round_ties_even(), "{x}");
        }
        for x in [0.49999997f32, 0.5, 0.0, 126.49999, 126.5, 2.5000002, 4194303.0] {
            assert_eq!(round_away(x) as f32, x.round(), "{x}");
            assert_eq!(round_away(-x) as f32, (-x).round(), "{x}");
        }
    }

    #[test]
    fn halves_are_those_of_the_f16_type() {
        let near = |bits: u16| {
            (-3..=3).map(move |step| f16::from_bits(bits).to_f32().to_bits().wrapping_add_signed(step))
        };
        let between = |bits: u16| {
            let middle =
                (f16::from_bits(bits).to_f64() + f16::from_bits(bits.wrapping_add(1)).to_f64()) / 2.0;
            (-1..=1).map(move |step| (middle as f32).to_bits().wrapping_add_signed(step))
        };
        for bits in (0..=u16::MAX).flat_map(|bits| near(bits).chain(between(bits))) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (through_half(x), f16::from_f32(x).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{x:e}: {ours:e} {theirs:e}"
            );
        }
    }
}
