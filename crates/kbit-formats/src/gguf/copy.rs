//! One file into shards, shards into one file: the same tensors, byte by byte.

use super::shards::SPLIT_COUNT;
use super::value::Value;
use super::{DEFAULT_ALIGNMENT, Gguf, GgufLayout, GgufWriter, NewTensor, Split, WriteOptions};
use crate::FormatError;
use std::path::{Path, PathBuf};

/// Bytes that are copied at once.
const CHUNK: usize = 4 << 20;

/// The layout of `source` in shards.
///
/// # Errors
/// When there would be more shards than can be numbered.
pub fn split_layout(source: &Gguf, split: &Split, bare_first: bool) -> Result<GgufLayout, FormatError> {
    GgufLayout::split(source.metadata(), &tensors(source), source.alignment(), split, bare_first)
}

/// The layout of the shards `source` as one file. As llama-gguf-split leaves it, the file keeps the first shard's keys, with
/// a `split.count` of 0.
///
/// # Errors
/// When `source` was never split.
pub fn merged_layout(source: &Gguf) -> Result<GgufLayout, FormatError> {
    let first = Gguf::open_file(source.path())?;
    let mut metadata = first.metadata().clone();
    if metadata.remove(SPLIT_COUNT).is_none() {
        return Err(FormatError::Shard {
            path: source.path().to_owned(),
            reason: "is not a shard (it has no split.count): there is nothing to merge".to_owned(),
        });
    }
    metadata.insert(SPLIT_COUNT, Value::U16(0));
    let alignment =
        if metadata.get("general.alignment").is_some() { source.alignment() } else { DEFAULT_ALIGNMENT };
    GgufLayout::new(&metadata, &tensors(source), alignment)
}

fn tensors(source: &Gguf) -> Vec<NewTensor> {
    let tensor = |tensor: &super::TensorInfo| NewTensor {
        name: tensor.name.clone(),
        dims: tensor.dims.clone(),
        ty: tensor.ty,
    };
    source.tensors().iter().map(tensor).collect()
}

/// Writes the tensors of `source` by `layout`, which has the same in the same order, to `path` or its shards; their paths.
/// `on_bytes` is told of bytes copied.
///
/// # Errors
/// When a file exists and is not to be overwritten, cannot be read or written; nothing is left then.
pub fn copy_tensors(
    source: &Gguf,
    layout: &GgufLayout,
    path: &Path,
    overwrite: bool,
    mut on_bytes: impl FnMut(u64),
) -> Result<Vec<PathBuf>, FormatError> {
    for output in layout.paths(path) {
        let same = |input: &Path| match (input.canonicalize(), output.canonicalize()) {
            (Ok(input), Ok(output)) => input == output,
            _ => false,
        };
        if source.paths().any(same) {
            return Err(FormatError::Unwritable {
                what: output.display().to_string(),
                reason: "it is what the tensors are read from; choose another name".to_owned(),
            });
        }
    }
    let writer = GgufWriter::create(layout, path, &WriteOptions { overwrite, keep_partial: false })?;
    let mut buffer = vec![0; CHUNK];
    for (index, tensor) in source.tensors().iter().enumerate() {
        let mut done = 0;
        while done < tensor.bytes {
            let count = usize::try_from(tensor.bytes - done).unwrap_or(CHUNK).min(CHUNK);
            source.read_at(tensor, done, &mut buffer[..count])?;
            writer.write_at(index, done, &buffer[..count])?;
            done += count as u64;
            on_bytes(count as u64);
        }
    }
    writer.finish()
}
