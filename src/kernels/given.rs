//! Nodes of a graph whose value and gradient come from elsewhere.
//!
//! candle keeps what an op was applied to and adds up what its backward pass gives; here that is all that is left of a
//! longer computation whose steps need not be kept, or were differentiated already. f32 on the CPU.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Error as CandleError, Layout, Result as CandleResult, Shape, Tensor,
};

use super::rows;
use crate::{Error, Result};

/// Whether [`given`] and [`given_of_two`] take this tensor.
pub fn can_be_given(x: &Tensor) -> bool {
    rows::is_f32_on_cpu(x)
}

/// `value`, whose gradient for `x` is what `gradient` makes of its own.
pub fn given(
    x: &Tensor,
    value: &Tensor,
    gradient: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    check(&[x, value])?;
    rows::apply(x, Given { value: value.detach().contiguous()?, gradient })
}

/// As [`given`], with gradients for `x` and `y`.
pub fn given_of_two(
    x: &Tensor,
    y: &Tensor,
    value: &Tensor,
    gradient: impl Fn(&Tensor) -> Result<(Tensor, Tensor)> + Send + Sync + 'static,
) -> Result<Tensor> {
    check(&[x, y, value])?;
    let op = Given { value: value.detach().contiguous()?, gradient };
    Ok(if x.track_op() || y.track_op() { x.apply_op2(y, op)? } else { value.detach() })
}

/// A scalar, of no meaning as such, whose gradient for `output` is `gradient`, of the same shape.
///
/// A backward pass that starts from it goes on where the gradient comes from.
pub fn start(output: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if output.dims() != gradient.dims() {
        let found = format!("a gradient of shape {:?} for {:?}", gradient.dims(), output.dims());
        return Err(Error::internal("backward", found));
    }
    if !can_be_given(output) || !can_be_given(gradient) {
        return Ok((output * gradient)?.sum_all()?);
    }
    let gradient = gradient.detach();
    given(output, &Tensor::new(0f32, output.device())?, move |factor| {
        Ok(match factor.to_scalar::<f32>()? {
            1.0 => gradient.clone(),
            factor => (&gradient * f64::from(factor))?,
        })
    })
}

fn check(tensors: &[&Tensor]) -> Result<()> {
    match tensors.iter().find(|x| !can_be_given(x)) {
        Some(x) => Err(Error::internal("a given tensor", format!("{:?} on {:?}", x.dtype(), x.device()))),
        None => Ok(()),
    }
}

struct Given<F> {
    value: Tensor,
    gradient: F,
}

impl<F> Given<F> {
    fn storage(&self) -> CandleResult<(CpuStorage, Shape)> {
        let values = rows::with_slice(&self.value, |values| Ok(values.to_vec()))?;
        Ok((CpuStorage::F32(values), self.value.shape().clone()))
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for Given<F> {
    fn name(&self) -> &'static str {
        "given"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.storage()
    }

    fn bwd(&self, _x: &Tensor, _value: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        (self.gradient)(grad).map(Some).map_err(CandleError::wrap)
    }
}

impl<F: Fn(&Tensor) -> Result<(Tensor, Tensor)>> CustomOp2 for Given<F> {
    fn name(&self) -> &'static str {
        "given"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        self.storage()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _value: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dy) = (self.gradient)(grad).map_err(CandleError::wrap)?;
        Ok((x.track_op().then_some(dx), y.track_op().then_some(dy)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{gradients, tensor, values, var};

    #[test]
    fn a_start_passes_its_gradient_on() {
        let (x, slopes) = (var(1, (3, 5)), tensor(2, (3, 5)));
        let y = (x.as_tensor() * 3.0).unwrap();
        let expected = gradients(&[&x], &(&y * &slopes).unwrap().sum_all().unwrap());
        let scalar = start(&y, &slopes).unwrap();
        assert_eq!(values(&gradients(&[&x], &scalar)[0]), values(&expected[0]));
        let twice = gradients(&[&x], &(scalar * 2.0).unwrap());
        assert_eq!(values(&twice[0]), values(&(&expected[0] * 2.0).unwrap()));
        assert!(start(&y, &slopes.t().unwrap()).is_err());
    }

    #[test]
    fn value_and_gradients_are_those_given() {
        let (x, y, value) = (var(1, (2, 3)), var(2, (4,)), tensor(3, (5, 2)));
        let one = given(&x, &value, |dy| Ok(dy.flatten_all()?.narrow(0, 0, 6)?.reshape((2, 3))?)).unwrap();
        assert_eq!((one.dims(), values(&one)), (value.dims(), values(&value)));
        let found = one.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(found.get(&x).unwrap()), [1.0; 6]);
        let gradient = |dy: &Tensor| {
            let flat = dy.flatten_all()?;
            Ok((flat.narrow(0, 0, 6)?.reshape((2, 3))?, (flat.narrow(0, 6, 4)? * 2.0)?))
        };
        let two = given_of_two(&x, &y, &value, gradient).unwrap();
        let found = two.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(found.get(&x).unwrap()), [1.0; 6]);
        assert_eq!(values(found.get(&y).unwrap()), [2.0; 4]);
        let constant = tensor(2, (4,));
        assert_eq!(values(&given_of_two(&constant, &constant, &value, gradient).unwrap()), values(&value));
        assert!(given(&x, &value.to_dtype(candle_core::DType::F64).unwrap(), |dy| Ok(dy.clone())).is_err());
    }
}
