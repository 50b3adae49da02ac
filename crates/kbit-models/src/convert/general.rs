//! `general.*` metadata that llama.cpp's converter derives from a folder: name, size label, sampling settings.

use super::OutputTensor;
use super::card::Card;
use super::config::{Config, read_object};
use crate::ModelError;
use kbit_formats::gguf::{Metadata, Value};
use serde_json::Value as Json;
use std::path::Path;

/// Sampling settings of generation_config.json: GGUF key, keys in the file, whether it is a whole number.
const SAMPLING: &[(&str, &[&str], bool)] = &[
    ("top_k", &["top_k"], true),
    ("top_p", &["top_p"], false),
    ("min_p", &["min_p"], false),
    ("xtc_probability", &["xtc_probability"], false),
    ("xtc_threshold", &["xtc_threshold"], false),
    ("temp", &["temperature"], false),
    ("penalty_last_n", &["penalty_last_n"], true),
    ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], false),
    ("mirostat", &["mirostat"], true),
    ("mirostat_tau", &["mirostat_tau"], false),
    ("mirostat_eta", &["mirostat_eta"], false),
];

/// Writes what generation_config.json recommends for sampling. A file that is not JSON is passed over, as the converter
/// does.
pub(super) fn write_sampling(folder: &Path, out: &mut Metadata) -> Result<(), ModelError> {
    let settings = match read_object(&folder.join("generation_config.json")) {
        Ok(Some(settings)) => settings,
        Ok(None) | Err(ModelError::Config { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    if let Some(Json::String(sequence)) = settings.get("sequence") {
        out.insert("general.sampling.sequence", Value::String(sequence.clone()));
    }
    for (key, names, whole) in SAMPLING {
        let Some(value) = names.iter().find_map(|name| settings.get(*name)) else { continue };
        #[expect(clippy::cast_possible_truncation, reason = "GGUF has these in single precision")]
        let value = if *whole {
            value.as_i64().and_then(|value| i32::try_from(value).ok()).map(Value::I32)
        } else {
            value.as_f64().map(|value| Value::F32(value as f32))
        };
        if let Some(value) = value {
            out.insert(format!("general.sampling.{key}"), value);
        }
    }
    Ok(())
}

/// Writes what the model is called: by its card, by its configuration where that has a name, and by its folder.
pub(super) fn write_name(
    path: &Path,
    config: &Config,
    named: Option<&str>,
    tensors: &[OutputTensor],
    out: &mut Metadata,
) {
    let parameters = tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
    let folder = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A path of someone's disk is no name.
    let own =
        config.get("_name_or_path").and_then(Json::as_str).filter(|name| name.matches('/').count() <= 1);
    let names: Vec<NameParts> =
        own.into_iter().chain([folder.as_str()]).map(|id| name_parts(id, parameters)).collect();
    let card = Card::read(path);
    let first = |part: &dyn Fn(&NameParts) -> Option<String>| names.iter().find_map(part);
    let full = || first(&|name| Some(title(&name.full)).filter(|title| !title.is_empty()));
    let name = named.map(str::to_owned).or_else(|| card.text(&["name", "model_name"])).or_else(full);
    out.insert("general.name", Value::String(name.unwrap_or_default()));
    for (key, value) in [
        ("author", card.text(&["author", "model_author", "model_creator"])),
        ("version", card.text(&["version", "model_version"]).or_else(|| first(&|name| name.version.clone()))),
        (
            "organization",
            card.text(&["organization", "model_organization"])
                .or_else(|| first(&|name| name.organization.as_deref().map(title))),
        ),
        (
            "finetune",
            card.text(&["finetune", "model_finetune"]).or_else(|| first(&|name| name.finetune.clone())),
        ),
        (
            "basename",
            card.text(&["basename", "model_basename", "model_type"])
                .or_else(|| first(&|name| name.basename.clone())),
        ),
        ("description", card.text(&["description", "model_description"])),
        (
            "size_label",
            card.text(&["size_label", "model_size_label"])
                .or_else(|| first(&|name| name.size_label.clone()))
                .or_else(|| Some(size_label(tensors))),
        ),
    ] {
        if let Some(value) = value {
            out.insert(format!("general.{key}"), Value::String(value));
        }
    }
    card.write_license(out);
    card.write_sources(parameters, out);
}

/// The title of a model's folder: hyphens to spaces, words in lower case capitalised, versions and numbers as they are.
pub(super) fn title(id: &str) -> String {
    if id.contains(' ') {
        return id.to_owned();
    }
    let word = |word: &str| {
        let is_version = word.strip_prefix('v').unwrap_or(word).starts_with(|c: char| c.is_ascii_digit());
        let is_lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        if is_version || !is_lower { word.to_owned() } else { capitalised(word) }
    };
    id.split('-').filter(|part| !part.is_empty()).map(word).collect::<Vec<_>>().join(" ")
}

/// Each run of letters with its first in upper case.
fn capitalised(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut within = false;
    for c in word.chars() {
        if within {
            out.push(c);
        } else {
            out.extend(c.to_uppercase());
        }
        within = c.is_alphabetic();
    }
    out
}

/// What the name of a model says: `SmolLM2-135M-Instruct-v0.2` has a base name, a size, a variant and a version.
///
/// Follows llama.cpp's `gguf-py/gguf/metadata.py`, whose `get_model_id_components` says which part is what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NameParts {
    /// Who made it: what stands before a slash.
    pub(super) organization: Option<String>,
    /// The whole name, without who made it.
    pub(super) full: String,
    pub(super) basename: Option<String>,
    pub(super) finetune: Option<String>,
    pub(super) version: Option<String>,
    pub(super) size_label: Option<String>,
}

/// What a part of a name may be.
#[derive(Clone, Copy, Default)]
struct Kinds {
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    /// The type that the weights are stored in.
    stored: bool,
}

impl Kinds {
    const fn count(self) -> u32 {
        self.basename as u32
            + self.size as u32
            + self.finetune as u32
            + self.version as u32
            + self.stored as u32
    }
}

/// The parts of a model's name; `parameters` tells its size from other numbers, where it is known.
pub(super) fn name_parts(id: &str, parameters: u64) -> NameParts {
    if id.contains(' ') {
        return NameParts { full: id.to_owned(), ..NameParts::default() };
    }
    let (organization, full) = match id.split_once('/') {
        Some((organization, full)) => (Some(organization).filter(|name| !name.starts_with('.')), full),
        None => (None, id),
    };
    let mut parts: Vec<String> = full.split('-').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let mut kinds = vec![Kinds::default(); parts.len()];
    for (index, (part, kinds)) in parts.iter_mut().zip(&mut kinds).enumerate() {
        if is_version(part) {
            kinds.version = true;
        } else if is_stored_type(part) {
            kinds.stored = true;
            *part = part.to_uppercase();
        } else if index > 0
            && let Some((label, weights)) = size_of(part)
        {
            *part = label;
            #[expect(clippy::cast_precision_loss, reason = "sizes are compared by their order of magnitude")]
            let fits = weights.is_none_or(|weights| {
                parameters == 0 || (weights - parameters as f64).abs() <= (7 * parameters / 8) as f64
            });
            if fits {
                kinds.size = true;
            } else {
                // Likely the length of a context.
                kinds.finetune = true;
                let unit = part.pop().map(|unit| unit.to_ascii_lowercase());
                part.extend(unit);
            }
        } else if index > 0 && ["chat", "instruct", "vision", "lora"].contains(&part.to_lowercase().as_str())
        {
            kinds.finetune = true;
        }
    }
    // Words for sizes count only where there is no number.
    let has_number = |part: &String| part.chars().any(|c| c.is_ascii_digit());
    if parts.iter().zip(&kinds).any(|(part, kinds)| kinds.size && has_number(part)) {
        for (part, kinds) in parts.iter().zip(&mut kinds) {
            kinds.size &= !part.chars().all(char::is_alphabetic);
        }
    }
    let mut at_start = true;
    for (part, kinds) in parts.iter().zip(&mut kinds) {
        let is_word = kinds.count() == 0 && part.starts_with(char::is_alphabetic);
        if at_start && (is_word || kinds.version) {
            kinds.basename = true;
        } else {
            at_start = false;
            kinds.finetune |= kinds.count() == 0;
        }
    }
    // A version at the end is none of the base name.
    for kinds in kinds.iter_mut().rev() {
        if !kinds.basename || kinds.count() < 2 {
            break;
        }
        kinds.basename = false;
    }
    let joined = |wanted: &dyn Fn(&Kinds) -> bool, once: bool| {
        let mut chosen: Vec<&str> = Vec::new();
        for (part, _) in parts.iter().zip(&kinds).filter(|(_, kinds)| wanted(kinds)) {
            if !once || !chosen.contains(&part.as_str()) {
                chosen.push(part);
            }
        }
        Some(chosen.join("-")).filter(|text| !text.is_empty())
    };
    let size_label = joined(&|kinds| kinds.size, true);
    let finetune = joined(&|kinds| kinds.finetune, false);
    let version = joined(&|kinds| kinds.version && !kinds.basename, false);
    let basename = joined(&|kinds| kinds.basename, false);
    // A base name alone says too little.
    let basename = basename.filter(|_| size_label.is_some() || finetune.is_some() || version.is_some());
    NameParts {
        organization: organization.map(str::to_owned),
        full: full.to_owned(),
        basename,
        finetune,
        version,
        size_label,
    }
}

/// `v0.2`, `iter1`, `3.1`.
fn is_version(part: &str) -> bool {
    let lower = part.to_ascii_lowercase();
    let rest = lower.strip_prefix("iter").or_else(|| lower.strip_prefix('v')).unwrap_or(&lower);
    rest.split('.').all(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// `Q4_K`, `iq2_xs`, `bf16`, `fp32`.
fn is_stored_type(part: &str) -> bool {
    let lower = part.to_ascii_lowercase();
    let float = lower.strip_prefix('b').unwrap_or(&lower);
    let float = float.strip_prefix("fp").or_else(|| float.strip_prefix('f'));
    if matches!(float, Some("16" | "32")) {
        return true;
    }
    let rest = lower.strip_prefix('i').unwrap_or(&lower).strip_prefix('q');
    let Some(rest) = rest.filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) else { return false };
    let mut rest = rest[1..].bytes();
    // Pairs of an underscore and one more character.
    loop {
        match (rest.next(), rest.next()) {
            (None, _) => return true,
            (Some(b'_'), Some(c)) if c.is_ascii_alphanumeric() || c == b'_' => {}
            _ => return false,
        }
    }
}

/// A part that names a size: in the usual form, and how many weights it stands for where that is a number.
fn size_of(part: &str) -> Option<(String, Option<f64>)> {
    const WORDS: &[&str] = &["small", "mini", "medium", "large", "xl", "xxl"];
    if WORDS.contains(&part.to_lowercase().as_str()) {
        return Some((part.to_owned(), None));
    }
    if !part.is_ascii() {
        return None;
    }
    // `A3B`, `8x7B`, `1_5B`, `7b1`.
    let bytes = part.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut at = match bytes.first()? {
        b'A' | b'a' => 1,
        _ => {
            let count = digits(0);
            if count > 0 && matches!(bytes.get(count), Some(b'x' | b'X')) { count + 1 } else { 0 }
        }
    };
    let whole = digits(at);
    if whole == 0 {
        return None;
    }
    at += whole;
    if matches!(bytes.get(at), Some(b'.' | b'_')) {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if !matches!(bytes.get(at)?.to_ascii_uppercase(), b'K' | b'M' | b'B' | b'T') {
        return None;
    }
    let rest = &part[at + 1..];
    let mut label = part.replace('_', ".");
    match rest.as_bytes() {
        [] => {}
        // BLOOM's 7b1 is 7.1b.
        [digit] if digit.is_ascii_digit() => label = format!("{}.{rest}{}", &label[..at], &label[at..=at]),
        _ => return None,
    }
    if label.as_bytes().get(label.len().wrapping_sub(2)).is_some_and(u8::is_ascii_digit) {
        let unit = label.pop()?;
        label.push(if unit.is_ascii_lowercase() { unit.to_ascii_uppercase() } else { unit });
    }
    let thousands = match label.as_bytes().last()? {
        b'K' => 1e3,
        b'M' => 1e6,
        b'B' => 1e9,
        _ => 1e12,
    };
    let number: Option<f64> = label[..label.len() - 1].parse().ok();
    Some((label, number.map(|number| number * thousands)))
}

/// The number of parameters in two digits or more; of a model with experts their number, and the size with one of them:
/// `135M`, `1.2B`, `8x7.2B`.
pub(super) fn size_label(tensors: &[OutputTensor]) -> String {
    let (mut shared, mut expert, mut experts, mut expert_tensors) = (0u64, 0u64, 0u64, 0u64);
    for tensor in tensors {
        let size = tensor.shape.iter().product::<u64>();
        match tensor.shape.as_slice() {
            [count, _, _, ..] if *count > 0 && tensor.name.contains("_exps.") => {
                expert += size / count;
                experts += count;
                expert_tensors += 1;
            }
            _ => shared += size,
        }
    }
    match experts.checked_div(expert_tensors) {
        Some(experts @ 1..) => format!("{experts}x{}", rounded(shared + expert)),
        _ => rounded(shared),
    }
}

/// A count in two digits or more.
#[expect(clippy::cast_precision_loss, reason = "two digits are written")]
fn rounded(parameters: u64) -> String {
    let count = parameters as f64;
    let (scaled, unit) = match count {
        count if count > 1e12 => (count * 1e-12, 'T'),
        count if count > 1e9 => (count * 1e-9, 'B'),
        count if count > 1e6 => (count * 1e-6, 'M'),
        count => (count * 1e-3, 'K'),
    };
    let rounded = format!("{scaled:.0}");
    let digits = rounded.trim_start_matches('0').len();
    format!("{scaled:.*}{unit}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_two_digits_or_more() {
        for (parameters, label) in [
            (180_672, "181K"),
            (134_515_008, "135M"),
            (1_235_814_400, "1.2B"),
            (9_400_000, "9.4M"),
            (8_030_261_248, "8.0B"),
            (70_553_706_496, "71B"),
            (400, "0.40K"),
        ] {
            assert_eq!(rounded(parameters), label);
        }
    }

    #[test]
    fn names_say_base_size_variant_and_version() {
        let parts = |id: &str, parameters| {
            let found = name_parts(id, parameters);
            [found.basename, found.size_label, found.finetune, found.version].map(Option::unwrap_or_default)
        };
        for (id, parameters, wanted) in [
            ("SmolLM2-135M-Instruct", 134_515_008, ["SmolLM2", "135M", "Instruct", ""]),
            ("Mistral-7B-Instruct-v0.3", 7_248_023_552, ["Mistral", "7B", "Instruct", "v0.3"]),
            ("Mixtral-8x7B-v0.1", 46_702_792_704, ["Mixtral", "8x7B", "", "v0.1"]),
            ("Phi-3-mini-4k-instruct", 3_821_079_552, ["Phi-3", "mini", "4k-instruct", ""]),
            ("bloom-7b1", 7_069_016_064, ["bloom", "7.1B", "", ""]),
            ("deepseek-v2", 100_000, ["deepseek", "", "", "v2"]),
            ("llama3-rope", 164_160, ["llama3-rope", "", "", ""].map(|_| "")),
            ("Qwen3-30B-A3B", 30_532_122_624, ["Qwen3", "30B-A3B", "", ""]),
            ("gemma-2-9b-it-Q4_K", 9_241_705_984, ["gemma-2", "9B", "it", ""]),
        ] {
            assert_eq!(parts(id, parameters), wanted, "{id}");
        }
        assert_eq!(name_parts("org/name-1B", 0).organization.as_deref(), Some("org"));
    }

    #[test]
    fn titles_keep_acronyms_and_versions() {
        assert_eq!(title("llama3-rope"), "Llama3 Rope");
        assert_eq!(title("SmolLM2-135M-instruct-v0.2"), "SmolLM2 135M Instruct v0.2");
        assert_eq!(title("s0-d1"), "S0 D1");
    }
}
