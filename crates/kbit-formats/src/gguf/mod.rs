//! GGUF: metadata and tensors in one file. Reads versions 2 and 3, writes 3, little-endian.
//!
//! Source of the layout: the GGUF specification in ggml's docs (`gguf.md`).

pub mod copy;
pub mod edit;
mod layout;
mod read;
pub mod shards;
mod value;
mod write;

pub use crate::map::Mapped;
pub use layout::{GgufLayout, NewTensor};
pub use read::{Gguf, Maps};
pub use shards::Split;
pub use value::{Array, Metadata, Value};
pub use write::{GgufWriter, WriteOptions};

use kbit_types::GgmlType;
use std::ops::Range;

pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Axes in ggml's order: the first is contiguous (columns).
    pub dims: Vec<u64>,
    /// Storage type.
    pub ty: GgmlType,
    /// Offset of its bytes from the start of its file.
    pub offset: u64,
    /// Number of its bytes.
    pub bytes: u64,
    /// Its file in a set of shards, from 0.
    pub shard: usize,
}

/// Bytes of a tensor; `None` where rows are not whole blocks or the number does not fit.
#[must_use]
pub fn tensor_bytes(dims: &[u64], ty: GgmlType) -> Option<u64> {
    let (cols, rest) = dims.split_first()?;
    rest.iter().try_fold(ty.bytes_for(*cols)?, |bytes, axis| bytes.checked_mul(*axis))
}

impl Mapped {
    /// Where the bytes of `tensor` lie in the map. The reader has checked them against the length of the file.
    #[must_use]
    pub fn range(&self, tensor: &TensorInfo) -> Range<usize> {
        let end = tensor.offset.saturating_add(tensor.bytes);
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes().len());
        at(tensor.offset)..at(end)
    }

    /// The bytes of `tensor`.
    #[must_use]
    pub fn tensor(&self, tensor: &TensorInfo) -> &[u8] {
        &self.bytes()[self.range(tensor)]
    }
}
