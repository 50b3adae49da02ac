//! Command R and Command R7B: one norm a block, attention and feed-forward side by side, scaled logits.
//!
//! Sources: Hugging Face transformers' `modeling_cohere.py` and `modeling_cohere2.py`; llama.cpp's
//! `conversion/command_r.py`.

use super::parts::*;
use super::{
    ADJACENT_PAIRS, Architecture, Classes, Dim, Fallback, Forward, From, Joined, LAYER_NORM_OF_EACH_HEAD,
    LLAMA_FORWARD, LocalRope, ONE_BEFORE, Positions, RopeBlocks, Rounding, TensorRule, Windows,
};
use crate::description::{NormKind, Residual, RopeStyle};

const COHERE: &[TensorRule] = &[
    embedding("model.embed_tokens.weight"),
    norm("model.norm.weight", "output_norm.weight"),
    norm(layer!("input_layernorm.weight"), blk!("attn_norm.weight")),
];

/// Command R, Command R+ and Aya 23.
pub(super) const COMMAND_R: Architecture = Architecture {
    name: "command-r",
    classes: &[Classes {
        names: &["CohereForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Heads),
            ("max_position_embeddings", Fallback::Count(8192)),
            ("layer_norm_eps", Fallback::Float(1e-5)),
            ("logit_scale", Fallback::Float(0.0625)),
            ("rope_theta", Fallback::Float(500_000.0)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward {
        norm: NormKind::Layer,
        norms: ONE_BEFORE,
        head_norm: LAYER_NORM_OF_EACH_HEAD,
        positions: ADJACENT_PAIRS,
        residual: Joined::Always(Residual::Parallel),
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        // The shorter one in config.json is not what the model was trained for.
        entry("context_length", From::Needed(&["model_max_length", "max_position_embeddings"])),
        entry("logit_scale", From::NeededFloat(&["logit_scale"])),
        entry("rope.scaling.type", From::Text("none")),
    ],
    tensors: &[
        COHERE,
        ATTENTION,
        GATED,
        &[
            bias(layer!("self_attn.q_norm.weight"), blk!("attn_q_norm.weight"), &[Dim::Heads, Dim::HeadDim]),
            bias(
                layer!("self_attn.k_norm.weight"),
                blk!("attn_k_norm.weight"),
                &[Dim::KvHeads, Dim::HeadDim],
            ),
        ],
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// Command R7B: windows in three of four blocks.
pub(super) const COHERE2: Architecture = Architecture {
    name: "cohere2",
    classes: &[Classes {
        names: &["Cohere2ForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Heads),
            ("max_position_embeddings", Fallback::Count(8192)),
            ("layer_norm_eps", Fallback::Float(1e-5)),
            ("logit_scale", Fallback::Float(0.0625)),
            ("head_dim", Fallback::HeadDim),
            ("sliding_window", Fallback::Count(4096)),
            ("tie_word_embeddings", Fallback::Flag(true)),
            ROPE_10K,
        ],
    }],
    forward: Some(Forward {
        norm: NormKind::Layer,
        norms: ONE_BEFORE,
        positions: Positions::Rope {
            style: RopeStyle::Adjacent,
            blocks: RopeBlocks::Windowed,
            local: LocalRope::Same,
        },
        windows: Windows::AllButEvery(4),
        residual: Joined::Always(Residual::Parallel),
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        entry("logit_scale", From::NeededFloat(&["logit_scale"])),
        entry("attention.sliding_window", From::Needed(&["sliding_window"])),
        entry("vocab_size", From::Needed(&["vocab_size"])),
        entry("rope.dimension_count", From::RotaryDims(Rounding::OfHead)),
        entry("rope.scaling.type", From::Text("none")),
    ],
    tensors: &[COHERE, ATTENTION, GATED],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};
