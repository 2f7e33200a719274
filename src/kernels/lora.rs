//! The low-rank path of an adapter beside a frozen weight: `y + scale · (x Aᵀ) B`.
//!
//! It does not know the frozen weight; `y` comes in computed. Source: Hu et al. 2021, "LoRA".

use candle_core::Tensor;

use crate::Result;

/// `y + scale · (x Aᵀ) B` for `y: [tokens, out]`, `x: [tokens, in]`, `a: [rank, in]` and `b: [rank, out]`.
///
/// The result has the dtype of `y`; products are formed in the dtype of `a`. Differentiable in everything but `scale`.
/// The caller gives up `y`, whose memory may be reused. Fails when shapes do not fit.
pub fn lora(y: Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    reference(&y, x, a, b, scale)
}

/// The same in plain tensor ops.
pub(crate) fn reference(y: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let inner = (x.to_dtype(a.dtype())?.matmul(&a.t()?)? * scale)?; // [tokens, rank]
    Ok((y + inner.matmul(b)?.to_dtype(y.dtype())?)?)
}
