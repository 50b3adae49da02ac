//! Importance of the columns, as schemes use it.

use kbit_plugin::{Error, Shape};

/// Least importance of a column, as a share of the mean. A column whose inputs were all zero in calibration can still have others in
/// use: it keeps as much weight as makes its levels near, and not so much that others suffer.
const LEAST: f64 = 1e-4;

/// Mean squared inputs (`aux.diag`) over their mean, at least a ten-thousandth. All 1 where all are zero.
///
/// # Errors
/// A value that no mean square can be, or as many as the matrix does not have columns.
pub fn relative_importance(shape: &Shape<'_>, diag: &[f32]) -> Result<Vec<f32>, Error> {
    if diag.len() as u64 != shape.cols {
        return Err(Error::internal(format!(
            "tensor {}: importance of {} columns for {}; gather it on this model, by kbit calibrate",
            shape.tensor,
            diag.len(),
            shape.cols
        )));
    }
    if let Some(column) = diag.iter().position(|value| !value.is_finite() || *value < 0.0) {
        return Err(Error::numeric(format!(
            "tensor {}: the importance of column {column} is {}, which no mean square can be; gather it anew, by kbit calibrate",
            shape.tensor, diag[column]
        )));
    }
    #[expect(clippy::cast_precision_loss, reason = "a number of columns, below 2^31")]
    let mean = diag.iter().map(|value| f64::from(*value)).sum::<f64>() / diag.len().max(1) as f64;
    if mean == 0.0 {
        return Ok(vec![1.0; diag.len()]);
    }
    #[expect(clippy::cast_possible_truncation, reason = "a share of the mean, at most the number of columns")]
    let relative = |value: &f32| (f64::from(*value) / mean).max(LEAST) as f32;
    Ok(diag.iter().map(relative).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(diag: &[f32]) -> Result<Vec<f32>, Error> {
        let shape = Shape { tensor: "t", rows: 1, cols: 4, slice: 0, n_slices: 1 };
        relative_importance(&shape, diag)
    }

    #[test]
    fn the_mean_is_one_and_no_column_is_without_importance() {
        assert_eq!(of(&[2.0, 0.0, 4.0, 2.0]).unwrap(), [1.0, 1e-4, 2.0, 1.0]);
        assert_eq!(of(&[0.0; 4]).unwrap(), [1.0; 4]);
        // Sums in double precision do not overflow.
        assert_eq!(of(&[3e38; 4]).unwrap(), [1.0; 4]);
    }

    #[test]
    fn refuses_what_no_mean_square_can_be() {
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            let error = of(&[1.0, 1.0, bad, 1.0]).unwrap_err();
            assert!(error.message.contains("column 2"), "{error}");
        }
        assert!(of(&[1.0; 3]).unwrap_err().message.contains("3 columns for 4"));
    }
}
