//! Blocks of 32 weights in two vectors of [`Avx512`].

use super::Avx512;
use super::search::Vector;
use crate::arch::avx2::block::{half_of, largest_of, nibbles_of, range_of};
use crate::block::Half;
use crate::legacy::{BLOCK, HALF, SideBySide};
use std::arch::x86_64::*;

impl SideBySide for Avx512 {
    type Block = [Vector; 2];
    type Bytes = [__m128i; 2];

    #[inline(always)]
    fn block(self, x: &[f32; BLOCK]) -> [Vector; 2] {
        let parts = x.as_chunks::<16>().0;
        // SAFETY: `self` is the proof that the CPU has AVX-512 F; reads the 64 bytes of a part, which need no alignment.
        std::array::from_fn(|part| Vector(unsafe { _mm512_loadu_ps(parts[part].as_ptr()) }))
    }

    #[inline(always)]
    fn largest(self, [a, b]: [Vector; 2]) -> f32 {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F and AVX2.
        unsafe {
            let most = _mm512_castps_si512(_mm512_max_ps(_mm512_abs_ps(a.0), _mm512_abs_ps(b.0)));
            let (low, high) = (_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64::<1>(most));
            largest_of(_mm256_max_epi32(low, high))
        }
    }

    #[inline(always)]
    fn range(self, [a, b]: [Vector; 2]) -> (f32, f32) {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F, DQ and AVX2.
        unsafe {
            let (least, greatest) = (_mm512_min_ps(a.0, b.0), _mm512_max_ps(a.0, b.0));
            let halves = |x| (_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let ((low, high), (lower, higher)) = (halves(least), halves(greatest));
            range_of(_mm256_min_ps(low, high), _mm256_max_ps(lower, higher))
        }
    }

    #[inline(always)]
    fn of_magnitude(self, x: [Vector; 2], magnitude: f32) -> u32 {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F.
        let [a, b] = x.map(|x| unsafe {
            u32::from(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(_mm512_abs_ps(x.0), _mm512_set1_ps(magnitude)))
        });
        a | b << 16
    }

    #[inline(always)]
    fn bytes(self, x: [Vector; 2], code: impl Fn(Vector) -> Vector) -> [__m128i; 2] {
        // SAFETY: `self` is the proof that the CPU has AVX-512 F.
        x.map(|x| unsafe { _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(code(x).0)) })
    }

    #[inline(always)]
    fn capped(self, bytes: [__m128i; 2], most: i8) -> [__m128i; 2] {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        bytes.map(|bytes| unsafe { _mm_min_epi8(bytes, _mm_set1_epi8(most)) })
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
        // SAFETY: `self` is the proof that the CPU has AVX-512 BW and VL.
        let [low, high] =
            bytes.map(|bytes| u32::from(unsafe { _mm_test_epi8_mask(bytes, _mm_set1_epi8(16)) }));
        low | high << 16
    }

    #[inline(always)]
    fn half(self, value: f32) -> Half {
        // SAFETY: `self` is the proof that the CPU has F16C.
        unsafe { half_of(value) }
    }
}
