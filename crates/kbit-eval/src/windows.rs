//! Which tokens of a text are scored, and what comes before them.

use crate::EvalError;
use kbit_tokenizers::Tokenizer;
use std::ops::Range;

/// How a text is cut into windows: llama.cpp's default.
///
/// A window is `context` tokens; windows do not overlap and a rest at the end is left out. The tokens after the first
/// half are scored: `context - context / 2 - 1` of them in each window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window; at least [`Windows::LEAST_CONTEXT`].
    pub context: usize,
    /// Windows to use, from the start of the text; `None` for all.
    pub chunks: Option<usize>,
    /// What replaces the first token of each window, for models that want a beginning-of-text token.
    pub bos: Option<u32>,
}

impl Windows {
    /// The shortest window with something to score.
    pub const LEAST_CONTEXT: usize = 3;

    /// How many windows a text of `tokens` tokens has.
    ///
    /// # Errors
    /// When it has none, or the windows are too short to score anything.
    pub fn count(&self, tokens: usize) -> Result<usize, EvalError> {
        if self.context < Self::LEAST_CONTEXT {
            return Err(EvalError::Context { context: self.context });
        }
        if self.chunks == Some(0) {
            return Err(EvalError::NoChunks);
        }
        match tokens / self.context {
            0 => Err(EvalError::TooShort { had: tokens, needed: self.context }),
            all => Ok(self.chunks.map_or(all, |chunks| chunks.min(all))),
        }
    }

    /// Tokens scored in each window.
    #[must_use]
    pub fn scored(&self) -> usize {
        self.context - self.first() - 1
    }

    /// UTF-8 bytes of all scored tokens: what bits per byte are counted over.
    ///
    /// # Errors
    /// As [`Windows::count`].
    pub fn scored_bytes(&self, tokenizer: &Tokenizer, tokens: &[u32]) -> Result<u64, EvalError> {
        Ok((0..self.count(tokens.len())?)
            .map(|window| tokenizer.decode_bytes(self.targets(tokens, window)).len() as u64)
            .sum())
    }

    /// The first token whose prediction is scored: the logits there predict the next one.
    pub(crate) fn first(&self) -> usize {
        self.context / 2
    }

    /// Tokens of a window.
    pub(crate) fn range(&self, window: usize) -> Range<usize> {
        window * self.context..(window + 1) * self.context
    }

    /// What the model reads of a window: all but the last token, whose logits predict nothing that is scored.
    pub(crate) fn input(&self, tokens: &[u32], window: usize) -> Vec<u32> {
        let range = self.range(window);
        let mut input = tokens[range.start..range.end - 1].to_vec();
        if let Some(bos) = self.bos {
            input[0] = bos;
        }
        input
    }

    /// The tokens that are scored in a window.
    pub(crate) fn targets<'t>(&self, tokens: &'t [u32], window: usize) -> &'t [u32] {
        let range = self.range(window);
        &tokens[range.start + self.first() + 1..range.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_half_is_scored_with_the_first_token_replaced() {
        let windows = Windows { context: 8, chunks: None, bos: Some(99) };
        let tokens: Vec<u32> = (0..30).collect();
        assert_eq!((windows.count(30).unwrap(), windows.scored()), (3, 3));
        assert_eq!(windows.input(&tokens, 1), [99, 9, 10, 11, 12, 13, 14]);
        assert_eq!(windows.targets(&tokens, 1), [13, 14, 15]);
        let odd = Windows { context: 5, chunks: Some(2), bos: None };
        assert_eq!((odd.count(30).unwrap(), odd.scored()), (2, 2));
        assert_eq!((odd.input(&tokens, 0), odd.targets(&tokens, 0)), (vec![0, 1, 2, 3], &[3, 4][..]));
    }

    #[test]
    fn a_short_text_is_refused_with_both_numbers() {
        let windows = Windows { context: 512, chunks: None, bos: None };
        let message = windows.count(511).unwrap_err().to_string();
        assert!(message.starts_with("the text has 511 tokens, but one window needs 512"), "{message}");
        assert!(matches!(
            Windows { context: 2, ..windows }.count(511),
            Err(EvalError::Context { context: 2 })
        ));
        assert!(matches!(Windows { chunks: Some(0), ..windows }.count(600), Err(EvalError::NoChunks)));
    }
}
