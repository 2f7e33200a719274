//! Rotary position embedding of query and key heads.
//!
//! It does not compute the angles: the caller hands in the cosine and sine of every token, so that scaled variants
//! (linear, YaRN, Llama 3) need no kernel of their own. Source: Su et al. 2021, "RoFormer".

use candle_core::{D, DType, Tensor};

use crate::{Error, Result};

/// Which two elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` with element `i + rotary/2`, as checkpoints in Hugging Face layout need it.
    HalfSplit,
    /// Element `2i` with element `2i + 1`, as in the paper.
    Interleaved,
}

/// Rotates the first `rotary` elements of every head of `x: [tokens, heads, head_dim]`; the rest passes through.
///
/// `cos` and `sin` are f32 `[tokens, rotary/2]`. The result has the dtype of `x`. Fails when the shapes do not match
/// or `rotary` exceeds `head_dim`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, style: RopeStyle) -> Result<Tensor> {
    let (tokens, _, head_dim) = x.dims3()?;
    let (rows, half) = cos.dims2()?;
    if rows != tokens || 2 * half > head_dim || cos.dims() != sin.dims() {
        let (x, cos, sin) = (x.dims(), cos.dims(), sin.dims());
        return Err(Error::internal("rope", format!("x {x:?} does not fit cos {cos:?} and sin {sin:?}")));
    }
    reference(x, cos, sin, style)
}

/// The same in plain tensor ops, differentiable in `x`.
pub(crate) fn reference(x: &Tensor, cos: &Tensor, sin: &Tensor, style: RopeStyle) -> Result<Tensor> {
    let (tokens, heads, head_dim) = x.dims3()?;
    let half = cos.dim(1)?;
    let cos = cos.to_dtype(DType::F32)?.unsqueeze(1)?; // [tokens, 1, half]
    let sin = sin.to_dtype(DType::F32)?.unsqueeze(1)?;
    let rotated = x.narrow(D::Minus1, 0, 2 * half)?.to_dtype(DType::F32)?;
    let (a, b) = match style {
        RopeStyle::HalfSplit => (rotated.narrow(D::Minus1, 0, half)?, rotated.narrow(D::Minus1, half, half)?),
        RopeStyle::Interleaved => {
            let pairs = rotated.reshape((tokens, heads, half, 2))?;
            (
                pairs.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?,
                pairs.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?,
            )
        }
    };
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let y = match style {
        RopeStyle::HalfSplit => Tensor::cat(&[first, second], D::Minus1)?,
        RopeStyle::Interleaved => {
            Tensor::stack(&[first, second], D::Minus1)?.reshape((tokens, heads, 2 * half))?
        }
    };
    let y = y.to_dtype(x.dtype())?;
    if 2 * half == head_dim {
        return Ok(y);
    }
    let rest = x.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?;
    Ok(Tensor::cat(&[y, rest], D::Minus1)?)
}
