//! Model architectures as data: hyper-parameters, tensor names, source expressions, metadata.
//!
//! [`describe`] reads what the engine must know from GGUF metadata. [`convert`] turns a checkpoint into the list of
//! tensors and the metadata of a GGUF file: each tensor is a [`SourceExpr`], evaluated lazily by slab of rows, so that
//! no tensor is ever whole in memory.
#![forbid(unsafe_code)]

pub mod architecture;
pub mod description;
pub mod fp4;

mod convert;
mod describe;
mod error;
mod expr;
pub mod packed;
mod producer;
mod training;

pub use architecture::{Architecture, ExpectedTensor};
pub use convert::{
    Conversion, ConvertOptions, Export, ExportTensor, OutputTensor, convert, export, is_other_modality,
};
pub use describe::{describe, further_blocks};
pub use description::Description;
pub use error::ModelError;
pub use expr::{Axis, SourceExpr};
pub use producer::Producer;
pub use training::TrainingInfo;

/// The number of a tensor's block, and the rest of its name.
#[must_use]
pub fn in_block(name: &str) -> Option<(u64, &str)> {
    let (number, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// What a tensor is, which decides how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The token embedding.
    TokenEmbedding,
    /// The output matrix.
    Output,
    /// Any other matrix that multiplies activations.
    Matrix,
    /// Norms, biases, frequency factors and the like: stay f32.
    Vector,
    /// A tensor of another modality, carried over under its own name.
    Other,
}
