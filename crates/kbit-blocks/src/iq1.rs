//! IQ1_S and IQ1_M: super-blocks of 256 weights with three levels, which are shifted up or down by an eighth, in the order of
//! operations of ggml's `quantize_row_iq1_*_impl` and `dequantize_row_iq1_*`.
//!
//! The weights of a part are sorted; two cuts give three levels. All pairs of cuts are tried with all shifts. The scan is a
//! sequence in which each candidate is compared with the best one so far, so it runs one part a lane. Then the groups of eight
//! are moved to points of the grid ([`crate::grid`]).
//!
//! Loops, not closures, where it is hot: a closure that is not inlined is not compiled for the instruction set.
//!
//! Equal weights keep their order: ggml sorts with `qsort`, which is a merge sort in the GNU C library.

use crate::arch::lanes::{Floats, Integers, LANES, Lanes, Mask};
use crate::block::{Half, IQ1_M, IQ1_S};
use crate::codebook;
use crate::grid::{self, Grid, Group, NOTHING, Nearest, OFF_GRID};
use crate::iquants::{FAILED, Weights};
use crate::search::nearest;

/// How far the levels -1, 0, 1 are shifted.
const SHIFT: f32 = 0.125;
/// Levels shifted up and down; no grid has the last.
const SHIFTED: [[f32; 4]; 2] =
    [[-1.0 + SHIFT, SHIFT, 1.0 + SHIFT, 0.0], [-1.0 - SHIFT, -SHIFT, 1.0 - SHIFT, 0.0]];

/// The values of eight weights.
#[inline(always)]
fn shifted<S: Lanes>(lanes: S, out: &mut [f32; 8], levels: &[i8; 8], shift: f32, scale: f32) {
    *out = (lanes.all(scale) * (lanes.small(levels) + lanes.all(shift))).array();
}

/// A stored scale s stands for 2 s + 1.
#[inline(always)]
fn scale_of(code: u16) -> f32 {
    f32::from(2 * (code & 7) + 1)
}

impl IQ1_S {
    #[inline(always)]
    pub(crate) fn decode<S: Lanes>(&self, lanes: S, out: &mut Weights) {
        let d = self.d.get();
        for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let rest = u16::from_le_bytes(self.high_and_scales[part]);
            let scale = d * scale_of(rest >> 12);
            let shift = if rest & 0x8000 == 0 { SHIFT } else { -SHIFT };
            for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                let point = u16::from(self.points[part][group]) | (rest >> (3 * group) & 7) << 8;
                shifted(lanes, out, &codebook::IQ1_VALUES[usize::from(point)], shift, scale);
            }
        }
    }
}

impl IQ1_M {
    #[inline(always)]
    pub(crate) fn decode<S: Lanes>(&self, lanes: S, out: &mut Weights) {
        let scales = self.scales.map(u16::from_le_bytes);
        let bits = scales.iter().rev().fold(0, |bits, scales| bits << 4 | scales >> 12);
        let d = Half(bits.to_le_bytes()).get();
        for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let part = group / 2;
            let scale = d * scale_of(scales[part / 4] >> (part % 4 * 3));
            let high = u16::from(self.high[part] >> (group % 2 * 4));
            let shift = if high & 8 == 0 { SHIFT } else { -SHIFT };
            let point = u16::from(self.points[group]) | (high & 7) << 8;
            shifted(lanes, out, &codebook::IQ1_VALUES[usize::from(point)], shift, scale);
        }
    }
}

/// A part of `N` weights before its levels are chosen.
#[derive(Clone, Copy)]
struct Part<const N: usize> {
    x: [f32; N],
    /// What the squared errors weigh.
    weights: [f32; N],
    /// The place of each weight in ascending order.
    ranks: [u32; N],
    negligible: bool,
}

impl<const N: usize> Part<N> {
    const EMPTY: Self = Self { x: [0.0; N], weights: [0.0; N], ranks: [0; N], negligible: true };

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
        Self { x: *x, weights, ranks, negligible: largest < negligible }
    }

    /// Weights in ascending order.
    #[inline(always)]
    fn ascending(&self) -> [usize; N] {
        let mut order = [0; N];
        for (at, rank) in self.ranks.iter().enumerate() {
            order[*rank as usize % N] = at;
        }
        order
    }

    /// Levels 0 to 2 for two cuts, turned round where `turn`.
    #[inline(always)]
    fn levels(&self, cuts: (u32, u32), turn: bool) -> [u32; N] {
        self.ranks.map(|rank| {
            let level = u32::from(rank >= cuts.0) + u32::from(rank >= cuts.1);
            if turn { 2 - level } else { level }
        })
    }
}

/// The best candidate so far in each lane.
struct Best<F: Floats> {
    score: F,
    scale: F,
    candidate: F::Integers,
}

/// [`Best`] at the end: scale and number of the candidate; there is none where no sums were usable.
type Chosen = [(f32, Option<u32>); LANES];

impl<F: Floats> Best<F> {
    const NONE: u32 = u32::MAX;

    #[inline(always)]
    fn new<S: Nearest<Floats = F>>(search: S) -> Self {
        let candidate = search.integers(&[Self::NONE; LANES]);
        Self { score: search.all(-f32::MAX), scale: search.all(0.0), candidate }
    }

    /// Compares with the candidate whose sums these are, of the products of levels and weights, and of squared levels.
    #[inline(always)]
    fn offer<S: Nearest<Floats = F>>(&mut self, search: S, candidate: usize, sum_x: F, sum_q: F) {
        let better = search.all(0.0).less(sum_q) & (self.score * sum_q).less(sum_x * sum_x);
        if !better.any() {
            return;
        }
        let scale = sum_x / sum_q;
        self.score = (scale * sum_x).or(better, self.score);
        self.scale = scale.or(better, self.scale);
        self.candidate = search.integers(&[candidate as u32; LANES]).or(better, self.candidate);
    }

    #[inline(always)]
    fn chosen(self) -> Chosen {
        let (scales, candidates) = (self.scale.array(), self.candidate.array());
        std::array::from_fn(|lane| {
            (scales[lane], Some(candidates[lane]).filter(|candidate| *candidate != Self::NONE))
        })
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
        cuts: (u32, u32),
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
            let mut at = levels.iter().rev().fold(0, |sum, level| 3 * sum + level);
            let group = Group { x: *x, weights: *weights };
            search.nearest8(
                grid,
                &group,
                &SHIFTED[usize::from(shifts[index])],
                &[scale],
                std::slice::from_mut(&mut at),
            );
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
    SHIFTED[usize::from(shift)][usize::from(code >> (2 * weight) & 3)]
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
    let mut parts = [Part::EMPTY; P];
    for (index, (part, x)) in parts.iter_mut().zip(x.as_chunks::<N>().0).enumerate() {
        let importance = importance.map(|importance| &importance.as_chunks::<N>().0[index]);
        *part = Part::new(x, importance, energy, negligible);
    }
    parts
}

/// The best of all pairs of cuts and both shifts, one part a lane: candidate (first · 33 + second) · 2 + shift.
#[inline(always)]
fn cut_in_three<S: Nearest>(search: S, parts: &[Part<32>; LANES]) -> Chosen {
    const N: usize = 32;
    let (mut sum_x, mut sum_w) = ([[0f32; LANES]; N + 1], [[0f32; LANES]; N + 1]);
    for (lane, part) in parts.iter().enumerate() {
        for (place, at) in part.ascending().into_iter().enumerate() {
            sum_x[place + 1][lane] = sum_x[place][lane] + part.weights[at] * part.x[at];
            sum_w[place + 1][lane] = sum_w[place][lane] + part.weights[at];
        }
    }
    let zero = search.all(0.0);
    let shift = search.all(SHIFT);
    let (all_x, all_w) = (search.floats(&sum_x[N]), search.floats(&sum_w[N]));
    // By place: sums below a cut, and of the levels below and above, shifted up and down.
    let (mut cut_x, mut cut_w) = ([zero; N + 1], [zero; N + 1]);
    let (mut below, mut above) = ([[zero; 4]; N + 1], [[zero; 4]; N + 1]);
    let [up, down] = SHIFTED;
    for place in 0..=N {
        let (x, w) = (search.floats(&sum_x[place]), search.floats(&sum_w[place]));
        (cut_x[place], cut_w[place]) = (x, w);
        let (a, b) = (search.all(up[0]), search.all(down[0]));
        below[place] = [x * a, w * a * a, x * b, w * b * b];
        let (x, w, a, b) = (all_x - x, all_w - w, search.all(up[2]), search.all(down[2]));
        above[place] = [x * a, w * a * a, x * b, w * b * b];
    }
    let mut best = Best::new(search);
    for first in 0..=N {
        let below = below[first];
        for second in first..=N {
            let candidate = (first * (N + 1) + second) * 2;
            let above = &above[second];
            // The middle level is the shift; down, its sign comes out of the products.
            let x = (cut_x[second] - cut_x[first]) * shift;
            let w = (cut_w[second] - cut_w[first]) * shift * shift;
            best.offer(search, candidate, below[0] + x + above[0], below[1] + w + above[1]);
            best.offer(search, candidate + 1, below[2] - x + above[2], below[3] + w + above[3]);
        }
    }
    best.chosen()
}

impl IQ1_S {
    /// The block of `x`, which is finite.
    #[inline(always)]
    pub(crate) fn encode<S: Nearest>(search: S, x: &Weights, importance: Option<&Weights>) -> Self {
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let parts: [Part<32>; 8] = parts(x, importance, 1e-12);
        let chosen = cut_in_three(search, &parts);
        let grid = grid::iq1();
        let mut found = [Found::<4>::NONE; 8];
        for ((part, found), (scale, candidate)) in parts.iter().zip(&mut found).zip(chosen) {
            let Some(candidate) = candidate.filter(|_| !part.negligible) else { continue };
            let cuts = (candidate / 66, candidate / 2 % 33);
            let shifts = [(candidate % 2) as u8; 4];
            let Some(this) = Found::new(search, grid, part, cuts, shifts, scale) else {
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
fn cut_in_three_each<S: Nearest>(search: S, parts: &[Part<16>; LANES]) -> Chosen {
    const N: usize = 16;
    // By group and place.
    let (mut sum_x, mut sum_w) = ([[[0f32; LANES]; N + 1]; 2], [[[0f32; LANES]; N + 1]; 2]);
    for (lane, part) in parts.iter().enumerate() {
        let (mut x, mut w) = ([0f32; 2], [0f32; 2]);
        for (place, at) in part.ascending().into_iter().enumerate() {
            x[at / 8] += part.weights[at] * part.x[at];
            w[at / 8] += part.weights[at];
            for group in 0..2 {
                sum_x[group][place + 1][lane] = x[group];
                sum_w[group][place + 1][lane] = w[group];
            }
        }
    }
    // Levels are 1 apart: the sum over three levels is that of all at the top level, less what is below each cut. Squares are
    // further apart, but in the same way for all weights.
    let zero = search.all(0.0);
    let mut below_x = [[zero; N + 1]; 2];
    // By group, shift and place: what is above the second cut.
    let mut upper = [[[zero; N + 1]; 2]; 2];
    let mut lower = [[[zero; N + 1]; 2]; 2];
    let mut all_x = [[zero; 2]; 2];
    for group in 0..2 {
        let all = search.floats(&sum_w[group][N]);
        for place in 0..=N {
            below_x[group][place] = search.floats(&sum_x[group][place]);
        }
        for (shift, [a, b, c, _]) in SHIFTED.into_iter().enumerate() {
            let top = search.all(c);
            all_x[group][shift] = below_x[group][N] * top;
            let (to_middle, to_top) = (search.all(a * a - b * b), search.all(b * b - c * c));
            for place in 0..=N {
                let below = search.floats(&sum_w[group][place]);
                lower[group][shift][place] = all * top * top + below * to_middle;
                upper[group][shift][place] = below * to_top;
            }
        }
    }
    let mut best = Best::new(search);
    for first in 0..=N {
        for second in first..=N {
            let candidate = (first * (N + 1) + second) * 4;
            let below = [below_x[0][first] + below_x[0][second], below_x[1][first] + below_x[1][second]];
            let x = [
                [all_x[0][0] - below[0], all_x[0][1] - below[0]],
                [all_x[1][0] - below[1], all_x[1][1] - below[1]],
            ];
            let w = [
                [lower[0][0][first] + upper[0][0][second], lower[0][1][first] + upper[0][1][second]],
                [lower[1][0][first] + upper[1][0][second], lower[1][1][first] + upper[1][1][second]],
            ];
            best.offer(search, candidate, x[0][0] + x[1][0], w[0][0] + w[1][0]);
            best.offer(search, candidate + 1, x[0][0] + x[1][1], w[0][0] + w[1][1]);
            best.offer(search, candidate + 2, x[0][1] + x[1][0], w[0][1] + w[1][0]);
            best.offer(search, candidate + 3, x[0][1] + x[1][1], w[0][1] + w[1][1]);
        }
    }
    best.chosen()
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
        let halves = parts.as_chunks::<LANES>().0;
        let chosen = [cut_in_three_each(search, &halves[0]), cut_in_three_each(search, &halves[1])];
        let grid = grid::iq1();
        let mut found = [Found::<2>::NONE; 16];
        for ((part, found), (scale, candidate)) in parts.iter().zip(&mut found).zip(chosen.as_flattened()) {
            let Some(candidate) = candidate.filter(|_| !part.negligible) else { continue };
            let cuts = (candidate / 68, candidate / 4 % 17);
            let shifts = [(candidate / 2 % 2) as u8, (candidate % 2) as u8];
            let Some(this) = Found::new(search, grid, part, cuts, shifts, *scale) else {
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
