//! Importance matrices: for each tensor, the mean squared input of each of its columns, gathered by running the model
//! over text (`llama-imatrix`). Quantization takes more care of the columns with the larger inputs.
//!
//! [`ImportanceMatrix`] reads llama.cpp's GGUF files and the older `.dat` files, checks every value once and hands out the
//! means of one matrix at a time, so that memory does not grow with the file. [`Importance`] adds what holds for experts
//! and tensors without data. [`Gatherer`] gathers them with kbit's engine, and [`write()`] makes a GGUF file as `llama-imatrix` does.
//! [`MomentGatherer`] gathers the second moments of inputs too, which [`MomentsFile`] writes beside the sums, in tensors that llama.cpp
//! passes over.
//!
//! ```
//! use kbit_calibrate::{Gathered, ImportanceMatrix, write};
//! let folder = std::env::temp_dir().join(format!("kbit-imatrix-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let path = folder.join("tiny.imatrix.gguf");
//! let entry = Gathered { name: "blk.0.ffn_up.weight".into(), sums: vec![2.0, 8.0], counts: vec![4] };
//! write(&path, &[entry], &["text.txt".into()], 1, 512, true)?;
//! let matrix = ImportanceMatrix::open(&path)?;
//! let mut means = [0.0; 2];
//! matrix.read("blk.0.ffn_up.weight", 0, &mut means)?;
//! assert_eq!(means, [0.5, 2.0]);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod gather;
mod importance;
mod legacy;
mod matrix;
mod merge;
mod moments;
mod saved;
mod shrink;
mod write;

pub use error::CalibrateError;
pub use gather::{GatherOptions, Gatherer, Means, Moved, Starved, starved};
pub use importance::{Coverage, EmptyExperts, Importance, OnMissing, Policy};
pub use matrix::{Entry, FileKind, ImportanceMatrix};
pub use merge::{common_inputs, merge, merge_moments};
pub use moments::{MomentGatherer, Moments, SharedInput};
pub use saved::Saved;
pub use write::{Gathered, MomentsFile, write};
