"""Makes tiny random checkpoints and has llama.cpp's converter turn them into GGUF files, for kbit to be compared with.

compare_converter.py LLAMA_CPP TOKENIZERS OUT

LLAMA_CPP holds convert_hf_to_gguf.py. TOKENIZERS holds a folder `bpe` with tokenizer.json and tokenizer_config.json, and
a folder `spm` with tokenizer.model and tokenizer_config.json, of 512 tokens. For each architecture OUT/NAME becomes the
checkpoint and OUT/NAME.gguf what the converter makes of it; a line says `NAME ok`, or `NAME failed` and why. The
converter's pre-tokenizer is named "gpt-2", whatever the tokenizer.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import save_file

BASE = dict(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256)
GATED = dict(BASE, intermediate_size=96, num_key_value_heads=2)
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=48)
LATENT = dict(
    GATED, num_key_value_heads=4, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=4,
    n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1, **EXPERTS,
)

# Name: class of the model, tokenizer, settings.
MODELS = {
    "gemma": ("Gemma", "spm", dict(GATED, head_dim=32)),
    "gemma2": ("Gemma2", "spm", dict(GATED, head_dim=32, sliding_window=16)),
    "gemma3-linear": ("Gemma3", "spm", dict(GATED, head_dim=32, sliding_window=16, rope_scaling={"rope_type": "linear", "factor": 8.0})),
    "phi": ("Phi", "bpe", dict(BASE, intermediate_size=256)),
    "phi3-longrope": (
        "Phi3",
        "spm",
        dict(
            GATED, pad_token_id=0, max_position_embeddings=1024, original_max_position_embeddings=256, sliding_window=64,
            rope_scaling={
                "type": "longrope", "rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)],
                "long_factor": [1.0 + 0.3 * i for i in range(8)],
            },
        ),
    ),
    "falcon-multi-query": (
        "Falcon", "bpe", dict(BASE, num_kv_heads=1, multi_query=True, new_decoder_architecture=False, parallel_attn=True, bias=False),
    ),
    "falcon-groups": (
        "Falcon", "bpe", dict(BASE, num_kv_heads=2, new_decoder_architecture=True, parallel_attn=True, bias=False),
    ),
    "stablelm-parallel": ("StableLm", "bpe", dict(GATED, use_parallel_residual=True, use_qkv_bias=True)),
    "olmo": ("Olmo", "bpe", dict(GATED, clip_qkv=8.0, pad_token_id=0)),
    "olmo3": ("Olmo3", "bpe", dict(GATED, num_hidden_layers=4, sliding_window=16, pad_token_id=0)),
    "olmoe": ("Olmoe", "bpe", dict(GATED, num_experts=4, num_experts_per_tok=2, pad_token_id=0)),
    "starcoder2": ("Starcoder2", "bpe", dict(GATED)),
    "granite": (
        "Granite", "bpe", dict(GATED, embedding_multiplier=12.0, attention_multiplier=0.1, residual_multiplier=0.2, logits_scaling=8.0),
    ),
    "granitemoe": ("GraniteMoe", "bpe", dict(GATED, num_local_experts=4, num_experts_per_tok=2)),
    "granitemoeshared": (
        "GraniteMoeShared", "bpe", dict(GATED, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=32),
    ),
    "qwen2moe": ("Qwen2Moe", "bpe", dict(GATED, num_experts=4, shared_expert_intermediate_size=80, **EXPERTS)),
    "qwen2-yarn": (
        "Qwen2", "bpe", dict(GATED, vocab_size=536, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    ),
    "deepseek-v2": ("DeepseekV2", "bpe", dict(LATENT, q_lora_rank=None)),
    "deepseek-v3": ("DeepseekV3", "bpe", dict(LATENT, q_lora_rank=20)),
    "command-r": ("Cohere", "bpe", dict(GATED, pad_token_id=0)),
    # The converter needs "rotary_pct" here and "n_ctx" of GPT-2, which transformers does not write by itself.
    "cohere2": ("Cohere2", "bpe", dict(GATED, num_hidden_layers=4, pad_token_id=0, sliding_window=16, rotary_pct=1.0)),
    "llama-wide-heads": ("Llama", "spm", dict(GATED, head_dim=24, attention_bias=True, mlp_bias=True)),
    "mixtral-window": ("Mixtral", "spm", dict(GATED, num_local_experts=4, num_experts_per_tok=2, sliding_window=32)),
    "qwen3": ("Qwen3", "bpe", dict(GATED, head_dim=24)),
    "qwen3moe": ("Qwen3Moe", "bpe", dict(GATED, head_dim=16, num_experts=4, **EXPERTS)),
    "olmo2": ("Olmo2", "bpe", dict(GATED, pad_token_id=0)),
    "gpt2": ("GPT2LMHead", "bpe", dict(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=256, n_ctx=256)),
    "bloom": ("Bloom", "bpe", dict(vocab_size=512, hidden_size=64, n_layer=2, n_head=4, pad_token_id=0)),
    "command-r-norms": ("Cohere", "bpe", dict(GATED, pad_token_id=0, use_qk_norm=True)),
    "phimoe": (
        "Phimoe", "spm", dict(GATED, num_local_experts=4, num_experts_per_tok=2, attention_bias=True, lm_head_bias=True,
                              original_max_position_embeddings=256),
    ),
    "smollm3-yarn": (
        "SmolLM3", "bpe",
        dict(GATED, pad_token_id=0, rope_scaling={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}),
    ),
}


def random(*shape):
    return torch.randn(*shape).to(torch.bfloat16)


def by_hand(path, settings, tensors):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    save_file(tensors, path / "model.safetensors")


def minicpm(path):
    settings = dict(
        GATED, architectures=["MiniCPMForCausalLM"], model_type="minicpm", rms_norm_eps=1e-5, scale_emb=12, scale_depth=1.4,
        dim_model_base=32, tie_word_embeddings=False,
    )
    tensors = {"model.embed_tokens.weight": random(512, 64), "lm_head.weight": random(512, 64), "model.norm.weight": random(64)}
    shapes = {
        "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96), "input_layernorm": (64,),
        "post_attention_layernorm": (64,),
    }
    for layer in range(2):
        tensors.update({f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()})
    by_hand(path, settings, tensors)


def internlm2(path):
    settings = dict(
        GATED, architectures=["InternLM2ForCausalLM"], model_type="internlm2", rms_norm_eps=1e-5, rope_theta=1000000.0,
        rope_scaling={"type": "dynamic", "factor": 2.0}, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )
    tensors = {"model.tok_embeddings.weight": random(512, 64), "output.weight": random(512, 64), "model.norm.weight": random(64)}
    shapes = {
        "attention.wqkv": (128, 64), "attention.wo": (64, 64), "feed_forward.w1": (96, 64), "feed_forward.w2": (64, 96),
        "feed_forward.w3": (96, 64), "attention_norm": (64,), "ffn_norm": (64,),
    }
    for layer in range(2):
        tensors.update({f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()})
    by_hand(path, settings, tensors)


def deepseek(path):
    settings = dict(
        GATED, architectures=["DeepseekForCausalLM"], model_type="deepseek_raw", num_key_value_heads=4, rms_norm_eps=1e-6,
        rope_theta=10000.0, tie_word_embeddings=False, n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1, **EXPERTS,
    )
    tensors = {"model.embed_tokens.weight": random(512, 64), "lm_head.weight": random(512, 64), "model.norm.weight": random(64)}
    shapes = {f"self_attn.{name}_proj": (64, 64) for name in "qkvo"} | {"input_layernorm": (64,), "post_attention_layernorm": (64,)}
    gated = lambda name, width: {f"{name}gate_proj": (width, 64), f"{name}up_proj": (width, 64), f"{name}down_proj": (64, width)}
    experts = {"mlp.gate": (4, 64)} | gated("mlp.shared_experts.", 96)
    for index in range(4):
        experts |= gated(f"mlp.experts.{index}.", 48)
    for layer, more in enumerate([gated("mlp.", 96), experts]):
        tensors.update({f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in (shapes | more).items()})
    by_hand(path, settings, tensors)


def gptneox(path):
    settings = dict(
        BASE, architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox_raw", intermediate_size=256, layer_norm_eps=1e-5, rotary_pct=0.25,
        use_parallel_residual=True, tie_word_embeddings=False,
    )
    config = transformers.GPTNeoXConfig(**{key: value for key, value in settings.items() if key != "model_type"})
    tensors = transformers.GPTNeoXForCausalLM(config).to(torch.bfloat16).state_dict()
    by_hand(path, settings, {name: tensor.clone() for name, tensor in tensors.items()})


def quantized(settings, encode):
    """A maker of a checkpoint whose matrices in blocks are stored as `encode` makes them of their rows and columns."""

    def make(path):
        plain = dict(
            GATED, architectures=["LlamaForCausalLM"], model_type="llama", rms_norm_eps=1e-6, rope_theta=10000.0,
            tie_word_embeddings=False, quantization_config=settings,
        )
        tensors = {"model.embed_tokens.weight": random(512, 64), "lm_head.weight": random(512, 64), "model.norm.weight": random(64)}
        shapes = {
            "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
        }
        for layer in range(2):
            for name, (rows, cols) in shapes.items():
                tensors.update({f"model.layers.{layer}.{name}.{part}": data for part, data in encode(rows, cols).items()})
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{name}.weight"] = random(64)
        by_hand(path, plain, tensors)

    return make


def words(*shape):
    return torch.randint(-(2**31), 2**31, shape).to(torch.int32)


def gptq_parts(rows, cols):
    groups = torch.arange(cols, dtype=torch.int32)[torch.randperm(cols)] // 32
    scales = torch.rand(cols // 32, rows).half()
    return {"qweight": words(cols // 8, rows), "qzeros": words(cols // 32, rows // 8), "scales": scales, "g_idx": groups}


def packed_parts(rows, cols):
    return {
        "weight_packed": words(rows, cols // 8), "weight_scale": torch.rand(rows, cols // 32).bfloat16(),
        "weight_shape": torch.tensor([rows, cols]), "weight_zero_point": words(rows // 8, cols // 32),
    }


def fp8_parts(rows, cols):
    scale = torch.rand(-(-rows // 24), -(-cols // 40))
    return {"weight": torch.randn(rows, cols).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def int8_parts(rows, cols):
    return {"weight": torch.randint(-128, 128, (rows, cols), dtype=torch.int8), "weight_scale": torch.rand(rows, 1)}


def bitnet_parts(rows, cols):
    codes = torch.randint(0, 3, (rows // 4, cols, 4)) << torch.tensor([0, 2, 4, 6])
    return {"weight": codes.sum(-1).to(torch.uint8), "weight_scale": torch.rand(1).bfloat16()}


def compressed(format, **weights):
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": {"weights": weights}}}


def gpt_oss(path):
    settings = dict(
        GATED, architectures=["GptOssForCausalLM"], model_type="gpt_oss", intermediate_size=64, head_dim=16, rms_norm_eps=1e-5,
        rope_theta=150000.0, rope_scaling={
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        num_local_experts=4, num_experts_per_tok=2, sliding_window=16, tie_word_embeddings=False,
        quantization_config={"quant_method": "mxfp4"},
    )
    tensors = {"model.embed_tokens.weight": random(512, 64), "lm_head.weight": random(512, 64), "model.norm.weight": random(64)}
    shapes = {
        "self_attn.q_proj.weight": (64, 64), "self_attn.k_proj.weight": (32, 64), "self_attn.v_proj.weight": (32, 64),
        "self_attn.o_proj.weight": (64, 64), "self_attn.q_proj.bias": (64,), "self_attn.k_proj.bias": (32,),
        "self_attn.v_proj.bias": (32,), "self_attn.o_proj.bias": (64,), "self_attn.sinks": (4,), "input_layernorm.weight": (64,),
        "post_attention_layernorm.weight": (64,), "mlp.router.weight": (4, 64), "mlp.router.bias": (4,),
        "mlp.experts.gate_up_proj_bias": (4, 128), "mlp.experts.down_proj_bias": (4, 64),
    }
    for layer in range(2):
        tensors.update({f"model.layers.{layer}.{name}": random(*shape) for name, shape in shapes.items()})
        for name, rows in (("gate_up", 128), ("down", 64)):
            stem = f"model.layers.{layer}.mlp.experts.{name}_proj"
            tensors[f"{stem}_blocks"] = torch.randint(0, 256, (4, rows, 2, 16), dtype=torch.uint8)
            tensors[f"{stem}_scales"] = torch.randint(110, 130, (4, rows, 2), dtype=torch.uint8)
    by_hand(path, settings, tensors)


# The head of a README.md, which one of the checkpoints has.
CARD = """---
license: other
license_name: tiny
license_link: LICENSE
language:
- en
- de
tags: [random, tiny]
pipeline_tag: text-generation
base_model:
- some-org/Some-Model-7B-Instruct-v0.2
- https://huggingface.co/other-org/other-model
datasets: some-org/some-data
model_creator: Somebody
---

# A card
"""

HAND_MADE = {
    "minicpm": (minicpm, "spm"),
    "deepseek": (deepseek, "bpe"),
    "internlm2": (internlm2, "spm"),
    "gptneox": (gptneox, "bpe"),
    "gpt-oss-mxfp4": (gpt_oss, "bpe"),
    "llama-gptq": (quantized({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}, gptq_parts), "spm"),
    "llama-fp8": (quantized({"quant_method": "fp8", "weight_block_size": [24, 40]}, fp8_parts), "spm"),
    "llama-bitnet": (quantized({"quant_method": "bitnet"}, bitnet_parts), "spm"),
    "llama-int4": (
        quantized(compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32), packed_parts), "spm",
    ),
    "llama-int8": (quantized(compressed("int-quantized", num_bits=8, type="int", strategy="channel"), int8_parts), "spm"),
}


def from_transformers(path, kind, settings):
    prefix = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{prefix.removesuffix('LMHead')}Config")(**settings)
    model = getattr(transformers, f"{kind}Model" if kind.endswith("LMHead") else f"{kind}ForCausalLM")(config)
    for parameter in model.parameters():
        parameter.data.normal_()
    model.to(torch.bfloat16).save_pretrained(path)
    if kind == "Phimoe":  # as published models write it, and the converter knows it
        file = path / "config.json"
        file.write_text(file.read_text().replace("PhimoeForCausalLM", "PhiMoEForCausalLM"))


def main(llama_cpp, tokenizers, out):
    sys.path.insert(0, llama_cpp)
    sys.path.insert(1, str(Path(llama_cpp) / "gguf-py"))
    import gguf
    from conversion import ModelBase, get_model_class
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    names = {name: kind for name, (_, kind, _) in MODELS.items()} | {name: kind for name, (_, kind) in HAND_MADE.items()}
    for name, tokenizer in names.items():
        path = out / name
        torch.manual_seed(len(name))
        try:
            if name in MODELS:
                kind, _, settings = MODELS[name]
                from_transformers(path, kind, settings)
            else:
                HAND_MADE[name][0](path)
            for file in (tokenizers / tokenizer).iterdir():
                shutil.copy(file, path / file.name)
            if name == "granite":
                (path / "README.md").write_text(CARD)
            settings = ModelBase.load_hparams(path, False)
            model = get_model_class(settings["architectures"][0])
            converted = out / f"{name}.gguf"
            with torch.inference_mode():
                # The converter fails on BitNet where it reads tensors late.
                model(path, gguf.LlamaFileType.ALL_F32, converted, hparams=settings, eager="bitnet" in name).write()
            print(f"{name} ok", flush=True)
        except Exception as error:  # a release of transformers or llama.cpp may know a model no longer
            traceback.print_exc()
            (out / f"{name}.gguf").unlink(missing_ok=True)
            print(f"{name} failed {type(error).__name__}: {error}".splitlines()[0], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
