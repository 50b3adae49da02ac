//! The laws: how measurements become points, and constants get their names.

use crate::advise::{ParetoPoint, pareto};
use crate::linear::{MAX_CONDITION, Problem};
use crate::{Run, runs};
use kbit_results::Measurement;
use serde::Serialize;
use std::collections::BTreeMap;

/// Names of all laws, with what they say.
pub const LAWS: &[(&str, &str)] = &[
    ("exponential", "KLD = a exp(-b P), for each scheme family; a for each model, P true bits a weight"),
    ("power", "KLD = a P^-b, for each scheme family; a for each model, P true bits a weight"),
    (
        "base-curve",
        "nll = base(log2 total bits) + offset(bits): one piecewise-linear curve and an offset a bit width, for each scheme family \
         (Dettmers and Zettlemoyer, arXiv 2212.09720)",
    ),
    (
        "plain-power",
        "nll = a N^b D^d of unquantized models in parameters and training tokens; C = 6 N D is left out where it says nothing new",
    ),
];

/// Divergences below this many times the noise floor are left out of fits.
const FLOOR_FACTOR: f64 = 2.0;
/// Knots of the base curve at most.
const MOST_KNOTS: usize = 4;

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
}

/// A point that was fitted.
#[derive(Clone, Debug, Serialize)]
pub struct Residual {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Abscissa: bits a weight, or log2 of total bits.
    pub x: f64,
    /// Measured value.
    pub measured: f64,
    /// Value of the law.
    pub fitted: f64,
}

/// A fitted law.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// Name of the law.
    pub law: String,
    /// Scheme family; `none` for unquantized models.
    pub family: String,
    /// The form, in words.
    pub form: String,
    /// Constants.
    pub estimates: Vec<Estimate>,
    /// R², in the space of the fit.
    pub r_squared: f64,
    /// AIC, in the space of the fit.
    pub aic: f64,
    /// Leave-one-out error, in the space of the fit.
    pub leave_one_out: Option<f64>,
    /// The space of the fit: `ln KLD`, `nll` or `ln nll`.
    pub space: &'static str,
    /// Least and greatest abscissa: the law says nothing beyond.
    pub range: (f64, f64),
    /// Points and residuals.
    pub points: Vec<Residual>,
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
    /// By how much its AIC is higher: 2 is little, 10 is decisive.
    pub aic_difference: f64,
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

/// Fits every law to `measurements`.
#[must_use]
pub fn fit_all(measurements: &[Measurement], options: &FitOptions) -> Fits {
    let runs = runs(measurements);
    let mut fitter = Fitter { options, fits: Fits { pareto: pareto(measurements), ..Fits::default() } };
    fitter.fits.noise_floor = noise_floor(&runs);
    let mut families: Vec<&str> = runs.iter().map(|run| run.about.scheme.family.as_str()).collect();
    families.sort_unstable();
    families.dedup();
    for family in families.into_iter().filter(|family| *family != "none") {
        fitter.divergence(family, &runs);
        fitter.base_curve(family, &runs);
    }
    fitter.plain_power(&runs);
    fitter.fits
}

/// The greatest divergence among files of at least as many bits as the source has.
fn noise_floor(runs: &[Run<'_>]) -> Option<f64> {
    let lossless = runs
        .iter()
        .filter(|run| matches!(run.about.scheme.id.as_str(), "org.kbit.ggml.f32/1" | "org.kbit.ggml.bf16/1"));
    lossless.filter_map(|run| run.kld).map(|(kld, _)| kld.abs()).reduce(f64::max)
}

/// Name, form in words, and the change of the abscissa.
type DivergenceForm = (&'static str, &'static str, fn(f64) -> f64);

/// The forms of divergence against bits.
const DIVERGENCE_FORMS: [DivergenceForm; 2] =
    [("exponential", "KLD = a exp(-b P)", |bits| bits), ("power", "KLD = a P^-b", f64::ln)];

struct Fitter<'a> {
    options: &'a FitOptions,
    fits: Fits,
}

impl Fitter<'_> {
    fn wants(&self, law: &str) -> bool {
        self.options.laws.is_empty() || self.options.laws.iter().any(|wanted| wanted == law)
    }

    fn refuse(&mut self, law: &str, family: &str, reason: impl Into<String>) {
        self.fits.refusals.push(Refusal {
            law: law.to_owned(),
            family: family.to_owned(),
            reason: reason.into(),
        });
    }

    /// Refuses a problem with too few points; true where it was refused.
    fn too_few(&mut self, law: &str, family: &str, points: usize, constants: usize) -> bool {
        let refused = points <= constants;
        if refused {
            self.refuse(law, family, format!("{points} points cannot determine {constants} constants and an error; measure more settings"));
        }
        refused
    }

    fn divergence(&mut self, family: &str, runs: &[Run<'_>]) {
        let floor = self.fits.noise_floor.unwrap_or(0.0) * FLOOR_FACTOR;
        let usable: Vec<(&Run<'_>, f64)> = runs
            .iter()
            .filter(|run| run.about.scheme.family == family)
            .filter_map(|run| Some((run, run.kld?.0)))
            .filter(|(_, kld)| *kld > floor)
            .collect();
        let mut models: Vec<&str> = usable.iter().map(|(run, _)| run.about.model.id.as_str()).collect();
        models.dedup();
        models.sort_unstable();
        models.dedup();
        let mut aics = Vec::new();
        for (law, form, change) in DIVERGENCE_FORMS {
            if !self.wants(law) || self.too_few(law, family, usable.len(), models.len() + 1) {
                continue;
            }
            let features = |run: &Run<'_>| {
                let mut row: Vec<f64> =
                    models.iter().map(|model| f64::from(u8::from(run.about.model.id == *model))).collect();
                row.push(-change(run.about.bpw.file));
                row
            };
            let problem = Problem {
                rows: usable.iter().map(|(run, _)| features(run)).collect(),
                values: usable.iter().map(|(_, kld)| kld.ln()).collect(),
            };
            let Some(solution) = problem.solve(self.options.bootstrap, self.options.seed) else {
                self.refuse(
                    law,
                    family,
                    "all points have nearly the same bits a weight; measure other bit widths",
                );
                continue;
            };
            let slope = models.len();
            let interval = |index: usize| solution.intervals.get(index).copied();
            let mut estimates = vec![Estimate {
                name: "b".to_owned(),
                value: solution.constants[slope],
                low: interval(slope).map(|ends| ends.0),
                high: interval(slope).map(|ends| ends.1),
            }];
            estimates.extend(models.iter().enumerate().map(|(index, model)| Estimate {
                name: format!("a[{model}]"),
                value: solution.constants[index].exp(),
                low: interval(index).map(|ends| ends.0.exp()),
                high: interval(index).map(|ends| ends.1.exp()),
            }));
            let points = usable.iter().zip(&problem.rows).map(|((run, kld), row)| {
                residual(run, run.about.bpw.file, *kld, Problem::predict(&solution.constants, row).exp())
            });
            let points: Vec<Residual> = points.collect();
            aics.push((law, solution.aic));
            self.fits.fits.push(Fit {
                law: law.to_owned(),
                family: family.to_owned(),
                form: form.to_owned(),
                estimates,
                r_squared: solution.r_squared,
                aic: solution.aic,
                leave_one_out: solution.leave_one_out,
                space: "ln KLD",
                range: range(&points),
                points,
            });
        }
        if let [(first, a), (second, b)] = aics[..] {
            let (better, worse) = if a <= b { (first, second) } else { (second, first) };
            self.fits.comparisons.push(Comparison {
                family: family.to_owned(),
                better: better.to_owned(),
                worse: worse.to_owned(),
                aic_difference: (a - b).abs(),
            });
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "places of knots")]
    fn base_curve(&mut self, family: &str, runs: &[Run<'_>]) {
        let law = "base-curve";
        if !self.wants(law) {
            return;
        }
        let usable: Vec<(&Run<'_>, f64, f64, i64)> = runs
            .iter()
            .filter(|run| {
                matches!(run.about.scheme.family.as_str(), "none") || run.about.scheme.family == family
            })
            .filter_map(|run| {
                #[expect(clippy::cast_possible_truncation, reason = "a bit width")]
                let bits = run.about.scheme.bits?.round() as i64;
                Some((run, run.about.total_bits.log2(), run.nll?.0, bits))
            })
            .collect();
        let mut widths: Vec<i64> = usable.iter().map(|(.., bits)| *bits).collect();
        widths.sort_unstable();
        widths.dedup();
        let mut models: Vec<&str> = usable.iter().map(|(run, ..)| run.about.model.id.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        if models.len() < 2 || widths.len() < 2 {
            self.refuse(
                law,
                family,
                format!("{} models and {} bit widths; it takes two of each", models.len(), widths.len()),
            );
            return;
        }
        let low = usable.iter().map(|(_, x, ..)| *x).fold(f64::INFINITY, f64::min);
        let high = usable.iter().map(|(_, x, ..)| *x).fold(f64::NEG_INFINITY, f64::max);
        let knots = models.len().clamp(2, MOST_KNOTS);
        // The greatest width is the base; the others have offsets against it.
        let reference = widths[widths.len() - 1];
        let offsets: Vec<i64> = widths.iter().copied().filter(|bits| *bits != reference).collect();
        if self.too_few(law, family, usable.len(), knots + offsets.len()) {
            return;
        }
        let step = (high - low) / (knots - 1) as f64;
        let features = |x: f64, bits: i64| {
            let at = (x - low) / step;
            let hats = (0..knots).map(|knot| (1.0 - (at - knot as f64).abs()).max(0.0));
            let shifts = offsets.iter().map(|offset| f64::from(u8::from(bits == *offset)));
            hats.chain(shifts).collect::<Vec<f64>>()
        };
        let problem = Problem {
            rows: usable.iter().map(|(_, x, _, bits)| features(*x, *bits)).collect(),
            values: usable.iter().map(|(_, _, nll, _)| *nll).collect(),
        };
        let Some(solution) = problem.solve(self.options.bootstrap, self.options.seed) else {
            self.refuse(law, family, "sizes and bit widths go together, so that curve and offsets cannot be told apart; measure more models");
            return;
        };
        let name = |index: usize| match offsets.get(index.wrapping_sub(knots)) {
            Some(bits) if index >= knots => format!("offset[{bits} bits]"),
            _ => format!("base[{:.2}]", low + step * index as f64),
        };
        let estimates = solution.constants.iter().enumerate().map(|(index, value)| Estimate {
            name: name(index),
            value: *value,
            low: solution.intervals.get(index).map(|ends| ends.0),
            high: solution.intervals.get(index).map(|ends| ends.1),
        });
        let estimates = estimates.collect();
        let points: Vec<Residual> = usable
            .iter()
            .zip(&problem.rows)
            .map(|((run, x, nll, _), row)| {
                residual(run, *x, *nll, Problem::predict(&solution.constants, row))
            })
            .collect();
        self.fits.fits.push(Fit {
            law: law.to_owned(),
            family: family.to_owned(),
            form: format!("nll = base(log2 total bits) + offset(bits), offsets against {reference} bits"),
            estimates,
            r_squared: solution.r_squared,
            aic: solution.aic,
            leave_one_out: solution.leave_one_out,
            space: "nll",
            range: (low, high),
            points,
        });
    }

    #[expect(clippy::cast_precision_loss, reason = "numbers of weights and tokens, as logarithms")]
    fn plain_power(&mut self, runs: &[Run<'_>]) {
        let (law, family) = ("plain-power", "none");
        if !self.wants(law) {
            return;
        }
        let usable: Vec<(&Run<'_>, f64)> = runs
            .iter()
            .filter(|run| run.about.scheme.family == "none")
            .filter_map(|run| Some((run, run.nll?.0)))
            .filter(|(_, nll)| *nll > 0.0)
            .collect();
        let mut columns: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        columns.insert("N", usable.iter().map(|(run, _)| (run.about.model.params as f64).ln()).collect());
        let tokens: Option<Vec<f64>> =
            usable.iter().map(|(run, _)| run.about.model.tokens.map(|t| (t as f64).ln())).collect();
        let flops: Option<Vec<f64>> =
            usable.iter().map(|(run, _)| run.about.model.flops.map(f64::ln)).collect();
        columns.extend(tokens.map(|column| ("D", column)));
        columns.extend(flops.map(|column| ("C", column)));
        let varies = |column: &[f64]| column.windows(2).any(|pair| (pair[0] - pair[1]).abs() > 1e-6);
        columns.retain(|_, column| varies(column));
        let build = |names: &[&str]| Problem {
            rows: (0..usable.len())
                .map(|i| {
                    std::iter::once(1.0).chain(names.iter().map(|name| centered(&columns[name], i))).collect()
                })
                .collect(),
            values: usable.iter().map(|(_, nll)| nll.ln()).collect(),
        };
        let mut names: Vec<&str> =
            ["N", "D", "C"].into_iter().filter(|name| columns.contains_key(name)).collect();
        if names.is_empty() {
            self.refuse(law, family, "it takes unquantized models of different sizes; measure more models");
            return;
        }
        if names.contains(&"C") && names.len() > 1 && build(&names).condition() > MAX_CONDITION {
            names.retain(|name| *name != "C");
            let condition =
                "log C is a sum of log N and log D in these models, so C says nothing new and was left out";
            self.refuse("plain-power in N, D and C", family, condition);
        }
        if self.too_few(law, family, usable.len(), names.len() + 1) {
            return;
        }
        let problem = build(&names);
        let Some(solution) = problem.solve(self.options.bootstrap, self.options.seed) else {
            self.refuse(
                law,
                family,
                "N and D go together in these models; measure models trained on other amounts",
            );
            return;
        };
        let estimates = names.iter().enumerate().map(|(index, name)| Estimate {
            name: format!("exponent of {name}"),
            value: solution.constants[index + 1],
            low: solution.intervals.get(index + 1).map(|ends| ends.0),
            high: solution.intervals.get(index + 1).map(|ends| ends.1),
        });
        let estimates = estimates.collect();
        let points: Vec<Residual> = usable
            .iter()
            .zip(&problem.rows)
            .map(|((run, nll), row)| {
                let x = (run.about.model.params as f64).log2();
                residual(run, x, *nll, Problem::predict(&solution.constants, row).exp())
            })
            .collect();
        self.fits.fits.push(Fit {
            law: law.to_owned(),
            family: family.to_owned(),
            form: format!("nll proportional to a product of powers of {}", names.join(", ")),
            estimates,
            r_squared: solution.r_squared,
            aic: solution.aic,
            leave_one_out: solution.leave_one_out,
            space: "ln nll",
            range: range(&points),
            points,
        });
    }
}

/// Entry `i` of `column` less the mean, so that the condition number is that of the exponents.
#[expect(clippy::cast_precision_loss, reason = "a count of points")]
fn centered(column: &[f64], i: usize) -> f64 {
    column[i] - column.iter().sum::<f64>() / column.len() as f64
}

fn residual(run: &Run<'_>, x: f64, measured: f64, fitted: f64) -> Residual {
    Residual {
        model: run.about.model.id.clone(),
        scheme: run.about.scheme.label.clone(),
        x,
        measured,
        fitted,
    }
}

fn range(points: &[Residual]) -> (f64, f64) {
    points
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), point| (low.min(point.x), high.max(point.x)))
}
