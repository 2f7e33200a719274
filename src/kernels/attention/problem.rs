//! What the CPU kernels of attention share: the sequences, who sees what, and working memory.

use std::marker::PhantomData;
use std::ops::Range;

use super::view::View;
use crate::kernels::cpu::pool;
use crate::kernels::cpu::scratch::Scratch;

/// Stands for minus infinity as the maximum of nothing: finite, so that differences of two stay numbers.
pub(super) const LOWEST: f32 = -1e30;

/// One ragged attention over f32 queries.
pub(super) struct Problem<'a> {
    pub(super) q: View<'a>,
    pub(super) sequences: Vec<Sequence<'a>>,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
    /// `[heads, 2 * span - 1]`.
    pub(super) bias: Option<&'a [f32]>,
}

/// One sequence; its last query sits at its last key.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    /// The first query's row in `q` and in the result.
    pub(super) q_start: usize,
    pub(super) queries: usize,
    pub(super) k: View<'a>,
    pub(super) v: View<'a>,
    /// The first key's row in `k` and `v`.
    pub(super) k_start: usize,
    pub(super) keys: usize,
}

impl Problem<'_> {
    /// Query heads per key head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The keys that the query at `position` of a sequence of `keys` sees.
    #[inline(always)]
    pub(super) fn visible(&self, position: usize, keys: usize) -> Range<usize> {
        match (self.causal, self.window) {
            (true, window) => {
                let end = position + 1;
                window.map_or(0, |w| end.saturating_sub(w))..end
            }
            (false, None) => 0..keys,
            (false, Some(w)) => position.saturating_sub(w / 2)..keys.min(position + w / 2 + 1),
        }
    }

    /// Where the query of a stacked row (`row = query * group + head of the group`) sits among the keys.
    #[inline(always)]
    pub(super) fn position(&self, sequence: &Sequence, row: usize) -> usize {
        sequence.keys - sequence.queries + row / self.group()
    }

    /// Distance between the bias of key 0 for `head` and the query at `position`, and the start of `bias`.
    #[inline(always)]
    pub(super) fn bias_start(&self, bias: &[f32], head: usize, position: usize) -> usize {
        let width = bias.len() / self.heads;
        head * width + width / 2 - position
    }

    /// Multiply-adds of the whole forward pass, roughly.
    pub(super) fn work(&self) -> usize {
        let pairs: usize = self.sequences.iter().map(|s| s.queries * s.keys).sum();
        2 * pairs * self.heads * self.head_dim
    }

    /// Runs `task` for every index below `tasks`, on several threads where `work` multiply-adds are worth waking them.
    pub(super) fn run(&self, tasks: usize, work: usize, task: impl Fn(usize) + Sync) {
        if work < SERIAL_WORK { (0..tasks).for_each(task) } else { pool::parallel(tasks, task) }
    }
}

/// Below this many multiply-adds waking other threads costs more than it saves.
const SERIAL_WORK: usize = 200_000;

/// Hands out pieces of working memory one after another.
pub(super) struct Memory<'a> {
    next: *mut f32,
    left: usize,
    borrowed: PhantomData<&'a mut Scratch>,
}

impl Memory<'_> {
    /// Room for `len` elements, in memory that `scratch` will own.
    pub(super) fn new(scratch: &mut Option<Scratch>, len: usize) -> Memory<'_> {
        let scratch = scratch.insert(Scratch::new(len * size_of::<f32>()));
        Memory { next: scratch.as_mut_ptr(), left: len, borrowed: PhantomData }
    }

    /// The `len` elements at `start`, which the caller keeps alive.
    pub(super) fn over(start: *mut f32, len: usize) -> Self {
        Self { next: start, left: len, borrowed: PhantomData }
    }

    /// The next `len` elements, of unspecified contents, valid while the working memory is borrowed.
    #[inline(always)]
    pub(super) fn take(&mut self, len: usize) -> *mut f32 {
        assert!(len <= self.left, "working memory is too small");
        self.left -= len;
        let piece = self.next;
        self.next = piece.wrapping_add(len);
        piece
    }
}
