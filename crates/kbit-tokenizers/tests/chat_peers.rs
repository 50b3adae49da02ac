//! Agreement with Hugging Face transformers on the chat templates of real models.
//!
//! Runs where `KBIT_LLAMA_CPP` names llama.cpp's sources, whose `models/templates` hold such templates, and `KBIT_PYTHON` (or
//! `python3`) has transformers.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_tokenizers::{ChatOptions, ChatTemplate, Message, TokenizerError};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// Conversations, by what is in them.
fn conversations() -> Vec<Vec<Message>> {
    let (system, user, assistant) = (
        |text: &str| Message::new("system", text),
        |text: &str| Message::new("user", text),
        |text: &str| Message::new("assistant", text),
    );
    vec![
        vec![user("Hello")],
        vec![system("Be brief."), user(" What is 1 < 2 & \"x\"?\n")],
        vec![user("One"), assistant("1"), user("Two")],
        vec![
            system("S"),
            user("é € 🙂"),
            assistant("<think>\nhm\n</think>\n\nYes"),
            user("Then?"),
            assistant("No"),
            user(""),
        ],
    ]
}

/// Renders with transformers.
fn peer(requests: &Json) -> Option<Vec<Json>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/render_chat.py");
    let python = std::env::var_os("KBIT_PYTHON").unwrap_or_else(|| "python3".into());
    let mut child =
        Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    child.stdin.take()?.write_all(requests.to_string().as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
}

#[test]
fn renders_real_templates_as_transformers_does() {
    let Some(sources) = std::env::var_os("KBIT_LLAMA_CPP") else {
        eprintln!("skipped: KBIT_LLAMA_CPP does not name llama.cpp's sources");
        return;
    };
    let mut templates: Vec<(String, String)> =
        std::fs::read_dir(Path::new(&sources).join("models/templates"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
            .map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap()))
            .collect();
    templates.sort();
    assert!(templates.len() > 10, "only {} templates", templates.len());
    let variables = json!({ "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>" });
    let requests: Vec<Json> = templates
        .iter()
        .flat_map(|(_, source)| {
            conversations()
                .into_iter()
                .map(|messages| json!({ "template": source, "messages": messages, "variables": variables }))
                .collect::<Vec<_>>()
        })
        .collect();
    let wanted =
        peer(&requests.into()).expect("transformers answers; set KBIT_PYTHON to a Python that has it");
    let options = ChatOptions {
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_704_067_200),
        variables: BTreeMap::from([("pad_token".to_owned(), json!("<pad>"))]),
        ..ChatOptions::default()
    };
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let (mut wrong, mut agreed, mut refused, mut lenient) = (Vec::new(), 0, 0, 0);
    for ((name, source), wanted) in templates.iter().zip(wanted.chunks(conversations().len())) {
        for (messages, wanted) in conversations().iter().zip(wanted) {
            let found =
                ChatTemplate::new(source.as_str()).and_then(|t| t.render(messages, &special, &options));
            match (found, wanted) {
                (Ok(found), Json::String(wanted)) if found == *wanted => agreed += 1,
                (Err(TokenizerError::TemplateRefuses { message }), wanted)
                    if wanted["refused"].as_str() == Some(&message) =>
                {
                    refused += 1;
                }
                // Where Python stumbles over tools that were not given, there are none.
                (_, Json::Null) => lenient += 1,
                (found, wanted) => {
                    wrong.push(format!("{name}: {messages:?}\n  found {found:?}\n wanted {wanted:?}"));
                }
            }
        }
    }
    eprintln!("{agreed} texts are equal, {refused} refused by both, {lenient} failures of transformers");
    assert!(agreed > 10 * lenient && wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
