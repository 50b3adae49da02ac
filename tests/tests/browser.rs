//! The report in a browser: it opens from a file, and sorting, filters, legends, hovering and selecting work.

use kbit_tests::{browser::Browser, kbit_ok};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Writes a run of `models` by `schemes` results on a text, with tensors, a task, samples and costs; gives its report.
fn report(folder: &Path, models: u64, schemes: u64) -> PathBuf {
    let (mut results, mut costs, mut samples) = (String::new(), String::new(), String::new());
    for model in 0..models {
        let params = 1_000_000u64 << (model % 20);
        let about = json!({ "id": format!("m{model:02}"), "architecture": "llama", "params": params, "tokens": null, "flops": null });
        for scheme in 0..schemes {
            let (family, bits) = (["int", "float", "quantile"][(scheme % 3) as usize], 2 + (scheme / 3) % 7);
            let block = 32 + scheme / 21;
            let (label, family, bits) = match scheme {
                0 => ("none".to_owned(), "none", 16),
                _ => (format!("{family}:bits={bits},block={block}"), family, bits),
            };
            let bpw = bits as f64 + 16.0 / block as f64;
            let kld = (0.5 - 1.1 * bpw + 0.1 * ((scheme * 7 + model * 3) % 5) as f64).exp();
            let nll = 4.0 - 0.15 * (model % 20) as f64 + if scheme == 0 { 0.0 } else { kld };
            let mut put = |metric: &str, tensor: Option<&str>, value: f64, more: Value| {
                let mut line = json!({
                    "schema": 1, "model": about,
                    "scheme": { "label": label, "id": format!("org.example.{family}/1"), "family": family, "params": {}, "bits": bits },
                    "bpw": { "file": bpw, "decoder": bpw }, "bytes": (params as f64 * bpw / 8.0) as u64,
                    "total_bits": params as f64 * bpw, "metric": metric, "tensor": tensor, "value": value, "stderr": 0.01,
                    "count": 1000, "mode": "f32", "cache_type": "f32",
                    "data": { "name": "prose", "sha256": "00", "context": 256, "chunks": 8 }, "file_sha256": null,
                });
                for (key, value) in more.as_object().into_iter().flatten() {
                    line[key] = value.clone();
                }
                let _ = writeln!(results, "{line}");
            };
            put("nll", None, nll, json!({}));
            put("perplexity", None, nll.exp(), json!({}));
            if scheme > 0 {
                put("kl_divergence", None, kld, json!({}));
            }
            if model < 3 && scheme < 6 {
                let task = json!({ "name": "quiz", "sha256": "11", "context": null, "chunks": null });
                put("accuracy", None, 0.7 - kld / 4.0, json!({ "data": task }));
                for layer in 0..4 {
                    let tensor = format!("blk.{layer}.attn_q.weight");
                    put(
                        "tensor_relative_mse",
                        Some(&tensor),
                        kld * (1.0 + layer as f64),
                        json!({ "data": null, "stderr": null }),
                    );
                }
                let _ = writeln!(
                    costs,
                    "{}",
                    json!({
                        "schema": 1, "model": about,
                        "scheme": { "label": label, "id": "x", "family": family, "params": {}, "bits": bits },
                        "stage": "perplexity", "seconds": 1.5, "tokens_per_second": 100.0 + bits as f64, "peak_rss_bytes": 1_000_000,
                    })
                );
                let _ = writeln!(
                    samples,
                    "{}",
                    json!({
                        "schema": 1, "model": format!("m{model:02}"), "scheme": label, "mode": "f32", "cache_type": "f32",
                        "name": "story", "prompt": "Once </script> upon", "text": format!("a time {scheme}"), "seed": 1,
                    })
                );
            }
        }
    }
    for (name, text) in [("results.jsonl", results), ("costs.jsonl", costs), ("samples.jsonl", samples)] {
        std::fs::write(folder.join(name), text).expect("a file");
    }
    std::fs::write(folder.join("provenance.json"), r#"{"name": "made up", "bootstrap": 20}"#)
        .expect("a file");
    let _ = kbit_ok(folder, &["report", ".", "--format", "html"]);
    folder.join("report.html")
}

/// Text of the first row of results, and how many rows stand in the page.
const FIRST: &str = "const rows = document.querySelectorAll('#results tbody tr'); return [rows[0]?.innerText ?? '', rows.length];";
/// Waits until what was asked for is drawn.
const DRAWN: &str = "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn tables_and_figures_of_the_report_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = report(folder.path(), 4, 40);
    let Some(browser) = Browser::start(1280, 900) else { return };
    browser.open(&page);
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let sections = browser.run(r#"return [...document.querySelectorAll("section")].map((s) => s.id)"#);
    for wanted in [
        "answer",
        "plots",
        "results",
        "tasks-section",
        "laws",
        "heat",
        "samples",
        "costs-section",
        "methods",
        "provenance",
    ] {
        assert!(sections.as_array().expect("ids").contains(&json!(wanted)), "no {wanted} in {sections}");
    }

    // Sorting: ascending, then descending, by number and not by text.
    let sizes = format!(
        "const heading = () => [...document.querySelectorAll('#results th button')].find((b) => b.textContent === 'size');
         heading().click(); {DRAWN}
         const at = [...document.querySelectorAll('#results th')].indexOf(heading().parentNode);
         const read = () => [...document.querySelectorAll('#results tbody tr')].map((r) => parseFloat(r.cells[at].innerText));
         const up = read(); const sort = heading().parentNode.ariaSort; heading().click(); return [up, read(), sort];"
    );
    let sizes = browser.run(&sizes);
    let column =
        |index: usize| sizes[index].as_array().expect("sizes").iter().map(number).collect::<Vec<_>>();
    assert!(column(0).is_sorted(), "{:?}", column(0));
    assert!(column(1).iter().rev().is_sorted() && column(1)[0] > column(0)[0], "{:?}", column(1));
    assert_eq!(sizes[2], "ascending");

    // Words filter the table and the figures.
    let type_words = |words: &str| {
        format!(
            "const q = document.getElementById('query'); q.value = '{words}'; q.dispatchEvent(new Event('input')); {DRAWN}"
        )
    };
    let points =
        "[...document.querySelectorAll('#quality .dot[data-row]')].filter((d) => d.checkVisibility()).length";
    let all = number(&browser.run(&format!("return {points}")));
    assert_eq!(all, 160.0);
    let left = browser.run(&format!(
        "{} return [{points}, document.querySelector('#results .count').textContent]",
        type_words("m02 bits=4")
    ));
    let of_filter = number(&left[0]);
    assert!(of_filter > 0.0 && of_filter < 10.0, "{left}");
    assert_eq!(left[1], format!("{of_filter} of 160"), "the table has the rows of the figure");
    let _ = browser.run(&type_words(""));

    // A facet does.
    let facet = format!(
        "const menu = document.querySelector('[data-menu=family]'); menu.open = true; {DRAWN}
         menu.querySelector('input[value=int]').click(); menu.open = false; {DRAWN}
         const families = [...document.querySelectorAll('#results tbody tr')].map((r) => r.innerText.includes('int:'));
         const answer = [families.every(Boolean), {points}];
         document.getElementById('reset').click(); {DRAWN} return [...answer, {points}];"
    );
    let facet = browser.run(&facet);
    assert_eq!(facet[0], true);
    assert!(number(&facet[1]) < all && number(&facet[1]) > 0.0, "{facet}");
    assert_eq!(number(&facet[2]), all);

    // A legend hides a series there, in the other figures and in the table.
    let legend = format!(
        "const button = () => document.querySelector('#divergence .legend button[data-key=\"family=float\"]');
         const floats = () => [...document.querySelectorAll('#pareto .dot[data-row]')].filter((d) => d.checkVisibility()).length;
         const before = floats(); button().click(); {DRAWN}
         const line = document.querySelector('#divergence g.series[data-key=\"family=float\"]'); const shown = getComputedStyle(line).display;
         const answer = [before, floats(), shown, button().ariaPressed];
         button().click(); {DRAWN} return [...answer, floats()];"
    );
    let legend = browser.run(&legend);
    assert!(number(&legend[1]) < number(&legend[0]), "{legend}");
    assert_eq!([&legend[2], &legend[3]], [&json!("none"), &json!("false")]);
    assert_eq!(legend[4], legend[0]);

    // Hovering names model, scheme and value.
    let place = browser.run(
        "const svg = document.querySelector('#divergence svg.chart'); svg.scrollIntoView({ block: 'center', behavior: 'instant' });
         const box = svg.querySelector('.dot[data-row]').getBoundingClientRect();
         const all = svg.getBoundingClientRect();
         return [box.x + box.width / 2, box.y + box.height / 2, all.x + 80, all.y + 30, all.right - 170, all.bottom - 60];",
    );
    let at = |index: usize| number(&place[index]);
    browser.point(&[(at(0) + 1.0, at(1) + 1.0)], false);
    let tip =
        browser.run("const tip = document.getElementById('tip'); return tip.hidden ? '' : tip.innerText");
    let tip = tip.as_str().expect("text");
    assert!(tip.starts_with('m') && tip.contains("KL divergence: ") && tip.contains('\u{b1}'), "{tip:?}");

    // Dragging selects: the table shows what lies inside.
    browser
        .point(&[(at(2), at(3)), (at(4) - 50.0, at(5) - 20.0), (f64::midpoint(at(2), at(4)), at(5))], true);
    let picked = browser.run(&format!("{DRAWN} const chip = document.getElementById('unpick'); return [chip.hidden, parseInt(chip.textContent), document.querySelector('#results .count').textContent]"));
    assert_eq!(picked[0], false);
    let count = number(&picked[1]);
    assert!(count > 0.0 && count < 156.0, "{picked}");
    assert!(picked[2].as_str().expect("text").starts_with(&format!("{count} of 160")), "{picked}");
    let _ = browser.run(&format!("document.getElementById('unpick').click(); {DRAWN}"));

    // The same from the keyboard.
    let keys = browser.run(
        "const svg = document.querySelector('#quality svg.chart'); svg.focus();
         svg.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }));
         const tip = document.getElementById('tip'); const text = tip.hidden ? '' : tip.innerText;
         svg.blur(); return [text, tip.hidden];",
    );
    assert!(keys[0].as_str().expect("text").contains("bits/weight"), "{keys}");
    assert_eq!(keys[1], true);

    // A column that was hidden.
    let columns = browser.run(&format!(
        "const menu = document.querySelector('#results details.menu'); menu.open = true; {DRAWN}
         menu.querySelector('input[data-column=params]').click(); menu.open = false;
         return [...document.querySelectorAll('#results th')].map((th) => th.textContent).includes('parameters');"
    ));
    assert_eq!(columns, true);

    // The saved files are made of the same data.
    let saved = browser.run(
        "const texts = []; const make = URL.createObjectURL; URL.createObjectURL = (blob) => { texts.push(blob); return make(blob); };
         HTMLAnchorElement.prototype.click = () => {};
         document.querySelector('#results [data-save=csv]').click(); document.querySelector('#quality [data-save=svg]').click();
         return Promise.all(texts.map((blob) => blob.text()));",
    );
    let csv = saved[0].as_str().expect("CSV");
    assert!(csv.starts_with("run,model,") && csv.lines().count() == 161, "{csv:.80}");
    let svg = saved[1].as_str().expect("SVG");
    assert!(svg.starts_with("<svg") && svg.contains(".f0{fill:#"), "{svg:.80}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_report_fits_a_phone() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = report(folder.path(), 3, 12);
    let Some(browser) = Browser::start(1280, 900) else { return };
    browser.resize(390, 844);
    browser.open(&page);
    let widths = browser.run("return [document.documentElement.scrollWidth, innerWidth]");
    assert!(number(&widths[0]) <= number(&widths[1]), "{widths}");
}

#[test]
fn without_scripts_tables_and_figures_stand_in_the_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = report(folder.path(), 3, 12);
    let Some(browser) = Browser::start(1280, 900) else { return };
    browser.devtools("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
    browser.open(&page);
    let document = browser.devtools("DOM.getDocument", &json!({}));
    let count = |selector: &str| {
        let parameters = json!({ "nodeId": document["root"]["nodeId"], "selector": selector });
        browser.devtools("DOM.querySelectorAll", &parameters)["nodeIds"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(count("#results tbody tr"), 36);
    assert!(count("svg.chart .dot title") > 36);
    assert_eq!(count("#filters *"), 0, "nothing that would not work");
}

/// Not a measurement of speed: the bound is some hundred times what a frame takes, and holds on a busy machine.
#[test]
fn five_thousand_results_stay_fluid() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = report(folder.path(), 5, 1000);
    let Some(browser) = Browser::start(1280, 900) else { return };
    browser.open(&page);
    let first = browser.run(FIRST);
    assert!(number(&first[1]) <= 50.0, "{first}");
    let answer = browser.run(&format!(
        "const begin = performance.now(); const q = document.getElementById('query');
         q.value = 'float bits=4'; q.dispatchEvent(new Event('input')); {DRAWN}
         const filtered = performance.now() - begin; const count = document.querySelector('#results .count').textContent;
         document.querySelectorAll('#results th button')[4].click(); {DRAWN}
         q.value = ''; q.dispatchEvent(new Event('input')); {DRAWN}
         return [filtered, performance.now() - begin, count, document.querySelectorAll('#results tbody tr').length,
                 document.querySelectorAll('tr').length, document.querySelector('#results .count').textContent];"
    ));
    assert!(number(&answer[0]) < 2000.0 && number(&answer[1]) < 6000.0, "{answer}");
    let left: u32 =
        answer[2].as_str().and_then(|text| text.split(' ').next()?.parse().ok()).expect("a count");
    assert!(left > 100 && left < 2500, "{answer}");
    assert_eq!(answer[3], 50);
    assert!(number(&answer[4]) < 500.0, "{answer}");
    assert!(answer[5].as_str().expect("text").starts_with("5000 of 5000"), "{answer}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
