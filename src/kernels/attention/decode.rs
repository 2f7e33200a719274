//! The forward pass of few queries, as in decoding: the query heads of one key head against a stretch of its keys.
//!
//! Elements of a head are the lanes of a vector, so that each key and value is read once, as it lies. A long context is
//! cut into stretches that start at multiples of [`STRETCH`]; their partial results are joined in the order of the
//! keys, so that a result depends neither on the number of threads nor on the other sequences.

use super::problem::{LOWEST, Memory, Problem, Sequence};
use super::tile::{Scalars, gather};
use super::view::Rows;
use crate::kernels::cpu::pool::Shards;
use crate::kernels::simd::{Kernel, MAX_LANES, Simd};

/// Keys per task.
pub(super) const STRETCH: usize = 256;
/// Keys that are converted at a time.
const KEYS: usize = 64;
/// Most stacked rows that this pass takes.
pub(super) const ROWS: usize = 32;

/// The rows of one sequence and key head against the keys `first..end`, which lie in one stretch.
pub(super) struct Task<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) sequence: &'a Sequence<'a>,
    pub(super) kv_head: usize,
    pub(super) first: usize,
    pub(super) end: usize,
    /// `rows` times [`partial_len`]: weighted values, maximum, sum.
    pub(super) partial: Shards<f32>,
}

/// `head_dim` in whole vectors of any width.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(MAX_LANES)
}

/// Elements of one row's partial result.
pub(super) fn partial_len(head_dim: usize) -> usize {
    padded(head_dim) + 2
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.problem.head_dim;
        // Rows of whole vectors need no padding; otherwise keys and values are copied next to zeros.
        let width = if d.is_multiple_of(S::LANES) { d } else { padded(d) };
        let rows = self.sequence.queries * self.problem.group();
        let mut scratch = None;
        let mut memory = Memory::new(&mut scratch, rows * (STRETCH + padded(d)) + KEYS * padded(d));
        let (scores, q) = (memory.take(rows * STRETCH), memory.take(rows * padded(d)));
        let buffer = memory.take(KEYS * padded(d));
        self.pack(s, q, rows, width);
        let mut key = self.first;
        while key < self.end {
            let keys = KEYS.min(self.end - key);
            let at = (self.sequence.k_start + key, keys, self.kv_head);
            // SAFETY: the buffer holds `KEYS` rows of `width`, `q` holds `rows` of them, and `scores` `STRETCH` per row.
            unsafe {
                let k = self.sequence.k.rows(s, at, buffer, width);
                score(s, (rows, keys, width), q, k, scores.add(key - self.first));
            }
            key += keys;
        }
        for row in 0..rows {
            let to = self.partial.at(row * partial_len(d));
            // SAFETY: each row has `STRETCH` scores and `partial_len` elements of the partial result.
            unsafe { self.soften(s, row, scores.add(row * STRETCH), to, width) };
        }
        let mut key = self.first;
        while key < self.end {
            let keys = KEYS.min(self.end - key);
            let at = (self.sequence.k_start + key, keys, self.kv_head);
            // SAFETY: as above; a partial result starts with `width` elements of values.
            unsafe {
                let v = self.sequence.v.rows(s, at, buffer, width);
                let weights = Scalars { start: scores.add(key - self.first), row: STRETCH, step: 1 };
                gather(s, (rows, keys, width), weights, v, (self.partial.at(0), partial_len(d)));
            }
            key += keys;
        }
    }
}

impl Task<'_> {
    /// Copies the scaled queries, in units of `ln 2`, into rows of `width`.
    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, q: *mut f32, rows: usize, width: usize) {
        let (d, group) = (self.problem.head_dim, self.problem.group());
        let factor = self.problem.scale * std::f32::consts::LOG2_E;
        for row in 0..rows {
            let at = (self.sequence.q_start + row / group, 1, self.kv_head * group + row % group);
            // SAFETY: a query has `head_dim` elements and `q` holds `rows` of `width >= head_dim`.
            unsafe {
                let from = self.problem.q.rows(s, at, std::ptr::null_mut(), d).start;
                let to = q.add(row * width);
                (0..d).for_each(|j| *to.add(j) = *from.add(j) * factor);
                (d..width).for_each(|j| *to.add(j) = 0.0);
            }
        }
    }

    /// Turns one row's scores into weights, and starts its partial result: no values yet, the maximum, the sum.
    ///
    /// # Safety
    /// `scores` points at `STRETCH` elements and `partial` at [`partial_len`] elements of this row.
    #[inline(always)]
    unsafe fn soften<S: Simd>(&self, s: S, row: usize, scores: *mut f32, partial: *mut f32, width: usize) {
        let (problem, keys) = (self.problem, self.end - self.first);
        let position = problem.position(self.sequence, row);
        let seen = problem.visible(position, self.sequence.keys);
        let from = seen.start.clamp(self.first, self.end) - self.first;
        let end = seen.end.clamp(self.first, self.end) - self.first;
        let filled = keys.next_multiple_of(S::LANES);
        // SAFETY: `from <= end <= keys <= filled <= STRETCH`, as a stretch is a whole number of vectors.
        unsafe {
            if let Some(bias) = problem.bias {
                let head = self.kv_head * problem.group() + row % problem.group();
                let start = problem.bias_start(bias, head, position) + self.first;
                for (key, &bias) in bias[start..start + keys].iter().enumerate() {
                    *scores.add(key) += bias * std::f32::consts::LOG2_E;
                }
            }
            (0..from).chain(end..filled).for_each(|key| *scores.add(key) = f32::NEG_INFINITY);
            let mut max = s.splat(LOWEST);
            for i in (0..filled).step_by(S::LANES) {
                max = s.max(max, s.load(scores.add(i)));
            }
            let max = s.largest(max);
            let mut sum = s.splat(0.0);
            for i in (0..filled).step_by(S::LANES) {
                let weight = s.exp2(s.sub(s.load(scores.add(i)), s.splat(max)));
                sum = s.add(sum, weight);
                s.store(scores.add(i), weight);
            }
            (0..width).for_each(|j| *partial.add(j) = 0.0);
            let statistics = partial.add(padded(problem.head_dim));
            *statistics = max;
            *statistics.add(1) = s.sum(sum);
        }
    }
}

/// `scores[row][key] = q[row] · k[key]`, eight keys at a time.
///
/// # Safety
/// `q` holds `rows` rows of `width` elements, `k` has `keys` of them, and `scores` has `STRETCH` elements per row.
#[inline(always)]
unsafe fn score<S: Simd>(
    s: S,
    (rows, keys, width): (usize, usize, usize),
    q: *const f32,
    k: Rows,
    scores: *mut f32,
) {
    for key in (0..keys).step_by(8) {
        // The last keys are repeated where fewer than eight are left.
        let k: [*const f32; 8] =
            std::array::from_fn(|j| k.start.wrapping_add((key + j).min(keys - 1) * k.stride));
        for row in 0..rows {
            let mut sums = [s.splat(0.0); 8];
            // SAFETY: the caller vouches for the rows; only existing keys' scores are written.
            unsafe {
                for i in (0..width).step_by(S::LANES) {
                    let q = s.load(q.add(row * width + i));
                    for (sum, k) in sums.iter_mut().zip(k) {
                        *sum = s.fma(s.load(k.add(i)), q, *sum);
                    }
                }
                let sums = s.sums(&sums);
                std::ptr::copy_nonoverlapping(
                    sums.as_ptr(),
                    scores.add(row * STRETCH + key),
                    (keys - key).min(8),
                );
            }
        }
    }
}

/// Joins the partial results of `stretches` (each `rows` times [`partial_len`]) for one row into `out: [head_dim]`;
/// returns the logarithm to base 2 of the row's sum.
///
/// # Safety
/// `partials` points at all of them, and `out` at `head_dim` elements.
pub(super) unsafe fn join(
    (row, rows, stretches): (usize, usize, usize),
    head_dim: usize,
    partials: *const f32,
    out: *mut f32,
) -> f32 {
    let len = partial_len(head_dim);
    let part = |stretch: usize| partials.wrapping_add((stretch * rows + row) * len);
    let statistics = |stretch: usize| {
        let at = part(stretch).wrapping_add(padded(head_dim));
        // SAFETY: the caller vouches for the partial results.
        unsafe { (*at, *at.add(1)) }
    };
    let max = (0..stretches).map(|i| statistics(i).0).fold(LOWEST, f32::max);
    let sum: f32 = (0..stretches).map(|i| (statistics(i).0 - max).exp2() * statistics(i).1).sum();
    for i in 0..stretches {
        let factor = (statistics(i).0 - max).exp2() / sum;
        for j in 0..head_dim {
            // SAFETY: the caller vouches for both rows.
            unsafe {
                let so_far = if i == 0 { 0.0 } else { *out.add(j) };
                *out.add(j) = so_far + *part(i).add(j) * factor;
            }
        }
    }
    max + sum.log2()
}
