//! Paired tests: against scipy (`tests/python/paired_golden.py`), and on records of runs.

mod common;

use common::{Noise, figure};
use kbit_laws::paired::{
    CompareError, CompareOptions, Comparisons, Paired, Sample, Source, Verdict, compare, holm,
    lower_is_better,
};
use kbit_results::{DataInfo, Items, Measurement, SCHEMA};
use serde_json::Value;

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/paired.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the file")).expect("JSON")
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
}

#[test]
fn figures_equal_those_of_scipy() {
    let golden = golden();
    let cases = golden["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 7);
    for (number, case) in cases.iter().enumerate() {
        let [a, b] = ["a", "b"].map(|side| numbers(&case[side]));
        let weights = case["weights"].is_array().then(|| numbers(&case["weights"]));
        let items = a.len() as f64;
        let paired = Paired::new(&a, &b, weights.as_deref()).expect("pairs");
        let found = Sample::new(vec![paired]).expect("a text").test(20_000, 3);
        let wanted = |key: &str| case[key].as_f64().expect("a number");
        assert!((found.difference - wanted("difference")).abs() < 1e-12, "case {number}");
        // The bootstrap's spread is that of the formula but for n - 1 in the place of n.
        let formula = found.stderr.expect("an error") * ((items - 1.0) / items).sqrt();
        assert!((formula / wanted("stderr") - 1.0).abs() < 0.05, "case {number}: {formula}, {case}");
        let interval = found.interval.expect("an interval");
        let limits = numbers(&case["interval"]);
        for (found, wanted) in [(interval.low, limits[0]), (interval.high, limits[1])] {
            assert!((found - wanted).abs() < 0.12 * formula, "case {number}: {found}, {wanted}");
        }
        let p = found.p_value.expect("a p value");
        // Two times 40,000 and 20,000 random signs: five standard errors.
        let tolerance = if case["exact"] == true { 1e-12 } else { 0.022 };
        assert!((p - wanted("p")).abs() <= tolerance, "case {number}: {p}, {}", wanted("p"));
    }
    for case in golden["holm"].as_array().expect("cases") {
        for (found, wanted) in holm(&numbers(&case["p"])).iter().zip(numbers(&case["corrected"])) {
            assert!((found - wanted).abs() < 1e-12, "{case}");
        }
    }
}

#[test]
fn the_test_of_equals_is_wrong_as_often_as_it_says() {
    let mut noise = Noise::new(11);
    let mut small = 0;
    for seed in 0..300 {
        let a: Vec<f64> = (0..24).map(|_| noise.next()).collect();
        let b: Vec<f64> = (0..24).map(|_| noise.next()).collect();
        let sample = Sample::new(vec![Paired::new(&a, &b, None).expect("pairs")]).expect("a text");
        small += usize::from(sample.p_value(999, seed).expect("a p value") < 0.05);
    }
    // 15 of 300 expected, with a standard error of 3.8.
    assert!((4..=28).contains(&small), "{small} of 300 below 0.05");
}

#[test]
fn texts_count_alike_whatever_their_length() {
    let long = Paired::new(&[2.0; 30], &[1.0; 30], None).expect("pairs");
    let short = Paired::new(&[1.0, 1.5], &[1.0, 1.0], None).expect("pairs");
    let found = Sample::new(vec![long, short.clone()]).expect("texts").test(1000, 1);
    assert!((found.difference - 0.5 * (1.0 + 0.25)).abs() < 1e-12);
    assert!((found.stderr.expect("an error") - 0.5 * short.stderr().expect("an error")).abs() < 1e-12);
    assert_eq!(found.items, 32);
    assert!(found.p_value.expect("a p value") < 0.01);
}

#[test]
fn a_single_item_says_nothing() {
    let found =
        Sample::new(vec![Paired::new(&[3.0], &[1.0], None).expect("a pair")]).expect("a text").test(1000, 1);
    assert_eq!((found.difference, found.stderr, found.interval, found.p_value), (2.0, None, None, None));
    assert_eq!(found.least_p_value, 1.0);
    assert!(Paired::new(&[1.0], &[1.0, 2.0], None).is_none());
    assert!(Paired::new(&[1.0], &[2.0], Some(&[0.0])).is_none());
    assert!(Paired::new(&[f64::NAN], &[2.0], None).is_none());
    assert!(Sample::new(Vec::new()).is_none());
}

fn data(name: &str) -> DataInfo {
    DataInfo {
        name: name.into(),
        sha256: format!("hash of {name}"),
        context: Some(16),
        stride: None,
        chunks: Some(24),
    }
}

/// Losses of 24 windows: what each window has of its own, and `shift` a token with a little noise.
fn items(model: &str, scheme: &str, text: &str, shift: f64, seed: u64) -> Items {
    let (mut own, mut noise) = (Noise::new(1), Noise::new(seed));
    Items {
        schema: SCHEMA,
        model: model.into(),
        scheme: scheme.into(),
        metric: "nll".into(),
        mode: "f32".into(),
        cache_type: "f32".into(),
        data: data(text),
        values: (0..24).map(|_| 7.0 * (3.0 + own.next() + shift + 0.01 * noise.next())).collect(),
        weights: Some(vec![7.0; 24]),
    }
}

fn source(name: &str, items: Vec<Items>) -> Source {
    Source {
        name: name.into(),
        items: items.into_iter().enumerate().map(|(i, items)| (i + 1, items)).collect(),
        measurements: Vec::new(),
    }
}

fn run(sources: &[Source], names: &[&str]) -> Result<Comparisons, CompareError> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    compare(sources, &CompareOptions { metric: "nll".into(), names, resamples: 2000, seed: 1, alpha: 0.05 })
}

fn verdicts(found: &Comparisons) -> Vec<(String, String, Verdict)> {
    found.pairs.iter().map(|pair| (pair.a.name(), pair.b.name(), pair.verdict)).collect()
}

#[test]
fn what_differs_is_found_and_what_does_not_is_called_that() {
    let all = source(
        "items.jsonl",
        vec![
            items("m", "none", "prose", 0.0, 2),
            items("m", "q8", "prose", 0.0, 3),
            items("m", "q4", "prose", 0.05, 4),
            items("m", "copy", "prose", 0.05, 4),
        ],
    );
    let found = run(std::slice::from_ref(&all), &["q4", "unquantized"]).expect("a pair");
    assert_eq!(verdicts(&found), [("m/q4".into(), "m/none".into(), Verdict::Second)]);
    let pair = &found.pairs[0];
    // Windows differ by 1, schemes by 0.05: only paired can that be seen.
    assert!((pair.tested.difference - 0.05).abs() < 0.01 && pair.tested.stderr.expect("an error") < 0.005);
    assert!(pair.value_a > pair.value_b && pair.p_corrected == pair.tested.p_value);
    let found = run(std::slice::from_ref(&all), &["q8", "none"]).expect("a pair");
    assert_eq!(found.pairs[0].verdict, Verdict::NotDistinguishable);
    let found = run(std::slice::from_ref(&all), &["q4", "copy"]).expect("a pair");
    assert_eq!(found.pairs[0].verdict, Verdict::Equal);
    let found = run(std::slice::from_ref(&all), &[]).expect("pairs");
    assert_eq!(found.pairs.len(), 6);
    assert!(found.pairs.iter().all(|pair| pair.p_corrected >= pair.tested.p_value), "{found:?}");
    assert_eq!(run(&[all], &["q4"]).expect("pairs").pairs.len(), 3);
}

#[test]
fn more_is_better_where_shares_are_compared() {
    assert!(lower_is_better("nll") && lower_is_better("kl_divergence") && lower_is_better("perplexity"));
    assert!(!lower_is_better("acc") && !lower_is_better("bleu") && !lower_is_better("same_top"));
    let mut of = [items("m", "a", "task", 0.0, 1), items("m", "b", "task", 0.0, 1)];
    for (side, items) in of.iter_mut().enumerate() {
        items.metric = "acc".into();
        items.weights = None;
        items.values = (0..24).map(|item| if side == 0 || item % 2 == 0 { 1.0 } else { 0.0 }).collect();
    }
    let options =
        CompareOptions { metric: "acc".into(), names: Vec::new(), resamples: 2000, seed: 1, alpha: 0.05 };
    let found = compare(&[source("items.jsonl", of.to_vec())], &options).expect("a pair");
    assert_eq!((found.pairs[0].verdict, found.lower_is_better), (Verdict::First, false));
    // Twelve of twelve differences are of one sign.
    assert!(found.pairs[0].tested.p_value.expect("a p value") < 0.01);
}

#[test]
fn names_choose_pairs_in_which_one_thing_differs_or_those_in_full() {
    let all = source(
        "items.jsonl",
        vec![
            items("m", "none", "prose", 0.0, 2),
            items("m", "q4", "prose", 0.1, 3),
            items("n", "none", "prose", 0.2, 4),
            items("n", "q4", "prose", 0.3, 5),
        ],
    );
    let names = |wanted: &[&str]| -> Vec<String> {
        let found = run(std::slice::from_ref(&all), wanted).expect("pairs");
        found.pairs.iter().map(|pair| format!("{} {}", pair.a.name(), pair.b.name())).collect()
    };
    assert_eq!(names(&["none", "q4"]), ["m/none m/q4", "n/none n/q4"]);
    assert_eq!(names(&["m", "n"]), ["m/none n/none", "m/q4 n/q4"]);
    assert_eq!(names(&["m/none", "n/q4"]), ["m/none n/q4"]);
    assert_eq!(names(&[]).len(), 4);
    let message = run(&[all], &["m/q4", "q5"]).expect_err("no q5").to_string();
    assert!(message.contains("`q5`") && message.contains("m/none, m/q4, n/none, n/q4"), "{message}");
}

#[test]
fn several_texts_are_averaged() {
    let all = source(
        "items.jsonl",
        vec![
            items("m", "a", "prose", 0.0, 2),
            items("m", "a", "code", 0.0, 3),
            items("m", "b", "prose", 0.1, 4),
            items("m", "b", "code", 0.3, 5),
        ],
    );
    let found = run(&[all], &["a", "b"]).expect("a pair");
    let pair = &found.pairs[0];
    assert_eq!(pair.texts.iter().map(|text| text.name.as_str()).collect::<Vec<_>>(), ["prose", "code"]);
    let mean = pair.texts.iter().map(|text| text.difference).sum::<f64>() / 2.0;
    assert!((pair.tested.difference - mean).abs() < 1e-12 && (mean + 0.2).abs() < 0.02);
    assert_eq!((pair.tested.items, pair.verdict), (48, Verdict::First));
}

#[test]
fn what_cannot_be_compared_says_why_and_what_to_do() {
    let refused = |sources: &[Source]| run(sources, &["a", "b"]).expect_err("refused").to_string();
    // Other texts.
    let texts =
        source("items.jsonl", vec![items("m", "a", "prose", 0.0, 1), items("m", "b", "code", 0.0, 2)]);
    let message = refused(&[texts]);
    for wanted in ["m/a and m/b", "prose, 24 windows of 16 tokens", "code, 24", "in one run"] {
        assert!(message.contains(wanted), "no {wanted} in {message}");
    }
    // Other numbers of tokens in the windows of one text.
    let mut other = items("m", "b", "prose", 0.0, 2);
    other.weights = Some(vec![8.0; 24]);
    let message =
        refused(&[source("one", vec![items("m", "a", "prose", 0.0, 1)]), source("two", vec![other])]);
    assert!(
        message.contains("one:1") && message.contains("two:1") && message.contains("tokenizers"),
        "{message}"
    );
    // Other metrics.
    let options =
        CompareOptions { metric: "acc".into(), names: Vec::new(), resamples: 100, seed: 1, alpha: 0.05 };
    let message = compare(&[source("one", vec![items("m", "a", "prose", 0.0, 1)])], &options)
        .expect_err("no acc")
        .to_string();
    assert!(message.contains("no values of acc") && message.contains("only of nll"), "{message}");
    // One alone.
    let message =
        run(&[source("one", vec![items("m", "a", "prose", 0.0, 1)])], &[]).expect_err("one").to_string();
    assert!(message.contains("no pair") && message.contains("m/a"), "{message}");
    // Numbers that do not fit together.
    let mut torn = items("m", "b", "prose", 0.0, 2);
    torn.values.pop();
    let message = refused(&[source("one", vec![items("m", "a", "prose", 0.0, 1), torn])]);
    assert!(message.contains("one:2: 23 values and 24 weights"), "{message}");
}

#[test]
fn models_whose_tokenizers_split_the_text_otherwise_are_refused() {
    let bits = |model: &str, per_token: f64| -> Vec<Measurement> {
        [("bits_per_token", 4.0), ("bits_per_byte", 4.0 / per_token)]
            .map(|(metric, value)| {
                let mut found = figure(1000, "none", 16.0, metric, value);
                found.model.id = model.into();
                found.data = Some(data("prose"));
                found
            })
            .to_vec()
    };
    let mut all =
        source("items.jsonl", vec![items("m", "none", "prose", 0.0, 1), items("n", "none", "prose", 0.1, 2)]);
    all.measurements = [bits("m", 3.5), bits("n", 3.5)].concat();
    assert_eq!(run(std::slice::from_ref(&all), &["m", "n"]).expect("one tokenizer").pairs.len(), 1);
    all.measurements = [bits("m", 3.5), bits("n", 4.1)].concat();
    let message = run(&[all], &["m", "n"]).expect_err("two tokenizers").to_string();
    for wanted in ["m and n split prose", "3.500 and 4.100", "bits_per_byte"] {
        assert!(message.contains(wanted), "no {wanted} in {message}");
    }
}

#[test]
fn records_that_contradict_each_other_are_named_with_file_and_line() {
    let first = items("m", "a", "prose", 0.0, 1);
    let mut again = first.clone();
    let fine = [
        source("one", vec![first.clone(), items("m", "b", "prose", 0.1, 2)]),
        source("two", vec![again.clone()]),
    ];
    assert_eq!(run(&fine, &[]).expect("the same twice").pairs.len(), 1);
    again.values[5] += 0.5;
    let two = [source("one", vec![first]), source("two", vec![items("m", "b", "prose", 0.1, 2), again])];
    let message = run(&two, &[]).expect_err("a contradiction").to_string();
    for wanted in ["nll of m/a on prose", "one:1", "two:2", "measure again"] {
        assert!(message.contains(wanted), "no {wanted} in {message}");
    }
}
