//! From the YAML tree to a typed configuration: what was written, with every path and expression resolved.
//!
//! What the schemes themselves declare (parameters, ranges) is checked by [`crate::recipe`], once plugins are loaded.

use crate::edit::{Edits, SetMetadata};
use crate::mix::MixOptions;
use crate::planner::{AMONG_GGML, Target};
use crate::schema;
use crate::sensitivity::By;
use crate::task::{self, TaskEvaluation};
use kbit_calibrate::{EmptyExperts, OnMissing, Policy};
use kbit_engine::{CacheTypes, Mode};
use kbit_formats::gguf::shards::parse_split_size;
use kbit_models::ConvertOptions;
use kbit_types::GgmlType;
pub use kbit_yaml::DocumentError as ConfigError;
use kbit_yaml::{Mistake, Node, Place, Tree};
use regex::Regex;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// File that it was read from.
    pub file: PathBuf,
    /// Text of that file, for excerpts in later errors.
    pub text: String,
    /// Name of the run.
    pub name: String,
    /// Output folder, where given.
    pub output: Option<PathBuf>,
    /// Models, in the order of the file.
    pub models: Vec<ModelEntry>,
    /// Schemes, in the order of the file.
    pub schemes: Vec<SchemeEntry>,
    /// Files to plan, in the order of the file; they come after those of `schemes`.
    pub targets: Vec<TargetEntry>,
    /// Rules for all schemes that have none of their own.
    pub rules: Vec<RuleEntry>,
    /// Texts to measure on.
    pub evaluations: Vec<Evaluation>,
    /// Tasks to measure on.
    pub tasks: Vec<TaskEvaluation>,
    /// Plugin files to load beside the installed ones.
    pub plugins: Vec<PathBuf>,
    /// Where plugins run.
    pub isolated: bool,
    /// Longest time for one call of an isolated plugin.
    pub timeout: Duration,
    /// Whether a fallback stops the run.
    pub fallback_is_error: bool,
    /// Whether tensors that are quantized already may be quantized anew.
    pub allow_requantize: bool,
    /// Bytes of tensors in a shard, where outputs are to be split.
    pub split_size: Option<u64>,
    /// Whether outputs have the shards of their source.
    pub keep_split: bool,
    /// Whether written tensors are decoded and compared.
    pub error_statistics: bool,
    /// Whether files carry hashes and the plan.
    pub provenance: bool,
    /// Resamples for intervals.
    pub bootstrap: usize,
    /// Seed of the resampling.
    pub seed: u64,
    /// Report formats.
    pub formats: Vec<String>,
}

/// One model.
#[derive(Debug)]
pub struct ModelEntry {
    /// Folder or file.
    pub path: PathBuf,
    /// Name in tables and paths.
    pub name: String,
    /// How it is read.
    pub options: ConvertOptions,
    /// What is changed about it.
    pub edits: Edits,
    /// Its importance matrix.
    pub importance: Option<ImportanceEntry>,
    /// Where it stands.
    pub place: Place,
}

/// An importance matrix.
#[derive(Clone, Debug)]
pub struct ImportanceEntry {
    /// File.
    pub path: PathBuf,
    /// As it is written in the configuration.
    pub named: String,
    /// What holds where it has no data.
    pub policy: Policy,
}

/// A scheme as asked for, not yet matched with a plugin.
#[derive(Clone, Debug)]
pub struct SchemeRequest {
    /// Name with inline parameters, as `int:bits=4`.
    pub text: String,
    /// Parameters given as a map: key, its place, and the values of its grid.
    pub params: Vec<(String, Place, Node)>,
    /// Where it stands.
    pub place: Place,
}

/// A line of `schemes`.
#[derive(Debug)]
pub struct SchemeEntry {
    /// The scheme and its parameters.
    pub request: SchemeRequest,
    /// Name in tables, where given.
    pub label: Option<String>,
    /// Rules of its own.
    pub rules: Option<Vec<RuleEntry>>,
    /// Options of a mix.
    pub mix: MixOptions,
    /// Isolation of its own.
    pub isolated: Option<bool>,
}

/// A file to plan.
#[derive(Debug)]
pub struct TargetEntry {
    /// What it is to reach.
    pub target: Target,
    /// Schemes to choose from.
    pub among: Vec<String>,
    /// Text to calibrate on.
    pub text: PathBuf,
    /// Tokens in a window; `None`: 512, or what the model takes.
    pub context: Option<usize>,
    /// Number of windows; `None`: as many as score about 4096 tokens.
    pub chunks: Option<usize>,
    /// Whether tensors that readers fuse get one scheme.
    pub agree: bool,
    /// Whether the choice is measured beside the best mixes.
    pub verify: bool,
    /// Name in tables.
    pub label: String,
    /// Rules of its own.
    pub rules: Option<Vec<RuleEntry>>,
    /// Where it stands.
    pub place: Place,
}

/// A scheme for the tensors that match.
#[derive(Clone, Debug)]
pub struct RuleEntry {
    /// Matched anywhere in the GGUF name.
    pub pattern: Regex,
    /// `None` keeps the tensor as f32.
    pub scheme: Option<SchemeRequest>,
}

/// A text to measure quality on.
#[derive(Debug)]
pub struct Evaluation {
    /// File.
    pub text: PathBuf,
    /// Name in tables.
    pub name: String,
    /// Metrics, of [`schema::METRICS`].
    pub metrics: Vec<String>,
    /// The text whose tokens the baselines of `information` count.
    pub baseline: Option<PathBuf>,
    /// Tokens in a window; `None`: 512, or what the model takes.
    pub context: Option<usize>,
    /// Tokens from one window to the next; `None`: windows do not overlap.
    pub stride: Option<usize>,
    /// Number of windows; `None`: all.
    pub chunks: Option<usize>,
    /// Modes to measure in.
    pub modes: Vec<Mode>,
    /// Types of the KV cache to measure with.
    pub caches: Vec<CacheTypes>,
    /// Parts whose sensitivity is measured.
    pub sensitivity: Vec<By>,
    /// Where it stands.
    pub place: Place,
}

impl Config {
    /// Reads and checks the configuration file `file`; relative paths inside start at its folder.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake found.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = kbit_yaml::read_text(file, "the configuration")?;
        Self::parse(file, &text)
    }

    /// Checks the configuration `text`, which stands in `file`.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake found.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let root = Node::parse(text).map_err(|(place, message)| {
            let mistake = Mistake::new(place, message, "mend the YAML at this place");
            ConfigError::new(file, text, vec![mistake])
        })?;
        let mut mistakes = Vec::new();
        kbit_yaml::check(&root, &schema::CONFIG, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(ConfigError::new(file, text, mistakes));
        }
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let config = Reader { folder: &folder, mistakes: &mut mistakes }.config(&root, file, text);
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigError::new(file, text, mistakes)) }
    }

    /// The error for a mistake that shows only later, with an excerpt of this file.
    #[must_use]
    pub fn error(&self, mistakes: Vec<Mistake>) -> ConfigError {
        ConfigError::new(&self.file, &self.text, mistakes)
    }
}

/// Reads typed values from a tree that [`schema::check`] accepted, so every shape is known to be right.
struct Reader<'a> {
    folder: &'a Path,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reader<'_> {
    fn config(&mut self, root: &Node, file: &Path, text: &str) -> Config {
        let stem =
            file.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let importance = root.get("importance").map(|node| self.importance(node));
        let models = many(root, "models").iter().map(|node| self.model(node, importance.as_ref())).collect();
        let mut tasks = Vec::new();
        let mut evaluations = Vec::new();
        for node in many(root, "evaluate") {
            if task::is_task(node, self.mistakes) {
                let (modes, caches) = (named(node, "mode"), named(node, "cache_type"));
                tasks.extend(task::read(node, self.folder, modes, caches, self.mistakes));
            } else if node.get("text").is_some() {
                evaluations.push(self.evaluation(node));
            }
        }
        let mut schemes = Vec::new();
        let mut targets = Vec::new();
        for node in many(root, "schemes") {
            match (node.get("target"), node.as_str().is_some() || node.get("scheme").is_some()) {
                (Some(target), false) => targets.extend(self.targets(node, target)),
                (None, true) => {
                    self.refuse_keys_of_targets(node);
                    schemes.push(self.scheme_entry(node));
                }
                (Some(target), true) => self.mistakes.push(Mistake::new(
                    target.place,
                    "`scheme` and `target` cannot stand together",
                    "give `among:` with the schemes to choose from, or leave `target` out",
                )),
                (None, false) => self.mistakes.push(Mistake::new(
                    node.place,
                    "a scheme needs the key `scheme` or `target`",
                    "add `scheme:` with a name, or `target:` with what a plan is to reach",
                )),
            }
        }
        let laws = root.get("laws");
        let whole = |key: &str, default: i64| {
            laws.and_then(|laws| laws.get(key)).and_then(Node::as_int).unwrap_or(default)
        };
        let formats = match root.get("report") {
            Some(node) => words(node),
            None => schema::FORMATS.iter().map(|format| (*format).to_owned()).collect(),
        };
        let config = Config {
            file: file.to_owned(),
            text: text.to_owned(),
            name: string(root, "name").unwrap_or(stem),
            output: root.get("output").and_then(Node::as_str).map(|path| self.folder.join(path)),
            models,
            schemes,
            targets,
            rules: root.get("rules").map(rules).unwrap_or_default(),
            evaluations,
            tasks,
            plugins: many(root, "plugins")
                .iter()
                .filter_map(Node::as_str)
                .map(|path| self.folder.join(path))
                .collect(),
            isolated: root.get("isolation").and_then(Node::as_str) == Some("process"),
            timeout: Duration::from_secs(
                root.get("timeout_seconds")
                    .and_then(Node::as_int)
                    .and_then(|value| u64::try_from(value).ok())
                    .unwrap_or(60),
            ),
            fallback_is_error: root.get("on_fallback").and_then(Node::as_str) == Some("error"),
            allow_requantize: root.get("allow_requantize").and_then(Node::as_bool).unwrap_or(false),
            split_size: self.split_size(root),
            keep_split: root.get("keep_split").and_then(Node::as_bool).unwrap_or(false),
            error_statistics: root.get("error_statistics").and_then(Node::as_bool).unwrap_or(true),
            provenance: root.get("provenance").and_then(Node::as_bool).unwrap_or(true),
            bootstrap: usize::try_from(whole("bootstrap", 500)).unwrap_or(0),
            seed: u64::try_from(whole("seed", 1)).unwrap_or(1),
            formats,
        };
        self.refuse_repeated_names(&config);
        config
    }

    fn refuse_repeated_names(&mut self, config: &Config) {
        for (index, model) in config.models.iter().enumerate() {
            if config.models[..index].iter().any(|earlier| earlier.name == model.name) {
                let message = format!("two models are named `{}`", model.name);
                self.mistakes.push(Mistake::new(model.place, message, "give one of them another `name:`"));
            }
        }
        let texts = config.evaluations.iter().map(|text| (text.name.as_str(), text.place));
        let tasks = config.tasks.iter().map(|task| (task.name.as_str(), task.place));
        for (index, target) in config.targets.iter().enumerate() {
            if config.targets[..index].iter().any(|earlier| earlier.label == target.label) {
                let message = format!("two plans are named `{}`", target.label);
                self.mistakes.push(Mistake::new(target.place, message, "give one of them another `label:`"));
            }
        }
        let names: Vec<(&str, Place)> = texts.chain(tasks).collect();
        for (index, (name, place)) in names.iter().enumerate() {
            if names[..index].iter().any(|(earlier, _)| earlier == name) {
                let message = format!("two texts or tasks are named `{name}`");
                self.mistakes.push(Mistake::new(*place, message, "give one of them another `name:`"));
            }
        }
    }

    fn split_size(&mut self, root: &Node) -> Option<u64> {
        let node = root.get("split_size")?;
        if root.get("keep_split").and_then(Node::as_bool) == Some(true) {
            let message = "`split_size` and `keep_split` cannot hold both";
            self.mistakes.push(Mistake::new(node.place, message, "remove one of them"));
        }
        match parse_split_size(node.as_str().unwrap_or_default()) {
            Ok(bytes) => Some(bytes),
            Err(help) => {
                self.mistakes.push(Mistake::new(node.place, "`split_size` is no size", help));
                None
            }
        }
    }

    fn importance(&mut self, node: &Node) -> ImportanceEntry {
        let named =
            node.as_str().or_else(|| node.get("path").and_then(Node::as_str)).unwrap_or_default().to_owned();
        let path = self.folder.join(&named);
        if !path.is_file() {
            let message = format!("there is no importance matrix at `{}`", path.display());
            let help =
                "give a file that llama-imatrix wrote; relative paths start at the configuration's folder";
            self.mistakes.push(Mistake::new(node.place, message, help));
        }
        let says = |key: &str, word: &str| node.get(key).and_then(Node::as_str) == Some(word);
        let policy = Policy {
            on_missing: if says("on_missing", "error") { OnMissing::Error } else { OnMissing::Warn },
            empty_experts: if says("empty_experts", "mean") {
                EmptyExperts::Mean
            } else {
                EmptyExperts::Ones
            },
        };
        ImportanceEntry { path, named, policy }
    }

    fn model(&mut self, node: &Node, importance: Option<&ImportanceEntry>) -> ModelEntry {
        let written = node.as_str().or_else(|| node.get("path").and_then(Node::as_str)).unwrap_or_default();
        let path = self.folder.join(written);
        if !path.exists() {
            let message = format!("there is no model at `{}`", path.display());
            let help = "give a folder with config.json and safetensors, or a GGUF file; \
                        relative paths start at the configuration's folder";
            self.mistakes.push(Mistake::new(node.place, message, help));
        }
        let derived = path
            .canonicalize()
            .ok()
            .as_deref()
            .unwrap_or(&path)
            .file_stem()
            .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        let name = string(node, "name").unwrap_or(derived);
        if name.contains(['/', '\\', '\0']) || name.starts_with('.') {
            let message = format!("a model cannot be named `{name}`");
            self.mistakes.push(Mistake::new(
                node.place,
                message,
                "its outputs go to a folder of that name: leave out slashes and leading dots",
            ));
        }
        let flag = |key: &str| node.get(key).and_then(Node::as_bool).unwrap_or(false);
        let options = ConvertOptions {
            pass_through_other_modalities: flag("pass_through"),
            without_tokenizer: flag("without_tokenizer"),
            pre_tokenizer: string(node, "pre_tokenizer"),
            architecture: string(node, "architecture"),
            name: None,
        };
        let edits = self.edits(node);
        let importance = match node.get("importance") {
            Some(node) => Some(self.importance(node)),
            None => importance.cloned(),
        };
        ModelEntry { path, name, options, edits, importance, place: node.place }
    }

    fn edits(&mut self, node: &Node) -> Edits {
        let mut edits = Edits::default();
        for item in node.get("set_metadata").map_or(&[][..], Node::items) {
            match item.as_str().unwrap_or_default().parse::<SetMetadata>() {
                Ok(set) => edits.metadata.push(set),
                Err(error) => self.mistakes.push(Mistake::new(
                    item.place,
                    format!("`set_metadata`: {error}"),
                    "write key=type:value, as general.name=str:My model",
                )),
            }
        }
        let layers = node.get("prune_layers").map_or(&[][..], Node::items);
        edits.prune_layers =
            layers.iter().filter_map(Node::as_int).filter_map(|layer| u64::try_from(layer).ok()).collect();
        edits
    }

    fn scheme_entry(&mut self, node: &Node) -> SchemeEntry {
        let text = node.as_str().map(str::to_owned).or_else(|| string(node, "scheme")).unwrap_or_default();
        let params = match node.get("params").map(|params| &params.value) {
            Some(Tree::Map(entries)) => {
                entries.iter().map(|(key, value)| (key.name.clone(), key.place, value.clone())).collect()
            }
            _ => Vec::new(),
        };
        let place = node.get("scheme").map_or(node.place, |scheme| scheme.place);
        let flag = |key: &str| node.get(key).and_then(Node::as_bool).unwrap_or(false);
        SchemeEntry {
            request: SchemeRequest { text, params, place },
            label: string(node, "label"),
            rules: node.get("rules").map(rules),
            mix: MixOptions {
                pure: flag("pure"),
                leave_output: flag("leave_output"),
                output_type: self.ggml_type(node, "output_type"),
                embedding_type: self.ggml_type(node, "embedding_type"),
            },
            isolated: node.get("isolation").and_then(Node::as_str).map(|word| word == "process"),
        }
    }

    fn refuse_keys_of_targets(&mut self, node: &Node) {
        for key in ["among", "text", "context", "chunks", "agree", "verify"] {
            if let Some(value) = node.get(key) {
                let message = format!("`{key}` goes with `target`, and this is a scheme");
                self.mistakes.push(Mistake::new(value.place, message, "remove the key"));
            }
        }
    }

    /// One entry for each value of a target.
    fn targets(&mut self, node: &Node, target: &Node) -> Vec<TargetEntry> {
        for key in ["params", "pure", "leave_output", "output_type", "embedding_type", "isolation"] {
            if let Some(value) = node.get(key) {
                let message = format!("`{key}` goes with `scheme`, and this is a target");
                self.mistakes.push(Mistake::new(value.place, message, "remove the key"));
            }
        }
        let entries = match &target.value {
            Tree::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        let [(key, values)] = entries else {
            let message = format!("a target is one of {}", Target::KEYS.join(", "));
            self.mistakes.push(Mistake::new(
                target.place,
                message,
                "give one of them; a list of its values plans a file each",
            ));
            return Vec::new();
        };
        let Some(text) = node.get("text").and_then(Node::as_str).map(|text| self.folder.join(text)) else {
            self.mistakes.push(Mistake::new(
                node.place,
                "a target needs the key `text`",
                "add `text:` with a UTF-8 text to calibrate on",
            ));
            return Vec::new();
        };
        if !text.is_file() {
            let message = format!("there is no text at `{}`", text.display());
            let help = "give a UTF-8 text file; relative paths start at the configuration's folder";
            self.mistakes.push(Mistake::new(node.place, message, help));
        }
        let size =
            |key: &str| node.get(key).and_then(Node::as_int).and_then(|value| usize::try_from(value).ok());
        let flag = |key: &str, default: bool| node.get(key).and_then(Node::as_bool).unwrap_or(default);
        let label = string(node, "label");
        if label.is_some() && values.items().len() > 1 {
            let message = format!("one `label` cannot name {} plans", values.items().len());
            self.mistakes.push(Mistake::new(node.place, message, "remove `label`, or the list in `target`"));
        }
        let mut found = Vec::new();
        for value in values.items() {
            let text_of = match &value.value {
                Tree::Int(value) => value.to_string(),
                Tree::Float(value) => value.to_string(),
                Tree::Str(text) => text.clone(),
                _ => String::new(),
            };
            match Target::new(&key.name, &text_of) {
                Ok(target) => found.push(TargetEntry {
                    target,
                    among: node.get("among").map_or_else(|| vec![AMONG_GGML.to_owned()], words),
                    text: text.clone(),
                    context: size("context"),
                    chunks: size("chunks"),
                    agree: flag("agree", false),
                    verify: flag("verify", true),
                    label: label.clone().unwrap_or_else(|| target.label()),
                    rules: node.get("rules").map(rules),
                    place: node.place,
                }),
                Err(help) => {
                    let message = format!("`{}` cannot be `{text_of}`", key.name);
                    self.mistakes.push(Mistake::new(value.place, message, help));
                }
            }
        }
        found
    }

    fn ggml_type(&mut self, node: &Node, key: &str) -> Option<GgmlType> {
        let value = node.get(key)?;
        let word = value.as_str().unwrap_or_default();
        let found = GgmlType::from_name(word);
        if found.is_none() {
            let names: Vec<_> = GgmlType::ALL.iter().map(|ty| ty.name()).collect();
            let message = format!("`{key}` cannot be `{word}`");
            self.mistakes.push(Mistake::new(value.place, message, kbit_yaml::suggestion(word, &names)));
        }
        found
    }

    fn evaluation(&mut self, node: &Node) -> Evaluation {
        let text = self.folder.join(string(node, "text").unwrap_or_default());
        if !text.is_file() {
            let place = node.get("text").map_or(node.place, |text| text.place);
            let message = format!("there is no text at `{}`", text.display());
            self.mistakes.push(Mistake::new(
                place,
                message,
                "give a UTF-8 text file; relative paths start at the configuration's folder",
            ));
        }
        let stem =
            text.file_stem().map_or_else(|| "text".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let size =
            |key: &str| node.get(key).and_then(Node::as_int).and_then(|value| usize::try_from(value).ok());
        let baseline = self.baseline(node, &text);
        Evaluation {
            baseline,
            name: string(node, "name").unwrap_or(stem),
            metrics: node
                .get("metrics")
                .map_or_else(|| schema::METRICS.iter().map(|metric| (*metric).to_owned()).collect(), words),
            context: size("context"),
            stride: size("stride"),
            chunks: size("chunks"),
            modes: named(node, "mode"),
            caches: named(node, "cache_type"),
            sensitivity: node.get("sensitivity").map_or_else(Vec::new, all_named),
            place: node.place,
            text,
        }
    }

    /// The text of the baselines, which is another than `text`.
    fn baseline(&mut self, node: &Node, text: &Path) -> Option<PathBuf> {
        let Some(named) = node.get("baseline_text") else {
            let metrics =
                node.get("metrics").filter(|metrics| words(metrics).iter().any(|m| m == "information"));
            if let Some(metrics) = metrics {
                self.mistakes.push(Mistake::new(
                    metrics.place,
                    "`information` needs a text of baselines",
                    "add `baseline_text:` with another text of the same kind",
                ));
            }
            return None;
        };
        let path = self.folder.join(named.as_str().unwrap_or_default());
        if !path.is_file() {
            let message = format!("there is no text at `{}`", path.display());
            let help = "give a UTF-8 text file; relative paths start at the configuration's folder";
            self.mistakes.push(Mistake::new(named.place, message, help));
        } else if std::fs::read(&path).ok() == std::fs::read(text).ok() {
            self.mistakes.push(Mistake::new(
                named.place,
                "`baseline_text` is the measured text itself, of which counts know too much",
                "give another text of the same kind",
            ));
        }
        Some(path)
    }
}

fn string(node: &Node, key: &str) -> Option<String> {
    node.get(key).and_then(Node::as_str).map(str::to_owned)
}

fn words(node: &Node) -> Vec<String> {
    node.items().iter().filter_map(Node::as_str).map(str::to_owned).collect()
}

/// What the words of a key name, each once; the default where there are none.
fn named<T: FromStr + Default + PartialEq>(node: &Node, key: &str) -> Vec<T> {
    node.get(key).map_or_else(|| vec![T::default()], all_named)
}

/// What the words of a value name, each once.
fn all_named<T: FromStr + PartialEq>(node: &Node) -> Vec<T> {
    let mut found = Vec::new();
    for value in words(node).iter().filter_map(|word| word.parse().ok()) {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

fn many<'a>(root: &'a Node, key: &str) -> &'a [Node] {
    root.get(key).map_or(&[], Node::items)
}

fn rules(node: &Node) -> Vec<RuleEntry> {
    let rule = |item: &Node| {
        let pattern = Regex::new(item.get("match")?.as_str()?).ok()?;
        let scheme = item.get("scheme")?;
        let text = scheme.as_str()?.to_owned();
        let request = SchemeRequest { text, params: Vec::new(), place: scheme.place };
        Some(RuleEntry { pattern, scheme: (request.text != "f32").then_some(request) })
    };
    node.items().iter().filter_map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")), text)
    }

    #[test]
    fn resolves_paths_from_the_folder_of_the_file() {
        let config = parse("models: src\nschemes: [int]\n").unwrap();
        assert_eq!(config.models[0].path, Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        assert_eq!(config.models[0].name, "src");
    }

    #[test]
    fn refuses_a_model_that_is_not_there_at_its_place() {
        let error = parse("models:\n  - nowhere\nschemes: [int]\n").unwrap_err();
        assert_eq!(error.mistakes[0].place, Place { line: 2, column: 5 });
        assert!(error.to_string().contains("Cargo.toml:2:5: there is no model"), "{error}");
        assert!(error.to_string().contains("    2 |   - nowhere\n      |     ^"), "{error}");
    }

    #[test]
    fn refuses_two_models_of_one_name() {
        let error = parse("models: [src, src]\nschemes: [int]\n").unwrap_err();
        assert!(error.mistakes[0].message.contains("two models"), "{error}");
    }

    #[test]
    fn modes_and_cache_types_are_named_one_by_one_or_in_a_list() {
        let read = |keys: &str| {
            let text = format!("models: src\nschemes: [int]\nevaluate: {{text: Cargo.toml{keys}}}\n");
            let config = parse(&text).unwrap();
            let evaluation = &config.evaluations[0];
            let caches: Vec<String> = evaluation.caches.iter().map(ToString::to_string).collect();
            (evaluation.modes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), caches.join(" "))
        };
        let text = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(read(""), text("f32", "f32"));
        assert_eq!(read(", mode: int8, cache_type: q4"), text("int8", "q4"));
        let lists = ", mode: [f32, 'act:4', f32], cache_type: [q8, 'q8,f16', 'q4,q4']";
        let error = parse(&format!("models: src\nschemes: [int]\nevaluate: {{text: Cargo.toml{lists}}}\n"));
        assert!(error.is_err(), "two equal types are one word");
        assert_eq!(read(&lists.replace(", 'q4,q4'", "")), text("f32 act:4", "q8 q8,f16"));
    }

    #[test]
    fn an_evaluation_is_a_text_or_a_task() {
        for (evaluation, told) in [
            ("{name: a}", "needs `text` or `task`"),
            ("{text: Cargo.toml, task: t.yaml}", "cannot stand together"),
            ("{text: Cargo.toml, limit: 3}", "a text has no `limit`"),
            ("{task: nowhere.yaml, context: 3}", "a task has no `context`"),
            ("{task: nowhere.yaml, sensitivity: layers}", "a task has no `sensitivity`"),
            ("{task: nowhere.yaml}", "nowhere.yaml"),
        ] {
            let error = parse(&format!("models: src\nschemes: [int]\nevaluate: {evaluation}\n")).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
            assert!(error.mistakes.iter().all(|mistake| mistake.place.line == 3), "{error}");
        }
    }

    #[test]
    fn targets_are_planned_files() {
        let read = |scheme: &str| parse(&format!("models: src\nschemes: {scheme}\n"));
        let config = read("[int, {target: {bpw: [3.5, 4]}, text: Cargo.toml}]").unwrap();
        let labels: Vec<&str> = config.targets.iter().map(|target| target.label.as_str()).collect();
        assert_eq!((config.schemes.len(), labels), (1, vec!["plan-3.5bpw", "plan-4bpw"]));
        assert_eq!(config.targets[0].among, ["ggml"]);
        for (scheme, told) in [
            ("{target: {bpw: 4}}", "needs the key `text`"),
            ("{target: {bpw: 4, size: 3GiB}, text: Cargo.toml}", "a target is one of"),
            ("{target: {bpw: none}, text: Cargo.toml}", "`bpw` cannot be `none`"),
            ("{target: {bpw: 4}, text: nowhere.txt}", "there is no text"),
            ("{target: {bpw: 4}, text: Cargo.toml, scheme: int}", "cannot stand together"),
            ("{target: {bpw: 4}, text: Cargo.toml, pure: true}", "`pure` goes with `scheme`"),
            ("{target: {bpw: [4, 5]}, text: Cargo.toml, label: a}", "one `label`"),
            ("{target: {bpw: [4, 4]}, text: Cargo.toml}", "two plans are named"),
            ("{label: a}", "needs the key `scheme` or `target`"),
            ("{scheme: int, text: Cargo.toml}", "`text` goes with `target`"),
        ] {
            let error = read(scheme).unwrap_err();
            assert!(error.to_string().contains(told), "{scheme}: {error}");
        }
    }

    #[test]
    fn refuses_a_name_that_leaves_the_output_folder() {
        let error = parse("models: {path: src, name: ../up}\nschemes: [int]\n").unwrap_err();
        assert!(error.mistakes[0].message.contains("cannot be named"), "{error}");
    }
}
