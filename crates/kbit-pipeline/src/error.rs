//! What can go wrong between a configuration and a report.

use crate::config::ConfigError;
use crate::plan::Fallback;
use std::path::PathBuf;

/// A failed step. Messages name the file, tensor or run, and end in the cure.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The configuration has mistakes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A plugin could not be loaded, or refused.
    #[error(transparent)]
    Host(#[from] kbit_host::HostError),
    /// A checkpoint or packed file could not be read or written.
    #[error(transparent)]
    Format(#[from] kbit_formats::FormatError),
    /// The model is not one that kbit knows, or is incomplete.
    #[error(transparent)]
    Model(#[from] kbit_models::ModelError),
    /// The tokenizer could not be read.
    #[error(transparent)]
    Tokenizer(#[from] kbit_tokenizers::TokenizerError),
    /// The engine refused the model.
    #[error(transparent)]
    Engine(#[from] kbit_engine::EngineError),
    /// A metric could not be computed.
    #[error(transparent)]
    Eval(#[from] kbit_eval::EvalError),
    /// A task could not be asked.
    #[error(transparent)]
    Task(#[from] kbit_eval::tasks::TaskError),
    /// Measurements could not be read or written.
    #[error(transparent)]
    Results(#[from] kbit_results::ResultsError),
    /// A report could not be made.
    #[error(transparent)]
    Report(#[from] kbit_report::ReportError),
    /// A codec could not be built.
    #[error(transparent)]
    Codec(#[from] kbit_types::CodecError),
    /// A tensor has more axes than a stack of matrices.
    #[error(
        "tensor {tensor}: shape {shape:?} has more than three axes; pass it through or drop it from the model"
    )]
    Axes {
        /// Tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor's bytes do not fit 64 bits.
    #[error(
        "tensor {tensor}: shape {shape:?} is larger than a file can be; the checkpoint's header is damaged"
    )]
    TooLarge {
        /// Tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Neither the scheme nor f16 can take the shape.
    #[error("tensor {tensor}: not even f16 can store it: {reason}; keep it with a rule `scheme: f32`")]
    NoFallback {
        /// Tensor.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// `on_fallback: error`, and some tensors need one.
    #[error("{label}: {} tensors cannot be stored as asked (first: {}: {}); allow it with `on_fallback: warn` or add rules for them",
        fallbacks.len(), fallbacks.first().map_or("", |f| f.tensor.as_str()), fallbacks.first().map_or("", |f| f.reason.as_str()))]
    Fallbacks {
        /// Scheme label.
        label: String,
        /// All of them.
        fallbacks: Vec<Fallback>,
    },
    /// An importance matrix could not be read, or belongs to another model.
    #[error(transparent)]
    Calibrate(#[from] kbit_calibrate::CalibrateError),
    /// The folder to write is there already.
    #[error("{}: exists already; remove it, or choose another name", path.display())]
    FolderExists {
        /// Folder.
        path: PathBuf,
    },
    /// The source's shards are to be kept, and it has none.
    #[error("{}: has no shards to keep, it is not GGUF; give a size by `--split-size` (`split_size`) instead", path.display())]
    NoShards {
        /// Source.
        path: PathBuf,
    },
    /// A scheme needs calibration data.
    #[error("tensor {tensor}: scheme {scheme} needs {what}; {cure}")]
    NeedsCalibration {
        /// Tensor.
        tensor: String,
        /// Scheme.
        scheme: String,
        /// What it needs, and why that is not there.
        what: String,
        /// What to do.
        cure: &'static str,
    },
    /// The importance matrix has no data for some matrices, and that is to be an error.
    #[error("{}: {} matrices have no importance, or experts without (first: {}); gather it on more text, or go on without by `--on-missing-importance warn` (`on_missing: warn`)",
        path.display(), tensors.len(), tensors.first().map_or("", String::as_str))]
    ImportanceMissing {
        /// Importance matrix.
        path: PathBuf,
        /// Tensors.
        tensors: Vec<String>,
    },
    /// A mix cannot be applied.
    #[error(transparent)]
    Mix(#[from] kbit_mixes::MixError),
    /// An option that only a mix understands.
    #[error(
        "{option} goes with a file type or a mix, and {scheme} is a scheme for all matrices; map tensors to schemes by rules instead (--map, `rules:`)"
    )]
    MixOption {
        /// The option.
        option: &'static str,
        /// The scheme.
        scheme: String,
    },
    /// A rule names a mix.
    #[error(
        "a rule gives tensors a scheme, and {name} is a mix of types; name a ggml type, as q4_k, or a scheme"
    )]
    MixInRule {
        /// The mix.
        name: String,
    },
    /// Types that need importance, and none is given.
    #[error("{label}: {} tensors get types that need importance, and there is none for them: {}; give an importance matrix, or choose a file type that does without, as q3_k_s or iq4_xs",
        tensors.len(), few(tensors))]
    NeedsImportance {
        /// Scheme label.
        label: String,
        /// Tensors.
        tensors: Vec<String>,
    },
    /// Tensors that were already quantized.
    #[error("{label}: {} tensors of the source are already quantized: {}; start from an unquantized model, or say --allow-requantize (`allow_requantize: true`) to add the new error to the old one",
        tensors.len(), few(tensors))]
    Requantize {
        /// Scheme label.
        label: String,
        /// Tensors with their types.
        tensors: Vec<String>,
    },
    /// Types that no loaded plugin encodes.
    #[error("{label}: no plugin encodes the types of {} tensors: {}; choose another file type, or see what there is by `kbit plugin list`",
        tensors.len(), few(tensors))]
    NoEncoder {
        /// Scheme label.
        label: String,
        /// Tensors with their types.
        tensors: Vec<String>,
    },
    /// A layer to prune that is not there.
    #[error("there is no layer {layer} to prune: the model has {layers}, counted from 0")]
    PruneLayer {
        /// Number of the layer.
        layer: u64,
        /// Layers of the model.
        layers: u64,
    },
    /// Nothing left.
    #[error("all {layers} layers would be pruned; keep one")]
    PruneAll {
        /// Layers of the model.
        layers: u64,
    },
    /// NaN or infinity where the file must hold a number.
    #[error("tensor {tensor}: {value} at row {row}, column {column}; the checkpoint is damaged: get it anew")]
    NotFinite {
        /// Tensor.
        tensor: String,
        /// `NaN` or `infinity`.
        value: &'static str,
        /// Row, from 0.
        row: u64,
        /// Column, from 0.
        column: u64,
    },
    /// Not enough room for the outputs.
    #[error("{}: the outputs need {needed} bytes and {free} are free; free space or choose another output folder", path.display())]
    DiskFull {
        /// Folder.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A file could not be read or written.
    #[error("{}: {action}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's words.
        error: std::io::Error,
    },
    /// A text is not UTF-8.
    #[error("{}: not UTF-8 at byte {offset}; convert the text to UTF-8", path.display())]
    TextNotUtf8 {
        /// File.
        path: PathBuf,
        /// Offset of the first bad byte.
        offset: usize,
    },
    /// A text of baselines from which nothing can be learned about the measured one.
    #[error("{}: {error}", path.display())]
    Baseline {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        error: kbit_eval::EvalError,
    },
    /// A text that has not one window.
    #[error("{}: {had} tokens, and one window needs {needed}; give a longer text, or a smaller --context", path.display())]
    ShortText {
        /// File.
        path: PathBuf,
        /// Tokens of the text.
        had: usize,
        /// Tokens of a window.
        needed: usize,
    },
    /// The engine does not know the architecture.
    #[error("{}: the engine cannot run the architecture {architecture} yet; it can be converted, not measured", path.display())]
    NotRunnable {
        /// Model.
        path: PathBuf,
        /// Its architecture.
        architecture: String,
    },
    /// The file has a tensor that its architecture has not.
    #[error("{}: the tensor {tensor} has no place in this {architecture} model of {layers} blocks, and leaving it out would change what the model says; the metadata and the tensors belong to different models: convert the source again, or update kbit", path.display())]
    UnknownTensor {
        /// File.
        path: PathBuf,
        /// GGUF name.
        tensor: String,
        /// Architecture of the file.
        architecture: String,
        /// Blocks of the model, by its metadata.
        layers: usize,
    },
    /// The model has no tokenizer, and a text is to be measured.
    #[error("{}: the model has no tokenizer; put tokenizer.json or tokenizer.model beside it, or use a GGUF file that has one", path.display())]
    NoTokenizer {
        /// Model.
        path: PathBuf,
    },
    /// Another process works on the same output.
    #[error("{}: another kbit is running there; wait for it, or choose another output folder", path.display())]
    Busy {
        /// Lock file.
        path: PathBuf,
    },
    /// Results contradict each other.
    #[error(
        "{count} results contradict each other, the first: {first}; equal inputs give equal figures, so one of them was measured with \
         another file or another kbit: compare their file_sha256 and versions, measure again or remove the lines that are out of date, or \
         report on one run alone"
    )]
    Contradiction {
        /// How many.
        count: usize,
        /// What, with both values and where they stand.
        first: String,
    },
    /// A target that cannot be reached, or a plan that cannot be made or carried out.
    #[error("{message}")]
    Plan {
        /// What, why, and what to do.
        message: String,
    },
    /// The run was cancelled.
    #[error("cancelled; run the same command again to go on where it stopped")]
    Cancelled,
}

/// The first few of `names`.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown}, ...") } else { shown }
}

impl PipelineError {
    pub(crate) fn io(path: &std::path::Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, action, error }
    }
}
