//! Layer normalisation of rows.
//!
//! It has no residual variant and no group form. Statistics are always taken in f32. Source: Ba, Kiros and Hinton
//! 2016, "Layer Normalization"; the variance is the biased one, as in torch.

use candle_core::{D, DType, Tensor};

use crate::Result;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension of `x: [.., hidden]`.
///
/// `weight` and `bias` are `[hidden]` of any float dtype; the result has the dtype of `x`. Fails when the shapes do
/// not match.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    reference(x, weight, bias, eps)
}

/// The same in plain tensor ops, differentiable in `x`, `weight` and `bias`.
pub(crate) fn reference(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let x32 = x.to_dtype(DType::F32)?;
    let hidden = x.dim(D::Minus1)? as f64;
    let centred = x32.broadcast_sub(&(x32.sum_keepdim(D::Minus1)? / hidden)?)?;
    let variance = (centred.sqr()?.sum_keepdim(D::Minus1)? / hidden)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let mut y = normed.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.to_dtype(DType::F32)?)?;
    }
    Ok(y.to_dtype(x.dtype())?)
}
