//! A C or C++ compiler for tests: `$CC` and `$CXX`, else `cc` and `c++`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Copy)]
pub enum Language {
    C99,
    Cpp11,
}

impl Language {
    pub fn name(self) -> &'static str {
        match self {
            Self::C99 => "c99",
            Self::Cpp11 => "c++11",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::C99 => "c",
            Self::Cpp11 => "cpp",
        }
    }
}

/// A compiler that is there.
pub struct Compiler {
    program: OsString,
    language: Language,
}

impl Compiler {
    /// With the language's version and the header's folder.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(format!("-std={}", self.language.name()));
        command.arg("-I").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"));
        command
    }
}

/// The compiler of `language`; without one, says that the test is skipped.
#[expect(clippy::print_stderr, reason = "says what was skipped")]
pub fn compiler(language: Language) -> Option<Compiler> {
    let (variable, usual) = match language {
        Language::C99 => ("CC", "cc"),
        Language::Cpp11 => ("CXX", "c++"),
    };
    let program = std::env::var_os(variable).unwrap_or_else(|| usual.into());
    match Command::new(&program).arg("--version").output() {
        Ok(output) if output.status.success() => Some(Compiler { program, language }),
        _ => {
            eprintln!("skipped: no {} compiler; install one, or name it in ${variable}", language.name());
            None
        }
    }
}

/// A folder for what is compiled.
pub fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Compiles a program; `None` without a compiler.
pub fn compile(name: &str, text: &str, language: Language, flags: &[&str]) -> Option<PathBuf> {
    let compiler = compiler(language)?;
    let source = folder().join(format!("{name}.{}", language.suffix()));
    let binary = folder().join(name);
    std::fs::write(&source, text).unwrap();
    succeed(compiler.command().args(flags).arg("-o").arg(&binary).arg(&source));
    Some(binary)
}

/// Runs a command that must succeed, and gives what it prints.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs a program that must succeed.
pub fn run(binary: &Path) -> String {
    succeed(&mut Command::new(binary))
}
