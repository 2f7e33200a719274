//! The state of a training run that layers look at: how far it is, and the randomness that follows from that.
//!
//! Random masks are a function of seed, pass, layer and element. A layer that is computed again for its gradient
//! therefore draws the same mask, and a run that is resumed the same masks as one that was not interrupted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use candle_core::Tensor;

use super::random::{hash_text, mix};
use crate::Result;

/// Shared by all layers of an adapter in training.
#[derive(Debug)]
pub struct Clock {
    seed: u64,
    pass: AtomicU64,
    update: AtomicU64,
    training: AtomicBool,
}

impl Clock {
    /// A clock at its beginning, not training.
    pub fn new(seed: u64) -> Self {
        Self { seed, pass: AtomicU64::new(0), update: AtomicU64::new(0), training: AtomicBool::new(false) }
    }

    /// Names the pass that follows; masks differ between passes.
    pub fn begin_pass(&self, pass: u64) {
        self.pass.store(pass, Ordering::Relaxed);
    }

    /// Says that parameters have changed.
    pub fn parameters_changed(&self) {
        self.update.fetch_add(1, Ordering::Relaxed);
    }

    /// Turns dropout on or off.
    pub fn set_training(&self, training: bool) {
        self.training.store(training, Ordering::Relaxed);
    }

    /// Counts changes of parameters.
    pub(super) fn update(&self) -> u64 {
        self.update.load(Ordering::Relaxed)
    }
}

/// Zeroes inputs of one layer at random and scales up the others.
#[derive(Debug)]
pub(super) struct Dropout {
    probability: f64,
    layer: u64,
    clock: Arc<Clock>,
}

impl Dropout {
    pub(super) fn new(probability: f64, path: &str, clock: Arc<Clock>) -> Self {
        Self { probability, layer: hash_text(path), clock }
    }

    pub(super) fn is_active(&self) -> bool {
        self.clock.training.load(Ordering::Relaxed)
    }

    /// `x` with its elements dropped; any shape.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let key = mix(self.clock.seed ^ mix(self.layer ^ mix(self.clock.pass.load(Ordering::Relaxed))));
        // One hash gives two decisions of 32 bits.
        let threshold = (self.probability * 4_294_967_296.0) as u64;
        let scale = (1.0 / (1.0 - self.probability)) as f32;
        let keep = |bits: u64| if (bits & 0xffff_ffff) < threshold { 0.0 } else { scale };
        let mut mask = Vec::with_capacity(x.elem_count() + 1);
        for pair in 0..x.elem_count().div_ceil(2) as u64 {
            let bits = mix(key.wrapping_add(pair.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            mask.extend([keep(bits), keep(bits >> 32)]);
        }
        mask.truncate(x.elem_count());
        let mask = Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?;
        Ok((x * mask)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn masks_repeat_within_a_pass_and_differ_between_passes_and_layers() {
        let clock = Arc::new(Clock::new(3));
        let x = Tensor::ones((64, 33), DType::F32, &Device::Cpu).unwrap();
        let draw = |path: &str| {
            let dropout = Dropout::new(0.25, path, Arc::clone(&clock));
            dropout.apply(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let first = draw("a");
        assert_eq!(first, draw("a"));
        assert_ne!(first, draw("b"));
        clock.begin_pass(1);
        assert_ne!(first, draw("a"));
        let kept = first.iter().filter(|value| **value > 0.0).count() as f64 / first.len() as f64;
        assert!((kept - 0.75).abs() < 0.04, "{kept}");
        assert!(first.iter().all(|value| *value == 0.0 || (*value - 4.0 / 3.0).abs() < 1e-6));
    }
}
