//! Layers that repositories put behind pooling: dense projections and norms of whole sentence vectors.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::fields::Fields;
use super::torch_activation::TorchActivation;
use crate::checkpoint::{SafetensorsSource, read_json};
use crate::nn::LayerNorm;
use crate::weight::{Loader, Weight};
use crate::{Error, Result};

/// A function of sentence vectors; computed in f32 on the CPU.
#[derive(Debug)]
pub enum Projection {
    /// `act(x · Wᵀ + b)`, perhaps with `x` or a product of it added.
    Dense(Dense),
    /// A layer norm.
    Norm(LayerNorm, usize),
}

/// What a dense layer adds to its result.
#[derive(Debug)]
enum Residual {
    None,
    Input,
    Matrix(Arc<dyn Weight>),
}

/// A dense layer.
#[derive(Debug)]
pub struct Dense {
    weight: Arc<dyn Weight>,
    bias: Option<Tensor>,
    activation: TorchActivation,
    residual: Residual,
}

impl Projection {
    /// Reads a dense layer from its folder.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for an unknown activation, [`Error::InvalidCheckpoint`] for its tensors.
    pub fn dense(folder: &Path) -> Result<Self> {
        let (config, file) = config(folder)?;
        let fields = Fields::new(&file, &config)?;
        for field in ["module_input_name", "module_output_name"] {
            fields.refuse(&[(field, json!("sentence_embedding"))])?;
        }
        let (inn, out) = (fields.size("in_features")?, fields.size("out_features")?);
        let activation = match fields.text("activation_function")? {
            Some(path) => TorchActivation::from_path(path)
                .map_err(|reason| fields.error("activation_function", reason))?
                .unwrap_or(TorchActivation::TANH),
            None => TorchActivation::TANH,
        };
        let source = SafetensorsSource::open(folder)?;
        let loader = Loader::new(&source, &Device::Cpu, DType::F32);
        let scope = loader.root().at("linear");
        let weight = scope.matrix("weight", out, inn)?;
        let bias = if fields.flag_or("bias", true)? { Some(scope.tensor("bias", &[out])?) } else { None };
        let residual = match fields.flag_or("use_residual", false)? {
            false => Residual::None,
            true if inn == out => Residual::Input,
            true => Residual::Matrix(loader.root().at("residual").matrix("weight", out, inn)?),
        };
        drop(scope);
        loader.finish(|_| false)?;
        Ok(Self::Dense(Dense { weight, bias, activation, residual }))
    }

    /// Reads a layer norm from its folder.
    pub fn norm(folder: &Path) -> Result<Self> {
        let (config, file) = config(folder)?;
        let dimension = Fields::new(&file, &config)?.size("dimension")?;
        let source = SafetensorsSource::open(folder)?;
        let loader = Loader::new(&source, &Device::Cpu, DType::F32);
        let norm = LayerNorm::load(&loader.root().at("norm"), dimension, 1e-5, true)?;
        loader.finish(|_| false)?;
        Ok(Self::Norm(norm, dimension))
    }

    /// Width of the vectors it takes, and of those it gives.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(dense) => {
                let (out, inn) = dense.weight.shape();
                (inn, out)
            }
            Self::Norm(_, dimension) => (*dimension, *dimension),
        }
    }

    /// `[rows, in]`, row by row, to `[rows, out]`.
    pub fn forward(&self, vectors: Vec<f32>) -> Result<Vec<f32>> {
        let (inn, _) = self.shape();
        if vectors.is_empty() || !vectors.len().is_multiple_of(inn) {
            return if vectors.is_empty() { Ok(vectors) } else { Err(misfit(vectors.len(), inn)) };
        }
        let count = vectors.len() / inn;
        let x = Tensor::from_vec(vectors, (count, inn), &Device::Cpu)?;
        let y = match self {
            Self::Dense(dense) => {
                let mut y = rows(&dense.weight.linear(&x, dense.bias.as_ref())?)?;
                dense.activation.apply(&mut y, dense.weight.shape().0);
                let y = Tensor::from_vec(y, (count, self.shape().1), &Device::Cpu)?;
                match &dense.residual {
                    Residual::None => y,
                    Residual::Input => (y + x)?,
                    Residual::Matrix(weight) => (y + weight.matmul(&x)?)?,
                }
            }
            Self::Norm(norm, _) => norm.forward(&x)?,
        };
        rows(&y)
    }
}

/// The values row by row.
fn rows(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1()?)
}

fn misfit(values: usize, width: usize) -> Error {
    Error::internal("projection", format!("{values} values are no rows of {width}"))
}

fn config(folder: &Path) -> Result<(serde_json::Value, String)> {
    let path = folder.join("config.json");
    Ok((read_json(&path)?, path.display().to_string()))
}
