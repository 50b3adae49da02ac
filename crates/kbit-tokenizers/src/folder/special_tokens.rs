//! Special tokens of a Hugging Face folder: which ids have which meaning, which are added to text, the chat template.
//!
//! Follows gguf-py's `SpecialVocab`, in whose order the metadata is written: ids by the names in tokenizer_config.json,
//! looked up among the added tokens of tokenizer.json, then those of config.json; flags by the post-processor, then by
//! tokenizer_config.json.

use super::Folder;
use super::tokenizer_json::TokenizerJson;
use crate::TokenizerError;
use kbit_formats::gguf::{Array, Metadata, Value};
use serde_json::{Map, Value as Json};

/// Names in the files, and the part of the GGUF key that stands for them.
const KINDS: &[(&str, &str)] = &[
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"),
    ("pad", "padding"),
    ("cls", ""),
    ("mask", "mask"),
];

#[derive(Default)]
struct Found {
    /// Kind and id, in the order in which they were found.
    ids: Vec<(&'static str, u64)>,
    /// Kind and whether it is added, in the order in which they were found.
    adds: Vec<(&'static str, bool)>,
    /// Kinds that are looked for.
    kinds: Vec<&'static str>,
}

impl Found {
    fn id(&mut self, kind: &'static str, id: u64, vocab: u64) {
        if id < vocab && self.ids.iter().all(|(known, _)| *known != kind) {
            self.ids.push((kind, id));
        }
    }

    fn adds(&mut self, kind: &'static str, value: bool) {
        match self.adds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, old)) => *old = value,
            None => self.adds.push((kind, value)),
        }
    }
}

/// Writes ids, flags and chat templates; `vocab` is the number of tokens.
pub(super) fn write(
    folder: &Folder,
    json: Option<&TokenizerJson>,
    vocab: u64,
    out: &mut Metadata,
) -> Result<(), TokenizerError> {
    let mut found = Found { kinds: KINDS.iter().map(|(kind, _)| *kind).collect(), ..Found::default() };
    let mut config = folder.tokenizer_config.clone();
    if let Some(json) = json {
        apply_post_processor(&json.post_processor, &mut config, &mut found);
    }
    if let Some(config) = &config {
        for kind in found.kinds.clone() {
            if let Some(Json::Bool(add)) = config.get(&format!("add_{kind}_token"))
                && found.adds.iter().all(|(known, _)| *known != kind)
            {
                found.adds(kind, *add);
            }
            let entry = config.get(&format!("{kind}_token"));
            let Some(text) = entry.and_then(token_text) else { continue };
            let added = json.and_then(|json| json.added_tokens.iter().find(|token| token.content == text));
            if let Some(added) = added {
                found.id(kind, added.id, vocab);
            }
        }
    }
    for kind in found.kinds.clone() {
        let key = format!("{kind}_token_id");
        let id = folder
            .config
            .get(&key)
            .filter(|id| !id.is_null())
            .or_else(|| folder.config.get("text_config")?.get(&key));
        if let Some(id) = id.and_then(Json::as_u64) {
            found.id(kind, id, vocab);
        }
    }
    for (kind, id) in &found.ids {
        if let (Some(key), Ok(id)) = (key(kind), u32::try_from(*id)) {
            out.insert(format!("tokenizer.ggml.{key}_token_id"), Value::U32(id));
        }
    }
    for (kind, add) in &found.adds {
        if matches!(*kind, "bos" | "eos" | "sep") {
            out.insert(format!("tokenizer.ggml.add_{kind}_token"), Value::Bool(*add));
        }
    }
    if let Some(config) = &config {
        write_chat_templates(folder, config, out)?;
    }
    if let Some(json) = json {
        write_normalizer(&json.normalizer, out);
    }
    Ok(())
}

/// Whether a tokenizer puts a BOS token before text; `None` where the metadata will say.
pub(super) fn adds_bos(folder: &Folder, json: &TokenizerJson) -> Option<bool> {
    let mut found = Found::default();
    apply_post_processor(&json.post_processor, &mut folder.tokenizer_config.clone(), &mut found);
    let says = found.adds.iter().any(|(kind, _)| *kind == "bos")
        || folder.setting("add_bos_token").is_some_and(Json::is_boolean);
    (!says).then_some(false)
}

/// The ids that the post-processor puts before and after a text; `None` where kbit does not know.
pub(super) fn around_text(post: &Json) -> Option<(Vec<u32>, Vec<u32>)> {
    let id = |id: &Json| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let single = std::slice::from_ref(post);
    let processors = match post["processors"].as_array() {
        Some(processors) => processors.as_slice(),
        None if post.is_null() => &[],
        None => single,
    };
    for processor in processors {
        match processor["type"].as_str() {
            Some("ByteLevel") => {}
            Some("RobertaProcessing" | "BertProcessing") => {
                before.insert(0, id(&processor["cls"][1])?);
                after.push(id(&processor["sep"][1])?);
            }
            Some("TemplateProcessing") => {
                let mut in_text = false;
                for node in processor["single"].as_array()? {
                    let Some(name) = node["SpecialToken"]["id"].as_str() else {
                        in_text = true;
                        continue;
                    };
                    let ids = processor["special_tokens"][name]["ids"].as_array()?;
                    let ids: Vec<u32> = ids.iter().map(id).collect::<Option<_>>()?;
                    if in_text { after.extend(ids) } else { before.extend(ids) }
                }
            }
            _ => return None,
        }
    }
    Some((before, after))
}

/// The GGUF name of a kind, where it has one.
fn key(kind: &str) -> Option<&'static str> {
    match kind {
        "eot" => Some("eot"),
        "eom" => Some("eom"),
        _ => {
            KINDS.iter().find(|(known, _)| *known == kind).map(|(_, key)| *key).filter(|key| !key.is_empty())
        }
    }
}

pub(super) fn token_text(entry: &Json) -> Option<&str> {
    entry.as_str().or_else(|| entry.get("content")?.as_str())
}

/// What the post-processor says of tokens that are added.
fn apply_post_processor(post: &Json, config: &mut Option<Map<String, Json>>, found: &mut Found) {
    let named = |config: &Option<Map<String, Json>>, key: &str| -> Option<Json> {
        config.as_ref()?.get(key).filter(|value| is_truthy(value)).cloned()
    };
    let mut bos = named(config, "bos_token");
    let mut cls = named(config, "cls_token");
    let mut eos = named(config, "eos_token");
    let mut sep = named(config, "sep_token");
    let set = |config: &mut Option<Map<String, Json>>, key: &str, value: &Option<Json>| {
        if let (Some(config), Some(value)) = (config, value) {
            config.insert(key.to_owned(), value.clone());
        }
    };
    if config.is_some() {
        if bos.is_none() && cls.is_some() {
            bos.clone_from(&cls);
            set(config, "bos_token", &bos);
        }
        if eos.is_none() && sep.is_some() {
            eos.clone_from(&sep);
            set(config, "eos_token", &eos);
        }
    }
    let single = [post.clone()];
    let processors = match post["processors"].as_array() {
        Some(processors) => processors.as_slice(),
        None if post.is_object() => &single,
        None => &[],
    };
    for processor in processors {
        match processor["type"].as_str() {
            Some("ByteLevel") => {
                for kind in ["bos", "eos"] {
                    if found.adds.iter().all(|(known, _)| *known != kind) {
                        found.adds(kind, false);
                    }
                }
            }
            Some("RobertaProcessing") => {
                for kind in ["bos", "eos", "sep"] {
                    found.adds(kind, true);
                }
                let first = |key: &str, or: &Option<Json>| {
                    processor.get(key).and_then(|pair| pair.get(0)).cloned().or_else(|| or.clone())
                };
                if cls.is_none() {
                    cls = first("cls", &bos);
                    set(config, "cls_token", &cls);
                }
                if sep.is_none() {
                    sep = first("sep", &eos);
                    set(config, "sep_token", &sep);
                }
            }
            Some("TemplateProcessing") => {
                let special = |node: Option<&Json>| -> Option<Json> {
                    node?.get("SpecialToken")?.get("id").filter(|id| is_truthy(id)).cloned()
                };
                let no_nodes = Vec::new();
                let template = processor["single"].as_array().unwrap_or(&no_nodes);
                let several = template.len() > 1;
                let first = special(template.first()).filter(|_| several);
                let last = special(template.last()).filter(|_| several);
                if first.is_some() {
                    if config.is_none() {
                        bos.clone_from(&first);
                    } else if first != bos && first != cls {
                        if bos.is_none() {
                            bos.clone_from(&first);
                            set(config, "bos_token", &bos);
                        }
                        if cls.is_none() {
                            cls.clone_from(&first);
                            set(config, "cls_token", &cls);
                        }
                    }
                    found.adds("bos", first == bos || first == cls);
                }
                if last.is_some() {
                    if config.is_none() {
                        eos.clone_from(&last);
                    } else if last != eos {
                        for kind in ["eot", "eom"] {
                            if !found.kinds.contains(&kind) {
                                found.kinds.push(kind);
                                set(config, &format!("{kind}_token"), &eos);
                                break;
                            }
                        }
                        eos.clone_from(&last);
                        set(config, "eos_token", &eos);
                    }
                    found.adds("eos", last == eos);
                }
                let pair = processor["pair"].as_array().unwrap_or(&no_nodes).as_slice();
                let begins = first.is_some() && special(pair.first()) == first;
                let ends = last.is_some() && special(pair.last()) == last;
                let inner = pair
                    .get(usize::from(begins)..pair.len().saturating_sub(usize::from(ends)))
                    .unwrap_or(&[]);
                let sequence = |node: Option<&Json>| {
                    node.and_then(|node| node["Sequence"]["id"].as_str()).map(str::to_owned)
                };
                let is_pair = sequence(inner.first()).as_deref() == Some("A")
                    && sequence(inner.last()).as_deref() == Some("B");
                if let Some(between) = inner
                    .get(1..inner.len().saturating_sub(1))
                    .filter(|between| is_pair && !between.is_empty())
                {
                    let parts = |node: Option<&Json>| {
                        special(node)
                            .is_some_and(|token| Some(&token) == sep.as_ref() || Some(&token) == eos.as_ref())
                    };
                    let add = parts(between.first()) && last.is_none()
                        || between.len() == 2 && parts(between.get(1));
                    found.adds("sep", add);
                    if add && sep.is_none() {
                        set(config, "sep_token", &eos);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Python's notion of a value that is there: not null, not empty.
fn is_truthy(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Bool(value) => *value,
        Json::String(text) => !text.is_empty(),
        Json::Object(map) => !map.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Number(number) => number.as_f64() != Some(0.0),
    }
}

fn write_chat_templates(
    folder: &Folder,
    config: &Map<String, Json>,
    out: &mut Metadata,
) -> Result<(), TokenizerError> {
    let template = match config.get("chat_template") {
        Some(template) => template.clone(),
        None => folder.chat_template()?,
    };
    let choices = match template {
        Json::String(text) => {
            out.insert("tokenizer.chat_template", Value::String(text));
            return Ok(());
        }
        Json::Array(choices) => choices,
        _ => return Ok(()),
    };
    let mut default = None;
    let mut names: Vec<String> = Vec::new();
    for choice in &choices {
        let (Some(name), Some(template)) = (choice["name"].as_str(), choice["template"].as_str()) else {
            continue;
        };
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        match name.as_str() {
            "" => {}
            "default" => default = Some(template),
            _ => {
                out.insert(format!("tokenizer.chat_template.{name}"), Value::String(template.to_owned()));
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    if !names.is_empty() {
        out.insert("tokenizer.chat_templates", Value::Array(Array::String(names)));
    }
    if let Some(default) = default {
        out.insert("tokenizer.chat_template", Value::String(default.to_owned()));
    }
    Ok(())
}

fn write_normalizer(normalizer: &Json, out: &mut Metadata) {
    const LOWERCASE: &str = "tokenizer.ggml.normalizer.lowercase";
    const ACCENTS: &str = "tokenizer.ggml.normalizer.strip_accents";
    match normalizer["type"].as_str() {
        Some("Lowercase") => out.insert(LOWERCASE, Value::Bool(true)),
        Some("StripAccents") => out.insert(ACCENTS, Value::Bool(true)),
        Some("BertNormalizer") => {
            for (key, flag) in
                [(LOWERCASE, &normalizer["lowercase"]), (ACCENTS, &normalizer["strip_accents"])]
            {
                if let Some(flag) = flag.as_bool() {
                    out.insert(key, Value::Bool(flag));
                }
            }
        }
        Some("Sequence") => {
            normalizer["normalizers"]
                .as_array()
                .into_iter()
                .flatten()
                .for_each(|part| write_normalizer(part, out));
        }
        _ => {}
    }
}
