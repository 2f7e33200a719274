//! Divides the forward pass on the CPU into tasks and runs them.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::problem::Problem;
use super::{decode, prefill};
use crate::kernels::cpu::pool::Shards;
use crate::kernels::simd::Level;

/// A piece of work for one thread.
enum Piece {
    /// A block of rows, from this stacked row on.
    Rows(usize),
    /// The keys of stretch `index`, counted from the first stretch in which any row sees something.
    Stretch { index: usize, of: usize, partials: usize, pending: usize },
}

struct Task {
    sequence: usize,
    kv_head: usize,
    piece: Piece,
}

/// What the forward pass leaves behind.
pub(super) struct Forward {
    /// `[tokens, heads, head_dim]`.
    pub(super) out: Vec<f32>,
    /// `[tokens, heads]`: the logarithm to base 2 of each row's sum of exponentials; empty when not asked for.
    pub(super) log_sums: Vec<f32>,
}

/// Runs the forward pass with the instructions of `level`.
pub(super) fn forward(level: Level, problem: &Problem, tokens: usize, keep_log_sums: bool) -> Forward {
    let (heads, d) = (problem.heads, problem.head_dim);
    let mut out = vec![0f32; tokens * heads * d];
    let mut log_sums = vec![0f32; if keep_log_sums { tokens * heads } else { 0 }];
    let (tasks, partials_len, joins) = divide(problem);
    let mut partials = vec![0f32; partials_len];
    let pending: Vec<AtomicUsize> = joins.into_iter().map(AtomicUsize::new).collect();
    let run = Run {
        level,
        problem,
        out: Shards::new(&mut out),
        log_sums: keep_log_sums.then(|| Shards::new(&mut log_sums)),
        partials: Shards::new(&mut partials),
        pending: &pending,
    };
    problem.run(tasks.len(), problem.work(), |i| run.task(&tasks[i]));
    Forward { out, log_sums }
}

/// All tasks, the elements that partial results need, and how many stretches each join waits for.
fn divide(problem: &Problem) -> (Vec<Task>, usize, Vec<usize>) {
    let (mut tasks, mut partials, mut joins) = (Vec::new(), 0, Vec::new());
    for (index, sequence) in problem.sequences.iter().enumerate().filter(|(_, s)| s.queries > 0) {
        let rows = sequence.queries * problem.group();
        let few = rows <= 8 || (sequence.queries == 1 && rows <= decode::ROWS);
        for kv_head in 0..problem.kv_heads {
            if few {
                let stretches = stretches(problem, index).len();
                for i in 0..stretches {
                    let piece = Piece::Stretch { index: i, of: stretches, partials, pending: joins.len() };
                    tasks.push(Task { sequence: index, kv_head, piece });
                }
                partials += stretches * rows * decode::partial_len(problem.head_dim);
                joins.push(stretches);
            } else {
                // The last rows see most keys when attention is causal: they come first.
                for row in (0..rows).step_by(prefill::ROWS).rev() {
                    tasks.push(Task { sequence: index, kv_head, piece: Piece::Rows(row) });
                }
            }
        }
    }
    (tasks, partials, joins)
}

/// The numbers of the stretches of which a row of the sequence sees something.
fn stretches(problem: &Problem, sequence: usize) -> std::ops::Range<usize> {
    let sequence = &problem.sequences[sequence];
    let first = problem.visible(sequence.keys - sequence.queries, sequence.keys).start;
    let end = problem.visible(sequence.keys - 1, sequence.keys).end;
    first / decode::STRETCH..end.div_ceil(decode::STRETCH)
}

struct Run<'a> {
    level: Level,
    problem: &'a Problem<'a>,
    out: Shards<f32>,
    log_sums: Option<Shards<f32>>,
    partials: Shards<f32>,
    /// Stretches not yet done, for each sequence and key head that is joined.
    pending: &'a [AtomicUsize],
}

impl Run<'_> {
    fn task(&self, task: &Task) {
        let (problem, sequence) = (self.problem, &self.problem.sequences[task.sequence]);
        match task.piece {
            Piece::Rows(row) => {
                let (kv_head, out, log_sums) = (task.kv_head, &self.out, self.log_sums.as_ref());
                self.level.run(prefill::Task { problem, sequence, kv_head, row, out, log_sums });
            }
            Piece::Stretch { index, of, partials, pending } => {
                let rows = sequence.queries * problem.group();
                let start = (stretches(problem, task.sequence).start + index) * decode::STRETCH;
                let (first, end) = (start, (start + decode::STRETCH).min(sequence.keys));
                let partial = index * rows * decode::partial_len(problem.head_dim);
                let partial = Shards::from_ptr(self.partials.at(partials + partial));
                let kv_head = task.kv_head;
                self.level.run(decode::Task { problem, sequence, kv_head, first, end, partial });
                // The task that ends last sees the partial results of all and joins them.
                if self.pending[pending].fetch_sub(1, Ordering::AcqRel) == 1 {
                    self.join(task, of, partials);
                }
            }
        }
    }

    fn join(&self, task: &Task, stretches: usize, partials: usize) {
        let (problem, sequence) = (self.problem, &self.problem.sequences[task.sequence]);
        let (group, heads, d) = (problem.group(), problem.heads, problem.head_dim);
        let rows = sequence.queries * group;
        for row in 0..rows {
            let at = (sequence.q_start + row / group) * heads + task.kv_head * group + row % group;
            let partials = self.partials.at(partials);
            // SAFETY: every stretch has been written, and nobody else writes this row of the result.
            unsafe {
                let log_sum = decode::join((row, rows, stretches), d, partials, self.out.at(at * d));
                if let Some(log_sums) = &self.log_sums {
                    *log_sums.at(at) = log_sum;
                }
            }
        }
    }
}
