//! The tokenizer of a model, from its GGUF metadata.

use crate::bpe::Bpe;
use crate::pre_tokenizer::PreTokenizer;
use crate::special::{Fragment, Specials};
use crate::spm::{SPACE, Spm};
use crate::vocabulary::{ENDS_OF_GENERATION, Token, TokenKind, Vocabulary, bad};
use crate::{TokenizerError, byte_level};
use kbit_formats::gguf::{Array, Metadata, Value};

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
    unknown: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    adds_space: bool,
}

#[derive(Debug)]
enum Model {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

impl Tokenizer {
    /// Reads `tokenizer.ggml.*`.
    ///
    /// # Errors
    /// When the kind of tokenizer or the pre-tokenizer is not known, or the metadata is incomplete or contradictory.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let kind = metadata.str("tokenizer.ggml.model")?;
        let is_bpe = match kind {
            "gpt2" => true,
            "llama" => false,
            "none" | "no_vocab" => return Err(TokenizerError::NoTokenizer),
            _ => {
                let known = vec!["gpt2", "llama"];
                return Err(TokenizerError::UnknownModel { found: kind.to_owned(), known });
            }
        };
        let vocabulary = Vocabulary::from_metadata(metadata)?;
        let special = |key: &str, default: Option<u32>| -> Result<Option<u32>, TokenizerError> {
            let default = default.filter(|&id| id < vocabulary.len());
            match metadata.opt_u32(&format!("tokenizer.ggml.{key}_token_id"))? {
                Some(id) if id < vocabulary.len() => Ok(Some(id)),
                _ => Ok(default),
            }
        };
        // Defaults of files that do not say: llama.cpp's.
        let default = |spm: u32, bpe: Option<u32>| if is_bpe { bpe } else { Some(spm) };
        let bos = special("bos", default(1, Some(11)))?;
        let eos = special("eos", default(2, Some(11)))?;
        let unknown = special("unknown", default(0, None))?;
        let flag = |key: &str, default: bool| -> Result<bool, TokenizerError> {
            Ok(metadata.opt_bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default))
        };
        let (model, adds_bos) = if is_bpe {
            let name = metadata.opt_str("tokenizer.ggml.pre")?.unwrap_or("default");
            let pre_tokenizer = PreTokenizer::by_name(name)?;
            let merges = match metadata.get("tokenizer.ggml.merges") {
                // A vocabulary of bytes alone has no merges.
                Some(Value::Array(items)) if items.is_empty() => &[],
                Some(Value::Array(Array::String(merges))) => merges.as_slice(),
                Some(_) => return Err(bad("merges", "not a list of texts".to_owned())),
                None => return Err(bad("merges", "is missing".to_owned())),
            };
            let bpe = Bpe::new(&vocabulary, merges, pre_tokenizer)?;
            (Model::Bpe(Box::new(bpe)), pre_tokenizer.add_bos)
        } else {
            (Model::Spm(Box::new(Spm::new(&vocabulary, unknown))), true)
        };
        let adds_bos = flag("add_bos_token", adds_bos)?;
        if adds_bos && bos.is_none() {
            return Err(bad("bos_token_id", "is missing, yet a BOS token is to be added".to_owned()));
        }
        let adds_eos = flag("add_eos_token", false)?;
        if adds_eos && eos.is_none() {
            return Err(bad("eos_token_id", "is missing, yet an EOS token is to be added".to_owned()));
        }
        let name = metadata.opt_str("general.name")?.unwrap_or("").to_lowercase();
        let phi_3 = name.contains("phi-3") || name.contains("phi3");
        let specials = Specials::new(&vocabulary, |text| {
            // Phi-3's added tokens take white space after them, which no metadata says.
            phi_3 && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>")
        });
        Ok(Self {
            model,
            specials,
            bos,
            eos,
            unknown,
            adds_bos,
            adds_eos,
            adds_space: flag("add_space_prefix", !is_bpe)? && !is_bpe,
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
        let mut after_special = true;
        for fragment in fragments {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => match &self.model {
                    Model::Bpe(bpe) => bpe.encode(text, &mut out),
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
                        spm.encode(&escaped, &mut out);
                    }
                },
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        if add_special && self.adds_eos {
            out.extend(self.eos);
        }
        out
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

    fn push_bytes(&self, token: u32, out: &mut Vec<u8>) {
        let Some(Token { text, kind, .. }) = self.vocabulary.get(token) else { return };
        match (kind, &self.model) {
            (TokenKind::Control | TokenKind::Unknown | TokenKind::Unused, _) => {}
            (TokenKind::UserDefined, _) => out.extend_from_slice(text.as_bytes()),
            (TokenKind::Byte, _) => match text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>')) {
                Some(digits) => out.extend(u8::from_str_radix(digits, 16)),
                None => out.extend_from_slice(text.as_bytes()),
            },
            (TokenKind::Normal, Model::Bpe(_)) => match byte_level::to_bytes(text) {
                Some(bytes) => out.extend(bytes),
                None => out.extend_from_slice(text.as_bytes()),
            },
            (TokenKind::Normal, Model::Spm(_)) => out.extend_from_slice(text.replace(SPACE, " ").as_bytes()),
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
        Some(id) == self.eos || self.token_text(id).is_some_and(|text| ENDS_OF_GENERATION.contains(&text))
    }
}
