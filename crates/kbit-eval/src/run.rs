//! Who computes what, in which order: windows in groups, sessions, rows of logits.
//!
//! A small model has too little work in a window for several threads, so each thread takes windows of its own; a large
//! one decodes its weights once a window, and all threads share that. The figures are the same.

use crate::{EvalError, Progress, Windows};
use kbit_engine::{EngineError, Model, Session};
use rayon::prelude::*;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Models with fewer weights run a window on one thread.
const SMALL: u64 = 50_000_000;

/// How threads share the work.
#[derive(Clone, Copy)]
pub(crate) struct Threads {
    /// True where each thread takes jobs of its own; else all of them share one job.
    pub(crate) apart: bool,
}

impl Threads {
    pub(crate) fn new(models: &[&Model]) -> Self {
        Self { apart: models.iter().all(|model| model.weights() < SMALL && !model.is_streamed()) }
    }

    /// Rows of logits that are computed at a time.
    pub(crate) fn rows(self, model: &Model) -> usize {
        let floats = if self.apart { 1 << 21 } else { 1 << 23 };
        (floats / model.description().vocab).clamp(16, Session::BATCH)
    }

    /// `measure(i)` for `i` in `0..count`, within a job; results in order.
    pub(crate) fn each<T: Send>(self, count: usize, measure: impl Fn(usize) -> T + Sync) -> Vec<T> {
        if self.apart {
            (0..count).map(&measure).collect()
        } else {
            (0..count).into_par_iter().map(&measure).collect()
        }
    }

    /// `job(i)` for `i` in `0..count`; results in order, or the first error by place, whichever thread met one first.
    pub(crate) fn jobs<T: Send, E: Send>(
        self,
        count: usize,
        job: impl Fn(usize) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        if self.apart {
            let results: Vec<_> = (0..count).into_par_iter().map(&job).collect();
            results.into_iter().collect()
        } else {
            (0..count).map(job).collect()
        }
    }

    /// A session for a job.
    pub(crate) fn session(self, model: &Model, context: usize) -> Session<'_> {
        let session = model.session(context);
        if self.apart { session.on_one_thread() } else { session }
    }
}

/// Floats of hidden states that a streamed model has in memory for a group of windows.
const STREAMED: usize = 1 << 26;

/// Windows that go through a model together: as many as make a batch; of a streamed model, which is read once for all of them, as many as
/// memory is set aside for.
pub(crate) fn group(model: &Model, windows: &Windows) -> usize {
    let tokens =
        if model.is_streamed() { STREAMED / model.description().hidden.max(1) } else { Session::BATCH };
    (tokens / windows.context).max(1)
}

/// Windows of a text, and who runs them.
pub(crate) struct Plan<'t> {
    pub(crate) windows: &'t Windows,
    pub(crate) tokens: &'t [u32],
    /// Windows of the text.
    pub(crate) count: usize,
    group: usize,
    threads: Threads,
    /// True where a session is kept from one group of windows to the next.
    keeps_sessions: bool,
    /// Memory for logits that nobody uses now.
    idle: Idle<Vec<f32>>,
}

/// Models whose sessions are all kept, at most: caches of many large ones would fill the memory.
const KEPT: usize = 2;

impl<'t> Plan<'t> {
    pub(crate) fn new(models: &[&Model], windows: &'t Windows, tokens: &'t [u32]) -> Result<Self, EvalError> {
        let count = windows.count(tokens.len())?;
        let group = models.iter().map(|model| group(model, windows)).max().unwrap_or(1);
        let threads = Threads::new(models);
        // Streamed models are short of memory, and have few groups.
        let keeps_sessions =
            threads.apart || (models.len() <= KEPT && !models.iter().any(|model| model.is_streamed()));
        Ok(Self { windows, tokens, count, group, threads, keeps_sessions, idle: Idle::default() })
    }

    /// Calls `measure` for groups of windows that go through a model together; results in order, one a group.
    pub(crate) fn run<T: Send>(
        &self,
        progress: &Progress<'_>,
        measure: impl Fn(Range<usize>) -> Result<T, EvalError> + Sync,
    ) -> Result<Vec<T>, EvalError> {
        let group = self.group;
        let done = AtomicUsize::new(0);
        let step = |index: usize| {
            let range = index * group..((index + 1) * group).min(self.count);
            let result = measure(range.clone())?;
            progress(done.fetch_add(range.len(), Ordering::Relaxed) + range.len(), self.count);
            Ok(result)
        };
        self.threads.jobs(self.count.div_ceil(group), step)
    }

    /// What the model reads of these windows, and the tokens that are scored in them.
    pub(crate) fn texts(&self, windows: Range<usize>) -> (Vec<Vec<u32>>, Vec<u32>) {
        let inputs = windows.clone().map(|window| self.windows.input(self.tokens, window)).collect();
        let targets = windows.flat_map(|window| self.windows.targets(self.tokens, window)).copied().collect();
        (inputs, targets)
    }

    /// Place in the text of the `index`th scored token of these windows.
    pub(crate) fn place(&self, windows: &Range<usize>, index: usize) -> usize {
        let (window, token) = (index / self.windows.scored(), index % self.windows.scored());
        self.windows.range(windows.start + window).start + self.windows.first() + 1 + token
    }

    /// Rows of logits that are computed at a time.
    pub(crate) fn rows(&self, model: &Model) -> usize {
        self.threads.rows(model)
    }

    /// `measure(i)` for `i` in `0..count`, results in order; by several threads where a window is not one thread's.
    pub(crate) fn each<T: Send>(&self, count: usize, measure: impl Fn(usize) -> T + Sync) -> Vec<T> {
        self.threads.each(count, measure)
    }

    /// Room for `len` floats, whatever they are. It is used again, so that the system need not bring fresh pages for the logits of each
    /// group of windows.
    pub(crate) fn floats(&self, len: usize) -> Floats<'_> {
        let mut floats = self.idle.take().unwrap_or_default();
        floats.resize(len, 0.0);
        Floats { floats, idle: &self.idle }
    }

    /// A runner for a model.
    pub(crate) fn runner<'m>(&self, model: &'m Model) -> Runner<'m> {
        Runner {
            model,
            context: self.windows.context,
            threads: self.threads,
            keeps: self.keeps_sessions,
            idle: Idle::default(),
        }
    }
}

/// Things that several threads use in turn.
struct Idle<T>(Mutex<Vec<T>>);

impl<T> Default for Idle<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Idle<T> {
    /// One that nobody uses now.
    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, thing: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(thing);
    }
}

/// Floats that go back where they came from.
pub(crate) struct Floats<'p> {
    floats: Vec<f32>,
    idle: &'p Idle<Vec<f32>>,
}

impl Deref for Floats<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.floats
    }
}

impl DerefMut for Floats<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.floats
    }
}

impl Drop for Floats<'_> {
    fn drop(&mut self) {
        self.idle.put(std::mem::take(&mut self.floats));
    }
}

/// Sessions of one model.
pub(crate) struct Runner<'m> {
    pub(crate) model: &'m Model,
    context: usize,
    threads: Threads,
    keeps: bool,
    idle: Idle<Session<'m>>,
}

impl<'m> Runner<'m> {
    /// Final hidden states of the scored places of these texts.
    pub(crate) fn states(&self, texts: &[Vec<u32>], from: usize) -> Result<Vec<f32>, EngineError> {
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let mut states = Vec::new();
        self.with_session(|session| session.hidden_states(&texts, from, &mut states))?;
        Ok(states)
    }

    /// Logits of hidden states.
    pub(crate) fn logits(&self, states: &[f32], logits: &mut [f32]) -> Result<(), EngineError> {
        self.with_session(|session| session.logits(states, logits))
    }

    fn with_session<T>(&self, work: impl FnOnce(&mut Session<'m>) -> T) -> T {
        let mut session = self.idle.take().unwrap_or_else(|| self.threads.session(self.model, self.context));
        let result = work(&mut session);
        if self.keeps {
            self.idle.put(session);
        }
        result
    }
}
