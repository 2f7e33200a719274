//! Token embedding: rows of a matrix by id.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::Pass;
use crate::Result;
use crate::weight::{Scope, Weight};

/// A table `[vocab, hidden]`.
#[derive(Debug, Clone)]
pub struct Embedding {
    path: String,
    weight: Arc<dyn Weight>,
    dtype: DType,
}

impl Embedding {
    /// Reads `weight` `[vocab, hidden]` below `scope`.
    pub fn load(scope: &Scope, vocab: usize, hidden: usize) -> Result<Self> {
        let weight = scope.matrix("weight", vocab, hidden)?;
        Ok(Self { path: scope.path().to_owned(), weight, dtype: scope.compute_dtype() })
    }

    /// The same embedding over another table of the same shape.
    pub fn with_weight(&self, weight: Arc<dyn Weight>) -> Self {
        Self { path: self.path.clone(), weight, dtype: self.dtype }
    }

    /// Rows for the batch's token ids: `[tokens, hidden]`, with the adapters of the pass.
    pub fn forward(&self, pass: &Pass) -> Result<Tensor> {
        let ids = pass.batch().ids();
        let y = self.lookup(ids)?;
        pass.adapters().apply(&self.path, y, |adapter, rows, part| adapter.embed(&ids[rows], part))
    }

    /// Rows for any ids: `[ids, hidden]`, without adapters.
    pub fn lookup(&self, ids: &[u32]) -> Result<Tensor> {
        self.weight.rows(ids, self.dtype)
    }

    /// The path that checkpoints and adapter files use.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The table, which a tied head shares.
    pub fn weight(&self) -> &Arc<dyn Weight> {
        &self.weight
    }
}
