//! One tensor of a plan, encoded in memory: what the engine would read from the file, and how far that is from the source. Nothing is
//! written.

use crate::convert::refuse_not_finite;
use crate::error::PipelineError;
use crate::open::Codecs;
use crate::plan::{FilePlan, Store};
use crate::slice::{SliceSource, bounded, ranges, rows_of, weights};
use kbit_formats::Checkpoint;
use kbit_host::{Bytes, MatrixInfo, PluginCodec, TensorBytes};
use kbit_models::Conversion;
use kbit_types::Codec;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The squared error of what an encoded matrix gives, and the square of what the source gives. With second moments of the inputs, that is
/// known of them; with their importance, inputs are taken to be independent; with neither, to be alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SquaredError {
    /// Sum over rows of `d H d^T`, where `d` is encoded less source and `H` has the second moments, or on its diagonal the importance.
    pub error: f64,
    /// The same of the source itself.
    pub source: f64,
}

/// Rows of a matrix that are looked at where there are second moments, about: they are alike, and each takes the square of its length.
const SAMPLED_ROWS: u64 = 256;
/// Lanes of sums: a fixed order of additions that every instruction set keeps.
const LANES: usize = 16;

/// What the inputs of a matrix are like.
enum InputStatistics {
    /// Mean square of each column.
    Importance(Vec<f32>),
    /// `[cols][cols]`.
    Moments(Vec<f32>),
}

/// The sum over rows `x` `[n][cols]` of `x H x^T`.
#[inline(always)]
fn quadratic(x: &[f32], moments: &[f32], cols: usize) -> f64 {
    let mut sum = 0.0;
    for (a, row) in moments.chunks_exact(cols).enumerate() {
        let (chunks, rest) = row[..a].as_chunks::<LANES>();
        for x in x.chunks_exact(cols) {
            let mut lanes = [0f32; LANES];
            let (own, own_rest) = x[..a].as_chunks::<LANES>();
            for (moments, x) in chunks.iter().zip(own) {
                for lane in 0..LANES {
                    lanes[lane] += moments[lane] * x[lane];
                }
            }
            let product =
                lanes.iter().sum::<f32>() + rest.iter().zip(own_rest).map(|(m, x)| m * x).sum::<f32>();
            let x = f64::from(x[a]);
            // The triangle above the diagonal is that below.
            sum += x * (2.0 * f64::from(product) + f64::from(row[a]) * x);
        }
    }
    sum
}

impl SquaredError {
    /// Of the rows of `source` whose number, the first being `first`, is a multiple of `step`; they stand for the others.
    fn on_inputs(
        (source, encoded): (&[f32], &[f32]),
        moments: &[f32],
        cols: usize,
        first: u64,
        step: u64,
    ) -> Self {
        let rows = (first..).zip(source.chunks(cols).zip(encoded.chunks(cols)));
        let (mut own, mut errors) = (Vec::new(), Vec::new());
        for (_, (source, encoded)) in rows.filter(|(number, _)| number.is_multiple_of(step)) {
            own.extend_from_slice(source);
            errors.extend(source.iter().zip(encoded).map(|(w, v)| v - w));
        }
        #[expect(clippy::cast_precision_loss, reason = "a number of rows")]
        let step = step as f64;
        pulp::Arch::new().dispatch(|| Self {
            error: step * quadratic(&errors, moments, cols).max(0.0),
            source: step * quadratic(&own, moments, cols).max(0.0),
        })
    }

    /// Of rows of `importance.len()` weights.
    fn of(source: &[f32], encoded: &[f32], importance: &[f32]) -> Self {
        let mut sums = Self::default();
        let cols = importance.len().max(1);
        for (source, encoded) in source.chunks(cols).zip(encoded.chunks(cols)) {
            for ((w, v), importance) in source.iter().zip(encoded).zip(importance) {
                let (w, v, importance) = (f64::from(*w), f64::from(*v), f64::from(*importance));
                sums.error += importance * (v - w) * (v - w);
                sums.source += importance * w * w;
            }
        }
        sums
    }

    /// Adds that of further weights.
    pub fn merge(&mut self, other: &Self) {
        self.error += other.error;
        self.source += other.source;
    }

    /// Error over source; 0 where nothing changed.
    #[must_use]
    pub fn relative(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.source }
    }
}

/// An encoded tensor.
pub struct Trial {
    /// A codec for each slice.
    pub codecs: Codecs,
    /// How far it is from the source.
    pub error: SquaredError,
}

/// Where the weights of a plan come from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// What each tensor of the model is made of.
    pub conversion: &'a Conversion,
    /// Set from another thread to stop.
    pub cancel: &'a AtomicBool,
}

/// Encodes the tensor `index` of `file`. `None` where the file holds the source's own values.
///
/// # Errors
/// A source that cannot be read, a weight that is not finite, or a scheme that refuses.
pub fn encode(origin: Source<'_>, file: &FilePlan, index: usize) -> Result<Option<Trial>, PipelineError> {
    let tensor = &file.tensors[index];
    let output = &origin.conversion.tensors[tensor.source];
    let (scheme, plan) = match &tensor.store {
        Store::Scheme { scheme, plan, .. } => (*scheme, plan),
        Store::F32 | Store::Copy { .. } => return Ok(None),
        Store::NoEncoder { ty } => {
            let tensors = vec![format!("{} ({ty})", output.name)];
            return Err(PipelineError::NoEncoder { label: file.label.clone(), tensors });
        }
    };
    let mut trial = Trial { codecs: Vec::new(), error: SquaredError::default() };
    for slice in 0..tensor.shape.slices {
        let source = SliceSource {
            checkpoint: origin.checkpoint,
            conversion: origin.conversion,
            file,
            cancel: origin.cancel,
            output,
            tensor,
            open: &file.schemes[scheme].open,
            plan,
            info: MatrixInfo { tensor: output.name.clone(), shape: tensor.shape, slice },
        };
        let whole = if plan.whole_matrix { Some(source.read_whole()?) } else { None };
        let codec = encode_slice(&source, whole.as_deref())?;
        trial.error.merge(&error_of(&source, whole.as_deref(), &codec)?);
        trial.codecs.push(Arc::new(codec));
    }
    Ok(Some(trial))
}

/// The rows of one unit of parallel work, with the places of their bytes.
type Chunk<'a> = (Range<u64>, Vec<&'a mut [u8]>);

fn encode_slice(source: &SliceSource<'_>, whole: Option<&[f32]>) -> Result<PluginCodec, PipelineError> {
    let (plan, shape) = (source.plan, source.tensor.shape);
    let (job, heads) = source.begin(whole)?;
    let mut parts: Vec<Vec<u8>> =
        plan.parts.iter().map(|part| vec![0; bounded(plan.groups(shape.rows) * part.group_bytes)]).collect();
    let chunk = source.chunk_rows();
    let mut pieces: Vec<_> = parts
        .iter_mut()
        .zip(&plan.parts)
        .map(|(bytes, part)| bytes.chunks_mut(bounded(plan.groups(chunk) * part.group_bytes).max(1)))
        .collect();
    let chunks: Vec<Chunk<'_>> = ranges(0..shape.rows, chunk)
        .map(|rows| (rows, pieces.iter_mut().map(|piece| piece.next().unwrap_or_default()).collect()))
        .collect();
    chunks.into_par_iter().try_for_each_init(Vec::new, |read, (rows, mut parts)| {
        source.check_cancelled()?;
        let values = values_of(source, whole, &rows, read)?;
        refuse_not_finite(values, source.output, rows.start, shape.cols)?;
        Ok::<_, PipelineError>(job.encode(rows, values, &mut parts)?)
    })?;
    let bytes = |all: Vec<Vec<u8>>| all.into_iter().map(Bytes::from).collect();
    Ok(source.open.open_tensor(&source.info, TensorBytes { heads: bytes(heads), parts: bytes(parts) })?)
}

/// The weights of `rows`: of the whole slice where it is in memory, else read into `read`.
fn values_of<'v>(
    source: &SliceSource<'_>,
    whole: Option<&'v [f32]>,
    rows: &Range<u64>,
    read: &'v mut Vec<f32>,
) -> Result<&'v [f32], PipelineError> {
    let cols = source.tensor.shape.cols;
    match whole {
        Some(whole) => Ok(rows_of(whole, rows, cols)),
        None => {
            read.resize(weights(rows, cols), 0.0);
            source.read(rows.clone(), read)?;
            Ok(read.as_slice())
        }
    }
}

/// The error of an encoded slice; sums of chunks are merged in their order, so that figures do not depend on the thread count.
fn error_of(
    source: &SliceSource<'_>,
    whole: Option<&[f32]>,
    codec: &PluginCodec,
) -> Result<SquaredError, PipelineError> {
    let shape = source.tensor.shape;
    let cols = bounded(shape.cols);
    let inputs = match source.known_moments()? {
        Some(moments) => InputStatistics::Moments(moments),
        None => InputStatistics::Importance(source.known_importance()?.unwrap_or_else(|| vec![1.0; cols])),
    };
    let step = shape.rows.div_ceil(SAMPLED_ROWS).max(1);
    let chunks: Vec<Range<u64>> = ranges(0..shape.rows, source.chunk_rows()).collect();
    let sums = chunks
        .into_par_iter()
        .map_init(
            || (Vec::new(), Vec::new()),
            |(read, decoded), rows| {
                source.check_cancelled()?;
                let values = values_of(source, whole, &rows, read)?;
                decoded.resize(values.len(), 0.0);
                let first = rows.start;
                codec.decode(rows, decoded, cols)?;
                Ok(match &inputs {
                    InputStatistics::Importance(importance) => SquaredError::of(values, decoded, importance),
                    InputStatistics::Moments(moments) => {
                        SquaredError::on_inputs((values, decoded), moments, cols, first, step)
                    }
                })
            },
        )
        .collect::<Result<Vec<_>, PipelineError>>()?;
    let mut all = SquaredError::default();
    sums.iter().for_each(|sums| all.merge(sums));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_count_by_the_importance_of_their_columns() {
        let sums = SquaredError::of(&[3.0, 4.0, 1.0, 2.0], &[3.0, 3.0, 0.0, 2.0], &[1.0, 10.0]);
        assert_eq!(sums, SquaredError { error: 11.0, source: 9.0 + 160.0 + 1.0 + 40.0 });
        assert_eq!(SquaredError::default().relative(), 0.0);
    }

    #[test]
    fn errors_that_inputs_cancel_do_not_count() {
        // Inputs whose columns are all equal feel the sum of a row's errors.
        for cols in [1, 5, 16, 40] {
            let moments = vec![3.0; cols * cols];
            let source: Vec<f32> = (0..4 * cols).map(|i| (i % 7) as f32 - 2.0).collect();
            let encoded: Vec<f32> =
                source.iter().enumerate().map(|(i, w)| w + if i % 3 == 0 { 1.0 } else { -0.5 }).collect();
            let of = |step: u64| {
                let square = |rows: &[f32]| -> f64 {
                    let sums = rows.chunks(cols).map(|row| f64::from(row.iter().sum::<f32>()));
                    // Rows 6 to 9: those that are multiples of the step.
                    let taken = (6u64..).zip(sums).filter(|(number, _)| number.is_multiple_of(step));
                    taken.map(|(_, sum)| 3.0 * sum * sum).sum::<f64>() * step as f64
                };
                let errors: Vec<f32> = source.iter().zip(&encoded).map(|(w, v)| v - w).collect();
                SquaredError { error: square(&errors), source: square(&source) }
            };
            for step in [1, 2] {
                let found = SquaredError::on_inputs((&source, &encoded), &moments, cols, 6, step);
                let wanted = of(step);
                assert!((found.error - wanted.error).abs() < 1e-3, "{cols}: {found:?}, {wanted:?}");
                assert!((found.source - wanted.source).abs() < 1e-3 * wanted.source.max(1.0), "{cols}");
            }
        }
    }
}
