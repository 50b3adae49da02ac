//! One slice of a tensor on its way to a scheme: read by rows, observed, with what its scheme is told beside the weights.
//!
//! Work is cut into chunks of a fixed number of weights, whatever the thread count.

use crate::error::PipelineError;
use crate::plan::{FilePlan, PlannedTensor};
use kbit_calibrate::Coverage;
use kbit_formats::Checkpoint;
use kbit_host::{AuxData, Job, MatrixInfo, OpenScheme, TensorPlan};
use kbit_models::{Conversion, OutputTensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Weights in one unit of parallel work: its f32 form stays in a core's second-level cache.
pub(crate) const CHUNK_WEIGHTS: u64 = 1 << 16;
/// Weights in memory at once, twice where one slab is hashed while the next is encoded.
pub(crate) const SLAB_WEIGHTS: u64 = 1 << 22;

/// What the random choices of a scheme begin with: the 64-bit FNV-1a hash of the tensor's name and the slice. So they depend on neither the
/// order of tensors nor the file they are in.
fn seed_of(tensor: &str, slice: u64) -> u64 {
    let bytes = tensor.bytes().chain(slice.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One slice of a tensor, and the scheme that stores it.
pub(crate) struct SliceSource<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) conversion: &'a Conversion,
    pub(crate) file: &'a FilePlan,
    pub(crate) cancel: &'a AtomicBool,
    pub(crate) output: &'a OutputTensor,
    pub(crate) tensor: &'a PlannedTensor,
    pub(crate) open: &'a OpenScheme,
    pub(crate) plan: &'a TensorPlan,
    pub(crate) info: MatrixInfo,
}

impl SliceSource<'_> {
    pub(crate) fn group(&self) -> u64 {
        self.plan.row_group
    }

    pub(crate) fn chunk_rows(&self) -> u64 {
        rows_for(CHUNK_WEIGHTS, self.tensor.shape.cols, self.group())
    }

    /// Rows of a slab: whole chunks.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = Range<u64>> {
        let chunk = self.chunk_rows();
        let rows = rows_for(SLAB_WEIGHTS, self.tensor.shape.cols, chunk);
        ranges(0..self.tensor.shape.rows, rows)
    }

    pub(crate) fn read(&self, rows: Range<u64>, values: &mut [f32]) -> Result<(), PipelineError> {
        Ok(self.output.expr.read_rows(self.checkpoint, self.info.slice, rows, values)?)
    }

    /// Reads `rows` into `values`, chunks in parallel.
    fn read_parallel(&self, rows: Range<u64>, values: &mut Vec<f32>) -> Result<(), PipelineError> {
        let cols = self.tensor.shape.cols;
        values.resize(weights(&rows, cols), 0.0);
        let chunk = self.chunk_rows();
        let chunks: Vec<_> = ranges(rows, chunk).zip(values.chunks_mut(weights(&(0..chunk), cols))).collect();
        chunks.into_par_iter().try_for_each(|(rows, values)| self.read(rows, values))
    }

    pub(crate) fn read_whole(&self) -> Result<Vec<f32>, PipelineError> {
        let mut values = Vec::new();
        self.read_parallel(0..self.tensor.shape.rows, &mut values)?;
        Ok(values)
    }

    /// Importance of the slice's columns and the tokens that it was gathered on, where the plan gives it to the scheme.
    fn importance(&self) -> Result<Option<(Vec<f32>, u64)>, PipelineError> {
        let Some(importance) = self.file.importance.as_ref().filter(|_| self.tensor.importance) else {
            return Ok(None);
        };
        let mut values = vec![0.0; bounded(self.tensor.shape.cols)];
        let tokens = importance.read(
            &self.file.edits.original_name(&self.info.tensor),
            self.info.slice,
            &mut values,
        )?;
        Ok(Some((values, tokens)))
    }

    /// Importance of the slice's columns, whether or not its scheme is told. `None` where it is not known, or all are 0.
    pub(crate) fn known_importance(&self) -> Result<Option<Vec<f32>>, PipelineError> {
        let Some(importance) = self.file.importance.as_ref() else { return Ok(None) };
        let shape = self.tensor.shape;
        let name = self.file.edits.original_name(&self.info.tensor);
        if matches!(
            importance.coverage(&name, shape.slices, shape.cols),
            Coverage::Absent | Coverage::OtherSize { .. }
        ) {
            return Ok(None);
        }
        let mut values = vec![0.0; bounded(shape.cols)];
        importance.read(&name, self.info.slice, &mut values)?;
        Ok(values.iter().any(|value| *value > 0.0).then_some(values))
    }

    /// Second moments of the slice's inputs, where the plan gives them to the scheme.
    fn moments(&self) -> Result<Option<Vec<f32>>, PipelineError> {
        if self.tensor.moments { self.known_moments() } else { Ok(None) }
    }

    /// Second moments of the slice's inputs, whether or not its scheme is told. `None` where they are not known.
    pub(crate) fn known_moments(&self) -> Result<Option<Vec<f32>>, PipelineError> {
        let Some(importance) = self.file.importance.as_ref() else { return Ok(None) };
        let (name, shape) = (self.file.edits.original_name(&self.info.tensor), self.tensor.shape);
        if !importance.matrix.has_moments(&name, shape.slices, shape.cols) {
            return Ok(None);
        }
        Ok(Some(importance.matrix.estimate_moments(&name, self.info.slice)?))
    }

    /// For each column, the deviation of the weights that produce it, where the plan gives it to the scheme.
    fn producer(&self) -> Result<Option<Vec<f32>>, PipelineError> {
        if !self.tensor.producer {
            return Ok(None);
        }
        let shape = self.tensor.shape;
        let deviations = self
            .conversion
            .producer(&self.output.name, shape)
            .map(|producer| producer.deviations(self.checkpoint, shape.cols, self.info.slice, shape.slices));
        Ok(deviations.transpose()?)
    }

    /// Opens the job; observes all groups and prepares where the plan asks for it.
    pub(crate) fn begin(&self, whole: Option<&[f32]>) -> Result<(Job, Vec<Vec<u8>>), PipelineError> {
        let importance = self.importance()?;
        let moments = self.moments()?;
        let producer = self.producer()?;
        let aux = AuxData {
            diag: importance.as_ref().map(|(values, _)| values.as_slice()),
            hessian: moments.as_ref().map(|values| (values.as_slice(), self.tensor.shape.cols)),
            producer_std: producer.as_deref(),
            n_samples: importance.as_ref().map_or(0, |(_, tokens)| *tokens),
            seed: seed_of(&self.info.tensor, self.info.slice),
        };
        let mut job = self.open.begin(&self.info, whole, &aux)?;
        let mut stats = Vec::new();
        if self.plan.stat_bytes > 0 {
            let cols = self.tensor.shape.cols;
            let bytes = self.plan.groups(self.tensor.shape.rows).checked_mul(self.plan.stat_bytes);
            let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
                PipelineError::TooLarge { tensor: self.output.name.clone(), shape: self.output.shape.clone() }
            })?;
            stats.resize(bytes, 0u8);
            let mut rest = stats.as_mut_slice();
            let mut read = Vec::new();
            for rows in self.slabs() {
                self.check_cancelled()?;
                let values = match whole {
                    Some(whole) => rows_of(whole, &rows, cols),
                    None => {
                        self.read_parallel(rows.clone(), &mut read)?;
                        &read
                    }
                };
                let slab_stats;
                (slab_stats, rest) = rest.split_at_mut(self.stat_bytes(&rows));
                let chunk = self.chunk_rows();
                let chunks: Vec<_> = ranges(rows, chunk)
                    .zip(values.chunks(weights(&(0..chunk), cols)))
                    .zip(slab_stats.chunks_mut(self.stat_bytes(&(0..chunk))))
                    .collect();
                chunks
                    .into_par_iter()
                    .try_for_each(|((rows, values), stats)| job.observe(rows, values, stats))?;
            }
        }
        let needs_prepare =
            self.plan.stat_bytes > 0 || self.plan.parts.iter().any(|part| part.head_bytes > 0);
        let heads =
            if needs_prepare { job.prepare(&stats)? } else { vec![Vec::new(); self.plan.parts.len()] };
        Ok((job, heads))
    }

    fn stat_bytes(&self, rows: &Range<u64>) -> usize {
        bounded(self.plan.groups(rows.end - rows.start) * self.plan.stat_bytes)
    }

    pub(crate) fn check_cancelled(&self) -> Result<(), PipelineError> {
        if self.cancel.load(Ordering::Relaxed) { Err(PipelineError::Cancelled) } else { Ok(()) }
    }
}

/// Rows that hold about `target` weights: a multiple of `group`, at least one group.
pub(crate) fn rows_for(target: u64, cols: u64, group: u64) -> u64 {
    (target / cols.max(1) / group.max(1)).max(1) * group.max(1)
}

/// `rows` in pieces of `step`; the last may be shorter.
pub(crate) fn ranges(rows: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let end = rows.end;
    std::iter::successors((rows.start < end).then_some(rows.start), move |start| {
        start.checked_add(step).filter(|next| *next < end)
    })
    .map(move |start| start..start.saturating_add(step).min(end))
}

/// The weights of `rows` among those of all rows.
pub(crate) fn rows_of<'a>(whole: &'a [f32], rows: &Range<u64>, cols: u64) -> &'a [f32] {
    &whole[weights(&(0..rows.start), cols)..weights(&(0..rows.end), cols)]
}

/// Number of weights in `rows`; slabs are bounded, so this fits memory.
pub(crate) fn weights(rows: &Range<u64>, cols: u64) -> usize {
    bounded((rows.end - rows.start) * cols)
}

/// A size that the plan has already checked against the file's size, as `usize`.
pub(crate) fn bounded(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_rows_once() {
        assert_eq!(ranges(3..10, 4).collect::<Vec<_>>(), [3..7, 7..10]);
        assert_eq!(ranges(0..0, 4).count(), 0);
    }

    #[test]
    fn tensors_and_slices_have_seeds_of_their_own() {
        let seeds = [("blk.0.attn_q.weight", 0), ("blk.1.attn_q.weight", 0), ("blk.0.attn_q.weight", 1)]
            .map(|(tensor, slice)| seed_of(tensor, slice));
        assert!(seeds[0] != seeds[1] && seeds[0] != seeds[2] && seeds[1] != seeds[2]);
        // "a" and a slice without bits: the hash's own check value, eight times multiplied.
        let of_a = 0xaf63_dc4c_8601_ec8c_u64;
        assert_eq!(seed_of("a", 0), (0..8).fold(of_a, |hash, _| hash.wrapping_mul(0x0100_0000_01b3)));
    }

    #[test]
    fn pieces_start_at_groups() {
        assert_eq!(rows_for(1 << 16, 64, 24), 1008);
        assert_eq!(rows_for(1 << 16, 1 << 20, 3), 3);
    }
}
