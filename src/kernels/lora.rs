//! The low-rank path of an adapter beside a frozen weight: `y + scale · (x Aᵀ) B`.
//!
//! It does not know the frozen weight; `y` comes in computed. Source: Hu et al. 2021, "LoRA".

mod cpu;

use candle_core::{
    CpuStorage, CustomOp3, DType, Device, InplaceOp2, Layout, Result as CandleResult, Shape, Storage, Tensor,
};

use self::cpu::{Factors, Matrix, accumulate, dots};
use super::simd::Level;
use crate::{Error, Result};

/// `y + scale · (x Aᵀ) B` for `y: [tokens, out]`, `x: [tokens, in]`, `a: [rank, in]` and `b: [rank, out]`.
///
/// The result has the dtype of `y`; products are formed in the dtype of `a`. Differentiable in everything but `scale`.
/// The caller gives up `y`, whose memory may be reused. Fails when shapes do not fit.
pub fn lora(y: Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    check(&y, x, a, b)?;
    let all = [&y, x, a, b];
    if !all.iter().all(|t| matches!(t.device(), Device::Cpu) && t.dtype() == DType::F32) {
        return reference(&y, x, a, b, scale);
    }
    let (level, scale) = (Level::current(), scale as f32);
    let x = x.contiguous()?;
    if all.iter().any(|t| t.track_op()) {
        // One tensor for both factors: an op has three arguments at most.
        let factors = Tensor::cat(&[a.flatten_all()?, b.flatten_all()?], 0)?;
        let rank = a.dim(0)?;
        return Ok(y.contiguous()?.apply_op3(&x, &factors, LowRank { level, scale, rank })?);
    }
    let y = y.contiguous()?;
    y.inplace_op2(&x, &Added { level, scale, a: a.contiguous()?, b: b.contiguous()? })?;
    Ok(y)
}

fn check(y: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let ((rows, out), (tokens, inn)) = (y.dims2()?, x.dims2()?);
    let (rank, _) = a.dims2()?;
    if rows != tokens || a.dims() != [rank, inn] || b.dims() != [rank, out] {
        let (y, x, a, b) = (y.dims(), x.dims(), a.dims(), b.dims());
        return Err(Error::internal(
            "lora",
            format!("a {a:?} and b {b:?} do not lead from x {x:?} to y {y:?}"),
        ));
    }
    Ok(())
}

/// The same in plain tensor ops, differentiable in all tensors.
pub(crate) fn reference(y: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let inner = (x.to_dtype(a.dtype())?.matmul(&a.t()?)? * scale)?; // [tokens, rank]
    Ok((y + inner.matmul(b)?.to_dtype(y.dtype())?)?)
}

/// Shapes of one call.
#[derive(Clone, Copy)]
struct Dims {
    tokens: usize,
    inn: usize,
    out: usize,
    rank: usize,
}

/// `y += scale · (x Aᵀ) B` on slices.
fn add_to(level: Level, y: &mut [f32], x: &[f32], (a, b): (Matrix, Matrix), scale: f32, dims: Dims) {
    let Dims { tokens, inn, rank, .. } = dims;
    let mut inner = vec![0f32; tokens * rank];
    dots(level, Matrix::new(x, tokens, inn), a, scale, &mut inner);
    accumulate(level, Factors { data: &inner, row_step: rank, step: 1 }, b, tokens, y);
}

/// Adds in place, without a gradient.
struct Added {
    level: Level,
    scale: f32,
    a: Tensor,
    b: Tensor,
}

impl InplaceOp2 for Added {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> CandleResult<()> {
        let ((a, a_layout), (b, b_layout)) = (self.a.storage_and_layout(), self.b.storage_and_layout());
        let (a, b) = (slice(cpu(&a)?, a_layout)?, slice(cpu(&b)?, b_layout)?);
        let x = slice(x, x_layout)?;
        let ((tokens, out), (rank, inn)) = (y_layout.shape().dims2()?, self.a.dims2()?);
        let (CpuStorage::F32(y), Some((start, end))) = (y, y_layout.contiguous_offsets()) else {
            candle_core::bail!("lora: y is not contiguous f32");
        };
        let factors = (Matrix::new(a, rank, inn), Matrix::new(b, rank, out));
        add_to(self.level, &mut y[start..end], x, factors, self.scale, Dims { tokens, inn, out, rank });
        Ok(())
    }
}

/// Adds with a gradient; the third argument is the elements of `A`, then those of `B`.
struct LowRank {
    level: Level,
    scale: f32,
    rank: usize,
}

impl LowRank {
    fn dims(&self, y: &Shape, x: &Shape) -> CandleResult<Dims> {
        let ((tokens, out), (_, inn)) = (y.dims2()?, x.dims2()?);
        Ok(Dims { tokens, inn, out, rank: self.rank })
    }

    /// `A` and `B` inside of their common tensor.
    fn split(factors: &[f32], Dims { inn, out, rank, .. }: Dims) -> (Matrix<'_>, Matrix<'_>) {
        let (a, b) = factors.split_at(rank * inn);
        (Matrix::new(a, rank, inn), Matrix::new(b, rank, out))
    }

    /// Gradients of `x` and of the factors.
    fn backward(&self, g: &[f32], x: &[f32], factors: &[f32], dims: Dims) -> (Vec<f32>, Vec<f32>) {
        let Dims { tokens, inn, out, rank } = dims;
        let (a, b) = Self::split(factors, dims);
        let (x_rows, g_rows) = (Matrix::new(x, tokens, inn), Matrix::new(g, tokens, out));
        let (mut inner, mut dinner) = (vec![0f32; tokens * rank], vec![0f32; tokens * rank]);
        dots(self.level, x_rows, a, self.scale, &mut inner);
        dots(self.level, g_rows, b, self.scale, &mut dinner);
        let mut dx = vec![0f32; tokens * inn];
        accumulate(self.level, Factors { data: &dinner, row_step: rank, step: 1 }, a, tokens, &mut dx);
        let transposed = |data| Factors { data, row_step: 1, step: rank };
        let mut dfactors = vec![0f32; rank * (inn + out)];
        let (da, db) = dfactors.split_at_mut(rank * inn);
        accumulate(self.level, transposed(&dinner), x_rows, rank, da);
        accumulate(self.level, transposed(&inner), g_rows, rank, db);
        (dx, dfactors)
    }
}

impl CustomOp3 for LowRank {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        factors: &CpuStorage,
        factors_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let dims = self.dims(y_layout.shape(), x_layout.shape())?;
        let mut sum = slice(y, y_layout)?.to_vec();
        let (a, b) = Self::split(slice(factors, factors_layout)?, dims);
        add_to(self.level, &mut sum, slice(x, x_layout)?, (a, b), self.scale, dims);
        Ok((CpuStorage::F32(sum), y_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _y: &Tensor,
        x: &Tensor,
        factors: &Tensor,
        _sum: &Tensor,
        g: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dims = self.dims(g.shape(), x.shape())?;
        let g = g.contiguous()?;
        let (dx, dfactors) = {
            let ((gs, gl), (xs, xl)) = (g.storage_and_layout(), x.storage_and_layout());
            let (fs, fl) = factors.storage_and_layout();
            self.backward(slice(cpu(&gs)?, gl)?, slice(cpu(&xs)?, xl)?, slice(cpu(&fs)?, fl)?, dims)
        };
        let dx = Tensor::from_vec(dx, x.shape(), &Device::Cpu)?;
        let dfactors = Tensor::from_vec(dfactors, factors.shape(), &Device::Cpu)?;
        Ok((Some(g), Some(dx), Some(dfactors)))
    }
}

fn cpu(storage: &Storage) -> CandleResult<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => candle_core::bail!("lora: expected a tensor on the CPU"),
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> CandleResult<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("lora: expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    const SHAPES: [(usize, usize, usize, usize); 7] = [
        (1, 896, 37, 16),
        (1, 5, 3, 1),
        (3, 33, 64, 4),
        (8, 100, 130, 5),
        (67, 40, 300, 9),
        (130, 64, 17, 8),
        (2, 7, 9, 13),
    ];

    fn random(seed: u32, shape: (usize, usize)) -> Tensor {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| next()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        let differences = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        differences.into_iter().fold(0.0, f32::max)
    }

    fn arguments((tokens, inn, out, rank): (usize, usize, usize, usize)) -> [Tensor; 4] {
        [random(1, (tokens, out)), random(2, (tokens, inn)), random(3, (rank, inn)), random(4, (rank, out))]
    }

    #[test]
    fn the_fused_sum_equals_the_reference_at_every_level() {
        for shape in SHAPES {
            let [y, x, a, b] = arguments(shape);
            let expected = reference(&y, &x, &a, &b, 0.5).unwrap();
            for level in Level::all() {
                let sum = y.copy().unwrap();
                sum.inplace_op2(&x, &Added { level, scale: 0.5, a: a.clone(), b: b.clone() }).unwrap();
                assert!(worst(&sum, &expected) < 1e-4, "{shape:?}, {level:?}");
            }
        }
    }

    #[test]
    fn gradients_equal_those_of_the_reference() {
        for shape in SHAPES {
            let vars = arguments(shape).map(|tensor| Var::from_tensor(&tensor).unwrap());
            let [y, x, a, b] = vars.each_ref().map(|var| var.as_tensor().clone());
            let weights = random(9, (shape.0, shape.2));
            let pull = |sum: Tensor| (sum * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            let fused = pull(lora(y.clone(), &x, &a, &b, 1.5).unwrap());
            let plain = pull(reference(&y, &x, &a, &b, 1.5).unwrap());
            for (var, name) in vars.iter().zip(["y", "x", "a", "b"]) {
                let (fused, plain) = (fused.get(var).unwrap(), plain.get(var).unwrap());
                assert!(worst(fused, plain) < 2e-4, "{shape:?}, {name}");
            }
        }
    }

    #[test]
    fn a_part_of_a_larger_tensor_can_be_added_to() {
        let [y, x, a, b] = arguments((6, 20, 24, 4));
        let expected = reference(&y, &x, &a, &b, 1.0).unwrap();
        let part = lora(y.copy().unwrap().narrow(0, 2, 3).unwrap(), &x.narrow(0, 2, 3).unwrap(), &a, &b, 1.0);
        assert!(worst(&part.unwrap(), &expected.narrow(0, 2, 3).unwrap()) < 1e-5);
        // The second factor may be a transposed view.
        let view = b.t().unwrap().contiguous().unwrap().t().unwrap();
        assert!(worst(&lora(y.copy().unwrap(), &x, &a, &view, 1.0).unwrap(), &expected) < 1e-5);
        assert!(lora(y, &x, &b, &a, 1.0).is_err());
    }
}
