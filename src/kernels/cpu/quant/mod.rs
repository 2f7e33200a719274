//! Matrices in ggml's block formats: packed once, multiplied in eight-bit integers.
//!
//! Packing only moves bits, so a matrix takes the memory of the file's tensor and can be written back unchanged.
//! Activations are quantised block by block as ggml does; products within a group are added as integers, exactly, and
//! groups in f32 in the order of the input dimension. As for plain values, the rows of a call, the threads and the
//! instruction set's tile sizes never change a result. The gradient uses the dequantised weight and f32 throughout.

mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod direct;
mod format;
mod lines;
mod matmul;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use memmap2::MmapMut;

pub use format::BlockFormat;
use format::{LARGEST, UNIT};
use lines::{Blocks, Codes, LINE, LINES, QUAD, halves, scales};

use super::pack::anonymous;
use super::pool::global;
use super::tile::STRIP;
use crate::{Error, Result};

/// A weight of shape `[out, in]` in a block format, packed for the kernels of this module.
pub struct PackedQuant {
    format: BlockFormat,
    out: usize,
    inn: usize,
    /// Strips of blocks as `lines.rs` describes them, zero beyond `out`. Page-aligned.
    data: MmapMut,
}

impl std::fmt::Debug for PackedQuant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedQuant({:?}, [{}, {}])", self.format, self.out, self.inn)
    }
}

impl PackedQuant {
    /// Packs the blocks of `parts`, stacked along the output dimension.
    ///
    /// Each part holds whole rows of `inn` values as a ggml file does and may start at any address. Fails when `inn` is
    /// not a multiple of the format's block, a part is not a whole number of rows, or memory runs out.
    pub fn pack(format: BlockFormat, parts: &[&[u8]], inn: usize) -> Result<Self> {
        if !inn.is_multiple_of(format.block_values()) {
            let expected = format!("a multiple of {}, the block of {format:?}", format.block_values());
            return Err(Error::argument("weight columns", inn, expected));
        }
        let blocks = inn / format.block_values();
        let row_bytes = blocks * format.block_bytes();
        let mut rows = Vec::new();
        for part in parts.iter().filter(|part| !part.is_empty()) {
            if row_bytes == 0 || part.len() % row_bytes != 0 {
                let expected = format!("a multiple of {row_bytes}, the bytes of one row");
                return Err(Error::argument("weight bytes", part.len(), expected));
            }
            rows.extend(part.chunks_exact(row_bytes));
        }
        let out = rows.len();
        let strip_bytes = format.strip_bytes(blocks);
        let bytes = out.div_ceil(STRIP) * strip_bytes;
        let mut data = anonymous(bytes)?;
        global().parallel_chunks(&mut data[..bytes], strip_bytes, |strip, packed| {
            pack_strip(format, &rows[strip * STRIP..out.min((strip + 1) * STRIP)], packed);
        });
        Ok(Self { format, out, inn, data })
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.inn)
    }

    /// How the values are stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Memory held, padding included.
    pub fn size_in_bytes(&self) -> usize {
        self.data.len()
    }

    /// The values of row `row`, as the format defines them, into `out: [in]`.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit the shape.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.out && out.len() == self.inn, "row {row} of {self:?} into {} values", out.len());
        let (layout, lane) = (self.format.layout(), row % STRIP);
        let blocks = self.blocks(row / STRIP, 0..self.block_count());
        for ((header, planes), values) in blocks.iter(self.format).zip(out.chunks_exact_mut(layout.values)) {
            let halves = halves(self.format, header);
            let units = planes.chunks_exact(self.format.plane_bytes()).zip(values.chunks_exact_mut(UNIT));
            for (unit, (plane, values)) in units.enumerate() {
                let mut codes: Codes = [[0; LINE]; LINES];
                layout.planes.load(plane, &mut codes);
                for (group, values) in values.chunks_exact_mut(UNIT / layout.groups).enumerate() {
                    let [scale, minimum] = scales(self.format, &halves, header, unit, group);
                    let first = group * UNIT / layout.groups;
                    for (i, value) in (first..).zip(values) {
                        let code =
                            f32::from(codes[i / QUAD][lane * QUAD + i % QUAD]) - f32::from(layout.offset);
                        *value = scale[lane] * code + minimum[lane];
                    }
                }
            }
        }
    }

    /// All values, row-major, into `out: [out * in]`.
    ///
    /// # Panics
    /// When the length of `out` does not fit the shape.
    pub fn unpack_f32(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.out * self.inn, "values of {self:?}");
        global().parallel_chunks(out, self.inn, |row, values| self.row(row, values));
    }

    /// The blocks that were packed, byte for byte.
    pub fn unpack(&self) -> Vec<u8> {
        let row_bytes = self.block_count() * self.format.block_bytes();
        let mut bytes = vec![0; self.out * row_bytes];
        global().parallel_chunks(&mut bytes, row_bytes, |row, blocks| {
            unpack_lane(self.format, self.blocks(row / STRIP, 0..self.block_count()), row % STRIP, blocks);
        });
        bytes
    }

    /// Units along the input dimension.
    fn units(&self) -> usize {
        self.inn / UNIT
    }

    /// Blocks along the input dimension.
    fn block_count(&self) -> usize {
        self.inn / self.format.block_values()
    }

    fn strip_bytes(&self) -> usize {
        self.format.strip_bytes(self.block_count())
    }

    /// Some blocks of a strip.
    fn blocks(&self, strip: usize, range: Range<usize>) -> Blocks<'_> {
        let bytes = &self.data[strip * self.strip_bytes()..][..self.strip_bytes()];
        self.format.blocks(bytes, self.block_count(), range)
    }
}

/// Interleaves rows of blocks.
fn pack_strip(format: BlockFormat, rows: &[&[u8]], strip: &mut [u8]) {
    let layout = format.layout();
    let blocks = rows.first().map_or(0, |row| row.len() / format.block_bytes());
    let (headers, planes) = strip.split_at_mut(format.all_header_bytes(blocks));
    let headers = headers.chunks_exact_mut(format.header_bytes());
    let planes = planes.chunks_exact_mut(format.block_plane_bytes());
    for (index, (header, planes)) in headers.zip(planes).enumerate() {
        let (halves, small) = header.split_at_mut(layout.halves.len() * 2 * STRIP);
        let mut lines: [Codes; LARGEST / UNIT] = [[[0; LINE]; LINES]; LARGEST / UNIT];
        for (lane, row) in rows.iter().enumerate() {
            let block = &row[index * format.block_bytes()..][..format.block_bytes()];
            for (half, at) in halves.chunks_exact_mut(2 * STRIP).zip(layout.halves) {
                half[2 * lane..][..2].copy_from_slice(&block[*at..][..2]);
            }
            for (scale, line) in block[layout.scales.0..].iter().zip(small.chunks_exact_mut(STRIP)) {
                line[lane] = *scale;
            }
            let mut codes = [0; LARGEST];
            format.codes(block, &mut codes[..layout.values]);
            for (quad, codes) in codes[..layout.values].chunks_exact(QUAD).enumerate() {
                lines[quad / LINES][quad % LINES][lane * QUAD..][..QUAD].copy_from_slice(codes);
            }
        }
        for (lines, plane) in lines.iter().zip(planes.chunks_exact_mut(format.plane_bytes())) {
            layout.planes.store(lines, plane);
        }
    }
}

/// Collects the blocks of one lane; `blocks` comes filled with zeros.
fn unpack_lane(format: BlockFormat, packed: Blocks, lane: usize, blocks: &mut [u8]) {
    let layout = format.layout();
    let blocks = blocks.chunks_exact_mut(format.block_bytes());
    for ((header, planes), block) in packed.iter(format).zip(blocks) {
        let (halves, small) = header.split_at(layout.halves.len() * 2 * STRIP);
        for (half, at) in halves.chunks_exact(2 * STRIP).zip(layout.halves) {
            block[*at..][..2].copy_from_slice(&half[2 * lane..][..2]);
        }
        for (line, scale) in small.chunks_exact(STRIP).zip(&mut block[layout.scales.0..]) {
            *scale = line[lane];
        }
        let mut codes = [0; LARGEST];
        for (plane, codes) in planes.chunks_exact(format.plane_bytes()).zip(codes.chunks_exact_mut(UNIT)) {
            let mut lines: Codes = [[0; LINE]; LINES];
            layout.planes.load(plane, &mut lines);
            for (line, quad) in lines.iter().zip(codes.chunks_exact_mut(QUAD)) {
                quad.copy_from_slice(&line[lane * QUAD..][..QUAD]);
            }
        }
        format.set_codes(&codes[..layout.values], block);
    }
}
