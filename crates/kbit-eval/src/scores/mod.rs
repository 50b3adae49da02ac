//! Scores of texts and labels: pure functions that need no model.
//!
//! | score | equal to | module |
//! |---|---|---|
//! | BLEU | sacreBLEU (Post, 2018, "A Call for Clarity in Reporting BLEU Scores") | [`Bleu`] |
//! | chrF, chrF++ | sacreBLEU's (Popović, 2015 and 2017) | [`Chrf`] |
//! | ROUGE-N, ROUGE-L, ROUGE-Lsum | Google's `rouge-score` (Lin, 2004) | [`Rouge`] |
//! | exact match | lm-evaluation-harness's | [`ExactMatch`] |
//! | accuracy, precision, recall, F1, Matthews correlation | scikit-learn's | [`Confusion`] |
//! | distinct-n | Li et al., 2016, "A Diversity-Promoting Objective Function" | [`distinct_n`] |
//!
//! Each score of many documents is made of what each document contributes, so that documents can be drawn anew
//! ([`resample`]): BLEU and chrF of counts that add up, ROUGE and exact match of a mean.
//!
//! ```
//! use kbit_eval::scores::{Bleu, Rouge};
//!
//! let bleu = Bleu::default();
//! let found = bleu.corpus(&["The river is wide."], &[vec!["The river was wide."]]).unwrap();
//! assert!((found.score - 30.21).abs() < 0.01);
//! let rouge = Rouge { stemming: true }.score("the rivers flowed", &["the river flows"]).unwrap();
//! assert_eq!(rouge.rouge_1.f1, 1.0);
//! ```

mod bleu;
mod chrf;
mod classification;
mod distinct;
mod error;
mod exact;
mod porter;
mod resample;
mod rouge;
mod text;
mod tokenize;

use std::ops::AddAssign;

pub use bleu::{Bleu, BleuScore, BleuStatistics, Smoothing};
pub use chrf::{Chrf, ChrfStatistics, OrderCounts};
pub use classification::{Confusion, LabelScores, ZeroDivision};
pub use distinct::{Distinct, distinct_n};
pub use error::ScoreError;
pub use exact::ExactMatch;
pub use porter::stem;
pub use resample::{Resampled, resample};
pub use rouge::{Overlap, Rouge, RougeScores};
pub use tokenize::BleuTokenizer;

/// How many references the documents have, as a signature says it: their number, or `var` where it differs.
fn references_word<R>(references: &[Vec<R>]) -> String {
    match references {
        [first, rest @ ..] if rest.iter().all(|others| others.len() == first.len()) => {
            first.len().to_string()
        }
        [] => "0".to_owned(),
        _ => "var".to_owned(),
    }
}

/// What each document contributes, by `statistics` of a hypothesis and its references.
fn documents<H: AsRef<str>, R, S>(
    hypotheses: &[H],
    references: &[Vec<R>],
    statistics: impl Fn(&str, &[R]) -> Result<S, ScoreError>,
) -> Result<Vec<S>, ScoreError> {
    check(hypotheses, references)?;
    let pairs = hypotheses.iter().zip(references);
    pairs.map(|(hypothesis, references)| statistics(hypothesis.as_ref(), references)).collect()
}

/// What documents contribute together.
pub(crate) fn total<'a, S>(documents: impl IntoIterator<Item = &'a S>) -> S
where
    S: Default + AddAssign<&'a S> + 'a,
{
    documents.into_iter().fold(S::default(), |mut sum, document| {
        sum += document;
        sum
    })
}

/// Refuses sets that cannot be scored.
fn check<H, R>(hypotheses: &[H], references: &[Vec<R>]) -> Result<(), ScoreError> {
    if hypotheses.len() != references.len() {
        return Err(ScoreError::Lengths { left: hypotheses.len(), right: references.len() });
    }
    if hypotheses.is_empty() {
        return Err(ScoreError::Empty);
    }
    match references.iter().position(Vec::is_empty) {
        Some(document) => Err(ScoreError::NoReference { document }),
        None => Ok(()),
    }
}
