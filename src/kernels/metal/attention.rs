//! Attention on the GPU: which kernel of attention.metal, how often, and the backward pass.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, DType, Device, Layout, MetalStorage, Result as CandleResult, Shape,
    Tensor,
};

use super::{Launch, MAX_CONSTANT_BYTES, View, allocate, on_gpu, suffix, tensor};
use crate::Result;
use crate::kernels::attention::{AttentionArgs, KeyValues};

const SOURCE: &str = include_str!("attention.metal");

/// Queries of a tile in attention.metal, and the threads that work on it.
const TILE_QUERIES: usize = 32;
const TILE_THREADS: usize = 128;
/// Threads that share one row.
const ROW_THREADS: usize = 256;
/// From this many queries of a sequence on tiles are taken.
const MIN_TILED: usize = 8;
/// Stands for no limit, and can be added to a position.
const UNLIMITED: u32 = 1 << 30;

/// Whether the kernels take these tensors; what they leave is the reference's.
pub(in crate::kernels) fn fits(tensors: &[&Tensor], args: &AttentionArgs) -> bool {
    let first = tensors[0];
    let tracked = tensors.iter().any(|x| x.track_op());
    let widest = if tracked { 128 } else { 256 };
    let one_kind = |x: &&Tensor| {
        matches!(x.device(), Device::Metal(_))
            && x.dtype() == first.dtype()
            && (1..=widest).contains(&x.dims()[2])
    };
    tensors.iter().all(one_kind)
        && suffix(first.dtype()).is_some()
        && args.bias.is_none_or(|bias| !bias.track_op())
}

/// As [`fits`], for keys and values in caches.
pub(in crate::kernels) fn fits_cached(q: &Tensor, caches: &[KeyValues], args: &AttentionArgs) -> bool {
    !q.track_op() && caches.iter().all(|cache| fits(&[q, cache.k, cache.v], args))
}

/// Self-attention of a ragged batch; shapes are checked and [`fits`] holds.
pub(in crate::kernels) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    args: &AttentionArgs,
) -> Result<Tensor> {
    let tracked = [q, k, v].iter().any(|x| x.track_op());
    let span = |w: &[usize]| Span { q_start: w[0], queries: w[1] - w[0], k_start: w[0], keys: w[1] - w[0] };
    let op = Ragged {
        problem: Problem::new(q, k, args)?,
        spans: args.offsets.windows(2).map(span).filter(|span| span.queries > 0).collect(),
        log_sums: tracked.then(Mutex::default),
    };
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    Ok(if tracked { q.apply_op3(&k, &v, op)? } else { q.apply_op3_no_bwd(&k, &v, &op)? })
}

/// Attention of the newest queries over one cache per sequence; shapes are checked and [`fits`] holds.
pub(in crate::kernels) fn cached_attention(
    q: &Tensor,
    caches: &[KeyValues],
    args: &AttentionArgs,
) -> Result<Tensor> {
    let Some(first) = caches.first() else { return Ok(q.detach()) };
    let mut parts = Vec::with_capacity(caches.len());
    for (cache, w) in caches.iter().zip(args.offsets.windows(2)).filter(|(_, w)| w[0] < w[1]) {
        let span = Span { q_start: w[0], queries: w[1] - w[0], k_start: 0, keys: cache.len };
        parts.push((cache.k.contiguous()?, cache.v.contiguous()?, span));
    }
    let op = Cached { problem: Problem::new(q, first.k, args)?, parts };
    Ok(q.detach().contiguous()?.apply_op1_no_bwd(&op)?)
}

/// One sequence; its last query sits at its last key.
#[derive(Clone, Copy)]
struct Span {
    q_start: usize,
    queries: usize,
    k_start: usize,
    keys: usize,
}

impl Span {
    fn words(self) -> [u32; 4] {
        [self.q_start, self.queries, self.k_start, self.keys].map(|x| x as u32)
    }
}

/// What all sequences have in common.
struct Problem {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    before: u32,
    after: u32,
    scale: f32,
    bias: Option<Tensor>,
}

impl Problem {
    fn new(q: &Tensor, k: &Tensor, args: &AttentionArgs) -> Result<Self> {
        let ((_, heads, head_dim), (_, kv_heads, _)) = (q.dims3()?, k.dims3()?);
        let limit = |width: usize| u32::try_from(width).map_or(UNLIMITED, |width| width.min(UNLIMITED));
        let (before, after) = match (args.causal, args.window) {
            (true, window) => (window.map_or(UNLIMITED, |w| limit(w - 1)), 0),
            (false, window) => {
                let reach = window.map_or(UNLIMITED, |w| limit(w / 2));
                (reach, reach)
            }
        };
        let bias = args.bias.map(|bias| bias.to_dtype(DType::F32)?.contiguous()).transpose()?;
        Ok(Self { heads, kv_heads, head_dim, before, after, scale: args.scale, bias })
    }

    fn words(&self, keep_log_sums: bool) -> [u32; 8] {
        let bias_width = self.bias.as_ref().map_or(0, |bias| bias.dims()[1]);
        let sizes = [self.heads, self.heads / self.kv_heads, self.head_dim].map(|x| x as u32);
        let [heads, group, head_dim] = sizes;
        let keep = u32::from(keep_log_sums);
        [heads, group, head_dim, self.before, self.after, bias_width as u32, keep, self.scale.to_bits()]
    }

    /// The smallest size, of those that exist, that holds a head.
    fn size(&self, sizes: &[usize]) -> Option<usize> {
        sizes.iter().copied().find(|&size| size >= self.head_dim)
    }

    /// The kernel of this name for rows of a head.
    fn row_kernel(&self, name: &str, dtype: DType) -> CandleResult<String> {
        match (suffix(dtype), self.size(&[32, 64, 128, 256])) {
            (Some(suffix), Some(size)) => Ok(format!("{name}_{suffix}_{size}")),
            _ => candle_core::bail!("{name}: no kernel for {dtype:?} and heads of {}", self.head_dim),
        }
    }

    /// Hands the bias to `f`, or `other` in its place where there is none.
    fn with_bias<R>(&self, other: View, f: impl FnOnce(View) -> CandleResult<R>) -> CandleResult<R> {
        match &self.bias {
            None => f(other),
            Some(bias) => {
                let (storage, layout) = bias.storage_and_layout();
                f((on_gpu(&storage)?, layout))
            }
        }
    }

    /// Writes the rows of `spans` to `out`, and to `log_sums` where they are kept.
    fn forward(
        &self,
        [q, k, v]: [View; 3],
        spans: &[Span],
        out: &MetalStorage,
        log_sums: Option<&MetalStorage>,
    ) -> CandleResult<()> {
        let dtype = q.0.dtype();
        let tile = match (suffix(dtype), self.size(&[32, 64, 96, 128])) {
            (Some(suffix), Some(size)) => Some(format!("attend_tile_{suffix}_{size}")),
            _ => None,
        };
        let row = self.row_kernel("attend_row", dtype)?;
        let tiled = |span: &&Span| span.queries >= MIN_TILED && tile.is_some();
        let (many, few): (Vec<&Span>, Vec<&Span>) = spans.iter().partition(tiled);
        let words = self.words(log_sums.is_some());
        self.with_bias(q, |bias| {
            for (kernel, spans, queries, threads) in [
                (tile.as_deref().unwrap_or_default(), many, TILE_QUERIES, TILE_THREADS),
                (row.as_str(), few, 1, ROW_THREADS),
            ] {
                for_each_part(&spans, |longest, spans| {
                    Launch {
                        source: SOURCE,
                        kernel,
                        inputs: &[q, k, v, bias],
                        constants: &[&words, spans],
                        outputs: &[out, log_sums.unwrap_or(out)],
                        groups: [longest.0.div_ceil(queries), self.heads, spans.len() / 4],
                        threads,
                    }
                    .run(q.0.device())
                })?;
            }
            Ok(())
        })
    }
}

/// Hands spans to `f`, as many at once as fit into one argument, with the most queries and keys that one of them has.
fn for_each_part(
    spans: &[&Span],
    mut f: impl FnMut((usize, usize), &[u32]) -> CandleResult<()>,
) -> CandleResult<()> {
    for part in spans.chunks(MAX_CONSTANT_BYTES / 16) {
        let words: Vec<u32> = part.iter().flat_map(|span| span.words()).collect();
        let queries = part.iter().map(|span| span.queries).max().unwrap_or(0);
        let keys = part.iter().map(|span| span.keys).max().unwrap_or(0);
        f((queries, keys), &words)?;
    }
    Ok(())
}

/// Self-attention of a ragged batch.
struct Ragged {
    problem: Problem,
    spans: Vec<Span>,
    /// The logarithms of each row's sum of exponentials, `[tokens, heads]`, kept if there will be a backward pass.
    log_sums: Option<Mutex<Option<Tensor>>>,
}

impl Ragged {
    /// Gradients of q, k and v.
    fn backward(&self, [q, k, v, out, grad, log_sums]: [View; 6]) -> CandleResult<[Tensor; 3]> {
        let (device, dtype) = (q.0.device(), q.0.dtype());
        let problem = &self.problem;
        let (q_shape, k_shape) = (q.1.shape(), k.1.shape());
        let lines = q_shape.elem_count() / problem.head_dim;
        let d_q = allocate(device, q_shape.elem_count(), dtype)?;
        let d_k = allocate(device, k_shape.elem_count(), dtype)?;
        let d_v = allocate(device, k_shape.elem_count(), dtype)?;
        let deltas = allocate(device, lines, DType::F32)?;
        let back_q = problem.row_kernel("attend_back_q", dtype)?;
        let back_kv = problem.row_kernel("attend_back_kv", dtype)?;
        let words = problem.words(false);
        let spans: Vec<&Span> = self.spans.iter().collect();
        let line_layout = Layout::contiguous(lines);
        problem.with_bias(q, |bias| {
            for_each_part(&spans, |(queries, keys), spans| {
                let launch = |kernel, inputs: &[View], outputs: &[&MetalStorage], groups| {
                    let constants: &[&[u32]] = &[&words, spans];
                    Launch {
                        source: SOURCE,
                        kernel,
                        inputs,
                        constants,
                        outputs,
                        groups,
                        threads: ROW_THREADS,
                    }
                    .run(device)
                };
                let count = spans.len() / 4;
                let groups = [queries, problem.heads, count];
                launch(&back_q, &[q, k, v, bias, out, grad, log_sums], &[&d_q, &deltas], groups)?;
                let (deltas, groups) = ((&deltas, &line_layout), [keys, problem.kv_heads, count]);
                launch(&back_kv, &[q, k, v, bias, grad, log_sums, deltas], &[&d_k, &d_v], groups)
            })
        })?;
        Ok([tensor(d_q, q_shape), tensor(d_k, k_shape), tensor(d_v, k_shape)])
    }
}

impl CustomOp3 for Ragged {
    fn name(&self) -> &'static str {
        "ragged-attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        candle_core::bail!("expected tensors on the Metal device")
    }

    fn metal_fwd(
        &self,
        q: &MetalStorage,
        q_layout: &Layout,
        k: &MetalStorage,
        k_layout: &Layout,
        v: &MetalStorage,
        v_layout: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        let shape = q_layout.shape();
        let out = allocate(q.device(), shape.elem_count(), q.dtype())?;
        let lines = shape.elem_count() / self.problem.head_dim;
        let kept = match &self.log_sums {
            Some(_) => Some(allocate(q.device(), lines, DType::F32)?),
            None => None,
        };
        let views = [(q, q_layout), (k, k_layout), (v, v_layout)];
        self.problem.forward(views, &self.spans, &out, kept.as_ref())?;
        if let (Some(log_sums), Some(kept)) = (&self.log_sums, kept) {
            *log_sums.lock().unwrap_or_else(PoisonError::into_inner) = Some(tensor(kept, lines));
        }
        Ok((out, shape.clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let kept = self.log_sums.as_ref().map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(log_sums) = kept.and_then(|kept| kept.clone()) else {
            return Err(candle_core::Error::BackwardNotSupported { op: self.name() });
        };
        let grad = grad.contiguous()?;
        let stored = [q, k, v, out, &grad, &log_sums].map(Tensor::storage_and_layout);
        let mut views = Vec::with_capacity(stored.len());
        for (storage, layout) in &stored {
            views.push((on_gpu(storage)?, *layout));
        }
        let Ok(views) = <[View; 6]>::try_from(views) else {
            candle_core::bail!("attention: six tensors are six views");
        };
        let gradients = self.backward(views)?;
        // What nobody trains gets no gradient.
        let [d_q, d_k, d_v] = gradients;
        Ok((q.track_op().then_some(d_q), k.track_op().then_some(d_k), v.track_op().then_some(d_v)))
    }
}

/// Attention over caches: keys and values of each sequence in buffers of their own.
struct Cached {
    problem: Problem,
    parts: Vec<(Tensor, Tensor, Span)>,
}

impl CustomOp1 for Cached {
    fn name(&self) -> &'static str {
        "cached-attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        candle_core::bail!("expected tensors on the Metal device")
    }

    fn metal_fwd(&self, q: &MetalStorage, q_layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        let shape = q_layout.shape();
        let out = allocate(q.device(), shape.elem_count(), q.dtype())?;
        for (k, v, span) in &self.parts {
            let ((k, k_layout), (v, v_layout)) = (k.storage_and_layout(), v.storage_and_layout());
            let views = [(q, q_layout), (on_gpu(&k)?, k_layout), (on_gpu(&v)?, v_layout)];
            self.problem.forward(views, &[*span], &out, None)?;
        }
        Ok((out, shape.clone()))
    }
}
