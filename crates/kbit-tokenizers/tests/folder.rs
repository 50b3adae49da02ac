//! Hugging Face folders: agreement with the `tokenizers` crate, and rejections.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_formats::gguf::{Array, Metadata, Value};
use kbit_tokenizers::{
    TokenKind, Tokenizer, TokenizerError, metadata_from_folder, metadata_from_folder_named,
};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A model that comes with the repository.
fn family() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/family/s0")
}

fn metadata(folder: &Path, vocab: u64) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in metadata_from_folder(folder, vocab, "llama").unwrap() {
        metadata.insert(key, value);
    }
    metadata
}

fn tokenizer(folder: &Path, vocab: u64) -> Tokenizer {
    Tokenizer::from_metadata(&metadata(folder, vocab)).unwrap()
}

static OURS: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(&family(), 2048));
static THEIRS: LazyLock<tokenizers::Tokenizer> =
    LazyLock::new(|| tokenizers::Tokenizer::from_file(family().join("tokenizer.json")).unwrap());

#[test]
fn the_familys_keys_are_the_converters() {
    let metadata = metadata(&family(), 2048);
    let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
    let expected = [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.add_bos_token",
    ];
    assert_eq!(keys, expected);
    assert_eq!(metadata.get("tokenizer.ggml.pre"), Some(&Value::String("gpt-2".to_owned())));
    assert_eq!((OURS.bos(), OURS.eos(), OURS.adds_bos()), (Some(0), Some(0), false));
    assert_eq!(OURS.token_kind(0), Some(TokenKind::Control));
}

#[test]
fn agrees_with_the_tokenizers_crate_on_prose() {
    let prose = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/text/prose.txt");
    let prose = std::fs::read_to_string(prose).unwrap();
    assert_eq!(
        OURS.encode(&prose, false, false),
        THEIRS.encode_fast(prose.as_str(), false).unwrap().get_ids()
    );
    assert_eq!(OURS.decode(&OURS.encode(&prose, false, false)), prose);
}

#[test]
fn agrees_with_the_tokenizers_crate_on_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference/hf/llama3-rope");
    let text = folder.join("../../../data/wikitext2-test.raw");
    if !text.exists() {
        eprintln!("skipped: {} is not there", text.display());
        return;
    }
    let text = std::fs::read_to_string(text).unwrap();
    let (end, _) = text.char_indices().nth(300_000).unwrap();
    let text = &text[..end];
    let theirs = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let found = tokenizer(&folder, 512).encode(text, false, true);
    assert_eq!(found, theirs.encode_fast(text, false).unwrap().get_ids());
}

#[test]
fn special_tokens_are_found_only_on_request() {
    let text = "one<|endoftext|>two";
    let asked = OURS.encode(text, false, true);
    assert_eq!(asked, THEIRS.encode_fast(text, false).unwrap().get_ids());
    assert_eq!(asked.iter().filter(|&&token| token == 0).count(), 1);
    assert!(!OURS.encode(text, false, false).contains(&0));
    assert_eq!(OURS.decode(&OURS.encode(text, false, false)), text);
    assert_eq!(OURS.decode(&asked), "onetwo");
}

proptest! {
    #[test]
    fn any_text_comes_back(text in "\\PC{0,80}|[\\s\\w\u{0}-\u{7f}]{0,80}") {
        prop_assert_eq!(OURS.decode(&OURS.encode(&text, false, false)), text);
    }

    #[test]
    fn agrees_with_the_tokenizers_crate(text in "[ \\t\\r\\na-zA-Z0-9'.,!?éüñ中文字🦙\u{301}\u{3000}-]{0,80}") {
        let theirs = THEIRS.encode_fast(text.as_str(), false).unwrap();
        prop_assert_eq!(OURS.encode(&text, false, true), theirs.get_ids());
    }
}

/// A byte-level BPE with the 256 bytes and the merges of `merges`.
fn byte_level(changes: impl FnOnce(&mut Json)) -> tempfile::TempDir {
    let vocab = &THEIRS.get_vocab(false);
    let mut bytes: Vec<&String> = vocab.keys().filter(|token| token.chars().count() == 1).collect();
    bytes.sort();
    let mut tokens: serde_json::Map<String, Json> =
        bytes.iter().zip(0..).map(|(token, id)| ((*token).clone(), json!(id))).collect();
    tokens.insert("ab".to_owned(), json!(256));
    tokens.insert("abc".to_owned(), json!(257));
    let mut file = json!({
        "version": "1.0",
        "added_tokens": [{ "id": 258, "content": "<s>", "special": true, "normalized": false }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": tokens, "merges": ["a b", "ab c"] }
    });
    changes(&mut file);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    folder
}

fn pre_tokenizer(changes: impl FnOnce(&mut Json)) -> String {
    let folder = byte_level(changes);
    metadata(folder.path(), 260).str("tokenizer.ggml.pre").unwrap().to_owned()
}

fn refusal(folder: &Path, vocab: u64) -> String {
    metadata_from_folder(folder, vocab, "llama").unwrap_err().to_string()
}

#[test]
fn pads_a_vocabulary_that_is_smaller_than_the_models() {
    let folder = byte_level(|_| {});
    let tokenizer = tokenizer(folder.path(), 261);
    assert_eq!((tokenizer.vocab_len(), tokenizer.token_text(260)), (261, Some("[PAD260]")));
    assert_eq!(tokenizer.token_kind(260), Some(TokenKind::Unused));
    assert_eq!(tokenizer.encode("abcab", false, false), [257, 256]);
}

#[test]
fn merges_may_be_pairs() {
    let folder = byte_level(|file| file["model"]["merges"] = json!([["a", "b"], ["ab", "c"]]));
    let metadata = metadata(folder.path(), 260);
    assert_eq!(metadata.strings("tokenizer.ggml.merges").unwrap(), ["a b", "ab c"]);
}

#[test]
fn recognises_pre_tokenizers_by_their_structure() {
    let split = |pattern: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false }
        ] })
    };
    const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    assert_eq!(pre_tokenizer(|_| {}), "gpt-2");
    let llama_3 = pre_tokenizer(|file| {
        file["pre_tokenizer"] = split(LLAMA_3);
        file["model"]["ignore_merges"] = json!(true);
    });
    // Of those that cut so, the one that puts no BOS token before text, as this tokenizer does.
    assert_eq!(llama_3, "glm4");
    let with_bos = pre_tokenizer(|file| {
        file["pre_tokenizer"] = split(LLAMA_3);
        file["model"]["ignore_merges"] = json!(true);
        file["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>" } }, { "Sequence": { "id": "A" } }],
            "pair": [],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [258], "tokens": ["<s>"] } }
        });
    });
    assert_eq!(with_bos, "llama-bpe");
    let qwen_2 = pre_tokenizer(|file| {
        file["normalizer"] = json!({ "type": "NFC" });
        file["pre_tokenizer"] = split(&LLAMA_3.replace("{1,3}", ""));
    });
    assert_eq!(qwen_2, "qwen2");
    let smollm = pre_tokenizer(|file| {
        file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true }
        ] });
    });
    assert_eq!(smollm, "smollm");
}

#[test]
fn rejects_a_pre_tokenizer_that_it_does_not_know() {
    let folder = byte_level(|file| {
        file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": "[xyz]+" }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "use_regex": false }
        ] });
    });
    let error = refusal(folder.path(), 260);
    assert!(
        error.contains("[xyz]+") && error.contains("llama-bpe") && error.contains("--pre-tokenizer"),
        "{error}"
    );
    let named = metadata_from_folder_named(folder.path(), 260, "llama", Some("qwen2")).unwrap();
    assert!(named.contains(&("tokenizer.ggml.pre".to_owned(), Value::String("qwen2".to_owned()))));
    assert!(metadata_from_folder_named(folder.path(), 260, "llama", Some("nobody")).is_err());
}

#[test]
fn rejects_a_normalizer_that_changes_text() {
    let folder = byte_level(|file| file["normalizer"] = json!({ "type": "Lowercase" }));
    assert!(refusal(folder.path(), 260).contains("Lowercase"));
}

#[test]
fn rejects_a_folder_without_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let error = metadata_from_folder(folder.path(), 100, "llama").unwrap_err();
    assert!(matches!(error, TokenizerError::Absent { .. }), "{error}");
}

#[test]
fn vocab_json_and_merges_txt_are_a_tokenizer_where_they_are_sound() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#);
    write("merges.txt", "#version: 0.2\na b\n");
    assert_eq!(metadata(folder.path(), 3).str("tokenizer.ggml.pre").unwrap(), "gpt-2");
    write("tokenizer_config.json", r#"{"tokenizer_class": "Qwen2TokenizerFast"}"#);
    assert_eq!(metadata(folder.path(), 3).str("tokenizer.ggml.pre").unwrap(), "qwen2");
    write("tokenizer_config.json", r#"{"tokenizer_class": "OwnTokenizer"}"#);
    let error = refusal(folder.path(), 3);
    assert!(error.contains("OwnTokenizer") && error.contains("--pre-tokenizer"), "{error}");
    write("merges.txt", "#version: 0.2\na b\na b c\n");
    assert!(refusal(folder.path(), 3).contains("line 3"));
    write("vocab.json", r#"{"a": -1}"#);
    assert!(refusal(folder.path(), 3).contains("\"a\" has -1"));
}

#[test]
fn rejects_damaged_tekken_json() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tekken/tekken.json");
    let whole: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Json), words: &str| {
        let mut file = whole.clone();
        change(&mut file);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tekken.json"), file.to_string()).unwrap();
        let error = refusal(folder.path(), 421);
        assert!(error.contains("tekken.json") && error.contains(words) && error.contains("get "), "{error}");
    };
    refused(&|file| *file = json!({}), "line 1");
    refused(&|file| file["config"]["default_vocab_size"] = json!(422), "422");
    refused(&|file| file["config"]["default_vocab_size"] = json!(u64::MAX), "the model has 421");
    refused(&|file| file["config"]["default_num_special_tokens"] = json!(422), "422 special");
    refused(&|file| file["config"]["default_num_special_tokens"] = json!(3), "token");
    refused(&|file| file["vocab"][300]["token_bytes"] = json!("Zg="), "token 300 is not in base64");
    refused(&|file| file["vocab"][300]["token_bytes"] = json!(""), "token 300 has 0 bytes");
    refused(
        &|file| file["vocab"][300]["token_bytes"] = json!("Zm9v".repeat(2000)),
        "token 300 has 6000 bytes",
    );
    refused(&|file| file["vocab"][300]["token_bytes"] = json!("/v/+/w=="), "token 300 is no two tokens");
    refused(&|file| file["vocab"][300]["rank"] = json!(7), "token 300 is not at the place");
    refused(&|file| file["vocab"][300] = file["vocab"][299].clone(), "token 300");
    refused(&|file| file["vocab"][65]["token_bytes"] = json!("Qg=="), "token 65 is not the byte");
    let special = |rank: usize, text: &str| json!({ "rank": rank, "token_str": text, "is_control": true });
    refused(&|file| file["special_tokens"] = json!([special(1, "<unk>")]), "special token 0 is 1");
    refused(&|file| file["special_tokens"] = json!([special(0, "<unk>")]), "no token <s>");
}

#[test]
fn rejects_a_token_past_the_models_vocabulary() {
    let folder = byte_level(|_| {});
    assert!(refusal(folder.path(), 200).contains("vocab_size of 200"));
}

#[test]
fn rejects_an_id_that_would_allocate_without_end() {
    let folder = byte_level(|file| file["added_tokens"][0]["id"] = json!(1u64 << 60));
    assert!(refusal(folder.path(), 260).contains("1152921504606846976"));
    let folder = byte_level(|file| {
        file["added_tokens"][0]["id"] = json!((1 << 24) - 1);
        file["model"]["byte_fallback"] = json!(true);
    });
    assert!(refusal(folder.path(), 260).contains("16777216"));
    assert!(refusal(folder.path(), u64::MAX).contains("vocab_size"));
}

#[test]
fn rejects_a_damaged_tokenizer_json_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), "{\n \"model\": {\"type\": \"BPE\",").unwrap();
    let error = refusal(folder.path(), 260);
    assert!(error.contains("tokenizer.json") && error.contains("line 2"), "{error}");
}

#[test]
fn rejects_a_model_of_whole_words() {
    let folder = byte_level(|file| file["model"] = json!({ "type": "WordLevel", "vocab": { "a": 0 } }));
    assert!(refusal(folder.path(), 260).contains("WordLevel"));
    // SentencePiece of words: one piece "a".
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.model"), b"\x0a\x03\x0a\x01a\x12\x02\x18\x03").unwrap();
    assert!(refusal(folder.path(), 260).contains("kind 3"));
}

#[test]
fn rejects_a_wordpiece_that_continues_words_otherwise() {
    let folder = byte_level(|file| {
        file["model"] =
            json!({ "type": "WordPiece", "vocab": { "a": 0 }, "continuing_subword_prefix": "@@" });
    });
    assert!(refusal(folder.path(), 260).contains("@@"));
}

#[test]
fn rejects_a_table_of_replacements_that_is_not_base64() {
    let folder = byte_level(|file| {
        file["model"] = json!({ "type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 0 });
        file["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": "?" });
    });
    assert!(refusal(folder.path(), 260).contains("base64"));
}

#[test]
fn truncated_files_are_errors_or_less_of_a_tokenizer() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, file, vocab) in [
        ("sentencepiece", "tokenizer.model", 440),
        ("unigram", "spiece.model", 440),
        ("unigram-json", "tokenizer.json", 320),
        ("wordpiece", "tokenizer.json", 520),
        ("byte-level", "tokenizer.json", 420),
    ] {
        let bytes = std::fs::read(golden.join(name).join(file)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for end in (0..bytes.len()).step_by(97) {
            std::fs::write(folder.path().join(file), &bytes[..end]).unwrap();
            // A protobuf may end after any piece; JSON may not.
            if let Ok(found) = metadata_from_folder(folder.path(), vocab, "llama") {
                assert_ne!(file, "tokenizer.json", "{name} up to byte {end}");
                let mut metadata = Metadata::new();
                found.into_iter().for_each(|(key, value)| metadata.insert(key, value));
                let _ = Tokenizer::from_metadata(&metadata).map(|found| found.encode("a b", false, true));
            }
        }
    }
}

#[test]
fn changed_bytes_never_panic() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, file) in [("sentencepiece", "tokenizer.model"), ("unigram", "spiece.model")] {
        let bytes = std::fs::read(golden.join(name).join(file)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for at in (0..bytes.len()).step_by(53) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x55;
            std::fs::write(folder.path().join(file), &bytes).unwrap();
            let Ok(found) = metadata_from_folder(folder.path(), 440, "t5") else { continue };
            let mut metadata = Metadata::new();
            found.into_iter().for_each(|(key, value)| metadata.insert(key, value));
            let Ok(tokenizer) = Tokenizer::from_metadata(&metadata) else { continue };
            let tokens = tokenizer.encode("Hello, world! é \u{3000} 12", true, true);
            let _ = tokenizer.decode(&tokens);
        }
    }
}

#[test]
fn rejects_a_truncated_tokenizer_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.model"), b"\x0a\x7f\x0a\x01a").unwrap();
    let error = refusal(folder.path(), 260);
    assert!(error.contains("tokenizer.model") && error.contains("are left"), "{error}");
}

#[test]
fn a_sentencepiece_bpe_in_tokenizer_json_merges_in_the_order_of_its_merges() {
    let folder = byte_level(|file| {
        file["model"] = json!({
            "type": "BPE", "byte_fallback": true,
            "vocab": { "<unk>": 0, "<0x41>": 1, "▁": 2, "a": 3, "b": 4, "c": 5, "bc": 6, "ab": 7, "▁a": 8 },
            "merges": ["a b", "b c", "▁ a"]
        });
        file["added_tokens"] = json!([{ "id": 0, "content": "<unk>", "special": true }]);
    });
    let tokenizer = tokenizer(folder.path(), 9);
    let texts: Vec<_> = tokenizer
        .encode("abc A", false, false)
        .iter()
        .map(|&id| tokenizer.token_text(id).unwrap().to_owned())
        .collect();
    assert_eq!(texts, ["▁", "ab", "c", "▁", "<0x41>"]);
}

#[test]
fn writes_what_a_template_adds_and_the_chat_template() {
    let folder = byte_level(|file| {
        file["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": []
        });
    });
    let config = json!({ "bos_token": { "content": "<s>" }, "chat_template": "{{ messages }}" });
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        json!({ "eos_token_id": [1, 2], "pad_token_id": 3 }).to_string(),
    )
    .unwrap();
    let metadata = metadata(folder.path(), 260);
    assert_eq!(metadata.get("tokenizer.ggml.bos_token_id"), Some(&Value::U32(258)));
    assert_eq!(metadata.get("tokenizer.ggml.eos_token_id"), None);
    assert_eq!(metadata.get("tokenizer.ggml.padding_token_id"), Some(&Value::U32(3)));
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    assert_eq!(metadata.str("tokenizer.chat_template").unwrap(), "{{ messages }}");
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.encode("abc", true, false), [258, 257]);
}

/// Metadata of the family's tokenizer with one key changed.
fn changed(key: &str, value: Value) -> String {
    let mut metadata = metadata(&family(), 2048);
    metadata.insert(format!("tokenizer.ggml.{key}"), value);
    Tokenizer::from_metadata(&metadata).unwrap_err().to_string()
}

#[test]
fn rejects_a_model_that_it_does_not_know() {
    let error = changed("model", Value::String("rwkv".to_owned()));
    assert!(error.contains("rwkv") && error.contains("gpt2"), "{error}");
}

#[test]
fn rejects_a_model_without_tokenizer_by_saying_so() {
    let error = changed("model", Value::String("none".to_owned()));
    assert!(error.contains("no tokenizer"), "{error}");
}

#[test]
fn rejects_fewer_types_than_tokens() {
    assert!(changed("token_type", Value::Array(Array::I32(vec![1]))).contains("1 entries for 2048 tokens"));
}

#[test]
fn rejects_a_score_that_is_not_a_number() {
    let scores = [vec![0.0; 5], vec![f32::NAN; 2043]].concat();
    assert!(changed("scores", Value::Array(Array::F32(scores))).contains("token 5"));
}

#[test]
fn rejects_a_merge_of_one_token() {
    let merges = vec!["a b".to_owned(), "ab".to_owned()];
    let error = changed("merges", Value::Array(Array::String(merges)));
    assert!(error.contains("entry 1") && error.contains("\"ab\""), "{error}");
}

#[test]
fn merges_that_name_no_token_are_passed_over() {
    let mut metadata = metadata(&family(), 2048);
    let merges = vec!["zzz qqq".to_owned(), "a b".to_owned(), "\u{2603} a".to_owned()];
    metadata.insert("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    // "ab" is no token of the vocabulary where it is spelled.
    assert_eq!(tokenizer.decode(&tokenizer.encode("zab", false, false)), "zab");
}

#[test]
fn ids_past_the_vocabulary_are_as_if_they_were_not_there() {
    let mut metadata = metadata(&family(), 2048);
    metadata.insert("tokenizer.ggml.bos_token_id", Value::U32(u32::MAX));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.bos(), Some(11));
    assert_eq!(tokenizer.decode(&[u32::MAX]), "");
}

#[test]
fn rejects_unigram_and_wordpiece_without_what_they_need() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let of = |name: &str| {
        let file = kbit_formats::gguf::Gguf::open(&golden.join(name).join("expected.gguf")).unwrap();
        file.metadata().clone()
    };
    let refusal = |metadata: &Metadata| Tokenizer::from_metadata(metadata).unwrap_err().to_string();
    let mut unigram = of("unigram");
    unigram.insert("tokenizer.ggml.precompiled_charsmap", Value::Array(Array::U8(vec![255; 9])));
    assert!(refusal(&unigram).contains("precompiled_charsmap"));
    unigram.insert("tokenizer.ggml.precompiled_charsmap", Value::Array(Array::F32(vec![0.0])));
    assert!(refusal(&unigram).contains("list of bytes"));
    let mut short = of("unigram");
    short.insert("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0])));
    assert!(refusal(&short).contains("1 entries"));
    let mut words = of("wordpiece");
    words.remove("tokenizer.ggml.seperator_token_id");
    words.insert("tokenizer.ggml.tokens", Value::Array(Array::String(vec!["▁a".to_owned()])));
    words.insert("tokenizer.ggml.unknown_token_id", Value::U32(0));
    words.insert("tokenizer.ggml.bos_token_id", Value::U32(0));
    assert!(refusal(&words).contains("seperator_token_id"));
}

#[test]
fn rejects_no_tokens() {
    assert!(changed("tokens", Value::Array(Array::String(Vec::new()))).contains("0 tokens"));
}

#[test]
fn a_word_of_a_million_letters_is_encoded() {
    let text = "ab".repeat(500_000);
    assert_eq!(OURS.decode(&OURS.encode(&text, false, false)), text);
}
