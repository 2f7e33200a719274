//! Element-wise activations, alone or gating a second tensor.
//!
//! It does not know linear layers: gate and up are computed by the caller. Sources: Hendrycks and Gimpel 2016
//! (GELU), Shazeer 2020, "GLU Variants Improve Transformer"; names as in Hugging Face's `hidden_act`.

mod fused;

use candle_core::{Tensor, Var};

use self::fused::Fused;
use super::given::start;
use super::rows;
use super::simd::Level;
use crate::{Error, Result};

/// An element-wise non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * (1 + erf(x / √2)) / 2`.
    Gelu,
    /// GELU through its tanh approximation.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
    /// `tanh(x)`.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x`.
    Identity,
}

impl Activation {
    /// The names that [`Activation::from_name`] knows, for error messages.
    pub const NAMES: &[&str] = &[
        "silu",
        "swish",
        "gelu",
        "gelu_python",
        "gelu_new",
        "gelu_fast",
        "gelu_accurate",
        "gelu_pytorch_tanh",
        "gelu_python_tanh",
        "quick_gelu",
        "relu",
        "relu2",
        "tanh",
        "sigmoid",
        "linear",
    ];

    /// The activation that Hugging Face configurations call `name`, if it is known.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                Self::GeluTanh
            }
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            "relu2" => Self::ReluSquared,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "linear" => Self::Identity,
            _ => return None,
        })
    }
}

/// `act(x)` element by element, in the dtype of `x`; differentiable.
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    if fits(&[x]) && act.is_fused() {
        return rows::apply(&x.contiguous()?, Fused { level: Level::current(), act });
    }
    reference(x, act)
}

/// `act(gate) * up` element by element, in their dtype; differentiable in both.
///
/// Fails when the shapes or dtypes differ.
pub fn gated_act(gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
    if fits(&[gate, up]) && act.is_fused() && gate.dims() == up.dims() {
        let (gate, up) = (gate.contiguous()?, up.contiguous()?);
        let op = Fused { level: Level::current(), act };
        let tracked = gate.track_op() || up.track_op();
        return Ok(if tracked { gate.apply_op2(&up, op)? } else { gate.apply_op2_no_bwd(&up, &op)? });
    }
    Ok((reference(gate, act)? * up)?)
}

/// The gradients of `gate` and `up` in [`gated_act`] for the gradient `dy` of its result.
pub fn gated_act_gradient(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    act: Activation,
) -> Result<(Tensor, Tensor)> {
    if [gate, up, dy].iter().all(|x| rows::is_f32_on_cpu(x)) && act.is_fused() {
        let op = Fused { level: Level::current(), act };
        return Ok(op.gradient(&gate.contiguous()?, &up.contiguous()?, dy)?);
    }
    let (gate, up) = (Var::from_tensor(gate)?, Var::from_tensor(up)?);
    let y = gated_act(&gate, &up, act)?;
    let grads = start(&y, dy)?.backward()?;
    let of = |x: &Var| grads.get(x).cloned().ok_or_else(|| Error::internal("gated_act", "no gradient"));
    Ok((of(&gate)?, of(&up)?))
}

/// Whether there is a kernel for tensors like these.
fn fits(tensors: &[&Tensor]) -> bool {
    #[cfg(feature = "metal")]
    if super::metal::rows::fits(tensors) {
        return true;
    }
    tensors.iter().all(|x| rows::is_f32_on_cpu(x))
}

/// The activation in plain tensor ops, differentiable in `x`.
pub(crate) fn reference(x: &Tensor, act: Activation) -> Result<Tensor> {
    Ok(match act {
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::QuickGelu => (x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?,
        Activation::Relu => x.relu()?,
        Activation::ReluSquared => x.relu()?.sqr()?,
        Activation::Tanh => x.tanh()?,
        Activation::Sigmoid => candle_nn::ops::sigmoid(x)?,
        Activation::Identity => x.clone(),
    })
}

impl Activation {
    /// Whether there is a fused kernel; the others are rare or as fast in candle.
    fn is_fused(self) -> bool {
        matches!(self, Self::Silu | Self::Gelu | Self::GeluTanh | Self::QuickGelu)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::testing::{assert_close, assert_differences, gradients, tensor, values, var};

    const FUSED: [Activation; 4] =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu];

    #[test]
    fn every_listed_name_is_known() {
        for name in Activation::NAMES {
            assert!(Activation::from_name(name).is_some(), "{name}");
        }
        assert_eq!(Activation::from_name("Silu"), None);
    }

    #[test]
    fn every_level_equals_the_reference() {
        let scaled = |seed| Var::from_tensor(&(tensor(seed, (7, 19)) * 9.0).unwrap()).unwrap();
        let (gate, up) = (scaled(1), scaled(2));
        for act in FUSED {
            let alone = reference(&gate, act).unwrap();
            let gated = (reference(&gate, act).unwrap() * up.as_tensor()).unwrap();
            for level in Level::all() {
                let what = format!("{act:?}, {level:?}");
                let got = rows::apply(&gate, Fused { level, act }).unwrap();
                assert_close(&got, &alone, 2e-6, &what);
                assert_close(&gradients(&[&gate], &got)[0], &gradients(&[&gate], &alone)[0], 4e-6, &what);
                let got = gate.apply_op2(&up, Fused { level, act }).unwrap();
                assert_close(&got, &gated, 4e-6, &what);
                let (got, want) = (gradients(&[&gate, &up], &got), gradients(&[&gate, &up], &gated));
                assert_close(&got[0], &want[0], 4e-5, &what);
                assert_close(&got[1], &want[1], 4e-6, &what);
            }
        }
    }

    #[test]
    fn the_gradient_alone_is_that_of_the_graph() {
        let (gate, up, slopes) = (var(1, (5, 37)), var(2, (5, 37)), tensor(3, (5, 37)));
        for act in [Activation::Silu, Activation::GeluTanh, Activation::Relu] {
            let (d_gate, d_up) = gated_act_gradient(&gate, &up, &slopes, act).unwrap();
            let y = (reference(&gate, act).unwrap() * up.as_tensor()).unwrap();
            let want = (y * &slopes).unwrap().sum_all().unwrap().backward().unwrap();
            assert_close(&d_gate, want.get(&gate).unwrap(), 4e-6, "gate");
            assert_close(&d_up, want.get(&up).unwrap(), 4e-6, "up");
        }
    }

    #[test]
    fn gradients_equal_differences() {
        let (gate, up) = (var(1, (5, 37)), var(2, (5, 37)));
        for name in Activation::NAMES {
            let Some(act) = Activation::from_name(name) else { continue };
            assert_differences(&[&gate, &up], |x| gated_act(&x[0], &x[1], act).unwrap(), name);
            assert_differences(&[&gate], |x| activation(&x[0], act).unwrap(), name);
        }
    }

    /// Against `x erfc(-x / √2) / 2` of scipy 1.17, in f64.
    #[test]
    fn gelu_is_right_far_into_its_tail() {
        let cases = [
            (-1.0, -0.158_655_253_931_457_07),
            (-3.0, -0.004_049_694_094_890_288),
            (-5.0, -1.433_257_859_395_972_5e-6),
            (-10.0, -7.619_853_024_160_583e-23),
            (-30.0, 0.0),
            (5.0, 4.999_998_566_742_14),
            (100.0, 100.0),
        ];
        for (x, want) in cases {
            for level in Level::all() {
                let x = Tensor::new(&[x as f32], &Device::Cpu).unwrap();
                let got = rows::apply(&x, Fused { level, act: Activation::Gelu }).unwrap();
                let got = f64::from(values(&got)[0]);
                assert!((got - want).abs() <= 1e-6 * f64::abs(want), "{level:?}, {x}: {got} is not {want}");
            }
        }
    }

    #[test]
    fn extremes_stay_numbers() {
        let x = Var::new(&[-1e9f32, -1e4, -100.0, 100.0, 1e4, 1e9], &Device::Cpu).unwrap();
        for act in FUSED {
            for level in Level::all() {
                let y = rows::apply(&x, Fused { level, act }).unwrap();
                let slopes = y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
                let tiny = |x: f32| if x.abs() < 1e-30 { 0.0 } else { x };
                let (y, slopes) = (values(&y).into_iter().map(tiny), values(&slopes).into_iter().map(tiny));
                assert_eq!(y.collect::<Vec<_>>(), [0.0, 0.0, 0.0, 100.0, 1e4, 1e9], "{act:?}, {level:?}");
                assert_eq!(slopes.collect::<Vec<_>>(), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], "{act:?}, {level:?}");
            }
        }
    }

    #[test]
    fn odd_shapes() {
        let empty = tensor(1, (0, 8));
        assert_eq!(gated_act(&empty, &empty, Activation::Silu).unwrap().dims(), [0, 8]);
        gated_act(&tensor(1, (2, 8)), &tensor(1, (2, 7)), Activation::Silu).unwrap_err();
        let both = tensor(1, (4, 20));
        let (gate, up) = (both.narrow(1, 0, 10).unwrap(), both.narrow(1, 10, 10).unwrap());
        let want = (reference(&gate, Activation::Silu).unwrap() * &up).unwrap();
        assert_close(&gated_act(&gate, &up, Activation::Silu).unwrap(), &want, 1e-6, "halves");
    }
}
