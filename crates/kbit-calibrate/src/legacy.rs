//! The older `.dat` files of llama-imatrix: where each entry's values lie.
//!
//! Layout, all little-endian: i32 number of entries; for each an i32 length and the name, i32 calls, i32 number of
//! values, the values as f32, each the mean square times the calls. Then, in later versions, i32 number of chunks and an
//! i32 length with the name of the text. Source: llama.cpp's `imatrix.cpp` (`save_imatrix_legacy`).

use crate::CalibrateError;
use crate::matrix::{Counts, Entry};
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Longest name of a tensor or text that is believed.
const MAX_NAME: u64 = 1 << 16;
/// Bytes that an entry takes at least: lengths, one letter, one value.
const LEAST_ENTRY: u64 = 4 + 1 + 4 + 4 + 4;

/// What such a file holds.
pub(crate) struct Legacy {
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) datasets: Vec<String>,
    pub(crate) chunk_count: u64,
}

/// Reads the frame of `file`, which has `bytes` bytes; values are passed over.
pub(crate) fn read(file: &File, path: &Path, bytes: u64) -> Result<Legacy, CalibrateError> {
    let mut reader = Reader { path, reader: BufReader::new(file), position: 0, bytes };
    let count = reader.number("number of entries")?;
    if count == 0 || count > bytes / LEAST_ENTRY {
        return Err(reader.damaged(format!("{count} entries cannot stand in a file of {bytes} bytes")));
    }
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let start = reader.position;
        let name = reader.text("name of a tensor")?;
        let calls = reader.number("number of calls")?;
        let values = reader.number("number of values")?;
        let offset = reader.position;
        if values == 0 {
            return Err(reader.damaged(format!("entry {name} has no values")));
        }
        reader.skip(values * 4, &name)?;
        let entry = Entry { values, counts: Counts::Calls(calls), offset };
        match entries.entry(name) {
            btree_map::Entry::Vacant(place) => drop(place.insert(entry)),
            btree_map::Entry::Occupied(place) => {
                let reason = format!("entry {} stands twice", place.key());
                return Err(CalibrateError::Damaged { path: path.to_owned(), offset: start, reason });
            }
        }
    }
    let mut legacy = Legacy { entries, datasets: Vec::new(), chunk_count: 0 };
    if reader.remaining() > 0 {
        legacy.chunk_count = reader.number("number of chunks")?;
    }
    if reader.remaining() > 0 {
        let text = reader.text_or_empty("name of the text")?;
        legacy.datasets.extend((!text.is_empty()).then_some(text));
    }
    if reader.remaining() > 0 {
        return Err(reader.damaged(format!("{} bytes follow the last field", reader.remaining())));
    }
    Ok(legacy)
}

struct Reader<'a> {
    path: &'a Path,
    reader: BufReader<&'a File>,
    position: u64,
    bytes: u64,
}

impl Reader<'_> {
    fn damaged(&self, reason: impl Into<String>) -> CalibrateError {
        CalibrateError::Damaged { path: self.path.to_owned(), offset: self.position, reason: reason.into() }
    }

    fn io(&self, error: std::io::Error) -> CalibrateError {
        CalibrateError::Io { path: self.path.to_owned(), action: "reading", error }
    }

    const fn remaining(&self) -> u64 {
        self.bytes.saturating_sub(self.position)
    }

    fn fill(&mut self, out: &mut [u8], what: &str) -> Result<(), CalibrateError> {
        if out.len() as u64 > self.remaining() {
            return Err(self.damaged(format!("the file ends in the {what}")));
        }
        self.reader.read_exact(out).map_err(|error| self.io(error))?;
        self.position += out.len() as u64;
        Ok(())
    }

    /// A signed number that must not be negative.
    fn number(&mut self, what: &str) -> Result<u64, CalibrateError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes, what)?;
        let number = i32::from_le_bytes(bytes);
        u64::try_from(number).map_err(|_| self.damaged(format!("{number} cannot be the {what}")))
    }

    fn text_or_empty(&mut self, what: &str) -> Result<String, CalibrateError> {
        let length = self.number(what)?;
        if length > MAX_NAME || length > self.remaining() {
            return Err(self.damaged(format!("the {what} cannot have {length} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| self.damaged(format!("the {what} is not UTF-8")))
    }

    fn text(&mut self, what: &str) -> Result<String, CalibrateError> {
        let text = self.text_or_empty(what)?;
        if text.is_empty() { Err(self.damaged(format!("the {what} is empty"))) } else { Ok(text) }
    }

    fn skip(&mut self, bytes: u64, entry: &str) -> Result<(), CalibrateError> {
        if bytes > self.remaining() {
            return Err(self.damaged(format!(
                "entry {entry} has {bytes} bytes of values where the file has {} more",
                self.remaining()
            )));
        }
        let offset = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.reader.seek_relative(offset).map_err(|error| self.io(error))?;
        self.position += bytes;
        Ok(())
    }
}
