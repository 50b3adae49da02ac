//! Vectors of [`Avx512`] for the searches that run one block a lane.

use super::Avx512;
use crate::lanes::{Floats, Grid, INTEGERS, MANTISSA, MOST, ROUNDER, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, Div, Mul, Sub};

/// Sixteen floats; exists only where [`Avx512`] does.
#[derive(Clone, Copy)]
pub(crate) struct Vector(pub(super) __m512);

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
    fn with_sign_of(self, other: Self) -> Self {
        /// Bits of `b` where `a` is set, else of `c`.
        const CHOOSE: i32 = 0xca;
        // SAFETY: vectors exist only where the CPU has AVX-512 F.
        unsafe {
            let sign = _mm512_set1_epi32(i32::MIN);
            let (this, other) = (_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
            Self(_mm512_castsi512_ps(_mm512_ternarylogic_epi32::<CHOOSE>(sign, other, this)))
        }
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
