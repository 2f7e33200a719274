//! The two products of the low-rank path on slices of f32, compiled for every instruction set.
//!
//! Both keep a tile of results in registers. Every result is summed in one order that depends neither on the number of
//! threads nor on how many rows are computed together.

use std::ops::Range;

use crate::kernels::cpu::pool::{self, Shards};
use crate::kernels::simd::{Kernel, Level, Simd};

/// Multiplications below which a product is not worth a second thread.
const SERIAL: usize = 1 << 16;

/// Rows of results that one task computes.
const ROWS: usize = 32;

/// Columns of results that one task computes where there are few rows.
const COLUMNS: usize = 256;

/// A row-major matrix of f32.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    /// The matrix of the elements `data`.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(data.len() == rows * columns);
        Self { data, rows, columns }
    }

    fn row(self, row: usize) -> *const f32 {
        self.data[row * self.columns..][..self.columns].as_ptr()
    }
}

/// Factors `(row, k)` of a product, at `row * row_step + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    pub(super) data: &'a [f32],
    pub(super) row_step: usize,
    pub(super) step: usize,
}

/// `out[i][j] = scale · x[i] · m[j]` for all rows of `x` and `m`; `out` is `[x.rows, m.rows]`.
pub(super) fn dots(level: Level, x: Matrix, m: Matrix, scale: f32, out: &mut [f32]) {
    assert!(x.columns == m.columns && out.len() == x.rows * m.rows);
    if m.rows == 0 {
        return;
    }
    let work = x.rows * m.rows * m.columns;
    let target = Shards::new(out);
    let run = |rows: Range<usize>, of: Range<usize>| {
        level.run(Dots { x, m, scale, rows, of, out: &target });
    };
    if work < SERIAL {
        run(0..x.rows, 0..m.rows);
    } else if x.rows > 1 {
        let chunk = ROWS.min(x.rows.div_ceil(pool::threads()));
        pool::parallel(x.rows.div_ceil(chunk), |task| {
            run(task * chunk..((task + 1) * chunk).min(x.rows), 0..m.rows);
        });
    } else {
        pool::parallel(m.rows.div_ceil(8), |task| run(0..1, 8 * task..(8 * task + 8).min(m.rows)));
    }
}

struct Dots<'a> {
    x: Matrix<'a>,
    m: Matrix<'a>,
    scale: f32,
    rows: Range<usize>,
    of: Range<usize>,
    out: &'a Shards<f32>,
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut row = self.rows.start;
        if S::REGISTERS >= 32 {
            while row + 4 <= self.rows.end {
                self.across::<S, 4>(s, row);
                row += 4;
            }
        }
        while row + 2 <= self.rows.end {
            self.across::<S, 2>(s, row);
            row += 2;
        }
        if row < self.rows.end {
            self.across::<S, 1>(s, row);
        }
    }
}

impl Dots<'_> {
    /// `R` rows of `x` with all wanted rows of `m`.
    #[inline(always)]
    fn across<S: Simd, const R: usize>(&self, s: S, row: usize) {
        let mut of = self.of.start;
        while of + 4 <= self.of.end {
            self.tile::<S, R, 4>(s, row, of);
            of += 4;
        }
        while of < self.of.end {
            self.tile::<S, R, 1>(s, row, of);
            of += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const M: usize>(&self, s: S, row: usize, of: usize) {
        let x: [*const f32; R] = std::array::from_fn(|r| self.x.row(row + r));
        let m: [*const f32; M] = std::array::from_fn(|j| self.m.row(of + j));
        let mut sums = [[s.splat(0.0); M]; R];
        let width = self.x.columns;
        let mut at = 0;
        while at < width {
            let n = S::LANES.min(width - at);
            // SAFETY: every row has `width` elements, of which `n` are left from `at` on.
            unsafe {
                let m: [S::V; M] = std::array::from_fn(|j| s.load_first(m[j].add(at), n));
                for r in 0..R {
                    let x = s.load_first(x[r].add(at), n);
                    for j in 0..M {
                        sums[r][j] = s.fma(x, m[j], sums[r][j]);
                    }
                }
            }
            at += n;
        }
        for (r, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                // SAFETY: results of different rows and columns have places of their own inside `out`.
                unsafe { *self.out.at((row + r) * self.m.rows + of + j) = s.sum(*sum) * self.scale };
            }
        }
    }
}

/// `out[i][j] += Σ_k factors(i, k) · m[k][j]` for `out` of `[rows, m.columns]`.
pub(super) fn accumulate(level: Level, factors: Factors, m: Matrix, rows: usize, out: &mut [f32]) {
    let columns = m.columns;
    assert!(out.len() == rows * columns);
    if rows == 0 || m.rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * factors.row_step + (m.rows - 1) * factors.step < factors.data.len());
    let target = Shards::new(out);
    let run = |rows: Range<usize>, columns: Range<usize>| {
        level.run(Accumulate { factors, m, rows, columns, out: &target });
    };
    if rows * columns * m.rows < SERIAL {
        run(0..rows, 0..columns);
    } else if rows >= 2 * ROWS {
        pool::parallel(rows.div_ceil(ROWS), |task| {
            run(task * ROWS..((task + 1) * ROWS).min(rows), 0..columns)
        });
    } else {
        pool::parallel(columns.div_ceil(COLUMNS), |task| {
            run(0..rows, task * COLUMNS..((task + 1) * COLUMNS).min(columns));
        });
    }
}

struct Accumulate<'a> {
    factors: Factors<'a>,
    m: Matrix<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &'a Shards<f32>,
}

impl Kernel for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut row = self.rows.start;
        if S::REGISTERS >= 32 {
            while row + 4 <= self.rows.end {
                self.across::<S, 4>(s, row);
                row += 4;
            }
        }
        while row + 2 <= self.rows.end {
            self.across::<S, 2>(s, row);
            row += 2;
        }
        if row < self.rows.end {
            self.across::<S, 1>(s, row);
        }
    }
}

impl Accumulate<'_> {
    /// `R` rows of results over all wanted columns.
    #[inline(always)]
    fn across<S: Simd, const R: usize>(&self, s: S, row: usize) {
        let mut column = self.columns.start;
        while column + 4 * S::LANES <= self.columns.end {
            self.tile::<S, R, 4>(s, row, column, S::LANES);
            column += 4 * S::LANES;
        }
        while column < self.columns.end {
            let n = S::LANES.min(self.columns.end - column);
            self.tile::<S, R, 1>(s, row, column, n);
            column += n;
        }
    }

    /// `R` rows of `C` vectors, of which the last has `n` elements.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize>(&self, s: S, row: usize, column: usize, n: usize) {
        let places: [*mut f32; R] = std::array::from_fn(|r| self.out.at((row + r) * self.m.columns + column));
        // SAFETY: `C - 1` whole vectors and `n` elements lie between `column` and the end of every row of `out` and `m`;
        // results of different tiles have places of their own. The bounds of the factors were checked for all rows.
        unsafe {
            let mut sums: [[S::V; C]; R] = std::array::from_fn(|r| {
                std::array::from_fn(|c| s.load_first(places[r].add(c * S::LANES), n))
            });
            for k in 0..self.m.rows {
                let m = self.m.row(k).add(column);
                let m: [S::V; C] = std::array::from_fn(|c| s.load_first(m.add(c * S::LANES), n));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let at = (row + r) * self.factors.row_step + k * self.factors.step;
                    let factor = s.splat(*self.factors.data.as_ptr().add(at));
                    for (sum, m) in sums.iter_mut().zip(m) {
                        *sum = s.fma(factor, m, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    s.store_first(places[r].add(c * S::LANES), n, *sum);
                }
            }
        }
    }
}
