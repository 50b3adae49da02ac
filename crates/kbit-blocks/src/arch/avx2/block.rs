//! Blocks of 32 weights in four vectors of [`Avx2`].

use super::{Avx2, load};
use crate::block::Half;
use crate::legacy::{BELOW_HALF, BLOCK, HALF, SideBySide};
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

/// Without signs.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn magnitudes_of(x: __m256) -> __m256 {
    _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(MAGNITUDE.cast_signed())))
}

/// The low bytes of the numbers, truncated to 32 bits, in order.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn low_bytes([a, b, c, d]: [__m256; 4]) -> __m256i {
    let mask = _mm256_set1_epi32(0xff);
    // Only the low byte counts, also of numbers that a saturating pack would change.
    let [a, b] = [_mm256_cvttps_epi32(a), _mm256_cvttps_epi32(b)];
    let [c, d] = [_mm256_cvttps_epi32(c), _mm256_cvttps_epi32(d)];
    let low = _mm256_packus_epi32(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
    let high = _mm256_packus_epi32(_mm256_and_si256(c, mask), _mm256_and_si256(d, mask));
    // Packing works on halves of a vector: put the eight groups of four in order.
    let places = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), places)
}

impl SideBySide for Avx2 {
    type Block = [__m256; 4];
    type Bytes = __m256i;

    #[inline(always)]
    fn block(self, x: &[f32; BLOCK]) -> [__m256; 4] {
        let parts = x.as_chunks::<8>().0;
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe { [load(&parts[0]), load(&parts[1]), load(&parts[2]), load(&parts[3])] }
    }

    #[inline(always)]
    fn largest(self, [a, b, c, d]: [__m256; 4]) -> f32 {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe {
            let [a, b] = [_mm256_castps_si256(magnitudes_of(a)), _mm256_castps_si256(magnitudes_of(b))];
            let [c, d] = [_mm256_castps_si256(magnitudes_of(c)), _mm256_castps_si256(magnitudes_of(d))];
            largest_of(_mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d)))
        }
    }

    #[inline(always)]
    fn range(self, [a, b, c, d]: [__m256; 4]) -> (f32, f32) {
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe {
            let least = _mm256_min_ps(_mm256_min_ps(a, b), _mm256_min_ps(c, d));
            let greatest = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
            range_of(least, greatest)
        }
    }

    #[inline(always)]
    fn of_magnitude(self, x: [__m256; 4], magnitude: f32) -> u32 {
        let mut bits = 0;
        for (part, x) in x.into_iter().enumerate() {
            // SAFETY: `self` is the proof that the CPU has AVX2.
            let same = unsafe {
                let same = _mm256_cmp_ps::<_CMP_EQ_OQ>(magnitudes_of(x), _mm256_set1_ps(magnitude));
                _mm256_movemask_ps(same).cast_unsigned()
            };
            bits |= same << (8 * part);
        }
        bits
    }

    #[inline(always)]
    fn truncated(self, mut x: [__m256; 4], from: f32, inverse: f32, shift: f32) -> __m256i {
        for x in &mut x {
            // SAFETY: `self` is the proof that the CPU has AVX2.
            unsafe {
                let above = _mm256_sub_ps(*x, _mm256_set1_ps(from));
                *x = _mm256_add_ps(_mm256_mul_ps(above, _mm256_set1_ps(inverse)), _mm256_set1_ps(shift));
            }
        }
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe { low_bytes(x) }
    }

    #[inline(always)]
    fn rounded(self, mut x: [__m256; 4], inverse: f32) -> __m256i {
        for x in &mut x {
            // SAFETY: `self` is the proof that the CPU has AVX2.
            unsafe {
                let scaled = _mm256_mul_ps(*x, _mm256_set1_ps(inverse));
                let sign = _mm256_and_ps(scaled, _mm256_set1_ps(-0.0));
                *x = _mm256_add_ps(scaled, _mm256_or_ps(_mm256_set1_ps(BELOW_HALF), sign));
            }
        }
        // SAFETY: `self` is the proof that the CPU has AVX2.
        unsafe { low_bytes(x) }
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
