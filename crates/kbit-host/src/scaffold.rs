//! `kbit plugin new`: a project that builds and passes the conformance kit as it stands.
//!
//! The files come from `templates/`, which are part of the program. C and C++ projects get a copy of the header; Rust
//! projects get the two small crates of the SDK in `vendor/`, so that they build without network and without a published
//! crate.

use crate::error::HostError;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Language of a plugin project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lang {
    /// Rust, through the SDK.
    Rust,
    /// C99.
    C,
    /// C++11.
    Cpp,
}

/// What [`new_project`] wrote.
#[derive(Clone, Debug, Serialize)]
pub struct Project {
    /// The project's folder.
    pub folder: PathBuf,
    /// Name of the scheme.
    pub name: String,
    /// Its language.
    pub lang: Lang,
    /// Files, relative to the folder.
    pub files: Vec<PathBuf>,
    /// The library that the build makes, relative to the folder.
    pub library: PathBuf,
    /// What to type next.
    pub commands: Vec<String>,
}

/// A file of a template: where it goes, and its text.
type File = (&'static str, &'static str);

const HEADER: &str = kbit_abi::HEADER;
const GIT_IGNORE: File = (".gitignore", "/build\n/target\n");

const C: &[File] = &[
    GIT_IGNORE,
    ("Makefile", include_str!("../templates/c/Makefile")),
    ("README.md", include_str!("../templates/c/README.md")),
    ("include/kbit_plugin.h", HEADER),
    ("src/scheme.c", include_str!("../templates/c/src/scheme.c")),
    ("tests/test_scheme.c", include_str!("../templates/c/tests/test_scheme.c")),
];

const CPP: &[File] = &[
    GIT_IGNORE,
    ("Makefile", include_str!("../templates/cpp/Makefile")),
    ("README.md", include_str!("../templates/c/README.md")),
    ("include/kbit_plugin.h", HEADER),
    ("src/scheme.cpp", include_str!("../templates/cpp/src/scheme.cpp")),
    ("tests/test_scheme.cpp", include_str!("../templates/cpp/tests/test_scheme.cpp")),
];

macro_rules! sdk {
    ($($file:literal),* $(,)?) => {
        [$((concat!("vendor/kbit-plugin/src/", $file), include_str!(concat!("../../kbit-plugin/src/", $file)))),*]
    };
}

const RUST: &[File] = &[
    GIT_IGNORE,
    ("Cargo.toml", include_str!("../templates/rust/Cargo.toml")),
    ("README.md", include_str!("../templates/rust/README.md")),
    ("src/lib.rs", include_str!("../templates/rust/src/lib.rs")),
    ("vendor/kbit-abi/Cargo.toml", include_str!("../templates/vendor/kbit-abi.toml")),
    ("vendor/kbit-abi/include/kbit_plugin.h", HEADER),
    ("vendor/kbit-abi/src/lib.rs", include_str!("../../kbit-abi/src/lib.rs")),
    ("vendor/kbit-plugin/Cargo.toml", include_str!("../templates/vendor/kbit-plugin.toml")),
];

/// Sources of the SDK; a test compares the list with the folder.
const SDK: &[File] =
    &sdk!["convert.rs", "describe.rs", "export.rs", "lib.rs", "pack.rs", "params.rs", "scheme.rs"];

/// Longest name: with the prefix it stays a comfortable file and scheme name.
const MAX_NAME: usize = 40;

/// Names that would collide with what kbit ships or with what has a meaning in arguments.
const TAKEN: [&str; 16] = [
    "ggml", "awq", "gptq", "hqq", "int", "float", "quantile", "dynamic", "mixed", "ternary", "trellis", "vq",
    "c-rtn", "none", "f32", "test",
];

fn check_name(name: &str) -> Result<(), HostError> {
    let wrong = |reason: String| Err(HostError::ScaffoldName { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > MAX_NAME {
        return wrong(format!("choose 1 to {MAX_NAME} characters"));
    }
    let well_formed = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.ends_with('-')
        && !name.contains("--");
    if !well_formed {
        return wrong(
            "use lower-case letters, digits and single dashes, a letter first, as my-scheme".to_owned(),
        );
    }
    if TAKEN.contains(&name) {
        return wrong("it is taken; choose another".to_owned());
    }
    Ok(())
}

/// `my-scheme` as a type: `MyScheme`.
fn type_name(name: &str) -> String {
    name.split('-')
        .map(|word| {
            let mut chars = word.chars();
            chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect::<String>()
        })
        .collect()
}

/// Writes a new project for the scheme `name` into `folder`, which must not exist or be empty.
///
/// # Errors
/// A name that cannot be used, a folder that holds something, or files that cannot be written.
pub fn new_project(folder: &Path, name: &str, lang: Lang) -> Result<Project, HostError> {
    check_name(name)?;
    match std::fs::read_dir(folder) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(HostError::ScaffoldExists { path: folder.to_owned() });
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => return Err(HostError::ScaffoldExists { path: folder.to_owned() }),
    }
    let ident = name.replace('-', "_");
    let file_name =
        format!("{}kbit_scheme_{ident}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let (files, library, build, test): (Vec<&File>, _, _, _) = match lang {
        Lang::C => (C.iter().collect(), format!("build/{file_name}"), "make", "make test"),
        Lang::Cpp => (CPP.iter().collect(), format!("build/{file_name}"), "make", "make test"),
        Lang::Rust => {
            let files = RUST.iter().chain(SDK).collect();
            (files, format!("target/release/{file_name}"), "cargo build --release", "cargo test")
        }
    };
    let (language, source) = match lang {
        Lang::Rust => ("Rust", "lib.rs"),
        Lang::C => ("C", "scheme.c"),
        Lang::Cpp => ("C++", "scheme.cpp"),
    };
    let type_name = type_name(name);
    let replacements = [
        ("@NAME@", name),
        ("@IDENT@", ident.as_str()),
        ("@TYPE@", type_name.as_str()),
        ("@LIBRARY@", library.as_str()),
        ("@LANG@", language),
        ("@SOURCE@", source),
        ("@VERSION@", env!("CARGO_PKG_VERSION")),
    ];
    for (path, text) in &files {
        let target = folder.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(HostError::io("create the folder", parent))?;
        }
        // What is copied from the SDK is no template.
        let copied = *text == HEADER || path.starts_with("vendor/") && !path.ends_with("Cargo.toml");
        let text = if copied {
            (*text).to_owned()
        } else {
            replacements.iter().fold((*text).to_owned(), |text, (token, value)| text.replace(token, value))
        };
        std::fs::write(&target, text).map_err(HostError::io("write", &target))?;
    }
    Ok(Project {
        folder: folder.to_owned(),
        name: name.to_owned(),
        lang,
        files: files.iter().map(|(path, _)| PathBuf::from(path)).collect(),
        commands: vec![
            format!("cd {}", folder.display()),
            build.to_owned(),
            test.to_owned(),
            format!("kbit plugin check {library}"),
            format!("kbit plugin add {library}"),
        ],
        library: PathBuf::from(library),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_sdk_files_is_complete() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kbit-plugin/src");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| format!("vendor/kbit-plugin/src/{}", entry.unwrap().file_name().to_string_lossy()))
            .collect();
        there.sort();
        let listed: Vec<&str> = SDK.iter().map(|(path, _)| *path).collect();
        assert_eq!(there, listed, "add the file to `SDK` in crates/kbit-host/src/scaffold.rs");
    }

    #[test]
    fn names_that_cannot_be_used_are_refused() {
        for name in ["", "My", "a b", "-a", "a-", "a--b", "../x", "1a", "a_b", "int", &"a".repeat(41), "ä"] {
            assert!(matches!(check_name(name), Err(HostError::ScaffoldName { .. })), "{name}");
        }
        for name in ["a", "my-scheme", "nf4-2"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        assert_eq!(type_name("my-scheme-2"), "MyScheme2");
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine"), "x").unwrap();
        let refused = new_project(folder.path(), "a", Lang::C);
        assert!(matches!(refused, Err(HostError::ScaffoldExists { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_placeholder_is_left() {
        for lang in [Lang::C, Lang::Cpp, Lang::Rust] {
            let folder = tempfile::tempdir().unwrap();
            let project = new_project(&folder.path().join("p"), "my-scheme", lang).unwrap();
            for file in &project.files {
                let text = std::fs::read_to_string(project.folder.join(file)).unwrap();
                for token in ["@NAME@", "@IDENT@", "@TYPE@", "@LIBRARY@", "@LANG@", "@SOURCE@", "@VERSION@"] {
                    assert!(!text.contains(token), "{token} in {}", file.display());
                }
            }
        }
    }
}
