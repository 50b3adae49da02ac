//! The figures: which measurements go on which axes, with fitted curves and their bands.

use crate::chart::{Axis, Chart, Level, Point, Scale, Series};
use crate::curves::{Line, of_width};
use crate::data::{Context, Entry, family_name, figure, size};
use crate::table::{Cell, Table};
use kbit_laws::Fits;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// A figure, drawn for one or several contexts.
#[derive(Serialize)]
pub struct Figure {
    pub id: String,
    pub heading: String,
    pub caption: String,
    pub variants: Vec<Variant>,
}

/// One drawing of a figure.
#[derive(Serialize)]
pub struct Variant {
    /// Name of its file.
    pub id: String,
    /// Text and arithmetic, task or family.
    pub name: String,
    pub svg: String,
}

/// Texts and ways to compute that get drawings of their own; the tables have all.
const MOST_VARIANTS: usize = 8;
/// The scaling plot ends at this multiple of the lowest loss.
const MOST_LOSS: f64 = 2.0;

/// A name for a file.
pub fn file_name(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    text.chars().map(keep).collect()
}

/// A figure with the drawings of `draw`, one a name.
fn variants(
    id: &str,
    heading: &str,
    caption: &str,
    drawn: impl Iterator<Item = (String, Option<Chart>)>,
) -> Option<Figure> {
    let mut variants: Vec<Variant> = Vec::new();
    for (name, chart) in drawn {
        let Some(svg) = chart.and_then(|chart| chart.svg()) else { continue };
        let file = if variants.is_empty() { id.to_owned() } else { format!("{id}-{}", file_name(&name)) };
        let taken = variants.iter().any(|variant| variant.id == file);
        let file = if taken { format!("{file}-{}", variants.len()) } else { file };
        variants.push(Variant { id: file, name, svg });
        if variants.len() == MOST_VARIANTS {
            break;
        }
    }
    let (id, heading, caption) = (id.to_owned(), heading.to_owned(), caption.to_owned());
    (!variants.is_empty()).then_some(Figure { id, heading, caption, variants })
}

/// Draws the numbered entries of one context and its front; told whether it is the first context.
type Draw<'a> = dyn Fn(&[(usize, &Entry<'_>)], &[usize], bool) -> Option<Chart> + 'a;
/// All figures of measurements on texts.
pub fn of_entries(
    entries: &[Entry<'_>],
    contexts: &[Context],
    fronts: &[Vec<usize>],
    fits: &Fits,
) -> Vec<Figure> {
    let each = |draw: &Draw<'_>| {
        let drawn = contexts.iter().enumerate().map(|(number, context)| {
            let here: Vec<(usize, &Entry<'_>)> =
                entries.iter().enumerate().filter(|(_, entry)| entry.context == number).collect();
            (context.name(), draw(&here, &fronts[number], number == 0))
        });
        drawn.collect::<Vec<_>>()
    };
    let quality = variants(
        "quality",
        "Quality against size",
        "One line a bit width through the best scheme at each model size; the other schemes are dots, triangles where they lie above the \
         picture. Rings mark the Pareto front: no run is both smaller and better. Bars: one standard error. Lower is better.",
        each(&|here, front, _| quality(here, front)).into_iter(),
    );
    let floor = entries.iter().any(|entry| entry.unquantized() && entry.get("kl_divergence").is_some());
    let divergence = variants(
        "divergence",
        "What a bit is worth",
        &format!(
            "Mean KL divergence of the next-token distribution from the unquantized model's. Dashed: the exponential law fitted to each \
             family, at the geometric mean of its models, with the 95 % confidence band of the curve. {}Lower is better.",
            if floor {
                "Dotted: the noise floor, the divergence of the unquantized model from itself. "
            } else {
                ""
            }
        ),
        each(&|here, _, first| divergence(here, if first { Some(fits) } else { None })).into_iter(),
    );
    let pareto = variants(
        "pareto",
        "Pareto front",
        "Loss against the bytes of the file, one shape a model. The line is the front: whatever lies above it is beaten in both. \
         Triangles lie above the picture.",
        each(&|here, front, _| pareto(here, front)).into_iter(),
    );
    let scaling = scaling(entries, fits);
    [quality, divergence, pareto, scaling].into_iter().flatten().collect()
}

fn point(index: usize, entry: &Entry<'_>, x: f64, y: (f64, Option<f64>), unit: &str, marked: bool) -> Point {
    let error = y.1.map_or_else(String::new, |error| format!(" \u{b1} {}", crate::data::error(error)));
    let (bpw, bytes) = (entry.about.bpw.file, size(entry.about.bytes));
    let title = format!("{}: {}{error} {unit}, {bpw:.3} bits a weight, {bytes}", entry.named(), figure(y.0));
    Point { x, y: y.0, error: y.1, row: Some(index), title, marked }
}

/// Loss against log2 of total bits, one line a bit width.
fn quality(here: &[(usize, &Entry<'_>)], front: &[usize]) -> Option<Chart> {
    let measured: Vec<_> =
        here.iter().filter_map(|(index, entry)| Some((*index, *entry, entry.get("nll")?))).collect();
    let mut widths: Vec<i64> = measured.iter().filter_map(|(_, entry, _)| entry.width()).collect();
    widths.sort_unstable();
    widths.dedup();
    let series = widths.iter().enumerate().map(|(colour, bits)| {
        let mut series = Series::new(format!("width={bits}"), format!("{bits} bits"), colour);
        // The best scheme of each model carries the line.
        let mut best: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (index, entry, nll) in measured.iter().filter(|(_, entry, _)| entry.width() == Some(*bits)) {
            let x = entry.about.total_bits.log2();
            let place = best.entry(entry.about.model.params).or_insert((0.0, f64::INFINITY));
            if nll.0 < place.1 {
                *place = (x, nll.0);
            }
            series.points.push(point(*index, entry, x, *nll, "nats", front.contains(index)));
        }
        series.line = best.into_values().collect();
        series
    });
    let series: Vec<Series> = series.collect();
    let best = measured.iter().map(|(_, _, nll)| nll.0).fold(f64::INFINITY, f64::min);
    let worst_line = series.iter().flat_map(|series| &series.line).map(|(_, nll)| *nll).fold(best, f64::max);
    Some(Chart {
        title: "Loss against size, one line a bit width".to_owned(),
        table: "results".to_owned(),
        columns: ["total_bits".to_owned(), "nll".to_owned()],
        x: Axis::new("log2 of total bits", Scale::Linear),
        y: Axis {
            limit: Some(worst_line.min(MOST_LOSS * best)),
            ..Axis::new("loss, nats a token", Scale::Linear)
        },
        series,
        levels: Vec::new(),
    })
}

/// Divergence against bits a weight, one colour a family.
fn divergence(here: &[(usize, &Entry<'_>)], fits: Option<&Fits>) -> Option<Chart> {
    let measured: Vec<_> = here
        .iter()
        .filter_map(|(index, entry)| Some((*index, *entry, entry.get("kl_divergence")?)))
        .collect();
    let mut families: Vec<&str> = measured
        .iter()
        .filter(|(_, entry, _)| !entry.unquantized())
        .map(|(_, entry, _)| entry.about.scheme.family.as_str())
        .collect();
    families.sort_unstable();
    families.dedup();
    let series = families.iter().enumerate().map(|(colour, family)| {
        let mut series = Series::new(format!("family={family}"), (*family).to_owned(), colour);
        for (index, entry, kld) in &measured {
            if entry.about.scheme.family == *family && kld.0 > 0.0 {
                series.points.push(point(*index, entry, entry.about.bpw.file, *kld, "nats", false));
            }
        }
        let mut fits = fits.iter().flat_map(|fits| &fits.fits);
        if let Some(line) =
            fits.find(|fit| fit.law == "exponential" && fit.family == *family).and_then(Line::of)
        {
            (series.curve, series.band) = line.drawn();
        }
        series
    });
    let noise: Vec<f64> = measured
        .iter()
        .filter(|(_, entry, kld)| entry.unquantized() && kld.0 > 0.0)
        .map(|(.., kld)| kld.0)
        .collect();
    let level = noise.iter().copied().reduce(f64::max).map(|y| Level { y, label: "noise floor".to_owned() });
    Some(Chart {
        title: "KL divergence against bits a weight".to_owned(),
        table: "results".to_owned(),
        columns: ["bpw_file".to_owned(), "kl_divergence".to_owned()],
        x: Axis::new("true bits a weight, scales included", Scale::Linear),
        y: Axis::new("KL divergence, nats", Scale::Log),
        series: series.collect(),
        levels: level.into_iter().collect(),
    })
}

/// Loss against the file's size, one shape a model, with the front.
fn pareto(here: &[(usize, &Entry<'_>)], front: &[usize]) -> Option<Chart> {
    let measured: Vec<_> =
        here.iter().filter_map(|(index, entry)| Some((*index, *entry, entry.get("nll")?))).collect();
    let mut models: Vec<&str> = Vec::new();
    for (_, entry, _) in &measured {
        if !models.contains(&entry.about.model.id.as_str()) {
            models.push(&entry.about.model.id);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a place on an axis")]
    let mib = |entry: &Entry<'_>| entry.about.bytes as f64 / 1_048_576.0;
    let mut series: Vec<Series> = Vec::new();
    for (colour, model) in models.iter().enumerate() {
        let mut one = Series::new(format!("model={model}"), (*model).to_owned(), colour);
        for (index, entry, nll) in measured.iter().filter(|(_, entry, _)| entry.about.model.id == *model) {
            one.points.push(point(*index, entry, mib(entry), *nll, "nats", front.contains(index)));
        }
        series.push(one);
    }
    let on_front = || measured.iter().filter(|(index, ..)| front.contains(index));
    let mut line: Vec<(f64, f64)> = on_front().map(|(_, entry, nll)| (mib(entry), nll.0)).collect();
    line.sort_by(|a, b| a.0.total_cmp(&b.0));
    let best = measured.iter().map(|(_, _, nll)| nll.0).fold(f64::INFINITY, f64::min);
    let worst = line.iter().map(|(_, nll)| *nll).fold(best, f64::max);
    let steps = line.iter().enumerate().flat_map(|(index, (x, nll))| {
        let before = index.checked_sub(1).map(|before| (*x, line[before].1));
        before.into_iter().chain([(*x, *nll)])
    });
    let steps = steps.collect();
    series.push(Series { line: steps, ..Series::new("front=yes".to_owned(), "Pareto front".to_owned(), 8) });
    Some(Chart {
        title: "Loss against bytes with the Pareto front".to_owned(),
        table: "results".to_owned(),
        columns: ["bytes".to_owned(), "nll".to_owned()],
        x: Axis::new("size of the file, MiB", Scale::Log),
        y: Axis {
            limit: Some((worst + (worst - best) * 0.2).min(MOST_LOSS * best)),
            ..Axis::new("loss, nats a token", Scale::Linear)
        },
        series,
        levels: Vec::new(),
    })
}

/// Measured loss with the curves of the base-curve law, one drawing a family.
fn scaling(entries: &[Entry<'_>], fits: &Fits) -> Option<Figure> {
    let places: HashMap<(&str, &str), (usize, &Entry<'_>)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.counts)
        .map(|(index, entry)| {
            ((entry.about.model.id.as_str(), entry.about.scheme.label.as_str()), (index, entry))
        })
        .collect();
    let drawn = fits.fits.iter().filter(|fit| fit.law == "base-curve").map(|fit| {
        let mut widths: BTreeMap<i64, Series> = BTreeMap::new();
        for residual in &fit.points {
            let Some(&(index, entry)) = places.get(&(residual.model.as_str(), residual.scheme.as_str()))
            else {
                continue;
            };
            let Some(bits) = entry.width() else { continue };
            let series = widths
                .entry(bits)
                .or_insert_with(|| Series::new(format!("width={bits}"), format!("{bits} bits"), 0));
            let nll = entry.get("nll").unwrap_or((residual.measured, None));
            series.points.push(point(index, entry, residual.x, nll, "nats", false));
        }
        for (bits, series) in &mut widths {
            (series.curve, series.band) = of_width(fit, *bits, series.points.iter().map(|point| point.x));
        }
        let mut series: Vec<Series> = widths.into_values().collect();
        for (colour, series) in series.iter_mut().enumerate() {
            series.colour = colour;
        }
        let best = fit.points.iter().map(|point| point.fitted).fold(f64::INFINITY, f64::min);
        let worst = fit.points.iter().map(|point| point.fitted.max(point.measured)).fold(best, f64::max);
        let chart = Chart {
            title: format!("Scaling of {} with fitted curves", family_name(&fit.family)),
            table: "results".to_owned(),
            columns: ["total_bits".to_owned(), "nll".to_owned()],
            x: Axis::new("log2 of total bits", Scale::Linear),
            y: Axis {
                limit: Some(worst.min(MOST_LOSS * best)),
                ..Axis::new("loss, nats a token", Scale::Linear)
            },
            series,
            levels: Vec::new(),
        };
        (family_name(&fit.family).to_owned(), Some(chart))
    });
    variants(
        "scaling",
        "Scaling law",
        "Measured loss (points) and the fitted law of Dettmers and Zettlemoyer (arXiv 2212.09720; dashed): one curve over total bits and \
         an offset for each bit width, with the 95 % confidence band of the curve.",
        drawn,
    )
}

/// One series for each value of the text column `by`, with the numbers of columns `x` and `y`, of the rows that `keep` takes.
fn of_table(table: &Table, by: &str, x: &str, y: &str, keep: &dyn Fn(&[Cell]) -> bool) -> Vec<Series> {
    let column = |key: &str| table.columns.iter().position(|column| column.key == key);
    let (Some(by_at), Some(x_at), Some(y_at)) = (column(by), column(x), column(y)) else { return Vec::new() };
    let name_of = |row: &[Cell]| {
        let named = ["model", "scheme"].map(|key| column(key).map_or("", |index| row[index].shown()));
        named.join(" ")
    };
    let mut series: Vec<Series> = Vec::new();
    for (index, row) in table.rows.iter().enumerate().filter(|(_, row)| keep(row)) {
        let (Cell::Number(px, px_text, _), Cell::Number(py, py_text, error)) = (&row[x_at], &row[y_at])
        else {
            continue;
        };
        let label = row[by_at].shown();
        let place = series.iter().position(|one| one.label == label).unwrap_or_else(|| {
            series.push(Series::new(format!("{by}={label}"), label.to_owned(), series.len()));
            series.len() - 1
        });
        let around = error.map_or_else(String::new, |error| format!(" \u{b1} {}", crate::data::error(error)));
        series[place].points.push(Point {
            x: *px,
            y: *py,
            error: *error,
            row: Some(index),
            title: format!("{}: {py_text}{around} at {px_text}", name_of(row)),
            marked: false,
        });
    }
    for one in &mut series {
        one.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    series
}

/// The mean of the points of each whole number of bits a weight.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "bit widths and counts")]
fn means(points: &[Point]) -> Vec<(f64, f64)> {
    let mut groups: BTreeMap<i64, Vec<&Point>> = BTreeMap::new();
    for point in points {
        groups.entry(point.x.round() as i64).or_default().push(point);
    }
    let mean = |points: &Vec<&Point>, of: fn(&Point) -> f64| {
        points.iter().map(|point| of(point)).sum::<f64>() / points.len() as f64
    };
    groups.values().map(|points| (mean(points, |point| point.x), mean(points, |point| point.y))).collect()
}

/// Each task's figures against bits a weight, one shape a model.
pub fn of_tasks(table: &Table) -> Option<Figure> {
    let column = |key: &str| table.columns.iter().position(|column| column.key == key);
    let (task, metric) = (column("data")?, column("metric")?);
    let mut tasks: Vec<(String, String)> = Vec::new();
    for row in &table.rows {
        let of_row = (row[task].shown().to_owned(), row[metric].shown().to_owned());
        if !tasks.contains(&of_row) {
            tasks.push(of_row);
        }
    }
    let drawn = tasks.iter().map(|(name, what)| {
        let keep = |row: &[Cell]| row[task].shown() == name && row[metric].shown() == what;
        let mut series = of_table(table, "model", "bpw_file", "value", &keep);
        for one in &mut series {
            one.line = means(&one.points);
        }
        let chart = Chart {
            title: format!("{what} of {name} against bits a weight"),
            table: table.id.clone(),
            columns: ["bpw_file".to_owned(), "value".to_owned()],
            x: Axis::new("true bits a weight, scales included", Scale::Linear),
            y: Axis::new(&what.replace('_', " "), Scale::Linear),
            series,
            levels: Vec::new(),
        };
        (format!("{name}, {}", what.replace('_', " ")), Some(chart))
    });
    variants(
        "tasks",
        "Tasks against bits",
        "Lines go through the means at each bit width. Bars: one standard error, where larger than the point. The table below has the paired differences, which are tighter.",
        drawn,
    )
}

/// Tokens a second against size, one drawing a stage.
pub fn of_costs(table: &Table) -> Option<Figure> {
    let stage = table.columns.iter().position(|column| column.key == "stage")?;
    let mut stages: Vec<&str> = table.rows.iter().map(|row| row[stage].shown()).collect();
    stages.sort_unstable();
    stages.dedup();
    let drawn = stages.iter().map(|name| {
        let keep = |row: &[Cell]| row[stage].shown() == *name;
        let chart = Chart {
            title: format!("Tokens a second of {name} against size"),
            table: table.id.clone(),
            columns: ["mib".to_owned(), "tokens_per_second".to_owned()],
            x: Axis::new("size of the file, MiB", Scale::Log),
            y: Axis::new("tokens a second", Scale::Log),
            series: of_table(table, "family", "mib", "tokens_per_second", &keep),
            levels: Vec::new(),
        };
        ((*name).to_owned(), Some(chart))
    });
    variants(
        "costs",
        "Speed against size",
        "As measured while this run computed, with whatever else the machine did. Higher is better.",
        drawn,
    )
}
