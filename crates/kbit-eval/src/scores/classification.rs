//! Scores of predicted labels, by scikit-learn's conventions.

use super::ScoreError;
use super::text::float;
use std::ops::AddAssign;

/// What a share of nothing is: precision of a label that was never predicted, recall of one that never was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroDivision {
    /// 0, scikit-learn's default.
    #[default]
    Zero,
    /// 1.
    One,
    /// Not a number: left out of averages.
    Nan,
}

impl ZeroDivision {
    const fn value(self) -> f64 {
        match self {
            Self::Zero => 0.0,
            Self::One => 1.0,
            Self::Nan => f64::NAN,
        }
    }
}

/// How often each label was predicted for each true label. The matrices of documents add up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Confusion {
    /// One row a true label, one column a predicted label.
    pub counts: Vec<Vec<u64>>,
}

/// Scores of one label, or their average.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct LabelScores {
    /// Share of its predictions that are right.
    pub precision: f64,
    /// Share of its items that were found.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// Items that have it.
    pub support: u64,
}

impl AddAssign<&Self> for Confusion {
    fn add_assign(&mut self, other: &Self) {
        let labels = self.labels().max(other.labels());
        self.counts.resize_with(labels, Vec::new);
        for row in &mut self.counts {
            row.resize(labels, 0);
        }
        for (sums, row) in self.counts.iter_mut().zip(&other.counts) {
            sums.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
        }
    }
}

impl Confusion {
    /// Of labels numbered below `labels`: what is right and what was predicted, item by item.
    ///
    /// # Errors
    /// When there is no item, the lists differ in length, or a label is too large.
    pub fn new(labels: usize, truth: &[usize], predicted: &[usize]) -> Result<Self, ScoreError> {
        if truth.len() != predicted.len() {
            return Err(ScoreError::Lengths { left: predicted.len(), right: truth.len() });
        }
        if truth.is_empty() {
            return Err(ScoreError::Empty);
        }
        let mut counts = vec![vec![0; labels]; labels];
        for (item, (&truth, &predicted)) in truth.iter().zip(predicted).enumerate() {
            let label = truth.max(predicted);
            if label >= labels {
                return Err(ScoreError::Label { item, label, labels });
            }
            counts[truth][predicted] += 1;
        }
        Ok(Self { counts })
    }

    /// Number of labels.
    #[must_use]
    pub fn labels(&self) -> usize {
        self.counts.len()
    }

    /// Number of items.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Items that have each label.
    fn true_counts(&self) -> Vec<u64> {
        self.counts.iter().map(|row| row.iter().sum()).collect()
    }

    /// Items that each label was predicted for.
    fn predicted_counts(&self) -> Vec<u64> {
        (0..self.labels()).map(|label| self.counts.iter().map(|row| row[label]).sum()).collect()
    }

    fn right(&self) -> u64 {
        (0..self.labels()).map(|label| self.counts[label][label]).sum()
    }

    /// Share of items that are right; not a number without items.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        float(self.right()) / float(self.items())
    }

    /// Scores of each label.
    #[must_use]
    pub fn by_label(&self, zero_division: ZeroDivision) -> Vec<LabelScores> {
        let share = |part: u64, of: u64| {
            if of == 0 { zero_division.value() } else { float(part) / float(of) }
        };
        let counts = self.true_counts().into_iter().zip(self.predicted_counts());
        counts
            .enumerate()
            .map(|(label, (support, predicted))| {
                let right = self.counts[label][label];
                LabelScores {
                    precision: share(right, predicted),
                    recall: share(right, support),
                    f1: share(2 * right, support + predicted),
                    support,
                }
            })
            .collect()
    }

    /// Plain means over the labels that occur, true or predicted, as of scikit-learn without `labels`.
    #[must_use]
    pub fn macro_average(&self, zero_division: ZeroDivision) -> LabelScores {
        self.average(zero_division, |_| 1.0)
    }

    /// Means over the labels, each weighted by the items that have it.
    #[must_use]
    pub fn weighted_average(&self, zero_division: ZeroDivision) -> LabelScores {
        self.average(zero_division, |scores| float(scores.support))
    }

    fn average(&self, zero_division: ZeroDivision, weight: impl Fn(&LabelScores) -> f64) -> LabelScores {
        let predicted = self.predicted_counts();
        let scores: Vec<LabelScores> = self
            .by_label(zero_division)
            .into_iter()
            .zip(predicted)
            .filter(|(scores, predicted)| scores.support + predicted > 0)
            .map(|(scores, _)| scores)
            .collect();
        // Scores that are not a number are left out; where no weight is left, all weigh the same.
        let mean = |of: fn(&LabelScores) -> f64| {
            let known = scores.iter().filter(|scores| !of(scores).is_nan());
            let (mut sum, mut weights, mut plain, mut count) = (0.0, 0.0, 0.0, 0.0);
            for scores in known {
                sum += of(scores) * weight(scores);
                weights += weight(scores);
                plain += of(scores);
                count += 1.0;
            }
            if weights > 0.0 { sum / weights } else { plain / count }
        };
        LabelScores {
            precision: mean(|scores| scores.precision),
            recall: mean(|scores| scores.recall),
            f1: mean(|scores| scores.f1),
            support: self.items(),
        }
    }

    /// Matthews correlation coefficient of any number of labels (Gorodkin, 2004), from -1 to 1; 0 where it is not defined.
    #[must_use]
    pub fn matthews(&self) -> f64 {
        let (truth, predicted) = (self.true_counts(), self.predicted_counts());
        let product =
            |a: &[u64], b: &[u64]| -> f64 { a.iter().zip(b).map(|(a, b)| float(*a) * float(*b)).sum() };
        let items = float(self.items());
        let covariance = float(self.right()) * items - product(&truth, &predicted);
        let variances =
            (items * items - product(&predicted, &predicted)) * (items * items - product(&truth, &truth));
        if variances == 0.0 { 0.0 } else { covariance / variances.sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_matrix() {
        // Two labels: 3 right positives, 1 missed, 2 false alarms, 4 right negatives.
        let found = Confusion { counts: vec![vec![4, 2], vec![1, 3]] };
        assert_eq!((found.items(), found.accuracy()), (10, 0.7));
        let positive = found.by_label(ZeroDivision::Zero)[1];
        assert_eq!((positive.precision, positive.recall, positive.support), (0.6, 0.75, 4));
        assert!((positive.f1 - 2.0 / 3.0).abs() < 1e-12);
        let phi = (3.0 * 4.0 - 2.0) / (5.0f64 * 4.0 * 6.0 * 5.0).sqrt();
        assert!((found.matthews() - phi).abs() < 1e-12);
    }

    #[test]
    fn a_share_of_nothing_is_what_was_asked() {
        let found = Confusion::new(3, &[0, 0, 1], &[0, 0, 0]).unwrap();
        let precision = |zero| found.by_label(zero)[1].precision;
        assert_eq!((precision(ZeroDivision::Zero), precision(ZeroDivision::One)), (0.0, 1.0));
        assert!(precision(ZeroDivision::Nan).is_nan());
        // The third label does not occur and does not count.
        let average = found.macro_average(ZeroDivision::Zero);
        assert!((average.recall - 0.5).abs() < 1e-12 && average.support == 3);
        assert_eq!(found.matthews(), 0.0);
    }

    #[test]
    fn matrices_of_documents_add_up() {
        let mut sum = Confusion::new(1, &[0], &[0]).unwrap();
        sum += &Confusion::new(2, &[1, 0], &[0, 0]).unwrap();
        assert_eq!(sum, Confusion::new(2, &[0, 1, 0], &[0, 0, 0]).unwrap());
    }

    #[test]
    fn mistakes_name_the_item() {
        let message = |result: Result<Confusion, ScoreError>| result.unwrap_err().to_string();
        assert!(message(Confusion::new(2, &[0, 1], &[0, 2])).contains("label 2 of item 1"));
        assert!(message(Confusion::new(2, &[0], &[])).starts_with("0 predictions"));
        assert!(message(Confusion::new(2, &[], &[])).contains("nothing to score"));
    }
}
