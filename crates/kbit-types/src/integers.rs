//! How the engine sees a matrix of small integers with scales: blocks that multiply activations in 8-bit blocks, without passing
//! through floats.

use crate::CodecError;
use std::ops::Range;

/// Weights that are small integers times scales, in blocks along the rows.
pub trait IntegerBlocks: Send + Sync {
    /// Shape of the blocks.
    fn layout(&self) -> IntegerLayout;

    /// Matrices with equal keys round activations to the same levels and scales.
    fn activation_key(&self) -> u64;

    /// Unpacks columns `cols` (whole blocks) of rows `rows` (at least one, at most [`IntegerPanel::ROWS`]). Lanes without a row get
    /// the numbers of another.
    ///
    /// # Errors
    /// When the source cannot be read.
    ///
    /// # Panics
    /// If there are no such rows or columns, or the panel is not made for as many columns.
    fn unpack(&self, rows: Range<u64>, cols: Range<usize>, panel: IntegerPanel<'_>)
    -> Result<(), CodecError>;

    /// Products of rows `rows` with one activation, one each in `out`: the numbers that unpacked rows give. `None` where there is no
    /// faster way than to unpack them; `out` is then as it was.
    ///
    /// # Errors
    /// When the source cannot be read.
    ///
    /// # Panics
    /// If the lengths disagree.
    fn dot(
        &self,
        _rows: Range<u64>,
        _x: PackedActivation<'_>,
        _out: &mut [f32],
    ) -> Option<Result<(), CodecError>> {
        None
    }

    /// Rounds one activation `x` `[cols]`.
    ///
    /// # Errors
    /// When `x` is not finite, or too large to be rounded.
    ///
    /// # Panics
    /// If the lengths disagree.
    fn round(&self, x: &[f32], out: IntegerActivations<'_>) -> Result<(), CodecError>;
}

/// Shape of blocks of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IntegerLayout {
    /// Weights in a block, which has a scale in f32; as many activations have one, too. A multiple of `part`.
    pub block: usize,
    /// Weights in a part, a multiple of 4.
    pub part: usize,
    /// What is added to levels so that they have no sign.
    pub offset: u8,
    /// The greatest level without sign.
    pub most: u8,
    /// What a block adds to a product.
    pub terms: Terms,
}

impl IntegerLayout {
    /// Scales of a block of activations.
    #[must_use]
    pub const fn activation_scales(self) -> usize {
        match self.terms {
            Terms::ScalesAndMinimums => 2,
            Terms::ScalesOfActivationParts => self.block / self.part,
            _ => 1,
        }
    }
}

/// What a block adds to the product of a row with an activation, from the first block to the last. `sum` is the sum of the products of
/// integers, exact; no multiplication is fused with an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Terms {
    /// `sum * (scale of the weights * scale of the activations)`; a part is a block.
    Scales,
    /// `(sum * scale of the weights) * scale of the activations`; a part is a block.
    ScalesInTurn,
    /// `sum * (scale of the weights * scale of the activations)`, where the sums of the parts are multiplied with their integer scales
    /// and added as integers.
    Parts,
    /// As `Parts`; less `m * (minimum scale of the weights * scale of the activations)`, where `m` is the sum, as integers, of the sums
    /// of the activations of the parts multiplied with their integer minimums. There is an even number of parts in a block.
    PartsAndMinimums,
    /// As `Scales`; plus the minimum scale of the weights times the second scale of the activations, which is their sum.
    ScalesAndMinimums,
    /// `scale of the weights * t`, where `t` is the sum of `scale of the activations * sum` of the parts, from the first to the last: each
    /// part of the activations has a scale.
    ScalesOfActivationParts,
}

impl Terms {
    /// True where parts have integer scales.
    #[must_use]
    pub const fn has_parts(self) -> bool {
        matches!(self, Self::Parts | Self::PartsAndMinimums)
    }

    /// True where parts have integer minimums.
    #[must_use]
    pub const fn has_minimums(self) -> bool {
        matches!(self, Self::PartsAndMinimums)
    }

    /// True where blocks have a scale of minimums.
    #[must_use]
    pub const fn has_minimum_scales(self) -> bool {
        matches!(self, Self::PartsAndMinimums | Self::ScalesAndMinimums)
    }
}

/// Weights of some rows and columns, a lane a row.
#[derive(Debug)]
pub struct IntegerPanel<'p> {
    /// `[cols / 4, ROWS]`: four neighbouring levels without sign, the first in the lowest byte.
    pub levels: &'p mut [u32],
    /// `[cols / block, ROWS]`.
    pub scales: &'p mut [f32],
    /// `[cols / part, ROWS]`; empty where parts have no scales. Levels less their offset, times the scale of their part, have 14 bits with
    /// their sign.
    pub part_scales: &'p mut [i32],
    /// `[cols / block, ROWS]`; empty where there are none.
    pub minimum_scales: &'p mut [f32],
    /// `[cols / part / 2, ROWS]`: those of two neighbouring parts, the first in the low half; empty where there are none.
    pub minimums: &'p mut [u32],
}

impl IntegerPanel<'_> {
    /// Lanes.
    pub const ROWS: usize = 32;

    /// Asserts that the panel is made for `cols` columns.
    ///
    /// # Panics
    /// If it is not.
    pub fn check(&self, layout: IntegerLayout, cols: usize) {
        let parts = if layout.terms.has_parts() { cols / layout.part } else { 0 };
        let (minimum_scales, minimums) = (layout.terms.has_minimum_scales(), layout.terms.has_minimums());
        let blocks = cols / layout.block;
        let expected = [
            cols / 4,
            blocks,
            parts,
            if minimum_scales { blocks } else { 0 },
            if minimums { parts / 2 } else { 0 },
        ];
        let found = [
            self.levels.len(),
            self.scales.len(),
            self.part_scales.len(),
            self.minimum_scales.len(),
            self.minimums.len(),
        ];
        assert_eq!(found, expected.map(|len| len * Self::ROWS), "a panel for {cols} columns of {layout:?}");
    }
}

/// An activation as integers.
#[derive(Debug)]
pub struct IntegerActivations<'a> {
    /// `[cols]`, from -127 to 127.
    pub levels: &'a mut [i8],
    /// `[cols / block, activation_scales]`.
    pub scales: &'a mut [f32],
}

/// An activation as [`IntegerBlocks::dot`] wants it.
#[derive(Clone, Copy, Debug)]
pub struct PackedActivation<'a> {
    /// `[cols / 4]`: four neighbouring levels, the first in the lowest byte.
    pub levels: &'a [u32],
    /// `[cols / block, activation_scales]`.
    pub scales: &'a [f32],
    /// `[cols / part]`: sum of the levels of a part times the offset of the weights, times -1.
    pub corrections: &'a [i32],
    /// `[cols / part / 2]`, rounded up: sums of the levels of two neighbouring parts, 16 bits each, the first in the low half.
    pub sums: &'a [u32],
}
