//! The host with real shared libraries: what `kbit plugin new` writes, and deliberately bad plugins.
//!
//! Worker processes are this test program itself, asked to run the ignored test `worker_entry`.

mod bad_plugins;
mod isolation;
mod loading;
mod rust_plugin;
mod scaffold;

use kbit_host::scaffold::{Lang, new_project};
use kbit_host::{HostOptions, Isolation, MatrixInfo, OpenScheme, Registry, SchemeSpec};
use kbit_types::MatrixShape;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// The other end of `isolation: process`: only when a host starts this program with it, on a socket.
#[test]
#[ignore = "serves the other tests as a worker process"]
fn worker_entry() {
    let _ = kbit_host::worker_main_with(&[rust_plugin::STATIC]);
}

/// The command of a worker.
fn worker() -> Vec<OsString> {
    let this = std::env::current_exe().unwrap();
    let mut command = vec![this.into_os_string()];
    command.extend(["--exact", "worker_entry", "--ignored", "--nocapture"].map(OsString::from));
    command
}

/// Options that trust `folder` alone.
fn trusting(folder: &Path) -> HostOptions {
    HostOptions {
        trusted: vec![folder.to_owned()],
        lock: None,
        worker: Some(worker()),
        timeout: Duration::from_secs(20),
        ..HostOptions::default()
    }
}

/// A folder that lasts as long as the test program.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// Runs a command that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Compiles one C file into `folder/libkbit_scheme_NAME.so`.
fn compile_c(source: &Path, folder: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let library = folder.join(format!("libkbit_scheme_{name}.so"));
    std::fs::create_dir_all(folder).unwrap();
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kbit-abi/include");
    run(Command::new("cc")
        .args(["-std=c11", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wl,-z,noexecstack"])
        .args(flags)
        .arg("-I")
        .arg(header)
        .arg("-o")
        .arg(&library)
        .arg(source)
        .arg("-lm"));
    library
}

/// The plugin of a new C project, in a folder of its own.
fn good_plugin() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let project = new_project(&folder().join("good"), "good", Lang::C).unwrap();
        compile_c(&project.folder.join("src/scheme.c"), &folder().join("good-lib"), "good", &[])
    })
}

/// Opens a scheme out of a trusted folder.
fn open(folder: &Path, spec: &str, isolation: Isolation) -> Result<OpenScheme, kbit_host::HostError> {
    open_with(&trusting(folder), spec, isolation)
}

fn open_with(
    options: &HostOptions,
    spec: &str,
    isolation: Isolation,
) -> Result<OpenScheme, kbit_host::HostError> {
    let registry = Registry::load(options)?;
    let spec: SchemeSpec = spec.parse()?;
    let scheme =
        registry.scheme(&spec.name).unwrap_or_else(|error| panic!("{error}: {:?}", registry.failures()));
    scheme.open(&scheme.resolve(&spec.params)?, isolation)
}

fn matrix(tensor: &str, rows: u64, cols: u64) -> MatrixInfo {
    MatrixInfo { tensor: tensor.to_owned(), shape: MatrixShape::dense(rows, cols), slice: 0 }
}

/// Repeatable test weights.
fn weights(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 20_011) as f32 / 20_011.0 - 0.5).collect()
}
