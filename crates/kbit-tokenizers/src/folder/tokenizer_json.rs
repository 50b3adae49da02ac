//! `tokenizer.json` of Hugging Face's tokenizers: the parts that a GGUF vocabulary is made from, and the pre-tokenizer by
//! its structure.

use crate::pre_tokenizer::{DIGIT_STAGE, GPT_2_STAGE, PRE_TOKENIZERS, WholeWords, known};
use crate::{TokenizerError, vocabulary::MAX_TOKENS};
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;

/// The file.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    pub post_processor: Value,
    #[serde(default)]
    pub decoder: Value,
    pub model: Bpe,
}

/// A token beside the model's own.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AddedToken {
    pub id: u64,
    pub content: String,
    #[serde(default)]
    pub special: bool,
}

/// The model; always BPE.
#[derive(Debug, Deserialize)]
pub(super) struct Bpe {
    #[serde(default)]
    pub vocab: HashMap<String, u64>,
    #[serde(default)]
    pub merges: Vec<Merge>,
    #[serde(default)]
    pub byte_fallback: Option<bool>,
    #[serde(default)]
    pub ignore_merges: Option<bool>,
    #[serde(default)]
    pub continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub end_of_word_suffix: Option<String>,
}

/// A merge, as GGUF writes it: two tokens with a space between.
#[derive(Debug)]
pub(super) struct Merge(pub String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: \"left right\" or [\"left\", \"right\"]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
                Ok(Merge(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Merge, A::Error> {
                let mut part = |index| -> Result<String, A::Error> {
                    let part = parts
                        .next_element::<String>()?
                        .ok_or_else(|| de::Error::invalid_length(index, &self))?;
                    // A space within a part is written as GPT-2's alphabet writes it.
                    Ok(part.replace(' ', "\u{120}"))
                };
                let merge = format!("{} {}", part(0)?, part(1)?);
                match parts.next_element::<IgnoredAny>()? {
                    None => Ok(Merge(merge)),
                    Some(_) => Err(de::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

/// Only the model's kind.
#[derive(Deserialize)]
struct Kind {
    model: ModelKind,
}

#[derive(Deserialize)]
struct ModelKind {
    #[serde(rename = "type", default)]
    kind: Option<String>,
}

/// Reads the file's bytes; the error says what is wrong and the cure.
pub(super) fn parse(bytes: &[u8]) -> Result<TokenizerJson, String> {
    let broken = |error: serde_json::Error| {
        format!("line {}, column {}: {error}; get the file anew", error.line(), error.column())
    };
    let Kind { model: ModelKind { kind } } = serde_json::from_slice(bytes).map_err(broken)?;
    if let Some(kind) = kind.filter(|kind| kind != "BPE") {
        return Err(format!(
            "its model is {kind:?}; kbit carries over BPE: convert the model to GGUF with llama.cpp"
        ));
    }
    let json: TokenizerJson = serde_json::from_slice(bytes).map_err(broken)?;
    let most = MAX_TOKENS as u64;
    let ids = json.model.vocab.values().copied().chain(json.added_tokens.iter().map(|token| token.id));
    if let Some(id) = ids.max().filter(|&id| id >= most) {
        return Err(format!("it has a token {id}, where ids below {most} make sense; get the file anew"));
    }
    Ok(json)
}

impl TokenizerJson {
    /// True for SentencePiece's BPE written as tokenizer.json.
    pub(super) fn is_sentencepiece(&self) -> bool {
        self.model.byte_fallback == Some(true)
    }

    /// The name of the pre-tokenizer for GGUF, recognised by what it does.
    pub(super) fn pre_tokenizer_name(&self) -> Result<&'static str, TokenizerError> {
        let unknown = |found: String| TokenizerError::UnknownPreTokenizer { found, known: known() };
        let mut structure = Structure::default();
        structure.add(&self.pre_tokenizer);
        let byte_level = structure.byte_level || self.decoder["type"] == "ByteLevel";
        if !byte_level {
            structure.odd.push("no ByteLevel".to_owned());
        }
        if !is_plain_normalizer(&self.normalizer) {
            structure.odd.push(format!("normalizer {}", self.normalizer));
        }
        for (what, text) in [
            ("continuing_subword_prefix", &self.model.continuing_subword_prefix),
            ("end_of_word_suffix", &self.model.end_of_word_suffix),
        ] {
            if text.as_deref().is_some_and(|text| !text.is_empty()) {
                structure.odd.push(format!("{what} {text:?}"));
            }
        }
        let whole_words = self.model.ignore_merges == Some(true);
        let described = || {
            let mut parts: Vec<String> = structure.stages.iter().map(|stage| format!("/{stage}/")).collect();
            parts.extend(structure.odd.iter().cloned());
            if whole_words {
                parts.push("ignore_merges".to_owned());
            }
            format!("of tokenizer.json [{}]", parts.join(", "))
        };
        if !structure.odd.is_empty() {
            return Err(unknown(described()));
        }
        PRE_TOKENIZERS
            .iter()
            .find(|entry| {
                (entry.whole_words == WholeWords::All) == whole_words
                    && entry.json.iter().any(|stages| {
                        stages.iter().map(|stage| written(stage)).eq(structure.stages.iter().cloned())
                    })
            })
            .and_then(|entry| entry.names.first().copied())
            .ok_or_else(|| unknown(described()))
    }
}

/// What a pre-tokenizer does, in the terms of the table.
#[derive(Default)]
struct Structure {
    stages: Vec<String>,
    byte_level: bool,
    /// What the table has no terms for.
    odd: Vec<String>,
}

impl Structure {
    fn add(&mut self, node: &Value) {
        let flag = |key: &str, default: bool| node[key].as_bool().unwrap_or(default);
        match node["type"].as_str() {
            Some("Sequence") => {
                node["pretokenizers"].as_array().into_iter().flatten().for_each(|node| self.add(node));
            }
            Some("ByteLevel") => {
                self.byte_level = true;
                if flag("add_prefix_space", false) {
                    self.odd.push("ByteLevel with add_prefix_space".to_owned());
                }
                if flag("use_regex", true) {
                    self.stages.push(written(GPT_2_STAGE));
                }
            }
            Some("Split") => {
                let pattern = node["pattern"]["Regex"].as_str();
                // To keep the matches of a pattern that matches everything is to part the text at them.
                let behavior = node["behavior"].as_str();
                let parts = matches!(
                    (behavior, flag("invert", false)),
                    (Some("Isolated"), false) | (Some("Removed"), true)
                );
                match pattern {
                    Some(pattern) if parts => self.stages.push(written(pattern)),
                    _ => self.odd.push(node.to_string()),
                }
            }
            Some("Digits") => {
                let each = flag("individual_digits", false);
                self.stages.push(written(if each { DIGIT_STAGE } else { r"\p{N}+" }));
            }
            Some("Punctuation") => {
                self.stages.push(format!("Punctuation {}", node["behavior"].as_str().unwrap_or("Isolated")));
            }
            _ => self.odd.push(node.to_string()),
        }
    }
}

/// A pattern with its line breaks escaped, so that both ways of writing them are equal.
fn written(pattern: &str) -> String {
    pattern.replace('\r', "\\r").replace('\n', "\\n")
}

/// True for normalizers that llama.cpp passes over: none, and NFC.
fn is_plain_normalizer(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("NFC") => true,
        Some("Sequence") => {
            normalizer["normalizers"].as_array().is_none_or(|parts| parts.iter().all(is_plain_normalizer))
        }
        Some(_) => false,
    }
}
