//! What can be wrong with a tokenizer.

use std::path::PathBuf;

/// A tokenizer that cannot be read. Messages name the file and the place, and end in the cure.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The folder has no tokenizer.
    #[error("{}: neither tokenizer.json, tokenizer.model nor tekken.json, nor vocab.json with merges.txt; put the model's tokenizer there, or convert with `--without-tokenizer` (`without_tokenizer: true` in a configuration)", folder.display())]
    Absent {
        /// Folder.
        folder: PathBuf,
    },
    /// A file could not be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// A file is damaged or says what no tokenizer can be.
    #[error("{}: {reason}", path.display())]
    File {
        /// File.
        path: PathBuf,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// The metadata is missing something or contradicts itself.
    #[error("tokenizer metadata {key}: {reason}; convert the model anew, or check the file's source")]
    Metadata {
        /// Full key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The file says that it has no tokenizer.
    #[error("the model has no tokenizer; convert it anew with its tokenizer beside it")]
    NoTokenizer,
    /// A kind of tokenizer that kbit does not have.
    #[error("tokenizer model {found:?} is not known; known are {}; convert the model with one of these", known.join(", "))]
    UnknownModel {
        /// What was found.
        found: String,
        /// What is known.
        known: Vec<&'static str>,
    },
    /// A pre-tokenizer that kbit does not have.
    #[error("pre-tokenizer {found} is not known; known are {}; if it is one of these under another name, name it with `--pre-tokenizer NAME` (`pre_tokenizer: NAME` in a configuration)", known.join(", "))]
    UnknownPreTokenizer {
        /// What was found: a name, or the structure in tokenizer.json.
        found: String,
        /// What is known.
        known: Vec<&'static str>,
    },
    /// A chat template that is not valid, or fails.
    #[error("chat template{place}: {reason}; use another one with `--template NAME` or `--template-file F`")]
    Template {
        /// `, line 3`, where known.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A chat template that refuses a conversation.
    #[error(
        "the chat template refuses this conversation: {message}; say it otherwise, or use another template with `--template NAME` or `--template-file F`"
    )]
    TemplateRefuses {
        /// The template's own words.
        message: String,
    },
    /// Metadata of a wrong type.
    #[error(transparent)]
    Format(#[from] kbit_formats::FormatError),
}
