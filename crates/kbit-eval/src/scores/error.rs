//! Why texts could not be scored.

/// Why texts or labels could not be scored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScoreError {
    /// Nothing to score.
    #[error("there is nothing to score: give at least one document")]
    Empty,
    /// Two lists that belong together have different lengths.
    #[error(
        "{left} predictions, but references for {right}: give one entry of references for each prediction"
    )]
    Lengths {
        /// Predictions.
        left: usize,
        /// References.
        right: usize,
    },
    /// A document without reference.
    #[error(
        "document {document} (from 0) has no reference: give at least one, an empty text if nothing is right"
    )]
    NoReference {
        /// Which document, from 0.
        document: usize,
    },
    /// A name that is none.
    #[error("there is no {what} `{name}`: use one of {known}")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// The name given.
        name: String,
        /// Valid names.
        known: &'static str,
    },
    /// An option out of its bounds.
    #[error("{option} cannot be {value}: use {valid}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// The value given.
        value: String,
        /// Values that can be.
        valid: &'static str,
    },
    /// A broken regular expression.
    #[error(
        "`{pattern}` is no regular expression of Rust's crate regex: {message}; look-around and back-references are not known"
    )]
    Pattern {
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// A label that is not one of the labels.
    #[error("label {label} of item {item} is not below the number of labels, {labels}: number labels from 0")]
    Label {
        /// Which item, from 0.
        item: usize,
        /// Its label.
        label: usize,
        /// Number of labels.
        labels: usize,
    },
}
