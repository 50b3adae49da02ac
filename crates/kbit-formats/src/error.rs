//! What can be wrong with a checkpoint or a packed file.

use std::path::{Path, PathBuf};

/// A file that cannot be read or written. Messages name the file and the place, and end in the cure.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The system refused.
    #[error("{}: {action}: {error}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's words.
        error: std::io::Error,
    },
    /// Neither a checkpoint folder nor a file of a known format.
    #[error("{}: {reason}; give a folder with config.json and safetensors, a .safetensors file or a .gguf file", path.display())]
    NotACheckpoint {
        /// File or folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The structure of the file is damaged or hostile.
    #[error("{}: at byte {offset}: {reason}; the file is damaged or not what its name says: get it anew", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// Offset from the start of the file.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A version or byte order that kbit does not read.
    #[error("{}: {reason}", path.display())]
    Version {
        /// File.
        path: PathBuf,
        /// What it is, and the cure.
        reason: String,
    },
    /// A set of shards is incomplete or mixed up.
    #[error("{}: {reason}", path.display())]
    Shard {
        /// Shard.
        path: PathBuf,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// A tensor's entry contradicts the file.
    #[error("{}: tensor {tensor}: {reason}; the file is damaged: get it anew", path.display())]
    Tensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A metadata key is missing or has another type.
    #[error("{}: metadata {key}: {reason}", path.display())]
    Metadata {
        /// File; empty where the metadata is not a file's.
        path: PathBuf,
        /// Key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The output is there already.
    #[error("{}: exists already; remove it, choose another name, or ask to overwrite (--overwrite)", path.display())]
    Exists {
        /// File.
        path: PathBuf,
    },
    /// What is to be written does not fit the format.
    #[error("cannot write {what}: {reason}")]
    Unwritable {
        /// Tensor or key.
        what: String,
        /// Why, and the cure.
        reason: String,
    },
    /// Not enough room.
    #[error("{}: needs {needed} bytes and the disk has {free} free; free space or choose another folder", path.display())]
    DiskFull {
        /// File.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
}

impl FormatError {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, action, error }
    }

    pub(crate) fn damaged(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, reason: reason.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), reason: reason.into() }
    }

    /// A metadata key of `path` that is missing or wrong.
    #[must_use]
    pub fn metadata(path: &Path, key: &str, reason: &str) -> Self {
        Self::Metadata { path: path.to_owned(), key: key.to_owned(), reason: reason.to_owned() }
    }
}
