//! Cuts a product into tasks, blocks and tiles, whatever the weights are made of.
//!
//! It contains no arithmetic of its own. Sums over a long inner dimension are carried from block to block in the
//! output itself, so a result is the same sum, in the same order, for every way of cutting.

use std::ops::Range;

use super::Isa;
use super::pool::{Pool, Shards, global};
use super::tile::{STRIP, Tile, Tiles, WIDE};

/// Bytes of weights that tiles of different rows share while they are in the second-level cache.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// Rows of activations that one task keeps in the second-level cache.
const ROW_BLOCK: usize = 512;
/// Work in a task, so that claiming it costs little and waiting for the last one costs little.
const TASK_NS: f64 = 25_000.0;
/// Work below which waking another thread costs more than it saves.
const INLINE_NS: f64 = 8_000.0;
/// Rough speed of one core, only to judge the size of tasks.
const BYTES_PER_NS: f64 = 15.0;

/// Where and with which instructions to compute; results depend on `isa` only.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) pool: &'a Pool,
    pub(super) isa: Isa,
}

impl Target<'static> {
    /// The shared pool and the instructions in use.
    pub(super) fn current() -> Self {
        Self { pool: global(), isa: Isa::current() }
    }
}

/// One product: rows of prepared activations times strips of weights.
pub(super) struct Job<'a> {
    /// Rows of activations.
    pub(super) rows: usize,
    /// Width of the outputs.
    pub(super) out: usize,
    /// Steps along the inner dimension, as the weights count them.
    pub(super) steps: usize,
    /// The first row of activations.
    pub(super) start: Shards<u8>,
    /// Bytes from one row of activations to the next.
    pub(super) stride: usize,
    /// Bytes of a row for one step.
    pub(super) step_bytes: usize,
    /// What to add to each row of outputs.
    pub(super) bias: Option<&'a [f32]>,
    /// Bytes that one step of a strip has in memory.
    pub(super) memory_bytes: usize,
    /// Time that one step of a strip takes for one row, roughly.
    pub(super) row_ns: f64,
}

/// Gives a task its weights in the form that its tiles read.
pub(super) trait Strips {
    /// The first of `count` strips from `strip` on, at the first step of `block`, and the bytes from strip to strip.
    fn strips(&mut self, strip: usize, count: usize, block: Range<usize>) -> (*const u8, usize);
}

/// Computes `job` into `y`. `plan` says how to go over a range of rows; `strips` makes what a task reads its weights by.
///
/// # Safety
/// The tiles of the plans run on this processor; the activations have `rows` rows of `steps` steps; what `strips` returns
/// can be read over the plan's steps, `count` strips apart.
pub(super) unsafe fn run<S: Strips>(
    pool: &Pool,
    job: &Job,
    y: &mut [f32],
    plan: impl Fn(Range<usize>) -> Plan + Sync,
    strips: impl Fn(&Plan) -> S + Sync,
) {
    let grid = Grid::new(pool, job);
    let outputs = Shards::new(y);
    pool.parallel(grid.tasks(), |task| {
        let (rows, range) = grid.task(task);
        let plan = plan(rows);
        let mut weights = strips(&plan);
        for block in blocks(job.steps, plan.block_steps) {
            for strip in range.clone().step_by(plan.width) {
                let width = plan.width.min(range.end - strip);
                let (w, w_stride) = weights.strips(strip, width, block.clone());
                let tile = Tile {
                    a: job.start.at(block.start * job.step_bytes),
                    a_stride: job.stride,
                    w,
                    w_stride,
                    steps: block.len() * plan.tile_steps,
                    c: outputs.at(strip * STRIP),
                    c_stride: job.out,
                    cols: job.out.min((strip + width) * STRIP) - strip * STRIP,
                    first: block.start == 0,
                    bias: match job.bias {
                        Some(bias) if block.end == job.steps => &raw const bias[strip * STRIP],
                        _ => std::ptr::null(),
                    },
                };
                // SAFETY: by contract, and no other task writes these rows and strips of `y`.
                unsafe { plan.run(&tile, width) };
            }
        }
    });
}

/// The number of rows of `x: [rows, inn]` and `y: [rows, out]`, where one of the widths may be 0.
///
/// # Panics
/// When the lengths do not fit.
pub(super) fn rows(x: &[f32], inn: usize, y: &[f32], out: usize) -> usize {
    let rows = x.len().checked_div(inn).or(y.len().checked_div(out)).unwrap_or(0);
    let fits = x.len() == rows * inn && y.len() == rows * out;
    assert!(fits, "{} values in and {} out are not rows of {inn} and {out}", x.len(), y.len());
    rows
}

/// Consecutive ranges of at most `size` that cover `0..steps`; one empty range where there are no steps.
fn blocks(steps: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..steps.div_ceil(size).max(1)).map(move |i| i * size..steps.min((i + 1) * size))
}

/// How the rows and strips of an output are cut into tasks.
struct Grid {
    rows: usize,
    row_blocks: usize,
    strips: usize,
    strips_per_task: usize,
}

impl Grid {
    fn new(pool: &Pool, job: &Job) -> Self {
        let strips = job.out.div_ceil(STRIP);
        let row_blocks = job.rows.div_ceil(ROW_BLOCK);
        let groups = strips.div_ceil(WIDE);
        let block_rows = job.rows.div_ceil(row_blocks.max(1)) as f64;
        let step_ns = job.memory_bytes as f64 / BYTES_PER_NS + job.row_ns * block_rows;
        let group_ns = (step_ns * (WIDE * job.steps) as f64).max(1.0);
        let total_ns = group_ns * (groups * row_blocks) as f64;
        let threads = pool.threads();
        let per_task = if total_ns < INLINE_NS {
            groups
        } else {
            let share = total_ns / (3 * threads) as f64;
            let by_time = (TASK_NS.min(share) / group_ns).ceil() as usize;
            // Long tasks still span some groups, which then share the activations in the cache.
            by_time.max((groups * row_blocks / (4 * threads)).min(4))
        };
        Self { rows: job.rows, row_blocks, strips, strips_per_task: per_task.max(1) * WIDE }
    }

    fn tasks(&self) -> usize {
        self.row_blocks * self.strips.div_ceil(self.strips_per_task)
    }

    /// The rows and strips of a task. Tasks on the same strips follow each other.
    fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let (columns, block) = (task / self.row_blocks, task % self.row_blocks);
        let rows = block * self.rows / self.row_blocks..(block + 1) * self.rows / self.row_blocks;
        let first = columns * self.strips_per_task;
        (rows, first..self.strips.min(first + self.strips_per_task))
    }
}

/// How a task goes over its rows and blocks.
pub(super) struct Plan {
    tiles: &'static Tiles,
    rows: Range<usize>,
    /// Tiles of nearly equal height that cover the rows.
    count: usize,
    /// Strips per tile.
    pub(super) width: usize,
    /// Steps to take before going to the next strips, a multiple of [`STRIP`].
    pub(super) block_steps: usize,
    /// Steps of the tiles in one step of the weights.
    pub(super) tile_steps: usize,
}

/// What the size of a block depends on.
pub(super) struct BlockSize {
    /// Steps in all.
    pub(super) steps: usize,
    /// Steps of the tiles in one step of the weights.
    pub(super) tile_steps: usize,
    /// Bytes of one step of a strip, as the tiles read it.
    pub(super) step_bytes: usize,
    /// Bytes of a block that only one tile reads; [`BLOCK_BYTES`] where several do.
    pub(super) alone_bytes: usize,
}

impl Plan {
    pub(super) fn new(rows: Range<usize>, tiles: &'static Tiles, size: BlockSize) -> Self {
        let count = rows.len().div_ceil(tiles.narrow.len());
        let height = rows.len().div_ceil(count.max(1));
        let width = if height <= tiles.wide.len() { tiles.width } else { 1 };
        let bytes = if count > 1 { BLOCK_BYTES } else { size.alone_bytes };
        let block_steps =
            (bytes / (width * size.step_bytes)).min(size.steps).next_multiple_of(STRIP).max(STRIP);
        Self { tiles, rows, count, width, block_steps, tile_steps: size.tile_steps }
    }

    /// The rows of the task.
    pub(super) fn rows(&self) -> &Range<usize> {
        &self.rows
    }

    /// Runs `tile`, whose activations and outputs start at row 0 of the whole product, for every row of the task.
    ///
    /// # Safety
    /// As [`super::tile::TileFn`], for all rows of the task and `width` strips.
    unsafe fn run(&self, tile: &Tile, width: usize) {
        let (len, count) = (self.rows.len(), self.count);
        for i in 0..count {
            let (row, end) = (self.rows.start + i * len / count, self.rows.start + (i + 1) * len / count);
            let a = tile.a.wrapping_add(row * tile.a_stride);
            let c = tile.c.wrapping_add(row * tile.c_stride);
            if width > 1 && width == self.tiles.width {
                // SAFETY: by contract.
                unsafe { self.tiles.wide[end - row - 1](&Tile { a, c, ..*tile }) };
                continue;
            }
            for s in 0..width {
                let part = Tile {
                    a,
                    w: tile.w.wrapping_add(s * tile.w_stride),
                    c: c.wrapping_add(s * STRIP),
                    cols: STRIP.min(tile.cols - s * STRIP),
                    bias: if tile.bias.is_null() { tile.bias } else { tile.bias.wrapping_add(s * STRIP) },
                    ..*tile
                };
                // SAFETY: by contract; one of the strips.
                unsafe { self.tiles.narrow[end - row - 1](&part) };
            }
        }
    }
}
