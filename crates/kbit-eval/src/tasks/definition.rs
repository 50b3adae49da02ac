//! From a task file to a [`Task`].

use super::TaskError;
use super::schema::{self, TASK};
use super::template::{Template, Templates};
use kbit_yaml::{DocumentError, Mistake, Node, Place, Tree};
use regex::Regex;
use std::path::{Path, PathBuf};

/// What a document asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// Which of several texts goes on.
    MultipleChoice,
    /// Which of two texts is likelier.
    MinimalPair,
    /// Whether the likeliest text is the right one.
    Cloze,
    /// Which label holds.
    Classification,
    /// A text that is written.
    Generation,
}

impl TaskKind {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "multiple_choice" => Self::MultipleChoice,
            "minimal_pair" => Self::MinimalPair,
            "cloze" => Self::Cloze,
            "classification" => Self::Classification,
            "generation" => Self::Generation,
            _ => return None,
        })
    }

    /// True where one of several texts is chosen.
    pub(crate) const fn chooses(self) -> bool {
        matches!(self, Self::MultipleChoice | Self::MinimalPair | Self::Classification)
    }

    fn metrics(self) -> &'static [&'static str] {
        match self {
            Self::MultipleChoice | Self::MinimalPair | Self::Classification => schema::CHOICE_METRICS,
            Self::Cloze => schema::CLOZE_METRICS,
            Self::Generation => schema::GENERATION_METRICS,
        }
    }

    fn default_metrics(self) -> &'static [&'static str] {
        match self {
            Self::MultipleChoice => &["acc", "acc_norm"],
            Self::MinimalPair => &["acc"],
            Self::Cloze => &["acc", "perplexity"],
            Self::Classification => &["acc", "macro_f1", "mcc"],
            Self::Generation => &["exact_match"],
        }
    }
}

/// How few-shot examples are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sampler {
    Random { seed: u64 },
    FirstN,
}

/// Few-shot examples.
#[derive(Debug)]
pub(crate) struct FewShot {
    pub(crate) count: usize,
    pub(crate) file: Option<PathBuf>,
    pub(crate) sampler: Sampler,
    pub(crate) delimiter: String,
    pub(crate) target_delimiter: String,
    pub(crate) text: Option<Template>,
    pub(crate) target: Option<Vec<Template>>,
}

/// What is done with a generated text.
#[derive(Debug)]
pub(crate) enum Filter {
    Find { pattern: Regex, select: i64, fallback: String },
    Strip,
    Lowercase,
    Uppercase,
}

/// How texts are generated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Generation {
    pub(crate) until: Vec<String>,
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f32,
    pub(crate) top_k: usize,
    pub(crate) top_p: f32,
    pub(crate) seed: u64,
}

/// A task: questions made of documents, and how answers are measured.
///
/// ```
/// use kbit_eval::tasks::Task;
/// use std::path::Path;
/// let text = "kind: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\ndoc_to_target: answer\n";
/// let task = Task::parse(Path::new("trivia.yaml"), text)?;
/// assert_eq!(task.name, "trivia");
/// # Ok::<(), kbit_eval::tasks::TaskError>(())
/// ```
#[derive(Debug)]
pub struct Task {
    /// Name in tables.
    pub name: String,
    /// What a document asks.
    pub kind: TaskKind,
    /// JSONL file, where the task names one.
    pub data: Option<PathBuf>,
    /// What is measured, in order.
    pub metrics: Vec<String>,
    /// The task file's text.
    pub(crate) source: String,
    pub(crate) templates: Templates,
    pub(crate) fields: Vec<(String, Template)>,
    pub(crate) description: Template,
    pub(crate) text: Template,
    /// One template that gives a list, or one for each choice.
    pub(crate) choices: Vec<Template>,
    pub(crate) target: Vec<Template>,
    pub(crate) continuation: Option<Template>,
    pub(crate) target_delimiter: String,
    pub(crate) fewshot: FewShot,
    pub(crate) filters: Vec<Filter>,
    pub(crate) generation: Generation,
}

impl Task {
    /// Reads the task file `file`; relative paths in it start at its folder.
    ///
    /// # Errors
    /// When it cannot be read, or every mistake in it.
    pub fn read(file: &Path) -> Result<Self, TaskError> {
        let text = kbit_yaml::read_text(file, "the task")?;
        Self::parse(file, &text)
    }

    /// True where `text` is meant as a task rather than as a configuration: it says what `kind` it is and names no models.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        Node::parse(text).is_ok_and(|root| root.get("kind").is_some() && root.get("models").is_none())
    }

    /// Reads the task `text`, which stands in `file`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, TaskError> {
        let fail = |mistakes| TaskError::Definition(DocumentError::new(file, text, mistakes));
        let root = Node::parse(text).map_err(|(place, message)| {
            fail(vec![Mistake::new(place, message, "mend the YAML at this place")])
        })?;
        let mut mistakes = Vec::new();
        kbit_yaml::check(&root, &TASK, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(fail(mistakes));
        }
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let mut reader = Reader { folder, templates: Templates::new(), mistakes };
        let task = reader.task(&root, file, text);
        if !reader.mistakes.is_empty() {
            return Err(fail(reader.mistakes));
        }
        Ok(Self { templates: reader.templates, ..task })
    }
}

/// Reads typed values from a tree that was checked against [`TASK`].
struct Reader {
    folder: PathBuf,
    templates: Templates,
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn mistake(&mut self, place: Place, message: impl Into<String>, help: impl Into<String>) {
        self.mistakes.push(Mistake::new(place, message, help));
    }

    fn task(&mut self, root: &Node, file: &Path, source: &str) -> Task {
        let stem =
            file.file_stem().map_or_else(|| "task".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let kind = root.get("kind").and_then(Node::as_str).and_then(TaskKind::of).unwrap_or(TaskKind::Cloze);
        let fields = self.fields(root);
        let target_delimiter = self.scalar(root, "target_delimiter");
        // lm-evaluation-harness has one before the answers of examples even where a cloze's own answer has none.
        let fewshot = self.fewshot(root.get("fewshot"), target_delimiter.as_deref().unwrap_or(" "));
        let default_delimiter = if kind == TaskKind::Cloze { "" } else { " " };
        let target_delimiter = target_delimiter.unwrap_or_else(|| default_delimiter.to_owned());
        let task = Task {
            name: root.get("name").and_then(Node::as_str).map_or(stem, str::to_owned),
            kind,
            data: root.get("data").and_then(Node::as_str).map(|path| self.folder.join(path)),
            metrics: self.metrics(root, kind),
            source: source.to_owned(),
            templates: Templates::new(),
            fields,
            description: self.template_or_empty(root, "description"),
            text: self.template_or_empty(root, "doc_to_text"),
            choices: root
                .get("doc_to_choice")
                .map(|node| self.templates(node, "doc_to_choice"))
                .unwrap_or_default(),
            target: root
                .get("doc_to_target")
                .map(|node| self.templates(node, "doc_to_target"))
                .unwrap_or_default(),
            continuation: root.get("continuation").and_then(|node| self.template(node, "continuation")),
            target_delimiter,
            filters: root.get("filters").map(|node| self.filters(node)).unwrap_or_default(),
            generation: self.generation(root.get("generation"), &fewshot.delimiter),
            fewshot,
        };
        self.check(root, task)
    }

    /// What keys need of each other.
    fn check(&mut self, root: &Node, mut task: Task) -> Task {
        let place = root.get("kind").map_or(root.place, |kind| kind.place);
        if task.kind.chooses() && task.choices.is_empty() {
            self.mistake(
                place,
                "a task that chooses needs `doc_to_choice`",
                "add `doc_to_choice:`, a list or a field that holds one",
            );
        }
        if task.target.is_empty() {
            if task.kind == TaskKind::MinimalPair {
                task.target.extend(self.add("doc_to_target", "0", place));
            } else {
                self.mistake(place, "a task needs `doc_to_target`", "add `doc_to_target:`, the right answer");
            }
        }
        if let (Some(node), false) = (root.get("continuation"), task.kind.chooses()) {
            self.mistake(
                node.place,
                "only tasks that choose have a `continuation`",
                "remove it, or set another `kind`",
            );
        }
        for (key, holds) in [
            ("generation", task.kind == TaskKind::Generation),
            ("filters", task.kind == TaskKind::Generation),
        ] {
            if let (Some(node), false) = (root.get(key), holds) {
                self.mistake(
                    node.place,
                    format!("only tasks of `kind: generation` have `{key}`"),
                    "remove it, or set that kind",
                );
            }
        }
        task
    }

    fn metrics(&mut self, root: &Node, kind: TaskKind) -> Vec<String> {
        let Some(node) = root.get("metrics") else {
            return kind.default_metrics().iter().map(|metric| (*metric).to_owned()).collect();
        };
        let mut metrics = Vec::new();
        for item in node.items() {
            let word = item.as_str().unwrap_or_default();
            if !kind.metrics().contains(&word) {
                let message = format!("`{word}` is no metric of tasks of this kind");
                self.mistake(item.place, message, kbit_yaml::suggestion(word, kind.metrics()));
            } else if !metrics.iter().any(|known| known == word) {
                metrics.push(word.to_owned());
            }
        }
        metrics
    }

    fn fields(&mut self, root: &Node) -> Vec<(String, Template)> {
        let Some(Node { value: Tree::Map(entries), .. }) = root.get("fields") else { return Vec::new() };
        let field = |(key, node): &(kbit_yaml::MapKey, Node)| {
            Some((key.name.clone(), self.template(node, &format!("fields.{}", key.name))?))
        };
        entries.iter().filter_map(field).collect()
    }

    fn fewshot(&mut self, node: Option<&Node>, target_delimiter: &str) -> FewShot {
        let empty = Node { value: Tree::Map(Vec::new()), place: Place::default() };
        let node = node.unwrap_or(&empty);
        let number =
            |key: &str| node.get(key).and_then(Node::as_int).and_then(|value| u64::try_from(value).ok());
        let first_n = node.get("sampler").and_then(Node::as_str) == Some("first_n");
        FewShot {
            count: number("count").and_then(|count| usize::try_from(count).ok()).unwrap_or(0),
            file: node.get("file").and_then(Node::as_str).map(|path| self.folder.join(path)),
            sampler: if first_n {
                Sampler::FirstN
            } else {
                Sampler::Random { seed: number("seed").unwrap_or(1234) }
            },
            delimiter: self.scalar(node, "delimiter").unwrap_or_else(|| "\n\n".to_owned()),
            target_delimiter: self
                .scalar(node, "target_delimiter")
                .unwrap_or_else(|| target_delimiter.to_owned()),
            text: node.get("doc_to_text").and_then(|node| self.template(node, "fewshot.doc_to_text")),
            target: node.get("doc_to_target").map(|node| self.templates(node, "fewshot.doc_to_target")),
        }
    }

    fn filters(&mut self, node: &Node) -> Vec<Filter> {
        let mut filters = Vec::new();
        for item in node.items() {
            let function = item.get("function").and_then(Node::as_str).unwrap_or_default();
            let pattern =
                item.get("pattern").and_then(Node::as_str).and_then(|pattern| Regex::new(pattern).ok());
            match (function, pattern) {
                ("regex", Some(pattern)) => filters.push(Filter::Find {
                    pattern,
                    select: item.get("group_select").and_then(Node::as_int).unwrap_or(0),
                    fallback: self.scalar(item, "fallback").unwrap_or_else(|| "[invalid]".to_owned()),
                }),
                ("regex", None) => {
                    self.mistake(item.place, "the filter `regex` needs a `pattern`", "add `pattern:`")
                }
                ("strip", _) => filters.push(Filter::Strip),
                ("lowercase", _) => filters.push(Filter::Lowercase),
                ("uppercase", _) => filters.push(Filter::Uppercase),
                // There is one generation a document: the first.
                _ => {}
            }
        }
        filters
    }

    fn generation(&mut self, node: Option<&Node>, delimiter: &str) -> Generation {
        let empty = Node { value: Tree::Map(Vec::new()), place: Place::default() };
        let node = node.unwrap_or(&empty);
        let whole = |key: &str, default: usize| {
            node.get(key)
                .and_then(Node::as_int)
                .and_then(|value| usize::try_from(value).ok())
                .unwrap_or(default)
        };
        let until = match node.get("until") {
            Some(list) => list
                .items()
                .iter()
                .filter_map(|item| self.text_of(item, "until"))
                .filter(|text| !text.is_empty())
                .collect(),
            None => vec![delimiter.to_owned()],
        };
        Generation {
            until,
            max_tokens: whole("max_tokens", 256),
            temperature: self.number(node, "temperature", 0.0, 0.0..=100.0),
            top_k: whole("top_k", 0),
            top_p: self.number(node, "top_p", 1.0, 0.0..=1.0),
            seed: node
                .get("seed")
                .and_then(Node::as_int)
                .and_then(|seed| u64::try_from(seed).ok())
                .unwrap_or(1),
        }
    }

    fn number(&mut self, node: &Node, key: &str, default: f32, range: std::ops::RangeInclusive<f32>) -> f32 {
        let Some(value) = node.get(key) else { return default };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "a setting of a few digits"
        )]
        let number = match value.value {
            Tree::Int(number) => Some(number as f32),
            Tree::Float(number) => Some(number as f32),
            _ => None,
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let wanted = format!("a number from {} to {}", range.start(), range.end());
                self.mistake(value.place, format!("`{key}` is {wanted}"), format!("give {wanted}"));
                default
            }
        }
    }

    fn scalar(&mut self, node: &Node, key: &str) -> Option<String> {
        self.text_of(node.get(key)?, key)
    }

    /// The text of a scalar; a word that YAML takes for a truth value is a mistake, since which text it was is lost.
    fn text_of(&mut self, node: &Node, key: &str) -> Option<String> {
        match &node.value {
            Tree::Str(text) => Some(text.clone()),
            Tree::Int(number) => Some(number.to_string()),
            Tree::Float(number) => Some(number.to_string()),
            Tree::Bool(_) | Tree::Null | Tree::List(_) | Tree::Map(_) => {
                let message = format!("`{key}` is text, found {}", node.kind());
                self.mistake(node.place, message, "put it between quotation marks");
                None
            }
        }
    }

    fn template(&mut self, node: &Node, key: &str) -> Option<Template> {
        let source = self.text_of(node, key)?;
        self.add(key, &source, node.place)
    }

    fn add(&mut self, key: &str, source: &str, place: Place) -> Option<Template> {
        match self.templates.add(key, source) {
            Ok(template) => Some(template),
            Err(message) => {
                self.mistake(place, format!("`{key}` is no template: {message}"), "mend the Jinja template");
                None
            }
        }
    }

    fn template_or_empty(&mut self, root: &Node, key: &str) -> Template {
        let found = root.get(key).and_then(|node| self.template(node, key));
        found.or_else(|| self.add(key, "", root.place)).unwrap_or_else(|| Template::empty(key))
    }

    fn templates(&mut self, node: &Node, key: &str) -> Vec<Template> {
        match &node.value {
            Tree::List(items) => {
                let item = |(index, item)| self.template(item, &format!("{key}[{index}]"));
                items.iter().enumerate().filter_map(item).collect()
            }
            _ => self.template(node, key).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> String {
        Task::parse(Path::new("t.yaml"), text).unwrap_err().to_string()
    }

    #[test]
    fn slips_are_told_their_place_and_the_nearest_key() {
        let message = mistakes("kind: multiple_choise\ndoc_to_txt: a\n");
        assert!(message.contains("t.yaml:1:7: `kind` cannot be `multiple_choise`"), "{message}");
        assert!(message.contains("did you mean `multiple_choice`?"), "{message}");
        assert!(message.contains("t.yaml:2:1: unknown key `doc_to_txt`"), "{message}");
        assert!(message.contains("did you mean `doc_to_text`?"), "{message}");
    }

    #[test]
    fn tasks_are_told_from_configurations() {
        assert!(Task::is_meant("kind: cloze\ndoc_to_target: a\n"));
        assert!(!Task::is_meant("models: a\nschemes: int\n") && !Task::is_meant("kind: [\n"));
    }

    #[test]
    fn what_a_kind_needs_is_asked_for() {
        let message = mistakes("kind: multiple_choice\n");
        assert!(
            message.contains("needs `doc_to_choice`") && message.contains("needs `doc_to_target`"),
            "{message}"
        );
        let message =
            mistakes("kind: cloze\ndoc_to_target: a\nmetrics: [acc, acc_norm]\ngeneration: {seed: 2}\n");
        assert!(message.contains("t.yaml:3:16: `acc_norm` is no metric"), "{message}");
        assert!(message.contains("t.yaml:4:"), "{message}");
    }

    #[test]
    fn words_that_yaml_takes_for_something_else_are_refused() {
        let message = mistakes("kind: multiple_choice\ndoc_to_target: a\ndoc_to_choice: [true, 'no']\n");
        assert!(
            message.contains("t.yaml:3:17: `doc_to_choice[0]` is text, found true or false"),
            "{message}"
        );
    }

    #[test]
    fn an_empty_list_of_choices_is_told_its_place() {
        let message = mistakes("kind: multiple_choice\ndoc_to_target: 0\ndoc_to_choice: []\n");
        assert!(message.contains("t.yaml:3:16: `doc_to_choice` is at least one item"), "{message}");
    }

    #[test]
    fn mistakes_in_templates_are_told_their_place() {
        let message = mistakes("kind: cloze\ndoc_to_text: '{{ text'\ndoc_to_target: a\n");
        assert!(message.contains("t.yaml:2:14: `doc_to_text` is no template"), "{message}");
    }

    #[test]
    fn defaults_are_those_of_the_kind() {
        let task = Task::parse(
            Path::new("a/pairs.yaml"),
            "kind: minimal_pair\ndoc_to_choice: ['{{good}}', '{{bad}}']\n",
        )
        .unwrap();
        assert_eq!((task.name.as_str(), task.target_delimiter.as_str()), ("pairs", " "));
        assert_eq!((task.metrics.join(" "), task.target.len()), ("acc".to_owned(), 1));
        let task = Task::parse(
            Path::new("a.yaml"),
            "kind: cloze\ndoc_to_target: b\nfewshot: {file: x.jsonl, count: 2}\n",
        )
        .unwrap();
        assert_eq!(
            (task.target_delimiter.as_str(), task.fewshot.sampler),
            ("", Sampler::Random { seed: 1234 })
        );
    }
}
