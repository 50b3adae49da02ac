//! A weight matrix behind its codec, and the ways to multiply by it.
//!
//! Weights are decoded per use, a panel of rows at a time. For a batch of tokens a panel is decoded once, rows in
//! parallel, and then multiplied with the tokens in parallel; for a few tokens each task decodes its own rows and
//! multiplies them at once. Both give equal bits, since [`Kernels::dots`](crate::Kernels::dots) does.

use crate::EngineError;
use crate::buffer::{LINE, Rows, RowsMut, padded};
use crate::compute::Compute;
use crate::error::Shape;
use kbit_types::Codec;
use rayon::prelude::*;
use std::sync::Arc;

/// From this many activations on, a decoded panel is shared by all threads.
const BATCH: usize = 16;
/// Floats in a shared panel of decoded rows: 4 MiB.
const PANEL: usize = 1 << 20;
/// Floats in the rows that one task decodes for itself: 256 KiB.
const TASK: usize = 1 << 16;
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

    /// `out = x * weight^T`: `x` `[n, cols]`, `out` `[n, rows]`.
    pub(crate) fn multiply(
        &self,
        compute: &Compute,
        x: Rows<'_>,
        out: RowsMut<'_>,
    ) -> Result<(), EngineError> {
        assert_eq!((out.rows(), out.cols(), x.cols()), (x.rows(), self.rows, self.cols), "shapes");
        if x.rows() < BATCH {
            self.multiply_few(compute, x, out)
        } else {
            self.multiply_batch(compute, x, out)
        }
    }

    /// Panels are shared; tasks differ in their tokens.
    fn multiply_batch(
        &self,
        compute: &Compute,
        x: Rows<'_>,
        mut out: RowsMut<'_>,
    ) -> Result<(), EngineError> {
        let stride = padded(self.cols);
        let panel_rows = self.rows_for(PANEL, self.rows);
        let threads = compute.threads();
        let band = x.rows().div_ceil(2 * threads).next_multiple_of(12).min(120);
        compute.with_scratch(panel_rows * stride, |panel| {
            for first in (0..self.rows).step_by(panel_rows) {
                let count = panel_rows.min(self.rows - first);
                self.decode(compute, first, count, panel, stride)?;
                let weights = Rows::new(panel, count, self.cols, stride);
                let out = out.reborrow().columns(first, count);
                let multiply = |(index, out): (usize, RowsMut<'_>)| {
                    compute.kernels.dots(x.band(index * band, out.rows()), weights, out);
                };
                if threads > 1 {
                    out.bands(band).enumerate().collect::<Vec<_>>().into_par_iter().for_each(multiply);
                } else {
                    out.bands(band).enumerate().for_each(multiply);
                }
            }
            Ok(())
        })
    }

    /// Tasks differ in their rows; each decodes its own.
    fn multiply_few(&self, compute: &Compute, x: Rows<'_>, mut out: RowsMut<'_>) -> Result<(), EngineError> {
        if self.rows == 0 || x.rows() == 0 {
            return Ok(());
        }
        let threads = compute.threads();
        let most = if threads > 1 { self.rows.div_ceil(4 * threads) } else { self.rows };
        let task_rows = self.rows_for(TASK, most);
        let task = |(index, out): (usize, &mut [f32])| -> Result<(), EngineError> {
            let first = index * task_rows;
            let count = task_rows.min(self.rows - first);
            let out = RowsMut::new(out, x.rows(), count, count);
            if let Some(all) = self.codec.as_f32() {
                let weights = Rows::new(all, self.rows, self.cols, self.cols).band(first, count);
                compute.kernels.dots(x, weights, out);
                return Ok(());
            }
            let stride = padded(self.cols);
            compute.with_scratch(count * stride, |panel| {
                self.decode_here(first, count, panel, stride)?;
                compute.kernels.dots(x, Rows::new(panel, count, self.cols, stride), out);
                Ok(())
            })
        };
        let run = |results: &mut [f32]| {
            let size = task_rows * x.rows();
            if threads > 1 && self.rows > task_rows {
                results.par_chunks_mut(size).enumerate().try_for_each(task)
            } else {
                results.chunks_mut(size).enumerate().try_for_each(task)
            }
        };
        if x.rows() == 1 {
            return run(out.row_mut(0));
        }
        compute.with_scratch(self.rows * x.rows(), |results| {
            run(results)?;
            for (index, block) in results.chunks(task_rows * x.rows()).enumerate() {
                let count = block.len() / x.rows();
                for (row, block) in block.chunks(count).enumerate() {
                    out.row_mut(row)[index * task_rows..][..count].copy_from_slice(block);
                }
            }
            Ok(())
        })
    }

    /// Whole groups of rows that fill about `floats`, at least one group, at most as many as cover `most` rows.
    fn rows_for(&self, floats: usize, most: usize) -> usize {
        let wanted = (floats / padded(self.cols).max(1)).min(most).max(1);
        // A multiple of the kernels' tiles where the groups allow.
        let unit = if LINE.is_multiple_of(self.group) { LINE } else { self.group };
        let down = wanted / unit * unit;
        if down > 0 { down } else { unit }
    }

    /// Decodes rows `first..first + count`, in parallel.
    fn decode(
        &self,
        compute: &Compute,
        first: usize,
        count: usize,
        out: &mut [f32],
        stride: usize,
    ) -> Result<(), EngineError> {
        let threads = compute.threads();
        let rows = self.rows_for(TASK, count.div_ceil(2 * threads));
        let out = &mut out[..count * stride];
        let task = |(index, out): (usize, &mut [f32])| {
            self.decode_here(first + index * rows, rows.min(count - index * rows), out, stride)
        };
        if threads > 1 && count > rows {
            out.par_chunks_mut(rows * stride).enumerate().try_for_each(task)
        } else {
            self.decode_here(first, count, out, stride)
        }
    }

    /// Decodes rows `first..first + count` on this thread.
    fn decode_here(
        &self,
        first: usize,
        count: usize,
        out: &mut [f32],
        stride: usize,
    ) -> Result<(), EngineError> {
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
                self.decode_here(start, count, rows, stride)?;
                for &(row, place) in same_group {
                    out.row_mut(place).copy_from_slice(&rows[(row - start) * stride..][..self.cols]);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weight [{}, {}]", self.rows, self.cols)
    }
}
