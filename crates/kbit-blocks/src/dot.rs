//! Products of rows of blocks with activations in 8-bit blocks, as ggml's `ggml_vec_dot_*_generic` (`ggml-cpu/quants.c`)
//! compute them.
//!
//! Inside a block sums are of integers, and exact, so their order is free: that is where instruction sets differ. Sums of floats
//! run from block to block in ggml's order. For Q3_K to Q6_K that are eight sums side by side, of the weights whose index leaves
//! the same rest modulo eight, which are added up at the end. No multiplication is fused with an addition. So results are equal
//! bit for bit to ggml's generic code, and to each other for all instruction sets, any number of rows and any number of
//! activations.
//!
//! A sum from block to block has to wait for the one before it. Rows are therefore taken four at a time ([`products`]).

mod grids;

use crate::block::{
    IQ4_NL, IQ4_XS, MXFP4, NVFP4, Q1_0, Q2_0, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
    Q8_1, Q8_K, TQ1_0, TQ2_0,
};
use crate::fp4::{half_e4m3, half_e8m0, level};
use crate::iq4::LEVELS;
use crate::ternary::unpack_trit;
use crate::{BlockError, Kernels, row_bytes};
use bytemuck::Pod;
use kbit_types::GgmlType;

/// What a kernel multiplies, checked: whole rows of `blocks` blocks of weights with as many blocks of activations each.
pub(crate) struct Operands<'a, 'y> {
    /// `[rows, blocks]`.
    pub(crate) weights: &'a [u8],
    /// `[count, blocks]`.
    pub(crate) activations: &'a [u8],
    pub(crate) blocks: usize,
    /// `[count, stride]`, of which `rows` numbers each are written.
    pub(crate) out: &'y mut [f32],
    pub(crate) stride: usize,
}

type Kernel = fn(Kernels, Operands<'_, '_>);

macro_rules! kernels {
    ($($ty:ident $activations:ident: $kernel:ident;)*) => {
        /// The only list of types that can be multiplied, with the type of the activations.
        const KERNELS: &[(GgmlType, GgmlType, Kernel)] =
            &[$((GgmlType::$ty, GgmlType::$activations, Kernels::$kernel as Kernel),)*];
    };
}

kernels! {
    Q8_0 Q8_0: dot_q8_0;
    Q4_0 Q8_0: dot_q4_0;
    Q4_1 Q8_1: dot_q4_1;
    Q5_0 Q8_0: dot_q5_0;
    Q5_1 Q8_1: dot_q5_1;
    Q2_K Q8_K: dot_q2_k;
    Q3_K Q8_K: dot_q3_k;
    Q4_K Q8_K: dot_q4_k;
    Q5_K Q8_K: dot_q5_k;
    Q6_K Q8_K: dot_q6_k;
    TQ1_0 Q8_K: dot_tq1_0;
    TQ2_0 Q8_K: dot_tq2_0;
    MXFP4 Q8_0: dot_mxfp4;
    NVFP4 Q8_0: dot_nvfp4;
    Q1_0 Q8_0: dot_q1_0;
    Q2_0 Q8_0: dot_q2_0;
    IQ4_NL Q8_0: dot_iq4_nl;
    IQ4_XS Q8_K: dot_iq4_xs;
    IQ2_XXS Q8_K: dot_iq2_xxs;
    IQ2_XS Q8_K: dot_iq2_xs;
    IQ2_S Q8_K: dot_iq2_s;
    IQ3_XXS Q8_K: dot_iq3_xxs;
    IQ3_S Q8_K: dot_iq3_s;
    IQ1_S Q8_K: dot_iq1_s;
    IQ1_M Q8_K: dot_iq1_m;
}

/// The type in which activations are multiplied with blocks of type `ty`: ggml's `vec_dot_type`. `None` where there is no
/// product with integers.
#[must_use]
pub fn activation_type(ty: GgmlType) -> Option<GgmlType> {
    KERNELS.iter().find(|kernel| kernel.0 == ty).map(|kernel| kernel.1)
}

impl Kernels {
    /// Rounds activations `x` `[count, cols]` (row-major) to blocks of type `ty`, one of those that [`activation_type`] gives, in
    /// `out` `[count, row bytes]`. Bytes are ggml's and do not depend on the instruction set.
    ///
    /// # Errors
    /// Another type, rows that are not whole blocks, a buffer of another size, and activations that are NaN, infinite or too
    /// large for the type. `out` then holds arbitrary bytes.
    pub fn encode_activations(
        self,
        ty: GgmlType,
        x: &[f32],
        cols: usize,
        out: &mut [u8],
    ) -> Result<(), BlockError> {
        let encode: fn(Self, &[f32], &mut [u8]) = match ty {
            GgmlType::Q8_0 => Self::encode_q8_0,
            GgmlType::Q8_1 => Self::encode_q8_1,
            GgmlType::Q8_K => Self::encode_q8_k,
            _ => {
                let known = "Q8_0, Q8_1, Q8_K".to_owned();
                return Err(BlockError::Type { ty, action: "used for activations", known });
            }
        };
        let row_bytes = row_bytes(ty, cols)?;
        if !x.len().is_multiple_of(cols) || Some(out.len()) != (x.len() / cols).checked_mul(row_bytes) {
            let message = format!("{} activations in rows of {cols} do not fit {} bytes", x.len(), out.len());
            return Err(BlockError::Size { ty, message });
        }
        let refuse = |index: usize| {
            let (row, column) = (index / cols, index % cols);
            Err(BlockError::Activation { ty, value: x[index], row, column })
        };
        let largest = self.largest_bits(x);
        if largest >= f32::INFINITY.to_bits()
            && let Some(index) = x.iter().position(|x| !x.is_finite())
        {
            return refuse(index);
        }
        encode(self, x, out);
        // Below, the half-precision scale, and the sum of up to 32 activations, are finite.
        const HARMLESS: f32 = 65504.0 / 32.0;
        if largest > HARMLESS.to_bits() && ty != GgmlType::Q8_K {
            let finite = |half: &[u8]| half[1] & 0x7c != 0x7c;
            let block_bytes = row_bytes / (cols / 32);
            let halves = block_bytes - 32;
            let block = out.chunks(block_bytes).position(|block| !block[..halves].chunks(2).all(finite));
            if let Some(block) = block {
                let culprit =
                    (32 * block..32 * (block + 1)).max_by(|a, b| x[*a].abs().total_cmp(&x[*b].abs()));
                return refuse(culprit.unwrap_or(0));
            }
        }
        Ok(())
    }

    /// The product of a row of `cols` weights of type `ty` with activations of type [`activation_type`].
    ///
    /// # Errors
    /// As [`Kernels::dot_rows`].
    pub fn dot(
        self,
        ty: GgmlType,
        weights: &[u8],
        activations: &[u8],
        cols: usize,
    ) -> Result<f32, BlockError> {
        let mut out = [0.0];
        self.dot_rows(ty, weights, activations, cols, &mut out, 1)?;
        Ok(out[0])
    }

    /// Products of all rows of `weights` (`[rows, cols]`, blocks of type `ty`) with all of `activations` (`[count, cols]`, blocks
    /// of type [`activation_type`], as [`Kernels::encode_activations`] makes them): `out[a * stride + r]` becomes the product of
    /// row `r` with activation `a`. Each is the number of ggml's generic `ggml_vec_dot_*`, bit for bit (NaN apart), and depends
    /// neither on the instruction set nor on the other rows.
    ///
    /// # Errors
    /// A type without product, rows that are not whole blocks, and buffers whose sizes do not fit each other: `out` has to hold
    /// `(count - 1) * stride + rows` numbers, and `stride` to be at least `rows`.
    pub fn dot_rows(
        self,
        ty: GgmlType,
        weights: &[u8],
        activations: &[u8],
        cols: usize,
        out: &mut [f32],
        stride: usize,
    ) -> Result<(), BlockError> {
        let Some((_, activation_type, kernel)) = KERNELS.iter().find(|kernel| kernel.0 == ty) else {
            let known = KERNELS.iter().map(|kernel| kernel.0.name()).collect::<Vec<_>>().join(", ");
            return Err(BlockError::Type { ty, action: "multiplied", known });
        };
        let size = |message: String| Err(BlockError::Size { ty, message });
        let weight_bytes = row_bytes(ty, cols)?;
        let activation_bytes = row_bytes(*activation_type, cols)?;
        if !weights.len().is_multiple_of(weight_bytes) {
            return size(format!("{} bytes are not whole rows of {cols} weights", weights.len()));
        }
        if !activations.len().is_multiple_of(activation_bytes) {
            let bytes = activations.len();
            return size(format!(
                "{bytes} bytes are not whole rows of {cols} activations of type {activation_type}"
            ));
        }
        let (rows, count) = (weights.len() / weight_bytes, activations.len() / activation_bytes);
        if rows == 0 || count == 0 {
            return Ok(());
        }
        let needed = (count - 1).checked_mul(stride).and_then(|start| start.checked_add(rows));
        if stride < rows || needed.is_none_or(|needed| needed > out.len()) {
            let held = out.len();
            return size(format!(
                "{held} numbers, {stride} apart, do not hold {count} times {rows} products"
            ));
        }
        let blocks = cols / usize::try_from(ty.block_elements()).unwrap_or(usize::MAX);
        kernel(self, Operands { weights, activations, blocks, out, stride });
        Ok(())
    }
}

/// All products: of four rows at a time by `four`, of the rest by `one`. `A` is the activations that belong to a block of weights.
#[inline(always)]
pub(crate) fn products<W: Pod, A: Pod>(
    operands: Operands<'_, '_>,
    four: impl Fn([&[W]; 4], &[A]) -> [f32; 4],
    one: impl Fn(&[W], &[A]) -> f32,
) {
    let Operands { weights, activations, blocks, out, stride } = operands;
    let weights = bytemuck::cast_slice::<u8, W>(weights);
    let activations = bytemuck::cast_slice::<u8, A>(activations);
    let rows = weights.len() / blocks;
    let row = |row: usize| &weights[row * blocks..][..blocks];
    let mut first = 0;
    while first < rows {
        let whole = first + 4 <= rows;
        for (y, out) in activations.chunks_exact(blocks).zip(out.chunks_mut(stride)) {
            if whole {
                let products = four([row(first), row(first + 1), row(first + 2), row(first + 3)], y);
                out[first..first + 4].copy_from_slice(&products);
            } else {
                out[first] = one(row(first), y);
            }
        }
        first += if whole { 4 } else { 1 };
    }
}

/// A block that can be multiplied with activations.
pub(crate) trait Dot: Pod {
    /// As many activations as the block has weights.
    type Activations: Pod;
    /// Sums of floats over the blocks of a row.
    type Sums: Copy + Default;
    /// Adds the product with `y`.
    fn add(&self, y: &Self::Activations, sums: &mut Self::Sums);
    /// The product of the row.
    fn total(sums: Self::Sums) -> f32;
}

/// Products of `N` rows, the additions of which are interleaved.
#[inline(always)]
pub(crate) fn interleaved<W: Dot, const N: usize>(rows: [&[W]; N], y: &[W::Activations]) -> [f32; N] {
    let mut sums = [W::Sums::default(); N];
    for (index, y) in y.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            row[index].add(y, sums);
        }
    }
    sums.map(W::total)
}

#[inline(always)]
pub(crate) fn one<W: Dot>(row: &[W], y: &[W::Activations]) -> f32 {
    interleaved([row], y)[0]
}

/// The sum of the products of integers.
#[inline(always)]
fn integers<const N: usize>(a: &[i8; N], b: &[i8; N]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

/// An integer of at most 24 bits, or rounded, as C converts it.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "the conversion that is reproduced")]
pub(crate) fn float(x: i32) -> f32 {
    x as f32
}

/// Levels of 32 weights: of the low halves of 16 bytes, then of the high halves. `level` gets the index, too.
#[inline(always)]
pub(crate) fn nibbles<const H: usize, const N: usize>(
    q: &[u8; H],
    level: impl Fn(usize, u8) -> i8,
) -> [i8; N] {
    const { assert!(N == 2 * H) };
    let mut out = [0; N];
    let (low, high) = out.split_at_mut(H);
    for (j, ((q, low), high)) in q.iter().zip(low).zip(high).enumerate() {
        *low = level(j, q & 15);
        *high = level(j + H, q >> 4);
    }
    out
}

/// Blocks with one sum from block to block: the term that a block adds to it.
macro_rules! single_sums {
    ($($block:ident $activations:ty: |$x:ident, $y:ident, $sum:ident| $add:expr;)*) => {
        $(impl Dot for $block {
            type Activations = $activations;
            type Sums = f32;

            #[inline(always)]
            fn add(&self, $y: &Self::Activations, $sum: &mut f32) {
                let $x = self;
                $add;
            }

            #[inline(always)]
            fn total(sums: f32) -> f32 {
                sums
            }
        })*
    };
}

single_sums! {
    Q8_0 Q8_0: |x, y, sum| *sum += float(integers(&x.q, &y.q)) * (x.d.get() * y.d.get());
    Q4_0 Q8_0: |x, y, sum| {
        let levels = nibbles(&x.q, |_, q| q.cast_signed() - 8);
        *sum += float(integers(&levels, &y.q)) * x.d.get() * y.d.get();
    };
    Q4_1 Q8_1: |x, y, sum| {
        let levels = nibbles(&x.q, |_, q| q.cast_signed());
        *sum += x.d.get() * y.d.get() * float(integers(&levels, &y.q)) + x.m.get() * y.sum.get();
    };
    Q5_0 Q8_0: |x, y, sum| {
        let bits = u32::from_le_bytes(x.high);
        let levels = nibbles(&x.q, |j, q| (q | fifth(bits, j)).cast_signed() - 16);
        *sum += x.d.get() * y.d.get() * float(integers(&levels, &y.q));
    };
    Q5_1 Q8_1: |x, y, sum| {
        let bits = u32::from_le_bytes(x.high);
        let levels = nibbles(&x.q, |j, q| (q | fifth(bits, j)).cast_signed());
        *sum += x.d.get() * y.d.get() * float(integers(&levels, &y.q)) + x.m.get() * y.sum.get();
    };
    MXFP4 Q8_0: |x, y, sum| {
        let levels = nibbles(&x.q, |_, q| level(q));
        *sum += y.d.get() * half_e8m0(x.e) * float(integers(&levels, &y.q));
    };
    IQ4_NL Q8_0: |x, y, sum| {
        let levels = nibbles(&x.q, |_, q| LEVELS[usize::from(q)]);
        *sum += y.d.get() * x.d.get() * float(integers(&levels, &y.q));
    };
    IQ4_XS Q8_K: |x, y, sum| {
        let d = x.d.get() * y.scale();
        for (part, (q, y)) in x.q.iter().zip(y.q.as_chunks::<32>().0).enumerate() {
            let levels = nibbles(q, |_, q| LEVELS[usize::from(q)]);
            *sum += d * f32::from(x.scale(part)) * float(integers(&levels, y));
        }
    };
    NVFP4 [Q8_0; 2]: |x, y, sum| for (part, (q, scale)) in x.q.iter().zip(x.scales).enumerate() {
        let levels: [i8; 16] = nibbles(q, |_, q| level(q));
        let y = &y[part / 2];
        let q = &y.q.as_chunks::<16>().0[part % 2];
        *sum += y.d.get() * half_e4m3(scale) * float(integers(&levels, q));
    };
    Q1_0 [Q8_0; 4]: |x, y, sum| {
        let mut inner = 0.0;
        for (levels, y) in x.levels().as_chunks::<32>().0.iter().zip(y) {
            inner += y.d.get() * float(integers(levels, &y.q));
        }
        *sum += x.d.get() * inner;
    };
    Q2_0 [Q8_0; 2]: |x, y, sum| {
        let mut inner = 0.0;
        for (levels, y) in x.levels().as_chunks::<32>().0.iter().zip(y) {
            inner += y.d.get() * float(integers(levels, &y.q));
        }
        *sum += x.d.get() * inner;
    };
    TQ1_0 Q8_K: |x, y, sum| {
        *sum += float(integers(&x.levels(), &y.q)) * (x.d.get() * y.scale());
    };
    TQ2_0 Q8_K: |x, y, sum| {
        *sum += float(integers(&x.levels(), &y.q)) * (y.scale() * x.d.get());
    };
    Q2_K Q8_K: |x, y, sum| {
        let levels = pairs_of_bits(&x.q).map(u8::cast_signed);
        let (mut product, mut minimums) = (0, 0);
        let parts = levels.as_chunks::<16>().0.iter().zip(y.q.as_chunks::<16>().0);
        for (part, ((levels, q), scale)) in parts.zip(x.scales).enumerate() {
            product += i32::from(scale & 15) * integers(levels, q);
            minimums += i32::from(scale >> 4) * y.sum(part);
        }
        let (d, dmin) = (y.scale() * x.d.get(), y.scale() * x.dmin.get());
        *sum += d * float(product) - dmin * float(minimums);
    };
}

impl Q1_0 {
    #[inline(always)]
    pub(crate) fn levels(&self) -> [i8; 128] {
        let mut out = [-1; 128];
        for (j, level) in out.iter_mut().enumerate() {
            *level = if self.q[j / 8] >> (j % 8) & 1 != 0 { 1 } else { -1 };
        }
        out
    }
}

impl Q2_0 {
    #[inline(always)]
    pub(crate) fn levels(&self) -> [i8; 64] {
        let mut out = [0; 64];
        for (j, level) in out.iter_mut().enumerate() {
            *level = (self.q[j / 4] >> (j % 4 * 2) & 3).cast_signed() - 1;
        }
        out
    }
}

impl TQ1_0 {
    #[inline(always)]
    pub(crate) fn levels(&self) -> [i8; 256] {
        let mut out = [0; 256];
        trits(&self.first, &mut out[..160]);
        trits(&self.second, &mut out[160..240]);
        trits(&self.third, &mut out[240..]);
        out
    }
}

impl TQ2_0 {
    #[inline(always)]
    pub(crate) fn levels(&self) -> [i8; 256] {
        pairs_of_bits(&self.q).map(|q| q.cast_signed() - 1)
    }
}

impl IQ4_XS {
    /// The scale of a part: four low bits in half a byte, two high bits in a number of 16.
    #[inline(always)]
    pub(crate) fn scale(&self, part: usize) -> i8 {
        let low = self.low[part / 2] >> (part % 2 * 4) & 15;
        let high = self.high[part / 4] >> (part % 4 * 2) & 3;
        (low | high << 4).cast_signed() - 32
    }
}

/// The fifth bit of weight `j`, in its place.
#[inline(always)]
pub(crate) fn fifth(bits: u32, j: usize) -> u8 {
    u8::from(bits >> j & 1 != 0) << 4
}

#[inline(always)]
fn trits<const N: usize>(bytes: &[u8; N], levels: &mut [i8]) {
    for (run, levels) in levels.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        for (byte, level) in bytes.iter().zip(levels) {
            *level = unpack_trit(*byte, run).cast_signed() - 1;
        }
    }
}

/// Codes of two bits: 32 bytes hold four runs of 32.
#[inline(always)]
pub(crate) fn pairs_of_bits(q: &[[u8; 32]; 2]) -> [u8; 256] {
    let mut out = [0; 256];
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (q, out) in q[run / 4].iter().zip(out) {
            *out = q >> (run % 4 * 2) & 3;
        }
    }
    out
}

/// Sums of the super-blocks whose products ggml adds up in eight lanes, and what the minimums take off.
#[derive(Clone, Copy, Default)]
pub(crate) struct Lanes {
    pub(crate) lanes: [f32; 8],
    pub(crate) minimums: f32,
}

impl Lanes {
    #[inline(always)]
    pub(crate) fn total(self) -> f32 {
        self.lanes.iter().fold(self.minimums, |sum, lane| sum + lane)
    }

    /// Adds a super-block of scale `d`: parts of `N` levels with their scales.
    #[inline(always)]
    fn add<const N: usize>(&mut self, levels: &[i8; 256], y: &Q8_K, scales: impl Fn(usize) -> i32, d: f32) {
        let mut sums = [0i32; 8];
        let parts = levels.as_chunks::<N>().0.iter().zip(y.q.as_chunks::<N>().0);
        for (part, (levels, q)) in parts.enumerate() {
            let scale = scales(part);
            for (levels, q) in levels.as_chunks::<8>().0.iter().zip(q.as_chunks::<8>().0) {
                for ((sum, level), q) in sums.iter_mut().zip(levels).zip(q) {
                    // The product fits 16 bits: levels have six, with the sign.
                    *sum += scale * i32::from(i16::from(*level) * i16::from(*q));
                }
            }
        }
        for (lane, sum) in self.lanes.iter_mut().zip(sums) {
            *lane += d * float(sum);
        }
    }
}

/// The eight scales and eight minimums, of six bits, that Q4_K and Q5_K pack in twelve bytes.
#[inline(always)]
pub(crate) fn scales_and_minimums(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let [a, b, c] = [0, 1, 2].map(|word| u32::from_le_bytes(packed.as_chunks::<4>().0[word]));
    let both = |first: u32, second: u32| (u64::from(second) << 32 | u64::from(first)).to_le_bytes();
    let (low, top) = (0x0f0f_0f0f, |word: u32| (word >> 6 & 0x0303_0303) << 4);
    let scales = both(a & 0x3f3f_3f3f, c & low | top(a));
    let minimums = both(b & 0x3f3f_3f3f, c >> 4 & low | top(b));
    (scales, minimums)
}

/// What the minimums of Q4_K and Q5_K take off.
#[inline(always)]
fn minimums(minimums: [u8; 8], y: &Q8_K) -> i32 {
    let pairs = minimums.iter().enumerate();
    pairs.map(|(part, minimum)| i32::from(*minimum) * (y.sum(2 * part) + y.sum(2 * part + 1))).sum()
}

impl Q3_K {
    /// The scale of a part: four low bits in one of the first eight bytes, two high bits in one of the last four.
    #[inline(always)]
    pub(crate) fn scale(&self, part: usize) -> i8 {
        let low = self.scales[part % 8] >> (part / 8 * 4) & 15;
        let top = self.scales[8 + part % 4] >> (part / 4 * 2) & 3;
        (low | top << 4).cast_signed() - 32
    }
}

impl Q3_K {
    #[inline(always)]
    pub(crate) fn levels(&self) -> [i8; 256] {
        let mut levels = [0; 256];
        for (run, (levels, low)) in levels
            .as_chunks_mut::<32>()
            .0
            .iter_mut()
            .zip(pairs_of_bits(&self.q).as_chunks::<32>().0)
            .enumerate()
        {
            for ((level, low), high) in levels.iter_mut().zip(low).zip(&self.high) {
                *level = (low | (high >> run & 1) << 2).cast_signed() - 4;
            }
        }
        levels
    }
}

impl Dot for Q3_K {
    type Activations = Q8_K;
    type Sums = Lanes;

    #[inline(always)]
    fn add(&self, y: &Q8_K, sums: &mut Lanes) {
        sums.add::<16>(&self.levels(), y, |part| i32::from(self.scale(part)), self.d.get() * y.scale());
    }

    #[inline(always)]
    fn total(sums: Lanes) -> f32 {
        sums.total()
    }
}

impl Q4_K {
    #[inline(always)]
    pub(crate) fn levels(&self) -> [i8; 256] {
        let mut levels = [0; 256];
        for (q, levels) in self.q.iter().zip(levels.as_chunks_mut::<64>().0) {
            *levels = nibbles(q, |_, q| q.cast_signed());
        }
        levels
    }
}

impl Dot for Q4_K {
    type Activations = Q8_K;
    type Sums = Lanes;

    #[inline(always)]
    fn add(&self, y: &Q8_K, sums: &mut Lanes) {
        let (scales, mins) = scales_and_minimums(&self.scales);
        sums.add::<32>(&self.levels(), y, |part| i32::from(scales[part]), self.d.get() * y.scale());
        sums.minimums -= self.dmin.get() * y.scale() * float(minimums(mins, y));
    }

    #[inline(always)]
    fn total(sums: Lanes) -> f32 {
        sums.total()
    }
}

impl Q5_K {
    #[inline(always)]
    pub(crate) fn levels(&self) -> [i8; 256] {
        let mut levels = [0; 256];
        for (pair, (q, levels)) in self.q.iter().zip(levels.as_chunks_mut::<64>().0).enumerate() {
            *levels = nibbles(q, |j, q| {
                let (part, index) = (2 * pair + j / 32, j % 32);
                (q | (self.high[index] >> part & 1) << 4).cast_signed()
            });
        }
        levels
    }
}

impl Dot for Q5_K {
    type Activations = Q8_K;
    type Sums = Lanes;

    #[inline(always)]
    fn add(&self, y: &Q8_K, sums: &mut Lanes) {
        let (scales, mins) = scales_and_minimums(&self.scales);
        sums.add::<32>(&self.levels(), y, |part| i32::from(scales[part]), self.d.get() * y.scale());
        sums.minimums -= self.dmin.get() * y.scale() * float(minimums(mins, y));
    }

    #[inline(always)]
    fn total(sums: Lanes) -> f32 {
        sums.total()
    }
}

impl Q6_K {
    #[inline(always)]
    pub(crate) fn levels(&self) -> [i8; 256] {
        let mut levels = [0; 256];
        for (run, levels) in levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (half, run) = (run / 4, run % 4);
            let low = &self.low[half].as_chunks::<32>().0[run % 2];
            for ((level, low), high) in levels.iter_mut().zip(low).zip(&self.high[half]) {
                *level = (low >> (run / 2 * 4) & 15 | (high >> (run * 2) & 3) << 4).cast_signed() - 32;
            }
        }
        levels
    }
}

impl Dot for Q6_K {
    type Activations = Q8_K;
    type Sums = Lanes;

    #[inline(always)]
    fn add(&self, y: &Q8_K, sums: &mut Lanes) {
        sums.add::<16>(&self.levels(), y, |part| i32::from(self.scales[part]), self.d.get() * y.scale());
    }

    #[inline(always)]
    fn total(sums: Lanes) -> f32 {
        sums.total()
    }
}
