//! Cross-entropy of next-token logits, with ignored tokens and label smoothing.
//!
//! It returns the sum, not the mean, so that losses of several chunks or micro-batches add up exactly; dividing by
//! the token count is the trainer's business. The definition is that of torch's `cross_entropy`.

use candle_core::{D, DType, Tensor};

use crate::{Error, Result};

/// The label of a token that does not count.
pub const IGNORED_LABEL: i64 = -100;

/// The summed loss (an f32 scalar) of `logits: [tokens, vocab]` against one label per token, and how many counted.
///
/// A label of [`IGNORED_LABEL`] leaves its token out. With `label_smoothing = s` a token's target is `1 - s` on its
/// label plus `s / vocab` everywhere. Fails when a label lies outside of the vocabulary or the lengths differ.
pub fn cross_entropy(logits: &Tensor, labels: &[i64], label_smoothing: f32) -> Result<(Tensor, usize)> {
    let (tokens, vocab) = logits.dims2()?;
    if labels.len() != tokens {
        let found = format!("{} labels for {tokens} rows of logits", labels.len());
        return Err(Error::internal("cross_entropy", found));
    }
    if let Some(label) = labels.iter().find(|&&l| l != IGNORED_LABEL && !(0..vocab as i64).contains(&l)) {
        let found = format!("label {label} is outside of the vocabulary of {vocab}");
        return Err(Error::internal("cross_entropy", found));
    }
    let counted = labels.iter().filter(|&&l| l != IGNORED_LABEL).count();
    Ok((reference(logits, labels, label_smoothing)?, counted))
}

/// The same in plain tensor ops, differentiable in `logits`.
pub(crate) fn reference(logits: &Tensor, labels: &[i64], label_smoothing: f32) -> Result<Tensor> {
    let (rows, targets): (Vec<u32>, Vec<u32>) = labels
        .iter()
        .enumerate()
        .filter(|&(_, &label)| label != IGNORED_LABEL)
        .map(|(row, &label)| (row as u32, label as u32))
        .unzip();
    let (counted, device) = (rows.len(), logits.device());
    if counted == 0 {
        return Ok(Tensor::zeros((), DType::F32, device)?);
    }
    let logits = logits.index_select(&Tensor::from_vec(rows, counted, device)?, 0)?.to_dtype(DType::F32)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum(D::Minus1)?.log()?; // [counted]
    let picked = shifted.gather(&Tensor::from_vec(targets, (counted, 1), device)?, 1)?.squeeze(1)?;
    let nll = (&log_sum - picked)?.sum_all()?;
    if label_smoothing == 0.0 {
        return Ok(nll);
    }
    let smoothing = f64::from(label_smoothing);
    let uniform = (log_sum - shifted.mean(D::Minus1)?)?.sum_all()?;
    Ok(((nll * (1.0 - smoothing))? + (uniform * smoothing)?)?)
}
