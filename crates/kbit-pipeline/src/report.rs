//! Reports on runs: what their folders hold, and where the files of a report go.

use crate::error::PipelineError;
use crate::run::file_name;
use kbit_report::{Report, RunData};
use kbit_results::Record;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Records of a file that a run need not have.
fn optional<T: Record>(path: &Path) -> Result<Vec<T>, PipelineError> {
    if path.exists() { Ok(kbit_results::read(path)?) } else { Ok(Vec::new()) }
}

/// What the run in `out` recorded.
fn read(out: &Path, name: String) -> Result<RunData, PipelineError> {
    let provenance_path = out.join("provenance.json");
    let provenance = match std::fs::read(&provenance_path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| PipelineError::io(&provenance_path, "reading")(error.into()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => serde_json::json!({}),
        Err(error) => return Err(PipelineError::io(&provenance_path, "reading")(error)),
    };
    Ok(RunData {
        name,
        measurements: kbit_results::read(&out.join("results.jsonl"))?,
        items: optional(&out.join("items.jsonl"))?,
        samples: optional(&out.join("samples.jsonl"))?,
        costs: optional(&out.join("costs.jsonl"))?,
        provenance,
    })
}

/// The names of the folders; whole paths where two have the same.
fn names(runs: &[PathBuf]) -> Vec<String> {
    let last = |path: &PathBuf| {
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        path.file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    };
    let names: Vec<String> = runs.iter().map(last).collect();
    let unlike = names.iter().collect::<BTreeSet<_>>().len() == names.len();
    if unlike { names } else { runs.iter().map(|path| path.display().to_string()).collect() }
}

/// Makes the report on `runs`, folders of runs, anew, and writes its files to `out`; model cards go beside the packed files.
///
/// # Errors
/// When the runs cannot be read or contradict each other, or a file cannot be written.
pub fn write_report(runs: &[PathBuf], out: &Path, formats: &[String]) -> Result<Vec<PathBuf>, PipelineError> {
    let data = runs.iter().zip(names(runs)).map(|(run, name)| read(run, name));
    let data: Vec<RunData> = data.collect::<Result<_, _>>()?;
    let contradictions = kbit_report::contradictions(&data);
    if let Some(first) = contradictions.first() {
        let place = |name: &String| {
            let run = data.iter().position(|run| run.name == *name).and_then(|index| runs.get(index));
            run.map_or_else(|| name.clone(), |run| run.join("results.jsonl").display().to_string())
        };
        return Err(PipelineError::Contradiction {
            count: contradictions.len(),
            first: format!(
                "{} is {} in {} and {} in {}",
                first.what,
                first.values[0],
                place(&first.runs[0]),
                first.values[1],
                place(&first.runs[1])
            ),
        });
    }
    let first = data.first().map_or(&serde_json::Value::Null, |run| &run.provenance);
    let number =
        |key: &str, default: u64| first.get(key).and_then(serde_json::Value::as_u64).unwrap_or(default);
    let options = kbit_laws::FitOptions {
        bootstrap: usize::try_from(number("bootstrap", 500)).unwrap_or(500),
        seed: number("seed", 1),
        ..kbit_laws::FitOptions::default()
    };
    let merged = kbit_results::merge(data.iter().map(|run| run.measurements.clone()));
    let fits = kbit_laws::fit_all(&merged, &options);
    // Findings that all lack what they take are no news.
    let findings = kbit_laws::findings(&merged, options.seed);
    let told = findings.iter().any(|finding| finding.verdict != kbit_laws::Verdict::NotMeasured);
    let report = Report::new(&data, &fits, if told { &findings } else { &[] });
    let mut paths = Vec::new();
    let mut put = |path: PathBuf, text: &str| -> Result<(), PipelineError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(PipelineError::io(folder, "making the folder"))?;
        }
        kbit_formats::atomic::write_atomically(&path, text.as_bytes())?;
        paths.push(path);
        Ok(())
    };
    for format in formats {
        match format.as_str() {
            "html" => put(out.join("report.html"), &report.html()?)?,
            "md" => put(out.join("report.md"), &report.markdown()?)?,
            "json" => put(out.join("report.json"), &report.json()?)?,
            "csv" => {
                put(out.join("report.csv"), &report.csv()?)?;
                for (name, text) in report.table_files() {
                    put(out.join("report/tables").join(name), &text)?;
                }
            }
            "svg" => {
                for (name, text) in report.plots() {
                    put(out.join("report/plots").join(name), &text)?;
                }
            }
            _ => {
                for run in runs {
                    for card in report.cards(&|model, scheme| packed_file(run, model, scheme)) {
                        put(
                            run.join("files")
                                .join(&card.model)
                                .join(format!("{}.md", file_name(&card.scheme))),
                            &card.text,
                        )?;
                    }
                }
            }
        }
    }
    Ok(paths)
}

/// Name of the packed file of `model` under `scheme`, or of its first shard, where the run still has it.
fn packed_file(run: &Path, model: &str, scheme: &str) -> Option<String> {
    let stem = file_name(scheme);
    let whole = format!("{stem}.gguf");
    let folder = run.join("files").join(model);
    if folder.join(&whole).exists() {
        return Some(whole);
    }
    let shard = |name: &String| name.starts_with(&format!("{stem}-00001-of-")) && name.ends_with(".gguf");
    let names =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(shard).min()
}
