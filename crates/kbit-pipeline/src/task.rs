//! Tasks of a configuration: read, with all their questions, before anything is run.

use kbit_engine::{CacheTypes, Mode};
use kbit_eval::tasks::{Data, Questions, Task, TaskError};
use kbit_yaml::{Mistake, Node, Place};
use std::path::Path;

/// A task to measure on.
#[derive(Debug)]
pub struct TaskEvaluation {
    /// Name in tables.
    pub name: String,
    /// The task.
    pub task: Task,
    /// What it asks of the documents.
    pub questions: Questions,
    /// Modes to measure in.
    pub modes: Vec<Mode>,
    /// Types of the KV cache to measure with.
    pub caches: Vec<CacheTypes>,
    /// Where it stands.
    pub place: Place,
}

/// Keys of texts, and keys of tasks.
const OF_TEXTS: &[&str] = &["metrics", "baseline_text", "context", "stride", "chunks", "sensitivity"];
const OF_TASKS: &[&str] = &["data", "few_shot", "limit"];

/// Checks that `node` names a text or a task, with the keys of that; true where it is a task.
pub(crate) fn is_task(node: &Node, mistakes: &mut Vec<Mistake>) -> bool {
    let (text, task) = (node.get("text"), node.get("task"));
    match (text, task) {
        (None, None) => mistakes.push(Mistake::new(
            node.place,
            "an evaluation needs `text` or `task`",
            "add `text:` with a text file, or `task:` with a task file",
        )),
        (Some(_), Some(task)) => mistakes.push(Mistake::new(
            task.place,
            "`text` and `task` cannot stand together",
            "make two evaluations of them",
        )),
        _ => {}
    }
    let (foreign, kind) =
        if task.is_some() { (OF_TEXTS, "a task has no") } else { (OF_TASKS, "a text has no") };
    for key in foreign {
        if let Some(found) = node.get(key) {
            mistakes.push(Mistake::new(found.place, format!("{kind} `{key}`"), "remove it"));
        }
    }
    task.is_some()
}

/// Reads the task of `node` and makes its questions.
pub(crate) fn read(
    node: &Node,
    folder: &Path,
    modes: Vec<Mode>,
    caches: Vec<CacheTypes>,
    mistakes: &mut Vec<Mistake>,
) -> Option<TaskEvaluation> {
    let place = node.get("task").map_or(node.place, |task| task.place);
    let word = |key: &str| node.get(key).and_then(Node::as_str);
    let count =
        |key: &str| node.get(key).and_then(Node::as_int).and_then(|value| usize::try_from(value).ok());
    let made = || -> Result<(Task, Questions), TaskError> {
        let task = Task::read(&folder.join(word("task").unwrap_or_default()))?;
        let data = word("data").map(|path| folder.join(path)).or_else(|| task.data.clone());
        let data = Data::read(&data.ok_or_else(|| TaskError::NoData { task: task.name.clone() })?)?;
        let questions = task.questions(&data, count("limit"), count("few_shot"))?;
        Ok((task, questions))
    };
    match made() {
        Ok((task, questions)) => {
            let name = word("name").map_or_else(|| task.name.clone(), str::to_owned);
            Some(TaskEvaluation { name, task, questions, modes, caches, place })
        }
        Err(error) => {
            let help =
                "mend that file; relative paths start at the configuration's folder, in a task at the task's";
            mistakes.push(Mistake::new(place, error.to_string(), help));
            None
        }
    }
}
