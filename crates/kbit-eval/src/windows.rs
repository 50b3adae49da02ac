//! Which tokens of a text are scored, and what comes before them.

use crate::EvalError;
use kbit_tokenizers::Tokenizer;
use std::ops::Range;

/// How a text is cut into windows of `context` tokens; a rest at the end is left out.
///
/// Without a stride, windows do not overlap, and the tokens after the first half of each are scored, `context - context / 2 - 1`
/// of them: llama.cpp's default.
///
/// With a stride, windows begin `stride` tokens apart, and the last `stride` tokens of each are scored: every token from the
/// `context - stride`th on is scored once, with at least `context - stride` tokens before it. These are the windows of
/// llama-perplexity's `--ppl-stride`, whose windows are half a stride longer than its `--ctx-size` says, and those of the sliding
/// window in Hugging Face's guide to perplexity, which scores the beginning of the first window too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window; at least [`Windows::LEAST_CONTEXT`].
    pub context: usize,
    /// Tokens from the beginning of one window to that of the next, below `context`; `None` for windows that do not overlap.
    pub stride: Option<usize>,
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
        if let Some(stride) = self.stride
            && !(1..self.context).contains(&stride)
        {
            return Err(EvalError::Stride { stride, context: self.context });
        }
        if self.chunks == Some(0) {
            return Err(EvalError::NoChunks);
        }
        let Some(behind) = tokens.checked_sub(self.context) else {
            return Err(EvalError::TooShort { had: tokens, needed: self.context });
        };
        let all = behind / self.step() + 1;
        Ok(self.chunks.map_or(all, |chunks| chunks.min(all)))
    }

    /// Tokens from the beginning of one window to that of the next.
    fn step(&self) -> usize {
        self.stride.unwrap_or(self.context)
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
        self.stride.map_or(self.context / 2, |stride| self.context - stride - 1)
    }

    /// Tokens of a window.
    pub(crate) fn range(&self, window: usize) -> Range<usize> {
        let start = window * self.step();
        start..start + self.context
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
        &tokens[self.target_places(window)]
    }

    /// Where the tokens that are scored in a window stand in the text.
    pub(crate) fn target_places(&self, window: usize) -> Range<usize> {
        let range = self.range(window);
        range.start + self.first() + 1..range.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_half_is_scored_with_the_first_token_replaced() {
        let windows = Windows { context: 8, stride: None, chunks: None, bos: Some(99) };
        let tokens: Vec<u32> = (0..30).collect();
        assert_eq!((windows.count(30).unwrap(), windows.scored()), (3, 3));
        assert_eq!(windows.input(&tokens, 1), [99, 9, 10, 11, 12, 13, 14]);
        assert_eq!(windows.targets(&tokens, 1), [13, 14, 15]);
        let odd = Windows { context: 5, stride: None, chunks: Some(2), bos: None };
        assert_eq!((odd.count(30).unwrap(), odd.scored()), (2, 2));
        assert_eq!((odd.input(&tokens, 0), odd.targets(&tokens, 0)), (vec![0, 1, 2, 3], &[3, 4][..]));
    }

    #[test]
    fn with_a_stride_every_token_behind_the_first_context_is_scored_once() {
        let tokens: Vec<u32> = (0..30).collect();
        for (context, stride) in [(8, 3), (8, 7), (8, 1), (3, 2)] {
            let windows = Windows { context, stride: Some(stride), chunks: None, bos: Some(99) };
            let count = windows.count(30).unwrap();
            let scored: Vec<u32> =
                (0..count).flat_map(|window| windows.targets(&tokens, window)).copied().collect();
            let from = u32::try_from(context - stride).unwrap();
            assert_eq!(scored, (from..).take(count * stride).collect::<Vec<_>>(), "{context} {stride}");
            assert!(30 - scored.last().unwrap() <= u32::try_from(stride).unwrap());
            assert_eq!(windows.scored(), stride);
            assert_eq!(windows.input(&tokens, 1).len(), context - 1);
            assert_eq!(windows.input(&tokens, 1)[..2], [99, u32::try_from(stride + 1).unwrap()]);
        }
    }

    #[test]
    fn a_stride_that_leaves_gaps_or_no_context_is_refused() {
        for stride in [0, 8, 9] {
            let windows = Windows { context: 8, stride: Some(stride), chunks: None, bos: None };
            let message = windows.count(30).unwrap_err().to_string();
            assert!(message.contains("from 1 to 7"), "{message}");
        }
    }

    #[test]
    fn a_short_text_is_refused_with_both_numbers() {
        let windows = Windows { context: 512, stride: None, chunks: None, bos: None };
        let message = windows.count(511).unwrap_err().to_string();
        assert!(message.starts_with("the text has 511 tokens, but one window needs 512"), "{message}");
        assert!(matches!(
            Windows { context: 2, ..windows }.count(511),
            Err(EvalError::Context { context: 2 })
        ));
        assert!(matches!(Windows { chunks: Some(0), ..windows }.count(600), Err(EvalError::NoChunks)));
    }
}
