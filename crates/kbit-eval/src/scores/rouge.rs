//! ROUGE (Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"), as Google's `rouge-score` defines it.
//!
//! Words are runs of ASCII letters and digits of the text in lower case, as in the original; texts in other scripts have none.
//! ROUGE-Lsum takes the lines of a text for its sentences. Of several references, each figure takes the one with the best F1.
//! The score of many documents is the mean of theirs.

use super::porter::stem;
use super::text::{counts, float, matches, runs};
use super::{ScoreError, documents};
use std::collections::{BTreeSet, HashMap};

/// ROUGE with its option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rouge {
    /// Compares the stems of words of four letters and more ([`stem`]).
    pub stemming: bool,
}

/// How much two texts have in common, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Overlap {
    /// Share of the hypothesis that the reference has.
    pub precision: f64,
    /// Share of the reference that the hypothesis has.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
}

impl Overlap {
    fn new(common: u64, hypothesis: u64, reference: u64) -> Self {
        let precision = float(common) / float(hypothesis.max(1));
        let recall = float(common) / float(reference.max(1));
        let sum = precision + recall;
        Self { precision, recall, f1: if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 } }
    }
}

/// All figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct RougeScores {
    /// Words.
    pub rouge_1: Overlap,
    /// Pairs of words.
    pub rouge_2: Overlap,
    /// Longest common subsequence of the whole texts.
    pub rouge_l: Overlap,
    /// Longest common subsequences of each line of the reference with those of the hypothesis, united.
    pub rouge_lsum: Overlap,
}

impl RougeScores {
    /// The figures with their names.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, Overlap); 4] {
        [
            ("rouge1", self.rouge_1),
            ("rouge2", self.rouge_2),
            ("rougeL", self.rouge_l),
            ("rougeLsum", self.rouge_lsum),
        ]
    }

    fn each(mut self, other: &Self, merge: impl Fn(Overlap, Overlap) -> Overlap) -> Self {
        self.rouge_1 = merge(self.rouge_1, other.rouge_1);
        self.rouge_2 = merge(self.rouge_2, other.rouge_2);
        self.rouge_l = merge(self.rouge_l, other.rouge_l);
        self.rouge_lsum = merge(self.rouge_lsum, other.rouge_lsum);
        self
    }
}

impl Rouge {
    /// The words of `text`.
    #[must_use]
    pub fn words(&self, text: &str) -> Vec<String> {
        let text = text.to_lowercase();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.map(|word| if self.stemming && word.len() > 3 { stem(word) } else { word.to_owned() }).collect()
    }

    /// The words of each line that is not empty.
    fn sentences(&self, text: &str) -> Vec<Vec<String>> {
        text.split('\n').filter(|line| !line.is_empty()).map(|line| self.words(line)).collect()
    }

    /// Figures of one document.
    ///
    /// # Errors
    /// When there is no reference.
    pub fn score<R: AsRef<str>>(
        &self,
        hypothesis: &str,
        references: &[R],
    ) -> Result<RougeScores, ScoreError> {
        let words = self.words(hypothesis);
        let sentences = self.sentences(hypothesis);
        let best = |a: Overlap, b: Overlap| if b.f1 > a.f1 { b } else { a };
        references
            .iter()
            .map(|reference| {
                let reference = reference.as_ref();
                let reference_words = self.words(reference);
                RougeScores {
                    rouge_1: of_runs(&words, &reference_words, 1),
                    rouge_2: of_runs(&words, &reference_words, 2),
                    rouge_l: of_subsequence(&words, &reference_words),
                    rouge_lsum: of_sentences(&sentences, &self.sentences(reference)),
                }
            })
            .reduce(|found, other| found.each(&other, best))
            .ok_or(ScoreError::NoReference { document: 0 })
    }

    /// Figures of each document.
    ///
    /// # Errors
    /// When there is no document, or one without reference.
    pub fn documents<H: AsRef<str>, R: AsRef<str>>(
        &self,
        hypotheses: &[H],
        references: &[Vec<R>],
    ) -> Result<Vec<RougeScores>, ScoreError> {
        documents(hypotheses, references, |hypothesis, references| self.score(hypothesis, references))
    }

    /// Means over all documents.
    ///
    /// # Errors
    /// As [`Rouge::documents`].
    pub fn corpus<H: AsRef<str>, R: AsRef<str>>(
        &self,
        hypotheses: &[H],
        references: &[Vec<R>],
    ) -> Result<RougeScores, ScoreError> {
        let documents = self.documents(hypotheses, references)?;
        let share = 1.0 / float(documents.len() as u64);
        let add = |a: Overlap, b: Overlap| Overlap {
            precision: a.precision + b.precision * share,
            recall: a.recall + b.recall * share,
            f1: a.f1 + b.f1 * share,
        };
        Ok(documents.iter().fold(RougeScores::default(), |sum, document| sum.each(document, add)))
    }
}

fn of_runs(hypothesis: &[String], reference: &[String], n: usize) -> Overlap {
    let common = matches(&counts(reference, n), &counts(hypothesis, n));
    Overlap::new(common, runs(hypothesis.len(), n), runs(reference.len(), n))
}

/// `table[i][j]`: length of the longest common subsequence of the first `i` of `reference` and the first `j` of `hypothesis`.
fn table(reference: &[String], hypothesis: &[String]) -> Vec<Vec<u32>> {
    let mut table = vec![vec![0; hypothesis.len() + 1]; reference.len() + 1];
    for (i, r) in reference.iter().enumerate() {
        for (j, h) in hypothesis.iter().enumerate() {
            table[i + 1][j + 1] = if r == h { table[i][j] + 1 } else { table[i][j + 1].max(table[i + 1][j]) };
        }
    }
    table
}

fn of_subsequence(hypothesis: &[String], reference: &[String]) -> Overlap {
    // Two rows of the table are enough for the length.
    let mut above = vec![0u64; hypothesis.len() + 1];
    let mut row = above.clone();
    for r in reference {
        for (j, h) in hypothesis.iter().enumerate() {
            row[j + 1] = if r == h { above[j] + 1 } else { above[j + 1].max(row[j]) };
        }
        std::mem::swap(&mut row, &mut above);
    }
    Overlap::new(above[hypothesis.len()], hypothesis.len() as u64, reference.len() as u64)
}

/// Places in `reference` of one longest common subsequence.
fn common_places(reference: &[String], hypothesis: &[String]) -> Vec<usize> {
    let table = table(reference, hypothesis);
    let (mut i, mut j) = (reference.len(), hypothesis.len());
    let mut places = Vec::new();
    while i > 0 && j > 0 {
        if reference[i - 1] == hypothesis[j - 1] {
            places.push(i - 1);
            i -= 1;
            j -= 1;
        } else if table[i][j - 1] > table[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    places
}

fn of_sentences(hypothesis: &[Vec<String>], reference: &[Vec<String>]) -> Overlap {
    let length = |sentences: &[Vec<String>]| sentences.iter().map(|words| words.len() as u64).sum::<u64>();
    let mut left: HashMap<&str, u64> = HashMap::new();
    for word in hypothesis.iter().flatten() {
        *left.entry(word).or_insert(0) += 1;
    }
    let mut common = 0;
    for words in reference {
        let places: BTreeSet<usize> =
            hypothesis.iter().flat_map(|other| common_places(words, other)).collect();
        for place in places {
            // A word counts as often as the hypothesis has it; a place of the reference is met once.
            if let Some(count) = left.get_mut(words[place].as_str()).filter(|count| **count > 0) {
                *count -= 1;
                common += 1;
            }
        }
    }
    Overlap::new(common, length(hypothesis), length(reference))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_ascii_letters_and_digits() {
        let rouge = Rouge::default();
        assert_eq!(
            rouge.words("Don't—stop: naïve 3.14 \u{212a}elvin"),
            ["don", "t", "stop", "na", "ve", "3", "14", "kelvin"]
        );
        assert_eq!(Rouge { stemming: true }.words("Rivers are running dry"), ["river", "are", "run", "dry"]);
    }

    #[test]
    fn the_example_of_the_paper() {
        // Lin, 2004, section 3.2: union of the common subsequences "w1 w2" and "w1 w3 w5".
        let found = Rouge::default().score("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", &["w1 w2 w3 w4 w5"]).unwrap();
        assert!((found.rouge_lsum.recall - 0.8).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn nothing_in_common_is_zero() {
        let rouge = Rouge::default();
        for (hypothesis, reference) in [("", ""), ("a", ""), ("", "a"), ("a", "b"), ("—", "…")] {
            let found = rouge.score(hypothesis, &[reference]).unwrap();
            assert_eq!(found, RougeScores::default(), "{hypothesis} {reference}");
        }
        assert_eq!(rouge.score::<&str>("a", &[]), Err(ScoreError::NoReference { document: 0 }));
    }
}
