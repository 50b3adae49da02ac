//! Kernels by instruction set. A kernel is a method of a value that only exists where the CPU has the feature.

pub(crate) mod generic;
pub(crate) mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

/// The kernels that are [`generic`] code compiled again with the features of one instruction set.
///
/// Safe to call only by way of a value that proves the features, so every method is one `unsafe` call.
macro_rules! shared_kernels {
    ($kernels:ty, $feature:literal, $arithmetic:ty) => {
        impl $kernels {
            /// See [`generic::exp_and_sum`].
            pub(crate) fn exp_and_sum(self, x: &mut [f32]) -> f32 {
                #[target_feature(enable = $feature)]
                fn run(x: &mut [f32]) -> f32 {
                    generic::exp_and_sum::<$arithmetic>(x)
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x) }
            }

            /// See [`Form::encode`](crate::stored::Form::encode).
            pub(crate) fn store(
                self,
                form: &crate::stored::Form,
                memory: &mut [f32],
                first: usize,
                rows: Rows<'_>,
            ) -> Result<(), crate::stored::TooLarge> {
                #[target_feature(enable = $feature)]
                fn run(
                    form: &crate::stored::Form,
                    memory: &mut [f32],
                    first: usize,
                    rows: Rows<'_>,
                ) -> Result<(), crate::stored::TooLarge> {
                    form.encode(memory, first, rows)
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(form, memory, first, rows) }
            }

            /// See [`Form::decode`](crate::stored::Form::decode).
            pub(crate) fn widen(
                self,
                form: &crate::stored::Form,
                memory: &[f32],
                count: usize,
                out: &mut [f32],
            ) {
                #[target_feature(enable = $feature)]
                fn run(form: &crate::stored::Form, memory: &[f32], count: usize, out: &mut [f32]) {
                    form.decode(memory, count, out);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(form, memory, count, out) }
            }

            /// See [`generic::sum_parts`].
            pub(crate) fn sum_parts(self, levels: &[i8], part: usize, sums: &mut [i16]) {
                #[target_feature(enable = $feature)]
                fn run(levels: &[i8], part: usize, sums: &mut [i16]) {
                    generic::sum_parts(levels, part, sums);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(levels, part, sums) }
            }

            /// See [`generic::round_bf16`].
            pub(crate) fn round_bf16(self, x: &[f32], out: &mut [u16]) {
                #[target_feature(enable = $feature)]
                fn run(x: &[f32], out: &mut [u16]) {
                    generic::round_bf16(x, out);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x, out) }
            }

            /// See [`generic::normalize_bf16`].
            pub(crate) fn normalize_bf16(self, units: &mut [u32]) {
                #[target_feature(enable = $feature)]
                fn run(units: &mut [u32]) {
                    generic::normalize_bf16(units);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(units) }
            }

            /// See [`generic::silu_mul`].
            pub(crate) fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
                #[target_feature(enable = $feature)]
                fn run(gate: &mut [f32], up: &[f32]) {
                    generic::silu_mul::<$arithmetic>(gate, up);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(gate, up) }
            }

            /// See [`generic::silu`].
            pub(crate) fn silu(self, x: &mut [f32]) {
                #[target_feature(enable = $feature)]
                fn run(x: &mut [f32]) {
                    generic::silu::<$arithmetic>(x);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x) }
            }

            /// See [`generic::exp_below`].
            pub(crate) fn exp_below(self, x: &mut [f32], max: f32) -> f32 {
                #[target_feature(enable = $feature)]
                fn run(x: &mut [f32], max: f32) -> f32 {
                    generic::exp_below::<$arithmetic>(x, max)
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x, max) }
            }

            /// See [`generic::softmax_step`].
            pub(crate) fn softmax_step(self, step: &mut crate::cache::SoftmaxStep<'_>) {
                #[target_feature(enable = $feature)]
                fn run(step: &mut crate::cache::SoftmaxStep<'_>) {
                    generic::softmax_step::<$arithmetic>(step);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(step) }
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
                #[target_feature(enable = $feature)]
                fn run(x: &mut [f32], width: usize, first: usize, adjacent: bool, angles: (&[f32], &[f32])) {
                    generic::rotate(x, width, first, adjacent, angles);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x, width, first, adjacent, angles) }
            }

            /// See [`generic::hadamard`].
            pub(crate) fn hadamard(self, x: &mut [f32], run: usize) {
                #[target_feature(enable = $feature)]
                fn run_with(x: &mut [f32], run: usize) {
                    generic::hadamard(x, run);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run_with(x, run) }
            }

            /// See [`generic::relu`].
            pub(crate) fn relu(self, x: &mut [f32]) {
                #[target_feature(enable = $feature)]
                fn run(x: &mut [f32]) {
                    generic::relu(x);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x) }
            }

            /// See [`generic::gelu`].
            pub(crate) fn gelu(self, x: &mut [f32]) {
                #[target_feature(enable = $feature)]
                fn run(x: &mut [f32]) {
                    generic::gelu::<$arithmetic>(x);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x) }
            }

            /// See [`generic::gelu_tanh`].
            pub(crate) fn gelu_tanh(self, x: &mut [f32]) {
                #[target_feature(enable = $feature)]
                fn run(x: &mut [f32]) {
                    generic::gelu_tanh::<$arithmetic>(x);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x) }
            }

            /// See [`generic::clamped_swiglu`].
            pub(crate) fn clamped_swiglu(self, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
                #[target_feature(enable = $feature)]
                fn run(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
                    generic::clamped_swiglu::<$arithmetic>(gate, up, alpha, limit);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(gate, up, alpha, limit) }
            }

            /// See [`generic::soft_cap`].
            pub(crate) fn soft_cap(self, x: &mut [f32], cap: f32) {
                #[target_feature(enable = $feature)]
                fn run(x: &mut [f32], cap: f32) {
                    generic::soft_cap::<$arithmetic>(x, cap);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x, cap) }
            }

            /// See [`generic::rms_norm`].
            pub(crate) fn rms_norm(self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
                #[target_feature(enable = $feature)]
                fn run(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
                    generic::rms_norm::<$arithmetic>(x, weight, epsilon, out);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x, weight, epsilon, out) }
            }

            /// See [`generic::layer_norm`].
            pub(crate) fn layer_norm(self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
                #[target_feature(enable = $feature)]
                fn run(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
                    generic::layer_norm::<$arithmetic>(x, weight, epsilon, out);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x, weight, epsilon, out) }
            }

            /// See [`generic::log_sum_exp_below`].
            pub(crate) fn log_sum_exp_below(self, x: &[f32], max: f32) -> f64 {
                #[target_feature(enable = $feature)]
                fn run(x: &[f32], max: f32) -> f64 {
                    generic::log_sum_exp_below::<$arithmetic>(x, max)
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x, max) }
            }

            /// See [`generic::kl_divergence`].
            pub(crate) fn kl_divergence(self, p: &[f32], p_lse: f64, q: &[f32], q_lse: f64) -> f64 {
                #[target_feature(enable = $feature)]
                fn run(p: &[f32], p_lse: f64, q: &[f32], q_lse: f64) -> f64 {
                    generic::kl_divergence::<$arithmetic>(p, p_lse, q, q_lse)
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(p, p_lse, q, q_lse) }
            }

            /// See [`generic::max`].
            pub(crate) fn max(self, x: &[f32]) -> f32 {
                #[target_feature(enable = $feature)]
                fn run(x: &[f32]) -> f32 {
                    generic::max(x)
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(x) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use shared_kernels;
