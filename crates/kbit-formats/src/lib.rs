//! Checkpoints in, packed files out: safetensors and GGUF.
//!
//! Readers trust nothing: every length is checked against the bytes that remain before anything is allocated, every
//! offset by checked arithmetic, and errors name the file, the place and the cure. The writer puts bytes where they
//! belong from any thread, and its file appears by an atomic rename or not at all.

pub mod atomic;
mod checkpoint;
pub mod diff;
mod energy;
mod error;
pub mod gguf;
pub mod hash;
mod map;
pub mod packed;
mod safetensors;
mod system;
pub mod verify;

pub use checkpoint::{Checkpoint, Element, SourceTensor};
pub use energy::EnergyMeter;
pub use error::FormatError;
pub use safetensors::{NewSafetensor, SafetensorsWriter, write_safetensors_f32};
pub use system::{disk_free, peak_rss_bytes};
