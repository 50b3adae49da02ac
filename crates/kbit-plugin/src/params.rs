//! Parameters: their declaration, and the values that a scheme is opened with.

use crate::scheme::Error;
use std::collections::BTreeMap;

/// What a parameter's value may be.
#[derive(Clone, Copy, Debug)]
pub enum ParamKind {
    /// `true` or `false`.
    Bool,
    /// A whole number, both ends included.
    Int {
        /// Least.
        min: i64,
        /// Greatest.
        max: i64,
    },
    /// A number, both ends included.
    Float {
        /// Least.
        min: f64,
        /// Greatest.
        max: f64,
    },
    /// Text.
    Str,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of numbers.
    Numbers,
}

/// The value of a parameter that is not given.
#[derive(Clone, Copy, Debug)]
pub enum DefaultValue {
    /// It must be given.
    Required,
    /// Of [`ParamKind::Bool`].
    Bool(bool),
    /// Of [`ParamKind::Int`].
    Int(i64),
    /// Of [`ParamKind::Float`].
    Float(f64),
    /// Of [`ParamKind::Str`] and [`ParamKind::Choice`].
    Str(&'static str),
    /// Of [`ParamKind::Numbers`].
    Numbers(&'static [f64]),
}

/// A parameter's declaration.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Name: `[a-z][a-z0-9_]*`.
    pub key: &'static str,
    /// Meaning, in one sentence.
    pub doc: &'static str,
    /// Unit, or empty.
    pub unit: &'static str,
    /// What the value may be.
    pub kind: ParamKind,
    /// The value where none is given.
    pub default: DefaultValue,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Given {
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Numbers(Vec<f64>),
}

/// The values that a scheme is opened with: checked, defaults filled in.
#[derive(Clone, Debug)]
pub struct Params {
    values: BTreeMap<&'static str, Given>,
}

impl Params {
    /// The defaults of `declared`, with `given` in their place; for tests of a scheme by itself.
    ///
    /// # Errors
    /// As when the host opens the scheme.
    pub fn from_ints(declared: &'static [Param], given: &[(&str, i64)]) -> Result<Self, Error> {
        Self::new(
            declared,
            given.iter().map(|(key, value)| ((*key).to_owned(), Given::Int(*value))).collect(),
        )
    }

    /// As [`Params::from_ints`], from text: `bits=4,scale=f16`.
    ///
    /// # Errors
    /// As when the host opens the scheme.
    pub fn parse(declared: &'static [Param], text: &str) -> Result<Self, Error> {
        let mut given = Vec::new();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (key, value) =
                item.split_once('=').ok_or_else(|| Error::param(format!("{item}: write key=value")))?;
            let value = match (value.parse::<i64>(), value.parse::<f64>(), value) {
                (_, _, "true") => Given::Bool(true),
                (_, _, "false") => Given::Bool(false),
                (Ok(number), ..) => Given::Int(number),
                (_, Ok(number), _) => Given::Float(number),
                _ => Given::Str(value.to_owned()),
            };
            given.push((key.to_owned(), value));
        }
        Self::new(declared, given)
    }

    pub(crate) fn new(declared: &'static [Param], given: Vec<(String, Given)>) -> Result<Self, Error> {
        let mut values = BTreeMap::new();
        for (key, value) in given {
            let Some(param) = declared.iter().find(|param| param.key == key) else {
                let known: Vec<_> = declared.iter().map(|param| param.key).collect();
                return Err(Error::param(format!("unknown parameter {key}; known: {}", known.join(", "))));
            };
            values.insert(param.key, check(param, value)?);
        }
        for param in declared {
            let value = match param.default {
                DefaultValue::Required if values.contains_key(param.key) => continue,
                DefaultValue::Required => {
                    return Err(Error::param(format!("the parameter {} is required", param.key)));
                }
                DefaultValue::Bool(value) => Given::Bool(value),
                DefaultValue::Int(value) => Given::Int(value),
                DefaultValue::Float(value) => Given::Float(value),
                DefaultValue::Str(value) => Given::Str(value.to_owned()),
                DefaultValue::Numbers(value) => Given::Numbers(value.to_vec()),
            };
            values.entry(param.key).or_insert(value);
        }
        Ok(Self { values })
    }

    /// A whole number.
    ///
    /// # Errors
    /// When no such parameter is declared.
    pub fn int(&self, key: &str) -> Result<i64, Error> {
        match self.values.get(key) {
            Some(Given::Int(value)) => Ok(*value),
            _ => Err(undeclared(key, "a whole number")),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// When no such parameter is declared.
    pub fn float(&self, key: &str) -> Result<f64, Error> {
        match self.values.get(key) {
            Some(Given::Float(value)) => Ok(*value),
            _ => Err(undeclared(key, "a number")),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// When no such parameter is declared.
    pub fn bool(&self, key: &str) -> Result<bool, Error> {
        match self.values.get(key) {
            Some(Given::Bool(value)) => Ok(*value),
            _ => Err(undeclared(key, "true or false")),
        }
    }

    /// Text, or the word of a choice.
    ///
    /// # Errors
    /// When no such parameter is declared.
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        match self.values.get(key) {
            Some(Given::Str(value)) => Ok(value),
            _ => Err(undeclared(key, "text")),
        }
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// When no such parameter is declared.
    pub fn numbers(&self, key: &str) -> Result<&[f64], Error> {
        match self.values.get(key) {
            Some(Given::Numbers(value)) => Ok(value),
            _ => Err(undeclared(key, "a list of numbers")),
        }
    }
}

fn undeclared(key: &str, kind: &str) -> Error {
    Error::internal(format!("the scheme reads the parameter {key} as {kind}, but does not declare it so"))
}

fn check(param: &Param, value: Given) -> Result<Given, Error> {
    let wrong = |wanted: String| Err(Error::param(format!("{} must be {wanted}", param.key)));
    match (param.kind, value) {
        (ParamKind::Bool, Given::Bool(value)) => Ok(Given::Bool(value)),
        (ParamKind::Bool, _) => wrong("true or false".into()),
        (ParamKind::Int { min, max }, Given::Int(value)) if (min..=max).contains(&value) => {
            Ok(Given::Int(value))
        }
        (ParamKind::Int { min, max }, _) => wrong(format!("a whole number from {min} to {max}")),
        (ParamKind::Float { min, max }, Given::Float(value)) if value >= min && value <= max => {
            Ok(Given::Float(value))
        }
        #[expect(clippy::cast_precision_loss, reason = "a whole number given for a number")]
        (ParamKind::Float { min, max }, Given::Int(value)) if value as f64 >= min && value as f64 <= max => {
            Ok(Given::Float(value as f64))
        }
        (ParamKind::Float { min, max }, _) => wrong(format!("a number from {min} to {max}")),
        (ParamKind::Str, Given::Str(value)) => Ok(Given::Str(value)),
        (ParamKind::Str, _) => wrong("text".into()),
        (ParamKind::Choice(words), Given::Str(value)) if words.contains(&value.as_str()) => {
            Ok(Given::Str(value))
        }
        (ParamKind::Choice(words), _) => wrong(format!("one of {}", words.join(", "))),
        (ParamKind::Numbers, Given::Numbers(value)) => Ok(Given::Numbers(value)),
        (ParamKind::Numbers, _) => wrong("a list of numbers".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static DECLARED: &[Param] = &[
        Param {
            key: "bits",
            doc: "",
            unit: "",
            kind: ParamKind::Int { min: 2, max: 8 },
            default: DefaultValue::Int(4),
        },
        Param {
            key: "scale",
            doc: "",
            unit: "",
            kind: ParamKind::Choice(&["f16", "f32"]),
            default: DefaultValue::Str("f16"),
        },
    ];

    #[test]
    fn defaults_fill_in() {
        let params = Params::from_ints(DECLARED, &[]).unwrap();
        assert_eq!((params.int("bits"), params.str("scale")), (Ok(4), Ok("f16")));
    }

    #[test]
    fn refuses_values_out_of_range_unknown_words_and_unknown_keys() {
        for text in ["bits=9", "bits=x", "scale=f8", "scale=4", "size=1"] {
            let error = Params::parse(DECLARED, text).unwrap_err();
            assert!(error.message.contains(text.split('=').next().unwrap()), "{error}");
        }
    }
}
