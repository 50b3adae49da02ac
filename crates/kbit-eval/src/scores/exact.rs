//! Exact match, as lm-evaluation-harness defines it (`exact_match`, after Hugging Face's metric of that name).

use super::{ScoreError, check};
use regex::Regex;

/// Exact match with its options, applied in this order to prediction and reference.
#[derive(Clone, Debug, Default)]
pub struct ExactMatch {
    ignore: Vec<Regex>,
    /// Compares in lower case.
    pub ignore_case: bool,
    /// Drops ASCII punctuation.
    pub ignore_punctuation: bool,
    /// Drops the ASCII digits.
    pub ignore_numbers: bool,
}

impl ExactMatch {
    /// Drops what these regular expressions match, one after the other, before anything else. They are those of Rust's crate
    /// `regex`: Python's without look-around and back-references.
    ///
    /// # Errors
    /// The first expression that is none.
    pub fn ignoring<P: AsRef<str>>(mut self, patterns: &[P]) -> Result<Self, ScoreError> {
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let compiled = Regex::new(pattern).map_err(|error| {
                // The last line says what is wrong; those above draw it.
                let message = error.to_string();
                let message = message.lines().last().unwrap_or_default();
                ScoreError::Pattern {
                    pattern: pattern.to_owned(),
                    message: message.trim_start_matches("error: ").to_owned(),
                }
            })?;
            self.ignore.push(compiled);
        }
        Ok(self)
    }

    /// What of `text` is compared.
    #[must_use]
    pub fn normalize(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for pattern in &self.ignore {
            text = pattern.replace_all(&text, "").into_owned();
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        text.retain(|c| {
            !(self.ignore_punctuation && c.is_ascii_punctuation()
                || self.ignore_numbers && c.is_ascii_digit())
        });
        text
    }

    /// True where the prediction is one of the references.
    ///
    /// # Errors
    /// When there is no reference.
    pub fn matches<R: AsRef<str>>(&self, prediction: &str, references: &[R]) -> Result<bool, ScoreError> {
        if references.is_empty() {
            return Err(ScoreError::NoReference { document: 0 });
        }
        let prediction = self.normalize(prediction);
        Ok(references.iter().any(|reference| self.normalize(reference.as_ref()) == prediction))
    }

    /// 1 for each document that matches, 0 for each other; the score is their mean.
    ///
    /// # Errors
    /// When there is no document, or one without reference.
    pub fn documents<H: AsRef<str>, R: AsRef<str>>(
        &self,
        predictions: &[H],
        references: &[Vec<R>],
    ) -> Result<Vec<f64>, ScoreError> {
        check(predictions, references)?;
        let pairs = predictions.iter().zip(references);
        pairs
            .map(|(prediction, references)| {
                self.matches(prediction.as_ref(), references).map(|is| f64::from(u8::from(is)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_drop_what_they_name() {
        let strict = ExactMatch::default();
        assert!(strict.matches("Paris", &["Lyon", "Paris"]).unwrap());
        assert!(!strict.matches("paris!", &["Paris"]).unwrap());
        let lenient = ExactMatch { ignore_case: true, ignore_punctuation: true, ..strict.clone() };
        assert!(lenient.matches("paris!", &["Paris"]).unwrap());
        assert!(!lenient.matches("paris 1", &["Paris"]).unwrap());
        let numbers = ExactMatch { ignore_numbers: true, ..strict.clone() };
        assert!(numbers.matches("a1b", &["ab22"]).unwrap());
        let patterns = strict.ignoring(&[r"(?i)^the answer is ", r"\.$"]).unwrap();
        assert!(patterns.matches("The answer is 42.", &["42"]).unwrap());
    }

    #[test]
    fn a_broken_expression_is_named() {
        let message = ExactMatch::default().ignoring(&["(?=a)"]).unwrap_err().to_string();
        assert!(
            message.starts_with("`(?=a)` is no regular expression") && message.contains("look-around"),
            "{message}"
        );
    }
}
