//! The model card: what the YAML at the head of README.md says of a model.
//!
//! Follows llama.cpp's `gguf-py/gguf/metadata.py`, `apply_metadata_heuristic`.

use super::general::{name_parts, title};
use kbit_formats::gguf::{Array, Metadata, Value};
use serde_json::{Map, Value as Json};
use std::path::Path;

/// Largest README that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// Most base models and data sets that are carried over.
const MAX_ENTRIES: usize = 1 << 10;

/// What the head of README.md says; empty where there is none, or none that is YAML.
#[derive(Debug, Default)]
pub(super) struct Card(Map<String, Json>);

impl Card {
    /// Reads README.md of `folder`. A card that is not YAML says nothing, since it does not bear on the weights.
    pub(super) fn read(folder: &Path) -> Self {
        let path = folder.join("README.md");
        if !std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= MAX_FILE) {
            return Self::default();
        }
        std::fs::read_to_string(path).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        if lines.next() != Some("---") {
            return Self::default();
        }
        let head: Vec<&str> = lines.take_while(|line| *line != "---").collect();
        let head = head.join("\n").replace('\t', "  ");
        match serde_yaml::from_str::<Json>(&head) {
            Ok(Json::Object(card)) => Self(card),
            _ => Self::default(),
        }
    }

    /// The text under the first of `keys` that is there.
    pub(super) fn text(&self, keys: &[&str]) -> Option<String> {
        match keys.iter().find_map(|key| self.0.get(*key)).filter(|value| !value.is_null())? {
            Json::String(text) => Some(text.clone()),
            Json::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Texts under all of `keys`, each a text or a list of them.
    fn texts(&self, keys: &[&str]) -> Vec<String> {
        let text = |value: &Json| value.as_str().map(str::to_owned);
        keys.iter()
            .filter_map(|key| self.0.get(*key))
            .flat_map(|value| match value {
                Json::Array(items) => items.iter().filter_map(text).collect(),
                // YAML 1.1 takes the code of Norwegian for false.
                value => text(value).into_iter().collect::<Vec<_>>(),
            })
            .collect()
    }

    /// Writes the licence.
    pub(super) fn write_license(&self, out: &mut Metadata) {
        let licenses = self.texts(&["license"]);
        if !licenses.is_empty() {
            out.insert("general.license", Value::String(licenses.join(",")));
        }
        for (key, own) in [("name", "license_name"), ("link", "license_link")] {
            if let Some(text) = self.text(&[own]) {
                out.insert(format!("general.license.{key}"), Value::String(text));
            }
        }
    }

    /// Writes where the model comes from: addresses, base models, data sets, tags, languages.
    pub(super) fn write_sources(&self, parameters: u64, out: &mut Metadata) {
        for key in ["url", "doi", "uuid", "repo_url"] {
            let own = format!("model_{key}");
            if let Some(text) = self.text(&[key, &own]) {
                out.insert(format!("general.source.{key}"), Value::String(text));
            }
        }
        self.write_origins(
            "base_model",
            &["base_model", "base_models", "base_model_sources"],
            parameters,
            out,
        );
        self.write_origins("dataset", &["datasets", "dataset", "dataset_sources"], parameters, out);
        for (key, own) in [("tags", &["tags", "pipeline_tag"]), ("languages", &["languages", "language"])] {
            let texts = self.texts(own);
            if !texts.is_empty() {
                out.insert(format!("general.{key}"), Value::Array(Array::String(texts)));
            }
        }
    }

    /// Writes models or data sets that the model was made from.
    fn write_origins(&self, kind: &str, keys: &[&str], parameters: u64, out: &mut Metadata) {
        let Some(value) = keys.iter().find_map(|key| self.0.get(*key)) else { return };
        let ids = match value {
            Json::Array(ids) => ids.as_slice(),
            value => std::slice::from_ref(value),
        };
        let origins: Vec<Map<String, Json>> =
            ids.iter().take(MAX_ENTRIES).filter_map(|id| origin(id, parameters)).collect();
        let count = u32::try_from(origins.len()).unwrap_or(u32::MAX);
        out.insert(format!("general.{kind}.count"), Value::U32(count));
        for (index, origin) in origins.iter().enumerate() {
            for key in
                ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"]
            {
                if let Some(Json::String(text)) = origin.get(key) {
                    out.insert(format!("general.{kind}.{index}.{key}"), Value::String(text.clone()));
                }
            }
        }
    }
}

/// What the name or address of a base model or data set says.
fn origin(id: &Json, parameters: u64) -> Option<Map<String, Json>> {
    let id = match id {
        Json::String(id) => id.as_str(),
        Json::Object(own) => return Some(own.clone()),
        _ => return None,
    };
    let mut out = Map::new();
    let is_address = ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme));
    let id = if is_address {
        out.insert("repo_url".to_owned(), id.into());
        let hub = ["https://huggingface.co/", "http://huggingface.co/"];
        let own = hub.iter().find_map(|hub| id.strip_prefix(hub));
        match own.filter(|id| id.matches('/').count() == 1 && !id.starts_with('/') && !id.ends_with('/')) {
            Some(id) => id,
            None => return Some(out),
        }
    } else {
        id
    };
    let parts = name_parts(id, parameters);
    if !is_address && let Some(organization) = &parts.organization {
        let url = format!("https://huggingface.co/{organization}/{}", parts.full);
        out.insert("repo_url".to_owned(), url.into());
    }
    out.insert("name".to_owned(), title(&parts.full).into());
    if let Some(organization) = parts.organization {
        out.insert("organization".to_owned(), title(&organization).into());
    }
    if let Some(version) = parts.version {
        out.insert("version".to_owned(), version.into());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_say_what_the_converter_reads() {
        let text = "---\nlicense: apache-2.0\nlanguage:\n- en\n- fr\ntags: [chat]\npipeline_tag: text-generation\nbase_model: Qwen/Qwen2.5-7B\n\
                    datasets:\n- https://huggingface.co/org/some-data\n- plain\n---\n# Title\nlicense: mit\n";
        let card = Card::parse(text);
        let mut out = Metadata::new();
        card.write_license(&mut out);
        card.write_sources(7_000_000_000, &mut out);
        let found: Vec<(String, String)> =
            out.iter().map(|(key, value)| (key.to_owned(), value.to_json().to_string())).collect();
        let wanted = [
            ("general.license", "\"apache-2.0\""),
            ("general.base_model.count", "1"),
            ("general.base_model.0.name", "\"Qwen2.5 7B\""),
            ("general.base_model.0.organization", "\"Qwen\""),
            ("general.base_model.0.repo_url", "\"https://huggingface.co/Qwen/Qwen2.5-7B\""),
            ("general.dataset.count", "2"),
            ("general.dataset.0.name", "\"Some Data\""),
            ("general.dataset.0.organization", "\"Org\""),
            ("general.dataset.0.repo_url", "\"https://huggingface.co/org/some-data\""),
            ("general.dataset.1.name", "\"Plain\""),
            ("general.tags", "[\"chat\",\"text-generation\"]"),
            ("general.languages", "[\"en\",\"fr\"]"),
        ];
        let wanted: Vec<_> =
            wanted.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_readme_without_a_head_or_with_a_damaged_one_says_nothing() {
        for text in ["", "# Title\n---\nlicense: mit\n---\n", "---\n- a\n- b\n---\n", "---\n{[\n---\n"] {
            assert!(Card::parse(text).0.is_empty(), "{text}");
        }
    }
}
