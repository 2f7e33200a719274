//! The search for the scale, or scale and minimum, that loses least: every K format and every weighted format uses it.
//!
//! All groups of a block are searched side by side, one in each lane, so that the compiler can use vectors while the
//! sums of a group keep the order that ggml's bytes depend on. It knows no layout of bytes.
//! Source of the algorithms: <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

/// Values of `L` groups of `N`: `columns[i][lane]` is value `i` of group `lane`.
pub(super) type Columns<const L: usize, const N: usize> = [[f32; L]; N];

/// Groups whose largest magnitude is below this count as zeros.
pub(super) const NOTHING: f32 = 1e-15;

/// Turns groups that lie one after the other into columns.
pub(super) fn columns<const L: usize, const N: usize>(values: &[f32]) -> Columns<L, N> {
    let mut columns = [[0.0; L]; N];
    for (lane, group) in values.chunks_exact(N).enumerate() {
        for (column, value) in columns.iter_mut().zip(group) {
            column[lane] = *value;
        }
    }
    columns
}

/// The nearest whole number, halves to even. Beyond ±2²² the result is arbitrary but small, zero for infinities.
#[inline(always)]
pub(super) fn whole(value: f32) -> f32 {
    // In the binade of 1.5 · 2²³ the last bit of the mantissa is worth one.
    let shifted = (value + 12_582_912.0).to_bits();
    ((shifted & 0x007f_ffff) as i32 - 0x0040_0000) as f32
}

/// `value` within `low..=high`.
#[inline(always)]
pub(super) fn within(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

/// Which scales are tried: `(levels + first + step · i) / range` for `i` in `0..=count`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) count: usize,
    /// Whether errors count by their size instead of their square.
    pub(super) absolute: bool,
}

/// What the weighted formats try.
pub(super) const FINE: Steps = Steps { first: -0.9, step: 0.05, count: 36, absolute: false };

/// Groups as `scale · quant - minimum`.
pub(super) struct Affine<const L: usize, const N: usize> {
    pub(super) scale: [f32; L],
    /// Never negative.
    pub(super) minimum: [f32; L],
    pub(super) quants: Columns<L, N>,
}

/// The sums that a fit by least squares needs.
struct Moments<const L: usize> {
    w: [f32; L],
    x: [f32; L],
    q: [f32; L],
    qq: [f32; L],
    qx: [f32; L],
}

/// Sums of products with the quants that `factor` and `low` lead to, which are left in `quants`.
#[inline(always)]
fn project<const L: usize, const N: usize>(
    (x, weights): (&Columns<L, N>, &Columns<L, N>),
    levels: f32,
    (factor, low): (&[f32; L], &[f32; L]),
    moments: &mut Moments<L>,
    quants: &mut Columns<L, N>,
) {
    (moments.q, moments.qq, moments.qx) = ([0.0; L], [0.0; L], [0.0; L]);
    for i in 0..N {
        for lane in 0..L {
            let q = within(whole(factor[lane] * (x[i][lane] - low[lane])), 0.0, levels);
            let wq = weights[i][lane] * q;
            quants[i][lane] = q;
            moments.q[lane] += wq;
            moments.qq[lane] += wq * q;
            moments.qx[lane] += wq * x[i][lane];
        }
    }
}

/// The weighted error of `scale · quant + low`.
#[inline(always)]
fn error<const L: usize, const N: usize>(
    (x, weights): (&Columns<L, N>, &Columns<L, N>),
    quants: &Columns<L, N>,
    (scale, low): (&[f32; L], &[f32; L]),
    absolute: bool,
) -> [f32; L] {
    let mut sum = [0.0; L];
    for i in 0..N {
        for lane in 0..L {
            let off = scale[lane] * quants[i][lane] + low[lane] - x[i][lane];
            sum[lane] += weights[i][lane] * if absolute { off.abs() } else { off * off };
        }
    }
    sum
}

/// Finds scales and minima for quants `0..=levels`: each candidate scale gives quants, these a fit by least squares, and
/// the fit with the smallest error stays.
pub(super) fn affine<const L: usize, const N: usize>(
    x: &Columns<L, N>,
    weights: &Columns<L, N>,
    levels: f32,
    steps: &Steps,
) -> Affine<L, N> {
    let (mut low, mut high) = (x[0], x[0]);
    let mut moments = Moments { w: weights[0], x: [0.0; L], q: [0.0; L], qq: [0.0; L], qx: [0.0; L] };
    for lane in 0..L {
        moments.x[lane] = weights[0][lane] * x[0][lane];
    }
    for (x, weights) in x.iter().zip(weights).skip(1) {
        for lane in 0..L {
            let value = x[lane];
            low[lane] = if value < low[lane] { value } else { low[lane] };
            high[lane] = if value > high[lane] { value } else { high[lane] };
            moments.w[lane] += weights[lane];
            moments.x[lane] += weights[lane] * value;
        }
    }
    let low = low.map(|low| if low > 0.0 { 0.0 } else { low });
    let mut quants = [[0.0; L]; N];
    // A group of equal values has an infinite factor, quants of 0 and no better fit.
    let factor: [f32; L] = std::array::from_fn(|lane| levels / (high[lane] - low[lane]));
    project((x, weights), levels, (&factor, &low), &mut moments, &mut quants);
    let scale = factor.map(|factor| 1.0 / factor);
    let least = error((x, weights), &quants, (&scale, &low), steps.absolute);
    let mut best = Best { least, scale, low, factor, origin: low };
    for step in 0..=steps.count {
        let reach = steps.first + steps.step * step as f32 + levels;
        let origin = best.low;
        let factor: [f32; L] = std::array::from_fn(|lane| reach / (high[lane] - origin[lane]));
        project((x, weights), levels, (&factor, &origin), &mut moments, &mut quants);
        let (scale, low, solvable) = moments.solve();
        let error = error((x, weights), &quants, (&scale, &low), steps.absolute);
        for lane in 0..L {
            let better = solvable[lane] && error[lane] < best.least[lane];
            best.least[lane] = if better { error[lane] } else { best.least[lane] };
            best.scale[lane] = if better { scale[lane] } else { best.scale[lane] };
            best.low[lane] = if better { low[lane] } else { best.low[lane] };
            best.factor[lane] = if better { factor[lane] } else { best.factor[lane] };
            best.origin[lane] = if better { origin[lane] } else { best.origin[lane] };
        }
    }
    project((x, weights), levels, (&best.factor, &best.origin), &mut moments, &mut quants);
    Affine { scale: best.scale, minimum: best.low.map(|low| -low), quants }
}

/// The best fit so far, and the factor and origin that its quants come from.
struct Best<const L: usize> {
    least: [f32; L],
    scale: [f32; L],
    low: [f32; L],
    factor: [f32; L],
    origin: [f32; L],
}

impl<const L: usize> Moments<L> {
    /// Scale and lowest value by least squares, the latter at most 0; and whether there is a solution.
    #[inline(always)]
    fn solve(&self) -> ([f32; L], [f32; L], [bool; L]) {
        let (mut scale, mut low, mut solvable) = ([0.0; L], [0.0; L], [false; L]);
        for lane in 0..L {
            let (w, x, q) = (self.w[lane], self.x[lane], self.q[lane]);
            let (qq, qx) = (self.qq[lane], self.qx[lane]);
            let determinant = w * qq - q * q;
            let fitted = (qq * x - q * qx) / determinant;
            let above = fitted > 0.0;
            scale[lane] = if above { qx / qq } else { (w * qx - x * q) / determinant };
            low[lane] = if above { 0.0 } else { fitted };
            solvable[lane] = determinant > 0.0;
        }
        (scale, low, solvable)
    }
}

/// Groups as `scale · (quant - levels)`.
pub(super) struct Symmetric<const L: usize, const N: usize> {
    pub(super) scale: [f32; L],
    /// In `0..2 · levels`; 0 in groups of zeros.
    pub(super) quants: Columns<L, N>,
}

/// The value of largest magnitude of each group, the first of equals.
fn extreme<const L: usize, const N: usize>(x: &Columns<L, N>) -> [f32; L] {
    let (mut magnitude, mut extreme) = ([0.0f32; L], [0.0f32; L]);
    for x in x {
        for lane in 0..L {
            let larger = x[lane].abs() > magnitude[lane];
            magnitude[lane] = if larger { x[lane].abs() } else { magnitude[lane] };
            extreme[lane] = if larger { x[lane] } else { extreme[lane] };
        }
    }
    extreme
}

/// The sums of `w·x·q` and `w·q²` for the quants that `factor` leads to.
#[inline(always)]
fn correlate<const L: usize, const N: usize>(
    x: &Columns<L, N>,
    weights: &Columns<L, N>,
    levels: f32,
    factor: &[f32; L],
) -> ([f32; L], [f32; L]) {
    let (mut qx, mut qq) = ([0.0; L], [0.0; L]);
    for i in 0..N {
        for lane in 0..L {
            let q = within(whole(factor[lane] * x[i][lane]), -levels, levels - 1.0);
            let w = weights[i][lane];
            qx[lane] += w * x[i][lane] * q;
            qq[lane] += w * q * q;
        }
    }
    (qx, qq)
}

/// Finds scales for quants `-levels..levels`; the extreme value of a group gets the lowest.
pub(super) fn symmetric<const L: usize, const N: usize>(
    x: &Columns<L, N>,
    weights: &Columns<L, N>,
    levels: f32,
) -> Symmetric<L, N> {
    let extreme = extreme(x);
    let mut chosen = extreme.map(|extreme| -levels / extreme);
    let (qx, qq) = correlate(x, weights, levels, &chosen);
    let mut scale: [f32; L] =
        std::array::from_fn(|lane| if qq[lane] != 0.0 { qx[lane] / qq[lane] } else { 0.0 });
    let mut best: [f32; L] = std::array::from_fn(|lane| scale[lane] * qx[lane]);
    for step in (-9..=9i8).filter(|step| *step != 0) {
        let reach = -(levels + 0.1 * f32::from(step));
        let factor = extreme.map(|extreme| reach / extreme);
        let (qx, qq) = correlate(x, weights, levels, &factor);
        for lane in 0..L {
            if qq[lane] > 0.0 && qx[lane] * qx[lane] > best[lane] * qq[lane] {
                scale[lane] = qx[lane] / qq[lane];
                best[lane] = scale[lane] * qx[lane];
                chosen[lane] = factor[lane];
            }
        }
    }
    let mut quants = [[0.0; L]; N];
    for lane in 0..L {
        if extreme[lane].abs() < NOTHING {
            scale[lane] = 0.0;
            continue;
        }
        for (quants, x) in quants.iter_mut().zip(x) {
            quants[lane] = within(whole(chosen[lane] * x[lane]), -levels, levels - 1.0) + levels;
        }
    }
    Symmetric { scale, quants }
}

/// Rounds of [`descend`] and [`positive`] at most.
const SWEEPS: usize = 5;

/// As [`symmetric`] with squares as weights, but from one scale on each value moves to the quant that fits best with all
/// others, until none moves.
pub(super) fn descend<const L: usize, const N: usize>(x: &Columns<L, N>, levels: f32) -> Symmetric<L, N> {
    let extreme = extreme(x);
    let factor = extreme.map(|extreme| -levels / extreme);
    let mut quants = [[0.0; L]; N];
    let (mut qx, mut qq) = ([0.0; L], [0.0; L]);
    for i in 0..N {
        for lane in 0..L {
            let x = x[i][lane];
            let q = within(whole(factor[lane] * x), -levels, levels - 1.0);
            quants[i][lane] = q;
            qx[lane] += x * x * x * q;
            qq[lane] += x * x * q * q;
        }
    }
    for _ in 0..SWEEPS {
        let mut moved = false;
        for i in 0..N {
            for lane in 0..L {
                let (x, q) = (x[i][lane], quants[i][lane]);
                let w = x * x;
                let (rest_x, rest_q) = (qx[lane] - w * x * q, qq[lane] - w * q * q);
                let other = within(whole(x * rest_q / rest_x), -levels, levels - 1.0);
                let (new_x, new_q) = (rest_x + w * x * other, rest_q + w * other * other);
                let better = rest_x > 0.0
                    && other != q
                    && new_q > 0.0
                    && new_x * new_x * qq[lane] > qx[lane] * qx[lane] * new_q;
                quants[i][lane] = if better { other } else { q };
                qx[lane] = if better { new_x } else { qx[lane] };
                qq[lane] = if better { new_q } else { qq[lane] };
                moved |= better;
            }
        }
        if !moved {
            break;
        }
    }
    let mut scale = [0.0; L];
    for lane in 0..L {
        let alive = extreme[lane].abs() >= NOTHING;
        scale[lane] = if alive && qq[lane] > 0.0 { qx[lane] / qq[lane] } else { 0.0 };
        for quants in &mut quants {
            quants[lane] = if alive { quants[lane] + levels } else { 0.0 };
        }
    }
    Symmetric { scale, quants }
}

/// The scale and quants `0..=levels` of a few numbers that are not negative, such as the scales of groups.
pub(super) fn positive<const N: usize>(x: &[f32; N], weights: &[f32; N], levels: f32) -> (f32, [u8; N]) {
    let high = x.iter().fold(0.0f32, |high, x| if *x > high { *x } else { high });
    if high < NOTHING {
        return (0.0, [0; N]);
    }
    let quant = |factor: f32, x: f32| within(whole(factor * x), 0.0, levels);
    let loss = |factor: f32| {
        let scale = 1.0 / factor;
        x.iter().zip(weights).fold(0.0f32, |sum, (x, w)| {
            let off = x - scale * quant(factor, *x);
            sum + w * off * off
        })
    };
    let mut chosen = levels / high;
    let mut least = loss(chosen);
    for step in (-4..=4i8).filter(|step| *step != 0) {
        let factor = (0.1 * f32::from(step) + levels) / high;
        let loss = loss(factor);
        if loss < least {
            (least, chosen) = (loss, factor);
        }
    }
    let mut quants: [f32; N] = std::array::from_fn(|i| quant(chosen, x[i]));
    let (mut qx, mut qq) = (0.0, 0.0);
    for i in 0..N {
        qx += weights[i] * x[i] * quants[i];
        qq += weights[i] * quants[i] * quants[i];
    }
    for _ in 0..SWEEPS {
        let mut moved = false;
        for i in 0..N {
            let (x, w, q) = (x[i], weights[i], quants[i]);
            let (rest_x, rest_q) = (qx - w * x * q, qq - w * q * q);
            let other = within(whole(x * rest_q / rest_x), 0.0, levels);
            if rest_x <= 0.0 || rest_q <= 0.0 || other == q {
                continue;
            }
            let (new_x, new_q) = (rest_x + w * x * other, rest_q + w * other * other);
            if new_x * new_x * qq > qx * qx * new_q {
                (quants[i], qx, qq, moved) = (other, new_x, new_q, true);
            }
        }
        if !moved {
            break;
        }
    }
    let scale = if qq > 0.0 { qx / qq } else { 0.0 };
    (scale, quants.map(|q| q as u8))
}
