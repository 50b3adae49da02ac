//! New projects build with their own commands and pass the conformance kit as they stand.

use crate::{folder, run, worker};
use kbit_host::HostOptions;
use kbit_host::check::{CheckOptions, CheckReport, Outcome, cases, check};
use kbit_host::scaffold::{Lang, Project, new_project};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub fn check_options() -> CheckOptions {
    CheckOptions {
        host: HostOptions {
            worker: Some(worker()),
            lock: None,
            trusted: Vec::new(),
            ..HostOptions::default()
        },
        timeout: Duration::from_secs(60),
        ..CheckOptions::default()
    }
}

fn told(report: &CheckReport) -> String {
    let lines: Vec<String> = report
        .cases
        .iter()
        .filter(|case| case.outcome != Outcome::Pass)
        .map(|case| format!("{:?} {} {}: {}", case.outcome, case.scheme, case.name, case.message))
        .collect();
    lines.join("\n")
}

fn passes(project: &Project, name: &str) {
    let library = project.folder.join(&project.library);
    let report = check(&library, &check_options()).unwrap();
    assert!(report.passed(), "{}", told(&report));
    // Everything that applies to a scheme of one part in rows was looked at.
    let (passed, _, skipped) = report.counts();
    assert_eq!(passed + skipped, cases().len() + 2);
    let skips: Vec<&str> = report
        .cases
        .iter()
        .filter(|case| case.outcome == Outcome::Skip)
        .map(|case| case.name.as_str())
        .collect();
    assert_eq!(skips, ["dirty-scratch", "short-group", "dot", "decode-i8"]);
    assert_eq!(report.id.as_deref(), Some(format!("org.example.{name}").as_str()));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["kbit_check"], &json["cases"][0]["outcome"]), (&1.into(), &"pass".into()));
    let round_trip = report.cases.iter().find(|case| case.name == "round-trip").unwrap();
    assert_eq!(round_trip.figures["bits_per_weight"], 5.0);
    assert!(round_trip.figures["relative_mse"] < 0.02);
}

fn make(folder: &Path) {
    run(Command::new("make").current_dir(folder));
    run(Command::new("make").arg("test").current_dir(folder));
}

#[test]
fn a_new_c_project_builds_and_passes() {
    let project = new_project(&folder().join("new-c"), "my-c", Lang::C).unwrap();
    make(&project.folder);
    passes(&project, "my-c");
}

#[test]
fn a_new_cpp_project_builds_and_passes() {
    let project = new_project(&folder().join("new-cpp"), "my-cpp", Lang::Cpp).unwrap();
    make(&project.folder);
    passes(&project, "my-cpp");
}

#[test]
fn a_new_rust_project_builds_offline_and_passes() {
    let project = new_project(&folder().join("new-rust"), "my-rust", Lang::Rust).unwrap();
    let cargo = || {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&project.folder).env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
        command
    };
    run(cargo().args(["build", "--release", "--offline", "--quiet"]));
    run(cargo().args(["test", "--release", "--offline", "--quiet"]));
    passes(&project, "my-rust");
}
