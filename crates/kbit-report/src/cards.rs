//! Model cards: what a packed file is, beside it, with the front matter that Hugging Face reads.

use crate::data::{Entry, RunData, scheme_name, size, verdict};
use crate::tables::with_error;
use kbit_results::Measurement;
use std::fmt::Write as _;

/// A model card.
#[derive(Clone, Debug)]
pub struct Card {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Markdown.
    pub text: String,
}

/// One card for each quantized model of `run`; `file` names the packed file.
pub fn cards(run: &RunData, entries: &[Entry<'_>], file: &dyn Fn(&str, &str) -> Option<String>) -> Vec<Card> {
    let mut cards: Vec<Card> = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.unquantized()) {
        let about = entry.about;
        let known = |card: &Card| card.model == about.model.id && card.scheme == about.scheme.label;
        if cards.iter().any(known) {
            continue;
        }
        let Some(name) = file(&about.model.id, &about.scheme.label) else { continue };
        let same: Vec<&Entry<'_>> = entries
            .iter()
            .filter(|other| {
                other.about.model.id == about.model.id && other.about.scheme.label == about.scheme.label
            })
            .collect();
        let text = card(run, about, &same, entries, &name);
        cards.push(Card { model: about.model.id.clone(), scheme: about.scheme.label.clone(), text });
    }
    cards
}

fn quoted(text: &str) -> String {
    // JSON strings are YAML strings.
    serde_json::Value::from(text).to_string()
}

fn card(run: &RunData, about: &Measurement, same: &[&Entry<'_>], all: &[Entry<'_>], file: &str) -> String {
    let mut text = String::from("---\n");
    let _ = writeln!(text, "base_model: {}", quoted(&about.model.id));
    text += "base_model_relation: quantized\nlibrary_name: gguf\npipeline_tag: text-generation\nquantized_by: kbit\ntags:\n- gguf\n- quantized\n";
    let _ = writeln!(text, "- {}\n---\n", quoted(&about.scheme.family));
    let _ = writeln!(text, "# {} {}\n", about.model.id, about.scheme.label);
    let _ = writeln!(
        text,
        "`{file}`: {} ({}, {} parameters), its weights quantized by kbit with `{}`.\n",
        about.model.id,
        about.model.architecture,
        about.model.params,
        scheme_name(&about.scheme)
    );
    text += "| | |\n|---|--:|\n";
    let _ = writeln!(text, "| bits a weight, scales included | {:.3} |", about.bpw.file);
    let _ = writeln!(text, "| without embedding and output | {:.3} |", about.bpw.decoder);
    let _ = writeln!(text, "| size | {} ({} bytes) |", size(about.bytes), about.bytes);
    if let Some(hash) = &about.file_sha256 {
        let _ = writeln!(text, "| SHA-256 | `{hash}` |");
    }
    text += "\n## Quality\n\n";
    let mut lines = String::new();
    for entry in same {
        for (metric, measured) in &entry.figures {
            if !["perplexity", "kl_divergence", "same_top", "bits_per_byte"].contains(metric) {
                continue;
            }
            let base = all.iter().find(|other| {
                other.unquantized()
                    && other.about.model.id == about.model.id
                    && other.context == entry.context
            });
            let base = base.and_then(|base| base.get(metric)).filter(|_| *metric != "kl_divergence");
            let against = measured.difference.and_then(|d| verdict(d.value, d.stderr)).unwrap_or_default();
            let data = measured.data.as_ref().map_or_else(String::new, |data| {
                let windows = data.chunks.zip(data.context);
                let windows = windows.map_or_else(String::new, |(chunks, context)| {
                    format!(", {chunks} windows of {context} tokens")
                });
                format!("{}{windows}", data.name)
            });
            let _ = writeln!(
                lines,
                "| {} | {} | {} | {against} | {data} | {} |",
                metric.replace('_', " "),
                with_error(measured.value, measured.stderr),
                base.map_or_else(String::new, |(value, stderr)| with_error(value, stderr)),
                measured.arithmetic()
            );
        }
    }
    if lines.is_empty() {
        text += "Not measured.\n";
    } else {
        text += "| metric | this file | unquantized | difference | text | computed in |\n|---|--:|--:|---|---|---|\n";
        text += &lines;
        text += "\nValues with one standard error. KL divergence is the mean over scored tokens of the divergence of the next-token \
                 distribution from the unquantized model's, in nats; 0 is lossless.\n";
    }
    let tasks: Vec<&Measurement> = run
        .measurements
        .iter()
        .filter(|m| {
            crate::data::is_task(m) && m.model.id == about.model.id && m.scheme.label == about.scheme.label
        })
        .collect();
    if !tasks.is_empty() {
        text += "\n## Tasks\n\n| task | metric | value | paired difference from unquantized | |\n|---|---|--:|--:|---|\n";
        for task in tasks {
            let difference = task.difference;
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                task.data.as_ref().map_or("", |data| &data.name),
                task.metric.replace('_', " "),
                with_error(task.value, task.stderr),
                difference.map_or_else(String::new, |d| with_error(d.value, d.stderr)),
                difference.and_then(|d| verdict(d.value, d.stderr)).unwrap_or_default()
            );
        }
    }
    text += "\n## How it was made\n\n";
    let kbit = run.provenance.get("kbit").and_then(serde_json::Value::as_str).unwrap_or_default();
    let parameters: Vec<String> =
        about.scheme.params.iter().map(|(name, value)| format!("`{name}` = {value}")).collect();
    let _ = writeln!(
        text,
        "kbit {kbit}, scheme `{}`{}.",
        about.scheme.id,
        if parameters.is_empty() { String::new() } else { format!(" with {}", parameters.join(", ")) }
    );
    let list = run.provenance.get("plugins").and_then(serde_json::Value::as_array);
    for plugin in list.into_iter().flatten() {
        let field = |key| plugin.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        if about.scheme.id.starts_with(field("id")) && !field("id").is_empty() {
            let _ = writeln!(
                text,
                "Plugin `{}` {}, SHA-256 `{}`.",
                field("id"),
                field("version"),
                field("sha256")
            );
        }
    }
    text += "The file holds its provenance: `kbit inspect FILE --metadata`.\n\n## How to run it\n\n";
    let _ =
        writeln!(text, "```\nkbit chat {file}\nkbit generate {file} --prompt \"Once upon a time\"\n```\n");
    text += if about.scheme.family == "ggml" || about.scheme.family == "mix" {
        "It has ggml's own types, so llama.cpp and everything built on it read it too.\n"
    } else {
        "Its types are those of a kbit plugin: llama.cpp does not read it. `kbit export` writes it as a plain checkpoint.\n"
    };
    text
}
