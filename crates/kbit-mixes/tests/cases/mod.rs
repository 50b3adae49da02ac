//! Models to choose types for: small enough for llama-quantize to read in a moment, with the names and proportions that its choices
//! look at. Shapes need not fit each other; only rows matter.

use kbit_formats::gguf::{Array, GgufLayout, GgufWriter, Metadata, NewTensor, Value, WriteOptions};
use kbit_types::GgmlType;
use std::path::Path;

/// A model: metadata and tensors.
pub struct Case {
    pub name: &'static str,
    pub metadata: Metadata,
    /// Name and row-major shape.
    pub tensors: Vec<(String, Vec<u64>)>,
}

struct Builder {
    case: Case,
    architecture: &'static str,
}

impl Builder {
    fn new(
        name: &'static str,
        architecture: &'static str,
        layers: u32,
        heads: u32,
        key_value_heads: u32,
    ) -> Self {
        let metadata = Metadata::new();
        let mut this = Self { case: Case { name, metadata, tensors: Vec::new() }, architecture };
        this.case.metadata.insert("general.architecture", Value::String(architecture.to_owned()));
        this = this
            .set("block_count", Value::U32(layers))
            .set("context_length", Value::U32(128))
            .set("embedding_length", Value::U32(256))
            .set("feed_forward_length", Value::U32(256))
            .set("attention.head_count", Value::U32(heads))
            .set("attention.head_count_kv", Value::U32(key_value_heads));
        for key in ["layer_norm_rms_epsilon", "layer_norm_epsilon"] {
            this = this.set(&format!("attention.{key}"), Value::F32(1e-5));
        }
        this
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.case.metadata.insert(format!("{}.{key}", self.architecture), value);
        self
    }

    fn counts(self, counts: &[(&str, u32)]) -> Self {
        counts.iter().fold(self, |this, (key, value)| this.set(key, Value::U32(*value)))
    }

    fn experts(self, experts: u32) -> Self {
        self.counts(&[
            ("expert_count", experts),
            ("expert_used_count", 2),
            ("expert_feed_forward_length", 256),
            ("expert_shared_count", 1),
        ])
    }

    fn tensor(mut self, name: &str, shape: &[u64]) -> Self {
        self.case.tensors.push((name.to_owned(), shape.to_vec()));
        self
    }

    /// `names` as matrices of 2 rows of `columns`, in each of `layers`; a name may end in `.bias` or hold `norm` for a vector.
    fn blocks(mut self, layers: std::ops::Range<u32>, columns: u64, names: &[&str]) -> Self {
        for layer in layers {
            for name in names {
                let vector =
                    name.ends_with(".bias") || name.contains("_norm.") || *name == "attn_sinks.weight";
                let shape = if vector { vec![columns] } else { vec![2, columns] };
                self.case.tensors.push((format!("blk.{layer}.{name}"), shape));
            }
        }
        self
    }

    /// `names` as stacks of `experts` matrices.
    fn stacks(mut self, layers: std::ops::Range<u32>, experts: u64, columns: u64, names: &[&str]) -> Self {
        for layer in layers {
            for name in names {
                self.case.tensors.push((format!("blk.{layer}.{name}"), vec![experts, 2, columns]));
            }
        }
        self
    }

    fn embedding(self, columns: u64, tied: bool) -> Self {
        let this = self.tensor("token_embd.weight", &[4, columns]).tensor("output_norm.weight", &[columns]);
        if tied { this } else { this.tensor("output.weight", &[4, columns]) }
    }

    fn done(self) -> Case {
        self.case
    }
}

const ATTENTION: &[&str] = &[
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
];
const GATED: &[&str] = &["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];
const EXPERTS: &[&str] = &["ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"];
const PLAIN: &[&str] = &["ffn_up.weight", "ffn_up.bias", "ffn_down.weight", "ffn_down.bias"];

fn dense(
    name: &'static str,
    architecture: &'static str,
    layers: u32,
    heads: (u32, u32),
    columns: (u64, u64),
    tied: bool,
) -> Builder {
    Builder::new(name, architecture, layers, heads.0, heads.1)
        .embedding(columns.0, tied)
        .blocks(0..layers, columns.0, ATTENTION)
        .blocks(0..layers, columns.1, GATED)
}

fn fused(
    name: &'static str,
    architecture: &'static str,
    layers: u32,
    heads: (u32, u32),
    feed: &[&str],
) -> Builder {
    Builder::new(name, architecture, layers, heads.0, heads.1)
        .embedding(256, false)
        .blocks(0..layers, 256, &["attn_norm.weight", "attn_qkv.weight", "attn_output.weight"])
        .blocks(0..layers, 256, feed)
}

/// All models.
pub fn cases() -> Vec<Case> {
    let heads_of_deci = vec![0u32, 8, 8, 8];
    vec![
        dense("llama-2-layers", "llama", 2, (4, 4), (256, 256), false).done(),
        dense("llama-tied", "llama", 9, (8, 2), (256, 512), true).done(),
        dense("llama-grouped", "llama", 32, (32, 8), (256, 256), false).done(),
        dense("llama-65b", "llama", 80, (8, 8), (256, 256), false).done(),
        dense("llama-70b", "llama", 80, (8, 2), (256, 256), false).done(),
        dense("llama-70b-grouped", "llama", 80, (64, 8), (256, 256), false).done(),
        dense("llama-96", "llama", 12, (4, 2), (96, 64), false).done(),
        dense("llama-tied-96", "llama", 12, (4, 1), (96, 288), true).done(),
        dense("llama-odd", "llama", 5, (4, 2), (33, 256), false).done(),
        dense("llama-128", "llama", 5, (4, 2), (128, 384), false).done(),
        dense("gemma", "gemma", 18, (8, 1), (256, 256), true).done(),
        dense("qwen2", "qwen2", 24, (14, 2), (256, 256), true)
            .blocks(0..24, 256, &["attn_q.bias", "attn_k.bias", "attn_v.bias"])
            .done(),
        dense("qwen2-80", "qwen2", 80, (8, 8), (256, 256), false).done(),
        dense("olmo-80", "olmo", 80, (8, 8), (256, 256), false).done(),
        dense("jais2-68", "jais2", 68, (8, 8), (256, 256), false).done(),
        dense("nanbeige-loops", "nanbeige", 8, (8, 2), (256, 256), false).counts(&[("num_loops", 2)]).done(),
        Builder::new("qwen2moe", "qwen2moe", 24, 16, 16)
            .experts(60)
            .embedding(256, false)
            .blocks(0..24, 256, ATTENTION)
            .blocks(0..24, 256, &["ffn_gate_inp.weight", "ffn_gate_shexp.weight", "ffn_up_shexp.weight"])
            .blocks(0..24, 256, &["ffn_down_shexp.weight"])
            .stacks(0..24, 4, 256, EXPERTS)
            .done(),
        Builder::new("mixtral", "llama", 32, 32, 8)
            .experts(8)
            .embedding(256, false)
            .blocks(0..32, 256, ATTENTION)
            .blocks(0..32, 256, &["ffn_gate_inp.weight"])
            .stacks(0..32, 8, 256, EXPERTS)
            .done(),
        Builder::new("mixtral-96", "llama", 10, 8, 4)
            .experts(8)
            .embedding(96, false)
            .blocks(0..10, 96, ATTENTION)
            .blocks(0..10, 96, &["ffn_gate_inp.weight"])
            .stacks(0..10, 8, 32, EXPERTS)
            .done(),
        Builder::new("mixtral-split", "llama", 8, 8, 2)
            .experts(8)
            .embedding(256, true)
            .blocks(0..8, 256, ATTENTION)
            .blocks(
                0..8,
                256,
                &["ffn_gate_inp.weight", "ffn_gate.0.weight", "ffn_up.0.weight", "ffn_down.0.weight"],
            )
            .blocks(0..8, 256, &["ffn_gate.1.weight", "ffn_up.1.weight", "ffn_down.1.weight"])
            .done(),
        Builder::new("four-experts", "llama", 16, 8, 8)
            .experts(4)
            .embedding(256, false)
            .blocks(0..16, 256, ATTENTION)
            .blocks(0..16, 256, &["ffn_gate_inp.weight"])
            .stacks(0..16, 4, 256, EXPERTS)
            .done(),
        fused("phi3", "phi3", 32, (32, 32), &["ffn_up.weight", "ffn_down.weight"]).done(),
        fused("falcon", "falcon", 32, (71, 1), PLAIN).done(),
        fused("falcon-40b", "falcon", 60, (128, 8), PLAIN).done(),
        fused("gpt2", "gpt2", 12, (12, 12), PLAIN)
            .tensor("position_embd.weight", &[8, 256])
            .blocks(0..12, 256, &["attn_qkv.bias", "attn_output.bias"])
            .done(),
        fused("bloom", "bloom", 24, (16, 16), PLAIN).tensor("token_embd_norm.weight", &[256]).done(),
        fused("starcoder2", "starcoder2", 30, (24, 2), PLAIN).done(),
        Builder::new("deepseek2", "deepseek2", 27, 16, 16)
            .experts(64)
            .counts(&[
                ("attention.q_lora_rank", 256),
                ("attention.kv_lora_rank", 256),
                ("leading_dense_block_count", 1),
                ("nextn_predict_layers", 1),
            ])
            .embedding(256, false)
            .blocks(
                0..27,
                256,
                &["attn_norm.weight", "attn_q_a.weight", "attn_q_b.weight", "attn_kv_a_mqa.weight"],
            )
            .blocks(0..27, 256, &["attn_kv_b.weight", "attn_output.weight", "ffn_norm.weight"])
            .stacks(0..27, 4, 128, &["attn_k_b.weight", "attn_v_b.weight"])
            .blocks(0..1, 256, GATED)
            .blocks(1..27, 256, &["ffn_gate_inp.weight", "ffn_gate_shexp.weight", "ffn_up_shexp.weight"])
            .blocks(1..27, 256, &["ffn_down_shexp.weight"])
            .stacks(1..27, 6, 256, EXPERTS)
            .tensor("blk.26.nextn.eh_proj.weight", &[2, 256])
            .done(),
        Builder::new("gpt-oss", "gpt-oss", 24, 64, 8)
            .experts(32)
            .counts(&[("attention.sliding_window", 128)])
            .embedding(256, false)
            .blocks(0..24, 256, ATTENTION)
            .blocks(0..24, 256, &["attn_sinks.weight", "ffn_gate_inp.weight", "ffn_gate_inp.bias"])
            .stacks(0..24, 4, 96, EXPERTS)
            .blocks(0..24, 256, &["ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias"])
            .done(),
        Builder::new("gemma3n", "gemma3n", 30, 8, 2)
            .counts(&[("attention.sliding_window", 128)])
            .embedding(256, true)
            .tensor("per_layer_token_embd.weight", &[4, 512])
            .tensor("per_layer_model_proj.weight", &[2, 256])
            .tensor("altup_proj.weight", &[3, 2, 256])
            .blocks(0..30, 256, ATTENTION)
            .blocks(0..30, 256, GATED)
            .blocks(0..30, 256, &["altup_router.weight", "laurel_l.weight", "inp_gate.weight", "proj.weight"])
            .done(),
        Builder::new("mamba", "mamba", 24, 0, 0)
            .counts(&[("ssm.conv_kernel", 4), ("ssm.inner_size", 512), ("ssm.state_size", 16)])
            .counts(&[("ssm.time_step_rank", 16)])
            .embedding(256, true)
            .blocks(0..24, 256, &["attn_norm.weight", "ssm_in.weight", "ssm_out.weight"])
            .blocks(0..24, 4, &["ssm_conv1d.weight"])
            .blocks(0..24, 16, &["ssm_dt.weight", "ssm_x.weight", "ssm_a"])
            .done(),
        Builder::new("lfm2", "lfm2", 6, 8, 2)
            .counts(&[("shortconv.l_cache", 3)])
            .embedding(256, true)
            .blocks(
                0..3,
                256,
                &["shortconv.conv.weight", "shortconv.in_proj.weight", "shortconv.out_proj.weight"],
            )
            .blocks(3..6, 256, ATTENTION)
            .blocks(0..6, 256, GATED)
            .done(),
        Builder::new("bert", "bert", 12, 12, 12)
            .embedding(256, true)
            .tensor("position_embd.weight", &[4, 256])
            .tensor("token_types.weight", &[2, 256])
            .blocks(0..12, 256, ATTENTION)
            .blocks(0..12, 256, PLAIN)
            .done(),
        Builder::new("t5", "t5", 6, 6, 6)
            .counts(&[("attention.relative_buckets_count", 32)])
            .embedding(256, false)
            .tensor("enc.blk.0.attn_rel_b.weight", &[2, 256])
            .tensor("enc.blk.0.attn_v.weight", &[2, 256])
            .tensor("enc.blk.1.attn_v.weight", &[2, 256])
            .tensor("dec.blk.0.attn_v.weight", &[2, 256])
            .tensor("dec.blk.0.ffn_down.weight", &[2, 256])
            .tensor("dec.blk.1.ffn_down.weight", &[2, 256])
            .tensor("dec.blk.0.cross_attn_v.weight", &[2, 256])
            .done(),
        Builder::new("rwkv7", "rwkv7", 4, 0, 0)
            .counts(&[("wkv.head_size", 64), ("attention.decay_lora_rank", 32)])
            .counts(&[("attention.iclr_lora_rank", 32), ("attention.value_residual_mix_lora_rank", 32)])
            .embedding(256, false)
            .blocks(
                0..4,
                256,
                &["time_mix_w0.weight", "time_mix_a1.weight", "time_mix_v2.weight", "time_mix_g1.weight"],
            )
            .blocks(
                0..4,
                256,
                &["time_mix_lerp_fused.weight", "time_mix_key.weight", "time_mix_output.weight"],
            )
            .blocks(0..4, 256, &["channel_mix_key.weight", "channel_mix_value.weight"])
            .done(),
        dense("deci", "deci", 4, (0, 0), (256, 256), false)
            .set("attention.head_count", Value::Array(Array::U32(heads_of_deci)))
            .set("attention.head_count_kv", Value::Array(Array::U32(vec![0, 2, 2, 2])))
            .done(),
        Builder::new("bailingmoe3", "bailingmoe3", 8, 8, 8)
            .experts(8)
            .counts(&[("attention.key_length_mla", 64), ("attention.value_length_mla", 64)])
            .counts(&[("attention.kv_lora_rank", 64), ("ssm.conv_kernel", 4), ("kda.head_dim", 64)])
            .counts(&[("leading_dense_block_count", 1), ("expert_gating_func", 1)])
            .set("kda.safe_gate", Value::Bool(true))
            .set("kda.gate_lower_bound", Value::F32(-5.0))
            .embedding(256, false)
            .blocks(0..8, 256, ATTENTION)
            .stacks(0..8, 4, 256, &["attn_k_b.weight", "attn_v_b.weight"])
            .stacks(1..8, 8, 256, EXPERTS)
            .done(),
        Builder::new("glm5-next", "glm5-next", 4, 8, 8)
            .experts(16)
            .counts(&[("attention.key_length_mla", 64), ("attention.value_length_mla", 64)])
            .counts(&[("attention.q_lora_rank", 64), ("attention.kv_lora_rank", 64), ("ssm.conv_kernel", 4)])
            .counts(&[
                ("kda.head_dim", 64),
                ("attention.indexer.head_count", 4),
                ("attention.indexer.key_length", 64),
            ])
            .counts(&[
                ("attention.indexer.top_k", 16),
                ("attention.indexer.kpool", 4),
                ("hyper_connection.count", 4),
            ])
            .counts(&[("hyper_connection.sinkhorn_iterations", 4), ("leading_dense_block_count", 1)])
            .set("hyper_connection.epsilon", Value::F32(1e-6))
            .embedding(256, false)
            .blocks(
                0..4,
                256,
                &["attn_q_a.weight", "attn_q_b.weight", "attn_kv_a_mqa.weight", "attn_output.weight"],
            )
            .blocks(0..4, 256, &["indexer.attn_q_b.weight", "indexer.attn_k.weight", "indexer.proj.weight"])
            .blocks(0..4, 256, &["hc_attn_fn.weight", "ssm_f_a.weight", "ssm_beta.weight", "ssm_q.weight"])
            .blocks(3..4, 256, &["nextn.eh_proj.weight"])
            .stacks(0..4, 4, 256, &["attn_k_b.weight", "attn_v_b.weight"])
            .stacks(1..4, 4, 256, EXPERTS)
            .done(),
        Builder::new("graniteswitch", "graniteswitch", 15, 8, 2)
            .set("logit_scale", Value::F32(1.0))
            .counts(&[("adapters.count", 1), ("adapters.lora_rank", 8)])
            .set("adapters.token_ids_activate", Value::Array(Array::I32(vec![1])))
            .set("adapters.token_ids_substitute", Value::Array(Array::I32(vec![2])))
            .set("adapters.router_gain", Value::F32(1.0))
            .embedding(256, false)
            .blocks(0..15, 256, ATTENTION)
            .blocks(0..15, 256, GATED)
            .done(),
    ]
}

impl Case {
    /// Writes the model as GGUF, all weights f32 zero.
    pub fn write(&self, path: &Path) {
        let stored: Vec<NewTensor> = self
            .tensors
            .iter()
            .map(|(name, shape)| NewTensor {
                name: name.clone(),
                dims: shape.iter().rev().copied().collect(),
                ty: GgmlType::F32,
            })
            .collect();
        let layout = GgufLayout::new(&self.metadata, &stored, 32).unwrap();
        let writer =
            GgufWriter::create(&layout, path, &WriteOptions { overwrite: true, keep_partial: false })
                .unwrap();
        writer.finish().unwrap();
    }
}
