"""Makes crates/kbit-tokenizers/tests/golden/tekken: a small tekken.json, and what llama.cpp makes of it.

tekken_golden.py LLAMA_CPP LLAMA_TOKENIZE GOLDEN

LLAMA_CPP holds convert_hf_to_gguf.py, LLAMA_TOKENIZE is llama.cpp's tool; Python needs mistral-common beside what the
converter needs. GOLDEN is the folder of all golden tokenizers: merges and texts come from `byte-level`.
"""

import base64
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LLAMA_CPP, TOKENIZE, GOLDEN = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
sys.path[:0] = [str(LLAMA_CPP), str(LLAMA_CPP / "gguf-py")]

import gguf
from conversion import ModelBase, get_model_class
from gguf.vocab import bytes_to_unicode

SPECIAL = 24  # four more than the list that files without one have
out = GOLDEN / "tekken"
out.mkdir(exist_ok=True)
byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
tokens = [bytes([byte]) for byte in range(256)]
for merge in json.loads((GOLDEN / "byte-level/tokenizer.json").read_text())["model"]["merges"]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    token = bytes(byte_of[character] for character in "".join(parts))
    if token not in tokens:
        tokens.append(token)
vocab = [
    {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode(errors="replace")}
    for rank, token in enumerate(tokens)
]
size = SPECIAL + len(tokens) - 3  # fewer than the file has
config = {
    "pattern": r"[^\r\n\p{L}\p{N}]?[\p{L}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+", "num_vocab_tokens": len(tokens),
    "default_vocab_size": size, "default_num_special_tokens": SPECIAL, "version": "v3",
}
(out / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))
settings = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 8,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": size,
}
(out / "config.json").write_text(json.dumps(settings))
hparams = ModelBase.load_hparams(out, False)
converted = out / "expected.gguf"
model = get_model_class("MistralForCausalLM")(out, gguf.LlamaFileType.ALL_F32, converted, hparams=hparams)
model.write_vocab()

cases = []
for case in json.loads((GOLDEN / "byte-level/ids.json").read_text()):
    text = case["text"].replace("<|", "[").replace("|>", "]")
    with tempfile.NamedTemporaryFile("w", newline="") as file:
        file.write(text)
        file.flush()
        call = [TOKENIZE, "-m", str(converted), "-f", file.name, "--ids", "--log-disable"]
        run = lambda *more: json.loads(subprocess.run(call + list(more), capture_output=True, check=True, text=True).stdout.strip().splitlines()[-1])
        plain, special = run("--no-bos", "--no-parse-special"), run()
    cases.append(json.dumps({"text": text, "plain": plain, "special": special}, ensure_ascii=False, separators=(",", ":")))
(out / "ids.json").write_text("[\n" + ",\n".join(cases) + "\n]\n")
