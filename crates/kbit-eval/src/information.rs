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
use crate::statistics::mean_and_error;
use crate::{EvalError, Progress, Windows};
use kbit_engine::Model;
use std::collections::HashMap;
use std::f64::consts::LN_2;

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
    /// When the text has no token, or one that is not below `vocabulary`.
    pub fn count(vocabulary: usize, tokens: &[u32]) -> Result<Self, EvalError> {
        if tokens.is_empty() {
            return Err(EvalError::EmptyBaseline);
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
}

/// What a baseline leaves unknown of a text, and what the model knows beyond it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Baseline {
    /// Cross-entropy under the baseline, bits a token.
    pub bits_per_token: f64,
    /// What the model takes away from it, bits a token.
    pub reduction: f64,
    /// Standard error of `reduction`, of the differences token by token.
    pub stderr: f64,
    /// `reduction` in bits a byte of text.
    pub reduction_per_byte: f64,
    /// `reduction` as a share of `bits_per_token`.
    pub share: f64,
}

/// How much a model knows of a text.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Information {
    /// Cross-entropy under the model, bits a token.
    pub bits_per_token: f64,
    /// Standard error of `bits_per_token`.
    pub stderr: f64,
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

/// How much `model` knows of a text beyond `baselines`, which should be counted on another text. `bytes_per_token` is the text's.
///
/// # Errors
/// As [`crate::perplexity`]; and when the baselines are of another vocabulary.
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
    let nlls = token_nlls(model, tokens, windows, progress)?;
    let chunks = windows.count(tokens.len())?;
    let places = (0..chunks).flat_map(|window| windows.target_places(window));
    let pairs: Vec<(u32, u32)> = places.map(|place| (tokens[place - 1], tokens[place])).collect();
    Ok(summarise(&nlls, &pairs, baselines, bytes_per_token, chunks as u64))
}

/// `pairs`: each scored token behind the one before it.
fn summarise(
    nlls: &[f64],
    pairs: &[(u32, u32)],
    baselines: &Baselines,
    bytes_per_token: f64,
    chunks: u64,
) -> Information {
    let against = |probability: &dyn Fn(u32, u32) -> f64| {
        let bits = pairs.iter().map(|&(before, token)| -probability(before, token).log2());
        let (bits_per_token, _) = mean_and_error(bits.clone());
        let (reduction, stderr) = mean_and_error(bits.zip(nlls).map(|(bits, nll)| bits - nll / LN_2));
        Baseline {
            bits_per_token,
            reduction,
            stderr,
            reduction_per_byte: reduction / bytes_per_token,
            share: reduction / bits_per_token,
        }
    };
    let (bits_per_token, stderr) = mean_and_error(nlls.iter().map(|nll| nll / LN_2));
    Information {
        bits_per_token,
        stderr,
        bits_per_byte: bits_per_token / bytes_per_token,
        uniform: against(&|_, _| baselines.uniform()),
        unigram: against(&|_, token| baselines.unigram(token)),
        bigram: against(&|before, token| baselines.bigram(before, token)),
        tokens: nlls.len() as u64,
        chunks,
    }
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
        let found = summarise(&nlls, &pairs, &baselines, 2.0, 1);
        assert!(found.bigram.reduction.abs() < 1e-12 && found.bigram.stderr < 1e-7);
        assert!((found.uniform.bits_per_token - 7f64.log2()).abs() < 1e-12);
        assert!(found.uniform.reduction > found.unigram.reduction && found.unigram.reduction > 0.0);
        assert!((found.bits_per_byte - found.bits_per_token / 2.0).abs() < 1e-12);
        assert!(
            (found.unigram.bits_per_token - found.bits_per_token - found.unigram.reduction).abs() < 1e-12
        );
    }

    #[test]
    fn texts_that_cannot_be_baselines_are_refused() {
        assert!(Baselines::count(7, &[]).unwrap_err().to_string().contains("longer"));
        assert!(Baselines::count(7, &[1, 7]).unwrap_err().to_string().contains("token 7"));
    }
}
