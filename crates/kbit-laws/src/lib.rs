//! Laws of quality against bits and size: fit, compare, bootstrap, Pareto front, advice.
//!
//! Every law is declared in [`LAWS`]. Those that are linear in their constants after a change of variables are fitted by least
//! squares in that space; the others by Huber's loss of log residuals. A fit reports estimates with bootstrap intervals, R², AIC,
//! errors of points and of models left out, residuals and the range of the data; a law with fewer points than constants is refused
//! with the reason, and [`Fit::predict`] refuses to leave the range. Everything is deterministic: one thread, seeded resampling.
#![forbid(unsafe_code)]

pub mod additive;
mod advise;
mod findings;
mod fit;
mod fitter;
pub mod knapsack;
mod law;
mod observe;
pub mod paired;
mod pareto;
mod shape;
mod solve;
mod table;

pub use advise::{Budget, Candidate, Evidence, ParetoPoint, Recommendation, pareto, recommend};
pub use findings::{Finding, Verdict, findings};
pub use fit::{
    Comparison, Estimate, Fit, FitOptions, Fits, PredictError, Prediction, Range, Refusal, Residual,
};
pub use fitter::{fit_all, fit_observations};
pub use law::{Constant, LAWS, Law, Quantity, Space};
pub use observe::{At, Observation, observations};
pub use table::{Read, Table, TableError, is_table};

use kbit_results::Measurement;

/// What was measured of one model under one scheme.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// Any measurement of the run: model, scheme, sizes.
    pub about: &'a Measurement,
    /// Mean negative log-likelihood, nats a token, with its standard error.
    pub nll: Option<(f64, Option<f64>)>,
    /// Mean KL divergence from the unquantized model, nats, with its standard error.
    pub kld: Option<(f64, Option<f64>)>,
}

/// The runs in `measurements`, in their order; of several texts, modes and cache types, the first counts.
#[must_use]
pub fn runs(measurements: &[Measurement]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for measurement in measurements.iter().filter(|measurement| measurement.tensor.is_none()) {
        let same = |run: &Run<'_>| {
            run.about.model.id == measurement.model.id && run.about.scheme.label == measurement.scheme.label
        };
        let index = runs.iter().position(same).unwrap_or_else(|| {
            runs.push(Run { about: measurement, nll: None, kld: None });
            runs.len() - 1
        });
        let run = &mut runs[index];
        if run.about.arithmetic() != measurement.arithmetic() {
            continue;
        }
        let slot = match measurement.metric.as_str() {
            "nll" => &mut run.nll,
            "kl_divergence" => &mut run.kld,
            _ => continue,
        };
        slot.get_or_insert((measurement.value, measurement.stderr));
    }
    runs
}
