//! The quantised formats, the one list: names, layouts, and what to use where rows do not fit.

use super::Format;
use super::blocks::{self, Decode};
use super::quantize::{self, Encode};

/// One format of values in blocks that share a scale.
#[derive(Debug)]
pub struct BlockFormat {
    /// The name that users give, such as `"q4_k"`.
    pub name: &'static str,
    /// The layout.
    pub format: Format,
    /// Decodes one block.
    pub(super) decode: Decode,
    /// Encodes a row; `None` where a format can only be read.
    pub(super) encode: Option<Encode>,
    /// What llama.cpp takes for a matrix whose rows are not whole blocks.
    pub(super) narrower: Option<Format>,
}

const fn entry(
    name: &'static str,
    format: Format,
    decode: Decode,
    encode: Option<Encode>,
    narrower: Option<Format>,
) -> BlockFormat {
    BlockFormat { name, format, decode, encode, narrower }
}

/// Every quantised format.
pub const FORMATS: &[BlockFormat] = &[
    entry("q8_0", Format::Q8_0, blocks::q8_0, Some(quantize::q8_0), None),
    entry("q4_0", Format::Q4_0, blocks::q4_0, Some(quantize::q4_0), None),
    entry("q4_1", Format::Q4_1, blocks::q4_1, Some(quantize::q4_1), None),
    entry("q5_0", Format::Q5_0, blocks::q5_0, Some(quantize::q5_0), None),
    entry("q5_1", Format::Q5_1, blocks::q5_1, Some(quantize::q5_1), None),
    entry("q2_k", Format::Q2K, blocks::q2_k, Some(quantize::q2_k), Some(Format::Q4_0)),
    entry("q3_k", Format::Q3K, blocks::q3_k, Some(quantize::q3_k), Some(Format::Q4_0)),
    entry("q4_k", Format::Q4K, blocks::q4_k, Some(quantize::q4_k), Some(Format::Q5_0)),
    entry("q5_k", Format::Q5K, blocks::q5_k, Some(quantize::q5_k), Some(Format::Q5_1)),
    entry("q6_k", Format::Q6K, blocks::q6_k, Some(quantize::q6_k), Some(Format::Q8_0)),
    entry("q8_k", Format::Q8K, blocks::q8_k, None, None),
    entry("iq4_nl", Format::IQ4NL, blocks::iq4_nl, Some(quantize::iq4_nl), None),
    entry("mxfp4", Format::MXFP4, blocks::mxfp4, Some(quantize::mxfp4), None),
];

impl BlockFormat {
    /// The entry of a format; `None` for plain numbers.
    pub fn of(format: Format) -> Option<&'static Self> {
        FORMATS.iter().find(|entry| entry.format == format)
    }

    /// Whether weights can be converted to this format.
    pub fn can_be_written(&self) -> bool {
        self.encode.is_some()
    }

    /// This format, or the one that takes its place for rows of `inn` values; `None` where no block fits.
    pub fn fitting(&'static self, inn: usize) -> Option<&'static Self> {
        if inn.is_multiple_of(self.format.block_elements()) {
            return Some(self);
        }
        let narrower = Self::of(self.narrower?)?;
        inn.is_multiple_of(narrower.format.block_elements()).then_some(narrower)
    }

    /// Bytes of a row of `inn` values.
    pub(super) fn row_bytes(&self, inn: usize) -> usize {
        inn / self.format.block_elements() * self.format.block_bytes()
    }

    /// Decodes whole blocks.
    pub(super) fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        let (size, count) = (self.format.block_bytes(), self.format.block_elements());
        for (block, values) in bytes.chunks_exact(size).zip(values.chunks_exact_mut(count)) {
            (self.decode)(block, values);
        }
    }
}
