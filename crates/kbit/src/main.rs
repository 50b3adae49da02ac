//! The `kbit` command: reads the command line and wires the rooms together. Nothing is computed here.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod failure;
mod output;
mod plugins;
mod reference;
mod session;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    output::start_logging();
    match commands::dispatch(cli) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
