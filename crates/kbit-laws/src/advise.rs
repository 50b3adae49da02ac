//! Which run to choose: the Pareto front, and the best within a budget.

use crate::{Run, runs};
use kbit_results::Measurement;
use serde::Serialize;

/// A run on the Pareto front.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParetoPoint {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Bits of all tensors.
    pub total_bits: f64,
    /// Nats a token.
    pub nll: f64,
}

/// The runs that no other beats in both total bits and negative log-likelihood, by size.
#[must_use]
pub fn pareto(measurements: &[Measurement]) -> Vec<ParetoPoint> {
    let mut points: Vec<ParetoPoint> = runs(measurements)
        .iter()
        .filter_map(|run| {
            Some(ParetoPoint {
                model: run.about.model.id.clone(),
                scheme: run.about.scheme.label.clone(),
                total_bits: run.about.total_bits,
                nll: run.nll?.0,
            })
        })
        .collect();
    points.sort_by(|a, b| a.total_bits.total_cmp(&b.total_bits).then(a.nll.total_cmp(&b.nll)));
    let mut best = f64::INFINITY;
    points.retain(|point| {
        let better = point.nll < best;
        best = best.min(point.nll);
        better
    });
    points
}

/// A run that could be chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// True bits a weight.
    pub bits_per_weight: f64,
    /// Nats a token.
    pub nll: f64,
    /// Perplexity.
    pub perplexity: f64,
    /// KL divergence from the unquantized model, nats.
    pub kl_divergence: Option<f64>,
}

/// What to choose for a budget.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendation {
    /// Bytes for the weights.
    pub budget_bytes: u64,
    /// The best measured run that fits.
    pub choice: Option<Candidate>,
    /// The next best that fit, at most four.
    pub runners_up: Vec<Candidate>,
    /// True where the runner-up's quality lies within two standard errors of the choice's.
    pub close: bool,
    /// The smallest run, for when nothing fits.
    pub smallest: Option<Candidate>,
    /// In words.
    pub reason: String,
}

fn candidate(run: &Run<'_>) -> Option<Candidate> {
    let nll = run.nll?.0;
    Some(Candidate {
        model: run.about.model.id.clone(),
        scheme: run.about.scheme.label.clone(),
        bytes: run.about.bytes,
        bits_per_weight: run.about.bpw.file,
        nll,
        perplexity: nll.exp(),
        kl_divergence: run.kld.map(|(kld, _)| kld),
    })
}

/// The best measured run whose file has at most `budget_bytes`.
#[must_use]
pub fn recommend(measurements: &[Measurement], budget_bytes: u64) -> Recommendation {
    let runs = runs(measurements);
    let mut all: Vec<(Candidate, f64)> = runs
        .iter()
        .filter_map(|run| Some((candidate(run)?, run.nll.and_then(|(_, stderr)| stderr).unwrap_or(0.0))))
        .collect();
    all.sort_by(|a, b| a.0.nll.total_cmp(&b.0.nll).then(a.0.bytes.cmp(&b.0.bytes)));
    let smallest =
        all.iter().map(|(candidate, _)| candidate).min_by_key(|candidate| candidate.bytes).cloned();
    let mut fitting = all.into_iter().filter(|(candidate, _)| candidate.bytes <= budget_bytes);
    let chosen = fitting.next();
    let runners: Vec<(Candidate, f64)> = fitting.take(4).collect();
    let close = match (&chosen, runners.first()) {
        (Some((choice, a)), Some((next, b))) => next.nll - choice.nll < 2.0 * a.hypot(*b),
        _ => false,
    };
    let reason = match (&chosen, &smallest) {
        (Some((choice, _)), _) => format!(
            "{} with {} has the lowest loss ({:.4} nats a token) of the runs of at most {budget_bytes} bytes{}",
            choice.model,
            choice.scheme,
            choice.nll,
            if close { "; the runner-up is within two standard errors" } else { "" }
        ),
        (None, Some(smallest)) => format!(
            "no measured run has at most {budget_bytes} bytes; the smallest is {} with {} at {} bytes",
            smallest.model, smallest.scheme, smallest.bytes
        ),
        (None, None) => "the results hold no loss (metric nll); measure perplexity first".to_owned(),
    };
    Recommendation {
        budget_bytes,
        choice: chosen.map(|(candidate, _)| candidate),
        runners_up: runners.into_iter().map(|(candidate, _)| candidate).collect(),
        close,
        smallest,
        reason,
    }
}
