//! Tasks: the ready files give lm-evaluation-harness's items, and what is wrong with a task or its data is told with a cure.

use kbit_tests::{kbit_fails, kbit_ok, repository, root};
use serde_json::Value;
use std::path::Path;

/// Log-likelihoods in f32 of two programs that sum in another order.
const TOLERANCE: f64 = 1e-3;

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("items");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn numbers(item: &Value, key: &str) -> Vec<f64> {
    let values = item[key].as_array().unwrap_or_else(|| panic!("{key} of {item}"));
    values.iter().map(|value| value.as_f64().expect("a number")).collect()
}

/// `tests/python/lm_eval_items.py` wrote the golden items with lm-evaluation-harness's own definitions.
#[test]
fn items_of_the_ready_tasks_are_those_of_lm_evaluation_harness() {
    let golden = std::fs::read(root().join("tests/data/lm_eval_items.json")).expect("golden items");
    let golden: Value = serde_json::from_slice(&golden).expect("JSON");
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("items.jsonl");
    let tasks = golden["s1"].as_object().expect("tasks");
    assert!(tasks.len() >= 10, "{} tasks", tasks.len());
    for (task, theirs) in tasks {
        let json = kbit_ok(
            &root(),
            &[
                "eval",
                "assets/family/s1",
                "--metric=task",
                &format!("--task=configs/tasks/{task}.yaml"),
                &format!("--data=assets/tasks/{task}.jsonl"),
                &format!("--items={}", out.display()),
                "--json",
            ],
        );
        let (ours, theirs) = (lines(&out), theirs.as_array().expect("items"));
        assert_eq!(ours.len(), theirs.len(), "{task}");
        for (ours, theirs) in ours.iter().zip(theirs) {
            let (a, b) = (numbers(ours, "log_likelihoods"), numbers(theirs, "log_likelihoods"));
            assert_eq!(a.len(), b.len(), "{task}: {ours}");
            for (a, b) in a.iter().zip(&b) {
                assert!((a - b).abs() < TOLERANCE, "{task}, line {}: {a} is not {b}", ours["line"]);
            }
            assert_eq!(ours["greedy"], theirs["greedy"], "{task}, line {}", ours["line"]);
        }
        let document: Value = serde_json::from_str(&json).expect("JSON");
        for metric in document["metrics"].as_array().expect("metrics") {
            let name = metric["metric"].as_str().expect("a name");
            if theirs[0].get(name).is_none() {
                continue;
            }
            let sum: f64 = theirs.iter().map(|item| item[name].as_f64().expect("a number")).sum();
            #[expect(clippy::cast_precision_loss, reason = "a few documents")]
            let mean = sum / theirs.len() as f64;
            assert!((metric["value"].as_f64().expect("a number") - mean).abs() < 1e-9, "{task} {name}");
        }
    }
}

#[test]
fn texts_are_written_and_scored() {
    for (task, metric) in [("translation", "bleu"), ("summarisation", "rouge1")] {
        let run = |threads: &str| {
            let folder = tempfile::tempdir().expect("a folder");
            let out = folder.path().join("items.jsonl");
            let json = kbit_ok(
                &root(),
                &[
                    "eval",
                    "assets/family/s1",
                    "--metric=task",
                    &format!("--task=configs/tasks/{task}.yaml"),
                    &format!("--data=assets/tasks/{task}.jsonl"),
                    &format!("--items={}", out.display()),
                    "--json",
                    &format!("--threads={threads}"),
                ],
            );
            let document: Value = serde_json::from_str(&json).expect("JSON");
            (document["metrics"].clone(), lines(&out))
        };
        let (metrics, items) = run("1");
        assert_eq!(metrics[0]["metric"], metric);
        assert!(items.iter().all(|item| item["text"].is_string() && item["prompt"].is_string()), "{items:?}");
        assert_eq!(run("2"), (metrics, items), "{task}");
    }
}

/// Writes `text` to a file of `folder`, and gives its path.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn what_is_wrong_with_a_task_is_told_with_its_place_and_a_cure() {
    let folder = tempfile::tempdir().expect("a folder");
    for (text, told) in [
        ("kind: cloze\n", "t.yaml:1:7: a task needs `doc_to_target`"),
        ("kind: multiple_choice\ndoc_to_target: 0\n", "add `doc_to_choice:`"),
        (
            "kind: cloze\ndoc_to_text: '{{ text'\ndoc_to_target: a\n",
            "t.yaml:2:14: `doc_to_text` is no template",
        ),
        ("kind: cloz\ndoc_to_target: a\n", "did you mean `cloze`?"),
        ("kind: [\n", "mend the YAML at this place"),
    ] {
        let task = file(folder.path(), "t.yaml", text);
        let model = repository("assets/family/s0");
        let data = file(folder.path(), "d.jsonl", "{\"text\": \"a\"}\n");
        let arguments = ["eval", &model, "--metric=task", "--task", &task, "--data", &data];
        let stderr = kbit_fails(folder.path(), 2, &arguments);
        assert!(stderr.contains(told), "{stderr}");
        if !text.contains('[') {
            let stderr = kbit_fails(folder.path(), 2, &["config", "check", &task]);
            assert!(stderr.contains(told), "{stderr}");
        }
    }
}

#[test]
fn what_is_wrong_with_data_is_told_with_its_line_and_a_cure() {
    let folder = tempfile::tempdir().expect("a folder");
    let choice = "kind: multiple_choice\ndoc_to_text: '{{ q }}'\ndoc_to_choice: c\ndoc_to_target: a\n";
    let good = "{\"q\": \"?\", \"c\": [\"x\", \"y\"], \"a\": 0}\n";
    // The model reads 256 tokens; a choice must fit whole, a question is cut from the left.
    let long = format!("{{\"q\": \"?\", \"c\": [\"x\", \"{}\"], \"a\": 0}}\n", "word ".repeat(300));
    for (data, told, cure) in [
        ("", "the file has no documents", "give a JSONL file"),
        ("{\"q\": \"?\"\n", "d.jsonl:2: no JSON", "write one JSON object a line"),
        ("[1]\n", "d.jsonl:2: a document is a JSON object", "one object a line"),
        (
            "{\"c\": [\"x\", \"y\"], \"a\": 0}\n",
            "d.jsonl:2: `doc_to_text`",
            "no field `q`: its fields are c, a",
        ),
        ("{\"q\": \"?\", \"c\": [], \"a\": 0}\n", "d.jsonl:2: `doc_to_choice`", "two or more are needed"),
        ("{\"q\": \"?\", \"c\": [\"x\", \"y\"], \"a\": 2}\n", "d.jsonl:2: `doc_to_target`", "from 0 to 1"),
        (&long, "d.jsonl:2: a text to score has", "leave the document out"),
    ] {
        let task = file(folder.path(), "t.yaml", choice);
        let data = if data.is_empty() { String::new() } else { format!("{good}{data}") };
        let data = file(folder.path(), "d.jsonl", &data);
        let model = repository("assets/family/s0");
        let arguments = ["eval", &model, "--metric=task", "--task", &task, "--data", &data];
        let stderr = kbit_fails(folder.path(), 1, &arguments);
        assert!(stderr.contains(told) && stderr.contains(cure), "{stderr}");
    }
}

#[test]
fn a_run_measures_tasks_and_their_paired_differences() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "models: ['{0}/assets/family/s0']\nschemes: ['ggml:q8_0', {{scheme: int, params: {{bits: 2}}}}]\n\
         error_statistics: false\nlaws: {{bootstrap: 0}}\nreport: [csv]\nevaluate:\n  \
         - {{task: '{0}/configs/tasks/arc.yaml', data: '{0}/assets/tasks/arc.jsonl', limit: 5, few_shot: 1, name: science}}\n  \
         - {{task: '{0}/configs/tasks/lambada.yaml', data: '{0}/assets/tasks/lambada.jsonl', mode: [f32, int8]}}\n  \
         - {{task: '{0}/configs/tasks/translation.yaml', data: '{0}/assets/tasks/translation.jsonl', limit: 2}}\n",
        root().display()
    );
    let _ = file(folder.path(), "run.yaml", &config);
    let _ = kbit_ok(folder.path(), &["config", "check", "run.yaml"]);
    let _ = kbit_ok(folder.path(), &["run", "run.yaml", "--out", "out", "--threads", "2"]);
    let records = |name: &str| lines(&folder.path().join("out").join(name));
    let results = records("results.jsonl");
    let of = |task: &str, metric: &str, mode: &str| {
        let wanted: Vec<Value> = results
            .iter()
            .filter(|line| line["data"]["name"] == task && line["metric"] == metric && line["mode"] == mode)
            .cloned()
            .collect();
        assert_eq!(wanted.len(), 3, "{task} {metric} {mode}");
        wanted
    };
    for (task, metric, mode, count) in [
        ("science", "acc", "f32", 5),
        ("science", "acc_norm", "f32", 5),
        ("lambada", "perplexity", "f32", 6),
        ("lambada", "perplexity", "int8", 6),
        ("translation", "bleu", "f32", 2),
    ] {
        let found = of(task, metric, mode);
        assert!(found.iter().all(|line| line["count"] == count && line["stderr"].is_number()), "{found:?}");
        let plain = &of(task, metric, "f32")[0];
        assert_eq!((&plain["scheme"]["family"], &plain["difference"]), (&Value::from("none"), &Value::Null));
        for line in &found[1..] {
            let number = |value: &Value| value.as_f64().expect("a number");
            let difference = number(&line["value"]) - number(&plain["value"]);
            assert!((number(&line["difference"]["value"]) - difference).abs() < 1e-9, "{line}");
            assert!(line["difference"]["stderr"].is_number(), "{line}");
        }
    }
    let coarse = &of("lambada", "perplexity", "f32")[2];
    assert_ne!(coarse["difference"]["value"], 0.0, "two bits change the model");

    let items = records("items.jsonl");
    let of_arc = items.iter().filter(|line| line["data"]["name"] == "science" && line["metric"] == "acc");
    assert_eq!(of_arc.clone().count(), 3);
    assert!(of_arc.clone().all(|line| line["values"].as_array().is_some_and(|values| values.len() == 5)));
    let samples = records("samples.jsonl");
    assert_eq!(samples.len(), 6, "two documents of three models");
    assert!(samples.iter().all(|line| line["seed"] == 1 && line["target"].is_string()), "{samples:?}");

    // A second run asks nothing again and writes the same.
    let _ = kbit_ok(folder.path(), &["run", "run.yaml", "--out", "out", "--threads", "1"]);
    assert_eq!(records("results.jsonl"), results);
    let _ = kbit_ok(folder.path(), &["run", "run.yaml", "--out", "again", "--threads", "1"]);
    assert_eq!(lines(&folder.path().join("again/results.jsonl")), results, "one thread");
}

#[test]
fn a_run_refuses_tasks_that_cannot_be_asked_before_it_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = file(folder.path(), "d.jsonl", "{\"question\": \"?\"}\n");
    let config = format!(
        "models: ['{0}/assets/family/s0']\nschemes: ['ggml:q8_0']\nevaluate:\n  - task: '{0}/configs/tasks/arc.yaml'\n    data: '{data}'\n",
        root().display()
    );
    let _ = file(folder.path(), "run.yaml", &config);
    for arguments in [&["config", "check", "run.yaml"][..], &["run", "run.yaml", "--dry-run"]] {
        let stderr = kbit_fails(folder.path(), 2, arguments);
        assert!(stderr.contains("run.yaml:4:") && stderr.contains("d.jsonl:1: `doc_to_"), "{stderr}");
    }
}
