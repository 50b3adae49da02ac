//! Least squares by QR.

use super::{Random, Resampling, Solution, condition, student_factor};
use faer::Mat;
use faer::linalg::solvers::SolveLstsq;

/// A linear problem: one row of features a point.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Features of each point.
    pub rows: Vec<Vec<f64>>,
    /// Value of each point.
    pub values: Vec<f64>,
}

/// Largest condition number of features scaled to unit length at which constants still mean something.
pub const MAX_CONDITION: f64 = 1e4;

/// A point of at least this leverage is needed for a constant.
const NEEDED: f64 = 1.0 - 1e-9;

impl Linear {
    /// The value that `constants` predict for `features`.
    #[must_use]
    pub fn predict(constants: &[f64], features: &[f64]) -> f64 {
        constants.iter().zip(features).map(|(constant, feature)| constant * feature).sum()
    }

    /// The matrix that turns values into constants, `[constants, points]`; `None` where features are collinear.
    fn inverse(&self, points: &[usize]) -> Option<Vec<Vec<f64>>> {
        let rows: Vec<Vec<f64>> = points.iter().map(|point| self.rows[*point].clone()).collect();
        let constants = rows.first()?.len();
        // Also refuses fewer points than constants.
        if condition(&rows) > MAX_CONDITION {
            return None;
        }
        let design = Mat::from_fn(rows.len(), constants, |i, j| rows[i][j]);
        let unit = Mat::<f64>::identity(rows.len(), rows.len());
        let inverse = design.col_piv_qr().solve_lstsq(&unit);
        Some((0..constants).map(|k| (0..rows.len()).map(|i| inverse[(k, i)]).collect()).collect())
    }

    /// Solves the problem; `None` where its features are collinear.
    ///
    /// The bootstrap is the wild one (Wu 1986) with Webb's weights: the features stay as they were measured, and each residual,
    /// enlarged by its leverage (HC3: MacKinnon and White 1985) and for few points by Student's factor, is drawn with a random sign and size. Noise may
    /// differ from point to point.
    #[must_use]
    pub fn solve(&self, resampling: &Resampling<'_>) -> Option<Solution> {
        let n = self.values.len();
        let all: Vec<usize> = (0..n).collect();
        let inverse = self.inverse(&all)?;
        let constants = times(&inverse, &self.values);
        if !constants.iter().all(|constant| constant.is_finite()) {
            return None;
        }
        let leverage: Vec<f64> = (0..n)
            .map(|i| inverse.iter().zip(&self.rows[i]).map(|(row, feature)| row[i] * feature).sum())
            .collect();
        let residuals: Vec<f64> =
            self.rows.iter().zip(&self.values).map(|(row, y)| y - Self::predict(&constants, row)).collect();
        let wide = student_factor(n - constants.len());
        let spread: Vec<f64> = residuals
            .iter()
            .zip(&leverage)
            .map(|(residual, h)| if *h < NEEDED { wide * residual / (1.0 - h) } else { 0.0 })
            .collect();
        let mut random = Random::new(resampling.seed);
        let draws = if wide.is_finite() { resampling.draws } else { 0 };
        let draws = (0..draws).map(|_| {
            let drawn: Vec<f64> = spread.iter().map(|residual| residual * random.webb()).collect();
            let moved = times(&inverse, &drawn);
            constants.iter().zip(moved).map(|(constant, change)| constant + change).collect()
        });
        let draws = draws.collect();
        let left_out = (0..n)
            .map(|i| (leverage[i] < NEEDED).then(|| self.values[i] - residuals[i] / (1.0 - leverage[i])))
            .collect();
        Some(Solution {
            draws,
            left_out,
            group_left_out: self.without_groups(resampling),
            condition: condition(&self.rows),
            constants,
        })
    }

    fn without_groups(&self, resampling: &Resampling<'_>) -> Option<Vec<f64>> {
        let groups = resampling.count();
        if groups < 2 {
            return None;
        }
        let mut predicted = vec![0.0; self.values.len()];
        for group in 0..groups {
            let rest = resampling.without(group);
            let values: Vec<f64> = rest.iter().map(|point| self.values[*point]).collect();
            let constants = times(&self.inverse(&rest)?, &values);
            for point in (0..self.values.len()).filter(|point| resampling.groups[*point] == group) {
                predicted[point] = Self::predict(&constants, &self.rows[point]);
            }
        }
        Some(predicted)
    }
}

/// `inverse` times `values`.
fn times(inverse: &[Vec<f64>], values: &[f64]) -> Vec<f64> {
    inverse.iter().map(|row| Linear::predict(row, values)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::central;
    use super::*;

    const ONCE: Resampling<'_> = Resampling { draws: 400, seed: 1, groups: &[] };

    #[test]
    fn a_line_is_found_with_its_interval() {
        let mut random = Random::new(7);
        let rows: Vec<Vec<f64>> = (0..40).map(|i| vec![1.0, f64::from(i)]).collect();
        let noise = |random: &mut Random| (random.below(1001) as f64 - 500.0) / 5000.0;
        let values: Vec<f64> = (0..40).map(|i| 2.0 - 0.5 * f64::from(i) + noise(&mut random)).collect();
        let problem = Linear { rows, values };
        let solution = problem.solve(&ONCE).unwrap();
        assert!((solution.constants[0] - 2.0).abs() < 0.1 && (solution.constants[1] + 0.5).abs() < 0.01);
        let (low, high) = central(&solution.draws.iter().map(|draw| draw[1]).collect::<Vec<_>>());
        assert!(low < -0.5 && -0.5 < high && high - low < 0.01, "{low} {high}");
        let left_out = solution.left_out.unwrap();
        // What the leverage says of a point left out is what a fit without it says.
        let rest = Linear { rows: problem.rows[1..].to_vec(), values: problem.values[1..].to_vec() };
        let without = rest.solve(&ONCE).unwrap();
        let direct = Linear::predict(&without.constants, &problem.rows[0]);
        assert!((left_out[0] - direct).abs() < 1e-12, "{} {direct}", left_out[0]);
    }

    #[test]
    fn collinear_features_are_refused() {
        let rows: Vec<Vec<f64>> =
            (0..10).map(|i| vec![1.0, f64::from(i), 2.0 * f64::from(i) + 1e-9]).collect();
        assert!(condition(&rows) > MAX_CONDITION);
        assert!(Linear { rows, values: vec![1.0; 10] }.solve(&ONCE).is_none());
    }

    #[test]
    fn a_point_that_a_constant_needs_has_no_error() {
        let rows = vec![vec![1.0, 0.0], vec![1.0, 0.0], vec![1.0, 1.0]];
        let solution = Linear { rows, values: vec![1.0, 2.0, 3.0] }.solve(&ONCE).unwrap();
        assert!(solution.left_out.is_none());
    }
}
