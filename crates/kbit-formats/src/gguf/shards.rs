//! Models in several GGUF files: names, the keys that tie them together, and how tensors are shared out.
//!
//! Source: llama.cpp's `gguf-split.cpp` and `llama_split_path`. Shard `i` of `n` is `<prefix>-<i>-of-<n>.gguf`, five digits
//! each, counted from 1; it carries `split.no` (counted from 0), `split.count` and `split.tensors.count`; the first carries
//! all other metadata.

use super::{Metadata, NewTensor, Value, tensor_bytes};
use crate::FormatError;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Number of a shard, from 0.
pub const SPLIT_NO: &str = "split.no";
/// Number of shards.
pub const SPLIT_COUNT: &str = "split.count";
/// Tensors in all shards.
pub const SPLIT_TENSORS: &str = "split.tensors.count";
/// What ties shards together and is no property of the model.
pub const SPLIT_KEYS: [&str; 3] = [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS];
/// Shards beyond what `split.count` holds.
const MAX_SHARDS: usize = 1 << 15;

/// How tensors are shared out among files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// A new file where the tensors of one would exceed so many bytes, padding included, header not. A larger tensor has
    /// a file of its own.
    Bytes(u64),
    /// So many tensors a file.
    Tensors(u64),
    /// The file of each tensor, counted from 0, never falling.
    Files(Vec<usize>),
}

/// A size as llama-gguf-split takes it (`4G`, `500M`: decimal), or with a unit spelt out (`2GiB`, `700MB`).
///
/// # Errors
/// The cure in words, where it is no such size.
pub fn parse_split_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
    ];
    let found = UNITS.iter().find_map(|(unit, factor)| Some((text.trim().strip_suffix(unit)?, *factor)));
    let bytes = found.and_then(|(number, factor)| number.trim().parse::<u64>().ok()?.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
        "write a size such as 4G or 500M (of 1000^3 and 1000^2 bytes, as llama-gguf-split has them), or 2GiB".to_owned()
    })
}

/// Path of shard `number` (from 0) of `count`.
#[must_use]
pub fn shard_path(prefix: &Path, number: usize, count: usize) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("-{:05}-of-{count:05}.gguf", number + 1));
    PathBuf::from(path)
}

/// The prefix of which `path` is shard `number` (from 0) of `count`.
#[must_use]
pub fn shard_prefix(path: &Path, number: usize, count: usize) -> Option<PathBuf> {
    let ending = format!("-{:05}-of-{count:05}.gguf", number + 1);
    let prefix = path.as_os_str().as_bytes().strip_suffix(ending.as_bytes())?;
    let is_name = prefix.last().is_some_and(|last| *last != b'/');
    is_name.then(|| PathBuf::from(OsString::from_vec(prefix.to_vec())))
}

/// What a file's metadata say of the set that it belongs to; `None` for a file by itself.
pub(super) struct Place {
    pub number: usize,
    pub count: usize,
    pub tensors: Option<u64>,
}

pub(super) fn place(metadata: &Metadata, path: &Path) -> Result<Option<Place>, FormatError> {
    let whole = |key: &str| {
        let found = metadata.opt_u32(key).map_err(|_| {
            FormatError::metadata(path, key, "is not a whole number from 0; the file is damaged: get it anew")
        })?;
        Ok::<_, FormatError>(found)
    };
    let count = whole(SPLIT_COUNT)?.unwrap_or(0) as usize;
    if count < 2 {
        return Ok(None);
    }
    let Some(number) = whole(SPLIT_NO)? else {
        return Err(FormatError::metadata(
            path,
            SPLIT_NO,
            "is missing beside split.count; the file is damaged: get it anew",
        ));
    };
    Ok(Some(Place { number: number as usize, count, tensors: whole(SPLIT_TENSORS)?.map(u64::from) }))
}

pub(super) fn shard_error(path: &Path, reason: impl Into<String>) -> FormatError {
    FormatError::Shard { path: path.to_owned(), reason: reason.into() }
}

/// Paths of all shards, given the first, which says that it is one of `count`.
pub(super) fn paths_of_set(first: &Path, place: &Place) -> Result<Vec<PathBuf>, FormatError> {
    let Place { number, count, .. } = *place;
    let Some(prefix) = shard_prefix(first, number, count) else {
        let ending = shard_path(Path::new("NAME"), number, count);
        let reason = format!(
            "its metadata say that it is shard {} of {count}, and its name does not; rename it to {}",
            number + 1,
            ending.display()
        );
        return Err(shard_error(first, reason));
    };
    if number != 0 {
        let start = shard_path(&prefix, 0, count);
        let reason = format!("it is shard {} of {count}; give the first: {}", number + 1, start.display());
        return Err(shard_error(first, reason));
    }
    if count > MAX_SHARDS {
        return Err(shard_error(first, format!("{count} shards are more than any model has; get it anew")));
    }
    let paths: Vec<PathBuf> = (0..count).map(|number| shard_path(&prefix, number, count)).collect();
    let missing: Vec<String> = paths.iter().filter(|path| !path.is_file()).map(|path| name(path)).collect();
    if let Some(example) = missing.first() {
        let reason = format!(
            "{} of its {count} shards are missing beside it (first: {example}); get them and put all in one folder",
            missing.len()
        );
        return Err(shard_error(first, reason));
    }
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Checks that a further shard says of itself what its name says.
pub(super) fn check_shard(
    path: &Path,
    metadata: &Metadata,
    number: usize,
    first: &Place,
) -> Result<(), FormatError> {
    let wanted = format!("shard {} of {}", number + 1, first.count);
    match place(metadata, path)? {
        None => Err(shard_error(
            path,
            format!(
                "it stands in the place of {wanted} and is a model by itself; the files are mixed up: get them anew"
            ),
        )),
        Some(found) if (found.number, found.count) != (number, first.count) => Err(shard_error(
            path,
            format!(
                "it stands in the place of {wanted} and is shard {} of {}; the files are mixed up: rename them or get them anew",
                found.number + 1,
                found.count
            ),
        )),
        Some(found)
            if found.tensors.is_some() && first.tensors.is_some() && found.tensors != first.tensors =>
        {
            Err(shard_error(
                path,
                format!(
                    "it belongs to a model of {} tensors, the first shard to one of {}; shards of different models are mixed up: get them anew",
                    found.tensors.unwrap_or(0),
                    first.tensors.unwrap_or(0)
                ),
            ))
        }
        Some(_) => Ok(()),
    }
}

/// Sharing out by `split`: the file of each tensor. `bare_first` leaves the first file without tensors.
pub(super) fn share_out(
    tensors: &[NewTensor],
    alignment: u64,
    split: &Split,
    bare_first: bool,
) -> Result<Vec<usize>, FormatError> {
    let start = usize::from(bare_first);
    let files = match split {
        Split::Files(files) => files.clone(),
        Split::Tensors(most) => {
            let most = usize::try_from(*most).unwrap_or(usize::MAX).max(1);
            (0..tensors.len()).map(|index| start + index / most).collect()
        }
        Split::Bytes(most) => {
            let (mut file, mut held) = (start, 0u64);
            let mut files = Vec::with_capacity(tensors.len());
            for tensor in tensors {
                let bytes = tensor_bytes(&tensor.dims, tensor.ty).unwrap_or(u64::MAX);
                let padded = bytes.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
                let next = held.saturating_add(padded);
                if held > 0 && next > *most {
                    (file, held) = (file + 1, padded);
                } else {
                    held = next;
                }
                files.push(file);
            }
            files
        }
    };
    let count = files.last().map_or(start, |last| *last) + 1;
    let rises = files.windows(2).all(|pair| pair[0] <= pair[1]);
    if !rises || files.len() != tensors.len() || count > MAX_SHARDS {
        let reason = if count > MAX_SHARDS {
            format!("it would make {count} files, more than {MAX_SHARDS}; allow more in each")
        } else {
            "each tensor has one file, and files follow one another".to_owned()
        };
        return Err(FormatError::Unwritable { what: "the shards".to_owned(), reason });
    }
    Ok(files)
}

/// The three keys of shard `number`, in the order in which llama-gguf-split writes them, or llama-quantize where
/// `by_quantize`.
pub(super) fn split_metadata(
    metadata: &mut Metadata,
    number: usize,
    count: usize,
    tensors: usize,
    by_quantize: bool,
) {
    for key in SPLIT_KEYS {
        metadata.remove(key);
    }
    let short = |number: usize| Value::U16(u16::try_from(number).unwrap_or(u16::MAX));
    let mut entries = [
        (SPLIT_NO, short(number)),
        (SPLIT_TENSORS, Value::I32(i32::try_from(tensors).unwrap_or(i32::MAX))),
        (SPLIT_COUNT, short(count)),
    ];
    if by_quantize {
        entries.swap(1, 2);
    }
    for (key, value) in entries {
        metadata.insert(key, value);
    }
}

/// All files of the GGUF model at `path`: itself, or all shards where it is the first of several.
///
/// # Errors
/// When it cannot be read, or a shard is missing.
pub fn model_files(path: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let first = super::Gguf::open_file(path)?;
    match place(first.metadata(), path)? {
        None => Ok(vec![path.to_owned()]),
        Some(place) => paths_of_set(path, &place),
    }
}
