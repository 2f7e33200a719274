//! Normalisation layers over the kernels of the same names.

use candle_core::Tensor;

use crate::weight::Scope;
use crate::{Result, kernels};

/// Root-mean-square norm with a weight `[hidden]`.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Reads `weight` below `scope`.
    pub fn load(scope: &Scope, hidden: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: scope.tensor("weight", &[hidden])?, eps })
    }

    /// Normalises the last dimension.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::rms_norm::rms_norm(x, &self.weight, self.eps)
    }

    /// `(x + residual, norm(x + residual))` in one go.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        kernels::rms_norm::add_rms_norm(x, residual, &self.weight, self.eps)
    }

    /// The weight `[hidden]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

/// Layer norm with a weight and perhaps a bias, both `[hidden]`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and, if asked for, `bias` below `scope`, or `gamma` and `beta` as early checkpoints call them.
    pub fn load(scope: &Scope, hidden: usize, eps: f64, bias: bool) -> Result<Self> {
        let names = if scope.contains("gamma") { ["gamma", "beta"] } else { ["weight", "bias"] };
        let weight = scope.tensor(names[0], &[hidden])?;
        let bias = if bias { Some(scope.tensor(names[1], &[hidden])?) } else { None };
        Ok(Self { weight, bias, eps })
    }

    /// Normalises the last dimension.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::layer_norm::layer_norm(x, &self.weight, self.bias.as_ref(), self.eps)
    }
}
