//! Least squares with what a report needs: bootstrap intervals, R², AIC, leave-one-out error.

use faer::Mat;
use faer::linalg::solvers::SolveLstsq;

/// A linear problem: one row a point.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Features of each point.
    pub rows: Vec<Vec<f64>>,
    /// Value of each point.
    pub values: Vec<f64>,
}

/// A solution with its quality.
#[derive(Clone, Debug)]
pub struct Solution {
    /// One constant a feature.
    pub constants: Vec<f64>,
    /// Central 95 % of the bootstrap, for each constant; empty without.
    pub intervals: Vec<(f64, f64)>,
    /// Share of the variance that is explained.
    pub r_squared: f64,
    /// Akaike's criterion for normal errors of unknown variance.
    pub aic: f64,
    /// Root mean square error of each point predicted from the others; `None` where a point is needed for a constant.
    pub leave_one_out: Option<f64>,
}

/// Largest condition number of features scaled to unit length at which constants still mean something.
pub const MAX_CONDITION: f64 = 1e4;

impl Problem {
    fn solve_rows(&self, rows: &[usize]) -> Option<Vec<f64>> {
        let constants = self.rows.first()?.len();
        if rows.len() < constants {
            return None;
        }
        let design = Mat::from_fn(rows.len(), constants, |i, j| self.rows[rows[i]][j]);
        if condition(&design) > MAX_CONDITION {
            return None;
        }
        let values = Mat::from_fn(rows.len(), 1, |i, _| self.values[rows[i]]);
        let solution = design.col_piv_qr().solve_lstsq(&values);
        let constants: Vec<f64> = (0..constants).map(|j| solution[(j, 0)]).collect();
        constants.iter().all(|constant| constant.is_finite()).then_some(constants)
    }

    /// Condition number of the features scaled to unit length.
    #[must_use]
    pub fn condition(&self) -> f64 {
        let columns = self.rows.first().map_or(0, Vec::len);
        condition(&Mat::from_fn(self.rows.len(), columns, |i, j| self.rows[i][j]))
    }

    /// The value that `constants` predict for `features`.
    #[must_use]
    pub fn predict(constants: &[f64], features: &[f64]) -> f64 {
        constants.iter().zip(features).map(|(constant, feature)| constant * feature).sum()
    }

    /// Solves the problem; `None` where its features are collinear.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of points")]
    pub fn solve(&self, bootstrap: usize, seed: u64) -> Option<Solution> {
        let n = self.values.len();
        let all: Vec<usize> = (0..n).collect();
        let constants = self.solve_rows(&all)?;
        let squares = |constants: &[f64]| -> f64 {
            let errors = self.rows.iter().zip(&self.values).map(|(row, y)| y - Self::predict(constants, row));
            errors.map(|error| error * error).sum()
        };
        let residual = squares(&constants);
        let mean = self.values.iter().sum::<f64>() / n as f64;
        let total: f64 = self.values.iter().map(|y| (y - mean).powi(2)).sum();
        // One more constant than features: the variance.
        let aic = n as f64 * (residual.max(1e-300) / n as f64).ln() + 2.0 * (constants.len() + 1) as f64;
        let mut state = seed;
        let mut samples: Vec<Vec<f64>> = vec![Vec::new(); constants.len()];
        for _ in 0..bootstrap {
            let drawn: Vec<usize> = (0..n).map(|_| draw(&mut state, n)).collect();
            if let Some(found) = self.solve_rows(&drawn) {
                for (sample, constant) in samples.iter_mut().zip(found) {
                    sample.push(constant);
                }
            }
        }
        // Fewer than half of the resamples determine the constants: an interval from them would mislead.
        let enough = samples.first().is_some_and(|sample| bootstrap > 0 && sample.len() * 2 > bootstrap);
        let intervals =
            if enough { samples.iter_mut().map(|sample| central(sample)).collect() } else { Vec::new() };
        let left_out = (0..n).map(|out| {
            let rest: Vec<usize> = (0..n).filter(|index| *index != out).collect();
            let found = self.solve_rows(&rest)?;
            Some((self.values[out] - Self::predict(&found, &self.rows[out])).powi(2))
        });
        let left_out: Option<Vec<f64>> = left_out.collect();
        Some(Solution {
            r_squared: if total > 0.0 { 1.0 - residual / total } else { 0.0 },
            aic,
            leave_one_out: left_out.map(|errors| (errors.iter().sum::<f64>() / n as f64).sqrt()),
            constants,
            intervals,
        })
    }
}

fn condition(design: &Mat<f64>) -> f64 {
    let (rows, columns) = (design.nrows(), design.ncols());
    let lengths: Vec<f64> =
        (0..columns).map(|j| (0..rows).map(|i| design[(i, j)].powi(2)).sum::<f64>().sqrt()).collect();
    if lengths.contains(&0.0) || rows == 0 {
        return f64::INFINITY;
    }
    let scaled = Mat::from_fn(rows, columns, |i, j| design[(i, j)] / lengths[j]);
    match scaled.singular_values() {
        Ok(values) => {
            let greatest = values.iter().copied().fold(0.0, f64::max);
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            if values.len() < columns || least <= 0.0 { f64::INFINITY } else { greatest / least }
        }
        Err(_) => f64::INFINITY,
    }
}

/// The 2.5 % and 97.5 % points of `sample`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "places in a sample"
)]
fn central(sample: &mut [f64]) -> (f64, f64) {
    sample.sort_by(f64::total_cmp);
    let at = |p: f64| sample[((sample.len() - 1) as f64 * p).round() as usize];
    (at(0.025), at(0.975))
}

/// A number below `n` (SplitMix64).
fn draw(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    usize::try_from((u128::from(z) * n as u128) >> 64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_with_its_interval() {
        let mut state = 7;
        let noise = |state: &mut u64| (draw(state, 1001) as f64 - 500.0) / 5000.0;
        let rows: Vec<Vec<f64>> = (0..40).map(|i| vec![1.0, f64::from(i)]).collect();
        let values: Vec<f64> = (0..40).map(|i| 2.0 - 0.5 * f64::from(i) + noise(&mut state)).collect();
        let solution = Problem { rows, values }.solve(400, 1).unwrap();
        assert!((solution.constants[0] - 2.0).abs() < 0.1 && (solution.constants[1] + 0.5).abs() < 0.01);
        let (low, high) = solution.intervals[1];
        assert!(low < -0.5 && -0.5 < high && high - low < 0.01, "{low} {high}");
        assert!(solution.r_squared > 0.99 && solution.leave_one_out.unwrap() < 0.1);
    }

    #[test]
    fn collinear_features_are_refused() {
        let rows: Vec<Vec<f64>> =
            (0..10).map(|i| vec![1.0, f64::from(i), 2.0 * f64::from(i) + 1e-9]).collect();
        let problem = Problem { rows, values: vec![1.0; 10] };
        assert!(problem.condition() > MAX_CONDITION && problem.solve(0, 1).is_none());
    }

    #[test]
    fn rubbish_has_a_poor_r_squared() {
        let mut state = 3;
        let rows: Vec<Vec<f64>> = (0..50).map(|i| vec![1.0, f64::from(i)]).collect();
        let values: Vec<f64> = (0..50).map(|_| draw(&mut state, 1000) as f64).collect();
        assert!(Problem { rows, values }.solve(0, 1).unwrap().r_squared < 0.2);
    }
}
