//! Products of rows with one activation, as [`rows`](crate::arch::rows) has them, row after row: memory is read in the order in which it
//! lies, which is twice as fast as 16 rows side by side, since that order is what the CPU fetches ahead.

use super::panel::{Sixteen, words};
use crate::arch::avx2::dot::{load_16, load_32};
use crate::arch::rows::*;
use crate::block::{Half, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
use crate::dot::scales_and_minimums;
use crate::panel::{Integers, Source};
use crate::{fp4, iq4};
use kbit_types::{GgmlType, IntegerLayout, PackedActivation};
use std::arch::x86_64::*;

/// Rows whose terms are added up side by side.
const LANES: usize = 16;

/// Blocks of 32 whose terms are kept at a time, at most; rows of fewer than eight have no kernel here.
const PIECE: usize = 64;
/// Eights of blocks in a piece. The last of them may have some in common with the one before.
const EIGHTS: usize = PIECE / 8;

/// Levels of eight blocks of activations as weights are read: the first halves of blocks `i` and `i + 4`, and the second ones, for each `i`.
type Eight = [[[u32; 8]; 2]; 4];

fn in_pairs(levels: &[[u32; 8]; 8]) -> Eight {
    std::array::from_fn(|i| {
        let (first, second) = (levels[i].as_chunks::<4>().0, levels[i + 4].as_chunks::<4>().0);
        [0, 1].map(|half| {
            let mut both = [0; 8];
            both[..4].copy_from_slice(&first[half]);
            both[4..].copy_from_slice(&second[half]);
            both
        })
    })
}

/// How many bytes behind what is read memory is asked for: into the second-level cache, and from there into the first. By itself the CPU
/// looks ahead less, and not past the end of a page.
const AHEAD: [usize; 2] = [4096, 1024];

/// Asks for what is to be read after `blocks`.
#[inline(always)]
fn ask_for_more<W>(blocks: &[W]) {
    let [far, near] = AHEAD.map(|bytes| blocks.as_ptr().cast::<i8>().wrapping_add(bytes));
    for line in (0..size_of_val(blocks)).step_by(64) {
        // SAFETY: hints, wherever they point.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(far.wrapping_add(line));
            _mm_prefetch::<_MM_HINT_T0>(near.wrapping_add(line));
        }
    }
}

/// Where each eight of `blocks` blocks begins.
fn eights(blocks: usize) -> impl Iterator<Item = usize> {
    (0..blocks.div_ceil(8)).map(move |eight| (8 * eight).min(blocks - 8))
}

/// The eight from `start` on.
#[inline(always)]
fn eight<T>(from: &[T], start: usize) -> &[T; 8] {
    from[start..].first_chunk().expect("eight blocks")
}

/// Rows of blocks of 32 weights, eight blocks at a time: `$levels` of the first and second halves of two blocks, with the offset added, and
/// `$scales` of eight. `$term` is what a block adds, of its sum, the scales of its weights, and those of its activations.
macro_rules! rows_of_32 {
    (
        $features:literal, $rows:ident of $block:ident, $table:expr,
        |$a:ident, $b:ident, $t:ident| $levels:expr,
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
                for (packed, start) in packed.iter_mut().zip(eights(blocks)) {
                    *packed = in_pairs(eight(levels, start));
                }
                for row in (0..source.rows).step_by(LANES) {
                    // The last rows may have some in common with those before, which are done.
                    let (row, done) = (row.min(source.rows - LANES), row.saturating_sub(source.rows - LANES));
                    for (lane, terms) in terms.iter_mut().enumerate() {
                        let weights = &source.row::<$block>(row + lane)[first..first + blocks];
                        for (x, start) in packed.iter().zip(eights(blocks)) {
                            let $eight = eight(weights, start);
                            ask_for_more($eight);
                            let $eight = $eight.each_ref();
                            let mut sums = [_mm256_setzero_si256(); 4];
                            for (i, (sum, x)) in sums.iter_mut().zip(x).enumerate() {
                                let ($a, $b) = ($eight[i], $eight[i + 4]);
                                *sum = products::<OFFSET>($levels, [load_32(&x[0]), load_32(&x[1])]);
                            }
                            let sum =
                                corrected::<OFFSET>(sums_of_halves(sums), load_32(eight(corrections, start)));
                            let $y = [
                                _mm256_castsi256_ps(load_32(eight(&scales[0], start))),
                                _mm256_castsi256_ps(load_32(eight(&scales[1], start))),
                            ];
                            let ($sum, $w) = (_mm256_cvtepi32_ps(sum), $scales);
                            let terms: &mut [f32] = &mut terms[start..start + 8];
                            // SAFETY: writes eight floats.
                            unsafe { _mm256_storeu_ps(terms.as_mut_ptr(), $term) };
                        }
                    }
                    let out = (&mut out[row..row + LANES]).try_into().expect("a number a lane");
                    add_terms(&terms, blocks, out, first > 0, done);
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

/// Rows of super-blocks, one after the other. `$product` is the sum of a block of integers with as many activations, as lanes to be added
/// up, and `$minimums` that of the minimums; both know the number of the block.
macro_rules! rows_of_256 {
    (
        $features:literal, $rows:ident of $block:ident,
        |$b:ident, $x:ident, $at:ident| $product:expr $(, $minimums:expr)?
    ) => {
        #[target_feature(enable = $features)]
        fn $rows(source: Source<'_>, $x: PackedActivation<'_>, out: &mut [f32]) -> bool {
            for (row, out) in out.iter_mut().enumerate() {
                let mut total = 0f32;
                for ($at, $b) in source.row::<$block>(row).iter().enumerate() {
                    ask_for_more(std::slice::from_ref($b));
                    let y = $x.scales[$at];
                    let product = sum($product) as f32 * (half($b.d) * y);
                    $(let product = product - sum_of_four($minimums) as f32 * (half($b.dmin) * y);)?
                    total += product;
                }
                *out = total;
            }
            true
        }
    };
}

const fn large(offset: u8) -> u8 {
    offset
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
    fn products<const OFFSET: u8>(levels: [__m256i; 2], x: [__m256i; 2]) -> __m256i {
        let low = _mm256_dpbusd_epi32(_mm256_setzero_si256(), levels[0], x[0]);
        _mm256_dpbusd_epi32(low, levels[1], x[1])
    }

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

    fn fifth_bits(first: u32, second: u32) -> [__m256i; 2] {
        [
            _mm256_maskz_set1_epi8(first & 0xffff | second << 16, 16),
            _mm256_maskz_set1_epi8(first >> 16 | second & 0xffff_0000, 16),
        ]
    }

    fn where_bit(bytes: __m256i, bit: usize, number: i8) -> __m256i {
        let found = _mm256_test_epi8_mask(bytes, _mm256_set1_epi8((1_u8 << bit).cast_signed()));
        _mm256_maskz_set1_epi8(found, number)
    }
}

/// Rows of number `done..` get their sums: on top of what is in `out` if `more`. Inlined, it would take registers from the loop before it.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn add_terms(terms: &[[f32; PIECE]; LANES], blocks: usize, out: &mut [f32; LANES], more: bool, done: usize) {
    // SAFETY: reads 16 floats.
    let mut sums = if more { unsafe { _mm512_loadu_ps(out.as_ptr()) } } else { _mm512_setzero_ps() };
    let rows = Sixteen::of_floats(terms);
    for block in (0..blocks).step_by(4) {
        let columns = words!(&rows, block * size_of::<f32>());
        for column in columns.into_iter().take(blocks - block) {
            sums = _mm512_add_ps(sums, _mm512_castsi512_ps(column));
        }
    }
    // SAFETY: writes among 16 floats.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), !0 << done, sums) }
}
