//! GPT-2, GPT-Neo, GPT-NeoX, OPT, BLOOM, Falcon, StarCoder 2, StableLM: layer norms with biases.
//!
//! Sources: Hugging Face transformers' `modeling_*.py` of these; llama.cpp's `conversion/gpt2.py`, `gptneox.py`,
//! `bloom.py`, `falcon.py`, `starcoder.py`, `stablelm.py`. llama.cpp has no OPT and no GPT-Neo: their names are kbit's
//! own, which `docs/architectures.md` lists.

use super::parts::*;
use super::{
    Architecture, BEFORE, Classes, Dim, Fallback, Forward, From, GPT_FORWARD, HALVES, Joined,
    LAYER_NORM_OF_EACH_HEAD, LLAMA_FORWARD, Positions, Rounding, Step, TensorRule, Unlisted,
};
use crate::describe::ACTIVATION;
use crate::description::{Activation, BlockNorms, NormKind, Residual};

/// GELU by the error function.
const GELU: (Activation, &[&str]) = (Activation::Gelu, &["gelu"]);
/// GPT-NeoX-20B has the approximation, Pythia has not.
const EITHER_GELU: (Activation, &[&str]) =
    (Activation::Gelu, &["gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"]);

/// Four times the hidden width.
const FOUR_WIDE: Dim = Dim::Product(&[Dim::Fixed(4), Dim::Hidden]);
/// GPT-2's Conv1D keeps matrices by input.
const CONV1D: &[Step] = &[Step::Transpose];

/// The name of a tensor of a block in GPT-2 and its relatives.
macro_rules! h {
    ($rest:literal) => {
        concat!("transformer.h.{layer}.", $rest)
    };
}

/// GPT-2.
pub(super) const GPT2: Architecture = Architecture {
    name: "gpt2",
    classes: &[Classes {
        names: &["GPT2LMHeadModel"],
        defaults: &[
            ("n_positions", Fallback::Count(1024)),
            ("layer_norm_epsilon", Fallback::Float(1e-5)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward { ..GPT_FORWARD }),
    parameters: &[
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("context_length", From::Needed(&["n_ctx", "n_positions"])),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("feed_forward_length", From::Length(FOUR_WIDE)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.layer_norm_epsilon", From::NeededFloat(&["layer_norm_epsilon"])),
        entry("", From::FileType),
    ],
    tensors: &[&[
        embedding("transformer.wte.weight"),
        vector("transformer.wpe.weight", "position_embd.weight", &[Dim::Positions, Dim::Hidden]),
        norm("transformer.ln_f.weight", "output_norm.weight"),
        norm("transformer.ln_f.bias", "output_norm.bias"),
        output("lm_head.weight"),
        norm(h!("ln_1.weight"), blk!("attn_norm.weight")),
        norm(h!("ln_1.bias"), blk!("attn_norm.bias")),
        norm(h!("ln_2.weight"), blk!("ffn_norm.weight")),
        norm(h!("ln_2.bias"), blk!("ffn_norm.bias")),
        matrix(h!("attn.c_attn.weight"), blk!("attn_qkv.weight"), &[QKV, Dim::Hidden])
            .stored(&[Dim::Hidden, QKV])
            .steps(CONV1D),
        vector(h!("attn.c_attn.bias"), blk!("attn_qkv.bias"), &[QKV]),
        matrix(h!("attn.c_proj.weight"), blk!("attn_output.weight"), &[Dim::Hidden, Dim::Attention])
            .stored(&[Dim::Attention, Dim::Hidden])
            .steps(CONV1D),
        vector(h!("attn.c_proj.bias"), blk!("attn_output.bias"), &[Dim::Hidden]),
        matrix(h!("mlp.c_fc.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden])
            .stored(&[Dim::Hidden, Dim::FeedForward])
            .steps(CONV1D),
        vector(h!("mlp.c_fc.bias"), blk!("ffn_up.bias"), &[Dim::FeedForward]),
        matrix(h!("mlp.c_proj.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward])
            .stored(&[Dim::FeedForward, Dim::Hidden])
            .steps(CONV1D),
        vector(h!("mlp.c_proj.bias"), blk!("ffn_down.bias"), &[Dim::Hidden]),
    ]],
    dropped: &[".attn.bias", ".attn.masked_bias"],
    optional_prefix: "transformer.",
    drops_further_blocks: false,
    refused: &[],
};

/// GPT-Neo: attention scores are not scaled, every other block sees a window.
pub(super) const GPT_NEO: Architecture = Architecture {
    name: "gptneo",
    classes: &[Classes {
        names: &["GPTNeoForCausalLM"],
        defaults: &[
            ("max_position_embeddings", Fallback::Count(2048)),
            ("layer_norm_epsilon", Fallback::Float(1e-5)),
            ("window_size", Fallback::Count(256)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward { ..GPT_FORWARD }),
    parameters: &[
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("context_length", From::Needed(CONTEXT_KEYS)),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("feed_forward_length", From::Length(Dim::FeedForward)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.layer_norm_epsilon", From::NeededFloat(&["layer_norm_epsilon"])),
        entry("attention.scale", From::AlwaysFloat(1.0)),
        entry("attention.sliding_window", From::Needed(&["window_size"])),
        entry("attention.sliding_window_pattern", From::SlidingPattern(Unlisted::AllButEveryFourth)),
        entry("", From::FileType),
    ],
    tensors: &[&[
        embedding("transformer.wte.weight"),
        vector("transformer.wpe.weight", "position_embd.weight", &[Dim::Positions, Dim::Hidden]),
        norm("transformer.ln_f.weight", "output_norm.weight"),
        norm("transformer.ln_f.bias", "output_norm.bias"),
        output("lm_head.weight"),
        norm(h!("ln_1.weight"), blk!("attn_norm.weight")),
        norm(h!("ln_1.bias"), blk!("attn_norm.bias")),
        norm(h!("ln_2.weight"), blk!("ffn_norm.weight")),
        norm(h!("ln_2.bias"), blk!("ffn_norm.bias")),
        matrix(h!("attn.attention.q_proj.weight"), blk!("attn_q.weight"), &[Dim::Queries, Dim::Hidden]),
        matrix(h!("attn.attention.k_proj.weight"), blk!("attn_k.weight"), &[Dim::Keys, Dim::Hidden]),
        matrix(h!("attn.attention.v_proj.weight"), blk!("attn_v.weight"), &[Dim::Values, Dim::Hidden]),
        matrix(
            h!("attn.attention.out_proj.weight"),
            blk!("attn_output.weight"),
            &[Dim::Hidden, Dim::Attention],
        ),
        vector(h!("attn.attention.out_proj.bias"), blk!("attn_output.bias"), &[Dim::Hidden]),
        matrix(h!("mlp.c_fc.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden]),
        vector(h!("mlp.c_fc.bias"), blk!("ffn_up.bias"), &[Dim::FeedForward]),
        matrix(h!("mlp.c_proj.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]),
        vector(h!("mlp.c_proj.bias"), blk!("ffn_down.bias"), &[Dim::Hidden]),
    ]],
    dropped: &[".attn.attention.bias", ".attn.attention.masked_bias"],
    optional_prefix: "transformer.",
    drops_further_blocks: false,
    refused: &[],
};

/// The name of a tensor of a block in GPT-NeoX.
macro_rules! neox {
    ($rest:literal) => {
        concat!("gpt_neox.layers.{layer}.", $rest)
    };
}

/// GPT-NeoX and Pythia: queries, keys and values of a head lie together.
pub(super) const GPT_NEOX: Architecture = Architecture {
    name: "gptneox",
    classes: &[Classes {
        names: &["GPTNeoXForCausalLM"],
        defaults: &[
            ("max_position_embeddings", Fallback::Count(2048)),
            ("layer_norm_eps", Fallback::Float(1e-5)),
            ("rotary_pct", Fallback::Float(0.25)),
        ],
    }],
    forward: Some(Forward {
        positions: HALVES,
        activation: EITHER_GELU,
        residual: Joined::Flag {
            key: "use_parallel_residual",
            default: true,
            set: Residual::Parallel,
            unset: Residual::Sequential,
        },
        ..GPT_FORWARD
    }),
    parameters: &[
        entry("context_length", From::Needed(CONTEXT_KEYS)),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("feed_forward_length", From::Needed(&["intermediate_size"])),
        entry("rope.dimension_count", From::RotaryDims(Rounding::OfHead)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("use_parallel_residual", From::Flag("use_parallel_residual", true)),
        entry("attention.layer_norm_epsilon", From::NeededFloat(&["layer_norm_eps"])),
        entry(ACTIVATION, From::OtherActivation),
        entry("", From::FileType),
    ],
    tensors: &[&[
        embedding("gpt_neox.embed_in.weight"),
        norm("gpt_neox.final_layer_norm.weight", "output_norm.weight"),
        norm("gpt_neox.final_layer_norm.bias", "output_norm.bias"),
        output("embed_out.weight"),
        output("lm_head.weight"),
        norm(neox!("input_layernorm.weight"), blk!("attn_norm.weight")),
        norm(neox!("input_layernorm.bias"), blk!("attn_norm.bias")),
        norm(neox!("post_attention_layernorm.weight"), blk!("ffn_norm.weight")),
        norm(neox!("post_attention_layernorm.bias"), blk!("ffn_norm.bias")),
        matrix(neox!("attention.query_key_value.weight"), blk!("attn_qkv.weight"), &[QKV, Dim::Hidden])
            .steps(UNGROUP_HEADS),
        bias(neox!("attention.query_key_value.bias"), blk!("attn_qkv.bias"), &[QKV]).steps(UNGROUP_HEADS),
        matrix(neox!("attention.dense.weight"), blk!("attn_output.weight"), &[Dim::Hidden, Dim::Attention]),
        bias(neox!("attention.dense.bias"), blk!("attn_output.bias"), &[Dim::Hidden]),
        matrix(neox!("mlp.dense_h_to_4h.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden]),
        vector(neox!("mlp.dense_h_to_4h.bias"), blk!("ffn_up.bias"), &[Dim::FeedForward]),
        matrix(neox!("mlp.dense_4h_to_h.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]),
        vector(neox!("mlp.dense_4h_to_h.bias"), blk!("ffn_down.bias"), &[Dim::Hidden]),
    ]],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// The name of a tensor of a block in OPT.
macro_rules! decoder {
    ($rest:literal) => {
        concat!("model.decoder.layers.{layer}.", $rest)
    };
}

/// OPT. The first two learned positions stand for padding and are left out.
pub(super) const OPT: Architecture = Architecture {
    name: "opt",
    classes: &[Classes {
        names: &["OPTForCausalLM"],
        defaults: &[
            ("max_position_embeddings", Fallback::Count(2048)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward {
        activation: (Activation::Relu, &["relu"]),
        residual: Joined::Flag {
            key: "norm_before",
            default: true,
            set: Residual::Sequential,
            unset: Residual::NormAfter,
        },
        ..GPT_FORWARD
    }),
    parameters: &[
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("context_length", From::Needed(CONTEXT_KEYS)),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("feed_forward_length", From::Length(Dim::FeedForward)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.layer_norm_epsilon", From::AlwaysFloat(1e-5)),
        entry("norm_before", From::Flag("do_layer_norm_before", true)),
        entry("token_embedding_length", From::Length(Dim::EmbeddingWidth)),
        entry("", From::FileType),
    ],
    tensors: &[&[
        embedding("model.decoder.embed_tokens.weight")
            .resized(&[Dim::Vocab, Dim::EmbeddingWidth], &[Dim::Vocab, Dim::EmbeddingWidth]),
        vector(
            "model.decoder.embed_positions.weight",
            "position_embd.weight",
            &[Dim::Positions, Dim::Hidden],
        )
        .stored(&[Dim::Sum(&[Dim::Positions, Dim::Fixed(2)]), Dim::Hidden])
        .steps(&[Step::Rows(&[part(Dim::Fixed(2), &[(Dim::Positions, ONE)])])]),
        matrix(
            "model.decoder.project_in.weight",
            "token_embd_proj.weight",
            &[Dim::Hidden, Dim::EmbeddingWidth],
        )
        .optional(),
        matrix("model.decoder.project_out.weight", "output_proj.weight", &[Dim::EmbeddingWidth, Dim::Hidden])
            .optional(),
        // Models whose norms stand after the sub-layers have none at the end.
        bias("model.decoder.final_layer_norm.weight", "output_norm.weight", &[Dim::Hidden]),
        bias("model.decoder.final_layer_norm.bias", "output_norm.bias", &[Dim::Hidden]),
        output("lm_head.weight").resized(&[Dim::Vocab, Dim::EmbeddingWidth], &[]),
        norm(decoder!("self_attn_layer_norm.weight"), blk!("attn_norm.weight")),
        norm(decoder!("self_attn_layer_norm.bias"), blk!("attn_norm.bias")),
        norm(decoder!("final_layer_norm.weight"), blk!("ffn_norm.weight")),
        norm(decoder!("final_layer_norm.bias"), blk!("ffn_norm.bias")),
        matrix(decoder!("self_attn.q_proj.weight"), blk!("attn_q.weight"), &[Dim::Queries, Dim::Hidden]),
        bias(decoder!("self_attn.q_proj.bias"), blk!("attn_q.bias"), &[Dim::Queries]),
        matrix(decoder!("self_attn.k_proj.weight"), blk!("attn_k.weight"), &[Dim::Keys, Dim::Hidden]),
        bias(decoder!("self_attn.k_proj.bias"), blk!("attn_k.bias"), &[Dim::Keys]),
        matrix(decoder!("self_attn.v_proj.weight"), blk!("attn_v.weight"), &[Dim::Values, Dim::Hidden]),
        bias(decoder!("self_attn.v_proj.bias"), blk!("attn_v.bias"), &[Dim::Values]),
        matrix(
            decoder!("self_attn.out_proj.weight"),
            blk!("attn_output.weight"),
            &[Dim::Hidden, Dim::Attention],
        ),
        bias(decoder!("self_attn.out_proj.bias"), blk!("attn_output.bias"), &[Dim::Hidden]),
        matrix(decoder!("fc1.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden]),
        bias(decoder!("fc1.bias"), blk!("ffn_up.bias"), &[Dim::FeedForward]),
        matrix(decoder!("fc2.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]),
        bias(decoder!("fc2.bias"), blk!("ffn_down.bias"), &[Dim::Hidden]),
    ]],
    dropped: &[],
    optional_prefix: "model.",
    drops_further_blocks: false,
    refused: &[],
};

const BLOOM_AND_FALCON: &[TensorRule] = &[
    embedding("transformer.word_embeddings.weight"),
    norm("transformer.ln_f.weight", "output_norm.weight"),
    norm("transformer.ln_f.bias", "output_norm.bias"),
    output("lm_head.weight"),
    matrix(h!("self_attention.dense.weight"), blk!("attn_output.weight"), &[Dim::Hidden, Dim::Attention]),
    bias(h!("self_attention.dense.bias"), blk!("attn_output.bias"), &[Dim::Hidden]),
    matrix(h!("mlp.dense_h_to_4h.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden]),
    bias(h!("mlp.dense_h_to_4h.bias"), blk!("ffn_up.bias"), &[Dim::FeedForward]),
    matrix(h!("mlp.dense_4h_to_h.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]),
    bias(h!("mlp.dense_4h_to_h.bias"), blk!("ffn_down.bias"), &[Dim::Hidden]),
];

/// BLOOM: ALiBi positions, a norm behind the embedding.
pub(super) const BLOOM: Architecture = Architecture {
    name: "bloom",
    classes: &[Classes {
        names: &["BloomForCausalLM", "BloomModel"],
        defaults: &[
            ("layer_norm_epsilon", Fallback::Float(1e-5)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward { positions: Positions::Alibi { max_bias: 8.0 }, ..GPT_FORWARD }),
    parameters: &[
        // Positions have no end.
        entry("context_length", From::Needed(&["seq_length", "hidden_size", "n_embed"])),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("feed_forward_length", From::Length(FOUR_WIDE)),
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.head_count_kv", From::Needed(HEAD_KEYS)),
        entry("attention.layer_norm_epsilon", From::NeededFloat(&["layer_norm_epsilon"])),
        entry("", From::FileType),
    ],
    tensors: &[
        BLOOM_AND_FALCON,
        &[
            norm("transformer.word_embeddings_layernorm.weight", "token_embd_norm.weight"),
            norm("transformer.word_embeddings_layernorm.bias", "token_embd_norm.bias"),
            norm(h!("input_layernorm.weight"), blk!("attn_norm.weight")),
            norm(h!("input_layernorm.bias"), blk!("attn_norm.bias")),
            norm(h!("post_attention_layernorm.weight"), blk!("ffn_norm.weight")),
            norm(h!("post_attention_layernorm.bias"), blk!("ffn_norm.bias")),
            matrix(h!("self_attention.query_key_value.weight"), blk!("attn_qkv.weight"), &[QKV, Dim::Hidden])
                .steps(UNGROUP_HEADS),
            vector(h!("self_attention.query_key_value.bias"), blk!("attn_qkv.bias"), &[QKV])
                .steps(UNGROUP_HEADS),
        ],
    ],
    dropped: BUFFERS,
    optional_prefix: "transformer.",
    drops_further_blocks: false,
    refused: &[],
};

/// Falcon: attention and feed-forward side by side, groups of queries with a key and a value.
pub(super) const FALCON: Architecture = Architecture {
    name: "falcon",
    classes: &[Classes {
        names: &["FalconForCausalLM", "RWForCausalLM"],
        defaults: &[
            ("layer_norm_epsilon", Fallback::Float(1e-5)),
            ("tie_word_embeddings", Fallback::Flag(true)),
        ],
    }],
    forward: Some(Forward {
        // Either one norm for both sub-layers, or attention has one of its own.
        norms: BlockNorms {
            before_attention: Some("attn_norm_2"),
            before_feed_forward: Some("attn_norm"),
            ..BEFORE
        },
        positions: HALVES,
        activation: GELU,
        residual: Joined::Always(Residual::Parallel),
        ..GPT_FORWARD
    }),
    parameters: &[
        // Not in config.json.
        entry("context_length", From::Always(2048)),
        entry("tensor_data_layout", From::Text("jploski")),
        entry("embedding_length", From::Needed(&["hidden_size"])),
        entry("feed_forward_length", From::Length(FOUR_WIDE)),
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.head_count_kv", From::Length(Dim::KvHeads)),
        entry("attention.layer_norm_epsilon", From::NeededFloat(&["layer_norm_epsilon"])),
        entry("", From::FileType),
    ],
    tensors: &[
        BLOOM_AND_FALCON,
        &[
            matrix(h!("self_attention.query_key_value.weight"), blk!("attn_qkv.weight"), &[QKV, Dim::Hidden])
                .steps(&[Step::Rows(&[QUERIES_OF_GROUPS, KEYS_OF_GROUPS, VALUES_OF_GROUPS])]),
            // Either one norm for both sub-layers, or one each.
            norm(h!("input_layernorm.weight"), blk!("attn_norm.weight")),
            norm(h!("input_layernorm.bias"), blk!("attn_norm.bias")),
            norm(h!("ln_mlp.weight"), blk!("attn_norm.weight")),
            norm(h!("ln_mlp.bias"), blk!("attn_norm.bias")),
            bias(h!("ln_attn.weight"), blk!("attn_norm_2.weight"), &[Dim::Hidden]),
            bias(h!("ln_attn.bias"), blk!("attn_norm_2.bias"), &[Dim::Hidden]),
        ],
    ],
    dropped: BUFFERS,
    optional_prefix: "transformer.",
    drops_further_blocks: false,
    refused: &[("alibi", "a Falcon with ALiBi positions, which llama.cpp does not know")],
};

/// StarCoder 2.
pub(super) const STARCODER2: Architecture = Architecture {
    name: "starcoder2",
    classes: &[Classes {
        names: &["Starcoder2ForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(2)),
            ("max_position_embeddings", Fallback::Count(4096)),
            ("norm_epsilon", Fallback::Float(1e-5)),
            ("tie_word_embeddings", Fallback::Flag(true)),
            ROPE_10K,
        ],
    }],
    forward: Some(Forward { positions: HALVES, ..GPT_FORWARD }),
    parameters: &[entry("", From::Common), entry("attention.sliding_window", From::OwnWindow)],
    tensors: &[
        ENDS,
        NORMS,
        NORM_BIASES,
        ATTENTION,
        &[
            matrix(layer!("mlp.c_fc.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden]),
            bias(layer!("mlp.c_fc.bias"), blk!("ffn_up.bias"), &[Dim::FeedForward]),
            matrix(layer!("mlp.c_proj.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]),
            bias(layer!("mlp.c_proj.bias"), blk!("ffn_down.bias"), &[Dim::Hidden]),
        ],
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// StableLM: part of each head rotary, maybe a norm for each head of its own, maybe one norm a block.
pub(super) const STABLELM: Architecture = Architecture {
    name: "stablelm",
    classes: &[Classes {
        names: &["StableLmForCausalLM", "StableLMEpochForCausalLM", "LlavaStableLMEpochForCausalLM"],
        defaults: &[
            ("num_key_value_heads", Fallback::Count(32)),
            ("max_position_embeddings", Fallback::Count(4096)),
            ("partial_rotary_factor", Fallback::Float(0.25)),
            ("layer_norm_eps", Fallback::Float(1e-5)),
            ("use_parallel_residual", Fallback::Flag(false)),
            ROPE_10K,
        ],
    }],
    forward: Some(Forward {
        norm: NormKind::Layer,
        head_norm: LAYER_NORM_OF_EACH_HEAD,
        residual: Joined::Flag {
            key: "use_parallel_residual",
            default: false,
            set: Residual::Parallel,
            unset: Residual::Sequential,
        },
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("context_length", From::Needed(CONTEXT_KEYS)),
        entry("embedding_length", From::Needed(HIDDEN_KEYS)),
        entry("block_count", From::Needed(LAYER_KEYS)),
        entry("feed_forward_length", From::Needed(&["intermediate_size"])),
        entry("rope.dimension_count", From::RotaryDims(Rounding::OfHead)),
        entry("attention.head_count", From::Needed(HEAD_KEYS)),
        entry("attention.head_count_kv", From::Needed(&["num_key_value_heads"])),
        entry("use_parallel_residual", From::Flag("use_parallel_residual", true)),
        entry("attention.layer_norm_epsilon", From::NeededFloat(&["layer_norm_eps", "norm_eps"])),
        entry("", From::FileType),
    ],
    tensors: &[
        ENDS,
        &[
            norm(layer!("input_layernorm.weight"), blk!("attn_norm.weight")),
            bias(layer!("post_attention_layernorm.weight"), blk!("ffn_norm.weight"), &[Dim::Hidden]),
        ],
        NORM_BIASES,
        ATTENTION,
        &[
            bias(
                layer!("self_attn.q_layernorm.norms.{index}.weight"),
                blk!("attn_q_norm.weight"),
                &[Dim::Heads, Dim::HeadDim],
            )
            .stored(&[Dim::HeadDim]),
            bias(
                layer!("self_attn.k_layernorm.norms.{index}.weight"),
                blk!("attn_k_norm.weight"),
                &[Dim::KvHeads, Dim::HeadDim],
            )
            .stored(&[Dim::HeadDim]),
        ],
        GATED,
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};
