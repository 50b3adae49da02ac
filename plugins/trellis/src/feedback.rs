//! Error feedback: a row is searched in short stretches, and the errors of each correct the weights after it.
//!
//! With second moments of the inputs, an error of some weights can be made good by later ones (GPTQ, Frantar et al. 2022), also where
//! several weights are chosen together (QuIP#, Tseng et al. 2024, section 4: block by block). Here the moments are rotated as the weights
//! are, and a search looks some windows ahead of its stretch, over weights that do not know its errors yet.

use crate::arch::Kernels;
use crate::code::{Code, DENOMINATOR};
use crate::rotation::Rotation;
use crate::search::Search;
use kbit_plugin::{Error, Host};
use kbit_scheme_kit::Factor;

/// Rows that go through the columns together, so that factors are read once for all of them.
pub(crate) const ROWS: usize = 8;
/// Weights of a stretch: fewer feed back sooner and take more searches.
const STRETCH: usize = 16;
/// Windows that a search looks ahead: survivors have a common past after that.
const WINDOWS_AHEAD: u32 = 10;

/// Factors for rotated rows, of the second moments `moments` `[cols][stride]`, by the threads of `host`.
///
/// # Errors
/// Moments that are not finite, or not positive semidefinite; cancellation.
pub(crate) fn factor(
    host: &Host<'_>,
    rotation: &Rotation,
    kernels: Kernels,
    (moments, stride): (&[f32], usize),
    cols: usize,
    damping: f64,
    tensor: &str,
) -> Result<Factor, Error> {
    let mut rotated: Vec<f32> =
        moments.chunks(stride).take(cols).flat_map(|row| &row[..cols]).copied().collect();
    // R H R^T: the rows of H, then those of what came out, the other way round.
    for pass in 0..2 {
        if pass == 1 {
            transpose(&mut rotated, cols);
        }
        rotated.chunks_exact_mut(cols).for_each(|row| rotation.apply(kernels, row));
    }
    let order: Vec<u32> = (0..).take(cols).collect();
    Factor::new(host, &rotated, cols, &order, damping).map_err(|error| error.of_tensor(tensor))
}

fn transpose(matrix: &mut [f32], cols: usize) {
    for a in 0..cols {
        for b in 0..a {
            matrix.swap(a * cols + b, b * cols + a);
        }
    }
}

/// Some rows on their way through the columns.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// `[rows][cols]` of unit variance, corrected so far; then as many rows of corrections for the sake of the scales, which begin as zeros.
    targets: Vec<f32>,
    /// Errors of a stretch, a row for each of `targets`.
    errors: Vec<f32>,
}

impl Rows {
    /// Finds `windows`, as many, for `rows` `[n][cols]`, rotated and of unit variance; their number is at most [`ROWS`]. Returns for each row the
    /// factor by which the values of its windows cost the least.
    pub(crate) fn search(
        &mut self,
        factor: &Factor,
        code: Code,
        search: &mut Search<'_>,
        rows: &[f32],
        cols: usize,
        windows: &mut [u32],
    ) -> Vec<f64> {
        let count = rows.len() / cols;
        self.targets.clear();
        self.targets.extend_from_slice(rows);
        self.targets.resize(2 * rows.len(), 0.0);
        self.errors.resize(2 * count * STRETCH, 0.0);
        let ahead = STRETCH + (2 * WINDOWS_AHEAD * code.window() / code.pair()) as usize;
        let ends: Vec<u32> = rows.chunks_exact(cols).map(|row| search.seam(row)).collect();
        let mut starts = ends.clone();
        // What a factor of the values costs is a square in it: these are the sums of its two terms.
        let mut sums = vec![(0f64, 0f64); count];
        for first in (0..cols).step_by(STRETCH) {
            let block = first..(first + STRETCH).min(cols);
            let (targets, own) = self.targets.split_at_mut(rows.len());
            let (errors, own_errors) = self.errors.split_at_mut(count * STRETCH);
            for row in 0..count {
                let place = |column: usize| row * cols + column;
                let target = &mut targets[place(first)..place(cols)];
                let windows = &mut windows[place(block.start)..place(block.end)];
                starts[row] = search.stretch(target, ahead, first, starts[row], ends[row], windows);
                let own = &mut own[place(first)..place(block.end)];
                for (index, window) in windows.iter().enumerate() {
                    let (column, last) = (first + index, block.len());
                    let value = f32::from(code.value(*window as u16)) / DENOMINATOR;
                    let error = target[index] - value;
                    let whole = own[index] + value;
                    errors[row * STRETCH + index] = error;
                    own_errors[row * STRETCH + index] = whole;
                    factor.take(column, error, &mut target[index + 1..last]);
                    factor.take(column, whole, &mut own[index + 1..last]);
                    let variance = f64::from(factor.variances()[column]);
                    sums[row].0 += variance * f64::from(error + whole) * f64::from(whole);
                    sums[row].1 += variance * f64::from(whole).powi(2);
                }
            }
            pulp::Arch::new().dispatch(|| factor.correct(&block, &self.errors, STRETCH, &mut self.targets));
        }
        let best = |(with, without): (f64, f64)| if without > 0.0 { with / without } else { 1.0 };
        sums.into_iter().map(best).collect()
    }
}
