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
    /// Normalisation of the residual stream, before attention, before the feed-forward network and at the end.
    pub norm: Norm,
    /// How attention knows where a token stands.
    pub position: Position,
    /// Attention.
    pub attention: Attention,
    /// Non-linearity of the feed-forward network.
    pub activation: Activation,
    /// True for `down(act(gate(x)) * up(x))`, false for `down(act(up(x)))`.
    pub gated: bool,
    /// How the sub-layers of a block are joined to the residual stream.
    pub residual: Residual,
    /// Factor on the token embedding (1 for most).
    pub embedding_scale: f32,
    /// Factor on what attention and feed-forward add to the residual stream (1 for most).
    pub residual_scale: f32,
    /// Factor on the logits (1 for most).
    pub output_scale: f32,
    /// True where the output matrix is the token embedding (there is no `output.weight`).
    pub tied_output: bool,
}

/// A normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// Added to the mean square or variance before the square root.
    pub epsilon: f32,
}

/// Kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + epsilon) * weight` (Zhang and Sennrich 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias` (Ba et al. 2016).
    Layer,
}

/// How attention knows where a token stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// Rotary embedding (Su et al. 2021) of the first `dims` of each query and key head.
    Rope(Rope),
}

/// Rotary position embedding: pair `i` of a head turns by `position * base^(-2 i / dims) / factor_i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How many of a head's dimensions turn; even, at most `head_dim`.
    pub dims: usize,
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions are divided by `factor` (position interpolation, Chen et al. 2023).
    Linear {
        /// How much longer the context gets.
        factor: f32,
    },
    /// Interpolation by parts (Peng et al. 2023), as ggml computes it.
    Yarn {
        /// How much longer the context gets.
        factor: f32,
        /// Context length before scaling, in tokens.
        original_context: usize,
        /// Share of extrapolation (ggml's `ext_factor`).
        extrapolation: f32,
        /// Factor on the magnitude of queries and keys (ggml's `attn_factor`), before YaRN's own.
        attention: f32,
        /// Rotations over the original context above which a dimension is extrapolated.
        beta_fast: f32,
        /// Rotations over the original context below which a dimension is interpolated.
        beta_slow: f32,
    },
}

/// Attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Factor on the scores before the softmax; `1 / sqrt(head_dim)` for most.
    pub scale: f32,
    /// A token sees this many tokens back, itself included; `None` for all.
    pub window: Option<usize>,
}

/// Non-linearity of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// How a block's sub-layers are joined to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += attention(norm(x)); x += feed_forward(norm(x))`.
    Sequential,
}

impl Description {
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
