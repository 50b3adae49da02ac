//! Stored blocks of a matrix as a [`Codec`].

use crate::{BlockError, Kernels, activation_type, can_decode, panel, row_bytes, unknown};
use kbit_types::{
    ActivationKind, Codec, CodecError, FusedDot, GgmlType, IntegerActivations, IntegerBlocks, IntegerLayout,
    IntegerPanel, MatrixShape, PackedActivation,
};
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

    /// The bytes of `rows`.
    fn rows(&self, rows: &Range<u64>) -> &[u8] {
        assert!(
            rows.start <= rows.end && rows.end <= self.shape.rows,
            "rows {rows:?} of {} of tensor {}",
            self.shape.rows,
            self.tensor
        );
        // Both fit: the bytes of all rows lie in memory.
        let (first, last) = (rows.start as usize, rows.end as usize);
        &self.bytes.as_ref()[first * self.row_bytes..last * self.row_bytes]
    }

    fn failed(&self, error: BlockError) -> CodecError {
        CodecError::Scheme {
            tensor: self.tensor.clone(),
            scheme: self.ty.name().to_owned(),
            message: error.to_string(),
        }
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Codec for BlockCodec<B> {
    fn shape(&self) -> MatrixShape {
        self.shape
    }

    fn decode(&self, rows: Range<u64>, out: &mut [f32], out_stride: usize) -> Result<(), CodecError> {
        let bytes = self.rows(&rows);
        let failed = |error| self.failed(error);
        if out_stride == self.cols {
            let out = &mut out[..bytes.len() / self.row_bytes * self.cols];
            return self.kernels.decode(self.ty, bytes, out).map_err(failed);
        }
        for (index, row) in bytes.chunks(self.row_bytes).enumerate() {
            let out = &mut out[index * out_stride..][..self.cols];
            self.kernels.decode(self.ty, row, out).map_err(failed)?;
        }
        Ok(())
    }

    fn fused(&self) -> Option<&dyn FusedDot> {
        activation_type(self.ty).map(|_| self as &dyn FusedDot)
    }

    fn integers(&self) -> Option<&dyn IntegerBlocks> {
        panel::layout(self.ty).map(|_| self as &dyn IntegerBlocks)
    }

    fn holds_floats(&self) -> bool {
        !self.ty.is_quantized()
    }

    fn as_f32(&self) -> Option<&[f32]> {
        if self.ty != GgmlType::F32 || cfg!(target_endian = "big") {
            return None;
        }
        // `None` where the bytes are not aligned.
        bytemuck::try_cast_slice(self.bytes.as_ref()).ok()
    }

    fn as_f16(&self) -> Option<&[u16]> {
        self.halves_of(GgmlType::F16)
    }

    fn as_bf16(&self) -> Option<&[u16]> {
        self.halves_of(GgmlType::BF16)
    }
}

impl<B: AsRef<[u8]>> BlockCodec<B> {
    /// The numbers of 16 bits, if they are of this type, and aligned.
    fn halves_of(&self, ty: GgmlType) -> Option<&[u16]> {
        if self.ty != ty || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes.as_ref()).ok()
    }
}

/// Given out by [`Codec::integers`] where blocks of the type can be unpacked to integers.
impl<B: AsRef<[u8]> + Send + Sync> IntegerBlocks for BlockCodec<B> {
    fn layout(&self) -> IntegerLayout {
        panel::layout(self.ty).unwrap_or_else(|| unreachable!("only given out for types with a layout"))
    }

    fn activation_key(&self) -> u64 {
        activation_key(self.ty)
    }

    fn unpack(
        &self,
        rows: Range<u64>,
        cols: Range<usize>,
        panel: IntegerPanel<'_>,
    ) -> Result<(), CodecError> {
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        self.kernels.unpack(self.ty, self.rows(&rows), self.row_bytes, cols, panel);
        Ok(())
    }

    fn dot(
        &self,
        rows: Range<u64>,
        x: PackedActivation<'_>,
        out: &mut [f32],
    ) -> Option<Result<(), CodecError>> {
        self.kernels.dot_integers(self.ty, self.rows(&rows), self.row_bytes, x, out).then_some(Ok(()))
    }

    fn round(&self, x: &[f32], out: IntegerActivations<'_>) -> Result<(), CodecError> {
        let mut packed = vec![0; self.activation_bytes()];
        self.pack(x, &mut packed)?;
        panel::split(activation_type(self.ty), &packed, out);
        Ok(())
    }
}

/// "ggml", apart from the keys of plugins, and the type of activations.
fn activation_key(ty: GgmlType) -> u64 {
    0x6767_6d6c_u64 << 32 | activation_type(ty).map_or(0, |ty| u64::from(ty.id()))
}

/// Integer products, as [`Kernels::dot_rows`] computes them. Given out by [`Codec::fused`] where the type has them.
impl<B: AsRef<[u8]> + Send + Sync> FusedDot for BlockCodec<B> {
    fn activation(&self) -> ActivationKind {
        ActivationKind::Int8
    }

    fn activation_key(&self) -> u64 {
        activation_key(self.ty)
    }

    fn activation_bytes(&self) -> usize {
        activation_type(self.ty).and_then(|ty| row_bytes(ty, self.cols).ok()).unwrap_or(0)
    }

    fn pack(&self, x: &[f32], packed: &mut [u8]) -> Result<(), CodecError> {
        assert!(
            x.len() == self.cols,
            "{} activations for {} columns of tensor {}",
            x.len(),
            self.cols,
            self.tensor
        );
        let ty = activation_type(self.ty).unwrap_or(self.ty);
        let packed = &mut packed[..self.activation_bytes()];
        self.kernels.encode_activations(ty, x, self.cols, packed).map_err(|error| self.failed(error))
    }

    fn dot(
        &self,
        rows: Range<u64>,
        packed: &[u8],
        count: usize,
        y: &mut [f32],
        y_stride: usize,
    ) -> Result<(), CodecError> {
        let packed = &packed[..count * self.activation_bytes()];
        self.kernels
            .dot_rows(self.ty, self.rows(&rows), packed, self.cols, y, y_stride)
            .map_err(|error| self.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_products_of_a_range_of_rows_are_those_of_its_blocks() {
        let x: Vec<f32> = (0u8..64).map(|j| f32::from(j) - 20.0).collect();
        let weights: Vec<f32> = (0u16..320).map(|j| f32::from(j % 37) * 0.1 - 1.0).collect();
        let mut bytes = vec![0; 5 * 68];
        crate::encode_row_range(GgmlType::Q8_0, &weights, 64, None, &mut bytes).unwrap();
        let codec = BlockCodec::new("t", GgmlType::Q8_0, 5, 64, bytes.as_slice()).unwrap();
        let fused = codec.fused().expect("a product");
        assert_eq!(fused.activation(), ActivationKind::Int8);
        let mut packed = vec![0; 2 * fused.activation_bytes()];
        let (first, second) = packed.split_at_mut(fused.activation_bytes());
        fused.pack(&x, first).unwrap();
        fused.pack(&x.iter().map(|x| 2.0 * x).collect::<Vec<_>>(), second).unwrap();
        let mut y = [0.0; 7];
        fused.dot(1..4, &packed, 2, &mut y, 4).unwrap();
        for row in 0..3 {
            let expected = Kernels::best()
                .dot(GgmlType::Q8_0, &bytes[(row + 1) * 68..][..68], &packed[..68], 64)
                .unwrap();
            assert_eq!([y[row], y[row + 4]], [expected, 2.0 * expected]);
        }
        assert_eq!(y[3], 0.0);
        let plain = BlockCodec::new("t", GgmlType::F32, 1, 64, [0; 256]).unwrap();
        assert!(plain.fused().is_none());
        let error = fused.pack(&[f32::NAN; 64], &mut packed).unwrap_err();
        assert!(error.to_string().contains("tensor t"), "{error}");
    }
}
