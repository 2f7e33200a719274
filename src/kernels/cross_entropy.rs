//! Cross-entropy of next-token logits, with ignored tokens and label smoothing.
//!
//! It returns the sum, not the mean, so that losses of several chunks or micro-batches add up exactly; dividing by
//! the token count is the trainer's business. The definition is that of torch's `cross_entropy`.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, D, DType, Device, InplaceOp1, Layout, Result as CandleResult, Shape, Tensor, Var,
};

use super::rows::{self, Term};
use super::simd::{Kernel, Level, Simd};
use crate::{Error, Result};

/// The label of a token that does not count.
pub const IGNORED_LABEL: i64 = -100;

/// The summed loss (an f32 scalar) of `logits: [tokens, vocab]` against one label per token, and how many counted.
///
/// A label of [`IGNORED_LABEL`] leaves its token out. With `label_smoothing = s` a token's target is `1 - s` on its
/// label plus `s / vocab` everywhere. Differentiable in `logits`. Fails when a label lies outside of the vocabulary or
/// the lengths differ.
pub fn cross_entropy(logits: &Tensor, labels: &[i64], label_smoothing: f32) -> Result<(Tensor, usize)> {
    check(logits, labels)?;
    let counted = labels.iter().filter(|&&l| l != IGNORED_LABEL).count();
    #[cfg(feature = "metal")]
    if super::metal::rows::fits(&[logits]) {
        let labels: Vec<_> = labels.iter().map(|&label| usize::try_from(label).ok()).collect();
        return Ok((super::metal::cross_entropy::cross_entropy(logits, &labels, label_smoothing)?, counted));
    }
    let loss = if rows::is_f32_on_cpu(logits) {
        let labels = labels.iter().map(|&label| usize::try_from(label).ok()).collect();
        let (level, log_sums) = (Level::current(), Mutex::default());
        rows::apply(&logits.contiguous()?, CrossEntropy { level, labels, label_smoothing, log_sums })?
    } else {
        reference(logits, labels, label_smoothing)?
    };
    Ok((loss, counted))
}

fn check(logits: &Tensor, labels: &[i64]) -> Result<()> {
    let (tokens, vocab) = logits.dims2()?;
    if labels.len() != tokens {
        let found = format!("{} labels for {tokens} rows of logits", labels.len());
        return Err(Error::internal("cross_entropy", found));
    }
    match labels.iter().find(|&&l| l != IGNORED_LABEL && !(0..vocab as i64).contains(&l)) {
        Some(label) => {
            let found = format!("label {label} is outside of the vocabulary of {vocab}");
            Err(Error::internal("cross_entropy", found))
        }
        None => Ok(()),
    }
}

/// The summed loss of [`cross_entropy`], and the gradient of `factor` times it for `logits`, which it takes the place of.
///
/// Nothing can be differentiated through either. It takes half of the memory and of the time of a graph.
pub fn cross_entropy_gradient(
    logits: Tensor,
    labels: &[i64],
    label_smoothing: f32,
    factor: f32,
) -> Result<(f64, Tensor)> {
    if !rows::is_f32_on_cpu(&logits) {
        let logits = Var::from_tensor(&logits)?;
        let (loss, _) = cross_entropy(&logits, labels, label_smoothing)?;
        let grads = (&loss * f64::from(factor))?.backward()?;
        let gradient = grads.get(&logits).ok_or_else(|| Error::internal("cross_entropy", "no gradient"))?;
        return Ok((f64::from(loss.to_scalar::<f32>()?), gradient.clone()));
    }
    check(&logits, labels)?;
    let logits = logits.detach().contiguous()?;
    let labels = labels.iter().map(|&label| usize::try_from(label).ok()).collect();
    let op = InPlace { level: Level::current(), labels, label_smoothing, factor, loss: Mutex::new(0.0) };
    logits.inplace_op1(&op)?;
    let loss = op.loss.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((loss, logits))
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

struct CrossEntropy {
    level: Level,
    /// `None` does not count.
    labels: Vec<Option<usize>>,
    label_smoothing: f32,
    /// The logarithm of each row's sum of exponentials, kept from the forward for the backward pass.
    log_sums: Mutex<Vec<f32>>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let logits = rows::slice::<f32>(storage, layout)?;
        let (tokens, vocab) = layout.shape().dims2()?;
        let (mut log_sums, mut losses) = (vec![0f32; tokens], vec![0f32; tokens]);
        rows::row_blocks(
            (tokens, vocab),
            [(&mut log_sums, 1), (&mut losses, 1)],
            |range, [log_sums, losses]| {
                for ((row, log_sum), loss) in range.zip(log_sums).zip(losses) {
                    let Some(label) = self.labels[row] else { continue };
                    let logits = &logits[row * vocab..(row + 1) * vocab];
                    (*log_sum, *loss) = row_loss(self.level, logits, label, self.label_smoothing);
                }
            },
        );
        *self.log_sums.lock().unwrap_or_else(PoisonError::into_inner) = log_sums;
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() as f32;
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    /// `softmax - target`, times the gradient of the loss.
    fn bwd(&self, logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let factor = grad.to_scalar::<f32>()?;
        let (tokens, vocab) = logits.dims2()?;
        let log_sums = self.log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = vec![0f32; tokens * vocab];
        rows::with_slice(logits, |logits| {
            rows::row_blocks((tokens, vocab), [(&mut out, vocab)], |range, [out]| {
                for (row, out) in range.zip(out.chunks_exact_mut(vocab)) {
                    let Some(label) = self.labels[row] else { continue };
                    let logits = &logits[row * vocab..(row + 1) * vocab];
                    out.copy_from_slice(logits);
                    row_gradient(self.level, out, label, (log_sums[row], self.label_smoothing, factor));
                }
            });
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(out, (tokens, vocab), &Device::Cpu)?))
    }
}

/// Writes the gradient over the logits.
struct InPlace {
    level: Level,
    labels: Vec<Option<usize>>,
    label_smoothing: f32,
    factor: f32,
    loss: Mutex<f64>,
}

impl InplaceOp1 for InPlace {
    fn name(&self) -> &'static str {
        "cross-entropy-gradient"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> CandleResult<()> {
        let (tokens, vocab) = layout.shape().dims2()?;
        let (CpuStorage::F32(logits), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("cross-entropy: expected contiguous f32");
        };
        let mut losses = vec![0f32; tokens];
        rows::row_blocks(
            (tokens, vocab),
            [(&mut logits[start..end], vocab), (&mut losses, 1)],
            |range, [logits, losses]| {
                for ((row, logits), loss) in range.zip(logits.chunks_exact_mut(vocab)).zip(losses) {
                    let Some(label) = self.labels[row] else {
                        logits.fill(0.0);
                        continue;
                    };
                    let log_sum;
                    (log_sum, *loss) = row_loss(self.level, logits, label, self.label_smoothing);
                    row_gradient(self.level, logits, label, (log_sum, self.label_smoothing, self.factor));
                }
            },
        );
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum();
        *self.loss.lock().unwrap_or_else(PoisonError::into_inner) = loss;
        Ok(())
    }
}

/// The logarithm of a row's sum of exponentials, and the loss against `label`.
fn row_loss(level: Level, logits: &[f32], label: usize, label_smoothing: f32) -> (f32, f32) {
    let (log_sum, sum) = level.run(LogSum(logits));
    let mut loss = (1.0 - label_smoothing) * (log_sum - logits[label]);
    if label_smoothing != 0.0 {
        loss += label_smoothing * (log_sum - sum / logits.len() as f32);
    }
    (log_sum, loss)
}

/// `factor * (softmax - target)` in place of a row of logits.
fn row_gradient(
    level: Level,
    row: &mut [f32],
    label: usize,
    (log_sum, label_smoothing, factor): (f32, f32, f32),
) {
    let everywhere = -factor * label_smoothing / row.len() as f32;
    level.run(Softmax { row, log_sum, factor, everywhere });
    row[label] -= factor * (1.0 - label_smoothing);
}

/// Elements that are read from memory once and then twice from the nearest cache.
const PIECE: usize = 4096;

/// The logarithm of the sum of exponentials, and the plain sum.
struct LogSum<'a>(&'a [f32]);

impl Kernel for LogSum<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let (mut max, mut exponentials, mut plain) = (f32::NEG_INFINITY, 0f32, 0f64);
        for piece in self.0.chunks(PIECE) {
            let mut largest = s.splat(max);
            for at in (0..piece.len()).step_by(S::LANES) {
                let n = S::LANES.min(piece.len() - at);
                largest = s.max(largest, rows::load_filled(s, piece, at, n, f32::NEG_INFINITY));
            }
            let next = s.largest(largest);
            // A row of nothing but minus infinity has no maximum to subtract.
            let shift = if next == f32::NEG_INFINITY { 0.0 } else { next };
            let sum = rows::sum(s, piece.len(), Exponentials { x: piece, shift });
            exponentials = exponentials * (max - shift).exp() + sum;
            plain += f64::from(rows::sum(s, piece.len(), piece));
            max = next;
        }
        (max + exponentials.ln(), plain as f32)
    }
}

/// `exp(x - shift)`.
#[derive(Clone, Copy)]
struct Exponentials<'a> {
    x: &'a [f32],
    shift: f32,
}

impl Term for Exponentials<'_> {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, at: usize, n: usize) -> S::V {
        s.exp(s.sub(rows::load_filled(s, self.x, at, n, f32::NEG_INFINITY), s.splat(self.shift)))
    }
}

/// `factor * exp(x - log_sum) + everywhere` in place of `x`.
struct Softmax<'a> {
    row: &'a mut [f32],
    log_sum: f32,
    factor: f32,
    everywhere: f32,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in (0..self.row.len()).step_by(S::LANES) {
            let n = S::LANES.min(self.row.len() - at);
            let share = s.exp(s.sub(rows::load(s, self.row, at, n), s.splat(self.log_sum)));
            rows::store(s, self.row, at, n, s.fma(share, s.splat(self.factor), s.splat(self.everywhere)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, assert_differences, gradients, tensor, values, var};

    fn fused(level: Level, logits: &Tensor, labels: &[i64], label_smoothing: f32) -> Tensor {
        let labels = labels.iter().map(|&label| usize::try_from(label).ok()).collect();
        let op = CrossEntropy { level, labels, label_smoothing, log_sums: Mutex::default() };
        rows::apply(logits, op).unwrap()
    }

    #[test]
    fn every_level_equals_the_reference() {
        for vocab in [1, 2, 17, 64, 5000, 9001] {
            let logits = Var::from_tensor(&(tensor(1, (9, vocab)) * 20.0).unwrap()).unwrap();
            let label = |i: i64| if i % 4 == 1 { IGNORED_LABEL } else { i * 977 % vocab as i64 };
            let labels: Vec<i64> = (0..9).map(label).collect();
            for smoothing in [0.0, 0.1] {
                let want = reference(&logits, &labels, smoothing).unwrap();
                for level in Level::all() {
                    let got = fused(level, &logits, &labels, smoothing);
                    let what = format!("{vocab}, {smoothing}, {level:?}");
                    assert_close(&got, &want, 2e-6, &what);
                    let (got, want) = (gradients(&[&logits], &got), gradients(&[&logits], &want));
                    assert_close(&got[0], &want[0], 4e-6, &what);
                }
            }
        }
    }

    #[test]
    fn gradients_equal_differences() {
        let logits = var(1, (6, 40));
        for smoothing in [0.0, 0.2] {
            let f = |x: &[Tensor]| cross_entropy(&x[0], &[3, -100, 39, 0, 7, -100], smoothing).unwrap().0;
            assert_differences(&[&logits], f, "cross-entropy");
        }
    }

    #[test]
    fn sums_of_parts_are_the_whole() {
        let logits = tensor(1, (4, 11));
        let part = |from, labels: &[i64]| {
            let (loss, counted) = cross_entropy(&logits.narrow(0, from, 2).unwrap(), labels, 0.1).unwrap();
            (values(&loss)[0], counted)
        };
        let (first, second) = (part(0, &[3, -100]), part(2, &[10, 0]));
        let (loss, counted) = cross_entropy(&logits, &[3, -100, 10, 0], 0.1).unwrap();
        assert!((values(&loss)[0] - first.0 - second.0).abs() < 1e-5);
        assert_eq!((counted, first.1, second.1), (3, 1, 2));
    }

    #[test]
    fn the_gradient_in_place_is_that_of_the_graph() {
        let labels = [3, IGNORED_LABEL, 0, 40, 7];
        for smoothing in [0.0, 0.1] {
            let logits = Var::from_tensor(&(tensor(1, (5, 41)) * 9.0).unwrap()).unwrap();
            let want = reference(&logits, &labels, smoothing).unwrap();
            let (loss, got) =
                cross_entropy_gradient(logits.as_tensor().copy().unwrap(), &labels, smoothing, 0.25).unwrap();
            assert!((loss - f64::from(values(&want)[0])).abs() < 1e-4, "{loss} {want}");
            let want = (want * 0.25).unwrap().backward().unwrap();
            assert_close(&got, want.get(&logits).unwrap(), 4e-6, "gradient");
        }
        let logits = tensor(1, (2, 5));
        cross_entropy_gradient(logits, &[0, 5], 0.0, 1.0).unwrap_err();
    }

    #[test]
    fn nothing_counts() {
        for logits in [var(1, (2, 5)), var(1, (0, 5))] {
            let labels = vec![IGNORED_LABEL; logits.dims()[0]];
            let (loss, counted) = cross_entropy(&logits, &labels, 0.1).unwrap();
            assert_eq!((values(&loss)[0], counted), (0.0, 0));
            let grads = loss.backward().unwrap();
            assert!(values(grads.get(&logits).unwrap()).iter().all(|&g| g == 0.0));
        }
    }

    #[test]
    fn unusual_logits() {
        let inf = f32::INFINITY;
        for level in Level::all() {
            let loss = |row: &[f32]| {
                let logits = Tensor::from_slice(row, (1, row.len()), &Device::Cpu).unwrap();
                values(&fused(level, &logits, &[0], 0.0))[0]
            };
            assert_eq!(loss(&[0.0, -inf, -inf]), 0.0);
            assert_eq!(loss(&[-inf, 0.0, 1.0]), inf);
            assert_eq!(loss(&[1e30, -1e30, 0.0]), 0.0);
            assert!(loss(&[0.0, f32::NAN, 1.0]).is_nan());
            let mut row = vec![-inf; 2 * PIECE];
            row[0] = 1.0;
            assert_eq!(loss(&row), 0.0);
            row[2 * PIECE - 1] = 1.0;
            assert!((loss(&row) - std::f32::consts::LN_2).abs() < 1e-6);
        }
    }

    #[test]
    fn labels_are_checked() {
        let logits = tensor(1, (2, 5));
        for labels in [&[0][..], &[0, 5], &[0, -1], &[1, 2, 3]] {
            cross_entropy(&logits, labels, 0.0).unwrap_err();
        }
    }
}
