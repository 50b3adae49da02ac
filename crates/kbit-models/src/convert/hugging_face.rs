//! A Hugging Face folder, by the table of its architecture.

use super::config::{Config, read_object};
use super::sources::{Source, sources};
use super::{Conversion, ConvertOptions, OutputTensor, general, is_other_modality};
use crate::architecture::{Architecture, Blocks, Presence, Step, TensorRule, in_layer};
use crate::description::{Position, RopeScaling};
use crate::expr::{Axis, matrix_shape};
use crate::{Description, ModelError, Role, SourceExpr, describe};
use kbit_formats::Checkpoint;
use kbit_formats::gguf::{Metadata, Value};
use kbit_tokenizers::TokenizerError;
use kbit_types::MatrixShape;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

pub(super) fn convert(
    checkpoint: &Checkpoint,
    folder: &Path,
    options: &ConvertOptions,
) -> Result<Conversion, ModelError> {
    let mut config = Config::read(folder)?;
    let architecture = config.architecture(options.architecture.as_deref())?;
    config.tokens = tokens(folder)?;
    check_config(&config, architecture)?;
    let hyper = config.parameters(architecture)?;
    let vocab_size = config.vocab()?;

    let assigned = assign(sources(checkpoint, folder, &config)?, architecture, &config, options)?;
    let mut tensors = computed(architecture, &config)?;
    let names: HashSet<&str> =
        tensors.iter().chain(&assigned.tensors).map(|tensor| tensor.name.as_str()).collect();
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", Value::String(architecture.name.to_owned()));
    let mut described = metadata.clone();
    hyper.entries.iter().for_each(|(key, value)| described.insert(key, value.clone()));
    // Most architectures have their vocabulary with the tokenizer alone, which a model can be run without.
    let embedding = assigned.tensors.iter().find(|tensor| tensor.role == Role::TokenEmbedding);
    let rows = embedding.and_then(|tensor| u32::try_from(*tensor.shape.first()?).ok());
    let vocab_key = format!("{}.vocab_size", architecture.name);
    let vocab = Value::U32(rows.unwrap_or(vocab_size));
    described.insert(&vocab_key, vocab.clone());
    let mut description = description(&described, &|name| names.contains(name))?;
    if let (Some(model), Some(factor)) = (&mut description, config.dynamic_factor()?) {
        scale_dynamically(model, factor);
    }
    check_presence(architecture, &config, &names)?;

    for tensor in assigned.tensors.iter().chain(&assigned.other) {
        tensor.expr.check(checkpoint)?;
    }
    tensors.extend(assigned.tensors);
    hyper.early.iter().for_each(|(key, value)| metadata.insert(key, value.clone()));
    metadata.insert("general.type", Value::String("model".to_owned()));
    general::write_sampling(folder, &mut metadata)?;
    general::write_name(folder, &config, options.name.as_deref(), &tensors, &mut metadata);
    tensors.extend(assigned.other);
    let before = metadata.len();
    hyper.entries.iter().for_each(|(key, value)| metadata.insert(key, value.clone()));
    let places = [hyper.file_type.map(|place| before + place), Some(metadata.len())];
    let tokenizer = tokenizer(folder, u64::from(vocab_size), architecture, options)?;
    if tokenizer.iter().all(|(key, _)| key != "tokenizer.ggml.tokens") {
        metadata.insert(vocab_key, vocab);
    }
    for (key, value) in tokenizer {
        metadata.insert(key, value);
    }
    Ok(Conversion {
        description,
        architecture: architecture.name.to_owned(),
        metadata,
        tensors,
        dropped: assigned.dropped,
        places,
    })
}

/// What the engine must know; `None` where it cannot run the model yet.
fn description(
    metadata: &Metadata,
    has_tensor: &dyn Fn(&str) -> bool,
) -> Result<Option<Description>, ModelError> {
    match describe(metadata, has_tensor) {
        Ok(model) => Ok(Some(model)),
        Err(ModelError::NotRunnable { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Dynamic scaling, which GGUF has no way to say: within the trained context it changes nothing.
#[expect(clippy::cast_possible_truncation, reason = "as precise as the other settings")]
fn scale_dynamically(model: &mut Description, factor: f64) {
    let original_context = model.context_length;
    for block in &mut model.blocks {
        if let Position::Rope(rope) = &mut block.position {
            rope.scaling = RopeScaling::Dynamic { factor: factor as f32, original_context };
        }
    }
}

/// Refuses configurations that the table does not cover.
fn check_config(config: &Config, architecture: &Architecture) -> Result<(), ModelError> {
    for (key, what) in architecture.refused {
        let absent = |value: &serde_json::Value| value.as_u64() == Some(0) || value.as_bool() == Some(false);
        if config.get(key).is_some_and(|value| !absent(value)) {
            let reason = format!(
                "{key:?} says that this is {what}, which kbit does not convert yet; convert it to GGUF with llama.cpp and give that file"
            );
            return Err(config.bad(reason));
        }
    }
    let Some(forward) = &architecture.forward else { return Ok(()) };
    match config.activation().filter(|name| !forward.activation.1.contains(name)) {
        None => Ok(()),
        Some(name) => Err(config.bad(format!(
            "the activation is {name:?}, where {} models have one of {:?}; the model is not a plain {0}",
            architecture.name, forward.activation.1
        ))),
    }
}

/// The number of tokens of tokenizer.json, where there is no SentencePiece model, whose tokens are padded.
fn tokens(folder: &Path) -> Result<Option<u64>, ModelError> {
    if folder.join("tokenizer.model").is_file() {
        return Ok(None);
    }
    let Ok(Some(tokenizer)) = read_object(&folder.join("tokenizer.json")) else { return Ok(None) };
    let vocab = match tokenizer.get("model").and_then(|model| model.get("vocab")) {
        Some(serde_json::Value::Object(vocab)) => vocab.len(),
        Some(serde_json::Value::Array(vocab)) => vocab.len(),
        _ => return Ok(None),
    };
    let added = tokenizer.get("added_tokens").and_then(|added| added.as_array()).map_or(0, Vec::len);
    Ok(Some((vocab + added) as u64))
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

/// All tensors of the checkpoint, shared out.
struct Assigned {
    tensors: Vec<OutputTensor>,
    /// Tensors of another modality that are to be passed through.
    other: Vec<OutputTensor>,
    dropped: Vec<String>,
}

/// Tensors that are stacked, each with all that belong together: they come out when the last one has come.
#[derive(Default)]
struct Stacks {
    /// By what the names have in common, and the block: by rule, the sources of each index.
    groups: HashMap<(&'static str, usize), Group>,
}

/// The rules whose tensors come out together.
type Group = Vec<(&'static TensorRule, BTreeMap<usize, Source>)>;

/// Gives every tensor its place, in the converter's order.
fn assign(
    sources: Vec<Source>,
    architecture: &'static Architecture,
    config: &Config,
    options: &ConvertOptions,
) -> Result<Assigned, ModelError> {
    let mut rules: HashMap<&str, Vec<&'static TensorRule>> = HashMap::new();
    for rule in architecture.rules().filter(|rule| rule.computed.is_none()) {
        rules.entry(rule.source).or_default().push(rule);
    }
    let layers = config.layers()?;
    let mut assigned = Assigned { tensors: Vec::new(), other: Vec::new(), dropped: Vec::new() };
    let mut stacks = Stacks::default();
    let (mut refused, mut unexpected) = (Vec::new(), Vec::new());
    let mut taken = HashSet::new();
    for source in sources {
        // A text model within another has its names behind the other's.
        let name = source.name.replace("language_model.", "").replace("text_model.", "");
        let place = Place::of(&name, &rules, architecture.optional_prefix);
        if let Some(place) = &place
            && place.layer.is_some_and(|layer| layer as u64 >= layers)
        {
            if architecture.drops_further_blocks {
                assigned.dropped.push(source.name);
                continue;
            }
            return Err(config.bad(format!(
                "the model has {layers} blocks, yet the checkpoint has the tensor {}; the configuration and the weights belong to different models: get both from one source",
                source.name
            )));
        }
        let layer = place.as_ref().and_then(|place| place.layer).unwrap_or(0);
        let has_experts = config.has_experts(layer as u64)?;
        let wanted: Vec<&'static TensorRule> = place.iter().flat_map(|place| &place.rules).copied().collect();
        let wanted: Vec<&'static TensorRule> = wanted
            .into_iter()
            .filter(|rule| match rule.blocks {
                Blocks::All => true,
                Blocks::Dense => !has_experts,
                Blocks::Experts => has_experts,
            })
            .collect();
        if let Some(place) = place.filter(|_| !wanted.is_empty()) {
            let known = wanted.iter().any(|rule| !taken.insert((rule.name, layer, place.index)));
            if known {
                unexpected.push(source.name);
            } else if let Some(index) = place.index {
                for rule in wanted {
                    let source = Source {
                        name: source.name.clone(),
                        shape: source.shape.clone(),
                        expr: source.expr.clone(),
                    };
                    assigned.tensors.extend(stacks.add(architecture, config, rule, layer, index, source)?);
                }
            } else {
                for rule in wanted {
                    assigned.tensors.push(output(config, rule, layer, &[&source])?);
                }
            }
        } else if architecture.dropped.iter().any(|ending| name.ends_with(ending)) {
            assigned.dropped.push(source.name);
        } else if !is_other_modality(&source.name) {
            unexpected.push(source.name);
        } else if options.pass_through_other_modalities {
            let Source { name, shape, expr } = source;
            assigned.other.push(OutputTensor { name, shape, role: Role::Other, expr });
        } else {
            refused.push(source.name);
        }
    }
    if !refused.is_empty() {
        return Err(ModelError::OtherModalities { names: refused });
    }
    if !unexpected.is_empty() {
        let architecture = architecture.name.to_owned();
        return Err(ModelError::UnexpectedTensors { architecture, names: unexpected });
    }
    stacks.check(config)?;
    Ok(assigned)
}

impl Stacks {
    /// Takes a source; what is complete with it.
    fn add(
        &mut self,
        architecture: &'static Architecture,
        config: &Config,
        rule: &'static TensorRule,
        layer: usize,
        index: usize,
        source: Source,
    ) -> Result<Vec<OutputTensor>, ModelError> {
        let common = stem(rule);
        let group = self.groups.entry((common, layer)).or_insert_with(|| {
            let own = architecture
                .rules()
                .filter(|other| stem(other) == common && other.source.contains("{index}"));
            own.map(|rule| (rule, BTreeMap::new())).collect()
        });
        for (own, sources) in group.iter_mut().filter(|(own, _)| own.name == rule.name) {
            if index as u64 >= count(config, own)? {
                return Err(config.bad(format!(
                    "there are {} of them, yet the checkpoint has the tensor {}; the configuration and the weights belong to different models: get both from one source",
                    count(config, own)?, source.name
                )));
            }
            sources.insert(
                index,
                Source { name: source.name.clone(), shape: source.shape.clone(), expr: source.expr.clone() },
            );
        }
        for (own, sources) in group.iter() {
            if sources.len() as u64 != count(config, own)? {
                return Ok(Vec::new());
            }
        }
        let group = self.groups.remove(&(common, layer)).unwrap_or_default();
        group
            .iter()
            .map(|(rule, sources)| output(config, rule, layer, &sources.values().collect::<Vec<_>>()))
            .collect()
    }

    /// Names what is missing of stacks that have begun.
    fn check(&self, config: &Config) -> Result<(), ModelError> {
        let mut names = Vec::new();
        for ((_, layer), group) in &self.groups {
            for (rule, sources) in group {
                // Far fewer than would be listed are enough to say what is wrong.
                let absent =
                    (0..count(config, rule)?.min(1 << 16)).filter(|i| !sources.contains_key(&(*i as usize)));
                names
                    .extend(absent.map(|i| in_layer(rule.source, *layer).replace("{index}", &i.to_string())));
            }
        }
        names.sort_unstable();
        if names.is_empty() { Ok(()) } else { Err(ModelError::MissingTensors { names }) }
    }
}

/// What the names of tensors that come out together have in common.
fn stem(rule: &TensorRule) -> &'static str {
    rule.source.split("{index}").next().unwrap_or(rule.source)
}

/// How many tensors are stacked.
fn count(config: &Config, rule: &TensorRule) -> Result<u64, ModelError> {
    rule.shape.first().map_or(Ok(1), |dim| config.dim(*dim))
}

/// The place of a name in the table.
struct Place {
    rules: Vec<&'static TensorRule>,
    layer: Option<usize>,
    index: Option<usize>,
}

impl Place {
    fn of(
        name: &str,
        rules: &HashMap<&str, Vec<&'static TensorRule>>,
        optional_prefix: &str,
    ) -> Option<Self> {
        let prefixed = format!("{optional_prefix}{name}");
        [name, prefixed.as_str()].into_iter().find_map(|name| {
            let (pattern, layer, index) = split_numbers(name);
            let rules = rules.get(pattern.as_str())?;
            let fits = rules.iter().all(|rule| rule.is_per_layer() == layer.is_some());
            fits.then(|| Self { rules: rules.clone(), layer, index })
        })
    }
}

/// A name with its first number as `{layer}` and its second as `{index}`, and these numbers.
fn split_numbers(name: &str) -> (String, Option<usize>, Option<usize>) {
    let mut numbers = [None, None];
    let parts = name.split('.').map(|part| {
        let number = part.parse().ok().filter(|number: &usize| number.to_string() == part);
        match (number, &mut numbers) {
            (Some(number), [layer @ None, _]) => {
                *layer = Some(number);
                "{layer}"
            }
            (Some(number), [_, index @ None]) => {
                *index = Some(number);
                "{index}"
            }
            _ => part,
        }
    });
    let pattern = parts.collect::<Vec<_>>().join(".");
    (pattern, numbers[0], numbers[1])
}

/// Every tensor that the model must have is there, whichever of its forms.
fn check_presence(
    architecture: &Architecture,
    config: &Config,
    names: &HashSet<&str>,
) -> Result<(), ModelError> {
    let layers = usize::try_from(config.layers()?).unwrap_or(usize::MAX);
    let mut missing = Vec::new();
    let mut known = HashSet::new();
    for rule in architecture.rules() {
        let required = match rule.presence {
            Presence::Required | Presence::Absorbed => true,
            Presence::Optional => false,
            Presence::UnlessTied => !config.tied(),
        };
        if !required {
            continue;
        }
        for layer in if rule.is_per_layer() { 0..layers } else { 0..1 } {
            let has_experts = rule.blocks != Blocks::All && config.has_experts(layer as u64)?;
            let applies = rule.blocks == Blocks::All || has_experts == (rule.blocks == Blocks::Experts);
            let name = in_layer(rule.name, layer);
            if applies && !names.contains(name.as_str()) && known.insert(name) {
                missing.push(in_layer(rule.source, layer));
            }
            if missing.len() > MOST_MISSING {
                return Err(ModelError::MissingTensors { names: missing });
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(ModelError::MissingTensors { names: missing }) }
}

/// How many missing tensors are gathered, however many blocks the configuration claims.
const MOST_MISSING: usize = 1 << 16;

/// Tensors that no checkpoint has.
fn computed(architecture: &Architecture, config: &Config) -> Result<Vec<OutputTensor>, ModelError> {
    let mut tensors = Vec::new();
    for rule in architecture.rules() {
        let Some(values) = rule.computed.map(|factors| config.factors(factors)).transpose()?.flatten() else {
            continue;
        };
        let shape = shape(config, rule.shape)?;
        let found = vec![values.len() as u64];
        if shape != found {
            return Err(ModelError::Shape { tensor: rule.name.to_owned(), found, wanted: shape });
        }
        let expr = SourceExpr::Constant { values, shape: matrix_shape(&shape) };
        tensors.push(OutputTensor { name: rule.name.to_owned(), shape, role: rule.role, expr });
    }
    Ok(tensors)
}

/// Lengths of a shape.
fn shape(config: &Config, dims: &[crate::architecture::Dim]) -> Result<Vec<u64>, ModelError> {
    dims.iter().map(|dim| config.dim(*dim)).collect()
}

/// The output tensor that a rule makes of one source, or of several that are stacked.
fn output(
    config: &Config,
    rule: &'static TensorRule,
    layer: usize,
    sources: &[&Source],
) -> Result<OutputTensor, ModelError> {
    let wanted = shape(config, if rule.stored.is_empty() { rule.shape } else { rule.stored })?;
    let output = shape(config, rule.shape)?;
    for source in sources {
        if source.shape != wanted {
            return Err(ModelError::Shape {
                tensor: source.name.clone(),
                found: source.shape.clone(),
                wanted,
            });
        }
    }
    let mut expr = match sources {
        [source] if !rule.source.contains("{index}") => source.expr.clone(),
        _ => SourceExpr::Stack(sources.iter().map(|source| source.expr.clone()).collect()),
    };
    if wanted.len() == 1 && !rule.steps.is_empty() && !matches!(rule.steps, [Step::Add(_)]) {
        // Of a vector, each value is a row.
        expr = reshaped(expr, MatrixShape::dense(wanted[0], 1));
    }
    for step in rule.steps {
        let of = Box::new(expr);
        expr = match step {
            Step::PairRows(heads) => SourceExpr::PermuteRows { of, heads: config.dim(*heads)? },
            Step::Transpose => SourceExpr::Transpose(of),
            Step::Add(constant) => SourceExpr::Add { of, constant: *constant },
            Step::View(dims) => reshaped(*of, matrix_shape(&shape(config, dims)?)),
            Step::Rows(parts) => {
                let mut gathered = Vec::with_capacity(parts.len());
                for part in *parts {
                    let axis = |(count, stride): &(_, _)| {
                        Ok(Axis { count: config.dim(*count)?, stride: config.dim(*stride)? })
                    };
                    let axes = part.axes.iter().map(axis).collect::<Result<Vec<_>, ModelError>>()?;
                    gathered.push(SourceExpr::Gather {
                        of: of.clone(),
                        first: config.dim(part.first)?,
                        axes,
                    });
                }
                match gathered.len() {
                    1 => gathered.swap_remove(0),
                    _ => SourceExpr::Concat(gathered),
                }
            }
        };
    }
    let expr = reshaped(expr, matrix_shape(&output));
    Ok(OutputTensor { name: in_layer(rule.name, layer), shape: output, role: rule.role, expr })
}

/// The same values as `shape`. A tensor is read by it at once, so that no row of it has to be read whole.
fn reshaped(expr: SourceExpr, shape: MatrixShape) -> SourceExpr {
    match expr {
        expr if expr.shape() == shape => expr,
        SourceExpr::Tensor { name, .. } => SourceExpr::Tensor { name, shape },
        expr => SourceExpr::Reshape { of: Box::new(expr), shape },
    }
}
