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
}
