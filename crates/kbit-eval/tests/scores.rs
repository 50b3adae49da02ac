//! Scores against sacrebleu, rouge-score, lm-eval and scikit-learn (`tests/python/scores_golden.py`), and rules that they obey.

use kbit_eval::scores::{
    Bleu, BleuStatistics, Chrf, ChrfStatistics, Confusion, ExactMatch, LabelScores, Rouge, Smoothing,
    ZeroDivision, distinct_n, resample, stem,
};
use proptest::prelude::*;
use serde_json::Value;

/// The file of the other implementations' figures.
fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/scores.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Hypotheses and references.
type Corpus = (Vec<String>, Vec<Vec<String>>);

fn corpora(golden: &Value) -> Vec<Corpus> {
    let corpus = |corpus: &Value| {
        let references = corpus["references"].as_array().unwrap().iter().map(texts).collect();
        (texts(&corpus["hypotheses"]), references)
    };
    golden["corpora"].as_array().unwrap().iter().map(corpus).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn index(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

#[track_caller]
fn close(found: f64, wanted: &Value, tolerance: f64, what: &str) {
    let wanted = number(wanted);
    assert!((found - wanted).abs() <= tolerance, "{what}: {found}, not {wanted}");
}

/// Its signature with this crate's version in the place of theirs.
fn signature(line: &Value) -> String {
    let theirs = line["signature"].as_str().unwrap();
    let (before, _) = theirs.split_once("version:").unwrap();
    format!("{before}version:kbit-{}", env!("CARGO_PKG_VERSION"))
}

#[test]
fn bleu_equals_sacrebleu() {
    let golden = golden();
    let corpora = corpora(&golden);
    let lines = golden["bleu"].as_array().unwrap();
    assert!(lines.len() > 100);
    for line in lines {
        let (hypotheses, references) = &corpora[index(&line["corpus"])];
        let options = &line["options"];
        let flag = |name: &str| options[name].as_bool().unwrap_or(false);
        let bleu = Bleu {
            tokenizer: options["tokenize"].as_str().unwrap_or("13a").parse().unwrap(),
            lowercase: flag("lowercase"),
            smoothing: Smoothing::parse(
                options["smooth_method"].as_str().unwrap_or("exp"),
                options["smooth_value"].as_f64(),
            )
            .unwrap(),
            effective_order: flag("effective_order"),
            max_order: options["max_ngram_order"].as_u64().map_or(4, |n| usize::try_from(n).unwrap()),
        };
        let what = format!("corpus {} {options}", line["corpus"]);
        let found = bleu.corpus(hypotheses, references).unwrap();
        close(found.score, &line["score"], 1e-6, &what);
        close(found.brevity_penalty, &line["brevity_penalty"], 1e-9, &what);
        assert_eq!(found.statistics.hypothesis_length, line["hypothesis_length"].as_u64().unwrap(), "{what}");
        assert_eq!(found.statistics.reference_length, line["reference_length"].as_u64().unwrap(), "{what}");
        for (found, wanted) in found.precisions.iter().zip(line["precisions"].as_array().unwrap()) {
            close(*found, wanted, 1e-6, &what);
        }
        let sentences = line["sentences"].as_array().unwrap();
        for ((hypothesis, references), wanted) in hypotheses.iter().zip(references).zip(sentences) {
            let found = bleu.sentence(hypothesis, references).unwrap();
            close(found.score, wanted, 1e-6, &format!("{what} {hypothesis:?} {references:?}"));
        }
        assert_eq!(bleu.signature(references), signature(line));
    }
}

#[test]
fn chrf_equals_sacrebleu() {
    let golden = golden();
    let corpora = corpora(&golden);
    for line in golden["chrf"].as_array().unwrap() {
        let (hypotheses, references) = &corpora[index(&line["corpus"])];
        let options = &line["options"];
        let flag = |name: &str| options[name].as_bool().unwrap_or(false);
        let count = |name: &str, usual: u64| options[name].as_u64().unwrap_or(usual);
        let chrf = Chrf {
            char_order: usize::try_from(count("char_order", 6)).unwrap(),
            word_order: usize::try_from(count("word_order", 0)).unwrap(),
            beta: u32::try_from(count("beta", 2)).unwrap(),
            lowercase: flag("lowercase"),
            whitespace: flag("whitespace"),
            eps_smoothing: flag("eps_smoothing"),
        };
        let what = format!("corpus {} {options}", line["corpus"]);
        close(chrf.corpus(hypotheses, references).unwrap(), &line["score"], 1e-6, &what);
        let sentences = line["sentences"].as_array().unwrap();
        for ((hypothesis, references), wanted) in hypotheses.iter().zip(references).zip(sentences) {
            let found = chrf.sentence(hypothesis, references).unwrap();
            close(found, wanted, 1e-6, &format!("{what} {hypothesis:?} {references:?}"));
        }
        assert_eq!(chrf.signature(references), signature(line));
    }
}

#[test]
fn rouge_equals_rouge_score() {
    let golden = golden();
    let corpora = corpora(&golden);
    for line in golden["rouge"].as_array().unwrap() {
        let (hypotheses, references) = &corpora[index(&line["corpus"])];
        let rouge = Rouge { stemming: line["stemming"].as_bool().unwrap() };
        let documents = rouge.documents(hypotheses, references).unwrap();
        let wanted = line["documents"].as_array().unwrap();
        assert_eq!(documents.len(), wanted.len());
        for ((found, wanted), hypothesis) in documents.iter().zip(wanted).zip(hypotheses) {
            for (name, found) in found.named() {
                let what = format!("{name}, stemming {}: {hypothesis:?}", rouge.stemming);
                close(found.precision, &wanted[name][0], 1e-6, &what);
                close(found.recall, &wanted[name][1], 1e-6, &what);
                close(found.f1, &wanted[name][2], 1e-6, &what);
            }
        }
        let mean = documents.iter().map(|found| found.rouge_l.f1).sum::<f64>() / documents.len() as f64;
        assert!((rouge.corpus(hypotheses, references).unwrap().rouge_l.f1 - mean).abs() < 1e-12);
    }
}

#[test]
fn stems_equal_nltk() {
    let golden = golden();
    let stems = golden["stems"].as_array().unwrap();
    assert!(stems.len() > 1500);
    for pair in stems {
        let word = pair[0].as_str().unwrap();
        assert_eq!(stem(word), pair[1].as_str().unwrap(), "{word}");
    }
}

#[test]
fn exact_match_equals_lm_eval() {
    let golden = golden();
    let exact = &golden["exact"];
    let (predictions, references) = (texts(&exact["predictions"]), texts(&exact["references"]));
    let references: Vec<Vec<String>> = references.into_iter().map(|text| vec![text]).collect();
    for case in exact["cases"].as_array().unwrap() {
        let flag = |name: &str| case[name].as_bool().unwrap();
        let mut metric = ExactMatch::default().ignoring(&texts(&case["patterns"])).unwrap();
        metric.ignore_case = flag("ignore_case");
        metric.ignore_punctuation = flag("ignore_punctuation");
        metric.ignore_numbers = flag("ignore_numbers");
        let wanted: Vec<f64> = case["scores"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(metric.documents(&predictions, &references).unwrap(), wanted, "{metric:?}");
    }
}

#[test]
fn scores_of_labels_equal_scikit_learn() {
    let golden = golden();
    for case in golden["labels"].as_array().unwrap() {
        let list = |name: &str| case[name].as_array().unwrap().iter().map(index).collect::<Vec<_>>();
        let (truth, predicted) = (list("truth"), list("predicted"));
        let found = Confusion::new(index(&case["labels"]), &truth, &predicted).unwrap();
        assert_eq!(serde_json::json!(found.counts), case["confusion"]);
        close(found.accuracy(), &case["accuracy"], 1e-9, "accuracy");
        close(found.matthews(), &case["matthews"], 1e-9, "matthews");
        for (name, zero) in
            [("zero", ZeroDivision::Zero), ("one", ZeroDivision::One), ("nan", ZeroDivision::Nan)]
        {
            let same = |found: f64, wanted: &Value, what: &str| match wanted {
                Value::Null => assert!(found.is_nan(), "{what}: {found}"),
                wanted => close(found, wanted, 1e-9, what),
            };
            let all = |found: LabelScores, wanted: [&Value; 3], what: &str| {
                same(found.precision, wanted[0], what);
                same(found.recall, wanted[1], what);
                same(found.f1, wanted[2], what);
            };
            let wanted = &case[name];
            for (average, found) in
                [("macro", found.macro_average(zero)), ("weighted", found.weighted_average(zero))]
            {
                let wanted = &wanted[average];
                all(
                    found,
                    [&wanted[0], &wanted[1], &wanted[2]],
                    &format!("{average} {name} {truth:?} {predicted:?}"),
                );
            }
            for (label, found) in found.by_label(zero).into_iter().enumerate() {
                let wanted = &wanted["each"];
                all(
                    found,
                    [&wanted[0][label], &wanted[1][label], &wanted[2][label]],
                    &format!("label {label} {name}"),
                );
            }
        }
    }
}

fn sentence() -> impl Strategy<Value = String> {
    prop::collection::vec("[a-e]{1,2}[.,!]?|1[.,]5|é|—", 0..12).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn a_text_scores_highest_against_itself(text in sentence(), other in sentence()) {
        let single = Bleu { effective_order: true, ..Bleu::default() };
        let (itself, against) = (single.sentence(&text, &[&text]).unwrap(), single.sentence(&text, &[&other]).unwrap());
        if text.trim().is_empty() {
            prop_assert_eq!(itself.score, 0.0);
        } else {
            prop_assert!((itself.score - 100.0).abs() < 1e-9, "{}", itself.score);
            prop_assert!((Chrf::plus_plus().sentence(&text, &[&text]).unwrap() - 100.0).abs() < 1e-9);
        }
        prop_assert!((0.0..=100.0 + 1e-9).contains(&against.score));
        let chrf = Chrf::default().sentence(&text, &[&other]).unwrap();
        prop_assert!((0.0..=100.0 + 1e-9).contains(&chrf), "{}", chrf);
        let rouge = Rouge::default().score(&text, &[&other]).unwrap();
        for (name, overlap) in rouge.named() {
            prop_assert!((0.0..=1.0).contains(&overlap.f1), "{name} {overlap:?}");
            prop_assert!(overlap.precision.min(overlap.recall) <= overlap.f1 + 1e-12);
        }
        // A common subsequence is made of common words.
        prop_assert!(rouge.rouge_l.f1 <= rouge.rouge_1.f1 + 1e-12);
    }

    #[test]
    fn rouge_swaps_precision_and_recall_with_its_texts(a in sentence(), b in sentence()) {
        let (one, two) = (Rouge::default().score(&a, &[&b]).unwrap(), Rouge::default().score(&b, &[&a]).unwrap());
        for (one, two) in [(one.rouge_1, two.rouge_1), (one.rouge_2, two.rouge_2), (one.rouge_l, two.rouge_l)] {
            prop_assert_eq!((one.precision, one.recall), (two.recall, two.precision));
        }
    }

    #[test]
    fn contributions_of_documents_add_up_in_any_order(
        documents in prop::collection::vec((sentence(), prop::collection::vec(sentence(), 1..3)), 1..6),
    ) {
        let (hypotheses, references): (Vec<_>, Vec<_>) = documents.iter().cloned().unzip();
        let bleu = Bleu::default();
        let mut sum = BleuStatistics::default();
        for document in bleu.documents(&hypotheses, &references).unwrap().iter().rev() {
            sum += document;
        }
        prop_assert_eq!(bleu.score(&sum), bleu.corpus(&hypotheses, &references).unwrap());
        let chrf = Chrf::plus_plus();
        let mut sum = ChrfStatistics::default();
        for document in chrf.documents(&hypotheses, &references).unwrap().iter().rev() {
            sum += document;
        }
        prop_assert_eq!(chrf.score(&sum), chrf.corpus(&hypotheses, &references).unwrap());
    }

    #[test]
    fn another_reference_never_takes_matches_away(text in sentence(), one in sentence(), two in sentence()) {
        let bleu = Bleu::default();
        let (less, more) = (bleu.statistics(&text, &[&one]).unwrap(), bleu.statistics(&text, &[&one, &two]).unwrap());
        prop_assert!(less.correct.iter().zip(&more.correct).all(|(less, more)| less <= more));
        let chrf = Chrf::default();
        prop_assert!(chrf.sentence(&text, &[&one]).unwrap() <= chrf.sentence(&text, &[&one, &two]).unwrap() + 1e-12);
    }

    #[test]
    fn labels_can_be_renamed(items in prop::collection::vec((0..4usize, 0..4usize), 1..40)) {
        let (truth, predicted): (Vec<_>, Vec<_>) = items.iter().copied().unzip();
        let renamed = |labels: &[usize]| labels.iter().map(|label| [2, 0, 3, 1][*label]).collect::<Vec<_>>();
        let one = Confusion::new(4, &truth, &predicted).unwrap();
        let two = Confusion::new(4, &renamed(&truth), &renamed(&predicted)).unwrap();
        prop_assert!((one.matthews() - two.matthews()).abs() < 1e-12);
        let swapped = Confusion::new(4, &predicted, &truth).unwrap();
        prop_assert!((one.matthews() - swapped.matthews()).abs() < 1e-12);
        prop_assert!((-1.0..=1.0).contains(&one.matthews()));
        let (a, b) = (one.macro_average(ZeroDivision::Zero), two.macro_average(ZeroDivision::Zero));
        prop_assert!((a.f1 - b.f1).abs() < 1e-12);
        // Recall of each label weighted by its items is the share of items that are right.
        prop_assert!((one.weighted_average(ZeroDivision::Zero).recall - one.accuracy()).abs() < 1e-12);
    }

    #[test]
    fn stems_are_short_and_whole(word in "[a-z]{1,14}") {
        let found = stem(&word);
        prop_assert!(!found.is_empty() && found.len() <= word.len() + 1, "{found}");
    }

    #[test]
    fn repeating_texts_lowers_their_variety(texts in prop::collection::vec(prop::collection::vec(0..9u32, 0..9), 1..5), n in 1..4usize) {
        let once = distinct_n(&texts, n);
        let twice = distinct_n(&[texts.clone(), texts].concat(), n);
        prop_assert_eq!((once.distinct, 2 * once.total), (twice.distinct, twice.total));
        prop_assert!((0.0..=1.0).contains(&once.value) && twice.value <= once.value);
    }
}

#[test]
fn bleu_of_resampled_documents_has_an_interval_around_it() {
    let golden = golden();
    let (hypotheses, references) = &corpora(&golden)[0];
    let bleu = Bleu::default();
    let documents = bleu.documents(hypotheses, references).unwrap();
    let score = |drawn: &[&BleuStatistics]| {
        let mut sum = BleuStatistics::default();
        drawn.iter().for_each(|document| sum += document);
        bleu.score(&sum).score
    };
    let all = bleu.corpus(hypotheses, references).unwrap().score;
    let found = resample(&documents, 500, 1, score).unwrap();
    assert!(found.low < all && all < found.high && found.stderr > 0.0, "{found:?} {all}");
}
