//! The exact weighted sum of what several adapters change.
//!
//! Plain low-rank changes are joined into one of the ranks' sum, which costs no more than one adapter of that rank.
//! Other kinds are computed one after the other; their sum too is exact.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::lora::Lora;
use super::parts::Rebias;
use crate::Result;
use crate::nn::{Adapter, AdapterSet};
use crate::weight::Weight;

/// A layer of several adapters.
#[derive(Debug)]
struct Sum {
    parts: Vec<(f64, Arc<dyn Adapter>)>,
}

/// The layers of the weighted sum of `sets`.
pub(super) fn combine(sets: &[(f64, Arc<AdapterSet>)]) -> Result<HashMap<String, Arc<dyn Adapter>>> {
    let paths: BTreeSet<&str> = sets.iter().flat_map(|(_, set)| set.iter().map(|(path, _)| path)).collect();
    let mut layers: HashMap<String, Arc<dyn Adapter>> = HashMap::with_capacity(paths.len());
    for path in paths {
        let parts: Vec<_> =
            sets.iter().filter_map(|(weight, set)| Some((*weight, Arc::clone(set.get(path)?)))).collect();
        let layer = match concatenated(&parts)? {
            Some(lora) => Arc::new(lora) as Arc<dyn Adapter>,
            None => Arc::new(Sum { parts }),
        };
        layers.insert(path.to_owned(), layer);
    }
    Ok(layers)
}

/// One low-rank change for several, if they are nothing else.
fn concatenated(parts: &[(f64, Arc<dyn Adapter>)]) -> Result<Option<Lora>> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (weight, part) in parts {
        let part: &dyn Any = part.as_ref();
        let Some(lora) = part.downcast_ref::<Lora>() else { return Ok(None) };
        if lora.b_bias.is_some() || lora.rebias.new.is_some() {
            return Ok(None);
        }
        a.push(lora.a.clone());
        b.push((&lora.b * (weight * lora.scaling))?);
    }
    Ok(Some(Lora {
        a: Tensor::cat(&a, 0)?,
        b: Tensor::cat(&b, 0)?,
        scaling: 1.0,
        b_bias: None,
        rebias: Rebias::new(None, None),
        dropout: None,
    }))
}

impl Sum {
    /// `y + Σ weight · (part(y) − y)`; a part may overwrite what it is given.
    fn add_up(&self, y: Tensor, part: impl Fn(&dyn Adapter, Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let mut sum = y.clone();
        for (weight, adapter) in &self.parts {
            let change = (part(adapter.as_ref(), y.copy()?)? - &y)?;
            sum = (sum + (change * *weight)?)?;
        }
        Ok(sum)
    }
}

impl Adapter for Sum {
    fn forward(&self, base: &dyn Weight, x: &Tensor, y: Tensor) -> Result<Tensor> {
        self.add_up(y, |part, y| part.forward(base, x, y))
    }

    fn embed(&self, ids: &[u32], y: Tensor) -> Result<Tensor> {
        self.add_up(y, |part, y| part.embed(ids, y))
    }

    fn merged(&self, base: &dyn Weight) -> Result<Tensor> {
        self.add_up(base.dequantize(DType::F32)?, |part, _| part.merged(base))
    }

    fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let parts = self.parts.iter().map(|(_, part)| part.parameters());
        Ok(parts.collect::<Result<Vec<_>>>()?.concat())
    }

    fn bias(&self, base: Option<&Tensor>) -> Result<Option<Tensor>> {
        let mut sum: Option<Tensor> = None;
        for (weight, part) in &self.parts {
            let Some(bias) = part.bias(base)? else { continue };
            let change = match base {
                Some(base) => (bias.to_dtype(base.dtype())? - base)?,
                None => bias,
            };
            let change = (change * *weight)?;
            sum = Some(match sum {
                Some(sum) => (sum + change)?,
                None => change,
            });
        }
        Ok(match (sum, base) {
            (Some(change), Some(base)) => Some((change + base)?),
            (sum, _) => sum,
        })
    }
}
