//! What the operating system tells: memory, free space.

use crate::FormatError;
use std::path::Path;

/// Peak resident memory of this process (VmHWM), in bytes; `None` where the system does not tell.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Bytes that may still be written to the file system of `path`.
///
/// # Errors
/// When `path` does not exist.
pub fn disk_free(path: &Path) -> Result<u64, FormatError> {
    let found = rustix::fs::statvfs(path)
        .map_err(|error| FormatError::io(path, "asking for free space")(error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}
