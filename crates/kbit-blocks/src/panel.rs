//! Blocks unpacked to panels of integers with their scales ([`IntegerPanel`]), for the engine's matrix multiply.
//!
//! Levels, scales and minimums are those of [`dot`](crate::dot). Where ggml's generic code sums floats from block to block one by one,
//! so does [`Terms`], and products have its bits. For Q3_K to Q6_K it sums in eight lanes, and for IQ4_XS it sums parts; there the
//! integers of a super-block are the same, but are added up before they become one float ([`Terms::Parts`]), which rounds less often
//! ([`sums_as_ggml`]).

use crate::block::{
    Half, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, MXFP4, Q1_0, Q2_0, Q2_K, Q3_K, Q4_0, Q4_1,
    Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Q8_1, Q8_K, TQ1_0, TQ2_0,
};
use crate::dot::{fifth, nibbles, pairs_of_bits, scales_and_minimums};
use crate::fp4::{half_e8m0, level};
use crate::{Kernels, iq4};
use bytemuck::Pod;
use kbit_types::{GgmlType, IntegerActivations, IntegerLayout, IntegerPanel, PackedActivation, Terms};
use std::ops::Range;

const ROWS: usize = IntegerPanel::ROWS;

/// Rows of blocks to unpack, checked: columns of them are blocks `first..first + blocks`.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// `[rows, row_bytes]`, at least one row.
    pub(crate) bytes: &'a [u8],
    pub(crate) row_bytes: usize,
    pub(crate) rows: usize,
    pub(crate) first: usize,
    pub(crate) blocks: usize,
}

impl<'a> Source<'a> {
    /// The blocks of row `row`.
    #[inline(always)]
    pub(crate) fn row<W: Pod>(&self, row: usize) -> &'a [W] {
        let start = row * self.row_bytes + self.first * size_of::<W>();
        bytemuck::cast_slice(&self.bytes[start..][..self.blocks * size_of::<W>()])
    }
}

type Unpack = fn(Kernels, Source<'_>, IntegerPanel<'_>);

macro_rules! layouts {
    ($($ty:ident: $unpack:ident;)*) => {
        /// The only list of types that can be unpacked.
        const LAYOUTS: &[(GgmlType, IntegerLayout, Unpack)] =
            &[$((GgmlType::$ty, <$ty as Integers>::LAYOUT, Kernels::$unpack),)*];
    };
}

layouts! {
    Q8_0: unpack_q8_0;
    Q4_0: unpack_q4_0;
    Q4_1: unpack_q4_1;
    Q5_0: unpack_q5_0;
    Q5_1: unpack_q5_1;
    IQ4_NL: unpack_iq4_nl;
    MXFP4: unpack_mxfp4;
    Q2_K: unpack_q2_k;
    Q3_K: unpack_q3_k;
    Q4_K: unpack_q4_k;
    Q5_K: unpack_q5_k;
    Q6_K: unpack_q6_k;
    IQ4_XS: unpack_iq4_xs;
    IQ2_XXS: unpack_iq2_xxs;
    IQ2_XS: unpack_iq2_xs;
    IQ2_S: unpack_iq2_s;
    IQ3_XXS: unpack_iq3_xxs;
    IQ3_S: unpack_iq3_s;
    TQ1_0: unpack_tq1_0;
    TQ2_0: unpack_tq2_0;
    Q1_0: unpack_q1_0;
    Q2_0: unpack_q2_0;
}

/// Shape of the integers of a type; `None` where its blocks cannot be unpacked to integers.
pub(crate) fn layout(ty: GgmlType) -> Option<IntegerLayout> {
    LAYOUTS.iter().find(|entry| entry.0 == ty).map(|entry| entry.1)
}

impl Kernels {
    /// Unpacks columns `cols` of rows of blocks of type `ty`, which has a [`layout`]. Numbers do not depend on the instruction set.
    pub(crate) fn unpack(
        self,
        ty: GgmlType,
        bytes: &[u8],
        row_bytes: usize,
        cols: Range<usize>,
        panel: IntegerPanel<'_>,
    ) {
        let Some((_, layout, unpack)) = LAYOUTS.iter().find(|entry| entry.0 == ty) else {
            unreachable!("{ty} has no layout");
        };
        let whole = cols.start.is_multiple_of(layout.block) && cols.end.is_multiple_of(layout.block);
        assert!(whole, "columns {cols:?} are not whole blocks of {ty}");
        panel.check(*layout, cols.len());
        let rows = bytes.len() / row_bytes;
        assert!((1..=ROWS).contains(&rows) && bytes.len().is_multiple_of(row_bytes), "rows of a panel");
        let (first, blocks) = (cols.start / layout.block, cols.len() / layout.block);
        assert!(ty.bytes_for(cols.end as u64).is_some_and(|bytes| bytes <= row_bytes as u64), "columns");
        unpack(self, Source { bytes, row_bytes, rows, first, blocks }, panel);
    }
}

impl Kernels {
    /// Products of rows of `blocks` blocks of type `ty` with one activation, as unpacked rows would give them; false where there is no
    /// faster way than to unpack.
    pub(crate) fn dot_integers(
        self,
        ty: GgmlType,
        bytes: &[u8],
        row_bytes: usize,
        x: PackedActivation<'_>,
        out: &mut [f32],
    ) -> bool {
        let Some(layout) = layout(ty) else { return false };
        let (rows, blocks) = (bytes.len() / row_bytes, x.scales.len() / layout.activation_scales());
        assert_eq!(rows, out.len(), "a product for each row");
        assert!(ty.bytes_for((blocks * layout.block) as u64) == Some(row_bytes as u64), "blocks of a row");
        let parts = blocks * (layout.block / layout.part);
        let found = [x.levels.len(), x.corrections.len(), x.sums.len()];
        assert_eq!(
            found,
            [blocks * layout.block / 4, parts, parts.div_ceil(2)],
            "an activation of {blocks} blocks"
        );
        self.dot_rows_of_integers(ty, Source { bytes, row_bytes, rows, first: 0, blocks }, x, out)
            || (sums_as_ggml(ty) && self.dot_of_blocks(ty, bytes, x, out))
    }
}

/// True where products of panels have the bits of [`dot`](crate::dot).
fn sums_as_ggml(ty: GgmlType) -> bool {
    use GgmlType::{IQ4_XS, Q3_K, Q4_K, Q5_K, Q6_K};
    !matches!(ty, Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS)
}

impl Kernels {
    /// The same for types that [`sums_as_ggml`]: products with activations put together again.
    fn dot_of_blocks(self, ty: GgmlType, bytes: &[u8], x: PackedActivation<'_>, out: &mut [f32]) -> bool {
        let levels: &[i8] = bytemuck::cast_slice(x.levels);
        let activation = join(crate::activation_type(ty), levels, x.scales);
        let cols = x.levels.len() * 4;
        let rows = out.len();
        self.dot_rows(ty, bytes, &activation, cols, out, rows.max(1)).is_ok()
    }
}

/// Blocks of activations as [`Kernels::encode_activations`] makes them, taken apart.
pub(crate) fn split(ty: Option<GgmlType>, packed: &[u8], out: IntegerActivations<'_>) {
    fn each<A: Pod, const N: usize>(
        packed: &[u8],
        out: IntegerActivations<'_>,
        parts: impl Fn(&A) -> (&[i8], [f32; N]),
    ) {
        let blocks = bytemuck::cast_slice::<u8, A>(packed);
        assert_eq!(blocks.len() * N, out.scales.len(), "scales of an activation");
        let size = out.levels.len() / blocks.len().max(1);
        let scales = out.scales.as_chunks_mut::<N>().0;
        for ((block, levels), scales) in blocks.iter().zip(out.levels.chunks_mut(size.max(1))).zip(scales) {
            let (from, found) = parts(block);
            levels.copy_from_slice(from);
            *scales = found;
        }
    }
    match ty {
        Some(GgmlType::Q8_0) => each::<Q8_0, 1>(packed, out, |block| (&block.q, [block.d.get()])),
        Some(GgmlType::Q8_1) => {
            each::<Q8_1, 2>(packed, out, |block| (&block.q, [block.d.get(), block.sum.get()]));
        }
        Some(GgmlType::Q8_K) => each::<Q8_K, 1>(packed, out, |block| (&block.q, [block.scale()])),
        other => unreachable!("no layout has activations of type {other:?}"),
    }
}

/// Blocks of activations put together again from what [`split`] takes apart.
fn join(ty: Option<GgmlType>, levels: &[i8], scales: &[f32]) -> Vec<u8> {
    fn each<A: Pod, const SIZE: usize, const N: usize>(
        levels: &[i8],
        scales: &[f32],
        block: impl Fn([i8; SIZE], [f32; N]) -> A,
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(levels.len() / SIZE * size_of::<A>());
        for (levels, scales) in levels.as_chunks::<SIZE>().0.iter().zip(scales.as_chunks::<N>().0) {
            out.extend_from_slice(bytemuck::bytes_of(&block(*levels, *scales)));
        }
        out
    }
    match ty {
        Some(GgmlType::Q8_0) => each(levels, scales, |q, [d]| Q8_0 { d: Half::new(d), q }),
        Some(GgmlType::Q8_1) => {
            each(levels, scales, |q, [d, sum]| Q8_1 { d: Half::new(d), sum: Half::new(sum), q })
        }
        Some(GgmlType::Q8_K) => each(levels, scales, |q, [d]| Q8_K::new(d, q)),
        other => unreachable!("no layout has activations of type {other:?}"),
    }
}

/// A block of integers.
pub(crate) trait Integers: Pod {
    const LAYOUT: IntegerLayout;
    /// `[u8; block]`.
    type Levels: Pod;
    /// The scale of the block.
    fn scale(&self) -> f32;
    /// Levels plus the offset.
    fn levels(&self) -> Self::Levels;
    /// Scale of a part, where parts have any.
    #[inline(always)]
    fn part_scale(&self, _part: usize) -> i32 {
        1
    }
    /// Scale of the minimums, where blocks have any.
    #[inline(always)]
    fn minimum_scale(&self) -> f32 {
        0.0
    }
    /// The minimum of a part, where parts have any.
    #[inline(always)]
    fn minimum(&self, _part: usize) -> u8 {
        0
    }
}

/// Unpacks block by block and row by row.
#[inline(always)]
pub(crate) fn unpack<W: Integers>(source: Source<'_>, panel: IntegerPanel<'_>) {
    let IntegerLayout { block: size, part, terms, .. } = W::LAYOUT;
    let (units, parts) = (size / 4, size / part);
    for lane in 0..ROWS {
        let row = source.row::<W>(lane.min(source.rows - 1));
        for (index, block) in row.iter().enumerate() {
            let levels = block.levels();
            let levels = bytemuck::bytes_of(&levels).as_chunks::<4>().0;
            for (unit, levels) in levels.iter().enumerate() {
                panel.levels[(index * units + unit) * ROWS + lane] = u32::from_le_bytes(*levels);
            }
            panel.scales[index * ROWS + lane] = block.scale();
            if terms.has_parts() {
                for part in 0..parts {
                    panel.part_scales[(index * parts + part) * ROWS + lane] = block.part_scale(part);
                }
            }
            if terms.has_minimum_scales() {
                panel.minimum_scales[index * ROWS + lane] = block.minimum_scale();
            }
            if terms.has_minimums() {
                for pair in 0..parts / 2 {
                    let both = [2 * pair, 2 * pair + 1].map(|part| u32::from(block.minimum(part)));
                    panel.minimums[(index * parts / 2 + pair) * ROWS + lane] = both[0] | both[1] << 16;
                }
            }
        }
    }
}

/// Blocks of 32 with one scale.
macro_rules! single_scales {
    ($($block:ident $terms:ident $offset:literal $most:literal: $scale:expr, $levels:expr $(, minimum $minimum:expr)?;)*) => {
        $(impl Integers for $block {
            const LAYOUT: IntegerLayout =
                IntegerLayout { block: 32, part: 32, offset: $offset, most: $most, terms: Terms::$terms };
            type Levels = [u8; 32];

            #[inline(always)]
            fn scale(&self) -> f32 {
                let scale: fn(&Self) -> f32 = $scale;
                scale(self)
            }

            #[inline(always)]
            fn levels(&self) -> [u8; 32] {
                let levels: fn(&Self) -> [i8; 32] = $levels;
                levels(self).map(|level| level.cast_unsigned().wrapping_add($offset))
            }

            $(#[inline(always)]
            fn minimum_scale(&self) -> f32 {
                let minimum: fn(&Self) -> f32 = $minimum;
                minimum(self)
            })?
        })*
    };
}

single_scales! {
    Q8_0 Scales 128 255: |x| x.d.get(), |x| x.q;
    Q4_0 ScalesInTurn 8 15: |x| x.d.get(), |x| nibbles(&x.q, |_, q| q.cast_signed() - 8);
    Q4_1 ScalesAndMinimums 0 15: |x| x.d.get(), |x| nibbles(&x.q, |_, q| q.cast_signed()), minimum |x| x.m.get();
    Q5_0 Scales 16 31: |x| x.d.get(), |x| {
        let bits = u32::from_le_bytes(x.high);
        nibbles(&x.q, |j, q| (q | fifth(bits, j)).cast_signed() - 16)
    };
    Q5_1 ScalesAndMinimums 0 31: |x| x.d.get(), |x| {
        let bits = u32::from_le_bytes(x.high);
        nibbles(&x.q, |j, q| (q | fifth(bits, j)).cast_signed())
    }, minimum |x| x.m.get();
    IQ4_NL Scales 127 240: |x| x.d.get(), |x| nibbles(&x.q, |_, q| iq4::LEVELS[usize::from(q)]);
    MXFP4 Scales 12 24: |x| half_e8m0(x.e), |x| nibbles(&x.q, |_, q| level(q));
}

const fn parts(part: usize, offset: u8, most: u8, terms: Terms) -> IntegerLayout {
    IntegerLayout { block: 256, part, offset, most, terms }
}

impl Integers for Q2_K {
    const LAYOUT: IntegerLayout = parts(16, 0, 3, Terms::PartsAndMinimums);
    type Levels = [u8; 256];

    #[inline(always)]
    fn scale(&self) -> f32 {
        self.d.get()
    }

    #[inline(always)]
    fn levels(&self) -> [u8; 256] {
        pairs_of_bits(&self.q)
    }

    #[inline(always)]
    fn part_scale(&self, part: usize) -> i32 {
        i32::from(self.scales[part] & 15)
    }

    #[inline(always)]
    fn minimum_scale(&self) -> f32 {
        self.dmin.get()
    }

    #[inline(always)]
    fn minimum(&self, part: usize) -> u8 {
        self.scales[part] >> 4
    }
}

impl Integers for Q3_K {
    const LAYOUT: IntegerLayout = parts(16, 4, 7, Terms::Parts);
    type Levels = [u8; 256];

    #[inline(always)]
    fn scale(&self) -> f32 {
        self.d.get()
    }

    #[inline(always)]
    fn levels(&self) -> [u8; 256] {
        Self::levels(self).map(|level| level.wrapping_add(4).cast_unsigned())
    }

    #[inline(always)]
    fn part_scale(&self, part: usize) -> i32 {
        i32::from(Self::scale(self, part))
    }
}

/// Q4_K and Q5_K, whose scales are packed alike.
macro_rules! scales_and_minimums_of_six_bits {
    ($($block:ident $most:literal)*) => {
        $(impl Integers for $block {
            const LAYOUT: IntegerLayout = parts(32, 0, $most, Terms::PartsAndMinimums);
            type Levels = [u8; 256];

            #[inline(always)]
            fn scale(&self) -> f32 {
                self.d.get()
            }

            #[inline(always)]
            fn levels(&self) -> [u8; 256] {
                Self::levels(self).map(i8::cast_unsigned)
            }

            #[inline(always)]
            fn part_scale(&self, part: usize) -> i32 {
                i32::from(scales_and_minimums(&self.scales).0[part])
            }

            #[inline(always)]
            fn minimum_scale(&self) -> f32 {
                self.dmin.get()
            }

            #[inline(always)]
            fn minimum(&self, part: usize) -> u8 {
                scales_and_minimums(&self.scales).1[part]
            }
        })*
    };
}

scales_and_minimums_of_six_bits! { Q4_K 15 Q5_K 31 }

impl Integers for Q6_K {
    const LAYOUT: IntegerLayout = parts(16, 32, 63, Terms::Parts);
    type Levels = [u8; 256];

    #[inline(always)]
    fn scale(&self) -> f32 {
        self.d.get()
    }

    #[inline(always)]
    fn levels(&self) -> [u8; 256] {
        Self::levels(self).map(|level| level.wrapping_add(32).cast_unsigned())
    }

    #[inline(always)]
    fn part_scale(&self, part: usize) -> i32 {
        i32::from(self.scales[part])
    }
}

impl Integers for IQ4_XS {
    const LAYOUT: IntegerLayout = parts(32, 127, 240, Terms::Parts);
    type Levels = [u8; 256];

    #[inline(always)]
    fn scale(&self) -> f32 {
        self.d.get()
    }

    #[inline(always)]
    fn levels(&self) -> [u8; 256] {
        let mut out = [0; 256];
        for (q, out) in self.q.iter().zip(out.as_chunks_mut::<32>().0) {
            let levels: [i8; 32] = nibbles(q, |_, q| iq4::LEVELS[usize::from(q)]);
            *out = levels.map(|level| level.cast_unsigned().wrapping_add(127));
        }
        out
    }

    #[inline(always)]
    fn part_scale(&self, part: usize) -> i32 {
        i32::from(Self::scale(self, part))
    }
}

/// Points of grids with signs. What the sum of a row is multiplied by at the end is a power of two, so that of its scales are products of
/// the same bits.
macro_rules! grids {
    ($($block:ident $part:literal $largest:literal $factor:literal;)*) => {
        $(impl Integers for $block {
            const LAYOUT: IntegerLayout = parts($part, $largest, 2 * $largest, Terms::Parts);
            type Levels = [u8; 256];

            #[inline(always)]
            fn scale(&self) -> f32 {
                self.d.get() * $factor
            }

            #[inline(always)]
            fn levels(&self) -> [u8; 256] {
                Self::levels(self).map(|level| level.wrapping_add($largest).cast_unsigned())
            }

            #[inline(always)]
            fn part_scale(&self, part: usize) -> i32 {
                i32::from(Self::scale_of_sixteen(self, part * $part / 16))
            }
        })*
    };
}

grids! {
    IQ2_XXS 32 43 0.125;
    IQ2_XS 16 43 0.125;
    IQ2_S 16 43 0.125;
    IQ3_XXS 32 62 0.25;
    IQ3_S 32 15 1.0;
}

/// Levels from -1 on with one scale for the block.
macro_rules! from_minus_one {
    ($($block:ident $size:literal $most:literal $terms:ident;)*) => {
        $(impl Integers for $block {
            const LAYOUT: IntegerLayout =
                IntegerLayout { block: $size, part: 32, offset: 1, most: $most, terms: Terms::$terms };
            type Levels = [u8; $size];

            #[inline(always)]
            fn scale(&self) -> f32 {
                self.d.get()
            }

            #[inline(always)]
            fn levels(&self) -> [u8; $size] {
                Self::levels(self).map(|level| level.wrapping_add(1).cast_unsigned())
            }
        })*
    };
}

// Super-blocks of trits are parts with a scale of 1, so that they need no kernel of their own; the others meet several blocks of activations.
from_minus_one! {
    TQ1_0 256 3 Parts;
    TQ2_0 256 3 Parts;
    Q1_0 128 2 ScalesOfActivationParts;
    Q2_0 64 3 ScalesOfActivationParts;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InstructionSet, activation_type};

    /// Numbers of a panel, as bits.
    #[derive(Debug, Default, PartialEq)]
    struct Numbers {
        levels: Vec<u32>,
        scales: Vec<f32>,
        part_scales: Vec<i32>,
        minimum_scales: Vec<f32>,
        minimums: Vec<u32>,
    }

    fn unpacked(
        kernels: Kernels,
        ty: GgmlType,
        bytes: &[u8],
        row_bytes: usize,
        cols: Range<usize>,
    ) -> Numbers {
        let layout = layout(ty).unwrap();
        let (blocks, parts) = (cols.len() / layout.block, cols.len() / layout.part);
        let scaled = if layout.terms.has_parts() { parts } else { 0 };
        let minimums = if layout.terms.has_minimums() { parts / 2 } else { 0 };
        let minimum_scales = if layout.terms.has_minimum_scales() { blocks } else { 0 };
        let mut numbers = Numbers {
            levels: vec![u32::MAX; cols.len() / 4 * ROWS],
            scales: vec![-1.0; blocks * ROWS],
            part_scales: vec![-1; scaled * ROWS],
            minimum_scales: vec![-1.0; minimum_scales * ROWS],
            minimums: vec![u32::MAX; minimums * ROWS],
        };
        let panel = IntegerPanel {
            levels: &mut numbers.levels,
            scales: &mut numbers.scales,
            part_scales: &mut numbers.part_scales,
            minimum_scales: &mut numbers.minimum_scales,
            minimums: &mut numbers.minimums,
        };
        kernels.unpack(ty, bytes, row_bytes, cols, panel);
        numbers
    }

    /// Blocks of arbitrary bytes, but with scales that are numbers.
    fn rows(ty: GgmlType, rows: usize, cols: usize) -> (Vec<u8>, usize) {
        let weights: Vec<f32> =
            (0..rows * cols).map(|i| ((i * 7919 + i / 31) % 1009) as f32 * 0.002 - 1.0).collect();
        let row_bytes = crate::row_bytes(ty, cols).unwrap();
        let mut bytes = vec![0; rows * row_bytes];
        crate::encode_row_range(ty, &weights, cols, Some(&vec![1.0; cols]), &mut bytes).unwrap();
        (bytes, row_bytes)
    }

    #[test]
    fn levels_and_scales_give_the_decoded_weights() {
        for (ty, layout, _) in LAYOUTS {
            let (bytes, row_bytes) = rows(*ty, 3, 768);
            let numbers = unpacked(Kernels::best(), *ty, &bytes, row_bytes, 256..768);
            for row in 0..3 {
                let mut weights = vec![0.0; 768];
                crate::decode(*ty, &bytes[row * row_bytes..][..row_bytes], &mut weights).unwrap();
                for (col, weight) in weights[256..].iter().enumerate() {
                    let unit = numbers.levels[col / 4 * ROWS + row].to_le_bytes();
                    assert!(unit[col % 4] <= layout.most, "{ty}: level {}", unit[col % 4]);
                    let level = i32::from(unit[col % 4]) - i32::from(layout.offset);
                    let (block, part) = (col / layout.block * ROWS + row, col / layout.part);
                    let scale =
                        if layout.terms.has_parts() { numbers.part_scales[part * ROWS + row] } else { 1 };
                    let mut value = f64::from(numbers.scales[block]) * f64::from(scale) * f64::from(level);
                    if layout.terms.has_minimums() {
                        let pair = numbers.minimums[part / 2 * ROWS + row] >> (part % 2 * 16) & 0xffff;
                        value -= f64::from(numbers.minimum_scales[block]) * f64::from(pair);
                    }
                    if layout.terms == Terms::ScalesAndMinimums {
                        value += f64::from(numbers.minimum_scales[block]);
                    }
                    assert!(
                        (value - f64::from(*weight)).abs() < 1e-5,
                        "{ty} row {row}, column {col}: {value} {weight}"
                    );
                }
            }
        }
    }

    #[test]
    fn panels_do_not_depend_on_the_instruction_set() {
        for (ty, ..) in LAYOUTS {
            for count in [1, 15, 16, 31, 32] {
                let (bytes, row_bytes) = rows(*ty, count, 1024);
                for cols in [0..1024, 256..768] {
                    let of = |set| unpacked(Kernels::up_to(set), *ty, &bytes, row_bytes, cols.clone());
                    let portable = of(InstructionSet::Portable);
                    for set in [InstructionSet::Avx2, InstructionSet::Avx512] {
                        assert_eq!(of(set), portable, "{ty}, {count} rows, {set:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_type_of_integers_has_activations_that_can_be_taken_apart() {
        for (ty, layout, _) in LAYOUTS {
            let activations = activation_type(*ty).expect("a product");
            let scaled = match layout.terms {
                Terms::ScalesOfActivationParts => layout.part,
                _ => layout.block,
            };
            assert_eq!(activations.block_elements(), scaled as u64, "{ty}");
            let x: Vec<f32> = (0..512).map(|i| (i % 37) as f32 - 18.0).collect();
            let mut packed = vec![0; crate::row_bytes(activations, 512).unwrap()];
            Kernels::best().encode_activations(activations, &x, 512, &mut packed).unwrap();
            let each = layout.activation_scales();
            let (mut levels, mut scales) = (vec![0; 512], vec![0.0; 512 / layout.block * each]);
            split(
                Some(activations),
                &packed,
                IntegerActivations { levels: &mut levels, scales: &mut scales },
            );
            for (i, x) in x.iter().enumerate() {
                let scale = match layout.terms {
                    Terms::ScalesOfActivationParts => i / layout.part,
                    _ => i / layout.block * each,
                };
                let value = f32::from(levels[i]) * scales[scale];
                assert!((value - x).abs() < 0.08, "{ty}: {value} {x}");
            }
        }
    }

    /// What the numbers of a panel give, lane by lane; see [`Terms`].
    fn product(layout: IntegerLayout, numbers: &Numbers, lane: usize, x: PackedActivation<'_>) -> f32 {
        let (units, parts) = (layout.part / 4, layout.block / layout.part);
        let mut product = 0.0;
        for (block, y) in x.scales.chunks_exact(layout.activation_scales()).enumerate() {
            let (mut total, mut least, mut inner) = (0, 0, 0.0);
            for part in block * parts..(block + 1) * parts {
                let mut sum = x.corrections[part];
                for unit in part * units..(part + 1) * units {
                    let (w, x) =
                        (numbers.levels[unit * ROWS + lane].to_le_bytes(), x.levels[unit].to_le_bytes());
                    sum +=
                        w.iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(x.cast_signed())).sum::<i32>();
                }
                total += if layout.terms.has_parts() {
                    sum * numbers.part_scales[part * ROWS + lane]
                } else {
                    sum
                };
                if layout.terms == Terms::ScalesOfActivationParts {
                    inner += y[part % parts] * sum as f32;
                }
                if layout.terms.has_minimums() {
                    let half = |pair: u32| i32::from((pair >> (16 * (part % 2))) as u16 as i16);
                    least += half(numbers.minimums[part / 2 * ROWS + lane]) * half(x.sums[part / 2]);
                }
            }
            let (total, scale) = (total as f32, numbers.scales[block * ROWS + lane]);
            product += match layout.terms {
                Terms::ScalesInTurn => total * scale * y[0],
                Terms::Scales | Terms::Parts => total * (scale * y[0]),
                Terms::PartsAndMinimums => {
                    let least = least as f32 * (numbers.minimum_scales[block * ROWS + lane] * y[0]);
                    total * (scale * y[0]) - least
                }
                Terms::ScalesOfActivationParts => scale * inner,
                Terms::ScalesAndMinimums => {
                    total * (scale * y[0]) + numbers.minimum_scales[block * ROWS + lane] * y[1]
                }
            };
        }
        product
    }

    #[test]
    fn products_of_rows_are_those_of_their_panels() {
        let mut seen = 0;
        for (ty, layout, _) in LAYOUTS {
            for (count, cols) in
                [(8, 256), (11, 512), (16, 256), (67, 768), (50, 2304), (30, 4352), (17, 288)]
            {
                if cols % layout.block != 0 {
                    continue;
                }
                let (bytes, row_bytes) = rows(*ty, count, cols);
                let levels: Vec<i8> =
                    (0..cols).map(|i| ((i * 37 + i / 91) % 255) as i16 - 127).map(|x| x as i8).collect();
                let sums: Vec<i16> =
                    levels.chunks(layout.part).map(|part| part.iter().map(|x| i16::from(*x)).sum()).collect();
                let scales: Vec<f32> = (0..cols / layout.block * layout.activation_scales())
                    .map(|i| (10 + 3 * (i % 7)) as f32 / 1024.0)
                    .collect();
                let corrections: Vec<i32> =
                    sums.iter().map(|sum| -i32::from(*sum) * i32::from(layout.offset)).collect();
                let pairs: Vec<u32> = sums
                    .chunks(2)
                    .map(|pair| {
                        let half = |i: usize| u32::from(pair.get(i).copied().unwrap_or(0).cast_unsigned());
                        half(0) | half(1) << 16
                    })
                    .collect();
                let units: Vec<u32> = levels
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|unit| u32::from_le_bytes(unit.map(i8::cast_unsigned)))
                    .collect();
                let x = PackedActivation {
                    levels: &units,
                    scales: &scales,
                    corrections: &corrections,
                    sums: &pairs,
                };
                let expected: Vec<f32> = bytes
                    .chunks_exact(row_bytes)
                    .map(|row| {
                        let numbers = unpacked(Kernels::best(), *ty, row, row_bytes, 0..cols);
                        product(*layout, &numbers, 0, x)
                    })
                    .collect();
                for set in [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512] {
                    let kernels = Kernels::up_to(set);
                    let mut products = vec![f32::NAN; count];
                    if kernels.dot_integers(*ty, &bytes, row_bytes, x, &mut products) {
                        seen += usize::from(kernels.instruction_set() > InstructionSet::Portable);
                        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                        assert_eq!(
                            bits(&products),
                            bits(&expected),
                            "{ty}: {count} rows, {cols} columns, {set:?}"
                        );
                    }
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        assert!(
            seen > 70 || Kernels::best().instruction_set() == InstructionSet::Portable,
            "{seen} products"
        );
    }
}
