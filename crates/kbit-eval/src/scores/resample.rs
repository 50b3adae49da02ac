//! Bootstrap over documents (Efron, 1979; for BLEU Koehn, 2004, "Statistical Significance Tests for Machine Translation
//! Evaluation"): documents are drawn with replacement, and the score is computed of what was drawn.

use super::ScoreError;
use crate::statistics::quantile;

/// Spread of a score over resampled documents.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Resampled {
    /// Standard deviation over the resamples: the score's standard error.
    pub stderr: f64,
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`: the upper half of a product, whose bias is below `bound / 2^64`.
    #[expect(clippy::cast_possible_truncation, reason = "below `bound`")]
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// Spread of `score` over `resamples` draws of the `documents`; `score` is given what was drawn. The same seed gives the same
/// figures, and the same draws for every score of as many documents, so that two models can be compared in pairs.
///
/// # Errors
/// When there is no document, or fewer than two resamples.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub fn resample<S>(
    documents: &[S],
    resamples: usize,
    seed: u64,
    score: impl Fn(&[&S]) -> f64,
) -> Result<Resampled, ScoreError> {
    if documents.is_empty() {
        return Err(ScoreError::Empty);
    }
    if resamples < 2 {
        let (option, valid) = ("the number of resamples", "2 or more; 1000 is usual");
        return Err(ScoreError::Option { option, value: resamples.to_string(), valid });
    }
    let mut random = Random(seed);
    let mut drawn = Vec::with_capacity(documents.len());
    let mut scores: Vec<f64> = (0..resamples)
        .map(|_| {
            drawn.clear();
            drawn.extend((0..documents.len()).map(|_| &documents[random.below(documents.len())]));
            score(&drawn)
        })
        .collect();
    let mean = scores.iter().sum::<f64>() / resamples as f64;
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    scores.sort_unstable_by(f64::total_cmp);
    Ok(Resampled {
        stderr: (squares / (resamples - 1) as f64).sqrt(),
        low: quantile(&scores, 0.025),
        high: quantile(&scores, 0.975),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &[&f64]) -> f64 {
        values.iter().copied().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_error_of_a_mean_is_that_of_its_formula() {
        let values: Vec<f64> = (0..200u32).map(|i| f64::from(i * i % 97)).collect();
        let average = values.iter().sum::<f64>() / 200.0;
        let variance = values.iter().map(|value| (value - average).powi(2)).sum::<f64>() / 200.0;
        let formula = (variance / 200.0).sqrt();
        let found = resample(&values, 4000, 7, mean).unwrap();
        assert!((found.stderr / formula - 1.0).abs() < 0.05, "{found:?} {formula}");
        assert!((found.low - (average - 1.96 * formula)).abs() < 0.25 * formula, "{found:?}");
        assert!((found.high - (average + 1.96 * formula)).abs() < 0.25 * formula, "{found:?}");
        assert_eq!(found, resample(&values, 4000, 7, mean).unwrap());
        assert_ne!(found, resample(&values, 4000, 8, mean).unwrap());
    }

    #[test]
    fn too_little_is_refused() {
        assert_eq!(resample(&[], 10, 1, mean), Err(ScoreError::Empty));
        assert!(resample(&[1.0], 1, 1, mean).unwrap_err().to_string().contains("1000 is usual"));
        let one = resample(&[3.0], 10, 1, mean).unwrap();
        assert_eq!((one.stderr, one.low, one.high), (0.0, 3.0, 3.0));
    }
}
