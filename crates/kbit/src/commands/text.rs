//! What `kbit generate` and `kbit chat` share: sampling, the context, text on stdout as it comes.

use crate::cli::Continuation;
use crate::failure::Failure;
use kbit_engine::{Finish, Generated, Model, Sampler, Sampling};
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;

/// The sampler that was asked for.
pub fn sampler(options: &Continuation) -> Result<Sampler, Failure> {
    let sampling = Sampling {
        temperature: options.temperature,
        top_k: usize::try_from(options.top_k).map_err(Failure::usage)?,
        top_p: options.top_p,
        min_p: options.min_p,
        repeat_penalty: options.repeat_penalty,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        repeat_last_n: usize::try_from(options.repeat_last_n).ok(),
        seed: options.seed,
    };
    Ok(Sampler::new(sampling)?)
}

/// Tokens of a session: as many as were asked for, or as the model was trained for.
pub fn context(options: &Continuation, model: &Model) -> Result<usize, Failure> {
    let trained = model.description().context_length;
    match options.context {
        None => Ok(trained),
        Some(wanted) => match usize::try_from(wanted) {
            Ok(wanted) if wanted <= trained => Ok(wanted),
            _ => Err(Failure::usage(format!(
                "a context of {wanted} tokens is longer than the {trained} that the model was trained for; write --context {trained} or less"
            ))),
        },
    }
}

/// Stdout, text by text. Where nobody reads on, it says so.
pub struct Stream {
    shows: bool,
    text: String,
}

impl Stream {
    /// Shows text as it comes, or only gathers it.
    pub fn new(shows: bool) -> Self {
        Self { shows, text: String::new() }
    }

    /// All text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes `text` at once. Breaks where stdout was closed.
    pub fn write(&mut self, text: &str) -> std::io::Result<ControlFlow<()>> {
        self.text.push_str(text);
        if !self.shows || text.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(error) => Err(error),
        }
    }
}

/// The keys that a continuation has in JSON.
pub fn json(generated: &Generated, text: &str, stop: Option<&str>, seed: u64) -> serde_json::Value {
    serde_json::json!({
        "text": text,
        "tokens": generated.tokens,
        "finish": generated.finish.to_string(),
        "end_token": generated.end,
        "stop": stop,
        "seed": seed,
        "prompt_tokens": generated.reused + generated.computed,
        "reused_tokens": generated.reused,
        "prompt_seconds": generated.prompt_time.as_secs_f64(),
        "prompt_tokens_per_second": generated.prompt_rate(),
        "generation_seconds": generated.generation_time.as_secs_f64(),
        "tokens_per_second": generated.generation_rate(),
        "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
    })
}

/// Why a text ended, for people.
pub fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndToken => "the model ended it",
        Finish::Length => "as many tokens as asked for",
        Finish::Context => "the context is full",
        Finish::Stop => "a stop string",
    }
}
