//! How one matrix is stored and multiplied.
//!
//! It knows neither files nor models: bytes come in through [`TensorSource`], a [`Weight`] goes out. Whoever holds a
//! weight never asks in which format it is stored.

mod blocks;
mod dense;
mod formats;
mod ggml;
mod loader;
mod packed;
mod quantize;
mod source;

use std::borrow::Cow;
use std::fmt::Debug;

use candle_core::{DType, Tensor};

pub use dense::{DenseWeight, hold, to_bytes};
pub use formats::{BlockFormat, FORMATS};
pub use ggml::GgmlWeight;
pub use loader::{Loader, Quantize, Scope, Target};
pub use packed::PackedWeight;
pub use source::{Format, TensorInfo, TensorSource};

use crate::Result;

/// A frozen matrix `[out, in]` that can be multiplied with activations.
pub trait Weight: Send + Sync + Debug {
    /// `x · Wᵀ`: `[tokens, in]` to `[tokens, out]` in the dtype of `x`; differentiable in `x`, never in the weight.
    fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        self.linear(x, None)
    }
    /// `x · Wᵀ + bias` for `bias: [out]`, else as [`Weight::matmul`]; the bias gets no gradient.
    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor>;
    /// The gradient of `x` in [`Weight::matmul`] for that of the result: `dy · W`, `[tokens, out]` to `[tokens, in]`.
    fn gradient(&self, dy: &Tensor) -> Result<Tensor>;
    /// The rows with the given indices as `[ids, in]` in `dtype`: an embedding lookup.
    fn rows(&self, ids: &[u32], dtype: DType) -> Result<Tensor>;
    /// The whole matrix as a plain tensor `[out, in]`.
    fn dequantize(&self, dtype: DType) -> Result<Tensor>;
    /// `(out, in)`.
    fn shape(&self) -> (usize, usize);
    /// Bytes held in memory.
    fn size_in_bytes(&self) -> usize;
    /// How the elements are stored.
    fn format(&self) -> Format;
    /// The elements as [`Weight::format`] stores them, row-major, little endian: what a file would hold.
    fn stored(&self) -> Result<Cow<'_, [u8]>>;
}
