//! What the page shows, in its order.

use crate::chart::{COLOURS, HEAT, PALETTE};
use crate::data::{RunData, SENSITIVITY, entries, family_name, front};
use crate::figures::Figure;
use crate::table::Table;
use crate::{answer, curves, figures, heat, tables};
use kbit_laws::{Finding, Fits};
use minijinja::value::Value;
use serde::{Serialize, Serializer};
use std::fmt::Write as _;

/// Tables that stand in the Markdown text.
pub const IN_MARKDOWN: &[&str] =
    &["choices", "findings", "results", "plans", "pareto", "tasks", "laws", "sensitivity"];

/// Everything that the page shows.
#[derive(Serialize)]
pub struct View {
    pub title: String,
    pub about: String,
    pub headlines: Vec<String>,
    pub failures: Vec<String>,
    #[serde(serialize_with = "element")]
    pub choices: Table,
    #[serde(serialize_with = "element")]
    pub findings: Table,
    #[serde(serialize_with = "element")]
    pub results: Table,
    #[serde(serialize_with = "element")]
    pub plans: Table,
    #[serde(serialize_with = "element")]
    pub pareto: Table,
    #[serde(serialize_with = "element")]
    pub tasks: Table,
    #[serde(serialize_with = "element")]
    pub laws: Table,
    /// In a file of its own alone.
    #[serde(skip)]
    pub curves: Table,
    #[serde(serialize_with = "element")]
    pub tensors: Table,
    #[serde(serialize_with = "element")]
    pub sensitivity: Table,
    #[serde(serialize_with = "element")]
    pub costs: Table,
    #[serde(serialize_with = "element")]
    pub plugins: Table,
    #[serde(serialize_with = "element")]
    pub samples: Table,
    pub figures: Vec<Figure>,
    pub task_figures: Vec<Figure>,
    pub cost_figures: Vec<Figure>,
    pub heat: Vec<heat::Model>,
    pub sensitive: Vec<heat::Model>,
    pub prompts: Vec<Prompt>,
    pub comparisons: Vec<String>,
    pub refusals: Vec<String>,
    pub methods: Vec<[String; 2]>,
    pub notes: Vec<String>,
    pub provenance: Vec<Provenance>,
}

/// Texts that were generated from one prompt.
#[derive(Serialize)]
pub struct Prompt {
    pub name: String,
    pub model: String,
    pub prompt: String,
    pub target: Option<String>,
    pub texts: Vec<[String; 2]>,
}

/// What a run recorded about itself.
#[derive(Serialize)]
pub struct Provenance {
    pub name: String,
    pub kbit: String,
    pub configuration: String,
    pub text: String,
}

/// A table for the template: its element, nothing where it has no rows.
fn element<S: Serializer>(table: &Table, serializer: S) -> Result<S::Ok, S::Error> {
    let html = if table.rows.is_empty() { String::new() } else { table.html() };
    Value::from_safe_string(html).serialize(serializer)
}

/// Rules for the colours of series and heat maps, of the same numbers as in SVG files.
pub fn colours() -> String {
    let mut light = String::new();
    for (number, colour) in PALETTE.iter().enumerate() {
        let _ = write!(light, "--c{number}:{colour};");
    }
    let mut css = format!(":root{{{light}}}");
    for number in 0..COLOURS {
        let _ = write!(
            css,
            ".s{number}{{stroke:var(--c{number})}}.f{number}{{fill:var(--c{number})}}.b{number}{{color:var(--c{number})}}"
        );
    }
    for (level, colour) in HEAT.iter().enumerate() {
        let _ = write!(css, ".h{level}{{fill:{colour}}}.g{level}{{background:{colour}}}");
    }
    css
}

impl View {
    pub fn new(runs: &[RunData], fits: &Fits, findings: &[Finding]) -> Self {
        let (entries, contexts) = entries(runs);
        let fronts: Vec<Vec<usize>> = (0..contexts.len()).map(|context| front(&entries, context)).collect();
        let first_front = fronts.first().map(Vec::as_slice).unwrap_or_default();
        let tasks = tables::tasks(runs);
        let costs = tables::costs(runs, &entries);
        let title = {
            let name = |run: &RunData| {
                let name = run.provenance.get("name").and_then(serde_json::Value::as_str);
                name.map_or_else(|| run.name.clone(), str::to_owned)
            };
            let names: Vec<String> = if runs.len() == 1 {
                runs.iter().map(name).collect()
            } else {
                runs.iter().map(|run| run.name.clone()).collect()
            };
            let title = names.join(" and ");
            if title.is_empty() { "kbit report".to_owned() } else { title }
        };
        let count = |of: &dyn Fn(usize) -> String, one: &str, many: &str| {
            let mut all: Vec<String> = (0..entries.len()).map(of).collect();
            all.sort();
            all.dedup();
            format!("{} {}", all.len(), if all.len() == 1 { one } else { many })
        };
        let about = if entries.is_empty() {
            String::new()
        } else {
            let mut about = format!(
                "{}, {}, {}",
                count(&|index| entries[index].about.model.id.clone(), "model", "models"),
                count(&|index| entries[index].scheme().to_owned(), "scheme", "schemes"),
                count(&|index| entries[index].data().to_owned(), "text", "texts"),
            );
            let places: Vec<String> = contexts.iter().map(crate::data::Context::place).collect();
            let _ = match places.as_slice() {
                [only] => write!(about, "; measured {only}"),
                [first, ..] => {
                    write!(about, "; answers, laws and the first figures are of what was measured {first}")
                }
                [] => Ok(()),
            };
            about
        };
        Self {
            title,
            about,
            headlines: answer::headlines(&entries, runs, first_front, fits),
            failures: failures(runs),
            choices: answer::choices(&entries, runs),
            findings: tables::findings(findings),
            results: tables::results(&entries, &contexts, runs, &fronts),
            plans: tables::plans(runs, &entries),
            pareto: tables::pareto(&entries, first_front),
            laws: tables::laws(fits),
            curves: curves::curves(&entries, fits),
            tensors: tables::tensors(runs),
            sensitivity: tables::sensitivity(runs),
            plugins: tables::plugins(runs),
            samples: tables::samples(runs),
            figures: figures::of_entries(&entries, &contexts, &fronts, fits),
            task_figures: figures::of_tasks(&tasks).into_iter().collect(),
            cost_figures: figures::of_costs(&costs).into_iter().collect(),
            tasks: tasks.without_empty_columns(),
            costs: costs.without_empty_columns(),
            heat: heat::maps(runs, "tensor_relative_mse"),
            sensitive: heat::maps(runs, SENSITIVITY),
            prompts: prompts(runs),
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
            methods: methods(runs),
            notes: notes(runs),
            provenance: runs.iter().map(provenance).collect(),
        }
    }

    /// All tables that have rows.
    pub fn tables(&self) -> Vec<&Table> {
        let all = [
            &self.choices,
            &self.findings,
            &self.results,
            &self.plans,
            &self.pareto,
            &self.tasks,
            &self.laws,
            &self.tensors,
            &self.sensitivity,
            &self.samples,
            &self.costs,
            &self.plugins,
        ];
        all.into_iter().filter(|table| !table.rows.is_empty()).collect()
    }

    /// All drawings with the names of their files.
    pub fn drawings(&self) -> impl Iterator<Item = (&str, &str)> {
        let figures = self.figures.iter().chain(&self.task_figures).chain(&self.cost_figures);
        let figures =
            figures.flat_map(|figure| &figure.variants).map(|one| (one.id.as_str(), one.svg.as_str()));
        let heat = self.heat.iter().chain(&self.sensitive).flat_map(|model| &model.maps);
        figures.chain(heat.map(|map| (map.id.as_str(), map.svg.as_str())))
    }
}

fn failures(runs: &[RunData]) -> Vec<String> {
    let list =
        runs.iter().filter_map(|run| run.provenance.get("failures").and_then(serde_json::Value::as_array));
    let text = |failure: &serde_json::Value, key: &str| {
        failure.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    };
    list.flatten()
        .map(|failure| {
            format!("{} {}: {}", text(failure, "model"), text(failure, "scheme"), text(failure, "message"))
        })
        .collect()
}

fn prompts(runs: &[RunData]) -> Vec<Prompt> {
    let mut prompts: Vec<Prompt> = Vec::new();
    for sample in runs.iter().flat_map(|run| &run.samples) {
        let same = |prompt: &Prompt| {
            prompt.name == sample.name && prompt.model == sample.model && prompt.prompt == sample.prompt
        };
        let index = prompts.iter().position(same).unwrap_or_else(|| {
            prompts.push(Prompt {
                name: sample.name.clone(),
                model: sample.model.clone(),
                prompt: sample.prompt.clone(),
                target: sample.target.clone(),
                texts: Vec::new(),
            });
            prompts.len() - 1
        });
        let scheme = if sample.scheme == "none" { "unquantized" } else { &sample.scheme };
        let plain = sample.mode == "f32" && sample.cache_type == "f32";
        let label = if plain {
            scheme.to_owned()
        } else {
            format!("{scheme} ({}, {} cache)", sample.mode, sample.cache_type)
        };
        let text = [label, sample.text.clone()];
        if !prompts[index].texts.contains(&text) {
            prompts[index].texts.push(text);
        }
    }
    // The unquantized model's text is what the others are compared with.
    for prompt in &mut prompts {
        prompt.texts.sort_by_key(|[label, _]| !label.starts_with("unquantized"));
    }
    prompts
}

/// How metrics are computed; those that were measured are listed.
const METHODS: &[(&str, &str)] = &[
    (
        "perplexity",
        "exp of the mean negative log-likelihood. Windows of `context` tokens without overlap, the first token replaced by BOS where \
         the model wants one; the second half of each window is scored, as llama.cpp does. Standard error from the values of the windows.",
    ),
    ("nll", "Mean negative log-likelihood of the scored tokens, nats a token: what charts call loss."),
    (
        "bits_per_byte",
        "The negative log-likelihood in bits, over the bytes of the text that the scored tokens stand for.",
    ),
    (
        "kl_divergence",
        "Mean over scored tokens of the KL divergence of the next-token distribution from the unquantized model's, nats, over the whole \
         vocabulary.",
    ),
    (
        "information_bigram",
        "What the model knows of the text beyond pairs of tokens as often as in a baseline text (`unigram`: tokens as often as there; `uniform`: \
         any token as likely as any other): the baseline's cross-entropy less the model's, bits a token; more is better.",
    ),
    ("same_top", "Share of scored tokens for which both models find the same token likeliest."),
    (
        "tensor_relative_mse",
        "Squared error over squared norm of one tensor, as decoded from the written file.",
    ),
    (
        SENSITIVITY,
        "KL divergence of the model with that tensor, or those tensors, quantized and all others left as they are.",
    ),
];

fn methods(runs: &[RunData]) -> Vec<[String; 2]> {
    let measured = |metric: &str| {
        runs.iter().flat_map(|run| &run.measurements).any(|measurement| measurement.metric == metric)
    };
    METHODS
        .iter()
        .filter(|(metric, _)| measured(metric))
        .map(|(metric, how)| [metric.replace('_', " "), (*how).to_owned()])
        .collect()
}

fn notes(runs: &[RunData]) -> Vec<String> {
    let mut notes = vec![
        "Bits a weight are true bits, scales included; \"decoder\" leaves embedding and output out.".to_owned(),
        "Errors behind \u{b1} are one standard error. A paired difference is taken item by item against the unquantized model; it is \
         \"not distinguishable\" where difference \u{b1} 1.96 standard errors includes zero."
            .to_owned(),
        "The Pareto front holds the results that no other beats in both total bits and loss.".to_owned(),
    ];
    let mut texts: Vec<String> = runs
        .iter()
        .flat_map(|run| &run.measurements)
        .filter_map(|measurement| measurement.data.as_ref())
        .map(|data| match (data.context, data.chunks) {
            (Some(context), Some(chunks)) => {
                format!("Text {}: {chunks} windows of {context} tokens, SHA-256 {}.", data.name, data.sha256)
            }
            _ => format!("Task {}: SHA-256 {}.", data.name, data.sha256),
        })
        .collect();
    texts.sort();
    texts.dedup();
    notes.extend(texts);
    notes
}

fn provenance(run: &RunData) -> Provenance {
    let text =
        |key| run.provenance.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    Provenance {
        name: run.name.clone(),
        kbit: text("kbit"),
        configuration: text("configuration"),
        text: serde_json::to_string_pretty(&run.provenance).unwrap_or_default(),
    }
}
