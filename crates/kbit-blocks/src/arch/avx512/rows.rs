//! Products of rows with one activation, row after row: memory is read in the order in which it lies, which is twice as fast as 16
//! rows side by side, since that order is what the CPU fetches ahead.
//!
//! Terms of blocks are those of [`Terms`](kbit_types::Terms): exact sums of integers, multiplied with the scales, and added up from the
//! first block to the last.

use super::panel::{Sixteen, words};
use crate::arch::avx2::dot::{load_16, load_32};
use crate::block::{Half, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_K, Q6_K, Q8_0};
use crate::dot::scales_and_minimums;
use crate::panel::Source;
use crate::{fp4, iq4};
use kbit_types::{GgmlType, PackedActivation};
use std::arch::x86_64::*;

/// Rows whose terms are added up side by side.
const LANES: usize = 16;
/// Blocks of 32 whose terms are kept at a time, at most; rows of fewer than eight have no kernel here.
const PIECE: usize = 64;
/// Eights of blocks in a piece. The last of them may have some in common with the one before.
const EIGHTS: usize = PIECE / 8;

macro_rules! features {
    ($($item:item)*) => {
        $(#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")] $item)*
    };
}

/// For each type, how its rows are multiplied.
macro_rules! types {
    ($($ty:ident: $rows:ident;)*) => {
        features! {
            /// Products of whole rows with one activation; false where there are none for the type, or so few rows or columns.
            pub(super) fn dot_integers(ty: GgmlType, source: Source<'_>, x: PackedActivation<'_>, out: &mut [f32]) -> bool {
                if source.rows < LANES {
                    return false;
                }
                match ty {
                    $(GgmlType::$ty => $rows(source, x, out),)*
                    _ => false,
                }
            }
        }
    };
}

types! {
    Q8_0: rows_of_q8_0;
    Q4_0: rows_of_q4_0;
    Q5_0: rows_of_q5_0;
    IQ4_NL: rows_of_iq4_nl;
    MXFP4: rows_of_mxfp4;
    Q2_K: rows_of_q2_k;
    Q3_K: rows_of_q3_k;
    Q4_K: rows_of_q4_k;
    Q5_K: rows_of_q5_k;
    Q6_K: rows_of_q6_k;
    IQ4_XS: rows_of_iq4_xs;
}

features! {
    /// Two times 16 bytes.
    #[inline]
    fn both<A: bytemuck::Pod>(first: &A, second: &A) -> __m256i {
        _mm256_set_m128i(load_16(second), load_16(first))
    }

    /// Low and high halves of bytes.
    #[inline]
    fn nibbles(q: __m256i) -> [__m256i; 2] {
        let mask = _mm256_set1_epi8(15);
        [_mm256_and_si256(q, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(q), mask)]
    }

    /// A table of 16 bytes in both halves.
    #[inline]
    fn table(levels: &[i8; 16], offset: u8) -> __m256i {
        _mm256_broadcastsi128_si256(load_16(&levels.map(|level| level.cast_unsigned().wrapping_add(offset))))
    }

    /// Sums of the halves of four vectors: four of low halves, four of high ones.
    #[inline]
    fn sums_of_halves(v: [__m256i; 4]) -> __m256i {
        let two = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (first, second) = (two(v[0], v[1]), two(v[2], v[3]));
        _mm256_add_epi32(_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second))
    }

    #[inline]
    fn half(d: Half) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(d.0)))))
    }

    #[inline]
    fn sum_of_four(v: __m128i) -> i32 {
        let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b_00_00_11_10>(v));
        _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b_00_00_00_01>(v)))
    }

    #[inline]
    fn sum(v: __m256i) -> i32 {
        sum_of_four(_mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)))
    }

    /// Adds the columns of `[16, blocks]` terms, from the first to the last. Inlined, it would take registers from the loop before it.
    #[inline(never)]
    fn add_terms(terms: &[[f32; PIECE]; LANES], blocks: usize, mut sums: __m512) -> __m512 {
        let rows = Sixteen::of_floats(terms);
        for block in (0..blocks).step_by(4) {
            let columns = words!(&rows, block * size_of::<f32>());
            for column in columns.into_iter().take(blocks - block) {
                sums = _mm512_add_ps(sums, _mm512_castsi512_ps(column));
            }
        }
        sums
    }
}

/// Scales of eight blocks that begin with them.
macro_rules! halves {
    ($blocks:expr) => {{
        let d = $blocks.each_ref().map(|block| i16::from_le_bytes(block.d.0));
        _mm256_cvtph_ps(_mm_setr_epi16(d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]))
    }};
}

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

/// Where each eight of `blocks` blocks begins.
fn eights(blocks: usize) -> impl Iterator<Item = usize> {
    (0..blocks.div_ceil(8)).map(move |eight| (8 * eight).min(blocks - 8))
}

/// The eight from `start` on.
#[inline(always)]
fn eight<T>(from: &[T], start: usize) -> &[T; 8] {
    from[start..].first_chunk().expect("eight blocks")
}

/// Rows of blocks of 32 weights with one scale, eight blocks at a time: `$levels` of the first and second halves of two blocks, with the
/// offset added, and `$scales` of eight. `$term` is what a block adds, of its sum and the scales of weights and activations.
macro_rules! rows_of_32 {
    (
        $rows:ident of $block:ident, $table:expr,
        |$a:ident, $b:ident, $t:ident| $levels:expr,
        |$eight:ident| $scales:expr,
        |$sum:ident, $w:ident, $y:ident| $term:expr
    ) => {
        features! {
            fn $rows(source: Source<'_>, x: PackedActivation<'_>, out: &mut [f32]) -> bool {
                let ($t, zero) = ($table, _mm256_setzero_si256());
                let levels = x.levels.as_chunks::<8>().0;
                // Pieces are about as long as each other.
                let step = source.blocks.div_ceil(source.blocks.div_ceil(PIECE).max(1));
                let last = source.blocks.checked_rem(step).filter(|last| *last > 0).unwrap_or(step);
                if last < 8 {
                    return false;
                }
                let mut terms = [[0f32; PIECE]; LANES];
                let mut packed: [Eight; EIGHTS] = bytemuck::Zeroable::zeroed();
                for first in (0..source.blocks).step_by(step) {
                    let blocks = step.min(source.blocks - first);
                    let levels = &levels[first..first + blocks];
                    let (corrections, scales) = (&x.corrections[first..], &x.scales[first..]);
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
                                let mut products = [zero; 4];
                                for (i, (product, x)) in products.iter_mut().zip(x).enumerate() {
                                    let ($a, $b) = (&$eight[i], &$eight[i + 4]);
                                    let [low, high]: [__m256i; 2] = $levels;
                                    *product = _mm256_dpbusd_epi32(zero, low, load_32(&x[0]));
                                    *product = _mm256_dpbusd_epi32(*product, high, load_32(&x[1]));
                                }
                                let corrections = load_32(eight(corrections, start));
                                let sum = _mm256_add_epi32(sums_of_halves(products), corrections);
                                let $y = _mm256_castsi256_ps(load_32(eight(scales, start)));
                                let ($sum, $w) = (_mm256_cvtepi32_ps(sum), $scales);
                                let terms: &mut [f32] = &mut terms[start..start + 8];
                                // SAFETY: writes eight floats.
                                unsafe { _mm256_storeu_ps(terms.as_mut_ptr(), $term) };
                            }
                        }
                        let out = &mut out[row..row + LANES];
                        // SAFETY: reads and writes 16 floats.
                        unsafe {
                            let sums = if first > 0 { _mm512_loadu_ps(out.as_ptr()) } else { _mm512_setzero_ps() };
                            _mm512_mask_storeu_ps(out.as_mut_ptr(), !0 << done, add_terms(&terms, blocks, sums));
                        }
                    }
                }
                true
            }
        }
    };
}

rows_of_32! {
    rows_of_q8_0 of Q8_0, (),
    |a, b, _table| {
        let (a, b) = (a.q.as_chunks::<16>().0, b.q.as_chunks::<16>().0);
        [both(&a[0], &b[0]), both(&a[1], &b[1])].map(|q| _mm256_xor_si256(q, _mm256_set1_epi8(i8::MIN)))
    },
    |eight| halves!(eight),
    |sum, w, y| _mm256_mul_ps(sum, _mm256_mul_ps(w, y))
}
rows_of_32! {
    rows_of_q4_0 of Q4_0, (),
    |a, b, _table| nibbles(both(&a.q, &b.q)),
    |eight| halves!(eight),
    |sum, w, y| _mm256_mul_ps(_mm256_mul_ps(sum, w), y)
}
rows_of_32! {
    rows_of_q5_0 of Q5_0, (),
    |a, b, _table| {
        let (first, second) = (u32::from_le_bytes(a.high), u32::from_le_bytes(b.high));
        let fifth = [first & 0xffff | second << 16, first >> 16 | second & 0xffff_0000];
        let [low, high] = nibbles(both(&a.q, &b.q));
        [
            _mm256_or_si256(low, _mm256_maskz_set1_epi8(fifth[0], 16)),
            _mm256_or_si256(high, _mm256_maskz_set1_epi8(fifth[1], 16)),
        ]
    },
    |eight| halves!(eight),
    |sum, w, y| _mm256_mul_ps(sum, _mm256_mul_ps(w, y))
}
rows_of_32! {
    rows_of_iq4_nl of IQ4_NL, table(&iq4::LEVELS, 127),
    |a, b, table| nibbles(both(&a.q, &b.q)).map(|q| _mm256_shuffle_epi8(table, q)),
    |eight| halves!(eight),
    |sum, w, y| _mm256_mul_ps(sum, _mm256_mul_ps(w, y))
}
rows_of_32! {
    rows_of_mxfp4 of MXFP4, table(&fp4::LEVELS, 12),
    |a, b, table| nibbles(both(&a.q, &b.q)).map(|q| _mm256_shuffle_epi8(table, q)),
    |eight| {
        let e = eight.each_ref().map(|block| fp4::half_e8m0(block.e));
        _mm256_setr_ps(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7])
    },
    |sum, w, y| _mm256_mul_ps(sum, _mm256_mul_ps(w, y))
}

/// Rows of super-blocks, one after the other. `$product` is the sum of a block of integers with as many activations, as lanes to be added
/// up, and `$minimums` that of the minimums; both know the number of the block.
macro_rules! rows_of_256 {
    ($rows:ident of $block:ident, |$b:ident, $x:ident, $at:ident| $product:expr $(, $minimums:expr)?) => {
        features! {
            fn $rows(source: Source<'_>, $x: PackedActivation<'_>, out: &mut [f32]) -> bool {
                for (row, out) in out.iter_mut().enumerate() {
                    let mut total = 0f32;
                    for ($at, $b) in source.row::<$block>(row).iter().enumerate() {
                        let y = $x.scales[$at];
                        let product = sum($product) as f32 * (half($b.d) * y);
                        $(let product = product - sum_of_four($minimums) as f32 * (half($b.dmin) * y);)?
                        total += product;
                    }
                    *out = total;
                }
                true
            }
        }
    };
}

features! {
    /// Levels of 32 activations: part `part` of 32 of block `block`.
    #[inline]
    fn activations(x: &PackedActivation<'_>, block: usize, part: usize) -> __m256i {
        load_32(&x.levels.as_chunks::<8>().0[8 * block + part])
    }

    /// `sums` plus products of pairs of levels, below 128, with activations, times 16 scales.
    #[inline]
    fn add(sums: __m256i, levels: __m256i, x: __m256i, scales: __m256i) -> __m256i {
        _mm256_dpwssd_epi32(sums, _mm256_maddubs_epi16(levels, x), scales)
    }

    /// Eight scales of 16 bits, in both halves.
    #[inline]
    fn eight_scales(scales: [u8; 8]) -> __m256i {
        let scales = _mm_cvtsi64_si128(u64::from_le_bytes(scales).cast_signed());
        _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(scales))
    }

    /// One of them, everywhere.
    #[inline]
    fn scale(scales: __m256i, part: usize) -> __m256i {
        let place = (2 * part) as i16;
        _mm256_shuffle_epi8(scales, _mm256_set1_epi16(place | (place + 1) << 8))
    }

    /// Of 16 scales of 16 bits, one in all places of the low half, and the next one in the high half.
    #[inline]
    fn two_scales(scales: __m256i, part: usize) -> __m256i {
        let (low, high) = (_mm_set1_epi16(part as i16), _mm_set1_epi16(part as i16 + 1));
        _mm256_permutexvar_epi16(_mm256_set_m128i(high, low), scales)
    }

    /// What the offset of the weights adds to a block of 16 parts, times -1.
    #[inline]
    fn correction(x: &PackedActivation<'_>, block: usize, scales: __m128i) -> __m256i {
        let corrections = &x.corrections.as_chunks::<8>().0[2 * block..];
        let low = _mm256_mullo_epi32(load_32(&corrections[0]), _mm256_cvtepi8_epi32(scales));
        let high = _mm256_mullo_epi32(load_32(&corrections[1]), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(scales)));
        _mm256_add_epi32(low, high)
    }

    /// The four pairs of bits of bytes, from the lowest up.
    #[inline]
    fn pairs_of_bits(q: __m256i) -> [__m256i; 4] {
        [q, _mm256_srli_epi16::<2>(q), _mm256_srli_epi16::<4>(q), _mm256_srli_epi16::<6>(q)]
            .map(|q| _mm256_and_si256(q, _mm256_set1_epi8(3)))
    }

    #[inline]
    fn product_of_q2_k(block: &Q2_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
        let scales = _mm256_cvtepu8_epi16(_mm_and_si128(load_16(&block.scales), _mm_set1_epi8(15)));
        let mut sums = _mm256_setzero_si256();
        for (half, q) in block.q.iter().enumerate() {
            for (run, levels) in pairs_of_bits(load_32(q)).into_iter().enumerate() {
                let part = 4 * half + run;
                sums = add(sums, levels, activations(x, at, part), two_scales(scales, 2 * part));
            }
        }
        sums
    }

    #[inline]
    fn minimums_of_q2_k(block: &Q2_K, x: &PackedActivation<'_>, at: usize) -> __m128i {
        let minimums = _mm_and_si128(_mm_srli_epi16::<4>(load_16(&block.scales)), _mm_set1_epi8(15));
        let sums = _mm256_madd_epi16(_mm256_cvtepu8_epi16(minimums), load_32(&x.sums.as_chunks::<8>().0[at]));
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
    }

    #[inline]
    fn product_of_q3_k(block: &Q3_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
        let scales = std::array::from_fn::<i8, 16, _>(|part| Q3_K::scale(block, part));
        let scales = load_16(&scales);
        let mut sums = correction(x, at, scales);
        let scales = _mm256_cvtepi8_epi16(scales);
        let high = load_32(&block.high);
        for (half, q) in block.q.iter().enumerate() {
            for (run, q) in pairs_of_bits(load_32(q)).into_iter().enumerate() {
                let part = 4 * half + run;
                let bit = _mm256_test_epi8_mask(high, _mm256_set1_epi8((1_u8 << part).cast_signed()));
                let levels = _mm256_or_si256(q, _mm256_maskz_set1_epi8(bit, 4));
                sums = add(sums, levels, activations(x, at, part), two_scales(scales, 2 * part));
            }
        }
        sums
    }

    #[inline]
    fn product_of_q4_k(block: &Q4_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
        let scales = eight_scales(scales_and_minimums(&block.scales).0);
        let mut sums = _mm256_setzero_si256();
        for (pair, q) in block.q.iter().enumerate() {
            let [low, high] = nibbles(load_32(q));
            sums = add(sums, low, activations(x, at, 2 * pair), scale(scales, 2 * pair));
            sums = add(sums, high, activations(x, at, 2 * pair + 1), scale(scales, 2 * pair + 1));
        }
        sums
    }

    #[inline]
    fn product_of_q5_k(block: &Q5_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
        let scales = eight_scales(scales_and_minimums(&block.scales).0);
        let high = load_32(&block.high);
        let fifth = |part: usize| {
            let bit = _mm256_test_epi8_mask(high, _mm256_set1_epi8((1_u8 << part).cast_signed()));
            _mm256_maskz_set1_epi8(bit, 16)
        };
        let mut sums = _mm256_setzero_si256();
        for (pair, q) in block.q.iter().enumerate() {
            let [low, high] = nibbles(load_32(q));
            let low = _mm256_or_si256(low, fifth(2 * pair));
            let high = _mm256_or_si256(high, fifth(2 * pair + 1));
            sums = add(sums, low, activations(x, at, 2 * pair), scale(scales, 2 * pair));
            sums = add(sums, high, activations(x, at, 2 * pair + 1), scale(scales, 2 * pair + 1));
        }
        sums
    }

    /// Minimums of Q4_K or Q5_K, with the sums of the activations of parts of 32.
    #[inline]
    fn minimums_of(scales: &[u8; 12], x: &PackedActivation<'_>, at: usize) -> __m128i {
        let minimums = u64::from_le_bytes(scales_and_minimums(scales).1).cast_signed();
        _mm_madd_epi16(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(minimums)), load_16(&x.sums.as_chunks::<4>().0[at]))
    }

    #[inline]
    fn product_of_q6_k(block: &Q6_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
        let scales = load_16(&block.scales);
        let mut sums = correction(x, at, scales);
        let scales = _mm256_cvtepi8_epi16(scales);
        let (mask, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
        for (half, (low, high)) in block.low.iter().zip(&block.high).enumerate() {
            let (q, high) = (low.as_chunks::<32>().0, load_32(high));
            let q = [load_32(&q[0]), load_32(&q[1])];
            let runs = [
                (q[0], _mm256_slli_epi16::<4>(high)),
                (q[1], _mm256_slli_epi16::<2>(high)),
                (_mm256_srli_epi16::<4>(q[0]), high),
                (_mm256_srli_epi16::<4>(q[1]), _mm256_srli_epi16::<2>(high)),
            ];
            for (run, (q, high)) in runs.into_iter().enumerate() {
                let part = 4 * half + run;
                let levels = _mm256_or_si256(_mm256_and_si256(q, mask), _mm256_and_si256(high, two));
                sums = add(sums, levels, activations(x, at, part), two_scales(scales, 2 * part));
            }
        }
        sums
    }

    #[inline]
    fn product_of_iq4_xs(block: &IQ4_XS, x: &PackedActivation<'_>, at: usize) -> __m256i {
        let table = table(&iq4::LEVELS, 127);
        let scales = std::array::from_fn::<i32, 8, _>(|part| i32::from(IQ4_XS::scale(block, part)));
        let mut sums = _mm256_mullo_epi32(load_32(&scales), load_32(&x.corrections.as_chunks::<8>().0[at]));
        for (part, (q, scale)) in block.q.iter().zip(scales).enumerate() {
            let q = load_16(q);
            let codes = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(q), q), _mm256_set1_epi8(15));
            let levels = _mm256_shuffle_epi8(table, codes);
            let product = _mm256_dpbusd_epi32(_mm256_setzero_si256(), levels, activations(x, at, part));
            sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(product, _mm256_set1_epi32(scale)));
        }
        sums
    }
}

rows_of_256! {
    rows_of_q2_k of Q2_K, |block, x, at| product_of_q2_k(block, &x, at), minimums_of_q2_k(block, &x, at)
}
rows_of_256! { rows_of_q3_k of Q3_K, |block, x, at| product_of_q3_k(block, &x, at) }
rows_of_256! {
    rows_of_q4_k of Q4_K, |block, x, at| product_of_q4_k(block, &x, at), minimums_of(&block.scales, &x, at)
}
rows_of_256! {
    rows_of_q5_k of Q5_K, |block, x, at| product_of_q5_k(block, &x, at), minimums_of(&block.scales, &x, at)
}
rows_of_256! { rows_of_q6_k of Q6_K, |block, x, at| product_of_q6_k(block, &x, at) }
rows_of_256! { rows_of_iq4_xs of IQ4_XS, |block, x, at| product_of_iq4_xs(block, &x, at) }
