//! Laws of tables: a synthetic one gives its constants back, mistakes are told with their place, and the published figures of Pythia
//! are fitted where somebody put them beside the repository.

mod common;

use common::Noise;
use kbit_laws::{Fit, FitOptions, Fits, Table, fit_observations};
use std::path::{Path, PathBuf};

const YAML: &str = "table:
  file: runs.csv
  where: { metric: ppl, task: [a, b] }
  least: { step: 1000 }
  average: task
  model: name
  params: { column: name, values: { small: 1e6, medium: 8e6, large: 6.4e7, huge: 5.12e8 } }
  tokens: { column: step, times: 1000000 }
  loss: { column: value, as: log }
";

fn parse(yaml: &str) -> Table {
    Table::parse(yaml, Path::new("tables/mine.yaml")).expect("a description")
}

/// Perplexities of a Chinchilla law on two tasks, which lie above and below it alike; early steps and other lines are beside it.
fn csv() -> String {
    let mut noise = Noise::new(3);
    let mut text = "name,step,task,metric,value\n".to_owned();
    for (name, params) in [("small", 1e6), ("medium", 8e6), ("large", 6.4e7), ("huge", 5.12e8f64)] {
        text += &format!("{name},0,a,ppl,50000\n{name},2000,a,acc,0.4\n{name},2000,c,ppl,9\n");
        for step in [1000, 3000, 10_000, 30_000, 100_000, 300_000] {
            let tokens = f64::from(step) * 1e6;
            let loss = 1.7 + 400.0 * params.powf(-0.35) + 410.0 * tokens.powf(-0.28);
            let loss = loss * (0.002 * noise.next()).exp();
            text += &format!("{name},{step},a,ppl,{}\n", (loss + 0.25).exp());
            text += &format!("\"{name}\",{step}.0,b,ppl,{}\r\n", (loss - 0.25).exp());
        }
    }
    text
}

fn fit<'a>(fits: &'a Fits, law: &str) -> &'a Fit {
    fits.fits.iter().find(|fit| fit.law == law).unwrap_or_else(|| panic!("no {law}: {:?}", fits.refusals))
}

#[test]
fn a_table_gives_the_constants_that_it_was_made_from() {
    let read = parse(YAML).observations(&csv()).expect("observations");
    assert_eq!(read.observations.len(), 24);
    assert!(read.notes.is_empty(), "{:?}", read.notes);
    let fits = fit_observations(&read.observations, &FitOptions::default());
    let chinchilla = fit(&fits, "chinchilla");
    for (name, truth) in [("E", 1.7), ("alpha", 0.35), ("beta", 0.28)] {
        let found = chinchilla.estimate(name).expect(name);
        let (low, high) = (found.low.expect("an interval"), found.high.expect("an interval"));
        assert!(low <= truth && truth <= high, "{name}: {found:?}");
        assert!((found.value / truth - 1.0).abs() < 0.1, "{name}: {found:?}");
    }
    // Powers alone have no floor, and fit worse.
    let powers = fit(&fits, "plain-power");
    assert!(powers.aic > chinchilla.aic + 10.0, "{} {}", powers.aic, chinchilla.aic);
}

#[test]
fn points_that_lack_a_part_of_the_average_are_left_out() {
    let csv: String =
        csv().lines().filter(|line| !line.starts_with("huge,1000,a")).collect::<Vec<_>>().join("\n");
    let read = parse(YAML).observations(&csv).expect("observations");
    assert_eq!(read.observations.len(), 23);
    assert_eq!(read.notes, ["1 of 24 points lack some task and were left out"]);
}

#[test]
fn quantized_models_have_what_quantization_added() {
    let yaml =
        "table: {file: a.csv, model: m, scheme: s, family: f, params: size, bits: {column: b}, loss: l}";
    let csv = "m,s,f,size,b,l\nx,none,-,1000,16,3.0\nx,q4,q,1000,4.5,3.25\n";
    let read = parse(yaml).observations(csv).expect("observations");
    let [whole, quantized] = read.observations.as_slice() else { panic!("{:?}", read.observations) };
    assert_eq!((whole.family.as_str(), whole.added), ("none", None));
    assert_eq!((quantized.family.as_str(), quantized.added), ("q", Some(0.25)));
    assert_eq!(quantized.at.total_bits, Some(4500.0));
    assert_eq!(quantized.at.nominal_bits, Some(5.0));
}

#[test]
fn mistakes_in_a_table_name_line_and_cure() {
    let table = parse(YAML);
    let message = |csv: &str| table.observations(csv).expect_err("a mistake").to_string();
    let headings = "name,step,task,metric,value\n";
    for (csv, wanted) in [
        (String::new(), "runs.csv:1: the file has no headings"),
        ("name,steps,task,metric,value\n".to_owned(), "there is no column `step`; did you mean `steps`?"),
        (format!("{headings}small,1000,a,ppl\n"), "runs.csv:2: 4 fields where the headings are 5"),
        (format!("{headings}small,x,a,ppl,2\n"), "runs.csv:2: `x` in the column `step` is no number"),
        (
            format!("{headings}tiny,1000,a,ppl,2\n"),
            "`tiny` in the column `name` has no number; add it below `values`",
        ),
        (format!("{headings}small,1000,a,ppl,-2\n"), "`-2` in the column `value` has no logarithm"),
        (
            format!("{headings}small,1000,a,ppl,2\nsmall,1000,a,ppl,3\n"),
            "runs.csv:3: a second line of the same point",
        ),
        (format!("{headings}small,10,a,ppl,2\n"), "no line is as `where`"),
        (format!("{headings}small,10,\"a,ppl,2\n"), "runs.csv:2: a quote begins here that does not end"),
    ] {
        let message = message(&csv);
        assert!(message.contains(wanted), "{message}\nis not\n{wanted}");
    }
    let missing =
        Table::parse(YAML, Path::new("nowhere/mine.yaml")).expect("a description").read_observations();
    let missing = missing.expect_err("no file").to_string();
    assert!(missing.starts_with("nowhere/runs.csv: ") && missing.contains("set `file`"), "{missing}");
}

#[test]
fn mistakes_in_a_description_name_place_and_cure() {
    for (from, to, wanted) in [
        ("  model: name\n", "", "a table needs the key `model`"),
        ("  tokens:", "  token:", "unknown key `token` in a table"),
        ("times: 1000000", "times: many", "mine.yaml:8:34: `times` is no number"),
        ("as: log", "as: logarithm", "`as` cannot be `logarithm`"),
        ("small: 1e6", "small: big", "`small` below `values` is a number, found text"),
        ("least: { step: 1000 }", "least: { step: few }", "`step` below `least` is a number"),
        ("  loss: { column: value, as: log }\n", "", "neither `loss` nor `divergence`"),
    ] {
        let yaml = YAML.replace(from, to);
        assert_ne!(yaml, YAML, "{from}");
        let message = Table::parse(&yaml, Path::new("mine.yaml")).expect_err("a mistake").to_string();
        assert!(message.contains(wanted), "{message}\nis not\n{wanted}");
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "says what it skipped")]
fn the_published_figures_of_pythia_are_fitted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let config = root.join("configs/pythia.yaml");
    let mut table = Table::read(&config).expect("a description");
    let data: PathBuf = root.join("../shared/data/pythia_v1_evals.csv");
    if !data.exists() {
        println!("skipped: there is no ../shared/data/pythia_v1_evals.csv beside the repository");
        return;
    }
    table.file = data;
    let read = table.read_observations().expect("observations");
    // Eight models at fifteen steps.
    assert_eq!(read.observations.len(), 8 * 15, "{:?}", read.notes);
    let options = FitOptions { bootstrap: 50, ..FitOptions::default() };
    let fits = fit_observations(&read.observations, &options);
    for law in ["chinchilla", "plain-power"] {
        let fit = fit(&fits, law);
        assert!(fit.r_squared > 0.85, "{law}: {}", fit.r_squared);
        for estimate in &fit.estimates {
            let ends = [Some(estimate.value), estimate.low, estimate.high];
            assert!(ends.into_iter().flatten().all(f64::is_finite), "{law}: {estimate:?}");
        }
    }
    // More parameters and more tokens are better.
    let chinchilla = fit(&fits, "chinchilla");
    for name in ["alpha", "beta"] {
        let found = chinchilla.estimate(name).expect(name);
        assert!(found.low.is_some_and(|low| low > 0.0) && found.value < 2.0, "{found:?}");
    }
}
