//! What is recommended: budgets of every kind, how sure that is, and what would settle it.

mod common;

use common::{Noise, figure};
use kbit_laws::{Budget, Evidence, Recommendation, recommend};
use kbit_results::{Cost, DataInfo, Difference, Items, Measurement, SCHEMA};

const WINDOWS: usize = 40;

/// Records of one scheme: a loss of `nll` a token, by windows that vary together, and a divergence.
struct Recorded {
    measurements: Vec<Measurement>,
    items: Vec<Items>,
    costs: Vec<Cost>,
}

impl Recorded {
    fn new() -> Self {
        Self { measurements: Vec::new(), items: Vec::new(), costs: Vec::new() }
    }

    fn add(&mut self, params: u64, family: &str, bits: f64, nll: f64, kld: f64, rate: f64) {
        let (mut window, mut own) = (Noise::new(1), Noise::new((bits * 16.0) as u64 + params));
        let values: Vec<f64> =
            (0..WINDOWS).map(|_| 10.0 * (nll + window.next() + 0.01 * own.next())).collect();
        let mean = values.iter().sum::<f64>() / (10 * WINDOWS) as f64;
        let klds: Vec<f64> = (0..WINDOWS).map(|_| 10.0 * kld * (1.0 + 0.2 * own.next())).collect();
        let mean_kld = klds.iter().sum::<f64>() / (10 * WINDOWS) as f64;
        let data = DataInfo {
            name: "prose".into(),
            sha256: "00".into(),
            context: Some(21),
            stride: None,
            chunks: Some(40),
        };
        let mut add = |metric: &str, value: f64, stderr: f64| {
            let mut found = figure(params, family, bits, metric, value);
            found.stderr = Some(stderr);
            found.data = Some(data.clone());
            if metric == "nll" && family != "none" {
                found.difference = Some(Difference { value: nll - 3.0, stderr: Some(0.002) });
            }
            self.measurements.push(found);
        };
        add("nll", mean, 0.16);
        add("kl_divergence", mean_kld, mean_kld * 0.03);
        let about = self.measurements.last().expect("a measurement").clone();
        for (metric, values) in [("nll", values), ("kl_divergence", klds)] {
            self.items.push(Items {
                schema: SCHEMA,
                model: about.model.id.clone(),
                scheme: about.scheme.label.clone(),
                metric: metric.into(),
                mode: "f32".into(),
                cache_type: "f32".into(),
                data: data.clone(),
                values,
                weights: Some(vec![10.0; WINDOWS]),
            });
        }
        self.costs.push(Cost {
            schema: SCHEMA,
            model: about.model,
            scheme: about.scheme,
            stage: "kl_divergence".into(),
            mode: Some("f32".into()),
            cache_type: Some("f32".into()),
            seconds: 1.0,
            tokens_per_second: Some(rate),
            peak_rss_bytes: None,
        });
    }

    fn recommend(&self, budget: Budget) -> Recommendation {
        let evidence = Evidence { measurements: &self.measurements, items: &self.items, costs: &self.costs };
        recommend(&evidence, &budget, 500, 1)
    }
}

fn several() -> Recorded {
    let mut recorded = Recorded::new();
    recorded.add(800, "none", 16.0, 3.0, 0.0, 50.0);
    recorded.add(800, "int", 8.0, 3.0, 0.001, 90.0);
    recorded.add(800, "int", 4.0, 3.1, 0.05, 150.0);
    recorded.add(800, "int", 3.0, 3.4, 0.3, 190.0);
    recorded
}

fn chosen(found: &Recommendation) -> &str {
    found.choice.as_ref().map_or("", |choice| choice.scheme.as_str())
}

#[test]
fn every_kind_of_budget_is_kept() {
    let recorded = several();
    let none = Budget::default();
    for (budget, wanted) in [
        (Budget { bytes: Some(900), ..none }, "int:bits=8"),
        (Budget { bytes: Some(799), ..none }, "int:bits=4"),
        (Budget { bits_per_weight: Some(3.5), ..none }, "int:bits=3"),
        (Budget { tokens_per_second: Some(100.0), ..none }, "int:bits=4"),
        (Budget { tokens_per_second: Some(160.0), bytes: Some(5000), ..none }, "int:bits=3"),
        // Where only quality is limited, the smallest is wanted.
        (Budget { kl_divergence: Some(0.1), ..none }, "int:bits=4"),
        (Budget { perplexity_increase: Some(0.01), ..none }, "int:bits=8"),
        (Budget { perplexity_increase: Some(0.01), kl_divergence: Some(0.0005), ..none }, "none"),
        (Budget { kl_divergence: Some(0.5), bytes: Some(500), ..none }, "int:bits=4"),
    ] {
        let found = recorded.recommend(budget);
        assert_eq!(chosen(&found), wanted, "{budget:?}: {}", found.reason);
        let choice = found.choice.expect("a choice");
        assert!(choice.probability > 0.5, "{budget:?}: {choice:?}");
    }
}

#[test]
fn a_clear_choice_is_called_clear_though_its_error_is_larger_than_its_lead() {
    // Windows vary by 1 and the losses by 0.1: unpaired, that could not be told.
    let found = several().recommend(Budget { bytes: Some(400), ..Budget::default() });
    assert_eq!((chosen(&found), found.close, found.settle.is_some()), ("int:bits=4", false, false));
    assert!(found.probability > Some(0.99), "{found:?}");
    assert!(found.reason.contains("clear"), "{}", found.reason);
}

#[test]
fn a_close_choice_says_how_sure_it_is_and_what_would_settle_it() {
    let found = several().recommend(Budget { bytes: Some(5000), ..Budget::default() });
    let probability = found.probability.expect("a probability");
    assert!(found.close && (0.4..0.95).contains(&probability), "{found:?}");
    let shares: f64 =
        found.choice.iter().chain(&found.runners_up).map(|candidate| candidate.probability).sum();
    assert!((shares - 1.0).abs() < 1e-9, "every draw has one winner: {shares}");
    let settle = found.settle.as_ref().expect("a measurement");
    assert!(
        settle.contains("windows of m800 with") && settle.contains("40 windows of prose were measured"),
        "{settle}"
    );
    assert!(settle.contains("none") && settle.contains("int:bits=8"), "{settle}");
    let needed: f64 = settle.split_whitespace().nth(2).and_then(|word| word.parse().ok()).expect("a number");
    assert!(needed > 40.0, "{settle}");
    // The same draws give the same figures.
    let again = several().recommend(Budget { bytes: Some(5000), ..Budget::default() });
    assert_eq!(again.probability, found.probability);
}

#[test]
fn without_values_of_windows_errors_are_taken_as_independent() {
    let mut recorded = several();
    recorded.items.clear();
    let found = recorded.recommend(Budget { bytes: Some(400), ..Budget::default() });
    // A lead of 0.3 with errors of 0.16 each: 1.3 standard errors.
    assert!(found.probability.is_some_and(|p| (0.8..0.97).contains(&p)), "{found:?}");
    let found = recorded.recommend(Budget { bytes: Some(5000), ..Budget::default() });
    assert!(found.settle.is_some_and(|settle| settle.contains("in one run")), "{}", found.reason);
}

#[test]
fn nothing_that_fits_says_so_with_the_smallest() {
    let mut recorded = several();
    let found = recorded.recommend(Budget { bytes: Some(10), ..Budget::default() });
    assert!(
        found.choice.is_none() && found.reason.contains("the smallest is m800 with int:bits=3"),
        "{}",
        found.reason
    );
    let found = recorded.recommend(Budget { tokens_per_second: Some(1e6), ..Budget::default() });
    assert!(found.choice.is_none() && found.reason.contains("at least 1000000 tokens/s"), "{}", found.reason);
    recorded.costs.clear();
    let found = recorded.recommend(Budget { tokens_per_second: Some(1.0), ..Budget::default() });
    assert!(
        found.choice.is_none() && found.notes[0].contains("4 runs have no measured speed"),
        "{:?}",
        found.notes
    );
    recorded.measurements.retain(|measurement| measurement.metric != "nll");
    assert!(recorded.recommend(Budget::default()).reason.contains("measure perplexity first"));
}

#[test]
fn runs_on_another_text_are_left_out_and_counted() {
    let mut recorded = several();
    for measurement in recorded.measurements.iter_mut().filter(|m| m.scheme.label == "none") {
        if let Some(data) = &mut measurement.data {
            data.sha256 = "another".into();
        }
    }
    let found = recorded.recommend(Budget { bytes: Some(5000), ..Budget::default() });
    assert_eq!(chosen(&found), "int:bits=8");
    assert!(found.notes[0].contains("1 of 4 runs were measured on another text"), "{:?}", found.notes);
}

#[test]
fn models_with_other_tokenizers_are_compared_by_the_bits_of_a_byte() {
    let mut recorded = Recorded::new();
    recorded.add(800, "int", 4.0, 3.0, 0.05, 1.0);
    recorded.add(900, "int", 4.0, 3.3, 0.05, 1.0);
    // The second model's tokens are longer, so that it needs fewer bits a byte.
    for (params, nll, bytes) in [(800, 3.0, 3.0), (900, 3.3, 4.0)] {
        let mut found = figure(params, "int", 4.0, "bits_per_byte", nll / bytes / std::f64::consts::LN_2);
        found.data = recorded.measurements[0].data.clone();
        recorded.measurements.push(found);
    }
    let found = recorded.recommend(Budget::default());
    assert_eq!(found.choice.as_ref().map(|choice| choice.model.as_str()), Some("m900"), "{}", found.reason);
}
