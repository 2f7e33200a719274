//! The product of activations with a frozen weight: `y = x Wᵀ`.
//!
//! Its backward pass gives the gradient of `x` only: a frozen weight needs none, and candle's own matmul would compute
//! and keep one as large as the weight. A bias is added on the way and is as frozen as the weight; what is trained beside
//! them is an adapter's business. Second derivatives are not supported.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result as CandleResult, Shape, Storage, Tensor,
};

use super::cpu::{PackedMatrix, PackedQuant};
use super::rows;
use crate::{Error, Result};

/// `x Wᵀ + bias` for `x: [.., in]`, a packed weight `[out, in]` and `bias: [out]`, f32 on the CPU; gives `[.., out]`.
///
/// Differentiable in `x`. Fails when `x` is elsewhere, of another dtype, or of another width, and when the bias does not
/// fit.
pub fn packed_linear(x: &Tensor, weight: &Arc<PackedMatrix>, bias: Option<&Tensor>) -> Result<Tensor> {
    apply(&x.contiguous()?, Packed::new(weight, bias)?)
}

/// As [`packed_linear`], for a weight in a block format; activations are quantised as ggml does, gradients are not.
pub fn quant_linear(x: &Tensor, weight: &Arc<PackedQuant>, bias: Option<&Tensor>) -> Result<Tensor> {
    apply(&x.contiguous()?, Packed::new(weight, bias)?)
}

/// `x Wᵀ` for `x: [.., in]` and `weight: [out, in]` of the same dtype on the same device; gives `[.., out]`.
///
/// Differentiable in `x` only: `weight` counts as a constant. Fails when shapes, dtypes or devices do not agree.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if !x.device().same_device(weight.device()) || x.dtype() != weight.dtype() {
        let got = format!("{:?} on {:?}", weight.dtype(), weight.device().location());
        let expected = format!("{:?} on {:?}, as the input", x.dtype(), x.device().location());
        return Err(Error::argument("weight of a linear layer", got, expected));
    }
    apply(&x.contiguous()?, Dense { weight: weight.detach(), transposed: false })
}

/// The gradient `dy W` of `x` in [`packed_linear`], for `dy: [.., out]`; gives `[.., in]`.
pub fn packed_gradient(dy: &Tensor, weight: &Arc<PackedMatrix>) -> Result<Tensor> {
    Ok(dy.contiguous()?.apply_op1_no_bwd(&Packed { weight: weight.clone(), bias: None, transposed: true })?)
}

/// The same in [`quant_linear`].
pub fn quant_gradient(dy: &Tensor, weight: &Arc<PackedQuant>) -> Result<Tensor> {
    Ok(dy.contiguous()?.apply_op1_no_bwd(&Packed { weight: weight.clone(), bias: None, transposed: true })?)
}

/// The same in [`linear`].
pub fn gradient(dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(dy.contiguous()?.apply_op1_no_bwd(&Dense { weight: weight.detach(), transposed: true })?)
}

/// Applies `op`, leaving a trace for the backward pass only where one is needed.
fn apply<Op: CustomOp1 + Send + Sync + 'static>(x: &Tensor, op: Op) -> Result<Tensor> {
    Ok(if x.track_op() { x.apply_op1(op)? } else { x.apply_op1_no_bwd(&op)? })
}

/// The shape of `x` with its last dimension `from` replaced by `to`, and the number of rows.
fn output_shape(layout: &Layout, from: usize, to: usize) -> CandleResult<(Shape, usize)> {
    let mut dims = layout.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == from => *last = to,
        _ => candle_core::bail!(
            "linear: input of shape {:?}, expected a last dimension of {from}",
            layout.shape()
        ),
    }
    let rows = dims[..dims.len() - 1].iter().product();
    Ok((Shape::from(dims), rows))
}

/// A packed weight of either kind.
trait Matrix: Send + Sync + 'static {
    fn shape(&self) -> (usize, usize);
    fn matmul(&self, x: &[f32], y: &mut [f32], bias: Option<&[f32]>);
    fn matmul_t(&self, dy: &[f32], dx: &mut [f32]);
}

impl Matrix for PackedMatrix {
    fn shape(&self) -> (usize, usize) {
        self.shape()
    }

    fn matmul(&self, x: &[f32], y: &mut [f32], bias: Option<&[f32]>) {
        self.matmul(x, y, bias);
    }

    fn matmul_t(&self, dy: &[f32], dx: &mut [f32]) {
        self.matmul_t(dy, dx);
    }
}

impl Matrix for PackedQuant {
    fn shape(&self) -> (usize, usize) {
        self.shape()
    }

    fn matmul(&self, x: &[f32], y: &mut [f32], bias: Option<&[f32]>) {
        self.matmul(x, y, bias);
    }

    fn matmul_t(&self, dy: &[f32], dx: &mut [f32]) {
        self.matmul_t(dy, dx);
    }
}

struct Packed<M> {
    weight: Arc<M>,
    bias: Option<Tensor>,
    /// Multiplies with `W` instead of `Wᵀ`: the backward pass of the other.
    transposed: bool,
}

impl<M: Matrix> Packed<M> {
    fn new(weight: &Arc<M>, bias: Option<&Tensor>) -> Result<Self> {
        let (out, _) = weight.shape();
        if let Some(bias) = bias.filter(|bias| !rows::is_f32_on_cpu(bias) || bias.dims() != [out]) {
            let got = format!("{:?} {:?} on {:?}", bias.dtype(), bias.dims(), bias.device().location());
            return Err(Error::argument("bias of a linear layer", got, format!("F32 [{out}] on the CPU")));
        }
        let bias = bias.map(|bias| bias.detach().contiguous()).transpose()?;
        Ok(Self { weight: Arc::clone(weight), bias, transposed: false })
    }
}

impl<M: Matrix> CustomOp1 for Packed<M> {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (out, inn) = self.weight.shape();
        let (from, to) = if self.transposed { (out, inn) } else { (inn, out) };
        let (shape, count) = output_shape(layout, from, to)?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("linear: the input is not contiguous");
        };
        let x = &storage.as_slice::<f32>()?[start..end];
        let mut y = vec![0f32; count * to];
        match &self.bias {
            _ if self.transposed => self.weight.matmul_t(x, &mut y),
            None => self.weight.matmul(x, &mut y, None),
            Some(bias) => rows::with_slice(bias, |bias| {
                self.weight.matmul(x, &mut y, Some(bias));
                Ok(())
            })?,
        }
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        if self.transposed {
            return Err(candle_core::Error::BackwardNotSupported { op: self.name() });
        }
        let op = Packed { weight: self.weight.clone(), bias: None, transposed: true };
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&op)?))
    }
}

struct Dense {
    weight: Tensor,
    /// Multiplies with `W` instead of `Wᵀ`: the backward pass of the other.
    transposed: bool,
}

impl Dense {
    /// Multiplies on whichever backend `S` is.
    fn forward<S: BackendStorage>(&self, x: &S, layout: &Layout, weight: &S) -> CandleResult<(S, Shape)> {
        let weight_layout = match self.transposed {
            true => self.weight.layout().clone(),
            false => self.weight.layout().transpose(0, 1)?,
        };
        let (from, to) = weight_layout.shape().dims2()?;
        let (shape, rows) = output_shape(layout, from, to)?;
        let rows_layout = Layout::contiguous_with_offset((rows, from), layout.start_offset());
        Ok((x.matmul(weight, (1, rows, to, from), &rows_layout, &weight_layout)?, shape))
    }
}

impl CustomOp1 for Dense {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        match &*self.weight.storage_and_layout().0 {
            Storage::Cpu(weight) => self.forward(x, layout, weight),
            _ => candle_core::bail!("linear: the weight is not on the CPU"),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        match &*self.weight.storage_and_layout().0 {
            Storage::Cuda(weight) => self.forward(x, layout, weight),
            _ => candle_core::bail!("linear: the weight is not on the CUDA device"),
        }
    }

    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        match &*self.weight.storage_and_layout().0 {
            #[cfg(feature = "metal")]
            Storage::Metal(weight) if !self.transposed => {
                let weight = (weight, self.weight.layout());
                let (out, inn) = weight.1.shape().dims2()?;
                let (shape, rows) = output_shape(layout, inn, out)?;
                match super::metal::linear::fits(rows, weight) {
                    true => Ok((super::metal::linear::linear((x, layout), weight, rows)?, shape)),
                    false => self.forward(x, layout, weight.0),
                }
            }
            Storage::Metal(weight) => self.forward(x, layout, weight),
            _ => candle_core::bail!("linear: the weight is not on the Metal device"),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        if self.transposed {
            return Err(candle_core::Error::BackwardNotSupported { op: self.name() });
        }
        let op = Dense { weight: self.weight.clone(), transposed: true };
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&op)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn tensor(shape: (usize, usize, usize), seed: u64) -> Tensor {
        let values =
            (0..shape.0 * shape.1 * shape.2).map(|i| ((i as u64 * 7919 + seed) % 97) as f32 / 97.0 - 0.5);
        Tensor::from_iter(values, &Device::Cpu).unwrap().reshape(shape).unwrap()
    }

    fn weight(out: usize, inn: usize) -> (Tensor, Arc<PackedMatrix>) {
        let weight = tensor((1, out, inn), 3).squeeze(0).unwrap();
        let values: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
        let packed = PackedMatrix::pack_f32(&values, out, inn).unwrap();
        (weight, Arc::new(packed))
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        for (a, b) in values(a).into_iter().zip(values(b)) {
            assert!((a - b).abs() <= 1e-5, "{a} and {b}");
        }
    }

    #[test]
    fn both_equal_a_plain_product() {
        let (weight, packed) = weight(19, 23);
        let x = tensor((2, 3, 23), 1);
        let expected = x.broadcast_matmul(&weight.t().unwrap()).unwrap();
        assert_close(&packed_linear(&x, &packed, None).unwrap(), &expected);
        assert_close(&linear(&x, &weight).unwrap(), &expected);
        let bias = tensor((1, 1, 19), 5).flatten_all().unwrap();
        let biased = packed_linear(&x, &packed, Some(&bias)).unwrap();
        assert_close(&biased, &expected.broadcast_add(&bias).unwrap());
        // A view that starts inside its storage, and one that is not contiguous.
        let tail = x.narrow(0, 1, 1).unwrap();
        assert_close(&packed_linear(&tail, &packed, None).unwrap(), &expected.narrow(0, 1, 1).unwrap());
        assert_close(&linear(&tail, &weight).unwrap(), &expected.narrow(0, 1, 1).unwrap());
        let turned = x.transpose(0, 1).unwrap();
        assert_close(&packed_linear(&turned, &packed, None).unwrap(), &expected.transpose(0, 1).unwrap());
        assert_close(&linear(&turned, &weight).unwrap(), &expected.transpose(0, 1).unwrap());
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (weight, packed) = weight(7, 11);
        let start = tensor((1, 4, 11), 2);
        let ops: [&dyn Fn(&Tensor) -> Tensor; 2] =
            [&|x| packed_linear(x, &packed, None).unwrap(), &|x| linear(x, &weight).unwrap()];
        for op in ops {
            // A loss in which every output has a slope of its own.
            let loss = |x: &Tensor| (op(x).sqr().unwrap() * tensor((1, 4, 7), 9)).unwrap().sum_all().unwrap();
            let x = Var::from_tensor(&start).unwrap();
            let grads = loss(&x).backward().unwrap();
            let gradient = values(grads.get(&x).unwrap());
            let at = |i: usize, step: f32| {
                let mut moved = values(&start);
                moved[i] += step;
                let moved = Tensor::from_vec(moved, start.dims(), &Device::Cpu).unwrap();
                loss(&moved).to_scalar::<f32>().unwrap()
            };
            for (i, gradient) in gradient.into_iter().enumerate() {
                let slope = (at(i, 1e-2) - at(i, -1e-2)) / 2e-2;
                assert!((slope - gradient).abs() < 2e-3, "input {i}: gradient {gradient}, slope {slope}");
            }
        }
    }

    #[test]
    fn a_quantised_weight_passes_the_gradient_of_its_values() {
        // Q8_0 blocks with the scale 2^-7: every value is a code over 128.
        let code = |i: usize| (i * 37 % 255) as u8;
        let blocks: Vec<u8> =
            (0..5 * 2).flat_map(|b| [0, 0x20].into_iter().chain((b * 32..b * 32 + 32).map(code))).collect();
        let packed = PackedQuant::pack(super::super::cpu::BlockFormat::Q8_0, &[&blocks], 64).unwrap();
        let weight: Vec<f32> = (0..5 * 64).map(|i| f32::from(code(i) as i8) / 128.0).collect();
        let weight = Tensor::from_vec(weight, (5, 64), &Device::Cpu).unwrap();
        let x = Var::from_tensor(&tensor((2, 3, 64), 1)).unwrap();
        let y = quant_linear(&x, &Arc::new(packed), None).unwrap();
        let expected = x.broadcast_matmul(&weight.t().unwrap()).unwrap();
        for (a, b) in values(&y).into_iter().zip(values(&expected)) {
            assert!((a - b).abs() <= 0.02, "{a} and {b}");
        }
        let slopes = tensor((2, 3, 5), 9);
        let grads = (y * &slopes).unwrap().sum_all().unwrap().backward().unwrap();
        assert_close(grads.get(&x).unwrap(), &slopes.broadcast_matmul(&weight).unwrap());
    }

    #[test]
    fn the_weight_gets_no_gradient_and_an_untracked_input_no_graph() {
        let (weight, packed) = weight(5, 6);
        let weight = Var::from_tensor(&weight).unwrap();
        let x = Var::from_tensor(&tensor((1, 2, 6), 4)).unwrap();
        let grads = linear(&x, &weight).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some() && grads.get(&weight).is_none());
        let x = x.detach();
        assert!(!packed_linear(&x, &packed, None).unwrap().track_op());
        assert!(!linear(&x, &weight).unwrap().track_op());
    }

    #[test]
    fn wrong_inputs_are_refused() {
        let (weight, packed) = weight(5, 6);
        let wide = tensor((1, 2, 7), 4);
        assert!(
            packed_linear(&wide, &packed, None)
                .unwrap_err()
                .to_string()
                .contains("expected a last dimension of 6")
        );
        assert!(linear(&wide, &weight).is_err());
        let half = tensor((1, 2, 6), 4).to_dtype(candle_core::DType::BF16).unwrap();
        assert!(packed_linear(&half, &packed, None).is_err());
        let bias = tensor((1, 1, 6), 4).flatten_all().unwrap();
        let error = packed_linear(&tensor((1, 2, 6), 4), &packed, Some(&bias)).unwrap_err();
        assert!(error.to_string().contains("[5] on the CPU"), "{error}");
        assert!(linear(&half, &weight).is_err());
    }
}
