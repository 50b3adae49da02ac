//! The divergence of a whole file from that of its parts.
//!
//! Each part of a model, quantized alone, costs a divergence that grows with the relative squared error of its weights, in proportion
//! where the error is small (HIGGS, arXiv 2411.17525: `L ~ L0 + sum over parts of alpha * t^2`, alpha a property of the part and
//! not of the scheme). [`Response`] is that of one part, from one or several measurements. The sum over parts is what a file would
//! cost if parts did not act on each other; [`Interaction`] says by how much files that were measured whole differ from their sums,
//! and with that what to expect of another file, with an interval.

use serde::Serialize;

/// The logarithm of a file's divergence over its sum moves so much for each unit of the logarithm of the sum beyond what was measured.
const DRIFT: f64 = 0.1;
/// Standard deviation of that logarithm where no file was measured whole, and where one was.
const UNKNOWN: f64 = 0.4;
const ONE: f64 = 0.2;
/// Least standard deviation: files of equal sums differ in what they are made of.
const LEAST: f64 = 0.03;
/// What single precision alone may bring, nats: below it no divergence is told from another.
const ARITHMETIC: f64 = 1e-9;
/// Standard deviations to each side of an interval; about 95 % of a normal distribution.
const SPREAD: f64 = 2.0;

/// How the divergence of one part depends on the relative squared error of its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Error and divergence, both above 0 and rising.
    points: Vec<(f64, f64)>,
}

impl Response {
    /// The response through measured points of error and divergence. Points that are not positive tell nothing and are left out. Where the
    /// divergence does not rise from one point to the next in a way that an error can have, one slope stands for all.
    #[must_use]
    pub fn new(measured: &[(f64, f64)]) -> Self {
        let mut points: Vec<(f64, f64)> = measured
            .iter()
            .copied()
            .filter(|(error, divergence)| *error > 0.0 && *divergence > 0.0)
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by(|a, b| a.0 == b.0);
        let rises = |pair: &[(f64, f64)]| {
            let exponent = (pair[1].1 / pair[0].1).ln() / (pair[1].0 / pair[0].0).ln();
            (0.5..=2.0).contains(&exponent)
        };
        if !points.windows(2).all(rises) {
            // The slope with the least relative errors: the geometric mean.
            #[expect(clippy::cast_precision_loss, reason = "a handful of points")]
            let slope = (points.iter().map(|(error, divergence)| (divergence / error).ln()).sum::<f64>()
                / points.len() as f64)
                .exp();
            points = vec![(1.0, slope)];
        }
        Self { points }
    }

    /// The divergence at a relative squared error: in proportion to it outside of the measured points, between two of them on
    /// the line through their logarithms. 0 where nothing was measured.
    #[must_use]
    pub fn at(&self, error: f64) -> f64 {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else { return 0.0 };
        if error <= first.0 {
            return first.1 / first.0 * error.max(0.0);
        }
        if error >= last.0 {
            return last.1 / last.0 * error;
        }
        let above = self.points.iter().position(|(known, _)| *known >= error).unwrap_or(1).max(1);
        let ((e0, d0), (e1, d1)) = (self.points[above - 1], self.points[above]);
        let share = (error / e0).ln() / (e1 / e0).ln();
        d0 * (share * (d1 / d0).ln()).exp()
    }

    /// Divergence over error at the measured points, their geometric mean: alpha of the linear law. 0 where nothing was measured.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a handful of points")]
    pub fn slope(&self) -> f64 {
        if self.points.is_empty() {
            return 0.0;
        }
        let logarithms = self.points.iter().map(|(error, divergence)| (divergence / error).ln());
        (logarithms.sum::<f64>() / self.points.len() as f64).exp()
    }
}

/// A file that was measured whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Whole {
    /// Sum of the responses of its parts.
    pub sum: f64,
    /// Its divergence.
    pub measured: f64,
    /// Standard error of that over windows of the text, as a share of it.
    pub relative_error: f64,
}

/// What is expected of a file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Expected {
    /// Divergence.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How far files are from the sums of their parts.
#[derive(Clone, Debug)]
pub struct Interaction {
    /// Logarithm of the sum, and of what was measured over it; by the sum.
    points: Vec<(f64, f64)>,
    /// Standard deviation of the logarithm that is expected, but for what the text brings.
    deviation: f64,
    /// Relative standard error of a text of this length.
    text: f64,
}

impl Interaction {
    /// From files that were measured whole.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a handful of files")]
    pub fn new(files: &[Whole]) -> Self {
        let known: Vec<&Whole> = files.iter().filter(|file| file.sum > 0.0 && file.measured > 0.0).collect();
        let mut points: Vec<(f64, f64)> =
            known.iter().map(|file| (file.sum.ln(), (file.measured / file.sum).ln())).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by(|a, b| a.0 == b.0);
        let text = known.iter().map(|file| file.relative_error).fold(0.0, f64::max);
        let deviation = match points.len() {
            0 => UNKNOWN,
            1 => ONE,
            count => {
                // Each from the others.
                let squares = (0..count).map(|left_out| {
                    let mut others = points.clone();
                    let (at, wanted) = others.remove(left_out);
                    (interpolated(&others, at) - wanted).powi(2)
                });
                (squares.sum::<f64>() / count as f64).sqrt().max(LEAST)
            }
        };
        Self { points, deviation, text }
    }

    /// What is expected of a file whose parts sum to `sum`, measured on another text of this kind and length.
    #[must_use]
    pub fn expect(&self, sum: f64) -> Expected {
        if sum <= 0.0 {
            return Expected { value: 0.0, low: 0.0, high: ARITHMETIC };
        }
        let at = sum.ln();
        let beyond = match (self.points.first(), self.points.last()) {
            (Some(first), Some(last)) => (first.0 - at).max(at - last.0).max(0.0),
            _ => 0.0,
        };
        let value = sum * interpolated(&self.points, at).exp();
        // The text enters twice: the files were measured on one, and the file will be on another.
        let variance = self.deviation.powi(2) + (DRIFT * beyond).powi(2) + 2.0 * self.text.powi(2);
        let factor = (SPREAD * variance.sqrt()).exp();
        let low = if value < ARITHMETIC { 0.0 } else { value / factor };
        Expected { value, low, high: (value * factor).max(ARITHMETIC) }
    }

    /// The sum of parts of which `value` is expected; the least where several are.
    #[must_use]
    pub fn sum_of(&self, value: f64) -> f64 {
        if value <= 0.0 {
            return 0.0;
        }
        let offsets = self.points.iter().map(|(_, offset)| *offset);
        let (least, most) = offsets.fold((0f64, 0f64), |(a, b), offset| (a.min(offset), b.max(offset)));
        let (mut low, mut high) = (value.ln() - most - 1.0, value.ln() - least + 1.0);
        for _ in 0..100 {
            let middle = f64::midpoint(low, high);
            if middle + interpolated(&self.points, middle) < value.ln() {
                low = middle
            } else {
                high = middle
            }
        }
        low.exp()
    }
}

/// On the line between the points to both sides; the nearest point's beyond them, 0 where there are none.
fn interpolated(points: &[(f64, f64)], at: f64) -> f64 {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return 0.0 };
    if at <= first.0 {
        return first.1;
    }
    let Some(above) = points.iter().position(|(known, _)| *known > at) else { return last.1 };
    let ((x0, y0), (x1, y1)) = (points[above - 1], points[above]);
    y0 + (y1 - y0) * (at - x0) / (x1 - x0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        // Logarithms and back.
        assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} {b}");
    }

    #[test]
    fn one_point_is_the_linear_law() {
        let response = Response::new(&[(0.01, 0.002)]);
        near(response.at(0.005), 0.001);
        near(response.at(0.04), 0.008);
        near(response.slope(), 0.2);
        assert_eq!(response.at(0.0), 0.0);
    }

    #[test]
    fn two_points_are_passed_through_and_left_in_proportion() {
        // Divergence grows as the error to the power 1.5.
        let response = Response::new(&[(0.04, 0.008), (0.01, 0.001)]);
        near(response.at(0.01), 0.001);
        near(response.at(0.04), 0.008);
        near(response.at(0.02), 0.001 * 2f64.powf(1.5));
        near(response.at(0.005), 0.0005);
        near(response.at(0.08), 0.016);
    }

    #[test]
    fn noise_is_no_reason_for_errors_that_help() {
        let response = Response::new(&[(0.01, 0.002), (0.02, 0.001)]);
        assert!(response.at(0.02) > response.at(0.01));
        near(response.at(0.01) / 0.01, (0.2f64 * 0.05).sqrt());
        assert_eq!(Response::new(&[(0.01, -1e-9), (0.0, 1.0)]).at(0.5), 0.0);
    }

    #[test]
    fn files_are_expected_where_files_like_them_were() {
        let file = |sum: f64, ratio: f64| Whole { sum, measured: sum * ratio, relative_error: 0.0 };
        let interaction = Interaction::new(&[file(0.1, 1.3), file(0.01, 1.1), file(0.001, 1.0)]);
        near(interaction.expect(0.01).value, 0.011);
        near(interaction.expect(1e-4).value, 1e-4);
        let between = interaction.expect(0.03);
        assert!(between.value > 0.033 && between.value < 0.039);
        assert!(between.low < between.value && between.value < between.high);
        for value in [1e-5, 0.002, 0.03, 0.4] {
            near(interaction.expect(interaction.sum_of(value)).value, value);
        }
    }

    #[test]
    fn what_is_not_known_is_expected_widely() {
        let width = |interaction: &Interaction, sum: f64| {
            let expected = interaction.expect(sum);
            expected.high / expected.low
        };
        let file = |sum: f64, relative_error: f64| Whole { sum, measured: sum, relative_error };
        let nothing = Interaction::new(&[]);
        let one = Interaction::new(&[file(0.01, 0.0)]);
        let several = Interaction::new(&[file(0.01, 0.0), file(0.02, 0.0)]);
        let noisy = Interaction::new(&[file(0.01, 0.1), file(0.02, 0.1)]);
        assert!(width(&nothing, 0.01) > width(&one, 0.01) && width(&one, 0.01) > width(&several, 0.01));
        assert!(width(&noisy, 0.01) > width(&several, 0.01));
        assert!(width(&several, 1.0) > width(&several, 0.01));
        near(nothing.expect(0.02).value, 0.02);
        // Rounding is no divergence.
        let exact = several.expect(1e-18);
        assert!(exact.low == 0.0 && exact.high > 1e-12);
        assert_eq!(several.expect(0.0).value, 0.0);
    }
}
