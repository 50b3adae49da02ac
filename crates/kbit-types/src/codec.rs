//! How the engine sees an encoded matrix: rows that decode to f32, and optionally a fused dot product.

use crate::{IntegerBlocks, MatrixShape};
use std::ops::Range;

/// Why a codec could not decode rows or multiply.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// The scheme reported a failure (its message is passed on).
    #[error("tensor {tensor}: scheme {scheme}: {message}")]
    Scheme {
        /// GGUF name of the tensor.
        tensor: String,
        /// Id of the scheme.
        scheme: String,
        /// The scheme's own words.
        message: String,
    },
    /// Bytes could not be read from the source.
    #[error("tensor {tensor}: {message}")]
    Source {
        /// Name of the tensor.
        tensor: String,
        /// What failed.
        message: String,
    },
}

/// One encoded 2-D matrix (one slice of an expert tensor), readable by rows from any thread.
pub trait Codec: Send + Sync {
    /// Shape of the matrix; `slices` is always 1.
    fn shape(&self) -> MatrixShape;

    /// Rows are stored in groups of this many; ranges given to [`Codec::decode`] start at a multiple of it.
    fn row_group(&self) -> u64 {
        1
    }

    /// Decodes rows `rows` (start at a multiple of [`Codec::row_group`]) into `out`, row-major,
    /// `out_stride` floats from one row to the next (`out_stride >= cols`).
    ///
    /// # Errors
    /// When the scheme refuses or the source cannot be read.
    ///
    /// # Panics
    /// If `out` is shorter than `(rows.len() - 1) * out_stride + cols`, or the range is past the last row.
    fn decode(&self, rows: Range<u64>, out: &mut [f32], out_stride: usize) -> Result<(), CodecError>;

    /// The scheme's fused kernel, if it brings one.
    fn fused(&self) -> Option<&dyn FusedDot> {
        None
    }

    /// The matrix as small integers with scales, if it is stored so.
    fn integers(&self) -> Option<&dyn IntegerBlocks> {
        None
    }

    /// True where the weights are stored as floats, one by one: where nothing was quantized to few bits.
    fn holds_floats(&self) -> bool {
        self.as_f32().is_some() || self.as_f16().is_some() || self.as_bf16().is_some()
    }

    /// The whole matrix as contiguous f32 `[rows, cols]` in memory, if it happens to be stored so.
    fn as_f32(&self) -> Option<&[f32]> {
        None
    }

    /// The whole matrix as contiguous half-precision numbers `[rows, cols]` in memory, as bits, if it happens to be stored so.
    fn as_f16(&self) -> Option<&[u16]> {
        None
    }

    /// The whole matrix as contiguous bf16 `[rows, cols]` in memory, as bits, if it happens to be stored so.
    fn as_bf16(&self) -> Option<&[u16]> {
        None
    }
}

/// Arithmetic of a fused dot product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// f32 activations.
    F32,
    /// Activations rounded to bf16, f32 sums.
    Bf16,
    /// Activations in 8-bit blocks, integer dot products.
    Int8,
}

/// A multiply that works on the encoded form. Results depend on the row and the activation alone.
pub trait FusedDot: Send + Sync {
    /// Arithmetic of the kernel; the engine uses it in the matching computing mode, and in that of deployment.
    fn activation(&self) -> ActivationKind;

    /// Tensors with equal keys share packed activations.
    fn activation_key(&self) -> u64;

    /// Bytes of one packed activation of `cols` floats.
    fn activation_bytes(&self) -> usize;

    /// Packs one activation `x` `[cols]` into `packed` `[activation_bytes]`.
    ///
    /// # Errors
    /// When the scheme refuses.
    fn pack(&self, x: &[f32], packed: &mut [u8]) -> Result<(), CodecError>;

    /// `y[a * y_stride + r] = row(rows.start + r) . activation a` for `count` activations that lie
    /// [`FusedDot::activation_bytes`] apart in `packed`.
    ///
    /// # Errors
    /// When the scheme refuses.
    fn dot(
        &self,
        rows: Range<u64>,
        packed: &[u8],
        count: usize,
        y: &mut [f32],
        y_stride: usize,
    ) -> Result<(), CodecError>;
}
