//! Storing scales: in 32 or 16 bits, or quantized themselves.

use crate::scheme::scale_too_large;
use crate::{largest_magnitude, round_half_even};
use kbit_plugin::{Error, PartType, convert, pack};

/// Type of stored scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl ScaleType {
    /// The type of that name.
    ///
    /// # Errors
    /// An unknown name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::param(format!("scale={name}: one of f32, f16, bf16"))),
        }
    }

    /// Bytes of a scale.
    #[must_use]
    pub const fn bytes(self) -> usize {
        if matches!(self, Self::F32) { 4 } else { 2 }
    }

    /// Element type of the part that stores them.
    #[must_use]
    pub const fn part_type(self) -> PartType {
        match self {
            Self::F32 => PartType::F32,
            Self::F16 => PartType::F16,
            Self::Bf16 => PartType::Bf16,
        }
    }

    /// `scale` as it will be read back; `None` where it overflows the type.
    #[must_use]
    pub fn round(self, scale: f32) -> Option<f32> {
        let rounded = match self {
            Self::F32 => scale,
            Self::F16 => convert::f16_to_f32(convert::f32_to_f16(scale)),
            Self::Bf16 => convert::bf16_to_f32(convert::f32_to_bf16(scale)),
        };
        rounded.is_finite().then_some(rounded)
    }

    /// As [`ScaleType::round`], of a scale of a row.
    ///
    /// # Errors
    /// A scale that overflows the type.
    pub fn round_in_row(self, scale: f32, tensor: &str, row: u64) -> Result<f32, Error> {
        self.round(scale).ok_or_else(|| scale_too_large(scale, tensor, row))
    }

    /// Writes scale `index`; it was rounded to the type before.
    pub fn write(self, out: &mut [u8], index: usize, scale: f32) {
        let at = index * self.bytes();
        match self {
            Self::F32 => out[at..at + 4].copy_from_slice(&scale.to_le_bytes()),
            Self::F16 => out[at..at + 2].copy_from_slice(&convert::f32_to_f16(scale).to_le_bytes()),
            Self::Bf16 => out[at..at + 2].copy_from_slice(&convert::f32_to_bf16(scale).to_le_bytes()),
        }
    }

    /// Reads scale `index`.
    #[must_use]
    pub fn read(self, bytes: &[u8], index: usize) -> f32 {
        let at = index * self.bytes();
        match self {
            Self::F32 => f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
            Self::F16 => convert::f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]])),
            Self::Bf16 => convert::bf16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]])),
        }
    }
}

/// Scales as signed whole multiples of a second-level scale: `scale = code * superscale`, one f32 superscale a block of scales
/// (after the double quantization of QLoRA, arXiv 2305.14314).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubleQuantization {
    /// Bits of a quantized scale.
    pub bits: u32,
    /// Scales that share a superscale.
    pub block: usize,
}

impl DoubleQuantization {
    /// From the parameters `scale_bits` and `scale_block`.
    ///
    /// # Errors
    /// `scale_bits` of 1 to 3.
    pub fn from_params(params: &kbit_plugin::Params) -> Result<Option<Self>, Error> {
        let bits = params.int("scale_bits")?;
        let block = usize::try_from(params.int("scale_block")?).unwrap_or(256);
        match bits {
            0 => Ok(None),
            4..=8 => Ok(Some(Self { bits: u32::try_from(bits).unwrap_or(8), block })),
            _ => Err(Error::param(format!("scale_bits={bits}: 0, or 4 to 8"))),
        }
    }

    const fn largest_code(self) -> f32 {
        ((1i32 << (self.bits - 1)) - 1) as f32
    }

    /// Bytes of `scales` codes.
    #[must_use]
    pub const fn code_bytes(self, scales: usize) -> usize {
        pack::packed_bytes(self.bits, scales)
    }

    /// Bytes of their superscales.
    #[must_use]
    pub const fn super_bytes(self, scales: usize) -> usize {
        scales.div_ceil(self.block) * 4
    }

    /// Quantizes `scales` in place to what will be read back, and writes codes and superscales. A scale that is not zero
    /// keeps at least the smallest code, so that no block is lost.
    pub fn write(self, scales: &mut [f32], codes: &mut [u8], supers: &mut [u8]) {
        let bias = self.largest_code();
        let mut all = Vec::with_capacity(scales.len());
        for (block, out) in scales.chunks_mut(self.block).zip(supers.as_chunks_mut::<4>().0) {
            let superscale = largest_magnitude(block).0 / self.largest_code();
            *out = superscale.to_le_bytes();
            for scale in block {
                let mut code = if superscale > 0.0 { round_half_even(*scale / superscale) } else { 0.0 };
                code = code.clamp(-self.largest_code(), self.largest_code());
                if code == 0.0 && *scale != 0.0 && superscale > 0.0 {
                    code = 1f32.copysign(*scale);
                }
                *scale = code * superscale;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "0 to 254 by the clamp"
                )]
                all.push((code + bias) as u8);
            }
        }
        pack::pack_codes(self.bits, &all, codes);
    }

    /// Reads scales `0..out.len()` of a group.
    pub fn read(self, codes: &[u8], supers: &[u8], out: &mut [f32]) {
        let bias = self.largest_code();
        let mut all = vec![0; out.len()];
        pack::unpack_codes(self.bits, codes, &mut all);
        for (index, (out, code)) in out.iter_mut().zip(all).enumerate() {
            let superscale = ScaleType::F32.read(supers, index / self.block);
            *out = (f32::from(code) - bias) * superscale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_scales_come_back_as_they_were_used() {
        let double = DoubleQuantization { bits: 6, block: 16 };
        let mut scales: Vec<f32> = (0..37u8).map(|i| (f32::from(i) - 9.5) * 0.01).collect();
        scales[3] = 1e-9;
        scales[20] = 0.0;
        let original = scales.clone();
        let mut codes = vec![0xff; double.code_bytes(37)];
        let mut supers = vec![0xff; double.super_bytes(37)];
        double.write(&mut scales, &mut codes, &mut supers);
        let mut back = vec![0.0; 37];
        double.read(&codes, &supers, &mut back);
        assert_eq!(back, scales);
        assert!(scales[3] > 0.0 && scales[20] == 0.0);
        for (index, (scale, original)) in
            scales.iter().zip(&original).enumerate().filter(|(index, _)| *index != 3)
        {
            // Half a step of the block's largest scale, at most 0.275 here.
            assert!((scale - original).abs() <= 0.275 / 31.0 / 2.0 * 1.001, "{index}");
        }
    }

    #[test]
    fn a_scale_that_overflows_half_precision_is_refused() {
        assert_eq!(ScaleType::F16.round(70_000.0), None);
        assert!(ScaleType::Bf16.round(70_000.0).is_some());
    }
}
