//! The ground floor of kbit: element types, the ggml type table, matrix shapes, and the [`Codec`] trait.
//!
//! Every other room speaks in these terms. Nothing here reads files, runs kernels or knows a plugin.
#![forbid(unsafe_code)]

mod codec;
mod dtype;
mod ggml;
mod integers;
mod shape;
mod streams;

pub use codec::{ActivationKind, Codec, CodecError, FusedDot};
pub use dtype::{Dtype, NarrowError, WidenError};
pub use ggml::GgmlType;
pub use integers::{IntegerActivations, IntegerBlocks, IntegerLayout, IntegerPanel, PackedActivation, Terms};
pub use shape::MatrixShape;
pub use streams::{STREAM_AHEAD, streams};
