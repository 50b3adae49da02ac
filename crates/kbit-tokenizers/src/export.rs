//! `tokenizer.*` metadata -> the tokenizer files of a Hugging Face folder: the inverse of [`crate::metadata_from_folder`], as
//! far as metadata tell.
//!
//! A byte-level BPE gets its pre-tokenizer from the table. SentencePiece's BPE has no merges in GGUF: they are found as
//! Hugging Face's converter finds them, every way to make a token of two others, those with the higher score first.

use crate::TokenizerError;
use crate::pre_tokenizer::{Alphabet, DIGIT_STAGE, GPT_2_STAGE, PreTokenizer, WholeWords};
use crate::vocabulary::{TokenKind, Vocabulary, bad};
use kbit_formats::gguf::{Array, Metadata, Value};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

/// Special tokens: name in tokenizer_config.json, key in GGUF.
const SPECIAL: [(&str, &str); 6] = [
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("unk_token", "unknown"),
    ("sep_token", "seperator"),
    ("pad_token", "padding"),
    ("mask_token", "mask"),
];

/// The tokenizer of a Hugging Face folder.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`.
    pub config: Json,
    /// Ids of `bos_token_id`, `eos_token_id`, `pad_token_id` for config.json, where there are such.
    pub ids: Vec<(&'static str, u32)>,
}

/// Makes the files from metadata; `None` where the model has no tokenizer.
///
/// # Errors
/// When the metadata contradict themselves, or hold a kind of tokenizer that kbit does not have.
pub fn files_from_metadata(metadata: &Metadata) -> Result<Option<TokenizerFiles>, TokenizerError> {
    let model = match metadata.opt_str("tokenizer.ggml.model")? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(model) => model,
    };
    let vocabulary = Vocabulary::from_metadata(metadata)?;
    let tokens = Tokens { vocabulary: &vocabulary, kinds: stated_kinds(metadata) };
    let (body, adds_bos) = match model {
        "gpt2" => {
            let name = metadata.opt_str("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
            let pre = PreTokenizer::by_name(if name == "default" { "gpt-2" } else { name })?;
            (byte_level(metadata, &tokens, pre)?, pre.add_bos)
        }
        "llama" => (sentencepiece(metadata, &tokens)?, true),
        other => {
            return Err(TokenizerError::UnknownModel {
                found: other.to_owned(),
                known: vec!["gpt2", "llama"],
            });
        }
    };
    let flag = |key: &str| metadata.opt_bool(&format!("tokenizer.ggml.{key}"));
    let mut special: Vec<(&str, u32, &str)> = Vec::new();
    for (name, key) in SPECIAL {
        let key = format!("tokenizer.ggml.{key}_token_id");
        if let Some(id) = metadata.opt_u32(&key)? {
            let token = vocabulary.get(id).ok_or_else(|| TokenizerError::Metadata {
                key: key.clone(),
                reason: format!("is {id}, and there are {} tokens", vocabulary.len()),
            })?;
            special.push((name, id, token.text.as_str()));
        }
    }
    let around = |name: &str, add: bool| special.iter().find(|(known, ..)| add && *known == name);
    let bos = around("bos_token", flag("add_bos_token")?.unwrap_or(adds_bos));
    let eos = around("eos_token", flag("add_eos_token")?.unwrap_or(false));
    let Json::Object(mut tokenizer) = body else { return Ok(None) };
    tokenizer.insert("post_processor".to_owned(), template(bos, eos));
    let tokenizer = ordered(tokenizer, tokens.added());
    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    for (name, _, text) in &special {
        config.insert((*name).to_owned(), json!(text));
    }
    for key in ["add_bos_token", "add_eos_token"] {
        if let Some(add) = flag(key)? {
            config.insert(key.to_owned(), json!(add));
        }
    }
    if let Some(add) = flag("add_space_prefix")? {
        config.insert("add_prefix_space".to_owned(), json!(add));
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    if let Some(template) = metadata.opt_str("tokenizer.chat_template")? {
        config.insert("chat_template".to_owned(), json!(template));
    }
    let ids = special.iter().filter_map(|(name, id, _)| {
        let key = match *name {
            "bos_token" => "bos_token_id",
            "eos_token" => "eos_token_id",
            "pad_token" => "pad_token_id",
            _ => return None,
        };
        Some((key, *id))
    });
    let ids = ids.collect();
    Ok(Some(TokenizerFiles { tokenizer, config: Json::Object(config), ids }))
}

/// Kinds as the metadata state them, before what kbit and llama.cpp correct for their own use.
fn stated_kinds(metadata: &Metadata) -> Option<&[i32]> {
    match metadata.get("tokenizer.ggml.token_type") {
        Some(Value::Array(Array::I32(kinds))) => Some(kinds),
        _ => None,
    }
}

struct Tokens<'a> {
    vocabulary: &'a Vocabulary,
    kinds: Option<&'a [i32]>,
}

impl<'a> Tokens<'a> {
    /// Id, text, score and kind of every token but the padding that conversion adds.
    fn all(&self) -> impl Iterator<Item = (u32, &'a str, f32, TokenKind)> {
        let kinds = self.kinds;
        (0u32..).zip(self.vocabulary.tokens()).filter_map(move |(id, token)| {
            let kind = kinds.and_then(|kinds| kinds.get(id as usize)).copied();
            let kind = kind.map_or(token.kind, TokenKind::from_id);
            let is_padding = kind == TokenKind::Unused && token.text == format!("[PAD{id}]");
            (!is_padding).then_some((id, token.text.as_str(), token.score, kind))
        })
    }

    fn vocab(&self) -> Map<String, Json> {
        self.all().map(|(id, text, ..)| (text.to_owned(), json!(id))).collect()
    }

    fn added(&self) -> Vec<Json> {
        let added = self.all().filter(|(.., kind)| {
            matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
        });
        let entry = |(id, text, _, kind): (u32, &str, f32, TokenKind)| {
            json!({
                "id": id,
                "content": text,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind != TokenKind::UserDefined,
            })
        };
        added.map(entry).collect()
    }
}

/// The file with its parts in the usual order.
fn ordered(mut parts: Map<String, Json>, added: Vec<Json>) -> Json {
    let mut file = Map::new();
    file.insert("version".to_owned(), json!("1.0"));
    file.insert("truncation".to_owned(), Json::Null);
    file.insert("padding".to_owned(), Json::Null);
    file.insert("added_tokens".to_owned(), Json::Array(added));
    for key in ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model"] {
        file.insert(key.to_owned(), parts.remove(key).unwrap_or_default());
    }
    Json::Object(file)
}

/// What puts tokens before and behind a text; null where nothing does.
fn template(bos: Option<&(&str, u32, &str)>, eos: Option<&(&str, u32, &str)>) -> Json {
    if bos.is_none() && eos.is_none() {
        return Json::Null;
    }
    let special = |token: Option<&(&str, u32, &str)>, type_id: u32| {
        token.map(|(_, _, text)| json!({ "SpecialToken": { "id": text, "type_id": type_id } }))
    };
    let part = |id: &str, type_id: u32| {
        let sequence = json!({ "Sequence": { "id": id, "type_id": type_id } });
        [special(bos, type_id), Some(sequence), special(eos, type_id)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    let tokens: Map<String, Json> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(_, id, text)| ((*text).to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    let pair = [part("A", 0), part("B", 1)].concat();
    json!({ "type": "TemplateProcessing", "single": part("A", 0), "pair": pair, "special_tokens": tokens })
}

fn bpe(
    vocab: Map<String, Json>,
    merges: Vec<Json>,
    unknown: Json,
    sentencepiece: bool,
    whole_words: bool,
) -> Json {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": sentencepiece,
        "byte_fallback": sentencepiece,
        "ignore_merges": whole_words,
        "vocab": vocab,
        "merges": merges,
    })
}

fn byte_level(metadata: &Metadata, tokens: &Tokens<'_>, pre: &PreTokenizer) -> Result<Json, TokenizerError> {
    let merges = match metadata.get("tokenizer.ggml.merges") {
        None => &[][..],
        Some(_) => metadata.strings("tokenizer.ggml.merges")?,
    };
    let pair = |merge: &String| {
        // The first character is never the space between the two.
        let space = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let parts = space.map(|at| (&merge[..at], &merge[at + 1..])).filter(|(_, right)| !right.is_empty());
        parts
            .map(|(left, right)| json!([left, right]))
            .ok_or_else(|| bad("merges", format!("{merge:?} is not two tokens with a space between")))
    };
    let merges = merges.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
    let stages = if pre.alphabet == Alphabet::Bytes { pre.written_stages() } else { None };
    let mut stages = stages.ok_or_else(|| {
        let name = pre.names.first().unwrap_or(&"");
        bad(
            "pre",
            format!(
                "is {name:?}, which tokenizer.json cannot say; export with `--without-tokenizer` and take tokenizer.json from the model's source"
            ),
        )
    })?;
    let by_byte_level = stages.last().is_some_and(|last| last == GPT_2_STAGE);
    if by_byte_level {
        stages.pop();
    }
    let split = |pattern: String| {
        if pattern == DIGIT_STAGE {
            return json!({ "type": "Digits", "individual_digits": true });
        }
        json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
    };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": by_byte_level });
    let mut parts: Vec<Json> = stages.into_iter().map(split).collect();
    let pre_tokenizer = if parts.is_empty() {
        bytes
    } else {
        parts.push(bytes);
        json!({ "type": "Sequence", "pretokenizers": parts })
    };
    Ok(json!({
        "pre_tokenizer": pre_tokenizer,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": bpe(tokens.vocab(), merges, Json::Null, false, pre.whole_words == WholeWords::All),
    }))
}

fn sentencepiece(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Json, TokenizerError> {
    let ids: HashMap<&str, u32> = tokens.all().map(|(id, text, ..)| (text, id)).collect();
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for (_, text, score, kind) in tokens.all() {
        if !matches!(kind, TokenKind::Normal | TokenKind::UserDefined) {
            continue;
        }
        let mut ways: Vec<(&str, &str)> = text
            .char_indices()
            .skip(1)
            .map(|(at, _)| text.split_at(at))
            .filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right))
            .collect();
        ways.sort_by_key(|(left, right)| (ids[left], ids[right]));
        merges.extend(ways.into_iter().map(|(left, right)| (score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|(a, left_a, right_a), (b, left_b, right_b)| {
        let lengths = (length(left_b), length(right_b)).cmp(&(length(left_a), length(right_a)));
        b.total_cmp(a).then(lengths)
    });
    let merges = merges.into_iter().map(|(_, left, right)| json!([left, right])).collect();
    let unknown =
        tokens.all().find(|(.., kind)| *kind == TokenKind::Unknown).map(|(_, text, ..)| json!(text));
    let prefix = metadata.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut normalizers = vec![spaces];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": bpe(tokens.vocab(), merges, unknown.unwrap_or_default(), true, false),
    }))
}
