//! Stored blocks of a matrix as a [`Codec`].

use crate::{BlockError, Kernels, can_decode, row_bytes, unknown};
use kbit_types::{Codec, CodecError, GgmlType, MatrixShape};
use std::ops::Range;

/// A matrix of ggml blocks; `B` holds the bytes, a map for instance.
#[derive(Debug)]
pub struct BlockCodec<B> {
    tensor: String,
    ty: GgmlType,
    shape: MatrixShape,
    cols: usize,
    row_bytes: usize,
    kernels: Kernels,
    bytes: B,
}

impl<B: AsRef<[u8]> + Send + Sync> BlockCodec<B> {
    /// The matrix `[rows, cols]` of type `ty` in `bytes`.
    ///
    /// # Errors
    /// A type that cannot be decoded, rows that are not whole blocks, or bytes that do not have the matrix's size.
    pub fn new(tensor: &str, ty: GgmlType, rows: u64, cols: u64, bytes: B) -> Result<Self, BlockError> {
        if !can_decode(ty) {
            return Err(unknown(ty, "decoded", |_| true));
        }
        let width = usize::try_from(cols).unwrap_or(usize::MAX);
        let row_bytes = row_bytes(ty, width)?;
        let held = bytes.as_ref().len();
        if rows.checked_mul(row_bytes as u64) != Some(held as u64) {
            let message = format!("{held} bytes do not hold {rows} rows of {cols} weights");
            return Err(BlockError::Size { ty, message });
        }
        Ok(Self {
            tensor: tensor.to_owned(),
            ty,
            shape: MatrixShape::dense(rows, cols),
            cols: width,
            row_bytes,
            kernels: Kernels::best(),
            bytes,
        })
    }

    /// Type of the blocks.
    #[must_use]
    pub const fn ty(&self) -> GgmlType {
        self.ty
    }

    /// The blocks.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Codec for BlockCodec<B> {
    fn shape(&self) -> MatrixShape {
        self.shape
    }

    fn decode(&self, rows: Range<u64>, out: &mut [f32], out_stride: usize) -> Result<(), CodecError> {
        assert!(
            rows.start <= rows.end && rows.end <= self.shape.rows,
            "rows {rows:?} of {} of tensor {}",
            self.shape.rows,
            self.tensor
        );
        // Both fit: the bytes of all rows lie in memory.
        let (first, last) = (rows.start as usize, rows.end as usize);
        let failed = |error: BlockError| CodecError::Scheme {
            tensor: self.tensor.clone(),
            scheme: self.ty.name().to_owned(),
            message: error.to_string(),
        };
        let bytes = &self.bytes.as_ref()[first * self.row_bytes..last * self.row_bytes];
        if out_stride == self.cols {
            let out = &mut out[..(last - first) * self.cols];
            return self.kernels.decode(self.ty, bytes, out).map_err(failed);
        }
        for (index, row) in bytes.chunks(self.row_bytes).enumerate() {
            let out = &mut out[index * out_stride..][..self.cols];
            self.kernels.decode(self.ty, row, out).map_err(failed)?;
        }
        Ok(())
    }

    fn as_f32(&self) -> Option<&[f32]> {
        if self.ty != GgmlType::F32 || cfg!(target_endian = "big") {
            return None;
        }
        // `None` where the bytes are not aligned.
        bytemuck::try_cast_slice(self.bytes.as_ref()).ok()
    }
}
