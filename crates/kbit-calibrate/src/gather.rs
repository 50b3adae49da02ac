//! Gathering: a model runs over texts, and the squares of what its matrices are multiplied with are added up, as llama-imatrix does.
//!
//! Squares are added in double precision, row by row in the order of the text, so that figures depend neither on the number of threads
//! nor on interruptions. llama-imatrix adds them in single precision.

use crate::{CalibrateError, Gathered};
use kbit_engine::{MatrixName, Model, Observer, Rows, Session};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How texts go through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherOptions {
    /// Tokens in a window.
    pub context: usize,
    /// What replaces the first token of each window, for models that want a beginning-of-text token.
    pub bos: Option<u32>,
    /// Gather for the output matrix too, where the model has one of its own.
    pub output: bool,
}

impl GatherOptions {
    /// The windows as the model sees them.
    pub(crate) fn windows(&self, windows: &[&[u32]]) -> Vec<Vec<u32>> {
        let begun = |window: &&[u32]| {
            let mut window = window.to_vec();
            if let (Some(bos), Some(first)) = (self.bos, window.first_mut()) {
                *first = bos;
            }
            window
        };
        windows.iter().map(begun).collect()
    }
}

/// Runs a model over windows of text and adds up what its matrices are multiplied with.
#[derive(Debug)]
pub struct Gatherer<'m> {
    session: Session<'m>,
    options: GatherOptions,
    squares: Arc<Squares>,
    states: Vec<f32>,
    logits: Vec<f32>,
}

impl<'m> Gatherer<'m> {
    /// Floats of hidden states that a streamed model, which is read once for all windows together, has in memory.
    const STREAMED: usize = 1 << 26;
    /// Rows of logits that are computed at a time, to see the input of the output matrix.
    const LOGITS: usize = 64;

    /// Nothing gathered yet.
    #[must_use]
    pub fn new(model: &'m Model, options: GatherOptions) -> Self {
        let squares = Arc::new(Squares { output: options.output, state: Mutex::default() });
        let session = model.session(options.context).observed(Arc::clone(&squares) as Arc<dyn Observer>);
        Self { session, options, squares, states: Vec::new(), logits: Vec::new() }
    }

    /// Windows that go through the model together.
    #[must_use]
    pub fn together(&self) -> usize {
        let model = self.session.model();
        let tokens = if model.is_streamed() {
            Self::STREAMED / model.description().hidden.max(1)
        } else {
            Session::BATCH
        };
        (tokens / self.options.context.max(1)).max(1)
    }

    /// Runs `windows`, each of [`GatherOptions::context`] tokens.
    ///
    /// # Errors
    /// When the model cannot be run, or an activation is not finite.
    pub fn add(&mut self, windows: &[&[u32]]) -> Result<(), CalibrateError> {
        let windows = self.options.windows(windows);
        let texts: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        self.session.hidden_states(&texts, 0, &mut self.states)?;
        let description = self.session.model().description();
        let (hidden, vocab) = (description.hidden, description.vocab);
        if self.options.output && !description.tied_output {
            for states in self.states.chunks(Self::LOGITS * hidden) {
                self.logits.resize(states.len() / hidden * vocab, 0.0);
                self.session.logits(states, &mut self.logits)?;
            }
        }
        self.squares.finite()
    }

    /// Goes on from what was gathered before.
    pub fn resume(&mut self, gathered: Vec<Gathered>) {
        let sums = gathered.into_iter().map(|Gathered { name, sums, counts }| (name, Sums { sums, counts }));
        self.squares.lock().tensors = sums.collect();
    }

    /// What was gathered so far, in the order of the names.
    #[must_use]
    pub fn gathered(&self) -> Vec<Gathered> {
        self.squares.gathered()
    }
}

/// Sums of one tensor.
#[derive(Debug, Default)]
struct Sums {
    /// `[slices, cols]`.
    sums: Vec<f64>,
    /// Tokens: of each expert, or one number for the tensor.
    counts: Vec<u64>,
}

/// Adds up squares.
#[derive(Debug, Default)]
pub(crate) struct Squares {
    /// Of the output matrix too.
    output: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tensors: BTreeMap<String, Sums>,
    /// Of the inputs at hand, `[cols]`.
    squares: Vec<f64>,
    /// The first input whose square was not finite: tensor and column.
    not_finite: Option<(String, usize)>,
}

impl Squares {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses an input that was not finite.
    pub(crate) fn finite(&self) -> Result<(), CalibrateError> {
        match self.lock().not_finite.take() {
            None => Ok(()),
            Some((tensor, column)) => Err(CalibrateError::NotFinite { tensor, column }),
        }
    }

    /// What was gathered so far, in the order of the names.
    pub(crate) fn gathered(&self) -> Vec<Gathered> {
        let entry = |(name, sums): (&String, &Sums)| Gathered {
            name: name.clone(),
            sums: sums.sums.clone(),
            counts: sums.counts.clone(),
        };
        self.lock().tensors.iter().map(entry).collect()
    }

    /// As llama-imatrix chooses: matrices in the blocks, and the output matrix on request.
    pub(crate) fn wants(&self, tensor: &str) -> bool {
        tensor.starts_with("blk.") || (self.output && tensor == "output.weight")
    }
}

/// True of stacks of which each token sees a few matrices.
pub(crate) fn is_of_experts(tensor: &str) -> bool {
    tensor.ends_with("_exps.weight")
}

impl Observer for Squares {
    fn inputs(&self, matrices: &[&MatrixName], inputs: Rows<'_>) {
        let mut wanted = matrices.iter().filter(|matrix| self.wants(&matrix.tensor)).peekable();
        let Some(first) = wanted.peek().map(|matrix| matrix.tensor.clone()) else { return };
        let mut state = self.lock();
        let State { tensors, squares, not_finite } = &mut *state;
        squares.clear();
        squares.resize(inputs.cols(), 0.0);
        for row in 0..inputs.rows() {
            for (sum, x) in squares.iter_mut().zip(inputs.row(row)) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        if let Some(column) = squares.iter().position(|square| !square.is_finite()) {
            not_finite.get_or_insert((first, column));
            return;
        }
        for MatrixName { tensor, slice, slices } in wanted {
            let of_experts = is_of_experts(tensor);
            if !tensors.contains_key(tensor) {
                let sums = Sums {
                    sums: vec![0.0; slices * squares.len()],
                    counts: vec![0; if of_experts { *slices } else { 1 }],
                };
                tensors.insert(tensor.clone(), sums);
            }
            let Some(entry) = tensors.get_mut(tensor) else { continue };
            let sums = &mut entry.sums[slice * squares.len()..][..squares.len()];
            sums.iter_mut().zip(&*squares).for_each(|(sum, square)| *sum += square);
            // All matrices of another stack see the same tokens, which are counted once.
            let counted = if of_experts { *slice } else { 0 };
            if of_experts || *slice == 0 {
                entry.counts[counted] += inputs.rows() as u64;
            }
        }
    }
}

/// Mean squares of some columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Means(BTreeMap<String, Vec<f64>>);

impl Means {
    /// Of what was gathered; columns of experts without tokens are 0.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub fn new(gathered: &[Gathered]) -> Self {
        let mean = |entry: &Gathered| {
            let each = entry.sums.len() / entry.counts.len().max(1);
            let count = |index: usize| entry.counts[index / each.max(1)].max(1) as f64;
            entry.sums.iter().enumerate().map(|(index, sum)| sum / count(index)).collect()
        };
        Self(gathered.iter().map(|entry| (entry.name.clone(), mean(entry))).collect())
    }

    /// How far the means have moved since `earlier`: of each tensor the sum of the changes over the sum of the means.
    #[must_use]
    pub fn moved(&self, earlier: &Self) -> Option<Moved> {
        let mut all: Vec<(f64, &str)> = self
            .0
            .iter()
            .filter_map(|(name, now)| {
                let before = earlier.0.get(name)?;
                let change: f64 = now.iter().zip(before).map(|(now, before)| (now - before).abs()).sum();
                let sum: f64 = now.iter().sum();
                (sum > 0.0 && before.len() == now.len()).then(|| (change / sum, name.as_str()))
            })
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (most, tensor) = all.last()?;
        Some(Moved { median: all[all.len() / 2].0, most: *most, tensor: (*tensor).to_owned() })
    }
}

/// How far means have moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moved {
    /// The median over tensors, relative.
    pub median: f64,
    /// The largest.
    pub most: f64,
    /// The tensor that it is of.
    pub tensor: String,
}

/// Experts of one tensor that saw little.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Starved {
    /// Tensor.
    pub tensor: String,
    /// Experts that saw no token.
    pub unseen: Vec<usize>,
    /// Experts that saw less than a tenth of what the mean expert saw.
    pub rare: Vec<usize>,
}

/// The stacks of experts of which some saw little.
#[must_use]
pub fn starved(gathered: &[Gathered]) -> Vec<Starved> {
    let of = |entry: &Gathered| {
        let total: u64 = entry.counts.iter().sum();
        let experts = entry.counts.len() as u64;
        let which = |is: &dyn Fn(u64) -> bool| {
            entry.counts.iter().enumerate().filter(|(_, count)| is(**count)).map(|(index, _)| index).collect()
        };
        let starved = Starved {
            tensor: entry.name.clone(),
            unseen: which(&|count| count == 0),
            rare: which(&|count| count > 0 && count.saturating_mul(10 * experts) < total),
        };
        (!starved.unseen.is_empty() || !starved.rare.is_empty()).then_some(starved)
    };
    gathered.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, sums: &[f64], counts: &[u64]) -> Gathered {
        Gathered { name: name.to_owned(), sums: sums.to_vec(), counts: counts.to_vec() }
    }

    fn matrix(tensor: &str, slice: usize, slices: usize) -> MatrixName {
        MatrixName { tensor: tensor.to_owned(), slice, slices }
    }

    #[test]
    fn squares_are_counted_for_every_matrix_that_shares_an_input() {
        let squares = Squares { output: false, state: Mutex::default() };
        let data = [1.0, 2.0, 3.0, 4.0];
        let rows = Rows::new(&data, 2, 2, 2);
        let names =
            [matrix("blk.0.a.weight", 0, 1), matrix("output.weight", 0, 1), matrix("blk.0.b.weight", 0, 1)];
        squares.inputs(&names.each_ref(), rows);
        squares.inputs(&[&names[0]], rows);
        let state = squares.lock();
        assert_eq!(state.tensors.len(), 2);
        let a = &state.tensors["blk.0.a.weight"];
        assert_eq!((a.sums.as_slice(), a.counts.as_slice()), (&[20.0, 40.0][..], &[4][..]));
    }

    #[test]
    fn experts_have_counts_of_their_own_and_heads_share_one() {
        let squares = Squares { output: false, state: Mutex::default() };
        let data = [1.0, 2.0];
        for (slice, rows) in [(0, 1), (2, 2)] {
            let rows = Rows::new(&data, rows, 1, 1);
            squares.inputs(&[&matrix("blk.0.ffn_up_exps.weight", slice, 3)], rows);
        }
        for slice in 0..3 {
            squares.inputs(&[&matrix("blk.0.attn_k_b.weight", slice, 3)], Rows::new(&data, 2, 1, 1));
        }
        let state = squares.lock();
        let experts = &state.tensors["blk.0.ffn_up_exps.weight"];
        assert_eq!(
            (experts.sums.as_slice(), experts.counts.as_slice()),
            (&[1.0, 0.0, 5.0][..], &[1, 0, 2][..])
        );
        let heads = &state.tensors["blk.0.attn_k_b.weight"];
        assert_eq!((heads.sums.as_slice(), heads.counts.as_slice()), (&[5.0; 3][..], &[2][..]));
    }

    #[test]
    fn an_input_that_is_not_finite_is_kept_out_and_named() {
        let squares = Squares { output: true, state: Mutex::default() };
        let data = [1.0, f32::NAN];
        squares.inputs(&[&matrix("output.weight", 0, 1)], Rows::new(&data, 1, 2, 2));
        let state = squares.lock();
        assert_eq!(state.not_finite, Some(("output.weight".to_owned(), 1)));
        assert!(state.tensors.is_empty());
    }

    #[test]
    fn means_tell_how_far_they_have_moved() {
        let early = Means::new(&[entry("a", &[2.0, 6.0], &[2]), entry("b", &[1.0], &[1])]);
        let late = Means::new(&[entry("a", &[6.0, 10.0], &[4]), entry("b", &[3.0], &[1])]);
        let moved = late.moved(&early).unwrap();
        // a: (1, 3) became (1.5, 2.5); b: 1 became 3.
        assert_eq!(moved.tensor, "b");
        assert!((moved.most - 2.0 / 3.0).abs() < 1e-12 && (moved.median - 2.0 / 3.0).abs() < 1e-12);
        assert!(Means::new(&[]).moved(&early).is_none());
    }

    #[test]
    fn experts_that_saw_little_are_named() {
        let found = starved(&[entry("a", &[0.0; 4], &[100, 0, 3, 97]), entry("b", &[0.0; 2], &[5, 5])]);
        assert_eq!(found, [Starved { tensor: "a".to_owned(), unseen: vec![1], rare: vec![2] }]);
    }
}
