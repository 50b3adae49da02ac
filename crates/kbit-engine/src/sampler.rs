//! Choosing the next token.
//!
//! The steps and their order are those of llama.cpp's default chain, as far as kbit has them:
//!
//! 1. penalties for tokens that the last `repeat_last_n` hold ([`Sampling::repeat_penalty`] and its siblings),
//! 2. the `top_k` likeliest tokens,
//! 3. of these the likeliest whose probabilities add up to `top_p` (Holtzman et al. 2020),
//! 4. of these the ones at least `min_p` times as likely as the likeliest (Nguyen et al. 2024),
//! 5. the temperature,
//! 6. a draw.
//!
//! So `top_p` and `min_p` look at probabilities before the temperature. Everything is computed in double precision by
//! additions, multiplications and divisions alone, in one fixed order: the same logits, options and seed give the same tokens
//! on every machine.

use crate::EngineError;
use crate::arch::generic::{Separate, exp_f64};
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

/// How tokens are chosen. The defaults are llama.cpp's, with a fixed seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 always takes the likeliest token, the first of equals. Finite, not negative.
    pub temperature: f32,
    /// Draws among this many likeliest tokens; 0 for all, 1 for the likeliest.
    pub top_k: usize,
    /// Draws among the fewest likeliest tokens whose probabilities add up to this: above 0, at most 1 (off).
    pub top_p: f32,
    /// Draws among tokens at least this many times as likely as the likeliest: from 0 (off) to 1.
    pub min_p: f32,
    /// Positive logits of tokens in the last `repeat_last_n` are divided by this, negative ones multiplied (Keskar et al.
    /// 2019): above 0; 1 is off.
    pub repeat_penalty: f32,
    /// Taken from the logits of tokens in the last `repeat_last_n`; 0 is off.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens in the last `repeat_last_n`, once for each time they occur; 0 is off.
    pub frequency_penalty: f32,
    /// How many tokens back the penalties look, the prompt's included; `None` for all.
    pub repeat_last_n: Option<usize>,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: Some(64),
            seed: 1,
        }
    }
}

impl Sampling {
    /// Always the likeliest token, without penalties.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses values that mean nothing.
    fn check(&self) -> Result<(), EngineError> {
        let in_range = [
            (
                "temperature",
                self.temperature,
                self.temperature >= 0.0,
                "write 0 for the likeliest token, or more",
            ),
            (
                "top-p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "write a share above 0, up to 1 for all",
            ),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "write a share from 0 (off) to 1"),
            (
                "repeat penalty",
                self.repeat_penalty,
                self.repeat_penalty > 0.0,
                "write 1 for none, or a factor above 0",
            ),
            ("presence penalty", self.presence_penalty, true, "write 0 for none, or another number"),
            ("frequency penalty", self.frequency_penalty, true, "write 0 for none, or another number"),
        ];
        match in_range.into_iter().find(|(_, value, good, _)| !(*good && value.is_finite())) {
            Some((option, value, _, cure)) => Err(EngineError::Sampling { option, value, cure }),
            None => Ok(()),
        }
    }
}

/// Chooses tokens by their logits and by what came before.
///
/// ```
/// use kbit_engine::{Sampler, Sampling};
/// let mut greedy = Sampler::new(Sampling::greedy())?;
/// assert_eq!(greedy.sample(&[0.5, 2.0, 1.0])?, 1);
/// let mut sampler = Sampler::new(Sampling { top_k: 2, seed: 42, ..Sampling::default() })?;
/// assert_ne!(sampler.sample(&[0.5, 2.0, 1.0])?, 0); // not among the two likeliest
/// assert!(Sampler::new(Sampling { top_p: 0.0, ..Sampling::default() }).is_err());
/// # Ok::<(), kbit_engine::EngineError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
    /// The tokens that penalties look at, oldest first, and how often each occurs.
    recent: VecDeque<u32>,
    counts: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    token: u32,
    logit: f32,
}

impl Candidate {
    /// The likelier first, then by number. Logits are numbers here.
    fn before(&self, other: &Self) -> Ordering {
        other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal).then(self.token.cmp(&other.token))
    }

    /// How likely it is beside a token of logit `top`: `e^((logit - top) / temperature)`.
    fn weight(&self, top: f32, temperature: f32) -> f64 {
        exp_f64::<Separate>((f64::from(self.logit) - f64::from(top)) / f64::from(temperature))
    }
}

impl Sampler {
    /// A sampler that has seen no token.
    ///
    /// # Errors
    /// When an option is out of its range or not a number.
    pub fn new(sampling: Sampling) -> Result<Self, EngineError> {
        sampling.check()?;
        let state = sampling.seed;
        Ok(Self { sampling, state, recent: VecDeque::new(), counts: HashMap::new(), candidates: Vec::new() })
    }

    /// How it chooses.
    #[must_use]
    pub const fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Takes `tokens` for all that came before. Random numbers go on where they were.
    pub fn begin(&mut self, tokens: &[u32]) {
        self.recent.clear();
        self.counts.clear();
        let last = self.sampling.repeat_last_n.map_or(0, |n| tokens.len().saturating_sub(n));
        for &token in &tokens[last..] {
            self.accept(token);
        }
    }

    /// Takes note of a token that was chosen.
    pub fn accept(&mut self, token: u32) {
        let s = &self.sampling;
        if s.repeat_last_n == Some(0)
            || (s.repeat_penalty, s.presence_penalty, s.frequency_penalty) == (1.0, 0.0, 0.0)
        {
            return;
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_default() += 1;
        if s.repeat_last_n.is_some_and(|n| self.recent.len() > n)
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }

    /// The next token. Does not take note of it: [`Sampler::accept`] does.
    ///
    /// # Errors
    /// When there are no logits, one is not a number, or the largest is infinite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, EngineError> {
        let top = self.choose_candidates(logits)?;
        if let [only] = self.candidates.as_slice() {
            return Ok(only.token);
        }
        let temperature = self.sampling.temperature;
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight(top, temperature)).sum();
        let mut point = self.uniform() * total;
        let mut last = None;
        for candidate in &self.candidates {
            let weight = candidate.weight(top, temperature);
            if weight > 0.0 {
                last = Some(candidate.token);
                point -= weight;
                if point < 0.0 {
                    break;
                }
            }
        }
        last.ok_or(EngineError::Logits)
    }

    /// Leaves in `candidates` the tokens to draw from, and gives the largest logit.
    fn choose_candidates(&mut self, logits: &[f32]) -> Result<f32, EngineError> {
        let s = &self.sampling;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend((0..).zip(logits).map(|(token, &logit)| Candidate { token, logit }));
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^24")]
        for (&token, &count) in &self.counts {
            let Some(Candidate { logit, .. }) = candidates.get_mut(token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / s.repeat_penalty } else { *logit * s.repeat_penalty };
            *logit -= count as f32 * s.frequency_penalty + s.presence_penalty;
        }
        if candidates.iter().any(|candidate| candidate.logit.is_nan()) {
            return Err(EngineError::Logits);
        }
        let best = candidates.iter().copied().min_by(Candidate::before).ok_or(EngineError::Logits)?;
        let top = best.logit;
        if !top.is_finite() {
            return Err(EngineError::Logits);
        }
        if s.temperature == 0.0 || s.top_k == 1 {
            candidates.clear();
            candidates.push(best);
            return Ok(top);
        }
        if s.top_k > 0 && s.top_k < candidates.len() {
            candidates.select_nth_unstable_by(s.top_k - 1, Candidate::before);
            candidates.truncate(s.top_k);
            candidates.sort_unstable_by(Candidate::before);
        }
        if s.top_p < 1.0 {
            keep_share(candidates, f64::from(s.top_p), top);
        }
        if s.min_p > 0.0 {
            candidates.retain(|candidate| candidate.weight(top, 1.0) >= f64::from(s.min_p));
        }
        Ok(top)
    }

    /// A number from 0 to below 1: SplitMix64 (Steele et al. 2014).
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Keeps the fewest likeliest candidates whose probabilities add up to `share`, at least one. Only as many are sorted as
/// are looked at.
fn keep_share(candidates: &mut Vec<Candidate>, share: f64, top: f32) {
    const FIRST: usize = 128;
    let wanted = share * candidates.iter().map(|candidate| candidate.weight(top, 1.0)).sum::<f64>();
    let (mut sorted, mut sum) = (0, 0.0);
    for count in 1..=candidates.len() {
        if count > sorted {
            let next = (sorted * 4).max(FIRST).min(candidates.len());
            let rest = &mut candidates[sorted..];
            if next - sorted < rest.len() {
                rest.select_nth_unstable_by(next - sorted - 1, Candidate::before);
            }
            rest[..next - sorted].sort_unstable_by(Candidate::before);
            sorted = next;
        }
        sum += candidates[count - 1].weight(top, 1.0);
        if sum >= wanted {
            candidates.truncate(count);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything off but what a test sets.
    fn off() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() }
    }

    /// Numbers that look like logits, without libm.
    fn logits(len: usize, seed: u64) -> Vec<f32> {
        let mut noise = Sampler::new(Sampling { seed, ..off() }).unwrap();
        (0..len).map(|_| (0..4).map(|_| noise.uniform() * 6.0 - 3.0).sum::<f64>() as f32).collect()
    }

    /// Tokens that `sampling` may draw, after `history`, in rising order.
    fn kept(sampling: Sampling, history: &[u32], logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        sampler.begin(history);
        sampler.choose_candidates(logits).unwrap();
        let mut tokens: Vec<u32> = sampler.candidates.iter().map(|candidate| candidate.token).collect();
        tokens.sort_unstable();
        tokens
    }

    fn draw(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..count).map(|_| sampler.sample(logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let all = [1.0, 3.0, 3.0, -f32::INFINITY];
        assert_eq!(draw(Sampling::greedy(), &all, 3), [1, 1, 1]);
        assert_eq!(draw(Sampling { top_k: 1, ..Sampling::default() }, &all, 3), [1, 1, 1]);
        assert_eq!(draw(Sampling::greedy(), &[-0.0, 0.0], 1), [0]);
    }

    #[test]
    fn a_seed_gives_the_same_tokens_on_every_machine() {
        let logits = logits(1000, 5);
        let sampling = Sampling { temperature: 2.0, seed: 7, ..Sampling::default() };
        // What a few lines of Python draw with the same random numbers.
        let tokens = [987, 704, 3, 562, 927, 223, 927, 223, 704, 987, 704, 753];
        assert_eq!(draw(sampling.clone(), &logits, 12), tokens);
        assert_ne!(draw(Sampling { seed: 8, ..sampling }, &logits, 12), tokens);
    }

    #[test]
    fn draws_follow_the_softmax_of_the_top_k() {
        let logits = [0.0, (2.0f32).ln(), (4.0f32).ln(), (100.0f32).ln(), -50.0];
        let mut counts = [0usize; 5];
        for token in draw(Sampling { top_k: 4, seed: 3, ..off() }, &logits, 20_000) {
            counts[token as usize] += 1;
        }
        for (count, weight) in counts.iter().zip([1.0, 2.0, 4.0, 100.0, 0.0]) {
            let expected = 20_000.0 * weight / 107.0;
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt() + 1.0, "{counts:?}");
        }
        assert_eq!(kept(Sampling { top_k: 2, ..off() }, &[], &logits), [2, 3]);
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        let logits = [0.0, (2.0f32).ln()];
        let share = |temperature| {
            let tokens = draw(Sampling { temperature, ..off() }, &logits, 20_000);
            tokens.iter().sum::<u32>() as f64 / 20_000.0
        };
        // 2^(1/t) / (1 + 2^(1/t)); 0.0035 is one standard error of 20000 draws.
        for (temperature, wanted) in [(0.5, 0.8), (1.0, 2.0 / 3.0), (2.0, 0.585_786)] {
            assert!((share(temperature) - wanted).abs() < 0.0175, "{temperature}");
        }
        assert_eq!(draw(Sampling { temperature: 1e-30, ..off() }, &logits, 5), [1; 5]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_the_share() {
        // Probabilities 0.4, 0.1, 0.3, 0.2.
        let logits: Vec<f32> = [4.0f32, 1.0, 3.0, 2.0].iter().map(|x| x.ln()).collect();
        let top_p = |top_p| kept(Sampling { top_p, ..off() }, &[], &logits);
        assert_eq!(top_p(0.05), [0]);
        assert_eq!(top_p(0.39), [0]);
        assert_eq!(top_p(0.41), [0, 2]);
        assert_eq!(top_p(0.69), [0, 2]);
        assert_eq!(top_p(0.89), [0, 2, 3]);
        assert_eq!(top_p(0.91), [0, 1, 2, 3]);
        // After top-k the probabilities are those of what is left: 4/7 and 3/7.
        assert_eq!(kept(Sampling { top_k: 2, top_p: 0.5, ..off() }, &[], &logits), [0]);
    }

    #[test]
    fn min_p_is_measured_against_the_likeliest_before_the_temperature() {
        let logits: Vec<f32> = [4.0f32, 1.0, 3.0, 2.0].iter().map(|x| x.ln()).collect();
        for temperature in [0.1, 1.0, 5.0] {
            let min_p = |min_p| kept(Sampling { temperature, min_p, ..off() }, &[], &logits);
            assert_eq!(min_p(0.2), [0, 1, 2, 3]);
            assert_eq!(min_p(0.3), [0, 2, 3]);
            assert_eq!(min_p(0.6), [0, 2]);
            assert_eq!(min_p(1.0), [0]);
        }
    }

    #[test]
    fn penalties_divide_positive_and_multiply_negative_logits() {
        let logits = [2.0, -1.0, 1.5, 0.5];
        let after = |sampling: Sampling, history: &[u32]| -> Vec<f32> {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, ..sampling }).unwrap();
            sampler.begin(history);
            sampler.choose_candidates(&logits).unwrap();
            sampler.candidates.sort_by_key(|candidate| candidate.token);
            sampler.candidates.iter().map(|candidate| candidate.logit).collect()
        };
        let repeat = Sampling { repeat_penalty: 2.0, ..off() };
        assert_eq!(after(repeat.clone(), &[0, 1, 0]), [1.0, -2.0, 1.5, 0.5]);
        assert_eq!(
            after(Sampling { repeat_last_n: Some(1), ..repeat.clone() }, &[1, 0]),
            [1.0, -1.0, 1.5, 0.5]
        );
        assert_eq!(after(Sampling { repeat_last_n: Some(0), ..repeat.clone() }, &[1, 0]), logits);
        assert_eq!(after(Sampling { repeat_last_n: None, ..repeat }, &[1; 100]), [2.0, -2.0, 1.5, 0.5]);
        let others = Sampling { presence_penalty: 0.25, frequency_penalty: 0.5, ..off() };
        assert_eq!(after(others, &[0, 1, 0, 99]), [0.75, -1.75, 1.5, 0.5]);
    }

    #[test]
    fn old_tokens_leave_the_window() {
        let sampling = Sampling { repeat_penalty: 1e6, repeat_last_n: Some(2), ..Sampling::greedy() };
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut tokens = Vec::new();
        for _ in 0..6 {
            let token = sampler.sample(&[4.0, 3.0, 2.0, 1.0]).unwrap();
            sampler.accept(token);
            tokens.push(token);
        }
        assert_eq!(tokens, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn refuses_options_that_mean_nothing() {
        let bad = [
            Sampling { temperature: -0.1, ..off() },
            Sampling { temperature: f32::NAN, ..off() },
            Sampling { temperature: f32::INFINITY, ..off() },
            Sampling { top_p: 0.0, ..off() },
            Sampling { top_p: 1.5, ..off() },
            Sampling { top_p: f32::NAN, ..off() },
            Sampling { min_p: -0.5, ..off() },
            Sampling { min_p: 1.01, ..off() },
            Sampling { repeat_penalty: 0.0, ..off() },
            Sampling { repeat_penalty: f32::NAN, ..off() },
            Sampling { presence_penalty: f32::INFINITY, ..off() },
            Sampling { frequency_penalty: f32::NAN, ..off() },
        ];
        for sampling in bad {
            let found = Sampler::new(sampling.clone());
            assert!(matches!(found, Err(EngineError::Sampling { .. })), "{sampling:?}");
        }
    }

    #[test]
    fn refuses_logits_that_are_not_numbers() {
        for sampling in [Sampling::greedy(), off()] {
            for logits in [&[1.0, f32::NAN][..], &[], &[1.0, f32::INFINITY], &[-f32::INFINITY; 2]] {
                let found = Sampler::new(sampling.clone()).unwrap().sample(logits);
                assert!(matches!(found, Err(EngineError::Logits)), "{logits:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_partial_sort_keeps_what_a_whole_one_keeps(len in 1..2000usize, seed: u64, top_p in 0.01..0.999f32) {
            let logits = logits(len, seed);
            let mut all: Vec<Candidate> =
                (0..).zip(&logits).map(|(token, &logit)| Candidate { token, logit }).collect();
            all.sort_by(Candidate::before);
            let top = all[0].logit;
            let total: f64 = logits.iter().map(|&logit| Candidate { token: 0, logit }.weight(top, 1.0)).sum();
            let mut sum = 0.0;
            let count = all.iter().position(|candidate| {
                sum += candidate.weight(top, 1.0);
                sum >= f64::from(top_p) * total
            });
            let mut wanted: Vec<u32> =
                all[..=count.unwrap_or(len - 1)].iter().map(|candidate| candidate.token).collect();
            wanted.sort_unstable();
            prop_assert_eq!(kept(Sampling { top_p, ..off() }, &[], &logits), wanted);
        }
    }
}
