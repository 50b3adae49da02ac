//! How good a model is at predicting text, and how far its predictions are from another's.
//!
//! [`perplexity`] and [`kl_divergence`] follow llama.cpp's `llama-perplexity`, so that figures compare: the text is cut
//! into windows of `context` tokens that do not overlap, the first token of each is replaced by the beginning-of-text
//! token where the model wants one, and the tokens of the second half are scored, each with at least half a window
//! before it. Windows may also overlap by a stride ([`Windows`]). [`scores`] are functions of texts and labels alone.
//!
//! Log-probabilities are computed in double precision from f32 logits. Nothing is written to disk: the divergence
//! runs the reference once a window and all candidates after it, and keeps hidden states for later passes
//! ([`Reference`]). Logits exist a few rows at a time. Figures do not depend on the number of threads.
#![forbid(unsafe_code)]

mod divergence;
mod error;
mod information;
mod perplexity;
mod reference;
mod run;
pub mod scores;
mod statistics;
pub mod tasks;
mod windows;

pub use divergence::{Divergence, Flips, ProbabilityChange, kl_divergence};
pub use error::EvalError;
pub use information::{
    Baseline, Baselines, Information, Unknown, beyond, continued, diversity, information, mean_over_windows,
};
pub use perplexity::{Perplexity, perplexity};
pub use reference::Reference;
pub use statistics::Spread;
pub use windows::Windows;

/// Is told how many windows of how many are done, from any thread.
pub type Progress<'a> = dyn Fn(usize, usize) + Sync + 'a;
