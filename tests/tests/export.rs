//! `kbit export`: a GGUF file as a Hugging Face folder.

use kbit_tests::{kbit_fails, kbit_ok, repository, root};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;

fn convert(folder: &Path, scheme: &str, out: &str) {
    let model = repository("assets/family/s0");
    let _ = kbit_ok(folder, &["convert", &model, out, "--scheme", scheme, "--no-provenance"]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    convert(at, "ggml:bf16", "s0.gguf");
    let exported = kbit_ok(at, &["export", "s0.gguf", "out", "--json"]);
    let exported: Value = serde_json::from_str(&exported).expect("JSON");
    assert_eq!(exported["dtype"], "BF16");
    assert_eq!(exported["wider"], serde_json::json!([]));
    let read =
        |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let original = read(&root().join("assets/family/s0/model.safetensors"));
    let again = read(&at.join("out/model.safetensors"));
    let original = SafeTensors::deserialize(&original).expect("safetensors");
    let again = SafeTensors::deserialize(&again).expect("safetensors");
    assert_eq!(original.len(), again.len());
    for (name, tensor) in original.tensors() {
        let other = again.tensor(&name).unwrap_or_else(|_| panic!("{name} is missing"));
        assert_eq!((tensor.dtype(), tensor.shape()), (other.dtype(), other.shape()), "{name}");
        assert!(tensor.data() == other.data(), "{name}");
    }
    let config = |path: &Path| -> Value { serde_json::from_slice(&read(path)).expect("JSON") };
    let original = config(&root().join("assets/family/s0/config.json"));
    let again = config(&at.join("out/config.json"));
    for (key, value) in original.as_object().expect("an object") {
        match value.as_f64() {
            // 1e-05 and 0.00001 are one number.
            Some(number) => assert_eq!(again[key].as_f64(), Some(number), "{key}"),
            None => assert_eq!(&again[key], value, "{key}"),
        }
    }
}

#[test]
fn an_exported_folder_converts_to_the_file_that_it_came_from() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for scheme in ["ggml:bf16", "ggml:f16", "ggml:f32"] {
        convert(at, scheme, "s0.gguf");
        // The name of the folder becomes the name of the model.
        std::fs::create_dir(at.join("hf")).expect("a folder");
        let _ = kbit_ok(at, &["export", "s0.gguf", "hf/s0"]);
        let _ = kbit_ok(at, &["convert", "hf/s0", "again.gguf", "--scheme", scheme, "--no-provenance"]);
        let output = kbit_tests::kbit(at, &["diff", "s0.gguf", "again.gguf"]);
        assert!(output.status.success(), "{scheme}: {}", String::from_utf8_lossy(&output.stdout));
        for name in ["s0.gguf", "again.gguf"] {
            std::fs::remove_file(at.join(name)).expect("removed");
        }
        std::fs::remove_dir_all(at.join("hf")).expect("removed");
    }
}

#[test]
fn quantized_tensors_become_exactly_what_they_decode_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    convert(at, "ggml:q4_0", "q.gguf");
    let exported = kbit_ok(at, &["export", "q.gguf", "out", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&exported).expect("JSON")["dtype"], "F32");
    let logits = |model: &str, out: &str| {
        let _ = kbit_ok(at, &["logits", model, "--tokens", "5,17,4,99,1000", "--out", out]);
        std::fs::read(at.join(out)).expect("logits")
    };
    assert!(logits("q.gguf", "a.safetensors") == logits("out", "b.safetensors"));
    let half = kbit_ok(at, &["export", "q.gguf", "half", "--dtype", "f16", "--json"]);
    let half: Value = serde_json::from_str(&half).expect("JSON");
    assert_eq!(half["dtype"], "F16");
    let bare = kbit_ok(at, &["export", "q.gguf", "bare", "--without-tokenizer", "--json"]);
    assert!(!bare.contains("tokenizer"), "{bare}");
    assert_eq!(names(&at.join("bare")), ["config.json", "generation_config.json", "model.safetensors"]);
    let tokens = |model: &str| {
        kbit_ok(at, &["tokenize", model, "--text", &repository("assets/text/prose.txt"), "--json"])
    };
    assert_eq!(tokens("q.gguf"), tokens("half"));
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    convert(at, "ggml:q8_0", "q.gguf");
    convert(at, "int:bits=4,block=64", "packed.gguf");
    std::fs::create_dir(at.join("there")).expect("a folder");
    std::fs::write(at.join("there/precious"), "precious").expect("written");
    let before = names(at);
    let message = kbit_fails(at, 1, &["export", "q.gguf", "there"]);
    assert!(message.contains("there") && message.contains("exists"), "{message}");
    assert_eq!(names(&at.join("there")), ["precious"]);
    let message = kbit_fails(at, 1, &["export", "packed.gguf", "out"]);
    assert!(message.contains("packed"), "{message}");
    let message = kbit_fails(at, 1, &["export", &repository("assets/family/s0"), "out"]);
    assert!(message.contains("not GGUF"), "{message}");
    let _ = kbit_ok(at, &["gguf", "set", "q.gguf", "llama.attention.sliding_window=u32:64"]);
    let message = kbit_fails(at, 1, &["export", "q.gguf", "out"]);
    assert!(message.contains("llama.attention.sliding_window"), "{message}");
    let bytes = std::fs::read(at.join("q.gguf")).expect("a file");
    std::fs::write(at.join("q.gguf"), &bytes[..bytes.len() - 4096]).expect("written");
    let message = kbit_fails(at, 1, &["export", "q.gguf", "out"]);
    assert!(message.contains("q.gguf"), "{message}");
    assert_eq!(names(at), before);
}
