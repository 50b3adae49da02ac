//! `kbit config`.

use crate::cli::Config as Arguments;
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_eval::tasks::Task;
use kbit_pipeline::config::Config;
use kbit_pipeline::recipe::recipes;
use std::path::Path;

/// Prints the JSON Schema, or checks a file.
pub fn config(session: &Session, arguments: &Arguments) -> Result<u8, Failure> {
    match arguments {
        Arguments::Schema => output::json(&kbit_pipeline::schema::json_schema())?,
        // The description of a table for `kbit fit`.
        Arguments::Check { file }
            if std::fs::read_to_string(file).is_ok_and(|text| kbit_laws::is_table(&text)) =>
        {
            let table = kbit_laws::Table::read(file).map_err(Failure::usage)?;
            if session.global.json {
                output::json(&serde_json::json!({ "valid": true, "table": table.file }))?;
            } else {
                output::text(&format!("{}: valid; a table in {}", file.display(), table.file.display()))?;
            }
        }
        Arguments::Check { file } if is_task(file) => {
            let task = Task::read(file)?;
            let metrics = task.metrics.join(" ");
            if session.global.json {
                output::json(
                    &serde_json::json!({ "valid": true, "task": task.name, "metrics": task.metrics }),
                )?;
            } else {
                output::text(&format!("{}: valid; task {}: {metrics}", file.display(), task.name))?;
            }
        }
        Arguments::Check { file } => {
            let config = Config::read(file).map_err(Failure::usage)?;
            let registry = session.registry(&config.plugins, None)?;
            let recipes = recipes(&config, &registry).map_err(Failure::usage)?;
            let targets = config.targets.iter().map(|target| target.label.as_str());
            let labels: Vec<_> = recipes.iter().map(|recipe| recipe.label.as_str()).chain(targets).collect();
            if session.global.json {
                output::json(
                    &serde_json::json!({ "valid": true, "models": config.models.len(), "schemes": labels }),
                )?;
            } else {
                output::text(&format!(
                    "{}: valid; {} models, {} schemes: {}",
                    file.display(),
                    config.models.len(),
                    labels.len(),
                    labels.join(" ")
                ))?;
            }
        }
    }
    Ok(DONE)
}

/// True of a file that is meant as a task; one that cannot be read is told of as a configuration.
fn is_task(file: &Path) -> bool {
    kbit_yaml::read_text(file, "the configuration").is_ok_and(|text| Task::is_meant(&text))
}
