//! Weight-decomposed low-rank adaptation: direction by LoRA, length by a magnitude of its own (Liu et al. 2024, "DoRA").
//!
//! Each output's weights `w + scaling · B A` are divided by their length and multiplied by the learnt magnitude. As in
//! PEFT the length counts as a constant in the gradient (section 4.3 of the paper), and a bias is added afterwards.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, DType, Tensor};

use super::layout::MAGNITUDE;
use super::lora::Lora;
use super::parts::Parts;
use crate::Result;
use crate::nn::Adapter;
use crate::weight::Weight;

/// Rows of a weight that are looked at together.
const BLOCK_ROWS: usize = 1024;

/// A low-rank change with magnitudes.
#[derive(Debug)]
struct Dora {
    lora: Lora,
    /// `[out]`
    magnitude: Tensor,
    gain: Gain,
}

/// Magnitude divided by length, `[out]`.
#[derive(Debug)]
enum Gain {
    /// Finished adapters have it once and for all.
    Fixed(Tensor),
    /// While training, lengths change with every update.
    Following { clock: Arc<super::Clock>, lengths: Mutex<Lengths> },
}

/// The lengths as of the update they were computed for.
#[derive(Debug, Default)]
struct Lengths {
    /// Squared lengths of the frozen weight's rows.
    base: Option<Tensor>,
    current: Option<(u64, Tensor)>,
}

/// Builds the adapter of a site that has factors and magnitudes.
pub(super) fn build(parts: &Parts) -> Result<Option<Arc<dyn Adapter>>> {
    let Some(magnitude) = parts.get(MAGNITUDE).cloned() else { return Ok(None) };
    let Some(lora) = Lora::from_parts(parts)? else { return Ok(None) };
    let gain = match &parts.training {
        Some(training) => Gain::Following { clock: Arc::clone(&training.clock), lengths: Mutex::default() },
        None => {
            let lengths = lengths(parts.site.weight.as_ref(), Some(&lora))?.sqrt()?;
            Gain::Fixed((magnitude.to_dtype(DType::F32)? / lengths)?.to_dtype(magnitude.dtype())?)
        }
    };
    Ok(Some(Arc::new(Dora { lora, magnitude, gain })))
}

/// The length of each row of a weight, `[out]` in f32: where magnitudes start.
pub(super) fn row_lengths(base: &dyn Weight) -> Result<Tensor> {
    Ok(lengths(base, None)?.sqrt()?)
}

/// Squared lengths of the rows of a weight, perhaps changed, `[out]` in f32.
fn lengths(base: &dyn Weight, change: Option<&Lora>) -> Result<Tensor> {
    let (out, _) = base.shape();
    let factors = match change {
        Some(lora) => Some((lora.a.to_dtype(DType::F32)?, (lora.b.to_dtype(DType::F32)? * lora.scaling)?)),
        None => None,
    };
    let mut blocks = Vec::with_capacity(out.div_ceil(BLOCK_ROWS));
    for first in (0..out).step_by(BLOCK_ROWS) {
        let last = (first + BLOCK_ROWS).min(out);
        let ids: Vec<u32> = (first as u32..last as u32).collect();
        let mut rows = base.rows(&ids, DType::F32)?;
        if let Some((a, b)) = &factors {
            rows = (rows + b.narrow(1, first, last - first)?.t()?.contiguous()?.matmul(a)?)?;
        }
        blocks.push(rows.sqr()?.sum(D::Minus1)?);
    }
    Ok(Tensor::cat(&blocks, 0)?)
}

impl Dora {
    /// Magnitude divided by the present lengths; differentiable in the magnitude only.
    fn gain(&self, base: &dyn Weight) -> Result<Tensor> {
        let (clock, lengths) = match &self.gain {
            Gain::Fixed(gain) => return Ok(gain.clone()),
            Gain::Following { clock, lengths } => (clock, lengths),
        };
        let mut lengths = lengths.lock().unwrap_or_else(PoisonError::into_inner);
        let update = clock.update();
        let current = match &lengths.current {
            Some((of, current)) if *of == update => current.clone(),
            _ => self.follow(base, &mut lengths, update)?,
        };
        Ok((&self.magnitude / current)?)
    }

    /// Lengths from those of the frozen rows: `|w|² + 2 s (w Aᵀ)·b + s² b (A Aᵀ) b`, without the whole change.
    fn follow(&self, base: &dyn Weight, cached: &mut Lengths, update: u64) -> Result<Tensor> {
        let (a, b) = (self.lora.a.detach(), self.lora.b.detach());
        let squared = match &cached.base {
            Some(squared) => squared.clone(),
            None => cached.base.insert(self::lengths(base, None)?).clone(),
        };
        let b = (b.contiguous()? * self.lora.scaling)?;
        let cross = (base.matmul(&a)? * &b)?.sum(0)?; // [rank, out] -> [out]
        let own = (a.matmul(&a.t()?)?.matmul(&b)? * &b)?.sum(0)?;
        let lengths = ((squared + (cross * 2.0)?)? + own)?.sqrt()?;
        cached.current = Some((update, lengths.clone()));
        Ok(lengths)
    }
}

impl Adapter for Dora {
    fn forward(&self, base: &dyn Weight, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let gain = self.gain(base)?.to_dtype(y.dtype())?;
        let dropout = self.lora.dropout.as_ref().filter(|dropout| dropout.is_active());
        let (old, new) = (self.lora.rebias.old.as_ref(), self.lora.rebias.effective());
        if let Some(dropout) = dropout {
            // As in PEFT, the frozen weight too sees what was not dropped.
            let x = dropout.apply(x)?;
            let y = self.lora.add_to(base.matmul(&x)?, &x)?.broadcast_mul(&gain)?;
            return Ok(match new {
                Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?)?,
                None => y,
            });
        }
        let y = self.lora.add_to(y, x)?.broadcast_mul(&gain)?;
        // The old bias in `y` has been multiplied too.
        let shift = match (new, old) {
            (Some(new), Some(old)) => (new.to_dtype(gain.dtype())? - (old.to_dtype(gain.dtype())? * &gain)?)?,
            (Some(new), None) => new.to_dtype(gain.dtype())?,
            _ => return Ok(y),
        };
        Ok(y.broadcast_add(&shift)?)
    }

    fn merged(&self, base: &dyn Weight) -> Result<Tensor> {
        let changed = (base.dequantize(DType::F32)? + self.lora.delta()?)?;
        Ok(changed.broadcast_mul(&self.gain(base)?.to_dtype(DType::F32)?.unsqueeze(1)?)?)
    }

    fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = self.lora.parameters()?;
        all.push((MAGNITUDE.to_owned(), self.magnitude.clone()));
        Ok(all)
    }

    fn bias(&self, _base: Option<&Tensor>) -> Result<Option<Tensor>> {
        Ok(self.lora.rebias.new.clone())
    }
}
