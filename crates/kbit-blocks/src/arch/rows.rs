//! Products of rows with one activation.
//!
//! Terms of blocks are those of [`Terms`](kbit_types::Terms): exact sums of integers, multiplied with the scales, and added up from the
//! first block to the last.
//!
//! AVX2 and AVX-512 take blocks apart alike ([`row_kernels`]), compiled with the features of each; the module of a set brings what differs:
//!
//! | | |
//! |---|---|
//! | `LANES` | the fewest rows that there are kernels for |
//! | `rows_of_32!`, `rows_of_256!` | kernels of a type of blocks: the order of rows and blocks, and the sums of terms |
//! | `each!` | something of each of a few blocks of 32: as many as have 16 bytes each in a vector |
//! | `gathered` | 16 bytes of each of them |
//! | `low_and_high` | low and high halves of bytes |
//! | `with_offset_128`, `large` | what large levels are given as an offset: 128, or what offset there is up to 255 with it |
//! | `wide_table`, `looked_up` | a table of 16 levels, and what it has for low and high halves |
//! | `with_fifth_bits` | adds a fifth bit to low and high halves |
//! | `corrected` | takes off what the offset adds to products, where it has not been yet |
//! | `add` | adds products of pairs of levels, below 128, with activations, times 16 scales |
//! | `corrected_parts`, `add_scaled` | as `corrected`, and products, of parts of 32 with a scale each |
//! | `sixteen_scales`, `two_scales` | 16 scales, and one of them in the low half of a vector beside the next one in the high half |
//! | `where_bit` | a number in the bytes that have a bit |

use super::avx2::dot::{load_16, load_32};
use crate::block::{IQ4_XS, Q2_K, Q3_K};
use crate::dot::scales_and_minimums;
use crate::panel::Source;
use kbit_types::PackedActivation;
use std::arch::x86_64::*;
use std::ops::Range;

/// Low and high halves of bytes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn nibbles(q: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    [_mm256_and_si256(q, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(q), mask)]
}

/// Levels plus `offset`, by a vector operation: some kernels do this for every block.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn shifted(levels: &[i8; 16], offset: u8) -> __m128i {
    _mm_add_epi8(load_16(levels), _mm_set1_epi8(offset.cast_signed()))
}

/// Levels plus `offset`, in both halves.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn table(levels: &[i8; 16], offset: u8) -> __m256i {
    _mm256_broadcastsi128_si256(shifted(levels, offset))
}

/// Sums of the halves of four vectors: four of low halves, four of high ones.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn sums_of_halves(v: [__m256i; 4]) -> __m256i {
    let two = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (first, second) = (two(v[0], v[1]), two(v[2], v[3]));
    _mm256_add_epi32(_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second))
}

/// Levels of 32 activations: part `part` of 32 of block `block`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn activations(x: &PackedActivation<'_>, block: usize, part: usize) -> __m256i {
    load_32(&x.levels.as_chunks::<8>().0[8 * block + part])
}

/// Eight scales of 16 bits, in both halves.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn eight_scales(scales: [u8; 8]) -> __m256i {
    let scales = _mm_cvtsi64_si128(u64::from_le_bytes(scales).cast_signed());
    _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(scales))
}

/// One of them, everywhere.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn scale(scales: __m256i, part: usize) -> __m256i {
    let place = (2 * part) as i16;
    _mm256_shuffle_epi8(scales, _mm256_set1_epi16(place | (place + 1) << 8))
}

/// What the offset of the weights adds to a block of 16 parts, times -1.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn correction(x: &PackedActivation<'_>, block: usize, scales: __m128i) -> __m256i {
    let corrections = &x.corrections.as_chunks::<8>().0[2 * block..];
    let low = _mm256_mullo_epi32(load_32(&corrections[0]), _mm256_cvtepi8_epi32(scales));
    let high =
        _mm256_mullo_epi32(load_32(&corrections[1]), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(scales)));
    _mm256_add_epi32(low, high)
}

/// As [`Q3_K::scale`], of all parts.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn scales_of_q3_k(block: &Q3_K) -> __m128i {
    let scales = block.scales.as_chunks::<4>().0;
    let (low, high) = (u32::from_le_bytes(scales[0]), u32::from_le_bytes(scales[1]));
    let top = u32::from_le_bytes(scales[2]);
    let word = |four: u32, shift: u32, part: u32| {
        (four >> shift & 0x0f0f_0f0f | (top >> part & 0x0303_0303) << 4).cast_signed()
    };
    let scales = _mm_setr_epi32(word(low, 0, 0), word(high, 0, 2), word(low, 4, 4), word(high, 4, 6));
    _mm_sub_epi8(scales, _mm_set1_epi8(32))
}

/// As [`IQ4_XS::scale`], of all parts.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn scales_of_iq4_xs(block: &IQ4_XS) -> __m256i {
    let low = _mm256_set1_epi32(u32::from_le_bytes(block.low).cast_signed());
    let high = _mm256_set1_epi32(i32::from(u16::from_le_bytes(block.high)));
    let low = _mm256_srlv_epi32(low, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    let high = _mm256_srlv_epi32(high, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    let low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    let high = _mm256_slli_epi32::<4>(_mm256_and_si256(high, _mm256_set1_epi32(3)));
    _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32))
}

/// The four pairs of bits of bytes, from the lowest up.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn pairs_of_bits(q: __m256i) -> [__m256i; 4] {
    let mask = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(q, mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(q), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(q), mask),
        _mm256_and_si256(_mm256_srli_epi16::<6>(q), mask),
    ]
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn minimums_of_q2_k(block: &Q2_K, x: &PackedActivation<'_>, at: usize) -> __m128i {
    let minimums = _mm_and_si128(_mm_srli_epi16::<4>(load_16(&block.scales)), _mm_set1_epi8(15));
    let sums = _mm256_madd_epi16(_mm256_cvtepu8_epi16(minimums), load_32(&x.sums.as_chunks::<8>().0[at]));
    _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
}

/// Minimums of Q4_K or Q5_K, with the sums of the activations of parts of 32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn minimums_of(scales: &[u8; 12], x: &PackedActivation<'_>, at: usize) -> __m128i {
    let minimums = u64::from_le_bytes(scales_and_minimums(scales).1).cast_signed();
    _mm_madd_epi16(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(minimums)), load_16(&x.sums.as_chunks::<4>().0[at]))
}

/// Rows of blocks, the same number of rows apart.
///
/// Invariant: from each of `count` places, the first of which is `first` and each of which is `stride` bytes behind the one before, the
/// blocks of a range may be read.
pub(super) struct RowsApart<W> {
    pub(super) first: *const u8,
    pub(super) stride: usize,
    of: std::marker::PhantomData<W>,
}

impl<W: bytemuck::Pod> RowsApart<W> {
    /// Blocks `blocks` of `count` rows, `apart` rows from one to the next.
    #[inline(always)]
    pub(super) fn new(
        source: Source<'_>,
        row: usize,
        apart: usize,
        count: usize,
        blocks: Range<usize>,
    ) -> Self {
        assert!(row + (count - 1) * apart < source.rows, "{count} rows {apart} apart");
        let start = row * source.row_bytes + (source.first + blocks.start) * size_of::<W>();
        let stride = apart * source.row_bytes;
        let last = start + (count - 1) * stride + blocks.len() * size_of::<W>();
        assert!(blocks.end <= source.blocks && last <= source.bytes.len(), "{count} rows of {blocks:?}");
        const { assert!(align_of::<W>() == 1) };
        Self { first: source.bytes[start..].as_ptr(), stride, of: std::marker::PhantomData }
    }

    /// Where block `block` of the first row is, counted from the first of the range. It needs no alignment, and any bytes are one.
    #[inline(always)]
    pub(super) fn at(&self, block: usize) -> *const W {
        self.first.wrapping_add(block * size_of::<W>()).cast()
    }
}

/// A field of eight blocks, in half precision, as floats.
macro_rules! halves {
    ($blocks:expr, $field:ident) => {{
        let blocks = $blocks;
        _mm256_cvtph_ps(_mm_setr_epi16(
            i16::from_le_bytes(blocks[0].$field.0),
            i16::from_le_bytes(blocks[1].$field.0),
            i16::from_le_bytes(blocks[2].$field.0),
            i16::from_le_bytes(blocks[3].$field.0),
            i16::from_le_bytes(blocks[4].$field.0),
            i16::from_le_bytes(blocks[5].$field.0),
            i16::from_le_bytes(blocks[6].$field.0),
            i16::from_le_bytes(blocks[7].$field.0),
        ))
    }};
}

/// `dot_integers` of an instruction set with these features; see the table above for what must be there.
macro_rules! row_kernels {
    ($features:literal) => {
        /// Products of whole rows with one activation; false where there are none for the type, or so few rows or columns.
        #[target_feature(enable = $features)]
        pub(super) fn dot_integers(
            ty: GgmlType,
            source: Source<'_>,
            x: PackedActivation<'_>,
            out: &mut [f32],
        ) -> bool {
            if source.rows < LANES {
                return false;
            }
            match ty {
                GgmlType::Q8_0 => rows_of_q8_0(source, x, out),
                GgmlType::Q4_0 => rows_of_q4_0(source, x, out),
                GgmlType::Q4_1 => rows_of_q4_1(source, x, out),
                GgmlType::Q5_0 => rows_of_q5_0(source, x, out),
                GgmlType::Q5_1 => rows_of_q5_1(source, x, out),
                GgmlType::IQ4_NL => rows_of_iq4_nl(source, x, out),
                GgmlType::MXFP4 => rows_of_mxfp4(source, x, out),
                GgmlType::Q2_K => rows_of_q2_k(source, x, out),
                GgmlType::Q3_K => rows_of_q3_k(source, x, out),
                GgmlType::Q4_K => rows_of_q4_k(source, x, out),
                GgmlType::Q5_K => rows_of_q5_k(source, x, out),
                GgmlType::Q6_K => rows_of_q6_k(source, x, out),
                GgmlType::IQ4_XS => rows_of_iq4_xs(source, x, out),
                _ => false,
            }
        }

        /// The term of blocks with minimums, whose activations have their scaled sum.
        #[inline]
        #[target_feature(enable = $features)]
        fn with_minimum(sum: __m256, w: [__m256; 2], y: [__m256; 2]) -> __m256 {
            let product = _mm256_mul_ps(sum, _mm256_mul_ps(w[0], y[0]));
            _mm256_add_ps(product, _mm256_mul_ps(w[1], y[1]))
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn product_of_q2_k(block: &Q2_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
            let scales = _mm_and_si128(load_16(&block.scales), _mm_set1_epi8(15));
            let scales = sixteen_scales(_mm256_cvtepu8_epi16(scales));
            let mut sums = _mm256_setzero_si256();
            for (half, q) in block.q.iter().enumerate() {
                for (run, levels) in pairs_of_bits(load_32(q)).into_iter().enumerate() {
                    let part = 4 * half + run;
                    sums = add(sums, levels, activations(x, at, part), two_scales(&scales, 2 * part));
                }
            }
            sums
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn product_of_q3_k(block: &Q3_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
            let scales = scales_of_q3_k(block);
            let mut sums = correction(x, at, scales);
            let scales = sixteen_scales(_mm256_cvtepi8_epi16(scales));
            let high = load_32(&block.high);
            for (half, q) in block.q.iter().enumerate() {
                for (run, q) in pairs_of_bits(load_32(q)).into_iter().enumerate() {
                    let part = 4 * half + run;
                    let levels = _mm256_or_si256(q, where_bit(high, part, 4));
                    sums = add(sums, levels, activations(x, at, part), two_scales(&scales, 2 * part));
                }
            }
            sums
        }

        #[inline]
        #[target_feature(enable = $features)]
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
        #[target_feature(enable = $features)]
        fn product_of_q5_k(block: &Q5_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
            let scales = eight_scales(scales_and_minimums(&block.scales).0);
            let fifth = load_32(&block.high);
            let mut sums = _mm256_setzero_si256();
            for (pair, q) in block.q.iter().enumerate() {
                let [low, high] = nibbles(load_32(q));
                let low = _mm256_or_si256(low, where_bit(fifth, 2 * pair, 16));
                let high = _mm256_or_si256(high, where_bit(fifth, 2 * pair + 1, 16));
                sums = add(sums, low, activations(x, at, 2 * pair), scale(scales, 2 * pair));
                sums = add(sums, high, activations(x, at, 2 * pair + 1), scale(scales, 2 * pair + 1));
            }
            sums
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn product_of_q6_k(block: &Q6_K, x: &PackedActivation<'_>, at: usize) -> __m256i {
            let scales = load_16(&block.scales);
            let mut sums = correction(x, at, scales);
            let scales = sixteen_scales(_mm256_cvtepi8_epi16(scales));
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
                    sums = add(sums, levels, activations(x, at, part), two_scales(&scales, 2 * part));
                }
            }
            sums
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn product_of_iq4_xs(block: &IQ4_XS, x: &PackedActivation<'_>, at: usize) -> __m256i {
            let table = table(&iq4::LEVELS, large(127));
            let scales = scales_of_iq4_xs(block);
            let mut sums = corrected_parts::<127>(load_32(&x.corrections.as_chunks::<8>().0[at]), scales);
            let scales = _mm256_packs_epi32(scales, scales);
            let scales = _mm256_permute4x64_epi64::<0b_10_00_10_00>(scales);
            for (part, q) in block.q.iter().enumerate() {
                let q = load_16(q);
                let codes = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(q), q), _mm256_set1_epi8(15));
                let levels = _mm256_shuffle_epi8(table, codes);
                sums = add_scaled::<127>(sums, levels, activations(x, at, part), scale(scales, part));
            }
            sums
        }

        rows_of_32! {
            $features, rows_of_q8_0 of Q8_0, (),
            |few, _table| {
                let half = |half: usize| gathered(each!(few, |block| &block.q.as_chunks::<16>().0[half]));
                with_offset_128([half(0), half(1)])
            },
            |eight| halves!(eight, d),
            |sum, w, y| _mm256_mul_ps(sum, _mm256_mul_ps(w, y[0]))
        }
        rows_of_32! {
            $features, rows_of_q4_0 of Q4_0, (),
            |few, _table| low_and_high(gathered(each!(few, |block| &block.q))),
            |eight| halves!(eight, d),
            |sum, w, y| _mm256_mul_ps(_mm256_mul_ps(sum, w), y[0])
        }
        rows_of_32! {
            $features, rows_of_q5_0 of Q5_0, (),
            |few, _table| with_fifth_bits(low_and_high(gathered(each!(few, |block| &block.q))), each!(few, |block| &block.high)),
            |eight| halves!(eight, d),
            |sum, w, y| _mm256_mul_ps(sum, _mm256_mul_ps(w, y[0]))
        }
        rows_of_32! {
            $features, rows_of_q4_1 of Q4_1, (),
            |few, _table| low_and_high(gathered(each!(few, |block| &block.q))),
            |eight| [halves!(eight, d), halves!(eight, m)],
            |sum, w, y| with_minimum(sum, w, y)
        }
        rows_of_32! {
            $features, rows_of_q5_1 of Q5_1, (),
            |few, _table| with_fifth_bits(low_and_high(gathered(each!(few, |block| &block.q))), each!(few, |block| &block.high)),
            |eight| [halves!(eight, d), halves!(eight, m)],
            |sum, w, y| with_minimum(sum, w, y)
        }
        rows_of_32! {
            $features, rows_of_iq4_nl of IQ4_NL, wide_table(&iq4::LEVELS, large(127)),
            |few, table| looked_up(table, low_and_high(gathered(each!(few, |block| &block.q)))),
            |eight| halves!(eight, d),
            |sum, w, y| _mm256_mul_ps(sum, _mm256_mul_ps(w, y[0]))
        }
        rows_of_32! {
            $features, rows_of_mxfp4 of MXFP4, wide_table(&fp4::LEVELS, 12),
            |few, table| looked_up(table, low_and_high(gathered(each!(few, |block| &block.q)))),
            |eight| {
                let mut e = [0.0; 8];
                for (e, block) in e.iter_mut().zip(eight) {
                    *e = fp4::half_e8m0(block.e);
                }
                _mm256_setr_ps(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7])
            },
            |sum, w, y| _mm256_mul_ps(sum, _mm256_mul_ps(w, y[0]))
        }

        rows_of_256! {
            $features, rows_of_q2_k of Q2_K, |block, x, at| product_of_q2_k(block, &x, at), minimums_of_q2_k(block, &x, at)
        }
        rows_of_256! { $features, rows_of_q3_k of Q3_K, |block, x, at| product_of_q3_k(block, &x, at) }
        rows_of_256! {
            $features, rows_of_q4_k of Q4_K, |block, x, at| product_of_q4_k(block, &x, at), minimums_of(&block.scales, &x, at)
        }
        rows_of_256! {
            $features, rows_of_q5_k of Q5_K, |block, x, at| product_of_q5_k(block, &x, at), minimums_of(&block.scales, &x, at)
        }
        rows_of_256! { $features, rows_of_q6_k of Q6_K, |block, x, at| product_of_q6_k(block, &x, at) }
        rows_of_256! { $features, rows_of_iq4_xs of IQ4_XS, |block, x, at| product_of_iq4_xs(block, &x, at) }
    };
}
pub(super) use {halves, row_kernels};
