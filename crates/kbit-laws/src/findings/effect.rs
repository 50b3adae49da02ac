//! An effect with its interval and the smallest effect that could have been seen.

use crate::solve::{NORMAL, Random, central, student};

/// Resamples of models.
const DRAWS: usize = 2000;
/// Probability at which the interval's ends leave out what lies beyond.
const UPPER: f64 = 0.975;
/// Power at which the smallest effect is stated.
const POWER: f64 = 0.8;

/// A mean of paired differences, or another statistic with its resamples.
#[derive(Clone, Debug)]
pub struct Effect {
    pub value: f64,
    /// Standard error.
    pub error: f64,
    /// Degrees of freedom of the error.
    pub freedom: usize,
    /// By how much the 95 % interval's ends are below and above the value.
    ends: (f64, f64),
    pub comparisons: usize,
    /// Models, each once.
    pub models: Vec<String>,
}

/// The places of one draw with replacement of `n`.
fn draw(random: &mut Random, n: usize) -> Vec<usize> {
    (0..n).map(|_| random.below(n)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts")]
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// `n` of what was drawn vary by (n - 1) / n too little.
#[expect(clippy::cast_precision_loss, reason = "counts")]
fn unbiased(n: usize) -> f64 {
    (n as f64 / (n as f64 - 1.0)).sqrt()
}

impl Effect {
    /// The mean over models of the mean difference of each; over the differences themselves where there is one model. `None` for
    /// fewer than two.
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    pub fn of(differences: &[(&str, f64)], seed: u64) -> Option<Self> {
        let (models, groups) = by_model(differences);
        let of_models: Vec<f64> = groups.iter().map(|group| mean(group.iter().copied())).collect();
        let units = if of_models.len() == 1 { groups.concat() } else { of_models };
        let n = units.len();
        if n < 2 {
            return None;
        }
        let value = mean(units.iter().copied());
        let variance = units.iter().map(|unit| (unit - value).powi(2)).sum::<f64>() / (n - 1) as f64;
        let mut random = Random::new(seed);
        let drawn: Vec<f64> =
            (0..DRAWS).map(|_| mean(draw(&mut random, n).iter().map(|unit| units[*unit])) - value).collect();
        Some(Self {
            value,
            error: (variance / n as f64).sqrt(),
            freedom: n - 1,
            ends: widened(&drawn, n),
            comparisons: differences.len(),
            models,
        })
    }

    /// An effect whose resamples were made elsewhere; `drawn` less the value, with few points' widening in them.
    pub fn resampled(
        value: f64,
        error: f64,
        freedom: usize,
        drawn: &[f64],
        comparisons: usize,
        models: Vec<String>,
    ) -> Self {
        Self { value, error, freedom, ends: central(drawn), comparisons, models }
    }

    /// The same effect the other way round.
    pub fn negated(self) -> Self {
        Self { value: -self.value, ends: (-self.ends.1, -self.ends.0), ..self }
    }

    /// The 95 % interval; of `parts` intervals together where there are several (Bonferroni).
    #[expect(clippy::cast_precision_loss, reason = "a count of comparisons")]
    pub fn interval(&self, parts: usize) -> (f64, f64) {
        let together = 1.0 - (1.0 - UPPER) / parts.max(1) as f64;
        let wider = student(together, self.freedom) / student(UPPER, self.freedom);
        (self.value + wider * self.ends.0, self.value + wider * self.ends.1)
    }

    /// The effect that is found with a power of .8 at a level of .05 (two-sided), were there no other error than this one's.
    pub fn smallest(&self) -> f64 {
        (student(UPPER, self.freedom) + student(POWER, self.freedom)) * self.error
    }
}

/// Differences by model, in the models' order.
pub fn by_model<T: Copy>(values: &[(&str, T)]) -> (Vec<String>, Vec<Vec<T>>) {
    let mut models: Vec<String> = values.iter().map(|(model, _)| (*model).to_owned()).collect();
    models.sort_unstable();
    models.dedup();
    let groups = models
        .iter()
        .map(|model| values.iter().filter(|(of, _)| of == model).map(|(_, value)| *value).collect());
    let groups = groups.collect();
    (models, groups)
}

/// Ends of the interval of `drawn`, means of `n` less their mean, widened as Student's distribution is against the normal one.
fn widened(drawn: &[f64], n: usize) -> (f64, f64) {
    let factor = student(UPPER, n - 1) / NORMAL * unbiased(n);
    let (low, high) = central(drawn);
    (factor * low, factor * high)
}

/// Pearson's correlation of pairs by model, with the interval of Fisher's z; models are drawn anew, or pairs where there is one model.
pub struct Correlation {
    pub value: f64,
    pub interval: (f64, f64),
    /// The smallest correlation that is told from none with a power of .8 at .05.
    pub smallest: f64,
    pub comparisons: usize,
    pub models: Vec<String>,
}

impl Correlation {
    /// `None` for fewer than four pairs, or where one of the two does not vary.
    pub fn of(pairs: &[(&str, (f64, f64))], seed: u64) -> Option<Self> {
        let (models, groups) = by_model(pairs);
        let units: Vec<Vec<(f64, f64)>> = match groups.as_slice() {
            [only] => only.iter().map(|pair| vec![*pair]).collect(),
            _ => groups,
        };
        if pairs.len() < LEAST_PAIRS {
            return None;
        }
        let value = pearson(&units.concat())?;
        let center = fisher(value);
        let mut random = Random::new(seed);
        let drawn = (0..DRAWS).filter_map(|_| {
            let places = draw(&mut random, units.len());
            let pairs: Vec<(f64, f64)> =
                places.iter().flat_map(|unit| units[*unit].iter().copied()).collect();
            Some(fisher(pearson(&pairs)?) - center)
        });
        let drawn: Vec<f64> = drawn.collect();
        if drawn.len() < DRAWS / 2 {
            return None;
        }
        let (low, high) = widened(&drawn, units.len());
        let middle = mean(drawn.iter().copied());
        let error = mean(drawn.iter().map(|z| (z - middle).powi(2))).sqrt() * unbiased(units.len());
        let freedom = units.len() - 1;
        Some(Self {
            value,
            interval: ((center + low).tanh(), (center + high).tanh()),
            smallest: ((student(UPPER, freedom) + student(POWER, freedom)) * error).tanh(),
            comparisons: pairs.len(),
            models,
        })
    }
}

/// Pairs of which a correlation means something.
const LEAST_PAIRS: usize = 4;
/// Correlations nearer to 1 are taken as this near, so that Fisher's z stays finite.
const PERFECT: f64 = 1.0 - 1e-9;

fn fisher(correlation: f64) -> f64 {
    correlation.clamp(-PERFECT, PERFECT).atanh()
}

fn pearson(pairs: &[(f64, f64)]) -> Option<f64> {
    let x = mean(pairs.iter().map(|pair| pair.0));
    let y = mean(pairs.iter().map(|pair| pair.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|pair| of(pair.0 - x, pair.1 - y)).sum::<f64>();
    let (xx, yy, xy) = (sum(&|x, _| x * x), sum(&|_, y| y * y), sum(&|x, y| x * y));
    (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of twelve uniform numbers.
    fn normal(random: &mut Random) -> f64 {
        (0..12).map(|_| random.below(1 << 20) as f64 / f64::from(1 << 20)).sum::<f64>() - 6.0
    }

    /// Differences of `models` models under three settings: a mean, noise of models, noise of settings.
    fn differences(random: &mut Random, models: usize, mean: f64) -> Vec<(&'static str, f64)> {
        const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut all = Vec::new();
        for name in &NAMES[..models] {
            let of_model = mean + normal(random);
            all.extend((0..3).map(|_| (*name, of_model + 0.5 * normal(random))));
        }
        all
    }

    #[test]
    fn intervals_cover_in_19_of_20_cases() {
        for models in [3, 4, 8] {
            let mut random = Random::new(models as u64);
            let cases = 400;
            let covered = (0..cases)
                .filter(|seed| {
                    let effect = Effect::of(&differences(&mut random, models, 1.0), *seed).unwrap();
                    let (low, high) = effect.interval(1);
                    low <= 1.0 && 1.0 <= high
                })
                .count();
            let share = covered as f64 / cases as f64;
            assert!((0.90..=0.99).contains(&share), "{models} models: {share}");
        }
    }

    #[test]
    fn the_smallest_effect_is_seen_in_four_of_five_cases() {
        // Variance of a model's mean: 1 + 0.25 / 3; the error is that of six models.
        let error = (1.0f64 + 0.25 / 3.0).sqrt() / 6f64.sqrt();
        let smallest = (student(UPPER, 5) + student(POWER, 5)) * error;
        let mut random = Random::new(11);
        let cases = 400;
        let seen = (0..cases)
            .filter(|seed| {
                let effect = Effect::of(&differences(&mut random, 6, smallest), *seed).unwrap();
                effect.interval(1).0 > 0.0
            })
            .count();
        let share = seen as f64 / cases as f64;
        assert!((0.7..=0.9).contains(&share), "{share}");
    }

    #[test]
    fn schemes_of_one_model_stand_for_themselves() {
        let effect = Effect::of(&[("a", 1.0), ("a", 2.0), ("a", 3.0)], 1).unwrap();
        assert_eq!((effect.value, effect.freedom, effect.models.len()), (2.0, 2, 1));
        assert!(Effect::of(&[("a", 1.0)], 1).is_none());
        // More schemes of the same two models make nothing surer.
        let two = [("a", 1.0), ("b", 2.0)];
        let many: Vec<(&str, f64)> = two.iter().cycle().take(20).copied().collect();
        assert_eq!(Effect::of(&two, 1).unwrap().interval(1), Effect::of(&many, 1).unwrap().interval(1));
    }

    #[test]
    fn intervals_of_several_parts_are_wider() {
        let effect = Effect::of(&[("a", 1.0), ("b", 2.0), ("c", 2.5), ("d", 1.5)], 1).unwrap();
        let (one, six) = (effect.interval(1), effect.interval(6));
        assert!(six.0 < one.0 && one.0 < effect.value && effect.value < one.1 && one.1 < six.1);
    }

    #[test]
    fn correlations_have_their_interval() {
        let pairs: Vec<(&str, (f64, f64))> =
            (0..8).map(|i| ("a", (f64::from(i), -2.0 * f64::from(i) + f64::from(i % 2)))).collect();
        let found = Correlation::of(&pairs, 1).unwrap();
        assert!(found.value < -0.99 && found.interval.0 < found.value && found.interval.1 < -0.9);
        assert!(Correlation::of(&pairs[..3], 1).is_none());
        let level: Vec<_> = pairs.iter().map(|(model, (x, _))| (*model, (*x, 1.0))).collect();
        assert!(Correlation::of(&level, 1).is_none());
    }
}
