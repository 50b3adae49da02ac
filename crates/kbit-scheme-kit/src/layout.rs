//! How a matrix is cut into blocks, and blocks are gathered into row groups.

use crate::scale::{DoubleQuantization, ScaleType};
use kbit_plugin::{Error, Part, PartType, Shape, pack};
use std::ops::Range;

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// So many weights of a row; the last block of a row may be shorter.
    Block(usize),
    /// So many weights of the flattened matrix.
    Flat(usize),
    /// A row.
    Row,
    /// The whole matrix; each row group repeats the scale, so that it can be decoded by itself.
    Tensor,
}

/// How codes and scales of one matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bits of a code; 0 packs codes below 3 five to a byte.
    pub bits: u32,
    /// What shares a scale.
    pub granularity: Granularity,
    /// Type of scales (and minima).
    pub scale: ScaleType,
    /// Scales that are quantized themselves.
    pub double: Option<DoubleQuantization>,
    /// A minimum beside each scale.
    pub with_minimum: bool,
    /// Columns.
    pub cols: usize,
    /// Rows of a group.
    pub row_group: usize,
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Number of columns, as far as schemes take them: below 2^31.
///
/// # Errors
/// More of them.
pub fn columns_of(shape: &Shape<'_>) -> Result<usize, Error> {
    let cols = usize::try_from(shape.cols).ok().filter(|cols| *cols < 1 << 31);
    cols.ok_or_else(|| too_many_columns(shape))
}

fn too_many_columns(shape: &Shape<'_>) -> Error {
    Error::unsupported(format!(
        "tensor {}: {} columns are too many; keep it in another scheme",
        shape.tensor, shape.cols
    ))
}

impl Layout {
    /// The layout of a matrix of this shape.
    ///
    /// # Errors
    /// A matrix too wide for memory.
    pub fn new(
        bits: u32,
        granularity: Granularity,
        scale: ScaleType,
        double: Option<DoubleQuantization>,
        with_minimum: bool,
        shape: &Shape<'_>,
    ) -> Result<Self, Error> {
        let cols = columns_of(shape)?;
        let whole_blocks = match granularity {
            Granularity::Flat(block) => block / gcd(cols, block),
            _ => 1,
        };
        let mut layout =
            Self { bits, granularity, scale, double, with_minimum, cols, row_group: whole_blocks };
        if let Some(double) = double {
            // Enough rows that a group fills a second-level block, but no more than the matrix has.
            let scales = layout.scales().max(1);
            let rows = double.block.div_ceil(scales) * whole_blocks;
            let matrix = usize::try_from(shape.rows).unwrap_or(usize::MAX).next_multiple_of(whole_blocks);
            layout.row_group = rows.min(matrix).max(whole_blocks);
        }
        if layout.row_group.checked_mul(cols).is_none_or(|group| group > 1 << 31) {
            return Err(too_many_columns(shape));
        }
        Ok(layout)
    }

    /// Weights of a full group.
    #[must_use]
    pub const fn group_weights(&self) -> usize {
        self.row_group * self.cols
    }

    /// Scales of a full group.
    #[must_use]
    pub fn scales(&self) -> usize {
        match self.granularity {
            Granularity::Block(block) => self.row_group * self.cols.div_ceil(block),
            Granularity::Flat(block) => self.group_weights().div_ceil(block),
            Granularity::Row => self.row_group,
            Granularity::Tensor => 1,
        }
    }

    /// The blocks of `rows` rows of a group, as ranges of its weights.
    pub fn blocks(&self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let cols = self.cols;
        // Lines that blocks do not cross, and the size of a block.
        let (lines, line, block) = match self.granularity {
            Granularity::Block(block) => (rows, cols, block),
            Granularity::Row => (rows, cols, cols),
            Granularity::Flat(block) => (1, rows * cols, block),
            Granularity::Tensor => (1, rows * cols, rows * cols),
        };
        (0..lines).flat_map(move |index| {
            let end = (index + 1) * line;
            (index * line..end).step_by(block.max(1)).map(move |start| start..(start + block).min(end))
        })
    }

    /// Bytes of the codes of a group.
    #[must_use]
    pub const fn code_bytes(&self) -> usize {
        if self.bits == 0 {
            self.group_weights().div_ceil(5)
        } else {
            pack::packed_bytes(self.bits, self.group_weights())
        }
    }

    /// The stored parts: codes, then scales, then what double quantization and minima add.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let codes = Part::new("codes", PartType::U8, self.code_bytes() as u64);
        let scales = self.scales();
        let stored = |name: &'static str| {
            Part::new(name, self.scale.part_type(), (scales * self.scale.bytes()) as u64)
        };
        let mut parts = vec![codes];
        match self.double {
            None => parts.push(stored("scales")),
            Some(double) => {
                parts.push(Part::new("scales", PartType::U8, double.code_bytes(scales) as u64));
                parts.push(Part::new("superscales", PartType::F32, double.super_bytes(scales) as u64));
            }
        }
        if self.with_minimum {
            parts.push(stored("minima"));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(granularity: Granularity, cols: u64, double: Option<DoubleQuantization>) -> Layout {
        let shape = Shape { tensor: "t", rows: 1000, cols, slice: 0, n_slices: 1 };
        Layout::new(3, granularity, ScaleType::F16, double, false, &shape).unwrap()
    }

    #[test]
    fn blocks_cover_a_group_once() {
        for granularity in
            [Granularity::Block(32), Granularity::Flat(48), Granularity::Row, Granularity::Tensor]
        {
            let layout = layout(granularity, 100, None);
            let mut next = 0;
            let mut count = 0;
            for block in layout.blocks(layout.row_group) {
                assert_eq!(block.start, next);
                next = block.end;
                count += 1;
            }
            assert_eq!(next, layout.group_weights());
            assert_eq!(count, layout.scales());
        }
    }

    #[test]
    fn groups_hold_whole_blocks_of_the_flattened_matrix() {
        let layout = layout(Granularity::Flat(64), 48, None);
        assert_eq!((layout.row_group, layout.scales()), (4, 3));
    }

    #[test]
    fn groups_fill_a_block_of_scales() {
        let double = Some(DoubleQuantization { bits: 8, block: 256 });
        let layout = layout(Granularity::Block(64), 256, double);
        assert_eq!((layout.row_group, layout.scales()), (64, 256));
        let bits = layout.parts().iter().map(|part| part.group_bytes * 8).sum::<u64>();
        // 3 bits, 8 bits of 64 weights' scale, 32 bits of 256 scales' scale.
        assert_eq!(bits, 64 * 256 * 3 + 256 * 8 + 32);
    }
}
