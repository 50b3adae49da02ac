//! Checkpoint -> tensors and metadata of a GGUF file.
//!
//! A Hugging Face folder becomes what llama.cpp's `convert_hf_to_gguf.py` makes of it: same tensors in the same order, same
//! metadata. A GGUF file keeps its metadata; its tensors come in the order in which llama-quantize writes them.

mod card;
mod config;
mod export;
mod general;
mod gguf;
mod hugging_face;
mod sources;

pub use export::{Export, ExportTensor, export};

use crate::{Description, ModelError, Role, SourceExpr};
use kbit_formats::Checkpoint;
use kbit_formats::gguf::{Metadata, Value};
use std::path::Path;

/// How to convert.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// Tensors of a vision or audio part beside the text model are carried over under their own names; else they are an
    /// error.
    pub pass_through_other_modalities: bool,
    /// A model without tokenizer files is converted without a tokenizer; else that is an error.
    pub without_tokenizer: bool,
    /// The pre-tokenizer of a byte-level BPE, named by hand.
    pub pre_tokenizer: Option<String>,
    /// The architecture, named by hand: its GGUF name or a Hugging Face class that is built like the model's.
    pub architecture: Option<String>,
    /// `general.name`; else from the folder's name.
    pub name: Option<String>,
}

/// A tensor of the output.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputTensor {
    /// GGUF name.
    pub name: String,
    /// Shape, row-major: outermost axis first.
    pub shape: Vec<u64>,
    /// What it is.
    pub role: Role,
    /// Where its values come from.
    pub expr: SourceExpr,
}

/// A model, ready to be written.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// Hyper-parameters; `None` for a GGUF file of an architecture that kbit cannot run, which can be quantized all the
    /// same.
    pub description: Option<Description>,
    /// GGUF's name of the architecture.
    pub architecture: String,
    /// Metadata without what depends on the output; see [`Conversion::metadata_for`].
    pub metadata: Metadata,
    /// Tensors, in the order of the file.
    pub tensors: Vec<OutputTensor>,
    /// Tensors of the checkpoint that are left out, because they are computed anew.
    pub dropped: Vec<String>,
    /// Where `general.file_type` and `general.quantization_version` belong; the end, where there is no place of their own.
    places: [Option<usize>; 2],
}

/// llama.cpp's version of its block formats.
const QUANTIZATION_VERSION: u32 = 2;

impl Conversion {
    /// The metadata of an output whose matrices are mostly of llama.cpp's file type `file_type` (0 is F32, 1 F16, 2 Q4_0,
    /// 7 Q8_0, 32 BF16, ...); without one where no such type fits.
    #[must_use]
    pub fn metadata_for(&self, file_type: Option<u32>) -> Metadata {
        const FILE_TYPE: &str = "general.file_type";
        const VERSION: &str = "general.quantization_version";
        let mut out = Metadata::new();
        let mut file_type = file_type.map(Value::U32);
        for (index, (key, value)) in self.metadata.iter().enumerate() {
            if Some(index) == self.places[0]
                && let Some(file_type) = file_type.take()
            {
                out.insert(FILE_TYPE, file_type);
            }
            if Some(index) == self.places[1] {
                out.insert(VERSION, Value::U32(QUANTIZATION_VERSION));
            }
            out.insert(key, value.clone());
        }
        out.insert(VERSION, Value::U32(QUANTIZATION_VERSION));
        if let Some(file_type) = file_type {
            out.insert(FILE_TYPE, file_type);
        }
        out
    }

    /// Weights in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum()
    }
}

/// Reads what is to be written from `checkpoint`, without reading a tensor.
///
/// # Errors
/// When the architecture is not known, tensors are missing, superfluous, of a wrong shape or of another modality, the
/// configuration contradicts itself, or the tokenizer cannot be carried over.
pub fn convert(checkpoint: &Checkpoint, options: &ConvertOptions) -> Result<Conversion, ModelError> {
    match checkpoint.gguf() {
        Some(file) => gguf::convert(checkpoint, file, options),
        None => {
            let path = checkpoint.path();
            let folder = checkpoint.folder().or_else(|| path.parent()).unwrap_or_else(|| Path::new("."));
            hugging_face::convert(checkpoint, folder, options)
        }
    }
}

/// True for tensors of a vision or audio part, by their names. Source: llama.cpp's converter.
#[must_use]
pub fn is_other_modality(name: &str) -> bool {
    const BEGIN: &[&str] = &[
        "mlp",
        "vit.",
        "vpm.",
        "siglip2.",
        "conformer.",
        "merger.",
        "resampler.",
        "sound_encoder.",
        "sound_projection.",
        "speech_embeddings.",
        "v.",
        "a.",
        "mm.",
    ];
    const WITHIN: &[&str] = &[
        "visual.",
        "vision.",
        "audio.",
        "talker.",
        "vision_",
        "audio_",
        "token2wav.",
        "code2wav.",
        "projector.",
        "pre_mm_projector_norm",
        "image_newline",
        "view_seperator",
        "patch_embed",
        "patch_merger.",
        "patch_merge_mlp.",
        "model.connector.",
    ];
    BEGIN.iter().any(|begin| name.starts_with(begin)) || WITHIN.iter().any(|part| name.contains(part))
}
