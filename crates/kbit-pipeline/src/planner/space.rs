//! What a plan chooses from: the tensors that are free, in units that get one scheme each, and the schemes that each can have.

use super::file::exactly;
use crate::error::PipelineError;
use crate::mix::{MixOptions, MixRecipe};
use crate::plan::{FilePlan, PlanOptions, PlannedTensor, Store};
use crate::recipe::{Chosen, Main, Recipe, scheme_of_rule};
use kbit_formats::Checkpoint;
use kbit_host::{Isolation, Registry};
use kbit_mixes::{Mix, Stored};
use kbit_models::{Conversion, in_block};
use kbit_types::GgmlType;
use regex::Regex;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Where a choice comes from that is none of the standard mixes.
pub(super) const KNAPSACK: &str = "knapsack";

/// The word for all of the ggml types that a plan may use.
pub const AMONG_GGML: &str = "ggml";

/// ggml's types for weights of any kind. Those of 1 to 2 bits without importance and those of 4-bit floats are for weights that were
/// trained for them.
const GGML: &[&str] = &[
    "q2_k", "q3_k", "iq3_s", "iq4_xs", "iq4_nl", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k",
    "q8_0", "f16",
];
/// And those that need importance.
const GGML_WITH_IMPORTANCE: &[&str] = &["iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"];

/// Tensors of a layer that some readers fuse, and the unit that they form where they must agree.
const FUSED: &[(&str, &str)] = &[
    ("attn_q.weight", "attn_qkv"),
    ("attn_k.weight", "attn_qkv"),
    ("attn_v.weight", "attn_qkv"),
    ("ffn_gate.weight", "ffn_gate_up"),
    ("ffn_up.weight", "ffn_gate_up"),
    ("ffn_gate_exps.weight", "ffn_gate_up_exps"),
    ("ffn_up_exps.weight", "ffn_gate_up_exps"),
    ("ffn_gate_shexp.weight", "ffn_gate_up_shexp"),
    ("ffn_up_shexp.weight", "ffn_gate_up_shexp"),
];

/// The recipe that stores tensors by `rules`, and all others as llama-quantize does in every file type. Where `made_of` is a standard mix,
/// the file calls itself that, and is the mix's to the byte.
pub(super) fn plan_recipe(
    rules: Vec<(Regex, Option<Chosen>)>,
    label: String,
    made_of: &str,
) -> Result<Recipe, PipelineError> {
    let types = || rules.iter().filter_map(|(_, chosen)| chosen.as_ref()?.scheme.ggml_type());
    let count = |ty: GgmlType| types().filter(|other| *other == ty).count();
    // llama.cpp's number of the file's type is that of the most common one.
    let main = types().filter(|ty| ty.is_quantized()).max_by_key(|ty| count(*ty)).unwrap_or(GgmlType::Q8_0);
    let known =
        kbit_mixes::builtin(made_of).filter(|mix| mix.main.is_some_and(GgmlType::is_quantized)).cloned();
    let mix = match known {
        Some(mix) => mix,
        None => Mix::parse(Path::new("plan"), &format!("name: plan\ntype: {}\n", main.name()))?,
    };
    let main = Main::Mix(Box::new(MixRecipe { mix, options: MixOptions::default() }));
    Ok(Recipe { label, family: "plan".to_owned(), main, rules })
}

/// The schemes that `words` name: `ggml`, or schemes as `--map` takes them.
pub(super) fn schemes_named(
    registry: &Registry,
    words: &[String],
    importance: bool,
) -> Result<Vec<(String, Chosen)>, PipelineError> {
    let mut found: Vec<(String, Chosen)> = Vec::new();
    let mut add = |text: &str| -> Result<(), PipelineError> {
        let (spec, scheme) = scheme_of_rule(registry, text)?;
        let params = scheme.resolve(&spec.params)?;
        let chosen = Chosen { scheme, params, isolation: Isolation::InProcess };
        if !found.iter().any(|(_, known)| known.fingerprint() == chosen.fingerprint()) {
            found.push((spec.to_string(), chosen));
        }
        Ok(())
    };
    for word in words {
        if word == AMONG_GGML {
            let more = if importance { GGML_WITH_IMPORTANCE } else { &[] };
            GGML.iter().chain(more).try_for_each(|name| add(name))?;
        } else {
            add(word)?;
        }
    }
    Ok(found)
}

/// How a scheme takes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// As it is.
    Whole,
    /// By another type, because of its shape.
    Fallback,
    /// Not at all.
    None,
}

/// A scheme, and the file in which every free tensor has it.
pub(super) struct Column {
    /// As `--map` takes it.
    pub(super) text: String,
    pub(super) chosen: Chosen,
    pub(super) plan: FilePlan,
    /// How it takes each tensor of the model.
    fits: Vec<Fit>,
}

/// Tensors that get one scheme.
pub(super) struct Unit {
    /// Name in messages.
    pub(super) name: String,
    /// Indices of its tensors.
    pub(super) tensors: Vec<usize>,
    /// Columns that it can have.
    pub(super) columns: Vec<usize>,
}

/// What a plan chooses from.
pub(super) struct Space<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) conversion: &'a Conversion,
    registry: &'a Registry,
    pub(super) options: PlanOptions,
    rules: Vec<(Regex, Option<Chosen>)>,
    /// Text of each rule's scheme.
    rule_texts: Vec<String>,
    /// The file without a choice: what is not free is as it will be.
    pub(super) base: FilePlan,
    pub(super) columns: Vec<Column>,
    pub(super) units: Vec<Unit>,
    /// Matrices that a rule pins, with the rule's place.
    pub(super) pinned: Vec<(usize, usize)>,
}

/// What is asked of a space.
pub(super) struct Wanted<'w> {
    pub(super) schemes: &'w [String],
    pub(super) rules: &'w [(Regex, String)],
    /// Whether tensors that readers fuse must agree.
    pub(super) agree: bool,
}

impl<'a> Space<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        conversion: &'a Conversion,
        registry: &'a Registry,
        options: PlanOptions,
        wanted: &Wanted<'_>,
    ) -> Result<Self, PipelineError> {
        let mut rules = Vec::new();
        let mut rule_texts = Vec::new();
        for (pattern, text) in wanted.rules {
            if text == super::file::AS_F32 {
                rules.push((pattern.clone(), None));
                rule_texts.push(text.clone());
                continue;
            }
            let (spec, scheme) = scheme_of_rule(registry, text)?;
            let params = scheme.resolve(&spec.params)?;
            rules.push((pattern.clone(), Some(Chosen { scheme, params, isolation: Isolation::InProcess })));
            rule_texts.push(spec.to_string());
        }
        let base_recipe = plan_recipe(rules.clone(), "plan".to_owned(), KNAPSACK)?;
        let base = FilePlan::new(checkpoint, conversion, &base_recipe, registry, &options)?;
        base.check()?;
        let (free, pinned) = free_and_pinned(conversion, &base_recipe, &options)?;
        let mut space = Self {
            checkpoint,
            conversion,
            registry,
            options,
            rules,
            rule_texts,
            base,
            columns: Vec::new(),
            units: Vec::new(),
            pinned,
        };
        for (text, chosen) in schemes_named(registry, wanted.schemes, space.options.importance.is_some())? {
            let column = space.column(text, chosen, &free)?;
            if !space.options.allow_requantize && !column.plan.requantized.is_empty() {
                let tensors = column.plan.requantized.iter().map(|(name, ty)| format!("{name} ({ty})"));
                return Err(PipelineError::Requantize { label: column.text, tensors: tensors.collect() });
            }
            space.columns.push(column);
        }
        space.units = space.units_of(&free, wanted.agree)?;
        Ok(space)
    }

    pub(super) fn name(&self, tensor: usize) -> &str {
        &self.conversion.tensors[tensor].name
    }

    /// The file in which every free tensor has the scheme, as far as it can.
    fn column(&self, text: String, chosen: Chosen, free: &[usize]) -> Result<Column, PipelineError> {
        let any = Regex::new("").map_err(|error| plan_error(&error))?;
        let mut rules = self.rules.clone();
        let own = rules.len();
        let mut excluded: Vec<usize> = Vec::new();
        loop {
            let mut all = rules.clone();
            all.push((any.clone(), Some(chosen.clone())));
            let recipe = plan_recipe(all, text.clone(), KNAPSACK)?;
            let made = FilePlan::new(self.checkpoint, self.conversion, &recipe, self.registry, &self.options);
            let refused = match made {
                Ok(plan) => {
                    let mut fits = vec![Fit::None; plan.tensors.len()];
                    for &tensor in free.iter().filter(|tensor| !excluded.contains(tensor)) {
                        let lacks_importance =
                            plan.without_importance.iter().any(|name| name == self.name(tensor));
                        fits[tensor] = match &plan.tensors[tensor] {
                            PlannedTensor { store: Store::NoEncoder { .. }, .. } => Fit::None,
                            _ if lacks_importance => Fit::None,
                            PlannedTensor { fallback: Some(_), .. } => Fit::Fallback,
                            _ => Fit::Whole,
                        };
                    }
                    return Ok(Column { text, chosen, plan, fits });
                }
                Err(PipelineError::NeedsCalibration { tensor, .. }) => tensor,
                Err(error) => return Err(error),
            };
            // One tensor that the scheme cannot have is no reason for the others not to.
            let index = free.iter().copied().find(|&tensor| self.name(tensor) == refused);
            match index {
                Some(index) if !excluded.contains(&index) => excluded.push(index),
                _ => return Err(plan_error(&format!("tensor {refused} cannot be stored by its rule"))),
            }
            rules.insert(own, (exactly(&refused)?, None));
        }
    }

    fn units_of(&self, free: &[usize], agree: bool) -> Result<Vec<Unit>, PipelineError> {
        let mut units: Vec<Unit> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for &tensor in free {
            let name = self.name(tensor);
            let fused = in_block(name).filter(|_| agree).and_then(|(block, kind)| {
                let (_, unit) = FUSED.iter().find(|(known, _)| *known == kind)?;
                Some(format!("blk.{block}.{unit}"))
            });
            let unit = fused.unwrap_or_else(|| name.to_owned());
            let place = *places.entry(unit.clone()).or_insert_with(|| {
                units.push(Unit { name: unit, tensors: Vec::new(), columns: Vec::new() });
                units.len() - 1
            });
            units[place].tensors.push(tensor);
        }
        for unit in &mut units {
            let all = |wanted: &[Fit]| -> Vec<usize> {
                let takes = |column: &Column| {
                    unit.tensors.iter().all(|&tensor| wanted.contains(&column.fits[tensor]))
                };
                (0..self.columns.len()).filter(|&column| takes(&self.columns[column])).collect()
            };
            unit.columns = all(&[Fit::Whole]);
            if unit.columns.is_empty() {
                unit.columns = all(&[Fit::Whole, Fit::Fallback]);
            }
            if unit.columns.is_empty() {
                return Err(plan_error(&format!(
                    "{} can have none of the schemes that are allowed; allow more by --schemes, or pin it by --map",
                    unit.name
                )));
            }
        }
        Ok(units)
    }

    /// Bytes of the tensor `index` of `plan`: of its weights, or as the file pads them.
    pub(super) fn bytes(plan: &FilePlan, index: usize, padded: bool) -> u64 {
        if !padded {
            return plan.tensors[index].bytes;
        }
        let first = plan.tensors[index].first_stored;
        let end = plan.tensors.get(index + 1).map_or(plan.stored.len(), |next| next.first_stored);
        (first..end)
            .filter_map(|stored| plan.layout.tensor(stored))
            .map(|(_, _, bytes)| bytes.next_multiple_of(crate::plan::ALIGNMENT))
            .sum()
    }

    /// Bytes of a unit in a column.
    pub(super) fn unit_bytes(&self, unit: &Unit, column: usize, padded: bool) -> u64 {
        unit.tensors.iter().map(|&tensor| Self::bytes(&self.columns[column].plan, tensor, padded)).sum()
    }

    /// Weights of a unit.
    pub(super) fn unit_weights(&self, unit: &Unit) -> u64 {
        unit.tensors.iter().map(|&tensor| self.base.tensors[tensor].shape.elements().unwrap_or(0)).sum()
    }

    /// Bytes of everything that is not free, as the file pads it where `padded`.
    pub(super) fn fixed_bytes(&self, padded: bool) -> u64 {
        let free: Vec<usize> = self.units.iter().flat_map(|unit| unit.tensors.iter().copied()).collect();
        (0..self.base.tensors.len())
            .filter(|tensor| !free.contains(tensor))
            .map(|tensor| Self::bytes(&self.base, tensor, padded))
            .sum()
    }

    /// The recipe in which each unit has the column that `columns` gives it; `made_of` as in a plan file.
    pub(super) fn recipe(
        &self,
        columns: &[usize],
        label: &str,
        made_of: &str,
    ) -> Result<Recipe, PipelineError> {
        let mut rules = Vec::new();
        for (unit, &column) in self.units.iter().zip(columns) {
            for &tensor in &unit.tensors {
                rules.push((exactly(self.name(tensor))?, Some(self.columns[column].chosen.clone())));
            }
        }
        for &(tensor, rule) in &self.pinned {
            rules.push((exactly(self.name(tensor))?, self.rules[rule].1.clone()));
        }
        plan_recipe(rules, label.to_owned(), made_of)
    }

    /// The scheme of each matrix, as a plan file has it, for the recipe of `columns`.
    pub(super) fn assignment(&self, columns: &[usize]) -> Vec<(String, String)> {
        let mut all = BTreeMap::new();
        for (unit, &column) in self.units.iter().zip(columns) {
            for &tensor in &unit.tensors {
                all.insert(tensor, self.columns[column].text.clone());
            }
        }
        for &(tensor, rule) in &self.pinned {
            all.insert(tensor, self.rule_texts[rule].clone());
        }
        all.into_iter().map(|(tensor, text)| (self.name(tensor).to_owned(), text)).collect()
    }

    /// The scheme of `text`, of those that an assignment names.
    pub(super) fn chosen(&self, text: &str) -> Option<&Chosen> {
        let columns = self.columns.iter().map(|column| (column.text.as_str(), Some(&column.chosen)));
        let rules =
            self.rule_texts.iter().map(String::as_str).zip(self.rules.iter().map(|(_, c)| c.as_ref()));
        columns.chain(rules).find(|(known, _)| *known == text).and_then(|(_, chosen)| chosen)
    }

    /// The file of a recipe.
    pub(super) fn file(&self, recipe: &Recipe) -> Result<FilePlan, PipelineError> {
        FilePlan::new(self.checkpoint, self.conversion, recipe, self.registry, &self.options)
    }

    /// The standard mixes that this space holds, with the column that each gives each unit; of those that are alike, the first.
    pub(super) fn mixes(&self) -> Vec<(String, Vec<usize>)> {
        let mut found: Vec<(String, Vec<usize>)> = Vec::new();
        for mix in kbit_mixes::builtins().iter().filter(|mix| mix.main.is_some_and(GgmlType::is_quantized)) {
            let mix = MixRecipe { mix: mix.clone(), options: MixOptions::default() };
            let recipe = Recipe {
                label: mix.label(),
                family: "mix".to_owned(),
                main: Main::Mix(Box::new(mix)),
                rules: self.rules.clone(),
            };
            // A mix that cannot be applied to this model is none of its candidates.
            let Some(plan) = self.file(&recipe).ok().filter(|plan| plan.check().is_ok()) else { continue };
            if let Some(columns) = self.columns_of(&plan)
                && !found.iter().any(|(_, known)| *known == columns)
            {
                found.push((recipe.label, columns));
            }
        }
        found
    }

    /// The column that each unit has in `plan`; `None` where one has what is not allowed.
    fn columns_of(&self, plan: &FilePlan) -> Option<Vec<usize>> {
        let stored = |plan: &FilePlan, tensor: usize| match &plan.tensors[tensor].store {
            Store::F32 => None,
            Store::Copy { ty } | Store::NoEncoder { ty } => Some(*ty),
            Store::Scheme { scheme, .. } => plan.schemes[*scheme].chosen.scheme.ggml_type(),
        };
        let column_of = |unit: &Unit| {
            unit.columns.iter().copied().find(|&column| {
                unit.tensors.iter().all(|&tensor| {
                    let wanted = stored(plan, tensor);
                    wanted.is_some() && stored(&self.columns[column].plan, tensor) == wanted
                })
            })
        };
        self.units.iter().map(column_of).collect()
    }
}

/// Tensors that a mix encodes and no rule names, and those that a rule names, with its place.
type FreeAndPinned = (Vec<usize>, Vec<(usize, usize)>);

fn free_and_pinned(
    conversion: &Conversion,
    recipe: &Recipe,
    options: &PlanOptions,
) -> Result<FreeAndPinned, PipelineError> {
    let Main::Mix(mix) = &recipe.main else { return Ok((Vec::new(), Vec::new())) };
    let facts = options.edits.facts(&conversion.metadata);
    let choices = mix.choose(conversion, &facts, recipe, options.importance.is_some(), false)?;
    let (mut free, mut pinned) = (Vec::new(), Vec::new());
    for (index, (tensor, choice)) in conversion.tensors.iter().zip(&choices).enumerate() {
        let rule = recipe.rules.iter().position(|(pattern, _)| pattern.is_match(&tensor.name));
        match (choice.stored, rule) {
            (Stored::Kept, _) => {}
            (_, Some(rule)) => pinned.push((index, rule)),
            (_, None) => free.push(index),
        }
    }
    Ok((free, pinned))
}

pub(super) fn plan_error(message: &impl ToString) -> PipelineError {
    PipelineError::Plan { message: message.to_string() }
}
