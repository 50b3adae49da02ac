//! `kbit plugin`.

use crate::cli::{LangArg, Plugin};
use crate::failure::{DONE, FAILED, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_host::check::{CheckOptions, CheckReport, Outcome};
use kbit_host::scaffold::{Lang, new_project};
use std::path::{Path, PathBuf};

/// Lists, shows, checks, writes and trusts plugins.
pub fn plugin(session: &Session, arguments: &Plugin) -> Result<u8, Failure> {
    match arguments {
        Plugin::List => list(session),
        Plugin::Show { scheme } => show(session, scheme),
        Plugin::Check { file, case } => check(session, file, case.clone()),
        Plugin::New { name, lang, out } => new(session, name, *lang, out.as_ref()),
        Plugin::Add { file } => add(session, file),
    }
}

fn list(session: &Session) -> Result<u8, Failure> {
    let registry = session.registry(&[], None)?;
    if session.global.json {
        let schemes: Vec<_> = registry.schemes().map(|scheme| scheme.to_json()).collect();
        output::json(&serde_json::json!({ "schemes": schemes, "failures": failures(&registry) }))?;
        return Ok(DONE);
    }
    let mut table = Table::new(&["scheme", "id", "title", "plugin", "file"]);
    for scheme in registry.schemes() {
        let plugin = scheme.plugin();
        table.row(vec![
            scheme.short_name().to_owned(),
            scheme.id().to_owned(),
            scheme.title().to_owned(),
            format!("{} {}", plugin.id(), plugin.version()),
            plugin.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        ]);
    }
    output::text(&table.render())?;
    Ok(DONE)
}

fn failures(registry: &kbit_host::Registry) -> Vec<String> {
    registry.failures().iter().map(ToString::to_string).collect()
}

fn show(session: &Session, name: &str) -> Result<u8, Failure> {
    let registry = session.registry(&[], None)?;
    let scheme = registry.scheme(name)?;
    if session.global.json {
        output::json(&scheme.to_json())?;
        return Ok(DONE);
    }
    let plugin = scheme.plugin();
    let mut text = format!("{}  {}\n\n{}\n", scheme.id(), scheme.title(), scheme.doc());
    if !scheme.citation().is_empty() {
        text.push_str(&format!("\nSource: {}\n", scheme.citation()));
    }
    if let Some(ty) = scheme.ggml_type() {
        text.push_str(&format!("\nStored as ggml type {ty}.\n"));
    }
    text.push('\n');
    if scheme.params().is_empty() {
        text.push_str("No parameters.\n");
    } else {
        let mut table = Table::new(&["parameter", "values", "default", "meaning"]);
        for param in scheme.params() {
            table.row(vec![param.key.clone(), param.values(), param.default_text(), param.doc.clone()]);
        }
        text.push_str(&table.render());
    }
    text.push_str(&format!(
        "\nPlugin {} {} by {} ({})\n{}\nsha256 {}\n",
        plugin.id(),
        plugin.version(),
        plugin.vendor(),
        plugin.license(),
        plugin.path().display(),
        plugin.sha256()
    ));
    output::text(&text)?;
    Ok(DONE)
}

fn check(session: &Session, file: &Path, case: Option<String>) -> Result<u8, Failure> {
    let options = CheckOptions { host: session.host_options(&[], None)?, case, ..CheckOptions::default() };
    let report: CheckReport = kbit_host::check::check(file, &options)?;
    if session.global.json {
        output::json(&report)?;
    } else {
        let mut table = Table::new(&["", "scheme", "case", "detail"]);
        for case in &report.cases {
            let mark = match case.outcome {
                Outcome::Pass => "ok",
                Outcome::Fail => "FAIL",
                Outcome::Skip => "skip",
            };
            table.row(vec![mark.to_owned(), case.scheme.clone(), case.name.clone(), case.message.clone()]);
        }
        let (passed, failed, skipped) = report.counts();
        output::text(&format!("{}{passed} passed, {failed} failed, {skipped} skipped\n", table.render()))?;
    }
    Ok(if report.passed() { DONE } else { FAILED })
}

fn new(session: &Session, name: &str, lang: LangArg, out: Option<&PathBuf>) -> Result<u8, Failure> {
    let lang = match lang {
        LangArg::Rust => Lang::Rust,
        LangArg::C => Lang::C,
        LangArg::Cpp => Lang::Cpp,
    };
    let folder = out.cloned().unwrap_or_else(|| PathBuf::from(name));
    let project = new_project(&folder, name, lang)?;
    if session.global.json {
        output::json(&project)?;
    } else {
        let commands: Vec<String> = project.commands.iter().map(|command| format!("  {command}")).collect();
        output::text(&format!("wrote {}\nnext:\n{}", folder.display(), commands.join("\n")))?;
    }
    Ok(DONE)
}

fn add(session: &Session, file: &Path) -> Result<u8, Failure> {
    let options = session.host_options(&[], None)?;
    let added = kbit_host::lock::add(file, &options)?;
    if session.global.json {
        output::json(&added)?;
    } else {
        output::text(&format!(
            "{}\n  plugin  {} {} by {}\n  schemes {}\n  sha256  {}\nadded to {}",
            added.path.display(),
            added.id,
            added.version,
            added.vendor,
            added.schemes.join(", "),
            added.sha256,
            added.lock.display()
        ))?;
    }
    Ok(DONE)
}
