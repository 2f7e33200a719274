"""Makes `gguf/blocks.safetensors` and `gguf/encoded.safetensors`: matrices in every quantised format.

    python tests/golden/make_blocks.py

The blocks are those of ggml's own quantiser (inside llama.cpp), the values that they stand for those
of the `gguf` package. Formats that `ggml` writes and `gguf` reads are not alike by chance.
The second file has rows that quantisers stumble over, with and without an importance matrix.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from reference import GOLDEN, pin, write_tensors

ROWS, COLUMNS = 3, 512
FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4"]


def ggml() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    return library


def quantise(library: ctypes.CDLL, kind: Type, values: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((values.shape[0], values.shape[1] // block * size), dtype=np.uint8)
    written = library.ggml_quantize_chunk(
        int(kind),
        values.ctypes.data,
        out.ctypes.data,
        0,
        values.shape[0],
        values.shape[1],
        None if importance is None else importance.ctypes.data,
    )
    if written != out.nbytes:
        raise SystemExit(f"{kind}: {written} bytes, expected {out.nbytes}")
    return out


def hard_rows(generator: np.random.Generator) -> np.ndarray:
    """Rows whose blocks are constant, have few values, outliers, zeros of both signs, or numbers without a half."""
    normal = generator.standard_normal(COLUMNS)
    sign = generator.choice([-1.0, 1.0], COLUMNS)
    rows = [
        np.zeros(COLUMNS),
        np.full(COLUMNS, 0.3),
        np.full(COLUMNS, -0.3),
        generator.integers(-1, 2, COLUMNS) * 0.05,
        generator.integers(1, 3, COLUMNS) * 0.1,
        normal * (generator.random(COLUMNS) < 0.03),
        normal * (generator.random(COLUMNS) < 0.5) * sign,
        np.where(np.arange(COLUMNS) % 256 == 7, 3.0, 1.0),
        normal * 0.02,
        generator.standard_t(2, COLUMNS) * 0.01,
        generator.random(COLUMNS) + 0.1,
        -generator.random(COLUMNS) - 0.1,
        np.linspace(-1, 1, COLUMNS),
        normal * np.repeat(10.0 ** generator.uniform(-9, 2, COLUMNS // 16), 16),
        0.3 + normal * 1e-7,
        normal * 1e-8,
        normal * 1e3,
        # Whatever the scale is, a half cannot hold it: only this row may differ in MXFP4, which needs no half.
        normal * 1e-40,
    ]
    return np.stack(rows).astype(np.float32)


def encoded(library: ctypes.CDLL) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(11)
    values = hard_rows(generator)
    importance = (generator.random(COLUMNS) ** 2 * (generator.random(COLUMNS) < 0.9)).astype(np.float32)
    tensors = {"values": values, "importance": importance}
    for name in FORMATS:
        tensors[f"{name.lower()}.plain"] = quantise(library, Type[name], values)
        tensors[f"{name.lower()}.weighted"] = quantise(library, Type[name], values, importance)
    return {name: torch.from_numpy(array) for name, array in tensors.items()}


def main() -> None:
    pin("gguf", "llama_cpp_python")
    library = ggml()
    generator = np.random.default_rng(7)
    values = generator.standard_normal((ROWS, COLUMNS)).astype(np.float32) * 0.05
    # Blocks of zeros, of one sign, with an outlier, and of equal values.
    values[0, :256] = 0.0
    values[1, :64] = np.abs(values[1, :64])
    values[1, 64:128] = -np.abs(values[1, 64:128])
    values[2, 7], values[2, 300:332] = 4.0, 0.01
    tensors = {"values": torch.from_numpy(values)}
    for name in FORMATS:
        kind = Type[name]
        blocks = quantise(library, kind, np.ascontiguousarray(values))
        key = name.lower()
        tensors[f"{key}.blocks"] = torch.from_numpy(blocks)
        tensors[f"{key}.values"] = torch.from_numpy(gguf.dequantize(blocks, kind).astype(np.float32))
    write_tensors(GOLDEN / "gguf" / "blocks.safetensors", tensors)
    write_tensors(GOLDEN / "gguf" / "encoded.safetensors", encoded(library))


main()
