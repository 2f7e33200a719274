//! A linear layer: a frozen weight, perhaps a bias, and whatever adapters the work brings along.

use std::sync::Arc;

use candle_core::Tensor;

use super::Pass;
use crate::Result;
use crate::kernels::given::{can_be_given, given};
use crate::weight::{Scope, Weight};

/// `y = x · Wᵀ + b` under the checkpoint's path.
#[derive(Debug, Clone)]
pub struct Linear {
    path: String,
    weight: Arc<dyn Weight>,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` `[out, in]` and, if asked for, `bias` `[out]` below `scope`.
    pub fn load(scope: &Scope, inn: usize, out: usize, bias: bool) -> Result<Self> {
        let weight = scope.matrix("weight", out, inn)?;
        let bias = if bias { Some(scope.tensor("bias", &[out])?) } else { None };
        Ok(Self { path: scope.path().to_owned(), weight, bias })
    }

    /// A layer over an existing weight, such as a head tied to the embedding.
    pub fn new(path: impl Into<String>, weight: Arc<dyn Weight>, bias: Option<Tensor>) -> Self {
        Self { path: path.into(), weight, bias }
    }

    /// `[tokens, in]` to `[tokens, out]`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        pass.check()?;
        self.adapt(x, self.weight.linear(x, self.bias.as_ref())?, pass)
    }

    /// As [`Linear::forward`] where nobody needs the values of a pass that is for gradients only, which this is told by
    /// being the last of a layer.
    pub fn forward_last(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let needed = !pass.is_gradients_only() || pass.adapters().at(&self.path).any(|a| a.needs_output());
        if needed || !can_be_given(x) {
            return self.forward(x, pass);
        }
        pass.check()?;
        let (tokens, _) = x.dims2()?;
        let nothing = Tensor::zeros((tokens, self.weight.shape().0), x.dtype(), x.device())?;
        let weight = Arc::clone(&self.weight);
        self.adapt(x, given(x, &nothing, move |dy| weight.gradient(dy))?, pass)
    }

    /// Whether an adapter of the pass changes this layer.
    pub(super) fn is_adapted(&self, pass: &Pass) -> bool {
        pass.adapters().at(&self.path).next().is_some()
    }

    fn adapt(&self, x: &Tensor, y: Tensor, pass: &Pass) -> Result<Tensor> {
        pass.adapters().apply(&self.path, y, |adapter, rows, part| {
            let input =
                if rows.len() == x.dims()[0] { x.clone() } else { x.narrow(0, rows.start, rows.len())? };
            adapter.forward(self.weight.as_ref(), &input, part)
        })
    }

    /// The path that checkpoints and adapter files use.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The frozen weight.
    pub fn weight(&self) -> &Arc<dyn Weight> {
        &self.weight
    }

    /// The bias `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}
