//! Second moments: of what a matrix is multiplied with, the mean of `x x^T`, each `x` counted as far as an error of its product matters.
//!
//! To most matrices all tokens are alike. Attention makes a difference, and where it is known, moments of its matrices say so:
//!
//! - A matrix of *values* is felt through what heads gather. An error `E` of the matrix changes that of a query with weights `a[t]` by
//!   `E m`, `m` being the sum of `a[t] x[t]`: so its moments are the mean of `m m^T` over queries and heads. One token that all others
//!   attend to (Xiao et al. 2023, arXiv 2309.17453: an attention sink) counts for as much as it is attended to.
//! - A matrix of *keys* is felt through scores. What errors of the scores do to the softmax is, to second order, their variance under
//!   `a`; with errors of different tokens independent, as rotary positions make them, that is the sum of `a[t] (1 - a[t]) e[t]^2`. So
//!   moments are the mean over queries and heads of the sum of `a[t] (1 - a[t]) x[t] x[t]^T`.
//!
//! They are gathered block by block, so that those of one block at a time are in memory, and each is handed over when its block is done.
//! Within a batch products are added in single precision, batches in double precision; and each band of rows is multiplied by one thread, so
//! that figures do not depend on their number.

use crate::gather::Squares;
use crate::{CalibrateError, GatherOptions, Gathered};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use kbit_engine::{Attention, MatrixName, Model, Observer, Passed, Rows, Session};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An input that tensors share, and which matters to all of them alike: their second moments are the same, and are gathered once.
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
    /// Matrices of keys and of values whose attention is known.
    attended: BTreeSet<String>,
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
        let attended: BTreeSet<String> = observer
            .take_attended()
            .into_iter()
            .flat_map(|attended| [attended.key, attended.value])
            .collect();
        let mut inputs: Vec<SharedInput> = Vec::new();
        for Seen { matrices, rows } in observer.take_seen() {
            let slices = matrices.first().map_or(1, |matrix| matrix.slices);
            let (own, shared): (Vec<String>, Vec<String>) =
                matrices.into_iter().map(|matrix| matrix.tensor).partition(|name| attended.contains(name));
            for tensors in std::iter::once(shared).chain(own.into_iter().map(|name| vec![name])) {
                if !tensors.is_empty() && inputs.iter().all(|input| input.tensors != tensors) {
                    inputs.push(SharedInput { tensors, slices, cols: rows.cols });
                }
            }
        }
        Ok(Self { session, options, inputs, attended })
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
        let Self { mut session, options, inputs, attended } = self;
        let observer = Arc::new(Inputs::default());
        session = session.observed(Arc::clone(&observer) as Arc<dyn Observer>);
        let windows = options.windows(windows);
        let texts: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let mut sums: BTreeMap<(usize, usize), Sums> = BTreeMap::new();
        session.block_by_block(&texts, &mut Vec::new(), |progress| {
            match progress {
                Passed::Batch { .. } => {
                    observer.squares.finite()?;
                    let mut add = |tensors: &[&str], slice: usize, rows: [&Copied; 2], counted: usize| {
                        let input = inputs.iter().position(|input| input.tensors == tensors);
                        let Some(input) = input.filter(|_| !tensors.is_empty()) else { return };
                        sums.entry((input, slice))
                            .or_insert_with(|| Sums::new(rows[0].cols))
                            .add(rows, counted);
                    };
                    for Seen { matrices, rows } in observer.take_seen() {
                        let names = matrices.iter().map(|matrix| matrix.tensor.as_str());
                        let names: Vec<&str> = names.filter(|name| !attended.contains(*name)).collect();
                        let slice = matrices.first().map_or(0, |matrix| matrix.slice);
                        add(&names, slice, [&rows, &rows], rows.len());
                    }
                    for seen in observer.take_attended() {
                        add(&[&seen.value], 0, [&seen.inputs, &seen.gathered()], seen.queries);
                        let scores = seen.scores();
                        add(&[&seen.key], 0, [&scores, &scores], seen.queries);
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
    attended: Mutex<Vec<Attended>>,
}

/// Inputs of some matrices.
#[derive(Debug)]
struct Seen {
    matrices: Vec<MatrixName>,
    rows: Copied,
}

/// How the tokens of one text attend, in one layer: sums over queries and heads, `a` being the weights of one query.
#[derive(Debug)]
struct Attended {
    key: String,
    value: String,
    /// `[positions, cols]`.
    inputs: Copied,
    /// `[positions, positions]`, of which the lower triangle is kept: the sums of `a[s] a[t]`.
    together: Vec<f32>,
    /// The sums of `a[t] (1 - a[t])`.
    variances: Vec<f64>,
    /// How many queries, of all heads.
    queries: usize,
}

/// `[n, cols]`.
#[derive(Clone, Debug)]
struct Copied {
    cols: usize,
    data: Vec<f32>,
}

impl Copied {
    fn of(rows: Rows<'_>) -> Self {
        let mut data = Vec::with_capacity(rows.rows() * rows.cols());
        (0..rows.rows()).for_each(|row| data.extend_from_slice(rows.row(row)));
        Self { cols: rows.cols(), data }
    }

    /// Number of rows.
    fn len(&self) -> usize {
        self.data.len() / self.cols.max(1)
    }
}

impl Attended {
    fn new(key: &MatrixName, value: &MatrixName, inputs: Rows<'_>) -> Self {
        let positions = inputs.rows();
        Self {
            key: key.tensor.clone(),
            value: value.tensor.clone(),
            inputs: Copied::of(inputs),
            together: vec![0.0; positions * positions],
            variances: vec![0.0; positions],
            queries: 0,
        }
    }

    /// Adds the queries of one key head: `weights` `[tokens, group * positions]`, where tokens are the last of the positions.
    fn add(&mut self, weights: Rows<'_>) {
        let positions = self.variances.len();
        let Copied { cols, data } = Copied::of(weights);
        let (tokens, group) = (weights.rows(), cols / positions.max(1));
        for row in data.chunks_exact(positions.max(1)) {
            for (sum, weight) in self.variances.iter_mut().zip(row) {
                *sum += f64::from(weight * (1.0 - weight));
            }
        }
        self.queries += tokens * group;
        // `[tokens, group * positions]` is `[tokens * group, positions]`.
        let weights = MatRef::from_row_major_slice(&data, tokens * group, positions);
        let bands = self.together.par_chunks_mut(BAND * positions.max(1));
        bands.enumerate().for_each(|(index, out)| {
            let (first, rows) = (index * BAND, out.len() / positions);
            // No earlier query attends to the band.
            let before = (first + tokens).saturating_sub(positions) * group;
            let weights = weights.subrows(before, tokens * group - before);
            let out = MatMut::from_row_major_slice_mut(out, rows, positions);
            let (own, up_to) = (weights.subcols(first, rows), weights.subcols(0, first + rows));
            matmul(out.subcols_mut(0, first + rows), Accum::Add, own.transpose(), up_to, 1.0, Par::Seq);
        });
    }

    /// What all queries gather of the inputs, handed back to the positions that they gathered it from: the products of these rows with the
    /// inputs are those of what the heads gather with itself. `[positions, cols]`.
    fn gathered(&self) -> Copied {
        let (cols, positions) = (self.inputs.cols, self.variances.len());
        let inputs = MatRef::from_row_major_slice(&self.inputs.data, positions, cols);
        let lower = MatRef::from_row_major_slice(&self.together, positions, positions);
        let mut data = vec![0.0; self.inputs.data.len()];
        let bands = data.par_chunks_mut(BAND * cols.max(1));
        bands.enumerate().for_each(|(index, out)| {
            let (first, rows) = (index * BAND, out.len() / cols);
            let both = Mat::from_fn(rows, positions, |row, col| {
                let row = first + row;
                lower[(row.max(col), row.min(col))]
            });
            let out = MatMut::from_row_major_slice_mut(out, rows, cols);
            matmul(out, Accum::Replace, both.as_ref(), inputs, 1.0, Par::Seq);
        });
        Copied { cols, data }
    }

    /// Inputs by the square root of what the variances of scores under the weights make of them. `[positions, cols]`.
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32 once")]
    fn scores(&self) -> Copied {
        let mut scaled = self.inputs.clone();
        for (row, variance) in scaled.data.chunks_exact_mut(scaled.cols.max(1)).zip(&self.variances) {
            // A weight may be the rounding of 1 too large.
            let factor = variance.max(0.0).sqrt() as f32;
            row.iter_mut().for_each(|x| *x *= factor);
        }
        scaled
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inputs {
    fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *lock(&self.seen))
    }

    fn take_attended(&self) -> Vec<Attended> {
        std::mem::take(&mut *lock(&self.attended))
    }
}

impl Observer for Inputs {
    fn inputs(&self, matrices: &[&MatrixName], inputs: Rows<'_>) {
        self.squares.inputs(matrices, inputs);
        let wanted = matrices.iter().filter(|matrix| self.squares.wants(&matrix.tensor));
        let matrices: Vec<MatrixName> = wanted.map(|matrix| (*matrix).clone()).collect();
        if !matrices.is_empty() {
            lock(&self.seen).push(Seen { matrices, rows: Copied::of(inputs) });
        }
    }

    fn wants_attention(&self) -> bool {
        true
    }

    fn attention(&self, attention: &Attention<'_>) {
        let Attention { kv_head, key, value, inputs, weights } = *attention;
        let mut attended = lock(&self.attended);
        if kv_head == 0 {
            attended.push(Attended::new(key, value, inputs));
        }
        if let Some(text) = attended.last_mut() {
            text.add(weights);
        }
    }
}

/// Rows of a product that are a task.
const BAND: usize = 64;

/// The lower triangle of sums of `x x^T`, and of how many tokens or queries they are.
#[derive(Debug)]
struct Sums {
    cols: usize,
    triangle: Vec<f64>,
    counted: u64,
}

/// Where row `row` of a lower triangle begins.
const fn start_of(row: usize) -> usize {
    row * (row + 1) / 2
}

impl Sums {
    fn new(cols: usize) -> Self {
        Self { cols, triangle: vec![0.0; start_of(cols)], counted: 0 }
    }

    /// Adds the sum of the products of a row of the one with its own of the other, in parallel bands, to a mean of so many more. The sum is
    /// symmetric.
    fn add(&mut self, rows: [&Copied; 2], counted: usize) {
        let cols = self.cols;
        self.counted += counted as u64;
        let [x, y] = rows.map(|rows| MatRef::from_row_major_slice(&rows.data, rows.len(), cols));
        let mut rest = self.triangle.as_mut_slice();
        let mut bands = Vec::with_capacity(cols.div_ceil(BAND));
        for first in (0..cols).step_by(BAND) {
            let (own, others) = rest.split_at_mut(start_of((first + BAND).min(cols)) - start_of(first));
            rest = others;
            bands.push((first, own));
        }
        // Long ones first, so that no thread ends long after the others.
        bands.reverse();
        bands.into_par_iter().with_max_len(1).for_each(|(first, own)| add_band(x, y, first, own));
    }

    /// The means; zeros where nothing was seen.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "counts are below 2^53; means in single precision"
    )]
    fn means(&self) -> Vec<f32> {
        let counted = self.counted.max(1) as f64;
        self.triangle.iter().map(|sum| (sum / counted) as f32).collect()
    }
}

/// Adds the products of the columns of `y` from `first` on with those of `x` up to their own. `out`: their rows of the triangle.
fn add_band(x: MatRef<'_, f32>, y: MatRef<'_, f32>, first: usize, out: &mut [f64]) {
    let end = (first + BAND).min(x.ncols());
    let mut products = Mat::<f32>::zeros(end, end - first);
    let (all, own) = (x.subcols(0, end).transpose(), y.subcols(first, end - first));
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
                let rows = Copied { cols, data: data.to_vec() };
                sums.add([&rows, &rows], rows.len());
            }
            assert_eq!(sums.counted, count as u64);
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
    fn values_count_by_what_heads_gather_and_keys_by_the_variance_of_their_scores() {
        // 70 tokens behind 5 others, two query heads: more than a band of queries.
        let (cols, tokens, group, positions) = (3, 70, 2, 75);
        let mut weights = Vec::new();
        for query in 0..tokens * group {
            let reach = positions - tokens + query / group + 1;
            let row: Vec<f32> =
                (0..positions).map(|t| if t < reach { (1 + t % 7) as f32 } else { 0.0 }).collect();
            let sum: f32 = row.iter().sum();
            weights.extend(row.iter().map(|weight| weight / sum));
        }
        let inputs = numbers(positions * cols);
        let name = MatrixName { tensor: String::new(), slice: 0, slices: 1 };
        let mut seen = Attended::new(&name, &name, Rows::new(&inputs, positions, cols, cols));
        // Two key heads that attend alike.
        for _ in 0..2 {
            seen.add(Rows::new(&weights, tokens, group * positions, group * positions));
        }
        let queries = tokens * group;
        assert_eq!(seen.queries, 2 * queries);
        let mut sums = Sums::new(cols);
        sums.add([&seen.inputs, &seen.gathered()], 2 * queries);
        let (means, scores) = (sums.means(), seen.scores());
        let weight = |query: usize, t: usize| f64::from(weights[query * positions + t]);
        let x = |t: usize, col: usize| f64::from(inputs[t * cols + col]);
        let gathered =
            |query: usize, col: usize| -> f64 { (0..positions).map(|t| weight(query, t) * x(t, col)).sum() };
        for a in 0..cols {
            for b in 0..=a {
                let products = (0..queries).map(|query| gathered(query, a) * gathered(query, b));
                let expected = products.sum::<f64>() / queries as f64;
                // Means of products below 1 whose factors are sums of some hundred numbers, each rounded to 2^-24.
                let found = f64::from(means[start_of(a) + b]);
                assert!((found - expected).abs() < 1e-5, "{a}, {b}: {found}, {expected}");
            }
            for t in 0..positions {
                let variance: f64 =
                    (0..queries).map(|query| 2.0 * weight(query, t) * (1.0 - weight(query, t))).sum();
                let found = f64::from(scores.data[t * cols + a]);
                assert!((found - variance.sqrt() * x(t, a)).abs() < 1e-5, "{t}, {a}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut sums = Sums::new(150);
                let rows = Copied { cols: 150, data: numbers(150 * 300) };
                sums.add([&rows, &rows], 300);
                let name = MatrixName { tensor: String::new(), slice: 0, slices: 1 };
                let mut seen = Attended::new(&name, &name, Rows::new(&rows.data, 300, 150, 150));
                seen.add(Rows::new(&numbers(200 * 600), 200, 600, 600));
                (sums.triangle, seen.gathered().data)
            })
        };
        let one = run(1);
        assert!(run(2) == one && run(3) == one);
    }
}
