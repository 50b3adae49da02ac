//! Vectors for searches that run one block a lane.
//!
//! The bytes of a block depend on the order in which its sums are taken, so the weights of a block must not be spread over lanes.
//! Blocks are independent, though: lane `k` of every vector belongs to block `k` of a batch, and runs the scalar sequence of that
//! block. Branches become masks: a lane that would not have taken one computes both and keeps its own. No operation here rounds
//! other than its scalar counterpart (there is no fused multiply-add, no approximate reciprocal), so all instruction sets, and
//! any number of lanes, give equal bytes.
//!
//! A [`Simd`] is the proof that the CPU has the features; vectors come only from it.

use crate::block::Block;
use std::ops::{Add, BitAnd, Div, Mul, Sub};

/// The most lanes of any instruction set.
pub(crate) const MOST: usize = 16;

/// 1.5 * 2^23: adding it to a small number rounds that to an integer, which is then found in the low bits.
pub(crate) const ROUNDER: f32 = 12_582_912.0;
/// Bits of the mantissa, and those of 2^23.
pub(crate) const MANTISSA: u32 = 0x007f_ffff;
pub(crate) const INTEGERS: u32 = 0x4b00_0000;

/// An instruction set that the CPU has.
pub(crate) trait Simd: Copy {
    /// Lanes, at most [`MOST`].
    const LANES: usize;
    /// As many floats.
    type Floats: Floats;
    /// The same number in all lanes.
    fn splat(self, x: f32) -> Self::Floats;
    /// The first [`Simd::LANES`] numbers.
    fn load(self, x: &[f32; MOST]) -> Self::Floats;
}

/// A vector of floats.
pub(crate) trait Floats:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// A truth value a lane.
    type Mask: Copy + BitAnd<Output = Self::Mask>;
    /// The lanes; what is above them is zero.
    fn store(self) -> [f32; MOST];
    /// True where `self` is less; false for NaN.
    fn less(self, other: Self) -> Self::Mask;
    /// True where they differ, and for NaN.
    fn differs(self, other: Self) -> Self::Mask;
    /// `self` where the mask is true, else `other`.
    fn where_or(self, mask: Self::Mask, other: Self) -> Self;
    /// True where any lane is.
    fn any(mask: Self::Mask) -> bool;
    /// `self` where it is less, else `other`.
    fn least(self, other: Self) -> Self;
    /// `self` where it is greater, else `other`.
    fn greatest(self, other: Self) -> Self;
    /// Without the sign.
    fn abs(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The integer of [`crate::search::nearest`].
    fn nearest(self) -> Self;
    /// The low byte of an integer of [`Floats::nearest`], without sign.
    fn low_byte(self) -> Self;
    /// The nearest value of a grid; of two equally near, the greater. The greatest for NaN.
    fn nearest_of(self, grid: &Grid) -> Self;
}

/// Sixteen ascending values, with the midpoints between them laid out for a search by halves: each step looks up its midpoint
/// by what is known of the index.
pub(crate) struct Grid {
    pub values: [f32; MOST],
    /// The midpoint above value 7.
    pub middle: f32,
    /// The midpoints above values 3, 1 and 0 more than the index.
    pub steps: [[f32; MOST]; 3],
}

impl Grid {
    /// Midpoints of integers are exact, and so are the differences next to them: comparing with the midpoint is comparing the
    /// distances.
    pub(crate) const fn new(values: [f32; MOST]) -> Self {
        let mut steps = [[f32::INFINITY; MOST]; 3];
        let mut index = 0;
        while index < MOST {
            let mut step = 0;
            while step < 3 {
                let below = index + [3, 1, 0][step];
                if below + 1 < MOST {
                    steps[step][index] = f32::midpoint(values[below], values[below + 1]);
                }
                step += 1;
            }
            index += 1;
        }
        Self { values, middle: f32::midpoint(values[7], values[8]), steps }
    }

    /// Index of the nearest value.
    #[inline(always)]
    pub(crate) fn index(&self, x: f32) -> u8 {
        self.steps[2][..MOST - 1].iter().fold(0, |index, midpoint| {
            #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN is above all")]
            let above = !(x < *midpoint);
            index + u8::from(above)
        })
    }
}

/// Vector `i` of the result holds number `i` of all blocks.
#[inline(always)]
pub(crate) fn transpose<S: Simd, const N: usize>(simd: S, x: &[&[f32; N]; MOST]) -> [S::Floats; N] {
    let mut out = [simd.splat(0.0); N];
    transpose_into(simd, x, &mut out);
    out
}

#[inline(always)]
fn transpose_into<S: Simd, const N: usize>(simd: S, x: &[&[f32; N]; MOST], out: &mut [S::Floats; N]) {
    let mut columns = [[0f32; MOST]; MOST];
    for (start, out) in out.chunks_mut(MOST).enumerate() {
        for (lane, x) in x.iter().enumerate().take(S::LANES) {
            for (column, x) in columns.iter_mut().zip(&x[start * MOST..]) {
                column[lane] = *x;
            }
        }
        for (out, column) in out.iter_mut().zip(&columns) {
            *out = simd.load(column);
        }
    }
}

/// The lanes of all vectors.
#[inline(always)]
pub(crate) fn stored<F: Floats, const N: usize>(vectors: &[F; N]) -> [[f32; MOST]; N] {
    let mut out = [[0.0; MOST]; N];
    for (out, vector) in out.iter_mut().zip(vectors) {
        *out = vector.store();
    }
    out
}

/// The codes of one block.
#[inline(always)]
pub(crate) fn codes_of_lane<const N: usize>(codes: &[[f32; MOST]; N], lane: usize) -> [u8; N] {
    let mut out = [0; N];
    for (out, code) in out.iter_mut().zip(codes) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "integers from 0 to 255")]
        {
            *out = code[lane] as u8;
        }
    }
    out
}

/// Blocks of a batch, one a lane; lanes past the last block repeat it.
pub(crate) type Batch<'a, W> = [&'a W; MOST];

/// [`transpose`] of part `index` of super-blocks, in parts of equal length.
#[inline(always)]
pub(crate) fn transpose_part<S: Simd, const LEN: usize>(
    simd: S,
    batch: &Batch<'_, [f32; 256]>,
    index: usize,
) -> [S::Floats; LEN] {
    let mut out = [simd.splat(0.0); LEN];
    transpose_part_into(simd, batch, index, &mut out);
    out
}

/// [`transpose_part`] in place, where copies would cost as much as the search.
#[inline(always)]
pub(crate) fn transpose_part_into<S: Simd, const LEN: usize>(
    simd: S,
    batch: &Batch<'_, [f32; 256]>,
    index: usize,
    out: &mut [S::Floats; LEN],
) {
    let mut parts = [&batch[0].as_chunks::<LEN>().0[index]; MOST];
    for (part, x) in parts.iter_mut().zip(batch) {
        *part = &x.as_chunks().0[index];
    }
    transpose_into(simd, &parts, out);
}

/// A block whose search runs one block a lane.
pub(crate) trait EncodeLanes: Block {
    /// The blocks of `x`, which is finite: as many as `out` has, at most a lane each.
    fn encode_lanes<S: Simd>(simd: S, x: &Batch<'_, Self::Weights>, out: &mut [Self]);
}

/// A block whose search weighs errors by the importance of columns, one block a lane.
pub(crate) trait WeightedLanes: Block {
    /// True where the mean square of the whole row matters.
    const OF_ROW: bool;
    /// As [`EncodeLanes::encode_lanes`]; `importance` is the mean square of each column's input, `mean_square` that of the
    /// rows that the blocks belong to.
    fn weighted_lanes<S: Simd>(
        simd: S,
        x: &Batch<'_, Self::Weights>,
        importance: &Batch<'_, Self::Weights>,
        mean_square: &[f32; MOST],
        out: &mut [Self],
    );
}

/// Encodes whole blocks, batch by batch.
#[inline(always)]
pub(crate) fn encode<S: Simd, B: EncodeLanes>(simd: S, x: &[f32], out: &mut [u8]) {
    let blocks: &[B::Weights] = bytemuck::cast_slice(x);
    for (x, out) in blocks.chunks(S::LANES).zip(bytemuck::cast_slice_mut(out).chunks_mut(S::LANES)) {
        let batch = std::array::from_fn(|lane| &x[lane.min(x.len() - 1)]);
        B::encode_lanes(simd, &batch, out);
    }
}

/// Encodes whole rows, as long as `importance`. Batches go on across rows.
#[inline(always)]
pub(crate) fn weighted<S: Simd, B: WeightedLanes>(simd: S, rows: &[f32], importance: &[f32], out: &mut [u8]) {
    let blocks: &[B::Weights] = bytemuck::cast_slice(rows);
    let importance_blocks: &[B::Weights] = bytemuck::cast_slice(importance);
    let in_row = importance_blocks.len();
    let (mut row, mut of_row) = (usize::MAX, 0.0);
    let mut first = 0;
    for (x, out) in blocks.chunks(S::LANES).zip(bytemuck::cast_slice_mut(out).chunks_mut(S::LANES)) {
        let last = x.len() - 1;
        let batch = std::array::from_fn(|lane| &x[lane.min(last)]);
        let columns = std::array::from_fn(|lane| &importance_blocks[(first + lane.min(last)) % in_row]);
        let mut mean_square = [0.0; MOST];
        if B::OF_ROW {
            for (lane, mean_square) in mean_square.iter_mut().enumerate() {
                let index = (first + lane.min(last)) / in_row;
                if index != row {
                    (row, of_row) = (index, mean(&rows[index * importance.len()..][..importance.len()]));
                }
                *mean_square = of_row;
            }
        }
        B::weighted_lanes(simd, &batch, &columns, &mean_square, out);
        first += x.len();
    }
}

/// The mean square, in ggml's order: one sum over the row, then the mean.
#[inline(always)]
fn mean(row: &[f32]) -> f32 {
    let sum = row.iter().fold(0f32, |sum, x| sum + x * x);
    #[expect(clippy::cast_precision_loss, reason = "as ggml divides by the float of the length")]
    let mean = sum / row.len() as f32;
    mean
}

/// Eight lanes for every CPU, which the compiler maps to what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

const WIDTH: usize = 8;

/// A vector of [`Portable`].
#[derive(Clone, Copy)]
pub(crate) struct Array([f32; WIDTH]);

/// All bits, or none.
#[derive(Clone, Copy)]
pub(crate) struct ArrayMask([u32; WIDTH]);

impl Simd for Portable {
    const LANES: usize = WIDTH;
    type Floats = Array;

    #[inline(always)]
    fn splat(self, x: f32) -> Array {
        Array([x; WIDTH])
    }

    #[inline(always)]
    fn load(self, x: &[f32; MOST]) -> Array {
        Array(std::array::from_fn(|lane| x[lane]))
    }
}

impl Array {
    #[inline(always)]
    fn zip(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| of(self.0[lane], other.0[lane])))
    }

    #[inline(always)]
    fn compare(self, other: Self, of: impl Fn(f32, f32) -> bool) -> ArrayMask {
        ArrayMask(std::array::from_fn(|lane| 0u32.wrapping_sub(u32::from(of(self.0[lane], other.0[lane])))))
    }
}

macro_rules! operators {
    ($($name:ident $method:ident $operator:tt;)*) => {
        $(impl $name for Array {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.zip(other, |a, b| a $operator b)
            }
        })*
    };
}

operators! {
    Add add +;
    Sub sub -;
    Mul mul *;
    Div div /;
}

impl BitAnd for ArrayMask {
    type Output = Self;

    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] & other.0[lane]))
    }
}

impl Floats for Array {
    type Mask = ArrayMask;

    #[inline(always)]
    fn store(self) -> [f32; MOST] {
        let mut out = [0.0; MOST];
        out[..WIDTH].copy_from_slice(&self.0);
        out
    }

    #[inline(always)]
    fn less(self, other: Self) -> ArrayMask {
        self.compare(other, |a, b| a < b)
    }

    #[inline(always)]
    fn differs(self, other: Self) -> ArrayMask {
        self.compare(other, |a, b| a != b)
    }

    #[inline(always)]
    fn where_or(self, mask: ArrayMask, other: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            let mask = mask.0[lane];
            f32::from_bits(self.0[lane].to_bits() & mask | other.0[lane].to_bits() & !mask)
        }))
    }

    #[inline(always)]
    fn any(mask: ArrayMask) -> bool {
        mask.0.iter().fold(0, |any, lane| any | lane) != 0
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    fn nearest(self) -> Self {
        Self(self.0.map(|x| f32::from_bits((x + ROUNDER).to_bits() & MANTISSA | INTEGERS) - ROUNDER))
    }

    #[inline(always)]
    fn low_byte(self) -> Self {
        Self(
            self.0.map(|x| {
                f32::from_bits((x + ROUNDER).to_bits() & 0xff | INTEGERS) - f32::from_bits(INTEGERS)
            }),
        )
    }

    #[inline(always)]
    fn nearest_of(self, grid: &Grid) -> Self {
        Self(self.0.map(|x| grid.values[usize::from(grid.index(x))]))
    }
}
