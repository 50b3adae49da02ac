//! Phi-2, and Phi-3 to Phi-4 with and without experts.
//!
//! Sources: Hugging Face transformers' `modeling_phi.py`, `modeling_phi3.py`, `modeling_phimoe.py`; llama.cpp's
//! `conversion/phi.py`.

use super::parts::*;
use super::{
    Architecture, Classes, Dim, Factors, Fallback, Forward, From, GPT_FORWARD, HALVES, Joined, LLAMA_FORWARD,
    ONE_BEFORE, Parameter, Rounding, Routing, TensorRule,
};
use crate::description::{Gate, Gating, NormKind, Residual};

/// Phi-2: one norm a block, attention and feed-forward side by side, part of each head rotary.
pub(super) const PHI2: Architecture = Architecture {
    name: "phi2",
    classes: &[Classes {
        names: &["PhiForCausalLM"],
        defaults: &[
            ("max_position_embeddings", Fallback::Count(2048)),
            ("layer_norm_eps", Fallback::Float(1e-5)),
            ("partial_rotary_factor", Fallback::Float(0.5)),
            ("num_key_value_heads", Fallback::Heads),
            ROPE_10K,
        ],
    }],
    forward: Some(Forward {
        norms: ONE_BEFORE,
        positions: HALVES,
        residual: Joined::Always(Residual::Parallel),
        ..GPT_FORWARD
    }),
    parameters: &[
        entry("context_length", From::Needed(&["n_positions", "max_position_embeddings"])),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("feed_forward_length", From::Length(Dim::Product(&[Dim::Fixed(4), Dim::Hidden]))),
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.head_count_kv", From::Needed(HEAD_KEYS)),
        entry("attention.layer_norm_epsilon", From::NeededFloat(&["layer_norm_epsilon", "layer_norm_eps"])),
        entry("rope.dimension_count", From::RotaryDims(Rounding::OfHidden)),
        entry("", From::FileType),
        entry("tokenizer.ggml.add_bos_token", From::AlwaysFlag(false)),
    ],
    tensors: &[&[
        embedding("model.embed_tokens.weight"),
        norm("model.final_layernorm.weight", "output_norm.weight"),
        norm("model.final_layernorm.bias", "output_norm.bias"),
        output("lm_head.weight"),
        bias("lm_head.bias", "output.bias", &[Dim::Vocab]),
        norm(layer!("input_layernorm.weight"), blk!("attn_norm.weight")),
        norm(layer!("input_layernorm.bias"), blk!("attn_norm.bias")),
        matrix(layer!("self_attn.q_proj.weight"), blk!("attn_q.weight"), &[Dim::Queries, Dim::Hidden]),
        matrix(layer!("self_attn.k_proj.weight"), blk!("attn_k.weight"), &[Dim::Keys, Dim::Hidden]),
        matrix(layer!("self_attn.v_proj.weight"), blk!("attn_v.weight"), &[Dim::Values, Dim::Hidden]),
        bias(layer!("self_attn.q_proj.bias"), blk!("attn_q.bias"), &[Dim::Queries]),
        bias(layer!("self_attn.k_proj.bias"), blk!("attn_k.bias"), &[Dim::Keys]),
        bias(layer!("self_attn.v_proj.bias"), blk!("attn_v.bias"), &[Dim::Values]),
        matrix(layer!("self_attn.dense.weight"), blk!("attn_output.weight"), &[Dim::Hidden, Dim::Attention]),
        bias(layer!("self_attn.dense.bias"), blk!("attn_output.bias"), &[Dim::Hidden]),
        matrix(layer!("mlp.fc1.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden]),
        bias(layer!("mlp.fc1.bias"), blk!("ffn_up.bias"), &[Dim::FeedForward]),
        matrix(layer!("mlp.fc2.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]),
        bias(layer!("mlp.fc2.bias"), blk!("ffn_down.bias"), &[Dim::Hidden]),
    ]],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

const PHI3_PARAMETERS: &[Parameter] = &[
    entry("rope.scaling.attn_factor", From::LongRopeAttention),
    entry("context_length", From::Needed(&["n_positions", "max_position_embeddings"])),
    entry("rope.scaling.original_context_length", From::OriginalContext),
    entry("embedding_length", From::Needed(HIDDEN_KEYS)),
    entry("feed_forward_length", From::Needed(&["intermediate_size"])),
    entry("block_count", From::Needed(LAYER_KEYS)),
    entry("attention.head_count", From::Needed(HEAD_KEYS)),
    entry("attention.head_count_kv", From::Needed(&["num_key_value_heads", "n_head_kv"])),
    entry("attention.layer_norm_rms_epsilon", From::NeededFloat(&["rms_norm_eps"])),
    entry("rope.dimension_count", From::RotaryDims(Rounding::OfHidden)),
    entry("rope.freq_base", From::RopeBase),
    entry("", From::FileType),
    // Zero tells Phi-4 from the others.
    entry("attention.sliding_window", From::CountOr(&["sliding_window"], 0)),
];

const LONG_FACTORS: &[TensorRule] = &[
    factors("rope_factors_long.weight", Factors::Listed("long_factor")),
    factors("rope_factors_short.weight", Factors::Listed("short_factor")),
];

/// Phi-3, Phi-3.5 and Phi-4: queries, keys and values in one matrix, gate and up in another.
pub(super) const PHI3: Architecture = Architecture {
    name: "phi3",
    classes: &[Classes {
        names: &["Phi3ForCausalLM", "Phi4ForCausalLMV"],
        defaults: &[
            ("max_position_embeddings", Fallback::Count(4096)),
            ("original_max_position_embeddings", Fallback::Count(4096)),
            ("rms_norm_eps", Fallback::Float(1e-5)),
            ("num_key_value_heads", Fallback::Heads),
            ROPE_10K,
        ],
    }],
    forward: Some(Forward { gate: Gate::Fused, ..LLAMA_FORWARD }),
    parameters: PHI3_PARAMETERS,
    tensors: &[
        LONG_FACTORS,
        ENDS,
        NORMS,
        &[
            matrix(layer!("self_attn.qkv_proj.weight"), blk!("attn_qkv.weight"), &[QKV, Dim::Hidden]),
            ATTENTION_OUTPUT,
            matrix(
                layer!("mlp.gate_up_proj.weight"),
                blk!("ffn_up.weight"),
                &[Dim::Product(&[Dim::Fixed(2), Dim::FeedForward]), Dim::Hidden],
            ),
            matrix(layer!("mlp.down_proj.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]),
        ],
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// Noise on the router's logits in training, of all models that are known.
const ROUTER_JITTER: f32 = 0.01;

/// Phi-3.5 with experts. llama.cpp computes it with RMS norms and a softmax over all experts; here it is what Hugging Face
/// transformers computes.
pub(super) const PHI_MOE: Architecture = Architecture {
    name: "phimoe",
    classes: &[Classes {
        names: &["PhiMoEForCausalLM", "PhimoeForCausalLM"],
        defaults: &[
            ("max_position_embeddings", Fallback::Count(131_072)),
            ("rms_norm_eps", Fallback::Float(1e-5)),
            ("num_key_value_heads", Fallback::Count(8)),
            ("rope_theta", Fallback::Float(1e6)),
            ("num_local_experts", Fallback::Count(16)),
            ("num_experts_per_tok", Fallback::Count(2)),
        ],
    }],
    forward: Some(Forward {
        norm: NormKind::Layer,
        routing: Routing {
            gating: Gating::SparseMixer { tolerance: 2.0 * ROUTER_JITTER },
            normalised: false,
            gated_shared: false,
        },
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("rope.scaling.attn_factor", From::LongRopeAttention),
        entry("context_length", From::Needed(&["n_positions", "max_position_embeddings"])),
        entry("rope.scaling.original_context_length", From::OriginalContext),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("feed_forward_length", From::Needed(&["intermediate_size"])),
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.head_count_kv", From::Needed(&["num_key_value_heads", "n_head_kv"])),
        entry("attention.layer_norm_rms_epsilon", From::NeededFloat(&["rms_norm_eps"])),
        entry("rope.dimension_count", From::RotaryDims(Rounding::OfHidden)),
        entry("rope.freq_base", From::RopeBase),
        entry("", From::FileType),
        entry("attention.sliding_window", From::CountOr(&["sliding_window"], 0)),
        entry("expert_used_count", From::Needed(&["num_experts_per_tok", "num_experts_per_token"])),
        entry("expert_count", From::Needed(EXPERT_KEYS)),
        entry("expert_router_jitter", From::FloatUnless("router_jitter_noise", 0.01)),
        entry("rope.scaling.magnitude", From::LongRopeMagnitude),
    ],
    tensors: &[
        LONG_FACTORS,
        ENDS,
        NORMS,
        NORM_BIASES,
        &[bias("lm_head.bias", "output.bias", &[Dim::Vocab])],
        ATTENTION,
        MIXTRAL_EXPERTS,
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};
