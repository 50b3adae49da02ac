//! Scheme arguments (`int:bits=4,block=64`), parameter values, and checking values against a scheme's declaration.
//!
//! ```
//! use kbit_host::{ParamValue, SchemeSpec};
//! let spec: SchemeSpec = "int:bits=4,block=64".parse()?;
//! assert_eq!(spec.name, "int");
//! assert_eq!(spec.params["bits"], ParamValue::Int(4));
//! assert_eq!(spec.to_string(), "int:bits=4,block=64");
//! # Ok::<(), kbit_host::HostError>(())
//! ```

use crate::error::{HostError, nearest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Value of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ParamValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// A word (also of a choice).
    Str(String),
    /// A list of finite numbers, written `[1;2.5;3]`.
    Numbers(Vec<f64>),
}

/// By way of a JSON value, which keeps whole numbers apart from others whatever features serde_json is built with.
impl<'de> Deserialize<'de> for ParamValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde_json::Value;
        let value = Value::deserialize(deserializer)?;
        let read = match &value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Number(number) => {
                number.as_i64().map(Self::Int).or_else(|| number.as_f64().map(Self::Float))
            }
            Value::String(text) => Some(Self::Str(text.clone())),
            Value::Array(items) => items.iter().map(Value::as_f64).collect::<Option<_>>().map(Self::Numbers),
            Value::Null | Value::Object(_) => None,
        };
        read.ok_or_else(|| serde::de::Error::custom(format!("{value} is no value of a parameter")))
    }
}

/// Values by key. The order of keys is the canonical one.
pub type ParamValues = BTreeMap<String, ParamValue>;

impl ParamValue {
    /// Reads a value as it is written in a scheme argument.
    ///
    /// # Errors
    /// An unclosed quote or bracket, or a number that is not finite.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix('"') {
            let inner = rest.strip_suffix('"').filter(|_| text.len() >= 2);
            return inner
                .map(unescape)
                .ok_or_else(|| format!("{text} lacks its closing quote"))
                .map(Self::Str);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or_else(|| format!("{text} lacks its closing bracket"))?;
            let number = |item: &str| match item.trim().parse::<f64>() {
                Ok(value) if value.is_finite() => Ok(value),
                _ => Err(format!("`{}` in {text} is not a finite number", item.trim())),
            };
            let items = inner.split(';').filter(|_| !inner.trim().is_empty());
            return items.map(number).collect::<Result<_, _>>().map(Self::Numbers);
        }
        Ok(match text {
            "true" => Self::Bool(true),
            "false" => Self::Bool(false),
            _ => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(value), _) => Self::Int(value),
                // `nan` and `inf` are words here: no parameter takes them as numbers.
                (_, Ok(value)) if value.is_finite() && text.contains(|c: char| c.is_ascii_digit()) => {
                    Self::Float(value)
                }
                _ => Self::Str(text.to_owned()),
            },
        })
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

/// The shortest text that [`ParamValue::parse`] reads back as the same value.
impl fmt::Display for ParamValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Str(value) => {
                let plain = Self::parse(value).as_ref() == Ok(self)
                    && !value.is_empty()
                    && !value.contains([',', '=', '"', '\\'])
                    && value.trim() == value;
                if plain {
                    f.write_str(value)
                } else {
                    write!(f, "\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
                }
            }
            Self::Numbers(values) => {
                let items: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
                write!(f, "[{}]", items.join(";"))
            }
        }
    }
}

impl From<bool> for ParamValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for ParamValue {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for ParamValue {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for ParamValue {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<Vec<f64>> for ParamValue {
    fn from(value: Vec<f64>) -> Self {
        Self::Numbers(value)
    }
}

/// A scheme by name, with the parameters that were given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchemeSpec {
    /// Name as given; `ggml:q4_0` has the name `ggml.q4_0`.
    pub name: String,
    /// Parameters as given.
    pub params: ParamValues,
}

impl FromStr for SchemeSpec {
    type Err = HostError;

    /// Reads `name`, `name:key=value,...`, or `group:name,key=value,...`.
    fn from_str(text: &str) -> Result<Self, HostError> {
        let wrong = |reason: String| HostError::SpecSyntax { text: text.to_owned(), reason };
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        let mut name = name.trim().to_owned();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if name.is_empty() || !name.chars().all(allowed) {
            return Err(wrong(format!("`{name}` is not a scheme name")));
        }
        let mut params = ParamValues::new();
        for (index, item) in rest.map_or_else(Vec::new, split_items).into_iter().enumerate() {
            match item.split_once('=') {
                Some((key, value)) => {
                    let key = key.trim();
                    let value = ParamValue::parse(value).map_err(&wrong)?;
                    if params.insert(key.to_owned(), value).is_some() {
                        return Err(wrong(format!("`{key}` is given twice")));
                    }
                }
                None if index == 0 && !item.trim().is_empty() && item.trim().chars().all(allowed) => {
                    name = format!("{name}.{}", item.trim());
                }
                None => return Err(wrong(format!("`{}` is not key=value", item.trim()))),
            }
        }
        Ok(Self { name, params })
    }
}

/// Splits at commas outside quotes.
fn split_items(text: &str) -> Vec<&str> {
    let (mut items, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                items.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    items.push(&text[start..]);
    items
}

/// The canonical form: parameters sorted by key.
impl fmt::Display for SchemeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A dotted name that is no full id is written as the argument that it came from.
        match self.name.split_once('.') {
            Some((group, name)) if !name.contains(['.', '/']) => write!(f, "{group}:{name}")?,
            _ => f.write_str(&self.name)?,
        }
        let mut separator = if self.name.contains('.') && !self.name.contains('/') { ',' } else { ':' };
        for (key, value) in &self.params {
            write!(f, "{separator}{key}={value}")?;
            separator = ',';
        }
        Ok(())
    }
}

/// What a parameter takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ParamKind {
    /// `true` or `false`.
    Bool,
    /// A whole number, limits included.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// A finite number, limits included.
    Float {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// Any text.
    Str,
    /// One of these words.
    Choice {
        /// The words.
        choices: Vec<String>,
    },
    /// A list of finite numbers.
    Numbers,
}

/// One parameter of a scheme, as its plugin declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamInfo {
    /// Name.
    pub key: String,
    /// What it means.
    pub doc: String,
    /// Unit, or empty.
    pub unit: String,
    /// What it takes.
    #[serde(flatten)]
    pub kind: ParamKind,
    /// Value where none is given.
    pub default: Option<ParamValue>,
    /// True where a value must be given.
    pub required: bool,
}

impl ParamInfo {
    /// What it takes, in words: `2..=8`, `absmax | mse`.
    #[must_use]
    pub fn values(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        match &self.kind {
            ParamKind::Bool => "true | false".to_owned(),
            ParamKind::Int { min, max } => format!("{}..={}{unit}", limit(*min), limit(*max)),
            ParamKind::Float { min, max } => format!("{min}..={max}{unit}"),
            ParamKind::Str => format!("text{unit}"),
            ParamKind::Choice { choices } => choices.join(" | "),
            ParamKind::Numbers => format!("[number;...]{unit}"),
        }
    }

    /// The default in words: `4`, or `required`.
    #[must_use]
    pub fn default_text(&self) -> String {
        match &self.default {
            Some(value) => value.to_string(),
            None if self.required => "required".to_owned(),
            None => "none".to_owned(),
        }
    }

    fn expected(&self) -> String {
        match &self.kind {
            ParamKind::Bool => "true or false".to_owned(),
            ParamKind::Int { .. } => format!("a whole number in {}", self.values()),
            ParamKind::Float { .. } => format!("a number in {}", self.values()),
            ParamKind::Str => "text".to_owned(),
            ParamKind::Choice { choices } => format!("one of {}", choices.join(", ")),
            ParamKind::Numbers => "a list of numbers, as [1;2.5]".to_owned(),
        }
    }

    /// `value` in the declared type, or `None` where it does not fit. Whole numbers pass as numbers, single numbers
    /// as lists, and words that look like numbers as words.
    #[must_use]
    pub fn accept(&self, value: &ParamValue) -> Option<ParamValue> {
        #[expect(clippy::cast_precision_loss, reason = "a whole number given for a number rounds to nearest")]
        match (&self.kind, value) {
            (ParamKind::Bool, ParamValue::Bool(_)) => Some(value.clone()),
            (ParamKind::Int { min, max }, ParamValue::Int(given)) => {
                (min..=max).contains(&given).then(|| value.clone())
            }
            (ParamKind::Int { min, max }, ParamValue::Float(given)) => {
                whole(*given).filter(|given| (min..=max).contains(&given)).map(ParamValue::Int)
            }
            (ParamKind::Float { min, max }, ParamValue::Float(given)) => {
                (given.is_finite() && (min..=max).contains(&given)).then(|| value.clone())
            }
            (ParamKind::Float { .. }, ParamValue::Int(given)) => {
                self.accept(&ParamValue::Float(*given as f64))
            }
            (ParamKind::Str, ParamValue::Str(_)) => Some(value.clone()),
            (ParamKind::Str, ParamValue::Bool(_) | ParamValue::Int(_)) => {
                Some(ParamValue::Str(value.to_string()))
            }
            (ParamKind::Choice { choices }, _) => {
                let text = match value {
                    ParamValue::Str(text) => text.clone(),
                    other => other.to_string(),
                };
                choices.contains(&text).then_some(ParamValue::Str(text))
            }
            (ParamKind::Numbers, ParamValue::Numbers(values)) => {
                values.iter().all(|value| value.is_finite()).then(|| value.clone())
            }
            (ParamKind::Numbers, ParamValue::Float(given)) => {
                given.is_finite().then(|| ParamValue::Numbers(vec![*given]))
            }
            (ParamKind::Numbers, ParamValue::Int(given)) => Some(ParamValue::Numbers(vec![*given as f64])),
            _ => None,
        }
    }
}

fn limit(value: i64) -> String {
    match value {
        i64::MIN => String::new(),
        i64::MAX => String::new(),
        _ => value.to_string(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "checked to be whole and in range"
)]
fn whole(value: f64) -> Option<i64> {
    (value.fract() == 0.0 && value.abs() < (1u64 << 53) as f64).then_some(value as i64)
}

/// Checks `given` against `declared`, without asking for missing ones. Values come back in their declared types.
pub(crate) fn check_values(
    scheme: &str,
    declared: &[ParamInfo],
    given: &ParamValues,
) -> Result<ParamValues, HostError> {
    let mut checked = ParamValues::new();
    for (key, value) in given {
        let Some(param) = declared.iter().find(|param| &param.key == key) else {
            return Err(HostError::UnknownParam {
                scheme: scheme.to_owned(),
                key: key.clone(),
                nearest: nearest(key, declared.iter().map(|param| param.key.as_str())),
                known: declared.iter().map(|param| param.key.clone()).collect(),
            });
        };
        let Some(value) = param.accept(value) else {
            let choices = match &param.kind {
                ParamKind::Choice { choices } => choices.as_slice(),
                _ => &[],
            };
            let given = value.to_string();
            return Err(HostError::ParamValue {
                scheme: scheme.to_owned(),
                key: key.clone(),
                expected: param.expected(),
                nearest: nearest(&given, choices.iter().map(String::as_str)),
                given,
            });
        };
        checked.insert(key.clone(), value);
    }
    Ok(checked)
}

/// Checks `given` and fills in the defaults.
pub(crate) fn resolve(
    scheme: &str,
    declared: &[ParamInfo],
    given: &ParamValues,
) -> Result<ParamValues, HostError> {
    let mut values = check_values(scheme, declared, given)?;
    for param in declared {
        if values.contains_key(&param.key) {
            continue;
        }
        match &param.default {
            Some(value) => drop(values.insert(param.key.clone(), value.clone())),
            None if param.required => {
                return Err(HostError::MissingParam {
                    scheme: scheme.to_owned(),
                    key: param.key.clone(),
                    doc: param.doc.clone(),
                });
            }
            None => {}
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> SchemeSpec {
        text.parse().unwrap()
    }

    fn declared() -> Vec<ParamInfo> {
        let param = |key: &str, kind, default: Option<ParamValue>| ParamInfo {
            key: key.to_owned(),
            doc: format!("the {key}"),
            unit: String::new(),
            kind,
            required: default.is_none(),
            default,
        };
        vec![
            param("bits", ParamKind::Int { min: 2, max: 8 }, Some(4.into())),
            param(
                "scale",
                ParamKind::Choice { choices: vec!["f16".into(), "f32".into()] },
                Some("f16".into()),
            ),
            param("clip", ParamKind::Float { min: 0.0, max: 1.0 }, Some(0.5.into())),
            param("levels", ParamKind::Numbers, Some(vec![].into())),
            param("label", ParamKind::Str, None),
            param("flag", ParamKind::Bool, Some(true.into())),
        ]
    }

    fn resolved(text: &str) -> Result<ParamValues, HostError> {
        resolve("org.example.x/1", &declared(), &spec(text).params)
    }

    #[test]
    fn reads_names_and_values() {
        let read =
            spec("int: bits=4 , scale = f16,clip=0.25,flag=true,levels=[-1;0.5],label=\"a,b=\\\"c\\\"\"");
        assert_eq!(read.name, "int");
        assert_eq!(read.params["bits"], ParamValue::Int(4));
        assert_eq!(read.params["clip"], ParamValue::Float(0.25));
        assert_eq!(read.params["levels"], ParamValue::Numbers(vec![-1.0, 0.5]));
        assert_eq!(read.params["label"], ParamValue::Str("a,b=\"c\"".into()));
    }

    #[test]
    fn the_first_item_without_a_value_belongs_to_the_name() {
        assert_eq!(spec("ggml:q4_0").name, "ggml.q4_0");
        assert_eq!(spec("ggml:q4_0").to_string(), "ggml:q4_0");
        let with = spec("ggml:q4_0,x=1");
        assert_eq!((with.name.as_str(), &with.params["x"]), ("ggml.q4_0", &ParamValue::Int(1)));
        assert_eq!(with.to_string(), "ggml:q4_0,x=1");
        assert_eq!(spec("org.kbit.int/1:bits=3").to_string(), "org.kbit.int/1:bits=3");
    }

    #[test]
    fn the_written_form_reads_back() {
        for text in
            ["int", "int:b=1,a=2", "x:s=\"7\"", "x:s=\"\"", "x:f=1.0,g=1e300", "x:n=[1.0;2.5]", "x:n=[]"]
        {
            let read = spec(text);
            assert_eq!(spec(&read.to_string()), read, "{text}");
        }
        assert_eq!(spec("int:b=1,a=2").to_string(), "int:a=2,b=1");
        assert_eq!(spec("x:s=\"7\"").params["s"], ParamValue::Str("7".into()));
    }

    #[test]
    fn refuses_arguments_that_cannot_be_read() {
        for text in
            ["", ":bits=4", "int:bits", "int:a=1,b", "int:a=1,a=2", "in t", "x:s=\"a", "x:n=[1;nan]", "int:"]
        {
            let parsed: Result<SchemeSpec, _> = text.parse();
            if text == "int:bits" {
                assert_eq!(parsed.unwrap().name, "int.bits");
            } else {
                assert!(matches!(parsed, Err(HostError::SpecSyntax { .. })), "{text}: {parsed:?}");
            }
        }
    }

    #[test]
    fn fills_in_defaults_and_converts_types() {
        let values = resolved("x:label=7,bits=3.0,clip=1,levels=2").unwrap();
        assert_eq!(values["label"], ParamValue::Str("7".into()));
        assert_eq!(values["bits"], ParamValue::Int(3));
        assert_eq!(values["clip"], ParamValue::Float(1.0));
        assert_eq!(values["levels"], ParamValue::Numbers(vec![2.0]));
        assert_eq!(values["scale"], ParamValue::Str("f16".into()));
        assert_eq!(values.len(), declared().len());
    }

    #[test]
    fn names_the_wrong_parameter_and_the_nearest_right_one() {
        let message = resolved("x:label=a,bit=4").unwrap_err().to_string();
        assert!(message.contains("no parameter `bit` (did you mean bits?)"), "{message}");
        let message = resolved("x:label=a,scale=f61").unwrap_err().to_string();
        assert!(message.contains("one of f16, f32 (did you mean f16?)"), "{message}");
        for text in ["x:label=a,bits=9", "x:label=a,bits=2.5", "x:label=a,clip=2", "x:label=a,flag=1"] {
            assert!(matches!(resolved(text), Err(HostError::ParamValue { .. })), "{text}");
        }
        assert!(matches!(resolved("x"), Err(HostError::MissingParam { .. })));
    }

    #[test]
    fn values_keep_their_type_through_json() {
        let values = resolved("x:label=a,clip=1").unwrap();
        let json = serde_json::to_string(&values).unwrap();
        assert_eq!(serde_json::from_str::<ParamValues>(&json).unwrap(), values, "{json}");
    }
}
