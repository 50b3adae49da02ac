//! Looking on while a model runs: what its matrices are multiplied with.

use crate::buffer::Rows;
use std::fmt::Debug;

/// A matrix of a model: a whole tensor, or a slice of a stack of matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixName {
    /// GGUF name of the tensor.
    pub tensor: String,
    /// Which matrix of the stack; 0 of 1 where the tensor is one matrix.
    pub slice: usize,
    /// Matrices in the stack.
    pub slices: usize,
}

/// Sees the activations of every product of a forward pass, before the engine rounds or packs them.
pub trait Observer: Debug + Send + Sync {
    /// `inputs` `[n, cols]`, at least one row, are multiplied with each of `matrices`. Products come in the order of the pass, one call
    /// at a time for a session; rows in the order of the tokens, and in a stack of experts those of one expert's tokens.
    fn inputs(&self, matrices: &[&MatrixName], inputs: Rows<'_>);
}
