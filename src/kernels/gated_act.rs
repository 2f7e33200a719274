//! Element-wise activations, alone or gating a second tensor.
//!
//! It does not know linear layers: gate and up are computed by the caller. Sources: Hendrycks and Gimpel 2016
//! (GELU), Shazeer 2020, "GLU Variants Improve Transformer"; names as in Hugging Face's `hidden_act`.

use candle_core::Tensor;

use crate::Result;

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

/// `act(x)` element by element, in the dtype of `x`.
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    reference(x, act)
}

/// `act(gate) * up` element by element; both have the same shape and dtype.
///
/// Fails when the shapes differ.
pub fn gated_act(gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
    Ok((reference(gate, act)? * up)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_known() {
        for name in Activation::NAMES {
            assert!(Activation::from_name(name).is_some(), "{name}");
        }
        assert_eq!(Activation::from_name("Silu"), None);
    }
}
