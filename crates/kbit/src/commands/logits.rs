//! `kbit logits`.

use crate::cli::Logits;
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_engine::EngineError;

/// Writes the logits of a token sequence: f32 `logits` `[T, vocab]`.
pub fn logits(session: &Session, arguments: &Logits) -> Result<u8, Failure> {
    let registry = session.registry(&[], None)?;
    let model = super::open_model(&arguments.model, &registry, arguments.computing)?;
    let mut state = model.model.session(arguments.tokens.len());
    let mut logits = Vec::new();
    state.forward(&arguments.tokens, 0, &mut logits)?;
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err(EngineError::Logits.into());
    }
    let vocab = logits.len() / arguments.tokens.len().max(1);
    let shape = [arguments.tokens.len() as u64, vocab as u64];
    kbit_formats::write_safetensors_f32(&arguments.out, "logits", &shape, &logits)?;
    if session.global.json {
        output::json(&serde_json::json!({
            "path": arguments.out, "shape": shape, "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
        }))?;
    } else {
        output::text(&format!("{}: logits {shape:?}, {}", arguments.out.display(), output::peak_memory()))?;
    }
    Ok(DONE)
}
