//! What tables have in common: helpers to write rules, and groups of rules and entries that many architectures share.

use super::{Blocks, Dim, Factors, Fallback, From, Parameter, Part, Presence, Step, TensorRule};
use crate::Role;

/// The name of a tensor of a block in most Hugging Face models.
macro_rules! layer {
    ($rest:literal) => {
        concat!("model.layers.{layer}.", $rest)
    };
}

/// The name of a tensor of a block in GGUF.
macro_rules! blk {
    ($rest:literal) => {
        concat!("blk.{layer}.", $rest)
    };
}

pub(super) use {blk, layer};

/// A matrix, or a stack of matrices.
pub(super) const fn matrix(source: &'static str, name: &'static str, shape: &'static [Dim]) -> TensorRule {
    TensorRule {
        source,
        name,
        role: Role::Matrix,
        shape,
        stored: &[],
        steps: &[],
        computed: None,
        presence: Presence::Required,
        blocks: Blocks::All,
    }
}

/// A norm, bias or the like, which stays in f32.
pub(super) const fn vector(source: &'static str, name: &'static str, shape: &'static [Dim]) -> TensorRule {
    TensorRule { role: Role::Vector, ..matrix(source, name, shape) }
}

/// A norm of the residual stream.
pub(super) const fn norm(source: &'static str, name: &'static str) -> TensorRule {
    vector(source, name, &[Dim::Hidden])
}

/// A bias, which the model may have or not.
pub(super) const fn bias(source: &'static str, name: &'static str, shape: &'static [Dim]) -> TensorRule {
    vector(source, name, shape).optional()
}

/// Values that are computed from config.json.
pub(super) const fn factors(name: &'static str, factors: Factors) -> TensorRule {
    TensorRule { computed: Some(factors), ..vector("", name, &[Dim::RopePairs]).optional() }
}

/// The token embedding.
pub(super) const fn embedding(source: &'static str) -> TensorRule {
    TensorRule {
        role: Role::TokenEmbedding,
        ..matrix(source, "token_embd.weight", &[Dim::Vocab, Dim::Hidden])
    }
}

/// The output matrix.
pub(super) const fn output(source: &'static str) -> TensorRule {
    TensorRule {
        role: Role::Output,
        presence: Presence::UnlessTied,
        ..matrix(source, "output.weight", &[Dim::Vocab, Dim::Hidden])
    }
}

impl TensorRule {
    /// The same, done to it on the way.
    pub(super) const fn steps(self, steps: &'static [Step]) -> Self {
        Self { steps, ..self }
    }

    /// The same, of this shape in the checkpoint.
    pub(super) const fn stored(self, stored: &'static [Dim]) -> Self {
        Self { stored, ..self }
    }

    /// The same, with other shapes in the file and in the checkpoint.
    pub(super) const fn resized(self, shape: &'static [Dim], stored: &'static [Dim]) -> Self {
        Self { shape, stored, ..self }
    }

    /// The same, which the model may be without.
    pub(super) const fn optional(self) -> Self {
        Self { presence: Presence::Optional, ..self }
    }

    /// The same, in files whose latent attention takes queries into the latent space.
    pub(super) const fn absorbed(self) -> Self {
        Self { presence: Presence::Absorbed, ..self }
    }

    /// The same, in blocks without experts.
    pub(super) const fn dense(self) -> Self {
        Self { blocks: Blocks::Dense, ..self }
    }

    /// The same, in blocks with experts.
    pub(super) const fn experts(self) -> Self {
        Self { blocks: Blocks::Experts, ..self }
    }
}

/// One part of a tensor: rows from `first`.
pub(super) const fn part(first: Dim, axes: &'static [(Dim, Dim)]) -> Part {
    Part { first, axes }
}

/// The row after this one.
pub(super) const ONE: Dim = Dim::Fixed(1);
/// The first row.
pub(super) const ZERO: Dim = Dim::Fixed(0);

/// Embedding, last norm and output of most models.
pub(super) const ENDS: &[TensorRule] = &[
    embedding("model.embed_tokens.weight"),
    norm("model.norm.weight", "output_norm.weight"),
    output("lm_head.weight"),
];

/// A norm before attention and one before the feed-forward network.
pub(super) const NORMS: &[TensorRule] = &[
    norm(layer!("input_layernorm.weight"), blk!("attn_norm.weight")),
    norm(layer!("post_attention_layernorm.weight"), blk!("ffn_norm.weight")),
];

/// Biases of the same norms.
pub(super) const NORM_BIASES: &[TensorRule] = &[
    bias(layer!("input_layernorm.bias"), blk!("attn_norm.bias"), &[Dim::Hidden]),
    bias(layer!("post_attention_layernorm.bias"), blk!("ffn_norm.bias"), &[Dim::Hidden]),
    bias("model.norm.bias", "output_norm.bias", &[Dim::Hidden]),
];

/// Attention with separate matrices, rotary dimensions in halves.
pub(super) const ATTENTION: &[TensorRule] = &[
    matrix(layer!("self_attn.q_proj.weight"), blk!("attn_q.weight"), &[Dim::Queries, Dim::Hidden]),
    matrix(layer!("self_attn.k_proj.weight"), blk!("attn_k.weight"), &[Dim::Keys, Dim::Hidden]),
    VALUES,
    ATTENTION_OUTPUT,
    bias(layer!("self_attn.q_proj.bias"), blk!("attn_q.bias"), &[Dim::Queries]),
    bias(layer!("self_attn.k_proj.bias"), blk!("attn_k.bias"), &[Dim::Keys]),
    VALUES_BIAS,
    ATTENTION_OUTPUT_BIAS,
];

/// Attention with separate matrices, rows of queries and keys brought into adjacent pairs.
pub(super) const PAIRED_ATTENTION: &[TensorRule] = &[
    matrix(layer!("self_attn.q_proj.weight"), blk!("attn_q.weight"), &[Dim::Queries, Dim::Hidden])
        .steps(&[Step::PairRows(Dim::Heads)]),
    matrix(layer!("self_attn.k_proj.weight"), blk!("attn_k.weight"), &[Dim::Keys, Dim::Hidden])
        .steps(&[Step::PairRows(Dim::KvHeads)]),
    VALUES,
    ATTENTION_OUTPUT,
    bias(layer!("self_attn.q_proj.bias"), blk!("attn_q.bias"), &[Dim::Queries])
        .steps(&[Step::PairRows(Dim::Heads)]),
    bias(layer!("self_attn.k_proj.bias"), blk!("attn_k.bias"), &[Dim::Keys])
        .steps(&[Step::PairRows(Dim::KvHeads)]),
    VALUES_BIAS,
    ATTENTION_OUTPUT_BIAS,
];

const VALUES: TensorRule =
    matrix(layer!("self_attn.v_proj.weight"), blk!("attn_v.weight"), &[Dim::Values, Dim::Hidden]);
const VALUES_BIAS: TensorRule = bias(layer!("self_attn.v_proj.bias"), blk!("attn_v.bias"), &[Dim::Values]);
/// The matrix behind attention.
pub(super) const ATTENTION_OUTPUT: TensorRule =
    matrix(layer!("self_attn.o_proj.weight"), blk!("attn_output.weight"), &[Dim::Hidden, Dim::Attention]);
const ATTENTION_OUTPUT_BIAS: TensorRule =
    bias(layer!("self_attn.o_proj.bias"), blk!("attn_output.bias"), &[Dim::Hidden]);

/// Norms of each query and key head.
pub(super) const HEAD_NORMS: &[TensorRule] = &[
    vector(layer!("self_attn.q_norm.weight"), blk!("attn_q_norm.weight"), &[Dim::HeadDim]),
    vector(layer!("self_attn.k_norm.weight"), blk!("attn_k_norm.weight"), &[Dim::HeadDim]),
];

/// Norms of all queries and of all keys.
pub(super) const WIDE_NORMS: &[TensorRule] = &[
    vector(layer!("self_attn.q_norm.weight"), blk!("attn_q_norm.weight"), &[Dim::Queries]),
    vector(layer!("self_attn.k_norm.weight"), blk!("attn_k_norm.weight"), &[Dim::Keys]),
];

/// A gated feed-forward network.
pub(super) const GATED: &[TensorRule] = &[
    matrix(layer!("mlp.gate_proj.weight"), blk!("ffn_gate.weight"), &[Dim::FeedForward, Dim::Hidden]).dense(),
    matrix(layer!("mlp.up_proj.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden]).dense(),
    matrix(layer!("mlp.down_proj.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]).dense(),
    bias(layer!("mlp.gate_proj.bias"), blk!("ffn_gate.bias"), &[Dim::FeedForward]).dense(),
    bias(layer!("mlp.up_proj.bias"), blk!("ffn_up.bias"), &[Dim::FeedForward]).dense(),
    bias(layer!("mlp.down_proj.bias"), blk!("ffn_down.bias"), &[Dim::Hidden]).dense(),
];

/// Experts in the names of Qwen, OLMoE and DeepSeek, each a gated feed-forward network of its own.
pub(super) const EXPERTS: &[TensorRule] = &[
    vector(layer!("mlp.gate.weight"), blk!("ffn_gate_inp.weight"), &[Dim::Experts, Dim::Hidden]).experts(),
    matrix(
        layer!("mlp.experts.{index}.down_proj.weight"),
        blk!("ffn_down_exps.weight"),
        &[Dim::Experts, Dim::Hidden, Dim::ExpertFeedForward],
    )
    .stored(&[Dim::Hidden, Dim::ExpertFeedForward])
    .experts(),
    matrix(
        layer!("mlp.experts.{index}.gate_proj.weight"),
        blk!("ffn_gate_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::ExpertFeedForward, Dim::Hidden])
    .experts(),
    matrix(
        layer!("mlp.experts.{index}.up_proj.weight"),
        blk!("ffn_up_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::ExpertFeedForward, Dim::Hidden])
    .experts(),
];

/// The same experts in tensors of all of them, gate and up in one.
pub(super) const FUSED_EXPERTS: &[TensorRule] = &[
    matrix(
        layer!("mlp.experts.down_proj"),
        blk!("ffn_down_exps.weight"),
        &[Dim::Experts, Dim::Hidden, Dim::ExpertFeedForward],
    )
    .experts(),
    matrix(
        layer!("mlp.experts.gate_up_proj"),
        blk!("ffn_gate_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::Experts, Dim::Product(&[Dim::Fixed(2), Dim::ExpertFeedForward]), Dim::Hidden])
    .steps(&[Step::Rows(&[part(ZERO, &[(Dim::ExpertFeedForward, ONE)])])])
    .experts(),
    matrix(
        layer!("mlp.experts.gate_up_proj"),
        blk!("ffn_up_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::Experts, Dim::Product(&[Dim::Fixed(2), Dim::ExpertFeedForward]), Dim::Hidden])
    .steps(&[Step::Rows(&[part(Dim::ExpertFeedForward, &[(Dim::ExpertFeedForward, ONE)])])])
    .experts(),
];

/// Experts in the names of Mixtral: `w1` is the gate, `w2` down, `w3` up.
pub(super) const MIXTRAL_EXPERTS: &[TensorRule] = &[
    vector(layer!("block_sparse_moe.gate.weight"), blk!("ffn_gate_inp.weight"), &[Dim::Experts, Dim::Hidden])
        .experts(),
    matrix(
        layer!("block_sparse_moe.experts.{index}.w1.weight"),
        blk!("ffn_gate_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::ExpertFeedForward, Dim::Hidden])
    .experts(),
    matrix(
        layer!("block_sparse_moe.experts.{index}.w2.weight"),
        blk!("ffn_down_exps.weight"),
        &[Dim::Experts, Dim::Hidden, Dim::ExpertFeedForward],
    )
    .stored(&[Dim::Hidden, Dim::ExpertFeedForward])
    .experts(),
    matrix(
        layer!("block_sparse_moe.experts.{index}.w3.weight"),
        blk!("ffn_up_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::ExpertFeedForward, Dim::Hidden])
    .experts(),
];

/// Queries, keys and values of all heads.
pub(super) const QKV: Dim = Dim::Sum(&[Dim::Queries, Dim::Keys, Dim::Values]);

/// Queries, keys and values of each head after another go to all queries, all keys, all values.
pub(super) const UNGROUP_HEADS: &[Step] = &[Step::Rows(&[part(
    ZERO,
    &[
        (Dim::Fixed(3), Dim::HeadDim),
        (Dim::Heads, Dim::Product(&[Dim::Fixed(3), Dim::HeadDim])),
        (Dim::HeadDim, ONE),
    ],
)])];

/// Rows of a group: its queries, one key, one value.
const GROUP: Dim = Dim::Product(&[Dim::Sum(&[Dim::Group, Dim::Fixed(2)]), Dim::HeadDim]);
/// Rows of a group's queries.
const GROUP_QUERIES: Dim = Dim::Product(&[Dim::Group, Dim::HeadDim]);
/// Queries of all groups of query heads with their key and value head.
pub(super) const QUERIES_OF_GROUPS: Part = part(ZERO, &[(Dim::KvHeads, GROUP), (GROUP_QUERIES, ONE)]);
/// Keys of all groups.
pub(super) const KEYS_OF_GROUPS: Part = part(GROUP_QUERIES, &[(Dim::KvHeads, GROUP), (Dim::HeadDim, ONE)]);
/// Values of all groups.
pub(super) const VALUES_OF_GROUPS: Part =
    part(Dim::Sum(&[GROUP_QUERIES, Dim::HeadDim]), &[(Dim::KvHeads, GROUP), (Dim::HeadDim, ONE)]);

/// Buffers that the converter leaves out everywhere.
pub(super) const BUFFERS: &[&str] = &[".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

/// Keys of config.json for the number of blocks.
pub(crate) const LAYER_KEYS: &[&str] = &["n_layers", "num_hidden_layers", "n_layer", "num_layers"];
/// Keys of config.json for the number of query heads.
pub(crate) const HEAD_KEYS: &[&str] = &["num_attention_heads", "n_head", "n_heads", "num_heads"];
/// Keys of config.json for the width of the residual stream.
pub(crate) const HIDDEN_KEYS: &[&str] = &["hidden_size", "n_embd", "n_embed", "dim"];
/// Keys of config.json for the number of experts.
pub(crate) const EXPERT_KEYS: &[&str] = &["num_local_experts", "num_experts", "n_routed_experts"];
/// Keys of config.json for the length of the context.
pub(crate) const CONTEXT_KEYS: &[&str] = &[
    "max_position_embeddings",
    "n_ctx",
    "n_positions",
    "max_length",
    "max_sequence_length",
    "model_max_length",
];

/// An entry.
pub(super) const fn entry(key: &'static str, from: From) -> Parameter {
    Parameter { key, from }
}

/// What stands for [`From::Common`].
pub(crate) const COMMON: &[Parameter] = &[
    entry("block_count", From::Needed(LAYER_KEYS)),
    entry("context_length", From::Count(CONTEXT_KEYS)),
    entry("embedding_length", From::Count(HIDDEN_KEYS)),
    entry(
        "feed_forward_length",
        From::Count(&[
            "prefix_dense_intermediate_size",
            "dense_intermediate_size",
            "intermediate_size",
            "n_inner",
            "hidden_dim",
        ]),
    ),
    entry("attention.head_count", From::Count(HEAD_KEYS)),
    entry("attention.head_count_kv", From::Count(&["num_key_value_heads", "n_kv_heads"])),
    entry("attention.causal", From::IfFalse("is_causal")),
    entry("", From::RopeScaling),
    entry("rope.freq_base", From::RopeBase),
    entry("rope.freq_base_swa", From::RopeBaseSliding),
    entry("attention.layer_norm_rms_epsilon", From::Float(&["rms_norm_eps", "norm_eps"])),
    entry(
        "attention.layer_norm_epsilon",
        From::Float(&["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]),
    ),
    entry("expert_count", From::Count(EXPERT_KEYS)),
    entry(
        "expert_used_count",
        From::Count(&["num_experts_per_tok", "num_experts_per_token", "top_k_experts"]),
    ),
    entry("expert_group_count", From::Count(&["n_group"])),
    entry("expert_group_used_count", From::Count(&["topk_group"])),
    entry("expert_gating_func", From::GatingFunction),
    entry("attention.key_length", From::Count(&["head_dim"])),
    entry("attention.value_length", From::Count(&["head_dim"])),
    entry("", From::FileType),
];

/// Grouped-query attention over RoPE with the base that most have: what many configuration classes share.
pub(super) const ROPE_10K: (&str, Fallback) = ("rope_theta", Fallback::Float(10000.0));
