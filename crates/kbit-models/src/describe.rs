//! GGUF metadata -> [`Description`].
//!
//! Keys that older converters did not write have llama.cpp's defaults. Every size is checked, so that nothing later
//! divides by zero, overflows or allocates by a hostile number.

use crate::ModelError;
use crate::architecture::{
    Architecture, EmbeddingScale, FUSED_EXPERT, Forward, Joined, LocalRope, Positions, Presence, RopeBlocks,
    Windows, activation_of, in_layer,
};
use crate::description::{
    Attention, Block, BlockNorms, Description, Embedding, ExpertGroups, Experts, Gating, Latent, Norm,
    NormKind, Position, Residual, Rope, RopeScaling, RopeStyle, SharedExpert,
};
use kbit_formats::gguf::{Array, Metadata, Value};

/// Largest width, vocabulary or head count that is believed.
const MAX_WIDTH: usize = 1 << 24;
/// Largest number of blocks that is believed.
const MAX_LAYERS: usize = 1 << 12;
/// Longest context that is believed.
const MAX_CONTEXT: usize = 1 << 40;

/// Reads the hyper-parameters of the model from GGUF metadata.
///
/// `has_tensor` says whether the file has a tensor of that name: where metadata do not say it, tensors do whether the output
/// is tied to the token embedding (no `output.weight`), rotary frequencies have factors (`rope_freqs.weight`), a block has
/// experts (`ffn_gate_inp.weight`), and the like.
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
    let not_runnable = || ModelError::NotRunnable { architecture: name.to_owned() };
    let forward = architecture.forward.as_ref().ok_or_else(not_runnable)?;
    let keys = Keys { metadata, name, yarn_in_whole_pairs: forward.yarn_in_whole_pairs };

    for key in forward.needed {
        if keys.opt_float(key)?.is_none() {
            return Err(keys.bad(key, "is missing"));
        }
    }
    let residual = match forward.residual {
        Joined::Always(residual) => residual,
        Joined::Flag { key, default, set, unset } => {
            if metadata.opt_bool(&keys.full(key))?.unwrap_or(default) { set } else { unset }
        }
    };
    let leading_dense = keys.opt_count("leading_dense_block_count", MAX_LAYERS)?.unwrap_or(0);
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
    let further = further_blocks(metadata)?;
    let layers = keys.count("block_count", MAX_LAYERS)?.checked_sub(further).filter(|layers| *layers > 0);
    let layers =
        layers.ok_or_else(|| keys.bad("nextn_predict_layers", &format!("is {further}, all blocks")))?;
    let sizes = Sizes { hidden, heads, layers };
    let (mut epsilon_key, mut other_epsilon_key) =
        ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon");
    if forward.norm == NormKind::Layer {
        std::mem::swap(&mut epsilon_key, &mut other_epsilon_key);
    }
    // Phi with experts has the key of the other kind.
    let epsilon = match keys.opt_float(epsilon_key)?.or(keys.opt_float(other_epsilon_key)?) {
        Some(epsilon) => epsilon,
        None => metadata.f32(&keys.full(epsilon_key))?,
    };
    if !(0.0..=1.0).contains(&epsilon) {
        return Err(keys.bad(epsilon_key, &format!("is {epsilon}, not between 0 and 1")));
    }
    let has = |pattern: &str| has_tensor(&in_layer(pattern, 0));
    let rule = |name: &str| architecture.rules().find(|rule| rule.name == name);
    let latent = keys.latent(architecture, head_dim, value_dim, heads, has_tensor)?;
    let (kv_heads, head_dim, value_dim) = match latent {
        Some(latent) if latent.absorbed => (1, latent.rank + latent.rope, latent.rank),
        Some(latent) => (heads, latent.nope + latent.rope, latent.value),
        None => (kv_heads, head_dim, value_dim),
    };
    let feed_forward = keys.count("feed_forward_length", MAX_WIDTH)?;
    let experts = keys.experts(forward, feed_forward, has_tensor)?;
    let blocks = keys.blocks(forward, head_dim, latent, &sizes, has_tensor)?;
    let blocks = blocks.into_iter().enumerate().map(|(layer, block)| {
        let has = |name: &str| has_tensor(&format!("blk.{layer}.{name}.weight"));
        let dense = layer < leading_dense || (has("ffn_up") && !has("ffn_gate_inp"));
        Block { experts: experts.is_some() && !dense, ..block }
    });

    Ok(Description {
        architecture: name.to_owned(),
        vocab: keys.vocab()?,
        hidden,
        layers: sizes.layers,
        heads,
        kv_heads,
        head_dim,
        value_dim,
        feed_forward,
        context_length: keys.count("context_length", MAX_CONTEXT)?,
        embedding: Embedding {
            width: keys.opt_count("token_embedding_length", MAX_WIDTH)?.filter(|w| *w > 0).unwrap_or(hidden),
            scale: keys.embedding_scale(forward, hidden)?,
            learned_positions: forward.positions == Positions::Learned,
            norm: rule("token_embd_norm.weight").is_some(),
        },
        norm: Norm { kind: forward.norm, epsilon, weights: forward.norm_weights },
        norms: block_norms(forward, residual, has_tensor),
        output_norm: rule("output_norm.weight").is_none_or(|rule| rule.presence == Presence::Required)
            || has_tensor("output_norm.weight"),
        attention: Attention {
            scale: keys.attention_scale(forward, latent, head_dim, &sizes)?,
            cap: keys.opt_positive("attn_logit_softcapping")?,
            clamp: keys.opt_positive("attention.clamp_kqv")?,
            head_norm: forward.head_norm.filter(|_| {
                let needed = rule(HEAD_NORM).is_some_and(|rule| rule.presence == Presence::Required);
                needed || has(HEAD_NORM)
            }),
            sinks: rule("blk.{layer}.attn_sinks.weight").is_some(),
            fused: rule(FUSED).is_some() || has(FUSED),
            latent,
        },
        blocks: blocks.collect(),
        activation: match metadata.opt_str(&keys.full(ACTIVATION))? {
            None => forward.activation.0,
            Some(name) => activation_of(name)
                .ok_or_else(|| keys.bad(ACTIVATION, &format!("is {name:?}, which kbit does not know")))?,
        },
        gate: forward.gate,
        experts,
        residual,
        residual_scale: keys.positive_or("residual_scale", 1.0)?,
        output_scale: match keys.opt_positive("logit_scale")? {
            None => 1.0,
            Some(scale) if forward.divided_logits => 1.0 / scale,
            Some(scale) => scale,
        },
        output_cap: keys.opt_positive("final_logit_softcapping")?,
        tied_output: !has_tensor("output.weight"),
    })
}

/// How many blocks behind those of the [`Description`] the file has: the last ones of some models predict further tokens, which
/// the forward pass has no use for.
///
/// # Errors
/// When the key has another type or an impossible value.
pub fn further_blocks(metadata: &Metadata) -> Result<usize, ModelError> {
    let keys = Keys { metadata, name: metadata.str("general.architecture")?, yarn_in_whole_pairs: true };
    Ok(keys.opt_count("nextn_predict_layers", MAX_LAYERS)?.unwrap_or(0))
}

/// Key of the non-linearity, where it is not the architecture's usual one.
pub(crate) const ACTIVATION: &str = "hidden_activation";
/// Tensor that says whether one matrix gives queries, keys and values.
const FUSED: &str = "blk.{layer}.attn_qkv.weight";
/// Tensor that says whether queries are normalised.
const HEAD_NORM: &str = "blk.{layer}.attn_q_norm.weight";

/// Which norms there are: side by side, a sub-layer without a norm of its own reads the other's.
fn block_norms(forward: &Forward, residual: Residual, has_tensor: &dyn Fn(&str) -> bool) -> BlockNorms {
    let there = |name: &&'static str| has_tensor(&format!("blk.0.{name}.weight"));
    let norms = forward.norms;
    match (norms.before_attention, norms.before_feed_forward) {
        (Some(one), Some(other)) if residual == Residual::Parallel && there(&one) != there(&other) => {
            let shared = if there(&one) { one } else { other };
            BlockNorms { before_attention: Some(shared), before_feed_forward: Some(shared), ..norms }
        }
        _ => norms,
    }
}

/// Sizes that several keys are read by.
struct Sizes {
    hidden: usize,
    heads: usize,
    layers: usize,
}

/// Typed reads of `<architecture>.<key>`.
struct Keys<'a> {
    metadata: &'a Metadata,
    name: &'a str,
    /// See [`RopeScaling::Yarn`].
    yarn_in_whole_pairs: bool,
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

    /// A positive number; 0 stands for none.
    fn opt_positive(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.opt_float(key)? {
            Some(value) if value != 0.0 => self.positive(key, value).map(Some),
            _ => Ok(None),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "widths are at most 2^24")]
    fn embedding_scale(&self, forward: &Forward, hidden: usize) -> Result<f32, ModelError> {
        Ok(match (self.opt_positive("embedding_scale")?, forward.embedding_scale) {
            (Some(scale), _) => scale,
            (None, EmbeddingScale::One) => 1.0,
            (None, EmbeddingScale::RootOfHidden) => (hidden as f32).sqrt(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "a head is far narrower than 2^24")]
    fn attention_scale(
        &self,
        forward: &Forward,
        latent: Option<Latent>,
        head_dim: usize,
        sizes: &Sizes,
    ) -> Result<f32, ModelError> {
        if let Some(scale) = self.opt_positive("attention.scale")? {
            return Ok(scale);
        }
        let width = match latent {
            Some(latent) => latent.nope + latent.rope,
            None if forward.wide_scale == Some(sizes.layers) => (sizes.hidden / sizes.heads).max(1),
            None => head_dim,
        };
        Ok(1.0 / (width as f32).sqrt() * self.latent_magnitude(latent)?.powi(2))
    }

    /// What YaRN makes of the magnitude of queries and keys in latent attention, whose dimensions without position it
    /// concerns as well (DeepSeek-V2 2024): `1 + multiplier ln(factor)`.
    fn latent_magnitude(&self, latent: Option<Latent>) -> Result<f32, ModelError> {
        match self.opt_positive(LOG_MULTIPLIER)? {
            Some(multiplier) if latent.is_some() => {
                Ok(1.0 + multiplier * self.positive_or("rope.scaling.factor", 1.0)?.ln())
            }
            _ => Ok(1.0),
        }
    }

    /// Latent attention, if the architecture has it.
    fn latent(
        &self,
        architecture: &Architecture,
        head_dim: usize,
        value_dim: usize,
        heads: usize,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Latent>, ModelError> {
        if architecture.rules().all(|rule| rule.presence != Presence::Absorbed) {
            return Ok(None);
        }
        let rope = self.count("rope.dimension_count", MAX_WIDTH)?;
        let absorbed = !has_tensor("blk.0.attn_kv_b.weight");
        let (key, value) = ("attention.key_length_mla", "attention.value_length_mla");
        let width = self.opt_count(key, MAX_WIDTH)?.unwrap_or(head_dim);
        let value = self.opt_count(value, MAX_WIDTH)?.unwrap_or(value_dim);
        let nope = width.checked_sub(rope).filter(|nope| *nope > 0 && value > 0);
        let nope = nope.ok_or_else(|| self.bad(key, &format!("is {width}, where {rope} dimensions turn")))?;
        let rank = self.count("attention.kv_lora_rank", MAX_WIDTH)?;
        if heads.checked_mul(rank + width.max(value)).is_none_or(|all| all > MAX_WIDTH) {
            return Err(self.bad("attention.kv_lora_rank", &format!("is {rank}, too much for {heads} heads")));
        }
        let query_rank = if has_tensor("blk.0.attn_q.weight") {
            None
        } else {
            self.opt_count("attention.q_lora_rank", MAX_WIDTH)?.filter(|rank| *rank > 0)
        };
        Ok(Some(Latent { query_rank, rank, nope, rope, value, absorbed }))
    }

    /// Experts, if there are any.
    fn experts(
        &self,
        forward: &Forward,
        feed_forward: usize,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Experts>, ModelError> {
        let Some(count) = self.opt_count("expert_count", MAX_WIDTH)?.filter(|count| *count > 0) else {
            return Ok(None);
        };
        let used = self.count("expert_used_count", MAX_WIDTH)?;
        if used > count {
            return Err(self.bad("expert_used_count", &format!("is {used}, of {count} experts")));
        }
        let nonzero = |key: &str| Ok(self.opt_count(key, MAX_WIDTH)?.filter(|value| *value > 0));
        let nonzero: &dyn Fn(&str) -> Result<Option<usize>, ModelError> = &nonzero;
        let width = nonzero("expert_feed_forward_length")?.unwrap_or(feed_forward);
        let routing = forward.routing;
        let biased = || {
            let layers = self.opt_count("leading_dense_block_count", MAX_LAYERS)?.unwrap_or(0);
            Ok::<bool, ModelError>(has_tensor(&format!("blk.{layers}.exp_probs_b.bias")))
        };
        let gating = match nonzero("expert_gating_func")? {
            // A bias for the choice alone goes with sigmoids, also in files that do not say so.
            None if biased()? => Gating::Sigmoid,
            None => match (routing.gating, self.opt_float("expert_router_jitter")?) {
                (Gating::SparseMixer { .. }, Some(jitter)) if (0.0..=1.0).contains(&jitter) => {
                    Gating::SparseMixer { tolerance: 2.0 * jitter }
                }
                (Gating::SparseMixer { .. }, Some(jitter)) => {
                    return Err(
                        self.bad("expert_router_jitter", &format!("is {jitter}, not between 0 and 1"))
                    );
                }
                (gating, _) => gating,
            },
            Some(1) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::SoftmaxOfChosen,
            Some(other) => {
                return Err(self.bad("expert_gating_func", &format!("is {other}; kbit knows 1, 2 and 3")));
            }
        };
        let groups = match nonzero("expert_group_count")?.filter(|groups| *groups > 1) {
            None => None,
            Some(groups) => {
                let chosen = self.count("expert_group_used_count", MAX_WIDTH)?;
                if !count.is_multiple_of(groups) || chosen > groups || chosen * (count / groups) < used {
                    return Err(self.bad(
                        "expert_group_count",
                        &format!("is {groups} with {chosen} chosen, for {used} of {count} experts"),
                    ));
                }
                // DeepSeek-V2 goes by a group's best expert, V3 by its best two.
                let best = if gating == Gating::Sigmoid { 2 } else { 1 };
                Some(ExpertGroups { count: groups, used: chosen, best })
            }
        };
        let shared = match nonzero("expert_shared_feed_forward_length")? {
            Some(width) => Some(width),
            None => match nonzero("expert_shared_count")? {
                Some(experts) => match experts.checked_mul(width).filter(|width| *width <= MAX_WIDTH) {
                    Some(width) => Some(width),
                    None => return Err(self.bad("expert_shared_count", &format!("is {experts}, too many"))),
                },
                None => routing.gated_shared.then_some(feed_forward),
            },
        };
        Ok(Some(Experts {
            count,
            used,
            width,
            gating,
            fused: has_tensor(&in_layer(
                FUSED_EXPERT,
                self.opt_count("leading_dense_block_count", MAX_LAYERS)?.unwrap_or(0),
            )),
            normalised: self
                .metadata
                .opt_bool(&self.full("expert_weights_norm"))?
                .unwrap_or(routing.normalised),
            scale: self.opt_positive("expert_weights_scale")?.unwrap_or(1.0),
            groups,
            shared: shared.map(|width| SharedExpert { width, gated: routing.gated_shared }),
        }))
    }

    /// Positions and windows of all blocks.
    fn blocks(
        &self,
        forward: &Forward,
        head_dim: usize,
        latent: Option<Latent>,
        sizes: &Sizes,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Block>, ModelError> {
        let window = self.opt_count("attention.sliding_window", MAX_CONTEXT)?.filter(|&window| window > 0);
        let windowed = self.windowed(forward, sizes.layers)?;
        let (global, local, which) = match forward.positions {
            Positions::Learned => (Position::None, Position::None, RopeBlocks::All),
            Positions::Alibi { max_bias } => {
                (Position::Alibi { max_bias }, Position::Alibi { max_bias }, RopeBlocks::All)
            }
            Positions::Rope { style, blocks, local } => {
                let global = self.rope(style, head_dim, latent, has_tensor)?;
                let local = match local {
                    LocalRope::Same => global.clone(),
                    LocalRope::Unscaled(base) => Rope {
                        base: self.positive_or("rope.freq_base_swa", base.unwrap_or(global.base))?,
                        scaling: RopeScaling::None,
                        factors: None,
                        ..global.clone()
                    },
                };
                (Position::Rope(global), Position::Rope(local), blocks)
            }
        };
        let block = |(layer, windowed): (usize, bool)| {
            let windowed = windowed && window.is_some();
            let turns = match which {
                RopeBlocks::All => true,
                RopeBlocks::AllButEvery(step) => !(layer + 1).is_multiple_of(step),
                RopeBlocks::Windowed => windowed,
            };
            let position = match (turns, windowed) {
                (false, _) => Position::None,
                (true, true) => local.clone(),
                (true, false) => global.clone(),
            };
            Block { position, window: window.filter(|_| windowed), experts: false }
        };
        Ok(windowed.into_iter().enumerate().map(block).collect())
    }

    /// Which blocks have a sliding window, if the model has one: given for each block, or by the period of the pattern.
    fn windowed(&self, forward: &Forward, layers: usize) -> Result<Vec<bool>, ModelError> {
        const KEY: &str = "attention.sliding_window_pattern";
        let every = |step: usize| (0..layers).map(|layer| !(layer + 1).is_multiple_of(step)).collect();
        match self.metadata.get(&self.full(KEY)) {
            Some(Value::Array(Array::Bool(pattern))) if pattern.len() == layers => Ok(pattern.clone()),
            Some(Value::Array(_)) => Err(self.bad(KEY, &format!("is not {layers} times true or false"))),
            Some(_) => Ok(every(self.count(KEY, MAX_LAYERS)?)),
            None => Ok(match forward.windows {
                Windows::All => vec![true; layers],
                Windows::AllButEvery(step) => every(step),
            }),
        }
    }

    fn rope(
        &self,
        style: RopeStyle,
        head_dim: usize,
        latent: Option<Latent>,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Rope, ModelError> {
        let dims = self.opt_count("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            return Err(
                self.bad("rope.dimension_count", &format!("is {dims}, not even and at most {head_dim}"))
            );
        }
        let factors = ["rope_freqs.weight", SHORT_FACTORS].into_iter().find(|name| has_tensor(name));
        Ok(Rope {
            dims,
            first: if latent.is_some() { head_dim - dims } else { 0 },
            base: self.positive_or("rope.freq_base", 10000.0)?,
            style,
            scaling: self.rope_scaling(latent, has_tensor)?,
            factors: factors.map(str::to_owned),
        })
    }

    fn rope_scaling(
        &self,
        latent: Option<Latent>,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<RopeScaling, ModelError> {
        let kind = match self.metadata.opt_str(&self.full("rope.scaling.type"))? {
            Some(kind) => kind,
            None if has_tensor(LONG_FACTORS) => "longrope",
            None if self.opt_float("rope.scale_linear")?.is_some() => "linear",
            None => "none",
        };
        let factor = || -> Result<f32, ModelError> {
            let old = self.positive_or("rope.scale_linear", 1.0)?;
            self.positive_or("rope.scaling.factor", old)
        };
        let context = || self.count("context_length", MAX_CONTEXT);
        let original_context = || match self.opt_count("rope.scaling.original_context_length", MAX_CONTEXT)? {
            Some(length) if length > 0 => Ok(length),
            _ => context(),
        };
        Ok(match kind {
            "none" => RopeScaling::None,
            "linear" => match factor()? {
                1.0 => RopeScaling::None,
                factor => RopeScaling::Linear { factor },
            },
            "yarn" => {
                let factor = factor()?;
                // Latent attention has it in its scale.
                let in_scale = latent.is_some() && self.opt_positive(LOG_MULTIPLIER)?.is_some();
                let usual = if in_scale { 1.0 } else { 1.0 + 0.1 * factor.ln().max(0.0) };
                RopeScaling::Yarn {
                    factor,
                    original_context: original_context()?,
                    extrapolation: self
                        .opt_float("rope.scaling.yarn_ext_factor")?
                        .filter(|v| v.is_finite())
                        .unwrap_or(1.0),
                    attention: self.positive_or("rope.scaling.yarn_attn_factor", usual)?,
                    beta_fast: self.positive_or("rope.scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: self.positive_or("rope.scaling.yarn_beta_slow", 1.0)?,
                    whole_pairs: self.yarn_in_whole_pairs,
                }
            }
            "longrope" => {
                if !has_tensor(LONG_FACTORS) {
                    let reason = format!("is \"longrope\", and the tensor {LONG_FACTORS} is missing");
                    return Err(self.bad("rope.scaling.type", &reason));
                }
                let original_context = original_context()?;
                RopeScaling::LongRope {
                    original_context,
                    attention: match self.opt_positive("rope.scaling.magnitude")? {
                        Some(magnitude) => magnitude,
                        None => self.positive_or(
                            "rope.scaling.attn_factor",
                            long_rope_magnitude(context()?, original_context),
                        )?,
                    },
                    long_factors: LONG_FACTORS.to_owned(),
                }
            }
            other => {
                let reason =
                    format!("is {other:?}; kbit knows none, linear, yarn, longrope and frequency factors");
                return Err(self.bad("rope.scaling.type", &reason));
            }
        })
    }
}

/// Tensors of `LongRoPE`.
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";
/// Key of the factor by which YaRN's magnitude grows with the logarithm of its factor.
const LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";

/// The factor on sines and cosines of `LongRoPE` (Ding et al. 2024) where the file has none.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "contexts are far below 2^53"
)]
fn long_rope_magnitude(context: usize, original: usize) -> f32 {
    let growth = context as f64 / original as f64;
    if growth <= 1.0 || original < 2 {
        return 1.0;
    }
    (1.0 + growth.ln() / (original as f64).ln()).sqrt() as f32
}

/// The one value that all items have.
fn uniform<T: PartialEq>(items: &[T]) -> Option<&T> {
    let first = items.first()?;
    items.iter().all(|item| item == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a plain model has, of the tensors that decide about it.
    fn usual(name: &str) -> bool {
        ["output.weight", "output_norm.weight", "blk.0.ffn_up.weight"].contains(&name)
    }

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
        describe(&metadata, &usual)
    }

    fn rope(model: Description) -> Rope {
        match &model.blocks[0].position {
            Position::Rope(rope) => rope.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn early_files_have_llama_cpps_defaults() {
        let model = describe(&early(), &|_| false).unwrap();
        assert_eq!((model.vocab, model.kv_heads, model.head_dim, model.value_dim), (10, 4, 16, 16));
        assert!((model.attention.scale - 0.25).abs() < 1e-9);
        assert!(model.blocks.len() == 2 && model.blocks.iter().all(|block| block.window.is_none()));
        assert!(model.tied_output);
        let rope = rope(model);
        assert_eq!(
            (rope.dims, rope.base, rope.scaling, rope.factors),
            (16, 10000.0, RopeScaling::None, None)
        );
    }

    #[test]
    fn phi_with_experts_has_layer_norms_under_the_key_of_rms_norms() {
        let mut metadata = Metadata::new();
        early()
            .iter()
            .for_each(|(key, value)| metadata.insert(key.replace("llama.", "phimoe."), value.clone()));
        metadata.insert("general.architecture", Value::String("phimoe".to_owned()));
        for (key, value) in [("expert_count", 4), ("expert_used_count", 2)] {
            metadata.insert(format!("phimoe.{key}"), Value::U32(value));
        }
        let model = describe(&metadata, &usual).unwrap();
        assert_eq!((model.norm.kind, model.norm.epsilon), (NormKind::Layer, 1e-5));
        assert_eq!(model.experts.unwrap().gating, Gating::SparseMixer { tolerance: 0.02 });
        metadata.insert("phimoe.expert_router_jitter", Value::F32(0.0));
        let model = describe(&metadata, &usual).unwrap();
        assert_eq!(model.experts.unwrap().gating, Gating::SparseMixer { tolerance: 0.0 });
        metadata.insert("phimoe.expert_router_jitter", Value::F32(-1.0));
        let error = describe(&metadata, &usual).unwrap_err().to_string();
        assert!(error.contains("phimoe.expert_router_jitter") && error.contains("-1"), "{error}");
        metadata.remove("phimoe.attention.layer_norm_rms_epsilon");
        let error = describe(&metadata, &usual).unwrap_err().to_string();
        assert!(error.contains("phimoe.attention.layer_norm_epsilon"), "{error}");
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
        let model = describe(&early(), &|name| name == "rope_freqs.weight").unwrap();
        assert!(model.tied_output);
        assert_eq!(rope(model).factors.as_deref(), Some("rope_freqs.weight"));
        assert!(!describe(&early(), &usual).unwrap().tied_output);
    }

    #[test]
    fn yarn_is_read_with_ggmls_defaults() {
        let mut metadata = early();
        metadata.insert("llama.rope.scaling.type", Value::String("yarn".to_owned()));
        metadata.insert("llama.rope.scaling.factor", Value::F32(4.0));
        metadata.insert("llama.rope.scaling.original_context_length", Value::U32(64));
        let scaling = rope(describe(&metadata, &usual).unwrap()).scaling;
        let wanted = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            extrapolation: 1.0,
            attention: 1.0 + 0.1 * 4f32.ln(),
            beta_fast: 32.0,
            beta_slow: 1.0,
            whole_pairs: true,
        };
        assert_eq!(scaling, wanted);
    }

    #[test]
    fn every_expected_tensor_has_a_name_of_its_own() {
        let model = describe(&early(), &|name| name == "rope_freqs.weight").unwrap();
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
        let error = describe(&metadata, &usual).unwrap_err().to_string();
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

    /// Sizes of an early file under another architecture's name.
    fn early_of(architecture: &str) -> Metadata {
        let mut metadata = Metadata::new();
        for (key, value) in early().iter() {
            metadata.insert(key.replace("llama", architecture), value.clone());
        }
        metadata.insert("general.architecture", Value::String(architecture.to_owned()));
        metadata
    }

    #[test]
    fn experts_are_read_with_their_groups() {
        let mut metadata = early_of("deepseek2");
        for (key, value) in [
            ("expert_count", 8),
            ("expert_used_count", 3),
            ("expert_feed_forward_length", 24),
            ("expert_shared_count", 2),
            ("expert_group_count", 4),
            ("expert_group_used_count", 2),
            ("leading_dense_block_count", 1),
            ("attention.kv_lora_rank", 12),
            ("attention.key_length_mla", 10),
            ("attention.value_length_mla", 6),
            ("rope.dimension_count", 4),
        ] {
            metadata.insert(format!("deepseek2.{key}"), Value::U32(value));
        }
        metadata.insert("deepseek2.expert_weights_scale", Value::F32(2.5));
        let model = describe(&metadata, &usual).unwrap();
        let experts = Experts {
            count: 8,
            used: 3,
            width: 24,
            gating: Gating::Softmax,
            fused: false,
            normalised: false,
            scale: 2.5,
            groups: Some(ExpertGroups { count: 4, used: 2, best: 1 }),
            shared: Some(SharedExpert { width: 48, gated: false }),
        };
        assert_eq!(model.experts, Some(experts));
        assert!(!model.blocks[0].experts && model.blocks[1].experts);
        assert_eq!((model.kv_heads, model.head_dim, model.value_dim), (1, 16, 12));
        // A bias for the choice goes with sigmoids, and groups go by their best two.
        let biased = describe(&metadata, &|name| name.ends_with("exp_probs_b.bias") || usual(name)).unwrap();
        let found = biased.experts.map(|experts| (experts.gating, experts.groups.map(|groups| groups.best)));
        assert_eq!(found, Some((Gating::Sigmoid, Some(2))));

        for (key, value) in [
            ("expert_used_count", 9),
            ("expert_used_count", 5),
            ("expert_group_count", 3),
            ("expert_group_used_count", 5),
            ("expert_gating_func", 9),
            ("expert_shared_count", 1 << 24),
            ("attention.kv_lora_rank", 1 << 24),
            ("attention.key_length_mla", 4),
            ("attention.value_length_mla", 0),
        ] {
            let mut metadata = metadata.clone();
            metadata.insert(format!("deepseek2.{key}"), Value::U32(value));
            let error = describe(&metadata, &usual).expect_err(key).to_string();
            assert!(error.contains("deepseek2."), "{key}: {error}");
        }
    }

    #[test]
    fn windows_follow_the_pattern_of_the_architecture_or_of_the_file() {
        let mut metadata = early_of("cohere2");
        metadata.insert("cohere2.attention.layer_norm_epsilon", Value::F32(1e-5));
        metadata.insert("cohere2.block_count", Value::U32(5));
        metadata.insert("cohere2.attention.sliding_window", Value::U32(7));
        let windows = |metadata: &Metadata| -> Vec<bool> {
            let model = describe(metadata, &usual).unwrap();
            // Blocks without a window have no positions either.
            assert!(model.blocks.iter().all(|b| b.window.is_some() == (b.position != Position::None)));
            model.blocks.iter().map(|block| block.window == Some(7)).collect()
        };
        assert_eq!(windows(&metadata), [true, true, true, false, true]);
        const KEY: &str = "cohere2.attention.sliding_window_pattern";
        metadata.insert(KEY, Value::U32(2));
        assert_eq!(windows(&metadata), [true, false, true, false, true]);
        let pattern = vec![false, true, false, false, true];
        metadata.insert(KEY, Value::Array(Array::Bool(pattern.clone())));
        assert_eq!(windows(&metadata), pattern);
        metadata.insert(KEY, Value::Array(Array::Bool(vec![true])));
        assert!(describe(&metadata, &usual).unwrap_err().to_string().contains(KEY));
        metadata.insert(KEY, Value::U32(0));
        assert!(describe(&metadata, &usual).unwrap_err().to_string().contains(KEY));
    }

    #[test]
    fn blocks_that_predict_further_tokens_do_not_count() {
        assert_eq!(described("nextn_predict_layers", Value::U32(1)).unwrap().layers, 1);
        assert!(described("nextn_predict_layers", Value::U32(2)).is_err());
    }

    #[test]
    fn rejects_a_file_without_what_its_architecture_needs() {
        let error = describe(&early_of("gemma2"), &usual).unwrap_err().to_string();
        assert!(error.contains("gemma2.attn_logit_softcapping is missing"), "{error}");
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
            let error = describe(&metadata, &usual).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("missing"), "{error}");
        }
    }
}
