//! `kbit plan`, `kbit convert --plan` and `target:` in a run.

use kbit_tests::{copy_model, kbit, kbit_fails, kbit_ok, kl_divergence, repository, root};
use serde_json::Value;
use std::path::Path;

const TEXT: &str = "assets/text/calibration.txt";
const OTHER_TEXT: &str = "assets/text/prose.txt";

/// Plans for a model of the family on few windows; what `--json` prints.
fn plan(folder: &Path, model: &str, target: &str, more: &[&str]) -> Value {
    let (model, text) = (repository(model), repository(TEXT));
    let mut arguments = vec!["plan", &model, "--target", target, "--text", &text, "--json", "--overwrite"];
    arguments.extend(["--context", "128", "--chunks", "8"]);
    arguments.extend(more);
    serde_json::from_str(&kbit_ok(folder, &arguments)).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// KL divergence of a file on the text that nothing was planned on.
fn divergence(folder: &Path, file: &str, model: &str) -> f64 {
    kl_divergence(folder, file, &repository(model), &repository(OTHER_TEXT), "256")
}

fn bytes(folder: &Path, file: &str) -> u64 {
    std::fs::metadata(folder.join(file)).expect("a file").len()
}

#[test]
fn a_planned_file_has_the_size_that_the_plan_says_and_a_second_plan_measures_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let found = plan(folder.path(), "assets/family/s1", "bpw=5.5", &["-o", "p.yaml"]);
    assert!(number(&found["plan"]["bits_per_weight"]) <= 5.5, "{found}");
    assert_eq!(found["exact"], Value::Bool(true));
    let model = repository("assets/family/s1");
    let _ = kbit_ok(folder.path(), &["convert", &model, "p.gguf", "--plan", "p.yaml"]);
    assert_eq!(found["plan"]["bytes"].as_u64(), Some(bytes(folder.path(), "p.gguf")));
    let inspected = kbit_ok(folder.path(), &["inspect", "p.gguf", "--tensors", "--json"]);
    for tensor in found["plan"]["tensors"].as_array().expect("tensors") {
        let ty = tensor[1].as_str().expect("a scheme").trim_start_matches("ggml:").to_uppercase();
        assert!(inspected.contains(&ty), "{tensor} of {inspected}");
    }

    let again = plan(folder.path(), "assets/family/s1", "bpw=5.5", &["-o", "p.yaml"]);
    assert_eq!((&again["measured"], &again["plan"]), (&0.into(), &found["plan"]));
    assert_eq!(again["reused"].as_u64(), found["measured"].as_u64());
    // Another target takes the sensitivities over, and measures files alone.
    let other = plan(folder.path(), "assets/family/s1", "bpw=6.5", &[]);
    assert!(other["measured"].as_u64() <= Some(4), "{other}");
    // The same figures for any number of threads.
    let three =
        plan(folder.path(), "assets/family/s1", "bpw=5.5", &["--work", "elsewhere", "--threads", "3"]);
    assert_eq!(three["plan"], found["plan"]);
}

#[test]
fn a_planned_file_loses_less_than_the_mixes_of_its_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = "assets/family/s3";
    let source = repository(model);
    let (mut inside, mut all) = (0, 0);
    for mix in ["q3_k_m", "q4_k_s", "q4_k_m", "q5_k_s"] {
        let file = format!("{mix}.gguf");
        let _ = kbit_ok(folder.path(), &["convert", &source, &file, "--scheme", mix]);
        let size = bytes(folder.path(), &file);
        let found = plan(folder.path(), model, &format!("size={size}"), &["-o", "p.yaml"]);
        let _ = kbit_ok(folder.path(), &["convert", &source, "p.gguf", "--plan", "p.yaml", "--overwrite"]);
        assert!(bytes(folder.path(), "p.gguf") <= size, "{mix}");
        let (planned, known) =
            (divergence(folder.path(), "p.gguf", model), divergence(folder.path(), &file, model));
        assert!(planned < known, "{mix}: {planned} {known}");
        let interval = &found["plan"]["kl_divergence"];
        inside += i32::from((number(&interval["low"])..=number(&interval["high"])).contains(&planned));
        all += 1;
    }
    // Four of five intervals or more hold what is measured on the other text.
    assert!(inside * 5 >= all * 4 - 1, "{inside} of {all}");
}

#[test]
fn qualities_are_reached_by_small_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut last = u64::MAX;
    for target in ["max_kld=0.02", "max_kld=0.1"] {
        let found = plan(folder.path(), "assets/family/s1", target, &[]);
        let limit: f64 = target.trim_start_matches("max_kld=").parse().expect("a number");
        let measured = number(&found["plan"]["measured"]["kl_divergence"]);
        assert!(measured <= limit, "{target}: {measured}");
        let bytes = found["plan"]["bytes"].as_u64().expect("bytes");
        assert!(bytes < last, "{target}");
        last = bytes;
    }
    let found = plan(folder.path(), "assets/family/s1", "max_ppl_increase=2%", &[]);
    assert!(number(&found["plan"]["bits_per_weight"]) < 16.0, "{found}");
}

#[test]
fn pinned_tensors_stay_and_fused_ones_agree() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = ["--map", "attn_output=q8_0", "--map", "blk.0.ffn_down=f32", "--agree", "--no-verify"];
    let found = plan(folder.path(), "assets/family/s1", "bpw=7", &more);
    let tensors = found["plan"]["tensors"].as_array().expect("tensors");
    let scheme = |name: &str| {
        let found = tensors.iter().find(|tensor| tensor[0] == name);
        found.unwrap_or_else(|| panic!("no {name}"))[1].as_str().expect("a scheme").to_owned()
    };
    assert_eq!(scheme("blk.0.attn_output.weight"), "ggml:q8_0");
    assert_eq!(scheme("blk.0.ffn_down.weight"), "f32");
    for layer in 0..2 {
        let of = |kind: &str| scheme(&format!("blk.{layer}.{kind}.weight"));
        assert!(
            of("attn_q") == of("attn_k") && of("attn_k") == of("attn_v") && of("ffn_gate") == of("ffn_up")
        );
    }
    assert_eq!(found["plan"]["measured"], Value::Null);
}

#[test]
fn schemes_with_parts_are_chosen_and_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let schemes = ["--schemes", "int:bits=3,block=64,int:bits=5,block=64,q8_0", "-o", "p.yaml"];
    let found = plan(folder.path(), "assets/family/s1", "bpw=5", &schemes);
    let model = repository("assets/family/s1");
    let _ = kbit_ok(folder.path(), &["convert", &model, "p.gguf", "--plan", "p.yaml"]);
    assert_eq!(found["plan"]["bytes"].as_u64(), Some(bytes(folder.path(), "p.gguf")));
    assert!(divergence(folder.path(), "p.gguf", "assets/family/s1") > 0.0);
}

#[test]
fn importance_is_asked_for_where_the_plan_was_made_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text) = (repository("assets/family/s3"), repository(TEXT));
    let gather = ["calibrate", &model, "--text", &text, "--context", "128", "--chunks", "4", "-o", "i.gguf"];
    let _ = kbit_ok(folder.path(), &gather);
    let more = ["--imatrix", "i.gguf", "-o", "p.yaml", "--no-verify", "--schemes", "iq2_s,iq3_xxs,q4_k,q6_k"];
    let found = plan(folder.path(), "assets/family/s3", "bpw=3.6", &more);
    let message = kbit_fails(folder.path(), 2, &["convert", &model, "p.gguf", "--plan", "p.yaml"]);
    assert!(message.contains("--imatrix"), "{message}");
    let _ = kbit_ok(folder.path(), &["convert", &model, "p.gguf", "--plan", "p.yaml", "--imatrix", "i.gguf"]);
    assert_eq!(found["plan"]["bytes"].as_u64(), Some(bytes(folder.path(), "p.gguf")));
}

#[test]
fn what_cannot_be_reached_is_told_with_what_can() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text) = (repository("assets/family/s1"), repository(TEXT));
    let fails = |status: i32, more: &[&str]| {
        let mut arguments = vec!["plan", &model, "--context", "128", "--chunks", "4", "--text", &text];
        arguments.extend(more);
        kbit_fails(folder.path(), status, &arguments)
    };
    let message = fails(2, &["--target", "size=10KiB", "--map", "token_embd=q8_0"]);
    assert!(message.contains("the smallest file with these schemes has"), "{message}");
    assert!(message.contains("1 matrices that rules pin (first: token_embd.weight)"), "{message}");
    // What the message names can be had.
    let words = message.split("schemes has ").nth(1).expect("a size");
    let least: u64 = words.split(' ').next().expect("a word").parse().expect("a number");
    let size = format!("size={}", least + 256);
    let found = plan(folder.path(), "assets/family/s1", &size, &["--map", "token_embd=q8_0"]);
    assert!(found["plan"]["bytes"].as_u64() <= Some(least + 256), "{found}");
    let message = fails(2, &["--target", "bpw=1"]);
    assert!(message.contains("bits a weight"), "{message}");
    let message = fails(2, &["--target", "max_kld=1e-9", "--schemes", "q4_0,q5_0"]);
    assert!(message.contains("is the least that can be expected"), "{message}");
    let found = plan(folder.path(), "assets/family/s1", "bpw=30", &[]);
    let note = found["notes"][0].as_str().unwrap_or_default();
    assert!(note.contains("above what these schemes need"), "{found}");
}

#[test]
fn wrong_input_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text) = (repository("assets/family/s0"), repository(TEXT));
    let fails = |status: i32, model: &str, text: &str, more: &[&str]| {
        let mut arguments = vec!["plan", model, "--text", text];
        if !more.contains(&"--target") {
            arguments.extend(["--target", "bpw=6"]);
        }
        arguments.extend(more);
        kbit_fails(folder.path(), status, &arguments)
    };
    std::fs::write(folder.path().join("empty.txt"), "").expect("written");
    assert!(fails(1, &model, "empty.txt", &[]).contains("empty.txt: 0 tokens"), "an empty text");
    assert!(fails(2, &model, &text, &["--schemes", "q4_k_x"]).contains("q4_k_x"), "an unknown scheme");
    assert!(fails(2, &model, &text, &["--map", ".*=q8_0"]).contains("nothing to choose"), "all pinned");
    assert!(fails(2, &model, &text, &["--target", "kld=3"]).contains("max_kld"), "an unknown target");
    let damaged = folder.path().join("damaged");
    copy_model(&root().join("assets/family/s0"), &damaged);
    let path = damaged.join("model.safetensors");
    let mut content = std::fs::read(&path).expect("read");
    let middle = content.len() / 4 * 2;
    content[middle..middle + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&path, content).expect("written");
    let message = fails(1, damaged.to_str().expect("UTF-8"), &text, &["--context", "64", "--chunks", "1"]);
    assert!(message.to_lowercase().contains("nan") || message.contains("finite"), "{message}");

    let _ = plan(folder.path(), "assets/family/s1", "bpw=6", &["-o", "p.yaml", "--no-verify"]);
    let message = kbit_fails(folder.path(), 2, &["convert", &model, "p.gguf", "--plan", "p.yaml"]);
    assert!(message.contains("another model"), "{message}");
    let written = std::fs::read_to_string(folder.path().join("p.yaml")).expect("a plan");
    std::fs::write(folder.path().join("bad.yaml"), written.replace("tensors:", "tensor:")).expect("written");
    let message = kbit_fails(folder.path(), 2, &["convert", &model, "p.gguf", "--plan", "bad.yaml"]);
    assert!(message.contains("bad.yaml:") && message.contains("did you mean `tensors`"), "{message}");
}

#[test]
fn a_run_plans_writes_measures_and_reports() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "name: planned\nmodels: {}\nschemes:\n  - q5_0\n  - {{ target: {{ bpw: [5, 6] }}, text: {}, context: 128, chunks: 6 }}\n  \
         - {{ target: {{ bpw: 1 }}, text: {}, context: 128, chunks: 6 }}\n\
         evaluate: {{ text: {}, context: 128, chunks: 8 }}\nlaws: {{ bootstrap: 0 }}\n",
        repository("assets/family/s1"),
        repository(TEXT),
        repository(TEXT),
        repository(OTHER_TEXT)
    );
    std::fs::write(folder.path().join("planned.yaml"), text).expect("written");
    let dry = kbit_ok(folder.path(), &["run", "planned.yaml", "--dry-run"]);
    assert!(dry.contains("plan-6bpw: planned when it is run, for bpw=6"), "{dry}");
    assert!(kbit_ok(folder.path(), &["config", "check", "planned.yaml"]).contains("plan-5bpw"));
    let output = kbit(folder.path(), &["run", "planned.yaml"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let run = folder.path().join("kbit-runs/planned");
    let csv = std::fs::read_to_string(run.join("report/tables/plans.csv")).expect("a table");
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 3, "{csv}");
    let column = |name: &str| lines[0].iter().position(|known| *known == name).expect("a column");
    for line in &lines[1..] {
        assert_eq!(line[column("bytes_planned")], line[column("bytes")], "{csv}");
        assert!(line[column("kl_divergence")].parse::<f64>().is_ok_and(|value| value > 0.0), "{csv}");
    }
    let report = std::fs::read_to_string(run.join("report.md")).expect("a report");
    assert!(report.contains("Predicted against measured") && report.contains("plan-1bpw"), "{report}");
    // A second run has nothing to do.
    let again = kbit(folder.path(), &["run", "planned.yaml", "--json"]);
    let again: Value = serde_json::from_slice(&again.stdout).expect("JSON");
    assert_eq!(again["files_written"], 0, "{again}");
}
