//! `kbit eval --metric task`.

use crate::cli::Eval;
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_eval::tasks::{self, Answer, Data, Outcome, Task, TaskError};
use std::path::Path;
use std::time::Instant;

/// Asks a model the questions of the task file `path`.
pub fn eval(session: &Session, arguments: &Eval, path: &Path) -> Result<u8, Failure> {
    let task = Task::read(path)?;
    let data = arguments.data.as_ref().or(task.data.as_ref());
    let data = data.ok_or_else(|| TaskError::NoData { task: task.name.clone() })?;
    let data = Data::read(data)?;
    let whole = |count: Option<u32>| count.and_then(|count| usize::try_from(count).ok());
    let questions = task.questions(&data, whole(arguments.limit), whole(arguments.few_shot))?;
    let registry = session.registry(&[], None)?;
    let model = super::open_model(&arguments.model, &registry, arguments.computing)?;
    let documents = whole(arguments.limit).map_or(data.len(), |limit| limit.min(data.len()));
    let bar = session.progress().items("documents", documents as u64);
    let tick = |done: usize, _total: usize| {
        bar.set(done as u64);
    };
    let started = Instant::now();
    let outcome = tasks::evaluate(&task, &questions, &model.model, model.tokenizer()?, &tick)?;
    drop(bar);
    let seconds = started.elapsed().as_secs_f64();
    if let Some(out) = &arguments.items {
        kbit_formats::atomic::write_atomically(out, lines(&outcome.answers)?.as_bytes())?;
    }
    if session.global.json {
        let mut document = document(&task, &data, &outcome);
        if let Some(fields) = document.as_object_mut() {
            fields.insert("documents".into(), documents.into());
            fields.insert("mode".into(), arguments.computing.mode.to_string().into());
            fields.insert("cache_type".into(), arguments.computing.cache_type.to_string().into());
            fields.insert("seconds".into(), seconds.into());
            fields.insert("peak_rss_bytes".into(), kbit_formats::peak_rss_bytes().into());
        }
        output::json(&document)?;
    } else {
        let mut table = Table::new(&["metric", ">value", ">standard error", ">documents"]);
        for figure in &outcome.figures {
            table.row(vec![
                figure.metric.clone(),
                format!("{:.4}", figure.value),
                figure.stderr.map_or_else(|| "-".to_owned(), |stderr| format!("{stderr:.4}")),
                figure.count.to_string(),
            ]);
        }
        let signatures = outcome.figures.iter().filter_map(|figure| {
            figure.signature.as_ref().map(|signature| format!("{}: {signature}\n", figure.metric))
        });
        output::text(&format!(
            "{}\n{}{}{} documents, {} tokens, {seconds:.2} s, {}\n",
            task.name,
            table.render(),
            signatures.collect::<String>(),
            documents,
            outcome.tokens,
            output::peak_memory()
        ))?;
    }
    Ok(DONE)
}

fn lines(answers: &[Answer]) -> Result<String, Failure> {
    let mut text = String::new();
    for answer in answers {
        text += &serde_json::to_string(answer).map_err(Failure::failed)?;
        text.push('\n');
    }
    Ok(text)
}

/// The first metric is the value of the document; `metrics` has them all.
fn document(task: &Task, data: &Data, outcome: &Outcome) -> serde_json::Value {
    let figures = outcome.figures.iter().map(|figure| {
        serde_json::json!({
            "metric": figure.metric,
            "value": figure.value,
            "stderr": figure.stderr,
            "count": figure.count,
            "signature": figure.signature,
        })
    });
    let figures: Vec<_> = figures.collect();
    let first = |key: &str| figures.first().map_or(serde_json::Value::Null, |figure| figure[key].clone());
    serde_json::json!({
        "metric": "task",
        "task": task.name,
        "value": first("value"),
        "stderr": first("stderr"),
        "metrics": figures,
        "tokens": outcome.tokens,
        "seed": outcome.seed,
        "data_sha256": data.sha256,
    })
}
