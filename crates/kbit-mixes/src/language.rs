//! The rule language: from YAML to a [`Mix`], with every mistake at its place.

use crate::builtin;
use crate::facts::Role;
use crate::range::{LayerRange, NumberRange};
use kbit_types::GgmlType;
use kbit_yaml::{
    DocumentError, Kind, Mistake, Node, Object, Tree, check, nearest, optional, read_text, required,
    suggestion,
};
use regex::Regex;
use std::path::Path;
use std::str::FromStr;

const ROLES: &[&str] = &{
    let mut words = [""; Role::WORDS.len()];
    let mut index = 0;
    while index < words.len() {
        words[index] = Role::WORDS[index].0;
        index += 1;
    }
    words
};
const SIZES: &[&str] = &["70B"];
const LAYERS: Kind = Kind::Many(&Kind::Scalar(LayerRange::FORM));
const NUMBER: Kind = Kind::Scalar(NumberRange::FORM);

/// A rule: facts that must all hold, and the type that follows.
static RULE: Object = Object {
    name: "rule of a mix",
    doc: "The type of tensors for which all given facts hold. The first rule that holds decides. A rule with `use` stands for all rules of a built-in mix or set.",
    keys: &[
        optional("type", Kind::Text, "given by `use`", "A ggml type, or `keep` for the type in the source."),
        optional("use", Kind::Text, "none", "A built-in mix or set of rules; no other key beside it."),
        optional(
            "role",
            Kind::Many(&Kind::Choice(ROLES)),
            "any",
            "What the tensor does; `values` is attn_v, attn_qkv and attn_kv_b.",
        ),
        optional(
            "name",
            Kind::Regex,
            "any",
            "A regular expression, matched anywhere in the tensor's GGUF name.",
        ),
        optional(
            "layer",
            LAYERS,
            "any",
            "Layer of the tensor: in a model with experts the number of its block, else its `count`.",
        ),
        optional("block", LAYERS, "any", "Number of the tensor's block, out of the model's layers."),
        optional(
            "count",
            LAYERS,
            "any",
            "How many tensors of its kind came before it; `values` are one kind. Fractions are of all of the kind (for ffn_*: of all layers).",
        ),
        optional("slices", NUMBER, "any", "Matrices in the tensor: more than one for stacked experts."),
        optional("rows", NUMBER, "any", "Rows of a matrix."),
        optional("columns", NUMBER, "any", "Weights in a row."),
        optional("whole_blocks", Kind::Bool, "any", "Whether rows are whole blocks of the mix's own type."),
        optional("architecture", Kind::Many(&Kind::Text), "any", "GGUF's name of the architecture."),
        optional("layers", NUMBER, "any", "Layers of the model."),
        optional("experts", NUMBER, "any", "Experts of the model; 0 in a dense one."),
        optional(
            "grouped_heads",
            NUMBER,
            "any",
            "Query heads that share one head of keys and values, rounded down.",
        ),
        optional("size", Kind::Choice(SIZES), "any", "What llama.cpp takes the model for, by its layers."),
        optional("tied", Kind::Bool, "any", "Whether the token embedding serves as output matrix."),
        optional("importance", Kind::Bool, "any", "Whether an importance matrix is given."),
    ],
};

/// A mix.
static MIX: Object = Object {
    name: "mix",
    doc: "Which type each tensor of a file gets.",
    keys: &[
        required(
            "type",
            Kind::Text,
            "The ggml type of matrices for which no rule holds; `keep` keeps all tensors as they are.",
        ),
        optional("name", Kind::Text, "the file's name", "Name in tables."),
        optional("aliases", Kind::Many(&Kind::Text), "none", "Other names."),
        optional("about", Kind::Text, "none", "What it is, in a sentence."),
        optional(
            "file_type",
            Kind::Int { min: 0, max: 1023 },
            "by `type`",
            "llama.cpp's number, for `general.file_type`.",
        ),
        optional(
            "importance_for",
            Kind::Many(&Kind::Text),
            "none",
            "Types that need importance in this mix, beside those that always do (IQ1_*, IQ2_*, IQ3_XXS).",
        ),
        optional(
            "rules",
            Kind::Many(&Kind::Object(&RULE)),
            "none",
            "Rules, in the order in which they are tried.",
        ),
    ],
};

/// A named list of rules.
static SET: Object = Object {
    name: "set of rules",
    doc: "Rules that several mixes use.",
    keys: &[required(
        "rules",
        Kind::Many(&Kind::Object(&RULE)),
        "Rules, in the order in which they are tried.",
    )],
};

/// Which type each tensor of a file gets.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Name in tables: llama-quantize's, or the name of the user's file.
    pub name: String,
    /// Other names.
    pub aliases: Vec<String>,
    /// What it is, in a sentence; empty where it does not say.
    pub about: String,
    /// llama.cpp's number of the file type, where it states one.
    pub file_type: Option<u32>,
    /// The type of matrices for which no rule holds; `None` keeps every tensor.
    pub main: Option<GgmlType>,
    pub(crate) importance_for: Vec<GgmlType>,
    pub(crate) rules: Vec<Rule>,
}

/// What a rule does with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Keep,
    As(GgmlType),
}

#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug)]
pub(crate) enum Condition {
    Role(Vec<Role>),
    Name(Regex),
    Layer(LayerFact, Vec<LayerRange>),
    Number(NumberFact, NumberRange),
    Flag(FlagFact, bool),
    Architecture(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerFact {
    Layer,
    Block,
    Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberFact {
    Slices,
    Rows,
    Columns,
    Layers,
    Experts,
    GroupedHeads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagFact {
    WholeBlocks,
    Size70b,
    Tied,
    Importance,
}

impl Mix {
    /// Reads the mix in `file`.
    ///
    /// # Errors
    /// Every mistake, with line and column, the key, and the nearest valid one.
    pub fn read(file: &Path) -> Result<Self, DocumentError> {
        Self::parse(file, &read_text(file, "the mix")?)
    }

    /// Reads the mix `text`, which stands in `file`.
    ///
    /// # Errors
    /// As [`Mix::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, DocumentError> {
        let mut mistakes = Vec::new();
        match parse_document(text, &MIX, &mut mistakes) {
            Some(root) => {
                let mix = Reader { mistakes: &mut mistakes }.mix(&root, file);
                match mix {
                    Some(mix) if mistakes.is_empty() => Ok(mix),
                    _ => Err(DocumentError::new(file, text, mistakes)),
                }
            }
            None => Err(DocumentError::new(file, text, mistakes)),
        }
    }
}

/// The rules of the set `text`.
pub(crate) fn parse_set(file: &Path, text: &str) -> Result<Vec<Rule>, DocumentError> {
    let mut mistakes = Vec::new();
    let rules = parse_document(text, &SET, &mut mistakes)
        .map(|root| Reader { mistakes: &mut mistakes }.rules(&root))
        .unwrap_or_default();
    if mistakes.is_empty() { Ok(rules) } else { Err(DocumentError::new(file, text, mistakes)) }
}

fn parse_document(text: &str, object: &Object, mistakes: &mut Vec<Mistake>) -> Option<Node> {
    match Node::parse(text) {
        Ok(root) => {
            check(&root, object, mistakes);
            mistakes.is_empty().then_some(root)
        }
        Err((place, message)) => {
            mistakes.push(Mistake::new(place, message, "mend the YAML at this place"));
            None
        }
    }
}

/// Reads a tree that [`check`] accepted.
struct Reader<'a> {
    mistakes: &'a mut Vec<Mistake>,
}

impl Reader<'_> {
    fn mix(&mut self, root: &Node, file: &Path) -> Option<Mix> {
        let text = |key: &str| root.get(key).and_then(Node::as_str).map(str::to_owned);
        let stem =
            file.file_stem().map_or_else(|| "mix".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let main = root.get("type").and_then(|node| self.outcome(node));
        let words = |key: &str| root.get(key).map_or(&[][..], Node::items);
        let importance_for: Vec<_> =
            words("importance_for").iter().filter_map(|node| self.block_type(node)).collect();
        let rules = self.rules(root);
        Some(Mix {
            name: text("name").unwrap_or(stem),
            aliases: words("aliases").iter().filter_map(Node::as_str).map(str::to_owned).collect(),
            about: text("about").unwrap_or_default(),
            file_type: root
                .get("file_type")
                .and_then(Node::as_int)
                .and_then(|number| u32::try_from(number).ok()),
            main: match main? {
                Outcome::Keep => None,
                Outcome::As(ty) => Some(ty),
            },
            importance_for,
            rules,
        })
    }

    fn rules(&mut self, root: &Node) -> Vec<Rule> {
        let items = root.get("rules").map_or(&[][..], Node::items);
        items.iter().flat_map(|item| self.rule(item)).collect()
    }

    fn rule(&mut self, item: &Node) -> Vec<Rule> {
        let Tree::Map(entries) = &item.value else { return Vec::new() };
        if let Some(used) = item.get("use") {
            if let Some((key, _)) = entries.iter().find(|(key, _)| key.name != "use") {
                let message = format!("`{}` stands beside `use`", key.name);
                self.mistakes.push(Mistake::new(key.place, message, "give it a rule of its own"));
            }
            let name = used.as_str().unwrap_or_default();
            return builtin::rules(name).unwrap_or_else(|| {
                let names = builtin::rule_names();
                let message = format!("there are no built-in rules named `{name}`");
                self.mistakes.push(Mistake::new(used.place, message, suggestion(name, &names)));
                Vec::new()
            });
        }
        let Some(outcome) = item.get("type") else {
            let help = "add `type:` with a ggml type or `keep`, or `use:` with the name of built-in rules";
            self.mistakes.push(Mistake::new(item.place, "a rule needs the key `type`", help));
            return Vec::new();
        };
        let outcome = self.outcome(outcome);
        let conditions: Vec<_> =
            entries.iter().filter_map(|(key, node)| self.condition(&key.name, node)).collect();
        outcome.map(|outcome| Rule { conditions, outcome }).into_iter().collect()
    }

    fn condition(&mut self, key: &str, node: &Node) -> Option<Condition> {
        let flag = |fact| node.as_bool().map(|value| Condition::Flag(fact, value));
        let words = || node.items().iter().filter_map(Node::as_str);
        match key {
            "role" => Some(Condition::Role(
                words()
                    .filter_map(|word| Role::WORDS.iter().find(|(known, _)| *known == word))
                    .flat_map(|(_, roles)| roles.iter().copied())
                    .collect(),
            )),
            "name" => Regex::new(node.as_str()?).ok().map(Condition::Name),
            "architecture" => Some(Condition::Architecture(words().map(str::to_owned).collect())),
            "layer" => self.layers(LayerFact::Layer, key, node),
            "block" => self.layers(LayerFact::Block, key, node),
            "count" => self.layers(LayerFact::Count, key, node),
            "slices" => self.number(NumberFact::Slices, key, node),
            "rows" => self.number(NumberFact::Rows, key, node),
            "columns" => self.number(NumberFact::Columns, key, node),
            "layers" => self.number(NumberFact::Layers, key, node),
            "experts" => self.number(NumberFact::Experts, key, node),
            "grouped_heads" => self.number(NumberFact::GroupedHeads, key, node),
            "whole_blocks" => flag(FlagFact::WholeBlocks),
            "tied" => flag(FlagFact::Tied),
            "importance" => flag(FlagFact::Importance),
            "size" => Some(Condition::Flag(FlagFact::Size70b, true)),
            _ => None,
        }
    }

    fn layers(&mut self, fact: LayerFact, key: &str, node: &Node) -> Option<Condition> {
        let ranges: Option<Vec<_>> =
            node.items().iter().map(|item| self.scalar(key, item, LayerRange::FORM)).collect();
        Some(Condition::Layer(fact, ranges?))
    }

    fn number(&mut self, fact: NumberFact, key: &str, node: &Node) -> Option<Condition> {
        self.scalar(key, node, NumberRange::FORM).map(|range| Condition::Number(fact, range))
    }

    fn scalar<T: FromStr>(&mut self, key: &str, node: &Node, form: &str) -> Option<T> {
        let text = match &node.value {
            Tree::Int(value) => value.to_string(),
            Tree::Str(text) => text.clone(),
            _ => String::new(),
        };
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let message = format!("`{key}` cannot be `{text}`");
            self.mistakes.push(Mistake::new(node.place, message, format!("give {form}")));
        }
        parsed
    }

    fn outcome(&mut self, node: &Node) -> Option<Outcome> {
        if node.as_str().is_some_and(|word| word.eq_ignore_ascii_case("keep")) {
            return Some(Outcome::Keep);
        }
        self.block_type(node).map(Outcome::As)
    }

    fn block_type(&mut self, node: &Node) -> Option<GgmlType> {
        let word = node.as_str().unwrap_or_default();
        let found = GgmlType::from_name(word);
        if found.is_none() {
            let names = GgmlType::ALL.iter().map(|ty| ty.name());
            let help = match nearest(word, names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "give a ggml type, as Q4_K, or `keep`".to_owned(),
            };
            self.mistakes.push(Mistake::new(node.place, format!("there is no ggml type `{word}`"), help));
        }
        found
    }
}
