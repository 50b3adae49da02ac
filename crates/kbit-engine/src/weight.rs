//! A weight matrix behind its codec, and the ways to multiply by it.
//!
//! Weights are decoded per use, some rows at a time, and packed into panels ([`packed`](crate::packed)); a task multiplies each panel
//! with all activations while it is in the first-level cache. One token goes the same way as a batch: packing keeps up with the
//! memory that the weights come from. So every output is one sum, whose order depends on nothing but the number of columns.

use crate::buffer::{Rows, RowsMut, Window, padded};
use crate::compute::Compute;
use crate::error::Shape;
use crate::integer;
use crate::mode::{Mode, Rounding};
use crate::packed::{BLOCK, PANEL, TOKENS, Tile, Units};
use crate::{EngineError, Kernels};
use kbit_types::{ActivationKind, Codec, FusedDot};
use std::sync::Arc;

/// Floats in the rows that one task decodes: 256 KiB.
const TASK: usize = 1 << 16;

/// `out = x * weight^T` in a mode, by the threads of rayon's current pool: `x` `[n, cols]`, `out` `[n, rows]`, where `codec` holds
/// `[rows, cols]`. The product that a [`Model`](crate::Model) computes with.
///
/// # Errors
/// When the matrix cannot be decoded, or memory is short.
///
/// # Panics
/// If the shapes disagree.
pub fn multiply(
    codec: Arc<dyn Codec>,
    mode: Mode,
    kernels: Kernels,
    x: Rows<'_>,
    out: RowsMut<'_>,
) -> Result<(), EngineError> {
    let (rows, cols) = (out.cols(), x.cols());
    let weight = Weight::new("weight", codec, rows, cols)?;
    let compute = Compute::new(kernels, mode, true);
    let work = || weight.multiply(&compute, x, out);
    match compute.team() {
        Some(team) => team.gather(work),
        None => work(),
    }
}

/// A matrix `[rows, cols]` that multiplies activations `[n, cols]` to `[n, rows]`.
#[derive(Clone)]
pub(crate) struct Weight {
    codec: Arc<dyn Codec>,
    rows: usize,
    cols: usize,
    /// Decoding starts at multiples of this many rows.
    group: usize,
}

impl Weight {
    /// Checks the shape.
    pub(crate) fn new(
        tensor: &str,
        codec: Arc<dyn Codec>,
        rows: usize,
        cols: usize,
    ) -> Result<Self, EngineError> {
        let shape = codec.shape();
        if (shape.rows, shape.cols, shape.slices) != (rows as u64, cols as u64, 1) {
            let found = match shape.slices {
                1 => vec![shape.rows, shape.cols],
                slices => vec![slices, shape.rows, shape.cols],
            };
            return Err(EngineError::TensorShape {
                tensor: tensor.to_owned(),
                found: Shape(found),
                wanted: Shape(vec![rows as u64, cols as u64]),
            });
        }
        let group = usize::try_from(codec.row_group()).unwrap_or(usize::MAX).clamp(1, rows.max(1));
        Ok(Self { codec, rows, cols, group })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// `out = x * weight^T` in the mode of `compute`: `x` `[n, cols]`, `out` `[n, rows]`.
    pub(crate) fn multiply(
        &self,
        compute: &Compute,
        x: Rows<'_>,
        out: RowsMut<'_>,
    ) -> Result<(), EngineError> {
        assert_eq!((out.rows(), out.cols(), x.cols()), (x.rows(), self.rows, self.cols), "shapes");
        if self.rows == 0 || x.rows() == 0 {
            return Ok(());
        }
        if compute.mode == Mode::Int8
            && let Some(integers) = self.codec.integers()
        {
            return integer::multiply(compute, integers, self.task_rows(compute.threads()), x, out);
        }
        let kind = match compute.mode {
            Mode::F32 => Some(ActivationKind::F32),
            Mode::Bf16 => Some(ActivationKind::Bf16),
            Mode::Int8 => Some(ActivationKind::Int8),
            Mode::Activations(_) => None,
        };
        if let Some(fused) = self.codec.fused()
            && kind == Some(fused.activation())
        {
            return self.multiply_fused(compute, fused, x, out);
        }
        let (format, rounding) = match compute.mode {
            Mode::F32 => (Format::F32, None),
            Mode::Bf16 => (Format::Bf16, None),
            Mode::Int8 if self.codec.as_bf16().is_some() => (Format::Bf16, None),
            Mode::Int8 if self.codec.holds_floats() => (Format::F32, None),
            Mode::Int8 => (Format::F32, Some(Rounding::EIGHT)),
            Mode::Activations(rounding) => (Format::F32, Some(rounding)),
        };
        self.multiply_floats(compute, x, out, format, rounding)
    }

    /// The codec's own product.
    fn multiply_fused(
        &self,
        compute: &Compute,
        fused: &dyn FusedDot,
        x: Rows<'_>,
        out: RowsMut<'_>,
    ) -> Result<(), EngineError> {
        let (tokens, bytes) = (x.rows(), fused.activation_bytes());
        // Whole floats of scratch memory.
        compute.with_scratch((tokens * bytes).div_ceil(4), |packed| {
            let packed = &mut bytemuck::cast_slice_mut::<f32, u8>(packed)[..tokens * bytes];
            compute.for_each(packed.chunks_mut(bytes.max(1)), |token, packed| {
                Ok(fused.pack(x.row(token), packed)?)
            })?;
            let packed = &*packed;
            let task_rows = self.task_rows(compute.threads());
            compute.for_each(out.windows(task_rows), |task, mut out| {
                let (first, count) = (task * task_rows, out.cols());
                let rows = first as u64..(first + count) as u64;
                if tokens == 1 {
                    return Ok(fused.dot(rows, packed, 1, out.row_mut(0), count)?);
                }
                compute.with_scratch(tokens * count, |products| {
                    fused.dot(rows, packed, tokens, products, count)?;
                    for (token, products) in products.chunks_exact(count).enumerate() {
                        out.row_mut(token).copy_from_slice(products);
                    }
                    Ok(())
                })
            })
        })
    }

    /// A product of floats. Activations are packed once; tasks differ in their rows, which each decodes and packs for itself.
    fn multiply_floats(
        &self,
        compute: &Compute,
        x: Rows<'_>,
        out: RowsMut<'_>,
        format: Format,
        rounding: Option<Rounding>,
    ) -> Result<(), EngineError> {
        let units = format.units(self.cols);
        compute.with_scratch(x.rows() * units, |packed| {
            pack_activations(compute, x, format, rounding, bytemuck::cast_slice_mut(packed))?;
            let packed: &[u32] = bytemuck::cast_slice(packed);
            let task_rows = self.task_rows(compute.threads());
            compute.for_each(out.windows(task_rows), |task, mut out| {
                self.with_units(compute, task * task_rows, out.cols(), format, |weights| {
                    compute.with_scratch(BLOCK.min(units) * PANEL, |panel| {
                        multiply_tiles(
                            compute.kernels,
                            format,
                            packed,
                            weights,
                            bytemuck::cast_slice_mut(panel),
                            &mut out,
                        );
                        Ok(())
                    })
                })
            })
        })
    }

    /// Rows of a task: whole panels where groups allow, as many as fill its scratch memory, but several tasks for each thread.
    fn task_rows(&self, threads: usize) -> usize {
        let most = if threads > 1 { self.rows.div_ceil(4 * threads) } else { self.rows };
        let wanted = (TASK / self.cols.max(1)).min(most);
        let unit = if PANEL.is_multiple_of(self.group) { PANEL } else { self.group };
        (wanted / unit * unit).max(unit)
    }

    /// Calls `work` with rows `first..first + count`, as units of the format.
    fn with_units<T>(
        &self,
        compute: &Compute,
        first: usize,
        count: usize,
        format: Format,
        work: impl FnOnce(Units<'_>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let cols = self.cols;
        match format {
            Format::F32 => {
                if let Some(all) = self.codec.as_f32() {
                    let rows = &all[first * cols..(first + count) * cols];
                    return work(Units::new(bytemuck::cast_slice(rows), count, 4 * cols, 4 * cols));
                }
                let stride = padded(cols);
                compute.with_scratch(count * stride, |rows| {
                    self.decode(first, count, rows, stride)?;
                    work(Units::new(bytemuck::cast_slice(rows), count, 4 * cols, 4 * stride))
                })
            }
            Format::Bf16 => {
                if compute.kernels.multiplies_bf16()
                    && let Some(all) = self.codec.as_bf16()
                {
                    let rows = &all[first * cols..(first + count) * cols];
                    return work(Units::new(bytemuck::cast_slice(rows), count, 2 * cols, 2 * cols));
                }
                let (stride, width) = (padded(cols), format.units(cols));
                compute.with_scratch(count * stride + count * width, |scratch| {
                    let (rows, rounded) = scratch.split_at_mut(count * stride);
                    self.decode(first, count, rows, stride)?;
                    let rounded = bytemuck::cast_slice_mut::<f32, u16>(rounded);
                    for (row, rounded) in rows.chunks(stride).zip(rounded.chunks_exact_mut(2 * width)) {
                        compute.kernels.round_bf16(&row[..cols], &mut rounded[..cols]);
                    }
                    work(Units::new(bytemuck::cast_slice(rounded), count, 2 * cols, 4 * width))
                })
            }
        }
    }

    /// Decodes rows `first..first + count`.
    fn decode(&self, first: usize, count: usize, out: &mut [f32], stride: usize) -> Result<(), EngineError> {
        if let Some(all) = self.codec.as_f32() {
            let rows = Rows::new(all, self.rows, self.cols, self.cols);
            for (row, out) in out.chunks_mut(stride).enumerate().take(count) {
                out[..self.cols].copy_from_slice(rows.row(first + row));
            }
            return Ok(());
        }
        Ok(self.codec.decode(first as u64..(first + count) as u64, out, stride)?)
    }

    /// `out[i] = row tokens[i]`: the rows of an embedding, each decoded once.
    pub(crate) fn gather(
        &self,
        compute: &Compute,
        tokens: &[u32],
        mut out: RowsMut<'_>,
    ) -> Result<(), EngineError> {
        assert_eq!((out.rows(), out.cols()), (tokens.len(), self.cols), "shape of the result");
        let mut order: Vec<(usize, usize)> =
            tokens.iter().enumerate().map(|(place, &token)| (token as usize, place)).collect();
        order.sort_unstable();
        let stride = padded(self.cols);
        for same_group in order.chunk_by(|a, b| a.0 / self.group == b.0 / self.group) {
            let start = same_group[0].0 / self.group * self.group;
            let count = same_group[same_group.len() - 1].0 + 1 - start;
            compute.with_scratch(count * stride, |rows| {
                self.decode(start, count, rows, stride)?;
                for &(row, place) in same_group {
                    out.row_mut(place).copy_from_slice(&rows[(row - start) * stride..][..self.cols]);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Floats that are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    F32,
    Bf16,
}

impl Format {
    /// Units of `cols` floats.
    fn units(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols,
            Self::Bf16 => cols.div_ceil(2),
        }
    }
}

/// Packs activations, rounded where that is wanted: `TOKENS` rows after `TOKENS` rows, each time `[units, tokens]`.
fn pack_activations(
    compute: &Compute,
    x: Rows<'_>,
    format: Format,
    rounding: Option<Rounding>,
    packed: &mut [u32],
) -> Result<(), EngineError> {
    let (cols, units) = (x.cols(), format.units(x.cols()));
    if units == 0 {
        return Ok(());
    }
    compute.for_each(packed.chunks_mut(TOKENS * units), |group, packed| {
        let (first, count) = (group * TOKENS, packed.len() / units);
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
                        compute.kernels.round_bf16(row, &mut bytemuck::cast_slice_mut(rounded)[..cols]);
                    }
                }
            }
            let bytes = if format == Format::F32 { 4 } else { 2 };
            let units = Units::new(bytemuck::cast_slice(rounded), count, bytes * cols, 4 * units);
            compute.kernels.interleave(units, count, packed);
            Ok(())
        })
    })
}

/// `out = x * weights^T`: panel by panel, and of each panel block by block. `panel` is scratch memory for one block of a panel.
fn multiply_tiles(
    kernels: Kernels,
    format: Format,
    packed: &[u32],
    weights: Units<'_>,
    panel: &mut [u32],
    out: &mut Window<'_>,
) {
    let (tokens, units) = (out.rows(), weights.len());
    if units == 0 {
        (0..tokens).for_each(|token| out.row_mut(token).fill(0.0));
        return;
    }
    if tokens == 1 {
        let out = out.row_mut(0);
        let done = match format {
            Format::F32 => kernels.line_f32(weights, packed, out),
            Format::Bf16 => kernels.line_bf16(weights, packed, out),
        };
        if done {
            return;
        }
    }
    for row in (0..weights.rows()).step_by(PANEL) {
        let rows = PANEL.min(weights.rows() - row);
        for unit in (0..units).step_by(BLOCK) {
            let block = BLOCK.min(units - unit);
            let panel = &mut panel[..block * PANEL];
            kernels.interleave(weights.window(row, rows, unit, block), PANEL, panel);
            for token in (0..tokens).step_by(TOKENS) {
                let count = TOKENS.min(tokens - token);
                let x = &packed[token * units + unit * count..][..block * count];
                let tile = Tile::new(x, panel, block, out.tile(token, count, row, rows), unit > 0);
                match format {
                    Format::F32 => kernels.tile_f32(tile),
                    Format::Bf16 => kernels.tile_bf16(tile),
                }
            }
        }
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weight [{}, {}]", self.rows, self.cols)
    }
}
