//! Encodes a text with the tokenizer of a GGUF file, checks that it comes back, and says how fast that was.
//!
//! `cargo run --release --example encode -- model.gguf text.txt [ids] [special]`; with `ids`, token ids go to stdout, one a
//! line; with `special`, the texts of control tokens are taken for these.
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "this is what the example is for")]

use kbit_formats::gguf::Gguf;
use kbit_tokenizers::Tokenizer;
use std::error::Error;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, rest @ ..] = arguments.as_slice() else {
        return Err("give a GGUF file and a text file".into());
    };
    let asked = |word: &str| rest.iter().any(|argument| argument == word);
    let begin = Instant::now();
    let tokenizer = Tokenizer::from_metadata(Gguf::open(model.as_ref())?.metadata())?;
    let loaded = begin.elapsed();
    let text = std::fs::read_to_string(text)?;
    let begin = Instant::now();
    let tokens = tokenizer.encode(&text, false, asked("special"));
    let encoded = begin.elapsed();
    let begin = Instant::now();
    let back = tokenizer.decode(&tokens);
    let decoded = begin.elapsed();
    eprintln!(
        "{} bytes, {} tokens; loaded in {loaded:.2?}, encoded in {encoded:.2?} ({:.1} MB/s), decoded in {decoded:.2?}; text comes back: {}",
        text.len(),
        tokens.len(),
        text.len() as f64 / 1e6 / encoded.as_secs_f64(),
        back == text,
    );
    if asked("ids") {
        tokens.iter().for_each(|token| println!("{token}"));
    }
    Ok(())
}
