//! Metadata as Hugging Face files: the `tokenizers` crate reads them and gives the same tokens.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_formats::gguf::{Array, Gguf, Metadata, Value};
use kbit_tokenizers::{Tokenizer, TokenizerFiles, files_from_metadata, metadata_from_folder};
use std::path::Path;

fn files(metadata: &Metadata) -> TokenizerFiles {
    files_from_metadata(metadata).unwrap().expect("the metadata have a tokenizer")
}

fn loaded(files: &TokenizerFiles) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&files.tokenizer).unwrap()).unwrap()
}

fn metadata_of(folder: &Path, vocab: u64) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in metadata_from_folder(folder, vocab, "llama").unwrap() {
        metadata.insert(key, value);
    }
    metadata
}

#[test]
fn a_folder_comes_back_with_the_same_metadata() {
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/family/s0");
    let metadata = metadata_of(&family, 2048);
    let files = files(&metadata);
    assert_eq!(files.ids, [("bos_token_id", 0), ("eos_token_id", 0)]);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &serde_json::Value| {
        std::fs::write(folder.path().join(name), serde_json::to_vec(content).unwrap()).unwrap();
    };
    write("tokenizer.json", &files.tokenizer);
    write("tokenizer_config.json", &files.config);
    write("config.json", &serde_json::json!({ "bos_token_id": 0, "eos_token_id": 0 }));
    assert_eq!(metadata_of(folder.path(), 2048), metadata);
}

/// Tokens, scores and kinds of a small SentencePiece vocabulary: specials, bytes, pieces.
fn sentencepiece() -> Metadata {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut kinds = vec![2, 3, 3];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([6; 256]);
    let pieces =
        ["▁", "t", "h", "e", "i", "n", "g", "▁t", "he", "▁the", "in", "ing", "▁th", "ng", "▁thing", "▁▁"];
    tokens.extend(pieces.map(str::to_owned));
    kinds.extend([1; 16]);
    let scores =
        (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { -f32::from(u16::try_from(id).unwrap() - 258) });
    let scores = scores.collect();
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", Value::String("llama".into()));
    metadata.insert("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.insert("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
    metadata.insert("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    metadata.insert("tokenizer.ggml.bos_token_id", Value::U32(1));
    metadata.insert("tokenizer.ggml.eos_token_id", Value::U32(2));
    metadata.insert("tokenizer.ggml.unknown_token_id", Value::U32(0));
    metadata
}

#[test]
fn sentencepiece_gets_its_merges_from_the_scores() {
    let metadata = sentencepiece();
    let (ours, theirs) = (Tokenizer::from_metadata(&metadata).unwrap(), loaded(&files(&metadata)));
    for text in ["the thing", "in the  ing", "thing", "größer the", "", " ", "hehehe tttt"] {
        let found = theirs.encode_fast(text, true).unwrap();
        assert_eq!(found.get_ids(), ours.encode(text, true, false), "{text:?}");
        let plain = theirs.encode_fast(text, false).unwrap();
        assert_eq!(theirs.decode(plain.get_ids(), true).unwrap(), text, "{text:?}");
    }
}

#[test]
fn padding_tokens_are_left_out() {
    let mut metadata = sentencepiece();
    let Some(Value::Array(Array::String(tokens))) = metadata.get("tokenizer.ggml.tokens") else { panic!() };
    let mut tokens = tokens.clone();
    tokens[274] = "[PAD274]".to_owned();
    let Some(Value::Array(Array::I32(kinds))) = metadata.get("tokenizer.ggml.token_type") else { panic!() };
    let mut kinds = kinds.clone();
    kinds[274] = 5;
    metadata.insert("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.insert("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    assert_eq!(loaded(&files(&metadata)).get_vocab_size(true), 274);
}

#[test]
fn a_model_without_tokenizer_has_no_files() {
    let mut metadata = Metadata::new();
    assert_eq!(files_from_metadata(&metadata).unwrap(), None);
    metadata.insert("tokenizer.ggml.model", Value::String("none".into()));
    assert_eq!(files_from_metadata(&metadata).unwrap(), None);
    metadata.insert("tokenizer.ggml.model", Value::String("bert".into()));
    metadata.insert("tokenizer.ggml.tokens", Value::Array(Array::String(vec!["a".into()])));
    assert!(files_from_metadata(&metadata).unwrap_err().to_string().contains("bert"));
}

#[test]
fn merges_and_ids_that_cannot_be_are_refused() {
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/family/s0");
    for (key, value, words) in [
        ("merges", Value::Array(Array::String(vec!["ab".into()])), "\"ab\" is not two tokens"),
        ("merges", Value::Array(Array::String(vec!["é ".into()])), "not two tokens"),
        ("bos_token_id", Value::U32(5000), "is 5000"),
        ("pre", Value::String("nobody".into()), "nobody"),
    ] {
        let mut metadata = metadata_of(&family, 2048);
        metadata.insert(format!("tokenizer.ggml.{key}"), value);
        let message = files_from_metadata(&metadata).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

/// llama.cpp's vocabularies as tokenizer.json: the tokens that llama.cpp gives for its test strings.
fn agrees(name: &str, unlike: &[&str]) {
    let path = format!("../../../shared/reference/tokenizers/ggml-vocab-{name}.gguf");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return;
    }
    let theirs = loaded(&files(Gguf::open(&path).unwrap().metadata()));
    let read = |ending: &str| std::fs::read_to_string(format!("{}.{ending}", path.display())).unwrap();
    let (inputs, expected) = (read("inp"), read("out"));
    let mut wrong = Vec::new();
    let mut count = 0;
    for (text, line) in inputs.split("\n__ggml_vocab_test__\n").zip(expected.lines()) {
        let wanted: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let found = theirs.encode_fast(text, false).unwrap();
        if found.get_ids() != wanted && !unlike.contains(&text) {
            wrong.push(format!("{text:?}\n   found {:?}\n  wanted {wanted:?}", found.get_ids()));
        }
        count += 1;
    }
    assert!(count >= 40, "{name}: only {count} strings");
    assert!(wrong.is_empty(), "{name}: {} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

macro_rules! vocabularies {
    ($($test:ident: $name:literal, $unlike:expr;)*) => { $(#[test] fn $test() { agrees($name, $unlike); })* };
}

vocabularies! {
    llama_spm_gives_the_tokens_of_llama_cpp: "llama-spm", &[];
    phi_3_gives_the_tokens_of_llama_cpp: "phi-3", &[];
    llama_bpe_gives_the_tokens_of_llama_cpp: "llama-bpe", &[];
    gpt_2_gives_the_tokens_of_llama_cpp: "gpt-2", &[];
    qwen2_gives_the_tokens_of_llama_cpp: "qwen2", &[];
    starcoder_gives_the_tokens_of_llama_cpp: "starcoder", &[];
}
