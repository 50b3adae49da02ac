//! Importance matrices in plans: which tensors have data, what is written about them, what is missing.

use crate::error::PipelineError;
use kbit_calibrate::{CalibrateError, Coverage, EmptyExperts, Importance, OnMissing};
use kbit_formats::gguf::{Metadata, Value};
use kbit_host::TensorPlan;
use kbit_models::{OutputTensor, Role};
use kbit_types::MatrixShape;
use serde::Serialize;
use std::path::PathBuf;

/// Longest text of llama-quantize's metadata, in bytes.
const LONGEST_TEXT: usize = 127;

/// How a plan uses its importance matrix.
#[derive(Clone, Debug, Serialize)]
pub struct ImportanceUse {
    /// File.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// Matrices that are quantized with regard to it.
    pub weighted: usize,
    /// Matrices that are quantized with regard to the second moments of their inputs.
    pub moments: usize,
    /// Matrices whose scheme would use data that are not there.
    pub without: Vec<String>,
    /// Stacks of experts with data for some of them only.
    pub partial: Vec<PartialTensor>,
}

/// A stack of experts with data for some of them only.
#[derive(Clone, Debug, Serialize)]
pub struct PartialTensor {
    /// Tensor.
    pub tensor: String,
    /// Its experts.
    pub experts: u64,
    /// Experts without data.
    pub empty: Vec<u64>,
}

impl ImportanceUse {
    /// Nothing used so far.
    #[must_use]
    pub fn new(importance: &Importance) -> Self {
        Self {
            path: importance.matrix.path().to_owned(),
            sha256: importance.matrix.sha256().to_owned(),
            weighted: 0,
            moments: 0,
            without: Vec::new(),
            partial: Vec::new(),
        }
    }

    /// Whether `tensor`, which is named `source` in the unpruned model and stored by `plan`, is quantized with regard to `importance`;
    /// notes what is missing.
    ///
    /// # Errors
    /// When the entry belongs to another model. As in llama-quantize, the token embedding is let off.
    pub(crate) fn add(
        &mut self,
        importance: &Importance,
        tensor: &OutputTensor,
        source: &str,
        shape: MatrixShape,
        plan: &TensorPlan,
    ) -> Result<bool, PipelineError> {
        if !plan.uses_importance() {
            return Ok(false);
        }
        let known = match importance.coverage(source, shape.slices, shape.cols) {
            Coverage::Full => true,
            Coverage::Partial(empty) => {
                let experts = shape.slices;
                self.partial.push(PartialTensor { tensor: tensor.name.clone(), experts, empty });
                true
            }
            Coverage::OtherSize { found } if tensor.role != Role::TokenEmbedding => {
                return Err(PipelineError::Calibrate(CalibrateError::Size {
                    path: importance.matrix.path().to_owned(),
                    entry: source.to_owned(),
                    found,
                    slices: shape.slices,
                    cols: shape.cols,
                }));
            }
            Coverage::Absent | Coverage::OtherSize { .. } => {
                self.without.push(tensor.name.clone());
                false
            }
        };
        self.weighted += usize::from(known);
        Ok(known)
    }

    /// Refuses a plan with missing data where the policy says so. llama-imatrix gathers nothing for the token embedding and,
    /// unless asked, for the output; those may be missing.
    pub(crate) fn check(
        &self,
        importance: &Importance,
        is_exempt: impl Fn(&str) -> bool,
    ) -> Result<(), PipelineError> {
        if importance.policy.on_missing == OnMissing::Warn {
            return Ok(());
        }
        let without = self.without.iter().filter(|tensor| !is_exempt(tensor)).cloned();
        let tensors: Vec<String> =
            without.chain(self.partial.iter().map(|partial| partial.tensor.clone())).collect();
        if tensors.is_empty() {
            return Ok(());
        }
        Err(PipelineError::ImportanceMissing { path: self.path.clone(), tensors })
    }

    /// One line for people on what is there, and one on each thing that is not.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        const SHOWN: usize = 8;
        let mut notes = Vec::new();
        if self.weighted > 0 || self.moments == 0 {
            notes.push(format!("importance from {} for {} matrices", self.path.display(), self.weighted));
        }
        if self.moments > 0 {
            notes.push(format!("second moments from {} for {} matrices", self.path.display(), self.moments));
        }
        if !self.without.is_empty() {
            let shown = self.without.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = match self.without.len().saturating_sub(SHOWN) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            notes.push(format!("no importance for {shown}{more}: quantized without"));
        }
        for partial in &self.partial {
            notes.push(format!(
                "{}: no importance for {} of {} experts",
                partial.tensor,
                partial.empty.len(),
                partial.experts
            ));
        }
        notes
    }
}

/// Adds what llama-quantize writes about the importance matrix, in its order and types, at the end.
pub(crate) fn write_metadata(importance: &Importance, metadata: &mut Metadata) {
    let mut write = |key: &str, value: Value| {
        let key = format!("quantize.imatrix.{key}");
        metadata.remove(&key);
        metadata.insert(key, value);
    };
    write("file", Value::String(shortened(&importance.named)));
    if let Some(dataset) = importance.matrix.datasets().first() {
        write("dataset", Value::String(shortened(dataset)));
    }
    let count = |count: u64| Value::U32(u32::try_from(count).unwrap_or(u32::MAX));
    write("entries_count", count(importance.matrix.entries().len() as u64));
    if importance.matrix.chunk_count() > 0 {
        write("chunks_count", count(importance.matrix.chunk_count()));
    }
}

/// What a file's bytes depend on beside the tensors: the data, and how gaps are filled.
pub(crate) fn fingerprint(importance: &Importance) -> serde_json::Value {
    let empty = match importance.policy.empty_experts {
        EmptyExperts::Ones => "ones",
        EmptyExperts::Mean => "mean",
    };
    serde_json::json!({ "sha256": importance.matrix.sha256(), "empty_experts": empty })
}

fn shortened(text: &str) -> String {
    let end = (0..=text.len().min(LONGEST_TEXT)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}
