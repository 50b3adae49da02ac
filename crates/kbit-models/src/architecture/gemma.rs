//! Gemma 1 to 3: norms are stored less one, which is added here.
//!
//! Sources: Hugging Face transformers' `modeling_gemma.py` to `modeling_gemma3.py`; llama.cpp's `conversion/gemma.py`.

use super::parts::*;
use super::{
    AROUND, Architecture, Classes, Dim, EmbeddingScale, Fallback, Forward, From, LLAMA_FORWARD, LocalRope,
    Positions, RMS_OF_HEADS, RopeBlocks, Step, TensorRule, Windows,
};
use crate::description::{Activation, RopeStyle};

/// Early configurations say "gelu" and mean the approximation.
const GEMMA_GELU: (Activation, &[&str]) = (Activation::GeluTanh, &["gelu_pytorch_tanh", "gelu"]);

/// What norms of Gemma are stored less.
const PLUS_ONE: &[Step] = &[Step::Add(1.0)];

const GEMMA_ENDS: &[TensorRule] = &[
    embedding("model.embed_tokens.weight"),
    norm("model.norm.weight", "output_norm.weight").steps(PLUS_ONE),
];

/// Norms before and after each sub-layer.
const FOUR_NORMS: &[TensorRule] = &[
    norm(layer!("input_layernorm.weight"), blk!("attn_norm.weight")).steps(PLUS_ONE),
    norm(layer!("post_attention_layernorm.weight"), blk!("post_attention_norm.weight")).steps(PLUS_ONE),
    norm(layer!("pre_feedforward_layernorm.weight"), blk!("ffn_norm.weight")).steps(PLUS_ONE),
    norm(layer!("post_feedforward_layernorm.weight"), blk!("post_ffw_norm.weight")).steps(PLUS_ONE),
];

/// Gemma's output is the embedding; some tools write it all the same.
const GEMMA_DROPPED: &[&str] =
    &["lm_head.weight", ".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

/// Gemma.
pub(super) const GEMMA: Architecture = Architecture {
    name: "gemma",
    classes: &[Classes {
        names: &["GemmaForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(16)),
            ("max_position_embeddings", Fallback::Count(8192)),
            ("rms_norm_eps", Fallback::Float(1e-6)),
            ("head_dim", Fallback::Count(256)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward {
        activation: GEMMA_GELU,
        embedding_scale: EmbeddingScale::RootOfHidden,
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("context_length", From::Needed(CONTEXT_KEYS)),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("feed_forward_length", From::Needed(&["intermediate_size"])),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.head_count_kv", From::Length(Dim::KvHeads)),
        entry("attention.layer_norm_rms_epsilon", From::NeededFloat(&["rms_norm_eps"])),
        entry("attention.key_length", From::Length(Dim::HeadDim)),
        entry("attention.value_length", From::Length(Dim::HeadDim)),
        entry("", From::FileType),
    ],
    tensors: &[
        GEMMA_ENDS,
        &[
            norm(layer!("input_layernorm.weight"), blk!("attn_norm.weight")).steps(PLUS_ONE),
            norm(layer!("post_attention_layernorm.weight"), blk!("ffn_norm.weight")).steps(PLUS_ONE),
        ],
        ATTENTION,
        GATED,
    ],
    dropped: GEMMA_DROPPED,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// Gemma 2: norms around both sub-layers, windows in every other block, capped logits.
pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    classes: &[Classes {
        names: &["Gemma2ForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(4)),
            ("max_position_embeddings", Fallback::Count(8192)),
            ("rms_norm_eps", Fallback::Float(1e-6)),
            ("head_dim", Fallback::Count(256)),
            ("sliding_window", Fallback::Count(4096)),
            ("attn_logit_softcapping", Fallback::Float(50.0)),
            ("final_logit_softcapping", Fallback::Float(30.0)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward {
        norms: AROUND,
        windows: Windows::AllButEvery(2),
        activation: GEMMA_GELU,
        embedding_scale: EmbeddingScale::RootOfHidden,
        wide_scale: Some(46),
        needed: &["attn_logit_softcapping", "final_logit_softcapping"],
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("context_length", From::Needed(CONTEXT_KEYS)),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("feed_forward_length", From::Needed(&["intermediate_size"])),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.head_count_kv", From::Length(Dim::KvHeads)),
        entry("attention.layer_norm_rms_epsilon", From::NeededFloat(&["rms_norm_eps"])),
        entry("attention.key_length", From::Length(Dim::HeadDim)),
        entry("attention.value_length", From::Length(Dim::HeadDim)),
        entry("", From::FileType),
        entry("attn_logit_softcapping", From::NeededFloat(&["attn_logit_softcapping"])),
        entry("final_logit_softcapping", From::NeededFloat(&["final_logit_softcapping"])),
        entry("attention.sliding_window", From::Needed(&["sliding_window"])),
    ],
    tensors: &[GEMMA_ENDS, FOUR_NORMS, ATTENTION, GATED],
    dropped: GEMMA_DROPPED,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// Gemma 3: norms of query and key heads, another rotary base in blocks with a window.
pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    classes: &[Classes {
        names: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        defaults: &[
            ("num_attention_heads", Fallback::Count(8)),
            ("num_key_value_heads", Fallback::Count(4)),
            ("max_position_embeddings", Fallback::Count(131_072)),
            ("rms_norm_eps", Fallback::Float(1e-6)),
            ("head_dim", Fallback::Count(256)),
            ("vocab_size", Fallback::Count(262_208)),
            ("sliding_window", Fallback::Count(4096)),
            ("rope_theta", Fallback::Float(1e6)),
            ("rope_local_base_freq", Fallback::Float(10000.0)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward {
        norms: AROUND,
        head_norm: RMS_OF_HEADS,
        positions: Positions::Rope {
            style: RopeStyle::Halves,
            blocks: RopeBlocks::All,
            local: LocalRope::Unscaled(Some(10000.0)),
        },
        windows: Windows::AllButEvery(6),
        activation: GEMMA_GELU,
        embedding_scale: EmbeddingScale::RootOfHidden,
        wide_scale: Some(62),
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        entry("final_logit_softcapping", From::NonZeroFloat("final_logit_softcapping")),
        entry("attention.sliding_window", From::Needed(&["sliding_window"])),
    ],
    tensors: &[
        &[
            embedding("model.embed_tokens.weight")
                .steps(&[Step::Rows(&[part(ZERO, &[(Dim::Tokens, ONE)])])])
                .resized(&[Dim::Tokens, Dim::Hidden], &[Dim::Vocab, Dim::Hidden]),
            norm("model.norm.weight", "output_norm.weight").steps(PLUS_ONE),
            output("lm_head.weight"),
        ],
        FOUR_NORMS,
        ATTENTION,
        &[
            vector(layer!("self_attn.q_norm.weight"), blk!("attn_q_norm.weight"), &[Dim::HeadDim])
                .steps(PLUS_ONE),
            vector(layer!("self_attn.k_norm.weight"), blk!("attn_k_norm.weight"), &[Dim::HeadDim])
                .steps(PLUS_ONE),
        ],
        GATED,
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[("attn_logit_softcapping", "a model with capped attention, which Gemma 3 has not")],
};
