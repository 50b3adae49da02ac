//! What a fit reports, and what it predicts within the range of its data.

use crate::advise::ParetoPoint;
use crate::law::{Law, Quantity, Space};
use crate::observe::At;
use crate::shape::Shape;
use crate::solve::central;
use serde::{Serialize, Serializer};

/// Choices of a fit.
#[derive(Clone, Debug)]
pub struct FitOptions {
    /// Resamples for intervals; 0 leaves them out.
    pub bootstrap: usize,
    /// Seed of the resampling.
    pub seed: u64,
    /// Only these laws; empty: all.
    pub laws: Vec<String>,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { bootstrap: 500, seed: 1, laws: Vec::new() }
    }
}

/// A constant.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Name in the law's form.
    pub name: String,
    /// Value.
    pub value: f64,
    /// Lower end of the 95 % bootstrap interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// The value that the law's source has for its setup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<f64>,
}

/// A point that was fitted.
#[derive(Clone, Debug, Serialize)]
pub struct Residual {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Abscissa: bits a weight, or log2 of total bits or of parameters, or the sum of tensor errors.
    pub x: f64,
    /// Measured value.
    pub measured: f64,
    /// Value of the law.
    pub fitted: f64,
}

/// The range of a quantity over the points of a fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// The quantity.
    #[serde(serialize_with = "symbol")]
    pub quantity: Quantity,
    /// Least value.
    pub low: f64,
    /// Greatest value.
    pub high: f64,
}

fn symbol<S: Serializer>(quantity: &Quantity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(quantity.symbol())
}

/// The curve behind a fit, with its constants as the solver has them.
#[derive(Clone, Debug)]
pub(crate) struct Fitted {
    pub shape: Shape,
    pub space: Space,
    pub constants: Vec<f64>,
    pub draws: Vec<Vec<f64>>,
}

/// A fitted law.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// Name of the law.
    pub law: String,
    /// Scheme family; `none` for unquantized models, `all` for laws over all schemes.
    pub family: String,
    /// The form, in words.
    pub form: String,
    /// Constants.
    pub estimates: Vec<Estimate>,
    /// R², in the space of the fit.
    pub r_squared: f64,
    /// AIC for normal errors, in the space of the fit.
    pub aic: f64,
    /// AIC corrected for few points; `None` where there are too few for it.
    pub aicc: Option<f64>,
    /// Leave-one-out error, in the space of the fit.
    pub leave_one_out: Option<f64>,
    /// Error of predicting each model's points from the other models', in the space of the fit.
    pub leave_one_model_out: Option<f64>,
    /// Condition number of the features at the constants, scaled to unit length: above some hundreds, constants trade off.
    pub condition: f64,
    /// The space of the fit: `ln KLD`, `nll`, `ln nll`, ...
    pub space: &'static str,
    /// How it was fitted.
    pub method: &'static str,
    /// Least and greatest abscissa: the law says nothing beyond.
    pub range: (f64, f64),
    /// Range of every quantity that the law depends on: [`Fit::predict`] refuses beyond.
    pub ranges: Vec<Range>,
    /// What was left out and why.
    pub notes: Vec<String>,
    /// Points and residuals.
    pub points: Vec<Residual>,
    /// The curve itself.
    #[serde(skip)]
    pub(crate) fitted: Fitted,
}

/// What a law predicts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Value, in the unit of what was measured.
    pub value: f64,
    /// Lower end of the 95 % bootstrap interval of the curve (not of single measurements).
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

/// Why nothing is predicted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PredictError {
    /// Beyond the data.
    #[error(
        "{law} was fitted to {quantity} from {low} to {high} and says nothing of {value}: measure there, and fit again"
    )]
    Beyond {
        /// Law.
        law: String,
        /// Symbol of the quantity.
        quantity: &'static str,
        /// Its value.
        value: f64,
        /// Least value of the data.
        low: f64,
        /// Greatest value of the data.
        high: f64,
    },
    /// A quantity of the law is not given, or a model or scheme has no constant.
    #[error("{law} needs {what}, which is not known here")]
    Missing {
        /// Law.
        law: String,
        /// What.
        what: String,
    },
}

/// By how much a value may be beyond a range through rounding.
const ROUNDING: f64 = 1e-9;

impl Fit {
    /// The law's prediction at `at`, with the interval of the curve.
    ///
    /// # Errors
    /// A quantity beyond the range of the data, or one that is not given.
    pub fn predict(&self, at: &At) -> Result<Prediction, PredictError> {
        for Range { quantity, low, high } in &self.ranges {
            let Some(value) = at.get(*quantity) else { continue };
            let slack = ROUNDING * low.abs().max(high.abs());
            if value < low - slack || value > high + slack {
                return Err(PredictError::Beyond {
                    law: self.law.clone(),
                    quantity: quantity.symbol(),
                    value,
                    low: *low,
                    high: *high,
                });
            }
        }
        let Fitted { shape, space, constants, draws } = &self.fitted;
        let evaluate = |constants: &[f64]| {
            shape
                .predict(constants, at, *space)
                .map_err(|what| PredictError::Missing { law: self.law.clone(), what })
        };
        let value = evaluate(constants)?;
        let drawn = draws.iter().map(|draw| evaluate(draw)).collect::<Result<Vec<_>, _>>()?;
        let ends = (!drawn.is_empty()).then(|| central(&drawn));
        Ok(Prediction { value, low: ends.map(|ends| ends.0), high: ends.map(|ends| ends.1) })
    }

    /// The estimate of the constant `name`.
    #[must_use]
    pub fn estimate(&self, name: &str) -> Option<&Estimate> {
        self.estimates.iter().find(|estimate| estimate.name == name)
    }

    /// The declaration of the law.
    #[must_use]
    pub fn declaration(&self) -> Option<&'static Law> {
        Law::named(&self.law)
    }
}

/// Two forms on the same points.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Scheme family.
    pub family: String,
    /// The form with the lower AIC.
    pub better: String,
    /// The other.
    pub worse: String,
    /// By how much its AIC (corrected for few points where that is defined for both) is higher: 2 is little, 10 is decisive.
    pub aic_difference: f64,
    /// Leave-one-out errors of the better and of the other.
    pub leave_one_out: Option<(f64, f64)>,
    /// Points of both.
    pub points: usize,
}

/// Every pair of `fits` that has the same points in the same space.
pub(crate) fn compare(fits: &[Fit]) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for (index, first) in fits.iter().enumerate() {
        for second in &fits[index + 1..] {
            let same = |a: &Residual, b: &Residual| {
                a.model == b.model && a.scheme == b.scheme && a.measured == b.measured
            };
            let paired = first.family == second.family
                && first.space == second.space
                && first.points.len() == second.points.len()
                && first.points.iter().zip(&second.points).all(|(a, b)| same(a, b));
            if !paired || first.law == second.law {
                continue;
            }
            let (a, b) = match (first.aicc, second.aicc) {
                (Some(a), Some(b)) => (a, b),
                _ => (first.aic, second.aic),
            };
            let (better, worse) = if a <= b { (first, second) } else { (second, first) };
            comparisons.push(Comparison {
                family: first.family.clone(),
                better: better.law.clone(),
                worse: worse.law.clone(),
                aic_difference: (a - b).abs(),
                leave_one_out: better.leave_one_out.zip(worse.leave_one_out),
                points: first.points.len(),
            });
        }
    }
    comparisons
}

/// A law that was not fitted.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    /// Law.
    pub law: String,
    /// Scheme family.
    pub family: String,
    /// Why.
    pub reason: String,
}

/// Everything that was fitted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fits {
    /// Fitted laws.
    pub fits: Vec<Fit>,
    /// Forms compared on the same points.
    pub comparisons: Vec<Comparison>,
    /// Laws that could not be fitted, with the reason.
    pub refusals: Vec<Refusal>,
    /// Runs that no other beats in both size and quality.
    pub pareto: Vec<ParetoPoint>,
    /// Divergence of a file that should be equal to the unquantized model, where there is one.
    pub noise_floor: Option<f64>,
}
