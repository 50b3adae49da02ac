//! Llama and those built like it: RMS norm before each sub-layer, rotary positions, grouped-query attention, SiLU-gated
//! feed-forward network or experts.
//!
//! Sources: Hugging Face transformers' `modeling_llama.py` and its relatives; llama.cpp's `conversion/llama.py`,
//! `granite.py`, `gpt_oss.py`.

use super::parts::*;
use super::{
    ADJACENT_PAIRS, Architecture, BEFORE, Classes, Dim, Factors, Fallback, Forward, From, LLAMA_FORWARD,
    LocalRope, Parameter, Positions, RopeBlocks, Rounding, Routing, Step, TensorRule, Windows,
};
use crate::description::{Activation, BlockNorms, Gating, RopeStyle};

/// Entries that llama.cpp adds for all of the family.
const LLAMA_PARAMETERS: &[Parameter] = &[
    entry("", From::Common),
    entry("vocab_size", From::Needed(&["vocab_size"])),
    entry("rope.dimension_count", From::Length(Dim::HeadDim)),
    entry("attention.sliding_window", From::OwnWindow),
];

/// Llama 1, 2, 3, 3.1 to 3.3, Mistral, Mixtral, SmolLM, TinyLlama and others.
pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    classes: &[
        Classes {
            names: &[
                "LlamaForCausalLM",
                "LLaMAForCausalLM",
                "LlavaForConditionalGeneration",
                "VoxtralForConditionalGeneration",
                "IQuestCoderForCausalLM",
            ],
            defaults: &[
                ("num_key_value_heads", Fallback::Heads),
                ("max_position_embeddings", Fallback::Count(2048)),
                ("rms_norm_eps", Fallback::Float(1e-6)),
                ("head_dim", Fallback::HeadDim),
                ROPE_10K,
            ],
        },
        Classes {
            names: &["MistralForCausalLM"],
            defaults: &[
                ("num_key_value_heads", Fallback::Count(8)),
                ("max_position_embeddings", Fallback::Count(131_072)),
                ("rms_norm_eps", Fallback::Float(1e-6)),
                ("head_dim", Fallback::HeadDim),
                ROPE_10K,
            ],
        },
        Classes {
            names: &["MixtralForCausalLM"],
            defaults: &[
                ("num_key_value_heads", Fallback::Count(8)),
                ("max_position_embeddings", Fallback::Count(131_072)),
                ("rms_norm_eps", Fallback::Float(1e-5)),
                ("rope_theta", Fallback::Float(1e6)),
                ("num_local_experts", Fallback::Count(8)),
                ("num_experts_per_tok", Fallback::Count(2)),
            ],
        },
    ],
    forward: Some(Forward { positions: ADJACENT_PAIRS, ..LLAMA_FORWARD }),
    parameters: LLAMA_PARAMETERS,
    tensors: &[
        &[factors("rope_freqs.weight", Factors::Llama3)],
        ENDS,
        NORMS,
        PAIRED_ATTENTION,
        GATED,
        MIXTRAL_EXPERTS,
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[("draft_vocab_size", "an EAGLE-3 draft model, which needs its target model")],
};

/// SmolLM3, whose every fourth block has no positions.
pub(super) const SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    classes: &[Classes {
        names: &["SmolLM3ForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(4)),
            ("max_position_embeddings", Fallback::Count(32_768)),
            ("rms_norm_eps", Fallback::Float(1e-6)),
            ("rope_theta", Fallback::Float(2e6)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward {
        positions: Positions::Rope {
            style: RopeStyle::Adjacent,
            blocks: RopeBlocks::AllButEvery(4),
            local: LocalRope::Same,
        },
        ..LLAMA_FORWARD
    }),
    parameters: LLAMA_PARAMETERS,
    tensors: &[&[factors("rope_freqs.weight", Factors::Llama3)], ENDS, NORMS, PAIRED_ATTENTION, GATED],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

const GRANITE_DEFAULTS: &[(&str, Fallback)] = &[
    ("num_key_value_heads", Fallback::Heads),
    ("max_position_embeddings", Fallback::Count(2048)),
    ("rms_norm_eps", Fallback::Float(1e-6)),
    ("head_dim", Fallback::Ignored),
    ("attention_multiplier", Fallback::Float(1.0)),
    ("embedding_multiplier", Fallback::Float(1.0)),
    ("residual_multiplier", Fallback::Float(1.0)),
    ("logits_scaling", Fallback::Float(1.0)),
    ROPE_10K,
];

/// Granite 3: factors on embedding, attention, residual stream and logits.
pub(super) const GRANITE: Architecture = Architecture {
    name: "granite",
    classes: &[Classes { names: &["GraniteForCausalLM"], defaults: GRANITE_DEFAULTS }],
    forward: Some(Forward { positions: ADJACENT_PAIRS, divided_logits: true, ..LLAMA_FORWARD }),
    parameters: &[
        entry("", From::Common),
        entry("vocab_size", From::Needed(&["vocab_size"])),
        entry("rope.dimension_count", From::RotaryDims(Rounding::OfHead)),
        entry("attention.scale", From::NonZeroFloat("attention_multiplier")),
        entry("embedding_scale", From::NonZeroFloat("embedding_multiplier")),
        entry("residual_scale", From::NonZeroFloat("residual_multiplier")),
        entry("logit_scale", From::NonZeroFloat("logits_scaling")),
    ],
    tensors: &[ENDS, NORMS, PAIRED_ATTENTION, GATED],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// Granite 3 with experts, and maybe one that all tokens share.
pub(super) const GRANITE_MOE: Architecture = Architecture {
    name: "granitemoe",
    classes: &[
        Classes { names: &["GraniteMoeForCausalLM"], defaults: GRANITE_MOE_DEFAULTS },
        Classes { names: &["GraniteMoeSharedForCausalLM"], defaults: GRANITE_MOE_DEFAULTS },
    ],
    forward: Some(Forward { positions: ADJACENT_PAIRS, divided_logits: true, ..LLAMA_FORWARD }),
    parameters: &[
        entry("", From::Common),
        entry("vocab_size", From::Needed(&["vocab_size"])),
        entry("rope.dimension_count", From::RotaryDims(Rounding::OfHead)),
        entry("attention.scale", From::NonZeroFloat("attention_multiplier")),
        entry("embedding_scale", From::NonZeroFloat("embedding_multiplier")),
        entry("residual_scale", From::NonZeroFloat("residual_multiplier")),
        entry("logit_scale", From::NonZeroFloat("logits_scaling")),
        entry("expert_shared_feed_forward_length", From::NonZeroCount("shared_intermediate_size")),
    ],
    tensors: &[ENDS, NORMS, PAIRED_ATTENTION, GRANITE_EXPERTS],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

const GRANITE_MOE_DEFAULTS: &[(&str, Fallback)] = &[
    ("num_key_value_heads", Fallback::Heads),
    ("max_position_embeddings", Fallback::Count(2048)),
    ("rms_norm_eps", Fallback::Float(1e-6)),
    ("head_dim", Fallback::Ignored),
    ("attention_multiplier", Fallback::Float(1.0)),
    ("embedding_multiplier", Fallback::Float(1.0)),
    ("residual_multiplier", Fallback::Float(1.0)),
    ("logits_scaling", Fallback::Float(1.0)),
    ("num_local_experts", Fallback::Count(8)),
    ("num_experts_per_tok", Fallback::Count(2)),
    ROPE_10K,
];

const FIRST_HALF_OF_EXPERT: &[Step] = &[Step::Rows(&[part(ZERO, &[(Dim::ExpertFeedForward, ONE)])])];
const SECOND_HALF_OF_EXPERT: &[Step] =
    &[Step::Rows(&[part(Dim::ExpertFeedForward, &[(Dim::ExpertFeedForward, ONE)])])];
const FIRST_HALF_OF_SHARED: &[Step] = &[Step::Rows(&[part(ZERO, &[(Dim::SharedFeedForward, ONE)])])];
const SECOND_HALF_OF_SHARED: &[Step] =
    &[Step::Rows(&[part(Dim::SharedFeedForward, &[(Dim::SharedFeedForward, ONE)])])];
const TWO_EXPERTS_WIDE: Dim = Dim::Product(&[Dim::Fixed(2), Dim::ExpertFeedForward]);
const TWO_SHARED_WIDE: Dim = Dim::Product(&[Dim::Fixed(2), Dim::SharedFeedForward]);

const GRANITE_EXPERTS: &[TensorRule] = &[
    vector(
        layer!("block_sparse_moe.router.layer.weight"),
        blk!("ffn_gate_inp.weight"),
        &[Dim::Experts, Dim::Hidden],
    )
    .experts(),
    matrix(
        layer!("block_sparse_moe.input_linear.weight"),
        blk!("ffn_gate_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::Experts, TWO_EXPERTS_WIDE, Dim::Hidden])
    .steps(FIRST_HALF_OF_EXPERT)
    .experts(),
    matrix(
        layer!("block_sparse_moe.input_linear.weight"),
        blk!("ffn_up_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::Experts, TWO_EXPERTS_WIDE, Dim::Hidden])
    .steps(SECOND_HALF_OF_EXPERT)
    .experts(),
    matrix(
        layer!("block_sparse_moe.output_linear.weight"),
        blk!("ffn_down_exps.weight"),
        &[Dim::Experts, Dim::Hidden, Dim::ExpertFeedForward],
    )
    .experts(),
    matrix(
        layer!("shared_mlp.input_linear.weight"),
        blk!("ffn_gate_shexp.weight"),
        &[Dim::SharedFeedForward, Dim::Hidden],
    )
    .stored(&[TWO_SHARED_WIDE, Dim::Hidden])
    .steps(FIRST_HALF_OF_SHARED)
    .optional()
    .experts(),
    matrix(
        layer!("shared_mlp.input_linear.weight"),
        blk!("ffn_up_shexp.weight"),
        &[Dim::SharedFeedForward, Dim::Hidden],
    )
    .stored(&[TWO_SHARED_WIDE, Dim::Hidden])
    .steps(SECOND_HALF_OF_SHARED)
    .optional()
    .experts(),
    matrix(
        layer!("shared_mlp.output_linear.weight"),
        blk!("ffn_down_shexp.weight"),
        &[Dim::Hidden, Dim::SharedFeedForward],
    )
    .optional()
    .experts(),
    matrix(
        layer!("shared_mlp.input_linear.weight"),
        blk!("ffn_gate.weight"),
        &[Dim::SharedFeedForward, Dim::Hidden],
    )
    .stored(&[TWO_SHARED_WIDE, Dim::Hidden])
    .steps(FIRST_HALF_OF_SHARED)
    .dense(),
    matrix(
        layer!("shared_mlp.input_linear.weight"),
        blk!("ffn_up.weight"),
        &[Dim::SharedFeedForward, Dim::Hidden],
    )
    .stored(&[TWO_SHARED_WIDE, Dim::Hidden])
    .steps(SECOND_HALF_OF_SHARED)
    .dense(),
    matrix(
        layer!("shared_mlp.output_linear.weight"),
        blk!("ffn_down.weight"),
        &[Dim::Hidden, Dim::SharedFeedForward],
    )
    .dense(),
];

/// gpt-oss: attention sinks, biases, windows in every other block, experts in MXFP4.
pub(super) const GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    classes: &[Classes {
        names: &["GptOssForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(8)),
            ("max_position_embeddings", Fallback::Count(131_072)),
            ("rms_norm_eps", Fallback::Float(1e-5)),
            ("head_dim", Fallback::Count(64)),
            ("rope_theta", Fallback::Float(150_000.0)),
            ("num_local_experts", Fallback::Count(128)),
            ("num_experts_per_tok", Fallback::Count(4)),
            ("sliding_window", Fallback::Count(128)),
        ],
    }],
    forward: Some(Forward {
        // What llama.cpp calls so is the norm before the feed-forward network.
        norms: BlockNorms { before_feed_forward: Some("post_attention_norm"), ..BEFORE },
        windows: Windows::AllButEvery(2),
        activation: (Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 }, &["silu"]),
        routing: Routing { gating: Gating::SoftmaxOfChosen, normalised: false, gated_shared: false },
        yarn_in_whole_pairs: false,
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        entry("attention.sliding_window", From::Needed(&["sliding_window"])),
        entry("expert_feed_forward_length", From::Needed(&["intermediate_size"])),
    ],
    tensors: &[
        ENDS,
        &[
            norm(layer!("input_layernorm.weight"), blk!("attn_norm.weight")),
            norm(layer!("post_attention_layernorm.weight"), blk!("post_attention_norm.weight")),
            vector(layer!("self_attn.sinks"), blk!("attn_sinks.weight"), &[Dim::Heads]),
        ],
        ATTENTION,
        GPT_OSS_EXPERTS,
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// Rows of gate and up alternate.
const EVEN_ROWS: Step = Step::Rows(&[part(ZERO, &[(Dim::ExpertFeedForward, Dim::Fixed(2))])]);
const ODD_ROWS: Step = Step::Rows(&[part(ONE, &[(Dim::ExpertFeedForward, Dim::Fixed(2))])]);
/// Each value of an expert's bias as a row.
const BIAS_ROWS: Step = Step::View(&[Dim::Experts, TWO_EXPERTS_WIDE, ONE]);

const GPT_OSS_EXPERTS: &[TensorRule] = &[
    vector(layer!("mlp.router.weight"), blk!("ffn_gate_inp.weight"), &[Dim::Experts, Dim::Hidden]).experts(),
    vector(layer!("mlp.router.bias"), blk!("ffn_gate_inp.bias"), &[Dim::Experts]).experts(),
    matrix(
        layer!("mlp.experts.down_proj"),
        blk!("ffn_down_exps.weight"),
        &[Dim::Experts, Dim::Hidden, Dim::ExpertFeedForward],
    )
    .stored(&[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden])
    .steps(&[Step::Transpose])
    .experts(),
    matrix(
        layer!("mlp.experts.gate_up_proj"),
        blk!("ffn_gate_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::Experts, Dim::Hidden, TWO_EXPERTS_WIDE])
    .steps(&[Step::Transpose, EVEN_ROWS])
    .experts(),
    matrix(
        layer!("mlp.experts.gate_up_proj"),
        blk!("ffn_up_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::Experts, Dim::Hidden, TWO_EXPERTS_WIDE])
    .steps(&[Step::Transpose, ODD_ROWS])
    .experts(),
    // The same in MXFP4, which is not transposed.
    matrix(
        layer!("mlp.experts.down_proj_blocks"),
        blk!("ffn_down_exps.weight"),
        &[Dim::Experts, Dim::Hidden, Dim::ExpertFeedForward],
    )
    .experts(),
    matrix(
        layer!("mlp.experts.gate_up_proj_blocks"),
        blk!("ffn_gate_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::Experts, TWO_EXPERTS_WIDE, Dim::Hidden])
    .steps(&[EVEN_ROWS])
    .experts(),
    matrix(
        layer!("mlp.experts.gate_up_proj_blocks"),
        blk!("ffn_up_exps.weight"),
        &[Dim::Experts, Dim::ExpertFeedForward, Dim::Hidden],
    )
    .stored(&[Dim::Experts, TWO_EXPERTS_WIDE, Dim::Hidden])
    .steps(&[ODD_ROWS])
    .experts(),
    vector(layer!("mlp.experts.down_proj_bias"), blk!("ffn_down_exps.bias"), &[Dim::Experts, Dim::Hidden])
        .experts(),
    vector(
        layer!("mlp.experts.gate_up_proj_bias"),
        blk!("ffn_gate_exps.bias"),
        &[Dim::Experts, Dim::ExpertFeedForward],
    )
    .stored(&[Dim::Experts, TWO_EXPERTS_WIDE])
    .steps(&[BIAS_ROWS, EVEN_ROWS])
    .experts(),
    vector(
        layer!("mlp.experts.gate_up_proj_bias"),
        blk!("ffn_up_exps.bias"),
        &[Dim::Experts, Dim::ExpertFeedForward],
    )
    .stored(&[Dim::Experts, TWO_EXPERTS_WIDE])
    .steps(&[BIAS_ROWS, ODD_ROWS])
    .experts(),
];
