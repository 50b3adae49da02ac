//! Small checkpoints made for tests.

use kbit_types::Dtype;
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// A tensor of a safetensors file.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

/// An f32 tensor with values that depend on its name and their place.
pub fn tensor(name: &str, shape: &[u64]) -> Tensor {
    let seed = name.bytes().fold(7u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let count: u64 = shape.iter().product();
    let value = |at: u64| {
        let mixed = (seed ^ at as u32).wrapping_mul(0x9e37_79b1);
        (mixed >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let bytes = (0..count).flat_map(|at| value(at).to_le_bytes()).collect();
    Tensor { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

impl Tensor {
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.bytes.len() / self.dtype.bytes()];
        self.dtype.widen(&self.bytes, &mut values).unwrap();
        values
    }
}

/// Writes a safetensors file.
pub fn write(path: &Path, tensors: &[Tensor]) {
    let mut header = Map::new();
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = json!({ "dtype": tensor.dtype.safetensors_name(), "shape": tensor.shape, "data_offsets": [start, data.len()] });
        assert!(header.insert(tensor.name.clone(), entry).is_none());
    }
    let header = Json::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}
