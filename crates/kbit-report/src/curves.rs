//! Fitted curves with their confidence bands, for the drawings and as a table.

use crate::data::{Entry, Z95, family_name, figure};
use crate::table::{Cell, Column, Table};
use kbit_laws::{At, Fit, Fits, Prediction};
use std::collections::{BTreeMap, HashMap};

/// Abscissa, fitted value and residual of a point.
type Fitted = (f64, f64, f64);
/// Abscissas with fitted values.
pub type Curve = Vec<(f64, f64)>;
/// Abscissas with lower and upper ends.
pub type Band = Vec<(f64, f64, f64)>;

/// Steps of a drawn curve.
const STEPS: u32 = 32;

/// The base-curve law of `fit` at a bit width, between the least and the greatest of `places`, log2 of total bits.
pub fn of_width(fit: &Fit, bits: i64, places: impl Iterator<Item = f64>) -> (Curve, Band) {
    let (low, high) = places
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| (low.min(place), high.max(place)));
    let (mut curve, mut band) = (Curve::new(), Band::new());
    for step in 0..=STEPS {
        let x = low + (high - low) * f64::from(step) / f64::from(STEPS);
        #[expect(clippy::cast_precision_loss, reason = "a bit width")]
        let at = At { total_bits: Some(x.exp2()), nominal_bits: Some(bits as f64), ..At::default() };
        // Where the law says nothing, nothing is drawn.
        let Ok(Prediction { value, low, high }) = fit.predict(&at) else { continue };
        curve.push((x, value));
        band.extend(low.zip(high).map(|(low, high)| (x, low, high)));
    }
    (curve, band)
}

/// The curves of the drawings, with the ends of their bands.
pub fn curves(entries: &[Entry<'_>], fits: &Fits) -> Table {
    let columns = vec![
        Column::text("law", "law"),
        Column::text("family", "family"),
        Column::number("width", "bit width"),
        Column::text("quantity", "over"),
        Column::number("x", "at"),
        Column::number("value", "value, nats"),
        Column::number("low", "lower end"),
        Column::number("high", "upper end"),
    ];
    let mut table = Table::new("curves", "Fitted curves", columns);
    let widths: HashMap<(&str, &str), i64> = entries
        .iter()
        .filter_map(|entry| {
            let names = (entry.about.model.id.as_str(), entry.about.scheme.label.as_str());
            Some((names, entry.width()?))
        })
        .collect();
    let mut add = |fit: &Fit, width: Option<i64>, quantity: &str, (curve, band): (Curve, Band)| {
        for (x, value) in curve {
            let ends = band.iter().find(|(place, ..)| *place == x);
            let number = |value: f64| Cell::Number(value, figure(value), None);
            #[expect(clippy::cast_precision_loss, reason = "a bit width")]
            let width = width.map_or(Cell::Empty, |bits| Cell::Number(bits as f64, bits.to_string(), None));
            table.rows.push(vec![
                Cell::text(&fit.law),
                Cell::text(family_name(&fit.family)),
                width,
                Cell::text(quantity),
                number(x),
                number(value),
                ends.map_or(Cell::Empty, |(_, low, _)| number(*low)),
                ends.map_or(Cell::Empty, |(.., high)| number(*high)),
            ]);
        }
    };
    for fit in &fits.fits {
        match fit.law.as_str() {
            "base-curve" => {
                let mut places: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
                for point in &fit.points {
                    if let Some(width) = widths.get(&(point.model.as_str(), point.scheme.as_str())) {
                        places.entry(*width).or_default().push(point.x);
                    }
                }
                for (bits, places) in places {
                    let drawn = of_width(fit, bits, places.into_iter());
                    add(fit, Some(bits), "log2 of total bits", drawn);
                }
            }
            "exponential" => {
                let line = Line::of(fit);
                line.into_iter().for_each(|line| add(fit, None, "bits a weight", line.drawn()));
            }
            _ => {}
        }
    }
    table
}

/// The exponential law at the geometric mean of its models: `ln KLD = level - slope (P - center)`.
pub struct Line {
    slope: f64,
    level: f64,
    center: f64,
    /// Variance of the residuals, of the mean level over it, and 1 over the squares of P within models.
    variance: f64,
    level_share: f64,
    slope_share: f64,
    t: f64,
    range: (f64, f64),
}

impl Line {
    /// The line through the fitted points, with the variances of least squares with one level a model.
    pub fn of(fit: &Fit) -> Option<Self> {
        let points =
            fit.points.iter().map(|point| (point.model.as_str(), point.x, point.measured, point.fitted));
        Self::through(points, fit.range)
    }

    /// The same of points with their model, abscissa, measured and fitted value.
    #[expect(clippy::cast_precision_loss, reason = "counts of points")]
    fn through<'p>(
        points: impl Iterator<Item = (&'p str, f64, f64, f64)>,
        range: (f64, f64),
    ) -> Option<Self> {
        let mut models: BTreeMap<&str, Vec<Fitted>> = BTreeMap::new();
        for (model, x, measured, fitted) in
            points.filter(|(_, _, measured, fitted)| *measured > 0.0 && *fitted > 0.0)
        {
            let (fitted, measured) = (fitted.ln(), measured.ln());
            models.entry(model).or_default().push((x, fitted, measured - fitted));
        }
        let count = models.values().map(Vec::len).sum::<usize>() as f64;
        let groups = models.len() as f64;
        let freedom = count - groups - 1.0;
        let means: Vec<(f64, f64, &Vec<Fitted>)> = models
            .values()
            .map(|points| {
                let n = points.len() as f64;
                let mean = |of: fn(&Fitted) -> f64| points.iter().map(of).sum::<f64>() / n;
                (mean(|point| point.0), mean(|point| point.1), points)
            })
            .collect();
        let mut squares = 0.0;
        let mut products = 0.0;
        let mut residuals = 0.0;
        for (x, y, points) in &means {
            for point in *points {
                squares += (point.0 - x).powi(2);
                products += (point.0 - x) * (point.1 - y);
                residuals += point.2.powi(2);
            }
        }
        if squares <= 0.0 || groups == 0.0 {
            return None;
        }
        Some(Self {
            slope: -products / squares,
            level: means.iter().map(|(_, y, _)| y).sum::<f64>() / groups,
            center: means.iter().map(|(x, ..)| x).sum::<f64>() / groups,
            variance: if freedom >= LEAST_FREEDOM { residuals / freedom } else { f64::NAN },
            level_share: means.iter().map(|(.., points)| 1.0 / points.len() as f64).sum::<f64>()
                / groups.powi(2),
            slope_share: 1.0 / squares,
            t: student(freedom),
            range,
        })
    }

    /// The line and its band.
    pub fn drawn(&self) -> (Curve, Band) {
        let (low, high) = self.range;
        let steps: Vec<f64> = (0..=32).map(|step| low + (high - low) * f64::from(step) / 32.0).collect();
        let at = |x: &f64| self.level - self.slope * (x - self.center);
        let curve = steps.iter().map(|x| (*x, at(x).exp())).collect();
        let half = |x: &f64| {
            let share = self.level_share + (x - self.center).powi(2) * self.slope_share;
            self.t * (self.variance * share).sqrt()
        };
        let band = steps.iter().map(|x| (*x, (at(x) - half(x)).exp(), (at(x) + half(x)).exp()));
        let band: Vec<_> = band.filter(|(_, low, high)| low.is_finite() && high.is_finite()).collect();
        (curve, band)
    }
}

/// Degrees of freedom below which a band would say nothing.
const LEAST_FREEDOM: f64 = 3.0;

/// The 97.5 % quantile of Student's distribution, by its expansion in 1 / `freedom` (Abramowitz and Stegun 26.7.5).
fn student(freedom: f64) -> f64 {
    let z = Z95;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    let fourth = (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z)
        / 92_160.0;
    z + first / freedom + second / freedom.powi(2) + third / freedom.powi(3) + fourth / freedom.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_student_are_those_of_the_tables() {
        for (freedom, wanted) in [(5.0, 2.571), (10.0, 2.228), (30.0, 2.042), (1e9, 1.960)] {
            assert!((student(freedom) - wanted).abs() < 2e-3, "{freedom}: {}", student(freedom));
        }
    }

    #[test]
    fn the_band_is_that_of_least_squares() {
        // y = 1 - x with residuals 0.1, -0.3, 0.2, 0.2, -0.3, 0.1 at x = 0 to 5: s^2 = 0.28 / 4, standard error at the mean s / sqrt(6).
        let points = [(0.0, 0.1), (1.0, -0.3), (2.0, 0.2), (3.0, 0.2), (4.0, -0.3), (5.0, 0.1f64)];
        let points = points.map(|(x, residual)| ("m", x, f64::exp(1.0 - x + residual), f64::exp(1.0 - x)));
        let line = Line::through(points.into_iter(), (0.0, 5.0)).unwrap();
        assert!(
            (line.slope - 1.0).abs() < 1e-12
                && (line.level + 1.5).abs() < 1e-12
                && (line.center - 2.5).abs() < 1e-12
        );
        let share = (line.variance * line.level_share).sqrt();
        assert!((share - (0.07f64 / 6.0).sqrt()).abs() < 1e-8, "{share}");
    }
}
