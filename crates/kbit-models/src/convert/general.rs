//! `general.*` metadata that llama.cpp's converter derives from a folder: name, size label, sampling settings.

use super::OutputTensor;
use super::config::read_object;
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
    fn titles_keep_acronyms_and_versions() {
        assert_eq!(title("llama3-rope"), "Llama3 Rope");
        assert_eq!(title("SmolLM2-135M-instruct-v0.2"), "SmolLM2 135M Instruct v0.2");
        assert_eq!(title("s0-d1"), "S0 D1");
    }
}
