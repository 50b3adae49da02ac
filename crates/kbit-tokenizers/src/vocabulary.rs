//! The tokens of a model: texts, scores and kinds, checked against each other.

use crate::TokenizerError;
use kbit_formats::gguf::{Array, Metadata, Value};

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
}

/// All tokens; the index is the id.
#[derive(Clone, Debug)]
pub(crate) struct Vocabulary {
    tokens: Vec<Token>,
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
        let token = |(id, text): (usize, &String)| Token {
            text: if text.is_empty() { format!("[EMPTY_{id}]") } else { text.clone() },
            score: scores.as_ref().map_or(0.0, |scores| scores[id]),
            kind: kinds.map_or(TokenKind::Normal, |kinds| TokenKind::from_id(kinds[id])),
        };
        let mut tokens: Vec<Token> = texts.iter().enumerate().map(token).collect();
        for token in &mut tokens {
            let text = token.text.as_str();
            if ENDS_OF_GENERATION.contains(&text) || FILL_IN_THE_MIDDLE.contains(&text) {
                token.kind = TokenKind::Control;
            }
        }
        Ok(Self { tokens })
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
pub(crate) const ENDS_OF_GENERATION: &[&str] = &[
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
    "<｜end▁of▁sentence｜>",
];

/// Texts of tokens that part the pieces of a text with a hole, and are control tokens too.
const FILL_IN_THE_MIDDLE: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

pub(crate) fn bad(key: &str, reason: String) -> TokenizerError {
    TokenizerError::Metadata { key: format!("tokenizer.ggml.{key}"), reason }
}
