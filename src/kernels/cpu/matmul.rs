//! Products with a packed matrix of plain values, and with its transpose.

use std::ops::Range;

use half::bf16;

use super::pack::PackedMatrix;
use super::pool::Shards;
use super::product::{BLOCK_BYTES, BlockSize, Job, Plan, Strips, Target, rows, run};
use super::scratch::Scratch;
use super::tile::{STRIP, Tiles, WidenFn, tiles};
use super::transpose::transpose_strip;
use super::{Element, Isa};

/// Products of one core per nanosecond, only to judge the size of tasks.
const PRODUCTS_PER_NS: f64 = 80.0;
/// Activations that a task converts.
const CONVERT_VALUES: usize = 16 << 10;

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
        let element = self.matrix.element();
        let rows = rows(x, self.inn, y, self.out);
        let tiles = tiles(element, target.isa);
        let activations = Activations::new(target, tiles, element, x, rows, self.inn);
        let job = Job {
            rows,
            out: self.out,
            steps: self.inn.div_ceil(element.step_values()),
            start: Shards::from_ptr(activations.start.at(0)),
            stride: activations.stride,
            step_bytes: activations.step_bytes,
            bias: self.bias,
            memory_bytes: element.step_bytes(),
            row_ns: (STRIP * element.step_values()) as f64 / PRODUCTS_PER_NS,
        };
        let many = |rows: &Range<usize>| tiles.many.filter(|_| rows.len() > 2 * tiles.narrow.len());
        let plan = |rows: Range<usize>| {
            let (tiles, tile_steps, step_bytes) = match many(&rows) {
                Some((_, f32_tiles)) => {
                    (f32_tiles, element.step_values(), element.step_values() * Element::F32.step_bytes())
                }
                None => (tiles, 1, element.step_bytes()),
            };
            let alone_bytes = if self.transposed { BLOCK_BYTES } else { usize::MAX };
            Plan::new(rows, tiles, BlockSize { steps: job.steps, tile_steps, step_bytes, alone_bytes })
        };
        let strips = |plan: &Plan| {
            let widen = many(plan.rows()).map(|(widen, _)| widen);
            Weights::new(self, widen, plan)
        };
        // SAFETY: `target.isa` is available; the matrix, or the scratch that a block is brought to, has these steps, and
        // so has every row of activations.
        unsafe { run(target.pool, &job, y, plan, strips) };
    }
}

/// Gives a task the strips of a block as they are, transposed, widened, or both.
struct Weights<'a> {
    matrix: &'a PackedMatrix,
    transposed: Option<Scratch>,
    widened: Option<(WidenFn, Scratch)>,
    block_steps: usize,
}

impl<'a> Weights<'a> {
    fn new(product: &Product<'a>, widen: Option<WidenFn>, plan: &Plan) -> Self {
        let element = product.matrix.element();
        let lines = plan.width * plan.block_steps;
        let wide_bytes = lines * element.step_values() * Element::F32.step_bytes();
        Self {
            matrix: product.matrix,
            transposed: product.transposed.then(|| Scratch::new(lines * element.step_bytes())),
            widened: widen.map(|widen| (widen, Scratch::new(wide_bytes))),
            block_steps: plan.block_steps,
        }
    }
}

impl Strips for Weights<'_> {
    fn strips(&mut self, strip: usize, count: usize, block: Range<usize>) -> (*const u8, usize) {
        let element = self.matrix.element();
        let (mut start, mut stride) = (self.matrix.step_ptr(strip, block.start), self.matrix.strip_bytes());
        if let Some(scratch) = &mut self.transposed {
            let to = scratch.as_mut_ptr::<u8>();
            stride = self.block_steps * element.step_bytes();
            for s in 0..count {
                let to = to.wrapping_add(s * stride);
                // SAFETY: the scratch holds this many strips of a whole block, and blocks start at whole strips.
                unsafe { transpose_strip(self.matrix, strip + s, block.clone(), to) };
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
            let start = Shards::from_ptr(x.as_ptr().cast_mut().cast());
            return Self { start, stride, step_bytes, _scratch: None };
        }
        let mut scratch = Scratch::new(rows * stride);
        let start = Shards::from_ptr(scratch.as_mut_ptr::<u8>());
        // Several rows to a task; a single row, as in decoding, is converted without waking anybody.
        let rows_per_task = CONVERT_VALUES.div_ceil(inn.max(1));
        target.pool.parallel(rows.div_ceil(rows_per_task), |task| {
            for row in task * rows_per_task..rows.min((task + 1) * rows_per_task) {
                let from = &x[row * inn..(row + 1) * inn];
                let to = start.at(row * stride);
                // SAFETY: the scratch holds `rows` rows of `stride` bytes, aligned to their values; this row is written
                // by this task only.
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
