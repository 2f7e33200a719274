//! Where the rows of a `[tokens, heads, head_dim]` tensor lie in CPU memory.

use std::marker::PhantomData;

use candle_core::{CpuStorage, Layout, Result, bail};
use half::{bf16, f16};

use crate::kernels::simd::{Element, Simd};

/// A borrowed `[tokens, heads, head_dim]` tensor with contiguous rows of one of three float types.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: Data,
    tokens: usize,
    heads: usize,
    head_dim: usize,
    token_stride: usize,
    head_stride: usize,
    borrowed: PhantomData<&'a [f32]>,
}

#[derive(Clone, Copy)]
enum Data {
    F32(*const f32),
    Bf16(*const bf16),
    F16(*const f16),
}

// SAFETY: a view only reads memory that it borrows for its lifetime.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}

/// f32 rows, `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) start: *const f32,
    pub(super) stride: usize,
}

impl Rows {
    /// The rows after the first `n`.
    #[inline(always)]
    pub(super) fn skip(self, n: usize) -> Self {
        Self { start: self.start.wrapping_add(n * self.stride), ..self }
    }
}

impl<'a> View<'a> {
    /// Fails when the last dimension is not contiguous or the type is not f32, bf16 or f16.
    pub(super) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (tokens, heads, head_dim) = layout.shape().dims3()?;
        let &[token_stride, head_stride, last] = layout.stride() else {
            bail!("a view needs three dimensions")
        };
        if last != 1 && head_dim > 1 {
            bail!("a view needs contiguous rows, got strides {:?}", layout.stride());
        }
        let start = layout.start_offset();
        let empty = tokens == 0 || heads == 0 || head_dim == 0;
        let end = if empty {
            start
        } else {
            start + (tokens - 1) * token_stride + (heads - 1) * head_stride + head_dim
        };
        let (data, len) = match storage {
            CpuStorage::F32(x) => (Data::F32(x.as_ptr().wrapping_add(start)), x.len()),
            CpuStorage::BF16(x) => (Data::Bf16(x.as_ptr().wrapping_add(start)), x.len()),
            CpuStorage::F16(x) => (Data::F16(x.as_ptr().wrapping_add(start)), x.len()),
            _ => bail!("attention reads f32, bf16 and f16, not {:?}", storage_dtype(storage)),
        };
        if end > len {
            bail!("a view of {end} elements exceeds a storage of {len}");
        }
        Ok(Self { data, tokens, heads, head_dim, token_stride, head_stride, borrowed: PhantomData })
    }

    /// The rows of `tokens` tokens from `first` on, of one head; converted into `buffer` (`width` elements a row, zeros
    /// beyond `head_dim`) unless they are f32 rows that need no zeros.
    ///
    /// # Safety
    /// `buffer` has room for `tokens * width` elements, and `width >= head_dim` is a multiple of `S::LANES` unless it
    /// equals `head_dim`. The result is valid while the view and the buffer are.
    #[inline(always)]
    pub(super) unsafe fn rows<S: Simd>(
        &self,
        s: S,
        (first, tokens, head): (usize, usize, usize),
        buffer: *mut f32,
        width: usize,
    ) -> Rows {
        assert!(first + tokens <= self.tokens && head < self.heads, "rows outside of a view");
        let offset = first * self.token_stride + head * self.head_stride;
        match self.data {
            Data::F32(data) if width == self.head_dim => {
                Rows { start: data.wrapping_add(offset), stride: self.token_stride }
            }
            // SAFETY: the rows lie within the view as checked above; the caller vouches for the buffer.
            Data::F32(data) => unsafe { self.convert(s, data.wrapping_add(offset), tokens, buffer, width) },
            // SAFETY: as above.
            Data::Bf16(data) => unsafe { self.convert(s, data.wrapping_add(offset), tokens, buffer, width) },
            // SAFETY: as above.
            Data::F16(data) => unsafe { self.convert(s, data.wrapping_add(offset), tokens, buffer, width) },
        }
    }

    /// # Safety
    /// `from` points at `tokens` rows of the view, and `buffer` has room for `tokens * width` elements.
    #[inline(always)]
    unsafe fn convert<S: Simd, T: Element>(
        &self,
        s: S,
        from: *const T,
        tokens: usize,
        buffer: *mut f32,
        width: usize,
    ) -> Rows {
        for token in 0..tokens {
            // SAFETY: every read stays within the row and every write within the buffer's row.
            unsafe {
                let (from, to) = (from.add(token * self.token_stride), buffer.add(token * width));
                let mut i = 0;
                while i + S::LANES <= self.head_dim {
                    s.store(to.add(i), T::load(s, from.add(i)));
                    i += S::LANES;
                }
                if i < self.head_dim {
                    let last = s.load_first(from.add(i), self.head_dim - i);
                    s.store_first(to.add(i), S::LANES.min(width - i), last);
                }
            }
        }
        Rows { start: buffer, stride: width }
    }
}

fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}
