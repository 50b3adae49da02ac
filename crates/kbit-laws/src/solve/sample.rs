//! Quantiles: of a sample, and of Student's distribution.

/// 97.5 % point of the normal distribution.
pub const NORMAL: f64 = 1.959_963_984_540_054;

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

/// Degrees of freedom from which Student's distribution is taken as the normal one.
const MANY: usize = 100_000;

/// The point of Student's distribution with `freedom` degrees of freedom below which the share `p` (above one half) lies.
#[must_use]
pub fn student(p: f64, freedom: usize) -> f64 {
    let freedom = freedom.clamp(1, MANY);
    let share = 2.0 * p - 1.0;
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2);
    // Halving the angle whose tangent is t / sqrt(freedom) until it is known to the last bit.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if within(middle, freedom) < share { low = middle } else { high = middle }
    }
    #[expect(clippy::cast_precision_loss, reason = "at most MANY")]
    let root = (freedom as f64).sqrt();
    low.tan() * root
}

/// The share of Student's distribution within ± t, t = sqrt(freedom) tan(angle) (Abramowitz and Stegun 26.7.3 and 26.7.4).
#[expect(clippy::cast_precision_loss, reason = "degrees of freedom, at most MANY")]
fn within(angle: f64, freedom: usize) -> f64 {
    let (sine, cosine) = angle.sin_cos();
    let odd = freedom % 2 == 1;
    let mut term = if odd { cosine } else { 1.0 };
    let mut sum = if freedom == 1 { 0.0 } else { term };
    let first = if odd { 3 } else { 2 };
    for k in (first..freedom.saturating_sub(1)).step_by(2) {
        term *= cosine * cosine * (k - 1) as f64 / k as f64;
        sum += term;
    }
    if odd { (angle + sine * sum) / std::f64::consts::FRAC_PI_2 } else { sine * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_students_distribution_are_those_of_tables() {
        for (p, freedom, point) in [
            (0.975, 1, 12.7062),
            (0.975, 2, 4.3027),
            (0.975, 3, 3.1824),
            (0.975, 4, 2.7764),
            (0.975, 10, 2.2281),
            (0.995, 5, 4.0321),
            (0.8, 1, 1.3764),
            (0.8, 2, 1.0607),
            (0.8, 7, 0.8960),
            (0.975, usize::MAX, 1.9600),
        ] {
            let found = student(p, freedom);
            assert!((found - point).abs() < 1e-4, "{p}, {freedom}: {found} where tables have {point}");
        }
    }

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
