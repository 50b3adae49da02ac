//! Memory maps: the only unsafe code of this crate.
//!
//! Invariant: a map is read-only and private to this process's view of the file. Another process that truncates the
//! file while it is mapped makes later reads of the lost pages fail (SIGBUS); kbit maps files only to evaluate them, and
//! converts by positioned reads, which report a short file as an error. The length is checked when the map is made.
#![expect(unsafe_code, reason = "mapping a file")]

use crate::FormatError;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// The bytes of a file.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
}

impl Mapped {
    /// Maps `file`, which must have `bytes` bytes.
    pub(crate) fn new(file: &File, path: &Path, bytes: u64) -> Result<Self, FormatError> {
        // SAFETY: see the module's invariant.
        let map = unsafe { Mmap::map(file) }.map_err(FormatError::io(path, "mapping"))?;
        if (map.len() as u64) < bytes {
            return Err(FormatError::damaged(
                path,
                map.len() as u64,
                format!("the file became shorter than {bytes} bytes"),
            ));
        }
        Ok(Self { map })
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
