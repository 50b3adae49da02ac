//! The journal of an unfinished file: which tensors stand in it for good, with their checksums.
//!
//! JSON lines beside the partial file. The first names the plan; a line follows for each tensor after its bytes were
//! synced to disk. A torn last line, a foreign plan or damage mean: start anew.

use crate::error::PipelineError;
use crate::statistics::TensorError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// A tensor that is wholly written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Index in the plan.
    pub tensor: usize,
    /// Checksum of each array that stores it: SHA-256 where the file will hold it, else XXH64.
    pub stored: Vec<String>,
    /// SHA-256 of its values as little-endian f32, where the file will hold it.
    pub source_sha256: Option<String>,
    /// Its error, where statistics were on.
    pub error: Option<TensorError>,
}

/// Version of the lines.
const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Head {
    kbit_journal: u32,
    plan: String,
}

/// The journal of one output file.
pub struct Journal {
    path: PathBuf,
    plan: String,
    entries: BTreeMap<usize, Entry>,
}

impl Journal {
    /// Reads the journal beside `out`, if it belongs to `plan`.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(out: &Path, plan: &str) -> Result<Self, PipelineError> {
        let mut name = out.as_os_str().to_owned();
        name.push(".kbit-journal");
        let path = PathBuf::from(name);
        let mut journal = Self { path, plan: plan.to_owned(), entries: BTreeMap::new() };
        let file = match File::open(&journal.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(journal),
            Err(error) => return Err(PipelineError::io(&journal.path, "reading the journal")(error)),
        };
        let mut lines = BufReader::new(file).lines().map_while(Result::ok);
        let head: Option<Head> = lines.next().and_then(|line| serde_json::from_str(&line).ok());
        if head.is_some_and(|head| head.kbit_journal == VERSION && head.plan == plan) {
            for entry in lines.map_while(|line| serde_json::from_str::<Entry>(&line).ok()) {
                journal.entries.insert(entry.tensor, entry);
            }
        }
        Ok(journal)
    }

    /// True where nothing can be taken over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of tensor `index`.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<&Entry> {
        self.entries.get(&index)
    }

    /// Forgets everything, also on disk.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn clear(&mut self) -> Result<(), PipelineError> {
        self.entries.clear();
        self.remove()
    }

    /// Adds `entries` to the file and syncs it. Their bytes must be on disk already.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), PipelineError> {
        let new = !self.path.exists();
        let mut text = String::new();
        if new || self.entries.is_empty() {
            text = line(&Head { kbit_journal: VERSION, plan: self.plan.clone() });
        }
        for entry in entries.iter().filter(|entry| !self.entries.contains_key(&entry.tensor)) {
            text += &line(entry);
        }
        let write = || -> std::io::Result<()> {
            let mut file = if new || self.entries.is_empty() {
                File::create(&self.path)?
            } else {
                OpenOptions::new().append(true).open(&self.path)?
            };
            file.write_all(text.as_bytes())?;
            file.sync_data()
        };
        write().map_err(PipelineError::io(&self.path, "writing the journal"))?;
        self.entries.extend(entries.iter().map(|entry| (entry.tensor, entry.clone())));
        Ok(())
    }

    /// Removes the file.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self) -> Result<(), PipelineError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(PipelineError::io(&self.path, "removing the journal")(error))
            }
            _ => Ok(()),
        }
    }
}

fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tensor: usize) -> Entry {
        Entry { tensor, stored: vec!["a".into()], source_sha256: Some("b".into()), error: None }
    }

    #[test]
    fn takes_over_what_was_synced_and_drops_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.gguf");
        let mut journal = Journal::open(&out, "plan").unwrap();
        journal.append(&[entry(0), entry(1)]).unwrap();
        journal.append(&[entry(2)]).unwrap();
        let path = folder.path().join("out.gguf.kbit-journal");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        let journal = Journal::open(&out, "plan").unwrap();
        assert_eq!(journal.entry(1), Some(&entry(1)));
        assert_eq!(journal.entry(2), None);
    }

    #[test]
    fn ignores_the_journal_of_another_plan() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.gguf");
        Journal::open(&out, "one").unwrap().append(&[entry(0)]).unwrap();
        assert!(Journal::open(&out, "another").unwrap().is_empty());
    }
}
