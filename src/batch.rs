//! The one value that carries work to a model: a ragged batch of token ids.
//!
//! There is no padding and there are no masks: sequences lie one after the other, and only attention looks at their
//! borders. Batch-mates can therefore never change a result.

use std::ops::Range;

/// Token ids of several sequences, concatenated, with their positions and borders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    token_types: Vec<u32>,
    offsets: Vec<usize>,
    horizons: Vec<usize>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { offsets: vec![0], ..Self::default() }
    }

    /// A batch of whole sequences, each starting at position 0.
    pub fn from_sequences<S: AsRef<[u32]>>(sequences: &[S]) -> Self {
        let mut batch = Self::new();
        for sequence in sequences {
            batch.push(sequence.as_ref(), 0);
        }
        batch
    }

    /// Appends a sequence, or the next part of one whose first `first_position` tokens lie in a cache.
    pub fn push(&mut self, ids: &[u32], first_position: usize) {
        self.push_part(ids, first_position, first_position + ids.len());
    }

    /// Appends a part of a sequence that is known to reach `horizon` tokens, such as a chunk of a long prompt.
    ///
    /// Only rotary embeddings whose frequencies depend on the sequence's length look at the horizon.
    pub fn push_part(&mut self, ids: &[u32], first_position: usize, horizon: usize) {
        self.ids.extend_from_slice(ids);
        self.positions.extend((first_position..first_position + ids.len()).map(|position| position as u32));
        self.offsets.push(self.ids.len());
        self.horizons.push(horizon.max(first_position + ids.len()));
    }

    /// Appends a whole sequence with segment ids, as encoders of sentence pairs take them.
    pub fn push_typed(&mut self, ids: &[u32], token_types: &[u32]) {
        self.token_types.resize(self.ids.len(), 0);
        self.push(ids, 0);
        self.token_types.extend_from_slice(token_types);
        self.token_types.resize(self.ids.len(), 0);
    }

    /// Removes all sequences but keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.token_types.clear();
        self.offsets.truncate(1);
        self.horizons.clear();
    }

    /// Number of tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.horizons.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Token ids, `[tokens]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Positions within each token's own sequence, `[tokens]`.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Segment ids, `[tokens]`, or empty where all are 0.
    pub fn token_types(&self) -> &[u32] {
        &self.token_types
    }

    /// Borders: sequence `i` is `offsets[i]..offsets[i + 1]`.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// The rows of sequence `index`.
    pub fn rows(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index + 1]
    }

    /// The length that sequence `index` is known to reach.
    pub fn horizon(&self, index: usize) -> usize {
        self.horizons[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_lie_one_after_the_other() {
        let mut batch = Batch::from_sequences(&[vec![5, 6, 7], vec![8]]);
        batch.push(&[9], 12);
        assert_eq!(batch.ids(), [5, 6, 7, 8, 9]);
        assert_eq!(batch.positions(), [0, 1, 2, 0, 12]);
        assert_eq!(batch.offsets(), [0, 3, 4, 5]);
        assert_eq!((batch.rows(1), batch.horizon(2), batch.sequences()), (3..4, 13, 3));
        batch.clear();
        assert_eq!(batch, Batch::new());
    }

    #[test]
    fn token_types_fill_up_with_zero() {
        let mut batch = Batch::from_sequences(&[[1, 2]]);
        batch.push_typed(&[3, 4, 5], &[0, 1]);
        assert_eq!(batch.token_types(), [0, 0, 0, 1, 0]);
    }
}
