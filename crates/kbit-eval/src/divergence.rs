//! Kullback-Leibler divergence from a reference model.

use crate::run::{Plan, Runner};
use crate::statistics::{mean_and_error, quantile};
use crate::{EvalError, Perplexity, Progress, Windows};
use kbit_engine::Model;
use std::ops::Range;

/// How far the predictions of a candidate are from those of the reference, over all scored tokens.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Divergence {
    /// Mean of `sum(P ln(P / Q))` in nats, with P the reference's next-token distribution and Q the candidate's.
    pub mean_kld: f64,
    /// Standard error of `mean_kld`.
    pub stderr: f64,
    /// Median.
    pub median: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
    /// Share of tokens for which both find the same token likeliest.
    pub same_top: f64,
    /// Standard error of `same_top`.
    pub same_top_stderr: f64,
    /// `ln(perplexity of the candidate / perplexity of the reference)`.
    pub ln_ppl_ratio: f64,
    /// Standard error of `ln_ppl_ratio`, of the differences token by token.
    pub ln_ppl_ratio_stderr: f64,
    /// The candidate's perplexity.
    pub perplexity: Perplexity,
    /// The reference's perplexity.
    pub reference: Perplexity,
    /// Tokens scored.
    pub tokens: u64,
    /// Windows.
    pub chunks: u64,
}

/// What is kept of a token for one candidate.
#[derive(Clone, Copy)]
struct Token {
    kld: f64,
    nll: f64,
    same_top: bool,
}

/// What is kept of a group of windows.
struct Group {
    /// Negative log-likelihoods under the reference.
    reference: Vec<f64>,
    /// One list a candidate.
    candidates: Vec<Vec<Token>>,
}

/// Divergences of `candidates` from `reference` on a text. The reference's logits are computed once for all of them.
/// `tokens` are those of the whole text, with the tokenizer's beginning-of-text token where it adds one.
///
/// # Errors
/// When the text is shorter than a window, vocabularies differ, a model cannot be run, or logits are not finite.
pub fn kl_divergence(
    reference: &Model,
    candidates: &[&Model],
    tokens: &[u32],
    windows: &Windows,
    progress: &Progress<'_>,
) -> Result<Vec<Divergence>, EvalError> {
    let wanted = reference.description().vocab;
    for (candidate, model) in candidates.iter().enumerate() {
        let found = model.description().vocab;
        if found != wanted {
            return Err(EvalError::Vocabulary { candidate, found, wanted });
        }
    }
    let models: Vec<&Model> = std::iter::once(reference).chain(candidates.iter().copied()).collect();
    let plan = Plan::new(&models, windows, tokens)?;
    let base = plan.runner(reference);
    let others: Vec<_> = candidates.iter().map(|model| plan.runner(model)).collect();
    let groups = plan.run(progress, |group| measure(&plan, &base, &others, &group))?;

    let nlls: Vec<f64> = groups.iter().flat_map(|group| &group.reference).copied().collect();
    let reference = Perplexity::new(&nlls, windows.scored());
    Ok((0..candidates.len())
        .map(|candidate| {
            let tokens: Vec<Token> =
                groups.iter().flat_map(|group| &group.candidates[candidate]).copied().collect();
            summarise(&tokens, &nlls, &reference, windows.scored())
        })
        .collect())
}

/// Runs the reference and the candidates over a group of windows.
fn measure(
    plan: &Plan<'_>,
    reference: &Runner<'_>,
    candidates: &[Runner<'_>],
    group: &Range<usize>,
) -> Result<Group, EvalError> {
    let (texts, targets) = plan.texts(group.clone());
    let from = plan.windows.first();
    let reference_states = reference.states(&texts, from)?;
    let candidate_states =
        candidates.iter().map(|candidate| candidate.states(&texts, from)).collect::<Result<Vec<_>, _>>()?;

    let (vocab, kernels) = (reference.model.description().vocab, reference.model.kernels());
    let rows = plan.rows(reference.model);
    let mut base = vec![0.0; rows.min(targets.len()) * vocab];
    let mut other = base.clone();
    let mut result = Group { reference: Vec::new(), candidates: vec![Vec::new(); candidates.len()] };
    for (index, targets) in targets.chunks(rows).enumerate() {
        let base = &mut base[..targets.len() * vocab];
        let states = |states: &Vec<f32>, hidden: usize| -> Range<usize> {
            let start = index * rows * hidden;
            start..(start + targets.len() * hidden).min(states.len())
        };
        let hidden = reference.model.description().hidden;
        reference.logits(&reference_states[states(&reference_states, hidden)], base)?;
        let base: &[f32] = base;
        let row_of = |row: usize| row * vocab..(row + 1) * vocab;
        let not_finite = |model: String, row: usize| EvalError::NotFinite {
            model,
            token: plan.place(group, index * rows + row),
        };
        let tops = plan.each(targets.len(), |row| {
            let logits = &base[row_of(row)];
            (kernels.log_sum_exp(logits), kernels.argmax(logits))
        });
        for (row, (lse, _)) in tops.iter().enumerate() {
            let nll = lse - f64::from(base[row_of(row)][targets[row] as usize]);
            if !nll.is_finite() {
                return Err(not_finite("the reference".to_owned(), row));
            }
            result.reference.push(nll);
        }
        for (number, (candidate, all)) in candidates.iter().zip(&candidate_states).enumerate() {
            let other = &mut other[..targets.len() * vocab];
            candidate.logits(&all[states(all, candidate.model.description().hidden)], other)?;
            let tokens = plan.each(targets.len(), |row| {
                let (p, q) = (&base[row_of(row)], &other[row_of(row)]);
                let lse = kernels.log_sum_exp(q);
                Token {
                    kld: kernels.kl_divergence(p, tops[row].0, q, lse),
                    nll: lse - f64::from(q[targets[row] as usize]),
                    same_top: kernels.argmax(q) == tops[row].1,
                }
            });
            for (row, token) in tokens.iter().enumerate() {
                if !(token.kld.is_finite() && token.nll.is_finite()) {
                    return Err(not_finite(format!("candidate {number}"), row));
                }
            }
            result.candidates[number].extend(tokens);
        }
    }
    Ok(result)
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn summarise(tokens: &[Token], base: &[f64], reference: &Perplexity, scored: usize) -> Divergence {
    let (mean_kld, stderr) = mean_and_error(tokens.iter().map(|token| token.kld));
    let mut sorted: Vec<f64> = tokens.iter().map(|token| token.kld).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let nlls: Vec<f64> = tokens.iter().map(|token| token.nll).collect();
    let (ln_ppl_ratio, ln_ppl_ratio_stderr) = mean_and_error(nlls.iter().zip(base).map(|(q, p)| q - p));
    let count = tokens.len() as f64;
    let same_top = tokens.iter().filter(|token| token.same_top).count() as f64 / count;
    let perplexity = Perplexity::new(&nlls, scored);
    Divergence {
        mean_kld,
        stderr,
        median: quantile(&sorted, 0.5),
        p99: quantile(&sorted, 0.99),
        max: quantile(&sorted, 1.0),
        same_top,
        same_top_stderr: if count > 1.0 { (same_top * (1.0 - same_top) / (count - 1.0)).sqrt() } else { 0.0 },
        ln_ppl_ratio,
        ln_ppl_ratio_stderr,
        tokens: perplexity.tokens,
        chunks: perplexity.chunks,
        perplexity,
        reference: reference.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_known_tokens() {
        let token = |kld, nll, same_top| Token { kld, nll, same_top };
        let tokens =
            [token(0.1, 2.0, true), token(0.3, 3.0, true), token(0.2, 1.0, false), token(0.4, 2.0, true)];
        let base = [1.5, 2.5, 1.5, 1.5];
        let d = summarise(&tokens, &base, &Perplexity::new(&base, 2), 2);
        assert!((d.mean_kld - 0.25).abs() < 1e-12 && (d.median - 0.25).abs() < 1e-12);
        assert_eq!(d.max, 0.4);
        assert!((d.p99 - (0.4 - 0.1 * 0.03)).abs() < 1e-12);
        assert_eq!(d.same_top, 0.75);
        assert!((d.same_top_stderr - (0.75f64 * 0.25 / 3.0).sqrt()).abs() < 1e-12);
        assert!((d.ln_ppl_ratio - 0.25).abs() < 1e-12);
        assert!((d.perplexity.nll - d.reference.nll - d.ln_ppl_ratio).abs() < 1e-12);
        assert_eq!((d.tokens, d.chunks), (4, 2));
    }
}
