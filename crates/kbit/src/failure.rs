//! How a command fails: a message on stderr and an exit status.

use std::fmt::Display;
use std::process::ExitCode;

/// Exit status: everything was done.
pub const DONE: u8 = 0;
/// Exit status: the command failed.
pub const FAILED: u8 = 1;
/// Exit status: wrong usage or configuration.
pub const USAGE: u8 = 2;
/// Exit status: done, but some items failed (each was named).
pub const PARTLY: u8 = 3;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// Wrong usage or configuration.
    pub fn usage(message: impl Display) -> Self {
        Self { status: USAGE, message: message.to_string() }
    }

    /// Anything else.
    pub fn failed(message: impl Display) -> Self {
        Self { status: FAILED, message: message.to_string() }
    }

    /// Prints the message and gives the exit status.
    #[expect(clippy::print_stderr, reason = "messages for people go to stderr")]
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.message);
        ExitCode::from(self.status)
    }
}

impl From<kbit_pipeline::PipelineError> for Failure {
    fn from(error: kbit_pipeline::PipelineError) -> Self {
        match error {
            kbit_pipeline::PipelineError::Config(_)
            | kbit_pipeline::PipelineError::Mix(_)
            | kbit_pipeline::PipelineError::MixOption { .. }
            | kbit_pipeline::PipelineError::MixInRule { .. }
            | kbit_pipeline::PipelineError::PruneLayer { .. }
            | kbit_pipeline::PipelineError::PruneAll { .. }
            | kbit_pipeline::PipelineError::Plan { .. } => Self::usage(error),
            kbit_pipeline::PipelineError::Host(host) => host.into(),
            other => Self::failed(other),
        }
    }
}

impl From<kbit_host::HostError> for Failure {
    fn from(error: kbit_host::HostError) -> Self {
        if error.is_usage() { Self::usage(error) } else { Self::failed(error) }
    }
}

impl From<kbit_engine::EngineError> for Failure {
    fn from(error: kbit_engine::EngineError) -> Self {
        match error {
            kbit_engine::EngineError::Sampling { .. } => Self::usage(error),
            other => Self::failed(other),
        }
    }
}

impl From<kbit_eval::tasks::TaskError> for Failure {
    fn from(error: kbit_eval::tasks::TaskError) -> Self {
        match error {
            kbit_eval::tasks::TaskError::Definition(_) => Self::usage(error),
            other => Self::failed(other),
        }
    }
}

macro_rules! failed {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::failed(error)
            }
        })*
    };
}

failed!(
    kbit_formats::FormatError,
    kbit_calibrate::CalibrateError,
    kbit_models::ModelError,
    kbit_tokenizers::TokenizerError,
    kbit_eval::EvalError,
    kbit_results::ResultsError,
    kbit_laws::TableError,
    kbit_report::ReportError,
    std::io::Error,
    serde_json::Error
);
