//! The plan of one output file: for each tensor the scheme, its parts and their exact bytes, the fallback if the
//! scheme cannot take the shape, and the size of everything. Running a plan decides nothing more.

use crate::edit::Edits;
use crate::error::PipelineError;
use crate::importance::{self, ImportanceUse};
use crate::recipe::{Chosen, Main, Recipe};
use kbit_calibrate::{Coverage, Importance};
use kbit_formats::gguf::{Array, GgufLayout, Metadata, NewTensor, Split, Value};
use kbit_formats::packed::{PackedIndex, PackedPart, PackedScheme, PackedTensor};
use kbit_formats::{Checkpoint, Element, SourceTensor};
use kbit_host::{HostError, Isolation, MatrixInfo, OpenScheme, PartType, Registry, TensorPlan};
use kbit_mixes::{Choice, Stored};
use kbit_models::{Conversion, OutputTensor, Role, SourceExpr};
use kbit_types::{Dtype, GgmlType, MatrixShape};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes between tensors are padded to this.
pub(crate) const ALIGNMENT: u64 = 32;
/// A SHA-256 in hexadecimal, before it is known; patched in place once the tensor is written.
pub(crate) const UNKNOWN_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What one output file will hold.
pub struct FilePlan {
    /// Name in tables.
    pub label: String,
    /// Schemes that the tensors refer to, opened.
    pub schemes: Vec<UsedScheme>,
    /// One entry a tensor of the model, in file order.
    pub tensors: Vec<PlannedTensor>,
    /// Tensors as they stand in the file.
    pub stored: Vec<NewTensor>,
    /// Exact bytes of the header, offsets and size of the file.
    pub layout: GgufLayout,
    /// Whether hashes are patched into the header at the end.
    pub provenance: bool,
    /// Tensors whose types need importance that is not there.
    pub without_importance: Vec<String>,
    /// Tensors with their types that are quantized in the source already, and are to be quantized anew.
    pub requantized: Vec<(String, GgmlType)>,
    /// Whether they may be.
    pub allow_requantize: bool,
    /// The importance matrix, where there is one.
    pub importance: Option<Arc<Importance>>,
    /// What is made of it.
    pub importance_use: Option<ImportanceUse>,
    /// What is changed about the model.
    pub edits: Edits,
}

/// A scheme that a plan uses.
pub struct UsedScheme {
    /// Scheme and parameters.
    pub chosen: Chosen,
    /// Opened, ready to plan and encode.
    pub open: OpenScheme,
}

/// How one tensor of the model is stored.
pub struct PlannedTensor {
    /// Index into the conversion's tensors.
    pub source: usize,
    /// Shape as `[slices, rows, cols]`.
    pub shape: MatrixShape,
    /// How.
    pub store: Store,
    /// First of its entries in [`FilePlan::stored`].
    pub first_stored: usize,
    /// Stored bytes.
    pub bytes: u64,
    /// Set where the chosen scheme could not take the shape.
    pub fallback: Option<Fallback>,
    /// Whether its scheme is given the importance of its columns.
    pub importance: bool,
    /// Whether its scheme is given the second moments of its inputs.
    pub moments: bool,
    /// Whether its scheme is given the deviation of the weights that produce its columns.
    pub producer: bool,
}

/// How a tensor is stored.
pub enum Store {
    /// Little-endian f32, as norms and biases are.
    F32,
    /// The bytes of the source, in its type.
    Copy {
        /// The type.
        ty: GgmlType,
    },
    /// A type that no loaded plugin encodes: it can be planned, not written.
    NoEncoder {
        /// The type.
        ty: GgmlType,
    },
    /// By a scheme.
    Scheme {
        /// Index into [`FilePlan::schemes`].
        scheme: usize,
        /// Parts and sizes.
        plan: TensorPlan,
        /// For each part, its entries in [`FilePlan::stored`], counted from `first_stored`: body, then head.
        parts: Vec<(usize, Option<usize>)>,
    },
}

/// Why and at what cost a tensor is stored otherwise than asked.
#[derive(Clone, Debug, Serialize)]
pub struct Fallback {
    /// Tensor.
    pub tensor: String,
    /// Scheme that was asked for.
    pub wanted: String,
    /// What is stored instead.
    pub stored: String,
    /// The scheme's reason.
    pub reason: String,
    /// Bits a weight of what is stored.
    pub bits: f64,
    /// Bits a weight of what was asked for, where that is known beforehand.
    pub wanted_bits: Option<f64>,
}

impl std::fmt::Display for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}", self.tensor, self.what())
    }
}

impl Fallback {
    /// What is stored instead of what, and why.
    fn what(&self) -> String {
        let wanted = match self.wanted_bits {
            Some(bits) => format!(" instead of {} at {bits}", self.wanted),
            None => String::new(),
        };
        format!("stored as {} at {} bits a weight{wanted}: {}", self.stored, self.bits, self.reason)
    }

    /// A line for each, but one for all that differ in the tensor alone.
    #[must_use]
    pub fn lines<'f>(fallbacks: impl Iterator<Item = &'f Self>) -> Vec<String> {
        let mut alike: Vec<(String, Vec<&Self>)> = Vec::new();
        for fallback in fallbacks {
            let what = fallback.what();
            match alike.iter_mut().find(|(known, _)| *known == what) {
                Some((_, all)) => all.push(fallback),
                None => alike.push((what, vec![fallback])),
            }
        }
        let line = |(what, all): (String, Vec<&Self>)| match all.as_slice() {
            [one] => one.to_string(),
            [first, .., last] => {
                format!("{} tensors, {} to {}, are {what}", all.len(), first.tensor, last.tensor)
            }
            [] => what,
        };
        alike.into_iter().map(line).collect()
    }
}

/// A line of `--dry-run`.
#[derive(Clone, Debug, Serialize)]
pub struct PlanLine {
    /// Tensor of the model.
    pub tensor: String,
    /// Row-major shape.
    pub shape: Vec<u64>,
    /// Scheme label or `F32`.
    pub scheme: String,
    /// Stored bytes.
    pub bytes: u64,
    /// Stored bits a weight.
    pub bits_per_weight: f64,
}

impl FilePlan {
    /// Plans the file that `recipe` makes of `conversion`, which reads `checkpoint`.
    ///
    /// # Errors
    /// When a scheme refuses a tensor for a reason other than its shape, a mix cannot be applied, a name is too long for GGUF, two
    /// stored tensors would have one name, or `fallback_is_error` and a tensor needs a fallback.
    pub fn new(
        checkpoint: &Checkpoint,
        conversion: &Conversion,
        recipe: &Recipe,
        registry: &Registry,
        options: &PlanOptions,
    ) -> Result<Self, PipelineError> {
        let facts = options.edits.facts(&conversion.metadata);
        let choices = match &recipe.main {
            Main::Scheme(_) => None,
            Main::Mix(mix) => {
                // llama-quantize keeps the order of a source's shards, and counts by it.
                let in_given_order = matches!(options.split, Some(SplitBy::Source(_)));
                let importance = options.importance.is_some();
                Some(mix.choose(conversion, &facts, recipe, importance, in_given_order)?)
            }
        };
        let importance = options.importance.clone();
        let mut builder = Builder {
            registry,
            importance: importance.as_deref(),
            importance_use: importance.as_deref().map(ImportanceUse::new),
            edits: &options.edits,
            checkpoint,
            conversion,
            schemes: Vec::new(),
            stored: Vec::new(),
            tensors: Vec::new(),
            requantized: Vec::new(),
        };
        for (source, tensor) in conversion.tensors.iter().enumerate() {
            match &choices {
                None => builder.by_role(source, tensor, recipe)?,
                Some(choices) => builder.by_choice(source, tensor, recipe, &choices[source])?,
            }
        }
        let Builder { schemes, stored, tensors, requantized, importance_use, .. } = builder;
        if let (Some(importance), Some(found)) = (&importance, &importance_use) {
            found.check(importance, |name| {
                conversion.tensors.iter().any(|tensor| {
                    tensor.name == name && matches!(tensor.role, Role::TokenEmbedding | Role::Output)
                })
            })?;
        }
        let fallbacks: Vec<_> = tensors.iter().filter_map(|tensor| tensor.fallback.clone()).collect();
        if options.fallback_is_error && !fallbacks.is_empty() {
            return Err(PipelineError::Fallbacks { label: recipe.label.clone(), fallbacks });
        }
        let lacks_importance = |tensor: &&PlannedTensor| {
            let name = options.edits.original_name(&conversion.tensors[tensor.source].name);
            choices.as_ref().is_some_and(|choices| choices[tensor.source].needs_importance)
                && !matches!(tensor.store, Store::Copy { .. })
                && options.importance.as_ref().is_none_or(|importance| {
                    let MatrixShape { slices, cols, .. } = tensor.shape;
                    matches!(importance.coverage(&name, slices, cols), Coverage::Absent)
                })
        };
        let without_importance = tensors
            .iter()
            .filter(lacks_importance)
            .map(|tensor| conversion.tensors[tensor.source].name.clone())
            .collect();
        let context = MetadataContext { checkpoint, conversion, recipe, options, facts: &facts };
        let metadata = metadata(&context, &schemes, &stored, &tensors)?;
        let layout = match &options.split {
            None => GgufLayout::new(&metadata, &stored, ALIGNMENT)?,
            Some(split) => {
                let split = split.of(conversion, &tensors, stored.len());
                GgufLayout::split(&metadata, &stored, ALIGNMENT, &split, false)?
            }
        };
        Ok(Self {
            label: recipe.label.clone(),
            schemes,
            tensors,
            stored,
            layout,
            provenance: options.provenance,
            without_importance,
            requantized,
            allow_requantize: options.allow_requantize,
            importance,
            importance_use,
            edits: options.edits.clone(),
        })
    }

    /// Refuses a plan that can be shown but not carried out.
    ///
    /// # Errors
    /// Types without importance that they need, tensors that would be quantized twice, types that no plugin encodes.
    pub fn check(&self) -> Result<(), PipelineError> {
        let label = self.label.clone();
        if !self.without_importance.is_empty() {
            return Err(PipelineError::NeedsImportance { label, tensors: self.without_importance.clone() });
        }
        if !self.requantized.is_empty() && !self.allow_requantize {
            let tensors = self.requantized.iter().map(|(name, ty)| format!("{name} ({ty})")).collect();
            return Err(PipelineError::Requantize { label, tensors });
        }
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .filter_map(|tensor| match tensor.store {
                Store::NoEncoder { ty } => Some(format!("{} ({ty})", self.stored[tensor.first_stored].name)),
                _ => None,
            })
            .collect();
        if tensors.is_empty() { Ok(()) } else { Err(PipelineError::NoEncoder { label, tensors }) }
    }

    /// What it costs that tensors are quantized anew, where some are.
    #[must_use]
    pub fn requantize_warning(&self) -> Option<String> {
        let (name, ty) = self.requantized.first()?;
        Some(format!(
            "{} tensors are quantized already (first: {name}, {ty}): the error of the new types comes on top of the old one, \
             and error figures are against the source, so they leave the old one out; `kbit eval --metric kl --reference` \
             against the unquantized model tells both",
            self.requantized.len()
        ))
    }

    /// Stored bytes of all tensors.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Weights of all tensors.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.shape.elements().unwrap_or(u64::MAX)).sum()
    }

    /// Stored bits a weight: of the whole file's tensors, and of the decoder's alone (without embedding and output).
    #[must_use]
    pub fn bits_per_weight(&self, conversion: &Conversion) -> (f64, f64) {
        let decoder = self.tensors.iter().filter(|tensor| {
            !matches!(conversion.tensors[tensor.source].role, Role::TokenEmbedding | Role::Output)
        });
        (bits(self.tensors.iter()), bits(decoder))
    }

    /// What the file's bytes depend on, beside the source: header, schemes, parameters, plugins.
    #[must_use]
    pub fn fingerprint(&self) -> serde_json::Value {
        let schemes: Vec<_> = self.schemes.iter().map(|used| used.chosen.fingerprint()).collect();
        let mut depends = serde_json::json!({ "header": self.layout.sha256(), "schemes": schemes });
        if let (Some(importance), Some(fields)) = (&self.importance, depends.as_object_mut()) {
            fields.insert("importance".to_owned(), importance::fingerprint(importance));
        }
        depends
    }

    /// Bytes of memory for slabs that writing takes at most, beside the program itself.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.tensors.iter().map(crate::convert::memory_bytes).max().unwrap_or(0)
    }

    /// Fallbacks, in file order.
    pub fn fallbacks(&self) -> impl Iterator<Item = &Fallback> {
        self.tensors.iter().filter_map(|tensor| tensor.fallback.as_ref())
    }

    /// One line a tensor.
    #[must_use]
    pub fn lines(&self, conversion: &Conversion) -> Vec<PlanLine> {
        let line = |tensor: &PlannedTensor| {
            let output = &conversion.tensors[tensor.source];
            PlanLine {
                tensor: output.name.clone(),
                shape: output.shape.clone(),
                scheme: match &tensor.store {
                    Store::F32 => "F32".to_owned(),
                    Store::Copy { ty } | Store::NoEncoder { ty } => ty.name().to_owned(),
                    Store::Scheme { scheme, .. } => self.schemes[*scheme].chosen.scheme.id().to_owned(),
                },
                bytes: tensor.bytes,
                bits_per_weight: bits(std::iter::once(tensor)),
            }
        };
        self.tensors.iter().map(line).collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn bits<'a>(tensors: impl Iterator<Item = &'a PlannedTensor>) -> f64 {
    let (bytes, weights) = tensors.fold((0u64, 0u64), |(bytes, weights), tensor| {
        (bytes + tensor.bytes, weights + tensor.shape.elements().unwrap_or(0))
    });
    if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 }
}

/// Choices that hold for every tensor of a plan.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// A fallback is an error instead of a warning.
    pub fallback_is_error: bool,
    /// Write hashes and the plan into the file.
    pub provenance: bool,
    /// Quantize tensors that are quantized in the source already.
    pub allow_requantize: bool,
    /// Metadata set by hand. Layers to prune must be left out of the conversion already, by [`Edits::prune`].
    pub edits: Edits,
    /// Importance of the columns of the matrices.
    pub importance: Option<Arc<Importance>>,
    /// Several files instead of one.
    pub split: Option<SplitBy>,
}

/// How an output is shared out among files.
#[derive(Clone, Debug)]
pub enum SplitBy {
    /// Files with tensors of so many bytes at most.
    Bytes(u64),
    /// As the source is: the file of each tensor of the model. See [`SplitBy::keep`].
    Source(HashMap<String, usize>),
}

impl SplitBy {
    /// Keeps the shards of `checkpoint`: puts the tensors of `conversion` into the order of its files, as llama-quantize does
    /// with `--keep-split`, and remembers the file of each. `None` where the source is one file.
    ///
    /// # Errors
    /// When the source is not GGUF.
    pub fn keep(checkpoint: &Checkpoint, conversion: &mut Conversion) -> Result<Option<Self>, PipelineError> {
        let Some(gguf) = checkpoint.gguf() else {
            return Err(PipelineError::NoShards { path: checkpoint.path().to_owned() });
        };
        if gguf.paths().len() < 2 {
            return Ok(None);
        }
        let place = |tensor: &OutputTensor| {
            let sources = tensor.expr.sources();
            sources.first().and_then(|name| checkpoint.tensor(name)).map_or((0, 0), SourceTensor::place)
        };
        conversion.tensors.sort_by_key(place);
        let files = conversion.tensors.iter().map(|tensor| (tensor.name.clone(), place(tensor).0)).collect();
        Ok(Some(Self::Source(files)))
    }

    /// The file of each of `stored` arrays.
    fn of(&self, conversion: &Conversion, tensors: &[PlannedTensor], stored: usize) -> Split {
        match self {
            Self::Bytes(bytes) => Split::Bytes(*bytes),
            Self::Source(files) => {
                let mut shares = vec![0; stored];
                for (index, tensor) in tensors.iter().enumerate() {
                    let end = tensors.get(index + 1).map_or(stored, |next| next.first_stored);
                    let file = files.get(&conversion.tensors[tensor.source].name).copied().unwrap_or(0);
                    shares[tensor.first_stored..end].fill(file);
                }
                Split::Files(shares)
            }
        }
    }
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            fallback_is_error: false,
            provenance: true,
            allow_requantize: false,
            edits: Edits::default(),
            importance: None,
            split: None,
        }
    }
}

/// The shape of an output tensor as slices of matrices; `None` for more than three axes.
pub(crate) fn matrix_shape(shape: &[u64]) -> Option<MatrixShape> {
    match *shape {
        [cols] => Some(MatrixShape::dense(1, cols)),
        [rows, cols] => Some(MatrixShape::dense(rows, cols)),
        [slices, rows, cols] => Some(MatrixShape { rows, cols, slices }),
        _ => None,
    }
}

/// True of tensors whose inputs are looked up, or are those of no block: no second moments are gathered for them.
const fn lacks_inputs(role: Role) -> bool {
    matches!(role, Role::TokenEmbedding | Role::Output)
}

struct Builder<'a> {
    registry: &'a Registry,
    checkpoint: &'a Checkpoint,
    conversion: &'a Conversion,
    edits: &'a Edits,
    importance: Option<&'a Importance>,
    importance_use: Option<ImportanceUse>,
    schemes: Vec<UsedScheme>,
    stored: Vec<NewTensor>,
    tensors: Vec<PlannedTensor>,
    requantized: Vec<(String, GgmlType)>,
}

impl Builder<'_> {
    /// One scheme for all matrices, but for rules.
    fn by_role(
        &mut self,
        source: usize,
        tensor: &OutputTensor,
        recipe: &Recipe,
    ) -> Result<(), PipelineError> {
        let main = match &recipe.main {
            Main::Scheme(chosen) => Some(chosen),
            Main::Mix(_) => None,
        };
        let chosen = match recipe.rule(&tensor.name) {
            _ if !is_quantizable(tensor.role) => None,
            Some(chosen) => chosen,
            None => main,
        };
        // Blocks of the very type that is asked for are taken over.
        let stored = kept_type(self.checkpoint, tensor).filter(|ty| ty.is_quantized());
        match (chosen, stored) {
            (Some(chosen), Some(ty)) if chosen.scheme.ggml_type() == Some(ty) => {
                self.keep(source, tensor, ty)
            }
            _ => self.add(source, tensor, chosen, false),
        }
    }

    /// As a mix has chosen.
    fn by_choice(
        &mut self,
        source: usize,
        tensor: &OutputTensor,
        recipe: &Recipe,
        choice: &Choice,
    ) -> Result<(), PipelineError> {
        let stored = kept_type(self.checkpoint, tensor);
        let ty = match (choice.stored, stored) {
            (Stored::Elsewhere, _) => {
                return self.add(source, tensor, recipe.rule(&tensor.name).flatten(), false);
            }
            (Stored::Kept, None | Some(GgmlType::F32)) => return self.add(source, tensor, None, false),
            (Stored::Kept, Some(ty)) => return self.keep(source, tensor, ty),
            (Stored::As(GgmlType::F32), _) => return self.add(source, tensor, None, false),
            (Stored::As(ty), Some(stored)) if ty == stored => return self.keep(source, tensor, ty),
            (Stored::As(ty), _) => ty,
        };
        match self.registry.scheme(&format!("ggml:{}", ty.name().to_lowercase())) {
            Ok(scheme) => {
                let params = scheme.resolve(&kbit_host::ParamValues::new())?;
                let chosen = Chosen { scheme, params, isolation: Isolation::InProcess };
                self.add(source, tensor, Some(&chosen), choice.needs_importance)?;
            }
            Err(HostError::UnknownScheme { .. }) => {
                self.store_in(source, tensor, ty, Store::NoEncoder { ty })?;
            }
            Err(error) => return Err(error.into()),
        }
        if let (Some(wanted), Some(planned)) = (choice.wanted, self.tensors.last_mut()) {
            let columns = tensor.shape.last().copied().unwrap_or(1);
            planned.fallback = Some(Fallback {
                tensor: tensor.name.clone(),
                wanted: wanted.name().to_owned(),
                stored: ty.name().to_owned(),
                reason: format!(
                    "rows of {columns} weights are not whole blocks of {}",
                    wanted.block_elements()
                ),
                bits: ty.bits_per_weight(),
                wanted_bits: Some(wanted.bits_per_weight()),
            });
        }
        Ok(())
    }

    /// The bytes of the source.
    fn keep(&mut self, source: usize, tensor: &OutputTensor, ty: GgmlType) -> Result<(), PipelineError> {
        self.store_in(source, tensor, ty, Store::Copy { ty })
    }

    /// One array of the type `ty`.
    fn store_in(
        &mut self,
        source: usize,
        tensor: &OutputTensor,
        ty: GgmlType,
        store: Store,
    ) -> Result<(), PipelineError> {
        let shape = slices_of(&tensor.shape).ok_or_else(|| too_large(tensor))?;
        let bytes =
            shape.elements().and_then(|count| ty.bytes_for(count)).ok_or_else(|| too_large(tensor))?;
        let first_stored = self.stored.len();
        self.store_plain(tensor, ty);
        self.tensors.push(PlannedTensor {
            source,
            shape,
            store,
            first_stored,
            bytes,
            fallback: None,
            importance: false,
            moments: false,
            producer: false,
        });
        Ok(())
    }

    /// By a scheme, or as f32. `refused_later`: a lack of importance is told with that of other tensors, by [`FilePlan::check`].
    fn add(
        &mut self,
        source: usize,
        tensor: &OutputTensor,
        chosen: Option<&Chosen>,
        refused_later: bool,
    ) -> Result<(), PipelineError> {
        let Some(chosen) = chosen else {
            return self.store_in(source, tensor, GgmlType::F32, Store::F32);
        };
        if let Some(ty) = stored_type(self.checkpoint, tensor).filter(|ty| ty.is_quantized()) {
            self.requantized.push((tensor.name.clone(), ty));
        }
        let shape = matrix_shape(&tensor.shape).ok_or_else(|| PipelineError::Axes {
            tensor: tensor.name.clone(),
            shape: tensor.shape.clone(),
        })?;
        let first_stored = self.stored.len();
        let mut planned = self.plan(chosen, tensor, shape)?;
        let mut other = GgmlType::F16;
        if let Ok((_, plan)) = &planned
            && plan.requires_hessian()
            && lacks_inputs(tensor.role)
            && !self.has_moments(tensor, shape)
        {
            planned = Err("second moments are gathered for matrices in blocks alone".to_owned());
            if shape.cols.is_multiple_of(GgmlType::Q8_0.block_elements()) {
                other = GgmlType::Q8_0;
            }
        }
        let (scheme, plan, fallback) = match planned {
            Ok((scheme, plan)) => (scheme, plan, None),
            Err(reason) => {
                let instead = self.registry.scheme(&format!("ggml:{}", other.name().to_lowercase()))?;
                let params = instead.resolve(&kbit_host::ParamValues::new())?;
                let instead = Chosen { scheme: instead, params, isolation: Isolation::InProcess };
                let (scheme, plan) = self
                    .plan(&instead, tensor, shape)?
                    .map_err(|reason| PipelineError::NoFallback { tensor: tensor.name.clone(), reason })?;
                let fallback = Fallback {
                    tensor: tensor.name.clone(),
                    wanted: chosen.scheme.id().to_owned(),
                    stored: other.name().to_owned(),
                    reason,
                    bits: other.bits_per_weight(),
                    wanted_bits: chosen.scheme.ggml_type().map(GgmlType::bits_per_weight),
                };
                (scheme, plan, Some(fallback))
            }
        };
        let importance = self.has_importance(scheme, tensor, shape, &plan, refused_later)?;
        let moments = plan.uses_hessian() && self.has_moments(tensor, shape);
        if plan.requires_hessian() && !moments {
            let cure = "gather them with `kbit calibrate --second-moments` and give the file by `--imatrix FILE` (`importance: FILE` in a \
                        configuration), or choose another scheme for it by `--map` (`rules`)";
            return Err(self.needs(scheme, tensor, "second moments of its inputs", cure));
        }
        if let Some(found) = self.importance_use.as_mut().filter(|_| moments) {
            found.moments += 1;
        }
        let producer = self.has_producer(scheme, tensor, shape, &plan)?;
        let slice_bytes = plan.total_bytes(shape.rows).ok_or_else(|| too_large(tensor))?;
        let bytes = slice_bytes.checked_mul(shape.slices).ok_or_else(|| too_large(tensor))?;
        let parts = match self.schemes[scheme].chosen.scheme.ggml_type() {
            Some(ty) => {
                self.store_plain(tensor, ty);
                vec![(0, None)]
            }
            None => self.store_parts(tensor, shape, &plan, first_stored)?,
        };
        let store = Store::Scheme { scheme, plan, parts };
        self.tensors.push(PlannedTensor {
            source,
            shape,
            store,
            first_stored,
            bytes,
            fallback,
            importance,
            moments,
            producer,
        });
        Ok(())
    }

    /// Whether the scheme is given the importance of the tensor's columns; refuses a scheme that needs what is not there.
    fn has_importance(
        &mut self,
        scheme: usize,
        tensor: &OutputTensor,
        shape: MatrixShape,
        plan: &TensorPlan,
        refused_later: bool,
    ) -> Result<bool, PipelineError> {
        let given = match (self.importance, &mut self.importance_use) {
            (Some(importance), Some(found)) => {
                let source = self.edits.original_name(&tensor.name);
                found.add(importance, tensor, &source, shape, plan)?
            }
            _ => false,
        };
        let needs = |what: &str, cure| self.needs(scheme, tensor, what, cure);
        if given || !plan.requires_importance() || refused_later {
            return Ok(given);
        }
        Err(match self.importance {
            None => needs(
                "an importance matrix",
                "gather one by `kbit calibrate MODEL --text FILE -o FILE` and give it by `--imatrix FILE` (`importance: FILE` in a \
                 configuration), or choose another scheme",
            ),
            Some(importance) => needs(
                &format!("importance, and {} has none for this tensor", importance.matrix.path().display()),
                "choose another scheme for it by `--map` (`rules`), or gather the importance anew",
            ),
        })
    }

    /// Whether there are second moments of the tensor's inputs.
    fn has_moments(&self, tensor: &OutputTensor, shape: MatrixShape) -> bool {
        self.importance.is_some_and(|importance| {
            let source = self.edits.original_name(&tensor.name);
            importance.matrix.has_moments(&source, shape.slices, shape.cols)
        })
    }

    /// Whether the scheme is given the deviation of the weights that produce the tensor's columns.
    fn has_producer(
        &self,
        scheme: usize,
        tensor: &OutputTensor,
        shape: MatrixShape,
        plan: &TensorPlan,
    ) -> Result<bool, PipelineError> {
        let given = plan.uses_producer() && self.conversion.producer(&tensor.name, shape).is_some();
        if plan.requires_producer() && !given {
            let cure = "choose another scheme for it by `--map` (`rules`), or another way to select columns";
            return Err(self.needs(
                scheme,
                tensor,
                "the units that produce its inputs, which kbit does not know",
                cure,
            ));
        }
        Ok(given)
    }

    fn needs(&self, scheme: usize, tensor: &OutputTensor, what: &str, cure: &'static str) -> PipelineError {
        PipelineError::NeedsCalibration {
            tensor: tensor.name.clone(),
            scheme: self.schemes[scheme].chosen.scheme.id().to_owned(),
            what: what.to_owned(),
            cure,
        }
    }

    /// The inner error is the scheme's reason for not taking the shape.
    fn plan(
        &mut self,
        chosen: &Chosen,
        tensor: &OutputTensor,
        shape: MatrixShape,
    ) -> Result<Result<(usize, TensorPlan), String>, PipelineError> {
        let known = self.schemes.iter().position(|used| used.chosen.fingerprint() == chosen.fingerprint());
        let scheme = match known {
            Some(index) => index,
            None => {
                let open = chosen.scheme.open(&chosen.params, chosen.isolation)?;
                self.schemes.push(UsedScheme { chosen: chosen.clone(), open });
                self.schemes.len() - 1
            }
        };
        let info = MatrixInfo { tensor: tensor.name.clone(), shape, slice: 0 };
        match self.schemes[scheme].open.plan(&info) {
            Ok(plan) => Ok(Ok((scheme, plan))),
            Err(HostError::Unsupported { message, .. }) => Ok(Err(message)),
            Err(error) => Err(error.into()),
        }
    }

    fn store_plain(&mut self, tensor: &OutputTensor, ty: GgmlType) {
        let dims = tensor.shape.iter().rev().copied().collect();
        self.stored.push(NewTensor { name: tensor.name.clone(), dims, ty });
    }

    fn store_parts(
        &mut self,
        tensor: &OutputTensor,
        shape: MatrixShape,
        plan: &TensorPlan,
        first_stored: usize,
    ) -> Result<Vec<(usize, Option<usize>)>, PipelineError> {
        let mut entries = Vec::new();
        for part in &plan.parts {
            let (ty, size) = part_type(part.dtype);
            let name = format!("{}.{}", tensor.name, part.name);
            let dims = vec![part.group_bytes / size, plan.groups(shape.rows), shape.slices];
            let body = self.stored.len() - first_stored;
            self.stored.push(NewTensor { name: name.clone(), dims, ty });
            let head = (part.head_bytes > 0).then(|| {
                let dims = vec![part.head_bytes, shape.slices];
                self.stored.push(NewTensor { name: format!("{name}.head"), dims, ty: GgmlType::I8 });
                self.stored.len() - 1 - first_stored
            });
            entries.push((body, head));
        }
        Ok(entries)
    }
}

/// Matrices that multiply activations; norms, biases and the like stay f32.
const fn is_quantizable(role: Role) -> bool {
    matches!(role, Role::TokenEmbedding | Role::Output | Role::Matrix)
}

/// llama.cpp's number for a file whose matrices mostly have one of `types`; `None` where it has none.
fn file_type(types: &[GgmlType]) -> Option<u32> {
    let count = |ty: GgmlType| types.iter().filter(|other| **other == ty).count();
    let most = types.iter().copied().max_by_key(|ty| count(*ty)).unwrap_or(GgmlType::F32);
    kbit_mixes::file_type_of(most)
}

/// The type in which a GGUF source stores a tensor that is taken from it as it is.
fn stored_type(checkpoint: &Checkpoint, tensor: &OutputTensor) -> Option<GgmlType> {
    checkpoint.gguf()?;
    let SourceExpr::Tensor { name, .. } = &tensor.expr else { return None };
    Some(match checkpoint.tensor(name)?.element {
        Element::Block(ty) => ty,
        Element::Plain(Dtype::F32) => GgmlType::F32,
        Element::Plain(Dtype::F16) => GgmlType::F16,
        Element::Plain(Dtype::Bf16) => GgmlType::BF16,
        Element::Plain(Dtype::F64) => GgmlType::F64,
        Element::Plain(Dtype::I8) => GgmlType::I8,
        Element::Plain(Dtype::I16) => GgmlType::I16,
        Element::Plain(Dtype::I32) => GgmlType::I32,
        Element::Plain(Dtype::I64) => GgmlType::I64,
        Element::Plain(_) => return None,
    })
}

/// The type in which a tensor can be stored without decoding.
fn kept_type(checkpoint: &Checkpoint, tensor: &OutputTensor) -> Option<GgmlType> {
    stored_type(checkpoint, tensor).or_else(|| tensor.expr.block_type())
}

/// Any shape as slices of matrices: outer axes together.
fn slices_of(shape: &[u64]) -> Option<MatrixShape> {
    let (cols, rest) = shape.split_last().map_or((1, shape), |(cols, rest)| (*cols, rest));
    let (rows, rest) = rest.split_last().map_or((1, rest), |(rows, rest)| (*rows, rest));
    let slices = rest.iter().try_fold(1u64, |product, axis| product.checked_mul(*axis))?;
    Some(MatrixShape { rows, cols, slices })
}

/// The name of a part's element type in a packed file.
const fn part_name(dtype: PartType) -> &'static str {
    match dtype {
        PartType::U8 => "u8",
        PartType::I8 => "i8",
        PartType::I16 => "i16",
        PartType::I32 => "i32",
        PartType::F16 => "f16",
        PartType::Bf16 => "bf16",
        PartType::F32 => "f32",
    }
}

fn too_large(tensor: &OutputTensor) -> PipelineError {
    PipelineError::TooLarge { tensor: tensor.name.clone(), shape: tensor.shape.clone() }
}

/// The ggml type that stores a part, and bytes of an element.
fn part_type(dtype: PartType) -> (GgmlType, u64) {
    match dtype {
        PartType::U8 | PartType::I8 => (GgmlType::I8, 1),
        PartType::I16 => (GgmlType::I16, 2),
        PartType::I32 => (GgmlType::I32, 4),
        PartType::F16 => (GgmlType::F16, 2),
        PartType::Bf16 => (GgmlType::BF16, 2),
        PartType::F32 => (GgmlType::F32, 4),
    }
}

/// What metadata follows from, beside the tensors.
struct MetadataContext<'a> {
    checkpoint: &'a Checkpoint,
    conversion: &'a Conversion,
    recipe: &'a Recipe,
    options: &'a PlanOptions,
    /// Metadata of the source, with what is set by hand.
    facts: &'a Metadata,
}

fn metadata(
    context: &MetadataContext<'_>,
    schemes: &[UsedScheme],
    stored: &[NewTensor],
    tensors: &[PlannedTensor],
) -> Result<Metadata, PipelineError> {
    let MetadataContext { checkpoint, conversion, recipe, options, facts } = *context;
    let mut used: Vec<usize> = Vec::new();
    let mut plain: Vec<GgmlType> = Vec::new();
    let mut index = PackedIndex { tensors: Vec::new(), schemes: Vec::new() };
    for tensor in tensors {
        let Store::Scheme { scheme, plan, .. } = &tensor.store else { continue };
        let chosen = &schemes[*scheme].chosen;
        if let Some(ty) = chosen.scheme.ggml_type() {
            plain.push(ty);
            continue;
        }
        let position = used.iter().position(|known| known == scheme).unwrap_or_else(|| {
            used.push(*scheme);
            index.schemes.push(PackedScheme {
                id: chosen.scheme.id().to_owned(),
                params: canonical(&serde_json::json!(chosen.params)),
                parts: plan
                    .parts
                    .iter()
                    .map(|part| PackedPart {
                        name: part.name.clone(),
                        dtype: part_name(part.dtype).to_owned(),
                    })
                    .collect(),
                plugin_version: chosen.scheme.plugin().version().to_owned(),
                plugin_sha256: chosen.scheme.plugin().sha256().to_owned(),
            });
            used.len() - 1
        });
        index.tensors.push(PackedTensor {
            name: conversion.tensors[tensor.source].name.clone(),
            scheme: u32::try_from(position).unwrap_or(u32::MAX),
            rows: tensor.shape.rows,
            cols: tensor.shape.cols,
            slices: tensor.shape.slices,
        });
    }
    let file_type = match &recipe.main {
        _ if !index.tensors.is_empty() => None,
        Main::Scheme(_) => file_type(&plain),
        Main::Mix(mix) => {
            let types = |tensor| stored_type(checkpoint, tensor).unwrap_or(GgmlType::F32);
            let source = checkpoint.gguf().map(|file| file.metadata());
            let stated = [Some(facts), source].into_iter().flatten();
            let stated =
                stated.filter_map(|metadata| metadata.opt_u32("general.file_type").ok().flatten()).next();
            mix.file_type(stated, conversion.tensors.iter().map(types))
        }
    };
    let mut metadata = conversion.metadata_for(file_type);
    // llama-quantize takes what it says of the importance matrix for the last of what is set by hand.
    options.edits.set(&mut metadata);
    if let Some(importance) = &options.importance {
        importance::write_metadata(importance, &mut metadata);
    }
    options.edits.prune_metadata(facts, &mut metadata);
    if !index.tensors.is_empty() {
        index.write(&mut metadata);
    }
    if options.provenance {
        let plan: Vec<_> = schemes.iter().map(|used| used.chosen.fingerprint()).collect();
        let assigned: Vec<_> = tensors
            .iter()
            .map(|tensor| match tensor.store {
                Store::F32 => serde_json::Value::Null,
                Store::Copy { .. } => "copy".into(),
                Store::NoEncoder { ty } => ty.name().into(),
                Store::Scheme { scheme, .. } => scheme.into(),
            })
            .collect();
        let mut plan = serde_json::json!({ "schemes": plan, "tensors": assigned });
        if let Main::Mix(mix) = &recipe.main {
            plan["mix"] = serde_json::json!({ "name": mix.label(), "options": recipe.main.params() });
        }
        if let (Some(importance), Some(fields)) = (&options.importance, plan.as_object_mut()) {
            fields.insert("importance".to_owned(), importance::fingerprint(importance));
            let hash = importance.matrix.sha256().to_owned();
            metadata.insert("kbit.calibration.sha256", Value::String(hash));
        }
        let names = tensors.iter().map(|tensor| conversion.tensors[tensor.source].name.clone()).collect();
        let hashes = |count: usize| Value::Array(Array::String(vec![UNKNOWN_HASH.to_owned(); count]));
        metadata.insert("kbit.version", Value::String(env!("CARGO_PKG_VERSION").to_owned()));
        metadata.insert("kbit.plan", Value::String(canonical(&plan)));
        metadata.insert("kbit.source.name", Value::Array(Array::String(names)));
        metadata.insert("kbit.source.sha256", hashes(tensors.len()));
        metadata.insert("kbit.source.root", Value::String(UNKNOWN_HASH.to_owned()));
        metadata.insert("kbit.tensor_sha256", hashes(stored.len()));
    }
    Ok(metadata)
}

/// JSON without spaces; maps are already ordered by their types.
pub(crate) fn canonical(value: &serde_json::Value) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallbacks_that_differ_in_the_tensor_alone_have_one_line() {
        let fallback = |tensor: &str, reason: &str| Fallback {
            tensor: tensor.to_owned(),
            wanted: "Q4_K".to_owned(),
            stored: "Q5_0".to_owned(),
            reason: reason.to_owned(),
            bits: 5.5,
            wanted_bits: Some(4.5),
        };
        let all = [fallback("a", "x"), fallback("b", "y"), fallback("c", "x"), fallback("d", "x")];
        assert_eq!(
            Fallback::lines(all.iter()),
            [
                "3 tensors, a to d, are stored as Q5_0 at 5.5 bits a weight instead of Q4_K at 4.5: x",
                "b is stored as Q5_0 at 5.5 bits a weight instead of Q4_K at 4.5: y",
            ]
        );
    }
}
