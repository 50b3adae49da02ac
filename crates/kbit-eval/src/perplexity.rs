//! Perplexity.

use crate::run::{Plan, Runner};
use crate::{EvalError, Progress, Windows};
use kbit_engine::Model;

/// How well a model predicts a text.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// `e^nll`.
    pub value: f64,
    /// Standard error of `value`, to first order.
    pub stderr: f64,
    /// Mean negative log-likelihood of a scored token, in nats.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Windows.
    pub chunks: u64,
    /// Perplexity of all windows up to each one.
    pub per_chunk: Vec<f64>,
    /// Sum of the negative log-likelihoods of each window, in nats.
    pub window_nlls: Vec<f64>,
    /// Tokens scored in each window.
    pub window_tokens: u64,
}

impl Perplexity {
    /// From the negative log-likelihoods of all scored tokens, in the order of the text.
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub(crate) fn new(nlls: &[f64], scored: usize) -> Self {
        let (mut sum, mut squares, mut tokens) = (0.0, 0.0, 0u64);
        let mut per_chunk = Vec::with_capacity(nlls.len() / scored);
        let mut window_nlls = per_chunk.clone();
        for window in nlls.chunks(scored) {
            let mut in_window = 0.0;
            for nll in window {
                sum += nll;
                in_window += nll;
                squares += nll * nll;
            }
            window_nlls.push(in_window);
            tokens += window.len() as u64;
            per_chunk.push((sum / tokens as f64).exp());
        }
        let count = tokens as f64;
        let nll = sum / count;
        let variance = squares / count - nll * nll;
        let error = if variance > 0.0 && count > 1.0 { (variance / (count - 1.0)).sqrt() } else { 0.0 };
        let value = nll.exp();
        Self {
            value,
            stderr: error * value,
            nll,
            tokens,
            chunks: per_chunk.len() as u64,
            per_chunk,
            window_nlls,
            window_tokens: scored as u64,
        }
    }

    /// Standard error of `nll`.
    #[must_use]
    pub fn nll_stderr(&self) -> f64 {
        self.stderr / self.value
    }

    /// Bits that the model needs for a token: the cross-entropy of `nll` nats in bits.
    #[must_use]
    pub fn bits_per_token(&self) -> f64 {
        self.nll / std::f64::consts::LN_2
    }

    /// Bits that the model needs for a byte of the text; `bytes` are those of the scored tokens
    /// ([`Windows::scored_bytes`]).
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub fn bits_per_byte(&self, bytes: u64) -> f64 {
        self.nll * self.tokens as f64 / (std::f64::consts::LN_2 * bytes as f64)
    }
}

/// Perplexity of `model` on a text. `tokens` are those of the whole text, with the tokenizer's beginning-of-text token
/// where it adds one.
///
/// # Errors
/// When the text is shorter than a window, the model cannot be run, or its logits are not finite.
pub fn perplexity(
    model: &Model,
    tokens: &[u32],
    windows: &Windows,
    progress: &Progress<'_>,
) -> Result<Perplexity, EvalError> {
    Ok(Perplexity::new(&token_nlls(model, tokens, windows, progress)?, windows.scored()))
}

/// Negative log-likelihoods of all scored tokens, in the order of the text.
pub(crate) fn token_nlls(
    model: &Model,
    tokens: &[u32],
    windows: &Windows,
    progress: &Progress<'_>,
) -> Result<Vec<f64>, EvalError> {
    let plan = Plan::new(&[model], windows, tokens)?;
    let runner = plan.runner(model);
    let groups = plan.run(progress, |group| {
        let (texts, targets) = plan.texts(group.clone());
        let states = runner.states(&texts, windows.first())?;
        let mut nlls = Vec::with_capacity(targets.len());
        each_row(
            &plan,
            &runner,
            &states,
            &targets,
            |row, logits, target| {
                let nll = model.kernels().log_sum_exp(logits) - f64::from(logits[target]);
                if nll.is_finite() {
                    Ok(nll)
                } else {
                    Err(EvalError::NotFinite {
                        model: "the model".to_owned(),
                        token: plan.place(&group, row),
                    })
                }
            },
            &mut nlls,
        )?;
        Ok(nlls)
    })?;
    Ok(groups.concat())
}

/// Calls `score(row, logits, target)` for every row, a few rows of logits at a time, and appends the results in order.
fn each_row<T: Send>(
    plan: &Plan<'_>,
    runner: &Runner<'_>,
    states: &[f32],
    targets: &[u32],
    score: impl Fn(usize, &[f32], usize) -> Result<T, EvalError> + Sync,
    results: &mut Vec<T>,
) -> Result<(), EvalError> {
    let d = runner.model.description();
    let rows = plan.rows(runner.model);
    let mut logits = plan.floats(rows.min(targets.len()) * d.vocab);
    for (index, (states, targets)) in states.chunks(rows * d.hidden).zip(targets.chunks(rows)).enumerate() {
        let logits = &mut logits[..targets.len() * d.vocab];
        runner.logits(states, logits)?;
        let scores = plan.each(targets.len(), |row| {
            score(index * rows + row, &logits[row * d.vocab..][..d.vocab], targets[row] as usize)
        });
        for score in scores {
            results.push(score?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_definition() {
        let nlls = [1.0, 2.0, 3.0, 6.0];
        let p = Perplexity::new(&nlls, 2);
        assert_eq!((p.tokens, p.chunks, p.nll), (4, 2, 3.0));
        assert!((p.value - 3f64.exp()).abs() < 1e-12);
        assert!((p.per_chunk[0] - 1.5f64.exp()).abs() < 1e-12 && (p.per_chunk[1] - p.value).abs() < 1e-12);
        // Sample variance 14/3 over 4 tokens.
        assert!((p.stderr - (14.0f64 / 12.0).sqrt() * p.value).abs() < 1e-10);
        assert_eq!((p.window_nlls.as_slice(), p.window_tokens), (&[3.0, 9.0][..], 2));
        assert!((p.bits_per_token() * std::f64::consts::LN_2 - 3.0).abs() < 1e-12);
        assert!((p.nll_stderr() * p.value - p.stderr).abs() < 1e-12);
        assert!((p.bits_per_byte(6) - 2.0 / std::f64::consts::LN_2).abs() < 1e-12);
    }
}
