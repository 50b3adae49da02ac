//! Continuing a text, token by token.

use crate::{EngineError, Sampler, Session};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// A token that ends a text or a turn came.
    EndToken,
    /// As many tokens came as were asked for.
    Length,
    /// The context is full.
    Context,
    /// Whoever takes the tokens had enough: a stop string came.
    Stop,
}

impl std::fmt::Display for Finish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::EndToken => "end_token",
            Self::Length => "length",
            Self::Context => "context",
            Self::Stop => "stop",
        })
    }
}

/// What came of a generation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The tokens, without the one that ended them.
    pub tokens: Vec<u32>,
    /// Why they ended.
    pub finish: Finish,
    /// The end token, where one came.
    pub end: Option<u32>,
    /// Tokens of the prompt that the session held already.
    pub reused: usize,
    /// Tokens of the prompt that were computed.
    pub computed: usize,
    /// From the start to the first logits.
    pub prompt_time: Duration,
    /// Tokens that were computed one by one: all of `tokens` but the last, or all.
    pub steps: usize,
    /// From the first logits to the end, sampling included.
    pub generation_time: Duration,
}

impl Generated {
    /// Computed tokens of the prompt a second.
    #[must_use]
    pub fn prompt_rate(&self) -> f64 {
        rate(self.computed, self.prompt_time)
    }

    /// Generated tokens a second.
    #[must_use]
    pub fn generation_rate(&self) -> f64 {
        rate(self.steps, self.generation_time)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / time.as_secs_f64().max(1e-9) }
}

/// A session that continues texts, and computes only what a text does not have in common with the one before: each
/// turn of a conversation costs its own tokens. The tokens are those that a fresh session would give.
///
/// ```no_run
/// # fn main() -> Result<(), kbit_engine::EngineError> {
/// # let model: kbit_engine::Model = unimplemented!();
/// use kbit_engine::{Generator, Sampler, Sampling};
/// use std::ops::ControlFlow;
/// let mut generator = Generator::new(model.session(1024));
/// let mut sampler = Sampler::new(Sampling::default())?;
/// let generated = generator.generate(&[1, 5, 17], &mut sampler, Some(64), &|token| token == 2, &mut |token| {
///     println!("{token}");
///     ControlFlow::Continue(())
/// })?;
/// println!("{}", generated.finish);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Generator<'m> {
    session: Session<'m>,
    /// The tokens in the session.
    held: Vec<u32>,
    logits: Vec<f32>,
}

impl<'m> Generator<'m> {
    /// Continues texts in `session`, which loses what it held.
    #[must_use]
    pub fn new(mut session: Session<'m>) -> Self {
        session.clear();
        Self { session, held: Vec::new(), logits: Vec::new() }
    }

    /// Tokens that a prompt and its continuation may have together.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.session.capacity()
    }

    /// Bytes of memory that keys and values take: see [`Session::cache_bytes`].
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.session.cache_bytes()
    }

    /// The tokens that are in the session now.
    #[must_use]
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Continues `prompt` by at most `most` tokens (`None`: as many as fit). `sampler` looks back on the prompt too.
    /// `ends` says which tokens end the text; `each` gets every other one as it comes, and may stop.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit, and as [`Session::forward`] and [`Sampler::sample`].
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        most: Option<usize>,
        ends: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated, EngineError> {
        let started = Instant::now();
        // The last token is computed in any case: its logits are wanted.
        let last = prompt.len().checked_sub(1).ok_or(EngineError::NoPrompt)?;
        if prompt.len() > self.capacity() {
            return Err(EngineError::ContextOverflow {
                used: 0,
                new: prompt.len(),
                capacity: self.capacity(),
            });
        }
        let reused = prompt[..last].iter().zip(&self.held).take_while(|(new, old)| new == old).count();
        self.session.truncate(reused);
        self.held.truncate(reused);
        self.append(&prompt[reused..])?;
        sampler.begin(prompt);
        let prompt_time = started.elapsed();

        let started = Instant::now();
        let mut tokens = Vec::new();
        let mut steps = 0;
        let (finish, end) = loop {
            if most.is_some_and(|most| tokens.len() >= most) {
                break (Finish::Length, None);
            }
            if let Some(&token) = tokens.last() {
                if self.held.len() >= self.capacity() {
                    break (Finish::Context, None);
                }
                self.append(&[token])?;
                steps += 1;
            }
            let token = sampler.sample(&self.logits)?;
            if ends(token) {
                break (Finish::EndToken, Some(token));
            }
            sampler.accept(token);
            tokens.push(token);
            if each(token).is_break() {
                break (Finish::Stop, None);
            }
        };
        Ok(Generated {
            tokens,
            finish,
            end,
            reused,
            computed: prompt.len() - reused,
            prompt_time,
            steps,
            generation_time: started.elapsed(),
        })
    }

    /// Appends tokens and computes the logits that follow the last one.
    fn append(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        self.session.forward(tokens, tokens.len() - 1, &mut self.logits)?;
        self.held.extend_from_slice(tokens);
        Ok(())
    }
}
