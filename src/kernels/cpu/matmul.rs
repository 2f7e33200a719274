//! Products with a packed matrix: cuts the work into tasks, blocks and tiles.
//!
//! It contains no arithmetic of its own. Sums over a long inner dimension are carried from block to block in the
//! output itself, so a result is the same sum, in the same order, for every way of cutting.

use std::ops::Range;

use half::bf16;

use super::pack::PackedMatrix;
use super::pool::{Pool, Shards, global};
use super::scratch::Scratch;
use super::tile::{STRIP, Tile, Tiles, WIDE, WidenFn, tiles};
use super::transpose::transpose_strip;
use super::{Element, Isa};

/// Bytes of weights that tiles of different rows share while they are in the second-level cache.
const BLOCK_BYTES: usize = 256 << 10;
/// Rows of activations that one task keeps in the second-level cache.
const ROW_BLOCK: usize = 512;
/// Work in a task, so that claiming it costs little and waiting for the last one costs little.
const TASK_NS: f64 = 25_000.0;
/// Work below which waking another thread costs more than it saves.
const INLINE_NS: f64 = 8_000.0;
/// Rough speed of one core, only to judge the size of tasks.
const BYTES_PER_NS: f64 = 15.0;
/// As [`BYTES_PER_NS`], for multiplications of activations that fill the registers.
const PRODUCTS_PER_NS: f64 = 80.0;

/// Activations that a task converts.
const CONVERT_VALUES: usize = 16 << 10;

/// Where and with which instructions to compute; results depend on `isa` only.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) pool: &'a Pool,
    pub(super) isa: Isa,
}

impl Target<'static> {
    fn current() -> Self {
        Self { pool: global(), isa: Isa::current() }
    }
}

impl PackedMatrix {
    /// `y = x Wᵀ + bias` for `x: [tokens, in]`, `y: [tokens, out]`, `bias: [out]`.
    ///
    /// # Panics
    /// When the lengths do not fit the shape.
    pub fn matmul(&self, x: &[f32], y: &mut [f32], bias: Option<&[f32]>) {
        self.matmul_on(Target::current(), x, y, bias);
    }

    /// `dx = dy W` for `dy: [tokens, out]`, `dx: [tokens, in]`: the gradient of [`PackedMatrix::matmul`].
    ///
    /// # Panics
    /// When the lengths do not fit the shape.
    pub fn matmul_t(&self, dy: &[f32], dx: &mut [f32]) {
        self.matmul_t_on(Target::current(), dy, dx);
    }

    pub(super) fn matmul_on(&self, target: Target, x: &[f32], y: &mut [f32], bias: Option<&[f32]>) {
        let (out, inn) = self.shape();
        assert!(bias.is_none_or(|bias| bias.len() == out), "bias of {self:?}");
        Product { matrix: self, transposed: false, out, inn, bias }.run(target, x, y);
    }

    pub(super) fn matmul_t_on(&self, target: Target, dy: &[f32], dx: &mut [f32]) {
        let (inn, out) = self.shape();
        Product { matrix: self, transposed: true, out, inn, bias: None }.run(target, dy, dx);
    }
}

/// A product with a matrix or with its transpose.
struct Product<'a> {
    matrix: &'a PackedMatrix,
    transposed: bool,
    /// Width of the outputs.
    out: usize,
    /// Width of the activations.
    inn: usize,
    bias: Option<&'a [f32]>,
}

impl Product<'_> {
    fn run(&self, target: Target, x: &[f32], y: &mut [f32]) {
        let (element, out) = (self.matrix.element(), self.out);
        let rows = rows(x, self.inn, y, out);
        let tiles = tiles(element, target.isa);
        let activations = Activations::new(target, tiles, element, x, rows, self.inn);
        let steps = self.inn.div_ceil(element.step_values());
        let grid = Grid::new(target.pool, rows, out.div_ceil(STRIP), steps, element);
        let outputs = Shards::new(y);
        target.pool.parallel(grid.tasks(), |task| {
            let (row_range, strips) = grid.task(task);
            let plan = Plan::new(row_range, tiles, self);
            let mut weights = Weights::new(self, &plan);
            for block in blocks(steps, plan.block_steps) {
                for strip in strips.clone().step_by(plan.width) {
                    let width = plan.width.min(strips.end - strip);
                    let (w, w_stride) = weights.strips(strip, width, block.clone());
                    let tile = Tile {
                        a: activations.at(0, block.start),
                        a_stride: activations.stride,
                        w,
                        w_stride,
                        steps: block.len() * plan.tile_steps,
                        c: outputs.at(strip * STRIP),
                        c_stride: out,
                        cols: out.min((strip + width) * STRIP) - strip * STRIP,
                        first: block.start == 0,
                        bias: match self.bias {
                            Some(bias) if block.end == steps => &raw const bias[strip * STRIP],
                            _ => std::ptr::null(),
                        },
                    };
                    // SAFETY: `target.isa` is available; the strips have these steps, every row of activations has as
                    // many, and no other task writes these rows and strips of `y`.
                    unsafe { plan.run(&tile, width) };
                }
            }
        });
    }
}

/// Gives a task the strips of a block in the form that its tiles read.
struct Weights<'a> {
    matrix: &'a PackedMatrix,
    transposed: Option<Scratch>,
    widened: Option<(WidenFn, Scratch)>,
    block_steps: usize,
}

impl<'a> Weights<'a> {
    fn new(product: &Product<'a>, plan: &Plan) -> Self {
        let element = product.matrix.element();
        let lines = plan.width * plan.block_steps;
        Self {
            matrix: product.matrix,
            transposed: product.transposed.then(|| Scratch::new(lines * element.step_bytes())),
            widened: plan
                .widen
                .map(|widen| (widen, Scratch::new(lines * plan.tile_steps * Element::F32.step_bytes()))),
            block_steps: plan.block_steps,
        }
    }

    /// The first of `count` strips from `strip` on, at the start of `block`, and the bytes between them.
    fn strips(&mut self, strip: usize, count: usize, block: Range<usize>) -> (*const u8, usize) {
        let element = self.matrix.element();
        let (mut start, mut stride) = (self.matrix.step_ptr(strip, block.start), self.matrix.strip_bytes());
        if let Some(scratch) = &mut self.transposed {
            let to = scratch.as_mut_ptr::<u8>();
            stride = self.block_steps * element.step_bytes();
            for s in 0..count {
                // SAFETY: the scratch holds this many strips of a whole block, and blocks start at whole strips.
                unsafe {
                    transpose_strip(self.matrix, strip + s, block.clone(), to.wrapping_add(s * stride))
                };
            }
            start = to;
        }
        if let Some((widen, scratch)) = &mut self.widened {
            let to = scratch.as_mut_ptr::<u8>();
            let to_stride = self.block_steps * element.step_values() * Element::F32.step_bytes();
            for s in 0..count {
                let (from, to) = (start.wrapping_add(s * stride), to.wrapping_add(s * to_stride));
                // SAFETY: as above; a step of the element type becomes `step_values` steps of f32.
                unsafe { widen(from, block.len(), to.cast()) };
            }
            (start, stride) = (to, to_stride);
        }
        (start, stride)
    }
}

/// The number of rows of `x: [rows, inn]` and `y: [rows, out]`, where one of the widths may be 0.
fn rows(x: &[f32], inn: usize, y: &[f32], out: usize) -> usize {
    let rows = x.len().checked_div(inn).or(y.len().checked_div(out)).unwrap_or(0);
    let fits = x.len() == rows * inn && y.len() == rows * out;
    assert!(fits, "{} values in and {} out are not rows of {inn} and {out}", x.len(), y.len());
    rows
}

fn offset(bias: *const f32, index: usize) -> *const f32 {
    if bias.is_null() { bias } else { bias.wrapping_add(index) }
}

/// Consecutive ranges of at most `size` that cover `0..steps`; one empty range where there are no steps.
fn blocks(steps: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..steps.div_ceil(size).max(1)).map(move |i| i * size..steps.min((i + 1) * size))
}

/// Activations in the form that the tiles read.
struct Activations {
    start: Shards<u8>,
    stride: usize,
    step_bytes: usize,
    /// Holds a converted copy where the input itself would not do.
    _scratch: Option<Scratch>,
}

impl Activations {
    fn new(target: Target, tiles: &Tiles, element: Element, x: &[f32], rows: usize, inn: usize) -> Self {
        let padded = inn.next_multiple_of(element.step_values());
        let size = if tiles.rounds { size_of::<bf16>() } else { size_of::<f32>() };
        let (stride, step_bytes) = (padded * size, element.step_values() * size);
        if !tiles.rounds && padded == inn {
            return Self {
                start: Shards::from_ptr(x.as_ptr().cast_mut().cast()),
                stride,
                step_bytes,
                _scratch: None,
            };
        }
        let mut scratch = Scratch::new(rows * stride);
        let start = Shards::from_ptr(scratch.as_mut_ptr::<u8>());
        // Several rows to a task; a single row, as in decoding, is converted without waking anybody.
        let rows_per_task = CONVERT_VALUES.div_ceil(inn.max(1));
        target.pool.parallel(rows.div_ceil(rows_per_task), |task| {
            for row in task * rows_per_task..rows.min((task + 1) * rows_per_task) {
                let from = &x[row * inn..(row + 1) * inn];
                let to = start.at(row * stride);
                // SAFETY: the scratch holds `rows` rows of `stride` bytes, this one is written by this task only, and
                // its start is aligned to 4 bytes because `stride` is a multiple of 4 or rows are single values.
                unsafe {
                    if tiles.rounds {
                        round(target.isa, from, std::slice::from_raw_parts_mut(to.cast::<bf16>(), padded));
                    } else {
                        let to = std::slice::from_raw_parts_mut(to.cast::<f32>(), padded);
                        to[inn..].fill(0.0);
                        to[..inn].copy_from_slice(from);
                    }
                }
            }
        });
        Self { start, stride, step_bytes, _scratch: Some(scratch) }
    }

    fn at(&self, row: usize, step: usize) -> *const u8 {
        self.start.at(row * self.stride + step * self.step_bytes)
    }
}

/// Rounds a row to bf16; `to` may be one value longer, which becomes zero.
///
/// # Safety
/// `isa` is available.
unsafe fn round(isa: Isa, from: &[f32], to: &mut [bf16]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: by contract.
        Isa::Avx512Bf16 => unsafe { super::bf16_avx512::round(from, to) },
        _ => {
            for (value, rounded) in from.iter().chain(&[0.0]).zip(to) {
                *rounded = bf16::from_f32(*value);
            }
        }
    }
}

/// How the rows and strips of an output are cut into tasks.
struct Grid {
    rows: usize,
    row_blocks: usize,
    strips: usize,
    strips_per_task: usize,
}

impl Grid {
    fn new(pool: &Pool, rows: usize, strips: usize, steps: usize, element: Element) -> Self {
        let row_blocks = rows.div_ceil(ROW_BLOCK);
        let groups = strips.div_ceil(WIDE);
        let block_rows = rows.div_ceil(row_blocks.max(1));
        let bytes = (WIDE * steps * element.step_bytes()) as f64;
        let products = (WIDE * STRIP * steps * element.step_values() * block_rows) as f64;
        let group_ns = (bytes / BYTES_PER_NS + products / PRODUCTS_PER_NS).max(1.0);
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
        Self { rows, row_blocks, strips, strips_per_task: per_task.max(1) * WIDE }
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
struct Plan {
    /// The tiles in use, those of f32 where weights are widened first.
    tiles: &'static Tiles,
    rows: Range<usize>,
    /// Tiles of nearly equal height that cover the rows.
    count: usize,
    /// Strips per tile: [`WIDE`] where every tile is low enough for it.
    width: usize,
    /// Steps to take before going to the next strips.
    block_steps: usize,
    /// Steps of the tiles in one step of the weight's element type.
    tile_steps: usize,
    /// Converts a block to f32 before its tiles run.
    widen: Option<WidenFn>,
}

impl Plan {
    fn new(rows: Range<usize>, tiles: &'static Tiles, product: &Product) -> Self {
        let element = product.matrix.element();
        let (mut tiles, mut widen, mut tile_steps) = (tiles, None, 1);
        if rows.len() > 2 * tiles.narrow.len()
            && let Some((widen_fn, f32_tiles)) = tiles.many
        {
            (tiles, widen, tile_steps) = (f32_tiles, Some(widen_fn), element.step_values());
        }
        let count = rows.len().div_ceil(tiles.narrow.len());
        let height = rows.len().div_ceil(count.max(1));
        let width = if height <= tiles.wide.len() { WIDE } else { 1 };
        let step_bytes =
            if widen.is_some() { tile_steps * Element::F32.step_bytes() } else { element.step_bytes() };
        let steps = product.inn.div_ceil(element.step_values());
        // One tile has nobody to share a block with. Whole strips, for the sake of transposed blocks.
        let shares = count > 1 || product.transposed;
        let block_steps = if shares { BLOCK_BYTES / (width * step_bytes) } else { steps };
        let block_steps = block_steps.min(steps).next_multiple_of(STRIP).max(STRIP);
        Self { tiles, rows, count, width, block_steps, tile_steps, widen }
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
            if width == WIDE {
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
                    bias: offset(tile.bias, s * STRIP),
                    ..*tile
                };
                // SAFETY: by contract; one of the strips.
                unsafe { self.tiles.narrow[end - row - 1](&part) };
            }
        }
    }
}
