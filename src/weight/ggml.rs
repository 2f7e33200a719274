//! A matrix in one of ggml's block formats, on the CPU: it stays as small as it was stored.
//!
//! Most formats are packed for the kernels that multiply in eight-bit integers; the few others are kept as they came
//! and decoded row by row.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use super::formats::BlockFormat;
use super::quantize::{self, Plain, Unfit};
use super::{DenseWeight, Format, Weight};
use crate::kernels::cpu::{self, PackedQuant, pool};
use crate::kernels::decoded::{Rows, decoded_gradient, decoded_linear};
use crate::kernels::linear::{quant_gradient, quant_linear};
use crate::{Error, Result};

/// A quantised matrix `[out, in]` on the CPU.
#[derive(Debug)]
pub struct GgmlWeight {
    format: &'static BlockFormat,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Packed(Arc<PackedQuant>),
    Blocks(Arc<Blocks>),
}

/// Blocks as the file has them.
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

/// The kernels' name of a format; `None` where they have none for it.
fn kernel_format(format: Format) -> Option<cpu::BlockFormat> {
    use cpu::BlockFormat as Kernel;
    Some(match format {
        Format::Q4_0 => Kernel::Q4_0,
        Format::Q4_1 => Kernel::Q4_1,
        Format::Q5_0 => Kernel::Q5_0,
        Format::Q5_1 => Kernel::Q5_1,
        Format::Q8_0 => Kernel::Q8_0,
        Format::Q2K => Kernel::Q2K,
        Format::Q3K => Kernel::Q3K,
        Format::Q4K => Kernel::Q4K,
        Format::Q5K => Kernel::Q5K,
        Format::Q6K => Kernel::Q6K,
        _ => return None,
    })
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
        let values = match kernel_format(format) {
            Some(format) => Values::Packed(Arc::new(PackedQuant::pack(format, &[bytes], inn)?)),
            None => Values::Blocks(Arc::new(Blocks {
                format: entry,
                out: bytes.len() / row,
                inn,
                bytes: bytes.to_vec(),
            })),
        };
        Ok(Self { format: entry, values })
    }

    /// Converts a matrix `[out, in]` whose rows are whole blocks of `format`; `name` is for messages.
    ///
    /// With an `importance`, a positive number for each of the `in` columns, values of important columns are kept better.
    /// It is what llama.cpp calls an importance matrix; Q8_0 and MXFP4 make no use of it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where rows do not fit, the format can only be read, or the importance has another
    /// length or is not finite; [`Error::InvalidCheckpoint`] for values that are not finite or too large.
    pub fn quantize(
        name: &str,
        matrix: &Tensor,
        format: &'static BlockFormat,
        importance: Option<&[f32]>,
    ) -> Result<Self> {
        let (_, inn) = matrix.dims2()?;
        let Some(encoder) = format.encode.filter(|_| inn.is_multiple_of(format.format.block_elements()))
        else {
            let got = format!("{name} with rows of {inn} values to {}", format.name);
            let expected = format!("rows of a multiple of {} values", format.format.block_elements());
            return Err(Error::argument("quantize", got, expected));
        };
        if let Some(importance) = importance
            && (importance.len() != inn || !importance.iter().all(|x| x.is_finite() && *x >= 0.0))
        {
            let got = format!("{} values for {name}", importance.len());
            return Err(Error::argument("importance", got, format!("{inn} finite values, none negative")));
        }
        let bytes = with_values(matrix, |values| quantize::encode(values, inn, format, encoder, importance))?;
        let bytes = bytes.map_err(|Unfit(row, column, value)| Error::InvalidCheckpoint {
            path: name.into(),
            problems: vec![format!(
                "got {value} in row {row}, column {column}, expected finite values in the range of {}; \
                 repair the checkpoint or load it without quantize",
                format.name
            )],
        })?;
        Self::new(format.format, &bytes, inn)
    }
}

/// Calls `then` with the values of a matrix, which are copied only where they are not in a row already.
fn with_values<T>(matrix: &Tensor, then: impl FnOnce(Plain<'_>) -> T) -> Result<T> {
    let matrix = matrix.to_device(&Device::Cpu)?.contiguous()?;
    let matrix = match matrix.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => matrix,
        _ => matrix.to_dtype(DType::F32)?,
    };
    let (storage, layout) = matrix.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + matrix.elem_count();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(then(Plain::F32(&values[range]))),
        Storage::Cpu(CpuStorage::F16(values)) => Ok(then(Plain::F16(&values[range]))),
        Storage::Cpu(CpuStorage::BF16(values)) => Ok(then(Plain::Bf16(&values[range]))),
        _ => Err(Error::argument("quantize", format!("{:?}", matrix.dtype()), "floating-point values")),
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

    /// Writes row `row`, which there is, to `values: [in]`.
    fn decode(&self, row: usize, values: &mut [f32]) {
        match &self.values {
            Values::Packed(matrix) => matrix.row(row, values),
            Values::Blocks(blocks) => blocks.decode(row, values),
        }
    }
}

impl Weight for GgmlWeight {
    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let blocks = match &self.values {
            Values::Packed(matrix) => return quant_linear(x, matrix, bias),
            Values::Blocks(blocks) => blocks,
        };
        let rows: Arc<dyn Rows> = Arc::clone(blocks) as _;
        let y = decoded_linear(x, &rows)?;
        Ok(match bias {
            Some(bias) => y.broadcast_add(&bias.detach())?,
            None => y,
        })
    }

    fn gradient(&self, dy: &Tensor) -> Result<Tensor> {
        match &self.values {
            Values::Packed(matrix) => quant_gradient(dy, matrix),
            Values::Blocks(blocks) => decoded_gradient(dy, &(Arc::clone(blocks) as Arc<dyn Rows>)),
        }
    }

    fn rows(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        let (out, inn) = self.shape();
        let mut values = vec![0.0; ids.len() * inn];
        for (id, row) in ids.iter().zip(values.chunks_exact_mut(inn)) {
            if *id as usize >= out {
                let allowed = format!("ids below {out}");
                return Err(Error::argument("input_ids", format!("token id {id}"), allowed));
            }
            self.decode(*id as usize, row);
        }
        Ok(Tensor::from_vec(values, (ids.len(), inn), &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn dequantize(&self, dtype: DType) -> Result<Tensor> {
        let (out, inn) = self.shape();
        let mut values = vec![0.0; out * inn];
        pool::parallel_chunks(&mut values, inn, |row, values| self.decode(row, values));
        Ok(Tensor::from_vec(values, (out, inn), &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn shape(&self) -> (usize, usize) {
        match &self.values {
            Values::Packed(matrix) => matrix.shape(),
            Values::Blocks(blocks) => blocks.shape(),
        }
    }

    fn size_in_bytes(&self) -> usize {
        match &self.values {
            Values::Packed(matrix) => matrix.size_in_bytes(),
            Values::Blocks(blocks) => blocks.bytes.len(),
        }
    }

    fn format(&self) -> Format {
        self.format.format
    }

    fn stored(&self) -> Result<Cow<'_, [u8]>> {
        Ok(match &self.values {
            Values::Packed(matrix) => Cow::Owned(matrix.unpack()),
            Values::Blocks(blocks) => Cow::Borrowed(&blocks.bytes),
        })
    }
}
