//! Blocks of one sign, one trit or two bits a weight: Q1_0, Q2_0, TQ1_0, TQ2_0, in the order of operations of ggml's
//! `quantize_row_*_ref` and `dequantize_row_*`.

use crate::block::{Block, Encode, Half, Q1_0, Q2_0, TQ1_0, TQ2_0};
use crate::legacy::{inverse, largest};

/// Bit `j % 8` of byte `j / 8` is set where weight `j` is not below zero.
#[inline(always)]
fn signs(x: &[f32; 128]) -> [u8; 16] {
    let mut out = [0; 16];
    for (x, out) in x.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<4>().0) {
        let mut bits = 0u32;
        for (j, x) in x.iter().enumerate() {
            bits |= u32::from(*x >= 0.0) << j;
        }
        *out = bits.to_le_bytes();
    }
    out
}

/// Blocks of Q1_0, several at a time: the mean of the magnitudes is a sum in the order of the weights, so what runs side by side
/// are the blocks.
#[inline(always)]
pub(crate) fn encode_q1_0(x: &[f32], out: &mut [u8]) {
    const LANES: usize = 8;
    let (groups, rest) = bytemuck::cast_slice::<f32, [f32; 128]>(x).as_chunks::<LANES>();
    let (out_groups, out_rest) = bytemuck::cast_slice_mut::<u8, Q1_0>(out).as_chunks_mut::<LANES>();
    for (x, out) in groups.iter().zip(out_groups) {
        let mut sums = [0f32; LANES];
        for j in 0..128 {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += x[j].abs();
            }
        }
        for ((x, sum), out) in x.iter().zip(sums).zip(out) {
            *out = Q1_0 { d: Half::new(sum / 128.0), q: signs(x) };
        }
    }
    for (x, out) in rest.iter().zip(out_rest) {
        let sum = x.iter().fold(0f32, |sum, x| sum + x.abs());
        *out = Q1_0 { d: Half::new(sum / 128.0), q: signs(x) };
    }
}

impl Block for Q1_0 {
    type Weights = [f32; 128];

    #[inline(always)]
    fn decode(&self, out: &mut Self::Weights) {
        let d = self.d.get();
        for (q, out) in self.q.iter().zip(out.as_chunks_mut::<8>().0) {
            for (j, out) in out.iter_mut().enumerate() {
                *out = if q >> j & 1 != 0 { d } else { -d };
            }
        }
    }
}

impl Block for Q2_0 {
    type Weights = [f32; 64];

    #[inline(always)]
    fn decode(&self, out: &mut Self::Weights) {
        let d = self.d.get();
        for (q, out) in self.q.iter().zip(out.as_chunks_mut::<4>().0) {
            for (j, out) in out.iter_mut().enumerate() {
                *out = (f32::from(q >> (2 * j) & 3) - 1.0) * d;
            }
        }
    }
}

/// -1, 0 or 1, as 0, 1, 2: the nearest, halves away from zero, of a weight whose magnitude in units of the scale is at most 1.
#[inline(always)]
fn trit(scaled: f32) -> u8 {
    1 + u8::from(scaled >= 0.5) - u8::from(scaled <= -0.5)
}

impl Encode for Q2_0 {
    #[inline(always)]
    fn encode(x: &Self::Weights) -> Self {
        let d = largest(x);
        let id = inverse(d);
        let mut codes = [0; 64];
        // Where one over a subnormal scale is infinite, C converts infinity and NaN to the least integer, so all codes are 0.
        let none = if id.is_infinite() { 0 } else { u8::MAX };
        for (x, code) in x.iter().zip(&mut codes) {
            *code = trit(x * id) & none;
        }
        let mut q = [0; 16];
        for (codes, q) in codes.as_chunks::<4>().0.iter().zip(&mut q) {
            *q = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6;
        }
        Self { d: Half::new(d), q }
    }
}

/// One over the scale of a ternary block. Where that is infinite, C's `lroundf` gives the least 64-bit integer for infinity and
/// NaN, of which the low bits are those of zero: as if the inverse were zero.
#[inline(always)]
fn ternary_inverse(d: f32) -> f32 {
    let id = inverse(d);
    if id.is_infinite() { 0.0 } else { id }
}

/// Five trits a byte, as the fraction of 3^5 that they are, in 1/256 and rounded up: multiplying by 3 gives them from the first to
/// the last. `x` holds runs of `N` weights; missing runs count as zero trits.
#[inline(always)]
#[expect(clippy::manual_div_ceil, reason = "as a sum and a division it becomes a multiplication of vectors")]
fn pack_trits<const N: usize>(x: &[f32], id: f32) -> [u8; N] {
    let mut out = [0u8; N];
    let runs = x.as_chunks::<N>().0;
    for run in runs {
        for (x, out) in run.iter().zip(&mut out) {
            *out = *out * 3 + trit(x * id);
        }
    }
    for _ in runs.len()..5 {
        out = out.map(|out| out * 3);
    }
    out.map(|out| ((u16::from(out) * 256 + 242) / 243).to_le_bytes()[0])
}

/// Trit `run` (0 to 2) of a byte.
#[inline(always)]
pub(crate) fn unpack_trit(byte: u8, run: usize) -> u8 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    ((u16::from(byte.wrapping_mul(POWERS[run])) * 3) >> 8).to_le_bytes()[0]
}

#[inline(always)]
fn decode_trits<const N: usize>(bytes: &[u8; N], out: &mut [f32], d: f32) {
    for (run, out) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        for (byte, out) in bytes.iter().zip(out) {
            *out = (f32::from(unpack_trit(*byte, run)) - 1.0) * d;
        }
    }
}

impl Block for TQ1_0 {
    type Weights = [f32; 256];

    #[inline(always)]
    fn decode(&self, out: &mut Self::Weights) {
        let d = self.d.get();
        decode_trits(&self.first, &mut out[..160], d);
        decode_trits(&self.second, &mut out[160..240], d);
        decode_trits(&self.third, &mut out[240..], d);
    }
}

impl Encode for TQ1_0 {
    #[inline(always)]
    fn encode(x: &Self::Weights) -> Self {
        let d = largest(x);
        let id = ternary_inverse(d);
        Self {
            first: pack_trits(&x[..160], id),
            second: pack_trits(&x[160..240], id),
            third: pack_trits(&x[240..], id),
            d: Half::new(d),
        }
    }
}

impl Block for TQ2_0 {
    type Weights = [f32; 256];

    #[inline(always)]
    fn decode(&self, out: &mut Self::Weights) {
        let d = self.d.get();
        for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (q, out) in self.q[run / 4].iter().zip(out) {
                *out = (f32::from(q >> (run % 4 * 2) & 3) - 1.0) * d;
            }
        }
    }
}

impl Encode for TQ2_0 {
    #[inline(always)]
    fn encode(x: &Self::Weights) -> Self {
        let d = largest(x);
        let id = ternary_inverse(d);
        let mut q = [[0; 32]; 2];
        for (run, x) in x.as_chunks::<32>().0.iter().enumerate() {
            for (x, q) in x.iter().zip(&mut q[run / 4]) {
                *q |= trit(x * id) << (run % 4 * 2);
            }
        }
        Self { q, d: Half::new(d) }
    }
}
