//! Operands of the matrix multiply as the kernels want them: packed.
//!
//! Whatever the arithmetic, an operand is made of *units* of 32 bits: a float, or two neighbouring bf16, or four neighbouring 8-bit
//! integers of a row. A panel holds the same unit of [`PANEL`] rows of weights side by side, then the next unit; so a lane of a vector
//! is an output, and nothing has to be added up across lanes. Activations are packed alike, [`TOKENS`] rows at a time, and broadcast.

use crate::buffer::Window;
use kbit_types::IntegerLayout;

/// Rows of weights in a panel: two vectors of 16 lanes, or four of 8.
pub(crate) const PANEL: usize = 32;
/// Activations in a full tile: with two vectors of outputs each, 24 of 32 registers.
pub(crate) const TOKENS: usize = 12;
/// Units that are summed before the sum is added to the output: a panel of as many is 32 KiB.
pub(crate) const BLOCK: usize = 256;

/// How kernels want activations: some of them at a time, and of each some neighbouring units one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    /// Activations in a group.
    pub(crate) tokens: usize,
    /// Units of an activation that lie side by side. An activation is filled up with zeros to a multiple of as many.
    pub(crate) run: usize,
}

impl Groups {
    /// For vectors of floats, broadcast from as many activations as a full tile has.
    pub(crate) const FLOATS: Self = Self { tokens: TOKENS, run: 1 };
    /// For vectors of integers: sums of integers and of floats need two registers an output, or three.
    pub(crate) const INTEGERS: Self = Self { tokens: 6, run: 1 };

    /// Units of an activation of `units`, filled up.
    pub(crate) fn filled(self, units: usize) -> usize {
        units.next_multiple_of(self.run)
    }
}

/// Lays rows of `width` numbers out in runs: the first `run` of each row, one row after another, then the next ones.
pub(crate) fn lay_out_in_runs<T: Copy>(rows: &[T], width: usize, run: usize, out: &mut [T]) {
    let count = rows.len() / width.max(1);
    for (step, out) in out.chunks_exact_mut((count * run).max(1)).enumerate() {
        for (out, row) in out.chunks_exact_mut(run).zip(rows.chunks_exact(width)) {
            out.copy_from_slice(&row[step * run..][..run]);
        }
    }
}

/// Rows of units, not packed: `rows` rows of `bytes` bytes, `stride` bytes from one to the next. The last unit of a row is filled up
/// with zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Units<'a> {
    data: &'a [u8],
    rows: usize,
    bytes: usize,
    stride: usize,
}

impl<'a> Units<'a> {
    /// A view of `data`; panics if a row would end past its end.
    pub(crate) fn new(data: &'a [u8], rows: usize, bytes: usize, stride: usize) -> Self {
        let needed = rows.checked_sub(1).map_or(Some(0), |rows| rows.checked_mul(stride)?.checked_add(bytes));
        assert!(needed.is_some_and(|needed| needed <= data.len()), "{rows} rows, {stride} bytes apart");
        Self { data, rows, bytes, stride }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of a row.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Units of a row.
    pub(crate) fn len(&self) -> usize {
        self.bytes.div_ceil(4)
    }

    /// Bytes from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Unit `index` of row `row`.
    #[inline(always)]
    pub(crate) fn unit(&self, row: usize, index: usize) -> u32 {
        let bytes = &self.data[row * self.stride..][..self.bytes];
        match bytes[4 * index..].first_chunk() {
            Some(unit) => u32::from_ne_bytes(*unit),
            None => {
                let mut unit = [0; 4];
                unit[..self.bytes - 4 * index].copy_from_slice(&bytes[4 * index..]);
                u32::from_ne_bytes(unit)
            }
        }
    }

    /// `rows` rows from `first` on, of every `apart` rows one.
    pub(crate) fn spread(&self, first: usize, apart: usize, rows: usize) -> Self {
        assert!(first + rows.saturating_sub(1) * apart < self.rows, "rows outside of the rows");
        Self::new(&self.data[first * self.stride..], rows, self.bytes, self.stride * apart)
    }

    /// Rows `first..first + rows` of units `unit..unit + units`.
    pub(crate) fn window(&self, first: usize, rows: usize, unit: usize, units: usize) -> Self {
        assert!(first + rows <= self.rows && unit + units <= self.len(), "units outside of the rows");
        let bytes = (4 * units).min(self.bytes - 4 * unit);
        let start = (first * self.stride + 4 * unit).min(self.data.len());
        Self::new(&self.data[start..], rows, bytes, self.stride)
    }
}

/// Floats as they are stored, for products of rows with one activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    F32,
    /// Two a unit, which meet two floats of the activation.
    F16,
    /// Two a unit, which meet a unit of the activation.
    Bf16,
}

/// What a kernel multiplies: up to [`TOKENS`] activations with up to [`PANEL`] rows, over up to [`BLOCK`] units.
pub(crate) struct Tile<'a, 'o> {
    x: &'a [u32],
    w: &'a [u32],
    units: usize,
    out: Window<'o>,
    add: bool,
}

impl<'a, 'o> Tile<'a, 'o> {
    /// `x` `[units, tokens]`, `w` `[units, PANEL]`, `out` `[tokens, rows]`. Sums are added to `out` if `add`, else written there.
    pub(crate) fn new(x: &'a [u32], w: &'a [u32], units: usize, out: Window<'o>, add: bool) -> Self {
        assert!((1..=TOKENS).contains(&out.rows()) && (1..=PANEL).contains(&out.cols()), "size of the tile");
        assert!(x.len() == units * out.rows() && w.len() == units * PANEL, "size of the operands");
        Self { x, w, units, out, add }
    }

    /// `[units, tokens]`.
    pub(crate) fn x(&self) -> &'a [u32] {
        self.x
    }

    /// `[units, PANEL]`.
    pub(crate) fn w(&self) -> &'a [u32] {
        self.w
    }

    pub(crate) fn units(&self) -> usize {
        self.units
    }

    pub(crate) fn add(&self) -> bool {
        self.add
    }

    /// `[tokens, rows]`.
    pub(crate) fn out(&mut self) -> &mut Window<'o> {
        &mut self.out
    }
}

/// Products of a panel with all activations, over some units, whole runs of the activations' [`Groups`].
pub(crate) struct PanelProduct<'a, 'o> {
    groups: Groups,
    x: &'a [u32],
    all_units: usize,
    first_unit: usize,
    w: &'a [u32],
    out: Window<'o>,
}

impl<'a, 'o> PanelProduct<'a, 'o> {
    /// `x` are all activations, group after group, each `[all_units / run, count, run]`; `w` `[units, PANEL]`, those from `first_unit` on;
    /// `out` `[tokens, rows]`. Sums are added to `out`, but for those of the first units, which are written there.
    pub(crate) fn new(
        groups: Groups,
        x: &'a [u32],
        first_unit: usize,
        w: &'a [u32],
        out: Window<'o>,
    ) -> Self {
        let all_units = x.len() / out.rows();
        assert_eq!(x.len(), all_units * out.rows(), "units of an activation");
        assert!((1..=PANEL).contains(&out.cols()), "rows of a panel");
        let units = w.len() / PANEL;
        assert!(w.len() == units * PANEL && first_unit + units <= all_units, "units of the weights");
        assert!([all_units, first_unit, units].iter().all(|units| units.is_multiple_of(groups.run)), "runs");
        Self { groups, x, all_units, first_unit, w, out }
    }

    /// `[units / run, count, run]` of `count` activations from `first` on, which are a group.
    pub(crate) fn x(&self, first: usize, count: usize) -> &'a [u32] {
        debug_assert!(first.is_multiple_of(self.groups.tokens) && count <= self.groups.tokens, "a group");
        &self.x[first * self.all_units + self.first_unit * count..][..self.units() * count]
    }

    /// `[units, PANEL]`.
    pub(crate) fn w(&self) -> &'a [u32] {
        self.w
    }

    pub(crate) fn units(&self) -> usize {
        self.w.len() / PANEL
    }

    pub(crate) fn add(&self) -> bool {
        self.first_unit > 0
    }

    /// `[tokens, rows]`.
    pub(crate) fn out(&mut self) -> &mut Window<'o> {
        &mut self.out
    }
}

/// Columns of a panel of integers that are unpacked at a time, at most: 32 KiB of levels.
pub(crate) const INTEGER_COLS: usize = 1024;

/// Columns of integers, whole blocks, how many numbers they have, and how activations of them are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IntegerCols {
    layout: IntegerLayout,
    groups: Groups,
    blocks: usize,
    units: usize,
    parts: usize,
}

impl IntegerCols {
    pub(crate) fn new(layout: IntegerLayout, groups: Groups, cols: usize) -> Self {
        let blocks = cols / layout.block;
        assert_eq!(blocks * layout.block, cols, "whole blocks");
        Self { layout, groups, blocks, units: cols / 4, parts: cols / layout.part }
    }

    pub(crate) fn groups(&self) -> Groups {
        self.groups
    }

    pub(crate) fn layout(&self) -> IntegerLayout {
        self.layout
    }

    /// True where activations are packed alike, if their levels and scales are the same.
    pub(crate) fn same_activations(&self, other: Self) -> bool {
        let of =
            |cols: &Self| (cols.groups, cols.units, cols.layout.block, cols.layout.part, cols.layout.offset);
        of(self) == of(&other)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn units(&self) -> usize {
        self.units
    }

    pub(crate) fn parts(&self) -> usize {
        self.parts
    }

    /// Numbers of an activation: levels, scales, corrections, sums of pairs of parts.
    pub(crate) fn activation(&self) -> [usize; 4] {
        let scales = self.blocks * self.layout.activation_scales();
        [self.units, scales, self.parts, self.parts.div_ceil(2)]
    }

    /// Numbers of a row of a panel: levels, scales, scales of parts, scales of minimums, pairs of minimums.
    pub(crate) fn panel(&self) -> [usize; 5] {
        let terms = self.layout.terms;
        let parts = if terms.has_parts() { self.parts } else { 0 };
        let minimum_scales = if terms.has_minimum_scales() { self.blocks } else { 0 };
        let minimums = if terms.has_minimums() { parts / 2 } else { 0 };
        [self.units, self.blocks, parts, minimum_scales, minimums]
    }

    /// The same columns, in pieces of up to [`INTEGER_COLS`] that are as long as each other, but for the last: the columns before a piece,
    /// and its own.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Self, Self)> + Clone + use<> {
        let (layout, groups, cols) = (self.layout, self.groups, 4 * self.units);
        let pieces = cols.div_ceil(INTEGER_COLS).max(1);
        let step = self.blocks.div_ceil(pieces).max(1) * layout.block;
        let of = move |cols| Self::new(layout, groups, cols);
        (0..cols).step_by(step).map(move |start| (of(start), of(step.min(cols - start))))
    }
}

/// Activations as integers, a group of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntegerTokens<'a> {
    pub(crate) count: usize,
    /// `[cols / 4 / run, count, run]`: four levels.
    pub(crate) levels: &'a [u32],
    /// `[cols / block, activation_scales, count]`.
    pub(crate) scales: &'a [f32],
    /// `[cols / part, count]`: what the offset of the weights adds to the sum of a part, times -1.
    pub(crate) corrections: &'a [i32],
    /// `[cols / part / 2, count]`, rounded up: sums of the levels of two neighbouring parts, 16 bits each, the first in the low half.
    pub(crate) sums: &'a [u32],
}

/// All activations as integers, and some columns of them: first the levels of all, then their scales, corrections and sums; each of
/// them group after group, as [`IntegerTokens`] has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntegerBatch<'a> {
    pub(crate) packed: [&'a [f32]; 4],
    /// The columns that there are, and those before the ones that are meant.
    pub(crate) all: IntegerCols,
    pub(crate) before: IntegerCols,
}

impl<'a> IntegerBatch<'a> {
    /// Columns `cols` of `count` activations from `first` on, with which a group begins.
    #[inline]
    fn tokens(&self, cols: IntegerCols, first: usize, count: usize) -> IntegerTokens<'a> {
        let (all, before, lens) = (self.all.activation(), self.before.activation(), cols.activation());
        let of = |i: usize| &self.packed[i][first * all[i] + count * before[i]..][..count * lens[i]];
        IntegerTokens {
            count,
            levels: bytemuck::cast_slice(of(0)),
            scales: of(1),
            corrections: bytemuck::cast_slice(of(2)),
            sums: bytemuck::cast_slice(of(3)),
        }
    }
}

/// A panel of weights as integers: as [`IntegerPanel`](kbit_types::IntegerPanel), to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntegerRows<'a> {
    pub(crate) levels: &'a [u32],
    pub(crate) scales: &'a [f32],
    pub(crate) part_scales: &'a [i32],
    pub(crate) minimum_scales: &'a [f32],
    pub(crate) minimums: &'a [u32],
}

/// Products of a panel of integers with all activations, over some columns.
pub(crate) struct IntegerProduct<'a, 'o> {
    cols: IntegerCols,
    x: IntegerBatch<'a>,
    w: IntegerRows<'a>,
    out: Window<'o>,
    add: bool,
}

impl<'a, 'o> IntegerProduct<'a, 'o> {
    /// `out` `[tokens, rows]`. Sums go on from what `out` holds if `add`, else start from zero.
    pub(crate) fn new(
        cols: IntegerCols,
        x: IntegerBatch<'a>,
        w: IntegerRows<'a>,
        out: Window<'o>,
        add: bool,
    ) -> Self {
        assert!((1..=PANEL).contains(&out.cols()), "rows of a panel");
        let rows =
            [w.levels.len(), w.scales.len(), w.part_scales.len(), w.minimum_scales.len(), w.minimums.len()];
        assert_eq!(rows, cols.panel().map(|len| len * PANEL), "size of the weights");
        Self { cols, x, w, out, add }
    }

    pub(crate) fn cols(&self) -> IntegerCols {
        self.cols
    }

    /// The activations from `first` on, where a group begins: as many as there are in a tile.
    #[inline]
    pub(crate) fn x(&self, first: usize) -> IntegerTokens<'a> {
        self.x.tokens(self.cols, first, self.cols.groups.tokens.min(self.out.rows() - first))
    }

    pub(crate) fn w(&self) -> IntegerRows<'a> {
        self.w
    }

    pub(crate) fn add(&self) -> bool {
        self.add
    }

    /// `[tokens, rows]`.
    pub(crate) fn out(&mut self) -> &mut Window<'o> {
        &mut self.out
    }
}
