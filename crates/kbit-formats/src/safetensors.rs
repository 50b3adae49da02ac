//! safetensors: one file's header, and writing a single f32 tensor.
//!
//! Source of the layout: the format's README (8 bytes of header length, JSON, data without gaps).

use crate::{FormatError, atomic};
use kbit_types::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

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
