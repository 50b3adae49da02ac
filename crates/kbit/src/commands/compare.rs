//! `kbit compare`.

use crate::cli::Compare;
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_laws::paired::{self, CompareError, CompareOptions, Compared, Comparisons, Side, Source, Verdict};
use kbit_results::ResultsError;
use std::path::{Path, PathBuf};

/// Values item by item of a run: a folder, its `items.jsonl`, or the `results.jsonl` beside that.
pub fn source(path: &Path) -> Result<Source, Failure> {
    let folder =
        if path.is_dir() { path.to_owned() } else { path.parent().map_or_else(PathBuf::new, Path::to_owned) };
    let results_name = path.file_name().is_some_and(|name| name == "results.jsonl");
    let items = if path.is_dir() || results_name { folder.join("items.jsonl") } else { path.to_owned() };
    let found = kbit_results::read_numbered(&items)?;
    if found.is_empty() {
        return Err(ResultsError::Empty { path: items }.into());
    }
    let results = folder.join("results.jsonl");
    let measurements = if results.exists() { kbit_results::read(&results)? } else { Vec::new() };
    Ok(Source { name: items.display().to_string(), items: found, measurements })
}

/// Tests which models and schemes differ, item by item.
pub fn compare(session: &Session, arguments: &Compare) -> Result<u8, Failure> {
    let paths = std::iter::once(&arguments.results).chain(&arguments.with);
    let sources: Vec<Source> = paths.map(|path| source(path)).collect::<Result<_, _>>()?;
    let options = CompareOptions {
        metric: arguments.metric.clone(),
        names: arguments.names.clone(),
        resamples: usize::try_from(arguments.resamples).map_err(Failure::usage)?,
        seed: arguments.seed,
        alpha: arguments.alpha,
    };
    let found = paired::compare(&sources, &options).map_err(|error| match error {
        CompareError::Unknown { .. } => Failure::usage(error),
        other => Failure::failed(other),
    })?;
    if session.global.json {
        output::json(&found)?;
    } else {
        output::text(&words(&found))?;
    }
    Ok(DONE)
}

fn words(found: &Comparisons) -> String {
    let side = |side: &Side| {
        let mode = if side.mode == "f32" { String::new() } else { format!(", {}", side.mode) };
        let cache =
            if side.cache_type == "f32" { String::new() } else { format!(", {} cache", side.cache_type) };
        format!("{}{mode}{cache}", side.name())
    };
    let mut table =
        Table::new(&["A", "B", ">A's", ">B's", ">A - B", ">95 % interval", ">items", ">p", "verdict"]);
    for pair in &found.pairs {
        let several = pair.texts.len() > 1;
        table.row(row(pair, side(&pair.a), side(&pair.b), several));
        for text in pair.texts.iter().filter(|_| several) {
            table.row(vec![
                format!("  on {}", text.name),
                String::new(),
                figure(text.value_a),
                figure(text.value_b),
                with_error(text.difference, text.stderr),
                String::new(),
                text.items.to_string(),
            ]);
        }
    }
    let direction = if found.lower_is_better { "less is better" } else { "more is better" };
    let mut text = format!("{}, {direction}\n{}", found.metric, table.render());
    let count = found.pairs.len();
    text += &if count == 1 {
        "p: paired permutation test, two-sided\n".to_owned()
    } else {
        format!("p: paired permutation test, two-sided, corrected for {count} pairs by Holm's method\n")
    };
    let powerless = found.pairs.iter().filter(|pair| {
        pair.verdict == Verdict::NotDistinguishable && pair.tested.least_p_value >= found.alpha
    });
    if let Some(pair) = powerless.max_by_key(|pair| pair.tested.items) {
        text += &format!(
            "{} items can give no p below {}: measure on more windows or documents\n",
            pair.tested.items,
            p_value(pair.tested.least_p_value)
        );
    }
    for note in &found.notes {
        text += &format!("left out: {note}\n");
    }
    text
}

fn row(pair: &Compared, a: String, b: String, several: bool) -> Vec<String> {
    let tested = &pair.tested;
    let interval = tested.interval.map_or_else(
        || "-".to_owned(),
        |interval| format!("{} to {}", figure(interval.low), figure(interval.high)),
    );
    let verdict = match pair.verdict {
        Verdict::First => "A is better".to_owned(),
        Verdict::Second => "B is better".to_owned(),
        Verdict::NotDistinguishable => "not distinguishable".to_owned(),
        Verdict::Equal => "equal, item by item".to_owned(),
    };
    vec![
        a,
        b,
        figure(pair.value_a),
        figure(pair.value_b),
        with_error(tested.difference, tested.stderr),
        interval,
        tested.items.to_string(),
        pair.p_corrected.map_or_else(|| "-".to_owned(), p_value),
        if several { format!("{verdict} (mean of {} texts)", pair.texts.len()) } else { verdict },
    ]
}

fn figure(value: f64) -> String {
    if value == 0.0 || value.abs() >= 1e-4 { format!("{value:.5}") } else { format!("{value:.2e}") }
}

fn with_error(value: f64, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => format!("{} +- {}", figure(value), figure(stderr)),
        None => figure(value),
    }
}

fn p_value(p: f64) -> String {
    if p < 1e-4 { format!("{p:.0e}") } else { format!("{p:.4}") }
}
