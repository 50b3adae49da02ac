//! Each finding on synthetic results in which it is true, false, undecidable, and not measured.

mod common;

use common::Noise;
use kbit_laws::{Finding, Verdict, findings};
use kbit_results::{Bpw, DataInfo, Measurement, ModelInfo, SCHEMA, SchemeInfo};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const FOUR_BEST: &str = "At equal total bits, 4 bits a weight are best";
const THREE_WORSE: &str = "At equal total bits, 3 bits are worse than 4";
const BLOCKS: &str = "At equal total bits, blocks of 64 or 128 weights are better than larger ones";
const QUANTILE: &str = "Quantile levels are at least as good as floating point";
const FLOAT: &str = "Floating point is better than integers";
const INTEGER: &str = "At 5 bits, integers are best";
const CENTRING: &str = "Centring the weights never helps";
const STEADY: &str = "2 % of the input dimensions in 16 bits make 3 bits better";
const NOT_FOUR: &str = "3 bits with 2 % of the input dimensions in 16 bits do not beat 4 bits";
const AT_FOUR: &str = "2 % of the input dimensions in 16 bits do not make 4 bits better";
const PARALLEL: &str = "The curves of the bit widths are near-parallel";
const ACCURACY: &str = "Perplexity and accuracy go together";
const DIVERGENCE: &str = "Perplexity and KL divergence go together";

/// What a setting costs beside its size, nats a token.
struct World {
    /// Loss added at a bit width, at equal total bits.
    width: fn(u32) -> f64,
    /// Loss added by a data type at a bit width.
    data_type: fn(&str, u32) -> f64,
    /// Loss added by blocks of so many weights, at equal total bits.
    block: fn(u64) -> f64,
    /// Loss added by centring, at equal total bits.
    centring: f64,
    /// Loss added by 2 % in 16 bits at a bit width, at equal total bits.
    mixed: fn(u32) -> f64,
    /// Loss added by a bit width for every doubling of the total bits.
    slope: fn(u32) -> f64,
    /// What a model's noise in what is asked about is, and that of a setting.
    noise: (f64, f64),
    /// Correlation of divergence and accuracy with the loss: 1, 0 or -1.
    together: f64,
}

/// A world in which the paper is right.
fn paper() -> World {
    World {
        width: |width| match width {
            3 => 0.3,
            4 => 0.0,
            _ => 0.1 * f64::from(width - 4).min(4.0),
        },
        data_type: |name, width| match (name, width) {
            ("int", 5) | ("quantile", 3 | 4) => 0.0,
            (_, 6..) => 0.0,
            ("quantile", _) => 0.05,
            ("float", _) => 0.06,
            _ => 0.12,
        },
        block: |block| 0.04 * (block as f64 / 64.0).log2(),
        centring: 0.05,
        mixed: |width| if width == 3 { -0.1 } else { 0.03 },
        slope: |_| 0.0,
        noise: (0.004, 0.004),
        together: 1.0,
    }
}

/// Results of `models` sizes of a family in `world`.
fn results(world: &World, models: u32, seed: u64) -> Vec<Measurement> {
    let mut noise = Noise::new(seed);
    let mut all = Vec::new();
    for model in 0..models {
        let params = 1_000_000u64 << (2 * model);
        let mut of_models: BTreeMap<String, f64> = BTreeMap::new();
        let mut add = |family: &str, bits: f64, values: Value, kind: &str, extra: f64, noise: &mut Noise| {
            let width = if family == "none" { 16 } else { values["bits"].as_u64().unwrap() as u32 };
            let total = params as f64 * bits;
            let own = *of_models.entry(kind.to_owned()).or_insert_with(|| noise.next() * world.noise.0);
            // Straight, so that interpolation adds nothing.
            let size = total.log2();
            let loss = 20.0 - 0.4 * size
                + extra
                + (world.slope)(width) * (size - 24.0)
                + own
                + world.noise.1 * noise.next();
            let params_of: BTreeMap<String, Value> =
                values.as_object().map(|map| map.clone().into_iter().collect()).unwrap_or_default();
            let label = if family == "none" { "none".to_owned() } else { format!("{family}:{values}") };
            let figure = |metric: &str, value: f64, data: &str| Measurement {
                schema: SCHEMA,
                model: ModelInfo {
                    id: format!("m{model}"),
                    architecture: "llama".into(),
                    params,
                    tokens: None,
                    flops: None,
                },
                scheme: SchemeInfo {
                    label: label.clone(),
                    id: format!("org.kbit.{family}/1"),
                    family: family.into(),
                    params: params_of.clone(),
                    bits: Some(f64::from(width)),
                },
                bpw: Bpw { file: bits, decoder: bits },
                bytes: (total / 8.0) as u64,
                total_bits: total,
                metric: metric.into(),
                tensor: None,
                value,
                stderr: None,
                difference: None,
                seed: None,
                count: 1000,
                mode: "f32".into(),
                cache_type: "f32".into(),
                data: Some(DataInfo {
                    name: data.into(),
                    sha256: data.into(),
                    context: (data == "text").then_some(256),
                    stride: None,
                    chunks: (data == "text").then_some(10),
                }),
                file_sha256: None,
            };
            let other = noise.next();
            let mixture = |with: f64| world.together * with + (1.0 - world.together.abs()) * other;
            all.push(figure("nll", loss, "text"));
            if family != "none" {
                // Divergence goes with the loss that quantizing added.
                let base = 20.0 - 0.4 * (params as f64 * 16.0).log2() + (world.width)(16);
                all.push(figure("kl_divergence", 3.0 + mixture(loss - base), "text"));
            }
            all.push(figure("acc", 0.9 - 0.05 * mixture(loss), "task"));
        };
        let kind = |width: u32| format!("{width} bits");
        add("none", 16.0, json!({}), "16 bits", (world.width)(16), &mut noise);
        let types = ["int", "float", "dynamic", "quantile"];
        for name in types {
            for width in 3..=8u32 {
                let extra = (world.width)(width) + (world.data_type)(name, width);
                let bits = f64::from(width) + 0.25;
                let values = json!({ "bits": width, "block": 64, "scale": "f16" });
                add(name, bits, values, &kind(width), extra, &mut noise);
                if width > 5 {
                    continue;
                }
                let values = json!({ "bits": width, "block": 64, "center": true, "scale": "f16" });
                add(name, bits + 0.25, values, "centring", extra + world.centring, &mut noise);
                if width > 4 {
                    continue;
                }
                for block in [256u64, 1024] {
                    let bits = f64::from(width) + 16.0 / block as f64;
                    let values = json!({ "bits": width, "block": block, "scale": "f16" });
                    let extra = extra + (world.block)(block);
                    add(name, bits, values, "blocks", extra, &mut noise);
                }
                let bits = f64::from(width) + 0.25 + 0.02 * f64::from(16 - width);
                let values = json!({ "base": name, "bits": width, "block": 64, "share": 0.02 });
                let extra = extra + (world.mixed)(width);
                add("mixed", bits, values, "mixed", extra, &mut noise);
            }
        }
    }
    all
}

fn found(world: &World, models: u32, claim: &str) -> Finding {
    of_claim(&results(world, models, 7), claim)
}

fn of_claim(measurements: &[Measurement], claim: &str) -> Finding {
    let all = findings(measurements, 1);
    all.into_iter().find(|finding| finding.claim == claim).unwrap_or_else(|| panic!("no finding `{claim}`"))
}

/// The claim holds in one world, not in another, and nothing is told where noise is great.
fn decides(claim: &str, wrong: &World) {
    let right = found(&paper(), 5, claim);
    assert_eq!(right.verdict, Verdict::Holds, "{right:?}");
    let wrong_here = found(wrong, 5, claim);
    assert_eq!(wrong_here.verdict, Verdict::DoesNotHold, "{wrong_here:?}");
    // Chance may favour a side now and then.
    let world = World { noise: (0.3, 0.1), ..paper() };
    let noisy: Vec<Finding> = (0..5).map(|seed| of_claim(&results(&world, 5, seed), claim)).collect();
    let undecided = |finding: &&Finding| finding.verdict == Verdict::NotDistinguishable;
    assert!(noisy.iter().filter(undecided).count() >= 2, "{noisy:?}");
    let noisy = noisy.into_iter().find(|finding| undecided(&finding)).expect("one");
    for finding in [&right, &wrong_here, &noisy] {
        let (low, high) = finding.interval.expect("an interval");
        let value = finding.value.expect("a value");
        assert!(low <= value && value <= high, "{finding:?}");
        assert!(finding.models == 5 && finding.comparisons >= 8, "{finding:?}");
        assert!(finding.smallest_effect.is_some_and(|smallest| smallest > 0.0), "{finding:?}");
    }
    // More noise, and only a greater effect could have been seen.
    assert!(noisy.smallest_effect > right.smallest_effect);
}

#[test]
fn four_bits_are_best_or_not() {
    let five = |width: u32| if width == 5 { -0.2 } else { (paper().width)(width) };
    decides(FOUR_BEST, &World { width: five, ..paper() });
    let held = found(&paper(), 5, FOUR_BEST);
    // What a claim about all widths hangs on is the nearest of them.
    assert!(held.statistic.contains("(5 bits)"), "{}", held.statistic);
    let against: Vec<u32> =
        [3, 4, 5, 6, 7, 8, 16].into_iter().filter(|k| held.note.contains(&format!("{k} bits: "))).collect();
    assert_eq!(against, [3, 5, 6, 7, 8, 16]);
}

#[test]
fn three_bits_are_worse_or_not() {
    decides(
        THREE_WORSE,
        &World { width: |width| if width == 3 { -0.3 } else { (paper().width)(width) }, ..paper() },
    );
}

#[test]
fn small_blocks_are_better_or_not() {
    decides(BLOCKS, &World { block: |block| -0.04 * (block as f64 / 64.0).log2(), ..paper() });
}

#[test]
fn data_types_have_their_order_or_not() {
    let other = |name: &str, width: u32| match (name, width) {
        ("quantile", 3 | 4) | ("int", 5) => 0.3,
        ("float", 3 | 4) => 0.2,
        _ => 0.1,
    };
    let wrong = World { data_type: other, ..paper() };
    for (claim, noise) in [(QUANTILE, 1.0), (FLOAT, 1.0), (INTEGER, 1.0)] {
        assert_eq!(found(&paper(), 5, claim).verdict, Verdict::Holds, "{claim}");
        assert_eq!(found(&wrong, 5, claim).verdict, Verdict::DoesNotHold);
        let noisy = found(&World { noise: (0.0, noise), ..paper() }, 5, claim);
        assert_eq!(noisy.verdict, Verdict::NotDistinguishable, "{noisy:?}");
    }
}

#[test]
fn centring_never_helps_or_does() {
    decides(CENTRING, &World { centring: -0.05, ..paper() });
    // A help of less than a percent of perplexity that is not sure is none.
    assert_eq!(found(&World { centring: 0.0, ..paper() }, 5, CENTRING).verdict, Verdict::Holds);
}

#[test]
fn outliers_in_sixteen_bits_help_or_not() {
    decides(STEADY, &World { mixed: |_| 0.2, ..paper() });
    decides(NOT_FOUR, &World { mixed: |_| -0.5, ..paper() });
    decides(AT_FOUR, &World { mixed: |_| -0.1, ..paper() });
}

#[test]
fn curves_are_parallel_or_not() {
    let turned = |width: u32| if width == 3 { 0.15 } else { 0.0 };
    decides(PARALLEL, &World { slope: turned, ..paper() });
}

#[test]
fn measures_of_quality_go_together_or_not() {
    for claim in [ACCURACY, DIVERGENCE] {
        assert_eq!(found(&paper(), 5, claim).verdict, Verdict::Holds, "{claim}");
        let apart = found(&World { together: 0.0, ..paper() }, 5, claim);
        assert_eq!(apart.verdict, Verdict::DoesNotHold, "{apart:?}");
        let partly = found(&World { together: 0.5, ..paper() }, 3, claim);
        assert_ne!(partly.verdict, Verdict::Holds, "{partly:?}");
    }
    assert!(found(&paper(), 5, ACCURACY).value.is_some_and(|value| value < -0.9));
}

#[test]
fn what_was_not_measured_is_named() {
    for finding in findings(&[], 1) {
        assert_eq!(finding.verdict, Verdict::NotMeasured, "{finding:?}");
        assert!(finding.note.starts_with("not measured: ") && finding.value.is_none(), "{finding:?}");
        assert_eq!((finding.comparisons, finding.models), (0, 0));
    }
    // One size has no curve, but data types can be compared.
    let one = results(&paper(), 1, 7);
    let verdict = |claim: &str| {
        let all = findings(&one, 1);
        all.into_iter().find(|finding| finding.claim == claim).map(|finding| (finding.verdict, finding.note))
    };
    let (four, note) = verdict(FOUR_BEST).expect("a finding");
    assert_eq!(four, Verdict::NotMeasured);
    assert!(note.contains("two or more sizes"), "{note}");
    let (float, note) = verdict(FLOAT).expect("a finding");
    assert_ne!(float, Verdict::NotMeasured);
    assert!(note.contains("one model"), "{note}");
    // Without widths above 4, 4 bits cannot be called best; that 3 are worse is known.
    let mut low = results(&paper(), 5, 7);
    low.retain(|one| one.scheme.bits.is_some_and(|bits| bits <= 4.0));
    let all = findings(&low, 1);
    let of = |claim: &str| all.iter().find(|finding| finding.claim == claim).expect("a finding");
    assert_eq!(of(FOUR_BEST).verdict, Verdict::NotMeasured);
    assert!(of(FOUR_BEST).note.contains("more than 4 bits"), "{}", of(FOUR_BEST).note);
    assert_eq!(of(THREE_WORSE).verdict, Verdict::Holds);
}

#[test]
fn findings_repeat_and_do_not_depend_on_the_order_of_results() {
    let all = results(&paper(), 4, 7);
    let first = findings(&all, 1);
    assert_eq!(first, findings(&all, 1));
    let mut turned = all;
    turned.reverse();
    let verdicts = |findings: &[Finding]| findings.iter().map(|one| one.verdict).collect::<Vec<_>>();
    assert_eq!(verdicts(&first), verdicts(&findings(&turned, 1)));
}

#[test]
fn a_larger_model_of_another_making_is_not_on_the_curve() {
    let mut all = results(&paper(), 4, 7);
    let honest = findings(&all, 1);
    // The largest once more, trained on less: worse than every smaller one.
    let largest: Vec<Measurement> = all.iter().filter(|one| one.model.id == "m3").cloned().collect();
    all.extend(largest.into_iter().map(|mut one| {
        one.model.id = "m3-young".into();
        if one.metric == "nll" {
            one.value += 3.0;
        }
        one
    }));
    for (before, after) in honest.iter().zip(&findings(&all, 1)) {
        if before.claim.starts_with("At equal total bits") {
            assert_eq!(before, after);
        }
    }
}

#[test]
fn blocks_longer_than_rows_are_not_counted_twice() {
    let mut all = results(&paper(), 4, 7);
    let before = findings(&all, 1);
    let longer: Vec<Measurement> = all
        .iter()
        .filter(|one| one.scheme.params.get("block").and_then(Value::as_u64) == Some(1024))
        .cloned()
        .collect();
    all.extend(longer.into_iter().map(|mut one| {
        one.scheme.params.insert("block".into(), 4096.into());
        one.scheme.label = format!("{} of rows", one.scheme.label);
        one
    }));
    assert_eq!(before, findings(&all, 1));
}
