//! Models for the tests: from GGUF files, from Hugging Face folders, and made of random numbers.
#![allow(dead_code, reason = "each test program uses a part of it")]

use kbit_blocks::BlockCodec;
use kbit_engine::{Description, Model};
use kbit_formats::Checkpoint;
use kbit_formats::gguf::{Gguf, Metadata};
use kbit_models::{Conversion, ConvertOptions, Role};
use kbit_types::{Codec, CodecError, GgmlType, MatrixShape};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A file or folder of the reference data beside the repository; says so where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let full = repository().join("../shared").join(path);
    if !full.exists() {
        println!("skipped: there is no ../shared/{path} beside the repository");
        return None;
    }
    Some(full)
}

/// A matrix of f32 in memory.
pub struct Plain {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
    /// Rows that have to be decoded together.
    pub group: u64,
    /// Whether it shows its floats, or only decodes them.
    pub open: bool,
}

impl Plain {
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        Self { rows, cols, data, group: 1, open: true }
    }
}

impl Codec for Plain {
    fn shape(&self) -> MatrixShape {
        MatrixShape::dense(self.rows as u64, self.cols as u64)
    }

    fn row_group(&self) -> u64 {
        self.group
    }

    fn decode(&self, rows: Range<u64>, out: &mut [f32], stride: usize) -> Result<(), CodecError> {
        assert!(rows.start.is_multiple_of(self.group), "rows {rows:?} in groups of {}", self.group);
        for (row, out) in rows.zip(out.chunks_mut(stride)) {
            out[..self.cols].copy_from_slice(&self.data[row as usize * self.cols..][..self.cols]);
        }
        Ok(())
    }

    fn as_f32(&self) -> Option<&[f32]> {
        self.open.then_some(&self.data[..])
    }
}

/// Tensors of a model by GGUF name, a codec for each slice.
pub type Tensors = HashMap<String, Vec<Arc<dyn Codec>>>;

pub fn model(description: &Description, tensors: &Tensors) -> Model {
    Model::new(description.clone(), &mut |name| Ok(tensors.get(name).cloned())).unwrap()
}

/// A GGUF file of ggml types.
pub fn load_gguf(path: &Path) -> (Model, Metadata) {
    let gguf = Gguf::open(path).unwrap();
    let description = kbit_models::describe(gguf.metadata(), &|name| gguf.tensor(name).is_some()).unwrap();
    let mut tensors = |name: &str| {
        let Some(info) = gguf.tensor(name) else { return Ok(None) };
        let mut bytes = vec![0; info.bytes as usize];
        gguf.read_at(info, 0, &mut bytes).unwrap();
        let (cols, rows) = (info.dims[0], info.dims.get(1).copied().unwrap_or(1));
        let slices: u64 = info.dims.iter().skip(2).product();
        let slice = |bytes: &[u8]| {
            Arc::new(BlockCodec::new(name, info.ty, rows, cols, bytes.to_vec()).unwrap()) as Arc<dyn Codec>
        };
        Ok(Some(bytes.chunks_exact(bytes.len() / slices as usize).map(slice).collect()))
    };
    let model = Model::new(description, &mut tensors).unwrap();
    (model, gguf.metadata().clone())
}

/// A Hugging Face folder, its matrices encoded as `ty` (or left in f32).
pub fn load_folder(path: &Path, ty: Option<GgmlType>) -> (Model, Metadata) {
    let (conversion, tensors) = folder_tensors(path, ty);
    (model(&conversion.description.unwrap(), &tensors), conversion.metadata)
}

/// As [`load_folder`], before they become a model.
pub fn folder_tensors(path: &Path, ty: Option<GgmlType>) -> (Conversion, Tensors) {
    let checkpoint = Checkpoint::open(path).unwrap();
    let options = ConvertOptions { without_tokenizer: true, ..ConvertOptions::default() };
    let conversion = kbit_models::convert(&checkpoint, &options).unwrap();
    let mut tensors = Tensors::new();
    for tensor in &conversion.tensors {
        let MatrixShape { rows, cols, slices } = tensor.expr.shape();
        let codec = |slice| -> Arc<dyn Codec> {
            let mut data = vec![0.0; (rows * cols) as usize];
            tensor.expr.read_rows(&checkpoint, slice, 0..rows, &mut data).unwrap();
            match ty.filter(|_| tensor.role != Role::Vector) {
                Some(ty) => {
                    let mut bytes = vec![0; ty.bytes_for(rows * cols).unwrap() as usize];
                    kbit_blocks::encode_row_range(ty, &data, cols as usize, None, &mut bytes).unwrap();
                    Arc::new(BlockCodec::new(&tensor.name, ty, rows, cols, bytes).unwrap())
                }
                None => Arc::new(Plain::new(rows as usize, cols as usize, data)),
            }
        };
        tensors.insert(tensor.name.clone(), (0..slices).map(codec).collect());
    }
    (conversion, tensors)
}

/// Numbers between -1 and 1, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / 8_388_608.0) - 1.0
        })
        .collect()
}

/// Random weights for a description; `group` and `open` as in [`Plain`].
pub fn random_tensors(description: &Description, group: u64, open: bool) -> Tensors {
    let mut tensors = Tensors::new();
    for (index, expected) in description.tensors().unwrap().into_iter().enumerate() {
        let factors = expected.name.starts_with("rope_f");
        let vector = expected.role == Role::Vector;
        let (cols, rest) = expected.shape.split_last().unwrap();
        let (rows, slices) =
            (rest.last().map_or(1, |rows| *rows as usize), rest.iter().rev().skip(1).product());
        let cols = *cols as usize;
        let codec = |slice: u64| {
            let mut data = noise(rows * cols, index as u64 + 1 + 1000 * slice);
            for value in &mut data {
                *value = match (factors, vector) {
                    (true, _) => 1.5 + *value / 2.0,
                    (_, true) if rows == 1 => 0.8 + *value / 4.0,
                    _ => *value * 2.0 / (cols as f32).sqrt(),
                };
            }
            Arc::new(Plain { rows, cols, data, group: if vector { 1 } else { group }, open })
                as Arc<dyn Codec>
        };
        tensors.insert(expected.name, (0..slices).map(codec).collect());
    }
    tensors
}

/// A small description of the Llama family to vary.
pub fn small() -> Description {
    use kbit_formats::gguf::Value;
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", Value::String("llama".to_owned()));
    for (key, value) in [
        ("vocab_size", 97),
        ("block_count", 2),
        ("context_length", 1024),
        ("embedding_length", 40),
        ("feed_forward_length", 56),
        ("attention.head_count", 6),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 10),
        ("attention.value_length", 7),
        ("rope.dimension_count", 8),
    ] {
        metadata.insert(format!("llama.{key}"), Value::U32(value));
    }
    metadata.insert("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    metadata.insert("llama.rope.freq_base", Value::F32(100.0));
    kbit_models::describe(&metadata, &|_| false).unwrap()
}

pub fn tokens(description: &Description, len: usize, seed: u64) -> Vec<u32> {
    noise(len, seed).iter().map(|x| ((x + 1.0) / 2.0 * description.vocab as f32) as u32).collect()
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// All logits of a text in one call.
pub fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut logits = Vec::new();
    model.session(tokens.len()).forward(tokens, 0, &mut logits).unwrap();
    logits
}

/// Runs `work` in a pool of that many threads.
pub fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}
