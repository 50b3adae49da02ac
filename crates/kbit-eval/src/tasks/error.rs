//! Why a task could not be measured.

use kbit_engine::EngineError;
use kbit_yaml::DocumentError;
use std::path::PathBuf;

/// Why a task could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The task file has mistakes.
    #[error(transparent)]
    Definition(#[from] DocumentError),
    /// Neither the task nor whoever runs it names data.
    #[error("the task `{task}` names no data: give a JSONL file with --data, or `data:` in the task")]
    NoData {
        /// Name of the task.
        task: String,
    },
    /// The system refused.
    #[error("{}: {error}; give a JSONL file: one document a line", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// There are no documents.
    #[error("{}: the file has no documents; give a JSONL file: one JSON object a line", path.display())]
    Empty {
        /// File.
        path: PathBuf,
    },
    /// A line is not a document.
    #[error("{}:{line}: {message}; {help}", path.display())]
    Line {
        /// File.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
        /// What to do.
        help: String,
    },
    /// A template cannot be made of a document.
    #[error("{}:{line}: `{key}` of the task `{task}` fails on this document: {message}", path.display())]
    Template {
        /// Data.
        path: PathBuf,
        /// Line of the document.
        line: usize,
        /// Name of the task.
        task: String,
        /// Which template.
        key: String,
        /// Why, and what to do.
        message: String,
    },
    /// The right answer is none of the choices.
    #[error(
        "{}:{line}: `doc_to_target` of the task `{task}` gives {found}, but the document has {choices} choices: \
         give the place of a choice, from 0 to {last}, or its text",
        path.display(), last = choices.saturating_sub(1)
    )]
    Gold {
        /// Data.
        path: PathBuf,
        /// Line of the document.
        line: usize,
        /// Name of the task.
        task: String,
        /// What it gave.
        found: String,
        /// Number of choices.
        choices: usize,
    },
    /// A document gives too few choices to choose among.
    #[error(
        "{}:{line}: `doc_to_choice` of the task `{task}` gives {choices} choices, where two or more are needed: mend the document, \
         or the template",
        path.display()
    )]
    Choices {
        /// Data.
        path: PathBuf,
        /// Line of the document.
        line: usize,
        /// Name of the task.
        task: String,
        /// Number of choices.
        choices: usize,
    },
    /// Too few documents for the examples.
    #[error(
        "{count} few-shot examples were asked for, but {} has only {had} documents to take them from: ask for fewer",
        path.display()
    )]
    Examples {
        /// File of the examples.
        path: PathBuf,
        /// Examples asked for.
        count: usize,
        /// Documents that may be examples.
        had: usize,
    },
    /// A text to score has no tokens of its own.
    #[error(
        "{}:{line}: the text `{text}` has no tokens of its own after its question: mend the document, or the task's delimiter",
        path.display()
    )]
    NoTokens {
        /// Data.
        path: PathBuf,
        /// Line of the document.
        line: usize,
        /// The text.
        text: String,
    },
    /// A text to score is longer than what the model can read.
    #[error(
        "{}:{line}: a text to score has {tokens} tokens, but the model reads only {context}: leave the document out, or use a model \
         with a longer context",
        path.display()
    )]
    TooLong {
        /// Data.
        path: PathBuf,
        /// Line of the document.
        line: usize,
        /// Tokens of the text.
        tokens: usize,
        /// Tokens that the model reads.
        context: usize,
    },
    /// A generation that leaves no room for its prompt.
    #[error(
        "{max_tokens} tokens are to be generated, but the model holds only {context} with the prompt: \
         set `max_tokens` of `generation` to less"
    )]
    NoRoom {
        /// Tokens to generate.
        max_tokens: usize,
        /// Tokens that the model holds.
        context: usize,
    },
    /// The tokenizer has no token that a text could begin with.
    #[error(
        "the model has neither a beginning-of-text nor an end-of-text token, which a text without a question is scored after"
    )]
    NoPrefix,
    /// A probability that is not a number.
    #[error(
        "{}:{line}: the logits are not finite; the weights are damaged, or too coarse for this model: `kbit verify` names the \
         tensors that are, convert the source again",
        path.display()
    )]
    NotFinite {
        /// Data.
        path: PathBuf,
        /// Line of the document.
        line: usize,
    },
    /// The answers could not be scored.
    #[error(transparent)]
    Score(#[from] crate::scores::ScoreError),
    /// The model could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
