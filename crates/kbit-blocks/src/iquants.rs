//! IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: super-blocks of 256 weights whose magnitudes are points of a grid, in the order of
//! operations of ggml's `quantize_row_iq*_impl` and `dequantize_row_iq*`.
//!
//! A part of 16 or 32 weights has one scale. A few dozen scales are tried; for each, the groups of a part are rounded to points of
//! the grid ([`crate::grid`]), and the scale of least weighted squared error with these points is found. The candidates run side
//! by side, one a lane; the sums of each run over the weights in their order. Loops, not closures, where it is hot: a closure that is
//! not inlined is not compiled for the instruction set.

use crate::arch::lanes::{Floats, Integers, LANES, Lanes, Mask};
use crate::block::{Half, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use crate::codebook;
use crate::grid::{self, Grid, Group, NOTHING, Nearest, OFF_GRID};
use crate::search::nearest;

/// Weights of a super-block.
pub(crate) type Weights = [f32; 256];

/// What ggml stops at, a distance or a scale that is no number, becomes a block whose scale is NaN.
pub(crate) const FAILED: Half = Half([0, 0x7e]);

/// The values of eight weights: magnitudes times the scale; a set bit of `signs` is a minus.
#[inline(always)]
fn signed<S: Lanes>(lanes: S, out: &mut [f32; 8], magnitudes: &[i8; 8], signs: u8, scale: S::Floats) {
    *out = (scale * lanes.small(magnitudes)).turned(signs).array();
}

/// Two groups of four.
#[inline(always)]
fn both(low: [i8; 4], high: [i8; 4]) -> [i8; 8] {
    let mut both = [0; 8];
    both[..4].copy_from_slice(&low);
    both[4..].copy_from_slice(&high);
    both
}

/// Seven signs and the eighth, which makes the number of minuses even.
#[inline(always)]
pub(crate) fn even_signs(seven: u32) -> u8 {
    let seven = seven & 127;
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// A stored scale s stands for s + 1/2.
#[inline(always)]
fn scale_of(code: u8) -> f32 {
    0.5 + f32::from(code)
}

impl IQ2_XXS {
    #[inline(always)]
    pub(crate) fn decode<S: Lanes>(&self, lanes: S, out: &mut Weights) {
        let d = self.d.get();
        for (part, out) in self.parts.iter().zip(out.as_chunks_mut::<32>().0) {
            let rest = u32::from_le_bytes(part.signs_and_scale);
            let scale = lanes.all(d * scale_of((rest >> 28) as u8) * 0.25);
            for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                let magnitudes = &codebook::IQ2_XXS_VALUES[usize::from(part.points[group])];
                signed(lanes, out, magnitudes, even_signs(rest >> (7 * group)), scale);
            }
        }
    }
}

impl IQ2_XS {
    #[inline(always)]
    pub(crate) fn decode<S: Lanes>(&self, lanes: S, out: &mut Weights) {
        let d = self.d.get();
        for (group, (point, out)) in self.points.iter().zip(out.as_chunks_mut().0).enumerate() {
            let point = u16::from_le_bytes(*point);
            let scale = d * scale_of(self.scales[group / 4] >> (group / 2 % 2 * 4) & 15) * 0.25;
            let magnitudes = &codebook::IQ2_XS_VALUES[usize::from(point & 511)];
            signed(lanes, out, magnitudes, even_signs(u32::from(point >> 9)), lanes.all(scale));
        }
    }
}

impl IQ2_S {
    #[inline(always)]
    pub(crate) fn decode<S: Lanes>(&self, lanes: S, out: &mut Weights) {
        let d = self.d.get();
        for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let scale = d * scale_of(self.scales[group / 4] >> (group / 2 % 2 * 4) & 15) * 0.25;
            let high = usize::from(self.high[group / 4] >> (group % 4 * 2) & 3);
            let magnitudes = &codebook::IQ2_S_VALUES[usize::from(self.points[group]) | high << 8];
            signed(lanes, out, magnitudes, self.signs[group], lanes.all(scale));
        }
    }
}

impl IQ3_XXS {
    #[inline(always)]
    pub(crate) fn decode<S: Lanes>(&self, lanes: S, out: &mut Weights) {
        let d = self.d.get();
        for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let rest = u32::from_le_bytes(self.signs_and_scales[part]);
            let scale = lanes.all(d * scale_of((rest >> 28) as u8) * 0.5);
            let pairs = self.points[part].as_chunks::<2>().0;
            for (pair, (points, out)) in pairs.iter().zip(out.as_chunks_mut().0).enumerate() {
                let [low, high] = points.map(|point| codebook::IQ3_XXS_VALUES[usize::from(point)]);
                signed(lanes, out, &both(low, high), even_signs(rest >> (7 * pair)), scale);
            }
        }
    }
}

impl IQ3_S {
    #[inline(always)]
    pub(crate) fn decode<S: Lanes>(&self, lanes: S, out: &mut Weights) {
        let d = self.d.get();
        for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let scale = lanes.all(d * f32::from(1 + 2 * (self.scales[part / 2] >> (part % 2 * 4) & 15)));
            let ninth = usize::from(self.high[part]);
            let pairs = self.points[part].as_chunks::<2>().0;
            for (pair, (points, out)) in pairs.iter().zip(out.as_chunks_mut().0).enumerate() {
                let low = codebook::IQ3_S_VALUES[usize::from(points[0]) | ninth << (8 - 2 * pair) & 256];
                let high = codebook::IQ3_S_VALUES[usize::from(points[1]) | ninth << (7 - 2 * pair) & 256];
                signed(lanes, out, &both(low, high), self.signs[part][pair], scale);
            }
        }
    }
}

/// A grid whose levels stand for odd numbers.
trait Odd<const D: usize> {
    fn find<S: Nearest>(&self, search: S, group: &Group<D>, scales: &[f32], at: &mut [u32]);
}

impl Odd<8> for Grid<8> {
    #[inline(always)]
    fn find<S: Nearest>(&self, search: S, group: &Group<8>, scales: &[f32], at: &mut [u32]) {
        search.nearest8(self, group, &[1.0, 3.0, 5.0, 7.0], scales, at);
    }
}

impl Odd<4> for Grid<4> {
    #[inline(always)]
    fn find<S: Nearest>(&self, search: S, group: &Group<4>, scales: &[f32], at: &mut [u32]) {
        search.nearest4(self, group, &[1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0], scales, at);
    }
}

/// How a type fits the scales of its parts.
struct Recipe {
    /// Σ x² counts that often in the weights of the error.
    energy: f32,
    /// The weight of the error without importance: from 2 Σ x² / 256 and x.
    plain: fn(f32, f32) -> f32,
    /// Parts whose largest magnitude is below are zeros.
    negligible: f32,
    /// Only seven signs of eight are stored.
    even_signs: bool,
    /// The first candidate scale makes the largest magnitude the odd number at this place of the levels, and so on in steps.
    first: i8,
    step: f32,
    candidates: usize,
    /// The groups that are rounded anew with the chosen scale.
    again: Again,
}

#[derive(Clone, Copy, PartialEq)]
enum Again {
    All,
    /// All where one is off the grid.
    AllIfAny,
    OffGrid,
}

/// A part of `N` weights.
#[derive(Clone, Copy)]
struct Part<const N: usize> {
    /// Magnitudes; one of eight may be negative where only seven signs are stored.
    x: [f32; N],
    /// What the squared errors weigh, and the roots.
    weights: [f32; N],
    roots: [f32; N],
    /// A set bit is a minus.
    signs: [u8; 4],
    largest: f32,
}

impl<const N: usize> Part<N> {
    const EMPTY: Self = Self { x: [0.0; N], weights: [0.0; N], roots: [0.0; N], signs: [0; 4], largest: 0.0 };

    #[inline(always)]
    fn new(recipe: &Recipe, x: &[f32; N], importance: Option<&[f32; N]>, energy: f32) -> Self {
        let mut weights = [0.0; N];
        if let Some(importance) = importance {
            for ((weight, x), importance) in weights.iter_mut().zip(x).zip(importance) {
                *weight = importance * (energy + x * x).sqrt();
            }
        } else {
            for (weight, x) in weights.iter_mut().zip(x) {
                *weight = (recipe.plain)(energy, *x);
            }
        }
        let mut roots = [0.0; N];
        for (root, weight) in roots.iter_mut().zip(&weights) {
            *root = weight.sqrt();
        }
        let mut part = Self { x: [0.0; N], weights, roots, signs: [0; 4], largest: 0.0 };
        let groups = x.as_chunks::<8>().0.iter().zip(part.weights.as_chunks::<8>().0);
        for ((group, out), signs) in groups.zip(part.x.as_chunks_mut::<8>().0).zip(&mut part.signs) {
            let (x, weights) = group;
            let mut minuses = 0;
            for (weight, (x, out)) in x.iter().zip(out.iter_mut()).enumerate() {
                let minus = *x < 0.0;
                *out = if minus { -x } else { *x };
                minuses |= u8::from(minus) << weight;
            }
            if recipe.even_signs && minuses.count_ones() % 2 == 1 {
                // The sign that costs least is wrong.
                let mut cost = [0f32; 8];
                for ((cost, x), weight) in cost.iter_mut().zip(x).zip(weights) {
                    *cost = weight * x * x;
                }
                let mut least = 0;
                for weight in 1..8 {
                    least = if cost[weight] < cost[least] { weight } else { least };
                }
                out[least] = -out[least];
                minuses ^= 1 << least;
            }
            *signs = if recipe.even_signs { minuses & 127 } else { minuses };
        }
        part.largest = part.x.iter().fold(part.x[0], |largest, x| if largest > *x { largest } else { *x });
        part
    }

    fn flip(&mut self, recipe: &Recipe) {
        self.signs = self.signs.map(|signs| if recipe.even_signs { !signs & 127 } else { !signs });
    }
}

/// A level from 0 of a magnitude.
#[inline(always)]
fn level<const D: usize>(inverse: f32, x: f32) -> i32 {
    nearest(0.5 * (inverse * x - 1.0)).min(Grid::<D>::LEVELS as i32 - 1).max(0)
}

/// What a code's level of a weight stands for.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "levels are small")]
fn odd<const D: usize>(code: u32, weight: usize) -> f32 {
    (2 * (code >> (Grid::<D>::BITS * weight) & ((1 << Grid::<D>::BITS) - 1)) + 1) as i32 as f32
}

/// Rounds magnitudes to levels, as [`level`] does, of one candidate a lane.
struct Rounding<F: Floats> {
    one: F,
    half: F,
    magic: F,
    mask: F::Integers,
    least: F::Integers,
    most: F::Integers,
    excess: F::Integers,
}

impl<F: Floats> Rounding<F> {
    #[inline(always)]
    fn new<const D: usize, S: Nearest<Floats = F>>(search: S) -> Self {
        const MORE: u32 = 0x0040_0000;
        let all = |x: u32| search.integers(&[x; LANES]);
        let levels = Grid::<D>::LEVELS as u32;
        Self {
            one: search.all(1.0),
            half: search.all(0.5),
            magic: search.all(12_582_912.0),
            mask: all(0x007f_ffff),
            least: all(MORE),
            most: all(MORE + levels - 1),
            excess: all((0..D).fold(0u32, |sum, _| sum.wrapping_mul(levels).wrapping_add(MORE))),
        }
    }

    /// Combinations with one more weight, before the others. They are too large until the end.
    #[inline(always)]
    fn push<const D: usize>(&self, combinations: F::Integers, scaled: F) -> F::Integers {
        let level = (self.half * (scaled - self.one)).nearest_and_more(self.magic, self.mask);
        let level = level.min(self.most).max(self.least);
        let others = match D {
            8 => combinations.times_two_to::<1>() + combinations,
            _ => combinations.times_two_to::<3>(),
        };
        others + level
    }

    #[inline(always)]
    fn finish(&self, combinations: F::Integers) -> [u32; LANES] {
        (combinations - self.excess).array()
    }
}

/// The scale of a part, and the codes of its groups. `largest` is what the candidates divide by, `scale` the scale where none is
/// usable. `None` where numbers overflow.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "steps are small")]
fn fit<const D: usize, const N: usize, const G: usize, const V: usize, S: Nearest>(
    search: S,
    grid: &Grid<D>,
    recipe: &Recipe,
    part: &Part<N>,
    largest: f32,
    mut scale: f32,
) -> Option<(f32, [u32; G])>
where
    Grid<D>: Odd<D>,
{
    let candidates = recipe.candidates;
    let levels = Grid::<D>::LEVELS;
    let most = (2 * levels - 1) as f32;
    let mut inverses = [[0f32; LANES]; V];
    for (candidate, inverse) in inverses.as_flattened_mut().iter_mut().enumerate() {
        let step = f32::from(recipe.first) + candidate.min(candidates - 1) as f32;
        *inverse = most + step * recipe.step;
    }
    let mut scales = [[0f32; LANES]; V];
    let mut inverse_of = [search.all(0.0); V];
    for ((inverses, scales), inverse_of) in inverses.iter().zip(&mut scales).zip(&mut inverse_of) {
        *inverse_of = search.floats(inverses) / search.all(largest);
        *scales = (search.all(1.0) / *inverse_of).array();
    }
    let (x, weights) = (part.x.as_chunks::<D>().0, part.weights.as_chunks::<D>().0);
    let group = |index: usize| Group { x: x[index], weights: part.roots.as_chunks::<D>().0[index] };
    let rounding = Rounding::new::<D, S>(search);
    // Levels of grids of 8 weights are there twice.
    let odd_numbers =
        search.floats(&std::array::from_fn(|place| (2 * (place % levels.next_power_of_two()) + 1) as f32));
    let mut codes = [[[0u32; LANES]; V]; G];
    let (mut sum_x, mut sum_q) = ([search.all(0.0); V], [search.all(0.0); V]);
    let mut usable = true;
    for (index, codes) in codes.iter_mut().enumerate() {
        let mut combinations = [search.integers(&[0; LANES]); V];
        for x in x[index].iter().rev() {
            let x = search.all(*x);
            for (combinations, inverses) in combinations.iter_mut().zip(&inverse_of) {
                *combinations = rounding.push::<D>(*combinations, *inverses * x);
            }
        }
        for (codes, combinations) in codes.iter_mut().zip(combinations) {
            *codes = rounding.finish(combinations);
        }
        let found = &mut codes.as_flattened_mut()[..candidates];
        grid.find(search, &group(index), &scales.as_flattened()[..candidates], found);
        usable &= found.iter().all(|code| *code != NOTHING);
        for (codes, found) in combinations.iter_mut().zip(&*codes) {
            *codes = search.integers(found);
        }
        for (at, (x, weight)) in x[index].iter().zip(&weights[index]).enumerate() {
            // What each level adds to the sums.
            let of_x = search.all(weight * x) * odd_numbers;
            let of_q = search.all(*weight) * odd_numbers * odd_numbers;
            for ((codes, sum_x), sum_q) in combinations.iter().zip(&mut sum_x).zip(&mut sum_q) {
                let level = codes.shifted(Grid::<D>::BITS * at);
                *sum_x = *sum_x + of_x.look_up::<D>(level);
                *sum_q = *sum_q + of_q.look_up::<D>(level);
            }
        }
    }
    let (sum_x, sum_q) = (sum_x.map(Floats::array), sum_q.map(Floats::array));
    if !usable {
        return None;
    }
    let mut best = 0f32;
    let mut chosen = None;
    let sums = sum_x.as_flattened().iter().zip(sum_q.as_flattened()).take(candidates);
    for (candidate, (sum_x, sum_q)) in sums.enumerate() {
        if *sum_q > 0.0 && sum_x * sum_x > best * sum_q {
            scale = sum_x / sum_q;
            best = scale * sum_x;
            chosen = Some(candidate);
        }
    }
    let mut chosen = chosen
        .map_or([if recipe.again == Again::AllIfAny { OFF_GRID } else { 0 }; G], |chosen| {
            codes.map(|codes| codes.as_flattened()[chosen])
        });
    let any = chosen.iter().any(|code| code & OFF_GRID != 0);
    if scale > 0.0 && (any || recipe.again == Again::All) {
        let inverse = 1.0 / scale;
        for (index, code) in chosen.iter_mut().enumerate() {
            if recipe.again == Again::OffGrid && *code & OFF_GRID == 0 {
                continue;
            }
            let levels = x[index].iter().rev();
            let mut at = levels.fold(0, |combination, x| {
                combination * Grid::<D>::LEVELS as u32 + level::<D>(inverse, *x).cast_unsigned()
            });
            grid.find(search, &group(index), &[scale], std::slice::from_mut(&mut at));
            if at == NOTHING {
                return None;
            }
            *code = at;
        }
        let (mut sum_x, mut sum_q) = (0f32, 0f32);
        for (index, code) in chosen.iter().enumerate() {
            for (at, (x, weight)) in x[index].iter().zip(&weights[index]).enumerate() {
                let q = odd::<D>(*code, at);
                sum_x += weight * x * q;
                sum_q += weight * q * q;
            }
        }
        if sum_q > 0.0 {
            scale = sum_x / sum_q;
        }
    }
    (!scale.is_nan()).then_some((scale, chosen))
}

/// All parts of a super-block.
struct Fitted<const N: usize, const G: usize, const P: usize> {
    parts: [Part<N>; P],
    /// Indices of points.
    points: [[u16; G]; P],
    scales: [f32; P],
}

impl<const N: usize, const G: usize, const P: usize> Fitted<N, G, P> {
    /// `None` where numbers overflow. `start` is given the parts, and gives the scale to begin with and the magnitude that the
    /// candidate scales divide by, of each.
    #[inline(always)]
    fn new<const D: usize, const V: usize, S: Nearest>(
        search: S,
        grid: &Grid<D>,
        recipe: &Recipe,
        x: &Weights,
        importance: Option<&Weights>,
        start: impl FnOnce(&[Part<N>; P]) -> [(f32, f32); P],
    ) -> Option<Self>
    where
        Grid<D>: Odd<D>,
    {
        let energy = recipe.energy * x.iter().fold(0f32, |sum, x| sum + x * x) / 256.0;
        let mut parts = [Part::EMPTY; P];
        for (index, (part, x)) in parts.iter_mut().zip(x.as_chunks::<N>().0).enumerate() {
            *part = Part::new(recipe, x, importance.map(|all| &all.as_chunks::<N>().0[index]), energy);
        }
        let start = start(&parts);
        let mut fitted = Self { parts, points: [[0; G]; P], scales: [0.0; P] };
        for (index, part) in fitted.parts.iter_mut().enumerate() {
            let (scale, largest) = start[index];
            if part.largest < recipe.negligible || part.largest == 0.0 || largest <= 0.0 {
                part.signs = [0; 4];
                continue;
            }
            let (scale, codes) = fit::<D, N, G, V, S>(search, grid, recipe, part, largest, scale)?;
            if scale < 0.0 {
                part.flip(recipe);
            }
            fitted.scales[index] = scale.abs();
            fitted.points[index] = codes.map(|code| grid.index(code as u16));
        }
        Some(fitted)
    }

    /// The scale of the super-block and the codes of the parts' scales, unless all are zero.
    #[inline(always)]
    fn scales(&self) -> Option<(f32, [u8; P])> {
        let largest =
            self.scales.iter().fold(0f32, |largest, scale| if largest > *scale { largest } else { *scale });
        if largest == 0.0 {
            return None;
        }
        let d = largest / 31.0;
        let inverse = 1.0 / d;
        Some((
            d,
            self.scales.map(|scale| nearest(0.5 * (inverse * scale - 1.0)).clamp(0, 15).to_le_bytes()[0]),
        ))
    }
}

/// Where the candidates of all types but IQ2_XXS begin.
#[inline(always)]
fn largest_over<const N: usize, const P: usize>(
    levels: f32,
) -> impl FnOnce(&[Part<N>; P]) -> [(f32, f32); P] {
    move |parts| std::array::from_fn(|part| (parts[part].largest / levels, parts[part].largest))
}

/// Two codes of four bits a byte.
#[inline(always)]
fn pairs<const P: usize, const H: usize>(codes: [u8; P]) -> [u8; H] {
    std::array::from_fn(|pair| codes[2 * pair] | codes[2 * pair + 1] << 4)
}

/// Four times seven signs.
#[inline(always)]
fn pack_signs(signs: [u8; 4]) -> u32 {
    signs.iter().rev().fold(0, |bits, signs| bits << 7 | u32::from(*signs))
}

/// The scale of least weighted squared error of each part with levels 0 to 4, ggml's `make_qp_quants`: one part a lane.
#[inline(always)]
fn scales_of_levels<S: Nearest>(search: S, parts: &[Part<32>; LANES]) -> [f32; LANES] {
    const MOST: f32 = 4.0;
    const NEGLIGIBLE: f32 = 1e-15;
    let all = |x: u32| search.integers(&[x; LANES]);
    let zero = search.all(0.0);
    let mut weights = [(zero, zero); 32];
    for (at, (x, weight)) in weights.iter_mut().enumerate() {
        let (mut of_x, mut of_weight) = ([0.0; LANES], [0.0; LANES]);
        for (lane, part) in parts.iter().enumerate() {
            (of_x[lane], of_weight[lane]) = (part.x[at], part.weights[at]);
        }
        (*x, *weight) = (search.floats(&of_x), search.floats(&of_weight));
    }
    let mut largest = zero;
    for (x, _) in &weights {
        largest = largest.or(x.less(largest), *x);
    }
    let (magic, mask, more) = (search.all(12_582_912.0), all(0x007f_ffff), all(0x0040_0000));
    let most = all(MOST as u32);
    let level = |scaled: S::Floats| scaled.nearest_and_more(magic, mask) - more;
    // Levels are kept in a byte without sign, so what is below zero becomes large; but not while candidates are compared.
    let byte = |level: <S::Floats as Floats>::Integers| level.and(all(255));
    let mut inverse = search.all(MOST) / largest;
    let scale = search.all(1.0) / inverse;
    let mut best = zero;
    for (x, weight) in &weights {
        let difference = *x - scale * byte(level(inverse * *x)).floats();
        best = best + *weight * difference * difference;
    }
    for step in (-4i8..=4).filter(|step| *step != 0) {
        let candidate = search.all(0.1 * f32::from(step) + MOST) / largest;
        let scale = search.all(1.0) / candidate;
        let mut error = zero;
        for (x, weight) in &weights {
            let difference = *x - scale * level(candidate * *x).min(most).floats();
            error = error + *weight * difference * difference;
        }
        let better = error.less(best);
        best = error.or(better, best);
        inverse = candidate.or(better, inverse);
    }
    let mut levels = [all(0); 32];
    let (mut sum_x, mut sum_l) = (zero, zero);
    for ((x, weight), kept) in weights.iter().zip(&mut levels) {
        let level = level(inverse * *x).min(most);
        *kept = byte(level);
        sum_x = sum_x + *weight * *x * level.floats();
        sum_l = sum_l + *weight * level.floats() * level.floats();
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((x, weight), kept) in weights.iter().zip(&mut levels) {
            let old = kept.floats();
            let others_x = sum_x - *weight * *x * old;
            let others_l = sum_l - *weight * old * old;
            let new = level(*x * others_l / others_x).min(most);
            let new_x = others_x + *weight * *x * new.floats();
            let new_l = others_l + *weight * new.floats() * new.floats();
            let usable = zero.less(others_x) & zero.less(others_l);
            let better = usable & (sum_x * sum_x * new_l).less(new_x * new_x * sum_l);
            // The same level is no change, though rounding may give better sums.
            let better = new.equal(*kept).and_not(better);
            *kept = byte(new).or(better, *kept);
            sum_x = new_x.or(better, sum_x);
            sum_l = new_l.or(better, sum_l);
            changed |= better.any();
        }
        // Without a change, another round changes nothing either.
        if !changed {
            break;
        }
    }
    let usable = zero.less(sum_l) & search.all(NEGLIGIBLE.next_down()).less(largest);
    (sum_x / sum_l).or(usable, zero).array()
}

impl IQ2_XXS {
    /// The block of `x`, which is finite.
    #[inline(always)]
    pub(crate) fn encode<S: Nearest>(search: S, x: &Weights, importance: Option<&Weights>) -> Self {
        const RECIPE: Recipe = Recipe {
            energy: 1.0,
            plain: |_, _| 0.0,
            negligible: 1e-15,
            even_signs: true,
            first: -6,
            step: 0.1,
            candidates: 13,
            again: Again::All,
        };
        let start =
            |parts: &[Part<32>; LANES]| scales_of_levels(search, parts).map(|scale| (scale, scale * 3.0));
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let Some(fitted) =
            Fitted::<32, 4, 8>::new::<8, 2, S>(search, grid::iq2_xxs(), &RECIPE, x, importance, start)
        else {
            return Self { d: FAILED, ..block };
        };
        let Some((d, scales)) = fitted.scales() else { return block };
        block.d = Half::new(d);
        for (index, part) in block.parts.iter_mut().enumerate() {
            part.points = fitted.points[index].map(|point| point.to_le_bytes()[0]);
            let rest = pack_signs(fitted.parts[index].signs) | u32::from(scales[index]) << 28;
            part.signs_and_scale = rest.to_le_bytes();
        }
        block
    }
}

impl IQ2_XS {
    /// The block of `x`, which is finite.
    #[inline(always)]
    pub(crate) fn encode<S: Nearest>(search: S, x: &Weights, importance: Option<&Weights>) -> Self {
        const RECIPE: Recipe = Recipe {
            energy: 1.0,
            plain: |_, _| 0.0,
            negligible: 1e-15,
            even_signs: true,
            first: -9,
            step: 0.1,
            candidates: 19,
            again: Again::OffGrid,
        };
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let start = largest_over(5.0);
        let Some(fitted) =
            Fitted::<16, 2, 16>::new::<8, 3, S>(search, grid::iq2_xs(), &RECIPE, x, importance, start)
        else {
            return Self { d: FAILED, ..block };
        };
        let Some((d, scales)) = fitted.scales() else { return block };
        block.d = Half::new(d);
        block.scales = pairs(scales);
        for (group, out) in block.points.iter_mut().enumerate() {
            let signs = u16::from(fitted.parts[group / 2].signs[group % 2]);
            *out = (fitted.points[group / 2][group % 2] | signs << 9).to_le_bytes();
        }
        block
    }
}

impl IQ2_S {
    /// The block of `x`, which is finite.
    #[inline(always)]
    pub(crate) fn encode<S: Nearest>(search: S, x: &Weights, importance: Option<&Weights>) -> Self {
        const RECIPE: Recipe = Recipe {
            energy: 2.0,
            plain: |energy, x| 0.25 * energy + x * x,
            negligible: 1e-8,
            even_signs: false,
            first: -9,
            step: 0.1,
            candidates: 19,
            again: Again::OffGrid,
        };
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let start = largest_over(5.0);
        let Some(fitted) =
            Fitted::<16, 2, 16>::new::<8, 3, S>(search, grid::iq2_s(), &RECIPE, x, importance, start)
        else {
            return Self { d: FAILED, ..block };
        };
        for group in 0..32 {
            let [low, high] = fitted.points[group / 2][group % 2].to_le_bytes();
            block.points[group] = low;
            block.high[group / 4] |= high << (group % 4 * 2);
            block.signs[group] = fitted.parts[group / 2].signs[group % 2];
        }
        if let Some((d, scales)) = fitted.scales() {
            block.d = Half::new(d * 0.9875);
            block.scales = pairs(scales);
        }
        block
    }
}

impl IQ3_XXS {
    /// The block of `x`, which is finite.
    #[inline(always)]
    pub(crate) fn encode<S: Nearest>(search: S, x: &Weights, importance: Option<&Weights>) -> Self {
        const RECIPE: Recipe = Recipe {
            energy: 2.0,
            plain: |_, x| x * x,
            negligible: 1e-8,
            even_signs: true,
            first: -15,
            step: 0.2,
            candidates: 31,
            again: Again::OffGrid,
        };
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let start = largest_over(15.0);
        let Some(fitted) =
            Fitted::<32, 8, 8>::new::<4, 4, S>(search, grid::iq3_xxs(), &RECIPE, x, importance, start)
        else {
            return Self { d: FAILED, ..block };
        };
        let Some((d, scales)) = fitted.scales() else { return block };
        block.d = Half::new(d * 1.0125);
        for (part, scale) in scales.into_iter().enumerate() {
            block.points[part] = fitted.points[part].map(|point| point.to_le_bytes()[0]);
            let rest = pack_signs(fitted.parts[part].signs) | u32::from(scale) << 28;
            block.signs_and_scales[part] = rest.to_le_bytes();
        }
        block
    }
}

impl IQ3_S {
    /// The block of `x`, which is finite.
    #[inline(always)]
    pub(crate) fn encode<S: Nearest>(search: S, x: &Weights, importance: Option<&Weights>) -> Self {
        const RECIPE: Recipe = Recipe {
            energy: 2.0,
            plain: |_, x| x * x,
            negligible: 0.0,
            even_signs: false,
            first: -9,
            step: 0.2,
            candidates: 19,
            again: Again::AllIfAny,
        };
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let start = largest_over(15.0);
        let Some(fitted) =
            Fitted::<32, 8, 8>::new::<4, 3, S>(search, grid::iq3_s(), &RECIPE, x, importance, start)
        else {
            return Self { d: FAILED, ..block };
        };
        // Where a part is all zeros, ggml does not move on in points and signs: those of later parts lie too early, and decode as
        // another part's. Equal bytes matter more here.
        let written = fitted.points.iter().enumerate().filter(|(part, _)| fitted.parts[*part].largest != 0.0);
        for (place, (part, points)) in written.enumerate() {
            for (group, point) in points.iter().enumerate() {
                let [low, high] = point.to_le_bytes();
                block.points[place][group] = low;
                block.high[part] |= high << group;
            }
            block.signs[place] = fitted.parts[part].signs;
        }
        if let Some((d, scales)) = fitted.scales() {
            block.d = Half::new(d * 1.033);
            block.scales = pairs(scales);
        }
        block
    }
}
