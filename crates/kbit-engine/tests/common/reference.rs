//! Texts and logits of other people's programs.

use super::common::{bits, logits};
use kbit_engine::Model;
use safetensors::SafeTensors;
use std::path::Path;

/// `input_ids` and `logits` of Hugging Face transformers.
pub fn reference(folder: &Path) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(folder.join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap().data().as_chunks::<8>().0;
    let ids = ids.iter().map(|bytes| u32::try_from(i64::from_le_bytes(*bytes)).unwrap()).collect();
    let logits = file.tensor("logits").unwrap().data().as_chunks::<4>().0;
    (ids, logits.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Largest difference in units of the standard deviation of the expected values.
pub fn difference(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / want.len() as f64;
    let variance = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / want.len() as f64;
    let worst = got.iter().zip(want).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    worst / variance.sqrt()
}

/// Logits of a text in one batch, after checking that token by token and in pieces of several lengths they are the same.
pub fn in_every_way(model: &Model, ids: &[u32]) -> Vec<f32> {
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
    whole
}
