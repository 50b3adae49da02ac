//! Why a model could not be measured.

use kbit_engine::EngineError;

/// Why a model could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The text has not even one window.
    #[error(
        "the text has {had} tokens, but one window needs {needed}: use a longer text, or a shorter context"
    )]
    TooShort {
        /// Tokens of the text.
        had: usize,
        /// Tokens of a window.
        needed: usize,
    },
    /// A window of that size has nothing to score.
    #[error("a context of {context} tokens leaves nothing to score: use at least {least}", least = crate::Windows::LEAST_CONTEXT)]
    Context {
        /// Tokens of a window.
        context: usize,
    },
    /// A stride that leaves gaps between windows, or nothing before what is scored.
    #[error("a stride of {stride} tokens does not fit a context of {context}: use one from 1 to {most}", most = context.saturating_sub(1))]
    Stride {
        /// Tokens between windows.
        stride: usize,
        /// Tokens of a window.
        context: usize,
    },
    /// No windows were asked for.
    #[error("0 windows were asked for: use at least 1 chunk, or leave the number out for all")]
    NoChunks,
    /// The models have different vocabularies.
    #[error(
        "candidate {candidate} has {found} tokens in its vocabulary and the reference {wanted}: compare models that share a tokenizer"
    )]
    Vocabulary {
        /// Which candidate, from 0.
        candidate: usize,
        /// Tokens in its vocabulary.
        found: usize,
        /// Tokens in the reference's.
        wanted: usize,
    },
    /// A baseline text without two different tokens.
    #[error(
        "nothing can be learned from the baseline text, which has {}: give a longer text, as like the measured one as can be",
        if *tokens == 0 { "no token".to_owned() } else { format!("one token only, {tokens} times") }
    )]
    EmptyBaseline {
        /// Tokens of the text.
        tokens: usize,
    },
    /// A baseline text without any of the scored tokens.
    #[error(
        "nothing can be learned from the baseline text, which has none of the tokens that are scored: give a text in the same language"
    )]
    BaselineForeign,
    /// Windows that overlap cannot be continued.
    #[error("a text can be continued only where windows do not overlap: leave the stride out")]
    ContinuedStride,
    /// A token of the baseline text that the vocabulary has not.
    #[error(
        "token {token} of the baseline text is not below the vocabulary's {vocabulary}: tokenize it with the model's own tokenizer"
    )]
    BaselineToken {
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },
    /// Baselines of another vocabulary than the model's.
    #[error(
        "the baselines were counted over a vocabulary of {found} tokens and the model has {wanted}: count them with the model's tokenizer"
    )]
    BaselineVocabulary {
        /// Tokens in the vocabulary of the baselines.
        found: usize,
        /// Tokens in the model's.
        wanted: usize,
    },
    /// A probability that is not a number.
    #[error(
        "{model}: the logits at token {token} of the text are not finite; the weights are damaged, or too coarse for this model: `kbit verify` names the tensors that are, convert the source again"
    )]
    NotFinite {
        /// Which of the models.
        model: String,
        /// Place in the text.
        token: usize,
    },
    /// The model could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
