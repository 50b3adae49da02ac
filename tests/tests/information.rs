//! What models know of a text, in a run.

use kbit_tests::{kbit_fails, kbit_ok, repository};
use serde_json::Value;
use std::path::Path;

fn configuration(folder: &Path, more: &str) {
    let text = format!(
        "name: known\nmodels: {}\nschemes: ['int:bits=3,block=64']\nlaws: {{bootstrap: 0}}\n\
         evaluate: {{text: {}, context: 64, chunks: 4, {more}}}\n",
        repository("assets/family/s0"),
        repository("assets/text/prose.txt")
    );
    std::fs::write(folder.join("known.yaml"), text).expect("written");
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_run_measures_what_eval_measures() {
    let folder = tempfile::tempdir().expect("a folder");
    let baseline = repository("assets/text/calibration.txt");
    configuration(
        folder.path(),
        &format!("metrics: [bits_per_token, information], baseline_text: {baseline}"),
    );
    let _ = kbit_ok(folder.path(), &["run", "known.yaml"]);
    let run = folder.path().join("kbit-runs/known");
    let results = lines(&run.join("results.jsonl"));
    let record = |scheme: &str, metric: &str| {
        let found =
            results.iter().find(|line| line["scheme"]["family"] == scheme && line["metric"] == metric);
        found.unwrap_or_else(|| panic!("no {metric} of {scheme}"))
    };
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));

    let (model, text) = (repository("assets/family/s0"), repository("assets/text/prose.txt"));
    let eval = ["eval", &model, "--metric", "information", "--text", &text, "--baseline-text", &baseline];
    let eval = [&eval[..], &["--context", "64", "--chunks", "4", "--json"]].concat();
    let eval: Value = serde_json::from_str(&kbit_ok(folder.path(), &eval)).expect("JSON");
    let items = lines(&run.join("items.jsonl"));
    for name in ["uniform", "unigram", "bigram"] {
        let metric = format!("information_{name}");
        let (own, per_byte) = (record("none", &metric), record("none", &format!("{metric}_per_byte")));
        for (found, wanted) in [
            (&own["value"], &eval[name]["reduction"]),
            (&own["stderr"], &eval[name]["stderr"]),
            (&per_byte["value"], &eval[name]["reduction_per_byte"]),
        ] {
            assert!((number(found) - number(wanted)).abs() < 1e-9, "{metric}: {found}, {wanted}");
        }
        // What a quantized model knows less is what it needs more bits for, whatever the baseline.
        let quantized = record("int", &metric);
        let lost = number(&own["value"]) - number(&quantized["value"]);
        let bits = number(&record("int", "bits_per_token")["difference"]["value"]);
        assert!(lost > 0.0 && (lost - bits).abs() < 1e-9, "{metric}: {lost}, {bits}");
        assert!((number(&quantized["difference"]["value"]) + lost).abs() < 1e-9, "{quantized}");
        let values = items
            .iter()
            .find(|line| line["metric"] == metric && line["scheme"] == quantized["scheme"]["label"])
            .expect("items");
        let sum = |key: &str| values[key].as_array().expect("a list").iter().map(number).sum::<f64>();
        assert!((sum("values") / sum("weights") - number(&quantized["value"])).abs() < 1e-9, "{values}");
    }
    let compared =
        kbit_ok(folder.path(), &["compare", "kbit-runs/known", "--metric", "information_bigram", "--json"]);
    assert!(compared.contains("information_bigram"), "{compared}");
}

#[test]
fn baselines_that_tell_nothing_are_refused_before_anything_is_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let check = |more: &str| {
        configuration(folder.path(), more);
        kbit_fails(folder.path(), 2, &["config", "check", "known.yaml"])
    };
    let message = check("metrics: [information]");
    assert!(message.contains("`baseline_text:`"), "{message}");
    let message = check(&format!("baseline_text: {}", repository("assets/text/prose.txt")));
    assert!(message.contains("the measured text itself"), "{message}");
    let message = check("baseline_text: nowhere.txt");
    assert!(message.contains("nowhere.txt"), "{message}");

    // One word, over and over, is found when it is tokenized.
    std::fs::write(folder.path().join("foreign.txt"), "\u{4e00}".repeat(3)).expect("a text");
    configuration(folder.path(), "baseline_text: foreign.txt");
    let message = kbit_fails(folder.path(), 1, &["run", "known.yaml"]);
    assert!(message.contains("foreign.txt") && message.contains("nothing can be learned"), "{message}");
}
