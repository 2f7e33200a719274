//! A model with an adapter folded into its weights.

use std::sync::Arc;

use candle_core::DType;

use super::Model;
use crate::Result;
use crate::nn::{AdapterSet, Embedding, Linear};
use crate::weight::{Format, Weight, hold};

impl Model {
    /// The model that computes without an adapter what this one computes with it; untouched weights are shared.
    ///
    /// Changed weights are rounded to the dtype they had; quantised ones become plain ones of the model's dtype. Where a
    /// head shares its weight with the embedding and only one of them is adapted, the result has both.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::Error::Internal) where a tensor operation fails.
    pub fn merged(&self, adapter: &AdapterSet) -> Result<Self> {
        let fallback = self.dtype();
        let merged = |path: &str, base: &Arc<dyn Weight>| -> Result<Option<Arc<dyn Weight>>> {
            let Some(layer) = adapter.get(path) else { return Ok(None) };
            let dtype = match base.format() {
                Format::F32 => DType::F32,
                Format::F16 => DType::F16,
                Format::BF16 => DType::BF16,
                _ => fallback,
            };
            let weight = layer.merged(base.as_ref())?.to_dtype(dtype)?;
            Ok(Some(hold(&weight)?))
        };
        let mut linear = |old: &Linear| -> Result<Option<Linear>> {
            let (Some(weight), Some(layer)) = (merged(old.path(), old.weight())?, adapter.get(old.path()))
            else {
                return Ok(None);
            };
            let bias = match (layer.bias(old.bias())?, old.bias()) {
                (Some(new), Some(old)) => Some(new.to_dtype(old.dtype())?),
                (Some(new), None) => Some(new),
                (None, old) => old.cloned(),
            };
            Ok(Some(Linear::new(old.path(), weight, bias)))
        };
        let mut embedding = |old: &Embedding| -> Result<Option<Embedding>> {
            Ok(merged(old.path(), old.weight())?.map(|weight| old.with_weight(weight)))
        };
        Ok(self.with_decoder(self.decoder().replaced(&mut linear, &mut embedding)?))
    }
}
