//! safetensors: one file's header, and writing.
//!
//! Source of the layout: the format's README (8 bytes of header length, JSON, data without gaps).

use crate::{FormatError, atomic, system};
use kbit_types::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest header that is read: the reference implementation's limit.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    /// Row-major.
    pub shape: Vec<u64>,
    /// Offset from the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A header's entries, duplicates kept so that they can be refused.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Reads the header of `file`; entries in the order of their bytes.
pub(crate) fn read_header(file: &File, path: &Path) -> Result<Vec<Entry>, FormatError> {
    let file_bytes = file.metadata().map_err(FormatError::io(path, "looking at the file"))?.len();
    let mut length = [0; 8];
    if file_bytes < 8 {
        return Err(FormatError::damaged(
            path,
            0,
            format!("{file_bytes} bytes cannot hold a safetensors header"),
        ));
    }
    file.read_exact_at(&mut length, 0).map_err(FormatError::io(path, "reading the header"))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > file_bytes - 8 {
        let reason = format!(
            "a header of {length} bytes cannot stand in a file of {file_bytes} bytes (limit {MAX_HEADER})"
        );
        return Err(FormatError::damaged(path, 0, reason));
    }
    let mut header = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut header, 8).map_err(FormatError::io(path, "reading the header"))?;
    let RawHeader(raw) = serde_json::from_slice(&header).map_err(|error| {
        FormatError::damaged(path, 8 + error.column() as u64, format!("the header is not its JSON: {error}"))
    })?;
    let data_start = 8 + length;
    let data_bytes = file_bytes - data_start;
    let mut entries = Vec::with_capacity(raw.len());
    for (name, raw) in raw {
        let fail = |reason: String| FormatError::tensor(path, &name, reason);
        let dtype = Dtype::from_safetensors_name(&raw.dtype).ok_or_else(|| {
            fail(format!("its type {} is unknown; kbit reads {}", raw.dtype, known_dtypes()))
        })?;
        let [start, end] = raw.data_offsets;
        let elements = raw.shape.iter().try_fold(1u64, |product, axis| product.checked_mul(*axis));
        let needed = elements.and_then(|elements| elements.checked_mul(dtype.bytes() as u64));
        let Some(bytes) = end.checked_sub(start).filter(|bytes| Some(*bytes) == needed) else {
            return Err(fail(format!("offsets {start}..{end} do not hold shape {:?} of {dtype}", raw.shape)));
        };
        if end > data_bytes {
            return Err(fail(format!("offsets {start}..{end} reach past the {data_bytes} bytes of data")));
        }
        entries.push(Entry { name, dtype, shape: raw.shape, offset: data_start + start, bytes });
    }
    entries.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
    let mut next = data_start;
    for entry in &entries {
        if entry.offset != next {
            let reason =
                if entry.offset < next { "it overlaps the tensor before it" } else { "a gap lies before it" };
            return Err(FormatError::tensor(path, &entry.name, reason));
        }
        next += entry.bytes;
    }
    if next != file_bytes {
        return Err(FormatError::damaged(path, next, "bytes that belong to no tensor follow"));
    }
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(FormatError::tensor(path, pair[0], "it stands twice"));
    }
    Ok(entries)
}

fn known_dtypes() -> String {
    Dtype::ALL.map(Dtype::safetensors_name).join(", ")
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSafetensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<u64>,
}

/// A file being written beside its final path; it goes where it is dropped unfinished.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    /// Offset and bytes of each tensor.
    places: Vec<(u64, u64)>,
    done: bool,
}

impl SafetensorsWriter {
    /// Starts a file with the header of `tensors`, which lie in this order.
    ///
    /// # Errors
    /// A name that stands twice, a shape that is too large, an existing file, a full disk.
    pub fn create(path: &Path, tensors: &[NewSafetensor]) -> Result<Self, FormatError> {
        if path.symlink_metadata().is_ok() {
            return Err(FormatError::Exists { path: path.to_owned() });
        }
        let unwritable = |name: &str, reason: &str| FormatError::Unwritable {
            what: name.to_owned(),
            reason: reason.to_owned(),
        };
        let mut header = serde_json::Map::new();
        // Hugging Face's loader asks for the framework that the tensors are meant for.
        header.insert("__metadata__".to_owned(), serde_json::json!({ "format": "pt" }));
        let mut places = Vec::with_capacity(tensors.len());
        let mut next = 0u64;
        for NewSafetensor { name, dtype, shape } in tensors {
            let elements = shape.iter().try_fold(1u64, |product, axis| product.checked_mul(*axis));
            let bytes = elements.and_then(|elements| elements.checked_mul(dtype.bytes() as u64));
            let end = bytes.and_then(|bytes| next.checked_add(bytes)).filter(|end| *end < 1 << 62);
            let (Some(bytes), Some(end)) = (bytes, end) else {
                return Err(unwritable(name, "its shape is larger than a file can be"));
            };
            let entry = serde_json::json!({
                "dtype": dtype.safetensors_name(), "shape": shape, "data_offsets": [next, end],
            });
            if header.insert(name.clone(), entry).is_some() {
                return Err(unwritable(name, "two tensors have this name"));
            }
            places.push((next, bytes));
            next = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let start = 8 + header.len() as u64;
        places.iter_mut().for_each(|(offset, _)| *offset += start);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (needed, free) = (start + next, system::disk_free(folder)?);
        if free < needed {
            return Err(FormatError::DiskFull { path: path.to_owned(), needed, free });
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".kbit-partial");
        let partial = PathBuf::from(name);
        let file = File::create(&partial).map_err(FormatError::io(&partial, "creating"))?;
        let writer = Self { file, partial, path: path.to_owned(), places, done: false };
        writer.write_raw(0, &(header.len() as u64).to_le_bytes())?;
        writer.write_raw(8, &header)?;
        Ok(writer)
    }

    fn write_raw(&self, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        self.file.write_all_at(bytes, offset).map_err(FormatError::io(&self.partial, "writing"))
    }

    /// Writes `bytes` at `offset` of tensor `index`. Any thread.
    ///
    /// # Errors
    /// When they reach past the tensor's end, or the system refuses.
    pub fn write_at(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let place = self.places.get(index).copied();
        match place
            .filter(|(_, length)| offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= *length))
        {
            Some((start, _)) => self.write_raw(start + offset, bytes),
            None => Err(FormatError::Unwritable {
                what: format!("tensor {index}"),
                reason: format!("{} bytes at {offset} reach past its end", bytes.len()),
            }),
        }
    }

    /// Syncs the file and renames it to its final path; bytes of its tensors.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(mut self) -> Result<u64, FormatError> {
        self.file.sync_all().map_err(FormatError::io(&self.partial, "syncing"))?;
        std::fs::rename(&self.partial, &self.path)
            .map_err(FormatError::io(&self.path, "renaming the finished file"))?;
        self.done = true;
        Ok(self.places.iter().map(|(_, bytes)| bytes).sum())
    }
}

impl Drop for SafetensorsWriter {
    fn drop(&mut self) {
        if !self.done {
            // Nobody is left to tell; a partial file that stays is replaced by the next writer.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Writes one f32 tensor `name` of row-major `shape` to `path`.
///
/// # Errors
/// When `values` does not have the shape's elements, or the file cannot be written.
pub fn write_safetensors_f32(
    path: &Path,
    name: &str,
    shape: &[u64],
    values: &[f32],
) -> Result<(), FormatError> {
    if shape.iter().product::<u64>() != values.len() as u64 {
        let reason = format!("{} values do not have the shape {shape:?}", values.len());
        return Err(FormatError::Unwritable { what: name.to_owned(), reason });
    }
    let header = serde_json::json!({ name: { "dtype": "F32", "shape": shape, "data_offsets": [0, values.len() * 4] } });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = Vec::with_capacity(8 + header.len() + values.len() * 4);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header);
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    atomic::write_atomically(path, &bytes)
}
