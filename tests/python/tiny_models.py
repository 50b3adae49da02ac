"""Makes the tiny random checkpoints of crates/kbit-engine/tests/models, with the logits that Hugging Face transformers computes.

tiny_models.py OUT [NAME...]

OUT/NAME gets config.json, model.safetensors (bf16) and reference.safetensors: `input_ids` i64 and `logits` f32, computed in f32 from the
rounded weights. Sizes are as small as the features of an architecture allow: windows are shorter than the text, caps are reached, heads
are three. Models that transformers lacks are written under their own names from one that computes the same.
"""

import copy
import json
import math
import os
import sys
from pathlib import Path

os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
import transformers.utils.logging
from safetensors.torch import load_file, save_file

transformers.utils.logging.disable_progress_bar()
TOKENS = 20
BASE = dict(
    vocab_size=32, hidden_size=18, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=32, pad_token_id=0, bos_token_id=1,
    eos_token_id=2,
)
GATED = dict(BASE, intermediate_size=24, num_key_value_heads=1)
ROUTED = dict(GATED, hidden_size=12, intermediate_size=8)
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=8)
LATENT = dict(
    ROUTED, num_key_value_heads=3, kv_lora_rank=12, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, n_routed_experts=8,
    n_shared_experts=2, first_k_dense_replace=1, n_group=4, topk_group=2, **EXPERTS,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8)
LONG = dict(
    type="longrope", rope_type="longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.0, 2.0, 3.5],
)
NARROW = dict(GATED, hidden_size=12, intermediate_size=8, head_dim=8)

# Name: class of the model, settings.
MODELS = {
    "llama": ("Llama", dict(GATED, attention_bias=True, mlp_bias=True)),
    "llama-linear": ("Llama", dict(GATED, rope_scaling={"rope_type": "linear", "factor": 3.0}, tie_word_embeddings=True)),
    "llama-dynamic": ("Llama", dict(GATED, max_position_embeddings=12, rope_scaling={"rope_type": "dynamic", "factor": 2.0})),
    "llama3": (
        "Llama",
        dict(
            GATED, rope_scaling={
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        ),
    ),
    "mistral": ("Mistral", dict(GATED, sliding_window=5)),
    "mixtral": ("Mixtral", dict(ROUTED, num_local_experts=4, num_experts_per_tok=2)),
    "smollm3": ("SmolLM3", dict(NARROW, num_hidden_layers=4)),
    "granite": (
        "Granite", dict(GATED, embedding_multiplier=3.0, attention_multiplier=0.1, residual_multiplier=0.4, logits_scaling=2.0),
    ),
    "granitemoe": ("GraniteMoe", dict(ROUTED, num_local_experts=4, num_experts_per_tok=2)),
    "granitemoe-shared": (
        "GraniteMoeShared",
        dict(ROUTED, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=12, residual_multiplier=0.4),
    ),
    "gpt-oss": (
        "GptOss",
        dict(
            ROUTED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=5,
            rope_parameters=dict(YARN, rope_theta=100.0, beta_fast=32.0, beta_slow=0.2, truncate=False), layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    "qwen2-yarn": ("Qwen2", dict(GATED, rope_scaling=YARN)),
    "qwen2-windows": (
        "Qwen2", dict(GATED, num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    "qwen2moe": ("Qwen2Moe", dict(ROUTED, num_experts=4, shared_expert_intermediate_size=12, **EXPERTS)),
    "qwen3": ("Qwen3", dict(GATED, head_dim=10)),
    "qwen3moe": ("Qwen3Moe", dict(ROUTED, head_dim=8, num_experts=4, norm_topk_prob=True, **EXPERTS)),
    "qwen2moe-windows": (
        "Qwen2Moe",
        dict(
            ROUTED, num_experts=4, shared_expert_intermediate_size=12, use_sliding_window=True, sliding_window=5, max_window_layers=2,
            **EXPERTS,
        ),
    ),
    "qwen3-windows": (
        "Qwen3", dict(GATED, head_dim=10, num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=2),
    ),
    "qwen3moe-windows": (
        "Qwen3Moe",
        dict(ROUTED, head_dim=8, num_experts=4, norm_topk_prob=True, use_sliding_window=True, sliding_window=5, **EXPERTS),
    ),
    "qwen3moe-unnormalised": ("Qwen3Moe", dict(ROUTED, head_dim=8, num_experts=4, norm_topk_prob=False, **EXPERTS)),
    "gemma": ("Gemma", dict(GATED, head_dim=10)),
    "gemma2": (
        "Gemma2", dict(GATED, head_dim=8, sliding_window=5, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    ),
    "gemma3": (
        "Gemma3",
        dict(
            NARROW, num_hidden_layers=6, sliding_window=5, query_pre_attn_scalar=8, rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
    ),
    "phi2": ("Phi", dict(BASE, intermediate_size=72, partial_rotary_factor=0.67)),
    "phi3": ("Phi3", dict(GATED, sliding_window=5)),
    "phi3-short": ("Phi3", dict(GATED, max_position_embeddings=64, original_max_position_embeddings=32, rope_scaling=LONG)),
    "phi3-long": ("Phi3", dict(GATED, max_position_embeddings=64, original_max_position_embeddings=16, rope_scaling=LONG)),
    "phimoe": (
        "Phimoe",
        dict(ROUTED, num_local_experts=4, sliding_window=5, attention_bias=True, lm_head_bias=True, original_max_position_embeddings=32),
    ),
    "phimoe-mixed": (
        "Phimoe",
        dict(
            ROUTED, num_local_experts=8, router_jitter_noise=0.4, max_position_embeddings=64, original_max_position_embeddings=32,
            rope_scaling=dict(LONG, short_factor=[1.0, 1.3], long_factor=[1.0, 3.5], short_mscale=1.2, long_mscale=1.2),
        ),
    ),
    "gpt2": ("GPT2", dict(BASE)),
    "gptneo": (
        "GPTNeo", dict(BASE, num_layers=2, num_heads=3, intermediate_size=48, window_size=5, attention_types=[[["global", "local"], 1]]),
    ),
    "gptneox": ("GPTNeoX", dict(BASE, intermediate_size=48, rotary_pct=0.67)),
    "gptneox-sequential": (
        "GPTNeoX", dict(BASE, intermediate_size=48, rotary_pct=0.34, use_parallel_residual=False, hidden_act="gelu_fast"),
    ),
    "opt": ("OPT", dict(BASE, ffn_dim=48, word_embed_proj_dim=18)),
    "opt-350m": ("OPT", dict(BASE, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "bloom": ("Bloom", dict(BASE, n_layer=2, n_head=3)),
    "falcon": ("Falcon", dict(BASE, multi_query=True, new_decoder_architecture=False, parallel_attn=True, bias=False, alibi=False)),
    "falcon-groups": (
        "Falcon",
        dict(BASE, hidden_size=24, num_attention_heads=6, num_kv_heads=2, new_decoder_architecture=True, parallel_attn=True, bias=False, alibi=False),
    ),
    "starcoder2": ("Starcoder2", dict(GATED, sliding_window=5, use_bias=True)),
    "stablelm": ("StableLm", dict(GATED, partial_rotary_factor=0.67, use_qkv_bias=True)),
    "stablelm-parallel": ("StableLm", dict(GATED, partial_rotary_factor=0.34, use_parallel_residual=True, qk_layernorm=True)),
    "olmo": ("Olmo", dict(GATED, clip_qkv=0.5)),
    "olmo2": ("Olmo2", dict(GATED)),
    "olmo3": ("Olmo3", dict(NARROW, num_hidden_layers=4, sliding_window=5, rope_scaling=YARN)),
    "olmoe": ("Olmoe", dict(ROUTED, num_experts=4, num_experts_per_tok=2)),
    "deepseek-v2": ("DeepseekV2", dict(LATENT, num_experts_per_tok=3, q_lora_rank=None, topk_method="group_limited_greedy", routed_scaling_factor=1.5)),
    "deepseek-v2-yarn": (
        "DeepseekV2",
        dict(
            LATENT, q_lora_rank=10, n_group=1, topk_group=1, topk_method="greedy", rope_scaling=dict(YARN, mscale=0.7, mscale_all_dim=0.7),
        ),
    ),
    "deepseek-v3": ("DeepseekV3", dict(LATENT, q_lora_rank=10, norm_topk_prob=True, routed_scaling_factor=2.5)),
    "command-r": ("Cohere", dict(GATED, logit_scale=0.25)),
    "command-r-norms": ("Cohere", dict(GATED, logit_scale=0.25, use_qk_norm=True)),
    "cohere2": ("Cohere2", dict(NARROW, num_hidden_layers=4, sliding_window=5, logit_scale=0.25)),
}


def randomise(model):
    """Random weights that bf16 holds exactly; norms stay near what they are."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            norm = "norm" in name or ".ln_" in name or "ln_f" in name or "ln_attn" in name or "ln_mlp" in name
            value = parameter + 0.2 * noise if norm and parameter.dim() == 1 else 0.3 * noise
            parameter.copy_(value.to(torch.bfloat16).float())
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_((0.3 * torch.randn_like(buffer)).to(torch.bfloat16).float())


def build(kind, settings):
    prefix = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{prefix}Config")(**settings, attn_implementation="eager")
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    randomise(model)
    return model


def write(path, model):
    """The checkpoint and its logits."""
    ids = torch.randint(3, 32, (1, TOKENS))
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits[0].float()
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((path / "config.json").read_text())
    config.pop("transformers_version", None)
    (path / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file({"input_ids": ids[0], "logits": logits.contiguous()}, path / "reference.safetensors")
    print(f"{path.name}: deviation of the logits {logits.std():.3f}", flush=True)


def rewrite(path, settings, tensors):
    """Other names for the same model."""
    (path / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")


def minicpm(path):
    """Granite computes the same."""
    settings = dict(GATED, rms_norm_eps=1e-5)
    factors = dict(
        embedding_multiplier=3.0, residual_multiplier=1.4 / math.sqrt(2), logits_scaling=18 / 12, attention_multiplier=1 / math.sqrt(6),
    )
    write(path, build("Granite", settings | factors))
    settings |= dict(
        architectures=["MiniCPMForCausalLM"], model_type="minicpm", scale_emb=3, scale_depth=1.4, dim_model_base=12, rope_theta=10000.0,
        tie_word_embeddings=False,
    )
    rewrite(path, settings, load_file(path / "model.safetensors"))


def internlm2(path):
    """A Llama, of which each key head lies with its queries and its value in one matrix."""
    settings = dict(GATED, hidden_size=24, num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-5)
    write(path, build("Llama", settings))
    old, new = load_file(path / "model.safetensors"), {}
    names = {"o_proj": "attention.wo", "gate_proj": "feed_forward.w1", "down_proj": "feed_forward.w2", "up_proj": "feed_forward.w3",
             "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in old.items():
        parts = name.split(".")
        if name.startswith("model.layers."):
            layer, part = f"model.layers.{parts[2]}", parts[-2]
            if part in names:
                new[f"{layer}.{names[part]}.weight"] = tensor
        else:
            new[{"lm_head": "output", "embed_tokens": "model.tok_embeddings", "norm": "model.norm"}[parts[-2]] + ".weight"] = tensor
    for layer in range(2):
        q, k, v = (old[f"model.layers.{layer}.self_attn.{part}_proj.weight"].view(2, -1, 4, 24) for part in "qkv")
        new[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat([q, k, v], dim=1).reshape(-1, 24)
    settings |= dict(architectures=["InternLM2ForCausalLM"], model_type="internlm2", rope_theta=10000.0, tie_word_embeddings=False)
    rewrite(path, settings, new)


def deepseek(path):
    """A Qwen2-MoE without biases, whose shared expert's gate is always half open."""
    shape = dict(ROUTED, rms_norm_eps=1e-6, num_experts_per_tok=2, moe_intermediate_size=8)
    model = build("Qwen2Moe", dict(shape, num_experts=4, shared_expert_intermediate_size=16, mlp_only_layers=[0], qkv_bias=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "shared_expert_gate" in name:
                parameter.zero_()
    write(path, model)
    tensors = load_file(path / "model.safetensors")
    new = {}
    for name, tensor in tensors.items():
        if "shared_expert_gate" in name:
            continue
        if name.endswith("shared_expert.down_proj.weight"):
            tensor = tensor / 2
        new[name.replace("shared_expert.", "shared_experts.")] = tensor
    settings = dict(
        shape, architectures=["DeepseekForCausalLM"], model_type="deepseek", n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1,
        norm_topk_prob=False, rope_theta=10000.0, tie_word_embeddings=False,
    )
    rewrite(path, settings, new)


HAND_MADE = {"minicpm": minicpm, "internlm2": internlm2, "deepseek": deepseek}


def main(out, names):
    for name in names or [*MODELS, *HAND_MADE]:
        torch.manual_seed(sum(name.encode()))
        if name in MODELS:
            write(out / name, build(*MODELS[name]))
        else:
            HAND_MADE[name](out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
