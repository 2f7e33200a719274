//! Cross-entropy on the GPU: launches of cross_entropy.metal.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, DType, Layout, MetalStorage, Result as CandleResult, Shape, Tensor,
};

use super::rows::with_views;
use super::{Launch, View, allocate, suffix, tensor};
use crate::Result;

const SOURCE: &str = concat!(include_str!("reduce.metal"), include_str!("cross_entropy.metal"));
const THREADS: usize = 256;

/// The loss of each row of `logits: [tokens, vocab]`, f32 `[tokens]`; labels are checked, and `None` does not count.
pub(in crate::kernels) fn cross_entropy(
    logits: &Tensor,
    labels: &[Option<usize>],
    label_smoothing: f32,
) -> Result<Tensor> {
    let labels: Vec<u32> = labels.iter().map(|label| label.map_or(u32::MAX, |label| label as u32)).collect();
    let labels = Tensor::new(labels.as_slice(), logits.device())?;
    let op = CrossEntropy { labels, label_smoothing, log_sums: Mutex::new(None) };
    let logits = logits.contiguous()?;
    let losses = if logits.track_op() { logits.apply_op1(op)? } else { logits.apply_op1_no_bwd(&op)? };
    Ok(losses.sum_all()?)
}

struct CrossEntropy {
    /// u32, whose largest value is the kernel's -1.
    labels: Tensor,
    label_smoothing: f32,
    /// The logarithm of each row's sum of exponentials, kept from the forward for the backward pass.
    log_sums: Mutex<Option<Tensor>>,
}

impl CrossEntropy {
    fn launch(
        &self,
        kernel: &str,
        inputs: &[View],
        outputs: &[&MetalStorage],
        (tokens, vocab): (usize, usize),
    ) -> CandleResult<()> {
        let logits = inputs[0].0;
        Launch {
            source: SOURCE,
            kernel: &format!("{kernel}_{}", suffix(logits.dtype()).unwrap_or_default()),
            inputs,
            constants: &[&[vocab as u32, self.label_smoothing.to_bits()]],
            outputs,
            groups: [tokens, 1, 1],
            threads: THREADS,
        }
        .run(logits.device())
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        candle_core::bail!("expected tensors on the Metal device")
    }

    fn metal_fwd(&self, logits: &MetalStorage, layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        let (tokens, vocab) = layout.shape().dims2()?;
        let losses = allocate(logits.device(), tokens, DType::F32)?;
        let log_sums = allocate(logits.device(), tokens, DType::F32)?;
        with_views([&self.labels], |[labels]| {
            let outputs = [&losses, &log_sums];
            self.launch("cross_entropy", &[(logits, layout), labels], &outputs, (tokens, vocab))
        })?;
        *self.log_sums.lock().unwrap_or_else(PoisonError::into_inner) = Some(tensor(log_sums, tokens));
        Ok((losses, Shape::from(tokens)))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let kept = self.log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(log_sums) = kept.as_ref() else {
            return Err(candle_core::Error::BackwardNotSupported { op: self.name() });
        };
        let factor = grad.to_dtype(DType::F32)?.contiguous()?;
        let shape = logits.dims2()?;
        let d_logits = with_views([logits, &self.labels, log_sums, &factor], |views| {
            let storage = views[0].0;
            let d_logits = allocate(storage.device(), shape.0 * shape.1, storage.dtype())?;
            self.launch("cross_entropy_back", &views, &[&d_logits], shape)?;
            Ok(d_logits)
        })?;
        Ok(Some(tensor(d_logits, shape)))
    }
}
