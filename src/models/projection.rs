//! Layers that repositories put behind pooling: dense projections and norms of whole sentence vectors.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::fields::Fields;
use crate::checkpoint::{SafetensorsSource, read_json};
use crate::kernels::gated_act::{Activation, activation};
use crate::nn::LayerNorm;
use crate::weight::{Loader, Weight};
use crate::{Error, Result};

/// A function of sentence vectors; computed in f32 on the CPU.
#[derive(Debug)]
pub enum Projection {
    /// `act(x · Wᵀ + b)`.
    Dense(Dense),
    /// A layer norm.
    Norm(LayerNorm, usize),
}

/// A dense layer.
#[derive(Debug)]
pub struct Dense {
    weight: Arc<dyn Weight>,
    bias: Option<Tensor>,
    activation: Activation,
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
        fields.refuse(&[("use_residual", json!(false))])?;
        let (inn, out) = (fields.size("in_features")?, fields.size("out_features")?);
        let name = fields.text("activation_function")?.unwrap_or("torch.nn.modules.activation.Tanh");
        let activation = torch_activation(name)
            .ok_or_else(|| fields.error("activation_function", format!("{name:?} is not supported")))?;
        let source = SafetensorsSource::open(folder)?;
        let loader = Loader::new(&source, &Device::Cpu, DType::F32);
        let scope = loader.root().at("linear");
        let weight = scope.matrix("weight", out, inn)?;
        let bias = if fields.flag_or("bias", true)? { Some(scope.tensor("bias", &[out])?) } else { None };
        drop(scope);
        loader.finish(|_| false)?;
        Ok(Self::Dense(Dense { weight, bias, activation }))
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
        let rows = vectors.len() / inn;
        let x = Tensor::from_vec(vectors, (rows, inn), &Device::Cpu)?;
        let y = match self {
            Self::Dense(dense) => {
                let y = dense.weight.linear(&x, dense.bias.as_ref())?;
                activation(&y, dense.activation)?
            }
            Self::Norm(norm, _) => norm.forward(&x)?,
        };
        Ok(y.flatten_all()?.to_vec1()?)
    }
}

fn misfit(values: usize, width: usize) -> Error {
    Error::internal("projection", format!("{values} values are no rows of {width}"))
}

fn config(folder: &Path) -> Result<(serde_json::Value, String)> {
    let path = folder.join("config.json");
    Ok((read_json(&path)?, path.display().to_string()))
}

/// The activation that a Python class path names, as sentence-transformers writes it.
pub fn torch_activation(path: &str) -> Option<Activation> {
    Some(match path.rsplit('.').next()? {
        "Identity" => Activation::Identity,
        "Tanh" => Activation::Tanh,
        "Sigmoid" => Activation::Sigmoid,
        "ReLU" => Activation::Relu,
        "GELU" => Activation::Gelu,
        "SiLU" => Activation::Silu,
        _ => return None,
    })
}
