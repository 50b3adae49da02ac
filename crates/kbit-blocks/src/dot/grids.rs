//! Products of the grid types. Integers are summed over a whole super-block, with the scales of its parts, so there is one float
//! sum from block to block.

use super::{Dot, float, integers};
use crate::block::{Half, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, Q8_K};
use crate::codebook;
use crate::iquants::even_signs;

type Levels = [i8; 256];

/// The integer sum of a super-block: the parts of 16 weights, each times its scale.
#[inline(always)]
fn scaled(levels: &Levels, y: &Q8_K, scale: impl Fn(usize) -> u8) -> i32 {
    let parts = levels.as_chunks::<16>().0.iter().zip(y.q.as_chunks::<16>().0);
    parts.enumerate().map(|(part, (levels, q))| i32::from(scale(part)) * integers(levels, q)).sum()
}

/// Magnitudes of a grid's point; a bit of `signs` that is set makes one negative.
#[inline(always)]
fn signed<const N: usize>(levels: &mut [i8; N], magnitudes: &[i8; N], signs: u8) {
    for (j, (level, magnitude)) in levels.iter_mut().zip(magnitudes).enumerate() {
        *level = if signs >> j & 1 != 0 { -magnitude } else { *magnitude };
    }
}

/// Levels by groups of `N` weights.
#[inline(always)]
fn by_groups<const N: usize>(fill: impl Fn(usize, &mut [i8; N])) -> Levels {
    let mut levels = [0; 256];
    for (group, levels) in levels.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        fill(group, levels);
    }
    levels
}

/// An odd scale of four bits: of the low half of a byte for even parts, of the high half for odd ones.
#[inline(always)]
fn odd(byte: u8, part: usize) -> u8 {
    2 * (byte >> (part % 2 * 4) & 15) + 1
}

/// Types with magnitudes and signs: the levels, the scale of 16 weights, and what the sum over the row is multiplied by.
macro_rules! grids {
    ($($block:ident $factor:literal: |$x:ident, $part:ident| $levels:expr, $scale:expr;)*) => {
        $(impl $block {
            /// Magnitudes of points with their signs.
            #[inline(always)]
            pub(crate) fn levels(&self) -> Levels {
                let $x = self;
                $levels
            }

            /// The scale of 16 weights, as an integer.
            #[inline(always)]
            pub(crate) fn scale_of_sixteen(&self, $part: usize) -> u8 {
                let $x = self;
                $scale
            }
        }

        impl Dot for $block {
            type Activations = Q8_K;
            type Sums = f32;

            #[inline(always)]
            fn add(&self, y: &Q8_K, sum: &mut f32) {
                let product = scaled(&self.levels(), y, |part| self.scale_of_sixteen(part));
                *sum += self.d.get() * y.scale() * float(product);
            }

            #[inline(always)]
            fn total(sum: f32) -> f32 {
                $factor * sum
            }
        })*
    };
}

grids! {
    IQ2_XXS 0.125: |x, part|
        by_groups(|group, levels| {
            let part = &x.parts[group / 4];
            let signs = even_signs(u32::from_le_bytes(part.signs_and_scale) >> (7 * (group % 4)));
            signed(levels, &codebook::IQ2_XXS_VALUES[usize::from(part.points[group % 4])], signs);
        }),
        2 * (x.parts[part / 2].signs_and_scale[3] >> 4) + 1;
    IQ2_XS 0.125: |x, part|
        by_groups(|group, levels| {
            let point = u16::from_le_bytes(x.points[group]);
            let magnitudes = &codebook::IQ2_XS_VALUES[usize::from(point & 511)];
            signed(levels, magnitudes, even_signs(u32::from(point >> 9)));
        }),
        odd(x.scales[part / 2], part);
    IQ2_S 0.125: |x, part|
        by_groups(|group, levels| {
            let high = usize::from(x.high[group / 4] >> (group % 4 * 2) & 3);
            let magnitudes = &codebook::IQ2_S_VALUES[usize::from(x.points[group]) | high << 8];
            signed(levels, magnitudes, x.signs[group]);
        }),
        odd(x.scales[part / 2], part);
    IQ3_XXS 0.25: |x, part|
        by_groups::<4>(|group, levels| {
            let (part, group) = (group / 8, group % 8);
            let signs = even_signs(u32::from_le_bytes(x.signs_and_scales[part]) >> (7 * (group / 2)));
            let magnitudes = &codebook::IQ3_XXS_VALUES[usize::from(x.points[part][group])];
            signed(levels, magnitudes, signs >> (group % 2 * 4));
        }),
        2 * (x.signs_and_scales[part / 2][3] >> 4) + 1;
    IQ3_S 1.0: |x, part|
        by_groups::<4>(|group, levels| {
            let (part, group) = (group / 8, group % 8);
            let high = usize::from(x.high[part] >> group & 1);
            let magnitudes = &codebook::IQ3_S_VALUES[usize::from(x.points[part][group]) | high << 8];
            signed(levels, magnitudes, x.signs[part][group / 2] >> (group % 2 * 4));
        }),
        odd(x.scales[part / 4], part / 2);
}

/// How far the levels of IQ1 are shifted, up or down.
const SHIFT: f32 = 0.125;

#[inline(always)]
fn plus_or_minus_one(negative: bool) -> i8 {
    if negative { -1 } else { 1 }
}

impl Dot for IQ1_S {
    type Activations = Q8_K;
    type Sums = f32;

    #[inline(always)]
    fn add(&self, y: &Q8_K, sum: &mut f32) {
        let rest = self.high_and_scales.map(u16::from_le_bytes);
        let levels = by_groups(|group, levels| {
            let high = rest[group / 4] >> (3 * (group % 4)) & 7;
            let point = u16::from(self.points[group / 4][group % 4]) | high << 8;
            *levels = codebook::IQ1_VALUES[usize::from(point)];
        });
        let scale = |part: usize| (2 * (rest[part / 2] >> 12 & 7) + 1).to_le_bytes()[0];
        let product = scaled(&levels, y, scale);
        let shifts: i32 = (0..16)
            .map(|part| {
                let shift = plus_or_minus_one(rest[part / 2] & 0x8000 != 0);
                i32::from(scale(part)) * i32::from(shift) * y.sum(part)
            })
            .sum();
        *sum += self.d.get() * y.scale() * (float(product) + SHIFT * float(shifts));
    }

    #[inline(always)]
    fn total(sum: f32) -> f32 {
        sum
    }
}

impl Dot for IQ1_M {
    type Activations = Q8_K;
    type Sums = f32;

    #[inline(always)]
    fn add(&self, y: &Q8_K, sum: &mut f32) {
        let scales = self.scales.map(u16::from_le_bytes);
        let bits = scales.iter().rev().fold(0, |bits, scales| bits << 4 | scales >> 12);
        let high = |group: usize| self.high[group / 2] >> (group % 2 * 4) & 15;
        let levels = by_groups(|group, levels| {
            let point = u16::from(self.points[group]) | u16::from(high(group) & 7) << 8;
            *levels = codebook::IQ1_VALUES[usize::from(point)];
        });
        let shifts = by_groups(|group, levels| *levels = [plus_or_minus_one(high(group) & 8 != 0); 8]);
        let scale = |part: usize| (2 * (scales[part / 4] >> (part % 4 * 3) & 7) + 1).to_le_bytes()[0];
        let (product, shifts) = (scaled(&levels, y, scale), scaled(&shifts, y, scale));
        let d = Half(bits.to_le_bytes()).get() * y.scale();
        *sum += d * (float(product) + SHIFT * float(shifts));
    }

    #[inline(always)]
    fn total(sum: f32) -> f32 {
        sum
    }
}
