//! Which observations each law is fitted to, and how.

use crate::advise::pareto;
use crate::fit::{Estimate, Fit, FitOptions, Fits, Fitted, Range, Refusal, Residual, compare};
use crate::law::{Law, Quantity, Space};
use crate::observe::{At, Observation, observations};
use crate::shape::{Features, Grouping, Loss, LossCurve, Place, Shape};
use crate::solve::{Huber, Linear, MAX_CONDITION, NonNegative, Resampling, Solution, central, condition};
use kbit_results::Measurement;

/// Divergences below this many times the noise floor are left out of fits.
const FLOOR_FACTOR: f64 = 2.0;
/// Knots of the base curve at most.
const MOST_KNOTS: usize = 4;
/// Constants of settings that a law has at most: every resample solves a system of them.
const MOST_SETTINGS: usize = 64;
/// Where Huber's loss of log residuals becomes absolute, unless the noise is greater: Hoffmann et al., arXiv 2203.15556, section 3.3.
const DELTA: f64 = 1e-3;
/// Name of the scheme that leaves models as they are.
const UNQUANTIZED: &str = "none";
/// True bits a weight of one model that differ by less than this share are of one width.
const ONE_WIDTH: f64 = 0.01;
/// Logarithms that differ by less are of one value.
const SAME: f64 = 1e-6;

/// Fits every law to `measurements`.
#[must_use]
pub fn fit_all(measurements: &[Measurement], options: &FitOptions) -> Fits {
    Fits { pareto: pareto(measurements), ..fit_observations(&observations(measurements), options) }
}

/// Fits every law to `observations`.
#[must_use]
pub fn fit_observations(observations: &[Observation], options: &FitOptions) -> Fits {
    let mut fitter = Fitter { options, fits: Fits::default() };
    fitter.fits.noise_floor = noise_floor(observations);
    let mut families: Vec<&str> = observations.iter().map(|seen| seen.family.as_str()).collect();
    families.sort_unstable();
    families.dedup();
    families.retain(|family| *family != "none");
    for family in &families {
        fitter.divergence(family, observations);
        fitter.base_curve(family, observations);
        fitter.added_loss(family, observations);
        for law in ["kumar-post-training", "kumar-effective", "frantar"] {
            fitter.quantized_loss(law, family, observations);
        }
    }
    if families.is_empty() {
        // Arithmetic alone may have varied.
        fitter.quantized_loss("kumar-effective", "none", observations);
    }
    fitter.plain_power(observations);
    fitter.unquantized_loss(observations);
    fitter.linearity(observations);
    fitter.fits.comparisons = compare(&fitter.fits.fits);
    fitter.fits
}

/// The greatest divergence among files of at least as many bits as the source has, and of models compared with themselves.
fn noise_floor(observations: &[Observation]) -> Option<f64> {
    let lossless = observations.iter().filter(|seen| {
        seen.first
            && (seen.family == "none"
                || matches!(seen.scheme_id.as_str(), "org.kbit.ggml.f32/1" | "org.kbit.ggml.bf16/1"))
    });
    lossless.filter_map(|seen| seen.divergence).map(f64::abs).reduce(f64::max)
}

/// A law's points: where, what was measured, and the abscissa.
struct Points<'a> {
    at: Vec<&'a At>,
    measured: Vec<f64>,
    x: Vec<f64>,
    quantities: Vec<Quantity>,
    notes: Vec<String>,
}

impl<'a> Points<'a> {
    fn new(pairs: Vec<(&'a At, f64)>, x: impl Fn(&At) -> f64, quantities: &[Quantity]) -> Self {
        Self {
            x: pairs.iter().map(|(at, _)| x(at)).collect(),
            measured: pairs.iter().map(|(_, value)| *value).collect(),
            at: pairs.into_iter().map(|(at, _)| at).collect(),
            quantities: quantities.to_vec(),
            notes: Vec::new(),
        }
    }

    fn models(&self) -> Vec<String> {
        let mut models: Vec<String> = self.at.iter().map(|at| at.model.clone()).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    fn groups(&self) -> Vec<usize> {
        let models = self.models();
        self.at.iter().map(|at| models.binary_search(&at.model).unwrap_or(0)).collect()
    }

    /// True where all points have the quantity, and it is not the same everywhere.
    fn varies(&self, quantity: Quantity) -> bool {
        let values: Option<Vec<f64>> = self.at.iter().map(|at| at.get(quantity)).collect();
        values.is_some_and(|values| {
            values.iter().any(|value| (value.ln() - values[0].ln()).abs() > SAME)
                && values.iter().all(|value| *value > 0.0)
        })
    }

    /// True where some quantized model has several bit widths. Between models P differs a little under one scheme, by the shares of
    /// their tensors; it then stands for N.
    fn has_widths(&self) -> bool {
        self.models().iter().any(|model| {
            let bits = self
                .at
                .iter()
                .filter(|at| at.model == *model && at.scheme != UNQUANTIZED)
                .filter_map(|at| at.bits);
            let (low, high) =
                bits.fold((f64::INFINITY, 0.0f64), |(low, high), bits| (low.min(bits), high.max(bits)));
            high > low * (1.0 + ONE_WIDTH)
        })
    }

    fn mean_log(&self, quantity: Quantity) -> f64 {
        let logs: Vec<f64> = self.at.iter().filter_map(|at| at.get(quantity)).map(f64::ln).collect();
        mean(&logs)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of points")]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Root mean square of the differences.
fn root_mean_square(a: &[f64], b: &[f64]) -> f64 {
    let squares: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).collect();
    mean(&squares).sqrt()
}

/// The measured value in the space of the fit.
fn in_space(space: Space, value: f64) -> f64 {
    match space {
        Space::LogDivergence | Space::LogLoss | Space::LogDifference => value.ln(),
        Space::Loss => value,
        Space::RelativeDivergence => 1.0,
    }
}

struct Fitter<'a> {
    options: &'a FitOptions,
    fits: Fits,
}

impl Fitter<'_> {
    /// The law, where it is asked for.
    fn wants(&self, name: &str) -> Option<&'static Law> {
        let wanted = self.options.laws.is_empty() || self.options.laws.iter().any(|wanted| wanted == name);
        Law::named(name).filter(|_| wanted)
    }

    /// Refuses; the same refusal for every family counts once, for all.
    fn refuse(&mut self, law: &str, family: &str, reason: impl Into<String>) {
        let reason = reason.into();
        let known = self.fits.refusals.iter_mut().find(|known| known.law == law && known.reason == reason);
        match known {
            Some(known) => "all".clone_into(&mut known.family),
            None => {
                self.fits.refusals.push(Refusal { law: law.to_owned(), family: family.to_owned(), reason });
            }
        }
    }

    /// Refuses a problem with too few points; true where it was refused.
    fn too_few(&mut self, law: &str, family: &str, points: usize, constants: usize) -> bool {
        let refused = points <= constants;
        if refused {
            self.refuse(law, family, format!("{points} points cannot determine {constants} constants and an error; measure more settings"));
        }
        refused
    }

    /// Solves a law that is linear in its space and reports it; false where its features are collinear.
    fn linear(&mut self, law: &'static Law, family: &str, features: Features, points: Points<'_>) -> bool {
        let rows = points.at.iter().map(|at| features.row(at)).collect::<Result<Vec<_>, _>>();
        let Ok(rows) = rows else { return false };
        let values: Vec<f64> = points.measured.iter().map(|value| in_space(law.space, *value)).collect();
        let problem = Linear { rows, values };
        let groups = points.groups();
        let resampling =
            Resampling { draws: self.options.bootstrap, seed: self.options.seed, groups: &groups };
        let Some(solution) = problem.solve(&resampling) else { return false };
        let fitted = problem.rows.iter().map(|row| Linear::predict(&solution.constants, row)).collect();
        self.report(law, family, Shape::Features(features), points, fitted, solution);
        true
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of points")]
    fn report(
        &mut self,
        law: &'static Law,
        family: &str,
        shape: Shape,
        points: Points<'_>,
        fitted: Vec<f64>,
        solution: Solution,
    ) {
        let space = law.space;
        let (n, k) = (points.measured.len() as f64, solution.constants.len() as f64);
        let values: Vec<f64> = points.measured.iter().map(|value| in_space(space, *value)).collect();
        let centre = if space == Space::RelativeDivergence { 0.0 } else { mean(&values) };
        let total: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
        let residual: f64 = values.iter().zip(&fitted).map(|(value, fitted)| (value - fitted).powi(2)).sum();
        // One more constant than those of the law: the variance.
        let parameters = k + 1.0;
        let aic = n * (residual.max(1e-300) / n).ln() + 2.0 * parameters;
        let room = n - parameters - 1.0;
        let natural = shape.natural(&solution.constants);
        let drawn: Vec<Vec<f64>> = solution.draws.iter().map(|draw| shape.natural(draw)).collect();
        let estimates = shape.names().into_iter().enumerate().map(|(index, name)| {
            let sample: Vec<f64> = drawn.iter().map(|draw| draw[index]).collect();
            let ends = (!sample.is_empty()).then(|| central(&sample));
            Estimate {
                value: natural[index],
                low: ends.map(|ends| ends.0),
                high: ends.map(|ends| ends.1),
                published: law.published(&name),
                name,
            }
        });
        let estimates: Vec<Estimate> = estimates.collect();
        let endless = |estimate: &&Estimate| {
            let ends = [Some(estimate.value), estimate.low, estimate.high];
            !ends.into_iter().flatten().all(f64::is_finite)
        };
        let undetermined: Vec<&str> =
            estimates.iter().filter(endless).map(|estimate| estimate.name.as_str()).collect();
        if !undetermined.is_empty() {
            let reason = format!(
                "the points do not determine {}: the interval is infinite; measure more values of what it depends on, further apart",
                undetermined.join(", ")
            );
            self.refuse(law.name, family, reason);
            return;
        }
        let natural_fit = |index: usize| match space {
            Space::LogDivergence | Space::LogLoss | Space::LogDifference => fitted[index].exp(),
            Space::Loss => fitted[index],
            Space::RelativeDivergence => fitted[index] * points.measured[index],
        };
        let residuals: Vec<Residual> = (0..points.at.len())
            .map(|index| Residual {
                model: points.at[index].model.clone(),
                scheme: points.at[index].setting(),
                x: points.x[index],
                measured: points.measured[index],
                fitted: natural_fit(index),
            })
            .collect();
        let range = residuals.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), point| {
            (low.min(point.x), high.max(point.x))
        });
        let ranges = points.quantities.iter().filter_map(|quantity| {
            let values: Vec<f64> = points.at.iter().filter_map(|at| at.get(*quantity)).collect();
            let low = values.iter().copied().reduce(f64::min)?;
            Some(Range { quantity: *quantity, low, high: values.iter().copied().fold(low, f64::max) })
        });
        self.fits.fits.push(Fit {
            law: law.name.to_owned(),
            family: family.to_owned(),
            form: law.formula.to_owned(),
            estimates,
            r_squared: if total > 0.0 { 1.0 - residual / total } else { 0.0 },
            aic,
            aicc: (room > 0.0).then(|| aic + 2.0 * parameters * (parameters + 1.0) / room),
            leave_one_out: solution.left_out.map(|predicted| root_mean_square(&values, &predicted)),
            leave_one_model_out: solution
                .group_left_out
                .map(|predicted| root_mean_square(&values, &predicted)),
            condition: solution.condition,
            space: space.words(),
            method: law.method,
            range,
            ranges: ranges.collect(),
            notes: points.notes,
            points: residuals,
            fitted: Fitted { shape, space, constants: solution.constants, draws: solution.draws },
        });
    }

    fn divergence(&mut self, family: &str, observations: &[Observation]) {
        let floor = self.fits.noise_floor.unwrap_or(0.0) * FLOOR_FACTOR;
        let measured: Vec<(&At, f64)> = observations
            .iter()
            .filter(|seen| seen.first && seen.family == family)
            .filter_map(|seen| Some((&seen.at, seen.divergence?)))
            .collect();
        let usable: Vec<(&At, f64)> =
            measured.iter().copied().filter(|(_, divergence)| *divergence > floor).collect();
        let left_out = measured.len() - usable.len();
        for (name, logarithm) in [("exponential", false), ("power", true)] {
            let Some(law) = self.wants(name) else { continue };
            let mut points = Points::new(usable.clone(), |at| at.bits.unwrap_or(f64::NAN), &[Quantity::Bits]);
            let models = points.models();
            if self.too_few(name, family, usable.len(), models.len() + 1) {
                continue;
            }
            if left_out > 0 {
                points.notes.push(format!(
                    "{left_out} of {} points are at the noise floor (KLD of at most {floor:.2e}) and were left out",
                    measured.len()
                ));
            }
            if !self.linear(law, family, Features::Divergence { models, logarithm }, points) {
                self.refuse(
                    name,
                    family,
                    "all points have nearly the same bits a weight; measure other bit widths",
                );
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "places of knots")]
    fn base_curve(&mut self, family: &str, observations: &[Observation]) {
        let Some(law) = self.wants("base-curve") else { return };
        #[expect(clippy::cast_possible_truncation, reason = "a bit width")]
        let width = |at: &At| at.nominal_bits.map(|bits| bits.round() as i64);
        let usable: Vec<(&At, f64)> = observations
            .iter()
            .filter(|seen| seen.first && (seen.family == "none" || seen.family == family))
            .filter(|seen| width(&seen.at).is_some() && seen.at.total_bits.is_some())
            .filter_map(|seen| Some((&seen.at, seen.loss?)))
            .collect();
        let mut points = Points::new(
            usable,
            |at| at.total_bits.map_or(f64::NAN, f64::log2),
            &[Quantity::TotalBits, Quantity::NominalBits],
        );
        let mut widths: Vec<i64> = points.at.iter().filter_map(|at| width(at)).collect();
        widths.sort_unstable();
        widths.dedup();
        let models = points.models();
        if models.len() < 2 || widths.len() < 2 {
            let reason =
                format!("{} models and {} bit widths; it takes two of each", models.len(), widths.len());
            self.refuse(law.name, family, reason);
            return;
        }
        let low = points.x.iter().copied().fold(f64::INFINITY, f64::min);
        let high = points.x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let knots = models.len().clamp(2, MOST_KNOTS);
        // The greatest width is the base; the others have offsets against it.
        let Some(reference) = widths.pop() else { return };
        if self.too_few(law.name, family, points.at.len(), knots + widths.len()) {
            return;
        }
        points.notes.push(format!("offsets are against {reference} bits"));
        let step = (high - low) / (knots - 1) as f64;
        let features = Features::BaseCurve { low, step, knots, offsets: widths };
        if !self.linear(law, family, features, points) {
            self.refuse(law.name, family, "sizes and bit widths go together, so that curve and offsets cannot be told apart; measure more models");
        }
    }

    fn plain_power(&mut self, observations: &[Observation]) {
        let Some(law) = self.wants("plain-power") else { return };
        let family = "none";
        let log_params = |at: &At| at.params.map_or(f64::NAN, f64::log2);
        let mut points = Points::new(losses(observations, "none", false), log_params, &[]);
        let factors = [
            (Quantity::Params, "exponent of N"),
            (Quantity::Tokens, "exponent of D"),
            (Quantity::Flops, "exponent of C"),
        ];
        let factors: Vec<(Quantity, f64, &'static str)> = factors
            .into_iter()
            .filter(|(quantity, _)| points.varies(*quantity))
            .map(|(quantity, name)| (quantity, points.mean_log(quantity), name))
            .collect();
        let powers = |factors: &[(Quantity, f64, &'static str)]| Features::Powers {
            inverse: vec![false; factors.len()],
            factors: factors.to_vec(),
            level: "a",
        };
        let conditioned = |factors: &[(Quantity, f64, &'static str)]| {
            let features = powers(factors);
            let rows: Result<Vec<_>, _> = points.at.iter().map(|at| features.row(at)).collect();
            rows.map_or(f64::INFINITY, |rows| condition(&rows))
        };
        let mut chosen = factors.clone();
        let mut note = None;
        let whole = conditioned(&factors);
        if factors.len() == 3 && whole > MAX_CONDITION {
            // Two of the three: N and D before the pairs with C, which is made from them.
            let pairs = [[0, 1], [0, 2], [1, 2]].map(|pair| pair.map(|index| factors[index]).to_vec());
            let reason = format!(
                "log C is a sum of log N and log D in these models (condition number {whole:.1e}), so C says nothing new and was left out"
            );
            chosen = pairs
                .iter()
                .find(|pair| conditioned(pair) <= MAX_CONDITION)
                .cloned()
                .unwrap_or_else(|| pairs[0].clone());
            note = Some(reason.clone());
            self.refuse("plain-power in N, D and C", family, reason);
        }
        if chosen.is_empty() {
            self.refuse(
                law.name,
                family,
                "it takes unquantized models of different sizes; measure more models",
            );
            return;
        }
        if self.too_few(law.name, family, points.at.len(), chosen.len() + 1) {
            return;
        }
        points.notes.extend(note);
        points.quantities = chosen.iter().map(|factor| factor.0).collect();
        if !self.linear(law, family, powers(&chosen), points) {
            let reason = "N and D go together in these models; measure models trained on other amounts";
            self.refuse(law.name, family, reason);
        }
    }

    fn added_loss(&mut self, family: &str, observations: &[Observation]) {
        let Some(law) = self.wants("ouyang") else { return };
        let measured: Vec<(&At, f64)> = observations
            .iter()
            .filter(|seen| seen.first && seen.family == family)
            .filter_map(|seen| Some((&seen.at, seen.added?)))
            .collect();
        let usable: Vec<(&At, f64)> = measured.iter().copied().filter(|(_, added)| *added > 0.0).collect();
        let left_out = measured.len() - usable.len();
        let mut points =
            Points::new(usable, |at| at.bits.unwrap_or(f64::NAN), &[Quantity::Params, Quantity::Bits]);
        if !points.at.is_empty() && !points.has_widths() {
            let reason = "every model has one bit width, so that gamma, the exponent of P, cannot be told from k: its interval would be infinite; measure other bit widths";
            self.refuse(law.name, family, reason);
            return;
        }
        let all = [(Quantity::Tokens, "beta"), (Quantity::Params, "alpha"), (Quantity::Bits, "gamma")];
        let factors: Vec<(Quantity, f64, &'static str)> = all
            .into_iter()
            .filter(|(quantity, _)| points.varies(*quantity))
            .map(|(quantity, name)| (quantity, points.mean_log(quantity), name))
            .collect();
        if factors.len() < 2 {
            let reason = "it takes quantized models of different N (or D) and P beside their unquantized ones; measure more of them";
            self.refuse(law.name, family, reason);
            return;
        }
        if self.too_few(law.name, family, points.at.len(), factors.len() + 1) {
            return;
        }
        if left_out > 0 {
            points
                .notes
                .push(format!("{left_out} of {} points lost nothing and were left out", measured.len()));
        }
        for (quantity, name) in all {
            if !factors.iter().any(|factor| factor.0 == quantity) {
                let symbol = quantity.symbol();
                points.notes.push(format!("{symbol} is one value or not known: its {name} was left out"));
            }
        }
        points.quantities = factors.iter().map(|factor| factor.0).collect();
        let inverse = factors.iter().map(|factor| factor.0 != Quantity::Tokens).collect();
        let features = Features::Powers { factors, level: "k", inverse };
        if !self.linear(law, family, features, points) {
            let reason = "N, D and P go together in these models; measure others";
            self.refuse(law.name, family, reason);
        }
    }

    fn unquantized_loss(&mut self, observations: &[Observation]) {
        let Some(law) = self.wants("chinchilla") else { return };
        let points = Points::new(
            losses(observations, "none", false),
            |at| at.params.map_or(f64::NAN, f64::log2),
            &[Quantity::Params, Quantity::Tokens],
        );
        self.loss(law, "none", points, |_| {});
    }

    /// Laws of the loss of quantized and unquantized models together.
    fn quantized_loss(&mut self, name: &str, family: &str, observations: &[Observation]) {
        let Some(law) = self.wants(name) else { return };
        let every_arithmetic = name != "kumar-post-training";
        let mut usable = losses(observations, "none", every_arithmetic);
        if family != "none" {
            usable.extend(losses(observations, family, every_arithmetic));
        }
        let mut quantities = law.needs.to_vec();
        quantities.push(Quantity::Tokens);
        let points = Points::new(usable, |at| at.bits.unwrap_or(f64::NAN), &quantities);
        match name {
            "kumar-post-training" => {
                if !points.varies(Quantity::Bits) {
                    self.refuse(name, family, "all points have the same bits a weight; measure other widths");
                    return;
                }
                if !points.has_widths() {
                    let reason = "every quantized model has one bit width, so that gamma cannot be told from C_T: their intervals would be infinite; measure other bit widths";
                    self.refuse(name, family, reason);
                    return;
                }
                self.loss(law, family, points, |loss| loss.penalty = true);
            }
            "kumar-effective" => {
                let all = [
                    (Quantity::Bits, "gamma_w"),
                    (Quantity::ActivationBits, "gamma_a"),
                    (Quantity::CacheBits, "gamma_kv"),
                ];
                let effective: Vec<_> =
                    all.into_iter().filter(|(quantity, _)| points.varies(*quantity)).collect();
                if effective.is_empty() {
                    let reason = "nothing was measured at several bits of weights, activations or KV cache; measure other widths";
                    self.refuse(name, family, reason);
                    return;
                }
                self.loss(law, family, points, |loss| loss.effective = effective);
            }
            _ => {
                let named = points.at.iter().map(|at| at.setting()).filter(|setting| setting != "none");
                let mut settings: Vec<_> = named.collect();
                settings.sort_unstable();
                settings.dedup();
                if settings.len() > MOST_SETTINGS {
                    let reason = format!(
                        "it has a constant for each of {} settings, and at most {MOST_SETTINGS} are fitted; give results of fewer schemes",
                        settings.len()
                    );
                    self.refuse(name, family, reason);
                    return;
                }
                self.loss(law, family, points, |loss| loss.settings = settings);
            }
        }
    }

    /// Fits a law of the loss; `terms` chooses what it has beside E, A and B.
    fn loss(
        &mut self,
        law: &'static Law,
        family: &str,
        mut points: Points<'_>,
        terms: impl FnOnce(&mut Loss),
    ) {
        if !points.varies(Quantity::Params) {
            self.refuse(law.name, family, "it takes models of different sizes N; measure more models");
            return;
        }
        let with_data = points.varies(Quantity::Tokens);
        if !with_data {
            points.quantities.retain(|quantity| *quantity != Quantity::Tokens);
            points.notes.push(
                "D is one amount or not known: its terms were left out, and E holds what it adds".to_owned(),
            );
        }
        let mut loss = Loss {
            log_params: points.mean_log(Quantity::Params),
            log_tokens: with_data.then(|| points.mean_log(Quantity::Tokens)),
            effective: Vec::new(),
            settings: Vec::new(),
            penalty: false,
        };
        terms(&mut loss);
        if self.too_few(law.name, family, points.at.len(), loss.constants()) {
            return;
        }
        let places = points.at.iter().map(|at| loss.place(at)).collect::<Result<Vec<Place>, _>>();
        let places = match places {
            Ok(places) => places,
            Err(missing) => {
                self.refuse(law.name, family, format!("some runs lack {missing}"));
                return;
            }
        };
        let values: Vec<f64> = points.measured.iter().map(|value| value.ln()).collect();
        let curve = LossCurve { loss: &loss, places: &places };
        let problem = Huber { curve: &curve, values: &values, delta: DELTA };
        let Some(constants) = problem.search(&loss.starts(&places, &points.measured)) else {
            self.refuse(law.name, family, "no start of the search led to finite constants; check the losses");
            return;
        };
        let problem = Huber { delta: problem.delta_for_noise(&constants), ..problem };
        let constants = problem.refine(&constants);
        let groups = points.groups();
        let at = problem.condition(&constants);
        if at > MAX_CONDITION {
            let names = loss.names();
            let between = problem.dependent(&constants).into_iter().map(|constant| names[constant].as_str());
            let between: Vec<&str> = between.collect();
            let which = if between.is_empty() {
                format!("its {} constants", names.len())
            } else {
                format!("{} of its {} constants", between.join(", "), names.len())
            };
            let reason = format!(
                "the points do not determine {which} (condition number {at:.1e}), whose intervals would be infinite; measure more values of what it depends on, further apart"
            );
            self.refuse(law.name, family, reason);
            return;
        }
        let resampling =
            Resampling { draws: self.options.bootstrap, seed: self.options.seed, groups: &groups };
        let solution = problem.examine(constants, &resampling);
        let mut unused = vec![0.0; solution.constants.len()];
        let fitted = places.iter().map(|place| loss.value(&solution.constants, place, &mut unused)).collect();
        self.report(law, family, Shape::Loss(loss), points, fitted, solution);
    }

    fn linearity(&mut self, observations: &[Observation]) {
        let Some(law) = self.wants("linearity") else { return };
        let floor = self.fits.noise_floor.unwrap_or(0.0) * FLOOR_FACTOR;
        let usable: Vec<(&At, f64)> = observations
            .iter()
            .filter(|seen| seen.first && !seen.at.errors.is_empty())
            .filter_map(|seen| Some((&seen.at, seen.divergence?)))
            .filter(|(_, divergence)| *divergence > floor)
            .collect();
        let mut models: Vec<&str> = usable.iter().map(|(at, _)| at.model.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        if models.is_empty() {
            let reason = "it takes the errors of tensors (metric tensor_relative_mse) and KL divergences of the same files; measure both";
            self.refuse(law.name, "all", reason);
        }
        for model in models {
            let of_model: Vec<(&At, f64)> =
                usable.iter().copied().filter(|(at, _)| at.model == model).collect();
            self.linearity_of(law, model, of_model);
        }
    }

    fn linearity_of(&mut self, law: &'static Law, model: &str, pairs: Vec<(&At, f64)>) {
        let groups = |by: Grouping| {
            let mut groups: Vec<String> =
                pairs.iter().flat_map(|(at, _)| at.errors.keys()).map(|tensor| by.group(tensor)).collect();
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        let points = pairs.len();
        // The finest constants that the points can determine.
        let choice = Grouping::ALL.into_iter().find_map(|by| {
            let groups = groups(by);
            let features = Features::Linearity { groups, by };
            let rows = relative_rows(&features, &pairs)?;
            let enough = points > rows.first().map_or(0, Vec::len);
            (enough && condition(&rows) <= MAX_CONDITION).then_some((by, features, rows))
        });
        let Some((by, features, rows)) = choice else {
            let tensors = groups(Grouping::Tensor).len();
            let reason = format!(
                "{points} schemes of {model} cannot determine a constant for each of its {tensors} tensors, nor for layers, roles or all of them together; measure more schemes, best ones that differ by tensor"
            );
            self.refuse(law.name, "all", reason);
            return;
        };
        let family = format!("all of {model}");
        let problem = NonNegative { values: vec![1.0; points], rows };
        let resampling = Resampling { draws: self.options.bootstrap, seed: self.options.seed, groups: &[] };
        let solution = problem.solve(&resampling);
        let fitted = problem.rows.iter().map(|row| Linear::predict(&solution.constants, row)).collect();
        let sum = |at: &At| at.errors.values().sum::<f64>();
        let mut points = Points::new(pairs, sum, &[Quantity::Bits]);
        points.notes.push(by.words().to_owned());
        self.report(law, &family, Shape::Features(features), points, fitted, solution);
    }
}

/// Features over the measured value, so that each point counts by its share.
fn relative_rows(features: &Features, pairs: &[(&At, f64)]) -> Option<Vec<Vec<f64>>> {
    let rows = pairs.iter().map(|(at, value)| {
        let row = features.row(at).ok()?;
        Some(row.into_iter().map(|feature| feature / value).collect())
    });
    rows.collect()
}

/// Positive losses of a family.
fn losses<'a>(observations: &'a [Observation], family: &str, every_arithmetic: bool) -> Vec<(&'a At, f64)> {
    observations
        .iter()
        .filter(|seen| seen.family == family && (seen.first || every_arithmetic))
        .filter_map(|seen| Some((&seen.at, seen.loss?)))
        .filter(|(_, loss)| *loss > 0.0 && loss.is_finite())
        .collect()
}
