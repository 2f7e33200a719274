//! Low-rank adaptation of a token embedding: `e(t) + scaling · B A[:, t]`.
//!
//! A head that shares its weight with the embedding is not changed by it, as in PEFT.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::layout::{EMBEDDING_A, EMBEDDING_B};
use super::parts::Parts;
use crate::Result;
use crate::nn::Adapter;
use crate::weight::Weight;

#[derive(Debug)]
struct EmbeddingLora {
    /// `[vocab, rank]`: the first factor transposed, so that a token's column is a row.
    a: Tensor,
    /// `[rank, hidden]`: the second factor transposed.
    b: Tensor,
    scaling: f64,
}

/// Builds the adapter of a site that has an embedding's factors.
pub(super) fn build(parts: &Parts) -> Result<Option<Arc<dyn Adapter>>> {
    let (Some(a), Some(b)) = (parts.get(EMBEDDING_A), parts.get(EMBEDDING_B)) else { return Ok(None) };
    let (a, b) = (parts.transposed(a)?, parts.transposed(b)?);
    Ok(Some(Arc::new(EmbeddingLora { a, b, scaling: parts.scaling })))
}

impl Adapter for EmbeddingLora {
    fn forward(&self, _base: &dyn Weight, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok(y)
    }

    fn embed(&self, ids: &[u32], y: Tensor) -> Result<Tensor> {
        let ids = Tensor::new(ids, self.a.device())?;
        // While training, `a` is a view of a variable that is laid out the other way round.
        let rows = if self.a.is_contiguous() {
            self.a.index_select(&ids, 0)?
        } else {
            self.a.t()?.index_select(&ids, 1)?.t()?
        };
        // [ids, rank] · [rank, hidden]
        let change = (rows * self.scaling)?.matmul(&self.b)?;
        Ok((&y + change.to_dtype(y.dtype())?)?)
    }

    fn merged(&self, base: &dyn Weight) -> Result<Tensor> {
        let (a, b) = (self.a.to_dtype(DType::F32)?, self.b.to_dtype(DType::F32)?);
        Ok((base.dequantize(DType::F32)? + (a.matmul(&b)? * self.scaling)?)?)
    }

    fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(vec![(EMBEDDING_A.to_owned(), self.a.t()?), (EMBEDDING_B.to_owned(), self.b.t()?)])
    }
}
