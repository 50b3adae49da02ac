//! `kbit generate`.

use super::text::{self, Stream};
use crate::cli::Generate;
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_engine::Generator;
use std::io::IsTerminal;
use std::ops::ControlFlow;

/// Continues a text, token by token.
pub fn generate(session: &Session, arguments: &Generate) -> Result<u8, Failure> {
    let options = &arguments.continuation;
    let mut sampler = text::sampler(options)?;
    let prompt = match (&arguments.prompt, &arguments.prompt_file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(path)) => {
            let mut prompt = kbit_pipeline::measure::read_text(path)?;
            if prompt.ends_with('\n') {
                prompt.truncate(prompt.len() - if prompt.ends_with("\r\n") { 2 } else { 1 });
            }
            prompt
        }
        (None, None) => {
            return Err(Failure::usage("there is nothing to continue; write --prompt or --prompt-file"));
        }
    };
    let registry = session.registry(&[], None)?;
    let model = super::open_model(&arguments.model, &registry, arguments.continuation.computing)?;
    let tokenizer = model.tokenizer()?;
    let tokens = tokenizer.encode_prompt(&prompt);
    if tokens.is_empty() {
        return Err(Failure::usage(
            "the prompt is empty, and the model has no token that begins a text; write at least one character",
        ));
    }
    let count = usize::try_from(arguments.n).map_err(Failure::usage)?;
    let mut generator = Generator::new(model.model.session(text::context(options, &model.model)?));
    let json = session.global.json;
    let mut stream = tokenizer.stream(options.stop.clone());
    let mut out = Stream::new(!json);
    let mut written = Ok(());
    let generated = generator.generate(
        &tokens,
        &mut sampler,
        Some(count),
        &|token| tokenizer.ends_generation(token),
        &mut |token| match out.write(&stream.push(token)) {
            Ok(ControlFlow::Continue(())) if stream.stopped().is_none() => ControlFlow::Continue(()),
            Ok(_) => ControlFlow::Break(()),
            Err(error) => {
                written = Err(error);
                ControlFlow::Break(())
            }
        },
    )?;
    written?;
    let stop = stream.stopped().map(str::to_owned);
    let _ = out.write(&stream.finish())?;
    if json {
        let mut document = text::json(&generated, out.text(), stop.as_deref(), options.seed);
        if let Some(fields) = document.as_object_mut() {
            fields.shift_insert(0, "prompt".to_owned(), prompt.into());
            fields.insert("cache_bytes".to_owned(), generator.cache_bytes().into());
        }
        output::json(&document)?;
        return Ok(DONE);
    }
    if !out.text().ends_with('\n') {
        let _ = out.write("\n")?;
    }
    if std::io::stderr().is_terminal() && !session.global.quiet {
        output::note(&format!(
            "{} tokens ({}); prompt {:.1} tokens/s, generation {:.1} tokens/s, KV cache {}, {}",
            generated.tokens.len(),
            text::reason(generated.finish),
            generated.prompt_rate(),
            generated.generation_rate(),
            output::bytes(generator.cache_bytes() as u64),
            output::peak_memory()
        ));
    }
    Ok(DONE)
}
