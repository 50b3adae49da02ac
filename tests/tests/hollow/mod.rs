//! Models that are mostly a hole in their file: a Llama of any shape with a small model's vocabulary, and zeros wherever nothing is
//! written, which take no disk.

use kbit_formats::gguf::{Gguf, GgufLayout, GgufWriter, NewTensor, Value, WriteOptions};
use kbit_tests::{kbit_ok, repository};
use kbit_types::GgmlType;
use std::path::Path;

/// What the blocks of a model are like.
pub struct Blocks {
    pub count: u32,
    pub hidden: u32,
    pub inner: u32,
    pub heads: u32,
}

/// Writes `folder/name`, all in f32. `fill` is called for each tensor, with its number, and the small model.
pub fn hollow_llama(
    folder: &Path,
    name: &str,
    blocks: &Blocks,
    fill: impl Fn(&GgufWriter, usize, &NewTensor, &Gguf),
) {
    let _ = kbit_ok(folder, &["convert", &repository("assets/family/s0"), "s0.gguf", "--scheme", "f32"]);
    let small = Gguf::open(&folder.join("s0.gguf")).expect("a GGUF file");
    let mut metadata = small.metadata().clone();
    for (key, value) in [
        ("embedding_length", blocks.hidden),
        ("feed_forward_length", blocks.inner),
        ("block_count", blocks.count),
        ("attention.head_count", blocks.heads),
        ("attention.head_count_kv", blocks.heads),
        ("rope.dimension_count", blocks.hidden / blocks.heads),
    ] {
        metadata.insert(format!("llama.{key}"), Value::U32(value));
    }
    for key in ["attention.key_length", "attention.value_length"] {
        let _ = metadata.remove(&format!("llama.{key}"));
    }
    let vocab = small.tensor("token_embd.weight").expect("an embedding").dims[1];
    let (hidden, inner) = (u64::from(blocks.hidden), u64::from(blocks.inner));
    let mut tensors = vec![("token_embd.weight".to_owned(), vec![hidden, vocab])];
    tensors.push(("output_norm.weight".to_owned(), vec![hidden]));
    for block in 0..blocks.count {
        for (part, dims) in [
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, hidden]),
            ("attn_k", vec![hidden, hidden]),
            ("attn_v", vec![hidden, hidden]),
            ("attn_output", vec![hidden, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![hidden, inner]),
            ("ffn_up", vec![hidden, inner]),
            ("ffn_down", vec![inner, hidden]),
        ] {
            tensors.push((format!("blk.{block}.{part}.weight"), dims));
        }
    }
    let tensors: Vec<NewTensor> =
        tensors.into_iter().map(|(name, dims)| NewTensor { name, dims, ty: GgmlType::F32 }).collect();
    let layout = GgufLayout::new(&metadata, &tensors, 32).expect("a layout");
    let options = WriteOptions { overwrite: false, keep_partial: false };
    let writer = GgufWriter::create(&layout, &folder.join(name), &options).expect("a file");
    for (index, tensor) in tensors.iter().enumerate() {
        fill(&writer, index, tensor, &small);
    }
    writer.finish().expect("finished");
}
