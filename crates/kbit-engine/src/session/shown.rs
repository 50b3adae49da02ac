//! Showing an observer how tokens attend.
//!
//! Attention keeps scores for a block of positions at a time and never the weights of all. The same code gathers those where it is told to:
//! as if the values were the rows of an identity matrix.

use super::{BlockPass, Projection, Sequence, Span};
use crate::EngineError;
use crate::buffer::{Matrix, Rows};
use crate::cache::{Heads, LayerCache, attend};
use crate::observe::{Attention, Observer};

/// What is kept of a layer's positions so that they can be shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// `[positions, kv_heads * head_dim]`, turned.
    keys: Vec<f32>,
    /// `[positions, cols]`.
    inputs: Vec<f32>,
}

impl Shown {
    /// Stores keys and inputs of positions from `position` on, after which there are no others.
    pub(super) fn store(
        &mut self,
        position: usize,
        keys: Rows<'_>,
        inputs: Rows<'_>,
    ) -> Result<(), EngineError> {
        for (kept, rows) in [(&mut self.keys, keys), (&mut self.inputs, inputs)] {
            let new = rows.rows() * rows.cols();
            kept.truncate(position * rows.cols());
            kept.try_reserve(new)
                .map_err(|_| EngineError::OutOfMemory { bytes: (kept.len() + new) * size_of::<f32>() })?;
            (0..rows.rows()).for_each(|row| kept.extend_from_slice(rows.row(row)));
        }
        Ok(())
    }
}

impl BlockPass<'_> {
    /// Shows how the tokens of `on` attend, whose `queries` those are.
    pub(super) fn show(
        &self,
        observer: &dyn Observer,
        heads: &Heads<'_>,
        sequences: &[Sequence],
        on: &[Span],
        queries: Rows<'_>,
    ) -> Result<(), EngineError> {
        let Self { compute, index, layer, cache, .. } = *self;
        let Projection::Separate { key, value, .. } = &layer.projection else { return Ok(()) };
        let (cols, key_width) = (key.weight.cols(), heads.kv_heads * heads.head_dim);
        let mut weights = Matrix::default();
        let mut row = 0;
        for span in on {
            let positions = span.position + span.len;
            let Some(shown) = sequences[span.sequence].shown.get(cache) else { continue };
            let inputs = Rows::new(&shown.inputs, positions, cols, cols);
            let keys = Rows::new(&shown.keys, positions, key_width, key_width);
            for kv_head in 0..heads.kv_heads {
                let only = heads.weights_of(kv_head, positions);
                let mut layer_cache = LayerCache::default();
                let keys = keys.window(0, positions, kv_head * heads.head_dim, heads.head_dim);
                layer_cache.store(compute, &only, index, 0, keys, Rows::new(&[], positions, 0, 0))?;
                weights.resize(span.len, only.heads * positions)?;
                let width = only.heads * heads.head_dim;
                let queries = queries.window(row, span.len, kv_head * width, width);
                let alone = Span { sequence: 0, ..*span };
                attend(compute, &only, &[alone], queries, weights.rows_mut(), &[&layer_cache])?;
                let (key, value) = (key.weight.name(), value.weight.name());
                observer.attention(&Attention { kv_head, key, value, inputs, weights: weights.rows() });
            }
            row += span.len;
        }
        Ok(())
    }
}
