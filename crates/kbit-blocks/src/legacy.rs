//! Blocks of 32 weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, in the order of operations of ggml's `quantize_row_*_ref`,
//! `quantize_row_*_impl` and `dequantize_row_*`.
//!
//! Without importance nothing is summed, so the weights of one block lie side by side in vectors ([`SideBySide`]). Decoding is
//! inlined into loops that are compiled once an instruction set (`arch`), so it is written for the vectoriser: fixed lengths, no
//! early exits.

use crate::block::{Block, Half, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::even::{Even, LevelStep, whole};
use crate::lanes::{Batch, Floats, MOST, Portable, Simd, WeightedLanes, codes_of_lane, stored, transpose};
use crate::plain::MAGNITUDE;
use crate::search::{Scale, Steps, codes_of_scale, error_weights, fit_scale, fit_scale_and_minimum};

pub(crate) const BLOCK: usize = 32;
pub(crate) const HALF: usize = BLOCK / 2;
/// Weights of a block, or numbers for each of them.
type Weights = [f32; BLOCK];
type Codes = [u8; BLOCK];

/// An instruction set that the CPU has, for all weights of one block at once.
pub(crate) trait SideBySide: Copy {
    /// The weights of a block.
    type Block: Copy;
    /// A byte for each.
    type Bytes: Copy;
    /// The weights.
    fn block(self, x: &Weights) -> Self::Block;
    /// The largest magnitude.
    fn largest(self, x: Self::Block) -> f32;
    /// The least and the greatest value; zeros may have any sign.
    fn range(self, x: Self::Block) -> (f32, f32);
    /// Bit `j` is set where weight `j` is `magnitude` without its sign.
    fn of_magnitude(self, x: Self::Block, magnitude: f32) -> u32;
    /// `(weight - from) * inverse + shift`, each step rounded, converted as C does on x86: truncation to 32 bits, of which the
    /// low byte stays. Numbers that 32 bits cannot hold, and NaN, become the "integer indefinite" 0x80000000.
    fn truncated(self, x: Self::Block, from: f32, inverse: f32, shift: f32) -> Self::Bytes;
    /// As [`SideBySide::truncated`], of C's `roundf(weight * inverse)`: halves go away from zero.
    fn rounded(self, x: Self::Block, inverse: f32) -> Self::Bytes;
    /// The bytes, as signed numbers, but none above `most`.
    fn capped(self, bytes: Self::Bytes, most: i8) -> Self::Bytes;
    /// The bytes in order.
    fn in_order(self, bytes: Self::Bytes) -> Codes;
    /// The low halves of bytes: those of the first half of the block below those of the second.
    fn nibbles(self, bytes: Self::Bytes) -> [u8; HALF];
    /// Bit 4 of byte `j` as bit `j`.
    fn fifth_bits(self, bytes: Self::Bytes) -> u32;
    /// The nearest half-precision number.
    fn half(self, value: f32) -> Half;
}

/// A block that is encoded without importance.
pub(crate) trait EncodeSideBySide: Block<Weights = Weights> {
    /// Encodes `x`, which is finite.
    fn encode<S: SideBySide>(simd: S, x: &Weights) -> Self;
}

/// What C's conversion of a float to an 8-bit integer gives on x86: truncation to 32 bits, of which the low byte stays.
/// Numbers that 32 bits cannot hold, and NaN, become the "integer indefinite" 0x80000000.
#[inline(always)]
fn low_byte(x: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "the conversion that is reproduced")]
    let wide = if x > -2_147_483_904.0 && x < 2_147_483_648.0 { x as i32 } else { i32::MIN };
    wide.to_le_bytes()[0]
}

/// The largest magnitude.
#[inline(always)]
pub(crate) fn largest<const N: usize>(x: &[f32; N]) -> f32 {
    // Bit patterns of numbers that are not negative are ordered as the numbers are.
    f32::from_bits(x.iter().fold(0, |largest, x| largest.max(x.to_bits() & MAGNITUDE)))
}

/// The value of largest magnitude; of equal ones, the first. Plus zero where all are zero.
#[inline(always)]
pub(crate) fn extreme<const N: usize>(x: &[f32; N]) -> f32 {
    let largest = largest(x);
    if largest == 0.0 {
        return 0.0;
    }
    x.iter().copied().find(|x| x.abs() == largest).unwrap_or(largest)
}

/// [`extreme`] of a block.
#[inline(always)]
fn extreme_of<S: SideBySide>(simd: S, values: &Weights, x: S::Block) -> f32 {
    let largest = simd.largest(x);
    let first = simd.of_magnitude(x, largest).trailing_zeros();
    if largest == 0.0 { 0.0 } else { values[first as usize % BLOCK] }
}

/// The least and the greatest value; of zeros of both signs, the first.
#[inline(always)]
fn range_of<S: SideBySide>(simd: S, values: &Weights, x: S::Block) -> (f32, f32) {
    let (mut least, mut greatest) = simd.range(x);
    if least == 0.0 || greatest == 0.0 {
        let zero = values[simd.of_magnitude(x, 0.0).trailing_zeros() as usize % BLOCK];
        least = if least == 0.0 { zero } else { least };
        greatest = if greatest == 0.0 { zero } else { greatest };
    }
    (least, greatest)
}

/// One over `d`, 0 for 0.
#[inline(always)]
pub(crate) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The low halves of codes: those of the first half of the block below those of the second.
#[inline(always)]
fn pack4(codes: &Codes) -> [u8; HALF] {
    let mut out = [0; HALF];
    for (j, byte) in out.iter_mut().enumerate() {
        *byte = codes[j] & 15 | codes[j + HALF] << 4;
    }
    out
}

/// Bit 4 of code `j` as bit `j`.
#[inline(always)]
fn fifth_bits(codes: &Codes) -> u32 {
    codes.iter().enumerate().fold(0, |bits, (j, code)| bits | u32::from(code >> 4 & 1) << j)
}

/// Codes of 5 bits: the fifth bits, and the rest as codes of 4 bits.
#[inline(always)]
fn pack5(codes: &Codes) -> ([u8; 4], [u8; HALF]) {
    (fifth_bits(codes).to_le_bytes(), pack4(codes))
}

#[inline(always)]
fn unpack4(q: &[u8; HALF], out: &mut Weights, value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(HALF);
    for ((q, low), high) in q.iter().zip(low).zip(high) {
        *low = value(f32::from(q & 15));
        *high = value(f32::from(q >> 4));
    }
}

#[inline(always)]
fn unpack5(fifth: [u8; 4], q: &[u8; HALF], out: &mut Weights, value: impl Fn(f32) -> f32) {
    let bits = u32::from_le_bytes(fifth);
    let (low, high) = out.split_at_mut(HALF);
    for (j, ((q, low), high)) in q.iter().zip(low).zip(high).enumerate() {
        let (a, b) = (bits >> j & 1, bits >> (j + HALF) & 1);
        #[expect(clippy::cast_precision_loss, reason = "below 32")]
        {
            *low = value((u32::from(q & 15) | a << 4) as i32 as f32);
            *high = value((u32::from(q >> 4) | b << 4) as i32 as f32);
        }
    }
}

/// Blocks with a scale for levels -`half` to `half`-1; `make` puts one together.
#[inline(always)]
fn weighted_scale<S: Simd, B>(
    simd: S,
    half: u8,
    batch: &Batch<'_, Weights>,
    importance: &Batch<'_, Weights>,
    mean_square: &[f32; MOST],
    out: &mut [B],
    make: impl Fn(Half, &Codes) -> B,
) {
    let x = transpose(simd, batch);
    let weights = error_weights(&x, &transpose(simd, importance), simd.load(mean_square));
    let Scale { scale, inverse } = fit_scale(simd, half.into(), &x, &weights);
    let scale = scale.store();
    let codes = stored(&codes_of_scale(simd, half.into(), &x, inverse));
    for (lane, out) in out.iter_mut().enumerate() {
        *out = make(Half::new(scale[lane]), &codes_of_lane(&codes, lane));
    }
}

/// Blocks with a scale and a minimum for levels 0 to `most`; `make` puts one together.
#[inline(always)]
fn weighted_affine<S: Simd, B>(
    simd: S,
    most: u8,
    batch: &Batch<'_, Weights>,
    importance: &Batch<'_, Weights>,
    mean_square: &[f32; MOST],
    out: &mut [B],
    make: impl Fn(Half, Half, &Codes) -> B,
) {
    let x = transpose(simd, batch);
    let weights = error_weights(&x, &transpose(simd, importance), simd.load(mean_square));
    let found = fit_scale_and_minimum(simd, most.into(), &x, &weights, Steps::WEIGHTED);
    let (zero, levels) = (simd.splat(0.0), simd.splat(most.into()));
    let mut codes = x;
    for code in &mut codes {
        *code = (found.inverse * (*code - found.from)).nearest().least(levels).greatest(zero);
    }
    let codes = stored(&codes);
    let (scale, below) = (found.scale.store(), found.below.store());
    for (lane, out) in out.iter_mut().enumerate() {
        *out = make(Half::new(scale[lane]), Half::new(-below[lane]), &codes_of_lane(&codes, lane));
    }
}

impl Block for Q4_0 {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let d = self.d.get();
        unpack4(&self.q, out, |level| (level - 8.0) * d);
    }
}

impl EncodeSideBySide for Q4_0 {
    #[inline(always)]
    fn encode<S: SideBySide>(simd: S, values: &Weights) -> Self {
        let x = simd.block(values);
        let d = extreme_of(simd, values, x) / -8.0;
        let codes = simd.capped(simd.truncated(x, 0.0, inverse(d), 8.5), 15);
        Self { d: simd.half(d), q: simd.nibbles(codes) }
    }
}

impl WeightedLanes for Q4_0 {
    const OF_ROW: bool = true;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        mean_square: &[f32; MOST],
        out: &mut [Self],
    ) {
        weighted_scale(simd, 8, batch, importance, mean_square, out, |d, codes| Self { d, q: pack4(codes) });
    }
}

impl Block for Q4_1 {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let (d, m) = (self.d.get(), self.m.get());
        unpack4(&self.q, out, |level| level * d + m);
    }
}

impl EncodeSideBySide for Q4_1 {
    #[inline(always)]
    fn encode<S: SideBySide>(simd: S, values: &Weights) -> Self {
        let x = simd.block(values);
        let (min, max) = range_of(simd, values, x);
        let d = (max - min) / 15.0;
        let codes = simd.capped(simd.truncated(x, min, inverse(d), 0.5), 15);
        Self { d: simd.half(d), m: simd.half(min), q: simd.nibbles(codes) }
    }
}

impl WeightedLanes for Q4_1 {
    const OF_ROW: bool = true;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        mean_square: &[f32; MOST],
        out: &mut [Self],
    ) {
        weighted_affine(simd, 15, batch, importance, mean_square, out, |d, m, codes| {
            let q = pack4(codes);
            Self { d, m, q }
        });
    }
}

impl Block for Q5_0 {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let d = self.d.get();
        unpack5(self.high, &self.q, out, |level| (level - 16.0) * d);
    }
}

impl EncodeSideBySide for Q5_0 {
    #[inline(always)]
    fn encode<S: SideBySide>(simd: S, values: &Weights) -> Self {
        let x = simd.block(values);
        let d = extreme_of(simd, values, x) / -16.0;
        let codes = simd.capped(simd.truncated(x, 0.0, inverse(d), 16.5), 31);
        Self { d: simd.half(d), high: simd.fifth_bits(codes).to_le_bytes(), q: simd.nibbles(codes) }
    }
}

impl WeightedLanes for Q5_0 {
    const OF_ROW: bool = true;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        mean_square: &[f32; MOST],
        out: &mut [Self],
    ) {
        weighted_scale(simd, 16, batch, importance, mean_square, out, |d, codes| {
            let (high, q) = pack5(codes);
            Self { d, high, q }
        });
    }
}

impl Block for Q5_1 {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let (d, m) = (self.d.get(), self.m.get());
        unpack5(self.high, &self.q, out, |level| level * d + m);
    }
}

impl EncodeSideBySide for Q5_1 {
    #[inline(always)]
    fn encode<S: SideBySide>(simd: S, values: &Weights) -> Self {
        let x = simd.block(values);
        let (min, max) = range_of(simd, values, x);
        let d = (max - min) / 31.0;
        let codes = simd.truncated(x, min, inverse(d), 0.5);
        let (high, q) = (simd.fifth_bits(codes).to_le_bytes(), simd.nibbles(codes));
        Self { d: simd.half(d), m: simd.half(min), high, q }
    }
}

impl WeightedLanes for Q5_1 {
    const OF_ROW: bool = true;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        mean_square: &[f32; MOST],
        out: &mut [Self],
    ) {
        weighted_affine(simd, 31, batch, importance, mean_square, out, |d, m, codes| {
            let (high, q) = pack5(codes);
            Self { d, m, high, q }
        });
    }
}

impl Block for Q8_0 {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let d = self.d.get();
        for (q, out) in self.q.iter().zip(out) {
            *out = f32::from(*q) * d;
        }
    }
}

/// The float just below one half: a number plus this, with its sign, truncates to what `roundf` gives.
pub(crate) const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;

impl EncodeSideBySide for Q8_0 {
    #[inline(always)]
    fn encode<S: SideBySide>(simd: S, values: &Weights) -> Self {
        let x = simd.block(values);
        let d = simd.largest(x) / 127.0;
        let codes = simd.rounded(x, inverse(d));
        Self { d: simd.half(d), q: bytemuck::cast(simd.in_order(codes)) }
    }
}

impl Even for Q4_0 {
    const PART: usize = BLOCK;
    const MOST: u8 = 15;

    fn level_step(&self, _: usize) -> LevelStep {
        let step = self.d.get();
        LevelStep { step, least: -8.0 * step }
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        Self { q: pack4(whole(codes)), ..*self }
    }
}

impl Even for Q4_1 {
    const PART: usize = BLOCK;
    const MOST: u8 = 15;

    fn level_step(&self, _: usize) -> LevelStep {
        LevelStep { step: self.d.get(), least: self.m.get() }
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        Self { q: pack4(whole(codes)), ..*self }
    }
}

impl Even for Q5_0 {
    const PART: usize = BLOCK;
    const MOST: u8 = 31;

    fn level_step(&self, _: usize) -> LevelStep {
        let step = self.d.get();
        LevelStep { step, least: -16.0 * step }
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        let (high, q) = pack5(whole(codes));
        Self { high, q, ..*self }
    }
}

impl Even for Q5_1 {
    const PART: usize = BLOCK;
    const MOST: u8 = 31;

    fn level_step(&self, _: usize) -> LevelStep {
        LevelStep { step: self.d.get(), least: self.m.get() }
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        let (high, q) = pack5(whole(codes));
        Self { high, q, ..*self }
    }
}

/// Codes 0 to 254 stand for the integers -127 to 127.
impl Even for Q8_0 {
    const PART: usize = BLOCK;
    const MOST: u8 = 254;

    fn level_step(&self, _: usize) -> LevelStep {
        let step = self.d.get();
        LevelStep { step, least: -127.0 * step }
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        Self { q: whole(codes).map(|code| code.wrapping_sub(127).cast_signed()), ..*self }
    }
}

impl SideBySide for Portable {
    type Block = Weights;
    type Bytes = Codes;

    #[inline(always)]
    fn block(self, x: &Weights) -> Weights {
        *x
    }

    #[inline(always)]
    fn largest(self, x: Weights) -> f32 {
        largest(&x)
    }

    #[inline(always)]
    fn range(self, x: Weights) -> (f32, f32) {
        const LANES: usize = 16;
        let (mut least, mut greatest) = ([f32::MAX; LANES], [-f32::MAX; LANES]);
        for x in x.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                least[lane] = if x[lane] < least[lane] { x[lane] } else { least[lane] };
                greatest[lane] = if x[lane] > greatest[lane] { x[lane] } else { greatest[lane] };
            }
        }
        (
            least.iter().fold(f32::MAX, |least, x| if *x < least { *x } else { least }),
            greatest.iter().fold(-f32::MAX, |greatest, x| if *x > greatest { *x } else { greatest }),
        )
    }

    #[inline(always)]
    fn of_magnitude(self, x: Weights, magnitude: f32) -> u32 {
        x.iter().enumerate().fold(0, |bits, (j, x)| bits | u32::from(x.abs() == magnitude) << j)
    }

    #[inline(always)]
    fn truncated(self, x: Weights, from: f32, inverse: f32, shift: f32) -> Codes {
        let mut codes = [0; BLOCK];
        for (x, code) in x.iter().zip(&mut codes) {
            *code = low_byte((x - from) * inverse + shift);
        }
        codes
    }

    #[inline(always)]
    fn rounded(self, x: Weights, inverse: f32) -> Codes {
        let mut codes = [0; BLOCK];
        for (x, code) in x.iter().zip(&mut codes) {
            let scaled = x * inverse;
            *code = low_byte(scaled + BELOW_HALF.copysign(scaled));
        }
        codes
    }

    #[inline(always)]
    fn capped(self, bytes: Codes, most: i8) -> Codes {
        let mut out = bytes;
        for byte in &mut out {
            *byte = byte.cast_signed().min(most).cast_unsigned();
        }
        out
    }

    #[inline(always)]
    fn in_order(self, bytes: Codes) -> Codes {
        bytes
    }

    #[inline(always)]
    fn nibbles(self, bytes: Codes) -> [u8; HALF] {
        pack4(&bytes)
    }

    #[inline(always)]
    fn fifth_bits(self, bytes: Codes) -> u32 {
        fifth_bits(&bytes)
    }

    #[inline(always)]
    fn half(self, value: f32) -> Half {
        Half::new(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn range_and_extreme_are_what_a_plain_scan_finds(x in prop::array::uniform32(prop_oneof![
            Just(0.0f32), Just(-0.0), -1.0f32..1.0, 0.0f32..1.0, Just(f32::MIN_POSITIVE), Just(0.5), Just(-0.5),
        ]), sign in prop_oneof![Just(0u32), Just(1 << 31)], mask in prop_oneof![Just(MAGNITUDE), Just(u32::MAX)]) {
            let x = x.map(|x| f32::from_bits(x.to_bits() & mask | sign));
            let (mut min, mut max, mut magnitude, mut value) = (f32::MAX, -f32::MAX, 0f32, 0f32);
            for x in x {
                if x < min { min = x; }
                if x > max { max = x; }
                if magnitude < x.abs() { (magnitude, value) = (x.abs(), x); }
            }
            let (least, greatest) = range_of(Portable, &x, Portable.block(&x));
            prop_assert_eq!((least.to_bits(), greatest.to_bits()), (min.to_bits(), max.to_bits()));
            prop_assert_eq!(extreme_of(Portable, &x, Portable.block(&x)).to_bits(), value.to_bits());
            prop_assert_eq!(extreme(&x).to_bits(), value.to_bits());
        }

        #[test]
        fn the_sum_rounds_as_roundf_does(x in -130.0f32..130.0) {
            for x in [x, x.trunc() + 0.5, x.trunc() - 0.5, (x.trunc() + 0.5).next_down(), (x.trunc() + 0.5).next_up()] {
                prop_assert_eq!((x + BELOW_HALF.copysign(x)).trunc(), x.round());
            }
        }
    }
}
