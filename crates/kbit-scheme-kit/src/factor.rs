//! The factors by which the errors of earlier columns correct later ones.
//!
//! With `H` the mean of `x x^T` over the inputs, what a row's errors `e` cost is `e H e^T`. Let `H = U D U^T` with `U` upper triangular
//! and ones on its diagonal, and `V` the inverse of `U`. Once column `i` has its level, the best that later columns can do about the
//! error `d` is to move by `-d V[i][j]`: that is GPTQ (Frantar et al. 2022), whose factor of the inverse of `H` has the rows of `V`
//! divided by the square root of `D`, found without inverting `H` (compare Chee et al. 2023, QuIP). What stays is the sum of
//! `D[i] d^2`: `D[i]` is the variance of an input that the later ones do not explain.

use crate::parallel_map;
use kbit_plugin::{DefaultValue, Error, Host, Param, ParamKind};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The parameter `damping`.
pub const DAMPING_PARAM: Param = Param {
    key: "damping",
    doc: "What is added to each second moment, as a share of their mean: more of it trusts the calibration text less.",
    unit: "",
    kind: ParamKind::Float { min: 0.0, max: 10.0 },
    default: DefaultValue::Float(0.01),
};

/// Rows and columns of a tile: three of them stay in the fastest cache.
const TILE: usize = 32;
/// Rows of a tile that are multiplied side by side.
const SIDE: usize = 4;
/// Vectors of columns that are multiplied side by side.
const ABREAST: usize = 2;
/// A pivot below this share of its own second moment is the rounding of moments to 2^-24: the later inputs explain the column wholly.
const EXPLAINED: f64 = 1e-6;
/// A pivot below minus this share of the mean second moment is none of a mean of `x x^T`, whose entries are rounded to 2^-24.
const INDEFINITE: f64 = 1e-3;
/// Columns that are corrected at a time.
const CORRECTED: usize = 1024;

/// The factors of a matrix of second moments, in an order of columns.
#[derive(Debug)]
pub struct Factor {
    cols: usize,
    /// Rows of `V` without the one on the diagonal: `n - 1` numbers, then `n - 2`, and so on.
    rows: Vec<f32>,
    /// `D`.
    variances: Vec<f32>,
}

/// Why there are no factors.
#[derive(Clone, Debug)]
pub enum NoFactor {
    /// A second moment is not finite: of this column, in the order of the matrix.
    NotFinite(usize),
    /// The matrix is no mean of `x x^T`: found at this column.
    Indefinite(usize),
    /// The host did not go on.
    Stopped(Error),
}

impl NoFactor {
    /// What is wrong with the moments of a tensor, and what to do.
    #[must_use]
    pub fn of_tensor(self, tensor: &str) -> Error {
        Error::numeric(match self {
            Self::Stopped(error) => return error,
            Self::NotFinite(column) => format!(
                "tensor {tensor}: the second moments of column {column} are not finite; gather them anew with `kbit calibrate`"
            ),
            Self::Indefinite(column) => format!(
                "tensor {tensor}: the second moments of column {column} are those of no inputs; gather them anew with `kbit calibrate`, or raise `damping`"
            ),
        })
    }
}

impl Factor {
    /// Factors `moments` `[n][stride]`, with its columns taken in the order of `order`, after `damping` times the mean of the diagonal was
    /// added to the diagonal. On the threads of `host`, so in `begin` and `prepare` alone; the factors do not depend on their number.
    ///
    /// Taken from the last column to the first, the factors are those of `L D L^T`, and `V` is the inverse of `L`. Both are found tile by
    /// tile, so that what is read from memory is multiplied with many numbers.
    ///
    /// # Errors
    /// Moments that are not finite, or not positive semidefinite; cancellation.
    pub fn new(
        host: &Host<'_>,
        moments: &[f32],
        stride: usize,
        order: &[u32],
        damping: f64,
    ) -> Result<Self, NoFactor> {
        let cols = order.len();
        let given = Given::new(moments, stride, order, damping)?;
        let (mut lower, pivots) = decompose(host, &given)?;
        invert(host, &mut lower, cols.div_ceil(TILE)).map_err(NoFactor::Stopped)?;
        let mut rows = Vec::with_capacity(cols * cols.saturating_sub(1) / 2);
        for row in (0..cols).rev() {
            let tiles = &lower[place(row / TILE, 0)..];
            #[expect(clippy::cast_possible_truncation, reason = "kept in single precision")]
            rows.extend((0..row).rev().map(|col| tiles[col / TILE][row % TILE][col % TILE] as f32));
        }
        #[expect(clippy::cast_possible_truncation, reason = "kept in single precision")]
        let variances = pivots[..cols].iter().rev().map(|pivot| *pivot as f32).collect();
        Ok(Self { cols, rows, variances })
    }

    /// Of each column, by the place in the order: the variance that later columns do not explain.
    #[must_use]
    pub fn variances(&self) -> &[f32] {
        &self.variances
    }

    /// What is to be taken from each of the places after `place`, for an error of 1 there.
    #[inline(always)]
    fn after(&self, place: usize) -> &[f32] {
        let start = place * (2 * self.cols - place - 1) / 2;
        &self.rows[start..][..self.cols - place - 1]
    }

    /// Takes from `rest`, which are the numbers after `place`, or the first of them, what an error there asks for.
    #[inline(always)]
    pub fn take(&self, place: usize, error: f32, rest: &mut [f32]) {
        take(error, &self.after(place)[..rest.len()], rest);
    }

    /// Corrects rows `targets` `[rows][cols]` after the places of `block` by the errors there, of which each row has `stride`, the first
    /// that of the block's first place.
    #[inline(always)]
    pub fn correct(&self, block: &Range<usize>, errors: &[f32], stride: usize, targets: &mut [f32]) {
        for start in (block.end..self.cols).step_by(CORRECTED) {
            let end = (start + CORRECTED).min(self.cols);
            for place in block.clone() {
                let factors = &self.after(place)[start - place - 1..end - place - 1];
                for (target, errors) in targets.chunks_mut(self.cols).zip(errors.chunks(stride)) {
                    take(errors[place - block.start], factors, &mut target[start..end]);
                }
            }
        }
    }
}

/// `out -= factor * x`.
#[inline(always)]
fn take(factor: f32, x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out -= factor * x;
    }
}

/// A part of a matrix, row by row.
type Tile = [[f64; TILE]; TILE];

const ZEROS: Tile = [[0.0; TILE]; TILE];

/// Where a tile of a lower triangle lies among all of them, row after row.
const fn place(row: usize, col: usize) -> usize {
    row * (row + 1) / 2 + col
}

/// The matrix to factor: second moments from the last column of the order to the first, with what is added to the diagonal. Tiles at the
/// end are filled up with zeros, which factor to zeros.
struct Given<'a> {
    moments: &'a [f32],
    stride: usize,
    order: &'a [u32],
    mean: f64,
    added: f64,
}

impl<'a> Given<'a> {
    fn new(moments: &'a [f32], stride: usize, order: &'a [u32], damping: f64) -> Result<Self, NoFactor> {
        let mut given = Self { moments, stride, order, mean: 0.0, added: 0.0 };
        let diagonal = |row: usize| given.at(row, row);
        #[expect(clippy::cast_precision_loss, reason = "a number of columns")]
        let mean = (0..order.len()).map(diagonal).sum::<f64>() / order.len().max(1) as f64;
        if !mean.is_finite() {
            let row = (0..order.len()).find(|row| !diagonal(*row).is_finite());
            return Err(NoFactor::NotFinite(row.map_or(0, |row| given.column(row))));
        }
        (given.mean, given.added) = (mean, damping * mean);
        Ok(given)
    }

    /// The column that row `row` is of.
    fn column(&self, row: usize) -> usize {
        self.order[self.order.len() - 1 - row] as usize
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        if row.max(col) >= self.order.len() {
            return 0.0;
        }
        let moment = f64::from(self.moments[self.column(row) * self.stride + self.column(col)]);
        if row == col { moment + self.added } else { moment }
    }

    fn tile(&self, row: usize, col: usize) -> Tile {
        let at = |a, b| self.at(row * TILE + a, col * TILE + b);
        std::array::from_fn(|a| std::array::from_fn(|b| at(a, b)))
    }

    /// The pivot of a row, if it is one: 0 where earlier rows explain the row.
    fn pivot(&self, row: usize, pivot: f64) -> Result<f64, NoFactor> {
        if row >= self.order.len() {
            return Ok(0.0);
        }
        let whole = self.at(row, row);
        if !pivot.is_finite() {
            return Err(NoFactor::NotFinite(self.column(row)));
        }
        if pivot < -INDEFINITE * self.mean.abs() || whole < 0.0 {
            return Err(NoFactor::Indefinite(self.column(row)));
        }
        Ok(if pivot > EXPLAINED * whole { pivot } else { 0.0 })
    }
}

/// The tiles of `L`, and the diagonal of `D`. Column after column of tiles: each tile less the products of those before it, then solved
/// for the tile on the diagonal.
fn decompose(host: &Host<'_>, given: &Given<'_>) -> Result<(Vec<Tile>, Vec<f64>), NoFactor> {
    let arch = pulp::Arch::new();
    let side = given.order.len().div_ceil(TILE);
    // L D, until L itself is wanted.
    let mut lower = vec![ZEROS; place(side, 0)];
    let (mut pivots, mut inverses) = (vec![0f64; side * TILE], vec![0f64; side * TILE]);
    for col in 0..side {
        let across: Vec<Tile> = (0..col)
            .map(|before| transposed(&lower[place(col, before)], &inverses[before * TILE..]))
            .collect();
        let rest = |row: usize| {
            let mut tile = given.tile(row, col);
            for (before, across) in across.iter().enumerate() {
                arch.dispatch(Subtract { out: &mut tile, a: &lower[place(row, before)], b: across });
            }
            tile
        };
        let mut corner = rest(col);
        let own = col * TILE..(col + 1) * TILE;
        let solver = factor_corner(&mut corner, given, col, &mut pivots[own.clone()], &mut inverses[own])?;
        let below = parallel_map(host, side - col - 1, |index| {
            let mut tile = rest(col + 1 + index);
            arch.dispatch(|| solve(&mut tile, &solver));
            Ok(tile)
        });
        for (index, tile) in below.map_err(NoFactor::Stopped)?.into_iter().enumerate() {
            lower[place(col + 1 + index, col)] = tile;
        }
        lower[place(col, col)] = corner;
    }
    for row in 0..side {
        for (col, tile) in lower[place(row, 0)..=place(row, row)].iter_mut().enumerate() {
            for numbers in tile {
                let inverses = &inverses[col * TILE..];
                numbers.iter_mut().zip(inverses).for_each(|(number, inverse)| *number *= inverse);
            }
        }
    }
    Ok((lower, pivots))
}

/// Factors a tile on the diagonal, which becomes `L D` below it. Returns `L` with its rows as columns.
fn factor_corner(
    tile: &mut Tile,
    given: &Given<'_>,
    col: usize,
    pivots: &mut [f64],
    inverses: &mut [f64],
) -> Result<Tile, NoFactor> {
    let mut solver = ZEROS;
    for row in 0..TILE {
        let mut pivot = tile[row][row];
        for j in 0..row {
            for c in 0..j {
                tile[row][j] -= tile[row][c] * solver[c][j];
            }
            let scaled = tile[row][j];
            solver[j][row] = scaled * inverses[j];
            pivot -= scaled * solver[j][row];
        }
        pivots[row] = given.pivot(col * TILE + row, pivot)?;
        inverses[row] = if pivots[row] > 0.0 { 1.0 / pivots[row] } else { 0.0 };
    }
    Ok(solver)
}

/// Makes the rows of a tile those of `L D`, `solver` being `L` on the diagonal with its rows as columns.
#[inline(always)]
fn solve(tile: &mut Tile, solver: &Tile) {
    for numbers in tile {
        for (c, solver) in solver.iter().enumerate() {
            let scaled = numbers[c];
            for j in c + 1..TILE {
                numbers[j] -= scaled * solver[j];
            }
        }
    }
}

/// The tile with its rows as columns, each column times its number of `by`.
fn transposed(tile: &Tile, by: &[f64]) -> Tile {
    std::array::from_fn(|col| std::array::from_fn(|row| tile[row][col] * by[col]))
}

/// `out -= a * b`, one product after the other.
struct Subtract<'a> {
    out: &'a mut Tile,
    a: &'a Tile,
    b: &'a Tile,
}

impl WithSimd for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { out, a, b } = self;
        for (out, a) in out.as_chunks_mut::<SIDE>().0.iter_mut().zip(a.as_chunks::<SIDE>().0) {
            let mut out = out.each_mut().map(|row| S::as_mut_simd_f64s(row).0);
            for first in (0..out[0].len()).step_by(ABREAST) {
                let mut sums = [[simd.splat_f64s(0.0); ABREAST]; SIDE];
                for (sums, out) in sums.iter_mut().zip(&out) {
                    sums.copy_from_slice(&out[first..first + ABREAST]);
                }
                for (c, b) in b.iter().enumerate() {
                    let b = &S::as_simd_f64s(b).0[first..first + ABREAST];
                    for (sums, a) in sums.iter_mut().zip(a) {
                        let a = simd.splat_f64s(a[c]);
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum = simd.sub_f64s(*sum, simd.mul_f64s(a, *b));
                        }
                    }
                }
                for (sums, out) in sums.iter().zip(&mut out) {
                    out[first..first + ABREAST].copy_from_slice(sums);
                }
            }
        }
    }
}

/// Makes the tiles of a lower triangle with ones on its diagonal, which are not looked at, those of its inverse.
///
/// Row `i` of the inverse is minus the sum of the inverse's rows before it, by the numbers of row `i`.
fn invert(host: &Host<'_>, lower: &mut [Tile], side: usize) -> Result<(), Error> {
    let arch = pulp::Arch::new();
    for row in 0..side {
        let corner = inverse_of_corner(&lower[place(row, row)]);
        let minus = corner.map(|numbers| numbers.map(|number| -number));
        let tiles = parallel_map(host, row, |col| {
            let (mut sum, mut tile) = (ZEROS, ZEROS);
            for between in col..row {
                let (own, before) = (&lower[place(row, between)], &lower[place(between, col)]);
                arch.dispatch(Subtract { out: &mut sum, a: own, b: before });
            }
            arch.dispatch(Subtract { out: &mut tile, a: &minus, b: &sum });
            Ok(tile)
        })?;
        lower[place(row, 0)..place(row, row)].copy_from_slice(&tiles);
        lower[place(row, row)] = corner;
    }
    Ok(())
}

/// The inverse of a tile with ones on its diagonal and zeros above it, neither of which are looked at.
fn inverse_of_corner(tile: &Tile) -> Tile {
    let mut inverse = ZEROS;
    for row in 0..TILE {
        let (before, own) = inverse.split_at_mut(row);
        own[0][row] = 1.0;
        for (factor, before) in tile[row].iter().zip(before) {
            for (own, before) in own[0].iter_mut().zip(before) {
                *own -= factor * *before;
            }
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::moments;

    #[test]
    fn factors_make_the_matrix_diagonal() {
        for cols in [1, 2, 7, 31, 32, 33, 70] {
            let h = moments(cols, 3 * cols, 5);
            let order: Vec<u32> = (0..cols as u32).map(|j| (j * 7 + 3) % cols as u32).collect();
            let order = if cols % 7 == 0 { (0..cols as u32).rev().collect() } else { order };
            let factor = Factor::new(&Host::none(), &h, cols, &order, 0.0).unwrap();
            let v = |row: usize, col: usize| match row.cmp(&col) {
                std::cmp::Ordering::Less => f64::from(factor.after(row)[col - row - 1]),
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => 0.0,
            };
            let h = |a: usize, b: usize| f64::from(h[order[a] as usize * cols + order[b] as usize]);
            let largest = (0..cols).map(|a| h(a, a)).fold(0.0, f64::max);
            for a in 0..cols {
                for b in 0..cols {
                    // V H V^T = D.
                    let terms = (0..cols).flat_map(|k| (0..cols).map(move |l| (k, l)));
                    let sum: f64 = terms.map(|(k, l)| v(a, k) * h(k, l) * v(b, l)).sum();
                    let expected = if a == b { f64::from(factor.variances()[a]) } else { 0.0 };
                    // Factors, some of them above 1, are rounded to single precision.
                    let bound = 20.0 * cols as f64 * f64::from(f32::EPSILON) * largest;
                    assert!((sum - expected).abs() <= bound, "{cols}: {a}, {b}: {sum}, {expected}");
                }
            }
        }
    }

    #[test]
    fn zeros_and_ranks_that_are_missing_give_no_corrections() {
        let order: Vec<u32> = (0..12).collect();
        let factor = Factor::new(&Host::none(), &[0.0; 144], 12, &order, 0.01).unwrap();
        assert!(factor.rows.iter().chain(factor.variances()).all(|x| *x == 0.0));
        // Three inputs for twelve columns.
        let h = moments(12, 3, 9);
        let factor = Factor::new(&Host::none(), &h, 12, &order, 0.0).unwrap();
        assert!(factor.rows.iter().all(|x| x.is_finite()));
        let explained = factor.variances().iter().filter(|variance| **variance == 0.0).count();
        assert!(explained >= 8, "{:?}", factor.variances());
        let damped = Factor::new(&Host::none(), &h, 12, &order, 0.01).unwrap();
        assert!(damped.variances().iter().all(|variance| *variance > 0.0));
    }

    #[test]
    fn what_is_no_mean_of_squares_is_refused_at_its_column() {
        let order: Vec<u32> = (0..3).collect();
        let mut h = [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0];
        h[4] = f32::NAN;
        assert!(matches!(Factor::new(&Host::none(), &h, 3, &order, 0.01), Err(NoFactor::NotFinite(1))));
        h[4] = -2.0;
        assert!(matches!(Factor::new(&Host::none(), &h, 3, &order, 0.01), Err(NoFactor::Indefinite(1))));
        let outside = [1.0, 5.0, 5.0, 1.0];
        assert!(matches!(
            Factor::new(&Host::none(), &outside, 2, &order[..2], 0.01),
            Err(NoFactor::Indefinite(0))
        ));
        let inside = [1.0, f32::INFINITY, f32::INFINITY, 1.0];
        assert!(matches!(
            Factor::new(&Host::none(), &inside, 2, &order[..2], 0.01),
            Err(NoFactor::NotFinite(_))
        ));
    }
}
