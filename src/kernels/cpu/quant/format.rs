//! The block formats of ggml files: where each bit of a block lies and what it means.
//!
//! It computes nothing over matrices and quantises nothing. One table of bit positions per format serves both
//! directions. Source: the block structures of ggml, as its file format fixes them.

/// A way to store values in blocks that share scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// Values in a unit: the smallest block, and an eighth of the large ones.
pub(super) const UNIT: usize = 32;
/// Values in the largest block.
pub(super) const LARGEST: usize = 256;

/// How activations are quantised to meet a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Partner {
    /// 32 values share a scale rounded to f16.
    Q8_0,
    /// The same, and the sum of the values, rounded to f16.
    Q8_1,
    /// 256 values share a scale in f32.
    Q8K,
}

/// What a format consists of.
///
/// A value is `s * (code - offset) + t`: `s` and, where the format has minima, `t` belong to a group of values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Values in a block.
    pub(super) values: usize,
    /// Where the f16 numbers of a block are: the scale, then the minimum if there is one.
    pub(super) halves: &'static [usize],
    /// Where the bytes of small scales start, and how many there are.
    pub(super) scales: (usize, usize),
    /// Bits of a code that are kept in whole bytes, in halves, quarters and eighths of bytes.
    pub(super) planes: Planes,
    /// Scales in a unit.
    pub(super) groups: usize,
    /// Whether groups have a minimum beside the scale.
    pub(super) minima: bool,
    /// What a code is too large by.
    pub(super) offset: u8,
    /// The activations to multiply with.
    pub(super) partner: Partner,
}

/// How many bits of a code the planes keep, from the lowest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planes {
    /// 8, 4, 2 or 0 bits, the low ones.
    pub(super) low: usize,
    /// 2, 1 or 0 bits above them.
    pub(super) high: usize,
}

/// Some bits of one code: `(block[byte] >> shift & mask) << code_shift`.
#[derive(Debug, Clone, Copy)]
struct Bits {
    byte: u8,
    shift: u8,
    mask: u8,
    code_shift: u8,
}

const NONE: Bits = Bits { byte: 0, shift: 0, mask: 0, code_shift: 0 };

impl BlockFormat {
    /// Every format.
    pub const ALL: [BlockFormat; 10] = {
        use BlockFormat::*;
        [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K]
    };

    /// The name that ggml gives it.
    pub const fn name(self) -> &'static str {
        use BlockFormat::*;
        match self {
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q2K => "Q2_K",
            Q3K => "Q3_K",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
        }
    }

    /// Values in a block; the rows of a matrix are whole blocks.
    pub const fn block_values(self) -> usize {
        self.layout().values
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        let layout = self.layout();
        layout.values * (layout.planes.low + layout.planes.high) / 8
            + layout.halves.len() * 2
            + layout.scales.1
    }

    pub(super) const fn layout(self) -> Layout {
        use BlockFormat::*;
        const SMALL: Layout = Layout {
            values: UNIT,
            halves: &[0],
            scales: (0, 0),
            planes: Planes { low: 4, high: 0 },
            groups: 1,
            minima: false,
            offset: 8,
            partner: Partner::Q8_0,
        };
        const LARGE: Layout = Layout { values: LARGEST, partner: Partner::Q8K, ..SMALL };
        const FIVE: Planes = Planes { low: 4, high: 1 };
        match self {
            Q4_0 => SMALL,
            Q4_1 => Layout { halves: &[0, 2], minima: true, offset: 0, partner: Partner::Q8_1, ..SMALL },
            Q5_0 => Layout { planes: FIVE, offset: 16, ..SMALL },
            Q5_1 => Layout {
                halves: &[0, 2],
                planes: FIVE,
                minima: true,
                offset: 0,
                partner: Partner::Q8_1,
                ..SMALL
            },
            Q8_0 => Layout { planes: Planes { low: 8, high: 0 }, offset: 128, ..SMALL },
            Q2K => Layout {
                halves: &[80, 82],
                scales: (0, 16),
                planes: Planes { low: 2, high: 0 },
                groups: 2,
                minima: true,
                offset: 0,
                ..LARGE
            },
            Q3K => Layout {
                halves: &[108],
                scales: (96, 12),
                planes: Planes { low: 2, high: 1 },
                groups: 2,
                offset: 4,
                ..LARGE
            },
            Q4K => Layout { halves: &[0, 2], scales: (4, 12), minima: true, offset: 0, ..LARGE },
            Q5K => {
                Layout { halves: &[0, 2], scales: (4, 12), planes: FIVE, minima: true, offset: 0, ..LARGE }
            }
            Q6K => Layout {
                halves: &[208],
                scales: (192, 16),
                planes: Planes { low: 4, high: 2 },
                groups: 2,
                offset: 32,
                ..LARGE
            },
        }
    }

    /// Where the bits of code `i` of a block are.
    const fn bits(self, i: usize) -> [Bits; 2] {
        use BlockFormat::*;
        const fn at(byte: usize, shift: usize, mask: u8, code_shift: u8) -> Bits {
            Bits { byte: byte as u8, shift: shift as u8, mask, code_shift }
        }
        // Of 32 values, the first half has the low bits of sixteen bytes, the second half the high bits.
        let nibble = (i % 32 % 16, i % 32 / 16 * 4);
        // Of 64 values in large blocks, the first half has the low bits of 32 bytes.
        let wide = (i / 64 * 32 + i % 32, i % 64 / 32 * 4);
        // Of 128 values, each quarter has two bits of 32 bytes.
        let crumb = (i / 128 * 32 + i % 32, i % 128 / 32 * 2);
        match self {
            Q4_0 => [at(2 + nibble.0, nibble.1, 15, 0), NONE],
            Q4_1 => [at(4 + nibble.0, nibble.1, 15, 0), NONE],
            Q5_0 => [at(6 + nibble.0, nibble.1, 15, 0), at(2 + i / 8, i % 8, 1, 4)],
            Q5_1 => [at(8 + nibble.0, nibble.1, 15, 0), at(4 + i / 8, i % 8, 1, 4)],
            Q8_0 => [at(2 + i, 0, 255, 0), NONE],
            Q2K => [at(16 + crumb.0, crumb.1, 3, 0), NONE],
            Q3K => [at(32 + crumb.0, crumb.1, 3, 0), at(i % 32, i / 32, 1, 2)],
            Q4K => [at(16 + wide.0, wide.1, 15, 0), NONE],
            Q5K => [at(48 + wide.0, wide.1, 15, 0), at(16 + i % 32, i / 32, 1, 4)],
            Q6K => {
                let low = (i / 128 * 64 + i % 64, i % 128 / 64 * 4);
                [at(low.0, low.1, 15, 0), at(128 + crumb.0, crumb.1, 3, 4)]
            }
        }
    }

    /// The table of [`BlockFormat::bits`] for a whole block.
    fn table(self) -> &'static [[Bits; 2]; LARGEST] {
        static TABLES: [[[Bits; 2]; LARGEST]; BlockFormat::ALL.len()] = {
            let mut tables = [[[NONE; 2]; LARGEST]; BlockFormat::ALL.len()];
            let mut format = 0;
            while format < tables.len() {
                let mut i = 0;
                while i < BlockFormat::ALL[format].layout().values {
                    tables[format][i] = BlockFormat::ALL[format].bits(i);
                    i += 1;
                }
                format += 1;
            }
            tables
        };
        &TABLES[self as usize]
    }

    /// What the codes are stored with flipped: the sign bit of Q8_0, whose bytes are signed in a block.
    const fn flipped(self) -> u8 {
        match self {
            BlockFormat::Q8_0 => 0x80,
            _ => 0,
        }
    }

    /// The codes of a block, as many as `codes` is long.
    pub(super) fn codes(self, block: &[u8], codes: &mut [u8]) {
        for (code, [low, high]) in codes.iter_mut().zip(self.table()) {
            let part =
                |bits: &Bits| (block[usize::from(bits.byte)] >> bits.shift & bits.mask) << bits.code_shift;
            *code = (part(low) | part(high)) ^ self.flipped();
        }
    }

    /// The reverse of [`BlockFormat::codes`]: adds the bits of `codes` to a block that has none of them set.
    pub(super) fn set_codes(self, codes: &[u8], block: &mut [u8]) {
        for (code, [low, high]) in codes.iter().zip(self.table()) {
            let code = code ^ self.flipped();
            for bits in [low, high] {
                block[usize::from(bits.byte)] |= (code >> bits.code_shift & bits.mask) << bits.shift;
            }
        }
    }
}

/// The value of an f16 number, from its bits; branchless, so that it can be done for many lanes at once.
#[inline(always)]
pub(super) fn widen_half(bits: u16) -> f32 {
    // The exponent counts from 15 in an f16, from 127 in an f32.
    const REBIAS: u32 = (127 - 15) << 23;
    const ONE: u32 = 1 << 23;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Numbers without a leading one are given one, which is then taken away: no operand is subnormal, which is slow.
    let small = f32::from_bits(magnitude + REBIAS + ONE) - f32::from_bits(REBIAS + ONE);
    let special = if magnitude >= 0x7c00 << 13 { REBIAS } else { 0 };
    let widened = if magnitude < 0x400 << 13 { small.to_bits() } else { magnitude + REBIAS + special };
    f32::from_bits(widened | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn sizes_are_those_of_the_files() {
        let sizes: Vec<_> = BlockFormat::ALL.iter().map(|f| (f.block_values(), f.block_bytes())).collect();
        let small = [(32, 18), (32, 20), (32, 22), (32, 24), (32, 34)];
        let large = [(256, 84), (256, 110), (256, 144), (256, 176), (256, 210)];
        assert_eq!(sizes, [small, large].concat());
    }

    #[test]
    fn codes_use_every_bit_once() {
        for format in BlockFormat::ALL {
            let layout = format.layout();
            let planes = 1u32 << (layout.planes.low + layout.planes.high);
            let codes: Vec<u8> = (0..layout.values as u32).map(|i| ((i * 37 + 5) % planes) as u8).collect();
            let mut block = vec![0; format.block_bytes()];
            format.set_codes(&codes, &mut block);
            let mut back = vec![0; layout.values];
            format.codes(&block, &mut back);
            assert_eq!(back, codes, "{format:?}");
            // What is neither a scale nor a code must not exist.
            let mut full = vec![0; format.block_bytes()];
            format.set_codes(&vec![(planes - 1) as u8 ^ format.flipped(); layout.values], &mut full);
            for at in layout.halves {
                full[*at..at + 2].fill(255);
            }
            full[layout.scales.0..][..layout.scales.1].fill(255);
            assert!(full.iter().all(|byte| *byte == 255), "{format:?}");
        }
    }

    #[test]
    fn every_half_widens_to_its_value() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (widen_half(bits), f16::from_bits(bits).to_f32());
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{bits:#x}: {ours} and {theirs}");
        }
    }
}
