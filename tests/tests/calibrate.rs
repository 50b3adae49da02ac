//! `kbit calibrate`: importance matrices gathered by kbit's own engine.

use kbit_tests::{kbit_fails, kbit_ok, repository};
use serde_json::Value;
use std::path::Path;

fn gathered(folder: &Path, model: &str, texts: &[&str], more: &[&str], out: &str) -> Value {
    let model = repository(model);
    let texts: Vec<String> = texts.iter().map(|text| repository(text)).collect();
    let mut arguments = vec!["calibrate", &model, "--json", "-o", out];
    for text in &texts {
        arguments.extend(["--text", text]);
    }
    arguments.extend(more);
    serde_json::from_str(&kbit_ok(folder, &arguments)).expect("JSON")
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).expect(name)
}

const TEXT: &str = "assets/text/calibration.txt";

#[test]
fn figures_do_not_depend_on_threads_and_every_matrix_of_the_blocks_has_some() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--context", "64", "--chunks", "6"];
    let found = gathered(folder.path(), "assets/family/s0", &[TEXT], &options, "one.gguf");
    assert_eq!((&found["windows"], &found["context"], &found["resumed"]), (&6.into(), &64.into(), &0.into()));
    assert!(found["moved"]["median"].as_f64().is_some_and(|moved| moved > 0.0 && moved < 0.5), "{found}");
    let three = [&options[..], &["--threads", "3"]].concat();
    let _ = gathered(folder.path(), "assets/family/s0", &[TEXT], &three, "three.gguf");
    assert_eq!(bytes(folder.path(), "one.gguf"), bytes(folder.path(), "three.gguf"));

    let inspected = kbit_ok(folder.path(), &["inspect", "one.gguf", "--tensors", "--json"]);
    for tensor in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        assert!(inspected.contains(&format!("blk.1.{tensor}.weight")), "{tensor} of {inspected}");
    }
    assert!(!inspected.contains("token_embd"), "{inspected}");
    let model = repository("assets/family/s0");
    let convert = ["convert", &model, "q.gguf", "--scheme", "ggml:q4_0", "--imatrix", "one.gguf", "--json"];
    assert!(kbit_ok(folder.path(), &convert).contains("q.gguf"));
}

#[test]
fn an_interrupted_gathering_goes_on_with_the_same_figures() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--context", "64", "--chunks", "16"];
    let _ = gathered(folder.path(), "assets/family/s0", &[TEXT], &options, "whole.gguf");
    // A file of another gathering is passed over, and gone in the end.
    std::fs::write(
        folder.path().join("again.gguf.partial"),
        "{\"kbit_gathering\":1,\"key\":\"another\",\"windows\":3,\"gathered\":[],\"half\":null}\n",
    )
    .expect("written");
    let found = gathered(folder.path(), "assets/family/s0", &[TEXT], &options, "again.gguf");
    assert_eq!(found["resumed"], 0);
    assert_eq!(bytes(folder.path(), "whole.gguf"), bytes(folder.path(), "again.gguf"));
    assert!(!folder.path().join("again.gguf.partial").exists());

    std::fs::write(folder.path().join("bad.gguf.partial"), "nothing").expect("written");
    let model = repository("assets/family/s0");
    let text = repository(TEXT);
    let message = kbit_fails(
        folder.path(),
        1,
        &["calibrate", &model, "--text", &text, "--context", "64", "-o", "bad.gguf"],
    );
    assert!(message.contains("bad.gguf.partial") && message.contains("remove it"), "{message}");
    assert!(!folder.path().join("bad.gguf").exists());
}

#[test]
fn merged_matrices_are_those_of_all_texts() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--context", "64", "--chunks", "4"];
    let other = "assets/text/prose.txt";
    for (texts, out) in [(&[TEXT][..], "a.gguf"), (&[other], "b.gguf"), (&[TEXT, other], "both.gguf")] {
        let _ = gathered(folder.path(), "assets/family/s0", texts, &options, out);
    }
    let merge = ["calibrate", "--merge", "a.gguf", "--merge", "b.gguf", "-o", "merged.gguf", "--json"];
    let merged: Value = serde_json::from_str(&kbit_ok(folder.path(), &merge)).expect("JSON");
    assert_eq!(merged["windows"], 8);
    // Of the same size; sums were rounded once more.
    assert_eq!(bytes(folder.path(), "merged.gguf").len(), bytes(folder.path(), "both.gguf").len());
    let message = kbit_fails(folder.path(), 1, &merge);
    assert!(message.contains("merged.gguf") && message.contains("exists"), "{message}");
}

#[test]
fn texts_that_are_too_short_and_wrong_usage_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repository("assets/family/s0");
    for (name, content) in [("empty.txt", ""), ("short.txt", "A few words.")] {
        std::fs::write(folder.path().join(name), content).expect("written");
        let message = kbit_fails(
            folder.path(),
            1,
            &["calibrate", &model, "--text", name, "--context", "64", "-o", "x.gguf"],
        );
        assert!(message.contains(name) && message.contains("longer text"), "{message}");
        assert!(!folder.path().join("x.gguf").exists());
    }
    let _ = kbit_fails(folder.path(), 2, &["calibrate", &model, "-o", "x.gguf"]);
    let _ = kbit_fails(folder.path(), 2, &["calibrate", "-o", "x.gguf"]);
}
