//! A matrix of f32, f16 or bf16 in the layout of the CPU's kernels: one copy for many rows and for one.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{Format, Weight};
use crate::kernels::cpu::{Element, PackedMatrix};
use crate::kernels::linear::{packed_gradient, packed_linear};
use crate::{Error, Result};

/// A packed matrix `[out, in]` on the CPU.
#[derive(Debug)]
pub struct PackedWeight {
    matrix: Arc<PackedMatrix>,
}

impl PackedWeight {
    /// Packs row-major little-endian values of `format`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a format that is not f32, f16 or bf16, or bytes that are not whole rows.
    pub fn new(format: Format, bytes: &[u8], inn: usize) -> Result<Self> {
        Self::converted(format, format, bytes, inn)
    }

    /// Packs values of `stored` as values of `format`, each rounded to the nearest.
    ///
    /// # Errors
    /// As [`PackedWeight::new`].
    pub fn converted(format: Format, stored: Format, bytes: &[u8], inn: usize) -> Result<Self> {
        let plain = |format| {
            let not_plain = || Error::argument("format", format!("{format:?}"), "F32, F16 or BF16");
            element(format).ok_or_else(not_plain)
        };
        let matrix = PackedMatrix::pack_as(plain(format)?, plain(stored)?, &[bytes], inn)?;
        Ok(Self { matrix: Arc::new(matrix) })
    }
}

/// The kernels' name of a plain format.
fn element(format: Format) -> Option<Element> {
    match format {
        Format::F32 => Some(Element::F32),
        Format::F16 => Some(Element::F16),
        Format::BF16 => Some(Element::Bf16),
        _ => None,
    }
}

impl Weight for PackedWeight {
    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        packed_linear(x, &self.matrix, bias)
    }

    fn gradient(&self, dy: &Tensor) -> Result<Tensor> {
        packed_gradient(dy, &self.matrix)
    }

    fn rows(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        let (out, inn) = self.matrix.shape();
        let mut values = vec![0.0; ids.len() * inn];
        for (id, row) in ids.iter().zip(values.chunks_exact_mut(inn.max(1))) {
            if *id as usize >= out {
                return Err(Error::argument(
                    "input_ids",
                    format!("token id {id}"),
                    format!("ids below {out}"),
                ));
            }
            self.matrix.row(*id as usize, row);
        }
        Ok(Tensor::from_vec(values, (ids.len(), inn), &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn dequantize(&self, dtype: DType) -> Result<Tensor> {
        let (out, inn) = self.matrix.shape();
        let mut values = vec![0.0; out * inn];
        self.matrix.unpack_f32(&mut values);
        Ok(Tensor::from_vec(values, (out, inn), &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn shape(&self) -> (usize, usize) {
        self.matrix.shape()
    }

    fn size_in_bytes(&self) -> usize {
        self.matrix.size_in_bytes()
    }

    fn format(&self) -> Format {
        match self.matrix.element() {
            Element::F32 => Format::F32,
            Element::F16 => Format::F16,
            Element::Bf16 => Format::BF16,
        }
    }

    fn stored(&self) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Owned(self.matrix.unpack()))
    }
}
