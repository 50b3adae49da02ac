//! What can be wrong with a model.

use std::path::PathBuf;

/// A model that cannot be read or converted. Messages name the place and end in the cure.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No table covers the architecture.
    #[error(
        "architecture {found} is not known; known are {}; convert it to GGUF with llama.cpp and give that file, or add a table to kbit-models",
        known.join(", ")
    )]
    UnknownArchitecture {
        /// Name or class that was found.
        found: String,
        /// Names or classes that are known.
        known: Vec<String>,
    },
    /// No table covers the class of a Hugging Face model.
    #[error(
        "the class {found} is not known; known are {}; a model that is built like one of these converts with `--architecture CLASS` (`architecture: CLASS` in a configuration), any other when llama.cpp has converted it to GGUF",
        known.join(", ")
    )]
    UnknownClass {
        /// Class that was found.
        found: String,
        /// Classes that are known.
        known: Vec<String>,
    },
    /// The engine cannot run the architecture.
    #[error(
        "a model of architecture {architecture} can be converted, quantized and inspected, but kbit cannot run it yet; measure it with llama.cpp"
    )]
    NotRunnable {
        /// GGUF name of the architecture.
        architecture: String,
    },
    /// A metadata value that no model can have, or that kbit cannot run.
    #[error("metadata {key} {reason}; convert the model anew, or check the file's source")]
    Metadata {
        /// Full key.
        key: String,
        /// What is wrong, after "metadata KEY".
        reason: String,
    },
    /// The configuration of a Hugging Face folder is missing something or contradicts itself.
    #[error("{}: {reason}", path.display())]
    Config {
        /// File.
        path: PathBuf,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// Tensors that the architecture needs are not there.
    #[error("{} tensors are missing: {}; the checkpoint is incomplete: download all its files", names.len(), listed(names))]
    MissingTensors {
        /// Names in the checkpoint's terms.
        names: Vec<String>,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "tensor {tensor} has shape {found:?} where the configuration wants {wanted:?}; the configuration and the weights belong to different models: get both from one source"
    )]
    Shape {
        /// Name in the checkpoint's terms.
        tensor: String,
        /// Shape in the checkpoint, row-major.
        found: Vec<u64>,
        /// Shape by the configuration, row-major.
        wanted: Vec<u64>,
    },
    /// Tensors of another modality stand beside the text model.
    #[error("{} tensors belong to a vision or audio part, not to the text model: {}; `--pass-through` (`pass_through: true` in a configuration) copies them unchanged", names.len(), listed(names))]
    OtherModalities {
        /// Names in the checkpoint's terms.
        names: Vec<String>,
    },
    /// Tensors that the architecture does not have.
    #[error("{} tensors have no place in architecture {architecture}: {}; the model is not a plain {architecture}: convert it to GGUF with llama.cpp and give that file", names.len(), listed(names))]
    UnexpectedTensors {
        /// GGUF name of the architecture.
        architecture: String,
        /// Names in the checkpoint's terms.
        names: Vec<String>,
    },
    /// A tensor's elements cannot be turned into f32.
    #[error("tensor {tensor}: {reason}")]
    Unreadable {
        /// Name in the checkpoint's terms.
        tensor: String,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// The checkpoint has no tokenizer.
    #[error("{}: no tokenizer beside the model; put tokenizer.json or tokenizer.model there, or convert with `--without-tokenizer` (`without_tokenizer: true` in a configuration)", folder.display())]
    NoTokenizer {
        /// Folder.
        folder: PathBuf,
    },
    /// The tokenizer's files cannot be carried over.
    #[error(transparent)]
    Tokenizer(kbit_tokenizers::TokenizerError),
    /// What a Hugging Face folder cannot hold.
    #[error("{what} cannot be exported: {reason}")]
    NotExportable {
        /// Model, architecture, tensor or key.
        what: String,
        /// Why, and the cure.
        reason: String,
    },
    /// The checkpoint or its metadata cannot be read.
    #[error(transparent)]
    Format(#[from] kbit_formats::FormatError),
}

/// The first twenty names, and how many more there are.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
