//! What can go wrong between a file and its logits.

use crate::CacheType;
use kbit_models::ModelError;
use kbit_types::CodecError;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A tensor that the architecture needs is not there.
    #[error(
        "tensor {tensor} {wanted} is missing: the file is incomplete, or it is not a {architecture} model; convert the source again"
    )]
    MissingTensor {
        /// GGUF name.
        tensor: String,
        /// Shape that it should have, row-major.
        wanted: Shape,
        /// Name of the architecture.
        architecture: String,
    },
    /// A tensor has another shape than the metadata say.
    #[error(
        "tensor {tensor}: found {found}, wanted {wanted}: tensors and metadata disagree; convert the source again"
    )]
    TensorShape {
        /// GGUF name.
        tensor: String,
        /// Shape of the tensor, row-major.
        found: Shape,
        /// Shape that the metadata ask for, row-major.
        wanted: Shape,
    },
    /// A vector of the model has a value that is not a number, or infinite.
    #[error(
        "tensor {tensor}: element {index} is {value}; the file is damaged, or its source is: convert it again"
    )]
    NotFinite {
        /// GGUF name.
        tensor: String,
        /// Place in the tensor.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The description names no architecture that kbit knows.
    #[error(transparent)]
    Description(#[from] ModelError),
    /// A tensor could not be read or decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A token is not in the vocabulary.
    #[error(
        "token {token} at position {position} is not in the vocabulary of {vocab}: tokenize the text with this model's own tokenizer"
    )]
    Token {
        /// The token.
        token: u32,
        /// Its place in the call.
        position: usize,
        /// Tokens in the vocabulary.
        vocab: usize,
    },
    /// More tokens than the session was made for.
    #[error(
        "{used} tokens and {new} more do not fit into a context of {capacity}: use a longer context, or fewer tokens"
    )]
    ContextOverflow {
        /// Tokens in the session.
        used: usize,
        /// Tokens of the call.
        new: usize,
        /// Tokens that it can hold.
        capacity: usize,
    },
    /// More tokens than the model has learned positions for.
    #[error(
        "{needed} tokens, and the model has learned positions for {positions}: use a shorter context, or a model whose positions are computed"
    )]
    Positions {
        /// Tokens of the context.
        needed: usize,
        /// Positions that the model has learned.
        positions: usize,
    },
    /// A key or value that is too large for the type of the KV cache.
    #[error(
        "the {what} of position {position} in block {layer} has a number of {value}, which a KV cache of {ty} cannot hold: use another type of the cache, as f32"
    )]
    CacheRange {
        /// `key` or `value`.
        what: &'static str,
        /// Block of the model, from 0.
        layer: usize,
        /// Position in its sequence, from 0.
        position: usize,
        /// The number; in 8 and 4 bits the largest of its group, after the transform.
        value: f32,
        /// The type.
        ty: CacheType,
    },
    /// Memory could not be had.
    #[error("{bytes} bytes of memory cannot be had: use a shorter context or a smaller model")]
    OutOfMemory {
        /// Bytes wanted.
        bytes: usize,
    },
    /// Logits that are not numbers: the weights are.
    #[error(
        "the logits are not finite: the model has weights that are not numbers; `kbit verify` names their tensors, convert the source again"
    )]
    Logits,
    /// A sampling option that means nothing.
    #[error("a {option} of {value} means nothing: {cure}")]
    Sampling {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: f32,
        /// What to write instead.
        cure: &'static str,
    },
    /// Nothing to continue.
    #[error("there is no token to continue: begin with at least one")]
    NoPrompt,
}

/// A shape in an error message: `[rows, cols]` or `[length]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(pub Vec<u64>);

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
