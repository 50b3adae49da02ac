//! `kbit report` on folders of runs: several at once, contradictions, files beside the page.

use kbit_tests::{kbit_fails, kbit_ok};
use serde_json::json;
use std::path::Path;

/// Writes a run of two results for each of `values`, the losses of schemes named after their place.
fn run(folder: &Path, name: &str, losses: &[(&str, f64)]) {
    let mut text = String::new();
    for (label, loss) in losses {
        let family = if *label == "none" { "none" } else { "int" };
        for (metric, value) in [("nll", *loss), ("perplexity", loss.exp())] {
            let line = json!({
                "schema": 1,
                "model": { "id": "m", "architecture": "llama", "params": 1000, "tokens": null, "flops": null },
                "scheme": { "label": label, "id": "org.kbit.int/1", "family": family, "params": {}, "bits": 4.0 },
                "bpw": { "file": 4.25, "decoder": 4.25 }, "bytes": 532, "total_bits": 4250.0, "metric": metric, "tensor": null,
                "value": value, "stderr": 0.1, "count": 10, "mode": "f32", "cache_type": "f32",
                "data": { "name": "prose", "sha256": "00", "context": 8, "chunks": 4 }, "file_sha256": null,
            });
            text += &format!("{line}\n");
        }
    }
    std::fs::create_dir_all(folder.join(name)).expect("a folder");
    std::fs::write(folder.join(name).join("results.jsonl"), text).expect("a file");
}

#[test]
fn several_runs_become_one_report_beside_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), "a", &[("none", 3.0)]);
    run(folder.path(), "b", &[("none", 3.0), ("int:bits=4", 3.1)]);
    let _ = kbit_ok(folder.path(), &["report", "a", "b"]);
    let csv = std::fs::read_to_string(folder.path().join("a-and-b/report.csv")).expect("a report");
    assert!(csv.lines().any(|line| line.starts_with("\"a, b\",m,1000,unquantized,")), "{csv}");
    assert!(
        csv.lines()
            .any(|line| line.starts_with("b,m,1000,int:bits=4,") || line.starts_with("b,m,1000,\"int")),
        "{csv}"
    );
    for file in
        ["report.html", "report.md", "report.json", "report/plots/quality.svg", "report/tables/results.csv"]
    {
        assert!(folder.path().join("a-and-b").join(file).exists(), "no {file}");
    }
    // The same inputs give the same bytes.
    let before = std::fs::read(folder.path().join("a-and-b/report.html")).expect("a page");
    let _ = kbit_ok(folder.path(), &["report", "a", "b"]);
    assert!(std::fs::read(folder.path().join("a-and-b/report.html")).expect("a page") == before);
}

#[test]
fn results_that_contradict_each_other_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), "a", &[("none", 3.0)]);
    run(folder.path(), "b", &[("none", 3.2)]);
    let message = kbit_fails(folder.path(), 1, &["report", "a", "b"]).replace(['\n', '\u{2502}'], " ");
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in
        ["nll of m none on prose", "is 3 in", "3.2 in", "a/results.jsonl", "b/results.jsonl", "measure again"]
    {
        assert!(message.contains(wanted), "no {wanted} in {message}");
    }
    assert!(!folder.path().join("a-and-b").exists(), "nothing is written");
}

#[test]
fn another_schema_version_is_refused_with_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), "a", &[("none", 3.0)]);
    let path = folder.path().join("a/results.jsonl");
    let text = std::fs::read_to_string(&path).expect("results");
    let (first, second) = text.split_once('\n').expect("two lines");
    std::fs::write(&path, format!("{first}\n{}", second.replace("\"schema\":1", "\"schema\":2")))
        .expect("a file");
    let message = kbit_fails(folder.path(), 1, &["report", "a"]);
    assert!(message.contains("results.jsonl:2") && message.contains("schema 2"), "{message}");
}

#[test]
fn a_card_stands_beside_each_packed_file() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), "a", &[("none", 3.0), ("int:bits=4", 3.1), ("int:bits=3", 3.3)]);
    let files = folder.path().join("a/files/m");
    std::fs::create_dir_all(&files).expect("a folder");
    std::fs::write(files.join("int-bits=4.gguf"), b"GGUF").expect("a file");
    let _ = kbit_ok(folder.path(), &["report", "a", "--format", "cards"]);
    let card = std::fs::read_to_string(files.join("int-bits=4.md")).expect("a card");
    assert!(card.starts_with("---\nbase_model: \"m\"\n"), "{card}");
    assert!(
        card.contains("| nll") || card.contains("| perplexity | 22.20 \u{b1} 0.10 | 20.09 \u{b1} 0.10 |"),
        "{card}"
    );
    assert!(card.contains("kbit chat int-bits=4.gguf"), "{card}");
    // The file of the other scheme is not there, so it has no card.
    assert_eq!(std::fs::read_dir(&files).expect("a folder").count(), 2);
}
