//! The plan file: which scheme each matrix gets, what is expected of the file, and what that was found with.

use super::space::plan_recipe;
use crate::config::ConfigError;
use crate::error::PipelineError;
use crate::recipe::{Chosen, Recipe, scheme_of_rule};
use kbit_calibrate::Importance;
use kbit_host::{Isolation, Registry};
use kbit_laws::additive::Expected;
use kbit_models::Conversion;
use kbit_yaml::{Kind, Mistake, Node, Object, Tree, check, optional, required};
use regex::Regex;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Version of the file's form.
const VERSION: i64 = 1;
/// What keeps a tensor as f32.
pub(super) const AS_F32: &str = "f32";

static MODEL: Object = Object {
    name: "model of a plan",
    doc: "The model that was planned for.",
    keys: &[
        required("path", Kind::Text, "Where it was."),
        required("sha256", Kind::Text, "Hash of its content."),
    ],
};
static TEXT: Object = Object {
    name: "text of a plan",
    doc: "The text that sensitivities were measured on.",
    keys: &[
        required("path", Kind::Text, "Where it was."),
        required("sha256", Kind::Text, "Hash of its content."),
        required("context", Kind::Int { min: 1, max: i64::MAX }, "Tokens of a window."),
        required("windows", Kind::Int { min: 1, max: i64::MAX }, "Windows."),
    ],
};
const NUMBER: Kind = Kind::Scalar("a number");
static EXPECTED: Object = Object {
    name: "expectation of a plan",
    doc: "What the file is expected to be.",
    keys: &[
        required("bytes", Kind::Int { min: 0, max: i64::MAX }, "Bytes of the file: exact."),
        required("bits_per_weight", NUMBER, "Bits a weight of all tensors: exact."),
        required("kl_divergence", NUMBER, "Mean KL divergence, nats."),
        required("kl_divergence_low", NUMBER, "Lower end of its interval."),
        required("kl_divergence_high", NUMBER, "Upper end of its interval."),
    ],
};
static MEASURED: Object = Object {
    name: "measurement of a plan",
    doc: "The file's divergence on the text of the plan.",
    keys: &[
        required("kl_divergence", NUMBER, "Mean KL divergence, nats."),
        required("stderr", NUMBER, "Its standard error."),
    ],
};
static SCHEME: Object = Object {
    name: "scheme of a plan",
    doc: "A scheme that tensors refer to.",
    keys: &[
        required("scheme", Kind::Text, "As `--map` takes it."),
        required("version", Kind::Text, "Version of its plugin."),
        required("sha256", Kind::Text, "Hash of its plugin."),
    ],
};
static PLAN: Object = Object {
    name: "plan",
    doc: "Which scheme each matrix of a model gets.",
    keys: &[
        required("kbit_plan", Kind::Int { min: VERSION, max: VERSION }, "Version of this form."),
        required("target", Kind::Text, "What was to be reached."),
        required("made_of", Kind::Text, "Where the choice came from."),
        required("model", Kind::Object(&MODEL), "The model."),
        required("text", Kind::Object(&TEXT), "The text of calibration."),
        optional("importance", Kind::Text, "none", "SHA-256 of the importance matrix."),
        required("provenance", Kind::Bool, "Whether the file carries hashes and its plan."),
        required("expected", Kind::Object(&EXPECTED), "What is expected."),
        optional(
            "measured",
            Kind::Object(&MEASURED),
            "not measured",
            "What was measured on the text of the plan.",
        ),
        required("schemes", Kind::Many(&Kind::Object(&SCHEME)), "Schemes that the tensors have."),
        required("tensors", Kind::Parameters, "Scheme of each matrix by its GGUF name; `f32` keeps it."),
    ],
};

/// The model of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedModel {
    /// Where it was.
    pub path: PathBuf,
    /// Hash of its content.
    pub sha256: String,
}

/// The text that a plan was calibrated on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedText {
    /// Where it was.
    pub path: PathBuf,
    /// Hash of its content.
    pub sha256: String,
    /// Tokens of a window.
    pub context: u64,
    /// Windows.
    pub windows: u64,
}

/// What a planned file measured on the text of its plan.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PlannedMeasurement {
    /// Mean KL divergence, nats.
    pub kl_divergence: f64,
    /// Its standard error, of windows where there are several.
    pub stderr: f64,
}

/// A scheme of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedScheme {
    /// As `--map` takes it.
    pub scheme: String,
    /// Version of its plugin.
    pub version: String,
    /// SHA-256 of its plugin.
    pub sha256: String,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanFile {
    /// What was to be reached.
    pub target: String,
    /// Where the choice came from: `knapsack`, or the name of a mix.
    pub made_of: String,
    /// The model.
    pub model: PlannedModel,
    /// The text of calibration.
    pub text: PlannedText,
    /// SHA-256 of the importance matrix, where there is one.
    pub importance: Option<String>,
    /// Whether the file carries hashes and its plan.
    pub provenance: bool,
    /// Bytes of the file: exact.
    pub bytes: u64,
    /// Bits a weight of all tensors: exact.
    pub bits_per_weight: f64,
    /// Mean KL divergence that is expected on another text of this kind and length, nats.
    pub kl_divergence: Expected,
    /// What was measured on the text of the plan.
    pub measured: Option<PlannedMeasurement>,
    /// Schemes of the tensors.
    pub schemes: Vec<PlannedScheme>,
    /// Tensors in the order of the file, each with its scheme.
    pub tensors: Vec<(String, String)>,
}

impl PlanFile {
    /// The file's text.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut text = String::from(
            "# Made by `kbit plan`; `kbit convert MODEL OUT --plan THIS` writes the file that it plans.\n",
        );
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let _ = writeln!(text, "kbit_plan: {VERSION}");
        let _ = writeln!(text, "target: {}\nmade_of: {}", quoted(&self.target), quoted(&self.made_of));
        let PlannedModel { path: model, sha256 } = &self.model;
        let _ = writeln!(text, "model:\n  path: {}\n  sha256: {}", path(model), quoted(sha256));
        let PlannedText { path: file, sha256, context, windows } = &self.text;
        let _ = writeln!(text, "text:\n  path: {}\n  sha256: {}", path(file), quoted(sha256));
        let _ = writeln!(text, "  context: {context}\n  windows: {windows}");
        if let Some(importance) = &self.importance {
            let _ = writeln!(text, "importance: {}", quoted(importance));
        }
        let _ = writeln!(text, "provenance: {}", self.provenance);
        let Expected { value, low, high } = self.kl_divergence;
        let _ = writeln!(
            text,
            "expected:\n  bytes: {}\n  bits_per_weight: {:?}\n  kl_divergence: {value:?}\n  kl_divergence_low: {low:?}\n  \
             kl_divergence_high: {high:?}",
            self.bytes, self.bits_per_weight
        );
        if let Some(PlannedMeasurement { kl_divergence, stderr }) = self.measured {
            let _ = writeln!(text, "measured:\n  kl_divergence: {kl_divergence:?}\n  stderr: {stderr:?}");
        }
        text.push_str("schemes:\n");
        for PlannedScheme { scheme, version, sha256 } in &self.schemes {
            let _ = writeln!(
                text,
                "  - scheme: {}\n    version: {}\n    sha256: {}",
                quoted(scheme),
                quoted(version),
                quoted(sha256)
            );
        }
        text.push_str("tensors:\n");
        for (tensor, scheme) in &self.tensors {
            let _ = writeln!(text, "  {}: {}", quoted(tensor), quoted(scheme));
        }
        text
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// Every mistake with its place.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = kbit_yaml::read_text(file, "the plan")?;
        Self::parse(file, &text)
    }

    /// Reads the plan `text`, which stands in `file`.
    ///
    /// # Errors
    /// Every mistake with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let root = Node::parse(text).map_err(|(place, message)| {
            ConfigError::new(
                file,
                text,
                vec![Mistake::new(place, message, "mend the YAML at this place, or plan again")],
            )
        })?;
        let mut mistakes = Vec::new();
        check(&root, &PLAN, &mut mistakes);
        if mistakes.is_empty() {
            check_schemes(&root, &mut mistakes);
        }
        if !mistakes.is_empty() {
            return Err(ConfigError::new(file, text, mistakes));
        }
        let word = |node: Option<&Node>, key: &str| {
            node.and_then(|node| node.get(key)).and_then(Node::as_str).unwrap_or_default().to_owned()
        };
        let whole = |node: Option<&Node>, key: &str| {
            let value = node.and_then(|node| node.get(key)).and_then(Node::as_int);
            value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
        };
        let number = |node: Option<&Node>, key: &str| {
            node.and_then(|node| node.get(key)).and_then(float).unwrap_or(f64::NAN)
        };
        let (model, read, expected) = (root.get("model"), root.get("text"), root.get("expected"));
        let tensors = match root.get("tensors").map(|node| &node.value) {
            Some(Tree::Map(entries)) => entries
                .iter()
                .map(|(key, node)| (key.name.clone(), node.as_str().unwrap_or_default().to_owned()))
                .collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            target: word(Some(&root), "target"),
            made_of: word(Some(&root), "made_of"),
            model: PlannedModel { path: word(model, "path").into(), sha256: word(model, "sha256") },
            text: PlannedText {
                path: word(read, "path").into(),
                sha256: word(read, "sha256"),
                context: whole(read, "context"),
                windows: whole(read, "windows"),
            },
            importance: root.get("importance").and_then(Node::as_str).map(str::to_owned),
            provenance: root.get("provenance").and_then(Node::as_bool).unwrap_or(true),
            bytes: whole(expected, "bytes"),
            bits_per_weight: number(expected, "bits_per_weight"),
            kl_divergence: Expected {
                value: number(expected, "kl_divergence"),
                low: number(expected, "kl_divergence_low"),
                high: number(expected, "kl_divergence_high"),
            },
            measured: root.get("measured").map(|node| PlannedMeasurement {
                kl_divergence: number(Some(node), "kl_divergence"),
                stderr: number(Some(node), "stderr"),
            }),
            schemes: root
                .get("schemes")
                .map_or(&[][..], Node::items)
                .iter()
                .map(|node| PlannedScheme {
                    scheme: word(Some(node), "scheme"),
                    version: word(Some(node), "version"),
                    sha256: word(Some(node), "sha256"),
                })
                .collect(),
            tensors,
        })
    }

    /// The recipe that makes the planned file of `conversion`, and what differs from the plan without standing in its way: other
    /// versions of plugins.
    ///
    /// # Errors
    /// Tensors that the model has not or the plan has not, unknown schemes.
    pub fn recipe(
        &self,
        registry: &Registry,
        conversion: &Conversion,
    ) -> Result<(Recipe, Vec<String>), PipelineError> {
        let known = |name: &str| conversion.tensors.iter().any(|tensor| tensor.name == name);
        if let Some((missing, _)) = self.tensors.iter().find(|(name, _)| !known(name)) {
            return Err(self.other_model(&format!("the model has no tensor {missing}")));
        }
        let mut warnings = Vec::new();
        let mut chosen: Vec<(&str, Option<Chosen>)> = vec![(AS_F32, None)];
        for planned in &self.schemes {
            let (spec, scheme) = scheme_of_rule(registry, &planned.scheme)?;
            let plugin = scheme.plugin();
            if plugin.sha256() != planned.sha256 {
                warnings.push(format!(
                    "scheme {} was planned with version {} of its plugin and is written with {}: sizes hold, the divergence may differ",
                    planned.scheme,
                    planned.version,
                    plugin.version()
                ));
            }
            let params = scheme.resolve(&spec.params)?;
            chosen.push((&planned.scheme, Some(Chosen { scheme, params, isolation: Isolation::InProcess })));
        }
        let mut rules = Vec::with_capacity(self.tensors.len());
        for (tensor, scheme) in &self.tensors {
            // Every scheme of a tensor is listed: the reader has seen to it.
            let found =
                chosen.iter().find(|(known, _)| known == scheme).and_then(|(_, chosen)| chosen.clone());
            rules.push((exactly(tensor)?, found));
        }
        let label =
            self.target.parse::<super::Target>().map_or_else(|_| "plan".to_owned(), super::Target::label);
        Ok((plan_recipe(rules, label, &self.made_of)?, warnings))
    }

    /// Refuses to be carried out with another model or another importance matrix.
    ///
    /// # Errors
    /// What is another.
    pub fn check_inputs(&self, model: &str, importance: Option<&Importance>) -> Result<(), PipelineError> {
        if model != self.model.sha256 {
            return Err(self.other_model(&format!(
                "the content of the model has the hash {model}, and the plan is for {}",
                self.model.sha256
            )));
        }
        match (&self.importance, importance.map(|importance| importance.matrix.sha256())) {
            (None, None) => Ok(()),
            (Some(planned), Some(given)) if planned == given => Ok(()),
            (Some(planned), _) => Err(PipelineError::Plan {
                message: format!(
                    "the plan was made with the importance matrix of SHA-256 {planned}; give that file by --imatrix, or plan again"
                ),
            }),
            (None, Some(_)) => Err(PipelineError::Plan {
                message: "the plan was made without an importance matrix; leave --imatrix out, or plan again with it"
                    .to_owned(),
            }),
        }
    }

    fn other_model(&self, what: &str) -> PipelineError {
        PipelineError::Plan {
            message: format!(
                "{what}: the plan was made for another model ({}); plan again with `kbit plan`",
                self.model.path.display()
            ),
        }
    }
}

/// A pattern that only `name` matches.
pub(super) fn exactly(name: &str) -> Result<Regex, PipelineError> {
    Regex::new(&format!("^{}$", regex::escape(name))).map_err(|error| PipelineError::Plan {
        message: format!("the tensor name {name} cannot be matched: {error}; plan again with `kbit plan`"),
    })
}

/// Every tensor's scheme must be listed, and be a word.
fn check_schemes(root: &Node, mistakes: &mut Vec<Mistake>) {
    let listed: Vec<&str> = root
        .get("schemes")
        .map_or(&[][..], Node::items)
        .iter()
        .filter_map(|node| node.get("scheme").and_then(Node::as_str))
        .chain([AS_F32])
        .collect();
    let Some(Tree::Map(entries)) = root.get("tensors").map(|node| &node.value) else { return };
    for (key, node) in entries {
        let known = node.as_str().is_some_and(|scheme| listed.contains(&scheme));
        if !known {
            let message = format!("the scheme of `{}` does not stand under `schemes`", key.name);
            mistakes.push(Mistake::new(node.place, message, "list it there, or plan again"));
        }
    }
}

fn float(node: &Node) -> Option<f64> {
    match node.value {
        Tree::Float(value) => Some(value),
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        Tree::Int(value) => Some(value as f64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> PlanFile {
        PlanFile {
            target: "bpw=4.5".to_owned(),
            made_of: "knapsack".to_owned(),
            model: PlannedModel { path: "a \"folder\"".into(), sha256: "ab".to_owned() },
            text: PlannedText { path: "t.txt".into(), sha256: "cd".to_owned(), context: 256, windows: 4 },
            importance: Some("ef".to_owned()),
            provenance: true,
            bytes: 123_456,
            bits_per_weight: 4.5,
            kl_divergence: Expected { value: 1e-5, low: 5.5e-6, high: 0.25 },
            measured: Some(PlannedMeasurement { kl_divergence: 3.0, stderr: 1e-7 }),
            schemes: vec![PlannedScheme {
                scheme: "ggml:q4_k".to_owned(),
                version: "1.0".to_owned(),
                sha256: "01".to_owned(),
            }],
            tensors: vec![
                ("blk.0.attn_q.weight".to_owned(), "ggml:q4_k".to_owned()),
                ("output.weight".to_owned(), "f32".to_owned()),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = plan().to_yaml();
        assert_eq!(PlanFile::parse(Path::new("p.yaml"), &text).unwrap(), plan(), "{text}");
        let bare = PlanFile { importance: None, measured: None, ..plan() };
        assert_eq!(PlanFile::parse(Path::new("p.yaml"), &bare.to_yaml()).unwrap(), bare);
    }

    #[test]
    fn mistakes_are_told_at_their_place() {
        let text = plan().to_yaml();
        for (from, to, told) in [
            ("kbit_plan: 1", "kbit_plan: 2", "kbit_plan"),
            ("target:", "targets:", "did you mean `target`"),
            ("\"output.weight\": \"f32\"", "\"output.weight\": \"q9\"", "does not stand under `schemes`"),
            ("bytes: 123456", "bytes: many", "whole number"),
        ] {
            let error = PlanFile::parse(Path::new("p.yaml"), &text.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn names_are_matched_as_they_are() {
        let matches = |name: &str, other: &str| exactly(name).unwrap().is_match(other);
        assert!(matches("blk.1.a+b", "blk.1.a+b") && !matches("blk.1.a", "blk.11.a"));
        assert!(!matches("blk.1", "blkx1"));
    }
}
