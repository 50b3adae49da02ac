//! The tokens of a model: texts, scores and kinds, checked against each other.

use crate::TokenizerError;
use kbit_formats::gguf::{Array, Metadata, Value};
use std::collections::HashSet;

/// Most tokens that are believed.
pub(crate) const MAX_TOKENS: usize = 1 << 24;

/// Kind of a token. The numbers are those of GGUF and of SentencePiece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal = 1,
    /// Stands for what has no token.
    Unknown = 2,
    /// Has a meaning for the model and no text: begin, end, roles of a chat.
    Control = 3,
    /// Text that is found before all other.
    UserDefined = 4,
    /// Never used.
    Unused = 5,
    /// A byte, written `<0x00>` to `<0xFF>`.
    Byte = 6,
}

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: TokenKind,
    /// As the file says, whatever the text means.
    pub(crate) declared: TokenKind,
}

/// All tokens; the index is the id.
#[derive(Clone, Debug)]
pub(crate) struct Vocabulary {
    tokens: Vec<Token>,
    ends: HashSet<u32>,
}

impl Vocabulary {
    /// Reads `tokenizer.ggml.{tokens,scores,token_type}`.
    pub(crate) fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let texts = metadata.strings("tokenizer.ggml.tokens")?;
        if texts.is_empty() || texts.len() > MAX_TOKENS {
            let reason = format!("{} tokens, where between 1 and {MAX_TOKENS} make sense", texts.len());
            return Err(bad("tokens", reason));
        }
        let enough = |key: &str, count: usize| {
            if count < texts.len() {
                return Err(bad(key, format!("{count} entries for {} tokens", texts.len())));
            }
            Ok(())
        };
        #[expect(clippy::cast_precision_loss, reason = "whole scores are ranks, below 2^24")]
        let scores: Option<Vec<f32>> = match metadata.get("tokenizer.ggml.scores") {
            None => None,
            Some(Value::Array(Array::F32(scores))) => Some(scores.clone()),
            Some(Value::Array(Array::I32(scores))) => {
                Some(scores.iter().map(|&score| score as f32).collect())
            }
            Some(_) => return Err(bad("scores", "not a list of numbers".to_owned())),
        };
        if let Some(scores) = &scores {
            enough("scores", scores.len())?;
            if let Some(id) = scores.iter().position(|score| score.is_nan()) {
                return Err(bad("scores", format!("the score of token {id} is not a number")));
            }
        }
        let kinds = match metadata.get("tokenizer.ggml.token_type") {
            None => None,
            Some(Value::Array(Array::I32(kinds))) => Some(kinds),
            Some(_) => return Err(bad("token_type", "not a list of i32".to_owned())),
        };
        if let Some(kinds) = kinds {
            enough("token_type", kinds.len())?;
        }
        let token = |(id, text): (usize, &String)| {
            let kind = kinds.map_or(TokenKind::Normal, |kinds| TokenKind::from_id(kinds[id]));
            Token {
                text: if text.is_empty() { format!("[EMPTY_{id}]") } else { text.clone() },
                score: scores.as_ref().map_or(0.0, |scores| scores[id]),
                kind,
                declared: kind,
            }
        };
        let tokens: Vec<Token> = texts.iter().enumerate().map(token).collect();
        let mut vocabulary = Self { tokens, ends: HashSet::new() };
        vocabulary.find_meanings(metadata)?;
        Ok(vocabulary)
    }

    /// Tokens of no score.
    pub(crate) fn of(tokens: impl Iterator<Item = (String, TokenKind)>) -> Self {
        let tokens = tokens.map(|(text, kind)| Token { text, score: 0.0, kind, declared: kind });
        Self { tokens: tokens.collect(), ends: HashSet::new() }
    }

    /// Finds the tokens that end a generation, and makes control tokens of those whose texts say that they are.
    fn find_meanings(&mut self, metadata: &Metadata) -> Result<(), TokenizerError> {
        let id_of = |key: &str| -> Result<Option<u32>, TokenizerError> {
            let id = metadata.opt_u32(&format!("tokenizer.ggml.{key}_token_id"))?;
            Ok(id.filter(|&id| (id as usize) < self.tokens.len()))
        };
        let mut ends: HashSet<u32> = HashSet::new();
        // What the metadata say goes before what texts say.
        let mut parts = Vec::new();
        for part in FILL_IN_THE_MIDDLE {
            let mut given = None;
            for key in part.keys {
                given = given.or(id_of(key)?);
            }
            if given.is_none() {
                parts.push(part);
            }
            ends.extend(given.filter(|_| part.ends));
        }
        for key in ["eos", "eot", "eom"] {
            ends.extend(id_of(key)?);
        }
        for (id, token) in (0u32..).zip(&mut self.tokens) {
            let text = token.text.as_str();
            let part = parts.iter().find(|part| part.texts.contains(&text));
            let is_end = ENDS_OF_GENERATION.contains(&text);
            if is_end || part.is_some_and(|part| part.ends) {
                ends.insert(id);
            }
            if is_end || part.is_some() {
                token.kind = TokenKind::Control;
            }
            if ROLES_OF_HARMONY.contains(&text) {
                token.kind = TokenKind::UserDefined;
            }
        }
        // In these families a token that usually ends a generation does not.
        let find =
            |text: &str| (0u32..).zip(&self.tokens).find(|(_, token)| token.text == text).map(|(id, _)| id);
        let has =
            |texts: &[&str]| ends.iter().any(|&id| texts.contains(&self.tokens[id as usize].text.as_str()));
        let called = has(&["<|call|>", "<|calls|>"]);
        let end = find("<|end|>").filter(|_| called && has(&["<|return|>", "<|flush|>"]));
        let sentence = find("</s>").filter(|_| has(&["<|tool_response>", "<|plamo:eos|>"]));
        for (id, kind) in [(end, TokenKind::UserDefined), (sentence, TokenKind::Normal)] {
            if let Some(id) = id.filter(|id| ends.remove(id)) {
                self.tokens[id as usize].kind = kind;
            }
        }
        self.ends = ends;
        Ok(())
    }

    /// True for tokens that end a text or a turn.
    pub(crate) fn ends_generation(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.tokens.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Token> {
        self.tokens.get(id as usize)
    }

    pub(crate) fn tokens(&self) -> impl ExactSizeIterator<Item = &Token> {
        self.tokens.iter()
    }
}

impl TokenKind {
    pub(crate) fn from_id(id: i32) -> Self {
        match id {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Texts of tokens that end a turn or a text, and are control tokens, whatever the metadata says of them. Source:
/// llama.cpp's vocabulary.
const ENDS_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Texts of tokens within a turn, found like text.
const ROLES_OF_HARMONY: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// A kind of token that parts the pieces of a text with a hole; a control token too.
struct Part {
    /// What metadata call it.
    keys: &'static [&'static str],
    texts: &'static [&'static str],
    /// True where it ends a generation.
    ends: bool,
}

const FILL_IN_THE_MIDDLE: &[Part] = &[
    Part {
        keys: &["prefix", "fim_pre"],
        texts: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        ends: false,
    },
    Part {
        keys: &["suffix", "fim_suf"],
        texts: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        ends: false,
    },
    Part {
        keys: &["middle", "fim_mid"],
        texts: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        ends: false,
    },
    Part {
        keys: &["fim_pad"],
        texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends: true,
    },
    Part {
        keys: &["fim_rep"],
        texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        ends: true,
    },
    Part { keys: &["fim_sep"], texts: &["<|file_sep|>"], ends: true },
];

pub(crate) fn bad(key: &str, reason: String) -> TokenizerError {
    TokenizerError::Metadata { key: format!("tokenizer.ggml.{key}"), reason }
}
