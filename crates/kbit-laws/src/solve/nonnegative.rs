//! Non-negative least squares: the active sets of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23).

use super::dense::cholesky_solve;
use super::{Random, Resampling, Solution, condition, leverages, student_factor};

/// Gram matrix of `rows`, `[columns, columns]`.
fn gram(rows: &[Vec<f64>], points: &[usize]) -> Vec<f64> {
    let columns = rows.first().map_or(0, Vec::len);
    let mut gram = vec![0.0; columns * columns];
    for point in points {
        let row = &rows[*point];
        for i in 0..columns {
            for j in 0..=i {
                gram[i * columns + j] += row[i] * row[j];
            }
        }
    }
    for i in 0..columns {
        for j in i + 1..columns {
            gram[i * columns + j] = gram[j * columns + i];
        }
    }
    gram
}

fn project(rows: &[Vec<f64>], values: &[f64], points: &[usize]) -> Vec<f64> {
    let columns = rows.first().map_or(0, Vec::len);
    let mut sums = vec![0.0; columns];
    for point in points {
        for (sum, feature) in sums.iter_mut().zip(&rows[*point]) {
            *sum += feature * values[*point];
        }
    }
    sums
}

/// The `x >= 0` that minimises `x' gram x - 2 x' target`. Columns that depend on earlier ones stay at zero.
pub fn nonnegative(gram: &[f64], target: &[f64]) -> Vec<f64> {
    let n = target.len();
    let mut x = vec![0.0; n];
    let mut free = vec![false; n];
    let mut barred = vec![false; n];
    let slack = 1e-10 * target.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let gradient = |x: &[f64], i: usize| target[i] - (0..n).map(|j| gram[i * n + j] * x[j]).sum::<f64>();
    // Each round frees one more constant; cycles cannot happen in exact arithmetic and are cut off here.
    for _ in 0..3 * n + 10 {
        let candidate = (0..n)
            .filter(|i| !free[*i] && !barred[*i])
            .map(|i| (i, gradient(&x, i)))
            .filter(|(_, slope)| *slope > slack)
            .max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((entering, _)) = candidate else { break };
        free[entering] = true;
        loop {
            let set: Vec<usize> = (0..n).filter(|i| free[*i]).collect();
            let mut matrix: Vec<f64> =
                set.iter().flat_map(|i| set.iter().map(move |j| gram[i * n + j])).collect();
            let mut solution: Vec<f64> = set.iter().map(|i| target[*i]).collect();
            if !cholesky_solve(&mut matrix, &mut solution) {
                free[entering] = false;
                barred[entering] = true;
                break;
            }
            // As far towards the solution as no constant becomes negative.
            let limits = set.iter().zip(&solution).filter(|(_, target)| **target <= 0.0);
            let step = limits
                .map(|(i, target)| if x[*i] > 0.0 { x[*i] / (x[*i] - target) } else { 0.0 })
                .fold(1.0f64, f64::min);
            for (i, target) in set.iter().zip(&solution) {
                x[*i] += step * (target - x[*i]);
            }
            if step >= 1.0 {
                break;
            }
            let scale = x.iter().fold(0.0f64, |most, value| most.max(value.abs()));
            let mut removed = false;
            for (i, target) in set.iter().zip(&solution) {
                if *target <= 0.0 && x[*i] <= 1e-12 * scale {
                    x[*i] = 0.0;
                    free[*i] = false;
                    removed = true;
                    if *i == entering {
                        barred[entering] = true;
                    }
                }
            }
            if !removed {
                break;
            }
        }
    }
    x
}

/// A linear problem whose constants are not negative.
#[derive(Clone, Debug)]
pub struct NonNegative {
    /// Features of each point.
    pub rows: Vec<Vec<f64>>,
    /// Value of each point.
    pub values: Vec<f64>,
}

impl NonNegative {
    fn constants(&self, points: &[usize], values: &[f64]) -> Vec<f64> {
        nonnegative(&gram(&self.rows, points), &project(&self.rows, values, points))
    }

    /// Solves the problem; the bootstrap is that of [`super::Linear`], with the leverages of the constants that are not zero.
    #[must_use]
    pub fn solve(&self, resampling: &Resampling<'_>) -> Solution {
        let n = self.values.len();
        let all: Vec<usize> = (0..n).collect();
        let constants = self.constants(&all, &self.values);
        let predict = |constants: &[f64], point: usize| -> f64 {
            constants.iter().zip(&self.rows[point]).map(|(constant, feature)| constant * feature).sum()
        };
        let active: Vec<usize> = (0..constants.len()).filter(|k| constants[*k] > 0.0).collect();
        let rows: Vec<Vec<f64>> =
            self.rows.iter().map(|row| active.iter().map(|k| row[*k]).collect()).collect();
        let leverage = leverages(&rows);
        let fitted: Vec<f64> = all.iter().map(|point| predict(&constants, *point)).collect();
        let wide = student_factor(n.saturating_sub(active.len()));
        let mut random = Random::new(resampling.seed);
        let whole = gram(&self.rows, &all);
        let draws = if wide.is_finite() { resampling.draws } else { 0 };
        let draws = (0..draws)
            .map(|_| {
                let drawn: Vec<f64> = all
                    .iter()
                    .map(|i| {
                        let spread = wide * (self.values[*i] - fitted[*i]) / (1.0 - leverage[*i]);
                        fitted[*i] + spread * random.webb()
                    })
                    .collect();
                nonnegative(&whole, &project(&self.rows, &drawn, &all))
            })
            .collect();
        let without = |rest: &[usize]| self.constants(rest, &self.values);
        let left_out = all.iter().map(|out| {
            let rest: Vec<usize> = all.iter().copied().filter(|point| point != out).collect();
            predict(&without(&rest), *out)
        });
        let left_out = Some(left_out.collect());
        let groups = resampling.count();
        let group_left_out = (groups > 1).then(|| {
            let fits: Vec<Vec<f64>> = (0..groups).map(|group| without(&resampling.without(group))).collect();
            all.iter().map(|point| predict(&fits[resampling.groups[*point]], *point)).collect()
        });
        Solution { constants, draws, left_out, group_left_out, condition: condition(&rows) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_that_would_be_negative_are_zero() {
        // y = 2 a - b, so that the best non-negative b is 0 and a fits what is left.
        let rows: Vec<Vec<f64>> = (1..=6).map(|i| vec![f64::from(i), f64::from(i * i)]).collect();
        let values: Vec<f64> = rows.iter().map(|row| 2.0 * row[0] - 0.1 * row[1]).collect();
        let all: Vec<usize> = (0..6).collect();
        let found = NonNegative { rows: rows.clone(), values: values.clone() }.constants(&all, &values);
        let expected = rows.iter().zip(&values).map(|(row, y)| row[0] * y).sum::<f64>()
            / rows.iter().map(|row| row[0] * row[0]).sum::<f64>();
        assert!(found[1] == 0.0 && (found[0] - expected).abs() < 1e-12, "{found:?} {expected}");
    }

    #[test]
    fn positive_constants_are_those_of_least_squares() {
        let mut random = Random::new(5);
        let rows: Vec<Vec<f64>> =
            (0..30).map(|_| (0..5).map(|_| random.below(1000) as f64 / 100.0).collect()).collect();
        let truth = [0.5, 2.0, 0.1, 3.0, 1.0];
        let values: Vec<f64> =
            rows.iter().map(|row| row.iter().zip(truth).map(|(a, b)| a * b).sum()).collect();
        let solution = NonNegative { rows, values }.solve(&Resampling { draws: 0, seed: 1, groups: &[] });
        for (found, truth) in solution.constants.iter().zip(truth) {
            assert!((found - truth).abs() < 1e-9, "{:?}", solution.constants);
        }
    }
}
