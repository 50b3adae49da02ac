//! The keys of a YAML map, declared once: checking, the JSON Schema for editors and the reference page read the same tables.

use crate::mistake::{Mistake, suggestion};
use crate::tree::{Node, Tree};
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
    /// A path; relative ones start at the folder of the YAML file.
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
    /// A map of parameters whose keys are declared elsewhere (by a plugin); whoever knows them checks them.
    Parameters,
    /// A number or text of this form, in words; whoever reads it checks it.
    Scalar(&'static str),
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

/// A key that must be given.
#[must_use]
pub const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, doc, kind, default: None }
}

/// A key that may be left out; `default` says in words what holds then.
#[must_use]
pub const fn optional(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, doc, kind, default: Some(default) }
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
        Kind::Parameters if !matches!(node.value, Tree::Map(_)) => wrong("a map of parameters".into()),
        Kind::Scalar(form) if matches!(node.value, Tree::Null | Tree::Map(_) | Tree::List(_)) => {
            wrong((*form).into())
        }
        _ => {}
    }
}

pub(crate) fn describe(node: &Node) -> String {
    match &node.value {
        Tree::Str(text) => format!("`{text}`"),
        Tree::Int(value) => format!("{value}"),
        Tree::Float(value) => format!("{value}"),
        Tree::Bool(value) => format!("{value}"),
        _ => node.kind().to_owned(),
    }
}

/// JSON Schema (draft 2020-12) of the maps that `object` declares, for editors.
#[must_use]
pub fn json_schema(object: &Object) -> Value {
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
        Kind::Object(object) => json_schema(object),
        Kind::TextOr(meaning, object) => {
            json!({ "anyOf": [{ "type": "string", "minLength": 1, "description": meaning }, json_schema(object)] })
        }
        Kind::Scalar(form) => json!({ "type": ["boolean", "number", "string"], "description": form }),
        Kind::Parameters => json!({
            "type": "object",
            "additionalProperties": { "type": ["boolean", "number", "string", "array"] },
        }),
    }
}

/// Reference tables of `objects` in Markdown, a heading each.
#[must_use]
pub fn reference_tables(objects: &[&Object]) -> String {
    let mut page = String::new();
    for object in objects {
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
        Kind::Parameters => "parameters".into(),
        Kind::Scalar(form) => (*form).into(),
    }
}
