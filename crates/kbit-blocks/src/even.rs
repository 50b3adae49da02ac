//! Blocks whose weights lie on even levels, for encoders that choose codes themselves, as those with error feedback do.
//!
//! In each part of such a block a weight is `code * step + least`. An encoder of [`Kernels`](crate::Kernels) fits the steps to some
//! weights; [`set_codes`] puts other codes in the place of those that it chose.
//!
//! ```
//! use kbit_blocks::{EvenLevels, LevelStep};
//! use kbit_types::GgmlType;
//!
//! let levels = EvenLevels::of(GgmlType::Q4_0).unwrap();
//! let row: Vec<f32> = (0u8..32).map(|i| f32::from(i) - 16.0).collect();
//! let mut block = [0; 18];
//! kbit_blocks::encode_row_range(GgmlType::Q4_0, &row, 32, None, &mut block)?;
//! let mut steps = [LevelStep::default(); 1];
//! levels.steps(&block, &mut steps);
//! assert_eq!(steps[0], LevelStep { step: 2.0, least: -16.0 });
//! levels.set_codes(&mut block, &[15; 32]);
//! kbit_blocks::decode(GgmlType::Q4_0, &block, &mut [0.0; 32])?;
//! # Ok::<(), kbit_blocks::BlockError>(())
//! ```

use crate::block::{Block, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
use kbit_types::GgmlType;

/// The levels of a part: a weight is `code * step + least`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LevelStep {
    /// Distance of two levels; negative where larger codes stand for smaller weights, 0 where all weights are `least`.
    pub step: f32,
    /// The weight of code 0.
    pub least: f32,
}

/// A block of even levels.
pub(crate) trait Even: Block {
    /// Weights of a part.
    const PART: usize;
    /// The largest code.
    const MOST: u8;
    /// The levels of part `part`.
    fn level_step(&self, part: usize) -> LevelStep;
    /// The same block with these codes, one a weight.
    fn with_codes(&self, codes: &[u8]) -> Self;
}

/// The codes of a block as an array.
pub(crate) fn whole<const N: usize>(codes: &[u8]) -> &[u8; N] {
    &codes.as_chunks().0[0]
}

/// How the blocks of a type with even levels are made.
#[derive(Clone, Copy, Debug)]
pub struct EvenLevels {
    /// Type.
    pub ty: GgmlType,
    /// Weights of a block.
    pub block: usize,
    /// Weights that share levels; a block is whole parts.
    pub part: usize,
    /// The largest code.
    pub most: u8,
    steps: fn(&[u8], &mut [LevelStep]),
    set_codes: fn(&mut [u8], &[u8]),
}

impl EvenLevels {
    /// Those of a type; `None` where its levels are not even, or there are no codes.
    #[must_use]
    pub fn of(ty: GgmlType) -> Option<Self> {
        const fn of<B: Even>(ty: GgmlType) -> EvenLevels {
            EvenLevels {
                ty,
                block: ty.block_elements() as usize,
                part: B::PART,
                most: B::MOST,
                steps: steps::<B>,
                set_codes: set_codes::<B>,
            }
        }
        Some(match ty {
            GgmlType::Q4_0 => of::<Q4_0>(ty),
            GgmlType::Q4_1 => of::<Q4_1>(ty),
            GgmlType::Q5_0 => of::<Q5_0>(ty),
            GgmlType::Q5_1 => of::<Q5_1>(ty),
            GgmlType::Q8_0 => of::<Q8_0>(ty),
            GgmlType::Q2_K => of::<Q2_K>(ty),
            GgmlType::Q3_K => of::<Q3_K>(ty),
            GgmlType::Q4_K => of::<Q4_K>(ty),
            GgmlType::Q5_K => of::<Q5_K>(ty),
            GgmlType::Q6_K => of::<Q6_K>(ty),
            _ => return None,
        })
    }

    /// Parts of a block.
    #[must_use]
    pub const fn parts(&self) -> usize {
        self.block / self.part
    }

    /// The levels of each part of `block`.
    ///
    /// # Panics
    /// If `block` is not the bytes of one block, or `out` not one for each part.
    pub fn steps(&self, block: &[u8], out: &mut [LevelStep]) {
        (self.steps)(block, out);
    }

    /// Writes `codes`, one for each weight, into `block`.
    ///
    /// # Panics
    /// If `block` is not the bytes of one block, there is not a code for each weight, or one is larger than [`EvenLevels::most`].
    pub fn set_codes(&self, block: &mut [u8], codes: &[u8]) {
        (self.set_codes)(block, codes);
    }
}

fn steps<B: Even>(block: &[u8], out: &mut [LevelStep]) {
    let block: B = bytemuck::pod_read_unaligned(block);
    assert_eq!(out.len() * B::PART, size_of::<B::Weights>() / size_of::<f32>(), "one for each part");
    for (part, out) in out.iter_mut().enumerate() {
        *out = block.level_step(part);
    }
}

fn set_codes<B: Even>(block: &mut [u8], codes: &[u8]) {
    assert_eq!(codes.len(), size_of::<B::Weights>() / size_of::<f32>(), "one for each weight");
    assert!(codes.iter().all(|code| *code <= B::MOST), "codes above the largest");
    let old: B = bytemuck::pod_read_unaligned(block);
    block.copy_from_slice(bytemuck::bytes_of(&old.with_codes(codes)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, encode_row_range};

    const TYPES: [GgmlType; 10] = [
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2_K,
        GgmlType::Q3_K,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];

    /// Weights of no pattern, from about -1 to 1.
    fn weights(count: u32) -> Vec<f32> {
        (0..count).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32) / 8_388_608.0 - 1.0).collect()
    }

    #[test]
    fn any_codes_decode_to_their_levels() {
        for ty in TYPES {
            let levels = EvenLevels::of(ty).unwrap();
            let x = weights(levels.block as u32);
            let mut block = vec![0; ty.block_bytes() as usize];
            encode_row_range(ty, &x, levels.block, None, &mut block).unwrap();
            let mut steps = vec![LevelStep::default(); levels.parts()];
            levels.steps(&block, &mut steps);
            // Every code in every part.
            for shift in 0..=levels.most {
                let most = usize::from(levels.most);
                let codes: Vec<u8> =
                    (0..levels.block).map(|i| ((i + usize::from(shift)) % (most + 1)) as u8).collect();
                levels.set_codes(&mut block, &codes);
                let mut after = vec![LevelStep::default(); levels.parts()];
                levels.steps(&block, &mut after);
                assert_eq!(after, steps, "{ty}");
                let mut back = vec![0.0; levels.block];
                decode(ty, &block, &mut back).unwrap();
                for (index, (back, code)) in back.iter().zip(&codes).enumerate() {
                    let LevelStep { step, least } = steps[index / levels.part];
                    let level = f32::from(*code) * step + least;
                    // Both are two roundings away from the exact level, whose terms are at most twice the largest level.
                    let bound = 4.0 * f32::EPSILON * (least.abs() + step.abs() * f32::from(levels.most));
                    assert!((back - level).abs() <= bound, "{ty}, weight {index}: {back}, not {level}");
                }
            }
        }
    }

    #[test]
    fn the_codes_of_an_encoder_are_the_nearest_levels() {
        for ty in TYPES {
            let levels = EvenLevels::of(ty).unwrap();
            let x = weights(levels.block as u32);
            let mut block = vec![0; ty.block_bytes() as usize];
            encode_row_range(ty, &x, levels.block, None, &mut block).unwrap();
            let mut back = vec![0.0; levels.block];
            decode(ty, &block, &mut back).unwrap();
            let mut steps = vec![LevelStep::default(); levels.parts()];
            levels.steps(&block, &mut steps);
            let codes: Vec<u8> = x
                .iter()
                .enumerate()
                .map(|(index, x)| {
                    let LevelStep { step, least } = steps[index / levels.part];
                    ((x - least) / step).round().clamp(0.0, levels.most.into()) as u8
                })
                .collect();
            levels.set_codes(&mut block, &codes);
            let mut nearest = vec![0.0; levels.block];
            decode(ty, &block, &mut nearest).unwrap();
            let error = |back: &[f32]| x.iter().zip(back).map(|(x, back)| (x - back).powi(2)).sum::<f32>();
            assert!(error(&nearest) <= error(&back) * 1.000_01, "{ty}");
        }
    }

    #[test]
    fn types_with_grids_have_no_even_levels() {
        for ty in [GgmlType::IQ3_S, GgmlType::IQ4_NL, GgmlType::F16, GgmlType::TQ1_0, GgmlType::MXFP4] {
            assert!(EvenLevels::of(ty).is_none(), "{ty}");
        }
    }

    #[test]
    #[should_panic(expected = "above the largest")]
    fn codes_above_the_largest_are_refused() {
        EvenLevels::of(GgmlType::Q4_0).unwrap().set_codes(&mut [0; 18], &[16; 32]);
    }
}
