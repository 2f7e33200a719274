//! Passes over a whole vocabulary: its maximum, its mass, and the few tokens that a filter leaves.
//!
//! Nothing here sorts the vocabulary: a filter is a threshold, found by quickselect on a copy, and what passes it
//! keeps the order of token ids. So a result does not depend on how a selection arranges its input, and, as the
//! exponential is computed here and not by the platform, it is the same on every machine.

use std::cmp::Ordering;

/// Lanes of the loops that the compiler turns into vector code.
const LANES: usize = 16;
/// Logits whose mass is summed as one; a draw finds the block first, then the token.
pub(super) const BLOCK: usize = 1024;

/// One token that passed the filters so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// The token.
    pub(super) id: u32,
    /// Its logit, before the temperature.
    pub(super) logit: f32,
    /// Its probability divided by that of the most probable token.
    pub(super) weight: f32,
}

/// The softmax of `logits / temperature`, up to its normalisation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax {
    /// The largest logit.
    pub(super) max: f32,
    /// The temperature, above 0.
    pub(super) temperature: f32,
}

impl Softmax {
    /// The logarithm of a logit's weight. An infinite maximum leaves weight only to its equals.
    #[inline(always)]
    pub(super) fn log_weight(self, logit: f32) -> f32 {
        // The difference comes first: dividing first overflows at small temperatures.
        if logit >= self.max { 0.0 } else { (logit - self.max) / self.temperature }
    }

    /// The weight of a logit: 1 for the largest.
    #[inline(always)]
    pub(super) fn weight(self, logit: f32) -> f32 {
        exp(self.log_weight(logit))
    }

    /// The sum of the weights of one block.
    pub(super) fn mass(self, block: &[f32]) -> f64 {
        let mut sums = [0f32; LANES];
        let (chunks, rest) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, &logit) in sums.iter_mut().zip(chunk) {
                *sum += self.weight(logit);
            }
        }
        let rest: f64 = rest.iter().map(|&logit| f64::from(self.weight(logit))).sum();
        sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() + rest
    }
}

/// `e^x` for `x <= 0` within 2 units in the last place; exactly 1 at 0, and 0 below -87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer, kept in the low bits
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the remainder is exact to more bits than one product has.
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let y = (p * r * r + r + 1.0) * scale;
    if x > -87.0 { y } else { 0.0 }
}

/// Turns each NaN into negative infinity and returns the largest logit.
pub(super) fn clean_max(logits: &mut [f32]) -> f32 {
    let mut max = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks_mut::<LANES>();
    let step = |max: &mut f32, logit: &mut f32| {
        *logit = if logit.is_nan() { f32::NEG_INFINITY } else { *logit };
        *max = if *logit > *max { *logit } else { *max };
    };
    for chunk in chunks {
        for (max, logit) in max.iter_mut().zip(chunk) {
            step(max, logit);
        }
    }
    for logit in rest {
        step(&mut max[0], logit);
    }
    max.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Calls `visit` with the id and logit of each logit that is at least `visit`'s last threshold, in order of ids.
#[inline(always)]
fn scan(logits: &[f32], mut threshold: f32, mut visit: impl FnMut(u32, f32) -> f32) {
    for (index, chunk) in logits.chunks(LANES).enumerate() {
        if chunk.iter().fold(false, |any, &logit| any | (logit >= threshold)) {
            for (lane, &logit) in chunk.iter().enumerate() {
                if logit >= threshold && logit > f32::NEG_INFINITY {
                    threshold = visit((index * LANES + lane) as u32, logit);
                }
            }
        }
    }
}

/// Puts every token whose logit is at least `threshold` into `kept`, with its weight.
pub(super) fn at_least(logits: &[f32], threshold: f32, softmax: Softmax, kept: &mut Vec<Candidate>) {
    kept.clear();
    scan(logits, threshold, |id, logit| {
        kept.push(Candidate { id, logit, weight: softmax.weight(logit) });
        threshold
    });
}

/// Puts the tokens with the `k` largest logits, and those that equal the smallest of them, into `kept`.
pub(super) fn top_k(
    logits: &[f32],
    k: usize,
    softmax: Softmax,
    kept: &mut Vec<Candidate>,
    order: &mut Vec<f32>,
) {
    kept.clear();
    let k = k.min(logits.len());
    if k == 0 {
        return;
    }
    let mut threshold = f32::NEG_INFINITY;
    let mut limit = (2 * k).max(256);
    scan(logits, threshold, |id, logit| {
        kept.push(Candidate { id, logit, weight: 0.0 });
        if kept.len() >= limit {
            threshold = keep_top(kept, k, order);
            // Many equals of the threshold must not make each further token shrink the list again.
            limit = limit.max(2 * kept.len());
        }
        threshold
    });
    if kept.len() > k {
        keep_top(kept, k, order);
    }
    for candidate in kept {
        candidate.weight = softmax.weight(candidate.logit);
    }
}

/// Drops what is smaller than the `k`-th largest logit, and returns that logit.
fn keep_top(kept: &mut Vec<Candidate>, k: usize, order: &mut Vec<f32>) -> f32 {
    order.clear();
    order.extend(kept.iter().map(|candidate| candidate.logit));
    let (_, &mut threshold, _) = order.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b));
    kept.retain(|candidate| candidate.logit >= threshold);
    threshold
}

/// Keeps the fewest candidates, largest first, whose weights sum to at least `mass`.
///
/// Among equals the smaller id comes first, as in greedy decoding.
pub(super) fn nucleus(kept: &mut Vec<Candidate>, mass: f64, order: &mut Vec<Candidate>) {
    order.clear();
    order.extend_from_slice(kept);
    let by_rank = |a: &Candidate, b: &Candidate| descending(a.logit, b.logit).then(a.id.cmp(&b.id));
    let mut open = order.as_mut_slice();
    let mut above = 0f64;
    while open.len() > 16 {
        let middle = open.len() / 2;
        open.select_nth_unstable_by(middle, by_rank);
        let (upper, lower) = open.split_at_mut(middle);
        let with_upper = above + upper.iter().map(|c| f64::from(c.weight)).sum::<f64>();
        if with_upper >= mass {
            open = upper;
        } else {
            above = with_upper;
            open = lower;
        }
    }
    open.sort_unstable_by(by_rank);
    let mut last = None;
    for candidate in open.iter() {
        if last.is_some() && above >= mass {
            break;
        }
        above += f64::from(candidate.weight);
        last = Some(*candidate);
    }
    if let Some(last) = last {
        kept.retain(|candidate| by_rank(candidate, &last) != Ordering::Greater);
    }
}

/// Leaves the `n` candidates with the largest logits, largest first; among equals the smaller id comes first.
pub(super) fn rank(candidates: &mut Vec<Candidate>, n: usize) {
    let by_rank = |a: &Candidate, b: &Candidate| descending(a.logit, b.logit).then(a.id.cmp(&b.id));
    if n < candidates.len() {
        candidates.select_nth_unstable_by(n, by_rank);
        candidates.truncate(n);
    }
    candidates.sort_unstable_by(by_rank);
}

/// Largest first. There are no NaNs by now.
fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, steps: u32) -> Vec<f32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % steps
        };
        (0..n).map(|_| next() as f32 / steps as f32 * 20.0 - 10.0).collect()
    }

    fn softmax(logits: &[f32]) -> Softmax {
        Softmax { max: logits.iter().copied().fold(f32::NEG_INFINITY, f32::max), temperature: 1.5 }
    }

    #[test]
    fn exp_is_accurate() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.5), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 2.5e-7, "{x}");
        }
    }

    #[test]
    fn mass_is_the_sum_of_exponentials() {
        let logits = noise(5000, 1 << 20);
        let softmax = softmax(&logits);
        let got: f64 = logits.chunks(BLOCK).map(|block| softmax.mass(block)).sum();
        let expected: f64 =
            logits.iter().map(|&x| ((f64::from(x) - f64::from(softmax.max)) / 1.5).exp()).sum();
        assert!((got / expected - 1.0).abs() < 1e-6, "{got} {expected}");
    }

    #[test]
    fn clean_max_replaces_nans() {
        let mut logits = noise(100, 1000);
        let expected = softmax(&logits).max;
        for i in [0, 17, 99] {
            logits[i] = f32::NAN;
        }
        logits[40] = expected;
        assert_eq!(clean_max(&mut logits), expected);
        assert!(logits.iter().all(|x| !x.is_nan()) && logits[99] == f32::NEG_INFINITY);
    }

    #[test]
    fn top_k_equals_sorting() {
        let (mut kept, mut order) = (Vec::new(), Vec::new());
        for steps in [7, 300, 1 << 20] {
            let logits = noise(4097, steps);
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| descending(*a, *b));
            for k in [1, 2, 50, 700, 4096, 4097, 10_000] {
                top_k(&logits, k, softmax(&logits), &mut kept, &mut order);
                let threshold = sorted[k.min(sorted.len()) - 1];
                let expected: Vec<u32> = (0..4097).filter(|&i| logits[i as usize] >= threshold).collect();
                assert_eq!(kept.iter().map(|c| c.id).collect::<Vec<_>>(), expected, "{steps} {k}");
            }
        }
    }

    #[test]
    fn nucleus_equals_walking_a_sorted_list() {
        let mut order = Vec::new();
        for steps in [3, 300, 1 << 20] {
            let logits = noise(999, steps);
            let softmax = softmax(&logits);
            let mut all = Vec::new();
            at_least(&logits, f32::NEG_INFINITY, softmax, &mut all);
            assert_eq!(all.len(), 999);
            let total: f64 = all.iter().map(|c| f64::from(c.weight)).sum();
            for p in [1e-6, 0.1, 0.5, 0.9, 0.999] {
                let mut sorted = all.clone();
                sorted.sort_by(|a, b| descending(a.logit, b.logit).then(a.id.cmp(&b.id)));
                let mut above = 0.0;
                sorted.retain(|c| {
                    let keep = above < p * total;
                    above += f64::from(c.weight);
                    keep
                });
                sorted.sort_by_key(|c| c.id);
                let mut kept = all.clone();
                nucleus(&mut kept, p * total, &mut order);
                assert_eq!(kept, sorted, "{steps} {p}");
            }
        }
    }

    #[test]
    fn rank_orders_by_logit_then_id() {
        let mut candidates: Vec<Candidate> = [(3, 1.0), (1, 2.0), (9, 1.0), (2, 2.0), (4, 0.0)]
            .map(|(id, logit)| Candidate { id, logit, weight: 0.0 })
            .into();
        rank(&mut candidates, 3);
        assert_eq!(candidates.iter().map(|c| c.id).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
