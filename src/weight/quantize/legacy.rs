//! Formats of 32 values with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL and MXFP4.
//!
//! Without an importance the scale follows from the extreme values; with one it is searched for. Q8_0 and MXFP4 pay no
//! regard to importance.

use half::f16;

use super::super::blocks::{E2M1, NONLINEAR, power};
use super::bits;
use super::search::{self, FINE, NOTHING, columns, whole, within};

/// Values of a block.
const BLOCK: usize = 32;

/// The whole part within `0..=top`; 0 for infinities, which scales too small for a half lead to.
#[inline(always)]
fn truncated(value: f32, top: f32) -> u8 {
    let whole = whole(value);
    within(whole - if whole > value { 1.0 } else { 0.0 }, 0.0, top) as u8
}

/// The reciprocal; 0 of 0.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The first value of the largest magnitude.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |found, x| if x.abs() > found.abs() { *x } else { found })
}

/// How much each value of a block counts, given the mean square that small values are lifted by.
fn weights(x: &[f32], importance: &[f32], mean_square: f32) -> [[f32; 1]; BLOCK] {
    std::array::from_fn(|i| [importance[i] * (mean_square + x[i] * x[i]).sqrt()])
}

fn square_sum(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}

fn put_half(out: &mut [u8], value: f32) {
    out.copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Blocks of a row, their importance, and the bytes of each.
fn each_block(
    (row, importance): (&[f32], Option<&[f32]>),
    out: &mut [u8],
    size: usize,
    one: impl Fn(&[f32], Option<(&[f32], f32)>, &mut [u8]),
) {
    let mean_square = importance.map_or(0.0, |_| square_sum(row) / row.len() as f32);
    for (index, (x, out)) in row.chunks_exact(BLOCK).zip(out.chunks_exact_mut(size)).enumerate() {
        one(x, importance.map(|all| (&all[index * BLOCK..][..BLOCK], mean_square)), out);
    }
}

/// Scale and quants `0..2 · levels` around `levels`.
fn symmetric(x: &[f32], importance: Option<(&[f32], f32)>, levels: f32) -> (f32, [u8; BLOCK]) {
    if let Some((importance, mean_square)) = importance {
        let found = search::symmetric::<1, BLOCK>(&columns(x), &weights(x, importance, mean_square), levels);
        return (found.scale[0], found.quants.map(|q| q[0] as u8));
    }
    let scale = extreme(x) / -levels;
    let factor = inverse(scale);
    let quant = |x: f32| truncated(x * factor + (levels + 0.5), 2.0 * levels - 1.0);
    (scale, std::array::from_fn(|i| quant(x[i])))
}

/// Scale, lowest value and quants `0..=levels`.
fn affine(x: &[f32], importance: Option<(&[f32], f32)>, levels: f32) -> (f32, f32, [u8; BLOCK]) {
    if let Some((importance, mean_square)) = importance {
        let weights = weights(x, importance, mean_square);
        let found = search::affine::<1, BLOCK>(&columns(x), &weights, levels, &FINE);
        return (found.scale[0], -found.minimum[0], found.quants.map(|q| q[0] as u8));
    }
    let (low, high) = x.iter().fold((f32::MAX, -f32::MAX), |(low, high), x| {
        (if *x < low { *x } else { low }, if *x > high { *x } else { high })
    });
    let scale = (high - low) / levels;
    let factor = inverse(scale);
    (scale, low, std::array::from_fn(|i| truncated((x[i] - low) * factor + 0.5, levels)))
}

pub(in crate::weight) fn q4_0(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    each_block((row, importance), out, 18, |x, importance, out| {
        let (scale, quants) = symmetric(x, importance, 8.0);
        put_half(&mut out[..2], scale);
        bits::halves(&quants, &mut out[2..]);
    });
}

pub(in crate::weight) fn q4_1(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    each_block((row, importance), out, 20, |x, importance, out| {
        let (scale, low, quants) = affine(x, importance, 15.0);
        put_half(&mut out[..2], scale);
        put_half(&mut out[2..4], low);
        bits::halves(&quants, &mut out[4..]);
    });
}

pub(in crate::weight) fn q5_0(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    each_block((row, importance), out, 22, |x, importance, out| {
        let (scale, quants) = symmetric(x, importance, 16.0);
        put_half(&mut out[..2], scale);
        out[2..6].copy_from_slice(&bits::fifth(&quants));
        bits::halves(&quants, &mut out[6..]);
    });
}

pub(in crate::weight) fn q5_1(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    each_block((row, importance), out, 24, |x, importance, out| {
        let (scale, low, quants) = affine(x, importance, 31.0);
        put_half(&mut out[..2], scale);
        put_half(&mut out[2..4], low);
        out[4..8].copy_from_slice(&bits::fifth(&quants));
        bits::halves(&quants, &mut out[8..]);
    });
}

pub(in crate::weight) fn q8_0(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    each_block((row, None), out, 34, |x, _, out| {
        let scale = x.iter().fold(0.0f32, |high, x| if x.abs() > high { x.abs() } else { high }) / 127.0;
        let factor = inverse(scale);
        put_half(&mut out[..2], scale);
        for (out, x) in out[2..].iter_mut().zip(x) {
            // To the nearest, halves away from zero.
            let scaled = x * factor;
            let scaled = if scaled.abs() < 128.0 { scaled } else { 0.0 };
            let whole = scaled as i32;
            let rest = scaled - whole as f32;
            *out = (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as u8;
        }
    });
}

/// The index of the value nearest to `x`, the upper of two.
fn nearest_nonlinear(x: f32) -> u8 {
    NONLINEAR.windows(2).map(|pair| u8::from(x + x >= pair[0] + pair[1])).sum()
}

pub(in crate::weight) fn iq4_nl(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    /// Candidate scales to both sides of the first.
    const TRIES: i8 = 7;
    each_block((row, importance), out, 18, |x, importance, out| {
        let mean_square = 2.0 / BLOCK as f32 * square_sum(x);
        let weights: [f32; BLOCK] = match importance {
            Some((importance, _)) => weights(x, importance, mean_square).map(|w| w[0]),
            None => std::array::from_fn(|i| x[i] * x[i]),
        };
        let correlate = |factor: f32| {
            x.iter().zip(&weights).fold((0.0, 0.0), |(qx, qq), (x, w)| {
                let q = NONLINEAR[usize::from(nearest_nonlinear(factor * x))];
                (qx + w * q * x, qq + w * q * q)
            })
        };
        let extreme = extreme(x);
        let mut scale = 0.0;
        if extreme.abs() >= NOTHING {
            let first = 1.0 / (-extreme / NONLINEAR[0]);
            let (qx, qq) = correlate(first);
            scale = if qq > 0.0 { qx / qq } else { 0.0 };
            let mut best = scale * qx;
            for step in -TRIES..=TRIES {
                let (qx, qq) = correlate((f32::from(step) + NONLINEAR[0]) / extreme);
                if qq > 0.0 && qx * qx > best * qq {
                    scale = qx / qq;
                    best = scale * qx;
                }
            }
        }
        let factor = inverse(scale);
        let quants: [u8; BLOCK] = std::array::from_fn(|i| nearest_nonlinear(factor * x[i]));
        put_half(&mut out[..2], scale);
        bits::halves(&quants, &mut out[2..]);
    });
}

pub(in crate::weight) fn mxfp4(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    each_block((row, None), out, 17, |x, _, out| {
        let extreme = extreme(x).abs();
        // The largest value of the format is 6: the power of two below the extreme becomes 4.
        let exponent = f64::from(extreme).log2() as f32;
        out[0] = if extreme > 0.0 { (exponent.floor() + 125.0) as u8 } else { 0 };
        let scale = power(out[0]);
        let quants: [u8; BLOCK] = std::array::from_fn(|i| {
            let (mut nearest, mut least) = (0, f32::INFINITY);
            for (index, q) in E2M1.iter().enumerate() {
                let off = (q * scale - x[i]).abs();
                (nearest, least) = if off < least { (index, off) } else { (nearest, least) };
            }
            nearest as u8
        });
        bits::halves(&quants, &mut out[1..]);
    });
}
