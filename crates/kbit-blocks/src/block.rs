//! Block layouts, as the bytes of a GGUF file: little-endian, no padding, alignment 1.
//!
//! Source of the layouts: `ggml-common.h` of ggml 0.25.3. All sizes are asserted against the type table at compile time.

use bytemuck::{Pod, Zeroable};
use kbit_types::GgmlType;

/// A half-precision number as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Half(pub [u8; 2]);

impl Half {
    /// Rounds to nearest even.
    #[inline(always)]
    pub(crate) fn new(value: f32) -> Self {
        Self(crate::plain::f16_bits(value).to_le_bytes())
    }

    #[inline(always)]
    pub(crate) fn get(self) -> f32 {
        crate::plain::f16_value(u16::from_le_bytes(self.0))
    }
}

/// A block of weights that can be decoded.
pub(crate) trait Block: Pod {
    /// `[f32; N]`, the weights of a block.
    type Weights: Pod;
    /// Decodes all weights.
    fn decode(&self, out: &mut Self::Weights);
}

/// A block that can be made of weights.
pub(crate) trait Encode: Block {
    /// The block of `x`, which is finite.
    fn encode(x: &Self::Weights) -> Self;
}

macro_rules! blocks {
    ($($(#[$doc:meta])* $name:ident = $elements:literal { $($field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
            #[repr(C)]
            #[allow(non_camel_case_types, reason = "ggml's own names")]
            pub(crate) struct $name { $(pub $field: $ty,)* }

            const _: () = {
                assert!(size_of::<$name>() as u64 == GgmlType::$name.block_bytes());
                assert!(GgmlType::$name.block_elements() == $elements);
                assert!(align_of::<$name>() == 1);
            };
        )*
    };
}

/// A part of [`IQ2_XXS`]: four times 7 signs and, in the top 4 bits, the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct PointsOfIq2Xxs {
    pub points: [u8; 4],
    pub signs_and_scale: [u8; 4],
}

blocks! {
    /// Byte `j` of `q` holds weight `j` in its low half and weight `j + 16` in its high half.
    Q4_0 = 32 { d: Half, q: [u8; 16], }
    /// As [`Q4_0`], with a minimum.
    Q4_1 = 32 { d: Half, m: Half, q: [u8; 16], }
    /// As [`Q4_0`]; bit `j` of `high` is the fifth bit of weight `j`.
    Q5_0 = 32 { d: Half, high: [u8; 4], q: [u8; 16], }
    /// As [`Q5_0`], with a minimum.
    Q5_1 = 32 { d: Half, m: Half, high: [u8; 4], q: [u8; 16], }
    /// Signed bytes.
    Q8_0 = 32 { d: Half, q: [i8; 32], }
    /// Activations: as [`Q8_0`], with the scaled sum of the integers.
    Q8_1 = 32 { d: Half, sum: Half, q: [i8; 32], }
    /// Activations: signed bytes, a scale in single precision, and the sums of 16 integers each.
    Q8_K = 256 { d: [u8; 4], q: [i8; 256], sums: [[u8; 2]; 16], }
    /// 16 parts of 16 weights; scale in the low half of a byte of `scales`, minimum in the high half.
    Q2_K = 256 { scales: [u8; 16], q: [[u8; 32]; 2], d: Half, dmin: Half, }
    /// 16 parts of 16 weights, scales of 6 bits; a clear bit in `high` takes 4 from the level.
    Q3_K = 256 { high: [u8; 32], q: [[u8; 32]; 2], scales: [u8; 12], d: Half, }
    /// 8 parts of 32 weights, scales and minimums of 6 bits.
    Q4_K = 256 { d: Half, dmin: Half, scales: [u8; 12], q: [[u8; 32]; 4], }
    /// As [`Q4_K`]; bit `p` of `high[j]` is the fifth bit of weight `j` of part `p`.
    Q5_K = 256 { d: Half, dmin: Half, scales: [u8; 12], high: [u8; 32], q: [[u8; 32]; 4], }
    /// 16 parts of 16 weights, scales of 8 bits; 128 weights share 64 low bytes and 32 high ones.
    Q6_K = 256 { low: [[u8; 64]; 2], high: [[u8; 32]; 2], scales: [i8; 16], d: Half, }
    /// Indices into a fixed grid, laid out as [`Q4_0`].
    IQ4_NL = 32 { d: Half, q: [u8; 16], }
    /// 8 parts of [`IQ4_NL`], scales of 6 bits: four low ones in nibbles, two high ones in a 16-bit number.
    IQ4_XS = 256 { d: Half, high: [u8; 2], low: [u8; 4], q: [[u8; 16]; 8], }
    /// Trits, five a byte: 5 runs of 32 weights, 5 of 16, and 4 of 4.
    TQ1_0 = 256 { first: [u8; 32], second: [u8; 16], third: [u8; 4], d: Half, }
    /// Trits, four a byte: 32 bytes hold 4 runs of 32 weights.
    TQ2_0 = 256 { q: [[u8; 32]; 2], d: Half, }
    /// Floats of 4 bits (E2M1), placed as in [`Q4_0`]; the scale is a power of two (E8M0).
    MXFP4 = 32 { e: u8, q: [u8; 16], }
    /// 4 parts of 16 weights as in [`MXFP4`], scales in E4M3 without sign.
    NVFP4 = 64 { scales: [u8; 4], q: [[u8; 8]; 4], }
    /// Signs, from the lowest bit up.
    Q1_0 = 128 { d: Half, q: [u8; 16], }
    /// Levels -1 to 2, from the lowest bits up.
    Q2_0 = 64 { d: Half, q: [u8; 16], }
    /// 8 parts of 4 groups of 8 weights.
    IQ2_XXS = 256 { d: Half, parts: [PointsOfIq2Xxs; 8], }
    /// 32 groups of 8 weights: a point in 9 bits, 7 signs above. Scales of 4 bits for two groups each.
    IQ2_XS = 256 { d: Half, points: [[u8; 2]; 32], scales: [u8; 8], }
    /// 32 groups of 8 weights: the low byte of a point, two bits of which are in `high`. Scales of 4 bits for two groups each.
    IQ2_S = 256 { d: Half, points: [u8; 32], signs: [u8; 32], high: [u8; 8], scales: [u8; 8], }
    /// 8 parts of 8 groups of 4 weights; four times 7 signs and, in the top 4 bits, the scale of a part.
    IQ3_XXS = 256 { d: Half, points: [[u8; 8]; 8], signs_and_scales: [[u8; 4]; 8], }
    /// 8 parts of 8 groups of 4 weights: the low byte of a point, whose ninth bit is in `high`. Scales of 4 bits.
    IQ3_S = 256 { d: Half, points: [[u8; 8]; 8], high: [u8; 8], signs: [[u8; 4]; 8], scales: [u8; 4], }
    /// 8 parts of 4 groups of 8 weights: the low byte of a point. Three bits more for each, a scale of three bits and the sign of
    /// the shift in `high_and_scales`.
    IQ1_S = 256 { d: Half, points: [[u8; 4]; 8], high_and_scales: [[u8; 2]; 8], }
    /// 16 parts of two groups of 8 weights: the low byte of a point; three bits more and the sign of the shift in four bits of
    /// `high`. Four times four scales of three bits; their top four bits are those of the half-precision scale.
    IQ1_M = 256 { points: [u8; 32], high: [u8; 16], scales: [[u8; 2]; 4], }
}
