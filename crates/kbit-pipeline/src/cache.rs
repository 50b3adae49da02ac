//! What was computed already, by the hash of everything that it depends on.
//!
//! A record is one JSON file named by its key; it appears by atomic rename, so a killed run leaves none torn.

use crate::error::PipelineError;
use kbit_formats::gguf::shards::model_files;
use kbit_formats::hash::Sha256;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A folder of records.
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in `folder`, made where it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self, PipelineError> {
        std::fs::create_dir_all(folder).map_err(PipelineError::io(folder, "making the cache folder"))?;
        Ok(Self { folder: folder.to_owned() })
    }

    fn path(&self, kind: &str, key: &str) -> PathBuf {
        self.folder.join(format!("{kind}-{key}.json"))
    }

    /// The record under `key`; `None` where there is none, or an older version's.
    #[must_use]
    pub fn get<T: DeserializeOwned>(&self, kind: &str, key: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.path(kind, key)).ok()?).ok()
    }

    /// Stores a record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put<T: Serialize>(&self, kind: &str, key: &str, record: &T) -> Result<(), PipelineError> {
        let path = self.path(kind, key);
        let bytes = serde_json::to_vec_pretty(record)
            .map_err(|error| PipelineError::io(&path, "writing a cache record")(error.into()))?;
        Ok(kbit_formats::atomic::write_atomically(&path, &bytes)?)
    }
}

/// SHA-256 of the canonical JSON of `value`.
#[must_use]
pub fn key_of(value: &serde_json::Value) -> String {
    let mut hash = Sha256::new();
    hash.update(value.to_string().as_bytes());
    hash.hex()
}

/// Size and time of last change: a file that keeps both is taken to be the same.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    bytes: u64,
    modified_ns: u128,
}

impl Stamp {
    /// The stamp of `path`.
    ///
    /// # Errors
    /// When the file is not there.
    pub fn of(path: &Path) -> Result<Self, PipelineError> {
        let metadata = std::fs::metadata(path).map_err(PipelineError::io(path, "looking at the file"))?;
        let modified = metadata.modified().map_err(PipelineError::io(path, "looking at the file"))?;
        let modified_ns = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Ok(Self { bytes: metadata.len(), modified_ns })
    }
}

/// Content hashes of source files, remembered by stamp so that a second run does not read them again.
pub struct ContentHashes<'a> {
    cache: &'a Cache,
}

impl<'a> ContentHashes<'a> {
    /// Hashes remembered in `cache`.
    #[must_use]
    pub const fn new(cache: &'a Cache) -> Self {
        Self { cache }
    }

    /// SHA-256 of the file `path`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(&self, path: &Path) -> Result<String, PipelineError> {
        let absolute = path.canonicalize().map_err(PipelineError::io(path, "looking at the file"))?;
        let key = key_of(&serde_json::json!(absolute.to_string_lossy()));
        let stamp = Stamp::of(&absolute)?;
        if let Some((known, hash)) = self.cache.get::<(Stamp, String)>("content", &key)
            && known == stamp
        {
            return Ok(hash);
        }
        let hash = kbit_formats::hash::file_hex(&absolute)?;
        self.cache.put("content", &key, &(stamp, hash.clone()))?;
        Ok(hash)
    }

    /// One hash for a model; see [`model_hash`].
    ///
    /// # Errors
    /// When one of its files cannot be read.
    pub fn model(&self, path: &Path) -> Result<String, PipelineError> {
        model_hash(path, |file| self.file(file))
    }
}

/// One hash for a model: of its file, of all its shards, or of every file of its folder that a conversion may read. `hash` gives that
/// of a file.
///
/// # Errors
/// When one of them cannot be read.
pub fn model_hash(
    path: &Path,
    hash: impl Fn(&Path) -> Result<String, PipelineError>,
) -> Result<String, PipelineError> {
    if path.is_file() {
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let files = if is_gguf { model_files(path)? } else { vec![path.to_owned()] };
        let hashes: Vec<String> = files.iter().map(|file| hash(file)).collect::<Result<_, _>>()?;
        return Ok(match hashes.as_slice() {
            [only] => only.clone(),
            _ => key_of(&serde_json::json!(hashes)),
        });
    }
    let mut files = BTreeMap::new();
    let entries = std::fs::read_dir(path).map_err(PipelineError::io(path, "listing the folder"))?;
    for entry in entries {
        let entry = entry.map_err(PipelineError::io(path, "listing the folder"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let read = ["json", "safetensors", "model", "txt", "jinja"];
        if read.iter().any(|extension| name.ends_with(&format!(".{extension}"))) && entry.path().is_file() {
            files.insert(name, hash(&entry.path())?);
        }
    }
    Ok(key_of(&serde_json::json!(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_by_content_and_notices_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("cache")).unwrap();
        let hashes = ContentHashes::new(&cache);
        let file = folder.path().join("model.safetensors");
        std::fs::write(&file, "one").unwrap();
        let before = hashes.model(folder.path()).unwrap();
        assert_eq!(hashes.model(folder.path()).unwrap(), before);
        std::fs::write(&file, "other").unwrap();
        assert_ne!(hashes.model(folder.path()).unwrap(), before);
    }

    #[test]
    fn a_torn_record_is_no_record() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        cache.put("kind", "key", &vec![1, 2, 3]).unwrap();
        assert_eq!(cache.get::<Vec<i32>>("kind", "key"), Some(vec![1, 2, 3]));
        std::fs::write(folder.path().join("kind-key.json"), "[1, 2").unwrap();
        assert_eq!(cache.get::<Vec<i32>>("kind", "key"), None);
    }
}
