//! Products of rows with one activation: as tiles give them, but each unit is multiplied where it was transposed.
//!
//! 16 rows at a time, in two vectors: each sum waits for the one before it, and two hide some of that.

use super::Avx2;
use super::tile::{first, second};
use crate::packed::{BLOCK, Line, Units};
use std::arch::x86_64::*;

/// Rows at a time.
const ROWS: usize = 16;

impl Avx2 {
    /// See [`Kernels::line`](crate::Kernels::line).
    pub(crate) fn line(self, line: Line, weights: Units<'_>, x: &[u32], out: &mut [f32]) -> bool {
        if weights.rows() < ROWS {
            return false;
        }
        // SAFETY: the CPU has the features.
        unsafe {
            match line {
                Line::F32 => line_f32(weights, x, out),
                Line::F16 => weights.bytes().is_multiple_of(4) && line_f16(weights, x, out),
                Line::Bf16 => line_bf16(weights, x, out),
            }
        }
    }
}

/// Rows of the lanes of two vectors: as halves of vectors that are packed to 16 bits come to lie in order.
const LANES: [[usize; 8]; 2] = [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]];

/// Columns of four units of 16 rows, of which rows 0, 4, 8 and 12 begin at `firsts`, each as two vectors with the rows of [`LANES`].
///
/// # Safety
/// 16 bytes from `at` on may be read from each row, and the CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn columns(firsts: [*const u8; 4], stride: usize, at: usize) -> [[__m256i; 2]; 4] {
    let mut columns = [[_mm256_setzero_si256(); 2]; 4];
    for vector in 0..2 {
        let mut lines = [_mm256_setzero_si256(); 4];
        for (i, line) in lines.iter_mut().enumerate() {
            let (first, second) = (firsts[vector], firsts[2 + vector]);
            // SAFETY: as this function's.
            unsafe {
                let first = _mm_loadu_si128(first.wrapping_add(at + i * stride).cast());
                let second = _mm_loadu_si128(second.wrapping_add(at + i * stride).cast());
                *line = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second);
            }
        }
        let low = [_mm256_unpacklo_epi32(lines[0], lines[1]), _mm256_unpacklo_epi32(lines[2], lines[3])];
        let high = [_mm256_unpackhi_epi32(lines[0], lines[1]), _mm256_unpackhi_epi32(lines[2], lines[3])];
        columns[0][vector] = _mm256_unpacklo_epi64(low[0], low[1]);
        columns[1][vector] = _mm256_unpackhi_epi64(low[0], low[1]);
        columns[2][vector] = _mm256_unpacklo_epi64(high[0], high[1]);
        columns[3][vector] = _mm256_unpackhi_epi64(high[0], high[1]);
    }
    columns
}

/// `$add` is the sums after one unit `$w` of 16 rows, which meets `$n` units of the activation; `$ordered` is the sums of 16 rows in their
/// order.
macro_rules! lines {
    (
        $line:ident, $n:literal, $features:literal,
        |$sums:ident, $w:ident, $x:ident| $add:expr, |$total:ident| $ordered:expr
    ) => {
        #[target_feature(enable = $features)]
        fn $line(from: Units<'_>, x: &[u32], out: &mut [f32]) -> bool {
            let (rows, units, stride) = (from.rows(), from.len(), from.stride());
            let x = x.as_chunks::<$n>().0;
            assert!(x.len() == units && out.len() == rows && units > 0, "size of the operands");
            let whole = from.bytes() / 16 * 4;
            let step = |$sums: [__m256; 2], $w: [__m256i; 2], unit: usize| -> [__m256; 2] {
                let mut $x = [_mm256_setzero_si256(); $n];
                for (vector, x) in $x.iter_mut().zip(x[unit]) {
                    *vector = _mm256_set1_epi32(x.cast_signed());
                }
                $add
            };
            for row in (0..rows).step_by(ROWS) {
                // The last rows may have some in common with those before.
                let row = row.min(rows - ROWS);
                let firsts = [0, 4, 8, 12].map(|four| from.data()[(row + four) * stride..].as_ptr());
                let mut total = [_mm256_setzero_ps(); 2];
                for block in (0..units).step_by(BLOCK / $n) {
                    let end = (block + BLOCK / $n).min(units);
                    let mut sums = [_mm256_setzero_ps(); 2];
                    for unit in (block..end.min(whole)).step_by(4) {
                        // The rows to come are asked for meanwhile: as many bytes as are read here.
                        for line in 0..4 {
                            let next = ROWS * (stride + 4 * unit) + 64 * line;
                            _mm_prefetch::<_MM_HINT_T0>(firsts[0].wrapping_add(next).cast());
                        }
                        // SAFETY: 16 bytes from unit `unit` on lie inside each row.
                        let columns = unsafe { columns(firsts, stride, 4 * unit) };
                        for (column, w) in columns.into_iter().enumerate() {
                            sums = step(sums, w, unit + column);
                        }
                    }
                    for unit in end.min(whole).max(block)..end {
                        let w = LANES.map(|lanes| {
                            let words = lanes.map(|lane| from.unit(row + lane, unit));
                            // SAFETY: 8 words.
                            unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
                        });
                        sums = step(sums, w, unit);
                    }
                    total = if block > 0 {
                        [_mm256_add_ps(total[0], sums[0]), _mm256_add_ps(total[1], sums[1])]
                    } else {
                        sums
                    };
                }
                let $total = total;
                for (sums, out) in $ordered.into_iter().zip(out[row..row + ROWS].as_chunks_mut::<8>().0) {
                    // SAFETY: 8 floats.
                    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) };
                }
            }
            true
        }
    };
}

lines! {
    line_f32, 1, "avx2,fma",
    |sums, w, x| multiply(w, x[0], sums),
    |total| ordered(total)
}
lines! {
    line_f16, 2, "avx2,fma,f16c",
    |sums, w, x| {
        let low = _mm256_set1_epi32(0xffff);
        let low = _mm256_packus_epi32(_mm256_and_si256(w[0], low), _mm256_and_si256(w[1], low));
        let high = _mm256_packus_epi32(_mm256_srli_epi32::<16>(w[0]), _mm256_srli_epi32::<16>(w[1]));
        multiply(halves(high), x[1], multiply(halves(low), x[0], sums))
    },
    |total| total
}
lines! {
    line_bf16, 1, "avx2,fma",
    |sums, w, x| {
        let w = [normal(w[0]), normal(w[1])];
        let sums = multiply([second(w[0]), second(w[1])], second(x[0]), sums);
        multiply([first(w[0]), first(w[1])], first(x[0]), sums)
    },
    |total| ordered(total)
}

/// Adds products of floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn multiply(w: [__m256i; 2], x: __m256i, sums: [__m256; 2]) -> [__m256; 2] {
    let x = _mm256_castsi256_ps(x);
    [
        _mm256_fmadd_ps(_mm256_castsi256_ps(w[0]), x, sums[0]),
        _mm256_fmadd_ps(_mm256_castsi256_ps(w[1]), x, sums[1]),
    ]
}

/// 16 half-precision numbers as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves(w: __m256i) -> [__m256i; 2] {
    [
        _mm256_castps_si256(_mm256_cvtph_ps(_mm256_castsi256_si128(w))),
        _mm256_castps_si256(_mm256_cvtph_ps(_mm256_extracti128_si256::<1>(w))),
    ]
}

/// Pairs of bf16 with zero for those that have no exponent.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn normal(w: __m256i) -> __m256i {
    let exponents = _mm256_and_si256(w, _mm256_set1_epi16(0x7f80));
    _mm256_andnot_si256(_mm256_cmpeq_epi16(exponents, _mm256_setzero_si256()), w)
}

/// Lanes of two vectors in the order of their rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn ordered(of: [__m256; 2]) -> [__m256; 2] {
    [_mm256_permute2f128_ps::<0x20>(of[0], of[1]), _mm256_permute2f128_ps::<0x31>(of[0], of[1])]
}
