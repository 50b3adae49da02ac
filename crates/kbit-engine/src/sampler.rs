//! Choosing the next token.

use crate::EngineError;

/// Chooses tokens by their logits. The same seed and logits give the same tokens on every machine whose `exp` agrees.
///
/// ```
/// use kbit_engine::Sampler;
/// let mut greedy = Sampler::greedy();
/// assert_eq!(greedy.sample(&[0.5, 2.0, 1.0])?, 1);
/// let mut sampler = Sampler::new(2, 0.8, 42);
/// assert_ne!(sampler.sample(&[0.5, 2.0, 1.0])?, 0); // not among the two likeliest
/// # Ok::<(), kbit_engine::EngineError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    top_k: usize,
    temperature: f32,
    state: u64,
}

impl Sampler {
    /// Draws from the `top_k` likeliest tokens (0 for all) by `softmax(logits / temperature)`. A temperature of 0 or
    /// less, or a `top_k` of 1, always takes the likeliest token, the first of equals.
    #[must_use]
    pub fn new(top_k: usize, temperature: f32, seed: u64) -> Self {
        Self { top_k, temperature, state: seed }
    }

    /// Always the likeliest token, the first of equals.
    #[must_use]
    pub fn greedy() -> Self {
        Self::new(1, 0.0, 0)
    }

    /// The next token.
    ///
    /// # Errors
    /// When there are no logits, or one is not a number.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, EngineError> {
        if logits.is_empty() || logits.iter().any(|logit| logit.is_nan()) {
            return Err(EngineError::Logits);
        }
        let mut order: Vec<u32> = (0..).take(logits.len()).collect();
        let likelier = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
        let greedy = self.temperature <= 0.0 || self.temperature.is_nan();
        let count = match self.top_k {
            _ if greedy => 1,
            0 => order.len(),
            k => k.min(order.len()),
        };
        if count < order.len() {
            order.select_nth_unstable_by(count - 1, likelier);
            order.truncate(count);
        }
        order.sort_unstable_by(likelier);
        if count == 1 {
            return Ok(order[0]);
        }
        let top = f64::from(logits[order[0] as usize]);
        if !top.is_finite() {
            return Err(EngineError::Logits);
        }
        let weights: Vec<f64> = order
            .iter()
            .map(|&token| ((f64::from(logits[token as usize]) - top) / f64::from(self.temperature)).exp())
            .collect();
        let mut point = self.uniform() * weights.iter().sum::<f64>();
        for (&token, weight) in order.iter().zip(weights) {
            point -= weight;
            if point < 0.0 {
                return Ok(token);
            }
        }
        Ok(order[count - 1])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampler::greedy().sample(&[1.0, 3.0, 3.0, -f32::INFINITY]).unwrap(), 1);
        assert_eq!(Sampler::new(0, 0.0, 7).sample(&[1.0, 3.0, 3.0]).unwrap(), 1);
    }

    #[test]
    fn same_seed_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32).sin()).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(20, 1.0, seed);
            (0..50).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn draws_follow_the_softmax_of_the_top_k() {
        let logits = [0.0, (2.0f32).ln(), (4.0f32).ln(), (100.0f32).ln(), -50.0];
        let mut sampler = Sampler::new(4, 1.0, 3);
        let mut counts = [0usize; 5];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        for (count, weight) in counts.iter().zip([1.0, 2.0, 4.0, 100.0, 0.0]) {
            let expected = 20_000.0 * weight / 107.0;
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt() + 1.0, "{counts:?}");
        }
        let mut sampler = Sampler::new(2, 1.0, 3);
        assert!((0..1000).all(|_| sampler.sample(&logits).unwrap() >= 2));
    }

    #[test]
    fn refuses_logits_that_are_not_numbers() {
        assert!(matches!(Sampler::greedy().sample(&[1.0, f32::NAN]), Err(EngineError::Logits)));
        assert!(matches!(Sampler::greedy().sample(&[]), Err(EngineError::Logits)));
        let infinite = [1.0, f32::INFINITY];
        assert!(matches!(Sampler::new(0, 1.0, 0).sample(&infinite), Err(EngineError::Logits)));
    }
}
