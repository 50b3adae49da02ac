//! Keys and values of the tokens so far, and attention over them.
//!
//! Positions lie in blocks, so that a session takes memory as it fills and nothing is ever moved. Keys
//! are stored with positions along the rows: scores of a query are then sums of rows, as the weighted values are, and
//! one kernel ([`Kernels::combine`](crate::Kernels::combine)) does both.

use crate::EngineError;
use crate::buffer::{Aligned, Rows, RowsMut, padded};
use crate::compute::Compute;
use kbit_models::description::Description;

/// Positions in a block.
const BLOCK: usize = 128;
/// Floats from one row of keys to the next; not a power of two, for the sake of the cache sets.
const KEY_STRIDE: usize = BLOCK + 16;
/// Tokens that one task attends for, at most.
const TASK_TOKENS: usize = 16;
/// Scores that one task computes at a time: 256 KiB.
const TASK_SCORES: usize = 1 << 16;

/// Keys and values of one layer and one sequence.
#[derive(Debug, Default)]
pub(crate) struct LayerCache {
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    /// `[kv_heads][head_dim]` rows of positions, `KEY_STRIDE` apart.
    keys: Aligned,
    /// `[kv_heads][BLOCK][value_dim]`.
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
    /// Stores keys `[n, kv_heads * head_dim]` and values `[n, kv_heads * value_dim]` of positions from `position` on.
    pub(crate) fn store(
        &mut self,
        d: &Description,
        position: usize,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) -> Result<(), EngineError> {
        while self.blocks.len() * BLOCK < position + keys.rows() {
            self.blocks.push(Block {
                keys: Aligned::zeroed(d.key_width() * KEY_STRIDE)?,
                values: Aligned::zeroed(d.value_width() * BLOCK)?,
            });
        }
        let mut done = 0;
        while done < keys.rows() {
            let (index, first) = ((position + done) / BLOCK, (position + done) % BLOCK);
            let count = (BLOCK - first).min(keys.rows() - done);
            let block = &mut self.blocks[index];
            let to = block.keys.as_mut_slice();
            for (dim, to) in to.chunks_exact_mut(KEY_STRIDE).enumerate() {
                for (token, to) in to[first..first + count].iter_mut().enumerate() {
                    *to = keys.data()[(done + token) * keys.stride() + dim];
                }
            }
            let to = block.values.as_mut_slice();
            for token in 0..count {
                let from = values.row(done + token).chunks_exact(d.value_dim);
                for (from, to) in from.zip(to.chunks_exact_mut(BLOCK * d.value_dim)) {
                    to[(first + token) * d.value_dim..][..d.value_dim].copy_from_slice(from);
                }
            }
            done += count;
        }
        Ok(())
    }
}

/// What one task attends for: some tokens of a span, and some key heads.
struct Task<'o> {
    span: Span,
    /// Row of the first token in the batch.
    row: usize,
    first_head: usize,
    heads: usize,
    /// `[tokens, heads * group * value_dim]`.
    out: RowsMut<'o>,
}

/// Attention of all queries of a batch: `queries` `[n, heads * head_dim]`, `out` `[n, heads * value_dim]`, rows in the
/// order of the spans. `caches` are those of the sequences; they hold the keys and values of the batch already.
pub(crate) fn attend(
    compute: &Compute,
    d: &Description,
    spans: &[Span],
    queries: Rows<'_>,
    out: RowsMut<'_>,
    caches: &[&LayerCache],
) -> Result<(), EngineError> {
    let threads = compute.threads();
    let width = d.heads / d.kv_heads * d.value_dim;
    // With few tokens the heads are shared out too.
    let by_head = threads > 1 && queries.rows() < 2 * threads;
    let mut tasks = Vec::new();
    let mut rest = out;
    let mut row = 0;
    for span in spans {
        let mut token = 0;
        while token < span.len {
            let scores = (span.position + span.len) * (d.heads / d.kv_heads);
            let most = if by_head { 1 } else { (TASK_SCORES / scores).clamp(1, TASK_TOKENS) };
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
        d: &Description,
        queries: Rows<'_>,
        cache: &LayerCache,
    ) -> Result<(), EngineError> {
        let (group, kernels) = (d.heads / d.kv_heads, compute.kernels);
        let (head_dim, value_dim) = (d.head_dim, d.value_dim);
        let Span { position, len: tokens, .. } = self.span;
        let rows = tokens * group;
        let end = position + tokens;
        let start_of =
            |position: usize| d.attention.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let first_block = start_of(position) / BLOCK;
        let base = first_block * BLOCK;
        let (query_stride, score_stride, sum_stride) =
            (padded(head_dim), padded(end - base), padded(value_dim));
        let sizes = [rows * query_stride, rows * score_stride, rows * sum_stride, rows];
        compute.with_scratch(sizes.iter().sum(), |scratch| {
            let (query, rest) = scratch.split_at_mut(sizes[0]);
            let (scores, rest) = rest.split_at_mut(sizes[1]);
            let (sums, totals) = rest.split_at_mut(sizes[2]);
            for head in 0..self.heads {
                let key_head = self.first_head + head;
                for (row, query) in query.chunks_exact_mut(query_stride).enumerate() {
                    let from = queries.row(self.row + row / group);
                    let from = &from[(key_head * group + row % group) * head_dim..][..head_dim];
                    for (query, from) in query.iter_mut().zip(from) {
                        *query = from * d.attention.scale;
                    }
                }
                let query = Rows::new(query, rows, head_dim, query_stride);
                let mut all = RowsMut::new(scores, rows, end - base, score_stride);
                for (index, block) in cache.blocks[first_block..end.div_ceil(BLOCK)].iter().enumerate() {
                    let count = BLOCK.min(end - base - index * BLOCK);
                    let keys = &block.keys.as_slice()[key_head * head_dim * KEY_STRIDE..];
                    let keys = Rows::new(keys, head_dim, count, KEY_STRIDE);
                    kernels.combine(query, keys, all.reborrow().columns(index * BLOCK, count), false);
                }
                for (row, total) in totals.iter_mut().enumerate() {
                    let at = position + row / group;
                    let (start, stop) = (start_of(at) - base, at + 1 - base);
                    let scores = all.row_mut(row);
                    scores[..start].fill(0.0);
                    scores[stop..].fill(0.0);
                    *total = kernels.exp_and_sum(&mut scores[start..stop]);
                }
                let probabilities = Rows::new(scores, rows, end - base, score_stride);
                for (index, block) in cache.blocks[first_block..end.div_ceil(BLOCK)].iter().enumerate() {
                    let count = BLOCK.min(end - base - index * BLOCK);
                    let values = &block.values.as_slice()[key_head * BLOCK * value_dim..];
                    let values = Rows::new(values, count, value_dim, value_dim);
                    let sums = RowsMut::new(sums, rows, value_dim, sum_stride);
                    kernels.combine(
                        probabilities.window(0, rows, index * BLOCK, count),
                        values,
                        sums,
                        index > 0,
                    );
                }
                for (row, (sum, total)) in sums.chunks_exact(sum_stride).zip(totals.iter()).enumerate() {
                    let out = self.out.row_mut(row / group);
                    let out = &mut out[(head * group + row % group) * value_dim..][..value_dim];
                    for (out, sum) in out.iter_mut().zip(sum) {
                        *out = sum / total;
                    }
                }
            }
            Ok(())
        })
    }
}
