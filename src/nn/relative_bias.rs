//! A learned bias on attention scores by the distance of two tokens, in buckets that widen with it.
//!
//! Source: Raffel et al. 2019 (T5), section 2.1, in its bidirectional form.

use candle_core::Tensor;

use super::Embedding;
use crate::Result;
use crate::weight::Scope;

/// Distances from here on share the last bucket.
const MAX_DISTANCE: f32 = 128.0;

/// A table `[buckets, heads]`.
#[derive(Debug)]
pub(super) struct RelativeBias {
    buckets: usize,
    table: Embedding,
}

impl RelativeBias {
    pub(super) fn load(scope: &Scope, buckets: usize, heads: usize) -> Result<Self> {
        Ok(Self { buckets, table: Embedding::load(scope, buckets, heads)? })
    }

    /// The bias `[heads, 2 * span - 1]` of key minus query position, from `-(span - 1)` on.
    pub(super) fn table(&self, span: usize) -> Result<Tensor> {
        let distances = (0..(2 * span).saturating_sub(1)).map(|index| index as i64 - (span as i64 - 1));
        let buckets: Vec<u32> = distances.map(|distance| bucket(distance, self.buckets)).collect();
        // [distances, heads] -> [heads, distances]
        let bias = self.table.lookup(&buckets)?.to_dtype(candle_core::DType::F32)?;
        Ok(bias.t()?.contiguous()?)
    }
}

/// The bucket of a key that lies `distance` tokens after the query.
fn bucket(distance: i64, buckets: usize) -> u32 {
    let half = buckets / 2;
    let exact = half / 2;
    let first = if distance > 0 { half } else { 0 };
    let length = distance.unsigned_abs() as usize;
    let within = if length < exact {
        length
    } else {
        let exact32 = exact as f32;
        // Rounded as the reference does, in f32.
        let steps = (length as f32 / exact32).ln() / (MAX_DISTANCE / exact32).ln() * (half - exact) as f32;
        (exact + steps as usize).min(half - 1)
    };
    (first + within) as u32
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn near_distances_have_their_own_buckets_and_far_ones_share() {
        let of = |distance| bucket(distance, 32);
        assert_eq!([0, -1, -7, -8, -9].map(of), [0, 1, 7, 8, 8]);
        assert_eq!([1, 7, 8].map(of), [17, 23, 24]);
        assert_eq!([of(-127), of(-128), of(-5000), of(5000)], [15, 15, 15, 31]);
    }
}
