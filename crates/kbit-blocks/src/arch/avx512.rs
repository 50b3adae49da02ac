//! AVX-512 F, BW, DQ and VL; products also with VNNI and VBMI.
//!
//! Invariant: an [`Avx512`] exists only where the CPU has the first four, and AVX2 and F16C; a [`Vnni`] only where it has all. `VCVTNEPS2BF16` is not used: it takes
//! subnormal numbers for zero, which ggml's reference does not.
#![expect(unsafe_code, reason = "vector instructions and loads")]

mod block;
mod dot;
mod panel;
mod rows;
mod search;

use self::dot::{dot_iq4_nl, dot_iq4_xs, dot_mxfp4, dot_q4_0, dot_q4_k, dot_q8_0};
use self::panel::{
    unpack_iq4_nl, unpack_iq4_xs, unpack_mxfp4, unpack_q4_0, unpack_q4_k, unpack_q5_0, unpack_q5_k,
    unpack_q6_k, unpack_q8_0,
};
use super::avx2::{Avx2, Floats8, Integers8};
use super::lanes::Lanes;
use super::{for_kernels, kernel, portable};
use crate::dot::Operands;
use crate::grid::{Around, Grid, Group, NOTHING, Nearest, OFF_GRID, UNIT};
use crate::panel::Source;
use kbit_types::{GgmlType, IntegerPanel, PackedActivation};
use std::arch::x86_64::*;

/// Proof that the CPU has the features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512 {
    avx2: Avx2,
    vnni: Option<Vnni>,
}

/// Proof that the CPU has VNNI and VBMI, too.
#[derive(Clone, Copy, Debug)]
struct Vnni(());

impl Avx512 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        let avx2 = Avx2::new()?;
        let vnni = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vbmi");
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Self { avx2, vnni: vnni.then_some(Vnni(())) })
    }
}

impl Avx512 {
    /// See [`rows::dot_integers`].
    pub(crate) fn dot_integers(
        self,
        ty: GgmlType,
        source: Source<'_>,
        x: PackedActivation<'_>,
        out: &mut [f32],
    ) -> bool {
        match self.vnni {
            // SAFETY: the proof exists only where the CPU has VNNI and VBMI.
            Some(Vnni(())) => unsafe { rows::dot_integers(ty, source, x, out) },
            None => self.avx2.dot_integers(ty, source, x, out),
        }
    }
}

macro_rules! kernels {
    ($($signature:tt { $($name:ident $avx2:ident $how:ident;)* })*) => {
        impl Avx512 {
            $($(kernel! { $how Avx512, "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl", $signature $name })*)*
        }
    };
}
for_kernels!(kernels);

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

/// The code of least sum of the terms that its levels choose, among whole pairs of units; of equal sums, the first.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn least_of(list: &[[u16; UNIT]], terms: &[__m512; 8]) -> u32 {
    let pairs = list.as_chunks::<2>().0;
    let codes_of = |pair: &[[u16; UNIT]; 2]| {
        // SAFETY: reads the 32 bytes of `pair`; the instruction needs no alignment.
        _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(pair.as_ptr().cast()) })
    };
    // The permutation looks at the two lowest bits.
    let sum_of = |codes: __m512i| {
        let sum = _mm512_permutevar_ps(terms[0], codes);
        let sum = _mm512_add_ps(sum, _mm512_permutevar_ps(terms[1], _mm512_srli_epi32::<2>(codes)));
        let sum = _mm512_add_ps(sum, _mm512_permutevar_ps(terms[2], _mm512_srli_epi32::<4>(codes)));
        let sum = _mm512_add_ps(sum, _mm512_permutevar_ps(terms[3], _mm512_srli_epi32::<6>(codes)));
        let sum = _mm512_add_ps(sum, _mm512_permutevar_ps(terms[4], _mm512_srli_epi32::<8>(codes)));
        let sum = _mm512_add_ps(sum, _mm512_permutevar_ps(terms[5], _mm512_srli_epi32::<10>(codes)));
        let sum = _mm512_add_ps(sum, _mm512_permutevar_ps(terms[6], _mm512_srli_epi32::<12>(codes)));
        _mm512_add_ps(sum, _mm512_permutevar_ps(terms[7], _mm512_srli_epi32::<14>(codes)))
    };
    let Some((first, others)) = pairs.split_first() else { return NOTHING };
    let mut codes = codes_of(first);
    // The second operand where the first is no number.
    let mut least = _mm512_min_ps(sum_of(codes), _mm512_set1_ps(f32::MAX));
    let mut units = _mm512_setzero_si512();
    for (unit, pair) in (1..).zip(others) {
        let these = codes_of(pair);
        let sums = sum_of(these);
        let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sums, least);
        least = _mm512_mask_mov_ps(least, below, sums);
        codes = _mm512_mask_mov_epi32(codes, below, these);
        units = _mm512_mask_mov_epi32(units, below, _mm512_set1_epi32(unit));
    }
    let smallest = _mm512_reduce_min_ps(least);
    if smallest == f32::MAX {
        return NOTHING;
    }
    let mut equal = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(least, _mm512_set1_ps(smallest));
    if pairs.len() > 1 && !equal.is_power_of_two() {
        let first = _mm512_mask_reduce_min_epu32(equal, units);
        equal = _mm512_mask_cmpeq_epi32_mask(equal, units, _mm512_set1_epi32(first.cast_signed()));
    }
    // The lowest lane is the first.
    let code = _mm512_castsi512_si128(_mm512_maskz_compress_epi32(equal, codes));
    _mm_cvtsi128_si32(code).cast_unsigned() | OFF_GRID
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn nearest8(grid: &Grid<8>, group: &Group<8>, values: &[f32; 4], scales: &[f32], at: &mut [u32]) {
    let low = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
    // SAFETY: each reads the bytes of its array; the instructions need no alignment.
    let (x, weights, values) = unsafe {
        (
            _mm512_castps256_ps512(_mm256_loadu_ps(group.x.as_ptr())),
            _mm512_castps256_ps512(_mm256_loadu_ps(group.weights.as_ptr())),
            _mm512_broadcast_f32x4(_mm_loadu_ps(values.as_ptr())),
        )
    };
    // Four of each weight, for the terms of its levels.
    let x = [_mm512_permutexvar_ps(low, x), _mm512_permutexvar_ps(high, x)];
    let weights = [_mm512_permutexvar_ps(low, weights), _mm512_permutexvar_ps(high, weights)];
    for (scale, at) in scales.iter().zip(at) {
        let list = match grid.around(*at) {
            Around::Point(code) => {
                *at = u32::from(code);
                continue;
            }
            Around::Neighbours(list) => list,
        };
        let values = _mm512_mul_ps(_mm512_set1_ps(*scale), values);
        let a = _mm512_sub_ps(values, x[0]);
        let a = _mm512_mul_ps(_mm512_mul_ps(weights[0], a), a);
        let b = _mm512_sub_ps(values, x[1]);
        let b = _mm512_mul_ps(_mm512_mul_ps(weights[1], b), b);
        let terms = [
            _mm512_shuffle_f32x4::<0b00_00_00_00>(a, a),
            _mm512_shuffle_f32x4::<0b01_01_01_01>(a, a),
            _mm512_shuffle_f32x4::<0b10_10_10_10>(a, a),
            _mm512_shuffle_f32x4::<0b11_11_11_11>(a, a),
            _mm512_shuffle_f32x4::<0b00_00_00_00>(b, b),
            _mm512_shuffle_f32x4::<0b01_01_01_01>(b, b),
            _mm512_shuffle_f32x4::<0b10_10_10_10>(b, b),
            _mm512_shuffle_f32x4::<0b11_11_11_11>(b, b),
        ];
        *at = least_of(list, &terms);
    }
}

impl Nearest for Avx512 {
    #[inline(always)]
    fn nearest8(self, grid: &Grid<8>, group: &Group<8>, values: &[f32; 4], scales: &[f32], at: &mut [u32]) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { nearest8(grid, group, values, scales, at) }
    }

    #[inline(always)]
    fn nearest4(self, grid: &Grid<4>, group: &Group<4>, values: &[f32; 8], scales: &[f32], at: &mut [u32]) {
        // Most lists have a unit of eight codes.
        self.avx2.nearest4(grid, group, values, scales, at);
    }
}

impl Lanes for Avx512 {
    type Floats = Floats8;

    #[inline(always)]
    fn all(self, x: f32) -> Floats8 {
        self.avx2.all(x)
    }

    #[inline(always)]
    fn floats(self, x: &[f32; 8]) -> Floats8 {
        self.avx2.floats(x)
    }

    #[inline(always)]
    fn integers(self, x: &[u32; 8]) -> Integers8 {
        self.avx2.integers(x)
    }

    #[inline(always)]
    fn small(self, x: &[i8; 8]) -> Floats8 {
        self.avx2.small(x)
    }
}
