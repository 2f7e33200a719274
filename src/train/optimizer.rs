//! AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"), as torch computes it.
//!
//! All parameters share one step counter. Which parameters decay is the caller's decision.

use candle_core::{Tensor, Var};

use super::TrainerOptions;
use crate::{Error, Result};

/// Constants of the optimizer.
#[derive(Debug, Clone, Copy)]
pub struct AdamWConfig {
    /// Decay of the averages of gradients and of their squares.
    pub betas: (f64, f64),
    /// Added to the divisor.
    pub eps: f64,
    /// Decay of decaying parameters, relative to the learning rate.
    pub weight_decay: f64,
}

impl From<&TrainerOptions> for AdamWConfig {
    fn from(options: &TrainerOptions) -> Self {
        Self { betas: options.betas, eps: options.eps, weight_decay: options.weight_decay }
    }
}

/// One parameter with its averages.
#[derive(Debug)]
pub struct Slot {
    /// The parameter.
    pub var: Var,
    /// Whether it decays.
    pub decays: bool,
    /// Running average of gradients.
    pub exp_avg: Tensor,
    /// Running average of squared gradients.
    pub exp_avg_sq: Tensor,
}

/// The optimizer's state.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    step: usize,
}

impl AdamW {
    /// An optimizer at its beginning for parameters and whether each decays.
    pub fn new(config: AdamWConfig, parameters: impl Iterator<Item = (Var, bool)>) -> Result<Self> {
        let slots = parameters.map(|(var, decays)| {
            let zeros = var.zeros_like()?.detach();
            Ok(Slot { var, decays, exp_avg: zeros.clone(), exp_avg_sq: zeros })
        });
        Ok(Self { config, slots: slots.collect::<Result<_>>()?, step: 0 })
    }

    /// Steps taken.
    pub fn step_count(&self) -> usize {
        self.step
    }

    /// Parameters and averages, in the order given to [`AdamW::new`].
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Goes back to a saved state: steps taken, and both averages of every parameter.
    pub fn restore(&mut self, step: usize, averages: Vec<(Tensor, Tensor)>) {
        self.step = step;
        for (slot, (exp_avg, exp_avg_sq)) in self.slots.iter_mut().zip(averages) {
            (slot.exp_avg, slot.exp_avg_sq) = (exp_avg, exp_avg_sq);
        }
    }

    /// Moves every parameter against its gradient; `gradients` are in the order of the parameters.
    ///
    /// Nothing has changed where it fails.
    ///
    /// # Errors
    /// [`Error::Diverged`] where a parameter would no longer be finite.
    pub fn update(&mut self, gradients: &[Tensor], learning_rate: f64) -> Result<()> {
        let AdamWConfig { betas: (beta1, beta2), eps, weight_decay } = self.config;
        let step = (self.step + 1) as f64;
        let correction1 = 1.0 - beta1.powf(step);
        let correction2 = (1.0 - beta2.powf(step)).sqrt();
        let mut changes = Vec::with_capacity(self.slots.len());
        let mut sums = Vec::with_capacity(self.slots.len());
        for (slot, gradient) in self.slots.iter().zip(gradients) {
            let exp_avg = ((&slot.exp_avg * beta1)? + (gradient * (1.0 - beta1))?)?;
            let exp_avg_sq = ((&slot.exp_avg_sq * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let divisor = ((exp_avg_sq.sqrt()? / correction2)? + eps)?;
            let mut value = slot.var.as_detached_tensor();
            if slot.decays {
                value = (value * (1.0 - learning_rate * weight_decay))?;
            }
            let value = (value - ((&exp_avg / divisor)? * (learning_rate / correction1))?)?;
            sums.push(value.sum_all()?);
            changes.push((value, exp_avg, exp_avg_sq));
        }
        // One look for all of them: a sum is finite only if everything in it is.
        if !Tensor::stack(&sums, 0)?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(Error::Diverged { step: self.step + 1, loss: f64::NAN });
        }
        for (slot, (value, exp_avg, exp_avg_sq)) in self.slots.iter_mut().zip(changes) {
            slot.var.set(&value)?;
            (slot.exp_avg, slot.exp_avg_sq) = (exp_avg, exp_avg_sq);
        }
        self.step += 1;
        Ok(())
    }
}

/// The Euclidean norm of all gradients together.
pub fn global_norm(gradients: &[Tensor]) -> Result<f64> {
    let mut squares = 0.0;
    for gradient in gradients {
        squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(squares.sqrt())
}

/// Scales gradients down so that their norm is at most `max_norm`, as torch's `clip_grad_norm_` does.
pub fn clip(gradients: &mut [Tensor], norm: f64, max_norm: f64) -> Result<()> {
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        for gradient in gradients {
            *gradient = (&*gradient * factor)?;
        }
    }
    Ok(())
}
