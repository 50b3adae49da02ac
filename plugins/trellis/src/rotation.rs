//! The rotation that makes rows incoherent: random signs and Walsh-Hadamard transforms.
//!
//! One transform takes 2^n numbers. A row of other lengths is covered by two that overlap, over its first and its last 2^n columns,
//! 2^n being the largest power of two that fits: each is orthonormal, so their product is, and no column stays by itself.

use crate::arch::Kernels;

/// A rotation of rows of some length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    seed: u64,
    cols: usize,
    /// Signs of the first transform, as sign bits of single precision; their number is the length of a transform.
    first: Vec<u32>,
    /// Those of the second; empty where one transform takes the whole row.
    second: Vec<u32>,
}

impl Rotation {
    /// The rotation of rows of `cols` numbers (at least one) that belongs to `seed`.
    pub(crate) fn new(cols: usize, seed: u64) -> Self {
        let run = 1usize << cols.max(1).ilog2();
        let mut state = seed;
        let mut signs = |count: usize| -> Vec<u32> {
            let mut signs = Vec::with_capacity(count);
            while signs.len() < count {
                let bits = split_mix(&mut state);
                signs.extend((0..64.min(count - signs.len())).map(|i| ((bits >> i & 1) as u32) << 31));
            }
            signs
        };
        let first = signs(run);
        let second = if run == cols { Vec::new() } else { signs(run) };
        Self { seed, cols, first, second }
    }

    /// The seed that it belongs to.
    pub(crate) const fn seed(&self) -> u64 {
        self.seed
    }

    /// Rotates a row.
    pub(crate) fn apply(&self, kernels: Kernels, row: &mut [f32]) {
        let (run, cols) = (self.first.len(), self.cols);
        flip(&mut row[..run], &self.first);
        kernels.hadamard(&mut row[..run]);
        if !self.second.is_empty() {
            flip(&mut row[cols - run..], &self.second);
            kernels.hadamard(&mut row[cols - run..]);
        }
    }

    /// Rotates a row back.
    pub(crate) fn undo(&self, kernels: Kernels, row: &mut [f32]) {
        let (run, cols) = (self.first.len(), self.cols);
        if !self.second.is_empty() {
            kernels.hadamard(&mut row[cols - run..]);
            flip(&mut row[cols - run..], &self.second);
        }
        kernels.hadamard(&mut row[..run]);
        flip(&mut row[..run], &self.first);
    }
}

fn flip(row: &mut [f32], signs: &[u32]) {
    for (value, sign) in row.iter_mut().zip(signs) {
        *value = f32::from_bits(value.to_bits() ^ sign);
    }
}

/// The next number of `SplitMix64` (Steele, Lea and Flood 2014).
pub(crate) const fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::testing::gaussian;

    #[test]
    fn undoing_gives_the_row_back_and_lengths_stay() {
        for cols in [32, 64, 96, 576, 1536, 2048] {
            let row = gaussian(cols);
            let rotation = Rotation::new(cols, 7);
            for kernels in Kernels::all() {
                let mut rotated = row.clone();
                rotation.apply(kernels, &mut rotated);
                let square = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                // Each of the 2 * 11 stages rounds once: far below 1e-5.
                assert!((square(&rotated) / square(&row) - 1.0).abs() < 1e-5, "{cols}");
                rotation.undo(kernels, &mut rotated);
                let worst = row.iter().zip(&rotated).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{cols}: {worst}");
            }
        }
    }

    #[test]
    fn one_outlier_is_spread_over_the_row() {
        for cols in [64, 576, 1536] {
            for at in [0, cols / 2, cols - 1] {
                let mut row = vec![0.0; cols];
                row[at] = 1.0;
                Rotation::new(cols, 3).apply(Kernels::best(), &mut row);
                let run = 1usize << cols.ilog2();
                let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                // Through one transform it becomes 1 / sqrt(run) everywhere; the second makes sums of those, of either sign.
                assert!(largest <= 6.0 / (run as f32).sqrt(), "{cols}, {at}: {largest}");
            }
        }
    }

    #[test]
    fn seeds_have_signs_of_their_own() {
        assert_ne!(Rotation::new(576, 1), Rotation::new(576, 2));
        assert_eq!(Rotation::new(576, 1), Rotation::new(576, 1));
        let up = Rotation::new(4096, 1).first.iter().filter(|sign| **sign == 0).count();
        assert!((1920..2176).contains(&up), "{up} of 4096 signs are positive");
    }
}
