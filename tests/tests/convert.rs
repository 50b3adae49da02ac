//! `kbit convert`, `inspect`, `diff`, `verify` on the embedded models: what is written can be read back by others.

use kbit_tests::{has_python_gguf, kbit_fails, kbit_ok, repository, root};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// One setting of every bundled scheme.
const SCHEMES: &[&str] = &[
    "ggml:f32",
    "ggml:f16",
    "ggml:bf16",
    "ggml:q8_0",
    "ggml:q4_0",
    "ggml:q4_1",
    "ggml:q5_0",
    "ggml:q5_1",
    "int:bits=4,block=64",
    "int:bits=2,symmetric=false,block=32",
    "int:bits=3,granularity=tensor",
    "int:bits=5,granularity=flat,block=128,scale_bits=8",
    "float:bits=4",
    "quantile:bits=4",
    "quantile:bits=3,codebook=empirical",
    "dynamic:bits=6",
    "ternary",
    "hqq:bits=3",
    "trellis:bits=3,state_bits=10",
    "vq",
    "vq:dim=2,bits=4,stages=2,norm=absmax",
    "c-rtn",
];

fn convert(folder: &Path, scheme: &str) -> String {
    let name = format!("{}.gguf", scheme.replace([':', '=', ','], "-"));
    let _ =
        kbit_ok(folder, &["convert", &repository("assets/family/s0"), &name, "--scheme", scheme, "--json"]);
    name
}

#[test]
fn every_scheme_writes_a_file_that_verifies_and_evaluates() {
    let folder = tempfile::tempdir().expect("a folder");
    for scheme in SCHEMES {
        let name = convert(folder.path(), scheme);
        let _ = kbit_ok(folder.path(), &["verify", &name]);
        let text = repository("assets/text/prose.txt");
        let arguments = [
            "eval",
            &name,
            "--metric",
            "perplexity",
            "--text",
            &text,
            "--context",
            "128",
            "--chunks",
            "2",
            "--json",
        ];
        let found: Value = serde_json::from_str(&kbit_ok(folder.path(), &arguments)).expect("JSON");
        let perplexity = found["value"].as_f64().expect("a value");
        // A uniform guess over the vocabulary has perplexity 2048; two bits over a whole tensor come near it.
        assert!(perplexity > 20.0 && perplexity < 20_000.0, "{scheme}: {perplexity}");
    }
}

#[test]
fn gguf_rs_reads_the_same_tensors_and_metadata() {
    let folder = tempfile::tempdir().expect("a folder");
    for scheme in ["ggml:q4_0", "int:bits=3,block=64", "quantile:bits=4,codebook=empirical"] {
        let name = convert(folder.path(), scheme);
        let path = folder.path().join(&name);
        let mut container = gguf_rs::get_gguf_container(path.to_str().expect("UTF-8")).expect("a container");
        let model = container.decode().expect("a model");
        let inspected: Value = serde_json::from_str(&kbit_ok(
            folder.path(),
            &["inspect", &name, "--tensors", "--metadata", "--json"],
        ))
        .expect("JSON");
        let tensors = inspected["tensors"].as_array().expect("tensors");
        assert_eq!(tensors.len(), model.tensors().len());
        for (ours, theirs) in tensors.iter().zip(model.tensors()) {
            assert_eq!(ours["name"], theirs.name.as_str());
            let dims: Vec<u64> = theirs.shape.iter().copied().filter(|axis| *axis > 0).collect();
            let shape: Vec<u64> =
                ours["shape"].as_array().expect("shape").iter().rev().filter_map(Value::as_u64).collect();
            // gguf-rs pads shapes with ones.
            assert!(
                dims.starts_with(&shape) && dims[shape.len()..].iter().all(|axis| *axis == 1),
                "{dims:?} {shape:?}"
            );
        }
        let metadata = inspected["metadata"].as_object().expect("metadata");
        for key in ["general.architecture", "llama.block_count", "tokenizer.ggml.model"] {
            assert!(metadata.contains_key(key) && model.metadata().contains_key(key), "{key}");
        }
    }
}

#[test]
fn python_gguf_reads_the_same_tensors_and_metadata() {
    if !has_python_gguf() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for scheme in ["ggml:q5_1", "int:bits=3,block=64", "ternary"] {
        let name = convert(folder.path(), scheme);
        let inspected = kbit_ok(folder.path(), &["inspect", &name, "--tensors", "--metadata", "--json"]);
        std::fs::write(folder.path().join("inspected.json"), inspected).expect("written");
        let script = root().join("tests/python/compare_gguf.py");
        let output = Command::new("python3")
            .arg(script)
            .args([&name, "inspected.json"])
            .current_dir(folder.path())
            .output()
            .expect("python3 starts");
        assert!(output.status.success(), "{scheme}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    for scheme in ["int:bits=4,block=64", "quantile:bits=3,codebook=empirical", "ggml:q4_1", "vq:bits=6"] {
        let source = repository("assets/family/s1");
        for threads in ["1", "2", "5"] {
            let out = format!("t{threads}.gguf");
            let _ = kbit_ok(
                folder.path(),
                &["convert", &source, &out, "--scheme", scheme, "--threads", threads, "--overwrite"],
            );
        }
        let read = |name: &str| std::fs::read(folder.path().join(name)).expect("a file");
        assert!(read("t1.gguf") == read("t2.gguf") && read("t1.gguf") == read("t5.gguf"), "{scheme}");
    }
}

#[test]
fn isolation_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = repository("assets/family/s0");
    for (out, isolation) in [("a.gguf", "none"), ("b.gguf", "process")] {
        let _ = kbit_ok(
            folder.path(),
            &["convert", &source, out, "--scheme", "int:bits=4,block=64", "--isolation", isolation],
        );
    }
    let read = |name: &str| std::fs::read(folder.path().join(name)).expect("a file");
    assert!(read("a.gguf") == read("b.gguf"));
}

#[test]
fn an_existing_output_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("out.gguf"), "precious").expect("written");
    let source = repository("assets/family/s0");
    let message = kbit_fails(folder.path(), 1, &["convert", &source, "out.gguf", "--scheme", "ggml:q8_0"]);
    assert!(message.contains("out.gguf") && message.contains("overwrite"), "{message}");
    assert_eq!(std::fs::read(folder.path().join("out.gguf")).expect("a file"), b"precious");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn diff_tells_equal_files_from_different_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let a = convert(folder.path(), "ggml:q4_0");
    let b = convert(folder.path(), "ggml:q8_0");
    let same: Value =
        serde_json::from_str(&kbit_ok(folder.path(), &["diff", &a, &a, "--json"])).expect("JSON");
    assert_eq!(same["equal"], true);
    let output = kbit_tests::kbit(folder.path(), &["diff", &a, &b, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let other: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(other["equal"], false);
}

#[test]
fn verify_names_a_damaged_tensor() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = convert(folder.path(), "ggml:q4_0");
    let path = folder.path().join(&name);
    let mut bytes = std::fs::read(&path).expect("a file");
    let last = bytes.len() - 40;
    bytes[last] ^= 0x10;
    std::fs::write(&path, bytes).expect("written");
    let output = kbit_tests::kbit(folder.path(), &["verify", &name]);
    assert_eq!(output.status.code(), Some(1));
    let all = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(all.contains("blk.") || all.contains("output") || all.contains("token_embd"), "{all}");
}

#[test]
fn the_dry_run_states_the_size_that_is_then_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = repository("assets/family/s2");
    for scheme in ["ggml:q5_0", "int:bits=3,block=128,scale_bits=8", "dynamic:bits=5"] {
        let plan = kbit_ok(
            folder.path(),
            &["convert", &source, "x.gguf", "--scheme", scheme, "--dry-run", "--json"],
        );
        assert!(!folder.path().join("x.gguf").exists());
        let plan: Value = serde_json::from_str(&plan).expect("JSON");
        let _ = kbit_ok(folder.path(), &["convert", &source, "x.gguf", "--scheme", scheme]);
        let size = std::fs::metadata(folder.path().join("x.gguf")).expect("a file").len();
        assert_eq!(plan["file_bytes"].as_u64(), Some(size), "{scheme}");
        std::fs::remove_file(folder.path().join("x.gguf")).expect("removed");
    }
}

/// Experts in MXFP4 become blocks of the same codes and scales; as anything else, they are decoded.
#[test]
fn mxfp4_experts_keep_their_codes_and_scales() {
    const EXPERTS: usize = 2;
    const HIDDEN: usize = 64;
    const WIDTH: usize = 32;
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    std::fs::create_dir(at.join("model")).expect("a folder");
    let config = serde_json::json!({
        "architectures": ["GptOssForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 40, "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1, "tie_word_embeddings": false, "quantization_config": { "quant_method": "mxfp4" }
    });
    std::fs::write(at.join("model/config.json"), config.to_string()).expect("written");
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    let mut add = |name: &str, dtype: &str, shape: &[usize], byte: &dyn Fn(usize) -> u8| {
        let start = data.len();
        let bytes = shape.iter().product::<usize>() * if dtype == "F32" { 4 } else { 1 };
        data.extend((0..bytes).map(byte));
        let place =
            serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] });
        assert!(header.insert(name.to_owned(), place).is_none());
        data[start..].to_vec()
    };
    // Floats of 2^-63, whose bytes are all the same but one.
    let float = |at: usize| [0, 0, 0, 0x20][at % 4];
    for (name, shape) in [
        ("model.embed_tokens", &[40, HIDDEN][..]),
        ("lm_head", &[40, HIDDEN]),
        ("model.norm", &[HIDDEN]),
        ("model.layers.0.input_layernorm", &[HIDDEN]),
        ("model.layers.0.post_attention_layernorm", &[HIDDEN]),
        ("model.layers.0.self_attn.q_proj", &[HIDDEN, HIDDEN]),
        ("model.layers.0.self_attn.k_proj", &[32, HIDDEN]),
        ("model.layers.0.self_attn.v_proj", &[32, HIDDEN]),
        ("model.layers.0.self_attn.o_proj", &[HIDDEN, HIDDEN]),
        ("model.layers.0.mlp.router", &[EXPERTS, HIDDEN]),
    ] {
        let _ = add(&format!("{name}.weight"), "F32", shape, &float);
    }
    for (name, shape) in [
        ("self_attn.sinks", &[4][..]),
        ("self_attn.q_proj.bias", &[HIDDEN]),
        ("self_attn.k_proj.bias", &[32]),
        ("self_attn.v_proj.bias", &[32]),
        ("self_attn.o_proj.bias", &[HIDDEN]),
        ("mlp.router.bias", &[EXPERTS]),
        ("mlp.experts.gate_up_proj_bias", &[EXPERTS, 2 * WIDTH]),
        ("mlp.experts.down_proj_bias", &[EXPERTS, HIDDEN]),
    ] {
        let _ = add(&format!("model.layers.0.{name}"), "F32", shape, &float);
    }
    let code = |at: usize| ((at as u32).wrapping_mul(0x9e37_79b1) >> 11) as u8;
    // Among them scales that no encoder would choose for such codes.
    let scale = |at: usize| 110 + (at * 7 % 30) as u8;
    let experts = "model.layers.0.mlp.experts";
    let blocks = add(&format!("{experts}.gate_up_proj_blocks"), "U8", &[EXPERTS, 2 * WIDTH, 2, 16], &code);
    let scales = add(&format!("{experts}.gate_up_proj_scales"), "U8", &[EXPERTS, 2 * WIDTH, 2], &scale);
    let _ = add(&format!("{experts}.down_proj_blocks"), "U8", &[EXPERTS, HIDDEN, 1, 16], &code);
    let _ = add(&format!("{experts}.down_proj_scales"), "U8", &[EXPERTS, HIDDEN, 1], &scale);
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(at.join("model/model.safetensors"), file).expect("written");

    let options = ["--without-tokenizer", "--no-provenance"];
    let convert = |to: &str, scheme: &str| {
        let _ = kbit_ok(at, &[&["convert", "model", to, "--scheme", scheme], &options[..]].concat());
        std::fs::read(at.join(to)).expect("a file")
    };
    // The gate has the even rows. A block begins with its scale; byte i holds codes i and i + 16.
    let mut wanted = Vec::new();
    for row in (0..EXPERTS * 2 * WIDTH).step_by(2) {
        for group in 2 * row..2 * row + 2 {
            let code = |index: usize| blocks[group * 16 + index / 2] >> (4 * (index % 2)) & 15;
            wanted.push(scales[group]);
            wanted.extend((0..16).map(|index| code(index) | code(index + 16) << 4));
        }
    }
    let holds = |file: &[u8]| file.windows(wanted.len()).any(|bytes| bytes == wanted);
    assert!(holds(&convert("mxfp4.gguf", "ggml:mxfp4")), "the blocks differ");
    assert!(!holds(&convert("f16.gguf", "ggml:f16")));
}
