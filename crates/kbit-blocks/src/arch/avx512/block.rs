//! Blocks of 32 weights in two vectors of [`Avx512`].

use super::{Avx512, load};
use crate::arch::avx2::block::{half_of, largest_of, nibbles_of, range_of};
use crate::block::Half;
use crate::legacy::{BELOW_HALF, BLOCK, HALF, SideBySide};
use std::arch::x86_64::*;

/// The low bytes of the numbers, truncated to 32 bits.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn low_bytes([low, high]: [__m512; 2]) -> [__m128i; 2] {
    let (low, high) = (_mm512_cvttps_epi32(low), _mm512_cvttps_epi32(high));
    [_mm512_cvtepi32_epi8(low), _mm512_cvtepi32_epi8(high)]
}

impl SideBySide for Avx512 {
    type Block = [__m512; 2];
    type Bytes = [__m128i; 2];

    #[inline(always)]
    fn block(self, x: &[f32; BLOCK]) -> [__m512; 2] {
        let parts = x.as_chunks::<16>().0;
        // SAFETY: `self` is the proof that the CPU has AVX-512 F.
        unsafe { [load(&parts[0]), load(&parts[1])] }
    }

    #[inline(always)]
    fn largest(self, [a, b]: [__m512; 2]) -> f32 {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F and AVX2.
        unsafe {
            let most = _mm512_castps_si512(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
            let (low, high) = (_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64::<1>(most));
            largest_of(_mm256_max_epi32(low, high))
        }
    }

    #[inline(always)]
    fn range(self, [a, b]: [__m512; 2]) -> (f32, f32) {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F, DQ and AVX2.
        unsafe {
            let (least, greatest) = (_mm512_min_ps(a, b), _mm512_max_ps(a, b));
            let (low, high) = (_mm512_castps512_ps256(least), _mm512_extractf32x8_ps::<1>(least));
            let (lower, higher) = (_mm512_castps512_ps256(greatest), _mm512_extractf32x8_ps::<1>(greatest));
            range_of(_mm256_min_ps(low, high), _mm256_max_ps(lower, higher))
        }
    }

    #[inline(always)]
    fn of_magnitude(self, [a, b]: [__m512; 2], magnitude: f32) -> u32 {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F.
        unsafe {
            let magnitude = _mm512_set1_ps(magnitude);
            let low = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(_mm512_abs_ps(a), magnitude);
            let high = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(_mm512_abs_ps(b), magnitude);
            u32::from(low) | u32::from(high) << 16
        }
    }

    #[inline(always)]
    fn truncated(self, mut x: [__m512; 2], from: f32, inverse: f32, shift: f32) -> [__m128i; 2] {
        for x in &mut x {
            // SAFETY: `self` is the proof that the CPU has AVX-512 F.
            unsafe {
                let above = _mm512_sub_ps(*x, _mm512_set1_ps(from));
                *x = _mm512_add_ps(_mm512_mul_ps(above, _mm512_set1_ps(inverse)), _mm512_set1_ps(shift));
            }
        }
        // SAFETY: `self` is the proof that the CPU has AVX-512 F.
        unsafe { low_bytes(x) }
    }

    #[inline(always)]
    fn rounded(self, mut x: [__m512; 2], inverse: f32) -> [__m128i; 2] {
        for x in &mut x {
            // SAFETY: `self` is the proof that the CPU has AVX-512 F and DQ.
            unsafe {
                let scaled = _mm512_mul_ps(*x, _mm512_set1_ps(inverse));
                let sign = _mm512_and_ps(scaled, _mm512_set1_ps(-0.0));
                *x = _mm512_add_ps(scaled, _mm512_or_ps(_mm512_set1_ps(BELOW_HALF), sign));
            }
        }
        // SAFETY: `self` is the proof that the CPU has AVX-512 F.
        unsafe { low_bytes(x) }
    }

    #[inline(always)]
    fn capped(self, [low, high]: [__m128i; 2], most: i8) -> [__m128i; 2] {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe { [_mm_min_epi8(low, _mm_set1_epi8(most)), _mm_min_epi8(high, _mm_set1_epi8(most))] }
    }

    #[inline(always)]
    fn in_order(self, bytes: [__m128i; 2]) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        for (out, bytes) in out.as_chunks_mut::<16>().0.iter_mut().zip(bytes) {
            // SAFETY: `self` is the proof that the CPU has AVX2; writes the 16 bytes of `out`, which need no alignment.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) }
        }
        out
    }

    #[inline(always)]
    fn nibbles(self, [low, high]: [__m128i; 2]) -> [u8; HALF] {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe { nibbles_of(low, high) }
    }

    #[inline(always)]
    fn fifth_bits(self, bytes: [__m128i; 2]) -> u32 {
        let [low, high] = bytes;
        // SAFETY: `self` is the proof that the CPU has AVX-512 BW and VL.
        unsafe {
            let bit = _mm_set1_epi8(16);
            u32::from(_mm_test_epi8_mask(low, bit)) | u32::from(_mm_test_epi8_mask(high, bit)) << 16
        }
    }

    #[inline(always)]
    fn half(self, value: f32) -> Half {
        // SAFETY: `self` is the proof that the CPU has F16C.
        unsafe { half_of(value) }
    }
}
