//! Every kernel family against sums in f64, over odd sizes, and the promises that hold bit for bit.

use half::{bf16, f16};

use super::pool::{Pool, global};
use super::product::Target;
use super::tile::tiles;
use super::{Element, Isa, PackedMatrix};

/// Numbers between -1 and 1, always the same for the same seed.
pub(super) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Little-endian bytes of `values` as `element`, and the values that they stand for.
fn stored(element: Element, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let one = |v: &f32| match element {
        Element::F32 => (v.to_le_bytes().to_vec(), *v),
        Element::Bf16 => (bf16::from_f32(*v).to_le_bytes().to_vec(), bf16::from_f32(*v).to_f32()),
        Element::F16 => (f16::from_f32(*v).to_le_bytes().to_vec(), f16::from_f32(*v).to_f32()),
    };
    let (bytes, values): (Vec<_>, Vec<_>) = values.iter().map(one).unzip();
    (bytes.concat(), values)
}

struct Case {
    matrix: PackedMatrix,
    weights: Vec<f32>,
    out: usize,
    inn: usize,
}

impl Case {
    fn new(element: Element, out: usize, inn: usize) -> Self {
        let (bytes, weights) = stored(element, &noise(out * inn, (out * 131 + inn) as u64));
        // An odd address, as in a mapped file.
        let shifted = [&[0], bytes.as_slice()].concat();
        let parts = match inn {
            0 => Vec::new(),
            _ => shifted[1..].chunks(inn * element.size_in_bytes() * 7).collect(),
        };
        let matrix = PackedMatrix::pack(element, &parts, inn).unwrap();
        Self { matrix, weights, out, inn }
    }

    /// Compares `y` with `x Wᵀ + bias`, or with `x W` if `transposed`, summed in f64.
    fn check(&self, isa: Isa, x: &[f32], y: &[f32], bias: Option<&[f32]>, transposed: bool) {
        let (out, inn) = if transposed { (self.inn, self.out) } else { (self.out, self.inn) };
        let rounds = tiles(self.matrix.element(), isa).rounds;
        for (index, got) in y.iter().enumerate() {
            let (row, column) = (index / out, index % out);
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for i in 0..inn {
                let a = x[row * inn + i];
                let a = f64::from(if rounds { bf16::from_f32(a).to_f32() } else { a });
                let w = self.weights[if transposed { i * self.inn + column } else { column * self.inn + i }];
                sum += a * f64::from(w);
                magnitude += (a * f64::from(w)).abs();
            }
            let bias = bias.map_or(0.0, |bias| f64::from(bias[column]));
            (sum, magnitude) = (sum + bias, magnitude + bias.abs());
            let error = (f64::from(*got) - sum).abs();
            let bound = 1e-6 * (magnitude + 1e-3);
            assert!(error <= bound, "{isa:?} {:?} [{row}, {column}]: got {got}, expected {sum}", self.matrix);
        }
    }
}

fn target(isa: Isa) -> Target<'static> {
    Target { pool: global(), isa }
}

fn multiply(case: &Case, target: Target, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / case.inn * case.out];
    case.matrix.matmul_on(target, x, &mut y, bias);
    y
}

fn multiply_t(case: &Case, target: Target, dy: &[f32]) -> Vec<f32> {
    let mut dx = vec![f32::NAN; dy.len() / case.out * case.inn];
    case.matrix.matmul_t_on(target, dy, &mut dx);
    dx
}

/// Rows, outputs and inputs: small and odd, around every tile and strip border, and long enough for several blocks.
const SIZES: [(usize, usize, usize); 21] = [
    (1, 1, 1),
    (1, 2, 3),
    (2, 17, 1),
    (3, 5, 130),
    (4, 16, 16),
    (5, 64, 64),
    (6, 63, 31),
    (7, 65, 33),
    (8, 130, 129),
    (11, 15, 128),
    (12, 97, 2),
    (13, 33, 127),
    (19, 127, 63),
    (23, 66, 5),
    (31, 48, 96),
    (64, 80, 15),
    (127, 3, 47),
    (130, 129, 65),
    (9, 30, 1333),
    (29, 70, 2500),
    (14, 2100, 40),
];

fn each_case(mut check: impl FnMut(Isa, usize, &Case)) {
    for element in Element::ALL {
        for (rows, out, inn) in SIZES {
            let case = Case::new(element, out, inn);
            for isa in Isa::available() {
                check(isa, rows, &case);
            }
        }
    }
}

#[test]
fn products_equal_sums_in_f64() {
    each_case(|isa, rows, case| {
        let x = noise(rows * case.inn, 5);
        let bias = noise(case.out, 6);
        case.check(isa, &x, &multiply(case, target(isa), &x, None), None, false);
        case.check(isa, &x, &multiply(case, target(isa), &x, Some(&bias)), Some(&bias), false);
    });
}

#[test]
fn transposed_products_equal_sums_in_f64() {
    each_case(|isa, rows, case| {
        let dy = noise(rows * case.out, 7);
        case.check(isa, &dy, &multiply_t(case, target(isa), &dy), None, true);
    });
}

#[test]
fn a_row_alone_gives_the_same_bits() {
    each_case(|isa, rows, case| {
        let x = noise(rows * case.inn, 8);
        let dy = noise(rows * case.out, 9);
        let (y, dx) = (multiply(case, target(isa), &x, None), multiply_t(case, target(isa), &dy));
        for row in [0, rows / 2, rows - 1] {
            let alone = multiply(case, target(isa), &x[row * case.inn..][..case.inn], None);
            assert_eq!(alone, y[row * case.out..][..case.out], "{isa:?} {:?} row {row}", case.matrix);
            let alone = multiply_t(case, target(isa), &dy[row * case.out..][..case.out]);
            assert_eq!(alone, dx[row * case.inn..][..case.inn], "{isa:?} {:?} row {row}", case.matrix);
        }
    });
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let pools = [Pool::new(1), Pool::new(3)];
    for element in Element::ALL {
        let case = Case::new(element, 700, 350);
        for isa in Isa::available() {
            for rows in [1, 33] {
                let x = noise(rows * case.inn, 10);
                let dy = noise(rows * case.out, 11);
                let [one, three] = pools.each_ref().map(|pool| {
                    let target = Target { pool, isa };
                    (multiply(&case, target, &x, None), multiply_t(&case, target, &dy))
                });
                assert!(one == three, "{isa:?} {element:?} {rows} rows");
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_stays_alone() {
    for element in Element::ALL {
        for isa in Isa::available() {
            let case = Case::new(element, 37, 45);
            let mut x = noise(9 * case.inn, 12);
            let clean = multiply(&case, target(isa), &x, None);
            x[4 * case.inn + 3] = f32::NAN;
            x[5 * case.inn] = f32::INFINITY;
            let y = multiply(&case, target(isa), &x, None);
            assert!(y[4 * case.out..5 * case.out].iter().all(|v| v.is_nan()));
            assert!(y[5 * case.out..6 * case.out].iter().all(|v| !v.is_finite()));
            assert_eq!(y[..4 * case.out], clean[..4 * case.out]);
            assert_eq!(y[6 * case.out..], clean[6 * case.out..]);
        }
    }
}

#[test]
fn empty_sides_are_harmless() {
    for isa in Isa::available() {
        let case = Case::new(Element::Bf16, 5, 3);
        case.matrix.matmul_on(target(isa), &[], &mut [], None);
        case.matrix.matmul_t_on(target(isa), &[], &mut []);
        let empty = PackedMatrix::pack(Element::F32, &[], 3).unwrap();
        assert_eq!(empty.shape(), (0, 3));
        empty.matmul_on(target(isa), &[1.0; 6], &mut [], None);
        let mut dx = [f32::NAN; 6];
        empty.matmul_t_on(target(isa), &[], &mut dx);
        assert_eq!(dx[..3], [0.0; 3]);
        let narrow = PackedMatrix::pack_f32(&[], 2, 0).unwrap();
        let mut y = [f32::NAN; 4];
        narrow.matmul_on(target(isa), &[], &mut y, Some(&[1.0, 2.0]));
        assert_eq!(y, [1.0, 2.0, 1.0, 2.0]);
    }
}

#[test]
fn packed_values_come_back_unchanged() {
    for element in Element::ALL {
        for (_, out, inn) in SIZES {
            // Every bit pattern counts, those of NaN included.
            let bytes: Vec<u8> =
                (0..out * inn * element.size_in_bytes()).map(|i| (i * 73 + i / 256) as u8).collect();
            let matrix = PackedMatrix::pack(element, &[&bytes], inn).unwrap();
            assert_eq!(matrix.unpack(), bytes, "{matrix:?}");
        }
        let case = Case::new(element, 35, 21);
        let mut all = vec![0.0; 35 * 21];
        case.matrix.unpack_f32(&mut all);
        assert_eq!(all, case.weights);
        let mut row = vec![0.0; 21];
        case.matrix.row(34, &mut row);
        assert_eq!(row, case.weights[34 * 21..]);
    }
}

#[test]
fn values_of_another_type_are_rounded_to_the_nearest() {
    let mut values = noise(37 * 67, 5);
    // Ties in both directions, a value too large for f16, one too small for its normal range, and what is not a number.
    let special = [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), 1.0 + 2f32.powi(-11), 1e6, 3e-6, -0.0];
    values[65..71].copy_from_slice(&special);
    values[130..133].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    for (from, element) in Element::ALL.into_iter().flat_map(|a| Element::ALL.map(|b| (a, b))) {
        let (bytes, exact) = stored(from, &values);
        let shifted = [&[0], bytes.as_slice()].concat();
        let matrix = PackedMatrix::pack_as(element, from, &[&shifted[1..]], 67).unwrap();
        assert_eq!((matrix.shape(), matrix.element()), ((37, 67), element));
        let mut got = vec![0.0; values.len()];
        matrix.unpack_f32(&mut got);
        for (got, expected) in got.iter().zip(stored(element, &exact).1) {
            assert_eq!(got.is_nan(), expected.is_nan(), "{from:?} as {element:?}");
            assert!(got.is_nan() || got.to_bits() == expected.to_bits(), "{from:?} as {element:?}: {got}");
        }
    }
}

#[test]
fn parts_must_be_whole_rows() {
    let error = PackedMatrix::pack(Element::Bf16, &[&[0; 12], &[0; 7]], 3).unwrap_err();
    assert!(error.to_string().contains("got 7, expected a multiple of 6"), "{error}");
    assert!(PackedMatrix::pack_f32(&[0.0; 5], 2, 3).is_err());
}
