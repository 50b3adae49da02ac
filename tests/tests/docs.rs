//! Every command that the README and the guides show is run; every `cargo xtask` that they name exists.

use kbit_tests::{blocks, kbit_in, kbit_ok, root};
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A folder in which the commands of the docs find what they name: assets, configs, a finished quickstart.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["assets", "configs"] {
        std::os::unix::fs::symlink(root().join(name), folder.path().join(name)).expect("a link");
    }
    let small = "name: quickstart\nmodels: [assets/family/s0, assets/family/s1]\n\
                 schemes: ['ggml:q4_0', 'ggml:q8_0', {scheme: int, params: {bits: [3, 4, 5]}}]\n\
                 evaluate: {text: assets/text/prose.txt, context: 128, chunks: 2}\nlaws: {bootstrap: 20}\n";
    std::fs::write(folder.path().join("small.yaml"), small).expect("written");
    let _ = kbit_ok(folder.path(), &["run", "small.yaml"]);
    folder
}

fn run_line(folder: &Path, page: &str, line: &str) {
    let script = format!("set -e\nkbit() {{ '{}' \"$@\"; }}\n{line}\n", kbit_tests::kbit_path().display());
    let output =
        Command::new("bash").args(["-c", &script]).current_dir(folder).output().expect("bash starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{page}: `{line}` failed:\n{stderr}");
}

#[test]
fn every_command_shown_runs() {
    let usage = {
        let manifest = root().join("crates/xtask/src/main.rs");
        std::fs::read_to_string(manifest).expect("xtask")
    };
    let folder = workplace();
    for page in [
        "README.md",
        "docs/guide/convert.md",
        "docs/guide/calibrate.md",
        "docs/guide/mixes.md",
        "docs/guide/plan.md",
        "docs/guide/evaluate.md",
        "docs/guide/tasks.md",
        "docs/guide/compare.md",
        "docs/guide/report.md",
        "docs/guide/generate.md",
        "docs/guide/laws.md",
        "docs/guide/reproduce.md",
        "docs/benchmarks.md",
    ] {
        let mut ran = 0;
        for line in blocks(&read(page), "sh").iter().flat_map(|block| block.lines()) {
            if let Some(task) = line.strip_prefix("cargo xtask ") {
                assert!(
                    usage.contains(&format!("Some(\"{task}\")")),
                    "{page}: there is no `cargo xtask {task}`"
                );
            } else {
                run_line(folder.path(), page, line);
            }
            ran += 1;
        }
        assert!(ran > 1, "{page} shows no command");
    }
}

#[test]
fn every_configuration_shown_is_valid() {
    for page in ["README.md", "docs/guide/convert.md", "docs/guide/plan.md"] {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("configs")).expect("a folder");
        std::os::unix::fs::symlink(root().join("assets"), folder.path().join("assets")).expect("a link");
        for block in blocks(&read(page), "yaml") {
            let block = block
                .replace("path/to/model", "../assets/family/s0")
                .replace("some-text.txt", "../assets/text/prose.txt");
            std::fs::write(folder.path().join("configs/shown.yaml"), block).expect("written");
            let _ = kbit_ok(folder.path(), &["config", "check", "configs/shown.yaml"]);
        }
    }
}

#[test]
fn every_configuration_of_the_repository_is_valid() {
    let mut checked = 0;
    let folders =
        ["configs", "configs/tasks"].map(|folder| std::fs::read_dir(root().join(folder)).expect(folder));
    for entry in folders.into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            continue;
        }
        let _ = kbit_ok(&root(), &["config", "check", path.to_str().expect("UTF-8")]);
        checked += 1;
    }
    assert!(checked > 12);
}

#[test]
fn every_example_of_the_help_parses() {
    // `--help` after the arguments makes clap parse them and stop.
    for page in ["docs/reference/cli.md"] {
        let mut parsed = 0;
        for line in blocks(&read(page), "sh").iter().flat_map(|block| block.lines()) {
            let command = line.rsplit("| ").next().unwrap_or(line).split(" > ").next().unwrap_or(line);
            let script =
                format!("kbit() {{ '{}' \"$@\"; }}\n{command} --help", kbit_tests::kbit_path().display());
            let output = Command::new("bash").args(["-c", &script]).output().expect("bash starts");
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            parsed += 1;
        }
        assert!(parsed > 10, "{page} shows {parsed} examples");
    }
}

#[test]
fn the_pages_link_to_files_that_exist() {
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    for page in pages {
        let text = std::fs::read_to_string(&page).expect("a page");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or(target);
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let found = page.parent().expect("a folder").join(target);
            assert!(found.exists(), "{}: {target} does not exist", page.display());
        }
    }
}

#[test]
fn unknown_commands_end_with_status_2() {
    let status = kbit_in(&root()).arg("frobnicate").output().expect("kbit starts").status;
    assert_eq!(status.code(), Some(2));
}
