//! The kernels of the engine, with the instruction set chosen at run time.

use crate::arch::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::arch::{avx2::Avx2, avx512::Avx512};
use crate::buffer::{Aligned, Rows, RowsMut};
use crate::cache::SoftmaxStep;
use crate::packed::{Groups, IntegerProduct, Line, PanelProduct, Tile, Units};
use crate::stored::{CacheType, Form, TooLarge};
use kbit_types::IntegerLayout;

/// Instruction sets that have kernels of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstructionSet {
    /// What every CPU has.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512F.
    Avx512,
    /// AVX-512, and AMX for products of bf16 and of some integers.
    Amx,
}

impl InstructionSet {
    /// All, from the plainest to the fastest.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];
}

impl std::fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Amx => "AMX",
        })
    }
}

/// The kernels for one instruction set that this CPU has.
///
/// Every result depends on its operands alone: sums run in an order that neither the number of rows nor their place
/// in a batch changes. CPUs with fused multiply-add give equal bits with every instruction set, but for products of bf16 with AMX; the
/// portable kernels of other builds differ from them in the last bits.
#[derive(Clone, Copy, Debug)]
pub struct Kernels(Set);

#[derive(Clone, Copy, Debug)]
enum Set {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// Calls the method of that name of whichever kernels there are.
macro_rules! with {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self.0 {
            Set::Portable(kernels) => kernels.$method($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(kernels) => kernels.$method($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(kernels) => kernels.$method($($argument),*),
        }
    };
}

impl Kernels {
    /// The fastest kernels of this CPU.
    #[must_use]
    pub fn best() -> Self {
        InstructionSet::ALL.into_iter().rev().find_map(Self::of).unwrap_or(Self(Set::Portable(Portable)))
    }

    /// The kernels for one instruction set; `None` where the CPU has not got it.
    #[must_use]
    pub fn of(set: InstructionSet) -> Option<Self> {
        match set {
            InstructionSet::Portable => Some(Self(Set::Portable(Portable))),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Avx2::new().map(|proof| Self(Set::Avx2(proof))),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Avx512::new().map(|proof| Self(Set::Avx512(proof))),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => {
                Avx512::new().and_then(Avx512::with_amx).map(|proof| Self(Set::Avx512(proof)))
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// Which instruction set they use.
    #[must_use]
    pub fn instruction_set(&self) -> InstructionSet {
        match self.0 {
            Set::Portable(_) => InstructionSet::Portable,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => InstructionSet::Avx2,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(kernels) if kernels.has_amx() => InstructionSet::Amx,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => InstructionSet::Avx512,
        }
    }

    /// Packs rows of units: `to[unit * width + row]`, `width` at least the number of rows. What lies beside the rows is arbitrary.
    pub(crate) fn interleave(&self, from: Units<'_>, width: usize, to: &mut [u32]) {
        if from.rows() > 0 {
            with!(self.interleave(from, width, to));
        }
    }

    /// Sums of the levels of each part of `levels`, `part` of them, which are at most 256.
    pub(crate) fn sum_parts(&self, levels: &[i8], part: usize, sums: &mut [i16]) {
        with!(self.sum_parts(levels, part, sums));
    }

    /// `x` rounded to bf16, to nearest even; subnormal numbers become zero.
    pub(crate) fn round_bf16(&self, x: &[f32], out: &mut [u16]) {
        with!(self.round_bf16(x, out));
    }

    /// Products of floats: multiply-adds in the order of the units, from zero.
    pub(crate) fn tile_f32(&self, tile: Tile<'_, '_>) {
        with!(self.tile_f32(tile));
    }

    /// Products of bf16: as [`Kernels::tile_f32`], but of the two products of a unit the second is added first. Operands are never
    /// subnormal. A sum that is (below 1.2e-38) may become zero, depending on the instruction set.
    pub(crate) fn tile_bf16(&self, tile: Tile<'_, '_>) {
        with!(self.tile_bf16(tile));
    }

    /// How activations of bf16 are to be packed: for [`Kernels::tile_bf16`], or otherwise for [`Kernels::multiply_bf16`].
    pub(crate) fn bf16_groups(&self) -> Groups {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(kernels) => kernels.bf16_groups(),
            _ => Groups::FLOATS,
        }
    }

    /// Products of a panel of bf16 with all activations, where [`Kernels::bf16_groups`] asks for it: those of each 32 columns are
    /// added up on their own, those of even columns and of odd ones apart. [`Kernels::line`] gives the same.
    pub(crate) fn multiply_bf16(&self, product: &mut PanelProduct<'_, '_>) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(kernels) => kernels.multiply_bf16(product),
            _ => unreachable!("{self:?} has tiles of bf16"),
        }
    }

    /// Products of rows with one activation `x` (see [`Line`]), as tiles of blocks of units give them; false, and `out` is as it was, where
    /// there is no faster way than tiles. Subnormal weights of bf16 count as zero.
    pub(crate) fn line(&self, line: Line, weights: Units<'_>, x: &[u32], out: &mut [f32]) -> bool {
        match self.0 {
            Set::Portable(_) => {
                let _ = (line, weights, x, out);
                false
            }
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(kernels) => kernels.line(line, weights, x, out),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(kernels) => kernels.line(line, weights, x, out),
        }
    }

    /// How [`Kernels::multiply_integers`] wants activations for weights of that layout.
    pub(crate) fn integer_groups(&self, layout: IntegerLayout) -> Groups {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(kernels) => kernels.integer_groups(layout),
            _ => {
                let _ = layout;
                Groups::INTEGERS
            }
        }
    }

    /// Products of integers: see [`Terms`](kbit_types::Terms). Equal bits with every instruction set.
    pub(crate) fn multiply_integers(&self, product: &mut IntegerProduct<'_, '_>) {
        with!(self.multiply_integers(product));
    }

    /// Subnormal bf16 become zero, as [`Kernels::round_bf16`] makes them, for [`Kernels::tile_bf16`].
    pub(crate) fn normalize_bf16(&self, units: &mut [u32]) {
        // Its instructions do that.
        #[cfg(target_arch = "x86_64")]
        if let Set::Avx512(kernels) = self.0
            && kernels.drops_subnormal_bf16()
        {
            return;
        }
        with!(self.normalize_bf16(units));
    }

    /// `out[i] = sum(a[i][k] * b[k])` in the order of `k`, added to `out[i]` if `add`: `a` `[m, terms]`,
    /// `b` `[terms, cols]`, `out` `[m, cols]`, all row-major.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn combine(&self, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>, add: bool) {
        assert_eq!(a.cols(), b.rows(), "terms");
        assert_eq!((out.rows(), out.cols()), (a.rows(), b.cols()), "shape of the result");
        with!(self.combine(a, b, out, add));
    }

    /// The Walsh-Hadamard transform of each `run` numbers of `x`, over the root of `run`: orthonormal, and its own inverse.
    ///
    /// # Panics
    /// If `run` is no power of two.
    pub(crate) fn hadamard(&self, x: &mut [f32], run: usize) {
        assert!(run.is_power_of_two(), "a run of {run}");
        if run > 1 {
            with!(self.hadamard(x, run));
        }
    }

    /// Stores keys or values at the positions of a block from `first` on. See [`Form::encode`].
    pub(crate) fn store(
        &self,
        form: &Form,
        memory: &mut [f32],
        first: usize,
        rows: Rows<'_>,
    ) -> Result<(), TooLarge> {
        with!(self.store(form, memory, first, rows))
    }

    /// The first `count` positions of a block in f32: where they lie, or widened into `space`. See [`Form::decode`].
    pub(crate) fn widened<'a>(
        &self,
        form: Form,
        memory: &'a Aligned,
        count: usize,
        space: &'a mut [f32],
    ) -> &'a [f32] {
        if form.ty == CacheType::F32 {
            return memory.as_slice();
        }
        with!(self.widen(&form, memory.as_slice(), count, space));
        space
    }

    /// `x[i] <- e^(x[i] - max(x))`; returns the sum of the new values, so that `x / sum` is the softmax.
    pub fn exp_and_sum(&self, x: &mut [f32]) -> f32 {
        with!(self.exp_and_sum(x))
    }

    /// `gate[i] <- silu(gate[i]) * up[i]`, where `silu(x) = x / (1 + e^-x)`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "lengths of gate and up");
        with!(self.silu_mul(gate, up));
    }

    /// `x[i] <- silu(x[i])`.
    pub fn silu(&self, x: &mut [f32]) {
        with!(self.silu(x));
    }

    /// `x[i] <- e^(x[i] - max)`; returns the sum of the new values.
    pub fn exp_below(&self, x: &mut [f32], max: f32) -> f32 {
        with!(self.exp_below(x, max))
    }

    /// One block of scores on the way to weights: each row becomes `e^(x - maximum)`, where `maximum` is the largest score of its row
    /// so far; what was summed below a smaller maximum is scaled down. Scores of negative infinity count for nothing; a row that has had
    /// no others becomes zeros.
    pub(crate) fn softmax_step(&self, step: &mut SoftmaxStep<'_>) {
        let rows = step.scores.rows();
        let lengths = (step.maxima.len(), step.totals.len(), step.factors.len(), step.sums.rows());
        assert_eq!(lengths, (rows, rows, rows, rows), "rows");
        with!(self.softmax_step(step));
    }

    /// Turns each head of `width` numbers in `x` by angles of these cosines and sines, one a pair: pairs of neighbours, or of the
    /// numbers of one half and the other, from number `first` of a head on.
    ///
    /// # Panics
    /// If there are not as many sines as cosines, or the pairs do not fit into a head.
    pub(crate) fn rotate(
        &self,
        x: &mut [f32],
        width: usize,
        first: usize,
        adjacent: bool,
        angles: (&[f32], &[f32]),
    ) {
        assert!(angles.0.len() == angles.1.len() && first + 2 * angles.0.len() <= width, "pairs of a head");
        with!(self.rotate(x, width, first, adjacent, angles));
    }

    /// Largest element; NaN where there is one, negative infinity of none.
    #[must_use]
    pub fn max(&self, x: &[f32]) -> f32 {
        with!(self.max(x))
    }

    /// `x[i] <- max(x[i], 0)`.
    pub fn relu(&self, x: &mut [f32]) {
        with!(self.relu(x));
    }

    /// `x[i] <- x[i] * (1 + erf(x[i] / sqrt(2))) / 2`.
    pub fn gelu(&self, x: &mut [f32]) {
        with!(self.gelu(x));
    }

    /// `x[i] <- x[i] * (1 + tanh(sqrt(2 / pi) * (x[i] + 0.044715 x[i]^3))) / 2`.
    pub fn gelu_tanh(&self, x: &mut [f32]) {
        with!(self.gelu_tanh(x));
    }

    /// `gate[i] <- g / (1 + e^(-alpha g)) * (u + 1)`, where `g = min(gate[i], limit)` and `u` is `up[i]` within
    /// `-limit..limit`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn clamped_swiglu(&self, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
        assert_eq!(gate.len(), up.len(), "lengths of gate and up");
        with!(self.clamped_swiglu(gate, up, alpha, limit));
    }

    /// `x[i] <- cap * tanh(x[i] / cap)`.
    pub fn soft_cap(&self, x: &mut [f32], cap: f32) {
        with!(self.soft_cap(x, cap));
    }

    /// `out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i]`, the mean in double precision.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert_eq!((x.len(), weight.len()), (weight.len(), out.len()), "lengths");
        with!(self.rms_norm(x, weight, epsilon, out));
    }

    /// `out[i] = (x[i] - mean(x)) / sqrt(var(x) + epsilon) * weight[i]`, mean and variance in double precision.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert_eq!((x.len(), weight.len()), (weight.len(), out.len()), "lengths");
        with!(self.layer_norm(x, weight, epsilon, out));
    }

    /// `ln(sum(e^x))` in double precision; NaN where `x` has one.
    #[must_use]
    pub fn log_sum_exp(&self, x: &[f32]) -> f64 {
        with!(self.log_sum_exp_below(x, with!(self.max(x))))
    }

    /// Kullback-Leibler divergence `sum(P ln(P / Q))` in nats, in double precision, of the distributions that the
    /// logits `p` and `q` stand for; `p_lse` and `q_lse` are their [`Kernels::log_sum_exp`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn kl_divergence(&self, p: &[f32], p_lse: f64, q: &[f32], q_lse: f64) -> f64 {
        assert_eq!(p.len(), q.len(), "lengths of the logits");
        with!(self.kl_divergence(p, p_lse, q, q_lse))
    }

    /// Index of the largest element, the first of equals; `None` of no elements or where one is NaN.
    #[must_use]
    pub fn argmax(&self, x: &[f32]) -> Option<usize> {
        place_of(x, with!(self.max(x)))
    }

    /// [`Kernels::log_sum_exp`] and [`Kernels::argmax`], which both need the largest element.
    #[must_use]
    pub fn log_sum_exp_and_argmax(&self, x: &[f32]) -> (f64, Option<usize>) {
        let max = with!(self.max(x));
        (with!(self.log_sum_exp_below(x, max)), place_of(x, max))
    }

    /// Does `rounds` rounds of independent multiply-adds at the full speed of the CPU: the yardstick of the bench.
    /// Returns how many it did, and a number that depends on all of them.
    #[must_use]
    pub fn busy(&self, rounds: u64, factor: f32) -> (u64, f32) {
        with!(self.busy(rounds, factor))
    }

    /// As [`Kernels::busy`], of 8-bit integers: those of f32 where there are no kernels for them.
    #[must_use]
    pub fn busy_int8(&self, rounds: u64, factor: f32) -> (u64, f32) {
        with!(self.busy_int8(rounds, factor))
    }

    /// As [`Kernels::busy`], of bf16: those of f32 where the CPU has no instructions for bf16.
    #[must_use]
    pub fn busy_bf16(&self, rounds: u64, factor: f32) -> (u64, f32) {
        with!(self.busy_bf16(rounds, factor))
    }
}

/// Index of the first element that equals `wanted`.
fn place_of(x: &[f32], wanted: f32) -> Option<usize> {
    // Whole groups are compared without branches, so that the compiler vectorises the search.
    const GROUP: usize = 64;
    let (groups, _) = x.as_chunks::<GROUP>();
    let has = |group: &[f32; GROUP]| group.iter().fold(false, |found, &value| found | (value == wanted));
    let start = groups.iter().position(has).unwrap_or(groups.len()) * GROUP;
    x[start..].iter().position(|&value| value == wanted).map(|place| start + place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::generic::{self, Fused, Separate};
    use crate::arch::portable;
    use crate::packed::{PANEL, TOKENS};
    use proptest::prelude::*;

    /// Every set of kernels that this CPU has.
    fn all() -> Vec<Kernels> {
        InstructionSet::ALL.into_iter().filter_map(Kernels::of).collect()
    }

    /// Those whose multiply-adds round once.
    fn fused() -> Vec<Kernels> {
        all()
            .into_iter()
            .filter(|k| {
                k.instruction_set() > InstructionSet::Portable
                    || cfg!(any(target_arch = "aarch64", target_feature = "fma"))
            })
            .collect()
    }

    /// Probability that a standard normal variable lies below `x`, by Simpson's rule.
    fn normal_below(x: f64) -> f64 {
        let (steps, end) = (4000, x.abs().min(12.0));
        let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let width = end / f64::from(steps);
        let weight = |i: i32| if i == 0 || i == steps { 1.0 } else { 2.0 + 2.0 * f64::from(i % 2) };
        let sum: f64 = (0..=steps).map(|i| weight(i) * density(f64::from(i) * width)).sum();
        0.5 + (sum * width / 3.0).copysign(x)
    }

    /// Floats between -1 and 1, never twice the same.
    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / 8_388_608.0) - 1.0
            })
            .collect()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// The product `[tokens, rows]` of one tile of floats, or of bf16.
    fn product(
        kernels: &Kernels,
        bf16: bool,
        x: &[f32],
        w: &[f32],
        cols: usize,
        add: Option<f32>,
    ) -> Vec<f32> {
        let (tokens, rows) = (x.len() / cols, w.len() / cols);
        let pack = |from: &[f32], width: usize, fill: u32| {
            let rounded: Vec<u16> = {
                let mut rounded = vec![0; from.len()];
                kernels.round_bf16(from, &mut rounded);
                rounded
            };
            let units = match bf16 {
                true => Units::new(bytemuck::cast_slice(&rounded), from.len() / cols, 2 * cols, 2 * cols),
                false => Units::new(bytemuck::cast_slice(from), from.len() / cols, 4 * cols, 4 * cols),
            };
            let mut packed = vec![fill; units.len() * width];
            kernels.interleave(units, width, &mut packed);
            packed
        };
        // NaN beside the rows of a panel must not reach an output.
        let (x, w) = (pack(x, tokens, 0), pack(w, PANEL, u32::MAX));
        // NaN around and under the result: everything must be written, nothing beside it.
        let mut out = vec![add.unwrap_or(f32::NAN); tokens * rows];
        let mut around = vec![f32::NAN; tokens * (rows + 3)];
        for (around, out) in around.chunks_mut(rows + 3).zip(out.chunks(rows)) {
            around[..rows].copy_from_slice(out);
        }
        let window = RowsMut::new(&mut around, tokens, rows, rows + 3).windows(rows).next().unwrap();
        let tile = Tile::new(&x, &w, x.len() / tokens, window, add.is_some());
        if bf16 {
            kernels.tile_bf16(tile)
        } else {
            kernels.tile_f32(tile)
        }
        for (around, out) in around.chunks(rows + 3).zip(out.chunks_mut(rows)) {
            assert!(around[rows..].iter().all(|x| x.is_nan()), "wrote past the row");
            out.copy_from_slice(&around[..rows]);
        }
        out
    }

    /// What [`Kernels::round_bf16`] makes of a float.
    fn bf16(x: f32) -> f32 {
        if x.is_subnormal() { 0.0 * x } else { half::bf16::from_f32(x).to_f32() }
    }

    proptest! {
        #[test]
        fn products_are_sums_in_order(
            tokens in 1..=TOKENS, rows in 1..=PANEL, cols in 1..80usize, add: bool, bf16_: bool, seed: u64,
        ) {
            let (x, w) = (noise(tokens * cols, seed), noise(rows * cols, !seed));
            let add = add.then_some(0.75);
            // Of a pair of bf16 the second product is added first.
            let order: Vec<usize> = (0..cols.next_multiple_of(2)).map(|i| if bf16_ { i ^ 1 } else { i }).filter(|i| *i < cols).collect();
            let round = if bf16_ { bf16 } else { |x| x };
            let mut expected = Vec::new();
            for x in x.chunks(cols) {
                for w in w.chunks(cols) {
                    let sum = order.iter().fold(0.0f32, |sum, &i| round(w[i]).mul_add(round(x[i]), sum));
                    expected.push(add.map_or(sum, |add| add + sum));
                }
            }
            for kernels in all() {
                let out = product(&kernels, bf16_, &x, &w, cols, add);
                for (out, expected) in out.iter().zip(&expected) {
                    prop_assert!((out - expected).abs() < 1e-5, "{kernels:?} {out} {expected}");
                }
            }
            for kernels in fused() {
                prop_assert_eq!(bits(&product(&kernels, bf16_, &x, &w, cols, add)), bits(&expected), "{:?}", kernels);
            }
        }

        #[test]
        fn packed_units_stand_side_by_side(
            rows in 1..=PANEL, bytes in 1..70usize, extra in 0..9usize, more in 0..4usize, seed: u64,
        ) {
            let (stride, width) = (bytes + extra, (rows + more).min(PANEL).max(rows));
            let data: Vec<u8> = noise(rows * stride, seed).iter().map(|x| (x * 127.0) as i8 as u8).collect();
            let units = Units::new(&data, rows, bytes, stride);
            for kernels in all() {
                let mut packed = vec![0; units.len() * width];
                kernels.interleave(units, width, &mut packed);
                for row in 0..rows {
                    let mut bytes = data[row * stride..][..bytes].to_vec();
                    bytes.resize(4 * units.len(), 0);
                    for (unit, bytes) in bytes.chunks(4).enumerate() {
                        prop_assert_eq!(&packed[unit * width + row].to_ne_bytes()[..], bytes, "{:?}", kernels);
                    }
                }
            }
        }

        #[test]
        fn floats_are_rounded_to_the_nearest_bf16(x in proptest::collection::vec(proptest::num::f32::ANY, 0..50)) {
            for kernels in all() {
                let mut rounded = vec![0; x.len()];
                kernels.round_bf16(&x, &mut rounded);
                for (x, rounded) in x.iter().zip(rounded) {
                    let value = half::bf16::from_bits(rounded).to_f32();
                    prop_assert!(value.to_bits() == bf16(*x).to_bits() || (value.is_nan() && x.is_nan()), "{x} {value}");
                }
            }
        }

        #[test]
        fn combine_agrees_with_naive_sums_and_with_each_other(
            m in 1..14usize, terms in 0..40usize, cols in 1..150usize, add: bool, seed: u64,
        ) {
            let (a, b, c) = (noise(m * terms, seed), noise(terms * cols, !seed), noise(m * cols, seed ^ 99));
            let (a, b) = (Rows::new(&a, m, terms, terms), Rows::new(&b, terms, cols, cols));
            let mut fused_out = c.clone();
            portable::combine::<Fused>(a, b, RowsMut::new(&mut fused_out, m, cols, cols), add);
            for kernels in all() {
                let mut out = c.clone();
                kernels.combine(a, b, RowsMut::new(&mut out, m, cols, cols), add);
                for (i, out) in out.iter().enumerate() {
                    let exact: f64 = (0..terms)
                        .map(|k| f64::from(a.row(i / cols)[k]) * f64::from(b.row(k)[i % cols]))
                        .sum::<f64>() + if add { f64::from(c[i]) } else { 0.0 };
                    prop_assert!((f64::from(*out) - exact).abs() < 1e-5, "{kernels:?} {out} {exact}");
                }
            }
            for kernels in fused() {
                let mut out = c.clone();
                kernels.combine(a, b, RowsMut::new(&mut out, m, cols, cols), add);
                prop_assert_eq!(bits(&out), bits(&fused_out), "{:?}", kernels);
            }
        }

        #[test]
        fn elementwise_kernels_agree_with_double_precision(len in 1..100usize, seed: u64) {
            let x: Vec<f32> = noise(len, seed).iter().map(|x| x * 20.0).collect();
            let y = noise(len, !seed);
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let max = wide.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = wide.iter().map(|x| (x - max).exp()).sum();
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs() + 1e-30;
            for kernels in all() {
                let mut exps = x.clone();
                let sum = kernels.exp_and_sum(&mut exps);
                prop_assert!((f64::from(sum) - total).abs() < 1e-5 * total);
                for (e, x) in exps.iter().zip(&x) {
                    // The difference is rounded to f32, which is no fault of the exponential.
                    prop_assert!(close(f64::from(*e), f64::from(*x - max as f32).exp()));
                }
                let lse = kernels.log_sum_exp(&x);
                prop_assert_eq!(kernels.log_sum_exp_and_argmax(&x), (lse, kernels.argmax(&x)));
                let first = (0..x.len()).reduce(|best, place| if x[place] > x[best] { place } else { best });
                prop_assert_eq!(kernels.argmax(&x), first);
                prop_assert!((lse - (max + total.ln())).abs() < 1e-12);
                prop_assert_eq!(kernels.kl_divergence(&x, lse, &x, lse), 0.0);
                let y_lse = kernels.log_sum_exp(&y);
                let kl: f64 = wide.iter().zip(&y)
                    .map(|(x, y)| (x - lse).exp() * ((x - lse) - (f64::from(*y) - y_lse))).sum();
                prop_assert!((kernels.kl_divergence(&x, lse, &y, y_lse) - kl).abs() < 1e-10);

                let mut gate = x.clone();
                kernels.silu_mul(&mut gate, &y);
                let mut plain = x.clone();
                kernels.silu(&mut plain);
                for i in 0..len {
                    let silu = wide[i] / (1.0 + (-wide[i]).exp());
                    prop_assert!(close(f64::from(plain[i]), silu));
                    prop_assert!(close(f64::from(gate[i]), silu * f64::from(y[i])));
                }

                let run = |work: &dyn Fn(&mut [f32])| {
                    let mut x = x.clone();
                    work(&mut x);
                    x
                };
                let relu = run(&|x| kernels.relu(x));
                let (gelu, tanh) = (run(&|x| kernels.gelu(x)), run(&|x| kernels.gelu_tanh(x)));
                let capped = run(&|x| kernels.soft_cap(x, 3.0));
                let swiglu = run(&|x| kernels.clamped_swiglu(x, &y, 1.702, 7.0));
                for i in 0..len {
                    let w = wide[i];
                    prop_assert_eq!(relu[i], x[i].max(0.0));
                    // The fit of the error function is off by 1.2e-7 of its complement; the tanh's argument is rounded.
                    prop_assert!((f64::from(gelu[i]) - w * normal_below(w)).abs() <= 3e-7 * w.abs());
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (w + 0.044715 * w.powi(3));
                    prop_assert!((f64::from(tanh[i]) - w * (1.0 + u.tanh()) / 2.0).abs() <= 1e-6 * w.abs());
                    prop_assert!(close(f64::from(capped[i]), 3.0 * (w / 3.0).tanh()));
                    let g = w.min(7.0);
                    let gate = g / (1.0 + (-1.702 * g).exp());
                    prop_assert!((f64::from(swiglu[i]) - gate * (f64::from(y[i]) + 1.0)).abs() < 1e-5);
                }
                let mut below = x.clone();
                let total = kernels.exp_below(&mut below, 25.0);
                // The difference is rounded to f32, which is no fault of the exponential.
                let wanted: f64 = x.iter().map(|x| f64::from(*x - 25.0).exp()).sum();
                prop_assert!(close(f64::from(total), wanted));

                let mut out = vec![0.0; len];
                kernels.rms_norm(&x, &y, 1e-5, &mut out);
                let square: f64 = wide.iter().map(|x| x * x).sum::<f64>() / len as f64;
                for i in 0..len {
                    let want = wide[i] / (square + f64::from(1e-5f32)).sqrt() * f64::from(y[i]);
                    prop_assert!(close(f64::from(out[i]), want));
                }
                kernels.layer_norm(&x, &y, 1e-5, &mut out);
                let mean = wide.iter().sum::<f64>() / len as f64;
                let variance = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64;
                for i in 0..len {
                    let want = (wide[i] - mean) / (variance + f64::from(1e-5f32)).sqrt() * f64::from(y[i]);
                    prop_assert!((f64::from(out[i]) - want).abs() < 1e-4);
                }
                let best = kernels.argmax(&x).unwrap();
                prop_assert!(x.iter().all(|v| *v <= x[best]) && x[..best].iter().all(|v| *v < x[best]));
            }
        }
    }

    /// Maxima, totals and sums after blocks of scores, and the weights of each block.
    fn softmax_of(kernels: &Kernels, blocks: &[Vec<f32>], rows: usize, sink: f32) -> [Vec<f32>; 4] {
        let (mut maxima, mut totals) = (vec![sink; rows], vec![f32::from(u8::from(sink.is_finite())); rows]);
        let (mut factors, mut sums, mut weights) = (vec![f32::NAN; rows], vec![0.0; rows], Vec::new());
        for block in blocks {
            let (mut x, cols) = (block.clone(), block.len() / rows);
            kernels.softmax_step(&mut SoftmaxStep {
                scores: RowsMut::new(&mut x, rows, cols, cols),
                maxima: &mut maxima,
                totals: &mut totals,
                factors: &mut factors,
                sums: RowsMut::new(&mut sums, rows, 1, 1),
            });
            // The value of a position is its number in the block.
            for (sum, x) in sums.iter_mut().zip(x.chunks(cols)) {
                *sum += x.iter().zip(0..).map(|(x, i)| x * i as f32).sum::<f32>();
            }
            weights.extend(x);
        }
        [maxima, totals, sums, weights]
    }

    #[test]
    fn a_softmax_block_by_block_is_that_of_all_scores() {
        let rows = 5;
        for cols in [1, 16, 37, 128] {
            for sink in [f32::NEG_INFINITY, 3.0] {
                let mut blocks: Vec<Vec<f32>> = (1..4)
                    .map(|seed| noise(rows * cols, seed).iter().map(|x| x * 9.0 * seed as f32).collect())
                    .collect();
                // One row sees nothing of the first block, and another nothing at all.
                blocks[0][cols..2 * cols].fill(f32::NEG_INFINITY);
                blocks.iter_mut().for_each(|block| block[2 * cols..3 * cols].fill(f32::NEG_INFINITY));
                let mut first: Option<[Vec<u32>; 4]> = None;
                for kernels in all() {
                    let found = softmax_of(&kernels, &blocks, rows, sink);
                    let [maxima, totals, sums, weights] = &found;
                    assert!(weights.iter().all(|x| (0.0..=1.0).contains(x)), "{kernels:?}");
                    for row in 0..rows {
                        let scores: Vec<(f64, f64)> = blocks
                            .iter()
                            .flat_map(|block| block[row * cols..][..cols].iter().zip(0..))
                            .map(|(x, i)| (f64::from(*x), f64::from(i)))
                            .collect();
                        let largest = scores.iter().map(|(x, _)| *x).fold(f64::from(sink), f64::max);
                        assert_eq!(f64::from(maxima[row]), largest);
                        let weight = |x: f64| if x == f64::NEG_INFINITY { 0.0 } else { (x - largest).exp() };
                        let total =
                            scores.iter().map(|(x, _)| weight(*x)).sum::<f64>() + weight(f64::from(sink));
                        let sum: f64 = scores.iter().map(|(x, i)| weight(*x) * i).sum();
                        // Differences are rounded to f32 before the exponential, and sums as they grow.
                        assert!((f64::from(totals[row]) - total).abs() <= 1e-5 * total, "{kernels:?}");
                        assert!((f64::from(sums[row]) - sum).abs() <= 1e-5 * sum, "{kernels:?}");
                    }
                    if fused().iter().any(|fused| fused.instruction_set() == kernels.instruction_set()) {
                        let found = found.map(|x| bits(&x));
                        assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "{kernels:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_hadamard_transform_is_orthonormal_and_its_own_inverse() {
        for run in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
            let x = noise(3 * run, run as u64);
            let mut expected = Vec::new();
            for x in x.chunks(run) {
                for row in 0..run {
                    let sign =
                        |col: usize| if (row & col).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let sum: f64 = x.iter().enumerate().map(|(col, x)| sign(col) * f64::from(*x)).sum();
                    expected.push(sum / (run as f64).sqrt());
                }
            }
            let mut first: Option<Vec<u32>> = None;
            for kernels in all() {
                let mut out = x.clone();
                kernels.hadamard(&mut out, run);
                for (out, expected) in out.iter().zip(&expected) {
                    assert!((f64::from(*out) - expected).abs() < 1e-5, "{kernels:?} {run}: {out} {expected}");
                }
                assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{kernels:?} {run}");
                kernels.hadamard(&mut out, run);
                assert!(out.iter().zip(&x).all(|(out, x)| (out - x).abs() < 1e-5), "{kernels:?} {run}");
            }
        }
    }

    #[test]
    fn heads_turn_alike_with_every_instruction_set() {
        for (width, first, pairs) in [(10, 0, 5), (64, 0, 32), (80, 3, 19), (7, 6, 0)] {
            let x = noise(3 * width, 5);
            let (cos, sin) = (noise(pairs, 6), noise(pairs, 7));
            for adjacent in [false, true] {
                let mut expected = x.clone();
                for head in expected.chunks_mut(width) {
                    for pair in 0..pairs {
                        let (a, b) = if adjacent { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
                        let (a, b) = (first + a, first + b);
                        (head[a], head[b]) = (
                            head[a] * cos[pair] - head[b] * sin[pair],
                            head[a] * sin[pair] + head[b] * cos[pair],
                        );
                    }
                }
                for kernels in all() {
                    let mut turned = x.clone();
                    kernels.rotate(&mut turned, width, first, adjacent, (&cos, &sin));
                    assert_eq!(bits(&turned), bits(&expected), "{kernels:?}, {width} {adjacent}");
                }
            }
        }
    }

    #[test]
    fn elementwise_kernels_with_fused_multiply_add_agree() {
        let (x, y) = (noise(1000, 5), noise(1000, 6));
        let x: Vec<f32> = x.iter().map(|x| x * 12.0).collect();
        let of = |kernels: &Kernels| {
            let mut all = [x.clone(), x.clone(), x.clone(), x.clone(), x.clone()];
            kernels.gelu(&mut all[0]);
            kernels.gelu_tanh(&mut all[1]);
            kernels.soft_cap(&mut all[2], 5.0);
            kernels.clamped_swiglu(&mut all[3], &y, 1.702, 7.0);
            let total = kernels.exp_below(&mut all[4], 12.0);
            (all.map(|x| bits(&x)), total.to_bits())
        };
        for pair in fused().windows(2) {
            assert_eq!(of(&pair[0]), of(&pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn exp_is_within_one_unit_in_the_last_place() {
        let mut worst: (f64, f32) = (0.0, 0.0);
        let mut check = |x: f32| {
            for value in [generic::exp::<Fused>(x), generic::exp::<Separate>(x)] {
                let exact = f64::from(x).exp();
                let near = exact as f32;
                if near.is_infinite() || value.is_infinite() {
                    assert!(x > 88.72, "{x} gives {value}");
                    continue;
                }
                let unit = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
                let error = (f64::from(value) - exact).abs() / unit;
                if error > worst.0 {
                    worst = (error, x);
                }
            }
        };
        let mut bits = 0u32;
        while f32::from_bits(bits) < 104.5 {
            check(f32::from_bits(bits));
            check(-f32::from_bits(bits));
            bits += 997;
        }
        for x in [0.0, -0.0, 88.722_8, 88.722_84, -87.336_54, -87.4, -103.97, -103.98, -104.0, -1e30, 1e30] {
            check(x);
        }
        assert!(worst.0 < 1.0, "{worst:?}");
        for exp in [generic::exp::<Fused>, generic::exp::<Separate>] {
            assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(f32::INFINITY)), (1.0, 0.0, f32::INFINITY));
            assert!(exp(f32::NAN).is_nan());
        }
    }

    #[test]
    fn exp_negative_is_exp_but_for_subnormal_results() {
        let mut bits = 0u32;
        while f32::from_bits(bits) < 1000.0 {
            let x = -f32::from_bits(bits);
            for (value, exp) in [
                (generic::exp_negative::<Fused>(x), generic::exp::<Fused>(x)),
                (generic::exp_negative::<Separate>(x), generic::exp::<Separate>(x)),
            ] {
                assert_eq!(value, if x < -87.0 { 0.0 } else { exp }, "{x}");
            }
            bits += 997;
        }
        for exp in [generic::exp_negative::<Fused>, generic::exp_negative::<Separate>] {
            assert_eq!((exp(0.0), exp(-0.0), exp(f32::MIN), exp(f32::NEG_INFINITY)), (1.0, 1.0, 0.0, 0.0));
            assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
        }
    }

    #[test]
    fn exp_f64_is_within_two_units_in_the_last_place() {
        let mut x = 0.0;
        while x > -708.0 {
            let exact = f64::exp(x);
            for value in [generic::exp_f64::<Fused>(x), generic::exp_f64::<Separate>(x)] {
                assert!((value - exact).abs() <= 2.0 * f64::EPSILON * exact, "{x} {value} {exact}");
            }
            x -= 0.003_1;
        }
        assert_eq!(
            (generic::exp_f64::<Fused>(0.0), generic::exp_f64::<Fused>(f64::NEG_INFINITY)),
            (1.0, 0.0)
        );
        assert!(generic::exp_f64::<Fused>(f64::NAN).is_nan());
    }

    #[test]
    fn nan_is_never_hidden() {
        for kernels in all() {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut block = vec![1.0; 2 * 40];
                block[47] = bad;
                let [_, totals, sums, _] =
                    softmax_of(&kernels, &[vec![0.5; 2 * 40], block, vec![2.0; 2 * 40]], 2, 0.0);
                assert!(totals[0].is_finite() && totals[1].is_nan() && sums[1].is_nan(), "{kernels:?} {bad}");
            }
            for place in [0, 15, 16, 40] {
                let mut x = vec![1.0; 41];
                x[place] = f32::NAN;
                assert!(kernels.log_sum_exp(&x).is_nan(), "{kernels:?} {place}");
                assert_eq!(kernels.argmax(&x), None, "{kernels:?} {place}");
                assert!(kernels.exp_and_sum(&mut x.clone()).is_nan(), "{kernels:?} {place}");
                assert!(kernels.max(&x).is_nan() && kernels.exp_below(&mut x.clone(), 2.0).is_nan());
                for work in
                    [Kernels::relu, Kernels::gelu, Kernels::gelu_tanh, |k: &Kernels, x: &mut [f32]| {
                        k.soft_cap(x, 1.0)
                    }]
                {
                    let mut x = x.clone();
                    work(&kernels, &mut x);
                    assert!(x[place].is_nan(), "{kernels:?} {place}");
                }
                let mut gate = x.clone();
                kernels.clamped_swiglu(&mut gate, &[1.0; 41], 1.702, 7.0);
                let mut up = vec![1.0; 41];
                kernels.clamped_swiglu(&mut up, &x, 1.702, 7.0);
                assert!(gate[place].is_nan() && up[place].is_nan(), "{kernels:?} {place}");
            }
        }
    }
}
