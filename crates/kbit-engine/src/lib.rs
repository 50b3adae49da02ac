//! CPU inference over codecs.
//!
//! A [`Model`] is a [`Description`] and a codec for each tensor; it knows neither files nor plugins. A [`Session`]
//! runs it: there is one forward pass, which asks the description what to do (norms, positions, attention,
//! feed-forward, experts), so that another architecture is another description. A [`Sampler`] chooses the next token.
//!
//! The only computing mode so far is [`Mode::F32`]: weights are decoded to f32 whenever they are used, activations are f32. It measures what
//! quantization of the *weights* costs, with one arithmetic for all schemes; so a codec's own fused kernel, whose
//! sums would differ, is not asked in this mode.
//!
//! # What results depend on
//! On the model and the tokens alone: logits have equal bits for any number of threads, for prompts in one batch or
//! token by token, and for sequences computed alone or together. Instruction sets with fused multiply-add agree too;
//! an x86 CPU without it differs in the last bits.
//!
//! # Memory
//! Activations of [`Session::BATCH`] tokens, keys and values of the tokens so far (f32, in blocks of 128 positions),
//! a decoded panel of 4 MiB, 256 KiB a thread, and the logits that were asked for. A codec whose rows come in large
//! groups (one scale for a whole matrix, say) makes the panel as large as one group.

mod arch;
mod buffer;
mod cache;
mod compute;
mod error;
mod experts;
mod kernels;
mod model;
mod rope;
mod sampler;
mod session;
mod weight;

pub use buffer::{Rows, RowsMut};
pub use error::{EngineError, Shape};
pub use kbit_models::Description;
pub use kernels::{InstructionSet, Kernels};
pub use model::{Mode, Model, Tensors};
pub use sampler::Sampler;
pub use session::Session;
