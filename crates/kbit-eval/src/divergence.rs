//! Kullback-Leibler divergence from a reference model.

use crate::reference::{Base, Seen};
use crate::run::{Plan, Runner};
use crate::statistics::{Spread, mean_and_error, share_and_error};
use crate::{EvalError, Perplexity, Progress, Reference};
use kbit_engine::Model;
use std::ops::Range;

/// How far the predictions of a candidate are from those of the reference, over all scored tokens.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Divergence {
    /// Mean of `sum(P ln(P / Q))` in nats, with P the reference's next-token distribution and Q the candidate's.
    pub mean_kld: f64,
    /// Standard error of `mean_kld`.
    pub stderr: f64,
    /// Percentiles of the divergences of single tokens, in nats.
    pub spread: Spread,
    /// Share of tokens for which both find the same token likeliest.
    pub same_top: f64,
    /// Standard error of `same_top`.
    pub same_top_stderr: f64,
    /// Change of the probability of the token that follows in the text.
    pub true_token: ProbabilityChange,
    /// Tokens whose likeliest token changed between right and wrong.
    pub flips: Flips,
    /// `ln(perplexity of the candidate / perplexity of the reference)`.
    pub ln_ppl_ratio: f64,
    /// Standard error of `ln_ppl_ratio`, of the differences token by token.
    pub ln_ppl_ratio_stderr: f64,
    /// Perplexity of the candidate less that of the reference.
    pub ppl_difference: f64,
    /// Standard error of `ppl_difference`, to first order, of the differences token by token.
    pub ppl_difference_stderr: f64,
    /// Sum of the divergences of each window's tokens, in nats.
    pub window_klds: Vec<f64>,
    /// The candidate's perplexity.
    pub perplexity: Perplexity,
    /// The reference's perplexity.
    pub reference: Perplexity,
    /// Tokens scored.
    pub tokens: u64,
    /// Windows.
    pub chunks: u64,
}

/// How the probability of the token that follows in the text changed, candidate less reference: llama.cpp's Δp.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct ProbabilityChange {
    /// Mean.
    pub mean: f64,
    /// Standard error of `mean`.
    pub mean_stderr: f64,
    /// Root of the mean square.
    pub rms: f64,
    /// Standard error of `rms`, to first order.
    pub rms_stderr: f64,
    /// Percentiles.
    pub spread: Spread,
}

/// Tokens whose likeliest token changed between right, which is what follows in the text, and wrong. As "flips" in Dutta et al.,
/// 2024, "Accuracy is Not All You Need", of next tokens.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Flips {
    /// Share of tokens that changed either way.
    pub share: f64,
    /// Standard error of `share`.
    pub stderr: f64,
    /// Share of tokens that the reference had right and the candidate has not.
    pub to_wrong: f64,
    /// Standard error of `to_wrong`.
    pub to_wrong_stderr: f64,
    /// Share of tokens that the candidate has right and the reference had not.
    pub to_right: f64,
    /// Standard error of `to_right`.
    pub to_right_stderr: f64,
}

/// What is kept of a token for one candidate.
#[derive(Clone, Copy)]
struct Token {
    kld: f64,
    nll: f64,
    same_top: bool,
    /// The likeliest token is the one that follows.
    right: bool,
}

/// What is kept of a group of windows.
struct Group {
    reference: Vec<Base>,
    /// One list a candidate.
    candidates: Vec<Vec<Token>>,
}

/// Divergences of `candidates` from `reference` on its text; the reference runs once for all of them, and its layers not again in
/// later calls.
///
/// # Errors
/// When vocabularies differ, a model cannot be run, or logits are not finite.
pub fn kl_divergence(
    reference: &Reference<'_>,
    candidates: &[&Model],
    progress: &Progress<'_>,
) -> Result<Vec<Divergence>, EvalError> {
    let wanted = reference.model.description().vocab;
    for (candidate, model) in candidates.iter().enumerate() {
        let found = model.description().vocab;
        if found != wanted {
            return Err(EvalError::Vocabulary { candidate, found, wanted });
        }
    }
    let windows = &reference.windows;
    let models: Vec<&Model> = std::iter::once(reference.model).chain(candidates.iter().copied()).collect();
    let plan = Plan::new(&models, windows, reference.tokens)?;
    let base = plan.runner(reference.model);
    let others: Vec<_> = candidates.iter().map(|model| plan.runner(model)).collect();
    let groups = plan.run(progress, |group| measure(&plan, reference, &base, &others, &group))?;

    let base: Vec<Base> = groups.iter().flat_map(|group| &group.reference).copied().collect();
    let nlls: Vec<f64> = base.iter().map(|base| base.nll).collect();
    let perplexity = Perplexity::new(&nlls, windows.scored());
    Ok((0..candidates.len())
        .map(|candidate| {
            let tokens: Vec<Token> =
                groups.iter().flat_map(|group| &group.candidates[candidate]).copied().collect();
            summarise(&tokens, &base, &perplexity, windows.scored())
        })
        .collect())
}

/// Runs the reference and the candidates over a group of windows.
fn measure(
    plan: &Plan<'_>,
    reference: &Reference<'_>,
    runner: &Runner<'_>,
    candidates: &[Runner<'_>],
    group: &Range<usize>,
) -> Result<Group, EvalError> {
    let (texts, targets) = plan.texts(group.clone());
    let from = plan.windows.first();
    let seen = reference.seen(group);
    let mut fresh = Vec::new();
    let reference_states = match seen {
        Some(seen) => &seen.states,
        None => {
            fresh = runner.states(&texts, from)?;
            &fresh
        }
    };
    let candidate_states =
        candidates.iter().map(|candidate| candidate.states(&texts, from)).collect::<Result<Vec<_>, _>>()?;

    let (vocab, kernels) = (reference.model.description().vocab, reference.model.kernels());
    let rows = plan.rows(reference.model);
    let len = rows.min(targets.len()) * vocab;
    let (mut base, mut other) = (plan.floats(len), plan.floats(len));
    let mut result = Group { reference: Vec::new(), candidates: vec![Vec::new(); candidates.len()] };
    for (index, targets) in targets.chunks(rows).enumerate() {
        let base = &mut base[..targets.len() * vocab];
        let states = |states: &Vec<f32>, hidden: usize| -> Range<usize> {
            let start = index * rows * hidden;
            start..(start + targets.len() * hidden).min(states.len())
        };
        let hidden = reference.model.description().hidden;
        runner.logits(&reference_states[states(reference_states, hidden)], base)?;
        let base: &[f32] = base;
        let row_of = |row: usize| row * vocab..(row + 1) * vocab;
        let not_finite = |model: String, row: usize| EvalError::NotFinite {
            model,
            token: plan.place(group, index * rows + row),
        };
        let tokens = match seen {
            Some(seen) => seen.tokens[index * rows..][..targets.len()].to_vec(),
            None => {
                plan.each(targets.len(), |row| Base::new(kernels, &base[row_of(row)], targets[row] as usize))
            }
        };
        if let Some(row) = tokens.iter().position(|token| !token.nll.is_finite()) {
            return Err(not_finite("the reference".to_owned(), row));
        }
        for (number, (candidate, all)) in candidates.iter().zip(&candidate_states).enumerate() {
            let other = &mut other[..targets.len() * vocab];
            candidate.logits(&all[states(all, candidate.model.description().hidden)], other)?;
            let found = plan.each(targets.len(), |row| {
                let (p, q) = (&base[row_of(row)], &other[row_of(row)]);
                let (lse, top) = kernels.log_sum_exp_and_argmax(q);
                Token {
                    kld: kernels.kl_divergence(p, tokens[row].lse, q, lse),
                    nll: lse - f64::from(q[targets[row] as usize]),
                    same_top: top == tokens[row].top,
                    right: top == Some(targets[row] as usize),
                }
            });
            for (row, token) in found.iter().enumerate() {
                if !(token.kld.is_finite() && token.nll.is_finite()) {
                    return Err(not_finite(format!("candidate {number}"), row));
                }
            }
            result.candidates[number].extend(found);
        }
        result.reference.extend(tokens);
    }
    if seen.is_none() {
        reference.keep(group, Seen { states: fresh, tokens: result.reference.clone() });
    }
    Ok(result)
}

fn summarise(tokens: &[Token], base: &[Base], reference: &Perplexity, scored: usize) -> Divergence {
    let klds: Vec<f64> = tokens.iter().map(|token| token.kld).collect();
    let (mean_kld, stderr) = mean_and_error(klds.iter().copied());
    let nlls: Vec<f64> = tokens.iter().map(|token| token.nll).collect();
    let perplexity = Perplexity::new(&nlls, scored);
    let pairs = || tokens.iter().zip(base);
    let (ln_ppl_ratio, ln_ppl_ratio_stderr) =
        mean_and_error(pairs().map(|(token, base)| token.nll - base.nll));
    // Each perplexity times its negative log-likelihoods: what it changes by when they do.
    let (_, ppl_difference_stderr) = mean_and_error(
        pairs().map(|(token, base)| perplexity.value * token.nll - reference.value * base.nll),
    );
    let share = |is: fn(&Token, &Base) -> bool| {
        share_and_error(pairs().filter(|(token, base)| is(token, base)).count(), tokens.len())
    };
    let (same_top, same_top_stderr) = share(|token, _| token.same_top);
    Divergence {
        mean_kld,
        stderr,
        window_klds: klds.chunks(scored).map(|window| window.iter().sum()).collect(),
        spread: Spread::of(klds),
        same_top,
        same_top_stderr,
        true_token: probability_change(pairs().map(|(token, base)| (-token.nll).exp() - (-base.nll).exp())),
        flips: {
            let (to_wrong, to_wrong_stderr) = share(|token, base| base.right && !token.right);
            let (to_right, to_right_stderr) = share(|token, base| !base.right && token.right);
            let (share, stderr) = share(|token, base| base.right != token.right);
            Flips { share, stderr, to_wrong, to_wrong_stderr, to_right, to_right_stderr }
        },
        ln_ppl_ratio,
        ln_ppl_ratio_stderr,
        ppl_difference: perplexity.value - reference.value,
        ppl_difference_stderr,
        tokens: perplexity.tokens,
        chunks: perplexity.chunks,
        perplexity,
        reference: reference.clone(),
    }
}

fn probability_change(changes: impl Iterator<Item = f64>) -> ProbabilityChange {
    let changes: Vec<f64> = changes.collect();
    let (mean, mean_stderr) = mean_and_error(changes.iter().copied());
    let (square, square_stderr) = mean_and_error(changes.iter().map(|change| change * change));
    let rms = square.sqrt();
    let rms_stderr = if rms > 0.0 { 0.5 * square_stderr / rms } else { 0.0 };
    ProbabilityChange { mean, mean_stderr, rms, rms_stderr, spread: Spread::of(changes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(nll: f64, right: bool) -> Base {
        Base { lse: 0.0, top: None, nll, right }
    }

    #[test]
    fn summary_of_known_tokens() {
        let token = |kld, nll, same_top, right| Token { kld, nll, same_top, right };
        let tokens = [
            token(0.1, 2.0, true, true),
            token(0.3, 3.0, true, false),
            token(0.2, 1.0, false, true),
            token(0.4, 2.0, true, false),
        ];
        let nlls = [1.5, 2.5, 1.5, 1.5];
        let base = [true, false, false, true];
        let base: Vec<Base> = nlls.iter().zip(base).map(|(&nll, right)| known(nll, right)).collect();
        let d = summarise(&tokens, &base, &Perplexity::new(&nlls, 2), 2);
        assert!((d.mean_kld - 0.25).abs() < 1e-12 && (d.spread.median - 0.25).abs() < 1e-12);
        assert_eq!((d.spread.min, d.spread.max), (0.1, 0.4));
        assert!((d.spread.p99 - (0.4 - 0.1 * 0.03)).abs() < 1e-12);
        assert!((d.spread.p10 - 0.13).abs() < 1e-12);
        assert_eq!(d.same_top, 0.75);
        assert!((d.same_top_stderr - (0.75f64 * 0.25 / 3.0).sqrt()).abs() < 1e-12);
        assert!((d.ln_ppl_ratio - 0.25).abs() < 1e-12);
        assert!((d.perplexity.nll - d.reference.nll - d.ln_ppl_ratio).abs() < 1e-12);
        assert_eq!((d.tokens, d.chunks), (4, 2));
        assert!((d.window_klds[0] - 0.4).abs() < 1e-12 && (d.window_klds[1] - 0.6).abs() < 1e-12);
        assert_eq!((d.flips.share, d.flips.to_wrong, d.flips.to_right), (0.5, 0.25, 0.25));
        let changes: Vec<f64> = tokens
            .iter()
            .zip(nlls)
            .map(|(token, nll): (&Token, f64)| (-token.nll).exp() - (-nll).exp())
            .collect();
        let mean = changes.iter().sum::<f64>() / 4.0;
        let square = changes.iter().map(|change| change * change).sum::<f64>() / 4.0;
        assert!((d.true_token.mean - mean).abs() < 1e-12 && (d.true_token.rms - square.sqrt()).abs() < 1e-12);
        assert_eq!(d.true_token.spread.min, changes.iter().copied().fold(f64::INFINITY, f64::min));
    }

    #[test]
    fn error_of_the_difference_of_perplexities_is_llama_cpps() {
        let nlls = [(2.0, 1.5), (3.0, 2.5), (1.0, 1.5), (2.0, 1.5), (0.5, 0.25)];
        let tokens: Vec<Token> =
            nlls.iter().map(|&(nll, _)| Token { kld: 0.0, nll, same_top: true, right: true }).collect();
        let base: Vec<Base> = nlls.iter().map(|&(_, nll)| known(nll, true)).collect();
        let reference = Perplexity::new(&nlls.map(|(_, nll)| nll), 5);
        let d = summarise(&tokens, &base, &reference, 5);
        // sqrt(error_q^2 + error_p^2 - 2 ppl_q ppl_p covariance), the covariance that of the means.
        let product = nlls.iter().map(|(q, p)| q * p).sum::<f64>() / 5.0;
        let covariance = (product - d.perplexity.nll * d.reference.nll) / 4.0;
        let (q, p) = (&d.perplexity, &d.reference);
        let wanted = (q.stderr.powi(2) + p.stderr.powi(2) - 2.0 * q.value * p.value * covariance).sqrt();
        assert!((d.ppl_difference_stderr - wanted).abs() < 1e-12, "{} {wanted}", d.ppl_difference_stderr);
        assert!((d.ppl_difference - (q.value - p.value)).abs() < 1e-12);
    }
}
