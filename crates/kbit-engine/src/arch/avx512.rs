//! AVX-512 (F with VL and DQ, which every CPU since Skylake-X has together).
//!
//! Invariants of the `unsafe` code: the functions with target features are reached only through an [`Avx512`], whose
//! constructor has asked the CPU; and they read and write only inside [`Rows`] and [`RowsMut`], whose constructors
//! have checked that `rows` rows of `cols` floats lie inside the slice. Row and column numbers below stay within
//! those shapes, and the last, incomplete vector of a row is read and written through a mask.
#![expect(unsafe_code, reason = "vector intrinsics read and write through pointers")]

use super::generic::{self, Fused, LANES};
use super::shared_kernels;
use crate::buffer::{Rows, RowsMut};
use std::arch::x86_64::{
    __m512, __mmask16, _mm_storeu_ps, _mm512_add_ps, _mm512_castps512_ps128, _mm512_extractf32x4_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps,
};

/// Proof that the CPU has AVX-512F, VL and DQ, AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

shared_kernels!(Avx512, "avx512f,avx512vl,avx512dq,avx2,fma", Fused);

/// Rows of `x` and `w` in a full tile of [`dots`]: 24 accumulators, 4 + 1 operands.
const TILE_X: usize = 6;
const TILE_W: usize = 4;

impl Avx512 {
    /// The proof, if the CPU can give it.
    pub(crate) fn new() -> Option<Self> {
        (std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma"))
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
        (rounds * 12 * LANES as u64, unsafe { busy(rounds, factor) })
    }

    /// See [`Kernels::combine`](crate::Kernels::combine).
    pub(crate) fn combine(self, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>, add: bool) {
        assert_eq!((a.cols(), a.rows(), b.cols()), (b.rows(), out.rows(), out.cols()));
        // SAFETY: the CPU has the features, and the shapes agree.
        unsafe { combine(a, b, out, add) }
    }
}

/// Mask of the first `count` lanes.
fn first(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// # Safety
/// The CPU has the features; `x.cols() == w.cols()` and `out` is `[x.rows(), w.rows()]`.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
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
                tile!(1 2 3 4 5 6);
            }
            row += count;
        }
        col += if four { TILE_W } else { 1 };
    }
}

/// 16 partial sums of each of `X * W` dot products.
///
/// # Safety
/// The CPU has the features; `X` and `W` rows of `cols` floats may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
unsafe fn lanes<const X: usize, const W: usize>(
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    w_stride: usize,
    cols: usize,
) -> [[__m512; W]; X] {
    let mut sums = [[_mm512_setzero_ps(); W]; X];
    let whole = cols - cols % LANES;
    let mut i = 0;
    // SAFETY: `i + 16 <= cols` in the loop; after it only the lanes that are left are read.
    unsafe {
        while i < whole {
            let mut ws = [_mm512_setzero_ps(); W];
            for (r, w_lanes) in ws.iter_mut().enumerate() {
                *w_lanes = _mm512_loadu_ps(w.add(r * w_stride + i));
            }
            for (a, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_loadu_ps(x.add(a * x_stride + i));
                for (sum, w) in sums.iter_mut().zip(ws) {
                    *sum = _mm512_fmadd_ps(x, w, *sum);
                }
            }
            i += LANES;
        }
        if i < cols {
            let mask = first(cols - i);
            for (a, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_maskz_loadu_ps(mask, x.add(a * x_stride + i));
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(mask, w.add(r * w_stride + i)), *sum);
                }
            }
        }
    }
    sums
}

/// Sums of the lanes of 16 vectors, each in the order of `generic::add_lanes`: lane `4 a + r` is that of `v[a][r]`.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
fn add_lanes(v: [[__m512; TILE_W]; 4]) -> __m512 {
    // For one r: quarter a of the result has the 4 sums that are left of v[a][r] after two halvings.
    let quarters = |r: usize| {
        let halve = |a: __m512, b: __m512| {
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
        };
        let (low, high) = (halve(v[0][r], v[1][r]), halve(v[2][r], v[3][r]));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(low, high), _mm512_shuffle_f32x4::<0xdd>(low, high))
    };
    let halve = |a: __m512, b: __m512| {
        _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b))
    };
    let (low, high) = (halve(quarters(0), quarters(1)), halve(quarters(2), quarters(3)));
    _mm512_add_ps(_mm512_shuffle_ps::<0x88>(low, high), _mm512_shuffle_ps::<0xdd>(low, high))
}

/// A tile of `X` rows of x against 4 rows of w.
///
/// # Safety
/// The CPU has the features; `X` rows of x and 4 of w may be read, `X` times 4 floats of out written.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
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
    let sums = unsafe { lanes::<X, TILE_W>(x, x_stride, w, w_stride, cols) };
    let mut row = 0;
    while row < X {
        let at = |a: usize| sums[(row + a).min(X - 1)];
        let total = add_lanes([at(0), at(1), at(2), at(3)]);
        let quarters = [
            _mm512_castps512_ps128(total),
            _mm512_extractf32x4_ps::<1>(total),
            _mm512_extractf32x4_ps::<2>(total),
            _mm512_extractf32x4_ps::<3>(total),
        ];
        for (a, quarter) in quarters.into_iter().enumerate().take(X - row) {
            // SAFETY: 4 floats of row `row + a` of out.
            unsafe {
                let out = out.add((row + a) * out_stride);
                let quarter = if ADD {
                    std::arch::x86_64::_mm_add_ps(std::arch::x86_64::_mm_loadu_ps(out), quarter)
                } else {
                    quarter
                };
                _mm_storeu_ps(out, quarter);
            }
        }
        row += 4;
    }
}

/// `X` rows of x against one row of w.
///
/// # Safety
/// The CPU has the features; `X` rows of x and one of w may be read, `X` floats of out written.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
unsafe fn single<const X: usize, const ADD: bool>(
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    cols: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: as this function's.
    let sums = unsafe { lanes::<X, 1>(x, x_stride, w, 0, cols) };
    for (a, [sum]) in sums.into_iter().enumerate() {
        let mut all = [0.0; LANES];
        // SAFETY: `all` has 16 floats, and out a row `a`.
        unsafe {
            _mm512_storeu_ps(all.as_mut_ptr(), sum);
            let out = out.add(a * out_stride);
            let total = generic::add_lanes(all);
            *out = if ADD { *out + total } else { total };
        }
    }
}

/// # Safety
/// The CPU has the features; `a.cols() == b.rows()` and `out` is `[a.rows(), b.cols()]`.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
unsafe fn combine(a: Rows<'_>, b: Rows<'_>, mut out: RowsMut<'_>, add: bool) {
    let (rows, terms, cols) = (a.rows(), a.cols(), b.cols());
    let (a_stride, b_stride, out_stride) = (a.stride(), b.stride(), out.stride());
    let (a, b, out) = (a.data().as_ptr(), b.data().as_ptr(), out.data_mut().as_mut_ptr());
    let mut col = 0;
    while col < cols {
        // 4, 2 or 1 vectors of columns; the last one masked.
        let vectors = (cols - col).div_ceil(LANES);
        let (vectors, mask) = match vectors {
            4.. => (4, first(cols - col - 48)),
            2.. => (2, first(cols - col - 16)),
            _ => (1, first(cols - col)),
        };
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
                        match (count, vectors) {
                            $(
                                ($n, 4) => combine_tile::<$n, 4>(a, b, out, stride, terms, mask, add),
                                ($n, 2) => combine_tile::<$n, 2>(a, b, out, stride, terms, mask, add),
                                ($n, _) => combine_tile::<$n, 1>(a, b, out, stride, terms, mask, add),
                            )*
                            _ => unreachable!("tiles have 1 to 6 rows"),
                        }
                    };
                }
                tile!(1 2 3 4 5 6);
            }
            row += count;
        }
        col += vectors * LANES;
    }
}

/// `M` rows and `V` vectors of columns of [`combine`]; `mask` covers the last vector.
///
/// # Safety
/// The CPU has the features; what the shapes and the mask cover may be read and written.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
unsafe fn combine_tile<const M: usize, const V: usize>(
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    (a_stride, b_stride, out_stride): (usize, usize, usize),
    terms: usize,
    mask: __mmask16,
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    let mask_of = |v: usize| if v + 1 == V { mask } else { !0 };
    // SAFETY: rows below M, terms below `terms`, columns under the mask.
    unsafe {
        if add {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_maskz_loadu_ps(mask_of(v), out.add(m * out_stride + v * LANES));
                }
            }
        }
        for k in 0..terms {
            let mut bs = [_mm512_setzero_ps(); V];
            for (v, b_lanes) in bs.iter_mut().enumerate() {
                *b_lanes = _mm512_maskz_loadu_ps(mask_of(v), b.add(k * b_stride + v * LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(m * a_stride + k));
                for (sum, b) in sums.iter_mut().zip(bs) {
                    *sum = _mm512_fmadd_ps(a, b, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                _mm512_mask_storeu_ps(out.add(m * out_stride + v * LANES), mask_of(v), sum);
            }
        }
    }
}

/// 12 independent chains of multiply-adds.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
fn busy(rounds: u64, factor: f32) -> f32 {
    let factor = _mm512_set1_ps(factor);
    let mut chains = [_mm512_set1_ps(1.0); 12];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm512_fmadd_ps(*chain, factor, factor);
        }
    }
    let total = chains.into_iter().fold(_mm512_setzero_ps(), |total, chain| _mm512_add_ps(total, chain));
    let mut all = [0.0; LANES];
    // SAFETY: `all` has as many floats as a vector.
    unsafe { _mm512_storeu_ps(all.as_mut_ptr(), total) };
    all.iter().sum()
}
