//! `kbit report`.

use crate::cli::Report;
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;

/// Makes the report of a run anew.
pub fn report(session: &Session, arguments: &Report) -> Result<u8, Failure> {
    let paths = kbit_pipeline::run::write_report(&arguments.run, &arguments.format)?;
    if session.global.json {
        output::json(&paths)?;
    } else {
        let lines: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        output::text(&lines.join("\n"))?;
    }
    Ok(DONE)
}
