//! Every architecture against the logits of Hugging Face transformers, on the tiny random checkpoints in `models`, which
//! `tests/python/tiny_models.py` makes.
#![expect(clippy::print_stdout, reason = "tests say what they measured")]

mod common;

use common::{bits, difference, in_every_way, load_folder, logits, reference, repository, with_threads};
use kbit_models::architecture::ARCHITECTURES;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Folders of the checkpoints.
fn models() -> Vec<PathBuf> {
    let folder = repository().join("crates/kbit-engine/tests/models");
    let mut models: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    models
}

#[test]
fn logits_agree_with_transformers() {
    let mut wrong = Vec::new();
    for folder in models() {
        let (ids, expected) = reference(&folder);
        let (model, _) = load_folder(&folder, None);
        let difference = difference(&in_every_way(&model, &ids), &expected);
        println!("{}: {difference:.1e} of the logits' deviation", folder.display());
        // Sums of f32 in another order.
        if difference.is_nan() || difference > 1e-4 {
            wrong.push(format!("{}: {difference}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_architecture_that_can_be_run_has_a_checkpoint() {
    let tested: BTreeSet<String> = models()
        .iter()
        .map(|folder| load_folder(folder, None).0.description().architecture.clone())
        .collect();
    let runnable = ARCHITECTURES
        .iter()
        .filter(|a| a.forward.is_some())
        .map(|a| a.name.to_owned())
        .collect::<BTreeSet<_>>();
    assert_eq!(tested, runnable);
}

#[test]
fn results_do_not_depend_on_the_thread_count() {
    for folder in models() {
        let (ids, _) = reference(&folder);
        let (model, _) = load_folder(&folder, None);
        let run = |threads| with_threads(threads, || bits(&logits(&model, &ids)));
        let one = run(1);
        assert_eq!(one, run(2), "{}: 2 threads", folder.display());
        assert_eq!(one, run(3), "{}: 3 threads", folder.display());
    }
}

#[test]
fn a_file_says_what_its_folder_says() {
    for folder in models() {
        let (model, metadata) = load_folder(&folder, None);
        let (mut metadata, wanted) = (metadata, model.description().clone());
        let vocab = kbit_formats::gguf::Value::U32(u32::try_from(wanted.vocab).unwrap());
        metadata.insert(format!("{}.vocab_size", wanted.architecture), vocab);
        let names: BTreeSet<String> = common::names(&folder);
        let found = kbit_models::describe(&metadata, &|name| names.contains(name)).unwrap();
        // GGUF has no word for dynamic scaling.
        if !folder.ends_with("llama-dynamic") {
            assert_eq!(found, wanted, "{}", folder.display());
        }
    }
}
