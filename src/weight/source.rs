//! What a checkpoint offers to whoever builds weights from it: named, shaped, formatted bytes.
//!
//! It deliberately does no conversion: a format is interpreted by the weight that stores it.

use std::borrow::Cow;
use std::path::Path;

use crate::Result;

/// How the elements of a stored tensor are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Format {
    F32,
    F16,
    BF16,
    F64,
    I64,
    I32,
    I8,
    U8,
    /// ggml block formats, rows of `block_elements` values each.
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    IQ4NL,
    MXFP4,
}

impl Format {
    /// Number of elements in one block; 1 for plain formats.
    pub fn block_elements(self) -> usize {
        use Format::*;
        match self {
            F32 | F16 | BF16 | F64 | I64 | I32 | I8 | U8 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4NL | MXFP4 => 32,
            Q2K | Q3K | Q4K | Q5K | Q6K | Q8K => 256,
        }
    }

    /// Number of bytes in one block.
    pub fn block_bytes(self) -> usize {
        use Format::*;
        match self {
            F64 | I64 => 8,
            F32 | I32 => 4,
            F16 | BF16 => 2,
            I8 | U8 => 1,
            Q4_0 | IQ4NL => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2K => 84,
            Q3K => 110,
            Q4K => 144,
            Q5K => 176,
            Q6K => 210,
            Q8K => 292,
            MXFP4 => 17,
        }
    }

    /// Whether values are stored in blocks that share a scale.
    pub fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }
}

/// Shape and encoding of one stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The encoding.
    pub format: Format,
    /// Row-major dimensions, outermost first; a linear layer's weight is `[out, in]`.
    pub shape: Vec<usize>,
}

/// Named tensors of one checkpoint, under the names that Hugging Face checkpoints use.
///
/// Implementations have validated every offset and length when they were opened: `bytes` of a name for which `info`
/// is `Some` has exactly the length that its shape and format ask for.
pub trait TensorSource: Send + Sync {
    /// All names, in no particular order.
    fn names(&self) -> Vec<String>;
    /// Shape and encoding, or `None` where there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;
    /// The tensor's bytes, row-major, little endian.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>>;
    /// Says that the tensor has been copied and is not read again soon, so that it need not stay in memory.
    ///
    /// Only a hint: [`TensorSource::bytes`] gives the same afterwards.
    fn release(&self, _name: &str) {}
    /// The file or directory, for error messages.
    fn path(&self) -> &Path;
}
