//! The forward pass, over one or several sequences at a time.

use crate::EngineError;
use crate::buffer::{Matrix, Rows, RowsMut};
use crate::cache::{LayerCache, Span, attend};
use crate::compute::Compute;
use crate::experts::{Route, route};
use crate::model::{
    ExpertLayer, FeedForward, HeadsNorm, LatentHeads, LatentProjection, Layer, Linear, Mlp, Model, Norm,
    Projection, add,
};
use crate::observe::Observer;
use crate::rope::{Angles, Rotation};
use crate::weight::multiply_all;
use kbit_models::description::{Activation, Description, Experts, Residual};
use std::sync::Arc;

mod blockwise;
mod shown;

use shown::Shown;

pub use blockwise::Passed;

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
    /// Of each kind of rotary positions that the model has.
    rotations: Vec<(Rotation, Angles)>,
    buffers: Buffers,
}

#[derive(Debug, Default)]
struct Sequence {
    len: usize,
    layers: Vec<LayerCache>,
    /// For each of the layers, where attention is observed.
    shown: Vec<Shown>,
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
    inner: Inner,
    /// What experts read and give.
    gathered: Matrix,
    expert: Matrix,
    /// Whatever has to lie somewhere for a moment.
    spare: Matrix,
}

/// Activations within a feed-forward network.
#[derive(Debug, Default)]
struct Inner {
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
            compute: Compute::new(model.kernels(), model.mode(), true),
            sequences: Vec::new(),
            rotations: model
                .ropes
                .iter()
                .map(|tensors| (Rotation::new(tensors, capacity), Angles::default()))
                .collect(),
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

    /// The same session, but `observer` sees what matrices are multiplied with.
    #[must_use]
    pub fn observed(mut self, observer: Arc<dyn Observer>) -> Self {
        self.compute.observer = Some(observer);
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

    /// Bytes of memory that keys and values take. It grows with the tokens, by blocks of 128 positions, and is kept when they are
    /// forgotten.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.sequences.iter().flat_map(|sequence| &sequence.layers).map(LayerCache::bytes).sum()
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
    /// turns them into logits. Texts are computed together, up to [`Session::BATCH`] tokens at a time, or block by block where the model is streamed; what the
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
        if self.model.is_streamed() {
            self.block_by_block(texts, states, |_| Ok::<(), EngineError>(()))?;
            let hidden = self.model.description().hidden;
            let (mut read, mut written) = (0, 0);
            for text in texts {
                let wanted = text.len().saturating_sub(from) * hidden;
                read += text.len() * hidden;
                states.copy_within(read - wanted..read, written);
                written += wanted;
            }
            states.truncate(written);
            return Ok(());
        }
        self.in_pool(|session| session.hidden_states_here(texts, from, states))
    }

    fn hidden_states_here(
        &mut self,
        texts: &[&[u32]],
        from: usize,
        states: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.clear();
        self.states_of(texts.iter().map(|&text| (text, from)), 0, states)
    }

    /// Final hidden states of several continuations of the tokens that the session holds: for each text those of its tokens from
    /// its number on, as in [`Session::hidden_states`]. The session holds the same tokens afterwards: what texts have in common is
    /// appended once, and each branches off from there.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn branches(&mut self, texts: &[(&[u32], usize)], states: &mut Vec<f32>) -> Result<(), EngineError> {
        self.in_pool(|session| session.branches_here(texts, states))
    }

    fn branches_here(&mut self, texts: &[(&[u32], usize)], states: &mut Vec<f32>) -> Result<(), EngineError> {
        let layers = self.model.description().layers;
        if self.sequences.len() <= texts.len() {
            self.sequences.resize_with(texts.len() + 1, Sequence::default);
        }
        if let Some((held, branches)) = self.sequences.split_first_mut() {
            for branch in branches.iter_mut().take(texts.len()) {
                branch.layers.resize_with(layers, LayerCache::default);
                for (to, from) in branch.layers.iter_mut().zip(&held.layers) {
                    to.copy_from(from, held.len, self.model.description().kv_heads)?;
                }
                branch.shown.clone_from(&held.shown);
                branch.len = held.len;
            }
        }
        self.states_of(texts.iter().copied(), 1, states)
    }

    /// Appends texts to the sequences from the `first`th on, and computes the final hidden states of their tokens from their
    /// numbers on.
    fn states_of<'t>(
        &mut self,
        texts: impl Iterator<Item = (&'t [u32], usize)> + Clone,
        first: usize,
        states: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        states.clear();
        for (text, _) in texts.clone() {
            self.check(self.len(), text)?;
        }
        let hidden = self.model.description().hidden;
        let rows: usize = texts.clone().map(|(text, from)| text.len().saturating_sub(from)).sum();
        let floats = rows.saturating_mul(hidden);
        let out_of_memory = || EngineError::OutOfMemory { bytes: floats.saturating_mul(size_of::<f32>()) };
        states.try_reserve_exact(floats).map_err(|_| out_of_memory())?;
        let mut batch: Vec<Piece<'_>> = Vec::new();
        let mut size = 0;
        for (index, (text, from)) in texts.enumerate() {
            let sequence = first + index;
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
        let (model, compute) = (self.model, &self.compute);
        match &model.output_projection {
            Some(projection) => {
                let mut projected = Matrix::default();
                linear(compute, projection, states, &mut projected)?;
                linear_into(compute, &model.output, projected.rows(), out.reborrow())?;
            }
            None => linear_into(compute, &model.output, states, out.reborrow())?,
        }
        scale_rows(compute, out.reborrow(), model.description().output_scale);
        if let Some(cap) = model.description().output_cap {
            each_row(compute, out, |_, row| compute.kernels.soft_cap(row, cap));
        }
        Ok(())
    }

    /// Runs `work` with the threads that share it gathered.
    fn in_pool<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> T + Send) -> T {
        match self.compute.team() {
            Some(team) => team.gather(|| work(self)),
            None => work(self),
        }
    }

    /// Checks tokens before anything is computed.
    fn check(&self, used: usize, tokens: &[u32]) -> Result<(), EngineError> {
        let d = self.model.description();
        let vocab = d.vocab;
        if tokens.len() > self.capacity.saturating_sub(used) {
            return Err(EngineError::ContextOverflow { used, new: tokens.len(), capacity: self.capacity });
        }
        if d.embedding.learned_positions && used + tokens.len() > d.context_length {
            return Err(EngineError::Positions { needed: used + tokens.len(), positions: d.context_length });
        }
        match tokens.iter().position(|&token| token as usize >= vocab) {
            Some(position) => Err(EngineError::Token { token: tokens[position], position, vocab }),
            None => Ok(()),
        }
    }

    /// The forward pass. Leaves the wanted hidden states, after the last normalisation, in `buffers.normed`.
    fn run(&mut self, pieces: &[Piece<'_>]) -> Result<(), EngineError> {
        let Self { model, compute, sequences, rotations, buffers: b, .. } = self;
        let d = model.description();
        let tokens: Vec<u32> = pieces.iter().flat_map(|piece| piece.tokens).copied().collect();
        for piece in pieces {
            if sequences.len() <= piece.sequence {
                sequences.resize_with(piece.sequence + 1, Sequence::default);
            }
        }
        // Also of those that nothing is appended to: a session that holds nothing may branch.
        for sequence in sequences.iter_mut() {
            sequence.layers.resize_with(d.layers, LayerCache::default);
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
        for (rotation, angles) in rotations.iter_mut() {
            rotation.extend(angles, reach)?;
        }

        embed(model, compute, &tokens, &all, b)?;
        for index in 0..d.layers {
            // After the last keys and values, only the tokens whose results are wanted go on.
            let on = if index + 1 == d.layers { &wanted } else { &all };
            let loaded = model.layer(index)?;
            let layer = &*loaded;
            let block = BlockPass { model, compute, rotations, index, layer, cache: index };
            block.run(sequences, &all, on, b)?;
        }
        norm_rows(compute, model.output_norm.as_ref(), b.stream.rows(), &mut b.normed)?;
        for span in &all {
            sequences[span.sequence].len = span.position + span.len;
        }
        Ok(())
    }
}

/// A batch on its way through one block of a model.
#[derive(Clone, Copy)]
struct BlockPass<'p> {
    model: &'p Model,
    compute: &'p Compute,
    rotations: &'p [(Rotation, Angles)],
    /// Which block.
    index: usize,
    layer: &'p Layer,
    /// Which of a sequence's caches its keys and values go to.
    cache: usize,
}

impl BlockPass<'_> {
    /// Takes the stream of the tokens of `all` through the block. Keys and values are stored for all of them; the last tokens of each, as
    /// `on` says, go on.
    fn run(
        &self,
        sequences: &mut [Sequence],
        all: &[Span],
        on: &[Span],
        b: &mut Buffers,
    ) -> Result<(), EngineError> {
        let Self { model, compute, rotations, index, layer, cache } = *self;
        let (d, heads) = (model.description(), model.heads(index, layer));
        let rotation = layer.rope.and_then(|rope| rotations.get(rope));
        let turn = |spans: &[Span], x: RowsMut<'_>| {
            let Some((rotation, angles)) = rotation else { return };
            let positions = positions(spans);
            each_row(compute, x, |row, x| {
                rotation.apply(compute.kernels, angles, positions[row], x, d.head_dim)
            });
        };
        // Side by side, both sub-layers read the stream before either adds to it.
        let parallel = d.residual == Residual::Parallel;
        // Norms of the stream itself stand behind the sub-layers instead.
        let after = d.residual == Residual::NormAfter;
        let before_attention = layer.before_attention.as_ref();
        let before_feed_forward = layer.before_feed_forward.as_ref();
        let separate = matches!(layer.projection, Projection::Separate { .. });
        let observer = compute.observer.as_deref().filter(|observer| separate && observer.wants_attention());

        norm_rows(compute, before_attention.filter(|_| !after), b.stream.rows(), &mut b.normed)?;
        let all_go_on = all.iter().map(|span| span.len).eq(on.iter().map(|span| span.len));
        keys_and_values(compute, d, layer, all_go_on, b)?;
        turn(all, b.keys.rows_mut());
        let mut row = 0;
        for span in all {
            let (keys, values) = (b.keys.rows().band(row, span.len), b.values.rows().band(row, span.len));
            let cached = &mut sequences[span.sequence].layers[cache];
            cached.store(compute, &heads, index, span.position, keys, values)?;
            if observer.is_some() {
                let shown = &mut sequences[span.sequence].shown;
                if shown.len() <= cache {
                    shown.resize_with(cache + 1, Shown::default);
                }
                shown[cache].store(span.position, keys, b.normed.rows().band(row, span.len))?;
            }
            row += span.len;
        }
        if !all_go_on {
            let fused = matches!(layer.projection, Projection::Fused(_));
            let kept = [&mut b.stream, &mut b.normed].into_iter().chain(fused.then_some(&mut b.queries));
            for matrix in kept {
                keep(all, on, matrix.rows(), &mut b.kept)?;
                std::mem::swap(matrix, &mut b.kept);
            }
        }
        queries(compute, d, layer, all_go_on, b)?;
        turn(on, b.queries.rows_mut());
        let caches: Vec<&LayerCache> = sequences.iter().map(|s| &s.layers[cache]).collect();
        b.attention.resize(b.stream.rows().rows(), d.attention_width())?;
        attend(compute, &heads, on, b.queries.rows(), b.attention.rows_mut(), &caches)?;
        if let Some(observer) = observer {
            self.show(observer, &heads, sequences, on, b.queries.rows())?;
        }
        leave_latent_space(compute, layer, b)?;
        linear(compute, &layer.attention_output, b.attention.rows(), &mut b.added)?;
        norm_in_place(compute, layer.after_attention.as_ref(), &mut b.added, &mut b.spare)?;

        if parallel {
            if before_feed_forward.is_some() {
                norm_rows(compute, before_feed_forward, b.stream.rows(), &mut b.normed)?;
            }
            add_rows(compute, b.added.rows(), d.residual_scale, b.stream.rows_mut());
        } else {
            add_rows(compute, b.added.rows(), d.residual_scale, b.stream.rows_mut());
            if after {
                norm_in_place(compute, before_attention, &mut b.stream, &mut b.spare)?;
            }
            let norm = before_feed_forward.filter(|_| !after);
            norm_rows(compute, norm, b.stream.rows(), &mut b.normed)?;
        }
        match &layer.feed_forward {
            FeedForward::Dense(mlp) => {
                feed_forward(compute, d.activation, mlp, b.normed.rows(), &mut b.inner, &mut b.added)?;
            }
            FeedForward::Experts(experts) => expert_feed_forward(compute, d, experts, b)?,
        }
        norm_in_place(compute, layer.after_feed_forward.as_ref(), &mut b.added, &mut b.spare)?;
        add_rows(compute, b.added.rows(), d.residual_scale, b.stream.rows_mut());
        if after {
            norm_in_place(compute, before_feed_forward, &mut b.stream, &mut b.spare)?;
        }
        Ok(())
    }
}

/// Positions of the tokens of spans, one after the other.
fn positions(spans: &[Span]) -> Vec<usize> {
    spans.iter().flat_map(|span| span.position..span.position + span.len).collect()
}

/// The first state of the stream.
fn embed(
    model: &Model,
    compute: &Compute,
    tokens: &[u32],
    spans: &[Span],
    b: &mut Buffers,
) -> Result<(), EngineError> {
    let d = model.description();
    b.stream.resize(tokens.len(), d.embedding.width)?;
    model.embedding.gather(compute, tokens, b.stream.rows_mut())?;
    scale_rows(compute, b.stream.rows_mut(), d.embedding.scale);
    if let Some(projection) = &model.embedding_projection {
        linear(compute, projection, b.stream.rows(), &mut b.spare)?;
        std::mem::swap(&mut b.stream, &mut b.spare);
    }
    if let Some(table) = &model.positions {
        // They are within the table, which is shorter than 2^32: checked before the pass.
        #[expect(clippy::cast_possible_truncation, reason = "checked before the pass")]
        let places: Vec<u32> = positions(spans).into_iter().map(|position| position as u32).collect();
        b.spare.resize(tokens.len(), d.hidden)?;
        table.gather(compute, &places, b.spare.rows_mut())?;
        add_rows(compute, b.spare.rows(), 1.0, b.stream.rows_mut());
    }
    norm_in_place(compute, model.embedding_norm.as_ref(), &mut b.stream, &mut b.spare)
}

/// Keys and values of all tokens, from `normed`. Queries come with them from a fused matrix, and where all tokens go on.
fn keys_and_values(
    compute: &Compute,
    d: &Description,
    layer: &Layer,
    all_go_on: bool,
    b: &mut Buffers,
) -> Result<(), EngineError> {
    match &layer.projection {
        Projection::Separate { query, key, value } if all_go_on => {
            let products = [(query, &mut b.queries), (key, &mut b.keys), (value, &mut b.values)];
            linear_all(compute, b.normed.rows(), products)?;
        }
        Projection::Separate { key, value, .. } => {
            linear_all(compute, b.normed.rows(), [(key, &mut b.keys), (value, &mut b.values)])?;
        }
        Projection::Fused(matrix) => {
            linear(compute, matrix, b.normed.rows(), &mut b.spare)?;
            let mut col = 0;
            for (out, width) in [
                (&mut b.queries, d.query_width()),
                (&mut b.keys, d.key_width()),
                (&mut b.values, d.value_width()),
            ] {
                let part = b.spare.rows().window(0, b.spare.rows().rows(), col, width);
                copy_rows(compute, part, out)?;
                col += width;
            }
        }
        Projection::Latent(latent) => return latent_keys_and_values(compute, d, latent, b),
    }
    clamp_rows(compute, d, b.keys.rows_mut());
    clamp_rows(compute, d, b.values.rows_mut());
    heads_norm_in_place(compute, layer.key_norm.as_ref(), &mut b.keys, &mut b.spare)
}

/// Queries of the tokens that go on, from `normed`, as far as [`keys_and_values`] has not made them.
fn queries(
    compute: &Compute,
    d: &Description,
    layer: &Layer,
    all_go_on: bool,
    b: &mut Buffers,
) -> Result<(), EngineError> {
    match &layer.projection {
        Projection::Separate { query, .. } if !all_go_on => {
            linear(compute, query, b.normed.rows(), &mut b.queries)?;
        }
        Projection::Separate { .. } | Projection::Fused(_) => {}
        Projection::Latent(latent) => return latent_queries(compute, d, latent, b),
    }
    clamp_rows(compute, d, b.queries.rows_mut());
    heads_norm_in_place(compute, layer.query_norm.as_ref(), &mut b.queries, &mut b.spare)
}

/// Keys `[latent or nope, rope]` and values of latent attention, from `normed`.
fn latent_keys_and_values(
    compute: &Compute,
    d: &Description,
    latent: &LatentProjection,
    b: &mut Buffers,
) -> Result<(), EngineError> {
    let shape = latent.shape;
    linear(compute, &latent.key_value, b.normed.rows(), &mut b.spare)?;
    let count = b.spare.rows().rows();
    let (vector, turning) = (
        b.spare.rows().window(0, count, 0, shape.rank),
        b.spare.rows().window(0, count, shape.rank, shape.rope),
    );
    norm_rows(compute, Some(&latent.key_value_norm), vector, &mut b.values)?;
    b.keys.resize(count, d.key_width())?;
    match &latent.heads {
        LatentHeads::Absorbed { .. } => {
            let values = b.values.rows();
            each_row(compute, b.keys.rows_mut(), |row, key| {
                key[..shape.rank].copy_from_slice(values.row(row));
                key[shape.rank..].copy_from_slice(turning.row(row));
            });
        }
        LatentHeads::Plain(matrix) => {
            linear(compute, matrix, b.values.rows(), &mut b.expert)?;
            let made = b.expert.rows();
            let width = shape.nope + shape.value;
            each_row(compute, b.keys.rows_mut(), |row, keys| {
                for (key, made) in keys.chunks_exact_mut(d.head_dim).zip(made.row(row).chunks_exact(width)) {
                    key[..shape.nope].copy_from_slice(&made[..shape.nope]);
                    key[shape.nope..].copy_from_slice(turning.row(row));
                }
            });
            b.values.resize(count, d.value_width())?;
            each_row(compute, b.values.rows_mut(), |row, values| {
                for (value, made) in
                    values.chunks_exact_mut(shape.value).zip(made.row(row).chunks_exact(width))
                {
                    value.copy_from_slice(&made[shape.nope..]);
                }
            });
        }
    }
    Ok(())
}

/// Queries of latent attention, from `normed`.
fn latent_queries(
    compute: &Compute,
    d: &Description,
    latent: &LatentProjection,
    b: &mut Buffers,
) -> Result<(), EngineError> {
    match &latent.query_rank {
        None => linear(compute, &latent.query, b.normed.rows(), &mut b.queries)?,
        Some((narrow, norm)) => {
            linear(compute, narrow, b.normed.rows(), &mut b.spare)?;
            norm_rows(compute, Some(norm), b.spare.rows(), &mut b.expert)?;
            linear(compute, &latent.query, b.expert.rows(), &mut b.queries)?;
        }
    }
    let LatentHeads::Absorbed { into, .. } = &latent.heads else { return Ok(()) };
    let shape = latent.shape;
    let (width, count) = (shape.nope + shape.rope, b.queries.rows().rows());
    b.spare.resize(count, d.query_width())?;
    for (head, matrix) in into.iter().enumerate() {
        let query = b.queries.rows().window(0, count, head * width, shape.nope);
        matrix.multiply(compute, query, b.spare.rows_mut().columns(head * d.head_dim, shape.rank))?;
    }
    let queries = b.queries.rows();
    each_row(compute, b.spare.rows_mut(), |row, out| {
        for (out, query) in out.chunks_exact_mut(d.head_dim).zip(queries.row(row).chunks_exact(width)) {
            out[shape.rank..].copy_from_slice(&query[shape.nope..]);
        }
    });
    std::mem::swap(&mut b.queries, &mut b.spare);
    Ok(())
}

/// What heads have gathered in the latent space becomes their values.
fn leave_latent_space(compute: &Compute, layer: &Layer, b: &mut Buffers) -> Result<(), EngineError> {
    let Projection::Latent(latent) = &layer.projection else { return Ok(()) };
    let LatentHeads::Absorbed { out_of, .. } = &latent.heads else { return Ok(()) };
    let shape = latent.shape;
    let count = b.attention.rows().rows();
    b.spare.resize(count, out_of.len() * shape.value)?;
    for (head, matrix) in out_of.iter().enumerate() {
        let gathered = b.attention.rows().window(0, count, head * shape.rank, shape.rank);
        matrix.multiply(compute, gathered, b.spare.rows_mut().columns(head * shape.value, shape.value))?;
    }
    std::mem::swap(&mut b.attention, &mut b.spare);
    Ok(())
}

/// `out = down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate.
fn feed_forward(
    compute: &Compute,
    activation: Activation,
    mlp: &Mlp,
    x: Rows<'_>,
    inner: &mut Inner,
    out: &mut Matrix,
) -> Result<(), EngineError> {
    let width = mlp.down.weight.cols();
    let gate = &mut inner.gate;
    if let Some(matrix) = &mlp.gate {
        linear_all(compute, x, [(matrix, &mut *gate), (&mlp.up, &mut inner.up)])?;
    } else {
        linear(compute, &mlp.up, x, &mut inner.up)?;
        if mlp.up.weight.rows() != 2 * width {
            each_row(compute, inner.up.rows_mut(), |_, up| activate(compute, activation, up, None));
            return linear(compute, &mlp.down, inner.up.rows(), out);
        }
        // The first half of `up`.
        copy_rows(compute, inner.up.rows().window(0, x.rows(), 0, width), gate)?;
    }
    let up = inner.up.rows().window(0, x.rows(), inner.up.rows().cols() - width, width);
    each_row(compute, gate.rows_mut(), |row, gate| activate(compute, activation, gate, Some(up.row(row))));
    linear(compute, &mlp.down, gate.rows(), out)
}

/// `x <- act(x)`, or `act(x) * up`.
fn activate(compute: &Compute, activation: Activation, x: &mut [f32], up: Option<&[f32]>) {
    let kernels = compute.kernels;
    match (activation, up) {
        (Activation::Silu, Some(up)) => return kernels.silu_mul(x, up),
        (Activation::ClampedSwiglu { alpha, limit }, Some(up)) => {
            return kernels.clamped_swiglu(x, up, alpha, limit);
        }
        // Without a gate there is nothing to be clamped.
        (Activation::Silu | Activation::ClampedSwiglu { .. }, None) => kernels.silu(x),
        (Activation::Gelu, _) => kernels.gelu(x),
        (Activation::GeluTanh, _) => kernels.gelu_tanh(x),
        (Activation::Relu, _) => kernels.relu(x),
    }
    for (x, up) in x.iter_mut().zip(up.unwrap_or_default()) {
        *x *= up;
    }
}

/// `added` = the experts' results for `normed`, weighted, and that of the expert that all tokens go through.
///
/// Each expert multiplies all of its tokens at once. A token adds up its experts' results in the order of their numbers,
/// so that it does not matter which tokens go together.
fn expert_feed_forward(
    compute: &Compute,
    d: &Description,
    layer: &ExpertLayer,
    b: &mut Buffers,
) -> Result<(), EngineError> {
    let count = b.normed.rows().rows();
    match &layer.shared {
        Some(shared) => {
            feed_forward(compute, d.activation, shared, b.normed.rows(), &mut b.inner, &mut b.added)?;
        }
        None => b.added.resize(count, d.hidden)?,
    }
    let added = &mut b.added;
    if let Some(gate) = &layer.shared_gate {
        linear(compute, gate, b.normed.rows(), &mut b.spare)?;
        let gates = b.spare.rows();
        each_row(compute, added.rows_mut(), |row, added| {
            let mut gate = [-gates.row(row)[0]];
            let _ = compute.kernels.exp_below(&mut gate, 0.0);
            added.iter_mut().for_each(|x| *x /= 1.0 + gate[0]);
        });
    }
    if layer.shared.is_none() {
        each_row(compute, added.rows_mut(), |_, row| row.fill(0.0));
    }
    linear(compute, &layer.router, b.normed.rows(), &mut b.spare)?;
    let Some(experts) = &d.experts else { return Ok(()) };
    for routes in routes(compute, experts, layer, b.spare.rows_mut()).chunk_by(|a, b| a.expert == b.expert) {
        let Some(expert) = routes.first().and_then(|route| layer.experts.get(route.expert)) else { continue };
        b.gathered.resize(routes.len(), d.hidden)?;
        let normed = b.normed.rows();
        each_row(compute, b.gathered.rows_mut(), |place, x| x.copy_from_slice(normed.row(routes[place].row)));
        feed_forward(compute, d.activation, expert, b.gathered.rows(), &mut b.inner, &mut b.expert)?;
        let mut added = b.added.rows_mut();
        for (place, route) in routes.iter().enumerate() {
            for (sum, x) in added.row_mut(route.row).iter_mut().zip(b.expert.rows().row(place)) {
                *sum += route.weight * x;
            }
        }
    }
    Ok(())
}

/// The routes of all tokens, by expert and then by token. `logits` `[n, experts]` are overwritten.
fn routes(compute: &Compute, experts: &Experts, layer: &ExpertLayer, mut logits: RowsMut<'_>) -> Vec<Route> {
    let mut routes = Vec::with_capacity(logits.rows() * experts.used);
    for row in 0..logits.rows() {
        route(compute.kernels, experts, layer.bias.as_deref(), row, logits.row_mut(row), &mut routes);
    }
    routes.sort_by_key(|route| (route.expert, route.row));
    routes
}

/// `out = x * weight^T + bias`.
fn linear(compute: &Compute, linear: &Linear, x: Rows<'_>, out: &mut Matrix) -> Result<(), EngineError> {
    out.resize(x.rows(), linear.weight.rows())?;
    linear_into(compute, linear, x, out.rows_mut())
}

/// As [`linear`], for several weights at once.
fn linear_all<const N: usize>(
    compute: &Compute,
    x: Rows<'_>,
    mut products: [(&Linear, &mut Matrix); N],
) -> Result<(), EngineError> {
    for (linear, out) in &mut products {
        out.resize(x.rows(), linear.weight.rows())?;
    }
    let weights = products.each_mut().map(|(linear, out)| (&linear.weight, out.rows_mut()));
    multiply_all(compute, x, weights)?;
    for (linear, out) in products {
        add_bias(compute, linear, out.rows_mut());
    }
    Ok(())
}

/// As [`linear`], into rows that are there.
fn linear_into(
    compute: &Compute,
    linear: &Linear,
    x: Rows<'_>,
    mut out: RowsMut<'_>,
) -> Result<(), EngineError> {
    linear.weight.multiply(compute, x, out.reborrow())?;
    add_bias(compute, linear, out);
    Ok(())
}

fn add_bias(compute: &Compute, linear: &Linear, out: RowsMut<'_>) {
    if let Some(bias) = &linear.bias {
        each_row(compute, out, |_, row| add(bias, row));
    }
}

/// `out = norm(x)`, or `x` where there is no norm.
fn norm_rows(
    compute: &Compute,
    norm: Option<&Norm>,
    x: Rows<'_>,
    out: &mut Matrix,
) -> Result<(), EngineError> {
    let Some(norm) = norm else { return copy_rows(compute, x, out) };
    out.resize(x.rows(), x.cols())?;
    each_row(compute, out.rows_mut(), |row, out| norm.apply(compute.kernels, x.row(row), out));
    Ok(())
}

/// `x = norm(x)`, if there is a norm.
fn norm_in_place(
    compute: &Compute,
    norm: Option<&Norm>,
    x: &mut Matrix,
    spare: &mut Matrix,
) -> Result<(), EngineError> {
    if norm.is_some() {
        norm_rows(compute, norm, x.rows(), spare)?;
        std::mem::swap(x, spare);
    }
    Ok(())
}

/// As [`norm_in_place`], head by head.
fn heads_norm_in_place(
    compute: &Compute,
    norm: Option<&HeadsNorm>,
    x: &mut Matrix,
    spare: &mut Matrix,
) -> Result<(), EngineError> {
    let Some(norm) = norm else { return Ok(()) };
    let from = x.rows();
    spare.resize(from.rows(), from.cols())?;
    each_row(compute, spare.rows_mut(), |row, out| norm.apply(compute.kernels, from.row(row), out));
    std::mem::swap(x, spare);
    Ok(())
}

/// `out = x`.
fn copy_rows(compute: &Compute, x: Rows<'_>, out: &mut Matrix) -> Result<(), EngineError> {
    out.resize(x.rows(), x.cols())?;
    each_row(compute, out.rows_mut(), |row, out| out.copy_from_slice(x.row(row)));
    Ok(())
}

/// Keeps queries, keys or values within their bound, if the model has one; NaN stays.
fn clamp_rows(compute: &Compute, d: &Description, x: RowsMut<'_>) {
    if let Some(bound) = d.attention.clamp {
        each_row(compute, x, |_, row| row.iter_mut().for_each(|x| *x = x.clamp(-bound, bound)));
    }
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
    let done = compute.for_each(rows.bands(band), |index, mut rows| {
        for row in 0..rows.rows() {
            work(index * band + row, rows.row_mut(row));
        }
        Ok(())
    });
    debug_assert!(done.is_ok(), "the work cannot fail");
}
