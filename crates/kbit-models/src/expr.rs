//! Source expressions: how an output tensor comes from tensors of a checkpoint, evaluated by slab of rows.
//!
//! Each expression has the shape of a stack of matrices, `[slices, rows, cols]`; a vector is one row. Reading some rows
//! of it reads only what these need, row runs that lie together in one piece, with a working memory of a few mebibytes
//! (or one row, where that is more), whatever the size of the tensors.

use crate::ModelError;
use kbit_formats::{Checkpoint, Element, SourceTensor};
use kbit_types::{Dtype, GgmlType, MatrixShape};
use std::cell::RefCell;
use std::ops::Range;

/// Bytes that are read at once before they are widened.
const READ_BYTES: usize = 256 << 10;
/// Floats of intermediate rows that are held at once.
const HELD_FLOATS: u64 = 1 << 18;

/// Where the values of an output tensor come from.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceExpr {
    /// A tensor of the checkpoint, its values in their order read as `shape`.
    Tensor {
        /// Name in the checkpoint.
        name: String,
        /// How its values are read; as many as it has.
        shape: MatrixShape,
    },
    /// An 8-bit float tensor times its scales.
    Dequant {
        /// Name of the tensor in the checkpoint.
        name: String,
        /// Shape of the tensor; one slice.
        shape: MatrixShape,
        /// Name of the tensor of scales.
        scale: String,
        /// Shape of the scales: each holds for a block of rows and columns, the last ones maybe short.
        scales: MatrixShape,
        /// Rows and columns of a block.
        block: [u64; 2],
    },
    /// Computed values, in row-major order.
    Constant {
        /// The values.
        values: Vec<f32>,
        /// Their shape.
        shape: MatrixShape,
    },
    /// Some rows of each slice (a part of a fused tensor).
    Slice {
        /// The whole.
        of: Box<Self>,
        /// Which rows.
        rows: Range<u64>,
    },
    /// Slices of several expressions, one after the other (experts).
    Stack(Vec<Self>),
    /// Rows of each head from halves to pairs: row `2 j + k` of a head is row `k d/2 + j` of it in the source, for `d`
    /// rows a head. Turns Hugging Face's rotary order into ggml's.
    PermuteRows {
        /// The source.
        of: Box<Self>,
        /// Heads; they divide the rows.
        heads: u64,
    },
    /// The inverse of [`SourceExpr::PermuteRows`]: rows of each head from pairs to halves.
    UnpermuteRows {
        /// The source.
        of: Box<Self>,
        /// Heads; they divide the rows.
        heads: u64,
    },
    /// Rows and columns of each slice change places.
    Transpose(Box<Self>),
    /// A constant is added to every value, in f32.
    Add {
        /// The source.
        of: Box<Self>,
        /// What is added.
        constant: f32,
    },
    /// The same values in another shape: a column as a row.
    Reshape {
        /// The source; the rows that are read must begin and end with its rows.
        of: Box<Self>,
        /// The new shape.
        shape: MatrixShape,
    },
}

impl SourceExpr {
    /// A tensor read by its own shape: `[]` and `[n]` as one row, `[r, c]` as a matrix, more axes as slices.
    #[must_use]
    pub fn tensor(tensor: &SourceTensor) -> Self {
        Self::Tensor { name: tensor.name.clone(), shape: matrix_shape(&tensor.shape) }
    }

    /// Shape of the result.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        match self {
            Self::Tensor { shape, .. }
            | Self::Dequant { shape, .. }
            | Self::Constant { shape, .. }
            | Self::Reshape { shape, .. } => *shape,
            Self::Slice { of, rows } => {
                MatrixShape { rows: rows.end.saturating_sub(rows.start), ..of.shape() }
            }
            Self::Stack(parts) => {
                let first = parts.first().map_or(MatrixShape { rows: 0, cols: 0, slices: 0 }, Self::shape);
                MatrixShape { slices: parts.iter().map(|part| part.shape().slices).sum(), ..first }
            }
            Self::PermuteRows { of, .. } | Self::UnpermuteRows { of, .. } | Self::Add { of, .. } => {
                of.shape()
            }
            Self::Transpose(of) => {
                let MatrixShape { rows, cols, slices } = of.shape();
                MatrixShape { rows: cols, cols: rows, slices }
            }
        }
    }

    /// Names of the tensors that it reads.
    #[must_use]
    pub fn sources(&self) -> Vec<&str> {
        match self {
            Self::Tensor { name, .. } => vec![name],
            Self::Dequant { name, scale, .. } => vec![name, scale],
            Self::Constant { .. } => Vec::new(),
            Self::Stack(parts) => parts.iter().flat_map(Self::sources).collect(),
            Self::Slice { of, .. }
            | Self::PermuteRows { of, .. }
            | Self::UnpermuteRows { of, .. }
            | Self::Transpose(of)
            | Self::Add { of, .. }
            | Self::Reshape { of, .. } => of.sources(),
        }
    }

    /// Bits that the checkpoint stores for each value of the result, or `None` where it reads no tensor.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn stored_bits(&self, checkpoint: &Checkpoint) -> Option<f64> {
        let sources = self.sources();
        let (mut bytes, mut values) = (0u64, 0u64);
        for name in &sources {
            let tensor = checkpoint.tensor(name)?;
            bytes = bytes.checked_add(tensor.bytes)?;
            values = values.checked_add(tensor.shape.iter().product())?;
        }
        if let Self::Dequant { shape, .. } = self {
            values = shape.rows * shape.cols * shape.slices;
        }
        (values > 0).then(|| bytes as f64 * 8.0 / values as f64)
    }

    /// Checks that the tensors are there with the sizes and types that the expression supposes.
    ///
    /// # Errors
    /// When they are not.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let holds = |name: &str, shape: MatrixShape| -> Result<(), ModelError> {
            let tensor = find(checkpoint, name)?;
            let found = tensor.shape.iter().try_fold(1u64, |product, axis| product.checked_mul(*axis));
            if found.is_none() || found != count(shape) {
                let wanted = vec![shape.slices, shape.rows, shape.cols];
                return Err(ModelError::Shape {
                    tensor: name.to_owned(),
                    found: tensor.shape.clone(),
                    wanted,
                });
            }
            match tensor.element {
                Element::Plain(dtype) if dtype.is_float() => Ok(()),
                Element::Plain(dtype) => Err(unreadable(
                    name,
                    format!(
                        "its values are {dtype}, not floating-point numbers; get the unquantized checkpoint"
                    ),
                )),
                Element::Block(ty) if shape.cols.is_multiple_of(ty.block_elements()) => Ok(()),
                Element::Block(ty) => Err(unreadable(
                    name,
                    format!(
                        "rows of {} values are not whole blocks of {ty}; the file is damaged: get it anew",
                        shape.cols
                    ),
                )),
            }
        };
        match self {
            Self::Tensor { name, shape } => holds(name, *shape),
            Self::Dequant { name, shape, scale, scales, block } => {
                holds(name, *shape)?;
                holds(scale, *scales)?;
                let fits = |length: u64, block: u64, count: u64| block > 0 && length.div_ceil(block) == count;
                let fit = shape.slices == 1
                    && scales.slices == 1
                    && fits(shape.rows, block[0], scales.rows)
                    && fits(shape.cols, block[1], scales.cols);
                if fit {
                    Ok(())
                } else {
                    Err(unreadable(
                        scale,
                        format!(
                            "its shape does not fit blocks of {block:?} of {name}; get the checkpoint anew"
                        ),
                    ))
                }
            }
            Self::Constant { values, shape } => match count(*shape) {
                Some(wanted) if wanted == values.len() as u64 => Ok(()),
                _ => Err(self.wrong("a constant of another size than its shape")),
            },
            Self::Slice { of, rows } => {
                of.check(checkpoint)?;
                if rows.start <= rows.end && rows.end <= of.shape().rows {
                    Ok(())
                } else {
                    Err(self.wrong("a slice past the last row"))
                }
            }
            Self::Stack(parts) => {
                let shape = self.shape();
                for part in parts {
                    part.check(checkpoint)?;
                    if (part.shape().rows, part.shape().cols) != (shape.rows, shape.cols) {
                        return Err(part.wrong("a stack of matrices of different shapes"));
                    }
                }
                Ok(())
            }
            Self::PermuteRows { of, heads } | Self::UnpermuteRows { of, heads } => {
                of.check(checkpoint)?;
                if *heads > 0 && of.shape().rows.is_multiple_of(2 * heads) {
                    Ok(())
                } else {
                    Err(self.wrong(&format!("{heads} heads of an even width do not divide its rows")))
                }
            }
            Self::Transpose(of) | Self::Add { of, .. } => of.check(checkpoint),
            Self::Reshape { of, shape } => {
                of.check(checkpoint)?;
                if count(*shape) == count(of.shape()) && shape.slices == of.shape().slices {
                    Ok(())
                } else {
                    Err(self.wrong("a shape of another size"))
                }
            }
        }
    }

    /// Reads rows `rows` of slice `slice` into `out` `[rows, cols]`, row-major, as f32. Any thread.
    ///
    /// # Errors
    /// When a tensor cannot be read or decoded, or the range lies outside.
    pub fn read_rows(
        &self,
        checkpoint: &Checkpoint,
        slice: u64,
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let shape = self.shape();
        let wanted = rows.end.checked_sub(rows.start).and_then(|rows| rows.checked_mul(shape.cols));
        if slice >= shape.slices || rows.end > shape.rows || wanted != Some(out.len() as u64) {
            let what =
                format!("rows {rows:?} of slice {slice} into {} floats do not fit {shape:?}", out.len());
            return Err(self.wrong(&what));
        }
        if out.is_empty() {
            return Ok(());
        }
        match self {
            Self::Tensor { name, .. } => {
                let tensor = find(checkpoint, name)?;
                read_values(checkpoint, tensor, (slice * shape.rows + rows.start) * shape.cols, out)
            }
            Self::Dequant { name, scale, scales, block, .. } => {
                read_values(checkpoint, find(checkpoint, name)?, rows.start * shape.cols, out)?;
                let first = rows.start / block[0];
                let held = (rows.end - 1) / block[0] + 1 - first;
                let mut factors = vec![0.0; index(held * scales.cols)];
                read_values(checkpoint, find(checkpoint, scale)?, first * scales.cols, &mut factors)?;
                let (cols, width) = (index(shape.cols), index(block[1]));
                for (row, values) in rows.zip(out.chunks_exact_mut(cols)) {
                    let factors = &factors[index((row / block[0] - first) * scales.cols)..];
                    for (values, factor) in values.chunks_mut(width).zip(factors) {
                        values.iter_mut().for_each(|value| *value *= factor);
                    }
                }
                Ok(())
            }
            Self::Constant { values, .. } => {
                let start = index((slice * shape.rows + rows.start) * shape.cols);
                let values = values.get(start..start + out.len());
                out.copy_from_slice(values.ok_or_else(|| self.wrong("a constant that is too short"))?);
                Ok(())
            }
            Self::Slice { of, rows: part } => {
                of.read_rows(checkpoint, slice, part.start + rows.start..part.start + rows.end, out)
            }
            Self::Stack(parts) => {
                let mut slice = slice;
                for part in parts {
                    let slices = part.shape().slices;
                    if slice < slices {
                        return part.read_rows(checkpoint, slice, rows, out);
                    }
                    slice -= slices;
                }
                Err(self.wrong("a slice past the last"))
            }
            Self::PermuteRows { of, heads } => {
                let head = shape.rows / (*heads).max(1);
                let source = |row: u64| {
                    let within = row % head;
                    row - within + (within % 2) * (head / 2) + within / 2
                };
                read_scattered(of, checkpoint, slice, rows, &source, out)
            }
            Self::UnpermuteRows { of, heads } => {
                let head = shape.rows / (*heads).max(1);
                let half = (head / 2).max(1);
                let source = |row: u64| {
                    let within = row % head;
                    row - within + (within % half) * 2 + within / half
                };
                read_scattered(of, checkpoint, slice, rows, &source, out)
            }
            Self::Transpose(of) => read_transposed(of, checkpoint, slice, rows, out),
            Self::Add { of, constant } => {
                of.read_rows(checkpoint, slice, rows, out)?;
                out.iter_mut().for_each(|value| *value += constant);
                Ok(())
            }
            Self::Reshape { of, .. } => {
                let cols = of.shape().cols.max(1);
                let (start, end) = (rows.start * shape.cols, rows.end * shape.cols);
                if !start.is_multiple_of(cols) || !end.is_multiple_of(cols) {
                    return Err(self.wrong("rows that cut rows of its source"));
                }
                of.read_rows(checkpoint, slice, start / cols..end / cols, out)
            }
        }
    }

    fn wrong(&self, what: &str) -> ModelError {
        let reason =
            format!("{what}; this is a defect of kbit's table for the architecture: please report it");
        ModelError::Unreadable { tensor: self.sources().first().unwrap_or(&"(constant)").to_string(), reason }
    }
}

/// Rows in the order `source`, read in runs of rows that lie together.
fn read_scattered(
    of: &SourceExpr,
    checkpoint: &Checkpoint,
    slice: u64,
    rows: Range<u64>,
    source: &dyn Fn(u64) -> u64,
    out: &mut [f32],
) -> Result<(), ModelError> {
    let cols = index(of.shape().cols);
    let most = index((HELD_FLOATS / cols.max(1) as u64).max(1));
    let mut order: Vec<(u64, usize)> = rows.zip(0..).map(|(row, at)| (source(row), at)).collect();
    order.sort_unstable();
    let mut held = Vec::new();
    let mut rest = order.as_slice();
    while let Some(&(first, _)) = rest.first() {
        let run = rest.iter().zip(first..).take(most).take_while(|((row, _), wanted)| row == wanted).count();
        let (now, later) = rest.split_at(run);
        rest = later;
        held.resize(run * cols, 0.0);
        of.read_rows(checkpoint, slice, first..first + run as u64, &mut held)?;
        for (values, &(_, at)) in held.chunks_exact(cols).zip(now) {
            out[at * cols..(at + 1) * cols].copy_from_slice(values);
        }
    }
    Ok(())
}

/// Rows of the transpose: a strip of columns of the source, row by row where that is cheaper than reading it all.
fn read_transposed(
    of: &SourceExpr,
    checkpoint: &Checkpoint,
    slice: u64,
    strip: Range<u64>,
    out: &mut [f32],
) -> Result<(), ModelError> {
    let MatrixShape { rows, cols, .. } = of.shape();
    let width = index(strip.end - strip.start);
    let height = index(rows);
    let plain = match of {
        SourceExpr::Tensor { name, .. } => Some(find(checkpoint, name)?),
        _ => None,
    }
    .filter(|tensor| matches!(tensor.element, Element::Plain(dtype) if width * dtype.bytes() >= 4096));
    if let Some(tensor) = plain {
        let mut held = vec![0.0; width];
        for row in 0..rows {
            read_values(checkpoint, tensor, (slice * rows + row) * cols + strip.start, &mut held)?;
            for (at, value) in held.iter().enumerate() {
                out[at * height + index(row)] = *value;
            }
        }
        return Ok(());
    }
    let most = (HELD_FLOATS / cols.max(1)).max(1);
    let mut held = Vec::new();
    let mut first = 0;
    while first < rows {
        let now = most.min(rows - first);
        held.resize(index(now * cols), 0.0);
        of.read_rows(checkpoint, slice, first..first + now, &mut held)?;
        for (values, row) in held.chunks_exact(index(cols)).zip(index(first)..) {
            for (at, value) in values[index(strip.start)..index(strip.end)].iter().enumerate() {
                out[at * height + row] = *value;
            }
        }
        first += now;
    }
    Ok(())
}

/// Reads `out.len()` values of `tensor` from value `start`, widened or decoded to f32.
fn read_values(
    checkpoint: &Checkpoint,
    tensor: &SourceTensor,
    start: u64,
    out: &mut [f32],
) -> Result<(), ModelError> {
    thread_local! {
        static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    if tensor.element == Element::Plain(Dtype::F32) && cfg!(target_endian = "little") {
        return Ok(checkpoint.read_at(tensor, start * 4, bytemuck::cast_slice_mut(out))?);
    }
    // Values and bytes of the smallest piece that can be read.
    let (values, bytes) = match tensor.element {
        Element::Plain(dtype) => (1, dtype.bytes()),
        Element::Block(ty) => (index(ty.block_elements()), index(ty.block_bytes())),
    };
    if !start.is_multiple_of(values as u64) || !out.len().is_multiple_of(values) {
        return Err(unreadable(
            &tensor.name,
            "rows that are not whole blocks; the file is damaged: get it anew",
        ));
    }
    let mut offset = start / values as u64 * bytes as u64;
    READ.with_borrow_mut(|read| {
        let pieces = (READ_BYTES / bytes).max(1);
        for out in out.chunks_mut(pieces * values) {
            let length = out.len() / values * bytes;
            read.resize(length.max(read.len()), 0);
            let read = &mut read[..length];
            checkpoint.read_at(tensor, offset, read)?;
            offset += length as u64;
            match tensor.element {
                Element::Plain(dtype) => {
                    dtype.widen(read, out).map_err(|error| unreadable(&tensor.name, error.to_string()))?;
                }
                Element::Block(ty) => decode_blocks(&tensor.name, ty, read, out)?,
            }
        }
        Ok(())
    })
}

fn decode_blocks(tensor: &str, ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), ModelError> {
    if !kbit_blocks::can_decode(ty) {
        let reason =
            format!("kbit does not decode {ty}; give a checkpoint in a type that it does, or in f16");
        return Err(unreadable(tensor, reason));
    }
    kbit_blocks::decode(ty, bytes, out).map_err(|error| unreadable(tensor, error.to_string()))
}

fn find<'c>(checkpoint: &'c Checkpoint, name: &str) -> Result<&'c SourceTensor, ModelError> {
    checkpoint.tensor(name).ok_or_else(|| ModelError::MissingTensors { names: vec![name.to_owned()] })
}

fn unreadable(tensor: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Unreadable { tensor: tensor.to_owned(), reason: reason.into() }
}

/// A row-major shape as a stack of matrices.
pub(crate) fn matrix_shape(shape: &[u64]) -> MatrixShape {
    match shape {
        [] => MatrixShape::dense(1, 1),
        [cols] => MatrixShape::dense(1, *cols),
        [slices @ .., rows, cols] => {
            // Checkpoints check that the product of all axes fits 64 bits.
            let slices = slices.iter().fold(1u64, |product, axis| product.saturating_mul(*axis));
            MatrixShape { rows: *rows, cols: *cols, slices }
        }
    }
}

fn count(shape: MatrixShape) -> Option<u64> {
    shape.rows.checked_mul(shape.cols)?.checked_mul(shape.slices)
}

/// Lengths of slices of memory fit usize.
fn index(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
