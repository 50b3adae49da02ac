//! `kbit fit`, `kbit recommend`.

use crate::cli::{Fit, Recommend};
use crate::failure::{DONE, FAILED, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_laws::{FitOptions, LAWS};
use kbit_results::Measurement;
use std::path::PathBuf;

fn read(paths: &[PathBuf]) -> Result<Vec<Measurement>, Failure> {
    let sets =
        paths.iter().map(|path| kbit_results::read::<Measurement>(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(kbit_results::merge(sets))
}

/// Fits laws to measurements.
pub fn fit(session: &Session, arguments: &Fit) -> Result<u8, Failure> {
    for law in &arguments.law {
        if !LAWS.iter().any(|(name, _)| name == law) {
            let known: Vec<&str> = LAWS.iter().map(|(name, _)| *name).collect();
            return Err(Failure::usage(format!("unknown law `{law}`; known: {}", known.join(", "))));
        }
    }
    let measurements = read(&arguments.results)?;
    let options = FitOptions {
        bootstrap: usize::try_from(arguments.bootstrap).unwrap_or(500),
        seed: arguments.seed,
        laws: arguments.law.clone(),
    };
    let fits = kbit_laws::fit_all(&measurements, &options);
    if session.global.json {
        output::json(&fits)?;
        return Ok(DONE);
    }
    let mut text = String::new();
    for fit in &fits.fits {
        text.push_str(&format!("{} ({}): {}\n", fit.law, fit.family, fit.form));
        let mut table = Table::new(&["  constant", ">estimate", ">low", ">high"]);
        for estimate in &fit.estimates {
            let shown =
                |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.5}"));
            let name = format!("  {}", estimate.name);
            table.row(vec![name, shown(Some(estimate.value)), shown(estimate.low), shown(estimate.high)]);
        }
        text.push_str(&table.render());
        let left_out =
            fit.leave_one_out.map_or_else(|| "not defined".to_owned(), |error| format!("{error:.4}"));
        text.push_str(&format!(
            "  R² {:.4}, AIC {:.1}, leave-one-out error {left_out} in {}, {} points from {:.2} to {:.2}\n\n",
            fit.r_squared,
            fit.aic,
            fit.space,
            fit.points.len(),
            fit.range.0,
            fit.range.1
        ));
    }
    for comparison in &fits.comparisons {
        text.push_str(&format!(
            "{}: {} is better than {} by {:.1} in AIC\n",
            comparison.family, comparison.better, comparison.worse, comparison.aic_difference
        ));
    }
    for refusal in &fits.refusals {
        text.push_str(&format!("{} ({}): not fitted: {}\n", refusal.law, refusal.family, refusal.reason));
    }
    output::text(&text)?;
    Ok(DONE)
}

/// Chooses the best measured run within a budget.
pub fn recommend(session: &Session, arguments: &Recommend) -> Result<u8, Failure> {
    let measurements = read(&arguments.results)?;
    let found = kbit_laws::recommend(&measurements, arguments.budget);
    if session.global.json {
        output::json(&found)?;
    } else {
        let mut text = format!("{}\n", found.reason);
        let mut table = Table::new(&["model", "scheme", ">size", ">bpw", ">perplexity", ">KL divergence"]);
        for candidate in found.choice.iter().chain(&found.runners_up) {
            table.row(vec![
                candidate.model.clone(),
                candidate.scheme.clone(),
                output::bytes(candidate.bytes),
                format!("{:.3}", candidate.bits_per_weight),
                format!("{:.3}", candidate.perplexity),
                candidate.kl_divergence.map_or_else(|| "-".to_owned(), |kld| format!("{kld:.5}")),
            ]);
        }
        if found.choice.is_some() {
            text.push_str(&table.render());
        }
        output::text(&text)?;
    }
    Ok(if found.choice.is_some() { DONE } else { FAILED })
}
