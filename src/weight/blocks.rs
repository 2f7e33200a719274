//! The block formats of ggml, decoded one block at a time in plain Rust.
//!
//! It defines what the bytes of a format mean; products have kernels of their own, which are tested against this.
//! Layouts: <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.

use half::f16;

/// Decodes one block: its bytes, and room for its values.
pub(super) type Decode = fn(&[u8], &mut [f32]);

/// The 16 values of IQ4_NL.
pub(super) const NONLINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// The 16 values of a four-bit float with two exponent bits, doubled.
pub(super) const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn signed(byte: u8) -> f32 {
    f32::from(byte as i8)
}

/// Low halves of the 16 bytes first, then the high halves.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    for (index, byte) in bytes.iter().enumerate() {
        out[index] = value(index, byte & 15);
        out[index + 16] = value(index + 16, byte >> 4);
    }
}

pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    nibbles(&block[2..18], out, |_, q| (f32::from(q) - 8.0) * d);
}

pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..20], out, |_, q| f32::from(q) * d + m);
}

pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half(block, 0), bits(block, 2));
    nibbles(&block[6..22], out, |i, q| (f32::from(q | ((high >> i) as u8 & 1) << 4) - 16.0) * d);
}

pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, high) = (half(block, 0), half(block, 2), bits(block, 4));
    nibbles(&block[8..24], out, |i, q| f32::from(q | ((high >> i) as u8 & 1) << 4) * d + m);
}

pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (value, byte) in out.iter_mut().zip(&block[2..34]) {
        *value = signed(*byte) * d;
    }
}

pub(super) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    nibbles(&block[2..18], out, |_, q| NONLINEAR[usize::from(q)] * d);
}

/// Half of 2^(e - 127), which makes up for the doubled table.
pub(super) fn power(exponent: u8) -> f32 {
    let e = u32::from(exponent);
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

pub(super) fn mxfp4(block: &[u8], out: &mut [f32]) {
    let d = power(block[0]);
    nibbles(&block[1..17], out, |_, q| E2M1[usize::from(q)] * d);
}

/// Two-bit quants of 256 values: those of 32 bytes serve four runs of 32 values.
fn crumbs(quants: &[u8], index: usize) -> u8 {
    let (part, inside) = (index / 128, index % 128);
    quants[part * 32 + inside % 32] >> (2 * (inside / 32)) & 3
}

pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 80), half(block, 82));
    for (index, value) in out.iter_mut().enumerate() {
        let scale = block[index / 16];
        let q = f32::from(crumbs(&block[16..80], index));
        *value = d * f32::from(scale & 15) * q - m * f32::from(scale >> 4);
    }
}

pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (mask, scales, d) = (&block[..32], &block[96..108], half(block, 108));
    for (index, value) in out.iter_mut().enumerate() {
        let group = index / 16;
        let low = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
        let high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = f32::from(low | high << 4) - 32.0;
        let above = mask[index % 32] >> (index / 32) & 1;
        let q = f32::from(crumbs(&block[32..96], index)) - if above == 1 { 0.0 } else { 4.0 };
        *value = d * scale * q;
    }
}

/// Scale and minimum of one of eight groups, six bits each.
fn scale_and_minimum(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = match group {
        0..4 => (scales[group] & 63, scales[group + 4] & 63),
        _ => (
            scales[group + 4] & 15 | (scales[group - 4] >> 6) << 4,
            scales[group + 4] >> 4 | (scales[group] >> 6) << 4,
        ),
    };
    (f32::from(scale), f32::from(minimum))
}

pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], group);
        let (scale, minimum) = (d * scale, m * minimum);
        let quants = &block[16 + group / 2 * 32..][..32];
        for (value, byte) in values.iter_mut().zip(quants) {
            *value = scale * f32::from(byte >> (4 * (group % 2)) & 15) - minimum;
        }
    }
}

pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let high = &block[16..48];
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], group);
        let (scale, minimum) = (d * scale, m * minimum);
        let quants = &block[48 + group / 2 * 32..][..32];
        for ((value, byte), high) in values.iter_mut().zip(quants).zip(high) {
            let q = byte >> (4 * (group % 2)) & 15 | (high >> group & 1) << 4;
            *value = scale * f32::from(q) - minimum;
        }
    }
}

pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (index, value) in out.iter_mut().enumerate() {
        let (part, inside) = (index / 128, index % 128);
        let (run, lane) = (inside / 32, inside % 32);
        let l = low[part * 64 + run % 2 * 32 + lane] >> (4 * (run / 2)) & 15;
        let h = high[part * 32 + lane] >> (2 * run) & 3;
        *value = d * signed(scales[index / 16]) * (f32::from(l | h << 4) - 32.0);
    }
}

pub(super) fn q8_k(block: &[u8], out: &mut [f32]) {
    let d = f32::from_bits(bits(block, 0));
    for (value, byte) in out.iter_mut().zip(&block[4..260]) {
        *value = d * signed(*byte);
    }
}
