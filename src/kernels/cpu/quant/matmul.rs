//! Products with a matrix in a block format, and with its transpose.

use std::ops::Range;

use super::activation::quantizer;
use super::format::{BlockFormat, UNIT};
use super::lines::{Codes, QUAD, UnpackFn, unpacker};
use super::{PackedQuant, scalar};
use crate::kernels::cpu::pool::Shards;
use crate::kernels::cpu::product::{BLOCK_BYTES, BlockSize, Job, Plan, Strips, Target, rows, run};
use crate::kernels::cpu::scratch::Scratch;
use crate::kernels::cpu::tile::{STRIP, Tiles, tiles as plain_tiles};
use crate::kernels::cpu::{Element, Isa};

/// Time of one core for one row and one unit of a strip, only to judge the size of tasks.
const ROW_NS: f64 = 2.0;
/// Rows of activations are quantised in tasks of so many values.
const CONVERT_VALUES: usize = 16 << 10;
/// Bytes of unpacked weights that only one tile reads: they should not leave the first-level cache.
const ALONE_BYTES: usize = 20 << 10;

impl PackedQuant {
    /// `y = x Wᵀ + bias` for `x: [tokens, in]`, `y: [tokens, out]`, `bias: [out]`.
    ///
    /// # Panics
    /// When the lengths do not fit the shape.
    pub fn matmul(&self, x: &[f32], y: &mut [f32], bias: Option<&[f32]>) {
        self.matmul_on(Target::current(), x, y, bias);
    }

    /// `dx = dy W` for `dy: [tokens, out]`, `dx: [tokens, in]`, with the dequantised weight.
    ///
    /// # Panics
    /// When the lengths do not fit the shape.
    pub fn matmul_t(&self, dy: &[f32], dx: &mut [f32]) {
        self.matmul_t_on(Target::current(), dy, dx);
    }

    pub(super) fn matmul_on(&self, target: Target, x: &[f32], y: &mut [f32], bias: Option<&[f32]>) {
        let (out, inn) = self.shape();
        assert!(bias.is_none_or(|bias| bias.len() == out), "bias of {self:?}");
        let (rows, units, format) = (rows(x, inn, y, out), self.units(), self.format);
        let stride = units * format.activation_bytes();
        let mut scratch = Scratch::new(rows * stride);
        let start = Shards::from_ptr(scratch.as_mut_ptr::<u8>());
        let quantize = quantizer(target.isa);
        let rows_per_task = CONVERT_VALUES.div_ceil(inn.max(1));
        target.pool.parallel(rows.div_ceil(rows_per_task), |task| {
            for row in task * rows_per_task..rows.min((task + 1) * rows_per_task) {
                // SAFETY: `target.isa` is available; the scratch holds `rows` rows of records, and this task alone
                // writes this one.
                unsafe { quantize(format, &x[row * inn..(row + 1) * inn], start.at(row * stride)) };
            }
        });
        let job = Job {
            rows,
            out,
            steps: units,
            start,
            stride,
            step_bytes: format.activation_bytes(),
            bias,
            memory_bytes: format.block_bytes() * UNIT / format.block_values() * STRIP,
            row_ns: ROW_NS,
        };
        let size = |rows: Range<usize>, tiles, alone_bytes| {
            let step_bytes = format.record_bytes();
            Plan::new(rows, tiles, BlockSize { steps: units, tile_steps: 1, step_bytes, alone_bytes })
        };
        if let Some(tiles) = direct(format, target.isa).filter(|tiles| rows <= tiles.narrow.len()) {
            let plan = |rows| size(rows, tiles, usize::MAX);
            // SAFETY: `target.isa` is available; these tiles read whole strips as they are packed.
            unsafe { run(target.pool, &job, y, plan, |_| AsPacked(self)) };
            return;
        }
        let tiles = tiles(format, target.isa);
        let plan = |rows| size(rows, tiles, ALONE_BYTES);
        let strips = |plan: &Plan| Records::new(self, unpacker(format, target.isa), plan);
        // SAFETY: `target.isa` is available; rows and records have `units` units.
        unsafe { run(target.pool, &job, y, plan, strips) };
    }

    pub(super) fn matmul_t_on(&self, target: Target, dy: &[f32], dx: &mut [f32]) {
        let (out, inn) = self.shape();
        let job = Job {
            rows: rows(dy, out, dx, inn),
            out: inn,
            steps: out,
            start: Shards::from_ptr(dy.as_ptr().cast_mut().cast()),
            stride: size_of_val(&dy[..out.min(dy.len())]),
            step_bytes: size_of::<f32>(),
            bias: None,
            memory_bytes: STRIP,
            row_ns: STRIP as f64 / 80.0,
        };
        let tiles = plain_tiles(Element::F32, target.isa);
        let size = |rows| {
            let step_bytes = Element::F32.step_bytes();
            Plan::new(
                rows,
                tiles,
                BlockSize { steps: out, tile_steps: 1, step_bytes, alone_bytes: BLOCK_BYTES },
            )
        };
        let strips = |plan: &Plan| Transposed::new(self, unpacker(self.format, target.isa), plan);
        // SAFETY: `target.isa` is available; rows of `dy` and transposed strips have `out` steps.
        unsafe { run(target.pool, &job, dx, size, strips) };
    }
}

fn tiles(format: BlockFormat, isa: Isa) -> &'static Tiles {
    let layout = format.layout();
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 if std::arch::is_x86_feature_detected!("avx512vnni") => {
            super::vnni::tiles(layout.groups, layout.minima)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => super::avx2::vnni::tiles(layout.groups, layout.minima, layout.planes.low == 8),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => {
            super::avx2::plain::tiles(layout.groups, layout.minima, layout.planes.low == 8)
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => super::neon::tiles(layout.groups, layout.minima, layout.planes.low == 8),
        _ => scalar::tiles(layout.groups, layout.minima),
    }
}

/// Tiles that read packed strips themselves, for few rows: writing records for them would cost more than it saves.
fn direct(format: BlockFormat, isa: Isa) -> Option<&'static Tiles> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 if std::arch::is_x86_feature_detected!("avx512vnni") => {
            Some(super::direct::tiles(format))
        }
        _ => {
            let _ = format;
            None
        }
    }
}

/// Gives whole strips as they are.
struct AsPacked<'a>(&'a PackedQuant);

impl Strips for AsPacked<'_> {
    fn strips(&mut self, strip: usize, _count: usize, _block: Range<usize>) -> (*const u8, usize) {
        (self.0.data.as_ptr().wrapping_add(strip * self.0.strip_bytes()), self.0.strip_bytes())
    }
}

/// Unpacks blocks into the records that the tiles read.
struct Records<'a> {
    matrix: &'a PackedQuant,
    unpack: UnpackFn,
    scratch: Scratch,
    stride: usize,
}

impl<'a> Records<'a> {
    fn new(matrix: &'a PackedQuant, unpack: UnpackFn, plan: &Plan) -> Self {
        let stride = plan.block_steps * matrix.format.record_bytes();
        Self { matrix, unpack, scratch: Scratch::new(plan.width * stride), stride }
    }
}

impl Strips for Records<'_> {
    fn strips(&mut self, strip: usize, count: usize, block: Range<usize>) -> (*const u8, usize) {
        let to = self.scratch.as_mut_ptr::<u8>();
        for s in 0..count {
            let units = self.matrix.format.block_values() / UNIT;
            let from = self.matrix.blocks(strip + s, block.start / units..block.end / units);
            // SAFETY: the scratch holds `count` strips of a whole block of records.
            unsafe { (self.unpack)(from, to.wrapping_add(s * self.stride)) };
        }
        (to, self.stride)
    }
}

/// Dequantises blocks into f32 strips that run along the output dimension.
struct Transposed<'a> {
    matrix: &'a PackedQuant,
    unpack: UnpackFn,
    /// Records of one block, then of strips.
    records: Scratch,
    strips: Scratch,
    stride: usize,
}

impl<'a> Transposed<'a> {
    fn new(matrix: &'a PackedQuant, unpack: UnpackFn, plan: &Plan) -> Self {
        let stride = plan.block_steps * Element::F32.step_bytes();
        let units = matrix.format.block_values() / UNIT;
        Self {
            matrix,
            unpack,
            records: Scratch::new(units * matrix.format.record_bytes()),
            strips: Scratch::new(plan.width * stride),
            stride,
        }
    }

    /// Writes the values of sixteen inputs, the half `half` of a record, for [`STRIP`] outputs: an input to a lane.
    ///
    /// # Safety
    /// `record` is one of the matrix's format; `to` is writable for [`STRIP`] steps.
    unsafe fn turn(&self, record: *const u8, half: usize, to: *mut f32) {
        let layout = self.matrix.format.layout();
        // SAFETY: by contract, a record starts with its codes.
        let codes = unsafe { &*record.cast::<Codes>() };
        let scales = record.wrapping_add(size_of::<Codes>()).cast::<[f32; STRIP]>();
        let group = half * layout.groups / 2;
        // SAFETY: the scales of all groups follow, then the minima if there are any.
        let (scale, minimum) = unsafe {
            let minimum = if layout.minima { *scales.add(layout.groups + group) } else { [0.0; STRIP] };
            (*scales.add(group), minimum)
        };
        for row in 0..STRIP {
            // SAFETY: by contract.
            let step = unsafe { &mut *to.cast::<[f32; STRIP]>().add(row) };
            for (lane, value) in step.iter_mut().enumerate() {
                let i = half * STRIP + lane;
                let code = f32::from(codes[i / QUAD][row * QUAD + i % QUAD]) - f32::from(layout.offset);
                *value = scale[row] * code + minimum[row];
            }
        }
    }
}

impl Strips for Transposed<'_> {
    fn strips(&mut self, strip: usize, count: usize, block: Range<usize>) -> (*const u8, usize) {
        let format = self.matrix.format;
        let units = format.block_values() / UNIT;
        let (records, to) = (self.records.as_mut_ptr::<u8>(), self.strips.as_mut_ptr::<u8>());
        for (index, rows) in (block.start / STRIP..block.end.div_ceil(STRIP)).enumerate() {
            let mut unpacked = None;
            for s in 0..count {
                let (unit, half) = ((strip + s) / 2, (strip + s) % 2);
                let block = unit / units;
                if unpacked != Some(block) {
                    // SAFETY: the scratch holds the records of one block.
                    unsafe { (self.unpack)(self.matrix.blocks(rows, block..block + 1), records) };
                    unpacked = Some(block);
                }
                let record = records.wrapping_add(unit % units * format.record_bytes());
                let to = to.wrapping_add(s * self.stride).cast::<f32>().wrapping_add(index * STRIP * STRIP);
                // SAFETY: the strips have room for whole strips of steps.
                unsafe { self.turn(record, half, to) };
            }
        }
        (to, self.stride)
    }
}
