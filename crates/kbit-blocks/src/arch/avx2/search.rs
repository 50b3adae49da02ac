//! Vectors of [`Avx2`] for the searches that run one block a lane.

use super::Avx2;
use crate::arch::{vector, vector_methods};
use crate::lanes::{Floats, Grid, INTEGERS, MOST, ROUNDER, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, Div, Mul, Sub};

/// Eight floats; exists only where [`Avx2`] does.
#[derive(Clone, Copy)]
pub(crate) struct Vector(__m256);

/// All bits of a lane, or none.
#[derive(Clone, Copy)]
pub(crate) struct Mask(__m256);

vector! {
    Avx2, 8;
    set: _mm256_set1_ps, load: _mm256_loadu_ps;
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

    vector_methods! { store: _mm256_storeu_ps, least: _mm256_min_ps, greatest: _mm256_max_ps, sqrt: _mm256_sqrt_ps }

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
    fn abs(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX2.
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
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
