//! `kbit run`.

use crate::cli::Run;
use crate::failure::{DONE, Failure, PARTLY};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_pipeline::config::Config;
use kbit_pipeline::importance::ImportanceUse;
use kbit_pipeline::plan::Fallback;
use kbit_pipeline::run::RunPlan;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Runs a configuration, or prints its plan.
pub fn run(session: &Session, arguments: &Run) -> Result<u8, Failure> {
    let config = Config::read(&arguments.config).map_err(Failure::usage)?;
    let registry = session.registry(&config.plugins, Some(config.timeout))?;
    let mut plan = RunPlan::new(&config, &registry, arguments.out.as_deref())?;
    if arguments.dry_run {
        return print_plan(session, &plan);
    }
    // What can be refused before anything is measured is.
    plan.check()?;
    plan.plan_targets(&session.progress(), &Arc::new(AtomicBool::new(false)))?;
    for line in plan.lines() {
        for fallback in Fallback::lines(line.fallbacks.iter()) {
            output::note(&format!("warning: {} {}: {fallback}", line.model, line.scheme));
        }
        if let Some(warning) = &line.requantized {
            output::note(&format!("warning: {} {}: {warning}", line.model, line.scheme));
        }
    }
    for line in plan.lines() {
        for note in line.importance.iter().flat_map(ImportanceUse::notes) {
            output::note(&format!("{} {}: {note}", line.model, line.scheme));
        }
    }
    let summary = plan.run(&session.progress(), &Arc::new(AtomicBool::new(false)))?;
    if session.global.json {
        output::json(&summary)?;
    } else {
        let mut text = format!(
            "{} measurements, {} files written, {} results taken over, {:.1} s, {}\n",
            summary.measurements,
            summary.files_written,
            summary.reused,
            summary.seconds,
            output::peak_memory(),
        );
        text.push_str(&output::files(&summary.report));
        output::text(&text)?;
    }
    for failure in &summary.failures {
        output::note(&format!("failed: {} {}: {}", failure.model, failure.scheme, failure.message));
    }
    Ok(if summary.failures.is_empty() { DONE } else { PARTLY })
}

fn print_plan(session: &Session, plan: &RunPlan<'_>) -> Result<u8, Failure> {
    let lines = plan.lines();
    let free = kbit_formats::disk_free(existing_parent(&plan.out)).ok();
    if session.global.json {
        output::json(&serde_json::json!({
            "out": plan.out,
            "files": lines,
            "targets": plan.targets(),
            "output_bytes": plan.output_bytes(),
            "memory_bytes": plan.memory_bytes(),
            "disk_free_bytes": free,
        }))?;
        return Ok(DONE);
    }
    let mut table = Table::new(&["model", "scheme", ">size", ">bpw", ">decoder bpw", ">fallbacks"]);
    for line in &lines {
        table.row(vec![
            line.model.clone(),
            line.scheme.clone(),
            output::bytes(line.bytes),
            format!("{:.3}", line.bits_per_weight),
            format!("{:.3}", line.decoder_bits_per_weight),
            line.fallbacks.len().to_string(),
        ]);
    }
    let mut text = table.render();
    for line in &lines {
        for fallback in Fallback::lines(line.fallbacks.iter()) {
            text.push_str(&format!("fallback: {} {}: {fallback}\n", line.model, line.scheme));
        }
        if let Some(warning) = &line.requantized {
            text.push_str(&format!("warning: {} {}: {warning}\n", line.model, line.scheme));
        }
        if let Some(obstacle) = &line.obstacle {
            text.push_str(&format!("cannot be written: {} {}: {obstacle}\n", line.model, line.scheme));
        }
    }
    for line in &lines {
        for note in line.importance.iter().flat_map(ImportanceUse::notes) {
            text.push_str(&format!("{} {}: {note}\n", line.model, line.scheme));
        }
    }
    for target in plan.targets() {
        text.push_str(&format!(
            "{} {}: planned when it is run, for {}, on {}\n",
            target.model,
            target.scheme,
            target.target,
            target.text.display()
        ));
    }
    text.push_str(&format!(
        "{} files, {} to write ({} free), about {} of memory for slabs, into {}\n",
        lines.len(),
        output::bytes(plan.output_bytes()),
        free.map_or_else(|| "unknown".to_owned(), output::bytes),
        output::bytes(plan.memory_bytes()),
        plan.out.display()
    ));
    output::text(&text)?;
    Ok(DONE)
}

/// The nearest folder above `path` that exists.
fn existing_parent(path: &std::path::Path) -> &std::path::Path {
    let found = path.ancestors().find(|folder| folder.is_dir());
    found.unwrap_or_else(|| std::path::Path::new("."))
}
