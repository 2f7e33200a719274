//! Attention in plain tensor ops: readable, differentiable, any device; memory grows with the square of a sequence.

use candle_core::{D, DType, Device, Tensor};

use super::{AttentionArgs, KeyValues};
use crate::Result;

/// [`super::attention`] sequence by sequence.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttentionArgs) -> Result<Tensor> {
    let mut outputs = Vec::with_capacity(args.offsets.len());
    for w in args.offsets.windows(2).filter(|w| w[0] < w[1]) {
        let part = |x: &Tensor| x.narrow(0, w[0], w[1] - w[0]);
        outputs.push(sequence(&part(q)?, &part(k)?, &part(v)?, args)?);
    }
    if outputs.is_empty() { Ok(q.clone()) } else { Ok(Tensor::cat(&outputs, 0)?) }
}

/// [`super::cached_attention`] sequence by sequence.
pub(crate) fn cached_attention(q: &Tensor, caches: &[KeyValues], args: &AttentionArgs) -> Result<Tensor> {
    let mut outputs = Vec::with_capacity(caches.len());
    for (cache, w) in caches.iter().zip(args.offsets.windows(2)).filter(|(_, w)| w[0] < w[1]) {
        let (k, v) = (cache.k.narrow(0, 0, cache.len)?, cache.v.narrow(0, 0, cache.len)?);
        outputs.push(sequence(&q.narrow(0, w[0], w[1] - w[0])?, &k, &v, args)?);
    }
    if outputs.is_empty() { Ok(q.clone()) } else { Ok(Tensor::cat(&outputs, 0)?) }
}

/// One sequence, whose last query sits at its last key.
fn sequence(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttentionArgs) -> Result<Tensor> {
    let (queries, heads, head_dim) = q.dims3()?;
    let (keys, kv_heads, _) = k.dims3()?;
    let group = heads / kv_heads;
    let to_heads = |x: &Tensor| x.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous();
    // Query heads of one key head are consecutive: [heads, queries, d] is [kv_heads, group * queries, d].
    let q32 = to_heads(q)?.reshape((kv_heads, group * queries, head_dim))?;
    let scores = (q32.matmul(&to_heads(k)?.t()?)? * f64::from(args.scale))?;
    let mut scores = scores.reshape((heads, queries, keys))?;
    if let Some(bias) = args.bias {
        scores = (scores + relative_bias(bias, queries, keys)?)?;
    }
    if let Some(mask) = mask(queries, keys, args, q.device())? {
        scores = scores.broadcast_add(&mask)?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let y = weights.reshape((kv_heads, group * queries, keys))?.matmul(&to_heads(v)?)?;
    let y = y.reshape((heads, queries, head_dim))?.transpose(0, 1)?.contiguous()?;
    Ok(y.to_dtype(q.dtype())?)
}

/// `[heads, queries, keys]` from a bias per head and distance.
fn relative_bias(bias: &Tensor, queries: usize, keys: usize) -> Result<Tensor> {
    let (heads, width) = bias.dims2()?;
    let first = width / 2 + queries - keys; // span - 1 - (position of query 0)
    let index: Vec<u32> =
        (0..queries).flat_map(|query| (0..keys).map(move |key| (first + key - query) as u32)).collect();
    let index = Tensor::from_vec(index, queries * keys, bias.device())?;
    Ok(bias.to_dtype(DType::F32)?.index_select(&index, 1)?.reshape((heads, queries, keys))?)
}

/// `[queries, keys]` of 0 and -inf, or nothing when every query sees every key.
fn mask(queries: usize, keys: usize, args: &AttentionArgs, device: &Device) -> Result<Option<Tensor>> {
    if args.window.is_none() && (!args.causal || queries == 1) {
        return Ok(None);
    }
    let values: Vec<f32> = (0..queries)
        .flat_map(|query| {
            let position = keys - queries + query;
            (0..keys).map(move |key| if sees(position, key, args) { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    Ok(Some(Tensor::from_vec(values, (queries, keys), device)?))
}

/// Whether the query at `position` may see `key`.
fn sees(position: usize, key: usize, args: &AttentionArgs) -> bool {
    let near = match args.window {
        None => true,
        Some(window) if args.causal => key + window > position,
        Some(window) => position.abs_diff(key) <= window / 2,
    };
    near && (!args.causal || key <= position)
}
