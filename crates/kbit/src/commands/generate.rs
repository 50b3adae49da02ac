//! `kbit generate`.

use crate::cli::Generate;
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_engine::Sampler;
use kbit_host::Isolation;
use kbit_models::ConvertOptions;
use kbit_pipeline::open::OpenModel;
use std::io::Write;
use std::time::Instant;

/// Continues a text, token by token.
pub fn generate(session: &Session, arguments: &Generate) -> Result<u8, Failure> {
    let registry = session.registry(&[], None)?;
    let model =
        OpenModel::open(&arguments.model, &registry, Isolation::InProcess, &ConvertOptions::default())?
            .with_mode(arguments.mode);
    let tokenizer = model.tokenizer()?;
    let prompt = tokenizer.encode(&arguments.prompt, true, true);
    if prompt.is_empty() {
        return Err(Failure::usage("the prompt gives no token; write at least one character after --prompt"));
    }
    let count = usize::try_from(arguments.n).map_err(Failure::usage)?;
    let top_k = usize::try_from(arguments.top_k).map_err(Failure::usage)?;
    let mut sampler = Sampler::new(top_k, arguments.temperature, arguments.seed);
    let mut state = model.model.session(prompt.len() + count);
    let mut logits = Vec::new();
    let started = Instant::now();
    state.forward(&prompt, prompt.len() - 1, &mut logits)?;
    let prompt_seconds = started.elapsed().as_secs_f64();
    let mut generated = Vec::new();
    let mut out = std::io::stdout().lock();
    let mut pending = Vec::new();
    while generated.len() < count {
        let token = sampler.sample(&logits)?;
        if tokenizer.eos() == Some(token) {
            break;
        }
        generated.push(token);
        if !session.global.json {
            pending.extend(tokenizer.decode_bytes(&[token]));
            let whole = std::str::from_utf8(&pending).map_or_else(|error| error.valid_up_to(), str::len);
            out.write_all(&pending[..whole])?;
            out.flush()?;
            pending.drain(..whole);
        }
        if generated.len() < count {
            state.forward(&[token], 0, &mut logits)?;
        }
    }
    drop(out);
    let seconds = started.elapsed().as_secs_f64() - prompt_seconds;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = generated.len() as f64 / seconds.max(1e-9);
    if session.global.json {
        output::json(&serde_json::json!({
            "prompt": arguments.prompt,
            "text": tokenizer.decode(&generated),
            "tokens": generated,
            "prompt_tokens": prompt.len(),
            "tokens_per_second": rate,
            "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
        }))?;
    } else {
        output::text(&String::from_utf8_lossy(&pending))?;
        output::note(&format!("{} tokens, {rate:.1} tokens/s, {}", generated.len(), output::peak_memory()));
    }
    Ok(DONE)
}
