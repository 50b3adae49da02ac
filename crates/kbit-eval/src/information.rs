//! How much a model knows of a text: the entropy that it takes away from what simpler models leave.
//!
//! The cross-entropy of a text under a model is what the model leaves unknown of it, in bits a token (Shannon, 1951, "Prediction and
//! Entropy of Printed English"). Beside it stand three baselines: any token as likely as any other (`uniform`), tokens as often as in
//! a baseline text (`unigram`), and pairs as often as there (`bigram`). The difference, taken token by token, is the information
//! that the model has and the baseline has not.
//!
//! Counts are smoothed by Witten and Bell's method (1991, "The Zero-Frequency Problem"), in its recursive form:
//! `p(t) = (c(t) + kinds / vocabulary) / (all + kinds)` and `p(t | s) = (c(s, t) + kinds(s) p(t)) / (c(s) + kinds(s))`, where kinds are
//! different tokens seen (after `s`). So every token has a probability, and nothing is to be tuned.

use crate::perplexity::token_nlls;
use crate::run::Threads;
use crate::scores::{Distinct, distinct_n};
use crate::{EvalError, Progress, Windows};
use kbit_engine::{Generator, Model, Sampler, Sampling};
use std::collections::HashMap;
use std::f64::consts::LN_2;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often tokens and their followers stand in a baseline text.
#[derive(Clone, Debug, Default)]
pub struct Baselines {
    vocabulary: usize,
    tokens: u64,
    counts: HashMap<u32, u64>,
    pairs: HashMap<(u32, u32), u64>,
    /// Of each token that something follows: how often that is, and how many different tokens.
    followers: HashMap<u32, (u64, u64)>,
}

impl Baselines {
    /// Counts the tokens of a text; `vocabulary` is the number of tokens that there are.
    ///
    /// # Errors
    /// When the text has not two different tokens, or one that is not below `vocabulary`.
    pub fn count(vocabulary: usize, tokens: &[u32]) -> Result<Self, EvalError> {
        if tokens.iter().all(|token| Some(token) == tokens.first()) {
            return Err(EvalError::EmptyBaseline { tokens: tokens.len() });
        }
        let mut found = Self { vocabulary, tokens: tokens.len() as u64, ..Self::default() };
        for &token in tokens {
            if token as usize >= vocabulary {
                return Err(EvalError::BaselineToken { token, vocabulary });
            }
            *found.counts.entry(token).or_default() += 1;
        }
        for pair in tokens.windows(2) {
            let seen = found.pairs.entry((pair[0], pair[1])).or_default();
            let (all, kinds) = found.followers.entry(pair[0]).or_default();
            *kinds += u64::from(*seen == 0);
            *all += 1;
            *seen += 1;
        }
        Ok(found)
    }

    /// Probability of any token.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub fn uniform(&self) -> f64 {
        1.0 / self.vocabulary as f64
    }

    /// Probability of a token.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub fn unigram(&self, token: u32) -> f64 {
        let kinds = self.counts.len() as f64;
        let count = self.counts.get(&token).copied().unwrap_or(0) as f64;
        (count + kinds * self.uniform()) / (self.tokens as f64 + kinds)
    }

    /// Probability of a token after another.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub fn bigram(&self, before: u32, token: u32) -> f64 {
        let Some(&(all, kinds)) = self.followers.get(&before) else { return self.unigram(token) };
        let count = self.pairs.get(&(before, token)).copied().unwrap_or(0) as f64;
        (count + kinds as f64 * self.unigram(token)) / (all + kinds) as f64
    }

    /// What the baselines leave unknown of a text.
    ///
    /// # Errors
    /// When the text has no window, or none of the tokens that are scored stands in the baseline text.
    pub fn unknown(&self, tokens: &[u32], windows: &Windows) -> Result<Unknown, EvalError> {
        let mut sums = Unknown::default();
        let mut known = false;
        for window in 0..windows.count(tokens.len())? {
            let pairs = windows.target_places(window).map(|place| (tokens[place - 1], tokens[place]));
            let pairs: Vec<(u32, u32)> = pairs.collect();
            known |= pairs.iter().any(|(_, token)| self.counts.contains_key(token));
            sums.add(self, &pairs);
        }
        if known { Ok(sums) } else { Err(EvalError::BaselineForeign) }
    }
}

/// What each baseline leaves unknown of each window of a text: bits, the sum over its scored tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unknown {
    /// Where any token is as likely as any other.
    pub uniform: Vec<f64>,
    /// Where tokens come as often as in the baseline text.
    pub unigram: Vec<f64>,
    /// Where pairs come as often as there.
    pub bigram: Vec<f64>,
}

impl Unknown {
    /// Of windows of `scored` tokens each; `pairs` are those tokens, each behind the one before it.
    #[must_use]
    pub fn of_pairs(baselines: &Baselines, pairs: &[(u32, u32)], scored: usize) -> Self {
        let mut sums = Self::default();
        for window in pairs.chunks(scored) {
            sums.add(baselines, window);
        }
        sums
    }

    fn add(&mut self, baselines: &Baselines, window: &[(u32, u32)]) {
        let bits = |probability: &dyn Fn(u32, u32) -> f64| -> f64 {
            window.iter().map(|&(before, token)| -probability(before, token).log2()).sum()
        };
        self.uniform.push(bits(&|_, _| baselines.uniform()));
        self.unigram.push(bits(&|_, token| baselines.unigram(token)));
        self.bigram.push(bits(&|before, token| baselines.bigram(before, token)));
    }

    /// The baselines by their names.
    #[must_use]
    pub fn named(&self) -> [(&'static str, &[f64]); 3] {
        [("uniform", &self.uniform), ("unigram", &self.unigram), ("bigram", &self.bigram)]
    }
}

/// What a baseline leaves unknown of a text, and what the model knows beyond it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Baseline {
    /// Cross-entropy under the baseline, bits a token.
    pub bits_per_token: f64,
    /// What the model takes away from it, bits a token.
    pub reduction: f64,
    /// Standard error of `reduction` over windows; none of a single one.
    pub stderr: Option<f64>,
    /// `reduction` in bits a byte of text.
    pub reduction_per_byte: f64,
    /// Standard error of `reduction_per_byte` over windows.
    pub reduction_per_byte_stderr: Option<f64>,
    /// `reduction` as a share of `bits_per_token`.
    pub share: f64,
}

/// How much a model knows of a text.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Information {
    /// Cross-entropy under the model, bits a token.
    pub bits_per_token: f64,
    /// Standard error of `bits_per_token` over windows; none of a single one.
    pub stderr: Option<f64>,
    /// Cross-entropy under the model, bits a byte.
    pub bits_per_byte: f64,
    /// Against any token as likely as any other.
    pub uniform: Baseline,
    /// Against tokens as often as in the baseline text.
    pub unigram: Baseline,
    /// Against pairs of tokens as often as in the baseline text.
    pub bigram: Baseline,
    /// Tokens scored.
    pub tokens: u64,
    /// Windows.
    pub chunks: u64,
}

impl Information {
    /// Of the bits of each window under the model, the sum over its `scored` tokens, and under baselines. `bytes_per_token` is the
    /// text's.
    ///
    /// Standard errors are over windows, since neighbouring tokens are not independent: with the sum `s` of a window and the mean
    /// window `m` of `n`, `sqrt(n / (n - 1) * sum((s - m)^2)) / tokens`.
    ///
    /// # Panics
    /// When model and baselines are of different numbers of windows.
    #[must_use]
    pub fn new(window_bits: &[f64], scored: usize, unknown: &Unknown, bytes_per_token: f64) -> Self {
        let against = |unknown: &[f64]| {
            let (bits_per_token, _) = mean_over_windows(unknown, scored);
            let (reduction, stderr) = mean_over_windows(&beyond(unknown, window_bits), scored);
            Baseline {
                bits_per_token,
                reduction,
                stderr,
                reduction_per_byte: reduction / bytes_per_token,
                reduction_per_byte_stderr: stderr.map(|stderr| stderr / bytes_per_token),
                share: reduction / bits_per_token,
            }
        };
        let (bits_per_token, stderr) = mean_over_windows(window_bits, scored);
        Self {
            bits_per_token,
            stderr,
            bits_per_byte: bits_per_token / bytes_per_token,
            uniform: against(&unknown.uniform),
            unigram: against(&unknown.unigram),
            bigram: against(&unknown.bigram),
            tokens: (window_bits.len() * scored) as u64,
            chunks: window_bits.len() as u64,
        }
    }
}

/// What the model knows of each window beyond a baseline: the bits that the baseline leaves unknown, less the model's.
///
/// # Panics
/// When the numbers of windows differ.
#[must_use]
pub fn beyond(unknown: &[f64], window_bits: &[f64]) -> Vec<f64> {
    assert_eq!(unknown.len(), window_bits.len(), "windows");
    unknown.iter().zip(window_bits).map(|(unknown, bits)| unknown - bits).collect()
}

/// Mean of a scored token and its standard error over windows, from the sum of each, which has `scored` tokens.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub fn mean_over_windows(sums: &[f64], scored: usize) -> (f64, Option<f64>) {
    let (count, total) = (sums.len() as f64, (sums.len() * scored) as f64);
    let sum: f64 = sums.iter().sum();
    let middle = sum / count;
    let squares: f64 = sums.iter().map(|sum| (sum - middle).powi(2)).sum();
    (sum / total, (sums.len() > 1).then(|| (squares * count / (count - 1.0)).sqrt() / total))
}

/// How much `model` knows of a text beyond `baselines`, which should be counted on another text. `bytes_per_token` is the text's.
///
/// # Errors
/// As [`crate::perplexity`]; and when the baselines are of another vocabulary, or know no token of the text.
pub fn information(
    model: &Model,
    tokens: &[u32],
    windows: &Windows,
    baselines: &Baselines,
    bytes_per_token: f64,
    progress: &Progress<'_>,
) -> Result<Information, EvalError> {
    let vocabulary = model.description().vocab;
    if baselines.vocabulary != vocabulary {
        return Err(EvalError::BaselineVocabulary { found: baselines.vocabulary, wanted: vocabulary });
    }
    let unknown = baselines.unknown(tokens, windows)?;
    let nlls = token_nlls(model, tokens, windows, progress)?;
    Ok(Information::new(&window_bits(&nlls, windows.scored()), windows.scored(), &unknown, bytes_per_token))
}

/// Sums of bits of windows of `scored` tokens, from nats of tokens.
fn window_bits(nlls: &[f64], scored: usize) -> Vec<f64> {
    nlls.chunks(scored).map(|window| window.iter().sum::<f64>() / LN_2).collect()
}

/// The text with what is scored of each window written by the model itself: it continues the beginning of each window, also past
/// tokens that end a text, so that every window stays as long as it was. Windows draw with the seed of `sampling` plus their number.
///
/// # Errors
/// When windows overlap or the text has none, and as [`Generator::generate`].
pub fn continued(
    model: &Model,
    tokens: &[u32],
    windows: &Windows,
    sampling: &Sampling,
    progress: &Progress<'_>,
) -> Result<Vec<u32>, EvalError> {
    if windows.stride.is_some() {
        return Err(EvalError::ContinuedStride);
    }
    let count = windows.count(tokens.len())?;
    let threads = Threads::new(&[model]);
    let done = AtomicUsize::new(0);
    let texts = threads.jobs(count, |window| {
        let prompt = windows.input(tokens, window)[..=windows.first()].to_vec();
        let seed = sampling.seed.wrapping_add(window as u64);
        let mut sampler = Sampler::new(Sampling { seed, ..sampling.clone() })?;
        let mut generator = Generator::new(threads.session(model, windows.context));
        let most = Some(windows.scored());
        let written = generator
            .generate(&prompt, &mut sampler, most, &|_| false, &mut |_| ControlFlow::Continue(()))?;
        let mut text = tokens[windows.range(window).start..windows.target_places(window).start].to_vec();
        text.extend(written.tokens);
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, count);
        Ok::<_, EvalError>(text)
    })?;
    Ok(texts.concat())
}

/// distinct-1 to distinct-4 of the tokens that are scored, n-grams within windows.
///
/// # Errors
/// As [`Windows::count`].
pub fn diversity(tokens: &[u32], windows: &Windows) -> Result<[Distinct; 4], EvalError> {
    let count = windows.count(tokens.len())?;
    let texts: Vec<Vec<u32>> = (0..count).map(|window| windows.targets(tokens, window).to_vec()).collect();
    Ok([1, 2, 3, 4].map(|n| distinct_n(&texts, n)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_every_context_add_up_to_one() {
        let baselines = Baselines::count(7, &[1, 2, 1, 2, 3, 1, 1, 5, 2]).unwrap();
        let sum = |probability: &dyn Fn(u32) -> f64| (0..7).map(probability).sum::<f64>();
        assert!((sum(&|_| baselines.uniform()) - 1.0).abs() < 1e-12);
        assert!((sum(&|token| baselines.unigram(token)) - 1.0).abs() < 1e-12);
        for before in 0..7 {
            let total = sum(&|token| baselines.bigram(before, token));
            assert!((total - 1.0).abs() < 1e-12, "{before}: {total}");
        }
        // After 1 come 2, 2, 1 and 5: two of four, and three kinds.
        let unigram = (3.0 + 4.0 / 7.0) / 13.0;
        assert!((baselines.unigram(2) - unigram).abs() < 1e-12);
        assert!((baselines.bigram(1, 2) - (2.0 + 3.0 * unigram) / 7.0).abs() < 1e-12);
        assert_eq!(baselines.bigram(6, 2), baselines.unigram(2));
    }

    #[test]
    fn a_model_that_is_the_baseline_knows_nothing_beyond_it() {
        let text = [1, 2, 1, 2, 3, 1, 1, 5, 2];
        let baselines = Baselines::count(7, &text).unwrap();
        let pairs: Vec<(u32, u32)> = text.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let nlls: Vec<f64> =
            pairs.iter().map(|&(before, token)| -baselines.bigram(before, token).ln()).collect();
        let of = |scored: usize| {
            let unknown = Unknown::of_pairs(&baselines, &pairs, scored);
            Information::new(&window_bits(&nlls, scored), scored, &unknown, 2.0)
        };
        let found = of(4);
        assert!(found.bigram.reduction.abs() < 1e-12 && found.bigram.stderr.unwrap() < 1e-12);
        assert!((found.uniform.bits_per_token - 7f64.log2()).abs() < 1e-12);
        assert!(found.uniform.reduction > found.unigram.reduction && found.unigram.reduction > 0.0);
        assert!((found.bits_per_byte - found.bits_per_token / 2.0).abs() < 1e-12);
        assert!(
            (found.unigram.bits_per_token - found.bits_per_token - found.unigram.reduction).abs() < 1e-12
        );
        assert_eq!((found.chunks, of(8).stderr), (2, None));
    }

    #[test]
    fn texts_that_cannot_be_baselines_are_refused() {
        for nothing in [&[][..], &[3], &[3, 3, 3, 3]] {
            let message = Baselines::count(7, nothing).unwrap_err().to_string();
            assert!(message.contains("nothing can be learned") && message.contains("longer"), "{message}");
        }
        assert!(Baselines::count(7, &[1, 7]).unwrap_err().to_string().contains("token 7"));
    }
}
