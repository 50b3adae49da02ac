//! The tokenizer of a model, from its GGUF metadata.

use crate::bpe::Bpe;
use crate::pre_tokenizer::{Alphabet, PreTokenizer, Splitter};
use crate::special::{Fragment, Specials, Strips};
use crate::spm::{SPACE, Spm};
use crate::unicode::Categories;
use crate::unigram::Unigram;
use crate::vocabulary::{Token, TokenKind, Vocabulary, bad};
use crate::wordpiece::WordPiece;
use crate::{TokenizerError, byte_level};
use kbit_formats::gguf::{Array, Metadata, Value};
use std::borrow::Cow;

/// Turns text into token ids and back, exactly as llama.cpp does with the same metadata.
///
/// ```no_run
/// let gguf = kbit_formats::gguf::Gguf::open("model.gguf".as_ref())?;
/// let tokenizer = kbit_tokenizers::Tokenizer::from_metadata(gguf.metadata())?;
/// let tokens = tokenizer.encode("Once upon a time", true, false);
/// println!("{tokens:?} {:?}", tokenizer.decode(&tokens));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    model: Model,
    specials: Specials,
    bos: Option<u32>,
    eos: Option<u32>,
    separator: Option<u32>,
    unknown: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    adds_space: bool,
    /// Names and sources; the default one has no name.
    chat_templates: Vec<(Option<String>, String)>,
}

#[derive(Debug)]
enum Model {
    Bpe(Box<Bpe>, Alphabet),
    /// BPE of words that white space is dropped between, in lower case where so marked.
    Words(Box<Bpe>, Option<Categories>),
    Spm(Box<Spm>),
    Unigram(Box<Unigram>),
    WordPiece(Box<WordPiece>),
}

/// What a kind of tokenizer has where the metadata do not say: llama.cpp's defaults.
#[derive(Default)]
struct Defaults {
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    separator: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    adds_space: bool,
}

impl Defaults {
    fn of(kind: &str) -> Result<Self, TokenizerError> {
        match kind {
            "llama" => Ok(Self {
                bos: Some(1),
                eos: Some(2),
                unknown: Some(0),
                adds_bos: true,
                adds_space: true,
                ..Self::default()
            }),
            "gpt2" | "whitespace" => Ok(Self { bos: Some(11), eos: Some(11), ..Self::default() }),
            "gemma4" => Ok(Self::default()),
            "t5" => Ok(Self { eos: Some(1), unknown: Some(2), adds_eos: true, ..Self::default() }),
            "bert" => Ok(Self {
                bos: Some(101),
                unknown: Some(100),
                separator: Some(102),
                adds_bos: true,
                ..Self::default()
            }),
            "none" | "no_vocab" => Err(TokenizerError::NoTokenizer),
            _ => Err(TokenizerError::UnknownModel {
                found: kind.to_owned(),
                known: vec!["gpt2", "llama", "t5", "bert", "gemma4", "whitespace"],
            }),
        }
    }
}

impl Tokenizer {
    /// Reads `tokenizer.ggml.*`.
    ///
    /// # Errors
    /// When the kind of tokenizer or the pre-tokenizer is not known, or the metadata is incomplete or contradictory.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let kind = metadata.str("tokenizer.ggml.model")?;
        let mut defaults = Defaults::of(kind)?;
        let pre_tokenizer = match kind {
            "gemma4" => Some(PreTokenizer::by_name("gemma4")?),
            "gpt2" | "whitespace" => {
                let name = metadata.opt_str("tokenizer.ggml.pre")?.unwrap_or("default");
                Some(PreTokenizer::by_name(name)?)
            }
            _ => None,
        };
        if let Some(entry) = pre_tokenizer {
            defaults.adds_bos = entry.add_bos;
            defaults.bos = defaults.bos.filter(|_| entry.has_bos);
        }
        let vocabulary = Vocabulary::from_metadata(metadata)?;
        let special = |key: &str, default: Option<u32>| -> Result<Option<u32>, TokenizerError> {
            let default = default.filter(|&id| id < vocabulary.len());
            match metadata.opt_u32(&format!("tokenizer.ggml.{key}_token_id"))? {
                Some(id) if id < vocabulary.len() => Ok(Some(id)),
                _ => Ok(default),
            }
        };
        let needed = |key: &str, id: Option<u32>, use_: &str| {
            id.ok_or_else(|| bad(&format!("{key}_token_id"), format!("is missing, yet {use_}")))
        };
        let flag = |key: &str, default: bool| -> Result<bool, TokenizerError> {
            Ok(metadata.opt_bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default))
        };
        let bos = special("bos", defaults.bos)?;
        let eos = special("eos", defaults.eos)?;
        let unknown = special("unknown", defaults.unknown)?;
        let separator = special("seperator", defaults.separator)?;
        let adds_space = flag("add_space_prefix", defaults.adds_space)?;
        let for_unknown = "it stands for what has no token";
        let (model, is_bpe) = match (kind, pre_tokenizer) {
            (_, Some(entry)) => {
                let merges = match metadata.get("tokenizer.ggml.merges") {
                    // A vocabulary of bytes alone has no merges.
                    Some(Value::Array(items)) if items.is_empty() => &[],
                    Some(Value::Array(Array::String(merges))) => merges.as_slice(),
                    Some(_) => return Err(bad("merges", "not a list of texts".to_owned())),
                    None if entry.names.contains(&"kimi-k2") => &[],
                    None => return Err(bad("merges", "is missing".to_owned())),
                };
                let splitter = Splitter::new(entry)?;
                let bpe = Bpe::new(&vocabulary, merges, splitter, entry.whole_words, entry.alphabet)?;
                let model = if kind == "whitespace" {
                    let default = !entry.names.contains(&"whitespace");
                    let lowercase = flag("normalizer.lowercase", default)?;
                    Model::Words(Box::new(bpe), lowercase.then(Categories::new))
                } else {
                    Model::Bpe(Box::new(bpe), entry.alphabet)
                };
                (model, true)
            }
            ("t5", None) => {
                let charsmap = bytes(metadata, "precompiled_charsmap")?;
                let unknown = needed("unknown", unknown, for_unknown)?;
                let merges_spaces = flag("remove_extra_whitespaces", false)?;
                let unigram = Unigram::new(&vocabulary, unknown, &charsmap, adds_space, merges_spaces)?;
                (Model::Unigram(Box::new(unigram)), false)
            }
            ("bert", None) => {
                let unknown = needed("unknown", unknown, for_unknown)?;
                needed("bos", bos, "it begins every text")?;
                needed("seperator", separator, "it ends every text")?;
                let lowercase = flag("normalizer.lowercase", true)?;
                let strip_accents = flag("normalizer.strip_accents", lowercase)?;
                let words = WordPiece::new(&vocabulary, unknown, lowercase, strip_accents);
                (Model::WordPiece(Box::new(words)), false)
            }
            _ => (Model::Spm(Box::new(Spm::new(&vocabulary, unknown))), false),
        };
        // Gemma's files say no where yes is meant.
        let always_adds_bos =
            matches!(pre_tokenizer, Some(entry) if entry.names.contains(&"gemma4")) || kind == "bert";
        let adds_bos = flag("add_bos_token", defaults.adds_bos)? || always_adds_bos;
        if adds_bos {
            needed("bos", bos, "a BOS token is to be added")?;
        }
        let (eos, adds_eos) = match kind {
            // What ends a text of BERT's is its separator.
            "bert" => (eos, false),
            _ => (eos, flag("add_eos_token", defaults.adds_eos)?),
        };
        if adds_eos {
            needed("eos", eos, "an EOS token is to be added")?;
        }
        Ok(Self {
            specials: Specials::new(&vocabulary, strips(metadata)?),
            model,
            bos,
            eos,
            separator: separator.filter(|_| kind == "bert"),
            unknown,
            adds_bos,
            adds_eos,
            adds_space: adds_space && !is_bpe,
            chat_templates: chat_templates(metadata)?,
            vocabulary,
        })
    }

    /// Token ids of `text`. `add_special` puts BOS before and EOS after it where the model wants them;
    /// `parse_special` takes the texts of control tokens (`<|im_start|>`) for these tokens rather than for text.
    #[must_use]
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if add_special && self.adds_bos {
            out.extend(self.bos);
        }
        let fragments =
            if text.is_empty() { Vec::new() } else { self.specials.partition(text, parse_special) };
        self.encode_fragments(&fragments, Cow::Borrowed, &mut out);
        if add_special {
            out.extend(self.separator);
            out.extend(self.eos.filter(|_| self.adds_eos));
        }
        out
    }

    /// Tokens of a text that is to be continued, special tokens in it included: BOS before it where the model wants one (or has
    /// one, and there is nothing else to begin with), once; no EOS after it.
    #[must_use]
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        let mut tokens = self.encode(text, false, true);
        let wanted = self.bos.filter(|_| self.adds_bos || tokens.is_empty());
        if wanted.is_some() && tokens.first().copied() != wanted {
            tokens.splice(..0, wanted);
        }
        tokens
    }

    /// Appends the tokens of `fragments`, whose texts stand for what `text_of` gives.
    pub(crate) fn encode_fragments<'t>(
        &self,
        fragments: &[Fragment<'t>],
        text_of: impl Fn(&'t str) -> Cow<'t, str>,
        out: &mut Vec<u32>,
    ) {
        let mut after_special = true;
        for fragment in fragments {
            match *fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => self.encode_text(&text_of(text), after_special, out),
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
    }

    /// Appends the tokens of text without special tokens, which begins a text or follows a special token where so marked.
    fn encode_text(&self, text: &str, after_special: bool, out: &mut Vec<u32>) {
        match &self.model {
            Model::Bpe(bpe, Alphabet::CharactersWithSpaceMark) => bpe.encode(&text.replace(' ', SPACE), out),
            Model::Bpe(bpe, Alphabet::Bytes | Alphabet::Characters) => bpe.encode(text, out),
            Model::Words(bpe, lowercase) => {
                for word in text.split_whitespace() {
                    let word = match lowercase {
                        Some(of) => Cow::Owned(word.chars().map(|c| of.simple_lowercase(c)).collect()),
                        None => Cow::Borrowed(word),
                    };
                    bpe.encode(&word, out);
                }
            }
            Model::Unigram(unigram) => unigram.encode(text, out),
            Model::WordPiece(words) => words.encode(text, out),
            Model::Spm(spm) => {
                let mut escaped = String::with_capacity(text.len() + text.len() / 2);
                if self.adds_space && after_special {
                    escaped.push_str(SPACE);
                }
                for c in text.chars() {
                    match c {
                        ' ' => escaped.push_str(SPACE),
                        c => escaped.push(c),
                    }
                }
                spm.encode(&escaped, out);
            }
        }
    }

    /// Text of `tokens`, without control tokens and without the space that encoding puts before text; bytes that are
    /// not UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &token in tokens {
            self.push_bytes(token, &mut bytes);
        }
        let begins_with_text =
            tokens.first().is_none_or(|&token| !self.is_control(token) || Some(token) == self.bos);
        let text = match bytes.split_first() {
            Some((b' ', rest)) if self.adds_space && begins_with_text => rest,
            _ => &bytes,
        };
        String::from_utf8_lossy(text).into_owned()
    }

    /// Bytes of `tokens`, without control tokens: what a stream shows as tokens come.
    #[must_use]
    pub fn decode_bytes(&self, tokens: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &token in tokens {
            self.push_bytes(token, &mut bytes);
        }
        bytes
    }

    pub(crate) fn push_bytes(&self, token: u32, out: &mut Vec<u8>) {
        let Some(Token { text, kind, .. }) = self.vocabulary.get(token) else { return };
        match (kind, &self.model) {
            (TokenKind::Control | TokenKind::Unknown | TokenKind::Unused, _) => {}
            (TokenKind::UserDefined, _) => out.extend_from_slice(text.as_bytes()),
            (TokenKind::Byte, _) => match text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>')) {
                Some(digits) => out.extend(u8::from_str_radix(digits, 16)),
                None => out.extend_from_slice(text.as_bytes()),
            },
            (TokenKind::Normal, Model::Bpe(_, Alphabet::Bytes)) => match byte_level::to_bytes(text) {
                Some(bytes) => out.extend(bytes),
                None => out.extend_from_slice(text.as_bytes()),
            },
            (TokenKind::Normal, Model::Bpe(_, Alphabet::Characters) | Model::Words(..)) => {
                out.extend_from_slice(text.as_bytes());
            }
            (TokenKind::Normal, _) => out.extend_from_slice(text.replace(SPACE, " ").as_bytes()),
        }
    }

    /// The token that begins a text, if the model has one.
    #[must_use]
    pub const fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, if the model has one.
    #[must_use]
    pub const fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token for what has no token, if the model has one.
    #[must_use]
    pub const fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// True where text begins with [`Tokenizer::bos`].
    #[must_use]
    pub const fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// True where text ends with [`Tokenizer::eos`].
    #[must_use]
    pub const fn adds_eos(&self) -> bool {
        self.adds_eos
    }

    pub(crate) const fn specials(&self) -> &Specials {
        &self.specials
    }

    /// The model's own chat template of that name; without a name, the one that it is made for.
    #[must_use]
    pub fn chat_template(&self, name: Option<&str>) -> Option<&str> {
        let (_, source) = self.chat_templates.iter().find(|(known, _)| known.as_deref() == name)?;
        Some(source)
    }

    /// True where encoding puts a space before text.
    pub(crate) const fn adds_space(&self) -> bool {
        self.adds_space
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len() as usize
    }

    /// The token's text as the vocabulary has it: byte-level BPE in GPT-2's alphabet, SentencePiece with `▁`.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<&str> {
        Some(&self.vocabulary.get(id)?.text)
    }

    /// The token's kind.
    #[must_use]
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        Some(self.vocabulary.get(id)?.kind)
    }

    /// True for tokens that have a meaning and no text.
    #[must_use]
    pub fn is_control(&self, id: u32) -> bool {
        self.token_kind(id) == Some(TokenKind::Control)
    }

    /// True for tokens that end a text or a turn: generation stops there.
    #[must_use]
    pub fn ends_generation(&self, id: u32) -> bool {
        Some(id) == self.eos || self.vocabulary.ends_generation(id)
    }
}

/// `tokenizer.chat_template`, and those that `tokenizer.chat_templates` names.
fn chat_templates(metadata: &Metadata) -> Result<Vec<(Option<String>, String)>, TokenizerError> {
    const KEY: &str = "tokenizer.chat_template";
    let mut templates = Vec::new();
    templates.extend(metadata.opt_str(KEY)?.map(|source| (None, source.to_owned())));
    if let Some(Value::Array(Array::String(names))) = metadata.get("tokenizer.chat_templates") {
        for name in names {
            let source = metadata.opt_str(&format!("{KEY}.{name}"))?;
            templates.extend(source.map(|source| (Some(name.clone()), source.to_owned())));
        }
    }
    Ok(templates)
}

/// A list of bytes, empty where the key is missing.
fn bytes<'m>(metadata: &'m Metadata, key: &str) -> Result<Cow<'m, [u8]>, TokenizerError> {
    match metadata.get(&format!("tokenizer.ggml.{key}")) {
        None => Ok(Cow::Borrowed(&[])),
        Some(Value::Array(items)) if items.is_empty() => Ok(Cow::Borrowed(&[])),
        Some(Value::Array(Array::U8(bytes))) => Ok(Cow::Borrowed(bytes)),
        Some(Value::Array(Array::I8(bytes))) => {
            Ok(Cow::Owned(bytes.iter().map(|&byte| byte.cast_unsigned()).collect()))
        }
        Some(_) => Err(bad(key, "not a list of bytes".to_owned())),
    }
}

/// Which special tokens take the white space beside them, which no metadata say but by the model's name.
fn strips(metadata: &Metadata) -> Result<impl Fn(&str) -> Strips, TokenizerError> {
    const MASKS: [&str; 5] = ["jina-v2-de", "jina-v2-es", "jina-v2-code", "nomic-bert-moe", "jina-bert-v3"];
    let name = metadata.opt_str("general.name")?.unwrap_or("").to_lowercase();
    let family = [metadata.opt_str("tokenizer.ggml.pre")?, metadata.opt_str("general.architecture")?];
    let has_mask = family.into_iter().flatten().any(|name| MASKS.iter().any(|mask| name.contains(mask)));
    let phi_3 = name.contains("phi-3") || name.contains("phi3");
    let modern_bert = name.contains("modern-bert");
    Ok(move |text: &str| match text {
        "<mask>" if has_mask => Strips::Left,
        _ if has_mask => Strips::None,
        "<unk>" | "<s>" | "<|endoftext|>" if phi_3 => Strips::None,
        _ if phi_3 => Strips::Right,
        "[MASK]" if modern_bert => Strips::Left,
        _ => Strips::None,
    })
}
