//! What can be wrong with an importance matrix.

use std::path::PathBuf;

/// An importance matrix that cannot be read or used. Messages name the file, the entry and the place, and end in the cure.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The file as such cannot be read or written.
    #[error(transparent)]
    Format(#[from] kbit_formats::FormatError),
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
    /// The file holds something else.
    #[error("{}: not an importance matrix: {reason}; make one with `kbit calibrate`", path.display())]
    NotAnImportanceMatrix {
        /// File.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The engine cannot run the model.
    #[error(transparent)]
    Engine(#[from] kbit_engine::EngineError),
    /// An activation is NaN or infinite.
    #[error(
        "{tensor}: an input of column {column} is not finite, so nothing can be gathered: the weights before it are damaged or too coarse; `kbit verify` names damaged tensors"
    )]
    NotFinite {
        /// Tensor.
        tensor: String,
        /// Column.
        column: usize,
    },
    /// Files that do not go together.
    #[error("{}: entry {entry} {reason}; merge files of the same model that were gathered by kbit calibrate or llama-imatrix", path.display())]
    Unmergeable {
        /// File.
        path: PathBuf,
        /// Name of the tensor.
        entry: String,
        /// What does not fit.
        reason: String,
    },
    /// A file of what was gathered so far, from which nothing can go on.
    #[error("{}: at byte {offset}: {reason}; remove it to begin anew", path.display())]
    Unresumable {
        /// File.
        path: PathBuf,
        /// Offset from the start of the file.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The structure of the file is damaged or hostile.
    #[error("{}: at byte {offset}: {reason}; the file is damaged: gather it anew", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// Offset from the start of the file.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry contradicts itself or holds an impossible number.
    #[error("{}: entry {entry}: {reason}; the file is damaged: gather it anew", path.display())]
    Entry {
        /// File.
        path: PathBuf,
        /// Name of the tensor that the entry is for.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// An entry was gathered on another model.
    #[error(
        "{}: entry {entry} has {found} values where the tensor has {slices} x {cols} inputs; the importance matrix belongs to another model: gather it on this one",
        path.display()
    )]
    Size {
        /// File.
        path: PathBuf,
        /// Name of the tensor.
        entry: String,
        /// Values in the file.
        found: u64,
        /// Slices of the tensor.
        slices: u64,
        /// Columns of the tensor.
        cols: u64,
    },
}
