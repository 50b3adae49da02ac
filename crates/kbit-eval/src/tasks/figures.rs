//! Figures of a task: what the answers to its documents amount to.
//!
//! A figure keeps what each document contributes. So its standard error, and its difference from another model's figure on the same
//! documents, are those of the documents: of means by the sample variance (as lm-evaluation-harness's `mean_stderr`), of perplexities
//! to first order, and of scores of all documents together by drawing documents anew.

use crate::scores::{
    Bleu, BleuStatistics, Chrf, ChrfStatistics, Confusion, ScoreError, ZeroDivision, resample, total,
};
use serde::Serialize;

/// Resamples behind standard errors that have no formula.
const RESAMPLES: usize = 1000;
/// Their seed.
const SEED: u64 = 1;

/// What a model answered to one document.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Answer {
    /// Line of the document, from 1.
    pub line: usize,
    /// Places of the right choices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gold: Vec<usize>,
    /// The likeliest choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<usize>,
    /// Log-likelihood of each choice, or of the text, in nats.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// Log-likelihood of each choice without the question, where a metric wants it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unconditional: Vec<f64>,
    /// Whether each token of it was the likeliest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub greedy: Vec<bool>,
    /// Tokens scored of each, or written.
    pub tokens: Vec<usize>,
    /// What the model was given, of generated texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What it wrote, after filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What it wrote, before filters, where they changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfiltered: Option<String>,
    /// What it should have written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
}

/// How documents' parts make a figure.
#[derive(Clone, Debug)]
pub(crate) enum Parts {
    Mean(Vec<f64>),
    /// Of negative log-likelihoods.
    Perplexity(Vec<f64>),
    Bleu(Bleu, Vec<BleuStatistics>),
    Chrf(Chrf, Vec<ChrfStatistics>),
    /// Right and predicted labels.
    Labels(LabelFigure, usize, Vec<(usize, usize)>),
}

/// A figure of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LabelFigure {
    F1,
    MacroF1,
    WeightedF1,
    MacroPrecision,
    MacroRecall,
    Matthews,
}

impl LabelFigure {
    pub(crate) fn of(metric: &str) -> Option<Self> {
        Some(match metric {
            "f1" => Self::F1,
            "macro_f1" => Self::MacroF1,
            "weighted_f1" => Self::WeightedF1,
            "macro_precision" => Self::MacroPrecision,
            "macro_recall" => Self::MacroRecall,
            "mcc" => Self::Matthews,
            _ => return None,
        })
    }

    fn value(self, confusion: &Confusion) -> f64 {
        let zero = ZeroDivision::Zero;
        match self {
            // Of label 1, as scikit-learn's of two labels.
            Self::F1 => confusion.by_label(zero).get(1).map_or(0.0, |scores| scores.f1),
            Self::MacroF1 => confusion.macro_average(zero).f1,
            Self::WeightedF1 => confusion.weighted_average(zero).f1,
            Self::MacroPrecision => confusion.macro_average(zero).precision,
            Self::MacroRecall => confusion.macro_average(zero).recall,
            Self::Matthews => confusion.matthews(),
        }
    }
}

impl Parts {
    fn len(&self) -> usize {
        match self {
            Self::Mean(values) | Self::Perplexity(values) => values.len(),
            Self::Bleu(_, parts) => parts.len(),
            Self::Chrf(_, parts) => parts.len(),
            Self::Labels(_, _, pairs) => pairs.len(),
        }
    }

    /// The figure of the documents at these places.
    fn score(&self, places: &[&usize]) -> f64 {
        match self {
            Self::Mean(values) => mean(places.iter().map(|&&place| values[place])),
            Self::Perplexity(values) => mean(places.iter().map(|&&place| values[place])).exp(),
            Self::Bleu(bleu, parts) => bleu.score(&total(places.iter().map(|&&place| &parts[place]))).score,
            Self::Chrf(chrf, parts) => chrf.score(&total(places.iter().map(|&&place| &parts[place]))),
            Self::Labels(figure, labels, pairs) => {
                let (truth, predicted): (Vec<_>, Vec<_>) = places.iter().map(|&&place| pairs[place]).unzip();
                Confusion::new(*labels, &truth, &predicted)
                    .map_or(f64::NAN, |confusion| figure.value(&confusion))
            }
        }
    }
}

/// One figure of a task.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Metric, as the task names it.
    pub metric: String,
    /// Value.
    pub value: f64,
    /// Standard error; `None` of a single document.
    pub stderr: Option<f64>,
    /// Documents.
    pub count: u64,
    /// How the figure was made exactly, of those that have a signature.
    pub signature: Option<String>,
    parts: Parts,
}

impl Figure {
    pub(crate) fn new(metric: &str, parts: Parts, signature: Option<String>) -> Result<Self, ScoreError> {
        let places: Vec<usize> = (0..parts.len()).collect();
        let all: Vec<&usize> = places.iter().collect();
        let value = parts.score(&all);
        let stderr = match &parts {
            Parts::Mean(values) => standard_error(values.iter().copied()),
            Parts::Perplexity(values) => standard_error(values.iter().map(|nll| value * nll)),
            _ if places.len() < 2 => None,
            _ => Some(resample(&places, RESAMPLES, SEED, |drawn| parts.score(drawn))?.stderr),
        };
        Ok(Self { metric: metric.to_owned(), value, stderr, count: places.len() as u64, signature, parts })
    }

    /// One value a document, where the figure is their mean, or of a perplexity the `exp` of their mean.
    #[must_use]
    pub fn values(&self) -> Option<&[f64]> {
        match &self.parts {
            Parts::Mean(values) | Parts::Perplexity(values) => Some(values),
            Parts::Bleu(..) | Parts::Chrf(..) | Parts::Labels(..) => None,
        }
    }

    /// By how much this figure is above `other`'s on the same documents, with the standard error of that, in pairs of documents;
    /// `None` where the figures are not of the same kind and number of documents.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<(f64, Option<f64>)> {
        if self.metric != other.metric || self.parts.len() != other.parts.len() {
            return None;
        }
        let pairs = |a: &[f64], b: &[f64], (a_factor, b_factor): (f64, f64)| {
            standard_error(a.iter().zip(b).map(|(a, b)| a_factor * a - b_factor * b))
        };
        let stderr = match (&self.parts, &other.parts) {
            (Parts::Mean(a), Parts::Mean(b)) => pairs(a, b, (1.0, 1.0)),
            (Parts::Perplexity(a), Parts::Perplexity(b)) => pairs(a, b, (self.value, other.value)),
            (a, b) => {
                let places: Vec<usize> = (0..a.len()).collect();
                let spread =
                    resample(&places, RESAMPLES, SEED, |drawn| a.score(drawn) - b.score(drawn)).ok()?;
                (places.len() > 1).then_some(spread.stderr)
            }
        };
        Some((self.value - other.value, stderr))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0u64);
    for value in values {
        sum += value;
        count += 1;
    }
    sum / count as f64
}

/// Standard error of a mean: sample standard deviation over the root of the count.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn standard_error(values: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let count = values.clone().count();
    if count < 2 {
        return None;
    }
    let average = mean(values.clone());
    let squares: f64 = values.map(|value| (value - average) * (value - average)).sum();
    Some((squares / (count - 1) as f64 / count as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_perplexities_have_their_standard_errors() {
        let figure = Figure::new("acc", Parts::Mean(vec![1.0, 0.0, 1.0, 1.0]), None).unwrap();
        assert_eq!((figure.value, figure.count), (0.75, 4));
        assert!((figure.stderr.unwrap() - 0.25).abs() < 1e-12);
        let figure = Figure::new("perplexity", Parts::Perplexity(vec![1.0, 3.0]), None).unwrap();
        assert!(
            (figure.value - 2f64.exp()).abs() < 1e-12 && (figure.stderr.unwrap() - 2f64.exp()).abs() < 1e-12
        );
        assert_eq!(Figure::new("acc", Parts::Mean(vec![1.0]), None).unwrap().stderr, None);
    }

    #[test]
    fn differences_are_of_pairs() {
        let of = |values: [f64; 4]| Figure::new("acc", Parts::Mean(values.to_vec()), None).unwrap();
        let (value, stderr) = of([1.0, 0.0, 0.0, 1.0]).difference(&of([1.0, 0.0, 1.0, 1.0])).unwrap();
        assert_eq!(value, -0.25);
        assert!((stderr.unwrap() - 0.25).abs() < 1e-12);
        let labels = |predicted: [usize; 4]| {
            let pairs = [0, 1, 1, 0].into_iter().zip(predicted).collect();
            Figure::new("mcc", Parts::Labels(LabelFigure::Matthews, 2, pairs), None).unwrap()
        };
        let (right, wrong) = (labels([0, 1, 1, 0]), labels([1, 0, 0, 1]));
        assert_eq!((right.value, wrong.value), (1.0, -1.0));
        assert_eq!(right.difference(&right).unwrap(), (0.0, Some(0.0)));
        assert_eq!(right.difference(&wrong).unwrap().0, 2.0);
        assert!(right.difference(&of([1.0; 4])).is_none());
    }
}
