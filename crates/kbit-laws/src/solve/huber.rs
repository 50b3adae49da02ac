//! Levenberg and Marquardt's method for Huber's loss, with analytic gradients.
//!
//! Each step is a reweighted, damped least-squares step (Holland and Welsch 1977): residuals beyond `delta` count as `delta/|r|`,
//! so that a few wild points do not move the constants. Hoffmann et al. (arXiv 2203.15556) take a `delta` of 1e-3 on log losses,
//! which are about as exact as that. Of noisier data it would leave nothing but the sum of absolute residuals, which wastes a third
//! of the points; so `delta` is 1e-3, or 1.345 times the noise where that is more (Huber 1981: 95 % as sharp as least squares for
//! normal noise). The noise is measured by the median absolute residual of the fit with 1e-3.

use super::dense::cholesky_solve;
use super::{Random, Resampling, Solution, condition, leverages, student_factor};

/// A family of curves through points.
pub trait Curve {
    /// Value at `point`; `gradient` receives its derivative by each constant.
    fn value(&self, constants: &[f64], point: usize, gradient: &mut [f64]) -> f64;
}

/// A problem: a curve, values, and the loss.
pub struct Huber<'a, C> {
    /// The curves.
    pub curve: &'a C,
    /// Value of each point.
    pub values: &'a [f64],
    /// Where squares become absolute values; infinite for least squares.
    pub delta: f64,
}

/// Iterations of a fit at most.
const ITERATIONS: usize = 200;
/// Iterations of a resample at most: it starts at the constants, whose error it only has to move by.
const RESAMPLE_ITERATIONS: usize = 40;
/// Relative gain below which a fit has converged, and a resample.
const CONVERGED: f64 = 1e-10;
const RESAMPLE_CONVERGED: f64 = 1e-5;

impl<C: Curve> Huber<'_, C> {
    fn loss(&self, residual: f64) -> f64 {
        let size = residual.abs();
        if size <= self.delta { 0.5 * size * size } else { self.delta * (size - 0.5 * self.delta) }
    }

    /// The loss of `constants` on `points`.
    pub fn objective(&self, constants: &[f64], values: &[f64], points: &[usize]) -> f64 {
        let mut unused = vec![0.0; constants.len()];
        points
            .iter()
            .map(|point| self.loss(values[*point] - self.curve.value(constants, *point, &mut unused)))
            .sum()
    }

    /// Constants of least loss on `points`, by way of `start`; with the loss.
    pub fn minimise(
        &self,
        start: &[f64],
        values: &[f64],
        points: &[usize],
        iterations: usize,
        converged: f64,
    ) -> (Vec<f64>, f64) {
        let k = start.len();
        let mut constants = start.to_vec();
        let mut best = self.objective(&constants, values, points);
        if !best.is_finite() {
            return (constants, f64::INFINITY);
        }
        let mut damping = 1e-4;
        let (mut gradient, mut trial) = (vec![0.0; k], vec![0.0; k]);
        let (mut matrix, mut right) = (vec![0.0; k * k], vec![0.0; k]);
        let mut small_gains = 0;
        for _ in 0..iterations {
            matrix.fill(0.0);
            right.fill(0.0);
            for point in points {
                let residual = values[*point] - self.curve.value(&constants, *point, &mut gradient);
                let weight = if residual.abs() <= self.delta { 1.0 } else { self.delta / residual.abs() };
                for i in 0..k {
                    let weighted = weight * gradient[i];
                    right[i] += weighted * residual;
                    for j in 0..=i {
                        matrix[i * k + j] += weighted * gradient[j];
                    }
                }
            }
            let mut gained = None;
            while damping < 1e12 {
                let mut damped = matrix.clone();
                let mut step = right.clone();
                for i in 0..k {
                    damped[i * k + i] += damping * matrix[i * k + i].max(1e-300);
                }
                if cholesky_solve(&mut damped, &mut step) {
                    for i in 0..k {
                        trial[i] = constants[i] + step[i];
                    }
                    let loss = self.objective(&trial, values, points);
                    if loss <= best {
                        gained = Some(best - loss);
                        constants.copy_from_slice(&trial);
                        best = loss;
                        damping = (damping / 10.0).max(1e-12);
                        break;
                    }
                }
                damping *= 10.0;
            }
            match gained {
                None => break,
                Some(gain) if gain <= converged * best => {
                    small_gains += 1;
                    if small_gains == 2 {
                        break;
                    }
                }
                Some(_) => small_gains = 0,
            }
        }
        (constants, best)
    }

    /// The `delta` for the noise that the residuals at `constants` show, at least this problem's own.
    #[must_use]
    pub fn delta_for_noise(&self, constants: &[f64]) -> f64 {
        /// Huber's constant over the median absolute deviation of the normal distribution with variance 1.
        const TUNING: f64 = 1.345 / 0.674_489_75;
        let fitted = self.gradients(constants).1;
        let mut sizes: Vec<f64> =
            self.values.iter().zip(fitted).map(|(y, fitted)| (y - fitted).abs()).collect();
        sizes.sort_by(f64::total_cmp);
        let (n, k) = (sizes.len(), constants.len());
        // As many residuals as constants are nearly zero by construction.
        let middle = ((n + k) / 2).min(n.saturating_sub(1));
        self.delta.max(TUNING * sizes.get(middle).copied().unwrap_or(0.0))
    }

    /// Constants of least loss over all `starts`: each goes to its least squares first, and the best of those to the least loss.
    pub fn search(&self, starts: &[Vec<f64>]) -> Option<Vec<f64>> {
        let all: Vec<usize> = (0..self.values.len()).collect();
        let squares = Huber { curve: self.curve, values: self.values, delta: f64::INFINITY };
        let mut found: Vec<(Vec<f64>, f64)> =
            starts.iter().map(|start| squares.minimise(start, self.values, &all, 100, 1e-9)).collect();
        found.retain(|(constants, loss)| loss.is_finite() && constants.iter().all(|c| c.is_finite()));
        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        let tried = found.iter().take(2);
        tried
            .map(|(constants, _)| self.minimise(constants, self.values, &all, ITERATIONS, CONVERGED))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(constants, _)| constants)
    }

    /// The constants of least loss by way of `constants`.
    #[must_use]
    pub fn refine(&self, constants: &[f64]) -> Vec<f64> {
        let all: Vec<usize> = (0..self.values.len()).collect();
        self.minimise(constants, self.values, &all, ITERATIONS, CONVERGED).0
    }

    /// Condition number of the gradients at `constants`.
    #[must_use]
    pub fn condition(&self, constants: &[f64]) -> f64 {
        condition(&self.gradients(constants).0)
    }

    /// The constants without any one of which the others would be determined: those that trade off against each other.
    #[must_use]
    pub fn dependent(&self, constants: &[f64]) -> Vec<usize> {
        let (gradients, _) = self.gradients(constants);
        let without = |constant: usize| {
            let rest = gradients.iter().map(|row| {
                let kept = row.iter().enumerate().filter(|(index, _)| *index != constant);
                kept.map(|(_, slope)| *slope).collect::<Vec<f64>>()
            });
            condition(&rest.collect::<Vec<_>>())
        };
        (0..constants.len()).filter(|constant| without(*constant) <= super::MAX_CONDITION).collect()
    }

    /// Gradients and values at all points.
    fn gradients(&self, constants: &[f64]) -> (Vec<Vec<f64>>, Vec<f64>) {
        let n = self.values.len();
        let mut gradients = vec![vec![0.0; constants.len()]; n];
        let fitted = (0..n).map(|point| self.curve.value(constants, point, &mut gradients[point])).collect();
        (gradients, fitted)
    }

    /// What is known of the fit at `constants`.
    ///
    /// The bootstrap is the wild one of [`super::Linear`], with the leverages of the gradients; every resample is fitted anew.
    pub fn examine(&self, constants: Vec<f64>, resampling: &Resampling<'_>) -> Solution {
        let (n, k) = (self.values.len(), constants.len());
        let all: Vec<usize> = (0..n).collect();
        let (gradients, fitted) = self.gradients(&constants);
        let wide = student_factor(n.saturating_sub(k));
        let spread: Vec<f64> = leverages(&gradients)
            .iter()
            .zip(self.values.iter().zip(&fitted))
            .map(|(h, (y, fitted))| wide * (y - fitted) / (1.0 - h))
            .collect();
        let mut random = Random::new(resampling.seed);
        let draws = if wide.is_finite() { resampling.draws } else { 0 };
        let draws = (0..draws).map(|_| {
            let drawn: Vec<f64> = all.iter().map(|i| fitted[*i] + spread[*i] * random.webb()).collect();
            self.minimise(&constants, &drawn, &all, RESAMPLE_ITERATIONS, RESAMPLE_CONVERGED).0
        });
        let draws = draws.collect();
        let without = |rest: &[usize]| {
            self.minimise(&constants, self.values, rest, RESAMPLE_ITERATIONS, RESAMPLE_CONVERGED).0
        };
        let mut unused = vec![0.0; k];
        let left_out = (n > k + 1).then(|| {
            all.iter()
                .map(|out| {
                    let rest: Vec<usize> = all.iter().copied().filter(|point| point != out).collect();
                    self.curve.value(&without(&rest), *out, &mut unused)
                })
                .collect()
        });
        let groups = resampling.count();
        let rests: Vec<Vec<usize>> = (0..groups).map(|group| resampling.without(group)).collect();
        let enough = groups > 1 && rests.iter().all(|rest| rest.len() > k);
        let group_left_out = enough.then(|| {
            let fits: Vec<Vec<f64>> = rests.iter().map(|rest| without(rest)).collect();
            all.iter()
                .map(|point| self.curve.value(&fits[resampling.groups[*point]], *point, &mut unused))
                .collect()
        });
        Solution { condition: condition(&gradients), constants, draws, left_out, group_left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// y = a + b x.
    struct Line(Vec<f64>);

    impl Curve for Line {
        fn value(&self, constants: &[f64], point: usize, gradient: &mut [f64]) -> f64 {
            gradient.copy_from_slice(&[1.0, self.0[point]]);
            constants[0] + constants[1] * self.0[point]
        }
    }

    #[test]
    fn constants_that_trade_off_are_found() {
        /// The second and third constant are of one feature.
        struct Twice;
        impl Curve for Twice {
            fn value(&self, constants: &[f64], point: usize, gradient: &mut [f64]) -> f64 {
                let x = point as f64;
                gradient.copy_from_slice(&[1.0, x, 2.0 * x]);
                constants[0] + (constants[1] + 2.0 * constants[2]) * x
            }
        }
        let problem = Huber { curve: &Twice, values: &[0.0; 6], delta: 1.0 };
        assert!(problem.condition(&[0.0; 3]) > 1e4);
        assert_eq!(problem.dependent(&[0.0; 3]), [1, 2]);
    }

    #[test]
    fn wild_points_do_not_move_the_line() {
        let line = Line((0..21).map(f64::from).collect());
        let mut values: Vec<f64> = line.0.iter().map(|x| 1.0 + 2.0 * x).collect();
        values[3] += 50.0;
        values[17] -= 80.0;
        let problem = Huber { curve: &line, values: &values, delta: 1e-3 };
        let found = problem.search(&[vec![0.0, 0.0]]).unwrap();
        assert!((found[0] - 1.0).abs() < 1e-2 && (found[1] - 2.0).abs() < 1e-3, "{found:?}");
    }
}
