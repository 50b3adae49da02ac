//! Llama 1, 2, 3, 3.1 to 3.3 and those built like it (SmolLM, TinyLlama, Mistral, ...): RMS norm before each
//! sub-layer, rotary positions, grouped-query attention, SiLU-gated feed-forward network, output tied or not.

use super::{Architecture, Dim, From, Parameter, Presence, TensorRule, Transform};
use crate::Role;
use crate::description::{Activation, NormKind, Residual, RopeStyle};

/// Source: Hugging Face transformers' `modeling_llama.py` and `modeling_mistral.py`; llama.cpp's `conversion/llama.py`.
pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    classes: &["LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"],
    norm: NormKind::Rms,
    rope: RopeStyle::Adjacent,
    activation: (Activation::Silu, &["silu", "swish"]),
    gated: true,
    residual: Residual::Sequential,
    parameters: &[
        Parameter { key: "block_count", from: From::Count(&["num_hidden_layers"]) },
        Parameter { key: "context_length", from: From::CountOr(&["max_position_embeddings"], 2048) },
        Parameter { key: "embedding_length", from: From::Count(&["hidden_size"]) },
        Parameter { key: "feed_forward_length", from: From::Count(&["intermediate_size"]) },
        Parameter { key: "attention.head_count", from: From::Count(&["num_attention_heads"]) },
        Parameter { key: "attention.head_count_kv", from: From::CountOrHeads(&["num_key_value_heads"]) },
        Parameter { key: "", from: From::RopeScaling },
        Parameter { key: "rope.freq_base", from: From::RopeBase(10000.0) },
        Parameter { key: "attention.layer_norm_rms_epsilon", from: From::FloatOr(&["rms_norm_eps"], 1e-6) },
        Parameter { key: "attention.key_length", from: From::HeadDim },
        Parameter { key: "attention.value_length", from: From::HeadDim },
        Parameter { key: "", from: From::FileType },
        Parameter { key: "vocab_size", from: From::Count(&["vocab_size"]) },
        Parameter { key: "rope.dimension_count", from: From::HeadDim },
    ],
    tensors: &[
        vector("", "rope_freqs.weight", Dim::RopePairs, Transform::Llama3RopeFactors, Presence::Optional),
        TensorRule {
            source: "model.embed_tokens.weight",
            name: "token_embd.weight",
            role: Role::TokenEmbedding,
            shape: &[Dim::Vocab, Dim::Hidden],
            transform: Transform::Keep,
            presence: Presence::Required,
        },
        vector("model.norm.weight", "output_norm.weight", Dim::Hidden, Transform::Keep, Presence::Required),
        TensorRule {
            source: "lm_head.weight",
            name: "output.weight",
            role: Role::Output,
            shape: &[Dim::Vocab, Dim::Hidden],
            transform: Transform::Keep,
            presence: Presence::UnlessTied,
        },
        norm("model.layers.{layer}.input_layernorm.weight", "blk.{layer}.attn_norm.weight"),
        matrix(
            "model.layers.{layer}.self_attn.q_proj.weight",
            "blk.{layer}.attn_q.weight",
            &[Dim::Queries, Dim::Hidden],
            Transform::PairQueryRows,
        ),
        matrix(
            "model.layers.{layer}.self_attn.k_proj.weight",
            "blk.{layer}.attn_k.weight",
            &[Dim::Keys, Dim::Hidden],
            Transform::PairKeyRows,
        ),
        matrix(
            "model.layers.{layer}.self_attn.v_proj.weight",
            "blk.{layer}.attn_v.weight",
            &[Dim::Values, Dim::Hidden],
            Transform::Keep,
        ),
        matrix(
            "model.layers.{layer}.self_attn.o_proj.weight",
            "blk.{layer}.attn_output.weight",
            &[Dim::Hidden, Dim::Attention],
            Transform::Keep,
        ),
        bias(
            "model.layers.{layer}.self_attn.q_proj.bias",
            "blk.{layer}.attn_q.bias",
            Dim::Queries,
            Transform::PairQueryRows,
        ),
        bias(
            "model.layers.{layer}.self_attn.k_proj.bias",
            "blk.{layer}.attn_k.bias",
            Dim::Keys,
            Transform::PairKeyRows,
        ),
        bias(
            "model.layers.{layer}.self_attn.v_proj.bias",
            "blk.{layer}.attn_v.bias",
            Dim::Values,
            Transform::Keep,
        ),
        bias(
            "model.layers.{layer}.self_attn.o_proj.bias",
            "blk.{layer}.attn_output.bias",
            Dim::Hidden,
            Transform::Keep,
        ),
        norm("model.layers.{layer}.post_attention_layernorm.weight", "blk.{layer}.ffn_norm.weight"),
        matrix(
            "model.layers.{layer}.mlp.gate_proj.weight",
            "blk.{layer}.ffn_gate.weight",
            &[Dim::FeedForward, Dim::Hidden],
            Transform::Keep,
        ),
        matrix(
            "model.layers.{layer}.mlp.up_proj.weight",
            "blk.{layer}.ffn_up.weight",
            &[Dim::FeedForward, Dim::Hidden],
            Transform::Keep,
        ),
        matrix(
            "model.layers.{layer}.mlp.down_proj.weight",
            "blk.{layer}.ffn_down.weight",
            &[Dim::Hidden, Dim::FeedForward],
            Transform::Keep,
        ),
        bias(
            "model.layers.{layer}.mlp.gate_proj.bias",
            "blk.{layer}.ffn_gate.bias",
            Dim::FeedForward,
            Transform::Keep,
        ),
        bias(
            "model.layers.{layer}.mlp.up_proj.bias",
            "blk.{layer}.ffn_up.bias",
            Dim::FeedForward,
            Transform::Keep,
        ),
        bias(
            "model.layers.{layer}.mlp.down_proj.bias",
            "blk.{layer}.ffn_down.bias",
            Dim::Hidden,
            Transform::Keep,
        ),
    ],
    buffers: &[".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"],
    refused: &[
        ("num_local_experts", "a mixture of experts"),
        ("draft_vocab_size", "an EAGLE-3 draft model, which needs its target model"),
    ],
};

const fn matrix(
    source: &'static str,
    name: &'static str,
    shape: &'static [Dim],
    transform: Transform,
) -> TensorRule {
    TensorRule { source, name, role: Role::Matrix, shape, transform, presence: Presence::Required }
}

const fn norm(source: &'static str, name: &'static str) -> TensorRule {
    vector(source, name, Dim::Hidden, Transform::Keep, Presence::Required)
}

const fn bias(source: &'static str, name: &'static str, length: Dim, transform: Transform) -> TensorRule {
    vector(source, name, length, transform, Presence::Optional)
}

const fn vector(
    source: &'static str,
    name: &'static str,
    length: Dim,
    transform: Transform,
    presence: Presence,
) -> TensorRule {
    let shape: &'static [Dim] = match length {
        Dim::Hidden => &[Dim::Hidden],
        Dim::FeedForward => &[Dim::FeedForward],
        Dim::Queries => &[Dim::Queries],
        Dim::Keys => &[Dim::Keys],
        Dim::Values => &[Dim::Values],
        Dim::Attention => &[Dim::Attention],
        Dim::RopePairs => &[Dim::RopePairs],
        Dim::Vocab => &[Dim::Vocab],
    };
    TensorRule { source, name, role: Role::Vector, shape, transform, presence }
}
