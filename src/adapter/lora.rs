//! Low-rank adaptation of a linear layer: `y + scaling · B A x` (Hu et al. 2021, "LoRA").
//!
//! The same type serves inference and training: where its tensors are variables, everything is differentiable.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::clock::Dropout;
use super::layout::{A, B, B_BIAS, BASE_BIAS};
use super::parts::{Parts, Rebias};
use crate::Result;
use crate::kernels::lora::lora;
use crate::nn::Adapter;
use crate::weight::Weight;

/// The factors of one layer.
#[derive(Debug)]
pub(super) struct Lora {
    /// `[rank, in]`
    pub(super) a: Tensor,
    /// `[rank, out]`: the second factor transposed, so that both are read row by row.
    pub(super) b: Tensor,
    pub(super) scaling: f64,
    /// `[out]`
    pub(super) b_bias: Option<Tensor>,
    pub(super) rebias: Rebias,
    pub(super) dropout: Option<Dropout>,
}

/// Builds the adapter of a site that has the factors.
pub(super) fn build(parts: &Parts) -> Result<Option<Arc<dyn Adapter>>> {
    Ok(Lora::from_parts(parts)?.map(|lora| Arc::new(lora) as Arc<dyn Adapter>))
}

impl Lora {
    pub(super) fn from_parts(parts: &Parts) -> Result<Option<Self>> {
        let (Some(a), Some(b)) = (parts.get(A), parts.get(B)) else { return Ok(None) };
        Ok(Some(Self {
            a: a.clone(),
            b: parts.transposed(b)?,
            scaling: parts.scaling,
            b_bias: parts.get(B_BIAS).cloned(),
            rebias: Rebias::new(parts.get(BASE_BIAS), parts.site.bias.as_ref()),
            dropout: parts.dropout(),
        }))
    }

    /// `y + scaling · (B A x + bias of B)` without the base's bias being touched.
    pub(super) fn add_to(&self, y: Tensor, x: &Tensor) -> Result<Tensor> {
        let y = lora(y, x, &self.a, &self.b, self.scaling)?;
        Ok(match &self.b_bias {
            Some(bias) => y.broadcast_add(&(bias * self.scaling)?.to_dtype(y.dtype())?)?,
            None => y,
        })
    }

    /// `[out, in]` in f32.
    pub(super) fn delta(&self) -> Result<Tensor> {
        let (a, b) = (self.a.to_dtype(DType::F32)?, self.b.to_dtype(DType::F32)?);
        Ok((b.t()?.contiguous()?.matmul(&a)? * self.scaling)?)
    }
}

impl Adapter for Lora {
    fn forward(&self, _base: &dyn Weight, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let y = self.rebias.apply(y)?;
        match self.dropout.as_ref().filter(|dropout| dropout.is_active()) {
            Some(dropout) => self.add_to(y, &dropout.apply(x)?),
            None => self.add_to(y, x),
        }
    }

    fn needs_output(&self) -> bool {
        false
    }

    fn merged(&self, base: &dyn Weight) -> Result<Tensor> {
        Ok((base.dequantize(DType::F32)? + self.delta()?)?)
    }

    fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = vec![(A.to_owned(), self.a.clone()), (B.to_owned(), self.b.t()?)];
        all.extend(self.b_bias.iter().map(|bias| (B_BIAS.to_owned(), bias.clone())));
        all.extend(self.rebias.new.iter().map(|bias| (BASE_BIAS.to_owned(), bias.clone())));
        Ok(all)
    }

    fn bias(&self, _base: Option<&Tensor>) -> Result<Option<Tensor>> {
        let Some(own) = &self.b_bias else { return Ok(self.rebias.new.clone()) };
        let own = (own * self.scaling)?;
        Ok(Some(match self.rebias.effective() {
            Some(bias) => (own.to_dtype(bias.dtype())? + bias)?,
            None => own,
        }))
    }
}
