//! The gated feed-forward block of decoder models (Shazeer 2020, "GLU Variants Improve Transformer").

use candle_core::Tensor;

use super::{Linear, Pass};
use crate::Result;
use crate::kernels::gated_act::{Activation, gated_act};
use crate::weight::Scope;

/// `down(act(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl GatedMlp {
    /// Reads `gate_proj`, `up_proj` and `down_proj` below `scope`.
    pub fn load(
        scope: &Scope,
        hidden: usize,
        intermediate: usize,
        bias: bool,
        activation: Activation,
    ) -> Result<Self> {
        Ok(Self {
            gate_proj: Linear::load(&scope.at("gate_proj"), hidden, intermediate, bias)?,
            up_proj: Linear::load(&scope.at("up_proj"), hidden, intermediate, bias)?,
            down_proj: Linear::load(&scope.at("down_proj"), intermediate, hidden, bias)?,
            activation,
        })
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let gate = self.gate_proj.forward(x, pass)?;
        let up = self.up_proj.forward(x, pass)?;
        self.down_proj.forward(&gated_act(&gate, &up, self.activation)?, pass)
    }

    pub(super) fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        for linear in [&self.gate_proj, &self.up_proj, &self.down_proj] {
            visit(linear);
        }
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate_proj, &mut self.up_proj, &mut self.down_proj]
    }
}
