//! IQ1_S and IQ1_M: super-blocks of 256 weights with three levels, which are shifted up or down by an eighth, in the order of
//! operations of ggml's `quantize_row_iq1_*_impl` and `dequantize_row_iq1_*`.
//!
//! The weights of a part are sorted; two cuts give three levels. All pairs of cuts are tried with all shifts. The scan is a
//! sequence in which each candidate is compared with the best one so far, so it runs one part a lane. Then the groups of eight
//! are moved to points of the grid ([`crate::grid`]).
//!
//! Equal weights keep their order: ggml sorts with `qsort`, which is a merge sort in the GNU C library.

use crate::block::{Block, Half, IQ1_M, IQ1_S};
use crate::codebook;
use crate::grid::{self, Grid, Group, NOTHING, Nearest, OFF_GRID};
use crate::iquants::{FAILED, Weights, too_large};
use crate::search::nearest;

/// How far the levels -1, 0, 1 are shifted.
const SHIFT: f32 = 0.125;
/// Levels shifted up and down.
const SHIFTED: [[f32; 3]; 2] = [[-1.0 + SHIFT, SHIFT, 1.0 + SHIFT], [-1.0 - SHIFT, -SHIFT, 1.0 - SHIFT]];

#[inline(always)]
fn shifted(out: &mut [f32; 8], levels: &[i8; 8], shift: f32, scale: f32) {
    for (out, level) in out.iter_mut().zip(levels) {
        *out = scale * (f32::from(*level) + shift);
    }
}

/// Scales are stored as halves of odd numbers less one.
#[inline(always)]
fn scale_of(code: u16) -> f32 {
    f32::from(2 * (code & 7) + 1)
}

impl Block for IQ1_S {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let d = self.d.get();
        for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let rest = u16::from_le_bytes(self.high_and_scales[part]);
            let scale = d * scale_of(rest >> 12);
            let shift = if rest & 0x8000 == 0 { SHIFT } else { -SHIFT };
            for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                let point = u16::from(self.points[part][group]) | (rest >> (3 * group) & 7) << 8;
                shifted(out, &codebook::IQ1_VALUES[usize::from(point)], shift, scale);
            }
        }
    }
}

impl Block for IQ1_M {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let scales = self.scales.map(u16::from_le_bytes);
        let bits = scales.iter().rev().fold(0, |bits, scales| bits << 4 | scales >> 12);
        let d = Half(bits.to_le_bytes()).get();
        for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let part = group / 2;
            let scale = d * scale_of(scales[part / 4] >> (part % 4 * 3));
            let high = u16::from(self.high[part] >> (group % 2 * 4));
            let shift = if high & 8 == 0 { SHIFT } else { -SHIFT };
            let point = u16::from(self.points[group]) | (high & 7) << 8;
            shifted(out, &codebook::IQ1_VALUES[usize::from(point)], shift, scale);
        }
    }
}

/// A part of `N` weights before its levels are chosen.
struct Part<const N: usize> {
    x: [f32; N],
    /// What the squared errors weigh.
    weights: [f32; N],
    /// The place of each weight in ascending order.
    ranks: [u8; N],
    negligible: bool,
}

impl<const N: usize> Part<N> {
    #[inline(always)]
    fn new(x: &[f32; N], importance: Option<&[f32; N]>, energy: f32, negligible: f32) -> Self {
        let mut weights = [0.0; N];
        if let Some(importance) = importance {
            for ((weight, x), importance) in weights.iter_mut().zip(x).zip(importance) {
                *weight = importance * (energy + x * x).sqrt();
            }
        } else {
            for (weight, x) in weights.iter_mut().zip(x) {
                *weight = x * x;
            }
        }
        let mut ranks = [0u32; N];
        for (at, this) in x.iter().enumerate() {
            for (other, (x, rank)) in x.iter().zip(&mut ranks).enumerate() {
                *rank += u32::from(this < x) | u32::from(this == x) & u32::from(at < other);
            }
        }
        let largest = x.iter().fold(0f32, |largest, x| if largest > x.abs() { largest } else { x.abs() });
        Self { x: *x, weights, ranks: ranks.map(|rank| rank as u8), negligible: largest < negligible }
    }

    /// Weights in ascending order.
    #[inline(always)]
    fn ascending(&self) -> [usize; N] {
        let mut order = [0; N];
        for (at, rank) in self.ranks.iter().enumerate() {
            order[usize::from(*rank) % N] = at;
        }
        order
    }

    /// Levels 0 to 2 for two cuts, turned round where `turn`.
    #[inline(always)]
    fn levels(&self, cuts: (u8, u8), turn: bool) -> [u32; N] {
        self.ranks.map(|rank| {
            let level = u32::from(rank >= cuts.0) + u32::from(rank >= cuts.1);
            if turn { 2 - level } else { level }
        })
    }
}

/// The best candidate so far in each lane.
struct Best<const LANES: usize> {
    score: [f32; LANES],
    scale: [f32; LANES],
    /// Number of the candidate; negative where there is none.
    candidate: [i32; LANES],
}

impl<const LANES: usize> Best<LANES> {
    const NONE: Self = Self { score: [-f32::MAX; LANES], scale: [0.0; LANES], candidate: [-1; LANES] };

    /// Compares with the candidate whose sums these are, of the products of levels and weights, and of squared levels.
    #[inline(always)]
    fn offer(&mut self, candidate: i32, sum_x: &[f32; LANES], sum_q: &[f32; LANES]) {
        for lane in 0..LANES {
            let (x, q) = (sum_x[lane], sum_q[lane]);
            let better = (q > 0.0) & (x * x > self.score[lane] * q);
            let scale = x / q;
            self.score[lane] = if better { scale * x } else { self.score[lane] };
            self.scale[lane] = if better { scale } else { self.scale[lane] };
            self.candidate[lane] = if better { candidate } else { self.candidate[lane] };
        }
    }
}

/// What was found for a part.
#[derive(Clone, Copy)]
struct Found<const G: usize> {
    /// Indices of points.
    points: [u16; G],
    codes: [u16; G],
    scale: f32,
    /// 1 where the levels of a group are shifted down.
    shifts: [u8; G],
}

impl<const G: usize> Found<G> {
    const NONE: Self = Self { points: [0; G], codes: [0; G], scale: 0.0, shifts: [0; G] };

    /// The points for levels that two cuts give. `None` where numbers overflow.
    #[inline(always)]
    fn new<const N: usize, S: Nearest>(
        search: S,
        grid: &Grid<8>,
        part: &Part<N>,
        cuts: (u8, u8),
        shifts: [u8; G],
        scale: f32,
    ) -> Option<Self> {
        let turn = scale < 0.0;
        let shifts = if turn { shifts.map(|shift| 1 - shift) } else { shifts };
        let mut scale = scale.abs();
        let levels = part.levels(cuts, turn);
        let groups = part.x.as_chunks::<8>().0.iter().zip(part.weights.as_chunks::<8>().0);
        let mut codes = [0; G];
        let mut off_grid = false;
        for (index, ((x, weights), levels)) in groups.clone().zip(levels.as_chunks::<8>().0).enumerate() {
            let [a, b, c] = SHIFTED[usize::from(shifts[index])];
            let mut at = levels.iter().rev().fold(0, |sum, level| 3 * sum + level);
            let group = Group { x: *x, weights: *weights };
            search.nearest8(grid, &group, &[a, b, c, 0.0], &[scale], std::slice::from_mut(&mut at));
            if at == NOTHING {
                return None;
            }
            off_grid |= at & OFF_GRID != 0;
            codes[index] = at as u16;
        }
        if off_grid {
            let (mut sum_x, mut sum_q) = (0f32, 0f32);
            for (index, (x, weights)) in groups.enumerate() {
                for (at, (x, weight)) in x.iter().zip(weights).enumerate() {
                    let q = level(codes[index], at, shifts[index]);
                    sum_x += weight * q * x;
                    sum_q += weight * q * q;
                }
            }
            if sum_x > 0.0 && sum_q > 0.0 {
                scale = sum_x / sum_q;
            }
        }
        let points = codes.map(|code| grid.index(code));
        (!scale.is_nan()).then_some(Self { points, codes, scale, shifts })
    }
}

/// The shifted level of a weight of a group.
#[inline(always)]
fn level(code: u16, weight: usize, shift: u8) -> f32 {
    let [a, b, c] = SHIFTED[usize::from(shift)];
    match code >> (2 * weight) & 3 {
        0 => a,
        1 => b,
        _ => c,
    }
}

/// Largest scale, the scale of the super-block in fifteenths of it, and its inverse. `None` where all scales are zero.
#[inline(always)]
fn scale_of_all<const G: usize, const P: usize>(found: &[Found<G>; P]) -> Option<(f32, f32)> {
    let largest =
        found.iter().fold(0f32, |largest, found| if largest > found.scale { largest } else { found.scale });
    let d = largest / 15.0;
    (largest != 0.0).then_some((d, 1.0 / d))
}

#[inline(always)]
fn code_of(inverse: f32, scale: f32) -> u8 {
    nearest(0.5 * (inverse * scale - 1.0)).clamp(0, 7).to_le_bytes()[0]
}

#[inline(always)]
fn parts<const N: usize, const P: usize>(
    x: &Weights,
    importance: Option<&Weights>,
    negligible: f32,
) -> [Part<N>; P] {
    let energy = 2.0 * x.iter().fold(0f32, |sum, x| sum + x * x) / 256.0;
    std::array::from_fn(|part| {
        let importance = importance.map(|importance| &importance.as_chunks::<N>().0[part]);
        Part::new(&x.as_chunks::<N>().0[part], importance, energy, negligible)
    })
}

/// The best of all pairs of cuts and both shifts, one part a lane: candidate (first · 33 + second) · 2 + shift.
#[inline(always)]
fn cut_in_three(parts: &[Part<32>; 8]) -> Best<8> {
    const N: usize = 32;
    type Lanes = [f32; 8];
    let (mut sum_x, mut sum_w) = ([[0f32; 8]; N + 1], [[0f32; 8]; N + 1]);
    for (lane, part) in parts.iter().enumerate() {
        for (place, at) in part.ascending().into_iter().enumerate() {
            sum_x[place + 1][lane] = sum_x[place][lane] + part.weights[at] * part.x[at];
            sum_w[place + 1][lane] = sum_w[place][lane] + part.weights[at];
        }
    }
    let [up, down] = SHIFTED;
    let times = |sums: &Lanes, factor: f32| sums.map(|sum| sum * factor);
    let squared = |sums: &Lanes, factor: f32| sums.map(|sum| sum * factor * factor);
    let minus = |a: &Lanes, b: &Lanes| -> Lanes { std::array::from_fn(|lane| a[lane] - b[lane]) };
    let plus = |a: &Lanes, b: &Lanes| -> Lanes { std::array::from_fn(|lane| a[lane] + b[lane]) };
    // The sums above the second cut do not depend on the first.
    let (mut above_x, mut above_w) = ([[[0f32; 8]; 2]; N + 1], [[[0f32; 8]; 2]; N + 1]);
    for second in 0..=N {
        let (x, w) = (minus(&sum_x[N], &sum_x[second]), minus(&sum_w[N], &sum_w[second]));
        above_x[second] = [times(&x, up[2]), times(&x, down[2])];
        above_w[second] = [squared(&w, up[2]), squared(&w, down[2])];
    }
    let mut best = Best::NONE;
    for first in 0..=N {
        let below_x = [times(&sum_x[first], up[0]), times(&sum_x[first], down[0])];
        let below_w = [squared(&sum_w[first], up[0]), squared(&sum_w[first], down[0])];
        for second in first..=N {
            let candidate = (first * (N + 1) + second) as i32 * 2;
            // The middle level is the shift, whose sign comes out of a product.
            let x = times(&minus(&sum_x[second], &sum_x[first]), SHIFT);
            let w = squared(&minus(&sum_w[second], &sum_w[first]), SHIFT);
            let [above_up, above_down] = &above_x[second];
            let [weight_up, weight_down] = &above_w[second];
            let sum = plus(&plus(&below_x[0], &x), above_up);
            best.offer(candidate, &sum, &plus(&plus(&below_w[0], &w), weight_up));
            let sum = plus(&minus(&below_x[1], &x), above_down);
            best.offer(candidate + 1, &sum, &plus(&plus(&below_w[1], &w), weight_down));
        }
    }
    best
}

impl IQ1_S {
    /// The block of `x`, which is finite.
    #[inline(always)]
    pub(crate) fn encode<S: Nearest>(search: S, x: &Weights, importance: Option<&Weights>) -> Self {
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let parts: [Part<32>; 8] = parts(x, importance, 1e-12);
        if parts.iter().any(|part| too_large(&part.weights)) {
            return Self { d: FAILED, ..block };
        }
        let best = cut_in_three(&parts);
        let grid = grid::iq1();
        let mut found = [Found::<4>::NONE; 8];
        for (index, (part, found)) in parts.iter().zip(&mut found).enumerate() {
            let candidate = best.candidate[index];
            if part.negligible || candidate < 0 {
                continue;
            }
            let cuts = ((candidate / 66) as u8, (candidate / 2 % 33) as u8);
            let shifts = [(candidate % 2) as u8; 4];
            let Some(this) = Found::new(search, grid, part, cuts, shifts, best.scale[index]) else {
                return Self { d: FAILED, ..block };
            };
            *found = this;
        }
        let d = scale_of_all(&found);
        for (index, found) in found.iter().enumerate() {
            let mut rest = 0;
            for (group, point) in found.points.into_iter().enumerate() {
                let [low, high] = point.to_le_bytes();
                block.points[index][group] = low;
                rest |= u16::from(high) << (3 * group);
            }
            if let Some((_, inverse)) = d {
                rest |= u16::from(code_of(inverse, found.scale) | found.shifts[0] << 3) << 12;
            }
            block.high_and_scales[index] = rest.to_le_bytes();
        }
        if let Some((d, _)) = d {
            block.d = Half::new(d * 1.125);
        }
        block
    }
}

/// As [`cut_in_three`], for parts of two groups with a shift each: candidate (first · 17 + second) · 4 + shift of the first group
/// · 2 + shift of the second.
#[inline(always)]
fn cut_in_three_each(parts: &[Part<16>; 16]) -> Best<16> {
    const N: usize = 16;
    type Lanes = [f32; 16];
    // By place and group.
    let (mut sum_x, mut sum_w) = ([[[0f32; 16]; 2]; N + 1], [[[0f32; 16]; 2]; N + 1]);
    for (lane, part) in parts.iter().enumerate() {
        for (place, at) in part.ascending().into_iter().enumerate() {
            for group in 0..2 {
                let (mut x, mut w) = (sum_x[place][group][lane], sum_w[place][group][lane]);
                if at / 8 == group {
                    x += part.weights[at] * part.x[at];
                    w += part.weights[at];
                }
                sum_x[place + 1][group][lane] = x;
                sum_w[place + 1][group][lane] = w;
            }
        }
    }
    // Levels are 1 apart: the sum over three levels is that of all at the top level, less what is below each cut.
    let steps = SHIFTED.map(|[a, b, c]| (a * a - b * b, b * b - c * c));
    let plus = |a: &Lanes, b: &Lanes| -> Lanes { std::array::from_fn(|lane| a[lane] + b[lane]) };
    let mut all_x = [[[0f32; 16]; 2]; 2];
    let mut all_w = [[[0f32; 16]; 2]; 2];
    for group in 0..2 {
        for (shift, [_, _, top]) in SHIFTED.into_iter().enumerate() {
            all_x[group][shift] = sum_x[N][group].map(|sum| sum * top);
            all_w[group][shift] = sum_w[N][group].map(|sum| sum * top * top);
        }
    }
    let mut upper = [[[[0f32; 16]; 2]; 2]; N + 1];
    for (upper, sums) in upper.iter_mut().zip(&sum_w) {
        for group in 0..2 {
            for shift in 0..2 {
                upper[group][shift] = sums[group].map(|sum| sum * steps[shift].1);
            }
        }
    }
    let mut best = Best::NONE;
    for first in 0..=N {
        let mut lower = [[[0f32; 16]; 2]; 2];
        for group in 0..2 {
            for shift in 0..2 {
                for lane in 0..16 {
                    lower[group][shift][lane] =
                        all_w[group][shift][lane] + sum_w[first][group][lane] * steps[shift].0;
                }
            }
        }
        for second in first..=N {
            let candidate = (first * (N + 1) + second) as i32 * 4;
            let (mut x, mut w) = ([[[0f32; 16]; 2]; 2], [[[0f32; 16]; 2]; 2]);
            for group in 0..2 {
                let below = plus(&sum_x[first][group], &sum_x[second][group]);
                for shift in 0..2 {
                    for lane in 0..16 {
                        x[group][shift][lane] = all_x[group][shift][lane] - below[lane];
                    }
                    w[group][shift] = plus(&lower[group][shift], &upper[second][group][shift]);
                }
            }
            for shifts in 0..4 {
                let (a, b) = (shifts / 2, shifts % 2);
                best.offer(candidate + shifts as i32, &plus(&x[0][a], &x[1][b]), &plus(&w[0][a], &w[1][b]));
            }
        }
    }
    best
}

impl IQ1_M {
    /// The block whose scale is `d`, apart from its parts.
    #[inline(always)]
    fn set_scale(&mut self, d: Half) {
        let bits = u16::from_le_bytes(d.0);
        for (index, scales) in self.scales.iter_mut().enumerate() {
            let packed = u16::from_le_bytes(*scales) & 0xfff | bits >> (4 * index) << 12;
            *scales = packed.to_le_bytes();
        }
    }

    /// The block of `x`, which is finite.
    #[inline(always)]
    pub(crate) fn encode<S: Nearest>(search: S, x: &Weights, importance: Option<&Weights>) -> Self {
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let parts: [Part<16>; 16] = parts(x, importance, 1e-7);
        if parts.iter().any(|part| too_large(&part.weights)) {
            block.set_scale(FAILED);
            return block;
        }
        let best = cut_in_three_each(&parts);
        let grid = grid::iq1();
        let mut found = [Found::<2>::NONE; 16];
        for (index, (part, found)) in parts.iter().zip(&mut found).enumerate() {
            let candidate = best.candidate[index];
            if part.negligible || candidate < 0 {
                continue;
            }
            let cuts = ((candidate / 68) as u8, (candidate / 4 % 17) as u8);
            let shifts = [(candidate / 2 % 2) as u8, (candidate % 2) as u8];
            let Some(this) = Found::new(search, grid, part, cuts, shifts, best.scale[index]) else {
                block.set_scale(FAILED);
                return block;
            };
            *found = this;
        }
        for (index, found) in found.iter().enumerate() {
            let [[low, high], [next_low, next_high]] = found.points.map(u16::to_le_bytes);
            block.points[2 * index] = low;
            block.points[2 * index + 1] = next_low;
            block.high[index] = high | next_high << 4;
        }
        let Some((mut d, inverse)) = scale_of_all(&found) else { return block };
        let mut scales = [0u16; 4];
        let (mut sum_x, mut sum_q) = (0f32, 0f32);
        for (index, (part, found)) in parts.iter().zip(&found).enumerate() {
            let code = code_of(inverse, found.scale);
            scales[index / 4] |= u16::from(code) << (index % 4 * 3);
            block.high[index] |= found.shifts[0] << 3 | found.shifts[1] << 7;
            for (at, (x, weight)) in part.x.iter().zip(&part.weights).enumerate() {
                let q = level(found.codes[at / 8], at % 8, found.shifts[at / 8]) * f32::from(2 * code + 1);
                sum_x += weight * q * x;
                sum_q += weight * q * q;
            }
        }
        if sum_q > 0.0 {
            d = sum_x / sum_q;
        }
        block.scales = scales.map(u16::to_le_bytes);
        block.set_scale(Half::new(d * 1.1125));
        block
    }
}
