//! One module a command.

mod bench;
mod calibrate;
mod chat;
mod compare;
mod config;
mod convert;
mod eval;
mod export;
mod generate;
mod gguf;
mod information;
mod inspect;
mod laws;
mod logits;
mod plan;
mod plugin;
mod report;
mod run;
mod task;
mod text;
mod tokenize;

use crate::cli::{Cli, Command, Computing, Page};
use crate::failure::{DONE, Failure};
use crate::session::Session;
use crate::{output, reference};
use clap::CommandFactory;
use kbit_host::{Isolation, Registry};
use kbit_models::ConvertOptions;
use kbit_pipeline::PipelineError;
use kbit_pipeline::open::OpenModel;
use std::path::Path;
use std::process::ExitCode;

/// Opens a model that computes as the options say.
fn open_model(path: &Path, registry: &Registry, computing: Computing) -> Result<OpenModel, PipelineError> {
    open_model_as(path, registry, computing, false)
}

/// As [`open_model`]; `streamed`: each block is read whenever it is used.
fn open_model_as(
    path: &Path,
    registry: &Registry,
    computing: Computing,
    streamed: bool,
) -> Result<OpenModel, PipelineError> {
    let open = if streamed { OpenModel::stream } else { OpenModel::open };
    let model = open(path, registry, Isolation::InProcess, &ConvertOptions::default())?;
    Ok(model.with_mode(computing.mode).with_cache(computing.cache_type))
}

/// Runs the command.
pub fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    if let Command::PluginWorker { .. } = cli.command {
        return Ok(kbit_host::worker_main_with(crate::plugins::STATICS));
    }
    let session = Session::start(cli.global)?;
    let status = match cli.command {
        Command::Run(arguments) => run::run(&session, &arguments)?,
        Command::Convert(arguments) => convert::convert(&session, &arguments)?,
        Command::Plan(arguments) => plan::plan(&session, &arguments)?,
        Command::Inspect(arguments) => inspect::inspect(&session, &arguments)?,
        Command::Diff(arguments) => inspect::diff(&session, &arguments)?,
        Command::Verify(arguments) => inspect::verify(&session, &arguments)?,
        Command::Calibrate(arguments) => calibrate::calibrate(&session, &arguments)?,
        Command::Eval(arguments) => eval::eval(&session, &arguments)?,
        Command::Logits(arguments) => logits::logits(&session, &arguments)?,
        Command::Tokenize(arguments) => tokenize::tokenize(&session, &arguments)?,
        Command::Generate(arguments) => generate::generate(&session, &arguments)?,
        Command::Chat(arguments) => chat::chat(&session, &arguments)?,
        Command::Bench(arguments) => bench::bench(&session, &arguments)?,
        Command::Fit(arguments) => laws::fit(&session, &arguments)?,
        Command::Compare(arguments) => compare::compare(&session, &arguments)?,
        Command::Recommend(arguments) => laws::recommend(&session, &arguments)?,
        Command::Report(arguments) => report::report(&session, &arguments)?,
        Command::Export(arguments) => export::export(&session, &arguments)?,
        Command::Gguf(arguments) => gguf::gguf(&session, &arguments)?,
        Command::Plugin(arguments) => plugin::plugin(&session, &arguments)?,
        Command::Config(arguments) => config::config(&session, &arguments)?,
        Command::Completions { shell } => {
            let mut bytes = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kbit", &mut bytes);
            output::text(&String::from_utf8_lossy(&bytes))?;
            DONE
        }
        Command::Reference { page } => {
            output::text(&match page {
                Page::Cli => reference::command_line(),
                Page::Config => kbit_pipeline::schema::reference(),
                Page::Schemes => reference::schemes(&session.registry(&[], None)?),
            })?;
            DONE
        }
        Command::PluginWorker { .. } => DONE,
    };
    Ok(ExitCode::from(status))
}
