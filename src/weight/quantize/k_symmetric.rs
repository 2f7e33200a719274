//! Blocks of 256 values in groups of 16 around zero: Q3_K and Q6_K.

use half::f16;

use super::bits;
use super::search::{Columns, NOTHING, columns, descend, symmetric, whole, within};

/// Values of a group, and groups of a block.
const GROUP: usize = 16;

type Groups = Columns<GROUP, GROUP>;

/// The scale of largest magnitude, the first of equals.
fn largest(scales: &[f32; GROUP]) -> f32 {
    scales.iter().fold(0.0f32, |found, x| if x.abs() > found.abs() { *x } else { found })
}

fn squares(x: &Groups) -> Groups {
    x.map(|x| x.map(|x| x * x))
}

/// Quants `0..2 · levels` for what the scales became; those of the search where a scale became 0.
fn settle(x: &Groups, steps: &[f32; GROUP], searched: &Groups, levels: f32) -> [u8; 256] {
    let mut quants = [0; 256];
    for (lane, quants) in quants.chunks_exact_mut(GROUP).enumerate() {
        let step = steps[lane];
        for (i, quant) in quants.iter_mut().enumerate() {
            let again = within(whole(x[i][lane] / step), -levels, levels - 1.0) + levels;
            *quant = if step == 0.0 { searched[i][lane] } else { again } as u8;
        }
    }
    quants
}

pub(in crate::weight) fn q3_k(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (index, (values, out)) in row.chunks_exact(256).zip(out.chunks_exact_mut(110)).enumerate() {
        let x: Groups = columns(values);
        let (searched, scale, scales);
        if let Some(importance) = importance {
            let mean_square = 2.0 * values.iter().fold(0.0, |sum, x| sum + x * x) / 256.0;
            let mut weights: Groups = columns(&importance[256 * index..][..256]);
            let mut sums = [0.0; GROUP];
            for (weights, x) in weights.iter_mut().zip(&x) {
                for lane in 0..GROUP {
                    weights[lane] *= (mean_square + x[lane] * x[lane]).sqrt();
                    sums[lane] += weights[lane];
                }
            }
            searched = symmetric(&x, &weights, 4.0);
            let whole = symmetric::<1, GROUP>(&searched.scale.map(|x| [x]), &sums.map(|x| [x]), 32.0);
            (scale, scales) = (whole.scale[0], whole.quants.map(|q| q[0] as u8));
        } else {
            searched = descend(&x, 4.0);
            let largest = largest(&searched.scale);
            let factor = -32.0 / largest;
            let quant = |x: f32| (within(whole(factor * x), -32.0, 31.0) + 32.0) as u8;
            (scale, scales) = match largest == 0.0 {
                true => (0.0, [0; GROUP]),
                false => (1.0 / factor, searched.scale.map(quant)),
            };
        }
        let scale = f16::from_f32(scale);
        let steps = scales.map(|q| scale.to_f32() * (f32::from(q) - 32.0));
        let quants = settle(&x, &steps, &searched.quants, 4.0);
        bits::mask(&quants, 2, &mut out[..32]);
        bits::crumbs(&quants, &mut out[32..96]);
        bits::six_bit_scales(&scales, &mut out[96..108]);
        out[108..].copy_from_slice(&scale.to_le_bytes());
    }
}

pub(in crate::weight) fn q6_k(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (index, (values, out)) in row.chunks_exact(256).zip(out.chunks_exact_mut(210)).enumerate() {
        let x: Groups = columns(values);
        let weights = match importance {
            Some(importance) => columns(&importance[256 * index..][..256]),
            None => squares(&x),
        };
        let searched = symmetric(&x, &weights, 32.0);
        let largest = largest(&searched.scale);
        if largest.abs() < NOTHING {
            out.fill(0);
            continue;
        }
        let factor = -128.0 / largest;
        let scale = f16::from_f32(1.0 / factor);
        let scales = searched.scale.map(|x| within(whole(factor * x), -128.0, 127.0) as i8);
        let steps = scales.map(|q| scale.to_f32() * f32::from(q));
        let quants = settle(&x, &steps, &searched.quants, 32.0);
        bits::wide_nibbles(&quants, &mut out[..128]);
        bits::crumbs(&quants.map(|q| q >> 4), &mut out[128..192]);
        for (out, scale) in out[192..208].iter_mut().zip(scales) {
            *out = scale as u8;
        }
        out[208..].copy_from_slice(&scale.to_le_bytes());
    }
}
