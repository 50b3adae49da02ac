//! Runs a command and measures it: seconds, peak memory.
//!
//! Invariant of the unsafe code: the id passed to `wait4` is that of a child that nothing else waits for.
#![expect(unsafe_code, reason = "only wait4 tells the peak memory of one child")]

use crate::{Result, in_context};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a finished command took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// From its start to its end.
    pub seconds: f64,
    /// Most memory that was resident, pages of mapped files included (`ru_maxrss`), in bytes. The kernel counts what the
    /// parent held at the time of the start, so the parent must stay small.
    pub peak: u64,
    /// Most memory that was resident without pages of files (sampled every 5 ms from `/proc`), in bytes; 0 where the command
    /// ended sooner.
    pub peak_private: u64,
    /// True where it succeeded.
    pub success: bool,
}

/// Runs `command` to its end, its outputs into the file `log`.
///
/// # Errors
/// When it cannot be started or waited for. Failing is not an error here.
pub fn measure(command: &mut Command, log: &Path) -> Result<Measured> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = File::create(log).map_err(in_context(log.display()))?;
    let err = out.try_clone().map_err(in_context(log.display()))?;
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let begin = Instant::now();
    let child = command.spawn().map_err(in_context(format_args!("{name} cannot be run")))?;
    let id = child.id();
    let (ended, private) = (AtomicBool::new(false), AtomicU64::new(0));
    let (status, usage, seconds) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                private.fetch_max(private_bytes(id).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let waited = wait(id);
        let seconds = begin.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        waited.map(|(status, usage)| (status, usage, seconds))
    })
    .map_err(in_context(name))?;
    Ok(Measured {
        seconds,
        peak: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        peak_private: private.into_inner(),
        success: libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
    })
}

fn wait(id: u32) -> std::io::Result<(libc::c_int, libc::rusage)> {
    let id = libc::pid_t::try_from(id).map_err(std::io::Error::other)?;
    let mut status = 0;
    // SAFETY: `rusage` is plain numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both places live through the call.
        if unsafe { libc::wait4(id, &raw mut status, 0, &raw mut usage) } == id {
            return Ok((status, usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Resident memory of a process that is not pages of files, in bytes.
fn private_bytes(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let field = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((field("RssAnon:")? + field("RssShmem:")?) * 1024)
}

/// What a log says of a failure: its lines that speak of one, else its last line.
pub fn complaint(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let complains = |line: &&&str| {
        let line = line.to_lowercase();
        ["error", "failed to", "refus", "imatrix!"].iter().any(|word| line.contains(word))
    };
    let found: Vec<&str> = lines.iter().filter(complains).take(2).copied().collect();
    if found.is_empty() { lines.last().copied().unwrap_or_default().to_owned() } else { found.join(" | ") }
}

#[cfg(test)]
mod tests {
    use super::{complaint, measure};
    use std::process::Command;

    #[test]
    fn a_command_is_measured() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        // Holds 64 MB for a moment.
        let script = "x=$(head -c 64000000 /dev/zero | tr '\\0' 'x'); sleep 0.3; echo held ${#x} >&2; exit 3";
        let found = measure(Command::new("sh").args(["-c", script]), &log).expect("it runs");
        assert!(!found.success);
        assert!(found.seconds >= 0.3, "{found:?}");
        assert!(found.peak >= 64_000_000 && found.peak_private >= 64_000_000, "{found:?}");
        assert_eq!(complaint(&log), "held 64000000");
        std::fs::write(&log, "loading\n\n error: no such type\nbye\n").expect("written");
        assert_eq!(complaint(&log), "error: no such type");
    }

    #[test]
    fn a_missing_program_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = measure(&mut Command::new("no-such-program"), &folder.path().join("log"));
        assert!(error.is_err_and(|error| error.contains("no-such-program")));
    }
}
