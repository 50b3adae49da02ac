//! BLEU (Papineni et al., 2002), as sacreBLEU defines it.
//!
//! What a document contributes is [`BleuStatistics`], counts that add up over documents; a score is a function of their sum.
//! Smoothing follows Chen and Cherry, 2014, "A Systematic Comparison of Smoothing Techniques for Sentence-Level BLEU".

use super::text::{counts, float, matches, runs};
use super::{BleuTokenizer, ScoreError, documents, references_word, total};
use std::collections::HashMap;
use std::ops::AddAssign;

/// What becomes of an order of n-grams without a match.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Smoothing {
    /// Half of the last order's smallest count, halved anew for each such order (method 3, as NIST's script).
    #[default]
    Exponential,
    /// So many matches (method 1; usually 0.1).
    Floor(f64),
    /// So many matches and n-grams more in each order above the first (method 2; usually 1).
    AddK(f64),
    /// Precision 0, so score 0.
    None,
}

impl Smoothing {
    /// The smoothing of that name; `value` is for `floor` and `add-k` and has a usual value.
    ///
    /// # Errors
    /// When there is none of that name, or it takes no such value.
    pub fn parse(name: &str, value: Option<f64>) -> Result<Self, ScoreError> {
        let known = match name {
            "exp" => Self::Exponential,
            "none" => Self::None,
            "floor" => Self::Floor(value.unwrap_or(0.1)),
            "add-k" => Self::AddK(value.unwrap_or(1.0)),
            _ => {
                let known = "exp, floor, add-k, none";
                return Err(ScoreError::Unknown { what: "smoothing", name: name.to_owned(), known });
            }
        };
        match value {
            Some(value) if !(value.is_finite() && value >= 0.0) => Err(ScoreError::Option {
                option: "the smoothing's value",
                value: value.to_string(),
                valid: "a number that is not negative",
            }),
            _ => Ok(known),
        }
    }

    fn signature(self) -> String {
        match self {
            Self::Exponential => "exp".to_owned(),
            Self::Floor(value) => format!("floor[{value:.2}]"),
            Self::AddK(value) => format!("add-k[{value:.2}]"),
            Self::None => "none".to_owned(),
        }
    }
}

/// BLEU with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Bleu {
    /// How texts become words.
    pub tokenizer: BleuTokenizer,
    /// Compares texts in lower case.
    pub lowercase: bool,
    /// What becomes of orders without a match.
    pub smoothing: Smoothing,
    /// Counts only orders up to the length of the hypothesis: for scores of single sentences.
    pub effective_order: bool,
    /// Longest n-gram.
    pub max_order: usize,
}

impl Default for Bleu {
    fn default() -> Self {
        Self {
            tokenizer: BleuTokenizer::default(),
            lowercase: false,
            smoothing: Smoothing::default(),
            effective_order: false,
            max_order: 4,
        }
    }
}

/// What documents contribute to BLEU.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct BleuStatistics {
    /// Words of the hypotheses.
    pub hypothesis_length: u64,
    /// Words of the references that are nearest in length.
    pub reference_length: u64,
    /// By order: n-grams of the hypotheses that a reference has.
    pub correct: Vec<u64>,
    /// By order: n-grams of the hypotheses.
    pub total: Vec<u64>,
}

impl AddAssign<&Self> for BleuStatistics {
    fn add_assign(&mut self, other: &Self) {
        self.hypothesis_length += other.hypothesis_length;
        self.reference_length += other.reference_length;
        for (sums, counts) in [(&mut self.correct, &other.correct), (&mut self.total, &other.total)] {
            sums.resize(sums.len().max(counts.len()), 0);
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
}

/// A BLEU score, from 0 to 100.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct BleuScore {
    /// The score.
    pub score: f64,
    /// By order: precision in percent, smoothed.
    pub precisions: Vec<f64>,
    /// Brevity penalty.
    pub brevity_penalty: f64,
    /// What it was computed from.
    pub statistics: BleuStatistics,
}

impl Bleu {
    fn tokens(&self, text: &str) -> Vec<String> {
        let lower = self.lowercase.then(|| text.to_lowercase());
        let text = lower.as_deref().unwrap_or(text);
        self.tokenizer.tokenize(text.trim_end_matches(super::text::is_space))
    }

    /// What one document contributes.
    ///
    /// # Errors
    /// When there is no reference, or the longest n-gram is shorter than one word.
    pub fn statistics<R: AsRef<str>>(
        &self,
        hypothesis: &str,
        references: &[R],
    ) -> Result<BleuStatistics, ScoreError> {
        if self.max_order == 0 {
            let valid = "1 or more; 4 is usual";
            return Err(ScoreError::Option { option: "the longest n-gram", value: "0".to_owned(), valid });
        }
        let hypothesis = self.tokens(hypothesis);
        let references: Vec<_> = references.iter().map(|reference| self.tokens(reference.as_ref())).collect();
        // Of two lengths that are equally near, the shorter one counts.
        let near = |length: &usize| (length.abs_diff(hypothesis.len()), *length);
        let length = references.iter().map(Vec::len).min_by_key(near);
        let reference_length = length.ok_or(ScoreError::NoReference { document: 0 })? as u64;
        let (mut correct, mut total) = (Vec::new(), Vec::new());
        for n in 1..=self.max_order {
            let mut known: HashMap<&[String], u64> = HashMap::new();
            for reference in &references {
                for (run, count) in counts(reference, n) {
                    let most = known.entry(run).or_insert(0);
                    *most = count.max(*most);
                }
            }
            correct.push(matches(&counts(&hypothesis, n), &known));
            total.push(runs(hypothesis.len(), n));
        }
        Ok(BleuStatistics { hypothesis_length: hypothesis.len() as u64, reference_length, correct, total })
    }

    /// The score of summed contributions.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "orders are few")]
    pub fn score(&self, statistics: &BleuStatistics) -> BleuScore {
        let (length, reference) = (float(statistics.hypothesis_length), float(statistics.reference_length));
        let brevity_penalty = match () {
            () if length >= reference => 1.0,
            () if length > 0.0 => (1.0 - reference / length).exp(),
            () => 0.0,
        };
        let mut precisions = vec![0.0; self.max_order];
        let mut score = 0.0;
        if statistics.correct.iter().any(|&count| count > 0) {
            let mut order = self.max_order;
            let mut halvings = 1.0;
            let counts = statistics.correct.iter().zip(&statistics.total);
            for (n, ((&correct, &total), precision)) in counts.zip(&mut precisions).enumerate() {
                let more = match self.smoothing {
                    Smoothing::AddK(k) if n > 0 => k,
                    _ => 0.0,
                };
                let (correct, total) = (float(correct) + more, float(total) + more);
                if total == 0.0 {
                    break;
                }
                if self.effective_order {
                    order = n + 1;
                }
                let matched = match self.smoothing {
                    _ if correct > 0.0 => correct,
                    Smoothing::Exponential => {
                        halvings *= 2.0;
                        1.0 / halvings
                    }
                    Smoothing::Floor(value) => value,
                    Smoothing::AddK(_) | Smoothing::None => 0.0,
                };
                *precision = 100.0 * matched / total;
            }
            let logs: f64 = precisions[..order].iter().map(|precision| precision.ln()).sum();
            score = brevity_penalty * (logs / order as f64).exp();
        }
        BleuScore { score, precisions, brevity_penalty, statistics: statistics.clone() }
    }

    /// The score of one sentence; sensible with [`Bleu::effective_order`].
    ///
    /// # Errors
    /// As [`Bleu::statistics`].
    pub fn sentence<R: AsRef<str>>(
        &self,
        hypothesis: &str,
        references: &[R],
    ) -> Result<BleuScore, ScoreError> {
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
    ) -> Result<Vec<BleuStatistics>, ScoreError> {
        documents(hypotheses, references, |hypothesis, references| self.statistics(hypothesis, references))
    }

    /// The score of all documents together.
    ///
    /// # Errors
    /// As [`Bleu::documents`].
    pub fn corpus<H: AsRef<str>, R: AsRef<str>>(
        &self,
        hypotheses: &[H],
        references: &[Vec<R>],
    ) -> Result<BleuScore, ScoreError> {
        Ok(self.score(&total(&self.documents(hypotheses, references)?)))
    }

    /// How the score was computed, in sacreBLEU's form: `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:kbit-0.1.0`.
    #[must_use]
    pub fn signature<R>(&self, references: &[Vec<R>]) -> String {
        format!(
            "nrefs:{}|case:{}|eff:{}|tok:{}|smooth:{}|version:kbit-{}",
            references_word(references),
            if self.lowercase { "lc" } else { "mixed" },
            if self.effective_order { "yes" } else { "no" },
            self.tokenizer.name(),
            self.smoothing.signature(),
            env!("CARGO_PKG_VERSION")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_sacrebleu() {
        let version = env!("CARGO_PKG_VERSION");
        let one = [vec!["a"], vec!["b"]];
        assert_eq!(
            Bleu::default().signature(&one),
            format!("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:kbit-{version}")
        );
        let other = Bleu {
            lowercase: true,
            effective_order: true,
            tokenizer: BleuTokenizer::None,
            smoothing: Smoothing::parse("add-k", None).unwrap(),
            ..Bleu::default()
        };
        assert_eq!(
            other.signature(&[vec!["a"], vec!["b", "c"]]),
            format!("nrefs:var|case:lc|eff:yes|tok:none|smooth:add-k[1.00]|version:kbit-{version}")
        );
    }

    #[test]
    fn of_two_references_equally_near_in_length_the_shorter_counts() {
        let found = Bleu::default().statistics("a b c", &["a b c d", "a b", "a b c d e f"]).unwrap();
        assert_eq!((found.reference_length, found.correct), (2, vec![3, 2, 1, 0]));
    }

    #[test]
    fn mistakes_name_the_cure() {
        let bleu = Bleu::default();
        let message = |result: Result<BleuScore, ScoreError>| result.unwrap_err().to_string();
        assert!(message(bleu.corpus::<&str, &str>(&[], &[])).contains("at least one document"));
        assert!(message(bleu.corpus(&["a"], &[vec!["a"], vec!["b"]])).contains("1 predictions"));
        assert!(message(bleu.corpus(&["a", "b"], &[vec!["a"], vec![]])).contains("document 1"));
        assert!(Smoothing::parse("exponential", None).unwrap_err().to_string().contains("exp, floor"));
        assert!(Smoothing::parse("floor", Some(-1.0)).unwrap_err().to_string().contains("not negative"));
        let none = Bleu { max_order: 0, ..bleu };
        assert!(message(none.sentence("a", &["a"])).contains("longest n-gram"));
    }
}
