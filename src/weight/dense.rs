//! A matrix stored as a plain f32, f16 or bf16 tensor on its device.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::{Format, PackedWeight, Weight};
use crate::{Error, Result, kernels};

/// A plain tensor `[out, in]`.
#[derive(Debug)]
pub struct DenseWeight {
    tensor: Tensor,
}

impl DenseWeight {
    /// Wraps a tensor of shape `[out, in]`; it is detached from any autograd graph.
    pub fn new(tensor: Tensor) -> Result<Self> {
        tensor.dims2()?;
        plain_format(tensor.dtype())?;
        Ok(Self { tensor: tensor.detach().contiguous()? })
    }
}

/// The format of a plain dtype.
pub(super) fn plain_format(dtype: DType) -> Result<Format> {
    match dtype {
        DType::F32 => Ok(Format::F32),
        DType::F16 => Ok(Format::F16),
        DType::BF16 => Ok(Format::BF16),
        other => Err(Error::argument("dtype", other.as_str(), "float32, float16 or bfloat16")),
    }
}

impl Weight for DenseWeight {
    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let y = kernels::linear::linear(x, &self.tensor)?;
        Ok(match bias {
            Some(bias) => y.broadcast_add(&bias.detach())?,
            None => y,
        })
    }

    fn gradient(&self, dy: &Tensor) -> Result<Tensor> {
        kernels::linear::gradient(dy, &self.tensor)
    }

    fn rows(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        let ids = Tensor::new(ids, self.tensor.device())?;
        Ok(self.tensor.index_select(&ids, 0)?.to_dtype(dtype)?)
    }

    fn dequantize(&self, dtype: DType) -> Result<Tensor> {
        Ok(self.tensor.to_dtype(dtype)?)
    }

    fn shape(&self) -> (usize, usize) {
        (self.tensor.dims()[0], self.tensor.dims()[1])
    }

    fn size_in_bytes(&self) -> usize {
        self.tensor.elem_count() * self.tensor.dtype().size_in_bytes()
    }

    fn format(&self) -> Format {
        plain_format(self.tensor.dtype()).unwrap_or(Format::F32)
    }

    fn stored(&self) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Owned(to_bytes(&self.tensor)?.1))
    }
}

/// Holds a plain matrix `[out, in]` as its device multiplies it, in its own dtype.
///
/// # Errors
/// [`Error::InvalidArgument`] for other dtypes than f32, f16 and bf16.
pub fn hold(matrix: &Tensor) -> Result<Arc<dyn Weight>> {
    if !matrix.device().is_cpu() {
        return Ok(Arc::new(DenseWeight::new(matrix.clone())?));
    }
    let (_, inn) = matrix.dims2()?;
    let (format, bytes) = to_bytes(matrix)?;
    Ok(Arc::new(PackedWeight::new(format, &bytes, inn)?))
}

/// The values of a plain tensor, row-major and little endian.
pub fn to_bytes(tensor: &Tensor) -> Result<(Format, Vec<u8>)> {
    let format = plain_format(tensor.dtype())?;
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    let bytes = match format {
        Format::BF16 => joined(&flat.to_vec1()?, bf16::to_le_bytes),
        Format::F16 => joined(&flat.to_vec1()?, f16::to_le_bytes),
        _ => joined(&flat.to_vec1()?, f32::to_le_bytes),
    };
    Ok((format, bytes))
}

/// The bytes of all values, one after the other.
fn joined<T: Copy, const BYTES: usize>(values: &[T], bytes_of: fn(T) -> [u8; BYTES]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * BYTES];
    for (to, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *to = bytes_of(*value);
    }
    bytes
}
