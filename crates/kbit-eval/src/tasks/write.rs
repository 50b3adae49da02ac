//! Texts that a model writes, and what of them is compared.

use super::definition::{Filter, Generation};
use super::encode::{encode_text, prefix_token};
use super::prompts::{Asked, Question};
use super::{Task, TaskError};
use crate::Progress;
use crate::run::Threads;
use kbit_engine::{Generator, Model, Sampler, Sampling};
use kbit_tokenizers::Tokenizer;
use rayon::prelude::*;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a model wrote for one document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Written {
    /// Before filters.
    pub(crate) raw: String,
    /// What is compared.
    pub(crate) text: String,
    pub(crate) tokens: usize,
}

/// The texts that `model` writes for questions of `kind: generation`.
pub(crate) fn write(
    task: &Task,
    model: &Model,
    tokenizer: &Tokenizer,
    asked: &[Asked],
    progress: &Progress<'_>,
) -> Result<Vec<Written>, TaskError> {
    let context = model.description().context_length;
    let generation = &task.generation;
    let room = context.checked_sub(generation.max_tokens).filter(|room| *room > 0);
    let room = room.ok_or(TaskError::NoRoom { max_tokens: generation.max_tokens, context })?;
    let threads = Threads::new(&[model]);
    let done = AtomicUsize::new(0);
    let one =
        |generator: &mut Generator<'_>, index: usize, question: &Question| -> Result<Written, TaskError> {
            let prompt = match question {
                Question::Generation { prompt, .. } => prompt.as_str(),
                Question::Choice { .. } | Question::Cloze { .. } => "",
            };
            let mut tokens = encode_text(tokenizer, prompt);
            if tokens.is_empty() {
                tokens.push(prefix_token(tokenizer).ok_or(TaskError::NoPrefix)?);
            }
            let excess = tokens.len().saturating_sub(room);
            tokens.drain(..excess);
            let seed = generation.seed.wrapping_add(index as u64);
            let mut sampler = Sampler::new(sampling(generation, seed))?;
            let mut stream = tokenizer.stream(generation.until.clone()).at_the_beginning();
            let mut raw = String::new();
            let generated = generator.generate(
                &tokens,
                &mut sampler,
                Some(generation.max_tokens),
                &|token| tokenizer.ends_generation(token),
                &mut |token| {
                    raw += &stream.push(token);
                    match stream.stopped() {
                        Some(_) => ControlFlow::Break(()),
                        None => ControlFlow::Continue(()),
                    }
                },
            )?;
            raw += &stream.finish();
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, asked.len());
            Ok(Written { text: filtered(&task.filters, &raw), raw, tokens: generated.tokens.len() })
        };
    if threads.apart {
        asked
            .par_iter()
            .enumerate()
            .map_init(
                || Generator::new(threads.session(model, context)),
                |generator, (index, asked)| one(generator, index, &asked.question),
            )
            .collect()
    } else {
        let mut generator = Generator::new(threads.session(model, context));
        asked.iter().enumerate().map(|(index, asked)| one(&mut generator, index, &asked.question)).collect()
    }
}

fn sampling(generation: &Generation, seed: u64) -> Sampling {
    Sampling {
        temperature: generation.temperature,
        top_k: generation.top_k,
        top_p: generation.top_p,
        min_p: 0.0,
        seed,
        ..Sampling::default()
    }
}

fn filtered(filters: &[Filter], text: &str) -> String {
    let mut text = text.to_owned();
    for filter in filters {
        text = match filter {
            Filter::Strip => text.trim_matches(super::template::is_space).to_owned(),
            Filter::Lowercase => text.to_lowercase(),
            Filter::Uppercase => text.to_uppercase(),
            Filter::Find { pattern, select, fallback } => {
                find(pattern, *select, &text).unwrap_or_else(|| fallback.clone())
            }
        };
    }
    text
}

/// Python's `findall`, of which one find is taken: of a pattern with groups the first group that found something.
fn find(pattern: &regex::Regex, select: i64, text: &str) -> Option<String> {
    let finds: Vec<regex::Captures<'_>> = pattern.captures_iter(text).collect();
    let place = if select < 0 {
        finds.len().checked_sub(usize::try_from(-select).ok()?)?
    } else {
        usize::try_from(select).ok()?
    };
    let find = finds.get(place)?;
    let groups = find.iter().skip(1).flatten().map(|group| group.as_str());
    let text = match find.len() {
        1 => find.get(0)?.as_str(),
        2 => find.get(1).map_or("", |group| group.as_str()),
        _ => groups.into_iter().find(|group| !group.is_empty())?,
    };
    Some(text.trim_matches(super::template::is_space).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    #[test]
    fn filters_find_what_pythons_findall_finds() {
        let found = |pattern: &str, select, text: &str| find(&Regex::new(pattern).unwrap(), select, text);
        assert_eq!(found(r"[0-9]+", 0, "a 12 b 34").as_deref(), Some("12"));
        assert_eq!(found(r"[0-9]+", -1, "a 12 b 34").as_deref(), Some("34"));
        assert_eq!(
            found(r"answer is ([a-z]+)", 0, "the answer is  no, the answer is yes").as_deref(),
            Some("yes")
        );
        assert_eq!(found(r"(x)|(y)", 0, "a y").as_deref(), Some("y"));
        assert_eq!(found(r"[0-9]+", 2, "a 12 b 34"), None);
        assert_eq!(found(r"[0-9]+", -3, "a 12 b 34"), None);
    }

    #[test]
    fn filters_apply_in_order() {
        let filters = [
            Filter::Lowercase,
            Filter::Find { pattern: Regex::new("[a-z]+").unwrap(), select: 1, fallback: "none".to_owned() },
            Filter::Uppercase,
        ];
        assert_eq!(filtered(&filters, "One TWO"), "TWO");
        assert_eq!(filtered(&filters, "One"), "NONE");
        assert_eq!(filtered(&[Filter::Strip], "\n a b "), "a b");
    }
}
