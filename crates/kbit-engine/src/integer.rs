//! Products of integers: weights in blocks with scales, activations rounded to 8 bits.
//!
//! Blocks are unpacked to panels without passing through floats; see [`packed`](crate::packed) for the way of the rest.

use crate::EngineError;
use crate::buffer::{Rows, Window};
use crate::compute::Compute;
use crate::packed::{IntegerBatch, IntegerCols, IntegerProduct, IntegerRows, PANEL, Units, lay_out_in_runs};
use kbit_types::{IntegerActivations, IntegerBlocks, IntegerPanel, PackedActivation};

/// Activations that one task packs, at least: whole groups.
const BAND: usize = 24;

/// Cuts a buffer into pieces of these lengths, from its start on.
fn cut<const N: usize>(buffer: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = buffer;
    lens.map(|len| {
        let (piece, others) = std::mem::take(&mut rest).split_at_mut(len);
        rest = others;
        piece
    })
}

/// As [`cut`], to be read.
fn pieces<const N: usize>(buffer: &[f32], lens: [usize; N]) -> [&[f32]; N] {
    let mut rest = buffer;
    lens.map(|len| {
        let (piece, others) = rest.split_at(len);
        rest = others;
        piece
    })
}

/// Products of rows `first..` with all activations, which [`pack`] has packed, as many rows as `out` `[n, rows]` has columns.
pub(crate) fn multiply(
    compute: &Compute,
    weights: &dyn IntegerBlocks,
    cols: IntegerCols,
    packed: &[f32],
    first: usize,
    mut out: Window<'_>,
) -> Result<(), EngineError> {
    let packed = pieces(packed, cols.activation().map(|len| len * out.rows()));
    if let [1, count] = [out.rows(), out.cols()] {
        let [levels, scales, corrections, sums] = packed;
        let x = PackedActivation {
            levels: bytemuck::cast_slice(levels),
            scales,
            corrections: bytemuck::cast_slice(corrections),
            sums: bytemuck::cast_slice(sums),
        };
        if let Some(done) = weights.dot(first as u64..(first + count) as u64, x, out.row_mut(0)) {
            return Ok(done?);
        }
    }
    let most = cols.pieces().next().map(|(_, piece)| piece.panel().map(|len| len * PANEL));
    compute.with_scratch(most.iter().flatten().sum(), |panel| {
        for row in (0..out.cols()).step_by(PANEL) {
            let rows = PANEL.min(out.cols() - row);
            let (tokens, start) = (out.rows(), (first + row) as u64);
            let out = out.tile(0, tokens, row, rows);
            multiply_panel(compute, weights, cols, start..start + rows as u64, packed, panel, out)?;
        }
        Ok(())
    })
}

/// Rounds and packs activations, group after group: first the levels of all, then their scales, and so on.
pub(crate) fn pack(
    compute: &Compute,
    weights: &dyn IntegerBlocks,
    cols: IntegerCols,
    x: Rows<'_>,
    packed: &mut [f32],
) -> Result<(), EngineError> {
    let [levels, scales, corrections, sums] = cut(packed, cols.activation().map(|len| len * x.rows()));
    let layout = cols.layout();
    let [units, scales_of_row, _, pairs] = cols.activation();
    let groups = cols.groups();
    let group = cols.activation().map(|len| len * groups.tokens);
    let groups_of_band = BAND.div_ceil(groups.tokens);
    let band = group.map(|len| len * groups_of_band);
    let bands = bytemuck::cast_slice_mut::<f32, u32>(levels)
        .chunks_mut(band[0])
        .zip(scales.chunks_mut(band[1]))
        .zip(bytemuck::cast_slice_mut::<f32, i32>(corrections).chunks_mut(band[2]))
        .zip(bytemuck::cast_slice_mut::<f32, u32>(sums).chunks_mut(band[3]));
    compute.for_each(bands, |index, (((levels, scales), corrections), sums)| {
        compute.with_scratch(groups.tokens * units + scales_of_row + pairs, |scratch| {
            let [rounded, row_scales, part_sums] =
                cut(scratch, [groups.tokens * units, scales_of_row, pairs]);
            let part_sums = &mut bytemuck::cast_slice_mut::<f32, i16>(part_sums)[..cols.parts()];
            let packed = levels
                .chunks_mut(group[0])
                .zip(scales.chunks_mut(group[1]))
                .zip(corrections.chunks_mut(group[2]))
                .zip(sums.chunks_mut(group[3]));
            for (group, (((levels, scales), corrections), sums)) in packed.enumerate() {
                let first = (index * groups_of_band + group) * groups.tokens;
                let count = groups.tokens.min(x.rows() - first);
                let rounded = &mut bytemuck::cast_slice_mut::<f32, i8>(rounded)[..count * x.cols()];
                for (token, rounded) in rounded.chunks_exact_mut(x.cols()).enumerate() {
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
                        let half = u32::from(sum.cast_unsigned());
                        let pair = &mut sums[part / 2 * count + token];
                        *pair = if part % 2 == 0 { half } else { *pair | half << 16 };
                    }
                }
                if groups.run == 1 {
                    let rows = Units::new(bytemuck::cast_slice(rounded), count, x.cols(), x.cols());
                    compute.kernels.interleave(rows, count, levels);
                    continue;
                }
                lay_out_in_runs(rounded, x.cols(), 4 * groups.run, bytemuck::cast_slice_mut(levels));
            }
            Ok(())
        })
    })
}

/// Products of up to [`PANEL`] rows with all activations, some columns at a time, which are unpacked to `panel`.
fn multiply_panel(
    compute: &Compute,
    weights: &dyn IntegerBlocks,
    cols: IntegerCols,
    rows: std::ops::Range<u64>,
    packed: [&[f32]; 4],
    panel: &mut [f32],
    mut out: Window<'_>,
) -> Result<(), EngineError> {
    let mut start = 0;
    for (before, piece) in cols.pieces() {
        let [levels, scales, part_scales, minimum_scales, minimums] =
            cut(panel, piece.panel().map(|len| len * PANEL));
        let (levels, minimums) = (bytemuck::cast_slice_mut(levels), bytemuck::cast_slice_mut(minimums));
        let part_scales = bytemuck::cast_slice_mut(part_scales);
        let end = start + piece.blocks() * piece.layout().block;
        weights.unpack(
            rows.clone(),
            start..end,
            IntegerPanel { levels, scales, part_scales, minimum_scales, minimums },
        )?;
        let w = IntegerRows { levels, scales, part_scales, minimum_scales, minimums };
        let (tokens, width) = (out.rows(), out.cols());
        let x = IntegerBatch { packed, all: cols, before };
        let out = out.tile(0, tokens, 0, width);
        compute.kernels.multiply_integers(&mut IntegerProduct::new(piece, x, w, out, start > 0));
        start = end;
    }
    Ok(())
}
