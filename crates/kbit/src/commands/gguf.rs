//! `kbit gguf`: files into shards and back, metadata, hashes.

use crate::cli::{Gguf as Command, GgufHash, GgufMerge, GgufSet, GgufSplit, HashArg};
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_formats::gguf::copy::{copy_tensors, merged_layout, split_layout};
use kbit_formats::gguf::edit::{Edit, Edited, edit_metadata};
use kbit_formats::gguf::{Gguf, GgufLayout, Split};
use kbit_formats::hash::{Sha256, Xxh64};
use std::path::Path;

/// Runs a subcommand.
pub fn gguf(session: &Session, command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Split(arguments) => split(session, arguments),
        Command::Merge(arguments) => merge(session, arguments),
        Command::Set(arguments) => set(session, arguments),
        Command::Hash(arguments) => hash(session, arguments),
    }
}

fn split(session: &Session, arguments: &GgufSplit) -> Result<u8, Failure> {
    let source = Gguf::open(&arguments.file)?;
    let split = match (arguments.max_size, arguments.max_tensors) {
        (Some(bytes), _) => Split::Bytes(bytes),
        (None, Some(tensors)) => Split::Tensors(tensors),
        (None, None) => return Err(Failure::usage("give --max-size or --max-tensors")),
    };
    let layout = split_layout(&source, &split, arguments.no_tensor_first_split)?;
    write(session, &source, &layout, &arguments.out, arguments.overwrite, arguments.dry_run)
}

fn merge(session: &Session, arguments: &GgufMerge) -> Result<u8, Failure> {
    let source = Gguf::open(&arguments.first)?;
    let layout = merged_layout(&source)?;
    write(session, &source, &layout, &arguments.out, arguments.overwrite, arguments.dry_run)
}

/// Writes `source` by `layout`, or prints what would be written.
fn write(
    session: &Session,
    source: &Gguf,
    layout: &GgufLayout,
    out: &Path,
    overwrite: bool,
    dry_run: bool,
) -> Result<u8, Failure> {
    let paths = layout.paths(out);
    if !dry_run {
        let total = source.tensors().iter().map(|tensor| tensor.bytes).sum();
        let bar = session.progress().bytes("copying tensors", total);
        copy_tensors(source, layout, out, overwrite, |bytes| bar.advance(bytes))?;
    }
    let files = paths.iter().zip(layout.shards());
    if session.global.json {
        let files: Vec<_> = files
            .map(|(path, (tensors, bytes))| serde_json::json!({ "path": path, "tensors": tensors, "bytes": bytes }))
            .collect();
        output::json(&serde_json::json!({
            "written": !dry_run,
            "files": files,
            "tensors": layout.tensor_count(),
            "bytes": layout.file_bytes(),
            "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
        }))?;
        return Ok(DONE);
    }
    let mut table = Table::new(&["file", ">tensors", ">size"]);
    for (path, (tensors, bytes)) in files {
        table.row(vec![path.display().to_string(), tensors.to_string(), output::bytes(bytes)]);
    }
    let done = if dry_run { "would be written" } else { "written" };
    output::text(&format!(
        "{}{} tensors in {} files, {} {done}, {}",
        table.render(),
        layout.tensor_count(),
        paths.len(),
        output::bytes(layout.file_bytes()),
        output::peak_memory()
    ))?;
    Ok(DONE)
}

fn set(session: &Session, arguments: &GgufSet) -> Result<u8, Failure> {
    let sets = arguments.set.iter().map(|(key, value)| Edit::Set(key.clone(), value.clone()));
    let removals = arguments.remove.iter().map(|key| Edit::Remove(key.clone()));
    let edits: Vec<Edit> = removals.chain(sets).collect();
    if edits.is_empty() {
        return Err(Failure::usage("give KEY=TYPE:VALUE or --remove KEY"));
    }
    let total = std::fs::metadata(&arguments.file).map_or(0, |file| file.len());
    let bar = session.progress().bytes("copying tensors", total);
    let done = edit_metadata(&arguments.file, &edits, |bytes| bar.advance(bytes))?;
    drop(bar);
    let (how, said) = match done {
        Edited::Unchanged => ("unchanged", "says so already; nothing was written".to_owned()),
        Edited::InPlace(bytes) => ("in_place", format!("{bytes} bytes of the header changed in place")),
        Edited::Rewritten => ("rewritten", "written anew, since the header changed its size".to_owned()),
    };
    if session.global.json {
        output::json(&serde_json::json!({
            "path": arguments.file,
            "changes": edits.len(),
            "how": how,
            "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
        }))?;
    } else {
        output::text(&format!("{}: {said}, {}", arguments.file.display(), output::peak_memory()))?;
    }
    Ok(DONE)
}

/// A running hash of the kind that was asked for.
enum Hash {
    Sha256(Box<Sha256>),
    Xxh64(Xxh64),
}

impl Hash {
    fn new(kind: HashArg) -> Self {
        match kind {
            HashArg::Sha256 => Self::Sha256(Box::default()),
            HashArg::Xxh64 => Self::Xxh64(Xxh64::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Xxh64(hash) => hash.update(bytes),
        }
    }

    fn hex(self) -> String {
        match self {
            Self::Sha256(hash) => hash.hex(),
            Self::Xxh64(hash) => hash.hex(),
        }
    }
}

fn hash(session: &Session, arguments: &GgufHash) -> Result<u8, Failure> {
    const CHUNK: usize = 1 << 20;
    let source = Gguf::open(&arguments.file)?;
    let total = source.tensors().iter().map(|tensor| tensor.bytes).sum();
    let bar = session.progress().bytes("hashing tensors", total);
    let mut whole = Hash::new(arguments.algorithm);
    let mut hashes = Vec::with_capacity(source.tensors().len());
    let mut buffer = vec![0; CHUNK];
    for tensor in source.tensors() {
        let mut hash = Hash::new(arguments.algorithm);
        let mut done = 0;
        while done < tensor.bytes {
            let count = usize::try_from(tensor.bytes - done).unwrap_or(CHUNK).min(CHUNK);
            let piece = &mut buffer[..count];
            source.read_at(tensor, done, piece)?;
            let piece = &*piece;
            rayon::join(|| hash.update(piece), || whole.update(piece));
            done += count as u64;
            bar.advance(count as u64);
        }
        hashes.push(hash.hex());
    }
    drop(bar);
    let whole = whole.hex();
    let name = match arguments.algorithm {
        HashArg::Sha256 => "sha256",
        HashArg::Xxh64 => "xxh64",
    };
    if session.global.json {
        let tensors: Vec<_> = source
            .tensors()
            .iter()
            .zip(&hashes)
            .map(|(tensor, hash)| serde_json::json!({ "name": tensor.name, "bytes": tensor.bytes, "hash": hash }))
            .collect();
        output::json(&serde_json::json!({
            "path": arguments.file,
            "algorithm": name,
            "tensors": tensors,
            "all": whole,
            "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
        }))?;
        return Ok(DONE);
    }
    let mut table = Table::new(&[name, "tensor", ">bytes"]);
    for (tensor, hash) in source.tensors().iter().zip(hashes) {
        table.row(vec![hash, tensor.name.clone(), tensor.bytes.to_string()]);
    }
    output::text(&format!(
        "{}{whole}  all tensors in this order, {}",
        table.render(),
        output::peak_memory()
    ))?;
    Ok(DONE)
}
