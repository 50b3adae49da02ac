//! Hugging Face tokenizer files -> `tokenizer.*` metadata, as llama.cpp's converter writes it.
//!
//! `tokenizer.model` (SentencePiece) goes before `tokenizer.json`, as there. The pre-tokenizer of a byte-level BPE is
//! recognised by the structure of tokenizer.json; where it cannot be, it can be named by hand.

mod sentencepiece;
mod special_tokens;
mod tokenizer_json;

use crate::TokenizerError;
use crate::pre_tokenizer::PreTokenizer;
use crate::vocabulary::{MAX_TOKENS, TokenKind};
use kbit_formats::gguf::{Array, Metadata, Value};
use serde_json::{Map, Value as Json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tokenizer_json::TokenizerJson;

/// Largest tokenizer file that is read.
const MAX_FILE: u64 = 256 << 20;

/// The `tokenizer.*` metadata of a Hugging Face folder, keys in the converter's order.
///
/// `vocab_size` is the model's: tokens that the files lack become `[PAD<id>]`. `architecture` is GGUF's name of the
/// model's, for what the converter does for some only.
///
/// # Errors
/// [`TokenizerError::Absent`] where the folder has no tokenizer; else when a file is damaged, of a kind that kbit does not
/// carry over, or has a pre-tokenizer that it does not know.
pub fn metadata_from_folder(
    folder: &Path,
    vocab_size: u64,
    architecture: &str,
) -> Result<Vec<(String, Value)>, TokenizerError> {
    metadata_from_folder_named(folder, vocab_size, architecture, None)
}

/// As [`metadata_from_folder`], with the pre-tokenizer of a byte-level BPE named by hand.
///
/// # Errors
/// As there; and when the name is not known.
pub fn metadata_from_folder_named(
    folder: &Path,
    vocab_size: u64,
    architecture: &str,
    pre_tokenizer: Option<&str>,
) -> Result<Vec<(String, Value)>, TokenizerError> {
    if vocab_size == 0 || vocab_size > MAX_TOKENS as u64 {
        let reason =
            format!("vocab_size is {vocab_size}, where between 1 and {MAX_TOKENS} make sense; check it");
        return Err(TokenizerError::File { path: folder.join("config.json"), reason });
    }
    let folder = Folder::read(folder)?;
    let mut out = Metadata::new();
    if architecture == "llama"
        && let Some(config) = &folder.tokenizer_config
        && let Some(Json::Bool(add)) = config.get("add_prefix_space")
    {
        out.insert("tokenizer.ggml.add_space_prefix", Value::Bool(*add));
    }
    let json = folder.tokenizer_json()?;
    let model = folder.bytes("tokenizer.model")?;
    match (&model, &json) {
        (Some(model), _) => {
            let vocabulary = folder.sentencepiece(model, vocab_size)?;
            vocabulary.write("llama", "default", true, &mut out);
        }
        (None, Some(json)) if json.is_sentencepiece() => {
            let vocabulary = folder.sentencepiece_json(json)?;
            vocabulary.write("llama", "default", true, &mut out);
        }
        (None, Some(json)) => {
            let name = match pre_tokenizer {
                Some(name) => {
                    PreTokenizer::by_name(name)?;
                    name
                }
                None => json.pre_tokenizer_name()?,
            };
            let vocabulary = folder.byte_level(json, vocab_size)?;
            vocabulary.write("gpt2", name, false, &mut out);
            if !json.model.merges.is_empty() {
                let merges = json.model.merges.iter().map(|merge| merge.0.clone()).collect();
                out.insert("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
            }
        }
        (None, None) if folder.path.join("tekken.json").is_file() => {
            let reason = "kbit does not read it; put the model's tokenizer.json beside it".to_owned();
            return Err(folder.broken("tekken.json", reason));
        }
        (None, None) => return Err(TokenizerError::Absent { folder: folder.path }),
    }
    let tokens = out.strings("tokenizer.ggml.tokens")?.len() as u64;
    special_tokens::write(&folder, json.as_ref(), tokens, &mut out)?;
    if architecture == "llama" {
        write_quirks_of_llamas(vocab_size, &mut out);
    }
    Ok(out.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect())
}

/// What the converter adds for two models that it knows by their vocabulary's size.
fn write_quirks_of_llamas(vocab_size: u64, out: &mut Metadata) {
    const CODE_LLAMA: u64 = 32016;
    const GRANITE: u64 = 49152;
    if vocab_size == CODE_LLAMA {
        for (kind, id) in [("prefix", 32007), ("suffix", 32008), ("middle", 32009), ("eot", 32010)] {
            out.insert(format!("tokenizer.ggml.{kind}_token_id"), Value::U32(id));
        }
    }
    if vocab_size == GRANITE {
        out.insert("tokenizer.ggml.add_bos_token", Value::Bool(false));
    }
}

/// The folder, and the files of it that are always read.
struct Folder {
    path: PathBuf,
    config: Map<String, Json>,
    tokenizer_config: Option<Map<String, Json>>,
}

/// Tokens as they go into metadata.
struct Vocabulary {
    texts: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<TokenKind>,
}

impl Vocabulary {
    /// `size` tokens that nothing stands for.
    fn padding(size: u64, score: f32) -> Self {
        let size = usize::try_from(size).unwrap_or(0);
        Self {
            texts: (0..size).map(|id| format!("[PAD{id}]")).collect(),
            scores: vec![score; size],
            kinds: vec![TokenKind::Unused; size],
        }
    }

    fn set(&mut self, id: usize, text: String, score: f32, kind: TokenKind) {
        self.texts[id] = text;
        self.scores[id] = score;
        self.kinds[id] = kind;
    }

    fn write(self, model: &str, pre_tokenizer: &str, scores: bool, out: &mut Metadata) {
        out.insert("tokenizer.ggml.model", Value::String(model.to_owned()));
        out.insert("tokenizer.ggml.pre", Value::String(pre_tokenizer.to_owned()));
        out.insert("tokenizer.ggml.tokens", Value::Array(Array::String(self.texts)));
        if scores {
            out.insert("tokenizer.ggml.scores", Value::Array(Array::F32(self.scores)));
        }
        let kinds = self.kinds.into_iter().map(|kind| kind as i32).collect();
        out.insert("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    }
}

impl Folder {
    fn read(path: &Path) -> Result<Self, TokenizerError> {
        let mut folder = Self { path: path.to_owned(), config: Map::new(), tokenizer_config: None };
        folder.config = folder.object("config.json")?.unwrap_or_default();
        folder.tokenizer_config = folder.object("tokenizer_config.json")?;
        Ok(folder)
    }

    /// Bytes of a file, where it is there.
    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, TokenizerError> {
        let path = self.path.join(name);
        let io = |error| TokenizerError::Io { path: path.clone(), error };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
            Ok(file) if !file.is_file() => return Ok(None),
            Ok(file) if file.len() > MAX_FILE => {
                return Err(self.broken(
                    name,
                    format!("it has {} bytes, more than any tokenizer's; get it anew", file.len()),
                ));
            }
            Ok(_) => {}
        }
        std::fs::read(&path).map(Some).map_err(io)
    }

    fn object(&self, name: &str) -> Result<Option<Map<String, Json>>, TokenizerError> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            self.broken(name, format!("{place}: not a JSON object: {error}; get the file anew"))
        })
    }

    fn tokenizer_json(&self) -> Result<Option<TokenizerJson>, TokenizerError> {
        let name = "tokenizer.json";
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        tokenizer_json::parse(&bytes).map(Some).map_err(|reason| self.broken(name, reason))
    }

    /// The chat template that stands in files of its own.
    fn chat_template(&self) -> Result<Json, TokenizerError> {
        let text = |name: &str| -> Result<Option<String>, TokenizerError> {
            let Some(bytes) = self.bytes(name)? else { return Ok(None) };
            String::from_utf8(bytes)
                .map(Some)
                .map_err(|_| self.broken(name, "it is not UTF-8; get the file anew".to_owned()))
        };
        if let Some(default) = text("chat_template.jinja")? {
            let mut more: Vec<String> = std::fs::read_dir(self.path.join("additional_chat_templates"))
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| name.ends_with(".jinja"))
                .collect();
            if more.is_empty() {
                return Ok(Json::String(default));
            }
            more.sort();
            let mut choices = vec![serde_json::json!({ "name": "default", "template": default })];
            for name in more {
                let template = text(&format!("additional_chat_templates/{name}"))?;
                choices.push(
                    serde_json::json!({ "name": name.trim_end_matches(".jinja"), "template": template }),
                );
            }
            return Ok(Json::Array(choices));
        }
        Ok(self
            .object("chat_template.json")?
            .and_then(|mut file| file.remove("chat_template"))
            .unwrap_or_default())
    }

    fn broken(&self, name: &str, reason: String) -> TokenizerError {
        TokenizerError::File { path: self.path.join(name), reason }
    }

    /// The vocabulary of tokenizer.model, with the tokens that the other files add.
    fn sentencepiece(&self, bytes: &[u8], vocab_size: u64) -> Result<Vocabulary, TokenizerError> {
        const BPE: u64 = 2;
        let name = "tokenizer.model";
        let model = sentencepiece::parse(bytes)
            .map_err(|reason| self.broken(name, format!("{reason}; the file is damaged: get it anew")))?;
        if model.pieces.is_empty() {
            return Err(self.broken(name, "it has no pieces; the file is damaged: get it anew".to_owned()));
        }
        if model.kind != BPE {
            let reason = format!(
                "its model is of kind {}, where kbit carries over BPE ({BPE}); convert the model to GGUF with llama.cpp",
                model.kind
            );
            return Err(self.broken(name, reason));
        }
        let mut vocabulary = Vocabulary::padding(vocab_size, -10000.0);
        for (id, piece) in model.pieces.into_iter().enumerate().take(vocabulary.texts.len()) {
            let kind = match piece.kind {
                2 => TokenKind::Unknown,
                3 => TokenKind::Control,
                5 => TokenKind::Unused,
                6 => TokenKind::Byte,
                _ => TokenKind::Normal,
            };
            vocabulary.set(id, piece.text, piece.score, kind);
        }
        for (text, id) in self.object("added_tokens.json")?.into_iter().flatten() {
            let Some(id) = id.as_u64().and_then(|id| usize::try_from(id).ok()) else { continue };
            if id < vocabulary.texts.len() {
                vocabulary.set(id, text, -1000.0, TokenKind::UserDefined);
            }
        }
        for (id, text, special) in self.added_tokens_decoder() {
            if id < vocabulary.texts.len() {
                let (text, kind) = added(text, special);
                vocabulary.set(id, text, -1000.0, kind);
            }
        }
        Ok(vocabulary)
    }

    /// `added_tokens_decoder` of tokenizer_config.json: id, text, whether special.
    fn added_tokens_decoder(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        let entries =
            self.tokenizer_config.as_ref().and_then(|config| config.get("added_tokens_decoder")?.as_object());
        entries.into_iter().flatten().filter_map(|(id, entry)| {
            let special = entry["special"].as_bool().unwrap_or(false);
            Some((id.parse().ok()?, entry["content"].as_str()?, special))
        })
    }

    /// Texts that tokenizer_config.json and special_tokens_map.json give a meaning.
    fn named_specials(&self) -> Result<HashSet<String>, TokenizerError> {
        let map = self.object("special_tokens_map.json")?;
        let mut texts = HashSet::new();
        for (key, value) in self.tokenizer_config.iter().chain(&map).flatten() {
            let is_named = key.ends_with("_token") && !key.starts_with("add_") && !key.starts_with("use_");
            let entries = match value {
                Json::Array(entries) if key == "additional_special_tokens" => entries.as_slice(),
                entry if is_named => std::slice::from_ref(entry),
                _ => &[],
            };
            let text = |entry: &Json| entry.as_str().or_else(|| entry["content"].as_str()).map(str::to_owned);
            texts.extend(entries.iter().filter_map(text));
        }
        Ok(texts)
    }

    /// The vocabulary of a byte-level BPE.
    fn byte_level(&self, json: &TokenizerJson, vocab_size: u64) -> Result<Vocabulary, TokenizerError> {
        let mut vocabulary = Vocabulary::padding(vocab_size, 0.0);
        let size = vocabulary.texts.len();
        let place = |id: u64, text: &str| {
            usize::try_from(id).ok().filter(|&id| id < size).ok_or_else(|| {
                let reason = format!(
                    "token {id} ({text:?}) is not below the model's vocab_size of {vocab_size}; the tokenizer belongs to another model: get both from one source"
                );
                self.broken("tokenizer.json", reason)
            })
        };
        for (text, &id) in &json.model.vocab {
            vocabulary.set(place(id, text)?, text.clone(), 0.0, TokenKind::Normal);
        }
        let named = self.named_specials()?;
        for text in &named {
            if let Some(&id) = json.model.vocab.get(text) {
                vocabulary.kinds[place(id, text)?] = TokenKind::Control;
            }
        }
        for token in &json.added_tokens {
            let special = token.special || named.contains(&token.content);
            let (text, kind) = added(&token.content, special);
            vocabulary.set(place(token.id, &token.content)?, text, 0.0, kind);
        }
        let known: HashSet<u64> = json.added_tokens.iter().map(|token| token.id).collect();
        for (id, text, special) in self.added_tokens_decoder() {
            if !known.contains(&(id as u64)) {
                let special = special || named.contains(text);
                let (content, kind) = added(text, special);
                vocabulary.set(place(id as u64, text)?, content, 0.0, kind);
            }
        }
        Ok(vocabulary)
    }

    /// The vocabulary of a SentencePiece BPE that stands in tokenizer.json alone. Scores are the ranks of the merges, so
    /// that merging by score is merging by rank; llama.cpp's converter gives all tokens one score, which is not.
    fn sentencepiece_json(&self, json: &TokenizerJson) -> Result<Vocabulary, TokenizerError> {
        let own = json.model.vocab.values().map(|id| id + 1).max().unwrap_or(0);
        let size = json.added_tokens.iter().map(|token| token.id + 1).max().unwrap_or(0).max(own);
        // Ids are below 2^24, but a few of them may be spread wide.
        let count = (json.model.vocab.len() + json.added_tokens.len()) as u64;
        if size > count.saturating_mul(2) + 1024 {
            let reason = format!("{count} tokens have ids up to {size}; the file is damaged: get it anew");
            return Err(self.broken("tokenizer.json", reason));
        }
        let mut vocabulary = Vocabulary::padding(size, -1000.0);
        let id = |id: u64| usize::try_from(id).unwrap_or(usize::MAX);
        let named = self.named_specials()?;
        for (text, &token) in &json.model.vocab {
            let is_byte =
                text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>')).is_some_and(|digits| {
                    digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
                });
            let kind = match () {
                () if is_byte => TokenKind::Byte,
                () if named.contains(text) => TokenKind::Control,
                () => TokenKind::Normal,
            };
            vocabulary.set(id(token), text.clone(), -1.0e6, kind);
        }
        let mut scored = vec![false; vocabulary.texts.len()];
        for (rank, merge) in json.model.merges.iter().enumerate() {
            let first = merge.0.chars().next().map_or(0, char::len_utf8);
            let Some(gap) = merge.0[first..].find(' ').map(|at| at + first) else { continue };
            let whole = format!("{}{}", &merge.0[..gap], &merge.0[gap + 1..]);
            if let Some(&token) = json.model.vocab.get(&whole)
                && !std::mem::replace(&mut scored[id(token)], true)
            {
                #[expect(clippy::cast_precision_loss, reason = "ranks are below 2^24")]
                let score = -(rank as f32);
                vocabulary.scores[id(token)] = score;
            }
        }
        for token in &json.added_tokens {
            if token.id >= own {
                let special = token.special || named.contains(&token.content);
                let (text, kind) = added(&token.content, special);
                vocabulary.set(id(token.id), text, -1000.0, kind);
            } else if token.special {
                vocabulary.kinds[id(token.id)] = TokenKind::Control;
            }
        }
        Ok(vocabulary)
    }
}

/// Text and kind of an added token.
fn added(text: &str, special: bool) -> (String, TokenKind) {
    if special || looks_special(text) {
        (text.to_owned(), TokenKind::Control)
    } else {
        (text.replace('\u{2581}', " "), TokenKind::UserDefined)
    }
}

/// Added tokens that models forgot to mark as special. Source: llama.cpp's converter.
fn looks_special(text: &str) -> bool {
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || text.starts_with("<|") && text.ends_with("|>")
        || text.starts_with("<｜") && text.ends_with("｜>")
        || text.starts_with("<unused") && text.ends_with('>')
}
