//! What is wrong with a document, where, and what to do about it.

use crate::tree::Place;
use std::fmt;
use std::path::{Path, PathBuf};

/// A mistake in a document: where, what, and the cure.
#[derive(Clone, Debug, PartialEq)]
pub struct Mistake {
    /// Line and column.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Mistake {
    /// A mistake at `place`.
    #[must_use]
    pub fn new(place: Place, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { place, message: message.into(), help: help.into() }
    }
}

/// The candidate nearest to `name`, if one is near enough to be a slip of the hand.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`? known: a, b, c".
#[must_use]
pub fn suggestion(name: &str, candidates: &[&str]) -> String {
    let known = candidates.join(", ");
    match nearest(name, candidates.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? known: {known}"),
        None => format!("known: {known}"),
    }
}

/// A document that cannot be used: every mistake with its place.
#[derive(Debug)]
pub struct DocumentError {
    file: PathBuf,
    text: String,
    /// The mistakes, in the order of the file.
    pub mistakes: Vec<Mistake>,
}

impl DocumentError {
    /// The mistakes found in `file`, whose content is `text`.
    #[must_use]
    pub fn new(file: &Path, text: &str, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| (mistake.place.line, mistake.place.column));
        Self { file: file.to_owned(), text: text.to_owned(), mistakes }
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            let Place { line, column } = mistake.place;
            write!(f, "{}:{line}:{column}: {}", self.file.display(), mistake.message)?;
            let excerpt =
                usize::try_from(line).ok().and_then(|line| self.text.lines().nth(line.checked_sub(1)?));
            if let Some(excerpt) = excerpt {
                let indent = " ".repeat(usize::try_from(column).unwrap_or(1).saturating_sub(1).min(200));
                write!(f, "\n{line:>5} | {excerpt}\n      | {indent}^")?;
            }
            write!(f, "\n      = help: {}", mistake.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for DocumentError {}

/// Reads the YAML text `file`; `what` names it in messages, as "the configuration".
///
/// # Errors
/// A file that cannot be read, is larger than such a document may be, or is not UTF-8.
pub fn read_text(file: &Path, what: &str) -> Result<String, DocumentError> {
    const LIMIT: u64 = 4 << 20;
    let unreadable = |message: String, help: &str| {
        DocumentError::new(file, "", vec![Mistake::new(Place::default(), message, help)])
    };
    let size = std::fs::metadata(file).map_err(|error| {
        unreadable(format!("cannot read {what}: {error}"), "give the path of a YAML file")
    })?;
    if size.len() > LIMIT {
        return Err(unreadable(
            format!("the file has {} bytes, more than {what} may have ({LIMIT})", size.len()),
            "give a YAML file, not a model file",
        ));
    }
    std::fs::read_to_string(file)
        .map_err(|error| unreadable(format!("cannot read {what}: {error}"), "give a YAML file in UTF-8"))
}
