//! Whether measures of quality agree: the paper's correlation of perplexity and accuracy, and the same of KL divergence.

use super::effect::Correlation;
use super::paper::SOURCE;
use super::tested::Tested;
use super::{Finding, Verdict};
use kbit_results::Measurement;
use std::collections::BTreeMap;

/// Correlations from here on are strong; the paper has -0.94 for perplexity and accuracy.
const STRONG: f64 = 0.8;
/// Metrics of tasks that are an accuracy.
const ACCURACIES: [&str; 2] = ["acc", "accuracy"];

/// Both findings.
pub fn findings(all: &[Tested<'_>], measurements: &[Measurement], seed: u64) -> Vec<Finding> {
    vec![accuracy(all, measurements, seed), divergence(all, seed)]
}

fn accuracy(all: &[Tested<'_>], measurements: &[Measurement], seed: u64) -> Finding {
    let mut sums: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    let mut arithmetics: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for measurement in measurements {
        let task = measurement.data.as_ref().is_some_and(|data| data.context.is_none());
        if !task || measurement.tensor.is_some() || !ACCURACIES.contains(&measurement.metric.as_str()) {
            continue;
        }
        let key = (measurement.model.id.as_str(), measurement.scheme.label.as_str());
        let first = arithmetics.entry(key).or_insert_with(|| measurement.arithmetic());
        if *first == measurement.arithmetic() {
            sums.entry(key).or_default().push(measurement.value);
        }
    }
    // Means over the same tasks alone are comparable.
    let tasks = sums.values().map(Vec::len).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a count of tasks")]
    let pairs = all.iter().filter_map(|one| {
        let values = sums.get(&(one.model, one.scheme.label.as_str()))?;
        let mean = values.iter().sum::<f64>() / tasks as f64;
        (values.len() == tasks).then_some((one.model, (one.loss, mean)))
    });
    let found = Correlation::of(&pairs.collect::<Vec<_>>(), seed);
    finding(
        "Perplexity and accuracy go together",
        SOURCE.to_owned(),
        "Pearson's correlation of the loss and the mean accuracy over tasks (the paper: -0.94)",
        found,
        -1.0,
        "a text and tasks with an accuracy, of four or more settings",
    )
}

fn divergence(all: &[Tested<'_>], seed: u64) -> Finding {
    let bases: BTreeMap<&str, f64> =
        all.iter().filter(|one| one.unquantized()).map(|one| (one.model, one.loss)).collect();
    let pairs = all
        .iter()
        .filter(|one| !one.unquantized())
        .filter_map(|one| Some((one.model, (one.loss - bases.get(one.model)?, one.divergence?))));
    let found = Correlation::of(&pairs.collect::<Vec<_>>(), seed);
    finding(
        "Perplexity and KL divergence go together",
        format!("{SOURCE}, with KL divergence for accuracy"),
        "Pearson's correlation of the loss that quantization added and the KL divergence",
        found,
        1.0,
        "perplexity and KL divergence of four or more quantized settings and of their unquantized models",
    )
}

/// The finding that a correlation of this sign is strong.
fn finding(
    claim: &str,
    source: String,
    statistic: &str,
    found: Option<Correlation>,
    sign: f64,
    takes: &str,
) -> Finding {
    let verdict = |found: &Correlation| {
        let ends = [sign * found.interval.0, sign * found.interval.1];
        if ends.iter().all(|end| *end >= STRONG) {
            Verdict::Holds
        } else if ends.iter().all(|end| *end < STRONG) {
            Verdict::DoesNotHold
        } else {
            Verdict::NotDistinguishable
        }
    };
    let note = match &found {
        None => format!("not measured: {takes}"),
        Some(found) => {
            let alone = if found.models.len() == 1 {
                ". One model: the interval is of its settings and says nothing of other models"
            } else {
                ""
            };
            format!("it holds where the interval is beyond {:.1}{alone}", sign * STRONG)
        }
    };
    Finding {
        claim: claim.to_owned(),
        source,
        verdict: found.as_ref().map_or(Verdict::NotMeasured, verdict),
        statistic: statistic.to_owned(),
        value: found.as_ref().map(|found| found.value),
        interval: found.as_ref().map(|found| found.interval),
        comparisons: found.as_ref().map_or(0, |found| found.comparisons),
        models: found.as_ref().map_or(0, |found| found.models.len()),
        smallest_effect: found.as_ref().map(|found| found.smallest),
        note,
    }
}
