//! config.json of a Hugging Face folder, and the metadata that an architecture's table makes of it.

use crate::ModelError;
use crate::architecture::{
    Architecture, Classes, Dim, EXPERT_KEYS, Factors, Fallback, From, HEAD_KEYS, HIDDEN_KEYS, LAYER_KEYS,
    Parameter, Power, Rounding, Unlisted, activation_of,
};
use kbit_formats::gguf::{Array, Metadata, Value};
use serde_json::{Map, Value as Json};
use std::path::{Path, PathBuf};

/// Largest configuration that is read.
const MAX_FILE: u64 = 64 << 20;

/// The configuration of a text model.
#[derive(Debug)]
pub(super) struct Config {
    path: PathBuf,
    values: Map<String, Json>,
    /// Classes that the folder names, the text model's first.
    classes: Vec<String>,
    /// Tokens of the tokenizer, where that says less than the vocabulary.
    pub(super) tokens: Option<u64>,
}

/// The metadata that an architecture's table makes of a configuration.
pub(super) struct Parameters {
    /// Entries, in their order.
    pub(super) entries: Metadata,
    /// Entries that the converter writes with the tensors, before all others.
    pub(super) early: Metadata,
    /// Where `general.file_type` belongs among the entries.
    pub(super) file_type: Option<usize>,
}

/// Keys of config.json that hold the text model's configuration.
const TEXT_CONFIGS: &[&str] = &["text_config", "llm_config", "lm_config", "language_config"];
/// Keys of config.json for the base of the rotary frequencies.
const ROPE_BASE_KEYS: &[&str] =
    &["global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"];
/// Keys of config.json for the base in blocks with a sliding window.
const LOCAL_BASE_KEYS: &[&str] =
    &["local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq"];
/// Keys of config.json for the share of a head that turns.
const PARTIAL_KEYS: &[&str] = &["partial_rotary_factor", "rope_pct", "rope_percent", "rotary_pct"];

/// Most blocks that are believed.
const MAX_LAYERS: u64 = 1 << 12;

/// A table of no class: nothing to fill in.
const NO_CLASSES: Classes = Classes { names: &[], defaults: &[] };

/// GPT-Neo's kinds of attention: `[[kinds, how often], ...]`.
fn expanded(runs: &[Json], layers: u64) -> Option<Vec<Json>> {
    let mut all = Vec::new();
    for run in runs {
        let (kinds, times) = (run.get(0)?.as_array()?, run.get(1)?.as_u64()?);
        for _ in 0..times.min(layers) {
            all.extend_from_slice(kinds);
        }
        if all.len() as u64 > layers.saturating_mul(2) {
            return None;
        }
    }
    Some(all)
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
        if let Some(Json::Object(text)) = TEXT_CONFIGS.iter().find_map(|key| values.get(*key)).cloned() {
            classes.splice(0..0, classes_of(&text));
            values.extend(text);
        }
        Ok(Self { path, values, classes, tokens: None })
    }

    /// A configuration that was made here.
    pub(super) fn of(values: Map<String, Json>) -> Self {
        Self { path: PathBuf::from("config.json"), values, classes: Vec::new(), tokens: None }
    }

    /// The table for the model: of its class, or of the architecture or class that was `named` by hand. Fills in what its
    /// configuration class has where config.json says nothing.
    pub(super) fn architecture(&mut self, named: Option<&str>) -> Result<&'static Architecture, ModelError> {
        if let Some(name) = named {
            let (architecture, classes) = match Architecture::by_class(name) {
                Ok(found) => found,
                Err(_) => {
                    let architecture = Architecture::by_name(name)?;
                    let mut known = architecture.classes.iter();
                    let own = known
                        .clone()
                        .find(|c| c.names.iter().any(|name| self.classes.iter().any(|c| c == name)));
                    (architecture, own.or_else(|| known.next()).unwrap_or(&NO_CLASSES))
                }
            };
            self.fill(classes)?;
            return Ok(architecture);
        }
        let mut unknown = None;
        for class in &self.classes {
            match Architecture::by_class(class) {
                Ok((architecture, classes)) => {
                    self.fill(classes)?;
                    return Ok(architecture);
                }
                Err(error) => unknown = unknown.or(Some(error)),
            }
        }
        Err(unknown.unwrap_or_else(|| {
            self.bad("\"architectures\" is missing; get the file anew, or name the architecture with `--architecture`")
        }))
    }

    fn fill(&mut self, classes: &Classes) -> Result<(), ModelError> {
        for &(key, fallback) in classes.defaults {
            let value = match (fallback, self.values.get(key)) {
                (Fallback::Ignored, _) => {
                    self.values.remove(key);
                    continue;
                }
                (Fallback::HeadDim, None | Some(Json::Null)) => self.head_dim()?.into(),
                (Fallback::Heads, None | Some(Json::Null)) => self.needed(HEAD_KEYS)?.into(),
                (_, Some(_)) => continue,
                (Fallback::Count(value), None) => value.into(),
                (Fallback::Float(value), None) => value.into(),
                (Fallback::Flag(value), None) => value.into(),
                (Fallback::SameAs(other), None) => match self.get(other) {
                    Some(value) => value.clone(),
                    None => continue,
                },
            };
            self.values.insert(key.to_owned(), value);
        }
        Ok(())
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

    /// A whole number under the first of `keys` that is there.
    fn needed(&self, keys: &[&str]) -> Result<u32, ModelError> {
        self.first(keys, |key| self.opt_count(key))?.ok_or_else(|| {
            self.bad(format!("{:?} is missing; get the file anew", keys.first().unwrap_or(&"")))
        })
    }

    /// The number of tokens.
    pub(super) fn vocab(&self) -> Result<u32, ModelError> {
        self.needed(&["vocab_size"])
    }

    /// The number of blocks.
    pub(super) fn layers(&self) -> Result<u64, ModelError> {
        Ok(self.needed(LAYER_KEYS)?.into())
    }

    /// A value under the first of `keys` that is true or false.
    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Json::as_bool)
    }

    /// True where the output matrix may be the token embedding.
    pub(super) fn tied(&self) -> bool {
        self.flag("tie_word_embeddings").unwrap_or(false)
    }

    /// True where the feed-forward network of block `layer` has experts.
    pub(super) fn has_experts(&self, layer: u64) -> Result<bool, ModelError> {
        let count = |key: &str| self.opt_count(key).map(|count| count.map(u64::from));
        if self.first(EXPERT_KEYS, |key| self.opt_count(key))?.unwrap_or(0) == 0 {
            return Ok(false);
        }
        let dense = self.get("mlp_only_layers").and_then(Json::as_array);
        let dense = dense.is_some_and(|layers| layers.iter().any(|dense| dense.as_u64() == Some(layer)));
        let step = count("decoder_sparse_step")?.unwrap_or(1).max(1);
        let every = count("moe_layer_freq")?.unwrap_or(1).max(1);
        Ok(!dense
            && layer >= count("first_k_dense_replace")?.unwrap_or(0)
            && (layer + 1).is_multiple_of(step)
            && layer.is_multiple_of(every))
    }

    /// A length in a shape.
    pub(super) fn dim(&self, dim: Dim) -> Result<u64, ModelError> {
        let needed = |keys: &[&str]| self.needed(keys).map(u64::from);
        let opt =
            |keys: &[&str]| self.first(keys, |key| self.opt_count(key)).map(|count| count.map(u64::from));
        let product = |a: u64, b: u64| {
            a.checked_mul(b).ok_or_else(|| self.bad("its sizes are too large; get the file anew"))
        };
        Ok(match dim {
            Dim::Vocab => needed(&["vocab_size"])?,
            Dim::Tokens => self.tokens.unwrap_or(u64::MAX).min(self.dim(Dim::Vocab)?),
            Dim::Positions => needed(&["max_position_embeddings", "n_positions", "n_ctx"])?,
            Dim::Hidden => needed(HIDDEN_KEYS)?,
            Dim::EmbeddingWidth => match opt(&["word_embed_proj_dim"])? {
                Some(width) => width,
                None => self.dim(Dim::Hidden)?,
            },
            Dim::FeedForward => match opt(&["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"])? {
                Some(width) => width,
                None => product(4, self.dim(Dim::Hidden)?)?,
            },
            Dim::Heads => needed(HEAD_KEYS)?,
            Dim::KvHeads => self.kv_heads()?,
            Dim::Group => match self.kv_heads()? {
                0 => return Err(self.bad("the number of key heads is 0; get the file anew")),
                heads => self.dim(Dim::Heads)? / heads,
            },
            Dim::HeadDim => self.head_dim()?.into(),
            Dim::Queries | Dim::Attention => product(self.dim(Dim::Heads)?, self.head_dim()?.into())?,
            Dim::Keys | Dim::Values => product(self.kv_heads()?, self.head_dim()?.into())?,
            Dim::RopePairs => self.rotary_dims(Rounding::OfHead)? / 2,
            Dim::Experts => needed(EXPERT_KEYS)?,
            Dim::ExpertFeedForward => needed(&["moe_intermediate_size", "intermediate_size"])?,
            Dim::SharedFeedForward => {
                match opt(&["shared_expert_intermediate_size", "shared_intermediate_size"])? {
                    Some(width) => width,
                    None => product(needed(&["n_shared_experts"])?, self.dim(Dim::ExpertFeedForward)?)?,
                }
            }
            Dim::QueryRank => needed(&["q_lora_rank"])?,
            Dim::KeyValueRank => needed(&["kv_lora_rank"])?,
            Dim::NopeDim => needed(&["qk_nope_head_dim"])?,
            Dim::RopeDim => needed(&["qk_rope_head_dim"])?,
            Dim::ValueDim => needed(&["v_head_dim"])?,
            Dim::Fixed(length) => length,
            Dim::Sum(parts) => {
                let mut sum = 0u64;
                for part in parts {
                    sum = sum.saturating_add(self.dim(*part)?);
                }
                sum
            }
            Dim::Product(parts) => {
                let mut all = 1;
                for part in parts {
                    all = product(all, self.dim(*part)?)?;
                }
                all
            }
        })
    }

    /// Key and value heads. Falcon's older models have one for all queries, whatever else their configuration says.
    fn kv_heads(&self) -> Result<u64, ModelError> {
        let keys = &["num_key_value_heads", "n_kv_heads", "n_head_kv"];
        if let Some(heads) = self.first(keys, |key| self.opt_count(key))? {
            return Ok(heads.into());
        }
        let one_for_all = self.get("new_decoder_architecture").is_some()
            && self.flag("new_decoder_architecture") != Some(true)
            && self.flag("multi_query") == Some(true);
        match self.opt_count("num_kv_heads")? {
            _ if one_for_all => Ok(1),
            Some(heads) => Ok(heads.into()),
            None => self.dim(Dim::Heads),
        }
    }

    /// How many dimensions of a head turn.
    #[expect(clippy::cast_possible_truncation, reason = "rounded down, as the converter does")]
    #[expect(clippy::cast_sign_loss, reason = "checked to be a share")]
    #[expect(clippy::cast_precision_loss, reason = "widths are far below 2^53")]
    fn rotary_dims(&self, rounding: Rounding) -> Result<u64, ModelError> {
        let share = match self.rope_float("partial_rotary_factor")? {
            Some(share) => share,
            None => self.first(PARTIAL_KEYS, |key| self.opt_float(key))?.unwrap_or(1.0),
        };
        if !(0.0..=1.0).contains(&share) {
            return Err(
                self.bad(format!("\"partial_rotary_factor\" is {share}, not a share; get the file anew"))
            );
        }
        Ok(match rounding {
            Rounding::OfHead => (share * f64::from(self.head_dim()?)) as u64,
            Rounding::OfHidden => {
                let turning = (share * self.dim(Dim::Hidden)? as f64) as u64;
                let heads = self.dim(Dim::Heads)?;
                turning
                    .checked_div(heads)
                    .ok_or_else(|| self.bad("\"num_attention_heads\" is 0; get the file anew"))?
            }
        })
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

    /// The name of the non-linearity.
    pub(super) fn activation(&self) -> Option<&str> {
        const KEYS: &[&str] = &["hidden_activation", "hidden_act", "activation_function", "activation"];
        KEYS.iter().find_map(|key| self.get(key)).and_then(Json::as_str)
    }

    /// The factor of dynamic scaling, where the rotary positions have it.
    pub(super) fn dynamic_factor(&self) -> Result<Option<f64>, ModelError> {
        match self.rope_type().as_str() {
            "dynamic" => self.positive("factor", self.rope_float("factor")?),
            _ => Ok(None),
        }
    }

    /// Width of a head: `head_dim`, or the hidden width shared out among the query heads.
    fn head_dim(&self) -> Result<u32, ModelError> {
        if let Some(width) = self.opt_count("head_dim")? {
            return Ok(width);
        }
        let (hidden, heads) = (self.needed(HIDDEN_KEYS)?, self.needed(HEAD_KEYS)?);
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

    /// The base of the rotary frequencies, where config.json has it.
    fn rope_base(&self) -> Result<Option<f64>, ModelError> {
        let base = match self.rope_float("rope_theta")? {
            Some(base) => Some(base),
            None => self.first(ROPE_BASE_KEYS, |key| self.opt_float(key))?,
        };
        self.positive("rope_theta", base)
    }

    /// The base of the rotary frequencies in blocks with a sliding window.
    fn sliding_rope_base(&self) -> Result<Option<f64>, ModelError> {
        let sliding = self.get("rope_parameters").and_then(|rope| rope.get("sliding_attention"));
        let base = match sliding.and_then(|rope| rope.get("rope_theta")) {
            Some(base) => Some(self.float_of("rope_theta", base)?),
            None => self.first(LOCAL_BASE_KEYS, |key| self.opt_float(key))?,
        };
        self.positive("rope_theta", base)
    }

    fn positive(&self, key: &str, value: Option<f64>) -> Result<Option<f64>, ModelError> {
        match value {
            Some(value) if value <= 0.0 => {
                Err(self.bad(format!("{key:?} is {value}, not positive; get the file anew")))
            }
            value => Ok(value),
        }
    }

    /// Values of a tensor that no checkpoint has, `[pairs of rotary dimensions]`; `None` where the model has none.
    #[expect(clippy::cast_possible_truncation, reason = "GGUF has these in single precision")]
    pub(super) fn factors(&self, factors: Factors) -> Result<Option<Vec<f32>>, ModelError> {
        let key = match factors {
            Factors::Llama3 => return self.llama3_rope_factors(),
            Factors::Listed(key) => key,
        };
        let rope = self.rope();
        let Some(Json::Array(list)) = rope.get(key) else {
            let other = if key == "long_factor" { "short_factor" } else { "long_factor" };
            return match rope.get(other) {
                Some(Json::Array(_)) => {
                    Err(self
                        .bad(format!("the rotary settings have {other:?} and no {key:?}; get the file anew")))
                }
                _ => Ok(None),
            };
        };
        let list = list.iter().map(|value| self.float_of(key, value).map(|value| value as f32));
        list.collect::<Result<Vec<f32>, _>>().map(Some)
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
        let base = self.rope_base()?.unwrap_or(10000.0);
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

    /// The metadata that the table makes of the configuration; `general.file_type` is left to the caller, who is told
    /// where it belongs.
    pub(super) fn parameters(&self, architecture: &Architecture) -> Result<Parameters, ModelError> {
        let mut out = Parameters { entries: Metadata::new(), early: Metadata::new(), file_type: None };
        self.write(architecture, architecture.parameters, &mut out)?;
        Ok(out)
    }

    #[expect(clippy::cast_possible_truncation, reason = "GGUF has these in single precision")]
    fn write(
        &self,
        architecture: &Architecture,
        parameters: &[Parameter],
        out: &mut Parameters,
    ) -> Result<(), ModelError> {
        for Parameter { key, from } in parameters {
            let count = |keys: &[&str]| self.first(keys, |key| self.opt_count(key));
            let float = |keys: &[&str]| self.first(keys, |key| self.opt_float(key));
            let length = |length: u64| {
                let value = u32::try_from(length).map(Value::U32);
                value.map_err(|_| {
                    self.bad(format!("{key} would be {length}, 2^32 or more; get the file anew"))
                })
            };
            let single = |value: f64| Value::F32(value as f32);
            let needed_float = |keys: &[&str]| {
                let missing =
                    || self.bad(format!("{:?} is missing; get the file anew", keys.first().unwrap_or(&"")));
                float(keys)?.ok_or_else(missing)
            };
            let value = match from {
                From::Common => {
                    self.write(architecture, crate::architecture::COMMON, out)?;
                    continue;
                }
                From::Count(keys) => count(keys)?.map(Value::U32),
                From::Needed(keys) => Some(Value::U32(self.needed(keys)?)),
                From::CountOr(keys, default) => Some(Value::U32(count(keys)?.unwrap_or(*default))),
                From::Length(dim) => Some(length(self.dim(*dim)?)?),
                From::Always(value) => Some(Value::U32(*value)),
                From::Float(keys) => float(keys)?.map(single),
                From::NeededFloat(keys) => Some(single(needed_float(keys)?)),
                From::NonZeroFloat(key) => float(&[key])?.filter(|value| *value != 0.0).map(single),
                From::NonZeroCount(key) => count(&[key])?.filter(|value| *value != 0).map(Value::U32),
                From::AlwaysFloat(value) => Some(Value::F32(*value)),
                From::Ratio(of, by, power) => {
                    let by_value = needed_float(&[by])?;
                    if by_value <= 0.0 {
                        return Err(
                            self.bad(format!("{by:?} is {by_value}, not positive; get the file anew"))
                        );
                    }
                    let by_value = if *power == Power::Half { by_value.sqrt() } else { by_value };
                    Some(single(needed_float(&[of])? / by_value))
                }
                From::RopeSetting(key, times) => self.rope_float(key)?.map(|value| single(times * value)),
                From::Flag(key, default) => Some(Value::Bool(self.flag(key).unwrap_or(*default))),
                From::IfTrue(key) => self.flag(key).filter(|value| *value).map(Value::Bool),
                From::IfFalse(key) => self.flag(key).filter(|value| !*value).map(Value::Bool),
                From::AlwaysFlag(value) => Some(Value::Bool(*value)),
                From::Text(text) => Some(Value::String((*text).to_owned())),
                From::GatingFunction => self.gating_function()?.map(Value::U32),
                From::RotaryDims(rounding) => Some(length(self.rotary_dims(*rounding)?)?),
                From::RopeBase => self.rope_base()?.map(single),
                From::RopeBaseSliding => self.sliding_rope_base()?.map(single),
                From::RopeScaling => {
                    self.write_rope_scaling(architecture, &mut out.entries)?;
                    continue;
                }
                From::OriginalContext => Some(Value::U32(self.original_context()?)),
                From::LongRopeAttention => {
                    if let Some(factor) = self.long_rope_attention()? {
                        out.early.insert(format!("{}.{key}", architecture.name), single(factor));
                    }
                    continue;
                }
                From::SlidingPattern(unlisted) => {
                    self.sliding_pattern(*unlisted)?.map(|pattern| Value::Array(Array::Bool(pattern)))
                }
                From::OtherActivation => {
                    let usual = architecture.forward.as_ref().map(|forward| forward.activation.0);
                    let name = self.activation().filter(|name| activation_of(name) != usual);
                    name.map(|name| Value::String(name.to_owned()))
                }
                From::FlagUnless(key, usual) => {
                    self.flag(key).filter(|value| value != usual).map(Value::Bool)
                }
                From::FloatUnless(key, usual) => {
                    self.opt_float(key)?.filter(|value| value != usual).map(single)
                }
                From::LongRopeMagnitude => self.long_rope_magnitude()?.map(single),
                From::OwnWindow => match self.flag("use_sliding_window") {
                    Some(false) => None,
                    _ => count(&["sliding_window"])?.filter(|window| *window > 0).map(Value::U32),
                },
                From::FileType => {
                    out.file_type = Some(out.entries.len());
                    continue;
                }
            };
            let Some(value) = value else { continue };
            let whole = key.starts_with("general.") || key.starts_with("tokenizer.");
            let key = if whole { (*key).to_owned() } else { format!("{}.{key}", architecture.name) };
            out.entries.insert(key, value);
        }
        Ok(())
    }

    /// llama.cpp's number of the function that turns router logits into weights.
    fn gating_function(&self) -> Result<Option<u32>, ModelError> {
        const KEYS: &[&str] = &[
            "score_function",
            "scoring_func",
            "score_func",
            "moe_router_activation",
            "moe_router_activation_func",
            "expert_selection_fn",
        ];
        let Some(name) = KEYS.iter().find_map(|key| self.get(key)) else { return Ok(None) };
        match name.as_str() {
            Some("softmax") => Ok(Some(1)),
            Some("sigmoid") => Ok(Some(2)),
            Some("sqrtsoftplus") => Ok(Some(4)),
            _ => Err(self.bad(format!(
                "the experts are chosen by {name}, which is not known; known are softmax, sigmoid and sqrtsoftplus: convert the model to GGUF with llama.cpp and give that file"
            ))),
        }
    }

    /// The context length before scaling.
    fn original_context(&self) -> Result<u32, ModelError> {
        const KEY: &str = "original_max_position_embeddings";
        let rope = self.rope();
        match rope.get(KEY).filter(|value| !value.is_null()) {
            Some(value) => value.as_u64().and_then(|value| u32::try_from(value).ok()).ok_or_else(|| {
                self.bad(format!("{KEY:?} is {value}, not a whole number below 2^32; get the file anew"))
            }),
            None => self.needed(&[KEY]),
        }
    }

    /// The factor on attention scores that goes with factors for long contexts. Source: Ding et al. 2024 (LongRoPE).
    fn long_rope_attention(&self) -> Result<Option<f64>, ModelError> {
        if self.factors(Factors::Listed("long_factor"))?.is_none() {
            return Ok(None);
        }
        let original = f64::from(self.original_context()?);
        let scale = f64::from(self.needed(&["n_positions", "max_position_embeddings"])?) / original;
        match self.rope_type().as_str() {
            _ if scale <= 1.0 => Ok(Some(1.0)),
            "su" | "longrope" => Ok(Some((1.0 + scale.ln() / original.ln()).sqrt())),
            "yarn" => Ok(Some(0.1 * scale.ln() + 1.0)),
            other => Err(self.bad(format!(
                "factors for long contexts go with the rotary scaling {other:?}, where longrope, su and yarn are known; get the file anew"
            ))),
        }
    }

    /// The factor on sines and cosines that goes with factors for long contexts, where it is given.
    fn long_rope_magnitude(&self) -> Result<Option<f64>, ModelError> {
        match (self.rope_float("short_mscale")?, self.rope_float("long_mscale")?) {
            (None, None) => Ok(None),
            (Some(short), Some(long)) if short == long => Ok(Some(short)),
            (short, long) => Err(self.bad(format!(
                "\"short_mscale\" is {short:?} and \"long_mscale\" is {long:?}, where both are the same in all models that kbit knows; get the file anew"
            ))),
        }
    }

    /// Which blocks have a sliding window, where the model has one.
    fn sliding_pattern(&self, unlisted: Unlisted) -> Result<Option<Vec<bool>>, ModelError> {
        if self.get("sliding_window").is_none() && self.get("window_size").is_none() {
            return Ok(None);
        }
        if self.flag("use_sliding_window") == Some(false) {
            return Ok(None);
        }
        let layers = self.layers()?;
        let kinds = match self.get("layer_types").or_else(|| self.get("attention_layers")) {
            Some(Json::Array(kinds)) => kinds.clone(),
            _ => match self.get("attention_types").and_then(Json::as_array) {
                Some(runs) => expanded(runs, layers).ok_or_else(|| {
                    self.bad(
                        "\"attention_types\" is not a list of kinds with their counts; get the file anew",
                    )
                })?,
                None => {
                    let bound = self.opt_count("max_window_layers")?.map_or(0, u64::from);
                    let windowed = |layer: u64| match unlisted {
                        Unlisted::AllButEveryFourth => !(layer + 1).is_multiple_of(4),
                        Unlisted::FromMaxWindowLayers => layer >= bound,
                        Unlisted::EvenBelowMaxWindowLayers => layer.is_multiple_of(2) && layer < bound,
                    };
                    return Ok(Some((0..layers.min(MAX_LAYERS)).map(windowed).collect()));
                }
            },
        };
        if kinds.len() as u64 != layers {
            return Err(self.bad(format!(
                "the kinds of attention of {} blocks are given, where the model has {layers}; get the file anew",
                kinds.len()
            )));
        }
        Ok(Some(
            kinds.iter().map(|kind| matches!(kind.as_str(), Some("sliding_attention" | "local"))).collect(),
        ))
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
            ("longrope" | "su", _)
                if architecture.rules().any(|rule| matches!(rule.computed, Some(Factors::Listed(_)))) =>
            {
                write("type", Value::String("longrope".to_owned()));
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
