//! Tiles of integers: a vector of eight outputs for each of up to 6 activations.
//!
//! One instruction multiplies bytes without sign with signed ones and adds neighbours to 16 bits, which saturates. Small levels are
//! multiplied without sign: their sums fit into 16 bits for some units, and what their offset adds is taken off beforehand, as on
//! AVX-512. Levels of eight bits get their sign back, and one factor gives its magnitude and its sign to the other.

use super::Avx2;
use crate::arch::generic;
use crate::packed::{INTEGER_TOKENS, IntegerProduct, IntegerTokens, PANEL};
use kbit_types::Terms;
use std::arch::x86_64::*;

/// Lanes of a vector.
const LANES: usize = 8;

impl Avx2 {
    /// See [`Kernels::multiply_integers`](crate::Kernels::multiply_integers).
    pub(crate) fn multiply_integers(self, product: &mut IntegerProduct<'_, '_>) {
        // SAFETY: the CPU has the features.
        unsafe { multiply(product) }
    }
}

/// Units whose products of levels up to `most` with bytes fit into 16 bits together; 0 where not even one does.
const fn together(most: u8) -> usize {
    let units = i16::MAX as usize / (2 * 128 * most as usize);
    if units >= 8 {
        8
    } else if units >= 4 {
        4
    } else if units >= 2 {
        2
    } else {
        0
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply(product: &mut IntegerProduct<'_, '_>) {
    macro_rules! of {
        ($units:literal, $together:literal, $terms:ident: $($count:literal)*) => {
            for first in (0..product.out().rows()).step_by(INTEGER_TOKENS) {
                let x = product.x(first);
                for lane in (0..product.out().cols()).step_by(LANES) {
                    match x.count {
                        // SAFETY: there are as many activations, of this layout, and `x` has all of their numbers; levels are small
                        // enough, or have a sign.
                        $($count => unsafe {
                            tile::<$count, $units, $together, { Terms::$terms as u8 }>(product, first, lane, x);
                        },)*
                        other => unreachable!("{other} activations in a tile"),
                    }
                }
            }
        };
        ($units:literal, $together:literal, $terms:ident) => { of!($units, $together, $terms: 1 2 3 4 5 6) };
    }
    let layout = product.cols().layout();
    match (layout.part, together(layout.most), layout.terms) {
        (32, 0, Terms::Scales) if layout.offset == 128 => of!(8, 0, Scales),
        (32, 0, Terms::Scales) if layout.offset == 127 => of!(8, 1, Scales),
        (32, 4, Terms::Scales) => of!(8, 4, Scales),
        (32, 8, Terms::ScalesInTurn) => of!(8, 8, ScalesInTurn),
        (32, 8, Terms::ScalesAndMinimums) => of!(8, 8, ScalesAndMinimums),
        (32, 4, Terms::ScalesAndMinimums) => of!(8, 4, ScalesAndMinimums),
        (32, 8, Terms::PartsAndMinimums) => of!(8, 8, PartsAndMinimums),
        (32, 4, Terms::PartsAndMinimums) => of!(8, 4, PartsAndMinimums),
        (32, 0, Terms::Parts) if layout.offset <= 127 => of!(8, 1, Parts),
        (32, 8, Terms::Parts) => of!(8, 8, Parts),
        (32, 4, Terms::Parts) => of!(8, 4, Parts),
        (16, 0, Terms::Parts) if layout.offset <= 127 => of!(4, 1, Parts),
        (16, 8, Terms::Parts) => of!(4, 4, Parts),
        (16, 2, Terms::Parts) => of!(4, 2, Parts),
        (16, 8, Terms::PartsAndMinimums) => of!(4, 4, PartsAndMinimums),
        (32, 8, Terms::ScalesOfActivationParts) => of!(8, 8, ScalesOfActivationParts),
        _ => generic::multiply_integers(product),
    }
}

/// # Safety
/// `x` are `M` activations from the one of number `token` on, whose parts have `U` units, and whose terms have number `T`. Sums of `K`
/// units fit into 16 bits; 0 stands for levels that are signed bytes when the offset is taken off. No activation is -128.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize, const U: usize, const K: usize, const T: u8>(
    product: &mut IntegerProduct<'_, '_>,
    token: usize,
    lane: usize,
    x: IntegerTokens<'_>,
) {
    let w = product.w();
    let layout = product.cols().layout();
    let scaled = const { T == Terms::Parts as u8 || T == Terms::PartsAndMinimums as u8 };
    let minimums = const { T == Terms::PartsAndMinimums as u8 };
    let second_scale = const { T == Terms::ScalesAndMinimums as u8 };
    let scales_of_parts = const { T == Terms::ScalesOfActivationParts as u8 };
    let parts = if scaled || scales_of_parts { layout.block / (4 * U) } else { 1 };
    let each = if second_scale { 2 } else { 1 };
    let (add, lanes) = (product.add(), LANES.min(product.out().cols() - lane));
    let offset = _mm256_set1_epi8(layout.offset.cast_signed());
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); M];
    if add {
        for (m, sum) in sums.iter_mut().enumerate() {
            let out = &product.out().row_mut(token + m)[lane..lane + lanes];
            let mut row = [0.0; LANES];
            // Most rows are whole vectors, which need no call to copy.
            match out.first_chunk() {
                Some(out) => row = *out,
                None => row[..lanes].copy_from_slice(out),
            }
            // SAFETY: the row has as many floats as a vector has.
            *sum = unsafe { _mm256_loadu_ps(row.as_ptr()) };
        }
    }
    // SAFETY: for every block, part and unit there are PANEL numbers of `w`, of which `lane` and the seven behind it are among the
    // first PANEL, and M of `x`.
    unsafe {
        let mut levels = (x.levels.as_ptr().cast::<i32>(), w.levels.as_ptr().add(lane).cast::<i32>());
        for block in 0..product.cols().blocks() {
            let mut totals = [_mm256_setzero_si256(); M];
            let mut inner = [_mm256_setzero_ps(); M];
            for part in 0..parts {
                let index = block * parts + part;
                let mut products = [_mm256_setzero_si256(); M];
                if K < 2 {
                    for unit in 0..U {
                        let w = _mm256_sub_epi8(integers(levels.1.add(unit * PANEL)), offset);
                        for (m, product) in products.iter_mut().enumerate() {
                            let x = _mm256_set1_epi32(*levels.0.add(unit * M + m));
                            let pairs = if K == 0 {
                                _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                            } else {
                                _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x))
                            };
                            *product = _mm256_add_epi32(*product, _mm256_madd_epi16(pairs, ones));
                        }
                    }
                } else {
                    for (m, product) in products.iter_mut().enumerate() {
                        *product = _mm256_set1_epi32(*x.corrections.as_ptr().add(index * M + m));
                    }
                    for first in (0..U).step_by(K.max(1)) {
                        let mut pairs = [_mm256_setzero_si256(); M];
                        for unit in first..first + K {
                            let w = integers(levels.1.add(unit * PANEL));
                            for (m, pairs) in pairs.iter_mut().enumerate() {
                                let x = _mm256_set1_epi32(*levels.0.add(unit * M + m));
                                *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(w, x));
                            }
                        }
                        for (product, pairs) in products.iter_mut().zip(pairs) {
                            *product = _mm256_add_epi32(*product, _mm256_madd_epi16(pairs, ones));
                        }
                    }
                }
                levels = (levels.0.add(U * M), levels.1.add(U * PANEL));
                if scaled {
                    let scale = integers(w.part_scales.as_ptr().add(index * PANEL + lane));
                    for (total, product) in totals.iter_mut().zip(products) {
                        *total = _mm256_add_epi32(*total, _mm256_mullo_epi32(product, scale));
                    }
                } else if scales_of_parts {
                    for (m, (inner, product)) in inner.iter_mut().zip(products).enumerate() {
                        let y = _mm256_broadcast_ss(&*x.scales.as_ptr().add(index * M + m));
                        *inner = _mm256_add_ps(*inner, _mm256_mul_ps(y, _mm256_cvtepi32_ps(product)));
                    }
                } else {
                    totals = products;
                }
            }
            let mut least = [_mm256_setzero_si256(); M];
            if minimums {
                for index in block * parts / 2..(block + 1) * parts / 2 {
                    let w = integers(w.minimums.as_ptr().add(index * PANEL + lane).cast());
                    for (m, least) in least.iter_mut().enumerate() {
                        let x = _mm256_set1_epi32(x.sums.as_ptr().add(index * M + m).read().cast_signed());
                        *least = _mm256_add_epi32(*least, _mm256_madd_epi16(w, x));
                    }
                }
            }
            let scale = _mm256_loadu_ps(w.scales.as_ptr().add(block * PANEL + lane));
            if scales_of_parts {
                for (sum, inner) in sums.iter_mut().zip(inner) {
                    *sum = _mm256_add_ps(*sum, _mm256_mul_ps(scale, inner));
                }
                continue;
            }
            for (m, (sum, total)) in sums.iter_mut().zip(totals).enumerate() {
                let y = |which| _mm256_broadcast_ss(&*x.scales.as_ptr().add((block * each + which) * M + m));
                let total = _mm256_cvtepi32_ps(total);
                let mut term = if T == Terms::ScalesInTurn as u8 {
                    _mm256_mul_ps(_mm256_mul_ps(total, scale), y(0))
                } else {
                    _mm256_mul_ps(total, _mm256_mul_ps(scale, y(0)))
                };
                if minimums || second_scale {
                    let scale = _mm256_loadu_ps(w.minimum_scales.as_ptr().add(block * PANEL + lane));
                    term = if second_scale {
                        _mm256_add_ps(term, _mm256_mul_ps(scale, y(1)))
                    } else {
                        let least = _mm256_cvtepi32_ps(least[m]);
                        _mm256_sub_ps(term, _mm256_mul_ps(least, _mm256_mul_ps(scale, y(0))))
                    };
                }
                *sum = _mm256_add_ps(*sum, term);
            }
        }
    }
    for (m, sum) in sums.iter().enumerate() {
        let mut row = [0.0; LANES];
        // SAFETY: the row has as many floats as a vector has.
        unsafe { _mm256_storeu_ps(row.as_mut_ptr(), *sum) };
        let out = &mut product.out().row_mut(token + m)[lane..lane + lanes];
        match out.first_chunk_mut() {
            Some(out) => *out = row,
            None => out.copy_from_slice(&row[..lanes]),
        }
    }
}

/// # Safety
/// 8 integers may be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn integers(from: *const i32) -> __m256i {
    // SAFETY: as this function's.
    unsafe { _mm256_loadu_si256(from.cast()) }
}
