//! What a report says of a small run, in every format.

use kbit_laws::{Finding, FitOptions, Fits, Verdict, fit_all};
use kbit_report::{Report, RunData, contradictions};
use kbit_results::{Bpw, DataInfo, Measurement, ModelInfo, SCHEMA, SchemeInfo};
use std::collections::BTreeMap;

fn figures(model: &str, params: u64, label: &str, bits: f64, figures: &[(&str, f64)]) -> Vec<Measurement> {
    let family = label.split(':').next().unwrap_or(label);
    let figure = |(metric, value): &(&str, f64)| Measurement {
        schema: SCHEMA,
        model: ModelInfo {
            id: model.into(),
            architecture: "llama".into(),
            params,
            tokens: None,
            flops: None,
        },
        scheme: SchemeInfo {
            label: label.into(),
            id: format!("org.example.{family}/1"),
            family: family.into(),
            params: BTreeMap::new(),
            bits: Some(bits),
        },
        bpw: Bpw { file: bits, decoder: bits },
        bytes: params * bits as u64 / 8,
        total_bits: params as f64 * bits,
        metric: (*metric).into(),
        tensor: None,
        value: *value,
        stderr: Some(0.01),
        difference: None,
        seed: None,
        count: 10,
        mode: "f32".into(),
        cache_type: "f32".into(),
        data: Some(DataInfo {
            name: "prose".into(),
            sha256: "00".into(),
            context: Some(8),
            stride: None,
            chunks: Some(1),
        }),
        file_sha256: None,
    };
    figures.iter().map(figure).collect()
}

fn small_run() -> (Vec<Measurement>, Fits) {
    let mut all = Vec::new();
    for (model, params, loss) in [("a & b", 1u64 << 20, 4.0), ("<large>", 1 << 22, 3.5f64)] {
        all.extend(figures(model, params, "none", 16.0, &[("nll", loss), ("perplexity", loss.exp())]));
        for bits in [2.0, 3.0, 4.0, 8.0f64] {
            let kld = (1.0 - 1.2 * bits).exp();
            let nll = loss + kld;
            let values = [("nll", nll), ("perplexity", nll.exp()), ("kl_divergence", kld)];
            all.extend(figures(model, params, &format!("int:bits={bits}"), bits, &values));
        }
        let mut error = figures(model, params, "int:bits=2", 2.0, &[("tensor_relative_mse", 0.1)]).remove(0);
        error.tensor = Some("blk.0.attn_q.weight".into());
        all.push(error);
    }
    let fits = fit_all(&all, &FitOptions { bootstrap: 50, ..FitOptions::default() });
    (all, fits)
}

fn run(measurements: &[Measurement], provenance: serde_json::Value) -> [RunData; 1] {
    [RunData { name: "run".into(), measurements: measurements.to_vec(), provenance, ..RunData::default() }]
}

#[test]
fn the_page_holds_every_run_and_nothing_from_outside() {
    let (measurements, fits) = small_run();
    let provenance = serde_json::json!({ "name": "small </script> run" });
    let runs = run(&measurements, provenance);
    let page = Report::new(&runs, &fits, &[]).html().expect("a page");
    for wanted in [
        "a &amp; b",
        "&lt;large&gt;",
        "int:bits=3",
        "unquantized",
        "blk.0.attn_q.weight",
        "<svg",
        "KLD = a exp(-b P)",
    ] {
        assert!(page.contains(wanted), "no {wanted}");
    }
    // Nothing is fetched, and names cannot become markup.
    for unwanted in ["http://", "https://", "src=", "@import", "<large>", "small </script>"] {
        let found = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!found.contains(unwanted), "{unwanted} in the page");
    }
    assert_eq!(page.matches("<svg class=\"chart\"").count(), 4, "quality, divergence, front, scaling");
    assert!(page.contains("prefers-color-scheme:dark"));
}

#[test]
fn the_answer_comes_first() {
    let (measurements, fits) = small_run();
    let runs = run(&measurements, serde_json::json!({}));
    let text = Report::new(&runs, &fits, &[]).markdown().expect("text");
    let first = text.lines().find(|line| line.starts_with("- ")).expect("a headline");
    assert!(first.contains("nearly lossless") && first.contains("<large> int:bits=8"), "{first}");
    // KLD falls by exp(1.2) = 3.3 a bit.
    assert!(text.contains("Each further bit divides the KL divergence of int by 3.3"), "{text}");
}

#[test]
fn tables_have_a_row_for_every_run() {
    let (measurements, fits) = small_run();
    let runs = run(&measurements, serde_json::json!({}));
    let report = Report::new(&runs, &fits, &[]);
    let csv = report.csv().expect("CSV");
    assert_eq!(csv.lines().count(), 11);
    let columns: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
    assert!(columns.iter().all(|count| *count == columns[0]), "{columns:?}");
    let names = "model,params,scheme,family,bits,bpw_file,bpw_decoder,bytes,total_bits,data,mode,cache_type,perplexity,\
                 perplexity_stderr,nll,kl_divergence,kl_divergence_stderr,same_top";
    let heads: Vec<&str> = csv.lines().next().expect("a heading").split(',').collect();
    for name in names.split(',') {
        assert!(heads.contains(&name), "{name} is not in {heads:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.json().expect("JSON")).expect("JSON");
    assert_eq!(json["measurements"].as_array().map(Vec::len), Some(measurements.len()));
}

#[test]
fn what_was_computed_otherwise_has_rows_of_its_own_and_leaves_laws_as_they_were() {
    let (mut measurements, fits) = small_run();
    let runs = run(&measurements, serde_json::json!({}));
    let plain = Report::new(&runs, &fits, &[]);
    let (page, csv) = (plain.html().expect("a page"), plain.csv().expect("CSV"));
    assert!(!page.contains("computed in</th>"));
    let mut others = figures("a & b", 1 << 20, "int:bits=4", 4.0, &[("nll", 1.0), ("kl_divergence", 0.5)]);
    for other in &mut others {
        (other.mode, other.cache_type) = ("int8".into(), "q8,f16".into());
    }
    measurements.extend(others);
    let again = fit_all(&measurements, &FitOptions { bootstrap: 50, ..FitOptions::default() });
    // Laws about activations and the cache look at all arithmetic; the others at the first alone.
    let about_weights = |fits: &Fits| {
        let of_weights = fits.fits.iter().filter(|fit| fit.law != "kumar-effective" && fit.law != "frantar");
        serde_json::to_string(&of_weights.collect::<Vec<_>>()).expect("JSON")
    };
    assert_eq!(about_weights(&again), about_weights(&fits));
    let runs = run(&measurements, serde_json::json!({}));
    let report = Report::new(&runs, &again, &[]);
    let (more_page, more_csv) = (report.html().expect("a page"), report.csv().expect("CSV"));
    assert!(
        more_page.contains("<th scope=\"col\">computed in</th>")
            && more_page.contains("<td>int8, q8,f16 cache</td>")
    );
    assert_eq!(more_csv.lines().count(), csv.lines().count() + 1);
    assert!(more_csv.contains("int:bits=4,") && more_csv.contains(",int8,\"q8,f16\","), "{more_csv}");
    assert!(report.markdown().expect("text").contains("| int8, q8,f16 cache |"));
    // Figures of different arithmetic are not drawn together.
    let plots: Vec<String> = report.plots().into_iter().map(|(name, _)| name).collect();
    assert!(
        plots.contains(&"quality.svg".into())
            && plots.contains(&"quality-prose--int8--q8-f16-cache.svg".into()),
        "{plots:?}"
    );
}

#[test]
fn a_run_without_measurements_says_so() {
    let fits = Fits::default();
    let runs = run(&[], serde_json::json!({ "name": "x" }));
    let report = Report::new(&runs, &fits, &[]);
    let (text, page) = (report.markdown().expect("text"), report.html().expect("a page"));
    assert!(text.contains("Nothing was measured yet") && page.contains("Nothing was measured yet"));
}

fn task(label: &str, value: f64, difference: Option<(f64, f64)>) -> Measurement {
    let mut figure = figures("a & b", 1 << 20, label, 4.0, &[("accuracy", value)]).remove(0);
    figure.data = Some(DataInfo {
        name: "quiz".into(),
        sha256: "11".into(),
        context: None,
        chunks: None,
        stride: None,
    });
    figure.difference =
        difference.map(|(value, stderr)| kbit_results::Difference { value, stderr: Some(stderr) });
    figure
}

#[test]
fn a_difference_whose_interval_includes_zero_is_not_distinguishable() {
    let (mut measurements, fits) = small_run();
    measurements.extend([
        task("none", 0.6, None),
        task("int:bits=4", 0.59, Some((-0.01, 0.006))),
        task("int:bits=3", 0.5, Some((-0.1, 0.05))),
    ]);
    let runs = run(&measurements, serde_json::json!({}));
    let report = Report::new(&runs, &fits, &[]);
    let text = report.markdown().expect("text");
    let line = |scheme: &str| {
        text.lines().find(|line| line.starts_with("| quiz") && line.contains(scheme)).expect("a line")
    };
    // -0.01 + 1.96 * 0.006 > 0; -0.1 + 1.96 * 0.05 < 0.
    assert!(line("int:bits=4").ends_with("| not distinguishable |"), "{}", line("int:bits=4"));
    assert!(line("int:bits=3").ends_with("| lower |"), "{}", line("int:bits=3"));
    assert!(report.plots().iter().any(|(name, _)| name == "tasks.svg"));
    // Tasks are not among the results on texts.
    assert_eq!(report.csv().expect("CSV").lines().count(), 11);
}

#[test]
fn two_results_of_the_same_thing_with_different_values_contradict_each_other() {
    let (measurements, _) = small_run();
    let mut others = measurements.clone();
    let run = |name: &str, measurements: &[Measurement]| RunData {
        name: name.into(),
        measurements: measurements.to_vec(),
        ..RunData::default()
    };
    others[1].value *= 1.0 + 1e-9;
    assert!(contradictions(&[run("a", &measurements), run("b", &others)]).is_empty());
    others[1].value *= 1.01;
    let found = contradictions(&[run("a", &measurements), run("b", &others)]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].what, "perplexity of a & b none on prose in f32");
    assert_eq!(found[0].runs, ["a", "b"]);
}

#[test]
fn several_runs_are_a_column_and_a_filter() {
    let (measurements, fits) = small_run();
    let (first, second) = measurements.split_at(measurements.len() / 2);
    let runs = ["old", "new"].map(|name| {
        let part = if name == "old" { first } else { second };
        RunData { name: name.into(), measurements: part.to_vec(), ..RunData::default() }
    });
    let report = Report::new(&runs, &fits, &[]);
    let (page, csv) = (report.html().expect("a page"), report.csv().expect("CSV"));
    assert!(page.contains("<th scope=\"col\">run</th>") && page.contains("<h1>old and new</h1>"));
    assert!(
        csv.lines().any(|line| line.starts_with("old,")) && csv.lines().any(|line| line.starts_with("new,"))
    );
}

#[test]
fn findings_say_what_was_found_here() {
    let (measurements, fits) = small_run();
    let runs = run(&measurements, serde_json::json!({}));
    let finding = Finding {
        claim: "4 bits are best".into(),
        source: "a paper".into(),
        verdict: Verdict::NotDistinguishable,
        statistic: "loss".into(),
        value: Some(0.125),
        interval: Some((-0.5, 0.25)),
        comparisons: 12,
        models: 4,
        smallest_effect: Some(0.7),
        note: String::new(),
    };
    let findings = [finding];
    let report = Report::new(&runs, &fits, &findings);
    let text = report.markdown().expect("text");
    let row = "| 4 bits are best | not distinguishable | 0.1250 | -0.5000 to 0.2500 | 0.7000 | 4 |";
    assert!(text.contains(row), "{text}");
    assert!(report.json().expect("JSON").contains("\"verdict\": \"not distinguishable\""));
    let (_, csv) =
        report.table_files().into_iter().find(|(name, _)| name == "findings.csv").expect("a table");
    assert!(csv.contains("4 bits are best,a paper,not distinguishable"), "{csv}");
    assert!(report.html().expect("a page").contains("4 bits are best"));
}

#[test]
fn fitted_curves_have_bands_in_page_drawing_and_table() {
    let (measurements, fits) = small_run();
    let runs = run(&measurements, serde_json::json!({}));
    let report = Report::new(&runs, &fits, &[]);
    let plots = report.plots();
    let (_, scaling) = plots.iter().find(|(name, _)| name == "scaling.svg").expect("a drawing");
    assert!(scaling.matches("class=\"band").count() >= 4, "{scaling}");
    assert!(report.html().expect("a page").contains("95 % confidence band"));
    let tables = report.table_files();
    let (_, csv) = tables.iter().find(|(name, _)| name == "curves.csv").expect("a table");
    let rows: Vec<Vec<&str>> = csv.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(csv.lines().next(), Some("law,family,width,quantity,x,value,low,high"));
    let fit = fits.fits.iter().find(|fit| fit.law == "base-curve").expect("a fit");
    let number = |text: &str| text.parse::<f64>().expect("a number");
    let mut seen = 0;
    for row in rows.iter().filter(|row| row[0] == "base-curve") {
        let (x, value, low, high) = (number(row[4]), number(row[5]), number(row[6]), number(row[7]));
        assert!(low <= value && value <= high, "{row:?}");
        let at = kbit_laws::At {
            total_bits: Some(x.exp2()),
            nominal_bits: Some(number(row[2])),
            ..kbit_laws::At::default()
        };
        let predicted = fit.predict(&at).expect("within the range");
        assert!((predicted.value - value).abs() < 1e-9, "{row:?} {predicted:?}");
        seen += 1;
    }
    assert!(seen >= 4 * 2, "{csv}");
    assert!(rows.iter().any(|row| row[0] == "exponential"));
}

#[test]
fn every_table_and_figure_is_a_file() {
    let (measurements, fits) = small_run();
    let runs = run(&measurements, serde_json::json!({}));
    let report = Report::new(&runs, &fits, &[]);
    let names = |files: Vec<(String, String)>| files.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let tables = names(report.table_files());
    assert_eq!(tables, ["choices.csv", "results.csv", "pareto.csv", "laws.csv", "tensors.csv", "curves.csv"]);
    let plots = names(report.plots());
    assert_eq!(plots[..4], ["quality.svg", "divergence.svg", "pareto.svg", "scaling.svg"]);
    assert!(plots.iter().any(|name| name.starts_with("tensor_relative_mse-")), "{plots:?}");
    assert_eq!(plots.iter().collect::<std::collections::BTreeSet<_>>().len(), plots.len());
}

#[test]
fn cards_say_what_a_file_is_and_how_good() {
    let (measurements, fits) = small_run();
    let runs = run(&measurements, serde_json::json!({ "kbit": "1.2.3" }));
    let report = Report::new(&runs, &fits, &[]);
    let file =
        |model: &str, scheme: &str| (model == "a & b" && scheme == "int:bits=4").then(|| "a.gguf".to_owned());
    let cards = report.cards(&file);
    assert_eq!(cards.len(), 1);
    let text = &cards[0].text;
    for wanted in [
        "base_model: \"a & b\"",
        "| kl divergence | 0.02237 ± 0.010 |",
        "`a.gguf`",
        "kbit 1.2.3",
        "| size | ",
    ] {
        assert!(text.contains(wanted), "no {wanted} in {text}");
    }
}

#[test]
fn plans_stand_beside_what_was_measured() {
    let (measurements, fits) = small_run();
    let planned = |scheme: &str, low: f64, high: f64| {
        serde_json::json!({
            "model": "a & b", "scheme": scheme, "target": "bpw=3", "made_of": "knapsack", "bytes": 393_216, "bits_per_weight": 3.0,
            "kl_divergence": { "value": 0.07, "low": low, "high": high },
        })
    };
    // int:bits=3 measured exp(1 - 3.6) = 0.0743.
    let plans = [
        planned("int:bits=3", 0.06, 0.08),
        planned("int:bits=3", 0.01, 0.02),
        planned("unmeasured", 0.1, 0.2),
    ];
    let runs = run(&measurements, serde_json::json!({ "plans": plans }));
    let report = Report::new(&runs, &fits, &[]);
    let files = report.table_files();
    let (_, csv) = files.iter().find(|(name, _)| name == "plans.csv").expect("a table");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 4, "{csv}");
    for (line, told) in lines.iter().skip(1).zip(["yes", "no", "bpw=3"]) {
        assert!(line.contains(told), "{line}");
    }
    assert!(lines[1].contains("0.07427") && lines[1].contains("0.06000 to 0.08000"), "{csv}");
    assert!(report.markdown().expect("a text").contains("## Predicted against measured"));
    assert!(report.html().expect("a page").contains("plans-section"));
    let runs = run(&measurements, serde_json::json!({}));
    assert!(!Report::new(&runs, &fits, &[]).html().expect("a page").contains("plans-section"));
}
