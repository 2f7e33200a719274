//! Keys and values of one sequence, kept between passes.
//!
//! Only grouped heads are stored, token by token: `[capacity, kv_heads, head_dim]` for each layer. Buffers grow
//! geometrically; a layer with a sliding window keeps at most a few windows and rolls. The cache knows neither token
//! ids nor adapters: who may share one is the scheduler's business.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::kernels::attention::KeyValues;
use crate::{Error, Result};

/// Capacities are multiples of this many tokens.
const GRAIN: usize = 64;

/// What the caches of one model look like.
#[derive(Debug, Clone)]
pub struct KvLayout {
    /// For each layer the sliding window in tokens, if it has one.
    pub windows: Vec<Option<usize>>,
    /// Key-value heads of a layer.
    pub kv_heads: usize,
    /// Dimension of a head.
    pub head_dim: usize,
    /// Element type of the stored keys and values.
    pub dtype: DType,
    /// Where they are stored.
    pub device: Device,
    /// The longest sequence in tokens.
    pub max_tokens: usize,
}

impl KvLayout {
    /// Bytes of keys and values of `tokens` tokens in all layers, without the slack of growing buffers.
    pub fn bytes_for(&self, tokens: usize) -> usize {
        let rows: usize =
            self.windows.iter().map(|window| window.map_or(tokens, |window| tokens.min(2 * window))).sum();
        2 * rows * self.kv_heads * self.head_dim * self.dtype.size_in_bytes()
    }
}

#[derive(Debug, Clone, Default)]
struct Layer {
    /// Keys and values, each `[capacity, kv_heads, head_dim]`.
    buffers: Option<(Tensor, Tensor)>,
    /// Number of valid rows.
    rows: usize,
    /// Position of the first row's token.
    start: usize,
}

impl Layer {
    fn capacity(&self) -> usize {
        self.buffers.as_ref().map_or(0, |(k, _)| k.dims()[0])
    }

    /// New buffers with the last `keep` rows of the present ones at the front.
    fn reallocate(&mut self, layout: &KvLayout, capacity: usize, keep: usize) -> Result<()> {
        let new =
            || Tensor::zeros((capacity, layout.kv_heads, layout.head_dim), layout.dtype, &layout.device);
        let (k, v) = (new()?, new()?);
        if let (Some((old_k, old_v)), true) = (&self.buffers, keep > 0) {
            k.slice_set(&old_k.narrow(0, self.rows - keep, keep)?, 0, 0)?;
            v.slice_set(&old_v.narrow(0, self.rows - keep, keep)?, 0, 0)?;
        }
        self.buffers = Some((k, v));
        self.start += self.rows - keep;
        self.rows = keep;
        Ok(())
    }

    /// Makes room for `new` more rows, dropping what lies outside of the window.
    fn reserve(&mut self, layout: &KvLayout, window: Option<usize>, new: usize) -> Result<()> {
        if self.rows + new <= self.capacity() {
            return Ok(());
        }
        let keep = window.map_or(self.rows, |window| self.rows.min(window - 1));
        let needed = keep + new;
        let limit = window.map_or(layout.max_tokens, |window| 2 * window).max(needed);
        let wanted =
            if needed <= self.capacity() { self.capacity() } else { needed.max(2 * self.capacity()) };
        self.reallocate(layout, wanted.next_multiple_of(GRAIN).min(limit.next_multiple_of(GRAIN)), keep)
    }

    /// Whether the rows suffice for queries at position `len` and later.
    fn covers(&self, window: Option<usize>, len: usize) -> bool {
        let needed = window.map_or(0, |window| (len + 1).saturating_sub(window));
        self.start <= needed && self.start + self.rows >= len
    }
}

/// The growing cache of one sequence.
#[derive(Debug)]
pub struct KvCache {
    layout: Arc<KvLayout>,
    layers: Vec<Layer>,
}

impl KvCache {
    /// An empty cache; memory is taken as tokens arrive.
    pub fn new(layout: &Arc<KvLayout>) -> Self {
        Self { layout: Arc::clone(layout), layers: vec![Layer::default(); layout.windows.len()] }
    }

    /// Number of tokens seen by all layers.
    pub fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.start + layer.rows).min().unwrap_or(0)
    }

    /// Whether no token was seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn size_in_bytes(&self) -> usize {
        let row = 2 * self.layout.kv_heads * self.layout.head_dim * self.layout.dtype.size_in_bytes();
        self.layers.iter().map(|layer| layer.capacity() * row).sum()
    }

    /// Appends keys and values `[new, kv_heads, head_dim]` to layer `index`.
    pub fn append(&mut self, index: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let new = k.dims()[0];
        let layer = &mut self.layers[index];
        layer.reserve(&self.layout, self.layout.windows[index], new)?;
        let Some((keys, values)) = &layer.buffers else {
            return Ok(());
        };
        keys.slice_set(&k.to_dtype(self.layout.dtype)?.contiguous()?, 0, layer.rows)?;
        values.slice_set(&v.to_dtype(self.layout.dtype)?.contiguous()?, 0, layer.rows)?;
        layer.rows += new;
        Ok(())
    }

    /// The keys and values of layer `index` that a query after the last token may see.
    pub fn view(&self, index: usize) -> Result<KeyValues<'_>> {
        let layer = &self.layers[index];
        match &layer.buffers {
            Some((k, v)) => Ok(KeyValues { k, v, len: layer.rows }),
            None => Err(Error::internal("attention", "the cache of this layer is empty")),
        }
    }

    /// A copy of the first `len` tokens, or `None` where a rolled layer no longer holds what it would need.
    pub fn fork(&self, len: usize) -> Result<Option<Self>> {
        if !self.covers(len) {
            return Ok(None);
        }
        let mut copy = Self::new(&self.layout);
        for ((layer, new), window) in self.layers.iter().zip(&mut copy.layers).zip(&self.layout.windows) {
            let mut head = layer.clone();
            head.rows = len - layer.start;
            let keep = window.map_or(head.rows, |window| head.rows.min(window));
            head.reallocate(&self.layout, (keep + 1).next_multiple_of(GRAIN), keep)?;
            *new = head;
        }
        Ok(Some(copy))
    }

    /// Forgets all tokens but the first `len`; `false` (and nothing changed) where a rolled layer cannot go back.
    pub fn truncate(&mut self, len: usize) -> bool {
        let possible = self.covers(len);
        if possible {
            for layer in &mut self.layers {
                layer.rows = len - layer.start;
            }
        }
        possible
    }

    fn covers(&self, len: usize) -> bool {
        self.layers.iter().zip(&self.layout.windows).all(|(layer, window)| layer.covers(*window, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(window: Option<usize>) -> Arc<KvLayout> {
        Arc::new(KvLayout {
            windows: vec![None, window],
            kv_heads: 2,
            head_dim: 4,
            dtype: DType::F32,
            device: Device::Cpu,
            max_tokens: 4096,
        })
    }

    fn rows(from: usize, count: usize) -> Tensor {
        let values: Vec<f32> = (from * 8..(from + count) * 8).map(|value| value as f32).collect();
        Tensor::from_vec(values, (count, 2, 4), &Device::Cpu).unwrap()
    }

    fn feed(cache: &mut KvCache, parts: &[usize]) {
        for &count in parts {
            let k = rows(cache.len(), count);
            cache.append(0, &k, &(&k * 2.0).unwrap()).unwrap();
            cache.append(1, &k, &(&k * 2.0).unwrap()).unwrap();
        }
    }

    fn contents(cache: &KvCache, layer: usize) -> Vec<f32> {
        let view = cache.view(layer).unwrap();
        view.k.narrow(0, 0, view.len).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn expected(from: usize, to: usize) -> Vec<f32> {
        (from * 8..to * 8).map(|value| value as f32).collect()
    }

    #[test]
    fn growing_keeps_every_row() {
        let mut cache = KvCache::new(&layout(None));
        feed(&mut cache, &[5, 60, 1, 200]);
        assert_eq!(cache.len(), 266);
        assert_eq!(contents(&cache, 0), expected(0, 266));
    }

    #[test]
    fn rolling_keeps_the_window_and_stays_bounded() {
        let mut cache = KvCache::new(&layout(Some(100)));
        feed(&mut cache, &[1; 1000]);
        let len = cache.view(1).unwrap().len;
        assert!((99..=256).contains(&len), "{len}");
        assert_eq!(contents(&cache, 1), expected(1000 - len, 1000));
        assert!(!cache.truncate(10));
        assert_eq!(cache.len(), 1000);
    }

    #[test]
    fn a_long_chunk_fits_behind_the_window() {
        let mut cache = KvCache::new(&layout(Some(8)));
        feed(&mut cache, &[20, 300]);
        assert_eq!(contents(&cache, 1), expected(20 - 7, 320));
    }

    #[test]
    fn a_fork_shares_nothing() {
        let mut cache = KvCache::new(&layout(Some(100)));
        feed(&mut cache, &[50]);
        let mut fork = cache.fork(30).unwrap().unwrap();
        assert_eq!(
            (fork.len(), contents(&fork, 0), contents(&fork, 1)),
            (30, expected(0, 30), expected(0, 30))
        );
        feed(&mut fork, &[4]);
        assert!(cache.truncate(30));
        feed(&mut cache, &[2]);
        assert_eq!((cache.len(), fork.len()), (32, 34));
        assert_eq!(contents(&fork, 1), expected(0, 34));
    }

    #[test]
    fn sizes_are_those_of_grouped_heads() {
        let layout = KvLayout {
            windows: vec![None; 24],
            kv_heads: 2,
            head_dim: 64,
            dtype: DType::F16,
            device: Device::Cpu,
            max_tokens: 32768,
        };
        assert_eq!(layout.bytes_for(2048), 24 << 20);
    }
}
