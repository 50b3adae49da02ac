//! The answers that stand first: what to choose for which size, how sure that is, and what a bit is worth.

use crate::data::{Entry, RunData, Z95, loss_difference, size};
use crate::table::{Cell, Column, Table};
use crate::tables::with_error;
use kbit_laws::Fits;
use std::collections::BTreeMap;

/// A KL divergence below it, in nats, is called nearly lossless.
const NEARLY_LOSSLESS: f64 = 0.01;
/// Sizes of the table of choices at most.
const MOST_BUDGETS: usize = 10;

/// Sentences.
pub fn headlines(entries: &[Entry<'_>], runs: &[RunData], front: &[usize], fits: &Fits) -> Vec<String> {
    let mut lines = Vec::new();
    let here = || entries.iter().filter(|entry| entry.context == 0);
    let with_loss = here().filter_map(|entry| Some((entry, entry.get("nll")?.0)));
    let Some((lowest, nll)) = with_loss.min_by(|a, b| a.1.total_cmp(&b.1)) else {
        return if entries.is_empty() && runs.iter().all(|run| run.measurements.is_empty()) {
            vec!["Nothing was measured yet: add `evaluate:` to the configuration.".to_owned()]
        } else {
            vec![
                "No loss was measured: perplexity on a text (`evaluate: text:`) is what sizes are chosen by."
                    .to_owned(),
            ]
        };
    };
    // The smallest file that loses hardly anything against its own unquantized model.
    let largest = here().map(|entry| entry.about.model.params).max();
    let near = here()
        .filter(|entry| Some(entry.about.model.params) == largest && !entry.unquantized())
        .filter(|entry| entry.get("kl_divergence").is_some_and(|(kld, _)| kld < NEARLY_LOSSLESS));
    if let Some(entry) = near.min_by_key(|entry| entry.about.bytes) {
        let sure = match entry.get("kl_divergence") {
            Some((kld, Some(stderr))) if kld + Z95 * stderr >= NEARLY_LOSSLESS => {
                "; its 95 % interval reaches past that, so a longer text may say otherwise"
            }
            _ => "",
        };
        lines.push(format!(
            "Smallest nearly lossless file of the largest model (KL divergence below {NEARLY_LOSSLESS} nats): {}, {:.2} bits a weight, {}{sure}.",
            entry.named(),
            entry.about.bpw.file,
            size(entry.about.bytes)
        ));
    }
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for bits in front.iter().filter_map(|index| entries[*index].width()) {
        *counts.entry(bits).or_default() += 1;
    }
    let total: usize = counts.values().sum();
    let counts: Vec<String> = counts.iter().map(|(bits, count)| format!("{count} at {bits} bits")).collect();
    if total > 1 {
        lines.push(format!("{total} runs are on the Pareto front of loss and size: {}.", counts.join(", ")));
    }
    lines.push(format!(
        "Lowest loss: {}, {}, with {nll:.4} nats a token (perplexity {:.2}).",
        lowest.named(),
        size(lowest.about.bytes),
        nll.exp()
    ));
    let bits: Vec<String> = fits
        .fits
        .iter()
        .filter(|fit| fit.law == "exponential")
        .filter_map(|fit| {
            let slope = fit.estimates.first()?;
            let interval = match (slope.low, slope.high) {
                (Some(low), Some(high)) => format!(" ({:.1} to {:.1})", low.exp(), high.exp()),
                _ => String::new(),
            };
            Some(format!("of {} by {:.1}{interval}", fit.family, slope.value.exp()))
        })
        .collect();
    if !bits.is_empty() {
        lines.push(format!("Each further bit divides the KL divergence {}.", bits.join(", ")));
    }
    lines
}

/// What to choose for which size, in the first context.
pub fn choices(entries: &[Entry<'_>], runs: &[RunData]) -> Table {
    let columns = vec![
        Column::text("budget", "room for the file"),
        Column::text("model", "choose model"),
        Column::text("scheme", "scheme"),
        Column::number("bytes", "size"),
        Column::number("bpw_file", "bits/weight"),
        Column::number("nll", "loss, nats").error(),
        Column::text("sure", "how sure").wrap(),
    ];
    let mut table = Table::new("choices", "What to choose for which size", columns).stacked();
    let mut all: Vec<(&Entry<'_>, f64, Option<f64>)> = entries
        .iter()
        .filter(|entry| entry.context == 0)
        .filter_map(|entry| entry.get("nll").map(|(nll, stderr)| (entry, nll, stderr)))
        .collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.about.bytes.cmp(&b.0.about.bytes)));
    let mut last = None;
    for budget in budgets(all.iter().map(|(entry, ..)| entry.about.bytes)) {
        let mut fitting = all.iter().filter(|(entry, ..)| entry.about.bytes <= budget);
        let Some((choice, nll, stderr)) = fitting.next() else { continue };
        if last.replace(choice.named()) == Some(choice.named()) {
            continue;
        }
        let sure = fitting
            .next()
            .map_or_else(|| "nothing else fits".to_owned(), |next| sureness(runs, choice, next.0));
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        table.rows.push(vec![
            Cell::text(format!("up to {}", size(budget))),
            Cell::text(&choice.about.model.id),
            Cell::text(choice.scheme()),
            Cell::Number(choice.about.bytes as f64, size(choice.about.bytes), None),
            Cell::Number(choice.about.bpw.file, format!("{:.2}", choice.about.bpw.file), None),
            Cell::Number(*nll, format!("{nll:.4}"), *stderr),
            Cell::text(sure),
        ]);
    }
    table
}

/// Powers of two from what holds the smallest file to what holds the largest, at most [`MOST_BUDGETS`] of them.
fn budgets(bytes: impl Iterator<Item = u64>) -> Vec<u64> {
    let (low, high) = bytes.fold((u64::MAX, 0), |(low, high), size| (low.min(size), high.max(size)));
    if low > high {
        return Vec::new();
    }
    let ends = [low, high].map(|size| size.checked_next_power_of_two().unwrap_or(u64::MAX));
    let mut all = vec![ends[0]];
    while let Some(next) = all.last().and_then(|last| last.checked_mul(2)).filter(|next| *next <= ends[1]) {
        all.push(next);
    }
    let step = all.len().div_ceil(MOST_BUDGETS);
    all.reverse();
    let mut all: Vec<u64> = all.into_iter().step_by(step).collect();
    all.reverse();
    all
}

fn sureness(runs: &[RunData], choice: &Entry<'_>, next: &Entry<'_>) -> String {
    let Some((difference, stderr, paired)) = loss_difference(runs, next, choice) else {
        return String::new();
    };
    let words = format!("{} nats", with_error(difference, stderr));
    match stderr {
        None => format!("{words} better than {}; no standard error is known", next.named()),
        Some(stderr) if difference.abs() > Z95 * stderr => {
            format!("clear: {words} better than {}", next.named())
        }
        Some(_) if paired => {
            format!("not distinguishable from {} ({words}): measure on more text", next.named())
        }
        Some(_) => format!("not distinguishable from {} ({words}, unpaired)", next.named()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_hold_the_smallest_and_the_largest_file() {
        assert_eq!(budgets([3, 17].into_iter()), [4, 8, 16, 32]);
        assert_eq!(budgets([5].into_iter()), [8]);
        let many = budgets([1, 1 << 40].into_iter());
        assert!(many.len() <= MOST_BUDGETS && many.last() == Some(&(1 << 40)), "{many:?}");
        assert!(budgets(std::iter::empty()).is_empty());
    }
}
