//! Conversions between f32 and the 16-bit floats: exact, round to nearest even, without a maths library.

/// Rounds to IEEE half precision; values past 65519 become infinity, NaN stays NaN.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "every part fits 16 bits by construction")]
pub const fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Subnormal: the unit is 2^-24. Below half a unit the result is zero.
        if magnitude <= 0x3300_0000 {
            return sign;
        }
        let exponent = magnitude >> 23;
        let mantissa = magnitude & 0x007f_ffff | 0x0080_0000;
        let shift = 126 - exponent;
        return sign | round_shift(mantissa, shift) as u16;
    }
    sign | round_shift(magnitude - 0x3800_0000, 13) as u16
}

/// `value >> shift`, rounded to nearest even; a carry runs into the exponent, as it should.
const fn round_shift(value: u32, shift: u32) -> u32 {
    let half = 1 << (shift - 1);
    let rest = value & ((1 << shift) - 1);
    let floor = value >> shift;
    floor + (rest > half || rest == half && floor & 1 == 1) as u32
}

/// Widens IEEE half precision; exact.
#[must_use]
pub const fn f16_to_f32(half: u16) -> f32 {
    let sign = (half as u32 & 0x8000) << 16;
    let exponent = half as u32 >> 10 & 0x1f;
    let mantissa = half as u32 & 0x3ff;
    let magnitude = match exponent {
        0 => (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        31 => 0x7f80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// Rounds to bfloat16; NaN stays NaN.
#[must_use]
pub const fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Widens bfloat16; exact.
#[must_use]
pub const fn bf16_to_f32(half: u16) -> f32 {
    f32::from_bits((half as u32) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back() {
        for half in 0..=u16::MAX {
            let wide = f16_to_f32(half);
            if wide.is_nan() {
                assert!(f16_to_f32(f32_to_f16(wide)).is_nan());
            } else {
                assert_eq!(f32_to_f16(wide), half, "{half:#x}");
            }
            let wide = bf16_to_f32(half);
            assert!(wide.is_nan() || f32_to_bf16(wide) == half, "{half:#x}");
        }
    }

    #[test]
    fn halves_round_to_nearest_even() {
        for half in 0..0x7bffu16 {
            let (low, high) = (f16_to_f32(half), f16_to_f32(half + 1));
            let middle = (low + high) / 2.0;
            let even = if half & 1 == 0 { half } else { half + 1 };
            assert_eq!(f32_to_f16(middle), even, "{half:#x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), half, "{half:#x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), half + 1, "{half:#x}");
        }
        assert_eq!(f32_to_f16(65519.996), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
    }

    #[test]
    fn bfloats_round_to_nearest_even() {
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
    }
}
