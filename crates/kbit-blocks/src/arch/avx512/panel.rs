//! Blocks unpacked to panels, 16 rows at a time.
//!
//! Four words of each row are loaded as a quarter of a vector, and quarters are transposed, so that a vector holds the same word of 16
//! rows; what is packed in the words is taken apart only then, for all rows at once.

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
/// Invariant: `bytes` bytes may be read from each start.
struct Sixteen {
    starts: [*const u8; LANES],
    bytes: usize,
}

impl Sixteen {
    /// Rows from `lane` on; lanes without a row repeat the last.
    fn new<W>(source: Source<'_>, lane: usize) -> Self {
        let bytes = source.blocks * size_of::<W>();
        let start = |row: usize| {
            let start = (lane + row).min(source.rows - 1) * source.row_bytes + source.first * size_of::<W>();
            source.bytes[start..][..bytes].as_ptr()
        };
        Self { starts: std::array::from_fn(start), bytes }
    }

    /// Words `at / 4 .. at / 4 + 4` of each row, a vector a word; `at` is a number of bytes.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    fn words(&self, at: usize) -> [__m512i; 4] {
        debug_assert!(at + 16 <= self.bytes, "16 bytes inside the rows");
        // SAFETY: the callers ask for 16 bytes inside of a block of the row.
        let quarter = |row: usize| unsafe { _mm_loadu_si128(self.starts[row].add(at).cast()) };
        let lines: [__m512i; 4] = std::array::from_fn(|i| {
            let line = _mm512_castsi128_si512(quarter(i));
            let line = _mm512_inserti32x4::<1>(line, quarter(4 + i));
            let line = _mm512_inserti32x4::<2>(line, quarter(8 + i));
            _mm512_inserti32x4::<3>(line, quarter(12 + i))
        });
        let low = [_mm512_unpacklo_epi32(lines[0], lines[1]), _mm512_unpacklo_epi32(lines[2], lines[3])];
        let high = [_mm512_unpackhi_epi32(lines[0], lines[1]), _mm512_unpackhi_epi32(lines[2], lines[3])];
        [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ]
    }
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
fn put_floats(part: &mut [f32], index: usize, lane: usize, floats: __m512) {
    put(part, index, lane, _mm512_castps_si512(floats));
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
    let shifted = levels.map(|level| level.cast_unsigned().wrapping_add(offset));
    // SAFETY: reads the 16 bytes.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(shifted.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_q8_0(source: Source<'_>, panel: IntegerPanel<'_>) {
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<Q8_0>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<Q8_0>();
            put_floats(panel.scales, block, lane, halves(rows.words(at)[0]));
            for half in 0..2 {
                for (word, q) in rows.words(at + offset_of!(Q8_0, q) + 16 * half).into_iter().enumerate() {
                    put(panel.levels, 8 * block + 4 * half + word, lane, _mm512_xor_si512(q, bytes(128)));
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_q4_0(source: Source<'_>, panel: IntegerPanel<'_>) {
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<Q4_0>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<Q4_0>();
            put_floats(panel.scales, block, lane, halves(rows.words(at)[0]));
            for (word, q) in rows.words(at + offset_of!(Q4_0, q)).into_iter().enumerate() {
                put(panel.levels, 8 * block + word, lane, low(q));
                put(panel.levels, 8 * block + 4 + word, lane, high(q));
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_q5_0(source: Source<'_>, panel: IntegerPanel<'_>) {
    // Four bits, a byte each: copies of them 7 bits apart do not overlap.
    let spread = |bits: __m512i| {
        let bits = _mm512_and_si512(bits, _mm512_set1_epi32(15));
        let copies = _mm512_mullo_epi32(bits, _mm512_set1_epi32(0x0020_4081));
        _mm512_slli_epi16::<4>(_mm512_and_si512(copies, bytes(1)))
    };
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<Q5_0>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<Q5_0>();
            let [first, second, ..] = rows.words(at);
            put_floats(panel.scales, block, lane, halves(first));
            let bits = _mm512_or_si512(_mm512_srli_epi32::<16>(first), _mm512_slli_epi32::<16>(second));
            for (word, q) in rows.words(at + offset_of!(Q5_0, q)).into_iter().enumerate() {
                let shifted = _mm512_srlv_epi32(bits, _mm512_set1_epi32(4 * word as i32));
                let levels = _mm512_or_si512(low(q), spread(shifted));
                put(panel.levels, 8 * block + word, lane, levels);
                let levels = _mm512_or_si512(high(q), spread(_mm512_srli_epi32::<16>(shifted)));
                put(panel.levels, 8 * block + 4 + word, lane, levels);
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_iq4_nl(source: Source<'_>, panel: IntegerPanel<'_>) {
    let table = table(&iq4::LEVELS, 127);
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<IQ4_NL>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<IQ4_NL>();
            put_floats(panel.scales, block, lane, halves(rows.words(at)[0]));
            for (word, q) in rows.words(at + offset_of!(IQ4_NL, q)).into_iter().enumerate() {
                put(panel.levels, 8 * block + word, lane, _mm512_shuffle_epi8(table, low(q)));
                put(panel.levels, 8 * block + 4 + word, lane, _mm512_shuffle_epi8(table, high(q)));
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_mxfp4(source: Source<'_>, panel: IntegerPanel<'_>) {
    let table = table(&fp4::LEVELS, 12);
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<MXFP4>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<MXFP4>();
            // As `half_e8m0`: half of the power of two, which is subnormal for the two least exponents.
            let e = _mm512_and_si512(rows.words(at)[0], _mm512_set1_epi32(255));
            let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            let least = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
            put(panel.scales, block, lane, _mm512_mask_blend_epi32(least, normal, small));
            for (word, q) in rows.words(at + offset_of!(MXFP4, q)).into_iter().enumerate() {
                put(panel.levels, 8 * block + word, lane, _mm512_shuffle_epi8(table, low(q)));
                put(panel.levels, 8 * block + 4 + word, lane, _mm512_shuffle_epi8(table, high(q)));
            }
        }
    }
}

/// Scales and minimums of Q4_K and Q5_K: a word of four for parts 0 to 3, and one for parts 4 to 7.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn put_scales_and_minimums(panel: &mut IntegerPanel<'_>, block: usize, lane: usize, header: [__m512i; 4]) {
    let [d, a, b, c] = header;
    put_floats(panel.scales, block, lane, halves(d));
    put_floats(panel.minimum_scales, block, lane, halves(_mm512_srli_epi32::<16>(d)));
    let six = |words: __m512i| _mm512_and_si512(words, bytes(0x3f));
    let top =
        |words: __m512i| _mm512_slli_epi32::<4>(_mm512_and_si512(_mm512_srli_epi32::<6>(words), bytes(3)));
    let scales = [six(a), _mm512_or_si512(low(c), top(a))];
    let minimums = [six(b), _mm512_or_si512(high(c), top(b))];
    let byte = _mm512_set1_epi32(255);
    for half in 0..2 {
        for part in 0..4 {
            let shift = _mm512_set1_epi32(8 * part as i32);
            let scale = _mm512_and_si512(_mm512_srlv_epi32(scales[half], shift), byte);
            put(panel.part_scales, 8 * block + 4 * half + part, lane, scale);
        }
        // Two bytes become two halves.
        let pairs = [minimums[half], _mm512_srli_epi32::<16>(minimums[half])];
        for (pair, words) in pairs.into_iter().enumerate() {
            let first = _mm512_and_si512(words, byte);
            let second = _mm512_and_si512(_mm512_slli_epi32::<8>(words), _mm512_set1_epi32(0x00ff_0000));
            put(panel.minimums, 4 * block + 2 * half + pair, lane, _mm512_or_si512(first, second));
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_q4_k(source: Source<'_>, mut panel: IntegerPanel<'_>) {
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<Q4_K>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<Q4_K>();
            put_scales_and_minimums(&mut panel, block, lane, rows.words(at));
            for pair in 0..4 {
                for half in 0..2 {
                    let q = rows.words(at + offset_of!(Q4_K, q) + 32 * pair + 16 * half);
                    for (word, q) in q.into_iter().enumerate() {
                        let unit = 64 * block + 16 * pair + 4 * half + word;
                        put(panel.levels, unit, lane, low(q));
                        put(panel.levels, unit + 8, lane, high(q));
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_q5_k(source: Source<'_>, mut panel: IntegerPanel<'_>) {
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<Q5_K>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<Q5_K>();
            put_scales_and_minimums(&mut panel, block, lane, rows.words(at));
            for half in 0..2 {
                let bits = rows.words(at + offset_of!(Q5_K, high) + 16 * half);
                for pair in 0..4 {
                    let q = rows.words(at + offset_of!(Q5_K, q) + 32 * pair + 16 * half);
                    for (word, (q, bits)) in q.into_iter().zip(bits).enumerate() {
                        let unit = 64 * block + 16 * pair + 4 * half + word;
                        let shift = 2 * pair as u32;
                        put(panel.levels, unit, lane, _mm512_or_si512(low(q), fifth(bits, shift)));
                        put(panel.levels, unit + 8, lane, _mm512_or_si512(high(q), fifth(bits, shift + 1)));
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_q6_k(source: Source<'_>, panel: IntegerPanel<'_>) {
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<Q6_K>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<Q6_K>();
            let last = rows.words(at + size_of::<Q6_K>() - 16)[3];
            put_floats(panel.scales, block, lane, halves(_mm512_srli_epi32::<16>(last)));
            let scales = rows.words(at + offset_of!(Q6_K, scales));
            for (four, scales) in scales.into_iter().enumerate() {
                for part in 0..4 {
                    let up = _mm512_sllv_epi32(scales, _mm512_set1_epi32(24 - 8 * part as i32));
                    put(panel.part_scales, 16 * block + 4 * four + part, lane, _mm512_srai_epi32::<24>(up));
                }
            }
            for half in 0..2 {
                for quarter in 0..2 {
                    let from = at + offset_of!(Q6_K, high) + 32 * half + 16 * quarter;
                    let bits = rows.words(from);
                    for which in 0..2 {
                        // 16 bytes hold, in their halves, 16 levels of run `which` and as many of run `which + 2`.
                        let from = at + offset_of!(Q6_K, low) + 64 * half + 32 * which + 16 * quarter;
                        for (word, (q, bits)) in rows.words(from).into_iter().zip(bits).enumerate() {
                            let unit = 64 * block + 32 * half + 8 * which + 4 * quarter + word;
                            let top = |shift: i32| {
                                let bits = _mm512_srlv_epi32(bits, _mm512_set1_epi32(shift));
                                _mm512_slli_epi16::<4>(_mm512_and_si512(bits, bytes(3)))
                            };
                            let shift = 2 * which as i32;
                            put(panel.levels, unit, lane, _mm512_or_si512(low(q), top(shift)));
                            put(panel.levels, unit + 16, lane, _mm512_or_si512(high(q), top(shift + 4)));
                        }
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack_iq4_xs(source: Source<'_>, panel: IntegerPanel<'_>) {
    let table = table(&iq4::LEVELS, 127);
    for lane in (0..ROWS).step_by(LANES) {
        let rows = Sixteen::new::<IQ4_XS>(source, lane);
        for block in 0..source.blocks {
            let at = block * size_of::<IQ4_XS>();
            let [first, scales, ..] = rows.words(at);
            put_floats(panel.scales, block, lane, halves(first));
            let tops = _mm512_srli_epi32::<16>(first);
            for part in 0..8 {
                let of = |words: __m512i, bits: usize| {
                    let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32((bits * part) as i32));
                    _mm512_and_si512(shifted, _mm512_set1_epi32((1 << bits) - 1))
                };
                let scale = _mm512_or_si512(of(scales, 4), _mm512_slli_epi32::<4>(of(tops, 2)));
                put(
                    panel.part_scales,
                    8 * block + part,
                    lane,
                    _mm512_sub_epi32(scale, _mm512_set1_epi32(32)),
                );
                let q = rows.words(at + offset_of!(IQ4_XS, q) + 16 * part);
                for (word, q) in q.into_iter().enumerate() {
                    let unit = 64 * block + 8 * part + word;
                    put(panel.levels, unit, lane, _mm512_shuffle_epi8(table, low(q)));
                    put(panel.levels, unit + 4, lane, _mm512_shuffle_epi8(table, high(q)));
                }
            }
        }
    }
}
