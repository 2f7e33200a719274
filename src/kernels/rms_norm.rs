//! Root-mean-square normalisation of rows, alone or after adding a residual.
//!
//! It does not know where a row comes from: hidden states and single heads (q/k norm) are the same to it. Statistics
//! are always taken in f32. Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"; the weight is
//! applied as in the Llama family, after the division.

use candle_core::{D, DType, Tensor};

use crate::Result;

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension of `x: [.., hidden]`, in the dtype of `x`.
///
/// `weight: [hidden]` may have any float dtype. Fails when the shapes do not match.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    reference(x, weight, eps)
}

/// `(x + residual, rms_norm(x + residual))`, both in the dtype of `x: [.., hidden]`.
///
/// Fails when the shapes do not match.
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let sum = (x + residual)?;
    let normed = rms_norm(&sum, weight, eps)?;
    Ok((sum, normed))
}

/// The same in plain tensor ops, differentiable in `x` and `weight`.
pub(crate) fn reference(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let x32 = x.to_dtype(DType::F32)?;
    let hidden = x.dim(D::Minus1)?;
    let mean_square = (x32.sqr()?.sum_keepdim(D::Minus1)? / hidden as f64)?;
    let normed = x32.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    Ok(normed.broadcast_mul(&weight.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?)
}
