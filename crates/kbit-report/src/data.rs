//! Measurements as the report sees them: runs put together, grouped by model, scheme, text and arithmetic; numbers for people.

use kbit_results::{Cost, Items, Measurement, Sample};
use std::collections::{BTreeMap, HashMap};

/// What one run recorded.
#[derive(Clone, Debug, Default)]
pub struct RunData {
    /// Name, unique among the runs of a report.
    pub name: String,
    /// `results.jsonl`.
    pub measurements: Vec<Measurement>,
    /// `items.jsonl`.
    pub items: Vec<Items>,
    /// `samples.jsonl`.
    pub samples: Vec<Sample>,
    /// `costs.jsonl`.
    pub costs: Vec<Cost>,
    /// `provenance.json`.
    pub provenance: serde_json::Value,
}

/// Two results of the same thing that differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Contradiction {
    /// Runs that they are of.
    pub runs: [String; 2],
    /// What was measured, in words.
    pub what: String,
    /// The two values.
    pub values: [f64; 2],
}

/// Results of the same model, scheme, metric, text and arithmetic whose values differ beyond rounding.
#[must_use]
pub fn contradictions(runs: &[RunData]) -> Vec<Contradiction> {
    let mut seen: HashMap<kbit_results::Key, (usize, f64)> = HashMap::new();
    let mut found = Vec::new();
    for (run, data) in runs.iter().enumerate() {
        for measurement in &data.measurements {
            let (first, value) =
                *seen.entry(kbit_results::key(measurement)).or_insert((run, measurement.value));
            if kbit_results::contradict(value, measurement.value) {
                found.push(Contradiction {
                    runs: [runs[first].name.clone(), data.name.clone()],
                    what: measurement.describe(),
                    values: [value, measurement.value],
                });
            }
        }
    }
    found
}

/// All figures of one model, scheme, text and arithmetic.
pub struct Entry<'a> {
    pub about: &'a Measurement,
    pub figures: BTreeMap<&'a str, &'a Measurement>,
    /// Runs that hold it.
    pub runs: Vec<usize>,
    /// Number of its [`Context`].
    pub context: usize,
    /// True where it is the first of its model and scheme: what laws and answers are about.
    pub counts: bool,
}

impl Entry<'_> {
    pub fn get(&self, metric: &str) -> Option<(f64, Option<f64>)> {
        self.figures.get(metric).map(|figure| (figure.value, figure.stderr))
    }

    pub fn data(&self) -> &str {
        self.about.data.as_ref().map_or("", |data| &data.name)
    }

    /// The scheme's label for people.
    pub fn scheme(&self) -> &str {
        scheme_name(&self.about.scheme)
    }

    /// Model and scheme.
    pub fn named(&self) -> String {
        format!("{} {}", self.about.model.id, self.scheme())
    }

    pub fn unquantized(&self) -> bool {
        self.about.scheme.family == "none"
    }

    /// Nominal bits a weight, as whole numbers: what the lines of the scaling plot stand for.
    pub fn width(&self) -> Option<i64> {
        width(&self.about.scheme)
    }
}

/// Nominal bits a weight, as a whole number.
#[expect(clippy::cast_possible_truncation, reason = "bit widths")]
pub fn width(scheme: &kbit_results::SchemeInfo) -> Option<i64> {
    scheme.bits.map(|bits| bits.round() as i64)
}

/// A text and the arithmetic of the engine: figures of different contexts are not compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Context {
    pub data: String,
    pub arithmetic: String,
}

impl Context {
    pub fn name(&self) -> String {
        if self.data.is_empty() {
            self.arithmetic.clone()
        } else {
            format!("{}, {}", self.data, self.arithmetic)
        }
    }

    /// The same in a sentence: "on prose, in f32".
    pub fn place(&self) -> String {
        if self.data.is_empty() {
            format!("in {}", self.arithmetic)
        } else {
            format!("on the text {}, in {}", self.data, self.arithmetic)
        }
    }
}

/// True for a task: a text has windows.
pub fn is_task(measurement: &Measurement) -> bool {
    measurement.data.as_ref().is_some_and(|data| data.context.is_none())
}

/// Digest, context and windows of a text.
type TextKey<'a> = Option<(&'a str, Option<u64>, Option<u64>)>;
/// Model, scheme, text, mode and cache type.
type EntryKey<'a> = (&'a str, &'a str, TextKey<'a>, &'a str, &'a str);

/// Measurements of whole models on texts, grouped.
pub fn entries(runs: &[RunData]) -> (Vec<Entry<'_>>, Vec<Context>) {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let mut contexts: Vec<Context> = Vec::new();
    let mut first: HashMap<(&str, &str), usize> = HashMap::new();
    let mut places: HashMap<EntryKey<'_>, usize> = HashMap::new();
    for (run, data) in runs.iter().enumerate() {
        let whole = |m: &&Measurement| m.tensor.is_none() && !is_task(m) && m.metric != SENSITIVITY;
        for measurement in data.measurements.iter().filter(whole) {
            let about = (measurement.model.id.as_str(), measurement.scheme.label.as_str());
            let text =
                measurement.data.as_ref().map(|data| (data.sha256.as_str(), data.context, data.chunks));
            let key = (about.0, about.1, text, measurement.mode.as_str(), measurement.cache_type.as_str());
            let index = *places.entry(key).or_insert_with(|| {
                let context = Context {
                    data: measurement.data.as_ref().map_or_else(String::new, |data| data.name.clone()),
                    arithmetic: measurement.arithmetic(),
                };
                let number = contexts.iter().position(|known| *known == context).unwrap_or_else(|| {
                    contexts.push(context);
                    contexts.len() - 1
                });
                let index = entries.len();
                let counts = *first.entry(about).or_insert(index) == index;
                entries.push(Entry {
                    about: measurement,
                    figures: BTreeMap::new(),
                    runs: Vec::new(),
                    context: number,
                    counts,
                });
                index
            });
            let entry = &mut entries[index];
            entry.figures.entry(&measurement.metric).or_insert(measurement);
            if !entry.runs.contains(&run) {
                entry.runs.push(run);
            }
        }
    }
    (entries, contexts)
}

/// Metric of the divergence that quantizing one tensor, or one set of them, causes.
pub const SENSITIVITY: &str = "sensitivity_kld";

/// Numbers of the entries of `context` that no other beats in both total bits and loss, by size.
pub fn front(entries: &[Entry<'_>], context: usize) -> Vec<usize> {
    let mut all: Vec<(usize, f64, f64)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.context == context)
        .filter_map(|(index, entry)| Some((index, entry.about.total_bits, entry.get("nll")?.0)))
        .collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.2.total_cmp(&b.2)));
    let mut best = f64::INFINITY;
    all.retain(|(.., nll)| {
        let better = *nll < best;
        best = best.min(*nll);
        better
    });
    all.into_iter().map(|(index, ..)| index).collect()
}

/// A scheme's family for people.
pub fn family_name(family: &str) -> &str {
    if family == "none" { "unquantized" } else { family }
}

/// A scheme's label for people.
pub fn scheme_name(scheme: &kbit_results::SchemeInfo) -> &str {
    if scheme.family == "none" { "unquantized" } else { &scheme.label }
}

/// Bytes for people.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn size(bytes: u64) -> String {
    let mib = bytes as f64 / 1_048_576.0;
    if mib >= 1024.0 {
        format!("{:.2} GiB", mib / 1024.0)
    } else if mib >= 10.0 {
        format!("{mib:.1} MiB")
    } else {
        format!("{mib:.3} MiB")
    }
}

/// Four significant digits.
pub fn figure(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) {
        let decimals = if value == 0.0 { 0.0 } else { (3.0 - value.abs().log10().floor()).clamp(0.0, 7.0) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
        let decimals = decimals as usize;
        format!("{value:.decimals$}")
    } else {
        format!("{value:.3e}")
    }
}

/// Two significant digits, for standard errors.
pub fn error(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.1e}");
    }
    let decimals = if value == 0.0 { 0.0 } else { (1.0 - value.abs().log10().floor()).clamp(0.0, 7.0) };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
    let decimals = decimals as usize;
    format!("{value:.decimals$}")
}

/// Standard errors to either side of an estimate that hold 95 % of a normal distribution.
pub const Z95: f64 = 1.959_963_984_540_054;

/// What a paired difference says: `None` where its error is not known.
pub fn verdict(value: f64, stderr: Option<f64>) -> Option<&'static str> {
    let stderr = stderr?;
    Some(if value.abs() <= Z95 * stderr {
        "not distinguishable"
    } else if value > 0.0 {
        "higher"
    } else {
        "lower"
    })
}

/// How far the first of two entries is from the second in loss, nats, with its standard error: window by window where the values
/// of both are recorded, else as if their errors were independent, which is too wide.
pub fn loss_difference(runs: &[RunData], a: &Entry<'_>, b: &Entry<'_>) -> Option<(f64, Option<f64>, bool)> {
    let values = |entry: &Entry<'_>| {
        runs.iter().flat_map(|run| &run.items).find(|items| {
            let about = entry.about;
            items.metric == "nll"
                && items.model == about.model.id
                && items.scheme == about.scheme.label
                && items.mode == about.mode
                && items.cache_type == about.cache_type
                && Some(&items.data) == about.data.as_ref()
        })
    };
    let ((value_a, error_a), (value_b, error_b)) = (a.get("nll")?, b.get("nll")?);
    let unpaired = (value_a - value_b, error_a.zip(error_b).map(|(a, b)| a.hypot(b)), false);
    let (Some(x), Some(y)) = (values(a), values(b)) else { return Some(unpaired) };
    if x.values.len() != y.values.len() || x.values.len() < 2 || x.weights != y.weights {
        return Some(unpaired);
    }
    let weight =
        |index: usize| x.weights.as_ref().and_then(|weights| weights.get(index)).copied().unwrap_or(1.0);
    let total: f64 = (0..x.values.len()).map(weight).sum();
    let mean = x.values.iter().zip(&y.values).map(|(a, b)| a - b).sum::<f64>() / total;
    // The variance of a ratio of sums, to first order.
    let squares: f64 = x
        .values
        .iter()
        .zip(&y.values)
        .enumerate()
        .map(|(i, (a, b))| (a - b - mean * weight(i)).powi(2))
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a count of windows")]
    let count = x.values.len() as f64;
    let stderr = (squares * count / (count - 1.0)).sqrt() / total;
    Some((mean, Some(stderr), true))
}
