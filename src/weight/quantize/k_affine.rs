//! Blocks of 256 values whose groups have a scale and a minimum: Q2_K, Q4_K and Q5_K.
//!
//! Scales and minima of the groups are themselves whole multiples of two numbers in half precision.

use half::f16;

use super::bits;
use super::search::{Columns, FINE, Steps, affine, columns, positive, whole, within};

/// What sets one of the formats apart.
struct Kind {
    /// The largest quant.
    levels: f32,
    /// The largest scale and minimum of a group.
    scales: f32,
    /// What is tried without an importance.
    steps: Steps,
    /// How much of the mean square lifts the weight of small values where there is an importance.
    lift: f32,
}

const Q2: Kind = Kind {
    levels: 3.0,
    scales: 15.0,
    steps: Steps { first: -0.5, step: 0.1, count: 15, absolute: true },
    lift: 1.0,
};
const Q4: Kind = Kind {
    levels: 15.0,
    scales: 63.0,
    steps: Steps { first: -1.0, step: 0.1, count: 20, absolute: false },
    lift: 2.0,
};
const Q5: Kind = Kind {
    levels: 31.0,
    scales: 63.0,
    steps: Steps { first: -0.5, step: 0.1, count: 15, absolute: false },
    lift: 2.0,
};

/// One block before its bits are put in order.
struct Block<const L: usize> {
    scale: f16,
    minimum: f16,
    scales: [u8; L],
    minima: [u8; L],
    quants: [u8; 256],
}

/// Weights of values where nothing is known of their columns: large values matter more, in Q2_K only they do.
fn plain_weights<const L: usize, const N: usize>(x: &Columns<L, N>, kind: &Kind) -> Columns<L, N> {
    let mut lift = [0.0; L];
    if !kind.steps.absolute {
        for x in x {
            for lane in 0..L {
                lift[lane] += x[lane] * x[lane];
            }
        }
        lift = lift.map(|sum: f32| (sum / N as f32).sqrt());
    }
    let mut weights = [[0.0; L]; N];
    for (weights, x) in weights.iter_mut().zip(x) {
        for lane in 0..L {
            weights[lane] = lift[lane] + x[lane].abs();
        }
    }
    weights
}

/// Each number as a multiple of the largest, in `0..=levels`, and the unit.
fn multiples<const L: usize>(numbers: &[f32; L], levels: f32) -> (f32, [u8; L]) {
    let largest = numbers.iter().fold(0.0f32, |high, x| if *x > high { *x } else { high });
    let factor = if largest > 0.0 { levels / largest } else { 0.0 };
    (largest / levels, numbers.map(|x| within(whole(factor * x), 0.0, levels) as u8))
}

fn encode<const L: usize, const N: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    kind: &Kind,
) -> Block<L> {
    let x: Columns<L, N> = columns(values);
    let (found, (scale, scales), (minimum, minima));
    if let Some(importance) = importance {
        let mean_square = kind.lift * values.iter().fold(0.0, |sum, x| sum + x * x) / 256.0;
        let mut weights: Columns<L, N> = columns(importance);
        let mut sums = [0.0; L];
        for (weights, x) in weights.iter_mut().zip(&x) {
            for lane in 0..L {
                weights[lane] *= (mean_square + x[lane] * x[lane]).sqrt();
                sums[lane] += weights[lane];
            }
        }
        found = affine(&x, &weights, kind.levels, &FINE);
        (scale, scales) = positive(&found.scale, &sums, kind.scales);
        (minimum, minima) = positive(&found.minimum, &sums, kind.scales);
    } else {
        found = affine(&x, &plain_weights(&x, kind), kind.levels, &kind.steps);
        (scale, scales) = multiples(&found.scale, kind.scales);
        (minimum, minima) = multiples(&found.minimum, kind.scales);
    }
    let (scale, minimum) = (f16::from_f32(scale), f16::from_f32(minimum));
    let mut quants = [0; 256];
    for (lane, quants) in quants.chunks_exact_mut(N).enumerate() {
        // The quants once more, for what scale and minimum became.
        let step = scale.to_f32() * f32::from(scales[lane]);
        let below = minimum.to_f32() * f32::from(minima[lane]);
        for (i, quant) in quants.iter_mut().enumerate() {
            let again = within(whole((x[i][lane] + below) / step), 0.0, kind.levels);
            *quant = if step == 0.0 { found.quants[i][lane] } else { again } as u8;
        }
    }
    Block { scale, minimum, scales, minima, quants }
}

/// Scale and minimum of the whole block.
fn put_halves<const L: usize>(block: &Block<L>, out: &mut [u8]) {
    out[..2].copy_from_slice(&block.scale.to_le_bytes());
    out[2..4].copy_from_slice(&block.minimum.to_le_bytes());
}

/// Whole blocks of a row with the importance of their values.
fn blocks<'a>(
    row: &'a [f32],
    importance: Option<&'a [f32]>,
) -> impl Iterator<Item = (&'a [f32], Option<&'a [f32]>)> {
    row.chunks_exact(256).enumerate().map(move |(i, x)| (x, importance.map(|all| &all[256 * i..][..256])))
}

pub(in crate::weight) fn q2_k(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for ((x, importance), out) in blocks(row, importance).zip(out.chunks_exact_mut(84)) {
        let block = encode::<16, 16>(x, importance, &Q2);
        for (i, out) in out[..16].iter_mut().enumerate() {
            *out = block.scales[i] | block.minima[i] << 4;
        }
        bits::crumbs(&block.quants, &mut out[16..80]);
        put_halves(&block, &mut out[80..]);
    }
}

pub(in crate::weight) fn q4_k(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for ((x, importance), out) in blocks(row, importance).zip(out.chunks_exact_mut(144)) {
        let block = encode::<8, 32>(x, importance, &Q4);
        put_halves(&block, out);
        bits::sixes(&block.scales, &block.minima, &mut out[4..16]);
        bits::nibbles(&block.quants, &mut out[16..]);
    }
}

pub(in crate::weight) fn q5_k(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for ((x, importance), out) in blocks(row, importance).zip(out.chunks_exact_mut(176)) {
        let block = encode::<8, 32>(x, importance, &Q5);
        put_halves(&block, out);
        bits::sixes(&block.scales, &block.minima, &mut out[4..16]);
        bits::mask(&block.quants, 4, &mut out[16..48]);
        bits::nibbles(&block.quants, &mut out[48..]);
    }
}
