//! The search for the power of the inputs' magnitude.

use crate::levels::Clipped;
use kbit_plugin::convert::{f16_to_f32, f32_to_f16};
use kbit_plugin::{Aux, Error, Host, Scheme as _, Shape, Slab};
use kbit_scheme_kit::{BlockJob, BlockScheme, parallel_map, refuse_not_finite};

/// What errors are measured on: so many weights, or with second moments so many products of two columns, in rows that lie evenly
/// spaced, but no fewer rows than these.
const WEIGHTS: usize = 1 << 20;
const PRODUCTS: usize = 1 << 29;
const LEAST_ROWS: usize = 64;
/// Weights that one piece of parallel work measures, about.
const PIECE: usize = 1 << 15;

/// `x` to the power of `part / 2^log2`, for a `part` of at most `2^log2`: a product of square roots, which every machine computes alike.
fn power(x: f64, part: u32, log2: u32) -> f64 {
    let mut product = if part >> log2 == 1 { x } else { 1.0 };
    let mut root = x;
    for bit in (0..log2).rev() {
        root = root.sqrt();
        if part >> bit & 1 == 1 {
            product *= root;
        }
    }
    product
}

/// What the columns are multiplied by: the root of their relative `importance` to the power of `part / (2 * grid)`, over the geometric
/// mean of the least and the greatest, in half precision.
fn column_scales(importance: &[f32], part: u32, grid: u32) -> Vec<f32> {
    let log2 = grid.ilog2() + 2;
    let powers: Vec<f64> = importance.iter().map(|x| power(f64::from(*x), part, log2)).collect();
    let (least, greatest) = powers
        .iter()
        .fold((f64::INFINITY, 0f64), |(least, greatest), power| (least.min(*power), greatest.max(*power)));
    let middle = (least * greatest).sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "rounded further")]
    let rounded = |power: &f64| f16_to_f32(f32_to_f16((power / middle) as f32));
    powers.iter().map(rounded).collect()
}

/// Multiplies a row by the scales of its columns.
///
/// # Errors
/// A product that overflows.
pub fn scale_row(
    row: &[f32],
    scales: &[f32],
    out: &mut [f32],
    tensor: &str,
    number: u64,
) -> Result<(), Error> {
    for ((out, value), scale) in out.iter_mut().zip(row).zip(scales) {
        *out = value * scale;
    }
    match out.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(column) => Err(Error::numeric(format!(
            "tensor {tensor}: row {number}, column {column}: {:e} times the column's scale {} overflows; choose another scheme for this \
             tensor",
            row[column], scales[column]
        ))),
    }
}

/// Scales of the columns, and the job that encodes the scaled matrix.
pub struct Candidate {
    pub scales: Vec<f32>,
    pub job: BlockJob,
}

/// How errors of a row count.
pub enum Norm<'a> {
    /// Each column by its importance.
    Diagonal(&'a [f32]),
    /// By second moments of the inputs, `[cols][stride]`: the mean squared error of the row's output.
    Moments(&'a [f32], usize),
}

impl<'a> Norm<'a> {
    /// The second moments of `aux`, where there are some, else `importance`.
    ///
    /// # Errors
    /// Moments that are not finite.
    pub fn new(shape: &Shape<'_>, importance: &'a [f32], aux: &Aux<'a>) -> Result<Self, Error> {
        let Some((moments, stride)) = aux.hessian else { return Ok(Self::Diagonal(importance)) };
        let stride =
            usize::try_from(stride).map_err(|_| Error::internal("a stride above the address space"))?;
        for (row, moments) in moments.chunks(stride).take(importance.len()).enumerate() {
            if let Some(column) = moments.iter().take(importance.len()).position(|x| !x.is_finite()) {
                return Err(Error::numeric(format!(
                    "tensor {}: the second moment of columns {row} and {column} is {}; gather them anew",
                    shape.tensor, moments[column]
                )));
            }
        }
        Ok(Self::Moments(moments, stride))
    }

    /// The size of the errors `off` of a row.
    fn of(&self, off: &[f32]) -> f64 {
        match self {
            Self::Diagonal(importance) => off
                .iter()
                .zip(*importance)
                .map(|(off, weight)| f64::from(*weight) * f64::from(*off) * f64::from(*off))
                .sum(),
            Self::Moments(moments, stride) => off
                .iter()
                .zip(moments.chunks(*stride))
                .map(|(value, moments)| f64::from(*value) * f64::from(dot(off, &moments[..off.len()])))
                .sum(),
        }
    }

    /// The rows that errors are measured on.
    fn rows(&self, rows: usize, cols: usize) -> Vec<usize> {
        let count = match self {
            Self::Diagonal(_) => WEIGHTS / cols,
            Self::Moments(..) => PRODUCTS / cols / cols,
        };
        let count = count.max(LEAST_ROWS).min(rows);
        (0..count).map(|index| index * rows / count).collect()
    }
}

/// The sum of products, in lanes of fixed order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// What the search looks at.
pub struct Search<'a> {
    pub host: &'a Host<'static>,
    pub base: &'a BlockScheme<Clipped>,
    pub shape: &'a Shape<'a>,
    pub data: &'a Slab<'a>,
    pub importance: &'a [f32],
    pub norm: Norm<'a>,
    pub grid: u32,
}

impl Search<'_> {
    /// The candidate of least error: of equal ones, the least power.
    ///
    /// # Errors
    /// Values that cannot be encoded; the host's.
    pub fn best(&self) -> Result<Candidate, Error> {
        let steps = (0..=self.grid).map(|step| self.candidate(2 * step)).collect::<Result<Vec<_>, _>>()?;
        let errors = self.errors(&steps)?;
        let best =
            (0..errors.len()).fold(0, |best, step| if errors[step] < errors[best] { step } else { best });
        let error = errors[best];
        let step = u32::try_from(best).map_err(|_| Error::internal("a grid of more than 32 steps"))?;
        let halves = [(2 * step).checked_sub(1), Some(2 * step + 1).filter(|half| *half < 2 * self.grid)];
        let halves =
            halves.into_iter().flatten().map(|half| self.candidate(half)).collect::<Result<Vec<_>, _>>()?;
        let half_errors = self.errors(&halves)?;
        let mut found = (error, steps.into_iter().nth(best));
        for (candidate, error) in halves.into_iter().zip(half_errors) {
            if error < found.0 {
                found = (error, Some(candidate));
            }
        }
        found.1.ok_or_else(|| Error::internal("a search without candidates"))
    }

    /// With the power `part / (2 * grid)`.
    fn candidate(&self, part: u32) -> Result<Candidate, Error> {
        let scales = column_scales(self.importance, part, self.grid);
        // What an error of the scaled matrix counts once it is divided by the scale again.
        let weights = self.importance.iter().zip(&scales).map(|(weight, scale)| weight / (scale * scale));
        let job = self.base.begin(self.shape, None, &Aux::default())?.weigh(weights.collect());
        Ok(Candidate { scales, job })
    }

    /// The error of each candidate: pieces on the host's threads, added in their order.
    fn errors(&self, candidates: &[Candidate]) -> Result<Vec<f64>, Error> {
        let cols = self.data.cols();
        let rows = self.norm.rows(self.data.len(), cols);
        let pieces: Vec<&[usize]> = rows.chunks((PIECE / cols).max(1)).collect();
        let measured = parallel_map(self.host, pieces.len(), |piece| {
            let mut errors = vec![0f64; candidates.len()];
            let mut scaled = vec![0f32; cols];
            let mut rounded = vec![0f32; cols];
            for row in pieces[piece] {
                let (values, number) = (self.data.row(*row), self.data.first() + *row as u64);
                refuse_not_finite(values, self.shape.tensor, number)?;
                for (candidate, error) in candidates.iter().zip(&mut errors) {
                    let Candidate { scales, job } = candidate;
                    scale_row(values, scales, &mut scaled, self.shape.tensor, number)?;
                    self.base.round_trip(job, number, &scaled, &mut rounded)?;
                    for ((off, scale), value) in rounded.iter_mut().zip(scales).zip(values) {
                        *off = *off / scale - value;
                    }
                    *error += self.norm.of(&rounded);
                }
            }
            Ok(errors)
        })?;
        let mut sums = vec![0f64; candidates.len()];
        for errors in measured {
            sums.iter_mut().zip(errors).for_each(|(sum, error)| *sum += error);
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::testing::gaussian;

    #[test]
    fn powers_are_those_of_the_maths_library() {
        for x in [1e-4f64, 0.3, 1.0, 2.0, 1234.5] {
            for log2 in [2, 6, 7] {
                for part in 0..=1u32 << log2 {
                    let expected = x.powf(f64::from(part) / f64::from(1u32 << log2));
                    let found = power(x, part, log2);
                    // Seven roots and as many products, each rounded once.
                    assert!((found / expected - 1.0).abs() < 1e-14, "{x} to {part}/{}: {found}", 1 << log2);
                }
            }
        }
    }

    #[test]
    fn column_scales_lie_about_one() {
        let importance = [1.0, 16.0, 0.0625, 4.0];
        assert_eq!(column_scales(&importance, 0, 16), [1.0; 4]);
        // alpha = 1: the root of the importance.
        assert_eq!(column_scales(&importance, 32, 16), [1.0, 4.0, 0.25, 2.0]);
        // alpha = 1/2: its fourth root.
        assert_eq!(column_scales(&importance, 1, 1)[..3], [1.0, 2.0, 0.5]);
    }

    #[test]
    fn moments_give_the_mean_squared_output() {
        let cols = 37;
        let inputs = gaussian(50 * cols);
        let off = gaussian(51 * cols)[50 * cols..].to_vec();
        let stride = cols + 3;
        let mut moments = vec![f32::NAN; (cols - 1) * stride + cols];
        for i in 0..cols {
            for j in 0..cols {
                moments[i * stride + j] = inputs.chunks(cols).map(|x| x[i] * x[j]).sum::<f32>() / 50.0;
            }
        }
        let expected: f64 = inputs
            .chunks(cols)
            .map(|x| x.iter().zip(&off).map(|(x, off)| f64::from(*x) * f64::from(*off)).sum::<f64>().powi(2))
            .sum::<f64>()
            / 50.0;
        let found = Norm::Moments(&moments, stride).of(&off);
        // Sums of 37 x 37 products in single precision.
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
    }

    #[test]
    fn rows_lie_evenly_spaced() {
        let norm = Norm::Diagonal(&[]);
        assert_eq!(norm.rows(10, 100), (0..10).collect::<Vec<_>>());
        let rows = norm.rows(100_000, 4096);
        assert_eq!((rows.len(), rows[1], rows[255]), (256, 390, 99_609));
        assert_eq!(Norm::Moments(&[], 1).rows(5000, 1 << 14).len(), 64);
    }
}
