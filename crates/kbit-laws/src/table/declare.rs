//! The description of a table: its keys, declared once, and what they were set to.

use kbit_yaml::{
    DocumentError, Key, Kind, Mistake, Node, Object, Tree, check, optional, read_text, required, suggestion,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How a number stands in its column.
const FORMS: &[&str] = &["value", "log", "one_minus"];

static COLUMN: Object = Object {
    name: "column",
    doc: "A column of the table, and how its numbers are written.",
    keys: &[
        required("column", Kind::Text, "Heading of the column."),
        optional(
            "times",
            Kind::Scalar("a number"),
            "1",
            "The numbers are times this: `2097152` for steps of so many tokens.",
        ),
        optional(
            "values",
            Kind::Parameters,
            "none",
            "Numbers for the texts in the column: a size for each name of a model.",
        ),
        optional(
            "as",
            Kind::Choice(FORMS),
            "value",
            "`value`: as it stands; `log`: its natural logarithm, to make a loss of a perplexity; `one_minus`: to make an error of an accuracy.",
        ),
    ],
};

/// A quantity that may stand in a column.
const fn quantity(name: &'static str, doc: &'static str) -> Key {
    optional(name, Kind::TextOr("the heading of a column", &COLUMN), "not known", doc)
}

static TABLE: Object = Object {
    name: "table",
    doc: "A table of figures that laws are fitted to.",
    keys: &[
        required(
            "file",
            Kind::Path,
            "CSV file whose first line has the headings; relative paths start at this YAML file's folder.",
        ),
        optional(
            "where",
            Kind::Parameters,
            "all lines",
            "Headings with the text that a line must have there, or a list of texts.",
        ),
        optional("least", Kind::Parameters, "no limit", "Headings with the least number that counts."),
        optional("most", Kind::Parameters, "no limit", "Headings with the greatest number that counts."),
        optional(
            "average",
            Kind::Text,
            "lines are points",
            "Heading of a column, such as the task's: lines that differ in it and the loss alone are one point, their mean. Points that lack one of its values are left out.",
        ),
        required("model", Kind::Text, "Heading of the column with the model's name."),
        optional(
            "scheme",
            Kind::Text,
            "unquantized",
            "Heading of the column with the scheme's name; `none` is unquantized.",
        ),
        optional(
            "family",
            Kind::Text,
            "the scheme",
            "Heading of the column with the family of schemes that laws are fitted to.",
        ),
        quantity("params", "Parameters N."),
        quantity("tokens", "Training tokens D."),
        quantity("flops", "Training FLOPs C."),
        quantity("bits", "True bits a weight P."),
        quantity("width", "Nominal bits a weight k; else P, rounded."),
        quantity(
            "loss",
            "A loss, in nats a token where the constants are to mean what they do elsewhere; any positive figure that is better where it is less can be fitted.",
        ),
        quantity("divergence", "KL divergence from the unquantized model, nats."),
    ],
};

static DOCUMENT: Object = Object {
    name: "document",
    doc: "What `kbit fit FILE.yaml` reads.",
    keys: &[required("table", Kind::Object(&TABLE), "The table.")],
};

/// How a number stands in its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Value,
    Log,
    OneMinus,
}

/// Where a quantity stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub heading: String,
    pub times: f64,
    pub values: BTreeMap<String, f64>,
    pub form: Form,
}

/// The description of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The CSV file.
    pub file: PathBuf,
    /// Headings with the texts that count.
    pub(super) only: Vec<(String, Vec<String>)>,
    /// Headings with the least and the greatest number that counts.
    pub(super) limits: Vec<(String, f64, f64)>,
    pub(super) average: Option<String>,
    pub(super) model: String,
    pub(super) scheme: Option<String>,
    pub(super) family: Option<String>,
    /// Quantities by their keys.
    pub(super) columns: BTreeMap<&'static str, Column>,
}

/// True where the YAML `text` describes a table, not a run.
#[must_use]
pub fn is_table(text: &str) -> bool {
    Node::parse(text).is_ok_and(|node| node.get("table").is_some())
}

/// A scalar as the text that would stand in a CSV file.
fn text(node: &Node) -> Option<String> {
    match &node.value {
        Tree::Str(text) => Some(text.clone()),
        Tree::Int(value) => Some(value.to_string()),
        Tree::Float(value) => Some(value.to_string()),
        Tree::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for a fit")]
fn number(node: &Node) -> Option<f64> {
    match &node.value {
        Tree::Int(value) => Some(*value as f64),
        Tree::Float(value) => Some(*value),
        Tree::Str(text) => text.parse().ok(),
        _ => None,
    }
    .filter(|value: &f64| value.is_finite())
}

/// The entries of the map under `key`, each through `value`; those that it refuses are mistakes: `wanted` was wanted.
fn entries<T>(
    node: &Node,
    key: &str,
    wanted: &str,
    value: impl Fn(&Node) -> Option<T>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<(String, T)> {
    let Some(Node { value: Tree::Map(entries), .. }) = node.get(key) else { return Vec::new() };
    let mut found = Vec::new();
    for (name, entry) in entries {
        match value(entry) {
            Some(value) => found.push((name.name.clone(), value)),
            None => {
                let message = format!("`{}` below `{key}` is {wanted}, found {}", name.name, entry.kind());
                mistakes.push(Mistake::new(entry.place, message, format!("give {wanted}")));
            }
        }
    }
    found
}

impl Column {
    fn of(node: &Node, mistakes: &mut Vec<Mistake>) -> Self {
        if let Some(heading) = node.as_str() {
            return Self {
                heading: heading.to_owned(),
                times: 1.0,
                values: BTreeMap::new(),
                form: Form::Value,
            };
        }
        let words = |key: &str| node.get(key).and_then(Node::as_str).unwrap_or_default();
        let mut times = 1.0;
        if let Some(given) = node.get("times") {
            match number(given) {
                Some(value) => times = value,
                None => {
                    mistakes.push(Mistake::new(given.place, "`times` is no number", "give a number, as 1e6"))
                }
            }
        }
        Self {
            heading: words("column").to_owned(),
            times,
            values: entries(node, "values", "a number", number, mistakes).into_iter().collect(),
            form: match words("as") {
                "log" => Form::Log,
                "one_minus" => Form::OneMinus,
                _ => Form::Value,
            },
        }
    }
}

impl Table {
    /// The description in the YAML file `file`.
    ///
    /// # Errors
    /// A file that cannot be read, and every mistake in it with its place.
    pub fn read(file: &Path) -> Result<Self, DocumentError> {
        Self::parse(&read_text(file, "the description of the table")?, file)
    }

    /// The description in `yaml`, the text of `file`.
    ///
    /// # Errors
    /// Every mistake with its place.
    pub fn parse(yaml: &str, file: &Path) -> Result<Self, DocumentError> {
        let fail = |mistakes| DocumentError::new(file, yaml, mistakes);
        let root = Node::parse(yaml)
            .map_err(|(place, message)| fail(vec![Mistake::new(place, message, "mend the YAML")]))?;
        let mut mistakes = Vec::new();
        check(&root, &DOCUMENT, &mut mistakes);
        let Some(node) = root.get("table").filter(|_| mistakes.is_empty()) else {
            return Err(fail(mistakes));
        };
        let word = |key: &str| node.get(key).and_then(Node::as_str).map(str::to_owned);
        let texts = |node: &Node| node.items().iter().map(text).collect::<Option<Vec<_>>>();
        let only = entries(node, "where", "a text or a list of texts", texts, &mut mistakes);
        let mut limits: Vec<(String, f64, f64)> = Vec::new();
        for (heading, least) in entries(node, "least", "a number", number, &mut mistakes) {
            limits.push((heading, least, f64::INFINITY));
        }
        for (heading, most) in entries(node, "most", "a number", number, &mut mistakes) {
            limits.push((heading, f64::NEG_INFINITY, most));
        }
        let names = ["params", "tokens", "flops", "bits", "width", "loss", "divergence"];
        let columns: BTreeMap<&'static str, Column> = names
            .into_iter()
            .filter_map(|name| Some((name, Column::of(node.get(name)?, &mut mistakes))))
            .collect();
        if !columns.contains_key("loss") && !columns.contains_key("divergence") {
            let message = "the table has neither `loss` nor `divergence`";
            mistakes.push(Mistake::new(node.place, message, "name the column that laws are fitted to"));
        }
        if !mistakes.is_empty() {
            return Err(fail(mistakes));
        }
        let folder = file.parent().unwrap_or_else(|| Path::new(""));
        Ok(Self {
            file: folder.join(word("file").unwrap_or_default()),
            only,
            limits,
            average: word("average"),
            model: word("model").unwrap_or_default(),
            scheme: word("scheme"),
            family: word("family"),
            columns,
        })
    }

    /// A heading that the table must have, for the message where it lacks it.
    pub(super) fn unknown(heading: &str, headings: &[String]) -> String {
        let known: Vec<&str> = headings.iter().map(String::as_str).collect();
        format!("there is no column `{heading}`; {}", suggestion(heading, &known))
    }
}
