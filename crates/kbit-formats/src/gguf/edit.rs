//! Changing the metadata of a file: where the header keeps its size, in place; else by writing the file anew.

use super::Gguf;
use super::layout::encode_header;
use super::shards::SPLIT_KEYS;
use super::value::{Array, Metadata, Value};
use crate::{FormatError, atomic, system};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that are copied at once.
const CHUNK: usize = 4 << 20;

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Gives a key this value; a new key goes to the end.
    Set(String, Value),
    /// Removes a key.
    Remove(String),
}

/// How a change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edited {
    /// The file says all that already.
    Unchanged,
    /// So many bytes of the header were overwritten.
    InPlace(u64),
    /// The file was written anew and renamed over the old one.
    Rewritten,
}

/// Reads `KEY=TYPE:VALUE`: `u8` to `u64`, `i8` to `i64`, `f32`, `f64`, `bool`, `str`, or a JSON list with its element type in
/// brackets, as `KEY=[u32]:[1, 2]`.
///
/// # Errors
/// What is wrong, and the cure.
pub fn parse_assignment(text: &str) -> Result<(String, Value), String> {
    const FORM: &str = "write KEY=TYPE:VALUE, as general.name=str:My model or llama.context_length=u32:8192";
    let (key, rest) = text.split_once('=').ok_or(FORM)?;
    let (ty, value) = rest.split_once(':').ok_or(FORM)?;
    if key.is_empty() || key.len() > 1 << 16 {
        return Err(format!("{key:?} cannot be a key; {FORM}"));
    }
    let parsed = match ty.strip_prefix('[').and_then(|ty| ty.strip_suffix(']')) {
        Some(ty) => array(ty, value).map(Value::Array),
        None => scalar(ty, value),
    };
    Ok((key.to_owned(), parsed?))
}

macro_rules! typed {
    ($($name:literal => $variant:ident($rust:ty),)*) => {
        fn scalar(ty: &str, value: &str) -> Result<Value, String> {
            let wrong = |error: &dyn std::fmt::Display| format!("{value:?} is not {ty}: {error}");
            match ty {
                $($name => value.trim().parse::<$rust>().map(Value::$variant).map_err(|error| wrong(&error)),)*
                "str" => Ok(Value::String(value.to_owned())),
                _ => Err(unknown(ty)),
            }
        }

        fn array(ty: &str, value: &str) -> Result<Array, String> {
            let wrong = |error: serde_json::Error| format!("{value:?} is not a JSON list of {ty}: {error}");
            match ty {
                $($name => serde_json::from_str::<Vec<$rust>>(value).map(Array::$variant).map_err(wrong),)*
                "str" => serde_json::from_str::<Vec<String>>(value).map(Array::String).map_err(wrong),
                _ => Err(unknown(ty)),
            }
        }

        fn unknown(ty: &str) -> String {
            format!("{ty:?} is no type; known are {}, str, and a list of one of them as [u32]", [$($name),*].join(", "))
        }
    };
}

typed! {
    "u8" => U8(u8),
    "i8" => I8(i8),
    "u16" => U16(u16),
    "i16" => I16(i16),
    "u32" => U32(u32),
    "i32" => I32(i32),
    "u64" => U64(u64),
    "i64" => I64(i64),
    "f32" => F32(f32),
    "f64" => F64(f64),
    "bool" => Bool(bool),
}

/// Applies `edits` to the one file `path`; of a set of shards, the others stay as they are. `on_bytes` is told of bytes copied.
///
/// In place only the bytes that differ are overwritten, and synced: a machine that fails within that moment can leave the
/// header half changed. Anywhere else the file is whole at all times.
///
/// # Errors
/// A key that holds the file together, a key to remove that is not there, a file that cannot be read or written.
pub fn edit_metadata(
    path: &Path,
    edits: &[Edit],
    mut on_bytes: impl FnMut(u64),
) -> Result<Edited, FormatError> {
    let gguf = Gguf::open_file(path)?;
    let metadata = edited(&gguf, edits)?;
    if &metadata == gguf.metadata() {
        return Ok(Edited::Unchanged);
    }
    let encode = |metadata: &Metadata| {
        encode_header(gguf.version(), metadata, gguf.tensors(), gguf.data_start(), gguf.alignment())
    };
    let header = encode(&metadata);
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(FormatError::io(path, "opening for writing"))?;
    if header.len() as u64 == gguf.data_start() {
        let mut current = vec![0; header.len()];
        file.read_exact_at(&mut current, 0).map_err(FormatError::io(path, "reading the header"))?;
        // A header that kbit would have written otherwise is not patched piecemeal.
        if current == encode(gguf.metadata()) {
            let differs = |at: &usize| current[*at] != header[*at];
            let first = (0..header.len()).find(differs).unwrap_or(0);
            let end = (0..header.len()).rfind(differs).map_or(first, |last| last + 1);
            file.write_all_at(&header[first..end], first as u64)
                .and_then(|()| file.sync_all())
                .map_err(FormatError::io(path, "writing the header"))?;
            return Ok(Edited::InPlace((end - first) as u64));
        }
    }
    let data = gguf.data_start()..gguf.file_bytes();
    let needed = header.len() as u64 + (data.end - data.start);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = system::disk_free(folder)?;
    if free < needed {
        return Err(FormatError::DiskFull { path: path.to_owned(), needed, free });
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.kbit-partial", std::process::id()));
    let partial = Partial(PathBuf::from(name));
    let new = File::create(&partial.0).map_err(FormatError::io(&partial.0, "creating"))?;
    let permissions = file.metadata().map_err(FormatError::io(path, "looking at the file"))?.permissions();
    new.set_permissions(permissions).map_err(FormatError::io(&partial.0, "setting permissions"))?;
    let write = |bytes: &[u8], offset: u64| {
        new.write_all_at(bytes, offset).map_err(FormatError::io(&partial.0, "writing"))
    };
    write(&header, 0)?;
    let mut buffer = vec![0; CHUNK];
    let mut from = data.start;
    while from < data.end {
        let count = usize::try_from(data.end - from).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact_at(&mut buffer[..count], from).map_err(FormatError::io(path, "reading"))?;
        write(&buffer[..count], header.len() as u64 + from - data.start)?;
        from += count as u64;
        on_bytes(count as u64);
    }
    new.sync_all().map_err(FormatError::io(&partial.0, "syncing"))?;
    std::fs::rename(&partial.0, path).map_err(FormatError::io(path, "renaming the finished file"))?;
    atomic::sync_folder(path)?;
    Ok(Edited::Rewritten)
}

/// The metadata after all edits.
fn edited(gguf: &Gguf, edits: &[Edit]) -> Result<Metadata, FormatError> {
    let mut metadata = gguf.metadata().clone();
    for edit in edits {
        let (Edit::Set(key, _) | Edit::Remove(key)) = edit;
        if key == "general.alignment" || SPLIT_KEYS.contains(&key.as_str()) {
            let reason =
                "holds the file together; `kbit gguf split`, `kbit gguf merge` and `kbit convert` write it";
            return Err(FormatError::metadata(gguf.path(), key, reason));
        }
        match edit {
            Edit::Set(key, value) => metadata.insert(key.clone(), value.clone()),
            Edit::Remove(key) if metadata.remove(key).is_some() => {}
            Edit::Remove(key) => {
                let reason =
                    "is not there, so it cannot be removed; `kbit inspect --metadata` lists the keys";
                return Err(FormatError::metadata(gguf.path(), key, reason));
            }
        }
    }
    Ok(metadata)
}

/// A partial file that goes when it was not renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Renamed, it is no longer there; else nobody is left to tell.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_have_exact_types() {
        for (text, value) in [
            ("a=u8:255", Value::U8(255)),
            ("a=f32:1e-5", Value::F32(1e-5)),
            ("a=bool:true", Value::Bool(true)),
            ("a=str:b=c: d", Value::String("b=c: d".into())),
            ("a=[i32]:[1, -2]", Value::Array(Array::I32(vec![1, -2]))),
            ("a=[str]:[\"x\"]", Value::Array(Array::String(vec!["x".into()]))),
        ] {
            assert_eq!(parse_assignment(text), Ok(("a".to_owned(), value)));
        }
        for (text, words) in [
            ("a", "KEY=TYPE:VALUE"),
            ("a=5", "KEY=TYPE:VALUE"),
            ("=u8:5", "cannot be a key"),
            ("a=u8:256", "not u8"),
            ("a=int:5", "known are"),
            ("a=[u8]:5", "JSON list of u8"),
        ] {
            assert!(parse_assignment(text).unwrap_err().contains(words), "{text}");
        }
    }
}
