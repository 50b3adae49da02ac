//! Second moments: of what a matrix is multiplied with, the mean of `x x^T` over tokens.
//!
//! They are gathered block by block, so that those of one block at a time are in memory, and each is handed over when its block is done.
//! Within a batch products are added in single precision, batches in double precision; and each band of rows is multiplied by one thread, so
//! that figures do not depend on their number.

use crate::gather::Squares;
use crate::{CalibrateError, GatherOptions, Gathered};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use kbit_engine::{MatrixName, Model, Observer, Passed, Rows, Session};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An input that tensors share: their second moments are the same, and are gathered once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedInput {
    /// The tensors, in the order in which the forward pass uses them.
    pub tensors: Vec<String>,
    /// Matrices of each tensor, which have an input each.
    pub slices: usize,
    /// Columns.
    pub cols: usize,
}

impl SharedInput {
    /// Numbers of the lower triangle of a matrix of second moments, diagonal included.
    #[must_use]
    pub const fn triangle(&self) -> usize {
        self.cols * (self.cols + 1) / 2
    }
}

/// The second moments of one input, complete.
#[derive(Debug)]
pub struct Moments<'a> {
    /// Which input, by its place in [`MomentGatherer::inputs`].
    pub input: usize,
    /// Which matrix of the tensors.
    pub slice: usize,
    /// Rows of the lower triangle, one after the other: row `a` has the means of `x[a] * x[b]` for `b` from 0 to `a`.
    pub means: &'a [f32],
}

/// Runs a model over windows of text, block by block, and gathers second moments.
#[derive(Debug)]
pub struct MomentGatherer<'m> {
    session: Session<'m>,
    options: GatherOptions,
    inputs: Vec<SharedInput>,
}

impl<'m> MomentGatherer<'m> {
    /// Finds out what tensors share inputs, by running one token.
    ///
    /// # Errors
    /// When the model cannot be run.
    pub fn new(model: &'m Model, options: GatherOptions) -> Result<Self, CalibrateError> {
        let observer = Arc::new(Inputs::default());
        let mut session = model.session(options.context).observed(Arc::clone(&observer) as Arc<dyn Observer>);
        let token = [options.bos.unwrap_or(0)];
        session.hidden_states(&[&token[..]], 0, &mut Vec::new())?;
        let mut inputs: Vec<SharedInput> = Vec::new();
        for Seen { matrices, rows } in std::mem::take(&mut *observer.seen()) {
            let tensors: Vec<String> = matrices.iter().map(|matrix| matrix.tensor.clone()).collect();
            if inputs.iter().all(|input| input.tensors != tensors) {
                let slices = matrices.first().map_or(1, |matrix| matrix.slices);
                inputs.push(SharedInput { tensors, slices, cols: rows.cols });
            }
        }
        Ok(Self { session, options, inputs })
    }

    /// The inputs, in the order of the forward pass.
    #[must_use]
    pub fn inputs(&self) -> &[SharedInput] {
        &self.inputs
    }

    /// Runs `windows`, each of [`GatherOptions::context`] tokens. `passed` is told how far they have come, and `done` gets the second
    /// moments of each input as soon as they are complete. Returns the sums of squares, as [`Gatherer`](crate::Gatherer) gathers them.
    ///
    /// # Errors
    /// When the model cannot be run, an activation is not finite, or `done` fails.
    pub fn gather(
        self,
        windows: &[&[u32]],
        mut passed: impl FnMut(Passed),
        mut done: impl FnMut(Moments<'_>) -> Result<(), CalibrateError>,
    ) -> Result<Vec<Gathered>, CalibrateError> {
        let Self { mut session, options, inputs } = self;
        let observer = Arc::new(Inputs::default());
        session = session.observed(Arc::clone(&observer) as Arc<dyn Observer>);
        let windows = options.windows(windows);
        let texts: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let mut sums: BTreeMap<(usize, usize), Sums> = BTreeMap::new();
        session.block_by_block(&texts, &mut Vec::new(), |progress| {
            match progress {
                Passed::Batch { .. } => {
                    observer.squares.finite()?;
                    for Seen { matrices, rows } in std::mem::take(&mut *observer.seen()) {
                        let names = || matrices.iter().map(|matrix| &matrix.tensor);
                        let input = inputs.iter().position(|input| input.tensors.iter().eq(names()));
                        let Some(input) = input else { continue };
                        let slice = matrices.first().map_or(0, |matrix| matrix.slice);
                        sums.entry((input, slice)).or_insert_with(|| Sums::new(rows.cols)).add(&rows);
                    }
                }
                Passed::Block(_) => {
                    for ((input, slice), sums) in std::mem::take(&mut sums) {
                        done(Moments { input, slice, means: &sums.means() })?;
                    }
                }
            }
            passed(progress);
            Ok::<(), CalibrateError>(())
        })?;
        Ok(observer.squares.gathered())
    }
}

/// What has been seen since it was last looked at.
#[derive(Debug, Default)]
struct Inputs {
    squares: Squares,
    seen: Mutex<Vec<Seen>>,
}

/// Inputs of some matrices.
#[derive(Debug)]
struct Seen {
    matrices: Vec<MatrixName>,
    rows: Copied,
}

/// `[n, cols]`.
#[derive(Debug)]
struct Copied {
    cols: usize,
    data: Vec<f32>,
}

impl Inputs {
    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Inputs {
    fn inputs(&self, matrices: &[&MatrixName], inputs: Rows<'_>) {
        self.squares.inputs(matrices, inputs);
        let wanted = matrices.iter().filter(|matrix| self.squares.wants(&matrix.tensor));
        let matrices: Vec<MatrixName> = wanted.map(|matrix| (*matrix).clone()).collect();
        if !matrices.is_empty() {
            let data = (0..inputs.rows()).flat_map(|row| inputs.row(row)).copied().collect();
            self.seen().push(Seen { matrices, rows: Copied { cols: inputs.cols(), data } });
        }
    }
}

/// Rows of the triangle that are a task.
const BAND: usize = 64;

/// The lower triangle of sums of `x x^T`, and the number of tokens.
#[derive(Debug)]
struct Sums {
    cols: usize,
    triangle: Vec<f64>,
    tokens: u64,
}

/// Where row `row` of a lower triangle begins.
const fn start_of(row: usize) -> usize {
    row * (row + 1) / 2
}

impl Sums {
    fn new(cols: usize) -> Self {
        Self { cols, triangle: vec![0.0; start_of(cols)], tokens: 0 }
    }

    /// Adds the products of `rows`, in parallel bands.
    fn add(&mut self, rows: &Copied) {
        let (cols, count) = (self.cols, rows.data.len() / self.cols.max(1));
        self.tokens += count as u64;
        let x = MatRef::from_row_major_slice(&rows.data, count, cols);
        let mut rest = self.triangle.as_mut_slice();
        let mut bands = Vec::with_capacity(cols.div_ceil(BAND));
        for first in (0..cols).step_by(BAND) {
            let (own, others) = rest.split_at_mut(start_of((first + BAND).min(cols)) - start_of(first));
            rest = others;
            bands.push((first, own));
        }
        // Long ones first, so that no thread ends long after the others.
        bands.reverse();
        bands.into_par_iter().with_max_len(1).for_each(|(first, own)| add_band(x, first, own));
    }

    /// The means; zeros where nothing was seen.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "counts are below 2^53; means in single precision"
    )]
    fn means(&self) -> Vec<f32> {
        let tokens = self.tokens.max(1) as f64;
        self.triangle.iter().map(|sum| (sum / tokens) as f32).collect()
    }
}

/// Adds the products of the columns from `first` on with those up to their own. `out`: their rows of the triangle.
fn add_band(x: MatRef<'_, f32>, first: usize, out: &mut [f64]) {
    let end = (first + BAND).min(x.ncols());
    let mut products = Mat::<f32>::zeros(end, end - first);
    let (all, own) = (x.subcols(0, end).transpose(), x.subcols(first, end - first));
    matmul(products.as_mut(), Accum::Replace, all, own, 1.0, Par::Seq);
    let mut rest = out;
    for (column, row) in (first..end).enumerate() {
        let (own, others) = rest.split_at_mut(row + 1);
        rest = others;
        for (b, sum) in own.iter_mut().enumerate() {
            *sum += f64::from(products[(b, column)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count as u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32) / 8_388_608.0 - 1.0).collect()
    }

    #[test]
    fn sums_are_those_of_all_products() {
        for (cols, count) in [(1, 1), (3, 7), (31, 5), (32, 5), (33, 40), (70, 9), (100, 512)] {
            let mut sums = Sums::new(cols);
            let data = numbers(cols * count);
            // In two batches.
            let half = count / 2 * cols;
            for data in [&data[..half], &data[half..]] {
                sums.add(&Copied { cols, data: data.to_vec() });
            }
            assert_eq!(sums.tokens, count as u64);
            let means = sums.means();
            for a in 0..cols {
                for b in 0..=a {
                    let products = data.chunks(cols).map(|x| f64::from(x[a]) * f64::from(x[b]));
                    let expected = products.sum::<f64>() / count as f64;
                    let found = f64::from(means[start_of(a) + b]);
                    // At most 512 roundings of sums below 512, each by 2^-24 of it, over 512 tokens.
                    assert!(
                        (found - expected).abs() < 1e-4,
                        "{cols}, {count}: {a}, {b}: {found}, {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut sums = Sums::new(150);
                sums.add(&Copied { cols: 150, data: numbers(150 * 300) });
                sums.triangle
            })
        };
        let one = run(1);
        assert!(run(2) == one && run(3) == one);
    }
}
