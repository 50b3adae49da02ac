//! How fast a model runs, and what the machine could do: the measurements of `kbit bench`.
//!
//! Prompts are bound by arithmetic, token generation by reading the weights; so one is put beside the multiply-adds that all
//! threads do when they do nothing else ([`arithmetic_peak`]), the other beside the rate at which they read memory
//! ([`read_bandwidth`]). All use the threads of rayon's current pool.

use crate::{EngineError, Kernels, Mode, Model, Session};
use kbit_models::description::Block;
use kbit_models::{Description, Role};
use kbit_types::STREAM_AHEAD;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Repetitions of one measurement: the same tokens again and again.
#[derive(Clone, Debug)]
pub struct Series {
    /// Tokens in each repetition.
    pub tokens: usize,
    /// Multiply-adds of each repetition: those of matrices and attention.
    pub multiply_adds: u64,
    /// Time of each repetition, in the order of measurement; at least one.
    pub times: Vec<Duration>,
}

impl Series {
    /// Tokens a second: median, smallest and largest of the repetitions.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn rates(&self) -> (f64, f64, f64) {
        let mut rates: Vec<f64> =
            self.times.iter().map(|time| self.tokens as f64 / time.as_secs_f64().max(1e-9)).collect();
        rates.sort_by(f64::total_cmp);
        let middle = rates.len() / 2;
        let median = match rates.as_slice() {
            [] => 0.0,
            odd if odd.len() % 2 == 1 => odd[middle],
            even => f64::midpoint(even[middle - 1], even[middle]),
        };
        (median, rates.first().copied().unwrap_or(0.0), rates.last().copied().unwrap_or(0.0))
    }

    /// Floating-point operations a second at the median rate; a multiply-add is two.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn operations(&self) -> f64 {
        2.0 * self.multiply_adds as f64 / self.tokens.max(1) as f64 * self.rates().0
    }
}

/// Measures a prompt of `tokens` tokens in an empty session, of which only the last one's logits are wanted. `each` is
/// called after each repetition. One more, before, is not measured.
///
/// # Errors
/// As [`Session::forward`].
pub fn prompt(
    model: &Model,
    tokens: usize,
    repetitions: usize,
    each: &mut dyn FnMut(),
) -> Result<Series, EngineError> {
    let text = text(model, tokens);
    measure(
        model,
        &text,
        prompt_multiply_adds(model.description(), tokens)?,
        repetitions,
        each,
        |session, logits| session.forward(&text, text.len().saturating_sub(1), logits),
    )
}

/// Measures the generation of `tokens` tokens, one by one, in a session that is empty at first. As [`prompt`] otherwise.
///
/// # Errors
/// As [`Session::forward`].
pub fn generation(
    model: &Model,
    tokens: usize,
    repetitions: usize,
    each: &mut dyn FnMut(),
) -> Result<Series, EngineError> {
    let text = text(model, tokens);
    measure(
        model,
        &text,
        steps_multiply_adds(model.description(), tokens)?,
        repetitions,
        each,
        |session, logits| text.chunks(1).try_for_each(|token| session.forward(token, 0, logits)),
    )
}

fn measure(
    model: &Model,
    text: &[u32],
    multiply_adds: u64,
    repetitions: usize,
    each: &mut dyn FnMut(),
    mut work: impl FnMut(&mut Session<'_>, &mut Vec<f32>) -> Result<(), EngineError>,
) -> Result<Series, EngineError> {
    let mut session = model.session(text.len());
    let mut logits = Vec::new();
    let mut times = Vec::new();
    for repetition in 0..=repetitions.max(1) {
        session.clear();
        let started = Instant::now();
        work(&mut session, &mut logits)?;
        let time = started.elapsed();
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(EngineError::Logits);
        }
        // The first one reads the file, and takes the memory that the others find.
        if repetition > 0 {
            times.push(time);
            each();
        }
    }
    Ok(Series { tokens: text.len(), multiply_adds, times })
}

/// Tokens from all over the vocabulary; which ones makes no difference.
fn text(model: &Model, len: usize) -> Vec<u32> {
    let vocab = u32::try_from(model.description().vocab).unwrap_or(u32::MAX).max(1);
    (0u32..).map(|i| i.wrapping_mul(2_654_435_761) % vocab).take(len).collect()
}

/// Multiply-adds of one token: in the matrices of all blocks, in those of the last block that only wanted tokens pass, and in
/// the output matrix.
fn of_matrices(d: &Description) -> Result<(u64, u64, u64), EngineError> {
    let last = format!("blk.{}.", d.layers.saturating_sub(1));
    let (mut all, mut wanted, mut output) = (0, 0, 0);
    for tensor in d.tensors()? {
        let size = d.for_one_token(&tensor.name, tensor.shape.iter().product());
        match tensor.role {
            Role::Matrix => {
                all += size;
                let is_cached =
                    |name: &str| ["attn_k", "attn_v", "attn_qkv"].iter().any(|k| name.starts_with(k));
                if tensor.name.strip_prefix(&last).is_some_and(|name| !is_cached(name)) {
                    wanted += size;
                }
            }
            Role::TokenEmbedding if d.tied_output => output += size,
            Role::Output if !d.tied_output => output += size,
            _ => {}
        }
    }
    Ok((all, wanted, output))
}

/// Multiply-adds of one block's attention for the token at `position`.
fn of_attention(d: &Description, block: &Block, position: usize) -> u64 {
    let seen = block.window.map_or(position + 1, |window| window.min(position + 1));
    (d.heads * (d.head_dim + d.value_dim) * seen) as u64
}

/// Multiply-adds of attention in `blocks` for the first `tokens` tokens.
fn of_attention_in(d: &Description, blocks: &[Block], tokens: usize) -> u64 {
    blocks.iter().flat_map(|block| (0..tokens).map(|at| of_attention(d, block, at))).sum()
}

/// Of the prompt's tokens only the last goes on behind the last block's keys and values.
fn prompt_multiply_adds(d: &Description, tokens: usize) -> Result<u64, EngineError> {
    let (all, wanted, output) = of_matrices(d)?;
    let Some(last_token) = tokens.checked_sub(1) else { return Ok(0) };
    let Some((last_block, blocks)) = d.blocks.split_last() else { return Ok(output) };
    let attention = of_attention_in(d, blocks, tokens);
    let last = of_attention(d, last_block, last_token);
    Ok((all - wanted) * tokens as u64 + wanted + output + attention + last)
}

fn steps_multiply_adds(d: &Description, tokens: usize) -> Result<u64, EngineError> {
    let (all, _, output) = of_matrices(d)?;
    Ok((all + output) * tokens as u64 + of_attention_in(d, &d.blocks, tokens))
}

/// Floating-point operations a second that `kernels` reach in the arithmetic of `mode` with operands in registers, the best
/// of several attempts.
#[must_use]
pub fn arithmetic_peak(mode: Mode, kernels: Kernels) -> f64 {
    let busy = |rounds| match mode {
        Mode::F32 | Mode::Activations(_) => kernels.busy(rounds, black_box(0.5)).0,
        Mode::Bf16 => kernels.busy_bf16(rounds, black_box(0.5)).0,
        Mode::Int8 => kernels.busy_int8(rounds, black_box(0.5)).0,
    };
    // As many rounds as take long enough for the clock.
    let mut rounds = 1000;
    let mut best: f64 = 0.0;
    let mut attempts = 0;
    while attempts < 8 {
        let started = Instant::now();
        let done: u64 = rayon::broadcast(|_| black_box(busy(rounds))).iter().sum();
        let time = started.elapsed();
        if time < Duration::from_millis(20) {
            rounds *= 2;
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = 2.0 * done as f64 / time.as_secs_f64();
        best = best.max(rate);
        attempts += 1;
    }
    best
}

/// Bytes that [`read_bandwidth`] reads: more than the caches of one processor hold.
pub const BANDWIDTH_BYTES: usize = 512 << 20;

/// Bytes a second at which all threads together read memory: they add up [`BANDWIDTH_BYTES`], each its share; the best of
/// several passes.
///
/// # Errors
/// When that memory cannot be had.
pub fn read_bandwidth() -> Result<f64, EngineError> {
    read_bandwidth_of(BANDWIDTH_BYTES)
}

fn read_bandwidth_of(bytes: usize) -> Result<f64, EngineError> {
    let len = bytes / size_of::<u64>();
    let mut words: Vec<u64> = Vec::new();
    words.try_reserve_exact(len).map_err(|_| EngineError::OutOfMemory { bytes })?;
    // Written, because pages that never were are one page of zeros.
    words.resize(len, 1);
    let share = len.div_ceil(rayon::current_num_threads()).max(1);
    let mut best: f64 = 0.0;
    for _ in 0..6 {
        let words = black_box(&words);
        let started = Instant::now();
        let sums = rayon::broadcast(|thread| words.chunks(share).nth(thread.index()).map_or(0, add_up));
        let time = started.elapsed().as_secs_f64().max(1e-9);
        black_box(sums);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = bytes as f64 / time;
        best = best.max(rate);
    }
    Ok(best)
}

/// Words in a cache line.
const LINE: usize = 8;
/// Places of memory that are read at the same time, as kernels do for one token.
const STREAMS: usize = 16;

/// Asks for memory, as kernels do: some CPUs read half as fast without.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "a hint, wherever it points")]
fn ask_for(word: *const u64) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: every CPU has the instruction, and it reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(word.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn ask_for(_word: *const u64) {}

/// In independent lanes, so that the compiler vectorises it and loads do not wait for sums.
fn add_up(words: &[u64]) -> u64 {
    let part = words.len() / STREAMS / LINE * LINE;
    let (streams, rest) = words.split_at(part * STREAMS);
    let mut lanes = [0u64; LINE];
    for line in (0..part).step_by(LINE) {
        for words in streams.chunks_exact(part) {
            let words: &[u64; LINE] = words[line..].first_chunk().expect("a line");
            ask_for(words.as_ptr().wrapping_byte_add(STREAM_AHEAD));
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = lane.wrapping_add(*word);
            }
        }
    }
    lanes.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_rate() {
        let series = |seconds: &[u64]| Series {
            tokens: 12,
            multiply_adds: 600,
            times: seconds.iter().map(|&s| Duration::from_secs(s)).collect(),
        };
        assert_eq!(series(&[6, 1, 2]).rates(), (6.0, 2.0, 12.0));
        assert_eq!(series(&[4, 2]).rates(), (4.5, 3.0, 6.0));
        assert_eq!(series(&[6, 1, 2]).operations(), 600.0);
    }

    #[test]
    fn adds_up_every_word_once() {
        for len in [0u64, 1, 127, 128, 129, 1000] {
            let words: Vec<u64> = (1..=len).collect();
            assert_eq!(add_up(&words), len * (len + 1) / 2);
        }
    }

    #[test]
    fn the_machine_computes_and_reads() {
        assert!(arithmetic_peak(Mode::F32, Kernels::best()) > 1e6);
        assert!(read_bandwidth_of(1 << 20).unwrap() > 1e6);
    }
}
