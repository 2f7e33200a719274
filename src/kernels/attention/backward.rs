//! The backward pass on the CPU: weights are computed again from the rows' sums, block by block, in linear memory.
//!
//! The rows of a sequence and key head are cut into parts that depend on their number alone. Every part has gradients
//! of keys and values of its own, which are added in order: the result does not depend on the number of threads.

use super::block::{Block, KEYS, MOST_ROWS, most_rows};
use super::problem::{Memory, Problem};
use super::tile::{Add, Scalars, Set, Vectors, gather, product};
use super::view::{Rows, View};
use crate::kernels::cpu::pool::Shards;
use crate::kernels::simd::{Kernel, Level, MAX_LANES, Simd};

/// Stacked rows of a part, and the most parts.
const PART_ROWS: usize = 512;
const MOST_PARTS: usize = 16;

/// What the backward pass is given besides the forward's input.
pub(super) struct Given<'a> {
    /// The forward's result, `[tokens, heads, head_dim]`.
    pub(super) out: View<'a>,
    /// Its gradient.
    pub(super) grad: View<'a>,
    /// `[tokens, heads]`, as the forward pass left them.
    pub(super) log_sums: &'a [f32],
}

/// Gradients of queries `[tokens, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]`.
pub(super) struct Gradients {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
}

/// Some rows of a sequence and key head, and where their share of the gradients of keys and values is kept.
struct Part {
    sequence: usize,
    kv_head: usize,
    rows: (usize, usize),
    /// The keys that the rows see.
    keys: (usize, usize),
    share: usize,
}

/// Runs the backward pass with the instructions of `level`; queries and keys are those of the same `tokens`.
pub(super) fn backward(level: Level, problem: &Problem, given: &Given, tokens: usize) -> Gradients {
    let (heads, kv_heads, d) = (problem.heads, problem.kv_heads, problem.head_dim);
    let (parts, shares_len) = divide(problem);
    let mut shares = vec![0f32; shares_len];
    let mut gradients = Gradients {
        q: vec![0f32; tokens * heads * d],
        k: vec![0f32; tokens * kv_heads * d],
        v: vec![0f32; tokens * kv_heads * d],
    };
    let (shared, q) = (Shards::new(&mut shares), Shards::new(&mut gradients.q));
    problem.run(parts.len(), 3 * problem.work(), |i| {
        level.run(Task { problem, given, part: &parts[i], shares: &shared, q: &q });
    });
    let (k, v) = (Shards::new(&mut gradients.k), Shards::new(&mut gradients.v));
    let first: Vec<usize> = (0..parts.len()).filter(|&i| parts[i].rows.0 == 0).collect();
    problem.run(first.len(), shares.len(), |i| {
        let end = first.get(i + 1).copied().unwrap_or(parts.len());
        add_shares(problem, &parts[first[i]..end], &shares, &k, &v);
    });
    gradients
}

fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(MAX_LANES)
}

/// All parts, those of one sequence and key head in a row, and the elements that their shares need.
fn divide(problem: &Problem) -> (Vec<Part>, usize) {
    let (mut parts, mut shares) = (Vec::new(), 0);
    for (index, sequence) in problem.sequences.iter().enumerate().filter(|(_, s)| s.queries > 0) {
        let rows = sequence.queries * problem.group();
        let part_rows = rows.div_ceil(MOST_PARTS).max(PART_ROWS).next_multiple_of(MOST_ROWS);
        for kv_head in 0..problem.kv_heads {
            for row in (0..rows).step_by(part_rows) {
                let rows = (row, rows.min(row + part_rows));
                let seen = |row| problem.visible(problem.position(sequence, row), sequence.keys);
                let keys = (seen(rows.0).start, seen(rows.1 - 1).end);
                parts.push(Part { sequence: index, kv_head, rows, keys, share: shares });
                shares += 2 * (keys.1 - keys.0) * padded(problem.head_dim);
            }
        }
    }
    (parts, shares)
}

/// Adds the shares of one sequence and key head in the order of its parts.
fn add_shares(problem: &Problem, parts: &[Part], shares: &[f32], k: &Shards<f32>, v: &Shards<f32>) {
    let (d, width) = (problem.head_dim, padded(problem.head_dim));
    for part in parts {
        let start = problem.sequences[part.sequence].k_start;
        let keys = part.keys.1 - part.keys.0;
        for (out, share) in [(k, part.share), (v, part.share + keys * width)] {
            for (i, row) in shares[share..share + keys * width].chunks_exact(width).enumerate() {
                let at = ((start + part.keys.0 + i) * problem.kv_heads + part.kv_head) * d;
                for (j, value) in row[..d].iter().enumerate() {
                    // SAFETY: the keys of this sequence and key head belong to this call alone.
                    unsafe { *out.at(at + j) += value };
                }
            }
        }
    }
}

struct Task<'a> {
    problem: &'a Problem<'a>,
    given: &'a Given<'a>,
    part: &'a Part,
    shares: &'a Shards<f32>,
    q: &'a Shards<f32>,
}

/// Working memory of one block of rows.
struct Work {
    /// `[head_dim, width]`: queries in units of `ln 2`, gradients of the result, gradients of the queries.
    q_lanes: *mut f32,
    grad_lanes: *mut f32,
    q_grad: *mut f32,
    /// `[width, padded(head_dim)]`: scaled queries and gradients of the result.
    q_rows: *mut f32,
    grad_rows: *mut f32,
    /// `[width]`: the sums' logarithms, and the products of result and gradient.
    log_sums: *mut f32,
    products: *mut f32,
    /// `[KEYS, width]`: weights, and gradients of the scores.
    weights: *mut f32,
    score_grads: *mut f32,
}

impl Work {
    fn len(head_dim: usize) -> usize {
        MOST_ROWS * (3 * head_dim + 2 * padded(head_dim) + 2 + 2 * KEYS)
    }

    fn new(head_dim: usize, memory: &mut Memory) -> Self {
        let mut rows = |len: usize| memory.take(MOST_ROWS * len);
        Self {
            q_lanes: rows(head_dim),
            grad_lanes: rows(head_dim),
            q_grad: rows(head_dim),
            q_rows: rows(padded(head_dim)),
            grad_rows: rows(padded(head_dim)),
            log_sums: rows(1),
            products: rows(1),
            weights: rows(KEYS),
            score_grads: rows(KEYS),
        }
    }
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.problem.head_dim;
        let sequence = &self.problem.sequences[self.part.sequence];
        let mut scratch = None;
        let len = Work::len(d) + 2 * KEYS * d + 2 * MOST_ROWS;
        let mut memory = Memory::new(&mut scratch, len);
        let work = Work::new(d, &mut memory);
        let (k_buffer, v_buffer) = (memory.take(KEYS * d), memory.take(KEYS * d));
        let limits = memory.take(2 * MOST_ROWS);
        let (mut row, end) = self.part.rows;
        while row < end {
            let rows = most_rows::<S>().min(end - row);
            let mut memory = Memory::over(limits, 2 * MOST_ROWS);
            let block =
                Block::new::<S>((self.problem, sequence, self.part.kv_head), (row, rows), &mut memory);
            // SAFETY: the working memory was laid out for this head size, and the buffers hold `KEYS` rows.
            unsafe {
                self.start(s, &block, &work);
                let (mut key, until) = block.keys();
                while key < until {
                    let stop = until.min((key / KEYS + 1) * KEYS);
                    let at = (sequence.k_start + key, stop - key, self.part.kv_head);
                    let (k, v) = (sequence.k.rows(s, at, k_buffer, d), sequence.v.rows(s, at, v_buffer, d));
                    self.see(s, &block, &work, (key, stop), (k, v));
                    key = stop;
                }
                self.finish::<S>(&block, &work);
            }
            row += rows;
        }
    }
}

impl Task<'_> {
    /// Packs a block's queries, gradients and statistics.
    ///
    /// # Safety
    /// `work` was laid out for this head size.
    #[inline(always)]
    unsafe fn start<S: Simd>(&self, s: S, block: &Block, work: &Work) {
        let (d, width, stride) =
            (self.problem.head_dim, block.vectors * S::LANES, padded(self.problem.head_dim));
        // SAFETY: the pieces are as long as the loops assume; views of f32 need no buffer.
        unsafe {
            block.transpose(s, &self.problem.q, self.problem.scale * std::f32::consts::LOG2_E, work.q_lanes);
            block.transpose(s, &self.given.grad, 1.0, work.grad_lanes);
            for i in 0..width * d {
                *work.q_grad.add(i) = 0.0;
            }
            for i in 0..width {
                let (q_row, grad_row) = (work.q_rows.add(i * stride), work.grad_rows.add(i * stride));
                (0..stride).for_each(|j| (*q_row.add(j), *grad_row.add(j)) = (0.0, 0.0));
                (*work.log_sums.add(i), *work.products.add(i)) = (0.0, 0.0);
                if i >= block.rows {
                    continue;
                }
                let (token, head) = block.place(i);
                let row = |view: &View| view.rows(s, (token, 1, head), std::ptr::null_mut(), d).start;
                let (q, out, grad) = (row(&self.problem.q), row(&self.given.out), row(&self.given.grad));
                let mut product = 0.0;
                for j in 0..d {
                    *q_row.add(j) = *q.add(j) * self.problem.scale;
                    *grad_row.add(j) = *grad.add(j);
                    product += *out.add(j) * *grad.add(j);
                }
                *work.products.add(i) = product;
                *work.log_sums.add(i) = self.given.log_sums[token * self.problem.heads + head];
            }
        }
    }

    /// # Safety
    /// As [`Self::start`]; `keys` lies in one block of keys, and the rows start at the first of them.
    #[inline(always)]
    unsafe fn see<S: Simd>(&self, s: S, block: &Block, work: &Work, keys: (usize, usize), kv: (Rows, Rows)) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match block.vectors {
                1 => self.step::<S, 1, 8>(s, block, work, keys, kv),
                2 if S::REGISTERS == 32 => self.step::<S, 2, 8>(s, block, work, keys, kv),
                2 => self.step::<S, 2, 4>(s, block, work, keys, kv),
                3 => self.step::<S, 3, 4>(s, block, work, keys, kv),
                _ => self.step::<S, 4, 4>(s, block, work, keys, kv),
            }
        }
    }

    /// # Safety
    /// As [`Self::see`].
    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const N: usize>(
        &self,
        s: S,
        block: &Block,
        work: &Work,
        (first, end): (usize, usize),
        (k, v): (Rows, Rows),
    ) {
        let (d, width, stride) = (self.problem.head_dim, R * S::LANES, padded(self.problem.head_dim));
        let keys = end - first;
        let (weights, score_grads) = (work.weights, work.score_grads);
        let lanes = |start: *mut f32| Vectors { start, step: width };
        let rows = |start: *mut f32| Rows { start, stride };
        // A weight or score gradient is a term of each key's sum, and the rows of the block are the terms.
        let terms = |start: *mut f32| Scalars { start, row: width, step: 1 };
        // SAFETY: the caller vouches for the memory; a part's share has `padded(head_dim)` elements for each of its
        // keys, first for the keys, then for the values.
        unsafe {
            block.score::<S, R, N>(s, (first, end), k, work.q_lanes, weights);
            let a = Scalars { start: v.start, row: v.stride, step: 1 };
            product::<S, R, N>(s, (keys, d), a, lanes(work.grad_lanes), (score_grads, width), Set);
            differentiate::<S, R>(s, keys, work);
            let a = Scalars { start: k.start, row: 1, step: k.stride };
            product::<S, R, N>(s, (d, keys), a, lanes(score_grads), (work.q_grad, width), Add);
            let part_keys = self.part.keys.1 - self.part.keys.0;
            let k_share = self.part.share + (first - self.part.keys.0) * stride;
            let (k_grad, v_grad) = (self.shares.at(k_share), self.shares.at(k_share + part_keys * stride));
            let shape = (keys, block.rows, stride);
            gather(s, shape, terms(score_grads), rows(work.q_rows), (k_grad, stride));
            gather(s, shape, terms(weights), rows(work.grad_rows), (v_grad, stride));
        }
    }

    /// Writes the gradients of a block's queries.
    ///
    /// # Safety
    /// As [`Self::start`].
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, block: &Block, work: &Work) {
        let (d, width) = (self.problem.head_dim, block.vectors * S::LANES);
        for i in 0..block.rows {
            let (token, head) = block.place(i);
            let to = self.q.at((token * self.problem.heads + head) * d);
            for j in 0..d {
                // SAFETY: this row of the gradient belongs to this task alone.
                unsafe { *to.add(j) = *work.q_grad.add(j * width + i) * self.problem.scale };
            }
        }
    }
}

/// Turns scores into weights, and gradients of weights into gradients of scores.
///
/// # Safety
/// `work` holds `keys` rows of `R` vectors of both.
#[inline(always)]
unsafe fn differentiate<S: Simd, const R: usize>(s: S, keys: usize, work: &Work) {
    for r in 0..R {
        // SAFETY: the caller vouches for the elements.
        unsafe {
            let log_sum = s.load(work.log_sums.add(r * S::LANES));
            let product = s.load(work.products.add(r * S::LANES));
            for key in 0..keys {
                let at = (key * R + r) * S::LANES;
                let (weight_at, grad_at) = (work.weights.add(at), work.score_grads.add(at));
                let weight = s.exp2(s.sub(s.load(weight_at), log_sum));
                s.store(weight_at, weight);
                s.store(grad_at, s.mul(weight, s.sub(s.load(grad_at), product)));
            }
        }
    }
}
