//! Blocks of 32 weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, in the order of operations of ggml's `quantize_row_*_ref`,
//! `quantize_row_*_impl` and `dequantize_row_*`.
//!
//! Everything is inlined into loops that are compiled once an instruction set (`arch`), so it is written for the vectoriser:
//! fixed lengths, no early exits, reductions over bit patterns or lanes where the order makes no difference.

use crate::block::{Block, Encode, Half, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::lanes::{Batch, Floats, MOST, Simd, WeightedLanes, codes_of_lane, stored, transpose};
use crate::plain::MAGNITUDE;
use crate::search::{Scale, Steps, codes_of_scale, error_weights, fit_scale, fit_scale_and_minimum};

pub(crate) const BLOCK: usize = 32;
const HALF: usize = BLOCK / 2;
/// Weights of a block, or numbers for each of them.
type Weights = [f32; BLOCK];
type Codes = [u8; BLOCK];

/// What C's conversion of a float to an 8-bit integer gives on x86: truncation to 32 bits, of which the low byte stays.
/// Numbers that 32 bits cannot hold, and NaN, become the "integer indefinite" 0x80000000.
#[inline(always)]
fn low_byte(x: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "the conversion that is reproduced")]
    let wide = if x > -2_147_483_904.0 && x < 2_147_483_648.0 { x as i32 } else { i32::MIN };
    wide.to_le_bytes()[0]
}

/// As `low_byte`, but through a signed byte that is capped at `most`.
#[inline(always)]
fn capped(x: f32, most: i8) -> u8 {
    low_byte(x).cast_signed().min(most).cast_unsigned()
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

/// The least and the greatest value; of zeros of both signs, the first.
#[inline(always)]
pub(crate) fn range(x: &Weights) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut least, mut greatest) = ([f32::MAX; LANES], [-f32::MAX; LANES]);
    for x in x.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            least[lane] = if x[lane] < least[lane] { x[lane] } else { least[lane] };
            greatest[lane] = if x[lane] > greatest[lane] { x[lane] } else { greatest[lane] };
        }
    }
    let least = least.iter().fold(f32::MAX, |least, x| if *x < least { *x } else { least });
    let greatest = greatest.iter().fold(-f32::MAX, |greatest, x| if *x > greatest { *x } else { greatest });
    let first = |zero: f32| {
        if zero == 0.0 { x.iter().copied().find(|x| *x == 0.0).unwrap_or(zero) } else { zero }
    };
    (first(least), first(greatest))
}

/// One over `d`, 0 for 0.
#[inline(always)]
pub(crate) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[inline(always)]
fn map(x: &Weights, code: impl Fn(f32) -> u8) -> Codes {
    let mut codes = [0; BLOCK];
    for (x, out) in x.iter().zip(&mut codes) {
        *out = code(*x);
    }
    codes
}

#[inline(always)]
fn pack4(codes: &Codes) -> [u8; HALF] {
    let mut out = [0; HALF];
    for (j, byte) in out.iter_mut().enumerate() {
        *byte = codes[j] | codes[j + HALF] << 4;
    }
    out
}

/// Codes of 5 bits: the fifth bits (bit `j` for weight `j`), and the rest as codes of 4 bits.
#[inline(always)]
fn pack5(codes: &Codes) -> ([u8; 4], [u8; HALF]) {
    let mut bits = 0;
    for (j, code) in codes.iter().enumerate() {
        bits |= u32::from(code >> 4 & 1) << j;
    }
    let mut low = [0; HALF];
    for (j, byte) in low.iter_mut().enumerate() {
        *byte = codes[j] & 15 | codes[j + HALF] << 4;
    }
    (bits.to_le_bytes(), low)
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

impl Encode for Q4_0 {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        let d = extreme(x) / -8.0;
        let id = inverse(d);
        Self { d: Half::new(d), q: pack4(&map(x, |x| capped(x * id + 8.5, 15))) }
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

impl Encode for Q4_1 {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        let (min, max) = range(x);
        let d = (max - min) / 15.0;
        let id = inverse(d);
        let codes = map(x, |x| capped((x - min) * id + 0.5, 15));
        Self { d: Half::new(d), m: Half::new(min), q: pack4(&codes) }
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

impl Encode for Q5_0 {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        let d = extreme(x) / -16.0;
        let id = inverse(d);
        let (high, q) = pack5(&map(x, |x| capped(x * id + 16.5, 31)));
        Self { d: Half::new(d), high, q }
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

impl Encode for Q5_1 {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        let (min, max) = range(x);
        let d = (max - min) / 31.0;
        let id = inverse(d);
        let (high, q) = pack5(&map(x, |x| low_byte((x - min) * id + 0.5)));
        Self { d: Half::new(d), m: Half::new(min), high, q }
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

/// The float just below one half.
pub(crate) const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;

impl Encode for Q8_0 {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        let d = largest(x) / 127.0;
        let id = inverse(d);
        let mut q = [0; BLOCK];
        for (x, q) in x.iter().zip(&mut q) {
            // C's `roundf` (halves away from zero) followed by truncation.
            let scaled = x * id;
            *q = low_byte(scaled + BELOW_HALF.copysign(scaled)).cast_signed();
        }
        Self { d: Half::new(d), q }
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
            let (least, greatest) = range(&x);
            prop_assert_eq!((least.to_bits(), greatest.to_bits()), (min.to_bits(), max.to_bits()));
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
