//! Searches for the scale (and minimum) of least weighted error, in the order of operations of ggml's `make_qx_quants`,
//! `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants`, `make_qp_quants` and `quantize_row_iq4_nl_impl`, on which the bytes
//! depend.
//!
//! `x[i]` is weight `i` of all blocks of a batch, one block a lane (see [`crate::lanes`]). Every lane goes through all
//! candidates in their order and takes those that its own block would; levels are integers held in floats.

use crate::lanes::{Batch, Floats, Grid, MANTISSA, ROUNDER, Simd, transpose_part};

/// Blocks whose largest magnitude is below this are stored as zeros.
pub(crate) const NEGLIGIBLE: f32 = 1e-15;

/// ggml's `nearest_int`: rounds to nearest even by adding 1.5 * 2^23.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    let bits = (x + ROUNDER).to_bits() & MANTISSA;
    bits.cast_signed() - 0x0040_0000
}

/// The low byte, as C converts to an unsigned byte.
#[inline(always)]
pub(crate) fn code(x: i32) -> u8 {
    x.to_le_bytes()[0]
}

/// The greatest number above zero, else plus zero.
#[inline(always)]
pub(crate) fn greatest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |greatest, x| if *x > greatest { *x } else { greatest })
}

/// The value of largest magnitude (of equal ones, the first), and its magnitude.
#[inline(always)]
fn extreme<S: Simd, const N: usize>(simd: S, x: &[S::Floats; N]) -> (S::Floats, S::Floats) {
    let (mut extreme, mut largest) = (simd.splat(0.0), simd.splat(0.0));
    for x in x {
        let above = largest.less(x.abs());
        extreme = x.where_or(above, extreme);
        largest = x.abs().where_or(above, largest);
    }
    (extreme, largest)
}

/// Weights of the error: `importance * sqrt(mean_square + x^2)`.
#[inline(always)]
pub(crate) fn error_weights<F: Floats, const N: usize>(
    x: &[F; N],
    importance: &[F; N],
    mean_square: F,
) -> [F; N] {
    let mut weights = *importance;
    for (x, weight) in x.iter().zip(&mut weights) {
        *weight = *weight * (mean_square + *x * *x).sqrt();
    }
    weights
}

/// The sum, in order.
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, x: &[S::Floats]) -> S::Floats {
    x.iter().fold(simd.splat(0.0), |sum, x| sum + *x)
}

/// Squares of all.
#[inline(always)]
pub(crate) fn squares<F: Floats, const N: usize>(x: &[F; N]) -> [F; N] {
    let mut squares = *x;
    for x in &mut squares {
        *x = *x * *x;
    }
    squares
}

/// The sum of squares of super-blocks, in order.
#[inline(always)]
pub(crate) fn sum_of_squares<S: Simd>(simd: S, batch: &Batch<'_, [f32; 256]>) -> S::Floats {
    let mut sum = simd.splat(0.0);
    for index in 0..16 {
        for x in transpose_part::<_, 16>(simd, batch, index) {
            sum = sum + x * x;
        }
    }
    sum
}

/// What [`fit_scale`] finds.
#[derive(Clone, Copy)]
pub(crate) struct Scale<F> {
    /// Zero where all weights are negligible.
    pub scale: F,
    /// What the levels are made with. Where all weights are negligible, codes are zero instead.
    pub inverse: F,
}

/// Symmetric levels -`half` to `half`-1.
#[inline(always)]
pub(crate) fn fit_scale<S: Simd, const N: usize>(
    simd: S,
    half: f32,
    x: &[S::Floats; N],
    weights: &[S::Floats; N],
) -> Scale<S::Floats> {
    let zero = simd.splat(0.0);
    let (least, most) = (simd.splat(-half), simd.splat(half - 1.0));
    let (extreme, largest) = extreme(simd, x);
    let mut weighted = *x;
    for (x, w) in weighted.iter_mut().zip(weights) {
        *x = *w * *x;
    }
    let mut inverse = least / extreme;
    let (mut scale, mut best) = (zero, zero);
    for step in [0i8, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let candidate = simd.splat(-(half + 0.1 * f32::from(step))) / extreme;
        let (mut xl, mut ll) = (zero, zero);
        // The extreme weight times the candidate is `half + 0.1 * step` below zero, and no other is further from it.
        let may_fall_below = step >= 5;
        for i in 0..N {
            let mut l = (candidate * x[i]).nearest().least(most);
            if may_fall_below {
                l = l.greatest(least);
            }
            xl = xl + weighted[i] * l;
            ll = ll + weights[i] * l * l;
        }
        let this = xl / ll;
        if step == 0 {
            scale = this.where_or(ll.differs(zero), zero);
            best = scale * xl;
        } else {
            let better = zero.less(ll) & (best * ll).less(xl * xl);
            inverse = candidate.where_or(better, inverse);
            scale = this.where_or(better, scale);
            best = (this * xl).where_or(better, best);
        }
    }
    Scale { scale: zero.where_or(largest.less(simd.splat(NEGLIGIBLE)), scale), inverse }
}

/// The codes of [`fit_scale`], from 0 up.
#[inline(always)]
pub(crate) fn codes_of_scale<S: Simd, const N: usize>(
    simd: S,
    half: f32,
    x: &[S::Floats; N],
    inverse: S::Floats,
) -> [S::Floats; N] {
    let zero = simd.splat(0.0);
    let negligible = extreme(simd, x).1.less(simd.splat(NEGLIGIBLE));
    let mut codes = *x;
    for code in &mut codes {
        let level = (inverse * *code).nearest().least(simd.splat(half - 1.0)).greatest(simd.splat(-half));
        *code = zero.where_or(negligible, level + simd.splat(half));
    }
    codes
}

/// Candidates for the inverse scale: `first`, `first + step`, ... levels more than the plain one.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    pub first: f32,
    pub step: f32,
    pub count: u8,
    /// The absolute error counts, not the squared one.
    pub absolute: bool,
}

impl Steps {
    /// Those of all types where importance is given.
    pub const WEIGHTED: Self = Self { first: -0.9, step: 0.05, count: 37, absolute: false };
}

/// What [`fit_scale_and_minimum`] finds.
#[derive(Clone, Copy)]
pub(crate) struct Affine<F> {
    pub scale: F,
    /// With its sign changed.
    pub below: F,
    /// What the levels are made with: the inverse scale, and the minimum before the last improvement.
    pub inverse: F,
    pub from: F,
}

/// Levels 0 to `most` from a minimum that is not above zero.
#[inline(always)]
pub(crate) fn fit_scale_and_minimum<S: Simd, const N: usize>(
    simd: S,
    most: f32,
    x: &[S::Floats; N],
    weights: &[S::Floats; N],
    steps: Steps,
) -> Affine<S::Floats> {
    let (zero, one, levels) = (simd.splat(0.0), simd.splat(1.0), simd.splat(most));
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        min = x.least(min);
        max = x.greatest(max);
        sum_w = sum_w + *w;
        sum_x = sum_x + *w * *x;
    }
    min = zero.where_or(zero.less(min), min);
    let wide = min.less(max);
    let mut inverse = levels / (max - min);
    let mut from = min;
    let mut scale = one / inverse;
    let mut best = zero;
    for i in 0..N {
        let l = (inverse * (x[i] - min)).nearest().least(levels).greatest(zero);
        let difference = scale * l + min - x[i];
        let error = if steps.absolute { difference.abs() } else { difference * difference };
        best = best + weights[i] * error;
    }
    for step in 0..steps.count {
        let candidate = simd.splat(steps.first + steps.step * f32::from(step) + most) / (max - min);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (zero, zero, zero);
        let mut stored = [zero; N];
        for i in 0..N {
            let l = (candidate * (x[i] - min)).nearest().least(levels).greatest(zero);
            stored[i] = l;
            let wl = weights[i] * l;
            sum_l = sum_l + wl;
            sum_ll = sum_ll + wl * l;
            sum_xl = sum_xl + wl * x[i];
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        let above = zero.less(this_min);
        if S::Floats::any(above) {
            this_min = zero.where_or(above, this_min);
            this_scale = (sum_xl / sum_ll).where_or(above, this_scale);
        }
        let mut error = zero;
        for i in 0..N {
            let difference = this_scale * stored[i] + this_min - x[i];
            let this = if steps.absolute { difference.abs() } else { difference * difference };
            error = error + weights[i] * this;
        }
        let better = zero.less(determinant) & error.less(best);
        inverse = candidate.where_or(better, inverse);
        from = min.where_or(better, from);
        best = error.where_or(better, best);
        scale = this_scale.where_or(better, scale);
        min = this_min.where_or(wide & better, min);
    }
    Affine {
        scale: scale.where_or(wide, zero),
        below: negated(simd, min),
        inverse: inverse.where_or(wide, zero),
        from: from.where_or(wide, zero),
    }
}

/// With the sign changed, also that of zeros.
#[inline(always)]
fn negated<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    simd.splat(-0.0) - x
}

/// Tries for better levels one weight after the other, at most this often around.
const ROUNDS: usize = 5;

/// Symmetric levels -`half` to `half`-1, weighted by the squares of `x`; levels are improved one by one. `K` parts go side by
/// side, since each step waits for the one before. The scales; `codes` become the levels from 0 up, those of negligible parts zero.
#[inline(always)]
pub(crate) fn fit_levels<S: Simd, const N: usize, const K: usize>(
    simd: S,
    half: f32,
    x: &[[S::Floats; N]; K],
    codes: &mut [[S::Floats; N]; K],
) -> [S::Floats; K] {
    let zero = simd.splat(0.0);
    let (least, most) = (simd.splat(-half), simd.splat(half - 1.0));
    let (mut xl, mut ll) = ([zero; K], [zero; K]);
    let mut negligible = [zero.less(zero); K];
    let levels = codes;
    for k in 0..K {
        let (extreme, largest) = extreme(simd, &x[k]);
        negligible[k] = largest.less(simd.splat(NEGLIGIBLE));
        let inverse = least / extreme;
        for i in 0..N {
            let x = x[k][i];
            let l = (inverse * x).nearest().least(most).greatest(least);
            levels[k][i] = l;
            let w = x * x;
            xl[k] = xl[k] + w * x * l;
            ll[k] = ll[k] + w * l * l;
        }
    }
    // A round without change in a lane leaves it as it is, so the rounds that other lanes need do it no harm.
    for _ in 0..ROUNDS {
        let mut changed = false;
        for i in 0..N {
            for k in 0..K {
                let (x, l) = (x[k][i], levels[k][i]);
                let w = x * x;
                let (wx, wl) = (w * x, w * l);
                let without_xl = xl[k] - wx * l;
                let without_ll = ll[k] - wl * l;
                let other = (x * without_ll / without_xl).nearest().least(most).greatest(least);
                let with_xl = without_xl + wx * other;
                let with_ll = without_ll + w * other * other;
                let better = zero.less(without_xl)
                    & other.differs(l)
                    & zero.less(with_ll)
                    & (xl[k] * xl[k] * with_ll).less(with_xl * with_xl * ll[k]);
                levels[k][i] = other.where_or(better, l);
                xl[k] = with_xl.where_or(better, xl[k]);
                ll[k] = with_ll.where_or(better, ll[k]);
                changed |= S::Floats::any(better);
            }
        }
        if !changed {
            break;
        }
    }
    let mut scales = xl;
    for k in 0..K {
        scales[k] = (xl[k] / ll[k]).where_or(zero.less(ll[k]), zero);
        scales[k] = zero.where_or(negligible[k], scales[k]);
        for level in &mut levels[k] {
            *level = zero.where_or(negligible[k], *level + simd.splat(half));
        }
    }
    scales
}

/// Levels 0 to `most` for scales or minimums, which ggml takes for positive: a negative one becomes the low byte of its level,
/// in places and not in others. The scale and the codes.
#[inline(always)]
pub(crate) fn fit_positive<S: Simd, const N: usize>(
    simd: S,
    most: f32,
    x: &[S::Floats; N],
    weights: &[S::Floats; N],
) -> (S::Floats, [S::Floats; N]) {
    let (zero, one, levels) = (simd.splat(0.0), simd.splat(1.0), simd.splat(most));
    let greatest = x.iter().fold(zero, |greatest, x| greatest.greatest(*x));
    let negligible = greatest.less(simd.splat(NEGLIGIBLE));
    let mut inverse = levels / greatest;
    let mut best = zero;
    let scale = one / inverse;
    for i in 0..N {
        let difference = x[i] - scale * (inverse * x[i]).nearest().low_byte();
        best = best + weights[i] * difference * difference;
    }
    for step in [-4i8, -3, -2, -1, 1, 2, 3, 4] {
        let candidate = simd.splat(0.1 * f32::from(step) + most) / greatest;
        let scale = one / candidate;
        let mut error = zero;
        for i in 0..N {
            let difference = x[i] - scale * (candidate * x[i]).nearest().least(levels);
            error = error + weights[i] * difference * difference;
        }
        let better = error.less(best);
        best = error.where_or(better, best);
        inverse = candidate.where_or(better, inverse);
    }
    let (mut xl, mut ll) = (zero, zero);
    let mut codes = *x;
    for i in 0..N {
        let l = (inverse * x[i]).nearest().least(levels);
        codes[i] = l.low_byte();
        xl = xl + weights[i] * x[i] * l;
        ll = ll + weights[i] * l * l;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for i in 0..N {
            let (x, w, l) = (x[i], weights[i], codes[i]);
            let without_xl = xl - w * x * l;
            let without_ll = ll - w * l * l;
            let other = (x * without_ll / without_xl).nearest().least(levels);
            let with_xl = without_xl + w * x * other;
            let with_ll = without_ll + w * other * other;
            let better = zero.less(without_xl)
                & zero.less(without_ll)
                & other.differs(l)
                & (xl * xl * with_ll).less(with_xl * with_xl * ll);
            codes[i] = other.low_byte().where_or(better, l);
            xl = with_xl.where_or(better, xl);
            ll = with_ll.where_or(better, ll);
            changed |= S::Floats::any(better);
        }
        if !changed {
            break;
        }
    }
    for code in &mut codes {
        *code = zero.where_or(negligible, *code);
    }
    let scale = (xl / ll).where_or(zero.less(ll), zero);
    (zero.where_or(negligible, scale), codes)
}

#[inline(always)]
fn grid_sums<S: Simd, const N: usize>(
    simd: S,
    grid: &Grid,
    x: &[S::Floats; N],
    weights: &[S::Floats; N],
    inverse: S::Floats,
) -> (S::Floats, S::Floats) {
    let (mut xq, mut qq) = (simd.splat(0.0), simd.splat(0.0));
    for i in 0..N {
        let q = (inverse * x[i]).nearest_of(grid);
        let wq = weights[i] * q;
        xq = xq + wq * x[i];
        qq = qq + wq * q;
    }
    (xq, qq)
}

/// The scale of a grid whose first value is the one of largest magnitude.
#[inline(always)]
pub(crate) fn fit_grid<S: Simd, const N: usize>(
    simd: S,
    grid: &Grid,
    x: &[S::Floats; N],
    weights: &[S::Floats; N],
) -> S::Floats {
    let zero = simd.splat(0.0);
    let (extreme, largest) = extreme(simd, x);
    let first = simd.splat(grid.values[0]);
    let (xq, qq) = grid_sums(simd, grid, x, weights, simd.splat(1.0) / (negated(simd, extreme) / first));
    let mut scale = (xq / qq).where_or(zero.less(qq), zero);
    let mut best = scale * xq;
    for step in -7i8..=7 {
        let candidate = simd.splat(f32::from(step) + grid.values[0]) / extreme;
        let (xq, qq) = grid_sums(simd, grid, x, weights, candidate);
        let this = xq / qq;
        let better = zero.less(qq) & (best * qq).less(xq * xq);
        scale = this.where_or(better, scale);
        best = (this * xq).where_or(better, best);
    }
    zero.where_or(largest.less(simd.splat(NEGLIGIBLE)), scale)
}
