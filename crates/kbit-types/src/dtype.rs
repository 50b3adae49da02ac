//! Element types of checkpoints, and widening them to f32.

use half::{bf16, f16};

/// Element type of a plain array, as checkpoints and packed parts store it (little-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP `E4M3FN`).
    F8E4M3,
    /// 8-bit float, 5 exponent and 2 mantissa bits (OCP E5M2).
    F8E5M2,
    F16,
    Bf16,
    F32,
    F64,
}

/// Why bytes could not be widened to f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WidenError {
    /// The number of bytes is not the number of elements times the element size.
    #[error("{bytes} bytes cannot hold {elements} elements of {dtype}")]
    Length {
        /// Bytes given.
        bytes: usize,
        /// Elements wanted.
        elements: usize,
        /// Element type.
        dtype: Dtype,
    },
}

impl Dtype {
    /// All types, in the order of the enum.
    pub const ALL: [Self; 15] = [
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::F16,
        Self::Bf16,
        Self::F32,
        Self::F64,
    ];

    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Name in a safetensors header.
    #[must_use]
    pub const fn safetensors_name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::U64 => "U64",
            Self::I64 => "I64",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
            Self::F64 => "F64",
        }
    }

    /// The type of that name in a safetensors header.
    #[must_use]
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.safetensors_name() == name)
    }

    /// True for floating-point types.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F8E4M3 | Self::F8E5M2 | Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// Widens little-endian `bytes` into `out`. Exact for all types but f64, i32, u32, i64 and u64,
    /// which round to nearest even.
    ///
    /// # Errors
    /// When `bytes` does not hold exactly `out.len()` elements.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) -> Result<(), WidenError> {
        if out.len().checked_mul(self.bytes()) != Some(bytes.len()) {
            return Err(WidenError::Length { bytes: bytes.len(), elements: out.len(), dtype: self });
        }
        macro_rules! each {
            ($n:literal, $convert:expr) => {
                for (value, chunk) in out.iter_mut().zip(bytes.as_chunks::<$n>().0) {
                    *value = $convert(*chunk);
                }
            };
        }
        #[expect(clippy::cast_precision_loss, reason = "documented: wide integers round to nearest")]
        #[expect(clippy::cast_possible_truncation, reason = "documented: f64 rounds to nearest")]
        match self {
            Self::Bool => each!(1, |[b]: [u8; 1]| f32::from(u8::from(b != 0))),
            Self::U8 => each!(1, |[b]: [u8; 1]| f32::from(b)),
            Self::I8 => each!(1, |b| f32::from(i8::from_le_bytes(b))),
            Self::U16 => each!(2, |b| f32::from(u16::from_le_bytes(b))),
            Self::I16 => each!(2, |b| f32::from(i16::from_le_bytes(b))),
            Self::U32 => each!(4, |b| u32::from_le_bytes(b) as f32),
            Self::I32 => each!(4, |b| i32::from_le_bytes(b) as f32),
            Self::U64 => each!(8, |b| u64::from_le_bytes(b) as f32),
            Self::I64 => each!(8, |b| i64::from_le_bytes(b) as f32),
            Self::F8E4M3 => each!(1, |[b]: [u8; 1]| f8_e4m3_to_f32(b)),
            Self::F8E5M2 => each!(1, |[b]: [u8; 1]| f16::from_bits(u16::from(b) << 8).to_f32()),
            Self::F16 => widen_f16(bytes, out),
            Self::Bf16 => each!(2, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F32 => each!(4, f32::from_le_bytes),
            Self::F64 => each!(8, |b| f64::from_le_bytes(b) as f32),
        }
        Ok(())
    }
}

impl Dtype {
    /// Rounds `values` to nearest even into little-endian `out`: for f32, f16 and bf16.
    ///
    /// # Errors
    /// When `out` does not hold exactly `values.len()` elements, or the type is another.
    pub fn narrow(self, values: &[f32], out: &mut [u8]) -> Result<(), NarrowError> {
        if values.len().checked_mul(self.bytes()) != Some(out.len()) {
            return Err(NarrowError::Length { bytes: out.len(), elements: values.len(), dtype: self });
        }
        macro_rules! each {
            ($n:literal, $convert:expr) => {
                for (value, chunk) in values.iter().zip(out.as_chunks_mut::<$n>().0) {
                    *chunk = $convert(*value);
                }
            };
        }
        match self {
            Self::F32 => each!(4, f32::to_le_bytes),
            Self::F16 => each!(2, |value| f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => each!(2, |value| bf16::from_f32(value).to_le_bytes()),
            _ => return Err(NarrowError::Dtype(self)),
        }
        Ok(())
    }
}

/// Why f32 could not be rounded to another type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NarrowError {
    /// The number of bytes is not the number of elements times the element size.
    #[error("{elements} elements of {dtype} do not have {bytes} bytes")]
    Length {
        /// Bytes given.
        bytes: usize,
        /// Elements given.
        elements: usize,
        /// Element type.
        dtype: Dtype,
    },
    /// Only f32, f16 and bf16 are rounded to.
    #[error("f32 is not rounded to {0}; choose f32, f16 or bf16")]
    Dtype(Dtype),
}

/// Widens f16 by way of `half`'s slice conversion, which uses F16C where the CPU has it.
fn widen_f16(bytes: &[u8], out: &mut [f32]) {
    use half::slice::HalfFloatSliceExt;
    let mut halves = [f16::ZERO; 256];
    for (chunk, values) in bytes.chunks(512).zip(out.chunks_mut(256)) {
        for (half, pair) in halves.iter_mut().zip(chunk.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*pair);
        }
        halves[..values.len()].convert_to_f32_slice(values);
    }
}

/// OCP `E4M3FN`: bias 7, subnormals, 0x7f and 0xff are NaN.
fn f8_e4m3_to_f32(byte: u8) -> f32 {
    let exponent = u32::from(byte >> 3 & 0xf);
    let mantissa = u32::from(byte & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        #[expect(clippy::cast_precision_loss, reason = "mantissa is below 8")]
        (0, _) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.safetensors_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_values_of_the_ocp_table() {
        // OCP 8-bit floating point specification, table 2.
        for (byte, value) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 0.875 * 2f32.powi(-6)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(f8_e4m3_to_f32(byte).to_bits(), f32::to_bits(value), "{byte:#x}");
        }
        assert!(f8_e4m3_to_f32(0x7f).is_nan());
    }

    #[test]
    fn e5m2_has_the_values_of_the_ocp_table() {
        let mut out = [0.0; 5];
        Dtype::F8E5M2.widen(&[0x01, 0x04, 0x3c, 0x7b, 0x7c], &mut out).unwrap();
        assert_eq!(out, [2f32.powi(-16), 2f32.powi(-14), 1.0, 57344.0, f32::INFINITY]);
    }

    #[test]
    fn widens_every_f16_as_half_does() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 65536];
        Dtype::F16.widen(&bytes, &mut out).unwrap();
        for (bits, value) in (0..=u16::MAX).zip(&out) {
            let expected = f16::from_bits(bits).to_f32();
            assert!(
                expected.to_bits() == value.to_bits() || expected.is_nan() && value.is_nan(),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn narrows_to_nearest_even_and_back() {
        let values = [1.0, -0.0, 1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), 65504.0, f32::INFINITY];
        let mut bytes = [0; 12];
        let mut back = [0.0; 6];
        Dtype::Bf16.narrow(&values, &mut bytes).unwrap();
        Dtype::Bf16.widen(&bytes, &mut back).unwrap();
        assert_eq!(back, [1.0, -0.0, 1.0, 1.0 + 2f32.powi(-6), 65536.0, f32::INFINITY]);
        Dtype::F16.narrow(&values, &mut bytes).unwrap();
        Dtype::F16.widen(&bytes, &mut back).unwrap();
        assert_eq!(back, values);
        assert!(Dtype::F16.narrow(&values, &mut bytes[1..]).is_err());
        assert_eq!(Dtype::I16.narrow(&values, &mut bytes), Err(NarrowError::Dtype(Dtype::I16)));
    }

    #[test]
    fn refuses_a_wrong_number_of_bytes() {
        assert!(Dtype::F32.widen(&[0; 7], &mut [0.0; 2]).is_err());
    }
}
