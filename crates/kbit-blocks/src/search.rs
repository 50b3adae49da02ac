//! Searches for the scale (and minimum) of least weighted error, in the order of operations of ggml's `make_qx_quants`,
//! `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants` and `make_qp_quants`, on which the bytes depend.
//!
//! Sums run over the weights of a block in their order. What may run side by side are the candidates, one a lane.

use crate::legacy::extreme;

/// Blocks whose largest magnitude is below this are stored as zeros.
pub(crate) const NEGLIGIBLE: f32 = 1e-15;

/// ggml's `nearest_int`: rounds to nearest even by adding 1.5 * 2^23.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    let bits = (x + 12_582_912.0).to_bits().cast_signed();
    (bits & 0x007f_ffff) - 0x0040_0000
}

/// The low byte, as C converts to an unsigned byte.
#[inline(always)]
pub(crate) fn code(x: i32) -> u8 {
    x.to_le_bytes()[0]
}

/// Symmetric levels -`half` to `half`-1, stored from 0 up. The scale and the codes.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "levels and steps are small")]
pub(crate) fn fit_scale<const N: usize>(half: i32, x: &[f32; N], weights: &[f32; N]) -> (f32, [u8; N]) {
    /// The first candidate is the plain scale; the others are 0.1 levels apart, 9 on each side.
    const CANDIDATES: usize = 19;
    /// Whole vectors of any instruction set.
    const LANES: usize = 32;
    let extreme = extreme(x);
    if extreme.abs() < NEGLIGIBLE {
        return (0.0, [0; N]);
    }
    let levels = half as f32;
    let level = |inverse: f32, x: f32| nearest(inverse * x).min(half - 1).max(-half);
    let mut inverses = [-levels / extreme; LANES];
    let steps = (-9i8..=9).filter(|step| *step != 0);
    for (step, inverse) in steps.zip(&mut inverses[1..CANDIDATES]) {
        *inverse = -(levels + 0.1 * f32::from(step)) / extreme;
    }
    let (mut xl, mut ll) = ([0f32; LANES], [0f32; LANES]);
    for (x, w) in x.iter().zip(weights) {
        for lane in 0..LANES {
            let l = level(inverses[lane], *x) as f32;
            xl[lane] += w * x * l;
            ll[lane] += w * l * l;
        }
    }
    let mut chosen = 0;
    let mut scale = if ll[0] == 0.0 { 0.0 } else { xl[0] / ll[0] };
    let mut best = scale * xl[0];
    for candidate in 1..CANDIDATES {
        let (xl, ll) = (xl[candidate], ll[candidate]);
        if ll > 0.0 && xl * xl > best * ll {
            chosen = candidate;
            scale = xl / ll;
            best = scale * xl;
        }
    }
    let mut codes = [0; N];
    for (x, out) in x.iter().zip(&mut codes) {
        *out = code(half + level(inverses[chosen], *x));
    }
    (scale, codes)
}

/// Candidates for the inverse scale: `first`, `first + step`, ... levels more than the plain one.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    pub first: f32,
    pub step: f32,
    pub count: usize,
    /// The absolute error counts, not the squared one.
    pub absolute: bool,
}

impl Steps {
    /// Those of all types where importance is given.
    pub const WEIGHTED: Self = Self { first: -0.9, step: 0.05, count: 37, absolute: false };
}

/// Levels 0 to `most` from a minimum that is not above zero. The scale, the minimum with its sign changed, and the codes.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "levels and steps are small")]
pub(crate) fn fit_scale_and_minimum<const N: usize>(
    most: i32,
    x: &[f32; N],
    weights: &[f32; N],
    steps: Steps,
) -> (f32, f32, [u8; N]) {
    const LANES: usize = 16;
    let error = |difference: f32| if steps.absolute { difference.abs() } else { difference * difference };
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        min = if *x < min { *x } else { min };
        max = if *x > max { *x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        return (0.0, -min, [0; N]);
    }
    let levels = most as f32;
    let level = |inverse: f32, min: f32, x: f32| nearest(inverse * (x - min)).min(most).max(0);
    let inverse = levels / (max - min);
    let mut scale = 1.0 / inverse;
    let mut best = 0f32;
    for (x, w) in x.iter().zip(weights) {
        let difference = scale * level(inverse, min, *x) as f32 + min - x;
        best += w * error(difference);
    }
    // What the codes are made of: the minimum here is the one before the improvement.
    let mut chosen = (inverse, min);
    let mut next = 0;
    while next < steps.count {
        // A better minimum moves the levels of all later steps, so the lanes after the first improvement are done anew.
        let mut inverses = [0f32; LANES];
        for (lane, inverse) in inverses.iter_mut().enumerate() {
            *inverse = (steps.first + steps.step * (next + lane) as f32 + levels) / (max - min);
        }
        let (mut sum_l, mut sum_ll, mut sum_xl) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        for (x, w) in x.iter().zip(weights) {
            for lane in 0..LANES {
                let l = level(inverses[lane], min, *x) as f32;
                sum_l[lane] += w * l;
                sum_ll[lane] += w * l * l;
                sum_xl[lane] += w * l * x;
            }
        }
        let (mut scales, mut minimums, mut usable) = ([0f32; LANES], [0f32; LANES], [false; LANES]);
        for lane in 0..LANES {
            let determinant = sum_w * sum_ll[lane] - sum_l[lane] * sum_l[lane];
            usable[lane] = determinant > 0.0;
            let this_min = (sum_ll[lane] * sum_x - sum_l[lane] * sum_xl[lane]) / determinant;
            let this_scale = (sum_w * sum_xl[lane] - sum_x * sum_l[lane]) / determinant;
            let above = this_min > 0.0;
            minimums[lane] = if above { 0.0 } else { this_min };
            scales[lane] = if above { sum_xl[lane] / sum_ll[lane] } else { this_scale };
        }
        let mut errors = [0f32; LANES];
        for (x, w) in x.iter().zip(weights) {
            for lane in 0..LANES {
                let l = level(inverses[lane], min, *x) as f32;
                let difference = scales[lane] * l + minimums[lane] - x;
                errors[lane] += w * error(difference);
            }
        }
        let better = (0..LANES.min(steps.count - next)).find(|lane| usable[*lane] && errors[*lane] < best);
        let Some(lane) = better else {
            next += LANES;
            continue;
        };
        chosen = (inverses[lane], min);
        (best, scale, min) = (errors[lane], scales[lane], minimums[lane]);
        next += lane + 1;
    }
    let mut codes = [0; N];
    for (x, out) in x.iter().zip(&mut codes) {
        *out = code(level(chosen.0, chosen.1, *x));
    }
    (scale, -min, codes)
}

/// Tries for better levels one weight after the other, at most this often around.
const ROUNDS: usize = 5;

/// Symmetric levels -`half` to `half`-1, stored from 0 up, weighted by the squares of `x`; levels are improved one by one.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "levels are small")]
pub(crate) fn fit_levels<const N: usize>(half: i32, x: &[f32; N]) -> (f32, [u8; N]) {
    let extreme = extreme(x);
    if extreme.abs() < NEGLIGIBLE {
        return (0.0, [0; N]);
    }
    let inverse = -(half as f32) / extreme;
    let clamp = |level: i32| level.min(half - 1).max(-half);
    let mut levels = x.map(|x| clamp(nearest(inverse * x)));
    let (mut xl, mut ll) = (0f32, 0f32);
    for (x, level) in x.iter().zip(levels) {
        let (w, l) = (x * x, level as f32);
        xl += w * x * l;
        ll += w * l * l;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for (x, level) in x.iter().zip(&mut levels) {
            let (w, l) = (x * x, *level as f32);
            let mut without_xl = xl - w * x * l;
            if without_xl > 0.0 {
                let mut without_ll = ll - w * l * l;
                let other = clamp(nearest(x * without_ll / without_xl));
                if other != *level {
                    let l = other as f32;
                    without_xl += w * x * l;
                    without_ll += w * l * l;
                    if without_ll > 0.0 && without_xl * without_xl * ll > xl * xl * without_ll {
                        (*level, xl, ll) = (other, without_xl, without_ll);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    (if ll > 0.0 { xl / ll } else { 0.0 }, levels.map(|level| code(level + half)))
}

/// Levels 0 to `most` for scales or minimums, which ggml takes for positive: a negative one becomes the low byte of its level,
/// in places and not in others.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "levels and steps are small")]
pub(crate) fn fit_positive<const N: usize>(most: i32, x: &[f32; N], weights: &[f32; N]) -> (f32, [u8; N]) {
    let greatest = greatest(x);
    if greatest < NEGLIGIBLE {
        return (0.0, [0; N]);
    }
    let level = |inverse: f32, x: f32| nearest(inverse * x).min(most);
    let plain = most as f32 / greatest;
    let mut inverse = plain;
    let mut best = 0f32;
    for (x, w) in x.iter().zip(weights) {
        let difference = x - 1.0 / plain * f32::from(code(nearest(plain * x)));
        best += w * difference * difference;
    }
    for step in (-4i8..=4).filter(|step| *step != 0) {
        let candidate = (0.1 * f32::from(step) + most as f32) / greatest;
        let scale = 1.0 / candidate;
        let mut error = 0f32;
        for (x, w) in x.iter().zip(weights) {
            let difference = x - scale * level(candidate, *x) as f32;
            error += w * difference * difference;
        }
        if error < best {
            (best, inverse) = (error, candidate);
        }
    }
    let (mut xl, mut ll) = (0f32, 0f32);
    for (x, w) in x.iter().zip(weights) {
        let l = level(inverse, *x) as f32;
        xl += w * x * l;
        ll += w * l * l;
    }
    let mut codes = x.map(|x| code(level(inverse, x)));
    for _ in 0..ROUNDS {
        let mut changed = false;
        for ((x, w), stored) in x.iter().zip(weights).zip(&mut codes) {
            let l = f32::from(*stored);
            let mut without_xl = xl - w * x * l;
            let mut without_ll = ll - w * l * l;
            if without_xl > 0.0 && without_ll > 0.0 {
                let other = nearest(x * without_ll / without_xl).min(most);
                if other != i32::from(*stored) {
                    let l = other as f32;
                    without_xl += w * x * l;
                    without_ll += w * l * l;
                    if without_xl * without_xl * ll > xl * xl * without_ll {
                        (*stored, xl, ll) = (code(other), without_xl, without_ll);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    (if ll > 0.0 { xl / ll } else { 0.0 }, codes)
}

/// The greatest number above zero, else plus zero.
#[inline(always)]
pub(crate) fn greatest<const N: usize>(x: &[f32; N]) -> f32 {
    x.iter().fold(0.0, |greatest, x| if *x > greatest { *x } else { greatest })
}
