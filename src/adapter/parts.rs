//! What the adapter of one site is built from.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::Site;
use super::clock::{Clock, Dropout};
use crate::Result;

/// The tensors and settings of one site.
pub(super) struct Parts<'a> {
    pub(super) site: &'a Site,
    /// In the shapes of the file, by their names below the site's path, on the model's device.
    pub(super) tensors: BTreeMap<&'static str, Tensor>,
    pub(super) scaling: f64,
    /// Set while the adapter is trained.
    pub(super) training: Option<Training>,
}

/// What a trained adapter needs beyond its tensors.
#[derive(Debug, Clone)]
pub(super) struct Training {
    pub(super) clock: Arc<Clock>,
    pub(super) dropout: f64,
}

impl Parts<'_> {
    pub(super) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The transpose; while training a view, which follows the variable.
    pub(super) fn transposed(&self, tensor: &Tensor) -> Result<Tensor> {
        let view = tensor.t()?;
        Ok(if self.training.is_some() { view } else { view.contiguous()? })
    }

    pub(super) fn dropout(&self) -> Option<Dropout> {
        let training = self.training.as_ref().filter(|training| training.dropout > 0.0)?;
        Some(Dropout::new(training.dropout, &self.site.path, Arc::clone(&training.clock)))
    }
}

/// A new bias in the place of the base's.
#[derive(Debug)]
pub(super) struct Rebias {
    pub(super) new: Option<Tensor>,
    pub(super) old: Option<Tensor>,
}

impl Rebias {
    pub(super) fn new(new: Option<&Tensor>, old: Option<&Tensor>) -> Self {
        Self { new: new.cloned(), old: old.cloned() }
    }

    /// The bias that the layer has in the end.
    pub(super) fn effective(&self) -> Option<&Tensor> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// Exchanges the bias in the output `y`.
    pub(super) fn apply(&self, y: Tensor) -> Result<Tensor> {
        let Some(new) = &self.new else { return Ok(y) };
        let change = match &self.old {
            Some(old) => (new - old.to_dtype(new.dtype())?)?,
            None => new.clone(),
        };
        Ok(y.broadcast_add(&change.to_dtype(y.dtype())?)?)
    }
}
