"""Makes `gguf/recipes.json`: the format that llama.cpp's quantiser gives to every matrix, by recipe.

    python tests/golden/make_recipes.py

Two models are quantised, with and without an importance matrix: one whose rows fit every format, with several query heads
for each key-value head, and one with a tied head whose rows are no multiple of 256. The usual format of a recipe is given
once, under "", and only the matrices with another one by name.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from reference import GOLDEN, pin, write_json

RECIPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "q2_k_s": 21, "iq4_nl": 25,
}  # fmt: skip
MODELS = {
    "grouped": {"layers": 17, "hidden": 256, "feed_forward": 512, "heads": 4, "kv_heads": 1, "tied": False},
    "narrow": {"layers": 9, "hidden": 96, "feed_forward": 512, "heads": 2, "kv_heads": 2, "tied": True},
}
VOCABULARY = 64


def shapes(model: dict) -> dict[str, tuple[int, int]]:
    """The matrices as `[out, in]`."""
    hidden, feed_forward = model["hidden"], model["feed_forward"]
    key_value = hidden // model["heads"] * model["kv_heads"]
    found = {"token_embd.weight": (VOCABULARY, hidden)}
    if not model["tied"]:
        found["output.weight"] = (VOCABULARY, hidden)
    for layer in range(model["layers"]):
        parts = {
            "attn_q": (hidden, hidden),
            "attn_k": (key_value, hidden),
            "attn_v": (key_value, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (feed_forward, hidden),
            "ffn_up": (feed_forward, hidden),
            "ffn_down": (hidden, feed_forward),
        }
        found |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts.items()}
    return found


def write_model(path: Path, model: dict) -> None:
    generator = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("none")
    writer.add_context_length(64)
    writer.add_embedding_length(model["hidden"])
    writer.add_block_count(model["layers"])
    writer.add_feed_forward_length(model["feed_forward"])
    writer.add_head_count(model["heads"])
    writer.add_head_count_kv(model["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    for name, shape in shapes(model).items():
        writer.add_tensor(name, generator.standard_normal(shape).astype(np.float32))
    norms = [f"blk.{layer}.{part}" for layer in range(model["layers"]) for part in ("attn_norm", "ffn_norm")]
    for name in ["output_norm", *norms]:
        writer.add_tensor(f"{name}.weight", np.ones(model["hidden"], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, target: Path, file_type: int, importance: dict[str, np.ndarray]) -> dict[str, str]:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 1
    if importance:
        entry, number = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
        rows = [entry(name.encode(), x.ctypes.data_as(number), len(x)) for name, x in importance.items()]
        array = (entry * (len(rows) + 1))(*rows, entry(None, None, 0))
        parameters.imatrix = ctypes.cast(array, ctypes.POINTER(entry))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) != 0:
        raise SystemExit(f"llama.cpp does not quantise to {file_type}")
    tensors = gguf.GGUFReader(target).tensors
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in tensors if "norm" not in tensor.name}


def main() -> None:
    """Writes the file."""
    pin("gguf", "llama_cpp_python")
    out = {}
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / "source.gguf", Path(directory) / "target.gguf"
        for name, model in MODELS.items():
            write_model(source, model)
            importance = {matrix: np.ones(columns, dtype=np.float32) for matrix, (_, columns) in shapes(model).items()}
            formats = {}
            for recipe, file_type in RECIPES.items():
                for weighted in (False, True):
                    if recipe == "q2_k_s" and not weighted:
                        continue
                    found = quantise(source, target, file_type, importance if weighted else {})
                    usual = Counter(found.values()).most_common(1)[0][0]
                    others = {matrix: kind for matrix, kind in found.items() if kind != usual}
                    formats[f"{recipe}{' weighted' if weighted else ''}"] = {"": usual, **others}
            columns = {matrix: columns for matrix, (_, columns) in shapes(model).items()}
            out[name] = {**model, "columns": columns, "formats": formats}
    write_json(GOLDEN / "gguf" / "recipes.json", {"file_types": RECIPES, "models": out})


if __name__ == "__main__":
    main()
