//! A weight matrix behind its codec, and the ways to multiply by it.
//!
//! Weights are decoded per use, some rows at a time, and packed into panels ([`packed`](crate::packed)); a task multiplies its panels
//! with all activations while they are in the second-level cache. One token is multiplied with rows as they are stored, at the speed of
//! memory, where there are kernels for that, whose sums are those of panels. So every output is one sum, whose order depends on
//! nothing but the number of columns.

use crate::buffer::{Rows, RowsMut, Window, padded};
use crate::compute::Compute;
use crate::error::Shape;
use crate::float::{self, FloatProduct, Format};
use crate::integer;
use crate::mode::{Mode, Rounding};
use crate::observe::MatrixName;
use crate::packed::{Groups, IntegerCols, Line, PANEL, TOKENS, Units};
use crate::{EngineError, Kernels};
use kbit_types::Codec;
use std::sync::Arc;

/// Floats in the rows that one task decodes: as many as have panels that wait in the cache.
const TASK: usize = float::WAITING;
/// Weights of a task that multiplies one token without decoding, at least: some hundred microseconds. Kernels have to wait for memory
/// where a task begins.
const LONG_TASK: usize = 1 << 21;
/// Rows that kernels take side by side for one token, at most.
const SIDE_BY_SIDE: usize = 16;

/// A matrix `[rows, cols]`, to be multiplied as a [`Model`](crate::Model) multiplies its own.
#[derive(Debug)]
pub struct Multiplier {
    weight: Weight,
    compute: Compute,
}

impl Multiplier {
    /// A matrix of a number of rows and columns, which `codec` holds, in a mode.
    ///
    /// # Errors
    /// When the codec holds another shape.
    pub fn new(
        codec: Arc<dyn Codec>,
        (rows, cols): (usize, usize),
        mode: Mode,
        kernels: Kernels,
    ) -> Result<Self, EngineError> {
        let name = MatrixName { tensor: "weight".to_owned(), slice: 0, slices: 1 };
        let weight = Weight::new(name, codec, rows, cols)?;
        Ok(Self { weight, compute: Compute::new(kernels, mode, true) })
    }

    /// `out = x * weight^T`, by the threads of rayon's current pool: `x` `[n, cols]`, `out` `[n, rows]`. Memory that it takes for this is
    /// kept for the next time.
    ///
    /// # Errors
    /// When the matrix cannot be decoded, or memory is short.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn multiply(&self, x: Rows<'_>, out: RowsMut<'_>) -> Result<(), EngineError> {
        let work = || self.weight.multiply(&self.compute, x, out);
        match self.compute.team() {
            Some(team) => team.gather(work),
            None => work(),
        }
    }
}

/// A matrix `[rows, cols]` that multiplies activations `[n, cols]` to `[n, rows]`.
#[derive(Clone)]
pub(crate) struct Weight {
    name: Arc<MatrixName>,
    codec: Arc<dyn Codec>,
    rows: usize,
    cols: usize,
    /// Decoding starts at multiples of this many rows.
    group: usize,
}

impl Weight {
    /// Checks the shape.
    pub(crate) fn new(
        name: MatrixName,
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
                tensor: name.tensor,
                found: Shape(found),
                wanted: Shape(vec![rows as u64, cols as u64]),
            });
        }
        let group = usize::try_from(codec.row_group()).unwrap_or(usize::MAX).clamp(1, rows.max(1));
        Ok(Self { name: Arc::new(name), codec, rows, cols, group })
    }

    pub(crate) fn name(&self) -> &MatrixName {
        &self.name
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
        multiply_all(compute, x, [(self, out)])
    }

    /// How it multiplies in the mode of `compute`.
    fn operand(&self, compute: &Compute) -> Operand {
        let mode = compute.mode;
        if mode == Mode::Int8
            && let Some(integers) = self.codec.integers()
        {
            let layout = integers.layout();
            let groups = compute.kernels.integer_groups(layout);
            return Operand::Integers {
                cols: IntegerCols::new(layout, groups, self.cols),
                key: integers.activation_key(),
            };
        }
        if let Some(fused) = self.codec.fused()
            && mode.takes(fused.activation())
        {
            return Operand::Fused { bytes: fused.activation_bytes(), key: fused.activation_key() };
        }
        let (format, rounding) = match mode {
            Mode::F32 => (Format::F32, None),
            Mode::Bf16 => (Format::Bf16, None),
            Mode::Int8 if self.codec.as_bf16().is_some() => (Format::Bf16, None),
            Mode::Int8 if self.codec.holds_floats() => (Format::F32, None),
            Mode::Int8 => (Format::F32, Some(Rounding::EIGHT)),
            Mode::Activations(rounding) => (Format::F32, Some(rounding)),
        };
        Operand::Floats { format, rounding, groups: format.groups(compute.kernels) }
    }

    /// Packs activations for an operand of this weight.
    fn pack(
        &self,
        compute: &Compute,
        operand: Operand,
        x: Rows<'_>,
        packed: &mut [f32],
    ) -> Result<(), EngineError> {
        match (operand, self.codec.integers(), self.codec.fused()) {
            (Operand::Integers { cols, .. }, Some(integers), _) => {
                integer::pack(compute, integers, cols, x, packed)
            }
            (Operand::Fused { bytes, .. }, _, Some(fused)) => {
                let packed = &mut bytemuck::cast_slice_mut::<f32, u8>(packed)[..x.rows() * bytes];
                compute.for_each(packed.chunks_mut(bytes.max(1)), |token, packed| {
                    Ok(fused.pack(x.row(token), packed)?)
                })
            }
            (Operand::Floats { format, rounding, groups }, ..) => {
                float::pack(compute, x, format, rounding, groups, bytemuck::cast_slice_mut(packed))
            }
            (other, ..) => unreachable!("{other:?} is not of {self:?}"),
        }
    }

    /// Products of rows `first..` with all packed activations, as many rows as `out` `[n, rows]` has columns.
    fn multiply_rows(
        &self,
        compute: &Compute,
        operand: Operand,
        packed: &[f32],
        first: usize,
        mut out: Window<'_>,
    ) -> Result<(), EngineError> {
        let count = out.cols();
        match (operand, self.codec.integers(), self.codec.fused()) {
            (Operand::Integers { cols, .. }, Some(integers), _) => {
                integer::multiply(compute, integers, cols, packed, first, out)
            }
            (Operand::Fused { bytes, .. }, _, Some(fused)) => {
                let tokens = out.rows();
                let packed = &bytemuck::cast_slice::<f32, u8>(packed)[..tokens * bytes];
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
            }
            (Operand::Floats { format, groups, .. }, ..) => {
                if out.rows() == 1
                    && let Some((line, rows)) = self.stored(format, first, count)
                    && compute.kernels.line(line, rows, bytemuck::cast_slice(packed), out.row_mut(0))
                {
                    return Ok(());
                }
                let tokens = out.rows();
                let keeps_panels = groups.run == 1 && tokens > TOKENS;
                let strip = if keeps_panels { count } else { self.whole_groups(PANEL) };
                for start in (0..count).step_by(strip) {
                    let rows = strip.min(count - start);
                    let out = out.tile(0, tokens, start, rows);
                    self.with_units(compute, first + start, rows, format, |weights| {
                        let packed = bytemuck::cast_slice(packed);
                        float::multiply(compute, &FloatProduct { format, groups, packed, weights }, out)
                    })?;
                }
                Ok(())
            }
            (other, ..) => unreachable!("{other:?} is not of {self:?}"),
        }
    }

    /// This number of rows, or a group where these are not whole ones.
    fn whole_groups(&self, rows: usize) -> usize {
        if rows.is_multiple_of(self.group) { rows } else { self.group }
    }

    /// Rows of a task: whole panels where groups allow. Of a batch, as many as fill a task's scratch memory, but several tasks for each
    /// thread. One token's work is short, so that each thread has one task, unless it is long enough that another could help out.
    fn task_rows(&self, compute: &Compute, operand: Operand, tokens: usize) -> usize {
        let threads = compute.threads();
        let in_place = match operand {
            Operand::Integers { .. } | Operand::Fused { .. } => true,
            Operand::Floats { format, .. } => self.stored(format, 0, 0).is_some(),
        };
        if tokens == 1 && in_place {
            let tasks = (self.rows * self.cols / LONG_TASK).max(1).next_multiple_of(threads);
            return self.rows.div_ceil(tasks).next_multiple_of(self.whole_groups(SIDE_BY_SIDE));
        }
        let most = if threads > 1 { self.rows.div_ceil(4 * threads) } else { self.rows };
        let wanted = (TASK / self.cols.max(1)).min(most);
        let unit = self.whole_groups(PANEL);
        (wanted / unit * unit).max(unit)
    }

    /// Rows `first..first + count` as they are stored, where activations of the format can be multiplied with them.
    fn stored(&self, format: Format, first: usize, count: usize) -> Option<(Line, Units<'_>)> {
        let (line, all, bytes): (Line, &[u8], usize) = match format {
            Format::F32 => match (self.codec.as_f32(), self.codec.as_f16()) {
                (Some(all), _) => (Line::F32, bytemuck::cast_slice(all), 4 * self.cols),
                (None, all) => (Line::F16, bytemuck::cast_slice(all?), 2 * self.cols),
            },
            Format::Bf16 => (Line::Bf16, bytemuck::cast_slice(self.codec.as_bf16()?), 2 * self.cols),
        };
        Some((line, Units::new(&all[first * bytes..(first + count) * bytes], count, bytes, bytes)))
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
        if let Some((Line::F32 | Line::Bf16, rows)) = self.stored(format, first, count) {
            return work(rows);
        }
        match format {
            Format::F32 => {
                let stride = padded(cols);
                compute.with_scratch(count * stride, |rows| {
                    self.decode(first, count, rows, stride)?;
                    work(Units::new(bytemuck::cast_slice(rows), count, 4 * cols, 4 * stride))
                })
            }
            Format::Bf16 => {
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

/// How a weight multiplies. Weights with equal operands share packed activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    /// As integers, with activations of this key.
    Integers {
        cols: IntegerCols,
        key: u64,
    },
    /// By the codec's own product, with activations of so many bytes and this key.
    Fused {
        bytes: usize,
        key: u64,
    },
    Floats {
        format: Format,
        rounding: Option<Rounding>,
        groups: Groups,
    },
}

impl Operand {
    /// Floats of the memory that one packed activation of `cols` floats takes; more than one never need more for each.
    fn floats(self, cols: usize) -> usize {
        match self {
            Self::Integers { cols, .. } => cols.activation().iter().sum(),
            Self::Fused { bytes, .. } => bytes.div_ceil(4),
            Self::Floats { format, groups, .. } => groups.filled(format.units(cols)),
        }
    }

    /// True where activations that are packed for one are those for the other.
    fn shares(self, other: Self) -> bool {
        match (self, other) {
            (Self::Integers { cols: a, key: b }, Self::Integers { cols: c, key: d }) => {
                b == d && a.same_activations(c)
            }
            _ => self == other,
        }
    }
}

/// Some rows of a product.
struct Task<'w, 'o> {
    weight: &'w Weight,
    operand: Operand,
    /// Where its packed activations begin.
    packed: usize,
    first: usize,
    out: Window<'o>,
}

/// `out = x * weight^T` for each weight, in the mode of `compute`: `x` `[n, cols]`, `out` `[n, rows]`. Activations are packed once for all
/// weights that want them alike, and threads meet once for all products.
pub(crate) fn multiply_all<'w, 'o, const N: usize>(
    compute: &Compute,
    x: Rows<'_>,
    products: [(&'w Weight, RowsMut<'o>); N],
) -> Result<(), EngineError> {
    let mut packings: Vec<(&Weight, Operand)> = Vec::with_capacity(N);
    let mut tasks: Vec<Task<'w, 'o>> = Vec::new();
    if x.rows() == 0 {
        return Ok(());
    }
    if let Some(observer) = &compute.observer {
        observer.inputs(&products.each_ref().map(|(weight, _)| &*weight.name), x);
    }
    let floats = |operand: Operand| x.rows() * operand.floats(x.cols());
    for (weight, out) in products {
        assert_eq!((out.rows(), out.cols(), x.cols()), (x.rows(), weight.rows, weight.cols), "shapes");
        if weight.rows == 0 {
            continue;
        }
        let operand = weight.operand(compute);
        let shared = packings.iter().position(|packing| packing.1.shares(operand)).unwrap_or_else(|| {
            packings.push((weight, operand));
            packings.len() - 1
        });
        let packed = packings[..shared].iter().map(|packing| floats(packing.1)).sum();
        let task_rows = weight.task_rows(compute, operand, x.rows());
        let windows = out.windows(task_rows).enumerate();
        tasks.extend(windows.map(|(task, out)| Task {
            weight,
            operand,
            packed,
            first: task * task_rows,
            out,
        }));
    }
    compute.with_scratch(packings.iter().map(|packing| floats(packing.1)).sum(), |packed| {
        let mut rest = &mut *packed;
        for (weight, operand) in packings {
            let (packed, others) = rest.split_at_mut(floats(operand));
            weight.pack(compute, operand, x, packed)?;
            rest = others;
        }
        let packed = &*packed;
        compute.for_each(tasks.into_iter(), |_, Task { weight, operand, packed: start, first, out }| {
            weight.multiply_rows(compute, operand, &packed[start..][..floats(operand)], first, out)
        })
    })
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MatrixName { tensor, slice, .. } = &*self.name;
        write!(f, "Weight {tensor}/{slice} [{}, {}]", self.rows, self.cols)
    }
}
