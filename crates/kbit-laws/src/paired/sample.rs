//! Statistics of paired differences: bootstrap and permutation test.
//!
//! - Intervals and standard errors by the bootstrap over items (Efron, 1979): items are drawn with replacement, within each text.
//! - p values by the paired permutation test (Fisher, 1935; Pitman, 1937; for texts Yeh, 2000, "More accurate tests for the statistical
//!   significance of result differences"): were both equally good, each item's difference could as well have had the other sign. All
//!   signs are tried where items are few, else random ones; the p value counts the given signs too, so it is never 0 (Phipson and
//!   Smyth, 2010).
//! - Many pairs: Holm, 1979, "A simple sequentially rejective multiple test procedure".

use crate::solve::Random;
use serde::Serialize;

/// Up to so many items, all signs are tried.
const ALL_SIGNS: usize = 16;
/// A sum of other signs counts as large as the given one where only rounding tells them apart.
const ROUNDING: f64 = 1.0 - 1e-12;

/// Differences item by item on one text or task: sums over the items' tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Paired {
    /// Value of the first less that of the second, of each item.
    differences: Vec<f64>,
    /// What each item counts for.
    weights: Vec<f64>,
}

impl Paired {
    /// Of the values of two on the same items; `None` where they are not as many, or nothing counts.
    #[must_use]
    pub fn new(a: &[f64], b: &[f64], weights: Option<&[f64]>) -> Option<Self> {
        let weights = weights.map_or_else(|| vec![1.0; a.len()], <[f64]>::to_vec);
        let total: f64 = weights.iter().sum();
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        let fits = a.len() == b.len() && weights.len() == a.len();
        (fits && total > 0.0 && differences.iter().all(|d| d.is_finite()))
            .then_some(Self { differences, weights })
    }

    /// Items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.differences.len()
    }

    /// True without items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.differences.is_empty()
    }

    fn total(&self) -> f64 {
        self.weights.iter().sum()
    }

    /// Mean difference: the sum over what the items count for.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.differences.iter().sum::<f64>() / self.total()
    }

    /// Standard error of the mean by its formula, that of a ratio of sums to first order; `None` of a single item.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of items")]
    pub fn stderr(&self) -> Option<f64> {
        let (count, mean) = (self.len() as f64, self.mean());
        let squares: f64 =
            self.differences.iter().zip(&self.weights).map(|(d, weight)| (d - mean * weight).powi(2)).sum();
        (self.len() > 1).then(|| (squares * count / (count - 1.0)).sqrt() / self.total())
    }

    fn drawn(&self, random: &mut Random) -> f64 {
        let (mut sum, mut total) = (0.0, 0.0);
        for _ in 0..self.len() {
            let item = random.below(self.len());
            sum += self.differences[item];
            total += self.weights[item];
        }
        sum / total
    }
}

/// Limits of a 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// What a sample says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tested {
    /// Mean difference.
    pub difference: f64,
    /// Its standard error over items; none of a single item.
    pub stderr: Option<f64>,
    /// 95 % interval of the bootstrap.
    pub interval: Option<Interval>,
    /// Probability of a difference as large by chance, were both equally good; none of a single item.
    pub p_value: Option<f64>,
    /// The smallest p value that so many items can give.
    pub least_p_value: f64,
    /// Items.
    pub items: usize,
}

/// Paired differences on one or several texts: the figure is the mean over texts, each counting alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    texts: Vec<Paired>,
}

impl Sample {
    /// On these texts; `None` without any, or where one has no item.
    #[must_use]
    pub fn new(texts: Vec<Paired>) -> Option<Self> {
        (!texts.is_empty() && texts.iter().all(|text| !text.is_empty())).then_some(Self { texts })
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of texts")]
    fn average(&self, of_text: impl FnMut(&Paired) -> f64) -> f64 {
        self.texts.iter().map(of_text).sum::<f64>() / self.texts.len() as f64
    }

    /// Items of all texts.
    #[must_use]
    pub fn items(&self) -> usize {
        self.texts.iter().map(Paired::len).sum()
    }

    /// Mean difference.
    #[must_use]
    pub fn difference(&self) -> f64 {
        self.average(Paired::mean)
    }

    /// Standard error of the difference: of independent texts.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of texts")]
    pub fn stderr(&self) -> Option<f64> {
        let squares = self.texts.iter().map(|text| Some(text.stderr()?.powi(2))).sum::<Option<f64>>()?;
        Some(squares.sqrt() / self.texts.len() as f64)
    }

    /// 95 % interval of `resamples` draws of items; `None` where no text has two.
    #[must_use]
    pub fn interval(&self, resamples: usize, seed: u64) -> Option<Interval> {
        if resamples < 2 || self.texts.iter().all(|text| text.len() < 2) {
            return None;
        }
        let mut random = Random::new(seed);
        let mut means: Vec<f64> =
            (0..resamples).map(|_| self.average(|text| text.drawn(&mut random))).collect();
        means.sort_unstable_by(f64::total_cmp);
        Some(Interval { low: quantile(&means, 0.025), high: quantile(&means, 0.975) })
    }

    /// The smallest p value that so many items can give: that of all signs alike.
    #[must_use]
    pub fn least_p_value(&self) -> f64 {
        0.5f64.powi(i32::try_from(self.items()).unwrap_or(i32::MAX).saturating_sub(1)).min(1.0)
    }

    /// Two-sided p value of the permutation test: by all signs up to 16 items, else by `draws` random ones. `None` of a
    /// single item.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub fn p_value(&self, draws: usize, seed: u64) -> Option<f64> {
        // What each item adds to the mean over texts.
        let parts: Vec<f64> = self
            .texts
            .iter()
            .flat_map(|text| {
                let total = text.total() * self.texts.len() as f64;
                text.differences.iter().map(move |difference| difference / total)
            })
            .collect();
        if parts.len() < 2 {
            return None;
        }
        let least = parts.iter().sum::<f64>().abs() * ROUNDING;
        let as_large = |sign: &mut dyn FnMut(usize) -> bool| {
            let sum: f64 =
                parts.iter().enumerate().map(|(i, part)| if sign(i) { -part } else { *part }).sum();
            sum.abs() >= least
        };
        if parts.len() <= ALL_SIGNS {
            let all = 1usize << parts.len();
            let found = (0..all).filter(|signs| as_large(&mut |item| signs >> item & 1 == 1)).count();
            return Some(found as f64 / all as f64);
        }
        let mut random = Random::new(seed);
        let mut found = 0usize;
        for _ in 0..draws {
            // 16 signs of one number.
            let mut signs = 0;
            found += usize::from(as_large(&mut |item| {
                signs = if item % 16 == 0 { random.below(1 << 16) } else { signs >> 1 };
                signs & 1 == 1
            }));
        }
        Some((found + 1) as f64 / (draws + 1) as f64)
    }

    /// All of it.
    #[must_use]
    pub fn test(&self, resamples: usize, seed: u64) -> Tested {
        Tested {
            difference: self.difference(),
            stderr: self.stderr(),
            interval: self.interval(resamples, seed),
            p_value: self.p_value(resamples, seed),
            least_p_value: self.least_p_value(),
            items: self.items(),
        }
    }
}

/// p values of several tests, each corrected for the others by Holm's method: with these, the chance of even one difference where
/// there is none stays below what they are held against.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a count of tests")]
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut corrected = vec![1.0; p_values.len()];
    let mut least = 0.0f64;
    for (rank, &place) in order.iter().enumerate() {
        least = least.max(((p_values.len() - rank) as f64 * p_values[place]).min(1.0));
        corrected[place] = least;
    }
    corrected
}

/// Value below which that share of `sorted` lies, interpolated linearly.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "places inside the slice"
)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, part) = (place as usize, place.fract());
    let above = (below + 1).min(sorted.len() - 1);
    (1.0 - part) * sorted[below] + part * sorted[above]
}
