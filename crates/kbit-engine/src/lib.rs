//! CPU inference over codecs.
//!
//! A [`Model`] is a [`Description`] and a codec for each tensor; it knows neither files nor plugins. A [`Session`]
//! runs it: there is one forward pass, which asks the description what to do (norms, positions, attention,
//! feed-forward, experts), so that another architecture is another description. A [`Sampler`] chooses the next token; a
//! [`Generator`] continues a text with it, and keeps what two texts have in common. [`speed`] measures a model beside its
//! machine.
//!
//! A [`Mode`] says how weights and activations are multiplied: as floats (f32, which measures what quantization of the *weights* costs
//! with one arithmetic for all schemes, or bf16), as integers (llama.cpp's arithmetic), or as floats with rounded activations. Any codec
//! runs in every mode, since it decodes to f32; one that brings a product of its own in the arithmetic of the mode is asked for that.
//!
//! Keys and values of past tokens are kept as [`CacheTypes`] says: f32, half precision, or 8 or 4 bits. What attention reads of a
//! position is what was stored of it, also within the batch that it came with.
//!
//! # What results depend on
//! On the model, the mode, the types of the cache and the tokens alone: logits have equal bits for any number of threads, for prompts in one batch or
//! token by token, and for sequences computed alone or together. Instruction sets with fused multiply-add agree too, but that a sum of
//! bf16 products below the smallest normal number (1.2e-38) may be taken for zero by the instructions for bf16; an x86 CPU without fused
//! multiply-add differs in the last bits. Integer products are equal everywhere: bit for bit those of ggml's generic code, but for Q3_K
//! to Q6_K and IQ4_XS, where ggml rounds the parts of a super-block one by one and this engine their exact sum.
//!
//! # Memory
//! Activations of [`Session::BATCH`] tokens and their packed form, keys and values of the tokens so far (in blocks of 128 positions, as
//! [`CacheTypes`] says), 512 KiB of decoded weights a thread (32 rows, where these are more), as much of
//! their panels, and the logits that were asked for. A codec whose rows come in
//! large groups (one scale for a whole matrix, say) makes what is decoded as large as one group.

mod arch;
mod buffer;
mod cache;
mod compute;
mod error;
mod experts;
mod float;
mod generation;
mod integer;
mod kernels;
mod mode;
mod model;
mod observe;
mod packed;
mod rope;
mod sampler;
mod session;
pub mod speed;
mod stored;
mod weight;

pub use buffer::{Rows, RowsMut};
pub use error::{EngineError, Shape};
pub use generation::{Finish, Generated, Generator};
pub use kbit_models::Description;
pub use kernels::{InstructionSet, Kernels};
pub use mode::{Group, Mode, Rounding, UnknownMode};
pub use model::{Model, TensorSource, Tensors};
pub use observe::{Attention, MatrixName, Observer};
pub use sampler::{Sampler, Sampling};
pub use session::{Passed, Session};
pub use stored::{CacheType, CacheTypes, UnknownCacheType};
pub use weight::Multiplier;
