//! Agreement with other people's programs on real files. Skipped, with a line that says so, without ../shared.
#![expect(clippy::print_stdout, reason = "tests say what they measured and what they skipped")]

mod common;

use common::{bits, load_folder, load_gguf, logits, shared};
use kbit_engine::Model;
use safetensors::SafeTensors;
use std::path::Path;

/// `input_ids` and `logits` of Hugging Face transformers.
fn reference(folder: &Path) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(folder.join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap().data().as_chunks::<8>().0;
    let ids = ids.iter().map(|bytes| u32::try_from(i64::from_le_bytes(*bytes)).unwrap()).collect();
    let logits = file.tensor("logits").unwrap().data().as_chunks::<4>().0;
    (ids, logits.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Largest difference in units of the standard deviation of the expected values.
fn difference(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / want.len() as f64;
    let variance = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / want.len() as f64;
    let worst = got.iter().zip(want).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    worst / variance.sqrt()
}

/// Largest difference of the logits of a model, computed in one batch, token by token and in pieces of several lengths.
fn worst(model: &Model, ids: &[u32], expected: &[f32]) -> f64 {
    let whole = logits(model, ids);
    let lengths: [&[usize]; 2] = [&[1], &[3, 1, 7, 2, 16]];
    for lengths in lengths {
        let mut session = model.session(ids.len());
        let (mut pieces, mut rest) = (Vec::new(), ids);
        for &length in lengths.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, others) = rest.split_at(length.min(rest.len()));
            let mut part = Vec::new();
            session.forward(piece, 0, &mut part).unwrap();
            pieces.extend(part);
            rest = others;
        }
        assert_eq!(bits(&whole), bits(&pieces), "pieces of {lengths:?}");
    }
    difference(&whole, expected)
}

#[test]
fn logits_agree_with_transformers() {
    let Some(folder) = shared("reference/hf") else { return };
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.is_dir());
    names.sort();
    for folder in names {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let (ids, expected) = reference(&folder);
        let gguf = folder.join("expected-f32.gguf");
        let mut forms = vec![("the checkpoint", load_folder(&folder, None).0)];
        if gguf.exists() {
            forms.push(("the converter's GGUF", load_gguf(&gguf).0));
        }
        for (form, model) in forms {
            let difference = worst(&model, &ids, &expected);
            println!("{name} from {form}: {difference:.1e} of the logits' deviation");
            assert!(difference < 1e-4, "{name} from {form}: {difference}");
        }
    }
}
