//! `kbit calibrate`: importance matrices gathered by kbit's own engine.

use kbit_tests::{kbit_fails, kbit_ok, kl_divergence, repository, shared};
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

/// Every float of a GGUF file's tensors, by name.
fn tensors(path: &Path) -> Vec<(String, Vec<f32>)> {
    let gguf = kbit_formats::gguf::Gguf::open(path).expect("a GGUF file");
    let tensor = |info: &kbit_formats::gguf::TensorInfo| {
        let mut bytes = vec![0; usize::try_from(info.bytes).expect("small")];
        gguf.read_at(info, 0, &mut bytes).expect("read");
        let floats = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (info.name.clone(), floats)
    };
    gguf.tensors().iter().map(tensor).collect()
}

/// Gathers as llama-imatrix of ggml 0.25.3 has gathered the file `tests/data/{name}.llama-imatrix.gguf`, run with keys and values in f32 and
/// without its blocked attention, in windows of 128 tokens: `-c 128 -b 128 --chunks N -ctk f32 -ctv f32 -fa off`.
fn has_the_figures_of_llama_imatrix(name: &str, model: &str, chunks: &str, count: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--context", "128", "--chunks", chunks];
    let _ = gathered(folder.path(), model, &[TEXT], &options, "own.gguf");
    let own = tensors(&folder.path().join("own.gguf"));
    let theirs = tensors(Path::new(&repository(&format!("tests/data/{name}.llama-imatrix.gguf"))));
    assert_eq!(own.len(), count, "{name}");
    for ((tensor, own), (other, theirs)) in own.iter().zip(&theirs) {
        assert_eq!((tensor, own.len()), (other, theirs.len()), "{name}");
        for (column, (own, theirs)) in own.iter().zip(theirs).enumerate() {
            // Sums there are in single precision.
            assert!((own / theirs - 1.0).abs() < 1e-4, "{name}, {tensor}, column {column}: {own}, {theirs}");
        }
    }
}

#[test]
fn figures_are_those_of_llama_imatrix() {
    has_the_figures_of_llama_imatrix("s0", "assets/family/s0", "8", 28);
}

/// Each expert has a row of its own, and counts of its own tokens.
#[test]
fn figures_of_experts_are_those_of_llama_imatrix() {
    for name in ["mixtral", "qwen3moe"] {
        let Some(model) = shared(&format!("reference/hf/{name}")) else { return };
        has_the_figures_of_llama_imatrix(name, model.to_str().expect("UTF-8"), "24", 32);
    }
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

    let options = [&options[..], &["--second-moments"]].concat();
    for (texts, out) in [(&[TEXT][..], "a2.gguf"), (&[other], "b2.gguf"), (&[TEXT, other], "both2.gguf")] {
        let _ = gathered(folder.path(), "assets/family/s0", texts, &options, out);
    }
    let merge = ["calibrate", "--merge", "a2.gguf", "--merge", "b2.gguf", "-o", "merged2.gguf", "--json"];
    let merged: Value = serde_json::from_str(&kbit_ok(folder.path(), &merge)).expect("JSON");
    assert!(merged["moments"].as_u64() > Some(0) && merged["moments"] == merged["tensors"], "{merged}");
    assert_eq!(bytes(folder.path(), "merged2.gguf").len(), bytes(folder.path(), "both2.gguf").len());
    // A file without second moments takes those of the others along, and is named.
    let merge = ["calibrate", "--merge", "a2.gguf", "--merge", "b.gguf", "-o", "merged3.gguf"];
    let text = kbit_ok(folder.path(), &merge);
    assert!(text.contains("b.gguf has no second moments"), "{text}");
    assert_eq!(bytes(folder.path(), "merged3.gguf").len(), bytes(folder.path(), "both.gguf").len());
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

/// Mean divergence of `file` from the f32 model, on a text that nothing was gathered on.
fn divergence(folder: &Path, reference: &str, file: &str) -> f64 {
    kl_divergence(folder, file, reference, &repository("assets/text/prose.txt"), "128")
}

#[test]
fn second_moments_stand_beside_the_sums_of_a_plain_gathering() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--context", "64", "--chunks", "12"];
    let _ = gathered(folder.path(), "assets/family/s0", &[TEXT], &options, "plain.gguf");
    let with = [&options[..], &["--second-moments"]].concat();
    let found = gathered(folder.path(), "assets/family/s0", &[TEXT], &with, "moments.gguf");
    assert_eq!(
        (&found["tensors"], &found["moments"], &found["windows"]),
        (&14.into(), &14.into(), &12.into())
    );
    let three = [&with[..], &["--threads", "3"]].concat();
    let _ = gathered(folder.path(), "assets/family/s0", &[TEXT], &three, "three.gguf");
    assert_eq!(bytes(folder.path(), "moments.gguf"), bytes(folder.path(), "three.gguf"));

    let plain = tensors(&folder.path().join("plain.gguf"));
    let all = tensors(&folder.path().join("moments.gguf"));
    assert_eq!(all[..plain.len()], plain, "the sums and counts");
    // Six inputs a block: of q; of k and of v, by attention; of the attention's output; of gate and up; of down.
    let moments = &all[plain.len()..];
    let names: Vec<&str> = moments.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [0, 1].map(|block| {
        ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down"]
            .map(|part| format!("blk.{block}.{part}.weight.moments"))
    });
    assert_eq!(names, expected.as_flattened());
    for (name, triangle) in moments {
        let tensor = name.trim_end_matches(".moments");
        let sums = &plain.iter().find(|(name, _)| *name == format!("{tensor}.in_sum2")).expect("sums").1;
        assert_eq!(triangle.len(), sums.len() * (sums.len() + 1) / 2);
        let mut at = 0;
        for (column, sum) in sums.iter().enumerate() {
            at += column;
            let mean = sum / (12.0 * 64.0);
            let ratio = triangle[at + column] / mean;
            // Products of a batch are added in single precision. Values see weighted means of inputs, and what counts of keys has a sum below
            // 1 for each query: both are about the plain means or below.
            let by_attention = tensor.ends_with("attn_k.weight") || tensor.ends_with("attn_v.weight");
            let expected = if by_attention { 0.0..1.5 } else { 1.0 - 1e-5..1.0 + 1e-5 };
            assert!(expected.contains(&ratio), "{name}, column {column}: {ratio}");
        }
    }
    let inspected = kbit_ok(folder.path(), &["inspect", "moments.gguf"]);
    assert!(inspected.contains("second moments of the inputs of 14 tensors"), "{inspected}");
}

#[test]
fn error_feedback_loses_less_than_rounding_in_the_same_layout() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--context", "128", "--second-moments"];
    let _ = gathered(folder.path(), "assets/family/s1", &[TEXT], &options, "s1.gguf");
    let model = repository("assets/family/s1");
    let convert = |scheme: &str, out: &str| {
        let arguments = [
            "convert",
            &model,
            out,
            "--scheme",
            scheme,
            "--imatrix",
            "s1.gguf",
            "--map",
            "token_embd=ggml:q8_0",
        ];
        let _ = kbit_ok(folder.path(), &arguments);
        divergence(folder.path(), &model, out)
    };
    for (rounded, fed_back) in [
        ("int:bits=3,block=32,scale_search=mse", "gptq:bits=3,block=32"),
        ("int:bits=4,block=64,scale_search=mse", "gptq:bits=4,block=64"),
        ("int:bits=3,block=32,symmetric=false", "gptq:bits=3,block=32,symmetric=false,act_order=true"),
        ("ggml:q4_0", "gptq:q4_0"),
        ("trellis:bits=3,state_bits=9,feedback=false", "trellis:bits=3,state_bits=9"),
    ] {
        let (before, after) = (convert(rounded, "rounded.gguf"), convert(fed_back, "fed.gguf"));
        std::fs::remove_file(folder.path().join("rounded.gguf")).expect("removed");
        std::fs::remove_file(folder.path().join("fed.gguf")).expect("removed");
        assert!(after < 0.9 * before, "{fed_back}: {after}, {rounded}: {before}");
    }
}

#[test]
fn error_feedback_without_second_moments_says_how_to_get_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repository("assets/family/s0");
    let message = kbit_fails(folder.path(), 1, &["convert", &model, "x.gguf", "--scheme", "gptq:bits=4"]);
    assert!(message.contains("blk.0.") && message.contains("kbit calibrate --second-moments"), "{message}");
    let options = ["--context", "64", "--chunks", "2"];
    let _ = gathered(folder.path(), "assets/family/s0", &[TEXT], &options, "plain.gguf");
    let plain = ["convert", &model, "x.gguf", "--scheme", "gptq:q4_0", "--imatrix", "plain.gguf"];
    let message = kbit_fails(folder.path(), 1, &plain);
    assert!(message.contains("second moments of its inputs"), "{message}");
    assert!(!folder.path().join("x.gguf").exists());

    let with = [&options[..], &["--second-moments"]].concat();
    let _ = gathered(folder.path(), "assets/family/s0", &[TEXT], &with, "moments.gguf");
    let convert =
        ["convert", &model, "x.gguf", "--scheme", "gptq:q4_0", "--imatrix", "moments.gguf", "--json"];
    let found: Value = serde_json::from_str(&kbit_ok(folder.path(), &convert)).expect("JSON");
    assert!(
        found.to_string().contains("second moments are gathered for matrices in blocks alone"),
        "{found}"
    );
    let other = repository("assets/family/s1");
    let other = ["convert", &other, "y.gguf", "--scheme", "gptq:q4_0", "--imatrix", "moments.gguf"];
    let message = kbit_fails(folder.path(), 1, &other);
    assert!(message.contains("moments"), "{message}");
}
