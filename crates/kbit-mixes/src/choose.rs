//! From a mix, a model and options to a type for each tensor.

use crate::builtin::kept;
use crate::facts::{EMBEDDINGS, ModelFacts, OUTPUT, Role, TensorFacts, block, is_model_wide_table};
use crate::fallback::fallback;
use crate::language::{Condition, FlagFact, LayerFact, Mix, NumberFact, Outcome, Rule};
use kbit_types::GgmlType;
use regex::Regex;
use std::cmp::Ordering;

/// Types that need importance in every mix. Source: llama-quantize.
const NEED_IMPORTANCE: &[GgmlType] = &[
    GgmlType::IQ1_S,
    GgmlType::IQ1_M,
    GgmlType::IQ2_XXS,
    GgmlType::IQ2_XS,
    GgmlType::IQ2_S,
    GgmlType::IQ3_XXS,
];

/// How a mix is applied.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The mix's own type for all matrices, whatever its rules say (llama-quantize's `--pure`).
    pub pure: bool,
    /// The output matrix stays as it is (`--leave-output-tensor`).
    pub leave_output: bool,
    /// The type of the output matrix, also of a token embedding that serves as one (`--output-tensor-type`).
    pub output_type: Option<GgmlType>,
    /// The type of the token embeddings (`--token-embedding-type`).
    pub embedding_type: Option<GgmlType>,
    /// Types for tensors whose name matches, before any rule; the first match counts (`--tensor-type`). `None` leaves a tensor to the
    /// caller, who stores it otherwise.
    pub overrides: Vec<(Regex, Option<GgmlType>)>,
    /// Running counts go by the order in which the tensors are given, as with `--keep-split`, instead of by block and name.
    pub in_given_order: bool,
}

/// How a tensor is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As it is in the source.
    Kept,
    /// In this type.
    As(GgmlType),
    /// As the caller says, who overrode it.
    Elsewhere,
}

/// What was chosen for a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How it is to be stored.
    pub stored: Stored,
    /// The type that was chosen at first, where its rows are not whole blocks of it.
    pub wanted: Option<GgmlType>,
    /// Whether the type needs importance, so that encoding without it must be refused.
    pub needs_importance: bool,
}

/// Why a mix cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MixError {
    /// Overrides have no meaning where tensors are only converted or copied.
    #[error(
        "file type {mix} takes no types for single tensors (llama-quantize ignores them there); \
         name a block type as the scheme, as ggml:{}, and map others beside it", mix.to_lowercase()
    )]
    Overrides {
        /// Name of the mix.
        mix: String,
    },
    /// A rule asks for the layer of a tensor that has none.
    #[error(
        "tensor {tensor}: mix {mix} chooses by the layer, and in a model with experts that is the number of the block, \
         which the name does not tell; give it a type of its own with --map"
    )]
    NoLayer {
        /// Name of the tensor.
        tensor: String,
        /// Name of the mix.
        mix: String,
    },
}

/// Indices of `names` in the order in which llama-quantize goes through tensors: those of no block first, then by block, then by name.
#[must_use]
pub fn quantize_order(names: &[&str]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by(|a, b| compare(names[*a], names[*b]));
    order
}

fn compare(a: &str, b: &str) -> Ordering {
    (block(a), a).cmp(&(block(b), b))
}

/// Chooses for each of `tensors`, in their order, by `mix`. `importance` says whether an importance matrix is given.
///
/// `tensors` must be all tensors of the model. Running counts go by llama-quantize's order, unless the options say otherwise.
///
/// # Errors
/// A rule that asks what a tensor's name does not tell, or overrides where the mix takes none.
pub fn choose(
    mix: &Mix,
    model: &ModelFacts,
    tensors: &[TensorFacts<'_>],
    options: &Options,
    importance: bool,
) -> Result<Vec<Choice>, MixError> {
    let takes_rules = mix.main.is_some_and(|ty| ty.is_quantized());
    if !takes_rules && !options.overrides.is_empty() {
        return Err(MixError::Overrides { mix: mix.name.clone() });
    }
    let tied = tensors.iter().all(|tensor| tensor.name != OUTPUT);
    let mut chooser = Chooser { mix, model, options, importance, tied, kinds: kinds(tensors, model, tied) };
    let nothing = Choice { stored: Stored::Kept, wanted: None, needs_importance: false };
    let mut choices = vec![nothing; tensors.len()];
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name).collect();
    let order = if options.in_given_order { (0..names.len()).collect() } else { quantize_order(&names) };
    for index in order {
        choices[index] = chooser.choose(&tensors[index])?;
    }
    Ok(choices)
}

/// A kind of tensor that is counted on its own.
struct CountedKind {
    role: Role,
    seen: u64,
    total: u64,
}

/// How many there are of each kind.
fn kinds(tensors: &[TensorFacts<'_>], model: &ModelFacts, tied: bool) -> Vec<CountedKind> {
    let mut kinds: Vec<CountedKind> = Vec::new();
    for tensor in tensors {
        let role = Role::of(tensor.name, tied).counted_as();
        match kinds.iter_mut().find(|kind| kind.role == role) {
            Some(kind) => kind.total += 1,
            None => kinds.push(CountedKind { role, seen: 0, total: 1 }),
        }
    }
    for kind in &mut kinds {
        if kind.role.is_feed_forward() {
            kind.total = model.layers;
        }
    }
    kinds
}

struct Chooser<'a> {
    mix: &'a Mix,
    model: &'a ModelFacts,
    options: &'a Options,
    importance: bool,
    tied: bool,
    kinds: Vec<CountedKind>,
}

/// A tensor in its turn.
struct Turn<'a> {
    tensor: &'a TensorFacts<'a>,
    role: Role,
    /// How many of its kind came before.
    count: u64,
    /// How many of its kind there are.
    total: u64,
}

impl Chooser<'_> {
    fn choose(&mut self, tensor: &TensorFacts<'_>) -> Result<Choice, MixError> {
        let main = self.mix.main.filter(|_| self.is_encoded(tensor));
        let Some(main) = main else { return Ok(self.finish(tensor, Outcome::Keep)) };
        let overridden = self.options.overrides.iter().find(|(pattern, _)| pattern.is_match(tensor.name));
        if EMBEDDINGS.contains(&tensor.name)
            && let Some(ty) = self.options.embedding_type
            // The embeddings of single layers are a table of their own, which an override may name.
            && (tensor.name == EMBEDDINGS[0] || overridden.is_none())
        {
            return Ok(self.finish(tensor, Outcome::As(ty)));
        }
        if tensor.name == OUTPUT
            && let Some(ty) = self.options.output_type
        {
            return Ok(self.finish(tensor, Outcome::As(ty)));
        }
        if !main.is_quantized() {
            return Ok(self.finish(tensor, Outcome::As(main)));
        }
        match overridden {
            Some((_, Some(ty))) => return Ok(self.finish(tensor, Outcome::As(*ty))),
            Some((_, None)) => {
                return Ok(Choice { stored: Stored::Elsewhere, wanted: None, needs_importance: false });
            }
            None => {}
        }
        let outcome = if self.options.pure { Outcome::As(main) } else { self.by_rules(tensor, main)? };
        Ok(self.finish(tensor, outcome))
    }

    /// Matrices named as weights are encoded, but for those that every file type keeps.
    fn is_encoded(&self, tensor: &TensorFacts<'_>) -> bool {
        tensor.axes() >= 2
            && tensor.name.ends_with("weight")
            && !(self.options.leave_output && tensor.name == OUTPUT)
            && !kept().iter().any(|rule| self.holds_by_name(rule, tensor.name))
    }

    /// Whether a rule holds that asks for names and architectures only.
    fn holds_by_name(&self, rule: &Rule, name: &str) -> bool {
        rule.conditions.iter().all(|condition| match condition {
            Condition::Name(pattern) => pattern.is_match(name),
            Condition::Architecture(names) => names.contains(&self.model.architecture),
            _ => false,
        })
    }

    fn by_rules(&mut self, tensor: &TensorFacts<'_>, main: GgmlType) -> Result<Outcome, MixError> {
        let role = Role::of(tensor.name, self.tied);
        let counted = role.counted_as();
        let kind = self.kinds.iter_mut().find(|kind| kind.role == counted);
        let (count, total) = kind.map_or((0, 0), |kind| {
            kind.seen += 1;
            (kind.seen - 1, kind.total)
        });
        let turn = Turn { tensor, role, count, total };
        if role == Role::Output
            && let Some(ty) = self.options.output_type
        {
            return Ok(Outcome::As(ty));
        }
        for rule in &self.mix.rules {
            if self.holds(rule, &turn, main)? {
                return Ok(rule.outcome);
            }
        }
        Ok(Outcome::As(main))
    }

    fn holds(&self, rule: &Rule, turn: &Turn<'_>, main: GgmlType) -> Result<bool, MixError> {
        // What is cheap and cannot fail comes first: a layer is asked for only where all else holds.
        let is_layer = |condition: &&Condition| matches!(condition, Condition::Layer(..));
        let simple = rule.conditions.iter().filter(|condition| !is_layer(condition));
        if !simple.into_iter().all(|condition| self.simple(condition, turn, main)) {
            return Ok(false);
        }
        for condition in rule.conditions.iter().filter(is_layer) {
            if let Condition::Layer(fact, ranges) = condition {
                let (index, layers) = match fact {
                    LayerFact::Count => (turn.count, turn.total),
                    LayerFact::Layer if self.model.experts <= 1 => (turn.count, turn.total),
                    LayerFact::Layer => {
                        let block = block(turn.tensor.name).ok_or_else(|| MixError::NoLayer {
                            tensor: turn.tensor.name.to_owned(),
                            mix: self.mix.name.clone(),
                        })?;
                        (block, turn.total)
                    }
                    LayerFact::Block => match block(turn.tensor.name) {
                        Some(block) => (block, self.model.layers),
                        None => return Ok(false),
                    },
                };
                if !ranges.iter().any(|range| range.contains(index, layers)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn simple(&self, condition: &Condition, turn: &Turn<'_>, main: GgmlType) -> bool {
        let tensor = turn.tensor;
        match condition {
            Condition::Role(roles) => roles.contains(&turn.role),
            Condition::Name(pattern) => pattern.is_match(tensor.name),
            Condition::Architecture(names) => names.contains(&self.model.architecture),
            Condition::Number(fact, range) => range.contains(match fact {
                NumberFact::Slices => tensor.axis(2),
                NumberFact::Rows => tensor.axis(1),
                NumberFact::Columns => tensor.columns(),
                NumberFact::Layers => self.model.layers,
                NumberFact::Experts => self.model.experts,
                NumberFact::GroupedHeads => self.model.grouped_heads,
            }),
            Condition::Flag(fact, wanted) => {
                let value = match fact {
                    FlagFact::WholeBlocks => tensor.columns().is_multiple_of(main.block_elements()),
                    FlagFact::Size70b => self.model.is_70b,
                    FlagFact::Tied => self.tied,
                    FlagFact::Importance => self.importance,
                };
                value == *wanted
            }
            Condition::Layer(..) => true,
        }
    }

    fn finish(&self, tensor: &TensorFacts<'_>, outcome: Outcome) -> Choice {
        let Outcome::As(wanted) = outcome else {
            return Choice { stored: Stored::Kept, wanted: None, needs_importance: false };
        };
        let instead = fallback(wanted, tensor.columns());
        let ty = instead.unwrap_or(wanted);
        let needs = NEED_IMPORTANCE.contains(&ty) || self.mix.importance_for.contains(&ty);
        Choice {
            stored: Stored::As(ty),
            wanted: instead.map(|_| wanted),
            needs_importance: needs && !is_model_wide_table(tensor.name),
        }
    }
}
