//! AVX-512 (F with VL and DQ, which every CPU since Skylake-X has together).
//!
//! Invariants of the `unsafe` code: the functions with target features are reached only through an [`Avx512`], whose
//! constructor has asked the CPU; and they read and write only inside [`Rows`] and [`RowsMut`], whose constructors
//! have checked that `rows` rows of `cols` floats lie inside the slice. Row and column numbers below stay within
//! those shapes, and the last, incomplete vector of a row is read and written through a mask.
#![expect(unsafe_code, reason = "vector intrinsics read and write through pointers")]

use super::amx::Amx;
use super::avx2::Avx2;
use super::generic::{self, Fused, LANES};
use super::shared_kernels;
use crate::buffer::{Rows, RowsMut};
use std::arch::x86_64::*;

mod integers;
mod tile;

/// Proof that the CPU has AVX-512F, VL and DQ, and what [`Avx2`] proves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512 {
    avx2: Avx2,
    /// True where it has AVX512-BF16, too.
    bf16: bool,
    /// True where it has AVX512-VNNI, too.
    vnni: bool,
    /// Where it has AMX, too, and that is to be used.
    amx: Option<Amx>,
}

shared_kernels!(Avx512, "avx512f,avx512vl,avx512dq,avx2,fma", Fused);

impl Avx512 {
    /// The proof, if the CPU can give it.
    pub(crate) fn new() -> Option<Self> {
        let avx2 = Avx2::new()?;
        let bf16 = std::arch::is_x86_feature_detected!("avx512bf16");
        let vnni = std::arch::is_x86_feature_detected!("avx512vnni")
            && std::arch::is_x86_feature_detected!("avx512bw");
        (std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512dq"))
        .then_some(Self { avx2, bf16, vnni, amx: None })
    }

    /// The same with AMX, if the CPU and the system have it.
    pub(crate) fn with_amx(self) -> Option<Self> {
        Amx::new(self.vnni).map(|amx| Self { amx: Some(amx), ..self })
    }

    pub(crate) fn has_amx(self) -> bool {
        self.amx.is_some()
    }

    /// Multiply-adds at full speed; returns how many, and a number that depends on all of them.
    pub(crate) fn busy(self, rounds: u64, factor: f32) -> (u64, f32) {
        // SAFETY: the CPU has the features.
        (rounds * 12 * LANES as u64, unsafe { busy(rounds, factor) })
    }

    /// True where products of bf16 have instructions of their own, which take subnormal numbers for zero.
    pub(crate) fn drops_subnormal_bf16(self) -> bool {
        self.bf16 || self.amx.is_some()
    }

    /// See [`Kernels::combine`](crate::Kernels::combine).
    pub(crate) fn combine(self, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>, add: bool) {
        assert_eq!((a.cols(), a.rows(), b.cols()), (b.rows(), out.rows(), out.cols()));
        // SAFETY: the CPU has the features, and the shapes agree.
        unsafe { combine(a, b, out, add) }
    }
}

/// Mask of the first `count` lanes.
pub(super) fn first(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
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
