//! The sum of two tensors of one shape, such as a residual connection.
//!
//! candle adds large tensors on threads of its own, which wait by spinning and take the cores from the one pool that
//! all kernels here share; this uses that pool. It does not broadcast.

use candle_core::{CpuStorage, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};

use super::rows;
use crate::Result;

/// `x + y` for two tensors of the same shape and dtype on one device. Differentiable in both.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !rows::is_f32_on_cpu(x) || !rows::is_f32_on_cpu(y) || x.dims() != y.dims() {
        return Ok((x + y)?);
    }
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    let tracked = x.track_op() || y.track_op();
    Ok(if tracked { x.apply_op2(&y, Add)? } else { x.apply_op2_no_bwd(&y, &Add)? })
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (x, y) = (rows::slice::<f32>(x, x_layout)?, rows::slice::<f32>(y, y_layout)?);
        let mut sums = vec![0f32; x.len()];
        rows::blocks((x.len(), 1), [&mut sums], |range, [sums]| {
            for ((sum, x), y) in sums.iter_mut().zip(&x[range.clone()]).zip(&y[range]) {
                *sum = x + y;
            }
        });
        Ok((CpuStorage::F32(sums), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _y: &Tensor,
        _sum: &Tensor,
        gradient: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.clone()), Some(gradient.clone())))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn sums_and_gradients_are_candles() {
        let values = |seed: usize| (0..3 * 40_000).map(move |i| ((i * 7919 + seed) % 97) as f32 - 48.0);
        let tensor =
            |seed| Tensor::from_iter(values(seed), &Device::Cpu).unwrap().reshape((3, 40_000)).unwrap();
        let (x, y) = (Var::from_tensor(&tensor(1)).unwrap(), tensor(2).narrow(0, 0, 3).unwrap());
        let sum = add(&x, &y).unwrap();
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&sum), flat(&(x.as_tensor() + &y).unwrap()));
        let turned = add(&x.t().unwrap(), &y.t().unwrap()).unwrap();
        assert_eq!(flat(&turned.t().unwrap()), flat(&sum));
        let slopes = tensor(3);
        let gradients = (sum * &slopes).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(flat(gradients.get(&x).unwrap()), flat(&slopes));
        assert!(add(&x, &y.narrow(1, 0, 7).unwrap()).is_err());
    }
}
