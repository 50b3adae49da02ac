//! `plugins.lock`: the plugins outside the trusted folders that the user has added, pinned by SHA-256.
//!
//! One JSON document, written by `kbit plugin add` and readable by people:
//!
//! ```json
//! {
//!   "kbit_plugins_lock": 1,
//!   "plugins": [
//!     { "path": "/home/ada/libkbit_scheme_hadamard.so", "sha256": "9f86...", "id": "org.ada.hadamard", "version": "0.1.0" }
//!   ]
//! }
//! ```
//!
//! An entry means: a file with this hash may be loaded from this path. `id` and `version` are for people. The file of
//! that path with another hash is refused, wherever it stands. Every plugin in the lock is loaded along with those of
//! the trusted folders.

use crate::error::HostError;
use crate::registry::{self, HostOptions};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Version of the lock file that this module writes.
const VERSION: u32 = 1;
/// A lock file larger than this is not one.
const MAX_BYTES: u64 = 16 << 20;

/// One pinned plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Absolute path of the file.
    pub path: PathBuf,
    /// SHA-256 of its bytes, lower-case hexadecimal.
    pub sha256: String,
    /// The plugin's id when it was added.
    pub id: String,
    /// The plugin's version when it was added.
    pub version: String,
}

/// The contents of a lock file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// Pins, in the order in which they were added.
    pub plugins: Vec<Pin>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    kbit_plugins_lock: u32,
    plugins: Vec<Pin>,
}

/// Where the lock stands by default: `$XDG_CONFIG_HOME/kbit/plugins.lock`, or under `~/.config`. `None` without a home.
#[must_use]
pub fn default_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("kbit").join("plugins.lock"))
}

impl Lock {
    /// Reads the lock. A file that does not exist is an empty lock.
    ///
    /// # Errors
    /// A file that cannot be read or is not a lock.
    pub fn read(path: &Path) -> Result<Self, HostError> {
        let wrong = |reason: String| HostError::Lock { path: path.to_owned(), reason };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Ok(meta) if meta.len() > MAX_BYTES => {
                return Err(wrong("far too large for a plugin lock".to_owned()));
            }
            _ => {}
        }
        let text = std::fs::read_to_string(path).map_err(HostError::io("read", path))?;
        let document: Document =
            serde_json::from_str(&text).map_err(|error| wrong(format!("not a plugin lock: {error}")))?;
        if document.kbit_plugins_lock != VERSION {
            return Err(wrong(format!(
                "a lock of version {}, and this kbit reads version {VERSION}",
                document.kbit_plugins_lock
            )));
        }
        for pin in &document.plugins {
            let hex =
                pin.sha256.len() == 64 && pin.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !hex || !pin.path.is_absolute() {
                return Err(wrong(format!(
                    "the entry for {} needs an absolute path and a SHA-256 of 64 lower-case hexadecimal digits",
                    pin.path.display()
                )));
            }
        }
        Ok(Self { plugins: document.plugins })
    }

    /// Writes the lock through a new file and a rename, so that a reader never sees half of it.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), HostError> {
        use std::os::unix::fs::OpenOptionsExt;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(HostError::io("create the folder", folder))?;
        let document = Document { kbit_plugins_lock: VERSION, plugins: self.plugins.clone() };
        let mut text = serde_json::to_string_pretty(&document)
            .map_err(|error| HostError::Lock { path: path.to_owned(), reason: error.to_string() })?;
        text.push('\n');
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let result = (|| {
            let mut options = std::fs::File::options();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        })();
        if result.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        result.map_err(HostError::io("write", path))
    }

    /// The pin for `path` (absolute), if there is one.
    #[must_use]
    pub fn pin(&self, path: &Path) -> Option<&Pin> {
        self.plugins.iter().find(|pin| pin.path == path)
    }

    /// Adds a pin in place of an earlier one for the same path.
    pub fn insert(&mut self, pin: Pin) {
        match self.plugins.iter_mut().find(|known| known.path == pin.path) {
            Some(known) => *known = pin,
            None => self.plugins.push(pin),
        }
    }
}

/// What [`add`] found in the file and pinned.
#[derive(Clone, Debug, Serialize)]
pub struct Added {
    /// Absolute path of the plugin.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Plugin id.
    pub id: String,
    /// Plugin version.
    pub version: String,
    /// Who made it.
    pub vendor: String,
    /// Home page.
    pub url: String,
    /// Licence.
    pub license: String,
    /// Ids of its schemes.
    pub schemes: Vec<String>,
    /// Libraries that come along when it is loaded.
    pub needs: Vec<String>,
    /// The lock file that was written.
    pub lock: PathBuf,
}

/// What `file` is, without trusting it: inspected here, and loaded in a worker process if the options name one (else in
/// this process).
///
/// # Errors
/// Anything that would keep the plugin from loading.
pub fn describe(file: &Path, options: &HostOptions) -> Result<Added, HostError> {
    let lock = options.lock_path();
    let found = registry::describe_untrusted(file, options)?;
    Ok(Added { lock: lock.unwrap_or_default(), ..found })
}

/// Pins `file` in the options' lock (or the default one), after it passed everything that loading checks.
///
/// # Errors
/// A plugin that does not load, or a lock that cannot be written.
pub fn add(file: &Path, options: &HostOptions) -> Result<Added, HostError> {
    let Some(path) = options.lock_path() else {
        return Err(HostError::Lock {
            path: PathBuf::from("plugins.lock"),
            reason: "no place for it: neither XDG_CONFIG_HOME nor HOME is set; name a lock file".to_owned(),
        });
    };
    let mut lock = Lock::read(&path)?;
    let added = describe(file, options)?;
    lock.insert(Pin {
        path: added.path.clone(),
        sha256: added.sha256.clone(),
        id: added.id.clone(),
        version: added.version.clone(),
    });
    lock.write(&path)?;
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(path: &str, digit: char) -> Pin {
        Pin {
            path: path.into(),
            sha256: digit.to_string().repeat(64),
            id: "org.example.a".into(),
            version: "1.0.0".into(),
        }
    }

    #[test]
    fn reads_what_it_wrote_and_replaces_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/plugins.lock");
        assert_eq!(Lock::read(&path).unwrap(), Lock::default());
        let mut lock = Lock::default();
        lock.insert(pin("/a.so", '1'));
        lock.insert(pin("/b.so", '2'));
        lock.insert(pin("/a.so", '3'));
        lock.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
        assert_eq!(lock.pin(Path::new("/a.so")), Some(&pin("/a.so", '3')));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_lock_is_an_error_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugins.lock");
        let zeros = "0".repeat(64);
        for (text, expected) in [
            ("{", "line 1"),
            ("{\"kbit_plugins_lock\": 2, \"plugins\": []}", "version 2"),
            ("{\"kbit_plugins_lock\": 1, \"plugins\": [], \"more\": 1}", "unknown field `more`"),
            (
                "{\"kbit_plugins_lock\": 1, \"plugins\": [{\"path\":\"/a\",\"sha256\":\"xx\",\"id\":\"\",\"version\":\"\"}]}",
                "64 lower-case",
            ),
            (
                &format!(
                    "{{\"kbit_plugins_lock\": 1, \"plugins\": [{{\"path\":\"a\",\"sha256\":\"{zeros}\",\"id\":\"\",\"version\":\"\"}}]}}"
                ),
                "absolute path",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = Lock::read(&path).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
