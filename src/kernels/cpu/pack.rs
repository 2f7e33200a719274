//! A weight matrix in the one layout that serves many rows of activations and a single one.
//!
//! Values keep every bit unless another type is asked for, so the matrix can be written back as it was read. It holds
//! no gradient and cannot be changed after packing. The layout is described in `tile.rs`.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::MmapMut;

use super::pool::global;
use super::tile::STRIP;
use crate::{Error, Result};

/// The type of a packed matrix's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Element {
    pub(super) const ALL: [Element; 3] = [Element::F32, Element::Bf16, Element::F16];

    /// Bytes of one value.
    pub const fn size_in_bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 | Element::F16 => 2,
        }
    }

    /// Values along the input dimension that one step holds for each lane.
    pub(super) const fn step_values(self) -> usize {
        match self {
            Element::F32 | Element::F16 => 1,
            Element::Bf16 => 2,
        }
    }

    /// Bytes of one step of a strip.
    pub(super) const fn step_bytes(self) -> usize {
        STRIP * self.step_values() * self.size_in_bytes()
    }

    /// The value of its little-endian bytes.
    fn to_f32(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Element::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Element::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (Element::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("a value has size_in_bytes bytes"),
        }
    }

    /// Spreads rows over the lanes of a strip that comes filled with zeros.
    fn pack_strip<'a>(self, rows: impl Iterator<Item = &'a [u8]> + Clone, strip: &mut [u8]) {
        match self {
            Element::F32 | Element::Bf16 => pack_strip::<4>(rows, strip),
            Element::F16 => pack_strip::<2>(rows, strip),
        }
    }
}

/// Writes the little-endian values of `from`, as those of another type, to `to`, which has as many.
fn convert(from: Element, bytes: &[u8], element: Element, to: &mut [u8]) {
    // Pieces that stay in registers and the first-level cache; the bytes of a file are not aligned.
    const PIECE: usize = 64;
    let mut values = [0.0; PIECE];
    let pieces =
        bytes.chunks(PIECE * from.size_in_bytes()).zip(to.chunks_mut(PIECE * element.size_in_bytes()));
    for (piece, to) in pieces {
        let values = &mut values[..piece.len() / from.size_in_bytes()];
        let pairs = || piece.as_chunks::<2>().0.iter().copied();
        match from {
            Element::F32 => {
                values.iter_mut().zip(piece.as_chunks().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b))
            }
            Element::Bf16 => {
                values.iter_mut().zip(pairs()).for_each(|(v, b)| *v = bf16::from_le_bytes(b).to_f32())
            }
            Element::F16 => {
                let mut halves = [f16::ZERO; PIECE];
                halves.iter_mut().zip(pairs()).for_each(|(half, b)| *half = f16::from_le_bytes(b));
                halves[..values.len()].convert_to_f32_slice(values);
            }
        }
        match element {
            Element::F32 => {
                to.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, v)| *b = v.to_le_bytes())
            }
            Element::Bf16 => {
                let to = to.as_chunks_mut().0.iter_mut();
                to.zip(values).for_each(|(b, v)| *b = bf16::from_f32(*v).to_le_bytes());
            }
            Element::F16 => {
                let mut halves = [f16::ZERO; PIECE];
                halves[..values.len()].convert_from_f32_slice(values);
                to.as_chunks_mut().0.iter_mut().zip(halves).for_each(|(b, half)| *b = half.to_le_bytes());
            }
        }
    }
}

/// Zeroed memory of at least `bytes` bytes, page-aligned, in huge pages where the system has them.
pub(super) fn anonymous(bytes: usize) -> Result<MmapMut> {
    let failed = |source| Error::internal(format!("allocating {bytes} bytes for a weight"), source);
    let data = MmapMut::map_anon(bytes.max(1)).map_err(failed)?;
    #[cfg(target_os = "linux")]
    if bytes >= 2 << 20 {
        // Only a hint: without huge pages the matrix is correct and a little slower.
        let _ = data.advise(memmap2::Advice::HugePage);
    }
    Ok(data)
}

/// A weight of shape `[out, in]`, packed for the kernels of this module.
pub struct PackedMatrix {
    element: Element,
    out: usize,
    inn: usize,
    /// `[strips][steps][STRIP][step_values]`, zero beyond `out` and `in`. Page-aligned.
    data: MmapMut,
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix({:?}, [{}, {}])", self.element, self.out, self.inn)
    }
}

impl PackedMatrix {
    /// Packs the row-major little-endian values of `parts`, stacked along the output dimension.
    ///
    /// Each part holds whole rows of `inn` values and may start at any address, such as inside a mapped file. Fails
    /// when a part is not a whole number of rows, or when memory runs out.
    pub fn pack(element: Element, parts: &[&[u8]], inn: usize) -> Result<Self> {
        Self::pack_as(element, element, parts, inn)
    }

    /// The same of values of type `from`, each rounded to the nearest value of `element`, ties to even.
    pub fn pack_as(element: Element, from: Element, parts: &[&[u8]], inn: usize) -> Result<Self> {
        let row_bytes = inn * from.size_in_bytes();
        let mut rows = Vec::new();
        for part in parts.iter().filter(|part| !part.is_empty()) {
            if row_bytes == 0 || part.len() % row_bytes != 0 {
                let expected = format!("a multiple of {row_bytes}, the bytes of one row");
                return Err(Error::argument("weight bytes", part.len(), expected));
            }
            rows.extend(part.chunks_exact(row_bytes));
        }
        if from == element {
            return Self::pack_rows(element, rows.len(), inn, |row| rows[row]);
        }
        Self::pack_strips(element, rows.len(), inn, |rows_of_strip, packed| {
            let mut values = vec![0; rows_of_strip.len() * inn * element.size_in_bytes()];
            let converted = values.chunks_exact_mut(inn * element.size_in_bytes());
            for (row, values) in rows[rows_of_strip].iter().zip(converted) {
                convert(from, row, element, values);
            }
            element.pack_strip(values.chunks_exact(inn * element.size_in_bytes()), packed);
        })
    }

    /// Packs row-major f32 values of shape `[out, inn]`; fails when there are not that many.
    pub fn pack_f32(values: &[f32], out: usize, inn: usize) -> Result<Self> {
        if values.len() != out * inn {
            return Err(Error::argument("weight values", values.len(), format!("{out} x {inn}")));
        }
        if cfg!(target_endian = "big") {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            return Self::pack_rows(Element::F32, out, inn, |row| &bytes[row * inn * 4..][..inn * 4]);
        }
        // SAFETY: the bytes of f32 values are initialised, and bytes need no alignment.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        Self::pack_rows(Element::F32, out, inn, |row| &bytes[row * inn * 4..][..inn * 4])
    }

    fn pack_rows<'a>(
        element: Element,
        out: usize,
        inn: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self> {
        Self::pack_strips(element, out, inn, |rows, packed| element.pack_strip(rows.map(&row), packed))
    }

    /// `fill` writes the rows of one strip.
    fn pack_strips(
        element: Element,
        out: usize,
        inn: usize,
        fill: impl Fn(Range<usize>, &mut [u8]) + Sync,
    ) -> Result<Self> {
        let strip_bytes = inn.div_ceil(element.step_values()) * element.step_bytes();
        let bytes = out.div_ceil(STRIP) * strip_bytes;
        let mut data = anonymous(bytes)?;
        global().parallel_chunks(&mut data[..bytes], strip_bytes, |strip, packed| {
            fill(strip * STRIP..out.min((strip + 1) * STRIP), packed);
        });
        Ok(Self { element, out, inn, data })
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.inn)
    }

    /// The type of the values.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Memory held, padding included.
    pub fn size_in_bytes(&self) -> usize {
        self.data.len()
    }

    /// The values of row `row` as f32, into `out: [in]`.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit the shape.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.out && out.len() == self.inn, "row {row} of {self:?} into {} values", out.len());
        for (index, value) in out.iter_mut().enumerate() {
            *value = self.element.to_f32(self.value_bytes(row, index));
        }
    }

    /// All values as f32, row-major, into `out: [out * in]`.
    ///
    /// # Panics
    /// When the length of `out` does not fit the shape.
    pub fn unpack_f32(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.out * self.inn, "values of {self:?}");
        global().parallel_chunks(out, self.inn, |row, values| self.row(row, values));
    }

    /// The bytes that were packed: row-major little-endian values of [`PackedMatrix::element`].
    pub fn unpack(&self) -> Vec<u8> {
        let size = self.element.size_in_bytes();
        let mut bytes = vec![0; self.out * self.inn * size];
        global().parallel_chunks(&mut bytes, self.inn * size, |row, part| {
            for (index, value) in part.chunks_exact_mut(size).enumerate() {
                value.copy_from_slice(self.value_bytes(row, index));
            }
        });
        bytes
    }

    fn value_bytes(&self, row: usize, index: usize) -> &[u8] {
        let size = self.element.size_in_bytes();
        let values = self.element.step_values();
        let lane = (row % STRIP * values + index % values) * size;
        &self.data[row / STRIP * self.strip_bytes() + index / values * self.element.step_bytes() + lane..]
            [..size]
    }

    /// Steps along the input dimension.
    pub(super) fn steps(&self) -> usize {
        self.inn.div_ceil(self.element.step_values())
    }

    /// Bytes from one strip to the next.
    pub(super) fn strip_bytes(&self) -> usize {
        self.steps() * self.element.step_bytes()
    }

    /// The first byte of step `step` of strip `strip`.
    pub(super) fn step_ptr(&self, strip: usize, step: usize) -> *const u8 {
        self.data.as_ptr().wrapping_add(strip * self.strip_bytes() + step * self.element.step_bytes())
    }
}

/// Spreads rows over the lanes of a strip, in which a step has `BYTES` bytes for each lane.
///
/// The rest of an odd last step stays zero.
fn pack_strip<'a, const BYTES: usize>(rows: impl Iterator<Item = &'a [u8]> + Clone, strip: &mut [u8]) {
    // Both sides of a few steps stay in the first-level cache while the lanes are written one after the other.
    const STEPS: usize = 64;
    for (index, steps) in strip.chunks_mut(STEPS * STRIP * BYTES).enumerate() {
        for (lane, row) in rows.clone().enumerate() {
            let row = &row[row.len().min(index * STEPS * BYTES)..row.len().min((index + 1) * STEPS * BYTES)];
            let (values, rest) = row.as_chunks::<BYTES>();
            let mut lanes = steps.as_chunks_mut::<BYTES>().0.iter_mut().skip(lane).step_by(STRIP);
            for (value, to) in values.iter().zip(&mut lanes) {
                *to = *value;
            }
            if let Some(to) = lanes.next() {
                to[..rest.len()].copy_from_slice(rest);
            }
        }
    }
}
