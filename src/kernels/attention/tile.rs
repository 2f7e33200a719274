//! The one inner loop of attention: a small matrix product held in registers.

use super::view::Rows;
use crate::kernels::simd::Simd;

/// A strided matrix whose elements are read one at a time.
#[derive(Clone, Copy)]
pub(super) struct Scalars {
    pub(super) start: *const f32,
    /// Distance between the rows of the product.
    pub(super) row: usize,
    /// Distance between successive terms of a sum.
    pub(super) step: usize,
}

/// A matrix whose rows are read as vectors, `step` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Vectors {
    pub(super) start: *const f32,
    pub(super) step: usize,
}

/// `N x (R * LANES)` sums over `terms`: `sum[n][r] = Σ_i a[n * a.row + i * a.step] * b[i * b.step + r]`.
///
/// Every sum is taken in the order of `i` in one accumulator, so that the shape of the tile never changes a result.
///
/// # Safety
/// All elements named above are readable.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const R: usize, const N: usize>(
    s: S,
    terms: usize,
    a: Scalars,
    b: Vectors,
) -> [[S::V; R]; N] {
    let mut sums = [[s.splat(0.0); R]; N];
    let (mut x, mut y) = (a.start, b.start);
    for _ in 0..terms {
        let mut row = [s.splat(0.0); R];
        for (r, v) in row.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the elements.
            *v = unsafe { s.load(y.add(r * S::LANES)) };
        }
        for (n, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let factor = s.splat(unsafe { *x.add(n * a.row) });
            for (sum, &v) in sums.iter_mut().zip(&row) {
                *sum = s.fma(factor, v, *sum);
            }
        }
        x = x.wrapping_add(a.step);
        y = y.wrapping_add(b.step);
    }
    sums
}

/// `out[n][r] = update(out[n][r], sum[n][r])` for all `rows` and `R` vectors, in tiles of `N` rows and then of one.
///
/// # Safety
/// As [`tile`]; `out` has `rows` rows, `out_row` elements apart, of `R * LANES` readable and writable elements.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, const R: usize, const N: usize>(
    s: S,
    (rows, terms): (usize, usize),
    a: Scalars,
    b: Vectors,
    (out, out_row): (*mut f32, usize),
    update: impl Update<S>,
) {
    let mut n = 0;
    while n < rows {
        let a = Scalars { start: a.start.wrapping_add(n * a.row), ..a };
        let out = out.wrapping_add(n * out_row);
        // SAFETY: the caller vouches for these rows.
        n += unsafe {
            match rows - n {
                left if left >= N => {
                    finish::<S, R, N>(s, tile::<S, R, N>(s, terms, a, b), out, out_row, update)
                }
                4.. => finish::<S, R, 4>(s, tile::<S, R, 4>(s, terms, a, b), out, out_row, update),
                3 => finish::<S, R, 3>(s, tile::<S, R, 3>(s, terms, a, b), out, out_row, update),
                2 => finish::<S, R, 2>(s, tile::<S, R, 2>(s, terms, a, b), out, out_row, update),
                _ => finish::<S, R, 1>(s, tile::<S, R, 1>(s, terms, a, b), out, out_row, update),
            }
        };
    }
}

/// `out[row] += Σ weights[row][i] * from[i]` over rows of `width`, a multiple of `S::LANES`.
///
/// # Safety
/// `weights` has `terms` terms for each of the `rows`, `from` has `terms` rows of `width`, and `out` has `rows` of them,
/// `out_row` elements apart.
#[inline(always)]
pub(super) unsafe fn gather<S: Simd>(
    s: S,
    (rows, terms, width): (usize, usize, usize),
    weights: Scalars,
    from: Rows,
    (out, out_row): (*mut f32, usize),
) {
    let mut i = 0;
    while i < width {
        let from = Vectors { start: from.start.wrapping_add(i), step: from.stride };
        let out = (out.wrapping_add(i), out_row);
        // SAFETY: the caller vouches for the rows, and the vectors end at `width`.
        let vectors = unsafe {
            match (width - i) / S::LANES {
                4.. if S::REGISTERS == 32 => {
                    product::<S, 4, 4>(s, (rows, terms), weights, from, out, Add);
                    4
                }
                2.. => {
                    product::<S, 2, 4>(s, (rows, terms), weights, from, out, Add);
                    2
                }
                _ => {
                    product::<S, 1, 4>(s, (rows, terms), weights, from, out, Add);
                    1
                }
            }
        };
        i += vectors * S::LANES;
    }
}

/// Writes a tile and returns the number of its rows.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn finish<S: Simd, const R: usize, const N: usize>(
    s: S,
    sums: [[S::V; R]; N],
    out: *mut f32,
    out_row: usize,
    update: impl Update<S>,
) -> usize {
    for (n, sums) in sums.iter().enumerate() {
        for (r, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller vouches for the elements.
            unsafe {
                let to = out.add(n * out_row + r * S::LANES);
                s.store(to, update.apply(s, to, r, sum));
            }
        }
    }
    N
}

/// What becomes of an element of `out` when its sum is known.
pub(super) trait Update<S: Simd>: Copy {
    /// # Safety
    /// `out` points at a vector of initialised elements.
    unsafe fn apply(self, s: S, out: *const f32, r: usize, sum: S::V) -> S::V;
}

/// The sum replaces what was there.
#[derive(Clone, Copy)]
pub(super) struct Set;

impl<S: Simd> Update<S> for Set {
    #[inline(always)]
    unsafe fn apply(self, _: S, _: *const f32, _: usize, sum: S::V) -> S::V {
        sum
    }
}

/// The sum is added.
#[derive(Clone, Copy)]
pub(super) struct Add;

impl<S: Simd> Update<S> for Add {
    #[inline(always)]
    unsafe fn apply(self, s: S, out: *const f32, _: usize, sum: S::V) -> S::V {
        // SAFETY: the caller vouches for the elements.
        s.add(unsafe { s.load(out) }, sum)
    }
}

/// What was there is multiplied by a vector of factors per column, then the sum is added.
#[derive(Clone, Copy)]
pub(super) struct Rescale<V, const R: usize>(pub(super) [V; R]);

impl<S: Simd, const R: usize> Update<S> for Rescale<S::V, R> {
    #[inline(always)]
    unsafe fn apply(self, s: S, out: *const f32, r: usize, sum: S::V) -> S::V {
        // SAFETY: the caller vouches for the elements.
        s.fma(unsafe { s.load(out) }, self.0[r], sum)
    }
}
