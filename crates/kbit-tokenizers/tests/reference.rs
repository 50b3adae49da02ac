//! Agreement with llama.cpp on its own vocabulary files and test strings.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_formats::gguf::Gguf;
use kbit_tokenizers::Tokenizer;
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

fn agrees(name: &str) {
    let Some(path) = reference(&format!("tokenizers/ggml-vocab-{name}.gguf")) else { return };
    let tokenizer = Tokenizer::from_metadata(Gguf::open(&path).unwrap().metadata()).unwrap();
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
    assert!(count >= 40, "{name}: only {count} strings");
    assert!(wrong.is_empty(), "{name}: {} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

macro_rules! vocabularies {
    ($($test:ident: $name:literal;)*) => { $(#[test] fn $test() { agrees($name); })* };
}

vocabularies! {
    agrees_with_llama_cpp_on_llama_spm: "llama-spm";
    agrees_with_llama_cpp_on_phi_3: "phi-3";
    agrees_with_llama_cpp_on_llama_bpe: "llama-bpe";
    agrees_with_llama_cpp_on_gpt_2: "gpt-2";
    agrees_with_llama_cpp_on_qwen2: "qwen2";
    agrees_with_llama_cpp_on_starcoder: "starcoder";
    agrees_with_llama_cpp_on_falcon: "falcon";
    agrees_with_llama_cpp_on_deepseek_coder: "deepseek-coder";
}
