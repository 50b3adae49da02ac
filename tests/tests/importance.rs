//! `--imatrix`, `importance:` and `kbit inspect` on importance matrices.

use kbit_tests::{kbit_fails, kbit_ok, repository};
use serde_json::Value;
use std::path::Path;

/// A GGUF of s0 in f32, for its tensor names and shapes.
fn source(folder: &Path) -> Vec<(String, Vec<u64>)> {
    let model = repository("assets/family/s0");
    let _ = kbit_ok(folder, &["convert", &model, "f32.gguf", "--scheme", "ggml:f32", "--no-provenance"]);
    let inspected = kbit_ok(folder, &["inspect", "f32.gguf", "--tensors", "--json"]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    let tensor = |tensor: &Value| {
        let shape = tensor["shape"].as_array().expect("a shape").iter().filter_map(Value::as_u64).collect();
        (tensor["name"].as_str().expect("a name").to_owned(), shape)
    };
    inspected["tensors"].as_array().expect("tensors").iter().map(tensor).collect()
}

/// A legacy file with made-up means for the matrices of `tensors` that `keep` keeps; `change` may spoil a value.
fn write_dat(
    path: &Path,
    tensors: &[(String, Vec<u64>)],
    keep: impl Fn(&str) -> bool,
    change: impl Fn(usize, f32) -> f32,
) {
    let kept: Vec<_> = tensors.iter().filter(|(name, shape)| shape.len() == 2 && keep(name)).collect();
    let mut bytes = i32::try_from(kept.len()).expect("few").to_le_bytes().to_vec();
    for (name, shape) in kept {
        bytes.extend(i32::try_from(name.len()).expect("short").to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(2i32.to_le_bytes());
        bytes.extend(i32::try_from(shape[1]).expect("small").to_le_bytes());
        for column in 0..usize::try_from(shape[1]).expect("small") {
            let value = f32::from(u16::try_from(column * 37 % 101).expect("small")) / 8.0 + 0.01;
            bytes.extend(change(column, value).to_le_bytes());
        }
    }
    bytes.extend(3i32.to_le_bytes());
    bytes.extend(8i32.to_le_bytes());
    bytes.extend(b"text.txt");
    std::fs::write(path, bytes).expect("written");
}

fn is_block(name: &str) -> bool {
    name.starts_with("blk.")
}

#[test]
fn an_importance_matrix_changes_the_bytes_of_its_tensors_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let tensors = source(at);
    write_dat(&at.join("i.dat"), &tensors, is_block, |_, value| value);
    let _ = kbit_ok(at, &["convert", "f32.gguf", "plain.gguf", "--scheme", "ggml:q4_0", "--no-provenance"]);
    let written = kbit_ok(
        at,
        &["convert", "f32.gguf", "weighted.gguf", "--scheme", "ggml:q4_0", "--imatrix", "i.dat", "--json"],
    );
    let written: Value = serde_json::from_str(&written).expect("JSON");
    let matrices = tensors.iter().filter(|(name, shape)| shape.len() == 2 && is_block(name)).count();
    assert_eq!(written["importance"]["weighted"].as_u64(), Some(matrices as u64));
    let output = kbit_tests::kbit(at, &["diff", "plain.gguf", "weighted.gguf", "--json"]);
    let diff: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let changed: Vec<&str> =
        diff["tensors"].as_array().expect("tensors").iter().filter_map(|t| t["name"].as_str()).collect();
    assert!(changed.len() > matrices / 2 && changed.iter().all(|name| is_block(name)), "{changed:?}");
}

#[test]
fn the_metadata_are_those_of_llama_quantize_and_the_hash_of_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_dat(&at.join("i.dat"), &source(at), is_block, |_, value| value);
    let _ = kbit_ok(at, &["convert", "f32.gguf", "q.gguf", "--scheme", "ggml:q4_0", "--imatrix", "i.dat"]);
    let inspected = kbit_ok(at, &["inspect", "q.gguf", "--metadata", "--json"]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    let metadata = &inspected["metadata"];
    assert_eq!(metadata["quantize.imatrix.file"], "i.dat");
    assert_eq!(metadata["quantize.imatrix.dataset"], "text.txt");
    assert_eq!(metadata["quantize.imatrix.chunks_count"], 3);
    let seen: Value =
        serde_json::from_str(&kbit_ok(at, &["inspect", "i.dat", "--tensors", "--json"])).expect("JSON");
    assert_eq!(metadata["quantize.imatrix.entries_count"], seen["entry_count"]);
    assert_eq!(metadata["kbit.calibration.sha256"], seen["sha256"]);
    assert_eq!(
        seen["tensors"].as_array().map(Vec::len),
        seen["entry_count"].as_u64().map(|count| count as usize)
    );
}

#[test]
fn a_configuration_gives_the_same_file_as_the_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_dat(&at.join("i.dat"), &source(at), is_block, |_, value| value);
    let config =
        "models: f32.gguf\nimportance: i.dat\nschemes: {scheme: 'ggml:q4_1', label: q}\nprovenance: false\n";
    std::fs::write(at.join("run.yaml"), config).expect("written");
    let _ = kbit_ok(at, &["run", "run.yaml", "--out", "out"]);
    let _ = kbit_ok(
        at,
        &["convert", "f32.gguf", "q.gguf", "--scheme", "ggml:q4_1", "--imatrix", "i.dat", "--no-provenance"],
    );
    let read = |path: &str| std::fs::read(at.join(path)).expect("a file");
    assert!(read("out/files/f32/q.gguf") == read("q.gguf"));
}

#[test]
fn missing_importance_is_told_or_stops_the_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_dat(
        &at.join("i.dat"),
        &source(at),
        |name| is_block(name) && name.contains("attn_q"),
        |_, value| value,
    );
    let arguments = ["convert", "f32.gguf", "q.gguf", "--scheme", "ggml:q4_0", "--imatrix", "i.dat"];
    let message = kbit_fails(at, 1, &[&arguments[..], &["--on-missing-importance", "error"]].concat());
    assert!(message.contains("blk.0.") && message.contains("--on-missing-importance warn"), "{message}");
    assert!(!message.contains("token_embd"), "{message}");
    assert!(!at.join("q.gguf").exists());
    let output = kbit_tests::kbit(at, &arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && message.contains("no importance for"), "{message}");
}

/// ggml's smallest types.
#[test]
fn a_scheme_that_cannot_do_without_importance_is_refused_before_work_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let model = repository("assets/family/s3");
    for scheme in ["ggml:iq2_xxs", "ggml:iq2_xs", "ggml:iq1_s", "awq:bits=3"] {
        for more in [&[][..], &["--dry-run"]] {
            let arguments = ["convert", &model, "q.gguf", "--scheme", scheme];
            let message = kbit_fails(at, 1, &[&arguments[..], more].concat());
            assert!(
                message.contains("needs an importance matrix") && message.contains("--imatrix"),
                "{scheme}: {message}"
            );
            assert!(message.contains("kbit calibrate"), "{scheme}: {message}");
        }
    }
    assert_eq!(std::fs::read_dir(at).expect("a folder").count(), 0);
}

/// The matrices of the blocks; for the others there is no importance.
#[test]
fn own_schemes_use_importance_and_do_not_depend_on_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_dat(&at.join("i.dat"), &source(at), is_block, |_, value| value);
    for scheme in ["awq:bits=3", "awq:bits=4,symmetric=false,grid=4", "vq:bits=6"] {
        let mut files = Vec::new();
        for threads in ["1", "3"] {
            let arguments = [
                "convert",
                "f32.gguf",
                "q.gguf",
                "--scheme",
                scheme,
                "--map",
                "^(token_embd|output)=int:bits=4",
            ];
            let more = ["--imatrix", "i.dat", "--threads", threads, "--overwrite"];
            let _ = kbit_ok(at, &[&arguments[..], &more].concat());
            let _ = kbit_ok(at, &["verify", "q.gguf"]);
            files.push(std::fs::read(at.join("q.gguf")).expect("a file"));
        }
        assert!(files[0] == files[1], "{scheme}");
    }
}

#[test]
fn damaged_and_foreign_importance_matrices_are_refused_before_work_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let tensors = source(at);
    let refused = |words: &str| {
        let message = kbit_fails(
            at,
            1,
            &["convert", "f32.gguf", "q.gguf", "--scheme", "ggml:q4_0", "--imatrix", "i.dat"],
        );
        assert!(message.contains("i.dat") && message.contains(words), "{message}");
        assert!(!at.join("q.gguf").exists() && !at.join("q.gguf.kbit-partial").exists());
        let message = kbit_fails(at, 1, &["inspect", "i.dat"]);
        assert!(message.contains("i.dat"), "{message}");
    };
    write_dat(
        &at.join("i.dat"),
        &tensors,
        is_block,
        |column, value| if column == 5 { f32::NAN } else { value },
    );
    refused("value 5 is NaN");
    write_dat(
        &at.join("i.dat"),
        &tensors,
        is_block,
        |column, value| if column == 3 { -value } else { value },
    );
    refused("no sum of squares");
    write_dat(&at.join("i.dat"), &tensors, is_block, |_, value| value);
    let bytes = std::fs::read(at.join("i.dat")).expect("a file");
    std::fs::write(at.join("i.dat"), &bytes[..bytes.len() / 2]).expect("written");
    refused("file");
    let other: Vec<_> =
        tensors.iter().map(|(name, shape)| (name.clone(), vec![1, shape[shape.len() - 1] + 1])).collect();
    write_dat(&at.join("i.dat"), &other, is_block, |_, value| value);
    let message =
        kbit_fails(at, 1, &["convert", "f32.gguf", "q.gguf", "--scheme", "ggml:q4_0", "--imatrix", "i.dat"]);
    assert!(message.contains("belongs to another model"), "{message}");
}
