//! Products of rows with one activation, as [`rows`](crate::arch::rows) has them, of rows that lie far apart ([`streams`]), a few blocks of
//! each at a time: memory is read in several places, in each in the order in which it lies, and asked for before.

use super::panel::{Sixteen, words};
use crate::arch::avx2::dot::{load_16, load_32};
use crate::arch::rows::*;
use crate::block::{Half, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
use crate::dot::scales_and_minimums;
use crate::panel::{Integers, Source};
use crate::{fp4, iq4};
use kbit_types::{GgmlType, IntegerLayout, PackedActivation, STREAM_AHEAD, streams};
use std::arch::x86_64::*;

/// Rows whose terms are added up side by side.
const LANES: usize = 16;

/// Blocks of 32 whose terms are kept at a time, at most; rows of fewer than eight have no kernel here.
const PIECE: usize = 64;
/// Eights of blocks in a piece. The last of them may have some in common with the one before.
const EIGHTS: usize = PIECE / 8;

/// Levels of eight blocks of activations as weights are read: the first halves of four blocks, the second ones; then those of the others.
type Eight = [[[u32; 16]; 2]; 2];

fn in_fours(levels: &[[u32; 8]; 8]) -> Eight {
    [0, 4].map(|four| [0, 4].map(|half| std::array::from_fn(|word| levels[four + word / 4][half + word % 4])))
}

/// Rows of super-blocks that are read side by side.
const SIDE_BY_SIDE: usize = 4;

/// As [`STREAM_AHEAD`], into the second-level cache, where few rows are read side by side.
const FAR_AHEAD: usize = 2048;

/// Asks for what is to be read after `blocks`, of one of `SIDE_BY_SIDE` rows.
#[inline(always)]
fn ask_for_more<const SIDE_BY_SIDE: usize, W>(blocks: &[W]) {
    let here = blocks.as_ptr().cast::<i8>();
    for line in (0..size_of_val(blocks)).step_by(64) {
        // SAFETY: hints, wherever they point.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(STREAM_AHEAD + line));
            if SIDE_BY_SIDE < LANES {
                _mm_prefetch::<_MM_HINT_T1>(here.wrapping_add(FAR_AHEAD + line));
            }
        }
    }
}

/// Asks for what is read of rows before [`ask_for_more`] has an effect.
fn ask_for_first<const SIDE_BY_SIDE: usize, W: bytemuck::Pod>(rows: &RowsApart<W>) {
    for line in (0..STREAM_AHEAD).step_by(64) {
        for row in 0..SIDE_BY_SIDE {
            // SAFETY: a hint, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(rows.first.wrapping_add(row * rows.stride + line).cast()) };
        }
    }
}

/// The eight from `start` on.
#[inline(always)]
fn eight<T>(from: &[T], start: usize) -> &[T; 8] {
    from[start..].first_chunk().expect("eight blocks")
}

/// Rows of blocks of 32 weights, eight blocks at a time: `$levels` of the first and second halves of four blocks, with the offset added, and
/// `$scales` of eight. `$term` is what a block adds, of its sum, the scales of its weights, and those of its activations.
macro_rules! rows_of_32 {
    (
        $features:literal, $rows:ident of $block:ident, $table:expr,
        |$few:ident, $t:ident| $levels:expr,
        |$eight:ident| $scales:expr,
        |$sum:ident, $w:ident, $y:ident| $term:expr
    ) => {
        #[target_feature(enable = $features)]
        fn $rows(source: Source<'_>, x: PackedActivation<'_>, out: &mut [f32]) -> bool {
            const LAYOUT: IntegerLayout = <$block as Integers>::LAYOUT;
            const OFFSET: u8 = LAYOUT.offset;
            let $t = $table;
            let levels = x.levels.as_chunks::<8>().0;
            // Pieces are about as long as each other.
            let step = source.blocks.div_ceil(source.blocks.div_ceil(PIECE).max(1));
            let last = source.blocks.checked_rem(step).filter(|last| *last > 0).unwrap_or(step);
            if last < 8 {
                return false;
            }
            let mut terms = [[0f32; PIECE]; LANES];
            let mut packed: [Eight; EIGHTS] = bytemuck::Zeroable::zeroed();
            let mut scales = [[0f32; PIECE]; 2];
            for first in (0..source.blocks).step_by(step) {
                let blocks = step.min(source.blocks - first);
                let levels = &levels[first..first + blocks];
                let corrections = &x.corrections[first..];
                let each = LAYOUT.activation_scales();
                for (block, of_block) in x.scales.chunks_exact(each).skip(first).take(blocks).enumerate() {
                    for (scales, scale) in scales.iter_mut().zip(of_block) {
                        scales[block] = *scale;
                    }
                }
                let eights = blocks.div_ceil(8);
                let mut starts = [0; EIGHTS];
                for (eight_of, (packed, start)) in packed.iter_mut().zip(&mut starts).enumerate().take(eights)
                {
                    *start = (8 * eight_of).min(blocks - 8);
                    *packed = in_fours(eight(levels, *start));
                }
                for (row, apart) in streams(source.rows, LANES) {
                    let rows = RowsApart::<$block>::new(source, row, apart, LANES, first..first + blocks);
                    if row == 0 {
                        ask_for_first::<LANES, _>(&rows);
                    }
                    for (x, &start) in packed.iter().zip(&starts).take(eights) {
                        let $y = [
                            _mm256_castsi256_ps(load_32(eight(&scales[0], start))),
                            _mm256_castsi256_ps(load_32(eight(&scales[1], start))),
                        ];
                        let corrections = load_32(eight(corrections, start));
                        let mut at = rows.at(start);
                        for terms in &mut terms {
                            // SAFETY: there are as many rows, and blocks.
                            let $eight: &[$block; 8] = unsafe { &*at.cast() };
                            at = at.wrapping_byte_add(rows.stride);
                            ask_for_more::<LANES, _>($eight);
                            let $few = [&$eight[0], &$eight[1], &$eight[2], &$eight[3]];
                            let first = products_of_four($levels, load_64(&x[0][0]), load_64(&x[0][1]));
                            let $few = [&$eight[4], &$eight[5], &$eight[6], &$eight[7]];
                            let second = products_of_four($levels, load_64(&x[1][0]), load_64(&x[1][1]));
                            let sum = corrected::<OFFSET>(sums_of_fours([first, second]), corrections);
                            let ($sum, $w) = (_mm256_cvtepi32_ps(sum), $scales);
                            let terms: &mut [f32] = &mut terms[start..start + 8];
                            // SAFETY: writes eight floats.
                            unsafe { _mm256_storeu_ps(terms.as_mut_ptr(), $term) };
                        }
                    }
                    let out = &mut out[row..];
                    // The last rows may have been in another group, and are done.
                    let done = if out.len() == LANES { source.rows.wrapping_neg() % LANES } else { 0 };
                    add_terms(&terms, blocks, out, apart, first > 0, done);
                }
            }
            true
        }
    };
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half(d: Half) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(d.0)))))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn sum_of_four(v: __m128i) -> i32 {
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b_00_00_11_10>(v));
    _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b_00_00_00_01>(v)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn sum(v: __m256i) -> i32 {
    sum_of_four(_mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)))
}

/// Rows of super-blocks, side by side. `$product` is the sum of a block of integers with as many activations, as lanes to be added
/// up, and `$minimums` that of the minimums; both know the number of the block.
macro_rules! rows_of_256 {
    (
        $features:literal, $rows:ident of $block:ident,
        |$b:ident, $x:ident, $at:ident| $product:expr $(, $minimums:expr)?
    ) => {
        #[target_feature(enable = $features)]
        fn $rows(source: Source<'_>, $x: PackedActivation<'_>, out: &mut [f32]) -> bool {
            for (first, apart) in streams(source.rows, SIDE_BY_SIDE) {
                let rows = RowsApart::<$block>::new(source, first, apart, SIDE_BY_SIDE, 0..source.blocks);
                if first == 0 {
                    ask_for_first::<SIDE_BY_SIDE, _>(&rows);
                }
                let mut totals = [0_f32; SIDE_BY_SIDE];
                for ($at, y) in $x.scales.iter().enumerate().take(source.blocks) {
                    let mut block = rows.at($at);
                    for total in &mut totals {
                        // SAFETY: there are as many rows, and blocks.
                        let $b = unsafe { &*block };
                        block = block.wrapping_byte_add(rows.stride);
                        ask_for_more::<SIDE_BY_SIDE, _>(std::slice::from_ref($b));
                        let product = sum($product) as f32 * (half($b.d) * y);
                        $(let product = product - sum_of_four($minimums) as f32 * (half($b.dmin) * y);)?
                        *total += product;
                    }
                }
                for (lane, total) in totals.iter().enumerate() {
                    out[first + lane * apart] = *total;
                }
            }
            true
        }
    };
}

const fn large(offset: u8) -> u8 {
    offset
}

/// Something of each of four blocks. A macro, since closures are not compiled into functions of other features.
macro_rules! each {
    ($few:ident, |$block:ident| $something:expr) => {{
        let [a, b, c, d] = $few;
        [
            each!(a as $block, $something),
            each!(b as $block, $something),
            each!(c as $block, $something),
            each!(d as $block, $something),
        ]
    }};
    ($one:ident as $block:ident, $something:expr) => {{
        let $block = $one;
        $something
    }};
}

row_kernels!("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi");

macro_rules! features {
    ($($item:item)*) => {
        $(
            #[inline]
            #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
            $item
        )*
    };
}

features! {
    fn corrected<const OFFSET: u8>(sums: __m256i, corrections: __m256i) -> __m256i {
        _mm256_add_epi32(sums, corrections)
    }

    fn add(sums: __m256i, levels: __m256i, x: __m256i, scales: __m256i) -> __m256i {
        _mm256_dpwssd_epi32(sums, _mm256_maddubs_epi16(levels, x), scales)
    }

    fn corrected_parts<const OFFSET: u8>(corrections: __m256i, scales: __m256i) -> __m256i {
        _mm256_mullo_epi32(scales, corrections)
    }

    fn add_scaled<const OFFSET: u8>(sums: __m256i, levels: __m256i, x: __m256i, scale: __m256i) -> __m256i {
        let product = _mm256_dpbusd_epi32(_mm256_setzero_si256(), levels, x);
        // The scale from 16 bits to 32.
        let scale = _mm256_srai_epi32::<16>(scale);
        _mm256_add_epi32(sums, _mm256_mullo_epi32(product, scale))
    }

    fn sixteen_scales(scales: __m256i) -> __m256i {
        scales
    }

    fn two_scales(scales: &__m256i, part: usize) -> __m256i {
        let (low, high) = (_mm_set1_epi16(part as i16), _mm_set1_epi16(part as i16 + 1));
        _mm256_permutexvar_epi16(_mm256_set_m128i(high, low), *scales)
    }

    fn gathered<A: bytemuck::Pod>(four: [&A; 4]) -> __m512i {
        let v = _mm512_castsi128_si512(load_16(four[0]));
        let v = _mm512_inserti32x4::<1>(v, load_16(four[1]));
        let v = _mm512_inserti32x4::<2>(v, load_16(four[2]));
        _mm512_inserti32x4::<3>(v, load_16(four[3]))
    }

    fn low_and_high(q: __m512i) -> [__m512i; 2] {
        let mask = _mm512_set1_epi8(15);
        [_mm512_and_si512(q, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(q), mask)]
    }

    fn with_offset_128(levels: [__m512i; 2]) -> [__m512i; 2] {
        let offset = _mm512_set1_epi8(-128);
        [_mm512_xor_si512(levels[0], offset), _mm512_xor_si512(levels[1], offset)]
    }

    fn wide_table(levels: &[i8; 16], offset: u8) -> __m512i {
        _mm512_broadcast_i32x4(shifted(levels, offset))
    }

    fn looked_up(table: __m512i, [low, high]: [__m512i; 2]) -> [__m512i; 2] {
        [_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high)]
    }

    fn with_fifth_bits([low, high]: [__m512i; 2], bits: [&[u8; 4]; 4]) -> [__m512i; 2] {
        // The first 16 bits of each, and the others.
        const HALVES: u64 = 0xffff_0000_ffff;
        let word = |index: usize| u64::from(u32::from_le_bytes(*bits[index]));
        let (first, second) = (word(0) | word(1) << 32, word(2) | word(3) << 32);
        let four = |two: u64| (two & HALVES | (two & HALVES) >> 16) & 0xffff_ffff;
        let fifth = |shift: u32| {
            _mm512_maskz_set1_epi8(four(first >> shift) | four(second >> shift) << 32, 16)
        };
        [_mm512_or_si512(low, fifth(0)), _mm512_or_si512(high, fifth(16))]
    }

    /// Sums of fours of products of both halves of the levels of four blocks.
    fn products_of_four(levels: [__m512i; 2], low: __m512i, high: __m512i) -> __m512i {
        let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), levels[0], low);
        _mm512_dpbusd_epi32(sums, levels[1], high)
    }

    /// The sum of each quarter of both vectors.
    fn sums_of_fours([first, second]: [__m512i; 2]) -> __m256i {
        let sums = _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second));
        let sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32::<0b_01_00_11_10>(sums));
        let order = _mm512_castsi256_si512(_mm256_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13));
        _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums))
    }

    fn load_64(words: &[u32; 16]) -> __m512i {
        // SAFETY: reads 64 bytes.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    fn where_bit(bytes: __m256i, bit: usize, number: i8) -> __m256i {
        let found = _mm256_test_epi8_mask(bytes, _mm256_set1_epi8((1_u8 << bit).cast_signed()));
        _mm256_maskz_set1_epi8(found, number)
    }
}

/// Rows get the sums of their terms, on top of what is in `out` if `more`; the first `done` have them. Inlined, it would take registers
/// from the loop before it.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn add_terms(
    terms: &[[f32; PIECE]; LANES],
    blocks: usize,
    out: &mut [f32],
    apart: usize,
    more: bool,
    done: usize,
) {
    let mut totals = [0_f32; LANES];
    if more {
        for (lane, total) in totals.iter_mut().enumerate() {
            *total = out[lane * apart];
        }
    }
    // SAFETY: reads 16 floats.
    let mut sums = unsafe { _mm512_loadu_ps(totals.as_ptr()) };
    let rows = Sixteen::of_floats(terms);
    for block in (0..blocks).step_by(4) {
        let columns = words!(&rows, block * size_of::<f32>());
        for column in columns.into_iter().take(blocks - block) {
            sums = _mm512_add_ps(sums, _mm512_castsi512_ps(column));
        }
    }
    // SAFETY: writes 16 floats.
    unsafe { _mm512_storeu_ps(totals.as_mut_ptr(), sums) };
    for (lane, total) in totals.iter().enumerate() {
        if lane >= done {
            out[lane * apart] = *total;
        }
    }
}
