//! AVX-512 F, BW, DQ and VL.
//!
//! Invariant: an [`Avx512`] exists only where the CPU has all of them, and AVX2 and F16C. `VCVTNEPS2BF16` is not used: it takes
//! subnormal numbers for zero, which ggml's reference does not.
#![expect(unsafe_code, reason = "vector instructions and loads")]

use super::{lane_kernels, own_kernels, portable, shared_kernels};
use crate::block::{Half, Q4_0, Q8_0};
use crate::lanes::{Floats, Grid, INTEGERS, MANTISSA, MOST, ROUNDER, Simd};
use crate::legacy::{BELOW_HALF, BLOCK};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, Div, Mul, Sub};

/// Proof that the CPU has the features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        (super::avx2::Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Self(()))
    }
}

shared_kernels! {
    Avx512, "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl";
    largest_bits(x: &[f32]) -> u32;
    encode_f32(x: &[f32], out: &mut [u8]);
    encode_bf16(x: &[f32], out: &mut [u8]);
    encode_q4_1(x: &[f32], out: &mut [u8]);
    encode_q5_0(x: &[f32], out: &mut [u8]);
    encode_q5_1(x: &[f32], out: &mut [u8]);
    decode_f32(bytes: &[u8], out: &mut [f32]);
    decode_bf16(bytes: &[u8], out: &mut [f32]);
    decode_q8_0(bytes: &[u8], out: &mut [f32]);
    decode_q4_0(bytes: &[u8], out: &mut [f32]);
    decode_q4_1(bytes: &[u8], out: &mut [f32]);
    decode_q5_0(bytes: &[u8], out: &mut [f32]);
    decode_q5_1(bytes: &[u8], out: &mut [f32]);
    decode_q2_k(bytes: &[u8], out: &mut [f32]);
    decode_q3_k(bytes: &[u8], out: &mut [f32]);
    decode_q4_k(bytes: &[u8], out: &mut [f32]);
    decode_q5_k(bytes: &[u8], out: &mut [f32]);
    decode_q6_k(bytes: &[u8], out: &mut [f32]);
    decode_iq4_nl(bytes: &[u8], out: &mut [f32]);
    decode_iq4_xs(bytes: &[u8], out: &mut [f32]);
}

lane_kernels! {
    Avx512, "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl";
    encode_q2_k(x: &[f32], out: &mut [u8]);
    encode_q3_k(x: &[f32], out: &mut [u8]);
    encode_q4_k(x: &[f32], out: &mut [u8]);
    encode_q5_k(x: &[f32], out: &mut [u8]);
    encode_q6_k(x: &[f32], out: &mut [u8]);
    encode_iq4_nl(x: &[f32], out: &mut [u8]);
    encode_iq4_xs(x: &[f32], out: &mut [u8]);
    weighted_q4_0(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q4_1(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q5_0(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q5_1(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q2_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q3_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q4_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q5_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q6_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq4_nl(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq4_xs(rows: &[f32], importance: &[f32], out: &mut [u8]);
}

own_kernels! {
    Avx512;
    encode_f16(x: &[f32], out: &mut [u8]);
    decode_f16(bytes: &[u8], out: &mut [f32]);
    encode_q8_0(x: &[f32], out: &mut [u8]);
    encode_q4_0(x: &[f32], out: &mut [u8]);
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn load(x: &[f32; 16]) -> __m512 {
    // SAFETY: reads the 64 bytes of `x`; the instruction needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn encode_f16(x: &[f32], out: &mut [u8]) {
    let (vectors, rest) = x.as_chunks::<16>();
    let (halves, rest_out) = out.split_at_mut(vectors.len() * 32);
    for (x, out) in vectors.iter().zip(halves.as_chunks_mut::<32>().0) {
        let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load(x));
        // SAFETY: writes the 32 bytes of `out`; the instruction needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), halves) }
    }
    portable::encode_f16(rest, rest_out);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let (vectors, rest_out) = out.as_chunks_mut::<16>();
    let (halves, rest) = bytes.split_at(vectors.len() * 32);
    for (bytes, out) in halves.as_chunks::<32>().0.iter().zip(vectors) {
        // SAFETY: reads the 32 bytes of `bytes`; the instruction needs no alignment.
        let halves = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        // SAFETY: writes the 64 bytes of `out`; the instruction needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(halves)) }
    }
    portable::decode_f16(rest, rest_out);
}

/// The two vectors of a block.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn load_block(x: &[f32; BLOCK]) -> [__m512; 2] {
    let vectors = x.as_chunks::<16>().0;
    [load(&vectors[0]), load(&vectors[1])]
}

/// The largest magnitude of a block.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn largest(x: &[__m512; 2]) -> f32 {
    _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1])))
}

/// One over `d`, 0 for 0.
#[inline]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Rounds to nearest even.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn half(value: f32) -> Half {
    let bits = _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(value)));
    let [low, high, ..] = bits.to_le_bytes();
    Half([low, high])
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn encode_q8_0(x: &[f32], out: &mut [u8]) {
    let sign = _mm512_set1_ps(-0.0);
    let below_half = _mm512_set1_ps(BELOW_HALF);
    for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(bytemuck::cast_slice_mut::<u8, Q8_0>(out)) {
        let x = load_block(x);
        let d = largest(&x) / 127.0;
        let id = _mm512_set1_ps(inverse(d));
        block.d = half(d);
        for (x, q) in x.into_iter().zip(block.q.as_chunks_mut::<16>().0) {
            // C's `roundf` (halves away from zero) followed by truncation, of which the low byte stays.
            let scaled = _mm512_mul_ps(x, id);
            let toward = _mm512_or_ps(below_half, _mm512_and_ps(scaled, sign));
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(_mm512_add_ps(scaled, toward)));
            // SAFETY: writes the 16 bytes of `q`; the instruction needs no alignment.
            unsafe { _mm_storeu_si128(q.as_mut_ptr().cast(), bytes) }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn encode_q4_0(x: &[f32], out: &mut [u8]) {
    let shift = _mm512_set1_ps(8.5);
    let most = _mm_set1_epi8(15);
    for (values, block) in x.as_chunks::<BLOCK>().0.iter().zip(bytemuck::cast_slice_mut::<u8, Q4_0>(out)) {
        let x = load_block(values);
        let largest = largest(&x);
        let equal =
            x.map(|x| u32::from(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(largest))));
        // The first of the largest; zeros of either sign count as plus zero.
        let first = (equal[0] | equal[1] << 16).trailing_zeros();
        let extreme = if largest == 0.0 { 0.0 } else { values[first as usize % BLOCK] };
        let d = extreme / -8.0;
        let id = _mm512_set1_ps(inverse(d));
        let [low, high] = x.map(|x| {
            // The low byte with its sign, capped.
            let wide = _mm512_cvttps_epi32(_mm512_add_ps(_mm512_mul_ps(x, id), shift));
            _mm_min_epi8(_mm512_cvtepi32_epi8(wide), most)
        });
        // Shifts words, so the bits that come from the byte below are cleared.
        let high = _mm_and_si128(_mm_slli_epi16::<4>(high), _mm_set1_epi8(0xf0u8.cast_signed()));
        block.d = half(d);
        // SAFETY: writes the 16 bytes of `q`; the instruction needs no alignment.
        unsafe { _mm_storeu_si128(block.q.as_mut_ptr().cast(), _mm_or_si128(low, high)) }
    }
}

/// Sixteen floats; exists only where [`Avx512`] does.
#[derive(Clone, Copy)]
pub(crate) struct Vector(__m512);

/// A bit a lane.
#[derive(Clone, Copy)]
pub(crate) struct Mask(__mmask16);

impl Simd for Avx512 {
    const LANES: usize = 16;
    type Floats = Vector;

    #[inline(always)]
    fn splat(self, x: f32) -> Vector {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F.
        Vector(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn load(self, x: &[f32; MOST]) -> Vector {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F; reads the 64 bytes of `x`, which need no alignment.
        Vector(unsafe { _mm512_loadu_ps(x.as_ptr()) })
    }
}

macro_rules! operators {
    ($($name:ident $method:ident $intrinsic:ident;)*) => {
        $(impl $name for Vector {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: vectors exist only where the CPU has AVX-512 F.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        })*
    };
}

operators! {
    Add add _mm512_add_ps;
    Sub sub _mm512_sub_ps;
    Mul mul _mm512_mul_ps;
    Div div _mm512_div_ps;
}

impl BitAnd for Mask {
    type Output = Self;

    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Vector {
    /// Some of the bits of an integer in the low bits, as the integer plus 2^23.
    #[inline(always)]
    fn low_bits(self, bits: u32) -> Self {
        /// `a & b | c`.
        const AND_OR: i32 = 0xea;
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        unsafe {
            let shifted = _mm512_castps_si512(_mm512_add_ps(self.0, _mm512_set1_ps(ROUNDER)));
            let bits = _mm512_set1_epi32(bits.cast_signed());
            let integers = _mm512_set1_epi32(INTEGERS.cast_signed());
            Self(_mm512_castsi512_ps(_mm512_ternarylogic_epi32::<AND_OR>(shifted, bits, integers)))
        }
    }
}

impl Floats for Vector {
    type Mask = Mask;

    #[inline(always)]
    fn store(self) -> [f32; MOST] {
        let mut out = [0.0; MOST];
        // SAFETY: vectors exist only where the CPU has AVX-512 F; writes the 64 bytes of `out`, which need no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
        out
    }

    #[inline(always)]
    fn less(self, other: Self) -> Mask {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        Mask(unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn differs(self, other: Self) -> Mask {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        Mask(unsafe { _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn where_or(self, mask: Mask, other: Self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        Self(unsafe { _mm512_mask_blend_ps(mask.0, other.0, self.0) })
    }

    #[inline(always)]
    fn any(mask: Mask) -> bool {
        mask.0 != 0
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn nearest(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        self.low_bits(MANTISSA) - Self(unsafe { _mm512_set1_ps(ROUNDER) })
    }

    #[inline(always)]
    fn low_byte(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        self.low_bits(0xff) - Self(unsafe { _mm512_set1_ps(f32::from_bits(INTEGERS)) })
    }

    #[inline(always)]
    fn nearest_of(self, grid: &Grid) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F; loads read the 64 bytes of a table.
        unsafe {
            let high = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, _mm512_set1_ps(grid.middle));
            let mut index = _mm512_maskz_set1_epi32(high, 8);
            for (step, table) in [4, 2, 1].into_iter().zip(&grid.steps) {
                let midpoint = _mm512_permutexvar_ps(index, _mm512_loadu_ps(table.as_ptr()));
                let above = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, midpoint);
                index = _mm512_mask_or_epi32(index, above, index, _mm512_set1_epi32(step));
            }
            Self(_mm512_permutexvar_ps(index, _mm512_loadu_ps(grid.values.as_ptr())))
        }
    }
}
