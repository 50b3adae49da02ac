//! What stands behind the figures: values item by item, and generated texts.

use crate::{DataInfo, Record};
use serde::{Deserialize, Serialize};

/// The values behind one figure, item by item: what paired tests between any two models or schemes need.
///
/// The items are the windows of a text or the documents of a task, in their order; two records on the same `data` have the same
/// items. The figure is `sum(values) / sum(weights)`, for a perplexity the `exp` of that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Items {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Model id.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Metric that the values are of: `nll`, `kl_divergence`, `accuracy`, ...
    pub metric: String,
    /// Arithmetic of the engine.
    pub mode: String,
    /// Types of the engine's KV cache.
    pub cache_type: String,
    /// Text or task.
    pub data: DataInfo,
    /// One value an item.
    pub values: Vec<f64>,
    /// What each value counts for, as the scored tokens of a window; `None` where all count 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f64>>,
}

impl Record for Items {
    fn schema(&self) -> u32 {
        self.schema
    }
}

/// A text that a model generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Model id.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Arithmetic of the engine.
    pub mode: String,
    /// Types of the engine's KV cache.
    pub cache_type: String,
    /// Name of the prompt, or of the task and its item.
    pub name: String,
    /// What the model was given.
    pub prompt: String,
    /// What it wrote.
    pub text: String,
    /// What it should have written, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Seed of the sampling.
    pub seed: u64,
}

impl Record for Sample {
    fn schema(&self) -> u32 {
        self.schema
    }
}
