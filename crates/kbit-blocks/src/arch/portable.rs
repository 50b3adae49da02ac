//! The loops over blocks, for every CPU; the wider sets compile them again. Lengths fit: the caller has checked them.

use crate::block::{
    Block, Encode, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
};
use crate::lanes::{self, Portable, Simd};
use crate::plain::{MAGNITUDE, bf16_bits, bf16_value, f16_bits, f16_value};

/// The bits of the largest magnitude; from those of infinity up, something is not finite.
#[inline(always)]
pub(crate) fn largest_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |largest, x| largest.max(x.to_bits() & MAGNITUDE))
}

#[inline(always)]
pub(crate) fn encode_f32(x: &[f32], out: &mut [u8]) {
    for (x, bytes) in x.iter().zip(out.as_chunks_mut().0) {
        *bytes = x.to_le_bytes();
    }
}

#[inline(always)]
pub(crate) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = f32::from_le_bytes(*bytes);
    }
}

#[inline(always)]
pub(crate) fn encode_f16(x: &[f32], out: &mut [u8]) {
    for (x, bytes) in x.iter().zip(out.as_chunks_mut().0) {
        *bytes = f16_bits(*x).to_le_bytes();
    }
}

#[inline(always)]
pub(crate) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = f16_value(u16::from_le_bytes(*bytes));
    }
}

#[inline(always)]
pub(crate) fn encode_bf16(x: &[f32], out: &mut [u8]) {
    for (x, bytes) in x.iter().zip(out.as_chunks_mut().0) {
        *bytes = bf16_bits(*x).to_le_bytes();
    }
}

#[inline(always)]
pub(crate) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = bf16_value(u16::from_le_bytes(*bytes));
    }
}

#[inline(always)]
fn encode<B: Encode>(x: &[f32], out: &mut [u8]) {
    for (x, block) in bytemuck::cast_slice(x).iter().zip(bytemuck::cast_slice_mut::<u8, B>(out)) {
        *block = B::encode(x);
    }
}

#[inline(always)]
fn decode<B: Block>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytemuck::cast_slice::<u8, B>(bytes).iter().zip(bytemuck::cast_slice_mut(out)) {
        block.decode(out);
    }
}

macro_rules! of_blocks {
    (
        encode: { $($encode:ident $a:ty,)* }
        decode: { $($decode:ident $c:ty,)* }
    ) => {
        $(#[inline(always)]
        pub(crate) fn $encode(x: &[f32], out: &mut [u8]) {
            encode::<$a>(x, out);
        })*
        $(#[inline(always)]
        pub(crate) fn $decode(bytes: &[u8], out: &mut [f32]) {
            decode::<$c>(bytes, out);
        })*
    };
}

of_blocks! {
    encode: { encode_q8_0 Q8_0, encode_q4_0 Q4_0, encode_q4_1 Q4_1, encode_q5_0 Q5_0, encode_q5_1 Q5_1, }
    decode: {
        decode_q8_0 Q8_0, decode_q4_0 Q4_0, decode_q4_1 Q4_1, decode_q5_0 Q5_0, decode_q5_1 Q5_1,
        decode_q2_k Q2_K, decode_q3_k Q3_K, decode_q4_k Q4_K, decode_q5_k Q5_K, decode_q6_k Q6_K,
        decode_iq4_nl IQ4_NL, decode_iq4_xs IQ4_XS,
    }
}

/// Searches in lanes: over any instruction set in [`search`], and over every CPU's here.
macro_rules! in_lanes {
    (
        encode: { $($encode:ident $a:ty,)* }
        weighted: { $($weighted:ident $b:ty,)* }
    ) => {
        /// The searches, generic over the instruction set.
        pub(crate) mod search {
            use super::*;

            $(#[inline(always)]
            pub(crate) fn $encode<S: Simd>(simd: S, x: &[f32], out: &mut [u8]) {
                lanes::encode::<S, $a>(simd, x, out);
            })*
            $(#[inline(always)]
            pub(crate) fn $weighted<S: Simd>(simd: S, rows: &[f32], importance: &[f32], out: &mut [u8]) {
                lanes::weighted::<S, $b>(simd, rows, importance, out);
            })*
        }
        $(pub(crate) fn $encode(x: &[f32], out: &mut [u8]) {
            search::$encode(Portable, x, out);
        })*
        $(pub(crate) fn $weighted(rows: &[f32], importance: &[f32], out: &mut [u8]) {
            search::$weighted(Portable, rows, importance, out);
        })*
    };
}

in_lanes! {
    encode: {
        encode_q2_k Q2_K, encode_q3_k Q3_K, encode_q4_k Q4_K, encode_q5_k Q5_K, encode_q6_k Q6_K,
        encode_iq4_nl IQ4_NL, encode_iq4_xs IQ4_XS,
    }
    weighted: {
        weighted_q4_0 Q4_0, weighted_q4_1 Q4_1, weighted_q5_0 Q5_0, weighted_q5_1 Q5_1,
        weighted_q2_k Q2_K, weighted_q3_k Q3_K, weighted_q4_k Q4_K, weighted_q5_k Q5_K, weighted_q6_k Q6_K,
        weighted_iq4_nl IQ4_NL, weighted_iq4_xs IQ4_XS,
    }
}
