//! The forward pass, over one or several sequences at a time.

use crate::EngineError;
use crate::buffer::{Matrix, Rows, RowsMut};
use crate::cache::{LayerCache, Span, attend};
use crate::compute::Compute;
use crate::model::{Layer, Linear, Model, add};
use crate::rope::Angles;
use kbit_models::description::{Activation, Residual};
use rayon::prelude::*;

/// A run of a model: the tokens so far, their keys and values, and the memory to compute with.
///
/// ```no_run
/// # fn main() -> Result<(), kbit_engine::EngineError> {
/// # let model: kbit_engine::Model = unimplemented!();
/// let mut session = model.session(256);
/// let mut logits = Vec::new();
/// session.forward(&[1, 5, 17], 2, &mut logits)?; // logits of the token that follows the three
/// assert_eq!(logits.len(), model.description().vocab);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model,
    capacity: usize,
    compute: Compute,
    sequences: Vec<Sequence>,
    angles: Angles,
    buffers: Buffers,
}

#[derive(Debug, Default)]
struct Sequence {
    len: usize,
    layers: Vec<LayerCache>,
}

/// Activations of a batch.
#[derive(Debug, Default)]
struct Buffers {
    /// The residual stream.
    stream: Matrix,
    /// The stream of the tokens that go on after the last layer's keys and values.
    kept: Matrix,
    normed: Matrix,
    queries: Matrix,
    keys: Matrix,
    values: Matrix,
    attention: Matrix,
    /// What a sub-layer adds to the stream.
    added: Matrix,
    gate: Matrix,
    up: Matrix,
}

/// Tokens of one sequence in a batch, and from which of them on the result is wanted.
struct Piece<'t> {
    sequence: usize,
    tokens: &'t [u32],
    from: usize,
}

impl<'m> Session<'m> {
    /// Tokens that go through the model together, at most.
    pub const BATCH: usize = 512;

    pub(crate) fn new(model: &'m Model, capacity: usize) -> Self {
        Self {
            model,
            capacity,
            compute: Compute::new(model.kernels(), true),
            sequences: Vec::new(),
            angles: Angles::default(),
            buffers: Buffers::default(),
        }
    }

    /// The same session, but computing on the calling thread alone: for whoever runs several sessions in parallel.
    /// Results are the same.
    #[must_use]
    pub fn on_one_thread(mut self) -> Self {
        self.compute.parallel = false;
        self
    }

    /// The model that it runs.
    #[must_use]
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Tokens that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sequences.first().map_or(0, |sequence| sequence.len)
    }

    /// True where there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        for sequence in &mut self.sequences {
            sequence.len = 0;
        }
    }

    /// Forgets the tokens from the `len`th on. Those before are as if the others had never been.
    pub fn truncate(&mut self, len: usize) {
        if let Some(sequence) = self.sequences.first_mut() {
            sequence.len = sequence.len.min(len);
        }
    }

    /// Appends `tokens` and computes the logits `[tokens.len() - from, vocab]` that follow the tokens from the
    /// `from`th on. What `logits` held is lost. After an error the session is as before the call.
    ///
    /// # Errors
    /// When a token is not in the vocabulary, the context overflows, a tensor cannot be decoded, or memory is short.
    pub fn forward(&mut self, tokens: &[u32], from: usize, logits: &mut Vec<f32>) -> Result<(), EngineError> {
        self.in_pool(|session| session.forward_here(tokens, from, logits))
    }

    fn forward_here(
        &mut self,
        tokens: &[u32],
        from: usize,
        logits: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        logits.clear();
        self.check(self.len(), tokens)?;
        let vocab = self.model.description().vocab;
        let rows = tokens.len().saturating_sub(from);
        let floats = rows.saturating_mul(vocab);
        let out_of_memory = || EngineError::OutOfMemory { bytes: floats.saturating_mul(size_of::<f32>()) };
        logits.try_reserve_exact(floats).map_err(|_| out_of_memory())?;
        logits.resize(floats, 0.0);
        let before = self.len();
        let mut done = 0;
        for (index, batch) in tokens.chunks(Self::BATCH).enumerate() {
            let start = index * Self::BATCH;
            let piece =
                Piece { sequence: 0, tokens: batch, from: from.saturating_sub(start).min(batch.len()) };
            let rows = batch.len() - piece.from;
            let result = self.run(&[piece]).and_then(|()| {
                let out = RowsMut::new(&mut logits[done * vocab..], rows, vocab, vocab);
                self.write_logits(self.buffers.normed.rows().band(0, rows), out)
            });
            if let Err(error) = result {
                if let Some(sequence) = self.sequences.first_mut() {
                    sequence.len = before;
                }
                return Err(error);
            }
            done += rows;
        }
        Ok(())
    }

    /// Final hidden states of several texts, each from an empty context: for each text those of the tokens from the
    /// `from`th on, after the last normalisation, `[rows, hidden]`, one text after the other. [`Session::logits`]
    /// turns them into logits. Texts are computed together, up to [`Session::BATCH`] tokens at a time; what the
    /// session held is lost.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn hidden_states(
        &mut self,
        texts: &[&[u32]],
        from: usize,
        states: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.in_pool(|session| session.hidden_states_here(texts, from, states))
    }

    fn hidden_states_here(
        &mut self,
        texts: &[&[u32]],
        from: usize,
        states: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        states.clear();
        self.clear();
        for text in texts {
            self.check(0, text)?;
        }
        let hidden = self.model.description().hidden;
        let rows: usize = texts.iter().map(|text| text.len().saturating_sub(from)).sum();
        let floats = rows.saturating_mul(hidden);
        let out_of_memory = || EngineError::OutOfMemory { bytes: floats.saturating_mul(size_of::<f32>()) };
        states.try_reserve_exact(floats).map_err(|_| out_of_memory())?;
        let mut batch: Vec<Piece<'_>> = Vec::new();
        let mut size = 0;
        for (sequence, text) in texts.iter().enumerate() {
            for (index, tokens) in text.chunks(Self::BATCH).enumerate() {
                if size + tokens.len() > Self::BATCH
                    || batch.last().is_some_and(|last| last.sequence == sequence)
                {
                    self.run(&batch)?;
                    self.append_states(states);
                    batch.clear();
                    size = 0;
                }
                let from = from.saturating_sub(index * Self::BATCH).min(tokens.len());
                batch.push(Piece { sequence, tokens, from });
                size += tokens.len();
            }
        }
        if !batch.is_empty() {
            self.run(&batch)?;
            self.append_states(states);
        }
        Ok(())
    }

    fn append_states(&self, states: &mut Vec<f32>) {
        let normed = self.buffers.normed.rows();
        for row in 0..normed.rows() {
            states.extend_from_slice(normed.row(row));
        }
    }

    /// Logits `[n, vocab]` of final hidden states `[n, hidden]`.
    ///
    /// # Errors
    /// When the output matrix cannot be decoded, or memory is short.
    ///
    /// # Panics
    /// If the lengths are not `n * hidden` and `n * vocab` for one `n`.
    pub fn logits(&mut self, states: &[f32], logits: &mut [f32]) -> Result<(), EngineError> {
        let d = self.model.description();
        let (hidden, vocab) = (d.hidden, d.vocab);
        let rows = states.len() / hidden;
        assert_eq!(
            (states.len(), logits.len()),
            (rows * hidden, rows * vocab),
            "lengths of states and logits"
        );
        self.in_pool(|session| {
            // Copied, so that rows start on cache lines.
            let mut aligned = std::mem::take(&mut session.buffers.kept);
            let mut done = 0;
            let mut rest = RowsMut::new(logits, rows, vocab, vocab);
            let result = loop {
                let count = Self::BATCH.min(rows - done);
                if count == 0 {
                    break Ok(());
                }
                if let Err(error) = aligned.resize(count, hidden) {
                    break Err(error);
                }
                let mut copy = aligned.rows_mut();
                for (row, state) in states[done * hidden..].chunks_exact(hidden).enumerate().take(count) {
                    copy.row_mut(row).copy_from_slice(state);
                }
                let (out, others) = rest.split(count);
                rest = others;
                if let Err(error) = session.write_logits(aligned.rows(), out) {
                    break Err(error);
                }
                done += count;
            };
            session.buffers.kept = aligned;
            result
        })
    }

    fn write_logits(&self, states: Rows<'_>, mut out: RowsMut<'_>) -> Result<(), EngineError> {
        self.model.output.multiply(&self.compute, states, out.reborrow())?;
        let scale = self.model.description().output_scale;
        #[expect(clippy::float_cmp, reason = "exactly 1 means no scaling")]
        if scale != 1.0 {
            each_row(&self.compute, out, |_, row| row.iter_mut().for_each(|logit| *logit *= scale));
        }
        Ok(())
    }

    /// Runs `work` on a thread of rayon's current pool, so that its parallel loops need not enter it one by one.
    fn in_pool<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> T + Send) -> T {
        if self.compute.parallel && rayon::current_thread_index().is_none() {
            rayon::scope(|_| work(self))
        } else {
            work(self)
        }
    }

    /// Checks tokens before anything is computed.
    fn check(&self, used: usize, tokens: &[u32]) -> Result<(), EngineError> {
        let vocab = self.model.description().vocab;
        if tokens.len() > self.capacity.saturating_sub(used) {
            return Err(EngineError::ContextOverflow { used, new: tokens.len(), capacity: self.capacity });
        }
        match tokens.iter().position(|&token| token as usize >= vocab) {
            Some(position) => Err(EngineError::Token { token: tokens[position], position, vocab }),
            None => Ok(()),
        }
    }

    /// The forward pass. Leaves the wanted hidden states, after the last normalisation, in `buffers.normed`.
    fn run(&mut self, pieces: &[Piece<'_>]) -> Result<(), EngineError> {
        let Self { model, compute, sequences, angles, buffers: b, .. } = self;
        let d = model.description();
        let tokens: Vec<u32> = pieces.iter().flat_map(|piece| piece.tokens).copied().collect();
        for piece in pieces {
            if sequences.len() <= piece.sequence {
                sequences.resize_with(piece.sequence + 1, Sequence::default);
            }
            sequences[piece.sequence].layers.resize_with(d.layers, LayerCache::default);
        }
        let all: Vec<Span> = pieces
            .iter()
            .map(|piece| Span {
                sequence: piece.sequence,
                position: sequences[piece.sequence].len,
                len: piece.tokens.len(),
            })
            .collect();
        let wanted: Vec<Span> = pieces
            .iter()
            .zip(&all)
            .map(|(piece, span)| Span {
                position: span.position + piece.from,
                len: span.len - piece.from,
                ..*span
            })
            .collect();
        let reach = all.iter().map(|span| span.position + span.len).max().unwrap_or(0);
        model.rotation.extend(angles, reach)?;

        b.stream.resize(tokens.len(), d.hidden)?;
        model.embedding.gather(compute, &tokens, b.stream.rows_mut())?;
        scale_rows(compute, b.stream.rows_mut(), d.embedding_scale);

        for (index, layer) in model.layers.iter().enumerate() {
            let Residual::Sequential = d.residual;
            let last = index + 1 == model.layers.len();
            norm_rows(compute, &layer.attention_norm, b.stream.rows(), &mut b.normed)?;
            linear(compute, &layer.key, b.normed.rows(), &mut b.keys)?;
            linear(compute, &layer.value, b.normed.rows(), &mut b.values)?;
            let rotate = |spans: &[Span], x: RowsMut<'_>| {
                let positions: Vec<usize> =
                    spans.iter().flat_map(|span| span.position..span.position + span.len).collect();
                each_row(compute, x, |row, x| model.rotation.apply(angles, positions[row], x, d.head_dim));
            };
            rotate(&all, b.keys.rows_mut());
            let mut row = 0;
            for span in &all {
                let (keys, values) = (b.keys.rows().band(row, span.len), b.values.rows().band(row, span.len));
                sequences[span.sequence].layers[index].store(d, span.position, keys, values)?;
                row += span.len;
            }
            // After the last keys and values, only the tokens whose results are wanted go on.
            let spans = if last { &wanted } else { &all };
            if last {
                keep(&all, &wanted, b.stream.rows(), &mut b.kept)?;
                std::mem::swap(&mut b.stream, &mut b.kept);
                keep(&all, &wanted, b.normed.rows(), &mut b.kept)?;
                std::mem::swap(&mut b.normed, &mut b.kept);
            }
            linear(compute, &layer.query, b.normed.rows(), &mut b.queries)?;
            rotate(spans, b.queries.rows_mut());
            let caches: Vec<&LayerCache> = sequences.iter().map(|s| &s.layers[index]).collect();
            b.attention.resize(b.stream.rows().rows(), d.attention_width())?;
            attend(compute, d, spans, b.queries.rows(), b.attention.rows_mut(), &caches)?;
            linear(compute, &layer.attention_output, b.attention.rows(), &mut b.added)?;
            add_rows(compute, b.added.rows(), d.residual_scale, b.stream.rows_mut());

            norm_rows(compute, &layer.feed_forward_norm, b.stream.rows(), &mut b.normed)?;
            feed_forward(compute, d.activation, layer, b)?;
            add_rows(compute, b.added.rows(), d.residual_scale, b.stream.rows_mut());
        }
        norm_rows(compute, &model.output_norm, b.stream.rows(), &mut b.normed)?;
        for span in &all {
            sequences[span.sequence].len = span.position + span.len;
        }
        Ok(())
    }
}

/// `added = down(act(gate(normed)) * up(normed))`, or `down(act(up(normed)))` without a gate.
fn feed_forward(
    compute: &Compute,
    activation: Activation,
    layer: &Layer,
    b: &mut Buffers,
) -> Result<(), EngineError> {
    let kernels = compute.kernels;
    linear(compute, &layer.up, b.normed.rows(), &mut b.up)?;
    let inner = match &layer.gate {
        Some(gate) => {
            linear(compute, gate, b.normed.rows(), &mut b.gate)?;
            let up = b.up.rows();
            each_row(compute, b.gate.rows_mut(), |row, gate| match activation {
                Activation::Silu => kernels.silu_mul(gate, up.row(row)),
            });
            b.gate.rows()
        }
        None => {
            each_row(compute, b.up.rows_mut(), |_, up| match activation {
                Activation::Silu => kernels.silu(up),
            });
            b.up.rows()
        }
    };
    linear(compute, &layer.down, inner, &mut b.added)
}

/// `out = x * weight^T + bias`.
fn linear(compute: &Compute, linear: &Linear, x: Rows<'_>, out: &mut Matrix) -> Result<(), EngineError> {
    out.resize(x.rows(), linear.weight.rows())?;
    linear.weight.multiply(compute, x, out.rows_mut())?;
    if let Some(bias) = &linear.bias {
        each_row(compute, out.rows_mut(), |_, row| add(bias, row));
    }
    Ok(())
}

fn norm_rows(
    compute: &Compute,
    norm: &crate::model::Norm,
    x: Rows<'_>,
    out: &mut Matrix,
) -> Result<(), EngineError> {
    out.resize(x.rows(), x.cols())?;
    each_row(compute, out.rows_mut(), |row, out| norm.apply(compute.kernels, x.row(row), out));
    Ok(())
}

/// `out += scale * x`.
fn add_rows(compute: &Compute, x: Rows<'_>, scale: f32, out: RowsMut<'_>) {
    each_row(compute, out, |row, out| {
        for (out, x) in out.iter_mut().zip(x.row(row)) {
            *out += scale * x;
        }
    });
}

fn scale_rows(compute: &Compute, x: RowsMut<'_>, scale: f32) {
    #[expect(clippy::float_cmp, reason = "exactly 1 means no scaling")]
    if scale != 1.0 {
        each_row(compute, x, |_, row| row.iter_mut().for_each(|x| *x *= scale));
    }
}

/// Copies the rows of `wanted` out of those of `all`.
fn keep(all: &[Span], wanted: &[Span], from: Rows<'_>, to: &mut Matrix) -> Result<(), EngineError> {
    to.resize(wanted.iter().map(|span| span.len).sum(), from.cols())?;
    let mut to = to.rows_mut();
    let (mut read, mut written) = (0, 0);
    for (all, wanted) in all.iter().zip(wanted) {
        for row in all.len - wanted.len..all.len {
            to.row_mut(written).copy_from_slice(from.row(read + row));
            written += 1;
        }
        read += all.len;
    }
    Ok(())
}

/// Calls `work` with the number and the floats of each row, in parallel bands.
fn each_row(compute: &Compute, rows: RowsMut<'_>, work: impl Fn(usize, &mut [f32]) + Sync) {
    /// Floats that are worth a task.
    const TASK: usize = 1 << 13;
    let band = (TASK / rows.cols().max(1)).max(1);
    let run = |(index, mut rows): (usize, RowsMut<'_>)| {
        for row in 0..rows.rows() {
            work(index * band + row, rows.row_mut(row));
        }
    };
    if compute.threads() > 1 && rows.rows() > band {
        rows.bands(band).enumerate().collect::<Vec<_>>().into_par_iter().for_each(run);
    } else {
        rows.bands(band).enumerate().for_each(run);
    }
}
