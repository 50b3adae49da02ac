//! Agreement with other people's programs on real files. Skipped, with a line that says so, without ../shared.
#![expect(clippy::print_stdout, reason = "tests say what they measured and what they skipped")]

mod common;

use common::{load_folder, load_gguf, logits, shared};
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

#[test]
fn logits_agree_with_transformers() {
    for name in ["llama", "llama3-rope", "mistral"] {
        let Some(folder) = shared(&format!("reference/hf/{name}")) else { return };
        let (ids, expected) = reference(&folder);
        for (form, model) in [
            ("the converter's GGUF", load_gguf(&folder.join("expected-f32.gguf")).0),
            ("the checkpoint", load_folder(&folder, None).0),
        ] {
            let difference = difference(&logits(&model, &ids), &expected);
            println!("{name} from {form}: {difference:.1e} of the logits' deviation");
            assert!(difference < 1e-4, "{name} from {form}: {difference}");
        }
    }
}
