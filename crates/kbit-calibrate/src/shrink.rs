//! How far second moments are believed that come from few tokens.
//!
//! A matrix of `n` columns has `n^2 / 2` second moments, and chance alone correlates columns by `1 / sqrt(tokens)`: a scheme that feeds
//! errors back along such correlations fits the calibration text and nothing else. The estimate that is nearest to the truth on average
//! takes all moments of unlike columns towards zero by the same share, that of chance in what is seen: the sum of the variances of the
//! correlations, over the sum of their squares (Schäfer & Strimmer 2005, after Ledoit & Wolf 2004). Mean squares stay as they are. With
//! many tokens the share goes to zero.

/// Tokens of a text that tell as much as one independent sample: neighbours are alike, and few inputs are large. Found by measurement,
/// see `docs/benchmarks.md`.
const TOKENS_PER_SAMPLE: f64 = 4.0;

/// Shrinks the moments of unlike columns in `moments` `[cols][cols]`, which are means over so many tokens.
pub(crate) fn shrink(moments: &mut [f32], cols: usize, tokens: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "a factor from 0 to 1")]
    let kept = (1.0 - share_of_chance(moments, cols, tokens)) as f32;
    for (row, moments) in moments.chunks_exact_mut(cols.max(1)).enumerate() {
        for (col, moment) in moments.iter_mut().enumerate() {
            if row != col {
                *moment *= kept;
            }
        }
    }
}

/// From 0 to 1; 0 where nothing was seen.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn share_of_chance(moments: &[f32], cols: usize, tokens: u64) -> f64 {
    let samples = tokens as f64 / TOKENS_PER_SAMPLE;
    let by_scale: Vec<f64> = (0..cols)
        .map(|col| f64::from(moments[col * cols + col]))
        .map(|square| if square > 0.0 { square.recip() } else { 0.0 })
        .collect();
    let (mut variances, mut squares) = (0.0, 0.0);
    for (row, moments) in moments.chunks_exact(cols.max(1)).enumerate() {
        if by_scale[row] == 0.0 {
            continue;
        }
        for (moment, scale) in moments[..row].iter().zip(&by_scale).filter(|(_, scale)| **scale > 0.0) {
            let square = f64::from(*moment).powi(2) * scale * by_scale[row];
            variances += (1.0 - square).powi(2) / samples;
            squares += square;
        }
    }
    if squares > 0.0 { (variances / squares).min(1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Second moments of `tokens` vectors whose columns are independent but for a share `common` that all have; `[cols][cols]`.
    fn moments(cols: usize, tokens: usize, common: f64) -> Vec<f32> {
        let mut state = 1u64;
        // Uniform, of variance 1.
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 / (1u64 << 53) as f64 - 0.5) * 12f64.sqrt()
        };
        let mut sums = vec![0.0; cols * cols];
        for _ in 0..tokens {
            let shared = common.sqrt() * next();
            let x: Vec<f64> = (0..cols).map(|_| shared + (1.0 - common).sqrt() * next()).collect();
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum += x[at / cols] * x[at % cols];
            }
        }
        sums.iter().map(|sum| (sum / tokens as f64) as f32).collect()
    }

    /// Mean squared error of the moments of unlike columns.
    fn error(moments: &[f32], cols: usize, truth: f64) -> f64 {
        let unlike = moments.iter().enumerate().filter(|(at, _)| at / cols != at % cols);
        unlike.map(|(_, moment)| (f64::from(*moment) - truth).powi(2)).sum::<f64>()
            / (cols * (cols - 1)) as f64
    }

    #[test]
    fn what_chance_correlates_is_taken_away_and_what_is_true_stays() {
        let (cols, tokens) = (48, 400);
        // Independent tokens: each is a sample.
        let samples = tokens as u64 * TOKENS_PER_SAMPLE as u64;
        for (common, within) in [(0.0, 0.9..=1.0), (0.05, 0.3..=0.7), (0.9, 0.0..=0.001)] {
            let mut found = moments(cols, tokens, common);
            let share = share_of_chance(&found, cols, samples);
            assert!(within.contains(&share), "{common}: {share}");
            let (error_before, unshrunk) = (error(&found, cols, common), found.clone());
            shrink(&mut found, cols, samples);
            assert!(error(&found, cols, common) <= 1.01 * error_before, "{common}: nearer to the truth");
            for (at, (after, before)) in found.iter().zip(&unshrunk).enumerate() {
                let kept = if at / cols == at % cols { 1.0 } else { (1.0 - share) as f32 };
                assert!(*after == before * kept);
            }
        }
    }

    #[test]
    fn more_tokens_are_believed_more() {
        let found = moments(16, 300, 0.2);
        let shares: Vec<f64> =
            [100, 1_000, 10_000, 1_000_000].map(|tokens| share_of_chance(&found, 16, tokens)).to_vec();
        assert!(shares.is_sorted_by(|a, b| a > b), "{shares:?}");
        assert!(shares[3] < 1e-3);
    }

    #[test]
    fn nothing_seen_and_columns_without_inputs_are_no_trouble() {
        for (cols, tokens) in [(0, 0), (1, 0), (1, 9), (3, 0), (3, 9)] {
            let mut zeros = vec![0.0; cols * cols];
            shrink(&mut zeros, cols, tokens);
            assert!(zeros.iter().all(|moment| *moment == 0.0));
        }
        // The second column is always zero; the others are one.
        let mut moments = [2.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 2.0];
        let before = moments;
        shrink(&mut moments, 3, 9);
        assert_eq!(moments, before, "a correlation of 1 is not chance");
    }
}
