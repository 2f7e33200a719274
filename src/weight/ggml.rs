//! A matrix in one of ggml's block formats, on the CPU: it stays as small as it was stored.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use super::formats::BlockFormat;
use super::{DenseWeight, Format, Weight};
use crate::kernels::cpu::pool;
use crate::kernels::decoded::{Rows, decoded_linear};
use crate::{Error, Result};

/// A quantised matrix `[out, in]` on the CPU.
#[derive(Debug)]
pub struct GgmlWeight {
    blocks: Arc<Blocks>,
}

#[derive(Debug)]
struct Blocks {
    format: &'static BlockFormat,
    out: usize,
    inn: usize,
    bytes: Vec<u8>,
}

impl Rows for Blocks {
    fn shape(&self) -> (usize, usize) {
        (self.out, self.inn)
    }

    fn decode(&self, row: usize, values: &mut [f32]) {
        let length = self.format.row_bytes(self.inn);
        self.format.decode(&self.bytes[row * length..][..length], values);
    }
}

impl GgmlWeight {
    /// Copies the blocks of whole rows of `inn` values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a format without blocks, rows that are no multiple of a block, and bytes that are
    /// not whole rows.
    pub fn new(format: Format, bytes: &[u8], inn: usize) -> Result<Self> {
        let Some(entry) = BlockFormat::of(format) else {
            return Err(Error::argument("format", format!("{format:?}"), "a quantised format"));
        };
        let row = entry.row_bytes(inn);
        if row == 0 || !inn.is_multiple_of(format.block_elements()) || !bytes.len().is_multiple_of(row) {
            let got = format!("{} bytes for rows of {inn}", bytes.len());
            let expected = format!("rows of a multiple of {} values", format.block_elements());
            return Err(Error::argument("weight bytes", got, expected));
        }
        let blocks = Blocks { format: entry, out: bytes.len() / row, inn, bytes: bytes.to_vec() };
        Ok(Self { blocks: Arc::new(blocks) })
    }

    /// Converts a matrix `[out, in]` whose rows are whole blocks of `format`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where rows do not fit, or the format can only be read.
    pub fn quantize(matrix: &Tensor, format: &'static BlockFormat) -> Result<Self> {
        let (_, inn) = matrix.dims2()?;
        let Some(encoder) = format.encoder.filter(|_| inn.is_multiple_of(format.format.block_elements()))
        else {
            let got = format!("rows of {inn} values to {}", format.name);
            let expected = format!("rows of a multiple of {} values", format.format.block_elements());
            return Err(Error::argument("quantize", got, expected));
        };
        let matrix = matrix.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let quantized = QTensor::quantize(&matrix, encoder)?;
        Self::new(format.format, &quantized.data()?, inn)
    }
}

impl GgmlWeight {
    /// This matrix where activations of `dtype` on `device` can meet it: itself on the CPU, plain values elsewhere.
    pub fn on(self, device: &Device, dtype: DType) -> Result<Arc<dyn Weight>> {
        if device.is_cpu() {
            return Ok(Arc::new(self));
        }
        Ok(Arc::new(DenseWeight::new(self.dequantize(dtype)?.to_device(device)?)?))
    }
}

impl Weight for GgmlWeight {
    fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        let rows: Arc<dyn Rows> = Arc::clone(&self.blocks) as _;
        decoded_linear(x, &rows)
    }

    fn rows(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        let (out, inn) = self.shape();
        let mut values = vec![0.0; ids.len() * inn];
        for (id, row) in ids.iter().zip(values.chunks_exact_mut(inn)) {
            if *id as usize >= out {
                let allowed = format!("ids below {out}");
                return Err(Error::argument("input_ids", format!("token id {id}"), allowed));
            }
            self.blocks.decode(*id as usize, row);
        }
        Ok(Tensor::from_vec(values, (ids.len(), inn), &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn dequantize(&self, dtype: DType) -> Result<Tensor> {
        let (out, inn) = self.shape();
        let mut values = vec![0.0; out * inn];
        pool::parallel_chunks(&mut values, inn, |row, values| self.blocks.decode(row, values));
        Ok(Tensor::from_vec(values, (out, inn), &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn shape(&self) -> (usize, usize) {
        self.blocks.shape()
    }

    fn size_in_bytes(&self) -> usize {
        self.blocks.bytes.len()
    }

    fn format(&self) -> Format {
        self.blocks.format.format
    }

    fn stored(&self) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(&self.blocks.bytes))
    }
}
