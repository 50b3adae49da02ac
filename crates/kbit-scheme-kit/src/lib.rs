//! What block-wise quantization schemes share: how weights are cut into blocks, how scales are stored (also quantized
//! themselves), packing, codebooks, and the factors of error feedback. A scheme says what its levels are ([`Levels`]); [`BlockScheme`] does the rest.
//!
//! Everything is plain arithmetic in a fixed order, so the bytes depend on values and shape alone.
#![forbid(unsafe_code)]

mod codebook;
#[cfg(feature = "feedback")]
mod factor;
#[cfg(feature = "ggml")]
pub mod ggml;
mod importance;
mod layout;
pub mod levels;
mod parallel;
mod scale;
mod scheme;
pub mod testing;

pub use codebook::Codebook;
#[cfg(feature = "feedback")]
pub use factor::{DAMPING_PARAM, Factor, NoFactor};
pub use importance::relative_importance;
pub use layout::{Granularity, Layout, columns_of};
pub use parallel::parallel_map;
pub use scale::{DoubleQuantization, ScaleType};
pub use scheme::{
    BlockJob, BlockScheme, BlockTensor, Fit, Levels, Setup, Summary, absmax_fit, decode_with, encode_with,
    refuse_not_finite, shrink_factors,
};

use kbit_plugin::{DefaultValue, Param, ParamKind};

/// The parameter `bits` of schemes that take as few as `min`.
#[must_use]
pub const fn bits_param(min: i64, default: i64) -> Param {
    Param {
        key: "bits",
        doc: "Bits of a weight.",
        unit: "bits",
        kind: ParamKind::Int { min, max: 8 },
        default: DefaultValue::Int(default),
    }
}

/// The parameter `block` of schemes that take blocks from `min` on.
#[must_use]
pub const fn block_param(min: i64) -> Param {
    Param {
        key: "block",
        doc: "Weights that share a scale.",
        unit: "weights",
        kind: ParamKind::Int { min, max: 4096 },
        default: DefaultValue::Int(64),
    }
}

/// The parameter `center`.
pub const CENTER_PARAM: Param = Param {
    key: "center",
    doc: "Subtract the mean of each block before it is quantized; the mean is stored beside the scale.",
    unit: "",
    kind: ParamKind::Bool,
    default: DefaultValue::Bool(false),
};

/// The parameter `symmetric`.
pub const SYMMETRIC_PARAM: Param = Param {
    key: "symmetric",
    doc: "True: levels on both sides of zero. False: levels from the block's minimum up, which is stored too.",
    unit: "",
    kind: ParamKind::Bool,
    default: DefaultValue::Bool(true),
};

/// The parameter `scale`.
pub const SCALE_PARAM: Param = Param {
    key: "scale",
    doc: "Type of the stored scales.",
    unit: "",
    kind: ParamKind::Choice(&["f32", "f16", "bf16"]),
    default: DefaultValue::Str("f16"),
};

/// The parameter `scale_bits` of schemes with double quantization.
pub const SCALE_BITS_PARAM: Param = Param {
    key: "scale_bits",
    doc: "Bits of a scale that is quantized itself (double quantization), from 4 to 8; 0 stores scales in the type `scale`.",
    unit: "bits",
    kind: ParamKind::Int { min: 0, max: 8 },
    default: DefaultValue::Int(0),
};

/// The parameter `scale_block` of schemes with double quantization.
pub const SCALE_BLOCK_PARAM: Param = Param {
    key: "scale_block",
    doc: "Quantized scales that share one f32 scale.",
    unit: "scales",
    kind: ParamKind::Int { min: 16, max: 4096 },
    default: DefaultValue::Int(256),
};

/// Largest magnitude of `values`, and whether all of them are finite.
#[must_use]
pub fn largest_magnitude(values: &[f32]) -> (f32, bool) {
    const LANES: usize = 16;
    let mut lanes = [0f32; LANES];
    // A product with zero is NaN for NaN and infinity, and stays so in the sum.
    let mut poison = [0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            let magnitude = chunk[lane].abs();
            lanes[lane] = if magnitude > lanes[lane] { magnitude } else { lanes[lane] };
            poison[lane] += chunk[lane] * 0.0;
        }
    }
    let mut largest = lanes.iter().fold(0f32, |a, b| if *b > a { *b } else { a });
    let mut finite = poison.iter().all(|lane| *lane == 0.0);
    for value in rest {
        largest = if value.abs() > largest { value.abs() } else { largest };
        finite &= value.is_finite();
    }
    (largest, finite)
}

/// `x` rounded to the nearest whole number, ties to even, for magnitudes below 2^22; the compiler vectorises it.
#[must_use]
pub const fn round_half_even(x: f32) -> f32 {
    // 1.5 * 2^23: adding it leaves no bits for a fraction.
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_magnitude_sees_every_place() {
        for len in [1usize, 15, 16, 17, 40] {
            for at in 0..len {
                let mut values = vec![0.5; len];
                values[at] = -2.0;
                assert_eq!(largest_magnitude(&values), (2.0, true));
                values[at] = f32::NAN;
                assert!(!largest_magnitude(&values).1);
                values[at] = f32::NEG_INFINITY;
                assert!(!largest_magnitude(&values).1);
            }
        }
    }

    #[test]
    fn rounding_is_to_even() {
        for (x, rounded) in
            [(0.5, 0.0), (1.5, 2.0), (-0.5, 0.0), (-2.5, -2.0), (2.4999998, 2.0), (-127.6, -128.0)]
        {
            assert_eq!(round_half_even(x), rounded);
        }
    }
}
