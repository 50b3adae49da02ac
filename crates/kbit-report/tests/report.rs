//! What a report says of a small run, in every format.

use kbit_laws::{FitOptions, Fits, fit_all};
use kbit_report::Report;
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

#[test]
fn the_page_holds_every_run_and_nothing_from_outside() {
    let (measurements, fits) = small_run();
    let provenance = serde_json::json!({ "name": "small </script> run" });
    let page = Report::new(&measurements, &[], &fits, provenance).html().expect("a page");
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
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains("prefers-color-scheme:dark"));
}

#[test]
fn the_answer_comes_first() {
    let (measurements, fits) = small_run();
    let text = Report::new(&measurements, &[], &fits, serde_json::json!({})).markdown().expect("text");
    let first = text.lines().find(|line| line.starts_with("- ")).expect("a headline");
    assert!(first.contains("nearly lossless") && first.contains("<large> int:bits=8"), "{first}");
    // KLD falls by exp(1.2) = 3.3 a bit.
    assert!(text.contains("Each further bit divides the KL divergence of int by 3.3"), "{text}");
}

#[test]
fn tables_have_a_row_for_every_run() {
    let (measurements, fits) = small_run();
    let report = Report::new(&measurements, &[], &fits, serde_json::json!({}));
    let csv = report.csv().expect("CSV");
    assert_eq!(csv.lines().count(), 11);
    let columns = csv.lines().map(|line| line.split(',').count());
    assert!(columns.clone().all(|count| count == 19), "{:?}", columns.collect::<Vec<_>>());
    let json: serde_json::Value = serde_json::from_str(&report.json().expect("JSON")).expect("JSON");
    assert_eq!(json["measurements"].as_array().map(Vec::len), Some(measurements.len()));
}

#[test]
fn what_was_computed_otherwise_has_rows_of_its_own_and_leaves_laws_as_they_were() {
    let (mut measurements, fits) = small_run();
    let plain = Report::new(&measurements, &[], &fits, serde_json::json!({}));
    let (page, csv) = (plain.html().expect("a page"), plain.csv().expect("CSV"));
    assert!(!page.contains("computed in"));
    let mut others = figures("a & b", 1 << 20, "int:bits=4", 4.0, &[("nll", 1.0), ("kl_divergence", 0.5)]);
    for other in &mut others {
        (other.mode, other.cache_type) = ("int8".into(), "q8,f16".into());
    }
    measurements.extend(others);
    let again = fit_all(&measurements, &FitOptions { bootstrap: 50, ..FitOptions::default() });
    assert_eq!(serde_json::to_string(&again).unwrap(), serde_json::to_string(&fits).unwrap());
    let report = Report::new(&measurements, &[], &again, serde_json::json!({}));
    let (more_page, more_csv) = (report.html().expect("a page"), report.csv().expect("CSV"));
    assert!(more_page.contains("<th>computed in</th>") && more_page.contains("<td>int8, q8,f16 cache</td>"));
    assert_eq!(more_csv.lines().count(), csv.lines().count() + 1);
    assert!(more_csv.contains("int:bits=4,") && more_csv.contains(",int8,\"q8,f16\","), "{more_csv}");
    assert!(report.markdown().expect("text").contains("int:bits=4 (int8, q8,f16 cache)"));
}

#[test]
fn a_run_without_measurements_says_so() {
    let fits = Fits::default();
    let report = Report::new(&[], &[], &fits, serde_json::json!({ "name": "x" }));
    let (text, page) = (report.markdown().expect("text"), report.html().expect("a page"));
    assert!(text.contains("Nothing was measured yet") && page.contains("Nothing was measured yet"));
}
