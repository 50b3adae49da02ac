//! Agreement with llama.cpp on its own vocabulary files and test strings.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_formats::gguf::Gguf;
use kbit_tokenizers::Tokenizer;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::path::{Path, PathBuf};

/// Reference data beside the repository, or one line saying what was not tested.
fn reference(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// llama.cpp's vocabulary of that name.
fn vocabulary(name: &str) -> Option<(PathBuf, Tokenizer)> {
    let path = reference(&format!("tokenizers/ggml-vocab-{name}.gguf"))?;
    let tokenizer = Tokenizer::from_metadata(Gguf::open(&path).unwrap().metadata()).unwrap();
    Some((path, tokenizer))
}

fn agrees(name: &str) {
    let Some((path, tokenizer)) = vocabulary(name) else { return };
    let read = |ending: &str| std::fs::read_to_string(format!("{}.{ending}", path.display())).unwrap();
    let inputs = read("inp");
    let expected = read("out");
    let mut wrong = Vec::new();
    let mut count = 0;
    let texts = inputs.split("\n__ggml_vocab_test__\n");
    for (text, line) in texts.zip(expected.lines()) {
        let wanted: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let found = tokenizer.encode(text, false, false);
        if found != wanted {
            wrong.push(format!("{text:?}\n   found {found:?}\n  wanted {wanted:?}"));
        }
        count += 1;
    }
    let all = (expected.lines().count(), inputs.matches("\n__ggml_vocab_test__\n").count());
    assert_eq!((count, count), all, "{name}: lines and strings");
    assert!(count >= 40, "{name}: only {count} strings");
    assert!(wrong.is_empty(), "{name}: {} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Any bytes come back from the tokens that are these bytes, and any text from the tokens that it is encoded to, at once and
/// as a stream.
fn comes_back(name: &str) {
    let Some((_, tokenizer)) = vocabulary(name) else { return };
    let mut of_byte = vec![None; 256];
    for id in 0..u32::try_from(tokenizer.vocab_len()).unwrap() {
        if let [byte] = tokenizer.decode_bytes(&[id])[..] {
            of_byte[usize::from(byte)].get_or_insert(id);
        }
    }
    // Some vocabularies lack a few bytes: those of control characters, or those that hardly any text has.
    let has = |byte: u8| of_byte[usize::from(byte)].is_some();
    assert!((b' '..=b'~').all(has) && (0..=255).filter(|&byte| !has(byte)).count() < 30, "{name}");
    let streamed = |tokens: &[u32]| {
        let mut stream = tokenizer.stream(Vec::new()).at_the_beginning();
        let mut text: String = tokens.iter().map(|&token| stream.push(token)).collect();
        text.push_str(&stream.finish());
        text
    };
    let mut runner = TestRunner::deterministic();
    let bytes = prop::collection::vec(0..=255u8, 0..40);
    runner
        .run(&bytes, |mut bytes| {
            bytes.retain(|&byte| has(byte));
            let tokens: Vec<u32> = bytes.iter().filter_map(|&byte| of_byte[usize::from(byte)]).collect();
            prop_assert_eq!(tokenizer.decode_bytes(&tokens), bytes);
            Ok(())
        })
        .unwrap();
    // Lower one eighth block is how SentencePiece writes a space.
    let text = prop_oneof![
        "[ a-zA-Z0-9.,'\n\t]{0,60}",
        "[^\u{2581}]{0,30}",
        "(?s).{0,20} {0,9}[\u{300}-\u{3ff}🙂-🙏一-丁]{0,9}"
    ];
    runner
        .run(&text, |text| {
            let is_known = |c: char| c != '\u{2581}' && c.encode_utf8(&mut [0; 4]).bytes().all(has);
            let text: String = text.chars().map(|c| if is_known(c) { c } else { '_' }).collect();
            let tokens = tokenizer.encode(&text, false, false);
            prop_assert_eq!(tokenizer.decode(&tokens), text.as_str());
            prop_assert_eq!(streamed(&tokens), text);
            Ok(())
        })
        .unwrap();
}

macro_rules! vocabularies {
    ($($test:ident, $other:ident: $name:literal;)*) => {
        $(
            #[test]
            fn $test() {
                agrees($name);
            }
            #[test]
            fn $other() {
                comes_back($name);
            }
        )*
    };
}

vocabularies! {
    agrees_with_llama_cpp_on_llama_spm, bytes_come_back_from_llama_spm: "llama-spm";
    agrees_with_llama_cpp_on_phi_3, bytes_come_back_from_phi_3: "phi-3";
    agrees_with_llama_cpp_on_llama_bpe, bytes_come_back_from_llama_bpe: "llama-bpe";
    agrees_with_llama_cpp_on_gpt_2, bytes_come_back_from_gpt_2: "gpt-2";
    agrees_with_llama_cpp_on_qwen2, bytes_come_back_from_qwen2: "qwen2";
    agrees_with_llama_cpp_on_starcoder, bytes_come_back_from_starcoder: "starcoder";
    agrees_with_llama_cpp_on_falcon, bytes_come_back_from_falcon: "falcon";
    agrees_with_llama_cpp_on_deepseek_coder, bytes_come_back_from_deepseek_coder: "deepseek-coder";
}
