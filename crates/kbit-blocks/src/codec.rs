//! Stored blocks of a matrix as a [`Codec`].

use crate::{BlockError, can_decode, decode, unknown};
use kbit_types::{Codec, CodecError, GgmlType, MatrixShape};
use std::ops::Range;

/// A matrix of ggml blocks; `B` holds the bytes, a map for instance.
#[derive(Debug)]
pub struct BlockCodec<B> {
    tensor: String,
    ty: GgmlType,
    shape: MatrixShape,
    row_bytes: usize,
    bytes: B,
}

impl<B: AsRef<[u8]> + Send + Sync> BlockCodec<B> {
    /// The matrix `[rows, cols]` of type `ty` in `bytes`.
    ///
    /// # Errors
    /// A type that cannot be decoded, or bytes that do not have the matrix's size.
    pub fn new(tensor: &str, ty: GgmlType, rows: u64, cols: u64, bytes: B) -> Result<Self, BlockError> {
        if !can_decode(ty) {
            return Err(unknown(ty, "decoded", |_| true));
        }
        let row_bytes = ty.bytes_for(cols);
        let size = row_bytes.and_then(|row| row.checked_mul(rows));
        match row_bytes.and_then(|row| usize::try_from(row).ok()) {
            Some(row_bytes) if size == Some(bytes.as_ref().len() as u64) => Ok(Self {
                tensor: tensor.to_owned(),
                ty,
                shape: MatrixShape::dense(rows, cols),
                row_bytes,
                bytes,
            }),
            _ => Err(BlockError::Size {
                ty,
                message: format!("{} bytes do not hold {rows} rows of {cols}", bytes.as_ref().len()),
            }),
        }
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Codec for BlockCodec<B> {
    fn shape(&self) -> MatrixShape {
        self.shape
    }

    fn decode(&self, rows: Range<u64>, out: &mut [f32], out_stride: usize) -> Result<(), CodecError> {
        let cols = usize::try_from(self.shape.cols).unwrap_or(usize::MAX);
        let first = usize::try_from(rows.start).unwrap_or(usize::MAX);
        let count = usize::try_from(rows.end - rows.start).unwrap_or(usize::MAX);
        let bytes = &self.bytes.as_ref()[first * self.row_bytes..(first + count) * self.row_bytes];
        for (row, out) in bytes.chunks(self.row_bytes).zip(out.chunks_mut(out_stride)) {
            decode(self.ty, row, &mut out[..cols]).map_err(|error| CodecError::Scheme {
                tensor: self.tensor.clone(),
                scheme: self.ty.name().to_owned(),
                message: error.to_string(),
            })?;
        }
        Ok(())
    }

    fn as_f32(&self) -> Option<&[f32]> {
        if self.ty != GgmlType::F32 || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes.as_ref()).ok()
    }
}
