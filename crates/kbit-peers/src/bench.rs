//! kbit against its peers on the same input with the same threads: seconds, peak memory, bytes.
//!
//! Both run alternately, so that a machine that slows down slows both; figures are medians of the rounds, and what is reported
//! is their ratio.

use crate::compare::{self, Pair};
use crate::engine;
use crate::models;
use crate::peers::{self, Peers};
use crate::process::{self, Measured};
use crate::table::Table;
use crate::{Result, in_context, print, say, yardstick};
use kbit_types::GgmlType;
use serde::Serialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room that the outputs need: two files of at most 0.7 GB, the same while they are compared.
const ROOM: u64 = 2 << 30;

/// `bench-peers`: kbit against its peers, measured.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Cases whose name contains one of these, as pure,mix/q4_k_m,evaluate/ [default: all]
    #[arg(long, value_name = "CASES", value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Threads of both
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: u32,
    /// Folder of the outputs; one in memory (as /dev/shm) leaves the disk out [default: out in the folder of the peers]
    #[arg(long, value_name = "DIR")]
    outputs: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Print Markdown, with ratios and without seconds, for docs/benchmarks.md
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// What a case runs.
enum Work {
    /// llama-quantize, as this file type; kbit, with this scheme.
    Quantize { file_type: String, scheme: String, pure: bool },
    /// convert_hf_to_gguf.py, and kbit.
    Convert,
}

struct Case {
    name: String,
    work: Work,
    /// Bound by memory, so that the copying of memory is the measure.
    beside_copy: bool,
}

/// The figures of a case.
#[derive(Debug, Serialize)]
struct Row {
    case: String,
    importance: bool,
    peer_seconds: f64,
    kbit_seconds: f64,
    /// Peer's seconds by kbit's.
    ratio: f64,
    /// Bytes of input a second.
    kbit_rate: f64,
    /// The rate as a part of the rate at which as many threads copy memory.
    of_memory_copy: Option<f64>,
    /// The rate as a part of the rate at which as many threads read the input and write the output's bytes, computing nothing.
    of_file_copy: Option<f64>,
    peer_peak_bytes: u64,
    kbit_peak_bytes: u64,
    kbit_private_peak_bytes: u64,
    bytes: &'static str,
    difference: Option<String>,
}

/// Measures all cases and prints them.
///
/// # Errors
/// A program that is missing or cannot be run. A case that fails is said, the others run.
pub fn bench(peers: &Peers, args: &Args) -> Result<()> {
    let outputs = args.outputs.clone().unwrap_or_else(|| peers.folder().join("out"));
    let pair = Pair::new(peers, &outputs, args.threads)?;
    let free = kbit_formats::disk_free(&outputs).map_err(|error| error.to_string())?;
    if free < ROOM {
        let outputs = outputs.display();
        return Err(format!(
            "{outputs}: {free} bytes are free, {ROOM} are needed; name another by --outputs"
        ));
    }
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|part| matches(name, part));
    let mut cases = cases(&compare::file_types(peers)?);
    cases.retain(|case| wanted(&case.name));
    let mut engine_cases = engine::cases();
    engine_cases.retain(|case| wanted(&case.name));
    if cases.is_empty() && engine_cases.is_empty() {
        return Err(
            "no case has such a name; they begin with pure/, mix/, convert/, evaluate/ and generate/"
                .to_owned(),
        );
    }
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for case in &cases {
        match measure(peers, &pair, case, args) {
            Ok(row) => {
                say(&line(&row));
                rows.push(row);
            }
            Err(message) => {
                say(&format!("{:<14} {message}", case.name));
                failed.push(case.name.as_str());
            }
        }
        pair.clean()?;
    }
    let mut engine_rows = Vec::new();
    let mut files = engine::Files::new(peers, &pair, &outputs);
    for case in &engine_cases {
        match engine::measure(case, &mut files, args.rounds, args.threads) {
            Ok(row) => {
                say(&row.line());
                engine_rows.push(row);
            }
            Err(message) => {
                say(&format!("{:<14} {message}", case.name));
                failed.push(case.name.as_str());
            }
        }
    }
    files.remove()?;
    pair.clean()?;
    if args.json {
        let machine = machine();
        let found = serde_json::json!({
            "machine": machine, "threads": args.threads, "rounds": args.rounds, "cases": rows, "engine": engine_rows,
        });
        print(&format!("{found:#}"));
    } else {
        let absolute = !args.markdown;
        let tables = [
            (!rows.is_empty()).then(|| table(&rows, absolute)),
            (!engine_rows.is_empty()).then(|| engine::table(&engine_rows, absolute)),
        ];
        let form = if args.markdown { Table::markdown } else { Table::text };
        let mut texts: Vec<String> = tables.iter().flatten().map(form).collect();
        if args.markdown {
            let (machine, release) = (machine(), peers::release());
            texts.insert(0, format!("{machine}, {} threads, beside llama.cpp of {release}.\n", args.threads));
        }
        print(&texts.join("\n"));
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured: {}", failed.join(", "))) }
}

/// True where `part` is in the name; a part with a slash is the whole name or its beginning up to a slash.
fn matches(name: &str, part: &str) -> bool {
    let part = part.to_lowercase();
    if part.contains('/') && !part.ends_with('/') { name == part } else { name.contains(&part) }
}

/// All cases: block types alone, mixes, conversion.
fn cases(file_types: &[compare::FileType]) -> Vec<Case> {
    let mut cases = Vec::new();
    for ty in GgmlType::ALL.iter().copied().filter(|ty| *ty != GgmlType::F32 && kbit_blocks::can_encode(*ty))
    {
        // The mixes that --pure turns into these types have other names.
        let name = match ty {
            GgmlType::IQ2_S => "IQ2_M",
            GgmlType::MXFP4 => "MXFP4_MOE",
            _ => ty.name(),
        };
        let Some(file_type) = file_types.iter().find(|known| known.name == name) else { continue };
        let scheme = format!("ggml:{}", ty.name().to_lowercase());
        cases.push(Case {
            name: format!("pure/{}", ty.name().to_lowercase()),
            work: Work::Quantize { file_type: file_type.name.clone(), scheme, pure: true },
            beside_copy: matches!(ty, GgmlType::Q4_0 | GgmlType::Q8_0 | GgmlType::F16 | GgmlType::BF16),
        });
    }
    for file_type in file_types.iter().filter(|known| !known.is_alias && known.name != "F32") {
        let scheme = file_type.name.to_lowercase();
        cases.push(Case {
            name: format!("mix/{scheme}"),
            work: Work::Quantize { file_type: file_type.name.clone(), scheme, pure: false },
            beside_copy: false,
        });
    }
    cases.push(Case { name: "convert/f16".into(), work: Work::Convert, beside_copy: false });
    cases
}

fn measure(peers: &Peers, pair: &Pair, case: &Case, args: &Args) -> Result<Row> {
    let folder = compare::models_folder(peers)?;
    let mut imatrix = None;
    let model = match &case.work {
        Work::Quantize { file_type, pure, .. } => {
            let model = models::LLAMA.gguf(&folder)?;
            let dry: &[&str] = if *pure { &["--dry-run", "--pure"] } else { &["--dry-run"] };
            succeeded(pair.quantize(&model, file_type, None, dry)?, "the peer", &pair.peer_log())?;
            if needs(pair)? {
                imatrix = Some(models::LLAMA.imatrix(&folder, *pure)?);
            }
            model
        }
        Work::Convert => models::LLAMA.hugging_face(&folder)?,
    };
    let imatrix = imatrix.as_deref();
    let peer = || match &case.work {
        Work::Quantize { file_type, pure, .. } => {
            pair.quantize(&model, file_type, imatrix, if *pure { &["--pure"] } else { &[] })
        }
        Work::Convert => {
            let (python, script) = peers.converter()?;
            let mut command = Command::new(python);
            command.arg(script).arg(&model).arg("--outfile").arg(&pair.theirs).args(["--outtype", "f16"]);
            for variable in ["OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
                command.env(variable, args.threads.to_string());
            }
            pair.measure_peer(&mut command)
        }
    };
    let kbit = || match &case.work {
        Work::Quantize { scheme, .. } => pair.convert(&model, scheme, imatrix),
        Work::Convert => pair.convert(&model, "ggml:f16", None),
    };
    let input = read_through(&model)?;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    let (mut memory_copies, mut file_copies) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let run_peer = |theirs: &mut Vec<Measured>| {
            settle()?;
            theirs.push(succeeded(peer()?, "the peer", &pair.peer_log())?);
            Ok::<(), String>(())
        };
        if round % 2 == 0 {
            run_peer(&mut theirs)?;
        }
        settle()?;
        ours.push(succeeded(kbit()?, "kbit", &pair.kbit_log())?);
        if round % 2 == 1 {
            run_peer(&mut theirs)?;
        }
        if case.beside_copy {
            memory_copies.push(yardstick::memory_copy(args.threads)?);
            settle()?;
            let written = fs::metadata(&pair.ours).map_err(in_context(pair.ours.display()))?.len();
            let copy = pair.ours.with_extension("copy");
            file_copies.push(yardstick::file_copy_rate(&model, &copy, written, args.threads as usize)?);
        }
    }
    let compared = compare::compare_files(&pair.ours, &pair.theirs)?;
    let seconds = |runs: &[Measured]| median(runs.iter().map(|run| run.seconds).collect());
    let peak = |runs: &[Measured], bytes: fn(&Measured) -> u64| runs.iter().map(bytes).max().unwrap_or(0);
    let (peer_seconds, kbit_seconds) = (seconds(&theirs), seconds(&ours));
    let kbit_rate = input as f64 / kbit_seconds;
    Ok(Row {
        case: case.name.clone(),
        importance: imatrix.is_some(),
        peer_seconds,
        kbit_seconds,
        ratio: peer_seconds / kbit_seconds,
        kbit_rate,
        of_memory_copy: case.beside_copy.then(|| kbit_rate / median(memory_copies)),
        of_file_copy: case.beside_copy.then(|| kbit_rate / median(file_copies)),
        peer_peak_bytes: peak(&theirs, |run| run.peak),
        kbit_peak_bytes: peak(&ours, |run| run.peak),
        kbit_private_peak_bytes: peak(&ours, |run| run.peak_private),
        bytes: compared.word(),
        difference: compared.difference(),
    })
}

/// True where the dry run has said that it needs importance.
fn needs(pair: &Pair) -> Result<bool> {
    let log = pair.peer_log();
    let text = fs::read(&log).map_err(in_context(log.display()))?;
    Ok(String::from_utf8_lossy(&text).contains("require an imatrix"))
}

pub(crate) fn succeeded(measured: Measured, who: &str, log: &Path) -> Result<Measured> {
    if measured.success { Ok(measured) } else { Err(format!("{who} fails: {}", process::complaint(log))) }
}

/// Waits until earlier outputs are on the disk, so that no run pays for the one before.
fn settle() -> Result<()> {
    Command::new("sync").status().map_err(in_context("sync")).map(|_| ())
}

/// Reads all files of the model, so that they are in the page cache; their bytes.
pub(crate) fn read_through(model: &Path) -> Result<u64> {
    let paths: Vec<PathBuf> = if model.is_dir() {
        let entries = fs::read_dir(model).map_err(in_context(model.display()))?;
        entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()
            .map_err(in_context(model.display()))?
    } else {
        vec![model.to_owned()]
    };
    paths.iter().try_fold(0, |bytes, path| {
        let io = in_context(path.display());
        Ok(bytes + std::io::copy(&mut File::open(path).map_err(&io)?, &mut std::io::sink()).map_err(&io)?)
    })
}

/// The middle value, or the mean of the two in the middle; NaN of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

/// The processor.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown processor", |(_, name)| name).to_owned()
}

fn mib(bytes: u64) -> String {
    (bytes >> 20).to_string()
}

fn percent(part: Option<f64>) -> String {
    part.map_or_else(String::new, |part| format!("{:.0} %", 100.0 * part))
}

fn line(row: &Row) -> String {
    format!(
        "{:<14} peer {:>7.2} s, kbit {:>7.2} s: {:>5.1}x, {}{}",
        row.case,
        row.peer_seconds,
        row.kbit_seconds,
        row.ratio,
        row.bytes,
        row.difference.as_ref().map_or_else(String::new, |difference| format!(" ({difference})"))
    )
}

/// A column of a table of `Row`s.
pub(crate) struct Column<Row> {
    pub(crate) name: &'static str,
    /// Only true of one machine, and of one day.
    pub(crate) is_absolute: bool,
    pub(crate) cell: fn(&Row) -> String,
}

const COLUMNS: &[Column<Row>] = &[
    Column { name: "case", is_absolute: false, cell: |row| row.case.clone() },
    Column {
        name: "importance",
        is_absolute: false,
        cell: |row| if row.importance { "yes" } else { "no" }.to_owned(),
    },
    Column { name: "peer s", is_absolute: true, cell: |row| format!("{:.2}", row.peer_seconds) },
    Column { name: "kbit s", is_absolute: true, cell: |row| format!("{:.2}", row.kbit_seconds) },
    Column { name: "ratio", is_absolute: false, cell: |row| format!("{:.1}", row.ratio) },
    Column { name: "kbit MB/s", is_absolute: true, cell: |row| format!("{:.0}", row.kbit_rate / 1e6) },
    Column { name: "of memory copy", is_absolute: false, cell: |row| percent(row.of_memory_copy) },
    Column { name: "of file copy", is_absolute: false, cell: |row| percent(row.of_file_copy) },
    Column { name: "peer MiB", is_absolute: false, cell: |row| mib(row.peer_peak_bytes) },
    Column { name: "kbit MiB", is_absolute: false, cell: |row| mib(row.kbit_peak_bytes) },
    Column { name: "private MiB", is_absolute: false, cell: |row| mib(row.kbit_private_peak_bytes) },
    Column { name: "bytes", is_absolute: false, cell: |row| row.bytes.to_owned() },
];

/// The figures, or what of them holds beyond one machine.
fn table(rows: &[Row], absolute: bool) -> Table {
    table_of(COLUMNS, rows, absolute)
}

pub(crate) fn table_of<Row>(columns: &[Column<Row>], rows: &[Row], absolute: bool) -> Table {
    let columns: Vec<_> = columns.iter().filter(|column| absolute || !column.is_absolute).collect();
    let mut table = Table::new(&columns.iter().map(|column| column.name).collect::<Vec<_>>());
    for row in rows {
        table.row(columns.iter().map(|column| (column.cell)(row)).collect());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{Row, cases, matches, median, table};
    use crate::compare::FileType;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn cases_are_chosen_by_name() {
        assert!(
            matches("pure/q4_k", "pure") && matches("pure/q4_k", "Q4_K") && matches("pure/q4_k", "pure/")
        );
        assert!(matches("mix/q4_k", "mix/Q4_K") && !matches("mix/q4_k_m", "mix/q4_k"));
        let file_type = |name: &str, is_alias| FileType { name: name.into(), is_alias };
        let types = [file_type("Q4_0", false), file_type("Q4_K", true), file_type("F32", false)];
        let names: Vec<_> = cases(&types).into_iter().map(|case| case.name).collect();
        assert!(names.starts_with(&["pure/q4_0".to_owned()]), "{names:?}");
        assert!(names.contains(&"mix/q4_0".to_owned()) && names.contains(&"convert/f16".to_owned()));
        assert!(!names.contains(&"mix/q4_k".to_owned()) && !names.contains(&"mix/f32".to_owned()));
    }

    fn row() -> Row {
        Row {
            case: "pure/q4_0".into(),
            importance: false,
            peer_seconds: 2.0,
            kbit_seconds: 0.5,
            ratio: 4.0,
            kbit_rate: 2.4e9,
            of_memory_copy: Some(0.75),
            of_file_copy: Some(0.5),
            peer_peak_bytes: 3 << 30,
            kbit_peak_bytes: 100 << 20,
            kbit_private_peak_bytes: 50 << 20,
            bytes: "identical",
            difference: None,
        }
    }

    #[test]
    fn tables_show_figures_and_ratios() {
        let text = table(&[row()], true).text();
        assert!(text.contains("2400") && text.contains("75 %") && text.contains("4.0"), "{text}");
        let markdown = table(&[row()], false).markdown();
        assert!(markdown.contains("| pure/q4_0 |") && !markdown.contains("0.50"), "{markdown}");
        assert_eq!(table(&[], false).markdown().lines().count(), 2);
    }
}
