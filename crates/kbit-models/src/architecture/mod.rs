//! Architectures as data: one table each.
//!
//! An [`Architecture`] says which Hugging Face classes it covers, what their configuration leaves to defaults, which
//! GGUF metadata it becomes, and which tensors the model has: Hugging Face name, GGUF name, shape, role and what has to
//! be done to the values. Conversion, description and checks all read these tables; none of them names an architecture.
//!
//! To add one, write a table in a file of its family and put it into [`ARCHITECTURES`]; `parts.rs` has what most have
//! in common. A table with a [`Forward`] can also be run by the engine; the others convert, quantize and inspect. Tensors
//! that Hugging Face has not, but some GGUF files have, are rules without a source.
//! Names, order and metadata are those of llama.cpp's `convert_hf_to_gguf.py`, which
//! `tests/python/compare_converter.py` compares with kbit's.

mod cohere;
mod deepseek;
mod gemma;
mod gpt;
mod internlm;
mod llama;
mod olmo;
mod parts;
mod phi;
mod qwen;

pub(crate) use parts::{COMMON, EXPERT_KEYS, HEAD_KEYS, HIDDEN_KEYS, LAYER_KEYS};

use crate::description::{
    Activation, BlockNorms, Description, Gate, Gating, HeadNorm, NormKind, NormOver, Position, Residual,
    RopeStyle,
};
use crate::{ModelError, Role};
use std::collections::HashSet;

/// All architectures that kbit knows.
pub const ARCHITECTURES: &[&Architecture] = &[
    &llama::LLAMA,
    &llama::SMOLLM3,
    &llama::GRANITE,
    &llama::GRANITE_MOE,
    &llama::GPT_OSS,
    &qwen::QWEN2,
    &qwen::QWEN2_MOE,
    &qwen::QWEN3,
    &qwen::QWEN3_MOE,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &phi::PHI2,
    &phi::PHI3,
    &phi::PHI_MOE,
    &gpt::GPT2,
    &gpt::GPT_NEO,
    &gpt::GPT_NEOX,
    &gpt::OPT,
    &gpt::BLOOM,
    &gpt::FALCON,
    &gpt::STARCODER2,
    &gpt::STABLELM,
    &olmo::OLMO,
    &olmo::OLMO2,
    &olmo::OLMOE,
    &deepseek::DEEPSEEK,
    &deepseek::DEEPSEEK2,
    &internlm::MINICPM,
    &internlm::INTERNLM2,
    &cohere::COMMAND_R,
    &cohere::COHERE2,
];

/// One architecture.
#[derive(Debug)]
pub struct Architecture {
    /// GGUF's name of it (`general.architecture`).
    pub name: &'static str,
    /// Hugging Face classes that are this one.
    pub classes: &'static [Classes],
    /// What the engine must know; `None` where it cannot run the architecture yet.
    pub forward: Option<Forward>,
    /// Metadata in the order in which llama.cpp's converter writes it.
    pub parameters: &'static [Parameter],
    /// Tensors, in groups that several architectures share. Where one tensor becomes several, they stand in the order of
    /// the output.
    pub tensors: &'static [&'static [TensorRule]],
    /// Endings of Hugging Face tensors that are left out: buffers that are computed anew, copies of others.
    pub dropped: &'static [&'static str],
    /// What the names of all tensors may begin with or not.
    pub optional_prefix: &'static str,
    /// True where blocks past the last one are left out (they predict further tokens).
    pub drops_further_blocks: bool,
    /// Keys of config.json whose presence (non-null, non-zero) means a model that this table does not cover.
    pub refused: &'static [(&'static str, &'static str)],
}

/// Hugging Face classes with one configuration class.
#[derive(Debug)]
pub struct Classes {
    /// `architectures` in config.json.
    pub names: &'static [&'static str],
    /// Values that the configuration class has where config.json does not give them.
    pub defaults: &'static [(&'static str, Fallback)],
}

/// A value that config.json may leave out. Source: the configuration classes of Hugging Face transformers 5.23.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fallback {
    /// A whole number.
    Count(u32),
    /// A number.
    Float(f64),
    /// Yes or no.
    Flag(bool),
    /// The hidden width shared out among the query heads; also where config.json says null.
    HeadDim,
    /// The number of query heads; also where config.json says null.
    Heads,
    /// The value of another key.
    SameAs(&'static str),
    /// None: the converter does not read the key.
    Ignored,
}

/// The building blocks of the forward pass: what metadata do not say, because every model of the architecture has it.
#[derive(Debug)]
pub struct Forward {
    /// Normalisation of the stream.
    pub norm: NormKind,
    /// False where it has no weights.
    pub norm_weights: bool,
    /// Where it is normalised in a block.
    pub norms: BlockNorms,
    /// Normalisation of queries and keys, where there are tensors for it.
    pub head_norm: Option<HeadNorm>,
    /// How tokens know where they stand.
    pub positions: Positions,
    /// Which blocks have a sliding window, where there is one and no pattern is given.
    pub windows: Windows,
    /// Non-linearity, and the names of it that config.json may use.
    pub activation: (Activation, &'static [&'static str]),
    /// Whether the feed-forward network has a gate.
    pub gate: Gate,
    /// How experts are chosen, where there are any.
    pub routing: Routing,
    /// How sub-layers are joined.
    pub residual: Joined,
    /// Factor on the embedding where the metadata give none.
    pub embedding_scale: EmbeddingScale,
    /// True where logits are divided by `logit_scale`, not multiplied.
    pub divided_logits: bool,
    /// In models of this many blocks the factor on attention scores goes by the hidden width shared out among the heads,
    /// not by a head's width.
    pub wide_scale: Option<usize>,
    /// True where YaRN's bounds are rounded outwards to whole pairs.
    pub yarn_in_whole_pairs: bool,
    /// Metadata without which the model cannot be run.
    pub needed: &'static [&'static str],
}

/// A Llama's building blocks, which others name their differences from.
pub(crate) const LLAMA_FORWARD: Forward = Forward {
    norm: NormKind::Rms,
    norm_weights: true,
    norms: BEFORE,
    head_norm: None,
    positions: HALVES,
    windows: Windows::All,
    activation: (Activation::Silu, &["silu", "swish"]),
    gate: Gate::Separate,
    routing: Routing { gating: Gating::Softmax, normalised: true, gated_shared: false },
    residual: Joined::Always(Residual::Sequential),
    embedding_scale: EmbeddingScale::One,
    divided_logits: false,
    wide_scale: None,
    yarn_in_whole_pairs: true,
    needed: &[],
};

/// Building blocks of the GPT-2 family.
pub(crate) const GPT_FORWARD: Forward = Forward {
    norm: NormKind::Layer,
    positions: Positions::Learned,
    activation: GELU_TANH,
    gate: Gate::None,
    ..LLAMA_FORWARD
};

/// A norm before each sub-layer.
pub(crate) const BEFORE: BlockNorms = BlockNorms {
    before_attention: Some("attn_norm"),
    after_attention: None,
    before_feed_forward: Some("ffn_norm"),
    after_feed_forward: None,
};

/// One norm that both sub-layers read.
pub(crate) const ONE_BEFORE: BlockNorms = BlockNorms { before_feed_forward: Some("attn_norm"), ..BEFORE };

/// Norms before and after each sub-layer.
pub(crate) const AROUND: BlockNorms = BlockNorms {
    after_attention: Some("post_attention_norm"),
    after_feed_forward: Some("post_ffw_norm"),
    ..BEFORE
};

/// A norm of each head, with weights that all heads share.
pub(crate) const RMS_OF_HEADS: Option<HeadNorm> =
    Some(HeadNorm { kind: NormKind::Rms, over: NormOver::Head });
/// A norm of all heads together.
pub(crate) const RMS_OF_ALL_HEADS: Option<HeadNorm> =
    Some(HeadNorm { kind: NormKind::Rms, over: NormOver::AllHeads });
/// A norm of each head, with weights of its own.
pub(crate) const LAYER_NORM_OF_EACH_HEAD: Option<HeadNorm> =
    Some(HeadNorm { kind: NormKind::Layer, over: NormOver::EachHead });

/// Rotary positions of all blocks, pairs side by side.
pub(crate) const ADJACENT_PAIRS: Positions =
    Positions::Rope { style: RopeStyle::Adjacent, blocks: RopeBlocks::All, local: LocalRope::Same };

/// The same, pairs half a width apart.
pub(crate) const HALVES: Positions =
    Positions::Rope { style: RopeStyle::Halves, blocks: RopeBlocks::All, local: LocalRope::Same };

/// GELU by its approximation, under its names in config.json.
pub(crate) const GELU_TANH: (Activation, &[&str]) =
    (Activation::GeluTanh, &["gelu_new", "gelu_pytorch_tanh", "gelu_fast"]);

/// The non-linearity of that name in Hugging Face's `ACT2FN`.
pub(crate) fn activation_of(name: &str) -> Option<Activation> {
    Some(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        _ => return None,
    })
}

/// How tokens know where they stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// Rotary embedding.
    Rope {
        /// Which dimensions of a head turn together.
        style: RopeStyle,
        /// Which blocks have it.
        blocks: RopeBlocks,
        /// What it is in blocks with a sliding window.
        local: LocalRope,
    },
    /// A learned vector for each position.
    Learned,
    /// Scores that fall with the distance.
    Alibi {
        /// See [`Position::Alibi`].
        max_bias: f32,
    },
}

/// Which blocks have rotary positions; the others have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeBlocks {
    /// All.
    All,
    /// All but the last of each so many.
    AllButEvery(usize),
    /// Those with a sliding window.
    Windowed,
}

/// Rotary positions in blocks with a sliding window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LocalRope {
    /// As in the others.
    Same,
    /// Without scaling, on a base of their own: `rope.freq_base_swa`, else this one, else that of the others.
    Unscaled(Option<f32>),
}

/// Which blocks have a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// All.
    All,
    /// All but the last of each so many.
    AllButEvery(usize),
}

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// How the router's logits become scores.
    pub gating: Gating,
    /// True where the scores of the chosen are divided by their sum.
    pub normalised: bool,
    /// True where the expert that all tokens go through has a gate.
    pub gated_shared: bool,
}

/// How sub-layers are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// So.
    Always(Residual),
    /// As a flag of the metadata says.
    Flag {
        /// Its key.
        key: &'static str,
        /// What holds without it.
        default: bool,
        /// If it is set.
        set: Residual,
        /// If not.
        unset: Residual,
    },
}

/// Factor on the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddingScale {
    /// 1.
    One,
    /// The square root of the hidden width.
    RootOfHidden,
}

/// One metadata entry: `<architecture>.<key>`, or `key` where that begins with `general.` or `tokenizer.`.
#[derive(Debug)]
pub struct Parameter {
    /// Key.
    pub key: &'static str,
    /// Where its value comes from.
    pub from: From,
}

/// Where a metadata value comes from. "The first of these keys" is the first that is there and not null; an entry whose
/// keys are all absent is left out, unless it says otherwise.
#[derive(Debug)]
pub enum From {
    /// The entries that most architectures begin with, in the order of llama.cpp's `TextModel`.
    Common,
    /// U32: the first of these keys.
    Count(&'static [&'static str]),
    /// U32: as [`From::Count`]; an error if none is there.
    Needed(&'static [&'static str]),
    /// U32: as [`From::Count`], or this value.
    CountOr(&'static [&'static str], u32),
    /// U32: a length.
    Length(Dim),
    /// U32: this value.
    Always(u32),
    /// F32: the first of these keys.
    Float(&'static [&'static str]),
    /// F32: as [`From::Float`]; an error if none is there.
    NeededFloat(&'static [&'static str]),
    /// F32: this key, unless it is zero.
    NonZeroFloat(&'static str),
    /// U32: this key, unless it is zero.
    NonZeroCount(&'static str),
    /// F32: this value.
    AlwaysFloat(f32),
    /// F32: the first key, divided by the second or by its square root.
    Ratio(&'static str, &'static str, Power),
    /// F32: a setting of the rotary positions times this.
    RopeSetting(&'static str, f64),
    /// Bool: this key, or this value.
    Flag(&'static str, bool),
    /// Bool: `true` where the key says so.
    IfTrue(&'static str),
    /// Bool: `false` where the key says so.
    IfFalse(&'static str),
    /// Bool: this value.
    AlwaysFlag(bool),
    /// String: this.
    Text(&'static str),
    /// U32: llama.cpp's number of the function that turns router logits into weights.
    GatingFunction,
    /// U32: how many dimensions of a head turn, by `partial_rotary_factor`.
    RotaryDims(Rounding),
    /// F32: the base of the rotary frequencies, wherever config.json has it.
    RopeBase,
    /// F32: the base of the rotary frequencies of layers with a sliding window.
    RopeBaseSliding,
    /// Several entries `rope.scaling.*`, if config.json asks for scaling.
    RopeScaling,
    /// U32: the context length before scaling, which is in the rotary settings or beside them; an error if not.
    OriginalContext,
    /// F32: the factor on attention that goes with factors for long contexts, where there are any.
    LongRopeAttention,
    /// Bool array: which blocks have a sliding window, where the model has one.
    SlidingPattern(Unlisted),
    /// String: the name of the non-linearity, where it is another than the architecture's usual one.
    OtherActivation,
    /// Bool: this key, where it differs from what llama.cpp takes for granted of the architecture.
    FlagUnless(&'static str, bool),
    /// F32: this key, where it differs from what all models of the architecture that are known have.
    FloatUnless(&'static str, f64),
    /// F32: the factor on sines and cosines that config.json gives with factors for long contexts, for which llama.cpp takes
    /// [`From::LongRopeAttention`].
    LongRopeMagnitude,
    /// U32: the sliding window, where the model has one that llama.cpp does not know of.
    OwnWindow,
    /// Not an entry of the architecture: `general.file_type` stands here, which depends on the output.
    FileType,
}

/// Which blocks have a sliding window where config.json does not list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// All but every fourth (Olmo 3).
    AllButEveryFourth,
    /// Those from `max_window_layers` on (Qwen 2).
    FromMaxWindowLayers,
    /// Every other one, from the first on, before `max_window_layers` (Qwen 2 with experts).
    EvenBelowMaxWindowLayers,
}

/// A divisor's exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// As it is.
    One,
    /// Its square root.
    Half,
}

/// Where the number of rotary dimensions is rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// A share of a head's width.
    OfHead,
    /// A share of the hidden width, which is then shared out among the heads.
    OfHidden,
}

/// One tensor of the model, or one a block where the names say `{layer}`.
#[derive(Clone, Copy, Debug)]
pub struct TensorRule {
    /// Hugging Face name; where it says `{index}`, as many tensors as the first axis has are stacked.
    pub source: &'static str,
    /// GGUF name.
    pub name: &'static str,
    /// What it is.
    pub role: Role,
    /// Shape, row-major: outermost axis first.
    pub shape: &'static [Dim],
    /// Shape in the checkpoint, of each tensor where several are stacked; empty where it is the same.
    pub stored: &'static [Dim],
    /// What to do to it on the way, in this order.
    pub steps: &'static [Step],
    /// Values that are not in the checkpoint; then `source` is empty.
    pub computed: Option<Factors>,
    /// Whether the model can be without it.
    pub presence: Presence,
    /// Which blocks have it.
    pub blocks: Blocks,
}

/// A length in a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Tokens.
    Vocab,
    /// Tokens that the tokenizer has, at most [`Dim::Vocab`].
    Tokens,
    /// Positions with a learned embedding.
    Positions,
    /// Residual stream.
    Hidden,
    /// Inner width of the feed-forward network.
    FeedForward,
    /// Query heads.
    Heads,
    /// Key and value heads.
    KvHeads,
    /// Query heads that share a key head.
    Group,
    /// Width of a head.
    HeadDim,
    /// All queries.
    Queries,
    /// All keys.
    Keys,
    /// All values.
    Values,
    /// What attention hands on.
    Attention,
    /// Pairs of rotary dimensions.
    RopePairs,
    /// Experts.
    Experts,
    /// Inner width of an expert.
    ExpertFeedForward,
    /// Inner width of the experts that every token goes through.
    SharedFeedForward,
    /// Width of compressed queries (multi-head latent attention).
    QueryRank,
    /// Width of compressed keys and values.
    KeyValueRank,
    /// Dimensions of a latent key without position.
    NopeDim,
    /// Dimensions of a latent key with position.
    RopeDim,
    /// Width of a latent value head.
    ValueDim,
    /// Width of the token embedding, where it is projected to the residual stream.
    EmbeddingWidth,
    /// This many.
    Fixed(u64),
    /// All of these together.
    Sum(&'static [Dim]),
    /// These multiplied.
    Product(&'static [Dim]),
}

/// A step on the way from Hugging Face to GGUF. Of a vector, each value is a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Rows of each of so many heads go from halves (`i`, `i + d/2`) to adjacent pairs.
    PairRows(Dim),
    /// Some rows, or all in another order: parts one after the other.
    Rows(&'static [Part]),
    /// Rows and columns change places (GPT-2's Conv1D).
    Transpose,
    /// A constant is added (Gemma's `1 + weight`).
    Add(f32),
    /// The values in another shape.
    View(&'static [Dim]),
}

/// Rows of a tensor: `first + i0 s0 + i1 s1 + ...` for all indices, the last fastest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// First row.
    pub first: Dim,
    /// Count and stride of each axis.
    pub axes: &'static [(Dim, Dim)],
}

/// Computed tensors: factors that divide rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// Llama 3's, if config.json asks for them.
    Llama3,
    /// A list of the rotary settings, if it is there.
    Listed(&'static str),
}

/// Whether a model can be without a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It cannot.
    Required,
    /// It can.
    Optional,
    /// It can where the output matrix is tied to the token embedding.
    UnlessTied,
    /// It can where keys and values are made of the latent vector, as older GGUF files have it.
    Absorbed,
}

/// Some of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// All.
    All,
    /// Those whose feed-forward network has no experts.
    Dense,
    /// Those whose feed-forward network has experts.
    Experts,
}

impl Architecture {
    /// The table with that GGUF name.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`], which lists the known ones.
    pub fn by_name(name: &str) -> Result<&'static Self, ModelError> {
        ARCHITECTURES.iter().copied().find(|a| a.name == name).ok_or_else(|| {
            ModelError::UnknownArchitecture {
                found: name.to_owned(),
                known: ARCHITECTURES.iter().map(|a| a.name.to_owned()).collect(),
            }
        })
    }

    /// The table that covers a class of Hugging Face transformers.
    ///
    /// # Errors
    /// [`ModelError::UnknownClass`], which lists the known classes and how to name an architecture by hand.
    pub fn by_class(class: &str) -> Result<(&'static Self, &'static Classes), ModelError> {
        let all = || ARCHITECTURES.iter().copied().flat_map(|a| a.classes.iter().map(move |c| (a, c)));
        all().find(|(_, classes)| classes.names.contains(&class)).ok_or_else(|| ModelError::UnknownClass {
            found: class.to_owned(),
            known: all().flat_map(|(_, classes)| classes.names).map(|&name| name.to_owned()).collect(),
        })
    }

    /// All tensors.
    pub fn rules(&self) -> impl Iterator<Item = &'static TensorRule> + use<> {
        self.tensors.iter().copied().flatten()
    }
}

impl Dim {
    /// Its length in a model that the engine runs; `None` for what such a model does not have.
    #[must_use]
    pub fn of(self, model: &Description) -> Option<usize> {
        Some(match self {
            Self::Vocab | Self::Tokens => model.vocab,
            Self::Positions => model.context_length,
            Self::Hidden => model.hidden,
            Self::FeedForward => model.feed_forward,
            Self::Heads => model.heads,
            Self::KvHeads => model.kv_heads,
            Self::Group => model.heads / model.kv_heads.max(1),
            Self::HeadDim => model.head_dim,
            Self::ValueDim => model.attention.latent.map_or(model.value_dim, |latent| latent.value),
            Self::Queries => model.query_width(),
            Self::Keys => model.key_width(),
            Self::Values => model.value_width(),
            Self::Attention => model.attention_width(),
            Self::RopePairs => model.blocks.iter().find_map(|block| match &block.position {
                Position::Rope(rope) => Some(rope.dims / 2),
                _ => None,
            })?,
            Self::Experts => model.experts?.count,
            Self::ExpertFeedForward => model.experts?.width,
            Self::SharedFeedForward => model.experts?.shared?.width,
            Self::QueryRank => model.attention.latent?.query_rank?,
            Self::KeyValueRank => model.attention.latent?.rank,
            Self::NopeDim => model.attention.latent?.nope,
            Self::RopeDim => model.attention.latent?.rope,
            Self::EmbeddingWidth => model.embedding.width,
            Self::Fixed(length) => usize::try_from(length).ok()?,
            Self::Sum(parts) => {
                parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.of(model)?))?
            }
            Self::Product(parts) => {
                parts.iter().try_fold(1usize, |product, part| product.checked_mul(part.of(model)?))?
            }
        })
    }
}

impl TensorRule {
    /// Shape in a model that the engine runs, row-major; `None` for a tensor that such a model does not have.
    #[must_use]
    pub fn shape_in(&self, model: &Description) -> Option<Vec<u64>> {
        self.shape.iter().map(|dim| Some(dim.of(model)? as u64)).collect()
    }

    /// True for a tensor that every block has.
    #[must_use]
    pub fn is_per_layer(&self) -> bool {
        self.name.contains("{layer}")
    }
}

/// A tensor that a model has or may have, by GGUF name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// GGUF name.
    pub name: String,
    /// Shape, row-major: `[rows, cols]` or `[length]`.
    pub shape: Vec<u64>,
    /// What it is.
    pub role: Role,
    /// False where the model may be without it.
    pub required: bool,
}

impl ExpectedTensor {
    /// True for a tensor of that shape; axes of length 1 at the front do not count.
    #[must_use]
    pub fn fits(&self, shape: &[u64]) -> bool {
        let squeezed =
            |shape: &[u64]| -> Vec<u64> { shape.iter().copied().skip_while(|axis| *axis == 1).collect() };
        squeezed(&self.shape) == squeezed(shape)
    }
}

/// Matrices that some files have apart and others in one.
const APART: [&str; 3] = ["blk.{layer}.attn_q.", "blk.{layer}.attn_k.", "blk.{layer}.attn_v."];
/// The one.
const FUSED: [&str; 2] = ["blk.{layer}.attn_qkv.weight", "blk.{layer}.attn_qkv.bias"];
/// Stacks of experts that some files have apart and others in one.
const EXPERTS_APART: [&str; 2] = ["blk.{layer}.ffn_gate_exps.", "blk.{layer}.ffn_up_exps."];
/// The one.
pub(crate) const FUSED_EXPERT: &str = "blk.{layer}.ffn_gate_up_exps.weight";

impl Description {
    /// Every tensor that a GGUF of this model has or may have.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`] where the description was not made by [`describe`](crate::describe).
    pub fn tensors(&self) -> Result<Vec<ExpectedTensor>, ModelError> {
        let mut expected: Vec<ExpectedTensor> = Vec::new();
        let mut known = HashSet::new();
        let architecture = Architecture::by_name(&self.architecture)?;
        // Older files of some architectures have one matrix where newer ones have three.
        let swapped = self.attention.fused && architecture.rules().all(|rule| rule.name != FUSED[0]);
        let begins = |rule: &TensorRule, names: &[&str]| names.iter().any(|name| rule.name.starts_with(name));
        let fused = self.experts.filter(|experts| experts.fused);
        let replaced = |rule: &TensorRule| {
            (swapped && begins(rule, &APART)) || (fused.is_some() && begins(rule, &EXPERTS_APART))
        };
        for rule in architecture.rules().filter(|rule| !replaced(rule)) {
            let required = match rule.presence {
                Presence::Required => true,
                Presence::Optional => false,
                Presence::UnlessTied => !self.tied_output,
                Presence::Absorbed => self.attention.latent.is_some_and(|latent| latent.absorbed),
            };
            let Some(shape) = rule.shape_in(self) else { continue };
            let layers = if rule.is_per_layer() { 0..self.layers } else { 0..1 };
            for layer in layers {
                let experts = self.blocks.get(layer).is_some_and(|block| block.experts);
                let applies = match rule.blocks {
                    Blocks::All => true,
                    Blocks::Dense => !experts,
                    Blocks::Experts => experts,
                };
                let name = in_layer(rule.name, layer);
                if applies && known.insert(name.clone()) {
                    expected.push(ExpectedTensor { name, shape: shape.clone(), role: rule.role, required });
                }
            }
        }
        if let Some(experts) = fused {
            let shape = [experts.count, 2 * experts.width, self.hidden].map(|length| length as u64);
            let with_experts = self.blocks.iter().enumerate().filter(|(_, block)| block.experts);
            expected.extend(with_experts.map(|(layer, _)| ExpectedTensor {
                name: in_layer(FUSED_EXPERT, layer),
                shape: shape.to_vec(),
                role: Role::Matrix,
                required: true,
            }));
        }
        if swapped {
            let width = (self.query_width() + self.key_width() + self.value_width()) as u64;
            for layer in 0..self.layers {
                for (name, shape, role) in [
                    (FUSED[0], vec![width, self.hidden as u64], Role::Matrix),
                    (FUSED[1], vec![width], Role::Vector),
                ] {
                    let required = role == Role::Matrix;
                    expected.push(ExpectedTensor { name: in_layer(name, layer), shape, role, required });
                }
            }
        }
        Ok(expected)
    }
}

/// The name of a pattern in one layer.
pub(crate) fn in_layer(pattern: &str, layer: usize) -> String {
    pattern.replace("{layer}", &layer.to_string())
}
