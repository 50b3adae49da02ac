//! A Hugging Face folder, by the table of its architecture.

use super::config::{Config, read_object};
use super::{Conversion, ConvertOptions, OutputTensor, general, is_other_modality};
use crate::architecture::{Architecture, Presence, TensorRule, Transform, in_layer};
use crate::expr::matrix_shape;
use crate::{Description, ModelError, Role, SourceExpr, describe};
use kbit_formats::gguf::{Metadata, Value};
use kbit_formats::{Checkpoint, SourceTensor};
use kbit_tokenizers::TokenizerError;
use kbit_types::MatrixShape;
use std::collections::{HashMap, HashSet};
use std::path::Path;

pub(super) fn convert(
    checkpoint: &Checkpoint,
    folder: &Path,
    options: &ConvertOptions,
) -> Result<Conversion, ModelError> {
    let config = Config::read(folder)?;
    let architecture = config.architecture()?;
    for (key, what) in architecture.refused {
        if config.get(key).is_some_and(|value| value.as_u64() != Some(0)) {
            let reason = format!(
                "{key:?} says that this is {what}, which kbit does not convert yet; convert it to GGUF with llama.cpp and give that file"
            );
            return Err(config.bad(reason));
        }
    }
    let activation = config.get("hidden_act").and_then(|name| name.as_str());
    if let Some(name) = activation.filter(|name| !architecture.activation.1.contains(name)) {
        let reason = format!(
            "\"hidden_act\" is {name:?}, where {} models have one of {:?}; the model is not a plain {0}",
            architecture.name, architecture.activation.1
        );
        return Err(config.bad(reason));
    }
    let scales = Scales::find(checkpoint, &config)?;

    let mut hyper = Metadata::new();
    let file_type = config.write_parameters(architecture, &mut hyper)?;
    let vocab_size = config.count("vocab_size")?;

    let rope_factors = config.llama3_rope_factors()?;
    let assigned = assign(checkpoint, folder, architecture, &scales, options)?;
    let names: HashSet<String> =
        assigned.tensors.iter().map(|found| in_layer(found.rule.name, found.layer)).collect();
    let has_tensor = |name: &str| {
        names.contains(name)
            || rope_factors.is_some()
                && architecture
                    .tensors
                    .iter()
                    .any(|rule| rule.transform == Transform::Llama3RopeFactors && rule.name == name)
    };
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", Value::String(architecture.name.to_owned()));
    let mut described = metadata.clone();
    hyper.iter().for_each(|(key, value)| described.insert(key, value.clone()));
    let model = describe(&described, &has_tensor)?;

    let tied = config.get("tie_word_embeddings").and_then(|tied| tied.as_bool()).unwrap_or(false);
    let mut tensors = computed(architecture, &model, rope_factors)?;
    check_layers(&config, &assigned, &model)?;
    check_presence(architecture, &model, &names, tied)?;
    for found in &assigned.tensors {
        tensors.push(output(checkpoint, found, &model, &scales)?);
    }
    for tensor in assigned.other.iter().filter_map(|name| checkpoint.tensor(name)) {
        let expr = SourceExpr::tensor(tensor);
        expr.check(checkpoint)?;
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        tensors.push(OutputTensor { name, shape, role: Role::Other, expr });
    }

    metadata.insert("general.type", Value::String("model".to_owned()));
    general::write_sampling(folder, &mut metadata)?;
    let name = options.name.clone().unwrap_or_else(|| {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        general::title(&absolute.file_name().unwrap_or_default().to_string_lossy())
    });
    metadata.insert("general.name", Value::String(name));
    let parameters =
        tensors.iter().filter(|t| t.role != Role::Other).map(|t| t.shape.iter().product::<u64>()).sum();
    metadata.insert("general.size_label", Value::String(general::size_label(parameters)));
    let before = metadata.len();
    hyper.iter().for_each(|(key, value)| metadata.insert(key, value.clone()));
    let places = [file_type.map(|place| before + place), Some(metadata.len())];
    for (key, value) in tokenizer(folder, u64::from(vocab_size), architecture, options)? {
        metadata.insert(key, value);
    }
    Ok(Conversion {
        description: Some(model),
        architecture: architecture.name.to_owned(),
        metadata,
        tensors,
        dropped: assigned.dropped,
        places,
    })
}

fn tokenizer(
    folder: &Path,
    vocab_size: u64,
    architecture: &Architecture,
    options: &ConvertOptions,
) -> Result<Vec<(String, Value)>, ModelError> {
    let named = options.pre_tokenizer.as_deref();
    match kbit_tokenizers::metadata_from_folder_named(folder, vocab_size, architecture.name, named) {
        Ok(metadata) => Ok(metadata),
        Err(TokenizerError::Absent { .. }) if options.without_tokenizer => {
            Ok(vec![("tokenizer.ggml.model".to_owned(), Value::String("none".to_owned()))])
        }
        Err(TokenizerError::Absent { folder }) => Err(ModelError::NoTokenizer { folder }),
        Err(error) => Err(ModelError::Tokenizer(error)),
    }
}

/// A tensor of the checkpoint with its place in the table.
struct Found<'c> {
    tensor: &'c SourceTensor,
    rule: &'static TensorRule,
    layer: usize,
}

/// All tensors of the checkpoint, shared out.
struct Assigned<'c> {
    tensors: Vec<Found<'c>>,
    /// Tensors of another modality that are to be passed through.
    other: Vec<String>,
    dropped: Vec<String>,
}

/// Gives every tensor of the checkpoint its place, in the converter's order: by file, then by name.
fn assign<'c>(
    checkpoint: &'c Checkpoint,
    folder: &Path,
    architecture: &'static Architecture,
    scales: &Scales,
    options: &ConvertOptions,
) -> Result<Assigned<'c>, ModelError> {
    let rules: HashMap<&str, &'static TensorRule> = architecture
        .tensors
        .iter()
        .filter(|rule| !rule.source.is_empty())
        .map(|rule| (rule.source, rule))
        .collect();
    let shards = shards(folder)?;
    let mut tensors: Vec<&SourceTensor> = checkpoint.tensors().iter().collect();
    tensors.sort_by(|a, b| (shards.get(&a.name), &a.name).cmp(&(shards.get(&b.name), &b.name)));
    let mut assigned = Assigned { tensors: Vec::new(), other: Vec::new(), dropped: Vec::new() };
    let (mut refused, mut unexpected) = (Vec::new(), Vec::new());
    let mut taken = HashSet::new();
    for tensor in tensors {
        if scales.is_companion(&tensor.name) {
            continue;
        }
        // A text model within another has its names behind the other's.
        let name = tensor.name.replace("language_model.", "").replace("text_model.", "");
        let (pattern, layer) = split_layer(&name);
        let place = rules.get(pattern.as_str()).filter(|rule| rule.is_per_layer() == layer.is_some());
        if let Some(rule) = place {
            let layer = layer.unwrap_or(0);
            if taken.insert((rule.name, layer)) {
                assigned.tensors.push(Found { tensor, rule, layer });
            } else {
                unexpected.push(tensor.name.clone());
            }
        } else if architecture.buffers.iter().any(|ending| name.ends_with(ending)) {
            assigned.dropped.push(tensor.name.clone());
        } else if !is_other_modality(&tensor.name) {
            unexpected.push(tensor.name.clone());
        } else if options.pass_through_other_modalities {
            assigned.other.push(tensor.name.clone());
        } else {
            refused.push(tensor.name.clone());
        }
    }
    if !refused.is_empty() {
        return Err(ModelError::OtherModalities { names: refused });
    }
    if !unexpected.is_empty() {
        let architecture = architecture.name.to_owned();
        return Err(ModelError::UnexpectedTensors { architecture, names: unexpected });
    }
    Ok(assigned)
}

/// The file of each tensor, where an index says.
fn shards(folder: &Path) -> Result<HashMap<String, String>, ModelError> {
    if folder.join("model.safetensors").is_file() {
        return Ok(HashMap::new());
    }
    let mut index = read_object(&folder.join("model.safetensors.index.json"))?.unwrap_or_default();
    let Some(serde_json::Value::Object(files)) = index.remove("weight_map") else {
        return Ok(HashMap::new());
    };
    Ok(files.into_iter().filter_map(|(name, file)| Some((name, file.as_str()?.to_owned()))).collect())
}

/// A name with its first number as `{layer}`, and that number.
fn split_layer(name: &str) -> (String, Option<usize>) {
    let mut layer = None;
    let parts = name.split('.').map(|part| {
        let number = part.parse().ok().filter(|number: &usize| layer.is_none() && number.to_string() == part);
        match number {
            Some(number) => {
                layer = Some(number);
                "{layer}"
            }
            None => part,
        }
    });
    let pattern = parts.collect::<Vec<_>>().join(".");
    (pattern, layer)
}

/// No tensor belongs to a block past the last.
fn check_layers(config: &Config, assigned: &Assigned<'_>, model: &Description) -> Result<(), ModelError> {
    let Some(found) = assigned.tensors.iter().find(|found| found.layer >= model.layers) else {
        return Ok(());
    };
    Err(config.bad(format!(
        "the model has {} blocks, yet the checkpoint has the tensor {}; the configuration and the weights belong to different models: get both from one source",
        model.layers, found.tensor.name
    )))
}

fn check_presence(
    architecture: &Architecture,
    model: &Description,
    names: &HashSet<String>,
    tied: bool,
) -> Result<(), ModelError> {
    let mut missing = Vec::new();
    for rule in architecture.tensors {
        let required = match rule.presence {
            Presence::Required => true,
            Presence::Optional => false,
            Presence::UnlessTied => !tied,
        };
        if !required {
            continue;
        }
        let layers = if rule.is_per_layer() { 0..model.layers } else { 0..1 };
        let absent = layers.filter(|&layer| !names.contains(&in_layer(rule.name, layer)));
        missing.extend(absent.map(|layer| in_layer(rule.source, layer)));
    }
    if missing.is_empty() { Ok(()) } else { Err(ModelError::MissingTensors { names: missing }) }
}

/// Tensors that no checkpoint has.
fn computed(
    architecture: &Architecture,
    model: &Description,
    rope_factors: Option<Vec<f32>>,
) -> Result<Vec<OutputTensor>, ModelError> {
    let Some(values) = rope_factors else { return Ok(Vec::new()) };
    let rules = architecture.tensors.iter().filter(|rule| rule.transform == Transform::Llama3RopeFactors);
    rules
        .map(|rule| {
            let shape = rule.shape_in(model);
            let found = vec![values.len() as u64];
            if shape != found {
                return Err(ModelError::Shape { tensor: rule.name.to_owned(), found, wanted: shape });
            }
            let expr = SourceExpr::Constant { values: values.clone(), shape: matrix_shape(&shape) };
            Ok(OutputTensor { name: rule.name.to_owned(), shape, role: rule.role, expr })
        })
        .collect()
}

/// The output tensor of a tensor of the checkpoint.
fn output(
    checkpoint: &Checkpoint,
    found: &Found<'_>,
    model: &Description,
    scales: &Scales,
) -> Result<OutputTensor, ModelError> {
    let Found { tensor, rule, layer } = found;
    let shape = rule.shape_in(model);
    let mut wanted = shape.clone();
    if rule.transform == Transform::Transpose {
        wanted.reverse();
    }
    if tensor.shape != wanted {
        return Err(ModelError::Shape { tensor: tensor.name.clone(), found: tensor.shape.clone(), wanted });
    }
    let source = scales.apply(checkpoint, tensor)?;
    let permuted = |heads: usize| {
        let rows = match shape.as_slice() {
            // Of a bias, each value is a row.
            [length] => {
                SourceExpr::Reshape { of: Box::new(source.clone()), shape: MatrixShape::dense(*length, 1) }
            }
            _ => source.clone(),
        };
        let permuted = SourceExpr::PermuteRows { of: Box::new(rows), heads: heads as u64 };
        match shape.as_slice() {
            [_] => SourceExpr::Reshape { of: Box::new(permuted), shape: matrix_shape(&shape) },
            _ => permuted,
        }
    };
    let expr = match rule.transform {
        Transform::Keep | Transform::Llama3RopeFactors => source,
        Transform::PairQueryRows => permuted(model.heads),
        Transform::PairKeyRows => permuted(model.kv_heads),
        Transform::Transpose => SourceExpr::Transpose(Box::new(source)),
        Transform::Add(constant) => SourceExpr::Add { of: Box::new(source), constant },
    };
    expr.check(checkpoint)?;
    Ok(OutputTensor { name: in_layer(rule.name, *layer), shape, role: rule.role, expr })
}

/// Scales of 8-bit float weights, and tensors that only matter for 8-bit activations.
struct Scales {
    /// Scale tensor by the name of its weight.
    of: HashMap<String, String>,
    companions: HashSet<String>,
    /// Rows and columns that share a scale, where config.json says.
    block: Option<[u64; 2]>,
}

impl Scales {
    fn find(checkpoint: &Checkpoint, config: &Config) -> Result<Self, ModelError> {
        let mut scales = Self { of: HashMap::new(), companions: HashSet::new(), block: None };
        let Some(quantization) = config.get("quantization_config") else { return Ok(scales) };
        let method = quantization["quant_method"].as_str().unwrap_or("");
        let format = quantization["format"].as_str().unwrap_or("");
        let block = match (method, format) {
            ("fp8", _) => &quantization["weight_block_size"],
            ("compressed-tensors", "float-quantized" | "naive-quantized") => {
                let groups = quantization["config_groups"].as_object();
                let group =
                    groups.and_then(|groups| groups.values().next()).unwrap_or(&serde_json::Value::Null);
                &group["weights"]["block_structure"]
            }
            _ => {
                let reason = format!(
                    "the weights are quantized by {method:?} {format:?}, which kbit does not read yet; get the unquantized checkpoint"
                );
                return Err(config.bad(reason));
            }
        };
        if !block.is_null() {
            let sizes = block.as_array().map(Vec::as_slice).unwrap_or_default();
            scales.block = match sizes {
                [rows, cols] => rows.as_u64().zip(cols.as_u64()).map(|(rows, cols)| [rows, cols]),
                _ => None,
            }
            .filter(|[rows, cols]| *rows > 0 && *cols > 0);
            if scales.block.is_none() {
                return Err(config.bad(format!(
                    "the weights' blocks are {block}, not two positive numbers; get the file anew"
                )));
            }
        }
        const ACTIVATIONS: &[&str] =
            &[".activation_scale", "_activation_scale", ".input_scale", ".k_scale", ".v_scale"];
        for tensor in checkpoint.tensors() {
            let name = &tensor.name;
            let weight = name
                .strip_suffix("_scale_inv")
                .or_else(|| name.strip_suffix("_scale").filter(|weight| weight.ends_with(".weight")));
            if let Some(weight) = weight.filter(|weight| checkpoint.tensor(weight).is_some()) {
                scales.of.insert(weight.to_owned(), name.clone());
                scales.companions.insert(name.clone());
            } else if ACTIVATIONS.iter().any(|ending| name.ends_with(ending)) {
                scales.companions.insert(name.clone());
            }
        }
        Ok(scales)
    }

    fn is_companion(&self, name: &str) -> bool {
        self.companions.contains(name)
    }

    /// The tensor's values, scaled where it has a scale.
    fn apply(&self, checkpoint: &Checkpoint, tensor: &SourceTensor) -> Result<SourceExpr, ModelError> {
        let Some(scale) = self.of.get(&tensor.name).and_then(|name| checkpoint.tensor(name)) else {
            return Ok(SourceExpr::tensor(tensor));
        };
        let shape = matrix_shape(&tensor.shape);
        let values: u64 = scale.shape.iter().product();
        let (scales, block) = match self.block {
            _ if values == 1 => (MatrixShape::dense(1, 1), [shape.rows.max(1), shape.cols.max(1)]),
            Some(block) => {
                (MatrixShape::dense(shape.rows.div_ceil(block[0]), shape.cols.div_ceil(block[1])), block)
            }
            // A scale a row.
            None => (MatrixShape::dense(shape.rows, 1), [1, shape.cols.max(1)]),
        };
        let expr = SourceExpr::Dequant {
            name: tensor.name.clone(),
            shape,
            scale: scale.name.clone(),
            scales,
            block,
        };
        expr.check(checkpoint)?;
        Ok(expr)
    }
}
