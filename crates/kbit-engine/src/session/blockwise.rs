//! Many texts through a model block by block: all of them through the first block, then all through the second, and so on.
//!
//! The weights of a block are then used by all texts before those of the next one are touched, and whoever observes them has all
//! that there is to see of a block before the next one begins. The streams of all tokens stay in memory meanwhile, keys and values
//! those of one batch.

use super::{BlockPass, LayerCache, Sequence, Session, Span, embed, norm_rows};
use crate::EngineError;

/// How far texts have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Another batch of so many tokens is through block `block`.
    Batch {
        /// Which block.
        block: usize,
        /// Tokens.
        tokens: usize,
    },
    /// All texts are through this block.
    Block(usize),
}

/// Tokens of one text that are computed together with others, up to [`Session::BATCH`].
struct Part<'t> {
    tokens: &'t [u32],
    span: Span,
}

impl Session<'_> {
    /// Final hidden states `[rows, hidden]` of all tokens of `texts`, as [`Session::hidden_states`] gives them, computed block by block.
    /// `passed` is told whenever a batch or all texts are through a block, and may stop it all. What the session held is lost.
    ///
    /// # Errors
    /// As [`Session::forward`], and what `passed` returns.
    pub fn block_by_block<E: From<EngineError>>(
        &mut self,
        texts: &[&[u32]],
        states: &mut Vec<f32>,
        mut passed: impl FnMut(Passed) -> Result<(), E>,
    ) -> Result<(), E> {
        self.clear();
        for text in texts {
            self.check(0, text)?;
        }
        let hidden = self.model.description().hidden;
        let floats = texts.iter().map(|text| text.len()).sum::<usize>().saturating_mul(hidden);
        states.clear();
        states
            .try_reserve_exact(floats)
            .map_err(|_| EngineError::OutOfMemory { bytes: floats.saturating_mul(size_of::<f32>()) })?;
        states.resize(floats, 0.0);

        let batches = batches(texts);
        let sequences = batches.iter().flatten().map(|part| part.span.sequence + 1).max().unwrap_or(0);
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        if self.sequences.len() < sequences {
            self.sequences.resize_with(sequences, Sequence::default);
        }
        for sequence in &mut self.sequences {
            if sequence.layers.is_empty() {
                sequence.layers.push(LayerCache::default());
            }
        }
        for (rotation, angles) in &mut self.rotations {
            rotation.extend(angles, longest)?;
        }

        self.each_batch(
            &batches,
            states,
            |_| Ok::<(), EngineError>(()),
            |session, parts, spans| {
                let tokens: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
                embed(session.model, &session.compute, &tokens, spans, &mut session.buffers)
            },
        )?;
        let model = self.model;
        for block in 0..model.description().layers {
            let loaded = model.layer(block)?;
            let layer = &*loaded;
            let told = |tokens| passed(Passed::Batch { block, tokens });
            self.each_batch(&batches, states, told, |session, _, spans| {
                let Session { compute, sequences, rotations, buffers, .. } = session;
                BlockPass { model, compute, rotations, index: block, layer, cache: 0 }
                    .run(sequences, spans, spans, buffers)
            })?;
            passed(Passed::Block(block))?;
        }
        self.each_batch(
            &batches,
            states,
            |_| Ok::<(), EngineError>(()),
            |session, _, _| {
                let Session { model, compute, buffers, .. } = session;
                norm_rows(compute, model.output_norm.as_ref(), buffers.stream.rows(), &mut buffers.normed)?;
                std::mem::swap(&mut buffers.normed, &mut buffers.stream);
                Ok(())
            },
        )?;
        Ok(())
    }

    /// Calls `work` with each batch, whose stream is taken from `streams` and put back there; `told` is called after each with its tokens.
    fn each_batch<E: From<EngineError>>(
        &mut self,
        batches: &[Vec<Part<'_>>],
        streams: &mut [f32],
        mut told: impl FnMut(usize) -> Result<(), E>,
        work: impl Fn(&mut Self, &[Part<'_>], &[Span]) -> Result<(), EngineError> + Sync,
    ) -> Result<(), E> {
        let hidden = self.model.description().hidden;
        let mut rest = streams;
        for parts in batches {
            let tokens = parts.iter().map(|part| part.tokens.len()).sum::<usize>();
            let (own, others) = rest.split_at_mut(tokens * hidden);
            rest = others;
            let spans: Vec<Span> = parts.iter().map(|part| part.span).collect();
            self.in_pool(|session| {
                session.buffers.stream.resize(tokens, hidden)?;
                let mut stream = session.buffers.stream.rows_mut();
                for (row, own) in own.chunks_exact(hidden).enumerate() {
                    stream.row_mut(row).copy_from_slice(own);
                }
                work(session, parts, &spans)?;
                let stream = session.buffers.stream.rows();
                for (row, own) in own.chunks_exact_mut(hidden).enumerate() {
                    own.copy_from_slice(stream.row(row));
                }
                Ok::<(), EngineError>(())
            })?;
            told(tokens)?;
        }
        Ok(())
    }
}

/// Texts side by side as long as they fill no more than a batch; a longer one by itself, batch after batch. Texts of one batch, and the
/// pieces of a long one, have sequences of their own, which later batches use anew.
fn batches<'t>(texts: &[&'t [u32]]) -> Vec<Vec<Part<'t>>> {
    let mut batches: Vec<Vec<Part<'t>>> = Vec::new();
    let mut room = 0;
    for text in texts.iter().filter(|text| !text.is_empty()) {
        let mut position = 0;
        for tokens in text.chunks(Session::BATCH) {
            if position > 0 || tokens.len() > room || text.len() > Session::BATCH {
                batches.push(Vec::new());
                room = Session::BATCH;
            }
            let Some(batch) = batches.last_mut() else { continue };
            let span = Span { sequence: batch.len(), position, len: tokens.len() };
            batch.push(Part { tokens, span });
            position += tokens.len();
            room -= tokens.len();
        }
        if text.len() > Session::BATCH {
            room = 0;
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_whole_texts_or_one_long_one() {
        let tokens = vec![1u32; 2000];
        let lens = [300, 200, 100, 1100, 12, 0, 512];
        let texts: Vec<&[u32]> = lens.iter().map(|len| &tokens[..*len]).collect();
        let found: Vec<Vec<(usize, usize, usize)>> = batches(&texts)
            .iter()
            .map(|batch| {
                batch.iter().map(|part| (part.span.sequence, part.span.position, part.tokens.len())).collect()
            })
            .collect();
        assert_eq!(
            found,
            [
                vec![(0, 0, 300), (1, 0, 200)],
                vec![(0, 0, 100)],
                vec![(0, 0, 512)],
                vec![(0, 512, 512)],
                vec![(0, 1024, 76)],
                vec![(0, 0, 12)],
                vec![(0, 0, 512)],
            ]
        );
    }
}
