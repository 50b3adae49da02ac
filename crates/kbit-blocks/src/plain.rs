//! F32, F16 and BF16, one number at a time, without branches so that loops over them become vector code.

/// Bits of the sign's complement.
pub(crate) const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

/// The nearest half-precision number, ties to even; too large becomes infinity, a NaN becomes quiet and keeps the top of
/// its payload. What the VCVTPS2PH instruction gives, and ggml for all but the payload.
#[inline(always)]
pub(crate) fn f16_bits(value: f32) -> u16 {
    /// 2^-14, the least normal half; and 2^16, past the largest.
    const NORMAL: u32 = 113 << 23;
    const PAST: u32 = 143 << 23;
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE;
    // Rebias the exponent and add just under half a unit, or half where the last bit is odd.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    // Below, units are 2^-24, as in the float 0.5: the sum rounds.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let half = if magnitude < NORMAL { subnormal } else { normal };
    let half = if magnitude >= PAST { 0x7c00 } else { half };
    let half = if magnitude > INFINITY { 0x7e00 | magnitude >> 13 & 0x3ff } else { half };
    (half | bits >> 16 & 0x8000) as u16
}

/// The value of a half-precision number; a NaN becomes quiet.
#[inline(always)]
pub(crate) fn f16_value(bits: u16) -> f32 {
    const EXPONENT: u32 = 0x7c00 << 13;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let exponent = magnitude & EXPONENT;
    let normal = magnitude + (112 << 23);
    // As if the exponent were 1 with a leading bit, which is then taken off again: exact.
    let subnormal = (f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let special = magnitude | INFINITY | if magnitude > EXPONENT { 0x0040_0000 } else { 0 };
    let value = if exponent == 0 { subnormal } else { normal };
    let value = if exponent == EXPONENT { special } else { value };
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

/// The nearest bfloat16, ties to even; subnormal numbers stay (VCVTNEPS2BF16 would make them zero), a NaN becomes quiet.
/// ggml's `ggml_compute_fp32_to_bf16`.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if bits & MAGNITUDE > INFINITY { quiet } else { rounded }) as u16
}

/// The value of a bfloat16.
#[inline(always)]
pub(crate) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_f16_has_its_value() {
        for bits in 0..=u16::MAX {
            let (value, expected) = (f16_value(bits), f16::from_bits(bits).to_f32_const());
            assert!(
                value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(),
                "{bits:#06x}"
            );
            assert!(!value.is_nan() || value.to_bits() & 0x0040_0000 != 0, "{bits:#06x} is quiet");
        }
    }

    /// Neighbours of every half and of every midpoint between two, and every 4099th float.
    #[test]
    fn rounds_as_the_half_crate_does() {
        let around = (0..=u16::MAX).flat_map(|bits| {
            let value = f16_value(bits).to_bits();
            (-2i32..=2).flat_map(move |step| {
                [0u32, 1 << 12, 1 << 13, 1 << 15, 1 << 16]
                    .map(|apart| value.wrapping_add(apart).wrapping_add_signed(step))
            })
        });
        for bits in around.chain((0..=u32::MAX).step_by(4099)) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (f16_bits(value), f16::from_f32_const(value).to_bits());
            assert_eq!(ours, theirs, "f16 of {bits:#010x}");
            assert_eq!(bf16_bits(value), bf16::from_f32(value).to_bits(), "bf16 of {bits:#010x}");
        }
    }
}
