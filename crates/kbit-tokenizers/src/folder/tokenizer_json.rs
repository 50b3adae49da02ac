//! `tokenizer.json` of Hugging Face's tokenizers: the parts that a GGUF vocabulary is made from, and the pre-tokenizer by
//! its structure.

use super::fingerprint::name_of;
use crate::pre_tokenizer::{
    DIGIT_STAGE, GPT_2_STAGE, PRE_TOKENIZERS, PUNCTUATION_STAGE, PreTokenizer, QWEN_2_STAGE, Splitter,
    WholeWords, known,
};
use crate::{TokenizerError, vocabulary::MAX_TOKENS};
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt;

/// The file.
#[derive(Debug)]
pub(super) struct TokenizerJson {
    pub added_tokens: Vec<AddedToken>,
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
    pub model: Model,
}

/// The model.
#[derive(Debug)]
pub(super) enum Model {
    Bpe(Bpe),
    Unigram(Unigram),
    WordPiece(WordPiece),
}

/// The file with one kind of model.
#[derive(Deserialize)]
struct File<M> {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: M,
}

/// A token beside the model's own.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AddedToken {
    pub id: u64,
    pub content: String,
    #[serde(default)]
    pub special: bool,
}

/// Byte-pair encoding.
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

/// Tokens with their scores, in the order of their ids.
#[derive(Debug, Deserialize)]
pub(super) struct Unigram {
    pub vocab: Vec<(String, f32)>,
    #[serde(default)]
    pub unk_id: Option<u64>,
}

/// The longest tokens that fit.
#[derive(Debug, Deserialize)]
pub(super) struct WordPiece {
    #[serde(default)]
    pub vocab: HashMap<String, u64>,
    #[serde(default)]
    pub continuing_subword_prefix: Option<String>,
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
    let Kind { model: ModelKind { kind } } = read(bytes)?;
    let json = match kind.as_deref() {
        None | Some("BPE") => TokenizerJson::new(read(bytes)?, Model::Bpe),
        Some("Unigram") => TokenizerJson::new(read(bytes)?, Model::Unigram),
        Some("WordPiece") => TokenizerJson::new(read(bytes)?, Model::WordPiece),
        Some(kind) => {
            return Err(format!(
                "its model is {kind:?}; kbit carries over BPE, Unigram and WordPiece: convert the model to GGUF with llama.cpp"
            ));
        }
    };
    let most = MAX_TOKENS as u64;
    let own: u64 = match &json.model {
        Model::Bpe(Bpe { vocab, .. }) | Model::WordPiece(WordPiece { vocab, .. }) => {
            vocab.values().copied().max().unwrap_or(0)
        }
        Model::Unigram(model) => model.vocab.len() as u64,
    };
    let ids = json.added_tokens.iter().map(|token| token.id).chain([own]);
    if let Some(id) = ids.max().filter(|&id| id >= most) {
        return Err(format!("it has a token {id}, where ids below {most} make sense; get the file anew"));
    }
    Ok(json)
}

fn read<'b, T: Deserialize<'b>>(bytes: &'b [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| {
        format!("line {}, column {}: {error}; get the file anew", error.line(), error.column())
    })
}

impl Bpe {
    /// True for `SentencePiece`'s BPE written as tokenizer.json.
    pub(super) fn is_sentencepiece(&self) -> bool {
        self.byte_fallback == Some(true)
    }
}

impl TokenizerJson {
    fn new<M>(file: File<M>, model: impl FnOnce(M) -> Model) -> Self {
        Self {
            added_tokens: file.added_tokens,
            normalizer: file.normalizer,
            pre_tokenizer: file.pre_tokenizer,
            post_processor: file.post_processor,
            decoder: file.decoder,
            model: model(file.model),
        }
    }

    /// A byte-level BPE as transformers' class of a name has it.
    pub(super) fn of_class(class: &str, vocab: HashMap<String, u64>, merges: Vec<Merge>) -> Self {
        let class = class.trim_end_matches("Fast");
        let (normalizer, pre_tokenizer) = match class {
            "GPT2Tokenizer" | "RobertaTokenizer" | "BartTokenizer" | "CodeGenTokenizer" => {
                (Value::Null, json!({ "type": "ByteLevel" }))
            }
            "Qwen2Tokenizer" => {
                let split =
                    json!({ "type": "Split", "pattern": { "Regex": QWEN_2_STAGE }, "behavior": "Isolated" });
                (json!({ "type": "NFC" }), split)
            }
            // Not known: to be named by hand.
            class => (Value::Null, json!({ "type": class })),
        };
        let model = Bpe {
            vocab,
            merges,
            byte_fallback: None,
            ignore_merges: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
        };
        Self {
            added_tokens: Vec::new(),
            normalizer,
            pre_tokenizer,
            post_processor: Value::Null,
            decoder: json!({ "type": "ByteLevel" }),
            model: Model::Bpe(model),
        }
    }

    /// The name of the pre-tokenizer for GGUF, recognised by what it does. `adds_bos` says whether a BOS token is put before
    /// text, `None` that the metadata will say; `ids` gives the ids of a text for a pre-tokenizer and whole words.
    pub(super) fn pre_tokenizer_name(
        &self,
        model: &Bpe,
        adds_bos: Option<bool>,
        ids: impl FnOnce(Splitter, WholeWords) -> Option<Vec<u32>>,
    ) -> Result<&'static str, TokenizerError> {
        let structure = self.structure(model);
        let whole_words = if model.ignore_merges == Some(true) { WholeWords::All } else { WholeWords::No };
        let described = || {
            let mut parts: Vec<String> = structure.stages.iter().map(|stage| format!("/{stage}/")).collect();
            parts.extend(structure.odd.iter().cloned());
            if whole_words == WholeWords::All {
                parts.push("ignore_merges".to_owned());
            }
            let found = format!("of tokenizer.json [{}]", parts.join(", "));
            TokenizerError::UnknownPreTokenizer { found, known: known() }
        };
        if !structure.odd.is_empty() {
            return Err(described());
        }
        let splitter = Splitter::from_patterns(structure.stages.iter().map(String::as_str));
        let by_ids = splitter.and_then(|splitter| ids(splitter, whole_words)).and_then(|ids| name_of(&ids));
        if let Some(name) = by_ids.filter(|name| PreTokenizer::by_name(name).is_ok()) {
            return Ok(name);
        }
        let fitting = PRE_TOKENIZERS.iter().filter(|entry| {
            entry.whole_words == whole_words
                && entry.json.iter().any(|stages| stages.iter().copied().eq(structure.stages.iter()))
        });
        // Of several that cut alike, the one that begins texts alike.
        let fits = |entry: &&PreTokenizer| adds_bos.is_none_or(|adds| adds == entry.add_bos);
        let entry = fitting.clone().find(fits).or_else(|| fitting.clone().next());
        entry.and_then(|entry| entry.names.first().copied()).ok_or_else(described)
    }

    fn structure(&self, model: &Bpe) -> Structure {
        let mut structure = Structure::default();
        structure.add(&self.pre_tokenizer);
        if !structure.byte_level && self.decoder["type"] != "ByteLevel" {
            structure.odd.push("no ByteLevel".to_owned());
        }
        if !is_plain_normalizer(&self.normalizer) {
            structure.odd.push(format!("normalizer {}", self.normalizer));
        }
        for (what, text) in [
            ("continuing_subword_prefix", &model.continuing_subword_prefix),
            ("end_of_word_suffix", &model.end_of_word_suffix),
        ] {
            if text.as_deref().is_some_and(|text| !text.is_empty()) {
                structure.odd.push(format!("{what} {text:?}"));
            }
        }
        structure
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
            Some("Punctuation") => match node["behavior"].as_str() {
                Some("Contiguous") => self.stages.push(format!("{PUNCTUATION_STAGE}+")),
                None | Some("Isolated") => self.stages.push(PUNCTUATION_STAGE.to_owned()),
                Some(_) => self.odd.push(node.to_string()),
            },
            _ => self.odd.push(node.to_string()),
        }
    }
}

/// A pattern with line breaks and characters beyond ASCII escaped, so that all ways of writing them are equal.
fn written(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    for character in pattern.chars() {
        match character {
            '\r' => out.push_str("\\r"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            character if character.is_ascii() => out.push(character),
            character => out.push_str(&format!("\\x{{{:04x}}}", u32::from(character))),
        }
    }
    out
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
