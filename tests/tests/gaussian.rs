//! What every scheme loses of Gaussian weights, at the bits that it takes.

mod hollow;

use hollow::{Blocks, hollow_llama};
use kbit_formats::gguf::Gguf;
use kbit_scheme_kit::testing::gaussian;
use kbit_tests::kbit_ok;
use serde_json::Value as Json;
use std::path::Path;

const TENSOR: &str = "blk.0.ffn_up.weight";

/// A model of one block with a Gaussian matrix.
fn gaussian_model(folder: &Path, rows: u32, cols: u32) -> String {
    let blocks = Blocks { count: 1, hidden: cols, inner: rows, heads: 4 };
    hollow_llama(folder, "gaussian.gguf", &blocks, |writer, index, tensor, _| {
        if tensor.name == TENSOR {
            let values = gaussian(rows as usize * cols as usize);
            let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
            writer.write_at(index, 0, &bytes).expect("written");
        }
    });
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
    let model = gaussian_model(folder.path(), 32, 1024);
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

/// The table of docs/benchmarks.md: `cargo test --release -p kbit-tests --test gaussian -- --ignored --nocapture`.
#[test]
#[ignore = "a table to read, minutes of computing"]
#[expect(clippy::print_stdout, reason = "a table to read")]
fn every_scheme_on_a_large_matrix() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = gaussian_model(folder.path(), 1024, 4096);
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
    let found = schemes.into_iter().map(|scheme| (lost(folder.path(), &model, &scheme), scheme));
    let mut rows: Vec<((f64, f64), String)> = found.collect();
    rows.sort_by(|a, b| a.0.0.total_cmp(&b.0.0));
    println!("| bits | scheme | relative squared error | times the limit |\n|---|---|---|---|");
    for ((bits, error), scheme) in rows {
        println!("| {bits:.3} | `{scheme}` | {error:.5} | {:.2} |", error / 4f64.powf(-bits));
    }
}
