//! Vectors of [`Avx512`] for the searches that run one block a lane.

use super::Avx512;
use crate::arch::{vector, vector_methods};
use crate::lanes::{Floats, Grid, INTEGERS, ROUNDER, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, Div, Mul, Sub};

/// Sixteen floats; exists only where [`Avx512`] does.
#[derive(Clone, Copy)]
pub(crate) struct Vector(__m512);

/// A bit a lane.
#[derive(Clone, Copy)]
pub(crate) struct Mask(__mmask16);

vector! {
    Avx512, 16;
    set: _mm512_set1_ps, load: _mm512_loadu_ps;
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

    vector_methods! { store: _mm512_storeu_ps, least: _mm512_min_ps, greatest: _mm512_max_ps, sqrt: _mm512_sqrt_ps }

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
    fn abs(self) -> Self {
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        Self(unsafe { _mm512_abs_ps(self.0) })
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
