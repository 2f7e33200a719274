"""What the fixture scripts of this folder share: pinned versions, seeded weights, stable files.

Numbers are only worth committing when it is known what made them, so `pin` refuses to run
under any other version of the reference libraries than the ones named here.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).resolve().parent

VERSIONS = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "sentence-transformers": "6.2.0",
    "tokenizers": "0.23.3",
    "gguf": "0.19.0",
    "sentencepiece": "0.2.3",
    "llama_cpp_python": "0.3.36",
}


def pin(*packages: str) -> None:
    """Stops the script unless every package has the pinned version; fixes threads and kernels."""
    for package in packages:
        got = importlib.metadata.version(package).split("+")[0]
        if got != VERSIONS[package]:
            raise SystemExit(f"{package} is {got}, these fixtures are made with {VERSIONS[package]}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def fresh(directory: Path) -> Path:
    """An empty directory in place of whatever was there."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def randomise(named: Iterable[tuple[str, torch.Tensor]], seed: int, std: float = 0.3) -> None:
    """Fills weights with seeded noise, so that no norm is 1, no bias 0 and no two tensors are alike.

    Norm scales are drawn around 1, everything else around 0; one generator per tensor name order.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(named):
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            is_scale = "norm" in name.lower() and name.endswith("weight")
            value = 1.0 + 0.25 * noise if is_scale else std * noise
            tensor.copy_(value.to(tensor.dtype))


def random_ids(length: int, vocab: int, seed: int) -> list[int]:
    """`length` token ids in `0..vocab`, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (length,), generator=generator).tolist()


def write_json(path: Path, value: object) -> None:
    """JSON with sorted keys and a final newline, so that a rerun gives the same bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file of contiguous copies, with the metadata transformers writes."""
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path, {"format": "pt"})
