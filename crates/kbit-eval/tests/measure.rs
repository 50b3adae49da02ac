//! Figures on the embedded models, against plain formulas, and what they may not depend on.
#![expect(clippy::print_stdout, reason = "tests say what they measured and what they skipped")]

#[path = "../../kbit-engine/tests/common/mod.rs"]
mod common;

use common::{load_folder, logits, model, random_tensors, repository, small, tokens, with_threads};
use kbit_engine::Model;
use kbit_eval::{Divergence, EvalError, Reference, Windows, kl_divergence, perplexity};
use kbit_tokenizers::Tokenizer;
use kbit_types::GgmlType;
use std::sync::Mutex;

fn nothing(_: usize, _: usize) {}

fn divergence(
    reference: &Model,
    candidates: &[&Model],
    tokens: &[u32],
    windows: &Windows,
) -> Result<Vec<Divergence>, EvalError> {
    kl_divergence(&Reference::new(reference, tokens, windows)?, candidates, &nothing)
}

/// `ln(softmax(logits))` in double precision.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - f64::from(max) - total.ln()).collect()
}

/// Log-probabilities of every scored token's place, by window, straight from the definition.
fn scored(model: &Model, tokens: &[u32], windows: &Windows) -> Vec<(u32, Vec<f64>)> {
    let vocab = model.description().vocab;
    let mut rows = Vec::new();
    let step = windows.stride.unwrap_or(windows.context);
    for window in tokens.windows(windows.context).step_by(step).take(windows.chunks.unwrap_or(usize::MAX)) {
        let mut input = window.to_vec();
        input[0] = windows.bos.unwrap_or(input[0]);
        let logits = logits(model, &input);
        let first = windows.stride.map_or(windows.context / 2, |stride| windows.context - stride - 1);
        for place in first..windows.context - 1 {
            rows.push((window[place + 1], log_softmax(&logits[place * vocab..][..vocab])));
        }
    }
    rows
}

#[test]
fn figures_are_those_of_the_definition() {
    let d = small();
    let reference = model(&d, &random_tensors(&d, 1, true));
    let mut other = d.clone();
    other.norm.epsilon = 0.1;
    other.attention.scale = 0.2;
    let candidate = model(&other, &random_tensors(&d, 1, true));
    let tokens = tokens(&d, 301, 3);
    for (context, stride, chunks, bos) in [
        (20, None, None, Some(5)),
        (33, None, Some(4), None),
        (3, None, Some(9), Some(1)),
        (300, None, None, None),
        (20, Some(7), None, Some(5)),
        (20, Some(19), Some(3), None),
    ] {
        let windows = Windows { context, stride, chunks, bos };
        let p = scored(&reference, &tokens, &windows);
        let q = scored(&candidate, &tokens, &windows);
        let nll = |rows: &[(u32, Vec<f64>)]| {
            -rows.iter().map(|(token, row)| row[*token as usize]).sum::<f64>() / rows.len() as f64
        };
        let found = perplexity(&reference, &tokens, &windows, &nothing).unwrap();
        assert_eq!(found.tokens as usize, p.len());
        assert!((found.nll - nll(&p)).abs() < 1e-6, "{} {}", found.nll, nll(&p));
        assert_eq!(found.per_chunk.len() as u64, found.chunks);
        assert_eq!(found.per_chunk.last(), Some(&found.value));

        let found = divergence(&reference, &[&candidate, &reference], &tokens, &windows).unwrap();
        let klds: Vec<f64> = p
            .iter()
            .zip(&q)
            .map(|((_, p), (_, q))| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum())
            .collect();
        let mean = klds.iter().sum::<f64>() / klds.len() as f64;
        assert!((found[0].mean_kld - mean).abs() < 1e-6 * mean.max(1e-3), "{} {mean}", found[0].mean_kld);
        let largest = klds.iter().copied().fold(0.0, f64::max);
        assert!((found[0].spread.max - largest).abs() < 1e-6);
        let top = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
        let same = p.iter().zip(&q).filter(|((_, p), (_, q))| top(p) == top(q)).count();
        assert!((found[0].same_top - same as f64 / p.len() as f64).abs() < 1e-12);
        let changes: Vec<f64> = p
            .iter()
            .zip(&q)
            .map(|((token, p), (_, q))| q[*token as usize].exp() - p[*token as usize].exp())
            .collect();
        let mean = changes.iter().sum::<f64>() / changes.len() as f64;
        assert!((found[0].true_token.mean - mean).abs() < 1e-6);
        let smallest = changes.iter().copied().fold(f64::INFINITY, f64::min);
        assert!((found[0].true_token.spread.min - smallest).abs() < 1e-6);
        let right = |(token, row): &(u32, Vec<f64>)| top(row) == Some(*token as usize);
        let lost = p.iter().zip(&q).filter(|(p, q)| right(p) && !right(q)).count();
        let won = p.iter().zip(&q).filter(|(p, q)| !right(p) && right(q)).count();
        let flips = found[0].flips;
        assert!((flips.to_wrong - lost as f64 / p.len() as f64).abs() < 1e-12);
        assert!((flips.to_right - won as f64 / p.len() as f64).abs() < 1e-12);
        assert!((flips.share - flips.to_wrong - flips.to_right).abs() < 1e-12);
        let scored = windows.scored();
        assert_eq!(found[0].window_klds.len(), klds.len() / scored);
        for (window, klds) in found[0].window_klds.iter().zip(klds.chunks(scored)) {
            assert!((window - klds.iter().sum::<f64>()).abs() < 1e-6 * klds.len() as f64);
        }
        let windows_sum: f64 = found[0].perplexity.window_nlls.iter().sum();
        assert!((windows_sum / found[0].tokens as f64 - found[0].perplexity.nll).abs() < 1e-9);
        assert!((found[0].ln_ppl_ratio - (nll(&q) - nll(&p))).abs() < 1e-6);
        assert_eq!(
            (found[1].mean_kld, found[1].spread.max, found[1].same_top, found[1].ln_ppl_ratio),
            (0.0, 0.0, 1.0, 0.0)
        );
        assert_eq!(found[0].reference, found[1].perplexity);
    }
}

/// The embedded evaluation text as tokens of an embedded model.
fn prose(metadata: &kbit_formats::gguf::Metadata) -> (Tokenizer, Vec<u32>) {
    let text = std::fs::read_to_string(repository().join("assets/text/prose.txt")).unwrap();
    let tokenizer = Tokenizer::from_metadata(metadata).unwrap();
    let tokens = tokenizer.encode(&text, true, false);
    (tokenizer, tokens)
}

#[test]
fn larger_models_of_the_family_predict_better() {
    let mut last = f64::INFINITY;
    for name in ["s0", "s1", "s2", "s3"] {
        let (model, metadata) = load_folder(&repository().join("assets/family").join(name), None);
        let (tokenizer, tokens) = prose(&metadata);
        let bos = tokenizer.adds_bos().then(|| tokenizer.bos()).flatten();
        let windows = Windows { context: 256, stride: None, chunks: Some(12), bos };
        let found = perplexity(&model, &tokens, &windows, &nothing).unwrap();
        let bytes = windows.scored_bytes(&tokenizer, &tokens).unwrap();
        println!(
            "{name}: perplexity {:.2} +- {:.2} over {} tokens, {:.3} bits a byte",
            found.value,
            found.stderr,
            found.tokens,
            found.bits_per_byte(bytes)
        );
        assert!(found.value < last, "{name}: {} after {last}", found.value);
        // Far from a uniform guess among 2048 tokens, and no better than English allows.
        assert!(found.nll > 2.0 && found.nll < 5.5, "{name}: {} nats", found.nll);
        assert!((1.0..3.0).contains(&found.bits_per_byte(bytes)));
        last = found.value;
    }
}

#[test]
fn coarser_types_diverge_more() {
    let folder = repository().join("assets/family/s1");
    let (reference, metadata) = load_folder(&folder, None);
    let types = [GgmlType::Q8_0, GgmlType::Q5_0, GgmlType::Q4_0];
    let models: Vec<_> = types.iter().map(|&ty| load_folder(&folder, Some(ty)).0).collect();
    let candidates: Vec<_> = models.iter().collect();
    let windows = Windows { context: 128, stride: None, chunks: Some(8), bos: None };
    let found = divergence(&reference, &candidates, &prose(&metadata).1, &windows).unwrap();
    for (ty, d) in types.iter().zip(&found) {
        println!("{ty}: {:.6} nats, median {:.6}, same top {:.3}", d.mean_kld, d.spread.median, d.same_top);
        assert!(d.mean_kld > 0.0 && d.spread.median < d.spread.p99 && d.spread.p99 <= d.spread.max);
    }
    assert!(found[0].mean_kld < 0.1 * found[1].mean_kld && found[1].mean_kld < found[2].mean_kld);
    assert!(found[0].same_top > found[2].same_top);
}

#[test]
fn later_passes_give_the_figures_of_a_first_one_however_much_is_kept() {
    let folder = repository().join("assets/family/s0");
    let (model, metadata) = load_folder(&folder, None);
    let candidates = [GgmlType::Q4_0, GgmlType::Q8_0].map(|ty| load_folder(&folder, Some(ty)).0);
    let tokens = prose(&metadata).1;
    // Groups of two windows, and a last one of one.
    let windows = Windows { context: 200, stride: None, chunks: Some(5), bos: Some(0) };
    let group = 2 * windows.scored() * model.description().hidden * 4;
    let first: Vec<_> =
        candidates.iter().flat_map(|one| divergence(&model, &[one], &tokens, &windows).unwrap()).collect();
    for bytes in [0, group, 2 * group + 1, Reference::KEPT_BYTES] {
        let reference = Reference::keeping(&model, &tokens, &windows, bytes).unwrap();
        for (candidate, first) in candidates.iter().zip(&first) {
            let found = kl_divergence(&reference, &[candidate], &nothing).unwrap();
            assert_eq!(&found[0], first, "{bytes} bytes kept");
        }
    }
}

#[test]
fn figures_do_not_depend_on_the_thread_count() {
    let folder = repository().join("assets/family/s0");
    let (reference, metadata) = load_folder(&folder, None);
    let (candidate, _) = load_folder(&folder, Some(GgmlType::Q4_0));
    let tokens = prose(&metadata).1;
    let windows = Windows { context: 100, stride: None, chunks: Some(11), bos: Some(0) };
    let run = |threads| {
        with_threads(threads, || {
            let alone = perplexity(&candidate, &tokens, &windows, &nothing).unwrap();
            let d = divergence(&reference, &[&candidate], &tokens, &windows).unwrap();
            assert_eq!(alone, d[0].perplexity);
            d
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}

#[test]
fn progress_reaches_the_end_once() {
    let d = small();
    let model = model(&d, &random_tensors(&d, 1, true));
    let seen = Mutex::new(Vec::new());
    let windows = Windows { context: 200, stride: None, chunks: None, bos: None };
    let progress = |done, total| seen.lock().unwrap().push((done, total));
    perplexity(&model, &tokens(&d, 1100, 1), &windows, &progress).unwrap();
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!(seen.last(), Some(&(5, 5)));
    assert_eq!(seen.iter().filter(|&&(done, _)| done == 5).count(), 1);
}

#[test]
fn models_of_other_vocabularies_are_refused() {
    let d = small();
    let mut wider = d.clone();
    wider.vocab += 1;
    let (a, b) = (model(&d, &random_tensors(&d, 1, true)), model(&wider, &random_tensors(&wider, 1, true)));
    let windows = Windows { context: 20, stride: None, chunks: None, bos: None };
    let error = divergence(&a, &[&a, &b], &tokens(&d, 50, 1), &windows).unwrap_err();
    assert!(matches!(error, EvalError::Vocabulary { candidate: 1, found: 98, wanted: 97 }), "{error}");
}

#[test]
fn weights_that_are_not_numbers_are_an_error_with_its_place() {
    let d = small();
    let mut tensors = random_tensors(&d, 1, true);
    let mut data = common::noise(97 * 40, 1);
    data[40 * 7 + 3] = f32::NAN;
    let plain = common::Plain { rows: 97, cols: 40, data, group: 1, open: true };
    tensors.insert("token_embd.weight".to_owned(), vec![std::sync::Arc::new(plain)]);
    let model = model(&d, &tensors);
    let windows = Windows { context: 20, stride: None, chunks: None, bos: None };
    let error = perplexity(&model, &tokens(&d, 50, 1), &windows, &nothing).unwrap_err();
    assert!(matches!(&error, EvalError::NotFinite { token: 11, .. }), "{error}");
    let error = divergence(&model, &[], &tokens(&d, 50, 1), &windows).unwrap_err();
    assert!(error.to_string().starts_with("the reference: the logits at token 11"), "{error}");
}

#[test]
fn a_text_shorter_than_a_window_is_refused() {
    let d = small();
    let model = model(&d, &random_tensors(&d, 1, true));
    let windows = Windows { context: 64, stride: None, chunks: None, bos: None };
    let error = perplexity(&model, &tokens(&d, 63, 1), &windows, &nothing).unwrap_err();
    assert!(matches!(error, EvalError::TooShort { had: 63, needed: 64 }));
}
