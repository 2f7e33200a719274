//! Scaled dot-product attention over ragged batches, with or without a cache.
//!
//! Sequences never see each other and there is no mask tensor: what a query may see follows from [`AttentionArgs`].
//! It does not write caches and does not rotate heads. Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped
//! queries); Dao 2023, "FlashAttention-2" (linear memory and the backward pass).

mod backward;
mod block;
mod decode;
mod forward;
mod op;
mod prefill;
mod problem;
mod reference;
#[cfg(test)]
mod tests;
mod tile;
mod view;

use candle_core::Tensor;

pub(crate) use reference::{attention as reference, cached_attention as cached_reference};

use crate::kernels::simd::Level;
use crate::{Error, Result};

/// What queries may see, and how scores are formed.
#[derive(Debug, Clone, Copy)]
pub struct AttentionArgs<'a> {
    /// Where each sequence's queries start: `sequences + 1` entries, the first 0, the last the number of tokens.
    pub offsets: &'a [usize],
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether a query sees only keys at or before its own position.
    pub causal: bool,
    /// Sliding window. Causal: a query at `p` sees keys in `(p - window, p]`. Bidirectional: it sees keys at most
    /// `window / 2` away, as ModernBERT counts `local_attention`.
    pub window: Option<usize>,
    /// Relative position bias, f32 `[heads, 2 * span - 1]`, added to the scaled score at index `k - q + span - 1`;
    /// `span` must be no less than the longest sequence.
    pub bias: Option<&'a Tensor>,
}

/// The keys and values of one cached sequence.
#[derive(Debug, Clone, Copy)]
pub struct KeyValues<'a> {
    /// `[capacity, kv_heads, head_dim]` of f32, bf16 or f16; only the rows `0..len` are valid.
    pub k: &'a Tensor,
    /// As `k`.
    pub v: &'a Tensor,
    /// Keys in the cache, including those of the current queries.
    pub len: usize,
}

/// Attention of `q: [tokens, heads, head_dim]` over `k, v: [tokens, kv_heads, head_dim]` of the same batch.
///
/// Query head `h` uses key head `h / (heads / kv_heads)`. The result has the shape and dtype of `q` and is
/// differentiable in `q`, `k` and `v`. Fails when shapes or offsets do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttentionArgs) -> Result<Tensor> {
    let (tokens, _, _) = q.dims3()?;
    check_heads(q, k, v)?;
    check_offsets(args.offsets, tokens)?;
    if k.dim(0)? != tokens {
        return Err(misfit(format!("{} keys for {tokens} queries", k.dim(0)?)));
    }
    check_window(args)?;
    let longest = args.offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
    check_bias(q, args, longest)?;
    if op::fits(&[q, k, v], args) {
        return op::attention(Level::current(), (q, k, v), args);
    }
    #[cfg(feature = "metal")]
    if super::metal::attention::fits(&[q, k, v], args) {
        return super::metal::attention::attention(q, k, v, args);
    }
    reference::attention(q, k, v, args)
}

/// Attention of the newest queries `q: [tokens, heads, head_dim]` over one cache per sequence.
///
/// Query `j` of a sequence's `n` sits at key index `len - n + j`; windows and bias count key indices. The result has
/// the shape and dtype of `q` and no gradient. Fails when shapes, offsets or cache lengths do not fit.
pub fn cached_attention(q: &Tensor, caches: &[KeyValues], args: &AttentionArgs) -> Result<Tensor> {
    check_offsets(args.offsets, q.dim(0)?)?;
    if caches.len() + 1 != args.offsets.len() {
        return Err(misfit(format!("{} caches for {} sequences", caches.len(), args.offsets.len() - 1)));
    }
    check_window(args)?;
    let mut longest = 0;
    for (cache, offset) in caches.iter().zip(args.offsets.windows(2)) {
        check_heads(q, cache.k, cache.v)?;
        let queries = offset[1] - offset[0];
        if queries > cache.len || cache.len > cache.k.dim(0)? {
            let capacity = cache.k.dim(0)?;
            let found = format!("{queries} queries, {} keys, capacity {capacity}", cache.len);
            return Err(misfit(found));
        }
        longest = longest.max(cache.len);
    }
    check_bias(q, args, longest)?;
    if op::fits(&[q], args) {
        return op::cached_attention(Level::current(), q, caches, args);
    }
    #[cfg(feature = "metal")]
    if super::metal::attention::fits_cached(q, caches, args) {
        return super::metal::attention::cached_attention(q, caches, args);
    }
    reference::cached_attention(q, caches, args)
}

fn misfit(found: String) -> Error {
    Error::internal("attention", found)
}

fn check_heads(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
    let ((_, heads, head_dim), (_, kv_heads, key_dim)) = (q.dims3()?, k.dims3()?);
    if key_dim != head_dim || kv_heads == 0 || heads % kv_heads != 0 || k.dims() != v.dims() {
        let (q, k, v) = (q.dims(), k.dims(), v.dims());
        return Err(misfit(format!("q {q:?} does not fit k {k:?} and v {v:?}")));
    }
    Ok(())
}

fn check_offsets(offsets: &[usize], tokens: usize) -> Result<()> {
    let rising = offsets.windows(2).all(|w| w[0] <= w[1]);
    if offsets.first() != Some(&0) || offsets.last() != Some(&tokens) || !rising {
        return Err(misfit(format!("offsets {offsets:?} do not divide {tokens} tokens")));
    }
    Ok(())
}

fn check_window(args: &AttentionArgs) -> Result<()> {
    if args.causal && args.window == Some(0) {
        return Err(misfit("a causal window of 0 leaves nothing to see".to_string()));
    }
    Ok(())
}

fn check_bias(q: &Tensor, args: &AttentionArgs, longest: usize) -> Result<()> {
    let Some(bias) = args.bias else { return Ok(()) };
    let (rows, width) = bias.dims2()?;
    if rows != q.dim(1)? || width % 2 == 0 || width.div_ceil(2) < longest {
        let (q, bias) = (q.dims(), bias.dims());
        return Err(misfit(format!("bias {bias:?} does not fit q {q:?} and a sequence of {longest}")));
    }
    Ok(())
}
