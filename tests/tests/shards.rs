//! GGUF in shards: read everywhere, written by `convert` and `run`, split, merged, edited and hashed by `kbit gguf`.

use kbit_tests::{kbit, kbit_fails, kbit_ok, repository};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn json(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&kbit_ok(folder, &[arguments, &["--json"]].concat())).expect("JSON")
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn files(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<_> = entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found
}

/// s0 in f32 as one file, and as shards of six tensors.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repository("assets/family/s0");
    let _ =
        kbit_ok(folder.path(), &["convert", &model, "whole.gguf", "--scheme", "ggml:f32", "--no-provenance"]);
    let _ = kbit_ok(folder.path(), &["gguf", "split", "whole.gguf", "set", "--max-tensors", "6"]);
    folder
}

const FIRST: &str = "set-00001-of-00004.gguf";

#[test]
fn a_set_is_the_same_model_as_its_file() {
    let folder = workplace();
    let at = folder.path();
    assert_eq!(files(at, "set").len(), 4);
    assert_eq!(json(at, &["diff", FIRST, "whole.gguf"])["equal"], true);
    assert_eq!(json(at, &["inspect", FIRST])["shards"], 4);
    let _ = kbit_ok(at, &["verify", FIRST]);
    for (scheme, name) in [("ggml:q8_0", "q8"), ("int:bits=4,block=64", "int")] {
        for source in ["whole.gguf", FIRST] {
            let out = format!("{name}-{source}");
            let _ = kbit_ok(at, &["convert", source, &out, "--scheme", scheme]);
        }
        assert!(read(at, &format!("{name}-whole.gguf")) == read(at, &format!("{name}-{FIRST}")), "{scheme}");
    }
    let tokens =
        |model: &str| kbit_ok(at, &["generate", model, "--prompt", "The", "-n", "8", "--top-k", "1"]);
    assert_eq!(tokens(FIRST), tokens("whole.gguf"));
}

#[test]
fn merging_gives_the_tensors_back_and_splitting_the_merged_file_the_same_shards() {
    let folder = workplace();
    let at = folder.path();
    let merged = json(at, &["gguf", "merge", FIRST, "merged.gguf"]);
    assert_eq!(merged["files"][0]["tensors"], merged["tensors"]);
    let hashes = |file: &str| json(at, &["gguf", "hash", file]);
    assert_eq!(hashes("merged.gguf")["tensors"], hashes("whole.gguf")["tensors"]);
    assert_eq!(hashes("merged.gguf")["all"], hashes(FIRST)["all"]);
    let _ = kbit_ok(at, &["gguf", "split", "merged.gguf", "again", "--max-tensors", "6"]);
    for number in 1..=4 {
        let name = |prefix: &str| format!("{prefix}-0000{number}-of-00004.gguf");
        assert!(read(at, &name("again")) == read(at, &name("set")), "shard {number}");
    }
    let message = kbit_fails(at, 1, &["gguf", "merge", "whole.gguf", "other.gguf"]);
    assert!(message.contains("not a shard"), "{message}");
}

#[test]
fn converting_by_size_gives_the_shards_of_splitting_the_whole() {
    let folder = workplace();
    let at = folder.path();
    let convert = |more: &[&str]| {
        let arguments = ["convert", "whole.gguf", "out.gguf", "--scheme", "ggml:q4_0", "--no-provenance"];
        json(at, &[&arguments, more].concat())
    };
    let plan = convert(&["--split-size", "64KiB", "--dry-run"]);
    let _ = convert(&[]);
    let written = convert(&["--split-size", "64KiB"]);
    assert_eq!(plan["paths"], written["paths"]);
    assert_eq!(plan["file_bytes"], written["bytes"]);
    let _ = kbit_ok(at, &["gguf", "split", "out.gguf", "split", "--max-size", "64KiB"]);
    let paths = files(at, "out-");
    assert!(paths.len() > 2 && paths.len() == files(at, "split-").len(), "{paths:?}");
    for (ours, theirs) in paths.iter().zip(files(at, "split-")) {
        assert!(std::fs::read(ours).expect("a file") == std::fs::read(theirs).expect("a file"), "{ours:?}");
    }
}

#[test]
fn packed_parts_may_lie_in_different_shards() {
    let folder = workplace();
    let at = folder.path();
    let scheme = "quantile:bits=4,codebook=empirical";
    let _ = kbit_ok(at, &["convert", "whole.gguf", "a.gguf", "--scheme", scheme]);
    let written = json(at, &["convert", "whole.gguf", "b.gguf", "--scheme", scheme, "--split-size", "4KiB"]);
    let first = written["path"].as_str().expect("a path");
    assert!(written["paths"].as_array().expect("paths").len() > 8);
    let text = repository("assets/text/prose.txt");
    let perplexity = |model: &str| {
        let arguments =
            ["eval", model, "--metric", "perplexity", "--text", &text, "--context", "64", "--chunks", "2"];
        json(at, &arguments)["value"].as_f64().expect("a value")
    };
    assert!((perplexity("a.gguf") - perplexity(first)).abs() < f64::EPSILON);
    let _ = kbit_ok(at, &["verify", first]);
}

#[test]
fn kept_shards_hold_the_same_tensors_as_those_of_the_source() {
    let folder = workplace();
    let at = folder.path();
    let _ = kbit_ok(
        at,
        &["convert", FIRST, "kept.gguf", "--scheme", "ggml:q8_0", "--keep-split", "--no-provenance"],
    );
    let names = |file: &str| -> Vec<String> {
        let bytes = read(at, file);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (0..2)
            .flat_map(|layer| {
                ["attn_q", "ffn_up", "ffn_norm"].map(|part| format!("blk.{layer}.{part}.weight"))
            })
            .filter(|name| text.contains(name.as_str()))
            .collect()
    };
    for number in 1..=4 {
        let name = |prefix: &str| format!("{prefix}-0000{number}-of-00004.gguf");
        assert_eq!(names(&name("kept")), names(&name("set")), "shard {number}");
    }
    let model = repository("assets/family/s0");
    let message = kbit_fails(at, 1, &["convert", &model, "x.gguf", "--scheme", "ggml:q8_0", "--keep-split"]);
    assert!(message.contains("--split-size"), "{message}");
}

#[test]
fn a_run_writes_shards_and_takes_them_over() {
    let folder = workplace();
    let at = folder.path();
    let config = "models: set-00001-of-00004.gguf\nschemes: {scheme: 'ggml:q4_0', label: q}\nsplit_size: 64KiB\n\
                  evaluate: {text: TEXT, context: 64, chunks: 1}\n";
    let config = config.replace("TEXT", &repository("assets/text/prose.txt"));
    std::fs::write(at.join("run.yaml"), &config).expect("written");
    assert_eq!(json(at, &["run", "run.yaml", "--out", "out"])["files_written"], 1);
    assert_eq!(json(at, &["run", "run.yaml", "--out", "out"])["files_written"], 0);
    let written = files(&at.join("out/files/set-00001-of-00004"), "q-");
    assert!(written.len() > 2, "{written:?}");
    std::fs::remove_file(&written[1]).expect("removed");
    assert_eq!(json(at, &["run", "run.yaml", "--out", "out"])["files_written"], 1);
    std::fs::write(at.join("run.yaml"), config.replace("64KiB", "lots")).expect("written");
    let message = kbit_fails(at, 2, &["run", "run.yaml", "--out", "out"]);
    assert!(message.contains("run.yaml:3:") && message.contains("4G"), "{message}");
}

#[test]
fn missing_and_misplaced_shards_are_named() {
    let folder = workplace();
    let at = folder.path();
    let third = at.join("set-00003-of-00004.gguf");
    let kept = std::fs::read(&third).expect("a shard");
    std::fs::remove_file(&third).expect("removed");
    for arguments in [&["inspect", FIRST][..], &["verify", FIRST], &["gguf", "merge", FIRST, "m.gguf"]] {
        let message = kbit_fails(at, 1, arguments);
        assert!(message.contains("set-00003-of-00004.gguf") && message.contains("missing"), "{message}");
    }
    std::fs::copy(at.join("set-00002-of-00004.gguf"), &third).expect("a copy");
    let message = kbit_fails(at, 1, &["convert", FIRST, "q.gguf", "--scheme", "ggml:q8_0"]);
    assert!(message.contains("set-00003-of-00004.gguf") && message.contains("shard 2 of 4"), "{message}");
    std::fs::write(&third, &kept[..kept.len() / 2]).expect("written");
    let message = kbit_fails(at, 1, &["convert", FIRST, "q.gguf", "--scheme", "ggml:q8_0"]);
    assert!(message.contains("set-00003-of-00004.gguf"), "{message}");
    assert!(files(at, "q.gguf").is_empty() && files(at, "m.gguf").is_empty());
    let message = kbit_fails(at, 1, &["inspect", "set-00002-of-00004.gguf"]);
    assert!(message.contains("give the first"), "{message}");
}

#[test]
fn splitting_and_merging_never_touch_an_existing_file() {
    let folder = workplace();
    let at = folder.path();
    std::fs::write(at.join("new-00002-of-00004.gguf"), "precious").expect("written");
    let message = kbit_fails(at, 1, &["gguf", "split", "whole.gguf", "new", "--max-tensors", "6"]);
    assert!(message.contains("new-00002-of-00004.gguf") && message.contains("--overwrite"), "{message}");
    assert_eq!(files(at, "new").len(), 1);
    assert_eq!(read(at, "new-00002-of-00004.gguf"), b"precious");
    let message = kbit_fails(at, 1, &["gguf", "merge", FIRST, FIRST, "--overwrite"]);
    assert!(message.contains(FIRST), "{message}");
    let plan = json(at, &["gguf", "split", "whole.gguf", "dry", "--max-size", "64KiB", "--dry-run"]);
    assert_eq!(plan["written"], false);
    assert!(files(at, "dry").is_empty());
    let output = kbit(at, &["gguf", "split", "whole.gguf", "x"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn metadata_change_in_place_or_by_a_new_file_and_it_is_told_which() {
    let folder = workplace();
    let at = folder.path();
    let before = json(at, &["gguf", "hash", "whole.gguf"]);
    let length = read(at, "whole.gguf").len();
    let how = |assignments: &[&str]| {
        json(at, &[&["gguf", "set", "whole.gguf"], assignments].concat())["how"].as_str().map(str::to_owned)
    };
    let value = |key: &str| json(at, &["inspect", "whole.gguf", "--metadata"])["metadata"][key].clone();
    assert_eq!(how(&["llama.context_length=u32:77"]).as_deref(), Some("in_place"));
    assert_eq!(how(&["llama.context_length=u32:77"]).as_deref(), Some("unchanged"));
    assert_eq!(value("llama.context_length"), 77);
    assert_eq!(read(at, "whole.gguf").len(), length);
    let long = format!("my.key=str:{}", "long ".repeat(100));
    assert_eq!(how(&[&long, "my.list=[u16]:[1,2,3]"]).as_deref(), Some("rewritten"));
    assert_eq!(value("my.list"), serde_json::json!([1, 2, 3]));
    assert_eq!(how(&["--remove", "my.key"]).as_deref(), Some("rewritten"));
    assert_eq!(value("my.key"), Value::Null);
    let after = json(at, &["gguf", "hash", "whole.gguf"]);
    assert_eq!(before["tensors"], after["tensors"]);
    let _ = kbit_ok(at, &["verify", "whole.gguf"]);
    assert_eq!(files(at, "whole").len(), 1);
    for (arguments, words) in [
        (&["general.alignment=u32:64"][..], "holds the file together"),
        (&["--remove", "not.there"], "not.there"),
    ] {
        let message = kbit_fails(at, 1, &[&["gguf", "set", "whole.gguf"], arguments].concat());
        assert!(message.contains(words), "{message}");
    }
    let message = kbit_fails(at, 2, &["gguf", "set", "whole.gguf", "a=u8:256"]);
    assert!(message.contains("256"), "{message}");
}

#[test]
fn hashes_are_those_of_the_tensors_bytes() {
    let folder = workplace();
    let at = folder.path();
    let _ = kbit_ok(at, &["convert", "whole.gguf", "q.gguf", "--scheme", "ggml:q8_0"]);
    let hashes = json(at, &["gguf", "hash", "q.gguf"]);
    let stated = json(at, &["inspect", "q.gguf", "--metadata"]);
    let stated = stated["metadata"]["kbit.tensor_sha256"].as_array().expect("hashes");
    let found: Vec<&Value> =
        hashes["tensors"].as_array().expect("tensors").iter().map(|tensor| &tensor["hash"]).collect();
    assert_eq!(found, stated.iter().collect::<Vec<_>>());
    let short = json(at, &["gguf", "hash", "q.gguf", "--algorithm", "xxh64"]);
    assert_eq!(short["all"].as_str().map(str::len), Some(16));
}
