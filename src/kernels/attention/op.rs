//! Attention on the CPU as seen by candle: from tensors to slices and back, with its own backward pass.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp3, DType, Device, Layout, Result as CandleResult, Shape, Storage, Tensor,
};

use super::backward::{Given, backward};
use super::forward::forward;
use super::problem::{Problem, Sequence};
use super::view::View;
use super::{AttentionArgs, KeyValues};
use crate::Result;
use crate::kernels::simd::Level;

/// Whether the CPU kernels can take these tensors; a bias that is being trained needs the reference.
pub(super) fn fits(tensors: &[&Tensor], args: &AttentionArgs) -> bool {
    let f32_on_cpu =
        |x: &&Tensor| matches!(x.device(), Device::Cpu) && x.dtype() == DType::F32 && x.dims()[2] > 0;
    tensors.iter().all(f32_on_cpu) && args.bias.is_none_or(|bias| !bias.track_op())
}

/// [`super::attention`] with checked arguments.
pub(super) fn attention(
    level: Level,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    args: &AttentionArgs,
) -> Result<Tensor> {
    let tracked = q.track_op() || k.track_op() || v.track_op();
    let op = Ragged {
        level,
        offsets: args.offsets.to_vec(),
        scale: args.scale,
        causal: args.causal,
        window: args.window,
        bias: bias(args)?,
        log_sums: tracked.then(Mutex::default),
    };
    Ok(contiguous_rows(q)?.apply_op3(&contiguous_rows(k)?, &contiguous_rows(v)?, op)?)
}

/// [`super::cached_attention`] with checked arguments.
pub(super) fn cached_attention(
    level: Level,
    q: &Tensor,
    caches: &[KeyValues],
    args: &AttentionArgs,
) -> Result<Tensor> {
    let q = contiguous_rows(q)?;
    let (tokens, heads, head_dim) = q.dims3()?;
    if tokens == 0 {
        return Ok(q.detach());
    }
    let rows: Vec<(Tensor, Tensor)> = caches
        .iter()
        .map(|cache| Ok((contiguous_rows(cache.k)?, contiguous_rows(cache.v)?)))
        .collect::<Result<_>>()?;
    let stored: Vec<_> = rows.iter().map(|(k, v)| (k.storage_and_layout(), v.storage_and_layout())).collect();
    let mut sequences = Vec::with_capacity(caches.len());
    for ((cache, ((k, k_layout), (v, v_layout))), offset) in
        caches.iter().zip(&stored).zip(args.offsets.windows(2))
    {
        sequences.push(Sequence {
            q_start: offset[0],
            queries: offset[1] - offset[0],
            k: View::new(cpu(k)?, k_layout)?,
            v: View::new(cpu(v)?, v_layout)?,
            k_start: 0,
            keys: cache.len,
        });
    }
    let (storage, layout) = q.storage_and_layout();
    let bias = bias(args)?;
    let problem = Problem {
        q: View::new(cpu(&storage)?, layout)?,
        sequences,
        heads,
        kv_heads: caches[0].k.dim(1)?,
        head_dim,
        scale: args.scale,
        causal: args.causal,
        window: args.window,
        bias: bias.as_deref(),
    };
    let out = forward(level, &problem, tokens, false).out;
    Ok(Tensor::from_vec(out, (tokens, heads, head_dim), &Device::Cpu)?)
}

fn bias(args: &AttentionArgs) -> Result<Option<Vec<f32>>> {
    let flat = |bias: &Tensor| bias.to_dtype(DType::F32)?.flatten_all()?.to_vec1();
    Ok(args.bias.map(flat).transpose()?)
}

/// The tensor itself if its last dimension is contiguous.
fn contiguous_rows(x: &Tensor) -> CandleResult<Tensor> {
    Ok(if x.stride()[2] == 1 { x.clone() } else { x.contiguous()? })
}

fn cpu(storage: &Storage) -> CandleResult<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => candle_core::bail!("expected a tensor on the CPU"),
    }
}

/// Self-attention of a ragged batch.
struct Ragged {
    level: Level,
    offsets: Vec<usize>,
    scale: f32,
    causal: bool,
    window: Option<usize>,
    bias: Option<Vec<f32>>,
    /// Kept from the forward for the backward pass, if there will be one.
    log_sums: Option<Mutex<Vec<f32>>>,
}

impl Ragged {
    fn problem<'a>(
        &'a self,
        [q, k, v]: [CandleResult<(&'a CpuStorage, &Layout)>; 3],
    ) -> CandleResult<Problem<'a>> {
        let (q, k, v) = (q?, k?, v?);
        let (_, heads, head_dim) = q.1.shape().dims3()?;
        let (_, kv_heads, _) = k.1.shape().dims3()?;
        let (q, k, v) = (View::new(q.0, q.1)?, View::new(k.0, k.1)?, View::new(v.0, v.1)?);
        let sequence = |w: &[usize]| Sequence {
            q_start: w[0],
            queries: w[1] - w[0],
            k,
            v,
            k_start: w[0],
            keys: w[1] - w[0],
        };
        Ok(Problem {
            q,
            sequences: self.offsets.windows(2).map(sequence).collect(),
            heads,
            kv_heads,
            head_dim,
            scale: self.scale,
            causal: self.causal,
            window: self.window,
            bias: self.bias.as_deref(),
        })
    }
}

impl CustomOp3 for Ragged {
    fn name(&self) -> &'static str {
        "ragged-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let problem = self.problem([Ok((q, q_layout)), Ok((k, k_layout)), Ok((v, v_layout))])?;
        let shape = q_layout.shape();
        let result = forward(self.level, &problem, shape.dims()[0], self.log_sums.is_some());
        if let Some(log_sums) = &self.log_sums {
            *log_sums.lock().unwrap_or_else(PoisonError::into_inner) = result.log_sums;
        }
        Ok((CpuStorage::F32(result.out), shape.clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(log_sums) = &self.log_sums else {
            return Err(candle_core::Error::BackwardNotSupported { op: self.name() });
        };
        let log_sums = log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let grad = contiguous_rows(grad)?;
        let stored = [q, k, v, out, &grad].map(Tensor::storage_and_layout);
        let [q_at, k_at, v_at, out_at, grad_at] = &stored;
        let problem =
            self.problem([q_at, k_at, v_at].map(|(storage, layout)| Ok((cpu(storage)?, *layout))))?;
        let given = Given {
            out: View::new(cpu(&out_at.0)?, out_at.1)?,
            grad: View::new(cpu(&grad_at.0)?, grad_at.1)?,
            log_sums: &log_sums,
        };
        let gradients = backward(self.level, &problem, &given, q.dim(0)?);
        // What nobody trains gets no gradient.
        let give = |x: &Tensor, values| {
            x.track_op().then(|| Tensor::from_vec(values, x.dims(), &Device::Cpu)).transpose()
        };
        Ok((give(q, gradients.q)?, give(k, gradients.k)?, give(v, gradients.v)?))
    }
}
