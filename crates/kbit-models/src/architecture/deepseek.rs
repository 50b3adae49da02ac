//! DeepSeek 1 to 3: experts behind dense blocks, from version 2 on with multi-head latent attention.
//!
//! Sources: DeepSeek-V2 (2024) and DeepSeek-V3 (2024) technical reports; Hugging Face transformers'
//! `modeling_deepseek_v2.py` and `modeling_deepseek_v3.py`; llama.cpp's `conversion/deepseek.py`. llama.cpp stores latent
//! attention for one key head: the matrix that makes keys and values from the latent vector is split, and its key part
//! transposed, so that queries can go into the latent space instead.

use super::parts::*;
use super::{
    ADJACENT_PAIRS, Architecture, Classes, Dim, Fallback, Forward, From, LLAMA_FORWARD, Routing, Step,
    TensorRule,
};
use crate::description::Gating;

const UNNORMALISED: Routing = Routing { gating: Gating::Softmax, normalised: false, gated_shared: false };

/// The experts that all tokens go through, and the dense blocks before.
const SHARED_EXPERTS: &[TensorRule] = &[
    matrix(
        layer!("mlp.shared_experts.gate_proj.weight"),
        blk!("ffn_gate_shexp.weight"),
        &[Dim::SharedFeedForward, Dim::Hidden],
    )
    .optional()
    .experts(),
    matrix(
        layer!("mlp.shared_experts.up_proj.weight"),
        blk!("ffn_up_shexp.weight"),
        &[Dim::SharedFeedForward, Dim::Hidden],
    )
    .optional()
    .experts(),
    matrix(
        layer!("mlp.shared_experts.down_proj.weight"),
        blk!("ffn_down_shexp.weight"),
        &[Dim::Hidden, Dim::SharedFeedForward],
    )
    .optional()
    .experts(),
];

/// DeepSeek-MoE.
pub(super) const DEEPSEEK: Architecture = Architecture {
    name: "deepseek",
    classes: &[Classes {
        names: &["DeepseekForCausalLM"],
        defaults: &[("first_k_dense_replace", Fallback::Count(0))],
    }],
    forward: Some(Forward { positions: ADJACENT_PAIRS, routing: UNNORMALISED, ..LLAMA_FORWARD }),
    parameters: &[
        entry("", From::Common),
        entry("rope.dimension_count", From::Length(Dim::HeadDim)),
        entry("rope.scaling.type", From::Text("none")),
        entry("leading_dense_block_count", From::Needed(&["first_k_dense_replace"])),
        entry("vocab_size", From::Needed(&["vocab_size"])),
        entry("expert_feed_forward_length", From::Needed(&["moe_intermediate_size"])),
        entry("expert_weights_scale", From::AlwaysFloat(1.0)),
        entry("expert_count", From::Needed(&["n_routed_experts"])),
        entry("expert_shared_count", From::Needed(&["n_shared_experts"])),
    ],
    tensors: &[ENDS, NORMS, PAIRED_ATTENTION, GATED, EXPERTS, SHARED_EXPERTS],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// A latent key of a head.
const LATENT_KEY: Dim = Dim::Sum(&[Dim::NopeDim, Dim::RopeDim]);
/// What the latent vector of a token becomes in a head: a key without position, and a value.
const KEY_AND_VALUE: Dim = Dim::Sum(&[Dim::NopeDim, Dim::ValueDim]);
/// Rows of all heads as one slice a head.
const HEADS_AS_SLICES: Step = Step::View(&[Dim::Heads, KEY_AND_VALUE, Dim::KeyValueRank]);

const LATENT_ATTENTION: &[TensorRule] = &[
    // Queries directly, or through a narrower vector.
    matrix(
        layer!("self_attn.q_proj.weight"),
        blk!("attn_q.weight"),
        &[Dim::Product(&[Dim::Heads, LATENT_KEY]), Dim::Hidden],
    )
    .optional(),
    matrix(layer!("self_attn.q_a_proj.weight"), blk!("attn_q_a.weight"), &[Dim::QueryRank, Dim::Hidden])
        .optional(),
    bias(layer!("self_attn.q_a_proj.bias"), blk!("attn_q_a.bias"), &[Dim::QueryRank]),
    bias(layer!("self_attn.q_a_layernorm.weight"), blk!("attn_q_a_norm.weight"), &[Dim::QueryRank]),
    matrix(
        layer!("self_attn.q_b_proj.weight"),
        blk!("attn_q_b.weight"),
        &[Dim::Product(&[Dim::Heads, LATENT_KEY]), Dim::QueryRank],
    )
    .optional(),
    matrix(
        layer!("self_attn.kv_a_proj_with_mqa.weight"),
        blk!("attn_kv_a_mqa.weight"),
        &[Dim::Sum(&[Dim::KeyValueRank, Dim::RopeDim]), Dim::Hidden],
    ),
    bias(
        layer!("self_attn.kv_a_proj_with_mqa.bias"),
        blk!("attn_kv_a_mqa.bias"),
        &[Dim::Sum(&[Dim::KeyValueRank, Dim::RopeDim])],
    ),
    vector(layer!("self_attn.kv_a_layernorm.weight"), blk!("attn_kv_a_norm.weight"), &[Dim::KeyValueRank]),
    matrix(
        layer!("self_attn.kv_b_proj.weight"),
        blk!("attn_k_b.weight"),
        &[Dim::Heads, Dim::KeyValueRank, Dim::NopeDim],
    )
    .stored(&[Dim::Product(&[Dim::Heads, KEY_AND_VALUE]), Dim::KeyValueRank])
    .steps(&[HEADS_AS_SLICES, Step::Rows(&[part(ZERO, &[(Dim::NopeDim, ONE)])]), Step::Transpose])
    .absorbed(),
    matrix(
        layer!("self_attn.kv_b_proj.weight"),
        blk!("attn_v_b.weight"),
        &[Dim::Heads, Dim::ValueDim, Dim::KeyValueRank],
    )
    .stored(&[Dim::Product(&[Dim::Heads, KEY_AND_VALUE]), Dim::KeyValueRank])
    .steps(&[HEADS_AS_SLICES, Step::Rows(&[part(Dim::NopeDim, &[(Dim::ValueDim, ONE)])])])
    .absorbed(),
    // What files had before llama.cpp split it.
    matrix("", blk!("attn_kv_b.weight"), &[Dim::Product(&[Dim::Heads, KEY_AND_VALUE]), Dim::KeyValueRank])
        .optional(),
    matrix(
        layer!("self_attn.o_proj.weight"),
        blk!("attn_output.weight"),
        &[Dim::Hidden, Dim::Product(&[Dim::Heads, Dim::ValueDim])],
    ),
    bias(layer!("self_attn.o_proj.bias"), blk!("attn_output.bias"), &[Dim::Hidden]),
];

/// DeepSeek-V2, V2-Lite, V3, R1.
pub(super) const DEEPSEEK2: Architecture = Architecture {
    name: "deepseek2",
    classes: &[
        Classes {
            names: &["DeepseekV2ForCausalLM"],
            defaults: &[
                ("max_position_embeddings", Fallback::Count(2048)),
                ("rms_norm_eps", Fallback::Float(1e-6)),
                ("first_k_dense_replace", Fallback::Count(0)),
                ("kv_lora_rank", Fallback::Count(512)),
                ("q_lora_rank", Fallback::Count(1536)),
                ("n_routed_experts", Fallback::Count(64)),
                ("n_shared_experts", Fallback::Count(2)),
                ("qk_nope_head_dim", Fallback::Count(128)),
                ("qk_rope_head_dim", Fallback::Count(64)),
                ("v_head_dim", Fallback::Count(128)),
                ("routed_scaling_factor", Fallback::Float(1.0)),
                ("moe_intermediate_size", Fallback::Count(1407)),
                ("head_dim", Fallback::SameAs("qk_rope_head_dim")),
                ROPE_10K,
            ],
        },
        Classes {
            names: &["DeepseekV3ForCausalLM"],
            defaults: &[
                ("max_position_embeddings", Fallback::Count(4096)),
                ("rms_norm_eps", Fallback::Float(1e-6)),
                ("first_k_dense_replace", Fallback::Count(3)),
                ("kv_lora_rank", Fallback::Count(512)),
                ("q_lora_rank", Fallback::Count(1536)),
                ("n_routed_experts", Fallback::Count(256)),
                ("n_shared_experts", Fallback::Count(1)),
                ("num_experts_per_tok", Fallback::Count(8)),
                ("n_group", Fallback::Count(8)),
                ("topk_group", Fallback::Count(4)),
                ("qk_nope_head_dim", Fallback::Count(128)),
                ("qk_rope_head_dim", Fallback::Count(64)),
                ("v_head_dim", Fallback::Count(128)),
                ("routed_scaling_factor", Fallback::Float(2.5)),
                ("norm_topk_prob", Fallback::Flag(true)),
                ("moe_intermediate_size", Fallback::Count(2048)),
                ("head_dim", Fallback::SameAs("qk_rope_head_dim")),
                ROPE_10K,
            ],
        },
    ],
    forward: Some(Forward { positions: ADJACENT_PAIRS, routing: UNNORMALISED, ..LLAMA_FORWARD }),
    parameters: &[
        entry("", From::Common),
        // Latent attention has one key head for all queries.
        entry("attention.head_count_kv", From::Always(1)),
        entry("leading_dense_block_count", From::Needed(&["first_k_dense_replace"])),
        entry("vocab_size", From::Needed(&["vocab_size"])),
        entry("attention.q_lora_rank", From::Count(&["q_lora_rank"])),
        entry("attention.kv_lora_rank", From::Length(Dim::KeyValueRank)),
        entry("attention.key_length", From::Length(Dim::Sum(&[Dim::KeyValueRank, Dim::RopeDim]))),
        entry("attention.value_length", From::Length(Dim::KeyValueRank)),
        entry("attention.key_length_mla", From::Length(LATENT_KEY)),
        entry("attention.value_length_mla", From::Length(Dim::ValueDim)),
        entry("expert_feed_forward_length", From::Needed(&["moe_intermediate_size", "intermediate_size"])),
        entry("expert_count", From::Count(&["n_routed_experts"])),
        entry("expert_shared_count", From::CountOr(&["n_shared_experts"], 0)),
        entry("expert_weights_scale", From::Float(&["routed_scaling_factor"])),
        entry("expert_weights_norm", From::IfTrue("norm_topk_prob")),
        entry("rope.dimension_count", From::Length(Dim::RopeDim)),
        entry("rope.scaling.yarn_log_multiplier", From::RopeSetting("mscale_all_dim", 0.1)),
    ],
    tensors: &[
        ENDS,
        NORMS,
        LATENT_ATTENTION,
        GATED,
        EXPERTS,
        SHARED_EXPERTS,
        &[bias(layer!("mlp.gate.e_score_correction_bias"), blk!("exp_probs_b.bias"), &[Dim::Experts])
            .experts()],
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: true,
    refused: &[],
};
