//! One trip through a model: the batch and everything else that is not the model.

use candle_core::Device;

use super::{AdapterPlan, KvCache, Rope, RopeTables};
use crate::batch::Batch;
use crate::kernels::cpu::pool;
use crate::{Error, Result};

/// Runs `work`, which is given up within a fraction of a kernel's time once `cancelled` says so and keeps to it.
///
/// # Errors
/// Those of `work`, and [`Error::Internal`] where it was given up; what it left behind is unspecified then.
pub fn interruptible<R>(
    cancelled: &(dyn Fn() -> bool + Sync),
    work: impl FnOnce() -> Result<R>,
) -> Result<R> {
    pool::unless(cancelled, work).unwrap_or_else(|| Err(given_up()))
}

fn given_up() -> Error {
    Error::internal("a pass was given up", "nobody waits for its results")
}

/// The batch, the caches its sequences continue, and the adapters its rows use.
pub struct Pass<'a> {
    batch: &'a Batch,
    caches: Option<Vec<&'a mut KvCache>>,
    adapters: AdapterPlan,
    tables: Vec<RopeTables>,
    cancelled: Option<&'a (dyn Fn() -> bool + 'a)>,
    gradients_only: bool,
}

impl<'a> Pass<'a> {
    /// A pass over whole sequences that keeps no keys and values; the only kind that can be differentiated.
    pub fn new(batch: &'a Batch) -> Self {
        Self {
            batch,
            caches: None,
            adapters: AdapterPlan::default(),
            tables: Vec::new(),
            cancelled: None,
            gradients_only: false,
        }
    }

    /// A pass that continues one cache for each sequence of the batch and appends to it.
    pub fn with_caches(batch: &'a Batch, caches: Vec<&'a mut KvCache>) -> Self {
        debug_assert_eq!(batch.sequences(), caches.len());
        Self { caches: Some(caches), ..Self::new(batch) }
    }

    /// The same pass with adapters.
    pub fn with_adapters(mut self, adapters: AdapterPlan) -> Self {
        self.adapters = adapters;
        self
    }

    /// The same pass, given up before its next matrix product as soon as `cancelled` says so.
    pub fn with_cancellation(mut self, cancelled: &'a (dyn Fn() -> bool + 'a)) -> Self {
        self.cancelled = Some(cancelled);
        self
    }

    /// Says that nobody needs what comes out of a layer, only its gradients: the last products of a layer whose values
    /// no gradient depends on may be left out, and its result is unspecified.
    pub fn set_gradients_only(&mut self, gradients_only: bool) {
        self.gradients_only = gradients_only;
    }

    /// See [`Pass::set_gradients_only`].
    pub fn is_gradients_only(&self) -> bool {
        self.gradients_only
    }

    /// Whether the pass is to be given up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(|cancelled| cancelled())
    }

    /// Ends a pass that is to be given up.
    ///
    /// # Errors
    /// [`Error::Internal`] where it is.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(given_up()) } else { Ok(()) }
    }

    /// The batch.
    pub fn batch(&self) -> &'a Batch {
        self.batch
    }

    /// The adapters of the batch's rows.
    pub fn adapters(&self) -> &AdapterPlan {
        &self.adapters
    }

    /// A pass for the head alone, over the given rows of this one and with their adapters.
    pub fn select(&self, rows: &[u32]) -> Pass<'a> {
        Pass { adapters: self.adapters.select(rows), ..Pass::new(self.batch) }
    }

    /// The caches, one for each sequence.
    pub fn caches(&mut self) -> Option<&mut [&'a mut KvCache]> {
        self.caches.as_deref_mut()
    }

    /// Computes the rotation tables of a model's kinds of layers, once for all its layers.
    pub fn prepare_rope(&mut self, ropes: &[Rope], device: &Device) -> Result<()> {
        self.tables.clear();
        for rope in ropes {
            self.tables.push(rope.tables(self.batch, device)?);
        }
        Ok(())
    }

    /// The tables of rotation kind `index`; `None` before [`Pass::prepare_rope`].
    pub fn rope(&self, index: usize) -> Option<&RopeTables> {
        self.tables.get(index)
    }
}
