//! Grids of the IQ types while encoding: which points there are around every combination of levels, and the search among them.
//!
//! A group of weights is rounded to a combination of levels first. Where that is no point of the grid, the nearest of a few
//! neighbours is chosen: the points at the least distance from the combination, and those at the next one or two distances,
//! in the order of distance and index. Lists as in ggml's `iq2xs_init_impl` and `iq3xs_init_impl`, built when first needed.
//!
//! The search is exact, ties included: every distance is summed in the order of the weights, and of equal ones the first wins.
//! A term of the sum depends on one level only, so there are few of them, and a distance is a sum of looked up terms
//! ([`Nearest`]).

use crate::arch::lanes::Lanes;
use crate::codebook;
use std::sync::OnceLock;

/// Codes in a unit of a list of neighbours. Lists are whole units (in grids of 8 weights, whole pairs of units); the last code is
/// repeated.
pub(crate) const UNIT: usize = 8;

/// A found code has this bit where the combination of levels was no point of the grid.
pub(crate) const OFF_GRID: u32 = 1 << 16;
/// Found where no distance is a number below the largest.
pub(crate) const NOTHING: u32 = u32::MAX;

/// A grid of points of `D` weights: 8 with 3 levels or 4 with 8 levels.
pub(crate) struct Grid<const D: usize> {
    codes: Vec<u16>,
    /// By combination: the place of a point and no units, or the first unit of a list and how many.
    places: Vec<Place>,
    units: Vec<[u16; UNIT]>,
}

#[derive(Clone, Copy)]
struct Place {
    first: u16,
    units: u16,
}

/// What a grid has for a combination of levels.
pub(crate) enum Around<'a> {
    /// The combination is the point of this code.
    Point(u16),
    /// The codes of its neighbours.
    Neighbours(&'a [[u16; UNIT]]),
}

impl<const D: usize> Grid<D> {
    /// Bits of a level in a code.
    pub(crate) const BITS: usize = if D == 8 { 2 } else { 3 };
    /// Levels of a weight.
    pub(crate) const LEVELS: usize = if D == 8 { 3 } else { 8 };
    /// Combinations of levels.
    const COMBINATIONS: usize = Self::LEVELS.pow(D as u32);

    /// The levels of a code.
    fn levels(code: u16) -> [u8; D] {
        std::array::from_fn(|weight| (code >> (Self::BITS * weight)) as u8 & ((1 << Self::BITS) - 1))
    }

    /// The number of the combination of levels that is `code`.
    fn combination(code: u16) -> usize {
        Self::levels(code).iter().rev().fold(0, |sum, level| sum * Self::LEVELS + usize::from(*level))
    }

    /// `distances`: at how many least distances from a combination points are its neighbours.
    fn new(codes: &[u16], distances: usize) -> Self {
        let mut places = vec![Place { first: 0, units: 0 }; Self::COMBINATIONS];
        let mut on_grid = vec![false; Self::COMBINATIONS];
        for (index, code) in codes.iter().enumerate() {
            let combination = Self::combination(*code);
            places[combination].first = u16::try_from(index).expect("grids are small");
            on_grid[combination] = true;
        }
        // By weight and level, the square that each point adds to a distance: a byte holds the sum.
        const { assert!(D * (Self::LEVELS - 1) * (Self::LEVELS - 1) < 256) };
        let squares: Vec<Vec<Vec<u8>>> = (0..D)
            .map(|weight| {
                let points: Vec<u8> = codes.iter().map(|code| Self::levels(*code)[weight]).collect();
                (0..Self::LEVELS as u8)
                    .map(|level| points.iter().map(|point| point.abs_diff(level).pow(2)).collect())
                    .collect()
            })
            .collect();
        let mut units = Vec::new();
        let mut sums = vec![0u8; codes.len()];
        for (combination, place) in places.iter_mut().enumerate().filter(|(at, _)| !on_grid[*at]) {
            sums.fill(0);
            let mut rest = combination;
            for squares in &squares {
                for (sum, square) in sums.iter_mut().zip(&squares[rest % Self::LEVELS]) {
                    *sum += square;
                }
                rest /= Self::LEVELS;
            }
            let mut seen = [false; 256];
            for sum in &sums {
                seen[usize::from(*sum)] = true;
            }
            let most = (0..=u8::MAX).filter(|sum| seen[usize::from(*sum)]).take(distances).last();
            let near = codes.iter().zip(&sums).filter(|(_, sum)| Some(**sum) <= most);
            let mut near: Vec<(u8, u16)> = near.map(|(code, sum)| (*sum, *code)).collect();
            // Codes ascend as indices do.
            near.sort_unstable();
            let mut list: Vec<u16> = near.into_iter().map(|(_, code)| code).collect();
            let first = units.len();
            let last = list.last().copied().unwrap_or_default();
            list.resize(list.len().next_multiple_of(if D == 8 { 2 * UNIT } else { UNIT }), last);
            units.extend_from_slice(list.as_chunks().0);
            *place = Place {
                first: u16::try_from(first).expect("lists are short"),
                units: u16::try_from(units.len() - first).expect("lists are short"),
            };
        }
        Self { codes: codes.to_vec(), places, units }
    }

    /// What there is around a combination of levels.
    #[inline(always)]
    pub(crate) fn around(&self, combination: u32) -> Around<'_> {
        let place = self.places[combination as usize];
        let first = usize::from(place.first);
        if place.units == 0 {
            return Around::Point(self.codes[first]);
        }
        Around::Neighbours(&self.units[first..first + usize::from(place.units)])
    }

    /// The index of a point, which blocks store.
    pub(crate) fn index(&self, code: u16) -> u16 {
        self.places[Self::combination(code)].first
    }
}

/// A group of weights, and what their errors weigh.
pub(crate) struct Group<const D: usize> {
    pub x: [f32; D],
    pub weights: [f32; D],
}

/// The search for the nearest point, by instruction set.
///
/// `at`: for each scale the number of the combination of levels; becomes the code of the point: the combination itself where it
/// is on the grid, else the neighbour of least Σ weight · (scale · `values[level]` - x)², with [`OFF_GRID`], or [`NOTHING`].
pub(crate) trait Nearest: Lanes {
    /// In a grid of 8 weights.
    fn nearest8(self, grid: &Grid<8>, group: &Group<8>, values: &[f32; 4], scales: &[f32], at: &mut [u32]);
    /// In a grid of 4 weights.
    fn nearest4(self, grid: &Grid<4>, group: &Group<4>, values: &[f32; 8], scales: &[f32], at: &mut [u32]);
}

/// The search without vectors.
#[derive(Clone, Copy)]
pub(crate) struct OneByOne;

impl OneByOne {
    #[inline(always)]
    fn nearest<const D: usize, const L: usize>(
        grid: &Grid<D>,
        group: &Group<D>,
        values: &[f32; L],
        scales: &[f32],
        at: &mut [u32],
    ) {
        for (scale, at) in scales.iter().zip(at) {
            let list = match grid.around(*at) {
                Around::Point(code) => {
                    *at = u32::from(code);
                    continue;
                }
                Around::Neighbours(list) => list,
            };
            let mut terms = [[0f32; L]; D];
            for ((terms, x), weight) in terms.iter_mut().zip(&group.x).zip(&group.weights) {
                for (term, value) in terms.iter_mut().zip(values) {
                    let difference = scale * value - x;
                    *term = weight * difference * difference;
                }
            }
            let mut least = f32::MAX;
            *at = NOTHING;
            for code in list.as_flattened() {
                let mut sum = 0f32;
                for (weight, terms) in terms.iter().enumerate() {
                    sum += terms[usize::from(code >> (Grid::<D>::BITS * weight)) % L];
                }
                if sum < least {
                    least = sum;
                    *at = u32::from(*code) | OFF_GRID;
                }
            }
        }
    }
}

impl Nearest for OneByOne {
    #[inline(always)]
    fn nearest8(self, grid: &Grid<8>, group: &Group<8>, values: &[f32; 4], scales: &[f32], at: &mut [u32]) {
        Self::nearest(grid, group, values, scales, at);
    }

    #[inline(always)]
    fn nearest4(self, grid: &Grid<4>, group: &Group<4>, values: &[f32; 8], scales: &[f32], at: &mut [u32]) {
        Self::nearest(grid, group, values, scales, at);
    }
}

macro_rules! grids {
    ($($name:ident = $weights:literal, $codes:ident, $distances:literal;)*) => {
        $(pub(crate) fn $name() -> &'static Grid<$weights> {
            static GRID: OnceLock<Grid<$weights>> = OnceLock::new();
            GRID.get_or_init(|| Grid::new(&codebook::$codes, $distances))
        })*
    };
}

grids! {
    iq2_xxs = 8, IQ2_XXS, 2;
    iq2_xs = 8, IQ2_XS, 2;
    iq2_s = 8, IQ2_S, 1;
    iq1 = 8, IQ1, 3;
    iq3_xxs = 4, IQ3_XXS, 2;
    iq3_s = 4, IQ3_S, 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination has itself, or the nearest points in the order of distance and index.
    fn check<const D: usize>(grid: &Grid<D>, codes: &[u16], distances: usize) {
        assert!(codes.is_sorted());
        let square = |a: u16, b: u16| -> i32 {
            let pairs = Grid::<D>::levels(a).into_iter().zip(Grid::<D>::levels(b));
            pairs.map(|(a, b)| (i32::from(a) - i32::from(b)).pow(2)).sum()
        };
        let all = (0..=u16::MAX >> (16 - D * Grid::<D>::BITS)).filter(|code| {
            Grid::<D>::levels(*code).iter().all(|level| usize::from(*level) < Grid::<D>::LEVELS)
        });
        for (_, code) in all.enumerate().filter(|(at, _)| at % 37 == 0) {
            match grid.around(u32::try_from(Grid::<D>::combination(code)).unwrap()) {
                Around::Point(point) => {
                    assert_eq!(point, code);
                    assert_eq!(codes[usize::from(grid.index(code))], code);
                }
                Around::Neighbours(list) => {
                    let mut expected: Vec<(i32, u16)> =
                        codes.iter().map(|point| (square(code, *point), *point)).collect();
                    expected.sort_unstable();
                    let mut steps = 0;
                    let mut last = -1;
                    expected.retain(|(square, _)| {
                        steps += usize::from(*square > last);
                        last = last.max(*square);
                        steps <= distances
                    });
                    let list = list.as_flattened();
                    assert!(expected[0].0 > 0 && list.len() - expected.len() < 2 * UNIT);
                    for (at, code) in list.iter().enumerate() {
                        assert_eq!(*code, expected[at.min(expected.len() - 1)].1);
                    }
                }
            }
        }
    }

    #[test]
    fn neighbours_are_the_nearest_points_by_distance_and_index() {
        check(iq2_xxs(), &codebook::IQ2_XXS, 2);
        check(iq2_xs(), &codebook::IQ2_XS, 2);
        check(iq2_s(), &codebook::IQ2_S, 1);
        check(iq1(), &codebook::IQ1, 3);
        check(iq3_xxs(), &codebook::IQ3_XXS, 2);
        check(iq3_s(), &codebook::IQ3_S, 3);
    }
}
