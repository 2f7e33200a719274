//! Layer normalisation of rows.
//!
//! It has no residual variant and no group form. Statistics are always taken in f32. Source: Ba, Kiros and Hinton
//! 2016, "Layer Normalization"; the variance is the biased one, as in torch.

#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Result as CandleResult, Shape, Tensor};

#[cfg(feature = "metal")]
use super::metal::rows as metal;
use super::rows::{self, Floats, Product, Squares, Term, Weighted};
use super::simd::{Kernel, Level, Simd};
use crate::Result;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension of `x: [.., hidden]`.
///
/// `weight` and `bias` are `[hidden]` of any float dtype; the result has the dtype of `x`. Differentiable in all three.
/// Fails when the shapes do not match.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    if weight.track_op() || bias.is_some_and(|bias| bias.track_op()) {
        return reference(x, weight, bias, eps);
    }
    if rows::is_f32_on_cpu(x) {
        let bias = bias.map(|bias| bias.contiguous()).transpose()?;
        let op = LayerNorm { level: Level::current(), weight: weight.contiguous()?, bias, eps: eps as f32 };
        return rows::apply(&x.contiguous()?, op);
    }
    #[cfg(feature = "metal")]
    if metal::fits(&[x, weight, bias.unwrap_or(weight)]) {
        let bias = bias.map(|bias| bias.contiguous()).transpose()?;
        let op = LayerNorm { level: Level::current(), weight: weight.contiguous()?, bias, eps: eps as f32 };
        return rows::apply(&x.contiguous()?, op);
    }
    if let Some(bias) = bias
        && x.device().is_cuda()
        && !x.track_op()
        && [weight, bias].iter().all(|t| t.dtype() == x.dtype())
        && x.elem_count() > 0
    {
        let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
        return Ok(candle_nn::ops::layer_norm(&x.contiguous()?, &weight, &bias, eps as f32)?);
    }
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

struct LayerNorm {
    level: Level,
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f32,
}

impl LayerNorm {
    /// The number of rows and their width.
    fn rows(&self, shape: &Shape) -> CandleResult<(usize, usize)> {
        match shape.dims().last() {
            Some(&hidden) => Ok((shape.elem_count() / hidden.max(1), hidden)),
            None => candle_core::bail!("layer_norm of a scalar"),
        }
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = rows::slice::<f32>(storage, layout)?;
        let (count, hidden) = self.rows(layout.shape())?;
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let weight = Floats::new(&weight, weight_layout, hidden)?;
        let stored = self.bias.as_ref().map(|bias| bias.storage_and_layout());
        let bias = stored.as_ref().map(|(bias, layout)| Floats::new(bias, layout, hidden)).transpose()?;
        let mut y = vec![0f32; x.len()];
        rows::blocks((count, hidden), [&mut y], |range, [y]| {
            let x = &x[range.start * hidden..range.end * hidden];
            self.level.run(Forward { x, weight, bias, eps: self.eps, y });
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        let norm = metal::Norm::Layer { has_bias: self.bias.is_some() };
        norm.forward((x, layout), &self.weight, self.bias.as_ref(), self.eps)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        #[cfg(feature = "metal")]
        if x.device().is_metal() {
            let norm = metal::Norm::Layer { has_bias: self.bias.is_some() };
            return norm.backward(x, &self.weight, dy, self.eps).map(Some);
        }
        let (count, hidden) = self.rows(x.shape())?;
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let weight = Floats::new(&weight, weight_layout, hidden)?;
        let mut dx = vec![0f32; count * hidden];
        rows::with_slice(x, |x| {
            rows::with_slice(&dy.contiguous()?, |dy| {
                rows::blocks((count, hidden), [&mut dx], |range, [dx]| {
                    let range = range.start * hidden..range.end * hidden;
                    let (x, dy) = (&x[range.clone()], &dy[range]);
                    self.level.run(Backward { x, dy, weight, eps: self.eps, dx });
                });
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}

/// The mean, and `1 / sqrt(variance + eps)`.
#[inline(always)]
fn statistics<S: Simd>(s: S, x: &[f32], eps: f32) -> (f32, f32) {
    let len = x.len() as f32;
    let mean = rows::sum(s, x.len(), x) / len;
    let squares = rows::sum(s, x.len(), Squares { x, around: mean });
    (mean, 1.0 / (squares / len + eps).sqrt())
}

/// The normalised row.
#[derive(Clone, Copy)]
struct Normed<'a> {
    x: &'a [f32],
    mean: f32,
    r: f32,
}

impl Term for Normed<'_> {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, at: usize, n: usize) -> S::V {
        let v = s.sub(rows::load_filled(s, self.x, at, n, self.mean), s.splat(self.mean));
        s.mul(v, s.splat(self.r))
    }
}

struct Forward<'a> {
    x: &'a [f32],
    weight: Floats<'a>,
    bias: Option<Floats<'a>>,
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hidden = self.weight.len();
        for (x, y) in self.x.chunks_exact(hidden).zip(self.y.chunks_exact_mut(hidden)) {
            let (mean, r) = statistics(s, x, self.eps);
            let (mean, r) = (s.splat(mean), s.splat(r));
            for at in (0..hidden).step_by(S::LANES) {
                let n = S::LANES.min(hidden - at);
                let normed = s.mul(s.sub(rows::load(s, x, at, n), mean), r);
                let bias = self.bias.map_or(s.splat(0.0), |bias| bias.load(s, at, n));
                rows::store(s, y, at, n, s.fma(normed, self.weight.load(s, at, n), bias));
            }
        }
    }
}

struct Backward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    weight: Floats<'a>,
    eps: f32,
    dx: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    /// With `g = weight * dy` and `n` the normalised row: `dx = r (g - mean(g) - n mean(g n))`.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hidden = self.weight.len();
        let inputs = self.x.chunks_exact(hidden).zip(self.dy.chunks_exact(hidden));
        for ((x, dy), dx) in inputs.zip(self.dx.chunks_exact_mut(hidden)) {
            let (mean, r) = statistics(s, x, self.eps);
            let normed = Normed { x, mean, r };
            let g = Weighted { weight: self.weight, x: dy };
            let g_mean = s.splat(rows::sum(s, hidden, g) / hidden as f32);
            let product = rows::sum(s, hidden, Product(g, normed));
            let back = s.splat(-product / hidden as f32);
            for at in (0..hidden).step_by(S::LANES) {
                let n = S::LANES.min(hidden - at);
                let v = s.fma(normed.at(s, at, n), back, s.sub(g.at(s, at, n), g_mean));
                rows::store(s, dx, at, n, s.mul(v, s.splat(r)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::testing::{assert_close, assert_differences, gradients, tensor, var};

    #[test]
    fn every_level_equals_the_reference() {
        for hidden in [5, 15, 64, 67, 384] {
            // Far from zero, where sloppy variances cancel.
            let x = Var::from_tensor(&tensor(1, (3, 7, hidden)).affine(4.0, 100.0).unwrap()).unwrap();
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let (weight, bias) = (tensor(2, hidden).to_dtype(dtype).unwrap(), tensor(3, hidden));
                for bias in [None, Some(&bias)] {
                    let want = reference(&x, &weight, bias, 1e-5).unwrap();
                    for level in Level::all() {
                        let op = LayerNorm { level, weight: weight.clone(), bias: bias.cloned(), eps: 1e-5 };
                        let (got, what) =
                            (rows::apply(&x, op).unwrap(), format!("{hidden}, {dtype:?}, {level:?}"));
                        assert_close(&got, &want, 4e-5, &what);
                        assert_close(&gradients(&[&x], &got)[0], &gradients(&[&x], &want)[0], 2e-4, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_equal_differences() {
        let (x, weight, bias) = (var(1, (5, 37)), var(2, 37), var(3, 37));
        let (w, b) = (tensor(2, 37), tensor(3, 37));
        assert_differences(&[&x], |x| layer_norm(&x[0], &w, Some(&b), 1e-5).unwrap(), "frozen");
        assert_differences(&[&x], |x| layer_norm(&x[0], &w, None, 1e-5).unwrap(), "without a bias");
        let trained = |x: &[Tensor]| layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5).unwrap();
        assert_differences(&[&x, &weight, &bias], trained, "trained");
    }

    #[test]
    fn odd_shapes() {
        assert_eq!(layer_norm(&tensor(1, (0, 8)), &tensor(2, 8), None, 1e-5).unwrap().dims(), [0, 8]);
        layer_norm(&tensor(1, (2, 8)), &tensor(2, 7), None, 1e-5).unwrap_err();
        layer_norm(&tensor(1, (2, 8)), &tensor(2, 8), Some(&tensor(2, 7)), 1e-5).unwrap_err();
    }
}
