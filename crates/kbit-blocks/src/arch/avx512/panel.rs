//! Blocks taken apart to panels, 16 rows at a time.
//!
//! Four words of each row are loaded as a quarter of a vector, and quarters are transposed, so that a vector holds the same word of 16
//! rows; what is packed in the words is taken apart only then, for all rows at once.

use crate::arch::portable;
use crate::arch::rows::shifted;
use crate::block::{IQ4_NL, IQ4_XS, MXFP4, Q4_0, Q4_K, Q5_0, Q5_K, Q6_K, Q8_0};
use crate::panel::Source;
use crate::{fp4, iq4};
use kbit_types::IntegerPanel;
use std::arch::x86_64::*;
use std::mem::offset_of;

const ROWS: usize = IntegerPanel::ROWS;
const LANES: usize = 16;

/// The same columns of 16 rows.
///
/// Invariant: whole blocks may be read from each of `first`, `first + stride` .. `first + 15 * stride`.
pub(super) struct Sixteen {
    /// Rows 0, 4, 8 and 12. So few pointers stay in registers.
    pub(super) firsts: [*const u8; 4],
    pub(super) stride: usize,
}

impl Sixteen {
    /// Rows from `row` on, all of which there are.
    fn new<W>(source: Source<'_>, row: usize) -> Self {
        assert!(row + LANES <= source.rows, "16 rows");
        let start = |row: usize| row * source.row_bytes + source.first * size_of::<W>();
        let last = start(row + LANES - 1) + source.blocks * size_of::<W>();
        assert!(last <= source.bytes.len(), "the last row lies inside");
        let first = source.bytes[start(row)..].as_ptr();
        Self {
            firsts: [0, 4, 8, 12].map(|row| first.wrapping_add(row * source.row_bytes)),
            stride: source.row_bytes,
        }
    }

    /// Rows of floats, four of which are as good as a block.
    pub(super) fn of_floats<const N: usize>(rows: &[[f32; N]; LANES]) -> Self {
        let firsts = [0, 4, 8, 12].map(|row| rows.as_flattened()[row * N..].as_ptr().cast());
        Self { firsts, stride: N * size_of::<f32>() }
    }
}

/// Words `at / 4 .. at / 4 + 4` of each row, a vector a word; `at` is a number of bytes, 16 of which lie inside a block. A macro, so that
/// vectors stay in registers.
macro_rules! words {
    ($rows:expr, $at:expr) => {{
        let (rows, at): (&Sixteen, usize) = ($rows, $at);
        let lines: [__m512i; 4] = std::array::from_fn(|i| {
            // SAFETY: 16 bytes inside of a block of the row.
            let quarter = |four: usize| unsafe {
                _mm_loadu_si128(rows.firsts[four].wrapping_add(at + i * rows.stride).cast())
            };
            let line = _mm512_castsi128_si512(quarter(0));
            let line = _mm512_inserti32x4::<1>(line, quarter(1));
            let line = _mm512_inserti32x4::<2>(line, quarter(2));
            _mm512_inserti32x4::<3>(line, quarter(3))
        });
        let low = [_mm512_unpacklo_epi32(lines[0], lines[1]), _mm512_unpacklo_epi32(lines[2], lines[3])];
        let high = [_mm512_unpackhi_epi32(lines[0], lines[1]), _mm512_unpackhi_epi32(lines[2], lines[3])];
        [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ]
    }};
}
pub(super) use words;

/// Lanes `lane..lane + 16` of a panel.
struct Lanes<'a, 'p> {
    panel: &'a mut IntegerPanel<'p>,
    lane: usize,
}

/// Parts come before the block that they belong to; indices count from the first column.
impl Lanes<'_, '_> {
    #[inline(always)]
    unsafe fn part<const U: usize>(&mut self, part: usize, levels: [__m512i; U], scale: Option<__m512i>) {
        // SAFETY: the CPU has the features.
        unsafe {
            for (unit, words) in levels.into_iter().enumerate() {
                put(self.panel.levels, part * U + unit, self.lane, words);
            }
            if let Some(scale) = scale {
                put(self.panel.part_scales, part, self.lane, scale);
            }
        }
    }

    #[inline(always)]
    unsafe fn minimums(&mut self, pair: usize, words: __m512i) {
        // SAFETY: as above.
        unsafe { put(self.panel.minimums, pair, self.lane, words) };
    }

    #[inline(always)]
    unsafe fn block(&mut self, block: usize, scale: __m512, minimum_scale: Option<__m512>) {
        // SAFETY: as above.
        unsafe {
            put(self.panel.scales, block, self.lane, _mm512_castps_si512(scale));
            if let Some(scale) = minimum_scale {
                put(self.panel.minimum_scales, block, self.lane, _mm512_castps_si512(scale));
            }
        }
    }
}

/// For each type: how 16 rows are taken apart.
macro_rules! types {
    ($($ty:ident: $unpack:ident $rows:ident;)*) => {
        $(
            #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            pub(super) fn $unpack(source: Source<'_>, mut panel: IntegerPanel<'_>) {
                if source.rows < ROWS {
                    return portable::$unpack(source, panel);
                }
                for lane in [0, LANES] {
                    let rows = Sixteen::new::<$ty>(source, lane);
                    $rows(&rows, source.blocks, &mut Lanes { panel: &mut panel, lane });
                }
            }
        )*
    };
}

types! {
    Q8_0: unpack_q8_0 rows_of_q8_0;
    Q4_0: unpack_q4_0 rows_of_q4_0;
    Q5_0: unpack_q5_0 rows_of_q5_0;
    IQ4_NL: unpack_iq4_nl rows_of_iq4_nl;
    MXFP4: unpack_mxfp4 rows_of_mxfp4;
    Q4_K: unpack_q4_k rows_of_q4_k;
    Q5_K: unpack_q5_k rows_of_q5_k;
    Q6_K: unpack_q6_k rows_of_q6_k;
    IQ4_XS: unpack_iq4_xs rows_of_iq4_xs;
}

/// Half-precision numbers in the low halves of the lanes.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn halves(words: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words))
}

/// Writes 16 lanes of row `index` of a part of a panel.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn put<T>(part: &mut [T], index: usize, lane: usize, words: __m512i) {
    const { assert!(size_of::<T>() == 4) };
    let to = &mut part[index * ROWS + lane..][..LANES];
    // SAFETY: 16 lanes of 4 bytes, any of which are a T: an integer or a float.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn bytes(byte: u8) -> __m512i {
    _mm512_set1_epi8(byte.cast_signed())
}

/// The low four bits of each byte.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn low(words: __m512i) -> __m512i {
    _mm512_and_si512(words, bytes(15))
}

/// The high four bits of each byte.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn high(words: __m512i) -> __m512i {
    low(_mm512_srli_epi16::<4>(words))
}

/// Bit 0 of each byte of `words >> shift` moved to bit 4.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn fifth(words: __m512i, shift: u32) -> __m512i {
    let bit = _mm512_and_si512(_mm512_srl_epi32(words, _mm_cvtsi32_si128(shift.cast_signed())), bytes(1));
    _mm512_slli_epi16::<4>(bit)
}

/// Levels plus `offset` by code, in each quarter.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn table(levels: &[i8; 16], offset: u8) -> __m512i {
    _mm512_broadcast_i32x4(shifted(levels, offset))
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_q8_0(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    for block in 0..blocks {
        let at = block * size_of::<Q8_0>();
        let scale = halves(words!(rows, at)[0]);
        let [a, b, c, d] = words!(rows, at + offset_of!(Q8_0, q));
        let [e, f, g, h] = words!(rows, at + offset_of!(Q8_0, q) + 16);
        let sign = bytes(128);
        let levels = [a, b, c, d, e, f, g, h].map(|q| _mm512_xor_si512(q, sign));
        // SAFETY: the CPU has the features.
        unsafe {
            sink.part(block, levels, None);
            sink.block(block, scale, None);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_q4_0(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    for block in 0..blocks {
        let at = block * size_of::<Q4_0>();
        let scale = halves(words!(rows, at)[0]);
        let [a, b, c, d] = words!(rows, at + offset_of!(Q4_0, q));
        let levels = [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)];
        // SAFETY: the CPU has the features.
        unsafe {
            sink.part(block, levels, None);
            sink.block(block, scale, None);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_q5_0(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    // Four bits, a byte each: copies of them 7 bits apart do not overlap.
    let spread = |bits: __m512i, shift: i32| {
        let bits = _mm512_srlv_epi32(bits, _mm512_set1_epi32(shift));
        let bits = _mm512_and_si512(bits, _mm512_set1_epi32(15));
        let copies = _mm512_mullo_epi32(bits, _mm512_set1_epi32(0x0020_4081));
        _mm512_slli_epi16::<4>(_mm512_and_si512(copies, bytes(1)))
    };
    for block in 0..blocks {
        let at = block * size_of::<Q5_0>();
        let [first, second, ..] = words!(rows, at);
        let scale = halves(first);
        let bits = _mm512_or_si512(_mm512_srli_epi32::<16>(first), _mm512_slli_epi32::<16>(second));
        let [a, b, c, d] = words!(rows, at + offset_of!(Q5_0, q));
        let q = [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)];
        let levels = std::array::from_fn::<_, 8, _>(|i| _mm512_or_si512(q[i], spread(bits, 4 * i as i32)));
        // SAFETY: the CPU has the features.
        unsafe {
            sink.part(block, levels, None);
            sink.block(block, scale, None);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_iq4_nl(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    let table = table(&iq4::LEVELS, 127);
    for block in 0..blocks {
        let at = block * size_of::<IQ4_NL>();
        let scale = halves(words!(rows, at)[0]);
        let [a, b, c, d] = words!(rows, at + offset_of!(IQ4_NL, q));
        let levels = [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
            .map(|code| _mm512_shuffle_epi8(table, code));
        // SAFETY: the CPU has the features.
        unsafe {
            sink.part(block, levels, None);
            sink.block(block, scale, None);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_mxfp4(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    let table = table(&fp4::LEVELS, 12);
    for block in 0..blocks {
        let at = block * size_of::<MXFP4>();
        // As `half_e8m0`: half of the power of two, which is subnormal for the two least exponents.
        let e = _mm512_and_si512(words!(rows, at)[0], _mm512_set1_epi32(255));
        let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
        let least = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
        let scale = _mm512_castsi512_ps(_mm512_mask_blend_epi32(least, normal, small));
        let [a, b, c, d] = words!(rows, at + offset_of!(MXFP4, q));
        let levels = [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
            .map(|code| _mm512_shuffle_epi8(table, code));
        // SAFETY: the CPU has the features.
        unsafe {
            sink.part(block, levels, None);
            sink.block(block, scale, None);
        }
    }
}

/// Scales of the parts of a block of Q4_K or Q5_K; what comes with them goes to the sink. The header has the scales of the block, and a
/// word of four for parts 0 to 3, and one for parts 4 to 7.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn header(words: [__m512i; 4], block: usize, sink: &mut Lanes<'_, '_>) -> ([__m512i; 8], [__m512; 2]) {
    let [d, a, b, c] = words;
    let six = |words: __m512i| _mm512_and_si512(words, bytes(0x3f));
    let top =
        |words: __m512i| _mm512_slli_epi32::<4>(_mm512_and_si512(_mm512_srli_epi32::<6>(words), bytes(3)));
    let scales = [six(a), _mm512_or_si512(low(c), top(a))];
    let minimums = [six(b), _mm512_or_si512(high(c), top(b))];
    let byte = _mm512_set1_epi32(255);
    for (half, words) in minimums.into_iter().enumerate() {
        // Two bytes become two halves.
        for (pair, words) in [words, _mm512_srli_epi32::<16>(words)].into_iter().enumerate() {
            let first = _mm512_and_si512(words, byte);
            let second = _mm512_and_si512(_mm512_slli_epi32::<8>(words), _mm512_set1_epi32(0x00ff_0000));
            // SAFETY: the CPU has the features.
            unsafe { sink.minimums(4 * block + 2 * half + pair, _mm512_or_si512(first, second)) };
        }
    }
    let scale = |part: usize| {
        let shift = _mm512_set1_epi32(8 * (part % 4) as i32);
        _mm512_and_si512(_mm512_srlv_epi32(scales[part / 4], shift), byte)
    };
    (std::array::from_fn(scale), [halves(d), halves(_mm512_srli_epi32::<16>(d))])
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_q4_k(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    for block in 0..blocks {
        let at = block * size_of::<Q4_K>();
        let (scales, [scale, minimum_scale]) = header(words!(rows, at), block, sink);
        for pair in 0..4 {
            let [a, b, c, d] = words!(rows, at + offset_of!(Q4_K, q) + 32 * pair);
            let [e, f, g, h] = words!(rows, at + offset_of!(Q4_K, q) + 32 * pair + 16);
            let q = [a, b, c, d, e, f, g, h];
            // SAFETY: the CPU has the features.
            unsafe {
                sink.part(8 * block + 2 * pair, q.map(|q| low(q)), Some(scales[2 * pair]));
                sink.part(8 * block + 2 * pair + 1, q.map(|q| high(q)), Some(scales[2 * pair + 1]));
            }
        }
        // SAFETY: as above.
        unsafe { sink.block(block, scale, Some(minimum_scale)) };
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_q5_k(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    for block in 0..blocks {
        let at = block * size_of::<Q5_K>();
        let (scales, [scale, minimum_scale]) = header(words!(rows, at), block, sink);
        let [a, b, c, d] = words!(rows, at + offset_of!(Q5_K, high));
        let [e, f, g, h] = words!(rows, at + offset_of!(Q5_K, high) + 16);
        let bits = [a, b, c, d, e, f, g, h];
        for pair in 0..4 {
            let [a, b, c, d] = words!(rows, at + offset_of!(Q5_K, q) + 32 * pair);
            let [e, f, g, h] = words!(rows, at + offset_of!(Q5_K, q) + 32 * pair + 16);
            let q = [a, b, c, d, e, f, g, h];
            let shift = 2 * pair as u32;
            let first = std::array::from_fn::<_, 8, _>(|i| _mm512_or_si512(low(q[i]), fifth(bits[i], shift)));
            let second =
                std::array::from_fn::<_, 8, _>(|i| _mm512_or_si512(high(q[i]), fifth(bits[i], shift + 1)));
            // SAFETY: the CPU has the features.
            unsafe {
                sink.part(8 * block + 2 * pair, first, Some(scales[2 * pair]));
                sink.part(8 * block + 2 * pair + 1, second, Some(scales[2 * pair + 1]));
            }
        }
        // SAFETY: as above.
        unsafe { sink.block(block, scale, Some(minimum_scale)) };
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_q6_k(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    for block in 0..blocks {
        let at = block * size_of::<Q6_K>();
        let last = words!(rows, at + size_of::<Q6_K>() - 16)[3];
        let scales = words!(rows, at + offset_of!(Q6_K, scales));
        let scale = |part: usize| {
            let up = _mm512_set1_epi32(24 - 8 * (part % 4) as i32);
            _mm512_srai_epi32::<24>(_mm512_sllv_epi32(scales[part / 4], up))
        };
        for half in 0..2 {
            for quarter in 0..2 {
                let bits = words!(rows, at + offset_of!(Q6_K, high) + 32 * half + 16 * quarter);
                let top = |word: usize, shift: i32| {
                    let bits = _mm512_srlv_epi32(bits[word], _mm512_set1_epi32(shift));
                    _mm512_slli_epi16::<4>(_mm512_and_si512(bits, bytes(3)))
                };
                for which in 0..2 {
                    // 16 bytes hold, in their halves, 16 levels of run `which` and as many of run `which + 2`.
                    let q = words!(rows, at + offset_of!(Q6_K, low) + 64 * half + 32 * which + 16 * quarter);
                    let shift = 2 * which as i32;
                    let first = std::array::from_fn::<_, 4, _>(|i| _mm512_or_si512(low(q[i]), top(i, shift)));
                    let second =
                        std::array::from_fn::<_, 4, _>(|i| _mm512_or_si512(high(q[i]), top(i, shift + 4)));
                    let part = 8 * half + 2 * which + quarter;
                    // SAFETY: the CPU has the features.
                    unsafe {
                        sink.part(16 * block + part, first, Some(scale(part)));
                        sink.part(16 * block + part + 4, second, Some(scale(part + 4)));
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { sink.block(block, halves(_mm512_srli_epi32::<16>(last)), None) };
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_of_iq4_xs(rows: &Sixteen, blocks: usize, sink: &mut Lanes<'_, '_>) {
    let table = table(&iq4::LEVELS, 127);
    for block in 0..blocks {
        let at = block * size_of::<IQ4_XS>();
        let [first, scales, ..] = words!(rows, at);
        let tops = _mm512_srli_epi32::<16>(first);
        for part in 0..8 {
            let of = |words: __m512i, bits: usize| {
                let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32((bits * part) as i32));
                _mm512_and_si512(shifted, _mm512_set1_epi32((1 << bits) - 1))
            };
            let scale = _mm512_or_si512(of(scales, 4), _mm512_slli_epi32::<4>(of(tops, 2)));
            let [a, b, c, d] = words!(rows, at + offset_of!(IQ4_XS, q) + 16 * part);
            let levels = [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
                .map(|code| _mm512_shuffle_epi8(table, code));
            let scale = _mm512_sub_epi32(scale, _mm512_set1_epi32(32));
            // SAFETY: the CPU has the features.
            unsafe { sink.part(8 * block + part, levels, Some(scale)) };
        }
        // SAFETY: as above.
        unsafe { sink.block(block, halves(first), None) };
    }
}
