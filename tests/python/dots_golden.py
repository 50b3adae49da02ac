"""Makes crates/kbit-blocks/tests/golden/dots.safetensors: rows of every block type, 8-bit activations, and ggml's products of both.

dots_golden.py LLAMA_CPP LIBGGML_BASE OUT

LLAMA_CPP holds llama.cpp's sources, LIBGGML_BASE is its libggml-base.so. The products are those of the `ggml_vec_dot_*_generic` functions
of ggml-cpu/quants.c, compiled here by `cc` without contraction to fused multiply-add and without instructions of one CPU: the code that
llama.cpp's own kernels are written after. Activations are encoded by the `quantize_row_q8_*` functions beside them.

OUT gets `input` f32 [3, cols]; for each type of activations `<type>.activations` u8 [3, bytes]; for each type of weights
`<type>.weights` u8 [6, bytes] and `<type>.products` f32 [3, 6].
"""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from safetensors.numpy import save_file

LLAMA_CPP, BASE, OUT = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
ROWS, COUNT, COLS = 6, 3, 768

# Name: ggml's number, elements and bytes of a block.
ACTIVATIONS = {"Q8_0": (8, 32, 34), "Q8_1": (9, 32, 36), "Q8_K": (15, 256, 292)}
# Name: the same, and the type of the activations.
WEIGHTS = {
    "Q8_0": (8, 32, 34, "Q8_0"), "Q4_0": (2, 32, 18, "Q8_0"), "Q4_1": (3, 32, 20, "Q8_1"), "Q5_0": (6, 32, 22, "Q8_0"),
    "Q5_1": (7, 32, 24, "Q8_1"), "Q2_K": (10, 256, 84, "Q8_K"), "Q3_K": (11, 256, 110, "Q8_K"), "Q4_K": (12, 256, 144, "Q8_K"),
    "Q5_K": (13, 256, 176, "Q8_K"), "Q6_K": (14, 256, 210, "Q8_K"), "TQ1_0": (34, 256, 54, "Q8_K"), "TQ2_0": (35, 256, 66, "Q8_K"),
    "MXFP4": (39, 32, 17, "Q8_0"), "NVFP4": (40, 64, 36, "Q8_0"), "Q1_0": (41, 128, 18, "Q8_0"), "Q2_0": (42, 64, 18, "Q8_0"),
    "IQ4_NL": (20, 32, 18, "Q8_0"), "IQ4_XS": (23, 256, 136, "Q8_K"), "IQ2_XXS": (16, 256, 66, "Q8_K"), "IQ2_XS": (17, 256, 74, "Q8_K"),
    "IQ2_S": (22, 256, 82, "Q8_K"), "IQ3_XXS": (18, 256, 98, "Q8_K"), "IQ3_S": (21, 256, 110, "Q8_K"), "IQ1_S": (19, 256, 50, "Q8_K"),
    "IQ1_M": (29, 256, 56, "Q8_K"),
}


def generic(folder):
    """The library of the generic functions, under their plain names."""
    ggml = LLAMA_CPP / "ggml"
    library = folder / "libgeneric.so"
    # ggml-cpu.c, whose table of half-precision floats the functions read, is not needed for more than that.
    table = folder / "table.c"
    table.write_text("float ggml_table_f32_f16[1 << 16];\n")
    subprocess.run(
        ["cc", "-std=gnu11", "-O2", "-ffp-contract=off", "-DGGML_CPU_GENERIC", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", library]
        + [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]
        + [ggml / "src/ggml-cpu/quants.c", table, BASE.resolve(), f"-Wl,-rpath,{BASE.resolve().parent}"],
        check=True,
    )
    return ctypes.CDLL(str(library))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def bytes_of(size, block, bytes_a_block):
    assert size % block == 0
    return size // block * bytes_a_block


def main():
    base = ctypes.CDLL(str(BASE))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    random = numpy.random.default_rng(1)
    # Blocks of different size, one of them zero, and an outlier.
    size = numpy.exp2(random.integers(-6, 4, (COUNT, COLS // 32, 1))).astype(numpy.float32)
    x = (random.standard_normal((COUNT, COLS // 32, 32)).astype(numpy.float32) * size).reshape(COUNT, COLS)
    x[1, 64:96] = 0.0
    x[2, 300] = 500.0
    weights = (random.standard_normal((ROWS, COLS)) * 0.05).astype(numpy.float32)
    importance = (random.standard_normal(COLS) ** 2).astype(numpy.float32)
    tensors = {"input": x}
    with tempfile.TemporaryDirectory() as folder:
        ggml = generic(Path(folder))
        halves = (ctypes.c_float * (1 << 16)).in_dll(ggml, "ggml_table_f32_f16")
        halves[:] = numpy.arange(1 << 16, dtype=numpy.uint16).view(numpy.float16).astype(numpy.float32).tolist()
        for name, (_, block, bytes_a_block) in ACTIVATIONS.items():
            out = numpy.zeros((COUNT, bytes_of(COLS, block, bytes_a_block)), numpy.uint8)
            encode = getattr(ggml, f"quantize_row_{name.lower().replace('_k', '_K')}")
            for row in range(COUNT):
                encode(pointer(x[row]), pointer(out[row]), ctypes.c_int64(COLS))
            tensors[f"{name}.activations"] = out
        for name, (number, block, bytes_a_block, kind) in WEIGHTS.items():
            out = numpy.zeros((ROWS, bytes_of(COLS, block, bytes_a_block)), numpy.uint8)
            size = [ctypes.c_int64(size) for size in (0, ROWS, COLS)]
            assert base.ggml_quantize_chunk(number, pointer(weights), pointer(out), *size, pointer(importance)) == out.size
            dot = getattr(ggml, f"ggml_vec_dot_{name}_{kind}".lower().replace("_k", "_K"))
            products = numpy.zeros((COUNT, ROWS), numpy.float32)
            none = ctypes.c_size_t(0)
            for activation in range(COUNT):
                for row in range(ROWS):
                    y = tensors[f"{kind}.activations"][activation]
                    to = products[activation, row : row + 1]
                    dot(COLS, pointer(to), none, pointer(out[row]), none, pointer(y), none, 1)
            tensors[f"{name}.weights"], tensors[f"{name}.products"] = out, products
    save_file(tensors, OUT)


main()
