//! `kbit inspect`, `kbit diff`, `kbit verify`.

use crate::cli::{Diff, Inspect, Verify};
use crate::failure::{DONE, FAILED, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_calibrate::{Entry, FileKind, ImportanceMatrix};
use kbit_formats::diff::{element_name, summary};
use kbit_formats::gguf::Gguf;
use kbit_formats::packed::PackedIndex;
use kbit_formats::{Checkpoint, SourceTensor};
use std::path::Path;

/// Offset in the file; only GGUF tells.
fn offset(checkpoint: &Checkpoint, tensor: &SourceTensor) -> Option<u64> {
    checkpoint.gguf().and_then(|gguf| gguf.tensor(&tensor.name)).map(|info| info.offset)
}

/// True for files that are named as llama-imatrix's older ones.
fn is_named_importance(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    path.is_file() && ["dat", "imatrix"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Shows what an importance matrix holds: coverage of each tensor and its experts.
fn importance(session: &Session, arguments: &Inspect) -> Result<u8, Failure> {
    let matrix = ImportanceMatrix::open(&arguments.file)?;
    let empty_of =
        |entry: &Entry| entry.counts().map(|counts| counts.iter().filter(|count| **count == 0).count());
    let experts_of = |entry: &Entry| entry.counts().map_or(1, <[u64]>::len);
    let values: u64 = matrix.entries().map(|(_, entry)| entry.values()).sum();
    let partial =
        matrix.entries().filter(|(_, entry)| empty_of(entry).is_some_and(|empty| empty > 0)).count();
    if session.global.json {
        let mut document = serde_json::json!({
            "path": arguments.file,
            "format": "importance",
            "kind": matrix.kind(),
            "sha256": matrix.sha256(),
            "datasets": matrix.datasets(),
            "chunk_count": matrix.chunk_count(),
            "chunk_size": matrix.chunk_size(),
            "entry_count": matrix.entries().len(),
            "value_count": values,
            "partial_entries": partial,
            "moments_count": matrix.moments_count(),
            "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
        });
        if let Some(fields) = document.as_object_mut().filter(|_| arguments.tensors) {
            let entry = |(name, entry): (&str, &Entry)| {
                serde_json::json!({
                    "name": name,
                    "values": entry.values(),
                    "experts": experts_of(entry),
                    "counts": entry.counts(),
                    "empty_experts": empty_of(entry),
                })
            };
            fields.insert("tensors".into(), matrix.entries().map(entry).collect());
        }
        output::json(&document)?;
        return Ok(DONE);
    }
    let mut text = format!(
        "importance matrix ({}), {} tensors, {values} values, {partial} tensors have experts without data\n",
        match matrix.kind() {
            FileKind::Gguf => "GGUF",
            FileKind::Legacy => "the older format, which does not tell what each expert saw",
        },
        matrix.entries().len(),
    );
    if matrix.moments_count() > 0 {
        text.push_str(&format!("second moments of the inputs of {} tensors\n", matrix.moments_count()));
    }
    let size = matrix.chunk_size().map_or_else(String::new, |size| format!(" of {size} tokens"));
    text.push_str(&format!(
        "gathered on {} chunks{size} of {}\n",
        matrix.chunk_count(),
        matrix.datasets().join(", ")
    ));
    if arguments.tensors {
        let mut table =
            Table::new(&["tensor", ">columns", ">experts", ">without data", ">least tokens", ">most tokens"]);
        for (name, entry) in matrix.entries() {
            let experts = experts_of(entry);
            let extreme = |count: Option<&u64>| count.map_or_else(|| "unknown".to_owned(), u64::to_string);
            let counts = entry.counts().unwrap_or_default();
            table.row(vec![
                name.to_owned(),
                (entry.values() / experts as u64).to_string(),
                experts.to_string(),
                empty_of(entry).map_or_else(|| "unknown".to_owned(), |empty| empty.to_string()),
                extreme(counts.iter().min()),
                extreme(counts.iter().max()),
            ]);
        }
        text.push_str(&table.render());
    }
    text.push_str(&format!("{}\n", output::peak_memory()));
    output::text(&text)?;
    Ok(DONE)
}

/// Shows what a file holds.
pub fn inspect(session: &Session, arguments: &Inspect) -> Result<u8, Failure> {
    if is_named_importance(&arguments.file) {
        return importance(session, arguments);
    }
    let checkpoint = Checkpoint::open(&arguments.file)?;
    if checkpoint.gguf().is_some_and(ImportanceMatrix::is_one) {
        return importance(session, arguments);
    }
    let packed = checkpoint.gguf().map(PackedIndex::read).transpose()?.flatten();
    let bytes: u64 = checkpoint.tensors().iter().map(|tensor| tensor.bytes).sum();
    let metadata: Vec<(String, serde_json::Value)> = checkpoint
        .gguf()
        .map(|gguf| {
            gguf.metadata().iter().map(|(key, value)| (key.to_owned(), summary(value.to_json()))).collect()
        })
        .unwrap_or_default();
    let schemes: Vec<serde_json::Value> = packed
        .iter()
        .flat_map(|index| &index.schemes)
        .map(|scheme| serde_json::json!({ "id": scheme.id, "params": scheme.params, "plugin_version": scheme.plugin_version }))
        .collect();
    if session.global.json {
        let mut document = serde_json::json!({
            "path": arguments.file,
            "format": if checkpoint.gguf().is_some() { "gguf" } else { "safetensors" },
            "version": checkpoint.gguf().map(Gguf::version),
            "shards": checkpoint.gguf().map(|gguf| gguf.paths().len()),
            "tensor_count": checkpoint.tensors().len(),
            "tensor_bytes": bytes,
            "packed_schemes": schemes,
        });
        if let Some(fields) = document.as_object_mut() {
            if arguments.metadata {
                fields.insert(
                    "metadata".into(),
                    metadata.into_iter().collect::<serde_json::Map<_, _>>().into(),
                );
            }
            if arguments.tensors {
                let tensor = |tensor: &SourceTensor| {
                    serde_json::json!({
                        "name": tensor.name,
                        "type": element_name(tensor.element),
                        "shape": tensor.shape,
                        "bytes": tensor.bytes,
                        "offset": offset(&checkpoint, tensor),
                    })
                };
                fields.insert("tensors".into(), checkpoint.tensors().iter().map(tensor).collect());
            }
        }
        output::json(&document)?;
        return Ok(DONE);
    }
    let mut text = match checkpoint.gguf() {
        Some(gguf) => {
            let shards = match gguf.paths().len() {
                1 => String::new(),
                count => format!(" in {count} shards"),
            };
            format!("GGUF version {}{shards}, {} metadata keys", gguf.version(), gguf.metadata().len())
        }
        None => "safetensors".to_owned(),
    };
    text.push_str(&format!(", {} tensors, {}\n", checkpoint.tensors().len(), output::bytes(bytes)));
    for scheme in packed.iter().flat_map(|index| &index.schemes) {
        text.push_str(&format!("packed by {} {}\n", scheme.id, scheme.params));
    }
    if arguments.metadata {
        for (key, value) in metadata {
            let shown: String = value.to_string().chars().take(120).collect();
            text.push_str(&format!("{key} = {shown}\n"));
        }
    }
    if arguments.tensors {
        let mut table = Table::new(&["tensor", "type", "shape", ">bytes"]);
        for tensor in checkpoint.tensors() {
            let shape = tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
            table.row(vec![
                tensor.name.clone(),
                element_name(tensor.element),
                shape,
                tensor.bytes.to_string(),
            ]);
        }
        text.push_str(&table.render());
    }
    output::text(&text)?;
    Ok(DONE)
}

/// Compares two checkpoints; status 1 where they differ.
pub fn diff(session: &Session, arguments: &Diff) -> Result<u8, Failure> {
    let diff = kbit_formats::diff::diff(&arguments.a, &arguments.b)?;
    if session.global.json {
        output::json(&output::with_peak_memory(&diff)?)?;
    } else if diff.equal {
        let (count, peak) = (diff.common_tensors, output::peak_memory());
        output::text(&format!("equal: {count} tensors and all metadata, {peak}"))?;
    } else {
        let mut table = Table::new(&["what", "difference", "a", "b"]);
        for change in &diff.metadata {
            let shown = |value: &Option<serde_json::Value>| {
                value.as_ref().map_or_else(String::new, |value| value.to_string().chars().take(48).collect())
            };
            table.row(vec![change.key.clone(), change.kind.to_owned(), shown(&change.a), shown(&change.b)]);
        }
        for change in &diff.tensors {
            let kind = match (change.different_bytes, change.first_difference) {
                (Some(count), Some(first)) => format!("{count} bytes, the first at {first}"),
                _ => change.kind.to_owned(),
            };
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            table.row(vec![change.name.clone(), kind, text(&change.a), text(&change.b)]);
        }
        let order = if diff.order_differs { "tensors stand in another order\n" } else { "" };
        let tensors = match diff.tensors.len() {
            0 => format!("all {} tensors are equal", diff.common_tensors),
            count => format!("{count} tensors differ, {} are in both files", diff.common_tensors),
        };
        output::text(&format!("{}{order}{tensors}, {}", table.render(), output::peak_memory()))?;
    }
    Ok(if diff.equal { DONE } else { FAILED })
}

/// Checks a file; status 1 where something is wrong.
pub fn verify(session: &Session, arguments: &Verify) -> Result<u8, Failure> {
    let report = kbit_formats::verify::verify(&arguments.file)?;
    if session.global.json {
        output::json(&output::with_peak_memory(&report)?)?;
    } else {
        let mut text = String::new();
        for problem in &report.problems {
            text.push_str(&format!("{}: {}\n", problem.tensor, problem.message));
        }
        text.push_str(&format!(
            "{} tensors, {} read, {}, {}, {}\n",
            report.tensors,
            output::bytes(report.bytes),
            if report.has_checksums { "checksums compared" } else { "the file has no checksums" },
            if report.ok {
                "no problem found".to_owned()
            } else {
                format!("{} problems", report.problems.len())
            },
            output::peak_memory()
        ));
        output::text(&text)?;
    }
    Ok(if report.ok { DONE } else { FAILED })
}
