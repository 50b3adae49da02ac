//! Questions and answers as tokens, as lm-evaluation-harness's Hugging Face models encode them (`TemplateLM._encode_pair`,
//! `HFLM._loglikelihood_tokens`).

use super::template::is_space;
use kbit_tokenizers::Tokenizer;

/// A text to score after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What the model reads: context and continuation without its last token, cut from the left.
    pub(crate) input: Vec<u32>,
    /// Tokens that are scored: the last `continuation.len()` places of `input` predict them.
    pub(crate) continuation: Vec<u32>,
}

impl Request {
    /// Place in the input that predicts the first scored token.
    pub(crate) fn first(&self) -> usize {
        self.input.len() - self.continuation.len()
    }
}

/// Why a pair cannot be scored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unscorable {
    NoPrefix,
    NoTokens,
    TooLong { tokens: usize },
}

/// The token that texts without a context are scored after: BOS, or EOS where there is none.
pub(crate) fn prefix_token(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.bos().or_else(|| tokenizer.eos())
}

/// Tokens of a text, special tokens in it included; with those around it that the model wants, unless it begins with the
/// prefix token's text.
pub(crate) fn encode_text(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let begins = prefix_token(tokenizer)
        .and_then(|token| tokenizer.token_text(token))
        .is_some_and(|prefix| !prefix.is_empty() && text.starts_with(prefix));
    tokenizer.encode(text, !begins, true)
}

/// The request of scoring `continuation` after `context`, for a model that reads `longest` tokens.
pub(crate) fn encode_pair(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    longest: usize,
) -> Result<Request, Unscorable> {
    let (mut before, scored) = if context.is_empty() {
        let prefix = prefix_token(tokenizer).ok_or(Unscorable::NoPrefix)?;
        let mut tokens = tokenizer.encode(continuation, false, true);
        if tokens.first() == Some(&prefix) {
            tokens.remove(0);
        }
        (vec![prefix], tokens)
    } else {
        // White space at the end of the context belongs to the continuation's first token.
        let context_end = context.trim_end_matches(is_space).len();
        let mut whole = encode_text(tokenizer, &format!("{context}{continuation}"));
        let before = encode_text(tokenizer, &context[..context_end]);
        let scored = whole.split_off(before.len().min(whole.len()));
        (before, scored)
    };
    if scored.is_empty() {
        return Err(Unscorable::NoTokens);
    }
    if before.is_empty() {
        before.push(prefix_token(tokenizer).ok_or(Unscorable::NoPrefix)?);
    }
    if scored.len() > longest {
        return Err(Unscorable::TooLong { tokens: scored.len() });
    }
    let mut input = before;
    input.extend_from_slice(&scored[..scored.len() - 1]);
    let excess = input.len().saturating_sub(longest);
    input.drain(..excess);
    Ok(Request { input, continuation: scored })
}
