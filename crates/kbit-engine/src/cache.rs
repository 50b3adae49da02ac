//! Keys and values of the tokens so far, and attention over them.
//!
//! Positions lie in blocks, so that a session takes memory as it fills and nothing is ever moved. Keys
//! are stored with positions along the rows: scores of a query are then sums of rows, as the weighted values are, and
//! one kernel ([`Kernels::combine`](crate::Kernels::combine)) does both. How numbers are kept is told by [`stored`](crate::stored).
//!
//! The softmax is computed block by block (Milakov and Gimelshein 2018): what was summed is scaled down whenever a larger
//! score turns up. So scores take memory for one block, however long the context. Blocks begin at fixed positions, and a
//! block that a token does not see leaves its sums as they are; so results do not depend on which tokens go together.

use crate::EngineError;
use crate::buffer::{Aligned, LINE, Rows, RowsMut, padded};
use crate::compute::Compute;
use crate::stored::{BLOCK, CacheType, CacheTypes, Form, Order, PANEL, TooLarge};

/// Floats from one row of scores to the next; not a power of two, for the sake of the cache sets.
const SCORES: usize = BLOCK + 16;
/// Tokens that one task attends for, at most.
const TASK_TOKENS: usize = 16;
/// Queries of one key head that one task attends for, at most: their scores take 64 KiB a block.
const TASK_QUERIES: usize = 128;

/// Attention of one block of the model.
#[derive(Debug)]
pub(crate) struct Heads<'m> {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Width of a query or key head.
    pub(crate) head_dim: usize,
    /// Width of a value head.
    pub(crate) value_dim: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Bound of the scores.
    pub(crate) cap: Option<f32>,
    /// Tokens that a token sees, itself included.
    pub(crate) window: Option<usize>,
    /// By how much a score falls with each token of distance, for each query head.
    pub(crate) slopes: Option<&'m [f32]>,
    /// One more score of each query head, without a value.
    pub(crate) sinks: Option<&'m [f32]>,
    /// How keys and values are kept.
    pub(crate) cache: CacheTypes,
    /// Number of positions whose weights are wanted in place of what they gather: there are no values then.
    pub(crate) weights_of: Option<usize>,
}

impl Heads<'_> {
    /// Query heads that share a key head.
    pub(crate) const fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// One key head with its query heads, for the weights of so many positions.
    pub(crate) fn weights_of(&self, kv_head: usize, positions: usize) -> Self {
        let group = self.group();
        let own = kv_head * group..(kv_head + 1) * group;
        Self {
            heads: group,
            kv_heads: 1,
            value_dim: 0,
            slopes: self.slopes.map(|slopes| &slopes[own.clone()]),
            sinks: self.sinks.map(|sinks| &sinks[own.clone()]),
            cache: CacheTypes { values: CacheType::F32, ..self.cache },
            weights_of: Some(positions),
            ..*self
        }
    }

    /// Width of what comes out of a query head.
    fn out_dim(&self) -> usize {
        self.weights_of.unwrap_or(self.value_dim)
    }

    /// How the keys of one head are kept.
    fn keys(&self) -> Form {
        Form { ty: self.cache.keys, width: self.head_dim, order: Order::Panels }
    }

    /// How the values of one head are kept.
    fn values(&self) -> Form {
        Form { ty: self.cache.values, width: self.value_dim, order: Order::Rows }
    }
}

/// `ALiBi`'s slopes (Press et al. 2022): powers of `2^(-max_bias / n)` for the largest power of two `n` of heads, and for
/// the others every second power of that of `2 n` heads.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "rounded to f32 once")]
pub(crate) fn slopes(heads: usize, max_bias: f32) -> Vec<f32> {
    let power = 1 << heads.max(1).ilog2();
    let exponent = |head: usize| {
        if head < power {
            (head + 1) as f64 / power as f64
        } else {
            (2 * (head - power) + 1) as f64 / (2 * power) as f64
        }
    };
    (0..heads).map(|head| (-f64::from(max_bias) * exponent(head)).exp2() as f32).collect()
}

/// Keys and values of one layer and one sequence.
#[derive(Debug, Default)]
pub(crate) struct LayerCache {
    /// `kv_heads` for each block of positions.
    blocks: Vec<HeadBlock>,
}

/// Keys and values of one head in one block of positions, in the [`Form`]s that [`Heads`] tells.
#[derive(Debug)]
struct HeadBlock {
    keys: Aligned,
    values: Aligned,
}

/// Consecutive tokens of one sequence in a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Which sequence of the session.
    pub(crate) sequence: usize,
    /// Position of the first token in its sequence.
    pub(crate) position: usize,
    /// Number of tokens.
    pub(crate) len: usize,
}

impl LayerCache {
    /// Bytes of memory that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let floats = |block: &HeadBlock| block.keys.as_slice().len() + block.values.as_slice().len();
        self.blocks.iter().map(floats).sum::<usize>() * size_of::<f32>()
    }

    /// Becomes a copy of the first `positions` positions of `other`.
    pub(crate) fn copy_from(
        &mut self,
        other: &Self,
        positions: usize,
        kv_heads: usize,
    ) -> Result<(), EngineError> {
        for (index, from) in other.blocks.iter().take(positions.div_ceil(BLOCK) * kv_heads).enumerate() {
            let (keys, values) = (from.keys.as_slice(), from.values.as_slice());
            if self.blocks.len() == index {
                let room = |floats: &[f32]| Aligned::zeroed(floats.len());
                self.blocks.push(HeadBlock { keys: room(keys)?, values: room(values)? });
            }
            let to = &mut self.blocks[index];
            to.keys.as_mut_slice().copy_from_slice(keys);
            to.values.as_mut_slice().copy_from_slice(values);
        }
        Ok(())
    }

    /// Stores keys `[n, kv_heads * head_dim]` and values `[n, kv_heads * value_dim]`, where there are any, of positions from `position` on.
    /// `layer` is for errors alone.
    pub(crate) fn store(
        &mut self,
        compute: &Compute,
        d: &Heads<'_>,
        layer: usize,
        position: usize,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) -> Result<(), EngineError> {
        let end = position + keys.rows();
        while self.blocks.len() < end.div_ceil(BLOCK) * d.kv_heads {
            self.blocks.push(HeadBlock { keys: d.keys().allocate()?, values: d.values().allocate()? });
        }
        let first = position / BLOCK;
        let blocks = self.blocks.chunks_exact_mut(d.kv_heads).enumerate().skip(first);
        let pieces: Vec<_> = blocks
            .take(end.div_ceil(BLOCK) - first)
            .flat_map(|(index, heads)| {
                let positions = position.max(index * BLOCK)..end.min((index + 1) * BLOCK);
                heads.iter_mut().enumerate().map(move |(head, block)| (head, positions.clone(), block))
            })
            .collect();
        compute.for_each(pieces.into_iter(), |_, (head, positions, block)| {
            let part = |what, form: &Form, memory: &mut Aligned, rows: Rows<'_>| {
                let rows =
                    rows.window(positions.start - position, positions.len(), head * form.width, form.width);
                let kernels = compute.kernels;
                let mut store = |rows: Rows<'_>| {
                    kernels.store(form, memory.as_mut_slice(), positions.start % BLOCK, rows)
                };
                let stored = match form.run() {
                    1 => store(rows),
                    run => compute.with_scratch(rows.rows() * form.width, |space| {
                        for (row, space) in space.chunks_exact_mut(form.width).enumerate() {
                            space.copy_from_slice(rows.row(row));
                        }
                        kernels.hadamard(space, run);
                        Ok(store(Rows::new(space, rows.rows(), form.width, form.width)))
                    })?,
                };
                stored.map_err(|TooLarge { row, value }| EngineError::CacheRange {
                    what,
                    layer,
                    position: positions.start + row,
                    value,
                    ty: form.ty,
                })
            };
            part("key", &d.keys(), &mut block.keys, keys)?;
            if d.weights_of.is_some() {
                return Ok(());
            }
            part("value", &d.values(), &mut block.values, values)
        })
    }
}

/// See [`Kernels::softmax_step`](crate::Kernels::softmax_step): a block of scores, and what each row has so far.
pub(crate) struct SoftmaxStep<'s> {
    /// `[rows, positions]`.
    pub(crate) scores: RowsMut<'s>,
    /// The largest score of each row.
    pub(crate) maxima: &'s mut [f32],
    /// The sum of each row's weights.
    pub(crate) totals: &'s mut [f32],
    /// Room for a number of each row.
    pub(crate) factors: &'s mut [f32],
    /// The weighted values `[rows, out_dim]`.
    pub(crate) sums: RowsMut<'s>,
}

/// What one task attends for: some tokens of a span, and some key heads.
struct Task<'o> {
    span: Span,
    /// Row of the first token in the batch.
    row: usize,
    first_head: usize,
    heads: usize,
    /// `[tokens, heads * group * out_dim]`.
    out: RowsMut<'o>,
}

/// Attention of all queries of a batch: `queries` `[n, heads * head_dim]`, `out` `[n, heads * out_dim]`, rows in the
/// order of the spans. `caches` are those of the sequences; they hold the keys and values of the batch already.
pub(crate) fn attend(
    compute: &Compute,
    d: &Heads<'_>,
    spans: &[Span],
    queries: Rows<'_>,
    out: RowsMut<'_>,
    caches: &[&LayerCache],
) -> Result<(), EngineError> {
    let threads = compute.threads();
    let width = d.group() * d.out_dim();
    // With few tokens the heads are shared out too.
    let by_head = threads > 1 && queries.rows() < 2 * threads;
    let mut tasks = Vec::new();
    let mut rest = out;
    let mut row = 0;
    for span in spans {
        let mut token = 0;
        while token < span.len {
            let most = if by_head { 1 } else { (TASK_QUERIES * d.kv_heads / d.heads).clamp(1, TASK_TOKENS) };
            let len = most.min(span.len - token);
            let (out, others) = rest.split(len);
            rest = others;
            let span = Span { position: span.position + token, len, ..*span };
            if by_head {
                tasks.extend(out.into_row().chunks_exact_mut(width).enumerate().map(|(head, out)| Task {
                    span,
                    row,
                    first_head: head,
                    heads: 1,
                    out: RowsMut::new(out, 1, width, width),
                }));
            } else {
                tasks.push(Task { span, row, first_head: 0, heads: d.kv_heads, out });
            }
            token += len;
            row += len;
        }
    }
    compute.for_each(tasks.into_iter(), |_, task| {
        let cache = caches[task.span.sequence];
        task.run(compute, d, queries, cache)
    })
}

impl Task<'_> {
    fn run(
        mut self,
        compute: &Compute,
        d: &Heads<'_>,
        queries: Rows<'_>,
        cache: &LayerCache,
    ) -> Result<(), EngineError> {
        let (group, kernels) = (d.group(), compute.kernels);
        let (head_dim, out_dim) = (d.head_dim, d.out_dim());
        let Span { position, len: tokens, .. } = self.span;
        let rows = tokens * group;
        let end = position + tokens;
        let start_of = |position: usize| d.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let first_block = start_of(position) / BLOCK;
        let (query_stride, sum_stride) = (padded(head_dim), padded(out_dim));
        // Of blocks that have to be widened.
        let wide = |form: Form| if form.ty == CacheType::F32 { 0 } else { form.len() };
        let (key_size, value_size) = (wide(d.keys()), wide(d.values()));
        let sizes =
            [key_size, value_size, rows * query_stride, rows * SCORES, rows * sum_stride, rows, rows, rows];
        compute.with_scratch(sizes.iter().sum(), |scratch| {
            let (wide_keys, rest) = scratch.split_at_mut(key_size);
            let (wide_values, rest) = rest.split_at_mut(value_size);
            let (query, rest) = rest.split_at_mut(rows * query_stride);
            let (scores, rest) = rest.split_at_mut(rows * SCORES);
            let (sums, rest) = rest.split_at_mut(rows * sum_stride);
            let (maxima, rest) = rest.split_at_mut(rows);
            let (totals, factors) = rest.split_at_mut(rows);
            for head in 0..self.heads {
                let key_head = self.first_head + head;
                for (row, query) in query.chunks_exact_mut(query_stride).enumerate() {
                    let from = queries.row(self.row + row / group);
                    let from = &from[(key_head * group + row % group) * head_dim..][..head_dim];
                    for (query, from) in query.iter_mut().zip(from) {
                        *query = from * d.scale;
                    }
                    kernels.hadamard(&mut query[..head_dim], d.keys().run());
                    let sink = d.sinks.map(|sinks| sinks[key_head * group + row % group]);
                    (maxima[row], totals[row]) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
                }
                let query = Rows::new(query, rows, head_dim, query_stride);
                sums.fill(0.0);
                let blocks = cache.blocks.chunks_exact(d.kv_heads).take(end.div_ceil(BLOCK));
                for (index, heads) in blocks.enumerate().skip(first_block) {
                    let block = &heads[key_head];
                    let base = index * BLOCK;
                    let count = BLOCK.min(end - base);
                    let keys = kernels.widened(d.keys(), &block.keys, count, wide_keys);
                    let values = kernels.widened(d.values(), &block.values, count, wide_values);
                    for (panel, keys) in
                        keys.chunks_exact(PANEL * head_dim).take(count.div_ceil(PANEL)).enumerate()
                    {
                        let (first, len) = (panel * PANEL, PANEL.min(count - panel * PANEL));
                        let scores = RowsMut::new(&mut *scores, rows, count, SCORES).columns(first, len);
                        kernels.combine(query, Rows::new(keys, head_dim, len, PANEL), scores, false);
                    }
                    // Whole vectors of them.
                    let mut all = RowsMut::new(scores, rows, count.next_multiple_of(LINE), SCORES);
                    // What the token of a row sees of the block; the rest counts for nothing.
                    for token in 0..tokens {
                        let at = position + token;
                        let start = start_of(at).saturating_sub(base).min(count);
                        let stop = (at + 1).saturating_sub(base).min(count).max(start);
                        let whole = start == 0 && stop == all.cols();
                        if whole && d.cap.is_none() && d.slopes.is_none() {
                            continue;
                        }
                        for member in 0..group {
                            let scores = all.row_mut(token * group + member);
                            let seen = &mut scores[start..stop];
                            if let Some(cap) = d.cap {
                                kernels.soft_cap(seen, cap);
                            }
                            if let Some(slopes) = d.slopes.filter(|_| start < stop) {
                                lower_by_distance(
                                    seen,
                                    slopes[key_head * group + member],
                                    at - (base + start),
                                );
                            }
                            scores[..start].fill(f32::NEG_INFINITY);
                            scores[stop..].fill(f32::NEG_INFINITY);
                        }
                    }
                    kernels.softmax_step(&mut SoftmaxStep {
                        scores: all,
                        maxima,
                        totals,
                        factors,
                        sums: RowsMut::new(sums, rows, out_dim, sum_stride),
                    });
                    let probabilities = Rows::new(scores, rows, count, SCORES);
                    let mut sums = RowsMut::new(sums, rows, out_dim, sum_stride);
                    if d.weights_of.is_some() {
                        for row in 0..rows {
                            sums.row_mut(row)[base..][..count].copy_from_slice(probabilities.row(row));
                        }
                    } else {
                        kernels.combine(
                            probabilities,
                            Rows::new(values, count, out_dim, out_dim),
                            sums,
                            true,
                        );
                    }
                }
                for (row, (sum, total)) in sums.chunks_exact(sum_stride).zip(totals.iter()).enumerate() {
                    let out = self.out.row_mut(row / group);
                    let out = &mut out[(head * group + row % group) * out_dim..][..out_dim];
                    for (out, sum) in out.iter_mut().zip(sum) {
                        *out = sum / total;
                    }
                    kernels.hadamard(out, d.values().run());
                }
            }
            Ok(())
        })
    }
}

/// Lowers scores of consecutive positions by `slope` times the distance, which is `farthest` for the first.
#[expect(clippy::cast_precision_loss, reason = "a distance is rounded as positions are")]
fn lower_by_distance(scores: &mut [f32], slope: f32, farthest: usize) {
    for (score, nearer) in scores.iter_mut().zip(0..) {
        *score -= slope * (farthest - nearer) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_halve_from_head_to_head_where_there_are_eight() {
        assert_eq!(slopes(8, 8.0), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
    }

    #[test]
    fn slopes_of_further_heads_lie_between_the_others() {
        // Of 6 heads, 4 are powers of 2^-2, and 2 are the first and third power of 2^-1.
        assert_eq!(slopes(6, 8.0), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        assert_eq!(slopes(1, 8.0), [0.00390625]);
    }
}
