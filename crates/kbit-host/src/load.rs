//! From a file's bytes to checked descriptors.
//!
//! Invariants:
//! - The bytes that were hashed and inspected are the bytes that are loaded: they go through a sealed memory file.
//! - A loaded library stays loaded until the process ends, so pointers out of its descriptors stay good. Loading the
//!   same bytes again gives the same library (found by hash).
//! - Descriptors are read within their `size`, each pointer is checked for NULL and alignment before it is followed;
//!   a pointer to nowhere cannot be told from a good one, so plugins that nobody trusts yet are described in a worker
//!   process first.
#![expect(unsafe_code, reason = "dynamic loading and reading of C descriptors")]

use crate::call::{Functions, invoke};
use crate::callbacks::HostTable;
use crate::error::HostError;
use crate::inspect::{ENTRY_SYMBOL, inspect};
use crate::memfd::{Image, sealed};
use crate::spec::{ParamInfo, ParamKind, ParamValue};
use kbit_abi as abi;
use kbit_types::GgmlType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a plugin says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PluginText {
    pub(crate) id: String,
    pub(crate) version: String,
    pub(crate) vendor: String,
    pub(crate) url: String,
    pub(crate) license: String,
    pub(crate) schemes: Vec<SchemeText>,
}

/// What a plugin says about one of its schemes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SchemeText {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) doc: String,
    pub(crate) citation: String,
    /// ggml's id of the type.
    pub(crate) ggml_type: Option<u32>,
    pub(crate) params: Vec<ParamInfo>,
}

/// A loaded library.
pub(crate) struct Loaded {
    /// The file's bytes in a sealed memory file, for worker processes; `None` for a plugin that is part of the program.
    pub(crate) image: Option<OwnedFd>,
    pub(crate) text: PluginText,
    /// In the order of `text.schemes`.
    pub(crate) functions: Vec<Functions>,
}

/// A plugin that is linked into the program; see the feature `static-plugins` of the binary.
#[derive(Clone, Copy, Debug)]
pub struct StaticPlugin {
    /// Name for messages.
    pub name: &'static str,
    /// Its entry function.
    pub entry: abi::EntryFn,
}

/// Lower-case hexadecimal SHA-256.
#[must_use]
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

type Libraries = Mutex<HashMap<String, Arc<Loaded>>>;

fn libraries() -> &'static Libraries {
    static LIBRARIES: OnceLock<Libraries> = OnceLock::new();
    LIBRARIES.get_or_init(Libraries::default)
}

/// Loads the library with these bytes, or finds it among those that are loaded. `path` is for messages.
///
/// # Errors
/// Every reason for which a plugin does not load.
pub(crate) fn load_bytes(
    path: &Path,
    bytes: &[u8],
    sha256: &str,
    host: &'static HostTable,
) -> Result<Arc<Loaded>, HostError> {
    // Held while loading: a library's entry function runs once.
    let mut known = libraries().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = known.get(sha256) {
        return Ok(Arc::clone(loaded));
    }
    inspect(bytes).map_err(|reason| HostError::NotAPlugin { path: path.to_owned(), reason })?;
    let name =
        path.file_name().map_or_else(|| "plugin".to_owned(), |name| name.to_string_lossy().into_owned());
    let image = Image::new(&name, bytes).map_err(HostError::io("copy into memory", path))?;
    let mut loaded = link(path, image, host)?;
    if loaded.image.is_none() {
        loaded.image = Some(sealed(&name, bytes, false).map_err(HostError::io("copy into memory", path))?);
    }
    let loaded = Arc::new(loaded);
    known.insert(sha256.to_owned(), Arc::clone(&loaded));
    Ok(loaded)
}

/// Registers a plugin that is part of the program.
pub(crate) fn load_static(plugin: &StaticPlugin, host: &'static HostTable) -> Result<Arc<Loaded>, HostError> {
    let key = format!("static:{}", plugin.name);
    let mut known = libraries().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = known.get(&key) {
        return Ok(Arc::clone(loaded));
    }
    // SAFETY: the program's own function of that type; its descriptors are statics.
    let loaded = Arc::new(unsafe { enter(&PathBuf::from(&key), plugin.entry, host)? });
    known.insert(key, Arc::clone(&loaded));
    Ok(loaded)
}

/// Maps the image, runs its entry function, and keeps both for good.
fn link(path: &Path, image: Image, host: &'static HostTable) -> Result<Loaded, HostError> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    let refused = |error: libloading::Error| {
        use std::error::Error as _;
        let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        // The linker names the memory file, which says nothing to the user.
        let reason = reason.replace(&*image.path().to_string_lossy(), &path.display().to_string());
        HostError::Link { path: path.to_owned(), reason }
    };
    // SAFETY: runs the library's initialisers; the user trusts the file (trusted folder, or pinned by hash), or this is
    // a worker process.
    let library = unsafe { Library::open(Some(image.path()), RTLD_NOW | RTLD_LOCAL) }.map_err(refused)?;
    // SAFETY: the ABI fixes the type of this symbol.
    let entry: abi::EntryFn =
        *unsafe { library.get::<abi::EntryFn>(ENTRY_SYMBOL.as_bytes()) }.map_err(refused)?;
    let kept = image.keep_for_good();
    // Its initialisers may have registered anything: even a refused library stays.
    std::mem::forget(library);
    // SAFETY: the entry function of a library that is never unloaded.
    let loaded = unsafe { enter(path, entry, host) }?;
    let image = kept.map(|descriptor| descriptor.try_clone_to_owned()).transpose();
    Ok(Loaded { image: image.map_err(HostError::io("copy into memory", path))?, ..loaded })
}

/// Runs the entry function, checks the descriptors, runs the self-test.
///
/// # Safety
/// `entry` is a plugin's entry function, and the plugin stays loaded.
unsafe fn enter(path: &Path, entry: abi::EntryFn, host: &'static HostTable) -> Result<Loaded, HostError> {
    let mut found: *const abi::Plugin = std::ptr::null();
    let mut text = [0u8; 1024];
    let mut err = abi::Err { text: text.as_mut_ptr().cast(), cap: text.len(), len: 0 };
    // SAFETY: by the caller's promise; the table is leaked and the error buffer lives for the call.
    let ((), change) = crate::fpenv::guarded(|| found = unsafe { entry(&raw const host.raw, &raw mut err) });
    let at =
        |at: &str, reason: String| HostError::Descriptor { path: path.to_owned(), at: at.to_owned(), reason };
    if let Some(change) = change {
        return Err(at(
            "the entry function",
            format!("it changes the floating-point environment ({change})"),
        ));
    }
    if found.is_null() {
        let said = crate::callbacks::printable(&text[..err.len.min(text.len())]);
        let message = if said.is_empty() { "it does not say why; ask its vendor".to_owned() } else { said };
        return Err(HostError::Refused { path: path.to_owned(), message });
    }
    // SAFETY: the entry function's result is a descriptor that lives until the process ends.
    let loaded = unsafe { describe(found) }.map_err(|(place, reason)| HostError::Descriptor {
        path: path.to_owned(),
        at: place,
        reason,
    })?;
    // SAFETY: `describe` has checked that this much of the descriptor is there.
    let raw = unsafe { read_grown::<abi::Plugin>(found, PLUGIN_MIN) };
    if let Some(self_test) = raw.ok().and_then(|raw| raw.self_test) {
        // SAFETY: a function of the loaded plugin, with an error buffer that lives for the call.
        invoke(|err| unsafe { self_test(err) }).map_err(|failure| HostError::SelfTest {
            path: path.to_owned(),
            message: match failure {
                crate::call::CallFailure::Status { text, .. } => text,
                crate::call::CallFailure::FloatEnvironment(change) => {
                    format!("it changes the floating-point environment ({change})")
                }
                other => format!("{other:?}"),
            },
        })?;
    }
    Ok(loaded)
}

/// Bytes of the structures up to the last field of ABI 1.0 that a plugin must have.
const PLUGIN_MIN: usize = std::mem::offset_of!(abi::Plugin, n_schemes) + size_of::<usize>();
const SCHEME_MIN: usize = std::mem::offset_of!(abi::Scheme, decode) + size_of::<usize>();
const PARAM_MIN: usize = std::mem::offset_of!(abi::Param, n_choices) + size_of::<usize>();
const VALUE_MIN: usize = std::mem::offset_of!(abi::Value, n_numbers) + size_of::<usize>();
/// A structure that claims to be larger is a wrong pointer.
const MAX_STRUCT: usize = 1 << 16;
/// Lists of descriptors, choices and numbers are no longer than this.
const MAX_LIST: usize = 4096;

/// Reads a structure whose first field is `size`: `min` bytes must be there, fields past its size are zero.
///
/// # Safety
/// `pointer` is NULL, or leads to a structure of that kind with `size` readable bytes. `T` is a structure of the ABI:
/// all-zero bytes are a valid value of it.
pub(crate) unsafe fn read_grown<T: Copy>(pointer: *const T, min: usize) -> Result<T, String> {
    if pointer.is_null() {
        return Err("a NULL pointer in place of a descriptor".to_owned());
    }
    if !pointer.is_aligned() {
        return Err("a descriptor that is not aligned".to_owned());
    }
    // SAFETY: aligned, and by the caller's promise at least the field `size` is there, which comes first.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size < min {
        return Err(format!("its size is {size} bytes, and ABI 1.0 has {min} at least (set .size = sizeof)"));
    }
    if size > MAX_STRUCT {
        return Err(format!("its size is {size} bytes, which cannot be right (set .size = sizeof)"));
    }
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: `size` bytes are readable by the caller's promise, and no more than T has are written.
    unsafe {
        std::ptr::copy_nonoverlapping(
            pointer.cast::<u8>(),
            value.as_mut_ptr().cast::<u8>(),
            size.min(size_of::<T>()),
        );
        Ok(value.assume_init())
    }
}

/// A string of a descriptor, which must be UTF-8 without control characters (line breaks are allowed where `lines`).
///
/// # Safety
/// `text` is NULL or leads to `len` readable bytes.
unsafe fn read_text(
    text: abi::Str,
    what: &str,
    min: usize,
    max: usize,
    lines: bool,
) -> Result<String, String> {
    if text.len > max {
        return Err(format!("{what} has {} bytes, and {max} are allowed", text.len));
    }
    if text.len < min {
        return Err(format!("{what} is missing"));
    }
    if text.len == 0 {
        return Ok(String::new());
    }
    if text.ptr.is_null() {
        return Err(format!("{what} is a NULL pointer with a length"));
    }
    // SAFETY: by the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len) };
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))?;
    if text.chars().any(|c| c.is_control() && !(lines && c == '\n')) {
        return Err(format!("{what} has control characters"));
    }
    Ok(text.to_owned())
}

/// Pointers of a list.
///
/// # Safety
/// `list` is NULL or leads to `count` readable pointers.
unsafe fn read_list<T: Copy>(list: *const T, count: usize, what: &str) -> Result<Vec<T>, String> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > MAX_LIST {
        return Err(format!("{count} {what}, and {MAX_LIST} are allowed"));
    }
    if list.is_null() || !list.is_aligned() {
        return Err(format!("the list of {what} is NULL or not aligned"));
    }
    // SAFETY: aligned, and by the caller's promise `count` entries are readable.
    Ok(unsafe { std::slice::from_raw_parts(list, count) }.to_vec())
}

/// True for `org.example.name`: at least two parts of a-z, 0-9, `-` and `_`, starting with a letter or digit.
fn is_reverse_domain(id: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    id.split('.').count() >= 2 && id.split('.').all(part)
}

/// True for `org.example.name/1`.
fn is_scheme_id(id: &str) -> bool {
    id.rsplit_once('/').is_some_and(|(name, revision)| {
        is_reverse_domain(name)
            && revision.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == revision)
    })
}

/// Reads and checks all descriptors. Errors: place and reason.
///
/// # Safety
/// `plugin` is a descriptor that an entry function gave.
unsafe fn describe(plugin: *const abi::Plugin) -> Result<Loaded, (String, String)> {
    let at_plugin = |reason: String| ("plugin".to_owned(), reason);
    // SAFETY: by the caller's promise, here and for all strings and lists below.
    let raw = unsafe { read_grown(plugin, PLUGIN_MIN) }.map_err(at_plugin)?;
    if raw.abi_minor > abi::ABI_MINOR {
        return Err(at_plugin(format!(
            "it needs ABI 1.{}, and this kbit has ABI 1.{}; update kbit, or use an older build of the plugin",
            raw.abi_minor,
            abi::ABI_MINOR
        )));
    }
    // SAFETY: see above.
    let text = |text, what: &str, min, max| unsafe { read_text(text, what, min, max, false) };
    let id = text(raw.id, "its id", 1, 128).map_err(at_plugin)?;
    if !is_reverse_domain(&id) {
        return Err(at_plugin(format!("its id {id:?} is not a reverse domain such as org.example.name")));
    }
    let mut loaded = Loaded {
        image: None,
        text: PluginText {
            id,
            version: text(raw.version, "its version", 1, 64).map_err(at_plugin)?,
            vendor: text(raw.vendor, "its vendor", 0, 256).map_err(at_plugin)?,
            url: text(raw.url, "its url", 0, 1024).map_err(at_plugin)?,
            license: text(raw.license, "its license", 0, 256).map_err(at_plugin)?,
            schemes: Vec::new(),
        },
        functions: Vec::new(),
    };
    // SAFETY: see above.
    let schemes = unsafe { read_list(raw.schemes, raw.n_schemes, "schemes") }.map_err(at_plugin)?;
    if schemes.is_empty() {
        return Err(at_plugin("it has no scheme".to_owned()));
    }
    for (index, scheme) in schemes.into_iter().enumerate() {
        // SAFETY: see above.
        let (text, functions) = unsafe { describe_scheme(scheme, index) }?;
        if loaded.text.schemes.iter().any(|other| other.id == text.id) {
            return Err((format!("scheme {}", text.id), "two schemes have this id".to_owned()));
        }
        loaded.text.schemes.push(text);
        loaded.functions.push(functions);
    }
    Ok(loaded)
}

/// # Safety
/// `scheme` is an entry of a plugin's list of schemes.
unsafe fn describe_scheme(
    scheme: *const abi::Scheme,
    index: usize,
) -> Result<(SchemeText, Functions), (String, String)> {
    let at_index = |reason: String| (format!("scheme {}", index + 1), reason);
    // SAFETY: by the caller's promise, here and for all strings and lists below.
    let raw = unsafe { read_grown(scheme, SCHEME_MIN) }.map_err(at_index)?;
    // SAFETY: see above.
    let id = unsafe { read_text(raw.id, "its id", 1, 128, false) }.map_err(at_index)?;
    if !is_scheme_id(&id) {
        return Err(at_index(format!("its id {id:?} is not of the form org.example.name/1")));
    }
    let at_scheme = |reason: String| (format!("scheme {id}"), reason);
    // SAFETY: see above.
    let text = |text, what: &str, min, max, lines| unsafe { read_text(text, what, min, max, lines) };
    let ggml_type = match raw.ggml_type {
        -1 => None,
        code => {
            let known = u32::try_from(code).ok().and_then(GgmlType::from_id);
            Some(
                known
                    .ok_or_else(|| at_scheme(format!("ggml_type {code} is neither -1 nor a type of ggml")))?
                    .id(),
            )
        }
    };
    let title = text(raw.title, "its title", 1, 256, false).map_err(at_scheme)?;
    let doc = text(raw.doc, "its doc", 1, 1 << 14, true).map_err(at_scheme)?;
    let citation = text(raw.citation, "its citation", 0, 4096, true).map_err(at_scheme)?;
    let functions = Functions::of(&raw).map_err(|name| at_scheme(format!("its function {name} is NULL")))?;
    let mut params: Vec<ParamInfo> = Vec::new();
    // SAFETY: see above.
    let list = unsafe { read_list(raw.params, raw.n_params, "parameters") }.map_err(at_scheme)?;
    for (index, param) in list.into_iter().enumerate() {
        // SAFETY: see above.
        let param = unsafe { describe_param(param) }.map_err(|(key, reason)| {
            let key = if key.is_empty() { (index + 1).to_string() } else { key };
            (format!("scheme {id}, parameter {key}"), reason)
        })?;
        if params.iter().any(|other| other.key == param.key) {
            return Err((
                format!("scheme {id}, parameter {}", param.key),
                "two parameters have this key".to_owned(),
            ));
        }
        params.push(param);
    }
    Ok((SchemeText { id, title, doc, citation, ggml_type, params }, functions))
}

/// # Safety
/// `param` is an entry of a scheme's list of parameters.
unsafe fn describe_param(param: *const abi::Param) -> Result<ParamInfo, (String, String)> {
    let nameless = |reason: String| (String::new(), reason);
    // SAFETY: by the caller's promise, here and for all strings and lists below.
    let raw = unsafe { read_grown(param, PARAM_MIN) }.map_err(nameless)?;
    // SAFETY: see above.
    let key = unsafe { read_text(raw.key, "its key", 1, 64, false) }.map_err(nameless)?;
    let at = |reason: String| (key.clone(), reason);
    let well_formed = key.starts_with(|c: char| c.is_ascii_lowercase())
        && key.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !well_formed {
        return Err(at("its key is not of the form [a-z][a-z0-9_]*".to_owned()));
    }
    // SAFETY: see above.
    let text = |text, what: &str, min, max| unsafe { read_text(text, what, min, max, true) };
    let doc = text(raw.doc, "its doc", 1, 4096).map_err(at)?;
    let unit = text(raw.unit, "its unit", 0, 64).map_err(at)?;
    // SAFETY: see above.
    let choices = unsafe { read_list(raw.choices, raw.n_choices, "choices") }.map_err(at)?;
    if raw.r#type != abi::PARAM_CHOICE && !choices.is_empty() {
        return Err(at("it lists choices, but its type is not KBIT_CHOICE".to_owned()));
    }
    let limits = || {
        if raw.min.is_nan() || raw.max.is_nan() || raw.min > raw.max {
            return Err(at(format!("its range {}..={} is empty", raw.min, raw.max)));
        }
        Ok((raw.min, raw.max))
    };
    let kind = match raw.r#type {
        abi::PARAM_BOOL => ParamKind::Bool,
        abi::PARAM_INT => {
            let (min, max) = limits()?;
            let whole = |value: f64| value.is_infinite() || value.fract() == 0.0;
            if !whole(min) || !whole(max) {
                return Err(at(format!("its range {min}..={max} does not have whole limits")));
            }
            // Conversion saturates: infinities become the ends of the type.
            #[expect(clippy::cast_possible_truncation, reason = "whole, and saturating is meant")]
            let (min, max) = (min as i64, max as i64);
            ParamKind::Int { min, max }
        }
        abi::PARAM_FLOAT => {
            let (min, max) = limits()?;
            ParamKind::Float { min: min.max(f64::MIN), max: max.min(f64::MAX) }
        }
        abi::PARAM_STRING => ParamKind::Str,
        abi::PARAM_CHOICE => {
            let mut words: Vec<String> = Vec::with_capacity(choices.len());
            for choice in choices {
                let word = text(choice, "a choice", 1, 64).map_err(at)?;
                if words.contains(&word) {
                    return Err(at(format!("the choice {word} stands twice")));
                }
                words.push(word);
            }
            if words.is_empty() {
                return Err(at("it is a choice without choices".to_owned()));
            }
            ParamKind::Choice { choices: words }
        }
        abi::PARAM_NUMBERS => ParamKind::Numbers,
        code => return Err(at(format!("its type {code} is not one of ABI 1"))),
    };
    if raw.required > 1 {
        return Err(at(format!("required is {}, and 0 or 1 is allowed", raw.required)));
    }
    let mut info =
        ParamInfo { key: key.clone(), doc, unit, kind, default: None, required: raw.required == 1 };
    match (raw.fallback.is_null(), info.required) {
        (true, true) => {}
        (true, false) => return Err(at("it is neither required nor has a default".to_owned())),
        (false, true) => return Err(at("it is required and has a default".to_owned())),
        (false, false) => {
            // SAFETY: see above.
            let value =
                unsafe { read_value(raw.fallback) }.map_err(|reason| at(format!("default: {reason}")))?;
            let same_type = value.0 == raw.r#type;
            match info.accept(&value.1).filter(|_| same_type) {
                Some(accepted) => info.default = Some(accepted),
                None => return Err(at(format!("its default {} is not {}", value.1, info.values()))),
            }
        }
    }
    Ok(info)
}

/// A value and its type's code.
///
/// # Safety
/// `value` is the default of a parameter.
unsafe fn read_value(value: *const abi::Value) -> Result<(u32, ParamValue), String> {
    // SAFETY: by the caller's promise, here and below.
    let raw = unsafe { read_grown(value, VALUE_MIN) }?;
    let value = match raw.r#type {
        abi::PARAM_BOOL => ParamValue::Bool(raw.i != 0),
        abi::PARAM_INT => ParamValue::Int(raw.i),
        abi::PARAM_FLOAT => ParamValue::Float(raw.f),
        abi::PARAM_STRING | abi::PARAM_CHOICE => {
            // SAFETY: see above.
            ParamValue::Str(unsafe { read_text(raw.s, "text", 0, 4096, false) }?)
        }
        abi::PARAM_NUMBERS => {
            // SAFETY: see above.
            ParamValue::Numbers(unsafe { read_list(raw.numbers, raw.n_numbers, "numbers") }?)
        }
        code => return Err(format!("type {code} is not one of ABI 1")),
    };
    Ok((raw.r#type, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_reverse_domains_with_a_revision() {
        for id in ["org.kbit.int/1", "org.kbit.ggml.q4_0/1", "com.example.c-rtn/12"] {
            assert!(is_scheme_id(id), "{id}");
        }
        for id in [
            "int/1",
            "org.kbit.int",
            "org.kbit.int/0",
            "org.kbit.int/01",
            "org..int/1",
            "Org.kbit/1",
            "org.k bit/1",
            "org.kbit/x",
        ] {
            assert!(!is_scheme_id(id), "{id}");
        }
    }

    #[test]
    fn hashes_as_the_standard_says() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn structures_are_read_within_their_size() {
        let mut value = abi::Value {
            size: VALUE_MIN,
            key: abi::Str::EMPTY,
            r#type: abi::PARAM_INT,
            i: 7,
            f: 0.0,
            s: abi::Str::EMPTY,
            numbers: std::ptr::null(),
            n_numbers: 3,
        };
        // SAFETY: a live structure.
        let read = |value: &abi::Value| unsafe {
            read_grown::<abi::Value>(value, std::mem::offset_of!(abi::Value, f))
        };
        assert_eq!(read(&value).unwrap().n_numbers, 3);
        value.size = std::mem::offset_of!(abi::Value, f);
        let short = read(&value).unwrap();
        assert_eq!((short.i, short.n_numbers), (7, 0));
        value.size = 4;
        assert!(read(&value).err().is_some_and(|reason| reason.contains("4 bytes")));
        value.size = usize::MAX;
        assert!(read(&value).is_err());
    }
}
