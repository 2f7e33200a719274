//! The head that turns hidden states of a sequence into scores of labels.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::kernels::gated_act::{Activation, activation};
use crate::nn::{LayerNorm, Linear, Pass};
use crate::weight::Scope;

/// Which head a family has, in its own names.
#[derive(Debug, Clone)]
pub struct ClassifierConfig {
    /// The first layer, below the backbone where `dense_in_backbone`.
    pub dense: &'static str,
    /// Whether the first layer belongs to the backbone.
    pub dense_in_backbone: bool,
    /// Whether the first layer has a bias.
    pub dense_bias: bool,
    /// What follows the first layer.
    pub activation: Activation,
    /// A norm after the activation: its name, epsilon, and whether it has a bias.
    pub norm: Option<(&'static str, f64, bool)>,
    /// The last layer.
    pub output: &'static str,
    /// Whether the head sees the mean of a sequence instead of its first token.
    pub mean: bool,
    /// Number of labels.
    pub labels: usize,
}

/// A loaded head.
#[derive(Debug)]
pub(super) struct Classifier {
    dense: Linear,
    activation: Activation,
    norm: Option<LayerNorm>,
    output: Linear,
    mean: bool,
    labels: usize,
}

impl Classifier {
    pub(super) fn load(
        root: &Scope,
        backbone: &Scope,
        hidden: usize,
        config: &ClassifierConfig,
    ) -> Result<Self> {
        let scope = if config.dense_in_backbone { backbone } else { root };
        let norm = match config.norm {
            Some((name, eps, bias)) => Some(LayerNorm::load(&root.at(name), hidden, eps, bias)?),
            None => None,
        };
        Ok(Self {
            dense: Linear::load(&scope.at(config.dense), hidden, hidden, config.dense_bias)?,
            activation: config.activation,
            norm,
            output: Linear::load(&root.at(config.output), hidden, config.labels, true)?,
            mean: config.mean,
            labels: config.labels,
        })
    }

    pub(super) fn labels(&self) -> usize {
        self.labels
    }

    /// Hidden states `[tokens, hidden]` to f32 scores `[sequences, labels]`.
    pub(super) fn forward(&self, hidden: &Tensor, pass: &Pass) -> Result<Tensor> {
        let batch = pass.batch();
        let rows: Vec<u32> = batch.offsets()[..batch.sequences()].iter().map(|row| *row as u32).collect();
        let seen = if self.mean {
            let mean = |index: usize| -> Result<Tensor> {
                let rows = batch.rows(index);
                let states = hidden.narrow(0, rows.start, rows.len())?.to_dtype(DType::F32)?;
                Ok((states.sum_keepdim(0)? / rows.len() as f64)?)
            };
            let means = (0..batch.sequences()).map(mean).collect::<Result<Vec<_>>>()?;
            Tensor::cat(&means, 0)?.to_dtype(hidden.dtype())?
        } else {
            let rows = Tensor::new(rows.as_slice(), hidden.device())?;
            hidden.index_select(&rows, 0)?
        };
        // The head's rows are sequences, not tokens: adapters of the pass do not apply to it.
        let sequences = crate::batch::Batch::new();
        let head = Pass::new(&sequences);
        let mut x = activation(&self.dense.forward(&seen, &head)?, self.activation)?;
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        Ok(self.output.forward(&x, &head)?.to_dtype(DType::F32)?)
    }
}
