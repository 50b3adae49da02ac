//! Quantiles: of a sample, and of Student's distribution.

/// 97.5 % point of the normal distribution.
const NORMAL: f64 = 1.959_963_984_540_054;

/// The 2.5 % and 97.5 % points of `sample`, interpolated; NaN of an empty one.
#[must_use]
pub fn central(sample: &[f64]) -> (f64, f64) {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    (quantile(&sorted, 0.025), quantile(&sorted, 0.975))
}

/// The point of the ascending `sorted` below which the share `p` lies (Weibull's plotting positions, which do not make the tails
/// of small samples shorter than they are).
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "places in a sample"
)]
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = (p * (sorted.len() + 1) as f64 - 1.0).clamp(0.0, last as f64);
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (at - at.floor()) * (sorted[above] - sorted[below])
}

/// By how much wider than the normal's Student's central 95 % with `freedom` degrees of freedom is: what few points owe to not
/// knowing their own noise. Exact for 1 and 2 degrees, else by the expansion of Cornish and Fisher (Abramowitz and Stegun 26.7.5).
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a count of points")]
pub fn student_factor(freedom: usize) -> f64 {
    match freedom {
        0 => f64::INFINITY,
        1 => 12.706_204_736 / NORMAL,
        2 => 4.302_652_730 / NORMAL,
        _ => {
            let (z, v) = (NORMAL, freedom as f64);
            let terms = (z.powi(2) + 1.0) / (4.0 * v)
                + (5.0 * z.powi(4) + 16.0 * z.powi(2) + 3.0) / (96.0 * v.powi(2))
                + (3.0 * z.powi(6) + 19.0 * z.powi(4) + 17.0 * z.powi(2) - 15.0) / (384.0 * v.powi(3));
            1.0 + terms
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_students_distribution_are_those_of_tables() {
        for (freedom, point) in [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (60, 2.000)] {
            let found = student_factor(freedom) * NORMAL;
            assert!((found / point - 1.0).abs() < 0.01, "{freedom}: {found} where tables have {point}");
        }
    }

    #[test]
    fn central_share_of_a_known_sample() {
        let sample: Vec<f64> = (1..=199).map(f64::from).collect();
        assert_eq!(central(&sample), (5.0, 195.0));
    }
}
