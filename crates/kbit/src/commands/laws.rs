//! `kbit fit`, `kbit recommend`.

use crate::cli::{Fit, Recommend};
use crate::failure::{DONE, FAILED, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_laws::{Budget, Evidence, FitOptions, LAWS, Recommendation};
use kbit_results::{Cost, Items, Record};
use std::path::PathBuf;

/// A constant for people: five digits, whatever its size.
fn figure(value: f64) -> String {
    if (1e-3..1e6).contains(&value.abs()) || value == 0.0 {
        format!("{value:.5}")
    } else {
        format!("{value:.4e}")
    }
}

/// Fits laws to measurements.
pub fn fit(session: &Session, arguments: &Fit) -> Result<u8, Failure> {
    for law in &arguments.law {
        if !LAWS.iter().any(|known| known.name == law) {
            let known: Vec<&str> = LAWS.iter().map(|law| law.name).collect();
            return Err(Failure::usage(format!("unknown law `{law}`; known: {}", known.join(", "))));
        }
    }
    let measurements = kbit_results::read_all(&arguments.results)?;
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
        let mut table = Table::new(&["  constant", ">estimate", ">low", ">high", ">published"]);
        for estimate in &fit.estimates {
            let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
            let name = format!("  {}", estimate.name);
            let published = estimate.published.map_or_else(String::new, figure);
            table.row(vec![
                name,
                figure(estimate.value),
                shown(estimate.low),
                shown(estimate.high),
                published,
            ]);
        }
        text.push_str(&table.render());
        let shown =
            |error: Option<f64>| error.map_or_else(|| "not defined".to_owned(), |e| format!("{e:.4}"));
        text.push_str(&format!(
            "  R² {:.4}, AIC {:.1}, condition number {:.1}, {} points from {:.2} to {:.2}\n  error in {}: of points left out {}, of models left out {}\n",
            fit.r_squared,
            fit.aic,
            fit.condition,
            fit.points.len(),
            fit.range.0,
            fit.range.1,
            fit.space,
            shown(fit.leave_one_out),
            shown(fit.leave_one_model_out),
        ));
        for note in &fit.notes {
            text.push_str(&format!("  {note}\n"));
        }
        text.push('\n');
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
    let measurements = kbit_results::read_all(&arguments.results)?;
    let items: Vec<Items> = beside(&arguments.results, "items.jsonl")?;
    let costs: Vec<Cost> = beside(&arguments.results, "costs.jsonl")?;
    let budget = Budget {
        bytes: arguments.budget,
        bits_per_weight: arguments.bits_per_weight,
        tokens_per_second: arguments.tokens_per_second,
        kl_divergence: arguments.kl_divergence,
        perplexity_increase: arguments.perplexity_increase,
    };
    let evidence = Evidence { measurements: &measurements, items: &items, costs: &costs };
    let draws = usize::try_from(arguments.resamples).map_err(Failure::usage)?;
    let found = kbit_laws::recommend(&evidence, &budget, draws, arguments.seed);
    if session.global.json {
        output::json(&found)?;
    } else {
        output::text(&recommendation(&found))?;
    }
    Ok(if found.choice.is_some() { DONE } else { FAILED })
}

/// Records of the files called `name` beside `results`, where there are some.
fn beside<T: Record>(results: &[PathBuf], name: &str) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    for path in results.iter().map(|path| path.with_file_name(name)).filter(|path| path.exists()) {
        all.extend(kbit_results::read::<T>(&path)?);
    }
    Ok(all)
}

fn recommendation(found: &Recommendation) -> String {
    let mut text = format!("{}\n", found.reason);
    if let Some(settle) = &found.settle {
        text += &format!("to settle it: {settle}\n");
    }
    let columns = [
        "model",
        "scheme",
        ">size",
        ">bpw",
        ">perplexity",
        ">increase",
        ">KL divergence",
        ">tokens/s",
        ">best with",
    ];
    let mut table = Table::new(&columns);
    let shown = |value: Option<f64>, words: fn(f64) -> String| value.map_or_else(|| "-".to_owned(), words);
    for candidate in found.choice.iter().chain(&found.runners_up) {
        table.row(vec![
            candidate.model.clone(),
            candidate.scheme.clone(),
            output::bytes(candidate.bytes),
            format!("{:.3}", candidate.bits_per_weight),
            format!("{:.3}", candidate.perplexity),
            shown(candidate.perplexity_increase, |share| format!("{:+.2} %", share * 100.0)),
            shown(candidate.kl_divergence, |kld| format!("{kld:.5}")),
            shown(candidate.tokens_per_second, |rate| format!("{rate:.0}")),
            format!("{:.0} %", candidate.probability * 100.0),
        ]);
    }
    if found.choice.is_some() {
        text += &table.render();
    }
    for note in &found.notes {
        text += &format!("{note}\n");
    }
    text
}
