//! What every scheme loses of Gaussian weights, at the bits that it takes.

use kbit_formats::gguf::{Gguf, GgufLayout, GgufWriter, NewTensor, Value, WriteOptions};
use kbit_tests::{kbit_ok, repository};
use kbit_types::GgmlType;
use serde_json::Value as Json;
use std::path::Path;

const TENSOR: &str = "blk.0.ffn_up.weight";

/// A model of one block with a Gaussian matrix, sums of twelve uniform numbers; all others are zeros, which take no disk.
fn gaussian(folder: &Path, rows: u64, cols: u64) -> String {
    let _ = kbit_ok(folder, &["convert", &repository("assets/family/s0"), "s0.gguf", "--scheme", "f32"]);
    let small = Gguf::open(&folder.join("s0.gguf")).expect("a GGUF file");
    let mut metadata = small.metadata().clone();
    let vocab = small.tensor("token_embd.weight").expect("an embedding").dims[1];
    for (key, value) in [
        ("embedding_length", cols),
        ("feed_forward_length", rows),
        ("block_count", 1),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 4),
        ("rope.dimension_count", cols / 4),
    ] {
        metadata.insert(format!("llama.{key}"), Value::U32(u32::try_from(value).expect("small")));
    }
    for key in ["attention.key_length", "attention.value_length"] {
        let _ = metadata.remove(&format!("llama.{key}"));
    }
    let tensors: Vec<NewTensor> = [
        (TENSOR, vec![cols, rows]),
        ("token_embd.weight", vec![cols, vocab]),
        ("output_norm.weight", vec![cols]),
        ("blk.0.attn_norm.weight", vec![cols]),
        ("blk.0.attn_q.weight", vec![cols, cols]),
        ("blk.0.attn_k.weight", vec![cols, cols]),
        ("blk.0.attn_v.weight", vec![cols, cols]),
        ("blk.0.attn_output.weight", vec![cols, cols]),
        ("blk.0.ffn_norm.weight", vec![cols]),
        ("blk.0.ffn_gate.weight", vec![cols, rows]),
        ("blk.0.ffn_down.weight", vec![rows, cols]),
    ]
    .map(|(name, dims)| NewTensor { name: name.to_owned(), dims, ty: GgmlType::F32 })
    .into();
    let layout = GgufLayout::new(&metadata, &tensors, 32).expect("a layout");
    let options = WriteOptions { overwrite: false, keep_partial: false };
    let writer = GgufWriter::create(&layout, &folder.join("gaussian.gguf"), &options).expect("a file");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let values = (0..rows * cols).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0);
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    writer.write_at(0, 0, &bytes).expect("written");
    writer.finish().expect("finished");
    "gaussian.gguf".to_owned()
}

/// Bits a weight and relative squared error of the matrix in a scheme.
fn lost(folder: &Path, model: &str, scheme: &str) -> (f64, f64) {
    let others = "--map=attn|token_embd|ffn_gate|ffn_down=ggml:q8_0";
    let arguments = ["convert", model, "out.gguf", "--scheme", scheme, others, "--overwrite", "--json", "-q"];
    let found: Json = serde_json::from_str(&kbit_ok(folder, &arguments)).expect("JSON");
    assert_eq!(found["fallbacks"], Json::Array(Vec::new()), "{scheme}");
    let number = |value: &Json| value.as_f64().unwrap_or_else(|| panic!("{scheme}: {value} is no number"));
    let inspected = kbit_ok(folder, &["inspect", "out.gguf", "--tensors", "--json"]);
    let inspected: Json = serde_json::from_str(&inspected).expect("JSON");
    let parts = inspected["tensors"].as_array().expect("tensors").iter();
    let own = parts.filter(|part| part["name"].as_str().is_some_and(|name| name.starts_with(TENSOR)));
    let bytes: f64 = own.map(|part| number(&part["bytes"])).sum();
    let source = Gguf::open(&folder.join(model)).expect("a GGUF file");
    let weights: u64 = source.tensor(TENSOR).expect("the matrix").dims.iter().product();
    (bytes * 8.0 / weights as f64, number(&found["errors"][TENSOR]["relative_mse"]))
}

#[test]
fn no_scheme_loses_less_than_theory_allows_and_trellis_loses_little_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = gaussian(folder.path(), 32, 1024);
    for (scheme, most) in [
        ("trellis:bits=2,state_bits=10", 1.2),
        ("trellis:bits=3,state_bits=10", 1.23),
        ("ggml:q2_k", 3.6),
        ("ggml:q4_k", 3.0),
        ("ggml:iq4_xs", 2.8),
        ("int:bits=4,block=64", 4.0),
        ("quantile:bits=4,block=64", 4.0),
    ] {
        let (bits, error) = lost(folder.path(), &model, scheme);
        let times = error / 4f64.powf(-bits);
        assert!((1.0..most).contains(&times), "{scheme}: {error} at {bits} bits, {times} times the limit");
    }
}

/// The table of docs/guide/convert.md: `cargo test --release -p kbit-tests --test gaussian -- --ignored --nocapture`.
#[test]
#[ignore = "a table to read, minutes of computing"]
#[expect(clippy::print_stdout, reason = "a table to read")]
fn every_scheme_on_a_large_matrix() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = gaussian(folder.path(), 1024, 4096);
    let ggml = "iq1_m iq2_s q2_k iq3_xxs iq3_s q3_k iq4_xs iq4_nl q4_k q4_0 q4_1 q5_k q5_0 q5_1 q6_k q8_0 \
                tq1_0 tq2_0 mxfp4 nvfp4 q1_0 q2_0";
    let mut schemes: Vec<String> = ggml.split_whitespace().map(|name| format!("ggml:{name}")).collect();
    for bits in ["2", "2.5", "3", "3.5", "4"] {
        schemes.push(format!("trellis:bits={bits}"));
    }
    for bits in [2, 3, 4, 5, 6] {
        schemes.push(format!("int:bits={bits},block=64,scale_search=mse"));
        schemes.push(format!("quantile:bits={bits},block=64"));
        if bits > 2 {
            schemes.push(format!("float:bits={bits},block=64"));
        }
    }
    for (dim, bits) in [(4, 8), (2, 5), (2, 6), (2, 8), (2, 10)] {
        schemes.push(format!("vq:dim={dim},bits={bits}"));
    }
    let mut rows: Vec<(f64, f64, String)> = schemes
        .into_iter()
        .map(|scheme| {
            let (bits, error) = lost(folder.path(), &model, &scheme);
            (bits, error, scheme)
        })
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("| bits | scheme | relative squared error | times the limit |\n|---|---|---|---|");
    for (bits, error, scheme) in rows {
        println!("| {bits:.3} | `{scheme}` | {error:.5} | {:.2} |", error / 4f64.powf(-bits));
    }
}
