//! What the engine has to know of a model to run it: sizes, norms, positions, attention, feed-forward.
//!
//! A [`Description`] is plain data, read from GGUF metadata by [`describe`](crate::describe). The engine has one
//! forward pass that asks it what to do; so another architecture is another [`Architecture`](crate::Architecture)
//! table and no new code path.

/// Hyper-parameters of a decoder-only transformer.
///
/// Tensors have their GGUF names (`token_embd.weight`, `blk.0.attn_q.weight`, ...), whose shapes
/// [`Description::tensors`] lists. Queries, keys and values are stored in the order that [`RopeStyle`] names.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// GGUF's name of the architecture (`general.architecture`).
    pub architecture: String,
    /// Tokens in the vocabulary: rows of the token embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one query or key head.
    pub head_dim: usize,
    /// Width of one value head.
    pub value_dim: usize,
    /// Inner width of the feed-forward network.
    pub feed_forward: usize,
    /// Longest context that the model was trained for, in tokens.
    pub context_length: usize,
    /// The token embedding.
    pub embedding: Embedding,
    /// Normalisation of the residual stream.
    pub norm: Norm,
    /// Where in a block it is normalised.
    pub norms: BlockNorms,
    /// True where the stream is normalised once more before the output matrix.
    pub output_norm: bool,
    /// Attention.
    pub attention: Attention,
    /// What differs from block to block; as many as `layers`.
    pub blocks: Vec<Block>,
    /// Non-linearity of the feed-forward network.
    pub activation: Activation,
    /// Whether the feed-forward network has a gate.
    pub gate: Gate,
    /// Experts, in the blocks that have them.
    pub experts: Option<Experts>,
    /// How the sub-layers of a block are joined to the residual stream.
    pub residual: Residual,
    /// Factor on what attention and feed-forward add to the residual stream (1 for most).
    pub residual_scale: f32,
    /// Factor on the logits (1 for most).
    pub output_scale: f32,
    /// Bound of the logits: `cap * tanh(logit / cap)`.
    pub output_cap: Option<f32>,
    /// True where the output matrix is the token embedding (there is no `output.weight`).
    pub tied_output: bool,
}

/// How tokens become the first state of the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embedding {
    /// Width of an embedded token. Where it is not that of the residual stream, `token_embd_proj.weight` leads into the
    /// stream and `output_proj.weight` out of it (OPT-350m).
    pub width: usize,
    /// Factor on the embedded token (1 for most).
    pub scale: f32,
    /// True where each position has a learned vector that is added, `position_embd.weight` `[context_length, hidden]`.
    pub learned_positions: bool,
    /// True where the sum is normalised (BLOOM's `token_embd_norm`).
    pub norm: bool,
}

/// A normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// Added to the mean square or variance before the square root.
    pub epsilon: f32,
    /// False where it has neither weight nor bias (`OLMo`).
    pub weights: bool,
}

/// Kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + epsilon) * weight` (Zhang and Sennrich 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias` (Ba et al. 2016).
    Layer,
}

/// Which tensors normalise what in a block: names between `blk.<n>.` and `.weight`; `None` where nothing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNorms {
    /// What attention reads.
    pub before_attention: Option<&'static str>,
    /// What attention adds to the stream.
    pub after_attention: Option<&'static str>,
    /// What the feed-forward network reads. With [`Residual::Parallel`] it may be the norm that attention has.
    pub before_feed_forward: Option<&'static str>,
    /// What the feed-forward network adds to the stream.
    pub after_feed_forward: Option<&'static str>,
}

/// What differs from block to block.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// How attention knows where a token stands.
    pub position: Position,
    /// A token sees this many tokens back, itself included; `None` for all.
    pub window: Option<usize>,
    /// True where the feed-forward network is made of experts.
    pub experts: bool,
}

/// How attention knows where a token stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// It does not, other than by what the token embedding says of it.
    None,
    /// Rotary embedding (Su et al. 2021) of some dimensions of each query and key head.
    Rope(Rope),
    /// Scores fall with the distance, by a slope for each head (Press et al. 2022).
    Alibi {
        /// The first head's slope is `2^(-max_bias / heads)`, each next one that times the one before.
        max_bias: f32,
    },
}

/// Rotary position embedding: pair `i` of a head turns by `position * base^(-2 i / dims) / factor_i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How many of a head's dimensions turn; even, at most `head_dim`.
    pub dims: usize,
    /// The first dimension of a head that turns.
    pub first: usize,
    /// The base of the frequencies.
    pub base: f32,
    /// Which two dimensions make a pair.
    pub style: RopeStyle,
    /// Scaling for contexts longer than the trained one.
    pub scaling: RopeScaling,
    /// Name of the tensor `[dims / 2]` that divides the frequencies, if there is one (`rope_freqs.weight`).
    pub factors: Option<String>,
}

/// Which dimensions of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `2 i` and `2 i + 1` (ggml's "norm"; query and key rows of Hugging Face Llamas are permuted to suit it).
    Adjacent,
    /// `i` and `i + dims / 2` (ggml's "neox").
    Halves,
}

/// Scaling of rotary positions.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions are divided by `factor` (position interpolation, Chen et al. 2023).
    Linear {
        /// How much longer the context gets.
        factor: f32,
    },
    /// Interpolation by parts (Peng et al. 2023).
    Yarn {
        /// How much longer the context gets.
        factor: f32,
        /// Context length before scaling, in tokens.
        original_context: usize,
        /// Share of extrapolation (ggml's `ext_factor`).
        extrapolation: f32,
        /// Factor on sines and cosines, and so on the magnitude of queries and keys; `1 + 0.1 ln(factor)` for most.
        attention: f32,
        /// Rotations over the original context above which a dimension is extrapolated.
        beta_fast: f32,
        /// Rotations over the original context below which a dimension is interpolated.
        beta_slow: f32,
        /// True where the bounds between both are rounded outwards to whole pairs.
        whole_pairs: bool,
    },
    /// The base grows with the context, once that is longer than the trained one (dynamic NTK scaling).
    Dynamic {
        /// How much longer the context gets.
        factor: f32,
        /// Context length before scaling, in tokens.
        original_context: usize,
    },
    /// One set of factors for contexts up to the original length, another for longer ones (Ding et al. 2024).
    LongRope {
        /// Context length before scaling, in tokens.
        original_context: usize,
        /// Factor on sines and cosines.
        attention: f32,
        /// Name of the tensor `[dims / 2]` that divides the frequencies in longer contexts.
        long_factors: String,
    },
}

/// Attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Factor on the scores before the softmax; `1 / sqrt(head_dim)` for most.
    pub scale: f32,
    /// Bound of the scores: `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
    /// Bound of queries, keys and values behind their matrices.
    pub clamp: Option<f32>,
    /// Normalisation of queries and keys, `attn_q_norm` and `attn_k_norm`, before they turn.
    pub head_norm: Option<HeadNorm>,
    /// True where each head has one more score, `attn_sinks`, that takes part in the softmax and has no value.
    pub sinks: bool,
    /// True where one matrix, `attn_qkv`, gives queries, keys and values.
    pub fused: bool,
    /// Keys and values by way of a narrower vector (DeepSeek-V2 2024).
    pub latent: Option<Latent>,
}

/// Normalisation of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadNorm {
    /// Which one; there is no bias.
    pub kind: NormKind,
    /// What is normalised at a time.
    pub over: NormOver,
}

/// What of queries or keys is normalised at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOver {
    /// Each head, all with the same weights `[head_dim]`.
    Head,
    /// Each head with weights of its own, `[heads, head_dim]`.
    EachHead,
    /// All heads together, `[heads * head_dim]`.
    AllHeads,
}

/// Multi-head latent attention: what a token's keys and values are made of is one vector `[rank]` for all heads, beside
/// `rope` dimensions of a key that turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// Width of the vector that queries are made of; `None` where they come from the stream directly.
    pub query_rank: Option<usize>,
    /// Width of the latent vector.
    pub rank: usize,
    /// Dimensions of a head's key that do not turn.
    pub nope: usize,
    /// Dimensions of a key that turn, the same in all heads.
    pub rope: usize,
    /// Width of a head's value.
    pub value: usize,
    /// True where queries go into the latent space (`attn_k_b`, `attn_v_b`): there is one key head of `rank + rope`
    /// and its value is the latent vector. Else keys and values are made of it (`attn_kv_b`).
    pub absorbed: bool,
}

/// Non-linearity of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x * (1 + erf(x / sqrt(2))) / 2` (Hendrycks and Gimpel 2016).
    Gelu,
    /// Its approximation `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// gpt-oss's gate: `g / (1 + exp(-alpha g)) * (u + 1)`, where `g = min(gate, limit)` and `u` is `up` within
    /// `-limit..limit`.
    ClampedSwiglu {
        /// Steepness of the gate.
        alpha: f32,
        /// Bound of gate and up.
        limit: f32,
    },
}

/// Whether the feed-forward network has a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `down(act(up(x)))`.
    None,
    /// `down(act(gate(x)) * up(x))`.
    Separate,
    /// The same, gate and up in one matrix: the first half of `ffn_up`'s rows is the gate.
    Fused,
}

/// A feed-forward network of which each token goes through a part (Shazeer et al. 2017).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Experts in a block.
    pub count: usize,
    /// Experts that a token goes through.
    pub used: usize,
    /// Inner width of an expert.
    pub width: usize,
    /// How the router's logits become scores.
    pub gating: Gating,
    /// True where one stack of matrices, `ffn_gate_up_exps`, holds gate and up: the first half of an expert's rows is the gate.
    pub fused: bool,
    /// True where the scores of the chosen experts are divided by their sum.
    pub normalised: bool,
    /// Factor on the experts' sum.
    pub scale: f32,
    /// Experts are chosen from the best groups only.
    pub groups: Option<ExpertGroups>,
    /// The expert that all tokens go through.
    pub shared: Option<SharedExpert>,
}

/// How the router's logits become scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// `1 / (1 + exp(-x))` of each.
    Sigmoid,
    /// Softmax over the chosen experts.
    SoftmaxOfChosen,
    /// One expert after the other: the best of those left, whose score is its softmax among those left whose logits are about
    /// as high (Liu et al. 2024, `SparseMixer-v2`, without its sampling, which is for training).
    SparseMixer {
        /// How far below, as a part of the larger magnitude of the expert's own logit and the best one.
        tolerance: f32,
    },
}

/// Groups of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups of equal size.
    pub count: usize,
    /// Groups that experts are chosen from.
    pub used: usize,
    /// How many of its best experts' scores make a group's score.
    pub best: usize,
}

/// An expert that all tokens go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExpert {
    /// Its inner width.
    pub width: usize,
    /// True where its result is multiplied by the sigmoid of `ffn_gate_inp_shexp`'s.
    pub gated: bool,
}

/// How a block's sub-layers are joined to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += attention(norm(x)); x += feed_forward(norm(x))`.
    Sequential,
    /// `x += attention(norm(x)) + feed_forward(norm(x))`.
    Parallel,
    /// `x = norm(x + attention(x)); x = norm(x + feed_forward(x))`.
    NormAfter,
}

impl Description {
    /// What a token has to do with of `amount`, the weights or bytes of a tensor: of stacked experts as many as it goes through.
    #[must_use]
    pub fn for_one_token(&self, tensor: &str, amount: u64) -> u64 {
        match &self.experts {
            Some(experts) if tensor.contains("_exps.") => {
                amount / (experts.count as u64).max(1) * experts.used as u64
            }
            _ => amount,
        }
    }

    /// Width of all queries of a token: rows of `attn_q.weight`.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all keys of a token: rows of `attn_k.weight`.
    #[must_use]
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of all values of a token: rows of `attn_v.weight`.
    #[must_use]
    pub fn value_width(&self) -> usize {
        self.kv_heads * self.value_dim
    }

    /// Width of what attention hands to its output matrix: columns of `attn_output.weight`.
    #[must_use]
    pub fn attention_width(&self) -> usize {
        self.heads * self.value_dim
    }
}
