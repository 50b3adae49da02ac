//! GGUF -> a Hugging Face folder: the inverse of an architecture's table.
//!
//! Tensors get their Hugging Face names, rows of rotary heads go back from pairs to halves, and config.json is made from the
//! table's keys. The configuration is then converted again, and must give the metadata that it came from: what a folder
//! cannot say is an error, not a silent loss.

use super::config::Config;
use super::{Conversion, ConvertOptions};
use crate::architecture::{Architecture, COMMON, Dim, From, Parameter, Presence, Step, TensorRule, in_layer};
use crate::expr::matrix_shape;
use crate::{Description, ModelError, SourceExpr};
use kbit_formats::Checkpoint;
use kbit_formats::gguf::{Metadata, Value};
use kbit_types::MatrixShape;
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

/// Architectures that have an inverse: GGUF's name, Hugging Face's class and `model_type`.
const EXPORTABLE: &[(&str, &str, &str)] = &[("llama", "LlamaForCausalLM", "llama")];

/// Names that those classes read, where the table knows a value under several.
const CONFIG_KEYS: &[&str] = &[
    "num_hidden_layers",
    "max_position_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "vocab_size",
];

/// A model as a Hugging Face folder has it.
#[derive(Clone, Debug)]
pub struct Export {
    /// Tensors under their Hugging Face names, in the order of the table.
    pub tensors: Vec<ExportTensor>,
    /// config.json, without the dtype and the ids of special tokens.
    pub config: Map<String, Json>,
    /// generation_config.json's sampling settings, where the file recommends some.
    pub sampling: Map<String, Json>,
}

/// A tensor of the folder.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportTensor {
    /// Hugging Face name.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<u64>,
    /// Where its values come from.
    pub expr: SourceExpr,
}

/// Reads what a Hugging Face folder of the GGUF file `checkpoint` holds, without reading a tensor but rotary factors.
///
/// # Errors
/// When it is not GGUF, its architecture has no inverse, or its metadata say what config.json cannot.
pub fn export(checkpoint: &Checkpoint) -> Result<Export, ModelError> {
    let Some(gguf) = checkpoint.gguf() else {
        return Err(ModelError::NotExportable {
            what: checkpoint.path().display().to_string(),
            reason: "it is not GGUF; give the GGUF file that is to become a Hugging Face folder".to_owned(),
        });
    };
    let conversion = super::convert(checkpoint, &ConvertOptions::default())?;
    let name = conversion.architecture.clone();
    let known = EXPORTABLE.iter().find(|(known, ..)| *known == name);
    let (Some((_, class, model_type)), Some(model)) = (known, &conversion.description) else {
        let names: Vec<&str> = EXPORTABLE.iter().map(|(name, ..)| *name).collect();
        return Err(ModelError::NotExportable {
            what: format!("architecture {name}"),
            reason: format!("kbit makes Hugging Face folders of {}; convert such a model", names.join(", ")),
        });
    };
    let architecture = Architecture::by_name(&name)?;
    let metadata = gguf.metadata();
    let mut config = Map::new();
    config.insert("architectures".to_owned(), json!([class]));
    config.insert("model_type".to_owned(), json!(model_type));
    let common = |parameter: &'static Parameter| match parameter.from {
        From::Common => COMMON,
        _ => std::slice::from_ref(parameter),
    };
    for parameter in architecture.parameters.iter().flat_map(common) {
        configure(parameter, &name, metadata, &mut config)?;
    }
    config.entry("vocab_size").or_insert_with(|| json!(model.vocab));
    config.insert("tie_word_embeddings".to_owned(), json!(model.tied_output));
    if let Some(activation) = architecture.forward.as_ref().and_then(|forward| forward.activation.1.first()) {
        config.insert("hidden_act".to_owned(), json!(activation));
    }
    let mut tensors = Vec::new();
    for rule in architecture.rules() {
        let layers = if rule.is_per_layer() { 0..model.layers } else { 0..1 };
        for layer in layers {
            if let Some(tensor) = exported(&conversion, rule, layer, model)? {
                tensors.push(tensor);
            }
        }
    }
    biases(&tensors, &mut config)?;
    if checkpoint.tensor("rope_freqs.weight").is_some() {
        rope_factors(checkpoint, model, &mut config)?;
    }
    check(architecture, metadata, &config)?;
    Ok(Export { tensors, config, sampling: sampling(metadata) })
}

/// Adds what a metadata entry says to config.json.
fn configure(
    parameter: &Parameter,
    architecture: &str,
    metadata: &Metadata,
    config: &mut Map<String, Json>,
) -> Result<(), ModelError> {
    let keys: &[&str] = match parameter.from {
        From::Count(keys) | From::Needed(keys) | From::CountOr(keys, _) | From::Float(keys) => keys,
        From::RopeBase => &["rope_theta"],
        From::RopeScaling => return rope_scaling(architecture, metadata, config),
        _ => &[],
    };
    let key = keys.iter().find(|key| CONFIG_KEYS.contains(key)).or_else(|| keys.first());
    let (Some(key), Some(value)) = (key, metadata.get(&format!("{architecture}.{}", parameter.key))) else {
        return Ok(());
    };
    config.insert((*key).to_owned(), value.to_json());
    Ok(())
}

fn rope_scaling(
    architecture: &str,
    metadata: &Metadata,
    config: &mut Map<String, Json>,
) -> Result<(), ModelError> {
    let full = |key: &str| format!("{architecture}.rope.scaling.{key}");
    let Some(kind) = metadata.opt_str(&full("type"))?.filter(|kind| *kind != "none") else { return Ok(()) };
    let mut scaling = Map::new();
    scaling.insert("rope_type".to_owned(), json!(kind));
    for (key, name) in [
        ("factor", "factor"),
        ("original_context_length", "original_max_position_embeddings"),
        ("yarn_ext_factor", "extrapolation_factor"),
        ("yarn_attn_factor", "attention_factor"),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ] {
        if let Some(value) = metadata.get(&full(key)) {
            scaling.insert(name.to_owned(), value.to_json());
        }
    }
    config.insert("rope_scaling".to_owned(), Json::Object(scaling));
    Ok(())
}

/// The folder's tensor of a rule, if the file has it.
fn exported(
    conversion: &Conversion,
    rule: &TensorRule,
    layer: usize,
    model: &Description,
) -> Result<Option<ExportTensor>, ModelError> {
    let name = in_layer(rule.name, layer);
    let found = conversion.tensors.iter().find(|tensor| tensor.name == name);
    let Some(found) = found.filter(|_| rule.computed.is_none()) else {
        return Ok(None);
    };
    if rule.presence == Presence::UnlessTied && model.tied_output {
        return Ok(None);
    }
    let of = found.expr.clone();
    let unpaired = |heads: usize| {
        let heads = heads as u64;
        match found.shape.as_slice() {
            // Of a bias, each value is a row.
            [length] => {
                let column =
                    SourceExpr::Reshape { of: Box::new(of.clone()), shape: MatrixShape::dense(*length, 1) };
                let rows = SourceExpr::UnpermuteRows { of: Box::new(column), heads };
                SourceExpr::Reshape { of: Box::new(rows), shape: matrix_shape(&found.shape) }
            }
            _ => SourceExpr::UnpermuteRows { of: Box::new(of.clone()), heads },
        }
    };
    let expr = match rule.steps {
        [] => of,
        [Step::PairRows(Dim::Heads)] => unpaired(model.heads),
        [Step::PairRows(Dim::KvHeads)] => unpaired(model.kv_heads),
        _ => {
            return Err(ModelError::NotExportable {
                what: format!("tensor {name}"),
                reason: "its way from Hugging Face has no exact inverse; keep the original checkpoint"
                    .to_owned(),
            });
        }
    };
    Ok(Some(ExportTensor { name: in_layer(rule.source, layer), shape: found.shape.clone(), expr }))
}

/// config.json says of biases only whether all projections of a kind have one.
fn biases(tensors: &[ExportTensor], config: &mut Map<String, Json>) -> Result<(), ModelError> {
    for (key, projections) in [
        ("attention_bias", &["q_proj", "k_proj", "v_proj", "o_proj"][..]),
        ("mlp_bias", &["gate_proj", "up_proj", "down_proj"]),
    ] {
        let count = |ending: &str| {
            let of = |projection: &&&str| {
                tensors.iter().any(|tensor| tensor.name.ends_with(&format!(".{projection}.{ending}")))
            };
            projections.iter().filter(of).count()
        };
        let found = count("bias");
        if found != 0 && found != count("weight") {
            return Err(ModelError::NotExportable {
                what: "the model".to_owned(),
                reason: format!(
                    "{found} of the {} projections {} have biases, and config.json knows {key} for all or none; keep the original checkpoint",
                    projections.len(),
                    projections.join(", ")
                ),
            });
        }
        config.insert(key.to_owned(), json!(found > 0));
    }
    Ok(())
}

/// Finds the settings that the rotary factors of Llama 3 were made from: the factor is what the lowest frequency shows, the
/// bounds are those of every release, and the original context is found by trial, to the bit.
fn rope_factors(
    checkpoint: &Checkpoint,
    model: &Description,
    config: &mut Map<String, Json>,
) -> Result<(), ModelError> {
    let tensor = checkpoint.tensor("rope_freqs.weight");
    let count = tensor.map_or(0, |tensor| tensor.shape.iter().product::<u64>());
    let wanted = (model.head_dim / 2) as u64;
    let expr = tensor.map(SourceExpr::tensor).filter(|_| count == wanted);
    let mut found = vec![0.0; usize::try_from(wanted).unwrap_or(0)];
    if let Some(expr) = expr {
        expr.read_rows(checkpoint, 0, 0..1, &mut found)?;
    }
    let factor = found.iter().copied().fold(1.0, f32::max);
    // The releases' context first, then any other power of two.
    for context in std::iter::once(8192u32).chain((4..24).map(|power| 1 << power)) {
        let scaling = json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        });
        config.insert("rope_scaling".to_owned(), scaling);
        if Config::of(config.clone()).llama3_rope_factors()?.as_ref() == Some(&found) {
            return Ok(());
        }
    }
    Err(ModelError::NotExportable {
        what: "tensor rope_freqs.weight".to_owned(),
        reason: "its factors are not made as in Llama 3, and the file does not say how they were; keep the original checkpoint".to_owned(),
    })
}

/// What config.json becomes when it is converted must be what it was made from.
fn check(
    architecture: &Architecture,
    metadata: &Metadata,
    config: &Map<String, Json>,
) -> Result<(), ModelError> {
    let mut again = Config::of(config.clone());
    let _ = again.architecture(Some(architecture.name))?;
    let again = again.parameters(architecture)?;
    let again: HashMap<&str, &Value> = again.entries.iter().chain(again.early.iter()).collect();
    let prefix = format!("{}.", architecture.name);
    for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let same = match again.get(key) {
            Some(other) => *other == value || other.to_json() == value.to_json(),
            None => is_default(key, value),
        };
        if !same {
            return Err(ModelError::NotExportable {
                what: format!("metadata {key}"),
                reason: "config.json of this architecture has no place for it; keep the original checkpoint"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// Entries that say what holds without them.
fn is_default(key: &str, value: &Value) -> bool {
    let (integer, is_number) = (value.as_integer(), |wanted| value.as_integer() == Some(wanted));
    match key.rsplit_once('.').map_or(key, |(_, last)| last) {
        "expert_count" | "expert_used_count" | "sliding_window" => is_number(0),
        "type" => *value == Value::String("none".to_owned()),
        // Written by older converters, which the engine does not read.
        "tensor_data_layout" => integer.is_none(),
        _ => false,
    }
}

/// Sampling settings under their names in generation_config.json.
fn sampling(metadata: &Metadata) -> Map<String, Json> {
    const NAMES: [(&str, &str); 5] = [
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("temp", "temperature"),
        ("penalty_repeat", "repetition_penalty"),
    ];
    let found = NAMES.iter().filter_map(|(key, name)| {
        let value = metadata.get(&format!("general.sampling.{key}"))?;
        Some(((*name).to_owned(), value.to_json()))
    });
    found.collect()
}
