//! The loops over blocks, for every CPU; the wider sets compile them again. Lengths fit: the caller has checked them.

use crate::block::{
    Block, Encode, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, MXFP4, NVFP4, Q1_0,
    Q2_0, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Q8_1, Q8_K, TQ1_0, TQ2_0,
};
use crate::dot::{Operands, interleaved, one, products};
use crate::grid::OneByOne;
use crate::lanes::{self, Portable, Simd};
use crate::legacy::{EncodeSideBySide, SideBySide};
use crate::panel::{Source, unpack};
use crate::plain::{MAGNITUDE, bf16_bits, bf16_value, f16_bits, f16_value};
pub(crate) use crate::ternary::encode_q1_0;
use kbit_types::IntegerPanel;

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
pub(crate) fn encode_q8_k(x: &[f32], out: &mut [u8]) {
    for (x, block) in bytemuck::cast_slice(x).iter().zip(bytemuck::cast_slice_mut(out)) {
        *block = Q8_K::encode(x);
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
        dot: { $($dot:ident $e:ty,)* }
        unpack: { $($unpack:ident $f:ty,)* }
    ) => {
        $(#[inline(always)]
        pub(crate) fn $unpack(source: Source<'_>, panel: IntegerPanel<'_>) {
            unpack::<$f>(source, panel);
        })*
        $(#[inline(always)]
        pub(crate) fn $dot(operands: Operands<'_, '_>) {
            products(operands, interleaved::<$e, 4>, one::<$e>);
        })*
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
    encode: {
        encode_tq1_0 TQ1_0, encode_tq2_0 TQ2_0, encode_mxfp4 MXFP4, encode_nvfp4 NVFP4, encode_q2_0 Q2_0,
    }
    decode: {
        decode_q8_0 Q8_0, decode_q4_0 Q4_0, decode_q4_1 Q4_1, decode_q5_0 Q5_0, decode_q5_1 Q5_1,
        decode_iq4_nl IQ4_NL, decode_iq4_xs IQ4_XS,
        decode_q2_k Q2_K, decode_q3_k Q3_K, decode_q4_k Q4_K, decode_q5_k Q5_K, decode_q6_k Q6_K,
        decode_tq1_0 TQ1_0, decode_tq2_0 TQ2_0, decode_mxfp4 MXFP4, decode_nvfp4 NVFP4, decode_q1_0 Q1_0, decode_q2_0 Q2_0,
    }
    dot: {
        dot_q8_0 Q8_0,
        dot_q4_0 Q4_0,
        dot_q4_1 Q4_1,
        dot_q5_0 Q5_0,
        dot_q5_1 Q5_1,
        dot_q2_k Q2_K,
        dot_q3_k Q3_K,
        dot_q4_k Q4_K,
        dot_q5_k Q5_K,
        dot_q6_k Q6_K,
        dot_tq1_0 TQ1_0,
        dot_tq2_0 TQ2_0,
        dot_mxfp4 MXFP4,
        dot_nvfp4 NVFP4,
        dot_q1_0 Q1_0,
        dot_q2_0 Q2_0,
        dot_iq4_nl IQ4_NL,
        dot_iq4_xs IQ4_XS,
        dot_iq2_xxs IQ2_XXS,
        dot_iq2_xs IQ2_XS,
        dot_iq2_s IQ2_S,
        dot_iq3_xxs IQ3_XXS,
        dot_iq3_s IQ3_S,
        dot_iq1_s IQ1_S,
        dot_iq1_m IQ1_M,
    }
    unpack: {
        unpack_q8_0 Q8_0,
        unpack_q4_0 Q4_0,
        unpack_q4_1 Q4_1,
        unpack_q5_0 Q5_0,
        unpack_q5_1 Q5_1,
        unpack_iq4_nl IQ4_NL,
        unpack_mxfp4 MXFP4,
        unpack_q2_k Q2_K,
        unpack_q3_k Q3_K,
        unpack_q4_k Q4_K,
        unpack_q5_k Q5_K,
        unpack_q6_k Q6_K,
        unpack_iq4_xs IQ4_XS,
        unpack_iq2_xxs IQ2_XXS,
        unpack_iq2_xs IQ2_XS,
        unpack_iq2_s IQ2_S,
        unpack_iq3_xxs IQ3_XXS,
        unpack_iq3_s IQ3_S,
        unpack_tq1_0 TQ1_0,
        unpack_tq2_0 TQ2_0,
        unpack_q1_0 Q1_0,
        unpack_q2_0 Q2_0,
    }
}

macro_rules! of_grids {
    (
        encode: { $($encode:ident $a:ident,)* }
        weighted: { $($weighted:ident $b:ident,)* }
        decode: { $($decode:ident $c:ident,)* }
    ) => {
        /// The loops over blocks with points of a grid, for lanes and a search for the nearest point of any instruction set.
        pub(crate) mod searching {
            use crate::block::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
            use crate::grid::Nearest;

            $(#[inline(always)]
            pub(crate) fn $encode<S: Nearest>(search: S, x: &[f32], out: &mut [u8]) {
                let blocks = x.as_chunks().0.iter().zip(bytemuck::cast_slice_mut::<u8, $a>(out));
                for (x, block) in blocks {
                    *block = $a::encode(search, x, None);
                }
            })*
            $(#[inline(always)]
            pub(crate) fn $weighted<S: Nearest>(search: S, rows: &[f32], importance: &[f32], out: &mut [u8]) {
                // Every row has the same importance.
                let blocks = rows.as_chunks().0.iter().zip(importance.as_chunks().0.iter().cycle());
                for ((x, importance), block) in blocks.zip(bytemuck::cast_slice_mut::<u8, $b>(out)) {
                    *block = $b::encode(search, x, Some(importance));
                }
            })*
            $(#[inline(always)]
            pub(crate) fn $decode<S: Nearest>(search: S, bytes: &[u8], out: &mut [f32]) {
                let blocks = bytemuck::cast_slice::<u8, $c>(bytes).iter();
                for (block, out) in blocks.zip(out.as_chunks_mut().0) {
                    block.decode(search, out);
                }
            })*
        }
        $(pub(crate) fn $encode(x: &[f32], out: &mut [u8]) {
            searching::$encode(OneByOne, x, out);
        })*
        $(pub(crate) fn $weighted(rows: &[f32], importance: &[f32], out: &mut [u8]) {
            searching::$weighted(OneByOne, rows, importance, out);
        })*
        $(pub(crate) fn $decode(bytes: &[u8], out: &mut [f32]) {
            searching::$decode(OneByOne, bytes, out);
        })*
    };
}

of_grids! {
    encode: { encode_iq2_s IQ2_S, encode_iq3_xxs IQ3_XXS, encode_iq3_s IQ3_S, encode_iq1_m IQ1_M, }
    weighted: {
        weighted_iq2_xxs IQ2_XXS, weighted_iq2_xs IQ2_XS, weighted_iq2_s IQ2_S, weighted_iq3_xxs IQ3_XXS,
        weighted_iq3_s IQ3_S, weighted_iq1_s IQ1_S, weighted_iq1_m IQ1_M,
    }
    decode: {
        decode_iq2_xxs IQ2_XXS, decode_iq2_xs IQ2_XS, decode_iq2_s IQ2_S, decode_iq3_xxs IQ3_XXS, decode_iq3_s IQ3_S,
        decode_iq1_s IQ1_S, decode_iq1_m IQ1_M,
    }
}

/// The loops that are generic over the vectors of an instruction set.
#[cfg(target_arch = "x86_64")]
pub(crate) mod generic {
    pub(crate) use super::{search::*, searching::*};
}

/// Loops over vectors: of any instruction set in [`search`], and of every CPU here.
macro_rules! in_lanes {
    (
        side_by_side: { $($block:ident $c:ty,)* }
        encode: { $($encode:ident $a:ty,)* }
        weighted: { $($weighted:ident $b:ty,)* }
    ) => {
        /// The loops, generic over the instruction set.
        pub(crate) mod search {
            use super::*;

            $(#[inline(always)]
            pub(crate) fn $block<S: SideBySide>(simd: S, x: &[f32], out: &mut [u8]) {
                for (x, block) in x.as_chunks().0.iter().zip(bytemuck::cast_slice_mut(out)) {
                    *block = <$c>::encode(simd, x);
                }
            })*
            $(#[inline(always)]
            pub(crate) fn $encode<S: Simd>(simd: S, x: &[f32], out: &mut [u8]) {
                lanes::encode::<S, $a>(simd, x, out);
            })*
            $(#[inline(always)]
            pub(crate) fn $weighted<S: Simd>(simd: S, rows: &[f32], importance: &[f32], out: &mut [u8]) {
                lanes::weighted::<S, $b>(simd, rows, importance, out);
            })*
        }
        $(pub(crate) fn $block(x: &[f32], out: &mut [u8]) {
            search::$block(Portable, x, out);
        })*
        $(pub(crate) fn $encode(x: &[f32], out: &mut [u8]) {
            search::$encode(Portable, x, out);
        })*
        $(pub(crate) fn $weighted(rows: &[f32], importance: &[f32], out: &mut [u8]) {
            search::$weighted(Portable, rows, importance, out);
        })*
    };
}

in_lanes! {
    side_by_side: {
        encode_q8_0 Q8_0, encode_q8_1 Q8_1, encode_q4_0 Q4_0, encode_q4_1 Q4_1, encode_q5_0 Q5_0, encode_q5_1 Q5_1,
    }
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
