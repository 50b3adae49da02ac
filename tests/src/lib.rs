//! What the end-to-end tests share: the built `kbit`, the repository's folders, small damaged inputs.
#![forbid(unsafe_code)]

pub mod browser;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// The built `kbit`: `KBIT_BIN`, or the release build.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn kbit_path() -> PathBuf {
    let path = std::env::var_os("KBIT_BIN").map_or_else(
        || {
            let target =
                std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
            target.join("release/kbit")
        },
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not there: run `cargo xtask test`, which builds it first", path.display());
    path
}

/// A `kbit` command that runs in `folder`.
#[must_use]
pub fn kbit_in(folder: &Path) -> Command {
    let mut command = Command::new(kbit_path());
    command.current_dir(folder);
    command
}

/// Runs `kbit` in `folder`; its status and what it printed.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn kbit(folder: &Path, arguments: &[&str]) -> Output {
    kbit_in(folder).args(arguments).output().expect("kbit starts")
}

/// Runs `kbit` in `folder` and expects success; its stdout.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn kbit_ok(folder: &Path, arguments: &[&str]) -> String {
    let output = kbit(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kbit {}: {}\n{stderr}", arguments.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `kbit` in `folder` and expects it to fail with `status`; its stderr.
///
/// # Panics
/// When it ends otherwise.
#[must_use]
pub fn kbit_fails(folder: &Path, status: i32, arguments: &[&str]) -> String {
    let output = kbit(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "kbit {}\n{stderr}", arguments.join(" "));
    stderr
}

/// Mean KL divergence of `file` in `folder` from the model `reference` on a text, both of them paths, in windows of `context` tokens.
///
/// # Panics
/// When it cannot be measured.
#[must_use]
pub fn kl_divergence(folder: &Path, file: &str, reference: &str, text: &str, context: &str) -> f64 {
    let arguments = [
        "eval",
        file,
        "--metric",
        "kl",
        "--reference",
        reference,
        "--text",
        text,
        "--context",
        context,
        "--json",
    ];
    let found: serde_json::Value = serde_json::from_str(&kbit_ok(folder, &arguments)).expect("JSON");
    found["value"].as_f64().unwrap_or_else(|| panic!("no value in {found}"))
}

/// A folder of the repository, as text for a command line.
///
/// # Panics
/// When the path is not UTF-8.
#[must_use]
pub fn repository(path: &str) -> String {
    root().join(path).to_str().expect("a UTF-8 path").to_owned()
}

/// A file of the reference data beside the repository, if that is there; else says what is skipped.
#[must_use]
#[expect(clippy::print_stderr, reason = "a test says what it skipped")]
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = root().parent()?.join("shared").join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("skipped: no reference data at ../shared/{path}");
    None
}

/// True where Python's `gguf` package can be imported; else says that its check is skipped.
#[must_use]
#[expect(clippy::print_stderr, reason = "a test says what it skipped")]
pub fn has_python_gguf() -> bool {
    let found = Command::new("python3")
        .args(["-c", "import gguf"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: Python's gguf package is not installed (pip install gguf)");
    }
    found
}

/// Copies the model folder `from` to `to`.
///
/// # Panics
/// When a file cannot be copied.
pub fn copy_model(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder for the copy");
    for entry in std::fs::read_dir(from).expect("the model's folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// The code blocks of `language` in a Markdown `page`.
#[must_use]
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut current: Option<String> = None;
    for line in page.lines() {
        match (&mut current, line.strip_prefix("```")) {
            (None, Some(tag)) if tag == language => current = Some(String::new()),
            (Some(_), Some("")) => found.extend(current.take()),
            (Some(block), _) => {
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    found
}
