//! Arithmetic of a forward pass.

use kbit_types::ActivationKind;
use std::fmt;
use std::str::FromStr;

/// Arithmetic of the products of weights and activations. Everything else (norms, attention, the sums of the residual stream) is f32 in
/// every mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Weights decoded to f32, activations f32: what quantization of the weights costs.
    #[default]
    F32,
    /// Weights and activations rounded to bf16, f32 sums: fast, and nearly as exact.
    Bf16,
    /// What deployment gives, with llama.cpp's arithmetic: activations in 8-bit blocks and integer products for the types that it
    /// quantizes, bf16 for BF16, f32 for other floats; and the product of a scheme that brings its own, whatever it multiplies with.
    /// Weights of a scheme without one are decoded to f32 and multiplied with activations rounded as in `Activations` to 8 bits.
    Int8,
    /// Weights decoded to f32, activations rounded to few bits: for experiments with both.
    Activations(Rounding),
}

/// Rounding of activations to signed integers times a scale, the largest magnitude of a group over the largest integer
/// (`2^(bits - 1) - 1`); to nearest, ties to even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rounding {
    /// 2 to 8.
    pub bits: u8,
    /// Which activations have a scale in common.
    pub group: Group,
}

/// Activations with a common scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Group {
    /// 32 neighbours.
    #[default]
    Block,
    /// All of one token.
    Token,
}

impl Rounding {
    /// Activations in a [`Group::Block`].
    pub const BLOCK: usize = 32;

    /// That of 8-bit blocks.
    pub(crate) const EIGHT: Self = Self { bits: 8, group: Group::Block };

    /// Rounds the activations of one token in place. A group that is not finite becomes NaN.
    pub(crate) fn apply(self, x: &mut [f32]) {
        let group = match self.group {
            Group::Block => Self::BLOCK,
            Group::Token => x.len().max(1),
        };
        let levels = f32::from((1_i16 << (self.bits - 1)) - 1);
        for x in x.chunks_mut(group) {
            let largest = x
                .iter()
                .fold(0.0, |largest: f32, x| if x.abs() > largest || x.is_nan() { x.abs() } else { largest });
            let scale = largest / levels;
            if scale == 0.0 {
                x.fill(0.0);
                continue;
            }
            for x in x {
                *x = (*x / scale).round_ties_even() * scale;
            }
        }
    }
}

impl Mode {
    /// True where a scheme's own product with such activations is used.
    pub(crate) fn takes(self, activations: ActivationKind) -> bool {
        match self {
            Self::F32 => activations == ActivationKind::F32,
            Self::Bf16 => activations == ActivationKind::Bf16,
            Self::Int8 => true,
            Self::Activations(_) => false,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.pad("f32"),
            Self::Bf16 => f.pad("bf16"),
            Self::Int8 => f.pad("int8"),
            Self::Activations(Rounding { bits, group: Group::Block }) => f.pad(&format!("act:{bits}")),
            Self::Activations(Rounding { bits, group: Group::Token }) => f.pad(&format!("act:{bits}:token")),
        }
    }
}

/// A text that names no [`Mode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no computing mode: choose f32, bf16, int8, act:K (K = 2 to 8 bits, blocks of 32) or act:K:token (one scale a token)"
)]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        let unknown = || UnknownMode(text.to_owned());
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => {
                let rounding = text.strip_prefix("act:").ok_or_else(unknown)?;
                let (bits, group) = match rounding.strip_suffix(":token") {
                    Some(bits) => (bits, Group::Token),
                    None => (rounding, Group::Block),
                };
                let digit = bits.len() == 1;
                let bits =
                    bits.parse().ok().filter(|bits| digit && (2..=8).contains(bits)).ok_or_else(unknown)?;
                Ok(Self::Activations(Rounding { bits, group }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_read_as_it_is_written() {
        let mut modes = vec![Mode::F32, Mode::Bf16, Mode::Int8];
        for bits in 2..=8 {
            for group in [Group::Block, Group::Token] {
                modes.push(Mode::Activations(Rounding { bits, group }));
            }
        }
        for mode in modes {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        for text in ["", "f16", "act", "act:", "act:1", "act:9", "act:+4", "act:4:block", "act:44", "INT8"] {
            assert_eq!(text.parse::<Mode>(), Err(UnknownMode(text.to_owned())));
        }
    }

    #[test]
    fn rounded_activations_are_multiples_of_the_scale_and_near() {
        let x: Vec<f32> = (0..100).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
        for bits in 2..=8 {
            for (group, size) in [(Group::Block, 32), (Group::Token, 100)] {
                let mut rounded = x.clone();
                Rounding { bits, group }.apply(&mut rounded);
                for (x, rounded) in x.chunks(size).zip(rounded.chunks(size)) {
                    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                    let scale = largest / f32::from((1i16 << (bits - 1)) - 1);
                    for (x, rounded) in x.iter().zip(rounded) {
                        assert!((x - rounded).abs() <= 0.5001 * scale, "{bits} bits: {x} became {rounded}");
                        assert_eq!((rounded / scale).round() * scale, *rounded);
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_nan_is_not_hidden() {
        let mut x = [0.0; 40];
        Rounding::EIGHT.apply(&mut x);
        assert_eq!(x, [0.0; 40]);
        for bad in [f32::NAN, f32::INFINITY] {
            for place in [0, 7, 31] {
                let mut x = [1.0; 32];
                x[place] = bad;
                Rounding::EIGHT.apply(&mut x);
                assert!(x.iter().any(|x| x.is_nan()), "{bad} at {place}");
            }
        }
    }
}
