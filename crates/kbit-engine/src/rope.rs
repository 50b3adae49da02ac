//! Rotary position embedding (Su et al. 2021): tables of sines and cosines, and turning queries and keys by them.
//!
//! Angles are computed in double precision and rounded once. Scaling follows `rope_yarn` and `ggml_rope_yarn_corr_dim`
//! of ggml (`ggml-cpu/ops.cpp`), which implement Peng et al. 2023.

use crate::EngineError;
use kbit_models::description::{Rope, RopeScaling, RopeStyle};

/// What a position turns each pair of dimensions by.
#[derive(Debug)]
pub(crate) struct Rotation {
    style: RopeStyle,
    /// Angle of each pair at position 1.
    frequencies: Vec<f64>,
    /// Factor on sine and cosine.
    magnitude: f64,
}

/// Cosine and sine of every pair, for positions from 0 on.
#[derive(Debug, Default)]
pub(crate) struct Angles {
    /// `[positions][pairs]` of (cosine, sine).
    table: Vec<(f32, f32)>,
}

impl Rotation {
    /// `factors` `[dims / 2]` divide the frequencies.
    pub(crate) fn new(rope: &Rope, factors: Option<&[f32]>) -> Self {
        let base = f64::from(rope.base);
        #[expect(clippy::cast_precision_loss, reason = "dimensions are far below 2^53")]
        let frequencies = (0..rope.dims / 2)
            .map(|pair| {
                let frequency = base.powf(-2.0 * pair as f64 / rope.dims as f64);
                let frequency = factors.map_or(frequency, |factors| frequency / f64::from(factors[pair]));
                scaled(rope, pair, frequency)
            })
            .collect();
        let magnitude = match rope.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
            RopeScaling::Yarn { factor, attention, extrapolation, .. } => {
                let own = if extrapolation == 0.0 { 1.0 } else { 1.0 + 0.1 * f64::from(factor).ln() };
                f64::from(attention) * own
            }
        };
        Self { style: rope.style, frequencies, magnitude }
    }

    fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Makes `angles` reach up to `positions`.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "angles are rounded once"
    )]
    pub(crate) fn extend(&self, angles: &mut Angles, positions: usize) -> Result<(), EngineError> {
        let have = angles.table.len() / self.pairs().max(1);
        let Some(more) = positions.checked_sub(have).filter(|&more| more > 0) else { return Ok(()) };
        let entries = more.saturating_mul(self.pairs());
        angles
            .table
            .try_reserve(entries)
            .map_err(|_| EngineError::OutOfMemory { bytes: entries.saturating_mul(8) })?;
        for position in have..positions {
            angles.table.extend(self.frequencies.iter().map(|frequency| {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                ((cos * self.magnitude) as f32, (sin * self.magnitude) as f32)
            }));
        }
        Ok(())
    }

    /// Turns every head of `width` dimensions in `x` `[heads * width]` to `position`.
    pub(crate) fn apply(&self, angles: &Angles, position: usize, x: &mut [f32], width: usize) {
        let pairs = self.pairs();
        let turns = &angles.table[position * pairs..][..pairs];
        for head in x.chunks_exact_mut(width) {
            match self.style {
                RopeStyle::Adjacent => {
                    for ([a, b], &(cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
                RopeStyle::Halves => {
                    let (first, second) = head.split_at_mut(pairs);
                    for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
            }
        }
    }
}

/// The frequency of a pair after scaling.
#[expect(clippy::cast_precision_loss, reason = "dimensions and contexts are far below 2^53")]
fn scaled(rope: &Rope, pair: usize, frequency: f64) -> f64 {
    match rope.scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Yarn { factor, original_context, extrapolation, beta_fast, beta_slow, .. } => {
            let dims = rope.dims as f64;
            // The pair that turns `rotations` times over the original context.
            let pair_of = |rotations: f32| {
                dims * (original_context as f64 / (f64::from(rotations) * 2.0 * std::f64::consts::PI)).ln()
                    / (2.0 * f64::from(rope.base).ln())
            };
            let low = pair_of(beta_fast).floor().max(0.0);
            let high = pair_of(beta_slow).ceil().min(dims - 1.0);
            let ramp = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            let extrapolated = (1.0 - ramp) * f64::from(extrapolation);
            frequency / f64::from(factor) * (1.0 - extrapolated) + frequency * extrapolated
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(style: RopeStyle, scaling: RopeScaling) -> Rope {
        Rope { dims: 4, base: 100.0, style, scaling, factors: None }
    }

    fn turn(rotation: &Rotation, position: usize, x: [f32; 5]) -> [f32; 5] {
        let mut angles = Angles::default();
        rotation.extend(&mut angles, 3).unwrap();
        rotation.extend(&mut angles, position + 1).unwrap();
        let mut x = x;
        rotation.apply(&angles, position, &mut x, 5);
        x
    }

    #[test]
    fn pairs_turn_by_their_frequency_and_the_rest_stays() {
        // Frequencies are 1 and 1/10.
        let (sin, cos) = 7.0_f32.sin_cos();
        let (slow_sin, slow_cos) = 0.7_f32.sin_cos();
        let adjacent = Rotation::new(&rope(RopeStyle::Adjacent, RopeScaling::None), None);
        let halves = Rotation::new(&rope(RopeStyle::Halves, RopeScaling::None), None);
        let expected = [cos, sin, 2.0 * slow_cos, 2.0 * slow_sin, 9.0];
        for (got, want) in turn(&adjacent, 7, [1.0, 0.0, 2.0, 0.0, 9.0]).iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let got = turn(&halves, 7, [1.0, 2.0, 0.0, 0.0, 9.0]);
        for (place, want) in [0, 2, 1, 3, 4].into_iter().zip(expected) {
            assert!((got[place] - want).abs() < 1e-6, "{} {want}", got[place]);
        }
    }

    #[test]
    fn factors_and_linear_scaling_divide_frequencies() {
        let plain = Rotation::new(&rope(RopeStyle::Halves, RopeScaling::Linear { factor: 4.0 }), None);
        let by_factors = Rotation::new(&rope(RopeStyle::Halves, RopeScaling::None), Some(&[4.0, 4.0]));
        assert_eq!(plain.frequencies, by_factors.frequencies);
        assert!((plain.frequencies[0] - 0.25).abs() < 1e-12 && (plain.frequencies[1] - 0.025).abs() < 1e-12);
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_interpolates_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            extrapolation: 1.0,
            attention: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
        };
        let rope = Rope { dims: 64, base: 10000.0, style: RopeStyle::Adjacent, scaling, factors: None };
        let rotation = Rotation::new(&rope, None);
        assert!((rotation.frequencies[0] - 1.0).abs() < 1e-12);
        let last = 10000f64.powf(-62.0 / 64.0) / 4.0;
        assert!((rotation.frequencies[31] - last).abs() < 1e-15);
        assert!((rotation.magnitude - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12);
    }
}
