//! Products of rows with one activation, as [`rows`](crate::arch::rows) has them, eight rows side by side, so that their sums need not be
//! brought together; the next eight are asked for in the order of memory meanwhile.
//!
//! Products of bytes are added in pairs that saturate at 16 bits. Small levels are multiplied with their offset, so that a sum of two pairs
//! fits, and what it adds is taken off at the end; large ones get their sign back, and one factor gives its own to the other.

use super::dot::{array_8, load_16, load_32};
use crate::arch::rows::*;
use crate::block::{IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
use crate::dot::scales_and_minimums;
use crate::panel::{Integers, Source};
use crate::{fp4, iq4};
use kbit_types::{GgmlType, IntegerLayout, PackedActivation};
use std::arch::x86_64::*;

/// Rows side by side.
const LANES: usize = 8;
/// The largest offset of levels that stay small: with it they end at 31.
const SMALL: u8 = 16;

/// Rows of blocks of 32 weights, eight side by side: `$levels` of the first and second halves of a block of two rows, with the offset added,
/// and `$scales` of a block of all. `$term` is what a block adds, of its sum, the scales of its weights, and those of the activation.
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
            let (levels, each) = (x.levels.as_chunks::<8>().0, LAYOUT.activation_scales());
            for row in (0..source.rows).step_by(LANES) {
                // The last rows may have some in common with those before.
                let row = row.min(source.rows - LANES);
                let rows = EightRows::<$block>::new(source, row);
                let mut total = _mm256_setzero_ps();
                let x = levels.iter().zip(x.corrections).zip(x.scales.chunks_exact(each)).take(source.blocks);
                for (block, ((levels, correction), y)) in x.enumerate() {
                    rows.ask_for_more(block);
                    // SAFETY: there are as many blocks.
                    let $eight: [&$block; LANES] = unsafe { rows.blocks(block) };
                    let x = levels.as_chunks::<4>().0;
                    let x = [
                        _mm256_broadcastsi128_si256(load_16(&x[0])),
                        _mm256_broadcastsi128_si256(load_16(&x[1])),
                    ];
                    let mut sums = [_mm256_setzero_si256(); 4];
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let $few = [$eight[i], $eight[i + 4]];
                        *sum = products::<OFFSET>($levels, x);
                    }
                    let sum = corrected::<OFFSET>(sums_of_halves(sums), _mm256_set1_epi32(*correction));
                    let $y = [_mm256_set1_ps(y[0]), _mm256_set1_ps(y[each - 1])];
                    let ($sum, $w) = (_mm256_cvtepi32_ps(sum), $scales);
                    total = _mm256_add_ps(total, $term);
                }
                out[row..row + LANES].copy_from_slice(&array_8(total));
            }
            true
        }
    };
}

/// Rows of super-blocks, eight side by side. `$product` is the sum of a block of integers with as many activations, as lanes to be added
/// up, and `$minimums` that of the minimums; both know the number of the block.
macro_rules! rows_of_256 {
    (
        $features:literal, $rows:ident of $block:ident,
        |$b:ident, $x:ident, $at:ident| $product:expr $(, $minimums:expr)?
    ) => {
        #[target_feature(enable = $features)]
        fn $rows(source: Source<'_>, $x: PackedActivation<'_>, out: &mut [f32]) -> bool {
            for row in (0..source.rows).step_by(LANES) {
                // The last rows may have some in common with those before.
                let row = row.min(source.rows - LANES);
                let rows = EightRows::<$block>::new(source, row);
                let mut total = _mm256_setzero_ps();
                for ($at, y) in $x.scales.iter().enumerate().take(source.blocks) {
                    rows.ask_for_more($at);
                    // SAFETY: there are as many blocks.
                    let eight: [&$block; LANES] = unsafe { rows.blocks($at) };
                    let y = _mm256_set1_ps(*y);
                    let mut sums = [_mm256_setzero_si256(); LANES];
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        let $b = eight[lane];
                        *sum = $product;
                    }
                    let product = _mm256_cvtepi32_ps(sums_of_eight(sums));
                    let product = _mm256_mul_ps(product, _mm256_mul_ps(halves!(eight, d), y));
                    $(
                        let mut sums = [_mm_setzero_si128(); LANES];
                        for (lane, sum) in sums.iter_mut().enumerate() {
                            let $b = eight[lane];
                            *sum = $minimums;
                        }
                        let both = [
                            _mm256_set_m128i(sums[4], sums[0]),
                            _mm256_set_m128i(sums[5], sums[1]),
                            _mm256_set_m128i(sums[6], sums[2]),
                            _mm256_set_m128i(sums[7], sums[3]),
                        ];
                        let least = _mm256_cvtepi32_ps(sums_of_halves(both));
                        let least = _mm256_mul_ps(least, _mm256_mul_ps(halves!(eight, dmin), y));
                        let product = _mm256_sub_ps(product, least);
                    )?
                    total = _mm256_add_ps(total, product);
                }
                out[row..row + LANES].copy_from_slice(&array_8(total));
            }
            true
        }
    };
}

/// The sum of each of eight vectors.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn sums_of_eight(v: [__m256i; LANES]) -> __m256i {
    let first = sums_of_halves([v[0], v[1], v[2], v[3]]);
    let second = sums_of_halves([v[4], v[5], v[6], v[7]]);
    let low = _mm256_permute2x128_si256::<0x20>(first, second);
    _mm256_add_epi32(low, _mm256_permute2x128_si256::<0x31>(first, second))
}

/// Eight rows of blocks, side by side.
struct EightRows<W>(RowsApart<W>);

impl<W: bytemuck::Pod> EightRows<W> {
    #[inline(always)]
    fn new(source: Source<'_>, row: usize) -> Self {
        Self(RowsApart::new(source, row, 1, LANES, 0..source.blocks))
    }

    /// Block `block` of each row.
    ///
    /// # Safety
    /// There are as many blocks in a row.
    #[inline(always)]
    unsafe fn blocks(&self, block: usize) -> [&W; LANES] {
        let at = self.0.at(block);
        // SAFETY: by the invariant, the block lies inside of the row.
        std::array::from_fn(|row| unsafe { &*at.wrapping_byte_add(row * self.0.stride) })
    }

    /// Rows lie side by side, but are read in their order if the next ones are asked for meanwhile: as many bytes as a step reads.
    #[inline(always)]
    fn ask_for_more(&self, block: usize) {
        let step = LANES * size_of::<W>();
        let next = self.0.first.wrapping_add(LANES * self.0.stride + block * step);
        for line in (0..step).step_by(64) {
            // SAFETY: a hint, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast()) };
        }
    }
}

/// Large levels keep their sign.
const fn large(_offset: u8) -> u8 {
    0
}

/// Something of each of two blocks.
macro_rules! each {
    ($few:ident, |$block:ident| $something:expr) => {{
        let [a, b] = $few;
        [each!(a as $block, $something), each!(b as $block, $something)]
    }};
    ($one:ident as $block:ident, $something:expr) => {{
        let $block = $one;
        $something
    }};
}

row_kernels!("avx2,f16c");

macro_rules! features {
    ($($item:item)*) => {
        $(
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            $item
        )*
    };
}

features! {
    /// Sums of pairs of products of large levels with activations. Where levels may be -128, no activation is.
    fn pairs<const OFFSET: u8>(levels: __m256i, x: __m256i) -> __m256i {
        if OFFSET == 128 {
            _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(x, levels))
        } else {
            _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(levels, x))
        }
    }

    fn products<const OFFSET: u8>(levels: [__m256i; 2], x: [__m256i; 2]) -> __m256i {
        let ones = _mm256_set1_epi16(1);
        if OFFSET <= SMALL {
            let low = _mm256_maddubs_epi16(levels[0], x[0]);
            let high = _mm256_maddubs_epi16(levels[1], x[1]);
            _mm256_madd_epi16(_mm256_add_epi16(low, high), ones)
        } else {
            let low = _mm256_madd_epi16(pairs::<OFFSET>(levels[0], x[0]), ones);
            let high = _mm256_madd_epi16(pairs::<OFFSET>(levels[1], x[1]), ones);
            _mm256_add_epi32(low, high)
        }
    }

    fn corrected<const OFFSET: u8>(sums: __m256i, corrections: __m256i) -> __m256i {
        if OFFSET <= SMALL { _mm256_add_epi32(sums, corrections) } else { sums }
    }

    fn add(sums: __m256i, levels: __m256i, x: __m256i, scales: __m256i) -> __m256i {
        _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(levels, x), scales))
    }

    fn corrected_parts<const OFFSET: u8>(_corrections: __m256i, _scales: __m256i) -> __m256i {
        const { assert!(OFFSET > SMALL, "`add_scaled` has no offset") };
        _mm256_setzero_si256()
    }

    fn add_scaled<const OFFSET: u8>(sums: __m256i, levels: __m256i, x: __m256i, scale: __m256i) -> __m256i {
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs::<OFFSET>(levels, x), scale))
    }

    /// The first eight in both halves, and the others.
    fn sixteen_scales(scales: __m256i) -> [__m256i; 2] {
        [_mm256_permute2x128_si256::<0x00>(scales, scales), _mm256_permute2x128_si256::<0x11>(scales, scales)]
    }

    fn two_scales(scales: &[__m256i; 2], part: usize) -> __m256i {
        let place = |part: usize| {
            let first = (2 * part % 16) as i16;
            _mm_set1_epi16(first | (first + 1) << 8)
        };
        _mm256_shuffle_epi8(scales[part / 8], _mm256_set_m128i(place(part + 1), place(part)))
    }

    fn gathered<A: bytemuck::Pod>([first, second]: [&A; 2]) -> __m256i {
        _mm256_set_m128i(load_16(second), load_16(first))
    }

    fn low_and_high(q: __m256i) -> [__m256i; 2] {
        nibbles(q)
    }

    fn with_offset_128(levels: [__m256i; 2]) -> [__m256i; 2] {
        const { assert!(large(128) == 0) };
        levels
    }

    fn wide_table(levels: &[i8; 16], offset: u8) -> __m256i {
        table(levels, offset)
    }

    fn looked_up(table: __m256i, [low, high]: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)]
    }

    fn with_fifth_bits([low, high]: [__m256i; 2], [first, second]: [&[u8; 4]; 2]) -> [__m256i; 2] {
        let word = |bits: &[u8; 4]| _mm_set1_epi32(i32::from_le_bytes(*bits));
        let words = _mm256_set_m128i(word(second), word(first));
        // Each byte gets the byte of its word that its bit is in.
        let places = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0, 0x0101_0101_0101_0101);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let fifth = |places| {
            let bits = _mm256_and_si256(_mm256_shuffle_epi8(words, places), bit);
            _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit), _mm256_set1_epi8(16))
        };
        let high_places = _mm256_add_epi8(places, _mm256_set1_epi8(2));
        [_mm256_or_si256(low, fifth(places)), _mm256_or_si256(high, fifth(high_places))]
    }

    fn where_bit(bytes: __m256i, bit: usize, number: i8) -> __m256i {
        let bit = _mm256_set1_epi8((1_u8 << bit).cast_signed());
        let found = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
        _mm256_and_si256(found, _mm256_set1_epi8(number))
    }
}
