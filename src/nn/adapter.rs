//! What can be plugged into a linear layer, and which rows of a batch it applies to.
//!
//! The kinds of adapters and their files live in the room `adapter`; a layer only knows this trait. Adapters are
//! passed in with the work, like caches: no model is copied or changed to use one, and one batch may mix several.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use crate::Result;
use crate::weight::Weight;

/// A change to one linear layer's function.
pub trait Adapter: Any + Send + Sync + Debug {
    /// The layer's new output for the inputs `x` `[tokens, in]`, given its plain output `y` `[tokens, out]`
    /// (bias included) and its frozen weight; the caller gives up `y`, whose memory may be reused.
    fn forward(&self, base: &dyn Weight, x: &Tensor, y: Tensor) -> Result<Tensor>;
    /// Whether a gradient depends on the values of `y` in [`Adapter::forward`].
    fn needs_output(&self) -> bool {
        true
    }
    /// The weight `[out, in]` (f32, on the CPU or the weight's device) that gives the same function without the adapter.
    fn merged(&self, base: &dyn Weight) -> Result<Tensor>;
    /// The adapter's tensors, named as its file names them below the layer's path.
    fn parameters(&self) -> Result<Vec<(String, Tensor)>>;
    /// The bias that goes with [`Adapter::merged`], where it is not the layer's own `base`.
    fn bias(&self, _base: Option<&Tensor>) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// Embedding rows for `ids` given the plain ones `y` `[ids, hidden]`, for adapters of an embedding.
    fn embed(&self, _ids: &[u32], y: Tensor) -> Result<Tensor> {
        Ok(y)
    }
}

/// One version of one adapter: its parts by layer path. It never changes; a new version is a new set.
#[derive(Debug, Default)]
pub struct AdapterSet {
    name: String,
    generation: u64,
    layers: HashMap<String, Arc<dyn Adapter>>,
}

impl AdapterSet {
    /// A set of adapters, keyed by the path of the layer as the checkpoint spells it.
    ///
    /// `generation` is a hash of the content: two sets of the same generation compute the same.
    pub fn new(name: impl Into<String>, generation: u64, layers: HashMap<String, Arc<dyn Adapter>>) -> Self {
        Self { name: name.into(), generation, layers }
    }

    /// The name it is registered under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The hash of its content.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The adapter of the layer at `path`.
    pub fn get(&self, path: &str) -> Option<&Arc<dyn Adapter>> {
        self.layers.get(path)
    }

    /// All layers with an adapter, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Adapter>)> {
        self.layers.iter().map(|(path, adapter)| (path.as_str(), adapter))
    }

    /// Number of adapted layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether no layer is adapted.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// Which adapters apply to which rows of a batch; rows that no entry covers use the bare model.
#[derive(Debug, Clone, Default)]
pub struct AdapterPlan {
    entries: Vec<(Range<usize>, Arc<AdapterSet>)>,
}

impl AdapterPlan {
    /// One adapter set for all rows.
    pub fn all(set: Arc<AdapterSet>, tokens: usize) -> Self {
        Self { entries: vec![(0..tokens, set)] }
    }

    /// Adds rows after those added so far; neighbouring rows of the same set are joined.
    pub fn push(&mut self, rows: Range<usize>, set: &Arc<AdapterSet>) {
        match self.entries.last_mut() {
            Some((last, same)) if last.end == rows.start && Arc::ptr_eq(same, set) => last.end = rows.end,
            _ => self.entries.push((rows, Arc::clone(set))),
        }
    }

    /// The plan for a selection of rows, in the order given.
    pub fn select(&self, rows: &[u32]) -> Self {
        let mut selected = Self::default();
        for (place, row) in rows.iter().enumerate() {
            if let Some((_, set)) = self.entries.iter().find(|(range, _)| range.contains(&(*row as usize))) {
                selected.push(place..place + 1, set);
            }
        }
        selected
    }

    /// Whether the bare model serves all rows.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The adapters that the layer at `path` has.
    pub(super) fn at<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Arc<dyn Adapter>> {
        self.entries.iter().filter_map(move |(_, set)| set.get(path))
    }

    /// Applies `f` to the rows of each adapter that the layer at `path` has; other rows of `y` stay as they are.
    pub(super) fn apply(
        &self,
        path: &str,
        y: Tensor,
        f: impl Fn(&dyn Adapter, Range<usize>, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let tokens = y.dims()[0];
        let active: Vec<_> =
            self.entries.iter().filter_map(|(rows, set)| Some((rows.clone(), set.get(path)?))).collect();
        match active.as_slice() {
            [] => Ok(y),
            [(rows, adapter)] if *rows == (0..tokens) => f(adapter.as_ref(), 0..tokens, y),
            _ => {
                let mut parts = Vec::with_capacity(2 * active.len() + 1);
                let mut done = 0;
                for (rows, adapter) in active {
                    if done < rows.start {
                        parts.push(y.narrow(0, done, rows.start - done)?);
                    }
                    let part = y.narrow(0, rows.start, rows.len())?;
                    done = rows.end;
                    parts.push(f(adapter.as_ref(), rows, part)?);
                }
                if done < tokens {
                    parts.push(y.narrow(0, done, tokens - done)?);
                }
                Ok(Tensor::cat(&parts, 0)?)
            }
        }
    }
}
