//! Root-mean-square normalisation of rows, alone or after adding a residual.
//!
//! It does not know where a row comes from: hidden states and single heads (q/k norm) are the same to it. Statistics
//! are always taken in f32. Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"; the weight is
//! applied as in the Llama family, after the division.

#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, D, DType, Device, Layout, Result as CandleResult, Shape, Tensor,
};

use super::add::add;
#[cfg(feature = "metal")]
use super::metal::rows as metal;
use super::rows::{self, Floats, Product, Squares, Term, Weighted};
use super::simd::{Kernel, Level, Simd};
use crate::Result;

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension of `x: [.., hidden]`, in the dtype of `x`.
///
/// `weight: [hidden]` may have any float dtype. Differentiable in both. Fails when the shapes do not match.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if weight.track_op() {
        return reference(x, weight, eps);
    }
    if rows::is_f32_on_cpu(x) {
        let op = RmsNorm { level: Level::current(), weight: weight.contiguous()?, eps: eps as f32 };
        return rows::apply(&x.contiguous()?, op);
    }
    #[cfg(feature = "metal")]
    if metal::fits(&[x, weight]) {
        let op = RmsNorm { level: Level::current(), weight: weight.contiguous()?, eps: eps as f32 };
        return rows::apply(&x.contiguous()?, op);
    }
    if x.device().is_cuda() && !x.track_op() && x.dtype() == weight.dtype() && x.elem_count() > 0 {
        return Ok(candle_nn::ops::rms_norm(&x.contiguous()?, &weight.contiguous()?, eps as f32)?);
    }
    reference(x, weight, eps)
}

/// `(x + residual, rms_norm(x + residual))`, both in the dtype of `x: [.., hidden]`.
///
/// Differentiable in `x`, `residual` and `weight`. Fails when the shapes do not match.
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let tracked = [x, residual, weight].iter().any(|t| t.track_op());
    if !tracked && rows::is_f32_on_cpu(x) && rows::is_f32_on_cpu(residual) && x.dims() == residual.dims() {
        let op = RmsNorm { level: Level::current(), weight: weight.contiguous()?, eps: eps as f32 };
        // [2, .., hidden]: the sum, then what it is normalised to
        let both = x.contiguous()?.apply_op2_no_bwd(&residual.contiguous()?, &op)?;
        return Ok((both.get(0)?, both.get(1)?));
    }
    #[cfg(feature = "metal")]
    if !tracked && metal::fits(&[x, residual, weight]) && x.dims() == residual.dims() {
        let both = metal::add_rms_norm(x, residual, weight, eps as f32)?;
        return Ok((both.get(0)?, both.get(1)?));
    }
    let sum = add(x, residual)?;
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

struct RmsNorm {
    level: Level,
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Hands the weight and the number of rows to `f`.
    fn with_weight<R>(
        &self,
        shape: &Shape,
        f: impl FnOnce(Floats, (usize, usize)) -> CandleResult<R>,
    ) -> CandleResult<R> {
        let Some(&hidden) = shape.dims().last() else { candle_core::bail!("rms_norm of a scalar") };
        let (storage, layout) = self.weight.storage_and_layout();
        let weight = Floats::new(&storage, layout, hidden)?;
        f(weight, (shape.elem_count() / hidden.max(1), hidden))
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = rows::slice::<f32>(storage, layout)?;
        let mut y = vec![0f32; x.len()];
        self.with_weight(layout.shape(), |weight, (count, hidden)| {
            rows::blocks((count, hidden), [&mut y], |range, [y]| {
                let x = &x[range.start * hidden..range.end * hidden];
                self.level.run(Forward { x, weight, eps: self.eps, y });
            });
            Ok(())
        })?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        metal::Norm::Rms.forward((x, layout), &self.weight, None, self.eps)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        #[cfg(feature = "metal")]
        if x.device().is_metal() {
            return metal::Norm::Rms.backward(x, &self.weight, dy, self.eps).map(Some);
        }
        let dx = rows::with_slice(x, |x_values| {
            rows::with_slice(&dy.contiguous()?, |dy| {
                let mut dx = vec![0f32; dy.len()];
                self.with_weight(x.shape(), |weight, (count, hidden)| {
                    rows::blocks((count, hidden), [&mut dx], |range, [dx]| {
                        let range = range.start * hidden..range.end * hidden;
                        let (x, dy) = (&x_values[range.clone()], &dy[range]);
                        self.level.run(Backward { x, dy, weight, eps: self.eps, dx });
                    });
                    Ok(())
                })?;
                Ok(dx)
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "add-rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (x, residual) =
            (rows::slice::<f32>(x, x_layout)?, rows::slice::<f32>(residual, residual_layout)?);
        let mut out = vec![0f32; 2 * x.len()];
        let (sum, y) = out.split_at_mut(x.len());
        self.with_weight(x_layout.shape(), |weight, (count, hidden)| {
            rows::blocks((count, hidden), [sum, y], |range, [sum, y]| {
                let range = range.start * hidden..range.end * hidden;
                for ((sum, x), residual) in sum.iter_mut().zip(&x[range.clone()]).zip(&residual[range]) {
                    *sum = x + residual;
                }
                self.level.run(Forward { x: sum, weight, eps: self.eps, y });
            });
            Ok(())
        })?;
        let shape: Vec<usize> = [2].into_iter().chain(x_layout.dims().iter().copied()).collect();
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn inverse_root<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let squares = rows::sum(s, x.len(), Squares { x, around: 0.0 });
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

struct Forward<'a> {
    x: &'a [f32],
    weight: Floats<'a>,
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hidden = self.weight.len();
        for (x, y) in self.x.chunks_exact(hidden).zip(self.y.chunks_exact_mut(hidden)) {
            let factor = s.splat(inverse_root(s, x, self.eps));
            for at in (0..hidden).step_by(S::LANES) {
                let n = S::LANES.min(hidden - at);
                let normed = s.mul(rows::load(s, x, at, n), factor);
                rows::store(s, y, at, n, s.mul(normed, self.weight.load(s, at, n)));
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

    /// With `r = 1 / sqrt(mean(x²) + eps)` and `g = weight * dy`: `dx = r g - x r³ mean(x g)`.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hidden = self.weight.len();
        let inputs = self.x.chunks_exact(hidden).zip(self.dy.chunks_exact(hidden));
        for ((x, dy), dx) in inputs.zip(self.dx.chunks_exact_mut(hidden)) {
            let r = inverse_root(s, x, self.eps);
            let g = Weighted { weight: self.weight, x: dy };
            let product = rows::sum(s, hidden, Product(x, g));
            let (factor, back) = (s.splat(r), s.splat(-r * r * r * product / hidden as f32));
            for at in (0..hidden).step_by(S::LANES) {
                let n = S::LANES.min(hidden - at);
                let v = s.fma(rows::load(s, x, at, n), back, s.mul(g.at(s, at, n), factor));
                rows::store(s, dx, at, n, v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, assert_differences, bits, gradients, tensor, var};

    fn fused(level: Level, x: &Tensor, weight: &Tensor) -> Tensor {
        rows::apply(x, RmsNorm { level, weight: weight.clone(), eps: 1e-5 }).unwrap()
    }

    #[test]
    fn every_level_equals_the_reference() {
        for hidden in [1, 15, 64, 67, 896] {
            let x = var(1, (3, 7, hidden));
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let weight = tensor(2, hidden).to_dtype(dtype).unwrap();
                let want = reference(&x, &weight, 1e-5).unwrap();
                let (sum, normed) = add_rms_norm(&x.detach(), &x.detach(), &weight, 1e-5).unwrap();
                let twice = (x.as_tensor() * 2.0).unwrap();
                assert_close(&sum, &twice, 0.0, "sum");
                assert_close(&normed, &reference(&twice, &weight, 1e-5).unwrap(), 2e-6, "after the sum");
                for level in Level::all() {
                    let (got, what) = (fused(level, &x, &weight), format!("{hidden}, {dtype:?}, {level:?}"));
                    assert_close(&got, &want, 2e-6, &what);
                    assert_close(&gradients(&[&x], &got)[0], &gradients(&[&x], &want)[0], 2e-5, &what);
                }
            }
        }
    }

    #[test]
    fn gradients_equal_differences() {
        let (x, residual, weight) = (var(1, (5, 37)), var(2, (5, 37)), var(3, 37));
        let frozen = tensor(3, 37);
        assert_differences(&[&x], |x| rms_norm(&x[0], &frozen, 1e-5).unwrap(), "frozen weight");
        assert_differences(&[&x, &weight], |x| rms_norm(&x[0], &x[1], 1e-5).unwrap(), "trained weight");
        let after_sum = |x: &[Tensor]| {
            let (sum, normed) = add_rms_norm(&x[0], &x[1], &frozen, 1e-5).unwrap();
            (sum + normed).unwrap()
        };
        assert_differences(&[&x, &residual], after_sum, "residual");
    }

    #[test]
    fn rows_do_not_change_each_other() {
        let (x, weight) = (tensor(1, (300, 129)), tensor(2, 129));
        let together = rms_norm(&x, &weight, 1e-5).unwrap();
        for row in [0, 128, 299] {
            let alone = rms_norm(&x.narrow(0, row, 1).unwrap(), &weight, 1e-5).unwrap();
            assert_eq!(bits(&alone), bits(&together.narrow(0, row, 1).unwrap()));
        }
    }

    #[test]
    fn odd_shapes() {
        assert_eq!(rms_norm(&tensor(1, (0, 8)), &tensor(2, 8), 1e-5).unwrap().dims(), [0, 8]);
        rms_norm(&tensor(1, (2, 8)), &tensor(2, 7), 1e-5).unwrap_err();
        let strided = tensor(1, (6, 9)).t().unwrap();
        let want = reference(&strided, &tensor(2, 6), 1e-5).unwrap();
        assert_close(&rms_norm(&strided, &tensor(2, 6), 1e-5).unwrap(), &want, 2e-6, "strided");
    }
}
