//! AVX2 with FMA.
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
use std::arch::x86_64::{
    __m128, __m256, __m256i, _mm_add_ps, _mm_loadu_ps, _mm_shuffle_ps, _mm_storeu_ps, _mm256_add_ps,
    _mm256_castps256_ps128, _mm256_cmpgt_epi32, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_ps, _mm256_storeu_ps,
};

/// Proof that the CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

shared_kernels!(Avx2, "avx2,fma", Fused);

/// Floats in a vector: half of the 16 lanes.
const HALF: usize = LANES / 2;
/// Rows of `x` and `w` in a full tile of [`dots`]: 12 accumulators, 3 + 1 operands.
const TILE_X: usize = 3;
const TILE_W: usize = 4;

impl Avx2 {
    /// The proof, if the CPU can give it.
    pub(crate) fn new() -> Option<Self> {
        (std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma"))
            .then_some(Self(()))
    }

    /// See [`Kernels::dots`](crate::Kernels::dots), for up to `DOT_BLOCK` columns.
    pub(crate) fn dots(self, x: Rows<'_>, w: Rows<'_>, out: RowsMut<'_>, add: bool) {
        assert_eq!((x.cols(), x.rows(), w.rows()), (w.cols(), out.rows(), out.cols()));
        // SAFETY: the CPU has the features, and the shapes agree.
        unsafe {
            if add {
                dots::<true>(x, w, out);
            } else {
                dots::<false>(x, w, out);
            }
        }
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
/// The CPU has the features; `x.cols() == w.cols()` and `out` is `[x.rows(), w.rows()]`.
#[target_feature(enable = "avx2,fma")]
unsafe fn dots<const ADD: bool>(x: Rows<'_>, w: Rows<'_>, mut out: RowsMut<'_>) {
    let (x_rows, w_rows, cols) = (x.rows(), w.rows(), x.cols());
    let (x_stride, w_stride, out_stride) = (x.stride(), w.stride(), out.stride());
    let (x, w, out) = (x.data().as_ptr(), w.data().as_ptr(), out.data_mut().as_mut_ptr());
    let mut col = 0;
    while col < w_rows {
        let four = w_rows - col >= TILE_W;
        let mut row = 0;
        while row < x_rows {
            let count = (x_rows - row).min(TILE_X);
            // SAFETY: rows `row..row + count` of x and `col..col + 4` (or one) of w exist, so do these places of out.
            unsafe {
                let (x, w) = (x.add(row * x_stride), w.add(col * w_stride));
                let out = out.add(row * out_stride + col);
                macro_rules! tile {
                    ($($n:literal)*) => {
                        match (count, four) {
                            $(
                                ($n, true) => tile::<$n, ADD>(x, x_stride, w, w_stride, cols, out, out_stride),
                                ($n, false) => single::<$n, ADD>(x, x_stride, w, cols, out, out_stride),
                            )*
                            _ => unreachable!("tiles have 1 to {TILE_X} rows"),
                        }
                    };
                }
                tile!(1 2 3);
            }
            row += count;
        }
        col += if four { TILE_W } else { 1 };
    }
}

/// One half of the 16 partial sums of each of `X * W` dot products: of the columns whose number modulo 16 is in
/// `half..half + 8`.
///
/// # Safety
/// The CPU has the features; `X` and `W` rows of `cols` floats may be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn half_lanes<const X: usize, const W: usize>(
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    w_stride: usize,
    cols: usize,
    half: usize,
) -> [[__m256; W]; X] {
    let mut sums = [[_mm256_setzero_ps(); W]; X];
    let mut i = half;
    // SAFETY: `i + 8 <= cols` in the loop; after it only the lanes that are left are read.
    unsafe {
        while i + HALF <= cols {
            let mut ws = [_mm256_setzero_ps(); W];
            for (r, w_lanes) in ws.iter_mut().enumerate() {
                *w_lanes = _mm256_loadu_ps(w.add(r * w_stride + i));
            }
            for (a, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_loadu_ps(x.add(a * x_stride + i));
                for (sum, w) in sums.iter_mut().zip(ws) {
                    *sum = _mm256_fmadd_ps(x, w, *sum);
                }
            }
            i += LANES;
        }
        if i < cols {
            let mask = first(cols - i);
            for (a, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_maskload_ps(x.add(a * x_stride + i), mask);
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(x, _mm256_maskload_ps(w.add(r * w_stride + i), mask), *sum);
                }
            }
        }
    }
    sums
}

/// The first three steps of `generic::add_lanes`: 16 -> 8 -> 4 sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn quarter(low: __m256, high: __m256) -> __m128 {
    let eight = _mm256_add_ps(low, high);
    _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
}

/// A tile of `X` rows of x against 4 rows of w.
///
/// # Safety
/// The CPU has the features; `X` rows of x and 4 of w may be read, `X` times 4 floats of out written.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const X: usize, const ADD: bool>(
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    w_stride: usize,
    cols: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: as this function's.
    let (low, high) = unsafe {
        (
            half_lanes::<X, TILE_W>(x, x_stride, w, w_stride, cols, 0),
            half_lanes::<X, TILE_W>(x, x_stride, w, w_stride, cols, HALF),
        )
    };
    for (a, (low, high)) in low.into_iter().zip(high).enumerate() {
        let halve =
            |a: __m128, b: __m128| _mm_add_ps(_mm_shuffle_ps::<0x44>(a, b), _mm_shuffle_ps::<0xee>(a, b));
        let first = halve(quarter(low[0], high[0]), quarter(low[1], high[1]));
        let second = halve(quarter(low[2], high[2]), quarter(low[3], high[3]));
        let total = _mm_add_ps(_mm_shuffle_ps::<0x88>(first, second), _mm_shuffle_ps::<0xdd>(first, second));
        // SAFETY: 4 floats of row `a` of out.
        unsafe {
            let out = out.add(a * out_stride);
            let total = if ADD { _mm_add_ps(_mm_loadu_ps(out), total) } else { total };
            _mm_storeu_ps(out, total);
        }
    }
}

/// `X` rows of x against one row of w.
///
/// # Safety
/// The CPU has the features; `X` rows of x and one of w may be read, `X` floats of out written.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn single<const X: usize, const ADD: bool>(
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    cols: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: as this function's.
    let (low, high) = unsafe {
        (half_lanes::<X, 1>(x, x_stride, w, 0, cols, 0), half_lanes::<X, 1>(x, x_stride, w, 0, cols, HALF))
    };
    for (a, ([low], [high])) in low.into_iter().zip(high).enumerate() {
        let mut all = [0.0; LANES];
        // SAFETY: `all` has 16 floats, and out a row `a`.
        unsafe {
            _mm256_storeu_ps(all.as_mut_ptr(), low);
            _mm256_storeu_ps(all.as_mut_ptr().add(HALF), high);
            let out = out.add(a * out_stride);
            let total = generic::add_lanes(all);
            *out = if ADD { *out + total } else { total };
        }
    }
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
