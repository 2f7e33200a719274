//! What the row kernels share on the CPU: from tensors to slices, blocks of rows for the thread pool, sums of a row.
//!
//! It holds no arithmetic of its own beyond adding up.

use std::ops::Range;

use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Layout, Result as CandleResult, Storage, Tensor, WithDType,
};
use half::{bf16, f16};

use super::cpu::pool::{self, Shards};
use super::simd::{MAX_LANES, Simd};
use crate::Result;

/// Elements that a task gets at least: some microseconds of work.
const BLOCK: usize = 16 * 1024;

/// Whether the fused kernels take `x`: f32 on the CPU.
pub(super) fn is_f32_on_cpu(x: &Tensor) -> bool {
    matches!(x.device(), Device::Cpu) && x.dtype() == DType::F32
}

/// Applies `op`, leaving a trace for the backward pass only where one is needed.
pub(super) fn apply<Op: CustomOp1 + Send + Sync + 'static>(x: &Tensor, op: Op) -> Result<Tensor> {
    Ok(if x.track_op() { x.apply_op1(op)? } else { x.apply_op1_no_bwd(&op)? })
}

/// The elements of a contiguous tensor.
pub(super) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> CandleResult<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => candle_core::bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// The CPU's side of a storage.
pub(super) fn cpu(storage: &Storage) -> CandleResult<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => candle_core::bail!("expected a tensor on the CPU"),
    }
}

/// The elements of a contiguous f32 tensor on the CPU, handed to `f`.
pub(super) fn with_slice<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> CandleResult<R>) -> CandleResult<R> {
    let (storage, layout) = x.storage_and_layout();
    f(slice(cpu(&storage)?, layout)?)
}

/// A vector of constants of any of the float types that checkpoints use.
#[derive(Clone, Copy)]
pub(super) enum Floats<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> Floats<'a> {
    /// The elements of a contiguous tensor; fails unless it has `len` of them.
    pub(super) fn new(storage: &'a Storage, layout: &Layout, len: usize) -> CandleResult<Self> {
        if layout.shape().elem_count() != len {
            candle_core::bail!("expected {len} elements, got shape {:?}", layout.shape());
        }
        let storage = cpu(storage)?;
        Ok(match storage {
            CpuStorage::F32(_) => Self::F32(slice(storage, layout)?),
            CpuStorage::BF16(_) => Self::Bf16(slice(storage, layout)?),
            CpuStorage::F16(_) => Self::F16(slice(storage, layout)?),
            _ => candle_core::bail!("expected f32, bf16 or f16"),
        })
    }

    pub(super) fn len(self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::F16(x) => x.len(),
        }
    }

    /// The elements `at..at + n`, then zeros, for `n <= S::LANES`.
    #[inline(always)]
    pub(super) fn load<S: Simd>(self, s: S, at: usize, n: usize) -> S::V {
        // SAFETY: the slices are cut to `n` elements.
        unsafe {
            match self {
                Self::F32(x) => s.load_first(x[at..at + n].as_ptr(), n),
                Self::Bf16(x) => s.load_first(x[at..at + n].as_ptr(), n),
                Self::F16(x) => s.load_first(x[at..at + n].as_ptr(), n),
            }
        }
    }
}

/// The elements `at..at + n`, then zeros, for `n <= S::LANES`.
#[inline(always)]
pub(super) fn load<S: Simd>(s: S, x: &[f32], at: usize, n: usize) -> S::V {
    // SAFETY: the slice is cut to `n` elements.
    unsafe { s.load_first(x[at..at + n].as_ptr(), n) }
}

/// The elements `at..at + n`, then `fill`, for `n <= S::LANES`.
#[inline(always)]
pub(super) fn load_filled<S: Simd>(s: S, x: &[f32], at: usize, n: usize, fill: f32) -> S::V {
    if n == S::LANES {
        return load(s, x, at, n);
    }
    let mut lanes = [fill; MAX_LANES];
    lanes[..n].copy_from_slice(&x[at..at + n]);
    load(s, &lanes, 0, S::LANES)
}

/// Writes the first `n <= S::LANES` elements of `v` to `at..at + n`.
#[inline(always)]
pub(super) fn store<S: Simd>(s: S, x: &mut [f32], at: usize, n: usize, v: S::V) {
    // SAFETY: the slice is cut to `n` elements.
    unsafe { s.store_first(x[at..at + n].as_mut_ptr(), n, v) }
}

/// Vectors that are summed. A trait and not a closure, which the compiler may leave outside of the kernel and without
/// its instructions.
pub(super) trait Term: Copy {
    /// The vector that covers `at..at + n`; lanes from `n` on are 0.
    fn at<S: Simd>(self, s: S, at: usize, n: usize) -> S::V;
}

/// The elements themselves.
impl Term for &[f32] {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, at: usize, n: usize) -> S::V {
        load(s, self, at, n)
    }
}

/// Squares of the distances from a number.
#[derive(Clone, Copy)]
pub(super) struct Squares<'a> {
    pub(super) x: &'a [f32],
    pub(super) around: f32,
}

impl Term for Squares<'_> {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, at: usize, n: usize) -> S::V {
        let v = s.sub(load_filled(s, self.x, at, n, self.around), s.splat(self.around));
        s.mul(v, v)
    }
}

/// What flows back through a weight.
#[derive(Clone, Copy)]
pub(super) struct Weighted<'a> {
    pub(super) weight: Floats<'a>,
    pub(super) x: &'a [f32],
}

impl Term for Weighted<'_> {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, at: usize, n: usize) -> S::V {
        s.mul(self.weight.load(s, at, n), load(s, self.x, at, n))
    }
}

/// The product of two terms.
#[derive(Clone, Copy)]
pub(super) struct Product<A, B>(pub(super) A, pub(super) B);

impl<A: Term, B: Term> Term for Product<A, B> {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, at: usize, n: usize) -> S::V {
        s.mul(self.0.at(s, at, n), self.1.at(s, at, n))
    }
}

/// The sum of a term over `0..len`; four partial sums hide the latency of an addition.
#[inline(always)]
pub(super) fn sum<S: Simd>(s: S, len: usize, term: impl Term) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let mut at = 0;
    while at + 4 * S::LANES <= len {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = s.add(*sum, term.at(s, at + i * S::LANES, S::LANES));
        }
        at += 4 * S::LANES;
    }
    while at < len {
        let n = S::LANES.min(len - at);
        sums[0] = s.add(sums[0], term.at(s, at, n));
        at += n;
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// Cuts rows of `width` elements into blocks and runs `task(rows, blocks of the outputs)` for each, on all cores where
/// there is enough work. Every output has `rows` rows of `width`.
pub(super) fn blocks<const N: usize>(
    (rows, width): (usize, usize),
    outputs: [&mut [f32]; N],
    task: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
) {
    row_blocks((rows, width), outputs.map(|out| (out, width)), task);
}

/// As [`blocks`], for outputs with another number of elements per row than the `width` that is worked on.
pub(super) fn row_blocks<const N: usize>(
    (rows, width): (usize, usize),
    mut outputs: [(&mut [f32], usize); N],
    task: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
) {
    assert!(
        outputs.iter().all(|(out, width)| out.len() == rows * width),
        "outputs that do not have {rows} rows"
    );
    let per_block = BLOCK.div_ceil(width.max(1));
    let outputs: [(Shards<f32>, usize); N] =
        std::array::from_fn(|i| (Shards::new(outputs[i].0), outputs[i].1));
    pool::parallel(rows.div_ceil(per_block), |block| {
        let range = block * per_block..rows.min((block + 1) * per_block);
        let parts = std::array::from_fn(|i| {
            let (out, width) = &outputs[i];
            // SAFETY: blocks do not overlap, lie within the outputs as asserted above, and each is run once, while the
            // outputs stay borrowed.
            unsafe { std::slice::from_raw_parts_mut(out.at(range.start * width), range.len() * width) }
        });
        task(range, parts);
    });
}
