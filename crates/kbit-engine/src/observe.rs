//! Looking on while a model runs: what its matrices are multiplied with, and what attention makes of that.

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

    /// True where [`Observer::attention`] is to be called, which attention costs some times over, and memory for the inputs of all
    /// positions.
    fn wants_attention(&self) -> bool {
        false
    }

    /// How the tokens of one text attend, for each key head in turn, once their layer's inputs have been seen. Layers that make keys and
    /// values by a matrix each have this; those with a fused matrix or in a latent space do not.
    fn attention(&self, _: &Attention<'_>) {}
}

/// How the tokens of one text attend through the query heads of one key head.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Which key head.
    pub kv_head: usize,
    /// The matrix that makes keys.
    pub key: &'a MatrixName,
    /// The matrix that makes values.
    pub value: &'a MatrixName,
    /// What both are multiplied with, of all positions up to that of the last token: `[positions, cols]`.
    pub inputs: Rows<'a>,
    /// How much each token attends to each position, `[tokens, group * positions]`: query head after query head, each of them with sum 1
    /// (or less, where a sink takes the rest).
    pub weights: Rows<'a>,
}
