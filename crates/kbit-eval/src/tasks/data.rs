//! Documents: JSON objects, one a line.

use super::TaskError;
use kbit_formats::hash::Sha256;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A document with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// Line in its file, from 1.
    pub(crate) line: usize,
    pub(crate) fields: Map<String, Value>,
}

/// The documents of a task, read from a JSONL file.
#[derive(Clone, Debug)]
pub struct Data {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    pub(crate) documents: Vec<Document>,
}

impl Data {
    /// Reads the JSONL file `path`; empty lines are skipped.
    ///
    /// # Errors
    /// When it cannot be read or has no documents, and the first line that is none.
    pub fn read(path: &Path) -> Result<Self, TaskError> {
        let bytes = std::fs::read(path).map_err(|error| TaskError::Io { path: path.to_owned(), error })?;
        let mut documents = Vec::new();
        for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let fail = |message: String, help: &str| TaskError::Line {
                path: path.to_owned(),
                line: index + 1,
                message,
                help: help.to_owned(),
            };
            let value: Value = serde_json::from_slice(line).map_err(|error| {
                fail(
                    format!("no JSON: {error}"),
                    "write one JSON object a line, in UTF-8, or remove the line",
                )
            })?;
            let Value::Object(fields) = value else {
                let message = "a document is a JSON object, {\"field\": value, ...}";
                return Err(fail(
                    message.to_owned(),
                    "give JSONL: one object a line, without brackets around them all",
                ));
            };
            documents.push(Document { line: index + 1, fields });
        }
        if documents.is_empty() {
            return Err(TaskError::Empty { path: path.to_owned() });
        }
        let mut hash = Sha256::new();
        hash.update(&bytes);
        Ok(Self { path: path.to_owned(), sha256: hash.hex(), documents })
    }

    /// Number of documents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Always false: data without documents are refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Data, TaskError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        std::fs::write(&path, text).unwrap();
        Data::read(&path)
    }

    #[test]
    fn documents_know_their_lines() {
        let data = read(b"{\"a\": 1}\n\n{\"a\": 2}\n").unwrap();
        assert_eq!(data.documents.iter().map(|document| document.line).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn lines_that_are_no_documents_are_told_with_a_cure() {
        for (text, line) in [
            (&b"{\"a\": 1}\n{\"a\": 2\n"[..], ":2: no JSON"),
            (b"[1, 2]\n", ":1: a document is a JSON object"),
            (b"{\"a\": \"\xff\"}\n", ":1: no JSON"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(line) && message.contains("; "), "{message}");
        }
        assert!(read(b"\n \n").unwrap_err().to_string().contains("no documents"));
    }
}
