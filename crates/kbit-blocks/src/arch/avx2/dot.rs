//! Products with AVX2: four rows at a time, so that the sums of floats, each of which has to wait for the one before, run side by
//! side. Sums of integers are exact, hence their order inside a block is free; floats are added in the order of `crate::dot`.
//!
//! Rows that are left over go through the portable code, compiled for the same features, which gives the same numbers.

use crate::block::{Half, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, Q8_K};
use crate::dot::{Lanes, Operands, one, products, scales_and_minimums};
use crate::fp4::{LEVELS, half_e8m0};
use crate::iq4;
use std::arch::x86_64::*;

/// Four rows of blocks.
type Rows<'a, W> = [&'a [W]; 4];

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn load_16<A: bytemuck::Pod>(bytes: &A) -> __m128i {
    const { assert!(size_of::<A>() == 16) };
    // SAFETY: reads the 16 bytes; the instruction needs no alignment.
    unsafe { _mm_loadu_si128(std::ptr::from_ref(bytes).cast()) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn load_32<A: bytemuck::Pod>(bytes: &A) -> __m256i {
    const { assert!(size_of::<A>() == 32) };
    // SAFETY: reads the 32 bytes; the instruction needs no alignment.
    unsafe { _mm256_loadu_si256(std::ptr::from_ref(bytes).cast()) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn array_8(v: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: writes the 32 bytes of `out`; the instruction needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
    out
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn array_4(v: __m128) -> [f32; 4] {
    let mut out = [0.0; 4];
    // SAFETY: writes the 16 bytes of `out`; the instruction needs no alignment.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), v) }
    out
}

/// The sum of the eight integers of each of four vectors.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn sums(v: [__m256i; 4]) -> __m128i {
    let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs))
}

/// Four half-precision numbers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn halves(halves: [Half; 4]) -> __m128 {
    let [a, b, c, d] = halves.map(|half| u64::from(u16::from_le_bytes(half.0)));
    _mm_cvtph_ps(_mm_cvtsi64_si128((a | b << 16 | c << 32 | d << 48).cast_signed()))
}

/// The low and the high halves of bytes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn nibbles(q: &[u8; 16]) -> [__m128i; 2] {
    let (q, mask) = (load_16(q), _mm_set1_epi8(15));
    [_mm_and_si128(q, mask), _mm_and_si128(_mm_srli_epi16::<4>(q), mask)]
}

/// Sums of products of 32 signed bytes with 32 words.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn signed(x: [__m128i; 2], y: [__m256i; 2]) -> __m256i {
    let low = _mm256_madd_epi16(_mm256_cvtepi8_epi16(x[0]), y[0]);
    let high = _mm256_madd_epi16(_mm256_cvtepi8_epi16(x[1]), y[1]);
    _mm256_add_epi32(low, high)
}

/// Signed bytes as words.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn words(q: &[i8; 32]) -> [__m256i; 2] {
    let parts = q.as_chunks::<16>().0;
    [_mm256_cvtepi8_epi16(load_16(&parts[0])), _mm256_cvtepi8_epi16(load_16(&parts[1]))]
}

/// Four rows of blocks of 32 with one scale.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_of_32<W>(
    rows: Rows<'_, W>,
    y: &[Q8_0],
    levels: impl Fn(&W) -> [__m128i; 2],
    scales: impl Fn([&W; 4]) -> __m128,
    term: impl Fn(__m128, __m128, __m128) -> __m128,
) -> [f32; 4] {
    let mut products = _mm_setzero_ps();
    for (index, y) in y.iter().enumerate() {
        let blocks = rows.map(|row| &row[index]);
        let q = words(&y.q);
        let sums = _mm_cvtepi32_ps(sums(blocks.map(|block| signed(levels(block), q))));
        products = _mm_add_ps(products, term(sums, scales(blocks), _mm_set1_ps(y.d.get())));
    }
    array_4(products)
}

/// The term of a block in most types: the scales' product first.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn scales_first(sums: __m128, x: __m128, y: __m128) -> __m128 {
    _mm_mul_ps(sums, _mm_mul_ps(x, y))
}

/// The term of a block in Q4_0.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn in_turn(sums: __m128, x: __m128, y: __m128) -> __m128 {
    _mm_mul_ps(_mm_mul_ps(sums, x), y)
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_q8_0(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, Q8_0>, y: &[Q8_0]| {
        let levels = |x: &Q8_0| {
            let parts = x.q.as_chunks::<16>().0;
            [load_16(&parts[0]), load_16(&parts[1])]
        };
        let scales = |x: [&Q8_0; 4]| halves(x.map(|x| x.d));
        four_of_32(rows, y, levels, scales, |sums, x, y| scales_first(sums, x, y))
    };
    products(operands, four, one::<Q8_0>);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_q4_0(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, Q4_0>, y: &[Q8_0]| {
        let eight = _mm_set1_epi8(8);
        let levels = |x: &Q4_0| nibbles(&x.q).map(|q| _mm_sub_epi8(q, eight));
        let scales = |x: [&Q4_0; 4]| halves(x.map(|x| x.d));
        four_of_32(rows, y, levels, scales, |sums, x, y| in_turn(sums, x, y))
    };
    products(operands, four, one::<Q4_0>);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_mxfp4(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, MXFP4>, y: &[Q8_0]| {
        let table = load_16(&LEVELS);
        let levels = |x: &MXFP4| nibbles(&x.q).map(|q| _mm_shuffle_epi8(table, q));
        let scales = |x: [&MXFP4; 4]| {
            let [a, b, c, d] = x.map(|x| half_e8m0(x.e));
            _mm_setr_ps(a, b, c, d)
        };
        four_of_32(rows, y, levels, scales, |sums, x, y| scales_first(sums, x, y))
    };
    products(operands, four, one::<MXFP4>);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_iq4_nl(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, IQ4_NL>, y: &[Q8_0]| {
        let table = load_16(&iq4::LEVELS);
        let levels = |x: &IQ4_NL| nibbles(&x.q).map(|q| _mm_shuffle_epi8(table, q));
        let scales = |x: [&IQ4_NL; 4]| halves(x.map(|x| x.d));
        four_of_32(rows, y, levels, scales, |sums, x, y| scales_first(sums, x, y))
    };
    products(operands, four, one::<IQ4_NL>);
}

/// The scales of a part of four blocks of IQ4_XS.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn scales_of_iq4_xs(blocks: [&IQ4_XS; 4], part: usize) -> __m128 {
    let [a, b, c, d] = blocks.map(|block| i32::from(block.scale(part)));
    _mm_cvtepi32_ps(_mm_setr_epi32(a, b, c, d))
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_iq4_xs(operands: Operands<'_, '_>) {
    products(operands, |rows, y| four_iq4_xs(rows, y), one::<IQ4_XS>);
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_iq4_xs(rows: Rows<'_, IQ4_XS>, y: &[Q8_K]) -> [f32; 4] {
    let table = load_16(&iq4::LEVELS);
    let mut products = _mm_setzero_ps();
    for (index, y) in y.iter().enumerate() {
        let blocks = rows.map(|row| &row[index]);
        let d = _mm_mul_ps(halves(blocks.map(|block| block.d)), _mm_set1_ps(y.scale()));
        for (part, q) in y.q.as_chunks::<32>().0.iter().enumerate() {
            let q = words(q);
            let levels =
                blocks.map(|block| nibbles(&block.q[part]).map(|codes| _mm_shuffle_epi8(table, codes)));
            let sums = _mm_cvtepi32_ps(sums(levels.map(|levels| signed(levels, q))));
            let scales = _mm_mul_ps(d, scales_of_iq4_xs(blocks, part));
            products = _mm_add_ps(products, _mm_mul_ps(scales, sums));
        }
    }
    array_4(products)
}

/// In each half of a vector, byte `j` beside byte `j + 8`: products of neighbours, added, keep weights apart whose indices leave
/// different rests modulo eight.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn interleave(bytes: __m256i) -> __m256i {
    let order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    _mm256_shuffle_epi8(bytes, order)
}

/// Sums by lane in the making: rests 0 to 3 and rests 4 to 7, twice each.
type Parts = [__m256i; 2];

/// Adds words of two runs of 32 weights, times the pairs of scales in `scales`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_scaled(parts: &mut Parts, a: __m256i, b: __m256i, scales: __m256i) {
    parts[0] = _mm256_add_epi32(parts[0], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), scales));
    parts[1] = _mm256_add_epi32(parts[1], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), scales));
}

/// Adds the lanes of a super-block of scale `d`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_lanes(lanes: &mut __m256, parts: Parts, d: f32) {
    let first = _mm256_permute2x128_si256::<0x20>(parts[0], parts[1]);
    let second = _mm256_permute2x128_si256::<0x31>(parts[0], parts[1]);
    let sums = _mm256_cvtepi32_ps(_mm256_add_epi32(first, second));
    *lanes = _mm256_add_ps(*lanes, _mm256_mul_ps(_mm256_set1_ps(d), sums));
}

/// The sums of 32 activations each.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn sums_of_32(y: &Q8_K) -> __m256i {
    let sums = bytemuck::cast_ref::<[[u8; 2]; 16], [u8; 32]>(&y.sums);
    _mm256_madd_epi16(load_32(sums), _mm256_set1_epi16(1))
}

/// What the minimums of four super-blocks take off, before their scale.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn minimums(minimums: [[u8; 8]; 4], sums_of_32: __m256i) -> __m128 {
    let products = minimums.map(|minimums| {
        let minimums = _mm_cvtsi64_si128(u64::from_le_bytes(minimums).cast_signed());
        _mm256_mullo_epi32(_mm256_cvtepu8_epi32(minimums), sums_of_32)
    });
    _mm_cvtepi32_ps(sums(products))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn totals(lanes: [__m256; 4], minimums: __m128) -> [f32; 4] {
    let minimums = array_4(minimums);
    std::array::from_fn(|row| Lanes { lanes: array_8(lanes[row]), minimums: minimums[row] }.total())
}

/// Four rows of super-blocks of 8 parts, with scales and minimums as Q4_K packs them. `codes` gives the codes of two parts, with
/// their bytes interleaved.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_with_minimums<W>(
    rows: Rows<'_, W>,
    y: &[Q8_K],
    scales: impl Fn(&W) -> (&[u8; 12], Half, Half),
    codes: impl Fn(&W, usize) -> [__m256i; 2],
) -> [f32; 4] {
    let (mut lanes, mut taken) = ([_mm256_setzero_ps(); 4], _mm_setzero_ps());
    for (index, y) in y.iter().enumerate() {
        let blocks = rows.map(|row| &row[index]);
        let heads = blocks.map(&scales);
        let packed = heads.map(|(packed, ..)| scales_and_minimums(packed));
        let mut parts = [[_mm256_setzero_si256(); 2]; 4];
        for (pair, q) in y.q.as_chunks::<64>().0.iter().enumerate() {
            let [first, second] = [0, 1].map(|run| interleave(load_32(&q.as_chunks::<32>().0[run])));
            for (row, parts) in parts.iter_mut().enumerate() {
                let [low, high] = codes(blocks[row], pair);
                let (low, high) = (_mm256_maddubs_epi16(low, first), _mm256_maddubs_epi16(high, second));
                let scales = &packed[row].0;
                let scales = i32::from(scales[2 * pair]) | i32::from(scales[2 * pair + 1]) << 16;
                add_scaled(parts, low, high, _mm256_set1_epi32(scales));
            }
        }
        let scale = _mm_set1_ps(y.scale());
        let d = array_4(_mm_mul_ps(halves(heads.map(|(_, d, _)| d)), scale));
        for ((lanes, parts), d) in lanes.iter_mut().zip(parts).zip(d) {
            add_lanes(lanes, parts, d);
        }
        let dmin = _mm_mul_ps(halves(heads.map(|(.., dmin)| dmin)), scale);
        let minimums = minimums(packed.map(|(_, minimums)| minimums), sums_of_32(y));
        taken = _mm_sub_ps(taken, _mm_mul_ps(dmin, minimums));
    }
    totals(lanes, taken)
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_q4_k(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, Q4_K>, y: &[Q8_K]| {
        let mask = _mm256_set1_epi8(15);
        let codes = |x: &Q4_K, pair: usize| {
            let q = interleave(load_32(&x.q[pair]));
            [_mm256_and_si256(q, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(q), mask)]
        };
        four_with_minimums(rows, y, |x| (&x.scales, x.d, x.dmin), codes)
    };
    products(operands, four, one::<Q4_K>);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_q5_k(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, Q5_K>, y: &[Q8_K]| {
        let (mask, fifth) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
        let codes = |x: &Q5_K, pair: usize| {
            let (q, high) = (interleave(load_32(&x.q[pair])), interleave(load_32(&x.high)));
            let fifth = |part: usize| {
                let bit = _mm256_set1_epi8((1u8 << part).cast_signed());
                _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit), fifth)
            };
            let [low, high] = [q, _mm256_srli_epi16::<4>(q)].map(|q| _mm256_and_si256(q, mask));
            [_mm256_or_si256(low, fifth(2 * pair)), _mm256_or_si256(high, fifth(2 * pair + 1))]
        };
        four_with_minimums(rows, y, |x| (&x.scales, x.d, x.dmin), codes)
    };
    products(operands, four, one::<Q5_K>);
}

/// Places of two words of eight in a vector's first half, and of the words after them in its second half, over and over.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn pair_of_scales(a: i8, b: i8) -> __m256i {
    let words =
        |a: i8, b: i8| _mm_set1_epi32(i32::from_le_bytes([a, a + 1, b, b + 1].map(i8::cast_unsigned)));
    _mm256_set_m128i(words(2 * a + 2, 2 * b + 2), words(2 * a, 2 * b))
}

/// Four rows of super-blocks of 16 parts, the codes of which stand for levels `SHIFT` lower. `codes` gives those of four runs of 32
/// weights, with their bytes interleaved; `scales` the scales of the eight parts of a half.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_of_16_parts<W, const SHIFT: i8>(
    rows: Rows<'_, W>,
    y: &[Q8_K],
    d: impl Fn(&W) -> Half,
    scales: impl Fn(&W, usize) -> [i8; 8],
    codes: impl Fn(&W, usize) -> [__m256i; 4],
) -> [f32; 4] {
    let pairs = [pair_of_scales(0, 2), pair_of_scales(4, 6)];
    let mut lanes = [_mm256_setzero_ps(); 4];
    for (index, y) in y.iter().enumerate() {
        let blocks = rows.map(|row| &row[index]);
        let mut parts = [[_mm256_setzero_si256(); 2]; 4];
        for (half, q) in y.q.as_chunks::<128>().0.iter().enumerate() {
            let q: [__m256i; 4] = std::array::from_fn(|run| interleave(load_32(&q.as_chunks::<32>().0[run])));
            let below = q.map(|q| _mm256_maddubs_epi16(_mm256_set1_epi8(SHIFT), q));
            for (block, parts) in blocks.into_iter().zip(&mut parts) {
                let codes = codes(block, half);
                let words: [__m256i; 4] = std::array::from_fn(|run| {
                    _mm256_sub_epi16(_mm256_maddubs_epi16(codes[run], q[run]), below[run])
                });
                let scales = i64::from_le_bytes(scales(block, half).map(i8::cast_unsigned));
                let scales = _mm256_broadcastsi128_si256(_mm_cvtepi8_epi16(_mm_cvtsi64_si128(scales)));
                add_scaled(parts, words[0], words[1], _mm256_shuffle_epi8(scales, pairs[0]));
                add_scaled(parts, words[2], words[3], _mm256_shuffle_epi8(scales, pairs[1]));
            }
        }
        let d = _mm_mul_ps(halves(blocks.map(&d)), _mm_set1_ps(y.scale()));
        for ((lanes, parts), d) in lanes.iter_mut().zip(parts).zip(array_4(d)) {
            add_lanes(lanes, parts, d);
        }
    }
    totals(lanes, _mm_setzero_ps())
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_q6_k(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, Q6_K>, y: &[Q8_K]| {
        let (low_mask, high_mask) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
        let codes = |x: &Q6_K, half: usize| {
            let low = x.low[half].as_chunks::<32>().0;
            let [a, b] = [interleave(load_32(&low[0])), interleave(load_32(&low[1]))];
            let high = interleave(load_32(&x.high[half]));
            [
                (a, _mm256_slli_epi16::<4>(high)),
                (b, _mm256_slli_epi16::<2>(high)),
                (_mm256_srli_epi16::<4>(a), high),
                (_mm256_srli_epi16::<4>(b), _mm256_srli_epi16::<2>(high)),
            ]
            .map(|(low, high)| {
                _mm256_or_si256(_mm256_and_si256(low, low_mask), _mm256_and_si256(high, high_mask))
            })
        };
        let scales = |x: &Q6_K, half: usize| x.scales.as_chunks::<8>().0[half];
        four_of_16_parts::<_, 32>(rows, y, |x| x.d, scales, codes)
    };
    products(operands, four, one::<Q6_K>);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_q3_k(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, Q3_K>, y: &[Q8_K]| {
        let (mask, third) = (_mm256_set1_epi8(3), _mm256_set1_epi8(4));
        let codes = |x: &Q3_K, half: usize| {
            let (q, high) = (interleave(load_32(&x.q[half])), interleave(load_32(&x.high)));
            let low = [q, _mm256_srli_epi16::<2>(q), _mm256_srli_epi16::<4>(q), _mm256_srli_epi16::<6>(q)];
            std::array::from_fn(|run| {
                let bit = _mm256_set1_epi8((1u8 << (4 * half + run)).cast_signed());
                let third = _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit), third);
                _mm256_or_si256(_mm256_and_si256(low[run], mask), third)
            })
        };
        let scales = |x: &Q3_K, half: usize| std::array::from_fn(|part| x.scale(8 * half + part));
        four_of_16_parts::<_, 4>(rows, y, |x| x.d, scales, codes)
    };
    products(operands, four, one::<Q3_K>);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_q2_k(operands: Operands<'_, '_>) {
    products(operands, |rows, y| four_q2_k(rows, y), one::<Q2_K>);
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_q2_k(rows: Rows<'_, Q2_K>, y: &[Q8_K]) -> [f32; 4] {
    let (mask, nibble) = (_mm256_set1_epi8(3), _mm_set1_epi8(15));
    // The scale of a run's first 16 weights in the first half of a vector, the next in the second.
    let places = [0, 2, 4, 6].map(|scale| pair_of_scales(scale, scale));
    let mut products = _mm_setzero_ps();
    for (index, y) in y.iter().enumerate() {
        let blocks = rows.map(|row| &row[index]);
        let y_sums = load_32(bytemuck::cast_ref::<[[u8; 2]; 16], [u8; 32]>(&y.sums));
        let mut parts = [_mm256_setzero_si256(); 4];
        let mut taken = parts;
        for (row, block) in blocks.into_iter().enumerate() {
            let packed = load_16(&block.scales);
            let minimums = _mm_and_si128(_mm_srli_epi16::<4>(packed), nibble);
            taken[row] = _mm256_madd_epi16(_mm256_cvtepu8_epi16(minimums), y_sums);
            let scales = _mm256_cvtepu8_epi16(_mm_and_si128(packed, nibble));
            let scales = [
                _mm256_permute2x128_si256::<0x00>(scales, scales),
                _mm256_permute2x128_si256::<0x11>(scales, scales),
            ];
            for (half, q) in y.q.as_chunks::<128>().0.iter().enumerate() {
                let codes = load_32(&block.q[half]);
                let codes = [
                    codes,
                    _mm256_srli_epi16::<2>(codes),
                    _mm256_srli_epi16::<4>(codes),
                    _mm256_srli_epi16::<6>(codes),
                ];
                for (run, q) in q.as_chunks::<32>().0.iter().enumerate() {
                    let words = _mm256_maddubs_epi16(_mm256_and_si256(codes[run], mask), load_32(q));
                    let scaled = _mm256_madd_epi16(words, _mm256_shuffle_epi8(scales[half], places[run]));
                    parts[row] = _mm256_add_epi32(parts[row], scaled);
                }
            }
        }
        let scale = _mm_set1_ps(y.scale());
        let d = _mm_mul_ps(scale, halves(blocks.map(|block| block.d)));
        let dmin = _mm_mul_ps(scale, halves(blocks.map(|block| block.dmin)));
        let product = _mm_mul_ps(d, _mm_cvtepi32_ps(sums(parts)));
        let term = _mm_sub_ps(product, _mm_mul_ps(dmin, _mm_cvtepi32_ps(sums(taken))));
        products = _mm_add_ps(products, term);
    }
    array_4(products)
}
