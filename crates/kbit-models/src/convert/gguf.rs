//! A GGUF file: metadata as it is, tensors in llama-quantize's order.

use super::{Conversion, ConvertOptions, OutputTensor, is_other_modality};
use crate::{Description, ModelError, Role, SourceExpr, describe};
use kbit_formats::gguf::shards::SPLIT_KEYS;
use kbit_formats::gguf::{Gguf, Value};
use kbit_formats::{Checkpoint, SourceTensor};
use std::collections::HashMap;

pub(super) fn convert(
    checkpoint: &Checkpoint,
    file: &Gguf,
    options: &ConvertOptions,
) -> Result<Conversion, ModelError> {
    let mut metadata = file.metadata().clone();
    // llama-quantize writes the first two anew, at the end; the others say how an earlier file was split.
    for key in ["general.quantization_version", "general.file_type"].iter().chain(&SPLIT_KEYS) {
        metadata.remove(key);
    }
    let architecture = metadata.str("general.architecture")?.to_owned();
    if metadata.get("kbit.tensors.name").is_some() {
        return Err(ModelError::Metadata {
            key: "kbit.tensors.name".to_owned(),
            reason: "says that a scheme of kbit packed the file, which cannot be packed again".to_owned(),
        });
    }
    let has_tensor = |name: &str| checkpoint.tensor(name).is_some();
    let description = match describe(&metadata, &has_tensor) {
        Ok(model) => Some(model),
        Err(ModelError::UnknownArchitecture { .. } | ModelError::NotRunnable { .. }) => None,
        Err(error) => return Err(error),
    };
    let roles = match &description {
        Some(model) => checked_roles(checkpoint, model, options)?,
        None => HashMap::new(),
    };
    let mut sources: Vec<&SourceTensor> = checkpoint.tensors().iter().collect();
    sources.sort_by(|a, b| (block(&a.name), &a.name).cmp(&(block(&b.name), &b.name)));
    let mut tensors = Vec::with_capacity(sources.len());
    for tensor in sources {
        let expr = SourceExpr::tensor(tensor);
        expr.check(checkpoint)?;
        let role = roles.get(&tensor.name).copied().unwrap_or_else(|| role(tensor));
        tensors.push(OutputTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), role, expr });
    }
    if let Some(name) = &options.name {
        metadata.insert("general.name", Value::String(name.clone()));
    }
    Ok(Conversion { description, architecture, metadata, tensors, dropped: Vec::new(), places: [None, None] })
}

/// Roles by the table of a known architecture, after checking that every tensor is there in its shape.
fn checked_roles(
    checkpoint: &Checkpoint,
    model: &Description,
    options: &ConvertOptions,
) -> Result<HashMap<String, Role>, ModelError> {
    let mut roles = HashMap::new();
    let mut missing = Vec::new();
    for expected in model.tensors()? {
        match checkpoint.tensor(&expected.name) {
            None if expected.required => missing.push(expected.name),
            None => {}
            Some(tensor) if !expected.fits(&tensor.shape) => {
                let found = tensor.shape.clone();
                return Err(ModelError::Shape { tensor: expected.name, found, wanted: expected.shape });
            }
            Some(_) => {
                roles.insert(expected.name, expected.role);
            }
        }
    }
    if !missing.is_empty() {
        return Err(ModelError::MissingTensors { names: missing });
    }
    // What else a file has is kept, by its name: llama.cpp reads more tensors of some architectures than its converter writes.
    let others = checkpoint.tensors().iter().filter(|tensor| !roles.contains_key(&tensor.name));
    let other: Vec<String> =
        others.map(|tensor| tensor.name.clone()).filter(|name| is_other_modality(name)).collect();
    if !other.is_empty() && !options.pass_through_other_modalities {
        return Err(ModelError::OtherModalities { names: other });
    }
    roles.extend(other.into_iter().map(|name| (name, Role::Other)));
    Ok(roles)
}

/// Role by name and shape, for architectures without a table. Follows llama-quantize's choice of what it quantizes.
fn role(tensor: &SourceTensor) -> Role {
    const KEPT: &[&str] = &[
        "_norm.weight",
        "ffn_gate_inp.weight",
        "position_embd.weight",
        "token_types.weight",
        "ssm_conv1d.weight",
        "shortconv.conv.weight",
        "altup",
        "laurel",
        "per_layer_model_proj",
        "time_mix_first.weight",
        "time_mix_w0.weight",
        "time_mix_w1.weight",
        "time_mix_w2.weight",
        "attn_rel_b.weight",
    ];
    let name = tensor.name.as_str();
    let is_matrix =
        tensor.shape.len() >= 2 && name.ends_with("weight") && !KEPT.iter().any(|part| name.contains(part));
    match name {
        _ if !is_matrix => Role::Vector,
        "token_embd.weight" => Role::TokenEmbedding,
        "output.weight" => Role::Output,
        _ => Role::Matrix,
    }
}

/// The number of a tensor's block; tensors of no block come first.
fn block(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
