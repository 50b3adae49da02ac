//! Tiles of integers: one or two vectors of eight outputs for each of up to 6 activations.
//!
//! One instruction multiplies bytes without sign with signed ones and adds neighbours to 16 bits, which saturates. Small levels are
//! multiplied without sign: their sums fit into 16 bits for some units, and what their offset adds is taken off beforehand, as on
//! AVX-512. Levels of eight bits get their sign back, and give their magnitude and their sign to the products.
//!
//! With two vectors, an activation is broadcast for two products, but sums of floats leave the registers: worth it where units are added in
//! 16 bits and seldom leave those. Loops go by indices, since compilers unroll these before they place the sums.

use super::Avx2;
use crate::arch::generic;
use crate::packed::{Groups, IntegerProduct, IntegerTokens, PANEL};
use kbit_types::{IntegerLayout, Terms};
use std::arch::x86_64::*;

/// Lanes of a vector.
const LANES: usize = 8;
/// Outputs of a tile, at most.
const WIDTH: usize = 2 * LANES;

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

/// True where levels are signed bytes when the offset is taken off.
fn signed(layout: IntegerLayout) -> bool {
    layout.offset <= 128 && layout.most.saturating_sub(layout.offset) <= 127
}

#[target_feature(enable = "avx2,fma")]
fn multiply(product: &mut IntegerProduct<'_, '_>) {
    macro_rules! of {
        ($vectors:literal, $units:literal, $together:literal, $terms:ident: $($count:literal)*) => {
            for first in (0..product.out().rows()).step_by(Groups::INTEGERS.tokens) {
                let x = product.x(first);
                for lane in (0..product.out().cols()).step_by($vectors * LANES) {
                    match x.count {
                        // SAFETY: there are as many activations, of this layout, and `x` has all of their numbers; levels are small
                        // enough, or have a sign.
                        $($count => unsafe {
                            tile::<$count, $vectors, $units, $together, { Terms::$terms as u8 }>(product, first, lane, x);
                        },)*
                        other => unreachable!("{other} activations in a tile"),
                    }
                }
            }
        };
        ($vectors:literal, $units:literal, $together:literal, $terms:ident) => {
            of!($vectors, $units, $together, $terms: 1 2 3 4 5 6)
        };
    }
    let layout = product.cols().layout();
    match (layout.part, together(layout.most), layout.terms) {
        (32, 0, Terms::Scales) if signed(layout) => of!(1, 8, 0, Scales),
        (32, 4, Terms::Scales) => of!(1, 8, 4, Scales),
        (32, 8, Terms::ScalesInTurn) => of!(2, 8, 8, ScalesInTurn),
        (32, 8, Terms::ScalesAndMinimums) => of!(2, 8, 8, ScalesAndMinimums),
        (32, 4, Terms::ScalesAndMinimums) => of!(1, 8, 4, ScalesAndMinimums),
        (32, 8, Terms::PartsAndMinimums) => of!(2, 8, 8, PartsAndMinimums),
        (32, 4, Terms::PartsAndMinimums) => of!(1, 8, 4, PartsAndMinimums),
        (32, 0, Terms::Parts) if signed(layout) => of!(1, 8, 0, Parts),
        (32, 8, Terms::Parts) => of!(2, 8, 8, Parts),
        (32, 4, Terms::Parts) => of!(1, 8, 4, Parts),
        (16, 0, Terms::Parts) if signed(layout) => of!(1, 4, 0, Parts),
        (16, 8, Terms::Parts) => of!(1, 4, 4, Parts),
        (16, 2, Terms::Parts) => of!(2, 4, 2, Parts),
        (16, 8, Terms::PartsAndMinimums) => of!(1, 4, 4, PartsAndMinimums),
        (32, 8, Terms::ScalesOfActivationParts) => of!(2, 8, 8, ScalesOfActivationParts),
        _ => generic::multiply_integers(product),
    }
}

/// # Safety
/// `x` are `M` activations from the one of number `token` on, whose parts have `U` units, and whose terms have number `T`. Sums of `K`
/// units fit into 16 bits; 0 stands for levels that are signed bytes when the offset is taken off. No activation is -128. `V` is 1 or 2.
#[inline(never)]
#[expect(clippy::needless_range_loop, reason = "see the module: loops by indices are unrolled early")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize, const V: usize, const U: usize, const K: usize, const T: u8>(
    product: &mut IntegerProduct<'_, '_>,
    token: usize,
    lane: usize,
    x: IntegerTokens<'_>,
) {
    let w = product.w();
    let layout = product.cols().layout();
    // Corrections that come first stay in registers, of which there are enough with one vector alone.
    let late = const { V > 1 };
    let scaled = const { T == Terms::Parts as u8 || T == Terms::PartsAndMinimums as u8 };
    let minimums = const { T == Terms::PartsAndMinimums as u8 };
    let second_scale = const { T == Terms::ScalesAndMinimums as u8 };
    let scales_of_parts = const { T == Terms::ScalesOfActivationParts as u8 };
    let parts = if scaled || scales_of_parts { layout.block / (4 * U) } else { 1 };
    let each = if second_scale { 2 } else { 1 };
    let (add, lanes) = (product.add(), (V * LANES).min(product.out().cols() - lane));
    let offset = _mm256_set1_epi8(layout.offset.cast_signed());
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_ps(); V]; M];
    if add {
        for (m, sums) in sums.iter_mut().enumerate() {
            let out = &product.out().row_mut(token + m)[lane..lane + lanes];
            let mut row = [0.0; WIDTH];
            // Most rows are whole vectors, which need no call to copy.
            match out.first_chunk() {
                Some(out) => row = *out,
                None => row[..lanes].copy_from_slice(out),
            }
            for (sum, row) in sums.iter_mut().zip(row.as_chunks::<LANES>().0) {
                // SAFETY: there are as many floats as a vector has.
                *sum = unsafe { _mm256_loadu_ps(row.as_ptr()) };
            }
        }
    }
    // SAFETY: for every block, part and unit there are PANEL numbers of `w`, of which `lane` and those of V vectors from there on are
    // among the first PANEL, and M of `x`.
    unsafe {
        let mut levels = (x.levels.as_ptr().cast::<i32>(), w.levels.as_ptr().add(lane).cast::<i32>());
        for block in 0..product.cols().blocks() {
            let mut totals = [[_mm256_setzero_si256(); V]; M];
            let mut inner = [[_mm256_setzero_ps(); V]; M];
            for part in 0..parts {
                let index = block * parts + part;
                let mut products = [[_mm256_setzero_si256(); V]; M];
                if K < 2 {
                    for unit in 0..U {
                        let mut w: [__m256i; V] = vectors(levels.1.add(unit * PANEL));
                        for v in 0..V {
                            w[v] = _mm256_sub_epi8(w[v], offset);
                        }
                        for m in 0..M {
                            let x = _mm256_set1_epi32(*levels.0.add(unit * M + m));
                            for v in 0..V {
                                let pairs =
                                    _mm256_maddubs_epi16(_mm256_abs_epi8(w[v]), _mm256_sign_epi8(x, w[v]));
                                products[m][v] =
                                    _mm256_add_epi32(products[m][v], _mm256_madd_epi16(pairs, ones));
                            }
                        }
                    }
                } else {
                    if !late {
                        for m in 0..M {
                            let correction = _mm256_set1_epi32(*x.corrections.as_ptr().add(index * M + m));
                            products[m] = [correction; V];
                        }
                    }
                    for first in (0..U).step_by(K.max(1)) {
                        let mut pairs = [[_mm256_setzero_si256(); V]; M];
                        for unit in first..first + K {
                            let w: [__m256i; V] = vectors(levels.1.add(unit * PANEL));
                            for m in 0..M {
                                let x = _mm256_set1_epi32(*levels.0.add(unit * M + m));
                                for v in 0..V {
                                    pairs[m][v] =
                                        _mm256_add_epi16(pairs[m][v], _mm256_maddubs_epi16(w[v], x));
                                }
                            }
                        }
                        for m in 0..M {
                            let correction = _mm256_set1_epi32(*x.corrections.as_ptr().add(index * M + m));
                            for v in 0..V {
                                let before = if late && first == 0 { correction } else { products[m][v] };
                                products[m][v] =
                                    _mm256_add_epi32(before, _mm256_madd_epi16(pairs[m][v], ones));
                            }
                        }
                    }
                }
                levels = (levels.0.add(U * M), levels.1.add(U * PANEL));
                if scaled {
                    let scales: [__m256i; V] = vectors(w.part_scales.as_ptr().add(index * PANEL + lane));
                    for m in 0..M {
                        for v in 0..V {
                            totals[m][v] =
                                _mm256_add_epi32(totals[m][v], _mm256_mullo_epi32(products[m][v], scales[v]));
                        }
                    }
                } else if scales_of_parts {
                    for m in 0..M {
                        let y = _mm256_broadcast_ss(&*x.scales.as_ptr().add(index * M + m));
                        for v in 0..V {
                            inner[m][v] = _mm256_add_ps(
                                inner[m][v],
                                _mm256_mul_ps(y, _mm256_cvtepi32_ps(products[m][v])),
                            );
                        }
                    }
                } else {
                    totals = products;
                }
            }
            let mut least = [[_mm256_setzero_si256(); V]; M];
            if minimums {
                for index in block * parts / 2..(block + 1) * parts / 2 {
                    let w: [__m256i; V] = vectors(w.minimums.as_ptr().add(index * PANEL + lane).cast());
                    for (m, least) in least.iter_mut().enumerate() {
                        let x = _mm256_set1_epi32(x.sums.as_ptr().add(index * M + m).read().cast_signed());
                        for (least, w) in least.iter_mut().zip(w) {
                            *least = _mm256_add_epi32(*least, _mm256_madd_epi16(w, x));
                        }
                    }
                }
            }
            for vector in 0..V {
                let scale = _mm256_loadu_ps(w.scales.as_ptr().add(block * PANEL + lane + vector * LANES));
                if scales_of_parts {
                    for (sums, inner) in sums.iter_mut().zip(inner) {
                        sums[vector] = _mm256_add_ps(sums[vector], _mm256_mul_ps(scale, inner[vector]));
                    }
                    continue;
                }
                for (m, (sums, totals)) in sums.iter_mut().zip(totals).enumerate() {
                    let y =
                        |which| _mm256_broadcast_ss(&*x.scales.as_ptr().add((block * each + which) * M + m));
                    let total = _mm256_cvtepi32_ps(totals[vector]);
                    let mut term = if T == Terms::ScalesInTurn as u8 {
                        _mm256_mul_ps(_mm256_mul_ps(total, scale), y(0))
                    } else {
                        _mm256_mul_ps(total, _mm256_mul_ps(scale, y(0)))
                    };
                    if minimums || second_scale {
                        let scales = w.minimum_scales.as_ptr().add(block * PANEL + lane + vector * LANES);
                        let scale = _mm256_loadu_ps(scales);
                        term = if second_scale {
                            _mm256_add_ps(term, _mm256_mul_ps(scale, y(1)))
                        } else {
                            let least = _mm256_cvtepi32_ps(least[m][vector]);
                            _mm256_sub_ps(term, _mm256_mul_ps(least, _mm256_mul_ps(scale, y(0))))
                        };
                    }
                    sums[vector] = _mm256_add_ps(sums[vector], term);
                }
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        let mut row = [0.0; WIDTH];
        for (sum, row) in sums.iter().zip(row.as_chunks_mut::<LANES>().0) {
            // SAFETY: there are as many floats as a vector has.
            unsafe { _mm256_storeu_ps(row.as_mut_ptr(), *sum) };
        }
        let out = &mut product.out().row_mut(token + m)[lane..lane + lanes];
        match out.first_chunk_mut() {
            Some(out) => *out = row,
            None => out.copy_from_slice(&row[..lanes]),
        }
    }
}

/// # Safety
/// `V` vectors of integers may be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn vectors<const V: usize>(from: *const i32) -> [__m256i; V] {
    let mut vectors = [_mm256_setzero_si256(); V];
    for (index, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: as this function's.
        *vector = unsafe { integers(from.add(index * LANES)) };
    }
    vectors
}

/// # Safety
/// 8 integers may be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn integers(from: *const i32) -> __m256i {
    // SAFETY: as this function's.
    unsafe { _mm256_loadu_si256(from.cast()) }
}
