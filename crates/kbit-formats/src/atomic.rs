//! Small files that appear whole or not at all.

use crate::FormatError;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Ending of a temporary file, behind the number of the process that writes it.
const ENDING: &str = ".tmp";

/// Writes `bytes` to `path`: a temporary file beside it, synced, then renamed over it.
///
/// # Errors
/// When it cannot be written; `path` is then as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}{ENDING}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = renamed {
        // The first error is the one to tell; a temporary file that is left is named after this process.
        let _ = std::fs::remove_file(&temporary);
        return Err(FormatError::io(path, "writing")(error));
    }
    Ok(())
}

/// Removes the temporary files of [`write_atomically`] in `folder`, and `below` it where that is true, whose processes have ended: those
/// of a process that was killed while it wrote. Only for folders whose files are all kbit's.
///
/// # Errors
/// When a folder cannot be read, or a file cannot be removed.
pub fn remove_abandoned(folder: &Path, below: bool) -> Result<(), FormatError> {
    for entry in std::fs::read_dir(folder).map_err(FormatError::io(folder, "reading the folder"))? {
        let path = entry.map_err(FormatError::io(folder, "reading the folder"))?.path();
        if path.is_dir() {
            if below && !path.is_symlink() {
                remove_abandoned(&path, below)?;
            }
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let process =
            name.strip_suffix(ENDING).and_then(|rest| rest.rsplit_once('.')).map(|(_, process)| process);
        let Some(process) = process.and_then(|process| process.parse::<u32>().ok()) else { continue };
        if !is_running(process) {
            std::fs::remove_file(&path).map_err(FormatError::io(&path, "removing"))?;
        }
    }
    Ok(())
}

/// Where the system does not tell, no process counts as ended.
fn is_running(process: u32) -> bool {
    let all = Path::new("/proc");
    !all.join("self").exists() || all.join(process.to_string()).exists()
}

/// Makes a rename in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), FormatError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|file| file.sync_all()).map_err(FormatError::io(folder, "syncing the folder"))
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn what_killed_processes_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let own = format!("b.json.{}.tmp", std::process::id());
        let left = [format!("a.json.{}.tmp", ended.id()), "c.tmp".to_owned(), "d.x.tmp".to_owned(), own];
        for name in &left {
            std::fs::write(below.join(name), "x").unwrap();
        }
        let there = || left.each_ref().map(|name| below.join(name).exists());
        super::remove_abandoned(folder.path(), false).unwrap();
        assert_eq!(there(), [true; 4]);
        super::remove_abandoned(folder.path(), true).unwrap();
        assert_eq!(there(), [false, true, true, true]);
    }

    #[test]
    fn replaces_the_file_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        super::write_atomically(&path, b"one").unwrap();
        super::write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
