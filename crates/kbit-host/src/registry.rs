//! Which plugins there are, and which of them may be loaded.

use crate::call::Functions;
use crate::callbacks::{HostContext, HostTable, Isa, LogSink};
use crate::error::{HostError, nearest};
use crate::inspect::{MAX_FILE_BYTES, inspect};
use crate::load::{Loaded, SchemeText, StaticPlugin, load_bytes, load_static, sha256};
use crate::lock::{self, Added, Lock};
use crate::scheme::{Isolation, OpenScheme};
use crate::spec::{ParamInfo, ParamValues, check_values, resolve};
use crate::worker;
use kbit_types::GgmlType;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Where plugins come from and how they run.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Folders whose plugins (`libkbit_scheme_*.so`) are loaded without being pinned.
    pub trusted: Vec<PathBuf>,
    /// `plugins.lock`; `None` for no lock.
    pub lock: Option<PathBuf>,
    /// Files to load whatever they are called. They must be pinned or stand in a trusted folder; a failure is fatal.
    pub explicit: Vec<PathBuf>,
    /// Limit for the instruction sets of plugins.
    pub isa_limit: Isa,
    /// Command of a worker process: a program that calls [`crate::worker_main`], and its arguments.
    pub worker: Option<Vec<OsString>>,
    /// How long one call may take in a worker process.
    pub timeout: Duration,
    /// Set to true to make plugins stop.
    pub cancelled: Arc<AtomicBool>,
    /// Plugins that are part of the program.
    pub statics: Vec<StaticPlugin>,
}

impl Default for HostOptions {
    /// The executable's folder and its `../lib/kbit/plugins` trusted, the user's lock, no worker, ten minutes a call.
    fn default() -> Self {
        Self {
            trusted: default_folders(),
            lock: lock::default_path(),
            explicit: Vec::new(),
            isa_limit: Isa::Best,
            worker: None,
            timeout: Duration::from_secs(600),
            cancelled: Arc::default(),
            statics: Vec::new(),
        }
    }
}

fn default_folders() -> Vec<PathBuf> {
    let executable = std::env::current_exe().and_then(|path| path.canonicalize());
    let Some(folder) = executable.ok().and_then(|path| Some(path.parent()?.to_owned())) else {
        return Vec::new();
    };
    let installed = folder.parent().map(|parent| parent.join("lib").join("kbit").join("plugins"));
    [Some(folder), installed].into_iter().flatten().collect()
}

impl HostOptions {
    pub(crate) fn lock_path(&self) -> Option<PathBuf> {
        self.lock.clone()
    }

    pub(crate) fn table(&self, plugin: &str) -> &'static HostTable {
        let context = HostContext {
            cancelled: Arc::clone(&self.cancelled),
            log: LogSink::Tracing { plugin: plugin.to_owned() },
            threads: None,
        };
        HostTable::leak(context, self.isa_limit)
    }
}

/// A loaded plugin.
pub struct Plugin {
    path: PathBuf,
    sha256: String,
    pub(crate) loaded: Arc<Loaded>,
    /// Name among the program's own plugins.
    pub(crate) static_name: Option<&'static str>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("path", &self.path).field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Absolute path of the file; `static:NAME` for a plugin that is part of the program.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the file (of the program, for a plugin that is part of it), lower-case hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Reverse domain.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.loaded.text.id
    }

    /// Version of the plugin.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.loaded.text.version
    }

    /// Who made it.
    #[must_use]
    pub fn vendor(&self) -> &str {
        &self.loaded.text.vendor
    }

    /// Where to find it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.loaded.text.url
    }

    /// SPDX expression.
    #[must_use]
    pub fn license(&self) -> &str {
        &self.loaded.text.license
    }

    /// Last component of the path, for messages.
    #[must_use]
    pub fn file_name(&self) -> String {
        file_name(&self.path)
    }
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// What all schemes of a registry share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) worker: Option<Vec<OsString>>,
    pub(crate) timeout: Duration,
    pub(crate) cancelled: Arc<AtomicBool>,
    pub(crate) isa_limit: Isa,
}

/// A scheme of a loaded plugin.
pub struct Scheme {
    text: SchemeText,
    short_name: String,
    ggml_type: Option<GgmlType>,
    pub(crate) index: usize,
    pub(crate) functions: Functions,
    pub(crate) host: &'static HostTable,
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheme")
            .field("id", &self.text.id)
            .field("plugin", &self.plugin)
            .finish_non_exhaustive()
    }
}

impl Scheme {
    /// `org.example.name/1`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.text.id
    }

    /// What to write in a scheme argument: `int`, `ggml:q4_0`.
    #[must_use]
    pub fn short_name(&self) -> &str {
        &self.short_name
    }

    /// Short title.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.text.title
    }

    /// What it does.
    #[must_use]
    pub fn doc(&self) -> &str {
        &self.text.doc
    }

    /// Where it comes from.
    #[must_use]
    pub fn citation(&self) -> &str {
        &self.text.citation
    }

    /// The ggml type that it writes, if it writes one.
    #[must_use]
    pub fn ggml_type(&self) -> Option<GgmlType> {
        self.ggml_type
    }

    /// Its parameters.
    #[must_use]
    pub fn params(&self) -> &[ParamInfo] {
        &self.text.params
    }

    /// The plugin that it comes from.
    #[must_use]
    pub fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
    }

    /// Everything about it as JSON, for `plugin show --json`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.id(),
            "name": self.short_name(),
            "title": self.title(),
            "doc": self.doc(),
            "citation": self.citation(),
            "ggml_type": self.ggml_type.map(GgmlType::name),
            "params": self.params(),
            "plugin": {
                "id": self.plugin.id(),
                "version": self.plugin.version(),
                "vendor": self.plugin.vendor(),
                "url": self.plugin.url(),
                "license": self.plugin.license(),
                "path": self.plugin.path(),
                "sha256": self.plugin.sha256(),
            },
        })
    }

    /// Checks values against the declared parameters without asking for missing ones. They come back in their declared
    /// types.
    ///
    /// # Errors
    /// An unknown parameter or a value that it does not take.
    pub fn check_values(&self, given: &ParamValues) -> Result<ParamValues, HostError> {
        check_values(self.id(), self.params(), given)
    }

    /// Checks values and fills in the defaults.
    ///
    /// # Errors
    /// An unknown parameter, a value that it does not take, or a required one that is missing.
    pub fn resolve(&self, given: &ParamValues) -> Result<ParamValues, HostError> {
        resolve(self.id(), self.params(), given)
    }

    /// Opens the scheme with resolved values.
    ///
    /// # Errors
    /// Values that do not resolve or that the plugin refuses; a worker process that does not start.
    pub fn open(
        self: &Arc<Self>,
        params: &ParamValues,
        isolation: Isolation,
    ) -> Result<OpenScheme, HostError> {
        OpenScheme::open(self, self.resolve(params)?, isolation)
    }
}

/// The loaded plugins.
#[derive(Debug)]
pub struct Registry {
    plugins: Vec<Arc<Plugin>>,
    schemes: Vec<Arc<Scheme>>,
    failures: Vec<HostError>,
}

/// Why a file may be loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// It stands in a trusted folder, or is part of the program.
    Folder,
    /// Its hash is in the lock.
    Pinned,
}

/// A file that was read and hashed.
struct Candidate {
    path: PathBuf,
    bytes: Vec<u8>,
    sha256: String,
}

impl Candidate {
    /// Reads the file once. `path` becomes absolute.
    fn read(path: &Path) -> Result<Self, HostError> {
        let absolute = path.canonicalize().map_err(HostError::io("find", path))?;
        let mut file = std::fs::File::open(&absolute).map_err(HostError::io("open", &absolute))?;
        let meta = file.metadata().map_err(HostError::io("read", &absolute))?;
        let refuse =
            |reason: &str| HostError::NotAPlugin { path: absolute.clone(), reason: reason.to_owned() };
        if !meta.is_file() {
            return Err(refuse("not a file; give the shared library (.so)"));
        }
        if meta.len() > MAX_FILE_BYTES {
            return Err(refuse("larger than 1 GiB; strip it, or give the right file"));
        }
        let mut bytes = Vec::new();
        file.by_ref()
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(HostError::io("read", &absolute))?;
        let sha256 = sha256(&bytes);
        Ok(Self { path: absolute, bytes, sha256 })
    }

    fn trust(&self, lock: &Lock, trusted: &[PathBuf]) -> Result<Trust, HostError> {
        if let Some(pin) = lock.pin(&self.path)
            && pin.sha256 != self.sha256
        {
            return Err(HostError::PinChanged {
                path: self.path.clone(),
                locked: pin.sha256.clone(),
                found: self.sha256.clone(),
            });
        }
        if lock.plugins.iter().any(|pin| pin.sha256 == self.sha256) {
            return Ok(Trust::Pinned);
        }
        let in_trusted = self.path.parent().is_some_and(|folder| trusted.iter().any(|known| known == folder));
        if in_trusted && !writable_by_all(&self.path) {
            return Ok(Trust::Folder);
        }
        Err(HostError::NotTrusted { path: self.path.clone(), sha256: self.sha256.clone() })
    }
}

fn writable_by_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).map_or(true, |meta| meta.permissions().mode() & 0o002 != 0)
}

/// Plugins of a folder, by name.
fn plugin_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_plugin = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            name.starts_with("libkbit_scheme_")
                && Path::new(name)
                    .extension()
                    .is_some_and(|extension| extension == std::env::consts::DLL_EXTENSION)
        })
    };
    let mut files: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(is_plugin).collect();
    files.sort();
    files
}

impl Registry {
    /// Loads the program's own plugins, the explicit ones, those of the trusted folders and those of the lock. One that
    /// does not load is listed in [`Registry::failures`], unless it was given explicitly.
    ///
    /// # Errors
    /// An explicit plugin that does not load.
    pub fn load(options: &HostOptions) -> Result<Self, HostError> {
        let mut registry = Self { plugins: Vec::new(), schemes: Vec::new(), failures: Vec::new() };
        let shared = Arc::new(Shared {
            worker: options.worker.clone(),
            timeout: options.timeout,
            cancelled: Arc::clone(&options.cancelled),
            isa_limit: options.isa_limit,
        });
        // A lock that cannot be read trusts nobody.
        let lock =
            options.lock.as_deref().map_or_else(|| Ok(Lock::default()), Lock::read).unwrap_or_else(|error| {
                registry.failures.push(error);
                Lock::default()
            });
        let mut trusted: Vec<PathBuf> = Vec::new();
        for folder in &options.trusted {
            if let Ok(folder) = folder.canonicalize()
                && !trusted.contains(&folder)
            {
                trusted.push(folder);
            }
        }
        for path in &options.explicit {
            registry.add_file(path, &lock, &trusted, options, &shared)?;
        }
        for plugin in &options.statics {
            let host = options.table(plugin.name);
            match load_static(plugin, host) {
                Ok(loaded) => {
                    let path = PathBuf::from(format!("static:{}", plugin.name));
                    let sha256 = program_sha256().to_owned();
                    let plugin = Plugin { path, sha256, loaded, static_name: Some(plugin.name) };
                    registry.add_plugin(plugin, host, &shared);
                }
                Err(error) => registry.failures.push(error),
            }
        }
        let files = trusted.iter().flat_map(|folder| plugin_files(folder));
        let pinned = lock.plugins.iter().map(|pin| pin.path.clone());
        for path in files.chain(pinned) {
            if let Err(error) = registry.add_file(&path, &lock, &trusted, options, &shared) {
                registry.failures.push(error);
            }
        }
        Ok(registry)
    }

    fn add_file(
        &mut self,
        path: &Path,
        lock: &Lock,
        trusted: &[PathBuf],
        options: &HostOptions,
        shared: &Arc<Shared>,
    ) -> Result<(), HostError> {
        let candidate = Candidate::read(path)?;
        let trust = candidate.trust(lock, trusted)?;
        if self.plugins.iter().any(|plugin| plugin.sha256 == candidate.sha256) {
            return Ok(());
        }
        // What is as trusted as this program may crash it; anything else shows first that it loads.
        if trust == Trust::Pinned && options.worker.is_some() {
            inspect(&candidate.bytes)
                .map_err(|reason| HostError::NotAPlugin { path: candidate.path.clone(), reason })?;
            worker::describe(&candidate.path, &candidate.bytes, &candidate.sha256, options)?;
        }
        let host = options.table(&file_name(&candidate.path));
        let loaded = load_bytes(&candidate.path, &candidate.bytes, &candidate.sha256, host)?;
        // The program's own copy of a plugin stands for its file.
        if self.plugins.iter().any(|known| known.static_name.is_some() && known.id() == loaded.text.id) {
            return Ok(());
        }
        let plugin = Plugin { path: candidate.path, sha256: candidate.sha256, loaded, static_name: None };
        self.add_plugin(plugin, host, shared);
        Ok(())
    }

    fn add_plugin(&mut self, plugin: Plugin, host: &'static HostTable, shared: &Arc<Shared>) {
        let plugin = Arc::new(plugin);
        for (index, (text, functions)) in
            plugin.loaded.text.schemes.iter().zip(&plugin.loaded.functions).enumerate()
        {
            if let Some(first) = self.schemes.iter().find(|scheme| scheme.id() == text.id) {
                self.failures.push(HostError::Shadowed {
                    path: plugin.path.clone(),
                    id: text.id.clone(),
                    first: first.plugin.path.clone(),
                });
                continue;
            }
            self.schemes.push(Arc::new(Scheme {
                short_name: short_name(&text.id),
                ggml_type: text.ggml_type.and_then(GgmlType::from_id),
                text: text.clone(),
                index,
                functions: *functions,
                host,
                plugin: Arc::clone(&plugin),
                shared: Arc::clone(shared),
            }));
        }
        self.plugins.push(plugin);
    }

    /// The loaded plugins, in the order in which they were found.
    #[must_use]
    pub fn plugins(&self) -> &[Arc<Plugin>] {
        &self.plugins
    }

    /// All schemes, in the order of their plugins.
    pub fn schemes(&self) -> impl Iterator<Item = &Arc<Scheme>> {
        self.schemes.iter()
    }

    /// What did not load, and schemes that another plugin already provides.
    #[must_use]
    pub fn failures(&self) -> &[HostError] {
        &self.failures
    }

    /// The scheme of that name: a whole id, or its last dotted part or parts (`int`, `ggml:q4_0`), with or without the
    /// revision. Of several revisions the highest is meant.
    ///
    /// # Errors
    /// No such scheme (the message names the nearest), or several of different origin.
    pub fn scheme(&self, name: &str) -> Result<Arc<Scheme>, HostError> {
        let wanted = name.replace(':', ".");
        if let Some(scheme) = self.schemes.iter().find(|scheme| scheme.id() == wanted) {
            return Ok(Arc::clone(scheme));
        }
        let ends = |text: &str| {
            text == wanted || text.strip_suffix(wanted.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        let found: Vec<&Arc<Scheme>> =
            self.schemes.iter().filter(|scheme| ends(scheme.id()) || ends(split_id(scheme.id()).0)).collect();
        let Some(best) = found.iter().max_by_key(|scheme| split_id(scheme.id()).1) else {
            let names = self.schemes.iter().flat_map(|scheme| [scheme.short_name(), scheme.id()]);
            return Err(HostError::UnknownScheme { name: name.to_owned(), nearest: nearest(name, names) });
        };
        if found.iter().any(|scheme| split_id(scheme.id()).0 != split_id(best.id()).0) {
            let ids = found.iter().map(|scheme| scheme.id().to_owned()).collect();
            return Err(HostError::AmbiguousScheme { name: name.to_owned(), ids });
        }
        Ok(Arc::clone(best))
    }
}

/// Id without revision, and the revision.
fn split_id(id: &str) -> (&str, u32) {
    match id.rsplit_once('/') {
        Some((base, revision)) => (base, revision.parse().unwrap_or(0)),
        None => (id, 0),
    }
}

/// `org.kbit.int/1` is `int`; `org.kbit.ggml.q4_0/1` is `ggml:q4_0`.
fn short_name(id: &str) -> String {
    let parts: Vec<&str> = split_id(id).0.split('.').collect();
    match parts.as_slice() {
        [_, _, .., group, name] => format!("{group}:{name}"),
        [.., name] => (*name).to_owned(),
        [] => String::new(),
    }
}

/// Hash of the running program, which holds the static plugins.
fn program_sha256() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        let bytes = std::env::current_exe().and_then(std::fs::read).unwrap_or_default();
        sha256(&bytes)
    })
}

/// What a file is, for `plugin add`: nothing of it is trusted.
pub(crate) fn describe_untrusted(file: &Path, options: &HostOptions) -> Result<Added, HostError> {
    let candidate = Candidate::read(file)?;
    let inspection = inspect(&candidate.bytes)
        .map_err(|reason| HostError::NotAPlugin { path: candidate.path.clone(), reason })?;
    let text = if options.worker.is_some() {
        worker::describe(&candidate.path, &candidate.bytes, &candidate.sha256, options)?
    } else {
        let host = options.table(&file_name(&candidate.path));
        load_bytes(&candidate.path, &candidate.bytes, &candidate.sha256, host)?.text.clone()
    };
    Ok(Added {
        path: candidate.path,
        sha256: candidate.sha256,
        id: text.id,
        version: text.version,
        vendor: text.vendor,
        url: text.url,
        license: text.license,
        schemes: text.schemes.into_iter().map(|scheme| scheme.id).collect(),
        needs: inspection.needs,
        lock: PathBuf::new(),
    })
}

/// Reads, hashes and inspects a file for the conformance kit.
pub(crate) fn read_for_check(file: &Path) -> Result<(PathBuf, Vec<u8>, String), HostError> {
    let candidate = Candidate::read(file)?;
    Ok((candidate.path, candidate.bytes, candidate.sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_what_one_types() {
        assert_eq!(short_name("org.kbit.int/1"), "int");
        assert_eq!(short_name("org.kbit.ggml.q4_0/1"), "ggml:q4_0");
        assert_eq!(short_name("example.int/2"), "int");
    }

    #[test]
    fn the_current_folder_is_never_searched() {
        let options = HostOptions::default();
        assert!(options.trusted.iter().all(|folder| folder.is_absolute()));
    }
}
