//! Products of floats: weights as they are stored or decoded, activations in f32 or bf16.
//!
//! Units of both are packed as [`packed`](crate::packed) tells; sums go over [`BLOCK`] units at a time.

use crate::buffer::{Rows, Window};
use crate::compute::Compute;
use crate::mode::Rounding;
use crate::packed::{BLOCK, Groups, Line, PANEL, PanelProduct, TOKENS, Tile, Units, lay_out_in_runs};
use crate::{EngineError, Kernels};

/// Units of panels that wait in the second-level cache: 512 KiB.
pub(crate) const WAITING: usize = 1 << 17;

/// Floats that are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    Bf16,
}

impl Format {
    /// Units of `cols` floats.
    pub(crate) fn units(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols,
            Self::Bf16 => cols.div_ceil(2),
        }
    }

    /// How kernels want activations of the format.
    pub(crate) fn groups(self, kernels: Kernels) -> Groups {
        match self {
            Self::F32 => Groups::FLOATS,
            Self::Bf16 => kernels.bf16_groups(),
        }
    }
}

/// Packs activations, rounded where that is wanted: group after group, each time `[units / run, tokens, run]`.
pub(crate) fn pack(
    compute: &Compute,
    x: Rows<'_>,
    format: Format,
    rounding: Option<Rounding>,
    groups: Groups,
    packed: &mut [u32],
) -> Result<(), EngineError> {
    let (cols, units) = (x.cols(), groups.filled(format.units(x.cols())));
    if units == 0 {
        return Ok(());
    }
    compute.for_each(packed.chunks_mut(groups.tokens * units), |group, packed| {
        let (first, count) = (group * groups.tokens, packed.len() / units);
        let rows = x.band(first, count);
        if format == Format::F32 && rounding.is_none() {
            let units = Units::new(bytemuck::cast_slice(rows.data()), count, 4 * cols, 4 * rows.stride());
            compute.kernels.interleave(units, count, packed);
            return Ok(());
        }
        compute.with_scratch(count * units + cols, |scratch| {
            let (rounded, row) = scratch.split_at_mut(count * units);
            for (index, rounded) in rounded.chunks_exact_mut(units).enumerate() {
                row.copy_from_slice(rows.row(index));
                if let Some(rounding) = rounding {
                    rounding.apply(row);
                }
                match format {
                    Format::F32 => rounded.copy_from_slice(row),
                    Format::Bf16 => {
                        rounded[cols / 2..].fill(0.0);
                        compute.kernels.round_bf16(row, &mut bytemuck::cast_slice_mut(rounded)[..cols]);
                    }
                }
            }
            if groups.run > 1 {
                lay_out_in_runs(bytemuck::cast_slice(rounded), units, groups.run, packed);
                return Ok(());
            }
            let bytes = if format == Format::F32 { 4 } else { 2 };
            let units = Units::new(bytemuck::cast_slice(rounded), count, bytes * cols, 4 * units);
            compute.kernels.interleave(units, count, packed);
            Ok(())
        })
    })
}

/// What [`multiply`] multiplies.
pub(crate) struct FloatProduct<'a> {
    pub(crate) format: Format,
    pub(crate) groups: Groups,
    /// All activations, as [`pack`] leaves them.
    pub(crate) packed: &'a [u32],
    pub(crate) weights: Units<'a>,
}

/// `out = packed * weights^T`.
pub(crate) fn multiply(
    compute: &Compute,
    product: &FloatProduct<'_>,
    mut out: Window<'_>,
) -> Result<(), EngineError> {
    let FloatProduct { format, groups, packed, weights } = *product;
    let (kernels, tokens) = (compute.kernels, out.rows());
    if weights.len() == 0 {
        (0..tokens).for_each(|token| out.row_mut(token).fill(0.0));
        return Ok(());
    }
    if tokens == 1 {
        let line = if format == Format::F32 { Line::F32 } else { Line::Bf16 };
        if kernels.line(line, weights, packed, out.row_mut(0)) {
            return Ok(());
        }
    }
    let len = PANEL * if groups.run > 1 { product.block() } else { product.panels_waiting() * weights.len() };
    compute.with_scratch(len, |panels| {
        let panels = &mut bytemuck::cast_slice_mut(panels)[..len];
        if groups.run > 1 {
            product.panel_by_panel(kernels, panels, &mut out);
        } else {
            product.tile_by_tile(kernels, panels, &mut out);
        }
        Ok(())
    })
}

impl FloatProduct<'_> {
    /// Units of a panel that are multiplied at a time.
    fn block(&self) -> usize {
        let units = self.weights.len();
        if self.groups.run == 1 {
            return BLOCK.min(units);
        }
        // Sums leave the tiles after each block, but the order of theirs does not depend on it.
        let blocks = units.div_ceil(2 * BLOCK).max(1);
        self.groups.filled(units.div_ceil(blocks))
    }

    /// First unit, and number of units.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + Clone + use<> {
        let (units, most) = (self.weights.len(), self.block());
        (0..units).step_by(most).map(move |unit| (unit, most.min(units - unit)))
    }

    /// First row, and number of rows.
    fn panels(&self) -> impl ExactSizeIterator<Item = (usize, usize)> + Clone + use<> {
        let all = self.weights.rows();
        (0..all).step_by(PANEL).map(move |row| (row, PANEL.min(all - row)))
    }

    /// Panels that are packed before they are multiplied.
    fn panels_waiting(&self) -> usize {
        (WAITING / (PANEL * self.weights.len())).clamp(1, self.panels().len().max(1))
    }

    /// Weights of a panel, from the one of number `row` on, and of some of its units.
    fn pack_panel(
        &self,
        kernels: Kernels,
        (row, rows): (usize, usize),
        (unit, units): (usize, usize),
        panel: &mut [u32],
    ) {
        kernels.interleave(self.weights.window(row, rows, unit, units), PANEL, panel);
        if self.format == Format::Bf16 {
            kernels.normalize_bf16(panel);
        }
    }

    /// With activations in runs: each block of a panel is multiplied with all of them while it is in the first-level cache. Such kernels
    /// are faster than the next one.
    fn panel_by_panel(&self, kernels: Kernels, panel: &mut [u32], out: &mut Window<'_>) {
        let tokens = out.rows();
        for (row, rows) in self.panels() {
            for (unit, units) in self.blocks() {
                let panel = &mut panel[..PANEL * self.groups.filled(units)];
                let (weights, rest) = panel.split_at_mut(PANEL * units);
                self.pack_panel(kernels, (row, rows), (unit, units), weights);
                rest.fill(0);
                let out = out.tile(0, tokens, row, rows);
                kernels.multiply_bf16(&mut PanelProduct::new(self.groups, self.packed, unit, panel, out));
            }
        }
    }

    /// Some panels are packed first, and then multiplied with one tile of activations after another: these stay in the first-level cache,
    /// as do their sums, and panels come from the second-level one, as fast as such kernels need them.
    fn tile_by_tile(&self, kernels: Kernels, panels: &mut [u32], out: &mut Window<'_>) {
        let (tokens, units) = (out.rows(), self.weights.len());
        let (size, waiting) = (PANEL * units, self.panels_waiting());
        for first in (0..self.panels().len()).step_by(waiting) {
            let some = self.panels().skip(first).take(waiting);
            for (rows, panel) in some.clone().zip(panels.chunks_exact_mut(size)) {
                self.pack_panel(kernels, rows, (0, units), panel);
            }
            for token in (0..tokens).step_by(TOKENS) {
                let count = TOKENS.min(tokens - token);
                let x = &self.packed[token * units..][..count * units];
                for ((row, rows), panel) in some.clone().zip(panels.chunks_exact(size)) {
                    for (unit, block) in self.blocks() {
                        let x = &x[unit * count..][..block * count];
                        let w = &panel[unit * PANEL..][..block * PANEL];
                        let tile = Tile::new(x, w, block, out.tile(token, count, row, rows), unit > 0);
                        match self.format {
                            Format::F32 => kernels.tile_f32(tile),
                            Format::Bf16 => kernels.tile_bf16(tile),
                        }
                    }
                }
            }
        }
    }
}
