//! Weights and biases that an adapter carries whole: PEFT's `modules_to_save` and `bias`.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::layout::{BIAS, WEIGHT};
use super::parts::{Parts, Rebias};
use crate::Result;
use crate::nn::Adapter;
use crate::weight::{DenseWeight, Weight};

/// A layer's weight, and perhaps its bias, replaced.
#[derive(Debug)]
struct Whole {
    weight: Stored,
    bias: Rebias,
}

#[derive(Debug)]
enum Stored {
    Finished(DenseWeight),
    /// `[out, in]`, a variable or what shares its memory.
    Training(Tensor),
}

/// A layer's bias replaced.
#[derive(Debug)]
struct BiasOnly {
    bias: Rebias,
}

/// Builds the adapter of a site whose weight is replaced.
pub(super) fn build(parts: &Parts) -> Result<Option<Arc<dyn Adapter>>> {
    let Some(weight) = parts.get(WEIGHT) else { return Ok(None) };
    let weight = match parts.training {
        Some(_) => Stored::Training(weight.clone()),
        None => Stored::Finished(DenseWeight::new(weight.clone())?),
    };
    let bias = Rebias::new(parts.get(BIAS), parts.site.bias.as_ref());
    Ok(Some(Arc::new(Whole { weight, bias })))
}

/// Builds the adapter of a site of which only the bias is replaced.
pub(super) fn build_bias(parts: &Parts) -> Result<Option<Arc<dyn Adapter>>> {
    let Some(bias) = parts.get(BIAS) else { return Ok(None) };
    Ok(Some(Arc::new(BiasOnly { bias: Rebias::new(Some(bias), parts.site.bias.as_ref()) })))
}

impl Adapter for Whole {
    fn forward(&self, _base: &dyn Weight, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let dtype = y.dtype();
        let y = match &self.weight {
            Stored::Finished(weight) => weight.matmul(x)?,
            Stored::Training(weight) => x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(dtype)?,
        };
        Ok(match self.bias.effective() {
            Some(bias) => y.broadcast_add(&bias.to_dtype(dtype)?)?,
            None => y,
        })
    }

    fn embed(&self, ids: &[u32], y: Tensor) -> Result<Tensor> {
        match &self.weight {
            Stored::Finished(weight) => weight.rows(ids, y.dtype()),
            Stored::Training(weight) => {
                let ids = Tensor::new(ids, weight.device())?;
                Ok(weight.index_select(&ids, 0)?.to_dtype(y.dtype())?)
            }
        }
    }

    fn merged(&self, _base: &dyn Weight) -> Result<Tensor> {
        match &self.weight {
            Stored::Finished(weight) => weight.dequantize(DType::F32),
            Stored::Training(weight) => Ok(weight.to_dtype(DType::F32)?),
        }
    }

    fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let weight = match &self.weight {
            Stored::Finished(weight) => weight.dequantize(DType::F32)?,
            Stored::Training(weight) => weight.clone(),
        };
        let mut all = vec![(WEIGHT.to_owned(), weight)];
        all.extend(self.bias.new.iter().map(|bias| (BIAS.to_owned(), bias.clone())));
        Ok(all)
    }

    fn bias(&self, _base: Option<&Tensor>) -> Result<Option<Tensor>> {
        Ok(self.bias.new.clone())
    }
}

impl Adapter for BiasOnly {
    fn forward(&self, _base: &dyn Weight, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        self.bias.apply(y)
    }

    fn merged(&self, base: &dyn Weight) -> Result<Tensor> {
        base.dequantize(DType::F32)
    }

    fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(self.bias.new.iter().map(|bias| (BIAS.to_owned(), bias.clone())).collect())
    }

    fn bias(&self, _base: Option<&Tensor>) -> Result<Option<Tensor>> {
        Ok(self.bias.new.clone())
    }
}
