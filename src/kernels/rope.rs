//! Rotary position embedding of query and key heads.
//!
//! It does not compute the angles: the caller hands in the cosine and sine of every token, so that scaled variants
//! (linear, YaRN, Llama 3) need no kernel of their own. Source: Su et al. 2021, "RoFormer".

#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result as CandleResult, Shape, Tensor};

#[cfg(feature = "metal")]
use super::metal::rows as metal;
use super::rows;
use super::simd::{Kernel, Level, Simd};
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
/// `cos` and `sin` are f32 `[tokens, rotary/2]`. The result has the dtype of `x` and is differentiable in it. Fails
/// when the shapes do not match or `rotary` exceeds `head_dim`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, style: RopeStyle) -> Result<Tensor> {
    let (tokens, _, head_dim) = x.dims3()?;
    let (count, half) = cos.dims2()?;
    if count != tokens || 2 * half > head_dim || cos.dims() != sin.dims() {
        let (x, cos, sin) = (x.dims(), cos.dims(), sin.dims());
        return Err(Error::internal("rope", format!("x {x:?} does not fit cos {cos:?} and sin {sin:?}")));
    }
    if [x, cos, sin].into_iter().all(rows::is_f32_on_cpu) {
        let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
        let op = Rope { level: Level::current(), cos, sin, style, inverse: false };
        return rows::apply(&x.contiguous()?, op);
    }
    #[cfg(feature = "metal")]
    if metal::fits(&[x]) && metal::fits(&[cos, sin]) && cos.dtype() == DType::F32 {
        let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
        let op = Rope { level: Level::current(), cos, sin, style, inverse: false };
        return rows::apply(&x.contiguous()?, op);
    }
    if x.device().is_cuda() && !x.track_op() && 2 * half == head_dim && x.elem_count() > 0 {
        // candle's ops take cosines and sines in the dtype of x.
        let (cos, sin) = (cos.to_dtype(x.dtype())?.contiguous()?, sin.to_dtype(x.dtype())?.contiguous()?);
        if style == RopeStyle::HalfSplit {
            return Ok(
                candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?.contiguous()?, &cos, &sin)?.squeeze(0)?
            );
        }
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

struct Rope {
    level: Level,
    cos: Tensor,
    sin: Tensor,
    style: RopeStyle,
    /// Rotates back: the backward pass of the other.
    inverse: bool,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = rows::slice::<f32>(storage, layout)?;
        let (tokens, heads, head_dim) = layout.shape().dims3()?;
        let (half, width) = (self.cos.dim(1)?, heads * head_dim);
        let mut y = vec![0f32; x.len()];
        rows::with_slice(&self.cos, |cos| {
            rows::with_slice(&self.sin, |sin| {
                rows::blocks((tokens, width), [&mut y], |range, [y]| {
                    let angles = range.start * half..range.end * half;
                    self.level.run(Rotate {
                        x: &x[range.start * width..range.end * width],
                        y,
                        cos: &cos[angles.clone()],
                        sin: &sin[angles],
                        shape: (heads, head_dim, half),
                        style: self.style,
                        sign: if self.inverse { -1.0 } else { 1.0 },
                    });
                });
                Ok(())
            })
        })?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        let interleaved = self.style == RopeStyle::Interleaved;
        metal::rope((x, layout), &self.cos, &self.sin, interleaved, self.inverse)
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let op = Rope { level: self.level, cos, sin, style: self.style, inverse: !self.inverse };
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&op)?))
    }
}

struct Rotate<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    /// Heads, their dimension, and pairs that are rotated.
    shape: (usize, usize, usize),
    style: RopeStyle,
    sign: f32,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (heads, head_dim, half) = self.shape;
        let inputs = self.x.chunks_exact(heads * head_dim).zip(self.y.chunks_exact_mut(heads * head_dim));
        for (token, (x, y)) in inputs.enumerate() {
            let angles = token * half..(token + 1) * half;
            let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
            for (x, y) in x.chunks_exact(head_dim).zip(y.chunks_exact_mut(head_dim)) {
                match self.style {
                    RopeStyle::HalfSplit => rotate_halves(s, (x, y), (cos, sin), self.sign),
                    RopeStyle::Interleaved => {
                        let pairs = x[..2 * half].chunks_exact(2).zip(y[..2 * half].chunks_exact_mut(2));
                        for ((x, y), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                            let sin = sin * self.sign;
                            (y[0], y[1]) = (x[0] * cos - x[1] * sin, x[1] * cos + x[0] * sin);
                        }
                    }
                }
                y[2 * half..].copy_from_slice(&x[2 * half..]);
            }
        }
    }
}

#[inline(always)]
fn rotate_halves<S: Simd>(s: S, (x, y): (&[f32], &mut [f32]), (cos, sin): (&[f32], &[f32]), sign: f32) {
    let half = cos.len();
    for at in (0..half).step_by(S::LANES) {
        let n = S::LANES.min(half - at);
        let (cos, sin) = (rows::load(s, cos, at, n), s.mul(rows::load(s, sin, at, n), s.splat(sign)));
        let (a, b) = (rows::load(s, x, at, n), rows::load(s, x, half + at, n));
        rows::store(s, y, at, n, s.sub(s.mul(a, cos), s.mul(b, sin)));
        rows::store(s, y, half + at, n, s.fma(b, cos, s.mul(a, sin)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, assert_differences, gradients, tensor, var};

    const STYLES: [RopeStyle; 2] = [RopeStyle::HalfSplit, RopeStyle::Interleaved];

    #[test]
    fn every_level_equals_the_reference() {
        for (head_dim, rotary) in [(64, 64), (64, 20), (10, 6), (7, 6), (2, 2)] {
            let x = var(1, (13, 3, head_dim));
            let (cos, sin) = (tensor(2, (13, rotary / 2)), tensor(3, (13, rotary / 2)));
            for style in STYLES {
                let want = reference(&x, &cos, &sin, style).unwrap();
                for level in Level::all() {
                    let op = Rope { level, cos: cos.clone(), sin: sin.clone(), style, inverse: false };
                    let got = rows::apply(&x, op).unwrap();
                    let what = format!("{rotary} of {head_dim}, {style:?}, {level:?}");
                    assert_close(&got, &want, 1e-6, &what);
                    assert_close(&gradients(&[&x], &got)[0], &gradients(&[&x], &want)[0], 1e-6, &what);
                }
            }
        }
    }

    #[test]
    fn gradients_equal_differences() {
        let (x, cos, sin) = (var(1, (5, 2, 12)), tensor(2, (5, 4)), tensor(3, (5, 4)));
        for style in STYLES {
            assert_differences(&[&x], |x| rope(&x[0], &cos, &sin, style).unwrap(), "rope");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = tensor(1, (5, 2, 12));
        for (cos, sin) in [((4, 6), (4, 6)), ((5, 7), (5, 7)), ((5, 6), (5, 5))] {
            rope(&x, &tensor(2, cos), &tensor(3, sin), RopeStyle::HalfSplit).unwrap_err();
        }
        let (cos, empty) = (tensor(2, (0, 6)), tensor(1, (0, 2, 12)));
        assert_eq!(rope(&empty, &cos, &cos, RopeStyle::HalfSplit).unwrap().dims(), [0, 2, 12]);
    }
}
