//! Deliberately bad plugins (`tests/bad-plugins`), seen from the command line: what `kbit plugin check` finds, what loading
//! refuses, and what a run makes of a plugin that crashes or hangs.

use kbit_tests::{kbit_in, repository, root};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Builds `tests/bad-plugins/NAME.c` into `folder`.
fn compiled(folder: &Path, name: &str) -> PathBuf {
    let library = folder.join(format!("libkbit_scheme_{name}.so"));
    let output = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-O2", "-std=c99", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden"])
        .arg("-Wl,-z,noexecstack")
        .arg(format!("-I{}", repository("crates/kbit-abi/include")))
        .arg("-o")
        .arg(&library)
        .arg(root().join("tests/bad-plugins").join(name).with_extension("c"))
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    library
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    kbit_in(folder).args(arguments).env("XDG_CONFIG_HOME", folder).output().expect("kbit starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The detail of the failed `case` of the conformance kit's JSON report.
fn failed_case(name: &str, case: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let library = compiled(folder.path(), name);
    let library = library.to_str().expect("UTF-8");
    let output = run(folder.path(), &["plugin", "check", library, "--case", case, "--json"]);
    assert_eq!(output.status.code(), Some(1), "{name} passed {case}: {}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a JSON report");
    let cases = report["cases"].as_array().unwrap_or_else(|| panic!("no cases in {report}"));
    let failed = cases.iter().find(|found| found["name"] == case && found["outcome"] == "fail");
    let failed = failed.unwrap_or_else(|| panic!("{case} did not fail: {report}"));
    failed["message"].as_str().expect("a detail").to_owned()
}

#[test]
fn a_write_past_a_part_is_found() {
    let detail = failed_case("writes_past_part", "plan-bytes");
    assert!(detail.contains("past") && detail.contains("codes"), "{detail}");
}

#[test]
fn dependence_on_the_row_split_is_found() {
    let detail = failed_case("depends_on_split", "split-invariance");
    assert!(detail.contains("scales") || detail.contains("bytes"), "{detail}");
}

#[test]
fn a_changed_rounding_mode_is_found() {
    let detail = failed_case("changes_rounding", "float-environment");
    assert!(detail.contains("rounding"), "{detail}");
}

#[test]
fn a_crash_is_found_with_its_signal() {
    let detail = failed_case("crashes", "plan-bytes");
    assert!(detail.contains("SIGSEGV"), "{detail}");
}

/// Loading `name` fails, and the message holds `wanted`.
fn is_refused(name: &str, change: impl FnOnce(&Path), wanted: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let library = compiled(folder.path(), name);
    change(&library);
    let output = run(folder.path(), &["plugin", "add", library.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1), "{name} was added");
    let message = stderr(&output);
    for text in wanted {
        assert!(message.contains(text), "no `{text}` in {message}");
    }
}

#[test]
fn a_newer_abi_is_refused_with_both_versions() {
    is_refused("newer_abi", |_| {}, &["ABI 1.1000", "update kbit"]);
}

#[test]
fn another_major_abi_is_refused_without_running_anything() {
    is_refused("newer_major", |_| {}, &["kbit_plugin_entry_v"]);
}

#[test]
fn a_null_function_is_refused_by_name() {
    is_refused("wrong_descriptor", |_| {}, &["decode is NULL"]);
}

#[test]
fn the_wrong_architecture_is_refused_by_name() {
    let foreign = |library: &Path| {
        let mut bytes = std::fs::read(library).expect("a library");
        // e_machine: 183 is AArch64, 62 is x86-64.
        let other: u16 = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
        bytes[18..20].copy_from_slice(&other.to_le_bytes());
        std::fs::write(library, bytes).expect("written");
    };
    is_refused("crashes", foreign, &["built for", "this machine"]);
}

/// A run of `name` beside a good scheme: exit status 3, one failure that names the scheme, and the good file is there.
fn one_failure(name: &str, timeout: u32) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let library = compiled(folder.path(), name);
    let added = run(folder.path(), &["plugin", "add", library.to_str().expect("UTF-8")]);
    assert!(added.status.success(), "{}", stderr(&added));
    let scheme = name.replace('_', "-");
    let config = format!(
        "name: bad\nmodels: ['{}']\nschemes: ['{scheme}', 'ggml:q8_0']\nisolation: process\ntimeout_seconds: {timeout}\n\
         evaluate: {{ text: '{}', context: 128, chunks: 2 }}\nlaws: {{ bootstrap: 10 }}\n",
        repository("assets/family/s0"),
        repository("assets/text/prose.txt")
    );
    std::fs::write(folder.path().join("bad.yaml"), config).expect("written");
    let output = run(folder.path(), &["run", "bad.yaml", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let failures = result["failures"].as_array().expect("failures");
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(failures[0]["scheme"], Value::from(scheme));
    let files = folder.path().join("kbit-runs/bad/files/s0");
    let left: Vec<_> =
        std::fs::read_dir(files).expect("files").map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(left.iter().any(|name| name.to_string_lossy().contains("q8_0")), "{left:?}");
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
    let report = std::fs::read_to_string(folder.path().join("kbit-runs/bad/report.md")).expect("a report");
    assert!(report.contains("Failed"), "{report}");
    failures[0]["message"].as_str().expect("a message").to_owned()
}

#[test]
fn a_crash_is_one_failed_file_of_a_run() {
    let message = one_failure("crashes", 60);
    assert!(message.contains("SIGSEGV") && message.contains("tensor"), "{message}");
}

#[test]
fn a_hang_is_one_failed_file_of_a_run() {
    let message = one_failure("hangs", 1);
    assert!(message.contains("no answer within 1.0 s") && message.contains("tensor"), "{message}");
}

#[test]
fn a_panic_is_an_error_with_its_words_and_leaves_no_file() {
    let library = kbit_tests::kbit_path().with_file_name("libkbit_bad_panics.so");
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path().join("libkbit_scheme_panics.so");
    std::fs::copy(&library, &here).unwrap_or_else(|error| panic!("{}: {error}", library.display()));
    let added = run(folder.path(), &["plugin", "add", here.to_str().expect("UTF-8")]);
    assert!(added.status.success(), "{}", stderr(&added));
    for function in ["open", "plan", "begin", "encode"] {
        let scheme = format!("panics:in={function}");
        let output =
            run(folder.path(), &["convert", &repository("assets/family/s0"), "o.gguf", "--scheme", &scheme]);
        let message = stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{function}: {message}");
        assert!(
            message.contains(&format!("deliberate panic in {function}")) || function == "open",
            "{message}"
        );
        assert!(!folder.path().join("o.gguf").exists());
    }
    let output = run(
        folder.path(),
        &["convert", &repository("assets/family/s0"), "o.gguf", "--scheme", "panics:in=none"],
    );
    assert!(output.status.success(), "{}", stderr(&output));
}
