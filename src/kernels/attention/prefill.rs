//! The forward pass of many queries: blocks of queries against blocks of keys, with a running softmax.
//!
//! Queries are the lanes of a vector, so that a row's maximum and sum need no step across lanes, and keys and values
//! are read where they lie. The query heads that share a key head are stacked into the rows of one block. Keys are
//! visited in blocks that start at multiples of [`KEYS`]; a row's result depends on nothing but its own query and its
//! sequence's keys.

use super::block::{Block, KEYS, MOST_ROWS, most_rows};
use super::problem::{LOWEST, Memory, Problem, Sequence};
use super::tile::{Rescale, Scalars, Vectors, product};
use super::view::Rows;
use crate::kernels::cpu::pool::Shards;
use crate::kernels::simd::{Kernel, Simd};

/// Stacked rows per task; a multiple of every block's rows.
pub(super) const ROWS: usize = 128;

/// The rows `row..row + ROWS` (fewer at the end) of one sequence and key head.
pub(super) struct Task<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) sequence: &'a Sequence<'a>,
    pub(super) kv_head: usize,
    pub(super) row: usize,
    /// `[tokens, heads, head_dim]`.
    pub(super) out: &'a Shards<f32>,
    /// `[tokens, heads]`: the logarithm to base 2 of each row's sum of `2^score`; scores are in units of `ln 2`.
    pub(super) log_sums: Option<&'a Shards<f32>>,
}

/// Elements of working memory that a task needs.
fn memory_len(head_dim: usize) -> usize {
    ROWS * (2 * head_dim + 4) + KEYS * (MOST_ROWS + 2 * head_dim)
}

/// A block and what is known of its rows so far.
struct State<'a> {
    block: Block<'a>,
    /// `[head_dim, width]`, in units of `ln 2`.
    q: *mut f32,
    /// `[head_dim, width]`.
    out: *mut f32,
    /// `[width]`.
    max: *mut f32,
    /// `[width]`.
    sum: *mut f32,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.problem.head_dim;
        let rows = ROWS.min(self.sequence.queries * self.problem.group() - self.row);
        let mut scratch = None;
        let mut memory = Memory::new(&mut scratch, memory_len(d));
        let scores = memory.take(KEYS * MOST_ROWS);
        let (k_buffer, v_buffer) = (memory.take(KEYS * d), memory.take(KEYS * d));
        let mut states = [const { None }; ROWS / 8];
        for (i, state) in states.iter_mut().enumerate().take(rows.div_ceil(most_rows::<S>())) {
            let first = i * most_rows::<S>();
            *state =
                Some(self.start(s, (self.row + first, (rows - first).min(most_rows::<S>())), &mut memory));
        }
        let keys = || states.iter().flatten().map(|state| state.block.keys());
        let first = keys().map(|keys| keys.0).min().unwrap_or(0);
        let end = keys().map(|keys| keys.1).max().unwrap_or(0);
        let mut key = first / KEYS * KEYS;
        while key < end {
            let until = end.min(key + KEYS);
            let at = (self.sequence.k_start + key, until - key, self.kv_head);
            // SAFETY: the buffers hold `KEYS * head_dim` elements.
            let (k, v) = unsafe {
                (self.sequence.k.rows(s, at, k_buffer, d), self.sequence.v.rows(s, at, v_buffer, d))
            };
            for state in states.iter().flatten() {
                let (some, all) = (state.block.keys(), (key, until));
                let (from, until) = (all.0.max(some.0), all.1.min(some.1));
                if from < until {
                    let (k, v) = (k.skip(from - key), v.skip(from - key));
                    state.see(s, (from, until), k, v, scores);
                }
            }
            key = until;
        }
        for state in states.iter().flatten() {
            self.finish(s, state);
        }
    }
}

impl<'a> Task<'a> {
    #[inline(always)]
    fn start<S: Simd>(&self, s: S, rows: (usize, usize), memory: &mut Memory) -> State<'a> {
        let block = Block::new::<S>((self.problem, self.sequence, self.kv_head), rows, memory);
        let (d, width) = (self.problem.head_dim, block.vectors * S::LANES);
        let (q, out) = (memory.take(d * width), memory.take(d * width));
        let (max, sum) = (memory.take(width), memory.take(width));
        // SAFETY: the pieces are as long as the loops assume.
        unsafe {
            block.transpose(s, &self.problem.q, self.problem.scale * std::f32::consts::LOG2_E, q);
            for i in (0..width).step_by(S::LANES) {
                s.store(max.add(i), s.splat(LOWEST));
                s.store(sum.add(i), s.splat(0.0));
            }
            for i in (0..d * width).step_by(S::LANES) {
                s.store(out.add(i), s.splat(0.0));
            }
        }
        State { block, q, out, max, sum }
    }

    /// Divides a block's results by its sums and writes them out.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, state: &State) {
        let (d, heads) = (self.problem.head_dim, self.problem.heads);
        let width = state.block.vectors * S::LANES;
        for i in (0..width).step_by(S::LANES) {
            // SAFETY: `sum` holds `width` elements and `out` `d * width`.
            unsafe {
                let factor = s.div(s.splat(1.0), s.load(state.sum.add(i)));
                for j in 0..d {
                    let out = state.out.add(j * width + i);
                    s.store(out, s.mul(s.load(out), factor));
                }
            }
        }
        for i in 0..state.block.rows {
            let (token, head) = state.block.place(i);
            let at = token * heads + head;
            let to = self.out.at(at * d);
            // SAFETY: this row belongs to this task alone and lies within the result, as the caller of the kernels
            // checked the offsets.
            unsafe {
                (0..d).for_each(|j| *to.add(j) = *state.out.add(j * width + i));
                if let Some(log_sums) = self.log_sums {
                    *log_sums.at(at) = *state.max.add(i) + (*state.sum.add(i)).log2();
                }
            }
        }
    }
}

impl State<'_> {
    /// Takes the keys `first..end` into account; `k` and `v` start at `first`.
    #[inline(always)]
    fn see<S: Simd>(&self, s: S, keys: (usize, usize), k: Rows, v: Rows, scores: *mut f32) {
        match self.block.vectors {
            1 => self.step::<S, 1, 8>(s, keys, k, v, scores),
            2 if S::REGISTERS == 32 => self.step::<S, 2, 8>(s, keys, k, v, scores),
            2 => self.step::<S, 2, 4>(s, keys, k, v, scores),
            3 => self.step::<S, 3, 4>(s, keys, k, v, scores),
            _ => self.step::<S, 4, 4>(s, keys, k, v, scores),
        }
    }

    #[inline(always)]
    fn step<S: Simd, const R: usize, const N: usize>(
        &self,
        s: S,
        (first, end): (usize, usize),
        k: Rows,
        v: Rows,
        scores: *mut f32,
    ) {
        let (d, width) = (self.block.problem.head_dim, R * S::LANES);
        // SAFETY: the rows of keys and values hold `head_dim` elements each, `q` and `out` are `[head_dim, width]`, and
        // `scores` has room for `KEYS` rows of `width`.
        unsafe {
            self.block.score::<S, R, N>(s, (first, end), k, self.q, scores);
            let rescale = self.soften::<S, R>(s, end - first, scores);
            let a = Scalars { start: v.start, row: 1, step: v.stride };
            let b = Vectors { start: scores, step: width };
            product::<S, R, N>(s, (d, end - first), a, b, (self.out, width), Rescale(rescale));
        }
    }

    /// Turns scores into weights relative to the new maxima and returns the factors for what was summed before.
    ///
    /// # Safety
    /// `scores` holds `keys` rows of `R` vectors.
    #[inline(always)]
    unsafe fn soften<S: Simd, const R: usize>(&self, s: S, keys: usize, scores: *mut f32) -> [S::V; R] {
        let (mut max, mut sum) = ([s.splat(0.0); R], [s.splat(0.0); R]);
        let mut factors = sum;
        // SAFETY: `max` and `sum` hold `R` vectors, and the caller vouches for the scores.
        unsafe {
            for (r, max) in max.iter_mut().enumerate() {
                *max = s.load(self.max.add(r * S::LANES));
            }
            for key in 0..keys {
                for (r, max) in max.iter_mut().enumerate() {
                    *max = s.max(*max, s.load(scores.add((key * R + r) * S::LANES)));
                }
            }
            for key in 0..keys {
                for r in 0..R {
                    let to = scores.add((key * R + r) * S::LANES);
                    let weight = s.exp2(s.sub(s.load(to), max[r]));
                    sum[r] = s.add(sum[r], weight);
                    s.store(to, weight);
                }
            }
            for r in 0..R {
                let (max_at, sum_at) = (self.max.add(r * S::LANES), self.sum.add(r * S::LANES));
                factors[r] = s.exp2(s.sub(s.load(max_at), max[r]));
                s.store(sum_at, s.fma(s.load(sum_at), factors[r], sum[r]));
                s.store(max_at, max[r]);
            }
        }
        factors
    }
}
