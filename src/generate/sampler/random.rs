//! The random numbers of one request: the same for a seed on every platform and in every release.
//!
//! Not for secrets. It is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014):
//! a counter that is hashed, so the n-th number depends on the seed and on n alone.

/// A seeded sequence of uniform numbers.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    /// The sequence that `seed` names.
    pub(super) fn new(seed: u64) -> Self {
        // Hashed once more, so that no two small seeds walk the same orbit a few steps apart.
        Self { state: mix(seed ^ 0x5851_f42d_4c95_7f2d) }
    }

    /// The next number, uniform over `[0, 1)` in steps of 2^-53.
    pub(super) fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.state) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_as_published() {
        // The first outputs of SplitMix64 seeded with 1234567, as published with the algorithm.
        let mut state = 1_234_567u64;
        let outputs = [6_457_827_717_110_365_317u64, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for expected in outputs {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            assert_eq!(mix(state), expected);
        }
    }

    #[test]
    fn is_uniform_along_a_sequence_and_across_seeds() {
        let along = {
            let mut random = Random::new(7);
            move |_: u64| random.uniform()
        };
        let across = |seed: u64| Random::new(seed).uniform();
        for mut draw in [Box::new(along) as Box<dyn FnMut(u64) -> f64>, Box::new(across)] {
            let mut counts = [0u32; 64];
            for n in 0..64_000 {
                counts[(draw(n) * 64.0) as usize] += 1;
            }
            let statistic: f64 = counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
            // 63 degrees of freedom: beyond 126 with probability 4e-6, below 25 with 4e-6.
            assert!((25.0..126.0).contains(&statistic), "{statistic}");
        }
    }
}
