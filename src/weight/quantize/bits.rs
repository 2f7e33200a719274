//! Where the bits of a quant go in a block: the reverse of `weight::blocks`.

/// Sixteen bytes of 32 quants: the first half in the low four bits, the second in the high ones.
pub(super) fn halves(quants: &[u8; 32], out: &mut [u8]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = quants[i] & 15 | (quants[i + 16] & 15) << 4;
    }
}

/// The fifth bit of 32 quants.
pub(super) fn fifth(quants: &[u8; 32]) -> [u8; 4] {
    let bits = quants.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4 & 1) << i);
    bits.to_le_bytes()
}

/// Two bits of each of 256 quants: byte `l` of a half has those of its values `l`, `l + 32`, `l + 64` and `l + 96`.
pub(super) fn crumbs(quants: &[u8; 256], out: &mut [u8]) {
    for (quants, out) in quants.chunks_exact(128).zip(out.chunks_exact_mut(32)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = (0..4).fold(0, |byte, run| byte | (quants[l + 32 * run] & 3) << (2 * run));
        }
    }
}

/// The low four bits of 256 quants, 32 values beside the next 32.
pub(super) fn nibbles(quants: &[u8; 256], out: &mut [u8]) {
    for (quants, out) in quants.chunks_exact(64).zip(out.chunks_exact_mut(32)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = quants[l] & 15 | (quants[l + 32] & 15) << 4;
        }
    }
}

/// The low four bits of 256 quants, 64 values beside the next 64.
pub(super) fn wide_nibbles(quants: &[u8; 256], out: &mut [u8]) {
    for (quants, out) in quants.chunks_exact(128).zip(out.chunks_exact_mut(64)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = quants[l] & 15 | (quants[l + 64] & 15) << 4;
        }
    }
}

/// One bit of each of 256 quants: bit `run` of byte `l` is of value `32 · run + l`.
pub(super) fn mask(quants: &[u8; 256], bit: u32, out: &mut [u8]) {
    for (l, out) in out.iter_mut().enumerate() {
        *out = (0..8).fold(0, |byte, run| byte | (quants[32 * run + l] >> bit & 1) << run);
    }
}

/// Eight scales and eight minima of six bits in twelve bytes.
pub(super) fn sixes(scales: &[u8; 8], minima: &[u8; 8], out: &mut [u8]) {
    for i in 0..4 {
        out[i] = scales[i] | scales[i + 4] >> 4 << 6;
        out[i + 4] = minima[i] | minima[i + 4] >> 4 << 6;
        out[i + 8] = scales[i + 4] & 15 | (minima[i + 4] & 15) << 4;
    }
}

/// Sixteen scales of six bits in twelve bytes.
pub(super) fn six_bit_scales(scales: &[u8; 16], out: &mut [u8]) {
    for i in 0..8 {
        out[i] = scales[i] & 15 | (scales[i + 8] & 15) << 4;
    }
    for i in 0..4 {
        out[i + 8] = (0..4).fold(0, |byte, run| byte | scales[4 * run + i] >> 4 << (2 * run));
    }
}
