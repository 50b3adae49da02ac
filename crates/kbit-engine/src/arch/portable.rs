//! Every other CPU: plain Rust that the compiler vectorises.
//!
//! `a * b + c` is fused where the target has it for certain (AArch64, or a build for such a CPU), so that figures
//! agree with the x86 kernels to the last bit; elsewhere it rounds twice, since emulating it would be very slow.

use super::generic::{self, Arithmetic, LANES};
use crate::buffer::{Rows, RowsMut};

#[cfg(any(target_arch = "aarch64", target_feature = "fma"))]
type Native = generic::Fused;
#[cfg(not(any(target_arch = "aarch64", target_feature = "fma")))]
type Native = generic::Separate;

/// The kernels that need nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

/// Rows of `w` that share one pass over a row of `x`.
const TILE_W: usize = 2;

impl Portable {
    /// See [`Kernels::dots`](crate::Kernels::dots), for up to `DOT_BLOCK` columns.
    pub(crate) fn dots(self, x: Rows<'_>, w: Rows<'_>, out: RowsMut<'_>, add: bool) {
        dots::<Native>(x, w, out, add);
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

    /// See [`generic::log_sum_exp`].
    pub(crate) fn log_sum_exp(self, x: &[f32]) -> f64 {
        generic::log_sum_exp::<Native>(x)
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

/// [`Portable::dots`] with a choice of arithmetic.
pub(crate) fn dots<A: Arithmetic>(x: Rows<'_>, w: Rows<'_>, mut out: RowsMut<'_>, add: bool) {
    assert_eq!((x.cols(), x.rows(), w.rows()), (w.cols(), out.rows(), out.cols()));
    for a in 0..x.rows() {
        let x = x.row(a);
        let out = out.row_mut(a);
        for (tile, out) in out.chunks_mut(TILE_W).enumerate() {
            let first = tile * TILE_W;
            let second = (first + 1).min(w.rows() - 1);
            let totals = two_dots::<A>(x, w.row(first), w.row(second));
            for (out, total) in out.iter_mut().zip(totals) {
                *out = if add { *out + total } else { total };
            }
        }
    }
}

/// Two dot products with the same `x`.
fn two_dots<A: Arithmetic>(x: &[f32], v: &[f32], w: &[f32]) -> [f32; TILE_W] {
    let mut v_sums = [0.0; LANES];
    let mut w_sums = [0.0; LANES];
    let ((x, x_rest), (v, v_rest), (w, w_rest)) = (x.as_chunks(), v.as_chunks(), w.as_chunks());
    for ((x, v), w) in x.iter().zip(v).zip(w) {
        accumulate::<A>(&mut v_sums, x, v);
        accumulate::<A>(&mut w_sums, x, w);
    }
    for (i, x) in x_rest.iter().enumerate() {
        v_sums[i] = A::mul_add(*x, v_rest[i], v_sums[i]);
        w_sums[i] = A::mul_add(*x, w_rest[i], w_sums[i]);
    }
    [generic::add_lanes(v_sums), generic::add_lanes(w_sums)]
}

#[inline(always)]
fn accumulate<A: Arithmetic>(sums: &mut [f32; LANES], x: &[f32; LANES], w: &[f32; LANES]) {
    for i in 0..LANES {
        sums[i] = A::mul_add(x[i], w[i], sums[i]);
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
