//! The curves of the laws: what each predicts from which quantities, with gradients.

use crate::law::{Quantity, Space};
use crate::observe::At;
use crate::solve::{Curve, nonnegative};
use std::collections::BTreeMap;

/// A quantity that an evaluation lacks, in words.
pub type Missing = String;

fn need(at: &At, quantity: Quantity) -> Result<f64, Missing> {
    let value = at.get(quantity).filter(|value| value.is_finite());
    value.ok_or_else(|| format!("{} ({})", quantity.symbol(), quantity.words()))
}

/// A law whose prediction, in the space of its fit, is a sum of constants times features.
#[derive(Clone, Debug, PartialEq)]
pub enum Features {
    /// ln a of each model, and -b times bits or their logarithm.
    Divergence {
        /// Models that have an `a`.
        models: Vec<String>,
        /// Bits as they are, or their logarithm.
        logarithm: bool,
    },
    /// Hats between knots, and an offset for each bit width but the greatest.
    BaseCurve {
        /// First knot.
        low: f64,
        /// Distance of knots.
        step: f64,
        /// Knots.
        knots: usize,
        /// Bit widths with offsets.
        offsets: Vec<i64>,
    },
    /// ln a, and the exponents of these quantities; logarithms less their means.
    Powers {
        /// Quantities with the mean of their logarithms and the name of their exponent.
        factors: Vec<(Quantity, f64, &'static str)>,
        /// Name of the factor before them.
        level: &'static str,
        /// Exponents are divided, not multiplied: `N^-alpha`.
        inverse: Vec<bool>,
    },
    /// L0, and one constant a group of tensors.
    Linearity {
        /// Groups.
        groups: Vec<String>,
        /// How tensors are grouped.
        by: Grouping,
    },
}

/// How tensors share a constant of the linear law.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Each has its own.
    Tensor,
    /// One a layer.
    Layer,
    /// One a role, over all layers.
    Role,
    /// One for all.
    All,
}

impl Grouping {
    /// The finest first.
    pub const ALL: [Self; 4] = [Self::Tensor, Self::Layer, Self::Role, Self::All];

    /// The group of the tensor `name`, a GGUF name.
    #[must_use]
    pub fn group(self, name: &str) -> String {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        match (self, layer) {
            (Self::Tensor, _) => name.to_owned(),
            (Self::Layer, Some((number, _))) => format!("blk.{number}"),
            (Self::Role, Some((_, role))) => role.trim_end_matches(".weight").to_owned(),
            (Self::Layer | Self::Role, None) => name.trim_end_matches(".weight").to_owned(),
            (Self::All, _) => "all tensors".to_owned(),
        }
    }

    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Tensor => "one constant a tensor",
            Self::Layer => "one constant a layer",
            Self::Role => "one constant a role of tensors",
            Self::All => "one constant for all tensors",
        }
    }

    /// Errors summed by group.
    #[must_use]
    pub fn sums(self, errors: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (tensor, error) in errors {
            *sums.entry(self.group(tensor)).or_insert(0.0) += error;
        }
        sums
    }
}

impl Features {
    /// Features at `at`.
    ///
    /// # Errors
    /// The quantity that is not known there.
    pub fn row(&self, at: &At) -> Result<Vec<f64>, Missing> {
        match self {
            Self::Divergence { models, logarithm } => {
                if !models.contains(&at.model) {
                    return Err(format!("a constant `a` of the model `{}`", at.model));
                }
                let bits = need(at, Quantity::Bits)?;
                let of_model = models.iter().map(|model| f64::from(u8::from(*model == at.model)));
                Ok(of_model.chain([-if *logarithm { bits.ln() } else { bits }]).collect())
            }
            Self::BaseCurve { low, step, knots, offsets } => {
                let place = (need(at, Quantity::TotalBits)? - low) / step;
                let width = need(at, Quantity::NominalBits)?;
                #[expect(clippy::cast_precision_loss, reason = "a number of knots")]
                let hats = (0..*knots).map(|knot| (1.0 - (place - knot as f64).abs()).max(0.0));
                #[expect(clippy::cast_possible_truncation, reason = "a bit width")]
                let width = width.round() as i64;
                Ok(hats.chain(offsets.iter().map(|bits| f64::from(u8::from(*bits == width)))).collect())
            }
            Self::Powers { factors, inverse, .. } => {
                let mut row = vec![1.0];
                for ((quantity, mean, _), inverse) in factors.iter().zip(inverse) {
                    let centered = need(at, *quantity)?.ln() - mean;
                    row.push(if *inverse { -centered } else { centered });
                }
                Ok(row)
            }
            Self::Linearity { groups, by } => {
                if at.errors.is_empty() {
                    let quantity = Quantity::TensorErrors;
                    return Err(format!("{} ({})", quantity.symbol(), quantity.words()));
                }
                let sums = by.sums(&at.errors);
                let of_group = groups.iter().map(|group| sums.get(group).copied().unwrap_or(0.0));
                Ok(std::iter::once(1.0).chain(of_group).collect())
            }
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Divergence { models, .. } => std::iter::once("b".to_owned())
                .chain(models.iter().map(|model| format!("a[{model}]")))
                .collect(),
            #[expect(clippy::cast_precision_loss, reason = "a number of knots")]
            Self::BaseCurve { low, step, knots, offsets } => (0..*knots)
                .map(|knot| format!("base[{:.2}]", low + step * knot as f64))
                .chain(offsets.iter().map(|bits| format!("offset[{bits} bits]")))
                .collect(),
            Self::Powers { factors, level, .. } => {
                factors.iter().map(|factor| factor.2.to_owned()).chain([(*level).to_owned()]).collect()
            }
            Self::Linearity { groups, .. } => std::iter::once("L0".to_owned())
                .chain(groups.iter().map(|group| format!("alpha[{group}]")))
                .collect(),
        }
    }

    /// The constants as the formula has them, in the order of the names.
    fn natural(&self, constants: &[f64]) -> Vec<f64> {
        match self {
            Self::Divergence { models, .. } => std::iter::once(constants[models.len()])
                .chain(constants[..models.len()].iter().map(|level| level.exp()))
                .collect(),
            Self::BaseCurve { .. } | Self::Linearity { .. } => constants.to_vec(),
            Self::Powers { factors, inverse, .. } => {
                let exponents = &constants[1..];
                let shift: f64 = factors
                    .iter()
                    .zip(inverse)
                    .zip(exponents)
                    .map(
                        |(((_, mean, _), inverse), exponent)| {
                            if *inverse { exponent * mean } else { -exponent * mean }
                        },
                    )
                    .sum();
                exponents.iter().copied().chain([(constants[0] + shift).exp()]).collect()
            }
        }
    }
}

/// L = E + A (N eff)^-α + B D^-β + C_T D^γD N^-γN exp(-P/γ), of which a law has some terms.
///
/// Fitted as ln L with the logarithms of E, A, B, C_T, γ and eff, and N and D over their geometric means, so that constants are
/// positive and hardly correlated.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Mean of ln N.
    pub log_params: f64,
    /// Mean of ln D; `None` leaves out the terms of D.
    pub log_tokens: Option<f64>,
    /// Quantities whose bits make N effective, with the name of their γ.
    pub effective: Vec<(Quantity, &'static str)>,
    /// Settings that have an eff.
    pub settings: Vec<String>,
    /// Whether bits add a loss.
    pub penalty: bool,
}

/// What a loss depends on at one point.
#[derive(Clone, Debug)]
pub struct Place {
    params: f64,
    tokens: f64,
    /// Bits of the effective quantities.
    effective: Vec<f64>,
    /// Number of the setting.
    setting: Option<usize>,
    bits: f64,
}

impl Loss {
    /// What the loss depends on at `at`.
    ///
    /// # Errors
    /// The quantity that is not known there.
    pub fn place(&self, at: &At) -> Result<Place, Missing> {
        let mut effective = Vec::new();
        for (quantity, _) in &self.effective {
            effective.push(need(at, *quantity)?);
        }
        let setting = at.setting();
        let number = self.settings.iter().position(|known| *known == setting);
        if !self.settings.is_empty() && number.is_none() && setting != "none" {
            return Err(format!("a constant `eff` of `{setting}`"));
        }
        Ok(Place {
            params: need(at, Quantity::Params)?.ln() - self.log_params,
            tokens: match self.log_tokens {
                Some(mean) => need(at, Quantity::Tokens)?.ln() - mean,
                None => 0.0,
            },
            effective,
            setting: number,
            bits: if self.penalty { need(at, Quantity::Bits)? } else { 0.0 },
        })
    }

    /// Number of constants.
    #[must_use]
    pub fn constants(&self) -> usize {
        let data = self.log_tokens.is_some();
        let penalty = if self.penalty { 3 + usize::from(data) } else { 0 };
        3 + 2 * usize::from(data) + self.effective.len() + self.settings.len() + penalty
    }

    /// ln L at `place`, and its gradient.
    pub fn value(&self, constants: &[f64], place: &Place, gradient: &mut [f64]) -> f64 {
        gradient.fill(0.0);
        let data = self.log_tokens.is_some();
        let first = if data { 5 } else { 3 };
        let settings = first + self.effective.len();
        let alpha = constants[2];
        let mut effective = place.params;
        for (i, bits) in place.effective.iter().enumerate() {
            let ratio = bits * (-constants[first + i]).exp();
            let lost = (-ratio).exp();
            effective += (-lost).ln_1p();
            gradient[first + i] = -lost * ratio / (1.0 - lost);
        }
        if let Some(setting) = place.setting {
            effective += constants[settings + setting];
            gradient[settings + setting] = 1.0;
        }
        let floor = constants[0].exp();
        let size = (constants[1] - alpha * effective).exp();
        let tokens = if data { (constants[3] - constants[4] * place.tokens).exp() } else { 0.0 };
        let penalty = settings + self.settings.len();
        let mut added = 0.0;
        if self.penalty {
            let last = constants.len() - 1;
            let ratio = place.bits * (-constants[last]).exp();
            let of_data = if data { constants[penalty + 2] * place.tokens } else { 0.0 };
            added = (constants[penalty] - constants[penalty + 1] * place.params + of_data - ratio).exp();
            gradient[last] = added * ratio;
            gradient[penalty] = added;
            gradient[penalty + 1] = -added * place.params;
            if data {
                gradient[penalty + 2] = added * place.tokens;
            }
        }
        for slope in &mut gradient[first..penalty] {
            *slope *= -alpha * size;
        }
        gradient[0] = floor;
        gradient[1] = size;
        gradient[2] = -size * effective;
        if data {
            gradient[3] = tokens;
            gradient[4] = -tokens * place.tokens;
        }
        let loss = floor + size + tokens + added;
        for slope in gradient.iter_mut() {
            *slope /= loss;
        }
        loss.ln()
    }

    /// Names of the constants, in their order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let data = self.log_tokens.is_some();
        let mut names: Vec<String> = ["E", "A", "alpha"].map(str::to_owned).to_vec();
        if data {
            names.extend(["B", "beta"].map(str::to_owned));
        }
        names.extend(self.effective.iter().map(|(_, name)| (*name).to_owned()));
        names.extend(self.settings.iter().map(|setting| format!("eff[{setting}]")));
        if self.penalty {
            names.extend(["C_T", "gamma_N"].map(str::to_owned));
            names.extend(data.then(|| "gamma_D".to_owned()));
            names.push("gamma".to_owned());
        }
        names
    }

    fn natural(&self, constants: &[f64]) -> Vec<f64> {
        let mut natural = constants.to_vec();
        natural[0] = constants[0].exp();
        natural[1] = (constants[1] + constants[2] * self.log_params).exp();
        let mut next = 3;
        if let Some(mean) = self.log_tokens {
            natural[3] = (constants[3] + constants[4] * mean).exp();
            next = 5;
        }
        let penalty = next + self.effective.len() + self.settings.len();
        for place in next..penalty {
            natural[place] = constants[place].exp();
        }
        if self.penalty {
            let of_data = self.log_tokens.map_or(0.0, |mean| constants[penalty + 2] * mean);
            natural[penalty] =
                (constants[penalty] + constants[penalty + 1] * self.log_params - of_data).exp();
            let last = constants.len() - 1;
            natural[last] = constants[last].exp();
        }
        natural
    }

    /// Where searches start: over a grid of the constants that are not linear, the best others (variable projection, Golub and
    /// Pereyra 1973), the likeliest first.
    #[must_use]
    pub fn starts(&self, places: &[Place], losses: &[f64]) -> Vec<Vec<f64>> {
        const EXPONENTS: [f64; 4] = [0.15, 0.3, 0.5, 0.8];
        const GAMMAS: [f64; 3] = [0.6, 1.5, 3.0];
        const MOST: usize = 6;
        let data = self.log_tokens.is_some();
        let mut axes: Vec<&[f64]> = vec![&EXPONENTS];
        if data {
            axes.push(&EXPONENTS);
        }
        axes.extend(self.effective.iter().map(|_| &GAMMAS[..]));
        if self.penalty {
            axes.push(&[0.3]);
            if data {
                axes.push(&[0.3]);
            }
            axes.push(&GAMMAS);
        }
        let total: usize = axes.iter().map(|axis| axis.len()).product();
        let mut found: Vec<(f64, Vec<f64>)> = Vec::with_capacity(total);
        for number in 0..total {
            let mut rest = number;
            let choice: Vec<f64> = axes
                .iter()
                .map(|axis| {
                    let value = axis[rest % axis.len()];
                    rest /= axis.len();
                    value
                })
                .collect();
            found.push(self.start(&choice, places, losses));
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.truncate(MOST);
        found.into_iter().map(|(_, start)| start).collect()
    }

    /// The start at one choice of the constants that are not linear, with its sum of squared relative residuals.
    fn start(&self, choice: &[f64], places: &[Place], losses: &[f64]) -> (f64, Vec<f64>) {
        let data = self.log_tokens.is_some();
        let alpha = choice[0];
        let beta = if data { choice[1] } else { 0.0 };
        let gammas = &choice[1 + usize::from(data)..][..self.effective.len()];
        let of_bits = &choice[1 + usize::from(data) + self.effective.len()..];
        let columns = 2 + usize::from(data) + usize::from(self.penalty);
        let rows: Vec<Vec<f64>> = places
            .iter()
            .zip(losses)
            .map(|(place, loss)| {
                let lost = place.effective.iter().zip(gammas);
                let effective: f64 = lost.map(|(bits, gamma)| (-(-bits / gamma).exp()).ln_1p()).sum();
                let mut row = vec![1.0, (-alpha * (place.params + effective)).exp()];
                if data {
                    row.push((-beta * place.tokens).exp());
                }
                if let [params, tokens @ .., gamma] = of_bits {
                    let tokens = tokens.first().map_or(0.0, |exponent| exponent * place.tokens);
                    row.push((tokens - params * place.params - place.bits / gamma).exp());
                }
                row.iter_mut().for_each(|feature| *feature /= loss);
                row
            })
            .collect();
        let mut gram = vec![0.0; columns * columns];
        let mut target = vec![0.0; columns];
        for row in &rows {
            for i in 0..columns {
                target[i] += row[i];
                for j in 0..columns {
                    gram[i * columns + j] += row[i] * row[j];
                }
            }
        }
        let scales = nonnegative(&gram, &target);
        let squares = rows
            .iter()
            .map(|row| (1.0 - row.iter().zip(&scales).map(|(a, b)| a * b).sum::<f64>()).powi(2))
            .sum();
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let log = |scale: f64| scale.max(1e-3 * least).ln();
        let mut start = vec![log(scales[0]), log(scales[1]), alpha];
        if data {
            start.extend([log(scales[2]), beta]);
        }
        start.extend(gammas.iter().map(|gamma| gamma.ln()));
        start.extend(self.settings.iter().map(|_| 0.0));
        if let [params, tokens @ .., gamma] = of_bits {
            start.extend([log(scales[columns - 1]), *params]);
            start.extend(tokens);
            start.push(gamma.ln());
        }
        (squares, start)
    }
}

/// A loss at its points.
pub struct LossCurve<'a> {
    /// The loss.
    pub loss: &'a Loss,
    /// Where it was measured.
    pub places: &'a [Place],
}

impl Curve for LossCurve<'_> {
    fn value(&self, constants: &[f64], point: usize, gradient: &mut [f64]) -> f64 {
        self.loss.value(constants, &self.places[point], gradient)
    }
}

/// The curve of a law.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A sum of constants times features.
    Features(Features),
    /// A loss.
    Loss(Loss),
}

impl Shape {
    /// Names of the constants, as reported.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Features(features) => features.names(),
            Self::Loss(loss) => loss.names(),
        }
    }

    /// The constants as reported, from those of the solver.
    #[must_use]
    pub fn natural(&self, constants: &[f64]) -> Vec<f64> {
        match self {
            Self::Features(features) => features.natural(constants),
            Self::Loss(loss) => loss.natural(constants),
        }
    }

    /// The measured quantity that `constants` predict at `at`.
    ///
    /// # Errors
    /// The quantity that is not known there.
    pub fn predict(&self, constants: &[f64], at: &At, space: Space) -> Result<f64, Missing> {
        let value = match self {
            Self::Features(features) => {
                features.row(at)?.iter().zip(constants).map(|(feature, constant)| feature * constant).sum()
            }
            Self::Loss(loss) => loss.value(constants, &loss.place(at)?, &mut vec![0.0; constants.len()]),
        };
        Ok(match space {
            Space::LogDivergence | Space::LogLoss | Space::LogDifference => f64::exp(value),
            Space::Loss | Space::RelativeDivergence => value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_those_of_differences() {
        let loss = Loss {
            log_params: 18.0,
            log_tokens: Some(23.0),
            effective: vec![(Quantity::Bits, "gamma_w"), (Quantity::ActivationBits, "gamma_a")],
            settings: vec!["a".into(), "b".into()],
            penalty: true,
        };
        let constants = [0.5, -0.4, 0.4, -0.2, 0.3, 0.9, 0.7, -0.1, -0.3, -1.0, 0.3, 0.5, 0.2];
        assert_eq!(loss.constants(), constants.len());
        let at = At {
            scheme: "b".into(),
            params: Some(2e8),
            tokens: Some(3e9),
            bits: Some(3.5),
            activation_bits: Some(4.0),
            ..At::default()
        };
        let place = loss.place(&at).unwrap();
        let (mut gradient, mut unused) = ([0.0; 13], [0.0; 13]);
        let _ = loss.value(&constants, &place, &mut gradient);
        for k in 0..constants.len() {
            let mut moved = constants;
            moved[k] += 1e-6;
            let above = loss.value(&moved, &place, &mut unused);
            moved[k] -= 2e-6;
            let slope = (above - loss.value(&moved, &place, &mut unused)) / 2e-6;
            assert!((gradient[k] - slope).abs() < 1e-8, "constant {k}: {} {slope}", gradient[k]);
        }
        assert_eq!(loss.names().len(), constants.len());
    }

    #[test]
    fn tensors_have_a_layer_and_a_role() {
        let name = "blk.12.attn_q.weight";
        assert_eq!(Grouping::Layer.group(name), "blk.12");
        assert_eq!(Grouping::Role.group(name), "attn_q");
        assert_eq!(Grouping::Role.group("output.weight"), "output");
        let sums =
            Grouping::Role.sums(&[("blk.0.a.weight".into(), 1.0), ("blk.1.a.weight".into(), 2.0)].into());
        assert_eq!(sums, [("a".to_owned(), 3.0)].into());
    }
}
