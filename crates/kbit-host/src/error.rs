//! What can go wrong between kbit and a plugin. Messages name the place and end with the cure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Which call of which plugin, about which tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File name of the plugin.
    pub plugin: String,
    /// Scheme id, or empty for calls of the plugin as a whole.
    pub scheme: String,
    /// Tensor, or empty where the call is about none.
    pub tensor: String,
    /// Name of the function in `kbit_plugin.h`.
    pub call: &'static str,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.tensor.is_empty() {
            write!(f, "tensor {}: ", self.tensor)?;
        }
        if !self.scheme.is_empty() {
            write!(f, "scheme {} ", self.scheme)?;
        }
        write!(f, "(plugin {}), {}()", self.plugin, self.call)
    }
}

/// How a worker process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Death {
    /// A signal of the plugin's own making, as SIGSEGV.
    Signal(i32),
    /// SIGKILL from outside, as the out-of-memory killer sends it.
    Killed,
    /// It ended by itself with this status.
    Exit(i32),
    /// It closed its connection and could not be waited for.
    Unknown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(number) => write!(f, "crashed with {}", signal_name(*number)),
            Self::Killed => {
                write!(f, "was killed from outside (SIGKILL; the system does that when memory runs out)")
            }
            Self::Exit(status) => write!(f, "ended by itself with status {status}"),
            Self::Unknown => write!(f, "closed its connection"),
        }
    }
}

/// The name of a signal that ends processes.
#[must_use]
pub fn signal_name(number: i32) -> String {
    let name = match number {
        libc::SIGSEGV => "SIGSEGV (it used memory that is not its own)",
        libc::SIGABRT => "SIGABRT (it aborted)",
        libc::SIGBUS => "SIGBUS (it used memory that has no storage behind it)",
        libc::SIGFPE => "SIGFPE (integer division by zero, or overflow in a division)",
        libc::SIGILL => "SIGILL (it used an instruction that this CPU lacks)",
        libc::SIGTRAP => "SIGTRAP (it hit a trap)",
        libc::SIGSYS => "SIGSYS (it made a forbidden system call)",
        libc::SIGKILL => "SIGKILL",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU (it used more processor time than allowed)",
        _ => return format!("signal {number}"),
    };
    name.to_owned()
}

/// An error of the plugin host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A scheme argument that cannot be read.
    #[error("scheme `{text}`: {reason}; write `name` or `name:key=value,key=value`, as int:bits=4,block=64")]
    SpecSyntax {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No loaded plugin has such a scheme.
    #[error(
        "no scheme is called `{name}`{}; `kbit plugin list` shows all, `kbit plugin add FILE` adds one",
        nearest_text(nearest)
    )]
    UnknownScheme {
        /// What was asked for.
        name: String,
        /// Names that look like it.
        nearest: Vec<String>,
    },
    /// Several schemes answer to the name.
    #[error("`{name}` could be {}; write the whole id", ids.join(" or "))]
    AmbiguousScheme {
        /// What was asked for.
        name: String,
        /// Their ids.
        ids: Vec<String>,
    },
    /// The scheme has no such parameter.
    #[error(
        "scheme {scheme} has no parameter `{key}`{}; it takes {}",
        nearest_text(nearest),
        list_or_none(known)
    )]
    UnknownParam {
        /// Scheme id.
        scheme: String,
        /// What was given.
        key: String,
        /// Keys that look like it.
        nearest: Vec<String>,
        /// All keys.
        known: Vec<String>,
    },
    /// A parameter has a value that it does not take.
    #[error(
        "scheme {scheme}, parameter `{key}`: {given} will not do; it takes {expected}{}",
        nearest_text(nearest)
    )]
    ParamValue {
        /// Scheme id.
        scheme: String,
        /// Key.
        key: String,
        /// What was given.
        given: String,
        /// What it takes.
        expected: String,
        /// Choices that look like it.
        nearest: Vec<String>,
    },
    /// A parameter without default was not given.
    #[error("scheme {scheme} needs the parameter `{key}` ({doc}); write {scheme}:{key}=...")]
    MissingParam {
        /// Scheme id.
        scheme: String,
        /// Key.
        key: String,
        /// What it means.
        doc: String,
    },
    /// The lock file cannot be read.
    #[error("{}: {reason}; mend it, or move it away and run `kbit plugin add` for each plugin again", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A plugin outside the trusted folders that nobody added.
    #[error(
        "{}: this plugin is not trusted yet (sha256 {sha256}); look at it and run `kbit plugin add {}`",
        path.display(), path.display()
    )]
    NotTrusted {
        /// The plugin.
        path: PathBuf,
        /// Its hash.
        sha256: String,
    },
    /// A plugin that is not the file that was added.
    #[error(
        "{}: the file changed since it was added (its sha256 is {found}, the lock has {locked}); if you built it anew, \
         run `kbit plugin add {}`, else find out who changed it",
        path.display(), path.display()
    )]
    PinChanged {
        /// The plugin.
        path: PathBuf,
        /// Hash in the lock.
        locked: String,
        /// Hash of the file.
        found: String,
    },
    /// A file that is not a loadable plugin; found without running any of it.
    #[error("{}: not a plugin that kbit can load: {reason}", path.display())]
    NotAPlugin {
        /// The file.
        path: PathBuf,
        /// Why not, and the cure.
        reason: String,
    },
    /// The dynamic linker refused the file.
    #[error("{}: the dynamic linker cannot load it: {reason}; link what it needs, or rebuild it on this system", path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// The linker's words.
        reason: String,
    },
    /// The plugin's entry function returned NULL.
    #[error("{}: the plugin refuses to load: {message}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The plugin's words.
        message: String,
    },
    /// A descriptor breaks a rule.
    #[error("{}: {at}: {reason}; this is for the plugin's author to mend", path.display())]
    Descriptor {
        /// The file.
        path: PathBuf,
        /// Which descriptor, as `scheme org.example.a/1, parameter bits`.
        at: String,
        /// The rule.
        reason: String,
    },
    /// The plugin's self-test failed.
    #[error("{}: the plugin's self-test failed: {message}; rebuild it, or report it to its vendor", path.display())]
    SelfTest {
        /// The file.
        path: PathBuf,
        /// The plugin's words.
        message: String,
    },
    /// A plugin that did not load in a worker process, which says why.
    #[error("{message}")]
    InWorker {
        /// The worker's error, with file and cure.
        message: String,
    },
    /// A scheme that another plugin already provides.
    #[error("{}: scheme {id} already comes from {}; the first one is used", path.display(), first.display())]
    Shadowed {
        /// The later file.
        path: PathBuf,
        /// Scheme id.
        id: String,
        /// The earlier file.
        first: PathBuf,
    },

    /// `KBIT_EPARAM`.
    #[error("{place}: {message}; `kbit plugin show` lists the parameters")]
    Param {
        /// Where.
        place: Box<Place>,
        /// The plugin's words.
        message: String,
    },
    /// `KBIT_EUNSUPPORTED`: the scheme cannot take this shape or request.
    #[error("{place}: not supported: {message}; choose another scheme for it")]
    Unsupported {
        /// Where.
        place: Box<Place>,
        /// The plugin's words.
        message: String,
    },
    /// `KBIT_ENUMERIC`: values that cannot be encoded, as NaN.
    #[error("{place}: {message}; `kbit verify` finds values that are not finite")]
    Numeric {
        /// Where.
        place: Box<Place>,
        /// The plugin's words.
        message: String,
    },
    /// `KBIT_EMISSING`: calibration data that the scheme needs is absent.
    #[error("{place}: {message}; give calibration data, or choose a scheme that needs none")]
    Missing {
        /// Where.
        place: Box<Place>,
        /// The plugin's words.
        message: String,
    },
    /// `KBIT_ECANCELLED`.
    #[error("{place}: cancelled")]
    Cancelled {
        /// Where.
        place: Box<Place>,
    },
    /// `KBIT_EINTERNAL`, or a status that ABI 1 does not have.
    #[error("{place}: the plugin failed: {message}; report it to the plugin's vendor")]
    Internal {
        /// Where.
        place: Box<Place>,
        /// The plugin's words.
        message: String,
    },
    /// `KBIT_EPANIC`.
    #[error("{place}: the plugin panicked: {message}; report it to the plugin's vendor")]
    Panicked {
        /// Where.
        place: Box<Place>,
        /// The panic's message.
        message: String,
    },
    /// The plugin changed the rounding mode or the like; the host put it back.
    #[error(
        "{place}: the plugin changed the floating-point environment ({change}), which would change other results; report it to the plugin's vendor"
    )]
    FloatEnvironment {
        /// Where.
        place: Box<Place>,
        /// What changed.
        change: String,
    },
    /// `plan()` answered what the ABI does not allow.
    #[error("{place}: the plan breaks a rule: {reason}; this is for the plugin's author to mend")]
    Plan {
        /// Where.
        place: Box<Place>,
        /// The rule.
        reason: String,
    },
    /// The plugin wrote past a buffer (seen where canaries stand around buffers).
    #[error("{place}: the plugin wrote past its buffer ({what}); report it to the plugin's vendor")]
    Overrun {
        /// Where.
        place: Box<Place>,
        /// Which buffer.
        what: String,
    },
    /// The caller broke the contract of this crate.
    #[error("{place}: wrong call by the host: {reason}; please report this as a defect of kbit")]
    Misuse {
        /// Where.
        place: Box<Place>,
        /// What is wrong.
        reason: String,
    },

    /// `isolation: process` without a worker command.
    #[error(
        "scheme {scheme} was asked to run in a worker process, but no worker command is set; set HostOptions::worker"
    )]
    NoWorker {
        /// Scheme id.
        scheme: String,
    },
    /// A worker process did not come up.
    #[error("the worker process for plugin {plugin} cannot be started: {reason}")]
    WorkerStart {
        /// File name of the plugin.
        plugin: String,
        /// Why.
        reason: String,
    },
    /// A worker process ended during a call.
    #[error(
        "{place}: the plugin's worker process {death}{}; other tensors are not affected; `kbit plugin check` narrows it down",
        stderr_text(stderr)
    )]
    WorkerDied {
        /// Where.
        place: Box<Place>,
        /// How it ended.
        death: Death,
        /// Last line that it wrote to standard error.
        stderr: String,
    },
    /// A call took longer than the time-out, and the worker was killed.
    #[error("{place}: no answer within {:.1} s; the worker process was stopped; raise the time-out if the plugin needs longer", limit.as_secs_f64())]
    WorkerHung {
        /// Where.
        place: Box<Place>,
        /// The time-out.
        limit: Duration,
    },
    /// A worker process spoke nonsense.
    #[error("{place}: the plugin's worker process broke the protocol: {reason}; it was stopped")]
    WorkerProtocol {
        /// Where.
        place: Box<Place>,
        /// What it said.
        reason: String,
    },

    /// A name that `kbit plugin new` cannot use.
    #[error("`{name}` cannot name a scheme: {reason}")]
    ScaffoldName {
        /// What was given.
        name: String,
        /// Why not.
        reason: String,
    },
    /// `kbit plugin new` would overwrite something.
    #[error("{}: exists already; choose another folder, or empty this one", path.display())]
    ScaffoldExists {
        /// The folder.
        path: PathBuf,
    },
}

impl HostError {
    /// True where the user asked for something that does not exist or is not allowed yet (exit status 2), as opposed to
    /// something that failed.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::SpecSyntax { .. }
                | Self::UnknownScheme { .. }
                | Self::AmbiguousScheme { .. }
                | Self::UnknownParam { .. }
                | Self::ParamValue { .. }
                | Self::MissingParam { .. }
                | Self::Param { .. }
                | Self::NotTrusted { .. }
                | Self::ScaffoldName { .. }
                | Self::ScaffoldExists { .. }
        )
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

fn nearest_text(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!(" (did you mean {}?)", nearest.join(" or ")) }
}

fn list_or_none(known: &[String]) -> String {
    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
}

fn stderr_text(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(" (its last words: {stderr})") }
}

/// Up to three of `known` that look like `given`, nearest first.
pub(crate) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let given = given.to_lowercase();
    let limit = (given.chars().count() / 3).max(1);
    let mut found: Vec<(usize, String)> = known
        .map(|name| (edit_distance(&given, &name.to_lowercase()), name.to_owned()))
        .filter(|(distance, name)| {
            *distance <= limit || given.len() >= 2 && name.to_lowercase().starts_with(given.as_str())
        })
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let mut best = (last[j] + 1).min(row[j - 1] + 1);
            best = best.min(last[j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row[j] = best;
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_names() {
        let known = ["int", "float", "ternary", "quantile"];
        assert_eq!(nearest("itn", known.into_iter()), ["int"]);
        assert_eq!(nearest("quantle", known.into_iter()), ["quantile"]);
        assert!(nearest("zebra", known.into_iter()).is_empty());
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
