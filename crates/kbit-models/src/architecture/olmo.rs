//! OLMo 1 to 3 and OLMoE.
//!
//! Sources: Hugging Face transformers' `modeling_olmo.py`, `modeling_olmo2.py`, `modeling_olmo3.py`,
//! `modeling_olmoe.py`; llama.cpp's `conversion/olmo.py`.

use super::parts::*;
use super::{
    ADJACENT_PAIRS, AROUND, Architecture, Classes, Fallback, Forward, From, LLAMA_FORWARD, LocalRope,
    Positions, RMS_OF_ALL_HEADS, RopeBlocks, Routing, Unlisted, Windows,
};
use crate::description::{BlockNorms, Gating, NormKind, RopeStyle};

/// OLMo: norms without weights.
pub(super) const OLMO: Architecture = Architecture {
    name: "olmo",
    classes: &[Classes {
        names: &["OlmoForCausalLM", "OLMoForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Heads),
            ("max_position_embeddings", Fallback::Count(2048)),
            ROPE_10K,
        ],
    }],
    forward: Some(Forward {
        norm: NormKind::Layer,
        norm_weights: false,
        positions: ADJACENT_PAIRS,
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        entry("attention.layer_norm_epsilon", From::AlwaysFloat(1e-5)),
        entry("attention.clamp_kqv", From::Float(&["clip_qkv"])),
    ],
    tensors: &[&[embedding("model.embed_tokens.weight"), output("lm_head.weight")], PAIRED_ATTENTION, GATED],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// OLMo 2 and 3: norms after the sub-layers, norms of all queries and all keys.
pub(super) const OLMO2: Architecture = Architecture {
    name: "olmo2",
    classes: &[
        Classes {
            names: &["Olmo2ForCausalLM"],
            defaults: &[
                ("num_key_value_heads", Fallback::Heads),
                ("max_position_embeddings", Fallback::Count(2048)),
                ("rms_norm_eps", Fallback::Float(1e-5)),
                ROPE_10K,
            ],
        },
        Classes {
            names: &["Olmo3ForCausalLM"],
            defaults: &[
                ("num_key_value_heads", Fallback::Heads),
                ("max_position_embeddings", Fallback::Count(2048)),
                ("rms_norm_eps", Fallback::Float(1e-5)),
                ("rope_theta", Fallback::Float(500_000.0)),
                ("rope_local_base_freq", Fallback::SameAs("rope_theta")),
                ("sliding_window", Fallback::Count(4096)),
            ],
        },
    ],
    forward: Some(Forward {
        norms: BlockNorms { before_attention: None, before_feed_forward: None, ..AROUND },
        head_norm: RMS_OF_ALL_HEADS,
        positions: Positions::Rope {
            style: RopeStyle::Halves,
            blocks: RopeBlocks::All,
            local: LocalRope::Unscaled(None),
        },
        windows: Windows::AllButEvery(4),
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        entry("attention.sliding_window", From::Count(&["sliding_window"])),
        entry("attention.sliding_window_pattern", From::SlidingPattern(Unlisted::AllButEveryFourth)),
    ],
    tensors: &[
        ENDS,
        ATTENTION,
        WIDE_NORMS,
        &[
            norm(layer!("post_attention_layernorm.weight"), blk!("post_attention_norm.weight")),
            norm(layer!("post_feedforward_layernorm.weight"), blk!("post_ffw_norm.weight")),
        ],
        GATED,
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// OLMoE: experts.
pub(super) const OLMOE: Architecture = Architecture {
    name: "olmoe",
    classes: &[Classes {
        names: &["OlmoeForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Heads),
            ("max_position_embeddings", Fallback::Count(4096)),
            ("num_experts", Fallback::Count(64)),
            ("num_experts_per_tok", Fallback::Count(8)),
            ("rms_norm_eps", Fallback::Float(1e-5)),
            ROPE_10K,
        ],
    }],
    forward: Some(Forward {
        head_norm: RMS_OF_ALL_HEADS,
        routing: Routing { gating: Gating::Softmax, normalised: false, gated_shared: false },
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        entry("attention.layer_norm_rms_epsilon", From::AlwaysFloat(1e-5)),
        entry("attention.clamp_kqv", From::Float(&["clip_qkv"])),
        entry("expert_weights_norm", From::FlagUnless("norm_topk_prob", false)),
    ],
    tensors: &[ENDS, NORMS, ATTENTION, WIDE_NORMS, EXPERTS],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};
