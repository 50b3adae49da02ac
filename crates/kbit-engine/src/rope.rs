//! Rotary position embedding (Su et al. 2021): tables of sines and cosines, and turning queries and keys by them.
//!
//! Angles are computed in double precision and rounded once. Scaling follows Peng et al. 2023 and Ding et al. 2024, and Hugging
//! Face transformers' `modeling_rope_utils.py` where those leave a choice.

use crate::{EngineError, Kernels};
use kbit_models::description::{Rope, RopeScaling, RopeStyle};

/// Rotary positions and the tensors that they are made with.
#[derive(Debug)]
pub(crate) struct RopeTensors {
    pub(crate) rope: Rope,
    /// `[dims / 2]`, divide the frequencies.
    pub(crate) factors: Option<Vec<f32>>,
    /// The same in contexts longer than the original one.
    pub(crate) long_factors: Option<Vec<f32>>,
}

/// What a position turns each pair of dimensions by.
#[derive(Debug)]
pub(crate) struct Rotation {
    style: RopeStyle,
    /// First dimension of a head that turns.
    first: usize,
    /// Angle of each pair at position 1.
    frequencies: Vec<f64>,
    /// Factor on sine and cosine.
    magnitude: f64,
}

/// Cosine and sine of every pair, for positions from 0 on.
#[derive(Debug, Default)]
pub(crate) struct Angles {
    /// `[positions][pairs]`.
    cosines: Vec<f32>,
    /// `[positions][pairs]`.
    sines: Vec<f32>,
}

impl Rotation {
    /// The rotation in a context of up to `context` tokens: some scalings begin past the original length, and keys that
    /// are stored cannot be turned again.
    #[expect(clippy::cast_precision_loss, reason = "dimensions and contexts are far below 2^53")]
    pub(crate) fn new(tensors: &RopeTensors, context: usize) -> Self {
        let rope = &tensors.rope;
        let dims = rope.dims as f64;
        let mut base = f64::from(rope.base);
        let (mut factors, mut magnitude) = (&tensors.factors, 1.0);
        match &rope.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => {}
            RopeScaling::Yarn { attention, .. } => magnitude = f64::from(*attention),
            RopeScaling::Dynamic { factor, original_context } => {
                let growth = context.max(*original_context) as f64 / *original_context as f64;
                let factor = f64::from(*factor);
                base *= (factor * growth - (factor - 1.0)).powf(dims / (dims - 2.0).max(1.0));
            }
            RopeScaling::LongRope { original_context, attention, .. } => {
                magnitude = f64::from(*attention);
                if context > *original_context {
                    factors = &tensors.long_factors;
                }
            }
        }
        let frequencies = (0..rope.dims / 2)
            .map(|pair| {
                let frequency = base.powf(-2.0 * pair as f64 / dims);
                let frequency = factors.as_ref().map_or(frequency, |f| frequency / f64::from(f[pair]));
                scaled(rope, pair, frequency)
            })
            .collect();
        Self { style: rope.style, first: rope.first, frequencies, magnitude }
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
        let have = angles.cosines.len() / self.pairs().max(1);
        let Some(more) = positions.checked_sub(have).filter(|&more| more > 0) else { return Ok(()) };
        let entries = more.saturating_mul(self.pairs());
        for table in [&mut angles.cosines, &mut angles.sines] {
            table
                .try_reserve(entries)
                .map_err(|_| EngineError::OutOfMemory { bytes: entries.saturating_mul(size_of::<f32>()) })?;
        }
        for position in have..positions {
            for frequency in &self.frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                angles.cosines.push((cos * self.magnitude) as f32);
                angles.sines.push((sin * self.magnitude) as f32);
            }
        }
        Ok(())
    }

    /// Turns every head of `width` dimensions in `x` `[heads * width]` to `position`.
    pub(crate) fn apply(
        &self,
        kernels: Kernels,
        angles: &Angles,
        position: usize,
        x: &mut [f32],
        width: usize,
    ) {
        let turns = position * self.pairs()..(position + 1) * self.pairs();
        let angles = (&angles.cosines[turns.clone()], &angles.sines[turns]);
        kernels.rotate(x, width, self.first, self.style == RopeStyle::Adjacent, angles);
    }
}

/// The frequency of a pair after scaling.
#[expect(clippy::cast_precision_loss, reason = "dimensions and contexts are far below 2^53")]
fn scaled(rope: &Rope, pair: usize, frequency: f64) -> f64 {
    match rope.scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. } => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Yarn {
            factor,
            original_context,
            extrapolation,
            beta_fast,
            beta_slow,
            whole_pairs,
            ..
        } => {
            let dims = rope.dims as f64;
            // The pair that turns `rotations` times over the original context.
            let pair_of = |rotations: f32| {
                dims * (original_context as f64 / (f64::from(rotations) * 2.0 * std::f64::consts::PI)).ln()
                    / (2.0 * f64::from(rope.base).ln())
            };
            let (low, high) = (pair_of(beta_fast), pair_of(beta_slow));
            let (low, high) = if whole_pairs { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(dims - 1.0));
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
        Rope { dims: 4, first: 0, base: 100.0, style, scaling, factors: None }
    }

    fn rotation(rope: Rope, factors: Option<Vec<f32>>) -> Rotation {
        Rotation::new(&RopeTensors { rope, factors, long_factors: None }, 1)
    }

    fn turn(rotation: &Rotation, position: usize, x: [f32; 5]) -> [f32; 5] {
        let mut angles = Angles::default();
        rotation.extend(&mut angles, 3).unwrap();
        rotation.extend(&mut angles, position + 1).unwrap();
        let mut x = x;
        rotation.apply(Kernels::best(), &angles, position, &mut x, 5);
        x
    }

    #[test]
    fn pairs_turn_by_their_frequency_and_the_rest_stays() {
        // Frequencies are 1 and 1/10.
        let (sin, cos) = 7.0_f32.sin_cos();
        let (slow_sin, slow_cos) = 0.7_f32.sin_cos();
        let adjacent = rotation(rope(RopeStyle::Adjacent, RopeScaling::None), None);
        let halves = rotation(rope(RopeStyle::Halves, RopeScaling::None), None);
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
        let plain = rotation(rope(RopeStyle::Halves, RopeScaling::Linear { factor: 4.0 }), None);
        let by_factors = rotation(rope(RopeStyle::Halves, RopeScaling::None), Some(vec![4.0, 4.0]));
        assert_eq!(plain.frequencies, by_factors.frequencies);
        assert!((plain.frequencies[0] - 0.25).abs() < 1e-12 && (plain.frequencies[1] - 0.025).abs() < 1e-12);
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_interpolates_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            extrapolation: 1.0,
            attention: 1.1,
            beta_fast: 32.0,
            beta_slow: 1.0,
            whole_pairs: true,
        };
        let rope =
            Rope { dims: 64, first: 0, base: 10000.0, style: RopeStyle::Adjacent, scaling, factors: None };
        let rotation = rotation(rope, None);
        assert!((rotation.frequencies[0] - 1.0).abs() < 1e-12);
        let last = 10000f64.powf(-62.0 / 64.0) / 4.0;
        assert!((rotation.frequencies[31] - last).abs() < 1e-15);
        assert!((rotation.magnitude - 1.1).abs() < 1e-6);
    }

    #[test]
    fn some_scalings_begin_past_the_original_context() {
        let scaling = RopeScaling::Dynamic { factor: 2.0, original_context: 64 };
        let plain = rotation(rope(RopeStyle::Halves, RopeScaling::None), None);
        let at = |scaling: &RopeScaling, context| {
            let tensors = RopeTensors {
                rope: rope(RopeStyle::Halves, scaling.clone()),
                factors: Some(vec![1.0, 1.0]),
                long_factors: Some(vec![1.0, 8.0]),
            };
            Rotation::new(&tensors, context).frequencies
        };
        assert_eq!(at(&scaling, 64), plain.frequencies);
        // The base grows by (2 * 128 / 64 - 1)^(4 / 2) = 9.
        assert!((at(&scaling, 128)[1] - 900f64.powf(-0.5)).abs() < 1e-12);
        let scaling =
            RopeScaling::LongRope { original_context: 64, attention: 1.0, long_factors: "long".to_owned() };
        assert_eq!(at(&scaling, 64), plain.frequencies);
        assert!((at(&scaling, 65)[1] - plain.frequencies[1] / 8.0).abs() < 1e-12);
    }

    #[test]
    fn dimensions_before_the_first_stay() {
        let rope = Rope { dims: 2, first: 3, ..rope(RopeStyle::Halves, RopeScaling::None) };
        let got = turn(&rotation(rope, None), 2, [1.0, 2.0, 3.0, 1.0, 0.0]);
        assert_eq!(got[..3], [1.0, 2.0, 3.0]);
        assert!((got[3] - 2f32.cos()).abs() < 1e-6 && (got[4] - 2f32.sin()).abs() < 1e-6);
    }
}
