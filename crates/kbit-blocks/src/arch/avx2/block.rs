//! Blocks of 32 weights in four vectors of [`Avx2`].

use super::Avx2;
use super::search::Vector;
use crate::block::Half;
use crate::legacy::{BLOCK, HALF, SideBySide};
use crate::plain::MAGNITUDE;
use std::arch::x86_64::*;

/// The largest of eight numbers that are not negative, by bit patterns.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(in crate::arch) fn largest_of(x: __m256i) -> f32 {
    let most = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
    let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
    f32::from_bits(_mm_cvtsi128_si32(most).cast_unsigned())
}

/// The least number of `least` and the greatest of `greatest`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(in crate::arch) fn range_of(least: __m256, greatest: __m256) -> (f32, f32) {
    // The greatest is the least of the negated ones: both go through one reduction, in lanes that take turns.
    let negated = _mm256_xor_ps(greatest, _mm256_set1_ps(-0.0));
    let both = _mm256_min_ps(_mm256_unpacklo_ps(least, negated), _mm256_unpackhi_ps(least, negated));
    let both = _mm_min_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
    let both = _mm_min_ps(both, _mm_movehl_ps(both, both));
    (_mm_cvtss_f32(both), -_mm_cvtss_f32(_mm_movehdup_ps(both)))
}

/// See [`SideBySide::nibbles`].
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(in crate::arch) fn nibbles_of(low: __m128i, high: __m128i) -> [u8; HALF] {
    let mask = _mm_set1_epi8(15);
    // Shifts words: what crosses from one byte to the next is masked before.
    let high = _mm_slli_epi16::<4>(_mm_and_si128(high, mask));
    let mut out = [0; HALF];
    // SAFETY: writes the 16 bytes of `out`; the instruction needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_or_si128(_mm_and_si128(low, mask), high)) }
    out
}

/// Rounds to nearest even.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(in crate::arch) fn half_of(value: f32) -> Half {
    let bits = _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(value)));
    let [low, high, ..] = bits.to_le_bytes();
    Half([low, high])
}

impl SideBySide for Avx2 {
    type Block = [Vector; 4];
    type Bytes = __m256i;

    #[inline(always)]
    fn block(self, x: &[f32; BLOCK]) -> [Vector; 4] {
        let parts = x.as_chunks::<8>().0;
        // SAFETY: `self` is the proof that the CPU has AVX2; reads the 32 bytes of a part, which need no alignment.
        std::array::from_fn(|part| Vector(unsafe { _mm256_loadu_ps(parts[part].as_ptr()) }))
    }

    #[inline(always)]
    fn largest(self, x: [Vector; 4]) -> f32 {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe {
            let mask = _mm256_set1_epi32(MAGNITUDE.cast_signed());
            let [a, b, c, d] = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x.0), mask));
            largest_of(_mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d)))
        }
    }

    #[inline(always)]
    fn range(self, [a, b, c, d]: [Vector; 4]) -> (f32, f32) {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe {
            let least = _mm256_min_ps(_mm256_min_ps(a.0, b.0), _mm256_min_ps(c.0, d.0));
            let greatest = _mm256_max_ps(_mm256_max_ps(a.0, b.0), _mm256_max_ps(c.0, d.0));
            range_of(least, greatest)
        }
    }

    #[inline(always)]
    fn of_magnitude(self, x: [Vector; 4], magnitude: f32) -> u32 {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        let [a, b, c, d] = x.map(|x| unsafe {
            let magnitudes = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x.0);
            let same = _mm256_cmp_ps::<_CMP_EQ_OQ>(magnitudes, _mm256_set1_ps(magnitude));
            _mm256_movemask_ps(same).cast_unsigned()
        });
        a | b << 8 | c << 16 | d << 24
    }

    #[inline(always)]
    fn bytes(self, x: [Vector; 4], code: impl Fn(Vector) -> Vector) -> __m256i {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe {
            // Only the low byte counts, also of numbers that a saturating pack would change.
            let mask = _mm256_set1_epi32(0xff);
            let [a, b, c, d] = x.map(|x| _mm256_and_si256(_mm256_cvttps_epi32(code(x).0), mask));
            let bytes = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
            // Packing works on halves of a vector: put the eight groups of four in order.
            _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        }
    }

    #[inline(always)]
    fn capped(self, bytes: __m256i, most: i8) -> __m256i {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe { _mm256_min_epi8(bytes, _mm256_set1_epi8(most)) }
    }

    #[inline(always)]
    fn in_order(self, bytes: __m256i) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        // SAFETY: `self` is the proof that the CPU has AVX2; writes the 32 bytes of `out`, which need no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
        out
    }

    #[inline(always)]
    fn nibbles(self, bytes: __m256i) -> [u8; HALF] {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe { nibbles_of(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)) }
    }

    #[inline(always)]
    fn fifth_bits(self, bytes: __m256i) -> u32 {
        // SAFETY: `self` is the proof that the CPU has AVX2. Shifts words: bit 4 becomes bit 7 of its own byte.
        unsafe { _mm256_movemask_epi8(_mm256_slli_epi16::<3>(bytes)).cast_unsigned() }
    }

    #[inline(always)]
    fn half(self, value: f32) -> Half {
        // SAFETY: `self` is the proof that the CPU has F16C.
        unsafe { half_of(value) }
    }
}
