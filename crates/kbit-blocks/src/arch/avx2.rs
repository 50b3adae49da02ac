//! AVX2 and F16C.
//!
//! Invariant: an [`Avx2`] exists only where the CPU has both, so the functions here, which need them, may be called. Loads and
//! stores go through references to whole vectors' worth of numbers; nothing else is unsafe.
#![expect(unsafe_code, reason = "vector instructions and loads")]

pub(super) mod block;
pub(super) mod dot;
mod rows;
mod search;

use self::dot::{
    dot_iq4_nl, dot_iq4_xs, dot_mxfp4, dot_q2_k, dot_q3_k, dot_q4_0, dot_q4_k, dot_q5_k, dot_q6_k, dot_q8_0,
};
use super::lanes::{Floats, Integers, Lanes, Mask};
use super::{for_kernels, kernel, portable};
use crate::dot::Operands;
use crate::grid::{Around, Grid, Group, NOTHING, Nearest, OFF_GRID, UNIT};
use crate::panel::Source;
use kbit_types::{GgmlType, IntegerPanel, PackedActivation};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    /// See [`rows::dot_integers`].
    pub(crate) fn dot_integers(
        self,
        ty: GgmlType,
        source: Source<'_>,
        x: PackedActivation<'_>,
        out: &mut [f32],
    ) -> bool {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { rows::dot_integers(ty, source, x, out) }
    }
}

macro_rules! kernels {
    ($($signature:tt { $($name:ident $how:ident $avx512:ident;)* })*) => {
        impl Avx2 {
            $($(kernel! { $how Avx2, "avx2,f16c", $signature $name })*)*
        }
    };
}
for_kernels!(kernels);

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

/// The code of least `sum` among whole units of codes, widened to 32 bits; of equal sums, the first.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn least_of(list: &[[u16; UNIT]], sum: impl Fn(__m256i) -> __m256) -> u32 {
    let sum = |codes: &[u16; UNIT]| {
        // SAFETY: reads the 16 bytes of `codes`; the instruction needs no alignment.
        sum(_mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) }))
    };
    let Some((first, others)) = list.split_first() else { return NOTHING };
    // The second operand where the first is no number.
    let mut least = _mm256_min_ps(sum(first), _mm256_set1_ps(f32::MAX));
    let mut units = _mm256_setzero_si256();
    for (unit, codes) in (1..).zip(others) {
        let sums = sum(codes);
        let below = _mm256_cmp_ps::<_CMP_LT_OQ>(sums, least);
        least = _mm256_blendv_ps(least, sums, below);
        units = _mm256_blendv_epi8(units, _mm256_set1_epi32(unit), _mm256_castps_si256(below));
    }
    let half = _mm_min_ps(_mm256_castps256_ps128(least), _mm256_extractf128_ps::<1>(least));
    let half = _mm_min_ps(half, _mm_movehl_ps(half, half));
    let half = _mm_min_ss(half, _mm_movehdup_ps(half));
    if _mm_cvtss_f32(half) == f32::MAX {
        return NOTHING;
    }
    let equal = _mm256_cmp_ps::<_CMP_EQ_OQ>(least, _mm256_broadcastss_ps(half));
    let mut equal = _mm256_movemask_ps(equal).cast_unsigned();
    let mut first = (0, equal.trailing_zeros() as usize % UNIT);
    if list.len() > 1 {
        let mut of_lanes = [0i32; 8];
        // SAFETY: writes the 32 bytes of `of_lanes`; the instruction needs no alignment.
        unsafe { _mm256_storeu_si256(of_lanes.as_mut_ptr().cast(), units) }
        first.0 = of_lanes[first.1];
        equal &= equal - 1;
        while equal != 0 {
            let lane = equal.trailing_zeros() as usize % UNIT;
            first = first.min((of_lanes[lane], lane));
            equal &= equal - 1;
        }
    }
    u32::from(list[first.0.cast_unsigned() as usize][first.1]) | OFF_GRID
}

#[target_feature(enable = "avx2,f16c")]
fn nearest8(grid: &Grid<8>, group: &Group<8>, values: &[f32; 4], scales: &[f32], at: &mut [u32]) {
    // SAFETY: reads the 16 bytes of `values`; the instruction needs no alignment.
    let values = unsafe { _mm_loadu_ps(values.as_ptr()) };
    let values = _mm256_set_m128(values, values);
    for (scale, at) in scales.iter().zip(at) {
        let list = match grid.around(*at) {
            Around::Point(code) => {
                *at = u32::from(code);
                continue;
            }
            Around::Neighbours(list) => list,
        };
        let values = _mm256_mul_ps(_mm256_set1_ps(*scale), values);
        // What each level of a weight adds to a distance, in both halves.
        let mut terms = [values; 8];
        for (terms, (x, weight)) in terms.iter_mut().zip(group.x.iter().zip(&group.weights)) {
            let difference = _mm256_sub_ps(values, _mm256_set1_ps(*x));
            *terms = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(*weight), difference), difference);
        }
        // The permutation looks at the two lowest bits.
        *at = least_of(list, |codes| {
            let sum = _mm256_permutevar_ps(terms[0], codes);
            let sum = _mm256_add_ps(sum, _mm256_permutevar_ps(terms[1], _mm256_srli_epi32::<2>(codes)));
            let sum = _mm256_add_ps(sum, _mm256_permutevar_ps(terms[2], _mm256_srli_epi32::<4>(codes)));
            let sum = _mm256_add_ps(sum, _mm256_permutevar_ps(terms[3], _mm256_srli_epi32::<6>(codes)));
            let sum = _mm256_add_ps(sum, _mm256_permutevar_ps(terms[4], _mm256_srli_epi32::<8>(codes)));
            let sum = _mm256_add_ps(sum, _mm256_permutevar_ps(terms[5], _mm256_srli_epi32::<10>(codes)));
            let sum = _mm256_add_ps(sum, _mm256_permutevar_ps(terms[6], _mm256_srli_epi32::<12>(codes)));
            _mm256_add_ps(sum, _mm256_permutevar_ps(terms[7], _mm256_srli_epi32::<14>(codes)))
        });
    }
}

#[target_feature(enable = "avx2,f16c")]
fn nearest4(grid: &Grid<4>, group: &Group<4>, values: &[f32; 8], scales: &[f32], at: &mut [u32]) {
    let values = load(values);
    let x = group.x.map(|x| _mm256_set1_ps(x));
    let weights = group.weights.map(|weight| _mm256_set1_ps(weight));
    for (scale, at) in scales.iter().zip(at) {
        let list = match grid.around(*at) {
            Around::Point(code) => {
                *at = u32::from(code);
                continue;
            }
            Around::Neighbours(list) => list,
        };
        let values = _mm256_mul_ps(_mm256_set1_ps(*scale), values);
        let mut terms = [values; 4];
        for (terms, (x, weight)) in terms.iter_mut().zip(x.iter().zip(&weights)) {
            let difference = _mm256_sub_ps(values, *x);
            *terms = _mm256_mul_ps(_mm256_mul_ps(*weight, difference), difference);
        }
        // The permutation looks at the three lowest bits.
        *at = least_of(list, |codes| {
            let sum = _mm256_permutevar8x32_ps(terms[0], codes);
            let sum = _mm256_add_ps(sum, _mm256_permutevar8x32_ps(terms[1], _mm256_srli_epi32::<3>(codes)));
            let sum = _mm256_add_ps(sum, _mm256_permutevar8x32_ps(terms[2], _mm256_srli_epi32::<6>(codes)));
            _mm256_add_ps(sum, _mm256_permutevar8x32_ps(terms[3], _mm256_srli_epi32::<9>(codes)))
        });
    }
}

impl Nearest for Avx2 {
    #[inline(always)]
    fn nearest8(self, grid: &Grid<8>, group: &Group<8>, values: &[f32; 4], scales: &[f32], at: &mut [u32]) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { nearest8(grid, group, values, scales, at) }
    }

    #[inline(always)]
    fn nearest4(self, grid: &Grid<4>, group: &Group<4>, values: &[f32; 8], scales: &[f32], at: &mut [u32]) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { nearest4(grid, group, values, scales, at) }
    }
}

/// Eight floats. Invariant: made from an [`Avx2`] only, so one that exists proves the features.
#[derive(Clone, Copy)]
pub(crate) struct Floats8(__m256);

/// Eight integers, with the invariant of [`Floats8`].
#[derive(Clone, Copy)]
pub(crate) struct Integers8(__m256i);

/// Lanes of ones or zeros, with the invariant of [`Floats8`].
#[derive(Clone, Copy)]
pub(crate) struct Mask8(__m256);

impl Lanes for Avx2 {
    type Floats = Floats8;

    #[inline(always)]
    fn all(self, x: f32) -> Floats8 {
        // SAFETY: `self` exists only where the CPU has the features.
        Floats8(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    fn floats(self, x: &[f32; 8]) -> Floats8 {
        // SAFETY: `self` exists only where the CPU has the features; reads the 32 bytes of `x` without need of alignment.
        Floats8(unsafe { _mm256_loadu_ps(x.as_ptr()) })
    }

    #[inline(always)]
    fn integers(self, x: &[u32; 8]) -> Integers8 {
        // SAFETY: `self` exists only where the CPU has the features; reads the 32 bytes of `x` without need of alignment.
        Integers8(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
    }

    #[inline(always)]
    fn small(self, x: &[i8; 8]) -> Floats8 {
        // SAFETY: `self` exists only where the CPU has the features; reads the 8 bytes of `x` without need of alignment.
        unsafe {
            let bytes = _mm_loadl_epi64(x.as_ptr().cast());
            Floats8(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
        }
    }
}

macro_rules! operators {
    ($($vector:ident: $operator:ident $name:ident $instruction:ident;)*) => {
        $(impl std::ops::$operator for $vector {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: the vectors exist only where the CPU has the features.
                Self(unsafe { $instruction(self.0, other.0) })
            }
        })*
    };
}

operators! {
    Floats8: Add add _mm256_add_ps;
    Floats8: Sub sub _mm256_sub_ps;
    Floats8: Mul mul _mm256_mul_ps;
    Floats8: Div div _mm256_div_ps;
    Integers8: Add add _mm256_add_epi32;
    Integers8: Sub sub _mm256_sub_epi32;
    Mask8: BitAnd bitand _mm256_and_ps;
}

impl Mask for Mask8 {
    #[inline(always)]
    fn and_not(self, other: Self) -> Self {
        // SAFETY: the vectors exist only where the CPU has the features.
        Self(unsafe { _mm256_andnot_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn any(self) -> bool {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { _mm256_movemask_ps(self.0) != 0 }
    }
}

impl Floats for Floats8 {
    type Integers = Integers8;
    type Mask = Mask8;

    #[inline(always)]
    fn array(self) -> [f32; 8] {
        let mut out = [0.0; 8];
        // SAFETY: `self` exists only where the CPU has the features; writes the 32 bytes of `out` without need of alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), self.0) }
        out
    }

    #[inline(always)]
    fn less(self, other: Self) -> Mask8 {
        // SAFETY: the vectors exist only where the CPU has the features.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn or(self, mask: Mask8, others: Self) -> Self {
        // SAFETY: the vectors exist only where the CPU has the features.
        Self(unsafe { _mm256_blendv_ps(others.0, self.0, mask.0) })
    }

    #[inline(always)]
    fn turned(self, bits: u8) -> Self {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe {
            let places = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
            let signs = _mm256_castsi256_ps(_mm256_sllv_epi32(_mm256_set1_epi32(i32::from(bits)), places));
            Self(_mm256_xor_ps(self.0, _mm256_and_ps(signs, _mm256_set1_ps(-0.0))))
        }
    }

    #[inline(always)]
    fn bits(self) -> Integers8 {
        // SAFETY: `self` exists only where the CPU has the features.
        Integers8(unsafe { _mm256_castps_si256(self.0) })
    }

    #[inline(always)]
    fn look_up<const D: usize>(self, indices: Integers8) -> Self {
        // SAFETY: the vectors exist only where the CPU has the features.
        unsafe {
            Self(match D {
                8 => _mm256_permutevar_ps(self.0, indices.0),
                _ => _mm256_permutevar8x32_ps(self.0, indices.0),
            })
        }
    }
}

impl Integers for Integers8 {
    type Floats = Floats8;

    #[inline(always)]
    fn array(self) -> [u32; 8] {
        let mut out = [0; 8];
        // SAFETY: `self` exists only where the CPU has the features; writes the 32 bytes of `out` without need of alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), self.0) }
        out
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: the vectors exist only where the CPU has the features.
        Self(unsafe { _mm256_and_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the vectors exist only where the CPU has the features.
        Self(unsafe { _mm256_min_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the vectors exist only where the CPU has the features.
        Self(unsafe { _mm256_max_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn times_two_to<const BITS: i32>(self) -> Self {
        // SAFETY: `self` exists only where the CPU has the features.
        Self(unsafe { _mm256_slli_epi32::<BITS>(self.0) })
    }

    #[inline(always)]
    fn shifted(self, bits: usize) -> Self {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { Self(_mm256_srlv_epi32(self.0, _mm256_set1_epi32(bits as i32))) }
    }

    #[inline(always)]
    fn floats(self) -> Floats8 {
        // SAFETY: `self` exists only where the CPU has the features.
        Floats8(unsafe { _mm256_cvtepi32_ps(self.0) })
    }

    #[inline(always)]
    fn equal(self, other: Self) -> Mask8 {
        // SAFETY: the vectors exist only where the CPU has the features.
        Mask8(unsafe { _mm256_castsi256_ps(_mm256_cmpeq_epi32(self.0, other.0)) })
    }

    #[inline(always)]
    fn or(self, mask: Mask8, others: Self) -> Self {
        // SAFETY: the vectors exist only where the CPU has the features.
        Self(unsafe { _mm256_blendv_epi8(others.0, self.0, _mm256_castps_si256(mask.0)) })
    }
}
