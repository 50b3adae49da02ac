//! Sensitivity in a run: one part of a model quantized at a time.

use kbit_tests::{kbit_ok, repository};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Runs a configuration of one model, with these lines more, and gives figures by metric and tensor, and what was taken over.
fn run(folder: &Path, name: &str, more: &str) -> (BTreeMap<(String, String), f64>, u64) {
    let text =
        format!("name: {name}\nmodels: {}\nlaws: {{bootstrap: 0}}\n{more}", repository("assets/family/s0"));
    let text = text.replace("TEXT", &repository("assets/text/prose.txt"));
    std::fs::write(folder.join(format!("{name}.yaml")), text).expect("written");
    let summary = kbit_ok(folder, &["run", &format!("{name}.yaml"), "--json"]);
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["failures"].as_array().map(Vec::len), Some(0), "{summary}");
    let results = folder.join(format!("kbit-runs/{name}/results.jsonl"));
    let results = std::fs::read_to_string(results).expect("results");
    let records = results.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let quantized = records.filter(|record| record["scheme"]["family"] != "none");
    let figures = quantized
        .map(|record| {
            let key = (word(&record["metric"]), word(&record["tensor"]));
            (key, record["value"].as_f64().expect("a figure"))
        })
        .collect();
    (figures, summary["reused"].as_u64().expect("a count"))
}

#[test]
fn each_part_is_measured_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = "schemes: ['int:bits=3,block=64']\n\
        evaluate: {text: TEXT, context: 128, chunks: 3, sensitivity: [layers, kinds]}\n";
    let (found, _) = run(folder.path(), "parts", more);
    let parts: BTreeMap<&str, f64> = found
        .iter()
        .filter(|((metric, _), _)| metric == "sensitivity_kld")
        .map(|((_, tensor), value)| (tensor.as_str(), *value))
        .collect();
    for part in ["token_embd.weight", "blk.0", "blk.1", "attn_q", "ffn_down"] {
        assert!(parts.get(part).is_some_and(|kld| *kld > 0.0), "{part} of {parts:?}");
    }
    // A file in which that part alone is quantized gives the same figure.
    let more = "schemes: ['ggml:f32']\nrules:\n  - { match: 'blk\\.1\\.', scheme: 'int:bits=3,block=64' }\n\
        evaluate: {text: TEXT, context: 128, chunks: 3}\n";
    let (alone, _) = run(folder.path(), "alone", more);
    assert_eq!(alone[&("kl_divergence".to_owned(), String::new())], parts["blk.1"]);

    let html = std::fs::read_to_string(folder.path().join("kbit-runs/parts/report.html")).expect("a report");
    assert!(html.contains("sensitivity_kld"), "the report leaves sensitivity out");

    // A second run takes all of it over: the file, the measurements of it and of the source, and each part.
    let more = "schemes: ['int:bits=3,block=64']\n\
        evaluate: {text: TEXT, context: 128, chunks: 3, sensitivity: [layers, kinds]}\n";
    let (again, reused) = run(folder.path(), "parts", more);
    assert!(again == found, "a second run changed something");
    assert_eq!(usize::try_from(reused).expect("a count"), 3 + parts.len() + 1, "the embedding is in both");
}

#[test]
fn an_unknown_way_to_cut_a_model_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "models: {}\nschemes: f16\nevaluate: {{text: {}, sensitivity: rows}}\n",
        repository("assets/family/s0"),
        repository("assets/text/prose.txt")
    );
    std::fs::write(folder.path().join("bad.yaml"), text).expect("written");
    let message = kbit_tests::kbit_fails(folder.path(), 2, &["config", "check", "bad.yaml"]);
    assert!(message.contains("known: tensors, layers, kinds"), "{message}");
}
