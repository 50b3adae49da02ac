//! What models know of texts: against dense tables computed by numpy (`tests/python/information_golden.py`), and on models.
#![expect(clippy::print_stdout, reason = "what the tests share says what it skipped")]

#[path = "../../kbit-engine/tests/common/mod.rs"]
mod common;

use common::{logits, model, random_tensors, small, tokens, with_threads};
use kbit_engine::Sampling;
use kbit_eval::{
    Baseline, Baselines, EvalError, Information, Unknown, Windows, continued, diversity, information,
    perplexity,
};
use serde_json::Value;

fn nothing(_: usize, _: usize) {}

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/information.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[track_caller]
fn close(found: f64, wanted: &Value, what: &str) {
    let wanted = wanted.as_f64().unwrap_or_else(|| panic!("{what}: {wanted} is no number"));
    assert!((found - wanted).abs() < 1e-10, "{what}: {found}, not {wanted}");
}

#[track_caller]
fn error_close(found: Option<f64>, wanted: &Value, what: &str) {
    match found {
        None => assert!(wanted.is_null(), "{what}: none, not {wanted}"),
        Some(found) => close(found, wanted, what),
    }
}

#[test]
fn figures_equal_those_of_dense_tables() {
    let golden = golden();
    let vocabulary = usize::try_from(golden["vocabulary"].as_u64().unwrap()).unwrap();
    let baselines = Baselines::count(vocabulary, &ids(&golden["baseline"])).unwrap();
    let text = ids(&golden["text"]);
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for (number, case) in cases.iter().enumerate() {
        let nlls = numbers(&case["nlls"]);
        let scored = usize::try_from(case["scored"].as_u64().unwrap()).unwrap();
        let pairs: Vec<(u32, u32)> =
            text.windows(2).take(nlls.len()).map(|pair| (pair[0], pair[1])).collect();
        let per_token = case["bytes_per_token"].as_f64().unwrap();
        let bits: Vec<f64> =
            nlls.chunks(scored).map(|window| window.iter().sum::<f64>() / std::f64::consts::LN_2).collect();
        let unknown = Unknown::of_pairs(&baselines, &pairs, scored);
        let found = Information::new(&bits, scored, &unknown, per_token);
        close(found.bits_per_token, &case["bits_per_token"], &format!("case {number}"));
        error_close(found.stderr, &case["stderr"], &format!("case {number}"));
        let all: [(&str, Baseline); 3] =
            [("uniform", found.uniform), ("unigram", found.unigram), ("bigram", found.bigram)];
        for (name, baseline) in all {
            let (wanted, what) = (&case[name], format!("case {number}, {name}"));
            close(baseline.bits_per_token, &wanted["bits_per_token"], &what);
            close(baseline.reduction, &wanted["reduction"], &what);
            close(baseline.reduction_per_byte, &wanted["reduction_per_byte"], &what);
            close(baseline.share, &wanted["share"], &what);
            error_close(baseline.stderr, &wanted["stderr"], &what);
        }
    }
}

#[test]
fn the_models_side_is_its_perplexity() {
    let description = small();
    let model = model(&description, &random_tensors(&description, 1, true));
    let text = tokens(&description, 240, 3);
    let baselines = Baselines::count(description.vocab, &tokens(&description, 500, 4)).unwrap();
    for (context, stride) in [(24, None), (30, Some(7))] {
        let windows = Windows { context, stride, chunks: Some(5), bos: Some(1) };
        let found = information(&model, &text, &windows, &baselines, 2.5, &nothing).unwrap();
        let wanted = perplexity(&model, &text, &windows, &nothing).unwrap();
        assert_eq!((found.tokens, found.chunks), (wanted.tokens, wanted.chunks));
        assert!((found.bits_per_token - wanted.bits_per_token()).abs() < 1e-12);
        // Each scored token behind the one before it in the text: the first of a window has its own predecessor.
        let scored = windows.scored();
        let bits: f64 = (0..5)
            .flat_map(|window| {
                let end = window * stride.unwrap_or(context) + context;
                end - scored..end
            })
            .map(|place| -baselines.bigram(text[place - 1], text[place]).log2())
            .sum();
        assert!((found.bigram.bits_per_token - bits / (5.0 * scored as f64)).abs() < 1e-12);
    }
}

#[test]
fn what_a_model_writes_repeats_and_follows_its_likeliest_tokens() {
    let description = small();
    let model = model(&description, &random_tensors(&description, 1, true));
    let text = tokens(&description, 130, 5);
    let windows = Windows { context: 24, stride: None, chunks: None, bos: Some(2) };
    let greedy = continued(&model, &text, &windows, &Sampling::greedy(), &nothing).unwrap();
    assert_eq!(greedy.len(), 5 * 24);
    for (window, given) in greedy.chunks(24).zip(text.chunks(24)) {
        assert_eq!(window[..13], given[..13], "the beginning stays");
        let mut input = window.to_vec();
        input[0] = 2;
        let logits = logits(&model, &input);
        for place in 12..23 {
            let row = &logits[place * description.vocab..][..description.vocab];
            let chosen = row[window[place + 1] as usize];
            assert!(row.iter().all(|logit| *logit <= chosen + 1e-4), "place {place}");
        }
    }
    let sampling =
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 9, ..Sampling::greedy() };
    let written = continued(&model, &text, &windows, &sampling, &nothing).unwrap();
    let again = with_threads(1, || continued(&model, &text, &windows, &sampling, &nothing).unwrap());
    assert_eq!(written, again, "the same seed gives the same text on any number of threads");
    let other = Sampling { seed: 10, ..sampling.clone() };
    assert_ne!(written, continued(&model, &text, &windows, &other, &nothing).unwrap());
    assert_ne!(written[13..24], written[37..48], "windows draw numbers of their own");

    // 11 tokens of each of 5 windows: n-grams do not reach from one window into the next.
    let found = diversity(&written, &windows).unwrap();
    assert_eq!(found.map(|distinct| distinct.total), [55, 50, 45, 40]);
    assert!(found.iter().all(|distinct| distinct.distinct <= distinct.total && distinct.value > 0.0));
}

#[test]
fn texts_and_baselines_that_do_not_fit_are_refused_with_the_cure() {
    let description = small();
    let model = model(&description, &random_tensors(&description, 1, true));
    let text = vec![3; 60];
    let windows = Windows { context: 24, stride: None, chunks: None, bos: None };
    let measure = |text: &[u32], baselines: &Baselines| {
        information(&model, text, &windows, baselines, 1.0, &nothing).unwrap_err().to_string()
    };
    let known = Baselines::count(description.vocab, &[3, 4, 3]).unwrap();
    for short in [&[][..], &text[..23]] {
        let message = measure(short, &known);
        assert!(message.contains("one window needs 24") && message.contains("longer text"), "{message}");
    }
    let foreign = Baselines::count(description.vocab, &[5, 6, 7]).unwrap();
    let message = measure(&text, &foreign);
    assert!(message.contains("none of the tokens") && message.contains("same language"), "{message}");
    let message = measure(&text, &Baselines::count(9999, &[3, 4]).unwrap());
    assert!(message.contains("9999") && message.contains("the model's tokenizer"), "{message}");
    let overlapping = Windows { stride: Some(5), ..windows };
    let refused = continued(&model, &text, &overlapping, &Sampling::greedy(), &nothing);
    assert!(matches!(refused, Err(EvalError::ContinuedStride)));
}
