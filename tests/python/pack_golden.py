"""Makes the files of crates/kbit-models/tests/golden/packed: random weights in the packed layouts that others write.

PYTHONPATH=SITE pack_golden.py LLAMA_CPP OUT

SITE holds auto_gptq, awq, compressed_tensors, loguru, psutil and accelerate; the first two pack by their own code, for which the
`__init__.py` files of their folders may be empty. LLAMA_CPP holds
convert_hf_to_gguf.py, whose code decodes what it can; the rest is decoded by the packing library, in f32.

Each file has the tensors of one matrix [32, 64] under its name in a checkpoint, `expected` in f32 (of the rows that the
metadata `rows` gives, where it does), and in its metadata the checkpoint's `quantization_config`.
"""

import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

LLAMA_CPP, OUT = Path(sys.argv[1]), Path(sys.argv[2])
sys.path[:0] = [str(LLAMA_CPP), str(LLAMA_CPP / "gguf-py")]

import gguf
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm
from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from conversion.base import ModelBase
from conversion.gpt_oss import GptOssModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

GATE = "model.layers.0.mlp.gate_proj"
ROWS, COLS, GROUP = 32, 64, 16


def save(name, settings, parts, expected, rows=None):
    tensors = {f"{GATE}.{key}": value.detach().clone().contiguous() for key, value in parts.items()}
    metadata = {"quantization_config": json.dumps(settings)}
    if rows:
        metadata["rows"] = f"{rows[0]} {rows[1]}"
        expected = expected[rows[0] : rows[1]]
    save_file(tensors | {"expected": expected.detach().float().clone().contiguous()}, OUT / f"{name}.safetensors", metadata)


def converted(settings, parts):
    """What llama.cpp's converter makes of the parts."""
    loaders = {f"{GATE}.{key}": (lambda value=value: value.detach()) for key, value in parts.items()}
    model = types.SimpleNamespace(
        hparams={"quantization_config": settings}, model_tensors=loaders, lazy=False, _is_nvfp4=False, _fp8_as_q8=False,
        _fp8_dequantized=set(),
    )
    ModelBase.dequant_model(model)
    assert list(loaders) == [f"{GATE}.weight"], list(loaders)
    return loaders[f"{GATE}.weight"]()


def codes(bits, *shape):
    return torch.randint(0, 2**bits, shape)


def gptq(name, bits, version=1, group=GROUP, shuffled=False):
    groups = COLS // group
    scales = (torch.rand(ROWS, groups) + 0.5).half().float() / 8
    q, zeros = codes(bits, ROWS, COLS), torch.randint(1, 2**bits, (ROWS, groups))
    g_idx = torch.arange(COLS, dtype=torch.int32) // group
    if shuffled:
        g_idx = g_idx[torch.randperm(COLS)]
    by_column = lambda table: table[:, g_idx.long()]
    weight = by_column(scales) * (q - by_column(zeros))
    # Version 2 keeps zero points as they are, where the packing code takes 1 away.
    shown = zeros.float() + (version == 2)
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight.data = by_column(scales) * (q - by_column(shown))
    packed = QuantLinear(bits, group, COLS, ROWS, False, weight_dtype=torch.float32)
    packed.pack(linear, scales, shown, g_idx)
    parts = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales.half(), "g_idx": packed.g_idx}
    settings = {
        "quant_method": "gptq", "bits": bits, "group_size": -1 if group == COLS else group, "desc_act": shuffled, "sym": False,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    expected = weight
    if bits != 3:  # which the converter does not read
        expected = converted(settings, parts)
        assert torch.equal(expected, weight), name
    save(name, settings, parts, expected)


def awq(name, group):
    groups = COLS // group
    scales = (torch.rand(ROWS, groups) + 0.5).half() / 8
    q, zeros = codes(4, ROWS, COLS), codes(4, ROWS, groups)
    wide = lambda table: table.float().repeat_interleave(group, dim=1)
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight.data = wide(scales) * (q - wide(zeros))
    packed = WQLinear_GEMM.from_linear(linear, 4, group, scales=scales.t().contiguous().float(), zeros=zeros.t().contiguous())
    parts = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}
    expected = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, group).t()
    assert torch.equal(expected, linear.weight.data), name
    size = -1 if group == COLS else group
    save(name, {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}, parts, expected)


def compressed(name, compressor, format, by_converter=False, shape=(ROWS, COLS), rows=None, **args):
    args = QuantizationArgs(**args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = torch.randn(shape)
    strategy = args.strategy
    counts = {
        "tensor": (1,), "channel": (shape[0], 1), "group": (shape[0], shape[1] // (args.group_size or 1)),
        "block": tuple(-(-size // block) for size, block in zip(shape, args.block_structure or (1, 1))),
    }[strategy]
    largest = 448 if args.type == "float" else 2 ** (args.num_bits - 1)
    parts = {"weight": weight, "weight_scale": (torch.rand(counts) + 0.75) * 3 / largest}
    if not args.symmetric:
        parts["weight_zero_point"] = torch.randint(-largest // 4, largest // 4, counts, dtype=torch.int8)
    if strategy == "block":  # as `weight_scale` it must be repeated to be applied
        scale = parts["weight_scale"]
        for axis, size in enumerate(args.block_structure):
            scale = scale.repeat_interleave(size, axis)
        packed = {"weight": (weight / scale[: shape[0], : shape[1]]).clamp(-448, 448).to(torch.float8_e4m3fn)}
        packed["weight_scale"] = parts["weight_scale"]
    else:
        packed = compressor.compress(dict(parts), scheme)
    weights = json.loads(args.model_dump_json(exclude_none=True))
    settings = {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": {"weights": weights}}}
    if by_converter:
        shown = dict(weights)
        if format == "pack-quantized":
            shown = dict(shown, strategy="group")
        expected = converted(dict(settings, config_groups={"group_0": {"weights": shown}}), packed)
    else:
        expected = compressor.decompress(dict(packed), scheme)["weight"]
    save(name, settings, packed, expected, rows)


def int4_order():
    """Groups of columns by number, as releases until 2025 wrote them with actorder="group"."""
    q = torch.randint(-8, 8, (ROWS, COLS), dtype=torch.int8)
    groups = torch.arange(COLS, dtype=torch.int32)[torch.randperm(COLS)] // GROUP
    scale = torch.rand(ROWS, COLS // GROUP)
    parts = {
        "weight_packed": pack_to_int32(q, 4), "weight_scale": scale, "weight_shape": torch.tensor([ROWS, COLS]),
        "weight_g_idx": groups,
    }
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "actorder": "group"}
    settings = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}},
    }
    save("int4-order", settings, parts, q * scale[:, groups.long()])


def fp8(name, shape, block, rows=None):
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    counts = [-(-size // length) for size, length in zip(shape, block)] if block else []
    parts = {"weight": weight, "weight_scale_inv": torch.rand(counts) + 0.5}
    settings = {"quant_method": "fp8"} | ({"weight_block_size": block} if block else {})
    save(name, settings, parts, converted(settings, parts), rows)


def bitnet():
    parts = {"weight": (codes(2, ROWS // 4, COLS, 4) % 3 << torch.tensor([0, 2, 4, 6])).sum(-1).to(torch.uint8)}
    parts["weight_scale"] = torch.tensor([1.7]).bfloat16()
    settings = {"quant_method": "bitnet"}
    save("bitnet", settings, parts, converted(settings, parts))


def nvfp4():
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16),
    )
    weight = torch.randn(ROWS, COLS)
    whole = torch.tensor([448.0 * 6 / weight.abs().max()])
    scale = (weight.reshape(ROWS, -1, 16).abs().amax(-1) / 6 * whole).to(torch.float8_e4m3fn).float()
    parts = NVFP4PackedCompressor.compress({"weight": weight, "weight_scale": scale, "weight_global_scale": whole}, scheme)
    raw, _ = ModelBase._nvfp4_pack(parts["weight_packed"], parts["weight_scale"])
    plain = torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.NVFP4))
    # The converter keeps the scale of the whole tensor, which the graph multiplies by.
    factor = 1.0 / parts["weight_global_scale"].float()
    settings = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    save("nvfp4-compressed-tensors", settings, dict(parts, input_global_scale=torch.tensor([3.0])), plain * factor)
    renamed = {
        "weight": parts["weight_packed"], "weight_scale": parts["weight_scale"], "weight_scale_2": factor.reshape(()),
        "input_scale": torch.tensor(0.5),
    }
    save("nvfp4-modelopt", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, renamed, plain * factor)


def mxfp4():
    # A stack as gpt-oss has it, [2, 8, 64]: even rows are the gate's, odd ones the other's.
    blocks = torch.randint(0, 256, (2, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (2, 8, 2), dtype=torch.uint8)
    scales[0, 0] = torch.tensor([0, 1])
    written = []
    writer = types.SimpleNamespace(add_tensor=lambda _, data, raw_dtype: written.append(torch.from_numpy(data)))
    model = types.SimpleNamespace(
        gguf_writer=writer, transform_nibble_layout=lambda tensor: GptOssModel.transform_nibble_layout(None, tensor),
    )
    GptOssModel.repack_mxfp4(model, "gate", blocks[:, ::2], scales[:, ::2])
    GptOssModel.repack_mxfp4(model, "up", blocks[:, 1::2], scales[:, 1::2])
    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    tensors = {"blocks": blocks, "scales": scales, "expected": values, "gate": written[0], "up": written[1]}
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, OUT / "gpt-oss.safetensors")
    packed = {"weight_packed": blocks[0].reshape(8, 32), "weight_scale": scales[0]}
    four = {name: torch.cat([part] * 4) for name, part in packed.items()}
    settings = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    raw = ModelBase.repack_mxfp4_blocks(four["weight_packed"], four["weight_scale"])
    save("mxfp4-compressed-tensors", settings, four, torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)))


torch.manual_seed(1)
OUT.mkdir(parents=True, exist_ok=True)
for bits in (2, 3, 4, 8):
    gptq(f"gptq-{bits}", bits)
gptq("gptq-3-version-2", 3, version=2)
gptq("gptq-4-version-2", 4, version=2)
gptq("gptq-4-desc-act", 4, shuffled=True)
gptq("gptq-4-one-group", 4, group=COLS)
awq("awq-4", GROUP)
awq("awq-4-one-group", COLS)
fp8("fp8-tensor", (ROWS, COLS), None)
fp8("fp8-block", (136, 136), [128, 128], (124, 132))
pack, naive = PackedQuantizationCompressor, NaiveQuantizationCompressor
compressed("int4-group", pack, "pack-quantized", True, num_bits=4, strategy="group", group_size=GROUP)
compressed("int4-group-zeros", pack, "pack-quantized", True, num_bits=4, strategy="group", group_size=GROUP, symmetric=False)
compressed("int4-channel", pack, "pack-quantized", num_bits=4, strategy="channel")
compressed("int3-group-zeros", pack, "pack-quantized", num_bits=3, strategy="group", group_size=GROUP, symmetric=False)
compressed("int8-group", pack, "pack-quantized", True, num_bits=8, strategy="group", group_size=GROUP)
int4_order()
compressed("int8-channel", naive, "int-quantized", True, num_bits=8, strategy="channel")
compressed("int8-channel-zeros", naive, "int-quantized", num_bits=8, strategy="channel", symmetric=False)
compressed("int8-group-plain", naive, "int-quantized", num_bits=8, strategy="group", group_size=GROUP)
compressed("fp8-channel", naive, "float-quantized", True, num_bits=8, type="float", strategy="channel")
compressed("fp8-whole", naive, "naive-quantized", num_bits=8, type="float", strategy="tensor")
compressed(
    "fp8-blocks", naive, "float-quantized", True, shape=(136, 136), rows=(124, 132), num_bits=8, type="float", strategy="block",
    block_structure=[128, 128],
)
bitnet()
nvfp4()
mxfp4()
