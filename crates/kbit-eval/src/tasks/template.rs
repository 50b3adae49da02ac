//! Templates of tasks: Jinja as lm-evaluation-harness sets it up.
//!
//! Unknown names are errors, a trailing line break stays, values print as in Python and have Python's methods, and there is the filter
//! `regex_replace(pattern, replacement)`. A template that is the name of a field stands for that field; one that is a single
//! `{{ expression }}` stands for its value, which may be a list.

use kbit_tokenizers::jinja;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use regex::Regex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Steps of a template before it counts as endless.
const FUEL: u64 = 5_000_000;
/// What the value of a single expression is called inside of its template.
const RESULT: &str = "kbit_result";

/// The fields of a document by name.
pub(crate) type Fields = BTreeMap<String, Value>;

/// A template of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// Where it stands in the task, for messages: `doc_to_text`, `fields.query`.
    pub(crate) key: String,
    /// As it is written.
    pub(crate) source: String,
    /// True where it is one `{{ expression }}`.
    is_expression: bool,
}

impl Template {
    /// A template that gives nothing.
    pub(crate) fn empty(key: &str) -> Self {
        Self { key: key.to_owned(), source: String::new(), is_expression: false }
    }
}

/// The templates of a task, ready to be rendered.
#[derive(Debug)]
pub(crate) struct Templates {
    environment: Environment<'static>,
}

/// Why a template gave nothing.
#[derive(Debug)]
pub(crate) enum TemplateProblem {
    /// Names that are no fields of the document.
    Missing(Vec<String>),
    /// Whatever else.
    Failed(String),
}

impl Templates {
    pub(crate) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_keep_trailing_newline(true);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(method);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&jinja::to_text(value))?));
        environment.add_filter("string", |value: &Value| jinja::to_text(value));
        environment.add_filter("trim", |text: &str, characters: Option<&str>| {
            strip(text, characters, true, true).to_owned()
        });
        environment.add_filter("indices_of", |items: &Value, what: &Value| -> Result<Value, Error> {
            let places = items.try_iter()?.enumerate().filter(|(_, item)| item == what);
            Ok(places.map(|(place, _)| Value::from(place)).collect())
        });
        let known: Mutex<HashMap<String, Regex>> = Mutex::new(HashMap::new());
        environment.add_filter(
            "regex_replace",
            move |text: &str, pattern: &str, replacement: &str| -> Result<String, Error> {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                let regex = match known.get(pattern) {
                    Some(regex) => regex,
                    None => {
                        let bad = |error: regex::Error| {
                            Error::new(ErrorKind::InvalidOperation, format!("regex_replace: {error}"))
                        };
                        known.entry(pattern.to_owned()).or_insert(Regex::new(pattern).map_err(bad)?)
                    }
                };
                Ok(regex.replace_all(text, python_replacement(replacement).as_str()).into_owned())
            },
        );
        Self { environment }
    }

    /// Reads a template; the message of a mistake in it.
    pub(crate) fn add(&mut self, key: &str, source: &str) -> Result<Template, String> {
        let body = source.trim();
        let inner = body.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        let is_expression = inner.is_some_and(|inner| {
            !["{{", "}}", "{%"].iter().any(|mark| inner.contains(mark))
                && !inner.starts_with(['-', '+'])
                && self.environment.compile_expression(inner).is_ok()
        });
        let text = match inner {
            Some(inner) if is_expression => format!("{{% set {RESULT} = ({inner}) %}}"),
            _ => source.to_owned(),
        };
        self.environment.add_template_owned(key.to_owned(), text).map_err(|error| words(&error))?;
        Ok(Template { key: key.to_owned(), source: source.to_owned(), is_expression })
    }

    /// The value of `template` for a document. `names` are the fields that documents of this data have.
    pub(crate) fn value(
        &self,
        template: &Template,
        fields: &Fields,
        names: &HashSet<String>,
    ) -> Result<Value, TemplateProblem> {
        if names.contains(&template.source) {
            let found = fields.get(&template.source).cloned();
            return found.ok_or_else(|| TemplateProblem::Missing(vec![template.source.clone()]));
        }
        let context = || Value::from_iter(fields.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let compiled = self
            .environment
            .get_template(&template.key)
            .map_err(|error| TemplateProblem::Failed(words(&error)))?;
        let result = if template.is_expression {
            compiled.render_captured(context()).and_then(|captured| match captured.state().lookup(RESULT) {
                Some(value) if !value.is_undefined() => Ok(value),
                _ => Err(Error::from(ErrorKind::UndefinedError)),
            })
        } else {
            compiled.render(context()).map(Value::from)
        };
        result.map_err(|error| {
            let mut missing: Vec<String> = compiled.undeclared_variables(false).into_iter().collect();
            missing.retain(|name| !fields.contains_key(name));
            missing.sort();
            if error.kind() == ErrorKind::UndefinedError && !missing.is_empty() {
                TemplateProblem::Missing(missing)
            } else {
                TemplateProblem::Failed(words(&error))
            }
        })
    }

    /// What the text of a Python list says: `['a', 'b']`.
    pub(crate) fn literal(&self, text: &str) -> Option<Value> {
        let text = text.trim();
        if !(text.starts_with('[') && text.ends_with(']')) {
            return None;
        }
        let value = self.environment.compile_expression(text).ok()?.eval(()).ok()?;
        (value.kind() == ValueKind::Seq).then_some(value)
    }
}

/// An error's words without the name of the template.
fn words(error: &Error) -> String {
    let line =
        error.line().filter(|line| *line > 1).map_or_else(String::new, |line| format!(" in its line {line}"));
    match error.detail() {
        _ if error.kind() == ErrorKind::OutOfFuel => "it does not come to an end".to_owned(),
        Some(detail) => format!("{}: {detail}{line}", error.kind()),
        None => format!("{}{line}", error.kind()),
    }
}

/// Python's methods, with those that tasks use beside those of chat templates.
fn method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let not_there = |what: &Value| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("`{}` is not in {}", jinja::to_text(what), jinja::to_text(value)),
        )
    };
    if let Some(text) = value.as_str() {
        let characters = args.first().and_then(Value::as_str);
        match (name, args) {
            ("strip", _) => return Ok(strip(text, characters, true, true).into()),
            ("lstrip", _) => return Ok(strip(text, characters, true, false).into()),
            ("rstrip", _) => return Ok(strip(text, characters, false, true).into()),
            ("index" | "find", [what]) if what.as_str().is_some() => {
                let at = text.find(what.as_str().unwrap_or_default());
                return match at {
                    // Python counts characters.
                    Some(at) => Ok(text[..at].chars().count().into()),
                    None if name == "find" => Ok((-1).into()),
                    None => Err(not_there(what)),
                };
            }
            _ => {}
        }
    } else if value.kind() == ValueKind::Seq
        && name == "index"
        && let [what] = args
    {
        let at = value.try_iter()?.position(|item| item == *what);
        return at.map(Value::from).ok_or_else(|| not_there(what));
    }
    jinja::method(state, value, name, args)
}

/// Replacement text of Python's `re.sub` as the `regex` crate writes it.
fn python_replacement(replacement: &str) -> String {
    let mut out = String::new();
    let mut rest = replacement.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match rest.peek().copied() {
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                        out.push(digit);
                    }
                    out.push('}');
                }
                Some('n') => {
                    out.push('\n');
                    rest.next();
                }
                Some('\\') => {
                    out.push('\\');
                    rest.next();
                }
                _ => out.push(c),
            },
            c => out.push(c),
        }
    }
    out
}

/// True for what Python's `str.isspace` calls white space; Unicode's property leaves the four separators of ASCII out.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip`, `lstrip` and `rstrip`.
fn strip<'t>(text: &'t str, characters: Option<&str>, left: bool, right: bool) -> &'t str {
    let gone = |c: char| characters.map_or_else(|| is_space(c), |characters| characters.contains(c));
    let text = if left { text.trim_start_matches(gone) } else { text };
    if right { text.trim_end_matches(gone) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(source: &str, fields: &[(&str, Value)]) -> Result<Value, TemplateProblem> {
        let mut templates = Templates::new();
        let template = templates.add("doc_to_text", source).unwrap();
        let fields: Fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let names = fields.keys().cloned().collect();
        templates.value(&template, &fields, &names)
    }

    fn text(source: &str, fields: &[(&str, Value)]) -> String {
        jinja::to_text(&value(source, fields).unwrap())
    }

    #[test]
    fn render_as_in_python() {
        let text_field = [("text", Value::from("I see the sea"))];
        assert_eq!(text("{{text.split(' ')[:-1]|join(' ')}}", &text_field), "I see the");
        assert_eq!(text("{{' '+text.split(' ')[-1]}}", &text_field), " sea");
        assert_eq!(text("Q: {{text}}\n", &text_field), "Q: I see the sea\n");
        assert_eq!(text("text", &text_field), "I see the sea");
        assert_eq!(
            text(
                "{{ok}} {{none}} {{list}}",
                &[
                    ("ok", Value::from(true)),
                    ("none", Value::from(())),
                    ("list", Value::from(vec!["a", "it's"])),
                ]
            ),
            "True None ['a', \"it's\"]"
        );
        assert_eq!(text("{{ok|int}}", &[("ok", Value::from(false))]), "0");
    }

    #[test]
    fn lists_and_places_in_them_are_values() {
        let fields = [("labels", Value::from(vec!["A", "B", "C"])), ("key", Value::from("C"))];
        assert_eq!(value("{{labels.index(key)}}", &fields).unwrap(), Value::from(2));
        assert_eq!(value("{{[key, 'D']}}", &fields).unwrap(), Value::from(vec!["C", "D"]));
        let error = value("{{labels.index('X')}}", &fields).unwrap_err();
        assert!(
            matches!(&error, TemplateProblem::Failed(words) if words.contains("`X` is not in ['A', 'B', 'C']")),
            "{error:?}"
        );
        let templates = Templates::new();
        assert_eq!(templates.literal("['a', 'b']"), Some(Value::from(vec!["a", "b"])));
        assert_eq!(templates.literal("a]"), None);
    }

    #[test]
    fn filters_clean_texts() {
        let fields = [("endings", Value::from(vec![" a [title] b", "c [x] d"]))];
        let source = "{{ endings | map('trim') | map('replace', ' [title]', '. ') | map('regex_replace', '\\\\[.*?\\\\]', '') \
                      | map('replace', '  ', ' ') | list }}";
        assert_eq!(value(source, &fields).unwrap(), Value::from(vec!["a. b", "c d"]));
        assert_eq!(text("{{ 'ab' | regex_replace('(a)(b)', '\\\\2$\\\\1') }}", &[]), "b$a");
        assert_eq!(text("{{ '\u{1f} x\u{85}'.strip() }}", &[]), "x");
        assert_eq!(text("{{ 'äöü'.index('ü') }}", &[]), "2");
    }

    #[test]
    fn fields_that_are_missing_are_named() {
        let error = value("{{goal}} {{answer}}", &[("goal", Value::from(1))]).unwrap_err();
        assert!(matches!(&error, TemplateProblem::Missing(names) if names == &["answer"]), "{error:?}");
        let error = value("{{goal}}", &[]).unwrap_err();
        assert!(matches!(&error, TemplateProblem::Missing(names) if names == &["goal"]), "{error:?}");
    }

    #[test]
    fn mistakes_of_syntax_are_told() {
        let message = Templates::new().add("doc_to_text", "a\n{{ b").unwrap_err();
        assert!(message.contains("line 2"), "{message}");
    }
}
