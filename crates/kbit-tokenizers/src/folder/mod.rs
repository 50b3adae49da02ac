//! Hugging Face tokenizer files -> `tokenizer.*` metadata, as llama.cpp's converter writes it.
//!
//! `tokenizer.model` (`SentencePiece`) goes before `tokenizer.json`, as there. The pre-tokenizer of a byte-level BPE is
//! recognised by the tokens of a sample text, as there, or else by the structure of tokenizer.json; where it cannot be, it
//! can be named by hand.
//!
//! Two things are done better than there. A `SentencePiece` BPE that stands in tokenizer.json alone gets the ranks of its
//! merges as scores, so that it tokenizes as its model expects. A Unigram model is written as one whatever the architecture.

mod fingerprint;
mod sentencepiece;
mod special_tokens;
mod tekken;
mod tokenizer_json;
mod tokens;

use crate::TokenizerError;
use crate::vocabulary::MAX_TOKENS;
use kbit_formats::gguf::{Metadata, Value};
use serde_json::{Map, Value as Json};
use std::path::{Path, PathBuf};
use tokenizer_json::TokenizerJson;

/// Largest tokenizer file that is read.
const MAX_FILE: u64 = 256 << 20;

/// The `tokenizer.*` metadata of a Hugging Face folder, keys in the converter's order.
///
/// `vocab_size` is the model's: tokens that the files lack become `[PAD<id>]`. `architecture` is GGUF's name of the
/// model's, for what the converter does for some only.
///
/// # Errors
/// [`TokenizerError::Absent`] where the folder has no tokenizer; else when a file is damaged, of a kind that kbit does not
/// carry over, or has a pre-tokenizer that it does not know.
pub fn metadata_from_folder(
    folder: &Path,
    vocab_size: u64,
    architecture: &str,
) -> Result<Vec<(String, Value)>, TokenizerError> {
    metadata_from_folder_named(folder, vocab_size, architecture, None)
}

/// As [`metadata_from_folder`], with the pre-tokenizer of a byte-level BPE named by hand.
///
/// # Errors
/// As there; and when the name is not known.
pub fn metadata_from_folder_named(
    folder: &Path,
    vocab_size: u64,
    architecture: &str,
    pre_tokenizer: Option<&str>,
) -> Result<Vec<(String, Value)>, TokenizerError> {
    if vocab_size == 0 || vocab_size > MAX_TOKENS as u64 {
        let reason =
            format!("vocab_size is {vocab_size}, where between 1 and {MAX_TOKENS} make sense; check it");
        return Err(TokenizerError::File { path: folder.join("config.json"), reason });
    }
    let folder = Folder::read(folder)?;
    let mut out = Metadata::new();
    if LLAMAS.contains(&architecture)
        && let Some(Json::Bool(add)) = folder.setting("add_prefix_space")
    {
        out.insert(ADD_SPACE, Value::Bool(*add));
    }
    let json = folder.tokenizer_json()?;
    // Mistral's own file goes before a SentencePiece model.
    if json.is_none()
        && LLAMAS.contains(&architecture)
        && let Some(metadata) = folder.tekken(vocab_size, architecture)?
    {
        return Ok(metadata);
    }
    // As a tokenizer.json would say it. Only its vocabulary counts: the converter looks for special tokens in the file.
    let parts = if json.is_none() { folder.vocab_and_merges()? } else { None };
    let model = match folder.sentencepiece_model()? {
        // Phi-4 is of the architecture of Phi-3, with a tokenizer of another kind.
        Some(_) if architecture == "phi3" && folder.is_of_class("GPT2Tokenizer") && json.is_some() => None,
        model => model,
    };
    match (model, json.as_ref().or(parts.as_ref())) {
        (Some(model), _) => {
            folder.write_sentencepiece(model, json.as_ref(), vocab_size, architecture, &mut out)?
        }
        (None, Some(json)) => folder.write_json(json, vocab_size, architecture, pre_tokenizer, &mut out)?,
        (None, None) => {
            let tekken = folder.tekken(vocab_size, architecture)?;
            return tekken.ok_or(TokenizerError::Absent { folder: folder.path });
        }
    }
    let tokens = match out.str("tokenizer.ggml.model")? {
        // For these the converter does not look whether there is such a token.
        "gpt2" => u64::MAX,
        _ => out.strings("tokenizer.ggml.tokens")?.len() as u64,
    };
    special_tokens::write(&folder, json.as_ref(), tokens, &mut out)?;
    write_quirks(architecture, vocab_size, &folder, &mut out);
    Ok(out.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect())
}

const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";

/// Architectures whose tokenizer the converter takes for one of Llama's.
const LLAMAS: &[&str] = &[
    "llama",
    "llama4",
    "llama-embed",
    "mistral3",
    "granite",
    "granitemoe",
    "smollm3",
    "arcee",
    "afmoe",
    "apertus",
    "cogvlm",
];

/// What the converter adds for models that it knows by architecture and size of vocabulary.
fn write_quirks(architecture: &str, vocab_size: u64, folder: &Folder, out: &mut Metadata) {
    const CODE_LLAMA: u64 = 32016;
    const GRANITE: u64 = 49152;
    let is_sentencepiece = out.str("tokenizer.ggml.model").is_ok_and(|model| model == "llama");
    let id = |name: &str| format!("tokenizer.ggml.{name}_token_id");
    match architecture {
        _ if LLAMAS.contains(&architecture) && vocab_size == CODE_LLAMA => {
            out.insert(id("eot"), Value::U32(32010));
        }
        _ if LLAMAS.contains(&architecture) && vocab_size == GRANITE => {
            out.insert("tokenizer.ggml.add_bos_token", Value::Bool(false));
        }
        "gemma" => {
            out.insert(id("eot"), Value::U32(107));
            out.insert(ADD_SPACE, Value::Bool(false));
        }
        "gemma2" | "gemma3" if is_sentencepiece => out.insert(ADD_SPACE, Value::Bool(false)),
        "nemotron" if is_sentencepiece => {
            out.insert(id("padding"), Value::U32(0));
            out.insert(id("unknown"), Value::U32(1));
        }
        // Its chats end in a token of their own.
        "internlm2" => {
            if let Some(chat_end) = folder.added_token("<|im_end|>") {
                out.insert(id("eos"), Value::U32(chat_end));
            }
        }
        _ => {}
    }
}

/// The folder, and the files of it that are always read.
struct Folder {
    path: PathBuf,
    config: Map<String, Json>,
    tokenizer_config: Option<Map<String, Json>>,
}

impl Folder {
    fn read(path: &Path) -> Result<Self, TokenizerError> {
        let mut folder = Self { path: path.to_owned(), config: Map::new(), tokenizer_config: None };
        folder.config = folder.object("config.json")?.unwrap_or_default();
        folder.tokenizer_config = folder.object("tokenizer_config.json")?;
        Ok(folder)
    }

    /// Bytes of a file, where it is there.
    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, TokenizerError> {
        let path = self.path.join(name);
        let io = |error| TokenizerError::Io { path: path.clone(), error };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
            Ok(file) if !file.is_file() => return Ok(None),
            Ok(file) if file.len() > MAX_FILE => {
                return Err(self.broken(
                    name,
                    format!("it has {} bytes, more than any tokenizer's; get it anew", file.len()),
                ));
            }
            Ok(_) => {}
        }
        std::fs::read(&path).map(Some).map_err(io)
    }

    fn object(&self, name: &str) -> Result<Option<Map<String, Json>>, TokenizerError> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            self.broken(name, format!("{place}: not a JSON object: {error}; get the file anew"))
        })
    }

    fn tokenizer_json(&self) -> Result<Option<TokenizerJson>, TokenizerError> {
        let name = "tokenizer.json";
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        tokenizer_json::parse(&bytes).map(Some).map_err(|reason| self.broken(name, reason))
    }

    /// The chat template that stands in files of its own.
    fn chat_template(&self) -> Result<Json, TokenizerError> {
        let text = |name: &str| -> Result<Option<String>, TokenizerError> {
            let Some(bytes) = self.bytes(name)? else { return Ok(None) };
            String::from_utf8(bytes)
                .map(Some)
                .map_err(|_| self.broken(name, "it is not UTF-8; get the file anew".to_owned()))
        };
        if let Some(default) = text("chat_template.jinja")? {
            let mut more: Vec<String> = std::fs::read_dir(self.path.join("additional_chat_templates"))
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| name.ends_with(".jinja"))
                .collect();
            if more.is_empty() {
                return Ok(Json::String(default));
            }
            more.sort();
            let mut choices = vec![serde_json::json!({ "name": "default", "template": default })];
            for name in more {
                let template = text(&format!("additional_chat_templates/{name}"))?;
                choices.push(
                    serde_json::json!({ "name": name.trim_end_matches(".jinja"), "template": template }),
                );
            }
            return Ok(Json::Array(choices));
        }
        Ok(self
            .object("chat_template.json")?
            .and_then(|mut file| file.remove("chat_template"))
            .unwrap_or_default())
    }

    /// An entry of tokenizer_config.json.
    fn setting(&self, key: &str) -> Option<&Json> {
        self.tokenizer_config.as_ref()?.get(key)
    }

    fn is_of_class(&self, class: &str) -> bool {
        self.setting("tokenizer_class").and_then(Json::as_str) == Some(class)
    }

    fn broken(&self, name: &str, reason: String) -> TokenizerError {
        TokenizerError::File { path: self.path.join(name), reason }
    }
}
