//! Qwen 1.5, 2, 2.5 and 3, with and without experts.
//!
//! Sources: Hugging Face transformers' `modeling_qwen2.py`, `modeling_qwen3.py` and their MoE relatives; llama.cpp's
//! `conversion/qwen.py`.

use super::parts::*;
use super::{
    Architecture, Classes, Dim, Fallback, Forward, From, LLAMA_FORWARD, Parameter, RMS_OF_HEADS, Routing,
    TensorRule, Unlisted,
};
use crate::description::Gating;

/// Whether a configuration asks for windows.
const NO_WINDOWS: (&str, Fallback) = ("use_sliding_window", Fallback::Flag(false));
/// How long they are.
const WINDOW: (&str, Fallback) = ("sliding_window", Fallback::Count(4096));
/// Where they begin or end.
const MAX_WINDOW_LAYERS: (&str, Fallback) = ("max_window_layers", Fallback::Count(28));
/// The entry of the window.
const OWN_WINDOW: Parameter = entry("attention.sliding_window", From::OwnWindow);
/// The entry of the blocks that have it.
const fn windowed(unlisted: Unlisted) -> Parameter {
    entry("attention.sliding_window_pattern", From::SlidingPattern(unlisted))
}

/// Qwen 1.5, 2 and 2.5.
pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    classes: &[Classes {
        names: &["Qwen2ForCausalLM", "Qwen2AudioForConditionalGeneration", "KORMoForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(32)),
            ("max_position_embeddings", Fallback::Count(32_768)),
            ("rms_norm_eps", Fallback::Float(1e-6)),
            ROPE_10K,
            NO_WINDOWS,
            WINDOW,
            MAX_WINDOW_LAYERS,
        ],
    }],
    forward: Some(Forward { ..LLAMA_FORWARD }),
    parameters: &[entry("", From::Common), OWN_WINDOW, windowed(Unlisted::FromMaxWindowLayers)],
    tensors: &[ENDS, NORMS, ATTENTION, GATED],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// Qwen 1.5 and 2 with experts, one of which all tokens share.
pub(super) const QWEN2_MOE: Architecture = Architecture {
    name: "qwen2moe",
    classes: &[Classes {
        names: &["Qwen2MoeForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(16)),
            ("max_position_embeddings", Fallback::Count(32_768)),
            ("rms_norm_eps", Fallback::Float(1e-6)),
            ("moe_intermediate_size", Fallback::Count(1408)),
            ("shared_expert_intermediate_size", Fallback::Count(5632)),
            ("num_experts_per_tok", Fallback::Count(4)),
            ("num_experts", Fallback::Count(60)),
            ROPE_10K,
            NO_WINDOWS,
            WINDOW,
            MAX_WINDOW_LAYERS,
        ],
    }],
    forward: Some(Forward {
        routing: Routing { gating: Gating::Softmax, normalised: false, gated_shared: true },
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        entry("expert_feed_forward_length", From::Count(&["moe_intermediate_size"])),
        entry("expert_shared_feed_forward_length", From::Count(&["shared_expert_intermediate_size"])),
        entry("expert_weights_norm", From::FlagUnless("norm_topk_prob", false)),
        OWN_WINDOW,
        windowed(Unlisted::EvenBelowMaxWindowLayers),
    ],
    tensors: &[ENDS, NORMS, ATTENTION, EXPERTS, FUSED_EXPERTS, SHARED_EXPERT],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

const SHARED_EXPERT: &[TensorRule] = &[
    vector(layer!("mlp.shared_expert_gate.weight"), blk!("ffn_gate_inp_shexp.weight"), &[ONE, Dim::Hidden]),
    matrix(
        layer!("mlp.shared_expert.gate_proj.weight"),
        blk!("ffn_gate_shexp.weight"),
        &[Dim::SharedFeedForward, Dim::Hidden],
    ),
    matrix(
        layer!("mlp.shared_expert.up_proj.weight"),
        blk!("ffn_up_shexp.weight"),
        &[Dim::SharedFeedForward, Dim::Hidden],
    ),
    matrix(
        layer!("mlp.shared_expert.down_proj.weight"),
        blk!("ffn_down_shexp.weight"),
        &[Dim::Hidden, Dim::SharedFeedForward],
    ),
];

/// Qwen 3: a norm of each query and key head.
pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    classes: &[Classes {
        names: &["Qwen3ForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(32)),
            ("max_position_embeddings", Fallback::Count(32_768)),
            ("rms_norm_eps", Fallback::Float(1e-6)),
            ("head_dim", Fallback::Count(128)),
            ROPE_10K,
            NO_WINDOWS,
            WINDOW,
            MAX_WINDOW_LAYERS,
        ],
    }],
    forward: Some(Forward { head_norm: RMS_OF_HEADS, ..LLAMA_FORWARD }),
    parameters: &[entry("", From::Common), OWN_WINDOW, windowed(Unlisted::FromMaxWindowLayers)],
    tensors: &[ENDS, NORMS, ATTENTION, HEAD_NORMS, GATED],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// Qwen 3 with experts.
pub(super) const QWEN3_MOE: Architecture = Architecture {
    name: "qwen3moe",
    classes: &[Classes {
        names: &["Qwen3MoeForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(4)),
            ("max_position_embeddings", Fallback::Count(32_768)),
            ("rms_norm_eps", Fallback::Float(1e-6)),
            ("moe_intermediate_size", Fallback::Count(768)),
            ("num_experts_per_tok", Fallback::Count(8)),
            ("num_experts", Fallback::Count(128)),
            ROPE_10K,
            NO_WINDOWS,
            WINDOW,
        ],
    }],
    forward: Some(Forward { head_norm: RMS_OF_HEADS, ..LLAMA_FORWARD }),
    parameters: &[
        entry("", From::Common),
        entry("expert_feed_forward_length", From::Count(&["moe_intermediate_size"])),
        entry("expert_weights_norm", From::FlagUnless("norm_topk_prob", true)),
        OWN_WINDOW,
    ],
    tensors: &[ENDS, NORMS, ATTENTION, HEAD_NORMS, EXPERTS, FUSED_EXPERTS],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};
