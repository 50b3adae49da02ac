//! config.json of a Hugging Face folder, and the metadata that an architecture's table makes of it.

use crate::ModelError;
use crate::architecture::{Architecture, From, Parameter};
use kbit_formats::gguf::{Metadata, Value};
use serde_json::{Map, Value as Json};
use std::path::{Path, PathBuf};

/// Largest configuration that is read.
const MAX_FILE: u64 = 64 << 20;

/// The configuration of a text model.
#[derive(Debug)]
pub(super) struct Config {
    path: PathBuf,
    values: Map<String, Json>,
    /// Classes that the folder names, the text model's last.
    classes: Vec<String>,
}

/// A JSON object in a file, where it is there.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Json>>, ModelError> {
    let io = |error: std::io::Error| ModelError::Config {
        path: path.to_owned(),
        reason: format!("{error}; check the file and its permissions"),
    };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
        Ok(file) if file.len() > MAX_FILE => {
            let reason =
                format!("it has {} bytes, more than any configuration; get the file anew", file.len());
            return Err(ModelError::Config { path: path.to_owned(), reason });
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| ModelError::Config {
        path: path.to_owned(),
        reason: format!(
            "line {}, column {}: not a JSON object: {error}; get the file anew",
            error.line(),
            error.column()
        ),
    })
}

impl Config {
    /// Reads config.json of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let Some(mut values) = read_object(&path)? else {
            let reason = "is missing; put the model's configuration beside its weights".to_owned();
            return Err(ModelError::Config { path, reason });
        };
        let classes_of = |values: &Map<String, Json>| -> Vec<String> {
            let classes = values.get("architectures").and_then(Json::as_array);
            classes.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect()
        };
        let mut classes = classes_of(&values);
        if let Some(Json::Object(text)) = values.get("text_config").cloned() {
            classes.extend(classes_of(&text));
            values.extend(text);
        }
        Ok(Self { path, values, classes })
    }

    /// A configuration that was made here.
    pub(super) fn of(values: Map<String, Json>) -> Self {
        Self { path: PathBuf::from("config.json"), values, classes: Vec::new() }
    }

    /// The table for the model.
    pub(super) fn architecture(&self) -> Result<&'static Architecture, ModelError> {
        let mut unknown = None;
        for class in &self.classes {
            match Architecture::by_class(class) {
                Ok(architecture) => return Ok(architecture),
                Err(error) => unknown = unknown.or(Some(error)),
            }
        }
        Err(unknown.unwrap_or_else(|| self.bad("\"architectures\" is missing; get the file anew")))
    }

    /// A value that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&Json> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn bad(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Config { path: self.path.clone(), reason: reason.into() }
    }

    /// A whole number that fits u32.
    pub(super) fn opt_count(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|value| u32::try_from(value).ok()) {
            Some(value) => Ok(Some(value)),
            None => {
                Err(self.bad(format!("{key:?} is {value}, not a whole number below 2^32; get the file anew")))
            }
        }
    }

    pub(super) fn count(&self, key: &str) -> Result<u32, ModelError> {
        self.opt_count(key)?.ok_or_else(|| self.bad(format!("{key:?} is missing; get the file anew")))
    }

    fn first<T>(
        &self,
        keys: &[&str],
        read: impl Fn(&str) -> Result<Option<T>, ModelError>,
    ) -> Result<Option<T>, ModelError> {
        for key in keys {
            if let Some(value) = read(key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn opt_float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key).map(|value| self.float_of(key, value)).transpose()
    }

    fn float_of(&self, key: &str, value: &Json) -> Result<f64, ModelError> {
        value
            .as_f64()
            .filter(|value| value.is_finite())
            .ok_or_else(|| self.bad(format!("{key:?} is {value}, not a number; get the file anew")))
    }

    /// Width of a head: `head_dim`, or the hidden width shared out among the query heads.
    fn head_dim(&self) -> Result<u32, ModelError> {
        if let Some(width) = self.opt_count("head_dim")? {
            return Ok(width);
        }
        let (hidden, heads) = (self.count("hidden_size")?, self.count("num_attention_heads")?);
        hidden.checked_div(heads).ok_or_else(|| self.bad("\"num_attention_heads\" is 0; get the file anew"))
    }

    /// Rotary settings: `rope_parameters`, or `rope_scaling` of older files.
    fn rope(&self) -> Map<String, Json> {
        let object = |key: &str| self.get(key).and_then(Json::as_object);
        let rope = object("rope_parameters").or_else(|| object("rope_scaling"));
        let rope = rope.and_then(|rope| rope.get("full_attention").and_then(Json::as_object).or(Some(rope)));
        rope.cloned().unwrap_or_default()
    }

    fn rope_type(&self) -> String {
        let rope = self.rope();
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Json::as_str);
        kind.unwrap_or("default").to_lowercase()
    }

    fn rope_float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let rope = self.rope();
        let value = rope.get(key).filter(|value| !value.is_null());
        value.map(|value| self.float_of(key, value)).transpose()
    }

    fn rope_base(&self, default: f64) -> Result<f64, ModelError> {
        let base = match self.rope_float("rope_theta")? {
            Some(base) => base,
            None => self.opt_float("rope_theta")?.unwrap_or(default),
        };
        if base > 0.0 {
            Ok(base)
        } else {
            Err(self.bad(format!("\"rope_theta\" is {base}, not positive; get the file anew")))
        }
    }

    /// Factors that divide the rotary frequencies of Llama 3.1 and later, `[head_dim / 2]`; `None` for other models.
    ///
    /// Source: `_compute_llama3_parameters` of Hugging Face transformers, in the single precision and the order of
    /// operations of llama.cpp's converter.
    #[expect(clippy::cast_possible_truncation, reason = "the converter computes in single precision")]
    #[expect(clippy::cast_precision_loss, reason = "dimensions of a head are far below 2^24")]
    pub(super) fn llama3_rope_factors(&self) -> Result<Option<Vec<f32>>, ModelError> {
        if self.rope_type() != "llama3" {
            return Ok(None);
        }
        let positive = |key: &str, default: f64| -> Result<f64, ModelError> {
            match self.rope_float(key)?.unwrap_or(default) {
                value if value > 0.0 => Ok(value),
                value => Err(self.bad(format!(
                    "{key:?} of the rotary settings is {value}, not positive; get the file anew"
                ))),
            }
        };
        let base = self.rope_base(10000.0)?;
        let factor = positive("factor", 8.0)?;
        let low = positive("low_freq_factor", 1.0)?;
        let high = positive("high_freq_factor", 4.0)?;
        let context = positive("original_max_position_embeddings", 8192.0)?;
        let head_dim = self.head_dim()?;
        if head_dim > 1 << 16 {
            return Err(self.bad(format!("heads of {head_dim} values are wider than any; get the file anew")));
        }
        let (longest, shortest) = ((context / low) as f32, (context / high) as f32);
        let factors = (0..head_dim).step_by(2).map(|i| {
            let exponent = i as f32 / head_dim as f32;
            let frequency = 1.0 / base.powf(f64::from(exponent)) as f32;
            let wavelength = 1.0 / frequency * (2.0 * std::f64::consts::PI) as f32;
            if wavelength < shortest {
                1.0
            } else if wavelength > longest {
                factor as f32
            } else {
                let smooth = (1.0 / wavelength * context as f32 - low as f32) / (high - low) as f32;
                1.0 / ((1.0 - smooth) / factor as f32 + smooth)
            }
        });
        Ok(Some(factors.collect()))
    }

    /// Writes what the table says; `general.file_type` is left to the caller, who is told where it belongs.
    #[expect(clippy::cast_possible_truncation, reason = "GGUF has these in single precision")]
    pub(super) fn write_parameters(
        &self,
        architecture: &Architecture,
        out: &mut Metadata,
    ) -> Result<Option<usize>, ModelError> {
        let mut file_type = None;
        for Parameter { key, from } in architecture.parameters {
            let count = |keys: &[&str]| self.first(keys, |key| self.opt_count(key));
            let value = match from {
                From::Count(keys) => Value::U32(count(keys)?.ok_or_else(|| {
                    self.bad(format!("{:?} is missing; get the file anew", keys.first().unwrap_or(&"")))
                })?),
                From::CountOr(keys, default) => Value::U32(count(keys)?.unwrap_or(*default)),
                From::CountOrHeads(keys) => Value::U32(match count(keys)? {
                    Some(count) => count,
                    None => self.count("num_attention_heads")?,
                }),
                From::FloatOr(keys, default) => {
                    Value::F32(self.first(keys, |key| self.opt_float(key))?.unwrap_or(*default) as f32)
                }
                From::HeadDim => Value::U32(self.head_dim()?),
                From::RopeBase(default) => Value::F32(self.rope_base(*default)? as f32),
                From::RopeScaling => {
                    self.write_rope_scaling(architecture, out)?;
                    continue;
                }
                From::FileType => {
                    file_type = Some(out.len());
                    continue;
                }
            };
            out.insert(format!("{}.{key}", architecture.name), value);
        }
        Ok(file_type)
    }

    #[expect(clippy::cast_possible_truncation, reason = "GGUF has these in single precision")]
    fn write_rope_scaling(&self, architecture: &Architecture, out: &mut Metadata) -> Result<(), ModelError> {
        let mut write =
            |key: &str, value| out.insert(format!("{}.rope.scaling.{key}", architecture.name), value);
        let factor = self.rope_float("factor")?.map(|factor| factor as f32);
        match (self.rope_type().as_str(), factor) {
            ("linear", Some(factor)) => {
                write("type", Value::String("linear".to_owned()));
                write("factor", Value::F32(factor));
            }
            ("yarn", Some(factor)) => {
                write("type", Value::String("yarn".to_owned()));
                write("factor", Value::F32(factor));
                let context = self.rope().get("original_max_position_embeddings").and_then(Json::as_u64);
                let context = context.and_then(|context| u32::try_from(context).ok());
                let missing = || {
                    self.bad("\"original_max_position_embeddings\" of the rotary settings is missing; get the file anew")
                };
                write("original_context_length", Value::U32(context.ok_or_else(missing)?));
                for (from, key) in [
                    ("extrapolation_factor", "yarn_ext_factor"),
                    ("attention_factor", "yarn_attn_factor"),
                    ("beta_fast", "yarn_beta_fast"),
                    ("beta_slow", "yarn_beta_slow"),
                ] {
                    let mut value = self.rope_float(from)?;
                    if from == "attention_factor" && value.is_none() {
                        value = self.rope_float("attn_factor")?;
                    }
                    if let Some(value) = value {
                        write(key, Value::F32(value as f32));
                    }
                }
            }
            // Llama 3's factors are a tensor; dynamic scaling changes nothing within the trained context.
            ("default" | "none" | "dynamic" | "llama3", _) => {}
            (other, _) => {
                let reason = format!(
                    "rotary scaling {other:?} is not known; known are default, linear, yarn, dynamic and llama3: convert the model to GGUF with llama.cpp and give that file"
                );
                return Err(self.bad(reason));
            }
        }
        Ok(())
    }
}
