//! `kbit chat`.

use super::text::{self, Stream};
use crate::cli::Chat;
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_engine::{Finish, Generator, Sampler};
use kbit_tokenizers::{ChatOptions, ChatTemplate, KNOWN_TEMPLATES, Message, Tokenizer};
use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

/// Talks with a model, a line a turn.
pub fn chat(session: &Session, arguments: &Chat) -> Result<u8, Failure> {
    let options = &arguments.continuation;
    let sampler = text::sampler(options)?;
    let registry = session.registry(&[], None)?;
    let model = super::open_model(&arguments.model, &registry, arguments.continuation.computing)?;
    let tokenizer = model.tokenizer()?;
    let (template, mut stops) = template(arguments, tokenizer)?;
    stops.extend(options.stop.iter().cloned());
    let mut conversation = Conversation {
        tokenizer,
        template,
        options: ChatOptions {
            variables: arguments.template_var.iter().cloned().collect(),
            ..ChatOptions::default()
        },
        stops,
        sampler,
        seed: options.seed,
        most: arguments.n.map(usize::try_from).transpose().map_err(Failure::usage)?,
        generator: Generator::new(model.model.session(text::context(options, &model.model)?)),
        messages: Vec::new(),
        json: session.global.json,
    };
    conversation.begin(arguments.system.as_deref());
    let is_terminal = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock();
    for number in 1.. {
        if is_terminal {
            let mut err = std::io::stderr().lock();
            err.write_all(b"> ").and_then(|()| err.flush())?;
        }
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let outcome = match String::from_utf8(line) {
            Ok(line) => conversation.line(line.trim()),
            Err(_) => Err(Failure::failed(format!(
                "line {number} of the input is not UTF-8; convert it, and send it again"
            ))),
        };
        match outcome {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            // A person can say it otherwise.
            Err(failure) if is_terminal => {
                let _ = failure.report();
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(DONE)
}

/// The template that was asked for, or the model's own; and what ends a reply in its form.
fn template(arguments: &Chat, tokenizer: &Tokenizer) -> Result<(ChatTemplate, Vec<String>), Failure> {
    if let Some(path) = &arguments.template_file {
        let source = kbit_pipeline::measure::read_text(path)?;
        return Ok((ChatTemplate::new(source)?, Vec::new()));
    }
    let name = arguments.template.as_deref();
    if let Some(source) = tokenizer.chat_template(name) {
        return Ok((ChatTemplate::new(source)?, Vec::new()));
    }
    if let Some(known) = KNOWN_TEMPLATES.iter().find(|known| Some(known.name) == name) {
        let stops = known.stops.iter().map(|stop| (*stop).to_owned()).collect();
        return Ok((ChatTemplate::new(known.source)?, stops));
    }
    let known: Vec<_> = KNOWN_TEMPLATES.iter().map(|known| known.name).collect();
    let what = match name {
        Some(name) => format!("there is no chat template {name:?}"),
        None => format!("{} has no chat template", arguments.model.display()),
    };
    Err(Failure::usage(format!(
        "{what}; choose one with --template ({}), or give one with --template-file",
        known.join(", ")
    )))
}

/// A conversation, and all that it takes to go on with it.
struct Conversation<'m> {
    tokenizer: &'m Tokenizer,
    template: ChatTemplate,
    options: ChatOptions,
    stops: Vec<String>,
    sampler: Sampler,
    seed: u64,
    /// Tokens of a reply.
    most: Option<usize>,
    generator: Generator<'m>,
    messages: Vec<Message>,
    json: bool,
}

impl Conversation<'_> {
    /// Forgets all, and begins with these instructions.
    fn begin(&mut self, system: Option<&str>) {
        self.messages.clear();
        self.messages.extend(system.map(|text| Message::new("system", text)));
    }

    /// Obeys a command, or answers a message. Breaks where that was the last one.
    fn line(&mut self, line: &str) -> Result<ControlFlow<()>, Failure> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "" => Ok(ControlFlow::Continue(())),
            "/quit" => Ok(ControlFlow::Break(())),
            "/reset" => {
                let system = self.system().map(|message| message.content.clone());
                self.begin(system.as_deref());
                Ok(ControlFlow::Continue(()))
            }
            "/system" => {
                self.begin(Some(rest.trim()).filter(|text| !text.is_empty()));
                Ok(ControlFlow::Continue(()))
            }
            _ => {
                let before = self.messages.clone();
                let outcome = self.answer(line);
                if outcome.is_err() {
                    self.messages = before;
                }
                outcome
            }
        }
    }

    fn system(&self) -> Option<&Message> {
        self.messages.first().filter(|message| message.role == "system")
    }

    /// Answers a message.
    fn answer(&mut self, text: &str) -> Result<ControlFlow<()>, Failure> {
        self.messages.push(Message::new("user", text));
        let (prompt, dropped) = self.prompt()?;
        if dropped > 0 {
            output::note(&format!(
                "note: the context of {} tokens is full; the {dropped} oldest messages are forgotten",
                self.generator.capacity()
            ));
        }
        let tokenizer = self.tokenizer;
        let mut stream = tokenizer.stream(self.stops.clone()).at_the_beginning();
        let mut out = Stream::new(!self.json);
        let mut written = Ok(ControlFlow::Continue(()));
        let generated = self.generator.generate(
            &prompt,
            &mut self.sampler,
            self.most,
            &|token| tokenizer.ends_generation(token),
            &mut |token| {
                written = out.write(&stream.push(token));
                match written {
                    Ok(ControlFlow::Continue(())) if stream.stopped().is_none() => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            },
        )?;
        let mut goes_on = written?;
        let stop = stream.stopped().map(str::to_owned);
        if goes_on.is_continue() {
            goes_on = out.write(&stream.finish())?;
        }
        self.messages.push(Message::new("assistant", out.text().trim()));
        if self.json {
            let mut document = text::json(&generated, out.text(), stop.as_deref(), self.seed);
            if let Some(fields) = document.as_object_mut() {
                fields.insert("cache_bytes".to_owned(), self.generator.cache_bytes().into());
                fields.insert("dropped_messages".to_owned(), dropped.into());
            }
            output::text(&serde_json::to_string(&document)?)?;
            return Ok(goes_on);
        }
        if goes_on.is_continue() {
            goes_on = out.write("\n")?;
        }
        if generated.finish == Finish::Context {
            output::note(&format!(
                "note: the reply is cut off, because the context of {} tokens is full",
                self.generator.capacity()
            ));
        }
        Ok(goes_on)
    }

    /// Tokens of the conversation with the beginning of the reply, and how many of its oldest messages had to go, so that a
    /// reply has room: half the context at most, a quarter where its length is not given.
    fn prompt(&mut self) -> Result<(Vec<u32>, usize), Failure> {
        let capacity = self.generator.capacity();
        let room = self.most.unwrap_or(capacity / 4).min(capacity / 2).max(1);
        let first = usize::from(self.system().is_some());
        let mut dropped = 0;
        loop {
            let prompt = self.tokenizer.encode_chat(&self.template, &self.messages, &self.options)?;
            if prompt.len() + room <= capacity {
                return Ok((prompt, dropped));
            }
            // Turns go whole, so that the user's message comes first.
            let next = self.messages.iter().skip(first + 1).position(|message| message.role == "user");
            let Some(turn) = next.map(|index| index + 1) else {
                return Err(Failure::failed(format!(
                    "the message has {} tokens with all that belongs to it, and a context of {capacity} leaves {}; write a shorter one, or use a longer context",
                    prompt.len(),
                    capacity - room
                )));
            };
            self.messages.drain(first..first + turn);
            dropped += turn;
        }
    }
}
