//! Every other CPU: plain Rust that the compiler vectorises.
//!
//! `a * b + c` is fused where the target has it for certain (AArch64, or a build for such a CPU), so that figures
//! agree with the x86 kernels to the last bit; elsewhere it rounds twice, since emulating it would be very slow.

use super::generic::{self, Arithmetic, LANES};
use crate::buffer::{Rows, RowsMut};
use crate::cache::SoftmaxStep;
use crate::packed::{IntegerProduct, PANEL, Tile, Units};
use crate::stored::{Form, TooLarge};

#[cfg(any(target_arch = "aarch64", target_feature = "fma"))]
type Native = generic::Fused;
#[cfg(not(any(target_arch = "aarch64", target_feature = "fma")))]
type Native = generic::Separate;

/// The kernels that need nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Portable {
    /// See [`Kernels::interleave`](crate::Kernels::interleave).
    pub(crate) fn interleave(self, from: Units<'_>, width: usize, to: &mut [u32]) {
        generic::interleave(from, width, to, 0);
    }

    /// See [`generic::multiply_integers`].
    pub(crate) fn multiply_integers(self, product: &mut IntegerProduct<'_, '_>) {
        generic::multiply_integers(product);
    }

    /// See [`Form::encode`].
    pub(crate) fn store(
        self,
        form: &Form,
        memory: &mut [f32],
        first: usize,
        rows: Rows<'_>,
    ) -> Result<(), TooLarge> {
        form.encode(memory, first, rows)
    }

    /// See [`Form::decode`].
    pub(crate) fn widen(self, form: &Form, memory: &[f32], count: usize, out: &mut [f32]) {
        form.decode(memory, count, out);
    }

    /// See [`generic::sum_parts`].
    pub(crate) fn sum_parts(self, levels: &[i8], part: usize, sums: &mut [i16]) {
        generic::sum_parts(levels, part, sums);
    }

    /// See [`generic::round_bf16`].
    pub(crate) fn round_bf16(self, x: &[f32], out: &mut [u16]) {
        generic::round_bf16(x, out);
    }

    /// See [`generic::normalize_bf16`].
    pub(crate) fn normalize_bf16(self, units: &mut [u32]) {
        generic::normalize_bf16(units);
    }

    /// See [`Kernels::tile_f32`](crate::Kernels::tile_f32).
    pub(crate) fn tile_f32(self, tile: Tile<'_, '_>) {
        tile_f32::<Native>(tile);
    }

    /// See [`Kernels::tile_bf16`](crate::Kernels::tile_bf16).
    pub(crate) fn tile_bf16(self, tile: Tile<'_, '_>) {
        tile_bf16::<Native>(tile);
    }

    /// As [`Portable::busy`]: there are no kernels for integers.
    pub(crate) fn busy_int8(self, rounds: u64, factor: f32) -> (u64, f32) {
        self.busy(rounds, factor)
    }

    /// As `busy`: there are no instructions for bf16.
    pub(crate) fn busy_bf16(self, rounds: u64, factor: f32) -> (u64, f32) {
        self.busy(rounds, factor)
    }

    /// See [`Kernels::combine`](crate::Kernels::combine).
    pub(crate) fn combine(self, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>, add: bool) {
        combine::<Native>(a, b, out, add);
    }

    /// See [`generic::exp_and_sum`].
    pub(crate) fn exp_and_sum(self, x: &mut [f32]) -> f32 {
        generic::exp_and_sum::<Native>(x)
    }

    /// See [`generic::silu_mul`].
    pub(crate) fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        generic::silu_mul::<Native>(gate, up);
    }

    /// See [`generic::silu`].
    pub(crate) fn silu(self, x: &mut [f32]) {
        generic::silu::<Native>(x);
    }

    /// See [`generic::exp_below`].
    pub(crate) fn exp_below(self, x: &mut [f32], max: f32) -> f32 {
        generic::exp_below::<Native>(x, max)
    }

    /// See [`generic::softmax_step`].
    pub(crate) fn softmax_step(self, step: &mut SoftmaxStep<'_>) {
        generic::softmax_step::<Native>(step);
    }

    /// See [`generic::rotate`].
    pub(crate) fn rotate(
        self,
        x: &mut [f32],
        width: usize,
        first: usize,
        adjacent: bool,
        angles: (&[f32], &[f32]),
    ) {
        generic::rotate(x, width, first, adjacent, angles);
    }

    /// See [`generic::hadamard`].
    pub(crate) fn hadamard(self, x: &mut [f32], run: usize) {
        generic::hadamard(x, run);
    }

    /// See [`generic::relu`].
    pub(crate) fn relu(self, x: &mut [f32]) {
        generic::relu(x);
    }

    /// See [`generic::gelu`].
    pub(crate) fn gelu(self, x: &mut [f32]) {
        generic::gelu::<Native>(x);
    }

    /// See [`generic::gelu_tanh`].
    pub(crate) fn gelu_tanh(self, x: &mut [f32]) {
        generic::gelu_tanh::<Native>(x);
    }

    /// See [`generic::clamped_swiglu`].
    pub(crate) fn clamped_swiglu(self, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
        generic::clamped_swiglu::<Native>(gate, up, alpha, limit);
    }

    /// See [`generic::soft_cap`].
    pub(crate) fn soft_cap(self, x: &mut [f32], cap: f32) {
        generic::soft_cap::<Native>(x, cap);
    }

    /// See [`generic::rms_norm`].
    pub(crate) fn rms_norm(self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        generic::rms_norm::<Native>(x, weight, epsilon, out);
    }

    /// See [`generic::layer_norm`].
    pub(crate) fn layer_norm(self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        generic::layer_norm::<Native>(x, weight, epsilon, out);
    }

    /// See [`generic::log_sum_exp_below`].
    pub(crate) fn log_sum_exp_below(self, x: &[f32], max: f32) -> f64 {
        generic::log_sum_exp_below::<Native>(x, max)
    }

    /// See [`generic::kl_divergence`].
    pub(crate) fn kl_divergence(self, p: &[f32], p_lse: f64, q: &[f32], q_lse: f64) -> f64 {
        generic::kl_divergence::<Native>(p, p_lse, q, q_lse)
    }

    /// See [`generic::max`].
    pub(crate) fn max(self, x: &[f32]) -> f32 {
        generic::max(x)
    }

    /// Multiply-adds at full speed; returns how many, and a number that depends on all of them.
    pub(crate) fn busy(self, rounds: u64, factor: f32) -> (u64, f32) {
        let mut chains = [1.0_f32; 3 * LANES];
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = Native::mul_add(*chain, factor, factor);
            }
        }
        (rounds * chains.len() as u64, chains.iter().sum())
    }
}

/// [`Portable::tile_f32`] with a choice of arithmetic.
pub(crate) fn tile_f32<A: Arithmetic>(tile: Tile<'_, '_>) {
    tile_with(tile, |sum, w, x| A::mul_add(f32::from_bits(w), f32::from_bits(x), sum));
}

/// [`Portable::tile_bf16`] with a choice of arithmetic: of a pair the second product is added first, as `VDPBF16PS` does.
pub(crate) fn tile_bf16<A: Arithmetic>(tile: Tile<'_, '_>) {
    let first = |pair: u32| f32::from_bits(pair << 16);
    let second = |pair: u32| f32::from_bits(pair & 0xffff_0000);
    tile_with(tile, |sum, w, x| A::mul_add(first(w), first(x), A::mul_add(second(w), second(x), sum)));
}

/// `add(sum, w, x)` is the sum after one unit.
#[inline(always)]
fn tile_with(mut tile: Tile<'_, '_>, add: impl Fn(f32, u32, u32) -> f32) {
    let (tokens, rows) = (tile.out().rows(), tile.out().cols());
    for token in 0..tokens {
        let mut sums = [0.0; PANEL];
        for (w, x) in tile.w().as_chunks::<PANEL>().0.iter().zip(tile.x().chunks_exact(tokens)) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = add(*sum, *w, x[token]);
            }
        }
        let more = tile.add();
        for (out, sum) in tile.out().row_mut(token).iter_mut().zip(&sums[..rows]) {
            *out = if more { *out + sum } else { *sum };
        }
    }
}

/// [`Portable::combine`] with a choice of arithmetic.
pub(crate) fn combine<A: Arithmetic>(a: Rows<'_>, b: Rows<'_>, mut out: RowsMut<'_>, add: bool) {
    assert_eq!((a.cols(), a.rows(), b.cols()), (b.rows(), out.rows(), out.cols()));
    for row in 0..a.rows() {
        let out = out.row_mut(row);
        if !add {
            out.fill(0.0);
        }
        for (&a, k) in a.row(row).iter().zip(0..) {
            for (out, &b) in out.iter_mut().zip(b.row(k)) {
                *out = A::mul_add(a, b, *out);
            }
        }
    }
}
