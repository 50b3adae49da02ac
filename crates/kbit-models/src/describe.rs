//! GGUF metadata -> [`Description`].
//!
//! Keys that older converters did not write have llama.cpp's defaults. Every size is checked, so that nothing later
//! divides by zero, overflows or allocates by a hostile number.

use crate::ModelError;
use crate::architecture::{Architecture, Forward};
use crate::description::{Attention, Description, Norm, NormKind, Position, Rope, RopeScaling};
use kbit_formats::gguf::{Array, Metadata, Value};

/// Largest width, vocabulary or head count that is believed.
const MAX_WIDTH: usize = 1 << 24;
/// Largest number of blocks that is believed.
const MAX_LAYERS: usize = 1 << 12;
/// Longest context that is believed.
const MAX_CONTEXT: usize = 1 << 40;

/// Reads the hyper-parameters of the model from GGUF metadata.
///
/// `has_tensor` says whether the file has a tensor of that name: `output.weight` (else the output is tied to the token
/// embedding) and `rope_freqs.weight` decide about the model.
///
/// # Errors
/// When the architecture is unknown, a key is missing, has another type or an impossible value.
///
/// ```
/// use kbit_formats::gguf::{Metadata, Value};
/// let mut metadata = Metadata::new();
/// metadata.insert("general.architecture", Value::String("llama".to_owned()));
/// for (key, value) in [
///     ("vocab_size", 512),
///     ("block_count", 2),
///     ("context_length", 256),
///     ("embedding_length", 64),
///     ("feed_forward_length", 192),
///     ("attention.head_count", 4),
///     ("attention.head_count_kv", 2),
/// ] {
///     metadata.insert(format!("llama.{key}"), Value::U32(value));
/// }
/// metadata.insert("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
/// let model = kbit_models::describe(&metadata, &|_| false)?;
/// assert_eq!((model.head_dim, model.key_width(), model.tied_output), (16, 32, true));
/// # Ok::<(), kbit_models::ModelError>(())
/// ```
pub fn describe(metadata: &Metadata, has_tensor: &dyn Fn(&str) -> bool) -> Result<Description, ModelError> {
    let name = metadata.str("general.architecture")?;
    let architecture = Architecture::by_name(name)?;
    let not_runnable = |reason| ModelError::NotRunnable { architecture: name.to_owned(), reason };
    let forward = architecture.forward.as_ref().ok_or_else(|| not_runnable(""))?;
    let keys = Keys { metadata, name };

    for key in ["expert_count", "expert_used_count"] {
        if keys.opt_count(key, MAX_WIDTH)?.is_some_and(|experts| experts > 0) {
            return Err(not_runnable(" with experts"));
        }
    }

    let hidden = keys.count("embedding_length", MAX_WIDTH)?;
    let heads = keys.count("attention.head_count", MAX_WIDTH)?;
    let kv_heads = keys.opt_count("attention.head_count_kv", MAX_WIDTH)?.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(keys
            .bad("attention.head_count_kv", &format!("is {kv_heads}, which does not divide {heads} heads")));
    }
    let head_dim = keys.head_width("attention.key_length", hidden, heads)?;
    let value_dim = keys.head_width("attention.value_length", hidden, heads)?;
    for (key, width) in [("attention.key_length", head_dim), ("attention.value_length", value_dim)] {
        if heads.checked_mul(width).is_none_or(|all| all > MAX_WIDTH) {
            return Err(keys.bad(key, &format!("is {width}, too much for {heads} heads")));
        }
    }
    let epsilon_key = match forward.norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    };
    let epsilon = metadata.f32(&keys.full(epsilon_key))?;
    if !(0.0..=1.0).contains(&epsilon) {
        return Err(keys.bad(epsilon_key, &format!("is {epsilon}, not between 0 and 1")));
    }
    let scale = match keys.opt_float("attention.scale")? {
        Some(scale) if scale != 0.0 => keys.positive("attention.scale", scale)?,
        #[expect(clippy::cast_precision_loss, reason = "a head is far narrower than 2^24")]
        _ => 1.0 / (head_dim as f32).sqrt(),
    };

    Ok(Description {
        architecture: name.to_owned(),
        vocab: keys.vocab()?,
        hidden,
        layers: keys.count("block_count", MAX_LAYERS)?,
        heads,
        kv_heads,
        head_dim,
        value_dim,
        feed_forward: keys.count("feed_forward_length", MAX_WIDTH)?,
        context_length: keys.count("context_length", MAX_CONTEXT)?,
        norm: Norm { kind: forward.norm, epsilon },
        position: Position::Rope(keys.rope(forward, head_dim, has_tensor)?),
        attention: Attention {
            scale,
            window: keys.opt_count("attention.sliding_window", MAX_CONTEXT)?.filter(|&window| window > 0),
        },
        activation: forward.activation.0,
        gated: forward.gated,
        residual: forward.residual,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        output_scale: 1.0,
        tied_output: !has_tensor("output.weight"),
    })
}

/// Typed reads of `<architecture>.<key>`.
struct Keys<'a> {
    metadata: &'a Metadata,
    name: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn bad(&self, key: &str, reason: &str) -> ModelError {
        ModelError::Metadata { key: self.full(key), reason: reason.to_owned() }
    }

    /// A whole number between 1 and `max`.
    fn count(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        match self.opt_count(key, max)? {
            Some(0) => Err(self.bad(key, "is 0")),
            Some(value) => Ok(value),
            None => Err(self.bad(key, "is missing")),
        }
    }

    /// A whole number up to `max`; a list is taken where all its members are equal.
    fn opt_count(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let value = match self.metadata.get(&self.full(key)) {
            None => return Ok(None),
            Some(Value::Array(items)) => {
                let uniform = match items {
                    Array::U32(items) => uniform(items).copied().map(i128::from),
                    Array::I32(items) => uniform(items).copied().map(i128::from),
                    Array::U64(items) => uniform(items).copied().map(i128::from),
                    Array::I64(items) => uniform(items).copied().map(i128::from),
                    _ => None,
                };
                uniform.ok_or_else(|| self.bad(key, "differs between blocks, which kbit does not run yet"))?
            }
            Some(value) => value.as_integer().ok_or_else(|| self.bad(key, "is not a whole number"))?,
        };
        match usize::try_from(value) {
            Ok(value) if value <= max => Ok(Some(value)),
            _ => Err(self.bad(key, &format!("is {value}, not between 0 and {max}"))),
        }
    }

    fn opt_float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.metadata.opt_f32(&self.full(key))?)
    }

    fn positive(&self, key: &str, value: f32) -> Result<f32, ModelError> {
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            Err(self.bad(key, &format!("is {value}, not a positive number")))
        }
    }

    fn positive_or(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        self.opt_float(key)?.map_or(Ok(default), |value| self.positive(key, value))
    }

    /// Width of a head: given, or the hidden width shared out among the query heads.
    fn head_width(&self, key: &str, hidden: usize, heads: usize) -> Result<usize, ModelError> {
        match self.opt_count(key, MAX_WIDTH)? {
            Some(0) => Err(self.bad(key, "is 0")),
            Some(width) => Ok(width),
            None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
            None => {
                Err(self
                    .bad(key, &format!("is missing, and {heads} heads do not divide a width of {hidden}")))
            }
        }
    }

    /// The vocabulary: given, or the number of tokens of the tokenizer.
    fn vocab(&self) -> Result<usize, ModelError> {
        match self.opt_count("vocab_size", MAX_WIDTH)? {
            Some(0) => Err(self.bad("vocab_size", "is 0")),
            Some(vocab) => Ok(vocab),
            None => match self.metadata.strings("tokenizer.ggml.tokens")?.len() {
                0 => Err(self.bad("vocab_size", "is missing, and so are tokens")),
                tokens => Ok(tokens),
            },
        }
    }

    fn rope(
        &self,
        forward: &Forward,
        head_dim: usize,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Rope, ModelError> {
        let dims = self.opt_count("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            return Err(
                self.bad("rope.dimension_count", &format!("is {dims}, not even and at most {head_dim}"))
            );
        }
        let base = self.positive_or("rope.freq_base", 10000.0)?;
        let kind = match self.metadata.opt_str(&self.full("rope.scaling.type"))? {
            Some(kind) => kind,
            None if self.opt_float("rope.scale_linear")?.is_some() => "linear",
            None => "none",
        };
        let factor = || -> Result<f32, ModelError> {
            let old = self.positive_or("rope.scale_linear", 1.0)?;
            self.positive_or("rope.scaling.factor", old)
        };
        let scaling = match kind {
            "none" => RopeScaling::None,
            "linear" => match factor()? {
                1.0 => RopeScaling::None,
                factor => RopeScaling::Linear { factor },
            },
            "yarn" => RopeScaling::Yarn {
                factor: factor()?,
                original_context: match self.opt_count("rope.scaling.original_context_length", MAX_CONTEXT)? {
                    Some(length) if length > 0 => length,
                    _ => self.count("context_length", MAX_CONTEXT)?,
                },
                extrapolation: self
                    .opt_float("rope.scaling.yarn_ext_factor")?
                    .filter(|v| v.is_finite())
                    .unwrap_or(1.0),
                attention: self.positive_or("rope.scaling.yarn_attn_factor", 1.0)?,
                beta_fast: self.positive_or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: self.positive_or("rope.scaling.yarn_beta_slow", 1.0)?,
            },
            other => {
                let reason = format!("is {other:?}; kbit knows none, linear, yarn and frequency factors");
                return Err(self.bad("rope.scaling.type", &reason));
            }
        };
        let factors = "rope_freqs.weight";
        Ok(Rope {
            dims,
            base,
            style: forward.rope,
            scaling,
            factors: has_tensor(factors).then(|| factors.to_owned()),
        })
    }
}

/// The one value that all items have.
fn uniform<T: PartialEq>(items: &[T]) -> Option<&T> {
    let first = items.first()?;
    items.iter().all(|item| item == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of an early converter: sizes alone.
    fn early() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", Value::String("llama".to_owned()));
        for (key, value) in [
            ("block_count", 2),
            ("context_length", 256),
            ("embedding_length", 64),
            ("feed_forward_length", 192),
            ("attention.head_count", 4),
        ] {
            metadata.insert(format!("llama.{key}"), Value::U32(value));
        }
        metadata.insert("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        let tokens = vec!["a".to_owned(); 10];
        metadata.insert("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
        metadata
    }

    fn described(key: &str, value: Value) -> Result<Description, ModelError> {
        let mut metadata = early();
        metadata.insert(format!("llama.{key}"), value);
        describe(&metadata, &|_| true)
    }

    fn rope(model: Description) -> Rope {
        let Position::Rope(rope) = model.position;
        rope
    }

    #[test]
    fn early_files_have_llama_cpps_defaults() {
        let model = describe(&early(), &|_| false).unwrap();
        assert_eq!((model.vocab, model.kv_heads, model.head_dim, model.value_dim), (10, 4, 16, 16));
        assert_eq!(model.attention, Attention { scale: 0.25, window: None });
        assert!(model.tied_output);
        let rope = rope(model);
        assert_eq!(
            (rope.dims, rope.base, rope.scaling, rope.factors),
            (16, 10000.0, RopeScaling::None, None)
        );
    }

    #[test]
    fn any_width_of_whole_number_is_taken() {
        for value in
            [Value::U8(2), Value::I32(2), Value::U64(2), Value::I64(2), Value::Array(Array::I32(vec![2, 2]))]
        {
            assert_eq!(described("attention.head_count_kv", value).unwrap().kv_heads, 2);
        }
    }

    #[test]
    fn tensors_decide_about_output_and_frequency_factors() {
        let model = describe(&early(), &|name| name != "output.weight").unwrap();
        assert!(model.tied_output);
        assert_eq!(rope(model).factors.as_deref(), Some("rope_freqs.weight"));
        assert!(!describe(&early(), &|_| true).unwrap().tied_output);
    }

    #[test]
    fn yarn_is_read_with_ggmls_defaults() {
        let mut metadata = early();
        metadata.insert("llama.rope.scaling.type", Value::String("yarn".to_owned()));
        metadata.insert("llama.rope.scaling.factor", Value::F32(4.0));
        metadata.insert("llama.rope.scaling.original_context_length", Value::U32(64));
        let scaling = rope(describe(&metadata, &|_| true).unwrap()).scaling;
        let wanted = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            extrapolation: 1.0,
            attention: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
        };
        assert_eq!(scaling, wanted);
    }

    #[test]
    fn every_expected_tensor_has_a_name_of_its_own() {
        let model = describe(&early(), &|name| name != "output.weight").unwrap();
        let tensors = model.tensors().unwrap();
        let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), tensors.len());
        let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap();
        assert_eq!(find("blk.1.ffn_down.weight").shape, [64, 192]);
        assert!(!find("output.weight").required && find("token_embd.weight").required);
    }

    #[test]
    fn rejects_an_architecture_that_it_does_not_know() {
        let mut metadata = early();
        metadata.insert("general.architecture", Value::String("rwkv".to_owned()));
        let error = describe(&metadata, &|_| true).unwrap_err().to_string();
        assert!(error.contains("rwkv") && error.contains("llama"), "{error}");
    }

    #[test]
    fn rejects_numbers_that_no_model_has() {
        for (key, value) in [
            ("block_count", Value::U32(0)),
            ("block_count", Value::U32(u32::MAX)),
            ("embedding_length", Value::U64(u64::MAX)),
            ("embedding_length", Value::I32(-64)),
            ("embedding_length", Value::F32(64.0)),
            ("embedding_length", Value::U32(66)),
            ("attention.head_count", Value::U32(0)),
            ("attention.head_count_kv", Value::U32(0)),
            ("attention.head_count_kv", Value::U32(3)),
            ("attention.head_count_kv", Value::Array(Array::U32(vec![1, 2]))),
            ("attention.head_count_kv", Value::Array(Array::U32(Vec::new()))),
            ("attention.key_length", Value::U32(0)),
            ("attention.key_length", Value::U32(1 << 24)),
            ("attention.value_length", Value::U32(0)),
            ("attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
            ("attention.layer_norm_rms_epsilon", Value::F32(-1.0)),
            ("attention.scale", Value::F32(f32::INFINITY)),
            ("rope.dimension_count", Value::U32(15)),
            ("rope.dimension_count", Value::U32(32)),
            ("rope.dimension_count", Value::U32(0)),
            ("rope.freq_base", Value::F32(0.0)),
            ("rope.scaling.type", Value::String("longrope".to_owned())),
            ("vocab_size", Value::U32(0)),
        ] {
            let error = described(key, value.clone()).expect_err(key).to_string();
            assert!(error.contains("llama."), "{key} {value:?}: {error}");
        }
    }

    #[test]
    fn rejects_a_file_without_sizes() {
        for key in [
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
        ] {
            let mut metadata = early();
            metadata.remove(&format!("llama.{key}"));
            let error = describe(&metadata, &|_| true).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("missing"), "{error}");
        }
    }
}
