//! A GGUF file back to a Hugging Face folder: safetensors, config.json, tokenizer files.
//!
//! The folder is made beside its final path and renamed when it is whole.

use crate::error::PipelineError;
use crate::progress::Bar;
use kbit_formats::{Checkpoint, Element, FormatError, NewSafetensor, SafetensorsWriter};
use kbit_models::{Export, ExportTensor};
use kbit_tokenizers::TokenizerFiles;
use kbit_types::Dtype;
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Weights in memory at once.
const SLAB_WEIGHTS: u64 = 1 << 22;
/// Weights in one unit of parallel work.
const CHUNK_WEIGHTS: u64 = 1 << 16;

/// Element type of the exported tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportDtype {
    /// bf16 or f16 where all matrices of the file have that type; else f32, which holds what any block decodes to.
    #[default]
    Keep,
    /// This one, rounded to nearest even.
    To(Dtype),
}

/// What was exported.
#[derive(Debug, Serialize)]
pub struct Exported {
    /// The folder.
    pub path: PathBuf,
    /// Files in it.
    pub files: Vec<String>,
    /// Tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Element type of the matrices.
    pub dtype: String,
    /// Tensors of another type, because that one does not hold their values.
    pub wider: Vec<String>,
}

/// What an export will write, decided before anything is.
pub struct ExportPlan {
    checkpoint: Checkpoint,
    export: Export,
    tokenizer: Option<TokenizerFiles>,
    dtype: Dtype,
    /// Element type of each tensor.
    dtypes: Vec<Dtype>,
}

impl ExportPlan {
    /// Plans the export of the GGUF file at `path`, with its tokenizer's files where `tokenizer` asks for them.
    ///
    /// # Errors
    /// When it is not GGUF, a scheme of kbit packed it, its architecture has no inverse, or its metadata say what a folder
    /// cannot hold.
    pub fn new(path: &Path, dtype: ExportDtype, tokenizer: bool) -> Result<Self, PipelineError> {
        let checkpoint = Checkpoint::open(path)?;
        let export = kbit_models::export(&checkpoint)?;
        let tokenizer = match checkpoint.gguf().filter(|_| tokenizer) {
            Some(gguf) => kbit_tokenizers::files_from_metadata(gguf.metadata())?,
            None => None,
        };
        let is_matrix = |tensor: &&ExportTensor| tensor.shape.len() > 1;
        let dtype = match dtype {
            ExportDtype::To(dtype) => dtype,
            ExportDtype::Keep => common(export.tensors.iter().filter(is_matrix), &checkpoint),
        };
        let mut plan = Self { checkpoint, export, tokenizer, dtype, dtypes: Vec::new() };
        let dtypes =
            plan.export.tensors.iter().map(|tensor| plan.dtype_of(tensor)).collect::<Result<_, _>>()?;
        plan.dtypes = dtypes;
        Ok(plan)
    }

    /// The common type; f32 for a vector that does not fit it. GGUF holds vectors in f32, mostly with values of a narrower
    /// type.
    fn dtype_of(&self, tensor: &ExportTensor) -> Result<Dtype, PipelineError> {
        if tensor.shape.len() > 1 || self.dtype == Dtype::F32 {
            return Ok(self.dtype);
        }
        let shape = tensor.expr.shape();
        let mut values = vec![0.0; usize::try_from(shape.rows * shape.cols).unwrap_or(usize::MAX)];
        tensor.expr.read_rows(&self.checkpoint, 0, 0..shape.rows, &mut values)?;
        let mut narrow = vec![0; values.len() * self.dtype.bytes()];
        let mut back = vec![0.0f32; values.len()];
        let fits = self.dtype.narrow(&values, &mut narrow).is_ok()
            && self.dtype.widen(&narrow, &mut back).is_ok()
            && values.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits());
        Ok(if fits { self.dtype } else { Dtype::F32 })
    }

    /// Weights of all tensors.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.export.tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum()
    }

    /// Writes the folder `out`.
    ///
    /// # Errors
    /// When it exists, the disk has no room, or a tensor cannot be read; nothing is left then.
    pub fn write(&self, out: &Path, bar: &Bar) -> Result<Exported, PipelineError> {
        if out.symlink_metadata().is_ok() {
            return Err(PipelineError::FolderExists { path: out.to_owned() });
        }
        let mut name = out.as_os_str().to_owned();
        name.push(format!(".{}.kbit-partial", std::process::id()));
        let partial = PartialFolder(PathBuf::from(name));
        std::fs::create_dir_all(&partial.0).map_err(PipelineError::io(&partial.0, "making the folder"))?;
        let bytes = self.write_tensors(&partial.0.join("model.safetensors"), bar)?;
        let mut files = vec!["model.safetensors".to_owned()];
        for (name, content) in self.documents() {
            kbit_formats::atomic::write_atomically(&partial.0.join(name), &pretty(&content))?;
            files.push(name.to_owned());
        }
        if out.symlink_metadata().is_ok() {
            return Err(PipelineError::FolderExists { path: out.to_owned() });
        }
        std::fs::rename(&partial.0, out).map_err(PipelineError::io(out, "renaming the finished folder"))?;
        let wider = self.export.tensors.iter().zip(&self.dtypes).filter(|(_, dtype)| **dtype != self.dtype);
        Ok(Exported {
            path: out.to_owned(),
            files,
            tensors: self.export.tensors.len(),
            bytes,
            dtype: self.dtype.to_string(),
            wider: wider.map(|(tensor, _)| tensor.name.clone()).collect(),
        })
    }

    /// The folder's JSON files.
    fn documents(&self) -> Vec<(&'static str, serde_json::Value)> {
        let mut config = self.export.config.clone();
        config.insert("torch_dtype".to_owned(), torch_name(self.dtype).into());
        let mut generation = self.export.sampling.clone();
        for (key, id) in self.tokenizer.iter().flat_map(|files| &files.ids) {
            config.insert((*key).to_owned(), (*id).into());
            generation.insert((*key).to_owned(), (*id).into());
        }
        let mut documents =
            vec![("config.json", config.into()), ("generation_config.json", generation.into())];
        if let Some(files) = &self.tokenizer {
            documents.push(("tokenizer.json", files.tokenizer.clone()));
            documents.push(("tokenizer_config.json", files.config.clone()));
        }
        documents
    }

    fn write_tensors(&self, path: &Path, bar: &Bar) -> Result<u64, PipelineError> {
        let entries: Vec<NewSafetensor> = self
            .export
            .tensors
            .iter()
            .zip(&self.dtypes)
            .map(|(tensor, dtype)| NewSafetensor {
                name: tensor.name.clone(),
                dtype: *dtype,
                shape: tensor.shape.clone(),
            })
            .collect();
        let writer = SafetensorsWriter::create(path, &entries)?;
        let mut values = Vec::new();
        let mut bytes = Vec::new();
        for (index, (tensor, dtype)) in self.export.tensors.iter().zip(&self.dtypes).enumerate() {
            let shape = tensor.expr.shape();
            let rows_of = |weights: u64| (weights / shape.cols.max(1)).max(1);
            let mut offset = 0;
            for slice in 0..shape.slices {
                for rows in pieces(0..shape.rows, rows_of(SLAB_WEIGHTS)) {
                    let weights = usize::try_from((rows.end - rows.start) * shape.cols).unwrap_or(usize::MAX);
                    values.resize(weights, 0.0f32);
                    bytes.resize(weights * dtype.bytes(), 0u8);
                    let step = usize::try_from(rows_of(CHUNK_WEIGHTS) * shape.cols).unwrap_or(usize::MAX);
                    let chunks: Vec<_> = pieces(rows, rows_of(CHUNK_WEIGHTS))
                        .zip(values.chunks_mut(step).zip(bytes.chunks_mut(step * dtype.bytes())))
                        .collect();
                    chunks.into_par_iter().try_for_each(|(rows, (values, bytes))| {
                        tensor.expr.read_rows(&self.checkpoint, slice, rows, values)?;
                        dtype.narrow(values, bytes).map_err(|error| FormatError::Unwritable {
                            what: tensor.name.clone(),
                            reason: error.to_string(),
                        })?;
                        Ok::<_, PipelineError>(())
                    })?;
                    writer.write_at(index, offset, &bytes)?;
                    offset += bytes.len() as u64;
                    bar.advance(weights as u64 * 4);
                }
            }
        }
        Ok(writer.finish()?)
    }
}

/// The narrowest type that holds all matrices.
fn common<'a>(matrices: impl Iterator<Item = &'a ExportTensor>, checkpoint: &Checkpoint) -> Dtype {
    let mut found = None;
    for name in matrices.flat_map(|tensor| tensor.expr.sources()) {
        let dtype = match checkpoint.tensor(name).map(|tensor| tensor.element) {
            Some(Element::Plain(dtype @ (Dtype::F16 | Dtype::Bf16))) => dtype,
            _ => return Dtype::F32,
        };
        if *found.get_or_insert(dtype) != dtype {
            return Dtype::F32;
        }
    }
    found.unwrap_or(Dtype::F32)
}

const fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        _ => "float32",
    }
}

fn pieces(rows: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let end = rows.end;
    (0..(end - rows.start).div_ceil(step)).map(move |index| {
        let start = rows.start + index * step;
        start..(start + step).min(end)
    })
}

fn pretty(value: &serde_json::Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// A folder that goes when it was not renamed.
struct PartialFolder(PathBuf);

impl Drop for PartialFolder {
    fn drop(&mut self) {
        // Renamed, it is no longer there; else nobody is left to tell.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
