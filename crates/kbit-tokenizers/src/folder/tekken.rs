//! `tekken.json`, the tokenizer file of Mistral's own `mistral-common`: a byte-level BPE by ranks of tokens, behind special
//! tokens.
//!
//! Follows `mistral-common` and llama.cpp's converter, with the keys in its order. Merges are not in the file: every split
//! of a token into two tokens is one, by the rank of the token, then of its parts.

use super::Folder;
use crate::TokenizerError;
use crate::byte_level::to_text;
use crate::vocabulary::{MAX_TOKENS, TokenKind};
use kbit_formats::gguf::{Array, Value};
use serde::Deserialize;
use std::collections::HashMap;

const FILE: &str = "tekken.json";

/// Longest token that is believed, in bytes; finding its splits takes the square.
const MAX_TOKEN: usize = 4096;

/// Special tokens of files that have no list of them.
const SPECIAL: &[&str] = &[
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// Versions whose chat template llama.cpp knows by name.
const TEMPLATES: &[(&str, &str)] =
    &[("v1", "mistral-v1"), ("v3", "mistral-v3-tekken"), ("v7", "mistral-v7-tekken")];

#[derive(Deserialize)]
struct File {
    config: Config,
    vocab: Vec<Ranked>,
    #[serde(default)]
    special_tokens: Option<Vec<Special>>,
}

#[derive(Deserialize)]
struct Config {
    default_vocab_size: usize,
    default_num_special_tokens: usize,
    version: String,
}

/// A token; its place in the list is its rank.
#[derive(Deserialize)]
struct Ranked {
    rank: usize,
    token_bytes: String,
}

#[derive(Deserialize)]
struct Special {
    rank: usize,
    token_str: String,
}

impl Folder {
    /// What tekken.json says, where the folder has one. Tokens that it lacks of `vocab_size` become `[PAD<id>]`.
    pub(super) fn tekken(
        &self,
        vocab_size: u64,
        architecture: &str,
    ) -> Result<Option<Vec<(String, Value)>>, TokenizerError> {
        let Some(bytes) = self.bytes(FILE)? else { return Ok(None) };
        let mut out = Vec::new();
        let mut insert = |key: &str, value| out.push((key.to_owned(), value));
        let file: File = serde_json::from_slice(&bytes).map_err(|error| {
            self.broken(
                FILE,
                format!("line {}, column {}: {error}; get the file anew", error.line(), error.column()),
            )
        })?;
        let vocabulary = vocabulary(&file, vocab_size).map_err(|reason| self.broken(FILE, reason))?;
        let id = |text: &str| vocabulary.special.iter().position(|other| other == text);
        let needed = |text: &str| {
            id(text).ok_or_else(|| self.broken(FILE, format!("it has no token {text}; get the file anew")))
        };
        let ids = [
            ("bos", needed("<s>")?),
            ("eos", needed("</s>")?),
            ("unknown", needed("<unk>")?),
            ("padding", needed("<pad>")?),
        ];
        insert("tokenizer.ggml.model", Value::String("gpt2".to_owned()));
        insert("tokenizer.ggml.pre", Value::String("tekken".to_owned()));
        insert("tokenizer.ggml.merges", Value::Array(Array::String(vocabulary.merges)));
        for (kind, id) in ids {
            let id = u32::try_from(id).unwrap_or(u32::MAX);
            insert(&format!("tokenizer.ggml.{kind}_token_id"), Value::U32(id));
        }
        // Scores have no meaning here; the converter writes zeros as whole numbers.
        let count = vocabulary.texts.len();
        insert("tokenizer.ggml.tokens", Value::Array(Array::String(vocabulary.texts)));
        insert("tokenizer.ggml.scores", Value::Array(Array::I32(vec![0; count])));
        let kinds = vocabulary.kinds.into_iter().map(|kind| kind as i32).collect();
        insert("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        insert(&format!("{architecture}.vocab_size"), Value::U32(count));
        insert("tokenizer.ggml.add_bos_token", Value::Bool(true));
        insert("tokenizer.ggml.add_eos_token", Value::Bool(false));
        let known = TEMPLATES.iter().find(|(version, _)| *version == file.config.version);
        let template = match (self.chat_template()?, known) {
            (serde_json::Value::String(template), _) => Some(template),
            (_, known) => known.map(|(_, name)| (*name).to_owned()),
        };
        if let Some(template) = template {
            insert("tokenizer.chat_template", Value::String(template));
        }
        Ok(Some(out))
    }
}

struct Vocabulary {
    special: Vec<String>,
    texts: Vec<String>,
    kinds: Vec<TokenKind>,
    merges: Vec<String>,
}

/// All tokens, special ones first, and the merges.
fn vocabulary(file: &File, vocab_size: u64) -> Result<Vocabulary, String> {
    let Config { default_vocab_size: size, default_num_special_tokens: specials, .. } = file.config;
    let plain = size.checked_sub(specials).filter(|plain| *plain >= 256 && *plain <= file.vocab.len());
    let Some(plain) = plain.filter(|_| size <= MAX_TOKENS && size as u64 <= vocab_size) else {
        return Err(format!(
            "it has {} tokens and {specials} special ones for a vocabulary of {size}, where the model has {vocab_size}; the files belong to different models: get both from one source",
            file.vocab.len()
        ));
    };
    let mut special: Vec<String> = match &file.special_tokens {
        None => SPECIAL.iter().map(|text| (*text).to_owned()).collect(),
        Some(listed) => {
            if let Some(at) = listed.iter().enumerate().position(|(at, token)| token.rank != at) {
                return Err(format!(
                    "the rank of special token {at} is {}; get the file anew",
                    listed[at].rank
                ));
            }
            listed.iter().map(|token| token.token_str.clone()).collect()
        }
    };
    if special.len() > specials {
        return Err(format!(
            "it has {} special tokens, where it says {specials}; get the file anew",
            special.len()
        ));
    }
    special.extend((special.len()..specials).map(|id| format!("<SPECIAL_{id}>")));

    let mut tokens = Vec::with_capacity(plain);
    let mut ranks = HashMap::with_capacity(plain);
    for (rank, token) in file.vocab[..plain].iter().enumerate() {
        let wrong = |what: &str| format!("token {rank} {what}; get the file anew");
        let bytes = from_base64(&token.token_bytes).ok_or_else(|| wrong("is not in base64"))?;
        if token.rank != rank {
            return Err(wrong("is not at the place of its rank"));
        }
        if bytes.is_empty() || bytes.len() > MAX_TOKEN {
            return Err(wrong(&format!("has {} bytes, not 1 to {MAX_TOKEN}", bytes.len())));
        }
        if rank < 256 && bytes != [rank as u8] {
            return Err(wrong("is not the byte of its rank"));
        }
        if ranks.insert(bytes.clone(), rank).is_some() {
            return Err(wrong("is there twice"));
        }
        tokens.push(bytes);
    }
    let mut merges = Vec::new();
    for (rank, token) in tokens.iter().enumerate().skip(256) {
        let splits = (1..token.len()).filter_map(|at| {
            let (left, right) = token.split_at(at);
            Some((*ranks.get(left)?, *ranks.get(right)?))
        });
        let mut splits: Vec<_> = splits.collect();
        if splits.is_empty() {
            return Err(format!("token {rank} is no two tokens put together; get the file anew"));
        }
        splits.sort_unstable();
        let text = |rank: usize| to_text(&tokens[rank]);
        merges.extend(splits.into_iter().map(|(left, right)| format!("{} {}", text(left), text(right))));
    }

    let mut texts = special.clone();
    let mut kinds = vec![TokenKind::Control; specials];
    texts.extend(tokens.iter().map(|token| to_text(token)));
    kinds.resize(size, TokenKind::Normal);
    texts.extend((size as u64..vocab_size).map(|id| format!("[PAD{id}]")));
    kinds.resize(texts.len(), TokenKind::Unused);
    Ok(Vocabulary { special, texts, kinds, merges })
}

/// Bytes of a text in base64 with padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    let mut bytes = Vec::with_capacity(groups.len() * 3);
    for (index, group) in groups.iter().enumerate() {
        let padding = group.iter().rev().take_while(|byte| **byte == b'=').count();
        if padding > 2 || padding > 0 && index + 1 < groups.len() {
            return None;
        }
        let mut bits = 0u32;
        for byte in &group[..4 - padding] {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(digit);
        }
        bits <<= 6 * padding;
        bytes.extend(&bits.to_be_bytes()[1..4 - padding]);
    }
    rest.is_empty().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded() {
        // RFC 4648, section 10.
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")]
        {
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(from_base64("+/8="), Some(vec![0xfb, 0xff]));
        for text in ["Z", "Zg=", "Z===", "Zg==Zg==", "Z g=", "Zg=a", "Zé=="] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }
}
