//! Conversations as the text that a model was trained on: chat templates.
//!
//! A template is a Jinja program that comes with the model (`tokenizer.chat_template` in GGUF, `tokenizer_config.json` or
//! `chat_template.jinja` in a folder). It is rendered as Hugging Face transformers does it: blocks take the line break after
//! them and the white space before them, `tojson` writes Python's JSON, values print as in Python, strings and
//! dictionaries have Python's methods, and there are `raise_exception`, `strftime_now`, `break`, `continue` and `generation`.

mod known;
mod python;

/// What templates that were written for Python's Jinja need: chat templates here, and those of evaluation tasks.
pub mod jinja {
    pub use super::of_json;
    pub use super::python::{method, to_text};
}

use crate::special::{Fragment, Guard};
use crate::{Tokenizer, TokenizerError};
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::SystemTime;

pub use known::{KNOWN_TEMPLATES, KnownTemplate};

/// Steps of a template before it counts as endless; long conversations with many tools take thousands.
const FUEL: u64 = 20_000_000;

/// What was said, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

impl Message {
    /// A message.
    #[must_use]
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// What a template is rendered with, beside the messages.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Begin the assistant's next message.
    pub add_generation_prompt: bool,
    /// What `strftime_now` takes for now; in UTC, so that no machine's time zone gets into a prompt.
    pub now: SystemTime,
    /// More variables, as `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, now: SystemTime::now(), variables: BTreeMap::new() }
    }
}

/// A chat template.
///
/// ```
/// use kbit_tokenizers::{ChatOptions, ChatTemplate, Message};
/// let template = ChatTemplate::new(
///     "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
/// )?;
/// let text = template.render(&[Message::new("user", "Hello")], &[], &ChatOptions::default())?;
/// assert_eq!(text, "<user> Hello\n<assistant>");
/// # Ok::<(), kbit_tokenizers::TokenizerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// When it is not valid; the error names the line.
    pub fn new(source: impl Into<String>) -> Result<Self, TokenizerError> {
        let template = Self { source: plain_blocks(&source.into()) };
        environment(SystemTime::UNIX_EPOCH)
            .template_from_str(&template.source)
            .map_err(|error| bad(&error))?;
        Ok(template)
    }

    /// The text of a conversation. `special` are names and texts of special tokens (`bos_token`, `eos_token`, ...).
    ///
    /// # Errors
    /// When the template refuses the conversation, or fails.
    pub fn render(
        &self,
        messages: &[Message],
        special: &[(&str, &str)],
        options: &ChatOptions,
    ) -> Result<String, TokenizerError> {
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        // Templates may ask whether there are any.
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        context.insert("bos_token", Value::from(""));
        context.insert("eos_token", Value::from(""));
        context.extend(special.iter().map(|(name, text)| (*name, Value::from(*text))));
        context.extend(options.variables.iter().map(|(name, value)| (name.as_str(), of_json(value))));
        context.insert("messages", Value::from_serialize(messages));
        context.insert("add_generation_prompt", Value::from(options.add_generation_prompt));
        let environment = environment(options.now);
        let template = environment.template_from_str(&self.source).map_err(|error| bad(&error))?;
        template.render(Value::from_iter(context)).map_err(|error| bad(&error))
    }
}

impl Tokenizer {
    /// Tokens of a conversation. Special tokens in the template's own text are special; in messages they are text like any
    /// other. It begins with BOS where the model wants one, once.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut guard =
            Guard::for_texts(messages.iter().map(|m| m.content.as_str()).chain([template.source.as_str()]));
        let messages = messages
            .iter()
            .map(|message| {
                let content = guard.protect(self.specials(), &message.content)?;
                Some(Message { role: message.role.clone(), content })
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| TokenizerError::Template {
                place: String::new(),
                reason: "the messages hold too many kinds of special tokens".to_owned(),
            })?;
        let special = self.special_texts();
        let special: Vec<(&str, &str)> = special.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let text = template.render(&messages, &special, options)?;
        let mut fragments = self.specials().partition(&text, true);
        if let Some(bos) = self.bos().filter(|_| self.adds_bos())
            && fragments.first() != Some(&Fragment::Token(bos))
        {
            fragments.insert(0, Fragment::Token(bos));
        }
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        self.encode_fragments(&fragments, |text| guard.restore(text), &mut out);
        Ok(out)
    }

    /// Names and texts of the special tokens that templates use.
    fn special_texts(&self) -> Vec<(&'static str, String)> {
        let named = [("bos_token", self.bos()), ("eos_token", self.eos()), ("unk_token", self.unknown())];
        let text = |(name, id): (&'static str, Option<u32>)| Some((name, self.token_text(id?)?.to_owned()));
        named.into_iter().filter_map(text).collect()
    }
}

/// Names the line of a template's error, and the template's own words where it has some.
fn bad(error: &Error) -> TokenizerError {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TokenizerError::TemplateRefuses { message: message.clone() };
        }
        source = inner.source();
    }
    let place = error.line().map_or_else(String::new, |line| format!(", line {line}"));
    let reason = match error.detail() {
        _ if error.kind() == ErrorKind::OutOfFuel => "it does not come to an end".to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TokenizerError::Template { place, reason }
}

/// What a template said by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// `generation` blocks mark what the assistant says, for training. Here they are plain blocks, with the same white space.
fn plain_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        match tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['%', '}', '-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Jinja as transformers sets it up.
fn environment<'t>(now: SystemTime) -> Environment<'t> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(|out, _, value| Ok(out.write_str(&python::to_text(value))?));
    environment.add_filter("string", |value: &Value| python::to_text(value));
    environment.add_filter("tojson", |value: &Value, options: Kwargs| {
        let options = python::JsonOptions {
            ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
            indent: options.get("indent")?,
            separators: options.get("separators")?,
            sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        };
        python::to_json(value, &options)
    });
    // Texts are sequences in Python.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), minijinja::value::ValueKind::Seq | minijinja::value::ValueKind::String)
            || value.kind() == minijinja::value::ValueKind::Map
    });
    environment.add_test("iterable", |value: &Value| value.try_iter().is_ok() && !value.is_none());
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: &str| python::strftime(now, format));
    environment
}

/// A JSON value as templates see it. Not by way of serde: what numbers serialize to depends on features of `serde_json` that any
/// crate of a build may switch on.
#[must_use]
pub fn of_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(values) => values.iter().map(of_json).collect(),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.as_str(), of_json(value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn rendered(template: &str, messages: &[Message]) -> Result<String, TokenizerError> {
        let options = ChatOptions {
            // 2024-02-29, 13:05:09.
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_211_909),
            variables: BTreeMap::from([
                ("flag".to_owned(), json!(true)),
                ("data".to_owned(), json!({"b": [1, 2.5, null, "é<\"'\n"], "a": {}, "c": false})),
            ]),
            ..ChatOptions::default()
        };
        ChatTemplate::new(template)?.render(messages, &[("bos_token", "<s>")], &options)
    }

    fn of(template: &str) -> String {
        rendered(template, &[Message::new("user", " Hi there "), Message::new("assistant", "Ho<end>hum")])
            .unwrap_or_else(|error| panic!("{template}: {error}"))
    }

    #[test]
    fn blocks_take_the_white_space_around_them() {
        assert_eq!(of("a\n  {% if true %}\n  b\n  {% endif %}\nc\n"), "a\n  b\nc");
        assert_eq!(of("{{ bos_token }}{{ eos_token }}\n{{- 'x' -}}\n y"), "<s>xy");
    }

    #[test]
    fn strings_and_dictionaries_have_pythons_methods() {
        assert_eq!(
            of("{{ messages[0].content.strip() }}|{{ messages[1]['content'].split('<end>')[-1] }}"),
            "Hi there|hum"
        );
        assert_eq!(
            of("{% for k, v in data.items() %}{{ k }}{% if not loop.last %},{% endif %}{% endfor %}"),
            "b,a,c"
        );
        assert_eq!(of("{{ data.get('x') }}{{ data.get('x', 'y') }}{{ 'Abc'.startswith('A') }}"), "NoneyTrue");
        assert_eq!(
            of("{{ 'a-b'.removeprefix('a') }}{{ 'a-b'.removesuffix('b') }}{{ 'a-b-c'.rsplit('-', 1)[0] }}"),
            "-ba-a-b"
        );
    }

    #[test]
    fn values_print_as_in_python() {
        assert_eq!(of("{{ flag }} {{ none }} {{ 1.0 }} {{ undefined_thing }}|"), "True None 1.0 |");
        assert_eq!(of("{{ data }}"), "{'b': [1, 2.5, None, 'é<\"\\'\\n'], 'a': {}, 'c': False}");
        assert_eq!(of("{{ 'is ' ~ (flag | string) }}"), "is True");
        assert_eq!(
            of(
                "{{ none is iterable }} {{ 'a' is iterable }} {{ 'a' is sequence }} {{ nothing is iterable }}"
            ),
            "False True True True"
        );
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(of("{{ data | tojson }}"), r#"{"b": [1, 2.5, null, "é<\"'\n"], "a": {}, "c": false}"#);
        assert_eq!(
            of("{{ data | tojson(sort_keys=true, ensure_ascii=true) }}"),
            r#"{"a": {}, "b": [1, 2.5, null, "\u00e9<\"'\n"], "c": false}"#
        );
        assert_eq!(of("{{ data.b[:2] | tojson(indent=2) }}"), "[\n  1,\n  2.5\n]");
        assert_eq!(of("{{ data.b[:2] | tojson(separators=(',', ':')) }}"), "[1,2.5]");
    }

    #[test]
    fn loops_end_early_and_namespaces_keep_values() {
        let template = "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}\
                        {% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}";
        assert_eq!(of(template), "1");
        assert_eq!(
            of("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %},{% endfor %}"),
            "user,assistant,"
        );
    }

    #[test]
    fn now_is_given_and_in_utc() {
        assert_eq!(
            of("{{ strftime_now('%d %b %Y %H:%M:%S %A %j %-d %y %I%p %%') }}"),
            "29 Feb 2024 13:05:09 Thursday 060 29 24 01PM %"
        );
    }

    #[test]
    fn a_template_may_refuse_in_its_own_words() {
        let found = rendered("{{ raise_exception('No system role!') }}", &[]);
        assert!(
            matches!(found, Err(TokenizerError::TemplateRefuses { message }) if message == "No system role!")
        );
    }

    #[test]
    fn mistakes_are_named_by_line() {
        let error = ChatTemplate::new("a\n{% if %}").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        let error = rendered("a\n\n{{ messages[0].content + 1 }}", &[Message::new("user", "")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let error = rendered(template, &[]).unwrap_err().to_string();
        assert!(error.contains("does not come to an end"), "{error}");
    }

    #[test]
    fn known_templates_render_conversations() {
        let turns = [
            Message::new("system", "Be brief."),
            Message::new("user", "One"),
            Message::new("assistant", "1"),
            Message::new("user", "Two"),
        ];
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
        for known in KNOWN_TEMPLATES {
            let template = ChatTemplate::new(known.source).unwrap();
            let render =
                |turns: &[Message]| template.render(turns, &special, &ChatOptions::default()).unwrap();
            let text = render(&turns);
            let places: Vec<_> =
                ["Be brief.", "One", "1", "Two"].iter().map(|part| text.find(part)).collect();
            assert!(places.is_sorted() && places[0].is_some(), "{}: {text:?}", known.name);
            // What a conversation has in common with its beginning comes first: that is what the cache lives on.
            let start = render(&turns[..2]);
            assert!(text.starts_with(start.trim_end()), "{}: {start:?} {text:?}", known.name);
        }
        let find = |name: &str| KNOWN_TEMPLATES.iter().find(|known| known.name == name).unwrap().source;
        let text = |name: &str, turns: &[Message]| {
            ChatTemplate::new(find(name)).unwrap().render(turns, &special, &ChatOptions::default()).unwrap()
        };
        assert_eq!(
            text("chatml", &turns[..2]),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            text("llama2", &turns),
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne [/INST] 1 </s><s>[INST] Two [/INST]"
        );
    }

    /// Tokens of a conversation, as text: what is special in braces, the rest as it is.
    fn tokens(template: &str, messages: &[Message], control: &[&str]) -> String {
        let tokenizer = Tokenizer::of_bytes(control);
        let template = ChatTemplate::new(template).unwrap();
        let tokens = tokenizer.encode_chat(&template, messages, &ChatOptions::default()).unwrap();
        let mut bytes = Vec::new();
        for token in tokens {
            if tokenizer.is_control(token) {
                bytes.extend(format!("{{{}}}", tokenizer.token_text(token).unwrap()).into_bytes());
            } else {
                bytes.extend(tokenizer.decode_bytes(&[token]));
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn special_tokens_in_messages_are_text() {
        let control = ["<s>", "<|im_end|>", "<|im_", "\u{1f600}"];
        let template = "{% for m in messages %}<s>{{ m.content | trim }}<|im_end|>{% endfor %}";
        let said = ["<|im_end|>", " <s><|im_<|im_end|>|<|im_end", "\u{1f600}|<s>\u{fdef}\u{fdd0}é"];
        let messages = said.map(|said| Message::new("user", said));
        let wanted: String =
            said.iter().map(|said| format!("{{<s>}}{}{{<|im_end|>}}", said.trim())).collect();
        assert_eq!(tokens(template, &messages, &control), wanted);
    }

    #[test]
    fn a_conversation_begins_with_bos_once() {
        let messages = [Message::new("user", "a")];
        for template in ["{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}", "<s>a"] {
            assert_eq!(tokens(template, &messages, &["<s>"]), "{<s>}a");
        }
        assert_eq!(tokens("{{ messages[0].content }}", &messages, &[]), "a");
    }

    #[test]
    fn a_message_with_too_many_kinds_of_special_tokens_is_refused() {
        let control: Vec<String> = ('\u{4e00}'..'\u{4e30}').map(String::from).collect();
        let control: Vec<&str> = control.iter().map(String::as_str).collect();
        let template = ChatTemplate::new("{{ messages[0].content }}").unwrap();
        let messages = [Message::new("user", control.concat())];
        let found = Tokenizer::of_bytes(&control).encode_chat(&template, &messages, &ChatOptions::default());
        assert!(matches!(found, Err(TokenizerError::Template { .. })), "{found:?}");
    }
}
