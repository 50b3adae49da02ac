//! `kbit run`: a whole run, taken over, interrupted, resumed.

use kbit_tests::{kbit_fails, kbit_in, kbit_ok, repository};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const CONFIG: &str = "
name: small
models:
  - MODELS/s0
  - MODELS/s1
schemes:
  - ggml:q4_0
  - scheme: int
    params: { bits: [3, 5], block: 64 }
  - scheme: quantile
    params: { codebook: empirical }
rules:
  - { match: token_embd, scheme: 'ggml:q8_0' }
evaluate:
  text: TEXT
  context: 128
  chunks: 3
laws: { bootstrap: 50 }
";

fn write_config(folder: &Path) {
    let text = CONFIG
        .replace("MODELS", &repository("assets/family"))
        .replace("TEXT", &repository("assets/text/prose.txt"));
    std::fs::write(folder.join("run.yaml"), text).expect("written");
}

/// Every file that must repeat, by its path under the run's folder.
fn outputs(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![run.join("files")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(run).expect("below").display().to_string();
                found.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    found.insert("results.jsonl".into(), std::fs::read(run.join("results.jsonl")).expect("results"));
    found
}

#[test]
fn a_run_writes_files_results_and_a_report_and_a_second_one_takes_them_over() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path());
    let first: Value =
        serde_json::from_str(&kbit_ok(folder.path(), &["run", "run.yaml", "--json"])).expect("JSON");
    assert_eq!(first["files_written"], 8);
    assert_eq!(first["failures"].as_array().map(Vec::len), Some(0));
    let run = folder.path().join("kbit-runs/small");
    let html = std::fs::read_to_string(run.join("report.html")).expect("a report");
    for label in ["ggml:q4_0", "int:bits=3,block=64", "quantile:codebook=empirical", "s0", "s1"] {
        assert!(html.contains(label), "{label} is missing from the report");
    }
    let before = outputs(&run);
    // Eight files, the card of each, and the results.
    assert_eq!(before.len(), 17);
    let second: Value =
        serde_json::from_str(&kbit_ok(folder.path(), &["run", "run.yaml", "--json"])).expect("JSON");
    assert_eq!(second["files_written"], 0);
    assert!(outputs(&run) == before, "a second run changed something");

    let fitted: Value =
        serde_json::from_str(&kbit_ok(folder.path(), &["fit", "kbit-runs/small/results.jsonl", "--json"]))
            .expect("JSON");
    assert!(fitted.is_object());
    let budget = ["recommend", "kbit-runs/small/results.jsonl", "--budget", "400KiB", "--json"];
    let chosen = kbit_ok(folder.path(), &budget);
    assert!(chosen.contains("s0") || chosen.contains("s1"), "{chosen}");
}

#[test]
fn modes_and_cache_types_are_measured_each_and_never_taken_for_one_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = |more: &str| {
        let text = format!(
            "name: modes\nmodels: {}\nschemes: ['ggml:q8_0']\nevaluate: {{text: {}, context: 64, chunks: 2{more}}}\n\
             laws: {{bootstrap: 0}}\n",
            repository("assets/family/s0"),
            repository("assets/text/prose.txt")
        );
        std::fs::write(folder.path().join("run.yaml"), text).expect("written");
    };
    let run = || {
        let summary = kbit_ok(folder.path(), &["run", "run.yaml", "--json"]);
        let summary: Value = serde_json::from_str(&summary).expect("JSON");
        assert_eq!(summary["failures"].as_array().map(Vec::len), Some(0));
        let results =
            std::fs::read_to_string(folder.path().join("kbit-runs/modes/results.jsonl")).expect("results");
        let mut found: BTreeMap<String, f64> = BTreeMap::new();
        for line in results.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            if line["metric"] == "nll" || line["metric"] == "kl_divergence" {
                let key = [&line["scheme"]["family"], &line["metric"], &line["mode"], &line["cache_type"]]
                    .map(text);
                let before = found.insert(key.join(" "), line["value"].as_f64().expect("a figure"));
                assert!(before.is_none(), "{key:?} twice");
            }
        }
        (summary["reused"].as_u64().expect("a count"), found)
    };
    config("");
    let (_, plain) = run();
    assert_eq!(
        plain.keys().collect::<Vec<_>>(),
        ["ggml kl_divergence f32 f32", "ggml nll f32 f32", "none kl_divergence f32 f32", "none nll f32 f32"]
    );
    // Computing the unquantized model twice finds no difference: that is the noise floor.
    assert_eq!(plain["none kl_divergence f32 f32"], 0.0);
    config(", mode: [f32, int8], cache_type: [f32, q4]");
    let (reused, all) = run();
    // The file, and the two measurements in f32.
    assert_eq!((reused, all.len()), (3, 16));
    for (key, value) in &plain {
        assert_eq!(all[key], *value, "{key}");
    }
    let mut values: Vec<f64> = all.values().copied().collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    // Of the unquantized model, which is in floats, int8 is f32.
    assert_eq!(values.len(), 12, "{all:?}");
    assert!(all["none kl_divergence f32 q4"] > 0.0, "{all:?}");
    assert!(all["ggml kl_divergence f32 q4"] > all["ggml kl_divergence f32 f32"]);
    // kbit eval gives the same figure.
    let file = folder.path().join("kbit-runs/modes/files/s0/ggml-q8_0.gguf");
    let text = repository("assets/text/prose.txt");
    let options = ["--context", "64", "--chunks", "2", "--mode", "int8", "--cache-type", "q4", "--json"];
    let arguments = ["eval", file.to_str().expect("UTF-8"), "--metric", "perplexity", "--text", &text];
    let found = kbit_ok(folder.path(), &[&arguments[..], &options].concat());
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found["nll"].as_f64(), Some(all["ggml nll int8 q4"]));
    assert_eq!((found["mode"].as_str(), found["cache_type"].as_str()), (Some("int8"), Some("q4")));
    assert_eq!(run(), (9, all));
    config(", cache_type: q7");
    let message = kbit_fails(folder.path(), 2, &["run", "run.yaml"]);
    assert!(
        message.contains("`cache_type` cannot be `q7`") && message.contains("known: f32, f16, q8, q4"),
        "{message}"
    );
}

#[test]
fn killed_runs_end_in_the_same_bytes_as_an_uninterrupted_one() {
    let whole = tempfile::tempdir().expect("a folder");
    write_config(whole.path());
    let started = std::time::Instant::now();
    let _ = kbit_ok(whole.path(), &["run", "run.yaml"]);
    let duration = started.elapsed();
    let expected = outputs(&whole.path().join("kbit-runs/small"));

    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path());
    // Moments spread over the run by a fixed pseudo-random sequence.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..10 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let fraction = f64::from(u32::try_from(state >> 40).expect("24 bits")) / f64::from(1u32 << 24);
        let mut child = kbit_in(folder.path())
            .args(["run", "run.yaml", "--quiet"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("kbit starts");
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * fraction * 0.5));
        child.kill().expect("killed");
        child.wait().expect("waited");
    }
    let _ = kbit_ok(folder.path(), &["run", "run.yaml"]);
    assert!(outputs(&folder.path().join("kbit-runs/small")) == expected, "a resumed run differs");
}

#[test]
fn a_single_thread_gives_the_same_bytes_and_figures() {
    let a = tempfile::tempdir().expect("a folder");
    let b = tempfile::tempdir().expect("a folder");
    write_config(a.path());
    write_config(b.path());
    let _ = kbit_ok(a.path(), &["run", "run.yaml", "--threads", "1"]);
    let _ = kbit_ok(b.path(), &["run", "run.yaml", "--threads", "3"]);
    assert!(outputs(&a.path().join("kbit-runs/small")) == outputs(&b.path().join("kbit-runs/small")));
}

#[test]
fn the_dry_run_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path());
    let plan: Value =
        serde_json::from_str(&kbit_ok(folder.path(), &["run", "run.yaml", "--dry-run", "--json"]))
            .expect("JSON");
    assert_eq!(plan["files"].as_array().map(Vec::len), Some(8));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_while_the_first_works() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path());
    let out = folder.path().join("kbit-runs/small");
    std::fs::create_dir_all(&out).expect("a folder");
    let lock = std::fs::File::create(out.join(".lock")).expect("a lock");
    lock.lock().expect("locked");
    let message = kbit_fails(folder.path(), 1, &["run", "run.yaml"]);
    assert!(message.contains("another kbit is running"), "{message}");
}

#[test]
fn a_file_that_was_changed_is_written_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path());
    let _ = kbit_ok(folder.path(), &["run", "run.yaml"]);
    let run = folder.path().join("kbit-runs/small");
    let before = outputs(&run);
    let victim = run.join("files/s0/ggml-q4_0.gguf");
    let mut bytes = std::fs::read(&victim).expect("a file");
    let middle = bytes.len() - 100;
    bytes[middle] ^= 1;
    std::fs::write(&victim, bytes).expect("written");
    let _ = kbit_ok(folder.path(), &["run", "run.yaml"]);
    assert!(outputs(&run) == before);
}
