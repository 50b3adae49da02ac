//! Agreement with llama.cpp's converter on the reference checkpoints.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_formats::Checkpoint;
use kbit_formats::gguf::{Gguf, Value};
use kbit_models::{ConvertOptions, convert};
use kbit_types::GgmlType;
use std::path::{Path, PathBuf};

/// Shared data beside the repository, or one line saying what was not tested.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// Metadata, tensor names, order, shapes and bytes of `--outtype f32`.
fn reproduces(name: &str) {
    let Some(folder) = shared(&format!("reference/hf/{name}")) else { return };
    let expected = Gguf::open(&folder.join("expected-f32.gguf")).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let conversion = convert(&checkpoint, &ConvertOptions::default()).unwrap();

    let found = conversion.metadata_for(Some(0));
    let keys = |metadata: &kbit_formats::gguf::Metadata| -> Vec<String> {
        // What a tokenizer becomes is tested where it is made; `tests/tests/reference.rs` compares the whole file.
        metadata.iter().map(|(key, _)| key.to_owned()).filter(|key| !key.starts_with("tokenizer.")).collect()
    };
    assert_eq!(keys(&found), keys(expected.metadata()));
    for (key, value) in expected.metadata().iter().filter(|(key, _)| !key.starts_with("tokenizer.")) {
        let ours = found.get(key).unwrap();
        if let (Value::F32(ours), Value::F32(theirs)) = (ours, value) {
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{key}");
        }
        assert!(ours == value, "{key}: {:.200} against {:.200}", format!("{ours:?}"), format!("{value:?}"));
    }

    let names: Vec<&str> = conversion.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let wanted: Vec<&str> = expected.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, wanted);
    for (ours, theirs) in conversion.tensors.iter().zip(expected.tensors()) {
        let dims: Vec<u64> = ours.shape.iter().rev().copied().collect();
        assert_eq!((&dims, theirs.ty), (&theirs.dims, GgmlType::F32), "{}", ours.name);
        let shape = ours.expr.shape();
        let slice = (shape.rows * shape.cols) as usize;
        let mut values = vec![0.0f32; slice * shape.slices as usize];
        for (index, values) in values.chunks_exact_mut(slice).enumerate() {
            ours.expr.read_rows(&checkpoint, index as u64, 0..shape.rows, values).unwrap();
            // The same by slabs of three rows.
            for first in (0..shape.rows).step_by(3) {
                let last = (first + 3).min(shape.rows);
                let (start, end) = ((first * shape.cols) as usize, (last * shape.cols) as usize);
                let mut slab = vec![0.0; end - start];
                ours.expr.read_rows(&checkpoint, index as u64, first..last, &mut slab).unwrap();
                assert!(slab == values[start..end], "{}: rows {first}..{last}", ours.name);
            }
        }
        let mut bytes = vec![0; theirs.bytes as usize];
        expected.read_at(theirs, 0, &mut bytes).unwrap();
        let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        let wanted: Vec<u32> = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        assert!(bits == wanted, "{}: values differ", ours.name);
    }
}

/// One test an architecture.
macro_rules! reproduces_the_converter_on {
    ($($test:ident: $folder:literal),* $(,)?) => {
        $(#[test] fn $test() { reproduces($folder); })*
    };
}

reproduces_the_converter_on! {
    bloom: "bloom",
    gemma3: "gemma3",
    gpt2: "gpt2",
    gpt_oss: "gptoss",
    llama: "llama",
    llama_3_rope_scaling: "llama3-rope",
    mistral: "mistral",
    mixtral: "mixtral",
    olmo2: "olmo2",
    phi3: "phi3",
    qwen2: "qwen2",
    qwen3: "qwen3",
    qwen3_moe: "qwen3moe",
    smollm3: "smollm3",
    stablelm: "stablelm",
}

#[test]
fn a_gguf_keeps_its_metadata_and_orders_tensors_by_block() {
    let Some(path) = shared("models/stories260K-f32.gguf") else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let conversion = convert(&checkpoint, &ConvertOptions::default()).unwrap();
    assert_eq!(&conversion.metadata, checkpoint.gguf().unwrap().metadata());
    let names: Vec<&str> = conversion.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let first_block = names.iter().position(|name| name.starts_with("blk.")).unwrap();
    assert!(names[first_block..].iter().all(|name| name.starts_with("blk.")), "{names:?}");
    assert!(names[..first_block].is_sorted(), "{names:?}");
    let model = conversion.description.unwrap();
    assert_eq!((model.layers, model.hidden, model.vocab), (5, 64, 512));
}
