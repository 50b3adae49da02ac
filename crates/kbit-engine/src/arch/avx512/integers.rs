//! Tiles of integers: two vectors of outputs for each of up to 6 activations, four products of bytes in one instruction.
//!
//! That instruction multiplies bytes without sign with signed ones. Weights are the former; what their offset adds is taken off
//! beforehand.

use super::{Avx2, Avx512, LANES, first as lanes};
use crate::packed::{Groups, IntegerProduct, IntegerTokens, PANEL};
use kbit_types::{IntegerLayout, Terms};
use std::arch::x86_64::*;

impl Avx512 {
    /// See [`Kernels::integer_groups`](crate::Kernels::integer_groups).
    pub(crate) fn integer_groups(self, layout: IntegerLayout) -> Groups {
        self.amx.and_then(|amx| amx.integer_groups(layout)).unwrap_or(Groups::INTEGERS)
    }

    /// See [`Kernels::multiply_integers`](crate::Kernels::multiply_integers).
    pub(crate) fn multiply_integers(self, product: &mut IntegerProduct<'_, '_>) {
        if let Some(amx) = self.amx
            && product.cols().groups() != Groups::INTEGERS
        {
            amx.multiply_integers(product);
        } else if self.vnni {
            // SAFETY: the CPU has the features.
            unsafe { multiply(product, self.avx2) }
        } else {
            self.avx2.multiply_integers(product);
        }
    }
}

/// Two vectors of outputs for each of `M` activations.
type Pairs<T, const M: usize> = [[T; 2]; M];

#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn multiply(product: &mut IntegerProduct<'_, '_>, avx2: Avx2) {
    macro_rules! of {
        ($units:literal, $terms:ident: $($count:literal)*) => {
            for first in (0..product.out().rows()).step_by(Groups::INTEGERS.tokens) {
                let x = product.x(first);
                match x.count {
                    // SAFETY: there are as many activations, of this layout, and `x` has all of their numbers.
                    $($count => unsafe { tile::<$count, $units, { Terms::$terms as u8 }>(product, first, x) },)*
                    other => unreachable!("{other} activations in a tile"),
                }
            }
        };
        ($units:literal, $terms:ident) => { of!($units, $terms: 1 2 3 4 5 6) };
    }
    let layout = product.cols().layout();
    match (layout.part, layout.terms) {
        (32, Terms::Scales) => of!(8, Scales),
        (32, Terms::ScalesInTurn) => of!(8, ScalesInTurn),
        (32, Terms::Parts) => of!(8, Parts),
        (32, Terms::PartsAndMinimums) => of!(8, PartsAndMinimums),
        (16, Terms::Parts) => of!(4, Parts),
        (16, Terms::PartsAndMinimums) => of!(4, PartsAndMinimums),
        (32, Terms::ScalesAndMinimums) => of!(8, ScalesAndMinimums),
        (32, Terms::ScalesOfActivationParts) => of!(8, ScalesOfActivationParts),
        // AVX2 has all of them.
        _ => avx2.multiply_integers(product),
    }
}

/// # Safety
/// `x` are `M` activations from the one of number `token` on, whose parts have `U` units, and whose terms have number `T`.
#[inline(never)]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
unsafe fn tile<const M: usize, const U: usize, const T: u8>(
    product: &mut IntegerProduct<'_, '_>,
    token: usize,
    x: IntegerTokens<'_>,
) {
    let w = product.w();
    let scaled = const { T == Terms::Parts as u8 || T == Terms::PartsAndMinimums as u8 };
    let scales_of_parts = const { T == Terms::ScalesOfActivationParts as u8 };
    let parts = if scaled || scales_of_parts { product.cols().layout().block / (4 * U) } else { 1 };
    let second_scale = const { T == Terms::ScalesAndMinimums as u8 };
    let each = if second_scale { 2 } else { 1 };
    let minimums = const { T == Terms::PartsAndMinimums as u8 };
    let (rows, add) = (product.out().cols(), product.add());
    let masks = [lanes(rows), lanes(rows.saturating_sub(LANES))];
    let (out, stride) = product.out().tile(token, M, 0, rows).parts();
    let place = |m: usize, half: usize| out.wrapping_add(m * stride + half * LANES);
    let mut sums: Pairs<__m512, M> = [[_mm512_setzero_ps(); 2]; M];
    if add {
        for (m, sums) in sums.iter_mut().enumerate() {
            for (half, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the lanes of the mask are the columns of the output's row.
                *sum = unsafe { _mm512_maskz_loadu_ps(masks[half], place(m, half)) };
            }
        }
    }
    // SAFETY: for every block, part and unit there are PANEL numbers of `w` and M of `x`.
    unsafe {
        let mut levels = (x.levels.as_ptr().cast::<i32>(), w.levels.as_ptr().cast::<i32>());
        for block in 0..product.cols().blocks() {
            let mut totals: Pairs<__m512i, M> = [[_mm512_setzero_si512(); 2]; M];
            let mut inner: Pairs<__m512, M> = [[_mm512_setzero_ps(); 2]; M];
            for part in 0..parts {
                let index = block * parts + part;
                let mut products: Pairs<__m512i, M> = [[_mm512_setzero_si512(); 2]; M];
                for (m, products) in products.iter_mut().enumerate() {
                    *products = [_mm512_set1_epi32(*x.corrections.as_ptr().add(index * M + m)); 2];
                }
                for unit in 0..U {
                    let w = pair(levels.1.add(unit * PANEL));
                    for (m, products) in products.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(*levels.0.add(unit * M + m));
                        for (product, w) in products.iter_mut().zip(w) {
                            *product = _mm512_dpbusd_epi32(*product, w, x);
                        }
                    }
                }
                levels = (levels.0.add(U * M), levels.1.add(U * PANEL));
                if scaled {
                    let scales = pair(w.part_scales.as_ptr().add(index * PANEL));
                    for (totals, products) in totals.iter_mut().zip(products) {
                        for ((total, product), scale) in totals.iter_mut().zip(products).zip(scales) {
                            *total = _mm512_add_epi32(*total, _mm512_mullo_epi32(product, scale));
                        }
                    }
                } else if scales_of_parts {
                    for (m, (inner, products)) in inner.iter_mut().zip(products).enumerate() {
                        let y = _mm512_set1_ps(*x.scales.as_ptr().add(index * M + m));
                        for (inner, product) in inner.iter_mut().zip(products) {
                            *inner = _mm512_add_ps(*inner, _mm512_mul_ps(y, _mm512_cvtepi32_ps(product)));
                        }
                    }
                } else {
                    totals = products;
                }
            }
            let mut least: Pairs<__m512i, M> = [[_mm512_setzero_si512(); 2]; M];
            if minimums {
                for index in block * parts / 2..(block + 1) * parts / 2 {
                    let w = pair(w.minimums.as_ptr().add(index * PANEL).cast());
                    for (m, least) in least.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(x.sums.as_ptr().add(index * M + m).read().cast_signed());
                        for (least, w) in least.iter_mut().zip(w) {
                            *least = _mm512_dpwssd_epi32(*least, w, x);
                        }
                    }
                }
            }
            let scales = floats(w.scales.as_ptr().add(block * PANEL));
            if scales_of_parts {
                for (sums, inner) in sums.iter_mut().zip(inner) {
                    for ((sum, inner), scale) in sums.iter_mut().zip(inner).zip(scales) {
                        *sum = _mm512_add_ps(*sum, _mm512_mul_ps(scale, inner));
                    }
                }
                continue;
            }
            for (m, (sums, totals)) in sums.iter_mut().zip(totals).enumerate() {
                let y = _mm512_set1_ps(*x.scales.as_ptr().add(block * each * M + m));
                for (v, (sum, total)) in sums.iter_mut().zip(totals).enumerate() {
                    let total = _mm512_cvtepi32_ps(total);
                    let mut term = if T == Terms::ScalesInTurn as u8 {
                        _mm512_mul_ps(_mm512_mul_ps(total, scales[v]), y)
                    } else {
                        _mm512_mul_ps(total, _mm512_mul_ps(scales[v], y))
                    };
                    if minimums {
                        let scale = floats(w.minimum_scales.as_ptr().add(block * PANEL))[v];
                        let least = _mm512_cvtepi32_ps(least[m][v]);
                        term = _mm512_sub_ps(term, _mm512_mul_ps(least, _mm512_mul_ps(scale, y)));
                    }
                    if second_scale {
                        let scale = floats(w.minimum_scales.as_ptr().add(block * PANEL))[v];
                        let y = _mm512_set1_ps(*x.scales.as_ptr().add((block * each + 1) * M + m));
                        term = _mm512_add_ps(term, _mm512_mul_ps(scale, y));
                    }
                    *sum = _mm512_add_ps(*sum, term);
                }
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        for (half, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_ps(place(m, half), masks[half], *sum) };
        }
    }
}

/// # Safety
/// 32 integers may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
unsafe fn pair(from: *const i32) -> [__m512i; 2] {
    // SAFETY: as this function's.
    unsafe { [_mm512_loadu_epi32(from), _mm512_loadu_epi32(from.add(LANES))] }
}

/// # Safety
/// 32 floats may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
unsafe fn floats(from: *const f32) -> [__m512; 2] {
    // SAFETY: as this function's.
    unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES))] }
}
