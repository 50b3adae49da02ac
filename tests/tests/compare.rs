//! `kbit compare` and `kbit recommend` on folders of runs, and results that no command can use.

use kbit_tests::{kbit_fails, kbit_ok, repository};
use serde_json::{Value, json};
use std::path::Path;

/// A line of results.jsonl.
fn result(scheme: &str, bytes: u64, metric: &str, value: f64) -> Value {
    let family = if scheme == "none" { "none" } else { "int" };
    json!({
        "schema": 1,
        "model": { "id": "m", "architecture": "llama", "params": 1000, "tokens": null, "flops": null },
        "scheme": { "label": scheme, "id": "org.kbit.int/1", "family": family, "params": {}, "bits": 4.0 },
        "bpw": { "file": bytes as f64 / 125.0, "decoder": 4.25 }, "bytes": bytes, "total_bits": bytes as f64 * 8.0,
        "metric": metric, "tensor": null, "value": value, "stderr": 0.1, "count": 120, "mode": "f32", "cache_type": "f32",
        "data": { "name": "prose", "sha256": "00", "context": 16, "chunks": 24 }, "file_sha256": null,
    })
}

/// Losses of windows that vary by 1, the same way for every scheme, and by a hundredth of their own.
fn windows(shift: f64, own: u64) -> Vec<f64> {
    let noise = |seed: u64| ((seed.wrapping_mul(2_654_435_761) >> 7) % 1000) as f64 / 1000.0 - 0.5;
    (1..=24)
        .map(|window| 5.0 * (3.0 + shift + 2.0 * noise(window) + 0.02 * noise(window * 31 + own * 977)))
        .collect()
}

/// Writes a run: schemes with their bytes and what they add to the loss.
fn run(folder: &Path, name: &str, schemes: &[(&str, u64, f64)]) {
    let (mut results, mut items) = (String::new(), String::new());
    for (own, (scheme, bytes, shift)) in schemes.iter().enumerate() {
        let values = windows(*shift, own as u64);
        let nll = values.iter().sum::<f64>() / 120.0;
        for line in [result(scheme, *bytes, "nll", nll), result(scheme, *bytes, "perplexity", nll.exp())] {
            results += &format!("{line}\n");
        }
        let line = json!({
            "schema": 1, "model": "m", "scheme": scheme, "metric": "nll", "mode": "f32", "cache_type": "f32",
            "data": { "name": "prose", "sha256": "00", "context": 16, "chunks": 24 }, "values": values, "weights": vec![5.0; 24],
        });
        items += &format!("{line}\n");
    }
    std::fs::create_dir_all(folder.join(name)).expect("a folder");
    std::fs::write(folder.join(name).join("results.jsonl"), results).expect("a file");
    std::fs::write(folder.join(name).join("items.jsonl"), items).expect("a file");
}

fn small(folder: &Path) {
    run(folder, "a", &[("none", 2000, 0.0), ("q8", 1000, 0.0), ("q4", 500, 0.05), ("q3", 400, 0.4)]);
}

fn one_line(message: &str) -> String {
    message.replace('\u{2502}', " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_pair_is_told_apart_or_called_not_distinguishable() {
    let folder = tempfile::tempdir().expect("a folder");
    small(folder.path());
    let text = kbit_ok(folder.path(), &["compare", "a", "q4", "none"]);
    assert!(text.contains("nll, less is better") && text.contains("B is better"), "{text}");
    let text = kbit_ok(folder.path(), &["compare", "a/results.jsonl", "m/q8", "m/none"]);
    assert!(text.contains("not distinguishable"), "{text}");
    let all = kbit_ok(folder.path(), &["compare", "a/items.jsonl", "--json"]);
    assert_eq!(all, kbit_ok(folder.path(), &["compare", "a/items.jsonl", "--json", "--threads", "1"]));
    let all: Value = serde_json::from_str(&all).expect("JSON");
    let pairs = all["pairs"].as_array().expect("pairs");
    assert_eq!(pairs.len(), 6);
    for pair in pairs {
        assert!(pair["p_corrected"].as_f64() >= pair["p_value"].as_f64(), "{pair}");
        let similar =
            [&pair["a"]["scheme"], &pair["b"]["scheme"]].iter().all(|s| **s == "none" || **s == "q8");
        assert_eq!(pair["verdict"] == "not_distinguishable", similar, "{pair}");
    }
}

#[test]
fn too_few_windows_are_said_to_be_too_few() {
    let folder = tempfile::tempdir().expect("a folder");
    small(folder.path());
    let path = folder.path().join("a/items.jsonl");
    let mut text = String::new();
    for line in std::fs::read_to_string(&path).expect("items").lines() {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        for list in ["values", "weights"] {
            line[list].as_array_mut().expect("a list").truncate(3);
        }
        text += &format!("{line}\n");
    }
    std::fs::write(&path, text).expect("a file");
    let text = kbit_ok(folder.path(), &["compare", "a", "q3", "none"]);
    assert!(text.contains("not distinguishable"), "{text}");
    assert!(text.contains("3 items can give no p below 0.2500: measure on more windows"), "{text}");
}

#[test]
fn what_cannot_be_compared_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    small(folder.path());
    let message = one_line(&kbit_fails(folder.path(), 2, &["compare", "a", "q5"]));
    assert!(message.contains("nothing measured is called `q5`") && message.contains("m/q4"), "{message}");
    let message = one_line(&kbit_fails(folder.path(), 1, &["compare", "a", "--metric", "acc"]));
    assert!(message.contains("no values of acc") && message.contains("only of nll"), "{message}");
    let message = one_line(&kbit_fails(folder.path(), 1, &["compare", "nowhere"]));
    assert!(message.contains("nowhere"), "{message}");
    // The same measured twice with other figures.
    run(folder.path(), "b", &[("none", 2000, 0.3), ("q2", 300, 0.9)]);
    let message = one_line(&kbit_fails(folder.path(), 1, &["compare", "a", "--with", "b"]));
    for wanted in ["nll of m/none on prose differs", "a/items.jsonl:1", "b/items.jsonl:1", "measure again"] {
        assert!(message.contains(wanted), "no {wanted} in {message}");
    }
}

/// Every command that reads records refuses `damage` with all of `wanted`.
fn refused(damage: impl Fn(&str) -> String, wanted: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    small(folder.path());
    for name in ["results.jsonl", "items.jsonl"] {
        let path = folder.path().join("a").join(name);
        let text = std::fs::read_to_string(&path).expect("a file");
        std::fs::write(&path, damage(&text)).expect("a file");
    }
    for command in [
        &["fit", "a/results.jsonl"][..],
        &["recommend", "a/results.jsonl", "--budget", "1KiB"],
        &["compare", "a"],
        &["report", "a"],
    ] {
        let message = one_line(&kbit_fails(folder.path(), 1, command));
        for wanted in wanted {
            assert!(message.contains(wanted), "{command:?}: no {wanted} in {message}");
        }
        assert!(!folder.path().join("a/report.html").exists(), "{command:?} wrote something");
    }
}

#[test]
fn another_schema_version_is_refused_with_file_line_and_cure() {
    // A later version may have other fields too.
    let later = |text: &str| text.replacen("\"schema\":1", "\"schema\":7,\"more\":0", 1);
    refused(later, &[".jsonl:1:", "schema 7 where this kbit reads 1", "the kbit that wrote it"]);
}

#[test]
fn a_line_that_was_cut_off_is_refused_with_file_line_and_cure() {
    refused(|text| text[..text.len() - 40].to_owned(), &[".jsonl:", "cut off", "remove the line, or run"]);
}

#[test]
fn a_line_that_is_no_record_is_refused_with_file_line_and_cure() {
    refused(
        |text| format!("{text}nonsense\n"),
        &[".jsonl:", "remove the line, or run the measurement again"],
    );
}

#[test]
fn files_without_a_record_and_results_that_contradict_each_other_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    small(folder.path());
    run(folder.path(), "b", &[("none", 2000, 0.3)]);
    std::fs::create_dir(folder.path().join("empty")).expect("a folder");
    for name in ["results.jsonl", "items.jsonl"] {
        std::fs::write(folder.path().join("empty").join(name), "").expect("a file");
    }
    for command in [
        &["fit", "empty/results.jsonl"][..],
        &["recommend", "a/results.jsonl", "empty/results.jsonl", "--budget", "1KiB"],
        &["compare", "empty"],
    ] {
        let message = one_line(&kbit_fails(folder.path(), 1, command));
        assert!(message.contains("empty/") && message.contains("no measurement is in it"), "{message}");
    }
    for command in [
        &["fit", "a/results.jsonl", "b/results.jsonl"][..],
        &["recommend", "a/results.jsonl", "b/results.jsonl", "--budget", "1KiB"],
    ] {
        let message = one_line(&kbit_fails(folder.path(), 1, command));
        for wanted in
            ["nll of m none on prose in f32 is", "a/results.jsonl:1", "b/results.jsonl:1", "measure again"]
        {
            assert!(message.contains(wanted), "{command:?}: no {wanted} in {message}");
        }
    }
}

#[test]
fn information_needs_a_baseline_text_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text) = (repository("assets/family/s0"), repository("assets/text/prose.txt"));
    for (name, content) in [("empty.txt", ""), ("one.txt", "a")] {
        std::fs::write(folder.path().join(name), content).expect("a text");
    }
    let measure = |text: &str, baseline: &str, status: i32| {
        let arguments = [
            "eval",
            &model,
            "--metric",
            "information",
            "--text",
            text,
            "--context",
            "64",
            "--chunks",
            "2",
            "--baseline-text",
            baseline,
        ];
        one_line(&kbit_fails(folder.path(), status, &arguments))
    };
    for baseline in ["empty.txt", "one.txt"] {
        let message = measure(&text, baseline, 1);
        assert!(message.contains(baseline) && message.contains("nothing can be learned"), "{message}");
    }
    assert!(measure(&text, &text, 2).contains("is the measured text itself"));
    let message = measure("empty.txt", &text, 1);
    assert!(message.contains("one window needs 64") && message.contains("longer text"), "{message}");
}

#[test]
fn what_a_model_writes_is_measured_beside_the_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text) = (repository("assets/family/s0"), repository("assets/text/prose.txt"));
    let baseline = repository("assets/text/calibration.txt");
    let measure = |seed: &str, threads: &str| -> Value {
        let arguments = [
            "eval",
            &model,
            "--metric",
            "information",
            "--text",
            &text,
            "--baseline-text",
            &baseline,
            "--context",
            "64",
            "--chunks",
            "3",
            "--generate",
            "--seed",
            seed,
            "--threads",
            threads,
            "--json",
        ];
        serde_json::from_str(&kbit_ok(folder.path(), &arguments)).expect("JSON")
    };
    let found = measure("5", "2");
    let perplexity = [
        "eval",
        &model,
        "--metric",
        "perplexity",
        "--text",
        &text,
        "--context",
        "64",
        "--chunks",
        "3",
        "--json",
    ];
    let perplexity: Value = serde_json::from_str(&kbit_ok(folder.path(), &perplexity)).expect("JSON");
    for key in ["bits_per_token", "bits_per_byte"] {
        let (one, other) =
            (found[key].as_f64().expect("a number"), perplexity[key].as_f64().expect("a number"));
        assert!((one - other).abs() < 1e-9, "{key}: {one}, {other}");
    }
    assert_eq!(found["tokens"], perplexity["tokens"]);
    let written = &found["generated"];
    assert_eq!((&written["seed"], &written["tokens"]), (&json!(5), &found["tokens"]));
    // What a model writes surprises it less than what people wrote.
    assert!(written["bits_per_token"].as_f64() < found["bits_per_token"].as_f64(), "{found}");
    assert_eq!(written["distinct"].as_array().map(Vec::len), Some(4));
    assert_eq!(written, &measure("5", "1")["generated"], "the same seed, another number of threads");
    assert_ne!(written["bits_per_token"], measure("6", "2")["generated"]["bits_per_token"]);
}
