//! Vectors of f32 whose width is chosen at run time, so that a kernel is written once for every instruction set.
//!
//! A kernel implements [`Kernel`] over any [`Simd`]; [`Level::run`] compiles it once per instruction set and picks the
//! one to run. It does not hold matrix products of weights, which have layouts and instructions of their own.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ptr;
use std::sync::OnceLock;

use half::{bf16, f16};

use super::cpu::KERNEL_VARIABLE;

/// Lanes of the widest vector.
pub(crate) const MAX_LANES: usize = 16;

/// Vector arithmetic of one instruction set. A value is a proof that the processor has the instructions.
pub(crate) trait Simd: Copy {
    /// A vector of f32.
    type V: Copy;
    /// Elements of a vector; a power of two, at most [`MAX_LANES`].
    const LANES: usize;
    /// Vector registers.
    const REGISTERS: usize;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `from` points at `LANES` readable elements.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V;
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load_f16(self, from: *const f16) -> Self::V;
    /// # Safety
    /// `to` points at `LANES` writable elements.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each pair; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each pair; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `yes` in the lanes where `a < b`, else `no`.
    fn if_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// The nearest whole numbers.
    fn round(self, v: Self::V) -> Self::V;
    /// `v * 2^n` for whole `n` in `-126..=128`.
    fn scale_by_power(self, v: Self::V, n: Self::V) -> Self::V;
    /// The sum of the lanes.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, v: Self::V) -> f32;
    /// The sum of each vector.
    fn sums(self, v: &[Self::V; 8]) -> [f32; 8];

    /// The first `n <= LANES` elements at `from`, then zeros.
    ///
    /// # Safety
    /// `from` points at `n` readable elements.
    #[inline(always)]
    unsafe fn load_first<T: Element>(self, from: *const T, n: usize) -> Self::V {
        if n == Self::LANES {
            // SAFETY: the caller vouches for `LANES` elements.
            return unsafe { T::load(self, from) };
        }
        let mut lanes = [T::ZERO; MAX_LANES];
        // SAFETY: the caller vouches for `n` elements, and `lanes` holds more.
        unsafe {
            ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n.min(Self::LANES));
            T::load(self, lanes.as_ptr())
        }
    }

    /// Writes the first `n <= LANES` elements of `v`.
    ///
    /// # Safety
    /// `to` points at `n` writable elements.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize, v: Self::V) {
        if n == Self::LANES {
            // SAFETY: the caller vouches for `LANES` elements.
            return unsafe { self.store(to, v) };
        }
        let mut lanes = [0f32; MAX_LANES];
        // SAFETY: `lanes` holds any vector, and the caller vouches for `n` elements.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            ptr::copy_nonoverlapping(lanes.as_ptr(), to, n.min(Self::LANES));
        }
    }

    /// `e^x` within 2 ulp; 0 where the result would be below the smallest normal number, infinity at the latest from
    /// 2^128 and at the earliest from 2^127.5 on.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // ln 2 in two parts, of which the first times any exponent is exact.
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let clamped = self.max(self.splat(-88.0), self.min(self.splat(89.5), x));
        let n = self.round(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        let n = self.min(self.splat(128.0), n);
        let r = self.fma(n, self.splat(-LN2_HIGH), clamped);
        let r = self.fma(n, self.splat(-LN2_LOW), r);
        let y = self.scale_by_power(self.exp_near_zero(r), self.max(self.splat(-126.0), n));
        self.if_less(x, self.splat(-87.336_54), self.splat(0.0), y)
    }

    /// `2^x` within 2 ulp; 0 below `x = -126`, infinity at the latest from `x = 128` and at the earliest from 127.5 on.
    #[inline(always)]
    fn exp2(self, x: Self::V) -> Self::V {
        let clamped = self.max(self.splat(-126.0), self.min(self.splat(128.0), x));
        let n = self.round(clamped);
        let r = self.mul(self.sub(clamped, n), self.splat(std::f32::consts::LN_2));
        let y = self.scale_by_power(self.exp_near_zero(r), n);
        self.if_less(x, self.splat(-126.0), self.splat(0.0), y)
    }

    /// `e^r` for `|r| <= ln 2 / 2`: the minimax polynomial of degree 6 whose first two terms are 1 and `r`, wrong by at
    /// most 3e-9 before rounding.
    #[inline(always)]
    fn exp_near_zero(self, r: Self::V) -> Self::V {
        const COEFFICIENTS: [f32; 4] = [8.368_745e-3, 4.166_839e-2, 0.166_665_21, 0.499_999_94];
        let mut y = self.splat(1.381_453_9e-3);
        for c in COEFFICIENTS {
            y = self.fma(y, r, self.splat(c));
        }
        self.fma(self.mul(y, r), r, self.add(r, self.splat(1.0)))
    }
}

/// A number that vectors of f32 can be read from.
pub(crate) trait Element: Copy + Send + Sync {
    const ZERO: Self;
    /// # Safety
    /// `from` points at `S::LANES` readable elements.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V;
}

macro_rules! element {
    ($type:ty, $load:ident, $zero:expr) => {
        impl Element for $type {
            const ZERO: Self = $zero;
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
                // SAFETY: the caller keeps the promise that `load` asks for.
                unsafe { s.$load(from) }
            }
        }
    };
}

element!(f32, load, 0.0);
element!(bf16, load_bf16, bf16::ZERO);
element!(f16, load_f16, f16::ZERO);

/// Work that is compiled for every instruction set; `run` must be `#[inline(always)]` to be so.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The set in use: the widest one, or the one that [`KERNEL_VARIABLE`] names. Decided at the first call.
    #[inline]
    pub(crate) fn current() -> Self {
        static CURRENT: OnceLock<Level> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let forced = std::env::var(KERNEL_VARIABLE).unwrap_or_default();
            let mut levels = Self::all();
            let best = levels[levels.len() - 1];
            // Names of sets that only the products of weights have, such as "avx512bf16", choose the widest set here.
            levels.retain(|level| level.name() == forced.trim());
            levels.pop().unwrap_or(best)
        })
    }

    fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "scalar",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
        }
    }

    /// Every set of this processor, the widest last.
    pub(crate) fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let wider = [(x86::has_avx2(), Set::Avx2), (x86::has_avx512(), Set::Avx512)];
        #[cfg(not(target_arch = "x86_64"))]
        let wider: [(bool, Set); 0] = [];
        let there = wider.into_iter().filter_map(|(has, set)| has.then_some(Self(set)));
        std::iter::once(Self(Set::Portable)).chain(there).collect()
    }

    /// Runs `kernel` compiled for this set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Set::Portable => kernel.run(portable::Portable),
            // SAFETY: a level of this set is only made after the processor was asked for it.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { x86::run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { x86::run_avx512(kernel) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map<'a, F>(&'a [f32], F);

    trait Function: Copy {
        fn of<S: Simd>(self, s: S, v: S::V) -> S::V;
    }

    impl<F: Function> Kernel for Map<'_, F> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0f32; self.0.len()];
            for (x, y) in self.0.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                // SAFETY: both chunks have the length given.
                unsafe {
                    s.store_first(y.as_mut_ptr(), y.len(), self.1.of(s, s.load_first(x.as_ptr(), x.len())))
                };
            }
            out
        }
    }

    #[derive(Clone, Copy)]
    struct Exp;
    impl Function for Exp {
        fn of<S: Simd>(self, s: S, v: S::V) -> S::V {
            s.exp(v)
        }
    }

    #[derive(Clone, Copy)]
    struct Exp2;
    impl Function for Exp2 {
        fn of<S: Simd>(self, s: S, v: S::V) -> S::V {
            s.exp2(v)
        }
    }

    fn check(xs: &[f32], ys: &[f32], exact: impl Fn(f64) -> f64, level: Level) {
        for (&x, &y) in xs.iter().zip(ys) {
            let want = exact(f64::from(x));
            if want < f64::from(f32::MIN_POSITIVE) {
                assert!(f64::from(y) <= f64::from(f32::MIN_POSITIVE), "{level:?} {x}: {y}");
            } else if want as f32 == f32::INFINITY {
                assert_eq!(y, f32::INFINITY, "{level:?} {x}");
            } else if want < 127.5f64.exp2() || y != f32::INFINITY {
                let ulp = f64::from(f32::EPSILON) * want / 2.0;
                assert!((f64::from(y) - want).abs() <= 4.0 * ulp, "{level:?} {x}: {y} is not {want}");
            }
        }
    }

    #[test]
    fn exponentials_are_within_two_ulp() {
        let xs: Vec<f32> = (-130_000..=130_000).map(|i| i as f32 * 1.003e-3).collect();
        for level in Level::all() {
            check(&xs, &level.run(Map(&xs, Exp)), f64::exp, level);
            check(&xs, &level.run(Map(&xs, Exp2)), f64::exp2, level);
        }
    }

    #[test]
    fn exponentials_of_special_numbers() {
        let xs = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0, -0.0, -1e30, 1e30];
        for level in Level::all() {
            for ys in [level.run(Map(&xs, Exp)), level.run(Map(&xs, Exp2))] {
                assert!(ys[2].is_nan(), "{level:?}");
                let want = [0.0, f32::INFINITY, 1.0, 1.0, 0.0, f32::INFINITY];
                assert_eq!([ys[0], ys[1], ys[3], ys[4], ys[5], ys[6]], want, "{level:?}");
            }
        }
    }

    struct Lanes;
    impl Kernel for Lanes {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let numbers: Vec<f32> = (0..8 * MAX_LANES).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let rows: Vec<&[f32]> = numbers.chunks(MAX_LANES).map(|row| &row[..S::LANES]).collect();
            // SAFETY: every row holds `LANES` elements.
            let vectors: [S::V; 8] = std::array::from_fn(|i| unsafe { s.load(rows[i].as_ptr()) });
            for (i, row) in rows.iter().enumerate() {
                assert_eq!(s.sums(&vectors)[i], row.iter().sum::<f32>());
                assert_eq!(s.sum(vectors[i]), row.iter().sum::<f32>());
                assert_eq!(s.largest(vectors[i]), row.iter().copied().fold(f32::MIN, f32::max));
            }
            let b: Vec<bf16> = rows[0].iter().map(|&x| bf16::from_f32(x)).collect();
            let h: Vec<f16> = rows[0].iter().map(|&x| f16::from_f32(x)).collect();
            let mut out = [0f32; MAX_LANES];
            for n in 0..=S::LANES {
                // SAFETY: `n` elements are there to read and to write.
                unsafe {
                    s.store_first(out.as_mut_ptr(), n, s.load_first(b.as_ptr(), n));
                    assert_eq!(out[..n], rows[0][..n]);
                    s.store_first(out.as_mut_ptr(), n, s.load_first(h.as_ptr(), n));
                    assert_eq!(out[..n], rows[0][..n]);
                }
            }
            // SAFETY: `out` and `b` hold `LANES` elements.
            unsafe {
                s.store(
                    out.as_mut_ptr(),
                    s.if_less(s.splat(0.0), s.load_bf16(b.as_ptr()), s.splat(1.0), s.splat(2.0)),
                );
            }
            for i in 0..S::LANES {
                assert_eq!(out[i], if 0.0 < rows[0][i] { 1.0 } else { 2.0 });
            }
        }
    }

    #[test]
    fn lanes_add_up_and_convert() {
        for level in Level::all() {
            level.run(Lanes);
        }
    }
}
