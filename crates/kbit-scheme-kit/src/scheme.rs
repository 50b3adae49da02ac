//! A block-wise scheme: levels by [`Levels`], everything else here.

use crate::codebook::Codebook;
use crate::layout::{Granularity, Layout};
use crate::scale::{DoubleQuantization, ScaleType};
use kbit_plugin::{Aux, Error, Host, Params, Plan, Scheme, SchemeInfo, Shape, Slab, SlabMut, pack};
use std::ops::Range;

/// Weights that a group should hold where statistics are gathered for each.
const STATISTICS_GROUP: usize = 1 << 14;
/// Bins of a histogram over [-1, 1].
const BINS: usize = 1024;

/// The numbers that belong to a block: a weight is `level(code) * scale + minimum`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fit {
    /// Factor.
    pub scale: f32,
    /// Summand; 0 without minima.
    pub minimum: f32,
}

/// What a fit is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Least value.
    pub min: f32,
    /// Greatest value.
    pub max: f32,
    /// Mean magnitude; only where [`Levels::NEEDS_MEAN`].
    pub mean_magnitude: f32,
}

/// How a scheme is set up by its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Bits of a code; 0 packs five codes below 3 to a byte.
    pub bits: u32,
    /// What shares a scale.
    pub granularity: Granularity,
    /// Type of stored scales.
    pub scale: ScaleType,
    /// Scales that are quantized themselves.
    pub double: Option<DoubleQuantization>,
    /// A minimum beside each scale.
    pub with_minimum: bool,
    /// The minimum is the block's mean, and the levels lie about it; goes with `with_minimum`.
    pub center: bool,
    /// Shrink each scale to the least squared error.
    pub search: bool,
    /// Make the codebook from the matrix itself.
    pub empirical: bool,
}

impl Setup {
    /// Codes of `bits` bits in blocks of a row, by the parameters `block`, `scale` and `center`.
    ///
    /// # Errors
    /// Parameters that the scheme does not declare.
    pub fn of_blocks(bits: u32, params: &Params) -> Result<Self, Error> {
        let block =
            usize::try_from(params.int("block")?).map_err(|_| Error::param("block: a number of weights"))?;
        let center = params.bool("center")?;
        Ok(Self {
            bits,
            granularity: Granularity::Block(block),
            scale: ScaleType::parse(params.str("scale")?)?,
            double: None,
            with_minimum: center,
            center,
            search: false,
            empirical: false,
        })
    }
}

/// The levels of a scheme.
pub trait Levels: Sized + Send + Sync + 'static {
    /// What the scheme says of itself.
    const INFO: SchemeInfo;
    /// True where [`Summary::mean_magnitude`] is used.
    const NEEDS_MEAN: bool = false;
    /// True where [`Levels::refine`] does something.
    const REFINES: bool = false;

    /// Reads the parameters.
    ///
    /// # Errors
    /// Values that do not go together.
    fn open(params: &Params) -> Result<(Self, Setup), Error>;

    /// The ideal numbers for weights of this range.
    fn fit(&self, summary: &Summary) -> Fit;

    /// A better fit for these values than `fit`, whose scale is as it is stored, and not zero.
    fn refine(&self, values: &[f32], fit: Fit) -> Fit {
        let _ = values;
        fit
    }

    /// As [`Levels::refine`], where the job weighs errors by column ([`BlockJob::weigh`]): `weights` has one for each value.
    fn refine_weighed(&self, values: &[f32], weights: &[f32], fit: Fit) -> Fit {
        let _ = weights;
        self.refine(values, fit)
    }

    /// Codes of `values`; `fit.scale` is not zero. `book` is the matrix's own codebook, where the setup asks for one.
    fn encode(&self, values: &[f32], fit: Fit, book: Option<&Codebook>, codes: &mut [u8]);

    /// The weights of `codes`.
    fn decode(&self, codes: &[u8], fit: Fit, book: Option<&Codebook>, out: &mut [f32]);

    /// The codebook of a matrix whose weights, divided by their block's scale, have this histogram over [-1, 1].
    fn codebook(&self, histogram: &[u64]) -> Codebook {
        let _ = histogram;
        Codebook::new(vec![0.0])
    }
}

/// A scheme over levels `L`.
pub struct BlockScheme<L> {
    levels: L,
    setup: Setup,
}

/// A matrix being encoded.
pub struct BlockJob {
    layout: Layout,
    tensor: String,
    fit: Option<Fit>,
    book: Option<Codebook>,
    weights: Option<Vec<f32>>,
}

impl BlockJob {
    /// The same job, whose levels are refined so that errors of column `i` count `weights[i]`-fold: [`Levels::refine_weighed`]. That
    /// concerns blocks that are pieces of a row.
    #[must_use]
    pub fn weigh(self, weights: Vec<f32>) -> Self {
        Self { weights: Some(weights), ..self }
    }

    /// The weights of the values of a block.
    fn weights_of(&self, block: &Range<usize>) -> Option<&[f32]> {
        let column = block.start % self.layout.cols;
        self.weights.as_ref()?.get(column..column + block.len())
    }
}

/// An encoded matrix.
pub struct BlockTensor {
    layout: Layout,
    book: Option<Codebook>,
}

impl<L: Levels> BlockScheme<L> {
    /// The numbers of a block whose weights lie between `min` and `max`, as they will be read back: for schemes that choose codes
    /// themselves and store them as this one does. `tensor` and `row` are for errors.
    ///
    /// # Errors
    /// Numbers that the scale type cannot hold.
    pub fn fit_range(&self, min: f32, max: f32, tensor: &str, row: u64) -> Result<Fit, Error> {
        let place = Place { tensor, first_row: row, cols: 1, offset: 0 };
        self.round(self.levels.fit(&Summary { min, max, mean_magnitude: 0.0 }), &place)
    }

    /// Writes a row group with these numbers of its blocks and these codes of its weights, all [`Layout::group_weights`] of them.
    /// Not for setups with double quantization.
    pub fn write(&self, layout: &Layout, fits: &[Fit], codes: &[u8], parts: &mut [&mut [u8]]) {
        write_fits(layout, fits, parts);
        write_codes(layout, codes, parts);
    }

    /// How a matrix is cut into blocks and groups.
    ///
    /// # Errors
    /// A matrix too wide for memory.
    pub fn layout(&self, shape: &Shape<'_>) -> Result<Layout, Error> {
        let Setup { bits, granularity, scale, double, with_minimum, .. } = self.setup;
        let mut layout = Layout::new(bits, granularity, scale, double, with_minimum, shape)?;
        if self.statistics_bytes() > 0 {
            // Groups of about the same size, so that the last one is hardly shorter than the others.
            let rows = usize::try_from(shape.rows).unwrap_or(usize::MAX);
            let groups = (rows.saturating_mul(layout.cols) / STATISTICS_GROUP).clamp(1, rows);
            let wanted = rows.div_ceil(groups).next_multiple_of(layout.row_group);
            if wanted.checked_mul(layout.cols).is_some_and(|weights| weights < 1 << 31) {
                layout.row_group = wanted;
            }
        }
        Ok(layout)
    }

    const fn statistics_bytes(&self) -> usize {
        if self.setup.empirical {
            BINS * 4
        } else if matches!(self.setup.granularity, Granularity::Tensor) {
            24
        } else {
            0
        }
    }

    /// The fit for `values` as it will be stored; before double quantization.
    fn fit(
        &self,
        values: &[f32],
        weights: Option<&[f32]>,
        book: Option<&Codebook>,
        place: &Place<'_>,
    ) -> Result<Fit, Error> {
        let mut summary = summarize::<L>(values, place)?;
        let mut mean = 0.0;
        if self.setup.center {
            mean = self.round(Fit { scale: 0.0, minimum: mean_of(values) }, place)?.minimum;
            summary = Summary { min: summary.min - mean, max: summary.max - mean, ..summary };
        }
        let mut fit = self.levels.fit(&summary);
        fit.minimum += mean;
        let mut rounded = self.round(fit, place)?;
        if L::REFINES && rounded.scale != 0.0 {
            let found = Fit { minimum: fit.minimum, ..rounded };
            let refined = match weights {
                Some(weights) => self.levels.refine_weighed(values, weights, found),
                None => self.levels.refine(values, found),
            };
            rounded = self.round(refined, place)?;
        }
        if !self.setup.search || rounded.scale == 0.0 {
            return Ok(rounded);
        }
        let mut best = (f32::INFINITY, rounded);
        let mut codes = vec![0; values.len()];
        let mut decoded = vec![0.0; values.len()];
        for factor in shrink_factors() {
            let candidate = self.round(Fit { scale: fit.scale * factor, ..fit }, place)?;
            if candidate.scale == 0.0 {
                continue;
            }
            self.levels.encode(values, candidate, book, &mut codes);
            self.levels.decode(&codes, candidate, book, &mut decoded);
            let error = values.iter().zip(&decoded).fold(0f32, |sum, (w, v)| sum + (w - v) * (w - v));
            if error < best.0 {
                best = (error, candidate);
            }
        }
        Ok(best.1)
    }

    fn round(&self, fit: Fit, place: &Place<'_>) -> Result<Fit, Error> {
        let rounded = |value: f32| {
            // Quantized scales are not stored in the scale type.
            let stored = if self.setup.double.is_some() && !self.setup.with_minimum {
                value.is_finite().then_some(value)
            } else {
                self.setup.scale.round(value)
            };
            stored.ok_or_else(|| scale_too_large(value, place.tensor, place.first_row))
        };
        Ok(Fit { scale: rounded(fit.scale)?, minimum: rounded(fit.minimum)? })
    }

    /// What rows become: what decoding gives of the bytes that encoding writes, without the bytes. `values` and `out`: whole row
    /// groups from row `first_row` on, of which the last may be short.
    ///
    /// # Errors
    /// As when encoding.
    pub fn round_trip(
        &self,
        job: &BlockJob,
        first_row: u64,
        values: &[f32],
        out: &mut [f32],
    ) -> Result<(), Error> {
        let layout = &job.layout;
        let scales = layout.scales();
        let bytes = |count: fn(DoubleQuantization, usize) -> usize| {
            vec![0u8; layout.double.map_or(0, |double| count(double, scales))]
        };
        let mut codes = bytes(DoubleQuantization::code_bytes);
        let mut supers = bytes(DoubleQuantization::super_bytes);
        let mut space = Space::default();
        let weights = layout.group_weights();
        for (index, (values, out)) in values.chunks(weights).zip(out.chunks_mut(weights)).enumerate() {
            let first_row = first_row + (index * layout.row_group) as u64;
            let place = Place { tensor: &job.tensor, first_row, cols: layout.cols, offset: 0 };
            self.quantize_group(job, values, &place, (&mut codes, &mut supers), &mut space)?;
            for (block, fit) in layout.blocks(values.len() / layout.cols).zip(&space.fits) {
                self.decode_block(&space.codes[block.clone()], *fit, job.book.as_ref(), &mut out[block]);
            }
        }
        Ok(())
    }

    fn decode_block(&self, codes: &[u8], fit: Fit, book: Option<&Codebook>, out: &mut [f32]) {
        if fit.scale == 0.0 {
            out.fill(fit.minimum);
        } else {
            self.levels.decode(codes, fit, book, out);
        }
    }

    /// The fits of a group's blocks, as they will be read back, and the codes of its weights, in `space`. `double`: what double
    /// quantization stores of the scales and their scales; empty without it.
    fn quantize_group(
        &self,
        job: &BlockJob,
        values: &[f32],
        place: &Place<'_>,
        double: (&mut [u8], &mut [u8]),
        space: &mut Space,
    ) -> Result<(), Error> {
        let layout = &job.layout;
        let book = job.book.as_ref();
        let rows = values.len() / layout.cols;
        space.fits.clear();
        for block in layout.blocks(rows) {
            space.fits.push(match job.fit {
                Some(fit) => {
                    refuse_not_finite_at(&values[block.clone()], place, block.start)?;
                    fit
                }
                None => {
                    let weights = job.weights_of(&block);
                    self.fit(&values[block.clone()], weights, book, &place.at(block.start))?
                }
            });
        }
        if let Some(quantization) = layout.double {
            space.scales.clear();
            space.scales.extend(space.fits.iter().map(|fit| fit.scale));
            space.scales.resize(layout.scales(), 0.0);
            quantization.write(&mut space.scales, double.0, double.1);
            for (fit, scale) in space.fits.iter_mut().zip(&space.scales) {
                fit.scale = *scale;
            }
        }
        space.codes.clear();
        space.codes.resize(layout.group_weights(), 0);
        for (block, fit) in layout.blocks(rows).zip(&space.fits) {
            if fit.scale != 0.0 {
                self.levels.encode(&values[block.clone()], *fit, book, &mut space.codes[block]);
            }
        }
        Ok(())
    }

    fn encode_group(
        &self,
        job: &BlockJob,
        values: &[f32],
        place: &Place<'_>,
        parts: &mut [&mut [u8]],
        space: &mut Space,
    ) -> Result<(), Error> {
        let layout = &job.layout;
        if layout.double.is_some() {
            for part in parts.iter_mut().skip(1) {
                part.fill(0);
            }
            let [_, codes, supers, ..] = parts else { return Err(Error::internal("three parts")) };
            self.quantize_group(job, values, place, (codes, supers), space)?;
            write_minima(layout, &space.fits, parts);
        } else {
            self.quantize_group(job, values, place, Default::default(), space)?;
            write_fits(layout, &space.fits, parts);
        }
        write_codes(layout, &space.codes, parts);
        Ok(())
    }
}

/// Writes the scales of a group, and the minima where the layout has some.
fn write_fits(layout: &Layout, fits: &[Fit], parts: &mut [&mut [u8]]) {
    parts[1].fill(0);
    for (index, fit) in fits.iter().enumerate() {
        layout.scale.write(parts[1], index, fit.scale);
    }
    write_minima(layout, fits, parts);
}

fn write_minima(layout: &Layout, fits: &[Fit], parts: &mut [&mut [u8]]) {
    if let Some(minima) = parts.last_mut().filter(|_| layout.with_minimum) {
        minima.fill(0);
        for (index, fit) in fits.iter().enumerate() {
            layout.scale.write(minima, index, fit.minimum);
        }
    }
}

fn write_codes(layout: &Layout, codes: &[u8], parts: &mut [&mut [u8]]) {
    if layout.bits == 0 {
        pack_trits(codes, parts[0]);
    } else {
        pack::pack_codes(layout.bits, codes, parts[0]);
    }
}

/// Where values come from, for error messages.
#[derive(Clone, Copy)]
struct Place<'a> {
    tensor: &'a str,
    first_row: u64,
    cols: usize,
    offset: usize,
}

impl Place<'_> {
    const fn at(self, offset: usize) -> Self {
        Self { offset: self.offset + offset, first_row: self.first_row + (offset / self.cols) as u64, ..self }
    }
}

fn refuse_not_finite_at(values: &[f32], place: &Place<'_>, offset: usize) -> Result<(), Error> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let value = values[index];
            let index = offset + index;
            let row = place.first_row + (index / place.cols) as u64;
            Err(not_finite(value, place.tensor, row, index % place.cols))
        }
    }
}

fn not_finite(value: f32, tensor: &str, row: u64, column: usize) -> Error {
    let kind = if value.is_nan() { "NaN" } else { "infinity" };
    Error::numeric(format!(
        "tensor {tensor}: {kind} at row {row}, column {column}; the checkpoint is damaged: get it anew"
    ))
}

/// A scale (or minimum) that its type cannot hold.
pub(crate) fn scale_too_large(value: f32, tensor: &str, row: u64) -> Error {
    Error::numeric(format!(
        "tensor {tensor}: a scale of {value:e} near row {row} does not fit the scale type; choose scale=f32 or scale=bf16"
    ))
}

/// Refuses a row with a value that is not finite, and says where it stands.
///
/// # Errors
/// NaN or an infinity.
pub fn refuse_not_finite(values: &[f32], tensor: &str, row: u64) -> Result<(), Error> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(column) => Err(not_finite(values[column], tensor, row, column)),
    }
}

fn summarize<L: Levels>(values: &[f32], place: &Place<'_>) -> Result<Summary, Error> {
    const LANES: usize = 16;
    let (mut min, mut max) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut poison = [0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            let value = chunk[lane];
            min[lane] = if value < min[lane] { value } else { min[lane] };
            max[lane] = if value > max[lane] { value } else { max[lane] };
            poison[lane] += value * 0.0;
        }
    }
    let mut summary = Summary { min: f32::INFINITY, max: f32::NEG_INFINITY, mean_magnitude: 0.0 };
    let mut finite = poison.iter().all(|lane| *lane == 0.0);
    for value in min.iter().chain(&max).filter(|value| value.is_finite()).chain(rest) {
        summary.min = if *value < summary.min { *value } else { summary.min };
        summary.max = if *value > summary.max { *value } else { summary.max };
    }
    finite &= rest.iter().all(|value| value.is_finite());
    if !finite {
        let start = Place { offset: 0, ..*place };
        refuse_not_finite_at(values, &start, place.offset % place.cols)?;
    }
    if L::NEEDS_MEAN {
        let sum: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "a mean in single precision"
        )]
        {
            summary.mean_magnitude = (sum / values.len() as f64) as f32;
        }
    }
    Ok(summary)
}

/// The mean, summed in double precision in the order of `values`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a mean in single precision"
)]
fn mean_of(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
    (sum / values.len().max(1) as f64) as f32
}

/// Buffers of one encode call.
#[derive(Default)]
struct Space {
    fits: Vec<Fit>,
    scales: Vec<f32>,
    codes: Vec<u8>,
    values: Vec<f32>,
}

/// Five codes below 3 to a byte, the first the least significant.
fn pack_trits(codes: &[u8], out: &mut [u8]) {
    for (five, byte) in codes.chunks(5).zip(out) {
        *byte = five.iter().rev().fold(0, |byte, code| byte * 3 + code);
    }
}

fn unpack_trits(bytes: &[u8], codes: &mut [u8]) {
    for (five, byte) in codes.chunks_mut(5).zip(bytes) {
        let mut rest = *byte;
        for code in five {
            *code = rest % 3;
            rest /= 3;
        }
    }
}

/// The groups of `slab`: first row and values.
fn groups<'a>(
    slab: &'a Slab<'a>,
    row_group: usize,
    space: &'a mut Vec<f32>,
) -> impl FnMut(usize) -> Option<(u64, &'a [f32])> + 'a {
    let cols = slab.cols();
    let contiguous = match slab.contiguous() {
        Some(values) => values,
        None => {
            space.clear();
            for row in 0..slab.len() {
                space.extend_from_slice(slab.row(row));
            }
            &space[..]
        }
    };
    let first = slab.first();
    move |group| {
        let start = group * row_group * cols;
        if start >= contiguous.len() {
            return None;
        }
        let end = (start + row_group * cols).min(contiguous.len());
        Some((first + (group * row_group) as u64, &contiguous[start..end]))
    }
}

impl<L: Levels> Scheme for BlockScheme<L> {
    const INFO: SchemeInfo = L::INFO;
    type Job = BlockJob;
    type Tensor = BlockTensor;

    fn open(_: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let (levels, setup) = L::open(params)?;
        let whole = matches!(setup.granularity, Granularity::Tensor);
        for (clash, what) in [
            (
                whole && setup.search,
                "scale_search=mse needs scales of blocks or rows, not of the whole tensor",
            ),
            (
                whole && setup.double.is_some(),
                "scale_bits needs scales of blocks or rows, not of the whole tensor",
            ),
            (whole && setup.center, "center=true needs scales of blocks or rows, not of the whole tensor"),
            (
                whole && setup.empirical,
                "codebook=empirical needs scales of blocks or rows, not of the whole tensor",
            ),
        ] {
            if clash {
                return Err(Error::param(what));
            }
        }
        Ok(Self { levels, setup })
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        let layout = self.layout(shape)?;
        let mut parts = layout.parts();
        if self.setup.empirical {
            parts[0].head_bytes = 4 << self.setup.bits;
        }
        let row_group = u32::try_from(layout.row_group)
            .map_err(|_| Error::unsupported(format!("tensor {}: too many rows in a group", shape.tensor)))?;
        Ok(Plan { parts, row_group, stat_bytes: self.statistics_bytes() as u64, ..Plan::default() })
    }

    fn begin(&self, shape: &Shape<'_>, _: Option<Slab<'_>>, _: &Aux<'_>) -> Result<BlockJob, Error> {
        let layout = self.layout(shape)?;
        Ok(BlockJob { layout, tensor: shape.tensor.to_owned(), fit: None, book: None, weights: None })
    }

    fn observe(
        &self,
        job: &BlockJob,
        _: Range<u64>,
        slab: &Slab<'_>,
        stats: &mut [u8],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let layout = &job.layout;
        let mut space = Vec::new();
        let mut group = groups(slab, layout.row_group, &mut space);
        for (index, record) in stats.chunks_mut(self.statistics_bytes()).enumerate() {
            let Some((first_row, values)) = group(index) else { break };
            let place = Place { tensor: &job.tensor, first_row, cols: layout.cols, offset: 0 };
            if self.setup.empirical {
                let mut bins = vec![0u32; BINS];
                for block in layout.blocks(values.len() / layout.cols) {
                    let weights = job.weights_of(&block);
                    let fit = self.fit(&values[block.clone()], weights, None, &place.at(block.start))?;
                    if fit.scale == 0.0 {
                        continue;
                    }
                    for value in &values[block] {
                        #[expect(
                            clippy::cast_possible_truncation,
                            clippy::cast_sign_loss,
                            reason = "clamped to the bins"
                        )]
                        let bin = (((value - fit.minimum) / fit.scale + 1.0) * (BINS as f32 / 2.0))
                            .clamp(0.0, (BINS - 1) as f32) as usize;
                        bins[bin] += 1;
                    }
                }
                for (out, bin) in record.as_chunks_mut::<4>().0.iter_mut().zip(bins) {
                    *out = bin.to_le_bytes();
                }
            } else {
                let summary = summarize::<L>(values, &place)?;
                let sum: f64 =
                    if L::NEEDS_MEAN { values.iter().map(|value| f64::from(value.abs())).sum() } else { 0.0 };
                record[..4].copy_from_slice(&summary.min.to_le_bytes());
                record[4..8].copy_from_slice(&summary.max.to_le_bytes());
                record[8..16].copy_from_slice(&sum.to_le_bytes());
                record[16..24].copy_from_slice(&(values.len() as u64).to_le_bytes());
            }
        }
        Ok(())
    }

    fn prepare(&self, job: &mut BlockJob, stats: &[u8], heads: &mut [&mut [u8]]) -> Result<(), Error> {
        if self.setup.empirical {
            let mut histogram = vec![0u64; BINS];
            for record in stats.chunks(BINS * 4) {
                for (sum, bin) in histogram.iter_mut().zip(record.as_chunks::<4>().0) {
                    *sum += u64::from(u32::from_le_bytes(*bin));
                }
            }
            let book = self.levels.codebook(&histogram);
            let last = book.value(u8::MAX);
            for (index, out) in heads[0].as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *out = book.values().get(index).copied().unwrap_or(last).to_le_bytes();
            }
            job.book = Some(book);
        } else if matches!(self.setup.granularity, Granularity::Tensor) {
            let mut summary = Summary { min: f32::INFINITY, max: f32::NEG_INFINITY, mean_magnitude: 0.0 };
            let (mut sum, mut count) = (0f64, 0u64);
            for record in stats.as_chunks::<24>().0 {
                let [min, max] = [0, 4].map(|at| {
                    f32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
                });
                let [total, weights] = [8, 16].map(|at| {
                    let mut eight = [0; 8];
                    eight.copy_from_slice(&record[at..at + 8]);
                    u64::from_le_bytes(eight)
                });
                summary.min = summary.min.min(min);
                summary.max = summary.max.max(max);
                sum += f64::from_bits(total);
                count += weights;
            }
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                reason = "a mean in single precision"
            )]
            {
                summary.mean_magnitude = (sum / count.max(1) as f64) as f32;
            }
            let place = Place { tensor: &job.tensor, first_row: 0, cols: job.layout.cols, offset: 0 };
            job.fit = Some(self.round(self.levels.fit(&summary), &place)?);
        }
        Ok(())
    }

    fn encode(
        &self,
        job: &BlockJob,
        _: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let layout = &job.layout;
        let mut space = Space::default();
        let mut copy = std::mem::take(&mut space.values);
        let mut group = groups(slab, layout.row_group, &mut copy);
        let group_bytes: Vec<usize> = {
            let count = slab.len().div_ceil(layout.row_group).max(1);
            parts.iter().map(|part| part.len() / count).collect()
        };
        let mut index = 0;
        while let Some((first_row, values)) = group(index) {
            let place = Place { tensor: &job.tensor, first_row, cols: layout.cols, offset: 0 };
            let mut own: [&mut [u8]; 4] = Default::default();
            for ((own, part), bytes) in own.iter_mut().zip(parts.iter_mut()).zip(&group_bytes) {
                *own = &mut part[index * bytes..(index + 1) * bytes];
            }
            let own = &mut own[..group_bytes.len()];
            self.encode_group(job, values, &place, own, &mut space)?;
            index += 1;
        }
        Ok(())
    }

    fn open_tensor(&self, shape: &Shape<'_>, heads: &[&[u8]]) -> Result<BlockTensor, Error> {
        let book = self.setup.empirical.then(|| {
            let values = heads[0].as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            Codebook::new(values.filter(|value| value.is_finite()).collect())
        });
        Ok(BlockTensor { layout: self.layout(shape)?, book })
    }

    fn decode(
        &self,
        tensor: &BlockTensor,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        _: &mut [u8],
    ) -> Result<(), Error> {
        let layout = &tensor.layout;
        let book = tensor.book.as_ref();
        let groups = usize::try_from(shape.rows.div_ceil(layout.row_group as u64)).unwrap_or(1).max(1);
        let part_bytes: Vec<usize> = parts.iter().map(|part| part.len() / groups).collect();
        let mut codes = vec![0; layout.group_weights()];
        let mut scales = vec![0.0; layout.scales()];
        let mut values = vec![0.0; layout.group_weights()];
        let first_group = usize::try_from(rows.start / layout.row_group as u64).unwrap_or(0);
        for group in 0..out.len().div_ceil(layout.row_group) {
            let body = |part: usize| {
                let bytes = part_bytes[part];
                let start = (first_group + group) * bytes;
                &parts[part][start..start + bytes]
            };
            let first = group * layout.row_group;
            let count = layout.row_group.min(out.len() - first);
            let weights = count * layout.cols;
            if layout.bits == 0 {
                unpack_trits(body(0), &mut codes);
            } else {
                pack::unpack_codes(layout.bits, body(0), &mut codes);
            }
            if let Some(double) = layout.double {
                double.read(body(1), body(2), &mut scales);
            }
            let last = parts.len() - 1;
            for (index, block) in layout.blocks(count).enumerate() {
                let fit = Fit {
                    scale: if layout.double.is_some() {
                        scales[index]
                    } else {
                        layout.scale.read(body(1), index)
                    },
                    minimum: if layout.with_minimum { layout.scale.read(body(last), index) } else { 0.0 },
                };
                self.decode_block(&codes[block.clone()], fit, book, &mut values[block]);
            }
            for (row, source) in values[..weights].chunks(layout.cols).enumerate() {
                out.row_mut(first + row).copy_from_slice(source);
            }
        }
        Ok(())
    }
}

/// Factors on the ideal scale that a search for the least error tries: 1, and 24 smaller ones down to 0.52.
pub fn shrink_factors() -> impl Iterator<Item = f32> {
    const STEPS: u8 = 24;
    const MOST: f32 = 0.48;
    (0..=STEPS).map(|step| 1.0 - MOST * f32::from(step) / f32::from(STEPS))
}

/// Codes of a codebook: the nearest value to each weight less the block's minimum, over its scale.
pub fn encode_with(book: &Codebook, values: &[f32], fit: Fit, codes: &mut [u8]) {
    for (value, code) in values.iter().zip(codes) {
        *code = book.nearest((value - fit.minimum) / fit.scale);
    }
}

/// Weights of a codebook's codes.
pub fn decode_with(book: &Codebook, codes: &[u8], fit: Fit, out: &mut [f32]) {
    let mut table = [0f32; 256];
    for (code, value) in (0..=u8::MAX).zip(&mut table) {
        *value = book.value(code) * fit.scale + fit.minimum;
    }
    for (code, out) in codes.iter().zip(out) {
        *out = table[usize::from(*code)];
    }
}

/// The scale that puts the largest magnitude of a block on the largest value of `book`.
#[must_use]
pub fn absmax_fit(book: &Codebook, summary: &Summary) -> Fit {
    Fit { scale: summary.max.abs().max(summary.min.abs()) / book.largest(), minimum: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{levels::Int, testing};

    #[test]
    fn a_round_trip_without_bytes_is_that_of_the_bytes() {
        // 37 rows: the last group is short.
        let (rows, cols) = (37, 100);
        let values = testing::gaussian(rows * cols);
        let shape = Shape { tensor: "t", rows: rows as u64, cols: cols as u64, slice: 0, n_slices: 1 };
        for settings in [
            "bits=4",
            "bits=3,symmetric=false,scale_bits=6,scale_block=32",
            "bits=2,center=true,granularity=row",
            "bits=4,scale_bits=8,granularity=flat,block=48",
        ] {
            let params = Params::parse(Int::INFO.params, settings).unwrap();
            let scheme = BlockScheme::<Int>::open(&Host::none(), &params).unwrap();
            let job = scheme.begin(&shape, None, &Aux::default()).unwrap();
            let mut out = vec![f32::NAN; values.len()];
            scheme.round_trip(&job, 0, &values, &mut out).unwrap();
            assert_eq!(
                out,
                testing::round_trip::<BlockScheme<Int>>(settings, rows, cols, &values),
                "{settings}"
            );
        }
    }

    #[test]
    fn blocks_of_a_row_have_the_weights_of_their_columns() {
        let shape = Shape { tensor: "t", rows: 2, cols: 100, slice: 0, n_slices: 1 };
        let params = Params::parse(Int::INFO.params, "").unwrap();
        let scheme = BlockScheme::<Int>::open(&Host::none(), &params).unwrap();
        let job = scheme.begin(&shape, None, &Aux::default()).unwrap();
        assert_eq!(job.weights_of(&(0..64)), None);
        let job = job.weigh((0..100u8).map(f32::from).collect());
        assert_eq!(job.weights_of(&(164..200)).unwrap(), (64..100u8).map(f32::from).collect::<Vec<_>>());
        assert_eq!(job.weights_of(&(90..110)), None);
    }

    #[test]
    fn trits_come_back() {
        let codes: Vec<u8> = (0..13).map(|i| i % 3).collect();
        let mut bytes = vec![0; 3];
        pack_trits(&codes, &mut bytes);
        let mut back = vec![9; 13];
        unpack_trits(&bytes, &mut back);
        assert_eq!(back, codes);
        assert!(bytes.iter().all(|byte| *byte < 243));
    }
}
