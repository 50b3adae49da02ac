//! The measurement record: JSON lines that fit and report read. `docs/results-schema.md` describes every field.
//!
//! `results.jsonl` holds figures that repeat ([`Measurement`]), `items.jsonl` the values behind them, one a window or item
//! ([`Items`]), `samples.jsonl` generated texts ([`Sample`]), `costs.jsonl` seconds and memory ([`Cost`]). Fields keep their order,
//! so equal measurements are equal lines. A line with an unknown field or another schema version is refused.
#![forbid(unsafe_code)]

mod items;

pub use items::{Items, Sample};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Version of the records.
pub const SCHEMA: u32 = 1;

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Name in tables.
    pub id: String,
    /// Architecture, as GGUF names it.
    pub architecture: String,
    /// Number of weights N.
    pub params: u64,
    /// Training tokens D, where known.
    pub tokens: Option<u64>,
    /// Training compute C in FLOPs, where known.
    pub flops: Option<f64>,
}

/// A scheme with its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemeInfo {
    /// Name in tables, as `int:bits=4,block=64`; `none` for the unquantized model.
    pub label: String,
    /// Scheme id.
    pub id: String,
    /// Family that laws are fitted to: the scheme's short name.
    pub family: String,
    /// Every parameter with its value.
    pub params: BTreeMap<String, serde_json::Value>,
    /// Nominal bits a weight k.
    pub bits: Option<f64>,
}

/// True bits a weight, scales included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bpw {
    /// Of all tensors.
    pub file: f64,
    /// Without embedding and output.
    pub decoder: f64,
}

/// A text or task that was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataInfo {
    /// Name.
    pub name: String,
    /// SHA-256 of the text; of a task, of its definition and its data.
    pub sha256: String,
    /// Tokens in a window, of a text.
    pub context: Option<u64>,
    /// Tokens from one window to the next, of a text whose windows overlap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<u64>,
    /// Windows, of a text.
    pub chunks: Option<u64>,
}

/// How far a figure is from the unquantized model's, item by item.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Mean difference, this model's less the unquantized one's, in the figure's unit.
    pub value: f64,
    /// Standard error of the paired differences.
    pub stderr: Option<f64>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Model.
    pub model: ModelInfo,
    /// Scheme.
    pub scheme: SchemeInfo,
    /// True bits a weight.
    pub bpw: Bpw,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bits of all tensors.
    pub total_bits: f64,
    /// Metric: `perplexity`, `nll` (nats a token), `bits_per_byte`, `kl_divergence` (nats), `same_top` (share), `tensor_relative_mse`, ...
    pub metric: String,
    /// Tensor, for metrics of one tensor.
    pub tensor: Option<String>,
    /// Value.
    pub value: f64,
    /// Standard error.
    pub stderr: Option<f64>,
    /// Difference from the unquantized model on the same items, where the metric has one and the model is quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// Tokens, items or weights behind the value.
    pub count: u64,
    /// Seed of the sampling, of figures of generated text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Arithmetic of the engine.
    pub mode: String,
    /// Types of the engine's KV cache. Records of before there was a choice have none, which means f32.
    #[serde(default = "f32_cache")]
    pub cache_type: String,
    /// Text.
    pub data: Option<DataInfo>,
    /// SHA-256 of the file.
    pub file_sha256: Option<String>,
}

/// What cached keys and values were before there was a choice.
fn f32_cache() -> String {
    "f32".to_owned()
}

impl Measurement {
    /// How the engine computed, in words: the mode, and the types of the KV cache where they are not f32.
    #[must_use]
    pub fn arithmetic(&self) -> String {
        arithmetic(&self.mode, &self.cache_type)
    }

    /// What was measured, in words: metric, tensor, model, scheme, text and arithmetic.
    #[must_use]
    pub fn describe(&self) -> String {
        let tensor = self.tensor.as_ref().map_or_else(String::new, |tensor| format!(" of {tensor}"));
        let text = self.data.as_ref().map_or_else(String::new, |data| format!(" on {}", data.name));
        format!(
            "{}{tensor} of {} {}{text} in {}",
            self.metric,
            self.model.id,
            self.scheme.label,
            self.arithmetic()
        )
    }
}

fn arithmetic(mode: &str, cache_type: &str) -> String {
    if cache_type == f32_cache() { mode.to_owned() } else { format!("{mode}, {cache_type} cache") }
}

/// What a step took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Model.
    pub model: ModelInfo,
    /// Scheme.
    pub scheme: SchemeInfo,
    /// `convert`, `perplexity` or `kl_divergence`.
    pub stage: String,
    /// Arithmetic of the engine, of stages that use it.
    #[serde(default)]
    pub mode: Option<String>,
    /// Types of the engine's KV cache, of stages that use it.
    #[serde(default)]
    pub cache_type: Option<String>,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: Option<f64>,
    /// Peak resident memory of the process so far (VmHWM), in bytes.
    pub peak_rss_bytes: Option<u64>,
    /// Energy of the machine's processors meanwhile, in joules, where the system tells it; of measurements only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules: Option<f64>,
}

impl Cost {
    /// The stage; with how the engine computed, as of a [`Measurement`], where that was not the usual f32.
    #[must_use]
    pub fn title(&self) -> String {
        let f32_cache = f32_cache();
        let (mode, cache_type) =
            (self.mode.as_deref().unwrap_or("f32"), self.cache_type.as_deref().unwrap_or(&f32_cache));
        match arithmetic(mode, cache_type) {
            usual if usual == "f32" => self.stage.clone(),
            other => format!("{} ({other})", self.stage),
        }
    }
}

/// A record with a schema version.
pub trait Record: Serialize + DeserializeOwned {
    /// Its version.
    fn schema(&self) -> u32;
}

impl Record for Measurement {
    fn schema(&self) -> u32 {
        self.schema
    }
}

impl Record for Cost {
    fn schema(&self) -> u32 {
        self.schema
    }
}

/// Records that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The system refused.
    #[error("{}: {error}; give the path of a results.jsonl file", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// A line is not a record.
    #[error("{}:{line}: {message}; remove the line, or run the measurement again", path.display())]
    Line {
        /// File.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A file without a record.
    #[error(
        "{}: no measurement is in it; `kbit run` with `evaluate:` in its configuration writes some to results.jsonl and items.jsonl",
        path.display()
    )]
    Empty {
        /// File.
        path: PathBuf,
    },
    /// Two measurements of the same thing that differ.
    #[error(
        "{what} is {} in {} and {} in {}: one of them is of other files or of another kbit; measure again, or leave one out",
        values[0], places[0], values[1], places[1]
    )]
    Contradiction {
        /// What was measured, in words.
        what: String,
        /// The two values.
        values: [f64; 2],
        /// Files with lines.
        places: [String; 2],
    },
}

/// Reads all records of `path`; empty lines are skipped.
///
/// # Errors
/// The first line that is not a record of this version.
pub fn read<T: Record>(path: &Path) -> Result<Vec<T>, ResultsError> {
    Ok(read_numbered(path)?.into_iter().map(|(_, record)| record).collect())
}

/// As [`read`], each record with its line, from 1.
///
/// # Errors
/// As [`read`].
pub fn read_numbered<T: Record>(path: &Path) -> Result<Vec<(usize, T)>, ResultsError> {
    let io = |error| ResultsError::Io { path: path.to_owned(), error };
    let file = File::open(path).map_err(io)?;
    let mut records = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(io)?;
        if line.trim().is_empty() {
            continue;
        }
        let fail = |message: String| ResultsError::Line { path: path.to_owned(), line: index + 1, message };
        let record: T = serde_json::from_str(&line).map_err(|error| fail(why(&line, &error)))?;
        if record.schema() != SCHEMA {
            return Err(fail(other_schema(record.schema().into())));
        }
        records.push((index + 1, record));
    }
    Ok(records)
}

fn other_schema(found: u64) -> String {
    format!("schema {found} where this kbit reads {SCHEMA}: read it with the kbit that wrote it")
}

/// Why a line is no record: cut off, of another version (whose fields may differ), or wrong.
fn why(line: &str, error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "the line is cut off, as by an interruption or a full disk".to_owned();
    }
    let schema =
        serde_json::from_str::<serde_json::Value>(line).ok().and_then(|value| value.get("schema")?.as_u64());
    match schema {
        Some(found) if found != u64::from(SCHEMA) => other_schema(found),
        _ => error.to_string(),
    }
}

/// Figures repeat for any thread count and CPU; what differs by more than this share is not the same measurement.
const NOISE: f64 = 1e-6;

/// True where two figures of the same thing differ beyond rounding.
#[must_use]
pub fn contradict(one: f64, other: f64) -> bool {
    (one - other).abs() > NOISE * one.abs().max(other.abs())
}

/// Measurements of several files, put together as [`merge`] does.
///
/// # Errors
/// As [`read`]; a file without any measurement; and two measurements of the same thing whose values differ beyond rounding.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Measurement>, ResultsError> {
    let mut seen: HashMap<Key, (String, f64)> = HashMap::new();
    let mut sets = Vec::new();
    for path in paths {
        let found = read_numbered::<Measurement>(path)?;
        if found.is_empty() {
            return Err(ResultsError::Empty { path: path.clone() });
        }
        for (line, measurement) in &found {
            let place = format!("{}:{line}", path.display());
            let (first, value) =
                seen.entry(key(measurement)).or_insert_with(|| (place.clone(), measurement.value));
            if contradict(*value, measurement.value) {
                return Err(ResultsError::Contradiction {
                    what: measurement.describe(),
                    values: [*value, measurement.value],
                    places: [first.clone(), place],
                });
            }
        }
        sets.push(found.into_iter().map(|(_, measurement)| measurement).collect());
    }
    Ok(merge(sets))
}

/// Writes `records` to `path`, one a line; the file appears whole.
///
/// # Errors
/// When it cannot be written.
pub fn write<T: Record>(path: &Path, records: &[T]) -> Result<(), ResultsError> {
    let mut text = String::new();
    let io = |error| ResultsError::Io { path: path.to_owned(), error };
    for record in records {
        text += &serde_json::to_string(record).map_err(|error| io(error.into()))?;
        text.push('\n');
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&temporary, path)).map_err(io)
}

/// What makes two measurements measurements of the same thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    model: String,
    scheme: String,
    metric: String,
    tensor: Option<String>,
    mode: String,
    cache_type: String,
    seed: Option<u64>,
    /// Digest of the text or task, context, stride and chunks.
    data: Option<(String, [Option<u64>; 3])>,
}

/// The key of a measurement.
#[must_use]
pub fn key(measurement: &Measurement) -> Key {
    Key {
        model: measurement.model.id.clone(),
        scheme: measurement.scheme.label.clone(),
        metric: measurement.metric.clone(),
        tensor: measurement.tensor.clone(),
        mode: measurement.mode.clone(),
        cache_type: measurement.cache_type.clone(),
        seed: measurement.seed,
        data: measurement
            .data
            .as_ref()
            .map(|data| (data.sha256.clone(), [data.context, data.stride, data.chunks])),
    }
}

/// Puts several sets together: of two measurements of the same thing, the later one counts, in the earlier one's place.
#[must_use]
pub fn merge(sets: impl IntoIterator<Item = Vec<Measurement>>) -> Vec<Measurement> {
    let mut merged: Vec<Measurement> = Vec::new();
    let mut places = HashMap::new();
    for measurement in sets.into_iter().flatten() {
        match places.entry(key(&measurement)) {
            std::collections::hash_map::Entry::Occupied(place) => merged[*place.get()] = measurement,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(measurement);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(label: &str, value: f64) -> Measurement {
        Measurement {
            schema: SCHEMA,
            model: ModelInfo {
                id: "m".into(),
                architecture: "llama".into(),
                params: 10,
                tokens: Some(5),
                flops: None,
            },
            scheme: SchemeInfo {
                label: label.into(),
                id: "org.kbit.int/1".into(),
                family: "int".into(),
                params: BTreeMap::from([("bits".into(), 4.into())]),
                bits: Some(4.0),
            },
            bpw: Bpw { file: 4.25, decoder: 4.25 },
            bytes: 100,
            total_bits: 800.0,
            metric: "perplexity".into(),
            tensor: None,
            value,
            stderr: Some(0.1),
            difference: None,
            count: 7,
            seed: None,
            mode: "f32".into(),
            cache_type: "f32".into(),
            data: None,
            file_sha256: None,
        }
    }

    #[test]
    fn records_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let records = [measurement("a", 0.1 + 0.2), measurement("b", 1e-300)];
        write(&path, &records).unwrap();
        assert_eq!(read::<Measurement>(&path).unwrap(), records);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_bad_line_is_told_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        write(&path, &[measurement("a", 1.0)]).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        for bad in [
            "{\"schema\":1}".to_owned(),
            good.trim().replace("\"schema\":1", "\"schema\":2"),
            good.trim().replace("\"value\"", "\"valeu\""),
        ] {
            std::fs::write(&path, format!("{good}\n{bad}\n")).unwrap();
            let message = read::<Measurement>(&path).unwrap_err().to_string();
            assert!(message.contains("results.jsonl:3:"), "{message}");
        }
    }

    #[test]
    fn a_line_that_was_cut_off_or_is_of_another_version_is_called_that() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        write(&path, &[measurement("a", 1.0)]).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        let later = good.trim().replace("\"schema\":1", "\"schema\":3").replace("\"value\"", "\"figure\"");
        for (bad, wanted) in
            [(&good[..good.len() / 2], "cut off"), (later.as_str(), "schema 3 where this kbit reads 1")]
        {
            std::fs::write(&path, format!("{good}{bad}")).unwrap();
            let message = read::<Measurement>(&path).unwrap_err().to_string();
            assert!(message.contains("results.jsonl:2:") && message.contains(wanted), "{message}");
            assert!(message.contains("remove the line"), "{message}");
        }
    }

    #[test]
    fn files_that_are_empty_or_contradict_each_other_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other, empty] =
            ["one.jsonl", "other.jsonl", "empty.jsonl"].map(|name| folder.path().join(name));
        write(&one, &[measurement("a", 1.0), measurement("b", 2.0)]).unwrap();
        write(&other, &[measurement("c", 7.0), measurement("b", 2.0 + 1e-9)]).unwrap();
        std::fs::write(&empty, "\n\n").unwrap();
        assert_eq!(read_all(&[one.clone(), other.clone()]).unwrap().len(), 3, "rounding is no contradiction");
        let message = read_all(&[one.clone(), empty]).unwrap_err().to_string();
        assert!(message.contains("empty.jsonl: no measurement") && message.contains("kbit run"), "{message}");
        write(&other, &[measurement("c", 7.0), measurement("b", 2.1)]).unwrap();
        let message = read_all(&[one, other]).unwrap_err().to_string();
        for wanted in
            ["perplexity of m b in f32 is 2 in", "one.jsonl:2", "2.1 in", "other.jsonl:2", "measure again"]
        {
            assert!(message.contains(wanted), "no {wanted} in {message}");
        }
    }

    #[test]
    fn the_later_of_two_measurements_counts() {
        let merged = merge([vec![measurement("a", 1.0), measurement("b", 2.0)], vec![measurement("a", 3.0)]]);
        assert_eq!(merged.iter().map(|m| m.value).collect::<Vec<_>>(), [3.0, 2.0]);
    }

    #[test]
    fn measurements_in_another_arithmetic_are_of_something_else() {
        let other = |mode: &str, cache_type: &str| Measurement {
            mode: mode.into(),
            cache_type: cache_type.into(),
            ..measurement("a", 1.0)
        };
        let all = [("f32", "f32"), ("int8", "f32"), ("f32", "q8"), ("int8", "q8,f16")];
        let merged = merge([all.map(|(mode, cache_type)| other(mode, cache_type)).to_vec()]);
        let words: Vec<String> = merged.iter().map(Measurement::arithmetic).collect();
        assert_eq!(words, ["f32", "int8", "f32, q8 cache", "int8, q8,f16 cache"]);
    }

    #[test]
    fn records_without_cache_types_are_of_f32() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        write(&path, &[measurement("a", 1.0)]).unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        let old = new.replace(",\"cache_type\":\"f32\"", "");
        assert_ne!(old, new);
        std::fs::write(&path, old).unwrap();
        assert_eq!(read::<Measurement>(&path).unwrap(), [measurement("a", 1.0)]);
    }
}
