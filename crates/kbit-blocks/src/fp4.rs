//! Blocks of four-bit floats (E2M1): MXFP4 and NVFP4, in the order of operations of ggml's `quantize_row_{mx,nv}fp4_ref` and
//! `dequantize_row_{mx,nv}fp4`.
//!
//! Codes stand for twice the value of E2M1, and scales are halved to make up for it, as in ggml. Layouts of the scales: OCP
//! Microscaling Formats 1.0 (E8M0), and NVIDIA's E4M3 without sign.

use crate::block::{Block, Encode, MXFP4, NVFP4};
use crate::legacy::largest;

/// Twice the magnitudes of E2M1, by the low three bits of a code. The fourth is the sign.
const MAGNITUDES: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

/// The levels by code.
pub(crate) const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The level of a code of four bits, -12 to 12. Arithmetic in place of a table: the vectoriser has no table look-up.
#[inline(always)]
pub(crate) fn level(code: u8) -> i8 {
    let m = code & 7;
    let magnitude = (m + u8::from(m > 4) + u8::from(m > 5) + 3 * u8::from(m > 6)).cast_signed();
    if code & 8 != 0 { -magnitude } else { magnitude }
}

/// Codes of the levels nearest to `x` in units of `scale`. Of levels with equal rounded distance the least counts, so a weight
/// far above all levels becomes zero, as in ggml.
#[inline(always)]
fn codes<const N: usize>(x: &[f32; N], scale: f32) -> [u8; N] {
    let levels = MAGNITUDES.map(|magnitude| magnitude * scale);
    let mut out = [0; N];
    for (x, out) in x.iter().zip(&mut out) {
        let magnitude = x.abs();
        let nearer = |(nearest, distance): (u32, f32), code: u32, level: f32| {
            let other = (level - magnitude).abs();
            let closer = other < distance;
            (if closer { code } else { nearest }, if closer { other } else { distance })
        };
        // Written out: the loop over weights becomes vector code only if there is no other inside.
        let best = nearer((0, magnitude), 1, levels[1]);
        let best = nearer(best, 2, levels[2]);
        let best = nearer(best, 3, levels[3]);
        let best = nearer(best, 4, levels[4]);
        let best = nearer(best, 5, levels[5]);
        let best = nearer(best, 6, levels[6]);
        let (nearest, _) = nearer(best, 7, levels[7]);
        let negative = (*x < 0.0) & (nearest != 0);
        *out = (nearest | u32::from(negative) << 3).to_le_bytes()[0];
    }
    out
}

/// Byte `j` holds code `j` in its low half and code `j + N` in its high half.
#[inline(always)]
fn pack<const N: usize>(low: &[u8], high: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = low | high << 4;
    }
    out
}

#[inline(always)]
fn unpack(q: &[u8], out: &mut [f32], scale: f32) {
    let (low, high) = out.split_at_mut(q.len());
    for ((q, low), high) in q.iter().zip(low).zip(high) {
        *low = f32::from(level(q & 15)) * scale;
        *high = f32::from(level(q >> 4)) * scale;
    }
}

/// `floorf(log2f(x))` of a positive `x`, as glibc 2.27 and later compute it.
///
/// `log2f` rounds up to the integer `k` where `x` lies so little below 2^k that the logarithm, `k - (1 - x / 2^k) / ln 2`, is
/// nearer to `k` than to the next float. With u the largest power of two that is not above the magnitudes of the floats just
/// below `k`, half their distance is u / 2^24; so that happens for `x >= 2^k (1 - m / 2^24)` with `m <= u ln 2`. Compared for
/// all positive finite floats with `log2f` of glibc 2.36: equal, with and without fused multiply-add none of the bounds being
/// near an integer.
#[inline(always)]
pub(crate) fn floor_log2(x: f32) -> i32 {
    let bits = x.to_bits();
    // Subnormal numbers get a leading one and an exponent below -126.
    let shift = (bits | 1).leading_zeros().saturating_sub(8);
    let mantissa = bits << shift & 0x007f_ffff;
    let exponent =
        if bits >> 23 == 0 { -126 - shift.cast_signed() } else { (bits >> 23).cast_signed() - 127 };
    let next = exponent + 1;
    let below = if next > 0 { next - 1 } else { -next };
    // floor(u ln 2), and none below one.
    let most = match below {
        ..2 => 0,
        2..4 => 1,
        4..8 => 2,
        8..16 => 5,
        16..32 => 11,
        32..64 => 22,
        64..128 => 44,
        _ => 88,
    };
    // Mantissas are multiples of 2^-23 of 2^exponent, the units of `m`.
    if mantissa + most >= 1 << 23 { next } else { exponent }
}

/// Half of an E8M0 scale: 2^(e - 128).
#[inline(always)]
pub(crate) fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Half of an unsigned E4M3 scale, bias 7; 0x7f is zero and the sign is not looked at.
#[inline(always)]
pub(crate) fn half_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(code >> 3 & 15), u32::from(code & 7));
    if code == 0x7f {
        0.0
    } else if exponent == 0 {
        f32::from(code & 7) / 1024.0
    } else {
        f32::from_bits((exponent + 119) << 23 | mantissa << 20)
    }
}

/// The unsigned E4M3 scale of `x`, which is not negative: rounded by the bit below the mantissa, and 448 from 256 up.
#[inline(always)]
fn e4m3(x: f32) -> u8 {
    const LARGEST: u8 = 0x7e;
    /// 2^-6, the least normal number, and 2^8.
    const NORMAL: f32 = 1.0 / 64.0;
    const PAST: u32 = 15 << 3;
    if x < NORMAL {
        // Below 8.5, so the conversion truncates.
        let mantissa = (x * 512.0 + 0.5) as u8;
        return mantissa.min(7);
    }
    let bits = x.to_bits();
    // Rebias the exponent; rounding carries into it.
    let code = (bits >> 20).wrapping_sub(120 << 3).wrapping_add(bits >> 19 & 1);
    if code >= PAST { LARGEST } else { code.to_le_bytes()[0] }
}

impl Block for MXFP4 {
    type Weights = [f32; 32];

    #[inline(always)]
    fn decode(&self, out: &mut Self::Weights) {
        unpack(&self.q, out, half_e8m0(self.e));
    }
}

impl Encode for MXFP4 {
    #[inline(always)]
    fn encode(x: &Self::Weights) -> Self {
        let largest = largest(x);
        // The low byte: blocks of subnormal numbers get large scales and zeros.
        let e = if largest > 0.0 { (floor_log2(largest) + 125).to_le_bytes()[0] } else { 0 };
        let codes = codes(x, half_e8m0(e));
        let (low, high) = codes.split_at(16);
        Self { e, q: pack(low, high) }
    }
}

/// The first weight of the first block of MXFP4 whose scale is that of NaN, which ggml does not load: the largest weight of such
/// a block lies from 2^-126 to 2^-125, and its exponent wraps.
pub(crate) fn without_scale(bytes: &[u8]) -> Option<usize> {
    bytemuck::cast_slice::<u8, MXFP4>(bytes)
        .iter()
        .position(|block| block.e == u8::MAX)
        .map(|block| block * 32)
}

impl Block for NVFP4 {
    type Weights = [f32; 64];

    #[inline(always)]
    fn decode(&self, out: &mut Self::Weights) {
        for ((q, out), scale) in self.q.iter().zip(out.as_chunks_mut::<16>().0).zip(self.scales) {
            unpack(q, out, half_e4m3(scale));
        }
    }
}

impl Encode for NVFP4 {
    #[inline(always)]
    fn encode(x: &Self::Weights) -> Self {
        let (mut scales, mut q) = ([0; 4], [[0; 8]; 4]);
        for ((x, scale), q) in x.as_chunks::<16>().0.iter().zip(&mut scales).zip(&mut q) {
            *scale = e4m3(largest(x) / 6.0);
            let codes = codes(x, half_e4m3(*scale));
            let (low, high) = codes.split_at(8);
            *q = pack(low, high);
        }
        Self { scales, q }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The floats below 2^k for which glibc's `log2f` is `k`, counted with it.
    #[test]
    fn logarithms_just_below_powers_of_two_are_rounded_up_as_in_glibc() {
        for (k, count) in [
            (128, 44),
            (65, 44),
            (64, 22),
            (33, 22),
            (32, 11),
            (17, 11),
            (16, 5),
            (9, 5),
            (8, 2),
            (5, 2),
            (4, 1),
            (3, 1),
            (2, 0),
            (1, 0),
            (0, 0),
            (-1, 0),
            (-2, 1),
            (-3, 1),
            (-4, 2),
            (-7, 2),
            (-8, 5),
            (-15, 5),
            (-16, 11),
            (-31, 11),
            (-32, 22),
            (-63, 22),
            (-64, 44),
            (-125, 44),
            (-126, 22),
            (-127, 11),
            (-128, 11),
            (-129, 5),
            (-130, 2),
            (-131, 1),
            (-132, 0),
            (-148, 0),
        ] {
            let power = if k > -127 { ((k + 127) as u32) << 23 } else { 1 << (k + 149) };
            for below in 1..=100.min(power - 1) {
                let expected = if below <= count { k } else { k - 1 };
                let found = floor_log2(f32::from_bits(power - below));
                // A hundred floats below a subnormal power there may be several powers.
                assert!(
                    found == expected || below > count && k < -118 && found < k,
                    "2^{k}, {below} floats below: {found}"
                );
            }
            if k < 128 {
                assert_eq!(floor_log2(f32::from_bits(power)), k, "2^{k}");
            }
        }
        assert_eq!(floor_log2(f32::from_bits(1)), -149);
    }

    #[test]
    fn levels_are_twice_the_values_of_e2m1() {
        for code in 0..16 {
            let magnitude = MAGNITUDES[usize::from(code & 7)];
            assert_eq!(f32::from(level(code)), if code < 8 { magnitude } else { -magnitude });
            assert_eq!(level(code), LEVELS[usize::from(code)]);
        }
    }

    #[test]
    fn every_e4m3_scale_comes_back() {
        for code in 0..0x7f {
            let back = e4m3(2.0 * half_e4m3(code));
            // From 256 up there is only the largest.
            assert_eq!(back, if code >= 15 << 3 { 0x7e } else { code });
        }
    }

    #[test]
    fn weights_far_above_all_levels_become_zero() {
        assert_eq!(codes(&[1e30, -1e30, 14.0, -14.0], 1.0), [0, 0, 7, 15]);
    }
}
