//! Products of rows with one activation: as tiles give them, but each unit is multiplied where it was transposed.
//!
//! Eight rows lie side by side in the lanes of a vector. Where a unit has two products, two times eight rows take turns, so that sums wait
//! less for the ones before them; the second eight are a cache line behind, since lines of rows whose distance is a power of two compete for
//! the same eight places of a cache.

use super::Avx2;
use super::tile::{first, second};
use crate::packed::{BLOCK, Line, Units};
use std::arch::x86_64::*;

/// Rows of a vector.
const LANES: usize = 8;
/// Units of a cache line.
const CACHE_LINE: usize = 16;

impl Avx2 {
    /// See [`Kernels::line`](crate::Kernels::line).
    pub(crate) fn line(self, line: Line, weights: Units<'_>, x: &[u32], out: &mut [f32]) -> bool {
        if weights.rows() < 2 * LANES {
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

/// Columns of four units of eight rows, which begin at `first` and lie `stride` bytes apart.
///
/// # Safety
/// 16 bytes from `first` on may be read from each row, and the CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn columns(first: *const u8, stride: usize) -> [__m256i; 4] {
    let mut lines = [_mm256_setzero_si256(); 4];
    for (row, line) in lines.iter_mut().enumerate() {
        // SAFETY: as this function's.
        unsafe {
            let low = _mm_loadu_si128(first.wrapping_add(row * stride).cast());
            let high = _mm_loadu_si128(first.wrapping_add((4 + row) * stride).cast());
            *line = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
        }
    }
    let low = [_mm256_unpacklo_epi32(lines[0], lines[1]), _mm256_unpacklo_epi32(lines[2], lines[3])];
    let high = [_mm256_unpackhi_epi32(lines[0], lines[1]), _mm256_unpackhi_epi32(lines[2], lines[3])];
    [
        _mm256_unpacklo_epi64(low[0], low[1]),
        _mm256_unpackhi_epi64(low[0], low[1]),
        _mm256_unpacklo_epi64(high[0], high[1]),
        _mm256_unpackhi_epi64(high[0], high[1]),
    ]
}

/// A function of `$groups` times eight rows: `$add` is the sum after one unit, which meets `$n` units of the activation.
macro_rules! lines {
    ($line:ident, $n:literal, $groups:literal, $features:literal, |$sum:ident, $w:ident, $x:ident| $add:expr) => {
        #[target_feature(enable = $features)]
        fn $line(from: Units<'_>, x: &[u32], out: &mut [f32]) -> bool {
            const ROWS: usize = $groups * LANES;
            let (rows, units, stride) = (from.rows(), from.len(), from.stride());
            let x = x.as_chunks::<$n>().0;
            assert!(x.len() == units && out.len() == rows && units > 0, "size of the operands");
            let whole = from.bytes() / 16 * 4;
            let step = |$sum: __m256, $w: __m256i, unit: usize| {
                let mut $x = [_mm256_setzero_si256(); $n];
                for (vector, x) in $x.iter_mut().zip(x[unit]) {
                    *vector = _mm256_set1_epi32(x.cast_signed());
                }
                $add
            };
            for row in (0..rows).step_by(ROWS) {
                // The last rows may have some in common with those before.
                let row = row.min(rows - ROWS);
                let first = from.data()[row * stride..].as_ptr();
                let mut totals = [_mm256_setzero_ps(); $groups];
                for block in (0..units).step_by(BLOCK / $n) {
                    let end = (block + BLOCK / $n).min(units);
                    let whole = end.min(whole);
                    let mut sums = [_mm256_setzero_ps(); $groups];
                    let lines = whole.saturating_sub(block).div_ceil(CACHE_LINE);
                    for step_of_lines in 0..lines + $groups - 1 {
                        // The rows to come are asked for meanwhile: as many bytes as are read here.
                        let next = ROWS * (stride + 4 * (block + step_of_lines * CACHE_LINE));
                        for line in 0..ROWS {
                            let next = first.wrapping_add(next + 4 * CACHE_LINE * line);
                            _mm_prefetch::<_MM_HINT_T1>(next.cast());
                        }
                        for quarter in 0..4 {
                            for (group, sum) in sums.iter_mut().enumerate() {
                                let unit = (block + step_of_lines * CACHE_LINE + 4 * quarter)
                                    .wrapping_sub(group * CACHE_LINE);
                                if step_of_lines < group || unit >= whole {
                                    continue;
                                }
                                let at = first.wrapping_add(group * LANES * stride + 4 * unit);
                                // SAFETY: 16 bytes from unit `unit` on lie inside each row.
                                let columns = unsafe { columns(at, stride) };
                                *sum = step(*sum, columns[0], unit);
                                *sum = step(*sum, columns[1], unit + 1);
                                *sum = step(*sum, columns[2], unit + 2);
                                *sum = step(*sum, columns[3], unit + 3);
                            }
                        }
                    }
                    for unit in whole.max(block)..end {
                        for (group, sum) in sums.iter_mut().enumerate() {
                            let mut words = [0; LANES];
                            for (lane, word) in words.iter_mut().enumerate() {
                                *word = from.unit(row + group * LANES + lane, unit);
                            }
                            // SAFETY: 8 words.
                            let w = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
                            *sum = step(*sum, w, unit);
                        }
                    }
                    for (total, sum) in totals.iter_mut().zip(sums) {
                        *total = if block > 0 { _mm256_add_ps(*total, sum) } else { sum };
                    }
                }
                for (total, out) in totals.into_iter().zip(out[row..row + ROWS].as_chunks_mut::<LANES>().0) {
                    // SAFETY: 8 floats.
                    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), total) };
                }
            }
            true
        }
    };
}

lines! { line_f32, 1, 1, "avx2,fma", |sum, w, x| multiply(w, x[0], sum) }
lines! {
    line_f16, 2, 2, "avx2,fma,f16c",
    |sum, w, x| {
        let halves = halves(w);
        multiply(halves[1], x[1], multiply(halves[0], x[0], sum))
    }
}
lines! {
    line_bf16, 1, 2, "avx2,fma",
    |sum, w, x| {
        let w = normal(w);
        multiply(first(w), first(x[0]), multiply(second(w), second(x[0]), sum))
    }
}

/// Adds products of floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn multiply(w: __m256i, x: __m256i, sum: __m256) -> __m256 {
    _mm256_fmadd_ps(_mm256_castsi256_ps(w), _mm256_castsi256_ps(x), sum)
}

/// The first and the second half-precision number of each unit, as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves(w: __m256i) -> [__m256i; 2] {
    let firsts = _mm256_and_si256(w, _mm256_set1_epi32(0xffff));
    // Firsts and seconds of four units, and of the other four.
    let packed = _mm256_packus_epi32(firsts, _mm256_srli_epi32::<16>(w));
    let lower = _mm256_castps_si256(_mm256_cvtph_ps(_mm256_castsi256_si128(packed)));
    let upper = _mm256_castps_si256(_mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed)));
    [_mm256_permute2x128_si256::<0x20>(lower, upper), _mm256_permute2x128_si256::<0x31>(lower, upper)]
}

/// Pairs of bf16 with zero for those that have no exponent.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn normal(w: __m256i) -> __m256i {
    let exponents = _mm256_and_si256(w, _mm256_set1_epi16(0x7f80));
    _mm256_andnot_si256(_mm256_cmpeq_epi16(exponents, _mm256_setzero_si256()), w)
}
