//! The configuration's keys, declared once: checking, the JSON Schema for editors and the reference page all read
//! the tables of this module.

use crate::yaml::{Node, Place, Tree};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// What a value may be.
#[derive(Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number in a range, both ends included.
    Int {
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// Text.
    Text,
    /// A path; relative ones start at the folder of the configuration file.
    Path,
    /// A regular expression, matched anywhere in a tensor's GGUF name.
    Regex,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One item, or a list of them.
    Many(&'static Self),
    /// A map with declared keys.
    Object(&'static Object),
    /// Text (with this meaning), or a map with declared keys.
    TextOr(&'static str, &'static Object),
    /// A map whose keys the named scheme declares; checked against the loaded plugin.
    SchemeParameters,
}

/// One key of a map.
#[derive(Debug)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// `None` where it must be given; else what holds without it, in words.
    pub default: Option<&'static str>,
}

/// A map with declared keys.
#[derive(Debug)]
pub struct Object {
    /// Name in the reference page.
    pub name: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, doc, kind, default: None }
}

const fn optional(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, doc, kind, default: Some(default) }
}

/// Where plugins run.
pub const ISOLATION: &[&str] = &["none", "process"];
/// What to do when a scheme cannot take a tensor's shape.
pub const ON_FALLBACK: &[&str] = &["warn", "error"];
/// Quality metrics.
pub const METRICS: &[&str] = &["perplexity", "kl_divergence", "bits_per_byte"];
/// Report formats.
pub const FORMATS: &[&str] = &["html", "md", "csv", "json"];
/// Computing modes of the engine.
pub const MODES: &[&str] = &["f32"];

static MODEL: Object = Object {
    name: "model",
    doc: "A model to quantize: a Hugging Face folder or a GGUF file.",
    keys: &[
        required("path", Kind::Path, "Folder with `config.json` and safetensors, or a GGUF file."),
        optional(
            "name",
            Kind::Text,
            "the file's or folder's name",
            "Name in tables and of the folder for outputs.",
        ),
        optional(
            "pass_through",
            Kind::Bool,
            "false",
            "Copy tensors of other modalities (vision, audio) unchanged instead of refusing the model.",
        ),
        optional(
            "without_tokenizer",
            Kind::Bool,
            "false",
            "Accept a folder without tokenizer files; the outputs have none either and cannot be measured on text.",
        ),
        optional(
            "pre_tokenizer",
            Kind::Text,
            "recognised from `tokenizer.json`",
            "Name of a byte-level BPE's pre-tokenizer, where it is not recognised.",
        ),
        optional(
            "architecture",
            Kind::Text,
            "by the class in `config.json`",
            "Architecture of a folder whose class is not known: a GGUF name, or a known class that is built like it.",
        ),
    ],
};

static RULE: Object = Object {
    name: "rule",
    doc: "A scheme for some tensors. The first rule that matches wins.",
    keys: &[
        required("match", Kind::Regex, "Matched anywhere in the tensor's GGUF name, as `token_embd.weight`."),
        required("scheme", Kind::Text, "`name`, `name:key=value,...`, or `f32` to keep the tensor as it is."),
    ],
};

static SCHEME: Object = Object {
    name: "scheme",
    doc: "A quantization scheme with its parameters; a list as a value makes one run for each item.",
    keys: &[
        required(
            "scheme",
            Kind::Text,
            "Name of the scheme, as `kbit plugin list` shows it, or `name:key=value,...`.",
        ),
        optional(
            "params",
            Kind::SchemeParameters,
            "the scheme's defaults",
            "Values of the scheme's parameters; lists expand to a grid.",
        ),
        optional(
            "label",
            Kind::Text,
            "the scheme with its parameters",
            "Name in tables; only where nothing expands.",
        ),
        optional(
            "rules",
            Kind::Many(&Kind::Object(&RULE)),
            "the configuration's `rules`",
            "Other schemes for some tensors.",
        ),
        optional(
            "isolation",
            Kind::Choice(ISOLATION),
            "the configuration's `isolation`",
            "`process` runs the plugin in a worker process.",
        ),
    ],
};

static EVALUATION: Object = Object {
    name: "evaluation",
    doc: "A text to measure quality on.",
    keys: &[
        required("text", Kind::Path, "UTF-8 text file."),
        optional("name", Kind::Text, "the file's name", "Name in tables."),
        optional("metrics", Kind::Many(&Kind::Choice(METRICS)), "all", "What to measure."),
        optional(
            "context",
            Kind::Int { min: 2, max: 1 << 20 },
            "512, or less where the model takes less",
            "Tokens in a window; the second half is scored.",
        ),
        optional("chunks", Kind::Int { min: 1, max: 1 << 32 }, "all", "Number of windows."),
        optional("mode", Kind::Choice(MODES), "f32", "Arithmetic of the engine."),
    ],
};

static LAWS: Object = Object {
    name: "laws",
    doc: "How laws are fitted.",
    keys: &[
        optional(
            "bootstrap",
            Kind::Int { min: 0, max: 100_000 },
            "500",
            "Resamples for intervals; 0 leaves intervals out.",
        ),
        optional("seed", Kind::Int { min: 0, max: i64::MAX }, "1", "Seed of the resampling."),
    ],
};

/// The whole configuration.
pub static CONFIG: Object = Object {
    name: "configuration",
    doc: "One run: models, schemes, evaluation, laws, report.",
    keys: &[
        optional("name", Kind::Text, "the file's name", "Name of the run, the title of the report."),
        optional(
            "output",
            Kind::Path,
            "`kbit-runs/<name>` under the current folder",
            "Folder for everything that the run writes.",
        ),
        required("models", Kind::Many(&Kind::TextOr("a path", &MODEL)), "Models to quantize."),
        required(
            "schemes",
            Kind::Many(&Kind::TextOr("`name` or `name:key=value,...`", &SCHEME)),
            "Schemes to apply to each model.",
        ),
        optional("rules", Kind::Many(&Kind::Object(&RULE)), "none", "Other schemes for some tensors."),
        optional(
            "evaluate",
            Kind::Many(&Kind::Object(&EVALUATION)),
            "nothing is measured",
            "Texts to measure quality on.",
        ),
        optional(
            "plugins",
            Kind::Many(&Kind::Path),
            "none",
            "Plugin files to load beside the installed ones.",
        ),
        optional(
            "isolation",
            Kind::Choice(ISOLATION),
            "none",
            "`process` runs every plugin in a worker process: a crash or a hang is one failed file.",
        ),
        optional(
            "timeout_seconds",
            Kind::Int { min: 1, max: 86_400 },
            "60",
            "Longest time for one call of an isolated plugin.",
        ),
        optional(
            "on_fallback",
            Kind::Choice(ON_FALLBACK),
            "warn",
            "What to do when a scheme cannot take a tensor's shape: store it as f16 with a warning, or stop.",
        ),
        optional(
            "error_statistics",
            Kind::Bool,
            "true",
            "Decode what was written and compare it with the source, tensor by tensor.",
        ),
        optional(
            "provenance",
            Kind::Bool,
            "true",
            "Write hashes and the resolved plan into each file; needed by schemes with their own layout.",
        ),
        optional("laws", Kind::Object(&LAWS), "the defaults", "How laws are fitted."),
        optional(
            "report",
            Kind::Many(&Kind::Choice(FORMATS)),
            "html, md, csv, json",
            "Formats of the report.",
        ),
    ],
};

/// A mistake in a configuration: where, what, and the cure.
#[derive(Clone, Debug, PartialEq)]
pub struct Mistake {
    /// Line and column.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Mistake {
    /// A mistake at `place`.
    #[must_use]
    pub fn new(place: Place, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { place, message: message.into(), help: help.into() }
    }
}

/// The candidate nearest to `name`, if one is near enough to be a slip of the hand.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`? known: a, b, c".
#[must_use]
pub fn suggestion(name: &str, candidates: &[&str]) -> String {
    let known = candidates.join(", ");
    match nearest(name, candidates.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? known: {known}"),
        None => format!("known: {known}"),
    }
}

/// Checks `node` against `object`; appends every mistake.
pub fn check(node: &Node, object: &Object, mistakes: &mut Vec<Mistake>) {
    let Tree::Map(entries) = &node.value else {
        let keys: Vec<_> = object.keys.iter().map(|key| key.name).collect();
        let message = format!("a {} is a map, found {}", object.name, node.kind());
        mistakes.push(Mistake::new(node.place, message, format!("its keys are {}", keys.join(", "))));
        return;
    };
    for (key, value) in entries {
        match object.keys.iter().find(|known| known.name == key.name) {
            Some(known) => check_kind(value, &key.name, &known.kind, mistakes),
            None => {
                let names: Vec<_> = object.keys.iter().map(|key| key.name).collect();
                let message = format!("unknown key `{}` in a {}", key.name, object.name);
                mistakes.push(Mistake::new(key.place, message, suggestion(&key.name, &names)));
            }
        }
    }
    for key in object.keys.iter().filter(|key| key.default.is_none() && node.get(key.name).is_none()) {
        let message = format!("a {} needs the key `{}`", object.name, key.name);
        mistakes.push(Mistake::new(node.place, message, format!("add `{}:` ({})", key.name, key.doc)));
    }
}

fn check_kind(node: &Node, key: &str, kind: &Kind, mistakes: &mut Vec<Mistake>) {
    let mut wrong = |wanted: String| {
        let message = format!("`{key}` is {wanted}, found {}", describe(node));
        mistakes.push(Mistake::new(node.place, message, format!("give {wanted}")));
    };
    match kind {
        Kind::Bool if node.as_bool().is_none() => wrong("true or false".into()),
        Kind::Int { min, max } if !node.as_int().is_some_and(|value| (*min..=*max).contains(&value)) => {
            wrong(format!("a whole number from {min} to {max}"));
        }
        Kind::Text | Kind::Path | Kind::Regex if node.as_str().is_none_or(str::is_empty) => {
            wrong("text".into())
        }
        Kind::Regex => {
            if let Err(error) = regex::Regex::new(node.as_str().unwrap_or_default()) {
                let reason = error.to_string().lines().last().unwrap_or_default().to_owned();
                let message = format!("`{key}` is not a regular expression: {reason}");
                mistakes.push(Mistake::new(
                    node.place,
                    message,
                    "escape characters such as ( [ * with a backslash",
                ));
            }
        }
        Kind::Choice(words) => match node.as_str() {
            Some(word) if words.contains(&word) => {}
            Some(word) => {
                let message = format!("`{key}` cannot be `{word}`");
                mistakes.push(Mistake::new(node.place, message, suggestion(word, words)));
            }
            None => wrong(format!("one of {}", words.join(", "))),
        },
        Kind::Many(inner) => {
            if node.items().is_empty() {
                wrong("at least one item".into());
            }
            for item in node.items() {
                check_kind(item, key, inner, mistakes);
            }
        }
        Kind::Object(object) => check(node, object, mistakes),
        Kind::TextOr(_, object) => match &node.value {
            Tree::Str(text) if !text.is_empty() => {}
            _ => check(node, object, mistakes),
        },
        Kind::SchemeParameters if !matches!(node.value, Tree::Map(_)) => wrong("a map of parameters".into()),
        _ => {}
    }
}

fn describe(node: &Node) -> String {
    match &node.value {
        Tree::Str(text) => format!("`{text}`"),
        Tree::Int(value) => format!("{value}"),
        Tree::Float(value) => format!("{value}"),
        Tree::Bool(value) => format!("{value}"),
        _ => node.kind().to_owned(),
    }
}

/// JSON Schema (draft 2020-12) of the configuration, for editors.
#[must_use]
pub fn json_schema() -> Value {
    let mut schema = object_schema(&CONFIG);
    if let Value::Object(map) = &mut schema {
        map.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        map.insert("title".into(), json!("kbit configuration"));
    }
    schema
}

fn object_schema(object: &Object) -> Value {
    let mut properties = Map::new();
    for key in object.keys {
        let mut schema = kind_schema(&key.kind);
        if let Value::Object(map) = &mut schema {
            let doc = key
                .default
                .map_or_else(|| key.doc.to_owned(), |default| format!("{} Default: {default}.", key.doc));
            map.insert("description".into(), json!(doc));
        }
        properties.insert(key.name.into(), schema);
    }
    let needed: Vec<_> = object.keys.iter().filter(|key| key.default.is_none()).map(|key| key.name).collect();
    json!({
        "type": "object",
        "description": object.doc,
        "additionalProperties": false,
        "required": needed,
        "properties": properties,
    })
}

fn kind_schema(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Int { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Text | Kind::Path => json!({ "type": "string", "minLength": 1 }),
        Kind::Regex => json!({ "type": "string", "format": "regex", "minLength": 1 }),
        Kind::Choice(words) => json!({ "enum": words }),
        Kind::Many(inner) => {
            let item = kind_schema(inner);
            json!({ "anyOf": [item.clone(), { "type": "array", "minItems": 1, "items": item }] })
        }
        Kind::Object(object) => object_schema(object),
        Kind::TextOr(meaning, object) => {
            json!({ "anyOf": [{ "type": "string", "minLength": 1, "description": meaning }, object_schema(object)] })
        }
        Kind::SchemeParameters => json!({
            "type": "object",
            "additionalProperties": { "type": ["boolean", "number", "string", "array"] },
        }),
    }
}

/// The reference page of the configuration, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(
        "# Configuration reference\n\n\
         Generated from the declarations in `crates/kbit-pipeline/src/schema.rs` by `cargo xtask generate`; do not edit.\n\
         `kbit config schema` prints the same as a JSON Schema; `kbit config check FILE` checks a file.\n",
    );
    for object in [&CONFIG, &MODEL, &SCHEME, &RULE, &EVALUATION, &LAWS] {
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n| key | value | default | meaning |\n|---|---|---|---|\n",
            object.name, object.doc
        );
        for key in object.keys {
            let default = key.default.unwrap_or("*required*");
            let _ = writeln!(
                page,
                "| `{}` | {} | {default} | {} |",
                key.name,
                kind_words(&key.kind).replace('|', "\\|"),
                key.doc
            );
        }
    }
    page
}

fn kind_words(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "true or false".into(),
        Kind::Int { min, max } => format!("{min} to {max}"),
        Kind::Text => "text".into(),
        Kind::Path => "path".into(),
        Kind::Regex => "regular expression".into(),
        Kind::Choice(words) => words.join(", "),
        Kind::Many(inner) => format!("{}, or a list", kind_words(inner)),
        Kind::Object(object) => format!("[{0}](#{0})", object.name),
        Kind::TextOr(meaning, object) => format!("{meaning}, or a [{0}](#{0})", object.name),
        Kind::SchemeParameters => "the scheme's parameters".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes_of(text: &str) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        check(&Node::parse(text).unwrap(), &CONFIG, &mut mistakes);
        mistakes
    }

    #[test]
    fn names_the_nearest_key_for_a_slip() {
        let mistakes = mistakes_of("models: a\nshemes: int\n");
        assert_eq!(mistakes[0].place, Place { line: 2, column: 1 });
        assert!(mistakes[0].help.starts_with("did you mean `schemes`?"), "{}", mistakes[0].help);
        assert!(mistakes[1].message.contains("needs the key `schemes`"));
    }

    #[test]
    fn refuses_values_of_the_wrong_kind_at_their_place() {
        let mistakes =
            mistakes_of("models: a\nschemes:\n  - scheme: int\n    isolation: proces\nprovenance: 3\n");
        assert_eq!((mistakes[0].place.line, mistakes[0].place.column), (4, 16));
        assert!(mistakes[0].help.contains("`process`"));
        assert!(mistakes[1].message.contains("true or false"));
    }

    #[test]
    fn refuses_a_broken_regular_expression() {
        let mistakes = mistakes_of("models: a\nschemes: int\nrules: [{match: '(', scheme: f32}]\n");
        assert!(mistakes[0].message.contains("regular expression"), "{mistakes:?}");
    }

    #[test]
    fn accepts_one_item_where_a_list_may_stand() {
        assert_eq!(mistakes_of("models: a\nschemes: int\nevaluate: {text: b, metrics: perplexity}\n"), []);
    }

    #[test]
    fn the_json_schema_requires_what_the_check_requires() {
        assert_eq!(json_schema()["required"], json!(["models", "schemes"]));
    }
}
