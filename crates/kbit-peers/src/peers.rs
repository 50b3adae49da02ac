//! Where the peers are, and how they come there: llama.cpp from the source package that the PyPI project `llama-cpp-python`
//! publishes, since a registry that stays is what a pinned version needs.

use crate::{Result, in_context, say};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PACKAGE: &str = "llama-cpp-python";
const VERSION: &str = "0.3.36";
const ARCHIVE: &str = "llama_cpp_python-0.3.36.tar.gz";
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
/// Folder of the archive, and of llama.cpp in it.
const SOURCE: &str = "llama_cpp_python-0.3.36/vendor/llama.cpp";

/// What is built; each becomes a file in `build/bin`.
const TOOLS: &[&str] = &[
    "llama-quantize",
    "llama-perplexity",
    "llama-imatrix",
    "llama-bench",
    "llama-gguf-split",
    "llama-tokenize",
];
const LIBRARY: &str = "libggml-base.so";

/// What `convert_hf_to_gguf.py` imports besides its own `gguf` package.
const PYTHON_PACKAGES: &[(&str, &str)] = &[
    ("torch", "torch==2.15.0"),
    ("transformers", "transformers==5.24.0"),
    ("sentencepiece", "sentencepiece==0.2.3"),
    ("gguf", "gguf==0.19.0"),
    ("google.protobuf", "protobuf==7.36.2"),
];

/// The folder of the peers.
pub struct Peers {
    folder: PathBuf,
}

impl Peers {
    /// `KBIT_PEERS`, or `peers` in cargo's target folder.
    pub fn locate() -> Self {
        let folder = env::var_os("KBIT_PEERS").map_or_else(|| target().join("peers"), PathBuf::from);
        Self { folder }
    }

    /// The folder, which also holds generated models and outputs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `libggml-base.so`.
    pub fn library(&self) -> PathBuf {
        self.folder.join("build/bin").join(LIBRARY)
    }

    /// A tool that is built.
    ///
    /// # Errors
    /// When it is not there.
    pub fn tool(&self, name: &str) -> Result<PathBuf> {
        present(self.folder.join("build/bin").join(name))
    }

    /// Python with the packages of the converter, and the converter.
    ///
    /// # Errors
    /// When either is not there.
    pub fn converter(&self) -> Result<(PathBuf, PathBuf)> {
        Ok((present(self.python())?, present(self.folder.join(SOURCE).join("convert_hf_to_gguf.py"))?))
    }

    fn python(&self) -> PathBuf {
        self.folder.join("venv/bin/python")
    }

    /// Fetches, builds and installs what is missing.
    ///
    /// # Errors
    /// A step that fails; the next call takes it up there. Python's packages are optional: a failure there is only said.
    pub fn provide(&self) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(in_context(self.folder.display()))?;
        let source = self.folder.join(SOURCE);
        if !source.join("CMakeLists.txt").exists() {
            self.fetch()?;
        }
        let built = |name: &str| self.folder.join("build/bin").join(name).exists();
        if TOOLS.iter().chain(&[LIBRARY]).all(|name| built(name)) {
            say(&format!("{}: built", self.folder.join("build/bin").display()));
        } else {
            self.build(&source)?;
        }
        self.check_flags()?;
        if let Err(message) = self.provide_python() {
            say(&format!(
                "without convert_hf_to_gguf.py (only `bench-peers --only convert` needs it): {message}"
            ));
        }
        Ok(())
    }

    fn fetch(&self) -> Result<()> {
        let archive = self.folder.join(ARCHIVE);
        let matches = |path: &Path| kbit_formats::hash::file_hex(path).is_ok_and(|found| found == SHA256);
        if !matches(&archive) {
            say(&format!("fetching {PACKAGE} {VERSION} from PyPI"));
            // pip checks the hash before it opens the archive.
            let requirements = self.folder.join("requirements.txt");
            fs::write(&requirements, format!("{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n"))
                .map_err(in_context(requirements.display()))?;
            run(Command::new("python3")
                .args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE])
                .arg("--require-hashes")
                .arg("--dest")
                .arg(&self.folder)
                .arg("--requirement")
                .arg(&requirements))?;
            if !matches(&archive) {
                return Err(format!("{}: not the package with SHA-256 {SHA256}", archive.display()));
            }
        }
        let partial = self.folder.join("unpacking");
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(in_context(partial.display()))?;
        }
        fs::create_dir_all(&partial).map_err(in_context(partial.display()))?;
        run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&partial))?;
        let top = SOURCE.split('/').next().unwrap_or(SOURCE);
        let place = self.folder.join(top);
        if place.exists() {
            fs::remove_dir_all(&place).map_err(in_context(place.display()))?;
        }
        fs::rename(partial.join(top), &place).map_err(in_context(place.display()))?;
        fs::remove_dir_all(&partial).map_err(in_context(partial.display()))
    }

    fn build(&self, source: &Path) -> Result<()> {
        let cmake = self.build_tool("cmake")?;
        let ninja = self.build_tool("ninja")?;
        let build = self.folder.join("build");
        say(&format!("building llama.cpp in {} (some minutes)", build.display()));
        let tiles = self.folder.join("tiles.h");
        fs::write(&tiles, include_str!("tiles.h")).map_err(in_context(tiles.display()))?;
        // GGML_NATIVE concerns the CPU backend alone; ggml-base, with the reference encoders, is plain C for the target.
        // Flags of the environment would reach it: they are cleared.
        run(without_flags(Command::new(&cmake).arg("-S").arg(source).arg("-B").arg(&build))
            .args(["-G", "Ninja"])
            .arg(format!("-DCMAKE_MAKE_PROGRAM={}", ninja.display()))
            .args(["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"])
            // So that a failed assertion inside of ggml can be reported as one.
            .arg("-DCMAKE_C_FLAGS=-fexceptions")
            .arg(format!("-DCMAKE_CXX_FLAGS=-include \"{}\"", tiles.display()))
            .args(["-DGGML_NATIVE=ON", "-DGGML_CCACHE=OFF"])
            .args(["-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF"])
            .args(["-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF"]))?;
        run(without_flags(Command::new(&cmake).arg("--build").arg(&build)).arg("--target").args(TOOLS))
    }

    /// cmake or ninja: the installed one, or PyPI's in a virtual environment.
    fn build_tool(&self, name: &str) -> Result<PathBuf> {
        if runs(Command::new(name).arg("--version")) {
            return Ok(PathBuf::from(name));
        }
        let tools = self.folder.join("build-tools");
        let tool = tools.join("bin").join(name);
        if !runs(Command::new(&tool).arg("--version")) {
            say(&format!("installing {name} from PyPI into {}", tools.display()));
            run(Command::new("python3").args(["-m", "venv"]).arg(&tools))?;
            run(Command::new(tools.join("bin/python")).args(["-m", "pip", "install", "--quiet", name]))?;
        }
        Ok(tool)
    }

    /// The reference encoders may not be compiled for this CPU: contraction to fused multiply-add changes their bytes.
    fn check_flags(&self) -> Result<()> {
        let path = self.folder.join("build/compile_commands.json");
        let text = fs::read_to_string(&path).map_err(in_context(path.display()))?;
        let flag = reference_flag(&text).map_err(in_context(path.display()))?;
        flag.map_or(Ok(()), |flag| {
            Err(format!(
                "{}: ggml-quants.c was compiled with {flag}, so its bytes are not the reference's; remove {} and run `cargo xtask peers` without that flag",
                path.display(),
                self.folder.join("build").display()
            ))
        })
    }

    fn provide_python(&self) -> Result<()> {
        let python = self.python();
        let names: Vec<_> = PYTHON_PACKAGES.iter().map(|(module, _)| format!("{module:?}")).collect();
        let find = format!(
            "import importlib.util, sys\nsys.exit(not all(importlib.util.find_spec(name) for name in [{}]))",
            names.join(", ")
        );
        if runs(Command::new(&python).args(["-c", &find])) {
            say(&format!("{}: installed", python.display()));
            return Ok(());
        }
        say("installing Python packages of convert_hf_to_gguf.py (some gigabytes)");
        run(Command::new("python3").args(["-m", "venv"]).arg(self.folder.join("venv")))?;
        let packages = PYTHON_PACKAGES.iter().map(|(_, requirement)| requirement);
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))
    }
}

/// Flags of the environment that cmake would hand to the compiler.
fn without_flags(command: &mut Command) -> &mut Command {
    ["CFLAGS", "CXXFLAGS", "CPPFLAGS"].iter().fold(command, |command, name| command.env_remove(name))
}

/// The flag for a particular CPU with which `ggml-quants.c` was compiled, from a compilation database.
fn reference_flag(database: &str) -> Result<Option<String>> {
    let entries: Vec<serde_json::Value> =
        serde_json::from_str(database).map_err(|error| error.to_string())?;
    let command = entries
        .iter()
        .find(|entry| entry["file"].as_str().is_some_and(|file| file.ends_with("/ggml-quants.c")))
        .and_then(|entry| entry["command"].as_str())
        .ok_or("it does not say how ggml-quants.c was compiled")?;
    let particular = |word: &&str| {
        ["-march", "-mtune", "-mfma", "-mavx", "-ffast-math", "-Ofast"]
            .iter()
            .any(|flag| word.starts_with(flag))
    };
    Ok(command.split_whitespace().find(particular).map(str::to_owned))
}

/// The package that llama.cpp comes from, with its version.
pub fn release() -> String {
    format!("{PACKAGE} {VERSION}")
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The repository's root.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

fn present(path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path);
    }
    Err(format!("{} is missing; run `cargo xtask peers`", path.display()))
}

fn runs(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a command whose output people see.
fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(in_context(format_args!("{name} cannot be run")))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed ({status})")) }
}

#[cfg(test)]
mod tests {
    use super::reference_flag;

    #[test]
    fn reference_code_for_one_cpu_is_found() {
        let database = |flags: &str| {
            format!(
                r#"[{{"file": "/x/ggml.c", "command": "cc -march=native"}}, {{"file": "/x/ggml-quants.c", "command": "cc -O3 {flags} -c x"}}]"#
            )
        };
        assert_eq!(reference_flag(&database("-fPIC")), Ok(None));
        assert_eq!(reference_flag(&database("-march=native")), Ok(Some("-march=native".to_owned())));
        assert!(reference_flag("[]").is_err());
    }
}
