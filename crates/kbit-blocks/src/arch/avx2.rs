//! AVX2 and F16C.
//!
//! Invariant: an [`Avx2`] exists only where the CPU has both, so the functions here, which need them, may be called. Loads and
//! stores go through references to whole vectors' worth of numbers; nothing else is unsafe.
#![expect(unsafe_code, reason = "vector instructions and loads")]

use super::{lane_kernels, own_kernels, portable, shared_kernels};
use crate::block::{Half, Q4_0, Q8_0};
use crate::lanes::{Floats, Grid, INTEGERS, MANTISSA, MOST, ROUNDER, Simd};
use crate::legacy::{BELOW_HALF, BLOCK};
use crate::plain::MAGNITUDE;
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, Div, Mul, Sub};

/// Proof that the CPU has AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }
}

shared_kernels! {
    Avx2, "avx2,f16c";
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
    Avx2, "avx2,f16c";
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
    Avx2;
    encode_f16(x: &[f32], out: &mut [u8]);
    decode_f16(bytes: &[u8], out: &mut [f32]);
    encode_q8_0(x: &[f32], out: &mut [u8]);
    encode_q4_0(x: &[f32], out: &mut [u8]);
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load(x: &[f32; 8]) -> __m256 {
    // SAFETY: reads the 32 bytes of `x`; the instruction needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,f16c")]
fn encode_f16(x: &[f32], out: &mut [u8]) {
    let (vectors, rest) = x.as_chunks::<8>();
    let (halves, rest_out) = out.split_at_mut(vectors.len() * 16);
    for (x, out) in vectors.iter().zip(halves.as_chunks_mut::<16>().0) {
        let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load(x));
        // SAFETY: writes the 16 bytes of `out`; the instruction needs no alignment.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), halves) }
    }
    portable::encode_f16(rest, rest_out);
}

#[target_feature(enable = "avx2,f16c")]
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let (vectors, rest_out) = out.as_chunks_mut::<8>();
    let (halves, rest) = bytes.split_at(vectors.len() * 16);
    for (bytes, out) in halves.as_chunks::<16>().0.iter().zip(vectors) {
        // SAFETY: reads the 16 bytes of `bytes`; the instruction needs no alignment.
        let halves = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        // SAFETY: writes the 32 bytes of `out`; the instruction needs no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(halves)) }
    }
    portable::decode_f16(rest, rest_out);
}

/// The four vectors of a block.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_block(x: &[f32; BLOCK]) -> [__m256; 4] {
    let vectors = x.as_chunks::<8>().0;
    [load(&vectors[0]), load(&vectors[1]), load(&vectors[2]), load(&vectors[3])]
}

/// The largest magnitude of a block, by bit patterns.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn largest(x: &[__m256; 4]) -> f32 {
    let mask = _mm256_set1_epi32(MAGNITUDE.cast_signed());
    let magnitudes = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), mask));
    let most = _mm256_max_epi32(
        _mm256_max_epi32(magnitudes[0], magnitudes[1]),
        _mm256_max_epi32(magnitudes[2], magnitudes[3]),
    );
    let most = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
    let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
    let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
    f32::from_bits(_mm_cvtsi128_si32(most).cast_unsigned())
}

/// One over `d`, 0 for 0.
#[inline]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Rounds to nearest even.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half(value: f32) -> Half {
    let bits = _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(value)));
    let [low, high, ..] = bits.to_le_bytes();
    Half([low, high])
}

/// Bytes (in the low bits of the lanes) of two vectors as words, in an order that [`in_order`] mends.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn words(a: __m256i, b: __m256i) -> __m256i {
    let mask = _mm256_set1_epi32(0xff);
    // Only the low byte counts, also of numbers that a saturating pack would change.
    _mm256_packus_epi32(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask))
}

#[target_feature(enable = "avx2,f16c")]
fn encode_q8_0(x: &[f32], out: &mut [u8]) {
    let sign = _mm256_set1_ps(-0.0);
    let below_half = _mm256_set1_ps(BELOW_HALF);
    for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(bytemuck::cast_slice_mut::<u8, Q8_0>(out)) {
        let x = load_block(x);
        let d = largest(&x) / 127.0;
        let id = _mm256_set1_ps(inverse(d));
        // C's `roundf` (halves away from zero) followed by truncation.
        let codes = x.map(|x| {
            let scaled = _mm256_mul_ps(x, id);
            let toward = _mm256_or_ps(below_half, _mm256_and_ps(scaled, sign));
            _mm256_cvttps_epi32(_mm256_add_ps(scaled, toward))
        });
        let bytes = _mm256_packus_epi16(words(codes[0], codes[1]), words(codes[2], codes[3]));
        // Packing works on halves of a vector: put the eight groups of four in order.
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        block.d = half(d);
        // SAFETY: writes the 32 bytes of `q`; the instruction needs no alignment.
        unsafe { _mm256_storeu_si256(block.q.as_mut_ptr().cast(), bytes) }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn encode_q4_0(x: &[f32], out: &mut [u8]) {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(MAGNITUDE.cast_signed()));
    let shift = _mm256_set1_ps(8.5);
    let most = _mm256_set1_epi32(15);
    for (values, block) in x.as_chunks::<BLOCK>().0.iter().zip(bytemuck::cast_slice_mut::<u8, Q4_0>(out)) {
        let x = load_block(values);
        let largest = largest(&x);
        let equal = x.map(|x| {
            let same = _mm256_cmp_ps::<_CMP_EQ_OQ>(_mm256_and_ps(x, magnitude), _mm256_set1_ps(largest));
            _mm256_movemask_ps(same).cast_unsigned()
        });
        // The first of the largest; zeros of either sign count as plus zero.
        let first = (equal[0] | equal[1] << 8 | equal[2] << 16 | equal[3] << 24).trailing_zeros();
        let extreme = if largest == 0.0 { 0.0 } else { values[first as usize % BLOCK] };
        let d = extreme / -8.0;
        let id = _mm256_set1_ps(inverse(d));
        let codes = x.map(|x| {
            let wide = _mm256_cvttps_epi32(_mm256_add_ps(_mm256_mul_ps(x, id), shift));
            // The low byte with its sign, capped.
            let byte = _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(wide));
            _mm256_min_epi32(byte, most)
        });
        let pair = |low, high| _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
        let words = words(pair(codes[0], codes[2]), pair(codes[1], codes[3]));
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
        let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        block.d = half(d);
        // SAFETY: writes the 16 bytes of `q`; the instruction needs no alignment.
        unsafe { _mm_storeu_si128(block.q.as_mut_ptr().cast(), bytes) }
    }
}

/// Eight floats; exists only where [`Avx2`] does.
#[derive(Clone, Copy)]
pub(crate) struct Vector(__m256);

/// All bits of a lane, or none.
#[derive(Clone, Copy)]
pub(crate) struct Mask(__m256);

impl Simd for Avx2 {
    const LANES: usize = 8;
    type Floats = Vector;

    #[inline(always)]
    fn splat(self, x: f32) -> Vector {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        Vector(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    fn load(self, x: &[f32; MOST]) -> Vector {
        // SAFETY: `self` is the proof that the CPU has AVX2; reads 32 of the 64 bytes of `x`, which need no alignment.
        Vector(unsafe { _mm256_loadu_ps(x.as_ptr()) })
    }
}

macro_rules! operators {
    ($($name:ident $method:ident $intrinsic:ident;)*) => {
        $(impl $name for Vector {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: vectors exist only where the CPU has AVX2.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        })*
    };
}

operators! {
    Add add _mm256_add_ps;
    Sub sub _mm256_sub_ps;
    Mul mul _mm256_mul_ps;
    Div div _mm256_div_ps;
}

impl BitAnd for Mask {
    type Output = Self;

    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        // SAFETY: masks exist only where the CPU has AVX2.
        Self(unsafe { _mm256_and_ps(self.0, other.0) })
    }
}

impl Vector {
    /// Some of the bits of an integer in the low bits, as the integer plus 2^23.
    #[inline(always)]
    fn low_bits(self, bits: u32) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        unsafe {
            let shifted = _mm256_castps_si256(_mm256_add_ps(self.0, _mm256_set1_ps(ROUNDER)));
            let low = _mm256_and_si256(shifted, _mm256_set1_epi32(bits.cast_signed()));
            Self(_mm256_castsi256_ps(_mm256_or_si256(low, _mm256_set1_epi32(INTEGERS.cast_signed()))))
        }
    }

    /// Entries of a table, by the low half or, where `high`, the high half and the index minus 8.
    #[inline(always)]
    fn look_up(table: &[f32; MOST], index: __m256i, high: __m256) -> __m256 {
        // SAFETY: vectors exist only where the CPU has AVX2; reads two halves of the 64 bytes of `table`.
        unsafe {
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), index);
            let above = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table[8..].as_ptr()), index);
            _mm256_blendv_ps(low, above, high)
        }
    }
}

impl Floats for Vector {
    type Mask = Mask;

    #[inline(always)]
    fn store(self) -> [f32; MOST] {
        let mut out = [0.0; MOST];
        // SAFETY: vectors exist only where the CPU has AVX2; writes 32 of the 64 bytes of `out`, which need no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), self.0) }
        out
    }

    #[inline(always)]
    fn less(self, other: Self) -> Mask {
        // SAFETY: vectors exist only where the CPU has AVX2.
        Mask(unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn differs(self, other: Self) -> Mask {
        // SAFETY: vectors exist only where the CPU has AVX2.
        Mask(unsafe { _mm256_cmp_ps::<_CMP_NEQ_UQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn where_or(self, mask: Mask, other: Self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        Self(unsafe { _mm256_blendv_ps(other.0, self.0, mask.0) })
    }

    #[inline(always)]
    fn any(mask: Mask) -> bool {
        // SAFETY: masks exist only where the CPU has AVX2.
        unsafe { _mm256_movemask_ps(mask.0) != 0 }
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        Self(unsafe { _mm256_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn nearest(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        self.low_bits(MANTISSA) - Self(unsafe { _mm256_set1_ps(ROUNDER) })
    }

    #[inline(always)]
    fn low_byte(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        self.low_bits(0xff) - Self(unsafe { _mm256_set1_ps(f32::from_bits(INTEGERS)) })
    }

    #[inline(always)]
    fn nearest_of(self, grid: &Grid) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        unsafe {
            let high = _mm256_cmp_ps::<_CMP_NLT_UQ>(self.0, _mm256_set1_ps(grid.middle));
            let mut index = _mm256_setzero_si256();
            for (step, table) in [4, 2, 1].into_iter().zip(&grid.steps) {
                let midpoint = Self::look_up(table, index, high);
                let above = _mm256_cmp_ps::<_CMP_NLT_UQ>(self.0, midpoint);
                let step = _mm256_and_si256(_mm256_castps_si256(above), _mm256_set1_epi32(step));
                index = _mm256_or_si256(index, step);
            }
            Self(Self::look_up(&grid.values, index, high))
        }
    }
}
