//! AVX2 with FMA and F16C.
//!
//! Sums in the same 16 lanes and the same order as AVX-512, in two vectors of 8, so both give equal bits.
//!
//! Invariants of the `unsafe` code: the functions with target features are reached only through an [`Avx2`], whose
//! constructor has asked the CPU; and they read and write only inside [`Rows`] and [`RowsMut`], whose constructors
//! have checked that `rows` rows of `cols` floats lie inside the slice. Row and column numbers below stay within
//! those shapes, and the last, incomplete vector of a row is read and written through a mask.
#![expect(unsafe_code, reason = "vector intrinsics read and write through pointers")]

use super::generic::{self, Fused, LANES};
use super::shared_kernels;
use crate::buffer::{Rows, RowsMut};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

mod integers;
mod line;
mod tile;

shared_kernels!(Avx2, "avx2,fma", Fused);

/// Floats in a vector: half of the 16 lanes.
const HALF: usize = LANES / 2;

impl Avx2 {
    /// The proof, if the CPU can give it.
    pub(crate) fn new() -> Option<Self> {
        (std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c"))
        .then_some(Self(()))
    }

    /// Multiply-adds at full speed; returns how many, and a number that depends on all of them.
    pub(crate) fn busy(self, rounds: u64, factor: f32) -> (u64, f32) {
        // SAFETY: the CPU has the features.
        (rounds * 12 * HALF as u64, unsafe { busy(rounds, factor) })
    }

    /// See [`Kernels::combine`](crate::Kernels::combine).
    pub(crate) fn combine(self, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>, add: bool) {
        assert_eq!((a.cols(), a.rows(), b.cols()), (b.rows(), out.rows(), out.cols()));
        // SAFETY: the CPU has the features, and the shapes agree.
        unsafe { combine(a, b, out, add) }
    }
}

/// Mask of the first `count` lanes (all from 8 on).
#[inline]
#[target_feature(enable = "avx2,fma")]
fn first(count: usize) -> __m256i {
    let count = i32::try_from(count.min(HALF)).unwrap_or(8);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// # Safety
/// The CPU has the features; `a.cols() == b.rows()` and `out` is `[a.rows(), b.cols()]`.
#[target_feature(enable = "avx2,fma")]
unsafe fn combine(a: Rows<'_>, b: Rows<'_>, mut out: RowsMut<'_>, add: bool) {
    let (rows, terms, cols) = (a.rows(), a.cols(), b.cols());
    let (a_stride, b_stride, out_stride) = (a.stride(), b.stride(), out.stride());
    let (a, b, out) = (a.data().as_ptr(), b.data().as_ptr(), out.data_mut().as_mut_ptr());
    let mut col = 0;
    while col < cols {
        // 2 or 1 vectors of columns; the last one masked.
        let two = cols - col > HALF;
        let mask = first(if two { cols - col - HALF } else { cols - col });
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(6);
            // SAFETY: rows `row..row + count` of a and out exist, and the columns under the mask.
            unsafe {
                let (a, b) = (a.add(row * a_stride), b.add(col));
                let out = out.add(row * out_stride + col);
                let stride = (a_stride, b_stride, out_stride);
                macro_rules! tile {
                    ($($n:literal)*) => {
                        match (count, two) {
                            $(
                                ($n, true) => combine_tile::<$n, 2>(a, b, out, stride, terms, mask, add),
                                ($n, false) => combine_tile::<$n, 1>(a, b, out, stride, terms, mask, add),
                            )*
                            _ => unreachable!("tiles have 1 to 6 rows"),
                        }
                    };
                }
                tile!(1 2 3 4 5 6);
            }
            row += count;
        }
        col += if two { 2 * HALF } else { HALF };
    }
}

/// `M` rows and `V` vectors of columns of [`combine`]; `mask` covers the last vector.
///
/// # Safety
/// The CPU has the features; what the shapes and the mask cover may be read and written.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn combine_tile<const M: usize, const V: usize>(
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    (a_stride, b_stride, out_stride): (usize, usize, usize),
    terms: usize,
    mask: __m256i,
    add: bool,
) {
    let mut sums = [[_mm256_setzero_ps(); V]; M];
    // SAFETY: rows below M, terms below `terms`, columns under the mask.
    unsafe {
        if add {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let from = out.add(m * out_stride + v * HALF);
                    *sum = if v + 1 == V { _mm256_maskload_ps(from, mask) } else { _mm256_loadu_ps(from) };
                }
            }
        }
        for k in 0..terms {
            let mut bs = [_mm256_setzero_ps(); V];
            for (v, b_lanes) in bs.iter_mut().enumerate() {
                let from = b.add(k * b_stride + v * HALF);
                *b_lanes = if v + 1 == V { _mm256_maskload_ps(from, mask) } else { _mm256_loadu_ps(from) };
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*a.add(m * a_stride + k));
                for (sum, b) in sums.iter_mut().zip(bs) {
                    *sum = _mm256_fmadd_ps(a, b, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let to = out.add(m * out_stride + v * HALF);
                if v + 1 == V {
                    _mm256_maskstore_ps(to, mask, sum);
                } else {
                    _mm256_storeu_ps(to, sum);
                }
            }
        }
    }
}

/// 12 independent chains of multiply-adds.
#[target_feature(enable = "avx2,fma")]
fn busy(rounds: u64, factor: f32) -> f32 {
    let factor = _mm256_set1_ps(factor);
    let mut chains = [_mm256_set1_ps(1.0); 12];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm256_fmadd_ps(*chain, factor, factor);
        }
    }
    let total = chains.into_iter().fold(_mm256_setzero_ps(), |total, chain| _mm256_add_ps(total, chain));
    let mut all = [0.0; HALF];
    // SAFETY: `all` has as many floats as a vector.
    unsafe { _mm256_storeu_ps(all.as_mut_ptr(), total) };
    all.iter().sum()
}
