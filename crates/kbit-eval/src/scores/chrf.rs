//! chrF (Popović, 2015) and chrF++ (Popović, 2017), as sacreBLEU defines them.

use super::text::{counts, float, is_space, matches, runs, words};
use super::{ScoreError, documents, references_word, total};
use std::hash::Hash;
use std::ops::AddAssign;

/// chrF with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Chrf {
    /// Longest run of characters.
    pub char_order: usize,
    /// Longest run of words: 0 for chrF, 2 for chrF++.
    pub word_order: usize,
    /// How many times more recall counts than precision.
    pub beta: u32,
    /// Compares texts in lower case.
    pub lowercase: bool,
    /// Counts white space among the characters.
    pub whitespace: bool,
    /// Averages scores of all orders with a tiny number for those without n-grams, as Moses and NLTK do, instead of averaging
    /// precisions and recalls of the orders that both texts have.
    pub eps_smoothing: bool,
}

impl Default for Chrf {
    fn default() -> Self {
        Self {
            char_order: 6,
            word_order: 0,
            beta: 2,
            lowercase: false,
            whitespace: false,
            eps_smoothing: false,
        }
    }
}

/// Counts of one order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct OrderCounts {
    /// n-grams of the hypothesis; 0 where the reference has none of this order.
    pub hypothesis: u64,
    /// n-grams of the reference.
    pub reference: u64,
    /// n-grams of both.
    pub matches: u64,
}

/// What documents contribute to chrF: counts of each order, characters first.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ChrfStatistics(pub Vec<OrderCounts>);

impl AddAssign<&Self> for ChrfStatistics {
    fn add_assign(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), OrderCounts::default());
        for (sum, counts) in self.0.iter_mut().zip(&other.0) {
            sum.hypothesis += counts.hypothesis;
            sum.reference += counts.reference;
            sum.matches += counts.matches;
        }
    }
}

/// A text as chrF sees it.
struct Parts {
    characters: Vec<char>,
    words: Vec<String>,
}

/// Words with one mark of ASCII punctuation cut off their end, else off their beginning.
fn words_and_marks(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for word in words(text) {
        let mark = |c: &char| c.is_ascii_punctuation();
        let (first, last) = (word.chars().next(), word.chars().next_back());
        match (first.filter(mark), last.filter(mark)) {
            _ if word.chars().nth(1).is_none() => parts.push(word.to_owned()),
            (_, Some(mark)) => {
                parts.push(word[..word.len() - mark.len_utf8()].to_owned());
                parts.push(mark.to_string());
            }
            (Some(mark), None) => {
                parts.push(mark.to_string());
                parts.push(word[mark.len_utf8()..].to_owned());
            }
            (None, None) => parts.push(word.to_owned()),
        }
    }
    parts
}

fn order_counts<T: Eq + Hash>(hypothesis: &[T], reference: &[T], n: usize) -> OrderCounts {
    let in_reference = runs(reference.len(), n);
    OrderCounts {
        hypothesis: if in_reference > 0 { runs(hypothesis.len(), n) } else { 0 },
        reference: in_reference,
        matches: matches(&counts(hypothesis, n), &counts(reference, n)),
    }
}

impl Chrf {
    /// chrF++: runs of one and two words beside those of characters.
    #[must_use]
    pub fn plus_plus() -> Self {
        Self { word_order: 2, ..Self::default() }
    }

    /// Its name in tables: `chrF2`, `chrF2++`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("chrF{}{}", self.beta, "+".repeat(self.word_order))
    }

    fn parts(&self, text: &str) -> Parts {
        let lower = self.lowercase.then(|| text.to_lowercase());
        let text = lower.as_deref().unwrap_or(text);
        Parts {
            characters: text.chars().filter(|&c| self.whitespace || !is_space(c)).collect(),
            words: if self.word_order > 0 { words_and_marks(text) } else { Vec::new() },
        }
    }

    /// What one document contributes: the counts against the reference that gives the best score.
    ///
    /// # Errors
    /// When there is no reference, or no order to count.
    pub fn statistics<R: AsRef<str>>(
        &self,
        hypothesis: &str,
        references: &[R],
    ) -> Result<ChrfStatistics, ScoreError> {
        if self.char_order + self.word_order == 0 {
            let valid = "6 of characters; 2 of words for chrF++";
            return Err(ScoreError::Option { option: "the longest n-gram", value: "0".to_owned(), valid });
        }
        let hypothesis = self.parts(hypothesis);
        let mut best: Option<(f64, ChrfStatistics)> = None;
        for reference in references {
            let reference = self.parts(reference.as_ref());
            let characters =
                (1..=self.char_order).map(|n| order_counts(&hypothesis.characters, &reference.characters, n));
            let words = (1..=self.word_order).map(|n| order_counts(&hypothesis.words, &reference.words, n));
            let found = ChrfStatistics(characters.chain(words).collect());
            let score = self.score(&found);
            if best.as_ref().is_none_or(|(highest, _)| score > *highest) {
                best = Some((score, found));
            }
        }
        best.map(|(_, statistics)| statistics).ok_or(ScoreError::NoReference { document: 0 })
    }

    /// The score of summed contributions, from 0 to 100.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "orders are few")]
    pub fn score(&self, statistics: &ChrfStatistics) -> f64 {
        const TINY: f64 = 1e-16;
        let factor = f64::from(self.beta).powi(2);
        let (mut precisions, mut recalls, mut scores, mut orders) = (0.0, 0.0, 0.0, 0.0);
        for counts in &statistics.0 {
            let share = |of: u64| if of > 0 { float(counts.matches) / float(of) } else { TINY };
            let (precision, recall) = (share(counts.hypothesis), share(counts.reference));
            let weighted = factor * precision + recall;
            scores += if weighted > 0.0 { (1.0 + factor) * precision * recall / weighted } else { TINY };
            if counts.hypothesis > 0 && counts.reference > 0 {
                precisions += precision;
                recalls += recall;
                orders += 1.0;
            }
        }
        if self.eps_smoothing {
            return 100.0 * scores / (self.char_order + self.word_order) as f64;
        }
        if orders == 0.0 || precisions + recalls == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precisions / orders, recalls / orders);
        100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
    }

    /// The score of one sentence.
    ///
    /// # Errors
    /// As [`Chrf::statistics`].
    pub fn sentence<R: AsRef<str>>(&self, hypothesis: &str, references: &[R]) -> Result<f64, ScoreError> {
        Ok(self.score(&self.statistics(hypothesis, references)?))
    }

    /// What each document contributes.
    ///
    /// # Errors
    /// When there is no document, or one without reference.
    pub fn documents<H: AsRef<str>, R: AsRef<str>>(
        &self,
        hypotheses: &[H],
        references: &[Vec<R>],
    ) -> Result<Vec<ChrfStatistics>, ScoreError> {
        documents(hypotheses, references, |hypothesis, references| self.statistics(hypothesis, references))
    }

    /// The score of all documents together.
    ///
    /// # Errors
    /// As [`Chrf::documents`].
    pub fn corpus<H: AsRef<str>, R: AsRef<str>>(
        &self,
        hypotheses: &[H],
        references: &[Vec<R>],
    ) -> Result<f64, ScoreError> {
        Ok(self.score(&total(&self.documents(hypotheses, references)?)))
    }

    /// How the score was computed, in sacreBLEU's form: `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:kbit-0.1.0`.
    #[must_use]
    pub fn signature<R>(&self, references: &[Vec<R>]) -> String {
        let yes = |is: bool| if is { "yes" } else { "no" };
        format!(
            "nrefs:{}|case:{}|eff:{}|nc:{}|nw:{}|space:{}|version:kbit-{}",
            references_word(references),
            if self.lowercase { "lc" } else { "mixed" },
            yes(!self.eps_smoothing),
            self.char_order,
            self.word_order,
            yes(self.whitespace),
            env!("CARGO_PKG_VERSION")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mark_is_cut_off_a_word() {
        assert_eq!(
            words_and_marks("(see \"this\"), a. .. -"),
            ["(", "see", "\"this\")", ",", "a", ".", ".", ".", "-"]
        );
    }

    #[test]
    fn names_and_signatures_are_those_of_sacrebleu() {
        assert_eq!((Chrf::default().name(), Chrf::plus_plus().name()), ("chrF2".into(), "chrF2++".into()));
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            Chrf::plus_plus().signature(&[vec!["a", "b"]]),
            format!("nrefs:2|case:mixed|eff:yes|nc:6|nw:2|space:no|version:kbit-{version}")
        );
    }

    #[test]
    fn no_order_is_refused() {
        let none = Chrf { char_order: 0, ..Chrf::default() };
        assert!(none.sentence("a", &["a"]).unwrap_err().to_string().contains("6 of characters"));
        assert_eq!(Chrf::default().sentence::<&str>("a", &[]), Err(ScoreError::NoReference { document: 0 }));
    }
}
