//! Source expressions: how an output tensor comes from tensors of a checkpoint, evaluated by slab of rows.
//!
//! Each expression has the shape of a stack of matrices, `[slices, rows, cols]`; a vector is one row. Reading some rows
//! of it reads only what these need, row runs that lie together in one piece, with a working memory of a few mebibytes
//! (or one row, where that is more), whatever the size of the tensors.

use crate::ModelError;
use crate::fp4::Fp4;
use crate::packed::{Packed, Ternary};
use kbit_formats::{Checkpoint, Element, SourceTensor};
use kbit_types::{Dtype, GgmlType, MatrixShape};
use std::cell::RefCell;
use std::ops::Range;

/// Bytes that are read at once before they are widened.
const READ_BYTES: usize = 256 << 10;
/// Floats of intermediate rows that are held at once.
const HELD_FLOATS: u64 = 1 << 18;
/// How far apart two wanted rows may lie to be read in one piece with those between them.
const SKIPPED_ROWS: u64 = 4;

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
    /// 8-bit floats or whole numbers, less their zero points, times their scales.
    Dequant {
        /// Name of the tensor in the checkpoint.
        name: String,
        /// Shape of the tensor.
        shape: MatrixShape,
        /// Name of the tensor of scales.
        scale: String,
        /// Shape of the scales, one slice or as many: each holds for a block of rows and columns, the last ones maybe short.
        scales: MatrixShape,
        /// Name of the tensor of zero points, of the scales' shape.
        zero: Option<String>,
        /// Rows and columns of a block.
        block: [u64; 2],
    },
    /// Packed codes with scales and zero points: GPTQ, AWQ, compressed-tensors.
    Packed(Box<Packed>),
    /// Ternary codes, four a byte, with one scale: BitNet.
    Ternary(Box<Ternary>),
    /// 4-bit floats with scales: MXFP4 and NVFP4.
    Fp4(Box<Fp4>),
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
    /// Rows in another order, or only some of them: row `first + i0 s0 + i1 s1 + ...` of the source for each index
    /// `(i0, i1, ...)` below the counts of the axes, the last axis fastest. So rows of fused, interleaved and grouped
    /// tensors are found.
    Gather {
        /// The source.
        of: Box<Self>,
        /// The first row.
        first: u64,
        /// Counts and strides, in rows of the source.
        axes: Vec<Axis>,
    },
    /// Rows of several expressions, one after the other in each slice.
    Concat(Vec<Self>),
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
    /// The same values in another shape: a column as a row, rows as slices.
    Reshape {
        /// The source; the rows that are read must begin and end with its rows.
        of: Box<Self>,
        /// The new shape.
        shape: MatrixShape,
    },
}

/// An axis of [`SourceExpr::Gather`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// How many indices it has.
    pub count: u64,
    /// Rows of the source from one index to the next.
    pub stride: u64,
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
            Self::Packed(packed) => packed.shape,
            Self::Ternary(ternary) => ternary.shape,
            Self::Fp4(floats) => floats.shape,
            Self::Slice { of, rows } => {
                MatrixShape { rows: rows.end.saturating_sub(rows.start), ..of.shape() }
            }
            Self::Gather { of, axes, .. } => {
                let rows = axes.iter().fold(1u64, |rows, axis| rows.saturating_mul(axis.count));
                MatrixShape { rows, ..of.shape() }
            }
            Self::Concat(parts) => {
                let first = parts.first().map_or(MatrixShape { rows: 0, cols: 0, slices: 0 }, Self::shape);
                let rows = parts.iter().fold(0u64, |rows, part| rows.saturating_add(part.shape().rows));
                MatrixShape { rows, ..first }
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
            Self::Dequant { name, scale, zero, .. } => {
                [Some(name), Some(scale), zero.as_ref()].into_iter().flatten().map(String::as_str).collect()
            }
            Self::Packed(packed) => packed.sources(),
            Self::Ternary(ternary) => vec![&ternary.codes, &ternary.scale],
            Self::Fp4(floats) => floats.sources(),
            Self::Constant { .. } => Vec::new(),
            Self::Stack(parts) | Self::Concat(parts) => {
                let mut names: Vec<&str> = Vec::new();
                let mut known = std::collections::HashSet::new();
                names.extend(parts.iter().flat_map(Self::sources).filter(|name| known.insert(*name)));
                names
            }
            Self::Slice { of, .. }
            | Self::Gather { of, .. }
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
        let mut bytes = 0u64;
        for name in self.sources() {
            bytes = bytes.checked_add(checkpoint.tensor(name)?.bytes)?;
        }
        let values = self.stored_values(checkpoint)?;
        (values > 0).then(|| bytes as f64 * 8.0 / values as f64)
    }

    /// Weights that the tensors stand for which it reads: of a fused tensor all.
    fn stored_values(&self, checkpoint: &Checkpoint) -> Option<u64> {
        match self {
            Self::Tensor { name, .. } => Some(checkpoint.tensor(name)?.shape.iter().product()),
            Self::Dequant { .. } | Self::Packed(_) | Self::Ternary(_) | Self::Fp4(_) => count(self.shape()),
            Self::Constant { .. } => Some(0),
            Self::Concat(parts) | Self::Stack(parts) => {
                let mut known = std::collections::HashSet::new();
                parts
                    .iter()
                    .filter(|part| known.insert(part.sources()))
                    .try_fold(0u64, |sum, part| sum.checked_add(part.stored_values(checkpoint)?))
            }
            Self::Slice { of, .. }
            | Self::Gather { of, .. }
            | Self::PermuteRows { of, .. }
            | Self::UnpermuteRows { of, .. }
            | Self::Transpose(of)
            | Self::Add { of, .. }
            | Self::Reshape { of, .. } => of.stored_values(checkpoint),
        }
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
            Self::Packed(packed) => packed.check(checkpoint),
            Self::Ternary(ternary) => ternary.check(checkpoint),
            Self::Fp4(floats) => floats.check(checkpoint),
            Self::Dequant { name, shape, scale, scales, zero, block } => {
                // Whole numbers of 8 bits are scaled as floats are.
                let tensor = find(checkpoint, name)?;
                if tensor.element != Element::Plain(Dtype::I8) || matrix_shape(&tensor.shape) != *shape {
                    holds(name, *shape)?;
                }
                holds(scale, *scales)?;
                if let Some(zero) = zero {
                    let tensor = find(checkpoint, zero)?;
                    let values = tensor.shape.iter().try_fold(1u64, |all, axis| all.checked_mul(*axis));
                    if tensor.element != Element::Plain(Dtype::I8) || values != count(*scales) {
                        return Err(unreadable(
                            zero,
                            format!(
                                "it is not an 8-bit zero point for each value of {scale}; get the checkpoint anew"
                            ),
                        ));
                    }
                }
                let fits = |length: u64, block: u64, count: u64| block > 0 && length.div_ceil(block) == count;
                let fit = (scales.slices == 1 || scales.slices == shape.slices)
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
            Self::Gather { of, first, axes } => {
                of.check(checkpoint)?;
                // The last row that is read; no axis may be empty.
                let last = axes.iter().try_fold(*first, |last, axis| {
                    axis.count.checked_sub(1)?.checked_mul(axis.stride)?.checked_add(last)
                });
                if last.is_some_and(|last| last < of.shape().rows) {
                    Ok(())
                } else {
                    Err(self.wrong("rows past the last"))
                }
            }
            Self::Concat(parts) => {
                let shape = self.shape();
                for part in parts {
                    part.check(checkpoint)?;
                    if (part.shape().slices, part.shape().cols) != (shape.slices, shape.cols) {
                        return Err(part.wrong("rows of different lengths one after the other"));
                    }
                }
                Ok(())
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
                if count(*shape).is_some() && count(*shape) == count(of.shape()) {
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
            Self::Dequant { name, scale, scales, zero, block, .. } => {
                let first = slice * shape.rows + rows.start;
                read_values(checkpoint, find(checkpoint, name)?, first * shape.cols, out)?;
                let first = rows.start / block[0];
                let held = (rows.end - 1) / block[0] + 1 - first;
                let slice = if scales.slices == 1 { 0 } else { slice };
                let start = (slice * scales.rows + first) * scales.cols;
                let mut factors = vec![0.0; index(held * scales.cols)];
                read_values(checkpoint, find(checkpoint, scale)?, start, &mut factors)?;
                let mut zeros = vec![0.0; factors.len()];
                if let Some(zero) = zero {
                    read_values(checkpoint, find(checkpoint, zero)?, start, &mut zeros)?;
                }
                let (cols, width) = (index(shape.cols), index(block[1]));
                for (row, values) in rows.zip(out.chunks_exact_mut(cols)) {
                    let at = index((row / block[0] - first) * scales.cols);
                    let blocks = factors[at..].iter().zip(&zeros[at..]);
                    for (values, (factor, taken)) in values.chunks_mut(width).zip(blocks) {
                        match zero {
                            Some(_) => values.iter_mut().for_each(|value| *value = (*value - taken) * factor),
                            // Not less 0, which would make -0 of floats 0.
                            None => values.iter_mut().for_each(|value| *value *= factor),
                        }
                    }
                }
                Ok(())
            }
            Self::Packed(packed) => packed.read_rows(checkpoint, rows, out),
            Self::Ternary(ternary) => ternary.read_rows(checkpoint, rows, out),
            Self::Fp4(floats) => floats.read_rows(checkpoint, slice, rows, out),
            Self::Constant { values, .. } => {
                let start = index((slice * shape.rows + rows.start) * shape.cols);
                let values = values.get(start..start + out.len());
                out.copy_from_slice(values.ok_or_else(|| self.wrong("a constant that is too short"))?);
                Ok(())
            }
            Self::Slice { of, rows: part } => {
                of.read_rows(checkpoint, slice, part.start + rows.start..part.start + rows.end, out)
            }
            Self::Gather { of, first, axes } => {
                let source = |row| gathered(*first, axes, row);
                read_scattered(of, checkpoint, slice, rows, &source, out)
            }
            Self::Concat(parts) => {
                let cols = index(shape.cols);
                let (mut begin, mut rest) = (0, out);
                for part in parts {
                    let end = begin + part.shape().rows;
                    let (from, to) = (rows.start.max(begin), rows.end.min(end));
                    if from < to {
                        let (now, later) = rest.split_at_mut(index(to - from) * cols);
                        part.read_rows(checkpoint, slice, from - begin..to - begin, now)?;
                        rest = later;
                    }
                    begin = end;
                }
                Ok(())
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
            Self::Transpose(of) => {
                let columns: Vec<u64> = rows.collect();
                read_transposed(of, checkpoint, slice, &columns, out)
            }
            Self::Add { of, constant } => {
                of.read_rows(checkpoint, slice, rows, out)?;
                out.iter_mut().for_each(|value| *value += constant);
                Ok(())
            }
            Self::Reshape { of, .. } => {
                let MatrixShape { rows: source_rows, cols, .. } = of.shape();
                let (cols, source_rows) = (cols.max(1), source_rows.max(1));
                let first = slice * shape.rows;
                let (start, end) = ((first + rows.start) * shape.cols, (first + rows.end) * shape.cols);
                if !start.is_multiple_of(cols) || !end.is_multiple_of(cols) {
                    return Err(self.wrong("rows that cut rows of its source"));
                }
                let (mut at, end) = (start / cols, end / cols);
                let mut rest = out;
                while at < end {
                    let (slice, row) = (at / source_rows, at % source_rows);
                    let length = (end - at).min(source_rows - row);
                    let (now, later) = rest.split_at_mut(index(length * cols));
                    of.read_rows(checkpoint, slice, row..row + length, now)?;
                    (rest, at) = (later, at + length);
                }
                Ok(())
            }
        }
    }

    /// The block type whose blocks the checkpoint's codes and scales make up, if they only have to change places: tensors
    /// of such blocks can be written without decoding.
    #[must_use]
    pub fn block_type(&self) -> Option<GgmlType> {
        match self {
            Self::Fp4(floats) => floats.block_type(),
            Self::Slice { of, .. } | Self::Gather { of, .. } => of.block_type(),
            Self::Reshape { of, shape } => of.block_type().filter(|_| of.shape().cols == shape.cols),
            Self::Stack(parts) | Self::Concat(parts) => {
                let first = parts.first()?.block_type()?;
                parts.iter().all(|part| part.block_type() == Some(first)).then_some(first)
            }
            _ => None,
        }
    }

    /// Reads rows `rows` of slice `slice` into `out` as blocks of [`SourceExpr::block_type`]. Any thread.
    ///
    /// # Errors
    /// When there is no such type, a tensor cannot be read, or the range lies outside.
    pub fn read_blocks(
        &self,
        checkpoint: &Checkpoint,
        slice: u64,
        rows: Range<u64>,
        out: &mut [u8],
    ) -> Result<(), ModelError> {
        let shape = self.shape();
        let Some(ty) = self.block_type() else { return Err(self.wrong("blocks of no type")) };
        let a_row = shape.cols / ty.block_elements() * ty.block_bytes();
        let wanted = rows.end.checked_sub(rows.start).and_then(|rows| rows.checked_mul(a_row));
        if slice >= shape.slices || rows.end > shape.rows || wanted != Some(out.len() as u64) {
            let what =
                format!("rows {rows:?} of slice {slice} into {} bytes do not fit {shape:?}", out.len());
            return Err(self.wrong(&what));
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(index(a_row).max(1))) {
            self.read_block_row(checkpoint, slice, row, out)?;
        }
        Ok(())
    }

    /// One row of [`SourceExpr::read_blocks`].
    fn read_block_row(
        &self,
        checkpoint: &Checkpoint,
        slice: u64,
        row: u64,
        out: &mut [u8],
    ) -> Result<(), ModelError> {
        match self {
            Self::Fp4(floats) => floats.read_blocks(checkpoint, slice, row..row + 1, out),
            Self::Slice { of, rows } => of.read_block_row(checkpoint, slice, rows.start + row, out),
            Self::Gather { of, first, axes } => {
                of.read_block_row(checkpoint, slice, gathered(*first, axes, row), out)
            }
            Self::Reshape { of, shape } => {
                let (at, source_rows) = (slice * shape.rows + row, of.shape().rows.max(1));
                of.read_block_row(checkpoint, at / source_rows, at % source_rows, out)
            }
            Self::Stack(parts) => {
                let mut slice = slice;
                for part in parts {
                    let slices = part.shape().slices;
                    if slice < slices {
                        return part.read_block_row(checkpoint, slice, row, out);
                    }
                    slice -= slices;
                }
                Err(self.wrong("a slice past the last"))
            }
            Self::Concat(parts) => {
                let mut row = row;
                for part in parts {
                    let rows = part.shape().rows;
                    if row < rows {
                        return part.read_block_row(checkpoint, slice, row, out);
                    }
                    row -= rows;
                }
                Err(self.wrong("a row past the last"))
            }
            _ => Err(self.wrong("blocks of no type")),
        }
    }

    fn wrong(&self, what: &str) -> ModelError {
        let reason =
            format!("{what}; this is a defect of kbit's table for the architecture: please report it");
        ModelError::Unreadable { tensor: self.sources().first().unwrap_or(&"(constant)").to_string(), reason }
    }
}

/// The row of the source that is row `row` of what [`SourceExpr::Gather`] makes of it.
fn gathered(first: u64, axes: &[Axis], row: u64) -> u64 {
    let mut rest = row;
    axes.iter().rev().fold(first, |at, axis| {
        let index = rest % axis.count;
        rest /= axis.count;
        at + index * axis.stride
    })
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
    if let SourceExpr::Transpose(of) = of {
        let columns: Vec<u64> = rows.map(source).collect();
        return read_transposed(of, checkpoint, slice, &columns, out);
    }
    let cols = index(of.shape().cols);
    let most = (HELD_FLOATS / cols.max(1) as u64).max(1);
    let mut order: Vec<(u64, usize)> = rows.zip(0..).map(|(row, at)| (source(row), at)).collect();
    order.sort_unstable();
    let mut held = Vec::new();
    let mut rest = order.as_slice();
    while let Some(&(first, _)) = rest.first() {
        // Rows between wanted ones are read with them where at least every fourth is wanted.
        let mut last = first;
        let run = rest.iter().take_while(|&&(row, _)| {
            let near = row - last <= SKIPPED_ROWS && row - first < most;
            last = if near { row } else { last };
            near
        });
        let (now, later) = rest.split_at(run.count());
        rest = later;
        held.resize(index(last + 1 - first) * cols, 0.0);
        of.read_rows(checkpoint, slice, first..last + 1, &mut held)?;
        for &(row, at) in now {
            let from = index(row - first) * cols;
            out[at * cols..(at + 1) * cols].copy_from_slice(&held[from..from + cols]);
        }
    }
    Ok(())
}

/// Rows of the transpose, which are `columns` of the source: the strip from the first to the last of them, row by row
/// where that is cheaper than reading it all.
fn read_transposed(
    of: &SourceExpr,
    checkpoint: &Checkpoint,
    slice: u64,
    columns: &[u64],
    out: &mut [f32],
) -> Result<(), ModelError> {
    let MatrixShape { rows, cols, .. } = of.shape();
    let (Some(&first), Some(&last)) = (columns.iter().min(), columns.iter().max()) else { return Ok(()) };
    let width = index(last + 1 - first);
    let height = index(rows);
    let mut scatter = |strip: &[f32], row: usize| {
        for (at, &column) in columns.iter().enumerate() {
            out[at * height + row] = strip[index(column - first)];
        }
    };
    let plain = match of {
        SourceExpr::Tensor { name, .. } => Some(find(checkpoint, name)?),
        _ => None,
    }
    .filter(|tensor| matches!(tensor.element, Element::Plain(dtype) if width * dtype.bytes() >= 4096));
    if let Some(tensor) = plain {
        let mut held = vec![0.0; width];
        for row in 0..rows {
            read_values(checkpoint, tensor, (slice * rows + row) * cols + first, &mut held)?;
            scatter(&held, index(row));
        }
        return Ok(());
    }
    let most = (HELD_FLOATS / cols.max(1)).max(1);
    let mut held = Vec::new();
    let mut begin = 0;
    while begin < rows {
        let now = most.min(rows - begin);
        held.resize(index(now * cols), 0.0);
        of.read_rows(checkpoint, slice, begin..begin + now, &mut held)?;
        for (values, row) in held.chunks_exact(index(cols)).zip(index(begin)..) {
            scatter(&values[index(first)..], row);
        }
        begin += now;
    }
    Ok(())
}

/// Reads `out.len()` values of `tensor` from value `start`, widened or decoded to f32.
pub(crate) fn read_values(
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

/// Reads bytes of `tensor` as they are, from byte `start`.
pub(crate) fn read_bytes(
    checkpoint: &Checkpoint,
    tensor: &SourceTensor,
    start: u64,
    out: &mut [u8],
) -> Result<(), ModelError> {
    Ok(checkpoint.read_at(tensor, start, out)?)
}

pub(crate) fn find<'c>(checkpoint: &'c Checkpoint, name: &str) -> Result<&'c SourceTensor, ModelError> {
    checkpoint.tensor(name).ok_or_else(|| ModelError::MissingTensors { names: vec![name.to_owned()] })
}

pub(crate) fn unreadable(tensor: &str, reason: impl Into<String>) -> ModelError {
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
pub(crate) fn index(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
