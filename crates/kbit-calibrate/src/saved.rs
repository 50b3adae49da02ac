//! What was gathered so far, in a file from which an interrupted gathering goes on with the same figures.
//!
//! A line of JSON says what follows; then come, little-endian, the f64 sums and u64 counts of each entry.

use crate::{CalibrateError, Gathered};
use kbit_formats::atomic::write_atomically;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A gathering that is not finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// What it is gathered from; another key is another gathering.
    pub key: String,
    /// Windows that have gone through the model.
    pub windows: u64,
    /// What was gathered from them.
    pub gathered: Vec<Gathered>,
    /// What was gathered from the first half of all windows, once it was reached.
    pub half: Option<Vec<Gathered>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    kbit_gathering: u32,
    key: String,
    windows: u64,
    /// Name, sums, counts.
    gathered: Vec<(String, usize, usize)>,
    half: Option<Vec<(String, usize, usize)>>,
}

const VERSION: u32 = 1;

impl Saved {
    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CalibrateError> {
        let sizes = |all: &[Gathered]| {
            all.iter().map(|entry| (entry.name.clone(), entry.sums.len(), entry.counts.len())).collect()
        };
        let header = Header {
            kbit_gathering: VERSION,
            key: self.key.clone(),
            windows: self.windows,
            gathered: sizes(&self.gathered),
            half: self.half.as_deref().map(sizes),
        };
        let mut bytes = serde_json::to_vec(&header).map_err(|error| CalibrateError::Io {
            path: path.to_owned(),
            action: "writing",
            error: error.into(),
        })?;
        bytes.push(b'\n');
        for entry in self.gathered.iter().chain(self.half.iter().flatten()) {
            bytes.extend(entry.sums.iter().flat_map(|sum| sum.to_le_bytes()));
            bytes.extend(entry.counts.iter().flat_map(|count| count.to_le_bytes()));
        }
        Ok(write_atomically(path, &bytes)?)
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub fn read(path: &Path) -> Result<Self, CalibrateError> {
        let io = |error| CalibrateError::Io { path: path.to_owned(), action: "reading", error };
        let damaged = |offset: usize, reason: &str| CalibrateError::Unresumable {
            path: path.to_owned(),
            offset: offset as u64,
            reason: reason.to_owned(),
        };
        let bytes = std::fs::read(path).map_err(io)?;
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged(0, "no header"))?;
        let header: Header =
            serde_json::from_slice(&bytes[..end]).map_err(|error| damaged(0, &error.to_string()))?;
        if header.kbit_gathering != VERSION {
            return Err(damaged(0, "it is of another version of kbit"));
        }
        let entries = || header.gathered.iter().chain(header.half.iter().flatten());
        let numbers =
            entries().try_fold(0usize, |sum, (_, sums, counts)| sum.checked_add(*sums)?.checked_add(*counts));
        if numbers.and_then(|numbers| numbers.checked_mul(8)) != Some(bytes.len() - end - 1) {
            return Err(damaged(end + 1, "the numbers do not fill the file"));
        }
        let mut rest = bytes[end + 1..].as_chunks::<8>().0.iter();
        let mut read = |sizes: &[(String, usize, usize)]| -> Vec<Gathered> {
            let entry = |(name, sums, counts): &(String, usize, usize)| Gathered {
                name: name.clone(),
                sums: rest.by_ref().take(*sums).map(|bytes| f64::from_le_bytes(*bytes)).collect(),
                counts: rest.by_ref().take(*counts).map(|bytes| u64::from_le_bytes(*bytes)).collect(),
            };
            sizes.iter().map(entry).collect()
        };
        let gathered = read(&header.gathered);
        let half = header.half.as_deref().map(&mut read);
        Ok(Self { key: header.key, windows: header.windows, gathered, half })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Saved {
        let entry = |sum: f64| Gathered { name: "a".to_owned(), sums: vec![sum, 0.1 + 0.2], counts: vec![7] };
        Saved {
            key: "k".to_owned(),
            windows: 3,
            gathered: vec![entry(f64::MIN_POSITIVE)],
            half: Some(vec![entry(1e300)]),
        }
    }

    #[test]
    fn comes_back_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.partial");
        for saved in [saved(), Saved { half: None, ..saved() }] {
            saved.write(&path).unwrap();
            assert_eq!(Saved::read(&path).unwrap(), saved);
        }
    }

    #[test]
    fn damage_is_refused_with_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.partial");
        saved().write(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        for bad in [&good[..good.len() - 1], &good[1..], b"", b"{}\n", &[&good[..], b"12345678"].concat()] {
            std::fs::write(&path, bad).unwrap();
            let message = Saved::read(&path).unwrap_err().to_string();
            assert!(message.contains("a.partial") && message.contains("remove it"), "{message}");
        }
    }
}
