//! Text to tokens and back, from GGUF metadata and Hugging Face files.
//!
//! [`Tokenizer`] is kbit's own encoder and decoder over the `tokenizer.ggml.*` keys of a GGUF file: `SentencePiece` BPE
//! (`llama`), BPE by merges (`gpt2`, `gemma4`, `whitespace`) with the pre-tokenizers of llama.cpp, Unigram (`t5`) and
//! `WordPiece` (`bert`). [`TextStream`] gives text as tokens come, [`ChatTemplate`] turns conversations into text. [`metadata_from_folder`] makes these keys from the tokenizer files of a Hugging Face folder,
//! [`files_from_metadata`] such files from the keys.
#![forbid(unsafe_code)]

mod bpe;
mod byte_level;
mod chat;
mod error;
mod export;
mod folder;
mod merge;
mod pre_tokenizer;
mod special;
mod spm;
mod stream;
mod tokenizer;
mod trie;
mod unicode;
mod unigram;
mod vocabulary;
mod wordpiece;

pub use chat::{ChatOptions, ChatTemplate, KNOWN_TEMPLATES, KnownTemplate, Message, jinja};
pub use error::TokenizerError;
pub use export::{TokenizerFiles, files_from_metadata};
pub use folder::{metadata_from_folder, metadata_from_folder_named};
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
pub use vocabulary::TokenKind;
