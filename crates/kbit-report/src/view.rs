//! What the page shows, as plain values: tables, charts, sentences.

use crate::chart::{Axis, Chart, Point, Scale, Series};
use kbit_laws::{Fit, Fits, ParetoPoint};
use kbit_results::{Cost, Measurement};
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything that the page shows.
#[derive(Serialize)]
pub struct View {
    pub title: String,
    pub headlines: Vec<String>,
    pub failures: Vec<String>,
    /// The text, where all runs were measured on the same.
    pub text: Option<String>,
    /// How the engine computed, where it did so in all runs.
    pub arithmetic: Option<String>,
    pub rows: Vec<Row>,
    pub charts: Vec<Figure>,
    pub heat: Vec<Heat>,
    pub fits: Vec<FitRow>,
    pub comparisons: Vec<String>,
    pub refusals: Vec<String>,
    pub pareto: Vec<[String; 4]>,
    pub costs: Vec<[String; 5]>,
    pub plugins: Vec<[String; 3]>,
    /// Lines of the CSV.
    #[serde(skip)]
    pub records: Vec<Vec<String>>,
}

/// A line of the table of runs.
#[derive(Serialize)]
pub struct Row {
    pub model: String,
    pub scheme: String,
    pub bpw: String,
    pub decoder_bpw: String,
    pub size: String,
    pub bytes: u64,
    pub perplexity: String,
    pub perplexity_error: String,
    pub kld: String,
    pub kld_error: String,
    pub same_top: String,
    pub pareto: bool,
    pub unquantized: bool,
    pub data: String,
    pub arithmetic: String,
}

/// A chart with its caption.
#[derive(Serialize)]
pub struct Figure {
    pub heading: String,
    pub svg: String,
    pub caption: String,
}

/// The errors of a model's tensors.
#[derive(Serialize)]
pub struct Heat {
    pub model: String,
    pub schemes: Vec<String>,
    pub rows: Vec<HeatRow>,
}

#[derive(Serialize)]
pub struct HeatRow {
    pub tensor: String,
    pub cells: Vec<HeatCell>,
}

#[derive(Serialize)]
pub struct HeatCell {
    /// 0 (small error) to 10.
    pub level: u8,
    pub text: String,
}

#[derive(Serialize)]
pub struct FitRow {
    pub law: String,
    pub form: String,
    pub family: String,
    pub estimates: Vec<String>,
    pub r_squared: String,
    pub aic: String,
    pub leave_one_out: String,
    pub points: usize,
    pub range: String,
}

/// All figures of one model, scheme, text and arithmetic.
struct Entry<'a> {
    about: &'a Measurement,
    figures: Vec<&'a Measurement>,
    /// True where the arithmetic is the first in which the model and scheme were measured: what charts, laws and answers are about.
    counts: bool,
}

impl Entry<'_> {
    fn get(&self, metric: &str) -> Option<(f64, Option<f64>)> {
        self.figures.iter().find(|figure| figure.metric == metric).map(|figure| (figure.value, figure.stderr))
    }

    fn data(&self) -> String {
        self.about.data.as_ref().map_or_else(String::new, |data| data.name.clone())
    }
}

fn entries(measurements: &[Measurement]) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for measurement in measurements.iter().filter(|measurement| measurement.tensor.is_none()) {
        let same = |entry: &Entry<'_>| {
            entry.about.model.id == measurement.model.id
                && entry.about.scheme.label == measurement.scheme.label
        };
        let arithmetic = measurement.arithmetic();
        let counts = entries
            .iter()
            .find(|entry| same(entry))
            .is_none_or(|first| first.about.arithmetic() == arithmetic);
        let here = |entry: &Entry<'_>| {
            same(entry) && entry.about.data == measurement.data && entry.about.arithmetic() == arithmetic
        };
        match entries.iter_mut().find(|entry| here(entry)) {
            Some(entry) => entry.figures.push(measurement),
            None => entries.push(Entry { about: measurement, figures: vec![measurement], counts }),
        }
    }
    entries
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / 1_048_576.0;
    if mib >= 1024.0 { format!("{:.2} GiB", mib / 1024.0) } else { format!("{mib:.3} MiB") }
}

/// Four significant digits.
fn figure(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) {
        let decimals = if value == 0.0 { 0.0 } else { (3.0 - value.abs().log10().floor()).clamp(0.0, 7.0) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
        let decimals = decimals as usize;
        format!("{value:.decimals$}")
    } else {
        format!("{value:.3e}")
    }
}

fn shown(value: Option<(f64, Option<f64>)>) -> (String, String) {
    match value {
        None => (String::new(), String::new()),
        Some((value, stderr)) => {
            (figure(value), stderr.map_or_else(String::new, |stderr| format!("± {}", figure(stderr))))
        }
    }
}

impl View {
    pub fn new(
        measurements: &[Measurement],
        costs: &[Cost],
        fits: &Fits,
        provenance: &serde_json::Value,
    ) -> Self {
        let entries = entries(measurements);
        let on_front = |entry: &Entry<'_>| {
            let same = |point: &ParetoPoint| {
                point.model == entry.about.model.id && point.scheme == entry.about.scheme.label
            };
            entry.counts && fits.pareto.iter().any(same)
        };
        let rows: Vec<Row> = entries.iter().map(|entry| row(entry, on_front(entry))).collect();
        let first = rows.first().map(|row| row.data.clone());
        let one_text = first.filter(|text| rows.iter().all(|row| row.data == *text));
        let first = rows.first().map(|row| row.arithmetic.clone());
        let one_arithmetic = first.filter(|first| rows.iter().all(|row| row.arithmetic == *first));
        let records = entries.iter().map(record).collect();
        let mut entries = entries;
        entries.retain(|entry| entry.counts);
        let mut charts = Vec::new();
        charts.extend(quality_chart(&entries, &on_front));
        charts.extend(divergence_chart(&entries, fits));
        let text = |key: &str| provenance.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
        Self {
            title: text("name").unwrap_or_else(|| "kbit report".to_owned()),
            headlines: headlines(&entries, fits, &on_front),
            failures: failures(provenance),
            text: one_text,
            arithmetic: one_arithmetic,
            rows,
            charts,
            heat: heat(measurements),
            fits: fits.fits.iter().map(fit_row).collect(),
            comparisons: fits
                .comparisons
                .iter()
                .map(|c| {
                    format!(
                        "{}: {} fits better than {} on the same points, by {:.1} in AIC.",
                        family_name(&c.family),
                        c.better,
                        c.worse,
                        c.aic_difference
                    )
                })
                .collect(),
            refusals: fits
                .refusals
                .iter()
                .map(|r| format!("{} ({}) was not fitted: {}.", r.law, family_name(&r.family), r.reason))
                .collect(),
            pareto: fits
                .pareto
                .iter()
                .map(|point| {
                    [
                        point.model.clone(),
                        family_name(&point.scheme).to_owned(),
                        format!("{:.2}", point.total_bits.log2()),
                        format!("{:.4}", point.nll),
                    ]
                })
                .collect(),
            costs: costs.iter().map(cost_row).collect(),
            plugins: plugins(provenance),
            records,
        }
    }
}

/// A scheme's family for people.
fn family_name(family: &str) -> &str {
    if family == "none" { "unquantized" } else { family }
}

/// The scheme's label for people.
fn scheme<'a>(entry: &'a Entry<'_>) -> &'a str {
    if entry.about.scheme.family == "none" { "unquantized" } else { &entry.about.scheme.label }
}

/// Model and scheme.
fn named(entry: &Entry<'_>) -> String {
    format!("{} {}", entry.about.model.id, scheme(entry))
}

fn row(entry: &Entry<'_>, pareto: bool) -> Row {
    let about = entry.about;
    let (perplexity, perplexity_error) = shown(entry.get("perplexity"));
    let (kld, kld_error) = shown(entry.get("kl_divergence"));
    Row {
        model: about.model.id.clone(),
        scheme: scheme(entry).to_owned(),
        bpw: format!("{:.3}", about.bpw.file),
        decoder_bpw: format!("{:.3}", about.bpw.decoder),
        size: size(about.bytes),
        bytes: about.bytes,
        perplexity,
        perplexity_error,
        kld,
        kld_error,
        same_top: entry
            .get("same_top")
            .map_or_else(String::new, |(share, _)| format!("{:.1} %", share * 100.0)),
        pareto,
        unquantized: about.scheme.family == "none",
        data: entry.data(),
        arithmetic: about.arithmetic(),
    }
}

fn record(entry: &Entry<'_>) -> Vec<String> {
    let about = entry.about;
    let value = |metric: &str| entry.get(metric).map_or_else(String::new, |(value, _)| value.to_string());
    let error = |metric: &str| {
        entry.get(metric).and_then(|(_, error)| error).map_or_else(String::new, |e| e.to_string())
    };
    vec![
        about.model.id.clone(),
        about.model.params.to_string(),
        about.scheme.label.clone(),
        about.scheme.family.clone(),
        about.scheme.bits.map_or_else(String::new, |bits| bits.to_string()),
        about.bpw.file.to_string(),
        about.bpw.decoder.to_string(),
        about.bytes.to_string(),
        about.total_bits.to_string(),
        entry.data(),
        about.mode.clone(),
        about.cache_type.clone(),
        value("perplexity"),
        error("perplexity"),
        value("nll"),
        value("bits_per_byte"),
        value("kl_divergence"),
        error("kl_divergence"),
        value("same_top"),
    ]
}

/// A KL divergence below it, in nats, is called nearly lossless.
const NEARLY_LOSSLESS: f64 = 0.01;
/// The scaling plot ends at this multiple of the lowest loss.
const MOST_LOSS: f64 = 2.0;

/// The answers first.
fn headlines(entries: &[Entry<'_>], fits: &Fits, on_front: &dyn Fn(&Entry<'_>) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    let with_loss = entries.iter().filter_map(|entry| Some((entry, entry.get("nll")?.0)));
    let Some((lowest, nll)) = with_loss.min_by(|a, b| a.1.total_cmp(&b.1)) else {
        return vec!["Nothing was measured yet: add `evaluate:` to the configuration.".to_owned()];
    };
    // The smallest file that loses hardly anything against its own unquantized model.
    let largest = entries.iter().map(|entry| entry.about.model.params).max();
    let near = entries
        .iter()
        .filter(|entry| Some(entry.about.model.params) == largest)
        .filter(|entry| entry.get("kl_divergence").is_some_and(|(kld, _)| kld < NEARLY_LOSSLESS));
    if let Some(entry) = near.min_by_key(|entry| entry.about.bytes) {
        lines.push(format!(
            "Smallest nearly lossless file of the largest model (KL divergence below {NEARLY_LOSSLESS} nats): {}, {:.2} bits a weight, {}.",
            named(entry),
            entry.about.bpw.file,
            size(entry.about.bytes)
        ));
    }
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| on_front(entry)) {
        if let Some(bits) = width(entry) {
            *counts.entry(bits).or_default() += 1;
        }
    }
    let total: usize = counts.values().sum();
    let counts: Vec<String> = counts.iter().map(|(bits, count)| format!("{count} at {bits} bits")).collect();
    if total > 1 {
        lines.push(format!("{total} runs are on the Pareto front of loss and size: {}.", counts.join(", ")));
    }
    lines.push(format!(
        "Lowest loss: {}, {}, with {nll:.4} nats a token (perplexity {:.2}).",
        named(lowest),
        size(lowest.about.bytes),
        nll.exp()
    ));
    for fit in fits.fits.iter().filter(|fit| fit.law == "exponential") {
        if let Some(slope) = fit.estimates.first() {
            lines.push(format!(
                "Each further bit divides the KL divergence of {} by {:.1} (R² {:.3}, {} points).",
                fit.family,
                slope.value.exp(),
                fit.r_squared,
                fit.points.len()
            ));
        }
    }
    lines
}

fn failures(provenance: &serde_json::Value) -> Vec<String> {
    let list = provenance.get("failures").and_then(serde_json::Value::as_array);
    let text = |failure: &serde_json::Value, key: &str| {
        failure.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    };
    list.into_iter()
        .flatten()
        .map(|failure| {
            format!("{} {}: {}", text(failure, "model"), text(failure, "scheme"), text(failure, "message"))
        })
        .collect()
}

fn plugins(provenance: &serde_json::Value) -> Vec<[String; 3]> {
    let list = provenance.get("plugins").and_then(serde_json::Value::as_array);
    list.into_iter()
        .flatten()
        .map(|plugin| {
            ["id", "version", "sha256"]
                .map(|key| plugin.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned())
        })
        .collect()
}

fn cost_row(cost: &Cost) -> [String; 5] {
    [
        format!("{} {}", cost.model.id, cost.scheme.label),
        cost.title(),
        format!("{:.2}", cost.seconds),
        cost.tokens_per_second.map_or_else(String::new, |rate| format!("{rate:.0}")),
        cost.peak_rss_bytes.map_or_else(String::new, size),
    ]
}

/// Nominal bits a weight, as whole numbers: what the lines of the scaling plot stand for.
#[expect(clippy::cast_possible_truncation, reason = "bit widths")]
fn width(entry: &Entry<'_>) -> Option<i64> {
    entry.about.scheme.bits.map(|bits| bits.round() as i64)
}

/// Loss against log2 of total bits, one line a bit width.
fn quality_chart(entries: &[Entry<'_>], on_front: &dyn Fn(&Entry<'_>) -> bool) -> Option<Figure> {
    let measured: Vec<(&Entry<'_>, f64)> =
        entries.iter().filter_map(|entry| Some((entry, entry.get("nll")?.0))).collect();
    let mut widths: Vec<i64> = measured.iter().filter_map(|(entry, _)| width(entry)).collect();
    widths.sort_unstable();
    widths.dedup();
    let series: Vec<Series> = widths
        .iter()
        .enumerate()
        .map(|(colour, bits)| {
            let of_width: Vec<_> =
                measured.iter().filter(|(entry, _)| width(entry) == Some(*bits)).copied().collect();
            // The best scheme of each model carries the line.
            let mut best: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
            for (entry, nll) in &of_width {
                let place = best.entry(entry.about.model.params).or_insert((0.0, f64::INFINITY));
                if *nll < place.1 {
                    *place = (entry.about.total_bits.log2(), *nll);
                }
            }
            let points = of_width.iter().map(|(entry, nll)| Point {
                x: entry.about.total_bits.log2(),
                y: *nll,
                title: format!("{}: {nll:.4} nats, {}", named(entry), size(entry.about.bytes)),
                marked: on_front(entry),
            });
            Series {
                label: format!("{bits} bits"),
                colour,
                points: points.collect(),
                line: best.into_values().collect(),
                curve: Vec::new(),
            }
        })
        .collect();
    let best = measured.iter().map(|(_, nll)| *nll).fold(f64::INFINITY, f64::min);
    let worst_line = series.iter().flat_map(|series| &series.line).map(|(_, nll)| *nll).fold(best, f64::max);
    let chart = Chart {
        title: "Loss against size, one line a bit width".to_owned(),
        x: Axis::new("log2 of total bits", Scale::Linear),
        y: Axis {
            limit: Some(worst_line.min(MOST_LOSS * best)),
            ..Axis::new("loss, nats a token", Scale::Linear)
        },
        series,
    };
    Some(Figure {
        heading: "Quality against size".to_owned(),
        svg: chart.svg()?,
        caption: "One line a bit width through the best scheme at each model size; the other schemes are dots, triangles where they \
                  lie above the picture. Rings mark the Pareto front: no run is both smaller and better. Lower is better."
            .to_owned(),
    })
}

/// Divergence against bits a weight, one colour a family, with the fitted exponential of the largest model.
fn divergence_chart(entries: &[Entry<'_>], fits: &Fits) -> Option<Figure> {
    let mut families: Vec<&str> = entries
        .iter()
        .filter(|entry| entry.get("kl_divergence").is_some())
        .map(|entry| entry.about.scheme.family.as_str())
        .collect();
    families.sort_unstable();
    families.dedup();
    let series = families.iter().enumerate().map(|(colour, family)| {
        let of_family = entries.iter().filter(|entry| entry.about.scheme.family == *family);
        let points = of_family.filter_map(|entry| {
            let kld = entry.get("kl_divergence")?.0;
            let title = format!("{}: {} nats at {:.3} bits", named(entry), figure(kld), entry.about.bpw.file);
            Some(Point { x: entry.about.bpw.file, y: kld, title, marked: false })
        });
        let points: Vec<Point> = points.filter(|point| point.y > 0.0).collect();
        let fit = fits.fits.iter().find(|fit| fit.law == "exponential" && fit.family == *family);
        Series {
            label: (*family).to_owned(),
            colour,
            points,
            line: Vec::new(),
            curve: fit.map(curve).unwrap_or_default(),
        }
    });
    let chart = Chart {
        title: "KL divergence against bits a weight".to_owned(),
        x: Axis::new("true bits a weight, scales included", Scale::Linear),
        y: Axis::new("KL divergence, nats", Scale::Log),
        series: series.collect(),
    };
    Some(Figure {
        heading: "What a bit is worth".to_owned(),
        svg: chart.svg()?,
        caption: "Mean KL divergence of the next-token distribution from the unquantized model's. Dashed: the fitted exponential law of \
                  each family, at the geometric mean of its models. Lower is better."
            .to_owned(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a count of models")]
fn curve(fit: &Fit) -> Vec<(f64, f64)> {
    let Some((slope, levels)) = fit.estimates.split_first() else { return Vec::new() };
    let mean = levels.iter().map(|level| level.value.ln()).sum::<f64>() / levels.len().max(1) as f64;
    let (low, high) = fit.range;
    (0..=24)
        .map(|step| {
            let bits = low + (high - low) * f64::from(step) / 24.0;
            (bits, (mean - slope.value * bits).exp())
        })
        .collect()
}

fn fit_row(fit: &Fit) -> FitRow {
    let estimates = fit.estimates.iter().map(|estimate| match (estimate.low, estimate.high) {
        (Some(low), Some(high)) => {
            format!("{} = {} ({} to {})", estimate.name, figure(estimate.value), figure(low), figure(high))
        }
        _ => format!("{} = {}", estimate.name, figure(estimate.value)),
    });
    FitRow {
        law: fit.law.clone(),
        form: fit.form.clone(),
        family: family_name(&fit.family).to_owned(),
        estimates: estimates.collect(),
        r_squared: format!("{:.4}", fit.r_squared),
        aic: format!("{:.1}", fit.aic),
        leave_one_out: fit
            .leave_one_out
            .map_or_else(|| "not defined".to_owned(), |error| format!("{} in {}", figure(error), fit.space)),
        points: fit.points.len(),
        range: format!("{:.2} to {:.2}", fit.range.0, fit.range.1),
    }
}

fn heat(measurements: &[Measurement]) -> Vec<Heat> {
    let errors: Vec<&Measurement> =
        measurements.iter().filter(|measurement| measurement.metric == "tensor_relative_mse").collect();
    let positive = errors.iter().map(|error| error.value).filter(|value| *value > 0.0);
    let (low, high) =
        positive.fold((f64::INFINITY, 0f64), |(low, high), value| (low.min(value), high.max(value)));
    let level = |value: f64| {
        if value <= 0.0 || high <= low {
            return 0;
        }
        let place = (value.ln() - low.ln()) / (high.ln() - low.ln());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 10")]
        {
            (place * 10.0).round().clamp(0.0, 10.0) as u8
        }
    };
    let mut models: Vec<&str> = Vec::new();
    for error in &errors {
        if !models.contains(&error.model.id.as_str()) {
            models.push(&error.model.id);
        }
    }
    let one = |model: &&str| {
        let of_model: Vec<&&Measurement> = errors.iter().filter(|error| error.model.id == **model).collect();
        let mut schemes: Vec<String> = Vec::new();
        let mut tensors: Vec<String> = Vec::new();
        for error in &of_model {
            let tensor = error.tensor.clone().unwrap_or_default();
            if !schemes.contains(&error.scheme.label) {
                schemes.push(error.scheme.label.clone());
            }
            if !tensors.contains(&tensor) {
                tensors.push(tensor);
            }
        }
        let rows = tensors.iter().map(|tensor| {
            let cells = schemes.iter().map(|scheme| {
                let found = of_model
                    .iter()
                    .find(|error| error.scheme.label == *scheme && error.tensor.as_deref() == Some(tensor));
                found.map_or(HeatCell { level: 0, text: String::new() }, |error| HeatCell {
                    level: level(error.value),
                    text: format!("{:.1e}", error.value),
                })
            });
            HeatRow { tensor: tensor.clone(), cells: cells.collect() }
        });
        Heat { model: (*model).to_owned(), rows: rows.collect(), schemes: schemes.clone() }
    };
    models.iter().map(one).collect()
}
