//! Log-likelihoods of texts after their contexts.
//!
//! Requests of one document share what their inputs begin with: it is computed once, and each input branches off from its keys and
//! values. Equal inputs are computed once. Where nothing is to be shared, documents go through the model together. Only logits
//! of scored places are computed. What is shared changes nothing in the figures, nor does the number of threads.

use super::TaskError;
use super::encode::Request;
use crate::Progress;
use crate::run::Threads;
use kbit_engine::{EngineError, Model, Session};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Tokens that must be saved for an input to be computed in two steps.
const WORTH_SHARING: usize = 24;
/// Sequences that are computed together: each has its keys and values.
const TOGETHER: usize = 16;

/// How likely a text is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Likelihood {
    /// Sum over its tokens, in nats.
    pub(crate) log_likelihood: f64,
    /// True where each of its tokens is the likeliest one.
    pub(crate) greedy: bool,
    /// Its tokens.
    pub(crate) tokens: usize,
}

/// Why documents could not be scored.
pub(crate) enum Failure {
    /// The logits of this document are not finite.
    NotFinite(usize),
    Engine(EngineError),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// Likelihoods of all requests of all documents. `context`: tokens that the longest input has, at most.
pub(crate) fn likelihoods(
    model: &Model,
    documents: &[Vec<Request>],
    context: usize,
    progress: &Progress<'_>,
) -> Result<Vec<Vec<Likelihood>>, Failure> {
    let threads = Threads::new(&[model]);
    let jobs = jobs(documents);
    let done = AtomicUsize::new(0);
    let idle: Mutex<Vec<Scorer<'_>>> = Mutex::new(Vec::new());
    let step = |index: usize| {
        let job: &Job = &jobs[index];
        let waiting = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scorer = waiting.unwrap_or_else(|| Scorer::new(model, context, threads));
        let result = scorer.score(documents, job);
        idle.lock().unwrap_or_else(PoisonError::into_inner).push(scorer);
        let count = job.documents.len();
        progress(done.fetch_add(count, Ordering::Relaxed) + count, documents.len());
        result
    };
    Ok(threads.jobs(jobs.len(), step)?.into_iter().flatten().collect())
}

/// Documents that are computed together.
struct Job {
    documents: std::ops::Range<usize>,
    /// Tokens that all inputs begin with and that are computed first.
    shared: usize,
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Different inputs of a document's requests, each with the first place that is scored in it.
fn inputs(requests: &[Request]) -> Vec<(&[u32], usize)> {
    let mut inputs: Vec<(&[u32], usize)> = Vec::new();
    for request in requests {
        match inputs.iter_mut().find(|(input, _)| *input == request.input) {
            Some((_, first)) => *first = request.first().min(*first),
            None => inputs.push((&request.input, request.first())),
        }
    }
    inputs
}

/// Cuts the documents into jobs: alone where inputs share much with each other or with the neighbouring document, else together.
fn jobs(documents: &[Vec<Request>]) -> Vec<Job> {
    let first_input =
        |index: usize| documents.get(index).and_then(|requests| requests.first()).map(|r| r.input.as_slice());
    let mut jobs: Vec<Job> = Vec::new();
    // Of the job that may still grow.
    let mut open: Option<(usize, usize)> = None;
    for (index, requests) in documents.iter().enumerate() {
        let inputs = inputs(requests);
        let Some((leader, _)) = inputs.first() else {
            jobs.push(Job { documents: index..index + 1, shared: 0 });
            open = None;
            continue;
        };
        let scored = inputs.iter().map(|(_, first)| *first).min().unwrap_or(0);
        let shared = inputs.iter().map(|(input, _)| common(leader, input)).min().unwrap_or(0).min(scored);
        let neighbours = [index.checked_sub(1), Some(index + 1)];
        let with_neighbours = neighbours
            .into_iter()
            .flatten()
            .filter_map(first_input)
            .map(|other| common(leader, other))
            .max()
            .unwrap_or(0);
        let saved = (inputs.len() - 1) * shared + with_neighbours.min(shared);
        let tokens: usize = inputs.iter().map(|(input, _)| input.len()).sum();
        if saved >= WORTH_SHARING {
            jobs.push(Job { documents: index..index + 1, shared });
            open = None;
            continue;
        }
        match (&mut open, jobs.last_mut()) {
            (Some((sequences, size)), Some(job))
                if *sequences + inputs.len() <= TOGETHER && *size + tokens <= Session::BATCH =>
            {
                job.documents.end = index + 1;
                *sequences += inputs.len();
                *size += tokens;
            }
            _ => {
                jobs.push(Job { documents: index..index + 1, shared: 0 });
                open = Some((inputs.len(), tokens));
            }
        }
    }
    jobs
}

/// A token that is scored, and for which request.
struct Wanted {
    row: usize,
    document: usize,
    request: usize,
    token: usize,
}

/// A session, and what it holds.
struct Scorer<'m> {
    model: &'m Model,
    session: Session<'m>,
    held: Vec<u32>,
    threads: Threads,
    states: Vec<f32>,
    logits: Vec<f32>,
}

impl<'m> Scorer<'m> {
    fn new(model: &'m Model, context: usize, threads: Threads) -> Self {
        let session = threads.session(model, context);
        Self { model, session, held: Vec::new(), threads, states: Vec::new(), logits: Vec::new() }
    }

    /// Makes the session hold `tokens`, computing those that it does not hold yet.
    fn hold(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        let kept = common(&self.held, tokens);
        self.session.truncate(kept);
        self.held.truncate(kept);
        self.session.forward(&tokens[kept..], tokens.len(), &mut self.logits)?;
        self.held.extend_from_slice(&tokens[kept..]);
        Ok(())
    }

    fn score(&mut self, documents: &[Vec<Request>], job: &Job) -> Result<Vec<Vec<Likelihood>>, Failure> {
        let mut texts: Vec<(&[u32], usize)> = Vec::new();
        let mut wanted = Vec::new();
        let mut rows = 0;
        for (document, requests) in documents[job.documents.clone()].iter().enumerate() {
            for (input, first) in inputs(requests) {
                for (request, scored) in
                    requests.iter().enumerate().filter(|(_, request)| request.input == input)
                {
                    let row = rows + scored.first() - first;
                    wanted.extend(scored.continuation.iter().enumerate().map(|(place, token)| Wanted {
                        row: row + place,
                        document,
                        request,
                        token: *token as usize,
                    }));
                }
                rows += input.len() - first;
                texts.push((&input[job.shared..], first - job.shared));
            }
        }
        if let Some(requests) = documents[job.documents.clone()].first().filter(|_| job.shared > 0) {
            let prefix = requests.first().map_or(&[][..], |request| &request.input[..job.shared]);
            self.hold(prefix)?;
        } else {
            self.session.clear();
            self.held.clear();
        }
        let mut states = std::mem::take(&mut self.states);
        let result = self.session.branches(&texts, &mut states);
        self.states = states;
        result?;
        // Rows in order, and of one row the requests in order.
        wanted.sort_by_key(|wanted| (wanted.row, wanted.document, wanted.request));
        let empty = Likelihood { log_likelihood: 0.0, greedy: true, tokens: 0 };
        let mut found: Vec<Vec<Likelihood>> =
            documents[job.documents.clone()].iter().map(|requests| vec![empty; requests.len()]).collect();
        self.each_row(&wanted, |wanted, log_probability, greedy| {
            if !log_probability.is_finite() {
                return Err(Failure::NotFinite(job.documents.start + wanted.document));
            }
            let sum = &mut found[wanted.document][wanted.request];
            sum.log_likelihood += log_probability;
            sum.greedy &= greedy;
            sum.tokens += 1;
            Ok(())
        })?;
        Ok(found)
    }

    /// Calls `add` with the log-probability of each wanted token, in order; logits exist for a few rows at a time.
    fn each_row(
        &mut self,
        wanted: &[Wanted],
        mut add: impl FnMut(&Wanted, f64, bool) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let d = self.model.description();
        let (hidden, vocab) = (d.hidden, d.vocab);
        let most = self.threads.rows(self.model);
        let kernels = self.model.kernels();
        let mut start = 0;
        while let Some(first) = wanted.get(start) {
            let end =
                start + wanted[start..].iter().take_while(|wanted| wanted.row < first.row + most).count();
            let rows = wanted[end - 1].row + 1 - first.row;
            self.logits.resize(rows * vocab, 0.0);
            let states = &self.states[first.row * hidden..(first.row + rows) * hidden];
            self.session.logits(states, &mut self.logits)?;
            let here = &wanted[start..end];
            let score = |index: usize| {
                let wanted = &here[index];
                let logits = &self.logits[(wanted.row - first.row) * vocab..][..vocab];
                let own = logits[wanted.token];
                let log_probability = f64::from(own) - kernels.log_sum_exp(logits);
                // Of equally likely tokens the first one counts.
                let greedy = logits.iter().enumerate().all(|(token, &logit)| {
                    logit < own || token == wanted.token || (logit == own && token > wanted.token)
                });
                (log_probability, greedy)
            };
            let scores: Vec<(f64, bool)> = self.threads.each(here.len(), score);
            for (wanted, (log_probability, greedy)) in here.iter().zip(scores) {
                add(wanted, log_probability, greedy)?;
            }
            start = end;
        }
        Ok(())
    }
}

/// The document of a failure, told.
pub(crate) fn told(failure: Failure, path: &std::path::Path, lines: &[usize]) -> TaskError {
    match failure {
        Failure::Engine(error) => TaskError::Engine(error),
        Failure::NotFinite(document) => TaskError::NotFinite {
            path: path.to_owned(),
            line: lines.get(document).copied().unwrap_or_default(),
        },
    }
}
