//! The tokens of a Hugging Face folder: texts, scores and kinds, by kind of tokenizer.

use super::sentencepiece::{self, Piece};
use super::tokenizer_json::{Bpe, Merge, Model, TokenizerJson, Unigram};
use super::{ADD_SPACE, Folder, fingerprint, special_tokens};
use crate::TokenizerError;
use crate::bpe::{Bpe as Encoder, parts_of_merge};
use crate::pre_tokenizer::{Alphabet, PreTokenizer, Splitter, WholeWords};
use crate::special::{Fragment, Specials, Strips};
use crate::spm::SPACE;
use crate::vocabulary::{MAX_TOKENS, TokenKind};
use kbit_formats::gguf::{Array, Metadata, Value};
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};

/// Names of a `SentencePiece` model, in the order in which they are looked for.
const MODELS: [&str; 3] = ["tokenizer.model", "spiece.model", XLM_ROBERTA];
/// The name under which fairseq's tokens go before the model's.
const XLM_ROBERTA: &str = "sentencepiece.bpe.model";

const BPE: u64 = 2;
const UNIGRAM: u64 = 1;

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

    /// Puts fairseq's four tokens before the model's, of which the first three and the last go.
    fn realign(&mut self) {
        let last = self.texts.len().saturating_sub(1);
        let named = [
            ("<s>", TokenKind::Control),
            ("<pad>", TokenKind::Control),
            ("</s>", TokenKind::Control),
            ("<unk>", TokenKind::Unknown),
        ];
        let named = || named.iter();
        let from = 3.min(last);
        self.texts =
            named().map(|(text, _)| (*text).to_owned()).chain(self.texts.drain(from..last)).collect();
        self.scores = named().map(|_| 0.0).chain(self.scores.drain(from..last)).collect();
        self.kinds = named().map(|&(_, kind)| kind).chain(self.kinds.drain(from..last)).collect();
    }

    /// Scores are written where the kind of tokenizer has them.
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

/// A `SentencePiece` model and the name of its file.
pub(super) struct NamedModel {
    name: &'static str,
    model: sentencepiece::Model,
}

impl Folder {
    /// The `SentencePiece` model, where there is one.
    pub(super) fn sentencepiece_model(&self) -> Result<Option<NamedModel>, TokenizerError> {
        for name in MODELS {
            let Some(bytes) = self.bytes(name)? else { continue };
            let model = sentencepiece::parse(&bytes)
                .map_err(|reason| self.broken(name, format!("{reason}; the file is damaged: get it anew")))?;
            let reason = match (model.kind, model.pieces.len()) {
                (BPE | UNIGRAM, 1..=MAX_TOKENS) => return Ok(Some(NamedModel { name, model })),
                (BPE | UNIGRAM, 0) => "it has no pieces; the file is damaged: get it anew".to_owned(),
                (BPE | UNIGRAM, count) => {
                    format!("it has {count} pieces, where at most {MAX_TOKENS} make sense; get the file anew")
                }
                (kind, _) => format!(
                    "its model is of kind {kind}, where kbit carries over Unigram ({UNIGRAM}) and BPE ({BPE}); convert the model to GGUF with llama.cpp"
                ),
            };
            return Err(self.broken(name, reason));
        }
        Ok(None)
    }

    /// Writes the vocabulary of a `SentencePiece` model, with the tokens that the other files add.
    pub(super) fn write_sentencepiece(
        &self,
        NamedModel { name, model }: NamedModel,
        json: Option<&TokenizerJson>,
        vocab_size: u64,
        architecture: &str,
        out: &mut Metadata,
    ) -> Result<(), TokenizerError> {
        let is_bpe = model.kind == BPE;
        let is_xlm_roberta = name == XLM_ROBERTA && !is_bpe;
        let size = if is_xlm_roberta { vocab_size.max(model.pieces.len() as u64) } else { vocab_size };
        let mut vocabulary = Vocabulary::padding(size, -10000.0);
        let size = vocabulary.texts.len();
        for (id, Piece { text, score, kind }) in model.pieces.into_iter().enumerate().take(size) {
            let kind = match kind {
                2 => TokenKind::Unknown,
                3 => TokenKind::Control,
                5 => TokenKind::Unused,
                6 => TokenKind::Byte,
                _ if architecture == "internlm2" && text.starts_with("[UNUSED") => TokenKind::Unused,
                _ => TokenKind::Normal,
            };
            // llama.cpp, for which texts end at a zero byte, has this stand for one.
            let text = if architecture == "internlm2" && text == "\0" { "🐉".to_owned() } else { text };
            vocabulary.set(id, text, score, kind);
        }
        if is_xlm_roberta {
            vocabulary.realign();
        } else {
            for (text, id) in self.object("added_tokens.json")?.into_iter().flatten() {
                let Some(id) = id.as_u64().and_then(|id| usize::try_from(id).ok()) else { continue };
                if id < size {
                    vocabulary.set(id, text, -1000.0, TokenKind::UserDefined);
                }
            }
        }
        if is_bpe {
            // These take what the files say of added tokens as it is.
            let as_is = matches!(architecture, "phi3" | "internlm2");
            let of_json = json.filter(|_| as_is).into_iter().flat_map(|json| &json.added_tokens);
            let of_json = of_json.filter_map(|token| {
                Some((usize::try_from(token.id).ok()?, token.content.as_str(), token.special))
            });
            for (id, text, special) in self.added_tokens_decoder().chain(of_json) {
                if id < size {
                    let (text, kind) = match (as_is, special) {
                        (false, _) => added(text, special),
                        (true, false) => (text.to_owned(), TokenKind::UserDefined),
                        (true, true) => (text.to_owned(), TokenKind::Control),
                    };
                    vocabulary.set(id, text, -1000.0, kind);
                }
            }
            vocabulary.write("llama", "default", true, out);
            if architecture == "internlm2" {
                out.insert(ADD_SPACE, Value::Bool(model.adds_space));
            }
        } else {
            let token_types = is_xlm_roberta.then(|| self.token_types());
            vocabulary.write("t5", "default", true, out);
            write_normalizer(model.adds_space, token_types, model.merges_spaces, model.charsmap, out);
        }
        Ok(())
    }

    /// Writes the vocabulary of tokenizer.json.
    pub(super) fn write_json(
        &self,
        json: &TokenizerJson,
        vocab_size: u64,
        architecture: &str,
        pre_tokenizer: Option<&str>,
        out: &mut Metadata,
    ) -> Result<(), TokenizerError> {
        match &json.model {
            Model::Bpe(model) if model.is_sentencepiece() => {
                self.sentencepiece_json(model, json)?.write("llama", "default", true, out);
            }
            Model::Bpe(model) => {
                let mut vocabulary = self.mapped(&model.vocab, json, vocab_size)?;
                if architecture == "qwen2" {
                    self.add_default_of_qwen_2(&mut vocabulary);
                }
                let name = match pre_tokenizer {
                    Some(name) => {
                        PreTokenizer::by_name(name)?;
                        name
                    }
                    None => {
                        let adds_bos = special_tokens::adds_bos(self, json);
                        let ids = |splitter, whole| ids_of_text(json, model, &vocabulary, splitter, whole);
                        json.pre_tokenizer_name(model, adds_bos, ids)?
                    }
                };
                vocabulary.write("gpt2", name, false, out);
                if !model.merges.is_empty() {
                    let merges = model.merges.iter().map(|merge| merge.0.clone()).collect();
                    out.insert("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
                }
            }
            Model::WordPiece(model) => {
                const WITHIN: &str = "##";
                if let Some(prefix) =
                    model.continuing_subword_prefix.as_deref().filter(|&prefix| prefix != WITHIN)
                {
                    let reason = format!(
                        "its tokens within words begin with {prefix:?}, where GGUF has a place for {WITHIN:?} alone; convert the model to GGUF with llama.cpp"
                    );
                    return Err(self.broken("tokenizer.json", reason));
                }
                let mut vocabulary = self.mapped(&model.vocab, json, vocab_size)?;
                for (text, kind) in vocabulary.texts.iter_mut().zip(&vocabulary.kinds) {
                    if *kind != TokenKind::Control {
                        *text = match text.strip_prefix(WITHIN) {
                            Some(within) => within.to_owned(),
                            None => format!("{SPACE}{text}"),
                        };
                    }
                }
                if architecture.contains("bert") {
                    out.insert("tokenizer.ggml.token_type_count", Value::U32(self.token_types()));
                }
                // No reader of WordPiece cares.
                vocabulary.write("bert", "default", false, out);
            }
            Model::Unigram(model) => {
                let vocabulary = self.unigram_json(model, json, vocab_size)?;
                let charsmap = self.charsmap(&json.normalizer)?;
                let flag = |key, default| self.setting(key).and_then(Json::as_bool).unwrap_or(default);
                let token_types = architecture.contains("bert").then(|| self.token_types());
                vocabulary.write("t5", "default", true, out);
                let merges_spaces = flag("clean_up_tokenization_spaces", false);
                write_normalizer(flag("add_prefix_space", true), token_types, merges_spaces, charsmap, out);
            }
        }
        Ok(())
    }

    /// The token that transformers' class for Qwen 2, which the converter reads with, takes for special tokens that are
    /// not named: where the files lack it, the class adds it.
    fn add_default_of_qwen_2(&self, vocabulary: &mut Vocabulary) {
        const DEFAULT: &str = "<|endoftext|>";
        let is_named = |key: &str| self.setting(key).is_some_and(|token| !token.is_null());
        if ["unk_token", "eos_token", "pad_token"].into_iter().all(is_named)
            || vocabulary.texts.iter().any(|text| text == DEFAULT)
        {
            return;
        }
        let unused =
            vocabulary.kinds.iter().rposition(|kind| *kind != TokenKind::Unused).map_or(0, |id| id + 1);
        if unused < vocabulary.texts.len() {
            vocabulary.set(unused, DEFAULT.to_owned(), 0.0, TokenKind::Control);
        }
    }

    /// The tokenizer of `vocab.json` and `merges.txt`, GPT-2's own files, where both are there.
    pub(super) fn vocab_and_merges(&self) -> Result<Option<TokenizerJson>, TokenizerError> {
        const VOCAB: &str = "vocab.json";
        const MERGES: &str = "merges.txt";
        let (Some(vocab), Some(merges)) = (self.object(VOCAB)?, self.bytes(MERGES)?) else { return Ok(None) };
        let id = |(text, id): (String, Json)| match id.as_u64().filter(|&id| id < MAX_TOKENS as u64) {
            Some(id) => Ok((text, id)),
            None => {
                let reason =
                    format!("{text:?} has {id}, where ids below {MAX_TOKENS} make sense; get the file anew");
                Err(self.broken(VOCAB, reason))
            }
        };
        let vocab = vocab.into_iter().map(id).collect::<Result<_, _>>()?;
        let text = String::from_utf8(merges)
            .map_err(|_| self.broken(MERGES, "it is not UTF-8; get the file anew".to_owned()))?;
        let header = usize::from(text.starts_with('#'));
        let mut merges = Vec::new();
        for (line, text) in text.lines().enumerate().skip(header) {
            match text.split_whitespace().collect::<Vec<_>>().as_slice() {
                [] => {}
                [left, right] => merges.push(Merge(format!("{left} {right}"))),
                _ => {
                    let reason = format!("line {}: {text:?} is not two tokens; get the file anew", line + 1);
                    return Err(self.broken(MERGES, reason));
                }
            }
        }
        let class = self.setting("tokenizer_class").and_then(Json::as_str).unwrap_or("GPT2Tokenizer");
        Ok(Some(TokenizerJson::of_class(class, vocab, merges)))
    }

    /// How many types of tokens an encoder tells apart.
    fn token_types(&self) -> u32 {
        let types = self.config.get("type_vocab_size").and_then(Json::as_u64);
        types.and_then(|types| u32::try_from(types).ok()).unwrap_or(1)
    }

    /// The vocabulary of a Unigram model in tokenizer.json.
    fn unigram_json(
        &self,
        model: &Unigram,
        json: &TokenizerJson,
        vocab_size: u64,
    ) -> Result<Vocabulary, TokenizerError> {
        let mut vocabulary = Vocabulary::padding(vocab_size.max(model.vocab.len() as u64), -10000.0);
        let unknown = self.setting("unk_token").and_then(special_tokens::token_text);
        let unknown = json.added_tokens.iter().find(|token| Some(token.content.as_str()) == unknown);
        let unknown = unknown.map(|token| token.id).or(model.unk_id).unwrap_or(3);
        let named = self.named_specials()?;
        for (id, (text, score)) in model.vocab.iter().enumerate() {
            if score.is_nan() {
                let reason = format!("the score of token {id} ({text:?}) is not a number; get the file anew");
                return Err(self.broken("tokenizer.json", reason));
            }
            let kind = match () {
                () if id as u64 == unknown => TokenKind::Unknown,
                () if named.contains(text) => TokenKind::Control,
                () if json.added_tokens.iter().any(|token| token.id == id as u64) => TokenKind::UserDefined,
                () => TokenKind::Normal,
            };
            vocabulary.set(id, text.clone(), *score, kind);
        }
        Ok(vocabulary)
    }

    /// The table of replacements of a normalizer; that of a sequence is its only one.
    fn charsmap(&self, normalizer: &Json) -> Result<Vec<u8>, TokenizerError> {
        let parts = normalizer["normalizers"].as_array();
        let part = parts.into_iter().flatten().find(|part| part["type"] == "Precompiled");
        match part.unwrap_or(normalizer)["precompiled_charsmap"].as_str() {
            None => Ok(Vec::new()),
            Some(text) => from_base64(text).ok_or_else(|| {
                let reason = "its precompiled_charsmap is not base64; get the file anew".to_owned();
                self.broken("tokenizer.json", reason)
            }),
        }
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

    /// The id of an added token.
    pub(super) fn added_token(&self, text: &str) -> Option<u32> {
        let (id, ..) = self.added_tokens_decoder().find(|(_, content, _)| *content == text)?;
        u32::try_from(id).ok()
    }

    /// The vocabulary of a byte-level BPE or of `WordPiece`, whose own tokens are `vocab`.
    fn mapped(
        &self,
        vocab: &HashMap<String, u64>,
        json: &TokenizerJson,
        vocab_size: u64,
    ) -> Result<Vocabulary, TokenizerError> {
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
        for (text, &id) in vocab {
            vocabulary.set(place(id, text)?, text.clone(), 0.0, TokenKind::Normal);
        }
        let named = self.named_specials()?;
        for text in &named {
            if let Some(&id) = vocab.get(text) {
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
    fn sentencepiece_json(&self, model: &Bpe, json: &TokenizerJson) -> Result<Vocabulary, TokenizerError> {
        let own = model.vocab.values().map(|id| id + 1).max().unwrap_or(0);
        let size = json.added_tokens.iter().map(|token| token.id + 1).max().unwrap_or(0).max(own);
        // Ids are below 2^24, but a few of them may be spread wide.
        let count = (model.vocab.len() + json.added_tokens.len()) as u64;
        if size > count.saturating_mul(2) + 1024 {
            let reason = format!("{count} tokens have ids up to {size}; the file is damaged: get it anew");
            return Err(self.broken("tokenizer.json", reason));
        }
        let mut vocabulary = Vocabulary::padding(size, -1000.0);
        let id = |id: u64| usize::try_from(id).unwrap_or(usize::MAX);
        let named = self.named_specials()?;
        for (text, &token) in &model.vocab {
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
        for (rank, merge) in model.merges.iter().enumerate() {
            let Some((left, right)) = parts_of_merge(&merge.0) else { continue };
            let whole = format!("{left}{right}");
            if let Some(&token) = model.vocab.get(&whole)
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

/// What the tokenizer of tokenizer.json makes of the text that tells them apart, special tokens included.
fn ids_of_text(
    json: &TokenizerJson,
    model: &Bpe,
    vocabulary: &Vocabulary,
    splitter: Splitter,
    whole_words: WholeWords,
) -> Option<Vec<u32>> {
    let tokens = vocabulary.texts.iter().zip(&vocabulary.kinds);
    let tokens = crate::vocabulary::Vocabulary::of(tokens.map(|(text, kind)| (text.clone(), *kind)));
    let merges: Vec<String> = model.merges.iter().map(|merge| merge.0.clone()).collect();
    let bpe = Encoder::new(&tokens, &merges, splitter, whole_words, Alphabet::Bytes).ok()?;
    let (mut ids, after) = special_tokens::around_text(&json.post_processor)?;
    for fragment in Specials::new(&tokens, |_| Strips::None).partition(fingerprint::TEXT, true) {
        match fragment {
            Fragment::Token(id) => ids.push(id),
            Fragment::Text(text) => bpe.encode(text, &mut ids),
        }
    }
    ids.extend(after);
    Some(ids)
}

/// What is done to text before Unigram.
fn write_normalizer(
    adds_space: bool,
    token_types: Option<u32>,
    merges_spaces: bool,
    charsmap: Vec<u8>,
    out: &mut Metadata,
) {
    out.insert(ADD_SPACE, Value::Bool(adds_space));
    if let Some(types) = token_types {
        out.insert("tokenizer.ggml.token_type_count", Value::U32(types));
    }
    out.insert("tokenizer.ggml.remove_extra_whitespaces", Value::Bool(merges_spaces));
    if !charsmap.is_empty() {
        out.insert("tokenizer.ggml.precompiled_charsmap", Value::Array(Array::U8(charsmap)));
    }
}

/// The bytes of standard base64 with its padding (RFC 4648, section 4).
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let [_, bytes @ ..] = (bits << (6 * (4 - group.len()))).to_be_bytes();
        out.extend_from_slice(&bytes[..group.len() - 1]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_ids_of_the_tokenizers_own_program() {
        // SHA-256 of Python's `str(ids)`, with the ids of Hugging Face's tokenizers.
        for (folder, wanted) in [
            ("../../assets/family/s0", "195b44e661907843800bfa28c48f2509de4ea4e105023470e0f8e8e05a80b145"),
            ("tests/golden/byte-level", "a61058f1375423446a9c517b51376a61837fbb0146c21ded7ac559d05c961ee0"),
        ] {
            let folder =
                Folder::read(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
            let json = folder.tokenizer_json().unwrap().unwrap();
            let Model::Bpe(model) = &json.model else { panic!("not BPE") };
            let vocabulary = folder.mapped(&model.vocab, &json, 4096).unwrap();
            let mut found = None;
            let _ = json.pre_tokenizer_name(model, None, |splitter, whole_words| {
                found = ids_of_text(&json, model, &vocabulary, splitter, whole_words);
                None
            });
            assert_eq!(fingerprint::fingerprint(&found.unwrap()), wanted);
        }
    }

    #[test]
    fn reads_base64_of_every_length() {
        let cases: [(&str, &[u8]); 5] =
            [("", b""), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("+/8A", b"\xfb\xff\0")];
        for (text, bytes) in cases {
            assert_eq!(from_base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zg=", "Z===", "Zm9%", "====", "Zg==Zg=="] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }
}
