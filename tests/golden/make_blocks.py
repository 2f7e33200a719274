"""Makes `gguf/blocks.safetensors`: one matrix in every quantised format.

    python tests/golden/make_blocks.py

The blocks are those of ggml's own quantiser (inside llama.cpp), the values that they stand for those
of the `gguf` package. Formats that `ggml` writes and `gguf` reads are not alike by chance.
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


def quantise(library: ctypes.CDLL, kind: Type, values: np.ndarray) -> np.ndarray:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((values.shape[0], values.shape[1] // block * size), dtype=np.uint8)
    written = library.ggml_quantize_chunk(
        int(kind), values.ctypes.data, out.ctypes.data, 0, values.shape[0], values.shape[1], None
    )
    if written != out.nbytes:
        raise SystemExit(f"{kind}: {written} bytes, expected {out.nbytes}")
    return out


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


main()
