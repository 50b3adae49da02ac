//! Blocks of 32 weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Layouts (little-endian): Q4_0 `d f16, q 16`; Q4_1 `d f16, m f16, q 16`; Q5_0 `d f16, high 4, q 16`; Q5_1 `d f16, m f16,
//! high 4, q 16`; Q8_0 `d f16, q 32`. Byte `j` of `q` holds weight `j` in its low half and weight `j + 16` in its high half.

use crate::search::{fit_scale, fit_scale_and_minimum};
use half::f16;

const BLOCK: usize = 32;
const HALF: usize = BLOCK / 2;

/// What C's conversion of a float to an 8-bit integer gives on x86: truncation to 32 bits, of which the low byte stays.
fn low_byte(x: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "the conversion that is reproduced")]
    let wide = if x > -2_147_483_904.0 && x < 2_147_483_648.0 { x as i32 } else { i32::MIN };
    wide.to_le_bytes()[0]
}

/// As `low_byte`, but through a signed byte that is capped at `most`.
fn capped(x: f32, most: i8) -> u8 {
    low_byte(x).cast_signed().min(most).cast_unsigned()
}

fn put(out: &mut [u8], at: usize, value: f32) {
    out[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The value of largest magnitude; of equal ones, the first.
fn extreme(x: &[f32]) -> f32 {
    let (mut largest, mut value) = (0f32, 0f32);
    for x in x {
        if largest < x.abs() {
            (largest, value) = (x.abs(), *x);
        }
    }
    value
}

fn range(x: &[f32]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for x in x {
        min = if *x < min { *x } else { min };
        max = if *x > max { *x } else { max };
    }
    (min, max)
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn pack4(out: &mut [u8], code: impl Fn(usize) -> u8) {
    for (j, byte) in out[..HALF].iter_mut().enumerate() {
        *byte = code(j) | code(j + HALF) << 4;
    }
}

/// Codes of 5 bits: the fifth bits in `high` (bit `j` for weight `j`), the rest as codes of 4 bits.
fn pack5(high: &mut [u8], low: &mut [u8], code: impl Fn(usize) -> u8) {
    let mut bits = 0u32;
    for j in 0..HALF {
        let (a, b) = (code(j), code(j + HALF));
        low[j] = a & 15 | (b & 15) << 4;
        bits |= u32::from(a >> 4 & 1) << j | u32::from(b >> 4 & 1) << (j + HALF);
    }
    high.copy_from_slice(&bits.to_le_bytes());
}

fn unpack5(high: &[u8], low: &[u8], mut level: impl FnMut(usize, f32)) {
    let bits = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for j in 0..HALF {
        let bit = |at: usize| (bits >> at & 1) as u8 * 16;
        level(j, f32::from(low[j] & 15 | bit(j)));
        level(j + HALF, f32::from(low[j] >> 4 | bit(j + HALF)));
    }
}

/// Weights of the squared error: importance times the root of the row's mean square and the weight's own.
fn error_weights(x: &[f32], importance: &[f32], mean_square: f32) -> [f32; BLOCK] {
    std::array::from_fn(|j| importance[j] * (mean_square + x[j] * x[j]).sqrt())
}

pub fn encode_q4_0(x: &[f32], out: &mut [u8]) {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    put(out, 0, d);
    pack4(&mut out[2..], |j| capped(x[j] * id + 8.5, 15));
}

pub fn encode_q4_0_weighted(x: &[f32], importance: &[f32], mean_square: f32, out: &mut [u8]) {
    let mut codes = [0; BLOCK];
    let d = fit_scale(8, x, &error_weights(x, importance, mean_square), &mut codes);
    put(out, 0, d);
    pack4(&mut out[2..], |j| codes[j]);
}

pub fn decode_q4_0(bytes: &[u8], out: &mut [f32]) {
    let d = get(bytes, 0);
    for (j, byte) in bytes[2..].iter().enumerate() {
        out[j] = (f32::from(byte & 15) - 8.0) * d;
        out[j + HALF] = (f32::from(byte >> 4) - 8.0) * d;
    }
}

pub fn encode_q4_1(x: &[f32], out: &mut [u8]) {
    let (min, max) = range(x);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    put(out, 0, d);
    put(out, 2, min);
    pack4(&mut out[4..], |j| capped((x[j] - min) * id + 0.5, 15));
}

pub fn encode_q4_1_weighted(x: &[f32], importance: &[f32], mean_square: f32, out: &mut [u8]) {
    let mut codes = [0; BLOCK];
    let (d, min) = fit_scale_and_minimum(15, x, &error_weights(x, importance, mean_square), &mut codes);
    put(out, 0, d);
    put(out, 2, -min);
    pack4(&mut out[4..], |j| codes[j]);
}

pub fn decode_q4_1(bytes: &[u8], out: &mut [f32]) {
    let (d, min) = (get(bytes, 0), get(bytes, 2));
    for (j, byte) in bytes[4..].iter().enumerate() {
        out[j] = f32::from(byte & 15) * d + min;
        out[j + HALF] = f32::from(byte >> 4) * d + min;
    }
}

pub fn encode_q5_0(x: &[f32], out: &mut [u8]) {
    let d = extreme(x) / -16.0;
    let id = inverse(d);
    put(out, 0, d);
    let (high, low) = out[2..].split_at_mut(4);
    pack5(high, low, |j| capped(x[j] * id + 16.5, 31));
}

pub fn encode_q5_0_weighted(x: &[f32], importance: &[f32], mean_square: f32, out: &mut [u8]) {
    let mut codes = [0; BLOCK];
    let d = fit_scale(16, x, &error_weights(x, importance, mean_square), &mut codes);
    put(out, 0, d);
    let (high, low) = out[2..].split_at_mut(4);
    pack5(high, low, |j| codes[j]);
}

pub fn decode_q5_0(bytes: &[u8], out: &mut [f32]) {
    let d = get(bytes, 0);
    unpack5(&bytes[2..6], &bytes[6..], |j, level| out[j] = (level - 16.0) * d);
}

pub fn encode_q5_1(x: &[f32], out: &mut [u8]) {
    let (min, max) = range(x);
    let d = (max - min) / 31.0;
    let id = inverse(d);
    put(out, 0, d);
    put(out, 2, min);
    let (high, low) = out[4..].split_at_mut(4);
    pack5(high, low, |j| low_byte((x[j] - min) * id + 0.5));
}

pub fn encode_q5_1_weighted(x: &[f32], importance: &[f32], mean_square: f32, out: &mut [u8]) {
    let mut codes = [0; BLOCK];
    let (d, min) = fit_scale_and_minimum(31, x, &error_weights(x, importance, mean_square), &mut codes);
    put(out, 0, d);
    put(out, 2, -min);
    let (high, low) = out[4..].split_at_mut(4);
    pack5(high, low, |j| codes[j]);
}

pub fn decode_q5_1(bytes: &[u8], out: &mut [f32]) {
    let (d, min) = (get(bytes, 0), get(bytes, 2));
    unpack5(&bytes[4..8], &bytes[8..], |j, level| out[j] = level * d + min);
}

pub fn encode_q8_0(x: &[f32], out: &mut [u8]) {
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let d = largest / 127.0;
    let id = inverse(d);
    put(out, 0, d);
    for (x, code) in x.iter().zip(&mut out[2..]) {
        *code = low_byte((x * id).round());
    }
}

pub fn decode_q8_0(bytes: &[u8], out: &mut [f32]) {
    let d = get(bytes, 0);
    for (byte, out) in bytes[2..].iter().zip(out) {
        *out = f32::from(byte.cast_signed()) * d;
    }
}
