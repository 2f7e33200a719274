//! Hashes and random numbers that are the same on every platform and in every release. Not for secrets.

use std::f64::consts::TAU;

/// Scrambles 64 bits: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A hash of a short text.
pub(super) fn hash_text(text: &str) -> u64 {
    let mut hash = Hash::default();
    hash.bytes(text.as_bytes());
    hash.finish()
}

/// A 64-bit hash of a sequence of byte strings, fast for large ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Hash {
    state: u64,
}

impl Hash {
    /// Takes `bytes` as one item: "ab" and "c" differ from "a" and "bc".
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let word = |chunk: &[u8]| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        };
        self.words(
            bytes.len(),
            bytes.chunks_exact(32).map(|block| std::array::from_fn(|lane| word(&block[8 * lane..][..8]))),
        );
        let rest = bytes.chunks_exact(32).remainder();
        self.state = rest.chunks(8).fold(self.state, |state, chunk| step(state, word(chunk)));
    }

    /// Takes numbers, by their bits, as one item.
    pub(super) fn floats(&mut self, values: &[f32]) {
        let word = |pair: &[f32]| {
            let high = pair.get(1).map_or(0, |value| value.to_bits());
            u64::from(pair[0].to_bits()) | u64::from(high) << 32
        };
        self.words(
            values.len(),
            values.chunks_exact(8).map(|block| std::array::from_fn(|lane| word(&block[2 * lane..][..2]))),
        );
        let rest = values.chunks_exact(8).remainder();
        self.state = rest.chunks(2).fold(self.state, |state, pair| step(state, word(pair)));
    }

    /// Takes whole blocks of an item of some length; four lanes are independent, which keeps a processor busy.
    fn words(&mut self, length: usize, blocks: impl Iterator<Item = [u64; 4]>) {
        let state = step(self.state, length as u64);
        let mut lanes = [state, !state, state.rotate_left(32), state ^ 0x5851_f42d_4c95_7f2d];
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block) {
                *lane = step(*lane, word);
            }
        }
        self.state = lanes.into_iter().fold(state, step);
    }

    /// The hash of everything taken so far.
    pub(super) fn finish(&self) -> u64 {
        mix(self.state ^ 0x2545_f491_4f6c_dd1d)
    }
}

fn step(state: u64, word: u64) -> u64 {
    let product = u128::from(state ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
    (product as u64) ^ ((product >> 64) as u64).rotate_left(29).wrapping_add(word)
}

/// A seeded sequence of numbers, the same on every platform and in every release.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence for `seed` and the name of what is drawn.
    pub fn new(seed: u64, name: &str) -> Self {
        Self { state: mix(mix(seed) ^ hash_text(name)) }
    }

    /// Uniform over `[0, 1)`.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.state) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A whole number from 0 to `limit - 1`; `limit` is at least 1.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.uniform() * limit as f64) as usize
    }

    /// `count` numbers, uniform over `[-bound, bound)`.
    pub fn uniforms(&mut self, count: usize, bound: f64) -> Vec<f32> {
        (0..count).map(|_| ((2.0 * self.uniform() - 1.0) * bound) as f32).collect()
    }

    /// `count` numbers of a normal distribution around 0 (Box and Muller 1958).
    pub fn normals(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        let draw = |_| {
            let (radius, angle) = ((-2.0 * (1.0 - self.uniform()).ln()).sqrt(), TAU * self.uniform());
            (radius * angle.cos() * deviation) as f32
        };
        (0..count).map(draw).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_every_byte_counts() {
        let base: Vec<u8> = (0..77).collect();
        let hash = |bytes: &[u8]| {
            let mut hash = Hash::default();
            hash.bytes(bytes);
            hash.finish()
        };
        let mut seen = std::collections::HashSet::from([hash(&base)]);
        for bit in 0..8 * base.len() {
            let mut other = base.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(hash(&other)), "bit {bit}");
        }
        assert!(seen.insert(hash(&base[..76])) && seen.insert(hash(&[])) && seen.insert(hash(&[0])));
        let mut parts = Hash::default();
        parts.bytes(&base[..40]);
        parts.bytes(&base[40..]);
        assert!(seen.insert(parts.finish()));
        let floats: Vec<f32> = (0..19).map(|x| x as f32).collect();
        for place in 0..floats.len() {
            let mut other = floats.clone();
            other[place] = -1.0;
            let mut hash = Hash::default();
            hash.floats(&other);
            assert!(seen.insert(hash.finish()), "number {place}");
        }
    }

    #[test]
    fn the_hash_is_the_same_in_every_release() {
        let mut hash = Hash::default();
        hash.bytes(b"an adapter's content, longer than one block");
        hash.floats(&[1.0, -2.5, 0.0]);
        assert_eq!(hash.finish(), GOLDEN);
    }

    const GOLDEN: u64 = 14_294_441_561_997_703_152;

    #[test]
    fn draws_have_their_moments() {
        let count = 40_000;
        let moments = |draws: &[f32]| {
            let mean = draws.iter().map(|x| f64::from(*x)).sum::<f64>() / count as f64;
            let variance = draws.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count as f64;
            (mean, variance.sqrt())
        };
        let (mean, deviation) = moments(&Random::new(1, "a").normals(count, 0.5));
        assert!(mean.abs() < 0.01 && (deviation - 0.5).abs() < 0.01, "{mean} {deviation}");
        let uniforms = Random::new(1, "b").uniforms(count, 0.25);
        let (mean, deviation) = moments(&uniforms);
        assert!(mean.abs() < 0.005 && (deviation - 0.25 / 3f64.sqrt()).abs() < 0.005, "{mean} {deviation}");
        assert!(uniforms.iter().all(|x| (-0.25..0.25).contains(x)));
        assert_ne!(Random::new(1, "a").normals(3, 1.0), Random::new(2, "a").normals(3, 1.0));
    }
}
