"""Makes `quant/blocks.safetensors`: what ggml's quantisers, formats and products give for small matrices.

    python tests/golden/make_quant.py

Bytes and products come from the ggml libraries inside llama-cpp-python, values from the `gguf` package. For every format
`<format>.bytes` is the quantised `x`, `<format>.values` what those bytes mean, `<format>.random` and
`<format>.random_values` the same for arbitrary bytes, `<format>.dots` the product with `activations` as ggml computes it,
`<format>.weighted` (where an importance matrix matters) the bytes with the importance `importance`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from reference import GOLDEN, fresh, pin, write_tensors

COLUMNS = 512
# Format, its partner for products, and where the f16 numbers of a block are.
FORMATS = {
    Type.Q4_0: ("q8_0", (0,)),
    Type.Q4_1: ("q8_1", (0, 2)),
    Type.Q5_0: ("q8_0", (0,)),
    Type.Q5_1: ("q8_1", (0, 2)),
    Type.Q8_0: ("q8_0", (0,)),
    Type.Q2_K: ("q8_K", (80, 82)),
    Type.Q3_K: ("q8_K", (108,)),
    Type.Q4_K: ("q8_K", (0, 2)),
    Type.Q5_K: ("q8_K", (0, 2)),
    Type.Q6_K: ("q8_K", (208,)),
}
PARTNER_BYTES = {"q8_0": (32, 34), "q8_1": (32, 36), "q8_K": (256, 292)}

LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
base = ctypes.CDLL(LIBRARIES / "libggml-base.so")
cpu = ctypes.CDLL(LIBRARIES / "libggml-cpu.so")
cpu.ggml_cpu_init()
base.ggml_quantize_chunk.restype = ctypes.c_size_t


def address(array: np.ndarray) -> ctypes.c_void_p:
    """Where the values of a contiguous array are."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def quantize(x: np.ndarray, kind: Type, importance: np.ndarray | None = None) -> np.ndarray:
    """`x` as blocks of `kind`, by llama.cpp's quantiser."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((x.shape[0], x.shape[1] // values * size), dtype=np.uint8)
    weights = ctypes.c_void_p(None) if importance is None else address(importance)
    rows, columns = (ctypes.c_int64(n) for n in x.shape)
    base.ggml_quantize_chunk(int(kind), address(x), address(out), ctypes.c_int64(0), rows, columns, weights)
    return out


def dots(blocks: np.ndarray, kind: Type, partner: str, activations: np.ndarray) -> np.ndarray:
    """`activations · Wᵀ` by ggml's product of blocks."""
    values, size = PARTNER_BYTES[partner]
    quantise = getattr(base, f"quantize_row_{partner}_ref")
    name = kind.name if kind.name.endswith("K") else kind.name.lower()
    product = getattr(cpu, f"ggml_vec_dot_{name[0].lower()}{name[1:]}_{partner}")
    out = np.zeros((activations.shape[0], blocks.shape[0]), dtype=np.float32)
    for i, row in enumerate(activations):
        quantised = np.zeros(COLUMNS // values * size, dtype=np.uint8)
        quantise(address(row), address(quantised), ctypes.c_int64(COLUMNS))
        for j, block in enumerate(blocks):
            zero = ctypes.c_size_t(0)
            result = ctypes.c_void_p(out.ctypes.data + 4 * (i * blocks.shape[0] + j))
            product(ctypes.c_int(COLUMNS), result, zero, address(block), zero, address(quantised), zero, ctypes.c_int(1))
    return out


def inputs(rng: np.random.Generator) -> np.ndarray:
    """Rows as weights have them, and the shapes that quantisers stumble over."""
    normal = rng.normal(size=(9, COLUMNS)) * 0.05
    normal[3] = rng.standard_t(2, size=COLUMNS) * 0.02
    normal[4] = np.abs(normal[4])
    normal[5, :300] = 0
    normal[6] = -0.25
    normal[7] = np.repeat(rng.normal(size=COLUMNS // 16), 16)
    normal[8] = np.linspace(-1, 1, COLUMNS) * 1e-6
    return normal.astype(np.float32)


def arbitrary(rng: np.random.Generator, kind: Type, halves: tuple[int, ...]) -> np.ndarray:
    """Blocks of random bytes whose f16 numbers are ordinary."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(2 * COLUMNS // values, size), dtype=np.uint8)
    for at in halves:
        numbers = rng.normal(size=len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = numbers.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(2, -1)


def main() -> None:
    """Writes the file."""
    pin("gguf", "llama_cpp_python", "torch")
    rng = np.random.default_rng(20)
    x, activations = inputs(rng), (rng.normal(size=(3, COLUMNS)) * 2).astype(np.float32)
    importance = (rng.random(COLUMNS) ** 2).astype(np.float32) + np.float32(1e-3)
    out = {"x": x, "activations": activations, "importance": importance}
    for kind, (partner, halves) in FORMATS.items():
        blocks, random = quantize(x, kind), arbitrary(rng, kind, halves)
        name = kind.name.lower()
        out[f"{name}.bytes"], out[f"{name}.values"] = blocks, gguf.dequantize(blocks, kind)
        out[f"{name}.random"], out[f"{name}.random_values"] = random, gguf.dequantize(random, kind)
        out[f"{name}.dots"] = dots(blocks, kind, partner, activations)
        weighted = quantize(x, kind, importance)
        if not np.array_equal(weighted, blocks):
            out[f"{name}.weighted"] = weighted
    directory = fresh(GOLDEN / "quant")
    write_tensors(directory / "blocks.safetensors", {name: torch.from_numpy(array) for name, array in out.items()})


if __name__ == "__main__":
    main()
