//! The factors by which the errors of earlier columns correct later ones.
//!
//! With `H` the mean of `x x^T` over the inputs, what a row's errors `e` cost is `e H e^T`. Let `H = U D U^T` with `U` upper triangular
//! and ones on its diagonal, and `V` the inverse of `U`. Once column `i` has its level, the best that later columns can do about the
//! error `d` is to move by `-d V[i][j]`: that is GPTQ (Frantar et al. 2022), whose factor of the inverse of `H` has the rows of `V`
//! divided by the square root of `D`, found without inverting `H` (compare Chee et al. 2023, QuIP). What stays is the sum of
//! `D[i] d^2`: `D[i]` is the variance of an input that the later ones do not explain.

use kbit_plugin::{DefaultValue, Error, Param, ParamKind};
use std::ops::Range;

/// The parameter `damping`.
pub const DAMPING_PARAM: Param = Param {
    key: "damping",
    doc: "What is added to each second moment, as a share of their mean: more of it trusts the calibration text less.",
    unit: "",
    kind: ParamKind::Float { min: 0.0, max: 10.0 },
    default: DefaultValue::Float(0.01),
};

/// Lanes of sums: a fixed order of additions that every instruction set keeps.
const LANES: usize = 8;
/// Rows that are factored side by side.
const ROWS: usize = 8;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFactor {
    /// A second moment is not finite: of this column, in the order of the matrix.
    NotFinite(usize),
    /// The matrix is no mean of `x x^T`: found at this column.
    Indefinite(usize),
}

impl NoFactor {
    /// What is wrong with the moments of a tensor, and what to do.
    #[must_use]
    pub fn of_tensor(self, tensor: &str) -> Error {
        Error::numeric(match self {
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
    /// added to the diagonal.
    ///
    /// # Errors
    /// Moments that are not finite, or not positive semidefinite.
    pub fn new(moments: &[f32], stride: usize, order: &[u32], damping: f64) -> Result<Self, NoFactor> {
        pulp::Arch::new().dispatch(|| Self::of(moments, stride, order, damping))
    }

    /// [`Factor::new`], compiled for each instruction set.
    ///
    /// Taken from the last column to the first, the factors are those of `L D L^T`, which are found row by row, and `V` is the inverse of
    /// `L`.
    #[inline(always)]
    fn of(moments: &[f32], stride: usize, order: &[u32], damping: f64) -> Result<Self, NoFactor> {
        let cols = order.len();
        let column = |row: usize| order[cols - 1 - row] as usize;
        let moment = |a: usize, b: usize| f64::from(moments[a * stride + b]);
        #[expect(clippy::cast_precision_loss, reason = "a number of columns")]
        let mean = (0..cols).map(|a| moment(a, a)).sum::<f64>() / cols.max(1) as f64;
        if !mean.is_finite() {
            return Err(NoFactor::NotFinite((0..cols).find(|a| !moment(*a, *a).is_finite()).unwrap_or(0)));
        }
        let added = damping * mean;

        // Rows of L without the diagonal, one after the other, and the diagonal of D.
        let mut lower = vec![0f64; cols * cols.saturating_sub(1) / 2];
        let (mut pivots, mut inverses) = (vec![0f64; cols], vec![0f64; cols]);
        // Rows of L times D that are being made.
        let mut scaled = vec![0f64; ROWS * cols];
        for first in (0..cols).step_by(ROWS) {
            let count = ROWS.min(cols - first);
            let (done, making) = lower.split_at_mut(start_of(first));
            for j in 0..first {
                let other = &done[start_of(j)..][..j];
                let rows: [&[f64]; ROWS] = std::array::from_fn(|row| &scaled[row * cols..][..j]);
                let sums = dots(rows, other);
                for (row, sum) in sums.iter().enumerate().take(count) {
                    scaled[row * cols + j] = moment(column(first + row), column(j)) - sum;
                }
            }
            for row in 0..count {
                let i = first + row;
                let at = |j: usize| start_of(j) - start_of(first);
                let (before, own) = making.split_at_mut(at(i));
                let own = &mut own[..i];
                for j in first..i {
                    let [sum] = dots([&scaled[row * cols..][..j]], &before[at(j)..][..j]);
                    scaled[row * cols + j] = moment(column(i), column(j)) - sum;
                }
                let scaled = &scaled[row * cols..][..i];
                for ((own, scaled), inverse) in own.iter_mut().zip(scaled).zip(&inverses) {
                    *own = scaled * inverse;
                }
                let [sum] = dots([scaled], own);
                let whole = moment(column(i), column(i)) + added;
                let pivot = whole - sum;
                if !pivot.is_finite() {
                    return Err(NoFactor::NotFinite(column(i)));
                }
                if pivot < -INDEFINITE * mean.abs() || whole < 0.0 {
                    return Err(NoFactor::Indefinite(column(i)));
                }
                if pivot > EXPLAINED * whole {
                    (pivots[i], inverses[i]) = (pivot, 1.0 / pivot);
                }
            }
        }

        invert(&mut lower, cols, &mut scaled);
        let mut rows = Vec::with_capacity(lower.len());
        for row in (0..cols).rev() {
            #[expect(clippy::cast_possible_truncation, reason = "kept in single precision")]
            rows.extend(lower[start_of(row)..][..row].iter().rev().map(|factor| *factor as f32));
        }
        #[expect(clippy::cast_possible_truncation, reason = "kept in single precision")]
        let variances = pivots.iter().rev().map(|pivot| *pivot as f32).collect();
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

/// Makes a lower triangle with ones on its diagonal, which are not stored, its inverse. `space` holds [`ROWS`] rows.
///
/// Row `i` of the inverse is minus the sum of the inverse's rows before it, by the numbers of row `i`.
#[inline(always)]
fn invert(lower: &mut [f64], cols: usize, space: &mut [f64]) {
    let add = |by: f64, row: &[f64], own: &mut [f64]| {
        for (own, row) in own.iter_mut().zip(row) {
            *own -= by * row;
        }
        own[row.len()] -= by;
    };
    for first in (0..cols).step_by(ROWS) {
        let count = ROWS.min(cols - first);
        let (done, making) = lower.split_at_mut(start_of(first));
        let at = |row: usize| start_of(row) - start_of(first);
        for row in 0..count {
            let own = &mut making[at(first + row)..][..first + row];
            space[row * cols..][..first + row].copy_from_slice(own);
            own.fill(0.0);
        }
        for k in 0..first {
            let other = &done[start_of(k)..][..k];
            for row in 0..count {
                add(space[row * cols + k], other, &mut making[at(first + row)..][..first + row]);
            }
        }
        for row in 1..count {
            let (before, own) = making.split_at_mut(at(first + row));
            for k in first..first + row {
                add(space[row * cols + k], &before[at(k)..][..k], &mut own[..first + row]);
            }
        }
    }
}

/// Where row `row` of a lower triangle without diagonal begins.
const fn start_of(row: usize) -> usize {
    row * row.saturating_sub(1) / 2
}

/// The products of `rows` with `other`, which is as long as each of them.
#[inline(always)]
fn dots<const R: usize>(rows: [&[f64]; R], other: &[f64]) -> [f64; R] {
    let mut sums = [[0f64; LANES]; R];
    let (whole, rest) = other.as_chunks::<LANES>();
    let chunks = rows.map(|row| &row.as_chunks::<LANES>().0[..whole.len()]);
    for (index, other) in whole.iter().enumerate() {
        for (sums, chunks) in sums.iter_mut().zip(&chunks) {
            let row = &chunks[index];
            for lane in 0..LANES {
                sums[lane] += row[lane] * other[lane];
            }
        }
    }
    let first = whole.len() * LANES;
    let mut results = [0.0; R];
    for ((result, sums), row) in results.iter_mut().zip(&sums).zip(&rows) {
        *result = sums.iter().sum::<f64>() + row[first..].iter().zip(rest).map(|(a, b)| a * b).sum::<f64>();
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::moments;

    #[test]
    fn factors_make_the_matrix_diagonal() {
        for cols in [1, 2, 7, 8, 9, 40] {
            let h = moments(cols, 3 * cols, 5);
            let order: Vec<u32> = (0..cols as u32).map(|j| (j * 7 + 3) % cols as u32).collect();
            let order = if cols % 7 == 0 { (0..cols as u32).rev().collect() } else { order };
            let factor = Factor::new(&h, cols, &order, 0.0).unwrap();
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
        let factor = Factor::new(&[0.0; 144], 12, &order, 0.01).unwrap();
        assert!(factor.rows.iter().chain(factor.variances()).all(|x| *x == 0.0));
        // Three inputs for twelve columns.
        let h = moments(12, 3, 9);
        let factor = Factor::new(&h, 12, &order, 0.0).unwrap();
        assert!(factor.rows.iter().all(|x| x.is_finite()));
        let explained = factor.variances().iter().filter(|variance| **variance == 0.0).count();
        assert!(explained >= 8, "{:?}", factor.variances());
        let damped = Factor::new(&h, 12, &order, 0.01).unwrap();
        assert!(damped.variances().iter().all(|variance| *variance > 0.0));
    }

    #[test]
    fn what_is_no_mean_of_squares_is_refused_at_its_column() {
        let order: Vec<u32> = (0..3).collect();
        let mut h = [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0];
        h[4] = f32::NAN;
        assert_eq!(Factor::new(&h, 3, &order, 0.01).unwrap_err(), NoFactor::NotFinite(1));
        h[4] = -2.0;
        assert_eq!(Factor::new(&h, 3, &order, 0.01).unwrap_err(), NoFactor::Indefinite(1));
        let outside = [1.0, 5.0, 5.0, 1.0];
        assert_eq!(Factor::new(&outside, 2, &order[..2], 0.01).unwrap_err(), NoFactor::Indefinite(0));
        let inside = [1.0, f32::INFINITY, f32::INFINITY, 1.0];
        assert!(matches!(Factor::new(&inside, 2, &order[..2], 0.01), Err(NoFactor::NotFinite(_))));
    }
}
