//! Text to tokens and back, from GGUF metadata and Hugging Face files.
#![forbid(unsafe_code)]

mod error;

pub use error::TokenizerError;
