//! Blocks of weights, and importance, that look for differences between two encoders: what models hold, and what sits on the
//! edges of rounding.

use crate::random::Random;

/// How the weights of a block are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Normal.
    Gaussian,
    /// Student's t with 2 degrees of freedom: a few weights dominate.
    HeavyTailed,
    /// Normal, rounded to bf16, as most checkpoints are.
    Bf16Rounded,
    /// Mostly zeros of both signs.
    Sparse,
    /// Few distinct values, so that searches meet ties.
    Tied,
    /// Powers of two, and small multiples of one, off by a few units in the last place.
    NearPowersOfTwo,
    /// Subnormal numbers, and some above them.
    Denormal,
    /// One value.
    Constant,
}

impl Distribution {
    /// All.
    pub const ALL: [Self; 8] = [
        Self::Gaussian,
        Self::HeavyTailed,
        Self::Bf16Rounded,
        Self::Sparse,
        Self::Tied,
        Self::NearPowersOfTwo,
        Self::Denormal,
        Self::Constant,
    ];

    /// Fills a block with finite weights of about `scale`.
    pub fn fill(self, random: &mut Random, scale: f64, block: &mut [f32]) {
        match self {
            Self::Gaussian => fill(block, || random.normal() * scale),
            Self::HeavyTailed => fill(block, || {
                let chi_squared = -2.0 * (1.0 - random.uniform()).ln();
                random.normal() / (chi_squared / 2.0).sqrt().max(1e-4) * scale
            }),
            Self::Bf16Rounded => {
                fill(block, || random.normal() * scale);
                for weight in block {
                    *weight = bf16_rounded(*weight);
                }
            }
            Self::Sparse => {
                let zeros = [0.5, 0.9, 0.98][random.below(3)];
                fill(
                    block,
                    || {
                        if random.chance(zeros) { sign(random) * 0.0 } else { random.normal() * scale }
                    },
                );
            }
            Self::Tied => {
                let levels: Vec<f64> = (0..=random.below(8)).map(|_| random.normal() * scale).collect();
                fill(block, || sign(random) * levels[random.below(levels.len())]);
            }
            Self::NearPowersOfTwo => {
                let exponent = scale.abs().log2().floor() as i32;
                let multiples = random.chance(0.5);
                fill(block, || {
                    if multiples {
                        (random.below(33) as f64 / 2.0 - 8.0) * 2f64.powi(exponent)
                    } else {
                        sign(random) * 2f64.powi(exponent - random.below(6) as i32)
                    }
                });
                for weight in block {
                    let off = random.below(5) as u32;
                    if *weight != 0.0 {
                        *weight = f32::from_bits(weight.to_bits() + off - 2);
                    }
                }
            }
            Self::Denormal => {
                let above = random.below(16);
                for weight in block {
                    let magnitude = random.bits() as u32 & 0x007F_FFFF;
                    let magnitude = magnitude >> random.below(24);
                    let raised = if random.below(16) < above { random.below(24) as u32 } else { 0 };
                    *weight = f32::from_bits(magnitude | raised << 23 | (random.bits() as u32 & 0x8000_0000));
                }
            }
            Self::Constant => {
                let value = [random.normal() * scale, 0.0, -0.0, scale][random.below(4)];
                fill(block, || value);
            }
        }
    }

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gaussian => "Gaussian",
            Self::HeavyTailed => "heavy-tailed",
            Self::Bf16Rounded => "bf16-rounded",
            Self::Sparse => "sparse",
            Self::Tied => "tied",
            Self::NearPowersOfTwo => "near powers of two",
            Self::Denormal => "denormal",
            Self::Constant => "constant",
        }
    }
}

/// What the importance of the columns looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportanceKind {
    /// Mean squares of normal activations.
    MeanSquares,
    /// Mean squares, a third of them 0: inputs that are never active.
    SomeZeros,
    /// From 1e-18 to 1e12.
    HugeSpread,
    /// All 0.
    Zeros,
    /// All equal.
    Equal,
}

impl ImportanceKind {
    /// All.
    pub const ALL: [Self; 5] =
        [Self::MeanSquares, Self::SomeZeros, Self::HugeSpread, Self::Zeros, Self::Equal];

    /// Importance of `cols` columns: finite, not negative.
    pub fn columns(self, random: &mut Random, cols: usize) -> Vec<f32> {
        let equal = random.between(0.1, 4.0);
        let mean_square = |random: &mut Random| {
            let spread = 0.25 + 2.0 * random.uniform();
            (0..4).map(|_| (random.normal() * spread).powi(2)).sum::<f64>() / 4.0
        };
        (0..cols)
            .map(|_| match self {
                Self::MeanSquares => mean_square(random),
                Self::SomeZeros if random.chance(1.0 / 3.0) => 0.0,
                Self::SomeZeros => mean_square(random),
                Self::HugeSpread => 10f64.powf(random.between(-18.0, 12.0)),
                Self::Zeros => 0.0,
                Self::Equal => equal,
            } as f32)
            .collect()
    }

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MeanSquares => "mean squares",
            Self::SomeZeros => "mean squares and zeros",
            Self::HugeSpread => "huge spread",
            Self::Zeros => "zeros",
            Self::Equal => "equal",
        }
    }
}

/// Rows of weights with what they were made of.
pub struct Rows {
    /// `[rows, cols]`, row-major, finite.
    pub weights: Vec<f32>,
    /// Columns.
    pub cols: usize,
    /// One a block.
    pub distributions: Vec<Distribution>,
}

/// `rows` rows of `blocks` blocks of `block` weights. Half of them mix distributions from block to block, and a few have scales
/// across the whole range of f32.
pub fn rows(random: &mut Random, rows: usize, blocks: usize, block: usize) -> Rows {
    let extreme = random.chance(0.03);
    let mixed = random.chance(0.5);
    let draw = |random: &mut Random| Distribution::ALL[random.below(Distribution::ALL.len())];
    let draw_scale = |random: &mut Random| {
        let exponent = if extreme { random.between(-126.0, 100.0) } else { random.between(-10.0, 3.0) };
        exponent.exp2()
    };
    let mut weights = vec![0.0; rows * blocks * block];
    let (mut distribution, mut scale) = (draw(random), draw_scale(random));
    let mut distributions = Vec::with_capacity(rows * blocks);
    for weights in weights.chunks_mut(block) {
        if mixed {
            (distribution, scale) = (draw(random), draw_scale(random));
        }
        distribution.fill(random, scale, weights);
        distributions.push(distribution);
    }
    Rows { weights, cols: blocks * block, distributions }
}

fn fill(block: &mut [f32], mut draw: impl FnMut() -> f64) {
    block.fill_with(|| draw() as f32);
}

fn sign(random: &mut Random) -> f64 {
    if random.chance(0.5) { 1.0 } else { -1.0 }
}

/// To bf16 and back, ties to even; `weight` is finite and far from the largest.
pub fn bf16_rounded(weight: f32) -> f32 {
    let bits = weight.to_bits();
    f32::from_bits((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000)
}

#[cfg(test)]
mod tests {
    use super::{Distribution, ImportanceKind, bf16_rounded, rows};
    use crate::random::Random;

    #[test]
    fn blocks_are_finite_and_repeat() {
        for distribution in Distribution::ALL {
            for scale in [2f64.powi(-126), 0.01, 2f64.powi(100)] {
                let draw = || {
                    let mut block = [f32::NAN; 256];
                    distribution.fill(&mut Random::new(&[3]), scale, &mut block);
                    block
                };
                let block = draw();
                assert!(block.iter().all(|weight| weight.is_finite()), "{distribution:?} {scale}");
                assert_eq!(block.map(f32::to_bits), draw().map(f32::to_bits));
            }
        }
    }

    #[test]
    fn distributions_are_what_they_say() {
        let draw = |distribution: Distribution| {
            let mut block = [0f32; 256];
            distribution.fill(&mut Random::new(&[5]), 1.0, &mut block);
            block
        };
        let distinct = |block: [f32; 256]| {
            let mut bits = block.map(|weight| weight.abs().to_bits()).to_vec();
            bits.sort_unstable();
            bits.dedup();
            bits.len()
        };
        assert!(draw(Distribution::Bf16Rounded).iter().all(|weight| weight.to_bits() & 0xFFFF == 0));
        assert!(draw(Distribution::Sparse).iter().filter(|weight| **weight == 0.0).count() > 90);
        assert!(distinct(draw(Distribution::Tied)) <= 8);
        assert_eq!(distinct(draw(Distribution::Constant)), 1);
        assert!(draw(Distribution::Denormal).iter().any(|weight| weight.is_subnormal()));
        let largest = draw(Distribution::HeavyTailed).iter().fold(0f32, |max, weight| max.max(weight.abs()));
        assert!(largest > 5.0, "{largest}");
    }

    #[test]
    fn importance_is_a_mean_square() {
        for kind in ImportanceKind::ALL {
            let columns = kind.columns(&mut Random::new(&[1]), 512);
            assert!(columns.iter().all(|value| value.is_finite() && *value >= 0.0), "{kind:?}");
        }
        let zeros = ImportanceKind::SomeZeros.columns(&mut Random::new(&[1]), 512);
        assert!(zeros.contains(&0.0) && zeros.iter().any(|value| *value > 0.0));
    }

    #[test]
    fn rows_are_whole_blocks() {
        for seed in 0..200 {
            let rows = rows(&mut Random::new(&[seed]), 3, 2, 32);
            assert_eq!((rows.weights.len(), rows.cols, rows.distributions.len()), (192, 64, 6));
            assert!(rows.weights.iter().all(|weight| weight.is_finite()));
        }
    }

    #[test]
    fn bf16_rounds_ties_to_even() {
        assert_eq!(bf16_rounded(f32::from_bits(0x3F80_8000)).to_bits(), 0x3F80_0000);
        assert_eq!(bf16_rounded(f32::from_bits(0x3F81_8000)).to_bits(), 0x3F82_0000);
        assert_eq!(bf16_rounded(f32::from_bits(0x3F80_8001)).to_bits(), 0x3F81_0000);
    }
}
