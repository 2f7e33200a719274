//! The gated feed-forward block of decoder models (Shazeer 2020, "GLU Variants Improve Transformer").

use std::sync::Arc;

use candle_core::Tensor;

use super::{Linear, Pass};
use crate::Result;
use crate::kernels::gated_act::{Activation, gated_act, gated_act_gradient};
use crate::kernels::given::{can_be_given, given_of_two};
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
        if (gate.track_op() || up.track_op()) && can_be_given(&gate) && !self.down_proj.is_adapted(pass) {
            return self.down(gate, up, pass);
        }
        self.down_proj.forward_last(&gated_act(&gate, &up, self.activation)?, pass)
    }

    /// `down(act(gate) * up)` whose gradients need `gate` and `up` alone, so that the product of both is not kept.
    fn down(&self, gate: Tensor, up: Tensor, pass: &Pass) -> Result<Tensor> {
        let (weight, activation) = (Arc::clone(self.down_proj.weight()), self.activation);
        let saved = (gate.detach(), up.detach());
        let value = if pass.is_gradients_only() {
            Tensor::zeros((gate.dim(0)?, weight.shape().0), gate.dtype(), gate.device())?
        } else {
            self.down_proj.forward(&gated_act(&saved.0, &saved.1, activation)?, pass)?
        };
        given_of_two(&gate, &up, &value, move |dy| {
            gated_act_gradient(&saved.0, &saved.1, &weight.gradient(dy)?, activation)
        })
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
