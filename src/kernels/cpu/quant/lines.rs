//! How codes lie in a strip, and how they are brought into the form that the tiles read.
//!
//! A strip interleaves the blocks of [`STRIP`] rows and is as large as they are. First come the headers of all blocks,
//! their f16 numbers and bytes of small scales lane by lane, up to a whole cache line; then, for each unit of 32 values,
//! the planes of the codes. The tiles read records instead: eight lines of codes (four successive values of each lane in a line), the f32
//! scales of the lanes, and their minima. Making a record is plain code, compiled once for each instruction set.

use std::ops::Range;

use super::format::{BlockFormat, Planes, UNIT, widen_half};
use crate::kernels::cpu::Isa;
use crate::kernels::cpu::tile::{STRIP, prefetch};

/// Values of one lane in a line.
pub(super) const QUAD: usize = 4;
/// Bytes of a line.
pub(super) const LINE: usize = STRIP * QUAD;
/// Lines of a unit.
pub(super) const LINES: usize = UNIT / QUAD;

/// How far ahead of their use the planes are asked for: the time that tiles spend on a block is not lost to the memory.
const AHEAD: usize = 8 << 10;

/// The codes of a unit: line after line, lane after lane.
pub(super) type Codes = [[u8; LINE]; LINES];

impl BlockFormat {
    /// Bytes of the header of a strip of blocks.
    pub(super) const fn header_bytes(self) -> usize {
        (self.layout().halves.len() * 2 + self.layout().scales.1) * STRIP
    }

    /// Bytes of the planes of one unit of a strip.
    pub(super) const fn plane_bytes(self) -> usize {
        UNIT * STRIP * (self.layout().planes.low + self.layout().planes.high) / 8
    }

    /// Bytes of one unit of a strip as the tiles read it.
    pub(super) const fn record_bytes(self) -> usize {
        size_of::<Codes>()
            + self.layout().groups * (1 + self.layout().minima as usize) * STRIP * size_of::<f32>()
    }
}

/// Successive blocks of a strip.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    headers: &'a [u8],
    planes: &'a [u8],
}

impl BlockFormat {
    /// Bytes of the planes of one block of a strip.
    pub(super) const fn block_plane_bytes(self) -> usize {
        self.layout().values / UNIT * self.plane_bytes()
    }

    /// Bytes of the headers of a strip of so many blocks.
    pub(super) const fn all_header_bytes(self, blocks: usize) -> usize {
        (blocks * self.header_bytes()).next_multiple_of(LINE)
    }

    /// Bytes of a strip of so many blocks.
    pub(super) const fn strip_bytes(self, blocks: usize) -> usize {
        self.all_header_bytes(blocks) + blocks * self.block_plane_bytes()
    }

    /// Some blocks of a strip that has `count`.
    pub(super) fn blocks(self, strip: &[u8], count: usize, range: Range<usize>) -> Blocks<'_> {
        let (headers, planes) = strip.split_at(self.all_header_bytes(count));
        Blocks {
            headers: &headers[range.start * self.header_bytes()..range.end * self.header_bytes()],
            planes: &planes[range.start * self.block_plane_bytes()..range.end * self.block_plane_bytes()],
        }
    }
}

impl<'a> Blocks<'a> {
    /// The header and the planes of each block.
    #[inline(always)]
    pub(super) fn iter(self, format: BlockFormat) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let planes = self.planes.chunks_exact(format.block_plane_bytes());
        self.headers.chunks_exact(format.header_bytes()).zip(planes)
    }
}

impl Planes {
    /// Writes the planes of a unit.
    pub(super) fn store(self, codes: &Codes, to: &mut [u8]) {
        let (low, high) = to.split_at_mut(LINES * LINE * self.low / 8);
        store_plane(codes, self.low, 0, low);
        store_plane(codes, self.high, self.low, high);
    }

    /// Reads the planes of a unit.
    #[inline(always)]
    pub(super) fn load(self, from: &[u8], codes: &mut Codes) {
        let (low, high) = from.split_at(LINES * LINE * self.low / 8);
        let [a, b, c, d, e, f, g, h] = codes;
        // One by one, so that positions in the planes are constants where the format is.
        self.load_line(0, low, high, a);
        self.load_line(1, low, high, b);
        self.load_line(2, low, high, c);
        self.load_line(3, low, high, d);
        self.load_line(4, low, high, e);
        self.load_line(5, low, high, f);
        self.load_line(6, low, high, g);
        self.load_line(7, low, high, h);
    }

    #[inline(always)]
    fn load_line(self, index: usize, low: &[u8], high: &[u8], line: &mut [u8; LINE]) {
        let (from, shift) = plane_line(self.low, index);
        let mask = ((1u16 << self.low) - 1) as u8;
        for (code, byte) in line.iter_mut().zip(&low[from * LINE..][..LINE]) {
            *code = byte >> shift & mask;
        }
        if self.high > 0 {
            let (from, shift) = plane_line(self.high, index);
            let mask = ((1u16 << self.high) - 1) as u8;
            for (code, byte) in line.iter_mut().zip(&high[from * LINE..][..LINE]) {
                *code |= (byte >> shift & mask) << self.low;
            }
        }
    }
}

/// The line of a plane of `bits` that holds line `index` of the codes, and the position of its bits.
#[inline(always)]
pub(super) const fn plane_line(bits: usize, index: usize) -> (usize, usize) {
    let lines = LINES * bits / 8;
    (index % lines, index / lines * bits)
}

fn store_plane(codes: &Codes, bits: usize, code_shift: usize, to: &mut [u8]) {
    if bits == 0 {
        return;
    }
    to.fill(0);
    let mask = ((1u16 << bits) - 1) as u8;
    for (index, line) in codes.iter().enumerate() {
        let (at, shift) = plane_line(bits, index);
        for (byte, code) in to[at * LINE..][..LINE].iter_mut().zip(line) {
            *byte |= (code >> code_shift & mask) << shift;
        }
    }
}

/// The f16 numbers of a strip of blocks, widened: scales, and minima where there are any.
#[inline(always)]
pub(super) fn halves(format: BlockFormat, header: &[u8]) -> [[f32; STRIP]; 2] {
    let mut halves = [[0.0; STRIP]; 2];
    for (half, bytes) in
        halves.iter_mut().zip(header.chunks_exact(2 * STRIP)).take(format.layout().halves.len())
    {
        for (value, bytes) in half.iter_mut().zip(bytes.chunks_exact(2)) {
            *value = widen_half(u16::from_le_bytes([bytes[0], bytes[1]]));
        }
    }
    halves
}

/// The scale and the minimum (to be added; 0 where there is none) of a group of unit `unit` of a block, for all lanes.
#[inline(always)]
pub(super) fn scales(
    format: BlockFormat,
    halves: &[[f32; STRIP]; 2],
    header: &[u8],
    unit: usize,
    group: usize,
) -> [[f32; STRIP]; 2] {
    let small = &header[format.layout().halves.len() * 2 * STRIP..];
    let byte = |i: usize, lane: usize| small[i * STRIP + lane];
    let mut out = [[0.0; STRIP]; 2];
    let [scale, minimum] = &mut out;
    let sub = 2 * unit + group;
    for lane in 0..STRIP {
        let (d, m) = (halves[0][lane], halves[1][lane]);
        (scale[lane], minimum[lane]) = match format {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => (d, 0.0),
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => (d, m),
            BlockFormat::Q2K => {
                let both = byte(sub, lane);
                (d * f32::from(both & 15), -(m * f32::from(both >> 4)))
            }
            BlockFormat::Q3K => {
                let low = byte(sub % 8, lane) >> (sub / 8 * 4) & 15;
                let high = byte(8 + sub % 4, lane) >> (sub / 4 * 2) & 3;
                (d * (f32::from(low | high << 4) - 32.0), 0.0)
            }
            BlockFormat::Q4K | BlockFormat::Q5K if unit < 4 => {
                (d * f32::from(byte(unit, lane) & 63), -(m * f32::from(byte(unit + 4, lane) & 63)))
            }
            BlockFormat::Q4K | BlockFormat::Q5K => {
                let low = byte(unit + 4, lane);
                let scale = low & 15 | byte(unit - 4, lane) >> 6 << 4;
                let minimum = low >> 4 | byte(unit, lane) >> 6 << 4;
                (d * f32::from(scale), -(m * f32::from(minimum)))
            }
            BlockFormat::Q6K => (d * f32::from(byte(sub, lane) as i8), 0.0),
        };
    }
    out
}

/// Turns whole blocks of a strip into records.
///
/// # Safety
/// The processor has the function's instruction set; `to` is writable for the records of the units in `from` and aligned
/// to f32.
pub(super) type UnpackFn = unsafe fn(from: Blocks, to: *mut u8);

/// # Safety
/// As [`UnpackFn`], without instructions of its own.
#[inline(always)]
unsafe fn unpack<const F: usize>(from: Blocks, to: *mut u8) {
    let format = const { BlockFormat::ALL[F] };
    let layout = const { BlockFormat::ALL[F].layout() };
    let units = layout.values / UNIT;
    for (index, (header, planes)) in from.iter(format).enumerate() {
        let halves = halves(format, header);
        let plane_bytes = format.plane_bytes();
        for unit in 0..units {
            for line in (0..plane_bytes).step_by(64) {
                prefetch(planes.as_ptr().wrapping_add(unit * plane_bytes + line + AHEAD));
            }
            let record = to.wrapping_add((index * units + unit) * format.record_bytes());
            // SAFETY: a record starts with its codes.
            let codes = unsafe { &mut *record.cast::<Codes>() };
            layout.planes.load(&planes[unit * plane_bytes..][..plane_bytes], codes);
            let rest = record.wrapping_add(size_of::<Codes>()).cast::<[f32; STRIP]>();
            for group in 0..layout.groups {
                let [scale, minimum] = scales(format, &halves, header, unit, group);
                // SAFETY: the scales of all groups follow the codes, then come the minima if there are any.
                unsafe {
                    *rest.add(group) = scale;
                    if layout.minima {
                        *rest.add(layout.groups + group) = minimum;
                    }
                }
            }
        }
    }
}

macro_rules! table {
    ($function:ident) => {
        [
            $function::<0>,
            $function::<1>,
            $function::<2>,
            $function::<3>,
            $function::<4>,
            $function::<5>,
            $function::<6>,
            $function::<7>,
            $function::<8>,
            $function::<9>,
        ]
    };
}

/// # Safety
/// As [`UnpackFn`].
unsafe fn portable<const F: usize>(from: Blocks, to: *mut u8) {
    // SAFETY: by contract.
    unsafe { unpack::<F>(from, to) }
}

/// # Safety
/// As [`UnpackFn`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn avx2<const F: usize>(from: Blocks, to: *mut u8) {
    // SAFETY: by contract.
    unsafe { unpack::<F>(from, to) }
}

/// # Safety
/// As [`UnpackFn`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<const F: usize>(from: Blocks, to: *mut u8) {
    // SAFETY: by contract.
    unsafe { unpack::<F>(from, to) }
}

/// The function for `format` on `isa`.
pub(super) fn unpacker(format: BlockFormat, isa: Isa) -> UnpackFn {
    const PORTABLE: [UnpackFn; BlockFormat::ALL.len()] = table!(portable);
    #[cfg(target_arch = "x86_64")]
    {
        const AVX2: [UnpackFn; BlockFormat::ALL.len()] = table!(avx2);
        const AVX512: [UnpackFn; BlockFormat::ALL.len()] = table!(avx512);
        match isa {
            Isa::Avx2 | Isa::AvxVnni => return AVX2[format as usize],
            Isa::Avx512 | Isa::Avx512Bf16 => return AVX512[format as usize],
            _ => {}
        }
    }
    let _ = isa;
    PORTABLE[format as usize]
}
