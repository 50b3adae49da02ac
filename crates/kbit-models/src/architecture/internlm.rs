//! MiniCPM and InternLM 2, whose Hugging Face code comes with the checkpoints.
//!
//! Sources: `modeling_minicpm.py` and `modeling_internlm2.py` of these checkpoints; llama.cpp's
//! `conversion/minicpm.py` and `conversion/internlm.py`.

use super::parts::*;
use super::{ADJACENT_PAIRS, Architecture, Classes, Dim, Factors, Forward, From, LLAMA_FORWARD, Power, Step};

/// MiniCPM 1 and 2: a Llama with factors on embedding, residual stream and logits.
pub(super) const MINICPM: Architecture = Architecture {
    name: "minicpm",
    classes: &[Classes { names: &["MiniCPMForCausalLM"], defaults: &[] }],
    forward: Some(Forward {
        positions: ADJACENT_PAIRS,
        divided_logits: true,
        needed: &["embedding_scale", "residual_scale", "logit_scale"],
        ..LLAMA_FORWARD
    }),
    parameters: &[
        entry("", From::Common),
        entry("embedding_scale", From::NeededFloat(&["scale_emb"])),
        entry("residual_scale", From::Ratio("scale_depth", "num_hidden_layers", Power::Half)),
        entry("logit_scale", From::Ratio("hidden_size", "dim_model_base", Power::One)),
    ],
    tensors: &[
        &[
            factors("rope_factors_long.weight", Factors::Listed("long_factor")),
            factors("rope_factors_short.weight", Factors::Listed("short_factor")),
        ],
        ENDS,
        NORMS,
        PAIRED_ATTENTION,
        GATED,
    ],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};

/// The name of a tensor of a block in GGUF's order of InternLM's fused matrix.
const WQKV: &str = layer!("attention.wqkv.weight");

/// InternLM 2 and 2.5: groups of queries with a key and a value in one matrix.
pub(super) const INTERNLM2: Architecture = Architecture {
    name: "internlm2",
    classes: &[Classes { names: &["InternLM2ForCausalLM"], defaults: &[] }],
    forward: Some(Forward { positions: ADJACENT_PAIRS, ..LLAMA_FORWARD }),
    parameters: &[entry("", From::Common)],
    tensors: &[&[
        embedding("model.tok_embeddings.weight"),
        norm("model.norm.weight", "output_norm.weight"),
        output("output.weight"),
        norm(layer!("attention_norm.weight"), blk!("attn_norm.weight")),
        norm(layer!("ffn_norm.weight"), blk!("ffn_norm.weight")),
        matrix(WQKV, blk!("attn_q.weight"), &[Dim::Queries, Dim::Hidden])
            .stored(&[QKV, Dim::Hidden])
            .steps(&[Step::Rows(&[QUERIES_OF_GROUPS]), Step::PairRows(Dim::Heads)]),
        matrix(WQKV, blk!("attn_k.weight"), &[Dim::Keys, Dim::Hidden])
            .stored(&[QKV, Dim::Hidden])
            .steps(&[Step::Rows(&[KEYS_OF_GROUPS]), Step::PairRows(Dim::KvHeads)]),
        matrix(WQKV, blk!("attn_v.weight"), &[Dim::Values, Dim::Hidden])
            .stored(&[QKV, Dim::Hidden])
            .steps(&[Step::Rows(&[VALUES_OF_GROUPS])]),
        matrix(layer!("attention.wo.weight"), blk!("attn_output.weight"), &[Dim::Hidden, Dim::Attention]),
        matrix(layer!("feed_forward.w1.weight"), blk!("ffn_gate.weight"), &[Dim::FeedForward, Dim::Hidden]),
        matrix(layer!("feed_forward.w2.weight"), blk!("ffn_down.weight"), &[Dim::Hidden, Dim::FeedForward]),
        matrix(layer!("feed_forward.w3.weight"), blk!("ffn_up.weight"), &[Dim::FeedForward, Dim::Hidden]),
    ]],
    dropped: BUFFERS,
    optional_prefix: "",
    drops_further_blocks: false,
    refused: &[],
};
