//! The tables: which columns each has, and how records become rows.

use crate::data::{
    Context, Entry, RunData, SENSITIVITY, error, family_name, figure, is_task, scheme_name, size, verdict,
};
use crate::heat;
use crate::table::{Cell, Column, Table};
use kbit_laws::{Finding, Fits};
use kbit_results::{Cost, Measurement};
use std::collections::{BTreeMap, BTreeSet};

/// Metrics of texts in the order of their columns, with headings; those that are not here follow by name.
const METRICS: &[(&str, &str, bool)] = &[
    ("perplexity", "perplexity", true),
    ("nll", "loss, nats", false),
    ("bits_per_byte", "bits/byte", false),
    ("kl_divergence", "KL divergence", true),
    ("same_top", "same top", true),
];

/// The heading of a metric, and whether its column stands in the page from the beginning.
fn metric_heading(metric: &str) -> (String, bool) {
    METRICS
        .iter()
        .find(|(name, ..)| *name == metric)
        .map_or_else(|| (metric.replace('_', " "), false), |(_, label, shown)| ((*label).to_owned(), *shown))
}

/// One line a model, scheme, text and arithmetic.
pub fn results(
    entries: &[Entry<'_>],
    contexts: &[Context],
    runs: &[RunData],
    fronts: &[Vec<usize>],
) -> Table {
    let named: BTreeSet<&str> = entries.iter().flat_map(|entry| entry.figures.keys().copied()).collect();
    let known = METRICS.iter().map(|(name, ..)| *name);
    let metrics: Vec<&str> = known
        .clone()
        .filter(|name| named.contains(name) || ["perplexity", "kl_divergence", "same_top"].contains(name))
        .chain(named.iter().copied().filter(|name| !known.clone().any(|known| known == *name)))
        .collect();
    let one = |of: fn(&Context) -> &str| contexts.iter().map(of).collect::<BTreeSet<_>>().len() < 2;
    let one_text = one(|context| &context.data);
    let one_arithmetic = one(|context| &context.arithmetic);
    let differs =
        |metric: &str| entries.iter().any(|e| e.figures.get(metric).is_some_and(|f| f.difference.is_some()));
    let mut columns = vec![
        Column::text("run", "run").facet().hidden_if(runs.len() < 2),
        Column::text("model", "model").facet(),
        Column::number("params", "parameters").hidden(),
        Column::text("scheme", "scheme"),
        Column::text("family", "family").facet().hidden(),
        Column::number("bits", "nominal bits").hidden(),
        Column::number("width", "bit width").facet().hidden(),
        Column::number("bpw_file", "bits/weight"),
        Column::number("bpw_decoder", "decoder"),
        Column::number("bytes", "size"),
        Column::number("total_bits", "log2 total bits").hidden(),
        Column::text("data", "text").facet().hidden_if(one_text),
        Column::text("arithmetic", "computed in").facet().hidden_if(one_arithmetic),
        Column::text("mode", "mode").hidden(),
        Column::text("cache_type", "cache").hidden(),
    ];
    for metric in &metrics {
        let (label, shown) = metric_heading(metric);
        let errors = entries.iter().any(|e| e.get(metric).is_some_and(|(_, stderr)| stderr.is_some()));
        let column = Column::number(metric, &label).hidden_if(!shown);
        columns.push(if errors { column.error() } else { column });
        if differs(metric) {
            let column = Column::number(&format!("{metric}_difference"), &format!("\u{394} {label}"));
            columns.push(column.error().hidden_if(*metric != "nll"));
        }
    }
    let verdicts = differs("nll");
    if verdicts {
        columns.push(Column::text("verdict", "loss against unquantized").facet());
    }
    columns.push(Column::text("file_sha256", "SHA-256 of the file").hidden());
    let mut table = Table::new("results", "All results", columns);
    table.front = fronts.iter().flatten().copied().collect();
    for entry in entries {
        let about = entry.about;
        let names: Vec<&str> = entry.runs.iter().map(|run| runs[*run].name.as_str()).collect();
        let total = Cell::Number(about.total_bits, format!("{:.3}", about.total_bits.log2()), None);
        let mut row = vec![
            Cell::text(names.join(", ")),
            Cell::text(&about.model.id),
            Cell::count(about.model.params),
            Cell::text(entry.scheme()),
            Cell::text(family_name(&about.scheme.family)),
            about.scheme.bits.map_or(Cell::Empty, |bits| Cell::Number(bits, figure(bits), None)),
            #[expect(clippy::cast_precision_loss, reason = "a bit width")]
            entry.width().map_or(Cell::Empty, |bits| Cell::Number(bits as f64, bits.to_string(), None)),
            Cell::Number(about.bpw.file, format!("{:.3}", about.bpw.file), None),
            Cell::Number(about.bpw.decoder, format!("{:.3}", about.bpw.decoder), None),
            bytes(about.bytes),
            total,
            Cell::text(entry.data()),
            Cell::text(about.arithmetic()),
            Cell::text(&about.mode),
            Cell::text(&about.cache_type),
        ];
        for metric in &metrics {
            row.push(Cell::figure_or_empty(entry.get(metric)));
            if differs(metric) {
                let difference = entry.figures.get(metric).and_then(|figure| figure.difference);
                row.push(difference.map_or(Cell::Empty, |d| signed(d.value, d.stderr)));
            }
        }
        if verdicts {
            let difference = entry.figures.get("nll").and_then(|figure| figure.difference);
            row.push(Cell::text(difference.and_then(|d| verdict(d.value, d.stderr)).unwrap_or_default()));
        }
        row.push(Cell::text(about.file_sha256.clone().unwrap_or_default()));
        table.rows.push(row);
    }
    table
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
fn bytes(bytes: u64) -> Cell {
    Cell::Number(bytes as f64, size(bytes), None)
}

fn signed(value: f64, stderr: Option<f64>) -> Cell {
    let sign = if value > 0.0 { "+" } else { "" };
    Cell::Number(value, format!("{sign}{}", figure(value)), stderr)
}

/// One line a figure of a task.
pub fn tasks(runs: &[RunData]) -> Table {
    let columns = vec![
        Column::text("run", "run").facet().hidden_if(runs.len() < 2),
        Column::text("data", "task").facet(),
        Column::text("model", "model").facet(),
        Column::text("scheme", "scheme"),
        Column::text("family", "family").facet().hidden(),
        Column::number("width", "bit width").facet().hidden(),
        Column::number("bpw_file", "bits/weight"),
        Column::text("arithmetic", "computed in").hidden(),
        Column::text("metric", "metric").facet(),
        Column::number("value", "value").error(),
        Column::number("count", "items"),
        Column::number("difference", "paired difference").error(),
        Column::text("verdict", "against unquantized").facet(),
    ];
    let mut table = Table::new("tasks", "Task results", columns);
    let mut seen = BTreeSet::new();
    for run in runs {
        for measurement in run.measurements.iter().filter(|m| is_task(m) && m.tensor.is_none()) {
            let same = (
                &measurement.model.id,
                &measurement.scheme.label,
                &measurement.metric,
                measurement.arithmetic(),
            );
            let data = measurement.data.as_ref().map(|data| (&data.name, &data.sha256));
            if !seen.insert((same, data, measurement.seed)) {
                continue;
            }
            let difference = measurement.difference;
            table.rows.push(vec![
                Cell::text(&run.name),
                Cell::text(data.map_or("", |(name, _)| name)),
                Cell::text(&measurement.model.id),
                Cell::text(scheme_name(&measurement.scheme)),
                Cell::text(family_name(&measurement.scheme.family)),
                width_cell(measurement),
                Cell::Number(measurement.bpw.file, format!("{:.3}", measurement.bpw.file), None),
                Cell::text(measurement.arithmetic()),
                Cell::text(&measurement.metric),
                Cell::figure(measurement.value, measurement.stderr),
                Cell::count(measurement.count),
                difference.map_or(Cell::Empty, |d| signed(d.value, d.stderr)),
                Cell::text(difference.and_then(|d| verdict(d.value, d.stderr)).unwrap_or_default()),
            ]);
        }
    }
    table
}

fn width_cell(measurement: &Measurement) -> Cell {
    #[expect(clippy::cast_precision_loss, reason = "a bit width")]
    let number = |bits: i64| Cell::Number(bits as f64, bits.to_string(), None);
    crate::data::width(&measurement.scheme).map_or(Cell::Empty, number)
}

/// The front of the first context.
pub fn pareto(entries: &[Entry<'_>], front: &[usize]) -> Table {
    let columns = vec![
        Column::text("model", "model").facet(),
        Column::text("scheme", "scheme"),
        Column::number("bpw_file", "bits/weight"),
        Column::number("bytes", "size"),
        Column::number("total_bits", "log2 total bits"),
        Column::number("nll", "loss, nats").error(),
    ];
    let mut table = Table::new("pareto", "Pareto front", columns);
    table.rows = front
        .iter()
        .map(|index| {
            let (entry, about) = (&entries[*index], entries[*index].about);
            vec![
                Cell::text(&about.model.id),
                Cell::text(entry.scheme()),
                Cell::Number(about.bpw.file, format!("{:.3}", about.bpw.file), None),
                bytes(about.bytes),
                Cell::Number(about.total_bits, format!("{:.2}", about.total_bits.log2()), None),
                entry
                    .get("nll")
                    .map_or(Cell::Empty, |(nll, stderr)| Cell::Number(nll, format!("{nll:.4}"), stderr)),
            ]
        })
        .collect();
    table
}

/// The fitted laws.
pub fn laws(fits: &Fits) -> Table {
    let columns = vec![
        Column::text("law", "law").facet(),
        Column::text("family", "family").facet(),
        Column::text("form", "form").wrap(),
        Column::text("constants", "constants (95 % interval)").wrap(),
        Column::number("r_squared", "R\u{b2}"),
        Column::number("aic", "AIC"),
        Column::number("leave_one_out", "leave-one-out error"),
        Column::text("space", "in"),
        Column::number("points", "points"),
        Column::text("range", "range"),
    ];
    let mut table = Table::new("laws", "Laws", columns);
    table.rows = fits
        .fits
        .iter()
        .map(|fit| {
            let estimates: Vec<String> = fit
                .estimates
                .iter()
                .map(|estimate| match (estimate.low, estimate.high) {
                    (Some(low), Some(high)) => {
                        format!(
                            "{} = {} ({} to {})",
                            estimate.name,
                            figure(estimate.value),
                            figure(low),
                            figure(high)
                        )
                    }
                    _ => format!("{} = {}", estimate.name, figure(estimate.value)),
                })
                .collect();
            vec![
                Cell::text(&fit.law),
                Cell::text(family_name(&fit.family)),
                Cell::text(&fit.form),
                Cell::text(estimates.join("; ")),
                Cell::Number(fit.r_squared, format!("{:.4}", fit.r_squared), None),
                Cell::Number(fit.aic, format!("{:.1}", fit.aic), None),
                fit.leave_one_out.map_or(Cell::Empty, |error| Cell::figure(error, None)),
                Cell::text(fit.space),
                Cell::count(fit.points.len() as u64),
                Cell::text(format!("{:.2} to {:.2}", fit.range.0, fit.range.1)),
            ]
        })
        .collect();
    table
}

/// The findings.
pub fn findings(findings: &[Finding]) -> Table {
    let columns = vec![
        Column::text("claim", "claim").wrap(),
        Column::text("source", "source").wrap().hidden(),
        Column::text("verdict", "here").facet(),
        Column::text("statistic", "statistic").wrap().hidden(),
        Column::number("value", "value"),
        Column::text("interval", "95 % interval"),
        Column::number("smallest_effect", "smallest effect"),
        Column::number("comparisons", "comparisons").hidden(),
        Column::number("models", "models"),
        Column::text("note", "note").wrap(),
    ];
    let mut table = Table::new("findings", "Findings", columns).stacked();
    table.rows = findings
        .iter()
        .map(|finding| {
            let number = |value: Option<f64>| value.map_or(Cell::Empty, |value| Cell::figure(value, None));
            let interval = finding.interval.map(|(low, high)| format!("{} to {}", figure(low), figure(high)));
            vec![
                Cell::text(&finding.claim),
                Cell::text(&finding.source),
                Cell::text(finding.verdict.words()),
                Cell::text(&finding.statistic),
                number(finding.value),
                Cell::text(interval.unwrap_or_default()),
                number(finding.smallest_effect),
                Cell::count(finding.comparisons as u64),
                Cell::count(finding.models as u64),
                Cell::text(&finding.note),
            ]
        })
        .collect();
    table.without_empty_columns()
}

/// What every step took.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub fn costs(runs: &[RunData], entries: &[Entry<'_>]) -> Table {
    let sizes: BTreeMap<(&str, &str), &Measurement> = entries
        .iter()
        .map(|entry| ((entry.about.model.id.as_str(), entry.about.scheme.label.as_str()), entry.about))
        .collect();
    let has_energy = runs.iter().flat_map(|run| &run.costs).any(|cost| cost.joules.is_some());
    let columns = vec![
        Column::text("run", "run").facet().hidden_if(runs.len() < 2),
        Column::text("model", "model").facet(),
        Column::text("scheme", "scheme"),
        Column::text("family", "family").facet().hidden(),
        Column::number("width", "bit width").facet().hidden(),
        Column::text("stage", "step").facet(),
        Column::number("mib", "size, MiB"),
        Column::number("seconds", "seconds"),
        Column::number("tokens_per_second", "tokens/s"),
        Column::number("peak_rss_bytes", "peak memory so far"),
        Column::number("joules", "energy, J").hidden_if(!has_energy),
    ];
    let mut table = Table::new("costs", "Costs", columns);
    for run in runs {
        for cost in &run.costs {
            let about = sizes.get(&(cost.model.id.as_str(), cost.scheme.label.as_str()));
            let mib = about.map(|about| about.bytes as f64 / 1_048_576.0);
            table.rows.push(vec![
                Cell::text(&run.name),
                Cell::text(&cost.model.id),
                Cell::text(scheme_name(&cost.scheme)),
                Cell::text(family_name(&cost.scheme.family)),
                about.map_or(Cell::Empty, |about| width_cell(about)),
                Cell::text(Cost::title(cost)),
                mib.map_or(Cell::Empty, |mib| Cell::figure(mib, None)),
                Cell::Number(cost.seconds, format!("{:.2}", cost.seconds), None),
                cost.tokens_per_second
                    .map_or(Cell::Empty, |rate| Cell::Number(rate, format!("{rate:.0}"), None)),
                cost.peak_rss_bytes.map_or(Cell::Empty, bytes),
                cost.joules.map_or(Cell::Empty, |joules| Cell::figure(joules, None)),
            ]);
        }
    }
    table
}

/// Errors of tensors, one line a tensor.
pub fn tensors(runs: &[RunData]) -> Table {
    let mut metrics: Vec<&str> = Vec::new();
    let mut rows: Vec<(&Measurement, BTreeMap<&str, f64>)> = Vec::new();
    let mut places = BTreeMap::new();
    for measurement in runs.iter().flat_map(|run| &run.measurements) {
        let Some(tensor) =
            measurement.tensor.as_deref().filter(|_| measurement.metric.starts_with("tensor_"))
        else {
            continue;
        };
        if !metrics.contains(&measurement.metric.as_str()) {
            metrics.push(&measurement.metric);
        }
        let key = (measurement.model.id.as_str(), measurement.scheme.label.as_str(), tensor);
        let place = *places.entry(key).or_insert_with(|| {
            rows.push((measurement, BTreeMap::new()));
            rows.len() - 1
        });
        rows[place].1.insert(&measurement.metric, measurement.value);
    }
    let mut columns = vec![
        Column::text("model", "model").facet(),
        Column::text("scheme", "scheme").facet(),
        Column::text("tensor", "tensor"),
        Column::text("kind", "kind").facet().hidden(),
        Column::number("layer", "layer").hidden(),
    ];
    columns.extend(
        metrics
            .iter()
            .map(|metric| Column::number(metric, &metric.trim_start_matches("tensor_").replace('_', " "))),
    );
    let mut table = Table::new("tensors", "Error by tensor", columns);
    table.rows = rows
        .iter()
        .map(|(about, values)| {
            let tensor = about.tensor.as_deref().unwrap_or_default();
            let (layer, kind) = heat::place(tensor);
            let mut row = vec![
                Cell::text(&about.model.id),
                Cell::text(scheme_name(&about.scheme)),
                Cell::text(tensor),
                Cell::text(kind),
                layer.map_or(Cell::Empty, Cell::count),
            ];
            let value = |metric: &&str| values.get(metric).map(|value| (*value, None));
            row.extend(metrics.iter().map(|metric| Cell::figure_or_empty(value(metric))));
            row
        })
        .collect();
    table
}

/// Divergence that quantizing one tensor or one layer causes, the most sensitive first.
pub fn sensitivity(runs: &[RunData]) -> Table {
    let columns = vec![
        Column::text("model", "model").facet(),
        Column::text("scheme", "scheme").facet(),
        Column::text("tensor", "tensors"),
        Column::number(SENSITIVITY, "KL divergence").error(),
    ];
    let mut table = Table::new("sensitivity", "Sensitivity", columns);
    let all = runs.iter().flat_map(|run| &run.measurements).filter(|m| m.metric == SENSITIVITY);
    let mut all: Vec<&Measurement> = all.collect();
    all.sort_by(|a, b| b.value.total_cmp(&a.value));
    table.rows = all
        .iter()
        .map(|measurement| {
            vec![
                Cell::text(&measurement.model.id),
                Cell::text(scheme_name(&measurement.scheme)),
                Cell::text(measurement.tensor.as_deref().unwrap_or("all")),
                Cell::figure(measurement.value, measurement.stderr),
            ]
        })
        .collect();
    table
}

/// What plans expected of their files, beside what was measured: one line a plan and text.
pub fn plans(runs: &[RunData], entries: &[Entry<'_>]) -> Table {
    let columns = vec![
        Column::text("run", "run").facet().hidden_if(runs.len() < 2),
        Column::text("model", "model").facet(),
        Column::text("scheme", "scheme"),
        Column::text("target", "target"),
        Column::text("made_of", "made of"),
        Column::number("bytes_planned", "planned size"),
        Column::number("bytes", "size"),
        Column::number("bpw_planned", "planned bits/weight"),
        Column::text("data", "text").facet(),
        Column::number("kl_divergence_planned", "expected KL divergence"),
        Column::text("interval", "interval"),
        Column::number("kl_divergence", "measured KL divergence").error(),
        Column::text("inside", "inside").facet(),
    ];
    let mut table = Table::new("plans", "Predicted against measured", columns);
    for run in runs {
        let list = run.provenance.get("plans").and_then(serde_json::Value::as_array);
        for planned in list.into_iter().flatten() {
            let text = |key: &str| planned.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
            let number = |of: &serde_json::Value, key: &str| of.get(key).and_then(serde_json::Value::as_f64);
            let (model, scheme) = (text("model"), text("scheme"));
            let expected = planned.get("kl_divergence").unwrap_or(&serde_json::Value::Null);
            let interval = number(expected, "low").zip(number(expected, "high"));
            let row = |entry: Option<&Entry<'_>>| {
                let measured = entry.and_then(|entry| entry.get("kl_divergence"));
                let inside =
                    measured.zip(interval).map(
                        |((value, _), (low, high))| {
                            if (low..=high).contains(&value) { "yes" } else { "no" }
                        },
                    );
                vec![
                    Cell::text(&run.name),
                    Cell::text(model),
                    Cell::text(scheme),
                    Cell::text(text("target")),
                    Cell::text(text("made_of")),
                    planned.get("bytes").and_then(serde_json::Value::as_u64).map_or(Cell::Empty, Cell::count),
                    entry.map_or(Cell::Empty, |entry| Cell::count(entry.about.bytes)),
                    number(planned, "bits_per_weight")
                        .map_or(Cell::Empty, |bits| Cell::Number(bits, format!("{bits:.3}"), None)),
                    Cell::text(entry.map_or("", |entry| entry.data())),
                    number(expected, "value").map_or(Cell::Empty, |value| Cell::figure(value, None)),
                    Cell::text(interval.map_or_else(String::new, |(low, high)| {
                        format!("{} to {}", figure(low), figure(high))
                    })),
                    Cell::figure_or_empty(measured),
                    Cell::text(inside.unwrap_or_default()),
                ]
            };
            let of_plan = |entry: &&Entry<'_>| {
                entry.about.model.id == model
                    && entry.about.scheme.label == scheme
                    && entry.get("kl_divergence").is_some()
            };
            let rows: Vec<_> = entries.iter().filter(of_plan).map(|entry| row(Some(entry))).collect();
            table.rows.extend(if rows.is_empty() { vec![row(None)] } else { rows });
        }
    }
    table.without_empty_columns()
}

/// Generated texts, one a line.
pub fn samples(runs: &[RunData]) -> Table {
    let columns = vec![
        Column::text("run", "run").facet().hidden_if(runs.len() < 2),
        Column::text("name", "prompt's name").facet(),
        Column::text("model", "model").facet(),
        Column::text("scheme", "scheme"),
        Column::text("prompt", "prompt").wrap(),
        Column::text("text", "text").wrap(),
        Column::text("target", "target").wrap(),
        Column::number("seed", "seed"),
        Column::text("mode", "mode"),
        Column::text("cache_type", "cache"),
    ];
    let mut table = Table::new("samples", "Generated texts", columns);
    for run in runs {
        table.rows.extend(run.samples.iter().map(|sample| {
            vec![
                Cell::text(&run.name),
                Cell::text(&sample.name),
                Cell::text(&sample.model),
                Cell::text(if sample.scheme == "none" { "unquantized" } else { &sample.scheme }),
                Cell::text(&sample.prompt),
                Cell::text(&sample.text),
                Cell::text(sample.target.as_deref().unwrap_or_default()),
                Cell::count(sample.seed),
                Cell::text(&sample.mode),
                Cell::text(&sample.cache_type),
            ]
        }));
    }
    table
}

/// Plugins with their hashes.
pub fn plugins(runs: &[RunData]) -> Table {
    let columns = vec![
        Column::text("id", "plugin"),
        Column::text("version", "version"),
        Column::text("sha256", "SHA-256"),
    ];
    let mut table = Table::new("plugins", "Plugins", columns);
    let mut seen = BTreeSet::new();
    for run in runs {
        let list = run.provenance.get("plugins").and_then(serde_json::Value::as_array);
        for plugin in list.into_iter().flatten() {
            let text =
                |key| plugin.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
            let row = ["id", "version", "sha256"].map(text);
            if seen.insert(row.clone()) {
                table.rows.push(row.into_iter().map(Cell::text).collect());
            }
        }
    }
    table
}

/// A value with its standard error, in words.
pub fn with_error(value: f64, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => format!("{} \u{b1} {}", figure(value), error(stderr)),
        None => figure(value),
    }
}
