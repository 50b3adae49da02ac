//! Agreement with llama.cpp's converter on the reference checkpoints.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_formats::Checkpoint;
use kbit_formats::gguf::{Gguf, TensorInfo, Value};
use kbit_models::{ConvertOptions, OutputTensor, convert};
use kbit_types::GgmlType;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    assert_reproduced(&folder, &folder.join("expected-f32.gguf"));
}

/// What `folder` becomes is what is in the file `expected`.
fn assert_reproduced(folder: &Path, expected: &Path) {
    let expected = Gguf::open(expected).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    let conversion = convert(&checkpoint, &ConvertOptions::default()).unwrap();

    // The converter leaves the file type out for GPT-NeoX alone.
    let file_type = expected.metadata().opt_u32("general.file_type").unwrap();
    let has_type = file_type.is_some();
    let found = conversion.metadata_for(file_type.or(Some(0)));
    let keys = |metadata: &kbit_formats::gguf::Metadata| -> Vec<String> {
        // What a tokenizer becomes is tested where it is made; `tests/tests/reference.rs` compares the whole file.
        metadata
            .iter()
            .map(|(key, _)| key.to_owned())
            .filter(|key| !key.starts_with("tokenizer.") && (has_type || key != "general.file_type"))
            .collect()
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
        assert_eq!(dims, theirs.dims, "{}", ours.name);
        if theirs.ty != GgmlType::F32 {
            assert_blocks_are_kept(&checkpoint, ours, &expected, theirs);
            continue;
        }
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

/// What the converter stores in blocks, though it was asked for f32, is stored in blocks of the checkpoint.
fn assert_blocks_are_kept(
    checkpoint: &Checkpoint,
    ours: &OutputTensor,
    expected: &Gguf,
    theirs: &TensorInfo,
) {
    assert_eq!(ours.expr.block_type(), Some(theirs.ty), "{}", ours.name);
    let shape = ours.expr.shape();
    let mut bytes = vec![0; theirs.bytes as usize];
    expected.read_at(theirs, 0, &mut bytes).unwrap();
    let slices = bytes.chunks_exact(bytes.len() / shape.slices as usize);
    for (slice, wanted) in slices.enumerate() {
        let mut found = vec![0; wanted.len()];
        ours.expr.read_blocks(checkpoint, slice as u64, 0..shape.rows, &mut found).unwrap();
        assert!(found == wanted, "{}: blocks of slice {slice} differ", ours.name);
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
    // What depends on the output is written anew by whoever knows the output.
    let source = checkpoint.gguf().unwrap().metadata();
    let kept: Vec<_> = source.iter().filter(|(key, _)| *key != "general.file_type").collect();
    let found: Vec<_> = conversion.metadata.iter().collect();
    assert!(found == kept, "metadata differ: {:?}", found.iter().map(|(key, _)| key).collect::<Vec<_>>());
    let names: Vec<&str> = conversion.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let first_block = names.iter().position(|name| name.starts_with("blk.")).unwrap();
    assert!(names[first_block..].iter().all(|name| name.starts_with("blk.")), "{names:?}");
    assert!(names[..first_block].is_sorted(), "{names:?}");
    let model = conversion.description.unwrap();
    assert_eq!((model.layers, model.hidden, model.vocab), (5, 64, 512));
}

/// Tiny checkpoints of architectures without reference data, which llama.cpp's converter converts here and now.
///
/// Runs where `KBIT_LLAMA_CPP` names llama.cpp's sources and `KBIT_PYTHON` (or `python3`) has torch, transformers, sentencepiece
/// and safetensors.
#[test]
fn reproduces_the_converter_on_random_checkpoints() {
    let Some(sources) = std::env::var_os("KBIT_LLAMA_CPP") else {
        eprintln!(
            "skipped: set KBIT_LLAMA_CPP to the sources of llama.cpp, and KBIT_PYTHON to a Python with torch"
        );
        return;
    };
    let python = std::env::var_os("KBIT_PYTHON").unwrap_or_else(|| "python3".into());
    let imports = "import torch, transformers, sentencepiece, safetensors";
    let has_torch =
        Command::new(&python).args(["-c", imports]).output().is_ok_and(|output| output.status.success());
    if !has_torch {
        eprintln!(
            "skipped: {python:?} has no torch, transformers, sentencepiece and safetensors; set KBIT_PYTHON"
        );
        return;
    }
    let (Some(bpe), Some(spm)) = (shared("reference/hf/olmo2"), shared("reference/hf/mixtral")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (tokenizers, out) = (folder.path().join("tokenizers"), folder.path().join("out"));
    std::fs::create_dir_all(&out).unwrap();
    for (from, kind, files) in [
        (bpe, "bpe", ["tokenizer.json", "tokenizer_config.json"]),
        (spm, "spm", ["tokenizer.model", "tokenizer_config.json"]),
    ] {
        std::fs::create_dir_all(tokenizers.join(kind)).unwrap();
        for file in files {
            std::fs::write(tokenizers.join(kind).join(file), std::fs::read(from.join(file)).unwrap())
                .unwrap();
        }
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/compare_converter.py");
    let output = Command::new(&python).arg(script).arg(sources).arg(&tokenizers).arg(&out).output().unwrap();
    let lines = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut compared = 0;
    let mut wrong = Vec::new();
    for line in lines.lines() {
        let Some(name) = line.strip_suffix(" ok") else {
            eprintln!("skipped: {line}");
            continue;
        };
        let (model, expected) = (out.join(name), out.join(format!("{name}.gguf")));
        if std::panic::catch_unwind(|| assert_reproduced(&model, &expected)).is_err() {
            wrong.push(name.to_owned());
        }
        compared += 1;
    }
    assert!(compared > 0, "the converter converted nothing:\n{lines}");
    assert!(wrong.is_empty(), "differ: {wrong:?}");
}
