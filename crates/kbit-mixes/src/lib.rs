//! Which type each tensor of a file gets.
//!
//! llama-quantize's file types are mixes: most matrices get one block type, and some a better one, by their role, their layer, the
//! heads and experts of the model. Here a [`Mix`] is data: rules over named facts, tried in order, in one YAML file each (`mixes/`);
//! people write their own in the same language. [`choose`] applies a mix to a model and gives a [`Choice`] a tensor, in the way of
//! llama-quantize: its order, its running counts, its fallbacks for rows that are not whole blocks, its options.
//!
//! Reference: `src/llama-quant.cpp` and `tools/quantize/quantize.cpp` of llama.cpp commit 0c1e57098.
//!
//! ```
//! use kbit_mixes::{ModelFacts, Options, TensorFacts, Stored, builtin, choose};
//! use kbit_types::GgmlType;
//!
//! let model = ModelFacts { architecture: "llama".into(), layers: 1, grouped_heads: 1, ..ModelFacts::default() };
//! let tensors = [
//!     TensorFacts { name: "output.weight", shape: &[1000, 256] },
//!     TensorFacts { name: "blk.0.attn_k.weight", shape: &[256, 256] },
//!     TensorFacts { name: "blk.0.attn_norm.weight", shape: &[256] },
//! ];
//! let mix = builtin("q4_k").expect("one of llama-quantize's names");
//! let choices = choose(mix, &model, &tensors, &Options::default(), false)?;
//! assert_eq!(choices[0].stored, Stored::As(GgmlType::Q6_K));
//! assert_eq!(choices[1].stored, Stored::As(GgmlType::Q4_K));
//! assert_eq!(choices[2].stored, Stored::Kept);
//! # Ok::<(), kbit_mixes::MixError>(())
//! ```
#![forbid(unsafe_code)]

mod builtin;
mod choose;
mod facts;
mod fallback;
mod file_type;
mod language;
mod range;

pub use builtin::{builtin, builtins};
pub use choose::{Choice, MixError, Options, Stored, choose, quantize_order};
pub use facts::{ModelFacts, Role, TensorFacts};
pub use fallback::fallback;
pub use file_type::{file_type_of, guessed_file_type};
pub use language::Mix;
