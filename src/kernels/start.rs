//! Where a backward pass starts that is not at a loss.
//!
//! The rest of a graph may have been differentiated already, which leaves a gradient for the tensor that joins the two.

use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};

use super::rows;
use crate::{Error, Result};

/// A scalar, of no meaning as such, whose gradient for `output` is `gradient`, of the same shape.
pub fn start(output: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if output.dims() != gradient.dims() {
        let found = format!("a gradient of shape {:?} for {:?}", gradient.dims(), output.dims());
        return Err(Error::internal("backward", found));
    }
    if !rows::is_f32_on_cpu(output) || !rows::is_f32_on_cpu(gradient) {
        return Ok((output * gradient)?.sum_all()?);
    }
    rows::apply(output, Start { gradient: gradient.detach() })
}

struct Start {
    gradient: Tensor,
}

impl CustomOp1 for Start {
    fn name(&self) -> &'static str {
        "start"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _output: &Tensor, _scalar: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        // That of a sum of several starts is 1 for each of them.
        Ok(Some(match grad.to_scalar::<f32>()? {
            1.0 => self.gradient.clone(),
            factor => (&self.gradient * f64::from(factor))?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{gradients, tensor, values, var};

    #[test]
    fn the_gradient_is_the_given_one() {
        let (x, slopes) = (var(1, (3, 5)), tensor(2, (3, 5)));
        let y = (x.as_tensor() * 3.0).unwrap();
        let expected = gradients(&[&x], &(&y * &slopes).unwrap().sum_all().unwrap());
        let scalar = start(&y, &slopes).unwrap();
        assert_eq!(values(&gradients(&[&x], &scalar)[0]), values(&expected[0]));
        let twice = gradients(&[&x], &(scalar * 2.0).unwrap());
        assert_eq!(values(&twice[0]), values(&(&expected[0] * 2.0).unwrap()));
        assert!(start(&y, &slopes.t().unwrap()).is_err());
    }
}
