//! Formats and products against ggml's own numbers, and every kernel family against sums in f64.

use std::path::Path;

use half::f16;
use safetensors::SafeTensors;

use super::*;
use crate::kernels::cpu::Isa;
use crate::kernels::cpu::pool::Pool;
use crate::kernels::cpu::product::Target;
use crate::kernels::cpu::tests::noise;

fn target(isa: Isa) -> Target<'static> {
    Target { pool: global(), isa }
}

/// What `tests/golden/make_quant.py` wrote.
struct Golden(Vec<u8>);

impl Golden {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quant/blocks.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn of(&self, format: BlockFormat, what: &str) -> Vec<u8> {
        self.bytes(&format!("{}.{what}", format.name().to_lowercase()))
    }

    fn values(&self, bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()
    }
}

const COLUMNS: usize = 512;

#[test]
fn values_and_bytes_are_those_of_ggml() {
    let golden = Golden::new();
    for format in BlockFormat::ALL {
        for (bytes, values) in [("bytes", "values"), ("random", "random_values")] {
            let bytes = golden.of(format, bytes);
            let matrix = PackedQuant::pack(format, &[&bytes], COLUMNS).unwrap();
            let mut ours = vec![0.0; matrix.out * COLUMNS];
            matrix.unpack_f32(&mut ours);
            assert!(ours == golden.values(&golden.of(format, values)), "{format:?} {values}");
            assert!(matrix.unpack() == bytes, "{format:?} {values}");
        }
    }
}

#[test]
fn products_are_those_of_ggml() {
    let golden = Golden::new();
    let x = golden.values(&golden.bytes("activations"));
    for format in BlockFormat::ALL {
        let matrix = PackedQuant::pack(format, &[&golden.of(format, "bytes")], COLUMNS).unwrap();
        let dots = golden.values(&golden.of(format, "dots"));
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; dots.len()];
            matrix.matmul_on(target(isa), &x, &mut y, None);
            for (ours, theirs) in y.iter().zip(&dots) {
                assert!(
                    (ours - theirs).abs() <= 4e-6 * theirs.abs().max(4.0),
                    "{format:?} {isa:?}: {ours} {theirs}"
                );
            }
        }
    }
}

/// Blocks of arbitrary codes with ordinary scales.
fn blocks(format: BlockFormat, rows: usize, inn: usize) -> Vec<u8> {
    let count = rows * inn / format.block_values();
    let noise = noise(count * format.block_bytes(), (rows * 7 + inn) as u64);
    let mut bytes: Vec<u8> = noise.iter().map(|v| (v * 1e6) as i32 as u8).collect();
    for (block, numbers) in bytes.chunks_exact_mut(format.block_bytes()).zip(noise.chunks(2)) {
        for (at, number) in format.layout().halves.iter().zip(numbers) {
            block[*at..*at + 2].copy_from_slice(&f16::from_f32(*number).to_le_bytes());
        }
    }
    bytes
}

/// Activations as the format's partner keeps them, and the sums that its minima meet.
fn partner(format: BlockFormat, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let layout = format.layout();
    let (mut values, mut sums) = (Vec::new(), Vec::new());
    for block in x.chunks_exact(layout.values) {
        let most = block.iter().fold(0f32, |most, v| if v.abs() > most.abs() { *v } else { most });
        let (d, inverse) = match layout.partner {
            format::Partner::Q8K => (1.0 / (-127.0 / most), -127.0 / most),
            _ => (most.abs() / 127.0, 1.0 / (most.abs() / 127.0)),
        };
        let d = if most == 0.0 { 0.0 } else { d };
        let codes: Vec<f64> = block
            .iter()
            .map(|v| match layout.partner {
                _ if most == 0.0 => 0.0,
                format::Partner::Q8K => f64::from((v * inverse).round_ties_even().min(127.0)),
                _ => f64::from((v * inverse).round()),
            })
            .collect();
        let kept = if layout.partner == format::Partner::Q8K { d } else { f16::from_f32(d).to_f32() };
        for group in codes.chunks_exact(UNIT / layout.groups) {
            let total: f64 = group.iter().sum();
            sums.push(match layout.partner {
                format::Partner::Q8_1 => f64::from(f16::from_f32(d * total as f32).to_f32()),
                _ => f64::from(kept) * total,
            });
        }
        values.extend(codes.iter().map(|code| code * f64::from(kept)));
    }
    (values, sums)
}

/// Scales and minima of a row, group after group, from ggml's definition of the values alone.
fn minima(matrix: &PackedQuant, row: usize) -> Vec<f64> {
    let layout = matrix.format.layout();
    let mut all = Vec::new();
    for (header, _) in matrix.blocks(row / STRIP, 0..matrix.block_count()).iter(matrix.format) {
        let halves = halves(matrix.format, header);
        for sub in 0..layout.values / UNIT * layout.groups {
            let [_, minimum] =
                scales(matrix.format, &halves, header, sub / layout.groups, sub % layout.groups);
            all.push(f64::from(minimum[row % STRIP]));
        }
    }
    all
}

const SIZES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (2, 17, 2), (5, 33, 3), (7, 64, 1), (13, 100, 2), (19, 47, 5), (70, 33, 2)];

fn each_case(mut check: impl FnMut(Isa, usize, &PackedQuant)) {
    for format in BlockFormat::ALL {
        for (rows, out, blocks_in) in SIZES {
            let inn = blocks_in * format.block_values();
            let matrix = PackedQuant::pack(format, &[&blocks(format, out, inn)], inn).unwrap();
            for isa in Isa::available() {
                check(isa, rows, &matrix);
            }
        }
    }
}

#[test]
fn products_equal_sums_in_f64() {
    each_case(|isa, rows, matrix| {
        let (out, inn) = matrix.shape();
        let (x, bias) = (noise(rows * inn, 3), noise(out, 4));
        let mut y = vec![f32::NAN; rows * out];
        matrix.matmul_on(target(isa), &x, &mut y, Some(&bias));
        let group = UNIT / matrix.format.layout().groups;
        let mut row = vec![0.0; inn];
        for column in 0..out {
            matrix.row(column, &mut row);
            let minima = minima(matrix, column);
            for r in 0..rows {
                let (a, sums) = partner(matrix.format, &x[r * inn..][..inn]);
                let (mut sum, mut magnitude) = (f64::from(bias[column]), 1.0);
                for i in 0..inn {
                    let scaled = (f64::from(row[i]) - minima[i / group]) * a[i];
                    sum += scaled;
                    magnitude += scaled.abs();
                }
                for (minimum, total) in minima.iter().zip(&sums) {
                    sum += minimum * total;
                    magnitude += (minimum * total).abs();
                }
                let got = f64::from(y[r * out + column]);
                assert!(
                    (got - sum).abs() <= 1e-6 * magnitude,
                    "{isa:?} {matrix:?} [{r}, {column}]: {got}, {sum}"
                );
            }
        }
    });
}

#[test]
fn transposed_products_equal_sums_in_f64() {
    each_case(|isa, rows, matrix| {
        let (out, inn) = matrix.shape();
        let dy = noise(rows * out, 5);
        let mut dx = vec![f32::NAN; rows * inn];
        matrix.matmul_t_on(target(isa), &dy, &mut dx);
        let mut weights = vec![0.0; out * inn];
        matrix.unpack_f32(&mut weights);
        for (index, got) in dx.iter().enumerate() {
            let (row, column) = (index / inn, index % inn);
            let terms = (0..out).map(|o| f64::from(dy[row * out + o]) * f64::from(weights[o * inn + column]));
            let (sum, magnitude) = terms.fold((0.0, 1.0), |(s, m), v| (s + v, m + v.abs()));
            let error = (f64::from(*got) - sum).abs();
            assert!(error <= 1e-6 * magnitude, "{isa:?} {matrix:?} [{row}, {column}]: {got}, {sum}");
        }
    });
}

#[test]
fn neither_rows_nor_threads_change_a_bit() {
    let one = Pool::new(1);
    each_case(|isa, rows, matrix| {
        let (out, inn) = matrix.shape();
        let (x, dy) = (noise(rows * inn, 6), noise(rows * out, 7));
        let (mut y, mut dx) = (vec![f32::NAN; rows * out], vec![f32::NAN; rows * inn]);
        matrix.matmul_on(target(isa), &x, &mut y, None);
        matrix.matmul_t_on(target(isa), &dy, &mut dx);
        for row in [0, rows / 2, rows - 1] {
            let target = Target { pool: &one, isa };
            let (mut alone, mut alone_t) = (vec![f32::NAN; out], vec![f32::NAN; inn]);
            matrix.matmul_on(target, &x[row * inn..][..inn], &mut alone, None);
            matrix.matmul_t_on(target, &dy[row * out..][..out], &mut alone_t);
            assert!(alone == y[row * out..][..out], "{isa:?} {matrix:?} row {row}");
            assert!(alone_t == dx[row * inn..][..inn], "{isa:?} {matrix:?} row {row} transposed");
        }
    });
}

#[test]
fn a_row_that_is_not_finite_shows_it() {
    for format in BlockFormat::ALL {
        let inn = 2 * format.block_values();
        let matrix = PackedQuant::pack(format, &[&blocks(format, 20, inn)], inn).unwrap();
        for isa in Isa::available() {
            let mut x = noise(4 * inn, 8);
            let mut clean = vec![0.0; 4 * 20];
            matrix.matmul_on(target(isa), &x, &mut clean, None);
            x[inn + 3] = f32::NAN;
            x[2 * inn + 5] = f32::NEG_INFINITY;
            let mut y = vec![0.0; 4 * 20];
            matrix.matmul_on(target(isa), &x, &mut y, None);
            assert!(y[20..60].iter().all(|v| v.is_nan()), "{format:?} {isa:?}");
            assert!(y[..20] == clean[..20] && y[60..] == clean[60..], "{format:?} {isa:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = PackedQuant::pack(BlockFormat::Q4K, &[&[0; 144]], 896).unwrap_err();
    assert!(error.to_string().contains("a multiple of 256, the block of Q4K"), "{error}");
    let error = PackedQuant::pack(BlockFormat::Q8_0, &[&[0; 69]], 64).unwrap_err();
    assert!(error.to_string().contains("a multiple of 68"), "{error}");
    assert_eq!(PackedQuant::pack(BlockFormat::Q8_0, &[], 64).unwrap().shape(), (0, 64));
}
