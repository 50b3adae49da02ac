//! `kbit report`.

use crate::cli::Report;
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use std::path::PathBuf;

/// Makes the report of one or several runs anew.
pub fn report(session: &Session, arguments: &Report) -> Result<u8, Failure> {
    let out = arguments.out.clone().unwrap_or_else(|| folder(&arguments.runs));
    let paths = kbit_pipeline::report::write_report(&arguments.runs, &out, &arguments.format)?;
    if session.global.json {
        output::json(&paths)?;
    } else {
        output::text(&output::files(&paths))?;
    }
    Ok(DONE)
}

/// Where a report goes: into the run that it is on; of several, into a folder beside the first that is named after all.
fn folder(runs: &[PathBuf]) -> PathBuf {
    let Some(first) = runs.first() else { return PathBuf::new() };
    if runs.len() == 1 {
        return first.clone();
    }
    let name = |run: &PathBuf| {
        let run = run.canonicalize().unwrap_or_else(|_| run.clone());
        run.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    first.with_file_name(runs.iter().map(name).collect::<Vec<_>>().join("-and-"))
}
