//! Products of rows with one activation: as tiles give them, but each unit is multiplied where it was transposed.
//!
//! Eight rows lie side by side in the lanes of a vector. Where a unit has two products, two times eight rows take turns, so that sums wait
//! less for the ones before them; the second eight are a cache line behind, since lines of rows whose distance is a power of two compete for
//! the same eight places of a cache.

use super::Avx2;
use super::tile::{first, second, transposed};
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
    transposed(lines)
}

/// A function of `$groups` times eight rows. `$floats` are those of a unit of eight rows, in the order in which they are multiplied, and
/// `$columns` are them of four units; they meet `$x_floats` of `$n` units of the activation.
macro_rules! lines {
    ($line:ident, $n:literal, $groups:literal, $features:literal, $columns:ident, $floats:ident, $x_floats:ident) => {
        #[target_feature(enable = $features)]
        fn $line(from: Units<'_>, x: &[u32], out: &mut [f32]) -> bool {
            const ROWS: usize = $groups * LANES;
            let (rows, units, stride) = (from.rows(), from.len(), from.stride());
            let x = x.as_chunks::<$n>().0;
            assert!(x.len() == units && out.len() == rows && units > 0, "size of the operands");
            let whole = from.bytes() / 16 * 4;
            let step = |mut sum: __m256, w: &[__m256], unit: usize| {
                for (w, x) in w.iter().zip($x_floats(x[unit])) {
                    sum = _mm256_fmadd_ps(*w, _mm256_set1_ps(x), sum);
                }
                sum
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
                                let Some(line) = step_of_lines.checked_sub(group) else { continue };
                                let unit = block + line * CACHE_LINE + 4 * quarter;
                                if unit >= whole {
                                    continue;
                                }
                                let at = first.wrapping_add(group * LANES * stride + 4 * unit);
                                // SAFETY: 16 bytes from unit `unit` on lie inside each row.
                                let columns = unsafe { $columns(at, stride) };
                                *sum = step(*sum, &columns[0], unit);
                                *sum = step(*sum, &columns[1], unit + 1);
                                *sum = step(*sum, &columns[2], unit + 2);
                                *sum = step(*sum, &columns[3], unit + 3);
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
                            *sum = step(*sum, &$floats(w), unit);
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

lines! { line_f32, 1, 1, "avx2,fma", columns_of_f32, floats_of_f32, x_of_floats }
lines! { line_f16, 2, 2, "avx2,fma,f16c", columns_of_f16, floats_of_f16, x_of_floats }
lines! { line_bf16, 1, 2, "avx2,fma", columns_of_bf16, floats_of_bf16, x_of_bf16 }

#[inline(always)]
fn x_of_floats<const N: usize>(x: [u32; N]) -> [f32; N] {
    x.map(f32::from_bits)
}

/// The second one is multiplied first.
#[inline(always)]
fn x_of_bf16([pair]: [u32; 1]) -> [f32; 2] {
    [f32::from_bits(pair & 0xffff_0000), f32::from_bits(pair << 16)]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn floats_of_f32(w: __m256i) -> [__m256; 1] {
    [_mm256_castsi256_ps(w)]
}

/// # Safety
/// As that of [`columns`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn columns_of_f32(first: *const u8, stride: usize) -> [[__m256; 1]; 4] {
    // SAFETY: as this function's.
    let [a, b, c, d] = unsafe { columns(first, stride) };
    [floats_of_f32(a), floats_of_f32(b), floats_of_f32(c), floats_of_f32(d)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn floats_of_f16(w: __m256i) -> [__m256; 2] {
    let firsts = _mm256_and_si256(w, _mm256_set1_epi32(0xffff));
    // Firsts and seconds of four units, and of the other four.
    let packed = _mm256_packus_epi32(firsts, _mm256_srli_epi32::<16>(w));
    let lower = _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
    let upper = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed));
    [_mm256_permute2f128_ps::<0x20>(lower, upper), _mm256_permute2f128_ps::<0x31>(lower, upper)]
}

/// Rows are widened before they are transposed.
///
/// # Safety
/// As that of [`columns`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn columns_of_f16(first: *const u8, stride: usize) -> [[__m256; 2]; 4] {
    let mut rows = [_mm256_setzero_ps(); LANES];
    for (row, floats) in rows.iter_mut().enumerate() {
        // SAFETY: as this function's.
        *floats = _mm256_cvtph_ps(unsafe { _mm_loadu_si128(first.wrapping_add(row * stride).cast()) });
    }
    // Columns 0, 1, 4 and 5 of two rows, and the others; then of four rows columns 0 and 4, and so on.
    let mut pairs = [_mm256_setzero_ps(); LANES];
    for two in 0..4 {
        pairs[2 * two] = _mm256_unpacklo_ps(rows[2 * two], rows[2 * two + 1]);
        pairs[2 * two + 1] = _mm256_unpackhi_ps(rows[2 * two], rows[2 * two + 1]);
    }
    let mut fours = [_mm256_setzero_ps(); LANES];
    for four in 0..2 {
        for half in 0..2 {
            let (a, b) = (pairs[4 * four + half], pairs[4 * four + 2 + half]);
            fours[4 * four + 2 * half] = _mm256_shuffle_ps::<0b_01_00_01_00>(a, b);
            fours[4 * four + 2 * half + 1] = _mm256_shuffle_ps::<0b_11_10_11_10>(a, b);
        }
    }
    let mut columns = [[_mm256_setzero_ps(); 2]; 4];
    for column in 0..4 {
        let (a, b) = (fours[column], fours[4 + column]);
        columns[column / 2][column % 2] = _mm256_permute2f128_ps::<0x20>(a, b);
        columns[2 + column / 2][column % 2] = _mm256_permute2f128_ps::<0x31>(a, b);
    }
    columns
}

/// Numbers without an exponent count as zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn floats_of_bf16(w: __m256i) -> [__m256; 2] {
    let exponents = _mm256_and_si256(w, _mm256_set1_epi16(0x7f80));
    let w = _mm256_andnot_si256(_mm256_cmpeq_epi16(exponents, _mm256_setzero_si256()), w);
    [_mm256_castsi256_ps(second(w)), _mm256_castsi256_ps(first(w))]
}

/// # Safety
/// As that of [`columns`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn columns_of_bf16(first: *const u8, stride: usize) -> [[__m256; 2]; 4] {
    // SAFETY: as this function's.
    let [a, b, c, d] = unsafe { columns(first, stride) };
    [floats_of_bf16(a), floats_of_bf16(b), floats_of_bf16(c), floats_of_bf16(d)]
}
