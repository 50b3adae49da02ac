//! Products with AVX-512 VNNI and VBMI: as in `avx2::dot`, with sums of four products of bytes in one instruction.
//!
//! That instruction multiplies bytes without sign with signed ones, so levels are shifted up to start at zero, and what that adds
//! is taken off beforehand, once for four rows.

use crate::arch::avx2::dot::{
    array_4, halves, in_turn, load_32, minimums, nibbles, scales_first, scales_of_iq4_xs, sums, sums_of_32,
    totals,
};
use crate::arch::rows::table;
use crate::block::{IQ4_NL, IQ4_XS, MXFP4, Q4_0, Q4_K, Q8_0, Q8_K};
use crate::dot::{Operands, one, products, scales_and_minimums};
use crate::fp4::{LEVELS, half_e8m0};
use crate::iq4;
use std::arch::x86_64::*;

/// Four rows of blocks.
type Rows<'a, W> = [&'a [W]; 4];

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn load_64<T: bytemuck::Pod>(bytes: &[T; 64]) -> __m512i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: reads the 64 bytes; the instruction needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Four rows of blocks of 32 with one scale, whose codes stand for levels `SHIFT` lower.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn four_of_32<W, const SHIFT: u8>(
    rows: Rows<'_, W>,
    y: &[Q8_0],
    codes: impl Fn(&W) -> __m256i,
    scales: impl Fn([&W; 4]) -> __m128,
    term: impl Fn(__m128, __m128, __m128) -> __m128,
) -> [f32; 4] {
    let (zero, shift) = (_mm256_setzero_si256(), _mm256_set1_epi8(SHIFT.cast_signed()));
    let mut products = _mm_setzero_ps();
    for (index, y) in y.iter().enumerate() {
        let blocks = rows.map(|row| &row[index]);
        let q = load_32(&y.q);
        let below = _mm256_sub_epi32(zero, _mm256_dpbusd_epi32(zero, shift, q));
        let sums = _mm_cvtepi32_ps(sums(blocks.map(|block| _mm256_dpbusd_epi32(below, codes(block), q))));
        products = _mm_add_ps(products, term(sums, scales(blocks), _mm_set1_ps(y.d.get())));
    }
    array_4(products)
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn both(halves: [__m128i; 2]) -> __m256i {
    _mm256_set_m128i(halves[1], halves[0])
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn dot_q8_0(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, Q8_0>, y: &[Q8_0]| {
        let sign = _mm256_set1_epi8(i8::MIN);
        let codes = |x: &Q8_0| _mm256_xor_si256(load_32(&x.q), sign);
        let scales = |x: [&Q8_0; 4]| halves(x.map(|x| x.d));
        four_of_32::<_, 128>(rows, y, codes, scales, |sums, x, y| scales_first(sums, x, y))
    };
    products(operands, four, one::<Q8_0>);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn dot_q4_0(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, Q4_0>, y: &[Q8_0]| {
        let codes = |x: &Q4_0| both(nibbles(&x.q));
        let scales = |x: [&Q4_0; 4]| halves(x.map(|x| x.d));
        four_of_32::<_, 8>(rows, y, codes, scales, |sums, x, y| in_turn(sums, x, y))
    };
    products(operands, four, one::<Q4_0>);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn dot_mxfp4(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, MXFP4>, y: &[Q8_0]| {
        let table = table(&LEVELS, 12);
        let codes = |x: &MXFP4| _mm256_shuffle_epi8(table, both(nibbles(&x.q)));
        let scales = |x: [&MXFP4; 4]| {
            let [a, b, c, d] = x.map(|x| half_e8m0(x.e));
            _mm_setr_ps(a, b, c, d)
        };
        four_of_32::<_, 12>(rows, y, codes, scales, |sums, x, y| scales_first(sums, x, y))
    };
    products(operands, four, one::<MXFP4>);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn dot_iq4_nl(operands: Operands<'_, '_>) {
    let four = |rows: Rows<'_, IQ4_NL>, y: &[Q8_0]| {
        let table = table(&iq4::LEVELS, 128);
        let codes = |x: &IQ4_NL| _mm256_shuffle_epi8(table, both(nibbles(&x.q)));
        let scales = |x: [&IQ4_NL; 4]| halves(x.map(|x| x.d));
        four_of_32::<_, 128>(rows, y, codes, scales, |sums, x, y| scales_first(sums, x, y))
    };
    products(operands, four, one::<IQ4_NL>);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn dot_iq4_xs(operands: Operands<'_, '_>) {
    products(operands, |rows, y| four_iq4_xs(rows, y), one::<IQ4_XS>);
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn four_iq4_xs(rows: Rows<'_, IQ4_XS>, y: &[Q8_K]) -> [f32; 4] {
    let (table, zero, shift) = (table(&iq4::LEVELS, 128), _mm256_setzero_si256(), _mm256_set1_epi8(i8::MIN));
    let mut products = _mm_setzero_ps();
    for (index, y) in y.iter().enumerate() {
        let blocks = rows.map(|row| &row[index]);
        let d = _mm_mul_ps(halves(blocks.map(|block| block.d)), _mm_set1_ps(y.scale()));
        for (part, q) in y.q.as_chunks::<32>().0.iter().enumerate() {
            let q = load_32(q);
            let below = _mm256_sub_epi32(zero, _mm256_dpbusd_epi32(zero, shift, q));
            let codes = blocks.map(|block| _mm256_shuffle_epi8(table, both(nibbles(&block.q[part]))));
            let sums = _mm_cvtepi32_ps(sums(codes.map(|codes| _mm256_dpbusd_epi32(below, codes, q))));
            let scales = _mm_mul_ps(d, scales_of_iq4_xs(blocks, part));
            products = _mm_add_ps(products, _mm_mul_ps(scales, sums));
        }
    }
    array_4(products)
}

/// Places of 32 bytes, so that groups of four have the same rest modulo eight; from byte `first` on, and from byte `second` on.
const fn by_rest(first: u8, second: u8) -> [u8; 64] {
    let mut places = [0; 64];
    let mut place = 0u8;
    while place < 64 {
        let start = if place < 32 { first } else { second };
        places[place as usize] = start + place % 32 / 4 + 8 * (place % 4);
        place += 1;
    }
    places
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn dot_q4_k(operands: Operands<'_, '_>) {
    products(operands, |rows, y| four_q4_k(rows, y), one::<Q4_K>);
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn four_q4_k(rows: Rows<'_, Q4_K>, y: &[Q8_K]) -> [f32; 4] {
    // 128 weights are four parts: the low halves of 64 bytes are the first and the third, the high halves the others.
    let (even, odd) = (load_64(&const { by_rest(0, 64) }), load_64(&const { by_rest(32, 96) }));
    let own = load_64(&const { by_rest(0, 32) });
    let (zero, mask) = (_mm512_setzero_si512(), _mm512_set1_epi8(15));
    let part = |first: i32| {
        let (first, third) = (_mm256_set1_epi32(first), _mm256_set1_epi32(first + 2));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), third)
    };
    let parts = [[part(0), part(1)], [part(4), part(5)]];
    let (mut lanes, mut taken) = ([_mm256_setzero_ps(); 4], _mm_setzero_ps());
    for (index, y) in y.iter().enumerate() {
        let blocks = rows.map(|row| &row[index]);
        let packed = blocks.map(|block| scales_and_minimums(&block.scales));
        let scales = packed.map(|(scales, _)| {
            let scales = _mm_cvtsi64_si128(u64::from_le_bytes(scales).cast_signed());
            _mm512_castsi256_si512(_mm256_cvtepu8_epi32(scales))
        });
        let mut sums = [zero; 4];
        for (half, q) in y.q.as_chunks::<128>().0.iter().enumerate() {
            let [a, b] = [0, 1].map(|run| load_64(&q.as_chunks::<64>().0[run]));
            let (first, second) = (_mm512_permutex2var_epi8(a, even, b), _mm512_permutex2var_epi8(a, odd, b));
            for (row, sums) in sums.iter_mut().enumerate() {
                let q = bytemuck::cast_ref::<[[u8; 32]; 4], [[u8; 64]; 2]>(&blocks[row].q);
                let q = _mm512_permutexvar_epi8(own, load_64(&q[half]));
                let low = _mm512_dpbusd_epi32(zero, _mm512_and_si512(q, mask), first);
                let high =
                    _mm512_dpbusd_epi32(zero, _mm512_and_si512(_mm512_srli_epi16::<4>(q), mask), second);
                let low = _mm512_mullo_epi32(low, _mm512_permutexvar_epi32(parts[half][0], scales[row]));
                let high = _mm512_mullo_epi32(high, _mm512_permutexvar_epi32(parts[half][1], scales[row]));
                *sums = _mm512_add_epi32(*sums, _mm512_add_epi32(low, high));
            }
        }
        let scale = _mm_set1_ps(y.scale());
        let d = array_4(_mm_mul_ps(halves(blocks.map(|block| block.d)), scale));
        for ((lanes, sums), d) in lanes.iter_mut().zip(sums).zip(d) {
            let sums = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums));
            *lanes = _mm256_add_ps(*lanes, _mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(sums)));
        }
        let dmin = _mm_mul_ps(halves(blocks.map(|block| block.dmin)), scale);
        let minimums = minimums(packed.map(|(_, minimums)| minimums), sums_of_32(y));
        taken = _mm_sub_ps(taken, _mm_mul_ps(dmin, minimums));
    }
    totals(lanes, taken)
}
