//! Opens a MODEL argument for the engine: a GGUF file (plain, or packed by any scheme) or a Hugging Face folder.

use crate::error::PipelineError;
use crate::plan::matrix_shape;
use kbit_blocks::BlockCodec;
use kbit_engine::Model;
use kbit_formats::Checkpoint;
use kbit_formats::gguf::{Gguf, Maps, TensorInfo};
use kbit_formats::packed::PackedIndex;
use kbit_host::{Bytes, Isolation, MatrixInfo, OpenScheme, ParamValues, PluginCodec, Registry, TensorBytes};
use kbit_models::{ConvertOptions, OutputTensor, TrainingInfo};
use kbit_tokenizers::{Tokenizer, TokenizerError};
use kbit_types::{Codec, CodecError, MatrixShape};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A Hugging Face tensor is widened to f32 in memory once if all of them together take no more than this; else it is
/// read anew for each use.
const RESIDENT_BYTES: u64 = 2 << 30;

/// A model ready to run.
pub struct OpenModel {
    /// File or folder.
    pub path: PathBuf,
    /// The engine's model.
    pub model: Model,
    /// Its tokenizer, if it has one.
    tokenizer: Option<Tokenizer>,
    /// Weights of all tensors.
    pub params: u64,
    /// Bytes of all tensors, as stored.
    pub tensor_bytes: u64,
    /// Bytes that generating a token reads from memory: the tensors, without embeddings of which only a row is read.
    pub step_bytes: u64,
    /// Stored bits a weight without embedding and output.
    pub decoder_bits_per_weight: f64,
    /// What is known of its training.
    pub training: Option<TrainingInfo>,
    /// The tensors that the model is made of, by their GGUF names.
    codecs: HashMap<String, Codecs>,
}

impl OpenModel {
    /// The same model, computed in `mode`.
    #[must_use]
    pub fn with_mode(self, mode: kbit_engine::Mode) -> Self {
        Self { model: self.model.with_mode(mode), ..self }
    }

    /// The same model, whose sessions keep keys and values as `cache` says.
    #[must_use]
    pub fn with_cache(self, cache: kbit_engine::CacheTypes) -> Self {
        Self { model: self.model.with_cache(cache), ..self }
    }

    /// This model with the tensors `of` taken from `other`, which is the same model in another file. Nothing is copied.
    ///
    /// # Errors
    /// When `other` lacks one of them, or has it in another shape.
    pub fn with_tensors_of(&self, other: &Self, of: &HashSet<String>) -> Result<Model, PipelineError> {
        let model = Model::new(self.model.description().clone(), &mut |name| {
            let from = if of.contains(name) { other } else { self };
            Ok(from.codecs.get(name).cloned())
        })?;
        Ok(model)
    }

    /// This model with the tensors of `others`, by their GGUF names, in place of its own.
    ///
    /// # Errors
    /// When one has another shape.
    pub fn with_codecs(&self, others: &HashMap<String, Codecs>) -> Result<Model, PipelineError> {
        let model = Model::new(self.model.description().clone(), &mut |name| {
            Ok(others.get(name).or_else(|| self.codecs.get(name)).cloned())
        })?;
        Ok(model)
    }

    /// True of the tensors that the engine computes with.
    #[must_use]
    pub fn uses(&self, tensor: &str) -> bool {
        self.codecs.contains_key(tensor)
    }

    /// Opens `path`. `registry` provides the schemes of packed files; `options` say how a folder is read, which may always
    /// be without a tokenizer here: what needs one asks for it.
    ///
    /// # Errors
    /// A damaged file, an unknown architecture, a missing tensor, or a scheme that is not installed.
    pub fn open(
        path: &Path,
        registry: &Registry,
        isolation: Isolation,
        options: &ConvertOptions,
    ) -> Result<Self, PipelineError> {
        Self::open_as(path, registry, isolation, options, false)
    }

    /// As [`OpenModel::open`], but each block is read whenever it is used, so that a model larger than memory runs at the speed of the disk.
    /// Embedding and output stay in memory.
    ///
    /// # Errors
    /// As [`OpenModel::open`]; a block that is damaged is found when it is used.
    pub fn stream(
        path: &Path,
        registry: &Registry,
        isolation: Isolation,
        options: &ConvertOptions,
    ) -> Result<Self, PipelineError> {
        Self::open_as(path, registry, isolation, options, true)
    }

    fn open_as(
        path: &Path,
        registry: &Registry,
        isolation: Isolation,
        options: &ConvertOptions,
        streamed: bool,
    ) -> Result<Self, PipelineError> {
        let checkpoint = Checkpoint::open(path)?;
        match checkpoint.gguf() {
            Some(_) => Self::from_gguf(Gguf::open(path)?, registry, isolation, streamed),
            None => Self::from_folder(Arc::new(checkpoint), options, streamed),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the model has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, PipelineError> {
        self.tokenizer.as_ref().ok_or_else(|| PipelineError::NoTokenizer { path: self.path.clone() })
    }

    fn from_gguf(
        gguf: Gguf,
        registry: &Registry,
        isolation: Isolation,
        streamed: bool,
    ) -> Result<Self, PipelineError> {
        let gguf = Arc::new(gguf);
        let store = if streamed { Store::Read } else { Store::Mapped(gguf.map()?) };
        let stored = Arc::new(StoredModel::new(&gguf, store, registry, isolation)?);
        let names: Vec<String> = gguf
            .tensors()
            .iter()
            .map(|tensor| tensor.name.clone())
            .chain(stored.packed.keys().cloned())
            .collect();
        let has = |name: &str| names.iter().any(|known| known == name);
        let description = kbit_models::describe(gguf.metadata(), &has)?;
        let further = kbit_models::further_blocks(gguf.metadata())?;
        let known: HashSet<String> =
            description.tensors()?.into_iter().map(|expected| expected.name).collect();
        let mut used = HashMap::new();
        let model = if streamed {
            let stored = Arc::clone(&stored);
            Model::streamed(description, Arc::new(move |name: &str| stored.codecs(name)))?
        } else {
            Model::new(description, &mut |name| Ok(remembered(&mut used, name, stored.codecs(name)?)))?
        };
        let sizes = stored_sizes(&gguf, &stored);
        let layers = model.description().layers;
        // Parts that were passed through, and blocks that predict further tokens, have no place in the forward pass.
        let is_apart = |name: &str| {
            kbit_models::is_other_modality(name)
                || (layers..layers + further).any(|layer| name.starts_with(&format!("blk.{layer}.")))
        };
        if let Some((tensor, ..)) = sizes.iter().find(|(name, ..)| !known.contains(name) && !is_apart(name)) {
            return Err(PipelineError::UnknownTensor {
                path: gguf.path().to_owned(),
                tensor: tensor.clone(),
                architecture: model.description().architecture.clone(),
                layers,
            });
        }
        Ok(Self {
            path: gguf.path().to_owned(),
            step_bytes: step_bytes(&model, &sizes, |_, bytes| bytes),
            model,
            tokenizer: tokenizer(gguf.metadata())?,
            params: sizes.iter().map(|(_, weights, _)| weights).sum(),
            tensor_bytes: sizes.iter().map(|(_, _, bytes)| bytes).sum(),
            decoder_bits_per_weight: decoder_bits(&sizes),
            training: None,
            codecs: used,
        })
    }

    fn from_folder(
        checkpoint: Arc<Checkpoint>,
        options: &ConvertOptions,
        streamed: bool,
    ) -> Result<Self, PipelineError> {
        let options = ConvertOptions { without_tokenizer: true, ..options.clone() };
        let conversion = kbit_models::convert(&checkpoint, &options)?;
        let total: u64 = conversion.tensors.iter().map(|tensor| elements(tensor).saturating_mul(4)).sum();
        let resident = streamed || total <= RESIDENT_BYTES;
        let by_name: HashMap<String, OutputTensor> =
            conversion.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect();
        let description = conversion.description.clone().ok_or_else(|| PipelineError::NotRunnable {
            path: checkpoint.path().to_owned(),
            architecture: conversion.architecture.clone(),
        })?;
        let mut used = HashMap::new();
        let source = {
            let checkpoint = Arc::clone(&checkpoint);
            move |name: &str| {
                let tensor = by_name.get(name);
                tensor.map(|tensor| SourceCodec::open(&checkpoint, tensor, resident)).transpose()
            }
        };
        let model = if streamed {
            Model::streamed(description, Arc::new(source))?
        } else {
            Model::new(description, &mut |name| Ok(remembered(&mut used, name, source(name)?)))?
        };
        let sizes: Vec<_> = conversion
            .tensors
            .iter()
            .map(|tensor| (tensor.name.clone(), elements(tensor), source_bytes(&checkpoint, tensor)))
            .collect();
        Ok(Self {
            path: checkpoint.path().to_owned(),
            // What is resident is so in f32.
            step_bytes: step_bytes(
                &model,
                &sizes,
                |weights, bytes| if resident { weights.saturating_mul(4) } else { bytes },
            ),
            model,
            tokenizer: tokenizer(&conversion.metadata)?,
            params: sizes.iter().map(|(_, weights, _)| weights).sum(),
            tensor_bytes: sizes.iter().map(|(_, _, bytes)| bytes).sum(),
            decoder_bits_per_weight: decoder_bits(&sizes),
            training: checkpoint
                .folder()
                .and_then(|folder| TrainingInfo::read(folder).transpose())
                .transpose()?,
            codecs: used,
        })
    }
}

/// Notes what a model was given under `name`.
fn remembered(all: &mut HashMap<String, Codecs>, name: &str, codecs: Option<Codecs>) -> Option<Codecs> {
    let codecs = codecs?;
    all.insert(name.to_owned(), codecs.clone());
    Some(codecs)
}

fn elements(tensor: &OutputTensor) -> u64 {
    tensor.shape.iter().fold(1, |product: u64, axis| product.saturating_mul(*axis))
}

/// Bytes that the tensor takes in the checkpoint; computed tensors take none.
fn source_bytes(checkpoint: &Checkpoint, tensor: &OutputTensor) -> u64 {
    tensor.expr.sources().iter().filter_map(|name| checkpoint.tensor(name)).map(|source| source.bytes).sum()
}

/// The tokenizer of a model, without its weights: a GGUF file may hold a vocabulary alone.
///
/// # Errors
/// When the model cannot be read, or has no tokenizer.
pub fn open_tokenizer(path: &Path) -> Result<Tokenizer, PipelineError> {
    let checkpoint = Checkpoint::open(path)?;
    let found = match checkpoint.gguf() {
        Some(gguf) => tokenizer(gguf.metadata())?,
        None => tokenizer(&kbit_models::convert(&checkpoint, &ConvertOptions::default())?.metadata)?,
    };
    found.ok_or_else(|| PipelineError::NoTokenizer { path: path.to_owned() })
}

fn tokenizer(metadata: &kbit_formats::gguf::Metadata) -> Result<Option<Tokenizer>, PipelineError> {
    if metadata.get("tokenizer.ggml.model").is_none() {
        return Ok(None);
    }
    match Tokenizer::from_metadata(metadata) {
        Ok(found) => Ok(Some(found)),
        Err(TokenizerError::NoTokenizer) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Name, weights and stored bytes of each tensor of the model.
type Sizes = Vec<(String, u64, u64)>;

fn stored_sizes(gguf: &Gguf, stored: &StoredModel) -> Sizes {
    let mut sizes: Sizes = Vec::new();
    for tensor in gguf.tensors() {
        let owner = stored.packed.iter().find(|(name, _)| {
            tensor.name.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'))
        });
        match owner {
            Some((name, entry)) => match sizes.iter_mut().find(|(known, ..)| known == name) {
                Some((.., bytes)) => *bytes += tensor.bytes,
                None => sizes.push((name.clone(), entry.shape.elements().unwrap_or(0), tensor.bytes)),
            },
            None => sizes.push((tensor.name.clone(), tensor.dims.iter().product(), tensor.bytes)),
        }
    }
    sizes
}

/// Bytes of what generating a token reads: tensors whole, of experts those that the token goes through; `bytes_of` gives a
/// tensor's from its weights and stored bytes.
fn step_bytes(model: &Model, sizes: &Sizes, bytes_of: impl Fn(u64, u64) -> u64) -> u64 {
    let d = model.description();
    let embedding = (!d.tied_output).then_some("token_embd.weight");
    let read = sizes.iter().filter(|(name, ..)| Some(name.as_str()) != embedding);
    read.map(|(name, weights, bytes)| d.for_one_token(name, bytes_of(*weights, *bytes))).sum()
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn decoder_bits(sizes: &Sizes) -> f64 {
    let decoder = sizes.iter().filter(|(name, ..)| name.starts_with("blk."));
    let (weights, bytes) = decoder.fold((0, 0), |(w, b), (_, weights, bytes)| (w + weights, b + bytes));
    if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 }
}

/// Where the bytes of tensors come from.
enum Store {
    /// Maps of the files.
    Mapped(Maps),
    /// Read into memory for each use.
    Read,
}

/// A codec for each slice of a tensor.
pub type Codecs = Vec<Arc<dyn Codec>>;

/// The shape of a tensor that has something in it, so that there are no more slices than bytes.
fn stack_shape(shape: &[u64]) -> Option<MatrixShape> {
    matrix_shape(shape).filter(|shape| shape.elements().is_some_and(|elements| elements > 0))
}

/// The tensors of a GGUF file.
struct StoredModel {
    gguf: Arc<Gguf>,
    store: Store,
    schemes: Vec<(OpenScheme, Vec<String>)>,
    /// Those that schemes with their own layout store in parts.
    packed: HashMap<String, PackedEntry>,
}

struct PackedEntry {
    scheme: usize,
    shape: MatrixShape,
}

impl StoredModel {
    fn new(
        gguf: &Arc<Gguf>,
        store: Store,
        registry: &Registry,
        isolation: Isolation,
    ) -> Result<Self, PipelineError> {
        let mut model = Self { gguf: Arc::clone(gguf), store, schemes: Vec::new(), packed: HashMap::new() };
        let Some(index) = PackedIndex::read(gguf)? else { return Ok(model) };
        for scheme in &index.schemes {
            let found = registry.scheme(&scheme.id)?;
            let params: ParamValues = serde_json::from_str(&scheme.params).map_err(|error| {
                kbit_formats::FormatError::metadata(gguf.path(), "kbit.scheme.<n>.params", &error.to_string())
            })?;
            let parts = scheme.parts.iter().map(|part| part.name.clone()).collect();
            model.schemes.push((found.open(&found.resolve(&params)?, isolation)?, parts));
        }
        for tensor in &index.tensors {
            let shape = MatrixShape { rows: tensor.rows, cols: tensor.cols, slices: tensor.slices };
            let scheme = usize::try_from(tensor.scheme).unwrap_or(usize::MAX);
            model.packed.insert(tensor.name.clone(), PackedEntry { scheme, shape });
        }
        Ok(model)
    }

    /// The codecs of the tensor `name`, if there is one.
    fn codecs(&self, name: &str) -> Result<Option<Codecs>, CodecError> {
        match (self.packed.get(name), self.gguf.tensor(name)) {
            (Some(entry), _) => self.packed_codecs(name, entry).map(Some),
            (None, Some(tensor)) => self.block_codecs(tensor).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Bytes of each of `count` slices of equal size.
    fn slices(&self, tensor: &TensorInfo, count: u64) -> Result<Vec<Bytes>, CodecError> {
        let size = tensor.bytes / count.max(1);
        let slice = |slice: u64| match &self.store {
            Store::Mapped(maps) => {
                let map = maps.of(tensor);
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let start = map.range(tensor).start + usize::try_from(slice).unwrap_or(usize::MAX) * size;
                Ok(Bytes::new(Arc::clone(map), start..start + size))
            }
            Store::Read => {
                let source = |message: String| CodecError::Source { tensor: tensor.name.clone(), message };
                let mut bytes = Vec::new();
                let len = usize::try_from(size).unwrap_or(usize::MAX);
                bytes.try_reserve_exact(len).map_err(|_| source(format!("no memory for {size} bytes")))?;
                bytes.resize(len, 0u8);
                self.gguf
                    .read_at(tensor, slice * size, &mut bytes)
                    .map_err(|error| source(error.to_string()))?;
                Ok(Bytes::from(bytes))
            }
        };
        (0..count).map(slice).collect()
    }

    fn block_codecs(&self, tensor: &TensorInfo) -> Result<Codecs, CodecError> {
        let source = |message: String| CodecError::Source { tensor: tensor.name.clone(), message };
        let shape: Vec<u64> = tensor.dims.iter().rev().copied().collect();
        let shape = stack_shape(&shape).ok_or_else(|| {
            source(format!("shape {shape:?} is no stack of matrices; the engine cannot use it"))
        })?;
        let codec = |bytes: Bytes| {
            let codec = BlockCodec::new(&tensor.name, tensor.ty, shape.rows, shape.cols, bytes);
            Ok(Arc::new(codec.map_err(|error| source(error.to_string()))?) as Arc<dyn Codec>)
        };
        self.slices(tensor, shape.slices)?.into_iter().map(codec).collect()
    }

    fn packed_codecs(&self, name: &str, entry: &PackedEntry) -> Result<Codecs, CodecError> {
        let source = |message: String| CodecError::Source { tensor: name.to_owned(), message };
        let (scheme, parts) = self
            .schemes
            .get(entry.scheme)
            .ok_or_else(|| source(format!("names scheme {} of fewer", entry.scheme)))?;
        let slices = entry.shape.slices;
        if slices == 0 || slices > self.gguf.tensors().iter().map(|tensor| tensor.bytes).max().unwrap_or(0) {
            return Err(source(format!("{slices} slices do not fit into the file")));
        }
        let mut bytes: Vec<TensorBytes> =
            (0..slices).map(|_| TensorBytes { heads: Vec::new(), parts: Vec::new() }).collect();
        for part in parts {
            let stored = format!("{name}.{part}");
            let body =
                self.gguf.tensor(&stored).ok_or_else(|| source(format!("part {stored} is missing")))?;
            let heads = match self.gguf.tensor(&format!("{stored}.head")) {
                Some(head) => self.slices(head, slices)?,
                None => (0..slices).map(|_| Bytes::from(Vec::new())).collect(),
            };
            let bodies = self.slices(body, slices)?;
            for ((bytes, body), head) in bytes.iter_mut().zip(bodies).zip(heads) {
                bytes.parts.push(body);
                bytes.heads.push(head);
            }
        }
        let open = |(bytes, slice): (TensorBytes, u64)| {
            let info = MatrixInfo { tensor: name.to_owned(), shape: entry.shape, slice };
            let codec: PluginCodec =
                scheme.open_tensor(&info, bytes).map_err(|error| source(error.to_string()))?;
            Ok(Arc::new(codec) as Arc<dyn Codec>)
        };
        bytes.into_iter().zip(0..).map(open).collect()
    }
}

/// A slice of a tensor of a Hugging Face folder, as the engine's form of it.
struct SourceCodec {
    checkpoint: Arc<Checkpoint>,
    tensor: OutputTensor,
    slice: u64,
    shape: MatrixShape,
    resident: Option<Vec<f32>>,
}

impl SourceCodec {
    fn open(
        checkpoint: &Arc<Checkpoint>,
        tensor: &OutputTensor,
        resident: bool,
    ) -> Result<Codecs, CodecError> {
        let shape = stack_shape(&tensor.shape).ok_or_else(|| CodecError::Source {
            tensor: tensor.name.clone(),
            message: format!("shape {:?} is no stack of matrices; the engine cannot use it", tensor.shape),
        })?;
        let open = |slice| {
            let mut codec = Self {
                checkpoint: Arc::clone(checkpoint),
                tensor: tensor.clone(),
                slice,
                shape: MatrixShape { slices: 1, ..shape },
                resident: None,
            };
            if resident {
                let len = shape.rows.saturating_mul(shape.cols);
                let mut values = vec![0.0; usize::try_from(len).unwrap_or(usize::MAX)];
                codec.read(0..shape.rows, &mut values)?;
                codec.resident = Some(values);
            }
            Ok(Arc::new(codec) as Arc<dyn Codec>)
        };
        (0..shape.slices).map(open).collect()
    }

    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), CodecError> {
        self.tensor.expr.read_rows(&self.checkpoint, self.slice, rows, out).map_err(|error| {
            CodecError::Source { tensor: self.tensor.name.clone(), message: error.to_string() }
        })
    }
}

impl Codec for SourceCodec {
    fn shape(&self) -> MatrixShape {
        self.shape
    }

    fn decode(&self, rows: Range<u64>, out: &mut [f32], out_stride: usize) -> Result<(), CodecError> {
        let cols = usize::try_from(self.shape.cols).unwrap_or(usize::MAX);
        for (row, out) in rows.zip(out.chunks_mut(out_stride)) {
            match &self.resident {
                Some(values) => {
                    let start = usize::try_from(row).unwrap_or(usize::MAX) * cols;
                    out[..cols].copy_from_slice(&values[start..start + cols]);
                }
                None => self.read(row..row + 1, &mut out[..cols])?,
            }
        }
        Ok(())
    }

    fn as_f32(&self) -> Option<&[f32]> {
        self.resident.as_deref()
    }
}
