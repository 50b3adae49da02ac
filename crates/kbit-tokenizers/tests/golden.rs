//! Agreement with llama.cpp on vocabularies that come with the repository: the metadata that its converter writes for a
//! Hugging Face folder, and the ids that its tokenizer gives for texts.
//!
//! `golden/<folder>` holds tokenizers made from `assets/text` and the test strings below it, `expected.gguf` (the metadata of
//! `convert_hf_to_gguf.py`, with the pre-tokenizer named by hand) and `ids.json` (llama.cpp's ids, without and with special
//! tokens). `golden/pre-tokenizers` holds a byte-level BPE whose merges reach across the pieces of every pre-tokenizer, and
//! the ids that each of them gives.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_formats::gguf::{Array, Gguf, Metadata, Value};
use kbit_tokenizers::{Tokenizer, metadata_from_folder_named};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(list: &Json) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// The `tokenizer.*` entries, with names of chat templates sorted: the converter has them in the order of a Python set.
fn tokenizer_entries<'m>(metadata: impl Iterator<Item = (&'m str, &'m Value)>) -> Vec<(String, Value)> {
    let entries = metadata.filter(|(key, _)| key.starts_with("tokenizer."));
    let mut entries: Vec<(String, Value)> =
        entries.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    for (key, value) in &mut entries {
        if let (true, Value::Array(Array::String(names))) = (key == "tokenizer.chat_templates", value) {
            names.sort();
        }
    }
    entries
}

/// The first difference between two values, with its place where they are lists.
fn difference(found: &Value, wanted: &Value) -> String {
    match (found, wanted) {
        (Value::Array(Array::String(found)), Value::Array(Array::String(wanted))) => {
            let at = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
            let at = at.unwrap_or(found.len().min(wanted.len()));
            format!("at {at}: {:?}, not {:?}", found.get(at), wanted.get(at))
        }
        _ => format!("{:.400}, not {:.400}", format!("{found:?}"), format!("{wanted:?}")),
    }
}

/// How the metadata of `folder` differ from those of `expected`: keys, order, types and values.
fn differences(folder: &Path, expected: &Path) -> Vec<String> {
    let expected = Gguf::open(expected).unwrap();
    let expected = expected.metadata();
    let config = json(&folder.join("config.json"));
    let vocab =
        config["vocab_size"].as_u64().or_else(|| config["text_config"]["vocab_size"].as_u64()).unwrap();
    let architecture = expected.str("general.architecture").unwrap();
    let pre = expected.str("tokenizer.ggml.pre").unwrap();
    let found = match metadata_from_folder_named(folder, vocab, architecture, Some(pre)) {
        Ok(found) => found,
        Err(error) => return vec![error.to_string()],
    };
    let found = tokenizer_entries(found.iter().map(|(key, value)| (key.as_str(), value)));
    let wanted = tokenizer_entries(expected.iter());
    let keys = |entries: &[(String, Value)]| entries.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    if keys(&found) != keys(&wanted) {
        return vec![format!("{}: {:?}, not {:?}", folder.display(), keys(&found), keys(&wanted))];
    }
    let pairs = found.iter().zip(&wanted).filter(|(found, wanted)| found != wanted);
    pairs
        .map(|((key, found), (_, wanted))| {
            format!("{}: {key}: {}", folder.display(), difference(found, wanted))
        })
        .collect()
}

fn folder_agrees(name: &str) {
    let folder = golden(name);
    let expected = folder.join("expected.gguf");
    assert_eq!(differences(&folder, &expected), Vec::<String>::new());
    let tokenizer = Tokenizer::from_metadata(Gguf::open(&expected).unwrap().metadata()).unwrap();
    let cases = json(&folder.join("ids.json"));
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false, false), ids(&case["plain"]), "{name}: {text:?}");
        assert_eq!(
            tokenizer.encode(text, true, true),
            ids(&case["special"]),
            "{name}: {text:?} with specials"
        );
    }
}

#[test]
fn unigram_of_a_sentencepiece_model_is_llama_cpps() {
    folder_agrees("unigram");
}

#[test]
fn unigram_of_tokenizer_json_is_llama_cpps() {
    folder_agrees("unigram-json");
}

#[test]
fn wordpiece_is_llama_cpps() {
    folder_agrees("wordpiece");
}

#[test]
fn sentencepiece_with_added_tokens_padding_and_chat_templates_is_llama_cpps() {
    folder_agrees("sentencepiece");
}

#[test]
fn byte_level_bpe_with_added_tokens_padding_and_chat_templates_is_llama_cpps() {
    folder_agrees("byte-level");
}

#[test]
fn byte_level_bpe_of_vocab_json_and_merges_txt_is_llama_cpps() {
    folder_agrees("vocab-and-merges");
}

#[test]
fn mistrals_own_file_is_llama_cpps() {
    folder_agrees("tekken");
    // The converter says how many tokens there are, as well.
    let found = metadata_from_folder_named(&golden("tekken"), 421, "llama", None).unwrap();
    assert!(found.contains(&("llama.vocab_size".to_owned(), Value::U32(421))));
}

#[test]
fn every_pre_tokenizer_is_llama_cpps() {
    let file = Gguf::open(&golden("pre-tokenizers/vocabulary.gguf")).unwrap();
    let cases = json(&golden("pre-tokenizers/ids.json"));
    let names = cases["names"].as_array().unwrap();
    let mut count = 0;
    for (class, names) in names.iter().enumerate() {
        for name in names.as_array().unwrap() {
            let name = name.as_str().unwrap();
            let mut metadata: Metadata = file.metadata().clone();
            metadata.insert("tokenizer.ggml.pre", Value::String(name.to_owned()));
            let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
            for case in cases["texts"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let of_class = case["ids"].as_array().unwrap().iter().find(|found| {
                    found[1].as_array().unwrap().iter().any(|found| found.as_u64() == Some(class as u64))
                });
                assert_eq!(
                    tokenizer.encode(text, false, false),
                    ids(&of_class.unwrap()[0]),
                    "{name}: {text:?}"
                );
            }
            count += 1;
        }
    }
    assert!(count > 80, "only {count} names");
}

#[test]
fn bpe_over_characters_is_llama_cpps() {
    let file = Gguf::open(&golden("characters/vocabulary.gguf")).unwrap();
    let cases = json(&golden("characters/ids.json"));
    let names = cases["names"].as_array().unwrap();
    assert_eq!(names.len(), 4);
    for (index, name) in names.iter().enumerate() {
        let mut metadata: Metadata = file.metadata().clone();
        for (at, key) in ["model", "pre"].into_iter().enumerate() {
            let value = Value::String(name[at].as_str().unwrap().to_owned());
            metadata.insert(format!("tokenizer.ggml.{key}"), value);
        }
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        for case in cases["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true, true), ids(&case["ids"][index]), "{name}: {text:?}");
        }
    }
}

#[test]
fn any_bytes_come_back() {
    let bytes: Vec<u8> = (0..=255).collect();
    for (path, token_of) in [
        ("sentencepiece/expected.gguf", (|byte: u8| format!("<0x{byte:02X}>")) as fn(u8) -> String),
        ("characters/vocabulary.gguf", |byte| format!("<0x{byte:02X}>")),
        ("pre-tokenizers/vocabulary.gguf", |byte| {
            // GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100 on.
            let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let others = (0..byte).filter(|&byte| !printable(byte)).count();
            let code = if printable(byte) { u32::from(byte) } else { 0x100 + u32::try_from(others).unwrap() };
            char::from_u32(code).unwrap().to_string()
        }),
    ] {
        let tokenizer = Tokenizer::from_metadata(Gguf::open(&golden(path)).unwrap().metadata()).unwrap();
        let id = |byte: u8| {
            let wanted = token_of(byte);
            (0..).find(|&id| tokenizer.token_text(id).unwrap() == wanted).unwrap()
        };
        let tokens: Vec<u32> = bytes.iter().map(|&byte| id(byte)).collect();
        assert_eq!(tokenizer.decode_bytes(&tokens), bytes, "{path}");
    }
}

#[test]
fn metadata_of_the_reference_folders_are_the_converters() {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference/hf");
    let Ok(entries) = std::fs::read_dir(&folders) else {
        eprintln!("skipped: {} is not there", folders.display());
        return;
    };
    let mut count = 0;
    let mut wrong: Vec<String> = Vec::new();
    for entry in entries {
        let folder = entry.unwrap().path();
        let expected = folder.join("expected-f32.gguf");
        if expected.exists() {
            wrong.extend(differences(&folder, &expected));
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 10, "only {count} folders");
}
