//! A block of stacked query rows as the lanes of vectors: what its rows see, and their scores.

use super::problem::{Memory, Problem, Sequence};
use super::tile::{Scalars, Set, Vectors, product};
use super::view::{Rows, View};
use crate::kernels::simd::Simd;

/// Keys per block of keys.
pub(super) const KEYS: usize = 64;
/// Rows of the largest block on any processor.
pub(super) const MOST_ROWS: usize = 64;

/// The rows of a block on this processor: as many vectors as one tile of the matrix product holds.
#[inline(always)]
pub(super) fn most_rows<S: Simd>() -> usize {
    S::LANES * if S::REGISTERS == 32 { 4 } else { 2 }
}

/// Some consecutive stacked rows of one sequence and key head; row `query * group + i` is the query's `i`-th head.
pub(super) struct Block<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) sequence: &'a Sequence<'a>,
    pub(super) kv_head: usize,
    /// The first row.
    pub(super) row: usize,
    pub(super) rows: usize,
    /// Vectors that hold the rows.
    pub(super) vectors: usize,
    /// The first key that each row sees, as a number.
    first: *mut f32,
    /// The key after the last that each row sees.
    end: *mut f32,
    /// Keys between the first and the last that any row sees.
    some: (usize, usize),
    /// Keys that every row sees.
    all: (usize, usize),
}

impl<'a> Block<'a> {
    /// The block of `rows` from `row` on; takes twice its width from `memory`.
    #[inline(always)]
    pub(super) fn new<S: Simd>(
        (problem, sequence, kv_head): (&'a Problem<'a>, &'a Sequence<'a>, usize),
        (row, rows): (usize, usize),
        memory: &mut Memory,
    ) -> Self {
        let vectors = rows.div_ceil(S::LANES);
        let (first, end) = (memory.take(vectors * S::LANES), memory.take(vectors * S::LANES));
        let (mut some, mut all) = ((usize::MAX, 0), (0, usize::MAX));
        for i in 0..vectors * S::LANES {
            // Lanes beyond the rows see what the last row sees; nobody reads their results.
            let position = problem.position(sequence, row + i.min(rows - 1));
            let seen = problem.visible(position, sequence.keys);
            some = (some.0.min(seen.start), some.1.max(seen.end));
            all = (all.0.max(seen.start), all.1.min(seen.end));
            // SAFETY: both pieces have an element for every lane.
            unsafe { (*first.add(i), *end.add(i)) = (seen.start as f32, seen.end as f32) };
        }
        Self { problem, sequence, kv_head, row, rows, vectors, first, end, some, all }
    }

    /// The keys `start..end` of which some row may see one.
    pub(super) fn keys(&self) -> (usize, usize) {
        self.some
    }

    /// The token and head of the block's `i`-th row.
    #[inline(always)]
    pub(super) fn place(&self, i: usize) -> (usize, usize) {
        let (row, group) = (self.row + i, self.problem.group());
        (self.sequence.q_start + row / group, self.kv_head * group + row % group)
    }

    /// Copies the block's rows of `view`, times `factor`, into `to: [head_dim, width]`; lanes beyond them become 0.
    ///
    /// # Safety
    /// `to` has room for them; `view` is of f32.
    #[inline(always)]
    pub(super) unsafe fn transpose<S: Simd>(&self, s: S, view: &View, factor: f32, to: *mut f32) {
        let (d, width) = (self.problem.head_dim, self.vectors * S::LANES);
        for i in 0..width {
            let row = (i < self.rows).then(|| {
                let (token, head) = self.place(i);
                // SAFETY: f32 rows of `head_dim` elements need no buffer.
                unsafe { view.rows(s, (token, 1, head), std::ptr::null_mut(), d).start }
            });
            for j in 0..d {
                // SAFETY: a row has `head_dim` elements, and the caller vouches for `to`.
                unsafe { *to.add(j * width + i) = row.map_or(0.0, |row| *row.add(j) * factor) };
            }
        }
    }

    /// Scores of the keys `first..end` in units of `ln 2`, minus infinity where a row does not see one, into
    /// `scores: [end - first, width]`. `k` starts at `first`, and `q: [head_dim, width]` is scaled.
    ///
    /// # Safety
    /// All of these elements are there.
    #[inline(always)]
    pub(super) unsafe fn score<S: Simd, const R: usize, const N: usize>(
        &self,
        s: S,
        (first, end): (usize, usize),
        k: Rows,
        q: *const f32,
        scores: *mut f32,
    ) {
        let (keys, width) = (end - first, R * S::LANES);
        let a = Scalars { start: k.start, row: k.stride, step: 1 };
        let b = Vectors { start: q, step: width };
        // SAFETY: the caller vouches for the elements.
        unsafe {
            product::<S, R, N>(s, (keys, self.problem.head_dim), a, b, (scores, width), Set);
            if let Some(bias) = self.problem.bias {
                self.add_bias(bias, first, keys, (scores, width));
            }
            if first < self.all.0 || end > self.all.1 {
                self.hide::<S, R>(s, first, keys, scores);
            }
        }
    }

    /// # Safety
    /// As [`Block::score`].
    #[inline(always)]
    unsafe fn add_bias(&self, bias: &[f32], first: usize, keys: usize, (scores, width): (*mut f32, usize)) {
        for i in 0..self.rows {
            let position = self.problem.position(self.sequence, self.row + i);
            let start = self.problem.bias_start(bias, self.place(i).1, position) + first;
            for (key, &bias) in bias[start..start + keys].iter().enumerate() {
                // SAFETY: `scores` has `keys` rows of `width > i`.
                unsafe { *scores.add(key * width + i) += bias * std::f32::consts::LOG2_E };
            }
        }
    }

    /// # Safety
    /// As [`Block::score`].
    #[inline(always)]
    unsafe fn hide<S: Simd, const R: usize>(&self, s: S, first: usize, keys: usize, scores: *mut f32) {
        let hidden = s.splat(f32::NEG_INFINITY);
        for r in 0..R {
            // SAFETY: `first` and `end` hold `R` vectors, and the caller vouches for the scores.
            unsafe {
                let from = s.load(self.first.add(r * S::LANES));
                let end = s.load(self.end.add(r * S::LANES));
                for key in 0..keys {
                    let at = scores.add((key * R + r) * S::LANES);
                    let number = s.splat((first + key) as f32);
                    let seen = s.if_less(number, end, s.load(at), hidden);
                    s.store(at, s.if_less(number, from, hidden, seen));
                }
            }
        }
    }
}
