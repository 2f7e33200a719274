//! Products of a few rows straight from packed strips, with AVX-512 VNNI, for decoding.
//!
//! Every step does the arithmetic of `lines.rs` and `vnni.rs` in the same order, so the results are the same bits.

use std::arch::x86_64::*;

use super::activation::Group;
use super::format::{BlockFormat, UNIT};
use super::lines::{LINE, LINES, QUAD, plane_line};
use crate::kernels::cpu::avx512::{load_sums, store_sums};
use crate::kernels::cpu::tile::{STRIP, Tile, TileFn, Tiles, prefetch};

/// How far ahead of their use planes are asked for.
const AHEAD: usize = 4 << 10;

/// The tiles for `format`; each takes all steps of a strip at once.
pub(super) fn tiles(format: BlockFormat) -> &'static Tiles {
    const fn tiles<const F: usize>() -> Tiles {
        Tiles { narrow: &const { rows::<F>() }, wide: &[], width: 1, rounds: false, many: None }
    }
    const fn rows<const F: usize>() -> [TileFn; 4] {
        [tile::<F, 1>, tile::<F, 2>, tile::<F, 3>, tile::<F, 4>]
    }
    static TILES: [Tiles; BlockFormat::ALL.len()] = [
        tiles::<0>(),
        tiles::<1>(),
        tiles::<2>(),
        tiles::<3>(),
        tiles::<4>(),
        tiles::<5>(),
        tiles::<6>(),
        tiles::<7>(),
        tiles::<8>(),
        tiles::<9>(),
    ];
    &TILES[format as usize]
}

/// # Safety
/// As [`TileFn`]: steps are units, all that the strip has; `w` is a packed strip of the format.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<const F: usize, const R: usize>(t: &Tile) {
    let format = const { BlockFormat::ALL[F] };
    let layout = const { BlockFormat::ALL[F].layout() };
    let units = layout.values / UNIT;
    let blocks = t.steps / units;
    // SAFETY: by contract.
    let mut sums: [[__m512; 1]; R] = unsafe { load_sums(t) };
    let (mut a, mut header) = (t.a, t.w);
    let mut planes = t.w.wrapping_add(format.all_header_bytes(blocks));
    for _ in 0..blocks {
        // SAFETY: a block's header starts with its f16 numbers.
        let halves = unsafe { halves(format, header) };
        for unit in 0..units {
            for line in (0..format.plane_bytes()).step_by(LINE) {
                prefetch(planes.wrapping_add(line + AHEAD));
            }
            // SAFETY: a unit has planes for all of its lines.
            let lines = unsafe { lines(format, planes) };
            for group in 0..layout.groups {
                // SAFETY: as above.
                let [scale, minimum] = unsafe { scales(format, &halves, header, unit, group) };
                for (r, row) in sums.iter_mut().enumerate() {
                    let record = a.wrapping_add(r * t.a_stride);
                    // SAFETY: each row has `steps` records of codes and groups.
                    let part = unsafe { *record.add(UNIT).cast::<Group>().add(group) };
                    let start = if layout.minima { 0 } else { part.start };
                    let mut exact = _mm512_set1_epi32(start);
                    let first = group * LINES / layout.groups;
                    for (line, codes) in (first..).zip(&lines[first..first + LINES / layout.groups]) {
                        // SAFETY: as above.
                        let quad = unsafe { record.add(line * QUAD).cast::<i32>().read_unaligned() };
                        exact = _mm512_dpbusd_epi32(exact, *codes, _mm512_set1_epi32(quad));
                    }
                    let factor = _mm512_mul_ps(scale, _mm512_set1_ps(part.scale));
                    row[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), factor, row[0]);
                    if layout.minima {
                        row[0] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(part.sum), row[0]);
                    }
                }
            }
            a = a.wrapping_add(format.activation_bytes());
            planes = planes.wrapping_add(format.plane_bytes());
        }
        header = header.wrapping_add(format.header_bytes());
    }
    // SAFETY: by contract.
    unsafe { store_sums(t, &sums) };
}

/// The codes of a unit.
///
/// # Safety
/// `planes` are those of a unit of `format`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn lines(format: BlockFormat, planes: *const u8) -> [__m512i; LINES] {
    let kept = format.layout().planes;
    let high_planes = planes.wrapping_add(LINES * LINE * kept.low / 8);
    let mut lines = [_mm512_setzero_si512(); LINES];
    for (index, line) in lines.iter_mut().enumerate() {
        let (from, shift) = plane_line(kept.low, index);
        // SAFETY: by contract.
        let raw: __m512i = unsafe { _mm512_loadu_si512(planes.add(from * LINE).cast()) };
        let mask = ((1u16 << kept.low) - 1) as i8;
        *line = match kept.low {
            8 => raw,
            _ => _mm512_and_si512(shift_right(raw, shift), _mm512_set1_epi8(mask)),
        };
        if kept.high > 0 {
            let (from, shift) = plane_line(kept.high, index);
            // SAFETY: by contract.
            let raw: __m512i = unsafe { _mm512_loadu_si512(high_planes.add(from * LINE).cast()) };
            let mask = ((((1u16 << kept.high) - 1) as u8) << kept.low) as i8;
            let moved = match shift > kept.low {
                true => shift_right(raw, shift - kept.low),
                false => _mm512_sll_epi16(raw, _mm_cvtsi32_si128((kept.low - shift) as i32)),
            };
            *line = _mm512_or_si512(*line, _mm512_and_si512(moved, _mm512_set1_epi8(mask)));
        }
    }
    lines
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shift_right(x: __m512i, count: usize) -> __m512i {
    _mm512_srl_epi16(x, _mm_cvtsi32_si128(count as i32))
}

/// The f16 numbers of a block, widened.
///
/// # Safety
/// `header` is that of a block of `format`.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn halves(format: BlockFormat, header: *const u8) -> [__m512; 2] {
    let mut halves = [_mm512_setzero_ps(); 2];
    for (i, half) in halves.iter_mut().enumerate().take(format.layout().halves.len()) {
        // SAFETY: by contract.
        *half = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(header.add(2 * STRIP * i).cast()) });
    }
    halves
}

/// The scale and the minimum of a group, as in `lines.rs`.
///
/// # Safety
/// `header` is that of a block of `format`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn scales(
    format: BlockFormat,
    halves: &[__m512; 2],
    header: *const u8,
    unit: usize,
    group: usize,
) -> [__m512; 2] {
    let [d, m] = *halves;
    let small = header.wrapping_add(format.layout().halves.len() * 2 * STRIP);
    // SAFETY: by contract, the bytes of small scales follow the f16 numbers.
    let bytes = |i: usize| unsafe { _mm_loadu_si128(small.add(i * STRIP).cast()) };
    let right = |x: __m128i, count: usize| _mm_srl_epi16(x, _mm_cvtsi32_si128(count as i32));
    let left = |x: __m128i, count: usize| _mm_sll_epi16(x, _mm_cvtsi32_si128(count as i32));
    let and = |x: __m128i, mask: i8| _mm_and_si128(x, _mm_set1_epi8(mask));
    let float = |x: __m128i| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x));
    let minus = |x: __m512| _mm512_xor_ps(x, _mm512_set1_ps(-0.0));
    let sub = 2 * unit + group;
    match format {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => [d, _mm512_setzero_ps()],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => [d, m],
        BlockFormat::Q2K => {
            let (scale, minimum) = (and(bytes(sub), 15), and(right(bytes(sub), 4), 15));
            [_mm512_mul_ps(d, float(scale)), minus(_mm512_mul_ps(m, float(minimum)))]
        }
        BlockFormat::Q3K => {
            let low = and(right(bytes(sub % 8), sub / 8 * 4), 15);
            let high = and(right(bytes(8 + sub % 4), sub / 4 * 2), 3);
            let scale = _mm512_sub_ps(float(_mm_or_si128(low, left(high, 4))), _mm512_set1_ps(32.0));
            [_mm512_mul_ps(d, scale), _mm512_setzero_ps()]
        }
        BlockFormat::Q4K | BlockFormat::Q5K => {
            let (scale, minimum) = if unit < 4 {
                (and(bytes(unit), 63), and(bytes(unit + 4), 63))
            } else {
                let low = bytes(unit + 4);
                let scale = _mm_or_si128(and(low, 15), and(right(bytes(unit - 4), 2), 48));
                (scale, _mm_or_si128(and(right(low, 4), 15), and(right(bytes(unit), 2), 48)))
            };
            [_mm512_mul_ps(d, float(scale)), minus(_mm512_mul_ps(m, float(minimum)))]
        }
        BlockFormat::Q6K => {
            let scale = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(sub)));
            [_mm512_mul_ps(d, scale), _mm512_setzero_ps()]
        }
    }
}
