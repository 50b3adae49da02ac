//! File types and mixes from the command line. Where `KBIT_LLAMA_QUANTIZE` names llama-quantize, whole files are compared with its own.

use kbit_tests::{kbit_fails, kbit_in, kbit_ok, repository};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn json(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&kbit_ok(folder, arguments)).expect("JSON")
}

/// The plan for the model `model` of the family.
fn plan(folder: &Path, model: &str, scheme: &str, more: &[&str]) -> Value {
    let model = repository(&format!("assets/family/{model}"));
    json(folder, &[&["convert", &model, "x.gguf", "--scheme", scheme, "--dry-run", "--json"], more].concat())
}

/// How the tensor `name` is stored by a plan: the short name of its scheme or type.
fn stored(plan: &Value, name: &str) -> String {
    let tensors = plan["tensors"].as_array().expect("tensors");
    let found = tensors.iter().find(|tensor| tensor["tensor"] == name).expect("the tensor");
    let scheme = found["scheme"].as_str().expect("a scheme").to_uppercase();
    scheme.trim_start_matches("ORG.KBIT.GGML.").trim_end_matches("/1").to_owned()
}

/// A model of the family as GGUF, all f32.
fn as_f32(folder: &Path, model: &str) -> String {
    let name = format!("{model}-f32.gguf");
    let model = repository(&format!("assets/family/{model}"));
    let _ = kbit_ok(folder, &["convert", &model, &name, "--scheme", "f32", "--no-provenance"]);
    name
}

#[test]
fn a_file_type_chooses_by_tensor() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = plan(folder.path(), "s3", "Q4_K", &[]);
    assert_eq!(stored(&plan, "token_embd.weight"), "Q6_K");
    assert_eq!(stored(&plan, "blk.0.attn_k.weight"), "Q4_K");
    assert_eq!(stored(&plan, "blk.3.attn_v.weight"), "Q6_K");
    assert_eq!(stored(&plan, "blk.0.attn_norm.weight"), "F32");
}

#[test]
fn a_fallback_states_its_cost_in_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = plan(folder.path(), "s0", "q4_k_s", &[]);
    let fallbacks = plan["fallbacks"].as_array().expect("fallbacks");
    let query = fallbacks.iter().find(|f| f["tensor"] == "blk.0.attn_q.weight").expect("rows of 64");
    assert_eq!((&query["wanted"], &query["stored"]), (&"Q4_K".into(), &"Q5_0".into()));
    assert_eq!((&query["wanted_bits"], &query["bits"]), (&4.5.into(), &5.5.into()));
    let model = repository("assets/family/s0");
    let message = kbit_fails(
        folder.path(),
        1,
        &["convert", &model, "x.gguf", "--scheme", "q4_k_s", "--on-fallback", "error"],
    );
    assert!(message.contains("rows of 192 weights"), "{message}");
}

#[test]
fn options_and_maps_come_before_the_rules() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--map", "attn_v=q8_0", "--map", "ffn_up=int:bits=4,block=64", "--embedding-type", "bf16"];
    let plan = plan(folder.path(), "s1", "q4_0", &options);
    assert_eq!(stored(&plan, "token_embd.weight"), "BF16");
    assert_eq!(stored(&plan, "blk.0.attn_v.weight"), "Q8_0");
    assert_eq!(stored(&plan, "blk.0.attn_k.weight"), "Q4_0");
    assert_eq!(stored(&plan, "blk.0.ffn_up.weight"), "ORG.KBIT.INT");
}

#[test]
fn options_of_mixes_are_refused_with_other_schemes() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repository("assets/family/s0");
    let message = kbit_fails(folder.path(), 2, &["convert", &model, "x.gguf", "--scheme", "int", "--pure"]);
    assert!(message.contains("pure goes with a file type"), "{message}");
    let message = kbit_fails(
        folder.path(),
        2,
        &["convert", &model, "x.gguf", "--scheme", "q8_0", "--map", "attn=q4_k_m"],
    );
    assert!(message.contains("name a ggml type"), "{message}");
}

#[test]
fn types_that_need_importance_are_refused_with_their_tensors() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repository("assets/family/s3");
    let message = kbit_fails(folder.path(), 1, &["convert", &model, "x.gguf", "--scheme", "iq2_xxs"]);
    assert!(message.contains("importance") && message.contains("blk.0.attn_k.weight"), "{message}");
    assert!(!folder.path().join("x.gguf").exists());
    assert!(plan(folder.path(), "s3", "iq2_xxs", &[])["obstacle"].is_string());
}

#[test]
fn a_quantized_source_is_refused_unless_allowed_and_then_warned_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = as_f32(folder.path(), "s0");
    let _ = kbit_ok(folder.path(), &["convert", &source, "q8.gguf", "--scheme", "q8_0"]);
    let again = ["convert", "q8.gguf", "q4.gguf", "--scheme", "q4_0"];
    let message = kbit_fails(folder.path(), 1, &again);
    assert!(message.contains("--allow-requantize") && message.contains("(Q8_0)"), "{message}");
    let output = kbit_in(folder.path()).args(again).arg("--allow-requantize").output().expect("kbit starts");
    assert!(output.status.success());
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warning.contains("comes on top of the old one"), "{warning}");
    // Decoding loses nothing, and a copy neither.
    for scheme in ["f32", "copy", "q8_0"] {
        let _ =
            kbit_ok(folder.path(), &["convert", "q8.gguf", "again.gguf", "--scheme", scheme, "--overwrite"]);
    }
    let left =
        json(folder.path(), &["convert", "q8.gguf", "x.gguf", "--scheme", "copy", "--dry-run", "--json"]);
    assert_eq!(stored(&left, "blk.0.attn_q.weight"), "Q8_0");
}

#[test]
fn metadata_can_be_set_and_layers_pruned() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = as_f32(folder.path(), "s3");
    let options = ["--set-metadata", "general.name=str:Small", "--prune-layers", "1,2", "--no-provenance"];
    let arguments = [&["convert", &source, "pruned.gguf", "--scheme", "q8_0"], &options[..]].concat();
    let _ = kbit_ok(folder.path(), &arguments);
    let inspected = json(folder.path(), &["inspect", "pruned.gguf", "--tensors", "--metadata", "--json"]);
    let names: Vec<_> =
        inspected["tensors"].as_array().expect("tensors").iter().map(|t| &t["name"]).collect();
    assert!(
        names.contains(&&"blk.1.attn_q.weight".into()) && !names.contains(&&"blk.2.attn_q.weight".into())
    );
    let text = inspected["metadata"].to_string();
    assert!(text.contains("Small"), "{text}");
    let whole = json(folder.path(), &["inspect", &source, "--tensors", "--json"]);
    let last = |inspected: &Value, name: &str| {
        let tensors = inspected["tensors"].as_array().expect("tensors").clone();
        tensors.into_iter().find(|tensor| tensor["name"] == name).expect("the tensor")["shape"].clone()
    };
    assert_eq!(last(&inspected, "blk.1.attn_q.weight"), last(&whole, "blk.3.attn_q.weight"));
    let message = kbit_fails(
        folder.path(),
        2,
        &["convert", &source, "x.gguf", "--scheme", "q8_0", "--prune-layers", "9"],
    );
    assert!(message.contains("no layer 9"), "{message}");
}

#[test]
fn a_mix_of_ones_own_is_read_from_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "type: Q4_0\nrules:\n  - { role: values, block: ..1/2, type: Q8_0 }\n  - use: q4_0\n";
    std::fs::write(folder.path().join("own.yaml"), text).expect("written");
    let found = plan(folder.path(), "s1", "mix:own.yaml", &[]);
    assert_eq!(stored(&found, "blk.0.attn_v.weight"), "Q8_0");
    assert_eq!(stored(&found, "blk.1.attn_k.weight"), "Q4_0");
    std::fs::write(folder.path().join("own.yaml"), text.replace("role", "roll")).expect("written");
    let model = repository("assets/family/s1");
    let message = kbit_fails(folder.path(), 2, &["convert", &model, "x.gguf", "--scheme", "mix:own.yaml"]);
    assert!(message.contains("own.yaml:3:7: unknown key `roll`"), "{message}");
    assert!(message.contains("did you mean `role`?"), "{message}");
}

#[test]
fn file_types_and_mixes_run_from_a_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("own.yaml"), "type: Q5_0\nrules: [{ use: q5_0 }]\n").expect("written");
    let config = format!(
        "models: '{}'\nschemes:\n  - q8_0\n  - mix:own.yaml\n  - {{ scheme: q8_0, pure: true, label: plain }}\n",
        repository("assets/family/s0")
    );
    std::fs::write(folder.path().join("run.yaml"), config).expect("written");
    let found = json(folder.path(), &["run", "run.yaml", "--dry-run", "--json"]);
    let schemes: Vec<_> = found["files"].as_array().expect("files").iter().map(|f| &f["scheme"]).collect();
    assert_eq!(schemes, ["q8_0", "mix:own", "plain"]);
    let model = repository("assets/family/s0");
    let wrong = format!("models: '{model}'\nschemes: [{{ scheme: q8_0, output_type: q9_0 }}]\n");
    std::fs::write(folder.path().join("wrong.yaml"), wrong).expect("written");
    let message = kbit_fails(folder.path(), 2, &["config", "check", "wrong.yaml"]);
    assert!(message.contains("wrong.yaml:2:40: `output_type` cannot be `q9_0`"), "{message}");
}

/// llama-quantize's file types.
const FILE_TYPES: &[&str] = &[
    "f32",
    "f16",
    "bf16",
    "copy",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q2_k",
    "q2_k_s",
    "q3_k_s",
    "q3_k_m",
    "q3_k_l",
    "q4_k_s",
    "q4_k_m",
    "q5_k_s",
    "q5_k_m",
    "q6_k",
    "iq1_s",
    "iq1_m",
    "iq2_xxs",
    "iq2_xs",
    "iq2_s",
    "iq2_m",
    "iq3_xxs",
    "iq3_xs",
    "iq3_s",
    "iq3_m",
    "iq4_nl",
    "iq4_xs",
    "tq1_0",
    "tq2_0",
    "mxfp4_moe",
    "q1_0",
    "q2_0",
];

/// kbit's options, and llama-quantize's for the same.
const OPTIONS: &[(&[&str], &[&str])] = &[
    (&[], &[]),
    (&["--pure"], &["--pure"]),
    (
        &["--leave-output", "--map", "ffn_down=q8_0"],
        &["--leave-output-tensor", "--tensor-type", "ffn_down=q8_0"],
    ),
    (
        &["--prune-layers", "1", "--set-metadata", "llama.context_length=int:64"],
        &["--prune-layers", "1", "--override-kv", "llama.context_length=int:64"],
    ),
    (&["--imatrix", "importance.dat"], &["--imatrix", "importance.dat"]),
    (&["--output-type", "q8_0"], &["--output-tensor-type", "q8_0"]),
    (&["--embedding-type", "f16"], &["--token-embedding-type", "f16"]),
];

/// Importance for every matrix of `source`, in llama-imatrix's older format: entries of name, calls and values.
fn write_importance(folder: &Path, source: &str) {
    let inspected = json(folder, &["inspect", source, "--tensors", "--json"]);
    let tensors = inspected["tensors"].as_array().expect("tensors");
    let matrices: Vec<_> = tensors
        .iter()
        .filter(|tensor| tensor["shape"].as_array().is_some_and(|shape| shape.len() == 2))
        .collect();
    let number = |value: usize| i32::try_from(value).expect("a small number").to_le_bytes();
    let mut bytes = number(matrices.len()).to_vec();
    for (index, tensor) in matrices.iter().enumerate() {
        let name = tensor["name"].as_str().expect("a name");
        let columns = tensor["shape"][1].as_u64().expect("columns");
        bytes.extend(number(name.len()));
        bytes.extend(name.as_bytes());
        bytes.extend(number(1));
        bytes.extend(number(usize::try_from(columns).expect("columns")));
        for column in 0..columns {
            let step = u16::try_from((column * 37 + index as u64 * 11) % 97).expect("a remainder");
            bytes.extend((0.25 + f32::from(step) / 97.0).to_le_bytes());
        }
    }
    std::fs::write(folder.join("importance.dat"), bytes).expect("written");
}

#[test]
#[expect(clippy::print_stderr, reason = "a test says what it skipped or compared")]
fn files_are_those_of_llama_quantize_byte_for_byte() {
    let Ok(program) = std::env::var("KBIT_LLAMA_QUANTIZE") else {
        eprintln!("skipped: KBIT_LLAMA_QUANTIZE does not name llama-quantize");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let mut compared = 0;
    let mut no_encoder = Vec::new();
    for model in ["s0", "s3"] {
        let source = as_f32(folder.path(), model);
        write_importance(folder.path(), &source);
        for file_type in FILE_TYPES {
            for (ours, theirs) in OPTIONS {
                if ["f32", "f16", "bf16", "copy"].contains(file_type) && ours.contains(&"--map") {
                    continue;
                }
                let status = Command::new(&program)
                    .current_dir(folder.path())
                    .args(*theirs)
                    .args([&source, "theirs.gguf", &file_type.to_uppercase(), "1"])
                    .output()
                    .expect("llama-quantize starts");
                let arguments =
                    ["--no-provenance", "--no-error-statistics", "--overwrite", "--scheme", file_type];
                let output = kbit_in(folder.path())
                    .args(["convert", &source, "ours.gguf"])
                    .args(arguments)
                    .args(*ours)
                    .output()
                    .expect("kbit starts");
                let message = String::from_utf8_lossy(&output.stderr).into_owned();
                let what = format!("{model} {file_type} {}", ours.join(" "));
                if message.contains("no plugin encodes") {
                    no_encoder.push(what);
                    continue;
                }
                if !status.status.success() {
                    let theirs =
                        String::from_utf8_lossy(&[status.stdout, status.stderr].concat()).into_owned();
                    // It knows no stand-in for Q1_0, where kbit takes F16.
                    let no_fallback = theirs.contains("no tensor type fallback is defined");
                    let both_refuse = message.contains("importance") && theirs.contains("imatrix");
                    assert!(no_fallback || both_refuse, "{what}\n{message}\n{theirs}");
                    continue;
                }
                assert!(output.status.success(), "{what}: {message}");
                let read = |name: &str| std::fs::read(folder.path().join(name)).expect("a file");
                assert!(read("ours.gguf") == read("theirs.gguf"), "{what}: the files differ");
                compared += 1;
            }
        }
    }
    eprintln!("{compared} files compared; no encoder for {}: {}", no_encoder.len(), no_encoder.join(", "));
}
