//! From documents to what a model is asked.
//!
//! Prompts are put together as lm-evaluation-harness does without a chat template: description, examples, question.

use super::data::{Data, Document};
use super::definition::{Sampler, TaskKind};
use super::random::PythonRandom;
use super::template::{Fields, Template, TemplateProblem};
use super::{Task, TaskError};
use kbit_formats::hash::Sha256;
use kbit_tokenizers::jinja;
use minijinja::Value;
use minijinja::value::ValueKind;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// What a document asks of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Question {
    Choice {
        /// One for all choices, or one for each.
        contexts: Vec<String>,
        /// One for each choice, or one for all; with the delimiter.
        continuations: Vec<String>,
        choices: Vec<String>,
        /// Places of the right ones.
        gold: Vec<usize>,
        delimiter: String,
    },
    Cloze {
        context: String,
        continuation: String,
    },
    Generation {
        prompt: String,
        targets: Vec<String>,
    },
}

/// A question with the line of its document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) line: usize,
    pub(crate) question: Question,
}

/// The questions of a task: everything that does not depend on the model.
#[derive(Clone, Debug)]
pub struct Questions {
    /// Name of the task.
    pub task: String,
    /// SHA-256 of the task, its data and its examples, with their numbers: equal digests ask the same.
    pub sha256: String,
    /// Data file.
    pub(crate) path: PathBuf,
    pub(crate) asked: Vec<Asked>,
}

impl Questions {
    /// Number of documents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// True where there are none, which [`Task::questions`] does not give.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }
}

/// A right answer as templates give it.
enum Target {
    Place(i64),
    Text(String),
}

impl Task {
    /// The questions that the first `limit` documents of `data` ask (`None`: all), each after `examples` few-shot examples (`None`:
    /// as many as the task says).
    ///
    /// # Errors
    /// The first document that a template cannot be made of, whose right answer is none, or for which there are too few examples.
    pub fn questions(
        &self,
        data: &Data,
        limit: Option<usize>,
        examples: Option<usize>,
    ) -> Result<Questions, TaskError> {
        let count = examples.unwrap_or(self.fewshot.count);
        let pool = match &self.fewshot.file {
            Some(file) if count > 0 => Some(Data::read(file)?),
            _ => None,
        };
        let maker = Maker::new(self, data);
        let mut sampling = Sampling::new(self, data, pool.as_ref(), count);
        let shots_of = pool.as_ref().map_or_else(|| maker.clone(), |pool| Maker::new(self, pool));
        let mut asked = Vec::new();
        let mut rendered = BTreeMap::new();
        for document in data.documents.iter().take(limit.unwrap_or(usize::MAX)) {
            let mut before = String::new();
            for shot in sampling.next(document)? {
                let text = match rendered.get(&shot.line) {
                    Some(text) => text,
                    None => rendered.entry(shot.line).or_insert(shots_of.example(shot)?),
                };
                before += text;
            }
            let fields = maker.fields(document)?;
            let description = maker.text(document, &fields, &self.description)?;
            let question = maker.question(document, &fields, &format!("{description}{before}"))?;
            asked.push(Asked { line: document.line, question });
        }
        let mut hash = Sha256::new();
        let pool = pool.map_or_else(String::new, |pool| pool.sha256);
        let asked_for = format!("{}\n{}\n{pool}\n{count}\n{}\n", self.source, data.sha256, asked.len());
        hash.update(asked_for.as_bytes());
        Ok(Questions { task: self.name.clone(), sha256: hash.hex(), path: data.path.clone(), asked })
    }
}

/// Makes questions of the documents of one file.
#[derive(Clone)]
struct Maker<'t> {
    task: &'t Task,
    path: &'t Path,
    /// Fields that documents of this file have: those of the first one, and the task's.
    names: HashSet<String>,
}

impl<'t> Maker<'t> {
    fn new(task: &'t Task, data: &'t Data) -> Self {
        let first = data.documents.iter().take(1).flat_map(|document| document.fields.keys());
        let made = task.fields.iter().map(|(name, _)| name);
        Self { task, path: &data.path, names: first.chain(made).cloned().collect() }
    }

    fn problem(&self, document: &Document, template: &Template, problem: TemplateProblem) -> TaskError {
        let message = match problem {
            TemplateProblem::Missing(names) => {
                let known: Vec<&str> = document.fields.keys().map(String::as_str).collect();
                format!(
                    "it has no field {}: its fields are {}; mend the document, or the template",
                    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
                    known.join(", ")
                )
            }
            TemplateProblem::Failed(words) => format!("{words}; mend the document, or the template"),
        };
        TaskError::Template {
            path: self.path.to_owned(),
            line: document.line,
            task: self.task.name.clone(),
            key: template.key.clone(),
            message,
        }
    }

    /// The document's own fields and those that the task makes.
    fn fields(&self, document: &Document) -> Result<Fields, TaskError> {
        let mut fields: Fields =
            document.fields.iter().map(|(name, value)| (name.clone(), jinja::of_json(value))).collect();
        for (name, template) in &self.task.fields {
            // The name of a field would stand for itself here.
            let names = &HashSet::new();
            let value = self.task.templates.value(template, &fields, names);
            let value = value.map_err(|problem| self.problem(document, template, problem))?;
            fields.insert(name.clone(), value);
        }
        Ok(fields)
    }

    fn value(&self, document: &Document, fields: &Fields, template: &Template) -> Result<Value, TaskError> {
        let value = self.task.templates.value(template, fields, &self.names);
        value.map_err(|problem| self.problem(document, template, problem))
    }

    fn text(&self, document: &Document, fields: &Fields, template: &Template) -> Result<String, TaskError> {
        self.value(document, fields, template).map(|value| jinja::to_text(&value))
    }

    fn choices(&self, document: &Document, fields: &Fields) -> Result<Vec<String>, TaskError> {
        let task = self.task;
        if let [template] = task.choices.as_slice() {
            let mut value = self.value(document, fields, template)?;
            if let Some(text) = value.as_str()
                && let Some(list) = task.templates.literal(text)
            {
                value = list;
            }
            if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
                let items = value.try_iter().into_iter().flatten();
                return Ok(items.map(|item| jinja::to_text(&item)).collect());
            }
            let message = format!("it gives {}, not a list", value.kind());
            return Err(self.problem(document, template, TemplateProblem::Failed(message)));
        }
        task.choices.iter().map(|template| self.text(document, fields, template)).collect()
    }

    /// Right answers, before they are looked up among choices.
    fn targets(
        &self,
        document: &Document,
        fields: &Fields,
        templates: &[Template],
    ) -> Result<Vec<Target>, TaskError> {
        let mut targets = Vec::new();
        for template in templates {
            let mut value = self.value(document, fields, template)?;
            if self.task.kind.chooses()
                && let Some(text) = value.as_str()
                && let Some(list) = self.task.templates.literal(text)
            {
                value = list;
            }
            let values = match value.kind() {
                ValueKind::Seq | ValueKind::Iterable => value.try_iter().into_iter().flatten().collect(),
                _ => vec![value],
            };
            for value in values {
                targets.push(match value.kind() {
                    // True and false are 1 and 0 in Python.
                    ValueKind::Bool => Target::Place(i64::from(value.is_true())),
                    ValueKind::Number if value.is_integer() => match i64::try_from(value.clone()) {
                        Ok(place) => Target::Place(place),
                        Err(_) => Target::Text(jinja::to_text(&value)),
                    },
                    _ => Target::Text(jinja::to_text(&value)),
                });
            }
        }
        Ok(targets)
    }

    /// Places of the right choices.
    fn gold(
        &self,
        document: &Document,
        fields: &Fields,
        choices: &[String],
        templates: &[Template],
    ) -> Result<Vec<usize>, TaskError> {
        let fail = |found: String| TaskError::Gold {
            path: self.path.to_owned(),
            line: document.line,
            task: self.task.name.clone(),
            found,
            choices: choices.len(),
        };
        let mut gold = Vec::new();
        for target in self.targets(document, fields, templates)? {
            let place = match &target {
                Target::Place(place) => usize::try_from(*place).ok(),
                Target::Text(text) => {
                    let is_place = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                    let place = if is_place { text.parse().ok() } else { None };
                    place.or_else(|| choices.iter().position(|choice| choice == text))
                }
            };
            match place.filter(|place| *place < choices.len()) {
                Some(place) => gold.push(place),
                None => {
                    return Err(fail(match target {
                        Target::Place(place) => place.to_string(),
                        Target::Text(text) => format!("`{text}`"),
                    }));
                }
            }
        }
        if gold.is_empty() { Err(fail("nothing".to_owned())) } else { Ok(gold) }
    }

    /// Right texts of a document without choices, or of one whose answer is a choice.
    fn answers(
        &self,
        document: &Document,
        fields: &Fields,
        templates: &[Template],
    ) -> Result<Vec<String>, TaskError> {
        if !self.task.choices.is_empty() {
            let choices = self.choices(document, fields)?;
            let gold = self.gold(document, fields, &choices, templates)?;
            return Ok(gold.into_iter().map(|place| choices[place].clone()).collect());
        }
        let targets = self.targets(document, fields, templates)?;
        Ok(targets
            .into_iter()
            .map(|target| match target {
                Target::Place(number) => number.to_string(),
                Target::Text(text) => text,
            })
            .collect())
    }

    /// A few-shot example with the delimiters around it.
    fn example(&self, document: &Document) -> Result<String, TaskError> {
        let (task, shots) = (self.task, &self.task.fewshot);
        let fields = self.fields(document)?;
        let text = self.text(document, &fields, shots.text.as_ref().unwrap_or(&task.text))?;
        let templates = shots.target.as_ref().unwrap_or(&task.target);
        let answer = self.answers(document, &fields, templates)?.into_iter().next().unwrap_or_default();
        let (text, answer) = match &task.continuation {
            Some(continuation) => (text + &answer, self.text(document, &fields, continuation)?),
            None => (text, answer),
        };
        Ok(if answer.is_empty() { text } else { text + &shots.target_delimiter + &answer + &shots.delimiter })
    }

    fn question(&self, document: &Document, fields: &Fields, before: &str) -> Result<Question, TaskError> {
        let task = self.task;
        let text = self.text(document, fields, &task.text)?;
        let context = format!("{before}{text}");
        let delimiter = &task.target_delimiter;
        Ok(match task.kind {
            TaskKind::Cloze => {
                let answer =
                    self.answers(document, fields, &task.target)?.into_iter().next().unwrap_or_default();
                Question::Cloze { context, continuation: format!("{delimiter}{answer}") }
            }
            TaskKind::Generation => Question::Generation {
                prompt: context,
                targets: self.answers(document, fields, &task.target)?,
            },
            TaskKind::MultipleChoice | TaskKind::MinimalPair | TaskKind::Classification => {
                let choices = self.choices(document, fields)?;
                if choices.len() < 2 {
                    return Err(TaskError::Choices {
                        path: self.path.to_owned(),
                        line: document.line,
                        task: task.name.clone(),
                        choices: choices.len(),
                    });
                }
                let gold = self.gold(document, fields, &choices, &task.target)?;
                let (contexts, continuations) = match &task.continuation {
                    Some(continuation) => {
                        let continuation = self.text(document, fields, continuation)?;
                        let contexts = choices.iter().map(|choice| format!("{context}{choice}")).collect();
                        (contexts, vec![format!("{delimiter}{continuation}")])
                    }
                    None => {
                        (vec![context], choices.iter().map(|choice| format!("{delimiter}{choice}")).collect())
                    }
                };
                Question::Choice { contexts, continuations, choices, gold, delimiter: delimiter.clone() }
            }
        })
    }
}

/// Draws examples, document by document.
struct Sampling<'d> {
    pool: &'d Data,
    /// True where the document that is asked may be among the examples.
    own: bool,
    count: usize,
    random: Option<PythonRandom>,
}

impl<'d> Sampling<'d> {
    fn new(task: &Task, data: &'d Data, pool: Option<&'d Data>, count: usize) -> Self {
        let random = match task.fewshot.sampler {
            Sampler::Random { seed } => Some(PythonRandom::new(seed)),
            Sampler::FirstN => None,
        };
        Self { pool: pool.unwrap_or(data), own: pool.is_none(), count, random }
    }

    /// The examples for `asked`, without itself where they are of the same file; as lm-evaluation-harness draws them.
    fn next(&mut self, asked: &Document) -> Result<Vec<&'d Document>, TaskError> {
        if self.count == 0 {
            return Ok(Vec::new());
        }
        let documents = &self.pool.documents;
        let other = |document: &&Document| !(self.own && document.fields == asked.fields);
        let too_few =
            |had: usize| TaskError::Examples { path: self.pool.path.clone(), count: self.count, had };
        let Some(random) = &mut self.random else {
            let found: Vec<_> = documents.iter().filter(other).take(self.count).collect();
            return if found.len() < self.count { Err(too_few(found.len())) } else { Ok(found) };
        };
        let wanted = self.count + usize::from(self.own);
        let drawn = random
            .sample(documents.len(), wanted)
            .ok_or_else(|| too_few(documents.len() - usize::from(self.own)))?;
        let found: Vec<_> =
            drawn.into_iter().map(|place| &documents[place]).filter(other).take(self.count).collect();
        if found.len() == self.count {
            return Ok(found);
        }
        // The document stands in the file several times, and more than one of them was drawn.
        let others: Vec<_> = documents.iter().filter(other).collect();
        let drawn = random.sample(others.len(), self.count).ok_or_else(|| too_few(others.len()))?;
        Ok(drawn.into_iter().map(|place| others[place]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn data(documents: &[serde_json::Value]) -> Data {
        let documents = documents
            .iter()
            .enumerate()
            .map(|(index, value)| Document { line: index + 1, fields: value.as_object().unwrap().clone() })
            .collect();
        Data { path: PathBuf::from("d.jsonl"), sha256: String::new(), documents }
    }

    fn ask(
        task: &str,
        documents: &[serde_json::Value],
        examples: Option<usize>,
    ) -> Result<Vec<Question>, TaskError> {
        let task = Task::parse(Path::new("t.yaml"), task)?;
        let questions = task.questions(&data(documents), None, examples)?;
        Ok(questions.asked.into_iter().map(|asked| asked.question).collect())
    }

    const TRIVIA: &str = "kind: multiple_choice\ndescription: \"Trivia.\\n\\n\"\ndoc_to_text: \"Q: {{q}}\\nA:\"\n\
                          doc_to_choice: c\ndoc_to_target: a\nfewshot: {sampler: first_n}\n";

    #[test]
    fn examples_stand_before_the_question() {
        let documents = [
            json!({"q": "one?", "c": ["x", "y"], "a": 1}),
            json!({"q": "two?", "c": ["x", "y"], "a": "x"}),
            json!({"q": "three?", "c": ["x", "y"], "a": "1"}),
        ];
        let asked = ask(TRIVIA, &documents, Some(1)).unwrap();
        let Question::Choice { contexts, continuations, gold, .. } = &asked[0] else { panic!("a choice") };
        assert_eq!(contexts, &["Trivia.\n\nQ: two?\nA: x\n\nQ: one?\nA:"]);
        assert_eq!((continuations.join("|"), gold.as_slice()), (" x| y".to_owned(), &[1][..]));
        let Question::Choice { contexts, gold, .. } = &asked[2] else { panic!("a choice") };
        assert_eq!((contexts[0].as_str(), gold[0]), ("Trivia.\n\nQ: one?\nA: y\n\nQ: three?\nA:", 1));
        let message = ask(TRIVIA, &documents, Some(3)).unwrap_err().to_string();
        assert!(message.contains("3 few-shot examples") && message.contains("only 2"), "{message}");
    }

    /// Contexts as lm-evaluation-harness 0.4.13 makes them of the same documents, two spaces included.
    #[test]
    fn answers_of_cloze_examples_follow_a_space_and_minimal_pairs_follow_pairs() {
        let words =
            "kind: cloze\ndoc_to_text: t\ndoc_to_target: \"{{ ' ' ~ w }}\"\nfewshot: {sampler: first_n}\n";
        let documents = [json!({"t": "one", "w": "two"}), json!({"t": "three", "w": "four"})];
        let asked = ask(words, &documents, Some(1)).unwrap();
        let Question::Cloze { context, continuation } = &asked[1] else { panic!("a cloze") };
        assert_eq!((context.as_str(), continuation.as_str()), ("one  two\n\nthree", " four"));

        let pairs = "kind: minimal_pair\ndoc_to_choice: '{{ [g, b] }}'\nfewshot: {sampler: first_n}\n";
        let documents = [json!({"g": "He is.", "b": "He are."}), json!({"g": "I am.", "b": "I is."})];
        let asked = ask(pairs, &documents, Some(1)).unwrap();
        let Question::Choice { contexts, continuations, .. } = &asked[1] else { panic!("a choice") };
        assert_eq!(
            (contexts[0].as_str(), continuations.join("|").as_str()),
            (" He is.\n\n", " I am.| I is.")
        );
    }

    #[test]
    fn choices_may_stand_in_the_question() {
        let task = "kind: multiple_choice\nfields: {halves: \"{{ s.partition('_') }}\"}\n\
                    doc_to_choice: ['{{halves[0] + a}}', '{{halves[0] + b}}']\ndoc_to_target: '{{ key|int - 1 }}'\n\
                    continuation: '{{ halves[2].strip() }}'\n";
        let document = json!({"s": "The _ was wet.", "a": "dog", "b": "cat", "key": "2"});
        let Question::Choice { contexts, continuations, gold, .. } =
            &ask(task, &[document], None).unwrap()[0]
        else {
            panic!("a choice")
        };
        assert_eq!(contexts, &["The dog", "The cat"]);
        assert_eq!((continuations[0].as_str(), gold[0]), (" was wet.", 1));
    }

    #[test]
    fn answers_that_are_no_choice_are_refused() {
        for (answer, found) in [
            (json!(2), "gives 2,"),
            (json!(-1), "gives -1,"),
            (json!("z"), "gives `z`,"),
            (json!([]), "nothing"),
        ] {
            let message =
                ask(TRIVIA, &[json!({"q": "", "c": ["x", "y"], "a": answer})], None).unwrap_err().to_string();
            assert!(message.contains("d.jsonl:1: `doc_to_target`") && message.contains(found), "{message}");
            assert!(message.contains("2 choices") && message.contains("from 0 to 1"), "{message}");
        }
    }

    #[test]
    fn one_choice_or_none_is_no_choice() {
        for choices in [json!([]), json!(["x"])] {
            let documents =
                [json!({"q": "?", "c": ["x", "y"], "a": 0}), json!({"q": "?", "c": choices, "a": 0})];
            let message = ask(TRIVIA, &documents, None).unwrap_err().to_string();
            assert!(message.contains("d.jsonl:2: `doc_to_choice` of the task `t` gives"), "{message}");
            assert!(message.contains("two or more"), "{message}");
        }
    }

    #[test]
    fn missing_fields_are_told_with_line_and_template() {
        let documents = [json!({"q": "?", "c": ["x", "y"], "a": 0}), json!({"c": ["x", "y"], "a": 0})];
        let message = ask(TRIVIA, &documents, None).unwrap_err().to_string();
        assert!(message.contains("d.jsonl:2: `doc_to_text` of the task `t`"), "{message}");
        assert!(message.contains("no field `q`: its fields are c, a"), "{message}");
        let message = ask(TRIVIA, &[json!({"q": "?", "c": "x", "a": 0})], None).unwrap_err().to_string();
        assert!(message.contains("`doc_to_choice`") && message.contains("not a list"), "{message}");
    }

    #[test]
    fn several_answers_may_be_right() {
        let task = "kind: multiple_choice\ndoc_to_choice: '{{ t.choices }}'\n\
                    doc_to_target: '{{ t.labels | indices_of(1) }}'\nmetrics: probability_mass\n";
        let document = json!({"t": {"choices": ["x", "y", "z"], "labels": [1, 0, 1]}});
        let Question::Choice { gold, .. } = &ask(task, &[document], None).unwrap()[0] else {
            panic!("a choice")
        };
        assert_eq!(gold, &[0, 2]);
    }
}
