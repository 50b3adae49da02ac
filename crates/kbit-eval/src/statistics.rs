//! Means, their uncertainty, and quantiles, as llama.cpp computes them.

/// Mean of the values and its standard error, both over `values` in their order.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub(crate) fn mean_and_error(values: impl ExactSizeIterator<Item = f64>) -> (f64, f64) {
    let count = values.len() as f64;
    let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    let mean = sum / count;
    let variance = squares / count - mean * mean;
    (mean, if variance > 0.0 && count > 1.0 { (variance / (count - 1.0)).sqrt() } else { 0.0 })
}

/// Value below which that share of `sorted` lies, interpolated linearly.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are below 2^53, and places inside the slice"
)]
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let below = (place as usize).min(last);
    let above = (below + 1).min(last);
    let part = place - below as f64;
    (1.0 - part) * sorted[below] + part * sorted[above]
}

/// Mean of 0s and 1s and its standard error.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub(crate) fn share_and_error(ones: usize, count: usize) -> (f64, f64) {
    let share = ones as f64 / count as f64;
    (share, if count > 1 { (share * (1.0 - share) / (count - 1) as f64).sqrt() } else { 0.0 })
}

/// Where values lie: the percentiles that llama-perplexity prints.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// 0.1th percentile.
    pub p0_1: f64,
    /// 1st percentile.
    pub p1: f64,
    /// 5th percentile.
    pub p5: f64,
    /// 10th percentile.
    pub p10: f64,
    /// 25th percentile.
    pub p25: f64,
    /// Median.
    pub median: f64,
    /// 75th percentile.
    pub p75: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p99_9: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these values, in any order.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |share| quantile(&values, share);
        Self {
            min: at(0.0),
            p0_1: at(0.001),
            p1: at(0.01),
            p5: at(0.05),
            p10: at(0.1),
            p25: at(0.25),
            median: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_error_of_known_values() {
        let (mean, error) = mean_and_error([1.0, 2.0, 3.0, 4.0].into_iter());
        assert!((mean - 2.5).abs() < 1e-15);
        // Sample variance 5/3, divided by 4 values.
        assert!((error - (5.0f64 / 12.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean_and_error([3.0].into_iter()), (3.0, 0.0));
    }

    #[test]
    fn quantiles_are_interpolated() {
        let sorted = [0.0, 10.0, 20.0, 30.0];
        assert_eq!(quantile(&sorted, 0.0), 0.0);
        assert_eq!(quantile(&sorted, 0.5), 15.0);
        assert!((quantile(&sorted, 0.9) - 27.0).abs() < 1e-12);
        assert_eq!(quantile(&sorted, 1.0), 30.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }
}
