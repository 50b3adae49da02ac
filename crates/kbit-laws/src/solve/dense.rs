//! Small dense systems: Cholesky, inverse, condition number.

use faer::Mat;

/// Solves `a x = b` for the symmetric positive definite `a` (`[n, n]`, row-major, overwritten); false where `a` is not.
pub fn cholesky_solve(a: &mut [f64], b: &mut [f64]) -> bool {
    let n = b.len();
    for j in 0..n {
        for i in j..n {
            let mut sum = a[i * n + j];
            for k in 0..j {
                sum -= a[i * n + k] * a[j * n + k];
            }
            if i == j {
                if sum <= 0.0 || !sum.is_finite() {
                    return false;
                }
                a[j * n + j] = sum.sqrt();
            } else {
                a[i * n + j] = sum / a[j * n + j];
            }
        }
    }
    for i in 0..n {
        for k in 0..i {
            b[i] -= a[i * n + k] * b[k];
        }
        b[i] /= a[i * n + i];
    }
    for i in (0..n).rev() {
        for k in i + 1..n {
            b[i] -= a[k * n + i] * b[k];
        }
        b[i] /= a[i * n + i];
    }
    true
}

/// Leverage of each row: its share in its own prediction by least squares; at most .99, so that residuals over what is left of 1
/// stay finite. Zero where the features are dependent.
#[must_use]
pub fn leverages(rows: &[Vec<f64>]) -> Vec<f64> {
    let columns = rows.first().map_or(0, Vec::len);
    let mut gram = vec![0.0; columns * columns];
    for row in rows {
        for i in 0..columns {
            for j in 0..columns {
                gram[i * columns + j] += row[i] * row[j];
            }
        }
    }
    let of_row = |row: &Vec<f64>| {
        let mut solved = row.clone();
        if !cholesky_solve(&mut gram.clone(), &mut solved) {
            return 0.0;
        }
        row.iter().zip(&solved).map(|(a, b)| a * b).sum::<f64>().clamp(0.0, 0.99)
    };
    rows.iter().map(of_row).collect()
}

/// Condition number of the features in `rows`, each scaled to unit length; infinite where they are dependent.
#[must_use]
pub fn condition(rows: &[Vec<f64>]) -> f64 {
    let columns = rows.first().map_or(0, Vec::len);
    let lengths: Vec<f64> =
        (0..columns).map(|j| rows.iter().map(|row| row[j].powi(2)).sum::<f64>().sqrt()).collect();
    if rows.len() < columns || lengths.iter().any(|length| *length == 0.0 || !length.is_finite()) {
        return f64::INFINITY;
    }
    let scaled = Mat::from_fn(rows.len(), columns, |i, j| rows[i][j] / lengths[j]);
    match scaled.singular_values() {
        Ok(values) => {
            let greatest = values.iter().copied().fold(0.0, f64::max);
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            if least <= 0.0 { f64::INFINITY } else { greatest / least }
        }
        Err(_) => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_solved_and_an_indefinite_one_refused() {
        let mut b = vec![8.0, 7.0];
        assert!(cholesky_solve(&mut [4.0, 2.0, 2.0, 3.0], &mut b));
        assert!((b[0] - 1.25).abs() < 1e-12 && (b[1] - 1.5).abs() < 1e-12, "{b:?}");
        assert!(!cholesky_solve(&mut [1.0, 2.0, 2.0, 1.0], &mut [1.0, 1.0]));
    }
}
