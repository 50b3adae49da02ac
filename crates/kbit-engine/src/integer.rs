//! Products of integers: weights in blocks with scales, activations rounded to 8 bits.
//!
//! Blocks are unpacked to panels without passing through floats; see [`packed`](crate::packed) for the way of the rest.

use crate::EngineError;
use crate::buffer::{Rows, RowsMut, Window};
use crate::compute::Compute;
use crate::packed::{INTEGER_COLS, INTEGER_TOKENS, IntegerRows, IntegerTile, IntegerTokens, PANEL, Units};
use kbit_types::{IntegerActivations, IntegerBlocks, IntegerLayout, IntegerPanel, PackedActivation};

/// How many blocks and parts rows of some columns have, and how large their packed form is.
#[derive(Clone, Copy)]
struct Sizes {
    layout: IntegerLayout,
    cols: usize,
}

impl Sizes {
    fn units(self) -> usize {
        self.cols / 4
    }

    fn blocks(self) -> usize {
        self.cols / self.layout.block
    }

    fn parts(self) -> usize {
        self.cols / self.layout.part
    }

    /// Numbers of a packed activation: levels, scales, corrections, sums of pairs of parts.
    fn activation(self) -> [usize; 4] {
        [self.units(), self.blocks(), self.parts(), self.parts().div_ceil(2)]
    }

    /// Numbers of a row of a panel: levels, scales, scales of parts, scales of minimums, pairs of minimums.
    fn panel(self) -> [usize; 5] {
        let terms = self.layout.terms;
        let parts = if terms.has_parts() { self.parts() } else { 0 };
        let (minimum_scales, minimums) =
            if terms.has_minimums() { (self.blocks(), parts / 2) } else { (0, 0) };
        [self.units(), self.blocks(), parts, minimum_scales, minimums]
    }
}

/// Cuts a buffer into pieces of these lengths, from its start on.
fn cut<const N: usize>(buffer: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = buffer;
    lens.map(|len| {
        let (piece, others) = std::mem::take(&mut rest).split_at_mut(len);
        rest = others;
        piece
    })
}

/// `out = x * weights^T`, `task_rows` rows a task.
pub(crate) fn multiply(
    compute: &Compute,
    weights: &dyn IntegerBlocks,
    task_rows: usize,
    x: Rows<'_>,
    out: RowsMut<'_>,
) -> Result<(), EngineError> {
    let sizes = Sizes { layout: weights.layout(), cols: x.cols() };
    let lens = sizes.activation().map(|len| len * x.rows());
    compute.with_scratch(lens.iter().sum(), |packed| {
        pack(compute, weights, sizes, x, cut(packed, lens))?;
        let packed = cut(packed, lens).map(|piece| &*piece);
        compute.for_each(out.windows(task_rows), |task, mut out| {
            if let [1, count] = [out.rows(), out.cols()] {
                let first = (task * task_rows) as u64;
                let [levels, scales, corrections, sums] = packed;
                let x = PackedActivation {
                    levels: bytemuck::cast_slice(levels),
                    scales,
                    corrections: bytemuck::cast_slice(corrections),
                    sums: bytemuck::cast_slice(sums),
                };
                if let Some(done) = weights.dot(first..first + count as u64, x, out.row_mut(0)) {
                    return Ok(done?);
                }
            }
            for row in (0..out.cols()).step_by(PANEL) {
                let rows = PANEL.min(out.cols() - row);
                let first = (task * task_rows + row) as u64;
                let (tokens, first) = (out.rows(), first..first + rows as u64);
                multiply_panel(compute, weights, sizes, first, packed, out.tile(0, tokens, row, rows))?;
            }
            Ok(())
        })
    })
}

/// Rounds and packs activations, [`INTEGER_TOKENS`] rows after as many.
fn pack(
    compute: &Compute,
    weights: &dyn IntegerBlocks,
    sizes: Sizes,
    x: Rows<'_>,
    packed: [&mut [f32]; 4],
) -> Result<(), EngineError> {
    let [levels, scales, corrections, sums] = packed;
    let (cols, layout) = (sizes.cols, sizes.layout);
    let [units, blocks, parts, pairs] = sizes.activation().map(|len| len * INTEGER_TOKENS);
    let groups = bytemuck::cast_slice_mut::<f32, u32>(levels)
        .chunks_mut(units)
        .zip(scales.chunks_mut(blocks))
        .zip(bytemuck::cast_slice_mut::<f32, i32>(corrections).chunks_mut(parts))
        .zip(bytemuck::cast_slice_mut::<f32, u32>(sums).chunks_mut(pairs));
    let pairs_of_one = sizes.parts().div_ceil(2);
    compute.for_each(groups, |group, (((levels, scales), corrections), sums)| {
        let first = group * INTEGER_TOKENS;
        let count = INTEGER_TOKENS.min(x.rows() - first);
        compute.with_scratch(count * sizes.units() + sizes.blocks() + pairs_of_one, |scratch| {
            let [rounded, row_scales, part_sums] =
                cut(scratch, [count * sizes.units(), sizes.blocks(), pairs_of_one]);
            let part_sums = &mut bytemuck::cast_slice_mut::<f32, i16>(part_sums)[..sizes.parts()];
            let rounded = bytemuck::cast_slice_mut::<f32, i8>(rounded);
            for (token, rounded) in rounded.chunks_exact_mut(cols).enumerate() {
                weights.round(
                    x.row(first + token),
                    IntegerActivations { levels: rounded, scales: row_scales },
                )?;
                for (block, scale) in row_scales.iter().enumerate() {
                    scales[block * count + token] = *scale;
                }
                compute.kernels.sum_parts(rounded, layout.part, part_sums);
                for (part, sum) in part_sums.iter().enumerate() {
                    corrections[part * count + token] = -i32::from(layout.offset) * i32::from(*sum);
                    let (half, pair) = (u32::from(sum.cast_unsigned()), &mut sums[part / 2 * count + token]);
                    *pair = if part % 2 == 0 { half } else { *pair | half << 16 };
                }
            }
            let rows = Units::new(bytemuck::cast_slice(rounded), count, cols, cols);
            compute.kernels.interleave(rows, count, levels);
            Ok(())
        })
    })
}

/// Products of up to [`PANEL`] rows with all activations, some columns at a time.
fn multiply_panel(
    compute: &Compute,
    weights: &dyn IntegerBlocks,
    sizes: Sizes,
    rows: std::ops::Range<u64>,
    packed: [&[f32]; 4],
    mut out: Window<'_>,
) -> Result<(), EngineError> {
    let layout = sizes.layout;
    let step = (INTEGER_COLS / layout.block * layout.block).max(layout.block);
    let most = Sizes { cols: step.min(sizes.cols), ..sizes }.panel().map(|len| len * PANEL);
    compute.with_scratch(most.iter().sum(), |scratch| {
        for col in (0..sizes.cols).step_by(step) {
            let cols = col..(col + step).min(sizes.cols);
            let part = Sizes { cols: cols.len(), ..sizes };
            let lens = part.panel().map(|len| len * PANEL);
            let [levels, scales, part_scales, minimum_scales, minimums] = cut(scratch, lens);
            let (levels, minimums) = (bytemuck::cast_slice_mut(levels), bytemuck::cast_slice_mut(minimums));
            let part_scales = bytemuck::cast_slice_mut(part_scales);
            weights.unpack(
                rows.clone(),
                cols,
                IntegerPanel { levels, scales, part_scales, minimum_scales, minimums },
            )?;
            let w = IntegerRows { levels, scales, part_scales, minimum_scales, minimums };
            let before = Sizes { cols: col, ..sizes }.activation();
            for token in (0..out.rows()).step_by(INTEGER_TOKENS) {
                let count = INTEGER_TOKENS.min(out.rows() - token);
                let [levels, scales, corrections, sums] = std::array::from_fn(|i| {
                    let start = token * sizes.activation()[i] + count * before[i];
                    &packed[i][start..][..count * part.activation()[i]]
                });
                let x = IntegerTokens {
                    levels: bytemuck::cast_slice(levels),
                    scales,
                    corrections: bytemuck::cast_slice(corrections),
                    sums: bytemuck::cast_slice(sums),
                };
                let out = out.tile(token, count, 0, rows.end.abs_diff(rows.start) as usize);
                compute.kernels.tile_integers(IntegerTile::new(layout, x, w, out, col > 0));
            }
        }
        Ok(())
    })
}
